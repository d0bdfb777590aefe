"""The loop of ask-and-tell searches: who is pending, what is told, and how a search that was stopped goes on as if it had not been."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from niwaki.space.architecture import Architecture
from niwaki.space.space import Space
from niwaki.store.checkpoint import StoreError
from niwaki.store.engine import Store
from niwaki.strategy.strategy import SearchSpace, Strategy
from niwaki.trial import EvaluationFailed, Trial

Evaluate = Callable[[Architecture], Mapping[str, float]]


class AskTellError(RuntimeError):
    """A strategy or an evaluator that does not keep to its part."""


class AskTellSearch:
    """A search under way. Proposals are numbered from 0; a batch that begins with number i is drawn from the random numbers of (seed, i).

    Each batch is stored before any of it is evaluated, each trial once it is finished, and trials are told in the order of their numbers
    when the batch is complete. So, killed at any instant and made again with the same arguments, the search goes on where it was.

    space: what the strategy draws from, `whole` the space itself, in which stored architectures are read.
    """

    def __init__(
        self,
        space: SearchSpace,
        whole: Space,
        strategy: Strategy[Any],
        store: Store,
        *,
        run: str,
        evaluations: int,
        batch_size: int = 4,
        seed: int = 0,
    ) -> None:
        if space.hash != whole.hash:
            raise AskTellError(f"the strategy's space {space.hash} is not the space {whole.hash} that architectures are read in")
        self.space, self.strategy, self.store, self.run = space, strategy, store, run
        self.evaluations, self.batch_size, self.seed = evaluations, batch_size, seed
        self.waiting = store.pending(run, whole)  # number -> architecture, of the batch that is out
        self._done = {trial.number: trial for trial in store.trials(run, whole)}
        if set(self._done) | set(self.waiting) != set(range(len(self._done) + len(self.waiting))):
            raise StoreError(f"the trials and pending proposals of {run!r} in {store.url} leave numbers out; trials of it have been lost")
        kept = store.load_state(run)
        self._told = self._saved = kept.told if kept else 0
        if self._told > len(self._done):
            raise StoreError(f"the strategy of {run!r} in {store.url} was told {self._told} trials, but only {len(self._done)} are there")
        self._state = strategy.load(space, kept.content, kept.arrays) if kept else strategy.init(space)

    @property
    def trials(self) -> list[Trial]:
        """All that are finished, in the order of their numbers."""
        return [self._done[number] for number in sorted(self._done)]

    def ask(self) -> dict[int, Architecture]:
        """What is to be evaluated now, number -> architecture: the rest of the batch that is out, else the next one; empty at the end."""
        if self.waiting:
            return dict(self.waiting)
        self._tell()
        count = min(self.batch_size, self.evaluations - self._told)
        if count <= 0:
            return {}
        asked = self.strategy.ask(self._state, count, Random(f"{self.seed}/{self._told}"), pending=())
        if len(asked) > count or any(arch.space != self.space.hash for arch in asked):
            raise AskTellError(f"{self.strategy.name} was asked for {count} of space {self.space.hash} and gave {asked!r:.500}")
        self.waiting = {self._told + at: arch for at, arch in enumerate(asked)}
        self.store.add_pending(self.run, self.waiting)
        return dict(self.waiting)

    def finish(self, trial: Trial) -> None:
        """Keeps the trial of a proposal that is out. What was never asked, or is finished, is refused."""
        if trial.number in self._done:
            raise AskTellError(f"proposal {trial.number} is finished already")
        if self.waiting.get(trial.number) != trial.arch:
            out = ", ".join(map(str, self.waiting)) or "none"
            raise AskTellError(f"trial {trial.number} with {dict(trial.arch)} was never asked for; the proposals that are out: {out}")
        self.store.append(self.run, trial)
        del self.waiting[trial.number]
        self._done[trial.number] = trial

    def _tell(self) -> None:
        """Tells the strategy of all trials that it has not been told of."""
        if self._told < len(self._done):
            self._state = self.strategy.tell(self._state, [self._done[number] for number in range(self._told, len(self._done))])
            self._told = len(self._done)
        # the state follows from the trials, so keeping it only saves time; kept rarely, as it grows with them
        if self._told - self._saved > max(self.batch_size, self._saved // 4):
            content, arrays = self.strategy.save(self._state)
            self.store.save_state(self.run, content, told=self._told, arrays=arrays)
            self._saved = self._told


def ask_and_tell(
    search: AskTellSearch,
    evaluate: Evaluate,
    *,
    out_of_time: Callable[[], bool] = lambda: False,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """All trials of the search, after evaluating what it asks for, to its end or until `out_of_time`; what is out then is recorded as cut.

    evaluate: gives the metrics of an architecture, or raises EvaluationFailed for one that has none.
    """
    while batch := search.ask():
        for number, arch in batch.items():
            trial = _cut(number, arch, search) if out_of_time() else _evaluated(number, arch, search, evaluate)
            search.finish(trial)
            on_trial(trial)
        if out_of_time():
            break
    return search.trials


def _evaluated(number: int, arch: Architecture, search: AskTellSearch, evaluate: Evaluate) -> Trial:
    began = time.perf_counter()
    try:
        metrics = evaluate(arch)
    except EvaluationFailed as error:
        return Trial(number, arch, {}, search.strategy.name, time.perf_counter() - began, "failed", str(error))
    return Trial(number, arch, metrics, search.strategy.name, time.perf_counter() - began)


def _cut(number: int, arch: Architecture, search: AskTellSearch) -> Trial:
    return Trial(number, arch, {}, search.strategy.name, 0.0, "cut", "time ran out before it was evaluated")
