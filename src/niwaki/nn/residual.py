"""Residual branches of a network: where they end, so that training can begin or thin out there."""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.net.layer import BatchNorm, Conv, Linear, Sum
from niwaki.net.place import INPUT, Placed, Placement
from niwaki.nn.build import module_name
from niwaki.nn.feature import Feature
from niwaki.nn.forward import After
from niwaki.nn.supernet import Supernet


def residual_ends(placement: Placement) -> tuple[frozenset[str], ...]:
    """For each residual sum, in order of execution, the paths of the BatchNorms that its branch ends with; several where block types are searched.

    A sum counts if both its inputs are always there, and if one of them, the branch, has more convolutions than the other since the two parted.
    A branch that ends with an activation does not count: scaled to 0, one such as ReLU would let no gradient through again.
    """
    items = placement.items
    before: list[set[int]] = []  # of each item, all that it is made of, itself included
    for at, item in enumerate(items):
        before.append({at}.union(*(before[source] for source in item.inputs if source != INPUT)))

    def convolutions(of: set[int]) -> int:
        return sum(isinstance(items[at].layer, (Conv, Linear)) for at in of)

    def ends(at: int) -> frozenset[str]:
        """Empty where some way out is no BatchNorm."""
        if at == INPUT:
            return frozenset()
        if isinstance(items[at].layer, BatchNorm):
            return frozenset([items[at].path])
        parts = [ends(source) for source in items[at].inputs] if isinstance(items[at].layer, Sum) else [frozenset[str]()]
        return frozenset().union(*parts) if all(parts) else frozenset()

    found = []
    for item in items:
        if not isinstance(item.layer, Sum) or item.edges != (True, True):
            continue
        sets = [set() if source == INPUT else before[source] for source in item.inputs]
        own = [convolutions(mine - other) for mine, other in (sets, sets[::-1])]
        branch = ends(item.inputs[own.index(max(own))])
        if own[0] != own[1] and branch:
            found.append(branch)
    return tuple(found)


@torch.no_grad()
def zero_last_gammas_(net: Supernet) -> int:
    """Sets the scale of the BatchNorms that end residual branches to 0, in place; how many. Every such block then is the identity (Goyal et
    al. 2017, section 5.1; BigNAS, section 3.1)."""
    paths = frozenset().union(*residual_ends(net.placement))
    for path in paths:
        net.layers[module_name(path)].weight.zero_()  # type: ignore[operator]
    return len(paths)


def drop_connect(placement: Placement, rate: float) -> After:
    """Stochastic depth for a call of the supernet: each example goes without each residual branch at random, and the others' grow to match.

    The rate rises with the depth of the block, up to `rate` at the last (EfficientNet's code). Drawn from torch's global generator.
    """
    branches = residual_ends(placement)
    rates = {path: rate * (at + 1) / len(branches) for at, paths in enumerate(branches) for path in paths}

    def after(item: Placed, feature: Feature) -> Feature:
        if (p := rates.get(item.path, 0.0)) == 0.0:
            return feature
        return Feature(thinned(feature.whole(), p))

    return after


def thinned(x: Tensor, rate: float) -> Tensor:
    """`x` (B, ...) with a share `rate` of its examples, each at random, set to 0, and the others divided by 1 - rate."""
    kept = torch.rand(len(x), *(1,) * (x.dim() - 1), device=x.device) >= rate
    return x * (kept.to(x.dtype) / (1 - rate))
