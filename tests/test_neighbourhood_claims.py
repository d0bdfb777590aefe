"""What the claims on neighbourhood distillation follow from: figures to verdicts, and all combinations evaluated with what they share."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import nn

from niwaki.nn.build import build
from niwaki.recipe.student_library import Settings, build_library
from niwaki.recipe.student_search import recalibrated
from niwaki.recipe.students import described
from niwaki.run.experiments import neighbourhood as module
from niwaki.run.experiments.neighbourhood import Plan, _walk, chosen_variants, kept, teacher_network
from niwaki.run.experiments.neighbourhood_section import CANDIDATES, LEVELS, SHARES, _ratio, section_of
from niwaki.task.classify import ImageClassification
from niwaki.task.images import arrays
from niwaki.train.neighbourhood import ADAM, Distilling

PLAN = Plan(seeds=2, images=60, widths=(16, 16, 16, 16), student_epochs=4, judged=10)
NAMES = ("block1", "block2", "block3", "block4")


def results(**changed):
    """Made-up results of two seeds; `changed` replaces figures of both."""
    count = 3
    one = {
        "teacher": 0.9, "validation": 0.9, "macs": 1000, "clean": 0.9, "bears": [0.1] * 5,
        "curves": [[0.9] * 6 + [0.5] * (len(LEVELS) - 6)] * 5,
        "errors": {f"{name} {each}": 0.01 for name in NAMES for each in CANDIDATES},
        "seconds": {f"{name} {each}": 1.0 for name in NAMES for each in CANDIDATES},
        "half": {
            "macs": 500, "assembled": 0.85, "recalibrated": 0.89, "drift": 0.89, "drift_s": 1.0, "seconds": 8.0, "longest_s": 3.0, "forward_s": 1.0,
            "ends": {"distilled 1": {"accuracy": 0.8, "seconds": 6.0}, "distilled 4": {"accuracy": 0.9, "seconds": 12.0},
                     "labels 4": {"accuracy": 0.9, "seconds": 10.0}, "uniform": {"accuracy": 0.9, "seconds": 9.0}},
        },
        "truth": {"assembled": [0.5, 0.6, 0.7], "recalibrated": [0.85, 0.895, 0.7]},
        "combinations": {"macs": [400, 300, 200], "errors": [1.5, 0.9, 3.0], "losses": [0.2, 0.1, 0.9]},
        "chosen": {share: {"limit": 400, "errors": 1, "losses": 0, "greedy": {"macs": 300, "accuracy": 0.88}} for share in SHARES},
    }  # fmt: skip
    noise = {"teacher": 0.95, "pieces": 0.8, "end": 0.4, "errors": {}, "macs": [100, 60]}
    one |= {key: value for key, value in changed.items() if key in one}
    noise |= {key: value for key, value in changed.items() if key in ("pieces", "end")}
    assert len(one["combinations"]["macs"]) == count
    jobs = {f"fashion {seed}": one for seed in range(2)} | {f"noise {seed}": noise for seed in range(2)}
    machine = {"processor": "x", "cores": 2, "threads": 1, "versions": {}}
    speed = {"one": [20.0, 21.0], "two": [11.0, 11.5], "same": True, "candidates": 8}
    return {
        "method": "neighbourhood_distillation",
        "quick": False,
        "plan": PLAN.to_json(),
        "machine": machine,
        "jobs": jobs,
        "speed": speed,
    }


def verdicts(found):
    return [one.verdict for one in section_of(found).claims]


def test_figures_that_meet_every_bar_hold_and_a_combination_a_point_too_low_does_not():
    assert verdicts(results()) == ["holds"] * 7 + ["does not hold"] + ["holds"] * 2 + [
        "not testable here"
    ]  # the losses chose 0.85 of 0.895


@pytest.mark.parametrize(
    ("row", "changed"),
    [
        (0, {"teacher": 0.95}),
        (1, {"truth": {"assembled": [0.9, 0.9, 0.9], "recalibrated": [0.85, 0.895, 0.7]}}),
        (4, {"curves": [[0.9] * 6 + [0.8] * (len(LEVELS) - 6)] * 5}),
        (5, {"combinations": {"macs": [400, 300, 200], "errors": [1.5, 1.9, 3.0], "losses": [0.2, 0.1, 0.9]}}),
        (8, {"pieces": 0.6}),
        (9, {"end": 0.7}),
    ],
)
def test_each_bar_can_be_missed(row, changed):
    assert verdicts(results(**changed))[row] == "does not hold"


def test_the_time_of_equal_quality_is_that_of_the_shortest_training_that_is_as_good():
    one = results()["jobs"]["fashion 0"]
    assert _ratio(one, 4.0) == 3.0  # 12 s for 0.9, where 0.89 is asked for
    assert _ratio({"half": {**one["half"], "recalibrated": 0.95}}, 4.0) == 3.0  # none is: the longest
    assert _ratio({"half": {**one["half"], "recalibrated": 0.7}}, 4.0) == 1.5


def test_all_combinations_share_what_begins_alike_and_are_what_they_are_by_themselves(tmp_path, monkeypatch):
    images = torch.randint(0, 256, (60, 28, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8).numpy()
    labels = (torch.arange(60) % 10).numpy()
    task = ImageClassification(arrays(images, labels, images[:20], labels[:20], source="noise"))
    monkeypatch.setattr(module, "STATISTICS", 32)
    places = described(
        teacher_network(PLAN.widths),
        build(teacher_network(PLAN.widths), seed=1).eval(),
        variants=lambda layer, shape: chosen_variants(layer, shape)[:2],
    )
    settings = Settings(Distilling(replace(ADAM, epochs=1, batch_size=16)), levels=(0.1,))
    library = build_library(places, task, tmp_path, settings, keep=False)
    truth = {"assembled": [], "recalibrated": []}
    found = _walk(PLAN, library, task, truth)
    names = [[each.name for each in library.options(one)] for one in places]
    assert names == [["inner-0.5", "width-0.5"]] * 4 + [["keep"]]  # without the teacher's own, but for the head
    assert [tuple(choice.values()) for choice, _ in found] == list(product(*names))
    hold = task.part("validation")[: PLAN.judged]
    inputs, _ = task.batch(hold, torch.device("cpu"))
    statistics, _ = task.batch(task.part("train")[:32], torch.device("cpu"))
    for at in (0, 7, 15):
        choice = found[at][0]
        module_ = library.assemble(choice)
        assert truth["assembled"][at] == pytest.approx(float((module_(inputs).argmax(1) == task.labels(hold)).float().mean()))
        module.recalibrate_batch_norm_(module_, [statistics])
        assert truth["recalibrated"][at] == pytest.approx(float((module_.eval()(inputs).argmax(1) == task.labels(hold)).float().mean()))
    assert isinstance(recalibrated(library, found[0][0]), nn.Sequential)


def test_what_was_trained_once_is_read_afterwards(tmp_path):
    calls = []

    def make(one):
        calls.append(1)
        nn.init.constant_(one.weight, 3.0)
        return one

    for _ in range(2):
        found = kept(tmp_path / "a" / "x.safetensors", nn.Linear(2, 2), make)
        assert bool((found.weight == 3.0).all())
    assert len(calls) == 1
