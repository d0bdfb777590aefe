"""CRANK: the regulariser, the solver and the learned tree, against graphs counted otherwise, bounds, and known trees."""

from itertools import pairwise, product

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.stats import chi2

from niwaki.run.experiments.crank import planted
from niwaki.run.experiments.data import shared_data
from niwaki.run.folder import RunError
from niwaki.run.reproduce import reproduce
from niwaki.structure.crank import CrankSettings, Examples, Solver, cccp, fit_chow_liu, fit_crank, fit_on, simplex
from niwaki.structure.forest import (
    all_pairs,
    chi_square_95,
    chow_liu,
    circuit_rank,
    independent_by_g_test,
    joint_counts,
    maximum_forest,
    mutual_information,
)
from niwaki.structure.inference import forest_argmax, full_argmax

# --- forests -----------------------------------------------------------------------------------------------------------------------------


def test_the_regulariser_of_a_0_1_graph_is_its_circuit_rank():
    """On 200 random graphs |E| - |V| + components, the components counted by scipy; 0 exactly where the graph is a forest."""
    rng = np.random.default_rng(0)
    forests = 0
    for _ in range(200):
        count = int(rng.integers(2, 9))
        edges = all_pairs(count)
        there = rng.random(len(edges)) < rng.choice([0.15, 0.3, 0.6, 1.0])
        chosen = [edge for edge, kept in zip(edges, there, strict=True) if kept]
        graph = csr_matrix((np.ones(len(chosen)), tuple(np.array(chosen).reshape(-1, 2).T)), shape=(count, count))
        rank = len(chosen) - count + connected_components(graph, directed=False)[0]
        assert circuit_rank(count, edges, there.astype(float).tolist()) == rank
        forests += rank == 0
    assert 20 < forests < 180


def test_with_weights_it_is_what_lies_outside_the_maximum_spanning_tree_and_does_not_depend_on_the_order_of_the_variables():
    rng = np.random.default_rng(1)
    for _ in range(50):
        count = int(rng.integers(2, 9))
        edges, weights = all_pairs(count), rng.random(count * (count - 1) // 2)
        dense = np.zeros((count, count))
        for (i, j), weight in zip(edges, weights, strict=True):
            dense[i, j] = -weight
        rank = circuit_rank(count, edges, weights.tolist())
        assert rank == pytest.approx(weights.sum() + minimum_spanning_tree(dense).sum(), abs=1e-12)
        turned = rng.permutation(count)
        again = [(min(turned[i], turned[j]), max(turned[i], turned[j])) for i, j in edges]
        assert circuit_rank(count, again, weights.tolist()) == pytest.approx(rank, abs=1e-12)


def test_of_equal_weights_the_earlier_edges_are_taken():
    assert maximum_forest(4, all_pairs(4), [1.0] * 6) == [0, 1, 2]
    assert maximum_forest(4, all_pairs(4), [0, 0, 2.0, 0, 0, 1.0], above=0) == [2, 5]


def test_the_g_test_lets_one_in_twenty_independent_pairs_pass():
    for free in (1, 2, 4, 9, 12, 30):
        assert chi_square_95(free) == pytest.approx(chi2.ppf(0.95, free), rel=2e-3)
    rng = np.random.default_rng(0)
    tables = [joint_counts(rng.integers(0, 3, 400), rng.integers(0, 3, 400), (3, 3)) for _ in range(2000)]
    assert np.mean([not independent_by_g_test(table) for table in tables]) == pytest.approx(0.05, abs=0.015)
    assert mutual_information(np.diag([5.0, 5.0])) == pytest.approx(np.log(2))


# --- inference ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("labels", "options"), [(2, 2), (5, 2), (4, 3), (3, 4)])
def test_the_best_labels_are_those_of_a_list_of_all_label_sets(labels, options):
    rng = np.random.default_rng(labels)
    edges, states = all_pairs(labels), np.array(list(product(range(options), repeat=labels)))
    unary, pair = rng.normal(size=(30, labels, options)), rng.normal(size=(30, len(edges), options, options))

    def best(edges, pair):
        scores = sum(unary[:, i, states[:, i]] for i in range(labels))
        scores = scores + sum(pair[:, e, states[:, i], states[:, j]] for e, (i, j) in enumerate(edges))
        return states[scores.argmax(axis=1)]

    np.testing.assert_array_equal(full_argmax(unary, pair), best(edges, pair))
    np.testing.assert_array_equal(full_argmax(unary, pair[:1]), best(edges, np.repeat(pair[:1], 30, axis=0)))
    forest = maximum_forest(labels, edges, rng.random(len(edges)))
    for kept in (forest, forest[1:]):
        chosen = [edges[e] for e in kept]
        np.testing.assert_array_equal(forest_argmax(unary, pair[:, kept], chosen), best(chosen, pair[:, kept]))


def test_edges_with_a_cycle_are_refused():
    with pytest.raises(ValueError, match="no forest"):
        forest_argmax(np.zeros((1, 3, 2)), np.zeros((1, 3, 2, 2)), all_pairs(3))


# --- the solver --------------------------------------------------------------------------------------------------------------------------


def small_examples(seed=0, options=2):
    rng = np.random.default_rng(seed)
    x = np.concatenate((rng.normal(size=(60, 3)), np.ones((60, 1))), axis=1)
    y = rng.integers(0, options, size=(60, 4))
    y[:, 1] = np.where(rng.random(60) < 0.8, y[:, 0], y[:, 1])
    y[:, 2] = np.where(rng.random(60) < 0.7, (x[:, 0] > 0) * (options - 1), y[:, 2])
    return Examples(x, y, options)


@pytest.mark.parametrize("options", [2, 3])
@pytest.mark.parametrize("mu", [0.0, 0.05])
def test_the_gap_is_primal_less_dual_falls_to_the_tolerance_and_no_other_w_is_below_the_dual(options, mu):
    examples, rng = small_examples(options=options), np.random.default_rng(0)
    solver = Solver(examples, all_pairs(4), 0.1)
    solver.mu = mu
    u = rng.normal(size=solver.pair.shape)
    solver.lean(u / np.sqrt((u**2).sum(axis=(1, 2, 3), keepdims=True)) * (np.arange(6) < 3)[:, None, None, None])

    def primal(solver):
        square = (solver.unary**2).sum() + (solver.pair**2).sum()
        return 0.05 * square + solver.hinge + mu * (solver.predictor.norms.sum() - (solver.u * solver.pair).sum())

    gap = solver.run(rng, passes=600, tolerance=1e-3)
    assert 0 <= gap <= 1e-3
    assert solver.gaps[0] > 10 * solver.gaps[len(solver.gaps) // 4] > 10 * gap
    assert all(one > -1e-9 for one in solver.gaps)
    dual = -0.05 * float((solver.unary**2).sum() + (solver.pair**2).sum()) + solver.loss.sum()
    assert primal(solver) - dual == pytest.approx(gap, abs=1e-9)
    best = solver.state()
    for _ in range(200):
        solver.restore(best)
        size = 10 ** rng.uniform(-3, 0)
        solver.unary += size * rng.normal(size=solver.unary.shape)
        solver.pair += size * rng.normal(size=solver.pair.shape)
        assert primal(solver) >= dual


def test_the_objective_never_rises_from_one_step_to_the_next_and_a_large_price_leaves_a_forest():
    examples, settings = small_examples(), CrankSettings(l2=0.1, steps=10, step_passes=200, step_tolerance=1e-5)
    solver = Solver(examples, all_pairs(4), settings.l2)
    solver.run(np.random.default_rng(0), passes=200, tolerance=1e-5)
    steps = 0
    for mu in (0.003, 0.03, 0.3, 3.0):
        solver.mu = mu
        records = cccp(solver, settings, np.random.default_rng(1))
        steps += len(records) - 1
        assert all(after[0] <= before[0] + 1e-6 for before, after in pairwise(records))
        assert all(value >= 0 and rank >= 0 for value, rank, _ in records)
    assert steps >= 4
    assert solver.rank == pytest.approx(0, abs=1e-12)
    assert (solver.predictor.norms > 1e-9).sum() <= 3


def test_corners_are_centred_of_length_1_and_as_far_from_each_other_as_can_be():
    np.testing.assert_allclose(simplex(2), [[-1], [1]])
    for options in (3, 5):
        np.testing.assert_allclose(
            simplex(options) @ simplex(options).T, np.eye(options) * (1 + 1 / (options - 1)) - 1 / (options - 1), atol=1e-12
        )
        np.testing.assert_allclose(simplex(options).sum(axis=0), 0, atol=1e-12)


# --- the learned tree --------------------------------------------------------------------------------------------------------------------

TREE = [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (5, 6), (5, 7), (7, 8), (3, 9)]


def from_a_known_tree(count, seed, by_x):
    """Drawn exactly from a tree CRF of ten labels. by_x: edges attract or repel by the sign of features, and on average do neither."""
    rng = np.random.default_rng(seed)
    f = np.concatenate((np.ones((count, 1)), rng.choice([-1.0, 1.0], size=(count, 2))), axis=1)
    x = np.concatenate((rng.normal(size=(count, 4)), np.ones((count, 1))), axis=1)
    states = np.array(list(product((-1, 1), repeat=10)))
    scores = 0.3 * x @ rng.normal(size=(5, 10)) @ states.T
    for e, (i, j) in enumerate(TREE):
        coupling = 0.9 * (f[:, 1 + e % 2] if by_x else (-1) ** e * f[:, 0])
        scores += coupling[:, None] * (states[:, i] * states[:, j])
    below = np.cumsum(np.exp(scores - scores.max(axis=1, keepdims=True)), axis=1)
    drawn = (rng.random((count, 1)) * below[:, -1:] > below).sum(axis=1)
    return Examples(x, (states[drawn] > 0).astype(int), f=f if by_x else None)


@pytest.mark.parametrize("by_x", [False, True])
def test_a_known_tree_is_recovered_also_where_labels_alone_do_not_show_it(by_x):
    """Check 3: at least 8 of 9 edges from 1,000 samples; where the edges depend on x, Chow-Liu on labels finds fewer."""
    examples = from_a_known_tree(1000, 0, by_x)
    settings = CrankSettings(l2=0.02, mu=0.01, growth=10, steps=2, prices=3, passes=4)
    learned = fit_crank(examples, settings, np.random.default_rng(0))
    found = len(set(learned.predictor.edges) & set(TREE))
    blind = len(set(chow_liu(examples.y, 2)) & set(TREE))
    assert found >= 8
    assert blind <= 4 if by_x else blind >= 8


def test_one_label_and_labels_that_depend_on_nothing_are_learned_too():
    one = Examples(np.ones((20, 1)), np.arange(20)[:, None] % 4 == 0)
    for fit in (lambda e, s, r: fit_on(e, [], s, r), fit_chow_liu, lambda e, s, r: fit_crank(e, s, r).predictor):
        predictor = fit(one, CrankSettings(passes=100), np.random.default_rng(0))
        assert (predictor.predict(np.ones((3, 1))) == 0).all()


def test_examples_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"not \(3, 2\), \(4, 2\)"):
        Examples(np.zeros((3, 2)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="labels are 0 to 1, not 0 to 2"):
        Examples(np.zeros((3, 2)), np.array([[0], [1], [2]]))
    with pytest.raises(ValueError, match="finite"):
        Examples(np.full((3, 2), np.nan), np.zeros((3, 1)))


# --- the experiment ----------------------------------------------------------------------------------------------------------------------


def test_planted_values_are_those_of_the_architectures_in_the_order_of_enumeration_and_one_is_the_best():
    for kind in ("pairwise", "additive"):
        space, values = planted(kind, 3, 6)
        assert len(values) == space.size == 64
        assert (values == values.max()).sum() == 1
        again = planted(kind, 3, 6)[1]
        np.testing.assert_array_equal(values, again)
        best = next(space.from_indices(row) for row in product((0, 1), repeat=6) if values[int("".join(map(str, row)), 2)] == values.max())
        assert list(space.enumerate())[int(values.argmax())] == best
    space, values = planted("additive", 3, 6)
    halves = values.reshape(2, 32)
    np.testing.assert_allclose(halves[1] - halves[0], (halves[1] - halves[0])[0])  # an option adds the same wherever it is taken


def test_the_quick_experiment_writes_a_section_that_decides_nothing_and_goes_on_where_it_was(tmp_path):
    try:
        shared_data("multilabel")
    except RunError as error:
        pytest.skip(str(error))
    claims = tmp_path / "claims.md"
    first = reproduce("crank", out=tmp_path / "run", claims=claims, quick=True, workers=1)
    assert {claim["verdict"] for claim in first["claims"]} == {"not decided (quick)"}
    assert "CRANK" in claims.read_text()
    assert reproduce("crank", out=tmp_path / "run", claims=claims, quick=True, workers=1)["claims"] == first["claims"]
