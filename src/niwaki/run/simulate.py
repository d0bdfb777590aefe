"""A search on a table, by a simulated clock: the table may stand for a cluster of workers, whose evaluations take time and overlap."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from random import Random
from typing import Any

from niwaki.run.asking import asked_of, begun, told
from niwaki.space.architecture import Architecture
from niwaki.strategy.strategy import SearchSpace, Strategy
from niwaki.trial import Trial


@dataclass(frozen=True)
class Evaluated:
    """What a table has of one architecture. place: its row; metrics: what the strategy is told; seconds: how long it took, simulated."""

    place: int
    metrics: Mapping[str, float]
    seconds: float = 1.0


@dataclass(frozen=True)
class Log:
    """A search, as it went. places: rows of the table in the order in which their evaluations finished, repeats included; finished: when,
    in simulated seconds. cpu_s: what `ask` and `tell` took of this machine, all together."""

    places: tuple[int, ...]
    finished: tuple[float, ...]
    cpu_s: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"places": list(self.places), "finished": list(self.finished), "cpu_s": self.cpu_s}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Log:
        return Log(tuple(data["places"]), tuple(data["finished"]), data["cpu_s"])


def simulate(
    strategy: Strategy[Any],
    space: SearchSpace,
    evaluate: Callable[[Architecture], Evaluated],
    *,
    evaluations: int,
    workers: int = 1,
    seed: int | str = 0,
) -> Log:
    """Ask, wait for whoever is ready next, tell, until `evaluations` are finished, or the strategy has nothing left to propose.

    Whoever is idle is asked for at once, the others pending; what finishes at the same time is told at once, in the order it was asked for.
    A batch whose first proposal is number i draws from the random numbers of (seed, i), as in `AskTellSearch`.
    """
    state = begun(strategy, space)
    running: list[tuple[float, int, Architecture, Evaluated]] = []  # a heap: who is ready first
    places: list[int] = []
    finished: list[float] = []
    now, asked, cpu_s = 0.0, 0, 0.0
    while True:
        if (free := min(workers - len(running), evaluations - asked)) > 0:
            began = time.process_time()
            pending = [arch for _, _, arch, _ in sorted(running, key=_number)]
            archs = asked_of(strategy, space, state, free, Random(f"{seed}/{asked}"), pending)
            cpu_s += time.process_time() - began
            for arch in archs:
                found = evaluate(arch)
                heappush(running, (now + found.seconds, asked, arch, found))
                asked += 1
        if not running:
            return Log(tuple(places), tuple(finished), cpu_s)
        now = running[0][0]
        ready = []
        while running and running[0][0] == now:
            ready.append(heappop(running))
        trials = [Trial(number, arch, found.metrics, strategy.name, found.seconds) for _, number, arch, found in sorted(ready, key=_number)]
        places += [found.place for _, _, _, found in ready]
        finished += [now] * len(ready)
        began = time.process_time()
        state = told(strategy, state, trials)
        cpu_s += time.process_time() - began


def in_order(places: Sequence[int], seconds: Callable[[int], float], *, workers: int = 1) -> Log:
    """The log of evaluating these rows in this order, each by whoever is idle first."""
    busy: list[tuple[float, int]] = []
    done: list[tuple[float, int, int]] = []
    for number, place in enumerate(places):
        start = heappop(busy)[0] if len(busy) == workers else 0.0
        end = start + seconds(place)
        heappush(busy, (end, number))
        done.append((end, number, place))
    done.sort()
    return Log(tuple(place for _, _, place in done), tuple(end for end, _, _ in done))


def _number(entry: tuple[float, int, Architecture, Evaluated]) -> int:
    return entry[1]
