"""The contract of a strategy, as a test: for ours and for a user's own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np

from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.space.architecture import Architecture
from niwaki.space.choice import BudgetError
from niwaki.space.space import Decision, Space
from niwaki.store.checkpoint import pack, unpack
from niwaki.strategy.strategy import SearchSpace, Strategy
from niwaki.testing.toy import toy_evaluate, toy_macs, toy_space
from niwaki.trial import Status, Trial

ASKED_AT_ONCE = 100  # where many proposals are looked at

Evaluate = Callable[[Architecture], dict[str, float]]


class ContractError(AssertionError):
    """A clause of a contract that does not hold."""


def check_strategy(strategy: Strategy[Any], *, evaluations: int = 60, asks: int = 1_000) -> None:
    """Raises ContractError naming the first clause that `strategy` breaks, on small spaces with known answers.

    evaluations: how long the searches are; long enough for the strategy to leave its first phase. asks: for how many proposals it is seen
    that they keep a budget. A strategy whose class says `repeats = True`, as a policy that learns from what it draws, may propose again what
    it has proposed, as long as the evaluation did not fail; each proposal counts as an evaluation. All other clauses are the same for it.

    Everything runs in this process: a strategy that orders by Python's `hash` of strings passes, and yet goes another way when it is resumed.
    """
    space = toy_space()
    repeats = bool(getattr(strategy, "repeats", False))  # said by few, so that a user's own strategy need not
    evaluate = toy_evaluate(space)
    half = Limit(toy_macs(space), toy_macs(space).maximum()[0] // 2)
    name = getattr(strategy, "name", None)
    _require("a strategy has a name, the source of its trials", isinstance(name, str) and bool(name))
    with _global_randomness_untouched():
        for drawn_from in (space, within(space, [half])):
            with _clause("a search goes through: init, ask and tell raise nothing"):
                trials = _search(strategy, drawn_from, evaluate, evaluations)
                again = _search(strategy, drawn_from, evaluate, evaluations)
            _require("the same seed gives the same search", trials == again)
            if repeats:
                _require("a strategy that repeats goes on for as long as it is asked", len(trials) == evaluations)
            else:
                _require("no architecture is proposed twice while there are others", len({trial.arch for trial in trials}) == len(trials))
            _check_state(strategy, drawn_from, trials)
            killed = _search(strategy, drawn_from, evaluate, evaluations, between=_through_a_store)
            _require("a search killed after each batch and restored from JSON and arrays ends like one left alone", killed == trials)
            over = [trial for trial in trials if drawn_from is not space and trial.metrics["macs"] > half.upper]
            _require("within a budget, every proposal keeps it", not over)
        _check_batch_sizes(strategy, space, evaluate, repeats)
        check_budget(strategy, evaluations=evaluations, asks=asks)
        _check_failures(strategy, space, evaluate, evaluations, repeats)
        for drawn_from in (space, within(space, [half])):
            _check_strange_trials(strategy, space, drawn_from, evaluate, repeats)
        if not repeats:
            _check_pending(strategy, space, evaluate)
            _check_exhaustion(strategy)


def _check_state(strategy: Strategy[Any], space: SearchSpace, trials: Sequence[Trial]) -> None:
    """`trials` are those of an undisturbed search of batches of 4; its first half is told again in other ways."""
    half = len(trials) // 8 * 4
    state = strategy.init(space)
    for start in range(0, half, 4):
        state = strategy.tell(state, trials[start : start + 4])
    with _clause("a state can be saved as JSON and arrays"):
        before = _saved(strategy, state)

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
    with _clause("a state comes back from JSON and arrays as it was"):
        restored = _through_a_store(strategy, space, state)
        same = _saved(strategy, restored) == before
    _require("a state comes back from JSON and arrays as it was", same)
    _require("a restored state proposes what the state proposed", next_four(restored) == expected)


def _check_batch_sizes(strategy: Strategy[Any], space: Space, evaluate: Evaluate, repeats: bool) -> None:
    """As many as asked for, 1 to 32 at once, at the beginning of a search and later."""
    state, number = strategy.init(space), 0
    told: set[Architecture] = set()
    for count in (1, 7, 2, 32, 3):
        with _clause("a strategy gives as many proposals as it is asked for, whatever the batch"):
            asked = strategy.ask(state, count, Random(f"sizes/{number}"), pending=())
        _require("a strategy gives as many proposals as it is asked for, whatever the batch", len(asked) == count)
        _require("a batch holds no architecture twice, and none that was told", repeats or len(set(asked) | told) == count + len(told))
        told |= set(asked)
        state = strategy.tell(state, [Trial(number + at, arch, evaluate(arch), strategy.name) for at, arch in enumerate(asked)])
        number += count


def check_budget(strategy: Strategy[Any], *, evaluations: int = 60, asks: int = 10_000) -> None:
    """The clause on budgets alone: `asks` proposals, a hundred at once, in a space of more than that many, while a search of `evaluations` goes on."""
    space = toy_space(8)
    evaluate, macs = toy_evaluate(space), toy_macs(space)
    inside = within(space, [Limit(macs, macs.maximum()[0] // 3)])
    state, told = strategy.init(inside), 0
    for number in range(0, asks, ASKED_AT_ONCE):
        asked = strategy.ask(state, min(ASKED_AT_ONCE, asks - number), Random(f"budget/{number}"), pending=())
        kept = all(arch.space == space.hash for arch in asked) and inside.keeps(asked).all()
        _require(f"within a budget, every one of {asks:,} proposals keeps it", bool(kept))
        if told < evaluations:
            state = strategy.tell(state, [Trial(told + at, arch, evaluate(arch), strategy.name) for at, arch in enumerate(asked[:4])])
            told += 4


def _check_pending(strategy: Strategy[Any], space: Space, evaluate: Evaluate) -> None:
    trials = _search(strategy, space, evaluate, 24)
    state = strategy.tell(strategy.init(space), trials)
    first = strategy.ask(state, 8, Random("a"), pending=())
    second = strategy.ask(state, 8, Random("b"), pending=first)
    _require("what is pending does not keep a strategy from proposing more", len(first) == len(second) == 8)
    _require("what is pending is not proposed again", not set(first) & set(second))
    again = strategy.ask(state, 8, Random("a"), pending=first)
    _require("what is pending is not proposed again, drawn from the same random numbers", not set(first) & set(again))
    _require("what was told is not proposed again", not {trial.arch for trial in trials} & {*first, *second})


def _check_failures(strategy: Strategy[Any], space: Space, evaluate: Evaluate, evaluations: int, repeats: bool) -> None:
    def only_failures(_: Architecture) -> dict[str, float]:
        return {}

    def some_failures(arch: Architecture) -> dict[str, float]:
        metrics = evaluate(arch)
        return metrics if metrics["macs"] % 3 else {}

    for failing in (only_failures, some_failures):
        with _clause("failed trials do not stop a search"):
            trials = _search(strategy, space, failing, evaluations)
        _require("failed trials do not stop a search", len(trials) == evaluations)
        failed = [trial.arch for trial in trials if trial.status == "failed"]
        if repeats:  # the same may be out more than once when it fails: of 4 that are asked for at once
            failed = [arch for arch, _ in {(trial.arch, trial.number // 4): None for trial in trials if trial.status == "failed"}]
        _require("what failed is not proposed again", len(failed) == len(set(failed)))


def _check_strange_trials(strategy: Strategy[Any], whole: Space, space: SearchSpace, evaluate: Evaluate, repeats: bool) -> None:
    """What a run loop would refuse, but a user who tells by hand may do, of any architecture of the `whole` space."""
    trials = _search(strategy, space, evaluate, 12)
    state = strategy.tell(strategy.init(space), trials)
    proposed = {trial.arch for trial in trials}
    never = [arch for arch in whole.enumerate() if arch not in proposed][-40::8]
    foreign = [Trial(100 + at, arch, evaluate(arch), "user") for at, arch in enumerate(never)]
    cases = {
        "a trial told twice does no harm": (trials[-1:] * 2, {trials[-1].arch}),
        "a trial of an architecture that was never asked for is taken in": (foreign, set(never)),
        "a failed trial of an architecture that was never asked for is taken in": ([_without_metrics(foreign[0], "failed")], {never[0]}),
        "a trial that was cut is taken in": ([_without_metrics(foreign[1], "cut")], set()),
    }
    for clause, (told, known) in cases.items():
        with _clause(clause):
            after = strategy.tell(state, told)
            restored = _through_a_store(strategy, space, after)
            asked = strategy.ask(after, 8, Random("strange"), pending=())
            same = strategy.ask(restored, 8, Random("strange"), pending=()) == asked
        _require(f"{clause}, and the state comes back as it was", same)
        _require(f"{clause}, and is not proposed again", (repeats and told[0].status == "ok") or not known & set(asked))


def _check_exhaustion(strategy: Strategy[Any]) -> None:
    """Spaces of one and of 18 architectures, asked for more than there are."""
    one = Space((Decision("only", (3,)),))
    eighteen = Space((Decision("a", (1, 2, 3)), Decision("b", ("x", "y")), Decision("c", (False, True, (1, 2)))))
    for space in (one, eighteen):
        with _clause("a small space is searched to its end, each architecture once, and then nothing is proposed"):
            trials = _search(strategy, space, lambda arch: {"accuracy": len(repr(arch)) / 1000, "macs": 1.0}, space.size + 5)
        everything = len({trial.arch for trial in trials}) == len(trials) == space.size
        _require("a small space is searched to its end, each architecture once, and then nothing is proposed", everything)


def _search(
    strategy: Strategy[Any],
    space: SearchSpace,
    evaluate: Evaluate,
    evaluations: int,
    *,
    between: Callable[[Strategy[Any], SearchSpace, Any], Any] = lambda strategy, space, state: state,
) -> list[Trial]:
    """Ask, evaluate, tell in batches of 4; no metrics are a failure. The loop of `run.ask_tell`, without what makes it last.

    between: what happens to the state after each batch.
    """
    state, trials = strategy.init(space), list[Trial]()
    while len(trials) < evaluations:
        count = min(4, evaluations - len(trials))
        asked = strategy.ask(state, count, Random(f"0/{len(trials)}"), pending=())
        _require("a strategy proposes a list of at most as many as it is asked for", isinstance(asked, list) and len(asked) <= count)
        _require("a proposal is an architecture of the space", all(_belongs(arch, space) for arch in asked))
        if not asked:
            break
        batch = []
        for number, arch in enumerate(asked, start=len(trials)):
            metrics = evaluate(arch)
            batch.append(Trial(number, arch, metrics, strategy.name, status="ok" if metrics else "failed"))
        after = strategy.tell(state, batch)
        _require("tell gives the state after the trials, not None", after is not None or state is None)
        state = between(strategy, space, after)
        trials += batch
    return trials


def _through_a_store(strategy: Strategy[Any], space: SearchSpace, state: Any) -> Any:
    """`state` as another process would read it."""
    content, arrays = strategy.save(state)
    arrays, content = unpack(pack(arrays, content))
    return strategy.load(space, content, arrays)


def _without_metrics(trial: Trial, status: Status) -> Trial:
    return replace(trial, metrics={}, status=status)


def _belongs(arch: Architecture, space: SearchSpace) -> bool:
    if not isinstance(arch, Architecture) or arch.space != space.hash:
        return False
    try:
        return space.from_key(arch.key) == arch
    except BudgetError:  # that is another clause
        return True


def _saved(strategy: Strategy[Any], state: Any) -> bytes:
    content, arrays = strategy.save(state)
    return pack(arrays, content)


def _told_and_saved(strategy: Strategy[Any], state: Any, trials: Sequence[Trial]) -> bytes:
    """What `state` is after another state was made of it."""
    strategy.tell(state, trials)
    return _saved(strategy, state)


@contextmanager
def _clause(clause: str) -> Iterator[None]:
    """Whatever is raised inside breaks `clause`."""
    try:
        yield
    except ContractError:
        raise
    except Exception as error:
        raise ContractError(f"the contract of a strategy is broken: {clause}; it raised {type(error).__name__}: {error}") from error


@contextmanager
def _global_randomness_untouched() -> Iterator[None]:
    python, numpy = random.getstate(), str(np.random.get_state())
    yield
    _require("random numbers come from the given rng alone", (random.getstate(), str(np.random.get_state())) == (python, numpy))


def _require(clause: str, holds: bool) -> None:
    if not holds:
        raise ContractError(f"the contract of a strategy is broken: {clause}")
