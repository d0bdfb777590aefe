"""An adopted network with a gate on every unit: with gates of 0 and 1 it computes what the cut network computes, at the full size."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from niwaki.adoption.adopted import Adopted
from niwaki.adoption.axes import AdoptionError, Axis, groups_of
from niwaki.adoption.operators import arguments, name_of

REDUCTIONS = ("mean", "var", "std", "var_mean", "std_mean", "max", "min", "amax", "amin")
GATE = "gate_{}"  # names of the gates among the buffers or parameters of a gated module, by the group's number


def gated(adopted: Adopted, values: Mapping[str, Tensor]) -> fx.GraphModule:
    """The whole network, with `values[group]` (units,) multiplied into every unit where its channels are read.

    A group that is not named has gates of one. A `nn.Parameter` is registered as a parameter `gate_<number>`, any other tensor as a buffer
    outside the state dict, so that `torch.func.functional_call` may put in gates that depend on something else. Averages over gated channels
    (layer norms, a mean) are weighted by the gates, as if a removed channel were not there. Weights are not shared with `adopted`.
    """
    module = adopted.cut({})
    graph, table = module.graph, _Table(adopted)
    nodes = {node.name: node for node in graph.nodes}
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        pieces = []
        for number, group in enumerate(adopted.groups):
            given = values.get(group.name, torch.ones(group.units))
            if given.shape != (group.units,):
                raise AdoptionError(f"gates of {group.name!r} have shape ({group.units},); given {tuple(given.shape)}")
            _register(module, GATE.format(number), given)
            pieces.append(graph.get_attr(GATE.format(number)))
        if not pieces:
            return module
        _register(module, "gate_of_fixed", torch.ones(1))
        every = graph.call_function(torch.cat, ([graph.get_attr("gate_of_fixed"), *pieces],))
    gated_values: dict[tuple[str, str], fx.Node] = {}  # by reader and value, which may have channels on several axes
    for gate in adopted.meetings:
        value = gated_values.get((gate.reader, gate.value), nodes[gate.value])
        axis = adopted.activations[gate.value][gate.axis]
        reader = nodes[gate.reader]
        with graph.inserting_before(reader):
            mask = table.mask(module, every, axis, gate.axis, len(adopted.activations[gate.value]))
            gated_values[gate.reader, gate.value] = product = graph.call_function(operator.mul, (value, mask))
            reader.replace_input_with(value, product)
    averaged = {name: nodes[name].all_input_nodes[0].name for name in adopted.averages}
    for name, dims in adopted.averages.items():
        _weigh(module, table, every, nodes[name], dims, adopted.activations[averaged[name]])
    module.recompile()
    return module


class _Table:
    """Where the gate of every position of an axis lies in (1, gates of the first group, gates of the second, ...)."""

    def __init__(self, adopted: Adopted) -> None:
        starts, at = {}, 1
        for group in adopted.groups:
            starts[group.name], at = at, at + group.units
        self.starts, self.known = starts, dict[Axis, str]()

    def mask(self, module: fx.GraphModule, every: fx.Node, axis: Axis, dim: int, rank: int) -> fx.Node:
        """Gates of an axis, shaped to be multiplied with a tensor that has it as axis `dim` of `rank`."""
        graph = module.graph
        if axis not in self.known:
            self.known[axis] = f"gate_index_{len(self.known)}"
            _register(module, self.known[axis], torch.tensor(self.index(axis)))
        gates = graph.call_function(operator.getitem, (every, graph.get_attr(self.known[axis])))
        return graph.call_method("reshape", (gates, [-1 if axis_ == dim else 1 for axis_ in range(rank)]))

    def index(self, axis: Axis) -> list[int]:
        found: list[int] = []
        for run in axis:
            if run.group is None:
                found += [0] * run.length
            else:
                found += [self.starts[run.group] + unit for unit in range(run.units) for _ in range(run.inner)] * run.outer
        return found


def _register(module: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor, persistent=False)


def _weigh(module: fx.GraphModule, table: _Table, every: fx.Node, node: fx.Node, dims: Sequence[int], axes: Sequence[Axis]) -> None:
    """An operator whose mean or variance runs over channels, with every channel weighted by its gate."""
    graph = module.graph
    value: Any = node.args[0]
    with graph.inserting_before(node):
        masks = [table.mask(module, every, axes[dim], dim, len(axes)) for dim in dims if groups_of(axes[dim])]
        mask = masks[0]
        for other in masks[1:]:
            mask = graph.call_function(operator.mul, (mask, other))
        if node.op == "call_module":
            layer: Any = module.get_submodule(str(node.target))
            held = {name: graph.get_attr(f"{node.target}.{name}") for name in ("weight", "bias") if getattr(layer, name, None) is not None}
            given = {**held, "eps": layer.eps}
            name = {nn.LayerNorm: "layer_norm", nn.RMSNorm: "rms_norm", nn.GroupNorm: "group_norm"}.get(type(layer), "batch_norm")
        else:
            given, name = arguments(node), name_of(node)
        if name in REDUCTIONS:
            correction = given.get("correction", given.get("unbiased", True))
            args = (name, value, mask, list(dims), bool(given.get("keepdim", False)), 1 if correction is None else int(correction))
            new = graph.call_function(weighted_reduction, args)
        elif name == "_weight_norm":
            new = graph.call_function(weighted_weight_norm, (value, mask, list(dims), given["g"]))
        else:
            channels = {"group_norm": [1], "batch_norm": [1]}.get(name, list(dims))
            function = weighted_rms_norm if name == "rms_norm" else weighted_norm
            new = graph.call_function(function, (value, mask, list(dims), channels, given.get("weight"), given.get("bias"), given["eps"]))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def weighted_mean(x: Tensor, mask: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    """Mean over `dims` with weights `mask`, which broadcasts against `x`."""
    found = (x * mask).sum(tuple(dims), keepdim=True) / _count(x, mask, dims).clamp_min(torch.finfo(x.dtype).tiny)
    return found if keepdim else found.squeeze(tuple(dims))


def _count(x: Tensor, mask: Tensor, dims: Sequence[int]) -> Tensor:
    """How many positions are left, as far as a gate leaves one."""
    return mask.expand([x.shape[dim] if dim in dims else 1 for dim in range(x.dim())]).sum(tuple(dims), keepdim=True)


def weighted_reduction(
    name: str, x: Tensor, mask: Tensor, dims: Sequence[int], keepdim: bool, correction: int
) -> Tensor | tuple[Tensor, Tensor | None]:
    """`mean`, `var`, `amax` and their kin over `dims`, of the positions that are left. `mask` broadcasts against `x`."""
    if name in ("max", "min", "amax", "amin"):
        lowest = float("-inf") if name.endswith("max") else float("inf")
        left = x.masked_fill(mask == 0, lowest)
        found = left.amax(tuple(dims), keepdim) if name.endswith("max") else left.amin(tuple(dims), keepdim)
        return found if name.startswith("a") else (found, None)
    mean = weighted_mean(x, mask, dims, True)
    if name == "mean":
        return mean if keepdim else mean.squeeze(tuple(dims))
    count = _count(x, mask, dims)
    spread = weighted_mean((x - mean).square(), mask, dims, True) * (count / (count - correction).clamp_min(torch.finfo(x.dtype).tiny))
    spread = spread.clamp_min(torch.finfo(x.dtype).tiny).sqrt() if name.startswith("std") else spread
    spread, mean = (each if keepdim else each.squeeze(tuple(dims)) for each in (spread, mean))
    return (spread, mean) if name.endswith("mean") else spread


def weighted_weight_norm(v: Tensor, mask: Tensor, dims: Sequence[int], g: Tensor) -> Tensor:
    """Weight norm whose lengths count a position as much as its gate."""
    return g * v / (v.square() * mask).sum(tuple(dims), keepdim=True).sqrt()


def weighted_norm(
    x: Tensor, mask: Tensor, dims: Sequence[int], channels: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Layer norm (also a group norm of one group, and a batch norm of the batch): mean and variance over `dims` count a position as much as its gate.

    `weight` and `bias` lie along the axes `channels`.
    """
    mean = weighted_mean(x, mask, dims, True)
    variance = weighted_mean((x - mean).square(), mask, dims, True)
    return _affine((x - mean) * torch.rsqrt(variance + eps), channels, weight, bias)


def weighted_rms_norm(
    x: Tensor, mask: Tensor, dims: Sequence[int], channels: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float | None
) -> Tensor:
    """RMS norm whose mean square counts a channel as much as its gate."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(x * torch.rsqrt(weighted_mean(x.square(), mask, dims, True) + eps), channels, weight, bias)


def _affine(x: Tensor, channels: Sequence[int], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = [size if dim in channels else 1 for dim, size in enumerate(x.shape)]
    if weight is not None:
        x = x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def gates_of(adopted: Adopted, keep: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Gates of one for the units that stay, of zero for those that go."""
    found = {}
    for group in adopted.groups:
        gate = torch.ones(group.units)
        if group.name in keep:
            gate = torch.zeros(group.units)
            gate[list(keep[group.name])] = 1.0
        found[group.name] = gate
    return found
