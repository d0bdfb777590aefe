"""Operations of adopted models in a supernet: with weights cut to hard decisions, or with soft widths.

Soft widths of operations: a tensor travels raw, with the mask of its open axes beside it (FBNetV2's, P(unit j is alive)), through everything
that treats the positions along these axes each on its own; what sums over such an axis (a convolution, a linear layer, a product) reads
the masked tensor, or folds the mask into its weights. So a mask counts once between two such sums, whatever stands between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki.net.axes import Axis, length, most, size_of, unit_numbers
from niwaki.net.operation import RETURN, UNUSED, In, Items, Named, Operation, Weight
from niwaki.net.place import Placed
from niwaki.nn.expect import Answers, Expectations
from niwaki.nn.feature import Feature, along_channels
from niwaki.nn.operate import OWNED, Index, constant, cut, cuts, operator_of, shape_of, written
from niwaki.space.choice import SpaceError
from niwaki.space.size import Symbol, scope

# operators that treat the positions along an open axis each on its own, or move them, beside those that PyTorch tags as pointwise
EACH = frozenset((
    "relu", "relu6", "hardtanh", "hardswish", "hardsigmoid", "silu", "mish", "elu", "softplus", "leaky_relu", "gelu", "prelu", "celu",
    "selu", "square", "abs", "div", "where", "masked_fill", "dropout", "feature_dropout", "batch_norm", "instance_norm", "max_pool1d",
    "max_pool2d", "avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d",
    "upsample_bilinear2d", "constant_pad_nd", "pad", "roll", "flip", "zeros_like", "flatten", "view", "reshape", "view_as", "reshape_as",
    "permute", "transpose", "swapaxes", "movedim", "t", "squeeze", "unsqueeze", "unflatten", "expand", "expand_as", "repeat", "tile",
    "repeat_interleave", "slice", "narrow", "select", "split", "split_with_sizes", "chunk", "unbind", "getitem", "cat", "stack",
    "slice_scatter", "select_scatter", "im2col", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "contiguous", "alias", "clone",
    "detach", "to", "_to_copy",
))  # fmt: skip
SUMS = frozenset((
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "linear", "matmul", "bmm", "sum", "embedding",
))  # fmt: skip
ALONG = frozenset(("softmax", "log_softmax", "cumsum"))  # need the axis along which they run closed
# need the axes over which they run closed; a mean has a rule of its own
OVER = frozenset(("mean", "amax", "amin", "max", "min", "var", "std"))


class Call:
    """An operation of a supernet under hard decisions: which part of the owner's weights it uses, and its soft rule if some are open.

    Called with the features of its inputs, the answers about soft decisions, and the layers of the supernet.
    """

    def __init__(self, item: Placed, full: Operation, ask: Expectations) -> None:
        layer = item.layer
        assert isinstance(layer, Operation)
        self.item, self.layer, self.path, self.kind = item, layer, item.path, layer.kind
        self.weights = [(now.name, cuts(whole.axes, now.axes)) for now, whole in zip(layer.weights, full.weights, strict=True)]
        self._owners: list[tuple[Any, dict[str, Any]]] = []  # of the weights: the tree they were found in, and the table there
        self._tree: Any = None
        self._numbers = iter(range(len(self.weights)))
        self.arguments = [self._compiled(value) for value in layer.arguments]
        self.keywords = {key: self._compiled(value) for key, value in layer.keywords}
        self.special = layer.target in (RETURN, UNUSED) or self.kind in ("batch_norm", "dropout", "feature_dropout")
        if not self.special:  # what is the same in every call is worked out once
            self.function, given, self.options = written(layer, self.arguments, self.keywords)
            self.given = list(given)
            self.slots = [at for at, value in enumerate(given) if _is_filled(value)]
            self.option_slots = [key for key, value in self.options.items() if _is_filled(value)]
        self.open = [(at, axis) for at, axis in enumerate(item.shape.axes or ()) if scope(*(run.units for run in axis))]
        self.masks = [_Mask(at, len(item.shape.axes or ()), axis, ask, item.condition) for at, axis in self.open]
        self.inputs_open = [[at for at, axis in enumerate(shape.axes or ()) if _is_open(axis)] for shape in item.input_shapes]
        self.same = bool(self.masks) and item.shape.axes == item.input_shapes[0].axes
        self.summed = _lost(self._first_axes(), item.shape.axes or ())
        self.soft = bool(self.masks) or any(self.inputs_open) or bool(self.summed) or any(_is_open(s.channels) for s in item.input_shapes)
        if self.soft:
            self._require_rule()

    # --- hard -----------------------------------------------------------------------------------------------------------

    def __call__(self, inputs: Sequence[Feature], known: Answers, layers: nn.ModuleDict) -> Feature:
        if self.soft and self.kind not in (RETURN, UNUSED):
            return self._soft(inputs, known, layers)
        return Feature(self.run([feature.whole() for feature in inputs], layers))

    def run(self, tensors: Sequence[Any], layers: nn.ModuleDict, scale: Callable[[Tensor], Tensor] | None = None) -> Any:
        """The operation on plain tensors. scale: what its first weight is changed by."""
        if self.special:
            return self._run_special(tensors, layers)
        given, options = self.given.copy(), self.options
        for at in self.slots:
            value = given[at]
            given[at] = tensors[value.at] if type(value) is In else self._filled(value, tensors, layers)
        if scale is not None:
            at = next(at for at, value in enumerate(self.given) if isinstance(value, _Getter))
            given[at] = scale(given[at])
        if self.option_slots:
            options = {key: self._filled(value, tensors, layers) for key, value in options.items()}
        return self.function(*given, **options)

    def _run_special(self, tensors: Sequence[Any], layers: nn.ModuleDict) -> Any:
        """What follows the mode of the supernet, and what is no operator."""
        if self.kind == UNUSED:
            return None
        if self.kind == RETURN:
            return self._filled(self.arguments[0], tensors, layers)
        args = [self._filled(value, tensors, layers) for value in self.arguments]
        if self.kind == "batch_norm":
            return self._batch_norm(args, layers)
        return (F.dropout if self.kind == "dropout" else F.dropout2d)(args[0], args[1], layers.training)

    def _batch_norm(self, args: list[Any], layers: nn.ModuleDict) -> Tensor:
        x, weight, bias, mean, var, _, momentum, eps, *_ = args
        training = mean is None or (layers.training and "frozen" not in self.keywords)
        if training and "num_batches_tracked" in self.keywords:
            self.keywords["num_batches_tracked"](None, layers).add_(1)
        y = F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        if training and mean is not None:  # scattered channels were cut by copy
            for at, value in ((3, mean), (4, var)):
                stored = self._stored(self.arguments[at], layers)
                if stored is not None:
                    tensor, kept = stored
                    tensor.index_copy_(0, kept.on(tensor.device), value)
        return y

    def _stored(self, getter: Any, layers: nn.ModuleDict) -> tuple[Tensor, Index] | None:
        number = getter.number
        where = self.weights[number][1]
        if not where or isinstance(where[0][1], slice):
            return None
        return self.whole_weight(number, layers), where[0][1]

    def whole_weight(self, number: int, layers: nn.ModuleDict) -> Tensor:
        """Weight `number` of the operation, uncut."""
        if self._tree is not layers:
            self._tree, self._owners = layers, []
            for name, _ in self.weights:
                parent, _, last = name.rpartition(".")
                module = layers[OWNED].get_submodule(parent)
                table = module._parameters if last in module._parameters else module._buffers
                self._owners.append((last, table))
        last, table = self._owners[number]
        return table[last]  # type: ignore[return-value]

    def _compiled(self, value: Any) -> Any:
        """`value` with each weight as a function that cuts it, and sizes as numbers at their largest."""
        if isinstance(value, Weight):
            return _Getter(self, next(self._numbers))
        if isinstance(value, Symbol):
            return most(value)
        if isinstance(value, tuple):
            return [self._compiled(part) for part in value]
        if isinstance(value, Items):
            return dict(zip(value.keys, map(self._compiled, value.values), strict=True))
        if isinstance(value, Named) and value.name not in ("device", "training"):
            return constant(value)
        return value

    def _filled(self, value: Any, tensors: Sequence[Any], layers: nn.ModuleDict) -> Any:
        if isinstance(value, In):
            return tensors[value.at]
        if isinstance(value, _Getter):
            return value(tensors, layers)
        if isinstance(value, (list, tuple)):
            return type(value)([self._filled(part, tensors, layers) for part in value])
        if isinstance(value, slice):
            return slice(*(self._filled(part, tensors, layers) for part in (value.start, value.stop, value.step)))
        if isinstance(value, dict):
            return {key: self._filled(part, tensors, layers) for key, part in value.items()}
        if isinstance(value, Named):
            if value.name == "training":
                return layers.training
            return next(tensor.device for tensor in (*tensors, *layers.parameters()) if isinstance(tensor, Tensor))
        return value

    # --- soft -----------------------------------------------------------------------------------------------------------

    def _require_rule(self) -> None:
        kind, layer = self.kind, self.layer
        if not layer.reads and self.summed:  # of weights alone, which carry no masks
            raise self._no_rule()
        if kind in EACH or kind in SUMS or layer.target in (RETURN, UNUSED) or layer.target.startswith("operator."):
            return
        if kind == "sym_size" or (self.item.shape.axes is None and not any(self.inputs_open)):
            return
        if kind in ("mean", "group_norm") or (kind == "scaled_dot_product_attention" and dict(layer.keywords).get("scale") is not None):
            return
        if kind in ALONG and not any(_is_open(axis) for axis in self._along(layer.arguments[1])):
            return
        if (kind in OVER or torch.Tag.pointwise in getattr(operator_of(layer.target), "tags", ())) and not self.summed:
            return
        if kind == "layer_norm" and len(layer.arguments[1]) == 1:
            return
        if kind == "scaled_dot_product_attention" and not self._sums_heads():
            return
        raise self._no_rule()

    def _no_rule(self) -> SpaceError:
        axes = [*self._first_axes(), *(axis for shape in (*self.item.input_shapes, self.item.shape) for axis in shape.axes or ())]
        names = scope(*(run.units for axis in axes for run in axis))
        return SpaceError(
            f"{self.path}: {self.layer.target} has no rule for soft widths along the axes it is given; decide {', '.join(names)} by an option "
            f"(hard), as sampling and evolution do, or leave their group as it is"
        )

    def _along(self, dim: int) -> Sequence[Axis]:
        """The axis that an operator runs along; a number from the front counts the batch, which leads."""
        axes = self._first_axes()
        return axes[dim + len(axes) : dim + len(axes) + 1] if dim < 0 else axes[max(0, dim - 1) : dim]

    def _first_axes(self) -> Sequence[Axis]:
        """The axes, without the batch, of what an operation works on: its first input, or its first weight where it reads no input."""
        if self.layer.reads:
            return self.item.input_shapes[0].axes or ()
        return self.layer.weights[0].axes if self.layer.weights else ()

    def _soft(self, inputs: Sequence[Feature], known: Answers, layers: nn.ModuleDict) -> Feature:
        kind = self.kind
        if kind == "layer_norm" and self.inputs_open[0] and self.inputs_open[0][-1] == len(self.item.input_shapes[0].axes or ()) - 1:
            x, mask = raw(inputs[0])
            y = self._layer_norm(x, mask, layers)
            return self._given(y, mask, inputs, known)
        if kind == "mean" and self.summed:
            return self._given(self._mean(*raw(inputs[0])), None, inputs, known)
        if kind == "group_norm" and self.inputs_open[0]:
            x, mask = raw(inputs[0])
            return self._given(self._group_norm(x, mask, layers), mask, inputs, known)
        if (kind in SUMS and not self._alone()) or (kind == "scaled_dot_product_attention" and self._sums_heads()):
            x, mask = raw(inputs[0]) if inputs else (None, None)
            if mask is not None and kind in ("conv2d", "linear") and self._folds(x, mask):
                view = (1, -1, 1, 1) if kind == "conv2d" else (1, -1)
                return self._given(self.run([x], layers, lambda weight: weight * mask.reshape(view)), None, inputs, known)
            return self._given(self.run([feature.whole() for feature in inputs], layers), None, inputs, known)
        tensors, masks = zip(*map(raw, inputs), strict=True) if inputs else ((), ())
        return self._given(self.run(tensors, layers), masks[0] if masks else None, inputs, known)

    def _sums_heads(self) -> bool:
        """Whether an attention sums over an open axis: within heads, not over them."""
        ranks = [len(shape.axes or ()) for shape in self.item.input_shapes]
        return any(at >= rank - 2 for opened, rank in zip(self.inputs_open, ranks, strict=True) for at in opened)

    def _mean(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Over the units that are alive, each weighed by its mask."""
        given = self.arguments[1] if len(self.arguments) > 1 else None
        dims = [dim % x.dim() for dim in (range(x.dim()) if not given and given != 0 else [given] if isinstance(given, int) else given)]
        keep = torch.ones_like(x) if mask is None else along_channels(mask, x)
        keep = keep.reshape((1,) * (x.dim() - keep.dim()) + keep.shape)
        keep = keep.expand([x.shape[dim] if dim in dims else keep.shape[dim] for dim in range(x.dim())])
        keepdim = bool(self.arguments[2]) if len(self.arguments) > 2 else False
        return (x * keep).sum(dims, keepdim=keepdim) / keep.sum(dims, keepdim=keepdim).clamp_min(1e-6)

    def _group_norm(self, x: Tensor, mask: Tensor | None, layers: nn.ModuleDict) -> Tensor:
        """Of each group, mean and variance of the units that are alive, each weighed by its mask."""
        _, groups, *rest = (self._filled(value, [x], layers) for value in self.arguments)
        weight, bias, eps = (rest + [None, None, 1e-5][len(rest) :])[:3]
        keep = torch.ones_like(x[:1]) if mask is None else along_channels(mask, x).expand(1, *x.shape[1:])
        parts, keep = x.reshape(x.shape[0], groups, -1), keep.reshape(1, groups, -1)
        total = keep.sum(-1, keepdim=True).clamp_min(1e-6)
        centred = parts - (parts * keep).sum(-1, keepdim=True) / total
        y = (centred * torch.rsqrt((centred.square() * keep).sum(-1, keepdim=True) / total + eps)).view(x.shape)
        form = (-1, *(1,) * (x.dim() - 2))
        y = y if weight is None else y * weight.view(form)
        return y if bias is None else y + bias.view(form)

    def _alone(self) -> bool:
        """Whether an operator that sums has nothing open to sum over: a depthwise convolution, products of many heads each."""
        if self.kind.startswith("conv"):
            weight = self.layer.arguments[1]
            return isinstance(weight, Weight) and size_of(weight.axes[1]) == 1 and len(self.layer.arguments) > 6
        if self.kind in ("matmul", "bmm"):
            ranks = [len(shape.axes or ()) for shape in self.item.input_shapes]
            return all(at < rank - 2 for opened, rank in zip(self.inputs_open, ranks, strict=True) for at in opened)
        return False

    def _folds(self, x: Any, mask: Tensor) -> bool:
        """Whether the mask goes into the weights at less cost than over the map."""
        weight = self.layer.arguments[1]
        if not isinstance(weight, Weight) or isinstance(self.layer.arguments[0], Weight):
            return False
        numbers = prod(shape_of(weight.axes))
        if self.kind == "conv2d":
            groups = self.layer.arguments[6] if len(self.layer.arguments) > 6 else 1
            return mask.dim() == 1 and groups == 1 and numbers <= x.numel()
        return mask.numel() == x.shape[-1] and mask.shape[-1] == x.shape[-1] and (mask.dim() > 1 or x.dim() == 2) and numbers <= x.numel()

    def _layer_norm(self, x: Tensor, mask: Tensor | None, layers: nn.ModuleDict) -> Tensor:
        """Mean and variance of the units that are alive, each weighed by its mask."""
        _, _, *rest = (self._filled(value, [x], layers) for value in self.arguments)
        weight, bias, eps = [*rest, *(None, None, 1e-5)[len(rest) :]][:3]
        keep = torch.ones_like(x[:1]) if mask is None else along_channels(mask, x)
        total = keep.sum(-1, keepdim=True).clamp_min(1e-6)
        mean = (x * keep).sum(-1, keepdim=True) / total
        centred = x - mean
        y = centred * torch.rsqrt((centred.square() * keep).sum(-1, keepdim=True) / total + eps)
        y = y if weight is None else y * weight
        return y if bias is None else y + bias

    def _given(self, y: Any, mask: Tensor | None, inputs: Sequence[Feature], known: Answers) -> Feature:
        """`y` with the mask of its open axes; that of the first input, where the axes are the same."""
        if not self.masks:
            return Feature(y)
        if self.same and mask is not None:
            return Feature(y, mask)
        found: Tensor | None = None
        for one in self.masks:
            own = one(known, y, alone=len(self.masks) == 1, path=self.path)
            found = own if found is None else found * own
        return Feature(y, found)


class _Getter:
    """Gives a weight of a call, cut."""

    __slots__ = ("call", "cuts", "number")

    def __init__(self, call: Call, number: int) -> None:
        self.call, self.number, self.cuts = call, number, call.weights[number][1]

    def __call__(self, tensors: Any, layers: nn.ModuleDict) -> Tensor:
        tensor = self.call.whole_weight(self.number, layers)
        return cut(tensor, self.cuts) if self.cuts else tensor


class _Mask:
    """The mask of one open axis: how likely the unit of each position is alive."""

    def __init__(self, at: int, rank: int, axis: Axis, ask: Expectations, condition: Any) -> None:
        self.at, self.rank, self.length = at, rank, length(axis)
        self.question = ask.mask(tuple(run.units for run in axis), condition)
        numbers = np.array(unit_numbers(axis))
        self.units = None if np.array_equal(numbers, np.arange(len(numbers))) else Index(numbers.tolist())

    def __call__(self, known: Answers, y: Tensor, *, alone: bool, path: str) -> Tensor:
        """In the form that `Feature` has it: a vector for the second dimension, or as many dimensions as it is from the last one."""
        assert self.question is not None
        mask = known[self.question]
        if self.units is not None:
            mask = mask.index_select(0, self.units.on(mask.device))
        if y.dim() == self.rank + 1 and self.at == 0 and alone and y.shape[1] == self.length:
            return mask
        back = self.rank - self.at  # the axis, counted from the last
        size = y.shape[-back] if back <= y.dim() else 0
        if y.dim() == self.rank and size and size != self.length and size % self.length == 0:
            mask = mask.repeat(size // self.length)  # the batch and this axis were made one, the batch first
        elif size != self.length:
            raise SpaceError(f"{path}: its open axis of {self.length} positions is none of {tuple(y.shape)}")
        return mask.view(-1, *(1,) * (back - 1)) if back > 1 else mask.view(1, -1)


def raw(feature: Feature) -> tuple[Any, Tensor | None]:
    """The tensor of a feature without its mask, whatever its form, and the mask."""
    if feature.norm is not None or feature.gate is not None:
        return feature.whole(), None
    return feature.tensor, feature.mask


def _is_filled(value: Any) -> bool:
    """Whether an argument is known only in a call."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_filled, value))
    if isinstance(value, slice):
        return any(map(_is_filled, (value.start, value.stop, value.step)))
    return isinstance(value, (In, _Getter, Named)) or (isinstance(value, dict) and any(map(_is_filled, value.values())))


def _lost(before: Sequence[Axis], after: Sequence[Axis]) -> list[Axis]:
    """The open axes of `before` that are not among those of `after`: what an operation that gives one number for many runs over."""
    left, lost = list(after), []
    for axis in filter(_is_open, before):
        if axis in left:
            left.remove(axis)
        else:
            lost.append(axis)
    return lost


def _is_open(axis: Any) -> bool:
    return bool(scope(*(getattr(run, "units", run) for run in axis)))
