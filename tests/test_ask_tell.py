"""Schedules: what a search does when several evaluate at once depends on metrics alone, or is recorded and done again."""

from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from random import Random

import pytest

from niwaki.objective import Objective, ObjectiveError, macs
from niwaki.run.ask_tell import AskTellError, AskTellSearch, ask_and_tell, ask_and_tell_side_by_side, attempt
from niwaki.run.schedule import Batches, FreeRunning, Replay, Window
from niwaki.run.workers import JobFailed, Pool
from niwaki.space.space import Decision, Space
from niwaki.store.engine import open_store
from niwaki.strategy.evolution import RegularizedEvolution
from niwaki.strategy.exhaustive import Exhaustive
from niwaki.strategy.nsga2 import NSGA2
from niwaki.strategy.random import RandomSearch
from niwaki.testing.toy import toy_accuracy, toy_evaluate, toy_space
from niwaki.trial import EvaluationFailed, Trial

SPACE = toy_space()
EVOLUTION = RegularizedEvolution(population_size=8, tournament_size=4)
EVALUATE = toy_evaluate(SPACE)


def made(store, schedule, strategy=EVOLUTION, evaluations=40, run="r"):
    return AskTellSearch(SPACE, SPACE, strategy, store, run=run, evaluations=evaluations, seed=5, schedule=schedule)


def trial(number, arch):
    return Trial(number, arch, EVALUATE(arch), EVOLUTION.name)


def proposals(search):
    return [(one.number, one.arch) for one in search.trials]


def run_out_of_order(search, rng):
    """Finishes what is out in random order, as workers of uneven speed would."""
    most = 0
    while batch := search.ask():
        most = max(most, len(batch))
        number = rng.choice(list(batch))
        search.finish(trial(number, batch[number]))
    return most


def test_within_a_window_the_search_is_the_same_in_whatever_order_evaluations_end(tmp_path):
    found = []
    for seed in range(4):
        with open_store(tmp_path / f"{seed}.sqlite") as store:
            search = made(store, Window(3))
            assert run_out_of_order(search, Random(seed)) == 3
            found.append(proposals(search))
    assert found[0] == found[1] == found[2] == found[3]
    assert len(found[0]) == len({arch for _, arch in found[0]}) == 40


def test_proposal_i_of_a_window_knows_the_trials_up_to_i_minus_workers_and_has_the_others_pending(tmp_path):
    known = []

    class Watched(RandomSearch):
        def ask(self, state, count, rng, pending):
            known.append((len(state.seen), len(pending), count))
            return super().ask(state, count, rng, pending)

    with open_store(tmp_path / "s.sqlite") as store:
        run_out_of_order(made(store, Window(4), Watched(), 20), Random(1))
    assert known == [(max(0, i - 3), min(i, 3), 1) for i in range(20)]


@pytest.mark.parametrize("schedule", [Batches(4), Window(3), FreeRunning(3)], ids=lambda one: type(one).__name__)
def test_a_search_of_any_schedule_goes_on_after_a_kill_as_if_there_had_been_none(tmp_path, schedule):
    with open_store(tmp_path / "whole.sqlite") as store:
        whole = made(store, schedule)
        while batch := whole.ask():
            number = min(batch)
            whole.finish(trial(number, batch[number]))
    with open_store(tmp_path / "killed.sqlite") as store:
        rng, finished = Random(0), False
        while not finished:  # made again after each few trials, with nothing but the store
            search = made(store, schedule)
            for _ in range(rng.randrange(1, 6)):
                if not (batch := search.ask()):
                    finished = True
                    break
                number = min(batch)
                search.finish(trial(number, batch[number]))
    assert proposals(search) == proposals(whole)


def test_a_free_running_search_is_replayed_from_its_record(tmp_path):
    with open_store(tmp_path / "s.sqlite") as store:
        free, rng = made(store, FreeRunning(3)), Random(2)
        for _ in range(3):  # killed twice on the way
            for _ in range(14):
                if batch := free.ask():
                    number = rng.choice(list(batch))
                    free.finish(trial(number, batch[number]))
            free = made(store, FreeRunning(3))
        assert run_out_of_order(free, rng) <= 3
        assert len(free.trials) == 40
        replay = made(store, Replay.of(store, "r"), run="again")
        run_out_of_order(replay, Random(77))
        in_batches = made(store, Batches(3), run="batches")
        run_out_of_order(in_batches, Random(0))
        assert proposals(replay) == proposals(free)
        assert proposals(in_batches) != proposals(free)


def test_a_search_goes_on_only_by_the_schedule_that_it_began_with(tmp_path):
    with open_store(tmp_path / "s.sqlite") as store:
        made(store, Window(3)).ask()
        with pytest.raises(AskTellError, match="began window of 3 and cannot go on in batches"):
            made(store, None)
    for schedule in (Batches, Window, FreeRunning):
        with pytest.raises(ValueError, match="at least 1 proposal, not 0"):
            schedule(0)


def test_threads_and_processes_evaluate_side_by_side_and_find_what_one_process_finds(tmp_path):
    with open_store(tmp_path / "s.sqlite") as store:
        alone = ask_and_tell(made(store, Window(2), evaluations=20, run="alone"), fails_when_deep)
        with ThreadPoolExecutor(2) as threads:
            submit = partial(threads.submit, attempt, fails_when_deep)
            threaded = ask_and_tell_side_by_side(made(store, Window(2), evaluations=20, run="threads"), submit)
    assert [(one.number, one.arch, one.metrics, one.status, one.note) for one in alone] == [
        (one.number, one.arch, one.metrics, one.status, one.note) for one in threaded
    ]
    assert {one.status for one in alone} == {"ok", "failed"}


def test_a_pool_of_processes_evaluates_and_says_which_evaluation_broke(tmp_path):
    with open_store(tmp_path / "s.sqlite") as store:
        with Pool(2, attempt, common=(accuracy,)) as pool:
            with pytest.raises(JobFailed, match=r"(?s)attempt of \({'depth': 'deep'}.*(TypeError|ValueError)"):
                pool.submit({"depth": "deep"}).result()
            found = ask_and_tell_side_by_side(made(store, Batches(4), evaluations=12), pool.submit)
        assert [one.metrics["accuracy"] for one in found] == [toy_accuracy(one.arch) for one in found]
        assert len(found) == 12


def test_when_time_is_up_what_runs_is_cut(tmp_path):
    with open_store(tmp_path / "s.sqlite") as store:
        search, ended, begun = made(store, Window(3)), [], []

        def submit(arch) -> Future:
            future: Future = Future()
            begun.append(arch)
            if len(begun) <= 4:
                future.set_result(attempt(EVALUATE, arch))
            return future

        found = ask_and_tell_side_by_side(search, submit, out_of_time=lambda: len(ended) >= 4, on_trial=ended.append)
    assert [one.status for one in found] == ["ok"] * 4 + ["cut"] * 2


def test_a_trial_without_the_objectives_metrics_is_refused_before_it_is_kept(tmp_path):
    space, path = toy_space(), tmp_path / "run.sqlite"
    for strategy in (RegularizedEvolution(Objective("accuracy", (macs <= 300,))), NSGA2((Objective("accuracy"), Objective("-macs")))):
        with open_store(path) as store:
            search = AskTellSearch(space, space, strategy, store, run=strategy.name, evaluations=4, batch_size=1)
            ((number, arch),) = search.ask().items()
            for metrics, missing in (({"acuracy": 0.5, "macs": 5.0}, "accuracy"), ({"accuracy": 0.5}, "macs")):
                with pytest.raises(ObjectiveError, match=missing):
                    search.finish(Trial(number, arch, metrics, strategy.name))
            assert search.waiting == {number: arch}
            assert not search.trials
        with open_store(path) as store:
            search = AskTellSearch(space, space, strategy, store, run=strategy.name, evaluations=4, batch_size=1)
            assert len(ask_and_tell(search, toy_evaluate(space))) == 4


def test_more_evaluations_than_architectures_end_cleanly_and_the_search_says_so(tmp_path):
    small = Space((Decision("a", (1, 2, 3)), Decision("b", ("x", "y", "z"))))
    for number, (schedule, strategy) in enumerate([(Batches(4), RandomSearch()), (Window(3), EVOLUTION), (FreeRunning(2), Exhaustive())]):
        with open_store(tmp_path / f"{number}.sqlite") as store:
            search = AskTellSearch(small, small, strategy, store, run="r", evaluations=20, schedule=schedule)
            found = ask_and_tell(search, lambda arch: {"accuracy": float(arch["a"])})
            assert {one.arch for one in found} == set(small.enumerate())
            assert len(found) == 9
            assert search.note == f"{strategy.name} has nothing more to propose after 9 of 20 evaluations; the space has 9 architectures"


def accuracy(arch):
    return {"accuracy": toy_accuracy(arch)}


def fails_when_deep(arch):
    if arch["depth"] == 3:
        raise EvaluationFailed("too deep")
    return EVALUATE(arch)
