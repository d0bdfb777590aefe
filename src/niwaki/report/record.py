"""What a report shows, as plain data: written by the run, read by the page.

Everything but the title may be missing: the page leaves out what a run has not, or not yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


class RecordError(ValueError):
    """A record that does not fit together."""


Status = Literal["finished", "running", "stopped"]


@dataclass(frozen=True)
class Budget:
    """One limit and what the chosen network needs. text: as the user gave it; reached: None before there is a network."""

    text: str
    resource: str  # "macs", "params", "size" (bytes) ...
    limit: float
    reached: float | None = None


@dataclass(frozen=True)
class Example:
    """One image (from `niwaki.report.image.png_text`) or the text of a row, its class, and what the network said. probability: of `predicted`."""

    image: str
    label: str
    predicted: str = ""
    probability: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Data:
    """The data set. stored_shape: of one image as it is stored, (H, W) or (H, W, C), or the columns of a row, (D,).

    noun: what examples are called. Of a table: the target, and for each column its name, and how many categories it has (None: numbers);
    missing: values of training rows that are not known; missing_texts: by column, how often each text of the file stood for one.

    counts: examples by part, such as {"train": 1149, "validation": 288, "test": 360}.
    """

    name: str
    stored_shape: tuple[int, ...]
    classes: tuple[str, ...]
    counts: Mapping[str, int]
    examples: tuple[Example, ...] = ()
    noun: str = "images"
    target: str = ""
    columns: tuple[tuple[str, int | None], ...] = ()
    missing: int = 0
    missing_texts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


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
    """An architecture that was measured. metrics: "accuracy" as a fraction, "macs", "params".

    source: "search", "random", "finalist" and "regular" (measured by a training of their own), "final" (the delivered network) ...
    on_front: no cheaper one of the search is as good.
    """

    number: int
    metrics: Mapping[str, float]
    source: str = "search"
    seconds: float = 0.0
    arch: Mapping[str, Any] = field(default_factory=dict)
    on_front: bool = False


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
class Width:
    """How many units of a group of channels a network had before it was shrunk, and how many are left. layers: whose channels they are."""

    group: str
    before: int
    after: int
    layers: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.after <= self.before:
            raise RecordError(f"{self.group}: {self.after} of {self.before} units are left, which cannot be")


@dataclass(frozen=True)
class Shrunk:
    """What shrinking changed: names to pairs, before and after, with the figures as they are told ("3.1 M", "91.2 %")."""

    widths: tuple[Width, ...]
    figures: Mapping[str, tuple[str, str]] = field(default_factory=dict)


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
    pairs: tuple[tuple[float, float], ...] = ()  # of a target of numbers: truth and prediction
    judged: str = "on validation"  # how `validation` was measured


@dataclass(frozen=True)
class Way:
    """How one example came to its class in a tree. nodes: after the root; probabilities: of each, given the one before."""

    example: Example
    nodes: tuple[int, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Tree:
    """A classifier read as a tree of decisions. Nodes 0 to K - 1 are the classes, node K + i has the children `inner[i]`, the last is the root.

    labels: of the inner nodes, or none. passed: by node, the test examples on the way of which it lies; seen, right: by class, how many there
    are and how many find their class. accuracy: of the network and of the trees, by what the page calls them. made: how, for people.
    """

    classes: tuple[str, ...]
    inner: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...]
    passed: tuple[int, ...]
    seen: tuple[int, ...]
    right: tuple[int, ...]
    accuracy: Mapping[str, float]
    ways: tuple[Way, ...] = ()
    made: str = ""

    def __post_init__(self) -> None:
        if len(self.passed) != len(self.classes) + len(self.inner) or {len(self.seen), len(self.right)} != {len(self.classes)}:
            raise RecordError(f"a tree of {len(self.classes)} classes and {len(self.inner)} decisions has a count for each of them")


@dataclass(frozen=True)
class Chosen:
    """The best network for one of several budgets."""

    budgets: tuple[Budget, ...]
    metrics: Mapping[str, float]  # "macs", "params"; "validation" and "test" by the metric that was maximized
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
    metric: str = "accuracy"  # what was maximized
    cost: str = "macs"  # the resource that candidates are shown against
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
    search_cost: tuple[Curve, ...] = ()  # expected cost, in the unit of the first budget
    training_loss: tuple[Curve, ...] = ()
    quality: Quality | None = None
    macs: int | None = None
    params: int | None = None
    stored: int | None = None  # parameters that a file of variables holds, where all others are made from them
    hardly_trained: bool = False  # a time limit left the final training a small part of its steps
    judged: str = ""  # how the search measured its candidates: "with shared weights"
    layers: tuple[Layer, ...] = ()
    picture: str = ""  # an <svg> element, see niwaki.net.picture
    tree: Tree | None = None
    chosen: tuple[Chosen, ...] = ()  # when several budgets were asked for
    files: tuple[File, ...] = ()
    cascade: Mapping[str, Any] | None = None  # summary of the cascade of the networks of several budgets, see niwaki.run.cascade
    seconds: Mapping[str, float] = field(default_factory=dict)  # wall time by phase, in order
    notes: tuple[str, ...] = ()  # warnings and what was cut, most important first
    shrunk: Shrunk | None = None  # of a network that its owner had, and that was made smaller

    def __post_init__(self) -> None:
        if self.picture and not self.picture.lstrip().startswith("<svg"):
            raise RecordError(f"a record's picture is an <svg> element; this one starts with {self.picture[:20]!r}")


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
