"""niwaki's own family of image networks, for images of 8 to 224 pixels.

A stem, then stages, then a head. A stage has one width and one activation; each of its blocks is a convolution or an inverted residual,
with a kernel size, an expansion and a squeeze-excite of its own; a stage has as many blocks as its depth says. What is searched within a
block is masked in the supernet and costs nothing there; only the two block types and the input resolutions do.

Convolutions stand beside inverted residuals because they win where maps are small and channels few: below about a million multiply-adds,
or early in a network (EfficientNetV2 found the same at scale).
"""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Network, OneOf, Repeat, Residual
from niwaki.net.layer import Identity, Layer, SqueezeExcite, Subsample
from niwaki.net.tree import called
from niwaki.space.choice import Choice, SpaceError

SMALLEST, LARGEST = 8, 224  # pixels
TINY = 16
_STEPS = (4, 6, 8, 10, 12, 16, 20, 24)  # widths of a stage, in units of the stage


@dataclass(frozen=True)
class _Plan:
    """The frame for images of up to `size` pixels. The stem halves the map or not; every stage but the first halves it.

    units: the widths of stage i are units[i] times `_STEPS`. depths: blocks of each stage; the first may have none beside the stem.
    kernels: of an inverted residual, as far as they are no larger than the map it reads; beyond that a kernel sees padding alone.
    hidden: widths of a linear layer before the last: behind the pool, where it costs next to nothing (MobileNetV3, section 5.1).
    features: widths of a 1x1 convolution before the pool instead, where the network is large enough to pay for one.
    plain_downs: the map is halved by convolutions alone; a depthwise one has next to nothing to see there.
    """

    size: int
    stem_stride: int
    units: tuple[int, ...]
    depths: tuple[tuple[int, ...], ...]
    kernels: tuple[int, ...]
    expansions: tuple[int, ...]
    hidden: tuple[int, ...] = ()
    features: tuple[int, ...] = ()
    plain_downs: bool = False


_PLANS = (
    _Plan(TINY, 1, (1, 2, 4), ((0, 1), (1, 2), (1, 2)), (3, 5), (2, 3, 4), (32, 64, 96, 128), plain_downs=True),
    _Plan(48, 2, (2, 4, 8), ((0, 1, 2), (1, 2, 3), (1, 2, 3)), (3, 5), (2, 3, 4, 6), (64, 128, 192, 256)),
    _Plan(96, 2, (1, 2, 4, 8), ((0, 1, 2), (1, 2, 3), (1, 2, 3), (1, 2, 3)), (3, 5), (2, 3, 4, 6), (64, 128, 192, 256)),
    _Plan(
        224, 2, (1, 2, 3, 5, 8), ((0, 1), (1, 2, 3), (1, 2, 3), (2, 3, 4), (1, 2, 3)), (3, 5, 7), (2, 3, 4, 6), features=(384, 768, 1152)
    ),
)


def mobile(size: int, channels: int = 3, classes: int = 10) -> Network:
    """The family for square images of `size` pixels with `channels` channels."""
    if not SMALLEST <= size <= LARGEST:
        raise SpaceError(f"mobile({size}): the family is made for images of {SMALLEST} to {LARGEST} pixels; resize the images")
    plan = next(plan for plan in _PLANS if size <= plan.size)
    widths = [Choice(tuple(unit * step for step in _STEPS), f"/stage{at}.width") for at, unit in enumerate(plan.units)]
    resolutions = _resolutions(size)
    body: list[Layer] = [
        *([Subsample(Choice(resolutions, "/resolution"), name="input")] if len(resolutions) > 1 else []),
        conv_bn_act(widths[0], 3, stride=plan.stem_stride, activation=_activation(0), name="stem"),
        *(_stage(at, width, size, plan) for at, width in enumerate(widths)),
    ]
    if plan.features:
        body.append(conv_bn_act(Choice(plan.features, "/features.width"), 1, activation="hswish", name="features"))
    hidden = Choice(plan.hidden, "/hidden.width") if plan.hidden else None
    return Network(Chain(*body, classifier(classes, hidden=hidden, dropout=0.2 if plan.features else 0.0)), (channels, size, size))


def _resolutions(size: int) -> tuple[int, ...]:
    """Three quarters of the image, or all of it; large images also five eighths and seven; tiny ones have no pixel to spare. Even numbers."""
    if size <= TINY:
        return (size,)
    eighths = (6, 8) if size <= 96 else (5, 6, 7, 8)
    return tuple(dict.fromkeys(size if part == 8 else 2 * round(size * part / 16) for part in eighths))


def _activation(stage: int) -> str | Choice:
    """ReLU first: h-swish pays in the deeper layers only (MobileNetV3, section 5.2)."""
    return "relu" if stage == 0 else Choice(("relu", "hswish"), f"/stage{stage}.activation")


def _stage(at: int, width: Choice, size: int, plan: _Plan) -> Chain:
    depth = Choice(plan.depths[at], f"/stage{at}.depth")
    pixels = -(-size // (plan.stem_stride * 2**at))  # of the maps that the stage puts out
    if at == 0:
        return Chain(Repeat(_block("block", at, width, 1, pixels, plan), depth), name="stage0")
    down, block = _block("down", at, width, 2, 2 * pixels, plan), _block("block", at, width, 1, pixels, plan)
    return Chain(down, Repeat(block, depth - 1), name=f"stage{at}")


def _block(name: str, stage: int, width: Choice, stride: int, pixels: int, plan: _Plan) -> Layer:
    """One of the block types, reading maps of `pixels` pixels."""
    activation = _activation(stage)
    convolution = Residual(conv_bn_act(width, 3, stride=stride, activation=activation), name="conv")
    if stride > 1 and plan.plain_downs:
        return called(convolution, name)
    kernels = tuple(size for size in plan.kernels if size <= max(pixels, min(plan.kernels)))
    return OneOf(
        convolution,
        mbconv(
            width,
            kernels[0] if len(kernels) == 1 else Choice(kernels, "kernel"),
            expand=Choice(plan.expansions, "expand"),
            stride=stride,
            activation=activation,
            squeeze_excite=OneOf(Identity(name="no"), SqueezeExcite(name="yes"), name="se"),
            name="inverted",
        ),
        name=name,
    )
