"""How the examples of a task are divided: train, validation and test parts, folds; by class, or by whole groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from niwaki.task.cut import DataError, dealt, group_cut, stratified_cut
from niwaki.task.task import Part, derive_seed

DEALS = 20  # of groups to folds, until every class is in several


@dataclass(frozen=True, eq=False)
class Parts:
    """Index sets: 0..N-1 are the training examples, N.. the test examples.

    labels: (N,) int64, of the training examples: what every part shall have of; test: how many test examples there are. groups: (N,) int64
    or None: a group is never divided between parts or folds. validation: share that is kept out of the train part, or (N,) bool: the
    examples that are. noun: what an example is called in messages.
    """

    labels: NDArray
    test: int
    class_names: tuple[str, ...]
    groups: NDArray | None
    source: str
    validation: float | NDArray
    seed: int = 0
    noun: str = "images"

    def part(self, name: Part) -> Tensor:
        """Index set of a part, int64, ascending. Train and validation are cut class by class, so that both have every
        class; by whole groups, where there are groups, so that every class is in train."""
        train, validation = self.split
        count = len(self.labels)
        parts = {
            "train": train,
            "validation": validation,
            "train+validation": np.arange(count),
            "test": np.arange(count, count + self.test),
        }
        if name not in parts:
            raise DataError(f"the data have no part {name!r}; the parts are {', '.join(parts)}")
        return torch.from_numpy(parts[name])

    def search_split(self, architecture_share: float = 0.2) -> tuple[Tensor, Tensor]:
        """The train part in two disjoint index sets, by groups, or else class by class: for weights, and for the architecture.

        Each has 2 examples at least, as BatchNorm cannot train on one; where the classes are too small for that, the cut is over all of them.
        """
        train, validation = self.split
        if (count := len(train)) < 4:
            raise DataError(
                f"{self.source}: a search needs at least 4 {self.noun} in its train part, 2 to learn weights on and 2 to learn the "
                f"architecture on; it has {count}, as {len(validation)} of the {count + len(validation)} training {self.noun} are for validation"
            )
        labels = self.labels[train]
        rng = np.random.default_rng(derive_seed(self.seed, "search split"))
        weights, architecture = self._cut(train, architecture_share, rng)
        if len(architecture) == 0:  # of one group
            weights, architecture = stratified_cut(labels, architecture_share, rng)
        if len(architecture) < 2:  # there are always two for the weights: at least one of each class
            share = min(max(architecture_share, 2 / count), 1 - 2 / count)
            weights, architecture = stratified_cut(np.zeros_like(labels), share, rng)
        return torch.from_numpy(train[weights]), torch.from_numpy(train[architecture])

    def folds(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Training and validation parts cut into `count` folds, by groups, or else class by class: for each fold all others, and the fold.

        Raises DataError where there are fewer examples or groups than folds, or where all groups that know a class would lie in one fold.
        """
        labels, groups = self.labels, self.groups
        there, what = (len(labels), self.noun) if groups is None else (len(np.unique(groups)), "groups")
        if there < count:
            raise DataError(f"{self.source}: {there} {what} cannot be dealt to {count} folds (search.folds)")
        rng = np.random.default_rng(derive_seed(self.seed, "folds"))
        for deal in range(DEALS):
            fold = dealt(labels, groups, count, rng, largest_first=deal == 0)  # the most even folds, then others
            whole = [label for label in np.unique(labels) if np.ptp(fold[labels == label]) == 0]
            if groups is None or not whole:
                break
        else:
            raise DataError(
                f"{self.source}: of {count} folds (search.folds) of whole groups one had all {self.noun} of some class in each of {DEALS} deals, such as "
                f"{', '.join(self.class_names[label] for label in whole[:10])}, which what is judged on it would never have seen"
            )
        return [(torch.from_numpy(np.flatnonzero(fold != at)), torch.from_numpy(np.flatnonzero(fold == at))) for at in range(count)]

    @cached_property
    def split(self) -> tuple[NDArray, NDArray]:
        """Positions of the train and of the validation part."""
        if isinstance(self.validation, np.ndarray):
            return np.flatnonzero(~self.validation), np.flatnonzero(self.validation)
        rng = np.random.default_rng(derive_seed(self.seed, "validation"))
        train, validation = self._cut(np.arange(len(self.labels)), self.validation, rng)
        if len(validation) == 0:
            raise DataError(f"{self.source}: no group can be kept for validation, as each has all training {self.noun} of some class")
        return train, validation

    def _cut(self, indices: NDArray, share: float, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        """Positions in `indices`, in two parts."""
        labels, groups = self.labels[indices], self.groups
        return stratified_cut(labels, share, rng) if groups is None else group_cut(labels, groups[indices], share, rng)
