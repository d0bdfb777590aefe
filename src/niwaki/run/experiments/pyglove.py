"""PyGlove's separation of program, space and algorithm: one space under every strategy, and what each finds on NAS-Bench-201."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from niwaki.objective import Objective
from niwaki.run.claims import Claim, Section, Table
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import TRUTH, benchmark, searched
from niwaki.run.experiments.verdicts import above, claim, section, sign_test
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import bootstrap, expected_picks
from niwaki.run.strategies import STRATEGIES, strategy_named
from niwaki.run.workers import Job, Workers

NOT_ADAPTIVE = ("random", "exhaustive")
ELSEWHERE = {"nao": "`niwaki reproduce nao`", "optuna-tpe": "`benchmarks/black_box.py`"}  # minutes for each search


@dataclass(frozen=True)
class Plan:
    """strategies: by name, each with its defaults; a win is a best of `evaluations` at least as good as random search's with the same seed."""

    strategies: tuple[str, ...] = tuple(
        name for name in STRATEGIES if name not in (*NOT_ADAPTIVE, *ELSEWHERE) and not name.startswith("optuna")
    )
    evaluations: int = 300
    seeds: int = 10
    wins: int = 7
    minutes: str = "about 5 minutes on two idle cores"

    def to_json(self) -> dict[str, Any]:
        return {**{k: v for k, v in asdict(self).items() if k != "minutes"}, "strategies": list(self.strategies)}


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    names = ("random", *plan.strategies)
    jobs = [Job(f"{name} {seed}", best_of, (plan, name, seed)) for name in names for seed in range(plan.seeds)]
    with Workers(workers) as pool:
        found = pool.run(jobs, folder, progress, f"{len(jobs)} searches")
    values = benchmark("nasbench201").columns[TRUTH]
    exact = float(expected_picks(values, values, plan.evaluations)[-1])
    return {
        "found": {name: [found[f"{name} {seed}"] for seed in range(plan.seeds)] for name in names},
        "best": float(values.max()),
        "exact": exact,
    }


def best_of(plan: Plan, name: str, seed: int) -> float:
    """The best accuracy of a search of the table's own space, which no strategy changes."""
    table = benchmark("nasbench201")
    before = table.space.to_json()
    trials, _ = searched(strategy_named(name, (Objective(TRUTH),), plan.evaluations), table.space, table, plan.evaluations, seed)
    if table.space.to_json() != before:
        raise RuntimeError(f"{name} changed the space")
    return max(trial.metrics[TRUTH] for trial in trials)


def section_of(results: dict[str, Any]) -> Section:
    claims = (_as_good(results), _better(results))
    return section(
        "pyglove", "One space, every algorithm (PyGlove, Peng et al., 2020)", results, _about(results), claims, (_regrets(results),)
    )


def _adaptive(results: dict[str, Any]) -> list[str]:
    return [name for name in results["found"] if name != "random"]


def _gains(results: dict[str, Any], name: str) -> np.ndarray:
    """(seeds,): by how much the best that was found is better than random search's with the same seed."""
    return np.array(results["found"][name]) - np.array(results["found"]["random"])


def _regret(results: dict[str, Any], name: str) -> str:
    return bootstrap([results["best"] - value for value in results["found"][name]]).text(3)


def _random(results: dict[str, Any]) -> str:
    return f"regret {_regret(results, 'random')}, exact mean {results['best'] - results['exact']:.3f}"


def _as_good(results: dict[str, Any]) -> Claim:
    wins, seeds = results["plan"]["wins"], results["plan"]["seeds"]
    behind = [name for name in _adaptive(results) if (_gains(results, name) >= 0).sum() < wins]
    return claim(
        f"Each adaptive strategy finds at least as good as random search, in at least {wins} of {seeds} seeds (the bar; what is even "
        "counts)",
        "qualitative, exact numbers not known [memory]",
        f"{'all' if not behind else 'not ' + ', '.join(behind)}; a coin would win as often with chance {sign_test(wins, seeds - wins):.2f}",
        _random(results),
        not behind,
    )


def _better(results: dict[str, Any]) -> Claim:
    names = _adaptive(results)
    better = [name for name in names if above(bootstrap(_gains(results, name).tolist()))]
    return claim(
        "Each adaptive strategy finds better than random search on average: the whole interval of the paired difference above 0",
        "-",
        f"{len(better)} of {len(names)}: {', '.join(better) or 'none'}",
        _random(results),
        len(better) == len(names),
    )


def _regrets(results: dict[str, Any]) -> Table:
    rows = [("random", _regret(results, "random"), "-", "-")]
    for name in _adaptive(results):
        gains = _gains(results, name)
        even = f"{(gains > 0).sum()} won, {(gains == 0).sum()} even of {len(gains)}"
        rows.append((name, _regret(results, name), bootstrap(gains.tolist()).text(3, sign=True), even))
    columns = ("strategy", "regret", "better than random search by", "with the same seed")
    return Table("Regret of the best, in points", columns, tuple(rows))


def _about(results: dict[str, Any]) -> tuple[str, ...]:
    plan = results["plan"]
    elsewhere = ", ".join(f"{name} in {where}" for name, where in ELSEWHERE.items())
    return (
        f"NAS-Bench-201's space, made once from its description and given to every strategy as it is, {len(results['found'])} of them "
        "here: that it "
        "runs under all of them unmodified is so by construction (a strategy that changed it would end the run) and has no verdict. "
        f"{plan['evaluations']} evaluations of the 200-epoch test accuracy, {plan['seeds']} seeds, repeats counted, every strategy with "
        "its "
        "defaults (learning rates of policies are those for thousands of samples: 300 are few for them). "
        f"Others: {elsewhere}. That the same space also runs under DMaskingNAS, that flows of search (joint, separate, nested) reach "
        "what they "
        "should, and that a study killed at trial 20 of 50 ends with the same trials, are tests (tests/test_flows.py).",
    )


def _plan(quick: bool) -> Plan:
    return Plan(("evolution", "reinforce"), 40, 2, 1, "seconds") if quick else Plan()


EXPERIMENT = Experiment(("pyglove",), _plan, measure, section_of)
