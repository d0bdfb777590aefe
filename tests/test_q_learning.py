"""Q-learning over decisions (BlockQNN): values against value iteration, and what dealing the reward to all steps is good for (irlas.md, 3)."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest

from niwaki.objective import Objective, measured
from niwaki.space.space import Decision, Space
from niwaki.strategy.q_learning import PUBLISHED_EVALUATIONS, SCHEDULE, QLearning, steps_of
from niwaki.testing.toy import toy_space
from niwaki.trial import Trial

STEPS, OPTIONS = 8, 3
CHAIN = Space(tuple(Decision(f"step{at}", tuple(range(OPTIONS))) for at in range(STEPS)))


def reward_of(arch):
    """Between 0 and 1, at the end alone: how often a step takes another option than the one before it, and the first takes option 2."""
    options = list(arch.values())
    return ((options[0] == 2) + sum((b - a) % OPTIONS == 1 for a, b in pairwise(options))) / STEPS


def learned(strategy, episodes, rate, seed=0):
    """The reward of the greedy walk after each hundred random episodes."""
    state, rng, found = strategy.init(CHAIN), Random(seed), []
    table = state.table.copy()
    for episode in range(1, episodes + 1):
        arch = CHAIN.sample(rng)
        strategy.learn_(table, steps_of(CHAIN, arch), reward_of(arch))
        if episode % 100 == 0:
            greedy = strategy.greedy(strategy.load(CHAIN, {"space": CHAIN.hash}, {**EMPTY, "table": table}))
            found.append(reward_of(greedy))
    return np.array(found), table


EMPTY = {"walks": np.zeros((0, STEPS), np.uint8), "told": np.zeros((0, 2)), "seen": np.zeros(0, np.uint64)}


def test_dealing_the_reward_to_all_steps_is_learned_from_in_half_the_episodes_or_fewer():
    first = {}
    for shaped in (True, False):
        episodes = []
        for seed in range(5):
            rewards, _ = learned(QLearning(shaped=shaped, rate=0.05), 12_000, 0.05, seed)
            reached = np.flatnonzero(rewards >= 0.95)
            episodes.append(100 * (reached[0] + 1) if len(reached) else 12_000)
        first[shaped] = np.median(episodes)
    assert first[True] <= first[False] / 2


@pytest.mark.parametrize("shaped", [True, False])
def test_values_converge_to_those_of_value_iteration_where_rewards_are_certain(shaped):
    """Three steps, the reward of each walk a number of its own: with a rate of 1 and every walk learned from, the table is the exact one.

    What is known of a walk is its last option, so the exact value of the last step is the mean over walks; here the last step decides alone.
    """
    space = Space(tuple(Decision(f"step{at}", (0, 1)) for at in range(3)))
    strategy = QLearning(shaped=shaped, rate=0.2)
    table, rng = strategy.init(space).table.copy(), Random(0)
    for _ in range(4000):
        arch = space.sample(rng)
        last = list(arch.values())
        strategy.learn_(table, steps_of(space, arch), 1.0 + (last[1] == 1) * (last[2] == 1))
    # by hand, from the end: after option j of step 1, option k of step 2 ends with 1 + [j = k = 1], a third of it at each step where shaped
    if not shaped:
        assert table[3:5, 4:6] == pytest.approx(np.array([[1.0, 1.0], [1.0, 2.0]]), abs=1e-3)
        assert table[1:3, 2:4] == pytest.approx(np.array([[1.0, 2.0], [1.0, 2.0]]), abs=1e-3)
        assert table[0, 0:2] == pytest.approx([2.0, 2.0], abs=1e-3)
    else:
        assert table[3:5, 4:6] == pytest.approx(np.array([[1.0, 1.0], [1.0, 2.0]]) / 3, abs=1e-3)
    state = strategy.load(space, {"space": space.hash}, {"walks": np.zeros((0, 3), np.uint8), "told": np.zeros((0, 2)), "seen": np.zeros(0, np.uint64), "table": table})  # fmt: skip
    assert list(strategy.greedy(state).values())[1:] == [1, 1]


def test_epsilon_follows_the_published_stages():
    strategy = QLearning()
    assert strategy.evaluations == PUBLISHED_EVALUATIONS == 64 * sum(length for _, length in SCHEDULE)
    assert strategy.epsilon(0) == strategy.epsilon(95 * 64 - 1) == 1.0
    assert strategy.epsilon(95 * 64) == 0.9
    assert strategy.epsilon(10**9) == 0.1
    assert QLearning(evaluations=178).epsilon(95) == 0.9


def test_walks_of_conditional_spaces_step_over_what_does_not_exist():
    space = toy_space()
    arch = space.architecture({"depth": 1, "block0.width": 16, "block0.kernel": 3})
    steps = steps_of(space, arch)
    assert len(steps) == len(arch)
    assert steps[0][0] == 0
    assert [row for row, _, _ in steps[1:]] == [1 + column for _, column, _ in steps[:-1]]
    trial = Trial(0, arch, {"accuracy": 1.0}, "q-learning")
    strategy = QLearning(rate=1.0, replay=0)
    table = strategy.tell(strategy.init(space), [trial]).table
    assert sorted(table[table > 0]) == pytest.approx([1 / 3, 2 / 3, 1.0]), "the shares of the steps add up from the end"


def test_what_is_over_a_limit_is_worth_less_than_all_that_is_within_it_however_good_and_a_save_keeps_it():
    space = Space((Decision("a", (0, 1, 2)),))
    small, good, large = space.enumerate()
    strategy = QLearning(Objective("accuracy", (measured("ms") <= 1,)), rate=0.5, replay=2)
    told = [(small, 10.0, 0.5), (good, 60.0, 1.0), (large, 95.0, 1.01)] * 20
    trials = [Trial(number, arch, {"accuracy": accuracy, "ms": ms}) for number, (arch, accuracy, ms) in enumerate(told)]
    state = strategy.tell(strategy.init(space), trials)
    values = state.table[0].tolist()
    assert values[1] > values[0] > values[2]
    half = strategy.tell(strategy.init(space), trials[:30])
    content, arrays = strategy.save(half)
    assert np.array_equal(strategy.tell(strategy.load(space, content, arrays), trials[30:]).table, state.table)


@pytest.mark.parametrize("settings", [{"rate": 0}, {"discount": 2}, {"replay": -1}, {"evaluations": 0}])
def test_settings_that_cannot_be_are_refused(settings):
    with pytest.raises(ValueError, match="a rate above 0"):
        QLearning(**settings)
