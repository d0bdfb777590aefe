"""The one elaboration: a description becomes a flat list of placed primitives.

Control flow, names, conditions and shapes are worked out here and nowhere else; every reader is a fold over the list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import singledispatchmethod
from math import prod
from typing import Any, TypeVar

from niwaki.net.axes import Axis, size_of
from niwaki.net.canon import Canon
from niwaki.net.control import Add, Chain, Concat, Graph, Input, Match, Network, OneOf, Repeat, Residual, Several
from niwaki.net.layer import (
    ACTIVATIONS,
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
from niwaki.net.operation import Operation, Weight, mapped, placed_weights, resized
from niwaki.space.choice import Choice, SpaceError
from niwaki.space.size import (
    Expr,
    InChannels,
    Ref,
    Symbol,
    Table,
    both,
    canonical,
    either,
    equal,
    largest,
    leaves,
    minimum,
    narrow,
    op,
    opposite,
    scope,
    smallest,
    substitute,
    taken,
    values,
)
from niwaki.space.space import Decision, Space

CONTAINERS = (Several, OneOf, Repeat, Residual, Graph)
T = TypeVar("T")
INPUT = -1  # index of the network's input among the tensors; of several inputs, -1, -2 and so on
LARGEST_TABLE = 1 << 20  # combinations of options over which one size or condition may range


class ShapeError(SpaceError):
    """Layers whose shapes do not fit together."""


@dataclass(frozen=True)
class Shape:
    """Shape of one tensor without the batch: channels (or features), then height and width, all expressions of decisions.

    channels: one size, or several if searched widths were concatenated; each is a run of its own in the channel dimension, so that a
    smaller width is a prefix of its run.
    axes: of what an `Operation` gives, the runs of every dimension. Its first dimension stands in `channels` and the others in `spatial` all
    the same, whatever they mean; these can depend on widths then, which makes no other map of them.
    """

    channels: tuple[Expr, ...]
    spatial: tuple[Expr, ...] = ()
    axes: tuple[Axis, ...] | None = None

    @staticmethod
    def of(axes: tuple[Axis, ...] | None) -> Shape:
        """The shape of what an operation gives: a tensor of these axes, or (None) no tensor."""
        if not axes:
            return Shape((), (), axes)
        return Shape(tuple(run.size for run in axes[0]), tuple(map(size_of, axes[1:])), axes)

    @property
    def resolution(self) -> tuple[Expr, ...]:
        """Height and width where a searched one makes another map, of which there is one for each option."""
        return self.spatial if self.axes is None else ()

    @property
    def elements(self) -> tuple[Expr, ...]:
        """Sizes whose product is the number of elements; a sum of runs is left as a sum."""
        return () if self.axes == () else (_sum(self.channels), *self.spatial)

    @property
    def width(self) -> Expr:
        return canonical(_sum(self.channels))

    def __str__(self) -> str:
        return " x ".join(show(size) for size in (self.width, *self.spatial))


@dataclass(frozen=True)
class Placed:
    """One primitive in its place.

    layer: with every size an int or a `Table` of decisions. inputs: indices into the list, `INPUT` for the network's own.
    edges: for each input, the condition under which it takes part (only `Sum` has any but True). condition: when the primitive exists.
    input_shapes: the inputs' shapes wherever the primitive exists, which can be simpler than the shapes they have in general.
    """

    path: str
    layer: Layer
    inputs: tuple[int, ...]
    edges: tuple[Expr, ...]
    condition: Expr
    input_shapes: tuple[Shape, ...]
    shape: Shape


@dataclass(frozen=True)
class Placement:
    """A network, elaborated: its primitives in order of execution, each after those it reads, and its decisions."""

    items: tuple[Placed, ...]
    output: int
    input_shape: tuple[int, ...]
    decisions: tuple[Decision, ...]
    reads: tuple[Input, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", self.reads or (Input("x", self.input_shape),))

    @property
    def entering(self) -> tuple[int, ...]:
        """The indices of the network's inputs."""
        return tuple(range(INPUT, INPUT - len(self.reads), -1))

    def shape_of(self, tensor: int) -> Shape:
        """The shape of what item `tensor` gives, or of the network's input of that number."""
        return self.items[tensor].shape if tensor >= 0 else input_shape(self.reads, tensor)


def input_shape(reads: tuple[Input, ...], tensor: int) -> Shape:
    """The shape of the input with the index `tensor`, which is negative."""
    shape = reads[INPUT - tensor].shape
    return Shape(shape[:1], shape[1:])


def place(network: Network) -> Placement:
    """The flat form of `network`, worked out once. Raises SpaceError or ShapeError that name the layer at fault."""
    return kept(network, "_placement", _place)


def space_of(network: Network) -> Space:
    """The decisions of `network`, in reading order."""
    return kept(network, "_space", _space_of)


def _space_of(network: Network) -> Space:
    placement = place(network)
    return Space(placement.decisions, Canon(placement))


def _place(network: Network) -> Placement:
    placer = _Placer(network.reads)
    output = placer.walk(network.body, INPUT, Where(path="", block="", repeats=(), condition=True))
    return Placement(tuple(placer.items), output, network.input_shape, placer.decisions_in_order(), network.reads)


def kept(network: Network, key: str, compute: Callable[[Network], T]) -> T:
    """`compute(network)`, kept on the network itself: which choice is which goes by identity, so equal networks need not share the result."""
    if key not in network.__dict__:
        network.__dict__[key] = compute(network)
    return network.__dict__[key]


def fix(placement: Placement, choices: Mapping[str, Any]) -> Placement:
    """The placement in which the decisions named in `choices` have taken the options given there; the others stay open.

    What cannot exist any more is gone, with joins that are left with a single tensor; indices are those of the new, shorter list. With an
    option for every active decision of an architecture, every size is a number and nothing is conditional.
    """
    active = {decision.name for decision in placement.decisions}
    if unknown := sorted(choices.keys() - active):
        raise SpaceError(f"the network has no decision {unknown[0]!r}; it has {', '.join(sorted(active)) or 'none'}")
    open_decisions = tuple(
        Decision(decision.name, decision.options, condition)
        for decision in placement.decisions
        if decision.name not in choices and (condition := narrow(decision.condition, choices)) is not False
    )
    still_open = {decision.name for decision in open_decisions}
    # a decision that cannot become active any more is never looked at where something exists, but may still stand in a table: any option does
    assignment = {d.name: choices.get(d.name, d.options[0]) for d in placement.decisions if d.name not in still_open}

    cache: dict[Expr, Any] = {}

    def settle(expr: Expr) -> Any:
        if not isinstance(expr, Symbol):
            return expr
        if expr not in cache:
            cache[expr] = narrow(expr, assignment)
        return cache[expr]

    def shape(of: Shape) -> Shape:
        if of.axes is not None:
            return Shape.of(mapped(of.axes, lambda expr: substitute(expr, settle)))  # a sum of many sizes is no table over all of them
        return Shape(tuple(map(settle, of.channels)), tuple(map(settle, of.spatial)))

    items: list[Placed] = []
    now = {source: source for source in placement.entering}  # old index -> new index
    for at, item in enumerate(placement.items):
        condition = settle(item.condition)
        if condition is False:
            continue
        edges = [(source, settle(edge), seen) for source, edge, seen in zip(item.inputs, item.edges, item.input_shapes, strict=True)]
        edges = [(now[source], edge, seen) for source, edge, seen in edges if edge is not False]
        if isinstance(item.layer, Sum):
            # adding zeros changes nothing
            edges = [edge for edge in edges if edge[0] < 0 or not isinstance(items[edge[0]].layer, Zero)] or edges[:1]
        if isinstance(item.layer, (Sum, Cat)) and len(edges) == 1 and edges[0][1] is True:
            now[at] = edges[0][0]
            continue
        layer = resized(item.layer, settle)
        out, seen_shapes = shape(item.shape), tuple(shape(seen) for _, _, seen in edges)
        vanishes = (isinstance(layer, Activation) and layer.kind == "identity") or (isinstance(layer, Subsample) and out == seen_shapes[0])
        if vanishes:
            now[at] = edges[0][0]
            continue
        now[at] = len(items)
        items.append(Placed(item.path, layer, tuple(e[0] for e in edges), tuple(e[1] for e in edges), condition, seen_shapes, out))
    found = Placement(tuple(items), now[placement.output], placement.input_shape, open_decisions, placement.reads)
    return _without_unused_zeros(found)


def forks(placement: Placement) -> frozenset[str]:
    """The decisions on which depends whether a layer exists, or how large a map is: another option makes another structure."""
    return frozenset(name for item in placement.items for name in scope(item.condition, *item.shape.resolution))


def show(size: Expr) -> str:
    """A size as people read it: `32`, or `16|24|32 (by stage1.width)`."""
    if not isinstance(size, Symbol):
        return str(size)
    options = sorted(set(values(size)))
    text = "|".join(map(str, options)) if len(options) <= 8 else f"{options[0]}..{options[-1]}"
    return f"{text} (by {', '.join(scope(size))})"


@dataclass(frozen=True)
class Where:
    """Where the walk stands. block: the nearest named block; repeats: the path with the numbers of repeats left out."""

    path: str
    block: str
    repeats: tuple[str, ...]
    condition: Expr

    def inside(self, layer: Layer, label: str, *, repeat: int | None = None) -> Where:
        part = label if repeat is None else f"{label}{repeat}"
        path = ".".join(filter(None, (self.path, part)))
        is_block = layer.name is not None and isinstance(layer, CONTAINERS)
        return Where(path, path if is_block else self.block, (*self.repeats, label), self.condition)

    def given(self, condition: Expr) -> Where:
        return replace(self, condition=_canonical(both(self.condition, condition), self.path, "its condition"))

    def at(self, field: str) -> str:
        return f"{self.path}.{field}" if self.path else field

    def decision(self, choice: Choice, field: str) -> str:
        """The name of the decision that `choice` is when it stands in `field` of the layer here; the field "" is the layer itself."""
        if choice.name is None:
            return self.at(field) if field else self.path or "which"
        if choice.name.startswith("/"):
            return choice.name[1:]
        return f"{self.block}.{choice.name}" if self.block else choice.name


@dataclass
class _Open:
    """A decision while the walk goes on."""

    options: tuple
    conditions: list[Expr]
    place: str  # where it was first met


class _Placer:
    def __init__(self, reads: tuple[Input, ...]) -> None:
        self.reads = reads
        self.items: list[Placed] = []
        self.weights: dict[str, tuple[Weight, str]] = {}  # of operations, and where each stood first
        self.decisions: dict[str, _Open] = {}
        # id of an unnamed choice -> where it stands, and the choice itself, so that its id stays its own
        self.unnamed: dict[int, tuple[tuple[str, ...], str, Choice | Layer]] = {}
        self.paths: set[str] = set()

    def shape_of(self, tensor: int) -> Shape:
        return self.items[tensor].shape if tensor >= 0 else input_shape(self.reads, tensor)

    def seen(self, tensor: int, where: Where) -> Shape:
        """The shape of `tensor` as it is wherever `where` exists: in the third repeat, the second is known to have been there."""
        if tensor >= 0 and isinstance(self.items[tensor].layer, Sum):
            item = self.items[tensor]
            possible = [
                source for source, edge in zip(item.inputs, item.edges, strict=True) if _together(where.condition, edge, where.path)
            ]
            if len(possible) == 1:
                return self.seen(possible[0], where)
        return self.shape_of(tensor)

    def decisions_in_order(self) -> tuple[Decision, ...]:
        return tuple(Decision(name, found.options, _canonical(either(*found.conditions), found.place, "the condition of its choice"))
                     for name, found in self.decisions.items())  # fmt: skip

    # --- decisions ---------------------------------------------------------------------------------------------------

    def decide(self, choice: Choice, where: Where, field: str, *, owner: Layer | None = None) -> Ref:
        """The decision that `choice` is when it stands in `field` of the layer at `where`.

        owner: the layer whose own decision it is; the decision is then called like the layer, and the layer stands for the choice.
        """
        name = where.decision(choice, field if owner is None else "")
        if choice.name is None:
            held = choice if owner is None else owner
            at = (*where.repeats, field)
            first = self.unnamed.setdefault(id(held), (at, name, held))
            if first[0] != at:
                raise SpaceError(
                    f"the same unnamed choice {choice.options} stands at {first[1]} and at {name}; name it to tie it, copy it to free it"
                )
        found = self.decisions.setdefault(name, _Open(choice.options, [], where.at(field)))
        if found.options != choice.options:
            raise SpaceError(
                f"the choice {name!r} has the options {found.options} at {found.place} and {choice.options} at {where.at(field)}; one name has one list of options"
            )
        if where.condition not in found.conditions:
            found.conditions.append(where.condition)
        return Ref(name, choice.options)

    def resolve(self, expr: Expr, where: Where, field: str, channels: Expr) -> Expr:
        """`expr` in terms of decisions and of the input's `channels`: a number or a Table."""
        if not isinstance(expr, Symbol):
            return expr
        stands = standing(expr, field)

        def leaf(symbol: Symbol) -> Expr:
            if isinstance(symbol, Choice):
                return self.decide(symbol, where, stands.get(id(symbol), field))
            return channels if isinstance(symbol, InChannels) else symbol

        return _canonical(substitute(expr, leaf), where.path, f"its {field}")

    def count(self, expr: Expr, where: Where, field: str, channels: Expr, *, least: int = 1) -> Expr:
        """`expr` resolved to whole numbers >= `least`; anything else is an error that names the layer."""
        resolved = self.resolve(expr, where, field, channels)
        numbers = values(resolved) if isinstance(resolved, Symbol) else (resolved,)
        for number in numbers:
            if isinstance(number, bool) or not isinstance(number, (int, float)) or number != int(number) or number < least:
                raise ShapeError(f"{where.path}: {field} = {number!r}; it must be a whole number of at least {least}")
        if any(isinstance(number, float) for number in numbers):
            return _canonical(op("int", resolved), where.path, field)
        return resolved

    # --- primitives --------------------------------------------------------------------------------------------------

    def put(self, layer: Layer, inputs: tuple[int, ...], where: Where, shape: Shape, edges: tuple[Expr, ...] | None = None) -> int:
        path, copy = where.path or type(layer).__name__.lower(), 2
        while path in self.paths:
            path, copy = f"{where.path}_{copy}", copy + 1
        self.paths.add(path)
        for size in shape.resolution:
            if smallest(size) < 1:
                raise ShapeError(
                    f"{path}: {type(layer).__name__} leaves nothing of its input {self.shape_of(inputs[0])}: its output would be {shape}"
                )
        edges = (True,) * len(inputs) if edges is None else edges
        seen = tuple(self.seen(source, where) for source in inputs)
        self.items.append(Placed(path, replace(layer, name=None), inputs, edges, where.condition, seen, shape))
        return len(self.items) - 1

    @singledispatchmethod
    def walk(self, layer: Layer, x: int, where: Where) -> int:
        """Places `layer` with the tensor `x` as its input; returns the tensor it gives."""
        raise TypeError(f"place() has no rule for {type(layer).__name__}; it belongs in this file")

    def image(self, layer: Layer, x: int, where: Where) -> Shape:
        shape = self.seen(x, where)
        if len(shape.spatial) != 2:
            raise ShapeError(f"{where.path}: {type(layer).__name__} needs a map of channels x height x width; it is given {shape}")
        return shape

    @walk.register
    def _(self, layer: Conv, x: int, where: Where) -> int:
        shape = self.image(layer, x, where)
        width = shape.width
        out = self.count(layer.out_channels, where, "out_channels", width)
        kernel = self.count(layer.kernel_size, where, "kernel_size", width)
        groups = self.count(layer.groups, where, "groups", width)
        for size, label in ((width, "input"), (out, "output")):
            if _canonical(size - groups * (size // groups), where.path, "its groups") != 0:
                raise ShapeError(f"{where.path}: {label} channels {show(size)} are not always a multiple of the groups {show(groups)}")
        if layer.padding is None and any(k % 2 == 0 for k in (values(kernel) if isinstance(kernel, Symbol) else (kernel,))):
            raise ShapeError(
                f"{where.path}: kernel size {show(kernel)} has an even value; only odd kernels keep the size, so state `padding`"
            )
        padding = layer.dilation * (kernel - 1) // 2 if layer.padding is None else layer.padding
        spatial = tuple(
            _canonical((size + 2 * padding - layer.dilation * (kernel - 1) - 1) // layer.stride + 1, where.path, "its output size")
            for size in shape.spatial
        )
        depthwise = groups == width == out
        placed = replace(layer, out_channels=out, kernel_size=kernel, groups=groups)
        return self.put(placed, (x,), where, Shape(shape.channels if depthwise else (out,), spatial))

    @walk.register
    def _(self, layer: Linear, x: int, where: Where) -> int:
        shape = self.seen(x, where)
        if shape.spatial:
            raise ShapeError(f"{where.path}: Linear needs a flat vector; it is given {shape}; put Flatten() before it")
        out = self.count(layer.out_features, where, "out_features", shape.width)
        return self.put(replace(layer, out_features=out), (x,), where, Shape((out,)))

    def columns(self, layer: Pick | Embed, x: int, count: int, where: Where) -> None:
        """Refuses what has no flat vector of fixed length, or a shorter one than `layer` reads."""
        shape = self.seen(x, where)
        if shape.spatial or isinstance(shape.width, Symbol) or shape.width < layer.first + count:
            raise ShapeError(
                f"{where.path}: {type(layer).__name__} reads the features {layer.first} to {layer.first + count - 1} of a flat vector of "
                f"fixed length; it is given {shape}"
            )

    @walk.register
    def _(self, layer: Pick, x: int, where: Where) -> int:
        self.columns(layer, x, layer.count, where)
        return self.put(layer, (x,), where, Shape((layer.count,)))

    @walk.register
    def _(self, layer: Embed, x: int, where: Where) -> int:
        self.columns(layer, x, len(layer.rows), where)
        width = self.count(layer.width, where, "width", self.seen(x, where).width)
        made = _sum(tuple(count * minimum(width, most) for most, count in Counter(layer.most).items()))
        return self.put(replace(layer, width=width), (x,), where, Shape((_canonical(made, where.path, "its features"),)))

    @walk.register(BatchNorm)
    @walk.register(Dropout)
    @walk.register(Zero)
    def _(self, layer: Layer, x: int, where: Where) -> int:
        return self.put(layer, (x,), where, self.seen(x, where))

    @walk.register
    def _(self, layer: Activation, x: int, where: Where) -> int:
        kind = self.resolve(layer.kind, where, "kind", None)
        for one in values(kind) if isinstance(kind, Symbol) else (kind,):
            if one not in ACTIVATIONS:
                raise SpaceError(f"{where.path}: {one!r} is no activation; there are {', '.join(ACTIVATIONS)}")
        return x if kind == "identity" else self.put(replace(layer, kind=kind), (x,), where, self.seen(x, where))

    @walk.register
    def _(self, layer: Pool, x: int, where: Where) -> int:
        shape = self.image(layer, x, where)
        if layer.kind not in ("max", "avg"):
            raise SpaceError(f"{where.path}: Pool(kind={layer.kind!r}); a pool is 'max' or 'avg'")
        spatial = tuple(
            _canonical((size + 2 * layer.padding - layer.kernel_size) // layer.stride + 1, where.path, "its output size")
            for size in shape.spatial
        )
        return self.put(layer, (x,), where, Shape(shape.channels, spatial))

    @walk.register
    def _(self, layer: GlobalPool, x: int, where: Where) -> int:
        return self.put(layer, (x,), where, Shape(self.image(layer, x, where).channels, (1, 1)))

    @walk.register
    def _(self, layer: SqueezeExcite, x: int, where: Where) -> int:
        shape = self.image(layer, x, where)
        for kind in (layer.activation, layer.gate):
            if kind not in ACTIVATIONS:
                raise SpaceError(f"{where.path}: {kind!r} is no activation; there are {', '.join(ACTIVATIONS)}")
        hidden = self.count(layer.hidden, where, "hidden", shape.width)
        return self.put(replace(layer, hidden=hidden), (x,), where, shape)

    @walk.register(Subsample)
    @walk.register(Interleave)
    def _(self, layer: Subsample | Interleave, x: int, where: Where) -> int:
        shape = self.image(layer, x, where)
        size = self.count(layer.size, where, "size", shape.width)
        height, width = shape.spatial
        spatial = (size, _canonical(size if height == width else op("max", 1, size * width // height), where.path, "its output size"))
        down = isinstance(layer, Subsample)
        if smallest(_canonical((height - size) if down else (size - height), where.path, "its size")) < 0:
            raise ShapeError(
                f"{where.path}: {type(layer).__name__} to {show(size)} of a map {shape}; it only makes maps {'smaller' if down else 'larger'}"
            )
        return x if down and size == height else self.put(replace(layer, size=size), (x,), where, Shape(shape.channels, spatial))

    @walk.register
    def _(self, layer: Flatten, x: int, where: Where) -> int:
        shape = self.seen(x, where)
        area = _product(shape.spatial)
        if isinstance(area, Symbol):
            raise ShapeError(f"{where.path}: Flatten of {shape}, whose height and width are searched; put GlobalPool() before it")
        return self.put(layer, (x,), where, Shape(tuple(_canonical(size * area, where.path, "its features") for size in shape.channels)))

    @walk.register
    def _(self, layer: ChannelShuffle, x: int, where: Where) -> int:
        shape = self.image(layer, x, where)
        if _canonical(shape.width - layer.groups * (shape.width // layer.groups), where.path, "its channels") != 0:
            raise ShapeError(f"{where.path}: {show(shape.width)} channels are not always a multiple of {layer.groups} groups")
        if len(shape.channels) > 1:
            raise ShapeError(
                f"{where.path}: ChannelShuffle of a concatenation of searched widths ({shape}) has no fixed channel order; put a convolution between"
            )
        return self.put(layer, (x,), where, shape)

    @walk.register
    def _(self, layer: Identity, x: int, where: Where) -> int:
        return x

    @walk.register
    def _(self, layer: Opaque, x: int, where: Where) -> int:
        shape = self.seen(x, where)
        if any(isinstance(size, Symbol) for size in shape.channels):
            raise ShapeError(f"{where.path}: the opaque layer {layer.factory} needs a fixed number of channels; it is given {shape}")
        channels = (layer.channels,) if layer.channels is not None else shape.channels
        spatial = tuple(_canonical((size - 1) // layer.stride + 1, where.path, "its output size") for size in shape.spatial)
        return self.put(layer, (x,), where, Shape(channels, spatial))

    @walk.register
    def _(self, layer: Operation, x: int, where: Where) -> int:
        return self.operation(layer, (x,), where)

    def operation(self, layer: Operation, inputs: tuple[int, ...], where: Where) -> int:
        """Places an operation, which has several inputs and states its output's shape itself."""
        if layer.reads > len(inputs):
            raise ShapeError(f"{where.path}: {layer.target} reads {layer.reads} tensors; it is given {len(inputs)}")

        def leaf(symbol: Symbol) -> Expr:
            if isinstance(symbol, Choice):
                return self.decide(symbol, where, "size")
            if isinstance(symbol, InChannels):
                raise SpaceError(f"{where.path}: an operation states its sizes itself; in_channels means nothing in it")
            return symbol

        placed = placed_weights(resized(layer, leaf), lambda weight: self.known(weight, where))
        return self.put(placed, inputs, where, Shape.of(placed.shape))

    def known(self, weight: Weight, where: Where) -> Weight:
        """`weight` as it is placed here: the first time it is met, or again."""
        first, place_ = self.weights.setdefault(weight.key, (weight, where.path))
        if first is weight:
            return weight
        if first.axes != weight.axes:
            raise ShapeError(f"the weight {weight.name!r} has other axes at {where.path} than at {place_}; one tensor is cut in one way")
        return replace(weight, again=True)

    # --- containers --------------------------------------------------------------------------------------------------

    @walk.register
    def _(self, layer: Chain, x: int, where: Where) -> int:
        for child, label in zip(layer.layers, labels(layer), strict=True):
            x = self.walk(child, x, where.inside(child, label))
        return x

    @walk.register
    def _(self, layer: Concat, x: int, where: Where) -> int:
        outputs = [self.walk(child, x, where.inside(child, label)) for child, label in zip(layer.layers, labels(layer), strict=True)]
        return self.concat(tuple(outputs), where)

    @walk.register
    def _(self, layer: Add, x: int, where: Where) -> int:
        outputs = [self.walk(child, x, where.inside(child, label)) for child, label in zip(layer.layers, labels(layer), strict=True)]
        return self.add(tuple(outputs), where)

    @walk.register
    def _(self, layer: OneOf, x: int, where: Where) -> int:
        names = layer.labels
        if layer.by is None or isinstance(layer.by, Choice):
            ref = self.decide(Choice(names) if layer.by is None else layer.by, where, "by", owner=layer if layer.by is None else None)
            if ref.options != names:
                raise SpaceError(f"{where.path}: the choice {ref.name!r} has the options {ref.options}; the branches are {names}")
            index: Expr = op("position", ref, names)
            conditions = [taken(ref, (name,)) for name in names]
        else:
            index = self.count(layer.by, where, "by", self.seen(x, where).width, least=0)
            if largest(index) >= len(names):
                raise SpaceError(f"{where.path}: `by` can be {largest(index)}; there are {len(names)} branches, 0 to {len(names) - 1}")
            conditions = [equal(index, at) for at in range(len(names))]
        inner = [
            where.inside(branch, label).given(condition) for branch, label, condition in zip(layer.branches, names, conditions, strict=True)
        ]
        possible = [at for at, here in enumerate(inner) if here.condition is not False]  # an outer condition may leave out some
        if len(possible) < len(names):
            index = op("select", index, *(possible.index(at) if at in possible else 0 for at in range(len(names))))
        outputs = tuple(self.walk(layer.branches[at], x, inner[at]) for at in possible)
        conditions = [conditions[at] for at in possible]
        return self.select(outputs, tuple(conditions), index, where.inside(Identity(), "select"))

    @walk.register
    def _(self, layer: Repeat, x: int, where: Where) -> int:
        times = self.count(layer.times, where, "times", self.seen(x, where).width, least=0)
        label = layer.body.name or "block"
        always = smallest(times)
        for at in range(largest(times)):
            more = _canonical(op(">", times, at), where.path, "its depth")
            inner = where.inside(layer.body, label, repeat=at)
            inner = inner if at < always else inner.given(more)
            if inner.condition is False:
                break
            y = self.walk(layer.body, x, inner)
            if at < always or y == x:
                x = y
            else:
                x = self.select((x, y), (opposite(more), more), op("int", more), where.inside(Identity(), f"after{at}"))
        return x

    @walk.register
    def _(self, layer: Residual, x: int, where: Where) -> int:
        y = self.walk(layer.body, x, where.inside(layer.body, layer.body.name) if layer.body.name else where)
        before, after = self.seen(x, where), self.seen(y, where)
        if y == x:
            return x
        fits = before.spatial == after.spatial
        same = _canonical(equal(before.width, after.width), where.path, "its widths") if fits else False
        runs = len(before.channels) > 1 or len(after.channels) > 1
        if runs and same is not False and before.channels != after.channels:
            raise ShapeError(
                f"{where.path}: a residual over concatenated searched widths ({before} to {after}) needs the same widths in the same order; "
                f"end its body with a convolution"
            )
        if layer.when == "always" and same is not True:
            raise ShapeError(
                f"{where.path}: the residual's body turns {before} into {after}; with when='always' they must be equal for every choice"
            )
        if layer.when == "project" and same is not True:
            x = self.match(
                x, after.width, same, where.inside(Identity(), "shortcut"), stride=_stride(before, after, where), activation=False
            )
            return self.add((y, x), where.inside(Identity(), "add"))
        if same is False:
            return y
        return self.put(Sum(), (y, x), where.inside(Identity(), "add"), after, (True, same))

    @walk.register
    def _(self, layer: Match, x: int, where: Where) -> int:
        width = self.seen(x, where).width
        target = self.count(layer.channels, where, "channels", width)
        return self.match(x, target, _canonical(equal(width, target), where.path, "its widths"), where, stride=1, activation=True)

    @walk.register
    def _(self, layer: Graph, x: int, where: Where) -> int:
        if len(layer.inputs) > 1 and (x != INPUT or len(layer.inputs) != len(self.reads)):
            raise SpaceError(f"{where.path or 'the body'}: a graph of the inputs {layer.inputs} is the body of a network of as many inputs")
        known = {name: x if at == 0 else INPUT - at for at, name in enumerate(layer.inputs)}
        for label, node in layer.nodes:
            inner = where.inside(node.layer, label)
            inputs = tuple(known[source] for source in node.inputs)
            if isinstance(node.layer, Operation):
                known[label] = self.operation(node.layer, inputs, inner)
                continue
            joined = (
                inputs[0]
                if len(inputs) == 1
                else (self.add if node.join == "add" else self.concat)(inputs, inner.inside(Identity(), node.join))
            )
            known[label] = self.walk(node.layer, joined, inner)
        return known[layer.output or layer.nodes[-1][0]]

    @walk.register
    def _(self, layer: Several, x: int, where: Where) -> int:
        raise SpaceError(f"{where.path}: use Chain, Concat or Add")

    # --- joins -------------------------------------------------------------------------------------------------------

    def match(self, x: int, target: Expr, same: Expr, where: Where, *, stride: int, activation: bool) -> int:
        """`x` where `same` holds, else conv1x1-BN(-ReLU) of it to `target` channels."""
        if same is True:
            return x
        other = where.given(opposite(same))
        if other.condition is False:
            return x
        y = self.walk(Conv(target, 1, stride), x, other.inside(Identity(), "conv"))
        y = self.walk(BatchNorm(), y, other.inside(Identity(), "bn"))
        if activation:
            y = self.walk(Activation("relu"), y, other.inside(Identity(), "act"))
        if same is False:
            return y
        shape = Shape((target,), self.shape_of(y).spatial)
        return self.put(Sum(), (x, y), where.inside(Identity(), "select"), shape, (same, opposite(same)))

    def add(self, tensors: tuple[int, ...], where: Where) -> int:
        first, *others = (self.shape_of(tensor) for tensor in tensors)
        for other in others:
            if other != first:
                raise ShapeError(f"{where.path}: cannot add maps of the shapes {first} and {other}")
        return tensors[0] if len(tensors) == 1 else self.put(Sum(), tensors, where, first)

    def concat(self, tensors: tuple[int, ...], where: Where) -> int:
        shapes = [self.shape_of(tensor) for tensor in tensors]
        for other in shapes[1:]:
            if other.spatial != shapes[0].spatial:
                raise ShapeError(f"{where.path}: cannot concatenate maps of the shapes {shapes[0]} and {other}")
        channels: list[Expr] = []
        for size in (size for shape in shapes for size in shape.channels):
            # after a run of fixed width the next one starts at a fixed place, so both are one run whose prefixes are the smaller ones
            if channels and not isinstance(channels[-1], Symbol):
                channels[-1] = _canonical(channels[-1] + size, where.path, "its channels")
            else:
                channels.append(size)
        if len(tensors) == 1:
            return tensors[0]
        return self.put(Cat(), tensors, where.inside(Identity(), "cat"), Shape(tuple(channels), shapes[0].spatial))

    def select(self, tensors: tuple[int, ...], conditions: tuple[Expr, ...], index: Expr, where: Where) -> int:
        """The one of `tensors` whose condition holds; `index` is its position."""
        shapes = [self.shape_of(tensor) for tensor in tensors]
        if all(tensor == tensors[0] for tensor in tensors):
            return tensors[0]
        for other in shapes[1:]:
            if other.spatial != shapes[0].spatial:
                raise ShapeError(
                    f"{where.path}: one option gives {shapes[0]}, another {other}; options may differ in channels, not in rank, height or width"
                )
            if other.channels != shapes[0].channels and (len(other.channels) > 1 or len(shapes[0].channels) > 1):
                raise ShapeError(
                    f"{where.path}: one option gives {shapes[0]}, another {other}; concatenated searched widths cannot be an option beside others; end the option with a convolution"
                )
        if all(shape.channels == shapes[0].channels for shape in shapes):
            channels = shapes[0].channels
        else:
            channels = (_canonical(op("select", index, *(shape.width for shape in shapes)), where.path, "its channels"),)
        conditions = tuple(_canonical(condition, where.path, "its condition") for condition in conditions)
        return self.put(Sum(), tensors, where, Shape(channels, shapes[0].spatial), conditions)


def standing(expr: Expr, field: str) -> dict[int, str]:
    """For each unnamed choice in `expr`, by its id, what it is called in a layer's `field`: `field`, or `field2` and so on after the first."""
    unnamed = {id(leaf): None for leaf in leaves(expr) if isinstance(leaf, Choice) and leaf.name is None}
    return {key: f"{field}{number + 1}" if number else field for number, key in enumerate(unnamed)}


def labels(container: Several) -> list[str]:
    """The path components of a container's children: their names, or kind and number among the children of that kind.

    An unnamed Repeat of a named body adds none: its repeats are called `block0`, `block1` within the container.
    """
    names = [child.name or type(child).__name__.lower() for child in container.layers]
    bodies = [child.body.name if isinstance(child, Repeat) and not child.name else None for child in container.layers]
    seen: dict[str, int] = {}
    found = []
    for child, name, body in zip(container.layers, names, bodies, strict=True):
        number = seen[name] = seen.get(name, -1) + 1
        if body and bodies.count(body) == 1 and not any(other.removeprefix(body).isdigit() for other in names if other.startswith(body)):
            found.append("")
        else:
            found.append(name if child.name and names.count(name) == 1 else f"{name}{number}")
    return found


def _canonical(expr: Expr, path: str, what: str) -> Expr:
    """`canonical(expr)`, or an error that names the layer if it would range over too many combinations of options."""
    if not isinstance(expr, Symbol) or isinstance(expr, Table):
        return expr
    decisions = {
        leaf.name: len(leaf.options) for found in leaves(expr) for leaf in getattr(found, "refs", (found,)) if isinstance(leaf, Ref)
    }
    if (size := prod(decisions.values())) > LARGEST_TABLE:
        listed = ", ".join(f"{name} ({options} options)" for name, options in decisions.items())
        raise SpaceError(
            f"{path}: {what} depends on {listed}: {size:,} combinations, more than {LARGEST_TABLE:,}; tie some of these choices, or put a layer of its own width between"
        )
    return canonical(expr)


def _together(first: Expr, second: Expr, path: str) -> bool:
    """Whether two conditions can hold at once."""
    if set(scope(first)).isdisjoint(scope(second)):
        return first is not False and second is not False
    return _canonical(both(first, second), path, "its condition") is not False


def _sum(sizes: tuple[Expr, ...]) -> Expr:
    total: Expr = 0
    for size in sizes:
        total = total + size
    return total


def _product(sizes: tuple[Expr, ...]) -> Expr:
    total: Expr = 1
    for size in sizes:
        total = total * size
    return canonical(total)


def _stride(before: Shape, after: Shape, where: Where) -> int:
    """The stride that turns the height and width of `before` into those of `after`."""
    if not before.spatial:
        return 1
    for stride in range(1, largest(before.spatial[0]) + 1):
        if all(canonical((size - 1) // stride + 1) == out for size, out in zip(before.spatial, after.spatial, strict=True)):
            return stride
    raise ShapeError(f"{where.path}: no stride of a 1x1 convolution turns {before} into {after}")


def _without_unused_zeros(placement: Placement) -> Placement:
    used = {source for item in placement.items for source in item.inputs} | {placement.output}
    unused = {at for at, item in enumerate(placement.items) if isinstance(item.layer, Zero) and at not in used}
    if not unused:
        return placement
    now = {source: source for source in placement.entering}
    kept = [at for at in range(len(placement.items)) if at not in unused]
    now.update({old: new for new, old in enumerate(kept)})
    items = tuple(replace(placement.items[at], inputs=tuple(now[source] for source in placement.items[at].inputs)) for at in kept)
    return replace(placement, items=items, output=now[placement.output])
