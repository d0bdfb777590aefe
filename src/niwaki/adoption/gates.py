"""An adopted network with a gate on every unit: with gates of 0 and 1 it computes what the cut network computes, at the full size."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from niwaki.adoption.adopted import Adopted
from niwaki.adoption.axes import AdoptionError, Axis, alive_length, groups_of, length
from niwaki.adoption.capture import name_of, overload

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
    for gate in adopted.meetings:
        value = nodes[gate.value]
        axis = adopted.activations[gate.value][gate.axis]
        reader = nodes[gate.reader]
        with graph.inserting_before(reader):
            mask = table.mask(module, every, axis, gate.axis, len(adopted.activations[gate.value]))
            reader.replace_input_with(value, graph.call_function(operator.mul, (value, mask)))
    for name, dims in adopted.averages.items():
        _weigh(adopted, module, table, every, nodes[name], dims)
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
        """Gates of an axis, shaped to be multiplied with a tensor that has it as axis `dim` of `rank`. Where batch and heads share an axis, it follows."""
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


def _weigh(adopted: Adopted, module: fx.GraphModule, table: _Table, every: fx.Node, node: fx.Node, dims: Sequence[int]) -> None:
    """An operator whose mean or variance runs over channels, with every channel weighted by its gate."""
    graph = module.graph
    value = node.args[0]
    assert isinstance(value, fx.Node)
    axes = adopted.activations[value.name]
    with graph.inserting_before(node):
        masks = [table.mask(module, every, axes[dim], dim, len(axes)) for dim in dims if groups_of(axes[dim])]
        mask = masks[0]
        for other in masks[1:]:
            mask = graph.call_function(operator.mul, (mask, other))
        whole = 1
        for dim in dims:
            if not groups_of(axes[dim]):
                whole *= length(axes[dim])
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            kinds = {nn.LayerNorm: weighted_layer_norm, nn.RMSNorm: weighted_rms_norm, nn.GroupNorm: weighted_layer_norm}
            parameters = [
                graph.get_attr(f"{node.target}.{name}") if getattr(layer, name, None) is not None else None for name in ("weight", "bias")
            ]
            eps = getattr(layer, "eps", None)
            new = graph.call_function(kinds[type(layer)], (value, mask, list(dims), *parameters, eps))
        elif name_of(node) == "mean":
            new = graph.call_function(
                weighted_mean, (value, mask, list(dims), node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False))
            )
        else:
            name = name_of(node)
            given = {argument.name: each for argument, each in zip(overload(node)._schema.arguments, node.args, strict=False)} | dict(
                node.kwargs
            )
            function = weighted_rms_norm if name == "rms_norm" else weighted_layer_norm
            new = graph.call_function(function, (value, mask, list(dims), given.get("weight"), given.get("bias"), given.get("eps", 1e-5)))
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def weighted_mean(x: Tensor, mask: Tensor, dims: Sequence[int], keepdim: bool = False) -> Tensor:
    """Mean over `dims` with weights `mask`, which broadcasts against `x`."""
    share = mask.expand([x.shape[dim] if dim in dims else 1 for dim in range(x.dim())]).sum(tuple(dims), keepdim=True)
    found = (x * mask).sum(tuple(dims), keepdim=True) / share.clamp_min(torch.finfo(x.dtype).tiny)
    return found if keepdim else found.squeeze(tuple(dims))


def weighted_layer_norm(x: Tensor, mask: Tensor, dims: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Layer norm (or a group norm of one group) whose mean and variance count a channel as much as its gate."""
    mean = weighted_mean(x, mask, dims, True)
    variance = weighted_mean((x - mean).square(), mask, dims, True)
    return _affine((x - mean) * torch.rsqrt(variance + eps), dims, weight, bias)


def weighted_rms_norm(
    x: Tensor, mask: Tensor, dims: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float | None
) -> Tensor:
    """RMS norm whose mean square counts a channel as much as its gate."""
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _affine(x * torch.rsqrt(weighted_mean(x.square(), mask, dims, True) + eps), dims, weight, bias)


def _affine(x: Tensor, dims: Sequence[int], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = [size if dim in dims else 1 for dim, size in enumerate(x.shape)]
    if weight is not None:
        x = x * _along(weight, shape, dims)
    return x if bias is None else x + _along(bias, shape, dims)


def _along(weight: Tensor, shape: Sequence[int], dims: Sequence[int]) -> Tensor:
    """A norm's weight: over all of `dims` for a layer norm, over the first of them, the channels, for a group norm."""
    if weight.numel() == shape[dims[0]] and weight.dim() == 1 and dims[-1] != dims[0]:
        return weight.reshape([size if dim == dims[0] else 1 for dim, size in enumerate(shape)])
    return weight.reshape(shape)


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


def alive_units(adopted: Adopted, node: str, axis: int, alive: Mapping[str, int]) -> int:
    """Positions left on an axis of what a node gives."""
    return alive_length(adopted.activations[node][axis], alive)
