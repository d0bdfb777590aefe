"""Exhaustive search lists; local search moves as its paper says: by brute force on a small space."""

from random import Random

import pytest

from niwaki.objective import Objective
from niwaki.strategy.exhaustive import Exhaustive
from niwaki.strategy.local_search import LocalSearch
from niwaki.testing.toy import toy_accuracy, toy_space
from niwaki.trial import Trial

SPACE = toy_space()
METRICS = {arch: {"accuracy": toy_accuracy(arch)} for arch in SPACE.enumerate()}


def searched(strategy, evaluations, seed=0, batch=1):
    state, trials = strategy.init(SPACE), []
    while len(trials) < evaluations:
        asked = strategy.ask(state, batch, Random(f"{seed}/{len(trials)}"), pending=())
        told = [Trial(len(trials) + at, arch, METRICS[arch]) for at, arch in enumerate(asked)]
        state, trials = strategy.tell(state, told), [*trials, *told]
    return trials


def accuracy(arch):
    return METRICS[arch]["accuracy"]


def test_exhaustive_search_lists_the_space_around_what_is_pending_or_told_already():
    strategy, everything = Exhaustive(), list(SPACE.enumerate())
    state = strategy.tell(strategy.init(SPACE), [Trial(0, everything[1], {"accuracy": 1.0})])
    assert strategy.ask(state, 3, Random(0), pending=(everything[3],)) == [everything[0], everything[2], everything[4]]
    assert [trial.arch for trial in searched(strategy, 292, batch=4)] == everything


def test_steepest_local_search_tries_all_neighbours_and_moves_to_the_best_until_none_is_better():
    for seed in range(5):
        order = [trial.arch for trial in searched(LocalSearch(move="steepest", founders=3), 150, seed)]
        at, tried = 3, set(order[:3])
        centre = max(order[:3], key=accuracy)
        while at < 120:
            near = set(SPACE.neighbours(centre))
            step = len(near - tried)
            assert set(order[at : at + step]) == near - tried, "all neighbours that are new, and nothing else"
            at, tried = at + step, tried | near
            best = max(near, key=accuracy)
            if accuracy(best) > accuracy(centre):
                centre = best
            else:  # a local optimum: three new founders
                founders = order[at : at + 3]
                centre, at, tried = max(founders, key=accuracy), at + 3, tried | set(founders)


def test_first_improvement_moves_as_soon_as_a_neighbour_is_better():
    for seed in range(5):
        order = [trial.arch for trial in searched(LocalSearch(move="first", founders=2), 60, seed)]
        centre, restarts = max(order[:2], key=accuracy), 0
        tried, at = set(order[:2]), 2
        while at < 60:
            near = set(SPACE.neighbours(centre))
            if near <= tried:
                better = [arch for arch in near if accuracy(arch) > accuracy(centre)]
                if better:  # met earlier, from another centre
                    centre = max(better, key=accuracy)
                    continue
                restarts += 1
                founders = order[at : at + 2]
                if len(founders) < 2:
                    break
                centre, tried, at = max(founders, key=accuracy), tried | set(founders), at + 2
                continue
            assert order[at] in near - tried
            tried.add(order[at])
            if accuracy(order[at]) > accuracy(centre):
                centre = order[at]
            at += 1


def test_local_search_finds_better_architectures_than_random_founders_do():
    def mean_of_best(founders, seed):
        return max(trial.metrics["accuracy"] for trial in searched(LocalSearch(founders=founders), 60, seed))

    wins = [mean_of_best(5, seed) - mean_of_best(60, seed) for seed in range(20)]  # 60 founders are a random search
    assert sum(win > 0 for win in wins) > 2 * sum(win < 0 for win in wins)


def test_local_search_refuses_moves_that_there_are_not():
    with pytest.raises(ValueError, match="move='best': a local search moves to the steepest or the first"):
        LocalSearch(move="best")
    with pytest.raises(ValueError, match="founders=0"):
        LocalSearch(Objective("accuracy"), founders=0)
