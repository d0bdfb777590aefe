"""FBNetV2 (Wan et al., CVPR 2020, arXiv 2004.05565): its published networks, and the space that DMaskingNAS searches.

Networks and their accuracies: facebookresearch/mobile-vision; the space: the paper's table of the largest space (FBNetV2-P).
"""

from __future__ import annotations

from collections.abc import Iterable

from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Match, Network, OneOf
from niwaki.net.layer import Activation, Conv, Flatten, GlobalPool, Layer, Linear, Subsample
from niwaki.space.choice import Choice
from niwaki.space.size import in_channels

# One block is "type(.se) width expansion", type = kernel size and activation (r ReLU, h h-swish); "skip width" is the identity, or a
# 1x1 convolution where the width changes. `/` begins a stage of stride 2.
_F1 = """k5r 8 1 / k5r 24 5.4566, k5r 24 4.7912 / k5r.se 32 5.3501, k5r.se 24 4.5379
    / k5h 56 5.7133, k3h 56 4.1212, k3h.se 56 5.1246, skip 80, k5h.se 80 4.5070, k5h.se 80 1.7712
    / k3h.se 144 4.5685, k5h.se 144 5.84, k5h.se 144 6.8754, skip 224"""
_F4 = """k3h 16 1 / k5h 24 5.4566, k5h 24 1.7912, k5h 24 1.7912 / k5r.se 32 5.3501, k5r.se 32 3.5379, k5r.se 32 4.5379, k5r.se 32 4.5379
    / k5h 64 5.7133, k3h 64 2.1212, skip 64, k3h 104 5.0333, k5h.se 104 2.5070, k5h.se 104 1.7712, k5h.se 112 3.7712
    / k3h.se 184 5.5685, k5h.se 184 2.84, k5h.se 184 4.8754, skip 224"""
_L1 = """k3h 16 1 / k5h 24 5.4566, k5h 24 1.7912, k3h 24 1.7912, k5h 24 1.7912
    / k5h.se 40 5.3501, k5h.se 32 3.5379, k5h.se 32 4.5379, k5h.se 32 4.5379
    / k5h 64 5.7133, k3h 64 2.1212, skip 64, k3h 64 3.1246,
      k3h 112 5.0333, k5h.se 112 2.5070, k5h.se 112 1.7712, k5h.se 112 2.7712, k5h.se 112 3.7712, k5h.se 112 3.7712
    / k3h.se 184 5.5685, k5h.se 184 2.84, k5h.se 184 2.84, k5h.se 184 4.8754, k5h.se 184 4.8754, skip 224"""
_L3 = """k3r 24 1 / k5r 32 5.4566, k5r 32 1.7912, k3r 32 1.7912, k5r 32 1.7912
    / k5r.se 48 5.3501, k5r.se 40 3.5379, k5r.se 40 4.5379, k5r.se 40 4.5379
    / k5h 72 5.7133, k3h 72 2.1212, skip 72, k3h 72 3.1246,
      k3h 120 5.0333, k5h.se 120 2.5070, k5h.se 120 1.7712, k5h.se 120 2.7712, k5h.se 120 3.7712, k5h.se 120 3.7712, k5h.se 120 3.7712
    / k3h.se 192 5.5685, k5h.se 192 2.84, k5h.se 192 2.84, k5h.se 192 4.8754, k5h.se 192 4.8754, skip 240"""

# name: (stem width, blocks, width of the last 1x1 convolution, input size)
MODELS = {
    "fbnetv2-f1": (8, _F1, 1600, 128),
    "fbnetv2-f2": (8, _F1, 1600, 160),
    "fbnetv2-f3": (8, _F1, 1984, 192),
    "fbnetv2-f4": (16, _F4, 1984, 224),
    "fbnetv2-l1": (16, _L1, 1984, 224),
    "fbnetv2-l2": (16, _L1, 1984, 256),
    "fbnetv2-l3": (24, _L3, 1984, 288),
}

# ImageNet top-1 in percent, as mobile-vision's table states it, and as the paper does (None: the network is not in the paper).
PUBLISHED_TOP1 = {
    "fbnetv2-f1": (68.28, 68.3),
    "fbnetv2-f2": (70.98, 71.1),
    "fbnetv2-f3": (73.03, 73.2),
    "fbnetv2-f4": (75.82, 76.0),
    "fbnetv2-l1": (77.04, 77.2),
    "fbnetv2-l2": (78.24, 78.1),
    "fbnetv2-l3": (78.87, None),
}
# Weights and multiply-adds by the authors' rule (`rule="fbnet"` of niwaki.cost.count), recounted from mobile-vision.
PUBLISHED_COUNTS = {
    "fbnetv2-f1": (5_999_408, 56_410_560),
    "fbnetv2-f2": (5_999_408, 85_441_392),
    "fbnetv2-f3": (6_899_504, 121_824_000),
    "fbnetv2-f4": (6_994_824, 238_351_984),
    "fbnetv2-l1": (8_496_520, 326_023_008),
    "fbnetv2-l2": (8_496_520, 423_912_768),
    "fbnetv2-l3": (9_402_096, 750_681_952),
}

_ACTIVATION = {"r": "relu", "h": "hswish"}

RESOLUTIONS = (128, 160, 192, 224, 256, 288)  # ours: the paper's list is not known
OPERATORS = tuple(f"k{kernel}{act}{se}" for kernel in (3, 5) for act in "rh" for se in ("", ".se"))

# The paper's table, one row per line: (widths, blocks, stride of the first); expansions are 0.75 to 4.5, and 1 in the first row.
_ROWS = (
    (range(12, 17, 4), 1, 1),
    (range(16, 29, 4), 1, 2),
    (range(16, 29, 4), 2, 1),
    (range(16, 41, 8), 1, 2),
    (range(16, 41, 8), 2, 1),
    (range(48, 97, 8), 1, 2),
    (range(48, 97, 8), 2, 1),
    (range(72, 129, 8), 4, 1),
    (range(112, 217, 8), 1, 2),
    (range(112, 217, 8), 3, 1),
)
_EXPANSIONS = (0.75, 1.5, 2.25, 3.0, 3.75, 4.5)


def fbnetv2_model(name: str, input_shape: tuple[int, ...] | None = None, classes: int = 1000) -> Network:
    """One of the published networks of `MODELS`, at its own input size unless another shape is given."""
    stem, text, head, size = MODELS[name]
    blocks = list(_blocks(text))
    return Network(
        Chain(
            conv_bn_act(stem, 3, stride=2, activation="hswish", name="stem"),
            *blocks,
            conv_bn_act(6 * in_channels, 1, activation="hswish", name="tail"),
            GlobalPool(name="pool"),
            Conv(head, 1, bias=True, name="features"),
            Activation("hswish", name="features_act"),
            # the authors' head pools its 1x1 map once more; the count of their rule has it, too
            Chain(GlobalPool(name="pool"), Flatten(name="flatten"), Linear(classes, name="linear"), name="head"),
        ),
        input_shape or (3, size, size),
    )


def fbnetv2(input_shape: tuple[int, ...] = (3, 288, 288), classes: int = 1000) -> Network:
    """The FBNetV2 space: 18 blocks with the operator, the expansion and the width of each, and the input resolution.

    Resolutions above the height of the input are left out; if all are, the input keeps its size.
    """
    resolutions = tuple(size for size in RESOLUTIONS if size <= input_shape[1])
    blocks = [(widths, stride if at == 0 else 1) for widths, count, stride in _ROWS for at in range(count)]
    return Network(
        Chain(
            *([Subsample(Choice(resolutions, "/resolution"), name="input")] if resolutions else []),
            conv_bn_act(16, 3, stride=2, activation="hswish", name="stem"),
            *(_searched(f"block{at}", tuple(widths), stride, first=at == 0) for at, (widths, stride) in enumerate(blocks)),
            conv_bn_act(1984, 1, activation="hswish", name="tail"),
            classifier(classes),
        ),
        input_shape,
    )


def _searched(name: str, widths: tuple[int, ...], stride: int, *, first: bool) -> Layer:
    """One block of the space. Expansion and width are decisions of the block, whatever its operator; a skip has no expansion."""
    width = Choice(widths, f"/{name}.width")
    expand = 1 if first else Choice(_EXPANSIONS, f"/{name}.expand")
    operators: list[Layer] = [_inverted_residual(label, width, expand, stride, name=label.replace(".", "_")) for label in OPERATORS]
    return OneOf(*operators, *([Match(width, name="skip")] if stride == 1 else []), name=name)


def _inverted_residual(label: str, width: int | Choice, expand: float | Choice, stride: int, *, name: str | None) -> Layer:
    kernel, activation, se = int(label[1]), _ACTIVATION[label[2]], label.endswith(".se")
    return mbconv(width, kernel, expand=expand, stride=stride, activation=activation, squeeze_excite=se, name=name)


def _blocks(text: str) -> Iterable[Layer]:
    for at, stage in enumerate(text.split("/")):
        for number, words in enumerate(block.split() for block in stage.split(",") if block.strip()):
            name = f"stage{at}_block{number}"
            if words[0] == "skip":
                yield Match(int(words[1]), name=name)
            else:
                yield _inverted_residual(words[0], int(words[1]), float(words[2]), 2 if at and not number else 1, name=name)
