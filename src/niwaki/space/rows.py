"""Many architectures at once: matrices of option numbers, (N, decisions), canonical where a decision that does not exist has number 0."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from niwaki.space.choice import Value
from niwaki.space.size import values

if TYPE_CHECKING:
    from niwaki.space.space import Space


MOST_ANSWERS = 4_096  # of one condition that are worked out beforehand


class Description(Protocol):
    """What a space that comes from a network is given to know of its architectures beyond their choices (see `niwaki.net.canon`)."""

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """uint64 (N,): equal where architectures compute the same."""
        ...

    def paths(self, rows: np.ndarray) -> np.ndarray:
        """float32 (N, F): how what was chosen lies on the ways through the network."""
        ...

    def layers(self, rows: np.ndarray) -> np.ndarray:
        """float32 (N, G): how many of each layer are run, in the parts of the network that have such ways."""
        ...

    def flow(self) -> np.ndarray:
        """float32 (D + 2, D + 2): [i, j] = 1 where decision j - 1 reads what decision i - 1 decides about; 0 is the input, D + 1 the output."""
        ...


class Features(NamedTuple):
    """Architectures as points: `choices`, float32 (N, F), says which options were taken; `paths`, float32 (N, G), which ways through the
    network they make together, on which accuracy depends; `counts`, float32 (N, H), how much of what there is, on which costs do.

    In each, two architectures that differ in nothing it can tell have the same row. There may be no paths, and no counts.
    """

    choices: np.ndarray
    paths: np.ndarray
    counts: np.ndarray


class Existence:
    """Which decisions exist in an architecture of `space`, for many rows (N, decisions) of option numbers at once."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._asked = {  # position of a decision that may not exist -> positions of those that its condition asks about, which come before
            position: space.depends_on(position) for position, decision in enumerate(space.decisions) if decision.condition is not True
        }
        self._tables: dict[int, np.ndarray] = {}

    def _answers(self, position: int) -> np.ndarray:
        """bool, an axis for each decision that is asked about."""
        if position not in self._tables:
            decisions, asked = self._space.decisions, self._asked[position]
            condition = decisions[position].condition
            whole = np.array(values(condition) if asked else [bool(condition)], dtype=bool)
            self._tables[position] = whole.reshape([len(decisions[p].options) for p in asked])
        return self._tables[position]

    def at(self, rows: np.ndarray, position: int) -> np.ndarray:
        """bool (N,): whether the decision at `position` exists, of rows that are canonical before it; only those columns are looked at."""
        asked = self._asked.get(position)
        if asked is None:
            return np.ones(len(rows), dtype=bool)
        counts = [len(self._space.decisions[p].options) for p in asked]
        if math.prod(counts) <= MOST_ANSWERS:
            return np.broadcast_to(self._answers(position)[tuple(rows[:, p] for p in asked)], len(rows))
        code = np.ravel_multi_index(tuple(rows[:, p] for p in asked), counts)
        _, first, kind = np.unique(code, return_index=True, return_inverse=True)
        answers = [self._space.exists_given(position, tuple(rows[at, asked].tolist())) for at in first]  # of what occurs alone
        return np.array(answers, dtype=bool)[kind.ravel()]

    def of(self, rows: np.ndarray) -> np.ndarray:
        """bool (N, decisions), of canonical rows."""
        exists = np.ones(rows.shape, dtype=bool)
        for position in self._asked:
            exists[:, position] = self.at(rows, position)
        return exists

    def possible(self, row: np.ndarray, undecided: np.ndarray) -> np.ndarray:
        """bool (D,): which decisions exist for some options of those that are `undecided` (bool, (D,)), with the options of `row` (D,) for the others."""
        exists = np.ones(len(row), dtype=bool)
        for position, asked in self._asked.items():
            at = tuple(slice(None) if exists[p] and undecided[p] else int(row[p]) if exists[p] else 0 for p in asked)
            exists[position] = bool(np.any(self._answers(position)[at]))
        return exists

    def canonical_(self, rows: np.ndarray) -> np.ndarray:
        """`rows`, in place 0 where a decision does not exist."""
        for position in self._asked:
            rows[:, position] *= self.at(rows, position)
        return rows


def draw_rows(space: Space, count: int, generator: np.random.Generator) -> np.ndarray:
    """int32 (count, decisions): independent draws, every architecture of the space as likely (up to rounding)."""
    rows = np.zeros((count, len(space)), dtype=np.int32)
    at: dict[tuple[int, ...], np.ndarray] = {(): np.arange(count)}  # state of the count -> the draws that are in it
    for position in range(len(space)):
        after: dict[tuple[int, ...], list[np.ndarray]] = {}
        for state, draws in at.items():
            branches = space.branches(position, state)
            which = np.zeros(len(draws), dtype=np.int64)
            if len(branches) > 1:
                ways = [len(options) * below for options, below, _ in branches]
                shares = np.cumsum([way / sum(ways) for way in ways])  # of whole numbers of any length
                which = np.minimum(np.searchsorted(shares, generator.random(len(draws)), side="right"), len(branches) - 1)
            for number, (options, _, following) in enumerate(branches):
                taken = draws[which == number]
                if len(taken):
                    rows[taken, position] = options[0] + generator.integers(len(options), size=len(taken))
                    after.setdefault(following, []).append(taken)
        at = {state: np.concatenate(parts) for state, parts in after.items()}
    return rows


def genotype_keys(rows: np.ndarray) -> np.ndarray:
    """uint64 (N,): equal where rows are, and otherwise, but for a chance of 2^-64 per pair, not."""
    rows = np.ascontiguousarray(rows, dtype=np.int32)
    return np.array([int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little") for row in rows], dtype=np.uint64)


def choice_features(space: Space, rows: np.ndarray) -> np.ndarray:
    """float32 (N, F): the options of each decision one-hot; of numbers also where they lie between the least and the greatest.

    A decision that does not exist has zeros. Two different options are 1 apart where options are no numbers; numbers are between 0.71 and
    1.22 apart, by how far they are from each other (on a logarithmic scale where all are above 0).
    """
    rows = space.canonical_rows(rows)
    exists = space.existence.of(rows)
    columns = []
    for position, decision in enumerate(space.decisions):
        if len(decision.options) < 2:
            continue
        place, there = _places(decision.options), np.flatnonzero(exists[:, position])
        taken = rows[there, position]
        block = np.zeros((len(rows), len(decision.options) + (place is not None)), dtype=np.float32)
        block[there, taken] = math.sqrt(0.5) if place is None else 0.5
        if place is not None:
            block[there, -1] = place[taken]
        columns.append(block)
    return np.concatenate(columns, axis=1) if columns else np.zeros((len(rows), 0), dtype=np.float32)


def option_counts(space: Space, rows: np.ndarray) -> np.ndarray:
    """float32 (N, G): of decisions with the same options (layers that can be the same), how many take each of them."""
    rows = space.canonical_rows(rows)
    exists = space.existence.of(rows)
    alike = Counter(decision.options for decision in space.decisions if len(decision.options) > 1)
    columns = []
    for options, times in alike.items():
        if times > 1:
            places = [at for at, decision in enumerate(space.decisions) if decision.options == options]
            for number in range(len(options)):
                columns.append(((rows[:, places] == number) & exists[:, places]).sum(axis=1))
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((len(rows), 0), dtype=np.float32)


def _places(options: Sequence[Value]) -> np.ndarray | None:
    """(O,) from 0 to 1: where numbers lie between the least and the greatest; None where the options are not all numbers."""
    if len(options) < 3 or not all(isinstance(option, (int, float)) and not isinstance(option, bool) for option in options):
        return None
    numbers = np.array(options, dtype=np.float64)
    numbers = np.log(numbers) if numbers.min() > 0 else numbers
    return ((numbers - numbers.min()) / (numbers.max() - numbers.min())).astype(np.float32)
