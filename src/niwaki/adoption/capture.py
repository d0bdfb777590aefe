"""A user's PyTorch model as a flat graph of aten operators, with weights under the owner's names. The model is never touched.

A plain model is traced (`trace`), which is quick; any other goes through torch.export, which also says what is wrong where a model cannot be read.
"""

from __future__ import annotations

import copy
import inspect
import linecache
import logging
import traceback
import warnings
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import transformer
from torch.utils import _pytree as pytree

from niwaki.adoption.axes import AdoptionError
from niwaki.adoption.batch import Arguments, Batch, are_equal, batch_of, buffers_kept, fixed_examples, has_rows, rows_of, run, side_by_side
from niwaki.adoption.flat import ByName, flat_graph, is_torch, nodes_of, traced_graph
from niwaki.adoption.kept import taken_out, where_left
from niwaki.adoption.trace import HALVES, NotPlainError, trace

Example = Any  # a tensor, a tuple of positional arguments, or a dict of keyword arguments
RESERVED = frozenset({"graph", "code", "meta", "forward"})  # of torch.fx.GraphModule
ROWS = 5  # a batch of one is repeated to this many while the graph is captured: torch.export takes sizes 0 and 1 for constants
MODULE_STATE = frozenset(vars(nn.Module()))  # the tables of parameters, buffers, children and hooks
logger = logging.getLogger(__name__)
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


def check_module(model: Any) -> None:
    """Raises AdoptionError where what is given is no torch module."""
    if not isinstance(model, nn.Module):
        raise AdoptionError(f"a model is a torch.nn.Module; given {type(model).__name__}")


def capture(model: nn.Module, example: Example) -> Captured:
    """Trace or export a copy of `model` in evaluation mode, with a free batch size where the model allows it."""
    check_module(model)
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
    batch = batch_of(owner, arguments, outputs)
    drawn = batch.axis is not None and not batch.outputs
    made: list[weakref.ref[Tensor]] = []
    graph, axis, why = _graph(owner, arguments, bound, batch, made)
    if where_left(made):
        run(owner, arguments)  # what a forward only overwrites is its own again
        if kinds := where_left(made):
            notes.append(
                f"its forward keeps tensors outside the module (in a {', a '.join(kinds)}), now also some that hold no numbers, which could not "
                f"be taken out: make a new model before you run it, and keep such tensors in the module"
            )
    notes += [f"{name} asks whether it is trained: what it does only then is not read, dropout aside" for name in _asking_for_mode(owner)]
    examples = 1
    if axis is None:
        examples = fixed_examples(owner, arguments, outputs) if not drawn else 1
        notes.append(f"the batch size is the example's: {why or 'the model works it into a number, or its first axis is no batch'}")
        if examples > 1:
            notes.append(f"multiply-adds and bytes are those of the {examples} examples together; give one example for those of one")
    backwards = backwards_by_hand(owner, arguments)
    return Captured(graph, owner, arguments, bound, None if drawn else outputs, axis, examples, backwards, tuple(notes))


def _copy(model: nn.Module) -> tuple[nn.Module, list[str]]:
    tensors = [*model.parameters(), *model.buffers()]
    if any(nn.parameter.is_lazy(tensor) for tensor in tensors):
        raise AdoptionError("the model has lazy layers that know no sizes yet; run it once on the example")
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
    if hooked := [name for name, parameter in model.named_parameters() if parameter._backward_hooks]:
        notes.append(f"what hooks do to the gradients of {', '.join(hooked)} is not kept; register them with what was read")
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
    if isinstance(value, int | float | str | None):
        return []  # quickly: a module has dozens
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
    """What the model gives for the example, as it is, before it is traced."""
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
    args, kwargs = copy.deepcopy(arguments)
    with buffers_kept(owner), torch.enable_grad():
        queue = [leaf.grad_fn for leaf in pytree.tree_leaves(owner(*args, **kwargs)) if isinstance(leaf, Tensor)]
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


def _graph(
    owner: nn.Module, arguments: Arguments, bound: dict[str, Any], batch: Batch, made: list[weakref.ref[Tensor]]
) -> tuple[fx.Graph, int | None, str]:
    """The graph, with the axis of the batch if its size is free; if it only seemed so, why not."""
    why = ""
    for capture_free in (partial(_traced, made=made), _exported) if batch.axis is not None else ():
        own = dict(owner._buffers), dict(owner._modules)
        graph = capture_free(owner, arguments, bound, batch)
        if graph is not None:
            if not (why := _difference(graph, owner, batch)):
                return graph, batch.axis, ""
            owner._buffers, owner._modules = own  # without the constants and bodies of the graph that is given up
    try:
        with _quietly(), taken_out(owner):
            program = torch.export.export(owner, arguments[0], arguments[1], strict=False)
    except Exception as error:
        raise AdoptionError(_explanation(error)) from error
    return flat_graph(program, owner, bound), None, why


def _difference(graph: fx.Graph, owner: nn.Module, batch: Batch) -> str:
    """For which number of rows a graph is not the model, of those tried: what follows the batch may be seen in no graph (`min(len(x), 2)`)."""
    for arguments, outputs in batch.tried:
        bound = _bind(owner, *copy.deepcopy(arguments))
        try:
            with buffers_kept(owner), torch.no_grad():
                found = pytree.tree_leaves(ByName(graph, owner, bound).run())
        except Exception:
            found = None
        if found is None or not are_equal(found, outputs):
            return f"what was read for any gives other outputs than the model for {rows_of(arguments, batch.axis or 0)}"
    return ""


def _traced(
    owner: nn.Module, arguments: Arguments, bound: dict[str, Any], batch: Batch, made: list[weakref.ref[Tensor]]
) -> fx.Graph | None:
    """The graph of a plain model with a free batch size; None where it takes torch.export to read a model, or to say why it cannot be."""
    if batch.axis is None or not batch.outputs:
        return None
    try:
        with _quietly(), taken_out(owner):
            found = trace(owner, arguments, batch.axis, lambda file: not is_torch(file), made)
    except NotPlainError as error:
        logger.debug("%s is left to torch.export: %s", type(owner).__name__, error)
        return None
    rows = rows_of(arguments, batch.axis)
    graph = traced_graph(found, owner, bound, axis=batch.axis, rows=ROWS if rows == 1 else rows)
    return graph if _is_free(graph, batch.outputs) else None


def _exported(owner: nn.Module, arguments: Arguments, bound: dict[str, Any], batch: Batch) -> fx.Graph | None:
    """The graph that torch.export finds for any batch size; None where it finds that it needs one."""
    axis = batch.axis or 0
    # Tensors of its own: where it fails, torch.export leaves them marked as free.
    args, kwargs = side_by_side([arguments] * ROWS, axis) if rows_of(arguments, axis) == 1 else copy.deepcopy(arguments)
    free = pytree.tree_map(lambda leaf: {axis: torch.export.Dim.AUTO} if has_rows(leaf, bound, axis) else None, bound)
    try:
        with _quietly(), taken_out(owner):
            program = torch.export.export(owner, args, kwargs, dynamic_shapes=free, strict=False)
    except Exception as error:
        if any(word in f"{type(error).__name__}: {error}" for word in DATA_DEPENDENT):
            raise AdoptionError(_explanation(error)) from error
        return None
    return flat_graph(program, owner, bound) if _is_free(program.graph, batch.outputs) else None


def _is_free(graph: fx.Graph, outputs: int) -> bool:
    """Whether nothing was found that needs one number of rows: as many outputs have a symbolic size as have a batch."""
    (output,) = nodes_of(graph, "output")
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
    if _is_of_packed_sequences(error):
        return (
            f"{_where(error)}the lengths of packed sequences are values of a tensor, which no graph keeps. Adopt the parts around the recurrent "
            f"layer as models of their own, or give it padded sequences"
        )
    if "Inference tensors" in text:
        return f"{_where(error)}what a block in inference mode gave is read by what is trained; write torch.no_grad() for torch.inference_mode()"
    flaw = "a branch or a size depends on the values of a tensor" if depends else "torch.export cannot follow the model"
    told = (
        f"{_where(error)}{flaw}. Keep it in operators of tensors (torch.where, torch.cond), move it out of forward, or adopt the parts before "
        f"and after it as models of their own"
    )
    return told if depends else f"{told}. PyTorch says: {text.strip().splitlines()[0][:300]}"  # of the former it names its own symbols


def _is_of_packed_sequences(error: BaseException) -> bool:
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    recurrent = any(file.endswith(("nn/modules/rnn.py", "nn/utils/rnn.py")) for file in frames)
    return recurrent and any("pack_padded_sequence" in line for file in frames if not is_torch(file) for line in linecache.getlines(file))


def _where(error: BaseException | None) -> str:
    """`net.py:12, in forward: if x.sum() > 0: ` - the innermost line of the user's own code that led to an error."""
    while error is not None:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_torch(frame.filename)]
        if own:
            return f"{own[-1].filename}:{own[-1].lineno}, in {own[-1].name}: `{(own[-1].line or '').strip()}`: "
        error = error.__cause__ or error.__context__
    return ""
