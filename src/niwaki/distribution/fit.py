"""A tree-structured distribution from architectures: Chow and Liu's tree over decisions, with smoothed tables.

Estimation of distribution with dependency trees: MIMIC (De Bonet, Isbell, Viola 1997; a chain), COMIT (Baluja, Davies 1997), BMDA (Pelikan,
Muehlenbein 1999).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from niwaki.distribution.tree import Edge, Tree, from_marginals
from niwaki.space.space import Space
from niwaki.structure.forest import all_pairs, independent_by_g_test, maximum_forest, mutual_information

PER_ENTRY = 5  # rows wanted for each entry of an edge's table, k_i k_j of them


def chow_liu_tree(
    space: Space, rows: np.ndarray, *, edges: bool = True, prune: bool = True, keeps: Callable[[Sequence[Edge]], bool] = lambda edges: True
) -> Tree:
    """The tree of the most mutual information between decisions of `rows` (N, decisions), option numbers, 0 where one does not exist.

    Counts are smoothed by 1 / (k_i k_j), one row in all. Edges with fewer than 5 k_i k_j rows, or, if `prune`, of no more information than
    independent decisions show in 95 of 100 cases, are left out. A pair is judged on the rows in which both exist, its information weighed by
    their number. edges: False leaves the marginals alone. keeps: of a forest, whether it may be kept (it may be too wide for a budget); edges are then added one by one, the best first.

    Its tables are `from_marginals` of the counts.
    """
    exists = space.existence.of(rows)
    names, sizes = [d.name for d in space.decisions], [len(d.options) for d in space.decisions]
    taken_options = [(rows[:, i, None] == np.arange(size)) & exists[:, i, None] for i, size in enumerate(sizes)]
    ends = np.cumsum([0, *sizes])
    options = np.concatenate(taken_options, axis=1).astype(np.float64)
    together = options.T @ options  # how often any two options are taken at once

    def joint_of(i: int, j: int) -> np.ndarray:
        return together[ends[i] : ends[i + 1], ends[j] : ends[j + 1]]

    pairs = all_pairs(len(space)) if edges else []
    information = []
    for i, j in pairs:
        counts = joint_of(i, j)
        enough = min(sizes[i], sizes[j]) > 1 and counts.sum() >= PER_ENTRY * counts.size
        passed = enough and not (prune and independent_by_g_test(counts))
        information.append(counts.sum() / len(rows) * mutual_information(counts, smoothing=1 / counts.size) if passed else 0.0)
    taken = [pairs[e] for e in maximum_forest(len(space), pairs, information, above=0.0)]
    if not keeps([(names[i], names[j]) for i, j in taken]):
        weight = dict(zip(pairs, information, strict=True))
        kept: list[tuple[int, int]] = []
        for pair in sorted(taken, key=lambda pair: -weight[pair]):
            if keeps([(names[i], names[j]) for i, j in [*kept, pair]]):
                kept.append(pair)
        taken = sorted(kept)
    single = {name: np.diag(joint_of(i, i)) + 1 / sizes[i] for i, name in enumerate(names)}
    joint = {(names[i], names[j]): joint_of(i, j) + 1 / (sizes[i] * sizes[j]) for i, j in taken}
    return from_marginals(space, single, joint)
