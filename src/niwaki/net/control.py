"""Containers: how layers are put together. `place` turns every one of them into primitives with conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from niwaki.net.layer import Layer
from niwaki.space.choice import SpaceError
from niwaki.space.size import Expr

WHEN = ("equal", "always", "project")


@dataclass(frozen=True, init=False)
class Several(Layer):
    """A container of layers in an order; not used itself."""

    layers: tuple[Layer, ...]

    def __init__(self, *layers: Layer, name: str | None = None) -> None:
        for layer in layers:
            _require_layer(layer, f"{type(self).__name__}({name!r})" if name else type(self).__name__)
        object.__setattr__(self, "layers", tuple(layers))
        object.__setattr__(self, "name", name)


class Chain(Several):
    """One after the other."""


class Concat(Several):
    """Every layer reads the same input; the outputs are concatenated along the channels."""


class Add(Several):
    """Every layer reads the same input; the outputs are added."""


@dataclass(frozen=True, init=False)
class OneOf(Layer):
    """Exactly one of the branches.

    by: what decides: nothing (a decision of its own, named by the path, whose options are the branches' labels), a choice whose options are
    the labels, or an expression that gives the position of the branch. A label is the branch's name, or its kind and position.
    """

    branches: tuple[Layer, ...]
    by: Expr = None

    def __init__(self, *branches: Layer, by: Expr = None, name: str | None = None) -> None:
        for branch in branches:
            _require_layer(branch, f"OneOf({name!r})" if name else "OneOf")
        if not branches:
            raise SpaceError(f"OneOf({name!r}) has no branches; it needs at least one")
        object.__setattr__(self, "branches", tuple(branches))
        object.__setattr__(self, "by", by)
        object.__setattr__(self, "name", name)
        if len(set(self.labels)) < len(branches):
            raise SpaceError(f"OneOf({name!r}) has two branches of one label: {self.labels}; give them different names")

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(branch.name or f"{type(branch).__name__.lower()}{at}" for at, branch in enumerate(self.branches))


@dataclass(frozen=True)
class Repeat(Layer):
    """`body`, `times` times in a row. Choices inside repeat i exist only if `times` exceeds i: the depth is a prefix.

    Unnamed choices are free in each repeat. Named ones are tied over the repeats, unless the body is a named block of its own.
    """

    body: Layer
    times: Expr

    def __post_init__(self) -> None:
        _require_layer(self.body, "Repeat")


@dataclass(frozen=True)
class Residual(Layer):
    """body(x) + x.

    when: "equal": the shortcut exists exactly where the shapes are equal; "always": they are proved equal, or refused;
    "project": where they differ, the shortcut is a 1x1 convolution and BatchNorm of the body's stride.
    """

    body: Layer
    when: str = "equal"

    def __post_init__(self) -> None:
        _require_layer(self.body, "Residual")
        if self.when not in WHEN:
            raise SpaceError(f"Residual(when={self.when!r}): `when` is one of {WHEN}")


@dataclass(frozen=True)
class Match(Layer):
    """`channels` channels: the identity where the input has them, else conv1x1-BN-ReLU."""

    channels: Expr


@dataclass(frozen=True)
class Node:
    """One node of a `Graph`: `layer` applied to its inputs, which are first added or concatenated if there are several.

    An `Operation` takes several as they are; `join` says nothing then.
    """

    layer: Layer
    inputs: tuple[str, ...] = ("input",)
    join: str = "add"

    def __post_init__(self) -> None:
        _require_layer(self.layer, "Node")
        object.__setattr__(self, "inputs", (self.inputs,) if isinstance(self.inputs, str) else tuple(self.inputs))
        if self.join not in ("add", "concat"):
            raise SpaceError(f"Node(join={self.join!r}): inputs are joined by 'add' or 'concat'")
        if not self.inputs:
            raise SpaceError("a Node has no inputs; the graph's own is called 'input'")


@dataclass(frozen=True)
class Graph(Layer):
    """Named nodes, each after those it reads; the graph's own input is called "input", its output is the node `output` (the last, if None).

    inputs: what its inputs are called. A graph of several is the body of a network of several inputs, which are these, in their order.
    """

    nodes: tuple[tuple[str, Node], ...]
    output: str | None = None
    inputs: tuple[str, ...] = ("input",)

    def __post_init__(self) -> None:
        nodes = tuple(self.nodes.items()) if isinstance(self.nodes, Mapping) else tuple(self.nodes)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "inputs", tuple(self.inputs))
        known = set(self.inputs)
        if len(known) < max(1, len(self.inputs)):
            raise SpaceError(f"graph {self.name!r} has the inputs {self.inputs}; it has at least one, and each has a name of its own")
        for label, node in nodes:
            if label in known:
                raise SpaceError(f"graph {self.name!r} has two nodes called {label!r}")
            if unknown := [source for source in node.inputs if source not in known]:
                raise SpaceError(f"node {label!r} of graph {self.name!r} reads {unknown}; before it stand {sorted(known)}")
            known.add(label)
        if not nodes or (self.output is not None and self.output not in known):
            raise SpaceError(
                f"graph {self.name!r} has no node {self.output!r} for its output; its nodes are {[label for label, _ in nodes]}"
            )


DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")


@dataclass(frozen=True)
class Input:
    """One input of a network: its shape for one example, the type of its numbers and, for codes, below which number they are.

    batched: whether examples are stacked in it; if not, all examples of a call share it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    below: int | None = None
    batched: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.name.isidentifier():
            raise SpaceError(f"an input is called {self.name!r}; its name is one that a Python argument can have")
        if not all(isinstance(size, int) and size > 0 for size in self.shape) or self.dtype not in DTYPES:
            raise SpaceError(f"input {self.name!r} is {self.shape} of {self.dtype!r}; sizes are positive and types are {', '.join(DTYPES)}")


@dataclass(frozen=True)
class Network:
    """A description with the shape of its input, channels first: what every reader takes.

    inputs: what it reads, if that is not one map or vector of float32 numbers called x. The first one's shape is `input_shape`.
    """

    body: Layer
    input_shape: tuple[int, ...] = field(default=(3, 224, 224))
    inputs: tuple[Input, ...] = ()

    def __post_init__(self) -> None:
        _require_layer(self.body, "Network")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        if self.inputs:
            self._check_inputs()
            return
        shape = tuple(self.input_shape) if isinstance(self.input_shape, (tuple, list)) else ()
        if len(shape) not in (1, 3) or not all(isinstance(size, int) and size > 0 for size in shape):
            raise SpaceError(f"a network's input is (channels, height, width) or (features,), all positive, not {self.input_shape!r}")
        object.__setattr__(self, "input_shape", shape)

    def _check_inputs(self) -> None:
        names = [one.name for one in self.inputs]
        if len(set(names)) < len(names):
            raise SpaceError(f"a network has two inputs of one name: {', '.join(names)}")
        read = len(self.body.inputs) if isinstance(self.body, Graph) else 1
        if read != len(names):
            raise SpaceError(f"a network of the inputs {', '.join(names)} has a body that reads {read}")
        object.__setattr__(self, "input_shape", self.inputs[0].shape)

    @property
    def reads(self) -> tuple[Input, ...]:
        """Its inputs, also where there is only the plain one."""
        return self.inputs or (Input("x", self.input_shape),)


def _require_layer(layer: object, where: str) -> None:
    if not isinstance(layer, Layer):
        raise SpaceError(f"{where} is made of layers; {layer!r} is a {type(layer).__name__}")
