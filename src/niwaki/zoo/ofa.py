"""Once-for-all (Cai et al., ICLR 2020, arXiv 1908.09791): the MobileNetV3 space of the released supernet `ofa_mbv3_d234_e346_k357_w1.2`."""

from __future__ import annotations

from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Network, OneOf
from niwaki.net.layer import Identity, Layer, Subsample
from niwaki.space.choice import Choice
from niwaki.space.size import maximum, minimum

KERNELS, EXPANSIONS, DEPTHS = (3, 5, 7), (3, 4, 6), (2, 3, 4)
RESOLUTIONS = tuple(range(128, 225, 4))
STEM, FEATURES, HIDDEN = 24, 1152, 1536
# width, stride, squeeze-excite, activation of a stage; 1.2 times MobileNetV3's widths, to multiples of 8
STAGES = (
    (32, 2, False, "relu"),
    (48, 2, True, "relu"),
    (96, 2, False, "hswish"),
    (136, 1, True, "hswish"),
    (192, 2, True, "hswish"),
)


def ofa_mobilenetv3(input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000) -> Network:
    """Five stages of two to four inverted residuals, kernel and expansion of each, and the resolution of the image.

    Decisions have the authors' names: `d0` to `d4`, the depths; `ks0` to `ks19` and `e0` to `e19`, four for each stage, of which those past the
    depth do not exist; `r`, the resolution.
    """
    body: list[Layer] = [
        Subsample(Choice(tuple(size for size in RESOLUTIONS if size <= input_shape[1]), "/r"), name="input"),
        conv_bn_act(STEM, 3, stride=2, activation="hswish", name="stem"),
        mbconv(STEM, 3, expand=1, activation="relu", name="first"),
        *(_stage(at) for at in range(len(STAGES))),
        conv_bn_act(FEATURES, 1, activation="hswish", name="features"),
    ]
    return Network(Chain(*body, classifier(classes, hidden=HIDDEN)), tuple(input_shape))


def _stage(at: int) -> Chain:
    depth = Choice(DEPTHS, f"/d{at}")
    blocks: list[Layer] = []
    for number in range(DEPTHS[-1]):
        block = _block(at, number, "block" if number >= DEPTHS[0] else f"block{number}")
        if number >= DEPTHS[0]:
            block = OneOf(Identity(name="none"), block, by=minimum(maximum(depth - number, 0), 1), name=f"block{number}")
        blocks.append(block)
    return Chain(*blocks, name=f"stage{at}")


def _block(stage: int, number: int, name: str) -> Layer:
    width, stride, squeeze_excite, activation = STAGES[stage]
    at = DEPTHS[-1] * stage + number
    return mbconv(
        width,
        Choice(KERNELS, f"/ks{at}"),
        expand=Choice(EXPANSIONS, f"/e{at}"),
        stride=stride if number == 0 else 1,
        activation=activation,
        squeeze_excite=squeeze_excite,
        name=name,
    )
