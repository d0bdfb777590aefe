"""Asking and telling a strategy that anybody may have written: whatever it gives that it may not give is one error that names it."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

from niwaki.objective import Objective
from niwaki.objective.error import ObjectiveError
from niwaki.space.architecture import Architecture
from niwaki.space.choice import BudgetError, SpaceError
from niwaki.strategy.strategy import SearchSpace, Strategy
from niwaki.trial import Trial


class StrategyError(ValueError):
    """A strategy that does not keep to its part."""


PLAIN = (SpaceError, BudgetError, ObjectiveError, StrategyError)  # errors that say themselves what is wrong, and with what


def objectives_of(strategy: Strategy[Any]) -> tuple[Objective, ...]:
    """What it says that it searches for; nothing, where it does not say."""
    said = getattr(strategy, "objectives", None) or getattr(strategy, "objective", ())
    return tuple(one for one in (said if isinstance(said, list | tuple) else (said,)) if isinstance(one, Objective))


def begun(strategy: Strategy[Any], space: SearchSpace) -> Any:
    """The state of `strategy` before anything is known."""
    if not isinstance(getattr(strategy, "name", None), str) or not strategy.name:
        raise StrategyError(f"a {type(strategy).__name__} has no name; a strategy's `name` is text, the source of its trials")
    with _named(strategy, "init"):
        return strategy.init(space)


def asked_of(
    strategy: Strategy[Any], space: SearchSpace, state: Any, count: int, rng: Random, pending: Sequence[Architecture]
) -> list[Architecture]:
    """At most `count` proposals, all of `space`. None is there twice, and none is pending, unless the strategy says that it repeats."""
    with _named(strategy, f"ask for {count}"):
        asked = strategy.ask(state, count, rng, pending)

    def refuse(what: str) -> StrategyError:
        return StrategyError(f"{strategy.name} was asked for {count} of space {space.hash} and gave {what}")

    if not isinstance(asked, list | tuple):
        raise refuse(f"{_short(asked)}, which is no list of architectures")
    if len(asked) > count:
        raise refuse(f"{len(asked)}: {_short(asked)}")
    for arch in asked:
        if not isinstance(arch, Architecture):
            raise refuse(
                f"{_short(arch)}, a {type(arch).__name__}; `space.architecture({{name: option, ...}})` makes an architecture of choices"
            )
        if arch.space != space.hash:
            raise refuse(f"one of the space {arch.space}: {_short(dict(arch))}")
    if not getattr(strategy, "repeats", False) and len({*asked, *pending}) < len(asked) + len(set(pending)):
        again = next(arch for at, arch in enumerate(asked) if arch in asked[:at] or arch in pending)
        raise refuse(f"{_short(dict(again))} twice, or while it is pending; a strategy that may repeat says `repeats = True` in its class")
    return list(asked)


def told(strategy: Strategy[Any], state: Any, trials: Sequence[Trial]) -> Any:
    """The state after these trials."""
    with _named(strategy, f"tell of {len(trials)} trials"):
        after = strategy.tell(state, trials)
    if after is None and state is not None:
        raise StrategyError(f"{strategy.name} gave None when it was told of {len(trials)} trials; `tell` gives the state after them")
    return after


@contextmanager
def _named(strategy: Strategy[Any], what: str) -> Iterator[None]:
    """Errors with the strategy's name; what is wrong with a space, a budget or an objective says so itself."""
    try:
        yield
    except PLAIN:
        raise
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise StrategyError(
            f"{strategy.name} failed to {what}: {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"
        ) from error


def _short(value: object) -> str:
    return f"{value!r:.300}"
