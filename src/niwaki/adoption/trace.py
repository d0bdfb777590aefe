"""The calls a model makes, by running it on tensors that hold no numbers, with two batch sizes: a size that differs follows the batch.

Many times faster than torch.export with a symbolic size, and for plain models the same graph (a test compares the two). What it sees is not
plain stops it with `NotPlainError`: a value that is looked at, a block without gradients, a tensor of unknown origin, a write into a weight, a
size that is no multiple of the batch, calls that differ between the two sizes. torch.export then reads the model, or says why it cannot.
It does not see what is the same for both sizes and not for others (`min(len(x), 2)`), hooks on gradients, nor what a forward keeps elsewhere:
`capture` compares outputs for other sizes, `read` gradients, and `kept` takes out what was kept.
"""

from __future__ import annotations

import copy
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import GuardSource, Source
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki.adoption.batch import Arguments, has_rows
from niwaki.adoption.operators import aten

SIZES = (2, 1009)  # of the batch: the least that no operator takes for a constant, and a prime larger than the sizes a model asks for
HALVES = (torch.float16, torch.bfloat16)
AUTOCAST = ("cpu", "cuda", "mps", "xpu")


class NotPlainError(Exception):
    """Something that only torch.export can follow, or that cannot be followed."""


@dataclass(frozen=True)
class Value:
    """A tensor: an input by its place among the leaves, a weight by its name, or the number of what a call gave."""

    kind: str  # "input", "weight", "call"
    key: Any


@dataclass(frozen=True)
class Rows:
    """`times` the batch size."""

    times: int


@dataclass(frozen=True)
class Kind:
    """Sizes and type of a tensor."""

    shape: tuple[Any, ...]  # numbers; `Rows` where they follow the batch
    dtype: torch.dtype

    @property
    def follows_batch(self) -> bool:
        return any(isinstance(size, Rows) for size in self.shape)


@dataclass(frozen=True)
class Call:
    """An operator as it was called; tensors are `Value`s."""

    target: Any
    args: Any
    kwargs: Any
    gives: Any  # values, in the structure of what the operator gives
    kinds: tuple[Kind, ...]  # of every tensor that it gives
    layer: str  # path of the module whose forward it is in
    place: str  # the innermost line of the owner's, as in a traceback


@dataclass(frozen=True)
class Trace:
    """Calls in their order, what the model is given and what it gives; sizes that follow the batch are `Rows`."""

    calls: tuple[Call, ...]
    inputs: tuple[Any, ...]  # leaf by leaf: a `Kind`, or what is no tensor
    outputs: Any


def trace(
    owner: nn.Module, arguments: Arguments, axis: int, is_own: Callable[[str], bool], made: list[weakref.ref[Tensor]] | None = None
) -> Trace:
    """What `owner` calls, for any number of rows along `axis` of its inputs. is_own: whether a file is the owner's, not PyTorch's or ours.

    `made` gets the tensors without numbers that it is run on: who holds one afterwards holds what cannot be used.
    """
    if any(isinstance(leaf, Tensor) and not leaf.is_contiguous() for leaf in pytree.tree_leaves(arguments)):
        raise NotPlainError("an input that does not lie in memory row by row")
    tensors = dict([*owner.named_parameters(), *owner.named_buffers()])
    try:
        runner = copy.deepcopy(owner, {id(tensor): tensor for tensor in tensors.values()})  # a forward may keep what it computes
    except Exception as error:
        raise NotPlainError(f"it cannot be copied: {type(error).__name__}: {error}") from error
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
    known: dict[int, Value] = {}
    for name, tensor in tensors.items():
        known[id(fakes[name])] = known.setdefault(id(tensor), Value("weight", name))
    found: list[Trace] = []
    for rows in SIZES:
        inputs = pytree.tree_map(lambda leaf: _kind(leaf, rows if has_rows(leaf, arguments, axis) else None, axis), arguments)  # noqa: B023
        recorder = _Recorder(known, is_own, found[0].calls if found else None, [] if made is None else made)
        # In inference mode operators arrive whole, before autograd takes composite ones (conv2d, linear, attention) to pieces.
        with torch.inference_mode(), torch.enable_grad(), mode:
            outputs = _recorded(recorder, runner, fakes, *pytree.tree_map(_empty, inputs))
        found.append(Trace(tuple(recorder.calls), tuple(pytree.tree_leaves(inputs)), outputs))
    return _common_trace(*found)


def _recorded(recorder: _Recorder, runner: nn.Module, weights: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Outputs of a model, as values, while `recorder` writes down its calls."""
    for number, leaf in enumerate(pytree.tree_leaves((args, kwargs))):
        if isinstance(leaf, Tensor):
            recorder.know(leaf, Value("input", number))
    with _paths_of_modules(runner, recorder.layers), recorder:
        try:
            outputs = torch.func.functional_call(runner, weights, args, kwargs)
        except Exception as error:  # the model's: it may ask for what these tensors do not have
            if traceback.extract_tb(error.__traceback__)[-1].filename == __file__:
                raise  # ours
            raise NotPlainError(f"{type(error).__name__}: {error}") from error
    if recorder.refused:
        raise NotPlainError(recorder.refused)
    return pytree.tree_map(recorder.value, outputs)


class _Batch(Source):
    """Names the size in its guards. PyTorch has a class for such names, in torch._dynamo, which takes long to import."""

    name: Any = (lambda _: "batch") if callable(Source.name) else "batch"  # a method until it became a property
    guard_source: Any = (lambda _: GuardSource.CONSTANT) if callable(Source.name) else GuardSource.CONSTANT


def symbolic_size(hint: int) -> torch.SymInt:
    """A batch size that is free, as torch.export has it; `hint` is the number it stands for where one is needed."""
    shapes, source = ShapeEnv(), _Batch()
    symbol = shapes.create_symbol(hint, source, dynamic_dim=DimDynamic.DYNAMIC, constraint_dim=None)
    size: Any = shapes.create_symintnode(symbol, hint=hint, source=source)
    return size


def _kind(leaf: Any, rows: int | None, axis: int) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    shape = list(leaf.shape)
    if rows is not None:
        shape[axis] = rows
    return Kind(tuple(shape), leaf.dtype)


def _empty(leaf: Any) -> Any:
    return torch.empty(leaf.shape, dtype=leaf.dtype) if isinstance(leaf, Kind) else leaf


# What two runs have in common


def _common_trace(one: Trace, other: Trace) -> Trace:
    if len(one.calls) != len(other.calls):
        raise NotPlainError("the number of calls follows the batch size")
    calls = tuple(map(_common_call, one.calls, other.calls))
    inputs = tuple(_common_kind(*both) if isinstance(both[0], Kind) else both[0] for both in zip(one.inputs, other.inputs, strict=True))
    outputs = _common(one.outputs, other.outputs)
    if any(isinstance(leaf, Rows) for leaf in pytree.tree_leaves(outputs)):
        raise NotPlainError("it gives its batch size")
    return Trace(calls, inputs, outputs)


def _common_call(one: Call, other: Call) -> Call:
    args, kwargs = _common((one.args, one.kwargs), (other.args, other.kwargs))
    kinds = tuple(map(_common_kind, one.kinds, other.kinds))
    return replace(one, args=args, kwargs=kwargs, gives=_common(one.gives, other.gives), kinds=kinds)


def _common_kind(one: Kind, other: Kind) -> Kind:
    if one.dtype != other.dtype or len(one.shape) != len(other.shape):
        raise NotPlainError("tensors that are others for other batch sizes")
    return Kind(tuple(map(_common_leaf, one.shape, other.shape)), one.dtype)


def _common(one: Any, other: Any) -> Any:
    (mine, structure), (theirs, other_structure) = pytree.tree_flatten(one), pytree.tree_flatten(other)
    if structure != other_structure:
        raise NotPlainError("arguments whose structure follows the batch size")
    return pytree.tree_unflatten(list(map(_common_leaf, mine, theirs)), structure)


PLAIN = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format, Value)


def _common_leaf(one: Any, other: Any) -> Any:
    """What both are; `Rows` where they are the same multiple of the two batch sizes."""
    if one is None and other is None:
        return None
    if type(one) is type(other) and isinstance(one, PLAIN):
        if one == other:
            return one
        if type(one) is int and one % SIZES[0] == 0 and one // SIZES[0] * SIZES[1] == other:
            return Rows(one // SIZES[0])
    raise NotPlainError(f"{one} for a batch of {SIZES[0]} is {other} for one of {SIZES[1]}")


@contextmanager
def _paths_of_modules(runner: nn.Module, layers: list[str]) -> Iterator[None]:
    """While it is open, the last of `layers` is the path of the module that runs."""
    paths: dict[int, list[str]] = {}
    for path, module in runner.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)

    def enter(module: nn.Module, _: Any) -> None:
        here, known = layers[-1], paths[id(module)]
        layers.append(next((path for path in known if path.startswith(f"{here}." if here else "")), known[0]))

    def leave(*_: Any) -> None:
        layers.pop()

    handles = [module.register_forward_pre_hook(enter, prepend=True) for module in runner.modules()]
    handles += [module.register_forward_hook(leave, prepend=True, always_call=True) for module in runner.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Recorder(TorchDispatchMode):
    def __init__(
        self,
        weights: Mapping[int, Value],
        is_own: Callable[[str], bool],
        expected: Sequence[Call] | None,
        made: list[weakref.ref[Tensor]],
    ) -> None:
        super().__init__()
        self.is_own, self.expected, self.made = is_own, expected, made
        self.calls: list[Call] = []
        self.layers: list[str] = [""]
        self.refused = ""  # kept, because a forward may catch what is raised
        self.known = dict(weights)
        self.alive: list[Tensor] = []  # so that no two tensors have the same `id`
        self.of_weights = set(weights.values())  # and views of them
        self.made_up: set[Value] = set()  # of numbers alone
        self.count = 0

    def know(self, tensor: Tensor, value: Value) -> None:
        self.known[id(tensor)] = value
        self.alive.append(tensor)
        self.made.append(weakref.ref(tensor))

    def value(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self.known:
            self.refuse("a tensor that is neither an input, nor a weight, nor computed")
        return self.known[id(leaf)]

    def refuse(self, why: str) -> None:
        self.refused = why
        raise NotPlainError(why)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(func, torch._ops.OpOverload):
            self.refuse(f"{func} takes functions")
        if not torch.is_grad_enabled() or any(map(torch.is_autocast_enabled, AUTOCAST)):
            self.refuse("a block with another mode of gradients or of precision")
        given = pytree.tree_map(self.value, (args, kwargs))
        of_weights = [value for value in pytree.tree_leaves(given) if isinstance(value, Value) and value in self.of_weights]
        if any(value in self.of_weights for value in _written(func, *given)):
            self.refuse("it writes into a weight")
        try:
            result = func(*args, **kwargs)
        except Exception as error:
            self.refuse(f"{func}: {type(error).__name__}: {error}")
        if func is aten.detach.default and given[0][0] in self.made_up:
            self.know(result, given[0][0])  # PyTorch's own, after what makes a tensor of numbers
            return result
        kinds: dict[Value, Kind] = {}

        def new(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor):
                return leaf
            if not isinstance(leaf, FakeTensor):
                self.refuse(f"{func} gives numbers")
            if leaf.dtype in HALVES:
                self.refuse("half precision, of the model or of autocast, which hides while an operator obeys it")
            value, self.count = Value("call", self.count), self.count + 1
            self.know(leaf, value)
            kinds[value] = Kind(tuple(leaf.shape), leaf.dtype)
            return value

        gives = pytree.tree_map(new, result)
        if not kinds:
            return result  # a device, a size: what it leads to is seen where it is used
        if self.expected is not None and [call.target for call in self.expected[len(self.calls) : len(self.calls) + 1]] != [func]:
            self.refuse("what it calls follows the batch size")
        if not any(isinstance(leaf, Value) for leaf in pytree.tree_leaves(given)):
            self.made_up.update(kinds)
        if of_weights and any(each.alias_info is not None for each in func._schema.returns):
            self.of_weights.update(kinds)
        self.calls.append(Call(func, given[0], given[1], gives, tuple(kinds.values()), self.layers[-1], self._place()))
        return result

    def _place(self) -> str:
        frame: Any = sys._getframe(2)
        while not self.is_own(frame.f_code.co_filename):
            if frame.f_code is _recorded.__code__:
                return ""
            frame = frame.f_back
        return f'  File "{frame.f_code.co_filename}", line {frame.f_lineno}, in {frame.f_code.co_name}'


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """What an operator writes into."""
    if not func._schema.is_mutable:
        return []
    names = [argument.name for argument in func._schema.arguments if argument.alias_info is not None and argument.alias_info.is_write]
    given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | dict(kwargs)
    return pytree.tree_leaves([given.get(name) for name in names])
