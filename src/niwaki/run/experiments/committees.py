"""Cascades of convolutional networks on the digits: cost at the large network's accuracy, time that compaction saves, which confidence counts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from niwaki.deploy.committee import Average, Committee, Report
from niwaki.deploy.confidence import entropy, gap, max_probability, softmax
from niwaki.deploy.thresholds import points_of
from niwaki.device.measure import Protocol, in_turns
from niwaki.run.claims import Claim, Section, Table, percent
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.verdicts import above, at_least, at_most, below, claim, not_testable, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import Interval, bootstrap
from niwaki.run.workers import Job, Workers
from niwaki.task.augment import Augment
from niwaki.task.classify import ImageClassification
from niwaki.task.images import arrays
from niwaki.task.task import derive_seed
from niwaki.train.loop import predict, train
from niwaki.train.recipe import Recipe

SMALLEST, SMALL, LARGE = 2, 4, 24  # widths
CONFIDENCES = (max_probability, gap, entropy)
SHARES = (0.5, 0.7)  # that leave at the first exit
TIMED = 1000  # images, of which FIRST leave at the first exit
FIRST = 0.6
WAYS: tuple[Average, ...] = ("logits", "last")  # the paper's, and ours
BELOW = 0.01  # of the large network's validation accuracy: the target


@dataclass(frozen=True)
class Plan:
    """Splits and trainings, one for each seed: `train` images to learn from, `validation` to choose on, the rest to test."""

    seeds: int = 10
    epochs: int = 30
    train: int = 1000
    validation: int = 300
    rounds: int = 15  # of the timing
    minutes: str = "about 5 minutes on two idle cores"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "minutes"}


def network(width: int) -> nn.Sequential:
    """Two convolutions, each before a pooling by 2, and a linear layer: 288 w^2 + 656 w multiply-adds at 8 x 8."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, 2 * width, 3, padding=1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(8 * width, 10)),
    )


def macs(width: int) -> int:
    """
    >>> [macs(width) for width in (2, 4, 24)]
    [2464, 7232, 181632]
    """
    return 288 * width**2 + 656 * width


def width_within(budget: float) -> int:
    """The widest network of at most so many multiply-adds."""
    return max(width for width in range(1, LARGE + 1) if macs(width) <= max(budget, macs(1)))


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    jobs = [Job(f"split {seed}", one_split, (plan, seed)) for seed in range(plan.seeds)]
    with Workers(workers) as pool:
        found = pool.run(jobs, folder, progress, f"{plan.seeds} splits, four networks trained on each")
    timed = {}
    progress.phase("timing", 3)
    for at in range(3):  # one after the other, with no worker at work
        known = folder.store.fact(f"result timing {at}")
        if known is None:
            known = timing(plan, at)
            folder.store.set_fact(f"result timing {at}", known)
        timed[f"timing {at}"] = known
        progress.advance(at + 1)
    return {"jobs": found, "timings": timed}


def one_split(plan: Plan, seed: int) -> dict[str, Any]:
    """Everything but times, of one split."""
    task = task_of(plan, seed)
    parts = {name: task.part(name) for name in ("validation", "test")}
    labels = {name: task.labels(part).numpy() for name, part in parts.items()}
    logits = {}
    for width in (SMALLEST, SMALL, LARGE):
        model = trained(plan, task, width, seed)
        logits[width] = {name: predict(model, task, part).numpy() for name, part in parts.items()}
    large = {name: accuracy(logits[LARGE][name], labels[name]) for name in parts}

    return {
        "large": large,
        "small": {str(width): accuracy(logits[width]["test"], labels["test"]) for width in (SMALLEST, SMALL)},
        **{way: _cascade_by(way, plan, task, seed, logits, labels, large["validation"]) for way in WAYS},
        "confidences": {
            str(share): by_confidence([logits[width]["test"] for width in (SMALLEST, LARGE)], labels["test"], share) for share in SHARES
        },
    }


def _cascade_by(
    way: Average, plan: Plan, task: ImageClassification, seed: int, logits: dict[int, Any], labels: dict[str, Any], largest: float
) -> dict[str, Any]:
    """The cascade small -> large, and one network of its average cost. most: the accuracy that the pair can reach on validation."""
    pair = Committee([_looked_up, _looked_up], [macs(SMALL), macs(LARGE)], average=way)
    outputs = [logits[width]["validation"] for width in (SMALL, LARGE)]
    chosen = pair.fit(outputs, labels["validation"], target=max(0.0, largest - BELOW))
    report = on_outputs(chosen, [logits[width]["test"] for width in (SMALL, LARGE)], labels["test"])
    exits = pair.calibrated(outputs, labels["validation"]).exits_of(outputs, labels["validation"])((0, 1))
    width = width_within(report.average_cost)
    alone = predict(trained(plan, task, width, seed), task, task.part("test")).numpy()
    return {
        "accuracy": report.accuracy,
        "cost": report.average_cost,
        "held_out": chosen.report().accuracy,
        "most": max(point.accuracy for point in points_of((0, 1), exits, 24)),
        "width": width,
        "alone": accuracy(alone, labels["test"]),
    }


def by_confidence(logits: list[np.ndarray], labels: np.ndarray, share: float) -> dict[str, float]:
    """Accuracy with the surest `share` of the images leaving at the first exit, by each confidence, and by chance (in expectation, exact).

    The threshold is the quantile of the confidences on these images themselves, which takes no label: so the costs are equal to the image.
    """
    first, both = logits[0].argmax(1) == labels, (logits[0] + logits[1]).argmax(1) == labels
    count = round(share * len(labels))
    found = {}
    for confidence in CONFIDENCES:
        leaving = np.zeros(len(labels), dtype=bool)
        leaving[np.argsort(-confidence(softmax(logits[0])), kind="stable")[:count]] = True
        found[confidence.__name__] = float(np.where(leaving, first, both).mean())
    return found | {"chance": float(share * first.mean() + (1 - share) * both.mean())}


def timing(plan: Plan, seed: int) -> dict[str, float]:
    """CPU time of `predict` on 1,000 images of which 60 % leave at the first exit, over that of running both members on all; and whether
    the answers are the same."""
    task = task_of(plan, seed)
    models = [trained(plan, task, width, seed) for width in (SMALL, LARGE)]
    images, _ = task.batch(task.part("train+validation")[:TIMED], torch.device("cpu"))
    pair = Committee(models, [macs(SMALL), macs(LARGE)])
    sure = pair.with_rule((0, 1), (0.0,)).confidences(images)[0][0]
    cascade = pair.with_rule((0, 1), (float(np.quantile(sure, 1 - FIRST)),))
    short, full = cascade.predict(images), cascade.predict_in_full(images)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    steps = {"full": partial(cascade.predict_in_full, images), "predict": partial(cascade.predict, images)}
    samples = in_turns(steps, "full", runtime="torch", protocol=Protocol(warmup=3, rounds=plan.rounds))
    torch.set_num_threads(before)
    return {
        "ratio": samples["predict"].ratio,
        "first": float((short.exits == 1).mean()),
        "same": float((short.labels == full.labels).mean()),
        "difference": float(np.abs(short.outputs - full.outputs).max()),
    }


def task_of(plan: Plan, seed: int) -> ImageClassification:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(derive_seed("committees", seed)).permutation(len(labels))
    images, labels = images.reshape(-1, 8, 8).astype(np.uint8)[order], labels[order]
    first = plan.train + plan.validation
    data = arrays(images[:first], labels[:first], images[first:], labels[first:], source="scikit-learn's digits, shuffled")
    return ImageClassification(data, validation=plan.validation / first, augment=Augment(), seed=seed)


def trained(plan: Plan, task: ImageClassification, width: int, seed: int) -> nn.Module:
    """Adam at 3e-3, without weight decay or augmentation. Every member has a seed of its own: equal ones would make equal mistakes."""
    recipe = Recipe(epochs=plan.epochs, optimizer="adamw", lr=3e-3, weight_decay=0.0, label_smoothing=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("committees", seed, width))
        model = network(width)
    return train(model, task, recipe, task.part("train"), seed=derive_seed("committees", seed, width, "order"))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float((logits.argmax(1) == labels).mean())


def on_outputs(fitted: Committee, logits: list[np.ndarray], labels: np.ndarray) -> Report:
    """The report of a fitted committee on outputs that are there already: an example is its own number."""
    members = [partial(_rows, one) for one in logits]
    return replace(fitted, models=tuple(members)).report(np.arange(len(labels)), labels)


def _rows(outputs: np.ndarray, places: np.ndarray) -> np.ndarray:
    return outputs[places]


def _looked_up(x: Any) -> Any:
    raise AssertionError("a model whose outputs are handed in was run")


# --- claims ------------------------------------------------------------------------------------------------------------------


def section_of(results: dict[str, Any]) -> Section:
    found = [results["jobs"][f"split {seed}"] for seed in range(results["plan"]["seeds"])]
    claims = (
        *(one for way in WAYS for one in _cascade(found, way)),
        _compaction([results["timings"][name] for name in sorted(results["timings"])]),
        *(one for share in SHARES for one in _confidences(found, str(share))),
        not_testable(
            "EfficientNets matching B7 at 5.4 times less FLOPs, ViTs matching ViT-L-384 at 2.3 times less", "abstract", "ImageNet"
        ),
    )
    title = "Wisdom of committees (Wang et al., 2022)"
    return section("committees", title, results, _about(results["plan"], found), claims, (_table(found),))


def _points(values: Iterable[float]) -> Interval:
    return bootstrap([100 * value for value in values])


def _cascade(found: list[dict[str, Any]], way: str) -> tuple[Claim, ...]:
    made = [one[way] for one in found]
    lost = _points(one["large"]["test"] - one[way]["accuracy"] for one in found)
    cost = bootstrap([one["cost"] / macs(LARGE) for one in made])
    gained = _points(one["accuracy"] - one["alone"] for one in made)
    large, alone = _points(one["large"]["test"] for one in found), _points(one["alone"] for one in made)
    widths = [one["width"] for one in made]
    beside = f"one network of that cost (widths {min(widths)} to {max(widths)}), trained alike: {alone.text()} %"
    answers = "mean logits, the paper's" if way == "logits" else "the last network's, ours"
    chosen = f"Width {SMALL} -> {LARGE} ({answers}), chosen on validation for the large network's accuracy there less {100 * BELOW:g} point"
    return (
        claim(
            f"{chosen}: on test at most 2 points below the large network (a bar of ours)",
            "the accuracy of the large model",
            f"{lost.text()} points below its {large.text()} %",
            beside,
            at_most(lost, 2),
        ),
        claim(
            f"The same cascade ({answers}) takes at most 25 % of the large network's multiply-adds (a bar of ours)",
            "2.3 to 5.4 times less [abstract]",
            cost.text(1, scale=100, unit=" %"),
            "not applicable",
            at_most(cost, 0.25),
        ),
        claim(
            f"At equal cost it ({answers}) is right more often than one network of that size: the whole interval above 0",
            "better than single models at every cost [figure 1, memory]",
            f"{gained.text(sign=True)} points",
            beside,
            above(gained),
        ),
    )


def _compaction(timed: list[dict[str, float]]) -> Claim:
    ratio = bootstrap([one["ratio"] for one in timed])
    same = min(one["same"] for one in timed) == 1 and max(one["difference"] for one in timed) < 1e-4
    return claim(
        f"With {FIRST:.0%} of {TIMED:,} images leaving at the first exit `predict` takes less than 75 % of the time of running both members on all, "
        "with the same answers (a bar of ours)",
        "-",
        f"{ratio.text(1, scale=100, unit=' %')} over {len(timed)} trainings, one thread; answers {'the same' if same else 'differ'}",
        "not applicable",
        below(ratio, 0.75) and same,
    )


def _confidences(found: list[dict[str, Any]], share: str) -> tuple[Claim, Claim]:
    names = [one.__name__ for one in CONFIDENCES]
    rows = [one["confidences"][share] for one in found]
    spread = _points(max(row[name] for name in names) - min(row[name] for name in names) for row in rows)
    chance = _points(row["max_probability"] - row["chance"] for row in rows)
    means = ", ".join(f"{name} {np.mean([100 * row[name] for row in rows]):.2f}" for name in (*names, "chance"))
    where = f"Width {SMALLEST} -> {LARGE} with {float(share):.0%} leaving at the first exit"
    return (
        claim(
            f"{where}: confidence functions within 1.5 points of each other on each split (a bar of ours)",
            "all similar [section 4.1, memory]",
            f"{spread.text()} points; {means} %",
            "not applicable",
            at_most(spread, 1.5),
        ),
        claim(
            f"{where}: leaving by chance at equal cost is at least 3 points worse (a bar of ours)",
            "-",
            f"{chance.text()} points worse than by the largest probability",
            "chance is the random control, in expectation",
            at_least(chance, 3),
        ),
    )


def _about(plan: dict[str, Any], found: list[dict[str, Any]]) -> tuple[str, ...]:
    reach = {way: sum(one[way]["most"] < one["large"]["validation"] - 1e-9 for one in found) for way in WAYS}
    target = sum(one["logits"]["most"] < one["large"]["validation"] - BELOW - 1e-9 for one in found)
    optimism = _points(one["last"]["held_out"] - one["last"]["accuracy"] for one in found)
    return (
        f"scikit-learn's digits, {plan['seeds']} random splits in {plan['train']:,} to train, {plan['validation']} to choose and the rest to test; "
        f"convolutional networks of widths {SMALLEST}, {SMALL} and {LARGE} ({macs(SMALLEST):,}, {macs(SMALL):,} and {macs(LARGE):,} multiply-adds), "
        f"{plan['epochs']} epochs of Adam at 3e-3. Each member's logits are divided by its temperature. 95 % intervals are bootstrapped over the "
        "splits.",
        f"The large network's own accuracy on validation was out of the pair's reach in {reach['logits']} of {len(found)} splits where logits are "
        f"averaged, and the target in {target}: averaging with a weak member drags the large one down, and the large network alone, at all of its "
        f"cost, is what is then chosen. Where the last network answers alone it was out of reach in {reach['last']}. On the examples it was chosen "
        f"on, that cascade looks {optimism.text(sign=True)} points better than on test.",
    )


def _table(found: list[dict[str, Any]]) -> Table:
    rows = tuple(
        (
            str(seed),
            *(percent(one["small"][str(width)], 1) for width in (SMALLEST, SMALL)),
            percent(one["large"]["test"], 1),
            *(f"{percent(one[way]['accuracy'], 1)} at {one[way]['cost']:,.0f}" for way in WAYS),
            *(f"{percent(one[way]['alone'], 1)} (width {one[way]['width']})" for way in WAYS),
        )
        for seed, one in enumerate(found)
    )
    head = (
        *("split", f"width {SMALLEST}", f"width {SMALL}", f"width {LARGE}", "cascade, mean logits", "cascade, the last alone"),
        *("one network of the former's cost", "of the latter's"),
    )
    return Table("Test accuracy and average multiply-adds, split by split", head, rows)


def _plan(quick: bool) -> Plan:
    return Plan(2, 2, 200, 60, 2, "seconds") if quick else Plan()


EXPERIMENT = Experiment(("committees", "cascades"), _plan, measure, section_of)
