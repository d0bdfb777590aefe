"""BigNAS: slices of the supernet, what a step of the sandwich is made of, how training begins and ends, its relatives, and calibration."""

import json
import math
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import niwaki
from niwaki import (
    Activation,
    BatchNorm,
    Chain,
    Choice,
    Conv,
    ImageClassification,
    Limit,
    Network,
    Residual,
    Subsample,
    arrays,
    build,
    count_macs,
    digits,
    place,
    space_of,
    within,
    zoo,
)
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.eliminate import even
from niwaki.gradient.train_once import BANDS, Phase, TrainOnce, TrainOnceError, TrainOnceSearch, kinds_of, squared_error
from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import OneOf, Repeat
from niwaki.nn.importance import important_first
from niwaki.nn.residual import drop_connect, residual_ends, thinned, zero_last_gammas_
from niwaki.nn.supernet import extract, supernet
from niwaki.recipe import bignas as recipe
from niwaki.run.experiments import bignas as experiment
from niwaki.run.folder import RunError
from niwaki.run.model import ModelError
from niwaki.run.train_once import NothingBest
from niwaki.space.choice import BudgetError
from niwaki.strategy.coarse_to_fine import CoarseToFine
from niwaki.task.task import derive_seed
from niwaki.train.loop import epoch_batches, evaluate
from niwaki.train.sandwich import alpha_divergence, constant_ending, kl_divergence, sandwich_backward, without_dropout
from niwaki.trial import Trial
from niwaki.zoo import bignas as published
from test_supernet import lively


def tiny(shape=(1, 8, 8), classes=10, resolution=None):
    """Two stages: depth, width and kernel of each, dropout before the last layer, and where asked for the image's resolution."""
    stages = []
    for at in range(2):
        width, kernel = Choice((4, 6, 8), f"/stage{at}.width"), Choice((3, 5), f"/stage{at}.kernel")
        first = conv_bn_act(width, kernel, stride=2, activation="swish", name="down")
        block = mbconv(width, kernel, expand=2, activation="swish", squeeze_excite=True, name="block")
        stages.append(Chain(first, Repeat(block, Choice((1, 2, 3), f"/stage{at}.depth") - 1), name=f"stage{at}"))
    before = [] if resolution is None else [Subsample(Choice(resolution, "/resolution"), name="input")]
    return Network(Chain(*before, *stages, classifier(classes, dropout=0.2)), shape)


@lru_cache(maxsize=1)
def images(count=160, classes=4):
    """A bright row whose place is the class, with noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % classes
    pictures = rng.integers(0, 60, (count, 8, 8)).astype(np.uint8)
    pictures[np.arange(count), 1 + 2 * labels] += 150
    half = count * 3 // 4
    return ImageClassification(arrays(pictures[:half], labels[:half], pictures[half:], labels[half:], source="bright rows"))


def some(**changes):
    given = {"phases": (Phase(3, 0.05),), "batch_size": 24, "optimizer": "sgd", **changes}
    return TrainOnce(**given)


def learner(network=None, method=None, spaces=(), **changes):
    return TrainOnceSearch(network or tiny(classes=4), images(), list(spaces), method or some(), **changes)


# --- works when 1: slices ---------------------------------------------------------------------------------------------------


def copied_slices(net, arch):
    """A stand-alone network with slices of the supernet's tensors, by name and size: the first channels, the centre of a kernel."""
    module, whole = build(net.network, arch).double(), net.state_dict()
    for name, target in module.state_dict().items():
        if name.startswith("input_"):  # the rows and columns that the resolution reads are no weights
            continue
        source = whole.get(f"layers.{name}")
        if source is None:  # a squeeze-excite is one layer of the supernet
            source = whole["layers." + name.replace("_se_reduce.", "_se.reduce.").replace("_se_expand.", "_se.expand.")]
        for dim, size in enumerate(target.shape):
            edge = (source.shape[dim] - size) // 2 if dim >= 2 else 0
            source = source.narrow(dim, edge, size)
        target.copy_(source)
    return module.train(net.training)


@pytest.mark.parametrize("name", ["bignas-small", "resolutions"])
def test_a_member_is_a_stand_alone_network_with_copied_slices(name):
    network = zoo.network("bignas-small", (1, 12, 12)) if name == "bignas-small" else tiny((1, 12, 12), resolution=(8, 10, 12))
    space, net = space_of(network), lively(network).double()
    x = torch.randn(3, *network.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    drawn = space.sample_many(50, np.random.default_rng(0))
    assert len(np.unique(drawn, axis=0)) >= 45
    with torch.no_grad(), without_dropout(net):
        for at, row in enumerate(drawn.tolist()):
            arch = space.from_indices(row)
            net.load_state_dict(weights)
            net.train(at % 2 == 1)
            plain = copied_slices(net, arch)
            for module in (*plain.modules(), net.layers):
                if isinstance(module, (nn.Dropout, nn.ModuleDict)):
                    module.training = False
            torch.testing.assert_close(net(x, arch), plain(x), rtol=1e-9, atol=1e-9)


# --- works when 2: the sandwich ---------------------------------------------------------------------------------------------


class Spied:
    """A supernet whose calls are noted: the member, whether dropout was on, and the outputs."""

    def __init__(self, net):
        self.calls, forward = [], net.forward

        def noted(x, decisions, **more):
            outputs = forward(x, decisions, **more)
            self.calls.append((decisions, net.layers.training, more.get("after"), outputs))
            return outputs

        net.forward = noted


def gradients(net):
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


def test_a_step_runs_the_biggest_the_smallest_and_distinct_others():
    one = learner()
    spy = Spied(one.net)
    one.run(4)
    assert len(spy.calls) == 4 * 4
    for step in range(4):
        archs = [call[0] for call in spy.calls[4 * step : 4 * step + 4]]
        assert archs[0] == one.biggest
        assert archs[1] == one.smallest
        assert len(set(archs)) == 4
    assert one.macs(one.biggest) == one.macs.maximum()[0]
    assert one.macs(one.smallest) == one.macs.minimum()[0]


def test_the_gradient_of_a_step_is_the_sum_of_the_members_own_with_a_teacher_that_stands_still():
    network = tiny(classes=4)
    net, space = lively(network).double(), space_of(network)
    x, y = torch.randn(6, 1, 8, 8, dtype=torch.float64), torch.arange(6) % 4
    cost = count_macs(network)
    biggest, others = (
        cost.maximum()[1],
        [cost.minimum()[1], *(space.from_indices(row) for row in space.sample_many(2, np.random.default_rng(5)).tolist())],
    )
    net.train()
    net.zero_grad()
    torch.manual_seed(0)
    loss, told = sandwich_backward(net, x, biggest, others, loss=lambda out: F.cross_entropy(out, y), divergence=kl_divergence)
    summed = gradients(net)

    def separately(detached):
        total = dict.fromkeys(summed, 0.0)
        torch.manual_seed(0)
        net.zero_grad()
        teacher = net(x, biggest)
        p = F.softmax(teacher.detach() if detached else teacher, 1)
        parts = [F.cross_entropy(teacher, y)]
        with without_dropout(net):
            parts += [(p * (p.log() - F.log_softmax(net(x, arch), 1))).sum(1).mean() for arch in others]
        for part in parts:
            net.zero_grad()
            part.backward(retain_graph=True)
            for name, grad in gradients(net).items():
                total[name] = total[name] + grad
        return total, parts

    apart, parts = separately(detached=True)
    assert loss.item() == pytest.approx(parts[0].item())
    assert told.item() == pytest.approx(sum(part.item() for part in parts[1:]) / 3)
    for name, grad in apart.items():
        torch.testing.assert_close(summed[name], grad, rtol=1e-9, atol=1e-12)
    moving, _ = separately(detached=False)
    assert any(not torch.allclose(summed[name], grad, rtol=1e-3) for name, grad in moving.items())


def test_only_the_biggest_member_is_regularised():
    network = tiny(classes=4)
    net, cost = lively(network), count_macs(network)
    spy = Spied(net)
    net.train()
    x, y = torch.randn(6, 1, 8, 8), torch.arange(6) % 4
    biggest, smallest = cost.maximum()[1], cost.minimum()[1]
    outputs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        after = drop_connect(net.placement, 0.5)
        sandwich_backward(net, x, biggest, [smallest], loss=lambda out: F.cross_entropy(out, y), divergence=kl_divergence, after=after)
        (_, big_drops, big_after, big), (_, drops, none, small) = spy.calls[-2:]
        assert (big_drops, big_after is not None, drops, none) == (True, True, False, None)
        outputs.append((big, small))
    assert not torch.allclose(outputs[0][0], outputs[1][0])
    assert torch.equal(outputs[0][1], outputs[1][1])
    assert net.layers.training
    assert all(module.training for module in net.modules())


def test_drop_connect_drops_whole_branches_of_examples_more_often_the_deeper_and_keeps_the_mean():
    torch.manual_seed(0)
    kept = thinned(torch.ones(20_000, 2, 1, 1), 0.25)
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert sorted(set(kept.flatten().tolist())) == pytest.approx([0.0, 4 / 3])
    assert kept.mean().item() == pytest.approx(1.0, abs=0.02)
    network = tiny(classes=4)
    net, biggest = lively(network).eval(), count_macs(network).maximum()[1]
    ends = residual_ends(net.placement)
    assert len(ends) == 4
    seen, after = {}, drop_connect(net.placement, 0.4)

    def noted(item, feature):
        handed_on = after(item, feature)
        seen[item.path] = (handed_on.tensor.flatten(1) == 0).all(1).float().mean().item() if handed_on is not feature else None
        return handed_on

    with torch.no_grad():
        net(torch.randn(4000, 1, 8, 8), biggest, after=noted)
    assert {path for path, share in seen.items() if share is not None} == frozenset().union(*ends)
    assert [seen[path] for (path,) in ends] == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.04)


def test_children_are_drawn_choice_by_choice_over_the_whole_space_or_within_budgets_that_take_turns():
    network = tiny(classes=4)
    space, cost = space_of(network), count_macs(network)
    long = (Phase(60, 0.05),)
    one = learner(network, some(phases=long))
    drawn = [arch for epoch in range(40) for step in one._members(epoch) for (arch,) in step]
    for decision in space.decisions:
        counts = Counter(arch[decision.name] for arch in drawn if decision.name in arch)
        for option in decision.options:
            assert counts[option] / sum(counts.values()) == pytest.approx(1 / len(decision.options), abs=0.08)
    most = cost.maximum()[0]
    spaces = [within(space, [Limit(cost, int(share * most))]) for share in (0.3, 0.6)]
    budgeted = learner(network, some(members="within", phases=long), spaces)
    first, second = [], []
    for (one_,), (other,) in (step for epoch in range(3) for step in budgeted._members(epoch)):
        first.append(cost(one_))
        second.append(cost(other))
    assert max(first) <= 0.3 * most < max(second) <= 0.6 * most


# --- works when 3: how it begins, and how the learning rate ends ------------------------------------------------------------


@pytest.mark.parametrize("name", ["bignas-small", "bignas", "ofa-mobilenetv3"])
def test_with_zero_gammas_every_residual_block_is_the_identity(name):
    network = zoo.network(name, (3, 32, 32)) if name != "ofa-mobilenetv3" else zoo.network(name, (3, 128, 128))
    net = supernet(network).train()
    assert zero_last_gammas_(net) == len(residual_ends(net.placement)) > 4
    biggest, blocks, before = count_macs(network).maximum()[1], 0, {}

    def noted(item, feature):
        nonlocal blocks
        if type(item.layer).__name__ == "Sum":
            branch, shortcut = (before[source] for source in item.inputs)
            assert branch.abs().max() == 0
            assert (feature.whole() - shortcut).abs().max() <= 1e-6
            blocks += 1
        before[len(before)] = feature.whole()
        return feature

    with torch.no_grad():
        net(torch.randn(2, *network.input_shape), biggest, after=noted)
    assert blocks == len(residual_ends(net.placement))


def test_what_ends_a_residual_branch():
    def ends(body, when="equal"):
        return residual_ends(place(Network(Chain(Conv(8, 1, name="first"), Residual(body, when=when), classifier(2)), (8, 8, 8))))

    bn = BatchNorm(name="bn")
    assert ends(Chain(Conv(8, name="conv"), bn)) == ({"residual0.bn"},)
    assert ends(Chain(Conv(8, name="conv"), bn, Activation("relu", name="act"))) == ()
    assert ends(Chain(Conv(Choice((4, 8), "/w"), name="conv"), bn)) == ()  # not every member has the shortcut
    assert ends(Chain(Conv(4, name="a"), Conv(16, name="conv"), bn), "project") == ({"residual0.bn"},)  # the longer way is the branch
    either = OneOf(
        Chain(Conv(8, name="conv"), BatchNorm(name="bn"), name="one"),
        Chain(Conv(8, 1, name="c"), BatchNorm(name="n"), name="two"),
        name="which",
    )
    assert ends(either) == ({"residual0.which.one.bn", "residual0.which.two.n"},)


def test_the_learning_rate_falls_exponentially_to_5_percent_and_stays():
    rates = [constant_ending(0.4, step, 1000, warm_up=0.05, last=0.05, reached=0.6) for step in range(1000)]
    assert rates[:50] == pytest.approx([0.4 * (step + 1) / 51 for step in range(50)])
    falling = np.diff(np.log(rates[50:600]))
    assert falling == pytest.approx(np.full(549, math.log(0.05) / 550))
    assert rates[600:] == pytest.approx([0.02] * 400)
    # the published staircase, 0.97 every 2.4 epochs, is at 5 % where ours is
    epochs = math.log(0.05) / math.log(0.97) * 2.4
    assert recipe.BIGNAS.reached * 360 == pytest.approx(epochs, abs=0.5)
    cosine = some(schedule="cosine", phases=(Phase(3, 1.0, warm_up=0.1),))
    assert [cosine.lr_at(0, step, 100) for step in (0, 10, 55, 99)] == pytest.approx([1 / 11, 1.0, 0.5, 0.0], abs=1e-3)


# --- works when 4: calibration ----------------------------------------------------------------------------------------------


def test_without_its_own_statistics_the_smallest_member_is_worse_by_10_points_or_more():
    task = ImageClassification(digits())
    one = TrainOnceSearch(published.bignas_small((1, 8, 8)), task, [], recipe.small(epochs=2, lr=0.2))
    while not one.finished:
        one.run()
    judge, test = SharedWeights(one.net, task), task.part("test")
    calibrated = evaluate(judge.module(one.smallest), task, test)["accuracy"]
    as_it_is = evaluate(extract(one.net, one.smallest), task, test)["accuracy"]
    assert calibrated > 0.5
    assert as_it_is <= calibrated - 0.1


def test_calibration_looks_at_training_images_alone():
    class Noted:
        """The task, with its labels wrong and every index that was asked for remembered."""

        def __init__(self, task):
            self.task, self.asked = task, []

        def part(self, name):
            return self.task.part(name)

        def batch(self, indices, device):
            self.asked += indices.tolist()
            inputs, targets = self.task.batch(indices, device)
            return inputs, torch.zeros_like(targets)

    task, net = images(), lively(tiny(classes=4))
    arch, noted = space_of(net.network).from_indices([0] * 6), Noted(task)
    module, other = SharedWeights(net, task).module(arch), SharedWeights(net, noted).module(arch)
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values(), strict=True))
    assert set(noted.asked) == set(task.part("train").tolist())


# --- relatives --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_the_gradient_of_the_alpha_divergence_is_that_of_its_formula(alpha):
    torch.manual_seed(0)
    student, teacher = torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 7, dtype=torch.float64)
    a, b = student.clone().requires_grad_(), student.clone().requires_grad_()
    value = alpha_divergence(a, teacher, alphas=(alpha, alpha), clip=1e12)
    q, p = F.softmax(b, 1), F.softmax(teacher, 1)
    if alpha == 1.0:
        formula = (p * (p / q).log()).sum(1).mean()
    elif alpha == 0.0:
        formula = (q * (q / p).log()).sum(1).mean()
    else:
        formula = (q * ((p / q) ** alpha - 1)).sum(1).mean() / (alpha * (alpha - 1))
    value.backward()
    formula.backward()
    assert value.item() == pytest.approx(formula.item())
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)


def test_the_larger_of_two_divergences_counts_for_each_example_and_ratios_are_clipped():
    teacher = torch.tensor([[4.0, 0.0], [0.2, 0.0]])
    student = torch.tensor([[0.0, 0.0], [6.0, 0.0]], requires_grad=True)
    each = [[alpha_divergence(student[at : at + 1], teacher[at : at + 1], alphas=(a, a)).item() for a in (-1.0, 1.0)] for at in range(2)]
    assert alpha_divergence(student, teacher).item() == pytest.approx(np.mean([max(pair) for pair in each]))
    assert {np.argmax(pair) for pair in each} == {0, 1}
    wild = alpha_divergence(torch.tensor([[50.0, 0.0]], requires_grad=True), torch.tensor([[-50.0, 0.0]]))
    assert math.isfinite(wild.item())
    torch.testing.assert_close(kl_divergence(student, teacher), alpha_divergence(student, teacher, alphas=(1.0, 1.0)))


def test_attentive_candidates_are_distributed_as_the_space_is_in_the_band_of_a_drawn_cost():
    network = tiny(classes=4)
    space, cost = space_of(network), count_macs(network)
    one = learner(network, some(sampling="attentive", phases=(Phase(60, 0.05),)))
    chances, (least, most) = even(space), (cost.minimum()[0], cost.maximum()[0])
    width = -(-(most - least + 1) // BANDS)

    def band(arch):
        return (cost(arch) - least) // width

    groups = [child for epoch in range(60) for step in one._members(epoch) for child in step]
    assert all(len({band(arch) for arch in group}) == 1 for group in groups)
    assert max(map(len, groups)) == 3
    weights = Counter()
    exact = {}
    for arch in space.enumerate():
        exact[arch] = math.prod(chances[name][0] for name in arch)  # chances are even, and only what exists is drawn
        weights[band(arch)] += exact[arch]
    found = Counter(band(group[0]) for group in groups)
    for at, share in weights.items():
        assert found[at] / len(groups) == pytest.approx(share, abs=4 * math.sqrt(share / len(groups)) + 0.003)
    favourite = max(weights, key=weights.__getitem__)
    rows = one._in_band(0, favourite, 4000, np.random.default_rng(0), one.chances(one.method.phases[0]))
    seen = Counter(space.from_indices(row) for row in rows.tolist())
    for arch, share in exact.items():
        expected = share / weights[favourite] if band(arch) == favourite else 0.0
        assert seen[arch] / len(rows) == pytest.approx(expected, abs=5 * math.sqrt(expected / len(rows)) + 1e-9)


def test_the_best_of_the_candidates_is_trained():
    one = learner(method=some(sampling="attentive", label_smoothing=0.0))
    spy = Spied(one.net)
    one.run(3)
    members = one._members(0)
    at = 0
    for step in range(3):
        for child in members[step]:
            calls = spy.calls[at : at + len(child)] if len(child) > 1 else []
            at += len(calls)
            assert [call[0] for call in calls] == (child if len(child) > 1 else [])
            child[:] = [calls[int(np.argmin([F.cross_entropy(c[3], targets(one, step)).item() for c in calls]))][0]] if calls else child
        trained = [call[0] for call in spy.calls[at : at + 4]]
        assert trained == [one.biggest, one.smallest, members[step][0][0], members[step][1][0]]
        at += 4


def targets(one, step):
    return one.task.labels(epoch_batches(one.part, one.method.batch_size, seed=derive_seed(one.seed, "weights", 0))[step])


SHRINKING = some(
    rule="shrinking", schedule="cosine", zero_gamma=False,
    phases=(Phase(1, 0.05, 1, ()), Phase(1, 0.05, 1, (("kernel", None),)), Phase(1, 0.02, 2, (("kernel", None), ("depth", 2))), Phase(1, 0.02, 4)),
)  # fmt: skip


def test_progressive_shrinking_opens_one_kind_after_the_other_and_learns_from_the_biggest_member_as_it_was():
    network = tiny(classes=4)
    one = learner(network, SHRINKING)
    kinds = {"stage0.width": "width", "stage0.kernel": "kernel", "stage0.depth": "depth", "resolution": "resolution"}
    assert kinds.items() <= kinds_of(place(tiny(resolution=(6, 8)))).items()
    largest = {d.name: max(d.options) for d in space_of(network).decisions}
    seen = [[arch for epoch in [phase] * 1 for step in one._members(epoch) for (arch,) in step] for phase in range(4)]
    assert set(seen[0]) == {one.biggest}
    assert all(arch[name] == option for arch in seen[1] for name, option in largest.items() if not name.endswith("kernel") and name in arch)
    assert {arch["stage0.kernel"] for arch in seen[1]} == {3, 5}
    assert {arch["stage0.depth"] for arch in seen[2]} == {2, 3}
    assert {arch["stage0.width"] for arch in seen[2]} == {8}
    assert {arch["stage0.width"] for arch in seen[3]} == {4, 6, 8}
    assert {arch["stage1.depth"] for arch in seen[3]} == {1, 2, 3}
    assert [len(one._members(epoch)[0]) for epoch in range(4)] == [1, 1, 2, 4]
    one.run()
    assert one.teacher is None
    before = {name: value.clone() for name, value in extract(one.net, one.biggest).named_parameters()}
    while not one.finished:
        one.run()
    assert all(torch.equal(value, before[name]) for name, value in one.teacher.named_parameters())
    after = extract(one.net, one.biggest)
    assert any(not torch.equal(value, before[name]) for name, value in after.named_parameters())
    assert [record.child_loss > 0 for record in one.history] == [False, True, True, True]


METHODS = {
    "bignas": some(drop_connect=0.2),
    "rmsprop": some(optimizer="rmsprop", phases=(Phase(3, 0.01),)),
    "alphanet": some(sampling="attentive", divergence="alpha"),
    "ofa": SHRINKING,
}


@pytest.mark.parametrize("name", METHODS)
def test_a_training_goes_on_from_any_step_with_the_same_bits(name):
    def state(one):
        tensors, content = one.state_dict()
        return {key: value.clone() for key, value in tensors.items()}, json.loads(json.dumps(content))

    whole, parts = learner(method=METHODS[name]), learner(method=METHODS[name])
    while not whole.finished:
        whole.run()
    for steps in (3, 1, 5, 2, 4, 3):
        parts.run(steps)
        other = learner(method=METHODS[name])
        other.load(*state(parts))
        parts = other
    while not parts.finished:
        parts.run(2)
    (mine, ours), (theirs, other) = state(whole), state(parts)
    assert ours == other
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    with pytest.raises(ValueError, match="this state is of a training"):
        learner(method=replace(METHODS[name], weight_decay=0.5)).load(mine, ours)


def test_a_training_learns():
    one = learner(method=some(phases=(Phase(20, 0.2),), drop_connect=0.0))
    while not one.finished:
        one.run()
    judge = SharedWeights(one.net, one.task)
    for arch in (one.biggest, one.smallest):
        assert judge(arch)["accuracy"] >= 0.8


def test_a_number_is_learned_by_squared_error():
    assert squared_error(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]])).item() == 2.5


def test_weights_that_are_given_are_where_training_begins():
    network = tiny(classes=4)
    weights = lively(network).state_dict()
    one = learner(network, weights=weights)
    assert all(torch.equal(value, weights[name]) for name, value in one.net.state_dict().items())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampling": "best"}, "sampling='best' .even or attentive"),
        ({"phases": ()}, "at least one"),
        ({"drop_connect": 1.0}, "drop_connect=1.0"),
        ({"rule": "shrinking", "phases": (Phase(1, 0.1, 0),)}, "without children"),
    ],
)
def test_what_cannot_be_trained_with_is_said(change, said):
    with pytest.raises(ValueError, match=said):
        TrainOnce(**change)
    with pytest.raises(ValueError, match="epochs=0 "):
        Phase(0, 0)


# --- selection ------------------------------------------------------------------------------------------------------------------


def test_skeletons_come_first_nearest_below_the_budget_and_then_changes_of_the_best():
    network = published.bignas_small()
    space, cost = space_of(network), count_macs(network)
    budget = within(space, [Limit(cost, cost.maximum()[0] // 3)])
    strategy = CoarseToFine(skeletons=6, keep=2)

    def level(arch, kind):
        """small, middle or large: the same in all stages."""
        return {d.options.index(arch[d.name]) / (len(d.options) - 1) for d in space.decisions if kind in d.name}

    grid = [arch for arch in space.enumerate() if all(len(level(arch, kind)) == 1 for kind in ("width", "depth", "kernel"))]
    assert len(grid) == 3 * 3 * 2
    nearest = sorted((arch for arch in grid if arch in budget), key=cost, reverse=True)[:6]
    state = strategy.init(budget)
    asked = strategy.ask(state, 6, Random(0), ())
    assert asked == nearest
    worth = {arch: at for at, arch in enumerate([3, 5, 1, 0, 2, 4])}
    state = strategy.tell(state, [Trial(at, arch, {"accuracy": float(worth[at])}) for at, arch in enumerate(asked)])
    best = sorted(range(6), key=worth.__getitem__)[-2:]
    assert {member.arch for member in state.best} == {asked[at] for at in best}
    for arch in strategy.ask(state, 8, Random(1), ()):
        assert arch in budget
        assert arch not in asked
        assert any(arch in set(space.neighbours(asked[at])) for at in best)


def test_selection_beats_the_median_of_random_members_near_the_budget():
    """The toy: every stage is worth more the wider and the deeper, and the second one most; a kernel of 5 costs more than it is worth."""
    network = published.bignas_small()
    space, cost = space_of(network), count_macs(network)

    def worth(arch):
        stages = range(3)
        return sum(
            (1, 3, 2)[at] * (arch[f"stage{at}.width"] / 32 + arch[f"stage{at}.depth"] / 3) - 0.1 * arch[f"stage{at}.kernel"]
            for at in stages
        )

    for share in (0.3, 0.5, 0.8):
        upper = int(share * cost.maximum()[0])
        budget = within(space, [Limit(cost, upper)])
        strategy = CoarseToFine(skeletons=16)
        state, picked = strategy.init(budget), []
        for number in range(100):
            (arch,) = strategy.ask(state, 1, Random(number), ())
            assert cost(arch) <= upper
            picked.append(worth(arch))
            state = strategy.tell(state, [Trial(number, arch, {"accuracy": worth(arch)})])
        near = [worth(arch) for arch in budget.enumerate() if cost(arch) >= 0.95 * upper]
        assert max(picked) >= np.quantile(near, 0.95)


# --- niwaki search --------------------------------------------------------------------------------------------------------------


def test_niwaki_search_by_bignas_delivers_a_member_of_the_supernet(niwaki_command, tmp_path):
    settings = ("network=bignas-small", "threads=1", "search.epochs=2", "search.evaluations=6", "search.strategy=evolution")
    arguments = ["search", "--out", tmp_path / "run", "--json", "--quiet", "--set", "method=alphanet", "--set", "budget=macs<=22%"]
    answer = niwaki_command(*arguments, *(word for one in settings for word in ("--set", one)))
    assert answer.code == 0, answer.err
    (row,) = answer.json["budgets"]
    assert row["macs"] <= 0.22 * count_macs(published.bignas_small((1, 8, 8))).maximum()[0]
    assert row["judged"] == "on validation, with shared weights"
    weights = load_file(tmp_path / "run" / "checkpoints" / "search.safetensors")
    delivered = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(delivered["stem_conv.weight"], weights["net.layers.stem_conv.weight"])
    wrong = niwaki_command(
        "search", "--out", tmp_path / "other", "--set", "method=bignas", "--set", "train.epochs=3", "--set", "search.finalists=3"
    )
    assert wrong.code == 2
    assert "train.epochs" in wrong.err
    assert "search.finalists" in wrong.err


# --- niwaki.train_once ----------------------------------------------------------------------------------------------------------


def test_one_supernet_is_asked_for_several_budgets(tmp_path):
    network, task = tiny(classes=4), images()
    asked = {"epochs": 6, "lr": 0.1, "out": tmp_path / "run"}
    trained = niwaki.train_once(network, task, **asked)
    most, before = trained.search.costs["macs"].maximum()[0], {k: v.clone() for k, v in trained.net.state_dict().items()}
    costs = []
    for budget, share in (("macs<=25%", 0.25), ("macs<=60%", 0.6), (f"macs<={most}", 1.0)):
        arch, module = trained.best(budget, evaluations=12)
        looked_at = trained.trials(budget, CoarseToFine(skeletons=6), 12)
        assert trained.metrics(arch)["accuracy"] == max(trial.metrics["accuracy"] for trial in looked_at)
        costs.append(trained.metrics(arch)["macs"])
        assert costs[-1] == count_macs(network)(arch) <= share * most
        assert type(module).__module__.startswith("torch.fx")
        assert evaluate(module, task, task.part("validation")).items() <= trained.metrics(arch).items()
    assert len(set(costs)) == 3
    with pytest.raises(BudgetError, match="the least is"):
        trained.best("macs<=10")
    again = niwaki.train_once(network, task, **asked)  # from the folder, where it is finished
    assert all(torch.equal(value, before[name]) for name, value in again.net.state_dict().items())
    assert again.history == trained.history
    with pytest.raises(RunError, match="another configuration"):
        niwaki.train_once(network, task, **(asked | {"epochs": 7}))


def test_any_strategy_may_select_and_what_it_cannot_evaluate_is_told():
    trained = niwaki.train_once(tiny(classes=4), images(), epochs=1)
    arch, _ = trained.best("params<=50%", strategy="random", evaluations=5)
    assert trained.metrics(arch)["params"] <= trained.search.costs["params"].maximum()[0] / 2
    with torch.no_grad():
        next(trained.net.parameters()).fill_(float("nan"))
    with pytest.raises(NothingBest, match="none of 3 members within macs<=50% could be evaluated: with shared weights its loss is nan"):
        trained.best("macs<=50%", evaluations=3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "bignass"}, "no way 'bignass' .* there are bignas, attentivenas, alphanet, ofa"), ({"epochs": 0}, "epochs=0: .* at least 1"),
        ({"lr": 0.0}, "lr=0.0 .above 0"), ({"method": some(), "epochs": 3}, "epochs=3 would change nothing"),
        ({"method": some(), "budgets": ["macs<=50%"]}, "would change nothing: this method draws its members anywhere"),
        ({"method": "ofa", "budgets": ["macs<=50%"]}, "would change nothing"),
    ],
)  # fmt: skip
def test_what_a_supernet_cannot_be_trained_once_with_is_said(given, said):
    with pytest.raises(TrainOnceError, match=said):
        niwaki.train_once(tiny(classes=4), images(), **given)


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(64, 8), nn.Linear(8, 4)

    def forward(self, x):
        return {"logits": self.head(self.body(x.flatten(1)).relu())}


def test_a_network_that_does_not_fit_the_task_is_refused_before_it_is_trained_once():
    network, weights = niwaki.adopt(Named(), torch.zeros(1, 1, 8, 8))
    with pytest.raises(ModelError, match=r"the model gives dict for 2 examples of .*; \(2, 4\) is needed"):
        niwaki.train_once(network, images(), weights=weights)
    with pytest.raises(ModelError, match=r"the model gives \(2, 3\) for 2 examples"):
        niwaki.train_once(tiny(classes=3), images())
    with pytest.raises(TrainOnceError, match=r"a network is a Network, which niwaki.adopt makes of a torch.nn.Module; given Named"):
        niwaki.train_once(Named(), images())


class Owned(nn.Module):
    """A residual network as its owner wrote it, with BatchNorm statistics that are not the initial ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv1, self.bn1 = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(8 * 8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return self.head(self.drop(x.mean(3).flatten(1)))


def test_an_adopted_model_is_trained_once_from_its_owners_weights():
    torch.manual_seed(0)
    model, task = Owned(), images()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "running" in name:
                value.copy_(torch.rand_like(value) + 0.5)
    network, weights = niwaki.adopt(model.eval(), torch.zeros(1, 1, 8, 8))
    x, _ = task.batch(task.part("test"), torch.device("cpu"))
    trained = niwaki.train_once(network, task, weights=weights, epochs=1, lr=1e-12)
    assert (trained.biggest, trained.smallest) == (trained.search.costs["macs"].maximum()[1], trained.search.costs["macs"].minimum()[1])
    whole = extract(trained.net, trained.biggest).eval()
    with torch.no_grad():  # statistics moved in training; the owner's own again, the whole is the owner's, its units in another order
        ordered = important_first(network, weights)
        for name, value in whole.state_dict().items():
            if "running" in name:
                value.copy_(ordered[name])
        torch.testing.assert_close(whole(x), model(x), rtol=1e-4, atol=1e-4)
    net = trained.net.train()
    with torch.no_grad(), without_dropout(net):
        assert torch.equal(net(x, trained.smallest), net(x, trained.smallest))
    with torch.no_grad():
        assert not torch.equal(net(x, trained.biggest), net(x, trained.biggest))
    trained = niwaki.train_once(network, task, weights=weights, epochs=10, lr=0.1)
    (small, module), (large, _) = trained.best("macs<=30%", evaluations=8), trained.best("macs<=100%", evaluations=8)
    assert trained.metrics(small)["macs"] <= 0.3 * trained.search.costs["macs"].maximum()[0] < trained.metrics(large)["macs"]
    assert min(trained.test(small)["accuracy"], trained.test(large)["accuracy"]) >= 0.9
    assert {type(one).__module__.partition(".")[0] for one in module.modules() if one is not module} == {"torch"}


# --- the published space and recipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kernels", "size"), [("stage", 235_929_600), ("layer", 761_807_241_216)])
def test_the_published_space_has_the_published_size_and_costs(kernels, size):
    network = published.bignas(kernels=kernels)
    assert space_of(network).size == size
    # by hand: widths, depths (with a kernel for each layer kept), resolutions
    by_hand, widths, depths = 4 * 2 * 2, 1, 1
    for stage in published.STAGES:
        widths *= len(stage.widths)
        per = len(stage.kernels)
        depths *= sum(per**depth for depth in stage.depths) if kernels == "layer" else per * len(stage.depths)
    assert by_hand * widths * depths == size
    cost = count_macs(network)
    assert 200e6 < cost.minimum()[0] < 242e6  # the smallest published model is near the smallest member
    assert cost.maximum()[0] > 1040e6
    for macs, _ in published.PUBLISHED.values():
        assert within(space_of(network), [Limit(cost, int(macs * 1e6))]).size > 0


def test_published_defaults_are_kept_and_presets_are_of_them():
    one = recipe.BIGNAS
    assert (one.epochs, one.batch_size, one.phases[0].lr, one.phases[0].children, one.optimizer) == (360, 4096, 0.256, 2, "rmsprop")
    assert (one.last_lr, one.drop_connect, one.weight_decay, one.label_smoothing) == (0.05, 0.2, 1e-5, 0.1)
    assert [phase.epochs for phase in recipe.ONCE_FOR_ALL.phases] == [180, 120, 25, 120, 25, 120]
    assert [phase.children for phase in recipe.ONCE_FOR_ALL.phases] == [1, 1, 2, 2, 4, 4]
    for name, full in recipe.PUBLISHED.items():
        for epochs in (1, 3, 6, 40):
            less = recipe.small(name, epochs=epochs)
            assert less.epochs == epochs
            assert (less.rule, less.divergence, less.sampling, less.schedule) == (full.rule, full.divergence, full.sampling, full.schedule)
    assert [phase.epochs for phase in recipe.small("ofa", epochs=59).phases] == [18, 12, 2, 12, 3, 12]


# --- niwaki reproduce bignas ----------------------------------------------------------------------------------------------------


def told(sandwich=(83.0, 84.0, 85.5), alone=(82.0, 83.5, 85.0), single=(80.0, 82.0, 84.0), uncalibrated=24.0, picked=85.0, most=100):
    """Results of two seeds with these accuracies of the smallest, a middle and the biggest member, the second seed 0.2 points above the first."""
    plan = experiment.EXPERIMENT.plan(True).to_json() | {"members": 15}
    between = np.linspace(86, 88, 12).tolist()
    jobs = {}
    for seed in range(2):
        more = 0.2 * seed
        picks = [
            {"share": s, "upper": 100, "most": most, "picked": picked + more, "median": 84.0, "near": 9, "random_best": 84.5}
            for s in experiment.SHARES
        ]
        jobs[f"sandwich {seed}"] = {
            "seconds": 60.0,
            "steps": 1410,
            "members": [one + more for one in (*sandwich, *between)],
            "uncalibrated": uncalibrated,
            "selections": picks,
        }
        jobs[f"single path {seed}"] = {"seconds": 60.0, "steps": 5000, "members": [one + more for one in single]}
        for number, one in enumerate((*alone, *between)):
            jobs[f"alone {number} {seed}"] = {"accuracy": one + more, "seconds": 20.0}
    jobs["relative alphanet"] = {"seconds": 60.0, "members": list(sandwich)}
    return {"plan": plan, "jobs": jobs, "macs": [400_000, 3_200_000], "quick": False, "machine": {}}


def verdicts(**given):
    return [one.verdict for one in experiment.section_of(told(**given)).claims[:-1]]


def test_every_verdict_follows_from_what_was_measured():
    assert set(verdicts()) == {"holds"}
    assert len(verdicts()) == 3 + 2 + 1 + 1 + 3
    changes = (
        ({"sandwich": (80.4, 84.0, 85.5)}, [0]), ({"sandwich": (83.0, 81.9, 85.5)}, [1]), ({"sandwich": (83.0, 84.0, 83.4)}, [2, 4]),
        ({"single": (83.1, 82.0, 84.0)}, [3]), ({"uncalibrated": 74.0}, [5]), ({"alone": (91.0, 90.0, 89.0)}, [0, 1, 2, 6]),
        ({"picked": 83.9}, [7, 8, 9]), ({"most": 101}, [7, 8, 9]),
    )  # fmt: skip
    for given, failing in changes:
        assert [at for at, verdict in enumerate(verdicts(**given)) if verdict == "does not hold"] == failing, given


def test_the_members_that_are_ranked_lie_evenly_between_the_smallest_and_the_biggest():
    members, cost = experiment.members_of(20), count_macs(experiment.network())
    costs = [cost(arch) for arch in members]
    assert (costs[0], costs[2]) == (cost.minimum()[0], cost.maximum()[0])
    assert costs[1] == pytest.approx((costs[0] + costs[2]) / 2, rel=0.15)
    assert len(set(members)) == 20
    assert np.diff(sorted(costs[3:])) == pytest.approx(np.full(16, (costs[2] - costs[0]) / 18), rel=0.5)
