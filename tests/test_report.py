"""The report: one page that holds everything, loads nothing and runs nothing."""

from __future__ import annotations

import base64
import json
import math
import random
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import niwaki
from conftest import SMALL
from niwaki.cost.count import count_macs, count_size_bytes
from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Network
from niwaki.net.layer import Conv, Linear
from niwaki.net.picture import describe, picture, shape_text
from niwaki.net.place import fix, place, space_of
from niwaki.report import Record, render, wilson_interval
from niwaki.report.charts import Dot, amount, line_chart, percent, scatter_chart, ticks, worst_confusions
from niwaki.report.image import png_text
from niwaki.report.record import (
    Budget,
    Candidate,
    Chosen,
    Curve,
    Data,
    Decision,
    Example,
    File,
    Layer,
    Quality,
    RecordError,
    SpaceFacts,
)
from niwaki.run.folder import Folder
from niwaki.run.story import record_of
from niwaki.space.choice import Choice
from niwaki.task.classify import ImageClassification
from niwaki.task.images import arrays

HOSTILE = '<script>alert("x")</script>&\'"><img src=http://evil.example/a.png>'


def network() -> Network:
    stages = [
        Chain(
            *(
                mbconv(
                    8 * (at + 1), expand=4, stride=2 if at and not b else 1, squeeze_excite=at == 1, activation="hswish", name=f"block{b}"
                )
                for b in range(3)
            ),
            name=f"stage{at}",
        )
        for at in range(3)
    ]
    return Network(Chain(conv_bn_act(8, name="stem"), *stages, conv_bn_act(64, 1, name="features"), classifier(10, dropout=0.1)), (1, 8, 8))


def costs(item) -> tuple[int, int]:
    """(MACs, parameters) of convolutions and linear layers, written out for this test."""
    if isinstance(item.layer, Conv):
        weights = item.input_shapes[0].width * item.layer.out_channels * item.layer.kernel_size**2 // item.layer.groups
        return weights * math.prod(item.shape.spatial), weights
    if isinstance(item.layer, Linear):
        weights = item.input_shapes[0].width * item.layer.out_features
        return weights, weights + item.layer.out_features
    return 0, 0


def a_record(classes: tuple[str, ...] = tuple("0123456789"), decisions: int = 42) -> Record:
    """What a search on digits leaves behind, made up but of the right shape and size."""
    rng = random.Random(0)
    digits = load_digits()
    images = [png_text(image) for image in digits.images[:40]]
    placement = fix(place(network()), {})
    layers = tuple(Layer(item.path, describe(item.layer, item)[0], shape_text(item.shape), *costs(item)) for item in placement.items)
    macs, params = sum(layer.macs for layer in layers), sum(layer.params for layer in layers)
    top = max(layer.macs for layer in layers)
    drawn = picture(
        placement,
        {layer.path: amount(layer.macs) for layer in layers if layer.macs},
        shares={layer.path: layer.macs / top for layer in layers},
    )
    candidates = []
    for number in range(60):
        cost = int(10 ** rng.uniform(4, 5.2))
        quality = min(0.99, 0.86 + 0.022 * math.log(cost / 1e4) * 2 + rng.gauss(0, 0.012))
        source = "random" if number % 3 == 0 else "search"
        candidates.append(Candidate(number, {"accuracy": quality, "macs": cost, "params": cost / 4}, source, 2.5))
    best = [max(other.metrics["accuracy"] for other in candidates if other.metrics["macs"] <= one.metrics["macs"]) for one in candidates]
    candidates = [replace(one, on_front=one.metrics["accuracy"] == most) for one, most in zip(candidates, best, strict=True)]
    candidates.append(Candidate(60, {"accuracy": 0.9861, "macs": macs, "params": params}, "final", 31.0))
    epochs = tuple(range(41))
    choices = []
    for number in range(decisions):
        options = (("3", "5"), ("8", "16", "24", "32", "40"), ("relu", "hswish"), ("1", "2", "3", "4", "6", "8", "9", "10"))[number % 4]
        logits = [0.0] * len(options)
        drift = [rng.gauss(0, 0.09) for _ in options]
        rows = []
        for _ in epochs:
            logits = [logit + step + rng.gauss(0, 0.03) for logit, step in zip(logits, drift, strict=True)]
            weights = [math.exp(logit) for logit in logits]
            rows.append(tuple(weight / sum(weights) for weight in weights))
        kind = ("kernel_size", "width", "activation", "expand")[number % 4]
        taken = options[rows[-1].index(max(rows[-1]))] if number % 7 else None
        choices.append(Decision(f"stage{number // 12}.block{number // 4 % 3}.{kind}", options, epochs, tuple(rows), taken))
    confusion = [[0] * len(classes) for _ in classes]
    for at in range(len(classes)):
        confusion[at][at] = 36
    for true, predicted, count in ((8, 1, 2), (3, 8, 1), (9, 5, 1), (4, 7, 1)):
        confusion[true][predicted] = count
        confusion[true][true] -= count
    mistakes = tuple(Example(images[at], classes[at % 10], classes[(at + 3) % 10], 0.99 - 0.06 * at) for at in range(9))
    return Record(
        title="digits",
        network="mobile(8)",
        method="DMaskingNAS",
        command="niwaki search --set 'budget=[\"macs<=100k\"]' --seed 0",
        folder="runs/digits-3f2a",
        started="2025-03-01 10:12 UTC",
        versions={"niwaki": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        machine={"processor": "2 cores, x86_64", "threads": "1", "device": "cpu"},
        config={"seed": 0, "data": {"kind": "digits", "path": None}, "search": {"epochs": 40, "temperature": [5.0, 0.956]}},
        data=Data(
            "scikit-learn digits",
            (8, 8),
            classes,
            {"train": 1149, "validation": 288, "test": 360},
            tuple(Example(image, classes[at % len(classes)]) for at, image in enumerate(images[:20])),
        ),
        budgets=(Budget("macs<=1.5M", "macs", 1_500_000, macs), Budget("params<=20k", "params", 20_000, params)),
        space=SpaceFacts(42, 3 * 10**21, 2_961_345_112_064_000, 12_345_678, 4.1e-9, (14_208, 5_200_000), "distinct: by elimination"),
        candidates=tuple(candidates),
        decisions=tuple(choices),
        architecture={choice.name: choice.taken for choice in choices if choice.taken},
        search_loss=(
            Curve("weights", tuple((e, 2.3 * math.exp(-e / 12) + 0.1) for e in epochs)),
            Curve("architecture", tuple((e, 2.4 * math.exp(-e / 14) + 0.2) for e in epochs)),
        ),
        search_cost=(Curve("expected", tuple((e, 2.6e6 * math.exp(-e / 15) + 0.9e6) for e in epochs)),),
        training_loss=(Curve("train", tuple((e, 2.3 * math.exp(-e / 8) + 0.05 if e != 12 else None) for e in epochs)),),
        quality=Quality(
            0.9896,
            355 / 360,
            wilson_interval(355, 360),
            tuple(map(tuple, confusion)),
            mistakes,
            {"balanced accuracy": 0.986, "macro-F1": 0.9859},
        ),
        macs=macs,
        params=params,
        layers=layers,
        picture=drawn,
        chosen=(
            Chosen(
                (Budget("macs<=1.5M", "macs", 1.5e6, macs),),
                {"macs": macs, "params": params, "validation": 0.9896, "test": 0.9861},
                "runs/digits-3f2a",
                True,
            ),
            Chosen(
                (Budget("macs<=50k", "macs", 5e4, 48_212),),
                {"macs": 48_212, "params": 9_120, "validation": 0.9722, "test": 0.9694},
                "runs/digits-3f2a/macs-50k",
            ),
        ),
        files=(
            File("model.onnx", 118_220, "the network, with preprocessing", "360 test images: logits differ by at most 3e-06"),
            File("model.pt2", 140_112, "torch.export program"),
            File("model.py", 9_120, "plain PyTorch"),
            File("model.safetensors", 86_400, "its weights"),
            File("architecture.json", 2_312, "the options taken"),
        ),
        seconds={"search": 96.2, "random baseline": 31.0, "final training": 58.4, "export": 6.1},
        notes=("The search was cut by --minutes 4 after 38 of 40 epochs.",),
    )


VOID = {"meta", "img", "br", "input", "hr", "link"}  # tags that are never closed


class Page(HTMLParser):
    """What stands in a page; complains about tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.tags if found == tag]


@pytest.fixture(scope="module")
def record() -> Record:
    return a_record()


@pytest.fixture(scope="module")
def page(record) -> Page:
    return Page(render(record))


def test_the_first_heading_is_the_answer(page, record):
    text = page.text.replace("\u00a0", " ")
    assert f"98.6 % test accuracy with {amount(record.macs)} multiply-adds".replace("\u00a0", " ") in text
    assert "over the budget params<=20k" in text
    assert "95 % interval 96.8 % to 99.4 % on 360 images" in text
    within = replace(record, budgets=record.budgets[:1])
    assert "multiply-adds, within the budget</h1>" in render(within)


def test_a_page_has_every_section(page):
    sections = [attributes["id"] for attributes in page.all("h2")]
    assert sections == ["search", "choices", "network", "training", "errors", "run"]
    assert [attributes["href"] for attributes in page.all("a")] == [f"#{name}" for name in sections]
    for title in (
        "Accuracy against cost",
        "Cost of each layer",
        "Loss in the final training",
        "Worst mistakes",
        "One network for each budget",
        "The space",
        "Do it again",
        "Time",
        "Files",
        "The whole configuration",
    ):
        assert title in page.text, title


def test_everything_that_was_measured_is_on_the_page(page, record):
    for text in (record.command, record.folder, "2.9 × 10¹⁵", "12,345,678", "cut by --minutes 4", "search.temperature", f"{record.macs:,}"):
        assert text in page.text, text
    assert all(f"{choice.name} = {option}" in page.text for choice in record.decisions for option in choice.options)
    assert all(layer.path in page.text for layer in record.layers)
    assert all(file.name in page.text for file in record.files)
    assert sum(1 for image in page.all("img")) == len(record.data.examples) + len(record.quality.mistakes)


def test_a_page_loads_nothing_and_runs_nothing(page, record):
    text = render(record)
    assert not {"script", "link", "iframe", "object", "form", "base"} & {tag for tag, _ in page.tags}
    assert "default-src 'none'" in page.all("meta")[1]["content"]
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,")), attributes
    assert not re.search(r"url\(|@import|javascript:", text)
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert len(text) < 400_000


def test_text_from_data_cannot_become_markup():
    for classes in ((HOSTILE, *"123456789"), (HOSTILE, *(f"class {number}" for number in range(29)))):
        record = a_record(classes)
        record = replace(
            record,
            title=HOSTILE,
            folder=HOSTILE,
            command=HOSTILE,
            notes=(HOSTILE,),
            config={HOSTILE: HOSTILE},
            machine={HOSTILE: HOSTILE},
            files=(File(HOSTILE, 1, HOSTILE, HOSTILE), *record.files),
            seconds={HOSTILE: 1.0},
            decisions=(Decision(HOSTILE, (HOSTILE, "b"), (0, 1), ((0.5, 0.5), (0.1, 0.9)), HOSTILE),),
            search_loss=(Curve(HOSTILE, ((0, 1.0), (1, 0.5))),),
            candidates=(*record.candidates, Candidate(99, {"accuracy": 0.5, "macs": 9e4}, HOSTILE)),
            layers=(Layer(HOSTILE, HOSTILE, HOSTILE, 1, 1), *record.layers),
        )
        page = Page(render(record))
        assert "script" not in {tag for tag, _ in page.tags}
        assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
        assert HOSTILE in page.text


def test_what_a_run_has_not_or_not_yet_is_left_out(record):
    empty = Page(render(Record("digits", status="running")))
    assert "No network yet" in empty.text
    assert not empty.all("h2")
    assert not empty.all("nav")
    plain = replace(record, decisions=(), candidates=(), space=None, search_loss=(), search_cost=(), chosen=(), architecture={})
    assert [attributes["id"] for attributes in Page(render(plain)).all("h2")] == ["network", "training", "errors", "run"]
    going_on = replace(
        record,
        status="running",
        quality=None,
        macs=None,
        params=None,
        layers=(),
        picture="",
        files=(),
        chosen=(),
        budgets=(Budget("macs<=1M", "macs", 1e6),),
        decisions=(Decision("width", ("8", "16"), (), ()),),
    )
    text = Page(render(going_on)).text
    assert "not reached yet" in text
    assert "not measured yet" in text
    assert "width" in text
    for name in ("data", "space", "quality"):
        Page(render(replace(record, **{name: None})))
    for name in ("budgets", "candidates", "decisions", "layers", "picture", "files", "seconds", "config", "versions"):
        Page(render(replace(record, **{name: type(getattr(record, name))()})))


def test_a_record_that_does_not_fit_together_is_refused():
    with pytest.raises(RecordError, match=r"width: 1 probabilities for the 2 options"):
        Decision("width", ("8", "16"), (0,), ((1.0,),))
    with pytest.raises(RecordError, match="2 rows of probabilities for 1 epochs"):
        Decision("width", ("8", "16"), (0,), ((1.0, 0.0), (0.5, 0.5)))
    with pytest.raises(RecordError, match="<svg>"):
        Record("x", picture="<p>")


def test_the_interval_is_the_set_of_shares_that_a_normal_test_does_not_reject():
    z = 1.959964
    for correct, examples in ((355, 360), (0, 10), (10, 10), (5, 10), (999, 1000)):
        low, high = wilson_interval(correct, examples)
        for share in (low, high):  # the defining equation: (correct / n - p)^2 = z^2 p (1 - p) / n
            assert (correct / examples - share) ** 2 == pytest.approx(z**2 * share * (1 - share) / examples, abs=1e-12)
        assert 0 <= low <= correct / examples <= high <= 1
    with pytest.raises(RecordError):
        wilson_interval(11, 10)


def test_ticks_are_round_and_inside():
    rng = random.Random(2)
    for _ in range(300):
        low = rng.uniform(-1, 1) * 10 ** rng.uniform(-3, 6)
        high = low + 10 ** rng.uniform(-3, 6)
        found = ticks(low, high)
        slack = (high - low) * 1e-6
        assert 2 <= len(found) <= 7
        assert low - slack <= found[0]
        assert found[-1] <= high + slack


def test_charts_of_one_point_or_equal_values_are_drawn():
    for points in (((0, 0.5),), ((0, 0.5), (1, 0.5)), ((3, 0.0), (4, None))):
        Page(line_chart("loss", [Curve("train", points)]))
    assert line_chart("loss", [Curve("train", ((0, None),))]) == "" == scatter_chart("front", [], x_label="MACs", y_label="accuracy")
    Page(scatter_chart("front", [Dot(5, 0.5, "random", "one")], x_label="MACs", y_label="accuracy"))


def test_most_frequent_confusions_come_first():
    assert worst_confusions([[5, 1, 0], [0, 5, 3], [0, 0, 5]], "abc") == [("b", "c", 3), ("a", "b", 1)]


def test_images_are_shown_as_they_are_with_nearest_neighbours():
    for image in (
        np.arange(64, dtype=np.uint8).reshape(8, 8),
        np.arange(192, dtype=np.uint8).reshape(8, 8, 3),
        np.ones((8, 8, 1), np.uint8),
    ):
        shown = np.asarray(Image.open(BytesIO(base64.b64decode(png_text(image)))))
        assert np.array_equal(shown, np.kron(image.squeeze(), np.ones((8, 8, 1)[: image.squeeze().ndim], np.uint8)))
    bright = np.asarray(Image.open(BytesIO(base64.b64decode(png_text(np.array([[0.0, 0.5], [0.25, 1.0]]))))))
    assert bright[0, 0] == 0
    assert bright[-1, -1] == 255
    assert bright[0, -1] == 128
    assert Image.open(BytesIO(base64.b64decode(png_text(np.zeros((100, 300, 3), np.uint8))))).size == (64, 21)
    with pytest.raises(RecordError, match=r"\(3, 8, 8\)"):
        png_text(np.zeros((3, 8, 8)))


def test_percentages_and_amounts_are_short():
    assert [percent(value).replace("\u00a0", " ") for value in (0.98611, 1.0, 0.5)] == ["98.6 %", "100 %", "50 %"]
    assert [amount(value).replace("\u00a0", " ") for value in (0, 12, 999.9, 99_999, 1e6)] == ["0", "12", "999.9", "100 k", "1 M"]


# --- what a run really makes ---------------------------------------------------------------------------------------------------------


def own_network() -> Network:
    stem = conv_bn_act(Choice((4, 6, 8), "first"), stride=2)
    return Network(Chain(stem, conv_bn_act(Choice((4, 8), "second")), classifier(3)), (3, 10, 14))


@pytest.fixture(scope="module")
def colour_run(tmp_path_factory):
    """The folder of a run on colour images of 10 x 14 pixels, two budgets in per cent, and a metric other than accuracy."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = np.clip(rng.normal(60 * labels[:, None, None, None], 90, (90, 10, 14, 3)), 0, 255).astype(np.uint8)
    task = ImageClassification(arrays(images[:60], labels[:60], images[60:], labels[60:], source="noise"), metric="balanced_accuracy")
    settings = {**SMALL, "search.candidates": 6}
    folder = tmp_path_factory.mktemp("colour") / "run"
    niwaki.search(own_network(), task, ["macs<=50%", "size<=60%"], out=folder, settings=settings)
    return folder


@pytest.fixture(scope="module")
def of_run(colour_run) -> Record:
    return record_of(Folder(colour_run, read_only=True))


def test_the_snippet_has_the_shape_that_the_exported_model_takes(of_run, colour_run):
    taken = onnxruntime.InferenceSession(colour_run / "model.onnx").get_inputs()[0].shape[1:]
    assert of_run.data.stored_shape == tuple(taken) == (10, 14, 3)
    assert "# images: N x 10 x 14 x 3, as the data set stores them" in render(of_run)


def test_a_budget_in_per_cent_is_shown_with_the_limit_that_it_came_to(of_run):
    first, second = (chosen.budgets[0] for chosen in of_run.chosen)
    assert (first.text, first.resource, first.limit) == ("macs<=50%", "macs", count_macs(own_network()).maximum()[0] // 2)
    assert first == of_run.budgets[0]
    assert first.reached == of_run.macs <= first.limit
    assert second.text == "size<=60%"
    assert second.reached <= second.limit == count_size_bytes(own_network()).maximum()[0] * 6 // 10
    page = render(of_run)
    assert "macs&lt;=50%" in page
    assert "Expected cost during the search" in page


def test_a_run_is_shown_by_the_metric_that_it_maximized(of_run):
    *trials, final = of_run.candidates
    assert final.source == "final"
    assert final.metrics["balanced_accuracy"] == of_run.quality.validation
    assert of_run.quality.validation in {one.metrics["balanced_accuracy"] for one in trials}
    assert of_run.chosen[0].metrics["test"] == of_run.quality.test
    page = Page(render(of_run)).text
    for title in ("Balanced accuracy against cost", "test balanced accuracy", "validation balanced accuracy", "delivered network"):
        assert title in page, title


def test_the_front_is_what_no_cheaper_trial_reaches(of_run):
    *trials, _ = of_run.candidates
    spots = [(one.metrics["macs"], one.metrics["balanced_accuracy"]) for one in trials]
    for one, (macs, quality) in zip(trials, spots, strict=True):
        beaten = any((m <= macs and q > quality) or (m < macs and q >= quality) for m, q in spots)
        twin = any(spots[other.number] == (macs, quality) for other in trials if other.number < one.number)
        assert one.on_front == (not beaten and not twin)


def test_finalists_have_a_colour_of_their_own_and_no_place_on_the_front(of_run, colour_run, tmp_path):
    shutil.copytree(colour_run, tmp_path / "run")
    folder = Folder(tmp_path / "run")
    trials = folder.store.trials("budget 0", space_of(own_network()))
    best = {**trials[0].metrics, "macs": 1.0, "balanced_accuracy": 1.0}
    folder.store.append("budget 0", replace(trials[0], number=len(trials), metrics=best, source="finalist"))
    record = record_of(folder)
    folder.close()
    *searched, finalist, _ = record.candidates
    assert (finalist.source, finalist.on_front) == ("finalist", False)
    assert searched == list(of_run.candidates[:-1])
    assert "finalist, trained on its own" in Page(render(record)).text
    assert "finalist, trained on its own" not in Page(render(of_run)).text


def test_a_run_with_a_process_at_work_is_not_called_stopped(colour_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(colour_run, copy)
    at_work = Folder(copy, asked=json.loads((copy / "config.json").read_text())["asked"])
    at_work.store.set_fact("finished", None)
    assert record_of(Folder(copy, read_only=True)).status == "running"
    at_work.close()
    assert record_of(Folder(copy, read_only=True)).status == "stopped"


def test_an_expected_cost_that_the_search_did_not_look_at_is_not_drawn(colour_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(colour_run, copy)
    folder = Folder(copy)
    for row in folder.store.log_rows("run", "search"):
        folder.store.log("run", "search", row.epoch, row.metrics | {"ratios": [1.0, 1.0]})  # as of a peak, which is no sum
    assert record_of(folder).search_cost == ()
    folder.close()
