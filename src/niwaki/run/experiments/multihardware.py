"""Searches for several devices at once, on NAS-Bench-201 with its measured latencies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from niwaki.objective import Objective, ObjectiveError
from niwaki.recipe import multihardware, tunas
from niwaki.run.claims import Claim, Section, Table, percent
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import SIGNAL, TRUTH, benchmark, searched
from niwaki.run.experiments.verdicts import above, at_least, at_most, below, claim, not_testable, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import Interval, bootstrap
from niwaki.run.workers import Job, Workers
from niwaki.space.architecture import Architecture
from niwaki.trial import Trial

DEVICES = ("pixel3", "gold_6226", "1080ti_1", "eyeriss")  # a phone, a server's processor, a graphics card, an accelerator
TABLE = "nasbench201 with latencies"
NEAR = 0.1  # of the target, as a share of it
LOSS = 1.5  # points of accuracy that serving all devices may cost


@dataclass(frozen=True)
class Plan:
    """What is searched. cap: of every device, as a share of its target, in the mode with hard caps."""

    devices: tuple[str, ...] = DEVICES
    steps: int = 3_000
    seeds: int = 20
    cap: float = 1.05
    minutes: str = "about 3 minutes on one core"

    def to_json(self) -> dict[str, Any]:
        return {"devices": list(self.devices), "steps": self.steps, "seeds": self.seeds, "cap": self.cap}


QUICK = replace(Plan(), steps=200, seeds=2, minutes="seconds")


def reference(devices: tuple[str, ...]) -> int:
    """The row that is nearest to the median on all devices: the largest of |log(ms / median)| is least."""
    latency = np.stack([benchmark(TABLE).column(device) for device in devices])
    return int(np.argmin(np.abs(np.log(latency / np.median(latency, axis=1, keepdims=True))).max(axis=0)))


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    kinds = ("mean", "worst", *plan.devices, "capped")
    jobs = {kind: Job(f"search {kind}", run_searches, (kind, plan)) for kind in kinds}
    with Workers(workers) as pool:
        found = pool.run(list(jobs.values()), folder, progress, f"{len(jobs)} kinds of search")
    at = reference(plan.devices)
    table = benchmark(TABLE)
    return {
        "reference": {"row": at, "cell": dict(table.architecture(at)), "truth": float(table.column(TRUTH)[at])},
        "targets": {device: float(table.column(device)[at]) for device in plan.devices},
        "found": {kind: found[job.name] for kind, job in jobs.items()},
    }


def objective_of(kind: str, targets: dict[str, float], cap: float) -> Objective:
    if kind == "mean":
        return multihardware.average_case(targets)
    if kind == "worst":
        return multihardware.worst_case(targets)
    if kind == "capped":
        return multihardware.capped(targets, {device: cap * ms for device, ms in targets.items()})
    return multihardware.average_case({kind: targets[kind]})


def run_searches(kind: str, plan: Plan) -> dict[str, list[dict[str, Any]]]:
    """For each seed, accuracies and ratios of where the search ends ("capped": of what is picked), and of random search's best."""
    table = benchmark(TABLE)
    targets = {device: float(table.column(device)[reference(plan.devices)]) for device in plan.devices}
    objective = objective_of(kind, targets, plan.cap)
    quality, latency = table.column(SIGNAL) / 100, {device: table.column(device) for device in plan.devices}

    def of(place: int) -> dict[str, float]:
        return {"accuracy": float(quality[place]), **{device: float(column[place]) for device, column in latency.items()}}

    def told(place: int) -> dict[str, Any]:
        return {"ratios": list(multihardware.ratios(of(place), targets).values()), "truth": float(table.column(TRUTH)[place])}

    def metrics(arch: Architecture) -> dict[str, float]:
        return of(table.place(arch))

    def tried(pick: Callable[[], Architecture]) -> dict[str, Any]:
        try:
            return told(table.place(pick()))
        except ObjectiveError as error:
            return {"error": str(error)}

    policy, random = [], []
    for seed in range(plan.seeds):
        strategy = tunas.controller(objective, steps=plan.steps)
        trials, state = searched(strategy, table.space, metrics, plan.steps, seed, batch=strategy.batch_size)
        drawn = np.random.default_rng(seed).integers(len(table), size=plan.steps).tolist()
        guessed = [Trial(n, table.architecture(place), of(place)) for n, place in enumerate(drawn)]
        policy.append(tried(partial(_picked, trials, objective) if kind == "capped" else partial(strategy.mode, state)))
        random.append(tried(partial(_picked, guessed, objective)))
    return {"policy": policy, "random": random}


def _picked(trials: Sequence[Trial], objective: Objective) -> Architecture:
    return multihardware.pick(trials, objective).arch


# --- what it says -----------------------------------------------------------------------------------------------------------------


def section_of(results: dict[str, Any]) -> Section:
    found = results["found"]
    claims = (
        _at_target(found),
        _worst_case(found, list(results["targets"])),
        _accuracy(found, list(results["targets"])),
        _hidden(found),
        _against_random(found),
        not_testable(
            "Multi-AVG reaches 75.2 % on ImageNet",
            "75.21 % [model garden]",
            "needs ImageNet; both released networks are in the zoo, to the parameter",
        ),
    )
    return section("multihardware", "Multi-hardware search", results, (_about(results),), claims, (_ratios(results),))


def _figures(entries: list[dict[str, Any]], figure: str) -> list[float]:
    """The "worst" or "mean" ratio, or the "truth", of each seed that came to a network."""
    read: dict[str, Callable[[dict[str, Any]], float]] = {
        "worst": lambda one: max(one["ratios"]),
        "mean": lambda one: float(np.mean(one["ratios"])),
        "truth": lambda one: one["truth"],
    }
    return [read[figure](one) for one in entries if "ratios" in one]


def _less(first: list[dict[str, Any]], second: list[dict[str, Any]], figure: str) -> Interval:
    """The paired difference, over the seeds in which both came to a network."""
    both = [pair for pair in zip(first, second, strict=True) if all("ratios" in one for one in pair)]
    ones, others = (_figures([pair[at] for pair in both], figure) for at in (0, 1))
    return bootstrap([a - b for a, b in zip(ones, others, strict=True)])


def _at_target(found: dict[str, Any]) -> Claim:
    off = {
        name: bootstrap([abs(value - 1) for value in _figures(found[kind]["policy"], kind)])
        for name, kind in (("mean ratio, Multi-AVG", "mean"), ("worst ratio, Multi-MAX", "worst"))
    }
    return claim(
        f"One search meets the target of its aggregate: off it by at most {percent(NEAR, 0)}, the whole interval",
        "absolute reward [structure from code]",
        "off target: " + ", ".join(f"{one.text(1, scale=100, unit=' %')} ({name})" for name, one in off.items()),
        "in the table below",
        all(at_most(one, NEAR) for one in off.values()),
    )


def _worst_case(found: dict[str, Any], devices: list[str]) -> Claim:
    gaps = {device: _less(found["worst"]["policy"], found[device]["policy"], "worst") for device in devices}
    return claim(
        "The worst case over devices is no worse than that of any network found for one device: no interval of the difference above 0",
        "state of the art in the worst case [abstract]",
        "worst ratio of Multi-MAX less that of the search for "
        + "; ".join(f"{device}: {one.text(sign=True)}" for device, one in gaps.items()),
        f"{np.mean(_figures(found['worst']['random'], 'worst')):.2f}, the worst ratio of the best of as many draws",
        all(at_most(one, 0) for one in gaps.values()),
    )


def _accuracy(found: dict[str, Any], devices: list[str]) -> Claim:
    """Beside the most accurate of the searches for one device: to pick it on the same seeds is in its favour."""
    best = max(devices, key=lambda device: float(np.mean(_figures(found[device]["policy"], "truth"))))
    loss = _less(found[best]["policy"], found["worst"]["policy"], "truth")
    return claim(
        f"Serving all devices costs at most {LOSS} points of accuracy: the whole interval (the bar is ours)",
        "similar to or better than networks for one device [abstract]",
        f"the best search for one device ({best}) less Multi-MAX: {loss.text(sign=True)} points",
        "in the table below",
        at_most(loss, LOSS),
    )


def _hidden(found: dict[str, Any]) -> Claim:
    over = bootstrap([value - 1 for value in _figures(found["mean"]["policy"], "worst")])
    return claim(
        "A mean over devices hides one that is over its target: the whole interval above 0",
        "-",
        f"the worst ratio of Multi-AVG is {over.text(0, scale=100, unit=' %')} over",
        "in the table below",
        above(over),
    )


def _against_random(found: dict[str, Any]) -> Claim:
    ratio, truth = (_less(found["worst"]["policy"], found["worst"]["random"], figure) for figure in ("worst", "truth"))
    return claim(
        "Multi-MAX beats random search of equal cost: a lower worst ratio at no lower accuracy, both whole intervals",
        "not in the paper",
        f"Multi-MAX less random search: worst ratio {ratio.text(sign=True)}, test accuracy {truth.text(sign=True)} points",
        f"worst ratio {bootstrap(_figures(found['worst']['random'], 'worst')).text()}, "
        f"test accuracy {bootstrap(_figures(found['worst']['random'], 'truth')).text()}",
        below(ratio) and at_least(truth, 0),
    )


def _about(results: dict[str, Any]) -> str:
    targets, reference, plan = results["targets"], results["reference"], results["plan"]
    capped = results["found"]["capped"]["policy"]
    return (
        f"NAS-Bench-201 with the latencies that others measured on {', '.join(targets)} (HELP, HW-NAS-Bench); the paper's are a Pixel "
        "4's four "
        "processors. The targets are those of a reference cell, the nearest to the median on all four: "
        + ", ".join(f"{device} {ms:.2f} ms" for device, ms in targets.items())
        + f" ({', '.join(reference['cell'].values())}; {reference['truth']:.2f} % after 200 epochs): another reference weighs the devices "
        f"otherwise. TuNAS's controller, absolute reward with beta -0.1, {plan['steps']:,} evaluations, {plan['seeds']} seeds; the "
        "signal is the "
        f"validation accuracy after 12 epochs. With hard caps (ours) no pick is above {plan['cap']} of a target, by construction; "
        f"{sum('error' in one for one in capped)} of {len(capped)} searches sampled nothing that could be picked."
    )


def _ratios(results: dict[str, Any]) -> Table:
    rows = []
    for kind, found in results["found"].items():
        ends = "picked among its samples" if kind == "capped" else "most likely at the end"
        for who, label in (("policy", ends), ("random", "random search, best reward")):
            entries = [one for one in found[who] if "ratios" in one]
            if entries:
                each = np.mean([one["ratios"] for one in entries], axis=0)
                figures = (bootstrap(_figures(entries, figure)).text() for figure in ("mean", "worst", "truth"))
                rows.append((_named(kind), label, *(f"{value:.2f}" for value in each), *figures))
    columns = ("search for", "network", *results["targets"], "mean ratio", "worst ratio", "test accuracy after 200 epochs")
    return Table("Ratios to the targets, means over seeds", columns, tuple(rows))


def _named(kind: str) -> str:
    return {"mean": "all, Multi-AVG", "worst": "all, Multi-MAX", "capped": "all, mean with hard caps"}.get(kind, f"{kind} alone")


EXPERIMENT = Experiment(("multihardware", "multi-hardware"), lambda quick: QUICK if quick else Plan(), measure, section_of)
