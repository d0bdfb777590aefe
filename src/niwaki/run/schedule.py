"""When an ask/tell search asks for its next proposals, and what its strategy has been told by then.

All but `FreeRunning` make the search depend on metrics alone, and not on which evaluation happened to end first; what a free-running
search did is recorded, and `Replay` does it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from niwaki.store.engine import Store

RECORD = "told"  # the phase of a store's log that says what was told before each proposal of a free-running search


class Schedule(Protocol):
    """A rule for who waits for what."""

    @property
    def name(self) -> str:
        """What a store keeps, so that a search goes on by the rule that it began with."""
        ...

    def due(self, proposed: int, told: int, fresh: Sequence[int], out: int) -> tuple[list[int], int] | None:
        """The trials to tell now, and how many proposals to ask for then; None where that has to wait.

        proposed, told: how many there are. fresh: numbers of finished trials that were not told, in the order in which they ended. out: how
        many are being evaluated.
        """
        ...


@dataclass(frozen=True)
class Batches:
    """`size` proposals at once, once all before them are told."""

    size: int = 4

    def __post_init__(self) -> None:
        _at_least_one(self.size, "a batch has")

    @property
    def name(self) -> str:
        return ""

    def due(self, proposed: int, told: int, fresh: Sequence[int], out: int) -> tuple[list[int], int] | None:
        return None if out else (sorted(fresh), self.size)


@dataclass(frozen=True)
class Window:
    """One proposal for each worker: number i is asked for when all up to i - `workers` are told, and no others, in the order of numbers.

    Workers wait only for an evaluation that takes longer than `workers` others; the result does not depend on how long any takes.
    """

    workers: int

    def __post_init__(self) -> None:
        _at_least_one(self.workers, "a window has")

    @property
    def name(self) -> str:
        return f"window of {self.workers}"

    def due(self, proposed: int, told: int, fresh: Sequence[int], out: int) -> tuple[list[int], int] | None:
        wanted = list(range(told, proposed - self.workers + 1))
        return (wanted, 1) if set(wanted) <= set(fresh) else None


@dataclass(frozen=True)
class FreeRunning:
    """A proposal as soon as one of the `workers` is free, after all that have finished are told in the order in which they ended."""

    workers: int

    def __post_init__(self) -> None:
        _at_least_one(self.workers, "a free-running search has")

    @property
    def name(self) -> str:
        return "free-running"

    def due(self, proposed: int, told: int, fresh: Sequence[int], out: int) -> tuple[list[int], int] | None:
        return (list(fresh), 1) if out < self.workers else None


@dataclass(frozen=True)
class Replay:
    """What a free-running search did, again. order: for each proposal, the trials that were told just before it was asked for."""

    order: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        return "replay"

    @staticmethod
    def of(store: Store, run: str) -> Replay:
        """The order that the free-running search `run` recorded."""
        return Replay(tuple(tuple(row.metrics["told"]) for row in store.log_rows(run, RECORD)))

    def due(self, proposed: int, told: int, fresh: Sequence[int], out: int) -> tuple[list[int], int] | None:
        if proposed >= len(self.order):
            return None
        done = sum(len(numbers) for numbers in self.order[:proposed])
        wanted = list(self.order[proposed])[max(0, told - done) :]
        return (wanted, 1) if set(wanted) <= set(fresh) else None


def _at_least_one(count: int, what: str) -> None:
    if count < 1:
        raise ValueError(f"{what} at least 1 proposal, not {count}")
