"""niwaki.student_search: a trained network in, smaller ones for every budget out, from pieces that are distilled once and side by side."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from niwaki.adoption.adopted import read
from niwaki.cost.count import count_macs
from niwaki.deploy.card import ModelCard
from niwaki.factor.within import within
from niwaki.net.control import Chain, Network
from niwaki.net.place import space_of
from niwaki.net.text import to_json
from niwaki.objective import Budget, budget_text, parse_budgets
from niwaki.recipe.student_library import Job, Library, Settings, build_library, one_by_one
from niwaki.recipe.student_search import drifted, figures, knapsack, recalibrated
from niwaki.recipe.student_training import count_module_macs, held_at_zero, train_candidate
from niwaki.recipe.students import Candidate, Neighbourhood, Variants, cut_candidates, described, stand_ins, undescribed
from niwaki.run.model import ModelError
from niwaki.run.progress import Progress, Silent
from niwaki.run.search import AnyTask, plain
from niwaki.run.ship import class_names, form_of, write_files
from niwaki.run.teacher import network_of_run
from niwaki.run.workers import Pool, one_thread
from niwaki.space.architecture import Architecture
from niwaki.store.files import atomic_write
from niwaki.task.classify import ImageClassification
from niwaki.task.task import Part, derive_seed
from niwaki.train.distill import check_answers, check_teaches, teacher_of
from niwaki.train.loop import evaluate, train
from niwaki.train.neighbourhood import NeighbourhoodError
from niwaki.train.pieces import balanced_cuts, pieces_of
from niwaki.train.recipe import Recipe

NEAR = 0.05  # of a deviation, and of the deviations' ratio: as far as two splits of the same data may differ
PIECES = 4  # of a module without a description, where no cuts are named
Choose = Callable[..., Architecture]


@dataclass(frozen=True, eq=False)
class Student:
    """The network for one budget. budget: as text, "" for none. network: its description, where the teacher has one.

    figures: its costs, the local errors, and the metric on the test part: of the teacher, of the student as assembled, with recalibrated
    BatchNorm, after drift training and after tuning, as far as these were asked for.
    """

    budget: str
    architecture: Architecture
    module: nn.Module
    network: Network | None
    figures: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Students:
    """One student for each budget, and the library that they were chosen from, in `folder`: other budgets need no further training."""

    students: tuple[Student, ...]
    library: Library
    folder: Path

    def __getitem__(self, at: int) -> Student:
        return self.students[at]


def student_search(
    teacher: nn.Module | str | Path,
    task: AnyTask,
    budget: str | Sequence[str] | None = None,
    *,
    network: Network | None = None,
    cuts: Sequence[str] | None = None,
    blocks: bool = False,
    variants: Variants | None = None,
    candidates: Sequence[Sequence[Candidate]] | None = None,
    choose: Choose = knapsack,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    drift: bool = False,
    tune: Recipe | None = None,
    out: str | Path = "runs/students",
    seed: int = 0,
    workers: int = 2,
    device: str = "cpu",
    export: bool = True,
    progress: Progress | None = None,
) -> Students:
    """Smaller networks made of students of the teacher's pieces, one for each budget, chosen without training (`recipe/student_search.py`).

    teacher: a trained module with its description `network`; the folder of a finished run, which has both; or any module, in pieces at `cuts`
    (`train/pieces.py`; left out, four of about equal size), whose candidates follow from its channels and shapes. budget: such as
    "macs<=50%" of the teacher; several, in a list or between semicolons, are several students; none is the least cost that the errors allow.
    choose: `knapsack`, `local` or `greedy`. settings: how students are trained and errors measured (`recipe/student_library.Settings`). blocks: a
    described teacher is taken apart into blocks, not stages. variants, candidates: of one's own, of described teachers and of others. drift: the
    chosen students learn once more behind each other. tune: and then all together, from labels and teacher, by this recipe. workers: processes;
    the result does not depend on them. export: students are written to `out`/student-1, ... as a run writes its network. The library there is
    used again by any later call. The teacher stays as it is.
    """
    progress, out = progress or Silent(), Path(out)
    if not isinstance(teacher, nn.Module):
        network, teacher = _of_run(Path(teacher), task)
    teacher = copy.deepcopy(teacher).cpu().eval()
    _refuse(teacher, network, task, cuts=cuts, candidates=candidates, blocks=blocks, variants=variants, noise=drift and settings.noise)
    if tune is not None:
        check_teaches(teacher_of(teacher), task)
    places = (
        described(network, teacher, variants=variants, blocks=blocks)
        if network is not None
        else _places_of(teacher, task, cuts, candidates)
    )
    budgets: tuple[Budget, ...] = parse_budgets(budget) if budget is not None else ((),)

    untrained = Library(places, task, settings, {}, (), (), 0.0, ((), ()), out / "library", seed, device)
    for limits in budgets:  # BudgetError, with the least there is, before anything is trained
        within(untrained.space, untrained.limits(limits))

    def run(jobs: Sequence[Job]) -> None:
        progress.phase("distilling candidates", len(jobs))
        if workers > 1 and len(jobs) > 1 and device == "cpu":
            with Pool(min(workers, len(jobs)), train_candidate) as pool:
                for done, one in enumerate([pool.submit(*job) for job in jobs], start=1):
                    one.result()
                    progress.advance(done)
            return
        with one_thread():
            for done, job in enumerate(jobs, start=1):
                one_by_one([job])
                progress.advance(done)

    library = build_library(places, task, out / "library", settings, seed=seed, run=run, device=device)
    found = []
    for limits in budgets:
        arch = choose(library, library.limits(limits))
        progress.note(f"{budget_text(limits) or 'no budget'}: {', '.join(f'{name} {option}' for name, option in arch.items())}")
        found.append(_student(library, arch, budget_text(limits), teacher, drift=drift, tune=tune))
    for at, one in enumerate(found, start=1):
        if export:
            write_files(task, _traced(one.module, task), _card(task, one), out / f"student-{at}")
    told = [{"budget": one.budget, **one.figures} for one in found]
    atomic_write(out / "students.json", json.dumps(told, indent=2) + "\n")
    return Students(tuple(found), library, out)


def _refuse(teacher: nn.Module, network: Network | None, task: AnyTask, *, noise: Any, **given: Any) -> None:
    """Raises for what cannot be, or would change nothing, before anything is trained."""
    check_answers(teacher_of(teacher), task)
    kind, useful = ("with", ("variants", "blocks")) if network is not None else ("without", ("cuts", "candidates"))
    if idle := [name for name, value in given.items() if value not in (None, False) and name not in useful]:
        raise NeighbourhoodError(
            f"{' and '.join(idle)} would change nothing of a teacher {kind} a description, which is for {' and '.join(useful)}"
        )
    if network is not None and network.input_shape != task.input_shape:
        raise NeighbourhoodError(
            f"the teacher's description reads {network.input_shape}, the examples of {task.source} are {task.input_shape}"
        )
    if noise:
        raise NeighbourhoodError(f"drift training reads what students make of data, and noise={noise} takes the place of these")


def _student(library: Library, arch: Architecture, budget: str, teacher: nn.Module, *, drift: bool, tune: Recipe | None) -> Student:
    task, device = library.task, library.device
    part: Part = "test"
    told = figures(library, arch, part)
    metric = told[task.metric]
    module = recalibrated(library, arch)
    if drift:
        module = recalibrated(library, arch, drifted(library, arch))
        metric["drift"] = _metric(library, module, part)
    if tune is not None:
        learner = teacher_of(teacher)
        indices = task.part("train")
        whole = library.plain(arch, module)
        with held_at_zero(library.zeros(arch, whole)):
            module = train(whole, task, tune, indices, seed=derive_seed(library.seed, "tune"), device=device, teacher=learner)
        metric["tuned"] = _metric(library, module, part)
    if not isinstance(module, fx.GraphModule):
        module = library.plain(arch, module)
    return Student(budget, arch, module.cpu().eval(), library.network(arch), told)


def _card(task: AnyTask, student: Student) -> ModelCard:
    costs = student.figures["costs"]
    *_, delivered = student.figures[task.metric].values()  # what was done last
    return ModelCard(
        class_names(task), form_of(task), costs["macs"], costs["params"], costs["size"], {"test": {task.metric: delivered}},
        dict(student.architecture), student.architecture.space, None if student.network is None else to_json(student.network),
    )  # fmt: skip


def _metric(library: Library, module: nn.Module, part: Part) -> float:
    return evaluate(module, library.task, library.task.part(part), device=library.device)[library.task.metric]


def _of_run(folder: Path, task: AnyTask) -> tuple[Network, nn.Module]:
    """Description and trained module of a finished run on these data. Its pieces read what the task gives, so that this has to be as it was."""
    network, module, form = network_of_run(folder, task)
    base = plain(task)
    if isinstance(base, ImageClassification) and "mean" in form:
        mean, std = base.normalisation
        theirs_mean, theirs_std = (torch.tensor(form[name]) for name in ("mean", "std"))
        if len(mean) != len(theirs_mean) or bool(
            (((mean - theirs_mean) / std).abs() > NEAR).any() | ((std / theirs_std - 1).abs() > NEAR).any()
        ):
            raise ModelError(
                f"{folder} normalised its images by mean {form['mean']} and deviation {form['std']}, {task.source} has {mean.tolist()} and "
                f"{std.tolist()}; give the task of the run"
            )
    return network, module


@torch.no_grad()
def _places_of(
    teacher: nn.Module, task: AnyTask, cuts: Sequence[str] | None, candidates: Sequence[Sequence[Candidate]] | None
) -> tuple[Neighbourhood, ...]:
    """The neighbourhoods of a module without a description: shapes and signs from some of the task's examples."""
    module = teacher if isinstance(teacher, (nn.Sequential, fx.GraphModule)) else _traced(teacher, task)
    at = tuple(cuts) if cuts is not None else balanced_cuts(module, PIECES)
    pieces = pieces_of(module, at)
    tensors = [task.batch(task.part("train")[:64], torch.device("cpu"))[0]]
    for piece in pieces:
        tensors.append(piece(tensors[-1]))
    shapes = [tuple(one.shape[1:]) for one in tensors]
    sets: list[Sequence[Candidate]] = [list(own) for own in candidates] if candidates is not None else []
    if candidates is None:
        for number, piece in enumerate(pieces[:-1]):
            before, after = shapes[number : number + 2]
            positive = bool(tensors[number + 1].min() >= 0)
            most = count_module_macs(piece, before)
            cheaper = [one for one in stand_ins(before, after, positive=positive) if _macs(one, before) < most]
            sets.append([*cut_candidates(piece, before), *cheaper])
        sets.append(cut_candidates(pieces[-1], shapes[-2]))
    return undescribed(module, at, shapes, sets)


def _macs(candidate: Candidate, shape: tuple[int, ...]) -> int:
    assert candidate.layer is not None
    network = Network(Chain(candidate.layer), shape)
    return count_macs(network)(space_of(network).architecture({}))


def _traced(module: nn.Module, task: AnyTask) -> fx.GraphModule:
    if isinstance(module, fx.GraphModule):
        return module
    try:
        return fx.symbolic_trace(module)
    except Exception as error:  # whatever the module's own code raises on a proxy
        read(module, task.batch(task.part("train")[:2], torch.device("cpu"))[0])  # AdoptionError, with the line, where nothing can trace it
        raise ModelError(
            f"a {type(module).__name__} cannot be traced ({error}); give the module of niwaki.adoption.read(module, example), a torch.fx.GraphModule"
        ) from error
