"""Multi-hardware models (Chu et al., CVPR 2021 workshops, arXiv 2008.08178): MobileNet Multi-AVG and Multi-MAX, and the space for several devices.

The space has an operator only if every device runs it well, and channels in multiples of 32. Models: google-research/tunas,
mobile_search_space_v3.py. The paper tells what was left of its devices' operators, not what each of them ran.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from niwaki.net.block import classifier, conv_bn_act, mbconv, separate_kernels
from niwaki.net.control import Chain, Network
from niwaki.net.layer import Activation, Conv, GlobalPool, Layer
from niwaki.space.choice import Choice, SpaceError
from niwaki.space.size import Expr
from niwaki.zoo.tunas import MOBILE, SMALL, Frame, Kernels, bottleneck, searched_squeeze_excite, searched_width, skippable_block

BASE = 32  # channels are multiples of this
KERNELS = {"depthwise3x3": 3, "depthwise5x5": 5, "depthwise7x7": 7}
ACTIVATIONS = ("relu", "hswish")
OPERATORS = (*KERNELS, *ACTIVATIONS, "squeeze_excite")
# What the released networks use: the intersection over Pixel 4's CPU, GPU, DSP and EdgeTPU.
SHARED = ("depthwise3x3", "depthwise5x5", "relu")

# name: per block "width: layers", a layer being kernel/expanded width; the first layer of a block has no residual.
MODELS = {
    "mobilenet-multi-avg": """32: 3/96 3/64; 64: 5/160 3/192 3/128 3/192; 128: 5/384 3/384 3/384 3/384; 160: 3/768 3/640;
        192: 3/960 5/768 5/768 5/768""",
    "mobilenet-multi-max": """32: 3/96; 64: 5/192 3/128 3/128; 128: 5/384 3/512 3/384 3/384; 128: 3/768 3/384;
        160: 3/768 5/640 3/800 5/640""",
}
# Parameters at 1000 classes, recounted from the released tables; ImageNet top-1 in percent of Multi-AVG from the TensorFlow model garden.
RECOUNTED_PARAMS = {"mobilenet-multi-avg": 4_947_592, "mobilenet-multi-max": 4_421_640}
PUBLISHED_TOP1 = {"mobilenet-multi-avg": 75.21}

WIDTHS = (32, 64, 128, 160, 192)  # of the body blocks, before they are multiplied; as in Multi-AVG
SMALL_WIDTHS = (32, 64, 96)


def shared_operators(capabilities: Mapping[str, Collection[str]]) -> tuple[str, ...]:
    """The operators that every device lists, in the order of `OPERATORS`.

    capabilities: by device, what it supports and runs fast, in words of `OPERATORS`. Raises SpaceError if nothing, no kernel or no
    activation is left, and for a word that is no operator.
    """
    if not capabilities:
        raise SpaceError("no device is given, so there is nothing to share; give what each device supports")
    for device, supported in capabilities.items():
        if isinstance(supported, str) or (unknown := [name for name in supported if name not in OPERATORS]):
            wrong = supported if isinstance(supported, str) else unknown[0]
            raise SpaceError(f"device {device!r} lists {wrong!r}; a device lists some of {', '.join(OPERATORS)}")
    shared = tuple(name for name in OPERATORS if all(name in supported for supported in capabilities.values()))
    for kind, needed in (("depthwise kernel", tuple(KERNELS)), ("activation", ACTIVATIONS)):
        if not set(shared) & set(needed):
            lists = "; ".join(
                f"{device} has {', '.join(n for n in needed if n in supported) or 'none'}" for device, supported in capabilities.items()
            )
            raise SpaceError(f"the devices share no {kind}: {lists}")
    return shared


def mobilenet_multi(
    input_shape: tuple[int, ...] = (3, 224, 224),
    classes: int = 1000,
    *,
    operators: Collection[str] = SHARED,
    widths: Sequence[int] = WIDTHS,
    head: tuple[int, int] = (960, 1280),
    frame: Frame = MOBILE,
    kernels: Kernels = separate_kernels,
) -> Network:
    """The multi-hardware space of these operators: kernel and expansion 1 to 6 of every bottleneck, depths 1 to 4, and all body widths.

    operators: from `shared_operators`; with h-swish, a block chooses its activation, with squeeze-excite a layer whether it has one.
    """
    shared_operators({"this space": operators})
    sizes = [size for name, size in KERNELS.items() if name in operators]
    activations = tuple(name for name in ACTIVATIONS if name in operators)
    stem_activation = activations[0]

    def layer(at: int, width: Expr, activation: Expr) -> Callable[[str, bool], Layer]:
        return lambda label, first: bottleneck(
            label,
            width,
            frame.strides[at] if first else 1,
            expand=(1, 2, 3, 4, 5, 6),
            kernels=kernels,
            residual=not first,
            sizes=sizes,
            activation=activation,
            squeeze_excite=searched_squeeze_excite(label) if "squeeze_excite" in operators else False,
        )

    if len(widths) != len(frame.strides):
        raise SpaceError(f"mobilenet_multi: there are {len(widths)} widths {tuple(widths)}; the frame has {len(frame.strides)} blocks")
    blocks = []
    for at, base in enumerate(widths):
        activation = activations[0] if len(activations) == 1 else Choice(activations, f"/stage{at}.activation")
        width = searched_width(f"stage{at}", base, base=BASE)
        blocks.append(skippable_block(f"stage{at}", frame.layers, layer(at, width, activation)))
    stem = conv_bn_act(BASE, 3, stride=frame.stem_stride, activation=stem_activation, name="stem")
    return Network(Chain(stem, *blocks, *_head(*head, stem_activation), classifier(classes)), input_shape)


def mobilenet_multi_small(input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> Network:
    """`mobilenet_multi` for images of 8 to 64 pixels."""
    return mobilenet_multi(input_shape, classes, widths=SMALL_WIDTHS, head=(128, 256), frame=SMALL)


def multihardware_model(name: str, input_shape: tuple[int, ...] = (3, 224, 224), classes: int = 1000) -> Network:
    """MobileNet Multi-AVG or Multi-MAX."""
    inputs, body = BASE, [conv_bn_act(BASE, 3, stride=2, name="stem")]
    for at, block in enumerate(MODELS[name].split(";")):
        width, _, layers = block.partition(":")
        made = []
        for number, words in enumerate(layers.split()):
            kernel_size, expanded = map(int, words.split("/"))
            stride = MOBILE.strides[at] if number == 0 else 1
            made.append(
                mbconv(int(width), kernel_size, expand=expanded / inputs, stride=stride, residual=number > 0, name=f"layer{number}")
            )
            inputs = int(width)
        body.append(Chain(*made, name=f"stage{at}"))
    return Network(Chain(*body, *_head(960, 1280, "relu"), classifier(classes)), input_shape)


def _head(width: int, features: int, activation: str) -> list[Layer]:
    return [
        conv_bn_act(width, 1, activation=activation, name="head_conv"),
        GlobalPool(name="pool"),
        Conv(features, 1, bias=True, name="features"),
        Activation(activation, name="features_act"),
    ]
