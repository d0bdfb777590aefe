"""Any PyTorch module as ONNX bytes: several inputs, several outputs, a batch of any size.

content = onnx_of(module, (images, table))
outputs = run_onnx(content, (images, table))  # arrays, in the order in which the module gives them
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from niwaki.deploy.card import ExportError
from niwaki.deploy.export import OPSET, _first_lines, _quiet
from niwaki.device.onnx_session import session_of

Example = Tensor | Sequence[Any] | Mapping[str, Any]


def arguments_of(example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: of one tensor, of several in order, or of a mapping from their names."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return ((example,) if isinstance(example, Tensor) else tuple(example)), {}


def tensors_of(structure: Any) -> list[Tensor]:
    """The tensors in nested tuples, lists and dictionaries, in their order."""
    return [leaf for leaf in pytree.tree_leaves(structure) if isinstance(leaf, Tensor)]


def onnx_of(module: nn.Module, example: Example, *, batch: int | None = 0) -> bytes:
    """An ONNX model that computes what `module` does in evaluation mode.

    example: a tensor, a sequence of tensors, or a mapping from argument names to tensors. batch: the axis along which there may be any number
    of examples, in every input that is as long there as the first (at least two here, for torch.export takes 1 for a constant); None:
    all sizes are those of the example.
    """
    positional, named = arguments_of(example)
    module = copy.deepcopy(module).cpu().eval()
    tensors = tensors_of(example)
    rows = next((tensor.shape[batch] for tensor in tensors if tensor.ndim > batch), 0) if batch is not None else 0
    size = torch.export.Dim("batch", min=1)

    def free(leaf: Any) -> Any:
        return {batch: size} if isinstance(leaf, Tensor) and leaf.ndim > (batch or 0) and leaf.shape[batch or 0] == rows else None

    dynamic = None if batch is None else pytree.tree_map(free, named or positional)
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, positional, named, dynamic_shapes=dynamic, strict=False)
            written = torch.onnx.export(program, (), dynamo=True, verbose=False, optimize=True, opset_version=OPSET)
        assert written is not None
        return written.model_proto.SerializeToString()
    except Exception as error:  # torch.export and the exporter raise dozens of kinds
        raise ExportError(f"the module cannot be written as ONNX: {_first_lines(error)}") from error


def run_onnx(content: bytes, example: Example) -> list[NDArray]:
    """The outputs of an ONNX model in ONNX Runtime."""
    session = session_of(content, threads=torch.get_num_threads())
    arrays = [tensor.detach().numpy() for tensor in tensors_of(arguments_of(example))]
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(arrays):
        raise ExportError(f"the ONNX model takes {len(names)} inputs ({', '.join(names)}); {len(arrays)} were given")
    return [np.asarray(output) for output in session.run(None, dict(zip(names, arrays, strict=True)))]
