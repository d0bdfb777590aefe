"""PyGlove's flows of search (Peng et al., NeurIPS 2020): all decisions at once, one part after the other, or one part within the other.

`where` says which decisions a part has; the rest of the network keeps the options that it is given (`niwaki.net.edit.expose`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import Any

from niwaki.net.control import Network
from niwaki.net.edit import expose
from niwaki.net.place import space_of
from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.run.ask_tell import Evaluate, attempt
from niwaki.run.asking import asked_of, begun, told
from niwaki.space.architecture import Architecture
from niwaki.space.choice import Value
from niwaki.space.space import Decision, Space
from niwaki.strategy.strategy import Strategy
from niwaki.trial import Trial

Where = Callable[[Decision], bool]


def joint(network: Network, strategy: Strategy[Any], evaluate: Evaluate, evaluations: int, *, seed: int = 0) -> list[Trial]:
    """Trials of all decisions at once."""
    return search_part(network, lambda decision: True, {}, strategy, evaluate, evaluations, seed=seed)


def separate(
    network: Network,
    first: Where,
    strategy: Strategy[Any],
    evaluate: Evaluate,
    evaluations: tuple[int, int],
    *,
    objective: Objective = BEST_ACCURACY,
    start: Mapping[str, Value] | None = None,
    seed: int = 0,
) -> list[Trial]:
    """Trials of the decisions that `first` selects, the others as in `start` or at their first option; then of the others, these at the best found.

    evaluations: of the two parts. It finds the best of all only where what is best for one part does not depend on the other.
    """
    begun = search_part(network, first, start or {}, strategy, evaluate, evaluations[0], seed=seed)
    best = objective.best(begun).arch
    after = search_part(network, lambda decision: not first(decision), best, strategy, evaluate, evaluations[1], seed=seed + 1)
    return _numbered([*begun, *after])


def nested(
    network: Network,
    outer: Where,
    strategy: Strategy[Any],
    inner_strategy: Strategy[Any],
    evaluate: Evaluate,
    evaluations: tuple[int, int],
    *,
    objective: Objective = BEST_ACCURACY,
    seed: int = 0,
) -> list[Trial]:
    """Trials of a search among the decisions that `outer` selects, in which each is worth the best of a search among the others.

    evaluations: how many outer architectures, and how many trials within each. Returned are all trials, those within one after the other.
    """
    trials: list[Trial] = []

    def worth(arch: Architecture) -> Mapping[str, float]:
        chosen = {name: option for name, option in arch.items() if outer(whole[name])}
        found = search_part(
            network, lambda decision: not outer(decision), chosen, inner_strategy, evaluate, evaluations[1], seed=seed + len(trials)
        )
        trials.extend(found)
        return objective.best(found).metrics

    whole = space_of(network)
    search_part(network, outer, {}, strategy, worth, evaluations[0], seed=seed)
    return _numbered(trials)


def search_part(
    network: Network,
    where: Where,
    fixed: Mapping[str, Value],
    strategy: Strategy[Any],
    evaluate: Evaluate,
    evaluations: int,
    *,
    seed: int = 0,
) -> list[Trial]:
    """Trials of the decisions that `where` selects, one after the other; the others are as in `fixed`, or at their first option.

    evaluate and the trials see architectures of the whole network. There are fewer trials where the part has fewer architectures.
    """
    whole, part = space_of(network), space_of(expose(network, where, fixed))
    state, trials = begun(strategy, part), list[Trial]()
    while len(trials) < evaluations and (asked := asked_of(strategy, part, state, 1, Random(f"{seed}/{len(trials)}"), ())):
        (arch,) = asked
        metrics, seconds = attempt(evaluate, _in_whole(whole, {**fixed, **arch}))
        more: dict[str, Any] = {"status": "failed", "note": metrics} if isinstance(metrics, str) else {"metrics": metrics}
        in_part = Trial(len(trials), arch, source=strategy.name, seconds=seconds, **more)
        trials.append(Trial(len(trials), _in_whole(whole, {**fixed, **arch}), source=strategy.name, seconds=seconds, **more))
        state = told(strategy, state, [in_part])
    return trials


def _in_whole(space: Space, taken: Mapping[str, Value]) -> Architecture:
    """The architecture that takes these options where they exist, and first options elsewhere."""
    numbers = [decision.options.index(taken[decision.name]) if decision.name in taken else 0 for decision in space]
    return space.from_indices(numbers)


def _numbered(trials: list[Trial]) -> list[Trial]:
    return [Trial(at, one.arch, one.metrics, one.source, one.seconds, one.status, one.note) for at, one in enumerate(trials)]
