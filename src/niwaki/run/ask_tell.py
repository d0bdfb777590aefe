"""The loop of ask-and-tell searches: who is pending, what is told, and how a search that was stopped goes on as if it had not been."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from random import Random
from typing import Any

from niwaki.run.asking import asked_of, begun, objectives_of, told
from niwaki.run.schedule import RECORD, Batches, FreeRunning, Replay, Schedule
from niwaki.space.architecture import Architecture
from niwaki.space.space import Space
from niwaki.store.checkpoint import StoreError
from niwaki.store.engine import Store
from niwaki.strategy.strategy import SearchSpace, Strategy
from niwaki.trial import EvaluationFailed, Trial

MOST_UNSAVED = 16  # trials told since the state was stored, at least
PATIENCE_S = 1.0  # between two looks at the clock while evaluations run

Evaluate = Callable[[Architecture], Mapping[str, float]]
Attempt = tuple[Mapping[str, float] | str, float]  # metrics, or why there are none, and seconds


class AskTellError(RuntimeError):
    """A strategy or an evaluator that does not keep to its part."""


class AskTellSearch:
    """A search under way. Proposals are numbered from 0; those that begin with number i are drawn from the random numbers of (seed, i).

    What is proposed is stored before any of it is evaluated, each trial once it is finished; trials are told, and more is asked for, when
    the `schedule` says so: by default in batches, in the order of their numbers. So, killed at any instant and made again with the same
    arguments, the search goes on where it was.

    space: what the strategy draws from, `whole` the space itself, in which stored architectures are read. note: why it ended before all
    `evaluations`, where the strategy found nothing more to propose.
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
        schedule: Schedule | None = None,
    ) -> None:
        if space.hash != whole.hash:
            raise AskTellError(f"the strategy's space {space.hash} is not the space {whole.hash} that architectures are read in")
        self.space, self.strategy, self.store, self.run = space, strategy, store, run
        self.evaluations, self.seed, self.note = evaluations, seed, ""
        self._objectives = objectives_of(strategy)
        self.schedule = Batches(batch_size) if schedule is None else schedule
        self.waiting = store.pending(run, whole)  # number -> architecture, of what is out
        self._done = {trial.number: trial for trial in store.trials(run, whole)}
        self._proposed = len(self._done) + len(self.waiting)
        self._known = {trial.arch: trial for trial in reversed(self.trials) if trial.status == "ok"}
        if set(self._done) | set(self.waiting) != set(range(self._proposed)):
            raise StoreError(f"the trials and pending proposals of {run!r} in {store.url} leave numbers out; trials of it have been lost")
        self._keep_schedule()
        # what was told before each proposal, where that is a record and no rule
        self._record = {row.epoch: list(row.metrics["told"]) for row in store.log_rows(run, RECORD) if row.epoch <= self._proposed}
        kept = store.load_state(run)
        self._told = self._saved = kept.told if kept else 0
        if self._told > len(self._done):
            raise StoreError(f"the strategy of {run!r} in {store.url} was told {self._told} trials, but only {len(self._done)} are there")
        self._state = strategy.load(space, kept.content, kept.arrays) if kept else begun(strategy, space)
        order = [number for at in sorted(self._record) for number in self._record[at]] if self._recorded else list(range(self._told))
        known = set(order[: self._told])
        self._untold = {number: arch for number, arch in self._proposals() if number not in known}
        self._fresh = [number for number in self._untold if number in self._done]
        if self._recorded:
            self._tell(order[self._told :])

    @property
    def trials(self) -> list[Trial]:
        """All that are finished, in the order of their numbers."""
        return [self._done[number] for number in sorted(self._done)]

    def ask(self) -> dict[int, Architecture]:
        """What is to be evaluated now, number -> architecture: what is out, and what the schedule adds to it; empty at the end."""
        while (due := self.schedule.due(self._proposed, self._told, self._fresh, len(self.waiting))) is not None:
            numbers, count = due
            count = min(count, self.evaluations - self._proposed)
            if self._recorded and count > 0:  # before it is told: what a strategy was told is then always known
                self._record.setdefault(self._proposed, []).extend(numbers)
                self.store.log(self.run, RECORD, self._proposed, {"told": self._record[self._proposed]})
            self._tell(numbers)
            if count <= 0 or not self._propose(count):
                break
        return dict(self.waiting)

    def finish(self, trial: Trial) -> None:
        """Keeps the trial of a proposal that is out. What was never asked, is finished, or lacks a metric of the objective is refused."""
        if trial.number in self._done:
            raise AskTellError(f"proposal {trial.number} is finished already")
        if self.waiting.get(trial.number) != trial.arch:
            out = ", ".join(map(str, self.waiting)) or "none"
            raise AskTellError(f"trial {trial.number} with {dict(trial.arch)} was never asked for; the proposals that are out: {out}")
        if trial.status == "ok":
            for objective in self._objectives:
                objective.check(trial.metrics)  # once stored, what it lacks would end the search for good
        self.store.append(self.run, trial)
        del self.waiting[trial.number]
        self._done[trial.number] = trial
        if trial.status == "ok":
            self._known.setdefault(trial.arch, trial)
        self._fresh.append(trial.number)

    def recall(self, arch: Architecture) -> Attempt | None:
        """What the first trial of `arch` gave, if it was ok: evaluators give the same again, so what a policy draws twice is looked up."""
        known = self._known.get(arch)
        return None if known is None else (known.metrics, 0.0)

    def _propose(self, count: int) -> bool:
        """Asks the strategy for `count` more and puts them out; False where it has none."""
        rng = Random(f"{self.seed}/{self._proposed}")
        asked = asked_of(self.strategy, self.space, self._state, count, rng, tuple(self._untold.values()))
        if len(asked) < count:
            self.note = (
                f"{self.strategy.name} has nothing more to propose after {self._proposed + len(asked)} of {self.evaluations} evaluations; "
                f"the space has {self.space.size:,} architectures"
            )
        proposals = {self._proposed + at: arch for at, arch in enumerate(asked)}
        if proposals:
            self.store.add_pending(self.run, proposals)
        self.waiting |= proposals
        self._untold |= proposals
        self._proposed += len(proposals)
        return bool(proposals)

    def _tell(self, numbers: Sequence[int]) -> None:
        """Tells the strategy of these trials, in this order."""
        if numbers:
            self._state = told(self.strategy, self._state, [self._done[number] for number in numbers])
            self._told += len(numbers)
            for number in numbers:
                del self._untold[number]
            self._fresh = [number for number in self._fresh if number in self._untold]
        # the state follows from the trials, so keeping it only saves time; kept rarely, as it grows with them
        if self._told - self._saved > max(MOST_UNSAVED, self._saved // 4):
            content, arrays = self.strategy.save(self._state)
            self.store.save_state(self.run, content, told=self._told, arrays=arrays)
            self._saved = self._told

    @property
    def _recorded(self) -> bool:
        return isinstance(self.schedule, FreeRunning | Replay)

    def _proposals(self) -> list[tuple[int, Architecture]]:
        return sorted([*((trial.number, trial.arch) for trial in self._done.values()), *self.waiting.items()], key=lambda pair: pair[0])

    def _keep_schedule(self) -> None:
        """Refuses to go on by another rule than the one the search began with."""
        key, name = f"schedule {self.run}", self.schedule.name
        if self._proposed and (began := self.store.fact(key, "")) != name:
            raise AskTellError(f"the search {self.run!r} began {began or 'in batches'} and cannot go on {name or 'in batches'}")
        if name and not self._proposed:
            self.store.set_fact(key, name)


def ask_and_tell(
    search: AskTellSearch,
    evaluate: Evaluate,
    *,
    out_of_time: Callable[[], bool] = lambda: False,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """All trials of the search, after evaluating what it asks for, to its end or until `out_of_time`; what is out then is recorded as cut.

    evaluate: gives the metrics of an architecture, or raises EvaluationFailed for one that has none; the same each time, so a proposal that was
    evaluated before (a policy's, see `PolicyGradient`) is a trial of its own, but answered from memory.
    """
    while not out_of_time() and (batch := search.ask()):
        number, arch = next(iter(batch.items()))
        trial = _trial(number, arch, search, search.recall(arch) or attempt(evaluate, arch))
        search.finish(trial)
        on_trial(trial)
    _cut(search, on_trial)
    return search.trials


def ask_and_tell_side_by_side(
    search: AskTellSearch,
    submit: Callable[[Architecture], Future[Attempt]],
    *,
    out_of_time: Callable[[], bool] = lambda: False,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """As `ask_and_tell`, with all that is out under evaluation at once.

    submit: begins `attempt(evaluate, arch)` somewhere: `pool.submit` of a `Pool(count, attempt, common=(evaluate,))` of processes, or of
    threads with a partial. Which evaluation ends first makes no difference, unless the schedule is `FreeRunning`.
    """
    running: dict[Future[Attempt], int] = {}
    while not out_of_time():
        batch = search.ask()
        begun = set(running.values())
        running |= {_recalled(search, arch) or submit(arch): number for number, arch in batch.items() if number not in begun}
        if not running:
            break
        ended = wait(running, timeout=PATIENCE_S, return_when=FIRST_COMPLETED).done
        for future in sorted(ended, key=lambda one: running[one]):
            number = running.pop(future)
            trial = _trial(number, batch[number], search, future.result())
            search.finish(trial)
            on_trial(trial)
    _cut(search, on_trial)
    return search.trials


def _recalled(search: AskTellSearch, arch: Architecture) -> Future[Attempt] | None:
    if (found := search.recall(arch)) is None:
        return None
    future: Future[Attempt] = Future()
    future.set_result(found)
    return future


def attempt(evaluate: Evaluate, arch: Architecture) -> Attempt:
    """The metrics of `arch` and the seconds they took; where its evaluation failed, the reason in place of metrics."""
    began = time.perf_counter()
    try:
        metrics: Mapping[str, float] | str = dict(evaluate(arch))
    except EvaluationFailed as error:
        metrics = str(error)
    return metrics, time.perf_counter() - began


def _trial(number: int, arch: Architecture, search: AskTellSearch, found: Attempt) -> Trial:
    metrics, seconds = found
    if isinstance(metrics, str):
        return Trial(number, arch, {}, search.strategy.name, seconds, "failed", metrics)
    return Trial(number, arch, metrics, search.strategy.name, seconds)


def _cut(search: AskTellSearch, on_trial: Callable[[Trial], None]) -> None:
    """Ends the search, if it is not at its end: what is out is recorded as cut."""
    for number, arch in list(search.waiting.items()):
        trial = Trial(number, arch, {}, search.strategy.name, 0.0, "cut", "time ran out before it was evaluated")
        search.finish(trial)
        on_trial(trial)
