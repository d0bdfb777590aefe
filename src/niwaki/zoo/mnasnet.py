"""MnasNet (Tan et al., CVPR 2019, arXiv 1807.11626): its factorised hierarchical space, its block strings, and MnasNet-A1, B1 and small.

Networks and block strings: tensorflow/tpu, models/official/mnasnet. The space: section 4.1 of the paper and MobileNetV2's table. Of the
paper's A1, the 112 channels of the fifth block are none of the widths that the space has there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Add, Chain, Match, Network, OneOf, Repeat, Residual
from niwaki.net.layer import Identity, Layer, Pool, SqueezeExcite, Zero
from niwaki.net.tree import called
from niwaki.space.choice import Choice, SpaceError
from niwaki.space.size import Expr, in_channels, make_divisible, maximum, op, round_to

# name: (width of the stem, the published block strings)
MODELS = {
    "mnasnet-a1": (
        32,
        """r1_k3_s11_e1_i32_o16_noskip r2_k3_s22_e6_i16_o24 r3_k5_s22_e3_i24_o40_se0.25 r4_k3_s22_e6_i40_o80
        r2_k3_s11_e6_i80_o112_se0.25 r3_k5_s22_e6_i112_o160_se0.25 r1_k3_s11_e6_i160_o320""",
    ),
    "mnasnet-b1": (
        32,
        """r1_k3_s11_e1_i32_o16_noskip r3_k3_s22_e3_i16_o24 r3_k5_s22_e3_i24_o40 r3_k5_s22_e6_i40_o80 r2_k3_s11_e6_i80_o96
        r4_k5_s22_e6_i96_o192 r1_k3_s11_e6_i192_o320_noskip""",
    ),
    "mnasnet-small": (
        8,
        """r1_k3_s11_e1_i16_o8 r1_k3_s22_e3_i8_o16 r2_k3_s22_e6_i16_o16 r4_k5_s22_e6_i16_o32_se0.25
        r3_k3_s11_e6_i32_o32_se0.25 r3_k5_s22_e6_i32_o88_se0.25 r1_k3_s11_e6_i88_o144""",
    ),
}
# Parameters at 1000 classes. Multiply-adds at 224 pixels in millions: the paper's, and by width multiplier, as the README of the release
# states them; by a rule of its own that counts more than convolutions and linear layers, so 1 to 2 % above ours.
PUBLISHED_PARAMS = {"mnasnet-a1": 3_887_038, "mnasnet-b1": 4_383_312}
PAPER_A1_MACS_M = 312
PUBLISHED_A1_MACS_M = {1.4: 591.5, 1.0: 315.2, 0.75: 226.7, 0.5: 105.2, 0.35: 63.2}
# ImageNet top-1 in percent, and milliseconds on the Pixel 1.
PAPER_TOP1_AND_MS = {"mnasnet-a1": (75.2, 78), "mnasnet-b1": (74.5, 77)}

SqueezeExciteOf = Callable[[Expr, float], SqueezeExcite]  # of a layer's input channels and the ratio


def squeeze_excite_of_input(inputs: Expr, ratio: float) -> SqueezeExcite:
    """The hidden width is a share of the channels that enter the whole layer (MnasNet and EfficientNet)."""
    return SqueezeExcite(maximum(1, op("int", ratio * inputs)), gate="sigmoid", name="se")


def squeeze_excite_of_expanded(inputs: Expr, ratio: float) -> SqueezeExcite:
    """The hidden width is a share of the channels that it reads, the expanded ones (MobileNetV3)."""
    return SqueezeExcite(maximum(1, op("int", ratio * in_channels)), gate="sigmoid", name="se")


# --- published networks -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """One block string: `repeats` equal layers, the first of stride `stride` and `inputs` channels; skip: they have a residual where
    `inputs` equal `width` at stride 1."""

    repeats: int
    kernel_size: int
    stride: int
    expand: int
    inputs: int
    width: int
    se_ratio: float | None = None
    skip: bool = True


def decode_block(text: str) -> Block:
    """The block that a string such as `r3_k5_s22_e3_i24_o40_se0.25` or `r1_k3_s11_e1_i32_o16_noskip` means."""
    found = re.fullmatch(r"r(\d+)_k(\d+)_s(\d)(\d)_e(\d+)_i(\d+)_o(\d+)(?:_se([\d.]+))?(_noskip)?", text)
    if found is None:
        raise SpaceError(f"{text!r} is no block; one is r<repeats>_k<kernel>_s<h><w>_e<expand>_i<in>_o<out>[_se<ratio>][_noskip]")
    repeats, kernel_size, high, wide, expand, inputs, width = map(int, found.groups()[:7])
    if high != wide or 0 in (repeats, kernel_size, high, expand, inputs, width):
        raise SpaceError(f"{text!r}: strides are equal in height and width, and every number is at least 1")
    return Block(repeats, kernel_size, high, expand, inputs, width, None if found[8] is None else float(found[8]), found[9] is None)


def encode_block(block: Block) -> str:
    """The string that `decode_block` reads."""
    se = "" if block.se_ratio is None else f"_se{block.se_ratio:g}"
    text = f"r{block.repeats}_k{block.kernel_size}_s{block.stride}{block.stride}_e{block.expand}_i{block.inputs}_o{block.width}"
    return text + se + ("" if block.skip else "_noskip")


def mnasnet_model(
    name: str,
    input_shape: tuple[int, ...] = (3, 224, 224),
    classes: int = 1000,
    *,
    multiplier: float = 1.0,
    squeeze_excite: SqueezeExciteOf = squeeze_excite_of_input,
) -> Network:
    """MnasNet-A1, B1 or small; multiplier: of all widths but the head's, rounded to multiples of 8."""
    stem, text = MODELS[name]
    body: list[Layer] = [conv_bn_act(make_divisible(stem * multiplier), 3, stride=2, name="stem")]
    for at, block in enumerate(map(decode_block, text.split())):
        inputs, width = (make_divisible(channels * multiplier) for channels in (block.inputs, block.width))
        for number in range(block.repeats):
            body.append(
                mbconv(
                    width,
                    block.kernel_size,
                    expand=block.expand,
                    stride=block.stride if number == 0 else 1,
                    squeeze_excite=False if block.se_ratio is None else squeeze_excite(inputs, block.se_ratio),
                    # as written: the first block of MnasNet-small says 16 inputs and reads 8, so it has no residual
                    residual=block.skip and inputs == width,
                    name=f"block{at}_layer{number}",
                )
            )
            inputs = width
    return Network(Chain(*body, conv_bn_act(1280, 1, name="features"), classifier(classes)), input_shape)


# --- the space -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Searched:
    """A block of the space. width, depth: MobileNetV2's, about which they are searched."""

    width: int
    depth: int
    stride: int


@dataclass(frozen=True)
class Fixed:
    """A block that is not searched: one inverted bottleneck of kernel 3, without residual."""

    width: int
    expand: int
    stride: int = 1


OPS, KERNELS, SE_RATIOS, SKIPS = ("conv", "sep", "mb3", "mb6"), (3, 5), (0.0, 0.25), ("pool", "identity", "none")
BLOCKS = (
    Searched(16, 1, 1),
    Searched(24, 2, 2),
    Searched(32, 3, 2),
    Searched(64, 4, 2),
    Searched(96, 3, 1),
    Searched(160, 3, 2),
    Searched(320, 1, 1),
)
# The first and the last block of MobileNetV2 have one layer, and 16 x 0.75 rounds to 16: they have fewer than 432 choices. Without them
# there are five blocks of 432.
FIVE_BLOCKS = (Fixed(16, 1), *BLOCKS[1:6], Fixed(320, 6))
TINY_BLOCKS = (Searched(24, 2, 1), Searched(32, 2, 2), Searched(64, 2, 2))  # ours, for images of 8 to 64 pixels


def mnasnet(
    input_shape: tuple[int, ...] = (3, 224, 224),
    classes: int = 1000,
    *,
    blocks: Sequence[Searched | Fixed] = BLOCKS,
    stem: int = 32,
    stem_stride: int = 2,
    features: int = 1280,
    squeeze_excite: SqueezeExciteOf = squeeze_excite_of_input,
) -> Network:
    """The factorised hierarchical space: each block decides about operator, kernel, squeeze-excite, skip, width and depth of all its layers.

    Widths are 0.75, 1 and 1.25 times MobileNetV2's, rounded to multiples of 8; depths one less, equal and one more, at least 1.
    A pooled skip is a 3x3 average pool of the layer's stride, with a 1x1 convolution where the width changes (ours; the paper only names
    it); an identity is one only where the shape stays the same.
    """
    body: list[Layer] = [conv_bn_act(stem, 3, stride=stem_stride, name="stem")]
    inputs: Expr = stem
    for at, block in enumerate(blocks):
        name = f"block{at}"
        if isinstance(block, Fixed):
            width: Expr = block.width
            body.append(mbconv(width, 3, expand=block.expand, stride=block.stride, residual=False, name=name))
        else:
            width = Choice(tuple(dict.fromkeys(round_to(block.width * part) for part in (0.75, 1.0, 1.25))), f"/{name}.width")
            depth = Choice(tuple(dict.fromkeys(max(1, block.depth + more) for more in (-1, 0, 1))), f"/{name}.depth")
            first = _first(name, width, inputs, block.stride, squeeze_excite)
            body.append(Chain(first, Repeat(_layer(name, width, squeeze_excite), depth - 1), name=name))
        inputs = width
    return Network(Chain(*body, conv_bn_act(features, 1, name="features"), classifier(classes)), input_shape)


def mnasnet_five(input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000) -> Network:
    """`mnasnet` with MobileNetV2's first and last block fixed: the 432^5 architectures (1.5e13) that the paper speaks of."""
    return mnasnet(input_shape, classes, blocks=FIVE_BLOCKS)


def mnasnet_per_layer(input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000, *, layers: int = 3) -> Network:
    """What the paper compares `mnasnet_five` with: `layers` layers in each block, each with all the 432 choices, so 432^(5 layers).

    The paper only counts it (S^(B N)); as it counts, a layer has a depth of its own, too: it stands one to three times.
    """
    return mnasnet(input_shape, classes, blocks=tuple(_per_layer(FIVE_BLOCKS, layers)))


def mnasnet_tiny(input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> Network:
    """`mnasnet` for images of 8 to 64 pixels."""
    return mnasnet(input_shape, classes, blocks=TINY_BLOCKS, stem=16, stem_stride=1, features=128)


def _per_layer(blocks: Sequence[Searched | Fixed], layers: int) -> Iterator[Searched | Fixed]:
    for block in blocks:
        if isinstance(block, Fixed):
            yield block
        else:
            yield from (Searched(block.width, 2, block.stride if number == 0 else 1) for number in range(layers))


def _first(name: str, width: Expr, inputs: Expr, stride: int, squeeze_excite: SqueezeExciteOf) -> Layer:
    """The layer that takes up stride and width. Its body has weights of its own for each kind of skip."""
    body = _body(name, width, inputs, stride, squeeze_excite)
    pooled = Chain(Pool("avg", 3, stride, 1, name="pool"), Match(width, name="match"), name="shortcut")
    none, identity = called(body, "none"), Residual(body, name="identity") if stride == 1 else called(body, "identity")
    return OneOf(Add(body, pooled, name="pool"), identity, none, by=Choice(SKIPS, f"/{name}.skip"), name="first")


def _layer(name: str, width: Expr, squeeze_excite: SqueezeExciteOf) -> Layer:
    """A layer that keeps the shape."""
    pool, identity, none = Pool("avg", 3, 1, 1, name="pool"), Identity(name="identity"), Zero(name="none")
    shortcut = OneOf(pool, identity, none, by=Choice(SKIPS, f"/{name}.skip"), name="shortcut")
    return Add(_body(name, width, width, 1, squeeze_excite), shortcut, name="layer")


def _body(name: str, width: Expr, inputs: Expr, stride: int, squeeze_excite: SqueezeExciteOf) -> OneOf:
    kernel = Choice(KERNELS, f"/{name}.kernel")
    ratio = Choice(SE_RATIOS, f"/{name}.se_ratio")
    se = OneOf(Identity(name="no"), called(squeeze_excite(inputs, SE_RATIOS[1]), "yes"), by=op("position", ratio, SE_RATIOS), name="se")

    def bottleneck(label: str, expand: int) -> Layer:
        return mbconv(width, kernel, expand=expand, stride=stride, squeeze_excite=se, residual=False, name=label)

    return OneOf(
        Chain(conv_bn_act(width, kernel, stride=stride, name="body"), se, name="conv"),
        bottleneck("sep", 1),
        bottleneck("mb3", 3),
        bottleneck("mb6", 6),
        by=Choice(OPS, f"/{name}.op"),
        name="body",
    )
