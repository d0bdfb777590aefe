"""PRIMITIVES and BLOCKS: one small searchable network for every primitive layer and every container, which every reader must understand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from niwaki.net.axes import Run, axis
from niwaki.net.block import conv_bn_act, depthwise, maybe, mbconv
from niwaki.net.control import Add, Chain, Concat, Graph, Match, Network, Node, OneOf, Repeat, Residual
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
from niwaki.net.operation import In, Operation, Weight
from niwaki.space.choice import Choice, choose
from niwaki.space.size import Expr, in_channels, round8

SHAPE = (3, 8, 8)


def _network(*layers: Layer, shape: tuple[int, ...] = SHAPE) -> Network:
    """`layers` behind a searched width, before a classifier of 5 classes."""
    return Network(
        Chain(
            conv_bn_act(Choice((4, 8, 16)), 3, activation="hswish", name="stem"),
            Chain(*layers, name="body"),
            conv_bn_act(Choice((4, 6)), 1, name="end"),
            GlobalPool(),
            Flatten(),
            Linear(5),
        ),
        shape,
    )


def _double(channels: int) -> object:
    """A module the library knows nothing about: a fixed convolution with bias."""
    from torch import nn  # the tests' own module; nothing of niwaki's descriptions needs torch

    return nn.Conv2d(channels, 2 * channels, 3, padding=1)


def _owned(name: str, out: Expr, into: Expr, *, kernel: int = 1, map_: int = 1, bias: bool = False, groups: Expr = 1) -> Operation:
    """A convolution of a model of somebody's own, with padding that keeps the map; `into`: channels of each group."""
    runs = (axis(out), axis(into), axis(kernel), axis(kernel))
    arguments = (In(0), Weight(f"{name}.weight", runs), Weight(f"{name}.bias", (axis(out),)) if bias else None)
    same = ((1, 1), (kernel // 2, kernel // 2), (1, 1), groups)
    shape = (axis(out), axis(map_), axis(map_))
    return Operation("aten.conv2d.default", arguments + same, shape=shape, macs=((out, into, (kernel * map_) ** 2),))


def _owned_norm(name: str, out: Expr, map_: int) -> Operation:
    weights = [Weight(f"{name}.{key}", (axis(out),)) for key in ("weight", "bias")]
    weights += [Weight(f"{name}.running_{key}", (axis(out),), "buffer") for key in ("mean", "var")]
    batches = Weight(f"{name}.num_batches_tracked", (), "buffer", "int64")
    arguments = (In(0), *weights, False, 0.1, 1e-5, False)
    return Operation("aten.batch_norm.default", arguments, (("num_batches_tracked", batches),), (axis(out), axis(map_), axis(map_)))


def owned_network() -> Network:
    """A residual model with squeeze-excite, a concatenation and a layer used twice, as it is when it was read from somebody's PyTorch."""
    width, other, hidden, last = (
        Choice(o, f"/{n}") for o, n in (((4, 6, 8), "width"), ((3, 6), "other"), ((2, 4), "hidden"), ((5, 9), "last"))
    )

    def op(target: str, *arguments: object, shape: Sequence[Expr | tuple[Run, ...]], macs: tuple = ()) -> Operation:
        return Operation(target, arguments, shape=tuple(size if isinstance(size, tuple) else axis(size) for size in shape), macs=macs)

    image = (width, 8, 8)
    nodes: dict[str, Node] = {
        "stem.conv": Node(_owned("stem.0", width, 3, kernel=3, map_=8)),
        "stem.bn": Node(_owned_norm("stem.1", width, 8), ("stem.conv",)),
        "stem.act": Node(op("aten.relu.default", In(0), shape=image), ("stem.bn",)),
        "block.dw": Node(_owned("block.dw", width, 1, kernel=3, map_=8, groups=width), ("stem.act",)),
        "block.bn": Node(_owned_norm("block.bn", width, 8), ("block.dw",)),
        "block.act": Node(op("aten.hardswish.default", In(0), shape=image), ("block.bn",)),
        "block.mix": Node(_owned("mix", width, width, map_=8), ("block.act",)),
        "block.again": Node(_owned("mix", width, width, map_=8), ("block.mix",)),
        "add": Node(op("aten.add.Tensor", In(0), In(1), shape=image), ("stem.act", "block.again")),
        "se.pool": Node(op("aten.adaptive_avg_pool2d.default", In(0), (1, 1), shape=(width, 1, 1)), ("add",)),
        "se.reduce": Node(_owned("se.reduce", hidden, width, bias=True), ("se.pool",)),
        "se.act": Node(op("aten.sigmoid.default", In(0), shape=(hidden, 1, 1)), ("se.reduce",)),
        "se.expand": Node(_owned("se.expand", width, hidden, bias=True), ("se.act",)),
        "se.gate": Node(op("aten.hardsigmoid.default", In(0), shape=(width, 1, 1)), ("se.expand",)),
        "se.mul": Node(op("aten.mul.Tensor", In(0), In(1), shape=image), ("add", "se.gate")),
        "side": Node(_owned("side", other, width, kernel=3, map_=8, bias=True), ("se.mul",)),
        "cat": Node(op("aten.cat.default", (In(0), In(1)), 1, shape=(axis(other, width), 8, 8)), ("side", "se.mul")),
        "drop": Node(op("aten.dropout.default", In(0), 0.0, False, shape=(axis(other, width), 8, 8)), ("cat",)),
        "pool": Node(op("aten.max_pool2d.default", In(0), (4, 4), (4, 4), shape=(axis(other, width), 2, 2)), ("drop",)),
        "batch": Node(Operation("aten.sym_size.int", (In(0), 0), shape=None), ("pool",)),
        "flat": Node(
            op("aten.view.default", In(0), (In(1), 4 * (other + width)), shape=((Run(other, 4), Run(width, 4)),)), ("pool", "batch")
        ),
    }
    matrix = (axis(last), (Run(other, 4), Run(width, 4)))
    fc = op(
        "aten.linear.default",
        In(0),
        Weight("fc.weight", matrix),
        Weight("fc.bias", (axis(last),)),
        shape=(last,),
        macs=((last, 4, other + width),),
    )
    scale = Weight("scale", (axis(last),), fill=0.5)
    out = Weight("out.weight", (axis(5), axis(last)))
    nodes |= {
        "fc": Node(fc, ("flat",)),
        "scale": Node(op("aten.mul.Tensor", In(0), scale, shape=(last,)), ("fc",)),
        "act": Node(op("aten.gelu.default", In(0), shape=(last,)), ("scale",)),
        "out": Node(op("aten.linear.default", In(0), out, None, shape=(5,), macs=((last, 5),)), ("act",)),
    }
    return Network(Graph(tuple(nodes.items())), SHAPE)


PRIMITIVES: Mapping[type[Layer], Network] = {
    Conv: _network(
        Conv(Choice((4, 8)), Choice((1, 3, 5))),
        Conv(Choice((6, 8)), 3, 2, bias=True),
        Conv(8, 3, dilation=2, groups=2),
        Conv(Choice((4, 8)), groups=4),
    ),
    Linear: Network(
        Chain(Linear(Choice((6, 12))), Activation("sigmoid"), Linear(Choice((4, 8))), BatchNorm(), Activation(), Linear(5)), (7,)
    ),
    Pick: Network(Chain(Concat(Pick(0, 3), Pick(4, 1), Linear(Choice((2, 4)))), Linear(Choice((4, 8))), Activation(), Linear(5)), (6,)),
    Embed: Network(
        Chain(
            Concat(
                Pick(0, 2),
                Embed((3, 5, 2), Choice((1, 2, 4), "width"), first=2),
                Embed((6, 9), Choice((1, 3), "curves"), first=5, between=True),
                name="columns",
            ),
            Linear(Choice((4, 8))),
            BatchNorm(),
            Activation(),
            Linear(5),
        ),
        (7,),
    ),
    BatchNorm: _network(
        BatchNorm(), Activation(), Conv(Choice((4, 8))), BatchNorm(), BatchNorm(), Activation("sigmoid"), Conv(6), BatchNorm(eps=0.1)
    ),
    Activation: _network(
        Activation("tanh"), Conv(Choice((4, 8))), Activation(Choice(("relu", "hswish", "sigmoid", "identity"))), Activation("gelu")
    ),
    Pool: _network(Pool("max", 3, 2, 1), BatchNorm(), Pool("avg", 3, 1, 1)),
    GlobalPool: Network(
        Chain(Conv(Choice((4, 8))), BatchNorm(), GlobalPool(), Conv(Choice((3, 5)), 1, bias=True), Activation(), Flatten(), Linear(5)),
        SHAPE,
    ),
    SqueezeExcite: _network(
        SqueezeExcite(), Conv(Choice((8, 16)), 1), BatchNorm(), SqueezeExcite(hidden=Choice((2, 4, 8)), activation="hswish", gate="sigmoid")
    ),
    Subsample: Network(
        Chain(Subsample(Choice((5, 6, 8), "/resolution")), conv_bn_act(Choice((4, 8)), 3, stride=2), GlobalPool(), Flatten(), Linear(5)),
        SHAPE,
    ),
    Interleave: _network(Subsample(Choice((4, 8))), conv_bn_act(Choice((4, 8)), 3), Interleave(8), Conv(4)),
    Flatten: Network(Chain(Conv(Choice((4, 8)), 3, 4), BatchNorm(), Activation(), Flatten(), Linear(5)), SHAPE),
    ChannelShuffle: _network(
        ChannelShuffle(2), Conv(Choice((6, 12)), 1), BatchNorm(), Activation(), ChannelShuffle(3), Conv(8), ChannelShuffle(4)
    ),
    Dropout: _network(Dropout(0.0), Conv(Choice((4, 8))), BatchNorm(), Dropout(0.0)),
    Zero: _network(Residual(OneOf(Conv(in_channels, 3), Zero(), name="or_nothing"))),
    Identity: _network(OneOf(Identity(), depthwise(3), name="skip")),
    Opaque: _network(
        Conv(6),
        Opaque(
            "niwaki.testing.primitives:_double", (("channels", 6),), channels=12, macs=6 * 12 * 9 * 64, params=6 * 12 * 9 + 12, make=_double
        ),
    ),
    Operation: owned_network(),
    Sum: _network(Add(conv_bn_act(Choice((6, 8), "w"), 1), Conv(Choice((6, 8), "w"), 3))),
    Cat: _network(
        Concat(conv_bn_act(Choice((2, 6)), 1), Conv(Choice((4, 8)), 3), name="cat"),
        depthwise(3),
        BatchNorm(),
        Activation("hswish"),
        SqueezeExcite(),
    ),
}

BLOCKS: Mapping[str, Network] = {
    "inverted residual": _network(
        mbconv(
            Choice((8, 16)),
            Choice((3, 5)),
            expand=Choice((1, 2, 3)),
            activation=Choice(("relu", "hswish"), "act"),
            squeeze_excite=maybe(SqueezeExcite(), name="se"),
        )
    ),
    "inverted residual with stride": _network(mbconv(Choice((8, 12)), 3, expand=3, stride=2), mbconv(16, 3, expand=1, groups=2)),
    "repeat with free widths": _network(Repeat(mbconv(Choice((4, 8, 16)), expand=2, name="block"), Choice((0, 1, 2, 3), "depth"))),
    "repeat with a tied width": _network(
        Chain(conv_bn_act(Choice((4, 8), "w")), Repeat(Residual(conv_bn_act(Choice((4, 8), "w")), "always"), Choice((0, 2))), name="stage")
    ),
    "choice among layers": _network(
        OneOf(Match(8, name="skip"), mbconv(8, 3, expand=2, name="mb"), conv_bn_act(8, 3, name="conv"), name="op")
    ),
    "choice among layers of different widths": _network(
        OneOf(conv_bn_act(Choice((4, 8)), name="a"), Conv(12, 1, name="b"), Identity(name="c"), name="op")
    ),
    "nested choices": _network(
        OneOf(
            Chain(OneOf(Conv(Choice((4, 8))), Pool("avg", 3, 1, 1), name="inner"), BatchNorm(), name="a"),
            Repeat(Conv(Choice((4, 6))), Choice((1, 2)), name="b"),
        )
    ),
    "residual with projection": _network(Residual(Chain(Conv(Choice((4, 8)), 3, 2), BatchNorm()), when="project")),
    "match": _network(Match(Choice((4, 8, 16)))),
    "dense connections": _network(
        Graph(
            (
                ("a", Node(conv_bn_act(Choice((2, 4))))),
                ("b", Node(conv_bn_act(Choice((2, 4))), ("input", "a"), "concat")),
                ("c", Node(conv_bn_act(Choice((4, 8))), ("input", "a", "b"), "concat")),
                ("d", Node(Conv(Choice((4, 8)), 1), ("c",))),
            )
        )
    ),
    "several of": _network(*(Conv(size) for size in choose(2, (4, 6, 8), name="two")), Conv(round8(1.5 * in_channels))),
    "kernel that decides the size of the map": _network(
        Conv(4, Choice((3, 5)), stride=2, padding=1), BatchNorm(), Activation(), GlobalPool()
    ),
    "kernel and resolution": Network(
        Chain(
            Subsample(Choice((6, 8))),
            Conv(Choice((4, 6)), Choice((3, 5)), padding=1),
            Conv(4, Choice((1, 3)), padding=0),
            GlobalPool(),
            Flatten(),
            Linear(5),
        ),
        SHAPE,
    ),
    "resolution inside": _network(
        Residual(Chain(Subsample(Choice((2, 4, 8))), conv_bn_act(in_channels, 3), Interleave(8))),
        Subsample(Choice((4, 8), "late")),
        Conv(8),
        SqueezeExcite(),
    ),
}
