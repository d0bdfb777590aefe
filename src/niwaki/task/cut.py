"""Cutting examples into parts, by class or by whole groups; numpy alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


class DataError(ValueError):
    """Data that no network can be trained on, or that leaves doubt about what it means."""


def stratified_cut(labels: NDArray, share: float, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Positions of `labels` in two parts, each sorted; the second has `share` of every class that has two members or more.

    Of such a class at least one member lies in each part; the only member of a class lies in the first.
    """
    cut = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            cut[members[: min(max(round(share * len(members)), 1), len(members) - 1)]] = True
    return np.flatnonzero(~cut), np.flatnonzero(cut)


def group_cut(labels: NDArray, groups: NDArray, share: float, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Positions of `labels` in two parts, each sorted; the second has whole groups, in random order, that come near to `share` of all.

    A group without which a class would have no member left in the first part stays there. Where none can go, the second part is empty.
    """
    cut = np.zeros(len(labels), dtype=bool)
    classes = len(np.unique(labels))
    spared = []
    for group in rng.permutation(np.unique(groups)):
        members = groups == group
        if len(np.unique(labels[~cut & ~members])) < classes:
            continue
        spared.append(members)
        if cut.sum() + members.sum() / 2 <= share * len(labels):  # nearer with it than without
            cut |= members
        elif cut.any():
            break
    if spared and not cut.any():
        cut = min(spared, key=np.sum)
    return np.flatnonzero(~cut), np.flatnonzero(cut)


def dealt(labels: NDArray, groups: NDArray | None, count: int, rng: np.random.Generator, *, largest_first: bool = True) -> NDArray:
    """(N,): the number, from 0 to `count` - 1, of the fold that each example is dealt to; folds of nearly equal size.

    Whole groups, the largest first or else in random order, each to the fold that is the smallest so far; without groups the examples of one
    class after the other in turn.
    """
    fold = np.zeros(len(labels), dtype=np.int64)
    if groups is not None:
        sizes = np.zeros(count, dtype=np.int64)
        order = rng.permutation(np.unique(groups))
        for group in sorted(order, key=lambda name: -np.sum(groups == name)) if largest_first else order:
            members = groups == group
            fold[members] = np.argmin(sizes)
            sizes[fold[members][0]] += members.sum()
        return fold
    order = rng.permutation(len(labels))
    fold[order[np.argsort(labels[order], kind="stable")]] = np.arange(len(labels)) % count
    return fold


def group_numbers(groups: ArrayLike, count: int, source: str, noun: str = "images") -> NDArray:
    """(N,) int64: equal where `groups` are."""
    given = np.asarray(groups)
    if given.shape != (count,) or given.dtype.kind not in "iubUS":
        raise DataError(
            f"{source}: groups have the shape {given.shape} and the type {given.dtype}; "
            f"one whole number or text for each of the {count} training {noun} is needed"
        )
    return np.unique(given, return_inverse=True)[1].astype(np.int64)
