"""A tensor on its way through a supernet, with what is still to be done to it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class Feature:
    """A map (or vector) on its way: tensor, then BatchNorm `norm` and channel gate `gate` still to be applied, then `mask`.

    mask: over the channels, the second dimension; of what an operation gives perhaps over others, and then of several dimensions, which are
    the last ones of the tensor.
    """

    __slots__ = ("_whole", "gate", "mask", "norm", "tensor")

    def __init__(
        self,
        tensor: Tensor,
        mask: Tensor | None = None,
        *,
        norm: Callable[[Tensor, Tensor | None], Tensor] | None = None,
        gate: Tensor | None = None,
    ) -> None:
        self.tensor, self.mask, self.norm, self.gate = tensor, mask, norm, gate
        self._whole: Tensor | None = None

    def whole(self) -> Tensor:
        """The map with everything applied."""
        if self._whole is None:
            self._whole = self.scaled(None)
        return self._whole

    def scaled(self, scale: Tensor | None) -> Tensor:
        """`scale` times the whole map; the scale costs nothing where it can be folded, too."""
        if self.norm is not None:
            return self.norm(self.tensor, times(self.mask, scale))
        factor = times(self.mask, scale)
        if self.gate is not None:
            return self.tensor * (self.gate if factor is None else self.gate * along_channels(factor, self.tensor))
        return self.tensor if factor is None else self.tensor * along_channels(factor, self.tensor)

    def waiting(self) -> tuple[Tensor, Tensor | None]:
        """The map without its mask, and the mask, for readers that fold it into their weights; a norm or a gate takes it up itself."""
        if self.norm is not None or self.gate is not None or (self.mask is not None and self.mask.dim() > 1):
            return self.whole(), None
        return self.tensor, self.mask


def times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b


def along_channels(mask: Tensor, x: Tensor) -> Tensor:
    """`mask` in the form in which it multiplies `x`."""
    return mask if mask.dim() > 1 else mask.view(-1, *(1,) * (x.dim() - 2))
