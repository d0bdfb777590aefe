"""Multiply-adds, parameters, bytes and activations of a network, as costs: exact for every architecture of its space at once.

`parts` has one rule per primitive and says what there is to count in it; every count is a fold of that over the placed primitives.
A size stays a function of the few decisions it depends on, so that a count is a sum of small tables (or, for the peak, a maximum).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, singledispatch
from math import prod

import numpy as np

from niwaki.factor.factor import Cost, CostError, Factor, factor_of, factors_of
from niwaki.net.axes import size_of
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
    Identity,
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
from niwaki.net.operation import Operation, Weight
from niwaki.net.place import Placed, Placement, Shape, fix, place, space_of
from niwaki.space.choice import Value
from niwaki.space.size import Expr, Symbol, both, canonical, either, equal, minimum, op, opposite, refs

RULES = ("all", "fbnet")
FLOAT_BYTES = 4
LARGEST_CONDITION = 1 << 20  # combinations of options over which a tensor's lifetime may range

Product = tuple[Expr, ...]  # sizes to be multiplied


@dataclass(frozen=True)
class Map:
    """A linear map: `weights` of them, applied at every one of `positions`, with `outputs` channels and perhaps as many biases."""

    weights: Product
    outputs: Expr
    positions: Product = ()
    bias: bool = False


@dataclass(frozen=True)
class Parts:
    """What there is to count in one primitive.

    maps: convolutions and linear layers in it. normalised: channels with a learned scale and shift, and a running mean and variance.
    averaged: elements that enter an average pool. looked_up: numbers in tables. macs, params: stated by the owner of an opaque layer.
    multiplied, learned, held, given: of an operation, products whose sums are its multiply-adds, its learnable numbers, the bytes of its
    other tensors, and the elements that it gives, if it multiplies.
    """

    maps: tuple[Map, ...] = ()
    normalised: Expr = 0
    averaged: Product = (0,)
    looked_up: Expr = 0
    macs: int = 0
    params: int = 0
    multiplied: tuple[Product, ...] = ()
    learned: tuple[Product, ...] = ()
    held: tuple[Product, ...] = ()
    given: tuple[Product, ...] = ()


@singledispatch
def parts(layer: Layer, item: Placed) -> Parts:
    """What there is to count in `layer`, placed as `item`."""
    raise TypeError(f"parts() has no rule for {type(layer).__name__}; it belongs in this file")


@parts.register
def _(layer: Conv, item: Placed) -> Parts:
    given, made = item.input_shapes[0], item.shape
    entering = _total(given.channels)
    depthwise = layer.groups != 1 and layer.groups == given.width == layer.out_channels
    each = 1 if depthwise else entering if layer.groups == 1 else canonical(op("//", given.width, layer.groups))
    leaving = entering if depthwise else layer.out_channels
    return Parts((Map((each, leaving, layer.kernel_size, layer.kernel_size), leaving, made.spatial, layer.bias),))


@parts.register
def _(layer: Linear, item: Placed) -> Parts:
    return Parts((Map((_total(item.input_shapes[0].channels), layer.out_features), layer.out_features, bias=layer.bias),))


@parts.register
def _(layer: SqueezeExcite, item: Placed) -> Parts:
    channels = _total(item.shape.channels)
    squeeze = Map((channels, layer.hidden), layer.hidden, bias=True)
    excite = Map((channels, layer.hidden), channels, bias=True)
    return Parts((squeeze, excite), averaged=(channels, *item.shape.spatial))


@parts.register
def _(layer: BatchNorm, item: Placed) -> Parts:
    return Parts(normalised=_total(item.shape.channels))


@parts.register
def _(layer: GlobalPool, item: Placed) -> Parts:
    return Parts(averaged=_elements(item.input_shapes[0]))


@parts.register
def _(layer: Pool, item: Placed) -> Parts:
    return Parts(averaged=_elements(item.input_shapes[0])) if layer.kind == "avg" else Parts()


@parts.register
def _(layer: Opaque, item: Placed) -> Parts:
    return Parts(macs=layer.macs, params=layer.params)


@parts.register
def _(layer: Embed, item: Placed) -> Parts:
    numbers: Expr = 0
    for rows, count in Counter(layer.rows).items():
        numbers = numbers + rows * count * minimum(layer.width, max(1, rows - 1))
    return Parts(looked_up=canonical(numbers))


BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2, "bfloat16": 2, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}


@parts.register
def _(layer: Operation, item: Placed) -> Parts:
    """A tensor that stands at several places counts where it stands first. A running count of batches counts as nothing, as in BatchNorm."""
    own = [weight for weight in layer.weights if not weight.again]
    learned = tuple(_numbers(weight) for weight in own if weight.kind in ("parameter", "frozen"))
    others = [weight for weight in own if weight.kind not in ("parameter", "frozen") and not weight.name.endswith("num_batches_tracked")]
    held = tuple((BYTES[weight.dtype], *_numbers(weight)) for weight in others)
    averaged = item.input_shapes[0].elements if layer.kind in ("adaptive_avg_pool2d", "avg_pool2d") else (0,)
    return Parts(averaged=averaged, multiplied=layer.macs, learned=learned, held=held, given=(item.shape.elements,) if layer.macs else ())


def _numbers(weight: Weight) -> Product:
    return tuple(size_of(axis) for axis in weight.axes) or (1,)


@parts.register(Activation)
@parts.register(Cat)
@parts.register(ChannelShuffle)
@parts.register(Dropout)
@parts.register(Flatten)
@parts.register(Identity)
@parts.register(Interleave)
@parts.register(Pick)
@parts.register(Subsample)
@parts.register(Sum)
@parts.register(Zero)
def _(layer: Layer, item: Placed) -> Parts:
    return Parts()


def macs_of(part: Parts, rule: str = "all") -> Iterator[Product]:
    """Products whose sum is the multiply-adds. Rule "fbnet" (the authors' of FBNet) adds one per element that enters an average pool."""
    yield (part.macs,)
    yield from ((*each.weights, *each.positions) for each in part.maps)
    yield from part.multiplied
    if rule == "fbnet":
        yield part.averaged


def params_of(part: Parts, rule: str = "all") -> Iterator[Product]:
    """Products whose sum is the learnable numbers. Rule "fbnet" has the weights of convolutions and linear layers only."""
    yield (part.params,)
    yield from (each.weights for each in part.maps)
    yield from part.learned
    if rule != "fbnet":
        yield from ((each.outputs,) for each in part.maps if each.bias)
        yield (2, part.normalised)
        yield (part.looked_up,)


def size_bytes_of(part: Parts) -> Iterator[Product]:
    """Products whose sum is the bytes of all parameters and of BatchNorm's running means and variances, in float32."""
    yield from ((FLOAT_BYTES, *product) for product in params_of(part))
    yield (FLOAT_BYTES, 2, part.normalised)
    yield from part.held


def activations_of(part: Parts) -> Iterator[Product]:
    """Products whose sum is the elements that convolutions and linear layers give, those within squeeze-excite included."""
    yield from ((each.outputs, *each.positions) for each in part.maps)
    yield from part.given


@lru_cache(maxsize=32)
def count_macs(network: Network, rule: str = "all") -> Cost:
    """Multiply-adds of convolutions and linear layers for one image; rule "fbnet": those, and one per input element of an average pool."""
    _require_rule(rule)
    return _count("macs", "", network, lambda part: macs_of(part, rule))


@lru_cache(maxsize=32)
def count_params(network: Network, rule: str = "all") -> Cost:
    """Learnable parameters; rule "fbnet": weights of convolutions and linear layers, without biases and BatchNorm."""
    _require_rule(rule)
    return _count("params", "", network, lambda part: params_of(part, rule))


@lru_cache(maxsize=32)
def count_size_bytes(network: Network) -> Cost:
    """Bytes of the parameters and of BatchNorm's running means and variances in float32."""
    return _count("size", "bytes", network, size_bytes_of)


@lru_cache(maxsize=32)
def count_activations(network: Network) -> Cost:
    """Elements that convolutions and linear layers give for one image, those within squeeze-excite included."""
    return _count("activations", "elements", network, activations_of)


@lru_cache(maxsize=32)
def count_peak_activation(network: Network) -> Cost:
    """The most elements that are held at once for one image: a maximum over the primitives of one architecture, run in placed order.

    While a primitive runs, memory holds its output and every tensor that it or a later primitive reads; the network's input and output
    are such tensors. BatchNorm, activations, dropout and Flatten write over their input, unless it is read again later. The vectors
    inside squeeze-excite and the weights are not counted.
    """
    placement = place(network)
    factors = list(_Liveness(placement).factors())
    return Cost("peak_activation", "elements", tuple(factors), space_of(network), kind="max")


COSTS: Mapping[str, Callable[[Network], Cost]] = {
    "macs": count_macs,
    "params": count_params,
    "size": count_size_bytes,
    "activations": count_activations,
    "peak_activation": count_peak_activation,
}


@dataclass(frozen=True)
class LayerRow:
    """One primitive of one architecture. shape: channels, then height and width if it has them; elements: of its output."""

    path: str
    kind: str
    shape: tuple[int, ...]
    macs: int
    params: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


def layer_table(network: Network, arch: Mapping[str, Value] | None = None, rule: str = "all") -> list[LayerRow]:
    """One row per primitive of the architecture `arch` (None: of a network without choices), in order of execution."""
    _require_rule(rule)
    rows = []
    for item in fix(place(network), space_of(network).architecture(arch or {})).items:
        part = parts(item.layer, item)
        macs, params = (sum(prod(product) for product in products) for products in (macs_of(part, rule), params_of(part, rule)))
        shape = (sum(item.shape.channels), *item.shape.spatial)
        kind = item.layer.kind if isinstance(item.layer, Operation) else type(item.layer).__name__
        rows.append(LayerRow(item.path, kind, shape, int(macs), int(params)))
    return rows


def _count(name: str, unit: str, network: Network, products: Callable[[Parts], Iterable[Product]]) -> Cost:
    factors = [
        factor
        for item in place(network).items
        for product in products(parts(item.layer, item))
        if 0 not in [size for size in product if not isinstance(size, Symbol)]
        for factor in factors_of(item.path, item.condition, product)
    ]
    return Cost(name, unit, tuple(factors), space_of(network))


def _total(channels: Sequence[Expr]) -> Expr:
    """The sum of runs of channels, left as a sum, so that a count over it stays a sum of tables."""
    total: Expr = 0
    for run in channels:
        total = total + run
    return total


def _elements(shape: Shape) -> Product:
    return shape.elements


def _require_rule(rule: str) -> None:
    if rule not in RULES:
        raise CostError(f"there is no counting rule {rule!r}; there are {', '.join(RULES)}")


class _Liveness:
    """Which tensors are held when, as conditions on the decisions.

    What `fix` leaves out of an architecture is no primitive there: a `Sum` of one tensor, an activation that is the identity or a
    subsampling to the same size *is* its input. It takes over from it when its turn comes, so that conditions stay local in a chain
    of skips.
    """

    def __init__(self, placement: Placement) -> None:
        self.placement = placement
        self.items = placement.items
        self.readers: dict[int, list[tuple[int, int]]] = {}  # tensor -> (item that has it as an input, at which place)
        for at, item in enumerate(self.items):
            for place_, source in enumerate(item.inputs):
                self.readers.setdefault(source, []).append((at, place_))
        self.zero: list[Expr] = []  # of each item: where it is only zeros
        self.kept: list[tuple[Expr, ...]] = []  # of each item: where each of its inputs takes part
        self.same: list[tuple[Expr, ...]] = []  # of each item: where it is that input itself
        self.runs: list[Expr] = []  # of each item: where it is a primitive of the architecture
        for item in self.items:
            self._add(item)
        self._read: dict[tuple[int, int], Expr] = {}

    def factors(self) -> Iterator[Factor]:
        """For each step that may be the peak: the elements held then, 0 where the step does not run."""
        open_until = {tensor: max(at for at, _ in readers) for tensor, readers in self.readers.items()}
        open_until[self.placement.output] = len(self.items)
        candidates = list(self.placement.entering)
        yield factor_of("the input", True, (sum(prod(one.shape) for one in self.placement.reads),))
        for at, item in enumerate(self.items):
            runs = self.runs[at]
            if _writes_over(item.layer):
                # where it writes over its input, it holds no more than the step before
                runs = _both(runs, _either(self.read(item.inputs[0], at + 1), self._read_as_another(item.inputs[0], at + 1)))
            elif isinstance(item.layer, Zero):
                runs = _both(runs, self.read(at, at + 1))  # zeros that nobody reads are left out
            candidates = [tensor for tensor in candidates if open_until.get(tensor, -1) >= at]
            if runs is not False:
                held = [factor_of(item.path, runs, _elements(item.shape))]
                for tensor in candidates:
                    there = _both(runs, self._held(tensor, at))
                    if there is not False:
                        held.append(factor_of(item.path, there, _elements(self.placement.shape_of(tensor))))
                yield _added(held)
            candidates.append(at)

    def read(self, tensor: int, step: int) -> Expr:
        """Where `tensor`, under this or a later name, is read at `step` or later, or is the network's output."""
        if tensor == self.placement.output:
            return True
        if (tensor, step) not in self._read:
            found = self._read_directly(tensor, step)
            for reader, place_ in self.readers.get(tensor, []):
                if self.same[reader][place_] is not False:
                    found = _either(found, _both(self.same[reader][place_], self.read(reader, max(step, reader + 1))))
            self._read[tensor, step] = found
        return self._read[tensor, step]

    def _read_directly(self, tensor: int, step: int) -> Expr:
        found: Expr = False
        for reader, place_ in self.readers.get(tensor, []):
            if reader >= step:
                found = _either(found, _both(self.runs[reader], self.kept[reader][place_]))
        return found

    def _held(self, tensor: int, step: int) -> Expr:
        """Where `tensor` is held at `step` under this name: not yet, or not only, under a later one."""
        if tensor == self.placement.output:
            return self._exists(tensor)
        found, elsewhere = self._read_directly(tensor, step), []
        for reader, place_ in self.readers.get(tensor, []):
            same = self.same[reader][place_]
            if same is not False and reader >= step:
                found = _either(found, _both(same, self.read(reader, reader + 1)))
            elif same is not False:
                elsewhere.append((reader, same))
        for reader, same in elsewhere if found is not False else []:
            found = _both(found, _not(_both(same, self.read(reader, step))))
        return _both(found, self._exists(tensor))

    def _read_as_another(self, tensor: int, step: int) -> Expr:
        """Where `tensor` is an earlier one under a later name, and that one is read at `step` or later under another name."""
        found: Expr = False
        for source, same in zip(self.items[tensor].inputs, self.same[tensor], strict=True) if tensor >= 0 else ():
            if same is False:
                continue
            others = [
                _both(self.same[reader][place_], self.read(reader, step))
                for reader, place_ in self.readers[source]
                if reader != tensor and self.same[reader][place_] is not False
            ]
            others += [self._read_directly(source, step), self._read_as_another(source, step)]
            found = _either(found, _both(same, _either(source == self.placement.output, *others)))
        return found

    def _exists(self, tensor: int) -> Expr:
        return True if tensor < 0 else self.items[tensor].condition

    def _add(self, item: Placed) -> None:
        """Works out one item from those before it."""
        zero: Expr = isinstance(item.layer, Zero)
        kept: tuple[Expr, ...] = (True,) * len(item.inputs)
        same: tuple[Expr, ...] = (False,) * len(item.inputs)
        if isinstance(item.layer, Activation):
            same = (canonical(equal(item.layer.kind, "identity")),)
        elif isinstance(item.layer, Subsample):
            sizes = zip(item.input_shapes[0].spatial, item.shape.spatial, strict=True)
            same = (_both(*(canonical(equal(old, new)) for old, new in sizes)),)
        elif isinstance(item.layer, Sum):
            zeros = [self.zero[source] if source >= 0 else False for source in item.inputs]
            full = [_both(edge, _not(empty)) for edge, empty in zip(item.edges, zeros, strict=True)]
            zero = _not(_either(*full))
            first, chosen = zero, []  # of nothing but zeros, the first stays
            for edge, some in zip(item.edges, full, strict=True):
                chosen.append(_either(some, _both(first, edge)))
                first = _both(first, _not(edge))
            kept = tuple(chosen)
            same = tuple(_both(one, *(_not(other) for number, other in enumerate(kept) if number != at)) for at, one in enumerate(kept))
        same = tuple(_both(item.condition, one) for one in same)
        self.zero.append(zero)
        self.kept.append(kept)
        self.same.append(same)
        self.runs.append(_both(item.condition, *(_not(one) for one in same)))


# operators that can write over their input, or only read it in another order
IN_PLACE = frozenset(
    [
        "batch_norm",
        "relu",
        "relu6",
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "silu",
        "gelu",
        "sigmoid",
        "tanh",
        "leaky_relu",
        "elu",
        "prelu",
        "dropout",
        "flatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "squeeze",
        "unsqueeze",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "getitem",
        "contiguous",
        "alias",
        "clone",
        "detach",
        "return",
    ]
)


def _writes_over(layer: Layer) -> bool:
    return isinstance(layer, (BatchNorm, Activation, Dropout, Flatten)) or (isinstance(layer, Operation) and layer.kind in IN_PLACE)


def _added(factors: Sequence[Factor]) -> Factor:
    """The sum of `factors`, as one table over all their decisions."""
    sizes = {name: length for factor in factors for name, length in zip(factor.scope, factor.table.shape, strict=True)}
    names = list(sizes)
    total = np.zeros(list(sizes.values()), dtype=np.int64)
    for factor in factors:
        order = sorted(range(len(factor.scope)), key=lambda axis: names.index(factor.scope[axis]))
        total += factor.table.transpose(order).reshape([sizes[name] if name in factor.scope else 1 for name in names])
    return Factor(tuple(names), total)


@lru_cache(maxsize=10_000)
def _both(*conditions: Expr) -> Expr:
    return _small(both(*dict.fromkeys(conditions)))


@lru_cache(maxsize=10_000)
def _either(*conditions: Expr) -> Expr:
    return _small(either(*dict.fromkeys(conditions)))


@lru_cache(maxsize=10_000)
def _not(condition: Expr) -> Expr:
    return _small(opposite(condition))


def _small(condition: Expr) -> Expr:
    decisions = refs(condition)
    if (entries := prod(len(ref.options) for ref in decisions)) > LARGEST_CONDITION:
        listed = ", ".join(f"{ref.name} ({len(ref.options)})" for ref in decisions)
        raise CostError(
            f"which tensors are held at once depends on {len(decisions)} choices, {entries:,} combinations where at most "
            f"{LARGEST_CONDITION:,} are looked at: {listed}; tie some of them by a name, or give them fewer options"
        )
    return canonical(condition)
