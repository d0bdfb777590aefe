"""Blocks: chains of primitives that published networks are made of. Each is a function that returns a description."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from niwaki.net.control import Chain, Concat, OneOf, Residual
from niwaki.net.layer import (
    Activation,
    BatchNorm,
    ChannelShuffle,
    Conv,
    Dropout,
    Embed,
    Flatten,
    GlobalPool,
    Identity,
    Layer,
    Linear,
    Pick,
    SqueezeExcite,
)
from niwaki.net.tree import called
from niwaki.space.choice import Choice
from niwaki.space.size import Expr, Symbol, in_channels, op, round8, round_to


@dataclass(frozen=True)
class Columns:
    """What a row of a table is to a network, a flat vector: first `numbers` features as they are, then a code for each of `curves`, then a
    code for each of `categories`: how many rows its table has (see `Embed`). Curves are columns of numbers, whose codes lie between rows."""

    numbers: int = 0
    curves: tuple[int, ...] = ()
    categories: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return self.numbers + len(self.curves) + len(self.categories)


def encoder(columns: Columns, *, curves: Expr, categories: Expr, name: str | None = "columns") -> list[Layer]:
    """The layer, if one is needed, that turns a row into features. curves, categories: how many of each such column, at most."""
    parts: list[Layer] = []
    if columns.numbers:
        parts.append(Pick(0, columns.numbers, name="numbers"))
    if columns.curves:
        parts.append(Embed(columns.curves, curves, columns.numbers, between=True, name="curves"))
    if columns.categories:
        parts.append(Embed(columns.categories, categories, columns.numbers + len(columns.curves), name="categories"))
    if len(parts) == 1:
        return [] if columns.numbers else parts
    return [Concat(*parts, name=name)]


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


def shared_kernel(make: Callable[[Expr], Layer], kernel_size: Expr, *, name: str | None = None) -> Layer:
    """`make(kernel_size)`: where the size is a choice, one kernel that is cropped (once-for-all, BigNAS)."""
    return called(make(kernel_size), name)


def separate_kernels(make: Callable[[Expr], Layer], kernel_size: Expr, *, name: str | None = None) -> Layer:
    """`make(size)` for each option of the choice `kernel_size`, each with its own weights (TuNAS); the decision is that of `shared_kernel`."""
    if not isinstance(kernel_size, Choice):
        return called(make(kernel_size), name)
    sizes = kernel_size.options
    return OneOf(*(called(make(size), f"k{size}") for size in sizes), by=op("position", kernel_size, sizes), name=name)


def depthwise_bn(kernel_size: Expr = 3, stride: int = 1, *, name: str | None = None) -> Chain:
    """A depthwise convolution and BatchNorm."""
    return Chain(depthwise(kernel_size, stride, name="conv"), BatchNorm(name="bn"), name=name)


def mbconv(
    out_channels: Expr,
    kernel_size: Expr | Layer = 3,
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

    kernel_size: of the depthwise convolution, or a layer that stands for it and its BatchNorm, of that stride (see `separate_kernels`).
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
    if isinstance(kernel_size, Layer):
        layers.append(kernel_size)
    else:
        layers += [depthwise(kernel_size, stride, name="dw"), BatchNorm(name="dw_bn")]
    layers.append(Activation(activation, name="dw_act"))
    if squeeze_excite is not False:
        layers.append(SqueezeExcite(name="se") if squeeze_excite is True else squeeze_excite)
    layers.append(Conv(out_channels, 1, groups=groups, name="project"))
    if groups > 1:
        layers.append(ChannelShuffle(groups, name="shuffle"))
    layers.append(BatchNorm(name="project_bn"))
    if residual and stride == 1:
        return Residual(Chain(*layers), name=name)
    return Chain(*layers, name=name)


def fused_mbconv(
    out_channels: Expr,
    kernel_size: Expr | Layer = 3,
    *,
    expand: Expr = 4,
    stride: int = 1,
    activation: Expr = "relu",
    squeeze_excite: Layer | bool = False,
    residual: bool = True,
    name: str | None = None,
) -> Layer:
    """Fused inverted residual (MobileDets): a convolution to round8(expand * in_channels), squeeze-excite, linear 1x1 projection.

    One convolution stands for expansion and depthwise convolution of `mbconv`; the arguments are those.
    """
    layers: list[Layer] = []
    if isinstance(kernel_size, Layer):
        layers.append(kernel_size)
    else:
        layers += [Conv(round8(expand * in_channels), kernel_size, stride, name="conv"), BatchNorm(name="bn")]
    layers.append(Activation(activation, name="act"))
    if squeeze_excite is not False:
        layers.append(SqueezeExcite(name="se") if squeeze_excite is True else squeeze_excite)
    layers += [Conv(out_channels, 1, name="project"), BatchNorm(name="project_bn")]
    return Residual(Chain(*layers), name=name) if residual and stride == 1 else Chain(*layers, name=name)


def tucker(
    out_channels: Expr,
    kernel_size: Expr = 3,
    *,
    in_ratio: Expr = 0.25,
    out_ratio: Expr = 0.75,
    stride: int = 1,
    activation: Expr = "relu",
    residual: bool = True,
    name: str | None = None,
) -> Layer:
    """Tucker convolution (MobileDets): 1x1 to in_ratio of the input, a convolution to out_ratio of the output, linear 1x1 to the output.

    Both ranks are rounded to multiples of 8.
    """
    layers: list[Layer] = [
        conv_bn_act(round_to(in_ratio * in_channels), 1, activation=activation, name="reduce"),
        conv_bn_act(round_to(out_ratio * out_channels), kernel_size, stride=stride, activation=activation, name="core"),
        conv_bn_act(out_channels, 1, activation=None, name="project"),
    ]
    return Residual(Chain(*layers), name=name) if residual and stride == 1 else Chain(*layers, name=name)


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
