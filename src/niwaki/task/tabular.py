"""Tables of numbers as a task: classification or regression; what enters the network, loss and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import isqrt
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from niwaki.net.block import Columns
from niwaki.task.classify import classification_metrics, confusion_matrix
from niwaki.task.cut import DataError
from niwaki.task.split import Parts
from niwaki.task.table import Kind, Table, describe
from niwaki.task.task import Part

ClassMetric = Literal["accuracy", "balanced_accuracy", "macro_f1", "log_loss"]
NumberMetric = Literal["rmse", "mae", "r2"]
MAXIMIZED: Mapping[str, str] = {
    "log_loss": "neg_log_loss",
    "rmse": "neg_rmse",
    "mae": "neg_mae",
}  # what is to be small, by scikit-learn's names
VALUES_AT_ONCE = 2**22  # compared with the categories
MOST_KNOTS = 24  # of the curve of a column of numbers


@dataclass(frozen=True)
class _OnDevice:
    inputs: Tensor  # (N, F), training and test
    targets: Tensor  # (N,)
    class_weights: Tensor | None  # (K,)


@dataclass(frozen=True)
class _Number:
    """A column of numbers, at `at` in a row. missing: whether training rows lack it; fill: what then stands there, in stored units."""

    at: int
    mean: float
    std: float
    fill: float
    missing: bool
    knots: tuple[float, ...]  # in standard units; of none, the number itself is the feature


@dataclass(frozen=True)
class _Category:
    """A column of categories, at `at`. values: as stored, which have the codes 0.. in turn; other: the code of anything else."""

    at: int
    values: tuple[float, ...]
    other: int
    missing: bool  # anything else is a class of its own, as training rows lack it; or else taken for the commonest

    @property
    def rows(self) -> int:
        return len(self.values) + self.missing


@dataclass(frozen=True, eq=False)
class Tabular:
    """A table's rows and their targets. Indices 0..N-1 are the training rows, N.. the test rows, as `table` has them.

    validation: share of every class (of every tenth of a target of numbers), or of the groups, that is kept out of the train part; a
    table that has a validation part of its own keeps it. metric: to be best in; "auto" is accuracy or rmse. class_weights: as for images.
    knots: of the piecewise linear curves that columns of numbers become, 0 for the standardised numbers themselves; left out, by the number
    of rows (at most 24). fill: what a missing number is taken for, beside a column that says so: the train part's mean or median.
    """

    table: Table
    validation: float = 0.2
    metric: str = "auto"  # what is to be small, such as rmse, becomes its negative, neg_rmse: a search maximizes
    class_weights: Literal["auto", "balanced"] | None = "auto"
    knots: int | None = None
    fill: Literal["mean", "median"] = "mean"
    seed: int = 0
    _devices: dict[torch.device, _OnDevice] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without the copies on devices, which it makes anew."""
        return {**vars(self), "_devices": {}}

    def __post_init__(self) -> None:
        possible = get_args(ClassMetric if self.is_classification else NumberMetric)
        given = possible[0] if self.metric == "auto" else self.metric.removeprefix("neg_")
        if given not in possible:
            what = "classes" if self.is_classification else "numbers"
            raise DataError(f"metric {self.metric!r} is none for a target of {what}; it is one of {', '.join(possible)}")
        object.__setattr__(self, "metric", MAXIMIZED.get(given, given))
        if not 0 < self.validation < 1:
            raise DataError(f"validation={self.validation} is no share of the data; it lies between 0 and 1, say 0.2")
        if self.class_weights not in ("auto", "balanced", None):
            raise DataError(f"class_weights={self.class_weights!r} is not known; it is 'auto', 'balanced' or None")
        if self.class_weights == "balanced" and not self.is_classification:
            raise DataError(f"class_weights='balanced' is for classes; the target {self.table.target.name!r} is a number")
        if self.knots is not None and (self.knots < 0 or self.knots == 1):
            raise DataError(f"knots={self.knots}; a curve has at least 2 of them, and 0 is for no curves")
        if self.fill not in ("mean", "median"):
            raise DataError(f"fill={self.fill!r} is not known; it is 'mean' or 'median'")
        if not (self.numbers or self.categories):
            raise DataError(f"{self.table.source}: no column has two different values in the train part; there is nothing to learn from")

    # --- what every task has -------------------------------------------------------------------------------------------------

    @property
    def is_classification(self) -> bool:
        return self.table.class_names is not None

    @property
    def input_shape(self) -> tuple[int]:
        return (self.columns.size,)

    @property
    def outputs(self) -> int:
        return len(self.table.class_names) if self.table.class_names is not None else 1

    @property
    def asked(self) -> str:
        """The metric by its usual name."""
        return self.metric.removeprefix("neg_")

    @property
    def source(self) -> str:
        return self.table.source

    @property
    def sha256(self) -> str:
        return self.table.sha256

    @property
    def nbytes(self) -> int:
        return self.table.rows.nbytes + self.table.test_rows.nbytes

    def part(self, name: Part) -> Tensor:
        """Index set of a part, int64, ascending, see `Parts`."""
        return self._parts.part(name)

    def search_split(self, architecture_share: float = 0.2) -> tuple[Tensor, Tensor]:
        """The train part in two disjoint index sets, for weights and for the architecture, see `Parts`."""
        return self._parts.search_split(architecture_share)

    def folds(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Training and validation parts cut into `count` folds, see `Parts`."""
        return self._parts.folds(count)

    def labels(self, indices: Tensor) -> Tensor:
        """Class numbers, int64 (I,), or standardised targets, float32 (I,); on the CPU."""
        return self._targets[indices]

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs of the network, float32 (B, F), and targets (B,)."""
        data = self._on(device)
        indices = indices.to(data.inputs.device)
        return data.inputs.index_select(0, indices), data.targets.index_select(0, indices)

    def augmented_batch(self, indices: Tensor, device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same: there is nothing to be changed in a row without making another one of it."""
        return self.batch(indices, device)

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross entropy of logits (B, K), or of predictions (B, 1) the squared error, for the metric mae the absolute one; standardised."""
        if not self.is_classification:
            error = F.l1_loss if self.asked == "mae" else F.mse_loss
            return error(outputs.float().squeeze(1), targets)
        weights = self._on(outputs.device).class_weights
        return F.cross_entropy(outputs.float(), targets, weight=weights, label_smoothing=label_smoothing)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Loss; accuracy, balanced accuracy, macro F1 and log loss, or root mean squared error, mean absolute error (in the target's units)
        and R2. Those that are to be small stand there twice, once as they are and once negative, for a search maximizes."""
        figures = {"loss": float(self.loss(outputs, targets))}
        if self.is_classification:
            figures |= classification_metrics(confusion_matrix(outputs, targets))
            figures["log_loss"] = float(F.cross_entropy(outputs.double(), targets))
        else:
            error, std = outputs.double().squeeze(1) - targets.double(), self.target_scale[1]
            around = (targets.double() - targets.double().mean()).square().sum()
            figures["rmse"] = float(error.square().mean().sqrt()) * std
            figures["mae"] = float(error.abs().mean()) * std
            figures["r2"] = float(1 - error.square().sum() / around) if around else 0.0
        return figures | {negative: -figures[name] for name, negative in MAXIMIZED.items() if name in figures}

    def preprocess(self) -> Encode:
        """Stored rows to inputs of the network; goes into the exported model."""
        return Encode(self.numbers, self.categories)

    def delivered(self, module: fx.GraphModule) -> fx.GraphModule:
        """The trained network as it is handed over: of numbers, with outputs in the units of the target."""
        if self.is_classification:
            return module
        return in_units(module, *self.target_scale)

    def describe(self) -> dict[str, Any]:
        """What identifies the task, as JSON."""
        given = self.table.validation is not None
        return describe(self.table) | {
            "task": "classification" if self.is_classification else "regression",
            "validation": "as the data have it" if given else self.validation,
            "metric": self.metric,
            "class_weights": "balanced" if self._balanced else None,
            "knots": {self.table.columns[n.at].name: len(n.knots) for n in self.numbers},
            "fill": self.fill,
            "ignored": self.ignored,
            "target_scale": None if self.is_classification else list(self.target_scale),
            "seed": self.seed,
        }

    # --- columns ---------------------------------------------------------------------------------------------------------------

    @property
    def columns(self) -> Columns:
        """What enters the network: plain numbers and what says that one is missing, then curves, then categories."""
        plain = sum(not one.knots for one in self.numbers) + sum(one.missing for one in self.numbers)
        curves = tuple(len(one.knots) for one in self.numbers if one.knots)
        return Columns(plain, curves, tuple(one.rows for one in self.categories))

    @property
    def most_knots(self) -> int:
        """Of a curve: as many as asked for, or a quarter of the square root of the training rows, so that few rows make a smooth one."""
        return self.knots if self.knots is not None else min(MOST_KNOTS, max(2, isqrt(len(self._parts.split[0])) // 4))

    @cached_property
    def numbers(self) -> tuple[_Number, ...]:
        """The columns of numbers, with the train part's statistics; without those that never change there."""
        found = []
        for at, column in enumerate(self.table.columns):
            values = self.table.rows[:, at]
            known = values[self._parts.split[0]]
            known = known[~np.isnan(known)]
            if column.values is not None or not len(known) or known.min() == known.max():
                continue
            mean, std = float(known.mean()), float(known.std())
            fill = mean if self.fill == "mean" else float(np.median(known))
            knots = knots_of((known - mean) / std, self.most_knots) if self.most_knots else ()
            found.append(_Number(at, mean, std, fill, bool(np.isnan(values).any()), knots if len(knots) > 1 else ()))
        return tuple(found)

    @cached_property
    def categories(self) -> tuple[_Category, ...]:
        """The columns of categories, without those that never change in the training rows."""
        found = []
        for at, column in enumerate(self.table.columns):
            if column.values is None:
                continue
            values = self.table.rows[:, at]
            counts = [int((values == value).sum()) for value in column.values]
            missing = bool(np.isnan(values).any())
            if len(counts) + missing < 2:
                continue
            found.append(_Category(at, column.values, len(counts) if missing else int(np.argmax(counts)), missing))
        return tuple(found)

    @property
    def ignored(self) -> list[str]:
        """Names of the columns that never change, of which the network sees nothing."""
        used = {one.at for one in self.numbers} | {one.at for one in self.categories}
        return [column.name for at, column in enumerate(self.table.columns) if at not in used]

    @cached_property
    def target_scale(self) -> tuple[float, float]:
        """Mean and standard deviation of a target of numbers over the train part."""
        known = self.table.targets[self._parts.split[0]]
        return float(known.mean()), float(known.std()) or 1.0

    @cached_property
    def _parts(self) -> Parts:
        data = self.table
        validation = self.validation if data.validation is None else data.validation
        return Parts(
            data.strata, len(data.test_rows), data.class_names or tuple(f"tenth {at}" for at in range(10)), data.groups, data.source,
            validation=validation, seed=self.seed, noun="rows",
        )  # fmt: skip

    @cached_property
    def _targets(self) -> Tensor:
        targets = np.concatenate([self.table.targets, self.table.test_targets])
        if self.is_classification:
            return torch.from_numpy(targets)
        mean, std = self.target_scale
        return torch.from_numpy((targets - mean) / std).float()

    @property
    def _balanced(self) -> bool:
        by_itself = self.class_weights == "auto" and self.asked in ("balanced_accuracy", "macro_f1")
        return self.is_classification and (self.class_weights == "balanced" or by_itself)

    def _on(self, device: torch.device | str) -> _OnDevice:
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:  # as the tensors on it will call it: or there would be two copies
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._devices:
            encode = self.preprocess()
            rows = torch.from_numpy(np.concatenate([self.table.rows, self.table.test_rows]))
            weights = None
            if self._balanced:
                counts = np.bincount(self.table.targets[self._parts.split[0]], minlength=self.outputs)
                weights = torch.from_numpy(counts.sum() / (self.outputs * counts)).float().to(device)
            wide = rows.shape[1] + sum(one.rows for one in self.categories)
            with torch.no_grad():
                inputs = torch.cat([encode(part) for part in rows.split(max(1, VALUES_AT_ONCE // wide))])
            self._devices[device] = _OnDevice(inputs.to(device), self._targets.to(device), weights)
        return self._devices[device]


class Encode(nn.Module):
    """Rows as stored, float64 (B, D), NaN where a value is missing, to what the network reads, float32 (B, F).

    All is computed in float64, and only then rounded: values that differ by little beside their size stay different.

    In turn: standardised numbers that have no curve; for each column of numbers that training rows lack, 1 where it is missing; the places
    of numbers among the knots of their curves, such as 2.5 halfway between the third and the fourth; the codes of categories. A missing number
    is taken for the mean (or median); a category that is missing or was never seen for the class of what was missing in training, if any, or
    else for the commonest.
    """

    number: Tensor
    fill: Tensor
    mean: Tensor
    std: Tensor
    plain: Tensor
    lacking: Tensor
    step: Tensor
    low: Tensor
    width: Tensor
    curve: Tensor
    category: Tensor
    value: Tensor
    shift: Tensor
    column: Tensor
    other: Tensor

    def __init__(self, numbers: tuple[_Number, ...], categories: tuple[_Category, ...]) -> None:
        super().__init__()
        plain = [at for at, one in enumerate(numbers) if not one.knots]
        missing = [at for at, one in enumerate(numbers) if one.missing]
        self.has_numbers, self.has_categories = bool(numbers), bool(categories)
        self.has_plain, self.all_plain, self.has_missing = bool(plain), len(plain) == len(numbers), bool(missing)
        if numbers:
            self.register_buffer("number", torch.tensor([one.at for one in numbers]))
            self.register_buffer("fill", torch.tensor([one.fill for one in numbers], dtype=torch.float64))
            self.register_buffer("mean", torch.tensor([one.mean for one in numbers], dtype=torch.float64))
            self.register_buffer("std", torch.tensor([one.std for one in numbers], dtype=torch.float64))
        if plain and not self.all_plain:
            self.register_buffer("plain", torch.tensor(plain))
        if missing:
            self.register_buffer("lacking", torch.tensor(missing))
        if not self.all_plain:
            curves = [(at, one) for at, one in enumerate(numbers) if one.knots]
            steps = [
                (place, low, high) for place, (_, one) in enumerate(curves) for low, high in zip(one.knots, one.knots[1:], strict=False)
            ]
            self.register_buffer("step", torch.tensor([curves[place][0] for place, _, _ in steps]))
            self.register_buffer("low", torch.tensor([low for _, low, _ in steps], dtype=torch.float64))
            self.register_buffer("width", torch.tensor([high for _, _, high in steps], dtype=torch.float64) - self.low)
            self.register_buffer("curve", F.one_hot(torch.tensor([place for place, _, _ in steps]), len(curves)).double())
        if categories:
            known = [(place, one, code) for place, one in enumerate(categories) for code in range(len(one.values))]
            self.register_buffer("category", torch.tensor([one.at for _, one, _ in known]))
            self.register_buffer("value", torch.tensor([one.values[code] for _, one, code in known], dtype=torch.float64))
            self.register_buffer("shift", torch.tensor([float(code - one.other) for _, one, code in known]))
            self.register_buffer("column", F.one_hot(torch.tensor([place for place, _, _ in known]), len(categories)).float())
            self.register_buffer("other", torch.tensor([float(one.other) for one in categories]))

    def forward(self, rows: Tensor) -> Tensor:
        found = []
        if self.has_numbers:
            numbers = torch.index_select(rows, 1, self.number)
            missing = torch.isnan(numbers)
            numbers = (torch.where(missing, self.fill, numbers) - self.mean) / self.std
            if self.has_plain:
                found.append(numbers if self.all_plain else torch.index_select(numbers, 1, self.plain))
            if self.has_missing:
                found.append(torch.index_select(missing, 1, self.lacking).double())
            if not self.all_plain:
                steps = torch.clamp((torch.index_select(numbers, 1, self.step) - self.low) / self.width, 0.0, 1.0)
                found.append(torch.matmul(steps, self.curve))
        if self.has_categories:
            same = torch.eq(torch.index_select(rows, 1, self.category), self.value).float()
            found.append((torch.matmul(same * self.shift, self.column) + self.other).double())
        return torch.cat(found, 1).float()


def kind_of_metric(metric: str | None) -> Kind | None:
    """Of the target that a metric is for; None where nothing is said."""
    if metric is None:
        return None
    return "regression" if metric.removeprefix("neg_") in get_args(NumberMetric) else "classification"


def in_units(module: fx.GraphModule, mean: float, std: float) -> fx.GraphModule:
    """`module` with its outputs times `std` plus `mean`; it shares the weights."""
    if (mean, std) == (0.0, 1.0):
        return module
    graph = fx.Graph()
    result: Any = graph.graph_copy(module.graph, {})
    graph.output(graph.call_function(torch.add, (graph.call_function(torch.mul, (result, std)), mean)))
    return fx.GraphModule(module, graph, class_name="Net").train(module.training)


def knots_of(values: NDArray, count: int) -> tuple[float, ...]:
    """Up to `count` knots among `values`, in rising order, the least and the largest among them.

    All values, where there are so few; else quantiles, of values none of which counts for more than its share of a knot: of a column that is
    mostly 0, the knots are where the rest is.

    >>> knots_of(np.array([0.0] * 97 + [1.0, 2.0, 4.0]), 4)
    (0.0, 1.0, 2.0, 4.0)
    """
    different, counts = np.unique(values, return_counts=True)
    if len(different) <= count:
        return tuple(map(float, different))
    weights = counts.astype(np.float64)
    for _ in range(count):
        weights = np.minimum(weights, weights.sum() / count)
    middle = np.cumsum(weights) - weights / 2
    at = np.searchsorted(middle, np.linspace(middle[0], middle[-1], count))
    return tuple(map(float, np.unique(different[np.minimum(at, len(different) - 1)])))
