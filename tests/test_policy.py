"""Policies against enumeration, updates against hand-written steps, and the contract of a strategy."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from niwaki.distribution.independent import Independent
from niwaki.distribution.tree import Tree
from niwaki.evaluate.listed import Listed
from niwaki.factor.factor import Cost, Factor, Limit
from niwaki.factor.within import within
from niwaki.objective import BEST_ACCURACY, Lagrangian, Objective, macs, measured
from niwaki.run.ask_tell import AskTellSearch, ask_and_tell, ask_and_tell_side_by_side, attempt
from niwaki.space.size import taken
from niwaki.space.space import Decision, Space
from niwaki.store.engine import open_store
from niwaki.strategy.learned import Learned
from niwaki.strategy.lstm import Lstm
from niwaki.strategy.policy import Rejecting, softmaxes
from niwaki.strategy.policy_gradient import Adam, Clipped, DelayedRamp, Moments, PolicyGradient
from niwaki.testing.strategy import check_strategy
from niwaki.testing.toy import toy_evaluate, toy_macs, toy_space
from niwaki.trial import Trial

REINFORCE = PolicyGradient(optimizer=Adam(0.05, betas=(0.0, 0.999)))
PPO = PolicyGradient(update=Clipped(), optimizer=Adam(0.03), batch_size=20, name="ppo")


@pytest.mark.parametrize("strategy", [REINFORCE, PPO], ids=lambda strategy: strategy.name)
def test_policies_keep_the_contract_of_a_strategy(strategy):
    check_strategy(strategy)


def branching():
    """2 x 3 x 4 options, the last decision only where the first takes its second option: 3 + 12 architectures."""
    first = Decision("a", (0, 1))
    return Space((first, Decision("b", (0, 1, 2)), Decision("c", (0, 1, 2, 3), taken(first.ref, (1,)))))


def rows_of(space):
    return np.array(space.indices(space.enumerate()), dtype=np.int64)


def drawn_parameters(policy, seed=0, scale=1.0):
    return policy.initial() + np.random.default_rng(seed).normal(0, scale, policy.initial().shape)


@pytest.mark.parametrize("controller", [softmaxes, Lstm(hidden=7, seed=3)], ids=["softmaxes", "lstm"])
@pytest.mark.parametrize("space", [branching(), toy_space()], ids=["branching", "toy"])
def test_probabilities_of_all_architectures_sum_to_one_and_draws_follow_them(controller, space):
    policy, rows = controller(space), rows_of(space)
    parameters = drawn_parameters(policy, scale=0.7)
    p = np.exp(policy.log_prob(parameters, rows))
    assert p.sum() == pytest.approx(1, abs=1e-12)
    drawn = policy.sample(parameters, 40_000, np.random.default_rng(1))
    number = {tuple(row): at for at, row in enumerate(rows.tolist())}
    counts = np.bincount([number[tuple(row)] for row in drawn.tolist()], minlength=len(rows))
    likely = p > 20 / len(drawn)
    chi_square = ((counts - len(drawn) * p)[likely] ** 2 / (len(drawn) * p)[likely]).sum()
    assert abs(chi_square - likely.sum()) < 4 * np.sqrt(2 * likely.sum())  # mean and variance of chi-square; cells are 40,000 in all


@pytest.mark.parametrize("controller", [softmaxes, Lstm(hidden=5, seed=1)], ids=["softmaxes", "lstm"])
@pytest.mark.parametrize("entropy", [0.0, 0.3])
def test_gradients_equal_finite_differences(controller, entropy):
    space = toy_space()
    policy, generator = controller(space), np.random.default_rng(0)
    parameters = drawn_parameters(policy, scale=0.4)
    rows = policy.sample(parameters, 6, generator)
    weights = generator.normal(size=6)

    def value(at):
        total = float(weights @ policy.log_prob(at, rows))
        return total + entropy * mean_entropy(policy, at, rows)

    gradient = policy.gradient(parameters, rows, weights, entropy, 0)
    for direction in generator.normal(size=(3, *parameters.shape)):
        slope = (value(parameters + 1e-5 * direction) - value(parameters - 1e-5 * direction)) / 2e-5
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6, abs=1e-8)


def mean_entropy(policy, parameters, rows):
    """Entropies of the decisions along each row, from log-probabilities alone: of all ways to take a decision, the earlier ones as they are."""
    space, total = policy.space, 0.0
    for row in rows.tolist():
        exists = set(space.from_indices(row))
        for position, decision in enumerate(space.decisions):
            if decision.name not in exists:
                continue
            ways = [
                space.indices([space.from_indices([*row[:position], option, *[0] * (len(row) - position - 1)])])[0]
                for option in range(len(decision.options))
            ]
            # p of a prefix is the sum over what may follow; to have it exactly, over all architectures that begin so
            everything = rows_of(space)
            p = np.exp(policy.log_prob(parameters, everything))
            prefix = np.array([p[(everything[:, : position + 1] == way[: position + 1]).all(axis=1)].sum() for way in ways])
            prefix /= prefix.sum()
            total -= float((prefix * np.log(prefix)).sum())
    return total / len(rows)


def test_the_mean_of_sampled_gradients_is_the_gradient_of_the_expected_reward_and_what_does_not_exist_gets_none():
    """TuNAS, check 2: 50,000 draws within 3 standard errors per logit, on 2 x 3 x 4 options with a conditional branch."""
    space = branching()
    policy, rows = softmaxes(space), rows_of(branching())
    logits = drawn_parameters(policy, 5, 0.5)
    rewards = np.random.default_rng(2).random(len(rows))

    def expected(at):
        return float(np.exp(policy.log_prob(at, rows)) @ rewards)

    exact = np.zeros_like(logits)
    for place in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[place] = 1e-6
        exact[place] = (expected(logits + step) - expected(logits - step)) / 2e-6
    number = {tuple(row): at for at, row in enumerate(rows.tolist())}
    drawn = policy.sample(logits, 50_000, np.random.default_rng(3))
    gained = rewards[[number[tuple(row)] for row in drawn.tolist()]] - 0.5
    each = np.array([policy.gradient(logits, row[None], np.array([weight]), 0.0, 0) for row, weight in zip(drawn, gained, strict=True)])
    error = each.std(axis=0) / np.sqrt(len(each))
    assert (np.abs(each.mean(axis=0) - exact) <= 3 * error + 1e-12).all()
    without = drawn[:, 0] == 0  # "c" does not exist there
    assert without.any()
    assert (each[without][:, 2] == 0).all()
    assert (each[~without][:, 2, :4] != 0).any()
    assert (each[:, 0, 2:] == 0).all()  # beyond a decision's own options


@pytest.mark.parametrize("limit_share", [0.2, 0.5, 0.9])
def test_within_budgets_a_policy_is_the_softmaxes_given_that_they_hold(limit_share):
    space = toy_space()
    cost = toy_macs(space)
    inside = within(space, [Limit(cost, int(cost.minimum()[0] + limit_share * (cost.maximum()[0] - cost.minimum()[0])))])
    policy, plain, rows = softmaxes(inside), softmaxes(space), rows_of(space)
    logits = drawn_parameters(plain, 1)
    kept = inside.feasible.keeps(rows)
    p = np.where(kept, np.exp(plain.log_prob(logits, rows)), 0.0)
    p /= p.sum()
    assert np.exp(policy.log_prob(logits, rows[kept])) == pytest.approx(p[kept], rel=1e-10)
    weights = np.random.default_rng(0).normal(size=kept.sum())
    direction = np.random.default_rng(1).normal(size=logits.shape)
    ahead, behind = (weights @ policy.log_prob(logits + sign * 1e-6 * direction, rows[kept]) for sign in (1, -1))
    gradient = policy.gradient(logits, rows[kept], weights, 0.0, 0)
    assert float((gradient * direction).sum()) == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)
    assert space.indices([policy.mode(logits)])[0] == rows[p.argmax()].tolist()
    assert inside.feasible.keeps(policy.sample(logits, 500, np.random.default_rng(2))).all()


def test_an_lstm_may_not_stand_alone_within_budgets_but_rejects():
    space = toy_space()
    inside = within(space, [Limit(toy_macs(space), toy_macs(space).maximum()[0] // 2)])
    with pytest.raises(ValueError, match=r"knows no budget.*macs <= "):
        Lstm()(inside)
    with pytest.raises(ValueError, match="needs budgets"):
        Rejecting()(space)
    check_strategy(_Within(PolicyGradient(controller=Rejecting(samples=64, controller=Lstm(hidden=8)), optimizer=Adam(0.01))))


class _Within:
    """A strategy that only knows spaces within budgets, for the contract suite, which has some without."""

    repeats = True

    def __init__(self, strategy):
        self.strategy, self.name = strategy, strategy.name
        self.ask, self.tell, self.save = strategy.ask, strategy.tell, strategy.save

    def bounded(self, space):
        if not isinstance(space, Space):
            return space
        return (
            within(space, [Limit(toy_macs(space), toy_macs(space).maximum()[0] * 2 // 3)]) if "depth" in {d.name for d in space} else space
        )

    def init(self, space):
        return self.strategy.init(self.bounded(space))

    def load(self, space, content, arrays):
        return self.strategy.load(self.bounded(space), content, arrays)


# ---------------------------------------------------------------- updates


def test_adam_without_a_first_moment_moves_by_the_gradient_itself():
    adam, gradient = Adam(0.1, betas=(0.0, 0.999)), np.array([1.0, -2.0, 0.5])
    parameters, moments = np.zeros(3), Moments.of(np.zeros(3))
    for g in (gradient, -3 * gradient):
        parameters, moments = adam.step(parameters, moments, g)
        assert (moments.first == g).all()


def test_adam_takes_the_steps_of_torch():
    torch = pytest.importorskip("torch")
    ours, moments = np.array([0.3, -1.0]), Moments.of(np.zeros(2))
    theirs = torch.tensor(ours, requires_grad=True)
    optimizer = torch.optim.Adam([theirs], lr=0.02, betas=(0.5, 0.9), eps=1e-8, maximize=True)
    for gradient in np.random.default_rng(0).normal(size=(20, 2)):
        ours, moments = Adam(0.02, betas=(0.5, 0.9)).step(ours, moments, gradient)
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
    assert ours == pytest.approx(theirs.detach().numpy(), rel=1e-12)


def test_the_learning_rate_waits_and_then_grows_tenfold():
    """TuNAS, check 3."""
    schedule = DelayedRamp(total=1000)
    assert [schedule(step) for step in (0, 125, 250, 1000)] == [0, 0, 1, 10]
    assert schedule(625) == pytest.approx(10**0.5)
    with pytest.raises(ValueError, match="delay=1"):
        DelayedRamp(10, delay=1.0)


def test_the_baseline_is_a_zero_debiased_average_that_includes_the_present_reward():
    told = []

    def update(policy, parameters, moments, rows, advantages, adam):
        told.extend(advantages.tolist())
        return parameters, moments

    space = branching()
    strategy = PolicyGradient(update=update, momentum=0.9)
    arch = next(space.enumerate())
    strategy.tell(strategy.init(space), [Trial(n, arch, {"accuracy": r}) for n, r in enumerate((1.0, 0.0, 0.5))])
    second = 0.1 * 0.9 * 1 / (0.1 + 0.1 * 0.9)
    third = (0.1 * 0.81 * 1 + 0.1 * 0.5) / (1 - 0.9**3)
    assert told == pytest.approx([0.0, 0.0 - second, 0.5 - third])


def test_the_clipped_update_is_the_gradient_of_the_clipped_surrogate():
    """Against a step of torch's autograd on the surrogate as written, whose ratios leave the clip on the way."""
    torch = pytest.importorskip("torch")
    space = Space((Decision("a", (0, 1, 2)), Decision("b", (0, 1))))
    policy, rows = softmaxes(space), rows_of(space)
    logits, advantages = drawn_parameters(policy, 3), np.array([1.0, -1.0, 0.5, 2.0, -0.3, -2.0])
    update, adam = Clipped(clip=0.1, passes=6, entropy=0.01), Adam(0.1)
    ours, _ = update(policy, logits, Moments.of(logits), rows, advantages, adam)
    theirs = torch.tensor(logits, requires_grad=True)
    optimizer = torch.optim.Adam([theirs], lr=0.1)

    def log_softmax(values):
        return [torch.log_softmax(values[0, :3], 0), torch.log_softmax(values[1, :2], 0)]

    def log_prob(values):
        a, b = log_softmax(values)
        return a[rows[:, 0]] + b[rows[:, 1]]

    old, gained, left = log_prob(theirs).detach(), torch.tensor(advantages), 0
    for _ in range(6):
        ratio = (log_prob(theirs) - old).exp()
        left += int(((ratio - 1).abs() > 0.1).sum())
        surrogate = torch.minimum(ratio * gained, ratio.clamp(0.9, 1.1) * gained).mean()
        entropy = -sum((part.exp() * part).sum() for part in log_softmax(theirs))
        optimizer.zero_grad()
        (-surrogate - 0.01 * entropy).backward()
        optimizer.step()
    assert left > 3
    assert ours[0] == pytest.approx(theirs.detach().numpy()[0], rel=1e-9)
    assert ours[1, :2] == pytest.approx(theirs.detach().numpy()[1, :2], rel=1e-9)


@pytest.mark.parametrize(
    "strategy", [REINFORCE, PPO, PolicyGradient(BEST_ACCURACY, Lstm(16), Clipped(), Adam(0.01), 20)], ids=["reinforce", "ppo", "lstm"]
)
def test_a_policy_comes_to_propose_good_architectures(strategy):
    space = toy_space()
    evaluate = toy_evaluate(space)
    best = sorted(evaluate(arch)["accuracy"] for arch in space.enumerate())
    state, trials = strategy.init(space), []
    while len(trials) < 1200:
        asked = strategy.ask(state, 20, Random(f"1/{len(trials)}"), pending=())
        batch = [Trial(len(trials) + at, arch, evaluate(arch)) for at, arch in enumerate(asked)]
        state, trials = strategy.tell(state, batch), trials + batch
    assert np.mean([trial.metrics["accuracy"] for trial in trials[-100:]]) > best[-len(best) // 10]  # the mean is in the best tenth
    assert evaluate(strategy.mode(state))["accuracy"] > best[-len(best) // 20]


def test_a_form_with_multipliers_follows_each_batch_and_survives_a_save():
    space = toy_space()
    limit = macs <= 400
    strategy = PolicyGradient(Objective("accuracy", (limit,), form=Lagrangian(rate=0.5)), optimizer=Adam(0.05), batch_size=4)
    check_strategy(strategy)
    evaluate = toy_evaluate(space)
    dear = max(space.enumerate(), key=lambda arch: evaluate(arch)["macs"])
    state = strategy.tell(strategy.init(space), [Trial(n, dear, evaluate(dear)) for n in range(4)])
    (multiplier,) = state.shaping["multipliers"]
    assert multiplier > 0
    after = strategy.tell(state, [Trial(4, dear, evaluate(dear))])
    assert after.batch[0].reward == pytest.approx(evaluate(dear)["accuracy"] - multiplier * (limit.ratio(evaluate(dear)) - 1))


@pytest.mark.parametrize("strategy", [REINFORCE, PPO], ids=["reinforce", "ppo"])
@pytest.mark.parametrize("unit", [1, 100])
def test_a_policy_learns_to_keep_a_measured_limit_in_whatever_unit_the_quality_is(strategy, unit):
    space = toy_space()
    evaluate = toy_evaluate(space)
    told = {arch: {"accuracy": unit * one["accuracy"], "ms": one["macs"]} for arch in space.enumerate() for one in [evaluate(arch)]}
    limit = float(np.quantile([one["ms"] for one in told.values()], 0.15))
    strategy = replace(strategy, objective=Objective("accuracy", (measured("ms") <= limit,)))
    state, trials = strategy.init(space), []
    while len(trials) < 600:
        asked = strategy.ask(state, 20, Random(f"2/{len(trials)}"), pending=())
        batch = [Trial(len(trials) + at, arch, told[arch]) for at, arch in enumerate(asked)]
        state, trials = strategy.tell(state, batch), trials + batch
    assert np.mean([trial.metrics["ms"] <= limit for trial in trials[-100:]]) > 0.8


def test_what_failed_is_learned_from_as_the_worst_reward():
    space = Space((Decision("a", (0, 1)),))
    good, bad = space.enumerate()
    strategy = PolicyGradient(optimizer=Adam(0.1, betas=(0.0, 0.999)))
    state = strategy.tell(strategy.init(space), [Trial(0, good, {"accuracy": 0.9}), Trial(1, good, {"accuracy": 0.1})])
    after = strategy.tell(state, [Trial(2, bad, {}, status="failed")])
    assert after.parameters[0, 1] < state.parameters[0, 1]
    assert {dict(arch)["a"] for arch in strategy.ask(after, 50, Random(0), pending=())} == {0}


# ---------------------------------------------------------------- distributions


@pytest.mark.parametrize("bounded", [False, True], ids=["whole", "within"])
def test_independent_softmaxes_are_the_independent_distribution(bounded):
    space = toy_space()
    cost = toy_macs(space)
    where = within(space, [Limit(cost, cost.maximum()[0] // 3)]) if bounded else space
    ours, theirs = softmaxes(where), Learned(Independent.init)(where)
    logits = np.random.default_rng(0).normal(size=ours.initial().shape)
    counts = [len(decision.options) for decision in space]
    flat = np.concatenate([row[:count] for row, count in zip(logits, counts, strict=True)])
    rows = ours.sample(logits, 7, np.random.default_rng(1))
    weights = np.random.default_rng(2).normal(size=7)
    assert theirs.log_prob(flat, rows) == pytest.approx(ours.log_prob(logits, rows), abs=1e-10)
    expected = ours.gradient(logits, rows, weights, 0.0, 0)
    found = theirs.gradient(flat, rows, weights, 0.0, 0)
    assert found == pytest.approx(np.concatenate([row[:count] for row, count in zip(expected, counts, strict=True)]), abs=1e-9)
    if bounded:
        assert theirs.mode(flat) == ours.mode(logits)


@pytest.mark.parametrize("bounded", [False, True], ids=["whole", "within"])
def test_a_tree_learns_by_the_gradient_of_its_log_probability(bounded):
    space = branching()
    cost = Cost("cost", "", (Factor(("b", "c"), np.arange(12, dtype=np.int64).reshape(3, 4)),), space)
    policy = Learned(Tree.init)(within(space, [Limit(cost, 6)]) if bounded else space)
    parameters = drawn_parameters(policy, scale=0.7)
    rows = policy.sample(parameters, 5, np.random.default_rng(0))
    weights, direction = np.random.default_rng(1).normal(size=(2, 5))[0], np.random.default_rng(2).normal(size=parameters.shape)

    def value(at):
        return float(weights @ policy.log_prob(at, rows)) + (0.0 if bounded else 0.2 * policy.distribution(at).entropy())

    slope = (value(parameters + 1e-5 * direction) - value(parameters - 1e-5 * direction)) / 2e-5
    assert float(policy.gradient(parameters, rows, weights, 0.0 if bounded else 0.2, 0) @ direction) == pytest.approx(slope, rel=1e-6)


def test_a_tree_keeps_the_contract_of_a_strategy():
    check_strategy(PolicyGradient(controller=Learned(Tree.init), optimizer=Adam(0.05), batch_size=4, name="tree"), evaluations=24)


def test_what_a_policy_proposes_again_is_a_trial_of_its_own_but_evaluated_once(tmp_path):
    space = branching()
    evaluated = []

    def evaluate(arch):
        evaluated.append(arch)
        return {"accuracy": 0.1 + len(arch) / 10}

    with open_store(tmp_path / "run.sqlite") as store:
        search = AskTellSearch(space, space, REINFORCE, store, run="r", evaluations=60, seed=3)
        trials = ask_and_tell(search, evaluate)
    assert len(trials) == 60
    assert len(evaluated) == len(set(evaluated)) == len({trial.arch for trial in trials}) <= 15
    with open_store(tmp_path / "side.sqlite") as store, ThreadPoolExecutor(2) as pool:
        search = AskTellSearch(space, space, REINFORCE, store, run="r", evaluations=60, seed=3)
        beside = ask_and_tell_side_by_side(search, lambda arch: pool.submit(attempt, evaluate, arch))
    assert [(trial.arch, trial.metrics) for trial in beside] == [(trial.arch, trial.metrics) for trial in trials]


@pytest.mark.parametrize("strategy", [REINFORCE, PPO], ids=lambda strategy: strategy.name)
def test_a_search_killed_anywhere_and_resumed_ends_like_one_left_alone(tmp_path, strategy):
    space = toy_space()
    inside = within(space, [Limit(toy_macs(space), toy_macs(space).maximum()[0] // 2)])
    evaluate = toy_evaluate(space)

    def run(name, evaluate):
        with open_store(tmp_path / f"{name}.sqlite") as store:
            return ask_and_tell(AskTellSearch(inside, space, strategy, store, run="r", evaluations=120, seed=1), evaluate)

    alone = run("alone", evaluate)
    for left in (1, 3, 7, 9):
        calls = iter(range(left))

        def dies(arch, calls=calls):
            next(calls)  # StopIteration once they are used up
            return evaluate(arch)

        with pytest.raises(StopIteration):
            run("killed", dies)
    assert [(trial.arch, trial.metrics) for trial in run("killed", evaluate)] == [(trial.arch, trial.metrics) for trial in alone]


def test_ten_thousand_proposals_of_a_learning_policy_keep_the_budget():
    space = toy_space()
    cost = toy_macs(space)
    limit = Limit(cost, cost.minimum()[0] * 3)
    inside, evaluate = within(space, [limit]), toy_evaluate(space)
    strategy = PolicyGradient(optimizer=Adam(0.05, betas=(0.0, 0.999)), batch_size=50)
    state = strategy.init(inside)
    for start in range(0, 10_000, 50):
        asked = strategy.ask(state, 50, Random(start), pending=())
        assert (cost.batch(np.array(space.indices(asked))) <= limit.upper).all()
        state = strategy.tell(state, [Trial(start + at, arch, evaluate(arch)) for at, arch in enumerate(asked)])


def test_on_a_list_of_architectures_a_policy_is_the_softmaxes_given_the_list():
    space = toy_space()
    rows = rows_of(space)[np.random.default_rng(0).choice(space.size, 40, replace=False)]
    listed = Listed(space, rows)
    policy, plain = softmaxes(listed), softmaxes(space)
    logits = drawn_parameters(plain, 4, 0.7)
    p = np.exp(plain.log_prob(logits, rows))
    assert np.exp(policy.log_prob(logits, rows)) == pytest.approx(p / p.sum(), rel=1e-10)
    weights, direction = np.random.default_rng(1).normal(size=40), np.random.default_rng(2).normal(size=logits.shape)
    ahead, behind = (weights @ policy.log_prob(logits + sign * 1e-6 * direction, rows) for sign in (1, -1))
    assert float((policy.gradient(logits, rows, weights, 0.0, 0) * direction).sum()) == pytest.approx((ahead - behind) / 2e-6, rel=1e-6)
    assert space.indices([policy.mode(logits)])[0] == rows[p.argmax()].tolist()
    assert set(map(tuple, policy.sample(logits, 500, np.random.default_rng(3)).tolist())) <= set(map(tuple, rows.tolist()))
    state = REINFORCE.init(listed)
    state = REINFORCE.tell(state, [Trial(0, arch, {"accuracy": 0.5}) for arch in REINFORCE.ask(state, 1, Random(0), pending=())])
    assert state.moments.steps == 1
