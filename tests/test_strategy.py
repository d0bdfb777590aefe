"""Strategies keep their contract; the loop loses nothing when it is stopped; evolution finds more than chance does."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from random import Random

import numpy as np
import pytest
from scipy import stats

from niwaki.distribution.tree import Tree
from niwaki.evaluate.listed import Listed
from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.objective import Objective, macs
from niwaki.predictor.graph import GraphRecipe
from niwaki.predictor.sequence import SequenceRecipe
from niwaki.run.ask_tell import AskTellError, AskTellSearch, ask_and_tell
from niwaki.run.strategies import STRATEGIES, strategy_named
from niwaki.space.choice import SpaceError
from niwaki.space.space import Decision, Space
from niwaki.store.engine import open_store
from niwaki.strategy.coarse_to_fine import CoarseToFine
from niwaki.strategy.evolution import RegularizedEvolution
from niwaki.strategy.exhaustive import Exhaustive
from niwaki.strategy.local_search import LocalSearch
from niwaki.strategy.nao import NAO
from niwaki.strategy.neural_predictor import NeuralPredictor
from niwaki.strategy.nsga2 import NSGA2
from niwaki.strategy.q_learning import QLearning
from niwaki.strategy.random import RandomSearch
from niwaki.strategy.seen import Seen
from niwaki.strategy.strategy import fingerprint
from niwaki.strategy.tree import ChowLiuSearch, CrankSearch, _draws
from niwaki.testing.strategy import ContractError, check_budget, check_strategy
from niwaki.testing.toy import toy_accuracy, toy_evaluate, toy_macs, toy_space
from niwaki.trial import EvaluationFailed, Trial

EVOLUTION = RegularizedEvolution(population_size=12, tournament_size=4)
PLAIN = [
    RandomSearch(),
    Exhaustive(),
    CoarseToFine(skeletons=10),
    LocalSearch(founders=4),
    LocalSearch(founders=2, move="first"),
    EVOLUTION,
    NAO(first=12, per_round=12, seeds=6, recipe=SequenceRecipe(epochs=5, embedding=4, hidden=8, mlp_width=8)),
    NeuralPredictor(first=20, refit=20, recipe=GraphRecipe(epochs=2, width=8, head=8, layers=1)),
    QLearning(evaluations=60),
    RegularizedEvolution(Objective("accuracy", (macs <= 300,)), population_size=8, tournament_size=8),
    NSGA2(population_size=10),
]
LEARNED = [
    ChowLiuSearch(founders=12),
    ChowLiuSearch(founders=12, edges=False),
    CrankSearch(founders=12),
    CrankSearch(founders=12, edges=False),
]


@pytest.mark.parametrize("strategy", PLAIN, ids=lambda strategy: strategy.name)
def test_every_strategy_keeps_the_contract(strategy):
    check_strategy(strategy, asks=10_000 if isinstance(strategy, NAO | NeuralPredictor) else 200)


# the budget is never exceeded in 10,000 asks, for every strategy that has a name, but for these: the reasons, and how many asks it is.
# NIWAKI_ASKS=all asks 10,000 of all but optuna-gp, which takes a while.
FEWER_ASKS = {
    "crank": 300,  # relearns its tree, and looks for the best under another draw each time: 10,000 take 40 seconds
    "q-learning": 2_000,  # of states that are told no more it proposes what it has proposed, and looks for another: 10,000 take 30 seconds
    "nao": 0,  # trains a network again and again: 10,000 are asked of a small one above
    "neural-predictor": 0,  # the same
    "optuna": 20,  # makes a study anew for each batch, draws one by one: 10,000 take minutes
    "optuna-tpe": 20,
    "optuna-nsga2": 20,
    "optuna-gp": 0,  # fits a process by torch for each draw; like the others it is asked again for what is over the budget, by the adapter
}


if os.environ.get("NIWAKI_ASKS") == "all":
    FEWER_ASKS = {"optuna-gp": 20}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if FEWER_ASKS.get(name, 10_000)])
def test_within_a_budget_every_strategy_keeps_it_in_10_000_asks(name):
    asks = FEWER_ASKS.get(name, 10_000)
    check_budget(strategy_named(name, (Objective("accuracy"),), evaluations=60), evaluations=min(60, asks), asks=asks)


@pytest.mark.parametrize("strategy", LEARNED, ids=lambda strategy: strategy.name)
def test_every_strategy_that_learns_a_distribution_keeps_the_contract(strategy):
    check_strategy(strategy, asks=200)


# --- one small broken strategy for each clause


class Nameless(RandomSearch):
    def __init__(self):
        super().__init__(name="")


class IgnoresItsSeed(RandomSearch):
    """Keeps a counter outside of the state."""

    asked = 0

    def ask(self, state, count, rng, pending):
        object.__setattr__(self, "asked", self.asked + 1)
        return super().ask(state, count, Random(self.asked), pending)


class UsesGlobalRandomness(RandomSearch):
    def tell(self, state, trials):
        random.random()
        return super().tell(state, trials)


class TooMany(RandomSearch):
    def ask(self, state, count, rng, pending):
        return super().ask(state, count + 1, rng, pending)


class TooFew(RandomSearch):
    def ask(self, state, count, rng, pending):
        return super().ask(state, min(count, 5), rng, pending)


class AnyMapping(RandomSearch):
    def ask(self, state, count, rng, pending):
        return [dict(arch) for arch in super().ask(state, count, rng, pending)]


class Stumbles(RandomSearch):
    def ask(self, state, count, rng, pending):
        raise KeyError("kernel")


class TellsNothing(RandomSearch):
    def tell(self, state, trials):
        super().tell(state, trials)


class WithoutAName:
    """All but `name`."""

    init, ask, tell, save, load = RandomSearch.init, RandomSearch.ask, RandomSearch.tell, RandomSearch.save, RandomSearch.load


class OneForAll(RandomSearch):
    def ask(self, state, count, rng, pending):
        return super().ask(state, 1, rng, pending) * count


class ForgetsWhatWasTold(RandomSearch):
    def tell(self, state, trials):
        return state


class RemembersTheLastBatch(RandomSearch):
    def tell(self, state, trials):
        return replace(state, seen=Seen(fingerprint(trial.arch) for trial in trials))


class SeesBatches(RandomSearch):
    """Its state depends on how trials were dealt out."""

    def tell(self, state, trials):
        return replace(state, seen=state.seen.with_(sorted(fingerprint(trial.arch) for trial in trials)))


class ChangesItsState(RandomSearch):
    def tell(self, state, trials):
        after = super().tell(state, trials)
        object.__setattr__(state, "seen", after.seen)
        return after


class AskCounts(RandomSearch):
    """Its second answer to the same question is another one."""

    def init(self, space):
        state = super().init(space)
        object.__setattr__(state, "asked", [0])
        return state

    def tell(self, state, trials):
        after = super().tell(state, trials)
        object.__setattr__(after, "asked", [0])
        return after

    def ask(self, state, count, rng, pending):
        state.asked[0] += 1
        return super().ask(state, count, Random(f"{rng.random()}{state.asked[0]}"), pending)


class SavesText(RandomSearch):
    def save(self, state):
        return {}, {"seen": np.array([str(name) for name in state.seen])}


class ForgetsOnLoading(RandomSearch):
    def load(self, space, content, arrays):
        return self.init(space)


class CannotLoad(RandomSearch):
    def load(self, space, content, arrays):
        raise NotImplementedError


class LosesItsPlace(RandomSearch):
    """What it proposes depends on something that is not saved."""

    def tell(self, state, trials):
        after = super().tell(state, trials)
        object.__setattr__(after, "live", True)
        return after

    def ask(self, state, count, rng, pending):
        return super().ask(state, count, Random(f"{rng.random()}{hasattr(state, 'live')}"), pending)


class IgnoresPending(RandomSearch):
    def ask(self, state, count, rng, pending):
        return super().ask(state, count, rng, ())


class IgnoresTheBudget(RandomSearch):
    def init(self, space):
        return super().init(getattr(space, "space", space))

    def load(self, space, content, arrays):
        return super().load(getattr(space, "space", space), content, arrays)


class OverBudgetNowAndThen(IgnoresTheBudget):
    """Keeps the budget of small spaces."""

    def init(self, space):
        return super().init(space) if len(space) > 10 else RandomSearch.init(self, space)

    def load(self, space, content, arrays):
        return super().load(space, content, arrays) if len(space) > 10 else RandomSearch.load(self, space, content, arrays)


class StopsAtFailures(RandomSearch):
    def tell(self, state, trials):
        if any(trial.status == "failed" for trial in trials):
            raise KeyError("accuracy")
        return super().tell(state, trials)


class TriesFailuresAgain(RandomSearch):
    def tell(self, state, trials):
        return super().tell(state, [trial for trial in trials if trial.status != "failed"])


class TellsApartWhatItAskedFor(RandomSearch):
    def tell(self, state, trials):
        if any(trial.source != self.name for trial in trials):
            raise ValueError("who is that?")
        return super().tell(state, trials)


class CountsTrials(RandomSearch):
    def tell(self, state, trials):
        if len({trial.arch for trial in trials}) < len(trials):
            raise ValueError("told twice")
        return super().tell(state, trials)


class NeedsMetricsOfWhatWasCut(RandomSearch):
    def tell(self, state, trials):
        if any(trial.status == "cut" for trial in trials):
            raise KeyError("accuracy")
        return super().tell(state, trials)


class GivesUpEarly(RandomSearch):
    def ask(self, state, count, rng, pending):
        enough = state.space.size == 18 and len(state.seen) > 12
        return [] if enough else super().ask(state, count, rng, pending)


class EndsInAnError(RandomSearch):
    def ask(self, state, count, rng, pending):
        asked = super().ask(state, count, rng, pending)
        return [asked[at] for at in range(count)]


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (Nameless, "has a name"),
        (WithoutAName, "has a name"),
        (Stumbles, "init, ask and tell raise nothing; it raised KeyError: 'kernel'"),
        (TellsNothing, "tell gives the state after the trials, not None"),
        (OneForAll, "no architecture is proposed twice"),
        (IgnoresItsSeed, "same seed gives the same search"),
        (UsesGlobalRandomness, "random numbers come from the given rng alone"),
        (TooMany, "at most as many as it is asked for"),
        (TooFew, "as many proposals as it is asked for, whatever the batch"),
        (AnyMapping, "a proposal is an architecture of the space"),
        (ForgetsWhatWasTold, "no architecture is proposed twice"),
        (RemembersTheLastBatch, "no architecture is proposed twice"),
        (SeesBatches, "telling trials one by one"),
        (ChangesItsState, "leave the state that they are given as it is"),
        (AskCounts, "asked twice, it proposes the same"),
        (SavesText, "can be saved as JSON and arrays; it raised StoreError: array 'seen'"),
        (ForgetsOnLoading, "comes back from JSON and arrays as it was"),
        (CannotLoad, "comes back from JSON and arrays as it was; it raised NotImplementedError"),
        (LosesItsPlace, "a restored state proposes what the state proposed"),
        (IgnoresPending, "what is pending is not proposed again"),
        (IgnoresTheBudget, "within a budget, every proposal keeps it"),
        (OverBudgetNowAndThen, "every one of 1,000 proposals keeps it"),
        (StopsAtFailures, "failed trials do not stop a search; it raised KeyError"),
        (TriesFailuresAgain, "failed is not proposed again"),
        (TellsApartWhatItAskedFor, "never asked for is taken in; it raised ValueError: who is that"),
        (CountsTrials, "told twice does no harm; it raised ValueError: told twice"),
        (NeedsMetricsOfWhatWasCut, "cut is taken in; it raised KeyError"),
        (GivesUpEarly, "a small space is searched to its end"),
        (EndsInAnError, "a small space is searched to its end, each architecture once, and then nothing is proposed; it raised IndexError"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_the_contract_names_the_clause_that_is_broken(broken, clause):
    with pytest.raises(ContractError, match=f"the contract of a strategy is broken: .*{clause}"):
        check_strategy(broken())


def test_evolution_proposes_mutations_of_the_population_and_the_oldest_dies():
    space = toy_space()
    trials = [Trial(n, arch, {"accuracy": toy_accuracy(arch)}) for n, arch in enumerate(list(space.enumerate())[::10])]
    strategy = RegularizedEvolution(population_size=10, tournament_size=10)
    state = strategy.tell(strategy.init(space), trials)
    assert [member.arch for member in state.population] == [trial.arch for trial in trials[-10:]]
    near = {other for member in state.population for other in space.neighbours(member.arch)}
    asked = strategy.ask(state, 4, Random(0), pending=())
    # a mutation also draws the decisions that it brings to life, which neighbours leave at their first option
    assert all(arch in near or any(set(arch) != set(member.arch) for member in state.population) for arch in asked)


def test_a_tournament_of_everyone_has_the_best_as_its_winner_most_of_the_time():
    space = toy_space()
    trials = [Trial(n, arch, {"accuracy": toy_accuracy(arch)}) for n, arch in enumerate(list(space.enumerate())[:20])]
    best = max(trials, key=lambda trial: trial.metrics["accuracy"]).arch
    strategy = RegularizedEvolution(population_size=20, tournament_size=20)
    state = strategy.tell(strategy.init(space), trials)
    rng = Random(0)
    wins = sum(strategy._tournament(state.population, rng) == best for _ in range(2000)) / 2000
    assert abs(wins - (1 - (19 / 20) ** 20)) < 0.04  # drawn with replacement: P(the best is among 20 draws) = 0.642


def test_evolution_finds_better_architectures_than_random_search_at_equal_evaluations():
    space = toy_space()

    def best_of(strategy, seed):
        state, trials = strategy.init(space), []
        while len(trials) < 80:
            asked = strategy.ask(state, 4, Random(f"{seed}/{len(trials)}"), pending=())
            batch = [Trial(len(trials) + i, arch, {"accuracy": toy_accuracy(arch)}) for i, arch in enumerate(asked)]
            state, trials = strategy.tell(state, batch), trials + batch
        return sum(sorted(trial.metrics["accuracy"] for trial in trials)[-5:])

    wins = sum(best_of(EVOLUTION, seed) > best_of(RandomSearch(), seed) for seed in range(12))
    assert wins >= 9


def test_evolution_refuses_a_tournament_larger_than_its_population():
    with pytest.raises(ValueError, match="tournament_size=11 and population_size=10"):
        RegularizedEvolution(population_size=10, tournament_size=11)


def test_a_state_of_another_space_is_refused():
    space, other = toy_space(), Space((Decision("a", (1, 2)),))
    content, arrays = EVOLUTION.save(EVOLUTION.tell(EVOLUTION.init(other), [Trial(0, other.architecture({"a": 1}), {"accuracy": 1.0})]))
    with pytest.raises(SpaceError, match=f"{other.hash}.*{space.hash}"):
        EVOLUTION.load(space, content, arrays)


# ---------------------------------------------------------------- the loop


class Killed(Exception):
    pass


def searched(folder, strategy, evaluate, *, evaluations=42, limit=None, **options):
    space = toy_space()
    drawn_from = within(space, [limit]) if limit else space
    with open_store(folder / "run.sqlite") as store:
        search = AskTellSearch(drawn_from, space, strategy, store, run="r", evaluations=evaluations, seed=3)
        return ask_and_tell(search, evaluate, **options)


def told_apart(trials):
    return [(trial.number, trial.arch, trial.metrics, trial.status) for trial in trials]


@pytest.mark.parametrize("strategy", [RandomSearch(), EVOLUTION], ids=lambda strategy: strategy.name)
def test_a_search_stopped_anywhere_and_made_again_ends_like_one_left_alone(tmp_path, strategy):
    space = toy_space()
    whole = toy_evaluate(space)
    (tmp_path / "alone").mkdir()
    alone = searched(tmp_path / "alone", strategy, whole)
    assert len(alone) == 42
    evaluated = []
    for stop_after in (1, 3, 4, 5, 9, 14):  # evaluations before each kill: within batches, and between them
        left = [stop_after]

        def dies(arch, left=left):
            if not left[0]:
                raise Killed
            left[0] -= 1
            evaluated.append(arch)
            return whole(arch)

        with pytest.raises(Killed):
            searched(tmp_path, strategy, dies)
    resumed = searched(tmp_path, strategy, lambda arch: (evaluated.append(arch), whole(arch))[1])
    assert told_apart(resumed) == told_apart(alone)
    assert evaluated == [trial.arch for trial in alone], "no finished trial is lost, and none repeated"


def test_a_finished_search_made_again_evaluates_nothing(tmp_path):
    first = searched(tmp_path, EVOLUTION, toy_evaluate(toy_space()))
    assert searched(tmp_path, EVOLUTION, None) == first


def test_a_failed_evaluation_is_recorded_and_the_search_goes_on(tmp_path):
    def evaluate(arch):
        if arch["depth"] == 2:
            raise EvaluationFailed("its loss became NaN")
        return {"accuracy": toy_accuracy(arch)}

    trials = searched(tmp_path, EVOLUTION, evaluate)
    failed = [trial for trial in trials if trial.status == "failed"]
    assert len(trials) == 42
    assert failed
    assert all(trial.note == "its loss became NaN" and trial.arch["depth"] == 2 for trial in failed)


def test_what_is_out_when_time_is_up_is_recorded_as_cut(tmp_path):
    seen = []
    trials = searched(
        tmp_path, RandomSearch(), lambda arch: {"accuracy": toy_accuracy(arch)}, out_of_time=lambda: len(seen) >= 6, on_trial=seen.append
    )
    assert [trial.status for trial in trials] == ["ok"] * 6 + ["cut"] * 2


def test_within_a_budget_the_loop_evaluates_nothing_over_it(tmp_path):
    cost = toy_macs(toy_space())
    limit = Limit(cost, cost.minimum()[0] * 3)
    trials = searched(tmp_path, EVOLUTION, toy_evaluate(toy_space()), limit=limit, evaluations=20)
    assert max(trial.metrics["macs"] for trial in trials) <= limit.upper


def test_the_loop_refuses_what_was_never_asked_and_what_is_told_twice(tmp_path):
    space = toy_space()
    with open_store(tmp_path / "run.sqlite") as store:
        search = AskTellSearch(space, space, RandomSearch(), store, run="r", evaluations=8)
        batch = search.ask()
        assert search.ask() == batch, "nothing new is asked for while a batch is out"
        other = next(arch for arch in space.enumerate() if arch != batch[1])
        with pytest.raises(AskTellError, match="was never asked"):
            search.finish(Trial(1, other, {"accuracy": 0.5}))
        with pytest.raises(AskTellError, match="was never asked"):
            search.finish(Trial(17, other, {"accuracy": 0.5}))
        search.finish(Trial(1, batch[1], {"accuracy": 0.5}))
        with pytest.raises(AskTellError, match="finished already"):
            search.finish(Trial(1, batch[1], {"accuracy": 0.5}))
        assert [trial.number for trial in search.trials] == [1]


def test_trials_told_out_of_order_give_the_same_search(tmp_path):
    space, results = toy_space(), []
    for name, order in (("forward", 1), ("backward", -1)):
        with open_store(tmp_path / f"{name}.sqlite") as store:
            search = AskTellSearch(space, space, EVOLUTION, store, run="r", evaluations=30)
            while batch := search.ask():
                for number, arch in list(batch.items())[::order]:
                    search.finish(Trial(number, arch, {"accuracy": toy_accuracy(arch)}))
            results.append(search.trials)
    assert results[0] == results[1]


# ---------------------------------------------------------------- lists of architectures


def a_list():
    space = toy_space()
    rows = np.array(space.indices(space.enumerate()))[np.random.default_rng(0).choice(space.size, 80, replace=False)]
    return space, rows, Listed(space, rows)


@pytest.mark.parametrize("strategy", [ChowLiuSearch(founders=20), CrankSearch(founders=12)], ids=lambda strategy: strategy.name)
def test_searches_by_trees_find_their_way_in_a_list_of_architectures_and_end_with_it(strategy):
    space, rows, listed = a_list()
    by_chance, early = np.mean([toy_accuracy(arch) for arch in listed.enumerate()]), []
    for seed in range(5):
        state, trials = strategy.init(listed), []
        while asked := strategy.ask(state, 1, Random(f"{seed}/{len(trials)}"), pending=()):
            trials.append(Trial(len(trials), asked[0], {"accuracy": toy_accuracy(asked[0])}))
            state = strategy.tell(state, trials[-1:])
        assert sorted(space.indices(trial.arch for trial in trials)) == sorted(rows.tolist())  # each once
        early.append(np.mean([trial.metrics["accuracy"] for trial in trials[20:36]]))
    assert min(early) > by_chance


def test_draws_of_a_tree_from_a_list_are_the_trees_given_the_list():
    space, _, listed = a_list()
    tree = Tree.init(space)
    generator = np.random.default_rng(1)
    tree = tree.with_parameters({name: generator.normal(0, 0.7, table.shape) for name, table in tree.parameters.items()})
    listed_archs = list(listed.enumerate())
    p = np.exp([tree.log_prob(arch) for arch in listed_archs])
    places = {arch: place for place, arch in enumerate(listed_archs)}
    drawn = [places[arch] for arch in islice(_draws(tree, listed, Random(0)), 20_000)]
    expected = 20_000 * p / p.sum()
    often = expected >= 5
    seen = np.bincount(drawn, minlength=len(p))
    assert stats.chisquare(np.append(seen[often], seen[~often].sum()), np.append(expected[often], expected[~often].sum())).pvalue > 0.001


SEARCHED = """
from random import Random
from niwaki.objective import Objective
from niwaki.run.strategies import STRATEGIES, strategy_named
from niwaki.testing.toy import toy_evaluate, toy_space
from niwaki.trial import Trial

space = toy_space()
evaluate = toy_evaluate(space)
for name in STRATEGIES:
    if name not in ("optuna-gp", "nao", "neural-predictor"):  # they take long, and have no order but that of numbers
        strategy = strategy_named(name, (Objective("accuracy"),), evaluations=24)
        state, numbers = strategy.init(space), []
        for at in range(0, 24, 4):
            asked = strategy.ask(state, 4, Random(at), ())
            numbers += space.indices(asked)
            state = strategy.tell(state, [Trial(at + one, arch, evaluate(arch)) for one, arch in enumerate(asked)])
        print(name, numbers)
"""


def test_another_process_searches_as_this_one_does():
    """Whatever Python's hashes of strings are there: a search that is gone on with is gone on with by another process."""
    found = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", SEARCHED],
            env=os.environ | {"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for seed in ("1", "2")
    ]
    assert len(found[0]) == len(STRATEGIES) - 3
    assert found[0] == found[1]
