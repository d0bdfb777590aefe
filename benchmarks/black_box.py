"""`default` against what people pick today, on tables, devices and objectives: those it was made on, and those it was not.

    python benchmarks/black_box.py [--only QUESTION] [--seeds 50] [--workers N] [--kept] [--quick]

Every search is kept in benchmarks/work/black_box-HASH/, each once: started again, the benchmark goes on, with as many workers as are asked
for then. --only runs the searches of one question, and writes nothing else; --kept tells of the seeds that all strategies of a question
have finished, and searches no more.
"""

from __future__ import annotations

import math
import os
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from random import Random
from statistics import NormalDist
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from harness import HERE, Claim, Result, Table, arguments, machine, on_one_thread, report
from jobs import run_jobs, work_folder

from niwaki.objective import Objective
from niwaki.run.bench import code_hash
from niwaki.run.contest import COUNTS, Contest, Question
from niwaki.run.folder import Folder
from niwaki.run.simulate import Log, in_order, simulate
from niwaki.run.strategies import strategy_named
from niwaki.run.workers import Job
from niwaki.space.architecture import Architecture
from niwaki.strategy.strategy import SearchSpace
from niwaki.trial import Trial

SEEDS = 50
COUNTS_SHOWN = (20, 50, 100, 150, 200)
NB201, NB201_MS, MACRO = (
    "nasbench201/nasbench201_cifar10.npz",
    "nasbench201/nasbench201_latency_ms.npz",
    "nasbench_macro/nasbench_macro_cifar10.npz",
)
FBNET, OFA = "latency_spaces/fbnet_5000.npz", "latency_spaces/ofa_5000.npz"
ACCURACY, SIGNAL = "cifar10_test_acc_200ep", "cifar10_valid_acc_12ep"
KINDS = {
    "tuned": "settings of `default` were chosen while looking at it",
    "seen": "looked at once, nothing was chosen by it",
    "held out": "never looked at before",
}


@dataclass(frozen=True)
class Asked:
    """One question of this benchmark. kind: whether `default` was made while looking at it; rivals: who else plays it."""

    name: str
    kind: str
    tables: tuple[str, ...]
    objectives: tuple[str, ...]
    evaluations: int = 100
    limits: tuple[str, ...] = ()
    report: str | None = None
    rivals: tuple[str, ...] = ("optuna-tpe", "evolution", "random", "macs", "params")


BOTH = (NB201, NB201_MS)
QUESTIONS = (
    Asked(
        "nb201 accuracy", "tuned", (NB201,), (ACCURACY,), 150, rivals=("optuna-tpe", "one-hot-gp", "evolution", "random", "macs", "params")
    ),
    Asked("macro accuracy", "seen", (MACRO,), ("mean_acc",), 150),
    Asked("nb201 12-epoch signal", "held out", (NB201,), (SIGNAL,), 150, report=ACCURACY),
    Asked("nb201 accuracy, pixel3", "tuned", BOTH, (ACCURACY,), limits=("pixel3<=8",)),
    Asked("nb201 accuracy, raspi4", "tuned", BOTH, (ACCURACY,), limits=("raspi4<=20",)),
    Asked("nb201 accuracy, eyeriss", "seen", BOTH, (ACCURACY,), limits=("eyeriss<=4.9",)),
    Asked("nb201 accuracy, gold_6226", "seen", BOTH, (ACCURACY,), limits=("gold_6226<=8.5",)),
    Asked(
        "nb201 accuracy and pixel3", "held out", BOTH, (ACCURACY, "pixel3"), 200, rivals=("optuna-nsga2", "optuna-tpe", "nsga2", "random")
    ),
    Asked(
        "nb201 accuracy and 2080ti_32",
        "held out",
        BOTH,
        (ACCURACY, "2080ti_32"),
        200,
        rivals=("optuna-nsga2", "optuna-tpe", "nsga2", "random"),
    ),
    Asked("nb201 raspi4", "tuned", BOTH, ("raspi4",)),
    Asked("nb201 titanx_1", "held out", BOTH, ("titanx_1",)),
    Asked("nb201 samsung_a50", "held out", BOTH, ("samsung_a50",)),
    Asked("macro one run", "seen", (MACRO,), ("test_acc[1]",), report="mean_acc"),
    Asked("fbnet pixel3", "held out", (FBNET,), ("lat_pixel3",), rivals=("one-hot-gp", "evolution", "random", "macs")),
    Asked("fbnet 2080ti_32", "held out", (FBNET,), ("lat_2080ti_32",), rivals=("one-hot-gp", "evolution", "random", "macs")),
    Asked("ofa v100_32", "held out", (OFA,), ("lat_v100_32",), rivals=("one-hot-gp", "evolution", "random")),
    Asked("ofa titan_rtx_1", "held out", (OFA,), ("lat_titan_rtx_1",), rivals=("one-hot-gp", "evolution", "random")),
)


# --- who plays ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneHotGP:
    """The plain peer: a Gaussian process with an RBF kernel on the one-hot options, standardised values, length and noise by marginal
    likelihood, expected improvement over all that is left; 10 random starts. Nothing of it is shared with `default`."""

    objective: Objective
    starts: int = 10
    name: str = "one-hot-gp"

    def init(self, space: SearchSpace) -> tuple[SearchSpace, list[int], list[float]]:
        return space, [], []

    def ask(self, state: Any, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        space, told, values = state
        rows, points = _one_hot(space)
        free = np.ones(len(rows), dtype=bool)
        free[told] = False
        if len(told) < self.starts:
            place = rng.choice(np.flatnonzero(free).tolist())
        else:
            place = int(np.argmax(np.where(free, self._improvement(points, told, values), -np.inf)))
        return [space.from_indices(rows[place].tolist())]

    def tell(self, state: Any, trials: Sequence[Trial]) -> Any:
        space, told, values = state
        places = {row.tobytes(): at for at, row in enumerate(_one_hot(space)[0])}
        rows = np.array(space.indices([trial.arch for trial in trials]), dtype=np.int32)
        return space, told + [places[row.tobytes()] for row in rows], values + [self.objective.quality(trial.metrics) for trial in trials]

    @staticmethod
    def _improvement(points: np.ndarray, told: Sequence[int], values: Sequence[float]) -> np.ndarray:
        y = np.array(values)
        y = (y - y.mean()) / (y.std() or 1.0)
        x = points[told]
        squared = _squared(x, x)
        best: tuple[float, float, Any] = (-math.inf, 0.0, None)
        for length in (1.0, 1.5, 2.0, 3.0, 4.0):
            for noise in (1e-4, 1e-3, 1e-2, 1e-1):
                factor = np.linalg.cholesky(np.exp(-squared / (2 * length**2)) + (noise + 1e-8) * np.eye(len(y)))
                z = np.linalg.solve(factor, y)
                likelihood = -0.5 * z @ z - np.log(np.diag(factor)).sum()
                if likelihood > best[0]:
                    best = (likelihood, length, (factor, z))
        _, length, (factor, z) = best
        half = np.linalg.solve(factor, np.exp(-_squared(x, points) / (2 * length**2)))
        mean, deviation = z @ half, np.sqrt(np.maximum(1 - (half**2).sum(axis=0), 1e-12))
        scaled = (mean - y.max()) / deviation
        return deviation * (scaled * _cdf(scaled) + np.exp(-0.5 * scaled**2) / math.sqrt(2 * math.pi))

    def save(self, state: Any) -> Any:
        raise NotImplementedError

    def load(self, space: Any, content: Any, arrays: Any) -> Any:
        raise NotImplementedError


@lru_cache(maxsize=2)
def _one_hot(space: SearchSpace) -> tuple[np.ndarray, np.ndarray]:
    rows = np.array(space.indices(space.enumerate()), dtype=np.int32)
    return rows, np.concatenate([np.eye(len(d.options))[rows[:, at]] for at, d in enumerate(space.decisions)], axis=1)


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0)


_GRID = np.linspace(-8, 8, 16_001)
_NORMAL = np.array([NormalDist().cdf(x) for x in _GRID])


def _cdf(x: np.ndarray) -> np.ndarray:
    return np.interp(x, _GRID, _NORMAL)


def by_optuna(contest: Contest, sampler: str, seed: int) -> Log:
    """Optuna as its documentation has it: categorical parameters, its defaults, limits as constraints; repeats count."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    limits = contest.measured
    options: dict[str, Any] = {"seed": seed}
    if limits:
        options["constraints_func"] = lambda trial: trial.user_attrs["over"]
    made = {"optuna-tpe": optuna.samplers.TPESampler, "optuna-nsga2": optuna.samplers.NSGAIISampler}[sampler](**options)
    study = optuna.create_study(directions=["maximize"] * len(contest.goals), sampler=made)
    places, cpu_s = [], 0.0
    for _ in range(contest.evaluations):
        began = time.process_time()
        trial = study.ask()
        row = [trial.suggest_categorical(d.name, list(range(len(d.options)))) for d in contest.table.space.decisions]
        cpu_s += time.process_time() - began
        place = contest.table.place(contest.table.space.from_indices(row))
        if limits:
            trial.set_user_attr("over", [float(contest.table.column(limit.metric)[place] - limit.target) for limit in limits])
        began = time.process_time()
        study.tell(trial, [float(goal.values[place]) for goal in contest.goals])
        cpu_s += time.process_time() - began
        places.append(place)
    return Log(tuple(places), tuple(map(float, range(1, len(places) + 1))), cpu_s)


def play(contest: Contest, name: str, seed: int) -> Log:
    if name.startswith("optuna"):
        return by_optuna(contest, name, seed)
    if name in COUNTS:
        return in_order(contest._by_count(name, seed), lambda place: 1.0)
    strategy = OneHotGP(contest.objectives[0]) if name == "one-hot-gp" else strategy_named(name, contest.objectives)
    return simulate(strategy, contest.space, contest._evaluate, evaluations=contest.evaluations, seed=seed)


# --- searches ----------------------------------------------------------------------------------------------------------------------


def main() -> None:
    given = arguments(__doc__.splitlines()[0], _options)
    on_one_thread()
    about = machine(threads=1, seed=0)
    questions = [one for one in QUESTIONS if given.only in ("", one.name)]
    if not questions:
        raise SystemExit(f"there is no question {given.only!r}; there are {', '.join(one.name for one in QUESTIONS)}")
    if given.quick:
        questions = [replace(one, evaluations=20) for one in questions]
    seeds = 2 if given.quick else given.seeds
    with TemporaryDirectory() as scratch:
        folder = work_folder(Path(scratch) / "run" if given.quick else HERE / "work" / f"black_box-{code_hash()}", {})
        try:
            found = played(questions, (Path(given.shared) / "data").resolve(), folder, seeds, given.workers, more=not given.kept)
        finally:
            folder.close()
    if not given.only:
        report(result_of({name: one for name, one in found.items() if one["seeds"]}), about, quick=given.quick)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="the searches of one question")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=1, help="searches at once; the results do not depend on it, their CPU times may")
    parser.add_argument("--kept", action="store_true", help="tell of what is there, search no more")
    parser.add_argument(
        "--shared", default=os.environ.get("NIWAKI_SHARED", str(HERE.parent.parent / "shared")), help="the folder above data/"
    )


@lru_cache(maxsize=2)
def _contest(asked: Asked, data: str) -> Contest:
    tables = tuple(str(Path(data) / table) for table in asked.tables)
    return Contest(Question(tables, asked.objectives, asked.limits, report=asked.report, evaluations=asked.evaluations))


def one_search(asked: Asked, data: str, name: str, seed: int) -> dict[str, Any]:
    """What is kept of one search, of one question by one strategy from one seed."""
    contest = _contest(asked, data)
    log = play(contest, name, seed)
    return {"cpu_s": log.cpu_s, **contest.outcome(log)}


def played(questions: Sequence[Asked], data: Path, folder: Folder, seeds: int, workers: int, *, more: bool) -> dict[str, dict[str, Any]]:
    """Question -> the records of all its searches, name -> one record for each seed; and facts of the table."""
    contests = {asked: _contest(asked, str(data)) for asked in questions}
    names = {asked: ["default", *(name for name in asked.rivals if name not in COUNTS or contests[asked].table.network is not None)]
             for asked in questions}  # fmt: skip
    jobs = [
        Job(f"{asked.name}/{asked.evaluations}/{name}/{seed}", one_search, (asked, str(data), name, seed))
        for asked in questions
        for seed in range(seeds)
        for name in names[asked]
    ]
    results = (
        run_jobs(jobs, folder, workers) if more else {job.name: found for job in jobs if (found := folder.store.fact(f"result {job.name}"))}
    )
    told = {}
    for asked in questions:
        records: dict[str, list[dict[str, Any]]] = {}
        for name in names[asked]:
            runs = (results.get(f"{asked.name}/{asked.evaluations}/{name}/{seed}") for seed in range(seeds))
            records[name] = list(takewhile(bool, runs))
        done = min(map(len, records.values()))
        facts = contests[asked].facts()
        told[asked.name] = {
            "asked": asked,
            "records": {name: runs[:done] for name, runs in records.items()},
            "seeds": done,
            "feasible": facts["feasible"] / facts["allowed"],
            "two": len(asked.objectives) > 1,
        }
    return told


# --- what is told --------------------------------------------------------------------------------------------------------------------


def _mean(records: Sequence[Mapping[str, Any]], at: int) -> float:
    return float(np.mean([one["regret"][at - 1] for one in records]))


def _cell(records: Sequence[Mapping[str, Any]], at: int) -> str:
    regrets = np.array([one["regret"][at - 1] for one in records])
    return f"{regrets.mean():.4f} ± {regrets.std(ddof=1) / math.sqrt(len(regrets)):.4f}"


def _ratio(found: Mapping[str, Any], rival: str, at: int) -> float:
    theirs, ours = _mean(found["records"][rival], at), _mean(found["records"]["default"], at)
    return ours / theirs if theirs > 0 else (0.0 if ours == 0 else math.inf)


def result_of(found: Mapping[str, Mapping[str, Any]]) -> Result:
    claims, tables = [], []
    first = found["nb201 accuracy"]
    counts = [at for at in COUNTS_SHOWN if at <= first["asked"].evaluations]
    for at, most in ((50, 0.25), (100, 0.2)):
        if at in counts:
            ratio = _ratio(first, "optuna-tpe", at)
            claims.append(
                Claim(
                    f"NAS-Bench-201 accuracy: regret of `default` / of Optuna's TPE, {at}", f"at most {most}", f"{ratio:.3f}", ratio <= most
                )
            )
            ratio = _ratio(first, "one-hot-gp", at)
            claims.append(Claim(f"the same / of a plain one-hot Gaussian process, {at}", "at most 1", f"{ratio:.3f}", ratio <= 1))
    if 150 in counts:
        zero = float(np.mean([one["regret"][149] == 0 for one in first["records"]["default"]]))
        claims.append(Claim("NAS-Bench-201 accuracy: seeds without regret, 150", "at least 95 %", f"{zero:.0%}", zero >= 0.95))
    for name, one in found.items():
        rival = "optuna-tpe" if "optuna-tpe" in one["records"] else "one-hot-gp"
        if name == "nb201 accuracy":
            continue
        for at, most in ((50, 0.4), (100, 0.25)):
            if at <= one["asked"].evaluations:
                ratio = _ratio(one, rival, at)
                promised, holds = (f"at most {most}", ratio <= most) if rival == "optuna-tpe" else ("", None)
                what = "hypervolume missing" if one["two"] else "regret"
                claims.append(
                    Claim(f"{name} ({one['asked'].kind}): {what} of `default` / of {rival}, {at}", promised, f"{ratio:.3f}", holds)
                )
    for name, one in found.items():
        asked, records = one["asked"], one["records"]
        shown = [at for at in COUNTS_SHOWN if at <= asked.evaluations]
        limited = bool(asked.limits)
        rows = []
        for who, runs in records.items():
            cells = [_cell(runs, at) for at in shown]
            cells.append(f"{np.mean([r['regret'][shown[-1] - 1] == 0 for r in runs]):.0%}")
            if limited:
                cells.append(f"{np.mean([np.mean(r['within']) for r in runs]):.0%}")
            cpu = [r["cpu_s"] / len(r["within"]) * 1000 for r in runs]
            rows.append((who, *cells, f"{np.mean(cpu):.2f}"))
        what = (
            "hypervolume missing to the whole front, objectives scaled to 0..1"
            if one["two"]
            else f"regret in {asked.report or asked.objectives[0]}"
        )
        note = f"; {', '.join(asked.limits)}, which {one['feasible']:.0%} keep" if limited else ""
        columns = ("strategy", *map(str, shown), f"none left at {shown[-1]}", *(["within"] if limited else []), "CPU ms")
        signal = f", searched by {asked.objectives[0]}" if asked.report else ""
        tables.append(Table(f"{name} ({asked.kind}, {one['seeds']} seeds): mean {what}{signal}{note}", columns, tuple(rows)))
    notes = (
        f"± is the standard error. {'; '.join(f'{kind}: {what}' for kind, what in KINDS.items())}.",
        "Repeats count as evaluations (Optuna's samplers repeat; the others do not). CPU ms: of the search itself, for each evaluation.",
        "`macs` and `params` try the largest first where accuracy counts, the smallest where latency does.",
        "one-hot-gp: a plain Gaussian process, RBF kernel on one-hot options, expected improvement over all that is left.",
        "The tables of FBNet and OFA hold 5,000 of 10^21 and 10^19 architectures: searches choose among these rows, which Optuna's samplers cannot.",
    )
    figures = {
        name: {who: {str(at): [r["regret"][at - 1] for r in runs] for at in COUNTS_SHOWN if at <= one["asked"].evaluations}
               for who, runs in one["records"].items()}
        for name, one in found.items()
    }  # fmt: skip
    return Result(
        "black_box",
        "11. Black-box search at few evaluations",
        "python benchmarks/black_box.py",
        tuple(claims),
        tuple(tables),
        notes,
        figures,
    )


if __name__ == "__main__":
    import black_box  # workers know functions by the name of their module, which a script has not

    black_box.main()
