"""Rewards, devices, multipliers, hypervolume: against hand values, finite differences, brute force and pymoo."""

import json
import math
from dataclasses import replace
from itertools import combinations, pairwise
from random import Random

import numpy as np
import pytest
from pymoo.indicators.hv import HV

from niwaki.objective import (
    FORMS,
    Absolute,
    AugmentedLagrangian,
    Chance,
    CVaR,
    Frame,
    Hinge,
    HypervolumeGain,
    Joint,
    Lagrangian,
    Linear,
    Logarithm,
    LossProduct,
    Mean,
    Minimax,
    Objective,
    ObjectiveError,
    Product,
    Rejection,
    SmoothWorst,
    Spent,
    Worst,
    cheaper,
    epsilon_indicator,
    geometric_bounds,
    hypervolume,
    hypervolume_gain,
    macs,
    measured,
    mnasnet_hard,
    mnasnet_soft,
    params,
    pareto_front,
    parse_across,
    parse_form,
    parse_limit,
    slope_test,
    sweep,
)
from niwaki.space.choice import BudgetError
from niwaki.testing.toy import toy_space
from niwaki.trial import Trial

ARCH = next(toy_space().enumerate())
PLAIN = {**{name: form for name, form in FORMS.items() if callable(form)}, "linear": Linear(1e-3)}  # forms without a state
ADAPTIVE = {name: form for name, form in FORMS.items() if not callable(form)}


def quality_for(form):
    return -0.8 if isinstance(form, LossProduct) else 0.8


def trial(number, **metrics):
    return Trial(number, ARCH, metrics)


# ---------------------------------------------------------------- rewards


def test_every_form_has_its_published_value():
    over, under = [Spent(150.0, 100.0)], [Spent(50.0, 100.0)]
    assert mnasnet_soft(0.8, over) == pytest.approx(0.8 * 1.5**-0.07)
    assert mnasnet_soft(0.8, under) == pytest.approx(0.8 * 2**0.07) == pytest.approx(0.8 * 1.0497, rel=1e-4), "half the cost: +5.0 %"
    assert mnasnet_soft(0.8, [Spent(200, 100)]) == pytest.approx(0.8 * (1 - 0.0474), rel=1e-4), "twice the cost: -4.7 %"
    assert (mnasnet_hard(0.8, over), mnasnet_hard(0.8, under)) == (pytest.approx(0.8 / 1.5), 0.8)
    assert Product(0, -0.3)(0.8, over) == pytest.approx(0.8 * min(1, 1.5**-0.3)), "TuNAS's mnas_hard"
    assert (Absolute()(0.8, over), Absolute()(0.8, under)) == (pytest.approx(0.75), pytest.approx(0.75))
    assert (Hinge(-0.1)(0.8, over), Hinge(-0.1)(0.8, under)) == (pytest.approx(0.75), 0.8)
    assert (Rejection(0.0)(0.8, over), Rejection()(0.8, under)) == (0.0, 0.8)
    assert Linear(0.001)(0.8, over) == pytest.approx(0.65)
    assert Logarithm(0.1)(0.8, over) == pytest.approx(0.8 - 0.1 * math.log(1.5))
    assert LossProduct()(-0.8, over) == pytest.approx(-0.8 * 0.2 * math.log(2.5) ** 0.6)


@pytest.mark.parametrize("name", PLAIN)
def test_without_limits_every_reward_is_the_quality(name):
    form = PLAIN[name]
    expected = 0.2 * quality_for(form) if isinstance(form, LossProduct) else quality_for(form)
    assert form(quality_for(form), []) == pytest.approx(expected)


@pytest.mark.parametrize("name", [*PLAIN, *ADAPTIVE])
def test_the_slope_over_log_cost_is_the_one_that_the_form_promises(name):
    form = {**PLAIN, **ADAPTIVE}[name]
    state = {
        "multipliers": [0.3],
        "excess": [0.0],
        "penalty": 2.0,
        "violation": None,
        "weights": [1.0],
        "limits": 1,
        "points": [],
        "seen": 3,
        "mean": 0.5,
        "squares": 0.2,
    }  # of all forms
    for ratio in (0.3, 0.7, 1.4, 1.9):

        def reward(log_ratio, form=form):
            spent = [Spent(100 * math.exp(log_ratio), 100.0)]
            quality = quality_for(form)
            return form(quality, spent) if callable(form) else form.reward(quality, spent, state)

        at, quality = math.log(ratio), quality_for(form)
        slope = {
            "mnasnet-soft": -0.07 * quality * ratio**-0.07,
            "mnasnet-hard": -quality / ratio if ratio > 1 else 0.0,
            "tunas-absolute": -0.1 * ratio * math.copysign(1, ratio - 1),
            "hinge": -ratio if ratio > 1 else 0.0,
            "rejection": 0.0,
            "linear": -1e-3 * 100 * ratio,
            "logarithm": -0.1,
            "fbnet-product": quality * 0.2 * 0.6 * math.log1p(ratio) ** -0.4 * ratio / (1 + ratio),
            "chance": 0.0,
            "lagrangian": -0.3 * ratio,
            "augmented-lagrangian": -max(0.0, 0.3 + 2 * (ratio - 1)) * ratio,
            "minimax": -0.1 * ratio * math.copysign(1, ratio - 1),
            "hypervolume": -quality * ratio,
            "feasible-first": -1 / ratio if ratio > 1 else 0.0,
        }[name]
        if name == "rejection":
            form = Rejection(0.0)
        assert (reward(at + 1e-6, form) - reward(at - 1e-6, form)) / 2e-6 == pytest.approx(slope, abs=1e-4)


@pytest.mark.parametrize("name", [*PLAIN, *ADAPTIVE])
def test_another_unit_of_the_cost_changes_no_reward_but_the_linear_one(name):
    form, rng = {**PLAIN, **ADAPTIVE}[name], Random(0)
    if name == "rejection":
        form = Rejection(0.0)
    for _ in range(50):
        costs, target = [rng.randrange(1, 10**6) for _ in range(5)], rng.randrange(1, 10**6)
        objectives = [
            Objective("-loss" if name == "fbnet-product" else "accuracy", [measured("cost") <= target * unit], form) for unit in (1, 1000)
        ]
        rewards = []
        for objective, unit in zip(objectives, (1, 1000), strict=True):
            seen = [{"accuracy": 0.8, "loss": 0.8, "cost": cost * unit} for cost in costs]
            state = objective.update(objective.init(), seen[:4])
            rewards.append([objective.reward(metrics, state) for metrics in seen])
        assert (rewards[0] == rewards[1]) == (name != "linear")


def test_the_default_form_puts_all_that_is_feasible_first_in_the_order_of_quality_whatever_its_unit():
    rng = Random(1)
    seen = [{"accuracy": rng.gauss(0.7, 0.1), "cost": rng.uniform(1, 300)} for _ in range(60)]
    rewards = {}
    for unit in (1, 100, -1e6):
        objective = Objective("accuracy" if unit > 0 else "-accuracy", [measured("cost") <= 100])
        told = [{**metrics, "accuracy": unit * metrics["accuracy"]} for metrics in seen]
        state = objective.update(objective.update(objective.init(), told[:20]), told[20:])
        rewards[unit] = [objective.reward(metrics, state) for metrics in told]
    by_hand = [(m["accuracy"] - np.mean([one["accuracy"] for one in seen])) / np.std([one["accuracy"] for one in seen]) for m in seen]
    feasible = [metrics["cost"] <= 100 for metrics in seen]
    assert [r for r, kept in zip(rewards[1], feasible, strict=True) if kept] == pytest.approx(
        [max(-2.0, z) for z, kept in zip(by_hand, feasible, strict=True) if kept]
    )
    over = sorted((m["cost"], r) for m, r, kept in zip(seen, rewards[1], feasible, strict=True) if not kept)
    assert [r for _, r in over] == sorted((r for _, r in over), reverse=True)
    assert all(-3 < r < -2 for _, r in over)
    assert rewards[100] == pytest.approx(rewards[1], rel=1e-9)
    assert rewards[-1e6] == pytest.approx(rewards[1], rel=1e-6)
    assert Objective("accuracy").reward({"accuracy": 90.0}) == 90.0, "without limits it is the quality"
    with pytest.raises(ObjectiveError, match=r"FeasibleFirst rewards by what was seen before"):
        Objective("accuracy", [macs <= 100]).reward({"accuracy": 0.5, "macs": 50})


def test_a_reward_that_cannot_be_is_an_error_that_says_why():
    objective = Objective("-rmse", [macs <= 100], mnasnet_soft)
    with pytest.raises(ObjectiveError, match=r"below 0.*tunas-absolute"):
        objective.reward({"rmse": 0.5, "macs": 50})
    with pytest.raises(ObjectiveError, match=r"fbnet-product is of a loss"):
        Objective("accuracy", [macs <= 100], LossProduct()).reward({"accuracy": 0.5, "macs": 50})
    with pytest.raises(ObjectiveError, match=r"costs above 0"):
        replace(objective, maximize="accuracy").reward({"accuracy": 0.5, "macs": 0})
    with pytest.raises(ObjectiveError, match=r"macs = -1 is no cost"):
        objective.reward({"rmse": 0.5, "macs": -1})
    with pytest.raises(ObjectiveError, match=r"macs = nan is no cost"):
        objective.feasible({"rmse": 0.5, "macs": math.nan})
    with pytest.raises(ObjectiveError, match=r"draw again"):
        replace(objective, form=Rejection()).reward({"rmse": 0.5, "macs": 101})
    with pytest.raises(ObjectiveError, match=r"the reward of rmse = 0.5, macs = 50 is nan; a reward is a finite number"):
        replace(objective, form=lambda quality, spent: math.nan).reward({"rmse": 0.5, "macs": 50})
    with pytest.raises(ObjectiveError, match=r"Lagrangian rewards by what was seen before; hand in the state"):
        replace(objective, form=Lagrangian()).reward({"rmse": 0.5, "macs": 50})
    with pytest.raises(ObjectiveError, match=r"beta=0.1.*not above 0"):
        Absolute(beta=0.1)
    with pytest.raises(ObjectiveError, match=r"maximizes a metric"):
        Objective("-")


def test_a_metric_to_be_small_is_written_with_a_minus_and_never_decides_by_the_reward():
    objective = Objective("-rmse", [macs <= 100], Absolute(-10.0))
    good, near = {"rmse": 0.1, "macs": 20}, {"rmse": 0.2, "macs": 100}
    assert objective.reward(near) > objective.reward(good), "the absolute reward draws to the target"
    assert objective.better(good, near), "the final pick does not"
    assert objective.best([trial(0, **near), trial(1, **good)]).number == 1
    assert [one.number for one in cheaper(trial(0, **near), [trial(0, **near), trial(1, **good)], objective)] == [1]


def test_a_predicted_cost_keeps_a_margin():
    limit = parse_limit("latency(onnxruntime) + 2 std <= 2 ms")
    assert (limit.margin, str(limit)) == (2.0, "latency(onnxruntime)+2std<=2ms")
    assert parse_limit(str(limit)) == limit
    assert parse_limit("pixel3+std<=4", ["pixel3"]).margin == 1
    sure, unsure = ({"latency_ms(onnxruntime)": 1.8, "latency_ms(onnxruntime) std": std} for std in (0.1, 0.11))
    assert Objective(subject_to=[limit]).feasible(sure)
    assert not Objective(subject_to=[limit]).feasible(unsure)
    with pytest.raises(ObjectiveError, match=r"needs the metric 'latency_ms.onnxruntime. std'"):
        limit.ratio({"latency_ms(onnxruntime)": 1.0})
    with pytest.raises(BudgetError, match=r"counted exactly"):
        parse_limit("macs+2std<=100")


def test_a_column_of_a_table_can_be_limited():
    limit = parse_limit("pixel3<=4", ["pixel3", "eyeriss"])
    assert (limit.metric, limit.upper, str(limit)) == ("pixel3", 4.0, "pixel3<=4")
    assert limit == (measured("pixel3") <= 4)
    with pytest.raises(BudgetError, match=r"'pixel' is no resource .did you mean pixel3.*there are macs.*pixel3, eyeriss"):
        parse_limit("pixel<=4", ["pixel3", "eyeriss"])
    with pytest.raises(BudgetError, match=r"'ms' is no unit of pixel3; it is a plain number, or in %"):
        parse_limit("pixel3<=4ms", ["pixel3"])


def test_forms_and_ways_over_devices_are_read_from_text():
    assert parse_form("tunas-absolute:beta=-0.2") == Absolute(-0.2)
    assert parse_form("mnasnet-hard") == mnasnet_hard
    assert parse_form("mnasnet-hard:beyond=-0.3") == Product(0, -0.3)
    assert parse_form("lagrangian:rate=0.1, two_sided=true") == Lagrangian(rate=0.1, two_sided=True)
    assert parse_form("linear:price=0.1/0.2") == Linear((0.1, 0.2))
    assert parse_form("rejection:otherwise=0") == Rejection(0.0)
    assert {name: parse_form(name) for name in FORMS if name != "linear"} == {name: FORMS[name] for name in FORMS if name != "linear"}
    assert parse_across("mean:weights=1/3") == Mean((1, 3))
    assert parse_across("cvar:level=0.25") == CVaR(0.25)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tunas-abs", "'tunas-abs' is no reward .did you mean tunas-absolute.*there are mnasnet-soft"),
        ("tunas-absolute:gamma=1", "'gamma=1' is no setting of tunas-absolute; it has beta="),
        ("tunas-absolute:beta", "'beta' is no setting"),
        ("tunas-absolute:beta=-1,beta=-2", "'beta' is given twice"),
        ("tunas-absolute:beta=much", "beta=much is no number"),
        ("tunas-absolute:beta=0.1", "not above 0"),
        ("tunas-absolute:beta=nan", "beta=nan"),
        ("linear", "linear needs price="),
        ("lagrangian:two_sided=1", "true or false"),
        ("", "'' is no reward"),
    ],
)
def test_what_is_no_reward_is_refused_with_what_is_possible(text, says):
    with pytest.raises(ObjectiveError, match=says):
        parse_form(text)


# ---------------------------------------------------------------- devices

TABLE = np.array([[10.0, 30.0, 200.0], [20.0, 20.0, 100.0], [5.0, 60.0, 150.0], [40.0, 10.0, 50.0]])  # milliseconds, 4 networks x 3 devices
REFERENCE = (20.0, 30.0, 100.0)
DEVICES = ("a", "b", "c")


def on_devices(across, scale=(1.0, 1.0, 1.0)):
    limits = [measured(name) <= reference * by for name, reference, by in zip(DEVICES, REFERENCE, scale, strict=True)]
    joint = Joint(tuple(limits), across)
    return [joint.ratio(dict(zip(DEVICES, row * np.array(scale), strict=True))) for row in TABLE]


def test_devices_are_joined_as_by_hand_and_units_of_one_of_them_do_not_matter():
    by_hand = {
        Mean(): [3.5 / 3, (1 + 2 / 3 + 1) / 3, 3.75 / 3, (2 + 1 / 3 + 0.5) / 3],
        Mean((2, 1, 1)): [4.0 / 4, (2 + 2 / 3 + 1) / 4, 4.0 / 4, (4 + 1 / 3 + 0.5) / 4],
        Worst(): [2.0, 1.0, 2.0, 2.0],
        CVaR(0.0): [3.5 / 3, (1 + 2 / 3 + 1) / 3, 3.75 / 3, (2 + 1 / 3 + 0.5) / 3],
        CVaR(0.5): [(2 + 0.5 * 1) / 1.5, 1.0, (2 + 0.5 * 1.5) / 1.5, (2 + 0.5 * 0.5) / 1.5],
        CVaR(0.9): [2.0, 1.0, 2.0, 2.0],
        SmoothWorst(0.1): [0.1 * math.log(np.mean(np.exp(10 * row / REFERENCE))) for row in TABLE],
    }
    for across, expected in by_hand.items():
        assert on_devices(across) == pytest.approx(expected, rel=1e-12), across
        assert on_devices(across, (1000.0, 1.0, 1.0)) == pytest.approx(expected, rel=1e-12), across


def test_the_smooth_worst_case_lies_between_the_mean_and_the_worst_and_reaches_both():
    rng = np.random.default_rng(0)
    for _ in range(100):
        ratios = rng.uniform(0.1, 3, size=rng.integers(1, 6)).tolist()
        smooth = [SmoothWorst(temperature)(ratios) for temperature in (1e-4, 0.1, 1.0, 1e4)]
        assert all(a >= b - 1e-12 for a, b in pairwise([max(ratios), *smooth, float(np.mean(ratios))]))
        assert smooth[0] == pytest.approx(max(ratios), abs=1e-3)
        assert smooth[-1] == pytest.approx(np.mean(ratios), abs=1e-3)


def test_cvar_is_the_least_over_thresholds_of_rockafellar_and_uryasev():
    rng = np.random.default_rng(1)
    for _ in range(200):
        ratios, level = rng.uniform(0, 3, size=rng.integers(1, 7)), float(rng.uniform(0, 0.99))
        least = min(t + np.maximum(0, ratios - t).mean() / (1 - level) for t in ratios)
        assert CVaR(level)(ratios.tolist()) == pytest.approx(least, rel=1e-9)


def test_each_way_over_devices_finds_the_optimum_of_its_own():
    rng = np.random.default_rng(2)
    base = rng.uniform(0.5, 2, 500)
    costs = np.stack([base * 20, (2.5 - base) * rng.uniform(0.9, 1.1, 500) * 30], axis=1)  # the faster on one, the slower on the other
    trials = [trial(n, accuracy=0.9, a=row[0], b=row[1]) for n, row in enumerate(costs)]
    limits = (measured("a") <= 20, measured("b") <= 30)
    picked = {}
    for across in (Mean(), Worst()):
        objective = Objective("accuracy", [Joint(limits, across)], Hinge())
        best = max(trials, key=lambda one, objective=objective: objective.reward(one.metrics))
        picked[type(across)] = best.metrics
    ratios = costs / np.array([20, 30])
    worst, mean = ({kind: Joint(limits, across()).ratio(m) for kind, m in picked.items()} for across in (Worst, Mean))
    assert worst[Worst] < worst[Mean]
    assert mean[Mean] < mean[Worst]
    assert worst[Worst] == pytest.approx(ratios.max(1).min())
    assert mean[Mean] == pytest.approx(ratios.mean(1).min())


def test_hard_caps_are_never_exceeded_and_the_device_that_binds_is_named():
    rng = np.random.default_rng(3)
    infeasible = 0
    for _ in range(200):
        costs, quality = rng.uniform(0.5, 2, (30, 3)), rng.uniform(0, 1, 30)
        caps = [measured(name) <= float(cap) for name, cap in zip(DEVICES, rng.uniform(0.45, 1.5, 3), strict=True)]
        objective = Objective("accuracy", caps, Absolute(-0.1), toward=[Joint(tuple(measured(name) <= 1.0 for name in DEVICES), Mean())])
        trials = [
            trial(n, accuracy=q, **dict(zip(DEVICES, row, strict=True))) for n, (q, row) in enumerate(zip(quality, costs, strict=True))
        ]
        kept = (costs <= [cap.upper for cap in caps]).all(1)
        if kept.any():
            assert objective.best(trials).number == np.flatnonzero(kept)[quality[kept].argmax()]
        else:
            infeasible += 1
            never = [name for name, cap, row in zip(DEVICES, caps, costs.T, strict=True) if (row > cap.upper).all()]
            with pytest.raises(ObjectiveError, match=r"none of 30 trials") as error:
                objective.best(trials)
            said = str(error.value).rpartition("; ")[2]
            if never:
                assert all((f"{name}<=" in said) == (name in never) for name in DEVICES), said
            else:
                assert "not all by one" in said
    assert infeasible >= 20
    metrics = trials[0].metrics
    assert objective.reward(metrics) == pytest.approx(metrics["accuracy"] - 0.1 * abs(costs[0].mean() - 1))


def test_the_worst_case_keeps_all_devices_where_the_mean_gives_one_up():
    rng = np.random.default_rng(4)
    size = rng.uniform(0.3, 1.7, 400)
    lean = rng.uniform(-0.5, 0.5, (400, 3))
    ratios = size[:, None] * (1 + lean - lean.mean(1, keepdims=True))  # the mean ratio is the size, the better the larger
    trials = [
        trial(n, accuracy=0.5 + 0.2 * s + 0.1 * np.abs(row).max(), a=20 * r[0], b=30 * r[1], c=100 * r[2])
        for n, (s, row, r) in enumerate(zip(size, lean, ratios, strict=True))
    ]
    limits = tuple(measured(name) <= reference for name, reference in zip(DEVICES, REFERENCE, strict=True))

    def shares(picked):
        return [limit.ratio(picked.metrics) for limit in limits]

    worst, mean, each = (Objective(subject_to=to).best(trials) for to in ([Joint(limits, Worst())], [Joint(limits, Mean())], limits))
    assert max(shares(worst)) <= 1
    assert worst == each
    assert sum(share > 1 for share in shares(mean)) >= 1
    assert np.mean(shares(mean)) <= 1


def test_minimax_weights_find_the_worst_device():
    limits = [measured("a") <= 1.0, measured("b") <= 1.0]
    rng = np.random.default_rng(5)
    ratios = np.stack([x := rng.uniform(0.4, 1.8, 300), (2.0 - x) * rng.uniform(1, 1.2, 300)], axis=1)
    trials = [trial(n, accuracy=0.9, a=a, b=b) for n, (a, b) in enumerate(ratios)]
    objective = Objective("accuracy", limits, Minimax(Hinge(-1.0), rate=0.05))
    state, seen = objective.init(), []
    for _ in range(300):
        best = max(trials, key=lambda one: objective.reward(one.metrics, state))
        state = objective.update(state, [best.metrics])
        seen.append([best.metrics["a"], best.metrics["b"]])
    assert sum(state["weights"]) == pytest.approx(1)
    # the value of the game is between what the average play spends at worst, and the least worst of pure choices
    assert np.mean(seen, axis=0).max() <= ratios.max(1).min() * 1.02
    assert state["weights"][0] == pytest.approx(0.5, abs=0.2)


# ---------------------------------------------------------------- multipliers


def front_trials():
    """A concave front: quality 1 - 0.3 / x at the cost x, with others below it."""
    rng = np.random.default_rng(6)
    xs = np.linspace(0.3, 3, 200)
    front = [(1 - 0.3 / x, x) for x in xs]
    below = [(1 - 0.3 / x - d, x) for x, d in zip(rng.uniform(0.3, 3, 200), rng.uniform(0.01, 0.3, 200), strict=True)]
    return [trial(n, accuracy=q, cost=x) for n, (q, x) in enumerate(front + below)]


@pytest.mark.parametrize("form", [Lagrangian(rate=0.02, decay=0.5), AugmentedLagrangian()])
def test_multipliers_lead_to_the_constrained_optimum(form):
    trials, objective = front_trials(), Objective("accuracy", [measured("cost") <= 1.2], form)
    state = objective.init()
    for _ in range(150):
        found = max(trials, key=lambda one: objective.reward(one.metrics, state))
        state = objective.update(state, [found.metrics])
        assert json.loads(json.dumps(state)) == state
    best = objective.best(trials)
    assert found.metrics["cost"] == pytest.approx(1.2, rel=0.03)
    assert state["multipliers"][0] == pytest.approx(0.3 / 1.2**2 * 1.2, rel=0.1), "d quality / d (cost / limit) at the limit"
    assert abs(objective.quality(found.metrics) - objective.quality(best.metrics)) < 0.01


def test_multipliers_stay_at_zero_within_the_limit_and_below_their_most():
    objective = Objective("accuracy", [macs <= 100], Lagrangian(rate=1.0, most=3.0))
    within = objective.update(objective.init(), [{"accuracy": 0.5, "macs": 40}])
    assert within["multipliers"] == [0.0]
    assert objective.reward({"accuracy": 0.5, "macs": 40}, within) == 0.5
    state = objective.init()
    for _ in range(20):
        state = objective.update(state, [{"accuracy": 0.5, "macs": 200}])
    assert state["multipliers"] == [3.0]
    two_sided = replace(objective, form=Lagrangian(rate=1.0, two_sided=True))
    assert two_sided.update(two_sided.init(), [{"accuracy": 0.5, "macs": 40}])["multipliers"] == [pytest.approx(-0.6)]


def test_the_penalty_doubles_where_the_violation_does_not_fall_by_a_quarter():
    form = AugmentedLagrangian(most=4.0, tolerance=0.0)
    state, penalties = form.init(1), []
    for ratio in (2.0, 1.74, 1.70, 1.69, 1.0, 1.0):
        state = form.update(state, [(0.5, [Spent(ratio, 1.0)])])
        penalties.append(state["penalty"])
    assert penalties == [1.0, 1.0, 2.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize("seed", [12, 13])
def test_a_policy_under_a_chance_constraint_keeps_the_limit_as_often_as_asked(seed):
    rng = np.random.default_rng(seed)
    options = np.array(np.meshgrid(*[np.arange(4)] * 5)).reshape(5, -1).T  # 1,024 architectures
    gains, prices = np.sort(rng.uniform(0, 0.2, (5, 4)), axis=1), np.sort(rng.integers(1, 30, (5, 4)), axis=1)
    quality, cost = gains[np.arange(5), options].sum(1), prices[np.arange(5), options].sum(1)
    target = float(np.quantile(cost, 0.3))
    objective = Objective("accuracy", [measured("cost") <= target], Chance(share=0.9))
    logits, state = np.zeros((5, 4)), objective.init()

    def draw(count):
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        picked = (rng.random((count, 5, 1)) > p.cumsum(1)[None, :, :3]).sum(2)
        return picked, p, gains[np.arange(5), picked].sum(1), prices[np.arange(5), picked].sum(1)

    for step in range(3000):
        picked, p, q, c = draw(128)
        seen = [{"accuracy": float(a), "cost": float(b)} for a, b in zip(q, c, strict=True)]
        rewards = np.array([objective.reward(metrics, state) for metrics in seen])
        advantage = rewards - rewards.mean()
        score = (picked[:, :, None] == np.arange(4)) - p  # REINFORCE, with a little entropy so that the policy stays one
        entropy = -p * (np.log(p) - (p * np.log(p)).sum(1, keepdims=True))
        logits += (advantage[:, None, None] * score).mean(0) + 0.05 * entropy
        slower = Chance(share=0.9, rate=0.004)
        state = (objective if step < 2000 else replace(objective, form=slower)).update(state, seen)
    *_, fresh, spent = draw(20_000)
    assert (spent <= target).mean() == pytest.approx(0.9, abs=0.02)
    assert fresh.mean() > quality[cost <= target].mean() + 0.05, "and quality is what it spends the rest on"
    assert spent.std() > 1


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_state_read_back_goes_on_with_the_same_rewards(name):
    objective, rng = Objective("accuracy", [macs <= 100, params <= 10], ADAPTIVE[name]), Random(7)
    batches = [
        [{"accuracy": rng.random(), "macs": rng.randrange(50, 150), "params": rng.randrange(5, 15)} for _ in range(4)] for _ in range(12)
    ]
    whole = objective.init()
    for batch in batches:
        whole = objective.update(whole, batch)
    part = objective.init()
    for number, batch in enumerate(batches):
        part = objective.update(json.loads(json.dumps(part)) if number % 5 == 4 else part, batch)
    assert part == whole
    assert [objective.reward(m, part) for m in batches[0]] == [objective.reward(m, whole) for m in batches[0]]
    if name not in ("hypervolume", "feasible-first"):
        with pytest.raises(ObjectiveError, match=r"for 2 limits; the objective has 1"):
            replace(objective, subject_to=[macs <= 100]).reward(batches[0][0], whole)


# ---------------------------------------------------------------- fronts


def random_sets(count, seed=0):
    """Sets of points with duplicates, dominated ones, and ones beyond the reference."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        axes = 2 + number % 3
        points = rng.uniform(0, 1.3, (int(rng.integers(1, 25)), axes))
        if number % 4 == 0:
            points = np.round(points, 1)  # ties in single axes
        points = np.vstack([points, points[rng.integers(len(points), size=3)], points[:1] + 0.05])
        yield points, np.ones(axes)


def test_hypervolume_is_pymoos():
    for points, reference in random_sets(200):
        assert hypervolume(points, reference) == pytest.approx(float(HV(ref_point=reference)(points)), abs=1e-10)


def test_hypervolume_is_inclusion_and_exclusion_and_one_axis_is_a_length():
    rng = np.random.default_rng(8)
    for _ in range(20):
        points = rng.uniform(0, 1, (5, 3))
        boxes = [(-1) ** (k + 1) * np.prod(1 - np.max(chosen, axis=0)) for k in range(1, 6) for chosen in combinations(points, k)]
        assert hypervolume(points, [1, 1, 1]) == pytest.approx(sum(boxes), abs=1e-12)
    assert hypervolume([[0.25], [0.5], [2.0]], [1.0]) == 0.75
    assert hypervolume([[2.0]], [1.0]) == 0.0
    assert hypervolume([], [1.0, 1.0]) == 0.0
    with pytest.raises(ObjectiveError, match=r"do not fit a reference of 2"):
        hypervolume([[1.0, 2.0, 3.0]], [1.0, 1.0])
    with pytest.raises(ObjectiveError, match=r"finite"):
        hypervolume([[1.0, math.nan]], [1.0, 1.0])


def test_gains_telescope_to_the_hypervolume_and_never_fall_below_zero():
    for points, reference in random_sets(60, seed=1):
        gains = [hypervolume_gain(points[:n], points[n], reference) for n in range(len(points))]
        assert min(gains) >= -1e-12
        assert math.fsum(gains) == pytest.approx(hypervolume(points, reference), abs=1e-10)


def test_the_gain_as_a_reward_sums_to_the_hypervolume_of_the_search():
    objective, rng = Objective("accuracy", [macs <= 100], HypervolumeGain(worst_quality=0.1, worst_ratio=2.0)), Random(9)
    trials = [trial(n, accuracy=rng.random(), macs=rng.randrange(20, 260)) for n in range(60)]
    state, total = objective.init(), 0.0
    for one in trials:
        total += objective.reward(one.metrics, state)
        state = objective.update(state, [one.metrics])
    points = np.array([[-one.metrics["accuracy"], one.metrics["macs"] / 100] for one in trials])
    assert total == pytest.approx(float(HV(ref_point=np.array([-0.1, 2.0]))(points)), abs=1e-10)
    inside = [one for one in pareto_front(trials, objective) if one.metrics["macs"] < 200 and one.metrics["accuracy"] > 0.1]
    assert sorted(state["points"]) == sorted([-one.metrics["accuracy"], one.metrics["macs"] / 100] for one in inside)


def test_a_frame_is_fixed_beforehand_and_says_what_it_measured():
    rng = Random(10)
    known = [{"accuracy": rng.uniform(0.2, 0.9), "latency_ms": rng.uniform(1, 50)} for _ in range(40)]
    frame = Frame.around(known, ("accuracy", "-latency_ms"), log=("-latency_ms",))
    assert Frame.from_json(json.loads(json.dumps(frame.to_json()))) == frame
    qualities, times = [m["accuracy"] for m in known], [m["latency_ms"] for m in known]
    assert frame.best == (max(qualities), min(times))
    assert frame.worst[0] == pytest.approx(min(qualities) - 0.1 * (max(qualities) - min(qualities)))
    assert frame.worst[1] == pytest.approx(max(times) * (max(times) / min(times)) ** 0.1)
    assert frame.point({"accuracy": frame.best[0], "latency_ms": frame.worst[1]}) == pytest.approx((0, 1))
    assert frame.hypervolume([{"accuracy": frame.best[0], "latency_ms": frame.best[1]}]) == pytest.approx(1)
    assert frame.hypervolume([]) == 0
    assert 0 < frame.hypervolume(known) < 1
    middle = math.sqrt(frame.best[1] * frame.worst[1])
    assert frame.point({"accuracy": 0.5, "latency_ms": middle})[1] == pytest.approx(0.5)
    for wrong, says in (
        (lambda: Frame(("a",), (1.0,), (2.0,)), "must be above the worst"),
        (lambda: Frame(("-a",), (2.0,), (1.0,)), "must be below the worst"),
        (lambda: Frame(("-a",), (1.0,), (2.0,), ("b",)), "cannot be logarithmic"),
        (lambda: Frame.around([{"a": 1.0}], ("a",)), "no range"),
        (lambda: Frame.around([], ("a",)), "there are none"),
        (lambda: Frame.around([{"a": 0.0}, {"a": 1.0}], ("-a",), log=("-a",)), "logarithmic axis all are above 0"),
    ):
        with pytest.raises(ObjectiveError, match=says):
            wrong()


def test_the_epsilon_indicator_is_how_far_a_set_must_move():
    assert epsilon_indicator([[0.2, 0.8], [0.8, 0.2]], [[0.1, 0.7]]) == pytest.approx(0.1)
    assert epsilon_indicator([[0.0, 0.0]], [[0.1, 0.7], [0.5, 0.2]]) == pytest.approx(-0.1)


def test_a_front_of_several_metrics_is_what_no_trial_dominates():
    rng = Random(11)
    trials = [trial(n, accuracy=rng.randrange(6), f1=rng.randrange(6), latency_ms=rng.randrange(1, 6)) for n in range(60)]
    front = pareto_front(trials, ("-latency_ms", "accuracy", "f1"))

    def dominates(a, b):
        pairs = [(a.metrics[n] * s, b.metrics[n] * s) for n, s in (("accuracy", 1), ("f1", 1), ("latency_ms", -1))]
        return all(x >= y for x, y in pairs) and (any(x > y for x, y in pairs) or a.number < b.number)

    assert {one.number for one in front} == {b.number for b in trials if not any(dominates(a, b) for a in trials)}
    assert [one.metrics["latency_ms"] for one in front] == sorted(one.metrics["latency_ms"] for one in front)


# ---------------------------------------------------------------- slopes and sweeps


def test_the_slope_test_warns_of_a_beta_that_does_not_hold_the_cost():
    trials = front_trials()
    for upper in (0.6, 1.0, 2.0):
        weak = slope_test(trials, Objective("accuracy", [measured("cost") <= upper], Absolute(-0.001)))
        assert "too weak" in weak.warning
        assert weak.front == pytest.approx(0.3 / upper, rel=0.1), "d quality / d log cost of 1 - 0.3 / cost"
        strong = slope_test(trials, Objective("accuracy", [measured("cost") <= upper], Absolute(weak.suggested)))
        assert strong.warning == ""
        objective = Objective("accuracy", [measured("cost") <= upper], Absolute(weak.suggested))
        found = max(trials, key=lambda one, objective=objective: objective.reward(one.metrics))
        assert found.metrics["cost"] == pytest.approx(upper, rel=0.03)
    with pytest.raises(ObjectiveError, match=r"none is within it"):
        slope_test(trials, Objective("accuracy", [measured("cost") <= 0.1], Absolute()))
    with pytest.raises(ObjectiveError, match=r"for one limit and tunas-absolute"):
        slope_test(trials, Objective("accuracy", [measured("cost") <= 1], Hinge()))


def test_a_sweep_replaces_the_limit_and_finds_points_that_no_weight_can():
    objective = Objective("accuracy", [macs <= 7, params <= 10])
    swept = sweep(objective, macs, geometric_bounds(100, 400, 3))
    assert [[str(limit) for limit in one.subject_to] for one in swept] == [["params<=10", f"macs<={bound}"] for bound in (100, 200, 400)]
    concave = [trial(n, accuracy=1 - (1 - x) ** 0.4, macs=1 + 99 * x) for n, x in enumerate(np.linspace(0, 1, 21))]  # a dent in the front
    by_sweep = {one.best(concave).number for one in sweep(Objective("accuracy"), macs, range(1, 102, 5))}
    by_weight = {
        max(concave, key=lambda one, w=w: one.metrics["accuracy"] - w * one.metrics["macs"]).number for w in np.geomspace(1e-5, 1, 200)
    }
    assert by_weight <= {0, 20}
    assert len(by_sweep) == 21
    with pytest.raises(ObjectiveError, match=r"at least 2"):
        geometric_bounds(4, 1, 3)
