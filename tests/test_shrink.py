"""Shrinking a network of one's own: pressure, landing, and `niwaki shrink` from the model's word to its files."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace

import onnxruntime
import pytest
import torch
from torch import nn

import niwaki
from niwaki.adoption.adopted import read
from niwaki.adoption.axes import AdoptionError
from niwaki.gradient.adopted import resource_of
from niwaki.gradient.expand import Bound, used
from niwaki.gradient.figs import SMALL
from niwaki.gradient.landing import WAYS, cut, landings, pressed
from niwaki.gradient.morphnet import MorphNet
from niwaki.run.folder import Folder, RunError
from niwaki.run.progress import Silent
from niwaki.run.shrink_plan import parse_bounds
from niwaki.run.shrink_story import told_landing
from niwaki.space.choice import BudgetError
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.train.loop import evaluate, train
from niwaki.train.recipe import Recipe


class Small(nn.Module):
    """A residual network for digits: 60 k multiply-adds."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 10, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(10), nn.ReLU())
        self.a = nn.Sequential(nn.Conv2d(10, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(24, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10))
        self.last = nn.Sequential(nn.Conv2d(10, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.b(self.a(x)))
        return self.head(self.last(x).mean((2, 3)))


METHODS = {"morphnet": MorphNet(epochs=4), "figs": replace(SMALL, epochs=4)}


@pytest.fixture(scope="module")
def task():
    return ImageClassification(digits())


@pytest.fixture(scope="module")
def owner(task):
    torch.manual_seed(0)
    return train(Small(), task, Recipe(epochs=4), task.part("train"))


@pytest.fixture(scope="module")
def example(task):
    return task.batch(task.part("train")[:2], torch.device("cpu"))[0]


def begun(owner, task, example, method, share=0.5):
    adopted = read(owner, example)
    bounds = [Bound(macs := resource_of(adopted, "macs"), share * macs.cost(adopted.whole))]
    return adopted, bounds, pressed(adopted, task, method, bounds, task.part("train"))


@pytest.mark.parametrize("name", METHODS)
def test_pressure_leads_near_the_budget_and_the_landing_within_two_percent_below_it(owner, task, example, name):
    adopted, bounds, shrinking = begun(owner, task, example, METHODS[name], 0.3)
    while not shrinking.finished:
        shrinking.run()
    left = {group: max(1, int((margins > 0).sum())) for group, margins in shrinking.sparsity.margins().items()}
    assert 0.4 < used(bounds, left) < 2.5, "before anything is multiplied: the controller found the strength by itself"
    found = landings(adopted, shrinking, bounds)
    assert found[-1].name == "before"
    assert found[-1].source is adopted
    for landing in found:
        assert 0.98 <= used(bounds, landing.counts) <= 1
        accuracy = evaluate(cut(landing), task, task.part("test"))["accuracy"]
        if landing.source is not adopted:
            assert accuracy > 0.2, "the pressure has prepared the network for the cut, before any fine-tuning"


@pytest.mark.parametrize("name", METHODS)
def test_a_training_under_pressure_stopped_at_any_step_goes_on_with_the_same_bits(owner, task, example, name):
    method = replace(METHODS[name], epochs=2, batch_size=200)
    _, _, whole = begun(owner, task, example, method)
    _, _, first = begun(owner, task, example, method)
    while not whole.finished:
        whole.run()
    first.run(4)
    first.run(5)
    tensors, state = copy.deepcopy(first.state_dict())
    _, _, second = begun(owner, task, example, method)
    second.load(tensors, state)
    while not second.finished:
        second.run()
    assert second.history == whole.history
    for key, tensor in whole.state_dict()[0].items():
        assert torch.equal(tensor, second.state_dict()[0][key]), key


def test_more_pressure_leaves_less(owner, task, example):
    costs = []
    for strength in (0.0, 2.0, 20.0):
        adopted, bounds, shrinking = begun(owner, task, example, replace(METHODS["morphnet"], strength=strength))
        while not shrinking.finished:
            shrinking.run()
        costs.append(bounds[0].resource.cost(shrinking.counts()))
    assert costs[0] == bounds[0].resource.cost(adopted.whole)
    assert costs[0] >= costs[1] > costs[2]


# --- the command ---------------------------------------------------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(12, 28, 3, padding=1, bias=False), nn.BatchNorm2d(28), nn.ReLU())
        self.head = nn.Linear(28, 10)

    def forward(self, x):
        return self.head(self.deep(self.stem(x)).mean((2, 3)))

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x):
        return self.head(x)
"""
QUICK = ("shrink.before=2", "shrink.epochs=2", "train.epochs=1")
DIGITS = ("--set", "data.kind=digits", "--threads", "1", *(word for setting in QUICK for word in ("--set", setting)))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("owner") / "own.py"
    file.write_text(MODEL)
    return file


@pytest.fixture(scope="module")
def shrunken(niwaki_command, model_file, tmp_path_factory):
    """A finished run: its folder, the words that it was asked with, and the answer."""
    folder = tmp_path_factory.mktemp("shrunken") / "run"
    words = ("shrink", f"{model_file}:Net", "--budget", "macs<=50%", *DIGITS, "--out", folder, "--json")
    answer = niwaki_command(*words)
    assert answer.code == 0, answer.err
    return folder, words, answer


def test_one_call_lands_within_two_percent_below_the_budget_and_says_what_it_cost(shrunken, niwaki_command):
    folder, _, answer = shrunken
    found = answer.json
    limit = found["limits"]["macs"]
    assert limit == found["costs"]["before"]["macs"] // 2
    assert 0.98 * limit <= found["macs"] <= limit
    assert found["lost"] == found["metrics"]["before"]["test"]["accuracy"] - found["metrics"]["after"]["test"]["accuracy"]
    assert {one["group"]: one["before"] for one in found["widths"]} == {"stem.0": 12, "deep.0": 28}
    assert all(len(one["kept"]) == one["after"] for one in found["widths"])
    assert "groups of 40 channels" in answer.err
    assert "It is trained for" not in answer.err, "the training before was asked for"
    page = (folder / "report.html").read_text()
    assert "Widths before and after" in page
    assert f"{found['macs']:,}" in page
    (landing,) = found["landings"]
    assert set(landing["judged"]) <= set(WAYS)
    assert landing["name"] == max(landing["judged"], key=lambda name: landing["judged"][name])
    assert f"landing: {landing['name']}, {WAYS[landing['name']]}".replace("'", "&#x27;") in page
    assert ("which were better than FiGS" in page) == (landing["name"] == "before")
    for again in (niwaki_command("resume", folder), niwaki_command("resume", folder, "--quiet")):
        assert re.search(rf"^landing +{landing['name']} \(judged on validation: ", again.out, re.M)


def test_shrunken_networks_are_members_of_a_cascade(shrunken, tmp_path):
    folder = shutil.copytree(shrunken[0], tmp_path / "half")
    made = niwaki.cascade([folder, folder], "macs<=100%")
    assert [member["cost"] for member in made.summary["members"]] == [shrunken[2].json["macs"]] * 2
    assert made.test.accuracy == pytest.approx(shrunken[2].json["metrics"]["after"]["test"]["accuracy"])
    assert "of the validation part" in made.summary["held_out"]["about"], "the run trained the network itself, and not on that"
    page = (folder / "report.html").read_text()
    assert '<h2 id="cascade">' in page
    assert "Widths before and after" in page


def test_what_is_shipped_is_what_was_counted(shrunken, task):
    folder, _, answer = shrunken
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (logits,) = session.run(["logits"], {"images": task.images.test_images})
    accuracy = (logits.argmax(1) == task.images.test_labels).mean()
    assert accuracy == pytest.approx(answer.json["metrics"]["after"]["test"]["accuracy"], abs=0.003)
    described = json.loads((folder / "architecture.json").read_text())
    assert (described["macs"], described["params"]) == (answer.json["macs"], answer.json["params"])
    module = niwaki.build(niwaki.from_json(described["network"]), niwaki.space_of(niwaki.from_json(described["network"])).architecture({}))
    assert sum(parameter.numel() for parameter in module.parameters()) == answer.json["params"]
    assert niwaki.count_macs(niwaki.from_json(described["network"])).maximum()[0] == answer.json["macs"]


def test_a_finished_run_is_only_told_again(shrunken, niwaki_command):
    folder, words, answer = shrunken
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.suffix in (".onnx", ".html", ".safetensors")}
    for again in (niwaki_command(*words), niwaki_command("resume", folder, "--json")):
        assert again.json == answer.json
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name in before} == before
    assert niwaki_command("report", folder).code == 0
    refused = niwaki_command("export", folder)
    assert refused.code == 2
    assert "holds a run of `niwaki shrink`" in refused.err


class _Stopped(Silent):
    """Stops, as Ctrl-C does, when a phase begins."""

    def __init__(self, phase):
        self.at = phase

    def phase(self, name, total):
        if name == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("phase", ["shrinking 0", "exporting"])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_bits(shrunken, model_file, tmp_path, phase):
    folder, _, _ = shrunken
    call = {"settings": ["data.kind=digits", *QUICK], "threads": 1, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt, match="goes on from there"):
        niwaki.shrink(f"{model_file}:Net", "macs<=50%", progress=_Stopped(phase), **call)
    result = niwaki.shrink(f"{model_file}:Net", "macs<=50%", **call)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert set(result.model.state_dict()) >= {"stem.0.weight", "deep.1.weight", "head.bias"}, "the owner's names"


def test_a_module_from_python_stays_as_it_is_and_what_is_frozen_in_it_too(task, owner, tmp_path):
    model = copy.deepcopy(owner)
    model.head.weight.requires_grad_(False)
    model.head.half()
    before = copy.deepcopy(model.state_dict())
    settings = {"shrink.epochs": 1, "train.epochs": 1, "shrink.distill": 0.0}
    result = niwaki.shrink(model, ["macs<=60%", "params<=70%"], task, method="morphnet", out=tmp_path / "run", settings=settings)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    kept = next(one for one in result.summary["widths"] if one["group"] == "last.0")["kept"]
    assert torch.equal(result.model.state_dict()["head.weight"], before["head.weight"][:, kept].float())
    after, limits = result.summary["costs"]["after"], result.summary["limits"]
    assert all(after[name] <= limits[name] for name in limits)
    assert max(after[name] / limits[name] for name in limits) >= 0.98
    assert result.summary["epochs"]["before"] == 0, "it was trained already"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "1 frozen parameters, head.weight the first of them" in page
    assert "read, trained, cut and delivered in float32; the owner&#x27;s model stays in torch.float16" in page
    with pytest.raises(RunError, match="started from Python with a model and a task"):
        niwaki.run.shrink.resume(tmp_path / "run")


def test_what_is_no_module_is_refused_as_adopt_does(task):
    for refuse in (lambda: niwaki.shrink(3, "macs<=50%", task), lambda: niwaki.adopt(3, torch.zeros(1))):
        with pytest.raises(AdoptionError, match=r"a model is a torch.nn.Module; given int"):
            refuse()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("own.py:Net", "--budget", "macs<=100"), "macs<=100 cannot be reached by removing channels: the least is"),
        (("own.py:Net", "--budget", "macs<=150%"), "nothing to shrink, for the network as it is keeps this. It costs 50,392 macs, of at most 75,588"),
        (("own.py:Net", "--budget", "params<=1M", "--budget", "roofline(T4)<=100%"), "roofline(T4)<=100%: there is nothing to shrink"),
        (("own.py:Net", "--budget", "flops<=50%"), "'flops' is no resource"),
        (("own.py:Net", "--budget", "macs<=50%", "--method", "morphnets"), "the call has 1 problem:\n  --method morphnets: it is morphnet or figs; did you mean morphnet"),
        (("own.py:Net", "--budget", "macs<=50%", "--set", "epochs=3"), "epochs: there is no such key; did you mean shrink.epochs?"),
        (("own.py:Net", "--budget", "macs<=50%", "--set", "shrink.epoch=3"), "did you mean shrink.epochs"),
        (("own.py:Net", "--budget", "macs<=50%", "--set", "shrink.epochs=0"), "shrink.epochs = 0: it is a whole number, at least 1"),
        (("own.py:Net", "--budget", "macs<=50%", "--set", "search.epochs=3"), "search.epochs has no effect"),
        (("own.py:Net", "--budget", "macs<=50%", "--input", "1x3x32x32"), "--input 1x3x32x32 has examples of 3 x 32 x 32; the data have 1 x 8 x 8"),
        (("own.py:Wide", "--budget", "macs<=50%"), "the model does not take the examples of scikit-learn's digits, 1 x 8 x 8 each"),
        (("mobilenets", "--budget", "macs<=50%"), "mobilenets"),
        (("digits", "--budget", "macs<=50%"), "digits"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_any_work(niwaki_command, model_file, tmp_path, words, said):
    answer = niwaki_command("shrink", *words, *DIGITS[:2], "--out", tmp_path / "run", cwd=model_file.parent)
    assert answer.code == 2, answer.err
    assert said in answer.err
    assert not (tmp_path / "run").exists()


def test_a_landing_is_told_in_one_line_with_what_each_way_was_judged_at():
    judged = {"multiplier": 0.5, "before": 0.75}
    told = told_landing({"name": "before", "judged": judged}, "accuracy", 2)
    assert told.replace("\xa0", " ") == (
        "landing: before, the largest magnitudes of the owner's weights, without the pressure; validation accuracy after 2 epochs of training: "
        "before 75 %, multiplier 50 %"
    )
    assert told_landing({"name": "between", "judged": {"between": None}}, "accuracy", 1).endswith("all ways come to the same")


class Again(nn.Module):
    """A convolution and its norm, called twice: one layer, two places."""

    def __init__(self):
        super().__init__()
        self.stem, self.deep, self.norm = nn.Conv2d(1, 12, 3, stride=2), nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.head = nn.Linear(12, 10)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(2):
            x = x + self.norm(self.deep(x)).relu()
        return self.head(x.mean((2, 3)))


def test_a_layer_that_is_called_at_two_places_is_one_layer_in_what_is_delivered(task, tmp_path):
    torch.manual_seed(0)
    settings = {"shrink.before": 0, "shrink.epochs": 1, "shrink.judged": 0, "train.epochs": 1}
    result = niwaki.shrink(Again(), "params<=60%", task, out=tmp_path / "run", settings=settings)
    assert sum(p.numel() for p in result.model.parameters()) <= 0.6 * sum(p.numel() for p in Again().parameters())
    (logits,) = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx").run(["logits"], {"images": task.images.test_images})
    accuracy = (logits.argmax(1) == task.images.test_labels).mean()
    assert accuracy == pytest.approx(evaluate(result.model, task, task.part("test"))["accuracy"], abs=0.003)


class Held(nn.Module):
    """Its batch norm is held at its statistics; another part asks for the mode, in a method of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.Conv2d(8, 12, 2)
        self.head = nn.Linear(12, 10)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def noisier(self, y):
        return 1.5 * y if self.training else y

    def forward(self, x):
        return self.head(self.noisier(self.b(self.norm(self.a(x)).relu()).relu().mean((2, 3))))


def test_what_is_held_while_the_owner_trains_is_held_and_what_is_trained_otherwise_is_said(task, tmp_path):
    torch.manual_seed(0)
    model = Held()
    model.norm.running_mean.normal_()
    settings = {"shrink.before": 0, "shrink.epochs": 1, "shrink.judged": 0, "train.epochs": 1}
    result = niwaki.shrink(model, "macs<=60%", task, out=tmp_path / "run", settings=settings)
    kept = next(one for one in result.summary["widths"] if one["group"] == "a")["kept"]
    assert torch.equal(result.model.state_dict()["norm.running_mean"], model.norm.running_mean[kept])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "the batch norm norm stays in evaluation while the model is trained" in page
    assert "in training mode the owner&#x27;s model does something else than what was read" in page
    Folder(tmp_path / "run").store.set_fact("finished", False)
    Folder(tmp_path / "run").store.set_fact("result landing 0", {"name": "gone", "judged": {"gone": None}})
    with pytest.raises(RunError, match="chose the landing 'gone', and its training leads to"):
        niwaki.shrink(model, "macs<=60%", task, out=tmp_path / "run", settings=settings)


def test_budgets_are_of_several_resources_each_once():
    first, second, third = parse_bounds("macs<=50% and params<=10k, activation_bytes<=2MB")
    assert (first.share, second.upper, third.upper) == (0.5, 10_000, 2_000_000)
    assert parse_bounds(["roofline(T4)<=0.5ms"])[0].upper == 0.5
    with pytest.raises(
        BudgetError, match=r"'latency\(onnxruntime\)<=60%': measured latency is no budget of shrink yet; roofline\(K80\) and"
    ):
        parse_bounds("macs<=50%, latency(onnxruntime)<=60%")
    with pytest.raises(BudgetError, match="no standard deviation"):
        parse_bounds("roofline(T4)+2std<=60%")
    with pytest.raises(BudgetError, match="macs is limited twice"):
        parse_bounds("macs<=50%, macs<=1M")
