"""niwaki.train_once: a supernet trained once, which is then asked for its best member within any budget.

trained = niwaki.train_once(network, task, epochs=30)
arch, module = trained.best("macs<=50%")
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from torch import Tensor, fx

from niwaki.cost.count import COSTS
from niwaki.deploy.audit import Audit
from niwaki.deploy.export import capture, export_onnx
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.within import Within, within
from niwaki.gradient.train_once import TrainOnce, TrainOnceError, TrainOnceRecord, TrainOnceSearch, is_adopted
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.net.text import network_hash
from niwaki.nn.build import build
from niwaki.nn.importance import important_first
from niwaki.nn.supernet import Supernet
from niwaki.objective import Objective
from niwaki.recipe import bignas
from niwaki.run.ask_tell import attempt
from niwaki.run.asking import asked_of, begun, told
from niwaki.run.folder import Folder
from niwaki.run.learn import NoLimit, learn
from niwaki.run.plan import budgets_of, default_recipe
from niwaki.run.progress import Progress, Silent
from niwaki.run.search import AnyTask, AskTell, Budget, Chosen, Search
from niwaki.run.ship import CHECKED, card_of, stored_test
from niwaki.run.shrink_plan import checked_model
from niwaki.run.strategies import strategy_named
from niwaki.space.architecture import Architecture
from niwaki.strategy.random import RandomSearch
from niwaki.strategy.strategy import Strategy
from niwaki.task.task import derive_seed
from niwaki.train.distill import tensors_hash
from niwaki.train.loop import evaluate
from niwaki.train.recipe import Recipe
from niwaki.trial import Trial


class NothingBest(RuntimeError):
    """A selection in which no member could be evaluated."""


@dataclass(frozen=True, eq=False)
class TrainedOnce:
    """A trained supernet. history: what each epoch was like. What is said of a member is measured once and remembered."""

    net: Supernet
    history: tuple[TrainOnceRecord, ...]
    judge: SharedWeights = field(repr=False)
    search: Search = field(repr=False)
    _known: dict[Architecture, dict[str, float]] = field(default_factory=dict, init=False, repr=False)

    def best(
        self, budget: str, *, strategy: str | Strategy[Any] = "coarse-to-fine", evaluations: int = 100
    ) -> tuple[Architecture, fx.GraphModule]:
        """The best member within `budget` that a search finds, and its plain module with weights and BatchNorm statistics of its own, in evaluation mode.

        budget: "macs<=50%" (of the largest member), "params<=1M and macs<=5e6", ... strategy: any that asks and tells, by its name or itself;
        evaluations: members that it may look at, on the validation part. Nothing is trained. Raises BudgetError where no member keeps the budget.
        """
        objective = Objective(self.search.task.metric)
        chosen: Strategy[Any] = strategy_named(strategy, (objective,), evaluations) if isinstance(strategy, str) else strategy
        trials = self.trials(budget, chosen, evaluations)
        succeeded = [trial for trial in trials if trial.status == "ok"]
        if not succeeded:
            raise NothingBest(
                f"none of {len(trials)} members within {budget} could be evaluated: {trials[0].note if trials else 'none was proposed'}"
            )
        arch = objective.best(succeeded).arch
        return arch, self.module(arch)

    def trials(self, budget: str, strategy: Strategy[Any], evaluations: int) -> list[Trial]:
        """What a search within `budget` looked at."""
        space = self.within(budget)
        state, trials = begun(strategy, space), list[Trial]()
        while len(trials) < evaluations:
            rng = Random(f"{derive_seed(self.search.seed, budget)}/{len(trials)}")
            asked = asked_of(strategy, space, state, 1, rng, ())
            if not asked:
                break
            metrics, seconds = attempt(self.metrics, asked[0])
            more: dict[str, Any] = {"status": "failed", "note": metrics} if isinstance(metrics, str) else {"metrics": metrics}
            trials.append(Trial(len(trials), asked[0], source=strategy.name, seconds=seconds, **more))
            state = told(strategy, state, trials[-1:])
        return trials

    def within(self, budget: str) -> Within:
        """The members that keep `budget`."""
        (limits,) = (one.limits for one in budgets_of([budget], self.search.costs))
        return within(space_of(self.search.network), limits)

    def metrics(self, arch: Architecture) -> dict[str, float]:
        """Of a member, on the validation part, with its costs. Raises EvaluationFailed."""
        if arch not in self._known:
            self._known[arch] = self.judge(arch) | {name: float(cost(arch)) for name, cost in self.search.costs.items()}
        return self._known[arch]

    def test(self, arch: Architecture) -> dict[str, float]:
        """Of a member, on the test part: for the last one, not to choose by."""
        return evaluate(self.module(arch), self.search.task, self.search.task.part("test"), device=self.search.device)

    def module(self, arch: Architecture) -> fx.GraphModule:
        """The plain module of a member, in evaluation mode: torch.nn and nothing of niwaki."""
        return self.judge.module(arch)

    def export(self, arch: Architecture, path: str | Path) -> Audit:
        """Writes the member as an ONNX file that takes examples as the data set stores them, and checks it against the module on test examples."""
        module, task = self.module(arch).cpu(), self.search.task
        metrics = {name: value for name, value in self.metrics(arch).items() if name not in self.search.costs}
        card = card_of(self.search, Chosen(Budget("", ()), arch, metrics, self.test(arch), module))
        shipment = capture(task.delivered(module), task.preprocess(), stored_test(task)[:CHECKED])
        return export_onnx(shipment, path, card)

    @cached_property
    def biggest(self) -> Architecture:
        return self.search.costs["macs"].maximum()[1]

    @cached_property
    def smallest(self) -> Architecture:
        return self.search.costs["macs"].minimum()[1]


def train_once(
    network: Network,
    task: AnyTask,
    *,
    method: str | TrainOnce = "bignas",
    epochs: int | None = None,
    lr: float | None = None,
    weights: Mapping[str, Tensor] | None = None,
    budgets: Sequence[str] = (),
    seed: int = 0,
    device: str = "cpu",
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> TrainedOnce:
    """A supernet of `network`, trained once on `task`, to be asked for members within any budget.

    method: "bignas", "attentivenas", "alphanet" or "ofa", at the size of the data (`recipe.bignas.small`), or all of it as a `TrainOnce`. epochs,
    lr: of a method by name; left out, as many epochs as one network is trained for, and a smaller rate where there are weights. weights: of the
    owner's model, as `adopt` gives them with its network, to begin with; the units of every group are put in order of importance first, for a
    smaller member has the first ones. budgets: where they are known, members are drawn within them in training (not of "ofa"). out: a folder that
    keeps the state, so that the same call goes on where it was stopped, and ends with the same bits.
    """
    if not isinstance(network, Network):
        raise TrainOnceError(f"a network is a Network, which niwaki.adopt makes of a torch.nn.Module; given {type(network).__name__}")
    _, batch_size, most = default_recipe(task)
    if isinstance(method, TrainOnce):
        if given := [f"{name}={value}" for name, value in (("epochs", epochs), ("lr", lr)) if value is not None]:
            raise TrainOnceError(f"{' and '.join(given)} would change nothing: the phases of the method say so already")
        chosen = method
    else:
        rate = lr if lr is not None else bignas.LR if weights is None else bignas.OWNER_LR
        chosen = bignas.small(method, epochs=epochs if epochs is not None else most, batch_size=batch_size, lr=rate)
        if budgets and chosen.rule == "sandwich":
            chosen = replace(chosen, members="within")
    if budgets and chosen.members != "within":
        raise TrainOnceError(
            f"budgets={list(budgets)} would change nothing: this method draws its members anywhere in the space, and is asked for budgets afterwards"
        )
    costs = {name: count(network) for name, count in COSTS.items()}
    asked_budgets = budgets_of(budgets, costs)
    checked_model(build(network, costs["macs"].minimum()[1]), task)
    search = Search(
        network, task, asked_budgets, costs, AskTell(RandomSearch(), 1, "shared", chosen), Recipe(), Recipe(), seed=seed, device=device
    )
    spaces = [within(space_of(network), budget.limits) for budget in asked_budgets]
    start = weights
    if weights is not None and is_adopted(network):
        start = important_first(network, weights)
    learner = TrainOnceSearch(network, task, spaces, chosen, weights=start, seed=seed, device=device)
    progress = progress or Silent()
    if out is None:
        progress.phase("training once", learner.total_steps)
        while not learner.finished:
            learner.run()
            progress.advance(learner.step)
    else:
        asked = {
            "train_once": asdict(chosen), "network": network_hash(network), "data": task.describe(), "seed": seed, "budgets": list(budgets),
            "weights": None if weights is None else tensors_hash(weights),
        }  # fmt: skip
        with closing(Folder(out, asked=asked)) as folder:
            learn(learner, folder, progress, NoLimit(), phase="search", name="search")
    return TrainedOnce(learner.net, tuple(learner.history), SharedWeights(learner.net, task, seed=seed), search)
