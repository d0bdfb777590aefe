"""A search, resolved: network, task, budgets, method and all that is fixed before any work starts; and what it comes to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from torch import Tensor, fx

from niwaki.deploy.multi_hash import MultiHashed
from niwaki.factor.factor import Cost, Limit
from niwaki.gradient.dmasking import DMasking
from niwaki.gradient.one_shot import OneShot
from niwaki.gradient.train_once import TrainOnce
from niwaki.gradient.tunas import TuNAS
from niwaki.net.control import Network
from niwaki.space.architecture import Architecture
from niwaki.strategy.strategy import Strategy
from niwaki.task.classify import ImageClassification
from niwaki.task.tabular import Tabular
from niwaki.task.task import Part
from niwaki.train.distill import Teacher
from niwaki.train.rates import Rated
from niwaki.train.recipe import Recipe

AnyTask = ImageClassification | Tabular | Rated  # what can be shipped and reported, beside being searched for


def plain(task: AnyTask) -> ImageClassification | Tabular:
    """The task that has the data: of one that is judged by a rate, the one inside."""
    while isinstance(task, Rated):
        task = cast(AnyTask, task.task)
    return task


@dataclass(frozen=True)
class Budget:
    """One budget as it was asked for, and its limits."""

    text: str
    limits: tuple[Limit, ...]


@dataclass(frozen=True)
class AskTell:
    """A strategy that only sees architectures and their metrics. evaluator: "shared" (weights of a supernet trained by `one_shot`) or "scratch".

    Of a supernet that is trained once for all budgets (`TrainOnce`) what is chosen is delivered as it is.
    """

    strategy: Strategy
    evaluations: int
    evaluator: str = "shared"
    one_shot: OneShot | TrainOnce = field(default_factory=OneShot)
    batch: int = 8


@dataclass(frozen=True)
class Search:
    """What to do, resolved. costs: what is counted of every architecture. candidates: architectures drawn from the learned distribution,
    its mode the first, and judged with shared weights; finalists: networks judged by a training of `proxy`, in cross-validation if there are
    several folds: the best candidates and up to `regular` regular networks; the best of these is chosen.
    """

    network: Network
    task: AnyTask
    budgets: tuple[Budget, ...]
    costs: dict[str, Cost]
    method: DMasking | TuNAS | AskTell
    recipe: Recipe
    proxy: Recipe
    candidates: int = 1
    finalists: int = 1
    regular: int = 0
    folds: int = 1
    workers: int = 1
    seed: int = 0
    device: str = "cpu"
    minutes: float | None = None
    warm_start: Path | None = None
    cascade: str | None = (
        None  # what one of the networks of several budgets shall come to; their thresholds are chosen on the validation part
    )
    resolutions: str = "mixed"  # or "apart"
    left_out: tuple[str, ...] = ()  # options that were left out of the network, for people
    teacher: Teacher | None = None  # of the final training
    weights: Mapping[str, Tensor] | None = None  # of an adopted network, the owner's: every training begins with them
    stored: float = 0.0  # of the chosen network's weights, the share that is stored, by structured multi-hashing; 0: they are as they are

    @property
    def final_part(self) -> Part:
        """What the chosen networks are trained on at last: all there is, but what thresholds need that no network has seen."""
        return "train+validation" if self.cascade is None else "train"


def trains_once(search: Search) -> bool:
    """Whether what is chosen is delivered with the supernet's weights."""
    return isinstance(search.method, AskTell) and isinstance(search.method.one_shot, TrainOnce)


@dataclass(frozen=True)
class Chosen:
    """The network chosen for one budget, with its metrics when it was chosen, and the module after the final training."""

    budget: Budget
    arch: Architecture
    validation: dict[str, float]
    test: dict[str, float]
    module: fx.GraphModule
    hashed: MultiHashed | None = None  # what `module` was made from, where less is stored than the network has


@dataclass(frozen=True)
class Counted:
    """The metrics of an architecture that `judge` gives, with its costs beside them; what a worker is asked for."""

    judge: Callable[[Architecture], dict[str, float]]
    costs: dict[str, Cost]

    def __call__(self, arch: Architecture) -> dict[str, float]:
        return {**self.judge(arch), **{name: float(cost(arch)) for name, cost in self.costs.items()}}


def counted(search: Search, arch: Architecture) -> dict[str, float]:
    return {name: float(cost(arch)) for name, cost in search.costs.items()}


def run_name(at: int) -> str:
    """The name under which the store keeps the trials of budget number `at`."""
    return f"budget {at}"
