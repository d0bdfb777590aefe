"""A tree-structured distribution from architectures: Chow and Liu's tree over decisions, with smoothed tables.

Estimation of distribution with dependency trees: MIMIC (De Bonet, Isbell, Viola 1997; a chain), COMIT (Baluja, Davies 1997), BMDA (Pelikan,
Muehlenbein 1999).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from niwaki.distribution.tree import Edge, Tree, from_marginals
from niwaki.factor.buckets import existence
from niwaki.space.space import Space
from niwaki.structure.forest import all_pairs, independent_by_g_test, joint_counts, maximum_forest, mutual_information

PER_ENTRY = 5  # rows wanted for each entry of an edge's table, k_i k_j of them


def chow_liu_tree(
    space: Space, rows: np.ndarray, *, prune: bool = True, keeps: Callable[[Sequence[Edge]], bool] = lambda edges: True
) -> Tree:
    """The tree of the most mutual information between decisions of `rows` (N, decisions), option numbers, 0 where one does not exist.

    Counts are smoothed by 1 / (k_i k_j), one row in all. Edges with fewer than 5 k_i k_j rows, or, if `prune`, of no more information than
    independent decisions show in 95 of 100 cases, are left out. A pair is judged on the rows in which both exist, its information weighed by
    their number. keeps: of a forest, whether it may be kept (it may be too wide for a budget); edges are then added one by one, the best first.

    Its tables are `from_marginals` of the counts.
    """
    exists = existence(space, rows)
    names, sizes = [d.name for d in space.decisions], [len(d.options) for d in space.decisions]
    pairs, information = all_pairs(len(space)), []
    for i, j in pairs:
        both = exists[:, i] & exists[:, j]
        enough = min(sizes[i], sizes[j]) > 1 and both.sum() >= PER_ENTRY * sizes[i] * sizes[j]
        counts = joint_counts(rows[both, i], rows[both, j], (sizes[i], sizes[j]))
        passed = enough and not (prune and independent_by_g_test(counts))
        information.append(both.mean() * mutual_information(counts, smoothing=1 / counts.size) if passed else 0.0)
    taken = [pairs[e] for e in maximum_forest(len(space), pairs, information, above=0.0)]
    edges = [(names[i], names[j]) for i, j in taken]
    if not keeps(edges):
        weight = dict(zip(pairs, information, strict=True))
        kept: list[tuple[int, int]] = []
        for pair in sorted(taken, key=lambda pair: -weight[pair]):
            if keeps([(names[i], names[j]) for i, j in [*kept, pair]]):
                kept.append(pair)
        taken = sorted(kept)
    single = {name: np.bincount(rows[exists[:, i], i], minlength=sizes[i]) + 1 / sizes[i] for i, name in enumerate(names)}
    joint = {}
    for i, j in taken:
        both = exists[:, i] & exists[:, j]
        joint[names[i], names[j]] = joint_counts(rows[both, i], rows[both, j], (sizes[i], sizes[j])) + 1 / (sizes[i] * sizes[j])
    return from_marginals(space, single, joint)
