"""What strategies share that fit a model now and then: all that was told, and how much of it each fit may see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np

from niwaki.objective import Objective
from niwaki.space.architecture import Architecture
from niwaki.strategy.evolution import Member, members_from_arrays, members_to_arrays
from niwaki.strategy.scores import scores_of
from niwaki.strategy.seen import Log, Seen
from niwaki.strategy.strategy import SearchSpace, check_space, fingerprint, propose
from niwaki.trial import Trial


@dataclass(frozen=True)
class Rounds:
    """A state. ok: the trials that have metrics, in the order told. ends: how many of them each fit sees."""

    space: SearchSpace
    ok: Log[Member] = field(default_factory=Log)
    ends: tuple[int, ...] = ()
    seen: Seen = field(default_factory=Seen)

    def told(self, trials: Sequence[Trial], *, first: int, every: int | None) -> Rounds:
        """The state after these trials. A fit follows the `first` architectures, and then each further `every` of them; None: no further one."""
        ends, ok, seen = list(self.ends), list[Member](), self.seen
        for trial in trials:
            before = len(seen)
            seen = seen.with_([fingerprint(trial.arch)])
            if trial.status == "ok":
                ok.append(Member(trial.arch, trial.metrics))
            further = len(seen) - first
            if len(seen) > before and (further == 0 or (every is not None and further > 0 and further % every == 0)):
                ends.append(len(self.ok) + len(ok))
        return Rounds(self.space, self.ok.with_(ok), tuple(ends), seen)

    def known(self, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
        """What the last fit sees: int32 (N, decisions), option numbers, and float64 (N,), scores. There must be an end."""
        members = tuple(self.ok)[: self.ends[-1]]
        return self.rows(members), scores_of(objective, [member.metrics for member in members])

    def rows(self, members: Iterable[Member]) -> np.ndarray:
        """int32 (N, decisions): option numbers."""
        return np.array(self.space.indices(member.arch for member in members), dtype=np.int32)

    def propose(self, rows: Iterable[np.ndarray], count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        """`count` architectures, none seen or pending: of `rows` in their order, and where these end, drawn."""
        ordered = iter(rows)

        def draw(asked: int) -> Architecture:
            row = next(ordered, None)
            return self.space.sample_uniform(rng) if row is None else self.space.from_indices(row.tolist())

        return propose(count, draw, self.space, self.seen, pending, rng)

    def save(self) -> tuple[Any, dict[str, np.ndarray]]:
        names, members = members_to_arrays(tuple(self.ok))
        return {"space": self.space.hash, "metrics": names, "ends": list(self.ends)}, {"seen": self.seen.to_array(), **members}

    @staticmethod
    def load(space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> Rounds:
        """The state that `save` was given."""
        check_space(content, space)
        members = members_from_arrays(content["metrics"], arrays, space)
        return Rounds(space, Log(members), tuple(content["ends"]), Seen.from_array(arrays["seen"]))
