"""Student search (Shao et al. 2020, arXiv:2010.01189): candidates for every neighbourhood of a teacher, trained once, are a search space.

Parts: the teacher in pieces (`students.described`); a student for each piece and candidate (`student_library.build_library`); how large an error
each boundary bears, measured with injected noise; and choices among the m^n combinations without any training:

- `local`: for each piece the cheapest candidate whose error is at most kappa of what its boundary bears;
- `knapsack`: the least cost at which errors, each as a share of what its boundary bears, add up to at most 1; or, given a budget, the least
  such sum within it;
- `greedy`: one replacement after the other, by what it saves for its error, with the metric measured after each.

The paper's figures: up to 4.6 times faster than end-to-end distillation at equal quality [abstract]; detailed tables were not to be had. Defaults
are ours unless said: Adam 1e-3 on half a cosine, batches of 128, kappa = 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from niwaki.factor.factor import Cost, Limit
from niwaki.factor.within import within
from niwaki.recipe.student_library import UNIT, Library, additive, hash_of
from niwaki.recipe.student_training import held_at_zero, zeros_of
from niwaki.recipe.students import KEEP
from niwaki.space.architecture import Architecture
from niwaki.task.task import derive_seed
from niwaki.train.batch_norm import recalibrate_batch_norm_
from niwaki.train.loop import evaluate
from niwaki.train.neighbourhood import Distilling, NeighbourhoodError, answers_from, distil, drift_pairs, rows
from niwaki.train.pieces import assembled

RECALIBRATION = 40  # batches
SPREAD = 200.0  # of the logarithms that stand for a cost to be made small


# ---------------------------------------------------------------- choosing


def least(cost: Cost, limits: Sequence[Limit]) -> Architecture:
    """The architecture within the limits with the least `cost`, exactly: a sum over single decisions is the logarithm of a probability, and the
    most likely architecture within limits is found by dynamic programming (`factor/mode.py`). BudgetError where there is none.

    Differences below 1e-12 of the spread of the costs count as none.
    """
    if cost.kind != "sum" or any(len(factor.scope) != 1 for factor in cost.factors):
        raise NeighbourhoodError(f"{cost.name} is no sum over single decisions")
    tables = {factor.scope[0]: factor.table.astype(np.float64) for factor in cost.factors}
    spread = sum(float(table.max() - table.min()) for table in tables.values()) or 1.0
    weights = {
        decision.name: np.exp(-SPREAD * (tables[decision.name] - tables[decision.name].min()) / spread)
        if decision.name in tables
        else np.ones(len(decision.options))
        for decision in cost.space.decisions
    }
    return within(cost.space, limits).mode(weights)


def knapsack(library: Library, limits: Sequence[Limit] = (), *, minimize: str = "macs", by: Cost | None = None) -> Architecture:
    """Within limits, the least sum of errors; without, the least cost whose sum of errors is at most what boundaries bear. by: the errors."""
    error = by or library.error
    return least(error, limits) if limits else least(library.costs[minimize], [Limit(error, UNIT)])


def local(library: Library, limits: Sequence[Limit] = (), *, minimize: str = "macs") -> Architecture:
    """The least cost with every error at most kappa of what its boundary bears. BudgetError where that is over a limit."""
    most = Limit(library.largest_error, int(library.settings.kappa * UNIT))
    return least(library.costs[minimize], [most, *limits])


def greedy(
    library: Library,
    limits: Sequence[Limit] = (),
    *,
    minimize: str = "macs",
    by: Cost | None = None,
    look: int = 3,
    most_drop: float | None = None,
) -> Architecture:
    """From the teacher on, one replacement after the other: of the `look` that save most for their error, the one that leaves the metric highest
    on the validation part. With limits, what is saved is of those that are not kept yet, until all are.

    Without limits it is of `minimize`, and goes on while the metric stays within `most_drop` (`settings.allowed`, if left out) of the teacher's.
    """
    error, cost, space = by or library.error, library.costs[minimize], library.space
    if limits:
        within(space, limits)  # BudgetError, with the least there is
    if not library.keep:
        raise NeighbourhoodError("a greedy search begins with the teacher, whose pieces are left out of this library (keep=False)")
    allowed = library.settings.allowed if most_drop is None else most_drop

    def left(arch: Architecture) -> float:
        """What is still to be saved: of `minimize`, or of what is over a limit, in shares of it."""
        return sum(max(0.0, limit.cost(arch) / max(1, limit.upper) - 1) for limit in limits) if limits else float(cost(arch))

    now = space.architecture(library.teacher)
    while not limits or left(now) > 0:
        others = [space.architecture({**now, decision.name: option}) for decision in space.decisions for option in decision.options]
        # every step brings the limits nearer, or it could go round in circles between two of them
        moves = [other for other in others if left(other) < left(now)]
        moves.sort(key=lambda other: -_saved(now, other, limits, cost) / max(error(other) - error(now), 1))
        judged = [(accuracy(library, other), other) for other in moves[:look]]
        if not judged:
            # where no single change helps any more, the exact minimum does
            return knapsack(library, limits, by=by) if limits else now
        best, other = max(judged, key=lambda one: one[0])
        if not limits and best < library.clean - allowed:
            return now
        now = other
    return now


def _saved(now: Architecture, other: Architecture, limits: Sequence[Limit], cost: Cost) -> float:
    """What a change saves of the limits that are not kept yet, in shares of each; without limits, of the cost."""
    over = [limit for limit in limits if limit.cost(now) > limit.upper]
    return sum((limit.cost(now) - limit.cost(other)) / max(1, limit.upper) for limit in over) if limits else cost(now) - cost(other)


def accuracy(library: Library, arch: Mapping[str, Any]) -> float:
    """The metric of a combination on the validation part, as it is put together; the teacher's pieces at its beginning are not run again."""
    same = 0
    for one in library.neighbourhoods:
        if arch[one.name] != KEEP:
            break
        same += 1
    answers = answers_from(library.pieces(arch)[same:], library.boundaries[1][same])
    return library.task.metrics(answers, library.task.labels(library.task.part("validation")))[library.task.metric]


def swapped_losses(library: Library) -> Cost:
    """Another error to add up (ours): how much the loss on the validation part rises when a candidate alone stands among the teacher's pieces.

    One evaluation for each candidate. In billionths of a nat; what lowers the loss counts as 0.
    """
    hold, task = library.task.part("validation"), library.task
    labels, teachers = task.labels(hold), [one.teacher for one in library.neighbourhoods]
    clean = float(task.loss(rows(library.boundaries[1][-1], slice(None)), labels))
    amounts = []
    for at, one in enumerate(library.neighbourhoods):
        own = []
        for candidate in library.options(one):
            rise = 0.0
            if candidate.name != KEEP:
                answers = answers_from((library.module(one, candidate.name), *teachers[at + 1 :]), library.boundaries[1][at])
                rise = max(0.0, float(task.loss(answers, labels)) - clean)
            own.append(rise)
        amounts.append(own)
    return additive("swapped_loss", library.space, amounts)


# ---------------------------------------------------------------- put together


def recalibrated(library: Library, arch: Mapping[str, Any], student: nn.Module | None = None, *, batches: int = RECALIBRATION) -> nn.Module:
    """An assembled student with BatchNorm statistics of its own activations: forward passes on training examples, without labels.

    Students keep statistics of what the teacher's pieces gave them; behind other students they read something else. A piece that is the
    teacher's own keeps its statistics as long as nothing before it was replaced.
    """
    module = library.assemble(arch) if student is None else student
    first = next((at for at, one in enumerate(library.neighbourhoods) if arch[one.name] != KEEP), None)
    if first is None:
        return module
    size = library.settings.how.recipe.batch_size
    indices = library.task.part("train")
    order = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(derive_seed(library.seed, "recalibration")))]
    parts = list(module.cpu().children())
    before, after = assembled(parts[:first]), assembled(parts[first:])
    with torch.no_grad():
        inputs = [
            before(library.task.batch(part, torch.device(library.device))[0]) for part in order.split(size)[:batches] if len(part) == size
        ]
    recalibrate_batch_norm_(after, inputs)
    return module.eval()


def drifted(library: Library, arch: Mapping[str, Any]) -> nn.Module:
    """The students trained once more, in order, each on what the students before it give, to the teacher's targets ("drift training").

    It cannot be done in parallel, and is cheaper than it sounds: they start from where they are, for a third of the epochs.
    """
    if library.settings.noise is not None:
        raise NeighbourhoodError("drift training reads what students make of data, and this library was made without any (noise=...)")
    pieces = library.pieces(arch)
    recipe = library.settings.how.recipe
    how = Distilling(replace(recipe, epochs=max(1, recipe.epochs // 3), lr=recipe.lr / 2), library.settings.how.plateau)
    inputs = library.boundaries[0]
    for at, one in enumerate(library.neighbourhoods):
        if arch[one.name] == KEEP or at == 0:
            continue
        pairs = drift_pairs(pieces, inputs, inputs[0], library.folder / f"drift-{hash_of(dict(arch), library.seed)}", at=at)
        with held_at_zero(zeros_of(pieces[at].parameters()) if one[arch[one.name]].sparsity else []):
            pieces[at] = distil(pieces[at], pairs, how, seed=derive_seed(library.seed, "drift", at), device=library.device).module
        with suppress(OSError):
            for path in pairs.inputs.parent.glob("x*.npy"):
                path.unlink()
    return assembled(pieces, [one.name for one in library.neighbourhoods])


def figures(library: Library, arch: Mapping[str, Any], part: Any = "test") -> dict[str, Any]:
    """What is to be told of a combination: its costs, the local errors, and beside them the metric as assembled and as recalibrated."""
    task, indices = library.task, library.task.part(part)
    whole, student = library.space.architecture(dict(arch)), library.assemble(arch)
    as_is = evaluate(student, task, indices, device=library.device)[task.metric]
    again = evaluate(recalibrated(library, arch, student), task, indices, device=library.device)[task.metric]
    teacher = evaluate(library.assemble(library.teacher), task, indices, device=library.device)[task.metric]
    return {
        "choice": dict(whole),
        "costs": {name: cost(whole) for name, cost in library.costs.items()},
        "errors": {one.name: asdict(library.trained[one.name, arch[one.name]].error) for one in library.neighbourhoods},
        "bears": dict(zip([one.name for one in library.neighbourhoods], library.bears, strict=True)),
        "error": library.error(whole) / UNIT,
        task.metric: {"teacher": teacher, "assembled": as_is, "recalibrated": again},
    }
