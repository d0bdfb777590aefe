"""build(network, architecture): the plain PyTorch module, a `torch.fx.GraphModule` of torch.nn layers with no niwaki class inside."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

import torch
from torch import fx, nn

from niwaki.net.control import Network
from niwaki.net.layer import (
    Activation,
    BatchNorm,
    Cat,
    ChannelShuffle,
    Conv,
    Dropout,
    Embed,
    Flatten,
    GlobalPool,
    Interleave,
    Layer,
    Linear,
    Opaque,
    Pick,
    Pool,
    SqueezeExcite,
    Subsample,
    Sum,
    Zero,
)
from niwaki.net.operation import RETURN, UNUSED, In, Items, Named, Operation, Weight
from niwaki.net.place import INPUT, Placed, Placement, fix, place, space_of
from niwaki.nn.operate import Form, constant, form_of, hold_, shape_of, started, written
from niwaki.space.choice import SpaceError

ACTIVATION_MODULES: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "hswish": nn.Hardswish,
    "swish": nn.SiLU,
    "hsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}


def build(network: Network, arch: Mapping[str, Any] | None = None, *, seed: int = 0) -> fx.GraphModule:
    """The plain module of one architecture, freshly initialised from `seed`: (B, *input_shape) to (B, classes).

    arch: option by decision name; None for a network without choices. Modules are named by path (`stage1_block0_dw`), in order of execution;
    the tensors of an adopted model have its owner's names.
    """
    if arch is None:
        arch = space_of(network).architecture({})
    placement = fix(place(network), arch)
    if placement.decisions:
        raise SpaceError(f"the architecture does not decide {', '.join(decision.name for decision in placement.decisions)}")
    root, graph = nn.Module(), fx.Graph()
    tensors = {INPUT - at: graph.placeholder(one.name) for at, one in enumerate(placement.reads)}
    own = Own(root, place(network))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for at, item in enumerate(placement.items):
            tensors[at] = connect(
                item.layer, item, Wires(root, graph, module_name(item.path), own), [tensors[source] for source in item.inputs]
            )
    graph.output(tensors[placement.output])
    module = fx.GraphModule(root, graph, class_name="Net")
    own.give_(module)
    return module


def module_name(path: str) -> str:
    """The attribute under which the module of `path` is kept, in built modules and supernets alike."""
    return path.replace(".", "_")


def nearest_rows(size: int, of: int) -> torch.Tensor:
    """Rows that a nearest-neighbour subsampling of `of` rows to `size` reads: floor(i of / size); (size,) int64."""
    return torch.arange(size) * of // size


def scattered_rows(size: int, to: int) -> torch.Tensor:
    """For each of `to` rows, the row among `size` that `Interleave` puts there, or `size`, a row of zeros; (to,) int64."""
    rows = torch.full((to,), size)
    rows[nearest_rows(size, to)] = torch.arange(size)
    return rows


def look_up_vectors(rows: tuple[int, ...], features: tuple[int, ...], first: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How `Embed` looks up its features: for each the column to read, its first row in the table of all, and the largest code; (F,) each."""
    sizes = torch.tensor([rows[column] for column in features])
    return torch.tensor(features) + first, sizes.cumsum(0) - sizes, (sizes - 1).float()


@singledispatch
def module_of(layer: Layer, item: Placed) -> nn.Module:
    """The freshly initialised torch.nn module of a primitive whose sizes are numbers (for primitives that are one module)."""
    raise TypeError(f"build() has no rule for {type(layer).__name__}; it belongs in this file")


@module_of.register
def _(layer: Conv, item: Placed) -> nn.Module:
    padding = layer.dilation * (layer.kernel_size - 1) // 2 if layer.padding is None else layer.padding
    conv = nn.Conv2d(
        item.input_shapes[0].width,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        padding,
        layer.dilation,
        layer.groups,
        bias=layer.bias,
    )
    # He et al. 2015 with fan-out counted per group: MobileNetV2's and FBNet's initialisation
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    conv.weight.data.mul_(layer.groups**0.5)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


@module_of.register
def _(layer: Linear, item: Placed) -> nn.Module:
    linear = nn.Linear(item.input_shapes[0].width, layer.out_features, bias=layer.bias)
    nn.init.normal_(linear.weight, std=0.01 if layer.init == "small" else (2 / linear.in_features) ** 0.5)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


@module_of.register
def _(layer: Embed, item: Placed) -> nn.Module:
    """The tables of all features, one below the other."""
    sizes = [layer.rows[column] for column in layer.features(layer.width)]
    table = nn.Embedding(sum(sizes), 1)
    if layer.between:  # a rising line, and a little of everything else
        rising = [torch.linspace(-1.5, 1.5, size) if size > 1 else torch.zeros(1) for size in sizes]
        with torch.no_grad():
            table.weight.mul_(0.3).add_(torch.cat(rising)[:, None])
    return table


@module_of.register
def _(layer: BatchNorm, item: Placed) -> nn.Module:
    kind = nn.BatchNorm2d if item.shape.spatial else nn.BatchNorm1d
    return kind(item.shape.width, eps=layer.eps, momentum=layer.momentum)


@module_of.register
def _(layer: Activation, item: Placed) -> nn.Module:
    return ACTIVATION_MODULES[layer.kind]()


@module_of.register
def _(layer: Pool, item: Placed) -> nn.Module:
    if layer.kind == "max":
        return nn.MaxPool2d(layer.kernel_size, layer.stride, layer.padding)
    return nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, count_include_pad=False)


@module_of.register
def _(layer: GlobalPool, item: Placed) -> nn.Module:
    return nn.AdaptiveAvgPool2d(1)


@module_of.register
def _(layer: Flatten, item: Placed) -> nn.Module:
    return nn.Flatten(1)


@module_of.register
def _(layer: ChannelShuffle, item: Placed) -> nn.Module:
    return nn.ChannelShuffle(layer.groups)


@module_of.register
def _(layer: Dropout, item: Placed) -> nn.Module:
    return nn.Dropout(layer.p)


@module_of.register
def _(layer: Opaque, item: Placed) -> nn.Module:
    if layer.make is None:
        raise SpaceError(
            f"{item.path}: the opaque layer {layer.factory} was loaded without its factory; pass factories={{{layer.factory!r}: ...}} to from_json"
        )
    module = layer.make(**dict(layer.kwargs))
    if not isinstance(module, nn.Module):
        raise SpaceError(f"{item.path}: the factory {layer.factory} gave a {type(module).__name__}, not a torch.nn.Module")
    return module


@module_of.register
def _(layer: SqueezeExcite, item: Placed) -> nn.Module:
    """The two convolutions; in a built module they stand apart, in a supernet together."""
    width = item.shape.width
    convs = {"reduce": nn.Conv2d(width, layer.hidden, 1), "expand": nn.Conv2d(layer.hidden, width, 1)}
    for conv in convs.values():
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    return nn.ModuleDict(convs)


class Own:
    """The tensors of an adopted model in a module under construction, by its owner's names."""

    def __init__(self, root: nn.Module, placement: Placement) -> None:
        weights = [weight for item in placement.items if isinstance(item.layer, Operation) for weight in item.layer.weights]
        self.root = root
        self.full = {weight.key: weight for weight in reversed(weights)}
        self.names = {name for weight in weights for name in weight.names}
        self.made: dict[str, torch.Tensor] = {}  # by key
        self.forms: dict[str, Form] = {}  # by where the layer is

    def tensor(self, weight: Weight) -> str:
        """The name of `weight`, which is made if it is not there yet."""
        if weight.key not in self.made:
            self.put(weight.name, weight, started(weight, self.full[weight.key]))
        return weight.name if self.has(weight.name) else next(name for name in weight.names if self.has(name))

    def put(self, name: str, weight: Weight, tensor: torch.Tensor) -> None:
        self.made[weight.key] = tensor
        hold_(self.root, name, tensor, weight.kind)

    def has(self, name: str) -> bool:
        parent, _, last = name.rpartition(".")
        try:
            module = self.root.get_submodule(parent)
        except AttributeError:
            return False
        return last in module._parameters or last in module._buffers

    def layer(self, form: Form) -> bool:
        """Makes the layer of torch.nn, if the owner has nothing else at its place; whether it is there now."""
        known = self.forms.get(form.prefix)
        if known is not None:
            same = repr(known.make()) == repr(form.make())
            return same and {key: w.key for key, w in known.weights.items()} == {key: w.key for key, w in form.weights.items()}
        inside = {name for name in self.names if name.startswith(f"{form.prefix}.")}
        if inside != {f"{form.prefix}.{key}" for key in form.weights} or any(map(self.has, inside)):
            return False
        module = form.make()
        tensors = dict(module.named_parameters()) | dict(module.named_buffers())
        if any(tuple(tensors[key].shape) != shape_of(weight.axes) for key, weight in form.weights.items()):
            return False
        *parents, last = form.prefix.split(".")
        root = self.root
        for parent in parents:
            if parent not in root._modules:
                root.add_module(parent, nn.Module())
            root = root._modules[parent]  # type: ignore[assignment]
        root.add_module(last, module)
        for key, weight in form.weights.items():
            tensor = self.made.get(weight.key, tensors[key])
            if tensor is tensors[key]:
                tensor.data = tensor.data.to(getattr(torch, weight.dtype))
                tensor.requires_grad_(weight.kind == "parameter")
            else:
                setattr(module, key, tensor)
            self.made[weight.key] = tensor
        self.forms[form.prefix] = form
        return True

    def give_(self, module: nn.Module) -> None:
        """Gives `module` every tensor under all of its names: those that the graph does not read, too, and constants outside the state dict."""
        for weight in self.full.values():
            for name in weight.names:
                if weight.key in self.made:
                    hold_(module, name, self.made[weight.key], weight.kind)


class Wires:
    """Where one primitive adds its modules and operations to the graph under construction."""

    def __init__(self, root: nn.Module, graph: fx.Graph, name: str, own: Own) -> None:
        self.root, self.graph, self.name, self.own = root, graph, name, own

    def module(self, module: nn.Module, x: fx.Node, suffix: str = "") -> fx.Node:
        name = self.name + (f"_{suffix}" if suffix else "")
        self.root.add_module(name, module)
        return self.graph.call_module(name, (x,))

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        return self.graph.create_node("call_function", function, args, name=self.name)  # a forward that reads like the network

    def filled(self, value: Any, inputs: list[fx.Node]) -> Any:
        """An argument of an operation: tensors as nodes, tuples as lists."""
        if isinstance(value, In):
            return inputs[value.at]
        if isinstance(value, Weight):
            return self.attribute(self.own.tensor(value))
        if isinstance(value, tuple):
            return [self.filled(part, inputs) for part in value]
        if isinstance(value, Items):
            return dict(zip(value.keys, (self.filled(part, inputs) for part in value.values), strict=True))
        if isinstance(value, Named) and value.name == "device":
            return self.graph.call_function(getattr, (next(iter(self.graph.nodes)), "device"))
        if isinstance(value, Named):
            return self.attribute("training") if value.name == "training" else constant(value)
        return value

    def attribute(self, name: str) -> fx.Node:
        return self.graph.create_node("get_attr", name, (), {})

    def long(self, x: fx.Node) -> fx.Node:
        return self.graph.call_method("long", (x,))

    def index(self, rows: torch.Tensor, suffix: str) -> fx.Node:
        name = f"{self.name}_{suffix}"
        self.root.register_buffer(name, rows)
        return self.graph.get_attr(name)


@singledispatch
def connect(layer: Layer, item: Placed, wires: Wires, inputs: list[fx.Node]) -> fx.Node:
    """The node that computes `item`; one module, unless a rule below says otherwise."""
    return wires.module(module_of(layer, item), inputs[0])


@connect.register
def _(layer: Pick, item: Placed, wires: Wires, inputs: list[fx.Node]) -> fx.Node:
    return wires.call(operator.getitem, inputs[0], (slice(None), slice(layer.first, layer.first + layer.count)))


@connect.register
def _(layer: Embed, item: Placed, wires: Wires, inputs: list[fx.Node]) -> fx.Node:
    columns, starts, last = look_up_vectors(layer.rows, layer.features(layer.width), layer.first)
    table = module_of(layer, item)
    codes = wires.call(torch.index_select, inputs[0], 1, wires.index(columns, "columns"))
    codes = wires.call(torch.minimum, wires.call(torch.clamp, codes, 0), wires.index(last, "last"))
    start = wires.index(starts, "starts")
    if not layer.between:
        rows = wires.call(operator.add, wires.long(codes), start)
        return wires.call(torch.flatten, wires.module(table, rows), 1)
    below = wires.call(torch.floor, codes)
    low = wires.module(table, wires.call(operator.add, wires.long(below), start))
    rows = wires.call(operator.add, wires.long(wires.call(torch.ceil, codes)), start)
    high = wires.graph.call_module(wires.name, (rows,))
    ends = [wires.call(torch.flatten, end, 1) for end in (low, high)]
    share = wires.call(operator.sub, codes, below)
    return wires.call(torch.lerp, *ends, share)


@connect.register
def _(layer: SqueezeExcite, item: Placed, wires: Wires, inputs: list[fx.Node]) -> fx.Node:
    pair = module_of(layer, item)
    x = wires.module(nn.AdaptiveAvgPool2d(1), inputs[0], "pool")
    x = wires.module(pair["reduce"], x, "reduce")  # type: ignore[index]
    x = wires.module(ACTIVATION_MODULES[layer.activation](), x, "act")
    x = wires.module(pair["expand"], x, "expand")  # type: ignore[index]
    x = wires.module(ACTIVATION_MODULES[layer.gate](), x, "gate")
    return wires.call(operator.mul, inputs[0], x)


@connect.register
def _(layer: Subsample, item: Placed, wires: Wires, inputs: list[fx.Node]) -> fx.Node:
    (height, width), (rows, columns) = item.input_shapes[0].spatial, item.shape.spatial
    x = wires.call(torch.index_select, inputs[0], 2, wires.index(nearest_rows(rows, height), "rows"))
    return wires.call(torch.index_select, x, 3, wires.index(nearest_rows(columns, width), "columns"))


@connect.register
def _(layer: Interleave, item: Placed, wires: Wires, inputs: list[fx.Node]) -> fx.Node:
    (height, width), (rows, columns) = item.input_shapes[0].spatial, item.shape.spatial
    x = wires.call(torch.nn.functional.pad, inputs[0], (0, 1, 0, 1))  # a row and a column of zeros, for the positions between
    x = wires.call(torch.index_select, x, 2, wires.index(scattered_rows(height, rows), "rows"))
    return wires.call(torch.index_select, x, 3, wires.index(scattered_rows(width, columns), "columns"))


@connect.register
def _(layer: Zero, item: Placed, wires: Wires, inputs: list[fx.Node]) -> fx.Node:
    return wires.call(torch.zeros_like, inputs[0])


@connect.register
def _(layer: Sum, item: Placed, wires: Wires, inputs: list[fx.Node]) -> fx.Node:
    total = inputs[0]
    for other in inputs[1:]:
        total = wires.call(operator.add, total, other)
    return total


@connect.register
def _(layer: Operation, item: Placed, wires: Wires, inputs: list[fx.Node]) -> fx.Node:
    """The layer of torch.nn where it has one with the owner's names, else a function."""
    if layer.target == RETURN:
        return _tuples(wires.filled(layer.arguments[0], inputs))
    if layer.target == UNUSED:
        for weight in layer.weights:
            wires.own.tensor(weight)
        return inputs[0]
    if layer.kind in ("dropout", "feature_dropout"):
        wires.name += "_" if hasattr(wires.root, wires.name) else ""
        return wires.module((nn.Dropout if layer.kind == "dropout" else nn.Dropout2d)(layer.arguments[1]), inputs[0])
    form = form_of(layer, item)
    if form is not None and wires.own.layer(form):
        return wires.graph.create_node("call_module", form.prefix, (wires.filled(form.reads, inputs),), {}, name=wires.name)
    args = [wires.filled(value, inputs) for value in layer.arguments]
    if layer.kind == "batch_norm":
        x, weight, bias, mean, var, _, momentum, eps, *_ = args
        training = True if mean is None else False if ("frozen", True) in layer.keywords else wires.attribute("training")
        return wires.call(nn.functional.batch_norm, x, mean, var, weight, bias, training, momentum, eps)
    if layer.target in METHODS:
        return wires.graph.create_node("call_method", METHODS[layer.target], _spread(args), {}, name=wires.name)
    function, given, options = written(layer, args, {key: wires.filled(value, inputs) for key, value in layer.keywords})
    return wires.graph.create_node("call_function", function, given, options, name=wires.name)


# targets that people write as methods
METHODS: Mapping[str, str] = {"aten.sym_size.int": "size", "aten.expand.default": "expand", "aten.contiguous.default": "contiguous"}


def _spread(args: list[Any]) -> tuple[Any, ...]:
    """A list of sizes as several arguments."""
    return (args[0], *(part for value in args[1:] for part in (value if isinstance(value, list) else [value])))


def _tuples(outputs: Any) -> Any:
    """A network gives several outputs as tuples, and named ones as a dictionary."""
    if isinstance(outputs, dict):
        return {name: _tuples(part) for name, part in outputs.items()}
    return tuple(map(_tuples, outputs)) if isinstance(outputs, list) else outputs


@connect.register
def _(layer: Cat, item: Placed, wires: Wires, inputs: list[fx.Node]) -> fx.Node:
    return wires.call(torch.cat, inputs, 1)
