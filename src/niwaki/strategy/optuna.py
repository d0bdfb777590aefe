"""Optuna in both directions: any of its samplers as a strategy, and our trials as a study that optuna-dashboard opens. Needs the extra `optuna`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.samplers._ga import BaseGASampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError
from niwaki.space.space import Decision, Space
from niwaki.strategy.evolution import Member, members_from_arrays, members_to_arrays
from niwaki.strategy.seen import Log, Seen
from niwaki.strategy.strategy import SearchSpace, check_space, fingerprint, unseen
from niwaki.trial import Trial

TRIES = 20  # draws of the sampler that are known, pending, over a budget or not listed, before any other architecture is taken

MakeSampler = Callable[[int], BaseSampler]


def tpe(seed: int) -> BaseSampler:
    """Optuna's default sampler, with its defaults."""
    return TPESampler(seed=seed)


@dataclass(frozen=True)
class OptunaState:
    space: SearchSpace
    seen: Seen = field(default_factory=Seen)  # all that was told
    members: Log[Member] = field(default_factory=Log)  # those that have metrics


@dataclass(frozen=True)
class OptunaStrategy:
    """An Optuna sampler as a strategy. sampler: makes one of a seed, such as `lambda seed: GPSampler(seed=seed)`.

    Each `ask` makes the study anew from the trials told, and the sampler from the random numbers given: whatever a sampler keeps to itself
    cannot be lost. Of what samplers keep in a study, the generations of the genetic ones are restored, by the order of the trials. A decision
    is suggested by its name, where it exists; its options are categories. Limits of the objectives are Optuna's constraints; budgets of the
    space are kept by drawing again. Among a list of few of very many architectures hardly any draw is one of them, so that the search is random. objectives: several make a study of several directions.
    """

    sampler: MakeSampler = tpe
    objectives: tuple[Objective, ...] = (BEST_ACCURACY,)
    name: str = "optuna"

    def __post_init__(self) -> None:
        object.__setattr__(self, "objectives", tuple(self.objectives))
        if not self.objectives:
            raise ValueError("a study of Optuna needs at least 1 objective")

    def init(self, space: SearchSpace) -> OptunaState:
        return OptunaState(space)

    def ask(self, state: OptunaState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        names = _Names(state.space)
        with _quiet():
            sampler = self.sampler(rng.getrandbits(32))
            study = optuna.create_study(directions=[StudyDirection.MAXIMIZE] * len(self.objectives), sampler=sampler)
            study.add_trials(
                [self._frozen(names, member, _generation(sampler, number)) for number, member in enumerate(state.members)]
                + [names.frozen(arch, state=TrialState.RUNNING) for arch in pending]
            )
            asked: list[Architecture] = []
            taken = state.seen.with_(fingerprint(arch) for arch in pending)
            while len(asked) < count:
                arch = _proposed(study, names, taken) or unseen(lambda: state.space.sample_uniform(rng), state.space, taken, rng)
                if arch is None:
                    break
                asked.append(arch)
                taken = taken.with_([fingerprint(arch)])
        return asked

    def tell(self, state: OptunaState, trials: Sequence[Trial]) -> OptunaState:
        ok = [Member(trial.arch, trial.metrics) for trial in trials if trial.status == "ok"]
        return OptunaState(state.space, state.seen.with_(fingerprint(trial.arch) for trial in trials), state.members.with_(ok))

    def save(self, state: OptunaState) -> tuple[Any, dict[str, np.ndarray]]:
        names, arrays = members_to_arrays(list(state.members))
        return {"space": state.space.hash, "metrics": names}, {"seen": state.seen.to_array(), **arrays}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> OptunaState:
        check_space(content, space)
        return OptunaState(space, Seen.from_array(arrays["seen"]), Log(members_from_arrays(content["metrics"], arrays, space)))

    def _frozen(self, names: _Names, member: Member, attributes: Mapping[str, Any]) -> FrozenTrial:
        return names.frozen(
            member.arch,
            state=TrialState.COMPLETE,
            values=[objective.quality(member.metrics) for objective in self.objectives],
            constraints=_constraints(self.objectives, member.metrics),
            system_attrs=dict(attributes),
        )


def to_optuna_study(
    trials: Sequence[Trial],
    space: Space,
    objective: Objective | Sequence[Objective],
    storage: Any,
    *,
    name: str = "niwaki",
) -> optuna.Study:
    """Our trials as the study `name` in an Optuna storage ("sqlite:///study.db"), which optuna-dashboard opens. A study that is there already,
    of the same space and objectives, gets the trials that it lacks, by their numbers; SpaceError for one of others.

    Its parameters are the decisions, its values the objectives' qualities (all to be large), its constraints their limits. All metrics, the
    source, the number and the note of a trial are its user attributes; what failed or was cut is a failed trial.
    """
    objectives = (objective,) if isinstance(objective, Objective) else tuple(objective)
    names = _Names(space)
    with _quiet():
        study = optuna.create_study(
            study_name=name, storage=storage, directions=[StudyDirection.MAXIMIZE] * len(objectives), load_if_exists=True
        )
        kept = study.get_trials(deepcopy=False)
        wanted, there = (space.hash, [one.maximize for one in objectives]), (study.user_attrs.get("space"), study.metric_names)
        if (kept or study.user_attrs) and there != wanted:
            raise SpaceError(
                f"the study {name!r} is there already, of the space {there[0]} and {there[1]}, not of {wanted[0]} and {wanted[1]}; "
                "give another name="
            )
        study.set_metric_names(wanted[1])
        study.set_user_attr("space", space.hash)
        numbers = {one.user_attrs.get("number") for one in kept}  # Optuna's own trials have none
        for trial in (trial for trial in trials if trial.number not in numbers):
            study.add_trial(
                names.frozen(
                    trial.arch,
                    state=TrialState.COMPLETE if trial.status == "ok" else TrialState.FAIL,
                    values=[one.quality(trial.metrics) for one in objectives] if trial.status == "ok" else None,
                    constraints=_constraints(objectives, trial.metrics) if trial.status == "ok" else None,
                    user_attrs={
                        **dict(trial.metrics),
                        "number": trial.number,
                        "source": trial.source,
                        "seconds": trial.seconds,
                        "status": trial.status,
                        **({"note": trial.note} if trial.note else {}),
                    },
                )
            )
    return study


class _Names:
    """The decisions of a space as Optuna's parameters, and their options as its categories."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.decisions = space.decisions
        self.labels = {decision.name: _labels(decision) for decision in self.decisions}
        self.distributions: dict[str, BaseDistribution] = {name: CategoricalDistribution(labels) for name, labels in self.labels.items()}
        self._numbers = {name: {label: number for number, label in enumerate(labels)} for name, labels in self.labels.items()}

    def frozen(self, arch: Architecture, **more: Any) -> FrozenTrial:
        (row,) = self.space.indices([arch])
        params = {d.name: self.labels[d.name][number] for d, number in zip(self.decisions, row, strict=True) if d.name in arch}
        return optuna.create_trial(params=params, distributions={name: self.distributions[name] for name in params}, **more)

    def suggested(self, trial: optuna.Trial) -> list[int]:
        """The option numbers that Optuna suggests: those decisions are asked for that exist, given what was taken before."""
        row: list[int] = []
        for decision in self.decisions:
            exists = decision.condition is True or decision.name in self.space.active(self._taken(row))
            label = trial.suggest_categorical(decision.name, self.labels[decision.name]) if exists else None
            row.append(self._numbers[decision.name][label] if exists else 0)
        return row

    def _taken(self, row: Sequence[int]) -> dict[str, Any]:
        """What is taken so far, and first options from there on: whether a decision exists depends on earlier ones alone."""
        numbers = [*row, *[0] * (len(self.decisions) - len(row))]
        return {decision.name: decision.options[number] for decision, number in zip(self.decisions, numbers, strict=True)}


def _labels(decision: Decision) -> list[Any]:
    """The options themselves where Optuna can hold them, else their text; where texts clash, the options' numbers."""
    plain = [option if isinstance(option, bool | int | float | str) else repr(option) for option in decision.options]
    return plain if len({str(label) for label in plain}) == len(plain) else list(range(len(plain)))


def _proposed(study: optuna.Study, names: _Names, taken: Seen) -> Architecture | None:
    """What the study's sampler proposes, if one of its draws is new and within the budgets of the space. It stays in the study as running."""
    for _ in range(TRIES):
        trial = study.ask()
        row = names.suggested(trial)
        if names.space.holds(np.array([row], dtype=np.int32))[0]:
            arch = names.space.from_indices(row)
            if fingerprint(arch) not in taken:
                return arch
        study.tell(trial, state=TrialState.FAIL)
    return None


def _generation(sampler: BaseSampler, number: int) -> dict[str, int]:
    """What a genetic sampler notes at a trial: the generation of completed trial `number`."""
    if not isinstance(sampler, BaseGASampler):
        return {}
    return {sampler._get_generation_key(): number // (sampler.population_size or 1)}


def _constraints(objectives: Sequence[Objective], metrics: Mapping[str, float]) -> dict[str, float]:
    """By how much each limit is exceeded, as a share of it; at most 0 where it holds."""
    return {str(limit): limit.ratio(metrics) - 1 for objective in objectives for limit in objective.subject_to}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Optuna's notes on every trial, and its warnings that a sampler is new; as it was afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
