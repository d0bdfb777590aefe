"""The loop of `niwaki search`: learn, choose, train, ship; each step stored, so that a killed run goes on and ends with the same bits."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from niwaki.deploy.multi_hash import MultiHashed, compress, materialise
from niwaki.evaluate.scratch import Scratch
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.within import Within, within
from niwaki.gradient.dmasking import DMasking, DMaskingSearch
from niwaki.gradient.one_shot import OneShotSearch
from niwaki.gradient.train_once import TrainOnce, TrainOnceSearch
from niwaki.gradient.tunas import TuNAS, TuNASSearch
from niwaki.net.place import space_of
from niwaki.nn.supernet import member
from niwaki.run.ask_tell import AskTellSearch, ask_and_tell, ask_and_tell_side_by_side, attempt
from niwaki.run.candidates import Aim, aims_of, candidates_of
from niwaki.run.clock import Clock
from niwaki.run.finalists import choose, processes
from niwaki.run.folder import Folder, RunError, once
from niwaki.run.learn import learn
from niwaki.run.progress import Progress, Silent
from niwaki.run.schedule import Batches, Window
from niwaki.run.search import AskTell, Chosen, Counted, Search, counted, run_name, trains_once
from niwaki.run.warm_start import warm_start_
from niwaki.run.workers import Pool
from niwaki.space.architecture import Architecture
from niwaki.task.task import derive_seed
from niwaki.train.loop import evaluate, start
from niwaki.trial import EvaluationFailed, Trial

HARDLY = 0.1  # of its planned steps: with fewer, a network is called hardly trained


def run(search: Search, folder: Folder, progress: Progress | None = None) -> list[Chosen]:
    """The chosen and trained network of each budget; everything on the way is in `folder`."""
    progress = progress or Silent()
    space = space_of(search.network)
    spaces = [within(space, budget.limits) for budget in search.budgets]
    clock = Clock(folder, search, spaces)
    aims = aims_of(search, spaces)
    if isinstance(search.method, (DMasking, TuNAS)):
        _by_gradient(search, search.method, aims, folder, progress, clock)
    else:
        _by_asking(search, search.method, spaces, folder, progress, clock)
    # all choices before the first long training: each phase has its share of a time limit, in this order
    choices = [choose(search, at, spaces[at], aims, folder, progress, clock) for at in range(len(spaces))]
    chosen, judge = [], _trained_once(search, spaces, folder) if trains_once(search) else None
    for at, (budget, (arch, validation)) in enumerate(zip(search.budgets, choices, strict=True)):
        module, hashed = _train(search, at, arch, folder, progress, clock) if judge is None else (judge.module(arch), None)
        test = once(folder, f"test {at}", partial(evaluate, module, search.task, search.task.part("test"), device=search.device))
        chosen.append(Chosen(budget, arch, validation, test, module, hashed))
    return chosen


def _by_gradient(search: Search, method: DMasking | TuNAS, aims: Sequence[Aim], folder: Folder, progress: Progress, clock: Clock) -> None:
    """Trials of candidates from the distributions that were learned with the weights, one run of trials for each budget."""
    if all(folder.store.fact(f"result candidates {at}") for at in range(len(search.budgets))):
        return
    learner = learner_of(search, method, aims)
    folder.store.set_fact("aims", [{"budget": aim.budget, "taken": aim.taken} for aim in aims])
    learn(learner, folder, progress, clock, phase="search", name="search", begin=partial(_warm, learner, search, folder))
    judge = SharedWeights(learner.net, search.task, seed=search.seed)
    for at in range(len(search.budgets)):
        out_of_time = partial(clock.over, "judging", (at + 1) / len(search.budgets))
        once(folder, f"candidates {at}", partial(_judge_candidates, search, at, aims, learner, judge, folder, progress, out_of_time))
    folder.book("judging")


def _warm(learner: DMaskingSearch | TuNASSearch | OneShotSearch | TrainOnceSearch, search: Search, folder: Folder) -> None:
    """Starts from the weights of an earlier run, if that was asked for."""
    if search.warm_start is not None:
        folder.note(warm_start_(learner, search.warm_start))


def learner_of(search: Search, method: DMasking | TuNAS, aims: Sequence[Aim]) -> DMaskingSearch | TuNASSearch:
    spaces, taken = [aim.space for aim in aims], [aim.taken for aim in aims]
    if isinstance(method, TuNAS):
        return TuNASSearch(search.network, search.task, spaces, method, weights=search.weights, seed=search.seed, device=search.device)
    return DMaskingSearch(
        search.network, search.task, spaces, method, taken=taken, weights=search.weights, seed=search.seed, device=search.device
    )


def shared_learner(search: Search, method: AskTell, spaces: Sequence[Within]) -> OneShotSearch | TrainOnceSearch:
    """What makes the shared weights by which the strategy judges."""
    if isinstance(method.one_shot, TrainOnce):
        return TrainOnceSearch(
            search.network, search.task, spaces, method.one_shot, weights=search.weights, seed=search.seed, device=search.device
        )
    return OneShotSearch(
        search.network, search.task, spaces, method.one_shot, weights=search.weights, seed=search.seed, device=search.device
    )


def _trained_once(search: Search, spaces: Sequence[Within], folder: Folder) -> SharedWeights:
    """Gives the networks that are delivered: members of the supernet, as they were when they were chosen."""
    assert isinstance(search.method, AskTell)
    learner = shared_learner(search, search.method, spaces)
    if (saved := folder.load("search")) is None:
        raise RunError(f"{folder.path} has no checkpoint of its supernet any more; --fresh starts the run anew")
    learner.load(*saved)
    if trained_share(folder, "search") < HARDLY:
        folder.note(
            f"The supernet is hardly trained: the time limit left {folder.store.fact('cut search')} of {folder.store.fact('planned search')} steps."
            " Take the figures of its members for nothing, and give the search more time."
        )
    return SharedWeights(learner.net, search.task, seed=search.seed)


def _judge_candidates(
    search: Search,
    at: int,
    aims: Sequence[Aim],
    learner: DMaskingSearch | TuNASSearch,
    judge: SharedWeights,
    folder: Folder,
    progress: Progress,
    out_of_time: Callable[[], bool],
) -> int:
    """How many trials there are: networks of all aims at the budget, judged with shared weights."""
    of_budget = [number for number, aim in enumerate(aims) if aim.budget == at]
    archs: list[Architecture] = []
    for turn, number in enumerate(of_budget):
        probabilities = learner.probabilities()[number]
        folder.store.set_fact(f"probabilities {number}", {name: p.tolist() for name, p in probabilities.items()})
        count = search.candidates // len(of_budget) + (turn < search.candidates % len(of_budget))
        archs += candidates_of(search, number, aims[number], probabilities, max(1, count), folder)
    judged = folder.store.trials(run_name(at), aims[of_budget[0]].space.space)
    progress.phase(f"judging {len(archs)} candidates", len(archs))
    for number, arch in list(enumerate(archs))[len(judged) :]:
        if out_of_time() and any(trial.status == "ok" for trial in judged):  # one network there must be
            folder.note(f"The time limit cut the judging of candidates short: {len(judged)} of {len(archs)} were judged.")
            break
        judged.append(_judged(search, number, arch, judge, "tunas" if isinstance(search.method, TuNAS) else "dmasking"))
        folder.store.append(run_name(at), judged[-1])
        progress.advance(number + 1)
    return len(judged)


def _by_asking(search: Search, method: AskTell, spaces: Sequence[Within], folder: Folder, progress: Progress, clock: Clock) -> None:
    """Trials that a strategy proposed, one run of trials for each budget; trained from scratch, several side by side, if there are workers."""
    if all(folder.store.fact(f"result candidates {at}") for at in range(len(spaces))):
        return
    judge: Any
    if method.evaluator == "shared":
        learner = shared_learner(search, method, spaces)
        learn(learner, folder, progress, clock, phase="search", name="search", begin=partial(_warm, learner, search, folder))
        judge, phase = SharedWeights(learner.net, search.task, seed=search.seed), "judging"
    else:
        judge, phase = (
            Scratch(search.network, search.task, search.proxy, seed=search.seed, device=search.device, weights=search.weights),
            "search",
        )
    for at, space in enumerate(spaces):
        once(folder, f"candidates {at}", partial(_ask, search, method, at, space, judge, folder, progress, clock, phase))
        folder.book(phase)


def _ask(
    search: Search, method: AskTell, at: int, space: Within, judge: Any, folder: Folder, progress: Progress, clock: Clock, phase: str
) -> int:
    workers = processes(search, method.evaluations) if method.evaluator == "scratch" else 1
    asking = AskTellSearch(
        space, space.space, method.strategy, folder.store, run=run_name(at), evaluations=method.evaluations,
        seed=derive_seed(search.seed, "ask", at), schedule=Window(workers) if workers > 1 else Batches(method.batch),
    )  # fmt: skip
    progress.phase(f"{method.strategy.name}: {method.evaluations} evaluations", method.evaluations)
    progress.advance(len(asking.trials))
    part = (at + 1) / len(search.budgets)

    evaluate = Counted(judge, search.costs)

    def out_of_time() -> bool:  # one network there must be
        return clock.over(phase, part) and any(trial.status == "ok" for trial in asking.trials)

    def on_trial(trial: Trial) -> None:
        folder.book(phase)
        progress.advance(len(asking.trials))

    if workers > 1:
        with Pool(workers, attempt, common=(evaluate,)) as pool:
            done = ask_and_tell_side_by_side(asking, pool.submit, out_of_time=out_of_time, on_trial=on_trial)
    else:
        done = ask_and_tell(asking, evaluate, out_of_time=out_of_time, on_trial=on_trial)
    if (finished := sum(trial.status != "cut" for trial in done)) < method.evaluations:
        why = f": {asking.note}" if asking.note else ""
        folder.note(f"The search for {search.budgets[at].text} ended after {finished} of {method.evaluations} evaluations{why}.")
    return finished


def _judged(search: Search, number: int, arch: Architecture, judge: Callable[[Architecture], dict[str, float]], source: str) -> Trial:
    """The trial of `arch`; a failed one where it has no metrics."""
    began = time.perf_counter()
    try:
        metrics = judge(arch)
    except EvaluationFailed as error:
        return Trial(number, arch, {}, source, time.perf_counter() - began, status="failed", note=str(error))
    return Trial(number, arch, {**metrics, **counted(search, arch)}, source, time.perf_counter() - began)


def trained_share(folder: Folder, name: str) -> float:
    """What of the planned steps of the final training called `name` was taken."""
    cut, planned = folder.store.fact(f"cut {name}"), folder.store.fact(f"planned {name}")
    return 1.0 if cut is None or not planned else cut / planned


def training_name(budgets: int, at: int) -> str:
    """Of the final training for budget number `at` of so many."""
    return "training" if budgets == 1 else f"training {at}"


def to_train(search: Search, arch: Architecture) -> nn.Module:
    """The chosen network before its final training; of fewer variables, where less is to be stored."""
    module = member(search.network, arch, search.weights, seed=derive_seed(search.seed, "final weights"))
    return compress(module, fraction=search.stored, seed=derive_seed(search.seed, "variables")) if search.stored else module


def _train(
    search: Search, at: int, arch: Architecture, folder: Folder, progress: Progress, clock: Clock
) -> tuple[fx.GraphModule, MultiHashed | None]:
    """The chosen network, trained from scratch on training and validation data; for a cascade, which needs the latter, on training data.

    And what its weights are made from, where they are.
    """
    name = training_name(len(search.budgets), at)
    training = start(
        to_train(search, arch),
        search.task,
        search.recipe,
        search.task.part(search.final_part),
        seed=derive_seed(search.seed, "final"),
        device=torch.device(search.device),
        teacher=search.teacher,
    )
    learn(training, folder, progress, clock, phase="training", name=name, part=clock.part(at))
    if trained_share(folder, name) < HARDLY:
        folder.note(
            f"The network for {search.budgets[at].text} is hardly trained: the time limit left {folder.store.fact(f'cut {name}')} of"
            f" {folder.store.fact(f'planned {name}')} steps. Take its figures for nothing, and give the search more time."
        )
    trained = training.evaluation_module()
    if isinstance(trained, MultiHashed):
        return materialise(trained), trained  # type: ignore[return-value]
    return trained, None  # type: ignore[return-value]
