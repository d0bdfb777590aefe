"""niwaki.student_search: a trained network in, smaller ones for every budget out, from pieces that are distilled once and side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from niwaki.deploy.card import ModelCard
from niwaki.net.control import Network
from niwaki.net.text import from_json, to_json
from niwaki.nn.build import build
from niwaki.objective import Budget, budget_text, parse_budgets
from niwaki.recipe.student_search import (
    Job,
    Library,
    Settings,
    build_library,
    drifted,
    figures,
    knapsack,
    one_by_one,
    recalibrated,
    train_candidate,
)
from niwaki.recipe.students import Candidate, Neighbourhood, Variants, cut_candidates, described, stand_ins, undescribed
from niwaki.run.model import ModelError
from niwaki.run.progress import Progress, Silent
from niwaki.run.search import AnyTask, plain
from niwaki.run.ship import class_names, form_of, write_files
from niwaki.run.teacher import RUN_FILES, load_weights_
from niwaki.run.workers import Pool, one_thread
from niwaki.space.architecture import Architecture
from niwaki.store.files import atomic_write
from niwaki.task.classify import ImageClassification
from niwaki.task.tabular import Tabular
from niwaki.task.task import Part, derive_seed
from niwaki.train.distill import teacher_of
from niwaki.train.loop import evaluate, train
from niwaki.train.pieces import balanced_cuts, pieces_of
from niwaki.train.recipe import Recipe

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
    choose: `knapsack`, `local` or `greedy`. blocks: a described teacher is taken apart into blocks, not stages. variants, candidates: of
    one's own, of described teachers and of others. drift: the chosen students learn once more behind each other. tune: and then all together,
    from labels and teacher, by this recipe. workers: processes; the result does not depend on them. export: described students are
    written to `out` as a run writes its network. The library there is used again by any later call.
    """
    progress, out = progress or Silent(), Path(out)
    if not isinstance(teacher, nn.Module):
        network, teacher = _of_run(Path(teacher))
    teacher = teacher.cpu().eval()
    places = (
        described(network, teacher, variants=variants, blocks=blocks)
        if network is not None
        else _places_of(teacher, task, cuts, candidates)
    )
    budgets: tuple[Budget, ...] = parse_budgets(budget) if budget is not None else ((),)

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
    whole = teacher
    found = []
    for limits in budgets:
        arch = choose(library, library.limits(limits))
        progress.note(f"{budget_text(limits) or 'no budget'}: {', '.join(f'{name} {option}' for name, option in arch.items())}")
        found.append(_student(library, arch, budget_text(limits), whole, drift=drift, tune=tune))
    for at, one in enumerate(found, start=1):
        if (
            export
            and one.network is not None
            and isinstance(plain(task), (ImageClassification, Tabular))
            and isinstance(one.module, fx.GraphModule)
        ):
            write_files(task, one.module, _card(task, one), out / f"student-{at}")
    told = [{"budget": one.budget, **one.figures} for one in found]
    atomic_write(out / "students.json", json.dumps(told, indent=2) + "\n")
    return Students(tuple(found), library, out)


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
        module = train(
            library.plain(arch, module), task, tune, indices, seed=derive_seed(library.seed, "tune"), device=device, teacher=learner
        )
        metric["tuned"] = _metric(library, module, part)
    if not isinstance(module, fx.GraphModule):
        module = library.plain(arch, module)
    return Student(budget, arch, module.cpu().eval(), library.network(arch), told)


def _card(task: AnyTask, student: Student) -> ModelCard:
    assert student.network is not None
    costs = student.figures["costs"]
    return ModelCard(
        class_names(task), form_of(task), costs["macs"], costs["params"], costs["size"], {"test": student.figures[task.metric]},
        dict(student.architecture), student.architecture.space, to_json(student.network),
    )  # fmt: skip


def _metric(library: Library, module: nn.Module, part: Part) -> float:
    return evaluate(module, library.task, library.task.part(part), device=library.device)[library.task.metric]


def _of_run(folder: Path) -> tuple[Network, nn.Module]:
    """Description and trained module of a finished run."""
    if missing := [name for name in RUN_FILES if not (folder / name).is_file()]:
        raise ModelError(f"{folder} has no {' and no '.join(missing)}; a teacher is a trained module, or the folder of a finished run")
    network = from_json(json.loads((folder / "architecture.json").read_text("utf-8"))["network"])
    module = build(network)
    load_weights_(module, folder / "model.safetensors")
    return network, module


@torch.no_grad()
def _places_of(
    teacher: nn.Module, task: AnyTask, cuts: Sequence[str] | None, candidates: Sequence[Sequence[Candidate]] | None
) -> tuple[Neighbourhood, ...]:
    """The neighbourhoods of a module without a description: shapes and signs from some of the task's examples."""
    module = teacher if isinstance(teacher, (nn.Sequential, fx.GraphModule)) else _traced(teacher)
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
            sets.append([*cut_candidates(piece, before), *stand_ins(before, after, positive=positive)])
        sets.append(cut_candidates(pieces[-1], shapes[-2]))
    return undescribed(module, at, shapes, sets)


def _traced(module: nn.Module) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(module)
    except Exception as error:  # whatever the module's own code raises on a proxy
        raise ModelError(
            f"a {type(module).__name__} cannot be traced ({error}); give the module of niwaki.adoption.read(module, example), a torch.fx.GraphModule"
        ) from error
