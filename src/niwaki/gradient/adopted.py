"""What an adopted model offers to methods that shrink it: its resources, the scales and the places of gates of its groups."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, fx

from niwaki.adoption.adopted import Adopted
from niwaki.adoption.axes import Axis, Term, linear
from niwaki.adoption.gates import GATE
from niwaki.adoption.gates import gated as gated_module
from niwaki.gradient.figs import Put
from niwaki.gradient.morphnet import Scale
from niwaki.gradient.resource import DEVICES, Operator, Polynomial, Resource, ResourceError, roofline

aten = torch.ops.aten
COUNTED = ("macs", "params", "activation_bytes")
ROOFLINES = tuple(f"roofline({device})" for device in DEVICES)
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.conv2d.padding, aten.conv1d.padding)
TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
FLOAT_BYTES = 4


def resource_of(adopted: Adopted, name: str) -> Resource:
    """What `name` means for the model: one of COUNTED, or of ROOFLINES."""
    if name in COUNTED:
        return Polynomial(name, tuple(adopted.terms(name)))
    if name in ROOFLINES:
        return roofline(name.removeprefix("roofline(").removesuffix(")"), operators(adopted))
    raise ResourceError(f"there is no resource {name!r}; there are {', '.join((*COUNTED, *ROOFLINES))}")


# --- scales ---------------------------------------------------------------------------------------------------------------------------


def scales_of(adopted: Adopted) -> dict[str, list[Scale]]:
    """For each group the tensors that say how much its units are there: the scales of batch norms, or else the filters that make them.

    A scale counts wherever the group's channels pass it; a layer's filters where it makes them.
    """
    found: dict[str, list[Scale]] = {group.name: [] for group in adopted.groups}
    filters: dict[str, list[Scale]] = {group.name: [] for group in adopted.groups}
    seen = set()
    for node in adopted.graph.nodes:
        weight, axis, is_filter = _weight_of(node)
        if weight is None or weight in seen or weight not in adopted.weights:
            continue
        seen.add(weight)
        for group in dict.fromkeys(run.group for run in adopted.weights[weight][axis] if run.group is not None):
            places = places_of(adopted.weights[weight][axis], group)
            (filters if is_filter else found)[group].append(Scale(weight, places, axis, is_filter))
    return {group: scales or filters[group] for group, scales in found.items() if scales or filters[group]}


def _weight_of(node: fx.Node) -> tuple[str | None, int, bool]:
    """The name of the weight of a layer, the axis on which the channels lie that it makes, and whether it is made of filters."""
    if node.op != "call_function" or len(node.args) < 2 or not isinstance(node.args[1], fx.Node) or node.args[1].op != "get_attr":
        return None, 0, False
    name = str(node.args[1].target)
    if node.target == aten.batch_norm.default:
        return name, 0, False
    if node.target in (*CONVOLUTIONS, aten.linear.default):
        return name, 0, True
    return (name, 1, True) if node.target in TRANSPOSED else (None, 0, False)


def places_of(axis: Axis, group: str) -> Tensor:
    """(U, P) int64: for each unit of the group, its positions on an axis."""
    start, parts = 0, []
    for run in axis:
        if run.group == group:
            at = torch.arange(start, start + run.length).reshape(run.outer, run.units, run.inner)
            parts.append(at.movedim(1, 0).reshape(run.units, -1))
        start += run.length
    return torch.cat(parts, 1)


# --- gates ----------------------------------------------------------------------------------------------------------------------------


def gated(adopted: Adopted) -> tuple[fx.GraphModule, dict[str, list[Put]]]:
    """A copy of the model with a gate at every place where it has the effect of removing a unit; and where the gates of each group are put.

    Deviation from FiGS: a unit has one gate, where the paper has one in each layer that makes it.
    """
    module = gated_module(adopted, {})
    return module, {group.name: [partial(setattr, module, GATE.format(number))] for number, group in enumerate(adopted.groups)}


# --- operators, for the roofline ------------------------------------------------------------------------------------------------------


def operators(adopted: Adopted) -> list[Operator]:
    """Multiply-adds and moved bytes of each convolution and linear layer."""
    found = []
    for node in adopted.graph.nodes:
        weight, channels, is_filter = _weight_of(node)
        if weight is None or not is_filter or node.name not in adopted.activations:
            continue
        inputs = [adopted.activations[arg.name] for arg in node.args[:1] if isinstance(arg, fx.Node) and arg.name in adopted.activations]
        output = adopted.activations[node.name]
        moved = tuple(_term(FLOAT_BYTES, axes) for axes in (output[1:], adopted.weights[weight], *(axes[1:] for axes in inputs)))
        # a filter is used once at every position: of the output, or for a transposed convolution of the input
        positions = inputs[0] if channels == 1 and inputs else output
        places = positions[1:-1] if node.target == aten.linear.default else positions[2:]
        macs = _term(1, (*places, *adopted.weights[weight]))
        found.append(Operator(Polynomial("macs", (macs,)), Polynomial("bytes", moved)))
    return found


def _term(coefficient: int, axes: Sequence[Axis]) -> Term:
    """coefficient x the number of entries of a tensor."""
    sizes = []
    for axis in axes:
        size = linear(axis)
        if all(group is None for group, _ in size):
            coefficient *= sum(factor for _, factor in size)
        else:
            sizes.append(size)
    return Term(coefficient, tuple(sizes))
