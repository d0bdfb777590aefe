"""`adopt(model, example) -> (Network, weights)`: a user's own model as a description, whose widths are choices, and its weights."""

from __future__ import annotations

import base64
import operator
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from niwaki.adoption.adopted import Adopted, read
from niwaki.adoption.axes import AdoptionError, Axis, Group, Run, Size, Term, groups_of, length
from niwaki.adoption.capture import Example
from niwaki.adoption.flat import first_names, layer_of
from niwaki.adoption.operators import arguments, name_of, overload
from niwaki.adoption.reading import rows_as_captured, rows_for_one
from niwaki.net import axes
from niwaki.net.control import Graph, Input, Network, Node
from niwaki.net.operation import RETURN, UNUSED, In, Items, Named, Operation, Weight
from niwaki.space.choice import Choice
from niwaki.space.size import Expr

EIGHTHS = 8
MOST_BYTES = 1 << 20  # of a table that a description holds itself; larger ones are among the weights only
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
Options = Callable[[Group], Sequence[int]]


def eighths(group: Group, narrowest: float = 1 / EIGHTHS) -> tuple[int, ...]:
    """Eighths of the owner's units from the share `narrowest` on, rounded, at least as many as there have to be; the owner's own width comes last."""
    parts = [part for part in range(1, EIGHTHS + 1) if part >= EIGHTHS * narrowest]
    return tuple(sorted({max(group.least, round(group.units * part / EIGHTHS)) for part in parts}))


def adopt(
    model: nn.Module, example: Example, *, narrowest: float = 1 / EIGHTHS, options: Options | None = None
) -> tuple[Network, dict[str, Tensor]]:
    """Read a model by running it on an example: its description, in which the size of every group of channels is a choice, and its weights.

    The widths are eighths of the owner's, from the share `narrowest` on. Where members share weights (`train_once`), 3 / 8 is better than all of
    them: the cheapest member then takes about a seventh of the owner's multiply-adds, not a fiftieth. options: of a group, how many of its units
    there may be instead; its own number is always among them. What is not understood keeps its channels.
    """
    if not 0 < narrowest <= 1:
        raise AdoptionError(f"narrowest is a share of a group's units, above 0 and at most 1; given {narrowest}")
    return describe(read(model, example), options=options or partial(eighths, narrowest=narrowest))


def describe(adopted: Adopted, *, options: Options = eighths) -> tuple[Network, dict[str, Tensor]]:
    """The description of a model that was read, and its weights by the owner's names."""
    return _Describer(adopted, options).network(), weights_of(adopted)


def weights_of(adopted: Adopted) -> dict[str, Tensor]:
    """Every parameter and buffer of the owner's, copied; those outside its state dict, too."""
    owner = adopted.owner
    tensors = {**dict(owner.named_buffers(remove_duplicate=False)), **dict(owner.named_parameters(remove_duplicate=False))}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def choices_of(adopted: Adopted, options: Options = eighths) -> dict[str, Choice]:
    """The choice that each group's size is; `stage1.0.conv2` is the decision `stage1_0_conv2`."""
    found: dict[str, Choice] = {}
    taken: set[str] = set()
    for group in adopted.groups:
        name = base = re.sub(r"\W", "_", group.name)
        number = 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        sizes = tuple(dict.fromkeys((*sorted(int(size) for size in options(group) if size != group.units), group.units)))
        if not group.least <= sizes[0] <= sizes[-2 if len(sizes) > 1 else 0] <= group.units:
            raise AdoptionError(f"group {group.name!r} has {group.least} to {group.units} units; its options are {sizes}")
        found[group.name] = Choice(sizes, f"/{name}")
    return found


class _Describer:
    """Writes the graph of a model that was read as a graph of operations."""

    def __init__(self, adopted: Adopted, options: Options) -> None:
        self.adopted = adopted
        self.choices = choices_of(adopted, options)
        owner = adopted.owner
        self.parameters = dict(owner.named_parameters(remove_duplicate=False))
        self.buffers = dict(owner.named_buffers(remove_duplicate=False))
        self.tensors: dict[str, Tensor] = {**self.buffers, **self.parameters}
        self.stored = set(owner.state_dict())
        self.names: dict[str, list[str]] = {}  # of the same tensor, by the first of them
        for name, first in first_names(owner).items():
            self.names.setdefault(first, []).append(name)
        self.statistics = {name for name in self.names if name.rpartition(".")[2] in STATISTICS}
        self.functions = {node.name for node in adopted.module.graph.nodes if node.op == "call_function"}
        self.read: set[str] = set()  # tensors, by their first name
        self.labels: dict[fx.Node, str] = {}
        self.taken: set[str] = set()

    def network(self) -> Network:
        graph = self.adopted.graph
        inputs = []
        for node in graph.find_nodes(op="placeholder"):
            if node.users:
                inputs.append(self.input(node))
                self.labels[node] = node.name
                self.taken.add(node.name)
        nodes: list[tuple[str, Node]] = []
        for node in graph.nodes:
            if node.op == "call_function":
                nodes.append(self.node(node))
            elif node.op not in ("placeholder", "get_attr", "output"):
                raise AdoptionError(f"{node.format_node()} cannot be described; `read`, `shrink` and `cut` work on it")
        (output,) = graph.find_nodes(op="output")
        result = output.args[0]
        if isinstance(result, fx.Node):
            label = self.labels[result]
        else:
            label = self.label("outputs")
            given = [value for value in pytree.tree_leaves(result) if isinstance(value, fx.Node)]
            structure = self.argument(result, given, output)
            nodes.append((label, Node(Operation(RETURN, (structure,), shape=None), self.sources(given))))
        if unused := [self.weight(first, None) for first in self.names if first not in self.read]:
            nodes.insert(0, (self.label("unused"), Node(Operation(UNUSED, tuple(unused), shape=None), (inputs[0].name,))))
        names = tuple(one.name for one in inputs)
        return Network(Graph(tuple(nodes), label, names), inputs[0].shape, tuple(inputs))

    def input(self, node: fx.Node) -> Input:
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            raise AdoptionError(
                f"the argument {node.name!r} of the model is no tensor but a structure of several; give them as arguments of their own to describe "
                f"the model (`read` and `shrink` take it as it is)"
            )
        sizes = [rows_as_captured(size) for size in value.shape]
        dtype = str(value.dtype).removeprefix("torch.")
        batched = self.adopted.symbolic and bool(sizes)
        return Input(node.name, tuple(sizes[1:] if batched else sizes), dtype, None, batched)

    # --- one operator ----------------------------------------------------------------------------------------------------

    def node(self, node: fx.Node) -> tuple[str, Node]:
        target = overload(node)
        given = [value for value in node.all_input_nodes if value.op != "get_attr"]
        keywords: dict[str, Any] = {}
        if target is None:
            name = getattr(node.target, "__name__", "")
            if getattr(operator, name, None) is not node.target or node.kwargs:
                raise AdoptionError(f"{node.format_node()} cannot be described; `read`, `shrink` and `cut` work on it")
            called, args = f"operator.{name}", list(node.args)
        else:
            called, args, keywords = self.call(node)
        positional = tuple(self.argument(value, given, node) for value in args)
        named = tuple((key, self.argument(value, given, node)) for key, value in keywords.items())
        if called == "aten.batch_norm.default":
            named = self.batches(node, positional)
        layer = Operation(called, positional, named, self.shape(node), self.macs(node), self.note(node))
        label = self.labels[node] = self.label(self.path(node))
        return label, Node(layer, self.sources(given))

    def call(self, node: fx.Node) -> tuple[str, list[Any], dict[str, Any]]:
        """The operator, with its arguments where sizes are expressions."""
        sizes = dict(self.adopted.sizes.get(node.name, {}))
        if "split_sizes" in sizes:
            given = arguments(node)
            return "aten.split_with_sizes.default", [given["self"], sizes["split_sizes"], given["dim"]], {}
        args, kwargs = list(node.args), dict(node.kwargs)
        for number, argument in enumerate(overload(node)._schema.arguments):
            if argument.name in sizes:
                if number < len(args):
                    args[number] = sizes[argument.name]
                else:
                    kwargs[argument.name] = sizes[argument.name]
        return str(node.target), args, kwargs

    def argument(self, value: Any, given: Sequence[fx.Node], node: fx.Node) -> Any:
        if isinstance(value, fx.Node):
            return self.weight(str(value.target), node) if value.op == "get_attr" else In(given.index(value))
        if isinstance(value, Size):
            return axes.size_of(self.axis(value.axis))
        if isinstance(value, Mapping):
            return Items(tuple(value), tuple(self.argument(each, given, node) for each in value.values()))
        if isinstance(value, (list, tuple)):
            return tuple(self.argument(each, given, node) for each in value)
        if isinstance(value, torch.device):
            return Named("device")
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return Named(str(value).removeprefix("torch."))
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise AdoptionError(f"{node.format_node()} is given {value!r}, which cannot be described; `read`, `shrink` and `cut` work on it")

    def sources(self, given: Sequence[fx.Node]) -> tuple[str, ...]:
        if given:
            return tuple(self.labels[value] for value in given)
        return (next(iter(self.labels.values())),)  # it makes something up, and reads nothing of its input

    def batches(self, node: fx.Node, positional: Sequence[Any]) -> tuple[tuple[str, Any], ...]:
        """How many dimensions a batch norm's input has, and the owner's count of batches beside its running mean, or that it counts none."""
        mean = positional[3] if len(positional) > 3 else None
        dims = (("dims", node.meta["val"].dim()),)
        if not isinstance(mean, Weight):
            return dims
        if node.name in self.functions:
            return (*dims, ("frozen", True))
        name = f"{mean.name.rpartition('.')[0]}.num_batches_tracked"
        first = next((first for first, names in self.names.items() if name in names), None)
        return dims if first is None else (*dims, ("num_batches_tracked", self.weight(first, None, called=name)))

    # --- sizes -------------------------------------------------------------------------------------------------------------

    def axis(self, runs: Axis) -> axes.Axis:
        return tuple(self.run(run) for run in runs)

    def run(self, run: Run) -> axes.Run:
        return axes.Run(run.units if run.group is None else self.choices[run.group], run.inner, run.outer)

    def shape(self, node: fx.Node) -> tuple[axes.Axis, ...] | None:
        """The axes for one example, without those that are nothing but the batch."""
        value, known = node.meta.get("val"), self.adopted.activations.get(node.name)
        if not isinstance(value, Tensor):
            return None
        found = []
        for dim, size in enumerate(value.shape):
            whole, one = rows_as_captured(size), rows_for_one(size)
            if isinstance(size, torch.SymInt) and one == 1:
                continue
            runs = known[dim] if known is not None else (Run(None, whole),)
            found.append(self.axis(runs if whole == one else _for_one(runs, whole, one, node)))
        return tuple(found)

    def macs(self, node: fx.Node) -> tuple[tuple[Expr, ...], ...]:
        return tuple(self.product(term) for term in self.adopted.products.get(node.name, ()))

    def product(self, term: Term) -> tuple[Expr, ...]:
        sizes: list[Expr] = [term.coefficient]
        for linear in term.sizes:
            total: Expr = 0
            for group, factor in linear:
                total = total + factor * (1 if group is None else self.choices[group])
            sizes.append(total)
        return tuple(sizes)

    # --- weights and names -----------------------------------------------------------------------------------------------

    def weight(self, first: str, node: fx.Node | None, *, called: str | None = None) -> Weight:
        """A tensor of the owner's, by the name that the layer which reads it has for it, if it has one."""
        self.read.add(first)
        names = self.names[first]
        prefix = layer_of(node) if node is not None else ""
        name = called or next((name for name in names if prefix and name.rpartition(".")[0] == prefix), names[0])
        tensor = self.tensors[first]
        if isinstance(tensor, nn.Parameter):
            kind = "parameter" if tensor.requires_grad else "frozen"
        else:
            kind = "buffer" if first in self.stored or self.has_to_be_stored(first) else "constant"
        runs = self.adopted.weights.get(first)
        shape = tuple(map(self.axis, runs)) if runs is not None else tuple(axes.axis(size) for size in tensor.shape)
        return Weight(
            name,
            shape,
            kind,
            str(tensor.dtype).removeprefix("torch."),
            tuple(other for other in names if other != name),
            fill=_fill(tensor) if isinstance(tensor, nn.Parameter) else None,
            data=_data(tensor) if not isinstance(tensor, nn.Parameter) and first not in self.statistics else None,
        )

    def has_to_be_stored(self, first: str) -> bool:
        """Whether a table outside the owner's state dict travels with the weights: where positions of it are chosen, or a description cannot hold it."""
        axes = self.adopted.weights.get(first, ())
        return any(map(groups_of, axes)) or (self.tensors[first].numel() > 0 and _data(self.tensors[first]) is None)

    def path(self, node: fx.Node) -> str:
        """Where the operator stands: its layer, or the layer it stands in and its own name."""
        layer, name = layer_of(node), name_of(node) or getattr(node.target, "__name__", "step")
        inside = any(value.op == "get_attr" for value in node.all_input_nodes)
        if layer and (
            inside or (layer in dict(self.adopted.owner.named_modules()) and not list(self.adopted.owner.get_submodule(layer).children()))
        ):
            return layer
        return f"{layer}.{name}" if layer else name

    def label(self, wanted: str) -> str:
        label, number = wanted, 2
        while label in self.taken:
            label, number = f"{wanted}_{number}", number + 1
        self.taken.add(label)
        return label

    def note(self, node: fx.Node) -> str:
        layer = layer_of(node)
        return "; ".join(note for note in self.adopted.notes if layer and note.startswith(f"{layer} {node.target}"))


def _for_one(runs: Axis, whole: int, one: int, node: fx.Node) -> Axis:
    """An axis in which the batch lies, too, for a batch of one."""
    if all(run.group is None for run in runs):
        return (Run(None, one),)
    rows = whole // one
    if len(runs) == 1 and one * rows == whole == length(runs):
        (run,) = runs
        if run.outer % rows == 0:
            return (Run(run.group, run.units, run.inner, run.outer // rows),)
        if run.inner % rows == 0:
            return (Run(run.group, run.units, run.inner // rows, run.outer),)
    raise AdoptionError(f"{node.format_node()} lays the batch and channels into one axis in a way that cannot be described")


def _fill(tensor: Tensor) -> float | None:
    """The number that stands everywhere in a tensor."""
    if not tensor.numel() or not tensor.is_floating_point():
        return None
    first = tensor.detach().flatten()[0]
    return float(first) if bool((tensor == first).all()) else None


def _data(tensor: Tensor) -> str | None:
    if tensor.numel() * tensor.element_size() > MOST_BYTES or tensor.dtype == torch.bfloat16 or not tensor.numel():
        return None
    raw = tensor.detach().cpu().contiguous().numpy().tobytes()
    return base64.b64encode(zlib.compress(raw, 9)).decode()
