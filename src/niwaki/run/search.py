"""The loop of `niwaki search`: learn, choose, train, ship; each step stored, so that a killed run goes on and ends with the same bits."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import product, zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, fx

from niwaki.evaluate.scratch import Scratch
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.eliminate import certain, even
from niwaki.factor.factor import Cost, Limit
from niwaki.factor.within import Within, within
from niwaki.gradient.dmasking import DMasking, DMaskingSearch
from niwaki.gradient.one_shot import OneShot, OneShotSearch
from niwaki.net.control import Network
from niwaki.net.layer import Opaque
from niwaki.net.place import place, space_of
from niwaki.net.program import program
from niwaki.nn.build import build
from niwaki.run.ask_tell import AskTellSearch, ask_and_tell
from niwaki.run.choose import FEW, all_options, frame, preferred, resolutions, unlike
from niwaki.run.folder import Folder, RunError, once
from niwaki.run.progress import Progress, Silent
from niwaki.run.regular import regular
from niwaki.run.warm_start import warm_start_
from niwaki.run.workers import Job, Workers
from niwaki.space.architecture import Architecture
from niwaki.space.choice import BudgetError
from niwaki.strategy.strategy import Strategy
from niwaki.task.classify import ImageClassification
from niwaki.task.task import derive_seed
from niwaki.train.loop import Training, TrainingDiverged, evaluate, start
from niwaki.train.recipe import Recipe
from niwaki.trial import EvaluationFailed, Trial

DRAWN = 4096  # architectures drawn within the budget, of which the candidates are taken
FEW_DRAWN = 64  # of which the one that uses its budget best is taken
LEAST_LOG_P = -40.0  # of an architecture of the learned distribution to be within the budget, for it to be drawn from as it is
EVEN = 0.25  # of even chances in what every other candidate is drawn from: shared weights learn what is deep and quick to train first
SPENT = 0.85  # of the budget: candidates that cost less come after all that cost more
CHUNK_S = 1.0  # seconds between looks at the clock
FINALIST, REGULAR = "finalist", "regular"  # sources of trials of a training of their own: found by the search, or a regular network
MOST_COPIED = 2 << 30  # bytes for the images in all processes together that train finalists
COPIES = 3  # of the images in such a process: as they came, as they are stored, and ready for batches
SHIPPING_S = 20.0  # kept free of a time limit for each network: for test, export and report


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
    its mode the first, and judged with shared weights; finalists: networks judged by a training of `proxy`, in cross-validation if there are
    several folds: the best candidates and up to `regular` regular networks; the best of these is chosen.
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
    regular: int = 0
    folds: int = 1
    workers: int = 1
    seed: int = 0
    device: str = "cpu"
    minutes: float | None = None
    warm_start: Path | None = None
    resolutions: str = "mixed"  # or "apart"
    left_out: tuple[str, ...] = ()  # options that were left out of the network, for people


@dataclass(frozen=True)
class Chosen:
    """The network chosen for one budget, with its metrics when it was chosen, and the module after the final training."""

    budget: Budget
    arch: Architecture
    validation: dict[str, float]
    test: dict[str, float]
    module: fx.GraphModule


def working_seconds(minutes: float, budgets: int) -> float:
    """What of a time limit is there for search and training; the rest is kept free for test, export and report of each network."""
    return 60 * minutes - min(SHIPPING_S * budgets, 30 * minutes)


class Clock:
    """Wall time of a run over all its processes, against its limit. Each phase may take its share of it, as the plan expects the phases."""

    def __init__(self, folder: Folder, search: Search, spaces: Sequence[Within]) -> None:
        self.folder = folder
        self.limit_s = None if search.minutes is None else working_seconds(search.minutes, len(search.budgets))
        self.expected: dict[str, float] = folder.plan.get("expected_s", {})  # by phase, in their order
        self._weights = [1.0] * len(spaces)
        if self.limit_s is not None and len(spaces) > 1:  # a network of a larger budget takes longer to train
            with suppress(BudgetError):  # of two limits at once nothing may be drawn
                drawn = [space.sample_many(FEW_DRAWN, np.random.default_rng(0), even(space.space)) for space in spaces]
                self._weights = [float(search.costs["macs"].batch(rows).mean()) for rows in drawn]

    def part(self, at: int) -> float:
        """The share of a phase that trains networks for which all budgets up to number `at` have a claim."""
        return sum(self._weights[: at + 1]) / sum(self._weights)

    def over(self, phase: str, part: float = 1.0, *, next_s: float = 0.0) -> bool:
        """Whether the time for everything up to `part` of `phase` has passed. What was not needed before is there for the later phases.

        next_s: what the next piece of work takes, as far as is known; it is not begun where it would outlast all phases.
        """
        if self.limit_s is None:
            return False
        if self.folder.elapsed() + next_s > self.limit_s:
            return True
        phases = list(self.expected)
        if phase not in phases:
            return self.folder.elapsed() > self.limit_s
        before = sum(self.expected[name] for name in phases[: phases.index(phase)])
        share = (before + part * self.expected[phase]) / max(1e-9, sum(self.expected.values()))
        return self.folder.elapsed() > share * self.limit_s


def run(search: Search, folder: Folder, progress: Progress | None = None) -> list[Chosen]:
    """The chosen and trained network of each budget; everything on the way is in `folder`."""
    progress = progress or Silent()
    space = space_of(search.network)
    spaces = [within(space, budget.limits) for budget in search.budgets]
    clock = Clock(folder, search, spaces)
    aims = aims_of(search, spaces)
    if isinstance(search.method, DMasking):
        _by_gradient(search, search.method, aims, folder, progress, clock)
    else:
        _by_asking(search, search.method, spaces, folder, progress, clock)
    # all choices before the first long training: each phase has its share of a time limit, in this order
    choices = [_choose(search, at, spaces[at], aims, folder, progress, clock) for at in range(len(spaces))]
    chosen = []
    for at, (budget, (arch, validation)) in enumerate(zip(search.budgets, choices, strict=True)):
        module = _train(search, at, arch, folder, progress, clock)
        test = once(folder, f"test {at}", partial(evaluate, module, search.task, search.task.part("test"), device=search.device))
        chosen.append(Chosen(budget, arch, validation, test, module))
    return chosen


# --- learning --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """What one distribution is learned for: a budget, and options that are certain."""

    budget: int
    space: Within
    taken: dict[str, Any] = field(default_factory=dict)

    def blended(self, probabilities: Mapping[str, np.ndarray], even: float) -> dict[str, np.ndarray]:
        """`probabilities` with that share of even chances mixed in, but for what is taken."""
        return {name: p if name in self.taken else (1 - even) * p + even / len(p) for name, p in probabilities.items()}

    def has(self, arch: Architecture) -> bool:
        return all(arch[name] == option for name, option in self.taken.items())


def aims_of(search: Search, spaces: Sequence[Within]) -> list[Aim]:
    """One for each budget; where resolutions are searched apart, one for each resolution that a budget has room for.

    No other choice changes the cost of everything at once: learned together with widths and depths, the resolution falls as soon as the
    cost is felt, long before the weights have shown what a larger one is worth. Networks of several resolutions are told apart by training.
    """
    names = resolutions(place(search.network)) if search.resolutions == "apart" and isinstance(search.method, DMasking) else []
    aims = []
    for at, space in enumerate(spaces):
        every = [dict(zip(names, options, strict=True)) for options in product(*(space.space[name].options for name in names))]
        there = [
            taken for taken in every if not names or space.probability(even(space.space) | certain(space.space, taken)).log > LEAST_LOG_P
        ]
        aims += [Aim(at, space, taken) for taken in there or [{}]]
    return aims


def _by_gradient(search: Search, method: DMasking, aims: Sequence[Aim], folder: Folder, progress: Progress, clock: Clock) -> None:
    """Trials of candidates from the distributions that DMaskingNAS learned, one run of trials for each budget."""
    if all(folder.store.fact(f"result candidates {at}") for at in range(len(search.budgets))):
        return
    learner = learner_of(search, method, aims)
    folder.store.set_fact("aims", [{"budget": aim.budget, "taken": aim.taken} for aim in aims])
    if search.warm_start is not None:
        folder.note(warm_start_(learner, search.warm_start))
    _learn(learner, folder, progress, clock, phase="search", name="search")
    judge = SharedWeights(learner.net, search.task, seed=search.seed)
    for at in range(len(search.budgets)):
        out_of_time = partial(clock.over, "judging", (at + 1) / len(search.budgets))
        once(folder, f"candidates {at}", partial(_candidates, search, at, aims, learner, judge, folder, progress, out_of_time))
    folder.book("judging")


def learner_of(search: Search, method: DMasking, aims: Sequence[Aim]) -> DMaskingSearch:
    spaces, taken = [aim.space for aim in aims], [aim.taken for aim in aims]
    return DMaskingSearch(search.network, search.task, spaces, method, taken=taken, seed=search.seed, device=search.device)


def _candidates(
    search: Search,
    at: int,
    aims: Sequence[Aim],
    learner: DMaskingSearch,
    judge: SharedWeights,
    folder: Folder,
    progress: Progress,
    out_of_time: Callable[[], bool],
) -> int:
    """How many trials there are: networks of all aims at the budget, judged with shared weights."""
    of_budget = [number for number, aim in enumerate(aims) if aim.budget == at]
    archs: list[Architecture] = []
    for turn, number in enumerate(of_budget):
        probabilities = learner.distributions[number].arrays()
        folder.store.set_fact(f"probabilities {number}", {name: p.tolist() for name, p in probabilities.items()})
        count = search.candidates // len(of_budget) + (turn < search.candidates % len(of_budget))
        archs += _of_aim(search, number, aims[number], probabilities, max(1, count), folder)
    judged = folder.store.trials(_run(at), aims[of_budget[0]].space.space)
    progress.phase(f"judging {len(archs)} candidates", len(archs))
    for number, arch in list(enumerate(archs))[len(judged) :]:
        if out_of_time() and any(trial.status == "ok" for trial in judged):  # one network there must be
            folder.note(f"The time limit cut the judging of candidates short: {len(judged)} of {len(archs)} were judged.")
            break
        judged.append(_judged(search, number, arch, judge, "dmasking"))
        folder.store.append(_run(at), judged[-1])
        progress.advance(number + 1)
    return len(judged)


def _of_aim(search: Search, at: int, aim: Aim, probabilities: Mapping[str, np.ndarray], count: int, folder: Folder) -> list[Architecture]:
    """`count` architectures within the budget, of different programs; the most likely one first."""
    space = aim.space
    archs = [space.mode(probabilities)]  # over the budget, by construction, never
    if count > 1:
        learned = _drawn(aim, probabilities, derive_seed(search.seed, "candidates", at), folder)
        blended = aim.blended(probabilities, EVEN)
        wider = _drawn(aim, blended, derive_seed(search.seed, "wider candidates", at), folder)
        drawn = np.stack([learned, wider], axis=1).reshape(-1, len(space)) if len(learned) == len(wider) else learned  # by turns
        spent = np.max([limit.cost.batch(drawn) / limit.upper for limit in space.limits], axis=0)
        # what is paid for should be used: shared weights flatter small networks, whose few channels are the best trained ones
        drawn = drawn[np.argsort(spent < SPENT, kind="stable")]
        programs = {program(search.network, archs[0])}
        for row in dict.fromkeys(map(tuple, drawn.tolist())):
            arch = space.from_indices(row)
            if len(archs) < count and (found := program(search.network, arch)) not in programs:  # one network may have several names
                programs.add(found)
                archs.append(arch)
        taken = {(name, option) for arch in archs for name, option in arch.items()}
        names = [name for name in frame(place(search.network)) if name not in aim.taken]
        missing = [(name, option) for name in names for option in space.space[name].options if (name, option) not in taken]
        rare = [one for choice in missing if (one := _with_option(search, at, space, blended, *choice)) is not None]
        archs = all_options(archs, rare[: count // 2], names, count)
    return archs


def _with_option(
    search: Search, at: int, space: Within, probabilities: Mapping[str, np.ndarray], name: str, option: Any
) -> Architecture | None:
    """An architecture within the budget with that option, drawn by `probabilities`; None where there is hardly one.

    What the learned distribution has left behind gets one chance: a search may have settled on a block, depth or resolution early.
    """
    fixed = {**probabilities, **certain(space.space, {name: option})}
    if not space.probability(fixed).log > LEAST_LOG_P:
        return None
    try:
        rows = space.sample_many(FEW_DRAWN, np.random.default_rng(derive_seed(search.seed, "with", at, name, str(option))), fixed)
    except BudgetError:
        return None
    archs = [arch for arch in map(space.from_indices, rows.tolist()) if arch.get(name) == option]
    return max(archs, key=lambda arch: max(limit.cost(arch) / limit.upper for limit in space.limits), default=None)


def _drawn(aim: Aim, probabilities: Mapping[str, np.ndarray], seed: int, folder: Folder) -> np.ndarray:
    """(n, decisions): architectures within the budget by `probabilities`, or nearer to even ones where these lie far outside it."""
    space = aim.space
    for blend in (0.0, 1e-3, 1e-2, 1e-1, 1.0):
        mixed = aim.blended(probabilities, blend)
        if blend == 1.0 or space.probability(mixed).log > LEAST_LOG_P:
            break
    if blend:
        folder.note(
            f"The learned distribution lies far outside the budget; candidates were drawn with {blend:.1%} of even chances mixed in."
        )
    try:
        return space.sample_many(DRAWN, np.random.default_rng(seed), mixed)
    except BudgetError:  # of two limits at once, the table says what may be within; nothing drawn was, but the mode is
        folder.note("No candidate within the budget could be drawn beside the most likely one.")
        return np.zeros((0, len(space)), dtype=np.int64)


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


def _learn(
    learner: _Learner | Training, folder: Folder, progress: Progress, clock: Clock, *, phase: str, name: str, part: float = 1.0
) -> None:
    """Runs `learner` to its end, from its last checkpoint, saving and logging on the way; cut short where the time is up.

    phase: whose time it takes, up to `part` of it. name: of its checkpoints, its log and its facts.
    """
    if (saved := folder.load(name)) is not None:
        learner.load(*saved)
    elif folder.store.fact(f"cut {name}") is not None:
        raise RunError(f"{folder.path} has no checkpoint of {name} any more, which a time limit had cut short; --fresh starts the run anew")
    total = learner.recipe.epochs * learner.steps_per_epoch if isinstance(learner, Training) else learner.total_steps
    progress.phase(name, total)
    progress.advance(learner.step)
    steps, logged = 4, len(learner.history)  # an epoch is logged before it is in a checkpoint
    with interruptible() as interrupted:
        while not learner.finished and folder.store.fact(f"cut {name}") is None:
            at = time.monotonic()
            learner.run(steps)
            took = time.monotonic() - at
            # what a chunk holds never matters to the result, only how soon a key press or the limit is noticed
            steps = max(1, min(2 * steps, int(steps * CHUNK_S / max(took, 1e-3))))
            logged = _log(learner, folder, name, logged)
            progress.advance(learner.step)
            cut = clock.over(phase, part) and not learner.finished
            if cut or interrupted() or learner.finished or folder.due():
                folder.save(name, _whole(learner))
                folder.book(phase)
            if cut:
                folder.store.set_fact(f"cut {name}", learner.step)
                folder.note(f"The time limit cut {name} short: {learner.step} of {total} steps were taken.")
            if interrupted():
                raise KeyboardInterrupt
    folder.seal(name, _whole(learner))


def _whole(learner: _Learner | Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of `learner`, of which every number is finite: a checkpoint never takes the place of a better one."""
    tensors, content = learner.state_dict()
    if wrong := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
        raise TrainingDiverged(f"{wrong} became NaN or infinite", len(learner.history) + 1, learner.step)
    return tensors, content


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C only makes the yielded function true, so that a step is never left half done; a second Ctrl-C stops at once."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is not signal.default_int_handler:
        yield lambda: False  # somebody else's to handle
        return
    pressed: list[int] = []

    def remember(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, handler)


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
        if search.warm_start is not None:
            folder.note(warm_start_(learner, search.warm_start))
        _learn(learner, folder, progress, clock, phase="search", name="search")
        judge, phase = SharedWeights(learner.net, search.task, seed=search.seed), "judging"
    else:
        judge, phase = Scratch(search.network, search.task, search.proxy, seed=search.seed, device=search.device), "search"
    for at, space in enumerate(spaces):
        once(folder, f"candidates {at}", partial(_ask, search, method, at, space, judge, folder, progress, clock, phase))
        folder.book(phase)


def _ask(
    search: Search, method: AskTell, at: int, space: Within, judge: Any, folder: Folder, progress: Progress, clock: Clock, phase: str
) -> int:
    asking = AskTellSearch(
        space, space.space, method.strategy, folder.store, run=_run(at), evaluations=method.evaluations, batch_size=method.batch,
        seed=derive_seed(search.seed, "ask", at),
    )  # fmt: skip
    progress.phase(f"{method.strategy.name}: {method.evaluations} evaluations", method.evaluations)
    progress.advance(len(asking.trials))
    part = (at + 1) / len(search.budgets)

    def evaluate(arch: Architecture) -> dict[str, float]:
        return {**judge(arch), **_counted(search, arch)}

    def out_of_time() -> bool:  # one network there must be
        return clock.over(phase, part) and any(trial.status == "ok" for trial in asking.trials)

    def on_trial(trial: Trial) -> None:
        folder.book(phase)
        progress.advance(trial.number + 1)

    done = ask_and_tell(asking, evaluate, out_of_time=out_of_time, on_trial=on_trial)
    if (finished := sum(trial.status != "cut" for trial in done)) < method.evaluations:
        folder.note(f"The search for {search.budgets[at].text} ended after {finished} of {method.evaluations} evaluations.")
    return finished


# --- choosing and training ---------------------------------------------------------------------------------------------------


def _choose(
    search: Search, at: int, space: Within, aims: Sequence[Aim], folder: Folder, progress: Progress, clock: Clock
) -> tuple[Architecture, dict[str, float]]:
    """The best trial within the budget by validation; of several finalists, unlike each other, the best after a short training of its own.

    The store keeps it as the result "choice" and number of the budget: what is chosen, its source, and the best that the search itself found.

    Regular networks are among the finalists, half of them like the best of the other half: shared weights that have been trained for a few
    epochs favour what is shallow and quick to train, and regular networks are a sample of what such a search overlooks.
    """
    placement = place(search.network)
    validation = len(search.task.part("validation"))
    best_first = partial(preferred, metric=search.task.metric, simplest=placement if validation < FEW else None)
    judge = Scratch(search.network, search.task, search.proxy, seed=search.seed, device=search.device, folds=search.folds)

    def compute() -> dict[str, Any]:
        stored = folder.store.trials(_run(at), space.space)
        trials = [trial for trial in stored if trial.source not in (FINALIST, REGULAR)]
        of_aims = [[trial for trial in trials if aim.has(trial.arch)] for aim in aims if aim.budget == at]
        # the weights that networks share say little about networks of different resolutions: these take turns
        ranked = [unlike(best_first(of_aim, examples=validation), placement, search.finalists) for of_aim in of_aims]
        heads = best_first([of_aim[0] for of_aim in ranked if of_aim], examples=validation)
        ranked = [of_aim for head in heads for of_aim in ranked if head in of_aim]
        best = [trial for of_turn in zip_longest(*ranked) for trial in of_turn if trial is not None]
        found = [trial.arch for trial in best[: search.finalists - search.regular]]
        generator = np.random.default_rng(derive_seed(search.seed, "regular", at))
        draw = partial(regular, space, generator=generator, spent=SPENT, same=partial(program, search.network))
        drawn = draw(search.regular - search.regular // 2, known=found) if search.regular else []
        finalists = [(arch, FINALIST) for arch in found] + [(arch, REGULAR) for arch in drawn]
        if len(finalists) > 1:
            workers = finalist_workers(search)
            with Workers(max(1, workers), common=(judge,), threads=1 if workers else None) as pool:
                train = partial(_train_finalists, search, at, judge, pool=pool, folder=folder, progress=progress, clock=clock)
                stored = train(finalists, len(trials))
                first = next((trial.arch for trial in best_first(stored, examples=judge.examples()) if trial.source == REGULAR), None)
                if first is not None and search.regular > 1:
                    more = draw(search.regular // 2, near=first, known=[*found, *drawn])
                    stored += train([(arch, REGULAR) for arch in more], len(trials) + len(finalists))
            best = best_first(stored, examples=judge.examples()) or best
        if not best:
            raise RunError(f"no architecture within {search.budgets[at].text} could be evaluated{_first_failure(stored)}")
        own = next((trial for trial in best if trial.source != REGULAR), None)
        return {"chosen": told(best[0]), "source": best[0].source, "own": own and told(own)}

    def told(trial: Trial) -> dict[str, Any]:
        return {"arch": trial.arch.to_json(), "metrics": {key: value for key, value in trial.metrics.items() if key not in search.costs}}

    found = once(folder, f"choice {at}", compute)
    chosen, own, metric = found["chosen"], found["own"], search.task.metric
    if found["source"] == REGULAR:
        beside = f", that of the best network that the search itself found {own['metrics'][metric]:.1%}" if own else ""
        measured = f"after a short training its validation {metric} was {chosen['metrics'][metric]:.1%}{beside}"
        folder.note(f"For {search.budgets[at].text} a regular network is delivered: {measured}.")
    return Architecture.from_json(chosen["arch"], space.space), chosen["metrics"]


def finalist_workers(search: Search) -> int:
    """How many processes train finalists side by side, of one thread each: networks this small gain next to nothing from a second thread.

    1: they are trained here, on one thread, too, so that the result is the same: where copies of the data would be costly, and what cannot
    be sent to a process. 0: they are trained on a GPU.
    """
    if search.device != "cpu":
        return 0
    if type(search.task) is not ImageClassification or any(
        isinstance(item.layer, Opaque) and item.layer.make is not None for item in place(search.network).items
    ):
        return 1
    copied = COPIES * (search.task.images.images.nbytes + search.task.images.test_images.nbytes)
    return max(1, min(search.workers, search.finalists * search.folds, MOST_COPIED // max(1, copied)))


def _train_finalists(
    search: Search,
    at: int,
    judge: Scratch,
    finalists: Sequence[tuple[Architecture, str]],
    first: int,
    *,
    pool: Workers,
    folder: Folder,
    progress: Progress,
    clock: Clock,
) -> list[Trial]:
    """A trial of each finalist, by a short training of its own, while there is time. first: the number of the first of these trials.

    finalists: with the source of their trials.
    """

    def over(results: Mapping[str, Any]) -> bool:
        folder.book("finalists")
        longest = max((result["seconds"] for result in results.values()), default=0.0)
        return clock.over("finalists", clock.part(at), next_s=longest)

    numbered = list(enumerate(finalists, start=first))
    jobs = [
        [Job(f"finalist {at} {number} {fold}", _fold, (dict(arch), fold)) for fold in range(search.folds)] for number, (arch, _) in numbered
    ]
    phase = f"training {len(finalists)} finalists" + (f", {search.folds} times each" if search.folds > 1 else "")
    results = pool.run([job for of_one in jobs for job in of_one], folder, progress, phase, over)
    folder.book("finalists")
    judged: list[Trial] = []
    known = {trial.number for trial in folder.store.trials(_run(at), space_of(search.network))}
    for (number, (arch, source)), of_one in zip(numbered, jobs, strict=True):
        parts = [results[job.name] for job in of_one if job.name in results]
        if len(parts) < len(of_one):
            continue
        seconds = sum(part["seconds"] for part in parts)
        if failed := next((part["failed"] for part in parts if part["failed"]), None):
            trial = Trial(number, arch, {}, source, seconds, status="failed", note=failed)
        else:
            metrics = judge.mean([part["metrics"] for part in parts])
            trial = Trial(number, arch, {**metrics, **_counted(search, arch)}, source, seconds)
        if number not in known:
            folder.store.append(_run(at), trial)
        judged.append(trial)
    if len(judged) < len(finalists):
        folder.note(f"The time limit cut the training of finalists short: {len(judged)} of {len(finalists)} were trained.")
    return judged


def _fold(judge: Scratch, arch: dict[str, Any], at: int) -> dict[str, Any]:
    """What a worker is asked for: one training of a finalist."""
    began = time.perf_counter()
    try:
        return {"metrics": judge.fold(arch, at), "failed": None, "seconds": time.perf_counter() - began}
    except EvaluationFailed as error:
        return {"metrics": {}, "failed": str(error), "seconds": time.perf_counter() - began}


def _first_failure(trials: Sequence[Trial]) -> str:
    return next((f"; trial {trial.number}: {trial.note}" for trial in trials if trial.status == "failed"), "")


def _judged(search: Search, number: int, arch: Architecture, judge: Callable[[Architecture], dict[str, float]], source: str) -> Trial:
    """The trial of `arch`; a failed one where it has no metrics."""
    began = time.perf_counter()
    try:
        metrics = judge(arch)
    except EvaluationFailed as error:
        return Trial(number, arch, {}, source, time.perf_counter() - began, status="failed", note=str(error))
    return Trial(number, arch, {**metrics, **_counted(search, arch)}, source, time.perf_counter() - began)


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
    _learn(training, folder, progress, clock, phase="training", name=name, part=clock.part(at))
    return training.evaluation_module()  # type: ignore[return-value]


def _counted(search: Search, arch: Architecture) -> dict[str, float]:
    return {name: float(cost(arch)) for name, cost in search.costs.items()}


def _run(at: int) -> str:
    """The name under which the store keeps the trials of budget number `at`."""
    return f"budget {at}"
