"""A description as a tree: what each of its nodes is made of, and the same node made of something else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from niwaki.net.control import Graph, Node, OneOf, Repeat, Residual, Several
from niwaki.net.layer import Layer
from niwaki.net.operation import symbols_in
from niwaki.net.place import labels
from niwaki.space.choice import Choice
from niwaki.space.size import leaves


@dataclass(frozen=True)
class Part:
    """One thing that a node is made of. label: its share of the path; for a layer in a container, the layer's; may be empty."""

    label: str
    field: str
    value: Any


def parts_of(node: Layer | Node) -> list[Part]:
    """What `node` is made of, in reading order. Names and the makers of opaque layers are not among it."""
    if isinstance(node, Several):
        return [Part(label, "layers", child) for label, child in zip(labels(node), node.layers, strict=True)]
    if isinstance(node, OneOf):
        branches = zip(node.labels, node.branches, strict=True)
        return [Part("by", "by", node.by), *(Part(label, "branches", branch) for label, branch in branches)]
    if isinstance(node, Graph):
        return [*(Part(label, "nodes", inner) for label, inner in node.nodes), Part("output", "output", node.output)]
    if isinstance(node, Repeat):
        return [Part("times", "times", node.times), Part(node.body.name or "block", "body", node.body)]
    if isinstance(node, Residual):
        return [Part("when", "when", node.when), Part(node.body.name or "", "body", node.body)]
    if isinstance(node, Node):
        return [Part("inputs", "inputs", node.inputs), Part("join", "join", node.join), Part("", "layer", node.layer)]
    return [Part(f.name, f.name, getattr(node, f.name)) for f in fields(node) if f.name not in ("name", "make")]


def with_parts(node: Any, values: Sequence[Any]) -> Any:
    """`node`, made of `values` instead, one for each of its `parts_of`."""
    parts = parts_of(node)
    if all(part.value is value for part, value in zip(parts, values, strict=True)):
        return node
    if isinstance(node, Several):
        return type(node)(*values, name=node.name)
    if isinstance(node, OneOf):
        return OneOf(*values[1:], by=values[0], name=node.name)
    if isinstance(node, Graph):
        return Graph(
            tuple((part.label, value) for part, value in zip(parts[:-1], values[:-1], strict=True)), values[-1], node.inputs, name=node.name
        )
    return replace(node, **{part.field: value for part, value in zip(parts, values, strict=True)})


def called(layer: Layer, name: str | None) -> Layer:
    """`layer` under another name."""
    if isinstance(layer, Several):
        return type(layer)(*layer.layers, name=name)
    return OneOf(*layer.branches, by=layer.by, name=name) if isinstance(layer, OneOf) else replace(layer, name=name)


def choices_in(value: Any) -> Iterator[Choice]:
    """Every choice in a description, in reading order, each as often as it stands there; a `OneOf` without `by` is none itself."""
    if isinstance(value, (Layer, Node)):
        for part in parts_of(value):
            yield from choices_in(part.value)
    else:
        yield from (leaf for symbol in symbols_in(value) for leaf in leaves(symbol) if isinstance(leaf, Choice))


def layers_in(node: Layer | Node) -> Iterator[Layer]:
    """`node` and every layer in it, in reading order."""
    if isinstance(node, Layer):
        yield node
    for part in parts_of(node):
        if isinstance(part.value, (Layer, Node)):
            yield from layers_in(part.value)


def joined(*labels_: str) -> str:
    """A path from its labels, empty ones left out."""
    return ".".join(filter(None, labels_))
