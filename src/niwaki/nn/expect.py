"""What a supernet's call must know of its soft decisions: masks over channels, and expectations. All of them in one go.

A training step of a small supernet is thousands of tiny operations, and the time of those is overhead. So the questions are collected
beforehand, and one call answers all of them with a dozen operations on long vectors, however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from niwaki.space.size import Expr, Symbol, evaluate, largest, refs

Answers = tuple[Tensor, ...]  # to the questions, in the order they were asked


@dataclass(frozen=True)
class Cases:
    """The values that some sizes can have together, as a random variable of the soft decisions.

    at: its row among all of them. names: the decisions. found: the values, in rising order. case: for each combination of options, the last
    fastest, the number of the values it leads to. holds: for each combination, whether the condition does; None if it says nothing
    about these decisions.
    """

    at: int
    names: tuple[str, ...]
    found: tuple[tuple, ...]
    case: np.ndarray
    holds: np.ndarray | None


class Expectations:
    """Questions about the decisions that `options` names, with the number of options of each; asked first, then answered by every call.

    A question is a number: its place in the answers.
    """

    def __init__(self, options: Mapping[str, int]) -> None:
        self.options = dict(options)
        self._known: dict[tuple, Cases | int] = {}
        self._cases: list[Cases] = []
        self._masks: list[list[tuple[Cases | None, np.ndarray]]] = []  # runs of channels: for each channel the number of widths beyond it
        self._means: list[tuple[Cases, np.ndarray]] = []  # (cases, columns)
        self._order: list[tuple[str, int]] = []  # "mask" or "mean", and which
        self._vectors: dict[tuple[torch.device, torch.dtype], _Vectors] = {}

    def mask(self, sizes: tuple[Expr, ...], condition: Expr) -> int | None:
        """P(width > j | condition) for every channel j of runs of channels side by side; None if every channel is always there.

        Never of the size channels x options: a sum from the widest width down, then a look-up.
        """
        if not any(isinstance(size, Symbol) for size in sizes):
            return None
        if (key := ("mask", sizes, condition)) not in self._known:
            runs: list[tuple[Cases | None, np.ndarray]] = []
            for size in sizes:
                if isinstance(size, Symbol):
                    cases = self.cases((size,), condition)
                    widths = np.array([width for (width,) in cases.found])
                    runs.append((cases, len(widths) - np.searchsorted(widths, np.arange(largest(size)), side="right")))
                else:
                    runs.append((None, np.ones(size, int)))
            self._masks.append(runs)
            self._known[key] = self._ask("mask", len(self._masks) - 1)
        return self._known[key]  # type: ignore[return-value]

    def mean(self, exprs: tuple[Expr, ...], condition: Expr, columns: Callable[..., list[float]]) -> int | None:
        """E[columns(*values of `exprs`) | condition], a vector; None if `exprs` are constant."""
        if not any(isinstance(expr, Symbol) for expr in exprs):
            return None
        cases = self.cases(exprs, condition)
        table = np.array([columns(*case) for case in cases.found], dtype=np.float32)
        if (key := ("mean", cases.at, table.shape, table.tobytes())) not in self._known:
            self._means.append((cases, table))
            self._known[key] = self._ask("mean", len(self._means) - 1)
        return self._known[key]  # type: ignore[return-value]

    def cases(self, exprs: tuple[Expr, ...], condition: Expr) -> Cases:
        """What `exprs` can be where `condition` holds."""
        if (key := ("cases", exprs, condition)) not in self._known:
            decisions = {ref.name: ref for expr in exprs for ref in refs(expr)}
            given = {ref.name: ref for ref in refs(condition)}
            dependent = bool(given.keys() & decisions.keys())
            if dependent:
                decisions.update(given)
            combos = [dict(zip(decisions, options, strict=True)) for options in product(*(ref.options for ref in decisions.values()))]
            seen = [tuple(evaluate(expr, chosen) for expr in exprs) for chosen in combos]
            holds = [not dependent or bool(evaluate(condition, chosen)) for chosen in combos]
            found = sorted({case for case, possible in zip(seen, holds, strict=True) if possible} or set(seen))
            number = {case: at for at, case in enumerate(found)}
            case = np.array([number.get(values, 0) for values in seen])  # what the condition rules out has no weight anywhere
            self._cases.append(Cases(len(self._cases), tuple(decisions), tuple(found), case, np.array(holds) if dependent else None))
            self._known[key] = self._cases[-1]
        return self._known[key]  # type: ignore[return-value]

    def __call__(self, weights: Mapping[str, Tensor]) -> Answers:
        """The answers under `weights`, for each open decision one per option."""
        if not self._order:
            return ()
        like = weights[next(iter(self.options))]
        if (key := (like.device, like.dtype)) not in self._vectors:
            self._vectors[key] = self._make(like)
        v = self._vectors[key]
        flat = torch.cat([*(weights[name] for name in self.options), like.new_ones(1)])
        joint, *others = flat.index_select(0, v.weight).view(-1, len(v.slot)).unbind(0)
        for other in others:
            joint = joint * other
        if v.holds is not None:  # where the condition is impossible, nothing that follows counts; only keep it finite
            joint = joint * v.holds
            possible = torch.where(v.conditional, joint.new_zeros(len(v.conditional)).index_add(0, v.row, joint).clamp_min(1e-30), 1.0)
            joint = joint / possible.index_select(0, v.row)
        chances = joint.new_zeros(v.rows * v.columns).index_add(0, v.slot, joint)
        masks: Answers = ()
        if self._masks:
            beyond = chances.view(v.rows, v.columns).cumsum(1).flatten()
            masks = beyond.index_select(0, v.read).split(v.mask_sizes)
        means: Answers = ()
        if self._means:
            terms = chances.index_select(0, v.term) * v.value
            means = joint.new_zeros(sum(v.mean_sizes)).index_add(0, v.into, terms).split(v.mean_sizes)
        return tuple((masks if kind == "mask" else means)[at] for kind, at in self._order)

    def _ask(self, kind: str, at: int) -> int:
        self._order.append((kind, at))
        self._vectors.clear()
        return len(self._order) - 1

    def _make(self, like: Tensor) -> _Vectors:
        """The questions as index vectors.

        The chances of all cases are a matrix: in each row 0, then the chances of the cases from the last to the first; so the sum up to column n is that of
        the n largest. Row 0 is what always holds, with a chance of 1 in column 1.
        """
        columns = 1 + max((len(cases.found) for cases in self._cases), default=1)
        starts = dict(zip(self.options, np.cumsum([0, *self.options.values()]), strict=False))
        always = sum(self.options.values())  # the constant 1 behind the weights
        factors = max((len(cases.names) for cases in self._cases), default=1)
        weight, slot, row, holds = [np.full((factors, 1), always)], [np.array([1])], [np.array([0])], [np.array([True])]
        for cases in self._cases:
            counts = tuple(self.options[name] for name in cases.names)
            own = np.indices(counts).reshape(len(counts), -1) + np.array([starts[name] for name in cases.names])[:, None]
            weight.append(np.concatenate([own, np.full((factors - len(own), own.shape[1]), always)]))
            slot.append((cases.at + 1) * columns + len(cases.found) - cases.case)
            row.append(np.full(own.shape[1], cases.at + 1))
            holds.append(np.ones(own.shape[1], bool) if cases.holds is None else cases.holds)
        read = [(0 if cases is None else cases.at + 1) * columns + beyond for runs in self._masks for cases, beyond in runs]
        term = [np.repeat((cases.at + 1) * columns + len(table) - np.arange(len(table)), table.shape[1]) for cases, table in self._means]
        ends = np.cumsum([0, *(table.shape[1] for _, table in self._means)])
        into = [np.tile(start + np.arange(table.shape[1]), len(table)) for start, (_, table) in zip(ends, self._means, strict=False)]
        conditional = np.array([False, *(cases.holds is not None for cases in self._cases)])

        def indices(parts: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts or [np.zeros(0)]).astype(np.int64)).to(like.device)

        def numbers(parts: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(parts or [np.zeros(0)]).astype(np.float64)).to(like)

        return _Vectors(
            rows=len(self._cases) + 1,
            columns=columns,
            weight=torch.from_numpy(np.concatenate(weight, 1).astype(np.int64)).flatten().to(like.device),
            slot=indices(slot),
            row=indices(row),
            holds=numbers(holds) if conditional.any() else None,
            conditional=torch.from_numpy(conditional).to(like.device),
            read=indices(read),
            mask_sizes=[sum(len(beyond) for _, beyond in runs) for runs in self._masks],
            term=indices(term),
            value=numbers([table.flatten() for _, table in self._means]),
            into=indices(into),
            mean_sizes=[table.shape[1] for _, table in self._means],
        )


@dataclass(frozen=True)
class _Vectors:
    """The questions as index vectors, on one device.

    For each combination of options of each of the cases: weight, which weights it is the product of (factors x combinations, flat); slot,
    where its chance is added up; row, whose combination it is; holds, 1 where its condition does. conditional: for each row, whether it has one.
    For each channel of each mask: read, where its chance stands. For each term of each mean: the chance, its value, the sum it goes into.
    """

    rows: int
    columns: int
    weight: Tensor
    slot: Tensor
    row: Tensor
    holds: Tensor | None
    conditional: Tensor
    read: Tensor
    mask_sizes: list[int]
    term: Tensor
    value: Tensor
    into: Tensor
    mean_sizes: list[int]
