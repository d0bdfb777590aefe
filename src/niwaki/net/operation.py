"""One PyTorch operator of a model that was read, as data: what the layers of this library do not say, in a form every reader knows.

A model that its owner wrote becomes a `Graph` of these. Sizes among the arguments, axes of weights and the output's shape are expressions of
choices, so that an adopted model is a family of networks like any other description.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from niwaki.net.axes import Axis, Run
from niwaki.net.layer import Layer
from niwaki.space.choice import Choice, SpaceError
from niwaki.space.size import Expr, Symbol, leaves, substitute

L = TypeVar("L", bound=Layer)
KINDS = ("parameter", "frozen", "buffer", "constant")
RETURN = "return"  # gives its arguments[0], any structure of tensors: the outputs of a network that has several
UNUSED = "unused"  # gives nothing: weights that a model holds and never reads
PLAIN = ("getitem", "add", "sub", "mul", "floordiv", "truediv", "mod", "pow", "neg", "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")
REFUSED = ("from_file",)  # operators that touch files


@dataclass(frozen=True)
class In:
    """The place of an argument: what the operation's input number `at` gives."""

    at: int


@dataclass(frozen=True)
class Named:
    """A constant that PyTorch has a name for: "float32" and the other types, "strided", "contiguous_format" and its kin; "device", where
    the network's input lies; "training", whether the network is trained."""

    name: str


@dataclass(frozen=True)
class Items:
    """A dictionary among the arguments of a "return"."""

    keys: tuple[str, ...]
    values: tuple[Any, ...]


@dataclass(frozen=True)
class Weight:
    """A tensor of the owner's, by its name in the state dict. The same name at two places is one tensor.

    kind: "parameter", "frozen" (a parameter that is not trained), "buffer", or "constant" (in no state dict). also: its other names in the
    state dict, for a tied tensor has several. Where no owner's weights are loaded, it starts as its layer starts in torch.nn, or else as the
    values `data` (base64 of the zlib-compressed bytes, of the full shape), `fill` everywhere, or normal of standard deviation 0.02.
    again: set by `place` where the tensor stood before, so that it is counted once.
    """

    name: str
    axes: tuple[Axis, ...]
    kind: str = "parameter"
    dtype: str = "float32"
    also: tuple[str, ...] = ()
    fill: float | None = None
    data: str | None = None
    again: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(tuple(axis) for axis in self.axes))
        object.__setattr__(self, "also", tuple(self.also))
        if self.kind not in KINDS:
            raise SpaceError(f"the weight {self.name!r} is of kind {self.kind!r}; it is one of {', '.join(KINDS)}")

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.also)

    @property
    def key(self) -> str:
        """One name for the tensor, whatever it is called here."""
        return min(self.names)


@dataclass(frozen=True)
class Operation(Layer):
    """One operator of PyTorch.

    target: "aten.conv2d.default" and its kin, as `torch.export` names them; "operator.getitem" and other functions of PLAIN, of numbers or
    tuples; "return" and "unused". arguments, keywords: numbers, texts, None, tuples, sizes (expressions of choices), and `In`, `Weight`,
    `Named`. Keywords of a batch norm are num_batches_tracked, `dims`, how many its input has, and `frozen`, where its statistics are
    constants; else its argument `training`, as that of a dropout, follows the module's mode.
    shape: the output's axes without the batch; None where the output is no tensor (a number, a tuple of tensors).
    macs: products of sizes whose sum is the multiply-adds for one example. note: why it was left as it is, in words.
    """

    target: str
    arguments: tuple[Any, ...] = ()
    keywords: tuple[tuple[str, Any], ...] = ()
    shape: tuple[Axis, ...] | None = ()
    macs: tuple[tuple[Expr, ...], ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", _tuples(self.arguments))
        object.__setattr__(self, "keywords", _tuples(self.keywords))
        object.__setattr__(self, "macs", _tuples(self.macs))
        object.__setattr__(self, "shape", None if self.shape is None else tuple(tuple(axis) for axis in self.shape))
        called = f"Operation {self.name or self.target!r}"
        library, _, rest = self.target.partition(".")
        known = self.target in (RETURN, UNUSED) or (rest in PLAIN if library == "operator" else rest.count(".") == 1)
        if not known or rest.partition(".")[0] in REFUSED:
            raise SpaceError(
                f"{called} cannot be; a target is 'aten.NAME.OVERLOAD', 'operator.' with {', '.join(PLAIN)}, 'return' or 'unused'"
            )
        for symbol in symbols_in(self):
            if unnamed := [leaf for leaf in leaves(symbol) if isinstance(leaf, Choice) and leaf.name is None]:
                raise SpaceError(f"{called} holds an unnamed choice {unnamed[0].options}; sizes of an operation are tied by names")

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every weight among the arguments, in their order."""
        return tuple(value for value in _walk((self.arguments, self.keywords)) if isinstance(value, Weight))

    @property
    def kind(self) -> str:
        """The operator without library and overload: "conv2d"."""
        return self.target.split(".")[1] if "." in self.target else self.target

    @property
    def reads(self) -> int:
        """How many inputs the arguments speak of."""
        return max((value.at + 1 for value in _walk((self.arguments, self.keywords)) if isinstance(value, In)), default=0)


def resized(layer: L, size: Callable[[Expr], Expr]) -> L:
    """`layer` with `size` of every value in it: of every field, and within an operation of every decision, sums of sizes being left as sums."""
    if isinstance(layer, Operation):
        return mapped(layer, lambda expr: substitute(expr, size))
    return replace(layer, **{f.name: size(getattr(layer, f.name)) for f in fields(layer) if f.name != "make"})


def mapped(value: Any, size: Callable[[Expr], Expr]) -> Any:
    """`value`, a layer's argument or an operation, with every expression in it replaced by `size` of it."""
    if isinstance(value, Symbol):
        return size(value)
    if isinstance(value, tuple):
        return tuple([mapped(part, size) for part in value])
    if isinstance(value, (Operation, Weight, Items, Run)):
        changed = {}
        for f in fields(value):
            old = getattr(value, f.name)
            if isinstance(old, (tuple, Symbol)) and (new := mapped(old, size)) != old:
                changed[f.name] = new
        return replace(value, **changed) if changed else value
    return value


def placed_weights(layer: Operation, change: Callable[[Weight], Weight]) -> Operation:
    """`layer` with every weight replaced by `change` of it."""

    def walk(value: Any) -> Any:
        if isinstance(value, Weight):
            return change(value)
        return tuple([walk(part) for part in value]) if isinstance(value, tuple) else value

    return replace(layer, arguments=walk(layer.arguments), keywords=walk(layer.keywords)) if layer.weights else layer


def symbols_in(value: Any) -> Iterator[Symbol]:
    """Every expression in a layer or an argument, in reading order."""
    return (found for found in _walk(value) if isinstance(found, Symbol))


def open_sizes(layer: Layer) -> list[Symbol]:
    """What is left to decisions in a placed layer: its fields, or within an operation the decisions themselves, each once."""
    if isinstance(layer, Operation):
        return list(dict.fromkeys(leaf for symbol in symbols_in(layer) for leaf in leaves(symbol)))
    values = (getattr(layer, f.name) for f in fields(layer) if f.name != "make")
    return [value for value in values if isinstance(value, Symbol)]


def _walk(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, tuple):
        for part in value:
            yield from _walk(part)
    elif isinstance(value, (Layer, Weight, Items, Run)):
        for f in fields(value):
            if f.name not in ("name", "make"):
                yield from _walk(getattr(value, f.name))


def _tuples(value: Any) -> Any:
    """Lists as tuples, all the way down."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
