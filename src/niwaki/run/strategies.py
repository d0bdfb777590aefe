"""Strategies by name, for where words arrive: the command line and configurations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from niwaki.objective import Objective
from niwaki.recipe import mnasnet, nao, neural_predictor, tabnas, tunas
from niwaki.strategy.default import Default
from niwaki.strategy.evolution import RegularizedEvolution
from niwaki.strategy.exhaustive import Exhaustive
from niwaki.strategy.local_search import LocalSearch
from niwaki.strategy.neural_predictor import NeuralPredictor
from niwaki.strategy.nsga2 import NSGA2
from niwaki.strategy.policy import softmaxes
from niwaki.strategy.policy_gradient import Adam, PolicyGradient
from niwaki.strategy.q_learning import QLearning
from niwaki.strategy.random import RandomSearch
from niwaki.strategy.strategy import Strategy
from niwaki.strategy.tree import ChowLiuSearch, CrankSearch

Objectives = tuple[Objective, ...]


class UnknownStrategy(ValueError):
    """A name that no strategy has, or a strategy that cannot do what it is asked for."""


@dataclass(frozen=True)
class Named:
    """A strategy as a name stands for it. several: whether it searches for more than one objective at once."""

    make: Callable[[Objectives], Strategy[Any]]
    several: bool = False


STRATEGIES: dict[str, Named] = {
    "default": Named(lambda objectives: Default(objectives), several=True),
    "random": Named(lambda objectives: RandomSearch(), several=True),
    "exhaustive": Named(lambda objectives: Exhaustive(), several=True),
    "evolution": Named(lambda objectives: RegularizedEvolution(objectives[0])),
    "local-search": Named(lambda objectives: LocalSearch(objectives[0])),
    "chow-liu": Named(lambda objectives: ChowLiuSearch(objectives[0])),
    "crank": Named(lambda objectives: CrankSearch(objectives[0])),
    "nsga2": Named(lambda objectives: NSGA2(objectives), several=True),
    "reinforce": Named(lambda objectives: PolicyGradient(objectives[0], optimizer=Adam(tunas.TABLE_LR, betas=(0.0, 0.999)))),
    "ppo": Named(lambda objectives: mnasnet.controller(objectives[0], lr=mnasnet.TABLE_LR, kind=softmaxes, name="ppo")),
    "nao": Named(lambda objectives: nao.table(objectives[0])),
    "neural-predictor": Named(lambda objectives: NeuralPredictor(objectives[0], first=100, recipe=neural_predictor.TABLE)),
    "q-learning": Named(lambda objectives: QLearning(objectives[0], rate=0.1, evaluations=1000)),
    "tabnas": Named(lambda objectives: tabnas.exact(objectives[0], lr=tabnas.TABLE_LR)),
}


def strategy_named(name: str, objectives: Objectives) -> Strategy[Any]:
    """The strategy called `name` with its defaults, to search for these objectives. "_" is as good as "-"."""
    found = STRATEGIES.get(name.replace("_", "-"))
    if found is None:
        close = get_close_matches(name.replace("_", "-"), STRATEGIES, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(STRATEGIES)}"
        raise UnknownStrategy(f"no strategy is called {name!r}; {hint}")
    if len(objectives) > 1 and not found.several:
        able = ", ".join(name for name, named in STRATEGIES.items() if named.several)
        raise UnknownStrategy(f"{name} searches for one objective, not for {len(objectives)} at once; those that do are {able}")
    return found.make(objectives)
