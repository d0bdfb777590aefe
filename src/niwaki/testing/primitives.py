"""PRIMITIVES and BLOCKS: one small searchable network for every primitive layer and every container, which every reader must understand."""

from __future__ import annotations

from collections.abc import Mapping

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
from niwaki.space.choice import Choice, choose
from niwaki.space.size import in_channels, round8

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
