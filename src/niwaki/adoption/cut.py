"""Adopted networks with fewer channels, as plain PyTorch: the owner's layers at the owner's paths, with the weights that are left."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki.adoption.axes import Axis, Size, alive_length, length, positions
from niwaki.adoption.flat import first_names, layer_of
from niwaki.adoption.layers import DROPOUTS, LAYERS, PLAIN
from niwaki.adoption.operators import arguments, aten, name_of, overload

Keep = Mapping[str, Sequence[int]]  # the units of each group that stay, smallest first
WEIGHT_NAMES = ("weight", "bias", "running_mean", "running_var")


def weights_left(owner: nn.Module, axes: Mapping[str, tuple[Axis, ...]], keep: Keep) -> dict[str, Tensor]:
    """The owner's parameters and buffers, by their first names, without what belongs to removed units. Frozen parameters stay frozen."""
    first = first_names(owner)
    tensors = {**dict(owner.named_parameters()), **dict(owner.named_buffers())}
    alive = {group: len(units) for group, units in keep.items()}
    left = {}
    for name, tensor in tensors.items():
        data = tensor.detach()
        for dim, axis in enumerate(axes.get(first[name], ())):
            if alive_length(axis, alive) < length(axis):
                data = data.index_select(dim, torch.tensor(positions(axis, keep), dtype=torch.long))
        data = data.clone(memory_format=torch.contiguous_format)
        left[name] = nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
    return left


def evaluated_always(owner: nn.Module) -> list[str]:
    """Paths of the batch norms that stay in evaluation when the owner's model is told to train: frozen by a `train` of its own, as in detectors."""
    if all(getattr(module.train, "__func__", None) is nn.Module.train for module in owner.modules()):
        return []
    trained = copy.deepcopy(owner).train()
    return [
        path for path, module in trained.named_modules(remove_duplicate=False) if isinstance(module, _BatchNorm) and not module.training
    ]


def plain_module(
    graph: fx.Graph, owner: nn.Module, axes: Mapping[str, tuple[Axis, ...]], sizes: Mapping[str, Mapping[str, Any]], keep: Keep
) -> fx.GraphModule:
    """The network with only the units `keep`: a module of its own, in evaluation mode."""
    weights = weights_left(owner, axes, keep)
    alive = {group: len(units) for group, units in keep.items()}
    copied, layers = _Copier(owner, weights, {name: resolved(given, alive) for name, given in sizes.items()}).copy(graph)
    module = fx.GraphModule(nn.Module(), fx.Graph(), class_name=type(owner).__name__)
    _fill(module, owner, "", weights, layers, first_names(owner), {})
    for path, layer in layers.items():
        _attach(module, path, layer)
    module.graph = copied
    _copy_whole_(module)
    return module.eval()


def _copy_whole_(module: fx.GraphModule) -> None:
    own_class: Any = type(module)  # fx gives every graph module one
    own_class.__deepcopy__ = _copied_whole


def _copied_whole(module: fx.GraphModule, memo: dict[int, Any]) -> fx.GraphModule:
    """A deep copy that has what the graph does not read, too, and whose buffers outside the state dict stay there: fx forgets both."""
    new = fx.GraphModule.__deepcopy__(module, memo)
    _restore(module, new, memo)
    _copy_whole_(new)
    return new


def _restore(old: nn.Module, new: nn.Module, memo: dict[int, Any]) -> None:
    for name, tensor in [*old._parameters.items(), *old._buffers.items()]:
        if tensor is not None and not hasattr(new, name):
            _put(new, name, copy.deepcopy(tensor, memo))
    new._non_persistent_buffers_set = set(old._non_persistent_buffers_set)
    new._parameters = {name: new._parameters[name] for name in [*old._parameters, *new._parameters] if name in new._parameters}
    new._buffers = {name: new._buffers[name] for name in [*old._buffers, *new._buffers] if name in new._buffers}
    for name, child in old._modules.items():
        if child is not None and new._modules.get(name) is None:
            new.add_module(name, copy.deepcopy(child, memo))
        elif child is not None:
            _restore(child, new.get_submodule(name), memo)
    new._modules = {name: new._modules[name] for name in [*old._modules, *new._modules] if name in new._modules}


def resolved(value: Any, alive: Mapping[str, int]) -> Any:
    """Arguments with every `Size` as the number that it is when `alive` units are left."""
    if isinstance(value, Size):
        return alive_length(value.axis, alive)
    if isinstance(value, Mapping):
        return {key: resolved(each, alive) for key, each in value.items()}
    return [resolved(each, alive) for each in value] if isinstance(value, list | tuple) else value


class _Copier:
    """Copies a graph of aten operators; those that are layers become calls of layers."""

    def __init__(self, owner: nn.Module, weights: Mapping[str, Tensor], sizes: Mapping[str, Mapping[str, Any]]) -> None:
        self.owner, self.weights, self.sizes = owner, weights, sizes
        self.modules = dict(owner.named_modules(remove_duplicate=False))
        self.names = first_names(owner)
        self.holders: dict[tuple[str, str], list[str]] = {}  # by first name, and name in the module: paths of the modules
        for name, weight in self.names.items():
            path, _, key = name.rpartition(".")
            self.holders.setdefault((weight, key), []).append(path)
        self.evaluated = set(evaluated_always(owner))
        self.layers: dict[str, nn.Module] = {}
        self.graph = fx.Graph()
        self.nodes: dict[fx.Node, fx.Node] = {}
        self.device: fx.Node | None = None
        self.recurrent: dict[Any, int] = {}  # calls of recurrent layers, and how many states they give

    def copy(self, graph: fx.Graph) -> tuple[fx.Graph, dict[str, nn.Module]]:
        for node in graph.nodes:
            if node.op == "get_attr":
                continue  # written where it is first read
            if node.op == "call_function":
                self.nodes[node] = self._call(node)
            elif node.op == "output":
                self.graph.output(self._new(node.args[0]))
            else:
                self.nodes[node] = self.graph.node_copy(node, self._new_node)
        return self.graph, self.layers

    def _new_node(self, node: fx.Node) -> fx.Node:
        if node not in self.nodes:
            assert node.op == "get_attr", node
            self.nodes[node] = self.graph.create_node("get_attr", str(node.target), name=node.name)
        return self.nodes[node]

    def _new(self, value: Any) -> Any:
        return fx.node.map_arg(value, self._new_node)

    def _call(self, node: fx.Node) -> fx.Node:
        if node.target is operator.getitem and node.args[0] in self.recurrent and node.args[1]:
            states = self.graph.call_function(operator.getitem, (self._new(node.args[0]), 1))
            if self.recurrent[node.args[0]] > 1:
                which: Any = node.args[1]
                states = self.graph.call_function(operator.getitem, (states, which - 1))
            return states
        if overload(node) is None:
            return self.graph.create_node("call_function", node.target, self._new(node.args), self._new(node.kwargs), name=node.name)
        given = arguments(node)
        if name_of(node) in RECURRENT and (recurrent := self._recurrent(node, given)) is not None:
            return recurrent
        sizes = dict(self.sizes.get(node.name, {}))
        if name_of(node) == "batch_norm" and layer_of(node) in self.evaluated:
            return self._frozen_norm(node, given)
        called = self._layer(node, {**given, **sizes})
        if called is not None:
            path, inputs = called
            return self.graph.create_node("call_module", path, tuple(map(self._new_node, inputs)), name=node.name)
        if "split_sizes" in sizes:
            args = (self._new(given["self"]), sizes["split_sizes"], given["dim"])
            return self.graph.create_node("call_function", aten.split_with_sizes.default, args, name=node.name)
        given_args: list[Any] = list(node.args)
        kwargs: dict[str, Any] = dict(node.kwargs)
        for number, argument in enumerate(overload(node)._schema.arguments):
            if argument.name in sizes:
                if number < len(given_args):
                    given_args[number] = sizes[argument.name]
                else:
                    kwargs[argument.name] = sizes[argument.name]
        new_args, new_kwargs = self._new(tuple(given_args)), self._new(kwargs)
        if isinstance(kwargs.get("device"), torch.device):
            new_kwargs = {**new_kwargs, "device": self._device(node)}
        return self.graph.create_node("call_function", node.target, new_args, new_kwargs, name=node.name)

    def _device(self, node: fx.Node) -> Any:
        """Where the first input is: numbers that the model makes up follow it to a GPU."""
        if self.device is None:
            tensors = [old for old in node.graph.nodes if old.op == "placeholder" and isinstance(old.meta.get("val"), Tensor)]
            if not tensors:
                return node.kwargs["device"]
            first = self.nodes[tensors[0]]
            with self.graph.inserting_after(list(self.graph.find_nodes(op="placeholder"))[-1]):
                self.device = self.graph.call_function(getattr, (first, "device"))
        return self.device

    def _layer(self, node: fx.Node, given: Mapping[str, Any]) -> tuple[str, list[fx.Node]] | None:
        """Path of the layer that does what a node does, made on the way, and what it is called on."""
        name, inputs = name_of(node), list(node.all_input_nodes)
        data = [value for value in inputs if value.op != "get_attr"]
        if name in DROPOUT_OPERATORS:
            return self._dropout(node, given), data
        tensors = {key: self.weights[str(given[key].target)] for key in WEIGHT_NAMES if _is_weight(given.get(key))}
        for path in self._owners_of_weights(node, given) if len(data) == 1 else ():
            owner = self.modules[path]
            if isinstance(owner, _BatchNorm) and not f"{layer_of(node)}.".startswith(f"{path}."):
                continue  # its tensors given to a function, which does not follow the layer's mode
            layer = next((make(name, owner, given, tensors) for kind, make in LAYERS if isinstance(owner, kind)), None)
            if layer is None or repr(self.layers.setdefault(path, layer)) != repr(layer):
                continue  # another kind of layer, or one whose owner calls the weights with other settings elsewhere
            for key, tensor in tensors.items():
                _put(self.layers[path], key, tensor)
            return path, data
        path = layer_of(node)
        if path and len(inputs) == 1 and name in PLAIN.get(type(self.modules.get(path)), "").split():
            self.layers.setdefault(path, _not_in_place(self.modules[path]))
            return path, inputs
        return None

    def _frozen_norm(self, node: fx.Node, given: Mapping[str, Any]) -> fx.Node:
        args = [self._new(given[key]) for key in ("input", "running_mean", "running_var", "weight", "bias")]
        return self.graph.create_node(
            "call_function", nn.functional.batch_norm, (*args, False, given["momentum"], given["eps"]), name=node.name
        )

    def _recurrent(self, node: fx.Node, given: Mapping[str, Any]) -> fx.Node | None:
        """A recurrent layer is called as its owner's, so that its dropout follows the mode and a GPU gets its fused kernel."""
        path, state = layer_of(node), given.get("hx")
        layer: Any = self.modules.get(path)
        if not isinstance(layer, nn.RNNBase) or state is None or "params" not in given or not all(map(_is_weight, given["params"])):
            return None
        names = [name for group in layer.all_weights for name in _names_of(layer, group)]
        if [self.names[f"{path}.{name}"] for name in names] != [str(weight.target) for weight in given["params"]]:
            return None
        if path not in self.layers:
            self.layers[path] = copy.deepcopy(layer)
            for name in names:
                setattr(self.layers[path], name, self.weights[self.names[f"{path}.{name}"]])
        states = tuple(state) if isinstance(state, list | tuple) else state
        self.recurrent[node] = len(states) if isinstance(states, tuple) else 1
        return self.graph.create_node("call_module", path, self._new((given["input"], states)), name=node.name)

    def _owners_of_weights(self, node: fx.Node, given: Mapping[str, Any]) -> list[str]:
        """Modules that hold exactly the weights a node reads; the one that made the node comes first."""
        read = {key: given[key] for key in WEIGHT_NAMES if given.get(key) is not None}
        if not read or not all(map(_is_weight, read.values())):
            return []
        key, tensor = next(iter(read.items()))
        found = []
        for path in filter(None, self.holders.get((str(tensor.target), key), ())):
            held = {key: self.names[f"{path}.{key}"] for key in _held(self.modules[path])}
            if held == {key: each.target for key, each in read.items()} and not _holds_more(self.modules[path]):
                found.append(path)
        return sorted(found, key=lambda path: path != layer_of(node))

    def _dropout(self, node: fx.Node, given: Mapping[str, Any]) -> str:
        path = layer_of(node)
        if isinstance(self.modules.get(path), DROPOUTS):
            layer = _not_in_place(self.modules[path])
        else:
            path = next(free for free in _numbered(f"{path}.dropout".lstrip(".")) if free not in self.layers and free not in self.modules)
            layer = nn.Dropout(given["p"])
        self.layers.setdefault(path, layer)
        return path


def _names_of(module: nn.Module, tensors: Sequence[Tensor]) -> list[str]:
    by_id = {id(tensor): name for name, tensor in module.named_parameters(remove_duplicate=False)}
    return [by_id[id(tensor)] for tensor in tensors]


def _not_in_place(layer: Any) -> nn.Module:
    """A copy that writes to memory of its own: the graph says who reads what, and knows nothing of values that change later."""
    layer = copy.deepcopy(layer)
    if "inplace" in vars(layer):
        layer.inplace = False
    return layer


def _is_weight(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.op == "get_attr"


RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
DROPOUT_OPERATORS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")


def _numbered(name: str) -> Any:
    yield name
    number = 1
    while True:
        yield f"{name}_{number}"
        number += 1


def _holds_more(module: nn.Module) -> bool:
    """Whether its children hold weights, as parametrizations do; an activation inside a layer holds none."""
    return any(True for child in module.children() for _ in (*child.parameters(), *child.buffers()))


def _held(module: nn.Module) -> list[str]:
    """Names of a module's own parameters and buffers, the count of batches aside."""
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return [name for name, _ in own if name != "num_batches_tracked"]


def _put(module: nn.Module, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
    if isinstance(tensor, nn.Parameter):
        setattr(module, name, tensor) if name in module._parameters else module.register_parameter(name, tensor)
    else:
        module._buffers.pop(name, None)
        module.register_buffer(name, tensor, persistent=persistent)


def _fill(
    into: nn.Module,
    owner: nn.Module,
    path: str,
    weights: Mapping[str, Tensor],
    layers: Mapping[str, nn.Module],
    first: Mapping[str, str],
    made: dict[int, nn.Module],
) -> None:
    """Everything that the owner's module holds, in the owner's order and under the owner's names; what is shared stays shared."""
    prefix = f"{path}." if path else ""
    for name in owner._parameters:
        if owner._parameters[name] is not None:
            _put(into, name, weights[first[prefix + name]])
    for name, buffer in owner._buffers.items():
        if buffer is not None:
            _put(into, name, weights[first[prefix + name]], persistent=name not in owner._non_persistent_buffers_set)
    for name, child in owner._modules.items():
        if isinstance(child, fx.GraphModule):
            into.add_module(name, copy.deepcopy(child))  # the body of a higher-order operator
            continue
        if child is None or not (child.state_dict() or any(True for _ in child.buffers()) or prefix + name in layers):
            continue
        if id(child) not in made:
            made[id(child)] = layers.get(prefix + name, nn.Module())
            _fill(made[id(child)], child, prefix + name, weights, layers, first, made)
        into.add_module(name, made[id(child)])


def _attach(module: nn.Module, path: str, layer: nn.Module) -> None:
    """Layers that the owner has no module for, such as a dropout that is a function there."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in module._modules:
            module.add_module(parent, nn.Module())
        module = module.get_submodule(parent)
    if name not in module._modules:
        module.add_module(name, layer)
