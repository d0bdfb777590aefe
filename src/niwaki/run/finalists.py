"""Which network is delivered: a few finalists are trained by themselves, for a short time, and the best is chosen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import zip_longest
from typing import Any

import numpy as np

from niwaki.evaluate.scratch import Scratch
from niwaki.factor.within import Within
from niwaki.net.layer import Opaque
from niwaki.net.place import place
from niwaki.net.program import program
from niwaki.report.figure import figure, figure_name
from niwaki.run.candidates import SPENT, Aim
from niwaki.run.choose import FEW, preferred, unlike
from niwaki.run.clock import Clock
from niwaki.run.folder import Folder, RunError, once
from niwaki.run.progress import Progress
from niwaki.run.regular import regular
from niwaki.run.search import AskTell, Search, counted, plain, run_name
from niwaki.run.workers import Job, Workers
from niwaki.space.architecture import Architecture
from niwaki.strategy.strategy import fingerprint
from niwaki.task.classify import ImageClassification
from niwaki.task.tabular import Tabular
from niwaki.task.task import derive_seed
from niwaki.trial import EvaluationFailed, Trial

FINALIST, REGULAR = "finalist", "regular"  # sources of trials of a training of their own: found by the search, or a regular network
MOST_COPIED = 2 << 30  # bytes for the images in all processes together that train finalists
COPIES = 3  # of the images in such a process: as they came, as they are stored, and ready for batches


def choose(
    search: Search, at: int, space: Within, aims: Sequence[Aim], folder: Folder, progress: Progress, clock: Clock
) -> tuple[Architecture, dict[str, float]]:
    """The best trial within the budget by validation; of several finalists, unlike each other, the best after a short training of its own.

    The store keeps it as the result "choice" and number of the budget: what is chosen, its source, and the best that the search itself found.

    Regular networks are among the finalists, half of them drawn from the whole family, the others like the best finalist so far: shared
    weights that have been trained for a few epochs favour what is shallow and quick to train, and regular networks are a sample of what
    such a search overlooks.
    """
    placement = place(search.network)
    validation = len(search.task.part("validation"))
    best_first = partial(preferred, metric=search.task.metric, simplest=placement if validation < FEW else None)
    judge = Scratch(
        search.network, search.task, search.proxy, seed=search.seed, device=search.device, folds=search.folds, weights=search.weights
    )

    def compute() -> dict[str, Any]:
        stored = folder.store.trials(run_name(at), space.space)
        trials = [trial for trial in stored if trial.source not in (FINALIST, REGULAR)]
        of_aims = [
            (aim, best_first([trial for trial in trials if aim.has(trial.arch)], examples=validation)) for aim in aims if aim.budget == at
        ]
        # the weights that networks share say little about networks of different resolutions: these take turns
        heads = best_first([trials[0] for _, trials in of_aims if trials], examples=validation)
        of_aims.sort(key=lambda pair: heads.index(pair[1][0]) if pair[1] else len(heads))
        turns = zip_longest(*(unlike(trials, placement, search.finalists) for _, trials in of_aims))
        best = [trial for of_turn in turns for trial in of_turn if trial is not None]
        found = [trial.arch for trial in best[: search.finalists - search.regular]]
        generator = np.random.default_rng(derive_seed(search.seed, "regular", at))
        draw = partial(regular, space, generator=generator, spent=SPENT, same=partial(program, search.network))
        drawn: list[Architecture] = []
        anywhere = search.regular - search.regular // 2
        for number, (aim, _) in enumerate(of_aims):
            drawn += draw(len(range(number, anywhere, len(of_aims))), taken=aim.taken, known=[*found, *drawn])
        drawn += draw(anywhere - len(drawn), known=[*found, *drawn])  # where a resolution has too few
        finalists = [(arch, FINALIST) for arch in found] + [(arch, REGULAR) for arch in drawn]
        if len(finalists) > 1:
            workers = finalist_workers(search)
            with Workers(max(1, workers), common=(judge,), threads=1 if workers else None) as pool:
                train = partial(_train_finalists, search, at, judge, pool=pool, folder=folder, progress=progress, clock=clock)
                trained = train(finalists, len(trials))
                ranked = best_first(trained, examples=judge.examples())
                if ranked and len(trained) == len(finalists) and search.regular > 1:  # and none was cut
                    more = draw(search.regular // 2, near=ranked[0].arch, known=[*found, *drawn])
                    trained += train([(arch, REGULAR) for arch in more], len(trials) + len(finalists), earlier=trained) if more else []
                    ranked = best_first(trained, examples=judge.examples())
            if trained and not ranked:
                folder.note(
                    f"None of {len(trained)} finalists could be trained; the best with shared weights is taken{_first_failure(trained)}."
                )
            best, stored = ranked or best, trained
        if not best:
            raise RunError(f"no architecture within {search.budgets[at].text} could be evaluated{_first_failure(stored)}")
        own = next((trial for trial in best if trial.source != REGULAR), None)
        return {"chosen": told(best[0]), "source": best[0].source, "own": own and told(own)}

    def told(trial: Trial) -> dict[str, Any]:
        return {"arch": trial.arch.to_json(), "metrics": {key: value for key, value in trial.metrics.items() if key not in search.costs}}

    found = once(folder, f"choice {at}", compute)
    chosen, own, metric = found["chosen"], found["own"], search.task.metric
    if found["source"] == REGULAR:
        beside = f", that of the best network that the search itself found {figure(metric, own['metrics'][metric])}" if own else ""
        measured = f"after a short training its validation {figure_name(metric)} was {figure(metric, chosen['metrics'][metric])}{beside}"
        folder.note(f"For {search.budgets[at].text} a regular network is delivered: {measured}.")
    return Architecture.from_json(chosen["arch"], space.space), chosen["metrics"]


def judged_by(search: Search, source: str) -> str:
    """How a trial was measured when a network was chosen, for people."""
    if source in (FINALIST, REGULAR):
        return (
            f"in {search.folds}-fold cross-validation of a short training" if search.folds > 1 else "on validation, after a short training"
        )
    if isinstance(search.method, AskTell) and search.method.evaluator == "scratch":
        return "on validation, after a short training"
    return "on validation, with shared weights"


def finalist_workers(search: Search) -> int:
    """How many processes train finalists side by side; see `processes`."""
    return processes(search, search.finalists * search.folds)


def processes(search: Search, most: int) -> int:
    """How many processes train networks side by side, of one thread each: networks this small gain next to nothing from a second thread.

    most: networks that there are to train. 1: they are trained here, on one thread, too, so that the result is the same: where copies of the data would be costly, and what cannot
    be sent to a process. 0: they are trained on a GPU.
    """
    if search.device != "cpu":
        return 0
    if type(plain(search.task)) not in (ImageClassification, Tabular) or any(
        isinstance(item.layer, Opaque) and item.layer.make is not None for item in place(search.network).items
    ):
        return 1
    copied = COPIES * search.task.nbytes
    return max(1, min(search.workers, most, MOST_COPIED // max(1, copied)))


def _train_finalists(
    search: Search,
    at: int,
    judge: Scratch,
    finalists: Sequence[tuple[Architecture, str]],
    first: int,
    *,
    earlier: Sequence[Trial] = (),
    pool: Workers,
    folder: Folder,
    progress: Progress,
    clock: Clock,
) -> list[Trial]:
    """A trial of each finalist, by a short training of its own, while there is time. first: the number of the first of these trials.

    finalists: with the source of their trials. earlier: trials of others, which tell how long one takes.
    """

    # one short training, by what the final one is expected to take
    one_s = clock.expected.get("training", 0.0) / len(search.budgets) * search.proxy.epochs / search.recipe.epochs

    def over(results: Mapping[str, Any]) -> bool:
        folder.book("finalists")
        known = [result["seconds"] for result in results.values()] + [trial.seconds / search.folds for trial in earlier]
        return clock.over("finalists", clock.part(at), next_s=max(known, default=one_s))

    numbered = list(enumerate(finalists, start=first))
    jobs = [  # of a name that says which architecture it was: a result is never another's
        [Job(f"finalist {at} {number} {fingerprint(arch)} {fold}", _fold, (dict(arch), fold)) for fold in range(search.folds)]
        for number, (arch, _) in numbered
    ]
    phase = f"training {len(finalists)} finalists" + (f", {search.folds} times each" if search.folds > 1 else "")
    results = pool.run([job for of_one in jobs for job in of_one], folder, progress, phase, over, clock.past)
    folder.book("finalists")
    judged: list[Trial] = []
    for (number, (arch, source)), of_one in zip(numbered, jobs, strict=True):
        parts = [results[job.name] for job in of_one if job.name in results]
        if len(parts) < len(of_one):
            continue
        seconds = sum(part["seconds"] for part in parts)
        if failed := next((part["failed"] for part in parts if part["failed"]), None):
            trial = Trial(number, arch, {}, source, seconds, status="failed", note=failed)
        else:
            metrics = judge.mean([part["metrics"] for part in parts])
            trial = Trial(number, arch, {**metrics, **counted(search, arch)}, source, seconds)
        folder.store.append(run_name(at), trial)
        judged.append(trial)
    if len(judged) < len(finalists):
        done, asked = len(earlier) + len(judged), len(earlier) + len(finalists)
        folder.note(f"The time limit cut the training of finalists short: {done} of {asked} were trained.")
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
