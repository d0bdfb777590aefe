"""Pools: how the weights of a network are made of fewer variables. The structured one of the paper, its alternative, and plain hashing.

Not here: sums of pools, which the public code of structured multi-hashing has, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor


class HashingError(ValueError):
    """A module that cannot be hashed to the size that was asked for, a pool that cannot be, or a file of another module."""


class Pool(Protocol):
    """How `weights` numbers are made of fewer variables. rank: how many products, or variables of a hash, are taken; more is larger."""

    def unit(self, weights: int) -> int:
        """Variables that one more of rank takes."""
        ...

    def shapes(self, weights: int, rank: int) -> dict[str, tuple[int, ...]]:
        """Of the variables, by name."""
        ...

    def std(self, rank: int) -> float:
        """Of independent variables, so that every weight has standard deviation 1."""
        ...

    def generate(self, variables: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        """Weights number `start` to `stop` - 1, (stop - start,); computed from the variables that these need, where that is possible."""
        ...


@dataclass(frozen=True)
class SumProduct:
    """w[p] = sum_m A[p div n, m] B[m, p mod n], n = ceil(sqrt(weights)): the structured pool of the paper.

    The weights, layer by layer and row-major within one, fill an n x n matrix of rank at most M = rank; no layer is of low rank by that.
    """

    def unit(self, weights: int) -> int:
        return 2 * root(weights, 2)

    def shapes(self, weights: int, rank: int) -> dict[str, tuple[int, ...]]:
        side = root(weights, 2)
        return {"A": (side, rank), "B": (rank, side)}

    def std(self, rank: int) -> float:
        return rank**-0.25  # var(w) = M sigma^4

    def generate(self, variables: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        a, b = variables["A"], variables["B"]
        side = len(a)
        first, last = start // side, -(-stop // side)  # contiguous weights share rows of A
        return (a[first:last] @ b).flatten()[start - first * side : stop - first * side]


STRUCTURED = SumProduct()


@dataclass(frozen=True)
class Kronecker:
    """Sum over r of kron(P_r, Q_r) of d x d matrices, d = ceil(weights^(1/4)): the alternative pool of the public code."""

    def unit(self, weights: int) -> int:
        return 2 * root(weights, 4) ** 2

    def shapes(self, weights: int, rank: int) -> dict[str, tuple[int, ...]]:
        side = root(weights, 4)
        return {"P": (rank, side, side), "Q": (rank, side, side)}

    def std(self, rank: int) -> float:
        return rank**-0.25

    def generate(self, variables: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        p, q = variables["P"], variables["Q"]
        side = p.shape[1]
        blocks = (p.flatten(1).T @ q.flatten(1)).view(side, side, side, side)  # (i, j, k, l): sum_r P_r[i, j] Q_r[k, l]
        return blocks.permute(0, 2, 1, 3).flatten()[start:stop]


@dataclass(frozen=True)
class Hash:
    """w[p] = sum_j V[j, h_j(p)], h_j random: what structured multi-hashing is compared with. One hash is HashNet's, with one pool for the
    whole network; signs: HashNet's random signs, which the paper leaves out. The indices follow from the seed and are not stored."""

    hashes: int = 1
    seed: int = 0
    signs: bool = False

    def __post_init__(self) -> None:
        if self.hashes < 1:
            raise HashingError(f"hashes={self.hashes}: there is at least one hash function")

    def unit(self, weights: int) -> int:
        return self.hashes

    def shapes(self, weights: int, rank: int) -> dict[str, tuple[int, ...]]:
        return {"V": (self.hashes, rank)}

    def std(self, rank: int) -> float:
        return self.hashes**-0.5

    def generate(self, variables: Mapping[str, Tensor], start: int, stop: int) -> Tensor:
        values = variables["V"]
        at, sign = _hashed(self, values.shape[1], stop, str(values.device))
        drawn = values.gather(1, at[:, start:])  # (hashes, weights)
        return (drawn * sign[:, start:] if self.signs else drawn).sum(0)


@lru_cache(maxsize=16)
def _hashed(pool: Hash, size: int, weights: int, device: str) -> tuple[Tensor, Tensor]:
    """Index and sign of each weight under each hash, (hashes, weights) each; the first ones are the same however many are asked for."""
    found, signs = [], []
    for at in range(pool.hashes):
        generator = torch.Generator().manual_seed(2 * (pool.seed * 1009 + at))
        found.append(torch.randint(size, (weights,), generator=generator))
        signs.append(torch.randint(2, (weights,), generator=generator.manual_seed(generator.initial_seed() + 1)) * 2.0 - 1)
    return torch.stack(found).to(device), torch.stack(signs).to(device)


def root(weights: int, degree: int) -> int:
    """The least whole number whose power of that degree is at least `weights`.

    >>> root(84_480, 2), root(84_480, 4), root(16, 4)
    (291, 18, 2)
    """
    side = round(weights ** (1 / degree))
    return side if side**degree >= weights else side + 1
