"""TuNAS (Bender et al., CVPR 2020, arXiv 2008.06120): its three search spaces, and published networks that lie in them.

Specifications: google-research/tunas, mobile_search_space_v3.py and mobile_model_archive.py. Every layer of a body block but the first
may be skipped; its kernel size, expansion and squeeze-excite exist only where it is not. The quoted sizes (1e21, 1e28, 1e43) count them
even then: that number is `Space.assignments`. `Space.size` does not count them, and `distinct` also counts once what differs only in
which of equal layers are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from niwaki.net.block import classifier, conv_bn_act, depthwise_bn, mbconv, separate_kernels
from niwaki.net.control import Chain, Network, OneOf
from niwaki.net.edit import decode
from niwaki.net.layer import Activation, Conv, GlobalPool, Identity, Layer, SqueezeExcite
from niwaki.net.tree import called
from niwaki.space.choice import Choice, SpaceError, Value
from niwaki.space.size import Expr, in_channels, make_divisible, round_to

KERNELS = (3, 5, 7)
MULTIPLIERS = (0.5, 0.625, 0.75, 1.0, 1.25, 1.5, 2.0)  # of a block's base width
TARGET_MS = {"proxylessnas": 84, "proxylessnas-enlarged": 84, "mobilenetv3-like": 57}  # on the Pixel 1, simulated

Kernels = Callable[..., Layer]  # `separate_kernels`, as published, or `shared_kernel`


@dataclass(frozen=True)
class Frame:
    """What is not searched. strides: of the first layer of each body block. layers: of each body block. activations: of each body block,
    in the MobileNetV3-like space (the two others have ReLU everywhere)."""

    stem_stride: int
    strides: tuple[int, ...]
    layers: int
    activations: tuple[str, ...] = ()


MOBILE = Frame(2, (2, 2, 2, 1, 2), 4, ("relu", "relu", "hswish", "hswish", "hswish"))
SMALL = Frame(1, (2, 1, 2), 3, ("relu", "hswish", "hswish"))  # ours, for images of 8 to 64 pixels

# Base widths: stem, separable convolution, body blocks, last bottleneck, head.
PROXYLESSNAS_WIDTHS = (32, 16, 32, 40, 80, 96, 192, 320, 1280)
ENLARGED_WIDTHS = (16, 16, 16, 32, 64, 128, 256, 512, 1024)
SMALL_WIDTHS = (16, 16, 24, 32, 64, 96, 128)
# Base widths: stem, body blocks, head, features.
MOBILENETV3_WIDTHS = (16, 16, 32, 64, 128, 256, 512, 1024)
SMALL_MOBILENETV3_WIDTHS = (16, 16, 32, 64, 128, 256)

# name: (widths, operators): the kernel of the separable convolution (0 to 2 for 3, 5, 7), then for each bottleneck 3 * (expansion is 6)
# + the kernel's number, and 6 for a skip.
MODELS = {
    "mobilenetv2": ((32, 16, 24, 32, 64, 96, 160, 320, 1280), "0 3366 3336 3333 3336 3336 3"),
    "proxylessnas-mobile": (PROXYLESSNAS_WIDTHS, "0 1066 2011 5111 4111 5522 5"),
}
# Parameters at 1000 classes: torchvision's table, and that of imgclsmob's port of the authors' weights. torchvision's MobileNetV2 has
# ReLU6 where TuNAS has ReLU.
PUBLISHED_PARAMS = {"mobilenetv2": 3_504_872, "proxylessnas-mobile": 4_080_512}


def proxylessnas(
    input_shape: tuple[int, ...] = (3, 224, 224),
    classes: int = 1000,
    *,
    widths: Sequence[int] = PROXYLESSNAS_WIDTHS,
    multipliers: Sequence[float] = (1.0,),
    frame: Frame = MOBILE,
    kernels: Kernels = separate_kernels,
) -> Network:
    """The ProxylessNAS space: kernel 3, 5 or 7 and expansion 3 or 6 of every inverted bottleneck, and which layers are skipped.

    widths: stem, separable convolution, one per body block, last bottleneck, head. multipliers: what each of them may be multiplied by,
    rounded to multiples of 8. kernels: whether kernel sizes have weights of their own or share one that is cropped.
    """
    stem, separable, *blocks, last, head = _searched(
        widths, multipliers, ("stem", "separable", *_stages(frame), "last", "head"), "proxylessnas"
    )

    def layer(width: Expr, stride: int) -> Callable[[str, bool], Layer]:
        return lambda label, first: bottleneck(label, width, stride if first else 1, expand=(3, 6), kernels=kernels, residual=not first)

    body: list[Layer] = [
        conv_bn_act(stem, 3, stride=frame.stem_stride, name="stem"),
        _separable(separable, "separable", kernels),
        *(skippable_block(f"stage{at}", frame.layers, layer(width, frame.strides[at])) for at, width in enumerate(blocks)),
        layer(last, 1)("last", True),
        conv_bn_act(head, 1, name="head_conv"),
        classifier(classes),
    ]
    return Network(Chain(*body), input_shape)


def proxylessnas_enlarged(
    input_shape: tuple[int, ...] = (3, 224, 224),
    classes: int = 1000,
    *,
    widths: Sequence[int] = ENLARGED_WIDTHS,
    frame: Frame = MOBILE,
    kernels: Kernels = separate_kernels,
) -> Network:
    """The ProxylessNAS-Enlarged space: `proxylessnas` with the width of every block searched, from half to twice its base."""
    return proxylessnas(input_shape, classes, widths=widths, multipliers=MULTIPLIERS, frame=frame, kernels=kernels)


def mobilenetv3_like(
    input_shape: tuple[int, ...] = (3, 224, 224),
    classes: int = 1000,
    *,
    widths: Sequence[int] = MOBILENETV3_WIDTHS,
    frame: Frame = MOBILE,
    kernels: Kernels = separate_kernels,
) -> Network:
    """The MobileNetV3-Like space: kernel, expansion 1 to 6 and squeeze-excite of every bottleneck, which are skipped, and all widths.

    widths: stem, one per body block, head, features. An expansion of 1 has its 1x1 convolution, too. Squeeze-excite is a quarter of the
    expanded width wide.
    """
    stem, *blocks, head, features = _searched(widths, MULTIPLIERS, ("stem", *_stages(frame), "head", "features"), "mobilenetv3_like")

    def layer(at: int, width: Expr) -> Callable[[str, bool], Layer]:
        return lambda label, first: bottleneck(
            label,
            width,
            frame.strides[at] if first else 1,
            expand=(1, 2, 3, 4, 5, 6),
            kernels=kernels,
            residual=not first,
            activation=frame.activations[at],
            squeeze_excite=searched_squeeze_excite(label),
        )

    body: list[Layer] = [
        kernels(
            lambda size: conv_bn_act(stem, size, stride=frame.stem_stride, activation="hswish"),
            Choice((3, 5), "/stem.kernel"),
            name="stem",
        ),
        _skippable(_separable(stem, "stem_separable", kernels, residual=True), "stem_separable"),
        *(skippable_block(f"stage{at}", frame.layers, layer(at, width)) for at, width in enumerate(blocks)),
        conv_bn_act(head, 1, activation="hswish", name="head_conv"),
        GlobalPool(name="pool"),
        Conv(features, 1, bias=True, name="features"),
        Activation("hswish", name="features_act"),
        classifier(classes),
    ]
    return Network(Chain(*body), input_shape)


def proxylessnas_small(input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> Network:
    """`proxylessnas` for images of 8 to 64 pixels."""
    return proxylessnas(input_shape, classes, widths=SMALL_WIDTHS, frame=SMALL)


def proxylessnas_enlarged_small(input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> Network:
    """`proxylessnas_enlarged` for images of 8 to 64 pixels."""
    return proxylessnas_enlarged(input_shape, classes, widths=SMALL_WIDTHS, frame=SMALL)


def mobilenetv3_like_small(input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> Network:
    """`mobilenetv3_like` for images of 8 to 64 pixels."""
    return mobilenetv3_like(input_shape, classes, widths=SMALL_MOBILENETV3_WIDTHS, frame=SMALL)


def tunas_model(name: str, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000) -> Network:
    """One of the networks of `MODELS`, without choices."""
    widths, operators = MODELS[name]
    return decode(proxylessnas(input_shape, classes, widths=widths), proxylessnas_choices(operators))


def proxylessnas_choices(operators: str | Sequence[int]) -> dict[str, Value]:
    """The options of `proxylessnas` that TuNAS's list of 22 operator numbers stands for (its order: uncollapsed, layer by layer)."""
    numbers = [int(digit) for digit in operators if digit != " "] if isinstance(operators, str) else list(operators)
    layers = [f"stage{stage}.layer{layer}" for stage in range(len(MOBILE.strides)) for layer in range(MOBILE.layers)] + ["last"]
    if len(numbers) != 1 + len(layers):
        raise SpaceError(f"a genotype of the ProxylessNAS space has {1 + len(layers)} operators, not {len(numbers)}")
    most = [2, *(6 if may_be_skipped(layer) else 5 for layer in layers)]
    for label, number, largest in zip(("separable", *layers), numbers, most, strict=True):
        if not 0 <= number <= largest:
            raise SpaceError(f"operator {number} of {label!r} does not exist; there are 0 to {largest}")
    found: dict[str, Value] = {"separable.kernel": KERNELS[numbers[0]]}
    for layer, number in zip(layers, numbers[1:], strict=True):
        if may_be_skipped(layer):
            found[layer] = "skip" if number == 6 else "keep"
        if number != 6:
            found |= {f"{layer}.kernel": KERNELS[number % 3], f"{layer}.expand": (3, 6)[number // 3]}
    return found


def is_filters(decision: str) -> bool:
    """Whether TuNAS tags the decision FILTERS (widths and expansions), and not OP (kernels, squeeze-excite, skips): its warm-ups differ."""
    return decision.endswith((".width", ".expand"))


def may_be_skipped(layer: str) -> bool:
    """Whether `layer` ("stage2.layer1") is not the first of its block."""
    return ".layer" in layer and not layer.endswith(".layer0")


def _stages(frame: Frame) -> tuple[str, ...]:
    return tuple(f"stage{at}" for at in range(len(frame.strides)))


def _searched(widths: Sequence[int], multipliers: Sequence[float], labels: Sequence[str], space: str) -> list[Expr]:
    if len(widths) != len(labels):
        raise SpaceError(f"{space}: there are {len(widths)} widths {tuple(widths)}; the frame needs {len(labels)}, of {', '.join(labels)}")
    return [searched_width(label, width, multipliers) for label, width in zip(labels, widths, strict=True)]


def searched_width(label: str, width: int, multipliers: Sequence[float] = MULTIPLIERS, *, base: int = 8) -> Expr:
    """The choice `label.width` among what the multiples of `width` round to; a number where that is one."""
    options = tuple(dict.fromkeys(round_to(width * multiplier, base) for multiplier in sorted(multipliers)))
    return options[0] if len(options) == 1 else Choice(options, f"/{label}.width")


def skippable_block(name: str, layers: int, make: Callable[[str, bool], Layer]) -> Chain:
    """`layers` layers, all but the first of which may be skipped; make: a layer of a label, the first or not."""
    first, *others = (f"{name}.layer{number}" for number in range(layers))
    return Chain(make(first, True), *(_skippable(make(label, False), label.rpartition(".")[2]) for label in others), name=name)


def bottleneck(
    label: str,
    width: Expr,
    stride: int,
    *,
    expand: Sequence[int],
    kernels: Kernels,
    residual: bool,
    sizes: Sequence[int] = KERNELS,
    activation: Expr = "relu",
    squeeze_excite: Layer | bool = False,
) -> Layer:
    """An inverted bottleneck with the choices `label.kernel` and `label.expand`."""
    return mbconv(
        width,
        kernels(lambda size: depthwise_bn(size, stride), Choice(tuple(sizes), f"/{label}.kernel"), name="dw"),
        expand=Choice(tuple(expand), f"/{label}.expand"),
        stride=stride,
        activation=activation,
        squeeze_excite=squeeze_excite,
        residual=residual,
        name=label.rpartition(".")[2],
    )


def searched_squeeze_excite(label: str) -> OneOf:
    """Squeeze-excite or not, the choice `label.se`; a quarter of the expanded width wide."""
    gate = SqueezeExcite(make_divisible(0.25 * in_channels), gate="sigmoid", name="yes")
    return OneOf(Identity(name="no"), gate, by=Choice(("no", "yes"), f"/{label}.se"), name="se")


def _separable(width: Expr, label: str, kernels: Kernels, *, residual: bool = False) -> Layer:
    """Depthwise convolution, BatchNorm, ReLU, 1x1 convolution, BatchNorm."""
    middle = kernels(depthwise_bn, Choice(KERNELS, f"/{label}.kernel"), name="dw")
    return mbconv(width, middle, expand=1, residual=residual, name=label)


def _skippable(layer: Layer, name: str) -> OneOf:
    return OneOf(called(layer, "keep"), Identity(name="skip"), name=name)
