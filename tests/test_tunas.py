"""TuNAS with shared weights: the controller's draws and gradients under warm-ups, a search's steps, resumption, and `niwaki search`."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from niwaki import (
    BatchNorm,
    Chain,
    Choice,
    Flatten,
    Identity,
    ImageClassification,
    Limit,
    Linear,
    Network,
    OneOf,
    arrays,
    count_params,
    place,
    space_of,
    within,
)
from niwaki.factor.expect import expected
from niwaki.gradient.controller import Control, PathController, filters_of
from niwaki.gradient.tunas import Rounds, TuNAS, TuNASSearch, batch_statistics
from niwaki.gradient.weights import rising_cosine
from niwaki.net.layer import Activation
from niwaki.nn.supernet import supernet
from niwaki.recipe import tabnas
from niwaki.zoo import tunas as spaces

TINY = spaces.Frame(1, (2, 1), 2, ("relu", "hswish"))


def tiny(name="proxylessnas"):
    if name == "proxylessnas":
        return spaces.proxylessnas((1, 8, 8), 3, widths=(8, 8, 8, 16, 16, 24), frame=TINY)
    return spaces.mobilenetv3_like((1, 8, 8), 3, widths=(16, 16, 24, 32, 40), frame=TINY)


def nested():
    """A width, and a layer that may be left out with a width of its own: a decision that exists under a condition."""
    inner = Chain(Linear(Choice((2, 4), "/inner.width"), name="a"), Activation("relu", name="r"), Linear(4, name="b"), name="keep")
    return Network(
        Chain(
            Linear(Choice((2, 3, 4), "/outer.width"), name="first"), Linear(4, name="to4"),
            OneOf(inner, Identity(name="skip"), by=Choice(("keep", "skip"), "/layer"), name="layer"), Linear(2, name="out"),
        ), (3,),
    )  # fmt: skip


def inside(network, share):
    space, cost = space_of(network), count_params(network)
    least, most = cost.minimum()[0], cost.maximum()[0]
    return within(space, [Limit(cost, least + int(share * (most - least)))])


def controller(network, share=0.5, budget="hard", steps=100, **changes):
    return PathController(inside(network, share), filters_of(place(network)), replace(Control(budget=budget), **changes), steps=steps)


def images(count=240, classes=3, seed=0):
    """A bright row whose place is the class, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    pictures = rng.integers(0, 60, (count, 8, 8)).astype(np.uint8)
    pictures[np.arange(count), 1 + 2 * labels] += 150
    half = count * 3 // 4
    return ImageClassification(arrays(pictures[:half], labels[:half], pictures[half:], labels[half:], source="bright rows"))


@pytest.mark.parametrize("name", ["proxylessnas", "mobilenetv3-like"])
def test_filters_are_the_decisions_that_tunas_tags_so(name):
    network = tiny(name)
    assert filters_of(place(network)) == {d.name for d in space_of(network).decisions if spaces.is_filters(d.name)}


def test_a_warm_up_averages_operations_and_takes_the_largest_filters():
    """TuNAS, the first step: everything is replaced; in the middle of the warm-up, half; after it, nothing."""
    network = tiny("mobilenetv3-like")
    learner = controller(network, budget="soft", steps=100)
    filters = filters_of(place(network))
    draw = learner.draw(np.random.default_rng(0))
    assert not draw.counted.any()
    for decision in learner.within.decisions:
        if decision.name in filters:
            assert draw.decisions[decision.name] == max(decision.options)
        else:
            assert torch.equal(draw.decisions[decision.name], torch.full((len(decision.options),), 1 / len(decision.options)))
    for steps, share in ((12, 0.52), (25, 0.0), (99, 0.0)):
        learner.moments = replace(learner.moments, steps=steps)
        exists = replaced = 0
        for seed in range(60):
            draw = learner.draw(np.random.default_rng(seed))
            exists += len(draw.decisions)
            replaced += len(draw.decisions) - int(draw.counted.sum())
        assert replaced / exists == pytest.approx(share, abs=0.03)


def test_within_a_hard_budget_a_warm_up_takes_the_largest_filters_that_keep_it():
    network = tabnas.perceptron(8, (8, 16, 32, 64), 3, 4)
    learner = controller(network, share=0.3, steps=100)
    limit, space = learner.within.limits[0], learner.within.space
    drawn = set()
    for seed in range(60):
        learner.moments = replace(learner.moments, steps=seed % 20)
        row = learner.draw(np.random.default_rng(seed)).row
        drawn.add(tuple(row.tolist()))
        assert limit.cost.batch(row[None].astype(np.int32))[0] <= limit.upper
        if seed % 20 == 0:  # all were replaced: no width has a larger option that would still do
            for at, decision in enumerate(space.decisions):
                larger = [np.where(np.arange(len(row)) == at, number, row) for number in range(row[at] + 1, len(decision.options))]
                assert not any(limit.cost.batch(other[None].astype(np.int32))[0] <= limit.upper for other in larger)
    assert len(drawn) > 5


def test_warm_ups_of_operations_and_of_filters_are_two():
    network = tiny("mobilenetv3-like")
    filters = filters_of(place(network))
    for changes, kept in (
        ({"operation_warm_up": 0.0}, lambda name: name not in filters),
        ({"filter_warm_up": 0.0}, lambda name: name in filters),
    ):
        learner = controller(network, **changes)
        draw = learner.draw(np.random.default_rng(1))
        counted = {decision.name for decision, yes in zip(learner.within.decisions, draw.counted, strict=True) if yes}
        assert counted == {name for name in draw.decisions if kept(name)}
    with pytest.raises(ValueError, match="must end no later"):
        Control(operation_warm_up=0.3)


def test_a_replaced_ancestor_lets_what_depends_on_it_exist():
    learner = controller(nested(), budget="soft")
    for seed in range(20):
        learner.moments = replace(learner.moments, steps=12)
        draw = learner.draw(np.random.default_rng(seed))
        layer = draw.decisions["layer"]
        assert ("inner.width" in draw.decisions) == (isinstance(layer, torch.Tensor) or layer == "keep")


def log_p_of(learner, row, counted):
    """log of the probability that the counted decisions come out as in `row`, by enumeration: those that do not exist are drawn, too."""
    p = list(learner.probabilities().values())
    total, within_budget = 0.0, 0.0
    for free in product(*(range(len(one)) for one in p)):
        chance = float(np.prod([one[at] for one, at in zip(p, free, strict=True)]))
        canonical = learner.softmaxes.existence.canonical_(np.array([free]))
        if learner.method.budget == "hard" and not learner.within.holds(canonical)[0]:
            continue
        within_budget += chance
        if all(free[at] == row[at] for at in np.flatnonzero(counted)):
            total += chance
    return np.log(total / within_budget)


@pytest.mark.parametrize("budget", ["soft", "hard"])
def test_the_gradient_is_that_of_the_log_probability_of_what_was_drawn_and_of_nothing_that_was_replaced(budget):
    """Against finite differences of the enumerated probability, decisions under conditions and replaced ancestors included."""
    learner = controller(nested(), share=0.6, budget=budget)
    learner.parameters = np.random.default_rng(3).normal(size=learner.parameters.shape)
    learner.moments = replace(learner.moments, steps=12)
    seen = set()
    for seed in range(40):
        draw = learner.draw(np.random.default_rng(seed))
        if (key := (tuple(draw.row), tuple(draw.counted))) in seen:
            continue
        seen.add(key)
        found, numeric = learner.gradient(draw), np.zeros_like(learner.parameters)
        for at in np.ndindex(*numeric.shape):
            values = []
            for step in (1e-5, -1e-5):
                learner.parameters[at] += step
                values.append(log_p_of(learner, draw.row, draw.counted))
                learner.parameters[at] -= step
            numeric[at] = (values[0] - values[1]) / 2e-5
        assert np.allclose(found, numeric, atol=1e-6)
        if budget == "soft":
            assert not found[~draw.counted].any()
    assert len(seen) > 8
    assert any(not all(counted) for _, counted in seen)


@pytest.mark.parametrize("budget", ["soft", "hard"])
def test_paths_follow_the_law_whose_log_probability_is_booked(budget):
    """TuNAS, check 2, under warm-ups: the mean of grad log p over the draws is 0, within 4 standard errors for each logit, only if they do."""
    learner = controller(nested(), share=0.6, budget=budget)
    learner.parameters = np.random.default_rng(1).normal(size=learner.parameters.shape)
    learner.moments = replace(learner.moments, steps=12)
    generator = np.random.default_rng(0)
    slopes = np.array([learner.gradient(learner.draw(generator)) for _ in range(3_000)])
    errors = slopes.std(axis=0) / np.sqrt(len(slopes))
    assert (np.abs(slopes.mean(axis=0)) <= 4 * errors + 1e-12).all()
    assert (errors > 0).sum() == sum(len(d.options) for d in learner.within.decisions)


def test_the_cost_of_averaged_operations_is_the_mean_over_their_options():
    learner = controller(nested(), budget="soft")
    (limit,) = learner.within.limits
    space = learner.within.space
    for seed in range(20):
        learner.moments = replace(learner.moments, steps=12)
        draw = learner.draw(np.random.default_rng(seed))
        options = [one if not isinstance(one, torch.Tensor) else None for one in draw.decisions.values()]
        choices = [space[name].options if one is None else (one,) for name, one in zip(draw.decisions, options, strict=True)]
        costs = [
            limit.cost(space.architecture(active(space, dict(zip(draw.decisions, taken, strict=True))))) for taken in product(*choices)
        ]
        (spent,) = learner.spent(draw)
        assert spent.cost == pytest.approx(np.mean(costs))
        assert spent.target == limit.upper


def active(space, choices):
    return {name: choices[name] for name in space.active(choices)}


def test_an_averaged_layer_runs_all_its_options_in_a_supernet():
    """The head is linear, so the average of the branches gives the average of the outputs; what is drawn inside a branch stays as drawn."""
    net = supernet(nested(), seed=1)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    fixed = {"outer.width": 3, "inner.width": 2}
    both = [net(x, {**fixed, "layer": option}) for option in ("keep", "skip")]
    assert torch.allclose(net(x, {**fixed, "layer": torch.full((2,), 0.5)}), (both[0] + both[1]) / 2, atol=1e-6)


# ---------------------------------------------------------------- a search

SHORT = TuNAS(epochs=4, batch_size=16, weight_lr=0.05, architecture_share=0.3, control=Control(lr=0.1))


def perceptron():
    layers = [Flatten(name="flat")]
    for at in (1, 2):
        layers += [
            Linear(Choice((4, 8, 16), f"/hidden{at}.width"), bias=False, name=f"hidden{at}"),
            BatchNorm(name=f"bn{at}"),
            Activation("relu", name=f"act{at}"),
        ]
    return Network(Chain(*layers, Linear(3, name="output")), (1, 8, 8))


def searching(spaces, seed=0, method=SHORT, network=None):
    return TuNASSearch(network or perceptron(), images(), spaces, method, seed=seed)


def test_a_search_goes_on_with_the_same_bits_and_knows_its_own_state():
    within_two = [inside(tiny(), 0.3), inside(tiny(), 0.6)]
    method = replace(SHORT, epochs=2)
    whole, parts = (searching(within_two, method=method, network=tiny()) for _ in range(2))
    while not whole.finished:
        whole.run()
    parts.run(3)
    again = searching(within_two, method=method, network=tiny())
    again.load(*parts.state_dict())
    while not again.finished:
        again.run(2)
    first, second = whole.state_dict(), again.state_dict()
    assert first[1] == second[1]
    assert first[0].keys() == second[0].keys()
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    other = searching(within_two, seed=1, method=method, network=tiny())
    while not other.finished:
        other.run()
    assert other.history != whole.history
    with pytest.raises(ValueError, match="this state is of a search with"):
        searching(within_two, network=tiny()).load(*first)


def test_the_policy_waits_for_a_quarter_of_the_steps_and_then_keeps_its_budgets():
    """Of two budgets that take turns, no path is over its own once the warm-ups are over, and no controller has learned before."""
    spaces_of_two = [inside(perceptron(), share) for share in (0.2, 0.5)]
    search = searching(spaces_of_two)
    drawn = [[], []]
    for at, one in enumerate(search.controllers):
        draw = one.draw
        one.draw = lambda generator, draw=draw, at=at: drawn[at].append(draw(generator)) or drawn[at][-1]
    quarter = search.total_steps // 4
    while not search.finished:
        search.run(1)
        moved = [bool(one.parameters.any()) for one in search.controllers]
        if search.step <= quarter - 1:
            assert not any(moved)
    assert all(moved)
    for draws, space in zip(drawn, spaces_of_two, strict=True):
        assert len(draws) == search.total_steps // 2
        after = [draw for number, draw in enumerate(draws) if number >= len(draws) / 4]
        assert space.holds(np.array([draw.row for draw in after])).all()
    assert all(
        space.holds(np.array([space.indices([one.mode()])[0]])).all() for space, one in zip(spaces_of_two, search.controllers, strict=True)
    )


def test_a_soft_budget_draws_what_it_likes_and_a_strong_reward_leads_it_to_the_target():
    network, method = perceptron(), replace(SHORT, epochs=40, control=Control(lr=0.1, beta=-2.0, budget="soft"))
    space = inside(network, 0.35)
    search = searching([space], method=method)
    ratios = []
    draw = search.controllers[0].draw
    search.controllers[0].draw = lambda generator: ratios.append(search.controllers[0].spent(found := draw(generator))[0].ratio) or found
    while not search.finished:
        search.run()
    assert max(ratios) > 1
    assert abs(np.mean(ratios[-20:]) - 1) < 0.15
    assert search.history[-1].ratios[0] == pytest.approx(np.mean(ratios[-20:]), abs=0.15)
    p = {name: torch.from_numpy(one) for name, one in search.probabilities()[0].items()}
    assert search.history[-1].ratios[0] == pytest.approx(float(expected(space.limits[0].cost, p)) / space.limits[0].upper)


def test_the_quality_is_measured_with_the_statistics_of_its_batch():
    task = images()
    net = supernet(perceptron(), seed=0)
    x, _ = task.batch(torch.arange(32), torch.device("cpu"))
    arch = {"hidden1.width": 8, "hidden2.width": 4}
    expected_output = net.train()(x, arch)
    net.eval()
    with torch.no_grad(), batch_statistics(net):
        assert torch.equal(net(x, arch), expected_output)
    assert not any(module.training for module in net.modules())


def test_rounds_show_every_example_once_in_each_and_in_another_order():
    rounds = Rounds(torch.arange(50), 20, seed=3)
    first, second = ([rounds.batch(turn * rounds.count + at) for at in range(rounds.count)] for turn in (0, 1))
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(50))
    assert torch.cat(first).tolist() != torch.cat(second).tolist()
    assert torch.equal(rounds.batch(1), first[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"epochs": 0}, "epochs=0"), ({"architecture_share": 1.0}, "between 0 and 1"), ({"weight_warm_up": 1.0}, "weight_warm_up")],
)
def test_settings_that_cannot_be_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TuNAS(**changes)


def test_the_weights_learning_rate_rises_and_falls_to_nothing():
    rates = [rising_cosine(1.0, 0.1, step, 100) for step in range(101)]
    assert rates[:3] == pytest.approx([1 / 11, 2 / 11, 3 / 11])
    assert rates[10] == max(rates) == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)


def test_niwaki_search_by_tunas_delivers_a_network_within_its_budget(niwaki_command, tmp_path):
    settings = ("method=tunas", "threads=1", "search.epochs=2", "search.candidates=3", "search.finalists=1", "train.epochs=2")
    arguments = ["search", "--out", tmp_path / "run", "--json", "--quiet", "--set", "budget=macs<=30k"]
    answer = niwaki_command(*arguments, *(word for one in settings for word in ("--set", one)))
    assert answer.code == 0, answer.err
    assert answer.json["macs"] <= 30_000
    wrong = niwaki_command("search", "--out", tmp_path / "other", "--set", "method=tunas", "--set", "search.temperature=3.0")
    assert wrong.code == 2
    assert "search.temperature" in wrong.err
