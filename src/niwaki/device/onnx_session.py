"""A model in ONNX Runtime; without torch, so that predicting needs none."""

from __future__ import annotations

import onnxruntime


def session_of(model: bytes | str, *, threads: int) -> onnxruntime.InferenceSession:
    """The model, its bytes or its path, on the CPU, without warnings. threads: of one operator; 0: as many as there are cores."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
