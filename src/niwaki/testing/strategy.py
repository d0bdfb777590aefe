"""The contract of a strategy, as a test: for ours and for a user's own."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import numpy as np

from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.space.architecture import Architecture
from niwaki.space.space import Decision, Space
from niwaki.store.checkpoint import pack
from niwaki.strategy.strategy import SearchSpace, Strategy
from niwaki.testing.toy import toy_evaluate, toy_macs, toy_space
from niwaki.trial import Trial

Evaluate = Callable[[Architecture], dict[str, float]]


class ContractError(AssertionError):
    """A clause of a contract that does not hold."""


def check_strategy(strategy: Strategy[Any], *, evaluations: int = 60) -> None:
    """Raises ContractError naming the first clause that `strategy` breaks, on small spaces with known answers.

    evaluations: how long the searches are; long enough for the strategy to leave its first phase.
    A strategy whose class says `repeats = True`, as a policy that learns from what it draws, may propose again what it has proposed, as long
    as the evaluation did not fail; each proposal counts as an evaluation. All other clauses are the same for it.
    """
    space = toy_space()
    repeats = bool(getattr(strategy, "repeats", False))  # said by few, so that a user's own strategy need not
    evaluate = toy_evaluate(space)
    half = Limit(toy_macs(space), toy_macs(space).maximum()[0] // 2)
    with _global_randomness_untouched():
        for drawn_from in (space, within(space, [half])):
            trials = _search(strategy, drawn_from, evaluate, evaluations)
            _require("a proposal is an architecture of the space", all(_belongs(trial.arch, space) for trial in trials))
            _require("the same seed gives the same search", trials == _search(strategy, drawn_from, evaluate, evaluations))
            if repeats:
                _require("a strategy that repeats goes on for as long as it is asked", len(trials) == evaluations)
            else:
                _require("no architecture is proposed twice while there are others", len({trial.arch for trial in trials}) == len(trials))
            _check_state(strategy, drawn_from, evaluate, trials)
        kept = _search(strategy, within(space, [half]), evaluate, evaluations)
        _require("within a budget, every proposal keeps it", all(trial.metrics["macs"] <= half.upper for trial in kept))
        _check_failures(strategy, space, evaluate, evaluations)
        if not repeats:
            _check_pending(strategy, space, evaluate)
            _check_exhaustion(strategy)


def _check_state(strategy: Strategy[Any], space: SearchSpace, evaluate: Evaluate, trials: Sequence[Trial]) -> None:
    """`trials` are those of an undisturbed search of batches of 4; the search is made again in other ways."""
    half = len(trials) // 8 * 4
    state = strategy.init(space)
    for start in range(0, half, 4):
        state = strategy.tell(state, trials[start : start + 4])
    content, arrays = strategy.save(state)
    before = pack(arrays, content)

    def next_four(state: Any) -> list[Architecture]:
        return strategy.ask(state, 4, Random(f"0/{half}"), pending=())

    expected = [trial.arch for trial in trials[half : half + 4]]
    _require("ask leaves the state as it is: asked twice, it proposes the same", next_four(state) == next_four(state) == expected)
    _require("ask and tell leave the state that they are given as it is", _told_and_saved(strategy, state, trials[half:]) == before)
    one_by_one = strategy.init(space)
    for trial in trials[:half]:
        one_by_one = strategy.tell(one_by_one, [trial])
    at_once = strategy.tell(strategy.init(space), trials[:half])
    _require("telling trials one by one is telling them in batches", _saved(strategy, one_by_one) == before)
    _require("telling trials at once is telling them in batches", _saved(strategy, at_once) == before)
    restored = strategy.load(space, json.loads(json.dumps(content)), {name: array.copy() for name, array in arrays.items()})
    _require("a state comes back from JSON and arrays as it was", _saved(strategy, restored) == before)
    _require("a restored state proposes what the state proposed", next_four(restored) == expected)
    rest = _search(strategy, space, evaluate, len(trials), state=restored, done=trials[:half])
    _require("a search restored midway ends like one left alone", rest == list(trials))


def _check_pending(strategy: Strategy[Any], space: Space, evaluate: Evaluate) -> None:
    trials = _search(strategy, space, evaluate, 24)
    state = strategy.tell(strategy.init(space), trials)
    first = strategy.ask(state, 8, Random("a"), pending=())
    second = strategy.ask(state, 8, Random("b"), pending=first)
    _require("what is pending is not proposed again", not set(first) & set(second))
    again = strategy.ask(state, 8, Random("a"), pending=first)
    _require("what is pending is not proposed again, drawn from the same random numbers", not set(first) & set(again))
    _require("what was told is not proposed again", not {trial.arch for trial in trials} & {*first, *second})


def _check_failures(strategy: Strategy[Any], space: Space, evaluate: Evaluate, evaluations: int) -> None:
    def only_failures(_: Architecture) -> dict[str, float]:
        return {}

    def some_failures(arch: Architecture) -> dict[str, float]:
        metrics = evaluate(arch)
        return metrics if metrics["macs"] % 3 else {}

    for failing in (only_failures, some_failures):
        trials = _search(strategy, space, failing, evaluations)
        _require("failed trials do not stop a search", len(trials) == evaluations)
        failed_in = {(trial.arch, trial.number // 4) for trial in trials if trial.status == "failed"}  # 4 are out at once
        _require("what was told as failed is not proposed again", len({arch for arch, _ in failed_in}) == len(failed_in))


def _check_exhaustion(strategy: Strategy[Any]) -> None:
    """Spaces of one and of 18 architectures, asked for more than there are."""
    one = Space((Decision("only", (3,)),))
    eighteen = Space((Decision("a", (1, 2, 3)), Decision("b", ("x", "y")), Decision("c", (False, True, (1, 2)))))
    for space in (one, eighteen):
        trials = _search(strategy, space, lambda arch: {"accuracy": len(repr(arch)) / 1000, "macs": 1.0}, space.size + 5)
        everything = len({trial.arch for trial in trials}) == len(trials) == space.size
        _require("a small space is searched to its end, each architecture once, and then nothing is proposed", everything)


def _search(
    strategy: Strategy[Any], space: SearchSpace, evaluate: Evaluate, evaluations: int, *, state: Any = None, done: Sequence[Trial] = ()
) -> list[Trial]:
    """Ask, evaluate, tell in batches of 4; no metrics are a failure. The loop of `run.ask_tell`, without what makes it last."""
    state, trials = strategy.init(space) if state is None else state, list(done)
    while len(trials) < evaluations:
        count = min(4, evaluations - len(trials))
        asked = strategy.ask(state, count, Random(f"0/{len(trials)}"), pending=())
        _require("a strategy proposes a list of at most as many as it is asked for", isinstance(asked, list) and len(asked) <= count)
        if not asked:
            break
        batch = []
        for number, arch in enumerate(asked, start=len(trials)):
            metrics = evaluate(arch)
            batch.append(Trial(number, arch, metrics, strategy.name, status="ok" if metrics else "failed"))
        state = strategy.tell(state, batch)
        trials += batch
    return trials


def _belongs(arch: Architecture, space: Space) -> bool:
    return isinstance(arch, Architecture) and arch.space == space.hash and space.architecture(dict(arch)) == arch


def _saved(strategy: Strategy[Any], state: Any) -> bytes:
    content, arrays = strategy.save(state)
    return pack(arrays, content)


def _told_and_saved(strategy: Strategy[Any], state: Any, trials: Sequence[Trial]) -> bytes:
    """What `state` is after another state was made of it."""
    strategy.tell(state, trials)
    return _saved(strategy, state)


@contextmanager
def _global_randomness_untouched() -> Iterator[None]:
    python, numpy = random.getstate(), str(np.random.get_state())
    yield
    _require("random numbers come from the given rng alone", (random.getstate(), str(np.random.get_state())) == (python, numpy))


def _require(clause: str, holds: bool) -> None:
    if not holds:
        raise ContractError(f"the contract of a strategy is broken: {clause}")
