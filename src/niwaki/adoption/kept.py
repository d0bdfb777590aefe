"""What a forward keeps outside its module, in caches, dicts and lists: tensors that hold no numbers must not stay there once it was traced."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import _lru_cache_wrapper
from types import FunctionType
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor


@contextmanager
def taken_out(owner: nn.Module) -> Iterator[None]:
    """Afterwards no tensor without numbers is in what the files and the classes of a model keep by name, nor in a cache, dict or list there."""
    before = [(place, dict(vars(place))) for place in _places(owner)]
    try:
        yield
    finally:
        for place, names in before:
            for name, value in list(vars(place).items()):
                if isinstance(value, _lru_cache_wrapper | dict | list):
                    _empty_(value)
                elif _is_empty(value) and name in names:
                    setattr(place, name, names[name])
                elif _is_empty(value):
                    delattr(place, name)


def where_left(made: Sequence[weakref.ref[Tensor]]) -> list[str]:
    """Kinds of what holds tensors that were made while a model was traced."""
    if all(each() is None for each in made):
        return []
    gc.collect()
    alive = [tensor for each in made if (tensor := each()) is not None]
    holders = [holder for holder in gc.get_referrers(*alive) if holder is not alive and type(holder).__name__ != "frame"] if alive else []
    return sorted({type(holder).__name__ for holder in holders})


def _places(owner: nn.Module) -> list[Any]:
    """Classes of a model's modules, their files, and those of the functions and classes that these files know by name; PyTorch's aside."""
    classes = {kind for module in owner.modules() for kind in type(module).__mro__ if _is_own(kind.__module__)}
    files = {kind.__module__ for kind in classes}
    known = [value for file in files for value in vars(sys.modules[file]).values() if isinstance(value, FunctionType | type)]
    files |= {value.__module__ for value in known if _is_own(value.__module__)}
    return [*classes, *(sys.modules[file] for file in files)]


def _is_own(file: Any) -> bool:
    return (
        file in sys.modules
        and file.partition(".")[0] not in ("torch", "builtins")
        and file.partition(".")[0] not in sys.stdlib_module_names
    )


def _is_empty(value: Any) -> bool:
    return type(value) in (FakeTensor, FunctionalTensor)


def _within(value: Any) -> bool:
    """Whether a tensor without numbers is in a value, at most two tuples, lists or dicts deep."""
    parts = [value]
    for _ in range(3):
        if any(map(_is_empty, parts)):
            return True
        inside = [part.values() if isinstance(part, dict) else part for part in parts if isinstance(part, dict | list | tuple)]
        parts = [part for each in inside for part in each]
    return False


def _empty_(value: Any) -> None:
    if isinstance(value, _lru_cache_wrapper):
        if any(map(_within, gc.get_referents(value))):
            value.cache_clear()
    elif isinstance(value, dict):
        for key in [key for key, part in value.items() if _within(part)]:
            del value[key]
    elif any(map(_within, value)):
        value[:] = [part for part in value if not _within(part)]
