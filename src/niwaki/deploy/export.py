"""A trained network as one file for a runtime: `model.onnx` and `model.pt2`, from stored images to logits, checked on real images.

shipment = capture(module, preprocess, images)
export_onnx(shipment, folder / "model.onnx", card)
export_pt2(shipment, folder / "model.pt2", card)
"""

from __future__ import annotations

import copy
import io
import json
import logging
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from niwaki.deploy.audit import BATCH_SIZES, Audit, compare, scale_of
from niwaki.deploy.card import ExportError, ModelCard
from niwaki.device.onnx_session import session_of
from niwaki.store.files import atomic_write

OPSET = 21  # the newest that onnxruntime 1.20, the oldest that niwaki allows, runs; nothing newer is of use to these layers
ONNX_TOLERANCE = 1e-4  # of the largest logit: another library's kernels, BatchNorm folded into convolutions
TORCH_TOLERANCE = 1e-5  # of the largest logit: the same kernels, which sum in another order for another batch size


@dataclass(frozen=True, eq=False)
class Shipment:
    """A trained network with its preprocessing, captured once for every format, and what it answers to real images.

    program: stored images (B, H, W[, C]) to logits (B, K), any B. images: (N, H, W[, C]); logits: (N, K) of the module itself.
    """

    program: torch.export.ExportedProgram
    images: NDArray
    logits: NDArray
    seconds: float


class _Shipped(nn.Module):
    """Preprocessing and network; the name of the argument is that of the exported model's input."""

    def __init__(self, preprocess: nn.Module, network: nn.Module) -> None:
        super().__init__()
        self.preprocess, self.network = preprocess, network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.preprocess(images))


def capture(module: nn.Module, preprocess: nn.Module, images: NDArray) -> Shipment:
    """The module, in evaluation mode and on the CPU, as an exported program; the module itself is left as it is.

    images: real ones as the data set stores them, (N, H, W[, C]), on which the files will be checked. None of them enters a file.
    """
    began = time.perf_counter()
    if not len(images):
        raise ExportError("an exported model is checked on real images; none were given")
    shipped = _Shipped(copy.deepcopy(preprocess), copy.deepcopy(module)).cpu().eval()
    logits = logits_of(shipped, images)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        what = "NaN or infinity" if logits.ndim == 2 else f"outputs of shape {logits.shape}"
        raise ExportError(f"the network gives {what}; finite logits of shape (batch, classes) are needed")
    example = torch.zeros((2, *images.shape[1:]), dtype=torch.tensor(images[:1]).dtype)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(shipped, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False)
    except Exception as error:  # torch.export raises dozens of kinds
        raise ExportError(f"the network cannot be captured for batches of any size: {_first_lines(error)}") from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths on the machine that exported
    return Shipment(program, images, logits, time.perf_counter() - began)


def export_onnx(shipment: Shipment, path: str | Path, card: ModelCard) -> Audit:
    """Writes an ONNX model, `images` (batch, H, W[, C]) or `rows` (batch, D) as stored to `logits` (batch, K) or `values` (batch, 1), that ONNX Runtime was seen to compute rightly.

    torch's dynamo exporter translates the captured program; it folds BatchNorm and keeps the batch free. There is no fallback to the
    older TorchScript exporter: it is deprecated, and a second way is one that could silently differ. The card is in `metadata_props`.
    """
    began = time.perf_counter()
    content = translated(shipment, card).SerializeToString()
    session = session_of(content, threads=torch.get_num_threads())
    difference = compare(
        Path(path).name, lambda x: session.run(None, {card.input_name: x})[0], shipment.images, shipment.logits, tolerance=ONNX_TOLERANCE
    )
    atomic_write(path, content)
    return _audit(path, shipment, difference, began)


def translated(shipment: Shipment, card: ModelCard) -> onnx.ModelProto:
    """The captured program as an ONNX model, not yet seen to compute anything."""
    try:
        with _quiet():
            program = torch.onnx.export(
                shipment.program,
                (),
                dynamo=True,
                verbose=False,
                optimize=True,
                input_names=[card.input_name],
                output_names=[card.output_name],
                opset_version=OPSET,
            )
        assert program is not None
        model = _clean(program.model_proto)
        for key, value in card.properties().items():
            model.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise ExportError(f"the network cannot be written as ONNX: {_first_lines(error)}") from error
    _check_lean(model)
    return model


def export_pt2(shipment: Shipment, path: str | Path, card: ModelCard) -> Audit:
    """Writes a `torch.export` program: `torch.export.load(path).module()(images)` needs no niwaki. Card in its extra file `niwaki.json`."""
    began = time.perf_counter()
    with _quiet():
        content = io.BytesIO()
        torch.export.save(shipment.program, content, extra_files={"niwaki.json": json.dumps(card.to_json())})
        reloaded = torch.export.load(io.BytesIO(content.getvalue()))
    module = reloaded.module()
    difference = compare(Path(path).name, lambda x: logits_of(module, x), shipment.images, shipment.logits, tolerance=TORCH_TOLERANCE)
    atomic_write(path, content.getvalue())
    return _audit(path, shipment, difference, began)


@torch.no_grad()
def logits_of(module: nn.Module, images: NDArray, *, batch: int = 64) -> NDArray:
    """float32 logits (N, K) of stored images, `batch` at a time."""
    return torch.cat([module(torch.tensor(images[start : start + batch])) for start in range(0, len(images), batch)]).float().numpy()


def _clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without the exporter's notes (a third of a small file; names of local classes), its free dimension called `batch`."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
    free = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == free:
                dim.dim_param = "batch"
    graph.name = "niwaki"
    return model


def _check_lean(model: onnx.ModelProto) -> None:
    """Raises if the file carries weights that nothing reads, or a BatchNorm that its convolution should have taken in."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    if unused := [tensor.name for tensor in graph.initializer if tensor.name not in read]:
        raise ExportError(f"the ONNX model holds {len(unused)} weights that nothing reads, {unused[0]} the first of them")
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        source = made_by.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        # the weights of a layer that is called at two places cannot take in a norm after each of them
        if source is not None and source.op_type == "Conv" and readers[node.input[0]] == readers[source.input[1]] == 1:
            raise ExportError(f"BatchNorm {node.name} is not folded into {source.name}, the convolution before it")


def _audit(path: str | Path, shipment: Shipment, difference: float, began: float) -> Audit:
    return Audit(
        file=Path(path).name,
        size_bytes=Path(path).stat().st_size,
        seconds=time.perf_counter() - began,
        images=len(shipment.images),
        batch_sizes=BATCH_SIZES,
        max_difference=difference,
        scale=scale_of(shipment.logits),
    )


def _first_lines(error: BaseException) -> str:
    """What went wrong, in a line: of torch.onnx the innermost cause, which names the operator, and no colours."""
    while error.__cause__ is not None and type(error).__module__.startswith("torch.onnx"):
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return f"{type(error).__name__}: " + " ".join(text.splitlines()[:3])[:500]


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporters warn of torchvision that is missing, and of themselves; none of it is for the reader of our output."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
