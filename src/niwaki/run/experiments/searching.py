"""One search on a table, as the experiments of policies run it: what was told, and where the policy ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from niwaki.space.architecture import Architecture
from niwaki.strategy.policy_gradient import PolicyGradient
from niwaki.strategy.strategy import SearchSpace
from niwaki.trial import Trial


@dataclass(frozen=True)
class Searched:
    """A finished search. trials: in order, repeats included; mode: the policy's most likely architecture, given the budget if it knows one."""

    trials: tuple[Trial, ...]
    mode: Architecture


def searched(
    strategy: PolicyGradient, space: SearchSpace, metrics: Callable[[Architecture], Mapping[str, float]], evaluations: int, seed: int
) -> Searched:
    """The search of so many evaluations, asked for in the strategy's batches; a batch that begins with number i draws from (seed, i)."""
    state, trials = strategy.init(space), list[Trial]()
    while len(trials) < evaluations:
        count = min(strategy.batch_size, evaluations - len(trials))
        asked = strategy.ask(state, count, Random(f"{seed}/{len(trials)}"), pending=())
        batch = [Trial(len(trials) + at, arch, metrics(arch), strategy.name) for at, arch in enumerate(asked)]
        state = strategy.tell(state, batch)
        trials += batch
    return Searched(tuple(trials), strategy.mode(state))
