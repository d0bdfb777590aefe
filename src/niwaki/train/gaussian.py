"""Distillation without data: inputs of a piece drawn from normal distributions, with the moments that the teacher's BatchNorm layers remember.

Neighbourhood distillation (arXiv:2010.01189) finds that for small pieces Gaussian noise is data enough, where end-to-end distillation on it
fails. Matching the moments of each channel, and passing them through what stands between BatchNorm and the boundary, is ours.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
KEEPING = (nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool2d, nn.ChannelShuffle, *AVERAGES)
SUMS = (operator.add, torch.add, operator.iadd)
RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Moments:
    """What is known of a tensor's channels: mean and std, (C,) each; rectified: of what a ReLU then made into its positive part."""

    mean: Tensor
    std: Tensor
    rectified: bool = False

    def draw(self, count: int, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """(count, *shape), independent at all positions."""
        wide = [1, -1, *[1] * (len(shape) - 1)]
        x = torch.randn((count, *shape), generator=generator) * self.std.view(wide) + self.mean.view(wide)
        return x.clamp(min=0) if self.rectified else x

    @property
    def after(self) -> tuple[Tensor, Tensor]:
        """Mean and variance after the ReLU, if there is one: of a rectified normal distribution, in closed form."""
        if not self.rectified:
            return self.mean, self.std**2
        z = self.mean / self.std.clamp(min=1e-12)
        density, below = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), (1 + torch.erf(z / math.sqrt(2))) / 2
        mean = self.mean * below + self.std * density
        square = (self.mean**2 + self.std**2) * below + self.mean * self.std * density
        return mean, (square - mean**2).clamp(min=0)


def boundary_moments(pieces: Sequence[nn.Module], channels: int) -> list[Moments]:
    """Moments of x_0, ..., x_(n-1), the inputs of the pieces, from the teacher alone.

    x_0 is N(0, 1): images are normalised. Behind a BatchNorm the mean is its shift and the deviation its scale; sums add means and
    variances, as if their terms were independent; pooling keeps the moments, and so does, though it should not, any activation but ReLU and ReLU6.
    What follows a convolution without a BatchNorm has no moments, and is said to be N(0, 1), too.
    """
    standard = Moments(torch.zeros(channels), torch.ones(channels))
    found = [standard]
    for piece in pieces[:-1]:
        found.append(_through(piece, found[-1]))
    return found


def gaussian_inputs(
    moments: Moments, shape: Sequence[int], count: int, *, seed: int, real: Tensor | None = None, at_once: int = 256
) -> Iterator[Tensor]:
    """`count` inputs of shape (C, ...) in batches, drawn by the moments. real: (K, C, ...), examples that come first."""
    generator = torch.Generator().manual_seed(seed)
    done = 0
    if real is not None:
        yield real[:count]
        done = min(count, len(real))
    while done < count:
        size = min(at_once, count - done)
        yield moments.draw(size, shape, generator)
        done += size


def _through(piece: nn.Module, entering: Moments) -> Moments:
    """The moments of what a piece gives."""
    if isinstance(piece, nn.Sequential):
        for child in piece:
            entering = _through(child, entering)
        return entering
    if not isinstance(piece, fx.GraphModule):
        return _layer(piece, entering)
    known: dict[fx.Node, Moments] = {}
    modules = dict(piece.named_modules())
    for node in piece.graph.nodes:
        if node.op == "placeholder":
            known[node] = entering
        elif node.op == "output":
            return known[node.all_input_nodes[0]]
        elif given := [known[one] for one in node.all_input_nodes if one in known]:
            known[node] = _layer(modules[str(node.target)], given[0]) if node.op == "call_module" else _function(node.target, given)
    raise AssertionError("a graph ends with its output")


def _layer(layer: nn.Module, entering: Moments) -> Moments:
    if isinstance(layer, _BatchNorm):
        if not layer.affine:
            return Moments(torch.zeros(layer.num_features), torch.ones(layer.num_features))
        return Moments(layer.bias.detach().clone(), layer.weight.detach().abs().clone())
    if isinstance(layer, RECTIFIERS):
        return replace(entering, rectified=True) if not entering.rectified else entering
    if isinstance(layer, KEEPING):
        return entering
    if isinstance(layer, (nn.Conv2d, nn.Linear)):
        width = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        return Moments(torch.zeros(width), torch.ones(width))
    return entering


def _function(function: Any, given: list[Moments]) -> Moments:
    if function in SUMS and len(given) == 2:
        (mean, variance), (other_mean, other_variance) = given[0].after, given[1].after
        return Moments(mean + other_mean, (variance + other_variance).sqrt())
    if function in (torch.relu, torch.nn.functional.relu, "relu", "relu_"):  # functions, and methods by their names
        return replace(given[0], rectified=True)
    return given[0]
