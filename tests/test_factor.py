"""The cost algebra against enumeration: on small random spaces everything it says is compared with the whole list of architectures."""

from functools import cache
from math import comb, log
from random import Random

import numpy as np
import pytest
import torch

from niwaki.factor import chain, eliminate
from niwaki.factor.chain import all_rows
from niwaki.factor.draw import Sampler
from niwaki.factor.eliminate import Binned, Feasible
from niwaki.factor.expect import expected, log_probability_within, probability_within
from niwaki.factor.factor import Cost, CostError, Factor, Limit, factor_of, factors_of
from niwaki.factor.mode import most_likely
from niwaki.factor.quantile import quantiles
from niwaki.factor.within import within
from niwaki.space.choice import BudgetError
from niwaki.space.size import Ref, both, equal, op, round8, taken
from niwaki.space.space import Decision, Space
from random_spaces import random_factors, random_probabilities, random_space

SEEDS = range(200)


class Case:
    """A random space with all its architectures, their costs and their probabilities by the definitions."""

    def __init__(self, seed: int) -> None:
        rng, numbers = Random(seed), np.random.default_rng(seed)
        self.space = random_space(rng)
        self.architectures = list(self.space.enumerate())
        self.rows = np.array(self.space.indices(self.architectures))  # 0 where a decision does not exist
        self.exists = np.array([[d.name in arch for d in self.space.decisions] for arch in self.architectures])
        self.probabilities = random_probabilities(self.space, numbers)
        taken_with = [self.probabilities[d.name][self.rows[:, column]] for column, d in enumerate(self.space.decisions)]
        self.chances = np.prod(np.where(self.exists, np.transpose(taken_with), 1), axis=1)
        self.costs, self.amounts = [], []
        for name, kind in (("macs", "sum"), ("params", "sum"), ("bytes", "sum"), ("peak", "max")):
            factors = random_factors(self.space, rng)
            # every factor looked up on its own; a decision that does not exist counts as its first option
            entries = [factor.table[tuple(self.rows[:, self.space.position(n)] for n in factor.scope)] for factor in factors]
            entries = [np.broadcast_to(entry, len(self.rows)) for entry in entries]
            self.costs.append(Cost(name, "units", tuple(factors), self.space, kind))  # type: ignore[arg-type]
            self.amounts.append(np.sum(entries, axis=0) if kind == "sum" else np.max(entries, axis=0))

    def limit(self, number: int, share: float) -> Limit:
        """One that about `share` of the architectures keep."""
        return Limit(self.costs[number], int(np.quantile(self.amounts[number], share, method="lower")))

    def kept(self, limits: list[Limit]) -> np.ndarray:
        return np.all([self.amounts[self.costs.index(limit.cost)] <= limit.upper for limit in limits], axis=0)

    def gradient(self, value: np.ndarray) -> dict[str, np.ndarray]:
        """d/dp of the sum over all architectures of value * product of their options' p, the p being free numbers."""
        result = {}
        for column, d in enumerate(self.space.decisions):
            there, number = self.exists[:, column], self.rows[:, column]
            share = np.where(there, self.chances * value / self.probabilities[d.name][number], 0)
            result[d.name] = np.bincount(number[there], weights=share[there], minlength=len(d.options))
        return result


@cache
def case(seed: int) -> Case:
    return Case(seed)


@pytest.mark.parametrize("block", range(10))
def test_on_200_random_spaces_costs_and_extremes_equal_enumeration(block):
    for seed in SEEDS[block::10]:
        this = case(seed)
        rows, exists = all_rows(this.space)
        assert (exists == this.exists).all()
        assert rows.tolist() == this.space.indices(this.architectures)
        for cost, amounts in zip(this.costs, this.amounts, strict=True):
            assert (cost.batch(rows) == amounts).all()
            assert cost(this.architectures[-1]) == amounts[-1]
            assert (cost.minimum()[0], cost.maximum()[0]) == (amounts.min(), amounts.max())
            assert cost(cost.minimum()[1]) == amounts.min()


@pytest.mark.parametrize("block", range(10))
def test_on_200_random_spaces_counts_within_budgets_equal_enumeration(block):
    for seed in SEEDS[block::10]:
        this = case(seed)
        share = (seed % 7 + 0.5) / 7
        for limits in ([this.limit(0, share)], [this.limit(0, share), this.limit(3, 0.9)], [this.limit(0, 0.8), this.limit(1, 0.8)]):
            kept = this.kept(limits)
            if not kept.any():
                continue
            feasible = Feasible(this.space, limits)
            # two budgets take the square of the bins of one: there only the bounds are asked for
            count = feasible.count_by_elimination() if len(feasible.slack) == 1 else feasible.count_by_elimination(work=30_000_000)
            assert count.lo <= kept.sum() <= count.hi
            assert feasible.count().count == kept.sum()
            if len(feasible.slack) == 1:
                assert count.exact
                assert count.count == kept.sum()
                assert count.share == kept.mean()


@pytest.mark.parametrize("block", range(10))
def test_on_200_random_spaces_the_probability_of_a_budget_and_its_gradient_equal_enumeration(block):
    for seed in SEEDS[block::10]:
        this = case(seed)
        limits = [this.limit(0, (seed % 5 + 0.5) / 5), this.limit(3, 0.95)]
        kept = this.kept(limits)
        if not kept.any():
            continue
        feasible, chance = Feasible(this.space, limits), this.chances[kept].sum()
        for found in (feasible.probability(this.probabilities), feasible.probability_by_elimination(this.probabilities)):
            assert found.log == pytest.approx(log(chance), abs=1e-9)
            assert found.log_lo - 1e-12 <= log(chance) <= found.log_hi + 1e-12
        given = {name: torch.tensor(p, requires_grad=True) for name, p in this.probabilities.items()}
        log_probability_within(feasible, given).backward()
        listed, by_list = feasible.log_probability(this.probabilities)
        eliminated, by_elimination = feasible.log_probability_by_elimination(this.probabilities)
        assert [listed, eliminated] == pytest.approx([log(chance)] * 2, abs=1e-9)
        for name, gradient in this.gradient(kept).items():
            for slope in (given[name].grad.numpy(), by_list[name], by_elimination[name]):
                np.testing.assert_allclose(slope, gradient / chance, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("block", range(10))
def test_on_200_random_spaces_the_expected_cost_and_its_gradient_equal_enumeration(block):
    for seed in SEEDS[block::10]:
        this = case(seed)
        given = {name: torch.tensor(p, requires_grad=True) for name, p in this.probabilities.items()}
        mean = expected(this.costs[0], given)
        mean.backward()
        assert float(mean.detach()) == pytest.approx(float(this.chances @ this.amounts[0]), rel=1e-12)
        for name, gradient in this.gradient(this.amounts[0]).items():
            found = given[name].grad
            found = np.zeros_like(gradient) if found is None else found.numpy()
            # a factor without this decision does not see its p; that is the same for all options, so the slopes along sum(p) = 1 agree
            np.testing.assert_allclose(found - found.mean(), gradient - gradient.mean(), rtol=1e-9, atol=1e-8)


@pytest.mark.parametrize("block", range(10))
def test_on_200_random_spaces_the_most_likely_architecture_within_budgets_equals_enumeration(block):
    for seed in SEEDS[block::10]:
        this = case(seed)
        for numbers in ((0,), (0, 3), (0, 1), (0, 1, 2)):
            limits = [this.limit(number, 0.3 if number == 0 else 0.9) for number in numbers]
            kept = this.kept(limits)
            if not kept.any():
                continue
            best = most_likely(Feasible(this.space, limits), this.probabilities)
            assert kept[this.architectures.index(best)]
            assert log(this.chances[this.architectures.index(best)]) == pytest.approx(log(this.chances[kept].max()), abs=1e-8)


def test_a_few_bins_still_bracket_the_count_and_the_probability(monkeypatch):
    monkeypatch.setattr(eliminate, "COARSE_BINS", (16, 6))
    monkeypatch.setattr(eliminate, "FEWEST_BINS", (24, 6))
    monkeypatch.setattr(eliminate, "MOST_BINS", (24, 6))
    inexact = 0
    for seed in range(60):
        this = case(seed)
        for limits in ([this.limit(0, 0.4)], [this.limit(0, 0.7), this.limit(1, 0.7)]):
            kept = this.kept(limits)
            if not kept.any():
                continue
            feasible = Feasible(this.space, limits)
            count, chance = feasible.count_by_elimination(), feasible.probability_by_elimination(this.probabilities)
            assert count.lo <= count.count <= count.hi
            assert count.lo <= kept.sum() <= count.hi
            assert chance.lo * (1 - 1e-12) <= this.chances[kept].sum() <= chance.hi * (1 + 1e-12)
            inexact += not count.exact
    assert inexact > 40


def test_draws_within_a_budget_are_uniform_and_those_from_a_distribution_follow_it(monkeypatch):
    monkeypatch.setattr("niwaki.factor.draw.COARSE_BINS", (12, 6))
    monkeypatch.setattr("niwaki.factor.draw.DRAW_WORK", 1)  # so few bins that many proposals are rejected
    monkeypatch.setattr(eliminate, "FEWEST_BINS", (12, 6))
    tried = 0
    for seed in range(40):
        this = case(seed)
        limits = [this.limit(0, 0.5)] if seed % 2 else [this.limit(0, 0.6), this.limit(1, 0.8), this.limit(2, 0.9), this.limit(3, 0.95)]
        kept = this.kept(limits)
        if not 5 < kept.sum() < 300:
            continue
        tried += 1
        place = {arch: number for number, arch in enumerate(this.architectures)}
        for probabilities, chances in ((None, kept / kept.sum()), (this.probabilities, this.chances * kept / this.chances[kept].sum())):
            draws = 25 * int(kept.sum()) + 1_000
            rows = Sampler(Feasible(this.space, limits), probabilities).draw(draws, np.random.default_rng(seed))
            assert rows.shape == (draws, len(this.space))
            seen = np.bincount([place[this.space.from_indices(row)] for row in rows.tolist()], minlength=len(kept))
            assert not seen[~kept].any()
            likely = chances * draws >= 5
            chi_square = ((seen - draws * chances)[likely] ** 2 / (draws * chances)[likely]).sum()
            freedom = max(1, likely.sum() - 1)
            assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 5, (seed, chi_square, freedom)
    assert tried >= 10


def test_drawing_depends_on_the_generator_alone():
    this = case(1)
    feasible = Feasible(this.space, [this.limit(0, 0.5)])
    sampler = Sampler(feasible)
    sampler.draw(10, np.random.default_rng(3))
    assert (sampler.draw(50, np.random.default_rng(7)) == Sampler(feasible).draw(50, np.random.default_rng(7))).all()


def test_one_hot_probabilities_make_the_probability_of_a_budget_0_or_1_and_the_expectation_the_cost():
    for seed in range(20):
        this = case(seed)
        rng = Random(seed)
        limit = this.limit(0, 0.5)
        feasible = Feasible(this.space, [limit])
        for arch in (this.space.sample(rng) for _ in range(5)):
            hot = {d.name: np.zeros(len(d.options)) for d in this.space.decisions}
            for d in this.space.decisions:
                hot[d.name][d.options.index(arch.get(d.name, d.options[0]))] = 1
            cost = this.costs[0](arch)
            assert float(expected(this.costs[0], {name: torch.tensor(p) for name, p in hot.items()})) == cost
            assert feasible.probability(hot).value == feasible.probability_by_elimination(hot).value == float(cost <= limit.upper)
            if cost <= limit.upper:
                assert most_likely(feasible, hot) == arch
                assert float(probability_within(feasible, {name: torch.tensor(p) for name, p in hot.items()})) == 1
            else:
                with pytest.raises(BudgetError, match="log P has no gradient"):
                    feasible.log_probability_by_elimination(hot)


def test_the_mode_takes_options_of_probability_zero_only_where_nothing_else_fits():
    width = Decision("width", (1, 2, 3))
    macs = Cost("macs", "", (Factor(("width",), np.array([1, 2, 3])),), Space((width,)))
    zero = {"width": np.array([0.0, 0.0, 1.0])}
    assert most_likely(Feasible(macs.space, [Limit(macs, 3)]), zero)["width"] == 3
    assert most_likely(Feasible(macs.space, [Limit(macs, 2)]), zero)["width"] in (1, 2)


def test_a_budget_below_the_cheapest_architecture_is_an_error_that_names_it():
    this = case(5)
    least, arch = this.costs[0].minimum()
    with pytest.raises(BudgetError, match=f"the least is {least:,} units") as caught:
        within(this.space, [Limit(this.costs[0], least - 1)])
    assert caught.value.architecture == arch
    assert all(name in str(caught.value) for name in arch)


def test_two_budgets_that_exclude_each_other_are_an_error_even_if_each_can_be_kept():
    width = Decision("width", tuple(range(10)))
    space = Space((width,))
    up = Cost("up", "", (Factor(("width",), np.arange(10)),), space)
    down = Cost("down", "", (Factor(("width",), np.arange(10)[::-1].copy()),), space)
    assert Feasible(space, [Limit(up, 4), Limit(down, 5)]).count().count == 1
    assert Feasible(space, [Limit(up, 4), Limit(down, 4)]).count().count == 0
    with pytest.raises(BudgetError):
        Sampler(Feasible(space, [Limit(up, 4), Limit(down, 4)]))
    with pytest.raises(BudgetError):
        most_likely(Feasible(space, [Limit(up, 4), Limit(down, 4)]), {"width": np.full(10, 0.1)})


def test_a_space_within_its_budgets_moves_lists_and_draws_only_what_keeps_them():
    for seed in range(12):
        this = case(seed)
        limits = [this.limit(0, 0.5), this.limit(3, 0.95)]
        kept = this.kept(limits)
        if kept.sum() < 3:
            continue
        inside, rng = within(this.space, limits), Random(seed)
        members = {arch for arch, keeps in zip(this.architectures, kept, strict=True) if keeps}
        assert inside.size == len(members)
        assert list(inside.enumerate()) == [arch for arch in this.architectures if arch in members]
        kept = [arch for arch in this.architectures if arch in members]
        for arch in (this.architectures[0], this.architectures[len(this.architectures) // 2], kept[-1]):
            after = this.architectures[this.architectures.index(arch) + 1 :]
            assert list(inside.enumerate(arch)) == [other for other in after if other in members]
        assert all(inside.cross(arch, kept[0], rng) in members for arch in kept[:20])
        arch = inside.sample_uniform(rng)
        assert {inside.sample(rng), arch, inside.sample_uniform(rng)} <= members
        assert set(inside.neighbours(arch)) == set(this.space.neighbours(arch)) & members
        if set(inside.neighbours(arch)):
            assert {inside.mutate(arch, rng) for _ in range(5)} <= members
        outside = next((arch for arch in this.architectures if arch not in members), None)
        if outside is not None:
            assert outside not in inside
            with pytest.raises(BudgetError, match="but the limit is"):
                inside.architecture(outside)


# -------------------------------------------------------------------- large spaces, against closed forms


def binomial_chain(length: int) -> Cost:
    """Each of `length` decisions costs 0 or 1,000,003: so many architectures have a given cost as there are subsets of a size."""
    space = Space(tuple(Decision(f"d{i}", (0, 1)) for i in range(length)))
    return Cost("macs", "", tuple(Factor((f"d{i}",), np.array([0, 1_000_003])) for i in range(length)), space)


def test_counts_of_a_large_space_are_binomial_sums_also_far_in_the_tail():
    cost = binomial_chain(300)
    for most in (3, 20, 150):
        exact = sum(comb(300, k) for k in range(most + 1))
        count = Feasible(cost.space, [Limit(cost, 1_000_003 * most + 5)]).count()
        assert count.lo <= exact <= count.hi
        assert count.hi - count.lo <= 1e-9 * exact
    chance = Feasible(cost.space, [Limit(cost, 1_000_003 * 20)]).probability()
    assert chance.log == pytest.approx(log(sum(comb(300, k) for k in range(21))) - 300 * log(2), abs=1e-9)


def test_quantiles_of_a_large_space_lie_within_their_bounds():
    cost = binomial_chain(200)
    cumulative = np.cumsum([float(comb(200, k)) for k in range(201)])
    for quantile in quantiles(cost, (0.01, 0.25, 0.5, 0.9)):
        exact = 1_000_003 * int(np.searchsorted(cumulative, quantile.share * 2.0**200))
        assert quantile.lo <= exact <= quantile.hi
        assert quantile.hi - quantile.lo <= 1_000_003


def test_quantiles_of_small_spaces_equal_sorting():
    for seed in range(10):
        this = case(seed)
        for cost, amounts in ((this.costs[0], this.amounts[0]), (this.costs[3], this.amounts[3])):
            for quantile in quantiles(cost, (0.1, 0.5, 1.0)):
                exact = np.sort(amounts)[max(1, int(np.ceil(quantile.share * len(amounts)))) - 1]
                assert (quantile.lo, quantile.value, quantile.hi) == (exact, exact, exact)


def rough_chain(length: int = 24) -> Cost:
    """Costs without a common divisor, one state between stages: the distribution of the sum is a convolution."""
    rng = np.random.default_rng(0)
    space = Space(tuple(Decision(f"d{i}", tuple(range(6))) for i in range(length)))
    return Cost("macs", "", tuple(Factor((f"d{i}",), rng.integers(0, 10_000, 6)) for i in range(length)), space)


def exact_counts(cost: Cost) -> np.ndarray:
    """The number of architectures of every cost, by convolution in Python integers' stead: exact enough in float64 (no subtraction)."""
    counts = np.ones(1)
    for factor in cost.factors:
        longer = np.zeros(len(counts) + int(factor.table.max()))
        for entry in factor.table:
            longer[entry : entry + len(counts)] += counts
        counts = longer
    return counts


def test_bounds_hold_and_are_narrow_where_no_bin_is_exact():
    cost = rough_chain()
    cumulative = np.cumsum(exact_counts(cost))
    for share in (1e-9, 1e-5, 1e-2, 0.5):
        upper = int(np.searchsorted(cumulative, share * cumulative[-1]))
        count = Feasible(cost.space, [Limit(cost, upper)]).count(work=2_000_000)
        assert count.lo <= cumulative[upper] * (1 + 1e-9)
        assert count.hi >= cumulative[upper] * (1 - 1e-9)
        assert count.count == pytest.approx(cumulative[upper], rel=0.02)
        precise = Feasible(cost.space, [Limit(cost, upper)]).count()
        assert precise.hi - precise.lo <= 0.01 * precise.count


def test_log_probability_and_gradient_agree_with_differences_where_no_bin_is_exact(monkeypatch):
    monkeypatch.setattr(eliminate, "MOST_BINS", (2_048, 64))
    cost, rng = rough_chain(), np.random.default_rng(1)
    logits = {d.name: torch.tensor(rng.normal(size=6), requires_grad=True) for d in cost.space.decisions}
    feasible = Feasible(cost.space, [Limit(cost, int(0.3 * cost.maximum()[0]))])

    def value() -> torch.Tensor:
        return log_probability_within(feasible, {name: torch.softmax(v, 0) for name, v in logits.items()})

    value().backward()
    for name in ("d0", "d11", "d23"):
        for option in (0, 3):
            with torch.no_grad():
                logits[name][option] += 1e-4
                above = float(value())
                logits[name][option] -= 2e-4
                below = float(value())
                logits[name][option] += 1e-4
            assert float(logits[name].grad[option]) == pytest.approx((above - below) / 2e-4, rel=2e-3, abs=1e-4)


def test_draws_of_a_rare_kind_keep_the_budget_and_have_the_mean_of_the_exact_distribution():
    cost = rough_chain()
    counts = exact_counts(cost)
    upper = int(np.searchsorted(np.cumsum(counts), 1e-8 * counts.sum()))
    drawn = cost.batch(Sampler(Feasible(cost.space, [Limit(cost, upper)])).draw(20_000, np.random.default_rng(0)))
    below, weights = np.arange(upper + 1), counts[: upper + 1] / counts[: upper + 1].sum()
    mean, variance = below @ weights, below**2 @ weights - (below @ weights) ** 2
    assert drawn.max() <= upper
    assert abs(drawn.mean() - mean) < 5 * (variance / 20_000) ** 0.5


# -------------------------------------------------------------------- tables


def test_a_factor_is_the_product_of_its_expressions_where_its_condition_holds():
    width, expand, kind = Ref("width", (8, 16, 24)), Ref("expand", (0.75, 1.5)), Ref("kind", ("conv", "skip"))
    mid = round8(op("*", expand, width))
    factor = factor_of("block", both(taken(kind, ("conv",)), equal(width, 16)), (9, mid, width))
    for index in np.ndindex(factor.table.shape):
        at = dict(zip(factor.scope, index, strict=True))
        w, e, k = width.options[at["width"]], expand.options[at["expand"]], kind.options[at["kind"]]
        assert factor.table[index] == (9 * round8(e * w) * w if k == "conv" and w == 16 else 0)


def test_a_product_of_sums_of_sizes_stays_a_sum_of_factors():
    widths = [Ref(f"w{i}", tuple(range(1, 9))) for i in range(12)]
    total = widths[0]
    for width in widths[1:]:
        total = total + width
    out = Ref("out", (3, 5))
    factors = factors_of("concat", True, (total, out, 9))
    assert sum(factor.table.size for factor in factors) <= 12 * 16
    assert sum(int(f.table[tuple(1 if name == "out" else 2 for name in f.scope)]) for f in factors) == 12 * 3 * 5 * 9
    with pytest.raises(CostError, match=r"the cost of concat depends on 13 choices .* w0 \(8\)"):
        factor_of("concat", True, (total, out))


def test_a_cost_that_does_not_fit_64_bits_or_is_not_whole_is_refused():
    with pytest.raises(CostError, match="the cost of huge reaches"):
        factor_of("huge", True, (10**12, Ref("w", (10**8, 1))))
    with pytest.raises(CostError, match=r"not a whole number: 1\.5"):
        factor_of("half", True, (Ref("w", (1, 1.5)),))
    with pytest.raises(CostError, match="the mean of a maximum"):
        expected(case(0).costs[3], {})


def test_rounding_a_path_never_leaves_the_bounds_that_the_bins_state():
    this = case(9)
    feasible = Feasible(this.space, [this.limit(0, 0.6)])
    binned = Binned(feasible.stages, feasible.slack, 7, "nearest")
    assert binned.under[0] <= 0 <= binned.over[0]
    for row, amount in zip(this.rows, this.amounts[0], strict=True):
        if amount <= feasible.limits[0].upper:
            state, spent, bins = 0, 0, 0
            for stage, arcs, part in zip(feasible.chain.stages, feasible.stages, binned.stages, strict=True):
                same = (stage.options[arcs.raw] == row[stage.start : stage.stop]).all(axis=1) & (stage.source[arcs.raw] == state)
                arc = int(arcs.group[np.flatnonzero(same)[0]])
                bundle = int(part.group[np.flatnonzero(part.fits == arc)[0]])
                spent, bins, state = spent + int(arcs.spend[arc, 0]), bins + int(part.moves.shift[bundle]), int(arcs.target[arc])
            assert binned.under[0] <= spent - bins * binned.width[0] <= binned.over[0]


# --- states that no later cost tells apart --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(0, 200, 10))
def test_a_chain_of_merged_states_says_what_the_whole_list_of_architectures_says(seed, monkeypatch):
    monkeypatch.setattr(chain, "_cuts", lambda space, frontiers: ([], float("inf")))
    this = Case(seed)
    limits = [this.limit(0, 0.5), this.limit(3, 0.8)]
    kept = this.kept(limits)
    assert [cost.minimum()[0] for cost in this.costs] == [amounts.min() for amounts in this.amounts]
    assert [cost.maximum()[0] for cost in this.costs] == [amounts.max() for amounts in this.amounts]
    if not kept.any():
        return
    feasible = Feasible(this.space, limits)
    assert feasible.chain.is_merged
    count = feasible.count_by_elimination()
    assert count.lo == kept.sum() == count.hi
    both = [*limits, this.limit(1, 0.7)]
    assert (loose := Feasible(this.space, both).count_by_elimination(work=30_000_000)).lo <= this.kept(both).sum() <= loose.hi
    found, gradient = feasible.log_total_by_elimination(this.probabilities)
    assert found == pytest.approx(log((this.chances * kept).sum()), abs=1e-9)
    for name, slope in this.gradient(kept).items():
        assert gradient[name] * (this.chances * kept).sum() == pytest.approx(slope, abs=1e-9)
    best = most_likely(feasible, this.probabilities)
    assert this.chances[this.architectures.index(best)] == pytest.approx((this.chances * kept).max())
    rows = Sampler(feasible, this.probabilities).draw(200, np.random.default_rng(0))
    assert feasible.keeps(rows).all()


def dense(layers, growths=(1, 2, 3)):
    """Maps side by side, as in a DenseNet: every layer reads all before it. Space, cost, and the sizes of its two choices a layer."""
    decisions = [Decision(f"{kind}{at}", growths) for at in range(layers) for kind in ("inner", "growth")]
    factors = [
        Factor((f"growth{before}", f"inner{at}"), np.outer(growths, growths).astype(np.int64))
        for at in range(layers)
        for before in range(at)
    ]
    space = Space(tuple(decisions))
    return space, Cost("macs", "", tuple(factors), space)


def test_a_layer_that_reads_many_others_depends_on_their_total_width_alone():
    space, macs = dense(14)
    ways = {(0, 0): 1}  # by the total width so far and the cost so far
    for _ in range(14):
        after: dict[tuple[int, int], int] = {}
        for (width, spent), times in ways.items():
            for inner in (1, 2, 3):
                for growth in (1, 2, 3):
                    key = width + growth, spent + inner * width
                    after[key] = after.get(key, 0) + times
        ways = after
    costs = sorted({spent for _, spent in ways})
    assert (macs.minimum()[0], macs.maximum()[0]) == (costs[0], costs[-1])
    for share in (0.15, 0.6):
        upper = int(share * costs[-1])
        space_within = within(space, [Limit(macs, upper)])
        assert space_within.feasible.chain.is_merged
        assert max(len(stage.states) for stage in space_within.feasible.chain.stages) <= 3 * 40
        count = space_within.count
        true = sum(times for (_, spent), times in ways.items() if spent <= upper)
        assert count.lo <= true <= count.hi
        assert count.count == pytest.approx(true, rel=0.02)
        assert all(macs(space_within.sample(Random(at))) <= upper for at in range(5))
        assert macs(space_within.mode({d.name: np.array([0.2, 0.3, 0.5]) for d in space.decisions})) <= upper


def test_draws_within_a_loose_budget_of_a_large_chain_are_spread_as_those_of_an_eliminated_one(monkeypatch):
    space, macs = dense(5)
    limits, probabilities = [Limit(macs, int(0.5 * macs.maximum()[0]))], {d.name: np.array([0.5, 0.3, 0.2]) for d in space.decisions}
    eliminated = Sampler(Feasible(space, limits), probabilities).draw(20_000, np.random.default_rng(1))
    monkeypatch.setattr(chain, "_cuts", lambda space, frontiers: ([], float("inf")))
    space, macs = dense(5)
    sampler = Sampler(Feasible(space, [Limit(macs, limits[0].upper)]), probabilities)
    assert sampler._plain is not None
    plain = sampler.draw(20_000, np.random.default_rng(2))
    assert sampler.feasible.keeps(plain).all()
    for column in range(len(space)):
        one, other = (np.bincount(rows[:, column], minlength=3) / len(rows) for rows in (eliminated, plain))
        assert np.abs(one - other).max() < 0.02  # four standard deviations of a difference
