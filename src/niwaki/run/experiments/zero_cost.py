"""How well zero-cost proxies rank real networks: NAS-Bench-201's cells, built and scored here, against their published accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from niwaki.evaluate.proxy import PROXIES, VOTERS, Batch, ZeroCost, vote
from niwaki.net.place import space_of
from niwaki.run.claims import Claim, Section, Table
from niwaki.run.experiments.data import shared_data
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import SIGNAL, TRUTH, benchmark
from niwaki.run.experiments.verdicts import above, claim, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import Interval, bootstrap_of, spearman
from niwaki.run.workers import Job, Workers
from niwaki.zoo.nasbench import nasbench201

# Spearman with the final accuracy on all of NAS-Bench-201's CIFAR-10, in the papers or as their readers remember it (+- 0.02)
PUBLISHED = {
    "grad_norm": 0.58,
    "snip": 0.58,
    "grasp": 0.48,
    "fisher": 0.36,
    "synflow": 0.74,
    "jacob_cov": 0.73,
    "naswot": 0.78,
    "vote": 0.82,
}
PUBLISHED |= {"params": 0.74, "macs": 0.72, "zen": 0.35}
NEAR = 0.1  # between a Spearman here and the published one, beyond what the interval explains
NO_SEARCH = "not a search: a ranking of given networks"
BEFORE_ZICO = "no proxy was consistently better than #params before ZiCo (2023)"
BASELINES = ("params", "macs")
MOST = 200  # networks


@dataclass(frozen=True)
class Plan:
    """What is scored. networks: the first of 200 drawn uniformly from the table's rows. images: of CIFAR-10 in the batch, the same for all."""

    networks: int = 100
    images: int = 32
    initialisations: int = 3
    seed: int = 0
    minutes: str = "about 10 minutes on two idle cores"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "minutes"}


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    """Scores of every network, with what the table says of it."""
    table = benchmark("nasbench201")
    # a smaller plan scores a part of what a larger one does
    rows = np.random.default_rng(plan.seed).choice(len(table), MOST, replace=False)[: plan.networks]
    jobs = [Job(f"network {row}", score, (plan, table.rows[row].tolist())) for row in rows.tolist()]
    with Workers(workers) as pool:
        found = pool.run(jobs, folder, progress, f"scoring {len(jobs)} networks")
    return {
        "rows": rows.tolist(),
        "scores": [found[job.name] for job in jobs],
        "params": table.cost("params")[rows].tolist(),
        "macs": table.cost("macs")[rows].tolist(),
        "truth": [round(float(value), 4) for value in table.column(TRUTH)[rows]],
        "signal": [round(float(value), 4) for value in table.column(SIGNAL)[rows]],
    }


@lru_cache(maxsize=1)
def _batch(images: int, seed: int) -> Batch:
    with np.load(shared_data("cifar10", "train.npz"), allow_pickle=False) as data:
        pixels, labels = data["images"], data["labels"]
    picked = np.random.default_rng(seed).choice(len(labels), images, replace=False)
    x = torch.from_numpy(pixels[picked]).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor((0.4914, 0.4822, 0.4465)), torch.tensor((0.2470, 0.2435, 0.2616))
    return Batch((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1), torch.from_numpy(labels[picked]).long())


def score(plan: Plan, row: list[int]) -> dict[str, list[float | None]]:
    """The scores of each initialisation; None where a proxy has none."""
    network = nasbench201()
    judge = ZeroCost(network, _batch(plan.images, plan.seed), initialisations=plan.initialisations, seed=plan.seed)
    scores = [judge.scores(space_of(network).from_indices(row), number) for number in range(plan.initialisations)]
    return {name: [one[name] if np.isfinite(one[name]) else None for one in scores] for name in PROXIES}


def section_of(results: dict[str, Any]) -> Section:
    scores, truth = scores_of(results), np.array(results["truth"])
    found = {name: _correlation(values, truth) for name, values in scores.items()}
    rng = np.random.default_rng(0)
    shuffled = {name: _correlation(rng.permutation(values), truth) for name, values in scores.items()}
    claims = (
        _published(found),
        _apart(
            "The vote of synflow, jacob_cov and snip ranks better than each of them",
            "0.82, above each of them",
            "vote",
            VOTERS,
            scores,
            truth,
        ),
        *(
            _apart(f"{who} ranks better than parameters and than multiply-adds alone", BEFORE_ZICO, name, BASELINES, scores, truth)
            for name, who in (("vote", "The vote"), ("synflow", "synflow"))
        ),
        _control(shuffled),
    )
    return section("zero_cost", "Zero-cost proxies", results, _about(results["plan"]), claims, (_table(results, scores, found, shuffled),))


def _published(found: dict[str, Interval]) -> Claim:
    far = {k: one for k, one in found.items() if k in PUBLISHED and not one.low - NEAR <= PUBLISHED[k] <= one.high + NEAR}
    return claim(
        f"What the papers say of proxies on NAS-Bench-201 is not contradicted: no published Spearman more than {NEAR} outside the interval",
        ", ".join(f"{name} {value:.2f}" for name, value in PUBLISHED.items()),
        "all within it" if not far else "outside: " + ", ".join(f"{name} {one.text()}" for name, one in far.items()),
        NO_SEARCH,
        not far,
    )


def _apart(text: str, paper: str, name: str, others: Sequence[str], scores: dict[str, np.ndarray], truth: np.ndarray) -> Claim:
    """Paired: the same networks are resampled for both. All of them are named beforehand, none is picked by these figures."""

    def difference(other: str) -> Interval:
        def of(places: np.ndarray) -> float:
            first, second = (spearman(scores[one][places], truth[places]) or 0.0 for one in (name, other))
            return first - second

        return bootstrap_of(of, len(truth))

    found = {other: difference(other) for other in others}
    measured = f"Spearman of {name} less that of " + ", ".join(f"{other}: {one.text(sign=True)}" for other, one in found.items())
    return claim(
        f"{text}: each whole interval of the difference above 0", paper, measured, NO_SEARCH, all(above(one) for one in found.values())
    )


def _control(shuffled: dict[str, Interval]) -> Claim:
    out = [name for name, one in shuffled.items() if not one.low <= 0 <= one.high]
    text = "Shuffled scores tell nothing (a control): every interval holds 0"
    return claim(text, "0", "all hold 0" if not out else f"not {', '.join(out)}, of {len(shuffled)}", NO_SEARCH, not out)


def _about(plan: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{plan['networks']} cells drawn uniformly from NAS-Bench-201, built by niwaki and scored on {plan['images']} images of "
        "CIFAR-10, means of "
        f"{plan['initialisations']} initialisations; Spearman with the table's test accuracy after 200 epochs; 95 % intervals "
        "bootstrapped over "
        "networks. Quartiles are of multiply-adds: within them a proxy cannot live on size alone. Published figures are over all 15,625 "
        "cells, "
        "several of them second-hand (+- 0.02). What 12 epochs of training tell is in the last row.",
    )


def _table(results: dict[str, Any], scores: dict[str, np.ndarray], found: dict[str, Interval], shuffled: dict[str, Interval]) -> Table:
    truth, macs = np.array(results["truth"]), np.array(results["macs"], dtype=float)
    quartile = np.searchsorted(np.quantile(macs, (0.25, 0.5, 0.75)), macs)
    rows = []
    for name, values in scores.items():
        within = (_correlation(values[quartile == q], truth[quartile == q]).text() for q in range(4))
        published = f"{PUBLISHED[name]:.2f}" if name in PUBLISHED else "-"
        rows.append((name, published, found[name].text(), *within, shuffled[name].text(), _spread(results, name)))
    quartiles = ("smallest quartile", "second", "third", "largest")
    columns = ("score", "published", "here", *quartiles, "shuffled", "spread over initialisations")
    return Table("Spearman with the accuracy after 200 epochs", columns, tuple(rows))


def scores_of(results: dict[str, Any]) -> dict[str, np.ndarray]:
    """name -> (N,) of every proxy, the vote and the baselines; -inf where a network has no score."""
    found = {name: np.array([_mean(one[name]) for one in results["scores"]]) for name in PROXIES}
    found["vote"] = vote([found[name].tolist() for name in VOTERS])
    return found | {name: np.array(results[name], dtype=float) for name in BASELINES} | {"12 epochs": np.array(results["signal"])}


def _mean(values: list[float | None]) -> float:
    return float(np.mean([value if value is not None else -np.inf for value in values]))


def _spread(results: dict[str, Any], name: str) -> str:
    """The spread of a network's score over initialisations, as a share of the spread between networks."""
    if name not in PROXIES:
        return "-"
    rows = np.array([one[name] for one in results["scores"] if None not in one[name]], dtype=float)
    if rows.shape[1] < 2 or rows.mean(1).std() == 0:
        return "-"
    return f"{rows.std(1, ddof=1).mean() / rows.mean(1).std():.2f}"


def _correlation(scores: np.ndarray, truth: np.ndarray) -> Interval:
    """Spearman, with its interval over resamples of the networks; 0 where there are too few to tell."""
    if len(truth) < 3:
        return Interval(0.0, 0.0, 0.0)
    return bootstrap_of(lambda places: spearman(scores[places], truth[places]) or 0.0, len(truth))


def _plan(quick: bool) -> Plan:
    return Plan(networks=8, images=4, initialisations=2, minutes="about a minute") if quick else Plan()


EXPERIMENT = Experiment(("zero_cost", "zero-cost", "proxies"), _plan, measure, section_of)
