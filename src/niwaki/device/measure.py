"""How long a step takes, by one protocol: warmed up, in turns with a fixed reference, CPU time beside wall time, and every sample kept.

On a machine that does other things too, the median wall time of a network moves by tens of percents; the least CPU time at one thread by a few,
and its ratio to a reference that is timed in turns with it by one or two. These two are the figures; the rest says how far to trust them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np

Step = Callable[[], object]


class MeasureError(ValueError):
    """What cannot be measured so."""


@dataclass(frozen=True)
class Protocol:
    """warmup: rounds before the first that counts. rounds: samples of each step. least_ms: a step is repeated within a sample for so long.

    threads: what the steps were told to use; CPU time is the time of a run only where it is 1.
    """

    warmup: int = 5
    rounds: int = 20
    least_ms: float = 2.0
    threads: int = 1

    def __post_init__(self) -> None:
        if self.warmup < 1 or self.rounds < 2 or not self.least_ms >= 0 or self.threads < 1:
            raise MeasureError(
                f"{self}: at least 1 round to warm up, 2 that count, a time that is not negative, and 1 thread; cold runs say nothing"
            )


@dataclass(frozen=True)
class Samples:
    """Every sample of one step: milliseconds of one run, each the mean of `repeats` runs, and what they were taken with."""

    cpu_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]
    ratios: tuple[float, ...]  # CPU time / the reference's in the same round
    repeats: int
    protocol: Protocol
    runtime: str

    @property
    def latency_ms(self) -> float:
        """The least CPU time where one thread is used, else the least wall time."""
        return min(self.cpu_ms if self.protocol.threads == 1 else self.wall_ms)

    @property
    def median_ms(self) -> float:
        return float(np.median(self.cpu_ms if self.protocol.threads == 1 else self.wall_ms))

    @property
    def ratio(self) -> float:
        """The median of the ratios to the reference."""
        return float(np.median(self.ratios))

    @property
    def variation(self) -> float:
        """The coefficient of variation of the CPU times: their standard deviation over their mean."""
        return float(np.std(self.cpu_ms, ddof=1) / np.mean(self.cpu_ms))

    def wall_quantiles(self) -> tuple[float, float, float]:
        """5, 50 and 95 % of the wall times, in milliseconds."""
        low, middle, high = np.quantile(self.wall_ms, (0.05, 0.5, 0.95))
        return float(low), float(middle), float(high)

    def to_json(self) -> dict[str, Any]:
        """Raw samples, warm-up, threads and all."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Samples:
        lists = {name: tuple(data[name]) for name in ("cpu_ms", "wall_ms", "ratios")}
        return Samples(**lists, repeats=data["repeats"], protocol=Protocol(**data["protocol"]), runtime=data["runtime"])


ONE_THREAD = Protocol()


def in_turns(
    steps: Mapping[str, Step],
    reference: str,
    *,
    runtime: str,
    protocol: Protocol = ONE_THREAD,
    cpu: Callable[[], float] = time.process_time,
    wall: Callable[[], float] = time.perf_counter,
) -> dict[str, Samples]:
    """Samples of all steps, by name. Each round runs every step once, starting with another one each time, and the reference before each.

    A sample of the reference thus stands next to every sample, so that what else the machine does falls on both. cpu, wall: clocks, seconds.
    """
    if reference not in steps:
        raise MeasureError(f"the reference {reference!r} is none of the steps: {', '.join(steps)}")
    clock, repeats = (cpu if protocol.threads == 1 else wall), {}
    for name, step in steps.items():
        least = float("inf")  # of the warm-up: what else the machine does must not decide how often a step is repeated
        for _ in range(protocol.warmup):
            began = clock()
            step()
            least = min(least, 1e3 * (clock() - began))
        repeats[name] = max(1, min(10_000, ceil(protocol.least_ms / max(least, 1e-6))))

    def sample(name: str) -> tuple[float, float]:
        step, count = steps[name], repeats[name]
        began, began_wall = cpu(), wall()
        for _ in range(count):
            step()
        return 1e3 * (cpu() - began) / count, 1e3 * (wall() - began_wall) / count

    names = list(steps)
    found: dict[str, tuple[list[float], list[float], list[float]]] = {name: ([], [], []) for name in steps}
    for number in range(protocol.rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            beside = sample(reference)
            own = sample(name)
            for values, value in zip(found[name], (*own, own[0] / beside[0] if beside[0] > 0 else float("nan")), strict=True):
                values.append(value)
    return {
        name: Samples(tuple(cpu_ms), tuple(wall_ms), tuple(ratios), repeats[name], protocol, runtime)
        for name, (cpu_ms, wall_ms, ratios) in found.items()
    }
