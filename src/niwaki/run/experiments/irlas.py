"""Topology guidance after IRLAS on NAS-Bench-201: accuracy and speed of what a search finds, with the guidance and without."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

from niwaki.net.place import space_of
from niwaki.objective import Objective
from niwaki.recipe import irlas as recipe
from niwaki.run.claims import Claim, Section, Table, percent
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import SIGNAL, TRUTH, benchmark, searched
from niwaki.run.experiments.verdicts import at_least, claim, not_testable, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import bootstrap
from niwaki.run.workers import Job, Workers
from niwaki.strategy.evolution import RegularizedEvolution
from niwaki.strategy.q_learning import QLearning
from niwaki.strategy.random import RandomSearch
from niwaki.zoo.nasbench import nasbench201

DEVICES = ("pixel3", "raspi4", "gold_6226", "1080ti_1")
STRATEGIES = ("evolution", "q_learning", "random")
FASTER, LOST = 0.05, 0.5  # a share of the latency that is saved, and points of accuracy
OPERATIONS = ("none", "skip_connect")  # that are no layers on the way


@dataclass(frozen=True)
class Plan:
    """weights: lambda, with 0 as the control; that of the claim is the one that `tuned_on`, a seed of its own, finds best."""

    weights: tuple[float, ...] = (0.0, 0.03, 0.1, 0.3, 1.0)
    evaluations: int = 300
    seeds: int = 10
    tuned_on: int = 1000
    minutes: str = "about a minute on two idle cores"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "weights": list(self.weights)}


@lru_cache(maxsize=1)
def _score() -> recipe.Topology:
    features, expert = recipe.nasbench201_cells(space_of(nasbench201()))
    return recipe.topology(features, [expert], Random(0))


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    seeds = [*range(plan.seeds), plan.tuned_on]
    jobs = [
        Job(f"{name} {weight} {seed}", search, (plan, name, weight, seed))
        for name in STRATEGIES
        for weight in plan.weights
        for seed in seeds
    ]
    with Workers(workers) as pool:
        found = pool.run(jobs, folder, progress, f"{len(jobs)} searches")
    table, score = benchmark("nasbench201 with latencies"), _score()
    scores = np.array([score(table.space.from_indices(row.tolist())) for row in table.rows])
    expert = score(recipe.nasbench201_cells(space_of(nasbench201()))[1])
    return {
        "jobs": found,
        "above_expert": float((scores > expert + 1e-12).mean()),
        "as_expert": int((np.abs(scores - expert) < 1e-12).sum()),
    }


def search(plan: Plan, name: str, weight: float, seed: int) -> dict[str, float]:
    """What the guided reward picks after the search: final accuracy, depth in layers, latencies."""
    table, objective = benchmark("nasbench201 with latencies"), Objective("guided")
    strategy: Any = {
        "evolution": RegularizedEvolution(objective, population_size=30),
        "q_learning": QLearning(objective, rate=0.1, evaluations=plan.evaluations),
        "random": RandomSearch(),
    }[name]
    evaluate = recipe.guided(table, _score(), weight=weight, metric=SIGNAL, scale=100)
    trials, _ = searched(strategy, table.space, evaluate, plan.evaluations, seed)
    best = max(trials, key=lambda trial: trial.metrics["guided"])
    return {
        "accuracy": best.metrics[TRUTH], "signal": best.metrics[SIGNAL], "topology": best.metrics["topology"], "depth": depth(best.arch),
        **{device: best.metrics[device] for device in DEVICES},
    }  # fmt: skip


def depth(arch: Any) -> float:
    """Layers on the longest way through a NAS-Bench-201 cell; 0 where there is none."""
    longest = {0: 0.0}
    for node in (1, 2, 3):
        ways = [
            longest[a] + (arch[f"edge{a}{node}"] not in OPERATIONS)
            for a in range(node)
            if a in longest and arch[f"edge{a}{node}"] != "none"
        ]
        if ways:
            longest[node] = max(ways)
    return longest.get(3, 0.0)


def section_of(results: dict[str, Any]) -> Section:
    about = (
        f"NAS-Bench-201: reward = 12-epoch accuracy / 100 + lambda * F, F learned from the residual cell and scaled to [0, 1] over random "
        f"cells; {results['plan']['evaluations']} evaluations, {results['plan']['seeds']} seeds, 95 % intervals bootstrapped over them. "
        "The "
        "paper's full text was not at hand and no code of it exists: this is guidance after IRLAS, not a reproduction.",
        f"{100 * results['above_expert']:.2f} % of all cells have a higher F than the expert; {results['as_expert']} have the same.",
    )
    claims = (
        _faster(results),
        not_testable("CIFAR-10 error 2.60 %, ImageNet 75.28 % top-1", "abstract", "needs their training"),
    )
    return section("irlas", "Topology guidance after IRLAS (Guo et al., 2019)", results, about, claims, (_picks(results),))


def _values(results: dict[str, Any], name: str, weight: float, key: str) -> np.ndarray:
    """(seeds,)"""
    return np.array([results["jobs"][f"{name} {weight} {seed}"][key] for seed in range(results["plan"]["seeds"])])


def _faster(results: dict[str, Any]) -> Claim:
    """Decided on the mean of the latencies that are measured, by seed: neither on the depth nor on the device that suits it best."""
    tuned = _tuned(results["plan"], results["jobs"])
    plain = {key: _values(results, "evolution", 0.0, key) for key in ("accuracy", "depth", *DEVICES)}
    guided = {key: _values(results, "evolution", tuned, key) for key in plain}
    saved = {key: (plain[key] - guided[key]) / plain[key].mean() for key in ("depth", *DEVICES)}  # (seeds,), a share of the plain mean
    over_devices = bootstrap(np.mean([saved[device] for device in DEVICES], axis=0).tolist())
    lost = bootstrap((guided["accuracy"] - plain["accuracy"]).tolist())
    each = ", ".join(f"{key} {bootstrap(values.tolist()).text(0, scale=100, unit=' %')}" for key, values in saved.items())
    return claim(
        f"Guidance finds networks that are at least {percent(FASTER, 0)} faster, in the mean over {len(DEVICES)} devices, and lose at "
        f"most {LOST} "
        "points: both whole intervals (the bars are ours)",
        "2-4x faster than most networks found by search [abstract]",
        f"lambda = {tuned} (chosen on another seed): latency saved {over_devices.text(1, scale=100, unit=' %')}; accuracy "
        f"{lost.text(sign=True)} "
        f"points; by itself: {each}",
        f"the same lambda: accuracy {bootstrap(_values(results, 'random', tuned, 'accuracy').tolist()).text()}, "
        f"depth {bootstrap(_values(results, 'random', tuned, 'depth').tolist()).text()}",
        at_least(over_devices, FASTER) and at_least(lost, -LOST),
    )


def _picks(results: dict[str, Any]) -> Table:
    keys = ("accuracy", "topology", "depth", *DEVICES)
    rows = tuple(
        (name, str(weight), *(bootstrap(_values(results, name, weight, key).tolist()).text() for key in keys))
        for name in STRATEGIES
        for weight in results["plan"]["weights"]
    )
    title = "What each search picks, evolution of population 30, Q-learning of BlockQNN, random search"
    return Table(title, ("search", "lambda", "test accuracy", "F", "depth", *DEVICES), rows)


def _tuned(plan: dict[str, Any], jobs: dict[str, Any]) -> float:
    """The largest weight that costs at most half a point of the signal on the seed that is for nothing else."""
    seed, weights = plan["tuned_on"], plan["weights"]
    plain = jobs[f"evolution 0.0 {seed}"]["signal"]
    return max(weight for weight in weights if jobs[f"evolution {weight} {seed}"]["signal"] >= plain - 0.5)


def _plan(quick: bool) -> Plan:
    return Plan((0.0, 0.1), 40, 2, minutes="seconds") if quick else Plan()


EXPERIMENT = Experiment(("irlas",), _plan, measure, section_of)
