"""ONNX Runtime as a device: a network as an ONNX model, and one run of it as a step to be timed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import numpy as np
import onnxruntime
import torch
from torch import nn

from niwaki.device.measure import MeasureError, Step
from niwaki.device.onnx_session import session_of

NAME = f"onnxruntime {onnxruntime.__version__}"


def to_onnx(model: nn.Module, input_shape: Sequence[int]) -> bytes:
    """The model in evaluation mode, in float32, for one example of `input_shape`, as the bytes of an ONNX file. Its mode is left as it was.

    Only for timing: what is delivered is made, and checked, by `deploy`.
    """
    modes = [module.training for module in model.modules()]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that are not there
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model.eval(), (torch.zeros(1, *input_shape),), dynamo=True, verbose=False)
    finally:
        for module, mode in zip(model.modules(), modes, strict=True):
            module.training = mode
    assert program is not None
    return program.model_proto.SerializeToString()


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
