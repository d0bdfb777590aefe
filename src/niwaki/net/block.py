"""Blocks: chains of primitives that published networks are made of. Each is a function that returns a description."""

from __future__ import annotations

from niwaki.net.control import Chain, OneOf, Residual
from niwaki.net.layer import (
    Activation,
    BatchNorm,
    ChannelShuffle,
    Conv,
    Dropout,
    Flatten,
    GlobalPool,
    Identity,
    Layer,
    Linear,
    SqueezeExcite,
)
from niwaki.net.tree import called
from niwaki.space.size import Expr, Symbol, in_channels, round8


def conv_bn_act(
    out_channels: Expr,
    kernel_size: Expr = 3,
    *,
    stride: int = 1,
    groups: Expr = 1,
    activation: Expr | None = "relu",
    name: str | None = None,
) -> Chain:
    """Convolution, BatchNorm and, unless `activation` is None, an activation."""
    layers: list[Layer] = [Conv(out_channels, kernel_size, stride, groups, name="conv"), BatchNorm(name="bn")]
    return Chain(*layers, *([] if activation is None else [Activation(activation, name="act")]), name=name)


def depthwise(kernel_size: Expr = 3, stride: int = 1, *, name: str | None = None) -> Conv:
    """A depthwise convolution: one filter per channel."""
    return Conv(in_channels, kernel_size, stride, in_channels, name=name)


def mbconv(
    out_channels: Expr,
    kernel_size: Expr = 3,
    *,
    expand: Expr = 6,
    stride: int = 1,
    activation: Expr = "relu",
    squeeze_excite: Layer | bool = False,
    groups: int = 1,
    residual: bool = True,
    name: str | None = None,
) -> Layer:
    """Inverted residual (MobileNetV2): 1x1 to round8(expand * in_channels), depthwise, squeeze-excite, linear 1x1 projection.

    expand = 1 has no expansion convolution; with a choice there is one for every option. squeeze_excite: True, False, or a layer to stand
    there (a OneOf, for a choice). groups: of the projection, followed by a channel shuffle if above 1 (FBNet's k3_e1_g2). The shortcut
    exists iff the stride is 1 and input and output channels are equal.
    """
    layers: list[Layer] = []
    if isinstance(expand, Symbol) or expand != 1:
        layers += [
            Conv(round8(expand * in_channels), 1, name="expand"),
            BatchNorm(name="expand_bn"),
            Activation(activation, name="expand_act"),
        ]
    layers += [depthwise(kernel_size, stride, name="dw"), BatchNorm(name="dw_bn"), Activation(activation, name="dw_act")]
    if squeeze_excite is not False:
        layers.append(SqueezeExcite(name="se") if squeeze_excite is True else squeeze_excite)
    layers.append(Conv(out_channels, 1, groups=groups, name="project"))
    if groups > 1:
        layers.append(ChannelShuffle(groups, name="shuffle"))
    layers.append(BatchNorm(name="project_bn"))
    if residual and stride == 1:
        return Residual(Chain(*layers), name=name)
    return Chain(*layers, name=name)


def maybe(layer: Layer, *, name: str | None = None) -> OneOf:
    """`layer` or nothing (the identity), as a decision with the options "no" and "yes"."""
    return OneOf(Identity(name="no"), called(layer, "yes"), name=name)


def classifier(classes: int, *, hidden: Expr | None = None, dropout: float = 0.0, name: str | None = "head") -> Chain:
    """Global average pool, a hidden linear layer of that width with h-swish (MobileNetV3, Figure 5), dropout and a linear layer."""
    layers: list[Layer] = [GlobalPool(name="pool"), Flatten(name="flatten")]
    if hidden is not None:
        layers += [Linear(hidden, name="hidden"), Activation("hswish", name="act")]
    if dropout:
        layers.append(Dropout(dropout, name="dropout"))
    return Chain(*layers, Linear(classes, name="linear"), name=name)
