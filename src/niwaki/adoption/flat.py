"""A user's model as a flat graph of aten operators, with weights under the owner's names: of an exported program, or of a trace."""

from __future__ import annotations

import inspect
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from niwaki.adoption.axes import AdoptionError
from niwaki.adoption.operators import aten, name_of, overload
from niwaki.adoption.trace import Kind, Rows, Trace, Value, symbolic_size
from niwaki.adoption.writing import without_writing_

NO_EFFECT = {"_assert_scalar", "_assert_tensor_metadata", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size"}


class ByName(fx.Interpreter):
    """Runs a graph of `owner`'s on arguments by the names of its `forward`."""

    def __init__(self, graph: fx.Graph, owner: nn.Module, bound: Mapping[str, Any], *, keep: bool = False) -> None:
        super().__init__(owner, garbage_collect_values=not keep, graph=graph)
        self.bound = bound

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.bound[target.lstrip("*")]


def first_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer, the first name of the same tensor: tied weights are one weight."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def place_in_code(node: fx.Node) -> str:
    """`model.py:12`, the innermost line outside PyTorch that made this node, or nothing."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in lines if not is_torch(file)]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def layer_of(node: fx.Node) -> str:
    """Path of the module whose forward made this node, as its owner wrote it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"@\d+$", "", stack[-1][0]) if stack else ""


@lru_cache(maxsize=4096)
def is_torch(file: str) -> bool:
    return str(Path(torch.__file__).parent) in file or str(Path(__file__).parent) in file or file.startswith("<")


def flat_graph(program: Any, owner: nn.Module, bound: dict[str, Any]) -> fx.Graph:
    """The exported graph with weights read by name, the owner's arguments as placeholders, and its structure of outputs."""
    _refuse_sizes_of_values(program.graph)
    graph = fx.Graph()
    replaced: dict[fx.Node, Any] = {}
    first = first_names(owner)
    leaves = _placeholders(graph, bound, owner)
    for spec, node in zip(program.graph_signature.input_specs, nodes_of(program.graph, "placeholder"), strict=True):
        if spec.kind == InputKind.USER_INPUT:
            replaced[node] = next(leaves)
            if isinstance(replaced[node], fx.Node):
                replaced[node].meta.update(node.meta)
        elif node.users:
            name = first.get(spec.target, spec.target)
            if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER) or spec.target not in first:
                name = _keep_constant(owner, spec.target, program)
            replaced[node] = graph.create_node("get_attr", name, name=re.sub(r"\W", "_", name))
            replaced[node].meta.update(node.meta)
    _append(graph, program.graph_module, replaced, owner)
    (output,) = nodes_of(program.graph, "output")
    results: Any = output.args[0]
    flat = [replaced[value] if isinstance(value, fx.Node) else value for value in results]
    mutations = len(flat) - len(program.graph_signature.user_outputs)
    structure = pytree.tree_unflatten(flat[mutations:], program.call_spec.out_spec)
    try:
        graph.output(structure)
    except Exception as error:
        raise AdoptionError(
            f"the model returns a {type(structure).__name__}; return tensors, or tuples, lists and dicts of tensors"
        ) from error
    return _without_leftovers(graph)


def traced_graph(found: Trace, owner: nn.Module, bound: dict[str, Any], *, axis: int, rows: int) -> fx.Graph:
    """The graph of a trace, as `flat_graph` would have it; the batch, along `axis` of the inputs, is a symbolic size that was `rows`."""
    graph, size = fx.Graph(), symbolic_size(rows)
    nodes: dict[Any, fx.Node] = {}  # by `Value` and by `Rows`
    examples: dict[Any, Tensor] = {}

    @cache
    def example(kind: Kind) -> Tensor:
        shape = [each.times * size if isinstance(each, Rows) else each for each in kind.shape]
        return torch.empty(shape, dtype=kind.dtype, device="meta")

    def node_of(leaf: Any) -> Any:
        if isinstance(leaf, Rows) and leaf not in nodes:
            nodes[leaf] = graph.call_function(operator.mul, (nodes[Rows(1)], leaf.times))
            nodes[leaf].meta["val"] = leaf.times * size
        return nodes[leaf] if isinstance(leaf, Rows | Value) else leaf

    for number, (node, kind) in enumerate(zip(_placeholders(graph, bound, owner), found.inputs, strict=True)):
        if isinstance(kind, Kind):
            nodes[Value("input", number)] = node
            node.meta["val"] = example(kind)
    with_rows = next(number for number, kind in enumerate(found.inputs) if isinstance(kind, Kind) and kind.follows_batch)
    read = {leaf.key for call in found.calls for leaf in pytree.tree_leaves((call.args, call.kwargs)) if _is_weight(leaf)}
    read |= {leaf.key for leaf in pytree.tree_leaves(found.outputs) if _is_weight(leaf)}
    for name, tensor in [*owner.named_parameters(), *owner.named_buffers()]:
        if name in read:
            nodes[Value("weight", name)] = node = graph.create_node("get_attr", name, name=re.sub(r"\W", "_", name))
            node.meta["val"] = tensor.to("meta")
    nodes[Rows(1)] = graph.call_function(aten.sym_size.int, (nodes[Value("input", with_rows)], axis))
    nodes[Rows(1)].meta["val"] = size
    for call in found.calls:
        args, kwargs = pytree.tree_map(node_of, (call.args, call.kwargs))
        target = aten.reshape.default if call.target is aten.view.default else call.target
        node = graph.create_node("call_function", target, args, kwargs, name=call.target.overloadpacket.__name__)
        examples.update(
            zip((leaf for leaf in pytree.tree_leaves(call.gives) if isinstance(leaf, Value)), map(example, call.kinds), strict=True)
        )
        told = {"nn_module_stack": {call.layer: (call.layer, "")}, "stack_trace": call.place}
        node.meta.update(told, val=pytree.tree_map(lambda leaf: examples.get(leaf), call.gives))
        if isinstance(call.gives, Value):
            nodes[call.gives] = node
        elif call.gives is not None:
            for number, value in enumerate(call.gives):
                if value is not None:
                    nodes[value] = graph.call_function(operator.getitem, (node, number))
                    nodes[value].meta.update(told, val=examples[value])
    graph.output(pytree.tree_map(node_of, found.outputs))
    return _without_leftovers(graph)


def _is_weight(leaf: Any) -> bool:
    return isinstance(leaf, Value) and leaf.kind == "weight"


def _without_leftovers(graph: fx.Graph) -> fx.Graph:
    """Without what nobody reads, and without writing where that can be said in other words."""
    without_writing_(graph)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op in ("call_function", "get_attr") and not node.is_impure():
            graph.erase_node(node)
    return graph


def _refuse_sizes_of_values(graph: fx.Graph) -> None:
    """A size that is known only when the model runs (`x[x > 0.5]`, nonzero) has no number that could be counted or cut."""
    for node in graph.nodes:
        if free_unbacked_symbols([value for value in pytree.tree_leaves(node.meta.get("val")) if isinstance(value, Tensor)]):
            where = f"{place}: " if (place := place_in_code(node)) else ""
            raise AdoptionError(
                f"{where}the size of what {overload(node) or node.name} gives depends on the values of a tensor. Keep the size, as in "
                f"torch.where(mask, x, 0) or x * mask, move it out of forward, or adopt the parts before and after it as models of their own"
            )


def _append(graph: fx.Graph, module: fx.GraphModule, replaced: dict[fx.Node, Any], owner: nn.Module) -> None:
    """The operators of an exported graph. Blocks with another mode of gradients, or with autocast switched off, are written out."""
    for node in module.graph.nodes:
        if node.op == "get_attr":  # the body of a higher-order operator
            replaced[node] = getattr(module, node.target)
        elif node.op == "call_function" and (block := _plain_block(node)) is not None:
            replaced[node] = _written_out(graph, *block, replaced, owner)
        elif node.op == "call_function" and node.target is operator.getitem and isinstance(replaced[node.args[0]], tuple):
            replaced[node] = replaced[node.args[0]][node.args[1]]
        elif node.op == "call_function" and not _is_assertion(node):
            replaced[node] = new = graph.node_copy(node, lambda old: _node_of(graph, replaced[old], owner))
            if new.target is aten.view.default:
                new.target = aten.reshape.default  # whether a view is possible depends on the kernels of the machine that traced it


def _plain_block(node: fx.Node) -> tuple[fx.Node, Sequence[Any], bool] | None:
    """Body, arguments and mode of gradients of a block that may be written out."""
    args: Any = node.args
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return args[1], args[2:], args[0]
    if node.target is torch.ops.higher_order.wrap_with_autocast and not args[2]:
        return args[4], args[5:], True
    return None


def _written_out(
    graph: fx.Graph, body: fx.Node, args: Sequence[Any], gradients: bool, replaced: dict[fx.Node, Any], owner: nn.Module
) -> tuple[Any, ...]:
    module = replaced[body]
    inside = dict(zip(nodes_of(module.graph, "placeholder"), (replaced.get(arg, arg) for arg in args), strict=True))
    _append(graph, module, inside, owner)
    (output,) = nodes_of(module.graph, "output")
    results: Any = output.args[0]
    found = [inside.get(value, value) for value in results]
    if gradients:
        return tuple(found)
    detached = []
    for value, old in zip(found, results, strict=True):
        new = graph.call_function(aten.detach.default, (value,)) if isinstance(value, fx.Node) else value
        if isinstance(new, fx.Node):
            new.meta.update(old.meta)
        detached.append(new)
    return tuple(detached)


def _node_of(graph: fx.Graph, value: Any, owner: nn.Module) -> Any:
    """A node for what a node of the exported graph became; the body of a higher-order operator is kept as a module of its own."""
    if not isinstance(value, fx.GraphModule):
        return value
    name = next((name for name, child in owner.named_children() if child is value), None)
    if name is None:
        name = next(free for number in range(len(owner._modules) + 1) if (free := f"body_{number}") not in owner._modules)
        owner.add_module(name, value)
    return graph.get_attr(name)


def nodes_of(graph: fx.Graph, op: str) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == op]


def _is_assertion(node: fx.Node) -> bool:
    return not node.users and name_of(node) in NO_EFFECT


def _placeholders(graph: fx.Graph, bound: dict[str, Any], owner: nn.Module) -> Iterator[Any]:
    """One placeholder per argument of the owner's `forward`; then, leaf by leaf of their structure, the node that holds it."""
    parameters = inspect.signature(owner.forward).parameters
    stars: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    nodes = {name: graph.placeholder(stars.get(parameters[name].kind, "") + name) for name in bound}
    steps: Any
    for steps, _ in pytree.tree_flatten_with_path(bound)[0]:
        node = nodes[steps[0].key]
        for step in steps[1:]:
            if isinstance(step, pytree.GetAttrKey):
                node = graph.call_function(getattr, (node, step.name))
            else:
                key = step.idx if isinstance(step, pytree.SequenceKey) else step.key
                node = graph.call_function(operator.getitem, (node, key))
        yield node


def _keep_constant(owner: nn.Module, name: str, program: Any) -> str:
    """A tensor that forward makes out of Python numbers becomes a buffer outside the state dict, so that it moves with the module."""
    tensor = program.constants[name]
    if not isinstance(tensor, Tensor):
        raise AdoptionError(f"forward makes a {type(tensor).__name__}, which no graph keeps; make what it is for once, in __init__")
    flat = "constant_" + re.sub(r"\W", "_", name)
    if flat not in dict(owner.named_buffers(recurse=False)):
        owner.register_buffer(flat, tensor.detach().clone(), persistent=False)
    return flat
