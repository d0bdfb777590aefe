"""Recipes of policy gradient: MnasNet's rewards, TuNAS's reward and schedules, searches for several devices."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from niwaki.objective import Absolute, Objective, ObjectiveError, Product, SmoothWorst, measured
from niwaki.recipe import mnasnet, multihardware, tunas
from niwaki.space.choice import BudgetError
from niwaki.space.space import Decision, Space
from niwaki.strategy.policy import softmaxes
from niwaki.strategy.policy_gradient import DelayedRamp, WarmUp
from niwaki.testing.strategy import check_strategy
from niwaki.trial import Trial

LATENCY = measured("latency_ms")


def reward(form, accuracy, latency, target=64.0):
    return Objective("accuracy", (target >= LATENCY,), form).reward({"accuracy": accuracy, "latency_ms": latency})


# ---------------------------------------------------------------- MnasNet


@pytest.mark.parametrize(("accuracy", "latency"), [(0.6, 10.0), (0.7, 64.0), (0.8, 300.0)])
def test_five_percent_more_accuracy_is_worth_twice_the_latency(accuracy, latency):
    """MnasNet, check 1: how -0.07 was derived."""
    assert reward(mnasnet.SOFT, 1.05 * accuracy, 2 * latency) == pytest.approx(reward(mnasnet.SOFT, accuracy, latency), rel=1.5e-3)
    assert pytest.approx(1, abs=1.5e-3) == 1.05 * 2**-0.07  # -0.07 is -log2(1.05) = -0.0704, rounded


def test_the_hard_reward_does_not_pay_for_speed_and_halves_beyond_the_target():
    inside = [reward(mnasnet.HARD, 0.7, latency) for latency in (1.0, 32.0, 64.0)]
    assert inside == pytest.approx([0.7] * 3)
    assert reward(mnasnet.HARD, 0.7, 256.0) == pytest.approx(reward(mnasnet.HARD, 0.7, 128.0) / 2)


def best_latency(form):
    latencies = np.geomspace(8, 512, 6 * 64 + 1)  # 64 is one of them
    rewards = [reward(form, 0.6 + 0.05 * np.log2(latency), latency) for latency in latencies]
    return float(latencies[int(np.argmax(rewards))])


def test_the_soft_reward_drifts_from_the_target_and_the_hard_one_sits_on_it():
    """MnasNet, check 6: accuracy 0.6 + 0.05 log2(latency) for latencies from 8 to 512; w = -0.07 would be best at 2^8.6 = 390."""
    found = {w: best_latency(Product(w, w)) for w in (-0.03, -0.07, -0.15)}
    assert len({round(latency, 3) for latency in found.values()}) == 3
    assert found == {-0.03: pytest.approx(512), -0.07: pytest.approx(2 ** (1 / (0.07 * np.log(2)) - 12), rel=0.02), -0.15: pytest.approx(8)}
    assert [mnasnet.off_target(latency, 64) > 0.1 for latency in found.values()] == [True] * 3
    assert best_latency(mnasnet.HARD) == pytest.approx(64)


def test_what_mnasnet_trains_are_the_best_rewards_among_different_networks():
    space = Space((Decision("a", tuple(range(30))),))
    objective = Objective("accuracy", (LATENCY <= 10,), mnasnet.HARD)
    archs = list(space.enumerate())
    trials = [Trial(n, arch, {"accuracy": 0.5 + n / 100, "latency_ms": 1.0 + n}) for n, arch in enumerate(archs)]
    trials += [replace(trial, number=30 + trial.number) for trial in trials] + [Trial(99, archs[0], {}, status="failed")]
    picked = mnasnet.to_train(trials, objective)
    assert len(picked) == len({trial.arch for trial in picked}) == 15
    rewards = [objective.reward(trial.metrics) for trial in trials if trial.status == "ok"]
    assert [objective.reward(trial.metrics) for trial in picked] == sorted(set(rewards))[::-1][:15]
    assert all(trial.number < 30 for trial in picked)


def test_mnasnets_controller_keeps_the_contract_on_spaces_without_budgets():
    check_strategy(mnasnet.controller(Objective("accuracy"), kind=softmaxes, lr=mnasnet.TABLE_LR))


# ---------------------------------------------------------------- TuNAS


def test_the_absolute_reward_is_best_at_the_target_for_every_beta_above_the_slope():
    """TuNAS, check 1: on a concave front of 400 sizes, quality 0.4 + 0.3 (1 - exp(-T / 50)), whose slope in T / T0 is 0.107 at the target."""
    sizes = np.linspace(1, 200, 400)
    target, spacing = 64.0, 0.5
    slope = 0.3 / 50 * np.exp(-target / 50) * target

    def best(form):
        rewards = [reward(form, 0.4 + 0.3 * (1 - np.exp(-size / 50)), size, target) for size in sizes]
        return float(sizes[int(np.argmax(rewards))])

    for k in range(1, 21):
        held = abs(best(Absolute(-0.05 * k)) / target - 1) <= spacing / target
        assert held == (0.05 * k > slope)
    assert 0.05 * 2 < slope < 0.05 * 3
    weak, strong = best(Product(-0.03, -0.03)), best(Product(-0.15, -0.15))
    assert abs(strong / weak - 1) > 0.1


def test_warm_ups_fade_to_nothing_when_the_controller_begins():
    """TuNAS, check 3: with the learning rate's schedule, in test_policy.py, at steps 0, 12.5 %, 25 % and 100 %."""
    warm_up = WarmUp(1000)
    assert [warm_up(step) for step in (0, 125, 250, 1000)] == [1, 0.5, 0, 0]
    schedule = tunas.controller(Objective("accuracy"), steps=1000).optimizer.schedule
    assert [schedule(step) for step in (0, 125, 250, 1000)] == [0, 0, 1, 10]
    assert warm_up.before(schedule) == warm_up
    with pytest.raises(ValueError, match=r"must end no later"):
        WarmUp(1000, 0.3).before(DelayedRamp(1000))


# ---------------------------------------------------------------- several devices


TABLE = {"phone": (10.0, 30.0, 20.0, 5.0), "server": (0.2, 0.1, 0.4, 0.3), "chip": (1.0, 4.0, 2.0, 2.0)}  # 4 architectures, 3 devices
TARGETS = {"phone": 20.0, "server": 0.2, "chip": 2.0}


def metrics_of(table, at, accuracy=0.7):
    return {"accuracy": accuracy, **{device: values[at] for device, values in table.items()}}


def test_ratios_are_of_each_devices_own_target():
    """Multi-hardware, check 1, by hand: 0.5, 1, 0.5 | 1.5, 0.5, 2 | 1, 2, 1 | 0.25, 1.5, 1."""
    by_hand = {"mean": (2 / 3, 4 / 3, 4 / 3, 2.75 / 3), "worst": (1, 2, 2, 1.5), "weighted": (0.75, 1.125, 1.5, 1.0625)}
    for at in range(4):
        metrics = metrics_of(TABLE, at)
        for name, objective in {
            "mean": multihardware.average_case(TARGETS),
            "worst": multihardware.worst_case(TARGETS),
            "weighted": multihardware.average_case(TARGETS, weights=(1, 2, 1)),
        }.items():
            (joint,) = objective.toward
            assert joint.ratio(metrics) == pytest.approx(by_hand[name][at])
            assert objective.reward(metrics) == pytest.approx(0.7 - 0.1 * abs(by_hand[name][at] - 1))
    (smooth,) = multihardware.toward(TARGETS, SmoothWorst(0.1)).toward
    assert smooth.ratio(metrics_of(TABLE, 1)) == pytest.approx(0.1 * np.log((np.exp(15) + np.exp(5) + np.exp(20)) / 3))
    assert multihardware.ratios(metrics_of(TABLE, 3), TARGETS) == {"phone": 0.25, "server": pytest.approx(1.5), "chip": 1.0}


def test_a_device_in_other_units_with_its_target_changes_nothing():
    other = {**TABLE, "server": tuple(1000 * ms for ms in TABLE["server"])}
    for make in (multihardware.average_case, multihardware.worst_case):
        for at in range(4):
            before = make(TARGETS).reward(metrics_of(TABLE, at))
            assert make({**TARGETS, "server": 200.0}).reward(metrics_of(other, at)) == pytest.approx(before, rel=1e-12)


def five_hundred(seed):
    """500 architectures, qualities that grow with cost, and two costs of which one falls as the other grows."""
    generator = np.random.default_rng(seed)
    space = Space((Decision("a", tuple(range(20))), Decision("b", tuple(range(25)))))
    balance, size = generator.uniform(-1, 1, 500), generator.uniform(0.7, 1.3, 500)
    first, second = size * np.exp(balance + 0.6), size * np.exp(-0.4 * balance)  # the mean is least off balance, the worst is not
    quality = 0.6 + 0.05 * np.log(first + second) + generator.normal(0, 0.004, 500)
    rows = {
        arch: {"accuracy": float(q), "one": float(x), "two": float(y)}
        for arch, q, x, y in zip(space.enumerate(), quality, first, second, strict=True)
    }
    return space, rows


def test_the_worst_case_search_has_the_lower_worst_ratio_and_the_average_search_the_lower_mean():
    """Multi-hardware, check 2: searched by the policy; both within 5 % of the best of their own objective, by brute force.

    The targets are below all that there is: where a mean of 1 can be had, the absolute reward draws the average search up to it."""
    space, rows = five_hundred(3)
    targets = {"one": 0.5, "two": 0.5}
    found = {}
    for name, objective in {
        "mean": multihardware.average_case(targets, beta=-0.3),
        "worst": multihardware.worst_case(targets, beta=-0.3),
    }.items():
        strategy = tunas.controller(objective, steps=2_000, lr=0.05)
        state, trials = strategy.init(space), []
        for number in range(2_000):
            (arch,) = strategy.ask(state, 1, Random(f"0/{number}"), pending=())
            trials.append(Trial(number, arch, rows[arch]))
            state = strategy.tell(state, trials[-1:])
        found[name] = multihardware.pick(trials, objective).metrics
        (joint,) = objective.toward
        assert joint.ratio(found[name]) <= 1.05 * min(joint.ratio(metrics) for metrics in rows.values())
        best, worst = (of(objective.reward(metrics) for metrics in rows.values()) for of in (max, min))
        assert best - objective.reward(found[name]) <= 0.05 * (best - worst)

    def over(metrics):
        return list(multihardware.ratios(metrics, targets).values())

    assert max(over(found["worst"])) < max(over(found["mean"]))
    assert np.mean(over(found["mean"])) < np.mean(over(found["worst"]))


def test_hard_caps_are_kept_on_every_device_and_what_binds_is_named():
    """Multi-hardware, check 6: 200 random tables."""
    generator = np.random.default_rng(0)
    space = Space((Decision("a", tuple(range(40))),))
    archs, refused = list(space.enumerate()), 0
    for _ in range(200):
        costs = generator.uniform(0.5, 2.0, (40, 3))
        trials = [
            Trial(
                n, arch, {"accuracy": float(generator.random()), **dict(zip(("phone", "gpu", "chip"), map(float, costs[n]), strict=True))}
            )
            for n, arch in enumerate(archs)
        ]
        targets = dict.fromkeys(("phone", "gpu", "chip"), 1.0)
        caps = dict(zip(targets, generator.uniform(0.55, 1.2, 3).tolist(), strict=True))
        objective = multihardware.capped(targets, caps)
        fits = (costs <= np.array(list(caps.values()))).all(axis=1)
        if fits.any():
            picked = multihardware.pick(trials, objective)
            assert all(picked.metrics[device] <= cap for device, cap in caps.items())
            assert objective.reward(picked.metrics) == max(objective.reward(trials[n].metrics) for n in np.flatnonzero(fits))
        else:
            refused += 1
            with pytest.raises(ObjectiveError, match=r"phone|gpu|chip"):
                multihardware.pick(trials, objective)
    assert 10 < refused < 190
    with pytest.raises(ObjectiveError, match=r"gpu<=0\.1 is kept by none"):
        multihardware.pick(trials, multihardware.capped(targets, {**targets, "gpu": 0.1}))
    with pytest.raises(BudgetError, match="a cap for tpu"):
        multihardware.capped(targets, {"tpu": 1.0})
