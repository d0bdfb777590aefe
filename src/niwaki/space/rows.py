"""Many architectures at once: matrices of option numbers, (N, decisions), canonical where a decision that does not exist has number 0."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from niwaki.space.choice import Value

if TYPE_CHECKING:
    from niwaki.space.space import Space


class Description(Protocol):
    """What a space that comes from a network is given to know of its architectures beyond their choices (see `niwaki.net.canon`)."""

    def keys(self, rows: np.ndarray) -> np.ndarray:
        """uint64 (N,): equal where architectures compute the same."""
        ...

    def paths(self, rows: np.ndarray) -> np.ndarray:
        """float32 (N, F): how what was chosen lies on the ways through the network."""
        ...

    def flow(self) -> np.ndarray:
        """float32 (D + 2, D + 2): [i, j] = 1 where decision j - 1 reads what decision i - 1 decides about; 0 is the input, D + 1 the output."""
        ...


class Features(NamedTuple):
    """Architectures as points: `choices`, float32 (N, F), says which options were taken, `structure`, float32 (N, G), what they make together.

    In each, two architectures that differ in nothing it can tell have the same row.
    """

    choices: np.ndarray
    structure: np.ndarray


def canonical_rows(space: Space, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`rows` with 0 for every decision that does not exist, int32, and bool (N, decisions): which of them exist."""
    rows = np.array(rows, dtype=np.int32).reshape(len(rows), len(space))
    exists = np.ones(rows.shape, dtype=bool)
    for position in range(len(space)):
        parents = space.depends_on(position)
        if not parents:
            exists[:, position] = space.exists_given(position, ())
            continue
        code = np.zeros(len(rows), dtype=np.int64)
        for parent in parents:
            code = code * len(space.decisions[parent].options) + rows[:, parent]
        _, first, kind = np.unique(code, return_index=True, return_inverse=True)
        exists[:, position] = np.array([space.exists_given(position, tuple(rows[at, parents].tolist())) for at in first], dtype=bool)[kind]
        rows[~exists[:, position], position] = 0
    return rows, exists


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
    rows, exists = canonical_rows(space, rows)
    columns = []
    for position, decision in enumerate(space.decisions):
        if len(decision.options) < 2:
            continue
        place = _places(decision.options)
        weight = math.sqrt(0.5) if place is None else 0.5
        one_hot = np.eye(len(decision.options), dtype=np.float32) * np.float32(weight)
        table = one_hot if place is None else np.concatenate([one_hot, place[:, None]], axis=1)
        columns.append(np.where(exists[:, position, None], table[rows[:, position]], np.float32(0)))
    return np.concatenate(columns, axis=1) if columns else np.zeros((len(rows), 0), dtype=np.float32)


def option_counts(space: Space, rows: np.ndarray) -> np.ndarray:
    """float32 (N, G): of decisions with the same options (layers that can be the same), how many take each of them."""
    rows, exists = canonical_rows(space, rows)
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
