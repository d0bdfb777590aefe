"""Distributions over architectures against sums over all of them."""

from itertools import pairwise, product
from math import exp, log
from random import Random
from time import process_time

import numpy as np
import pytest
from scipy.stats import chisquare
from sklearn.linear_model import Ridge as SkRidge

from niwaki.distribution.distribution import DistributionError
from niwaki.distribution.fit import chow_liu_tree
from niwaki.distribution.independent import Independent
from niwaki.distribution.tree import BETWEEN, Tree
from niwaki.factor.factor import Cost, CostError, Factor, Limit
from niwaki.factor.within import within
from niwaki.space.choice import BudgetError, SpaceError
from niwaki.space.space import Decision, Space
from niwaki.strategy.learned import Learned
from niwaki.structure.forest import mutual_information
from niwaki.structure.surrogate import Ridge, crank_tree, features, worth_having
from niwaki.testing.toy import toy_macs, toy_space
from random_spaces import random_factors, random_space


def plain_space(rng: Random, most: int = 8, options: int = 4) -> Space:
    """2 to `most` decisions that always exist, of 1 to `options` options."""
    return Space(tuple(Decision(f"d{i}", tuple(range(rng.randint(1, options)))) for i in range(rng.randint(2, most))))


def random_forest(space: Space, rng: Random, share: float = 0.9) -> list[tuple[str, str]]:
    names = [decision.name for decision in space.decisions]
    rng.shuffle(names)
    return [(names[rng.randrange(i)], names[i]) for i in range(1, len(names)) if rng.random() < share]


def random_tree(space: Space, seed: int, scale: float = 1.0) -> Tree:
    tree, generator = Tree.init(space, random_forest(space, Random(seed))), np.random.default_rng(seed)
    return tree.with_parameters({name: scale * generator.normal(size=table.shape) for name, table in tree.parameters.items()})


def random_independent(space: Space, seed: int) -> Independent:
    generator = np.random.default_rng(seed)
    return Independent(space, {d.name: generator.normal(size=len(d.options)) for d in space.decisions})


def log_chances(distribution, members):
    """log p of every member of the space, written out from the definition."""
    space, logs = distribution.space, []
    for arch in members:
        (row,) = space.indices([arch])
        at = {d.name: i for d, i in zip(space.decisions, row, strict=True)}
        total = 0.0
        for name, table in distribution.parameters.items():
            scope = name.split(BETWEEN)
            if all(one in arch for one in scope):
                total += table[tuple(at[one] for one in scope)]
                if isinstance(distribution, Independent):
                    total -= log(sum(exp(x) for x in table))
        logs.append(total)
    logs = np.array(logs)
    return logs - log(np.exp(logs).sum()) if isinstance(distribution, Tree) else logs


def numeric(function, distribution, step=1e-5):
    """The gradient of `function` by central differences."""
    gradient = {}
    for name, table in distribution.parameters.items():
        gradient[name] = np.zeros_like(table)
        for at in np.ndindex(table.shape):
            ends = []
            for side in (step, -step):
                moved = {n: t.copy() for n, t in distribution.parameters.items()}
                moved[name][at] += side
                ends.append(function(distribution.with_parameters(moved)))
            gradient[name][at] = (ends[0] - ends[1]) / (2 * step)
    return gradient


def assert_same(first, second, **tolerance):
    assert list(first) == list(second)
    for name in first:
        np.testing.assert_allclose(first[name], second[name], err_msg=name, **tolerance)


def marginals_of(members, chances, space):
    return {
        d.name: np.array([sum(p for arch, p in zip(members, chances, strict=True) if arch.get(d.name) == option) for option in d.options])
        for d in space.decisions
    }


def all_of(seed):
    """Trees over unconditional spaces, and both kinds over spaces with conditions."""
    plain, conditional = plain_space(Random(seed), most=6), random_space(Random(seed))
    return [random_tree(plain, seed), random_tree(conditional, seed), random_independent(conditional, seed)]


# --- without a budget --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_everything_about_a_distribution_is_the_sum_over_all_architectures(seed):
    for distribution in all_of(seed):
        space = distribution.space
        members = list(space.enumerate())
        if len(members) > 3000:
            continue
        logs = log_chances(distribution, members)
        chances = np.exp(logs)
        assert chances.sum() == pytest.approx(1, abs=1e-10)
        np.testing.assert_allclose([distribution.log_prob(arch) for arch in members[:50]], logs[:50], atol=1e-8)
        assert distribution.entropy() == pytest.approx(-(chances * logs).sum(), abs=1e-8)
        assert_same(distribution.marginals(), marginals_of(members, chances, space), atol=1e-8)
        assert distribution.log_prob(distribution.mode()) == pytest.approx(logs.max(), abs=1e-8)
        best = distribution.best(10)
        np.testing.assert_allclose([log_p for log_p, _ in best], np.sort(logs)[::-1][:10], atol=1e-8)
        assert len({arch for _, arch in best}) == len(best) == min(10, len(members))
        np.testing.assert_allclose([distribution.log_prob(arch) for _, arch in best], [log_p for log_p, _ in best], atol=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_gradients_are_those_of_central_differences(seed):
    for distribution in all_of(seed):
        if distribution.space.size > 3000:
            continue
        arch = distribution.sample(Random(seed))
        assert_same(distribution.grad_log_prob(arch), numeric(lambda d, a=arch: d.log_prob(a), distribution), atol=1e-8, rtol=1e-6)
        assert_same(distribution.grad_entropy(), numeric(lambda d: d.entropy(), distribution), atol=1e-8, rtol=1e-6)


def test_the_mean_gradient_of_log_p_is_zero_and_decisions_that_do_not_exist_get_none():
    space = toy_space()
    for distribution in (random_independent(space, 1), random_tree(space, 1)):
        mean = {name: np.zeros_like(table) for name, table in distribution.parameters.items()}
        for arch in space.enumerate():
            gradient = distribution.grad_log_prob(arch)
            for name in mean:
                mean[name] += exp(distribution.log_prob(arch)) * gradient[name]
        assert all(np.abs(table).max() < 1e-10 for table in mean.values())
    shallow = space.architecture({"depth": 1, "block0.width": 8, "block0.kernel": 3})
    gradient = random_independent(space, 1).grad_log_prob(shallow)
    assert not any(gradient[name].any() for name in gradient if name not in shallow)


def test_a_tree_without_edges_whose_potentials_are_log_probabilities_is_the_independent_distribution():
    space = toy_space()
    independent = random_independent(space, 3)
    tree = Tree(space, {name: np.log(p) for name, p in independent.probabilities.items()})
    assert tree.log_partition == pytest.approx(0, abs=1e-12)
    for arch in space.enumerate():
        assert tree.log_prob(arch) == pytest.approx(independent.log_prob(arch), abs=1e-12)
    limits = within(space, [Limit(toy_macs(space), 500)])
    assert tree.mode_within(limits) == independent.mode_within(limits)
    assert tree.log_p_feasible(limits)[0] == pytest.approx(independent.log_p_feasible(limits)[0], abs=1e-12)


def test_200_000_draws_have_the_frequencies_of_the_distribution():
    for distribution in (random_tree(toy_space(), 7), random_tree(plain_space(Random(5), most=5), 7)):
        members = list(distribution.space.enumerate())
        rows = distribution.rows(200_000, np.random.default_rng(0))
        number = {tuple(row): n for n, row in enumerate(distribution.space.indices(members))}
        counts = np.bincount([number[tuple(row)] for row in rows.tolist()], minlength=len(members))
        expected = 200_000 * np.exp(log_chances(distribution, members))
        often = expected >= 5
        pooled = [*counts[often], counts[~often].sum()], [*expected[often], expected[~often].sum()]
        if not (~often).any():
            pooled = counts, expected
        assert chisquare(*pooled).pvalue > 0.001


def test_independent_draws_one_by_one_have_the_frequencies_of_the_distribution():
    distribution = random_independent(toy_space(), 2)
    members, rng = list(distribution.space.enumerate()), Random(0)
    counts = dict.fromkeys(members, 0)
    for arch in distribution.sample_many(20_000, rng):
        counts[arch] += 1
    expected = dict(zip(members, 20_000 * np.exp(log_chances(distribution, members)), strict=True))
    rare = [arch for arch in members if expected[arch] < 5]
    often = [arch for arch in members if expected[arch] >= 5]
    seen = [*(counts[arch] for arch in often), sum(counts[arch] for arch in rare)]
    assert chisquare(seen, [*(expected[arch] for arch in often), sum(expected[arch] for arch in rare)]).pvalue > 0.001


def test_the_same_rng_gives_the_same_draws():
    for distribution in (random_tree(toy_space(), 7), random_independent(toy_space(), 7)):
        assert distribution.sample_many(5, Random(3)) == distribution.sample_many(5, Random(3))


@pytest.mark.parametrize("shape", ["chain", "star", "random"])
def test_twice_the_decisions_cost_about_twice_the_work_and_the_time(shape):
    """n k^2 entries in all; timed from 200 to 400 decisions, where doubling must take less than 2.6 times as long."""

    def tree(count):
        space = Space(tuple(Decision(f"d{i}", (0, 1, 2, 3)) for i in range(count)))
        names = [d.name for d in space.decisions]
        rng = Random(count)
        edges = {
            "chain": list(pairwise(names)),
            "star": [(names[0], name) for name in names[1:]],
            "random": [(names[rng.randrange(i)], names[i]) for i in range(1, count)],
        }[shape]
        generator = np.random.default_rng(0)
        start = Tree.init(space, edges)
        return start.with_parameters({name: generator.normal(size=table.shape) for name, table in start.parameters.items()})

    def seconds(tree):
        """Of everything at once; the least of several, for other work on the machine only adds."""
        taken = []
        for _ in range(5):
            fresh = tree.with_parameters(tree.parameters)
            began = process_time()
            fresh.entropy(), fresh.mode(), fresh.rows(1, np.random.default_rng(0))
            taken.append(process_time() - began)
        return min(taken)

    small, large = tree(200), tree(400)
    assert large._structure.buckets.entries == 2 * small._structure.buckets.entries + 4 * 3
    assert seconds(large) / seconds(small) < 2.6


# --- with a cost -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_expected_cost_and_the_best_at_a_price_are_those_of_a_list(seed):
    for space in (plain_space(Random(seed), most=6), random_space(Random(seed))):
        members = list(space.enumerate())
        if len(members) > 3000:
            continue
        cost = Cost("macs", "", tuple(random_factors(space, Random(seed))), space)
        tree = random_tree(space, seed)
        logs, spent = log_chances(tree, members), np.array([cost(arch) for arch in members])
        mean, slope = tree.expected_cost(cost)
        assert mean == pytest.approx((np.exp(logs) * spent).sum(), rel=1e-9)
        if seed < 2:
            assert_same(slope, numeric(lambda d, c=cost: d.expected_cost(c)[0], tree, 1e-4), atol=1e-3 * max(1.0, mean / 100), rtol=1e-4)
        for price in (0.0, 0.003, -0.01):
            found = tree.mode_priced(cost, price)
            assert tree.log_prob(found) - price * cost(found) == pytest.approx((logs - price * spent).max(), abs=1e-8)


# --- given a budget ----------------------------------------------------------------------------------------------------------------------


def limited(space, seed, share=0.4, count=1):
    """Limits that about `share` of the space keep, each."""
    members, limits = list(space.enumerate()), []
    for number in range(count):
        cost = Cost(f"cost{number}", "", tuple(random_factors(space, Random(seed + 100 * number))), space)
        limits.append(Limit(cost, int(np.quantile([cost(arch) for arch in members], share))))
    return within(space, limits)


@pytest.mark.parametrize("by", ["listing", "elimination"])
@pytest.mark.parametrize("seed", range(10))
def test_everything_given_a_budget_is_the_sum_over_the_architectures_that_keep_it(seed, by, monkeypatch):
    monkeypatch.setattr("niwaki.factor.eliminate.WEIGHED", 0 if by == "elimination" else 2_000_000)
    for distribution in all_of(seed):
        space = distribution.space
        if space.size > 3000:
            continue
        try:
            inside = limited(space, seed, count=1 + seed % 2, share=0.6)
        except BudgetError:
            continue
        members = list(space.enumerate())
        logs, kept = log_chances(distribution, members), np.array([arch in inside for arch in members])
        if not kept.any():
            continue
        chances = np.where(kept, np.exp(logs), 0)
        total = chances.sum()
        log_p, slope = distribution.log_p_feasible(inside)
        assert log_p == pytest.approx(log(total), abs=1e-8)
        assert_same(distribution.marginals_within(inside), marginals_of(members, chances / total, space), atol=1e-8)
        given = (chances / total)[kept]
        assert distribution.entropy_within(inside) == pytest.approx(-(given * np.log(given)).sum(), abs=1e-8)
        mode = distribution.mode_within(inside)
        assert mode in inside
        assert distribution.log_prob(mode) == pytest.approx(logs[kept].max(), abs=1e-8)
        assert all(arch in inside for arch in distribution.sample_many_within(20, inside, Random(seed)))
        if seed < 3:
            assert_same(slope, numeric(lambda d, i=inside: d.log_p_feasible(i)[0], distribution), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("edges", ["chain", "far"])
def test_10_000_draws_within_a_budget_keep_it_and_are_distributed_as_those_that_rejection_leaves(edges):
    """Total variation below 0.02; more draws than 10,000, of which two equal samples over 19 architectures would differ by about that much."""
    space = Space(tuple(Decision(f"d{i}", tuple(range(options))) for i, options in enumerate((3, 2, 2, 4))))
    generator = np.random.default_rng(4)
    names = [d.name for d in space.decisions]
    start = Tree.init(space, {"chain": list(pairwise(names)), "far": [("d0", "d3"), ("d3", "d1"), ("d0", "d2")]}[edges])
    tree = start.with_parameters({name: generator.normal(size=table.shape) for name, table in start.parameters.items()})
    cost = Cost("macs", "", tuple(random_factors(space, Random(8))), space)
    inside = within(space, [Limit(cost, int(np.quantile([cost(arch) for arch in space.enumerate()], 0.4)))])
    count = 400_000
    rejected = tree.rows(count, np.random.default_rng(1))
    rejected = rejected[cost.batch(rejected) <= inside.limits[0].upper]
    drawn = tree.rows_within(len(rejected), inside, np.random.default_rng(2))
    assert (cost.batch(drawn) <= inside.limits[0].upper).all()
    assert len(drawn) >= 10_000
    members = list(space.enumerate())
    number = {tuple(row): n for n, row in enumerate(space.indices(members))}
    shares = [np.bincount([number[tuple(r)] for r in rows.tolist()], minlength=len(members)) / len(rows) for rows in (drawn, rejected)]
    assert 0.5 * np.abs(shares[0] - shares[1]).sum() < 0.02
    exact = np.array([exp(tree.log_prob(arch)) if arch in inside else 0 for arch in members])
    assert 0.5 * np.abs(shares[0] - exact / exact.sum()).sum() < 0.02


def test_long_trees_with_far_edges_are_conditioned_on_budgets_too():
    """30 decisions, 4^30 architectures: E over draws given the budget against the exact marginals, and none over it."""
    space = Space(tuple(Decision(f"d{i}", (1, 2, 3, 4)) for i in range(30)))
    cost = Cost("macs", "", tuple(Factor((d.name,), np.array(d.options, dtype=np.int64) * (1 + i)) for i, d in enumerate(space)), space)
    edges = [(f"d{i}", f"d{29 - i}") for i in range(15)] + [(f"d{i}", f"d{i + 1}") for i in range(14)]
    generator = np.random.default_rng(0)
    start = Tree.init(space, edges)
    tree = start.with_parameters({name: generator.normal(size=table.shape) for name, table in start.parameters.items()})
    inside = within(space, [Limit(cost, 1000)])
    drawn = tree.rows_within(20_000, inside, np.random.default_rng(1))
    assert (cost.batch(drawn) <= 1000).all()
    exact = tree.marginals_within(inside)
    for column, decision in enumerate(space.decisions):
        np.testing.assert_allclose(np.bincount(drawn[:, column], minlength=4) / 20_000, exact[decision.name], atol=0.015)
    assert cost(tree.mode_within(inside)) <= 1000


# --- bad input ---------------------------------------------------------------------------------------------------------------------------


def test_parameters_that_do_not_fit_are_refused_with_what_is_wrong():
    space = Space((Decision("a", (1, 2)), Decision("b", (1, 2, 3)), Decision("c", (1, 2))))
    zeros = {"a": np.zeros(2), "b": np.zeros(3), "c": np.zeros(2)}
    with pytest.raises(DistributionError, match="no parameters are given for 'b'"):
        Independent(space, {"a": np.zeros(2), "c": np.zeros(2)})
    with pytest.raises(DistributionError, match="parameters are given for 'd'; the decisions are a, b, c"):
        Independent(space, {**zeros, "d": np.zeros(2)})
    with pytest.raises(DistributionError, match=r"'b' have the shape \(2,\), not \(3,\)"):
        Tree(space, {**zeros, "b": np.zeros(2)})
    with pytest.raises(DistributionError, match="'a' are not all finite"):
        Tree(space, {**zeros, "a": np.array([0.0, np.nan])})
    with pytest.raises(DistributionError, match="c ~ a closes a cycle"):
        Tree.init(space, [("a", "b"), ("b", "c"), ("c", "a")])
    with pytest.raises(SpaceError, match="'d' is no decision"):
        Tree.init(space, [("a", "d")])
    other = Space((Decision("a", (1, 2)),))
    cost = Cost("macs", "", (Factor(("a",), np.array([1, 2])),), other)
    with pytest.raises(DistributionError, match="over the space"):
        Tree.init(space).log_p_feasible(within(other, [Limit(cost, 1)]))
    with pytest.raises(CostError, match="does not hold together"):
        within(other, [Limit(cost, 1)]).feasible.log_total({"a": np.ones(2), ("a", "b"): np.ones((2, 3))})


# --- learned trees -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_the_tree_fitted_to_all_architectures_by_their_weight_is_the_tree_they_were_drawn_from(seed):
    """100,000 draws of a tree over decisions that always exist: the edges that matter come back, and every probability within sampling noise."""
    space = Space(tuple(Decision(f"d{i}", (0, 1, 2)) for i in range(5)))
    tree = random_tree(space, seed, scale=1.5)
    found = chow_liu_tree(space, tree.rows(100_000, np.random.default_rng(seed)).astype(np.int64))
    strong = {frozenset(edge) for edge, joint in tree.pair_marginals().items() if mutual_information(joint) > 0.02}
    assert strong <= {frozenset(edge) for edge in found.edges}
    members = list(space.enumerate())
    apart = [abs(exp(tree.log_prob(arch)) - exp(found.log_prob(arch))) for arch in members]
    assert sum(apart) / 2 < 0.03


def test_moved_to_other_edges_a_tree_keeps_the_marginals_of_these_edges_and_of_all_decisions():
    space = Space(tuple(Decision(f"d{i}", (0, 1, 2)) for i in range(5)))
    tree, edges = random_tree(space, 3, scale=1.5), [("d0", "d4"), ("d4", "d1"), ("d2", "d3")]
    moved = tree.on(edges)
    assert_same(moved.marginals(), tree.marginals(), atol=1e-10)
    members = list(space.enumerate())
    for (first, second), joint in moved.pair_marginals().items():
        for (i, a), (j, b) in product(enumerate(space[first].options), enumerate(space[second].options)):
            chance = sum(exp(tree.log_prob(arch)) for arch in members if arch[first] == a and arch[second] == b)
            assert joint[i, j] == pytest.approx(chance, abs=1e-10)
    back = tree.on(tree.edges)
    assert all(back.log_prob(arch) == pytest.approx(tree.log_prob(arch), abs=1e-9) for arch in members)


def test_independent_decisions_get_no_edges_and_few_rows_none_either():
    space = Space(tuple(Decision(f"d{i}", (0, 1)) for i in range(4)))
    rng = np.random.default_rng(0)
    assert len(chow_liu_tree(space, rng.integers(0, 2, size=(4000, 4))).edges) <= 1
    copies = np.repeat(rng.integers(0, 2, size=(19, 1)), 4, axis=1)
    assert chow_liu_tree(space, copies).edges == ()
    assert len(chow_liu_tree(space, np.concatenate((copies, copies))).edges) == 3


def test_in_a_space_with_conditions_marginals_are_the_counts_smoothed():
    space = toy_space()
    rows = np.array(space.indices([space.sample(Random(i)) for i in range(3000)]), dtype=np.int64)
    exists = space.existence.of(rows)
    tree = chow_liu_tree(space, rows)
    for column, decision in enumerate(space.decisions):
        counts = np.bincount(rows[exists[:, column], column], minlength=len(decision.options)) / len(rows)
        np.testing.assert_allclose(tree.marginals()[decision.name], counts, atol=0.01)


@pytest.mark.parametrize("budget", [None, 500])
@pytest.mark.parametrize("start", [Tree.init, Independent.init])
def test_a_policy_of_a_distribution_has_the_gradient_of_central_differences(start, budget):
    space = toy_space()
    policy = Learned(start)(space if budget is None else within(space, [Limit(toy_macs(space), budget)]))
    generator = np.random.default_rng(0)
    parameters = policy.initial() + generator.normal(size=policy.initial().shape)
    rows, weights = policy.sample(parameters, 6, generator), generator.normal(size=6)

    def value(parameters):
        return (weights * policy.log_prob(parameters, rows)).sum() + 0.3 * policy.distribution(parameters).entropy()

    found = policy.gradient(parameters, rows, weights, 0.3, 0)
    steps = 1e-5 * np.eye(len(parameters))
    np.testing.assert_allclose(found, [(value(parameters + s) - value(parameters - s)) / 2e-5 for s in steps], atol=1e-7)


def test_crank_finds_the_pairs_that_rewards_depend_on():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 3, size=(150, 8))
    planted = [(0, 5), (5, 2), (1, 7)]
    tables = rng.normal(size=(3, 3, 3))
    rewards = (
        sum(table[rows[:, i], rows[:, j]] for table, (i, j) in zip(tables, planted, strict=True)) + rng.normal(size=(8, 3))[0][rows[:, 0]]
    )
    found = crank_tree(rows, np.ones_like(rows, dtype=bool), [3] * 8, rewards)
    assert {(0, 5), (2, 5), (1, 7)} <= set(found)


def test_edges_worth_having_are_those_that_leaving_one_out_asks_for():
    """The error in closed form against as many fits without one row; planted edges are kept, and where there are none, none."""
    rng = np.random.default_rng(0)
    rows, exists = rng.integers(0, 2, size=(40, 6)), np.ones((40, 6), dtype=bool)
    signs = 1.0 - 2 * rows
    edges = [(0, 1), (2, 3), (4, 5), (0, 5)]
    additive = signs @ rng.normal(size=6) + 0.3 * rng.normal(size=40)
    coupled = additive + 2 * signs[:, 0] * signs[:, 1] - 2 * signs[:, 2] * signs[:, 3]
    assert worth_having(edges, rows, exists, [2] * 6, additive, 0.01) == []
    assert worth_having(edges, rows, exists, [2] * 6, coupled, 0.01) == edges[:2]
    target = (coupled - coupled.mean()) / coupled.std()
    errors = []
    for count in (0, 1, 2, 4):
        x = features(rows, exists, [2] * 6, edges[:count]).matrix
        left = [
            SkRidge(alpha=0.01 * 40, fit_intercept=False).fit(np.delete(x, i, 0), np.delete(target, i)).predict(x[i : i + 1])[0]
            for i in range(40)
        ]
        errors.append(((target - left) ** 2).mean())
    assert int(np.argmin(errors)) == 2


def test_the_surrogate_is_the_ridge_regression_and_its_tables_are_its_predictions():
    rng = np.random.default_rng(1)
    rows, edges = rng.integers(0, 3, size=(60, 4)), [(0, 2), (1, 3)]
    exists = rng.random((60, 4)) < 0.8
    rewards = rng.normal(size=60)
    ridge = Ridge.fitted(rows, exists, [3] * 4, rewards, edges, 0.05)
    target, x = (rewards - rewards.mean()) / rewards.std(), ridge.features.matrix
    oracle = SkRidge(alpha=0.05 * 60, fit_intercept=False, tol=1e-12).fit(x, target)
    np.testing.assert_allclose(ridge.mean, oracle.coef_, atol=1e-10)
    unary, pair = ridge.tables(ridge.mean)
    predicted = sum(unary[i][rows[:, i]] * exists[:, i] for i in range(4))
    predicted = predicted + sum(
        table[rows[:, i], rows[:, j]] * (exists[:, i] & exists[:, j]) for table, (i, j) in zip(pair, edges, strict=True)
    )
    np.testing.assert_allclose(predicted, x @ oracle.coef_, atol=1e-10)
    draws = np.array([ridge.draw(np.random.default_rng(s)) for s in range(4000)])
    np.testing.assert_allclose(draws.mean(axis=0), ridge.mean, atol=0.05)
    np.testing.assert_allclose(np.cov(draws.T), ridge.noise * ridge.factor @ ridge.factor.T, atol=0.01)
