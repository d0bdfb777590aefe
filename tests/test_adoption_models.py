"""Models of other people are read, cut, trained and counted: the public check on all of them."""

import pytest
import torch
from torch import nn

import niwaki.testing.adoption as check
from models import SMALL
from niwaki.testing import check_adoption


@pytest.mark.parametrize("name", SMALL)
def test_a_model_is_the_same_when_it_was_read_and_its_cut_costs_what_was_said(name):
    model = SMALL[name]
    torch.manual_seed(0)
    share = check.SEARCHABLE if model.is_convolutional else 0.0
    found = check_adoption(model.make(), model.example(), searchable=share, opaque=model.has_opaque, onnx=False)
    assert found.trained is None or found.trained <= check.TRAINED, "where nothing is random, it does the same in training mode"


@pytest.mark.parametrize("name", ["mobilenet-v2", "retina", "gpt"])
def test_a_cut_model_gives_the_same_in_onnx_runtime(name):
    model = SMALL[name]
    torch.manual_seed(0)
    assert check_adoption(model.make(), model.example(), searchable=0.0).cut.onnx_equal


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.norm(self.left(x) + self.right(x)).mean((2, 3)))


def test_a_coupling_that_was_overlooked_is_found(monkeypatch):
    """The rule of a sum is made to forget that its operands are one group: the channels of one of them are then listed in another order."""
    monkeypatch.setattr("niwaki.adoption.reading.Reading.join", lambda self, a, b: None)
    with pytest.raises(AssertionError, match="units of a group can be listed in any order"):
        check_adoption(Sums(), torch.randn(1, 3, 8, 8), onnx=False)


def test_a_cost_that_is_wrong_by_one_is_found(monkeypatch):
    honest = check.Adopted.cost
    monkeypatch.setattr(check.Adopted, "cost", lambda self, metric, alive=None: honest(self, metric, alive) + 1)
    with pytest.raises(AssertionError, match="were predicted"):
        check_adoption(Sums(), torch.randn(1, 3, 8, 8), onnx=False)


def test_what_is_left_as_it_is_fails_the_check_unless_it_is_allowed():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(6, 8, batch_first=True), nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))

        def forward(self, x):
            return self.head(self.rnn(x)[0])

    with pytest.raises(AssertionError, match="every layer is understood"):
        check_adoption(Tagger(), torch.randn(1, 5, 6), onnx=False)
    assert check_adoption(Tagger(), torch.randn(1, 5, 6), opaque=True, onnx=False).adopted.opaque == ("rnn",)


def test_the_owners_model_stays_as_it_was():
    model = Sums().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_adoption(model, torch.randn(2, 3, 8, 8), onnx=False)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


OWN = """
import torch
from torch import nn
import torch.nn.functional as F

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.rows, self.words, self.out = nn.Linear(4, 8), nn.Embedding(10, 8), nn.Linear(8, 2)

    def forward(self, rows, ids, scale=None):
        hidden = F.relu(self.rows(rows) + self.words(ids).mean(1))
        return self.out(hidden if scale is None else hidden * scale)

class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        if x.sum() > 0:
            x = -x
        return self.b(self.a(x).relu())
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path


def test_the_command_prints_what_was_found(niwaki_command, own):
    inputs = ("--input", "1x4", "--input", "ids=1x3:int64<10")
    answer = niwaki_command("adopt", "own.py:Two", *inputs, "--json", cwd=own)
    assert (answer.code, answer.err) == (0, "")
    assert answer.json == {
        "equal_outputs": True, "groups": 1, "choices": 1, "searchable_share": 1.0, "opaque": [], "macs": 4 * 8 + 8 * 2, "examples": 1, "notes": answer.json["notes"],
        "trained": 0.0, "undescribed": "",
        "cut": {**answer.json["cut"], "onnx_equal": True},
    }  # fmt: skip
    assert answer.json["cut"]["predicted_macs"] == answer.json["cut"]["counted_macs"] <= 0.6 * 48
    told = niwaki_command("adopt", "own.py:Two", *inputs, "--picture", "own.svg", cwd=own).out
    assert "| 1 | rows | 8 |" in told
    assert "rows, words, out |" in told
    drawn = (own / "own.svg").read_text()
    assert drawn.count(">group 1<") == 5, "rows, words, their mean, their sum and its ReLU are one group; the output is in none"
    assert "outputs equal" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("own.py:Two", "--input", "1x4"), "missing a required argument: 'ids'"),
        (("own.py:Two", "--input", "1x5", "--input", "1x3:int64<10"), "does not run on the example"),
        (("own.py:Two",), "needs --input for each argument of its forward(rows, ids, scale=None)"),
        (("own.py:Two", "--input", "1x4", "--input", "1x3:int64<10", "--input", "words=1x3"), "unexpected keyword argument 'words'"),
        (("own.py:Branch", "--input", "1x4"), "own.py:21, in forward: `if x.sum() > 0:`"),
        (("own.py:Three", "--input", "1x4"), "own.py has no 'Three'"),
    ],
)
def test_bad_input_is_told_with_exit_code_2(niwaki_command, own, arguments, message):
    answer = niwaki_command("adopt", *arguments, "--json", cwd=own)
    assert answer.code == 2
    assert message in answer.json["error"]
    assert answer.err.splitlines()[-1].startswith("error: ")


def test_a_network_of_the_zoo_is_adopted_as_its_largest_member(niwaki_command):
    found = niwaki_command("adopt", "mobile-8", "--json").json
    assert found["equal_outputs"]
    assert found["cut"]["onnx_equal"]


def test_a_batch_on_the_second_axis_and_an_input_without_a_batch_are_kept_so():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.norm, self.out = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x, weights):  # x: (T, B, 6), weights: (T,) of the whole call
            return self.out((self.norm(self.into(x)) * weights[:, None, None]).sum(0))

    found = check_adoption(TimeFirst(), (torch.randn(5, 1, 6), torch.rand(5)))
    assert (found.adopted.batch, tuple(found.differences)) == (1, (1, 3))


class Inline(nn.Module):
    """A model whose forward is a function of it and of a map of 8 searchable channels."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.conv, self.fc, self.function = nn.Conv2d(3, 8, 1), nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 5), function
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return self.fc(self.function(self, self.layer(x)))


@pytest.mark.parametrize(
    "function",
    [
        lambda net, y: (y / y.abs().exp().sum(1, keepdim=True)).mean((2, 3)),  # of a channel that is zero, exp is one
        lambda net, y: net.conv(y.reshape(-1, 1, 8, 8)).reshape(-1, 8, 8, 8, 8).sum(1).mean((2, 3)),  # and a bias is left
        lambda net, y: torch.nn.functional.linear(y.mean((2, 3)), net.weight / net.weight.norm(dim=0, keepdim=True)),  # 0 / 0
    ],
)
def test_a_cut_is_right_where_a_removed_channel_is_no_zero(function):
    torch.manual_seed(0)
    found = check_adoption(Inline(function), torch.randn(2, 3, 8, 8), searchable=0.0, onnx=False)
    assert found.adopted.groups
