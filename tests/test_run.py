"""A run from end to end: what it gives, what it never exceeds, and that stopping it anywhere changes nothing."""

import json
import re
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch

import niwaki
from conftest import SMALL, SMALL_SETTINGS
from niwaki import (
    Chain,
    Choice,
    Flatten,
    GlobalPool,
    ImageClassification,
    Limit,
    Linear,
    Network,
    OneOf,
    Opaque,
    Recipe,
    Subsample,
    arrays,
    classifier,
    conv_bn_act,
    edit,
    mbconv,
    zoo,
)
from niwaki.cost.count import count_macs
from niwaki.evaluate.scratch import Scratch
from niwaki.factor.within import within
from niwaki.gradient.dmasking import DMasking, DMaskingSearch
from niwaki.gradient.one_shot import OneShotSearch
from niwaki.net.place import forks, place, space_of
from niwaki.nn.build import build
from niwaki.run import candidates, choose, finalists, learn, loop
from niwaki.run.ask_tell import AskTellSearch, ask_and_tell
from niwaki.run.clock import Clock
from niwaki.run.config import load_config
from niwaki.run.folder import Folder, RunError
from niwaki.run.plan import fit_to_minutes, search_of
from niwaki.run.progress import Silent
from niwaki.run.regular import regular
from niwaki.run.schedule import Window
from niwaki.run.search import Budget, Counted, Search
from niwaki.run.warm_start import warm_start_
from niwaki.run.workers import one_thread
from niwaki.store.checkpoint import load_checkpoint
from niwaki.store.engine import open_store
from niwaki.task.embedded import digits
from niwaki.task.task import derive_seed
from niwaki.testing.kill import run_until, safetensors_of
from niwaki.train.loop import evaluate
from niwaki.trial import EvaluationFailed, Trial

TINY = {**SMALL, "search.batch_size": 32, "train.batch_size": 32}
TRAINED = ("finalist", "regular")
ASKING = {"search.evaluations": 5, "search.population_size": 3, "search.tournament_size": 2}


def own_network(classes=3):
    """1,152 architectures of small networks for 8 x 8 images."""
    width = Choice((4, 6, 8), "width")
    return Network(
        Chain(
            OneOf(conv_bn_act(4, name="plain"), conv_bn_act(8, kernel_size=5, name="large"), name="stem"),
            mbconv(width, Choice((3, 5), "kernel"), expand=Choice((1, 2, 3, 4), "expand"), stride=2, name="block0"),
            mbconv(Choice((4, 8), "last"), expand=Choice((2, 3), "expand"), name="block1"),
            GlobalPool(),
            Flatten(),
            Linear(classes),
        ),
        input_shape=(1, 8, 8),
    )


@pytest.fixture(scope="module")
def own_task():
    """150 + 60 images of the digits 0, 1 and 2, with a float scale of their own."""
    images = digits()
    keep, test = (np.flatnonzero(labels < 3)[:count] for labels, count in ((images.labels, 150), (images.test_labels, 60)))
    return ImageClassification(
        arrays(
            images.images[keep] / 16, images.labels[keep], images.test_images[test] / 16, images.test_labels[test], source="three digits"
        )
    )


def tiny_search(task, folder, budgets, *, progress=None, **settings):
    """The chosen networks of a search without exports, its folder closed again."""
    config = load_config(None, (), {"budget": budgets, **TINY, **ASKING, **settings})
    _, search = search_of(config, task, own_network())
    opened = Folder(folder, asked={"config": config.to_json()}, plan=lambda: {"space": space_of(search.network).to_json()})
    try:
        return search, loop.run(search, opened, progress)
    finally:
        opened.close()


def notes_of(folder):
    opened = Folder(folder, read_only=True)
    try:
        return opened.store.fact("notes", [])
    finally:
        opened.close()


# --- choosing ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_every_option_of_a_fork_that_fits_the_budget_has_a_candidate_however_sure_the_search_is(tmp_path, seed):
    def block(name):
        return OneOf(conv_bn_act(8, name="a"), conv_bn_act(8, 5, name="b"), conv_bn_act(8, 1, name="c"), name=name)

    forked = Network(
        Chain(conv_bn_act(Choice((2, 4, 6, 8, 10, 12), "w")), *map(block, ("s0", "s1", "s2")), GlobalPool(), Flatten(), Linear(3)),
        (1, 8, 8),
    )
    macs, space = count_macs(forked), space_of(forked)
    numbers, names = np.random.default_rng(seed), ("s0", "s1", "s2")
    sure = {decision.name: np.full(len(decision.options), 1 / len(decision.options)) for decision in space.decisions}
    sure |= {name: numbers.permutation([0.992, 0.004, 0.004]) for name in names}
    budget = Budget("macs", (Limit(macs, macs.maximum()[0] // 3),))
    search = Search(forked, None, (budget,), {"macs": macs}, method=DMasking(), recipe=Recipe(), proxy=Recipe(), candidates=12, seed=seed)
    learner = SimpleNamespace(probabilities=lambda: [sure])
    folder = Folder(tmp_path / "run", asked={})
    aims, accuracy = [candidates.Aim(0, within(space, budget.limits))], {"accuracy": 0.5}
    loop._judge_candidates(search, 0, aims, learner, lambda arch: accuracy, folder, Silent(), lambda: False)
    archs = [trial.arch for trial in folder.store.trials("budget 0", space)]
    folder.close()
    fitting = {(name, arch[name]) for arch in space.enumerate() if macs(arch) <= budget.limits[0].upper for name in names}
    assert {(name, arch[name]) for arch in archs for name in names} == fitting
    assert len(archs) == len(set(archs)) == 12
    assert all(macs(arch) <= budget.limits[0].upper for arch in archs)


def test_the_last_candidates_make_room_but_none_that_alone_has_an_option():
    space = space_of(own_network())
    archs = [next(arch for arch in space.enumerate() if (arch["stem"], arch["block0.width"]) == one) for one in
             (("plain", 4), ("plain", 4), ("large", 6), ("plain", 4), ("plain", 8))]  # fmt: skip
    assert choose.all_options(archs[:4], archs[4:], ["stem", "block0.width"], 4) == [archs[0], archs[1], archs[2], archs[4]]
    assert choose.all_options(archs[:4], archs[4:], ["stem", "block0.width"], 3) == [archs[0], archs[2], archs[4]]
    assert choose.all_options(archs[:4], archs[4:], ["stem", "block0.width"], 2) == [archs[0], archs[2]], "two cannot have all three widths"


@pytest.mark.parametrize("folds", [1, 3])
def test_finalists_are_the_same_bits_on_one_process_or_two(own_task, tmp_path, folds):
    def trials_of(workers):
        folder = tmp_path / str(workers)
        settings = {"search.finalists": 2, "search.folds": folds, "workers": workers, "threads": 2, "train.epochs": 4}
        search, _ = tiny_search(own_task, folder, ["macs<=20k"], **settings)
        assert finalists.finalist_workers(search) == workers
        opened = Folder(folder, read_only=True)
        trials = [trial for trial in opened.store.trials("budget 0", space_of(own_network())) if trial.source in TRAINED]
        seconds = opened.store.fact("seconds")
        opened.close()
        booked = sum(trial.seconds for trial in trials) / workers
        assert seconds["finalists"] >= 0.9 * booked, "their time is booked as theirs"
        return [(trial.arch, trial.metrics) for trial in trials]

    alone = trials_of(1)
    assert len(alone) == 2
    assert trials_of(2) == alone


def test_finalists_stay_in_this_process_where_they_cannot_or_should_not_leave_it(own_task, monkeypatch):
    search = search_of(load_config(None, (), {"budget": ["macs<=20k"], "workers": 2}), own_task, own_network())[1]
    own_layer = Network(Chain(Opaque("somewhere:layer", make=torch.nn.Identity), Linear(3)), (5,))
    assert finalists.finalist_workers(search) == 2
    assert finalists.finalist_workers(replace(search, network=own_layer)) == 1
    assert finalists.finalist_workers(replace(search, device="cuda")) == 0
    size = 210 * 64 * 4  # bytes of all images
    for most, workers in ((6 * size, 2), (6 * size - 1, 1), (0, 1)):
        monkeypatch.setattr(finalists, "MOST_COPIED", most)
        assert finalists.finalist_workers(search) == workers


def test_metrics_of_unequal_folds_are_weighed_by_their_images(own_task):
    judge = Scratch(own_network(), own_task, Recipe(), folds=4)
    sizes, right = [len(judged_on) for _, judged_on in own_task.folds(4)], (30, 35, 20, 37)
    assert sorted(sizes) == [37, 37, 38, 38]
    mean = judge.mean([{"accuracy": count / size, "loss": 1.0} for count, size in zip(right, sizes, strict=True)])
    assert mean == pytest.approx({"accuracy": sum(right) / 150, "loss": 1.0})
    assert judge.examples() == 150


def sized_network():
    """Three resolutions; the largest leaves room for the narrowest networks alone."""
    body = Chain(Subsample(Choice((4, 6, 8), "/size"), name="input"), conv_bn_act(Choice((2, 4, 8, 16), "/width"), name="stem"))
    return Network(Chain(body, OneOf(conv_bn_act(8, name="a"), conv_bn_act(8, 5, name="b"), name="block"), classifier(3)), (1, 8, 8))


def aims_under(share, **settings):
    macs = count_macs(sized_network())
    limit = Limit(macs, int(share * macs.maximum()[0]))
    budget = Budget("macs", (limit,))
    search = Search(sized_network(), None, (budget,), {"macs": macs}, method=DMasking(), recipe=Recipe(), proxy=Recipe(), **settings)
    return candidates.aims_of(search, [within(space_of(search.network), budget.limits)]), limit


def test_each_resolution_that_the_budget_has_room_for_is_searched_for_itself():
    assert choose.resolutions(place(sized_network())) == ["size"]
    assert [aim.taken for aim in aims_under(1.0)[0]] == [{}], "as published: a choice like the others"
    for share in (1.0, 0.2, 0.02):
        aims, limit = aims_under(share, resolutions="apart")
        archs = space_of(sized_network()).enumerate()
        fitting = {arch["size"] for arch in archs if limit.cost(arch) <= limit.upper}
        assert [aim.taken for aim in aims] == [{"size": size} for size in sorted(fitting)]
    assert len(fitting) < 3


def test_what_a_distribution_has_taken_is_certain_and_moves_no_logit(own_task):
    aims, limit = aims_under(0.5, resolutions="apart")
    learner = DMaskingSearch(
        sized_network(), own_task, [aim.space for aim in aims], DMasking(epochs=3, warmup_epochs=0, batch_size=8, logit_lr=0.1),
        taken=[aim.taken for aim in aims],
    )  # fmt: skip
    while not learner.finished:
        learner.run()
    at = learner.distributions[0].names.index("size")
    for aim, distribution, logits, ratio in zip(aims, learner.distributions, learner.logits, learner.history[-1].ratios, strict=True):
        space, p = aim.space.space, distribution.arrays()
        assert dict(zip(space["size"].options, p["size"], strict=True))[aim.taken["size"]] == 1.0
        assert not logits[at].any()
        assert logits.any(), "the others have moved"
        mean = sum(
            float(np.prod([p[name][space[name].options.index(o)] for name, o in arch.items()])) * limit.cost(arch)
            for arch in space.enumerate()
        )
        assert ratio == pytest.approx(mean / limit.upper, rel=1e-5)


def test_finalists_are_of_all_resolutions_by_turns(own_task, tmp_path):
    settings = {**TINY, "search.resolutions": "apart", "search.finalists": 5, "search.regular": 0, "search.candidates": 9}
    result = niwaki.search(sized_network(), own_task, budget="macs<=60%", out=tmp_path / "run", settings=settings)
    folder = Folder(result.folder, read_only=True)
    trials = folder.store.trials("budget 0", space_of(sized_network()))
    aims = folder.store.fact("aims")
    folder.close()
    sizes = [aim["taken"]["size"] for aim in aims]
    assert len(sizes) == 3
    assert Counter(trial.arch["size"] for trial in trials if trial.source == "dmasking") == dict.fromkeys(sizes, 3)
    first, second, third, *more = [trial.arch["size"] for trial in trials if trial.source == "finalist"]
    assert {first, second, third} == set(sizes)
    assert more == [first, second]
    assert (result.folder / "report.html").is_file()


def test_regular_networks_are_trained_beside_those_that_the_search_found(own_task, tmp_path):
    settings = {"search.finalists": 6, "search.regular": 4, "search.candidates": 9}
    search, _ = tiny_search(own_task, tmp_path / "run", ["macs<=25k"], **settings)
    folder, space = Folder(tmp_path / "run", read_only=True), space_of(own_network())
    trials = folder.store.trials("budget 0", space)
    chosen = folder.store.fact("result choice 0")["chosen"]["arch"]
    folder.close()
    trained = [trial for trial in trials if trial.source in TRAINED]
    assert Counter(trial.source for trial in trained) == {"finalist": 2, "regular": 4}
    assert len({trial.arch for trial in trained}) == 6
    assert all(trial.arch in within(space, search.budgets[0].limits) for trial in trained)
    best = choose.preferred(trained, metric="accuracy", examples=len(own_task.part("validation")), simplest=place(own_network()))
    assert chosen == best[0].arch.to_json()


@pytest.mark.parametrize("source", TRAINED)
def test_a_regular_network_that_is_delivered_is_told_with_what_the_search_itself_found(own_task, tmp_path, monkeypatch, source):
    def ranked(trials, **_):
        return sorted(trials, key=lambda trial: (trial.source != source, trial.number))

    def trained(judge, arch, at):
        return {"metrics": {"accuracy": 0.5, "loss": 1.0}, "failed": None, "seconds": 1.0}

    monkeypatch.setattr(finalists, "preferred", ranked)
    monkeypatch.setattr(finalists, "_fold", trained)
    tiny_search(own_task, tmp_path / "run", ["macs<=20k"], workers=1, **{"search.finalists": 4, "search.regular": 2})
    folder = Folder(tmp_path / "run", read_only=True)
    choice = folder.store.fact("result choice 0")
    found = [trial for trial in folder.store.trials("budget 0", space_of(own_network())) if trial.source == "finalist"]
    folder.close()
    assert choice["source"] == source
    assert choice["own"]["arch"] == found[0].arch.to_json()
    assert (choice["chosen"] == choice["own"]) == (source == "finalist")
    notes = [note for note in notes_of(tmp_path / "run") if "a regular network is delivered" in note]
    assert len(notes) == (source == "regular")
    assert all(note.endswith("was 50.0 %, that of the best network that the search itself found 50.0 %.") for note in notes)


@pytest.mark.parametrize(
    "settings", [{"method": "random", "evaluator": "scratch"}, {"search.finalists": 1}], ids=["scratch", "one finalist"]
)
def test_nothing_is_trained_beside_what_is_chosen_anyway(own_task, tmp_path, settings):
    tiny_search(own_task, tmp_path / "run", ["macs<=20k"], **{"search.finalists": None, **settings})
    folder = Folder(tmp_path / "run", read_only=True)
    trials = folder.store.trials("budget 0", space_of(own_network()))
    chosen = folder.store.fact("result choice 0")["chosen"]["arch"]
    folder.close()
    assert not [trial for trial in trials if trial.source in TRAINED]
    best = choose.preferred(trials, metric="accuracy", examples=len(own_task.part("validation")), simplest=place(own_network()))
    assert chosen == best[0].arch.to_json()


def test_methods_that_are_compared_have_no_regular_networks_by_default():
    for method, expected in (("dmasking", True), ("random", False), ("evolution", False)):
        config, search = search_of(load_config(None, [f"method={method}"]))
        assert (search.regular > 0) == (config.search.regular > 0) == expected


def test_regular_networks_are_those_that_some_place_along_the_options_of_every_role_gives():
    def block(number):
        return conv_bn_act(Choice((4, 6, 8, 10, 12, 14)[: 3 * number], f"/s{number}.width"), Choice((1, 3), "kernel"), name=f"s{number}")

    network = Network(Chain(block(1), block(2), conv_bn_act(Choice((2, 4, 8, 16), "last")), GlobalPool(), Flatten(), Linear(3)), (1, 8, 8))
    macs, space = count_macs(network), space_of(network)
    upper = int(np.quantile([macs(arch) for arch in space.enumerate()], 0.6))

    def is_regular(arch):
        first, second = (4, 6, 8).index(arch["s1.width"]), (4, 6, 8, 10, 12, 14).index(arch["s2.width"])
        return arch["s1.kernel"] == arch["s2.kernel"] and first == second // 2

    expected = {arch for arch in space.enumerate() if is_regular(arch) and upper / 2 <= macs(arch) <= upper}
    found = regular(within(space, [Limit(macs, upper)]), 1000, np.random.default_rng(0), spent=0.5)
    assert len(expected) > 5
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert regular(within(space, [Limit(macs, upper)]), 3, np.random.default_rng(0), spent=0.5) == found[:3]
    known = found[::2]
    assert set(regular(within(space, [Limit(macs, upper)]), 1000, np.random.default_rng(1), spent=0.5, known=known)) == expected - set(
        known
    )


def test_without_a_training_the_best_of_all_resolutions_is_chosen(own_task, tmp_path):
    network, macs = sized_network(), count_macs(sized_network())
    space = space_of(network)
    budget = Budget("macs", (Limit(macs, macs.maximum()[0]),))
    search = Search(network, own_task, (budget,), {"macs": macs}, method=DMasking(), recipe=Recipe(), proxy=Recipe(), resolutions="apart")
    spaces = [within(space, budget.limits)]
    folder = Folder(tmp_path / "run", asked={})
    for number, (size, accuracy) in enumerate(((4, 0.40), (6, 0.95), (8, 0.70), (6, 0.90))):
        arch = [one for one in space.enumerate() if one["size"] == size][number]
        folder.store.append("budget 0", Trial(number, arch, {"accuracy": accuracy, "loss": 1 - accuracy}, "dmasking"))
    arch, metrics = finalists.choose(
        search, 0, spaces[0], candidates.aims_of(search, spaces), folder, Silent(), Clock(folder, search, spaces)
    )
    folder.close()
    assert arch["size"] == 6
    assert metrics["accuracy"] == 0.95


def test_a_distribution_far_outside_the_budget_gets_even_chances_but_for_what_is_taken(tmp_path):
    network = sized_network()
    macs, space = count_macs(network), space_of(network)
    small = within(space, [Limit(macs, macs.minimum()[0] * 4)])
    aim = candidates.Aim(0, small, {"size": 4})
    far = {name: np.full(len(space[name].options), 1e-30) for name in ("size", "width", "block")}
    far["size"], far["width"][-1], far["block"][-1] = np.array([1.0, 0.0, 0.0]), 1.0, 1.0
    folder = Folder(tmp_path / "run", asked={})
    rows = candidates._drawn(aim, far, 0, folder)
    (note,) = folder.store.fact("notes")
    folder.close()
    assert {space.from_indices(row)["size"] for row in rows.tolist()} == {4}
    assert "candidates were drawn with 0.1% of even chances mixed in" in note


def test_regular_networks_near_another_keep_three_of_four_of_its_roles():
    def block(number):
        return conv_bn_act(Choice(tuple(range(4, 20)), f"/s{number}.width"), Choice((1, 3, 5, 7), "kernel"), name=f"s{number}")

    network = Network(Chain(block(1), block(2), GlobalPool(), Flatten(), Linear(3)), (1, 8, 8))
    macs, space = count_macs(network), space_of(network)
    near = space.architecture({"s1.width": 9, "s2.width": 9, "s1.kernel": 5, "s2.kernel": 5})
    everything = within(space, [Limit(macs, macs.maximum()[0])])
    drawn = [regular(everything, 1, np.random.default_rng(seed), spent=0.0, near=near)[0] for seed in range(200)]
    # by chance the sixth of 16 options, or the third of 4, is taken, too: of a triangle, the part between 5/16 and 6/16, or 1/2 and 3/4
    for name, chance in (("width", 2 * (6**2 - 5**2) / 16**2), ("kernel", 0.375)):
        assert all(arch[f"s1.{name}"] == arch[f"s2.{name}"] for arch in drawn)
        kept = np.mean([arch[f"s1.{name}"] == near[f"s1.{name}"] for arch in drawn])
        assert abs(kept - (0.75 + 0.25 * chance)) < 0.1  # 3.3 standard errors
    narrow = regular(everything, 3, np.random.default_rng(0), spent=0.0, near=near, taken={"s1.kernel": 1})
    assert len(narrow) == 3
    assert all(arch["s1.kernel"] == 1 for arch in narrow)


def test_regular_finalists_take_resolutions_in_turn_and_then_follow_the_best(own_task, tmp_path, monkeypatch):
    network, macs = sized_network(), count_macs(sized_network())
    space = space_of(network)
    budget = Budget("macs", (Limit(macs, macs.maximum()[0]),))
    search = Search(
        network, own_task, (budget,), {"macs": macs}, method=DMasking(), recipe=Recipe(), proxy=Recipe(), resolutions="apart",
        finalists=16, regular=14,
    )  # fmt: skip
    spaces = [within(space, budget.limits)]
    folder = Folder(tmp_path / "run", asked={})
    for number, size in enumerate((4, 6, 8)):
        arch = [one for one in space.enumerate() if one["size"] == size][-1]
        folder.store.append("budget 0", Trial(number, arch, {"accuracy": size / 10, "loss": 1 / size}, "dmasking"))
    trained = []

    def train(search, at, judge, those, first, **rest):
        trained.append([(arch["size"], source) for arch, source in those])
        return [
            Trial(first + n, arch, {"accuracy": 0.9 if arch["size"] == 6 else 0.5, "loss": 0.4}, src) for n, (arch, src) in enumerate(those)
        ]

    monkeypatch.setattr(finalists, "_train_finalists", train)
    monkeypatch.setattr(finalists, "SPENT", 0.0)
    finalists.choose(search, 0, spaces[0], candidates.aims_of(search, spaces), folder, Silent(), Clock(folder, search, spaces))
    folder.close()
    anywhere, near = trained
    assert [size for size, source in anywhere if source == "finalist"] == [8, 6]
    assert sorted(size for size, source in anywhere if source == "regular") == [4, 4, 6, 6, 8, 8, 8]
    assert sum(size == 6 for size, _ in near) > len(near) / 2


# --- results -----------------------------------------------------------------------------------------------------------------


def test_the_first_finalists_are_networks_of_different_structure():
    space = space_of(own_network())
    assert forks(place(own_network())) == {"stem"}  # widths, expansions and kernel sizes change no structure
    stems = ("plain", "plain", "large", "plain", "large")
    archs = [next(arch for arch in space.enumerate() if arch["stem"] == stem) for stem in stems]
    trials = [Trial(number, arch, {"accuracy": 1.0}) for number, arch in enumerate(archs)]
    assert [trial.number for trial in choose.unlike(trials, place(own_network()), 5)] == [0, 2, 1, 3, 4]
    assert [trial.number for trial in choose.unlike(trials, place(own_network()), 2)] == [0, 2]


def test_every_depth_and_resolution_has_a_finalist_before_any_has_many():
    network = zoo.mobile(28)
    space = space_of(network)
    small, large = space["resolution"].options
    plain = {name: option for name, option in next(space.enumerate()).items() if name not in ("resolution", "stage0.depth")}
    asked = [(small, 0, 1, 1), (small, 0, 2, 1), (small, 0, 1, 2), (small, 0, 2, 2), (large, 0, 2, 2), (large, 0, 1, 1)]
    trials = []
    for number, (resolution, *depths) in enumerate(asked):
        choices = {**plain, "resolution": resolution, **{f"stage{at}.depth": depth for at, depth in enumerate(depths)}}
        for at, depth in enumerate(depths):
            if depth > (at > 0):
                choices[f"stage{at}.block0"] = "conv"
        trials.append(Trial(number, space.architecture(choices), {"accuracy": 1.0}))
    # 3 is a new structure too, but everything in it has been seen; 4 brings the other resolution
    assert [trial.number for trial in choose.unlike(trials, place(network), 5)] == [0, 1, 2, 4, 3]


def test_what_validation_cannot_tell_apart_is_decided_by_the_loss_and_of_few_images_by_the_number_of_layers_first():
    space, placement = space_of(own_network()), place(own_network())
    archs = [next(arch for arch in space.enumerate() if arch["stem"] == stem) for stem in ("plain", "large")]
    deeper = Network(
        Chain(OneOf(conv_bn_act(4), Chain(conv_bn_act(4), conv_bn_act(4)), name="stem"), GlobalPool(), Flatten(), Linear(2)), (1, 8, 8)
    )
    short, long = space_of(deeper).enumerate()
    trials = [
        Trial(0, long, {"accuracy": 0.98, "loss": 0.1}),
        Trial(1, short, {"accuracy": 0.975, "loss": 0.3}),
        Trial(2, short, {"accuracy": 0.972, "loss": 0.05}),
        Trial(3, short, {"accuracy": 0.9, "loss": 0.05}),
        Trial(4, long, {}, status="failed"),
    ]

    def order(examples, simplest):
        return [trial.number for trial in choose.preferred(trials, metric="accuracy", examples=examples, simplest=simplest)]

    assert order(200, place(deeper)) == [2, 1, 0, 3], "one standard error is sqrt(0.98 * 0.02 / 200) = 0.0099"
    assert order(1_000, place(deeper)) == [0, 1, 2, 3], "and of 1,000 examples 0.0044"
    assert order(200, None) == [2, 0, 1, 3], "by the loss alone"
    assert [choose.layers_with_weights(placement, arch) for arch in archs] == [
        sum(isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)) for module in build(own_network(), arch).modules()) for arch in archs
    ]


def test_the_result_says_what_was_found_what_it_costs_and_how_good_it_is(finished):
    found = finished.answer.json
    assert {"architecture", "macs", "params", "accuracy", "folder", "seconds"} <= set(found)
    assert type(found["macs"]) is int
    assert type(found["params"]) is int
    assert found["folder"] == str(finished.folder)
    assert set(found["accuracy"]) == {"validation", "test"}
    assert all(0 <= value <= 1 for value in found["accuracy"].values())
    assert found["seconds"] > 0
    written = json.loads((finished.folder / "architecture.json").read_text())
    assert written["architecture"] == found["architecture"]
    assert (written["macs"], written["params"]) == (found["macs"], found["params"])


def test_each_of_several_budgets_gets_a_network_within_it(finished):
    first, second = finished.answer.json["budgets"]
    assert first["macs"] <= 60_000
    assert second["macs"] <= 20_000
    assert second["params"] <= 8_000
    for row in (first, second):
        for name in ("model.onnx", "model.pt2", "model.py", "model.safetensors", "architecture.json"):
            assert (Path(row["folder"]) / name).is_file()


def test_the_accuracy_told_is_that_of_the_exported_model_in_onnx_runtime(finished):
    images = digits()
    for row in finished.answer.json["budgets"]:
        session = onnxruntime.InferenceSession(Path(row["folder"]) / "model.onnx", providers=["CPUExecutionProvider"])
        (logits,) = session.run(["logits"], {"images": images.test_images})
        assert float((logits.argmax(1) == images.test_labels).mean()) == pytest.approx(row["accuracy"]["test"], abs=1e-9)


def test_a_finished_folder_given_again_tells_its_result_and_computes_nothing(finished, niwaki_command, monkeypatch):
    files = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*") if path.suffix in (".onnx", ".safetensors", ".html")}
    monkeypatch.setattr(learn.Training, "run", lambda *_: pytest.fail("it trains again"))
    for arguments in (finished.arguments, ("resume", str(finished.folder), "--json")):
        assert niwaki_command(*arguments).json == finished.answer.json
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_the_python_call_returns_the_trained_network_of_the_readers_own_data_and_family(own_task, tmp_path):
    result = niwaki.search(own_network(), own_task, budget="macs<=30k", seed=3, out=tmp_path / "run", settings=TINY)
    assert result.folder == tmp_path / "run"
    assert result.architecture.space == space_of(own_network()).hash
    assert niwaki.count_macs(own_network())(result.architecture) == result.metrics["macs"] <= 30_000
    measured = evaluate(result.model, own_task, own_task.part("test"))
    assert measured["accuracy"] == result.metrics["accuracy"]["test"]
    images = own_task.images.test_images
    with torch.no_grad():
        logits = result.model(own_task.preprocess()(torch.tensor(images)))
    exported = onnxruntime.InferenceSession(tmp_path / "run" / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(exported.run(["logits"], {"images": images})[0], logits.numpy(), atol=1e-4)

    with pytest.raises(RunError, match="started from Python with a task and a network of its own"):
        niwaki.resume(tmp_path / "run")
    (tmp_path / "run" / "model.onnx").unlink()
    again = niwaki.search(own_network(), own_task, budget="macs<=30k", seed=3, out=tmp_path / "run", settings=TINY)
    assert again.summary == result.summary
    assert (tmp_path / "run" / "model.onnx").is_file(), "what was deleted is exported anew"


# --- budgets -----------------------------------------------------------------------------------------------------------------

BUDGETS = ["macs<=9k", "macs<=20k and params<=600", "size<=3kB", "peak_activation<=900", "macs<=60%"]


@pytest.mark.parametrize(
    ("method", "evaluator"),
    [
        ("dmasking", "shared"),
        ("random", "shared"),
        ("random", "scratch"),
        ("evolution", "shared"),
        ("evolution", "scratch"),
        ("ppo", "shared"),
    ],
)
def test_no_network_is_ever_over_budget(own_task, tmp_path, method, evaluator):
    search, chosen = tiny_search(own_task, tmp_path / "run", BUDGETS, method=method, evaluator=evaluator)
    store = Folder(tmp_path / "run", read_only=True).store
    for at, (budget, one) in enumerate(zip(search.budgets, chosen, strict=True)):
        trials = store.trials(f"budget {at}", space_of(search.network))
        assert trials
        for arch in [one.arch, *(trial.arch for trial in trials)]:
            assert all(limit.cost(arch) <= limit.upper for limit in budget.limits), f"{dict(arch)} is over {budget.text}"


def test_a_budget_in_percent_is_a_share_of_the_largest_network(own_task, tmp_path):
    search, chosen = tiny_search(own_task, tmp_path / "run", ["macs<=25%"])
    assert search.costs["macs"](chosen[0].arch) <= 0.25 * niwaki.count_macs(own_network()).maximum()[0]


# --- data --------------------------------------------------------------------------------------------------------------------


def test_the_final_training_sees_training_and_validation_data_and_the_test_comes_once_at_the_end(own_task, tmp_path, monkeypatch):
    asked = []

    def spy(module, task, indices, **keywords):
        asked.append("test" if int(indices.min()) >= len(task.images.labels) else "other")
        return evaluate(module, task, indices, **keywords)

    for module in ("niwaki.run.loop", "niwaki.evaluate.shared", "niwaki.evaluate.scratch"):
        monkeypatch.setattr(f"{module}.evaluate", spy)
    tiny_search(own_task, tmp_path / "run", ["macs<=20k"], **{"search.finalists": 2})
    assert asked.count("test") == 1
    assert asked[-1] == "test"
    trained_on = load_checkpoint(tmp_path / "run" / "checkpoints" / "training.safetensors").metadata["identity"]["examples"]
    assert trained_on == len(own_task.part("train+validation")) == 150


def test_a_candidate_without_metrics_is_a_failed_trial_and_the_search_goes_on(own_task, tmp_path, monkeypatch):
    judge = loop.SharedWeights.__call__
    calls = []

    def failing(self, arch):
        calls.append(arch)
        if len(calls) == 1:
            raise EvaluationFailed("its loss became nan")
        return judge(self, arch)

    monkeypatch.setattr(loop.SharedWeights, "__call__", failing)
    _, (chosen,) = tiny_search(own_task, tmp_path / "run", ["macs<=20k"])
    trials = Folder(tmp_path / "run", read_only=True).store.trials("budget 0", space_of(own_network()))
    assert [trial.status for trial in trials] == ["failed", "ok", "ok"]
    assert chosen.arch in [trial.arch for trial in trials[1:]]


def test_if_no_candidate_has_metrics_the_error_says_why(own_task, tmp_path, monkeypatch):
    def failing(self, arch):
        raise EvaluationFailed("its loss became nan")

    monkeypatch.setattr(loop.SharedWeights, "__call__", failing)
    with pytest.raises(RunError, match="no architecture within macs<=20000 could be evaluated; trial 0: its loss became nan"):
        tiny_search(own_task, tmp_path / "run", ["macs<=20k"])


# --- folders -----------------------------------------------------------------------------------------------------------------


def test_a_folder_of_another_configuration_is_refused_and_says_what_differs(finished, niwaki_command):
    before = (finished.folder / "config.json").read_bytes()
    answer = niwaki_command(*finished.arguments, "--seed", "7")
    assert answer.code == 2
    assert "holds a run of another configuration: seed is 0 there and 7 now" in answer.err
    assert (finished.folder / "config.json").read_bytes() == before


def test_fresh_starts_anew_once_the_new_run_is_planned_and_leaves_other_files_alone(own_task, tmp_path):
    def begin(asked, plan=dict, fresh=True):
        Folder(tmp_path / "run", asked=asked, plan=plan, fresh=fresh).close()

    begin({"seed": 0})
    (tmp_path / "run" / "model.onnx").write_text("old")
    (tmp_path / "run" / "notes.txt").write_text("mine")

    def impossible():
        raise RunError("there is nothing within this budget")

    with pytest.raises(RunError, match="nothing within"):
        begin({"seed": 1}, impossible)
    assert (tmp_path / "run" / "model.onnx").read_text() == "old"
    begin({"seed": 1})
    assert not (tmp_path / "run" / "model.onnx").exists()
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    begin({"seed": 1}, fresh=False)


def test_two_processes_cannot_work_in_one_folder(tmp_path):
    first = Folder(tmp_path / "run", asked={})
    with pytest.raises(RunError, match="another process is at work"):
        Folder(tmp_path / "run", asked={})
    Folder(tmp_path / "run", read_only=True).close()
    first.close()
    Folder(tmp_path / "run", asked={}).close()


def test_a_run_whose_network_or_data_have_changed_is_not_gone_on_with(own_task, tmp_path, niwaki_command):
    file = tmp_path / "family.py"
    text = "from niwaki import *\nnetwork = Network(Chain(conv_bn_act(Choice({}, 'w')), GlobalPool(), Flatten(), Linear(3)), (1, 8, 8))\n"
    file.write_text(text.format((4, 8)))
    data = tmp_path / "data"
    data.mkdir()
    images = own_task.images

    def write(scale):
        np.savez(data / "train.npz", images=images.images * scale, labels=images.labels)
        np.savez(data / "test.npz", images=images.test_images * scale, labels=images.test_labels)

    write(1)
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    arguments = [
        "search",
        "--set",
        f"network={file}:network",
        "--set",
        "data.kind=npz",
        "--set",
        f"data.path={data}",
        "--set",
        "budget=macs<=100k",
        "--out",
        tmp_path / "run",
    ]
    assert niwaki_command(*arguments, *settings).code == 0
    write(2)
    answer = niwaki_command(*arguments, *settings)
    assert answer.code == 2
    assert "the data have changed since the run" in answer.err
    write(1)
    file.write_text(text.format((4, 6)))
    answer = niwaki_command("resume", tmp_path / "run")
    assert answer.code == 2
    assert "has changed since the run" in answer.err


# --- the same bits -----------------------------------------------------------------------------------------------------------


def weights_of(folder):
    return {path.name: path.read_bytes() for path in (folder / "checkpoints").iterdir()}


def test_the_same_seed_gives_the_same_safetensors_and_another_seed_others(own_task, tmp_path):
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        tiny_search(own_task, tmp_path / name, ["macs<=20k"], seed=seed)
    assert weights_of(tmp_path / "one") == weights_of(tmp_path / "same")
    assert weights_of(tmp_path / "one") != weights_of(tmp_path / "other")


class Stopped(BaseException):
    """As sudden as a kill, in this process."""


class StoppingWatch(Silent):
    """Raises Stopped the `at`-th time that something is told."""

    def __init__(self, at):
        self.left = at

    def phase(self, name, total):
        self._count()

    def advance(self, done):
        self._count()

    def _count(self):
        self.left -= 1
        if self.left == 0:
            raise Stopped


@pytest.mark.parametrize(
    "settings",
    [
        {"search.finalists": 3, "workers": 2},
        {"method": "evolution", "evaluator": "shared"},
        {"method": "random", "evaluator": "scratch"},
        {"method": "bignas"},
        {"method": "ofa"},
    ],
    ids=["dmasking", "evolution", "random", "bignas", "ofa"],
)
def test_a_search_stopped_anywhere_and_gone_on_with_ends_with_the_same_bits(own_task, tmp_path, monkeypatch, settings):
    def trials(folder):
        opened = Folder(folder, read_only=True)
        found = [
            [trial.to_json() | {"seconds": 0} for trial in opened.store.trials(f"budget {at}", space_of(own_network()))] for at in range(2)
        ]
        opened.close()
        return found

    budgets = ["macs<=20k", "params<=500"]
    _, left_alone = tiny_search(own_task, tmp_path / "alone", budgets, **settings)
    monkeypatch.setattr("niwaki.run.folder.SAVE_EVERY_S", 0.0)  # a checkpoint after every chunk of steps
    rng, stops = Random(0), 0
    while True:
        try:
            _, gone_on = tiny_search(own_task, tmp_path / "stopped", budgets, progress=StoppingWatch(rng.randint(2, 12)), **settings)
            break
        except Stopped:
            stops += 1
    assert stops >= 3
    assert weights_of(tmp_path / "alone") == weights_of(tmp_path / "stopped")
    assert trials(tmp_path / "alone") == trials(tmp_path / "stopped")
    for one, other in zip(left_alone, gone_on, strict=True):
        assert (one.arch, one.validation, one.test) == (other.arch, other.validation, other.test)


def test_trials_trained_side_by_side_are_those_of_one_process_also_after_a_stop(own_task, tmp_path):
    """The oracle: the same window of two proposals, each evaluated here, in order."""
    settings = {"method": "evolution", "evaluator": "scratch", "workers": 2, "search.evaluations": 7}
    search = search_of(load_config(None, (), {"budget": ["macs<=20k"], **TINY, **ASKING, **settings}), own_task, own_network())[1]
    space = within(space_of(search.network), search.budgets[0].limits)
    judge = Counted(Scratch(search.network, search.task, search.proxy, seed=search.seed), search.costs)
    with open_store(tmp_path / "oracle.sqlite") as store, one_thread():
        expected = ask_and_tell(
            AskTellSearch(
                space, space.space, search.method.strategy, store, run="r", evaluations=7,
                seed=derive_seed(search.seed, "ask", 0), schedule=Window(2),
            ),
            judge,
        )  # fmt: skip
    with pytest.raises(Stopped):
        tiny_search(own_task, tmp_path / "run", ["macs<=20k"], progress=StoppingWatch(4), **settings)

    def found():
        opened = Folder(tmp_path / "run", read_only=True)
        trials = opened.store.trials("budget 0", space_of(own_network()))
        opened.close()
        return trials

    assert 0 < len(found()) < 7
    tiny_search(own_task, tmp_path / "run", ["macs<=20k"], **settings)
    assert [trial.to_json() | {"seconds": 0} for trial in found()] == [trial.to_json() | {"seconds": 0} for trial in expected]


def test_a_truncated_checkpoint_costs_nothing_the_one_before_is_taken_and_it_says_so(own_task, tmp_path, monkeypatch):
    tiny_search(own_task, tmp_path / "alone", ["macs<=20k"])
    monkeypatch.setattr("niwaki.run.folder.SAVE_EVERY_S", 0.0)
    with pytest.raises(Stopped):
        tiny_search(own_task, tmp_path / "run", ["macs<=20k"], progress=StoppingWatch(6))
    newest = tmp_path / "run" / "checkpoints" / "search.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    tiny_search(own_task, tmp_path / "run", ["macs<=20k"])
    (note,) = notes_of(tmp_path / "run")
    assert "went on from search.previous.safetensors, the one before it" in note
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "alone")


def test_an_interrupted_learner_stops_between_steps_and_saves(own_task, tmp_path, monkeypatch):
    tiny_search(own_task, tmp_path / "alone", ["macs<=20k"])

    pressed = []

    class PressingKeys(Silent):
        def advance(self, done):
            if done > 4 and not pressed:
                pressed.append(done)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        tiny_search(own_task, tmp_path / "run", ["macs<=20k"], progress=PressingKeys())
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "search.safetensors").metadata["step"] == pressed[0]
    tiny_search(own_task, tmp_path / "run", ["macs<=20k"])
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "alone")


def test_a_process_that_is_killed_or_interrupted_and_run_again_ends_with_the_same_safetensors(tmp_path, niwaki_command):
    settings = [*SMALL_SETTINGS, "--set", "train.epochs=12", "--set", "search.finalists=4", "--set", "search.folds=1", "--set", "workers=2"]
    alone = niwaki_command("search", "--out", tmp_path / "alone", *settings, "--json")
    arguments = ["search", "--out", str(tmp_path / "killed"), *settings]
    code, told = run_until(arguments, "search", then_s=0.3, by=signal.SIGINT)
    assert code == 130
    assert f"error: interrupted; everything done so far is kept in {tmp_path / 'killed'}. `niwaki resume" in told
    assert "Traceback" not in told
    assert run_until(arguments, "training 3 finalists", then_s=0.5)[0] == -signal.SIGKILL
    assert run_until(arguments, "training 1 finalists", then_s=0.1)[0] == -signal.SIGKILL
    assert run_until(arguments, "training\n", then_s=0.2)[0] == -signal.SIGKILL
    assert run_until(arguments, "exporting", then_s=1.5)[0] == -signal.SIGKILL
    gone_on = niwaki_command("resume", tmp_path / "killed", "--json")
    assert safetensors_of(tmp_path / "killed") == safetensors_of(tmp_path / "alone")
    assert len(safetensors_of(tmp_path / "alone")) == 5  # the network, and the ends of search and training, twice each
    for key in ("architecture", "macs", "params", "accuracy"):
        assert gone_on.json[key] == alone.json[key]


# --- warm start --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dmasking", "evolution"])
def test_a_warm_start_takes_the_weights_and_what_was_learned_of_the_choices(own_task, tmp_path, method):
    tiny_search(own_task, tmp_path / "earlier", ["macs<=20k"], **{"search.epochs": 4})
    earlier = load_checkpoint(tmp_path / "earlier" / "checkpoints" / "search.safetensors").arrays
    _, search = search_of(
        load_config(None, (), {"budget": ["macs<=9k", "macs<=15k"], "method": method, **TINY, **ASKING}), own_task, own_network()
    )
    spaces = [within(space_of(search.network), budget.limits) for budget in search.budgets]
    if method == "dmasking":
        learner = DMaskingSearch(search.network, own_task, spaces, search.method)
    else:
        learner = OneShotSearch(search.network, own_task, spaces, search.method.one_shot)
    assert "tensors of the supernet come from" in warm_start_(learner, tmp_path / "earlier")
    for name, value in learner.net.state_dict().items():
        assert np.array_equal(value.numpy(), earlier[f"net.{name}"])
    if method == "dmasking":
        assert np.abs(earlier["logits"]).max() > 0
        for budget in range(2):
            assert np.array_equal(learner.logits[budget].detach().numpy(), earlier["logits"][0])


def test_a_warm_start_from_a_smaller_network_fills_what_both_have(own_task, tmp_path):
    tiny_search(own_task, tmp_path / "earlier", ["macs<=20k"])
    earlier = load_checkpoint(tmp_path / "earlier" / "checkpoints" / "search.safetensors").arrays
    wider = edit(own_network(), lambda path, value, parent: 12 if path.endswith("large.conv.out_channels") else value)
    assert wider != own_network()
    spaces = [within(space_of(wider), [Limit(niwaki.count_macs(wider), 40_000)])]
    learner = DMaskingSearch(wider, own_task, spaces, DMasking(epochs=1, warmup_epochs=0))
    warm_start_(learner, tmp_path / "earlier")
    name = next(name for name, value in learner.net.state_dict().items() if value.dim() == 4 and len(value) == 12)
    assert np.array_equal(learner.net.state_dict()[name][:8].numpy(), earlier[f"net.{name}"])


def test_a_search_with_a_warm_start_notes_where_it_began(own_task, tmp_path):
    tiny_search(own_task, tmp_path / "earlier", ["macs<=20k"])
    tiny_search(own_task, tmp_path / "run", ["macs<=9k"], warm_start=str(tmp_path / "earlier"))
    (note,) = notes_of(tmp_path / "run")
    assert note.startswith("Warm start: ")
    assert str(tmp_path / "earlier") in note


# --- time --------------------------------------------------------------------------------------------------------------------


def test_a_time_limit_shrinks_the_plan_but_not_what_was_asked_for(own_task):
    asked = load_config(None, (), {"minutes": 0.1, "search.epochs": 50, "budget": ["macs<=20k"]})
    unlimited, search = search_of(asked, own_task, own_network())
    planned, shorter, expected = fit_to_minutes(asked, unlimited, search)
    assert planned.search.epochs == shorter.method.epochs == 50
    assert planned.train.epochs == shorter.recipe.epochs < unlimited.train.epochs
    assert planned.search.candidates == shorter.candidates < unlimited.search.candidates
    assert list(expected) == ["search", "judging", "finalists", "training"]


def test_a_plan_that_fits_its_time_is_left_as_it_is(own_task):
    asked = load_config(None, (), {"minutes": 600.0, "budget": ["macs<=20k"]})
    unlimited, search = search_of(asked, own_task, own_network())
    planned, same, expected = fit_to_minutes(asked, unlimited, search)
    assert planned == unlimited
    assert same.method == search.method
    assert sum(expected.values()) < 36_000


def test_the_plan_is_kept_and_gone_on_with_whatever_a_clock_would_say_later(own_task, tmp_path, monkeypatch):
    arguments = {"task": own_task, "budget": "macs<=20k", "out": tmp_path / "run", "minutes": 0.4, "settings": {"threads": 1}}
    slow = {"search": 60.0, "judging": 1.0, "finalists": 30.0, "training": 60.0}  # whatever this machine is, the plan must be cut
    monkeypatch.setattr("niwaki.run.plan.estimate", lambda search: slow)
    began = time.monotonic()
    result = niwaki.search(own_network(), **arguments)
    took = time.monotonic() - began
    opened = Folder(tmp_path / "run", read_only=True)
    seconds = opened.store.fact("seconds")
    opened.close()
    assert sum(value for phase, value in seconds.items() if phase != "export") <= 24, seconds
    assert took < 60  # 15 s where nothing else runs; the export, last, takes what it takes on a busy machine
    assert result.summary["seconds"] <= took
    config = (tmp_path / "run" / "config.json").read_text()
    assert json.loads(config)["plan"]["config"]["train"]["epochs"] < 300
    assert any(note.startswith("To end within 0.4 minutes, the plan is: search.epochs = ") for note in notes_of(tmp_path / "run"))
    monkeypatch.setattr("niwaki.run.plan.estimate", lambda search: pytest.fail("it measures again"))
    assert niwaki.search(own_network(), **arguments).summary == result.summary
    assert (tmp_path / "run" / "config.json").read_text() == config


def test_a_plan_with_regular_networks_that_were_asked_for_is_read_again_however_short_the_time(own_task, monkeypatch):
    slow = {"search": 60.0, "judging": 10.0, "finalists": 600.0, "training": 60.0}
    monkeypatch.setattr("niwaki.run.plan.estimate", lambda search: slow)
    for settings in ({"search.regular": 6}, {}, {"search.finalists": 3}):
        asked = load_config(None, (), {"minutes": 0.2, "budget": ["macs<=20k"], **settings})
        config, search = search_of(asked, own_task, own_network())
        planned, shorter, _ = fit_to_minutes(asked, config, search)
        again, read = search_of(load_config(None, (), planned.to_json()), own_task, own_network())
        assert (read.finalists, read.regular) == (shorter.finalists, shorter.regular)
        assert shorter.regular < shorter.finalists
        assert again == planned
        assert shorter.regular == settings.get("search.regular", shorter.regular)


def test_judging_and_finalists_end_with_the_time_limit(own_task, tmp_path):
    """With a network to deliver all the same."""

    def cut(phase, settings):
        class Late(Silent):  # the time is up as soon as that phase has done one thing
            here = False

            def phase(self, name, total):
                self.here = name.startswith(phase)

            def advance(self, done):
                if self.here and done >= 1:
                    Folder.elapsed = lambda self: 3600.0

        elapsed = Folder.elapsed
        try:
            tiny_search(own_task, tmp_path / phase, ["macs<=20k"], minutes=5, progress=Late(), workers=1, **settings)
        finally:
            Folder.elapsed = elapsed
        return notes_of(tmp_path / phase)

    settings = {"search.candidates": 9, "search.finalists": 4, "search.folds": 1}
    assert any("The time limit cut the judging of candidates short: 1 of 9 were judged." in note for note in cut("judging", settings))
    assert any("The time limit cut the training of finalists short: 1 of 3 were trained." in note for note in cut("training 3", settings))


def test_no_finalist_is_begun_that_would_outlast_the_time_limit(own_task, tmp_path, monkeypatch):
    fold, begun = finalists._fold, []

    def slow(*arguments):
        begun.append(arguments)
        return {**fold(*arguments), "seconds": 400.0}

    monkeypatch.setattr(finalists, "_fold", slow)
    settings = {"search.candidates": 9, "search.finalists": 4, "search.folds": 1}
    tiny_search(own_task, tmp_path / "run", ["macs<=20k"], minutes=5, workers=1, **settings)
    assert any("The time limit cut the training of finalists short: 1 of 3 were trained." in note for note in notes_of(tmp_path / "run"))
    assert len(begun) == 1


def test_of_several_budgets_the_larger_has_the_larger_part_of_the_time(own_task, tmp_path):
    _, search = search_of(load_config(None, (), {"budget": ["macs<=20k", "macs<=60k"], "minutes": 5}), own_task, own_network())
    spaces = [within(space_of(search.network), budget.limits) for budget in search.budgets]
    folder = Folder(tmp_path / "run", asked={})
    clock = Clock(folder, search, spaces)
    folder.close()
    assert 0 < clock.part(0) < 0.5
    assert clock.part(1) == 1.0


@pytest.mark.parametrize("settings", [{}, {"method": "random", "evaluator": "scratch"}], ids=["dmasking", "random"])
def test_what_the_time_limit_cuts_is_recorded_and_a_network_is_delivered_all_the_same(own_task, tmp_path, settings):
    class Slow(Silent):  # every look at the clock costs a second of the limit
        def advance(self, done):
            Folder.elapsed = lambda self, before=[0]: before.append(before[-1] + 1) or before[-1]

    elapsed = Folder.elapsed
    try:
        Slow().advance(0)
        _, chosen = tiny_search(
            own_task, tmp_path / "run", ["macs<=20k"], minutes=0.1, **{**settings, "search.epochs": 30, "train.epochs": 40}
        )
    finally:
        Folder.elapsed = elapsed
    assert len(chosen) == 1
    told = notes_of(tmp_path / "run")
    assert any("The time limit cut training short: " in note for note in told)
    if settings:
        assert any(re.fullmatch(r"The search for macs<=20000 ended after [1-4] of 5 evaluations\.", note) for note in told)
    else:
        assert any("The time limit cut search short: " in note for note in told)
    _, again = tiny_search(own_task, tmp_path / "run", ["macs<=20k"], minutes=0.1, **{**settings, "search.epochs": 30, "train.epochs": 40})
    assert (again[0].arch, again[0].test) == (chosen[0].arch, chosen[0].test)
