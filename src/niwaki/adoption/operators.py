"""Aten operators as nodes of a graph call them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

aten = torch.ops.aten


def overload(node: fx.Node) -> Any:
    """The aten operator that a node calls, in one of its forms; None if it calls something else."""
    return node.target if isinstance(node.target, torch._ops.OpOverload) else None


def name_of(node: fx.Node) -> str:
    """`conv2d`: the name of the aten operator that a node calls, without its form; empty if it calls something else."""
    return overload(node).overloadpacket.__name__ if overload(node) is not None else ""


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an aten operator by name, defaults included."""
    named = {}
    for number, argument in enumerate(overload(node)._schema.arguments):
        given = node.args[number] if number < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        named[argument.name] = given
    return named
