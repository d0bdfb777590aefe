"""Our default strategy: its mathematics against scikit-learn and sampling, its promises on spaces with known answers."""

import json
import tracemalloc
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct, Matern, WhiteKernel

from niwaki import zoo
from niwaki.cost.count import count_macs
from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.net.control import Chain, Network, OneOf
from niwaki.net.layer import Conv, Identity
from niwaki.net.place import space_of
from niwaki.objective import Objective, macs, measured
from niwaki.space.choice import Choice, SpaceError
from niwaki.space.rows import Features
from niwaki.space.space import Decision, Space
from niwaki.strategy.default import Default, DefaultState, _View
from niwaki.strategy.random import RandomSearch
from niwaki.strategy.surrogate import (
    NOISES,
    Model,
    Points,
    Scale,
    Setting,
    expected_hypervolume_improvement,
    expected_improvement,
    normal_cdf,
    normal_scores,
    normal_scores_among,
    settings_of,
)
from niwaki.testing.strategy import check_strategy
from niwaki.testing.toy import toy_evaluate, toy_macs, toy_space
from niwaki.trial import Trial

ACCURATE_AND_SMALL = Default((Objective("accuracy"), Objective("-macs")))


@pytest.mark.parametrize(
    "strategy",
    [Default(), Default(Objective("accuracy", (macs <= 300,))), ACCURATE_AND_SMALL],
    ids=["one objective", "a limit to be learned", "two objectives"],
)
def test_it_keeps_the_contract(strategy):
    check_strategy(strategy, evaluations=24)


# --- the surrogate ---------------------------------------------------------------------------------------------------------------


def points_of(rng: np.random.Generator, count: int) -> Points:
    return Points(Features(*(rng.standard_normal((count, columns)).astype(np.float32) for columns in (4, 3, 2))))


def flat(points: Points, setting: Setting) -> np.ndarray:
    """Points whose squared distances and products are the mixture of those of the two blocks of the setting."""
    structure = {"paths": points.blocks.paths, "counts": points.blocks.counts}[setting.structure]
    mixed = [np.sqrt(setting.mixture) * points.blocks.choices, np.sqrt(1 - setting.mixture) * structure]
    return np.concatenate(mixed, axis=1).astype(np.float64)


def regressor(setting: Setting, amplitude: float) -> GaussianProcessRegressor:
    bends = ConstantKernel(amplitude) * Matern(setting.length, nu=1.5)
    leans = ConstantKernel(max(2 * amplitude * setting.linear, 1e-12)) * DotProduct(sigma_0=0)
    kernel = bends + leans + WhiteKernel(amplitude * setting.noise)
    return GaussianProcessRegressor(kernel, optimizer=None, alpha=1e-12)


@pytest.mark.parametrize(
    ("mixture", "structure", "linear"),
    [(0.0, "paths", 0.0), (0.25, "paths", 0.5), (0.0, "counts", 0.5), (0.5, "counts", 0.0), (1.0, "counts", 2.0)],
)
def test_the_posterior_is_that_of_scikit_learn(mixture, structure, linear):
    rng = np.random.default_rng(0)
    told, others, targets = points_of(rng, 12), points_of(rng, 30), rng.standard_normal(12)
    setting = Setting(mixture, structure, 1.5, linear, 0.05)
    belief = Model(setting, told.among, targets)(others, told.to(others))
    x, z = flat(told, setting), flat(others, setting)
    gram = regressor(setting, 1.0).kernel(x)
    inverse = np.linalg.inv(gram)
    mean = (inverse @ targets).sum() / inverse.sum()  # generalised least squares
    amplitude = (targets - mean) @ inverse @ (targets - mean) / 12
    model = regressor(setting, amplitude).fit(x, targets - mean)
    expected, deviation = model.predict(z, return_std=True)
    noiseless = np.sqrt(deviation**2 - amplitude * setting.noise)
    assert np.allclose(belief.mean, expected + mean, atol=1e-4)
    assert np.allclose(belief.deviation, noiseless, rtol=1e-3)
    assert np.allclose(belief.spread, deviation, rtol=1e-3)


@pytest.mark.parametrize("structure", ["paths", "counts"])
def test_settings_are_those_of_greatest_marginal_likelihood(structure):
    rng = np.random.default_rng(3)
    told = points_of(rng, 25)
    truth = Setting(0.25, structure, 1.0, 0.0, 1e-2)
    targets = np.linalg.cholesky(regressor(truth, 1.0).kernel(flat(told, truth))) @ rng.standard_normal(25)
    found = settings_of(told, targets, 4)
    assert sum(setting.weight for setting in found) == pytest.approx(1)
    likelihoods = []
    rest = [Setting(m, s, 4.0 * m, 0.5, noise) for m in (0.25, 0.5, 1.0) for s in ("paths", "counts") for noise in NOISES]
    for setting in (*found, *(one for one in rest if replace(one, weight=0) not in [replace(other, weight=0) for other in found])):
        gram = regressor(setting, 1.0).kernel(flat(told, setting))
        inverse = np.linalg.inv(gram)
        mean = (inverse @ targets).sum() / inverse.sum()
        amplitude = (targets - mean) @ inverse @ (targets - mean) / 25
        model = regressor(setting, amplitude).fit(flat(told, setting), targets - mean)
        likelihoods.append(model.log_marginal_likelihood_value_)
    ours, others = np.array(likelihoods[:4]), np.array(likelihoods[4:])
    assert (np.diff(ours) <= 1e-6).all()
    assert (others <= ours[3] + 1e-6).all()
    weights = np.exp(ours - ours.max())
    assert np.allclose([setting.weight for setting in found], weights / weights.sum(), atol=1e-3)


def test_assuming_a_point_is_conditioning_on_its_mean():
    rng = np.random.default_rng(1)
    told, others, targets = points_of(rng, 10), points_of(rng, 20), rng.standard_normal(10)
    setting = Setting(0.5, "counts", 1.0, 0.5, 0.01)
    belief = Model(setting, told.among, targets)(others, told.to(others))
    for place in (3, 11):
        belief.assume_(place)
    joined = told.and_(others.at(np.array([3, 11])))
    anew = Model(setting, joined.among, np.concatenate([targets, belief.mean[[3, 11]]]))(others, joined.to(others))
    assert np.allclose(belief.mean, anew.mean, atol=2e-3)
    assert np.allclose(belief.left, anew.left, atol=1e-4)


def test_expected_improvement_is_the_mean_over_samples():
    rng = np.random.default_rng(0)
    mean, deviation = np.array([0.0, 0.5, -2.0, 1.5]), np.array([1.0, 0.2, 1.5, 0.7])
    samples = rng.standard_normal((400_000, 4)) * deviation + mean
    sampled = np.maximum(samples - 0.6, 0)
    error = 4 * sampled.std(axis=0) / np.sqrt(len(samples))
    assert (np.abs(expected_improvement(mean, deviation, 0.6) - sampled.mean(axis=0)) < error).all()


def test_expected_hypervolume_improvement_is_the_mean_over_samples():
    moocore = pytest.importorskip("moocore")
    rng = np.random.default_rng(0)
    told = np.array([[0.0, 2.0], [1.0, 1.0], [2.0, 0.5], [0.5, 0.2], [1.0, 0.9], [-1.0, -1.0]])
    reference = -(told.min(axis=0) - 0.1 * np.ptp(told, axis=0))
    means, deviations = (np.array([1.5, 0.2, -0.5]), np.array([1.2, 1.9, 0.0])), (np.array([0.5, 0.3, 1.0]), np.array([0.4, 0.6, 0.5]))
    found = expected_hypervolume_improvement(means, deviations, told)
    before = moocore.hypervolume(-told, reference)
    for at in range(3):
        sampled = [
            moocore.hypervolume(-np.concatenate([told, draw[None]]), reference) - before
            for draw in rng.standard_normal((4000, 2)) * [deviations[0][at], deviations[1][at]] + [means[0][at], means[1][at]]
        ]
        assert abs(found[at] - np.mean(sampled)) < 4 * np.std(sampled) / np.sqrt(4000) + 1e-9


def test_the_normal_distribution_function_is_that_of_scipy():
    norm = pytest.importorskip("scipy.stats").norm
    x = np.linspace(-8, 8, 1001)
    assert np.abs(normal_cdf(x) - norm.cdf(x)).max() < 8e-8


def test_scores_depend_on_the_order_alone_and_ties_share_theirs():
    values = np.array([10.0, -5.0, 3.0, 3.0, 1e9])
    assert np.array_equal(normal_scores(values), normal_scores(np.exp(np.minimum(values, 20))))
    assert normal_scores(values)[2] == normal_scores(values)[3]
    assert normal_scores(np.arange(9.0)) == pytest.approx(-normal_scores(-np.arange(9.0)))


def test_features_are_scaled_to_a_mean_squared_distance_of_one():
    rng = np.random.default_rng(0)
    block = Features(
        rng.integers(0, 2, (400, 5)).astype(np.float32),
        7 * rng.standard_normal((400, 2)).astype(np.float32),
        np.zeros((400, 0), np.float32),
    )
    points = Scale.of(block)(block)
    relation = points.to(points)
    assert points.structures == ("paths",)
    for name in ("choices", "paths"):
        assert relation.of(name)[0].mean() == pytest.approx(1, rel=1e-3)


# --- searches --------------------------------------------------------------------------------------------------------------------


def searched(strategy: Default, space, evaluate, evaluations: int, *, seed=0, batch=1) -> tuple[list[Trial], DefaultState]:
    state, trials = strategy.init(space), []
    while len(trials) < evaluations:
        asked = strategy.ask(state, min(batch, evaluations - len(trials)), Random(f"{seed}/{len(trials)}"), ())
        if not asked:
            break
        told = [Trial(len(trials) + at, arch, evaluate(arch)) for at, arch in enumerate(asked)]
        state, trials = strategy.tell(state, told), trials + told
    return trials, state


def test_a_search_may_be_saved_and_loaded_at_any_trial():
    space = toy_space()
    evaluate = toy_evaluate(space)
    alone, _ = searched(Default(), space, evaluate, 24)
    for stop in (5, 12, 19):
        strategy = Default()
        content, arrays = strategy.save(strategy.tell(strategy.init(space), alone[:stop]))
        state = strategy.load(space, json.loads(json.dumps(content)), arrays)
        for number in range(stop, 24):
            [arch] = strategy.ask(state, 1, Random(f"0/{number}"), ())
            assert arch == alone[number].arch
            state = strategy.tell(state, [alone[number]])


def test_a_state_of_another_space_is_refused():
    strategy, other = Default(), Space((Decision("a", (1, 2)),))
    content, arrays = strategy.save(strategy.init(other))
    with pytest.raises(SpaceError, match=other.hash):
        strategy.load(toy_space(), content, arrays)


def test_it_finds_the_best_of_the_toy_space_long_before_chance_does():
    space = toy_space()
    evaluate = toy_evaluate(space)
    best = max(evaluate(arch)["accuracy"] for arch in space.enumerate())
    found = []
    for seed in range(6):
        trials, _ = searched(Default(), space, evaluate, 60, seed=seed, batch=2)
        found.append(next((trial.number for trial in trials if trial.metrics["accuracy"] == best), 60))
    assert np.mean(found) < 292 / 6  # chance needs half of 292, on average


def test_cells_that_compute_the_same_are_proposed_once_where_only_the_function_counts():
    space = space_of(zoo.network("nasbench201"))
    rows = np.array(space.indices(space.enumerate()))
    key = dict(zip(map(tuple, rows.tolist()), space.canonical_keys(rows).tolist(), strict=True))
    paths = space.features(rows).paths
    value = dict(zip(map(tuple, rows.tolist()), paths @ np.random.default_rng(0).standard_normal(paths.shape[1]), strict=True))
    trials, state = searched(Default(), space, lambda arch: {"accuracy": float(value[tuple(space.indices([arch])[0])])}, 40)
    keys = [key[tuple(space.indices([trial.arch])[0])] for trial in trials]
    best = state.settings[0][0]
    assert (best.mixture, best.structure) == (0, "paths"), "the model has found that paths say everything"
    assert len(set(keys)) == 40


def test_in_a_space_too_large_to_list_a_network_is_not_proposed_twice_in_two_writings():
    blocks = [OneOf(Conv(8, 1), Conv(8, 3), Identity(), by=Choice(("conv0", "conv1", "identity2"), f"/at{at}")) for at in range(12)]
    space = space_of(Network(Chain(*blocks), (8, 8, 8)))
    assert space.size == 3**12

    def computed(arch) -> tuple:
        return tuple(option for option in arch.values() if option != "identity2")

    def evaluate(arch) -> dict[str, float]:  # of two layers there are 4 networks, each in 66 writings
        return {"accuracy": -abs(len(computed(arch)) - 2) + 0.1 * computed(arch).count("conv1")}

    trials, _ = searched(Default(), space, evaluate, 60)
    assert len({computed(trial.arch) for trial in trials}) == 60


def test_what_is_told_and_pending_may_lie_outside_of_the_budget():
    space = toy_space()
    cost, evaluate = toy_macs(space), toy_evaluate(space)
    inside = within(space, [Limit(cost, cost.maximum()[0] // 2)])
    over = [arch for arch in space.enumerate() if cost(arch) > cost.maximum()[0] // 2]
    strategy = Default()
    state = strategy.tell(strategy.init(inside), [Trial(at, arch, evaluate(arch)) for at, arch in enumerate(over[:14])])
    asked = strategy.ask(state, 8, Random(0), pending=over[14:18])
    assert len(set(asked)) == 8
    assert all(cost(arch) <= cost.maximum()[0] // 2 for arch in asked)
    assert len(strategy.ask(state, inside.size + 1, Random(0), pending=over[14:18])) == inside.size, (
        "and it ends where the budget's part does"
    )


def test_settings_follow_from_the_trials_and_are_not_saved():
    space = toy_space()
    _, state = searched(Default(), space, toy_evaluate(space), 30)
    content, arrays = Default().save(state)
    assert content == {"space": space.hash}
    assert set(arrays) == {"rows", "values", "status"}
    restored = Default().load(space, content, arrays)
    assert restored.settings == state.settings
    assert len(restored.settings[0]) > 1


def test_what_was_cut_has_no_part_in_the_best_so_far():
    space = toy_space()
    evaluate = toy_evaluate(space)
    archs = list(space.enumerate())
    told = [Trial(at, arch, evaluate(arch)) for at, arch in enumerate(archs[:20])]
    cut = [Trial(20 + at, arch, {}, status="cut") for at, arch in enumerate(archs[20:60])]
    strategy = Default()
    state = strategy.tell(strategy.init(space), told + cut)
    view = _View(strategy, state, np.zeros((0, len(space)), dtype=np.int32), np.random.default_rng(0))
    expected = normal_scores(np.array([trial.metrics["accuracy"] for trial in told]))
    assert view.scores[0][:20] == pytest.approx(expected)
    assert (view.scores[0][20:] == -np.inf).all()


def test_decisions_of_thousands_of_options_take_little_memory():
    space = Space((Decision("a", tuple(range(6_000))), Decision("b", tuple(f"o{at}" for at in range(1_000)))))
    tracemalloc.start()
    trials, _ = searched(
        Default(), space, lambda arch: {"accuracy": arch["a"] / 6_000 - abs(int(arch["b"][1:]) - 900) / 1_000}, 16, batch=4
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(trials) == 16
    assert peak < 1e9  # bytes; neighbours are drawn, all of them would be 7,000 rows of 7,000 columns, of four parents


def test_shares_of_a_limit_may_be_of_any_size():
    space = toy_space()
    evaluate = toy_evaluate(space)
    tiny = Objective("accuracy", (measured("watts") <= 1e-300,))
    trials, state = searched(Default(tiny), space, lambda arch: evaluate(arch) | {"watts": 1.0 + evaluate(arch)["macs"]}, 24)
    assert len(trials) == 24
    assert all(np.isfinite(setting.weight) for column in state.settings for setting in column)


def test_a_budget_is_kept_in_a_space_of_10_to_45_and_the_search_improves():
    network = zoo.network("fbnetv2")
    space, cost = space_of(network), count_macs(network)
    limited = within(space, [Limit(cost, 60_000_000)])
    weights = np.random.default_rng(0).standard_normal(len(space))
    trials, _ = searched(Default(), limited, lambda arch: {"accuracy": float(weights @ space.indices([arch])[0])}, 30, batch=3)
    assert all(cost(trial.arch) <= 60_000_000 for trial in trials)
    assert len({trial.arch for trial in trials}) == 30
    quality = [trial.metrics["accuracy"] for trial in trials]
    assert max(quality[10:]) > max(quality[:10])
    assert np.mean(quality[20:]) > np.mean(quality[:10])


def test_a_limit_on_a_measured_metric_is_learned():
    space = toy_space()
    evaluate, strategy = toy_evaluate(space), Default(Objective("accuracy", (measured("time") <= 300,)))
    cost = toy_macs(space)
    share = np.mean([cost(arch) <= 300 for arch in space.enumerate()])
    best = max(evaluate(arch)["accuracy"] for arch in space.enumerate() if cost(arch) <= 300)
    trials, _ = searched(strategy, space, lambda arch: {**evaluate(arch), "time": float(cost(arch))}, 50)
    kept = [trial for trial in trials if trial.metrics["time"] <= 300]
    assert len([trial for trial in kept if trial.number >= 10]) / 40 > 2.5 * share  # of 51 that there are, it leaves few for later
    assert max(trial.metrics["accuracy"] for trial in kept) == best


def test_scores_are_those_of_what_keeps_the_limits():
    values = np.array([5.0, 1.0, 9.0, 3.0, 3.5, 100.0, -7.0, 3.0])
    kept = np.array([True, True, False, True, False, False, False, True])
    scores = normal_scores_among(values, kept)
    assert np.allclose(scores[kept], normal_scores(values[kept]))
    assert scores[4] == pytest.approx(0.75 * scores[3] + 0.25 * scores[0])
    assert scores[2] == scores[5] == scores[0] + 0.5
    assert scores[6] == scores[1] - 0.5
    assert np.allclose(normal_scores_among(np.array([2.0, 2.0, 4.0]), np.array([True, True, False])), [0, 0, 0.5])


def test_a_share_of_a_limit_is_learned_as_it_is_but_for_what_is_far_off():
    strategy = Default(Objective("accuracy", (measured("time") <= 300,)))
    values = np.array([[0.1, 0.0], [0.2, 0.5], [0.3, 2.0], [0.4, 1e12]])
    assert np.allclose(strategy.targets(values, np.ones(4, dtype=np.int8), 1), [0, 0.5, 2.0, 21.0])


def test_failures_are_learned_from():
    space = toy_space()
    evaluate, strategy = toy_evaluate(space), Default()
    state, failed, trials = strategy.init(space), [], 0
    while trials < 60:
        [arch] = strategy.ask(state, 1, Random(trials), ())
        fails = arch["block0.width"] == 16  # half of all
        failed.append(fails)
        state = strategy.tell(state, [Trial(trials, arch, {} if fails else evaluate(arch), status="failed" if fails else "ok")])
        trials += 1
    assert np.mean(failed[20:]) < 0.25


def test_what_was_cut_is_not_held_against_an_architecture_and_not_asked_for_again():
    space = toy_space()
    _, state = searched(Default(), space, toy_evaluate(space), 14)
    cut = Trial(14, Default().ask(state, 1, Random(0), ())[0], status="cut")
    after = Default().tell(state, [cut])
    assert cut.arch not in Default().ask(after, 20, Random(0), ())
    # what is believed of the others follows from the trials that came to an end
    beliefs = [_View(Default(), of, np.zeros((0, len(space)), dtype=np.int32), np.random.default_rng(0)) for of in (state, after)]
    assert np.allclose(beliefs[0].beliefs[0][0].mean, beliefs[1].beliefs[0][0].mean)


def test_where_there_is_nothing_to_choose_the_only_architecture_is_proposed_once():
    strategy = Default()
    for space in (Space(()), Space((Decision("a", (1,)),))):
        state = strategy.init(space)
        [arch] = strategy.ask(state, 3, Random(0), ())
        assert strategy.ask(strategy.tell(state, [Trial(0, arch, {"accuracy": 0.5})]), 3, Random(1), ()) == []


def test_a_batch_larger_than_the_shortlist_repeats_nothing():
    space = toy_space()
    state = Default().tell(Default().init(space), searched(Default(), space, toy_evaluate(space), 12)[0])
    assert len(set(Default().ask(state, 400, Random(0), ()))) == space.size - 12


def test_two_objectives_reach_most_of_the_front():
    moocore = pytest.importorskip("moocore")
    space = toy_space()
    evaluate = toy_evaluate(space)

    def volume(trials) -> float:
        points = np.array([[-m["accuracy"], m["macs"]] for m in trials])
        return moocore.hypervolume(points, [0.0, toy_macs(space).maximum()[0] + 1])

    everything = volume([evaluate(arch) for arch in space.enumerate()])

    def share(strategy, seed) -> float:
        trials, _ = searched(strategy, space, evaluate, 50, seed=seed)
        return volume([trial.metrics for trial in trials]) / everything

    ours, chance = ([share(strategy, seed) for seed in range(4)] for strategy in (ACCURATE_AND_SMALL, RandomSearch()))
    assert np.mean(ours) > 0.97
    assert 1 - np.mean(ours) < 0.5 * (1 - np.mean(chance))


def test_where_nothing_told_keeps_a_limit_that_nothing_is_known_about_it_still_proposes():
    space = toy_space()
    archs = list(space.enumerate())
    strategy = Default(Objective("accuracy", (measured("ms") <= 1,)))
    state = strategy.tell(strategy.init(space), [Trial(number, archs[number], {}, status="failed") for number in range(24)])
    state = strategy.tell(state, [Trial(24, archs[24], {"accuracy": 0.5, "ms": 3.0})])
    [arch] = strategy.ask(state, 1, Random(0), ())
    assert arch not in archs[:25]
