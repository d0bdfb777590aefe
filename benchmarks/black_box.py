"""`default` against what people pick today, on tables, devices and objectives: those it was made on, and those it was not.

    python benchmarks/black_box.py [--only QUESTION] [--seeds 50] [--workers N] [--pyglove PYTHON] [--kept] [--quick]

Every search is kept in benchmarks/work/black_box-HASH/, each once: started again, the benchmark goes on, with as many workers as are asked
for then. --only runs the searches of one question, and writes nothing else; --kept tells of the seeds that all strategies of a question
have finished, and searches no more. PyGlove is no dependency: its evolution plays where --pyglove names an interpreter that has it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
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
from niwaki.run.statistics import bootstrap_of
from niwaki.run.strategies import strategy_named
from niwaki.run.workers import Job
from niwaki.space.architecture import Architecture
from niwaki.strategy.evolution import RegularizedEvolution
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
    "seen": "looked at before `default` was last changed, nothing was chosen by it",
    "held out": "no search of it was looked at before that (on NAS-Bench-201, how far counts of options explain a latency was, of all devices)",
}


PEERS = ("optuna-tpe", "evolution", "random", "macs", "params")
WITH_PROCESS = ("optuna-tpe", "one-hot-gp", *PEERS[1:])
WITHOUT_LIMIT = (*WITH_PROCESS, "pyglove-evolution")
TWO = ("optuna-nsga2", "optuna-tpe", "nsga2", "random", "macs", "params")
SAMPLED = ("one-hot-gp", "evolution", "random", "macs", "params")


@dataclass(frozen=True)
class Asked:
    """One question of this benchmark. kind: whether `default` was made while looking at it; rivals: who else plays it. strict: whether it is
    to be a quarter and a fifth of TPE's regret, all seeds but a twentieth without any at 150, and never behind the plain Gaussian process;
    elsewhere .4 and a quarter."""

    name: str
    kind: str
    tables: tuple[str, ...]
    objectives: tuple[str, ...]
    evaluations: int = 100
    limits: tuple[str, ...] = ()
    report: str | None = None
    rivals: tuple[str, ...] = PEERS
    strict: bool = False


def _limited(device: str, most: float, kind: str) -> Asked:
    return Asked(f"nb201 accuracy, {device}", kind, BOTH, (ACCURACY,), 150, (f"{device}<={most:g}",), rivals=WITH_PROCESS, strict=True)


BOTH = (NB201, NB201_MS)
QUESTIONS = (
    Asked("nb201 accuracy", "tuned", (NB201,), (ACCURACY,), 150, rivals=WITHOUT_LIMIT, strict=True),
    Asked("macro accuracy", "seen", (MACRO,), ("mean_acc",), 150, rivals=WITHOUT_LIMIT, strict=True),
    Asked("nb201 12-epoch signal", "seen", (NB201,), (SIGNAL,), 150, report=ACCURACY),
    _limited("pixel3", 8, "tuned"),
    _limited("raspi4", 20, "tuned"),
    _limited("eyeriss", 4.9, "seen"),
    _limited("gold_6226", 8.5, "tuned"),
    _limited("silver_4114", 15.8, "tuned"),
    _limited("2080ti_1", 7, "held out"),
    Asked("nb201 accuracy and pixel3", "seen", BOTH, (ACCURACY, "pixel3"), 200, rivals=TWO),
    Asked("nb201 accuracy and 2080ti_32", "seen", BOTH, (ACCURACY, "2080ti_32"), 200, rivals=TWO),
    Asked("nb201 raspi4", "tuned", BOTH, ("raspi4",)),
    Asked("nb201 titanx_1", "seen", BOTH, ("titanx_1",)),
    Asked("nb201 samsung_a50", "seen", BOTH, ("samsung_a50",)),
    Asked("nb201 essential_ph_1", "seen", BOTH, ("essential_ph_1",)),
    Asked("nb201 1080ti_32", "held out", BOTH, ("1080ti_32",)),
    Asked("nb201 training accuracy", "held out", (NB201,), ("cifar10_train_acc_200ep",)),
    Asked("macro one run", "seen", (MACRO,), ("test_acc[1]",), report="mean_acc"),
    Asked("fbnet pixel3", "seen", (FBNET,), ("lat_pixel3",), rivals=SAMPLED),
    Asked("fbnet 2080ti_32", "held out", (FBNET,), ("lat_2080ti_32",), rivals=SAMPLED),
    Asked("ofa v100_32", "seen", (OFA,), ("lat_v100_32",), rivals=SAMPLED),
    Asked("ofa titan_rtx_1", "held out", (OFA,), ("lat_titan_rtx_1",), rivals=SAMPLED),
)


# --- who plays ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OneHotGP:
    """The plain peer: a Gaussian process with an RBF kernel on the one-hot options, standardised values, length and noise by marginal
    likelihood, expected improvement over all that is left; 10 random starts. A limit has a process of its own, and improvement counts by the
    probability that it is kept (Gardner et al. 2014). Nothing of it is shared with `default`."""

    objective: Objective
    starts: int = 10
    name: str = "one-hot-gp"

    def init(self, space: SearchSpace) -> tuple[SearchSpace, list[int], list[list[float]]]:
        return space, [], []

    def ask(self, state: Any, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        space, told, values = state
        rows, points = _one_hot(space)
        free = np.ones(len(rows), dtype=bool)
        free[told] = False
        if len(told) < self.starts:
            place = rng.choice(np.flatnonzero(free).tolist())
        else:
            place = int(np.argmax(np.where(free, self._promise(points, told, np.array(values)), -np.inf)))
        return [space.from_indices(rows[place].tolist())]

    def tell(self, state: Any, trials: Sequence[Trial]) -> Any:
        space, told, values = state
        places = {row.tobytes(): at for at, row in enumerate(_one_hot(space)[0])}
        rows = np.array(space.indices([trial.arch for trial in trials]), dtype=np.int32)
        limits = self.objective.subject_to
        seen = [[self.objective.quality(trial.metrics), *(limit.ratio(trial.metrics) for limit in limits)] for trial in trials]
        return space, told + [places[row.tobytes()] for row in rows], values + seen

    @staticmethod
    def _promise(points: np.ndarray, told: Sequence[int], values: np.ndarray) -> np.ndarray:
        """(N,): expected improvement times the probability of each limit. values: (n, 1 + limits), quality and shares of the limits."""
        apart = _apart(points[told], points)
        kept = (values[:, 1:] <= 1).all(axis=1)
        promise = np.ones(len(points))  # first of all, something that keeps them
        if kept.any():
            mean, deviation, _ = _believed(apart, told, values[:, 0])
            scaled = (mean - values[kept, 0].max()) / deviation
            promise = deviation * (scaled * _cdf(scaled) + np.exp(-0.5 * scaled**2) / math.sqrt(2 * math.pi))
        for shares in values[:, 1:].T:
            mean, deviation, noise = _believed(apart, told, shares)
            promise = promise * _cdf((1 - mean) / np.hypot(deviation, noise))
        return promise

    def save(self, state: Any) -> Any:
        raise NotImplementedError

    def load(self, space: Any, content: Any, arrays: Any) -> Any:
        raise NotImplementedError


@lru_cache(maxsize=2)
def _one_hot(space: SearchSpace) -> tuple[np.ndarray, np.ndarray]:
    """int32 (N, decisions) and float32 (N, options of all decisions)."""
    rows = np.array(space.indices(space.enumerate()), dtype=np.int32)
    return rows, np.concatenate([np.eye(len(d.options), dtype=np.float32)[rows[:, at]] for at, d in enumerate(space.decisions)], axis=1)


def _apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, N): in how many decisions they differ, half their squared distance as one-hot points."""
    return np.rint(a[:1].sum() - a @ b.T).astype(np.intp)


def _believed(apart: np.ndarray, told: Sequence[int], values: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean and deviation (N,) of the process that explains the values (n,) best, and the deviation of its noise, in the values' units."""
    scale = float(values.std()) or 1.0
    y = (values - values.mean()) / scale
    best: tuple[float, float, np.ndarray, Any] = (-math.inf, 0.0, np.zeros(0), None)
    for length in (1.0, 1.5, 2.0, 3.0, 4.0):
        falling = np.exp(-np.arange(apart.max() + 1) / length**2)  # of the number of decisions in which two differ
        for noise in (1e-4, 1e-3, 1e-2, 1e-1):
            factor = np.linalg.cholesky(falling[apart[:, told]] + (noise + 1e-8) * np.eye(len(y)))
            z = np.linalg.solve(factor, y)
            likelihood = -0.5 * z @ z - np.log(np.diag(factor)).sum()
            if likelihood > best[0]:
                best = (likelihood, noise, falling, (factor, z))
    _, noise, falling, (factor, z) = best
    half = np.linalg.inv(factor) @ falling[apart]
    deviation = np.sqrt(np.maximum(1 - np.einsum("ij,ij->j", half, half), 1e-12))
    return values.mean() + scale * (z @ half), scale * deviation, scale * math.sqrt(noise)


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


PYGLOVE = """
import json, sys, time
import pyglove as pg
asked = json.load(sys.stdin)
options, quality = asked["options"], asked["quality"]
evolution = pg.evolution.regularized_evolution(population_size=asked["population"], tournament_size=asked["tournament"], seed=asked["seed"])
space = pg.Dict(**{f"d{at}": pg.oneof(list(range(count))) for at, count in enumerate(options)})
places, began = [], time.process_time()
for example, feedback in pg.sample(space, evolution, num_examples=asked["evaluations"]):
    place = 0
    for at, count in enumerate(options):
        place = place * count + example[f"d{at}"]
    places.append(place)
    feedback(quality[place])
print(json.dumps({"places": places, "cpu_s": time.process_time() - began}))
"""


def by_pyglove(contest: Contest, python: str, seed: int) -> Log:
    """PyGlove's regularized evolution with the settings of ours, in an interpreter that has it; repeats count."""
    [goal] = contest.goals
    table, ours = contest.table, RegularizedEvolution()
    rows = [table.place(arch) for arch in table.space.enumerate()]  # the last decision fastest, as there
    asked = {
        "options": [len(decision.options) for decision in table.space.decisions],
        "quality": goal.values[rows].tolist(),
        "population": ours.population_size,
        "tournament": ours.tournament_size,
        "evaluations": contest.evaluations,
        "seed": seed,
    }
    command = [python, "-W", "ignore", "-c", PYGLOVE]
    answer = json.loads(
        subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    )
    places = [rows[place] for place in answer["places"]]
    return Log(tuple(places), tuple(map(float, range(1, len(places) + 1))), answer["cpu_s"])


def play(contest: Contest, name: str, seed: int, pyglove: str = "") -> Log:
    if name.startswith("pyglove"):
        return by_pyglove(contest, pyglove, seed)
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
        code = hashlib.sha256((code_hash() + Path(__file__).read_text()).encode()).hexdigest()[:16]
        folder = work_folder(Path(scratch) / "run" if given.quick else HERE / "work" / f"black_box-{code}", {})
        try:
            data = (Path(given.shared) / "data").resolve()
            found = played(questions, data, folder, seeds, given.workers, given.pyglove, more=not given.kept)
        finally:
            folder.close()
    if not given.only:
        report(result_of({name: one for name, one in found.items() if one["seeds"]}), about, quick=given.quick)


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="the searches of one question")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--workers", type=int, default=1, help="searches at once; the results do not depend on it, their CPU times may")
    parser.add_argument("--pyglove", metavar="PYTHON", default="", help="an interpreter that has pyglove")
    parser.add_argument("--kept", action="store_true", help="tell of what is there, search no more")
    parser.add_argument(
        "--shared", default=os.environ.get("NIWAKI_SHARED", str(HERE.parent.parent / "shared")), help="the folder above data/"
    )


@lru_cache(maxsize=2)
def _contest(asked: Asked, data: str) -> Contest:
    tables = tuple(str(Path(data) / table) for table in asked.tables)
    return Contest(Question(tables, asked.objectives, asked.limits, report=asked.report, evaluations=asked.evaluations))


def one_search(asked: Asked, data: str, name: str, seed: int, pyglove: str = "") -> dict[str, Any]:
    """What is kept of one search, of one question by one strategy from one seed."""
    contest = _contest(asked, data)
    log = play(contest, name, seed, pyglove)
    return {"cpu_s": log.cpu_s, **contest.outcome(log)}


def played(
    questions: Sequence[Asked], data: Path, folder: Folder, seeds: int, workers: int, pyglove: str, *, more: bool
) -> dict[str, dict[str, Any]]:
    """Question -> the records of all its searches, name -> one record for each seed; and facts of the table."""
    contests = {asked: _contest(asked, str(data)) for asked in questions}

    def plays(asked: Asked, name: str) -> bool:
        return contests[asked].table.network is not None if name in COUNTS else bool(pyglove) if name.startswith("pyglove") else True

    names = {asked: ["default", *(name for name in asked.rivals if plays(asked, name))] for asked in questions}
    jobs = [
        Job(f"{asked.name}/{asked.evaluations}/{name}/{seed}", one_search, (asked, str(data), name, seed, pyglove))
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


def _cell(records: Sequence[Mapping[str, Any]], at: int) -> str:
    regrets = np.array([one["regret"][at - 1] for one in records])
    return f"{regrets.mean():.4f} ± {regrets.std(ddof=1) / math.sqrt(len(regrets)):.4f}"


def _ratio(found: Mapping[str, Any], rivals: Sequence[str], at: int) -> tuple[float, str]:
    """The mean regret of `default` over that of the best of `rivals`, 0 where both are; and the same with its interval, over the seeds."""
    ours, *theirs = (np.array([one["regret"][at - 1] for one in found["records"][name]]) for name in ("default", *rivals))

    def of(places: np.ndarray) -> float:
        mine, least = ours[places].mean(), min(one[places].mean() for one in theirs)
        return float(mine / least) if least > 0 else (0.0 if mine == 0 else math.inf)

    ratio = of(np.arange(len(ours)))
    if math.isinf(ratio) or not ours.any():
        return ratio, "nothing is left of either" if all(not one.any() for one in theirs) else f"{ratio:.3f}"
    return ratio, bootstrap_of(of, len(ours)).text(3)


def _claims(name: str, found: Mapping[str, Any]) -> list[Claim]:
    """Bars are on the ratio of the means, as they were set; its interval stands beside it."""
    asked, records = found["asked"], found["records"]
    about = f"{name} ({asked.kind})"
    rival = "optuna-tpe" if "optuna-tpe" in records else "one-hot-gp"
    what = "hypervolume missing" if found["two"] else "regret"
    bars = {50: 0.25, 100: 0.2} if asked.strict else {50: 0.4, 100: 0.25}
    claims = []
    for at in (at for at in (50, 100, 200) if at <= asked.evaluations):
        ratio, text = _ratio(found, [rival], at)
        most = bars.get(at) if rival == "optuna-tpe" else None
        claims.append(
            Claim(
                f"{about}: {what} of `default` / of {rival}, {at}", f"at most {most}" if most else "", text, ratio <= most if most else None
            )
        )
        if asked.strict:
            ratio, text = _ratio(found, ["one-hot-gp"], at)
            claims.append(Claim(f"{about}: the same / of a plain one-hot Gaussian process, {at}", "at most 1", text, ratio <= 1))
        if "optuna-nsga2" in records:
            claims.append(Claim(f"{about}: the same / of optuna-nsga2, {at}", "", _ratio(found, ["optuna-nsga2"], at)[1], None))
    if sizes := [name for name in COUNTS if name in records]:
        for at in (20, 50):
            text = _ratio(found, sizes, at)[1]
            claims.append(Claim(f"{about}: {what} of `default` / of the better of {' and '.join(sizes)} alone, {at}", "", text, None))
    if asked.strict and asked.evaluations >= 150:
        zero = float(np.mean([run["regret"][149] == 0 for run in records["default"]]))
        claims.append(Claim(f"{about}: seeds without regret, 150", "at least 95 %", f"{zero:.0%}", zero >= 0.95))
    return claims


def result_of(found: Mapping[str, Mapping[str, Any]]) -> Result:
    claims, tables = [], []
    for name, one in found.items():
        claims += _claims(name, one)
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
        f"± is the standard error; intervals (95 %) of ratios are bootstrapped over the seeds, the same for both. {'; '.join(f'{kind}: {what}' for kind, what in KINDS.items())}.",
        "Repeats count as evaluations (those of Optuna and PyGlove do; the others do not). CPU ms: of the search itself, for each evaluation.",
        "`macs` and `params` try the largest first where accuracy counts, the smallest where latency does; they know nothing of a measured limit.",
        "one-hot-gp: a plain Gaussian process, RBF kernel on one-hot options, expected improvement over all that is left, times the probability that a limit is kept, where there is one.",
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
        "python benchmarks/black_box.py --pyglove PYTHON",
        tuple(claims),
        tuple(tables),
        notes,
        figures,
    )


if __name__ == "__main__":
    import black_box  # workers know functions by the name of their module, which a script has not

    black_box.main()
