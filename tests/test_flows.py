"""PyGlove's claims: one space under every method, flows of search on a 3x3 table, and a study that is killed and goes on by its name."""

from dataclasses import replace
from random import Random

import numpy as np
import pytest

from niwaki.cost.count import count_macs, count_params
from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.gradient.dmasking import DMasking, DMaskingSearch
from niwaki.net.control import Chain, Network
from niwaki.net.edit import expose
from niwaki.net.layer import Conv, Flatten, GlobalPool, Linear
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.objective import Objective
from niwaki.predictor.sequence import SequenceRecipe
from niwaki.run.ask_tell import AskTellSearch, ask_and_tell
from niwaki.run.config import METHODS, STRATEGY_NAMES, Config
from niwaki.run.flows import joint, nested, separate
from niwaki.run.strategies import STRATEGIES, strategy_named
from niwaki.space.choice import Choice
from niwaki.store.engine import open_store
from niwaki.strategy.evolution import RegularizedEvolution
from niwaki.strategy.exhaustive import Exhaustive
from niwaki.strategy.nao import NAO
from niwaki.strategy.random import RandomSearch
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.testing.toy import toy_evaluate, toy_space
from niwaki.trial import Trial
from niwaki.zoo.nasbench import nasbench201

ACCURACY = (Objective("accuracy"),)


def family() -> Network:
    width, kernel = Choice((4, 6, 8), "/width"), Choice((1, 3, 5), "/kernel")
    return Network(
        Chain(Conv(width, kernel, name="conv"), GlobalPool(name="pool"), Flatten(name="flat"), Linear(10, name="head")), (1, 8, 8)
    )


NETWORK = family()
SPACE = space_of(NETWORK)


def larger_family() -> Network:
    """144 architectures, more than any strategy's first phase looks at."""

    def conv(name: str) -> Conv:
        return Conv(Choice((4, 6, 8, 12), f"/{name}_width"), Choice((1, 3, 5), f"/{name}_kernel"), name=name)

    return Network(Chain(conv("first"), conv("second"), GlobalPool(name="pool"), Flatten(name="flat"), Linear(10, name="head")), (1, 8, 8))


LARGER = larger_family()
LARGER_SPACE = space_of(LARGER)
# evaluations that end after what a strategy does at first: the largest is a population of 50
PAST_ITS_START = {"default": 24, "crank": 30, "nao": 26, "neural-predictor": 26, "optuna": 20, "optuna-tpe": 20, "optuna-gp": 14}
WITHOUT_MEMORY = ("random", "exhaustive")


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_space_runs_under_every_strategy_past_its_first_phase(name):
    evaluations = PAST_ITS_START.get(name, 64)

    def searched(sign):
        strategy = strategy_named(name, ACCURACY, min(evaluations, 40))
        if isinstance(strategy, NAO):  # the same with a network of a few units: its own takes minutes
            strategy = replace(strategy, recipe=SequenceRecipe(epochs=5, embedding=4, hidden=8, mlp_width=8))
        assert strategy.name == (name if not name.startswith("optuna") else "optuna")
        state, trials = strategy.init(LARGER_SPACE), []
        for number in range(evaluations):
            (arch,) = strategy.ask(state, 1, Random(number), pending=())
            value = arch["first_width"] / 10 - arch["second_kernel"] / 100 + arch["second_width"] / 30
            trials.append(Trial(number, arch, {"accuracy": sign * value}, strategy.name))
            state = strategy.tell(state, trials[-1:])
        return [trial.arch for trial in trials]

    archs, opposite = searched(1), searched(-1)
    assert (archs == opposite) == (name in WITHOUT_MEMORY), "what was told decides what is proposed"
    params = count_params(LARGER)
    for arch in (archs[0], archs[-1]):
        assert sum(p.numel() for p in build(LARGER, arch).parameters()) == params(arch)


def test_every_strategy_can_be_said_in_a_configuration():
    assert set(STRATEGIES) == set(STRATEGY_NAMES)
    for name in METHODS:
        assert Config(method=name.replace("-", "_")).method == name


def test_the_same_space_runs_under_differentiable_masking():
    method = DMasking(epochs=2, warmup_epochs=1, batch_size=256)
    inside = within(SPACE, [Limit(count_macs(NETWORK), 8000)])
    search = DMaskingSearch(NETWORK, ImageClassification(digits()), [inside], method, seed=0)
    assert search.distributions[0].space is SPACE
    before = {name: row.detach().clone() for name, row in search.distributions[0].probabilities().items()}
    while not search.finished:
        search.run(100)
    after = search.distributions[0].probabilities()
    assert set(after) == {decision.name for decision in SPACE}
    assert any(not before[name].allclose(row) for name, row in after.items())


# --- flows on a 3x3 table: rows are widths, columns kernels


def table_of(values):
    def evaluate(arch):
        counted.append(arch)
        return {"accuracy": float(values[SPACE["width"].options.index(arch["width"])][SPACE["kernel"].options.index(arch["kernel"])])}

    counted: list = []
    return evaluate, counted


def is_width(decision):
    return decision.name == "width"


SEPARABLE = np.add.outer([0.1, 0.3, 0.2], [0.0, 0.2, 0.4])
ENTANGLED = np.array([[0.5, 0.1, 0.2], [0.1, 0.2, 0.9], [0.4, 0.3, 0.1]])  # the first kernel leads to the first width, away from 0.9


def best(trials):
    return max(trial.metrics["accuracy"] for trial in trials)


def test_on_a_separable_table_all_three_flows_reach_the_optimum_with_6_9_and_9_evaluations():
    evaluate, counted = table_of(SEPARABLE)
    assert best(separate(NETWORK, is_width, Exhaustive(), evaluate, (3, 3))) == SEPARABLE.max()
    assert len(counted) == 6
    evaluate, counted = table_of(SEPARABLE)
    assert best(joint(NETWORK, Exhaustive(), evaluate, 9)) == SEPARABLE.max()
    assert len(counted) == len(set(counted)) == 9
    evaluate, counted = table_of(SEPARABLE)
    assert best(nested(NETWORK, is_width, Exhaustive(), Exhaustive(), evaluate, (3, 3))) == SEPARABLE.max()
    assert len(counted) == len(set(counted)) == 9


def test_on_a_table_that_is_not_separable_the_separate_flow_misses_the_optimum():
    evaluate, counted = table_of(ENTANGLED)
    assert best(separate(NETWORK, is_width, Exhaustive(), evaluate, (3, 3))) == 0.5
    assert len(counted) == 6
    for search in (
        lambda: joint(NETWORK, Exhaustive(), evaluate, 9),
        lambda: nested(NETWORK, is_width, Exhaustive(), RandomSearch(), evaluate, (3, 3)),
    ):
        assert best(search()) == 0.9


def test_flows_leave_the_other_decisions_as_they_are_given():
    evaluate, _ = table_of(SEPARABLE)
    start = {"kernel": 5}
    trials = separate(NETWORK, is_width, Exhaustive(), evaluate, (3, 3), start=start)
    assert {trial.arch["kernel"] for trial in trials[:3]} == {5}
    assert {trial.arch["width"] for trial in trials[3:]} == {6}
    assert [trial.number for trial in trials] == list(range(6))
    assert len(space_of(expose(NETWORK, is_width))) == 1


# --- a study of 50 trials


def test_a_study_killed_at_trial_20_and_made_again_by_its_name_ends_with_50_unique_trials_and_the_same_best(tmp_path):
    space, evaluate = toy_space(), toy_evaluate(toy_space())

    def study(file, stop_after=None):
        done = []

        def dies(arch):
            if len(done) == stop_after:
                raise KeyboardInterrupt
            done.append(arch)
            return evaluate(arch)

        with open_store(tmp_path / file) as store:
            search = AskTellSearch(
                space, space, RegularizedEvolution(population_size=10, tournament_size=3), store, run="study", evaluations=50
            )
            return ask_and_tell(search, dies)

    whole = study("whole.sqlite")
    with pytest.raises(KeyboardInterrupt):
        study("killed.sqlite", stop_after=20)
    resumed = study("killed.sqlite")
    assert len({trial.arch for trial in resumed}) == len(resumed) == 50
    assert [(one.number, one.arch, one.metrics) for one in resumed] == [(one.number, one.arch, one.metrics) for one in whole]


# --- NAS-Bench-201


def test_adaptive_strategies_beat_random_search_in_7_of_10_seeds_at_300_evaluations(shared_data):
    data = np.load(shared_data / "nasbench201" / "nasbench201_cifar10.npz")
    ops, accuracy = data["ops"], data["cifar10_test_acc_200ep"]
    table = {bytes(row.astype(np.uint8)): float(value) for row, value in zip(ops, accuracy, strict=True)}
    space = space_of(nasbench201(channels=4, cells=1))

    def best_of_300(name, seed):
        strategy = strategy_named(name, ACCURACY)
        state, found = strategy.init(space), []
        for number in range(300):
            (arch,) = strategy.ask(state, 1, Random(f"{seed}/{number}"), pending=())
            found.append(table[arch.key])
            state = strategy.tell(state, [Trial(number, arch, {"accuracy": found[-1]}, name)])
        return max(found)

    random = [best_of_300("random", seed) for seed in range(10)]
    for name in ("evolution", "local-search", "nsga2"):
        wins = sum(best_of_300(name, seed) > random[seed] for seed in range(10))
        assert wins >= 7, f"{name} beats random search in {wins} of 10 seeds"
