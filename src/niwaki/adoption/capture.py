"""A user's PyTorch model as a flat graph of aten operators, by torch.export, with weights under the owner's names. The model is never touched."""

from __future__ import annotations

import copy
import inspect
import logging
import operator
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from niwaki.adoption.axes import AdoptionError
from niwaki.adoption.batch import Arguments, batch_axis, fixed_examples, has_rows, run, side_by_side
from niwaki.adoption.operators import aten, name_of, overload
from niwaki.adoption.writing import without_writing_

Example = Any  # a tensor, a tuple of positional arguments, or a dict of keyword arguments
HALVES = (torch.float16, torch.bfloat16)
RESERVED = frozenset({"graph", "code", "meta", "forward"})  # of torch.fx.GraphModule
ROWS = 5  # a batch of one is repeated to this many while the graph is captured: torch.export takes sizes 0 and 1 for constants
MODULE_STATE = frozenset(vars(nn.Module()))  # the tables of parameters, buffers, children and hooks
NO_EFFECT = {"_assert_scalar", "_assert_tensor_metadata", "_assert_async", "sym_constrain_range", "sym_constrain_range_for_size"}
DATA_DEPENDENT = ("data-dependent", "DataDependent", "Unbacked")


@dataclass(frozen=True)
class Captured:
    """`graph` reads weights by `get_attr` under the first of their names; `owner` is a private copy: on the CPU, float32, evaluation mode."""

    graph: fx.Graph
    owner: nn.Module
    arguments: Arguments  # the example, on the CPU and in float32
    bound: dict[str, Any]  # the same by the names of `forward`
    outputs: list[Any] | None  # the tensors that the model gives for the example; None if it draws them
    batch: int | None  # the axis of the inputs whose size is free
    examples: int  # in the inputs, where their number is not free
    backwards: Mapping[str, str]  # where the model writes a derivative by hand: functions of its graph, and their lines
    notes: tuple[str, ...]


def arguments_of(example: Example) -> Arguments:
    """Positional and keyword arguments."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, tuple | list) else ((example,), {})


def capture(model: nn.Module, example: Example) -> Captured:
    """Export a copy of `model` in evaluation mode, with a free batch size where the model allows it."""
    if not isinstance(model, nn.Module):
        raise AdoptionError(f"a model is a torch.nn.Module; given {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise AdoptionError("the model is TorchScript, which keeps no Python to follow; adopt the torch.nn.Module that it was made from")
    if scripted := [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]:
        raise AdoptionError(f"{scripted[0]} is TorchScript, which keeps no Python to follow; put the module there that it was made from")
    owner, notes = _copy(_unwrapped(model))
    if taken := sorted(set(owner._modules) & RESERVED):
        raise AdoptionError(f"a module that is read has attributes {', '.join(sorted(RESERVED))} of its own; rename {', '.join(taken)}")
    arguments = pytree.tree_map(_on_cpu, arguments_of(example))
    bound = _bind(owner, *arguments)
    arguments = arguments[0], {name: arguments[1][name] for name in [*bound, *arguments[1]] if name in arguments[1]}  # as forward has them
    outputs = _outputs(owner, arguments)
    rows = batch_axis(owner, arguments, outputs)
    program, batch = _export(owner, arguments, bound, rows)
    notes += [f"{name} asks whether it is trained: what it does only then is not read, dropout aside" for name in _asking_for_mode(owner)]
    examples = 1
    if batch is None:
        examples = fixed_examples(owner, arguments, outputs) if rows != (0, 0) else 1
        notes.append("the batch size is the example's: the model works it into a number, or its first axis is no batch")
        if examples > 1:
            notes.append(f"multiply-adds and bytes are those of the {examples} examples together; give one example for those of one")
    graph, known = _flat_graph(program, owner, bound), None if rows == (0, 0) else outputs
    backwards = backwards_by_hand(owner, arguments)
    return Captured(graph, owner, arguments, bound, known, batch, examples, backwards, tuple(notes))


def first_names(model: nn.Module) -> dict[str, str]:
    """For every name of a parameter or buffer, the first name of the same tensor: tied weights are one weight."""
    first: dict[int, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors}


def place_in_code(node: fx.Node) -> str:
    """`model.py:12`, the innermost line outside PyTorch that made this node, or nothing."""
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [(file, line) for file, line in lines if not _is_torch(file)]
    return f"{Path(own[-1][0]).name}:{own[-1][1]}" if own else ""


def layer_of(node: fx.Node) -> str:
    """Path of the module whose forward made this node, as its owner wrote it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return re.sub(r"@\d+$", "", stack[-1][0]) if stack else ""


def _copy(model: nn.Module) -> tuple[nn.Module, list[str]]:
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise AdoptionError("the model has weights on the meta device, which hold no numbers; load them first")
    # Tensors that a forward computes and keeps (the hooks of weight_norm do) refuse to be copied with their history, and some handles, of
    # custom operators for one, refuse at all: they are shared.
    held = [value for module in model.modules() for name, value in vars(module).items() if name not in MODULE_STATE]
    try:
        owner = copy.deepcopy(model, {id(value): copied for value in held for copied in _if_not_copied_as_usual(value)})
    except Exception as error:
        raise AdoptionError(f"the model cannot be copied: {type(error).__name__}: {error}") from error
    notes = []
    if devices := {str(tensor.device) for tensor in tensors if tensor.device.type != "cpu"}:
        notes.append(f"read on the CPU; the owner's model stays on {', '.join(sorted(devices))}")
    if kinds := {str(tensor.dtype) for tensor in tensors if tensor.dtype in HALVES}:
        notes.append(f"read and cut in float32; the owner's model stays in {', '.join(sorted(kinds))}")
    return owner._apply(_on_cpu).eval(), notes


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model inside torch.compile or nn.DataParallel."""
    inside: Any = model
    while isinstance(inside, nn.DataParallel | nn.parallel.DistributedDataParallel) or type(inside).__name__ == "OptimizedModule":
        inside = inside._orig_mod if type(inside).__name__ == "OptimizedModule" else inside.module
    return inside


def _if_not_copied_as_usual(value: Any) -> list[Any]:
    if isinstance(value, Tensor):
        return [] if value.is_leaf else [value.detach().clone()]
    try:
        copy.deepcopy(value)
    except Exception:
        return [value]
    return []


def _asking_for_mode(owner: nn.Module) -> list[str]:
    """Classes outside torch.nn.modules whose forward asks for `self.training` other than for a dropout; a batch norm of any class follows it."""
    found = []
    for kind in dict.fromkeys(type(module) for module in owner.modules()):
        if kind.__module__.startswith("torch.nn.modules") or issubclass(kind, nn.modules.batchnorm._BatchNorm):
            continue
        try:
            lines = inspect.getsource(kind.forward).splitlines()
        except (OSError, TypeError):
            continue  # written where no file is, as in a notebook's string
        if any("self.training" in line and "dropout(" not in line for line in lines):
            found.append(kind.__name__)
    return found


def _on_cpu(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to("cpu", torch.float32 if value.dtype in HALVES else value.dtype)


def _bind(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(inspect.signature(owner.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        given = [*(_shape(value) for value in args), *(f"{name}={_shape(value)}" for name, value in kwargs.items())]
        raise AdoptionError(
            f"the example does not fit forward{inspect.signature(owner.forward)}: {error}; given ({', '.join(given)})"
        ) from error


def _shape(value: Any) -> str:
    return (
        "x".join(map(str, value.shape)) + f":{str(value.dtype).removeprefix('torch.')}"
        if isinstance(value, Tensor)
        else type(value).__name__
    )


def _outputs(owner: nn.Module, arguments: Arguments) -> list[Any]:
    """What the model gives for the example, as it is, before anything is asked of torch.export."""
    try:
        outputs = pytree.tree_leaves(run(owner, arguments))
    except Exception as error:
        given = ", ".join(_shape(value) for value in pytree.tree_leaves(arguments))
        raise AdoptionError(f"the model does not run on the example ({given}): {_where(error)}{type(error).__name__}: {error}") from error
    if unknown := {type(value).__name__ for value in outputs if not isinstance(value, Tensor | int | float | str | None)}:
        raise AdoptionError(f"the model returns {', '.join(unknown)}; return tensors, or tuples, lists and dicts of tensors")
    return outputs


def backwards_by_hand(owner: nn.Module, arguments: Arguments) -> dict[str, str]:
    """Functions with a `backward` of their own (torch.autograd.Function) that the outputs depend on, and the line where each begins."""
    if not any(not kind.__module__.startswith("torch.") for kind in _descendants(torch.autograd.Function)):
        return {}
    with torch.enable_grad():
        queue = [leaf.grad_fn for leaf in pytree.tree_leaves(run(owner, arguments, gradients=True)) if isinstance(leaf, Tensor)]
    found, seen = {}, set(queue)
    while queue:
        function = queue.pop()
        if function is None:
            continue
        kind = getattr(function, "_forward_cls", None)
        if kind is not None and not kind.__module__.startswith("torch."):
            found[kind.__qualname__.rpartition(".")[2]] = _line_of(kind)
        before = {each for each, _ in function.next_functions} - seen
        seen |= before
        queue.extend(before)
    return dict(sorted(found.items()))


def _descendants(kind: type[Any]) -> list[type[Any]]:
    children: list[type[Any]] = list(kind.__subclasses__())
    return children + [below for child in children for below in _descendants(child)]


def _line_of(kind: type) -> str:
    try:
        return f"{Path(inspect.getsourcefile(kind) or '').name}:{inspect.getsourcelines(kind)[1]}"
    except (OSError, TypeError):
        return "written where no file is"


def _export(owner: nn.Module, arguments: Arguments, bound: dict[str, Any], batch: tuple[int | None, int]) -> tuple[Any, int | None]:
    """The exported program, with the axis of the batch if its size is free."""
    axis, outputs = batch
    if axis is not None:
        rows = next(leaf.shape[axis] for leaf in pytree.tree_leaves(arguments) if has_rows(leaf, arguments, axis))
        args, kwargs = side_by_side([arguments] * ROWS, axis) if rows == 1 else arguments
        free = pytree.tree_map(lambda leaf: {axis: torch.export.Dim.AUTO} if has_rows(leaf, bound, axis) else None, bound)
        try:
            with _quietly():
                program = torch.export.export(owner, args, kwargs, dynamic_shapes=free, strict=False)
        except Exception as error:
            if any(word in f"{type(error).__name__}: {error}" for word in DATA_DEPENDENT):
                raise AdoptionError(_explanation(error)) from error
        else:
            if _is_free(program, axis, outputs):
                return program, axis
    try:
        with _quietly():
            return torch.export.export(owner, arguments[0], arguments[1], strict=False), None
    except Exception as error:
        raise AdoptionError(_explanation(error)) from error


def _is_free(program: Any, axis: int, outputs: int) -> bool:
    """Whether torch.export found nothing that needs one number of rows: as many outputs have a symbolic size as have a batch."""
    (output,) = _of(program.graph, "output")
    values = [node.meta.get("val") for node in pytree.tree_leaves(output.args) if isinstance(node, fx.Node)]
    symbolic = [each for each in values if isinstance(each, Tensor) and any(isinstance(size, torch.SymInt) for size in each.shape)]
    return len(symbolic) >= max(1, outputs)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the warnings and printed graphs of tracing, and without the fused attention of nn.MultiheadAttention, which hides its parts.

    Gradients are on whatever the caller's mode is, so that blocks without them are seen.
    """
    fast, is_causal = torch.backends.mha.get_fastpath_enabled(), transformer._detect_is_causal_mask
    torch.backends.mha.set_fastpath_enabled(False)
    transformer._detect_is_causal_mask = _causal_if_said  # it compares the mask's values, which only saves time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.CRITICAL)
            with torch.enable_grad(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                yield
    finally:
        logging.disable(logging.NOTSET)
        transformer._detect_is_causal_mask = is_causal
        torch.backends.mha.set_fastpath_enabled(fast)


def _causal_if_said(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:
    return bool(is_causal)


def _explanation(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}"
    depends = any(word in text for word in DATA_DEPENDENT)
    flaw = "a branch or a size depends on the values of a tensor" if depends else "torch.export cannot follow the model"
    return (
        f"{_where(error)}{flaw}. Keep it in operators of tensors (torch.where, torch.cond), move it out of forward, or adopt the parts before "
        f"and after it as models of their own. PyTorch says: {text.strip().splitlines()[0][:300]}"
    )


def _where(error: BaseException | None) -> str:
    """`net.py:12, in forward: if x.sum() > 0: ` - the innermost line of the user's own code that led to an error."""
    while error is not None:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_torch(frame.filename)]
        if own:
            return f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}: `{(own[-1].line or '').strip()}`: "
        error = error.__cause__ or error.__context__
    return ""


def _is_torch(file: str) -> bool:
    return str(Path(torch.__file__).parent) in file or str(Path(__file__).parent) in file or file.startswith("<")


def _flat_graph(program: Any, owner: nn.Module, bound: dict[str, Any]) -> fx.Graph:
    """The exported graph with weights read by name, the owner's arguments as placeholders, and its structure of outputs."""
    _refuse_sizes_of_values(program.graph)
    graph = fx.Graph()
    replaced: dict[fx.Node, Any] = {}
    first = first_names(owner)
    leaves = _placeholders(graph, bound, inspect.signature(owner.forward).parameters)
    for spec, node in zip(program.graph_signature.input_specs, _of(program.graph, "placeholder"), strict=True):
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
    (output,) = _of(program.graph, "output")
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
    inside = dict(zip(_of(module.graph, "placeholder"), (replaced.get(arg, arg) for arg in args), strict=True))
    _append(graph, module, inside, owner)
    (output,) = _of(module.graph, "output")
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


def _of(graph: fx.Graph, op: str) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == op]


def _is_assertion(node: fx.Node) -> bool:
    return not node.users and name_of(node) in NO_EFFECT


def _placeholders(graph: fx.Graph, bound: dict[str, Any], parameters: Mapping[str, inspect.Parameter]) -> Iterator[Any]:
    """One placeholder per argument of the owner's `forward`; then, leaf by leaf of their structure, the node that holds it."""
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
    flat = "constant_" + re.sub(r"\W", "_", name)
    if flat not in dict(owner.named_buffers(recurse=False)):
        owner.register_buffer(flat, tensor.detach().clone(), persistent=False)
    return flat


def differs(found: Any, expected: Any) -> float:
    """Largest absolute difference of two structures of tensors, relative to the largest magnitude expected (at least 1)."""
    pairs: Sequence[tuple[Any, Any]] = list(zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True))
    worst = 0.0
    for one, other in pairs:
        if isinstance(other, Tensor) and other.numel():
            scale = max(1.0, float(other.abs().max())) if other.is_floating_point() else 1.0
            worst = max(worst, float((one.double() - other.double()).abs().max()) / scale)
    return worst
