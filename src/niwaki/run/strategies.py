"""Strategies by name, for where words arrive: the command line and configurations."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from niwaki.objective import Objective
from niwaki.recipe import mnasnet, nao, neural_predictor, tabnas, tunas
from niwaki.run.model import module_of
from niwaki.strategy.coarse_to_fine import CoarseToFine
from niwaki.strategy.default import STARTS, Default
from niwaki.strategy.evolution import RegularizedEvolution
from niwaki.strategy.exhaustive import Exhaustive
from niwaki.strategy.local_search import LocalSearch
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
    """A strategy as a name stands for it. make: of the objectives and the number of evaluations, which some of them divide into phases.

    several: whether it searches for more than one objective at once. least: evaluations that it needs to do anything of its own. random: so
    many of the first are drawn at random; those who search with fewer compare nothing but random search.
    """

    make: Callable[[Objectives, int], Strategy[Any]]
    several: bool = False
    least: int = 1
    random: int = 0


def _optuna(sampler: str) -> Callable[[Objectives, int], Strategy[Any]]:
    """A sampler of Optuna with its defaults; Optuna is an extra, and is asked for only where it is named."""

    def make(objectives: Objectives, evaluations: int) -> Strategy[Any]:
        try:
            adapter, samplers = importlib.import_module("niwaki.strategy.optuna"), importlib.import_module("optuna.samplers")
        except ModuleNotFoundError as error:
            raise UnknownStrategy(f"Optuna's samplers need {error.name}: pip install 'niwaki[optuna]'") from error
        return adapter.OptunaStrategy(lambda seed: getattr(samplers, sampler)(seed=seed), objectives)

    return make


STRATEGIES: dict[str, Named] = {
    "default": Named(lambda objectives, evaluations: Default(objectives), several=True, random=STARTS),
    "random": Named(lambda objectives, evaluations: RandomSearch(), several=True),
    "exhaustive": Named(lambda objectives, evaluations: Exhaustive(), several=True),
    "evolution": Named(lambda objectives, evaluations: RegularizedEvolution(objectives[0]), random=RegularizedEvolution.population_size),
    # half of the evaluations for skeletons
    "coarse-to-fine": Named(lambda objectives, evaluations: CoarseToFine(objectives[0], skeletons=max(1, min(64, evaluations // 2)))),
    "local-search": Named(lambda objectives, evaluations: LocalSearch(objectives[0]), random=LocalSearch.founders),
    "chow-liu": Named(lambda objectives, evaluations: ChowLiuSearch(objectives[0]), random=ChowLiuSearch.founders),
    "crank": Named(lambda objectives, evaluations: CrankSearch(objectives[0]), random=CrankSearch.founders),
    "nsga2": Named(lambda objectives, evaluations: NSGA2(objectives), several=True, random=NSGA2.population_size),
    "reinforce": Named(lambda objectives, evaluations: PolicyGradient(objectives[0], optimizer=Adam(tunas.TABLE_LR, betas=(0.0, 0.999)))),
    "ppo": Named(lambda objectives, evaluations: mnasnet.controller(objectives[0], lr=mnasnet.TABLE_LR, kind=softmaxes, name="ppo")),
    "nao": Named(lambda objectives, evaluations: nao.table(objectives[0], evaluations), least=20),
    "optuna": Named(_optuna("TPESampler"), several=True),  # its default
    "optuna-tpe": Named(_optuna("TPESampler"), several=True),
    "optuna-nsga2": Named(_optuna("NSGAIISampler"), several=True),
    "optuna-gp": Named(_optuna("GPSampler"), several=True),
    "neural-predictor": Named(lambda objectives, evaluations: neural_predictor.of_evaluations(objectives[0], evaluations), least=10),
    "q-learning": Named(lambda objectives, evaluations: QLearning(objectives[0], rate=0.1, evaluations=evaluations), least=2),
    "tabnas": Named(lambda objectives, evaluations: tabnas.exact(objectives[0], lr=tabnas.TABLE_LR)),
}
ALIASES = {"regularized-evolution": "evolution"}


def strategy_named(name: str, objectives: Objectives, evaluations: int = 200) -> Strategy[Any]:
    """The strategy called `name` with its defaults, to search for these objectives in so many evaluations. "_" is as good as "-".

    `module:attr` or `file.py:attr` is one of the caller's own: a strategy, or what makes one of the objectives, a tuple.
    """
    if ":" in name:
        return _own(name, objectives)
    found = _ours(name)
    if found is None:
        close = get_close_matches(name.replace("_", "-"), STRATEGIES, n=3)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"there are {', '.join(STRATEGIES)}, and file.py:attr"
        raise UnknownStrategy(f"no strategy is called {name!r}; {hint}")
    if len(objectives) > 1 and not found.several:
        able = ", ".join(name for name, named in STRATEGIES.items() if named.several)
        raise UnknownStrategy(f"{name} searches for one objective, not for {len(objectives)} at once; those that do are {able}")
    if evaluations < found.least:
        raise UnknownStrategy(f"{name} needs at least {found.least} evaluations to do anything of its own, and is given {evaluations}")
    return found.make(objectives, evaluations)


def random_at_first(name: str) -> int:
    """How many of its first evaluations the strategy called `name` draws at random, whatever it is told; 0 where that is not known."""
    found = _ours(name)
    return found.random if found else 0


def own_code(name: str) -> str:
    """A hash of the file that a strategy of the caller's own stands in; "" for one of ours."""
    if ":" not in name:
        return ""
    file = module_of(name.partition("#")[0].rpartition(":")[0]).__file__
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8] if file else ""


def _ours(name: str) -> Named | None:
    word = name.replace("_", "-")
    return STRATEGIES.get(ALIASES.get(word, word))


def _own(name: str, objectives: Objectives) -> Strategy[Any]:
    where, _, attribute = name.rpartition(":")
    module = module_of(where)
    if attribute not in vars(module):
        public = ", ".join(one for one in vars(module) if not one.startswith("_"))
        raise UnknownStrategy(f"{where} has no {attribute!r}; it has {public}")
    found = getattr(module, attribute)
    parts = ("name", "init", "ask", "tell")
    try:
        made = found(objectives) if isinstance(found, type) or not all(hasattr(found, part) for part in parts) else found
    except Exception as error:
        raise UnknownStrategy(
            f"{name} is called with one argument, the tuple of the objectives, to make a strategy, but: {type(error).__name__}: {error}"
        ) from error
    if missing := [part for part in parts if not hasattr(made, part)]:
        raise UnknownStrategy(f"{name} gives a {type(made).__name__}, which has no {missing[0]!r}: it is no strategy")
    return made
