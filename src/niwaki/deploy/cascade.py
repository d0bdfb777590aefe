"""A cascade as one ONNX file with the early exit inside, which answers what the committee answers.

audit = export_cascade(committee, folder / "cascade.onnx", card, images)     members are ONNX models, or modules with `preprocess`

In the ONNX file everything behind an exit stands in the branch of an `If`: a single image that is sure at the first exit runs the first member
and nothing else. Of a batch the images that are not sure go on together, gathered from the rest (`If` none is left, the batch is done), and
their answers are scattered back to their places: whatever the batch, each image is answered as if it were alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.compose
import onnx.inliner
import onnx.version_converter
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from niwaki.deploy.audit import BATCH_SIZES, Audit, compare, scale_of
from niwaki.deploy.card import ExportError, ModelCard
from niwaki.deploy.committee import Committee, OnnxMember
from niwaki.deploy.confidence import TINY, Confidence, entropy, gap, logit_gap, max_probability
from niwaki.deploy.export import ONNX_TOLERANCE, OPSET, capture, translated
from niwaki.deploy.predict import EXITS
from niwaki.device.measure import ONE_THREAD, Protocol, in_turns
from niwaki.device.onnx_session import session_of
from niwaki.device.runtime_onnx import NAME, onnx_step
from niwaki.store.files import atomic_write

BORDER = 1e-6  # of confidence: an image so near to a threshold may leave at another exit on another machine, and is not compared

Nodes = list[onnx.NodeProto]


def with_onnx_members(committee: Committee, preprocess: nn.Module, card: ModelCard, images: NDArray) -> Committee:
    """The committee with those of its torch modules that it needs as ONNX models of stored images: `preprocess` goes into each of them."""
    rule = committee.rule
    assert rule is not None
    models = list(committee.models)
    for member in set(rule.members):
        if isinstance(model := models[member], nn.Module):
            models[member] = OnnxMember(translated(capture(model, preprocess, images), card).SerializeToString())
    return replace(committee, models=tuple(models))


def export_cascade(committee: Committee, path: str | Path, card: ModelCard, images: NDArray) -> Audit:
    """Writes one ONNX file, `images` as stored to `logits` (B, K) and `exits` (B,), that ONNX Runtime was seen to compute rightly.

    Its members are ONNX models of one input (see `with_onnx_members`). images: real ones on
    which the file is compared with the committee, in batches of 1, 2, 7 and more.
    """
    began = time.perf_counter()
    content = cascade_model(committee, card).SerializeToString()
    session = session_of(content, threads=torch.get_num_threads())
    clear, outputs = clear_of_thresholds(committee, images)

    def run(batch: NDArray) -> NDArray:
        logits, exits = session.run(None, {card.input_name: batch})
        expected = committee.predict(batch).exits
        if (exits != expected).any():
            at = int(np.flatnonzero(exits != expected)[0])
            raise ExportError(f"{Path(path).name}: an image leaves at exit {exits[at]}, where the committee lets it go at {expected[at]}")
        return logits

    difference = compare(Path(path).name, run, clear, outputs, tolerance=ONNX_TOLERANCE)
    atomic_write(path, content)
    return _audit(path, clear, outputs, difference, began)


def clear_of_thresholds(committee: Committee, images: NDArray) -> tuple[NDArray, NDArray]:
    """The images whose confidence is not right at a threshold, and the committee's outputs for them."""
    if not len(images):
        raise ExportError("an exported cascade is checked on real images; none were given")
    sure, thresholds = committee.confidences(images)
    clear = images[~(np.abs(sure - np.array(thresholds)[:, None]) < BORDER).any(0)]
    if not len(clear):
        raise ExportError(f"all {len(images)} images are as sure as a threshold asks, within {BORDER:g}: nothing can be compared")
    return clear, committee.predict(clear).outputs


def _audit(path: str | Path, images: NDArray, logits: NDArray, difference: float, began: float) -> Audit:
    file = Path(path)
    return Audit(
        file.name,
        file.stat().st_size,
        time.perf_counter() - began,
        len(images),
        BATCH_SIZES,
        max_difference=difference,
        scale=scale_of(logits),
    )


# --- the graph ---------------------------------------------------------------------------------------------------------------


def cascade_model(committee: Committee, card: ModelCard) -> onnx.ModelProto:
    """The ONNX model of a fitted committee. Means and confidences are float64: near 1 float32 knows few numbers, and thresholds lie there."""
    rule = committee.rule
    if rule is None:
        raise ExportError("this committee has no thresholds yet; fit it first")
    if committee.confidence not in _CONFIDENCE_NODES:
        known = ", ".join(one.__name__ for one in _CONFIDENCE_NODES)
        raise ExportError(f"an ONNX file can hold the confidence functions {known}; this committee has one of its own")
    if missing := [committee.names[member] for member in rule.members if not isinstance(committee.models[member], OnnxMember)]:
        raise ExportError(f"{', '.join(missing)}: members are ONNX models here; `with_onnx_members` makes them of torch modules")
    members = [_loaded(model.content, f"m{at}/") for at, model in enumerate(committee.models[member] for member in rule.members)]
    given = [_one_input(model) for model in members]
    if len({(value.type.tensor_type.elem_type, str(value.type.tensor_type.shape.dim[1:])) for value in given}) != 1:
        raise ExportError("the members take inputs of different types or shapes; one file takes one input")
    made = _Maker(committee, members)
    body, mean, exits = made.stage(0, card.input_name, None)
    body += made.answer(mean, card.output_name)
    body.append(helper.make_node("Identity", [exits], [EXITS]))
    entry = onnx.ValueInfoProto()
    entry.CopyFrom(given[0])
    entry.name = card.input_name
    entry.type.tensor_type.shape.dim[0].Clear()
    entry.type.tensor_type.shape.dim[0].dim_param = "batch"
    classes = len(card.class_names) or None
    outputs = [
        helper.make_tensor_value_info(card.output_name, TensorProto.FLOAT, ["batch", classes]),
        helper.make_tensor_value_info(EXITS, TensorProto.INT64, ["batch"]),
    ]
    graph = helper.make_graph(body, "niwaki", [entry], outputs, initializer=[*made.numbers.values(), *made.weights(0)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=min(one.ir_version for one in members))
    model.producer_name = "niwaki"
    for key, value in {**card.properties(), "cascade": json.dumps(facts_of(committee))}.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    return model


def facts_of(committee: Committee) -> dict[str, Any]:
    """The rule, for the file's metadata and for `cascade.py`."""
    rule = committee.rule
    assert rule is not None
    return {
        "members": [committee.names[member] for member in rule.members],
        "costs": [float(committee.costs[member]) for member in rule.members],
        "thresholds": list(rule.thresholds),
        "temperatures": [committee.temperatures[member] for member in rule.members],
        "average": committee.average,
        "confidence": committee.confidence.__name__,
        "held_out": None if committee.fitted is None else committee.fitted.to_json(),
    }


class _Maker:
    """Makes the nodes of the file. Members between which nobody stops run as one stage; behind each stage but the last stands an `If`.

    The weights of a stage lie in its own branch, also where members share theirs (one network at two resolutions): of weights that lie outside,
    ONNX Runtime does not know that they are constant, and runs the branch 3 to 4 times as slowly.
    """

    def __init__(self, committee: Committee, members: Sequence[onnx.ModelProto]) -> None:
        rule = committee.rule
        assert rule is not None
        self.committee, self.rule, self.members = committee, rule, members
        self.numbers: dict[str, onnx.TensorProto] = {}
        self.stages: list[list[int]] = [[]]
        for at in range(len(members)):
            self.stages[-1].append(at)
            if at < len(members) - 1 and rule.thresholds[at] <= 1:
                self.stages.append([])

    def weights(self, stage: int) -> list[onnx.TensorProto]:
        return [tensor for at in self.stages[stage] for tensor in self.members[at].graph.initializer]

    def stage(self, number: int, images: str, total: str | None) -> tuple[Nodes, str, str]:
        """(nodes, mean, exits): the members of a stage on `images`, their votes added to `total`, and all that follows for those not sure."""
        name, body = f"s{number}/", []
        for at in self.stages[number]:
            nodes, vote = self._member(at, images)
            body += nodes
            if total is not None and self.committee.average != "last":
                body.append(helper.make_node("Add", [total, vote], [f"v{at}/total"]))
            total = vote if total is None or self.committee.average == "last" else f"v{at}/total"
        assert total is not None
        last, mean = self.stages[number][-1], total
        if last and self.committee.average != "last":
            mean = name + "mean"
            body.append(helper.make_node("Div", [total, self.number(float(last + 1))], [mean]))
        exits = [
            helper.make_node("Shape", [mean], [name + "count"], start=0, end=1),
            helper.make_node("Expand", [self.number(last + 1, np.int64), name + "count"], [name + "exits"]),
        ]
        if number == len(self.stages) - 1:
            return [*body, *exits], mean, name + "exits"
        probabilities = mean
        if self.committee.average != "probabilities":
            probabilities = name + "probabilities"
            body.append(helper.make_node("Softmax", [mean], [probabilities], axis=1))
        nodes, sure = _CONFIDENCE_NODES[self.committee.confidence](self, name, probabilities)
        threshold = self.number(self.rule.thresholds[last])
        then, their_mean, their_exits = self.stage(number + 1, name + "images", name + "their_total")
        branch = [
            helper.make_node("Less", [sure, threshold], [name + "goes"]),
            helper.make_node("NonZero", [name + "goes"], [name + "places"]),
            helper.make_node("Squeeze", [name + "places", self.number([0], np.int64)], [name + "left"]),
            helper.make_node("Gather", [images, name + "left"], [name + "images"], axis=0),
            helper.make_node("Gather", [total, name + "left"], [name + "their_total"], axis=0),
            *then,
            helper.make_node("Unsqueeze", [name + "left", self.number([1], np.int64)], [name + "rows"]),
            helper.make_node("ScatterND", [mean, name + "rows", their_mean], [name + "then_mean"]),
            *exits,
            helper.make_node("ScatterND", [name + "exits", name + "rows", their_exits], [name + "then_exits"]),
        ]
        stop = [
            helper.make_node("Identity", [mean], [name + "else_mean"]),
            helper.make_node("Shape", [mean], [name + "else_count"], start=0, end=1),
            helper.make_node("Expand", [self.number(last + 1, np.int64), name + "else_count"], [name + "else_exits"]),
        ]
        body += [  # as few nodes as can be on the way out: each costs as much as a small layer
            *nodes,
            helper.make_node("ReduceMin", [sure], [name + "least"], keepdims=0),
            helper.make_node("Less", [name + "least", threshold], [name + "any"]),
            helper.make_node(
                "If",
                [name + "any"],
                [name + "answer", name + "answer_exits"],
                name=f"exit {last + 1}",
                then_branch=_branch(branch, name + "then", self.weights(number + 1)),
                else_branch=_branch(stop, name + "else"),
            ),
        ]
        return body, name + "answer", name + "answer_exits"

    def answer(self, mean: str, output: str) -> Nodes:
        """The mean as float32 logits, or logarithms of probabilities."""
        if self.committee.average != "probabilities":
            return [helper.make_node("Cast", [mean], [output], to=TensorProto.FLOAT)]
        return [
            helper.make_node("Max", [mean, self.number(TINY)], ["floor"]),
            helper.make_node("Log", ["floor"], ["log"]),
            helper.make_node("Cast", ["log"], [output], to=TensorProto.FLOAT),
        ]

    def _member(self, at: int, images: str) -> tuple[Nodes, str]:
        """The nodes of a member on `images`, and its vote: logits by temperature, or probabilities; float64."""
        model, vote = self.members[at], f"v{at}/logits"
        temperature = self.committee.temperatures[self.rule.members[at]]
        body: Nodes = [
            helper.make_node("Identity", [images], [_one_input(model).name]),
            *model.graph.node,
            helper.make_node("Cast", [model.graph.output[0].name], [vote], to=TensorProto.DOUBLE),
        ]
        if temperature != 1:
            body.append(helper.make_node("Div", [vote, self.number(temperature)], [f"v{at}/scaled"]))
            vote = f"v{at}/scaled"
        if self.committee.average != "probabilities":
            return body, vote
        return [*body, helper.make_node("Softmax", [vote], [f"v{at}/vote"], axis=1)], f"v{at}/vote"

    def number(self, value: Any, dtype: Any = np.float64) -> str:
        name = f"number {value} {np.dtype(dtype).name}"
        if name not in self.numbers:
            self.numbers[name] = numpy_helper.from_array(np.array(value, dtype=dtype), name)
        return name


def _branch(nodes: Nodes, name: str, weights: Sequence[onnx.TensorProto] = ()) -> onnx.GraphProto:
    """A branch of an `If`: it takes nothing and gives the means and exits of the whole batch."""
    return helper.make_graph(
        nodes,
        name,
        [],
        [
            helper.make_tensor_value_info(f"{name}_mean", TensorProto.DOUBLE, [None, None]),
            helper.make_tensor_value_info(f"{name}_exits", TensorProto.INT64, [None]),
        ],
        initializer=list(weights),
    )


def _loaded(content: bytes, prefix: str) -> onnx.ModelProto:
    """A member whose names begin with `prefix`, in the version of the operators that the file is written in, without functions or sizes."""
    model = onnx.load_from_string(content)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if others := [one.domain for one in model.opset_import if one.domain not in ("", "ai.onnx")]:
        raise ExportError(f"a member uses operators of {', '.join(others)}; those of ONNX itself can be joined in one file")
    if version != OPSET:
        try:
            model = onnx.version_converter.convert_version(model, OPSET)
        except Exception as error:
            raise ExportError(f"a member's operators, of version {version}, cannot be brought to {OPSET}: {error}") from error
    model = onnx.compose.add_prefix(model, prefix)
    del model.graph.value_info[:]  # within a branch the batch is another one
    initial = {tensor.name for tensor in model.graph.initializer}
    for at in reversed([at for at, value in enumerate(model.graph.input) if value.name in initial]):
        del model.graph.input[at]
    return model


def _one_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    value = model.graph.input[0]
    first = value.type.tensor_type.shape.dim[0]
    if first.HasField("dim_value"):
        raise ExportError(f"a member takes batches of {first.dim_value} only; members of one file take batches of any size")
    return value


# --- confidence functions, as nodes -----------------------------------------------------------------------------------------------


def _max_probability_nodes(made: _Maker, name: str, probabilities: str) -> tuple[Nodes, str]:
    node = helper.make_node("ReduceMax", [probabilities, made.number([1], np.int64)], [name + "sure"], keepdims=0)
    return [node], name + "sure"


def _two_largest(made: _Maker, name: str, probabilities: str) -> Nodes:
    axis = made.number([1], np.int64)
    return [
        helper.make_node("TopK", [probabilities, made.number([2], np.int64)], [name + "top", name + "top_places"], axis=1),
        helper.make_node("Split", [name + "top"], [name + "first", name + "second"], axis=1, num_outputs=2),
        helper.make_node("Sub", [name + "first", name + "second"], [name + "ahead"]),
        helper.make_node("Squeeze", [name + "ahead", axis], [name + "gap"]),
    ]


def _gap_nodes(made: _Maker, name: str, probabilities: str) -> tuple[Nodes, str]:
    return _two_largest(made, name, probabilities), name + "gap"


def _logit_gap_nodes(made: _Maker, name: str, probabilities: str) -> tuple[Nodes, str]:
    both = helper.make_node("ReduceSum", [name + "top", made.number([1], np.int64)], [name + "both"], keepdims=0)
    return [
        *_two_largest(made, name, probabilities),
        both,
        helper.make_node("Div", [name + "gap", name + "both"], [name + "sure"]),
    ], name + "sure"


def _entropy_nodes(made: _Maker, name: str, probabilities: str) -> tuple[Nodes, str]:
    return [
        helper.make_node("Max", [probabilities, made.number(TINY)], [name + "p"]),
        helper.make_node("Log", [name + "p"], [name + "log_p"]),
        helper.make_node("Mul", [name + "p", name + "log_p"], [name + "p_log_p"]),
        helper.make_node("ReduceSum", [name + "p_log_p", made.number([1], np.int64)], [name + "negative"], keepdims=0),
        helper.make_node("Shape", [probabilities], [name + "classes"], start=1, end=2),
        helper.make_node("Cast", [name + "classes"], [name + "k"], to=TensorProto.DOUBLE),
        helper.make_node("Log", [name + "k"], [name + "log_k"]),
        helper.make_node("Div", [name + "negative", name + "log_k"], [name + "share"]),
        helper.make_node("Add", [name + "share", made.number(1.0)], [name + "sure"]),
    ], name + "sure"


_CONFIDENCE_NODES: dict[Confidence, Callable[[_Maker, str, str], tuple[Nodes, str]]] = {
    max_probability: _max_probability_nodes,
    gap: _gap_nodes,
    logit_gap: _logit_gap_nodes,
    entropy: _entropy_nodes,
}


# --- latency -------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """One image at a time, in milliseconds: at each exit that some image takes, on average over the images, and of the largest member.

    ratio: of the average to the largest member's, each exit timed in turns with it. variation: the largest of any of them, see `Samples`.
    """

    exits_ms: Mapping[int, float]
    average_ms: float
    largest_ms: float
    ratio: float
    variation: float


def measured(cascade: bytes, largest: bytes, images: NDArray, exits: NDArray, *, protocol: Protocol = ONE_THREAD) -> Latency:
    """What the ONNX file takes in ONNX Runtime for images that leave at `exits`, (N,), beside its largest member."""
    steps = {"largest": onnx_step(largest, threads=protocol.threads, batch=images[:1])}
    numbers, counts = np.unique(exits, return_counts=True)
    for at in numbers:
        place = int(np.flatnonzero(exits == at)[0])
        steps[str(at)] = onnx_step(cascade, threads=protocol.threads, batch=images[place : place + 1])
    samples = in_turns(steps, "largest", runtime=NAME, protocol=protocol)
    taken, shares = [samples[str(at)] for at in numbers], counts / counts.sum()
    return Latency(
        exits_ms={int(at): one.latency_ms for at, one in zip(numbers, taken, strict=True)},
        average_ms=float(shares @ [one.latency_ms for one in taken]),
        largest_ms=samples["largest"].latency_ms,
        ratio=float(shares @ [one.ratio for one in taken]),
        variation=max(one.variation for one in samples.values()),
    )
