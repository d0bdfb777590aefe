"""The quick way to a model's graph: it is the graph that torch.export gives, and what it cannot prove it leaves to torch.export."""

import functools
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import SMALL
from niwaki.adoption import AdoptionError, capture, read
from niwaki.adoption import trace as tracing
from niwaki.adoption.capture import arguments_of
from niwaki.adoption.trace import SIZES, NotPlainError, Rows, trace

SAME = ("groups", "weights", "costs", "averages", "opaque", "notes", "batch", "examples")
MODELS = ("resnet-basic", "mobilenet-v3", "shufflenet-v2", "unet-bilinear", "vit-multihead", "gpt-flash", "edsr")


def traced(model, example, axis=0):
    return trace(model.eval(), ((example,), {}), axis, lambda file: file == __file__)


def by_export(monkeypatch, model, example):
    def refuses(*_):
        raise NotPlainError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(capture, "trace", refuses)
        return read(model, example)


@pytest.mark.parametrize("name", MODELS)
def test_a_traced_model_is_read_as_an_exported_one(monkeypatch, name):
    torch.manual_seed(0)
    model, example = SMALL[name].make(), SMALL[name].example()
    quick, slow = read(model, example), by_export(monkeypatch, model, example)
    for what in SAME:
        assert getattr(quick, what) == getattr(slow, what), what
    leaves = [
        each.cut({group.name: range(group.units // 2, group.units) for group in each.groups})(*arguments_of(example)[0])
        for each in (quick, slow)
    ]
    torch.testing.assert_close(*leaves, rtol=0, atol=0)


class Calls(nn.Module):
    """A convolution, then whatever is given."""

    def __init__(self, then):
        super().__init__()
        self.conv, self.then = nn.Conv2d(3, 4, 1), then
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        return self.then(self, self.conv(x))


def test_sizes_that_follow_the_batch_are_told_from_those_that_do_not():
    found = traced(Calls(lambda _, x: x.reshape(len(x) * 4, 2, len(x.shape[1:]))[:2].sum()), torch.randn(1, 3, 2, 3))
    (call,) = [call for call in found.calls if str(call.target) == "aten.reshape.default"]
    assert call.args[1] == [Rows(4), SIZES[0], 3]


def test_a_shared_layer_is_found_under_the_name_it_is_called_by():
    act = nn.ReLU()
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), act), nn.Sequential(nn.Linear(2, 2), act))
    assert [call.layer for call in traced(model, torch.randn(1, 2)).calls] == ["0.0", "0.1", "1.0", "1.1"]


def test_the_line_of_a_call_is_the_owner_s():
    found = traced(Calls(lambda _, x: x.relu()), torch.randn(1, 3, 2, 2))
    assert found.calls[-1].place.startswith(f'  File "{__file__}", line ')
    assert not traced(nn.Sequential(nn.ReLU()), torch.randn(1, 3)).calls[0].place


def without_gradients(_, x):
    with torch.no_grad():
        return x.relu()


def in_half(_, x):
    with torch.autocast("cpu"):
        return x @ x


def swallowed(_, x):
    try:
        return x * x.sum().item()
    except Exception:
        return x


def kept(model, x):
    model.last = x if not hasattr(model, "last") else model.last
    return x + model.last[:1]


REFUSED = {
    "a branch on a value": lambda _, x: x if x.sum() > 0 else -x,
    "a number of a value": lambda _, x: x * float(x.max()),
    "a number of a weight": lambda model, x: x * model.conv.weight.tolist()[0][0][0][0],
    "a size of a value": lambda _, x: x[x > 0],
    "an error that the model catches": swallowed,
    "no gradients": without_gradients,
    "autocast": in_half,
    "a number that follows the batch": lambda _, x: x * (1 / len(x)),
    "half the batch": lambda _, x: x[: len(x) // 2 + 1],
    "a branch on the batch": lambda _, x: x.relu() if len(x) > 100 else x.tanh(),
    "a loop over the batch": lambda _, x: torch.stack([row.relu() for row in x]),
    "its batch size": lambda _, x: (x, len(x)),
    "a tensor of unknown origin": lambda _, x: x * torch.tensor([1.0, 2.0]),
    "a weight that is written": lambda model, x: x + model.seen.add_(1).sum(),
    "a part of a weight that is written": lambda model, x: x + model.seen[1:].mul_(2).sum(),
    "a tensor that is kept": kept,
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_not_plain_is_left_to_torch_export(why):
    with pytest.raises(Exception) as raised:  # the model's own, or ours where the model catches it
        traced(Calls(REFUSED[why]), torch.randn(1, 3, 2, 2))
    assert not isinstance(raised.value, AssertionError)


FOLLOWS_BATCH = {
    "at most two": lambda _, x: x * min(len(x), 2) / 2,
    "some sizes": lambda _, x: x * 2 if 4 <= len(x) <= 512 else x,
    "one alone": lambda _, x: x[0] if len(x) == 1 else x,
    "fours": lambda _, x: torch.cat([part.relu() for part in x.split(4)]),
    "halves": lambda _, x: torch.cat([x.chunk(2)[0], x.chunk(2)[1]]),
}


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("name", FOLLOWS_BATCH)
def test_a_batch_that_is_free_gives_what_the_model_gives_for_other_sizes(name, rows):
    torch.manual_seed(0)
    model = Calls(FOLLOWS_BATCH[name]).eval()
    try:
        adopted = read(model, torch.randn(rows, 3, 2, 2))
    except AdoptionError:
        assert (name, rows) == ("halves", 1)
        return
    assert (adopted.batch is None) == any("the batch size is the example's" in note for note in adopted.notes)
    for other in (1, 2, 4, 7) if adopted.symbolic else (rows,):
        x = torch.randn(other, 3, 2, 2)
        torch.testing.assert_close(adopted.module(x), model(x))


CACHE, CALLED, LAST = {}, [], None


@functools.lru_cache
def positions(rows):
    return torch.arange(rows, dtype=torch.float32).view(-1, 1, 1, 1)


def cached_by_shape(_, x):
    if tuple(x.shape) not in CACHE:
        CACHE[tuple(x.shape)] = torch.ones(len(x), 4, 1, 1)
    return x * CACHE[tuple(x.shape)]


def cached_as_far_as_needed(_, x):
    global LAST
    if LAST is None or len(LAST) < len(x):
        LAST = torch.ones(len(x), 4, 1, 1)
    return x * LAST[: len(x)]


def written_down(_, x):
    CALLED.append(x.detach())
    return x * 2


KEPT = {
    "a cache of a function": lambda _, x: x + 0 * positions(len(x)),
    "a dict of a file": cached_by_shape,
    "a name of a file": cached_as_far_as_needed,
    "a list of a file": written_down,
}


@pytest.mark.parametrize("way", ["traced", "exported"])
@pytest.mark.parametrize("name", KEPT)
def test_what_a_forward_keeps_outside_its_module_is_usable_after_it_was_read(monkeypatch, name, way):
    for rows in (4, 5):  # the second time something is there
        model, example = Calls(KEPT[name]).eval(), torch.randn(rows, 3, 2, 2)
        read(model, example) if way == "traced" else by_export(monkeypatch, model, example)
        for other in (1, 2, 4, 1009):
            assert torch.isfinite(model(torch.randn(other, 3, 2, 2))).all()
        assert {type(each) for each in [*CALLED, *CACHE.values(), LAST]} <= {torch.Tensor, type(None)}


class Hidden:
    """A place that is not looked into."""


def test_what_cannot_be_taken_out_again_is_told():
    hidden = Hidden()

    def keeps(_, x):
        if len(x) == 1009:
            hidden.last = x
        return x * 2

    (note,) = read(Calls(keeps), torch.randn(1, 3, 2, 2)).notes
    assert "its forward keeps tensors outside the module (in a" in note
    assert isinstance(hidden.last, torch.Tensor)


def test_a_batch_that_only_seems_free_is_told_with_the_number_of_rows():
    (note, _) = read(Calls(FOLLOWS_BATCH["at most two"]), torch.randn(4, 3, 2, 2)).notes
    assert note.endswith("what was read for any gives other outputs than the model for 1")


def test_why_a_model_is_left_to_torch_export_is_logged(caplog):
    caplog.set_level(logging.DEBUG, logger=capture.__name__)
    read(Calls(without_gradients), torch.randn(1, 3, 2, 2))
    assert "Calls is left to torch.export: a block with another mode of gradients" in caplog.text


def test_a_mistake_of_the_tracer_s_own_is_not_taken_for_the_model_s(monkeypatch):
    monkeypatch.setattr(tracing, "HALVES", None)
    with pytest.raises(TypeError, match="NoneType"):
        read(Calls(lambda _, x: x.relu()), torch.randn(1, 3, 2, 2))


def test_modules_of_others_run_undisturbed_while_a_model_is_traced():
    def without_hooks(_, x):
        assert not nn.modules.module._global_forward_hooks
        return x

    assert traced(Calls(without_hooks), torch.randn(1, 3, 2, 2)).calls


def test_importing_the_tracer_does_not_import_the_compiler():
    code = "import sys, niwaki.adoption; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_left_to_torch_export_is_read_as_before(monkeypatch):
    for then in (without_gradients, lambda _, x: x * torch.tensor([1.0, 2.0]), lambda _, x: torch.stack([row.relu() for row in x])):
        model, example = Calls(then), torch.randn(1, 3, 2, 2)
        one, other = read(model, example), by_export(monkeypatch, model, example)
        assert one.module.code == other.module.code
        assert one.notes == other.notes


def test_nothing_is_left_in_the_owner_s_model():
    model = Calls(kept)
    read(model, torch.randn(1, 3, 2, 2))
    assert not hasattr(model, "last")
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())


def test_a_gradient_that_is_stopped_stays_so():
    for stop in (lambda x: x.detach(), lambda x: x.data):
        model = nn.Sequential(nn.Linear(2, 3), Straight(stop), nn.Linear(3, 1))
        module = read(model, torch.randn(1, 2)).module
        for each in (model, module):
            each(torch.ones(1, 2)).sum().backward()
        torch.testing.assert_close(module.get_submodule("0").weight.grad, model[0].weight.grad)


class Straight(nn.Module):
    """Signs forwards, as if they were the identity backwards."""

    def __init__(self, stop):
        super().__init__()
        self.stop = stop

    def forward(self, x):
        return x + self.stop(torch.sign(x) - F.relu(x))


def test_a_branch_on_a_value_is_told_with_its_line():
    with pytest.raises(AdoptionError, match=r"test_trace.py:\d+"):
        read(Calls(REFUSED["a branch on a value"]), torch.randn(1, 3, 2, 2))
