"""How well zero-cost proxies rank real networks: NAS-Bench-201's cells, built and scored here, against their published accuracies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from niwaki.cost.count import count_macs, count_params
from niwaki.evaluate.proxy import PROXIES, VOTERS, Batch, ZeroCost, vote
from niwaki.net.place import space_of
from niwaki.run.claims import Claim, Section, Table
from niwaki.run.experiments.data import shared_data
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import RESAMPLES, spearman
from niwaki.run.workers import Job, Workers
from niwaki.zoo.nasbench import nasbench201

TRUTH = "cifar10_test_acc_200ep"
SIGNAL = "cifar10_valid_acc_12ep"  # what a short training tells, beside the proxies
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
    table = np.load(shared_data("nasbench201", "nasbench201_cifar10.npz"), allow_pickle=False)
    # a smaller plan scores a part of what a larger one does
    rows = np.random.default_rng(plan.seed).choice(len(table["ops"]), MOST, replace=False)[: plan.networks]
    jobs = [Job(f"network {row}", score, (plan, table["ops"][row].tolist())) for row in rows.tolist()]
    with Workers(workers) as pool:
        found = pool.run(jobs, folder, progress, f"scoring {len(jobs)} networks")
    network = nasbench201()
    taken = table["ops"][rows].astype(np.int32)
    return {
        "rows": rows.tolist(),
        "scores": [found[job.name] for job in jobs],
        "params": count_params(network).batch(taken).tolist(),
        "macs": count_macs(network).batch(taken).tolist(),
        "truth": [round(float(value), 4) for value in table[TRUTH][rows]],
        "signal": [round(float(value), 4) for value in table[SIGNAL][rows]],
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
    scores = scores_of(results)
    truth, macs = np.array(results["truth"]), np.array(results["macs"], dtype=float)
    rng = np.random.default_rng(0)
    measured = {name: _correlation(values, truth, rng) for name, values in scores.items()}
    shuffled = {name: _correlation(rng.permutation(values), truth, rng) for name, values in scores.items()}
    quartile = np.searchsorted(np.quantile(macs, (0.25, 0.5, 0.75)), macs)
    within = {
        name: [_text(_correlation(values[quartile == q], truth[quartile == q], rng)) for q in range(4)] for name, values in scores.items()
    }
    rows = []
    for name in scores:
        spread = _spread(results, name)
        published = f"{PUBLISHED[name]:.2f}" if name in PUBLISHED else "-"
        rows.append((name, published, _text(measured[name]), *within[name], _text(shuffled[name]), spread))
    best = max((name for name in PROXIES), key=lambda name: measured[name][0])
    counted = max(measured[name][0] for name in BASELINES)
    far = {name: m for name, m in measured.items() if name in PUBLISHED and not m[1] - NEAR <= PUBLISHED[name] <= m[2] + NEAR}
    zero = all(low <= 0 <= high for _, low, high in shuffled.values())
    quick = results["quick"]
    plan = results["plan"]

    def verdict(holds: bool) -> Any:
        return "not decided (quick)" if quick else "holds" if holds else "does not hold"

    no_search = "not a search: a ranking of given networks"
    return Section(
        "zero_cost",
        "Zero-cost proxies",
        (
            f"{plan['networks']} cells drawn uniformly from NAS-Bench-201, built by niwaki and scored on {plan['images']} images of CIFAR-10, means of "
            f"{plan['initialisations']} initialisations; Spearman with the table's test accuracy after 200 epochs; 95 % intervals bootstrapped over networks. "
            f"Quartiles are of multiply-adds: within them a proxy cannot live on size alone. Published figures are over all 15,625 cells, several of them "
            f"second-hand (+- 0.02). What 12 epochs of training tell is in the last row.",
        ),
        (
            Claim("Proxies rank NAS-Bench-201 as their papers say", ", ".join(f"{k} {v:.2f}" for k, v in PUBLISHED.items()),
                  "all within the interval and 0.1 of it" if not far else "outside: " + ", ".join(f"{k} {_text(m)}" for k, m in far.items()), no_search, verdict(not far)),
            Claim("The vote of synflow, jacob_cov and snip is the best proxy", "0.82, above each of them", f"vote {_text(measured['vote'])}; best single one: {best} {_text(measured[best])}",
                  no_search, verdict(measured["vote"][0] >= measured[best][0])),
            Claim("A proxy ranks better than parameters or multiply-adds alone", "no proxy was consistently better than #params before ZiCo (2023)",
                  f"{best} {measured[best][0]:.2f} against {counted:.2f}", no_search, verdict(measured[best][0] > counted)),
            Claim("Shuffled scores tell nothing (a control)", "0", "all intervals hold 0" if zero else "an interval leaves out 0", no_search, verdict(zero)),
        ),
        (Table("Spearman with the accuracy after 200 epochs", ("score", "published", "here", "smallest quartile", "second", "third", "largest", "shuffled", "spread over initialisations"), tuple(rows)),),
        quick=quick,
    )  # fmt: skip


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


def _correlation(scores: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Spearman, and its 95 % interval over resamples of the networks; 0 where there are too few to tell."""
    if len(truth) < 3:
        return 0.0, 0.0, 0.0
    picked = rng.integers(len(truth), size=(RESAMPLES // 10, len(truth)))
    values = np.sort([spearman(scores[take], truth[take]) or 0.0 for take in picked])
    low, high = np.quantile(values, (0.025, 0.975))
    return spearman(scores, truth) or 0.0, float(low), float(high)


def _text(found: tuple[float, float, float]) -> str:
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def _plan(quick: bool) -> Plan:
    return Plan(networks=8, images=4, initialisations=2, minutes="about a minute") if quick else Plan()


EXPERIMENT = Experiment(("zero_cost", "proxies"), _plan, measure, section_of)
