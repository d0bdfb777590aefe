"""MobileDets (Xiong et al., CVPR 2021, arXiv 2004.14525): the four released backbones, and the spaces of their blocks.

Backbones: tensorflow/models, research/object_detection/models/ssd_mobiledet_feature_extractor.py. They stand here with a classifier;
`mobiledet_backbone` is the part that a detector reads. C1 to C5 are the maps at strides 2 to 32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from niwaki.net.block import classifier, conv_bn_act, depthwise_bn, fused_mbconv, mbconv, separate_kernels, tucker
from niwaki.net.control import Chain, Network, OneOf
from niwaki.net.layer import Identity, Layer, SqueezeExcite
from niwaki.net.tree import called
from niwaki.space.choice import Choice, SpaceError
from niwaki.space.size import Expr, in_channels, op, round8, round_to, taken
from niwaki.zoo.tunas import MULTIPLIERS, Kernels, searched_width

# name: (activation, squeeze-excite, width of the stem, stages C1 to C5). A layer is "operator width": n: bottleneck without expansion,
# i and f: inverted and fused bottleneck of that kernel and expansion, t: Tucker convolution of those ratios in percent; "-": no residual.
# The first layer of every stage but C1 has stride 2.
BACKBONES = {
    "mobiledet-cpu": (
        "hswish",
        True,
        16,
        """n3 8- / i3e4 16- / i3e8 32-, i3e4 32, i3e4 32, i3e4 32
        / i5e8 72-, i3e8 72, i5e4 72, i3e4 72, i3e8 72-, i3e8 72, i3e8 72, i3e8 72
        / i5e8 104-, i5e4 104, i5e4 104, i3e4 104, i3e8 144-""",
    ),
    "mobiledet-dsp": (
        "relu6",
        False,
        32,
        """n3 24- / f3e4 32-, f3e4 32, i3e4 32, t25.75 32 / f3e8 64-, i3e4 64, f3e4 64, f3e4 64
        / f3e8 120-, i3e4 120, i3e8 120, i3e8 120, f3e8 144-, i3e8 144, i3e8 144, i3e8 144
        / i3e4 160-, i3e4 160, f3e4 160, t75.75 160, i3e8 240-""",
    ),
    "mobiledet-edgetpu": (
        "relu6",
        False,
        32,
        """t25.75 16- / f3e8 16-, f3e4 16, f3e8 16, f3e4 16 / f5e8 40-, f3e4 40, f3e4 40, f3e4 40
        / i3e8 72-, i3e8 72, f3e4 72, f3e4 72, i5e8 96-, i5e8 96, i3e8 96, i3e8 96
        / i5e8 120-, i3e8 120, i5e4 120, i3e8 120, i5e8 384-""",
    ),
    "mobiledet-gpu": (
        "relu6",
        False,
        32,
        """t25.25 16- / f3e8 32-, t25.25 32, t25.25 32, t25.25 32 / f3e8 64-, f3e8 64, f3e8 64, f3e4 64
        / f3e8 128-, f3e4 128, f3e4 128, f3e4 128, f3e8 128-, f3e8 128, f3e8 128, f3e8 128
        / f3e4 128-, f3e4 128, f3e4 128, f3e4 128, i3e8 384-""",
    ),
}
# Parameters, and multiply-adds of the convolutions at 320 x 320 in millions, recounted from the released tables.
RECOUNTED = {
    "mobiledet-cpu": (3_006_440, 408.0),
    "mobiledet-dsp": (5_839_952, 2763.4),
    "mobiledet-edgetpu": (2_777_040, 1473.8),
    "mobiledet-gpu": (11_689_920, 5009.9),
}
# COCO mAP at 320 x 320 and milliseconds on the device, as the TF1 detection zoo states them.
PUBLISHED_MAP_AND_MS = {"mobiledet-cpu": (24.0, 113), "mobiledet-dsp": (28.9, 12.3), "mobiledet-edgetpu": (25.9, 6.9)}


def mobiledet_backbone(name: str, multiplier: float = 1.0) -> Chain:
    """The backbone called `name`: stages `c1` to `c5` behind the stem; multiplier: of all widths, rounded to multiples of 8."""
    activation, squeeze_excite, stem, text = BACKBONES[name]
    stages: list[Layer] = [conv_bn_act(round_to(stem * multiplier), 3, stride=2, activation=activation, name="stem")]
    for at, stage in enumerate(text.split("/")):
        layers = [
            _released(words, 2 if at and not number else 1, multiplier, activation, squeeze_excite, f"layer{number}")
            for number, words in enumerate(stage.split(","))
        ]
        stages.append(Chain(*layers, name=f"c{at + 1}"))
    return Chain(*stages, name="backbone")


def mobiledet(name: str, input_shape: tuple[int, ...] = (3, 320, 320), classes: int = 1000, *, multiplier: float = 1.0) -> Network:
    """The backbone called `name` with a classifier behind it."""
    return Network(Chain(mobiledet_backbone(name, multiplier), classifier(classes)), input_shape)


def _released(words: str, stride: int, multiplier: float, activation: str, squeeze_excite: bool, name: str) -> Layer:
    operator, size = words.split()
    width, residual = round_to(int(size.rstrip("-")) * multiplier), not size.endswith("-")
    if operator[0] == "t":
        ratios = [int(part) / 100 for part in operator[1:].split(".")]
        return tucker(width, in_ratio=ratios[0], out_ratio=ratios[1], stride=stride, activation=activation, residual=residual, name=name)
    kernel_size, _, expand = operator[1:].partition("e")
    block = fused_mbconv if operator[0] == "f" else mbconv
    return block(
        width,
        int(kernel_size),
        expand=int(expand or 1),
        stride=stride,
        activation=activation,
        squeeze_excite=_squeeze_excite(activation) if squeeze_excite else False,
        residual=residual,
        name=name,
    )


def _squeeze_excite(activation: str) -> SqueezeExcite:
    """A quarter of the expanded width, rounded to multiples of 8; the block's activation within."""
    return SqueezeExcite(round_to(0.25 * in_channels), activation, "sigmoid", name="se")


# --- the spaces ----------------------------------------------------------------------------------------------------------------

OPERATORS = ("ibn", "fused", "tucker")
KERNELS, EXPANSIONS, RATIOS = (3, 5), (4, 8), (0.25, 0.75)


@dataclass(frozen=True)
class Frame:
    """What is not searched. blocks: (stage, base width, layers, stride of the first), in order; all layers but the first may be skipped."""

    stem_stride: int
    stem: int
    blocks: tuple[tuple[str, int, int, int], ...]


# C4 and C5 have two blocks each. The base widths are as we remember the paper, not checked: the backbones for CPU, DSP and EdgeTPU are
# members, the one for the GPU is not (its 128 channels in C4 and C5 are no multiples of these).
MOBILE = Frame(
    2,
    32,
    (("c1", 16, 1, 1), ("c2", 32, 4, 2), ("c3", 48, 4, 2), ("c4a", 96, 4, 2), ("c4b", 96, 4, 1), ("c5a", 160, 4, 2), ("c5b", 192, 1, 1)),
)
SMALL = Frame(1, 16, (("c1", 8, 1, 1), ("c2", 16, 2, 2), ("c3", 24, 2, 2), ("c4", 32, 1, 1)))  # ours, for images of 8 to 64 pixels


def mobiledets(
    input_shape: tuple[int, ...] = (3, 320, 320),
    classes: int = 1000,
    *,
    operators: Sequence[str] = OPERATORS,
    activation: str = "relu6",
    squeeze_excite: bool = False,
    multipliers: Sequence[float] = MULTIPLIERS,
    frame: Frame = MOBILE,
    kernels: Kernels = separate_kernels,
) -> Network:
    """The space of MobileDets, as a classifier: the operator of every layer, its kernel and expansion or ranks, and the widths of blocks.

    operators: which of `OPERATORS` there are; the paper's spaces have the first, the first two, and all three. The layer behind the stem is
    a bottleneck without expansion or a Tucker convolution. Of two ratios that round to the same rank only one exists.
    """
    if unknown := [operator for operator in operators if operator not in OPERATORS]:
        raise SpaceError(f"mobiledets has no operator {unknown[0]!r}; there are {', '.join(OPERATORS)}")
    if not operators:
        raise SpaceError(f"mobiledets needs at least one operator; there are {', '.join(OPERATORS)}")
    maker = _Maker(tuple(operators), activation, squeeze_excite, kernels)
    inputs = searched_width("stem", frame.stem, multipliers)
    body: list[Layer] = [conv_bn_act(inputs, 3, stride=frame.stem_stride, activation=activation, name="stem")]
    for at, (stage, base, layers, stride) in enumerate(frame.blocks):
        width = searched_width(stage, base, multipliers)
        body.append(Chain(*maker.block(stage, width, inputs, layers, stride, plain=at == 0), name=stage))
        inputs = width
    return Network(Chain(*body, classifier(classes)), input_shape)


def mobiledets_ibn(input_shape: tuple[int, ...] = (3, 320, 320), classes: int = 1000) -> Network:
    """The space of inverted bottlenecks alone."""
    return mobiledets(input_shape, classes, operators=("ibn",))


def mobiledets_fused(input_shape: tuple[int, ...] = (3, 320, 320), classes: int = 1000) -> Network:
    """The space of inverted and fused bottlenecks."""
    return mobiledets(input_shape, classes, operators=("ibn", "fused"))


def mobiledets_cpu(input_shape: tuple[int, ...] = (3, 320, 320), classes: int = 1000) -> Network:
    """The space of all three with what a CPU runs well beside: h-swish, and squeeze-excite in every bottleneck."""
    return mobiledets(input_shape, classes, activation="hswish", squeeze_excite=True)


def mobiledets_small(input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> Network:
    """`mobiledets` for images of 8 to 64 pixels."""
    return mobiledets(input_shape, classes, frame=SMALL)


@dataclass(frozen=True)
class _Maker:
    """Writes the blocks of one space."""

    operators: tuple[str, ...]
    activation: str
    squeeze_excite: bool
    kernels: Kernels

    def block(self, stage: str, width: Expr, inputs: Expr, layers: int, stride: int, *, plain: bool) -> Iterator[Layer]:
        """plain: the one layer behind the stem, whose bottleneck has no expansion."""
        yield self.layer(f"{stage}.layer0", width, inputs, stride, residual=False, plain=plain)
        for number in range(1, layers):
            yield self.layer(f"{stage}.layer{number}", width, width, 1, residual=True, plain=False)

    def layer(self, label: str, width: Expr, inputs: Expr, stride: int, *, residual: bool, plain: bool) -> Layer:
        branches: list[Layer] = []
        if "ibn" in self.operators:
            branches.append(self.bottleneck(label, width, stride, residual=residual, plain=plain))
        if "fused" in self.operators and not plain:
            branches.append(self.fused(label, width, stride, residual=residual))
        if "tucker" in self.operators:
            branches.append(self.tucker(label, width, inputs, stride, residual=residual))
        if residual:
            branches.append(Identity(name="skip"))
        if not branches:  # of fused bottlenecks alone
            branches.append(self.bottleneck(label, width, stride, residual=residual, plain=True))
        name = label.rpartition(".")[2]
        return called(branches[0], name) if len(branches) == 1 else OneOf(*branches, name=name)

    def bottleneck(self, label: str, width: Expr, stride: int, *, residual: bool, plain: bool) -> Layer:
        kernel = self.kernels(lambda size: depthwise_bn(size, stride), Choice(KERNELS, f"/{label}.kernel"), name="dw")
        return mbconv(
            width,
            3 if plain else kernel,
            expand=1 if plain else Choice(EXPANSIONS, f"/{label}.expand"),
            stride=stride,
            activation=self.activation,
            squeeze_excite=_squeeze_excite(self.activation) if self.squeeze_excite else False,
            residual=residual,
            name="ibn",
        )

    def fused(self, label: str, width: Expr, stride: int, *, residual: bool) -> Layer:
        expanded = round8(Choice(EXPANSIONS, f"/{label}.expand") * in_channels)
        return fused_mbconv(
            width,
            self.kernels(
                lambda size: conv_bn_act(expanded, size, stride=stride, activation=None), Choice(KERNELS, f"/{label}.kernel"), name="conv"
            ),
            stride=stride,
            activation=self.activation,
            squeeze_excite=_squeeze_excite(self.activation) if self.squeeze_excite else False,
            residual=residual,
            name="fused",
        )

    def tucker(self, label: str, width: Expr, inputs: Expr, stride: int, *, residual: bool) -> Layer:
        def made(in_ratio: Expr, out_ratio: Expr) -> Layer:
            return tucker(
                width, in_ratio=in_ratio, out_ratio=out_ratio, stride=stride, activation=self.activation, residual=residual, name="tucker"
            )

        return _ratio(lambda a: _ratio(lambda b: made(a, b), width, f"{label}.out_ratio"), inputs, f"{label}.in_ratio")


def _ratio(make: Callable[[Expr], Layer], channels: Expr, label: str) -> Layer:
    """`make` of a choice between the two ratios, which exists only where they give `channels` channels different ranks."""
    options: tuple = channels.options if isinstance(channels, Choice) else (channels,)
    same = tuple(option for option in options if round_to(RATIOS[0] * option) == round_to(RATIOS[1] * option))
    choice = Choice(RATIOS, f"/{label}")
    if not same:
        return make(choice)
    if len(same) == len(options):
        return make(RATIOS[0])
    two, one = called(make(choice), "two"), called(make(RATIOS[0]), "one")
    return OneOf(two, one, by=op("int", taken(channels, same)), name="ranks")
