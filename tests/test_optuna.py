"""Optuna's samplers keep the contract of a strategy and search as they do in Optuna; our trials are a study that Optuna reads."""

import subprocess
import sys
from random import Random

import numpy as np
import pytest
from optuna.samplers import NSGAIISampler, RandomSampler, TPESampler

from niwaki.evaluate.listed import Listed
from niwaki.objective import Objective, macs
from niwaki.space.choice import SpaceError
from niwaki.space.space import Decision, Space
from niwaki.strategy.optuna import OptunaStrategy, to_optuna_study
from niwaki.strategy.random import RandomSearch
from niwaki.testing.strategy import check_strategy
from niwaki.testing.toy import toy_evaluate, toy_space
from niwaki.trial import Trial

LIMITED = (Objective("accuracy", (macs <= 300,)), Objective("-macs"))


def nsga2(seed):
    return NSGAIISampler(population_size=8, seed=seed)


def few_startup(seed):
    return TPESampler(n_startup_trials=4, seed=seed)


STRATEGIES = {
    "tpe": OptunaStrategy(few_startup),
    "multivariate, constrained": OptunaStrategy(
        lambda seed: TPESampler(n_startup_trials=4, multivariate=True, group=True, constant_liar=True, seed=seed), LIMITED[:1]
    ),
    "nsga2, two objectives": OptunaStrategy(nsga2, LIMITED),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_samplers_of_optuna_keep_the_contract(name):
    check_strategy(STRATEGIES[name], evaluations=16, asks=20)


def searched(strategy, evaluations, seed):
    space, evaluate = toy_space(), toy_evaluate(toy_space())
    state, trials = strategy.init(space), []
    while len(trials) < evaluations:
        asked = strategy.ask(state, 2, Random(f"{seed}/{len(trials)}"), pending=())
        told = [Trial(len(trials) + at, arch, evaluate(arch), strategy.name) for at, arch in enumerate(asked)]
        state, trials = strategy.tell(state, told), [*trials, *told]
    return trials


def test_tpe_finds_better_architectures_than_random_search_at_equal_evaluations():
    def mean_of_late(strategy, seed):
        return sum(trial.metrics["accuracy"] for trial in searched(strategy, 30, seed)[16:]) / 14

    assert sum(mean_of_late(STRATEGIES["tpe"], seed) > mean_of_late(RandomSearch(), seed) for seed in range(3)) == 3


def test_a_genetic_sampler_leaves_its_first_generation():
    def mean_of_late(strategy, seed):
        return sum(trial.metrics["accuracy"] for trial in searched(strategy, 60, seed)[40:]) / 20

    single = OptunaStrategy(nsga2)
    assert sum(mean_of_late(single, seed) > mean_of_late(RandomSearch(), seed) for seed in range(5)) >= 4


def test_a_sampler_searches_a_list_of_architectures_to_its_end():
    space, evaluate = toy_space(), toy_evaluate(toy_space())
    rows = np.array(space.indices(space.enumerate()))[np.random.default_rng(0).choice(space.size, 12, replace=False)]
    listed = Listed(space, rows)
    strategy, trials = STRATEGIES["tpe"], []
    state = strategy.init(listed)
    while asked := strategy.ask(state, 1, Random(len(trials)), pending=()):
        trials.append(Trial(len(trials), asked[0], evaluate(asked[0])))
        state = strategy.tell(state, trials[-1:])
    assert sorted(space.indices(trial.arch for trial in trials)) == sorted(rows.tolist())


def test_a_sampler_sees_the_trials_that_are_told_the_constraints_and_what_is_pending():
    seen = []

    class Watching(RandomSampler):
        def infer_relative_search_space(self, study, trial):
            seen.append([(one.state.name, dict(one.params), one.values, one.constraints) for one in study.get_trials()])
            return {}

    space, evaluate = toy_space(), toy_evaluate(toy_space())
    archs = list(space.enumerate())[::50]
    strategy = OptunaStrategy(lambda seed: Watching(seed=seed), LIMITED)
    state = strategy.tell(strategy.init(space), [Trial(at, arch, evaluate(arch)) for at, arch in enumerate(archs[:3])])
    strategy.ask(state, 1, Random(0), pending=archs[3:5])
    told = [row for row in seen[0] if row[0] == "COMPLETE"]
    assert [row[2] for row in told] == [[evaluate(arch)["accuracy"], -evaluate(arch)["macs"]] for arch in archs[:3]]
    assert [list(row[3].values()) for row in told] == [[evaluate(arch)["macs"] / 300 - 1] for arch in archs[:3]]
    plain = [{name: option if not isinstance(option, tuple) else repr(option) for name, option in arch.items()} for arch in archs]
    assert [row[1] for row in told] == plain[:3]
    running = [row[1] for row in seen[0] if row[0] == "RUNNING" and row[1]]
    assert running == plain[3:5]


def test_our_trials_are_a_study_that_a_fresh_process_reads(tmp_path):
    space, evaluate = toy_space(), toy_evaluate(toy_space())
    archs = list(space.enumerate())[::60]
    trials = [Trial(at, arch, evaluate(arch), "evolution", 0.5) for at, arch in enumerate(archs)]
    trials[1] = Trial(1, archs[1], {}, "evolution", status="failed", note="its loss became NaN")
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    to_optuna_study(trials, space, LIMITED[0], storage, name="toy")
    script = (
        f"import optuna; study = optuna.load_study(study_name='toy', storage={storage!r})\n"
        "print(study.direction.name, study.best_value, len(study.trials), study.trials[1].state.name, study.trials[1].user_attrs['note'])\n"
        "print(sorted(study.trials[2].params.items()), study.trials[2].constraints, study.metric_names)"
    )
    told = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    feasible = [trial.metrics["accuracy"] for trial in trials if trial.status == "ok" and trial.metrics["macs"] <= 300]
    assert told[0] == f"MAXIMIZE {max(feasible)} {len(trials)} FAIL its loss became NaN"
    constraint = {"macs<=300": trials[2].metrics["macs"] / 300 - 1}
    params = {name: repr(option) if isinstance(option, tuple) else option for name, option in archs[2].items()}
    assert told[1] == f"{sorted(params.items())} {constraint} ['accuracy']"
    more = [*trials, Trial(len(trials), archs[0], evaluate(archs[0]), "evolution")]
    assert [one.user_attrs["number"] for one in to_optuna_study(more, space, LIMITED[0], storage, name="toy").trials] == list(
        range(len(more))
    )
    with pytest.raises(SpaceError, match="'toy' is there already"):
        to_optuna_study(trials, space, Objective("loss"), storage, name="toy")


def test_options_that_look_alike_as_text_are_categories_of_their_own():
    space = Space((Decision("a", ((1, 2), "(1, 2)", 7)), Decision("b", ("1", 1))))
    strategy = OptunaStrategy(few_startup)
    assert set(strategy.ask(strategy.init(space), 6, Random(0), ())) == set(space.enumerate())
    trials = [Trial(at, arch, {"accuracy": at / 10}) for at, arch in enumerate(space.enumerate())]
    study = to_optuna_study(trials, space, Objective("accuracy"), None)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 6
