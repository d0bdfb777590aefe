"""FBNet (Wu et al., CVPR 2019, arXiv 1812.03443): its space of 22 blocks with nine candidates each, and FBNet-A, B and C in it.

Block lists and accuracies: facebookresearch/mobile-vision.
"""

from __future__ import annotations

from collections.abc import Sequence

from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Match, Network, OneOf
from niwaki.net.layer import Layer
from niwaki.space.choice import Choice

# kernel, expansion, groups of the projection
CANDIDATES: dict[str, tuple[int, int, int]] = {
    f"k{kernel}_e{expand}" + ("_g2" if groups == 2 else ""): (kernel, expand, groups)
    for kernel in (3, 5)
    for expand, groups in ((1, 1), (1, 2), (3, 1), (6, 1))
}
_ROWS = ((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))  # width, blocks, stride of the first
BLOCKS = tuple((width, stride if at == 0 else 1) for width, count, stride in _ROWS for at in range(count))
TAILS = (1504, 1984)
SMALL_FIRST = 24  # width of the stage that halves the map of large images only

# name: (width of the last convolution, the candidate taken in each block); kernel.expansion, g2: grouped projection
MODELS = {
    "fbnet-a": (
        1504,
        """skip k3_e3 k3_e1 skip skip k5_e6 k3_e3 k5_e1 k3_e3 k5_e6 k5_e3 k5_e1_g2 k5_e6
        k3_e6 k5_e1_g2 k5_e3 k3_e1_g2 k5_e6 k5_e6 k5_e3 k5_e6 k5_e6""",
    ),
    "fbnet-b": (
        1984,
        """k3_e1 k3_e6 k5_e1 k3_e1 k3_e1 k5_e6 k5_e3 k3_e6 k5_e6 k5_e6 k5_e6 skip k5_e3
        k5_e6 k3_e1 k5_e1 k5_e3 k5_e6 k5_e1 k5_e6 k5_e6 k3_e6""",
    ),
    "fbnet-c": (
        1984,
        """k3_e1 k3_e6 skip k3_e1 k3_e1 k5_e6 k5_e3 k5_e6 k3_e6 k5_e6 k5_e3 k5_e6 k5_e6
        k5_e6 k5_e6 k5_e6 k5_e3 k5_e6 k5_e6 k5_e6 k5_e6 k3_e6""",
    ),
}

# ImageNet top-1 in percent, as mobile-vision's table states it, and as the paper does.
PUBLISHED_TOP1 = {"fbnet-a": (73.30, 73.0), "fbnet-b": (74.54, 74.1), "fbnet-c": (75.25, 74.9)}
# Weights and multiply-adds by the authors' rule (`rule="fbnet"` of niwaki.cost.count), recounted from mobile-vision.
PUBLISHED_COUNTS = {"fbnet-a": (4_270_288, 244_526_360), "fbnet-b": (4_766_672, 291_101_640), "fbnet-c": (5_525_424, 378_233_440)}


def fbnet(input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000) -> Network:
    """The FBNet space: 9^22 networks, with the two widths of the last convolution that the published ones have."""
    labels = (*CANDIDATES, "skip")
    blocks = [OneOf(*(_candidate(label, *shape, label) for label in labels), name=f"block{at}") for at, shape in enumerate(BLOCKS)]
    return _network(blocks, Choice(TAILS, "/tail.width"), input_shape, classes)


def fbnet_cifar100(input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 100) -> Network:
    """The FBNet space for small images, as HW-NAS-Bench and HELP measured it: 9^22 networks, whose stem and first stage halve nothing."""
    labels = (*CANDIDATES, "skip")
    shapes = [(width, 1 if width == SMALL_FIRST else stride) for width, stride in BLOCKS]
    blocks = [OneOf(*(_candidate(label, *shape, label) for label in labels), name=f"block{at}") for at, shape in enumerate(shapes)]
    return _network(blocks, TAILS[0], input_shape, classes, stem_stride=1)


def fbnet_model(name: str, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000) -> Network:
    """FBNet-A, B or C, without choices: a member of `fbnet`."""
    tail, labels = MODELS[name]
    blocks = [_candidate(label, *shape, f"block{at}") for at, (label, shape) in enumerate(zip(labels.split(), BLOCKS, strict=True))]
    return _network(blocks, tail, input_shape, classes)


def _network(blocks: Sequence[Layer], tail: int | Choice, input_shape: tuple[int, ...], classes: int, *, stem_stride: int = 2) -> Network:
    body = Chain(conv_bn_act(16, 3, stride=stem_stride, name="stem"), *blocks, conv_bn_act(tail, 1, name="tail"), classifier(classes))
    return Network(body, input_shape)


def _candidate(label: str, width: int, stride: int, name: str) -> Layer:
    if label == "skip":
        # a skip that halves the map is a 1x1 convolution of that stride (mobile-vision's Identity); 9^22 counts it
        return Match(width, name=name) if stride == 1 else conv_bn_act(width, 1, stride=stride, name=name)
    kernel, expand, groups = CANDIDATES[label]
    return mbconv(width, kernel, expand=expand, stride=stride, groups=groups, name=name)
