"""How a supernet runs: a plan for the hard decisions, and one rule per primitive for the soft ones.

A soft width is a mask M over the channels of the largest width, M_j = P(width > j) (FBNetV2, Fig. 2). It stands after BatchNorm and
activation, but never costs a feature map: it is folded into the input channels of the convolution that reads the map, or into scale and
shift of a BatchNorm that no activation follows. Until then it travels beside the map, as `Feature.mask`. What the masks are is asked of
`Expectations`, when the plan is made; its answers come with each call, all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, singledispatch
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
from niwaki.net.operation import Operation
from niwaki.net.place import INPUT, Placed, Placement, fix
from niwaki.nn.build import look_up_vectors, module_name, nearest_rows, scattered_rows
from niwaki.nn.call import Call
from niwaki.nn.expect import Answers, Expectations
from niwaki.nn.feature import Feature
from niwaki.space.choice import SpaceError
from niwaki.space.size import Expr, Symbol, largest, narrow, refs, values

ACTIVATION_FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "hswish": F.hardswish,
    "swish": F.silu,
    "hsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "identity": lambda x: x,
}
Index = slice | Tensor  # which rows of a weight a smaller size uses
Combo = tuple[tuple[str, Any], ...]  # one option for each decision of a region of resolutions


@dataclass(frozen=True)
class Step:
    """One primitive, ready to run: which part of the largest weights it uses, and which questions about soft decisions it has.

    A question is its number in the plan's `Expectations`; None where nothing is open.
    """

    item: Placed
    inputs_index: Index
    output_index: Index
    mask: int | None  # over the output's channels
    kernel: int | None  # over the kernel's positions
    hidden: int | None  # over the width between, in squeeze-excite
    kinds: int | None  # over the options of an activation
    edges: tuple[int | None, ...]  # of a Sum
    pairs: tuple[tuple[int, int, int], ...]  # input and output channels of a grouped convolution, with their probability
    sizes: int | None  # over the values in `pairs`' place for a shuffle
    norm_first: bool  # a BatchNorm that an activation follows: its mask waits until after it
    area: int
    call: Call | None = None  # of an operation


After = Callable[[Placed, Feature], Feature]


class Plan:
    """A supernet's calls under one set of hard decisions: its steps, cut to the sizes that these leave."""

    def __init__(self, placement: Placement, hard: dict[str, Any]) -> None:
        full = {item.path: item for item in placement.items}
        self.placement = fix(placement, hard)
        self.open = {decision.name: len(decision.options) for decision in self.placement.decisions}
        self.expectations = Expectations(self.open)
        self.settled: dict[Any, Step] = {}
        items = self.placement.items
        readers: list[list[Placed]] = [[] for _ in items]
        for item in items:
            for source in item.inputs:
                if source >= 0:
                    readers[source].append(item)
        self.steps = [self._step(item, full[item.path], readers[at]) for at, item in enumerate(items)]
        self.regions = _regions(self.placement)

    def run(self, given: Sequence[Tensor], soft: Mapping[str, Tensor], layers: nn.ModuleDict, after: After | None = None) -> Any:
        """The output for the inputs `given`, (B, *input_shape) each, with the weights `soft` of the open decisions. after: see `Supernet.forward`."""
        weights = {}
        for name, options in self.open.items():
            if name not in soft:
                raise SpaceError(
                    f"the supernet is not told what to do about the decision {name!r}; give an option or a tensor of {options} weights"
                )
            if soft[name].shape != (options,):
                raise SpaceError(f"the weights of the decision {name!r} have the shape {tuple(soft[name].shape)}; it has {options} options")
            weights[name] = soft[name]
        known = self.expectations(weights)
        inner: dict[Combo, Answers] = {}
        features: list[Any] = []
        for at, step in enumerate(self.steps):
            region = self.regions.reads[at]
            if region is None:
                inputs = [Feature(given[INPUT - source]) if source < 0 else features[source] for source in step.item.inputs]
                feature = run_layer(step.item.layer, step, known, layers, inputs)
                features.append(feature if after is None else after(step.item, feature))
                continue
            # one pass for each combination of resolutions; the weights are the same ones
            outputs: dict[Combo, Feature] = {}
            for combo in self.regions.combos[region]:
                if combo not in inner:
                    inner[combo] = self.expectations(weights | self._made(combo, weights))
                inputs = [
                    Feature(given[INPUT - source])
                    if source < 0
                    else features[source][combo]
                    if isinstance(features[source], dict)
                    else features[source]
                    for source in step.item.inputs
                ]
                settled = self._settled(step, combo)
                feature = run_layer(settled.item.layer, settled, inner[combo], layers, inputs)
                outputs[combo] = feature if after is None else after(settled.item, feature)
            if self.regions.gives[at] is not None:
                features.append(outputs)
                continue
            total: Tensor | None = None
            for combo, feature in outputs.items():
                weight = _product([weights[name][self.regions.position[name, option]] for name, option in combo])
                total = feature.scaled(weight) if total is None else total + feature.scaled(weight)
            features.append(Feature(total))  # type: ignore[arg-type]
        out = self.placement.output
        return given[INPUT - out] if out < 0 else features[out].whole()

    def _made(self, combo: Combo, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The resolutions of `combo` as weights: all on one option."""
        return {
            name: F.one_hot(torch.tensor(self.regions.position[name, option]), self.open[name]).to(weights[name]) for name, option in combo
        }

    def _settled(self, step: Step, combo: Combo) -> Step:
        """`step` at the resolutions of `combo`."""
        key = (id(step), combo)
        if key not in self.settled:
            chosen = dict(combo)

            def spatial(shape):
                return replace(shape, spatial=tuple(narrow(size, chosen) for size in shape.spatial))

            layer, kernel = step.item.layer, step.kernel
            if isinstance(layer, Conv) and not isinstance(size := narrow(layer.kernel_size, chosen), Symbol):
                layer, kernel = replace(layer, kernel_size=size), None  # with a stated padding, the kernel decides the size of the map
            item = replace(step.item, layer=layer, shape=spatial(step.item.shape), input_shapes=tuple(map(spatial, step.item.input_shapes)))
            self.settled[key] = replace(step, item=item, kernel=kernel, area=_area(item))
        return self.settled[key]

    def _step(self, item: Placed, full: Placed, readers: list[Placed]) -> Step:
        layer, condition = item.layer, item.condition
        if isinstance(layer, Operation):
            whole = slice(0, None)
            call = Call(item, full.layer, self.expectations)  # type: ignore[arg-type]
            return Step(item, whole, whole, None, None, None, None, (None,) * len(item.edges), (), None, False, 0, call)
        now_in, now_out = item.input_shapes[0].channels, item.shape.channels
        inputs_index = channel_index(full.input_shapes[0].channels, now_in)
        output_index = channel_index(full.shape.channels, now_out)
        kernel = hidden = kinds = sizes = mask = None
        pairs: tuple[tuple[int, int, int], ...] = ()
        ask = self.expectations
        if isinstance(layer, (Conv, Linear, Embed, BatchNorm)):  # the others hand on the mask of what they read
            mask = ask.mask(now_out, condition)
        if isinstance(layer, Conv):
            depthwise = layer.groups == item.input_shapes[0].width == layer.out_channels
            if depthwise:
                inputs_index = slice(0, 1)
            elif layer.groups != 1:
                inputs_index = slice(0, largest(item.input_shapes[0].width) // layer.groups)
                if isinstance(layer.out_channels, Symbol) or isinstance(item.input_shapes[0].width, Symbol):
                    pairs = self._pairs(item)
            if isinstance(layer.kernel_size, Symbol):
                kernel = ask.mean((layer.kernel_size,), condition, _kernel_columns(largest(layer.kernel_size)))
        if isinstance(layer, SqueezeExcite) and isinstance(layer.hidden, Symbol):
            hidden = ask.mask((layer.hidden,), condition)
        if isinstance(layer, Activation) and isinstance(layer.kind, Symbol):
            kinds = ask.mean((layer.kind,), condition, lambda kind: [float(kind == one) for one in sorted(set(values(layer.kind)))])
        if isinstance(layer, ChannelShuffle) and isinstance(item.shape.width, Symbol):
            sizes = ask.mean(
                (item.shape.width,), condition, lambda width: [float(width == one) for one in sorted(set(values(item.shape.width)))]
            )
        edges = tuple(None if edge is True else ask.mean((edge,), condition, lambda holds: [float(holds)]) for edge in item.edges)
        norm_first = isinstance(layer, BatchNorm) and any(isinstance(reader.layer, (Activation, BatchNorm)) for reader in readers)
        return Step(item, inputs_index, output_index, mask, kernel, hidden, kinds, edges, pairs, sizes, norm_first, _area(item))

    def _pairs(self, item: Placed) -> tuple[tuple[int, int, int], ...]:
        exprs = (item.input_shapes[0].width, item.layer.out_channels)  # type: ignore[attr-defined]
        found = []
        for i, o in self.expectations.cases(exprs, item.condition).found:
            chance = self.expectations.mean(exprs, item.condition, lambda width, out, i=i, o=o: [float(width == i and out == o)])
            found.append((i, o, chance))
        return tuple(found)  # type: ignore[arg-type]


# --- one rule per primitive: Features in, a Feature out -----------------------------------------------------------------


@singledispatch
def run_layer(layer: Layer, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    """What a primitive makes of its inputs under the soft decisions, by the answers `known`."""
    raise TypeError(f"supernet() has no rule for {type(layer).__name__}; it belongs in this file")


@run_layer.register
def _(layer: Conv, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x, mask = inputs[0].waiting()
    module = layers[module_name(step.item.path)]
    kernel_size = largest(layer.kernel_size)
    x = first(x, 1, _width(step.item.input_shapes[0].channels))
    weight = kernel_crop(take(take(module.weight, 0, step.output_index), 1, step.inputs_index), kernel_size)  # type: ignore[arg-type]
    if step.kernel is not None:
        weight = weight * known[step.kernel].view(kernel_size, kernel_size)
    depthwise = weight.shape[1] == 1 and weight.shape[0] == x.shape[1]
    groups = x.shape[1] if depthwise else layer.groups
    if step.pairs:
        weight, groups = _dense_of_groups(weight, layer.groups, x.shape[1], step.pairs, known), 1
    if mask is not None:
        mask = first(mask, 0, x.shape[1])
        # the mask goes where there is less to multiply: the weights, but for late layers of few positions and many channels
        if depthwise:
            weight = weight * mask.view(-1, 1, 1, 1)
        elif groups == 1 and weight.numel() <= x.numel():
            weight = weight * mask.view(1, -1, 1, 1)
        else:
            x = x * mask.view(1, -1, 1, 1)
    bias = None if module.bias is None else take(module.bias, 0, step.output_index)  # type: ignore[arg-type]
    padding = layer.dilation * (kernel_size - 1) // 2 if layer.padding is None else layer.padding
    y = F.conv2d(x, weight, bias, layer.stride, padding, layer.dilation, groups)
    return Feature(y, _of(step.mask, known))


@run_layer.register
def _(layer: Linear, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x, mask = inputs[0].waiting()
    module = layers[module_name(step.item.path)]
    x = first(x, 1, _width(step.item.input_shapes[0].channels))
    weight = take(take(module.weight, 0, step.output_index), 1, step.inputs_index)  # type: ignore[arg-type]
    if mask is not None:
        weight = weight * first(mask, 0, x.shape[1])
    bias = None if module.bias is None else take(module.bias, 0, step.output_index)  # type: ignore[arg-type]
    return Feature(F.linear(x, weight, bias), _of(step.mask, known))


@run_layer.register
def _(layer: Pick, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    return Feature(inputs[0].whole()[:, layer.first : layer.first + layer.count])


@lru_cache(maxsize=64)
def _look_up(rows: tuple[int, ...], features: tuple[int, ...], first: int, device: torch.device) -> tuple[Tensor, ...]:
    with device:
        return look_up_vectors(rows, features, first)


@run_layer.register
def _(layer: Embed, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x = inputs[0].whole()
    table: Any = layers[module_name(step.item.path)].weight
    columns, starts, last = _look_up(layer.rows, layer.features(largest(layer.width)), layer.first, x.device)
    codes = torch.minimum(x.index_select(1, columns).clamp(0), last)
    if not layer.between:
        return Feature(F.embedding(codes.long() + starts, table).flatten(1), _of(step.mask, known))
    below = codes.floor()
    low, high = (F.embedding(end.long() + starts, table).flatten(1) for end in (below, codes.ceil()))
    return Feature(torch.lerp(low, high, codes - below), _of(step.mask, known))


@run_layer.register
def _(layer: BatchNorm, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    module: Any = layers[module_name(step.item.path)]
    source, index = inputs[0], step.output_index
    # the scale of a mask before BatchNorm is lost in it, its zeros are revived by the shift: so the mask waits and comes after
    x = source.tensor if source.norm is None and source.gate is None else source.whole()

    def norm(x: Tensor, factor: Tensor | None) -> Tensor:
        weight, bias = take(module.weight, 0, index), take(module.bias, 0, index)
        if factor is not None:
            weight, bias = weight * factor, bias * factor
        mean, var = take(module.running_mean, 0, index), take(module.running_var, 0, index)
        if module.training:
            module.num_batches_tracked.add_(1)
        y = F.batch_norm(x, mean, var, weight, bias, module.training, layer.momentum, layer.eps)
        if module.training and isinstance(index, Tensor):  # `take` made copies
            module.running_mean.index_copy_(0, index, mean)
            module.running_var.index_copy_(0, index, var)
        return y

    mask = _of(step.mask, known)
    return Feature(norm(x, None), mask) if step.norm_first or mask is None else Feature(x, mask, norm=norm)


@run_layer.register
def _(layer: Activation, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x, mask = inputs[0].waiting()
    if step.kinds is None:
        return Feature(ACTIVATION_FUNCTIONS[layer.kind](x), mask)
    kinds = sorted(set(values(layer.kind)))
    weights = known[step.kinds].split(1)
    total = ACTIVATION_FUNCTIONS[kinds[0]](x) * weights[0]
    for at, kind in enumerate(kinds[1:], start=1):
        total = scaled_add(total, ACTIVATION_FUNCTIONS[kind](x), weights[at])
    return Feature(total, mask)


@run_layer.register
def _(layer: Pool, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x, mask = inputs[0].waiting()  # both pools commute with a mask that is not negative
    if layer.kind == "max":
        return Feature(F.max_pool2d(x, layer.kernel_size, layer.stride, layer.padding), mask)
    return Feature(F.avg_pool2d(x, layer.kernel_size, layer.stride, layer.padding, count_include_pad=False), mask)


@run_layer.register
def _(layer: GlobalPool, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x, mask = inputs[0].waiting()
    return Feature(x.mean((2, 3), keepdim=True), mask)


@run_layer.register
def _(layer: Flatten, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x, mask = inputs[0].waiting()
    return Feature(x.flatten(1), None if mask is None else mask.repeat_interleave(step.area))


@run_layer.register
def _(layer: SqueezeExcite, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x, mask = inputs[0].waiting()
    pair: Any = layers[module_name(step.item.path)]
    channels, hidden = step.inputs_index, slice(0, largest(layer.hidden))
    reduce = take(take(pair["reduce"].weight, 0, hidden), 1, channels).flatten(1)  # (hidden, C)
    expand = take(take(pair["expand"].weight, 0, channels), 1, hidden).flatten(1)  # (C, hidden)
    pooled = x.mean((2, 3)) if mask is None else x.mean((2, 3)) * mask  # (B, C): less to hold than another copy of the weights
    inner = ACTIVATION_FUNCTIONS[layer.activation](F.linear(pooled, reduce, take(pair["reduce"].bias, 0, hidden)))
    if step.hidden is not None:
        inner = inner * known[step.hidden]
    gate = ACTIVATION_FUNCTIONS[layer.gate](F.linear(inner, expand, take(pair["expand"].bias, 0, channels)))
    return Feature(x, mask, gate=gate[:, :, None, None])


@run_layer.register
def _(layer: Subsample, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x, mask = inputs[0].waiting()
    return Feature(_select_rows(x, step.item, nearest_rows, flip=False), mask)


@run_layer.register
def _(layer: Interleave, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x, mask = inputs[0].waiting()
    return Feature(_select_rows(F.pad(x, (0, 1, 0, 1)), step.item, scattered_rows, flip=True), mask)


@run_layer.register
def _(layer: ChannelShuffle, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    if step.sizes is None:
        x, mask = inputs[0].waiting()
        shuffled = None if mask is None else mask.view(layer.groups, -1).t().flatten()
        return Feature(F.channel_shuffle(x, layer.groups), shuffled)
    # where a channel goes depends on how many there are: one pass for each width
    x, weights = inputs[0].whole(), known[step.sizes].split(1)
    total = torch.zeros_like(x)
    for at, width in enumerate(sorted(set(values(step.item.shape.width)))):
        total = scaled_add(total, _padded(F.channel_shuffle(x[:, :width], layer.groups), x.shape[1]), weights[at])
    return Feature(total)


@run_layer.register
def _(layer: Dropout, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    x, mask = inputs[0].waiting()
    return Feature(F.dropout(x, layer.p, layers.training), mask)


@run_layer.register
def _(layer: Zero, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    return Feature(torch.zeros_like(inputs[0].tensor))


@run_layer.register
def _(layer: Opaque, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    return Feature(layers[module_name(step.item.path)](inputs[0].whole()))


@run_layer.register
def _(layer: Sum, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    weights = [None if edge is None else known[edge] for edge in step.edges]
    width = _width(step.item.shape.channels)
    one = inputs[0]
    if all(f.tensor is one.tensor and f.mask is one.mask and f.norm is None for f in inputs) and any(f.gate is not None for f in inputs):
        # squeeze-excite or not: the two differ in the gate alone, so their sum costs one map
        gate = sum((1.0 if f.gate is None else f.gate) * (1.0 if w is None else w) for f, w in zip(inputs, weights, strict=True))
        return Feature(one.tensor, one.mask, gate=gate)  # type: ignore[arg-type]
    total: Tensor | None = None
    # maps that take their weight for free come first
    for feature, weight in sorted(zip(inputs, weights, strict=True), key=lambda pair: pair[0].norm is None):
        foldable = feature.norm is not None and feature._whole is None and weight is not None
        term = feature.scaled(weight) if foldable else feature.whole()
        term = _padded(term, width)
        if total is None:
            total = term if foldable or weight is None else term * weight
        elif foldable or weight is None:
            total = total + term
        else:
            total = scaled_add(total, term, weight)
    return Feature(total)  # type: ignore[arg-type]


@run_layer.register
def _(layer: Cat, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    tensors, masks = zip(*(feature.waiting() for feature in inputs), strict=True)
    if all(mask is None for mask in masks):
        return Feature(torch.cat(tensors, 1))
    ones = [
        torch.ones(x.shape[1], dtype=x.dtype, device=x.device) if mask is None else mask for x, mask in zip(tensors, masks, strict=True)
    ]
    return Feature(torch.cat(tensors, 1), torch.cat(ones))


@run_layer.register
def _(layer: Operation, step: Step, known: Answers, layers: nn.ModuleDict, inputs: list[Feature]) -> Feature:
    assert step.call is not None
    return step.call(inputs, known, layers)


# --- parts ----------------------------------------------------------------------------------------------------------------


class _ScaledAdd(torch.autograd.Function):
    """a + scale * b in one pass over the maps, and nothing saved but `b` itself, which its other readers have saved anyway."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(b, scale)
        return torch.add(a, b, alpha=scale.item())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        b, scale = ctx.saved_tensors
        to_b = grad * scale if ctx.needs_input_grad[1] else None
        to_scale = torch.dot(grad.flatten(), b.flatten()).view(1) if ctx.needs_input_grad[2] else None
        return grad, to_b, to_scale


def scaled_add(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """a + scale * b, scale a tensor of one number."""
    if a.is_cuda:  # reading the scale would make the host wait
        return torch.addcmul(a, b, scale.to(b.dtype))
    return _ScaledAdd.apply(a, b, scale)


def channel_index(full: tuple[Expr, ...], now: tuple[Expr, ...]) -> Index:
    """Which channels of the largest layout (runs `full` side by side) are used when the runs have at most the sizes `now`."""
    if len(full) == 1 or len(now) == 1:
        return slice(0, _width(now))
    starts, at = [], 0
    for size in full:
        starts.append(at)
        at += largest(size)
    return torch.cat([torch.arange(start, start + largest(size)) for start, size in zip(starts, now, strict=True)])


def first(x: Tensor, dim: int, count: int) -> Tensor:
    """The first `count` along `dim`; `x` itself where that is all, for even an idle view costs time in both directions."""
    return x if count >= x.shape[dim] else x.narrow(dim, 0, count)


def take(weight: Tensor, dim: int, index: Index) -> Tensor:
    """`weight` at `index` along `dim`: itself, a view, or for scattered runs a copy."""
    if isinstance(index, slice):
        return first(weight, dim, index.stop)
    return weight.index_select(dim, index.to(weight.device))


def kernel_crop(weight: Tensor, kernel_size: int) -> Tensor:
    """The centre of the largest kernel (once-for-all, BigNAS): (O, I, K, K) to (O, I, kernel_size, kernel_size)."""
    edge = (weight.shape[-1] - kernel_size) // 2
    return weight if edge == 0 else weight[:, :, edge : edge + kernel_size, edge : edge + kernel_size]


@dataclass(frozen=True)
class _Regions:
    """Where soft resolutions reach: for each step the region it reads from and gives to (None: outside)."""

    reads: list[int | None]
    gives: list[int | None]
    combos: list[tuple[Combo, ...]]
    position: dict[tuple[str, Any], int]


def _regions(placement: Placement) -> _Regions:
    """Steps whose height and width depend on open decisions, grouped by decisions that meet in a step."""
    before = [{ref.name: ref for shape in item.input_shapes for size in shape.resolution for ref in refs(size)} for item in placement.items]
    after = [{ref.name: ref for size in item.shape.resolution for ref in refs(size)} for item in placement.items]
    groups: list[dict[str, Any]] = []
    for found in ({**b, **a} for b, a in zip(before, after, strict=True)):
        meeting = [group for group in groups if group.keys() & found.keys()]
        groups = [group for group in groups if group not in meeting]
        if found:
            groups.append({name: ref for group in [*meeting, found] for name, ref in group.items()})

    def region(names: Mapping[str, Any]) -> int | None:
        return next((at for at, group in enumerate(groups) if group.keys() & names.keys()), None)

    combos = [
        tuple(tuple(zip(group, options, strict=True)) for options in product(*(ref.options for ref in group.values()))) for group in groups
    ]
    position = {(name, option): at for group in groups for name, ref in group.items() for at, option in enumerate(ref.options)}
    return _Regions([region({**b, **a}) for b, a in zip(before, after, strict=True)], [region(a) for a in after], combos, position)


def _dense_of_groups(weight: Tensor, groups: int, width: int, pairs: tuple[tuple[int, int, int], ...], known: Answers) -> Tensor:
    """The dense weight (O, width, k, k) that a grouped convolution of uncertain widths is on average.

    Which input a group reads depends on the widths, so that no mask on one grouped convolution can say it.
    """
    total = weight.new_zeros(weight.shape[0], width, *weight.shape[2:])
    for channels, out, chance in pairs:
        into, outs = channels // groups, out // groups
        dense = torch.cat(
            [F.pad(weight[g * outs : (g + 1) * outs, :into], (0, 0, 0, 0, g * into, width - (g + 1) * into)) for g in range(groups)]
        )
        total = total + known[chance] * F.pad(dense, (0, 0, 0, 0, 0, 0, 0, weight.shape[0] - out))
    return total


def _select_rows(x: Tensor, item: Placed, rows_of: Callable[[int, int], Tensor], *, flip: bool) -> Tensor:
    for dim, before, after in zip((2, 3), item.input_shapes[0].spatial, item.shape.spatial, strict=True):
        if flip or before != after:
            rows = rows_of(before, after) if flip else rows_of(after, before)
            x = x.index_select(dim, rows.to(x.device))
    return x


def _kernel_columns(largest_kernel: int) -> Callable[[int], list[float]]:
    def columns(kernel: int) -> list[float]:
        edge = (largest_kernel - kernel) // 2
        inside = range(edge, edge + kernel)
        return [float(i in inside and j in inside) for i in range(largest_kernel) for j in range(largest_kernel)]

    return columns


def _padded(x: Tensor, width: int) -> Tensor:
    """`x` with exactly `width` channels: zeros added, or channels that no option keeps left out."""
    missing = width - x.shape[1]
    if missing > 0:
        return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    return first(x, 1, width)


def _of(question: int | None, known: Answers) -> Tensor | None:
    return None if question is None else known[question]


def _width(channels: tuple[Expr, ...]) -> int:
    return sum(largest(size) for size in channels)


def _values(size: Expr) -> tuple:
    return values(size) if isinstance(size, Symbol) else (size,)


def _area(item: Placed) -> int:
    sizes = item.input_shapes[0].spatial
    return 0 if any(isinstance(size, Symbol) for size in sizes) else prod(sizes)


def _product(weights: list[Tensor]) -> Tensor:
    total = weights[0]
    for weight in weights[1:]:
        total = total * weight
    return total
