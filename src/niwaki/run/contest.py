"""What a comparison of search methods on a table asks, checked before any work; and one search of one contestant in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from niwaki.cost.count import COSTS
from niwaki.evaluate.listed import Listed
from niwaki.evaluate.table import Table, TableError, load_table
from niwaki.factor.factor import Limit
from niwaki.factor.within import Within, within
from niwaki.net.control import Network
from niwaki.objective import COUNTED, Constraint, Objective, hypervolume, measured, parse_limit
from niwaki.run.model import load_model
from niwaki.run.simulate import Evaluated, Log, in_order, simulate
from niwaki.run.statistics import expected_picks
from niwaki.run.strategies import own_code, strategy_named
from niwaki.space.architecture import Architecture
from niwaki.space.choice import BudgetError
from niwaki.space.space import Space
from niwaki.strategy.strategy import Strategy

COUNTS = ("params", "macs")  # contestants that know nothing but the description: the largest first, or the smallest where that is asked for
PLAIN = "columns"  # the word of --space that takes a table's columns as they stand
SMALLEST = 1e-4  # of the largest hypervolume: as good as none, where regrets are drawn on a logarithmic axis
REFERENCE = (1.1, 1.1)  # of the hypervolume: a tenth of the range beyond the worst, where 0 is the best that is feasible and 1 the worst


RELATION = "[<>=≤≥]"
LIMIT = re.compile(rf"\s*([^<>=≤≥]+{RELATION}+\s*[^\s,<>=≤≥]+(?:\s+(?!and\b)[A-Za-z%]+)?)\s*(,|\band\b|$)")


class BenchError(ValueError):
    """A comparison that cannot be made."""


@dataclass(frozen=True)
class Question:
    """What is compared on which table.

    tables: .npz files. objectives: one or two columns, "-column" for one that is to be small, "+column" for one that is not, though its
    name says so. limits: "pixel3<=4" on a column, known of an architecture once it is evaluated; "macs<=50M" on a count of the
    description, known before. space: the network, in the zoo or `file.py:attr`, or "columns". report: the column in which regret is told,
    where the objective is only a signal of it. seconds: the column of the evaluations' durations; 1 for each, if left out.
    """

    tables: tuple[str, ...]
    objectives: tuple[str, ...]
    limits: tuple[str, ...] = ()
    space: str | None = None
    report: str | None = None
    seconds: str | None = None
    workers: int = 1
    evaluations: int = 200

    def __post_init__(self) -> None:
        if not 1 <= len(self.objectives) <= 2:
            raise BenchError(f"{len(self.objectives)} objectives are given; it is one, or two at once")
        if self.workers < 1 or self.evaluations < 1:
            raise BenchError(f"{self.workers} workers and {self.evaluations} evaluations; there is at least one of each")
        if self.report is not None and len(self.objectives) > 1:
            raise BenchError("what is reported of two objectives is their hypervolume, so no other column can be")


@dataclass(frozen=True)
class Goal:
    """One objective as it stands in the table: `values`, larger is better, of a column that `sign` was multiplied with."""

    column: str
    sign: int
    values: np.ndarray

    @property
    def metric(self) -> str:
        """As `Objective` has it."""
        return f"{'-' if self.sign < 0 else ''}{self.column}"


class Contest:
    """A question with its table. BenchError, TableError or BudgetError for a question that has no answer.

    allowed, feasible: bool (N,), which rows strategies may propose, by the description's counts, and which keep the measured limits, too.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        self.table = _table(question)
        self.goals = tuple(_goal(self.table, word) for word in question.objectives)
        if len({goal.column for goal in self.goals}) < len(self.goals):
            raise BenchError(f"{self.goals[0].column} is both objectives")
        self.report = self.goals[0] if question.report is None else _goal(self.table, question.report)
        counted, known_after = _limits(self.table, question.limits)
        self.space, self.allowed = _within(self.table, counted)
        self.measured = tuple(known_after)
        self.feasible = self.allowed.copy()
        for limit in known_after:
            self.feasible &= self.table.column(limit.metric) <= limit.upper
        if not self.feasible.any():
            raise BenchError(self._nothing())
        self.seconds = np.ones(len(self.table)) if question.seconds is None else self.table.column(question.seconds)
        if (self.seconds < 0).any():
            raise BenchError(f"the column {question.seconds!r} has durations below 0")
        self.evaluations = question.evaluations
        self.distinct = min(question.evaluations, int(self.allowed.sum()))  # evaluations of a search that repeats none
        self.objectives = tuple(Objective(goal.metric, self.measured) for goal in self.goals)

    def _nothing(self) -> str:
        """Why no architecture is feasible."""
        for limit in self.measured:
            least = self.table.column(limit.metric)[self.allowed].min()
            if least > limit.upper:
                return f"no architecture keeps {_text(limit)}: the least {limit.metric} is {least:g}"
        return f"no architecture keeps {' and '.join(map(_text, self.measured))} at once, though some keep each"

    # ---------------------------------------------------------------- the scale

    @cached_property
    def best(self) -> float:
        """The best there is: of what is reported, larger is better; or the hypervolume of the front of the table."""
        if len(self.goals) > 1:
            return self._volume(np.flatnonzero(self.feasible))
        return float(self.report.values[self.feasible].max())

    @cached_property
    def worst(self) -> float:
        """What counts as reported while nothing feasible is found: the worst that is feasible."""
        return 0.0 if len(self.goals) > 1 else float(self.report.values[self.feasible].min())

    @cached_property
    def _scaled(self) -> np.ndarray:
        """(N, 2): the objectives of the rows, from 0 for the best that is feasible to 1 for the worst."""
        columns = []
        for goal in self.goals:
            low, high = goal.values[self.feasible].min(), goal.values[self.feasible].max()
            columns.append((high - goal.values) / (high - low if high > low else 1.0))
        return np.stack(columns, axis=1)

    def _volume(self, places: np.ndarray) -> float:
        """Hypervolume of these rows, of the scaled objectives, within the reference."""
        return hypervolume(self._scaled[places], REFERENCE) if len(places) else 0.0

    def regrets(self, places: Sequence[int]) -> list[float]:
        """The regret after each evaluation; where a search ended early, it stays where it was."""
        at = np.asarray(places, dtype=np.int64)
        if len(self.goals) > 1:
            curve = self.best - self._volumes(at)
        else:
            signal = np.where(self.feasible[at], self.goals[0].values[at], -np.inf)
            leads = np.maximum.accumulate(signal)
            first = np.concatenate([[True], leads[1:] > leads[:-1]])  # of equals the earliest stays the incumbent
            incumbent = np.maximum.accumulate(np.where(first, np.arange(len(at)), 0))
            curve = self.best - np.where(leads > -np.inf, self.report.values[at[incumbent]], self.worst)
        return np.maximum(np.concatenate([curve, np.full(self.evaluations - len(curve), curve[-1])]), 0.0).tolist()

    def _volumes(self, at: np.ndarray) -> np.ndarray:
        volumes, front = np.zeros(len(at)), np.zeros(0, dtype=np.int64)
        for step, place in enumerate(at.tolist()):
            point = self._scaled[place]
            if self.feasible[place] and not (self._scaled[front] <= point).all(axis=1).any():
                front = np.append(front[~(self._scaled[front] >= point).all(axis=1)], place)
                volumes[step] = self._volume(front)
            else:
                volumes[step] = volumes[step - 1] if step else 0.0
        return volumes

    def facts(self) -> dict[str, Any]:
        """What reports need to know of the table, as JSON."""
        question, regrets = self.question, self.best - self.report.values[self.feasible] if len(self.goals) == 1 else np.zeros(0)
        notes = list(self.table.notes)
        if question.evaluations > self.distinct:
            notes.append(
                f"{question.evaluations:,} evaluations were asked for, but there are {self.distinct:,} architectures"
                f"{' within the limits' if not self.allowed.all() else ''}: a search that repeats none ends there, and its regret stays as it is"
            )
        if self.table.network is None:
            notes.append("parameters and MACs alone are not among the contestants, for want of a description: name it with --space")
        exact = None
        if len(self.goals) == 1:
            signal = np.where(self.feasible, self.goals[0].values, -np.inf)[self.allowed]
            values = np.where(self.feasible, self.report.values, self.worst)[self.allowed]
            picked = np.maximum(self.best - expected_picks(signal, values, self.distinct), 0.0)
            exact = np.pad(picked, (0, self.evaluations - self.distinct), mode="edge").tolist()
        return {
            "table": self.table.name,
            "architectures": len(self.table),
            "allowed": int(self.allowed.sum()),
            "feasible": int(self.feasible.sum()),
            "objectives": [goal.metric for goal in self.goals],
            "report": self.report.metric if len(self.goals) == 1 else "hypervolume",
            "limits": list(question.limits),
            "best": self.best * (self.report.sign if len(self.goals) == 1 else 1),
            "worst_regret": self.best - self.worst,
            "std": float(regrets.std()) if len(regrets) else None,
            "floor": float(regrets[regrets > 0].min(initial=np.inf)) if (regrets > 0).any() else SMALLEST * self.best or SMALLEST,
            "levels": _levels(regrets) if len(regrets) else [],
            "random_exact": exact,
            "evaluations": self.evaluations,
            "workers": question.workers,
            "seconds": question.seconds,
            "notes": notes,
        }

    # ---------------------------------------------------------------- a search

    def contestants(self, strategies: Sequence[str]) -> list[str]:
        """`strategies`, and those that are always there."""
        always = ["random", *(COUNTS if self.table.network is not None else ())]
        named = list(dict.fromkeys(strategies))
        for name in named:
            if name not in COUNTS:
                made = self._strategy(name)
                made.init(self.space)  # which may refuse the space
                if ":" in name:  # of somebody's own: a first step shows what it lacks, before any work
                    workers = min(self.question.workers, self.distinct)
                    simulate(made, self.space, self._evaluate, evaluations=min(2 * workers, self.distinct), workers=workers)
            elif self.table.network is None:
                self.table.cost(name)
        return [*named, *(name for name in always if name not in named)]

    def play(self, name: str, seed: int) -> dict[str, Any]:
        """The record of one search, JSON: the log, and what came of it. repeated: proposals that had been made before, of whoever must not."""
        may_repeat = False
        if name in COUNTS:
            log = in_order(self._by_count(name, seed), lambda place: float(self.seconds[place]), workers=self.question.workers)
        else:
            strategy = self._strategy(name)
            may_repeat = getattr(strategy, "repeats", False)
            log = simulate(
                strategy,
                self.space,
                self._evaluate,
                evaluations=self.evaluations,
                workers=self.question.workers,
                seed=seed if _plain(name) == name else f"{seed}{name[len(_plain(name)) :]}",
            )
        if not log.places:
            raise BenchError(f"{name} proposed nothing")
        repeated = 0 if may_repeat else len(log.places) - len(set(log.places))
        return {**log.to_json(), **self.outcome(log), "repeated": repeated}

    def _strategy(self, name: str) -> Strategy[Any]:
        """Made for as many evaluations as it will have."""
        made = strategy_named(_plain(name), self.objectives, self.evaluations)
        if self.distinct == self.evaluations or getattr(made, "repeats", False):
            return made
        return strategy_named(_plain(name), self.objectives, self.distinct)

    def outcome(self, log: Log) -> dict[str, Any]:
        return {"regret": self.regrets(log.places), "within": self.feasible[list(log.places)].astype(int).tolist()}

    def _evaluate(self, arch: Architecture) -> Evaluated:
        place = self.table.place(arch)
        metrics = {goal.column: float(goal.sign * goal.values[place]) for goal in self.goals}
        metrics |= {limit.metric: float(self.table.columns[limit.metric][place]) for limit in self.measured}
        return Evaluated(place, metrics, float(self.seconds[place]))

    def _by_count(self, name: str, seed: int) -> list[int]:
        """Rows in the order of their size, equals in random order."""
        count = self.table.cost(name) * (-1 if self.goals[0].sign > 0 else 1)
        shuffled = list(range(len(self.table)))
        Random(f"{seed}/{name}").shuffle(shuffled)
        order = np.array(shuffled)[np.argsort(count[shuffled], kind="stable")]
        return order[self.allowed[order]][: self.evaluations].tolist()


def _plain(name: str) -> str:
    """`random` of `random#2`, which is the same strategy with other random numbers: two such must come out even."""
    return name.partition("#")[0]


def contents(question: Question) -> tuple[str, ...]:
    """A hash of each table's file, and of the file that the network stands in, if it is the caller's own."""
    if missing := [path for path in question.tables if not Path(path).is_file()]:
        raise TableError(f"there is no file {missing[0]}; a table is an .npz file")
    own = own_code(question.space) if question.space else ""
    return (*(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in question.tables), *([own] if own else []))


@lru_cache(maxsize=1)
def contest_of(question: Question, files: tuple[str, ...]) -> Contest:
    """The contest, made once for all searches of it. files: its `contents`; of files that have changed it is another contest."""
    return Contest(question)


def _table(question: Question) -> Table:
    if question.space is None or question.space == PLAIN:
        return load_table(question.tables, plain=question.space == PLAIN)
    network = load_model(question.space)
    if not isinstance(network, Network):
        raise BenchError(f"{question.space} is a {type(network).__name__}, which has no choices; a niwaki Network is needed")
    return load_table(question.tables, network)


def _goal(table: Table, word: str) -> Goal:
    if word in table.columns:
        column, sign = word, -1 if word in table.small else 1
    else:
        column, sign = word.removeprefix("-").removeprefix("+"), -1 if word.startswith("-") else 1
    return Goal(column, sign, sign * table.column(column))


def _limits(table: Table, texts: Sequence[str]) -> tuple[list[Limit], list[Constraint]]:
    """Limits on counts of the description, exact, and on what the table has measured."""
    counted: list[Limit] = []
    known_after: list[Constraint] = []
    for text in (part for given in texts for part in _parts(given)):
        name = re.split(r"<|>|=|≤|≥", text)[0].strip()
        if name in COUNTED and table.network is not None:
            limit, cost = parse_limit(text), COSTS[name](table.network)
            counted.append(Limit(cost, int(limit.of(cost.maximum()[0]).upper or 0)))
            continue
        found = re.fullmatch(r"[^<>=≤≥]+(<=|≤)\s*(\d+\.?\d*(?:[eE][+-]?\d{1,3})?|\.\d+)\s*(ms)?", text)
        if found is None:
            raise BudgetError(f'{text!r} is no limit on a column; one looks like "pixel3<=4", an upper limit above 0 in the column\'s unit')
        if (least := table.column(name).min()) < 0:
            raise BudgetError(
                f"{text!r}: {name} cannot be limited, as its least value is {least:g}; a limit is on a cost, which is never below 0"
            )
        known_after.append(Constraint(measured(name), float(found[2])))
    names = [limit.cost.name for limit in counted] + [limit.metric for limit in known_after]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BudgetError(f"{twice[0]} is limited twice")
    return counted, known_after


def _parts(text: str) -> list[str]:
    """The limits of a text that joins them by "and" or commas, which may also stand in the name of a column."""
    found, at = [], 0
    while at < len(text):
        one = LIMIT.match(text, at)
        if one is None or (one[2] and one.end() == len(text)):
            return [text]  # which is refused as a whole
        found.append(one[1])
        at = one.end()
    return found or [text]


def _within(table: Table, limits: Sequence[Limit]) -> tuple[Space | Listed | Within, np.ndarray]:
    """What of the table's space keeps the limits, and which rows that are."""
    allowed = np.ones(len(table), dtype=bool)
    for limit in limits:
        allowed &= limit.cost.batch(table.rows) <= limit.upper
    if not limits:
        return table.space, allowed
    if isinstance(table.space, Space):
        return within(table.space, limits), allowed
    if not allowed.any():
        least = ", ".join(f"{limit.cost.name} {limit.cost.batch(table.rows).min():,}" for limit in limits)
        raise BudgetError(
            f"none of the {len(table):,} architectures of {table.name} keeps {' and '.join(map(str, limits))}; the least are {least}"
        )
    return Listed(table.space.space, table.rows[allowed]), allowed


def _levels(regrets: np.ndarray) -> list[dict[str, Any]]:
    """What there is to be reached: regrets of shares of the feasible architectures, and of the best."""
    ordered = np.sort(regrets)
    shares = {name: float(ordered[max(0, int(len(ordered) * share) - 1)]) for name, share in (("best 1 %", 0.01), ("best 0.1 %", 0.001))}
    return [{"name": name, "regret": regret} for name, regret in {**shares, "the best": 0.0}.items() if regret > 0 or name == "the best"]


def _text(limit: Constraint) -> str:
    return f"{limit.metric}<={limit.upper:g}"
