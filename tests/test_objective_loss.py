"""The differentiable side of objectives: losses that agree with rewards and with finite differences, exact projections, policy gradients."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch

from niwaki.factor.expect import log_probability_within
from niwaki.factor.factor import Cost, CostError, Factor, Limit
from niwaki.factor.within import within
from niwaki.gradient.admm import Admm, nearest, one_hot
from niwaki.gradient.objective_loss import objective_loss
from niwaki.objective import (
    FORMS,
    CVaR,
    Joint,
    Linear,
    Mean,
    Objective,
    ObjectiveError,
    Rejection,
    SmoothWorst,
    Worst,
    measured,
    mnasnet_soft,
)
from niwaki.space.choice import BudgetError
from niwaki.space.space import Decision, Space
from niwaki.testing.toy import toy_macs, toy_space
from random_spaces import random_factors, random_space

LIMITS = (measured("a") <= 20.0, measured("b") <= 30.0, measured("c") <= 100.0)
LOSSES = {
    name: Linear((1e-2, 2e-2, 3e-3)) if name == "linear" else form
    for name, form in FORMS.items()
    if name not in ("mnasnet-soft", "mnasnet-hard", "rejection", "chance", "hypervolume", "feasible-first")
}
WAYS = (None, Mean(), Mean((1, 2, 3)), Worst(), SmoothWorst(0.3), CVaR(0.4), CVaR(0.8))


def objective_of(name, across):
    limits = LIMITS if across is None else [Joint(LIMITS, across)]
    form = Linear(0.1) if name == "linear" and across is not None else LOSSES[name]
    return Objective("-loss", limits, form)


@pytest.mark.parametrize("across", WAYS, ids=str)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_is_the_negative_reward_and_its_gradient_the_finite_difference(name, across):
    objective, rng = objective_of(name, across), Random(0)
    seen = [{"loss": 1.0, "a": 30.0, "b": 35.0, "c": 120.0}, {"loss": 1.0, "a": 20.0, "b": 29.0, "c": 103.0}]
    state = objective.update(objective.init(), seen)
    for _ in range(10):
        at = [rng.uniform(0.5, 3), rng.uniform(10, 35), rng.uniform(10, 60), rng.uniform(30, 200)]
        values = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in at]
        loss = objective_loss(objective, values[0], dict(zip("abc", values[1:], strict=True)), state)

        def reward(point, objective=objective, state=state):
            return objective.reward(dict(zip(("loss", "a", "b", "c"), point, strict=True)), state)

        assert loss.item() == pytest.approx(-reward(at), rel=1e-9)
        loss.backward()
        for number, value in enumerate(values):
            step = 1e-6 * at[number]
            up, down = ([v + (s if i == number else 0) for i, v in enumerate(at)] for s in (step, -step))
            gradient = 0.0 if value.grad is None else float(value.grad)
            assert gradient == pytest.approx(-(reward(up) - reward(down)) / (2 * step), rel=1e-4, abs=1e-7)


def test_a_predicted_cost_keeps_its_margin_in_the_loss():
    limit = replace(measured("a") <= 20.0, margin=2.0)
    objective = Objective("-loss", [limit], FORMS["hinge"])
    costs = {"a": torch.tensor(19.0, requires_grad=True), "a std": torch.tensor(1.0, requires_grad=True)}
    loss = objective_loss(objective, torch.tensor(1.0), costs)
    loss.backward()
    assert loss.item() == pytest.approx(1 + 1 / 20)
    assert float(costs["a std"].grad) == pytest.approx(0.1)
    with pytest.raises(ObjectiveError, match="needs the cost 'a std'; there are a"):
        objective_loss(objective, torch.tensor(1.0), {"a": torch.tensor(19.0)})


def test_without_limits_the_loss_stays_and_without_a_way_down_it_is_refused():
    loss = torch.tensor(0.7)
    assert objective_loss(Objective("-loss"), loss, {}) is loss
    for form in (mnasnet_soft, Rejection(), FORMS["hypervolume"], lambda quality, spent: quality):
        with pytest.raises(ObjectiveError, match="nothing to follow; there are tunas-absolute, hinge"):
            objective_loss(Objective("-loss", LIMITS[:1], form), loss, {"a": torch.tensor(1.0)})
    with pytest.raises(ObjectiveError, match="needs multipliers for 1 limits, and the state has 0"):
        objective_loss(Objective("-loss", LIMITS[:1], FORMS["lagrangian"]), loss, {"a": torch.tensor(1.0)})


# ---------------------------------------------------------------- projection


def squared_distance(space, arch, values):
    return sum(float(((row - values[name]) ** 2).sum()) for name, row in one_hot(space, arch).items())


def test_the_projection_is_the_nearest_architecture_of_200_random_knapsacks():
    rng, conditional, infeasible = np.random.default_rng(0), 0, 0
    for number in range(200):
        draws = (random_space(Random(f"{number}/{again}")) for again in range(100))
        space = next(space for space in draws if space.size <= 600) if number % 2 else toy_space()
        cost = Cost("cost", "", random_factors(space, Random(number)), space) if number % 2 else toy_macs(space)
        conditional += any(decision.condition is not True for decision in space.decisions)
        members = list(space.enumerate())
        spent = np.array([cost(arch) for arch in members])
        upper = int(np.quantile(spent, rng.uniform(0.02, 0.9)))
        try:
            inside = within(space, (Limit(cost, upper),))
        except BudgetError:
            infeasible += 1
            continue
        values = {d.name: rng.normal(0.3, 2.0 if number % 3 else 100.0, len(d.options)) for d in space.decisions}
        found = nearest(inside, values)
        assert cost(found) <= upper
        least = min(squared_distance(inside, arch, values) for arch, s in zip(members, spent, strict=True) if s <= upper)
        assert squared_distance(inside, found, values) == pytest.approx(least, rel=1e-9)
    assert conditional >= 100
    assert infeasible <= 5
    with pytest.raises(CostError, match="finite numbers for"):
        nearest(inside, {})


def knapsack_search():
    """Eight decisions of three options with gains and costs: E[gain] is to be large within a limit on the cost."""
    rng = np.random.default_rng(3)
    space = Space(tuple(Decision(f"d{i}", (0, 1, 2)) for i in range(8)))
    gains = np.sort(rng.uniform(0, 1, (8, 3)), axis=1)
    costs = np.sort(rng.integers(1, 40, (8, 3)), axis=1)
    cost = Cost("cost", "", tuple(Factor((f"d{i}",), costs[i].astype(np.int64)) for i in range(8)), space)
    return within(space, (Limit(cost, 130),)), gains, cost


def admm_rounds(admm, inside, state, logits, gains, rounds):
    """A round: 20 gradient steps on the logits; then z, u and rho anew. Returns the state and the architectures found."""
    found, optimizer = [], torch.optim.SGD([logits], lr=0.5)
    for _ in range(rounds):
        for _ in range(20):
            p = torch.softmax(logits, 1)
            named = {f"d{i}": row for i, row in enumerate(p)}
            loss = -(p * torch.from_numpy(gains)).sum() + admm.penalty(inside, state, named)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        a = {f"d{i}": row for i, row in enumerate(torch.softmax(logits, 1).detach().numpy())}
        state = admm.update(inside, state, a)
        found.append((state.z, state.rho))
    return state, found


def test_admm_ends_near_the_best_within_the_limit_and_goes_on_from_a_saved_state():
    inside, gains, cost = knapsack_search()
    admm = Admm(rho=0.1)

    def start():
        logits = torch.zeros(8, 3, dtype=torch.float64, requires_grad=True)
        return logits, admm.init(inside, {f"d{i}": np.full(3, 1 / 3) for i in range(8)})

    logits, state = start()
    state, whole = admm_rounds(admm, inside, state, logits, gains, 40)

    def gain(arch):
        return sum(gains[i][arch[f"d{i}"]] for i in range(8))

    best = max(gain(arch) for arch in inside.enumerate())
    assert gain(state.z) >= best - 0.02 * best
    assert cost(state.z) <= 130
    a = torch.softmax(logits, 1).detach().numpy()
    assert max(np.abs(a[i] - one_hot(inside, state.z)[f"d{i}"]).max() for i in range(8)) < 0.05, "a has become z"

    logits, state = start()
    state, first = admm_rounds(admm, inside, state, logits, gains, 17)
    content, arrays = admm.save(state)
    state = admm.load(inside, json.loads(json.dumps(content)), {name: part.copy() for name, part in arrays.items()})
    _, second = admm_rounds(admm, inside, state, logits.detach().clone().requires_grad_(), gains, 23)
    assert first + second == whole


# ---------------------------------------------------------------- rejection


def test_a_policy_that_redraws_needs_the_gradient_of_p_feasible():
    space = toy_space()
    cost = toy_macs(space)
    inside = within(space, (Limit(cost, 220),))
    generator = torch.Generator().manual_seed(0)
    logits = {d.name: torch.randn(len(d.options), dtype=torch.float64, generator=generator, requires_grad=True) for d in space.decisions}
    members = list(space.enumerate())
    rewards = np.array([Random(repr(sorted(map(str, arch.items())))).random() + 0.3 * (cost(arch) / 220) for arch in members])
    kept = inside.keeps(members)
    objective = Objective("quality", [measured("macs") <= 220.0], Rejection())
    told = [objective.reward({"quality": r, "macs": float(cost(arch))}) for arch, r, k in zip(members, rewards, kept, strict=True) if k]

    def log_p(arch):
        return sum(torch.log_softmax(logits[name], 0)[space[name].options.index(option)] for name, option in arch.items())

    def score(arch):
        """grad log p(arch): one-hot minus probabilities for the decisions that exist."""
        rows = one_hot(inside, arch)
        return torch.cat(
            [torch.from_numpy(rows[n]) - torch.softmax(logits[n], 0).detach() if n in arch else torch.zeros(len(rows[n])) for n in names]
        )

    names = list(logits)
    every = torch.stack([log_p(arch) for arch in members])
    feasible = torch.from_numpy(kept)
    given = torch.softmax(every.masked_fill(~feasible, -torch.inf), 0)
    expected = (given[feasible] * torch.tensor(told)).sum()
    exact = torch.cat(torch.autograd.grad(expected, [logits[n] for n in names], retain_graph=True))

    # 20,000 draws that are redrawn until they keep the limit: the score function with and without grad log P(feasible)
    probabilities = {name: torch.softmax(row, 0) for name, row in logits.items()}
    arrays = {name: p.detach().numpy() for name, p in probabilities.items()}
    rows = inside.sample_many(20_000, np.random.default_rng(1), arrays)
    number = {arch: i for i, arch in enumerate(members)}
    drawn = np.bincount([number[inside.from_indices(row.tolist())] for row in rows], minlength=len(members))
    scores = torch.stack([score(arch) for arch in members])
    log_within = log_probability_within(inside.feasible, probabilities)
    correction = torch.cat(torch.autograd.grad(log_within, [logits[n] for n in names]))
    weight = torch.from_numpy(drawn / drawn.sum() * rewards)
    plain = (weight[:, None] * scores).sum(0)
    renormalised = (weight[:, None] * (scores - correction)).sum(0)

    second = (torch.from_numpy(drawn / drawn.sum())[:, None] * (torch.from_numpy(rewards)[:, None] * (scores - correction)) ** 2).sum(0)
    error = ((second - renormalised**2).clamp(min=0) / drawn.sum()).sqrt()
    off = (renormalised - exact).abs() / error.clamp(min=1e-12)
    assert off.max() < 4, "within the sampling error"
    assert ((plain - exact).abs() / error.clamp(min=1e-12)).max() > 20, "without the second term it is another gradient"
    mean = expected.item()
    assert torch.allclose(plain - exact, mean * correction, atol=6 * float(error.max())), "off by the mean reward times that term"
