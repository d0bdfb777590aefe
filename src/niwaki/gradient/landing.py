"""One round of shrinking an adopted model: train it under pressure, then choose the units so that the budgets are used up."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from niwaki.adoption.adopted import Adopted
from niwaki.gradient.adopted import gated, places_of, scales_of
from niwaki.gradient.expand import Bound, Widths, best_first, by_rank, expand, fill
from niwaki.gradient.figs import FiGS, Gates
from niwaki.gradient.morphnet import MorphNet, Scales
from niwaki.gradient.resource import Marginal, Polynomial, Tempered
from niwaki.gradient.shrinking import Shrinking, Sparsity
from niwaki.task.task import Task
from niwaki.train.batch_norm import recalibrate_batch_norm_
from niwaki.train.distill import Teacher
from niwaki.train.loop import batches_per_epoch, epoch_batches, evaluate, train
from niwaki.train.recipe import Recipe

Method = MorphNet | FiGS
LOGIT_REACH = 10.0  # how far, in units of where they begin, Adam could move logits in the whole training, were there no noise
JUDGED = 2000  # validation examples, at most, by which landings are compared before they are fine-tuned
REFRESHED = 40  # batches that a cut network's batch norms see before it is judged
WAYS = {
    "multiplier": "a common multiplier of what the pressure left",
    "between": "half-way from the owner's shape to what the pressure left",
    "magnitude": "the largest magnitudes after the pressure",
    "before": "the largest magnitudes of the owner's weights, without the pressure",
}  # of choosing units, by the names of landings
REACH = 1.5  # how far the first pressure of MorphNet would move a scale of median cost in the whole training, were nothing against it


@dataclass(frozen=True)
class Landing:
    """Units that are kept, and how they were chosen. keep: by group, ascending. source: the model that they are cut from, with its weights."""

    name: str
    keep: Mapping[str, tuple[int, ...]]
    source: Adopted = field(repr=False, compare=False)

    @property
    def counts(self) -> dict[str, int]:
        return {group: len(units) for group, units in self.keep.items()}


def pressed(
    adopted: Adopted, task: Task, method: Method, bounds: Sequence[Bound], indices: Tensor, *, teacher: Teacher | None = None, seed: int = 0,
    device: str = "cpu",
) -> Shrinking:  # fmt: skip
    """The training under pressure of one round, begun; run it until it is `finished`, then ask for `landings`."""
    units = adopted.whole
    steps = method.epochs * batches_per_epoch(len(indices), method.batch_size)
    if method.exact:
        bounds = [replace(one, resource=Marginal(one.resource)) if isinstance(one.resource, Polynomial) else one for one in bounds]
    if method.temper < 1:
        bounds = [replace(one, resource=Tempered(one.resource, method.temper)) for one in bounds]
    sparsity: Sparsity
    if isinstance(method, FiGS):
        module, sources = gated(adopted)
        sparsity = Gates(sources, units, method, device=device)
        own_lr, first = max(method.logit_lr, LOGIT_REACH * method.initial / steps), 1.0
    else:
        module = adopted.cut({})
        sparsity, own_lr = Scales(module, scales_of(adopted), method), method.lr
        first = REACH * (1 - method.momentum) / (steps * method.lr * _median_slope(bounds, units))
    return Shrinking(
        module, task, sparsity, units, bounds, method.recipe, indices, strength=method.strength, first_strength=first, own_lr=own_lr,
        needed=adopted.least, teacher=teacher, seed=seed, device=device,
    )  # fmt: skip


def _median_slope(bounds: Sequence[Bound], units: Mapping[str, int]) -> float:
    """Of all units: what one costs, as a share of everything, by the first bound."""
    slopes = bounds[0].resource.slopes(units)
    shares = [slopes.get(group, 0.0) for group, count in units.items() for _ in range(count)]
    return max(1e-12, float(torch.tensor(shares).median()) / bounds[0].resource.cost(units))


def with_weights_of(adopted: Adopted, shrinking: Shrinking) -> Adopted:
    """The adopted model with the weights that the training led to."""
    owner = copy.deepcopy(adopted.owner)
    owner.load_state_dict({name: tensor.cpu() for name, tensor in shrinking.module.state_dict().items()})
    return replace(adopted, owner=owner)


def landings(adopted: Adopted, shrinking: Shrinking, bounds: Sequence[Bound], *, multiple_of: int = 1) -> list[Landing]:
    """Ways to use the budgets up after a training under pressure, for a short training to choose from. "multiplier": MorphNet's common multiplier of
    what is alive. Ours: "between", a shape half-way from the owner's to what is alive, multiplied; "magnitude", one threshold for the units'
    magnitudes over all weights of their group; "before", the same of the weights before the pressure, which are also what is left. All are filled
    up with the best units that still fit, and never cost more than the bounds. Those that come to the same numbers with the same weights are one.
    """
    widths = Widths(adopted.whole, multiple_of, adopted.least)
    after = with_weights_of(adopted, shrinking)
    shape = adopted.whole | {group: max(1, int((left > 0).sum())) for group, left in shrinking.sparsity.margins().items()}
    between = {group: (units * shape[group]) ** 0.5 for group, units in adopted.whole.items()}
    of_pressure, pressed_magnitudes, owners = (
        best_first(scores) for scores in (scores_of(adopted, shrinking), magnitudes(after), magnitudes(adopted))
    )
    chosen = (
        ("multiplier", after, expand(shape, widths, bounds)[1], of_pressure),
        ("between", after, expand(between, widths, bounds)[1], of_pressure),
        ("magnitude", after, by_rank(pressed_magnitudes[1], widths, bounds), pressed_magnitudes),
        ("before", adopted, by_rank(owners[1], widths, bounds), owners),
    )
    found: dict[tuple[Any, ...], Landing] = {}
    for name, source, counts, (order, ranked) in chosen:
        landed = fill(counts, widths, bounds, ranked)
        keep = {group: tuple(sorted(order[group][:count])) for group, count in landed.items()}
        found.setdefault((source is after, *landed.items()), Landing(name, keep, source))
    return list(found.values())


def judged_by_training(
    landing: Landing, task: Task, recipe: Recipe, *, epochs: int, seeds: tuple[int, int], teacher: Teacher | None = None,
    device: torch.device | str = "cpu",
) -> float:  # fmt: skip
    """The task's metric on validation examples of what a landing leaves, its batch norms refreshed, after `epochs` epochs of training by `recipe`.

    seeds: of the batches that refresh, and of the training.
    """
    part, device = task.part("train"), torch.device(device)
    module: nn.Module = cut(landing).to(device)
    batches = epoch_batches(part, recipe.batch_size, seed=seeds[0])[:REFRESHED]
    recalibrate_batch_norm_(module, [task.batch(batch, device)[0] for batch in batches])
    if epochs:
        module = train(module, task, replace(recipe, epochs=epochs), part, seed=seeds[1], device=device, teacher=teacher)
    return evaluate(module, task, task.part("validation")[:JUDGED], device=device)[task.metric]


def magnitudes(adopted: Adopted) -> dict[str, Tensor]:
    """For each unit the squared weights that belong to it in every layer that makes or reads it, each layer's divided by their mean, (U,) by group:
    the importance of DepGraph (Fang et al., CVPR 2023), Torch-Pruning's default."""
    named = dict(adopted.owner.named_parameters())
    found = {}
    for group in adopted.groups:
        parts = []
        for name, axis in group.members:
            if name in named and name.endswith("weight"):
                squares = named[name].detach().square().movedim(axis, 0)[places_of(adopted.weights[name][axis], group.name)]
                parts.append(squares.flatten(1).sum(1))
        if parts:
            found[group.name] = torch.stack([part / part.mean().clamp(min=1e-12) for part in parts]).mean(0)
        else:
            found[group.name] = torch.ones(group.units)
    return found


def scores_of(adopted: Adopted, shrinking: Shrinking) -> dict[str, Tensor]:
    """What the units are ranked by, (U,) each: their margins; where a group has none, the lengths of its filters against their median."""
    scores = {group: margins.detach().cpu() for group, margins in shrinking.sparsity.margins().items()}
    others = {group: scales for group, scales in scales_of(adopted).items() if group not in scores}
    trainable = {name for name, parameter in shrinking.module.named_parameters() if parameter.requires_grad}
    if any(scale.weight in trainable for scales in others.values() for scale in scales):
        scores |= Scales(shrinking.module, others).margins()
    return scores | {group: torch.ones(units) for group, units in adopted.whole.items() if group not in scores}


def uniform(adopted: Adopted, bounds: Sequence[Bound], *, multiple_of: int = 1) -> dict[str, int]:
    """The naive baseline: the owner's widths times the largest common multiplier that keeps the bounds."""
    units = adopted.whole
    return expand(units, Widths(units, multiple_of, adopted.least), bounds)[1]


def cut(landing: Landing) -> fx.GraphModule:
    """The plain module with the landing's units; independent of the model that they come from."""
    return landing.source.cut(landing.keep)
