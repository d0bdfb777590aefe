"""NSGA-II: its sorting against pymoo's, its survivors against the definition, its front against random search's."""

from random import Random

import numpy as np
import pytest
from pymoo.operators.survival.rank_and_crowding.metrics import calc_crowding_distance
from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

from niwaki.objective import Objective, hypervolume, macs
from niwaki.strategy.nsga2 import NSGA2, crowding, dominates, ranks
from niwaki.strategy.random import RandomSearch
from niwaki.testing.toy import toy_evaluate, toy_space
from niwaki.trial import Trial


def test_fronts_and_crowding_are_those_of_pymoo():
    rng = np.random.default_rng(0)
    for size, objectives in ((1, 2), (2, 2), (40, 2), (60, 3), (30, 1)):
        points = rng.integers(0, 12, (size, objectives)).astype(float)
        rank = ranks(dominates(points, np.zeros(size)))
        fronts = NonDominatedSorting().do(-points)
        for number, front in enumerate(fronts):
            assert set(np.flatnonzero(rank == number)) == set(front.tolist())
    for size in (3, 20, 50):  # points of one front, all different, as pymoo drops duplicates
        x = np.sort(rng.random(size))
        points = np.stack([x, 1 - x**2], axis=1)
        ours, theirs = crowding(points, np.zeros(size, dtype=int)), calc_crowding_distance(-points)
        # pymoo divides by the number of objectives
        np.testing.assert_allclose(ours[np.isfinite(ours)], 2 * theirs[np.isfinite(theirs)], rtol=1e-9)
        assert set(np.flatnonzero(np.isinf(ours))) == set(np.flatnonzero(np.isinf(theirs)))


def test_what_keeps_the_limits_dominates_what_does_not_and_less_violation_dominates_more():
    points, violations = np.array([[1.0, 1.0], [9.0, 9.0], [10.0, 10.0], [2.0, 0.5]]), np.array([0.0, 0.2, 0.1, 0.0])
    assert dominates(points, violations).astype(int).tolist() == [[0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]


def test_survivors_are_whole_fronts_and_the_loneliest_of_the_last():
    space, evaluate = toy_space(), toy_evaluate(toy_space())
    strategy = NSGA2((Objective("accuracy", (macs <= 300,)), Objective("-macs")), population_size=10)
    trials = [Trial(number, arch, evaluate(arch)) for number, arch in enumerate(Random(0).sample(list(space.enumerate()), 20))]
    state = strategy.tell(strategy.tell(strategy.init(space), trials[:10]), trials[10:])
    points = np.array([[trial.metrics["accuracy"], -trial.metrics["macs"]] for trial in trials])
    over = np.array([max(0.0, trial.metrics["macs"] / 300 - 1) for trial in trials])
    rank = ranks(dominates(points, over))
    kept = {parent.member.arch for parent in state.parents}
    assert len(kept) == 10
    for number in range(rank.max() + 1):
        front = {trials[at].arch for at in np.flatnonzero(rank == number)}
        if len(front & kept) < len(front):
            apart = crowding(points, rank)
            partly = sorted(np.flatnonzero(rank == number), key=lambda at: -apart[at])[: len(front & kept)]
            assert front & kept == {trials[at].arch for at in partly}
            assert not any(trials[at].arch in kept for at in np.flatnonzero(rank > number))
            break


def test_its_front_covers_more_than_that_of_random_search_at_equal_evaluations():
    space, evaluate = toy_space(), toy_evaluate(toy_space())

    def covered(strategy, seed):
        state, trials = strategy.init(space), []
        while len(trials) < 100:
            asked = strategy.ask(state, 5, Random(f"{seed}/{len(trials)}"), pending=())
            told = [Trial(len(trials) + at, arch, evaluate(arch)) for at, arch in enumerate(asked)]
            state, trials = strategy.tell(state, told), [*trials, *told]
        return hypervolume([[-trial.metrics["accuracy"], trial.metrics["macs"] / 1200] for trial in trials], (0.0, 1.0))

    wins = sum(covered(NSGA2(population_size=10), seed) > covered(RandomSearch(), seed) for seed in range(10))
    assert wins >= 8


def test_nsga2_refuses_a_population_of_one_and_no_objective():
    for wrong in ({"population_size": 1}, {"objectives": ()}, {"crossover": 1.5}):
        with pytest.raises(ValueError, match="NSGA-II needs at least 1 objective, 2 in its population, and a probability"):
            NSGA2(**wrong)
