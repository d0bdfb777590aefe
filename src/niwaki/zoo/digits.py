"""A space of our own for 8 x 8 digits, small enough that every member is trained and measured: see `run/experiments/digits_networks.py`."""

from __future__ import annotations

from niwaki.net.block import classifier, conv_bn_act, depthwise_bn, mbconv
from niwaki.net.control import Chain, Network, OneOf, Repeat
from niwaki.net.layer import Activation, Layer
from niwaki.space.choice import Choice


def digits_cnn(input_shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> Network:
    """216 networks of 26 k to 447 k multiply-adds: two blocks of three kinds with a width each, and 0 to 2 plain convolutions after them.

    The kinds trade multiply-adds for layers, which is what runtimes disagree about: a plain convolution, an inverted residual, and a
    depthwise convolution of 5 x 5 with one of 1 x 1.
    """
    first, second = Choice((8, 16), "/width1"), Choice((8, 16, 24, 32), "/width2")
    return Network(
        Chain(
            conv_bn_act(8, name="stem"),
            _block(first, 1, name="block1"),
            _block(second, 2, name="block2"),
            Repeat(conv_bn_act(second, name="more"), Choice((0, 1, 2), "/more")),
            classifier(classes),
        ),
        input_shape,
    )


def _block(width: Choice, stride: int, *, name: str) -> Layer:
    return OneOf(
        conv_bn_act(width, stride=stride, name="plain"),
        mbconv(width, expand=2, stride=stride, name="inverted"),
        Chain(depthwise_bn(5, stride, name="dw"), Activation("relu", name="act"), conv_bn_act(width, 1, name="pw"), name="depthwise"),
        name=name,
    )
