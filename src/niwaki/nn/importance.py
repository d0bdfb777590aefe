"""The units of an adopted model in order of importance: a smaller width keeps the first units of every group, which then are those that matter.

Magnitude of a group (Fang et al., DepGraph, CVPR 2023; the default of Torch-Pruning): the squared weights that belong to a unit, in every
layer that makes or reads it, each layer's divided by their mean over the units.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from niwaki.net.axes import Axis, Run, most
from niwaki.net.control import Network
from niwaki.net.operation import Operation, Weight
from niwaki.net.place import place
from niwaki.space.size import Ref, Symbol, refs

Scores = Mapping[str, Tensor]  # by decision: of each unit of its group, the more important the larger


@torch.no_grad()
def important_first(network: Network, weights: Mapping[str, Tensor], scores: Scores | None = None) -> dict[str, Tensor]:
    """The owner's `weights` with the units of every group in order of importance. The whole network computes the same as before.

    scores: of each unit; by default, its magnitude.
    """
    found = magnitudes(network, weights) if scores is None else scores
    order = {name: torch.argsort(score, descending=True, stable=True) for name, score in found.items()}
    ordered = {name: tensor.clone() for name, tensor in weights.items()}
    for weight in _weights(network):
        tensor = _of(weights, weight)
        if tensor is None:
            continue
        for dim, axis in enumerate(weight.axes):
            if any(isinstance(run.units, Symbol) for run in axis):
                tensor = tensor.index_select(dim, _moved(axis, order))
        for name in weight.names:
            if name in ordered:
                ordered[name] = tensor
    return ordered


@torch.no_grad()
def magnitudes(network: Network, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By decision, the magnitude of each unit of its group: squared weights over their mean, averaged over the layers that hold it."""
    total: dict[str, Tensor] = {}
    for weight in _weights(network):
        tensor = _of(weights, weight)
        if tensor is None or weight.kind not in ("parameter", "frozen") or (tensor.dim() < 2 and not weight.name.endswith("weight")):
            continue
        for dim, axis in enumerate(weight.axes):
            others = [other for other in range(tensor.dim()) if other != dim]
            squares = tensor.float().square().sum(others) if others else tensor.float().square()
            for run, ref, start in _open_runs(axis):
                size = run.outer * most(run.units) * run.inner
                of_units = squares[start : start + size].view(run.outer, most(run.units), run.inner).sum((0, 2))
                share = of_units / of_units.mean().clamp_min(1e-30)
                total[ref.name] = total[ref.name] + share if ref.name in total else share
    return total


def _weights(network: Network) -> Iterator[Weight]:
    for item in place(network).items:
        if isinstance(item.layer, Operation):
            yield from (weight for weight in item.layer.weights if not weight.again)


def _of(weights: Mapping[str, Any], weight: Weight) -> Tensor | None:
    return next((weights[name] for name in weight.names if name in weights), None)


def _open_runs(axis: Axis) -> Iterator[tuple[Run, Ref, int]]:
    """The runs of an axis that are cut, the decision of each, and where they start."""
    start = 0
    for run in axis:
        if isinstance(run.units, Symbol):
            (ref,) = refs(run.units)
            yield run, ref, start
        start += run.outer * most(run.units) * run.inner


def _moved(axis: Axis, order: Mapping[str, Tensor]) -> Tensor:
    """For each position of an axis, which of the old ones comes there."""
    length = sum(run.outer * most(run.units) * run.inner for run in axis)
    moved = torch.arange(length)
    for run, ref, start in _open_runs(axis):
        if ref.name in order:
            size = run.outer * most(run.units) * run.inner
            own = moved[start : start + size].view(run.outer, most(run.units), run.inner)
            moved[start : start + size] = own.index_select(1, order[ref.name]).reshape(-1)
    return moved
