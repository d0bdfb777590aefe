"""ONNX Runtime as a device: a network as an ONNX model, and one run of it as a step to be timed."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from niwaki.device.measure import MeasureError, Step
from niwaki.device.onnx_session import session_of

NAME = f"onnxruntime {onnxruntime.__version__}"


def to_onnx(model: nn.Module, input_shape: Sequence[int]) -> bytes:
    """The model in evaluation mode, in float32, for one example of `input_shape`, as the bytes of an ONNX file. Its mode is left as it was.

    Only for timing: what is delivered is made, and checked, by `deploy`.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that are not there
    with _evaluating(model):
        program = torch.onnx.export(model, (torch.zeros(1, *input_shape),), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def traced_onnx(model: nn.Module, input_shape: Sequence[int], *, batch: int = 1) -> bytes:
    """The same for `batch` examples, by the older exporter, which follows one run: a fiftieth of the time, where hundreds are measured."""
    with _evaluating(model), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "traced.onnx"
        torch.onnx.export(model, (torch.zeros(batch, *input_shape),), path, dynamo=False, verbose=False)
        return path.read_bytes()


def dynamic_int8(content: bytes) -> bytes:
    """The model with weights of 8 bits, and inputs of its convolutions and linear layers that become so when it runs (no calibration data)."""
    root = logging.getLogger()
    level = root.level
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(content)
        root.setLevel(logging.ERROR)  # it advises to prepare the model, which the exporters have done
        try:
            quantize_dynamic(before, after, weight_type=QuantType.QUInt8)  # int8 weights have no convolution on the CPU
        finally:
            root.setLevel(level)
        return after.read_bytes()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In evaluation mode, and without the exporters' warnings."""
    modes = [module.training for module in model.modules()]
    model.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode


def onnx_step(content: bytes, *, threads: int = 1, batch: np.ndarray | None = None) -> Step:
    """One run of the model on its one input. batch: what it is given; by default an example of random numbers, always the same."""
    session = session_of(content, threads=threads)
    inputs = session.get_inputs()
    if len(inputs) != 1:
        raise MeasureError(f"a model of one input is timed; this one has {len(inputs)}: {', '.join(one.name for one in inputs)}")
    if batch is None:
        if not all(isinstance(length, int) for length in inputs[0].shape):
            raise MeasureError(f"the model takes any size, {inputs[0].shape}; give a batch of the size to be timed")
        batch = np.random.default_rng(0).standard_normal(inputs[0].shape).astype(np.float32)
    feed = {inputs[0].name: batch}
    return lambda: session.run(None, feed)
