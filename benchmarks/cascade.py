"""Cascades: what they cost at the accuracy of the largest member, and at one point below it; multiply-adds counted, latency measured.

    python benchmarks/cascade.py [--data FOLDER] [--workers N] [--quick]

For each seed: MobileNetV2 uniformly scaled to four budgets, trained on 9,600 images of Fashion-MNIST; members, order and thresholds of a cascade
chosen on 2,400 others; all figures are of the 10,000 test images. Each cascade is exported as one ONNX file and timed in ONNX Runtime, one
image at a time, in turns with the largest member. Beside it stands what one network of the cascade's average cost is worth, on the line through
the members' own accuracies over the logarithm of their cost. Every finished training is kept in benchmarks/work/; started again, the benchmark
goes on. Trainings run side by side (--workers), measurements one after the other when they are done.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from harness import HERE, Claim, Result, Table, arguments, machine, on_one_thread, report
from jobs import Job, run_jobs, work_folder
from search_pays import data_folder, macs_of, scaled_mobilenetv2, task_of

from niwaki.deploy.card import ModelCard, Preprocessing
from niwaki.deploy.cascade import cascade_model, export_cascade, measured
from niwaki.deploy.committee import Average, Committee
from niwaki.deploy.export import capture, export_onnx
from niwaki.device.measure import Protocol, in_turns
from niwaki.device.runtime_onnx import NAME, onnx_step
from niwaki.nn.build import build
from niwaki.run.statistics import Interval, bootstrap
from niwaki.task.classify import ImageClassification
from niwaki.task.task import derive_seed
from niwaki.train.loop import train
from niwaki.train.recipe import Recipe

TOLD = {"logits": "mean logits", "last": "the last alone"}
DEMANDS = {"the largest member's accuracy": 0.0, "1 point below it": 0.01}
COSTS = ("macs", "latency")
WAYS: tuple[Average, ...] = ("logits", "last")  # how members answer: the paper's mean, and the last alone (ours)
CHECKED = 256


@dataclass(frozen=True)
class Plan:
    """budgets: of the members, in multiply-adds. images: of the training set, class by class, a fifth of them to choose on."""

    budgets: tuple[int, ...] = (75_000, 250_000, 800_000, 2_500_000)
    images: int = 12_000
    epochs: int = 12
    seeds: int = 5
    rounds: int = 20  # of the timing


QUICK = Plan((20_000, 60_000), images=400, epochs=2, seeds=2, rounds=2)


@dataclass(frozen=True)
class Site:
    plan: Plan
    data: str  # a folder, or "digits"
    work: str

    def member(self, seed: int, budget: int) -> Path:
        return Path(self.work) / f"member-{seed}-{budget}.onnx"


def train_member(site: Site, seed: int, budget: int) -> dict[str, Any]:
    """One member, with weights and order of its own seed, as an ONNX file beside the results."""
    task = task_of(site.data, site.plan.images, seed)
    network = scaled_mobilenetv2(budget, task.input_shape, task.outputs)
    module = build(network, seed=derive_seed(seed, "cascade", budget))
    recipe = Recipe(epochs=site.plan.epochs)
    model = train(module, task, recipe, task.part("train"), seed=derive_seed(seed, "cascade order", budget))
    shipment = capture(model, task.preprocess(), task.images.test_images[:CHECKED])
    export_onnx(shipment, site.member(seed, budget), card_of(task))
    return {"macs": macs_of(network)}


def card_of(task: ImageClassification) -> ModelCard:
    mean, std = task.normalisation
    form = Preprocessing(
        task.images.images.shape[1:], str(task.images.images.dtype), task.images.pixel_range, tuple(mean.tolist()), tuple(std.tolist())
    )
    return ModelCard(task.images.class_names, form, 0, 0, 0)


def choose_and_measure(site: Site, seed: int, macs: Sequence[int]) -> dict[str, Any]:
    """The cascades of one seed, by both costs and for both demands."""
    task = task_of(site.data, site.plan.images, seed)
    held_out, test, card = task.part("validation").numpy(), task.images.test_images, card_of(task)
    y = {"validation": task.images.labels[held_out], "test": task.images.test_labels}
    files = [site.member(seed, budget) for budget in site.plan.budgets]
    protocol = Protocol(rounds=site.plan.rounds)
    steps = {str(at): onnx_step(file.read_bytes(), batch=test[:1]) for at, file in enumerate(files)}
    alone_ms = [one.latency_ms for one in in_turns(steps, str(len(files) - 1), runtime=NAME, protocol=protocol).values()]
    committees = {"macs": Committee(files, macs), "latency": Committee(files, alone_ms)}
    logits = committees["macs"].logits(task.images.images[held_out])
    of_test = [(model(test).argmax(1) == y["test"]).mean() for model in committees["macs"].models]
    largest = float((logits[-1].argmax(1) == y["validation"]).mean())
    found: dict[str, Any] = {
        "members": [{"macs": m, "ms": ms, "accuracy": float(a)} for m, ms, a in zip(macs, alone_ms, of_test, strict=True)],
        "cascades": {},
    }
    for cost, way in product(COSTS, WAYS):
        for name, below in DEMANDS.items():
            fitted = replace(committees[cost], average=way).fit(logits, y["validation"], target=max(0.0, largest - below))
            told = fitted.report(test, y["test"])
            assert fitted.rule is not None
            spent = np.cumsum([macs[member] for member in fitted.rule.members])
            file = Path(site.work) / f"cascade-{seed}-{cost}-{way}-{below}.onnx"
            export_cascade(fitted, file, card, test[:CHECKED])
            exits = fitted.predict(test).exits
            content = cascade_model(fitted, card).SerializeToString()
            latency = measured(content, files[-1].read_bytes(), test, exits, protocol=protocol)
            found["cascades"][f"{cost}, {TOLD[way]}, {name}"] = {
                "members": list(fitted.rule.members),
                "thresholds": list(fitted.rule.thresholds),
                "shares": list(told.shares),
                "accuracy": told.accuracy,
                "held_out": fitted.report().accuracy,
                "macs": float(np.dot(told.shares, spent)),
                "ms": latency.average_ms,
                "ratio": latency.ratio,
                "variation": latency.variation,
            }
    return found


def of_equal_cost(members: Sequence[Mapping[str, Any]], macs: float) -> float:
    """Accuracy of one network of so many multiply-adds, on the line through the members over the logarithm of their cost."""
    return float(np.interp(np.log(macs), [np.log(one["macs"]) for one in members], [one["accuracy"] for one in members]))


# --- result ------------------------------------------------------------------------------------------------------------------------------


def summary(plan: Plan, found: Sequence[Mapping[str, Any]], data: str) -> Result:
    claims, rows = [], []
    for cost, way in product(COSTS, WAYS):
        for demand in DEMANDS:
            chosen = [one["cascades"][f"{cost}, {TOLD[way]}, {demand}"] for one in found]
            largest = [one["members"][-1] for one in found]
            share = bootstrap([c["macs"] / big["macs"] for c, big in zip(chosen, largest, strict=True)])
            ratio = bootstrap([c["ratio"] for c in chosen])
            lost = bootstrap([100 * (big["accuracy"] - c["accuracy"]) for c, big in zip(chosen, largest, strict=True)])
            beside = bootstrap(
                [100 * (c["accuracy"] - of_equal_cost(one["members"], c["macs"])) for c, one in zip(chosen, found, strict=True)]
            )
            alone = sum(c["members"] == [len(plan.budgets) - 1] for c in chosen)
            claims.append(
                Claim(
                    f"chosen by {cost} for {demand} ({TOLD[way]}): cost of the largest member",
                    "less than all of it: MACs, and batch-1 latency measured",
                    f"MACs {_percent(share)}, latency {_percent(ratio)}; test accuracy {lost.text(sign=True)} points below it",
                    share.high < 1 and ratio.high < 1,
                )
            )
            without = f"; the largest alone in {alone} of {len(chosen)} seeds" if alone else ""
            rows.append(
                (
                    f"{cost}, {TOLD[way]}, {demand}",
                    f"{_percent(share)}{without}",
                    _percent(ratio),
                    lost.text(sign=True),
                    beside.text(sign=True),
                )
            )
    members = [
        (
            f"{mean(one['members'][at]['macs'] for one in found):,.0f}",
            bootstrap([100 * one["members"][at]["accuracy"] for one in found]).text(),
            f"{mean(one['members'][at]['ms'] for one in found):.3f}",
        )
        for at in range(len(plan.budgets))
    ]
    each = [
        (
            str(seed),
            name,
            " -> ".join(str(member + 1) for member in c["members"]),
            ", ".join(f"{share:.0%}" for share in c["shares"]),
            f"{100 * c['accuracy']:.2f} ({100 * c['held_out']:.2f})",
            f"{c['macs']:,.0f}",
            f"{c['ms']:.3f}",
        )
        for seed, one in enumerate(found)
        for name, c in one["cascades"].items()
    ]
    worst = max(c["variation"] for one in found for c in one["cascades"].values())
    return Result(
        "cascade",
        "18. Cascades",
        "python benchmarks/cascade.py",
        tuple(claims),
        (
            Table("Members, alone", ("MACs", "test accuracy, %", "ms"), tuple(members)),
            Table(
                "Cascades, as shares of the largest member's cost",
                ("chosen by", "MACs", "latency, paired", "points lost on test", "points above one network of as many MACs"),
                tuple(rows),
            ),
            Table(
                "Each of them",
                ("seed", "chosen by", "members", "leaving at each exit", "test accuracy (where chosen), %", "MACs", "ms"),
                tuple(each),
            ),
        ),
        (
            f"{data}; {plan.images:,} training images, a fifth to choose on, {plan.epochs} epochs, {len(found)} seeds; means with 95 % bootstrap "
            f"intervals over seeds",
            f"latency: {NAME}, one thread, one image, least CPU time and the median ratio to the largest member timed beside; exits weighted by their "
            f"shares on test; variation at most {worst:.0%}",
            "the largest member's accuracy is reached by itself alone, if by nothing cheaper: then the cascade is that member and costs all of it",
        ),
        {"plan": asdict(plan), "seeds": list(found)},
    )


def _percent(interval: Interval) -> str:
    return interval.text(1, scale=100, unit=" %")


def main() -> None:
    on_one_thread()

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", help="folder with train.npz and test.npz")
        parser.add_argument("--workers", type=int, default=2, help="processes of one thread each, for the trainings")

    options = arguments(__doc__ or "", more)
    plan = QUICK if options.quick else Plan()
    about = machine(threads=1, seed=options.seed)
    data = "digits" if options.quick else str(data_folder(options.data).resolve())
    with TemporaryDirectory() as scratch:
        work = Path(scratch) if options.quick else HERE / "work" / "cascade"
        with closing(work_folder(work, asdict(plan))) as folder:
            site = Site(plan, data, str(work))
            seeds = range(options.seed, options.seed + plan.seeds)
            pairs = [(seed, budget) for budget in reversed(plan.budgets) for seed in seeds]  # the longest first
            trained = run_jobs([Job(f"member {s} {b}", train_member, (site, s, b)) for s, b in pairs], folder, options.workers)
            macs = {seed: [trained[f"member {seed} {budget}"]["macs"] for budget in plan.budgets] for seed in seeds}
            jobs = [Job(f"cascades {seed}", choose_and_measure, (site, seed, macs[seed])) for seed in seeds]
            found = run_jobs(jobs, folder, 1)
        source = "digits" if options.quick else "Fashion-MNIST"
        report(summary(plan, [found[job.name] for job in jobs], source), about, quick=options.quick)


if __name__ == "__main__":
    import cascade  # workers know functions by the name of their module, which a script has not

    cascade.main()
