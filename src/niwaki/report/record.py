"""What a report shows, as plain data: written by the run, read by the page, JSON both ways.

Everything but the title may be missing: the page leaves out what a run has not, or not yet.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class RecordError(ValueError):
    """A record that does not fit together, or JSON that is none."""


Status = Literal["finished", "running", "stopped"]


@dataclass(frozen=True)
class Budget:
    """One limit and what the chosen network needs. text: as the user gave it; reached: None before there is a network."""

    text: str
    resource: str  # "macs", "params", "latency_ms", "size_bytes"
    limit: float
    reached: float | None = None


@dataclass(frozen=True)
class Example:
    """One image (from `niwaki.report.image.png_text`), its class, and what the network said. probability: of `predicted`."""

    image: str
    label: str
    predicted: str = ""
    probability: float | None = None


@dataclass(frozen=True)
class Data:
    """The data set. counts: examples by part, such as {"train": 1149, "validation": 288, "test": 360}."""

    name: str
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class SpaceFacts:
    """The space that was searched. within, share: how many genotypes hold the budgets, and which share; None where not computed."""

    choices: int
    size: int
    distinct: int | None = None
    within: int | None = None
    share: float | None = None
    macs: tuple[int, int] | None = None  # of the smallest and of the largest architecture
    note: str = ""  # such as why `distinct` is not known


@dataclass(frozen=True)
class Candidate:
    """An architecture that was measured. metrics: "accuracy" as a fraction, "macs", "params". source: "search", "random", "final" ..."""

    number: int
    metrics: Mapping[str, float]
    source: str = "search"
    seconds: float = 0.0
    arch: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Curve:
    """One line of a chart; a point without a value (None) is a gap."""

    name: str
    points: tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class Decision:
    """One choice during the search. probabilities: a row per entry of `epochs`, a column per option.

    taken: the option that the chosen network takes; None if the choice does not exist in it.
    """

    name: str
    options: tuple[str, ...]
    epochs: tuple[float, ...]
    probabilities: tuple[tuple[float, ...], ...]
    taken: str | None = None

    def __post_init__(self) -> None:
        if len(self.epochs) != len(self.probabilities):
            raise RecordError(f"{self.name}: {len(self.probabilities)} rows of probabilities for {len(self.epochs)} epochs")
        if wrong := [len(row) for row in self.probabilities if len(row) != len(self.options)]:
            raise RecordError(f"{self.name}: {wrong[0]} probabilities for the {len(self.options)} options {self.options}")


@dataclass(frozen=True)
class Layer:
    """One row of the layer table."""

    path: str
    kind: str
    shape: str
    macs: int
    params: int


@dataclass(frozen=True)
class Quality:
    """How good the chosen network is, by the metric that was maximized. interval: of `test`, 95 %.

    confusion: rows are true classes, columns predicted ones, both in the order of the data's classes. mistakes: the worst first.
    """

    validation: float | None = None  # as measured when the network was chosen
    test: float | None = None
    interval: tuple[float, float] | None = None
    confusion: tuple[tuple[int, ...], ...] = ()
    mistakes: tuple[Example, ...] = ()
    others: Mapping[str, float] = field(default_factory=dict)  # other metrics of the test set


@dataclass(frozen=True)
class Chosen:
    """The best network for one of several budgets."""

    budgets: tuple[Budget, ...]
    metrics: Mapping[str, float]  # "macs", "params", "validation", "test"
    folder: str = ""
    delivered: bool = False  # the one the rest of the report is about


@dataclass(frozen=True)
class File:
    """A file of the run's folder; check: what was found when it was read back."""

    name: str
    size_bytes: int
    about: str = ""
    check: str = ""


@dataclass(frozen=True)
class Record:
    """Everything that a report shows."""

    title: str
    status: Status = "finished"
    metric: str = "accuracy"
    network: str = ""  # name of the space or network
    method: str = ""
    command: str = ""
    folder: str = ""
    started: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    data: Data | None = None
    budgets: tuple[Budget, ...] = ()
    space: SpaceFacts | None = None
    candidates: tuple[Candidate, ...] = ()
    decisions: tuple[Decision, ...] = ()
    architecture: Mapping[str, Any] = field(default_factory=dict)
    search_loss: tuple[Curve, ...] = ()
    search_quality: tuple[Curve, ...] = ()  # fractions
    search_cost: tuple[Curve, ...] = ()  # expected cost, in the unit of the first budget
    training_loss: tuple[Curve, ...] = ()
    training_quality: tuple[Curve, ...] = ()  # fractions
    quality: Quality | None = None
    macs: int | None = None
    params: int | None = None
    layers: tuple[Layer, ...] = ()
    picture: str = ""  # an <svg> element, see niwaki.net.picture
    chosen: tuple[Chosen, ...] = ()  # when several budgets were asked for
    files: tuple[File, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)  # wall time by phase, in order
    notes: tuple[str, ...] = ()  # warnings and what was cut, most important first

    def __post_init__(self) -> None:
        if self.picture and not self.picture.lstrip().startswith("<svg"):
            raise RecordError(f"a record's picture is an <svg> element; this one starts with {self.picture[:20]!r}")

    def to_json(self) -> str:
        """The record as JSON. Numbers that are none (a loss that became NaN) are written as null."""
        return json.dumps(_finite(asdict(self)), ensure_ascii=False, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Record:
        """The record that `to_json` wrote."""
        data = json.loads(text)
        if not isinstance(data, dict):
            raise RecordError(f"a record is a JSON object, not {type(data).__name__}")
        return _read(Record, data, "record")


def wilson_interval(correct: float, examples: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % interval of a share of `examples` that came out as `correct` of them (Wilson 1927); it stays within 0 and 1.

    >>> low, high = wilson_interval(355, 360)
    >>> f"{low:.4f} {high:.4f}"
    '0.9679 0.9941'
    """
    if not 0 <= correct <= examples or examples < 1:
        raise RecordError(f"{correct} of {examples} is no share")
    share, weight = correct / examples, z * z / examples
    middle, half = share + weight / 2, z * math.sqrt(share * (1 - share) / examples + weight / (4 * examples))
    low, high = (middle - half) / (1 + weight), (middle + half) / (1 + weight)
    return max(0.0, min(low, share)), min(1.0, max(high, share))  # rounding puts neither end beyond the share, nor beyond 0 and 1


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return value


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, value: Any, where: str) -> Any:
    """`value`, as JSON gives it, as the type `kind`."""
    if is_dataclass(kind) and isinstance(kind, type):
        known = {f.name for f in fields(kind)}
        if not isinstance(value, dict) or (unknown := sorted(set(value) - known)):
            raise RecordError(f"{where}: {unknown if isinstance(value, dict) else value!r} does not belong in a {kind.__name__}")
        return kind(**{name: _read(_hints(kind)[name], part, f"{where}.{name}") for name, part in value.items()})
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _read(next(arg for arg in args if arg is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordError(f"{where} is a list, not {value!r}")
        kinds = [args[0]] * len(value) if args[1:] == (...,) else list(args)
        return tuple(_read(one, part, f"{where}[{at}]") for at, (one, part) in enumerate(zip(kinds, value, strict=True)))
    return value
