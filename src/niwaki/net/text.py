"""Descriptions as JSON and back, their hash, and what differs between two of them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields
from difflib import get_close_matches
from math import isfinite
from typing import Any

from niwaki.net import control, layer, operation
from niwaki.net.axes import Run
from niwaki.net.control import Input, Network, Node, OneOf, Several
from niwaki.net.layer import Layer, Opaque
from niwaki.net.operation import In, Items, Named, Weight
from niwaki.net.tree import choices_in, joined, parts_of
from niwaki.space.choice import Choice, SpaceError
from niwaki.space.size import FUNCTIONS, InChannels, Op, in_channels

FORMAT = 1
KINDS: Mapping[str, type] = {
    found.__name__: found
    for module in (layer, control, operation)
    for found in vars(module).values()
    if isinstance(found, type) and issubclass(found, Layer) and found not in (Layer, Several)
}
# what stands in an operation: {"run": {...}} and so on, fields at their defaults left out
VALUES: Mapping[str, type] = {kind.__name__.lower(): kind for kind in (In, Items, Named, Run, Weight)}


def to_json(network: Network) -> dict[str, Any]:
    """`network` as plain dictionaries, lists, numbers and texts; equal descriptions give equal JSON. Tuples become lists."""
    seen = Counter(id(choice) for choice in choices_in(network.body) if choice.name is None)
    # what is one unnamed choice at several places stays one; the others need no number
    shared = {key: number for number, key in enumerate(key for key, count in seen.items() if count > 1)}
    inputs = [{f.name: _written(getattr(one, f.name), shared) for f in fields(one)} for one in network.inputs]
    written = {"niwaki": FORMAT, "input_shape": list(network.input_shape), "body": _written(network.body, shared)}
    return written | ({"inputs": inputs} if inputs else {})


def from_json(data: Mapping[str, Any], factories: Mapping[str, Callable[..., Any]] | None = None) -> Network:
    """The network that `to_json` wrote.

    factories: what makes the module of an opaque layer, by the name under which the description keeps it. Nothing is ever imported;
    an opaque layer that is not listed can be drawn and counted, but not built.
    """
    if not isinstance(data, Mapping) or not {"niwaki", "input_shape", "body"} <= data.keys():
        raise SpaceError(f"a network in JSON has the keys 'niwaki', 'input_shape' and 'body'; given is {str(data)[:200]}")
    if data["niwaki"] != FORMAT:
        raise SpaceError(f"the description has the format {data['niwaki']!r}; this version of niwaki reads {FORMAT}")
    body = _read(data["body"], "body", dict(factories or {}), {})
    with _placed("inputs"):
        return Network(body, data["input_shape"], tuple(Input(**one) for one in data.get("inputs", ())))


def network_hash(network: Network) -> str:
    """16 hexadecimal digits of the SHA-256 of the description's JSON."""
    text = json.dumps(to_json(network), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def diff(old: Network, new: Network) -> list[tuple[str, Any, Any]]:
    """Where two descriptions differ: (path, what `old` has there, what `new` has), in reading order; None where one has nothing.

    >>> from niwaki.net.layer import Conv
    >>> diff(Network(control.Chain(Conv(8), Conv(16))), Network(control.Chain(Conv(8), Conv(24, 5))))
    [('conv1.out_channels', 16, 24), ('conv1.kernel_size', 3, 5)]
    """
    found: list[tuple[str, Any, Any]] = []
    if old.input_shape != new.input_shape:
        found.append(("input_shape", old.input_shape, new.input_shape))
    elif old.inputs != new.inputs:
        found.append(("inputs", old.inputs, new.inputs))
    return found + list(_differences(old.body, new.body, ""))


def _written(value: Any, shared: Mapping[int, int]) -> Any:
    if isinstance(value, Layer):
        kind = type(value).__name__
        if KINDS.get(kind) is not type(value):
            raise SpaceError(
                f"a layer of type {kind} cannot be written as JSON; there are {', '.join(KINDS)} (Opaque for your own modules)"
            )
        return {"layer": kind} | {f.name: _written(getattr(value, f.name), shared) for f in fields(value) if _kept(f, value)}
    if isinstance(value, Node):
        return {"node": {f.name: _written(getattr(value, f.name), shared) for f in fields(value)}}
    if isinstance(value, Choice):
        written = {"choice": _written(value.options, shared), "name": value.name}
        return written | ({"shared": shared[id(value)]} if id(value) in shared else {})
    if isinstance(value, Op):
        return {"function": value.function, "args": _written(value.args, shared)}
    if isinstance(value, InChannels):
        return {"in_channels": True}
    if isinstance(value, tuple):
        return [_written(part, shared) for part in value]
    if isinstance(value, float) and not isfinite(value):
        return {"number": str(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if (word := type(value).__name__.lower()) in VALUES:
        kept = (f for f in fields(value) if getattr(value, f.name) != f.default)
        return {word: {f.name: _written(getattr(value, f.name), shared) for f in kept}}
    kind = type(value).__name__
    raise SpaceError(f"{value!r} of type {kind} cannot be written as JSON; a description holds layers, numbers, texts and tuples")


def _kept(field: Any, value: Layer) -> bool:
    if field.name in ("name", "init") or (field.name == "inputs" and isinstance(value, control.Graph)):
        return getattr(value, field.name) != field.default  # younger than the format: what does not use it reads as it always did
    return field.name != "make"


def _read(data: Any, where: str, factories: Mapping[str, Callable[..., Any]], shared: dict[int, Choice]) -> Any:
    def read(part: Any, label: str) -> Any:
        return _read(part, f"{where}.{label}", factories, shared)

    if isinstance(data, list):
        return tuple(read(part, str(at)) for at, part in enumerate(data))
    if not isinstance(data, dict):
        return data
    if "layer" in data:
        if (kind := KINDS.get(str(data["layer"]))) is None:
            close = get_close_matches(str(data["layer"]), KINDS, n=2)
            hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(KINDS)}"
            raise SpaceError(f"{where}: there is no layer {data['layer']!r}; {hint}")
        given = {name: read(part, name) for name, part in data.items() if name != "layer"}
        _require_fields(kind, given, f"{where}: {data['layer']}")
        if not isinstance(given.get("name"), (str, type(None))):
            raise SpaceError(f"{where}: {data['layer']} is called {given['name']!r}; a name is a text")
        if kind is Opaque:
            given["make"] = factories.get(given["factory"])
        with _placed(where):
            if issubclass(kind, Several):
                return kind(*given.pop("layers"), **given)
            return kind(*given.pop("branches"), **given) if kind is OneOf else kind(**given)
    if isinstance(node := data.get("node"), dict):
        given = {name: read(part, name) for name, part in node.items()}
        _require_fields(Node, given, f"{where}: a graph's node")
        with _placed(where):
            return Node(**given)
    if "number" in data:
        return float(data["number"])
    if len(data) == 1 and isinstance(part := data.get(word := next(iter(data))), dict) and (made := VALUES.get(word)):
        given = {name: read(value, name) for name, value in part.items()}
        with _placed(where):
            return made(**given)
    if "choice" in data:
        options = read(data["choice"], "choice")
        with _placed(where):
            choice = Choice(options, data.get("name"))
            return shared.setdefault(data["shared"], choice) if "shared" in data else choice
    if "function" in data:
        if str(data["function"]) not in FUNCTIONS:
            raise SpaceError(f"{where}: {data['function']!r} is no function of sizes; there are {', '.join(FUNCTIONS)}")
        return Op(data["function"], read(data.get("args", []), "args"))
    if "in_channels" in data:
        return in_channels
    raise SpaceError(f"{where}: {str(data)[:200]} is neither a layer nor a choice, a function of sizes or the input's channels")


@contextmanager
def _placed(where: str) -> Iterator[None]:
    """Says where in the JSON something stands that nothing can be made of."""
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        raise SpaceError(f"{where}: {error}") from error


def _require_fields(kind: type, given: Mapping[str, Any], where: str) -> None:
    known = {f.name: f for f in fields(kind) if f.name != "make"}
    if unknown := [name for name in given if name not in known]:
        close = get_close_matches(unknown[0], known, n=1)
        raise SpaceError(f"{where} has no {unknown[0]!r}; " + (f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"))
    missing = [name for name, f in known.items() if name not in given and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise SpaceError(f"{where} lacks {missing[0]!r}")


def _differences(old: Any, new: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    if old == new:
        return
    if type(old) is not type(new) or not isinstance(old, (Layer, Node)) or getattr(old, "name", None) != getattr(new, "name", None):
        yield (path, old, new)
        return
    before = {(part.field, part.label): part.value for part in parts_of(old)}
    after = {(part.field, part.label): part.value for part in parts_of(new)}
    for key in dict.fromkeys((*before, *after)):
        yield from _differences(before.get(key), after.get(key), joined(path, key[1]))
