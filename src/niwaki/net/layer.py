"""The primitive layers, as data. Every size is a number, a choice or an expression of choices; input channels are inferred.

Sizes are what is annotated `Expr`: widths, kernel sizes and groups of a convolution, sizes of maps. Strides, dilations, paddings and rates
are plain numbers, checked when the layer is made: were a stride searched, maps of unlike height would have to be mixed (for a searched
resolution there is `Subsample`).

A primitive is what every reader (place, count, build, supernet, picture, JSON) has one small rule for;
`niwaki.testing.PRIMITIVES` lists them, and a test asks every reader about every one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from niwaki.space.choice import SpaceError
from niwaki.space.size import Expr, Symbol, in_channels, op, round8

ACTIVATIONS = ("relu", "relu6", "leaky_relu", "hswish", "swish", "hsigmoid", "sigmoid", "tanh", "gelu", "identity")


@dataclass(frozen=True)
class Layer:
    """A node of a description. `name` becomes part of its path; a named container is the scope in which choice names tie."""

    name: str | None = field(default=None, kw_only=True)


def _require(layer: Layer, name: str, holds: bool, possible: str) -> None:
    """Refuses a constant of `layer` that cannot be."""
    value = getattr(layer, name)
    called = f"{type(layer).__name__} {layer.name!r}" if layer.name else type(layer).__name__
    if isinstance(value, Symbol):
        raise SpaceError(f"{called}: {name} = {value!r} cannot be searched, only sizes can; it is {possible}")
    if not holds:
        raise SpaceError(f"{called}: {name} = {value!r}; it is {possible}")


def _require_whole(layer: Layer, *names: str, least: int = 1) -> None:
    for name in names:
        value = getattr(layer, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        _require(layer, name, whole and value >= least, f"a whole number of at least {least}")


def _is_between(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and low <= value <= high


@dataclass(frozen=True)
class Conv(Layer):
    """Convolution over height and width, C x H x W to `out_channels` x H' x W'. padding None keeps the size at stride 1.

    `groups=in_channels, out_channels=in_channels` is depthwise.
    """

    out_channels: Expr
    kernel_size: Expr = 3
    stride: int = 1
    groups: Expr = 1
    dilation: int = 1
    padding: int | None = None
    bias: bool = False

    def __post_init__(self) -> None:
        _require_whole(self, "stride", "dilation")
        if self.padding is not None:
            _require_whole(self, "padding", least=0)


@dataclass(frozen=True)
class Linear(Layer):
    """Linear map of a flat vector of features.

    init: of the weights, normal: "small" has a standard deviation of 0.01, as the last layer of published image networks; "he" one of
    sqrt(2 / features that enter), for what a ReLU follows without a BatchNorm between (He et al. 2015).
    """

    out_features: Expr
    bias: bool = True
    init: str = "small"

    def __post_init__(self) -> None:
        _require(self, "init", self.init in ("small", "he"), "'small' or 'he'")


@dataclass(frozen=True)
class Pick(Layer):
    """`count` features of a flat vector, from number `first` on, unchanged."""

    first: int
    count: int

    def __post_init__(self) -> None:
        _require_whole(self, "first", least=0)
        _require_whole(self, "count")


@dataclass(frozen=True)
class Embed(Layer):
    """Learned features of columns that hold codes: of a flat vector, the columns from number `first` on, one for each of `rows`.

    Column c holds a code from 0 to rows[c] - 1, and becomes min(width, rows[c] - 1) features, at least one: as many as rows of that many
    numbers can be apart, beside a constant that the next layer has anyway. Each feature is a table of rows[c] numbers of its own, in
    which its column is looked up. between: codes lie between rows, too, and what is looked up is interpolated: a piecewise linear
    function of the column (Gorishniy et al. 2022, "On embeddings for numerical features", the variant PLE-L). Codes beyond the ends are
    taken for the ends.

    Features stand in the order of their number within the column, then of the columns, so that a smaller width is a prefix.
    """

    rows: tuple[int, ...]
    width: Expr
    first: int = 0
    between: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(self.rows) if isinstance(self.rows, (tuple, list)) else self.rows)
        right = isinstance(self.rows, tuple) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in self.rows)
        _require(self, "rows", right and len(self.rows) > 0, "a whole number of at least 1 for each column")
        _require_whole(self, "first", least=0)

    @property
    def most(self) -> tuple[int, ...]:
        """The most features of each column."""
        return tuple(max(1, rows - 1) for rows in self.rows)

    def features(self, width: int) -> tuple[int, ...]:
        """The column, counted from 0, of every feature, in their order."""
        return tuple(column for number in range(width) for column, most in enumerate(self.most) if most > number)


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalisation per channel, with learned scale and shift."""

    eps: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        _require(self, "eps", _is_between(self.eps, 0, 1), "a number from 0 to 1")
        _require(self, "momentum", _is_between(self.momentum, 0, 1), "a number from 0 to 1")


@dataclass(frozen=True)
class Activation(Layer):
    """Elementwise function; `kind` is one of ACTIVATIONS, or a choice of them."""

    kind: Expr = "relu"


@dataclass(frozen=True)
class Pool(Layer):
    """Maximum or average over windows; the average leaves out the padding, as DARTS does."""

    kind: str = "max"
    kernel_size: int = 2
    stride: int = 2
    padding: int = 0

    def __post_init__(self) -> None:
        _require_whole(self, "kernel_size", "stride")
        _require_whole(self, "padding", least=0)
        # a window that lies in the padding alone has no maximum and no average
        _require(self, "padding", self.padding <= self.kernel_size // 2, f"at most half of kernel_size = {self.kernel_size}")


@dataclass(frozen=True)
class GlobalPool(Layer):
    """Average over all positions: C x H x W to C x 1 x 1."""


QUARTER = round8(op("int", in_channels * 0.25))  # MobileNetV3 and FBNetV2


@dataclass(frozen=True)
class SqueezeExcite(Layer):
    """Channel gate: x * gate(W2 act(W1 mean(x))), W1 and W2 with bias (Hu et al. 2018). `hidden`: the width between."""

    hidden: Expr = QUARTER
    activation: str = "relu"
    gate: str = "hsigmoid"


@dataclass(frozen=True)
class Subsample(Layer):
    """Nearest-neighbour resize to `size` x `size` (for H x W inputs, `size` x floor(size W / H)): row i reads row floor(i H / size).

    FBNetV2's resolution choice; supernet, built module and exported model read the same indices.
    """

    size: Expr


@dataclass(frozen=True)
class Interleave(Layer):
    """Inverse of `Subsample`: position i of the map goes to position floor(i size / H) of a `size` x `size` map of zeros (FBNetV2, Fig. 3)."""

    size: Expr


@dataclass(frozen=True)
class Flatten(Layer):
    """C x H x W to C H W features, channel by channel."""


@dataclass(frozen=True)
class ChannelShuffle(Layer):
    """Interleaves `groups` groups of channels (ShuffleNet): channel g * n + i goes to i * groups + g."""

    groups: int = 2

    def __post_init__(self) -> None:
        _require_whole(self, "groups")


@dataclass(frozen=True)
class Dropout(Layer):
    """Zeroes elements with probability `p` in training."""

    p: float = 0.2

    def __post_init__(self) -> None:
        _require(self, "p", _is_between(self.p, 0, 1), "a probability, from 0 to 1")


@dataclass(frozen=True)
class Zero(Layer):
    """Zeros of the shape of its input: a branch that adds nothing."""


@dataclass(frozen=True)
class Identity(Layer):
    """Its input."""


@dataclass(frozen=True)
class Opaque(Layer):
    """Any module, made by `make(**kwargs)`; its input and output channels are fixed.

    factory: "pkg.mod:factory", the name under which JSON keeps it; nothing is imported from it. channels: those that leave (None: those
    that enter). stride: by how much height and width shrink. macs, params: what it costs at the network's input, as its owner counts it.
    """

    factory: str
    kwargs: tuple[tuple[str, Any], ...] = ()
    channels: int | None = None
    stride: int = 1
    macs: int = 0
    params: int = 0
    make: Callable[..., Any] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        _require_whole(self, "stride")
        _require_whole(self, "macs", "params", least=0)
        if self.channels is not None:
            _require_whole(self, "channels")


@dataclass(frozen=True)
class Sum(Layer):
    """Sum of the inputs that exist; `place` writes it for residuals, branches and choices among layers."""


@dataclass(frozen=True)
class Cat(Layer):
    """Concatenation of its inputs along the channels; `place` writes it for `Concat`."""
