"""Published networks and spaces, and niwaki's own family, by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial

from niwaki.net.block import Columns
from niwaki.net.control import Network
from niwaki.space.choice import SpaceError
from niwaki.zoo import bignas as _bignas
from niwaki.zoo import digits as _digits
from niwaki.zoo import fbnet as _fbnet
from niwaki.zoo import fbnetv2 as _fbnetv2
from niwaki.zoo import mnasnet as _mnasnet
from niwaki.zoo import mobiledets as _mobiledets
from niwaki.zoo import multihardware as _multihardware
from niwaki.zoo import nao as _nao
from niwaki.zoo import nasbench as _nasbench
from niwaki.zoo import ofa as _ofa
from niwaki.zoo import tunas as _tunas
from niwaki.zoo.mlp import TABNAS_FEATURES, mlp, tabnas_criteo
from niwaki.zoo.mobile import LARGEST, SMALLEST, mobile

SPACES: Mapping[str, Callable[..., Network]] = {
    "fbnet": _fbnet.fbnet,
    "fbnet-cifar100": _fbnet.fbnet_cifar100,
    "fbnetv2": _fbnetv2.fbnetv2,
    "bignas": _bignas.bignas,
    "bignas-per-layer": _bignas.bignas_per_layer,
    "bignas-small": _bignas.bignas_small,
    "ofa-mobilenetv3": _ofa.ofa_mobilenetv3,
    "nasbench201": _nasbench.nasbench201,
    "nasbench-macro": _nasbench.nasbench_macro,
    "nao": _nao.nao,
    "mnasnet": _mnasnet.mnasnet,
    "mnasnet-five": _mnasnet.mnasnet_five,
    "mnasnet-per-layer": _mnasnet.mnasnet_per_layer,
    "mnasnet-tiny": _mnasnet.mnasnet_tiny,
    "proxylessnas": _tunas.proxylessnas,
    "proxylessnas-small": _tunas.proxylessnas_small,
    "proxylessnas-enlarged": _tunas.proxylessnas_enlarged,
    "proxylessnas-enlarged-small": _tunas.proxylessnas_enlarged_small,
    "mobilenetv3-like": _tunas.mobilenetv3_like,
    "mobilenetv3-like-small": _tunas.mobilenetv3_like_small,
    "mobiledets": _mobiledets.mobiledets,
    "mobiledets-ibn": _mobiledets.mobiledets_ibn,
    "mobiledets-fused": _mobiledets.mobiledets_fused,
    "mobiledets-cpu": _mobiledets.mobiledets_cpu,
    "mobiledets-small": _mobiledets.mobiledets_small,
    "digits-cnn": _digits.digits_cnn,
    "mobilenet-multi": _multihardware.mobilenet_multi,
    "mobilenet-multi-small": _multihardware.mobilenet_multi_small,
}
MODELS: Mapping[str, Callable[..., Network]] = {
    **{name: partial(_fbnet.fbnet_model, name) for name in _fbnet.MODELS},
    **{name: partial(_fbnetv2.fbnetv2_model, name) for name in _fbnetv2.MODELS},
    **{name: partial(_mnasnet.mnasnet_model, name) for name in _mnasnet.MODELS},
    **{name: partial(_tunas.tunas_model, name) for name in _tunas.MODELS},
    **{name: partial(_mobiledets.mobiledet, name) for name in _mobiledets.BACKBONES},
    **{name: partial(_multihardware.multihardware_model, name) for name in _multihardware.MODELS},
}
_NAMED = {**SPACES, **MODELS}
TABLES: Mapping[str, Callable[..., Network]] = {"mlp": mlp, "tabnas-criteo": tabnas_criteo}
PUBLISHED_TOP1 = {**_fbnet.PUBLISHED_TOP1, **_fbnetv2.PUBLISHED_TOP1}
PUBLISHED_COUNTS = {**_fbnet.PUBLISHED_COUNTS, **_fbnetv2.PUBLISHED_COUNTS}


def names() -> tuple[str, ...]:
    """What `network` knows; `mobile-<size>`, or `mobile(<size>)`, stands for every size from 8 to 224."""
    return (*_NAMED, *TABLES, "mobile-8", "mobile-28", "mobile-32", "mobile-64", "mobile-224")


def network(name: str, input_shape: tuple[int, ...] | None = None, classes: int | None = None, columns: Columns | None = None) -> Network:
    """The network or space called `name`, at its own input shape and number of classes unless others are given.

    `mobile-32` is the family for 32 x 32 images; `mobile` alone takes the size from `input_shape`. classes: how many numbers the network
    gives. columns: what the rows of a table are, for the networks that read those; left out, plain numbers.
    """
    if name in TABLES:
        if input_shape is not None and len(input_shape) != 1:
            raise SpaceError(
                f"{name!r} reads the rows of a table, (features,), not {input_shape}; for images there are {', '.join(_NAMED)}"
            )
        row = columns or Columns(input_shape[0] if input_shape is not None else TABNAS_FEATURES)
        return TABLES[name](row, **({} if classes is None else {"outputs": classes}))
    if input_shape is not None and len(input_shape) != 3:
        raise SpaceError(
            f"{name!r} reads images of channels x height x width, not {input_shape}; the rows of a table are read by {' and '.join(TABLES)}"
        )
    given = {} if classes is None else {"classes": classes}
    if name in _NAMED:
        return _NAMED[name](**given) if input_shape is None else _NAMED[name](input_shape=tuple(input_shape), **given)
    if found := re.fullmatch(r"mobile(?:-(\d+)|\((\d+)\))?", name):
        digits = found[1] or found[2]
        if not digits and input_shape is None:
            raise SpaceError(f"'mobile' needs an input shape, or a size of {SMALLEST} to {LARGEST} pixels in its name, as in 'mobile-32'")
        channels, height, width = input_shape or (3, int(digits or 0), int(digits or 0))
        size = int(digits or height)
        if (height, width) != (size, size):
            raise SpaceError(f"{name!r} reads square images of {size} pixels, not {height} x {width}")
        return mobile(size, channels, **given)
    close = get_close_matches(name, names(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {', '.join(names())}"
    raise SpaceError(f"the zoo has no network called {name!r}; {hint}")
