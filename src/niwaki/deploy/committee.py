"""Committees: models that answer together, or one after the other until they are sure (Wang et al. 2022, "Wisdom of Committees").

committee = Committee([small, large], costs=[7_232, 181_632]).fit(outputs_on_held_out_images, labels, target=0.98)
answers = committee.predict(images)        answers.labels, answers.exits
print(committee.report(images, labels))    on a third part of the data: what was chosen looks better than it is where it was chosen

As published: the answer is the mean of all members that ran; whoever is sure enough stops; members run from cheap to dear, at most four of them.
Ours: a temperature for each member, fitted with a prior; "last", where the last member that ran answers alone; pruning that tries the whole grid
of thresholds of four members in moderate time; a beam where there are more than twelve. Not here: confidence of parts of an image, for
segmentation, and of video.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from niwaki.deploy.confidence import TINY, Confidence, max_probability, softmax, temperature
from niwaki.deploy.thresholds import (
    EPSILON,
    NEVER,
    CommitteeError,
    Exits,
    Point,
    Rule,
    Sequences,
    by_budget,
    by_target,
    front,
)
from niwaki.device.measure import ONE_THREAD, Protocol, Samples, in_turns
from niwaki.device.onnx_session import session_of

Average = Literal["logits", "probabilities", "last"]
ANSWERS: Mapping[Average, str] = {
    "logits": "the mean logits of all that ran", "probabilities": "the mean probabilities of all that ran", "last": "that of the last that ran",
}  # fmt: skip
Model = Callable[[Any], Any]  # a torch module among them
BATCH = 256


@dataclass(frozen=True, eq=False)
class Answers:
    """labels: (N,). outputs: (N, K), logits or logarithms of probabilities, averaged over the members that ran, if they are. exits: (N,), how many ran. costs: (N,)."""

    outputs: NDArray
    exits: NDArray
    costs: NDArray

    @property
    def labels(self) -> NDArray:
        return self.outputs.argmax(1)


@dataclass(frozen=True)
class Report:
    """What a committee comes to on some examples. shares: of the examples, stopping at each exit. exit_accuracies: of those, None where there are none.

    worst_cost: of an example for which all members run. latency_ms: of one example at each exit, measured; None where it was not.
    """

    members: tuple[str, ...]
    thresholds: tuple[float, ...]
    examples: int
    accuracy: float
    shares: tuple[float, ...]
    exit_accuracies: tuple[float | None, ...]
    costs: tuple[float, ...]
    average_cost: float
    worst_cost: float
    latency_ms: tuple[float, ...] | None = None

    @property
    def average_latency_ms(self) -> float | None:
        if self.latency_ms is None:
            return None
        return float(np.dot(self.shares, self.latency_ms))

    def to_json(self) -> dict[str, Any]:
        latency = {} if self.latency_ms is None else {"average_latency_ms": self.average_latency_ms}
        return {**{name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}, **latency}

    def __str__(self) -> str:
        lines = [
            f"accuracy {self.accuracy:.4f} over {self.examples} examples; cost {self.average_cost:,.6g} on average, {self.worst_cost:,.6g} at worst"
        ]
        for at, name in enumerate(self.members):
            right = self.exit_accuracies[at]
            last = at == len(self.members) - 1
            sure = "the rest" if last else "nobody" if self.thresholds[at] > 1 else f"confidence >= {self.thresholds[at]:.4f}"
            took = "" if self.latency_ms is None else f", {self.latency_ms[at]:.3f} ms"
            lines.append(
                f"exit {at + 1}, {name} (cost {self.costs[at]:,.6g}): {self.shares[at]:.1%}, {sure}"
                f"{'' if right is None else f', accuracy {right:.4f}'}{took}"
            )
        if self.latency_ms is not None:
            lines.append(f"{self.average_latency_ms:.3f} ms on average, one example at a time")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Committee:
    """models: torch modules (put into evaluation mode when they run), ONNX files or their bytes, or functions from a batch to outputs (B, K).

    costs: of one run of each model on one example, in any one unit: multiply-adds, milliseconds. average: of the members that ran, "logits" (the
    geometric mean of probabilities; the paper's) or "probabilities"; or "last" (ours): the last to run answers alone, for a weak member
    beside a strong one drags the mean down, and the strong one's own accuracy may then be out of reach. calibrate: each member's logits are divided by a temperature that
    `fit` finds on the same held-out examples; members trained for different times are sure to a different degree of the same thing.
    rule, temperatures, front, fitted: what `fit` found. A committee without a rule predicts nothing yet.
    """

    models: Sequence[Any]  # Model, once it is made
    costs: Sequence[float]
    names: Sequence[str] = ()
    average: Average = "logits"
    confidence: Confidence = max_probability
    calibrate: bool = True
    rule: Rule | None = None
    temperatures: tuple[float, ...] = ()
    front: tuple[Point, ...] = field(default=(), repr=False)
    fitted: Report | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name in ("models", "costs", "names", "temperatures", "front"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "models", tuple(map(_member, self.models)))
        if not self.models or len(self.costs) != len(self.models):
            raise CommitteeError(
                f"{len(self.models)} models and {len(self.costs)} costs were given; at least one model, and a cost for each"
            )
        if wrong := [cost for cost in self.costs if not 0 < cost < float("inf")]:
            raise CommitteeError(f"a cost is a number above 0, not {wrong[0]}")
        if self.average not in get_args(Average):
            raise CommitteeError(f"members cannot be averaged by {self.average!r}; it is {' or '.join(get_args(Average))}")
        if not self.names:
            object.__setattr__(self, "names", tuple(f"model {at + 1}" for at in range(len(self.models))))
        if len(self.names) != len(self.models):
            raise CommitteeError(f"{len(self.models)} models have {len(self.names)} names: {', '.join(self.names)}")
        if not self.temperatures:
            object.__setattr__(self, "temperatures", (1.0,) * len(self.models))
        if len(self.temperatures) != len(self.models) or not all(0 < one < float("inf") for one in self.temperatures):
            raise CommitteeError(f"each of {len(self.models)} models has a temperature above 0; given are {self.temperatures}")
        if self.rule is not None and not all(0 <= member < len(self.models) for member in self.rule.members):
            raise CommitteeError(f"the rule names the members {self.rule.members} of {len(self.models)} models")

    # --- choosing --------------------------------------------------------------------------------------------------------

    def fit(
        self,
        val_logits: Sequence[Any],
        y: Any,
        *,
        budget: float | None = None,
        target: float | None = None,
        worst_case: float | None = None,
        sequences: Sequences | None = None,
    ) -> Committee:
        """The committee with members, order and thresholds: of the greatest accuracy within `budget`, or the least cost with accuracy `target`.

        val_logits: (N, K) of each model, on N examples that none of them was trained on, with labels y (N,). budget: of the average cost of an
        example. worst_case: a bound on the cost of an example for which all members run. sequences: how thoroughly is searched.
        Raises CommitteeError with the best there is, where nothing reaches the target or keeps within the budget.
        """
        if (budget is None) == (target is None):
            raise CommitteeError("a committee is fitted to a budget or to a target accuracy: one of the two")
        if target is not None and not 0 <= target <= 1:
            raise CommitteeError(f"a target accuracy is a share, from 0 to 1, not {target}")
        if budget is not None and not budget > 0:
            raise CommitteeError(f"a budget is above 0, not {budget}")
        logits, labels = _checked(val_logits, y, len(self.models))
        asked = sequences or Sequences()
        if worst_case is not None:
            asked = replace(asked, worst=worst_case)
        if min(self.costs) > asked.worst:
            raise CommitteeError(
                f"no example costs less than {min(self.costs):,.6g}, the cheapest model; a worst case of {asked.worst:,.6g} is asked"
            )
        found = self.calibrated(logits, labels) if self.calibrate else self
        prefers = by_target(target) if target is not None else by_budget(budget or 0.0)
        points = front(found.costs, found.exits_of(logits, labels), asked, prefers)
        best = min(points, key=prefers)
        if target is not None and best.accuracy < target - EPSILON:
            raise CommitteeError(
                f"no committee of these models is right on {target:.2%} of the {len(labels)} held-out examples; the best reaches {best.accuracy:.2%} "
                f"({found._told(best)})",
                best.accuracy,
            )
        if budget is not None and best.cost > budget:
            raise CommitteeError(f"no committee keeps within {budget:,.6g}; the cheapest costs {best.cost:,.6g} ({found._told(best)})")
        found = replace(found, rule=best.rule, front=tuple(points))
        outputs, exits = found._of_logits(logits)
        return replace(found, fitted=found._report(outputs, exits, labels))

    def calibrated(self, logits: Sequence[NDArray], labels: NDArray) -> Committee:
        """The committee with the temperature of each member that fits held-out logits best."""
        return replace(self, temperatures=tuple(temperature(one, labels) for one in logits))

    def with_rule(self, members: Sequence[int], thresholds: Sequence[float]) -> Committee:
        """The committee with a rule of the caller's own: thresholds of 0 stop everybody, above 1 nobody."""
        return replace(self, rule=Rule(tuple(members), tuple(thresholds)), fitted=None)

    def exits_of(self, logits: Sequence[NDArray], labels: NDArray) -> Callable[[tuple[int, ...]], Exits]:
        """How sure and how right each sequence of members would be, from the outputs of all of them."""
        votes = [self._vote(member, one) for member, one in enumerate(logits)]

        @cache  # of sorted members: the mean does not depend on the order
        def answers(members: tuple[int, ...]) -> tuple[NDArray, NDArray]:
            mean = np.sum([votes[member] for member in members], axis=0) / len(members)
            return self.confidence(self._probabilities(mean)), mean.argmax(1) == labels

        def exits(sequence: tuple[int, ...]) -> Exits:
            alone = self.average == "last"
            pairs = [answers(sequence[at : at + 1] if alone else tuple(sorted(sequence[: at + 1]))) for at in range(len(sequence))]
            return Exits(
                np.array([sure for sure, _ in pairs[:-1]]).reshape(len(sequence) - 1, len(labels)),
                np.array([right for _, right in pairs]),
                np.array([self.costs[member] for member in sequence], dtype=np.float64),
            )

        return exits

    # --- answering -------------------------------------------------------------------------------------------------------

    def predict(self, x: Any, *, batch: int = BATCH) -> Answers:
        """Answers for examples (N, ...), an array or a tensor as the models take it. Each member runs only on those that are left."""
        rule = self._rule()
        count = len(x)
        if not count:
            raise CommitteeError("there is nothing to predict: no example was given")
        left = np.arange(count)
        total: NDArray = np.empty(0)
        means, exits = np.empty(0), np.zeros(count, dtype=np.int64)
        for at, member in enumerate(rule.members):
            vote = self._vote(member, outputs_of(self.models[member], x if len(left) == count else x[_index(left, x)], batch))
            total = vote if at == 0 or self.average == "last" else total + vote
            mean = self._mean(total, at + 1)
            if at == 0:
                means = np.empty_like(mean)
            stop = self._stops(at, mean)
            means[left[stop]], exits[left[stop]] = mean[stop], at + 1
            left, total = left[~stop], total[~stop]
            if not len(left):
                break
        return self._answers(means, exits)

    def predict_in_full(self, x: Any, *, batch: int = BATCH) -> Answers:
        """The same answers, with every member run on every example: what `predict` saves is the difference in time."""
        return self._answers(*self._decided({member: outputs_of(self.models[member], x, batch) for member in set(self._rule().members)}))

    def logits(self, x: Any, *, batch: int = BATCH) -> list[NDArray]:
        """(N, K) of each model: what `fit` wants, of held-out examples."""
        return [outputs_of(model, x, batch) for model in self.models]

    def confidences(self, x: Any, *, batch: int = BATCH) -> tuple[NDArray, tuple[float, ...]]:
        """(exits, N) how sure the members so far are at each exit before the last, with every member run on every example; and the thresholds."""
        rule = self._rule()
        votes = [self._vote(member, outputs_of(self.models[member], x, batch)) for member in rule.members[:-1]]
        first = [at if self.average == "last" else 0 for at in range(len(votes))]
        means = [np.mean(votes[since : at + 1], axis=0) for at, since in enumerate(first)]
        sure = np.array([self.confidence(self._probabilities(mean)) for mean in means])
        return sure.reshape(len(votes), len(x)), rule.thresholds

    def _of_logits(self, logits: Sequence[NDArray]) -> tuple[NDArray, NDArray]:
        return self._decided(dict(enumerate(logits)))

    def _decided(self, logits: Mapping[int, NDArray]) -> tuple[NDArray, NDArray]:
        """(means, exits) from the outputs of all members."""
        rule = self._rule()
        votes = [self._vote(member, logits[member]) for member in rule.members]
        means, exits = np.empty_like(votes[0]), np.zeros(len(votes[0]), dtype=np.int64)
        total = np.zeros_like(votes[0])
        for at, vote in enumerate(votes):
            total = vote if self.average == "last" else total + vote
            mean = self._mean(total, at + 1)
            stop = (exits == 0) & self._stops(at, mean)
            means[stop], exits[stop] = mean[stop], at + 1
        return means, exits

    def _mean(self, total: NDArray, count: int) -> NDArray:
        return total if self.average == "last" else total / count

    def _stops(self, at: int, mean: NDArray) -> NDArray:
        """(N,) bool: who stops at exit number `at`, from 0, by the mean of the members so far."""
        thresholds = self._rule().thresholds
        if at == len(thresholds):
            return np.ones(len(mean), dtype=bool)
        return self.confidence(self._probabilities(mean)) >= thresholds[at]

    def _vote(self, member: int, logits: NDArray) -> NDArray:
        """What is averaged, float64 (N, K)."""
        scaled = logits.astype(np.float64) / self.temperatures[member]
        return softmax(scaled) if self.average == "probabilities" else scaled

    def _probabilities(self, mean: NDArray) -> NDArray:
        return mean if self.average == "probabilities" else softmax(mean)

    def _answers(self, means: NDArray, exits: NDArray) -> Answers:
        outputs = np.log(np.maximum(means, TINY)) if self.average == "probabilities" else means
        paths = np.cumsum([self.costs[member] for member in self._rule().members])
        return Answers(outputs.astype(np.float32), exits, paths[exits - 1])

    # --- telling ---------------------------------------------------------------------------------------------------------

    def report(self, x: Any = None, y: Any = None, *, batch: int = BATCH, latency: Protocol | None = None) -> Report:
        """Exit shares, accuracy at each exit, cost: on the examples x with labels y, or, without them, on those it was fitted on.

        latency: also measures one example of x at each exit by this protocol, where one example goes there, with the last member's as reference.
        """
        if x is None:
            if self.fitted is None:
                raise CommitteeError("a committee that was not fitted has nothing to report without examples and labels")
            return self.fitted
        labels = np.asarray(y)
        answers = self.predict(x, batch=batch)
        if labels.shape != (len(answers.exits),):
            raise CommitteeError(f"labels have the shape {labels.shape}; {len(answers.exits)} examples were given")
        found = self._report(answers.outputs, answers.exits, labels)
        if latency is not None:
            timed = self.measured(x, answers.exits, protocol=latency)
            found = replace(found, latency_ms=tuple(timed[f"exit {at + 1}"].latency_ms for at in range(len(self._rule().members))))
        return found

    def measured(self, x: Any, exits: NDArray, *, protocol: Protocol = ONE_THREAD) -> dict[str, Samples]:
        """Samples of one example at a time that takes each exit ("exit 1", ...), and of the last member alone ("last"), which is the reference.

        Where no example takes an exit, all members up to there run on the first one.
        """
        rule = self._rule()
        steps: dict[str, Callable[[], object]] = {}
        for at in range(len(rule.members)):
            places = np.flatnonzero(exits == at + 1)
            one = x[int(places[0]) : int(places[0]) + 1] if len(places) else x[:1]
            path = self if len(places) else self.with_rule(rule.members[: at + 1], (NEVER,) * at)
            steps[f"exit {at + 1}"] = partial(path.predict, one)
        steps["last"] = partial(_run, self.models[rule.members[-1]], x[:1])
        return in_turns(steps, "last", runtime="committee", protocol=protocol)

    def _report(self, outputs: NDArray, exits: NDArray, labels: NDArray) -> Report:
        rule, right = self._rule(), outputs.argmax(1) == labels
        costs = tuple(float(self.costs[member]) for member in rule.members)
        at_exit = [exits == at + 1 for at in range(len(rule.members))]
        shares = tuple(float(here.mean()) for here in at_exit)
        return Report(
            members=tuple(self.names[member] for member in rule.members),
            thresholds=rule.thresholds,
            examples=len(labels),
            accuracy=float(right.mean()),
            shares=shares,
            exit_accuracies=tuple(float(right[here].mean()) if here.any() else None for here in at_exit),
            costs=costs,
            average_cost=float(np.cumsum(costs)[exits - 1].mean()),
            worst_cost=float(sum(costs)),
        )

    def _told(self, point: Point) -> str:
        return f"{' -> '.join(self.names[member] for member in point.rule.members)}, {point.cost:,.6g} on average"

    def _rule(self) -> Rule:
        if self.rule is None:
            raise CommitteeError("this committee has no thresholds yet: fit gives one that has (committee = committee.fit(...))")
        return self.rule


# --- models -------------------------------------------------------------------------------------------------------------------


class OnnxMember:
    """An ONNX model with one input as a member: a function from a batch, an array, to its first output.

    content: the file's bytes. properties: its metadata; those that niwaki wrote are JSON texts.
    """

    def __init__(self, model: str | Path | bytes) -> None:
        name = "the model given" if isinstance(model, bytes) else str(model)
        if not isinstance(model, bytes) and not Path(model).is_file():
            raise CommitteeError(f"there is no file {name}; an ONNX model is needed")
        self.content = model if isinstance(model, bytes) else Path(model).read_bytes()
        try:
            self._session = session_of(self.content, threads=torch.get_num_threads())
        except Exception as error:  # onnxruntime's own kinds have no common base below Exception
            raise CommitteeError(f"{name} cannot be loaded by ONNX Runtime: {str(error).strip().splitlines()[0]}") from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            raise CommitteeError(f"a member takes one input; {name} takes {', '.join(one.name for one in inputs)}")
        self._input = inputs[0].name
        self.properties: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, x: Any) -> NDArray:
        return self._session.run(None, {self._input: _array(x)})[0]


def _member(model: Any) -> Model:
    if isinstance(model, (str, Path, bytes)):
        return OnnxMember(model)
    if not callable(model):
        raise CommitteeError(f"a member is a torch module, an ONNX file or a function, not a {type(model).__name__}")
    return model


def _run(model: Model, x: Any) -> NDArray:
    """Outputs (B, K) of a batch."""
    return _of_module(model, x) if isinstance(model, nn.Module) else _array(model(x))


@torch.no_grad()
def _of_module(module: nn.Module, x: Any) -> NDArray:
    """Outputs of a module in evaluation mode, on the device where it is."""
    was_training = module.training
    tensors = (*module.parameters(), *module.buffers())
    outputs = module.eval()(torch.as_tensor(x, device=tensors[0].device if tensors else None))
    module.train(was_training)
    return _array(outputs)


def _array(x: Any) -> NDArray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def outputs_of(model: Any, x: Any, batch: int = BATCH) -> NDArray:
    """(N, K) of examples, `batch` at a time."""
    found = [_run(model, x[start : start + batch]) for start in range(0, len(x), batch)]
    outputs = found[0] if len(found) == 1 else np.concatenate(found)
    if outputs.ndim != 2 or len(outputs) != len(x):
        raise CommitteeError(f"a member gives outputs of shape {outputs.shape} for {len(x)} examples; logits (N, classes) are needed")
    return outputs


def _index(places: NDArray, x: Any) -> Any:
    return torch.from_numpy(places).to(x.device) if isinstance(x, Tensor) else places


def _checked(logits: Sequence[Any], y: Any, models: int) -> tuple[list[NDArray], NDArray]:
    labels = _array(y)
    arrays = [_array(one) for one in logits]
    if len(arrays) != models:
        raise CommitteeError(f"logits of {len(arrays)} models were given; the committee has {models}")
    shapes = {one.shape for one in arrays}
    if len(shapes) != 1 or arrays[0].ndim != 2 or arrays[0].shape[1] < 2:
        raise CommitteeError(
            f"logits of all models have one shape, (examples, classes), with 2 classes at least; given are {sorted(shapes)}"
        )
    if not all(np.isfinite(one).all() for one in arrays):
        raise CommitteeError("logits contain NaN or infinity")
    count, classes = arrays[0].shape
    if labels.shape != (count,) or labels.dtype.kind not in "iu" or not count or labels.min() < 0 or labels.max() >= classes:
        raise CommitteeError(f"labels are {labels.dtype} of shape {labels.shape}; {count} class numbers within 0..{classes - 1} are needed")
    return arrays, labels


# --- one model at several resolutions ---------------------------------------------------------------------------------------------


class Resized(nn.Module):
    """The network on images (B, C, H, W) brought to `size` first: bilinear, and averaged where they become smaller."""

    def __init__(self, network: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[2:]) == self.size:
            return self.network(images)
        return self.network(F.interpolate(images, self.size, mode="bilinear", align_corners=False))


def at_resolutions(network: nn.Module, sizes: Sequence[int | tuple[int, int]]) -> list[Resized]:
    """The members of a self-cascade (section 4.4 of the paper): one network with one set of weights, on images of several sizes."""
    return [Resized(network, (size, size) if isinstance(size, int) else size) for size in sizes]
