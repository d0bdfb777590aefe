"""Topology guidance after IRLAS on NAS-Bench-201: accuracy and speed of what a search finds, with the guidance and without."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

from niwaki.evaluate.table import Table as Benchmark
from niwaki.evaluate.table import load_table
from niwaki.net.place import space_of
from niwaki.objective import Objective
from niwaki.recipe import irlas as recipe
from niwaki.run.claims import Claim, Section, Table, Verdict
from niwaki.run.experiments.data import shared_data
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import SIGNAL, TRUTH, searched
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
def _benchmark() -> Benchmark:
    files = [shared_data("nasbench201", name) for name in ("nasbench201_cifar10.npz", "nasbench201_latency_ms.npz")]
    return load_table(files)


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
    table, score = _benchmark(), _score()
    scores = np.array([score(table.space.from_indices(row.tolist())) for row in table.rows])
    expert = score(recipe.nasbench201_cells(space_of(nasbench201()))[1])
    return {
        "jobs": found,
        "above_expert": float((scores > expert + 1e-12).mean()),
        "as_expert": int((np.abs(scores - expert) < 1e-12).sum()),
    }


def search(plan: Plan, name: str, weight: float, seed: int) -> dict[str, float]:
    """What the guided reward picks after the search: final accuracy, depth in layers, latencies."""
    table, objective = _benchmark(), Objective("guided")
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
    plan, jobs, quick = results["plan"], results["jobs"], results["quick"]
    weights, seeds = plan["weights"], range(plan["seeds"])

    def verdict(holds: bool) -> Verdict:
        return "not decided (quick)" if quick else "holds" if holds else "does not hold"

    def values(name: str, weight: float, key: str) -> list[float]:
        return [jobs[f"{name} {weight} {seed}"][key] for seed in seeds]

    def interval(given: list[float]) -> str:
        one = bootstrap(given)
        return f"{one.mean:.2f} ({one.low:.2f} to {one.high:.2f})"

    tuned = _tuned(plan, jobs)
    plain_accuracy, accuracy = (float(np.mean(values("evolution", weight, "accuracy"))) for weight in (0.0, tuned))
    saved = {key: 1 - np.mean(values("evolution", tuned, key)) / np.mean(values("evolution", 0.0, key)) for key in ("depth", *DEVICES)}
    holds = bool(abs(plain_accuracy - accuracy) <= 0.5 and max(saved.values()) >= 0.05)
    rows = tuple(
        (name, str(weight), *(interval(values(name, weight, key)) for key in ("accuracy", "topology", "depth", *DEVICES)))
        for name in STRATEGIES for weight in weights
    )  # fmt: skip
    return Section(
        "irlas", "Topology guidance after IRLAS (Guo et al., 2019)",
        (
            f"NAS-Bench-201: reward = 12-epoch accuracy / 100 + lambda * F, F learned from the residual cell and scaled to [0, 1] over random cells; {plan['evaluations']} evaluations, {plan['seeds']} seeds, "
            f"95 % intervals bootstrapped over them. The paper's full text was not at hand and no code of it exists: this is guidance after IRLAS, not a reproduction.",
            f"{100 * results['above_expert']:.2f} % of all cells have a higher F than the expert; {results['as_expert']} have the same.",
        ),
        (
            Claim("Guidance finds faster networks of equal accuracy", "2-4x faster than most networks found by search [abstract]",
                  f"lambda = {tuned} (chosen on another seed): accuracy {accuracy:.2f} against {plain_accuracy:.2f} without; saved: " + ", ".join(f"{key} {100 * value:.0f} %" for key, value in saved.items()),
                  f"the same lambda: accuracy {interval(values('random', tuned, 'accuracy'))}, depth {interval(values('random', tuned, 'depth'))}", verdict(holds)),
            Claim("CIFAR-10 error 2.60 %, ImageNet 75.28 % top-1", "abstract", "needs their training", "-", "not testable here"),
        ),
        (Table("What each search picks, evolution of population 30, Q-learning of BlockQNN, random search", ("search", "lambda", "test accuracy", "F", "depth", *DEVICES), rows),),
        quick=quick,
    )  # fmt: skip


def _tuned(plan: dict[str, Any], jobs: dict[str, Any]) -> float:
    """The largest weight that costs at most half a point of the signal on the seed that is for nothing else."""
    seed, weights = plan["tuned_on"], plan["weights"]
    plain = jobs[f"evolution 0.0 {seed}"]["signal"]
    return max(weight for weight in weights if jobs[f"evolution {weight} {seed}"]["signal"] >= plain - 0.5)


def _plan(quick: bool) -> Plan:
    return Plan((0.0, 0.1), 40, 2, minutes="seconds") if quick else Plan()


EXPERIMENT = Experiment(("irlas",), _plan, measure, section_of)
