"""BigNAS (Yu et al., ECCV 2020, arXiv 2003.11142): its space, in both readings of the kernel size, and one of a size to be trained in minutes.

Stem, seven stages of inverted residuals with squeeze-excite and swish, a 1x1 convolution, pool and linear layer. A stage has one width and
one depth, the first layers of it; where a stage has 3 and 5 for its kernels, the table leaves open whether all its layers share one. The
reproduction (xfey/pytorch-BigNAS) has it so, which counts 235,929,600 members; one for each layer counts 7.6e11, near the "more than 1e12" that
the paper is quoted with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Add, Chain, Network, OneOf, Repeat
from niwaki.net.layer import Conv, Identity, Layer, Pool, SqueezeExcite, Subsample
from niwaki.space.choice import Choice, SpaceError
from niwaki.space.size import Expr, equal, in_channels, op

RESOLUTIONS = (192, 224, 288, 320)
STEM, HEAD = (32, 40), (1280, 1408)
SIZE = 235_929_600  # members, with a kernel size for each stage
SIZE_PER_LAYER = 761_807_241_216  # with one for each layer
DROPOUT = 0.2
# published name -> (million multiply-adds, ImageNet top-1); which members they are was not found
PUBLISHED = {"bignas-s": (242, 76.5), "bignas-m": (418, 78.9), "bignas-l": (586, 79.5), "bignas-xl": (1040, 80.9)}


@dataclass(frozen=True)
class Stage:
    widths: tuple[int, ...]
    depths: tuple[int, ...]
    kernels: tuple[int, ...]
    expand: int
    stride: int


STAGES = (
    Stage((16, 24), (1, 2), (3,), 1, 1),
    Stage((24, 32), (2, 3), (3,), 6, 2),
    Stage((40, 48), (2, 3), (3, 5), 6, 2),
    Stage((80, 88), (2, 3, 4), (3, 5), 6, 2),
    Stage((112, 120, 128), (2, 3, 4, 5, 6), (3, 5), 6, 1),
    Stage((192, 200, 208, 216), (2, 3, 4, 5, 6), (3, 5), 6, 2),
    Stage((320, 352), (1, 2), (3, 5), 6, 1),
)
SMALL_STAGES = (
    Stage((16, 24, 32), (1, 2, 3), (3, 5), 1, 1),
    Stage((16, 24, 32), (1, 2, 3), (3, 5), 3, 2),
    Stage((16, 24, 32), (1, 2, 3), (3, 5), 3, 2),
)


def bignas(input_shape: tuple[int, ...] = (3, 320, 320), classes: int = 1000, *, kernels: str = "stage", shortcuts: bool = True) -> Network:
    """The published space, for images of `input_shape` and the published resolutions that are no larger.

    kernels: "stage" or "layer", what shares a kernel size. shortcuts: also around the first layer of a stage, by 2 x 2 average pooling and, where
    widths differ, a 1x1 convolution without BatchNorm, as in the reproduction; False: where input and output are alike only. The squeeze-excite is
    a quarter as wide as the layer's input (EfficientNet).
    """
    resolutions = tuple(size for size in RESOLUTIONS if size <= input_shape[1]) or (input_shape[1],)
    return _network(tuple(input_shape), classes, STEM, STAGES, HEAD, resolutions, kernels, shortcuts)


def bignas_per_layer(input_shape: tuple[int, ...] = (3, 320, 320), classes: int = 1000) -> Network:
    """The published space with a kernel size for each layer."""
    return bignas(input_shape, classes, kernels="layer")


def bignas_small(input_shape: tuple[int, ...] = (1, 28, 28), classes: int = 10) -> Network:
    """5,832 members of three stages with widths of 16 to 32, depths of 1 to 3 and kernels of 3 and 5, for small images: at 28 x 28 0.40 to 3.20
    million multiply-adds. A map of odd size has no average of 2 x 2 that is as large as the halved one, so that there are no such shortcuts."""
    return _network(tuple(input_shape), classes, (16,), SMALL_STAGES, (96,), (), "stage", False)


def _network(
    input_shape: tuple[int, ...],
    classes: int,
    stem: Sequence[int],
    stages: Sequence[Stage],
    head: Sequence[int],
    resolutions: Sequence[int],
    kernels: str,
    shortcuts: bool,
) -> Network:
    if kernels not in ("stage", "layer"):
        raise SpaceError(f"kernels={kernels!r}: what shares a kernel size is a 'stage' or a 'layer'")
    body: list[Layer] = [
        *([Subsample(_choice(resolutions, "/resolution"), name="input")] if len(resolutions) > 1 else []),
        conv_bn_act(_choice(stem, "/stem.width"), 3, stride=2, activation="swish", name="stem"),
        *(_stage(at, stage, kernels, shortcuts) for at, stage in enumerate(stages)),
        conv_bn_act(_choice(head, "/head.width"), 1, activation="swish", name="features"),
    ]
    return Network(Chain(*body, classifier(classes, dropout=DROPOUT)), input_shape)


def _choice(options: Sequence[int], name: str) -> Expr:
    return options[0] if len(options) == 1 else Choice(tuple(options), name)


def _stage(at: int, stage: Stage, kernels: str, shortcuts: bool) -> Chain:
    width, depth = _choice(stage.widths, f"/stage{at}.width"), Choice(stage.depths, f"/stage{at}.depth")
    name = f"/stage{at}.kernel" if kernels == "stage" else "kernel"
    first = _layer(stage, width, name, stage.stride, "inverted" if shortcuts else "first", residual=False)
    if shortcuts:
        # widths are tied: where they agree, nothing stands between
        match = OneOf(Conv(width, 1, bias=True, name="conv"), Identity(name="same"), by=op("int", equal(in_channels, width)), name="match")
        first = Add(first, Chain(*([Pool("avg", 2, 2, name="pool")] if stage.stride == 2 else []), match, name="shortcut"), name="first")
    return Chain(first, Repeat(_layer(stage, width, name, 1, "block", residual=True), depth - 1), name=f"stage{at}")


def _layer(stage: Stage, width: Expr, kernel: str, stride: int, name: str, *, residual: bool) -> Layer:
    squeeze = SqueezeExcite(op("int", 0.25 / stage.expand * in_channels + 1e-6), activation="swish", gate="sigmoid", name="se")
    return mbconv(
        width, _choice(stage.kernels, kernel), expand=stage.expand, stride=stride, activation="swish", squeeze_excite=squeeze, residual=residual,
        name=name,
    )  # fmt: skip
