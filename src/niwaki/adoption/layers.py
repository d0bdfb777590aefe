"""Layers of torch.nn made from operators and their weights, so that what was read is written as its owner would write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

# Layers without weights: a node that one of these made, alone, is a call of it.
PLAIN: Mapping[type, str] = {
    nn.ReLU: "relu", nn.ReLU6: "hardtanh relu6", nn.SiLU: "silu", nn.GELU: "gelu", nn.Hardswish: "hardswish", nn.Hardsigmoid: "hardsigmoid",
    nn.Sigmoid: "sigmoid", nn.Tanh: "tanh", nn.LeakyReLU: "leaky_relu", nn.ELU: "elu", nn.Mish: "mish", nn.Softplus: "softplus",
    nn.MaxPool1d: "max_pool1d", nn.MaxPool2d: "max_pool2d", nn.MaxPool3d: "max_pool3d", nn.AvgPool1d: "avg_pool1d", nn.AvgPool2d: "avg_pool2d",
    nn.AdaptiveAvgPool1d: "adaptive_avg_pool1d", nn.AdaptiveAvgPool2d: "adaptive_avg_pool2d", nn.PixelShuffle: "pixel_shuffle",
}  # fmt: skip
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)

# One maker per kind of layer: from what the operator was given, never from the owner's settings, which a subclass may use otherwise.


def _convolution(name: str, owner: nn.Module, a: Mapping[str, Any], w: Mapping[str, Tensor]) -> nn.Module | None:
    assert isinstance(owner, _ConvNd)
    dims = w["weight"].dim() - 2
    kinds: Sequence[Any] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    if name not in ("conv1d", "conv2d", "conv3d"):
        return None
    out, per_group, *kernel = w["weight"].shape
    padding = a["padding"] if isinstance(a["padding"], str) else _spread(a["padding"], dims)
    return kinds[dims - 1](
        per_group * a["groups"], out, tuple(kernel), _spread(a["stride"], dims), padding, _spread(a["dilation"], dims), a["groups"],
        bias="bias" in w, device="meta",
    )  # fmt: skip


def _transposed(name: str, owner: nn.Module, a: Mapping[str, Any], w: Mapping[str, Tensor]) -> nn.Module | None:
    dims = w["weight"].dim() - 2
    kinds: Sequence[Any] = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    into, per_group, *kernel = w["weight"].shape
    stride, padding, extra, dilation = (_spread(a[key], dims) for key in ("stride", "padding", "output_padding", "dilation"))
    return kinds[dims - 1](
        into, per_group * a["groups"], tuple(kernel), stride, padding, extra, a["groups"], "bias" in w, dilation, device="meta"
    )  # fmt: skip


def _spread(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * dims if len(values) == 1 else values


def _linear(name: str, owner: nn.Module, a: Mapping[str, Any], w: Mapping[str, Tensor]) -> nn.Module | None:
    out, into = w["weight"].shape
    return nn.Linear(into, out, bias="bias" in w, device="meta") if name == "linear" else None


def _batch_norm(name: str, owner: nn.Module, a: Mapping[str, Any], w: Mapping[str, Tensor]) -> nn.Module | None:
    assert isinstance(owner, _BatchNorm)
    if name != "batch_norm":
        return None
    rank = {nn.BatchNorm1d: 1, nn.BatchNorm3d: 3}
    dims = next((dims for kind, dims in rank.items() if isinstance(owner, kind)), 2)
    kind = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    size = next(iter(w.values())).shape[0]
    return kind(size, a["eps"], owner.momentum, "weight" in w, "running_mean" in w, device="meta")


def _instance_norm(name: str, owner: nn.Module, a: Mapping[str, Any], w: Mapping[str, Tensor]) -> nn.Module | None:
    assert isinstance(owner, _InstanceNorm)
    rank = {nn.InstanceNorm1d: 1, nn.InstanceNorm3d: 3}
    dims = next((dims for kind, dims in rank.items() if isinstance(owner, kind)), 2)
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 1]
    size = next(iter(w.values())).shape[0]
    return kind(size, a["eps"], owner.momentum or 0.0, "weight" in w, "running_mean" in w, device="meta")


def _layer_norm(name: str, owner: nn.Module, a: Mapping[str, Any], w: Mapping[str, Tensor]) -> nn.Module | None:
    if name != "layer_norm":
        return None
    return nn.LayerNorm(a["normalized_shape"], a["eps"], elementwise_affine="weight" in w, bias="bias" in w, device="meta")


def _rms_norm(name: str, owner: nn.Module, a: Mapping[str, Any], w: Mapping[str, Tensor]) -> nn.Module | None:
    return nn.RMSNorm(a["normalized_shape"], a["eps"], device="meta") if name == "rms_norm" else None


def _group_norm(name: str, owner: nn.Module, a: Mapping[str, Any], w: Mapping[str, Tensor]) -> nn.Module | None:
    return nn.GroupNorm(a["num_groups"], w["weight"].shape[0], a["eps"], device="meta") if name == "group_norm" else None


def _embedding(name: str, owner: nn.Module, a: Mapping[str, Any], w: Mapping[str, Tensor]) -> nn.Module | None:
    if name != "embedding":
        return None
    count, size = w["weight"].shape
    padding = a["padding_idx"] if isinstance(a["padding_idx"], int) and a["padding_idx"] >= 0 else None
    return nn.Embedding(count, size, padding, device="meta")


def _prelu(name: str, owner: nn.Module, a: Mapping[str, Any], w: Mapping[str, Tensor]) -> nn.Module | None:
    return nn.PReLU(w["weight"].shape[0], device="meta") if name == "prelu" else None


Maker = Callable[[str, nn.Module, Mapping[str, Any], Mapping[str, Tensor]], nn.Module | None]
LAYERS: Sequence[tuple[type[nn.Module], Maker]] = (
    (_ConvTransposeNd, _transposed),
    (_ConvNd, _convolution),
    (nn.Linear, _linear),
    (_BatchNorm, _batch_norm),
    (_InstanceNorm, _instance_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _rms_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.PReLU, _prelu),
)
