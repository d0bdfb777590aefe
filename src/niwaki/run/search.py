"""The loop of `niwaki search`: learn, choose, train, ship; each step stored, so that a killed run goes on and ends with the same bits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from niwaki.evaluate.scratch import Scratch
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.factor import Cost, Limit
from niwaki.factor.within import Within, within
from niwaki.gradient.dmasking import DMasking, DMaskingSearch
from niwaki.gradient.one_shot import OneShot, OneShotSearch
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.run.ask_tell import AskTellSearch, ask_and_tell
from niwaki.run.folder import Folder, RunError, once
from niwaki.space.architecture import Architecture
from niwaki.store.checkpoint import load_checkpoint
from niwaki.strategy.strategy import Strategy
from niwaki.task.classify import ImageClassification
from niwaki.task.task import derive_seed
from niwaki.train.loop import Training, evaluate, start
from niwaki.train.recipe import Recipe
from niwaki.trial import EvaluationFailed, Trial

CHUNK_S = 1.0  # seconds between looks at the clock
SHIPPING_S = 20.0  # kept free of a time limit, for test, export and report


@dataclass(frozen=True)
class Budget:
    """One budget as it was asked for, and its limits."""

    text: str
    limits: tuple[Limit, ...]


@dataclass(frozen=True)
class AskTell:
    """A strategy that only sees architectures and their metrics. evaluator: "shared" (weights of a supernet trained by `one_shot`) or "scratch"."""

    strategy: Strategy
    evaluations: int
    evaluator: str = "shared"
    one_shot: OneShot = field(default_factory=OneShot)
    batch: int = 8


@dataclass(frozen=True)
class Search:
    """What to do, resolved. costs: what is counted of every architecture. candidates: architectures drawn from the learned distribution,
    beside its mode, and judged with shared weights; finalists: the best of them, judged by a training of `proxy`; the best of these is chosen.
    """

    network: Network
    task: ImageClassification
    budgets: tuple[Budget, ...]
    costs: dict[str, Cost]
    method: DMasking | AskTell
    recipe: Recipe
    proxy: Recipe
    candidates: int = 1
    finalists: int = 1
    seed: int = 0
    device: str = "cpu"
    minutes: float | None = None
    warm_start: Path | None = None
    left_out: tuple[str, ...] = ()  # options that were left out of the network, for people


class Progress(Protocol):
    """Who watches a run."""

    def phase(self, name: str, total: int) -> None: ...
    def advance(self, done: int) -> None: ...
    def note(self, text: str) -> None: ...


class Silent:
    def phase(self, name: str, total: int) -> None: ...
    def advance(self, done: int) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Chosen:
    """The network chosen for one budget, with its metrics when it was chosen, and the module after the final training."""

    budget: Budget
    arch: Architecture
    validation: dict[str, float]
    test: dict[str, float]
    module: fx.GraphModule


class Clock:
    """Wall time of a run over all its processes, against its limit."""

    def __init__(self, folder: Folder, minutes: float | None) -> None:
        self.before = sum(folder.store.fact("seconds", {}).values())
        self.began = time.monotonic()
        self.limit_s = None if minutes is None else 60 * minutes

    def over(self, share: float = 1.0) -> bool:
        """Whether more than `share` of the time, less what shipping needs, has passed."""
        return self.limit_s is not None and self.before + time.monotonic() - self.began > share * max(1.0, self.limit_s - SHIPPING_S)


def run(search: Search, folder: Folder, progress: Progress | None = None) -> list[Chosen]:
    """The chosen and trained network of each budget; everything on the way is in `folder`."""
    progress = progress or Silent()
    clock = Clock(folder, search.minutes)
    space = space_of(search.network)
    spaces = [within(space, budget.limits) for budget in search.budgets]
    if isinstance(search.method, DMasking):
        _by_gradient(search, search.method, spaces, folder, progress, clock)
    else:
        _by_asking(search, search.method, spaces, folder, progress, clock)
    chosen = []
    for at, budget in enumerate(search.budgets):
        arch, validation = _choose(search, at, spaces[at], folder, progress)
        module = _train(search, at, arch, folder, progress, clock)
        test = once(folder, f"test {at}", partial(evaluate, module, search.task, search.task.part("test"), device=search.device))
        chosen.append(Chosen(budget, arch, validation, test, module))
    return chosen


# --- learning --------------------------------------------------------------------------------------------------------------


def _by_gradient(search: Search, method: DMasking, spaces: Sequence[Within], folder: Folder, progress: Progress, clock: Clock) -> None:
    """Trials of candidates from the distributions that DMaskingNAS learned, one run of trials for each budget."""
    if all(folder.store.fact(f"result candidates {at}") for at in range(len(spaces))):
        return
    learner = DMaskingSearch(search.network, search.task, spaces, method, seed=search.seed, device=search.device)
    if search.warm_start is not None:
        _inherit_from(search.warm_start, learner, folder)
    _learn(learner, folder, progress, clock, share=0.6)
    judge = SharedWeights(learner.net, search.task, seed=search.seed)
    for at, space in enumerate(spaces):
        once(folder, f"candidates {at}", partial(_candidates, search, at, space, learner, judge, folder, progress))


def _candidates(
    search: Search, at: int, space: Within, learner: DMaskingSearch, judge: SharedWeights, folder: Folder, progress: Progress
) -> int:
    probabilities = learner.distributions[at].arrays()
    folder.store.set_fact(f"probabilities {at}", {name: p.tolist() for name, p in probabilities.items()})
    archs = [space.mode(probabilities)]  # the most likely architecture within the budget: over it, by construction, never
    if search.candidates > 1:
        drawn = space.sample_many(4 * search.candidates, np.random.default_rng(derive_seed(search.seed, "candidates", at)), probabilities)
        archs = list(dict.fromkeys([*archs, *(space.from_indices(row.tolist()) for row in drawn)]))[: search.candidates]
    known = {trial.number for trial in folder.store.trials(_run(at), space.space)}
    progress.phase(f"judging {len(archs)} candidates", len(archs))
    for number, arch in enumerate(archs):
        if number not in known:
            began = time.perf_counter()
            metrics = judge(arch)
            folder.store.append(
                _run(at), Trial(number, arch, {**metrics, **_counted(search, arch)}, "dmasking", time.perf_counter() - began)
            )
        progress.advance(number + 1)
    return len(archs)


class _Learner(Protocol):
    """A training of a supernet: DMaskingSearch or OneShotSearch."""

    step: int
    history: list[Any]

    @property
    def total_steps(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    def run(self, max_steps: int | None = None) -> None: ...
    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...
    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None: ...


def _learn(learner: _Learner | Training, folder: Folder, progress: Progress, clock: Clock, *, share: float, name: str = "search") -> None:
    """Runs `learner` to its end, from its last checkpoint, saving and logging on the way; cut short where the time is up."""
    if (saved := folder.load(name)) is not None:
        learner.load(*saved)
    total = learner.recipe.epochs * learner.steps_per_epoch if isinstance(learner, Training) else learner.total_steps
    progress.phase(name, total)
    progress.advance(learner.step)
    steps, logged = 4, 0
    began = time.monotonic()
    try:
        while not learner.finished and folder.store.fact(f"cut {name}") is None:
            at = time.monotonic()
            learner.run(steps)
            took = time.monotonic() - at
            # what a chunk holds never matters to the result, only how soon a key press or the limit is noticed
            steps = max(1, min(2 * steps, int(steps * CHUNK_S / max(took, 1e-3))))
            logged = _log(learner, folder, name, logged)
            progress.advance(learner.step)
            if clock.over(share) and not learner.finished:
                folder.save(name, learner.state_dict())
                folder.store.set_fact(f"cut {name}", learner.step)
                folder.note(f"The time limit cut {name} after {learner.step} of {total} steps.")
            elif learner.finished or folder.due():
                folder.save(name, learner.state_dict())
    except KeyboardInterrupt:
        folder.save(name, learner.state_dict())
        raise
    finally:
        folder.spend(name, time.monotonic() - began)


def _log(learner: _Learner | Training, folder: Folder, name: str, logged: int) -> int:
    """Stores the records of epochs that are over, with the probabilities of the choices where some are learned."""
    for record in learner.history[logged:]:
        row = {key: value for key, value in vars(record).items() if key != "epoch"}
        if isinstance(learner, DMaskingSearch) and record is learner.history[-1]:
            row["probabilities"] = [{key: p.tolist() for key, p in d.arrays().items()} for d in learner.distributions]
        folder.store.log("run", name, record.epoch, row)
    return len(learner.history)


def _by_asking(search: Search, method: AskTell, spaces: Sequence[Within], folder: Folder, progress: Progress, clock: Clock) -> None:
    """Trials that a strategy proposed, one run of trials for each budget."""
    if all(folder.store.fact(f"result candidates {at}") for at in range(len(spaces))):
        return
    judge: Any
    if method.evaluator == "shared":
        learner = OneShotSearch(search.network, search.task, spaces, method.one_shot, seed=search.seed, device=search.device)
        _learn(learner, folder, progress, clock, share=0.4)
        judge = SharedWeights(learner.net, search.task, seed=search.seed)
    else:
        judge = Scratch(search.network, search.task, search.proxy, seed=search.seed, device=search.device)
    for at, space in enumerate(spaces):
        once(folder, f"candidates {at}", partial(_ask, search, method, at, space, judge, folder, progress, clock))


def _ask(search: Search, method: AskTell, at: int, space: Within, judge: Any, folder: Folder, progress: Progress, clock: Clock) -> int:
    asking = AskTellSearch(
        space, space.space, method.strategy, folder.store, run=_run(at), evaluations=method.evaluations, batch_size=method.batch,
        seed=derive_seed(search.seed, "ask", at),
    )  # fmt: skip
    progress.phase(f"{method.strategy.name}: {method.evaluations} evaluations", method.evaluations)
    progress.advance(len(asking.trials))
    done = ask_and_tell(
        asking, lambda arch: {**judge(arch), **_counted(search, arch)},
        out_of_time=lambda: clock.over(0.6), on_trial=lambda trial: progress.advance(trial.number + 1),
    )  # fmt: skip
    if (finished := sum(trial.status != "cut" for trial in done)) < method.evaluations:
        folder.note(f"The search for {search.budgets[at].text} ended after {finished} of {method.evaluations} evaluations.")
    return finished


# --- choosing and training ---------------------------------------------------------------------------------------------------


def _choose(search: Search, at: int, space: Within, folder: Folder, progress: Progress) -> tuple[Architecture, dict[str, float]]:
    """The best trial within the budget by validation; of several finalists, the best after a short training of its own."""
    metric = search.task.metric

    def compute() -> dict[str, Any]:
        stored = [trial for trial in folder.store.trials(_run(at), space.space) if trial.source != "finalist"]
        trials = [trial for trial in stored if trial.status == "ok"]
        ranked = sorted(trials, key=lambda trial: (-trial.metrics[metric], trial.metrics["loss"], trial.number))
        finalists = ranked[: search.finalists]
        if len(finalists) > 1:
            progress.phase(f"training {len(finalists)} finalists", len(finalists))
            judge = Scratch(search.network, search.task, search.proxy, seed=search.seed, device=search.device)
            judged = []
            for position, trial in enumerate(finalists):
                result = once(
                    folder,
                    f"finalist {at} {position}",
                    partial(_finalist, search, trial.arch, len(stored) + position, judge),
                )
                judged.append(Trial.from_json(result, space.space))
                folder.store.append(_run(at), judged[-1])
                progress.advance(position + 1)
            judged = [trial for trial in judged if trial.status == "ok"]
            finalists = sorted(judged, key=lambda trial: (-trial.metrics[metric], trial.metrics["loss"], trial.number))
        if not finalists:
            raise RunError(f"no architecture within {search.budgets[at].text} could be evaluated; the trials in {folder.path} say why")
        best = finalists[0]
        return {"arch": best.arch.to_json(), "metrics": dict(best.metrics)}

    found = once(folder, f"choice {at}", compute)
    return Architecture.from_json(found["arch"], space.space), found["metrics"]


def _finalist(search: Search, arch: Architecture, number: int, judge: Scratch) -> dict[str, Any]:
    began = time.perf_counter()
    try:
        metrics = judge(arch)
    except EvaluationFailed as error:
        return Trial(number, arch, {}, "finalist", time.perf_counter() - began, status="failed", note=str(error)).to_json()
    return Trial(number, arch, {**metrics, **_counted(search, arch)}, "finalist", time.perf_counter() - began).to_json()


def _train(search: Search, at: int, arch: Architecture, folder: Folder, progress: Progress, clock: Clock) -> fx.GraphModule:
    """The chosen network, trained from scratch on training and validation data."""
    name = "training" if len(search.budgets) == 1 else f"training {at}"
    module = build(search.network, arch, seed=derive_seed(search.seed, "final weights"))
    training = start(
        module,
        search.task,
        search.recipe,
        search.task.part("train+validation"),
        seed=derive_seed(search.seed, "final"),
        device=torch.device(search.device),
    )
    share = 0.6 + 0.4 * (at + 1) / len(search.budgets)
    _learn(training, folder, progress, clock, share=share, name=name)
    return training.evaluation_module()  # type: ignore[return-value]


def _inherit_from(earlier: Path, learner: DMaskingSearch, folder: Folder) -> None:
    """Starts from the weights and logits of an earlier run, where names and shapes agree."""
    found = load_checkpoint(earlier / "checkpoints" / "search.safetensors")
    if found is None:
        raise FileNotFoundError(f"{earlier} has no checkpoint of a search to start from")
    own, taken = learner.net.state_dict(), 0
    for key, value in own.items():
        other = found.arrays.get(f"net.{key}")
        if other is not None and other.shape == tuple(value.shape):
            value.copy_(torch.from_numpy(np.array(other)))
            taken += 1
    folder.note(f"Warm start: {taken} of {len(own)} tensors of the supernet come from {earlier.name}.")


def _counted(search: Search, arch: Architecture) -> dict[str, float]:
    return {name: float(cost(arch)) for name, cost in search.costs.items()}


def _run(at: int) -> str:
    """The name under which the store keeps the trials of budget number `at`."""
    return f"budget {at}"
