"""`read(model, example) -> Adopted`: a user's own PyTorch model, and which of its channels may be removed together.

`Adopted` is the analysed graph with plain numbers and no choices: groups, the runs on every axis, costs as polynomials in the units alive,
and `cut`, the plain module with fewer units. How it is found out: `capture` traces or exports the model, `rules` say operator by operator
what happens to every channel, `groups` sorts the channels.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from niwaki.adoption.axes import AdoptionError, Axis, Group, Linear, Run, Size, Term, groups_of, length, linear, total
from niwaki.adoption.batch import are_equal, gradients, one_row, rows_of, run
from niwaki.adoption.capture import Arguments, Captured, Example, capture
from niwaki.adoption.counter import macs_of_nodes
from niwaki.adoption.cut import plain_module
from niwaki.adoption.flat import ByName, first_names, place_in_code
from niwaki.adoption.frozen import frozen_notes
from niwaki.adoption.groups import Array, Partition, partition
from niwaki.adoption.operators import arguments, name_of, overload
from niwaki.adoption.reading import Extent, Floor, Product, Reading, rows_for_one
from niwaki.adoption.rules import read_node

METRICS = ("macs", "params", "activation_bytes")
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Gate:
    """A channel of `axis` that is removed counts as zero where `reader` reads `value`."""

    reader: str
    value: str
    axis: int


@dataclass(frozen=True)
class Adopted:
    """A model that was read. Names of nodes are the same in `graph`, in `module.graph` and in every cut.

    Costs are those of one example: of a batch of one where the batch size is free (`symbolic`), else of the example as it was given.
    """

    module: fx.GraphModule  # the whole network, plain PyTorch, the owner's names
    graph: fx.Graph  # aten operators; weights by `get_attr`, under the first of their names
    owner: nn.Module  # a private copy of the model, for its weights and the kinds of its layers
    arguments: Arguments  # the example: positional and keyword arguments
    batch: int | None  # axis of the inputs whose size is free
    examples: int  # that the costs are of: 1 where the batch size is free, else as many as were given, if they can be told apart
    groups: tuple[Group, ...]
    weights: Mapping[str, tuple[Axis, ...]]
    activations: Mapping[str, tuple[Axis, ...]]  # by node
    sizes: Mapping[str, Mapping[str, Any]]  # by node: arguments that hold a `Size`, whole, by the name in the operator's schema
    costs: Mapping[str, tuple[Term, ...]]
    products: Mapping[str, tuple[Term, ...]]  # by node: the multiply-adds that it does
    meetings: tuple[Gate, ...]
    averages: Mapping[str, tuple[int, ...]]  # by node: axes whose mean or variance follows the units alive
    opaque: tuple[str, ...]  # layers (or, outside any, operators) that are not understood
    notes: tuple[str, ...]  # why, and what else the owner should know

    @property
    def gates(self) -> dict[str, tuple[str, ...]]:
        """Nodes of each group whose product with a 0/1 gate per unit has the effect of removing the units (see `gates.gated`)."""
        found: dict[str, dict[str, None]] = {group.name: {} for group in self.groups}
        for gate in self.meetings:
            for group in groups_of(self.activations[gate.value][gate.axis]):
                found[group][gate.value] = None
        return {group: tuple(nodes) for group, nodes in found.items()}

    @property
    def symbolic(self) -> bool:
        """Whether the batch size is free."""
        return self.batch is not None

    @property
    def whole(self) -> dict[str, int]:
        """Units of every group in the owner's model."""
        return {group.name: group.units for group in self.groups}

    @property
    def least(self) -> dict[str, int]:
        """The fewest units that every group may have: one, or two where a variance or a normalisation runs over them."""
        return {group.name: group.least for group in self.groups}

    def terms(self, metric: str) -> tuple[Term, ...]:
        """A cost as a sum of products of sizes. "macs": multiply-adds of maps and products; "params": all parameters, tied ones once;
        "activation_bytes": what operators write (views write nothing), in float32."""
        if metric not in self.costs:
            raise AdoptionError(f"there is no metric {metric!r}; there are {', '.join(self.costs)}")
        return self.costs[metric]

    def cost(self, metric: str, alive: Mapping[str, int] | None = None) -> int:
        """Cost with `alive` units of the groups it names, and all of the others; exact."""
        return total(self.terms(metric), {**self.whole, **self._checked(alive or {})})

    def cut(self, keep: Mapping[str, Sequence[int] | Tensor]) -> fx.GraphModule:
        """The plain module with only the units `keep[group]`, sorted; groups that are not named stay whole. Nothing is shared with the original."""
        kept = {group.name: list(range(group.units)) for group in self.groups}
        kept |= {name: [int(unit) for unit in units] for name, units in keep.items()}
        self._checked({name: len(units) for name, units in kept.items()})
        for name, units in kept.items():
            if units != sorted(set(units)) or not 0 <= units[0] <= units[-1] < self.whole[name]:
                raise AdoptionError(f"units of {name!r} are numbers from 0 to {self.whole[name] - 1}, ascending, each once; given {units}")
        return plain_module(self.graph, self.owner, self.weights, self.sizes, kept)

    def _checked(self, alive: Mapping[str, int]) -> Mapping[str, int]:
        for name, units in alive.items():
            if name not in self.whole:
                raise AdoptionError(f"there is no group {name!r}; there are {', '.join(self.whole) or 'none'}")
            if not self.least[name] <= units <= self.whole[name]:
                raise AdoptionError(f"group {name!r} has {self.least[name]} to {self.whole[name]} units; given {units}")
        return alive


def read(model: nn.Module, example: Example) -> Adopted:
    """Read a model by running it on an example: a tensor, a tuple of positional arguments or a dict of keyword arguments."""
    captured = capture(model, example)
    reading = Reading(captured)
    for node in captured.graph.nodes:
        read_node(reading, node)
    for node, macs in macs_of_nodes(captured, reading.uncounted).items():
        reading.count(node, macs, ())
    costs: dict[str, Mapping[Any, list[Product]]] = {
        "macs": reading.macs,
        "params": {None: _parameters(reading)},
        "activation_bytes": _written(reading),
    }
    extents = [extent.units for products in costs.values() for each in products.values() for product in each for extent in product.extents]
    parameters = dict(captured.owner.named_parameters())
    held = [axis for name, axes in reading.weights.items() if name in parameters for axis in _made_by(captured.graph, name, axes)]
    read_at = [reading.of(meeting.value)[meeting.axis] for meeting in reading.meetings]
    runs, groups = _sorted(reading, partial(partition, reading.units, [*reading.every_axis(), *extents], weights=held, read=read_at))
    axes = {node.name: tuple(map(runs.of, axes)) for node, axes in reading.axes.items() if _is_tensor(node) and axes is not None}
    weights = {name: tuple(map(runs.of, axes)) for name, axes in reading.weights.items()}
    sizes = {node.name: runs.sizes(raw) for node, raw in reading.sizes.items()}
    module = plain_module(captured.graph, captured.owner, weights, sizes, {group.name: range(group.units) for group in groups})
    if captured.outputs is not None and not are_equal(pytree.tree_leaves(run(module, captured.arguments)), captured.outputs):
        raise AdoptionError(_other_outputs(captured, module))
    return Adopted(
        module=module,
        graph=captured.graph,
        owner=captured.owner,
        arguments=captured.arguments,
        batch=captured.batch,
        examples=captured.examples,
        groups=groups,
        weights=weights,
        activations=axes,
        sizes=sizes,
        products={node.name: tuple(map(runs.term, each)) for node, each in reading.macs.items()},
        costs={metric: tuple(runs.term(product) for each in products.values() for product in each) for metric, products in costs.items()},
        meetings=tuple(
            Gate(meeting.reader.name, meeting.value.name, meeting.axis)
            for meeting in reading.meetings
            if groups_of(axes[meeting.value.name][meeting.axis])
        ),
        averages={
            node.name: dims
            for node, dims in reading.averages.items()
            if any(groups_of(axes[node.all_input_nodes[0].name][dim]) for dim in dims)
        },
        opaque=tuple(dict.fromkeys(layer for layer, _ in reading.opaque.values())),
        notes=(
            *captured.notes,
            *frozen_notes(reading),
            *dict.fromkeys(note for _, note in reading.opaque.values()),
            *_always_as_evaluated(module),
            *_lost_backwards(captured, module),
        ),
    )


@dataclass(frozen=True)
class _Runs:
    """Arrays of units as runs of named groups."""

    partition: Partition
    names: Sequence[str]

    def of(self, units: Array) -> Axis:
        return tuple(
            run if run.group is None else Run(self.names[int(run.group)], run.units, run.inner, run.outer)
            for run in self.partition.runs(units)
        )

    def sizes(self, value: Any) -> Any:
        """Arguments with a `Size` where an axis that may be cut stands, and numbers where one that may not does."""
        if isinstance(value, np.ndarray):
            axis = self.of(value)
            return Size(axis) if groups_of(axis) else length(axis)
        if isinstance(value, dict):
            return {key: self.sizes(each) for key, each in value.items()}
        return [self.sizes(each) for each in value] if isinstance(value, list | tuple) else value

    def term(self, product: Product) -> Term:
        coefficient, sizes = product.coefficient, []
        for extent in product.extents:
            axis = self.of(extent.units)
            if groups_of(axis):
                sizes.append(_for_one(linear(axis), extent))
            else:
                coefficient *= extent.rows
        return Term(coefficient, tuple(sizes))


def _sorted(reading: Reading, sort: Callable[[], Partition]) -> tuple[_Runs, tuple[Group, ...]]:
    """The groups, each with the fewest units that it may have; one of which all are needed is fixed."""
    while True:
        found = sort()
        names, groups = _named(reading, found)
        runs = _Runs(found, names)
        least = _least(reading.floors, runs, {name: units for name, units, _ in groups})
        needed = {name for name, units, _ in groups if least[name] == units}
        if not needed:
            return runs, tuple(Group(name, units, members, least[name]) for name, units, members in groups)
        for floor in reading.floors:
            reading.units.reason = floor.reader
            for extent in floor.extents:
                start = 0
                for part in runs.of(extent.units):
                    if part.group in needed:
                        reading.freeze(extent.units[start : start + part.length])
                    start += part.length


def _least(floors: Sequence[Floor], runs: _Runs, units: Mapping[str, int]) -> dict[str, int]:
    """The fewest units of each group, of `units`, with which every statistic is of enough numbers; all, where that takes them."""
    least = dict.fromkeys(units, 1)
    for floor in floors:
        term = runs.term(Product(1, floor.extents))
        inside = {group for size in term.sizes for group, _ in size if group is not None}
        for number in range(1, floor.least + 1):
            least |= {group: max(least[group], min(number, units[group])) for group in inside}
            if total([term], least) >= floor.least:
                break
    return least


def _for_one(size: Linear, extent: Extent) -> Linear:
    """Heads that lie in one axis with the batch: as many times fewer as the batch of the capture is larger than one."""
    scaled = [(group, factor * extent.rows) for group, factor in size]
    assert all(factor % len(extent.units) == 0 for _, factor in scaled) or extent.rows == len(extent.units), (size, extent.rows)
    return size if extent.rows == len(extent.units) else tuple((group, factor // len(extent.units)) for group, factor in scaled)


def _other_outputs(captured: Captured, module: fx.GraphModule) -> str:
    """That outputs for the example are others than the model's, and the first node, if any, that is not as it was captured."""
    rows = rows_of(captured.arguments, captured.batch or 0)
    graphs = (captured.graph, captured.owner), (module.graph, module)
    runs = [ByName(graph, owner, copy.deepcopy(captured.bound), keep=True) for graph, owner in graphs]
    with torch.no_grad():
        for each in runs:
            each.run()
    captured_values, values = ({node.name: value for node, value in each.env.items()} for each in runs)
    for node in captured.graph.nodes:
        if node.name in values and not are_equal(*(pytree.tree_leaves(each[node.name]) for each in (captured_values, values))):
            return f"what was read gives other outputs than the model for a batch of {rows}, from {node.name} ({place_in_code(node)}) on"
    return (
        f"what was read gives other outputs than the model for a batch of {rows}, though every node gives what it gave when it was captured: "
        f"does the model keep what it computed from one call to the next?"
    )


def _always_as_evaluated(module: fx.GraphModule) -> list[str]:
    """Batch norms that are no layer of their owner's: they were read in evaluation mode, and have no mode to follow."""
    read_as_function = [node for node in module.graph.nodes if node.op == "call_function" and name_of(node) == "batch_norm"]
    return [
        f"the batch norm {node.name} uses its running statistics also while it is trained: it is a function, not a layer"
        for node in read_as_function
        if not arguments(node)["training"]
    ]


def _lost_backwards(captured: Captured, module: fx.GraphModule) -> list[str]:
    """Whether gradients of what was read, for one row, are others than the owner's: it is differentiated as its forward says."""
    if captured.outputs is None:
        return []  # drawn, as are its gradients
    arguments = captured.arguments if captured.batch is None else one_row(captured.arguments, captured.batch)
    try:
        theirs = gradients(captured.owner, arguments)
    except Exception as error:
        return [f"the model itself cannot be differentiated: {type(error).__name__}: {str(error).strip().splitlines()[0]}"]
    ours = gradients(module, arguments)
    scale = max((float(each.norm()) for each in theirs.values()), default=0.0)
    other = [
        name
        for name, each in theirs.items()
        if name in ours and float((ours[name] - each).norm()) > 1e-2 * max(float(each.norm()), float(ours[name].norm()), 1e-3 * scale)
    ]
    if not other:
        return []
    functions = ", ".join(f"{name} ({line})" for name, line in captured.backwards.items())
    lost = f"the backward that {functions} defines is" if functions else "what hooks do to gradients, or a block in inference mode, is"
    instead = "Write it in operators, as in x + (f(x) - x).detach() for a straight-through estimator"
    none = [name for name in other if not ours[name].any()]
    told = f"; {_few(none)} would get no gradient at all" if none else f"; those of {_few(other)} are others"
    return [
        f"{lost} not kept: what was read is differentiated as its forward is{told}; training it is not training the owner's model. {instead}"
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _named(reading: Reading, found: Partition) -> tuple[list[str], list[tuple[str, int, tuple[tuple[str, int], ...]]]]:
    """Names of the groups, by number, and each with its units and members. A name is the path of the layer that makes the channels first,
    numbered where it makes several."""
    members: dict[int, list[tuple[str, int]]] = {number: [] for number in range(len(found.sizes))}
    for node in reading.captured.graph.nodes:
        for value in node.all_input_nodes:
            if value.op == "get_attr" and value in reading.axes:
                for dim, units in enumerate(reading.axes[value]):
                    for number in dict.fromkeys(int(run.group) for run in found.runs(units) if run.group is not None):
                        if (pair := (str(value.target), dim)) not in members[number]:
                            members[number].append(pair)
    names: dict[int, str] = {}
    taken: dict[str, int] = {}
    for number, pairs in members.items():
        name = pairs[0][0].rpartition(".")[0] or pairs[0][0] if pairs else "group"
        taken[name] = taken.get(name, 0) + 1
        names[number] = name if taken[name] == 1 else f"{name}#{taken[name]}"
    groups = [(names[number], found.sizes[number], tuple(members[number])) for number in members]
    return [names[number] for number in range(len(names))], groups


SUMMED = {"linear": 1, "conv1d": 1, "conv2d": 1, "conv3d": 1, "conv_transpose1d": 0, "conv_transpose2d": 0, "conv_transpose3d": 0}


def _made_by(graph: fx.Graph, name: str, axes: Sequence[Array]) -> list[Array]:
    """Axes along which a learned weight makes channels: not those of tables, and not the one along which a layer only reads.

    Channels that nothing learned makes (the columns of a table of positions, frequencies) are inputs, which are not ours to remove.
    """
    readers = {user: node for node in graph.find_nodes(op="get_attr", target=name) for user in node.users}
    only_read = {
        SUMMED.get(name_of(reader), -1) if arguments(reader).get("weight") is node and arguments(reader).get("groups", 1) == 1 else -1
        for reader, node in readers.items()
        if reader.op == "call_function" and overload(reader) is not None
    }
    return [axis for dim, axis in enumerate(axes) if only_read != {dim}]


def _parameters(reading: Reading) -> list[Product]:
    owner, first = reading.captured.owner, first_names(reading.captured.owner)
    products = []
    for name, tensor in owner.named_parameters():
        axes = reading.weights.get(first[name])
        extents = [Extent(units, len(units)) for units in axes] if axes is not None else []
        products.append(Product(1 if axes is not None else prod(tensor.shape), tuple(extents)))
    return products


KEEPS = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout", "contiguous", "to", "alias", "lift_fresh_copy", "clone")


def _written(reading: Reading) -> dict[fx.Node, list[Product]]:
    """What every operator writes, in bytes. Views write nothing, and neither do operators that hand their input on."""
    written = {}
    for node in reading.captured.graph.nodes:
        if node.op != "call_function" or (isinstance(node.target, torch._ops.OpOverload) and _hands_on(node.target)):
            continue
        if node.target is operator.getitem:
            parent = node.args[0]
            if not isinstance(parent, fx.Node) or parent.op != "call_function" or _hands_on(parent.target):
                continue
        if _is_tensor(node) and reading.axes.get(node) is not None:
            both = zip(reading.axes[node], node.meta["val"].shape, strict=True)
            written[node] = [Product(FLOAT_BYTES, tuple(Extent(units, rows_for_one(size)) for units, size in both))]
    return written


def _hands_on(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return False
    views = any(each.alias_info is not None and not each.alias_info.is_write for each in target._schema.returns)
    return views or target.overloadpacket.__name__ in KEEPS
