"""A tree over the classes of a classifier: induced from the rows of its last layer, of ideas, random, flat, or somebody's own; as data.

The induced one is NBDT's (Wan et al., ICLR 2021, arXiv 2004.00221): Ward clustering of the raw rows, as the released code does; the paper
[from memory] normalises the rows first, which `normalise` does. A tree induced before the network is trained is a random one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.cluster import ward_tree

FORMAT = 1
NAMED = 4  # leaves that the label of a node lists

Nested = str | Sequence["Nested"] | Mapping[str, "Nested"]


class HierarchyError(ValueError):
    """Nodes that are no tree over the classes."""


@dataclass(frozen=True)
class Hierarchy:
    """Nodes 0 to K - 1 are the leaves, in the order of the classes, which is that of the network's outputs; inner node K + i has the children
    `inner[i]`, which come before it, so that the last node is the root. labels: of the inner nodes, if they have any."""

    classes: tuple[str, ...]
    inner: tuple[tuple[int, ...], ...]
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "inner", tuple(tuple(int(child) for child in children) for children in self.inner))
        object.__setattr__(self, "labels", tuple(self.labels))
        count = len(self.classes)
        if count < 2 or len(set(self.classes)) < count:
            raise HierarchyError(f"a tree is over two classes or more, each named once, not over {self.classes}")
        if self.labels and len(self.labels) != len(self.inner):
            raise HierarchyError(f"{len(self.labels)} labels for {len(self.inner)} inner nodes")
        seen: set[int] = set()
        for at, children in enumerate(self.inner):
            if len(children) < 2:
                raise HierarchyError(f"node {count + at} has {len(children)} children; where there is nothing to decide is no node")
            for child in children:
                if not 0 <= child < count + at:
                    raise HierarchyError(f"node {count + at} has the child {child}; children come before it, from 0 to {count + at - 1}")
                if child in seen:
                    raise HierarchyError(f"node {child} has two parents")
                seen.add(child)
        if left := sorted(set(range(count + len(self.inner) - 1)) - seen):
            raise HierarchyError(f"there is one root, the last node; but node {left[0]} has no parent either")

    @property
    def root(self) -> int:
        return len(self.classes) + len(self.inner) - 1

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Of every node but the root, which is its own."""
        found = [self.root] * (self.root + 1)
        for at, children in enumerate(self.inner):
            for child in children:
                found[child] = len(self.classes) + at
        return tuple(found)

    def children(self, node: int) -> tuple[int, ...]:
        return () if node < len(self.classes) else self.inner[node - len(self.classes)]

    @cached_property
    def _leaves(self) -> tuple[tuple[int, ...], ...]:
        found: list[tuple[int, ...]] = [(leaf,) for leaf in range(len(self.classes))]
        for children in self.inner:
            found.append(tuple(sorted(leaf for child in children for leaf in found[child])))
        return tuple(found)

    def leaves(self, node: int) -> tuple[int, ...]:
        """The classes below a node, ascending; of a leaf, itself."""
        return self._leaves[node]

    def path(self, node: int) -> tuple[int, ...]:
        """The nodes from the root to `node`, both with it."""
        found = [node]
        while found[-1] != self.root:
            found.append(self.parents[found[-1]])
        return tuple(reversed(found))

    def join(self, classes: Sequence[int]) -> int:
        """The deepest node with all of these classes below it."""
        wanted = set(classes)
        return min((node for node in range(self.root + 1) if wanted <= set(self.leaves(node))), key=lambda node: len(self.leaves(node)))

    def label(self, node: int) -> str:
        """The class, or the label of an inner node; without one, the classes below it."""
        if node < len(self.classes):
            return self.classes[node]
        if self.labels and self.labels[node - len(self.classes)]:
            return self.labels[node - len(self.classes)]
        names = [self.classes[leaf] for leaf in self.leaves(node)]
        return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "classes": list(self.classes),
            "inner": [list(nodes) for nodes in self.inner],
            "labels": list(self.labels),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Hierarchy:
        if data.get("format") != FORMAT:
            raise HierarchyError(f"a hierarchy of format {data.get('format')!r} was given; this niwaki reads format {FORMAT}")
        return Hierarchy(tuple(data["classes"]), tuple(map(tuple, data["inner"])), tuple(data["labels"]))


def read_hierarchy(file: str | Path) -> Hierarchy:
    """The hierarchy in a JSON file such as the tree.json of a run."""
    try:
        data = json.loads(Path(file).read_text("utf-8"))
        return Hierarchy.from_json(data)
    except HierarchyError as error:
        raise HierarchyError(f"{file}: {error}") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise HierarchyError(f"{file} is no hierarchy, with `format`, `classes`, `inner` and `labels`: {error}") from error


# ---------------------------------------------------------------- trees


def induced_tree(weight: ArrayLike, classes: Sequence[str] | None = None, *, normalise: bool = False) -> Hierarchy:
    """The binary tree in which the closest rows are merged first, by Ward's criterion. weight: (K, F), of the last layer, its bias left out.

    >>> induced_tree([[0.0, 0.0], [9.0, 9.0], [0.0, 1.0]], ["cat", "ship", "dog"]).inner
    ((0, 2), (1, 3))
    """
    rows = np.asarray(weight, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2 or not np.isfinite(rows).all():
        raise HierarchyError(f"a tree is induced from finite weights (K, F) of two classes or more; these are {rows.shape}")
    if normalise:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        if not lengths.all():
            raise HierarchyError("a row of zeros has no direction; without `normalise` the tree can be induced")
        rows = rows / lengths
    merges = ward_tree(rows)[0]  # (K - 1, 2), in the order of merging; merge number i makes node K + i
    return Hierarchy(_names(classes, len(rows)), tuple(tuple(sorted(map(int, pair))) for pair in merges))


def random_tree(classes: Sequence[str], rng: Random) -> Hierarchy:
    """A binary tree: two of the nodes that are left, drawn evenly, become one until there is one."""
    left = list(range(len(classes)))
    inner: list[tuple[int, ...]] = []
    while len(left) > 1:
        pair = sorted(rng.sample(left, 2))
        left = [node for node in left if node not in pair] + [len(classes) + len(inner)]
        inner.append(tuple(pair))
    return Hierarchy(tuple(classes), tuple(inner))


def flat_tree(classes: Sequence[str]) -> Hierarchy:
    """One decision among all classes: soft and hard inference are then the network's own."""
    return Hierarchy(tuple(classes), (tuple(range(len(classes))),))


def nested_tree(tree: Nested, classes: Sequence[str]) -> Hierarchy:
    """A tree that somebody wrote down; the keys of mappings are labels. classes: in the order of the network's outputs. A node with one child
    is left out.

    >>> tree = nested_tree({"animal": ["cat", "dog"], "vehicle": ["ship", "car"]}, ["car", "cat", "dog", "ship"])
    >>> tree.inner, tree.label(4), tree.label(tree.root)
    (((1, 2), (3, 0), (4, 5)), 'animal', 'car, cat, dog, ship')
    """
    inner: list[tuple[int, ...]] = []
    labels: list[str] = []

    def add(part: Nested, label: str) -> int:
        if isinstance(part, str):
            if part not in classes:
                raise HierarchyError(f"{part!r} in the tree is none of the classes {', '.join(classes)}")
            return list(classes).index(part)
        below = [add(one, name) for name, one in part.items()] if isinstance(part, Mapping) else [add(one, "") for one in part]
        if len(below) == 1:
            return below[0]
        inner.append(tuple(below))
        labels.append(label)
        return len(classes) + len(inner) - 1

    add(tree, "")
    return Hierarchy(tuple(classes), tuple(inner), tuple(labels) if any(labels) else ())


def ancestor_tree(classes: Sequence[str], ancestors: Mapping[str, Sequence[str]]) -> Hierarchy:
    """The tree of the ideas themselves (the paper's hierarchy of WordNet's hypernyms), nodes with one child left out. classes: in the order of the
    network's outputs. ancestors: of each class the ideas it is of, the nearest first.

    >>> ideas = {"cat": ["feline", "animal"], "dog": ["canine", "animal"], "ship": ["vessel", "vehicle"], "car": ["vehicle"]}
    >>> tree = ancestor_tree(["car", "cat", "dog", "ship"], ideas)
    >>> tree.inner, tree.labels
    (((0, 3), (1, 2), (4, 5)), ('vehicle', 'animal', ''))
    """
    _check_ancestors(classes, ancestors)
    downwards = [tuple(reversed(ancestors[name])) for name in classes]
    inner: list[tuple[int, ...]] = []
    labels: list[str] = []

    def add(leaves: Sequence[int], depth: int, label: str) -> int:
        if len(leaves) == 1:
            return leaves[0]
        parts: dict[str | int, list[int]] = {}  # by the next idea, or, where there is none, each class by itself
        for leaf in leaves:
            parts.setdefault(downwards[leaf][depth] if depth < len(downwards[leaf]) else leaf, []).append(leaf)
        below = [(part, depth + 1, idea if isinstance(idea, str) else "") for idea, part in parts.items()]
        if len(below) == 1:
            return add(*below[0])
        inner.append(tuple(add(*one) for one in below))
        labels.append(label)
        return len(classes) + len(inner) - 1

    add(range(len(classes)), 0, "")
    return Hierarchy(tuple(classes), tuple(inner), tuple(labels) if any(labels) else ())


def labelled_tree(hierarchy: Hierarchy, ancestors: Mapping[str, Sequence[str]]) -> Hierarchy:
    """The tree with each inner node named after the nearest idea that all classes below it share, and that no other node has yet (the paper's
    rule). ancestors: of each class the ideas it is of, the nearest first, as WordNet's hypernyms are. A node that nothing is left for keeps
    the list of its classes.

    >>> ideas = {"cat": ["feline", "animal"], "dog": ["canine", "animal"], "ship": ["vessel", "vehicle"]}
    >>> [labelled_tree(induced_tree([[0.0], [1.0], [9.0]], ["cat", "dog", "ship"]), ideas).label(node) for node in (3, 4)]
    ['animal', 'cat, dog, ship']
    """
    _check_ancestors(hierarchy.classes, ancestors)
    used: set[str] = set()
    labels = []
    for at in range(len(hierarchy.inner)):  # children first: the nearer idea goes to the deeper node
        names = [hierarchy.classes[leaf] for leaf in hierarchy.leaves(len(hierarchy.classes) + at)]
        shared = set.intersection(*(set(ancestors[name]) for name in names))
        label = next((idea for idea in ancestors[names[0]] if idea in shared and idea not in used), "")
        used.add(label)
        labels.append(label)
    return replace(hierarchy, labels=tuple(labels))


def _check_ancestors(classes: Sequence[str], ancestors: Mapping[str, Sequence[str]]) -> None:
    if missing := [name for name in classes if name not in ancestors]:
        raise HierarchyError(f"no ancestors are given of the class {missing[0]!r}")


def _names(classes: Sequence[str] | None, count: int) -> tuple[str, ...]:
    if classes is not None and len(classes) != count:
        raise HierarchyError(f"{len(classes)} classes for {count} rows of weights; they stand in one order")
    return tuple(classes) if classes is not None else tuple(map(str, range(count)))
