"""Statistics of comparisons against scipy, brute force and simulation."""

from itertools import combinations, product
from math import comb, sqrt

import numpy as np
import pytest
from scipy import stats

from niwaki.run import significance, statistics

RNG = np.random.default_rng(0)


def pairs(count=40):
    """Arrays of several lengths, without ties and with many."""
    generator = np.random.default_rng(1)
    for at in range(count):
        size = int(generator.integers(3, 60))
        if at % 2:
            yield generator.normal(size=size), generator.normal(size=size)
        else:
            yield generator.integers(4, size=size).astype(float), generator.integers(6, size=size).astype(float)


def test_rank_correlations_are_those_of_scipy_with_ties_too():
    for a, b in pairs():
        if len(set(a)) == 1 or len(set(b)) == 1:
            continue
        assert statistics.kendall(a, b) == pytest.approx(stats.kendalltau(a, b, variant="b").statistic, abs=1e-12)
        assert statistics.spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
        assert np.array_equal(statistics.ranks(a), stats.rankdata(-a))


def test_kendalls_tau_of_many_is_that_of_scipy():
    for size, levels in ((65, 8), (1001, 1001), (5000, 40)):
        a = RNG.integers(levels, size=size)
        b = a + RNG.integers(levels, size=size)
        assert statistics.kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)


def test_a_correlation_with_what_never_changes_is_none():
    assert statistics.kendall([1, 1, 1], [1, 2, 3]) is None
    assert statistics.spearman([1, 1, 1], [1, 2, 3]) is None


def test_the_standard_error_of_tau_is_what_shuffled_scores_show():
    shuffled = [statistics.kendall(RNG.permutation(100), np.arange(100)) for _ in range(2000)]
    assert statistics.kendall_error(100) == pytest.approx(0.068, abs=5e-4)
    assert np.std(shuffled) == pytest.approx(statistics.kendall_error(100), rel=0.06)


def test_precision_and_regret_of_the_best_by_hand():
    truth, scores = [10, 9, 8, 7, 1], [5, 1, 4, 3, 5]
    assert statistics.precision_at(scores, truth, 3) == pytest.approx(2 / 3)  # the best by score: 0, 4, 2; by truth: 0, 1, 2
    assert statistics.regret_of_best(scores, truth) == 10 - (10 + 1) / 2
    assert statistics.kendall_sparse([1, 2, 3], [10.01, 10.02, 11], to=0.1) == pytest.approx(
        stats.kendalltau([1, 2, 3], [0, 0, 1]).statistic
    )
    assert statistics.kendall_top([3, 2, 1, 9], [4, 3, 2, 1], 0.75) == 1.0


def test_random_search_in_closed_form_is_what_100000_simulations_give():
    values = np.random.default_rng(2).normal(size=60)
    curve = statistics.expected_picks(values, values, 20)
    for draws in (1, 2, 5, 20):
        drawn = np.argsort(np.random.default_rng(draws).random((100_000, 60)), axis=1)[:, :draws]
        best = values[drawn].max(axis=1)
        assert abs(best.mean() - curve[draws - 1]) < 3 * best.std() / sqrt(len(best))
    ordered = np.sort(values)
    formula = [sum(v * comb(i, n - 1) for i, v in enumerate(ordered)) / comb(60, n) for n in range(1, 21)]
    assert np.allclose(curve, formula, rtol=1e-12)


def test_the_curve_of_random_search_is_the_mean_over_all_sets_of_candidates_with_ties_and_another_signal():
    generator = np.random.default_rng(3)
    values, signal = generator.normal(size=10), generator.integers(0, 4, size=10)
    curve = statistics.expected_picks(signal, values, 10)
    for n in range(1, 11):
        picks = []
        for drawn in map(list, combinations(range(10), n)):
            picks.append(values[drawn][signal[drawn] == signal[drawn].max()].mean())
        assert curve[n - 1] == pytest.approx(np.mean(picks), rel=1e-12)
        assert statistics.expected_pick(signal, values, n) == curve[n - 1]


@pytest.mark.parametrize("interval", [statistics.bootstrap, statistics.bootstrap_bca])
def test_intervals_cover_the_truth_as_often_as_they_say(interval, monkeypatch):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    samples = np.random.default_rng(4).normal(3.0, 2.0, size=(1500, 30))
    covered = np.mean([(found := interval(row.tolist(), seed=at)).low <= 3.0 <= found.high for at, row in enumerate(samples)])
    assert 0.93 <= covered <= 0.97


def test_the_corrected_interval_is_that_of_scipy():
    values = np.random.default_rng(5).exponential(size=25)
    ours = statistics.bootstrap_bca(values.tolist())
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(6)).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_the_band_of_a_curve_resamples_whole_seeds():
    curves = np.random.default_rng(7).normal(size=(12, 5)).cumsum(axis=1)
    low, high = statistics.bootstrap_curve(curves)
    for at in range(5):
        single = statistics.bootstrap(curves[:, at].tolist())
        assert (low[at], high[at]) == pytest.approx((single.low, single.high), abs=1e-12)


def test_wilcoxon_is_exact():
    for a, b in pairs(60):
        if len(set(np.abs(a - b))) == len(a) and (a != b).all():
            assert significance.wilcoxon(a, b) == pytest.approx(stats.wilcoxon(a, b, method="exact").pvalue, rel=1e-9)
        elif 0 < (a != b).sum() <= 12:  # with ties: all signs, by brute force
            difference = (a - b)[a != b]
            rank = stats.rankdata(np.abs(difference))
            sums = [sum(r for r, sign in zip(rank, signs, strict=True) if sign) for signs in product((0, 1), repeat=len(rank))]
            least = min(rank[difference > 0].sum(), rank[difference < 0].sum())
            expected = min(1.0, 2 * np.mean([total <= least + 1e-9 for total in sums]))
            assert significance.wilcoxon(a, b) == pytest.approx(expected, rel=1e-9)
    assert significance.wilcoxon([1, 2, 3, 4, 5], [0, 0, 0, 0, 0]) == 0.0625  # the least that 5 seeds can show
    assert significance.wilcoxon([1, 2], [1, 2]) == 1.0


def test_wilcoxon_of_many_pairs_is_as_good_as_exact():
    generator = np.random.default_rng(8)
    a, b = generator.normal(0.1, size=300), generator.normal(size=300)
    assert significance.wilcoxon(a, b) == pytest.approx(stats.wilcoxon(a, b, method="approx", correction=True).pvalue, rel=1e-6)


def test_friedman_chi_squared_and_the_studentized_range_are_those_of_scipy():
    for at in range(6):
        table = np.random.default_rng(at).normal(size=(12, 3 + at)) if at % 2 else np.random.default_rng(at).integers(4, size=(12, 3 + at))
        assert significance.friedman(table) == pytest.approx(stats.friedmanchisquare(*table.T).pvalue, rel=1e-9)
        assert np.allclose(significance.mean_ranks(table), np.mean([stats.rankdata(row) for row in table], axis=0))
    for freedom in range(1, 12):
        for value in (0.0, 0.3, 4.0, 30.0):
            assert significance.chi_squared_tail(value, freedom) == pytest.approx(stats.chi2.sf(value, freedom), rel=1e-9)
    for count in (2, 3, 5, 10, 20):
        assert significance.studentized_range(0.95, count) == pytest.approx(stats.studentized_range.ppf(0.95, count, np.inf), abs=1e-4)
    assert significance.critical_difference(5, 10) == pytest.approx(2.728 * sqrt(5 * 6 / 60), abs=2e-3)  # Demsar, table 5


def test_holm_by_hand_and_cliffs_delta_by_brute_force():
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert significance.holm([0.5, 0.6]) == [1.0, 1.0]
    for a, b in pairs(10):
        expected = np.sign(a[:, None] - b[None, :]).mean()
        assert significance.cliffs_delta(a, b) == pytest.approx(expected)


def test_methods_that_are_not_told_apart_are_joined():
    base = np.random.default_rng(9).normal(size=20)
    values = {"a": base, "a2": base + np.random.default_rng(10).normal(0, 0.1, 20), "far": base + 5}
    joined = significance.alike(["a", "a2", "far"], significance.compare({name: list(v) for name, v in values.items()}))
    assert joined == [("a", "a2")]
