"""MorphNet's claims on Fashion-MNIST: what each penalty removes, and what a shape found by shrinking is worth beside a uniform multiplier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import mean
from typing import Any

from niwaki.run.claims import Claim, Section, Table
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.shrinking import THIRD, WIDTHS, at_strength, baseline, shrunk
from niwaki.run.experiments.verdicts import above, at_least, claim, not_testable, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import Interval, bootstrap
from niwaki.run.workers import Job, Workers

METRICS = {"macs": "FLOPs", "params": "size"}
SPECIFIC, CORRELATED, WORSE = 0.2, 0.6, 0.5
HALF = 0.5


@dataclass(frozen=True)
class Plan:
    """images: to train on, a fifth of them for validation. epochs: of shrinking; final: of the training from scratch afterwards. strengths: lambda,
    in units of 1 / F, of the sweep."""

    seeds: int = 5
    images: int = 3000
    epochs: int = 6
    final: int = 8
    shares: tuple[float, ...] = (0.7, 0.5, 0.3)
    strengths: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    minutes: str = "about 7 minutes on one idle core, half of it on two"

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items() if key != "minutes"}


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    jobs = []
    for seed in range(plan.seeds):
        for metric in METRICS:
            for share in plan.shares:
                jobs.append(
                    Job(f"shrunk {metric} {share} {seed}", shrunk, (plan.images, plan.epochs, plan.final, "morphnet", metric, share, seed))
                )
                jobs.append(Job(f"uniform {metric} {share} {seed}", baseline, (plan.images, plan.final, "uniform", metric, share, seed)))
        jobs.append(Job(f"random macs {HALF} {seed}", baseline, (plan.images, plan.final, "random", "macs", HALF, seed)))
        jobs += [
            Job(f"strength {strength} {seed}", at_strength, (plan.images, plan.epochs, "morphnet", "macs", strength, seed))
            for strength in plan.strengths
        ]
    with Workers(workers) as pool:
        return {"jobs": pool.run(jobs, folder, progress, "shrinkings, and trainings from scratch")}


def section_of(results: dict[str, Any]) -> Section:
    plan, jobs = results["plan"], results["jobs"]
    seeds = range(plan["seeds"])
    share = HALF if HALF in plan["shares"] else plan["shares"][0]
    claims = (
        specificity(jobs, seeds, share),
        _correlated(jobs, seeds, share),
        *_value(jobs, plan),
        _sweep(jobs, plan),
        not_testable(
            "Inception V2 74.1 -> 75.2 %, MobileNet 0.5 57.1 -> 58.1 %, ResNet-101 on JFT at the same FLOPs", "table 1", "ImageNet and JFT"
        ),
    )
    return section("morphnet", "MorphNet (Gordon et al., 2018)", results, _about(plan), claims, (_widths(jobs, plan),))


def specificity(jobs: dict[str, Any], seeds: Sequence[int], share: float) -> Claim:
    """Check 6, of any method whose results are named alike."""
    difference = bootstrap(
        [mean(_lost(jobs, "macs", share, seed)[:THIRD]) - mean(_lost(jobs, "params", share, seed)[:THIRD]) for seed in seeds]
    )
    lost = {metric: mean(mean(_lost(jobs, metric, share, seed)[:THIRD]) for seed in seeds) for metric in METRICS}
    return claim(
        f"The first third of the layers loses at least {100 * SPECIFIC:.0f} points more of its channels under a penalty on FLOPs than under one on size, "
        f"each at {share:.0%} of its own cost",
        "FLOPs: early, high-resolution layers; size: late, wide ones",
        f"{100 * lost['macs']:.0f} % under FLOPs, {100 * lost['params']:.0f} % under size; difference {difference.text(1, scale=100, unit=' points', sign=True)}",
        "not applicable",
        at_least(difference, SPECIFIC),
    )


def _lost(jobs: dict[str, Any], metric: str, share: float, seed: int) -> list[float]:
    return jobs[f"shrunk {metric} {share} {seed}"]["lost"]


def _correlated(jobs: dict[str, Any], seeds: Sequence[int], share: float) -> Claim:
    found = {metric: bootstrap([jobs[f"shrunk {metric} {share} {seed}"]["correlation"] for seed in seeds]) for metric in METRICS}
    return claim(
        f"Under size, the part of a layer's channels that goes is the larger the more one of them costs: mean rank correlation above {CORRELATED} (a bar of ours)",
        "-",
        f"Spearman {found['params'].text(2)} under size; {found['macs'].text(2)} under FLOPs, of {len(WIDTHS)} layers, without a bar",
        "not applicable",
        above(found["params"], CORRELATED),
    )


def differences(jobs: dict[str, Any], plan: dict[str, Any], metric: str, share: float) -> Interval:
    """Test accuracy of the shape found minus the uniform multiplier's, in points, paired by seed."""
    pairs = [
        (jobs[f"shrunk {metric} {share} {seed}"]["accuracy"], jobs[f"uniform {metric} {share} {seed}"]["accuracy"])
        for seed in range(plan["seeds"])
    ]
    return bootstrap([100 * (one - other) for one, other in pairs])


def _value(jobs: dict[str, Any], plan: dict[str, Any]) -> tuple[Claim, Claim]:
    found = {(metric, share): differences(jobs, plan, metric, share) for metric in METRICS for share in plan["shares"]}
    told = "; ".join(f"{METRICS[metric]} {share:.0%}: {one.text(2, sign=True)}" for (metric, share), one in found.items())
    share = HALF if HALF in plan["shares"] else plan["shares"][0]
    random_one = bootstrap([100 * jobs[f"random macs {HALF} {seed}"]["accuracy"] for seed in range(plan["seeds"])])
    ours = bootstrap([100 * jobs[f"shrunk macs {share} {seed}"]["accuracy"] for seed in range(plan["seeds"])])
    beside = f"random shapes at {HALF:.0%} of FLOPs {random_one.text(2, unit=' %')}, found there {ours.text(2, unit=' %')}"
    wins = [f"{METRICS[metric]} {share:.0%}" for (metric, share), one in found.items() if above(one)]
    return (
        claim(
            f"After one shrinking, expansion and training from scratch, no point is worse than the uniform multiplier by {WORSE} points: the whole interval",
            "+1.1 points, Inception V2 at the same FLOPs [from memory]",
            f"accuracy minus uniform, in points: {told}",
            beside,
            all(at_least(one, -WORSE) for one in found.values()),
        ),
        claim(
            "It is better than the uniform multiplier at more than half of the points: intervals above 0",
            "at all of them",
            f"{len(wins)} of {len(found)}{f': {chr(44).join(wins)}' if wins else ''}",
            beside,
            2 * len(wins) > len(found),
        ),
    )


def _sweep(jobs: dict[str, Any], plan: dict[str, Any]) -> Claim:
    strengths = plan["strengths"]
    paths = [[jobs[f"strength {strength} {seed}"]["alive"] for strength in strengths] for seed in range(plan["seeds"])]
    falling = sum(all(after <= before for before, after in pairwise(path)) for path in paths)
    means = ", ".join(f"{strength:g}: {mean(path[at] for path in paths):.0%}" for at, strength in enumerate(strengths))
    return claim(
        "A larger lambda leaves a cheaper network, with every seed",
        "a trade-off curve",
        f"monotone with {falling} of {len(paths)} seeds; FLOPs left by lambda F: {means}",
        "not applicable",
        falling == len(paths),
    )


def _widths(jobs: dict[str, Any], plan: dict[str, Any]) -> Table:
    share = HALF if HALF in plan["shares"] else plan["shares"][0]
    rows = [("seed network", *map(str, WIDTHS))]
    for kind, metric in (("shrunk", "macs"), ("shrunk", "params"), ("uniform", "macs")):
        counts = [jobs[f"{kind} {metric} {share} {seed}"]["counts"] for seed in range(plan["seeds"])]
        rows.append((f"{kind}, {METRICS[metric]}", *(f"{mean(column):.1f}" for column in zip(*counts, strict=True))))
    return Table(
        f"Channels of each layer at {share:.0%}, mean over seeds", ("", *(f"layer {at + 1}" for at in range(len(WIDTHS)))), tuple(rows)
    )


def _about(plan: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"A network of {len(WIDTHS)} convolutions on {plan['images']:,} images of Fashion-MNIST, a fifth of them kept for validation. Shrunk from scratch for "
        f"{plan['epochs']} epochs, with the prices of the paper; expanded (omega, never beyond the seed network's widths); trained from scratch for "
        f"{plan['final']} epochs. {plan['seeds']} seeds, 95 % intervals bootstrapped over them. Deviations of ours: lambda is found by a controller in one run, "
        "scales are soft-thresholded instead of following a subgradient, and a unit is dead below 1 % of the largest scale of its layer now.",
        "That costs are exact, gradients those by hand, that the extracted network is the masked one, and that omega is maximal, is tested in tests/test_morphnet.py.",
    )


def _plan(quick: bool) -> Plan:
    return Plan(1, 600, 1, 1, (0.5,), (1.0, 10.0), "a minute") if quick else Plan()


EXPERIMENT = Experiment(("morphnet",), _plan, measure, section_of)
