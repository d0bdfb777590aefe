"""A trial: one architecture, evaluated once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from niwaki.space.architecture import Architecture
from niwaki.space.space import Space

Status = Literal["ok", "failed", "cut"]


class TrialError(ValueError):
    """Trials that cannot be."""


class EvaluationFailed(RuntimeError):
    """An architecture has no metrics: its training diverged, say. Raised by evaluators; the trial is kept as failed, the search goes on."""


@dataclass(frozen=True)
class Trial:
    """What is known of one architecture. metrics: such as "accuracy" (a fraction), "macs", "params"; finite.

    number: of the proposal in its run, from 0. source: who proposed it ("random", "evolution", "dmasking"). seconds: wall time of
    the evaluation. status: "ok" has metrics; "failed" may have none because the evaluation failed (`note` says why), and "cut"
    because time ran out before or while it was evaluated.
    """

    number: int
    arch: Architecture
    metrics: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    seconds: float = 0.0
    status: Status = "ok"
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", {name: float(value) for name, value in self.metrics.items()})
        if self.number < 0:
            raise TrialError(f"a trial has a number from 0, not {self.number}")
        if self.status not in get_args(Status):
            raise TrialError(f"trial {self.number} cannot be {self.status!r}; it is one of {', '.join(get_args(Status))}")
        if self.status == "ok" and not self.metrics:
            raise TrialError(f"trial {self.number} is ok but has no metrics; one without them is 'failed' or 'cut'")
        if wrong := {name: value for name, value in self.metrics.items() if not math.isfinite(value)}:
            listed = ", ".join(f"{name} = {value}" for name, value in wrong.items())
            raise TrialError(f"trial {self.number} has metrics that are no finite numbers: {listed}")

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "arch": self.arch.to_json(),
            "metrics": dict(self.metrics),
            "source": self.source,
            "seconds": self.seconds,
            "status": self.status,
            "note": self.note,
        }

    @staticmethod
    def from_json(data: Mapping[str, Any], space: Space) -> Trial:
        """The trial that `to_json` wrote, its architecture checked against `space`."""
        return Trial(**{**data, "arch": Architecture.from_json(data["arch"], space)})
