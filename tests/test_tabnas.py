"""TabNAS: P(feasible), its gradient and draws against enumeration; the toy space; budgets kept to the unit ("Works when" 1-4 and 6)."""

from itertools import product
from random import Random

import numpy as np
import pytest

from niwaki.cost.count import count_params
from niwaki.factor.factor import Cost, Factor, Limit
from niwaki.factor.within import within
from niwaki.net.place import space_of
from niwaki.objective import Objective
from niwaki.recipe import tabnas
from niwaki.space.choice import BudgetError
from niwaki.space.space import Decision, Space
from niwaki.strategy.policy import Conditioned, Rejecting, softmaxes
from niwaki.testing.strategy import check_strategy
from niwaki.trial import Trial


def additive(decisions=5, options=6, seed=0):
    """A space and a cost that adds up over its decisions, 7,776 architectures by default."""
    generator = np.random.default_rng(seed)
    space = Space(tuple(Decision(f"layer{at}", tuple(range(options))) for at in range(decisions)))
    tables = generator.integers(1, 60, (decisions, options))
    return space, Cost("cost", "", tuple(Factor((d.name,), table.astype(np.int64)) for d, table in zip(space, tables, strict=True)), space)


def perceptrons():
    network = tabnas.perceptron(10, (4, 8, 16, 32, 64), 3, 3)
    return space_of(network), count_params(network)


def toy():
    network = tabnas.toy()
    return space_of(network), count_params(network)


def probabilities(space, seed=1):
    generator = np.random.default_rng(seed)
    return {decision.name: generator.dirichlet(np.ones(len(decision.options))) for decision in space}


def enumerated(space, cost, upper, p):
    """Rows (N, decisions), p of each, and whether it is within: by going through all, with costs called one by one."""
    rows = np.array(list(product(*(range(len(decision.options)) for decision in space))))
    chances = np.prod([[p[d.name][option] for d, option in zip(space, row, strict=True)] for row in rows], axis=1)
    return rows, chances, np.array([cost(space.from_indices(row.tolist())) <= upper for row in rows])


def test_the_costs_of_the_toy_space_are_those_of_the_paper():
    space, cost = toy()
    costs = {(arch["hidden1"], arch["hidden2"]): cost(arch) for arch in space.enumerate()}
    assert costs == {(2, 2): 15, (2, 3): 19, (2, 4): 23, (3, 2): 20, (3, 3): 25, (3, 4): 30, (4, 2): 25, (4, 3): 31, (4, 4): 37}
    assert within(space, [Limit(cost, tabnas.TOY_BUDGET)]).size == 6


@pytest.mark.parametrize("make", [toy, additive, perceptrons], ids=["toy", "7,776 additive", "perceptrons"])
def test_p_feasible_its_gradient_and_conditional_marginals_equal_enumeration(make):
    """Check 1: by listing and by dynamic programming, to 1e-10."""
    space, cost = make()
    upper = int(np.quantile([cost.minimum()[0], cost.maximum()[0]], 0.35))
    p = probabilities(space)
    rows, chances, kept = enumerated(space, cost, upper, p)
    inside = within(space, [Limit(cost, upper)])
    total = chances[kept].sum()
    assert inside.feasible.probability_by_elimination(p).value == pytest.approx(total, rel=1e-10)
    assert inside.probability(p).value == pytest.approx(total, rel=1e-10)
    q = {d.name: np.bincount(rows[kept, at], chances[kept] / total, len(d.options)) for at, d in enumerate(space)}
    for found, slopes in (inside.feasible.log_probability_by_elimination(p), inside.feasible.log_probability(p)):
        assert found == pytest.approx(np.log(total), abs=1e-10)
        for name, slope in slopes.items():
            assert p[name] * slope == pytest.approx(q[name], abs=1e-10)  # p(option) d log P(V) / d p(option) = P(option | V)
    policy = Conditioned(inside)
    logits = policy.initial()
    for at, d in enumerate(space):
        logits[at, : len(d.options)] = np.log(p[d.name])
    gradient = policy.log_feasible(logits)[1]
    for at, d in enumerate(space):
        assert gradient[at, : len(d.options)] == pytest.approx(q[d.name] - p[d.name], abs=1e-10)


def gradient_setting():
    """Non-uniform logits, P(V) of about 0.3, and a quality for each of 64 architectures; the baseline is 0."""
    space, cost = additive(3, 4, seed=4)
    generator = np.random.default_rng(8)
    logits = generator.normal(0, 0.7, (3, 4))
    costs = np.array([cost(arch) for arch in space.enumerate()])
    plain = softmaxes(space)
    rows = np.array(space.indices(space.enumerate()))
    p = np.exp(plain.log_prob(logits, rows))
    order = np.argsort(costs)
    upper = int(costs[order][np.searchsorted(np.cumsum(p[order]), 0.3)])
    inside = within(space, [Limit(cost, upper)])
    kept = costs <= upper
    assert 0.25 < p[kept].sum() < 0.45
    return inside, logits, rows[kept], p[kept] / p[kept].sum(), generator.random(len(rows))[kept]


def test_the_exact_gradient_is_the_enumerated_one_and_no_baseline_changes_it():
    """Check 2, first half."""
    inside, logits, rows, p, quality = gradient_setting()
    policy = softmaxes(inside)

    def expected(at):
        given = np.exp(softmaxes(inside.space).log_prob(at, rows))
        return float((given / given.sum()) @ quality)

    for baseline in (0.0, 0.5, float(p @ quality)):
        gradient = policy.gradient(logits, rows, p * (quality - baseline), 0.0, 0)
        closed = np.zeros_like(logits)
        for row, chance, q in zip(rows, p, quality, strict=True):
            for at in range(3):
                marginal = np.bincount(rows[:, at], p, 4)
                closed[at] += chance * (q - baseline) * ((np.arange(4) == row[at]) - marginal)
        assert gradient == pytest.approx(closed, abs=1e-12)
        direction = np.random.default_rng(3).normal(size=logits.shape)
        slope = (expected(logits + 1e-5 * direction) - expected(logits - 1e-5 * direction)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, abs=1e-9)


def test_the_monte_carlo_gradient_has_the_exact_mean_and_without_the_correction_it_has_not():
    """Check 2, second half: N = 64, 200,000 draws in 4,000 steps of 50, which share the step's estimate of P(V)."""
    inside, logits, rows, p, quality = gradient_setting()
    exact = softmaxes(inside).gradient(logits, rows, p * quality, 0.0, 0)
    value = {tuple(row): q for row, q in zip(rows.tolist(), quality, strict=True)}
    generator = np.random.default_rng(0)

    def off_by(samples):
        policy = Rejecting(samples)(inside)
        found = []
        for step in range(4_000):
            drawn = policy.sample(logits, 50, generator)
            weights = np.array([value[tuple(row)] for row in drawn.tolist()]) / len(drawn)
            found.append(policy.gradient(logits, drawn, weights, 0.0, step))
        each = np.array(found)
        # an option that nothing within takes has no gradient, and only rounding as its error
        return np.abs(each.mean(axis=0) - exact) / (each.std(axis=0) / np.sqrt(len(each)) + 1e-12)

    assert off_by(64).max() < 3
    assert off_by(0).max() > 10


def test_the_number_of_samples_goes_from_start_to_end():
    rule = Rejecting((1_000, 100), steps=10)
    assert [rule.samples_at(step) for step in (0, 5, 10, 20)] == [1000, 550, 100, 100]
    assert Rejecting((10, 5), steps=3).samples_at(1) == 9  # ceil(5 + 2/3 * 5)
    with pytest.raises(ValueError, match="from one number to another"):
        Rejecting((10, 5))
    with pytest.raises(ValueError, match="samples=-1"):
        Rejecting(-1)


def test_without_a_feasible_sample_the_step_is_left_out():
    space, cost = toy()
    policy = Rejecting(samples=1)(within(space, [Limit(cost, 15)]))
    logits = policy.initial()
    row = np.zeros((1, 2), dtype=np.int64)
    skipped = [policy.gradient(logits, row, np.ones(1), 0.0, step) is None for step in range(300)]
    assert np.mean(skipped) == pytest.approx(8 / 9, abs=0.06)  # one of nine is within


def test_the_share_of_feasible_draws_is_the_estimate_of_p_feasible():
    space, cost = toy()
    inside = within(space, [Limit(cost, tabnas.TOY_BUDGET)])
    policy = Rejecting(samples=200)(inside)
    found = [np.exp(policy.log_feasible(policy.initial(), step)[0]) for step in range(200)]
    assert np.mean(found) == pytest.approx(6 / 9, abs=4 * np.sqrt(6 / 9 * 3 / 9 / 40_000))


def searched(strategy, space, metrics, steps, seed):
    state = strategy.init(space)
    for number in range(steps):
        (arch,) = strategy.ask(state, 1, Random(f"{seed}/{number}"), pending=())
        state = strategy.tell(state, [Trial(number, arch, metrics(arch))])
    return strategy.mode(state)


def test_the_exact_search_finds_the_bottleneck_and_the_absolute_reward_mostly_does_not():
    """Check 3 on 6 seeds; `niwaki reproduce tabnas` runs the 40, and the Monte-Carlo forms beside them."""
    space, cost = toy()
    inside, objective = within(space, [Limit(cost, tabnas.TOY_BUDGET)]), tabnas.toy_objective()

    def wins(strategy, drawn_from, steps):
        found = [searched(strategy, drawn_from, tabnas.toy_metrics, steps, seed) for seed in range(6)]
        return sum((arch["hidden1"], arch["hidden2"]) == tabnas.TOY_BEST for arch in found)

    assert wins(tabnas.exact(objective), inside, 1_500) >= 5
    assert wins(tabnas.absolute(objective), space, 500) <= 3


def test_what_is_returned_keeps_every_budget_to_the_unit():
    """Check 4: 1,000 runs on random budgets, the least that there is among them."""
    space, cost = perceptrons()
    costs = np.sort([cost(arch) for arch in space.enumerate()])
    generator = np.random.default_rng(0)
    for run in range(1_000):
        upper = int(costs[0] if run % 50 == 0 else generator.integers(costs[0], costs[-1] + 1))
        inside = within(space, [Limit(cost, upper)])
        qualities = generator.random(len(costs))
        strategy = tabnas.exact(tabnas.toy_objective(), lr=0.5)
        found = searched(
            strategy, inside, lambda arch, q=qualities, c=cost: {"quality": float(q[c(arch) % len(q)]), "params": c(arch)}, 4, run
        )
        assert cost(found) <= upper
    with pytest.raises(BudgetError, match=f"the least is {costs[0]}"):
        within(space, [Limit(cost, int(costs[0]) - 1)])


@pytest.mark.parametrize("rare", [False, True], ids=["even", "P(V) = 1e-6"])
def test_draws_given_the_budget_follow_the_enumerated_distribution(rare):
    """Check 6: chi-square of 50,000 draws at the 1 % level, none of them over the budget."""
    stats = pytest.importorskip("scipy.stats")
    space, cost = perceptrons()
    inside = within(space, [Limit(cost, int(np.median([cost(arch) for arch in space.enumerate()])))])
    policy = softmaxes(inside)
    logits = np.random.default_rng(2).normal(0, 0.3, policy.initial().shape)
    while rare and policy.log_feasible(logits)[0] > np.log(1e-6):
        logits[:, -2:] += 0.05  # the wide layers, of which nothing within has many
    assert not rare or np.exp(policy.log_feasible(logits)[0]) == pytest.approx(1e-6, rel=0.2)
    rows = np.array(space.indices(space.enumerate()))
    kept = rows[inside.feasible.keeps(rows)]
    p = np.exp(policy.log_prob(logits, kept))
    assert p.sum() == pytest.approx(1, abs=1e-10)
    drawn = policy.sample(logits, 50_000, np.random.default_rng(1))
    assert inside.feasible.keeps(drawn).all()
    number = {tuple(row): at for at, row in enumerate(kept.tolist())}
    counts = np.bincount([number[tuple(row)] for row in drawn.tolist()], minlength=len(kept))
    often = p * len(drawn) >= 5
    expected = np.append(p[often], p[~often].sum()) * len(drawn)
    seen = np.append(counts[often], counts[~often].sum())
    there = expected > 0
    assert stats.chisquare(seen[there], expected[there] * seen.sum() / expected.sum()).pvalue > 0.01


def test_tabnas_keeps_the_contract_of_a_strategy():
    check_strategy(tabnas.exact(Objective("accuracy")))
