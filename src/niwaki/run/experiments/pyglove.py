"""PyGlove's separation of program, space and algorithm: one space under every strategy, and what each finds on NAS-Bench-201."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from niwaki.objective import Objective
from niwaki.run.claims import Claim, Section, Table, Verdict
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import TRUTH, benchmark, searched
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
    plan, found, quick = results["plan"], results["found"], results["quick"]
    random = np.array(found["random"])
    wins = {name: int((np.array(values) > random).sum()) for name, values in found.items() if name != "random"}
    ties = {name: int((np.array(values) == random).sum()) for name, values in found.items() if name != "random"}
    behind = [name for name, count in wins.items() if count + ties[name] < plan["wins"]]
    verdict: Verdict = "not decided (quick)" if quick else "does not hold" if behind else "holds"

    def regret(values: list[float]) -> str:
        one = bootstrap([results["best"] - value for value in values])
        return f"{one.mean:.3f} ({one.low:.3f} to {one.high:.3f})"

    rows = [
        (name, regret(values), "-" if name == "random" else f"{wins[name]} won, {ties[name]} even of {plan['seeds']}")
        for name, values in found.items()
    ]
    elsewhere = ", ".join(f"{name} in {where}" for name, where in ELSEWHERE.items())
    return Section(
        "pyglove", "One space, every algorithm (PyGlove, Peng et al., 2020)",
        (
            f"NAS-Bench-201's space, made once from its description and given to every strategy as it is; {plan['evaluations']} evaluations of the 200-epoch test accuracy, {plan['seeds']} seeds, "
            f"repeats counted, every strategy with its defaults (learning rates of policies are those for thousands of samples: 300 are few for them). Others: {elsewhere}. That the same space also runs under "
            f"DMaskingNAS, that flows of search (joint, separate, nested) reach what they should, and that a study killed at trial 20 of 50 ends with the same trials, are tests (tests/test_flows.py).",
        ),
        (
            Claim("One space object, unmodified, runs under every algorithm", "a new algorithm needs setup, propose and feedback alone [repository]", f"{len(found)} strategies here", "one of them", "holds"),
            Claim(f"Each adaptive one finds at least as good as random search in {plan['wins']} of {plan['seeds']} seeds", "qualitative, exact numbers not known [memory]",
                  "all" if not behind else f"not {', '.join(behind)}", f"regret {regret(found['random'])}, exact mean {results['best'] - results['exact']:.3f}", verdict),
        ),
        (Table("Regret of the best, in points", ("strategy", "regret", "against random search with the same seed"), tuple(rows)),),
        quick=quick,
    )  # fmt: skip


def _plan(quick: bool) -> Plan:
    return Plan(("evolution", "reinforce"), 40, 2, 1, "seconds") if quick else Plan()


EXPERIMENT = Experiment(("pyglove",), _plan, measure, section_of)
