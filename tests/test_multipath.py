"""Multi-path networks: what domains share, what the union of their paths costs, and how their losses are balanced."""

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki import (
    Chain,
    Choice,
    Conv,
    ImageClassification,
    Limit,
    Network,
    SpaceError,
    arrays,
    build,
    classifier,
    conv_bn_act,
    count_macs,
    count_params,
    space_of,
    within,
)
from niwaki.gradient.balance import GradNorm, Prioritised, Sampled, Seen, Uncertainty, Uniform, prioritised
from niwaki.gradient.controller import Control
from niwaki.gradient.multipath import MPNAS, JointTraining, MultiPathSearch, Together, train_paths
from niwaki.net.layer import BatchNorm
from niwaki.nn.multipath import MultiPath, shared_share, union_params
from niwaki.recipe.multipath import BALANCES, candidates, decathlon_score
from niwaki.run.experiments import multipath as experiment
from niwaki.run.folder import Folder
from niwaki.run.progress import Silent

CLASSES = {"a": 3, "b": 3, "c": 4}
NETWORKS = {domain: candidates(classes, size=8, widths=(8, 8, 16, 16)) for domain, classes in CLASSES.items()}
SPACE = space_of(NETWORKS["a"])
OPTIONS = ("k3e2", "k5e2", "k3e4")


def path(*options):
    return SPACE.architecture({f"layer{at}": option for at, option in enumerate(options, start=1)})


def task(classes=3, count=120, seed=0):
    """A bright row whose place is the class, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = rng.integers(0, 60, (count, 8, 8)).astype(np.uint8)
    images[np.arange(count), 1 + 2 * labels % 7] += 150
    cut = count * 3 // 4
    return ImageClassification(arrays(images[:cut], labels[:cut], images[cut:], labels[cut:], source="bright rows"))


TASKS = {domain: task(classes, seed=at) for at, (domain, classes) in enumerate(CLASSES.items())}


def inputs(domain, count=16):
    return TASKS[domain].batch(torch.arange(count), torch.device("cpu"))


# ---------------------------------------------------------------- sharing


def gradients(net):
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def test_a_node_that_two_domains_take_has_the_sum_of_their_weighted_gradients_and_others_none():
    """Multi-path, check 1: a and b take the same candidate of layer 2, c another."""
    net = MultiPath(NETWORKS, seed=0)
    paths = {
        "a": path("k3e2", "k5e2", "k3e2", "k3e2"),
        "b": path("k5e2", "k5e2", "k3e4", "k3e2"),
        "c": path("k3e4", "k3e2", "k5e2", "k3e2"),
    }
    weights = {"a": 0.5, "b": 2.0, "c": 0.8}
    alone = {}
    for domain, own in paths.items():
        net.zero_grad(set_to_none=True)
        x, y = inputs(domain)
        TASKS[domain].loss(net(x, domain, own), y).backward()
        alone[domain] = gradients(net)
    net.zero_grad(set_to_none=True)
    sum(
        weights[domain] * TASKS[domain].loss(net(*(inputs(domain)[0], domain, own)), inputs(domain)[1]) for domain, own in paths.items()
    ).backward()
    for name, found in gradients(net).items():
        parts = [weights[domain] * alone[domain][name] for domain in paths if alone[domain][name] is not None]
        if not parts:
            assert found is None
        else:
            assert torch.allclose(found, sum(parts), atol=1e-6)
    users = {name: {domain for domain in paths if alone[domain][name] is not None} for name in alone["a"]}
    convs = {name: found for name, found in users.items() if "layer2" in name and name.split(".")[3] in net.shared}
    assert len(convs) == 9
    assert {frozenset(found) for name, found in convs.items() if "k5e2" in name} == {frozenset("ab")}
    assert {frozenset(found) for name, found in convs.items() if "k3e2" in name} == {frozenset("c")}
    assert {frozenset(found) for name, found in convs.items() if "k3e4" in name} == {frozenset()}


def test_a_domain_that_is_left_out_changes_nothing_for_the_others():
    whole, fewer = MultiPath(NETWORKS, seed=3).eval(), MultiPath({name: NETWORKS[name] for name in "ab"}, seed=4).eval()
    fewer.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if not name.startswith("nets.c.")})
    for domain in "ab":
        own = path("k3e4", "k5e2", "k3e2", "k3e4")
        assert torch.allclose(whole(inputs(domain)[0], domain, own), fewer(inputs(domain)[0], domain, own), atol=1e-6)


def test_norms_and_heads_are_each_domains_own_and_all_else_is_one_object():
    net = MultiPath(NETWORKS)
    first, third = net.net("a"), net.net("c")
    for name, layer in first.layers.items():
        own = isinstance(layer, _BatchNorm) or name == net.head
        assert (layer is not third.layers[name]) == own
    assert third.layers[net.head].out_features == 4
    x = inputs("a")[0]
    before = {name: buffer.clone() for name, buffer in third.named_buffers()}
    net.train()(x, "a", path(*OPTIONS, "k3e2"))
    assert all(torch.equal(before[name], buffer) for name, buffer in third.named_buffers())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (candidates(3, size=8, widths=(8, 8, 16, 24)), "only heads may differ"),
        (Network(Chain(conv_bn_act(Choice((8, 16)), 3, name="stem"), classifier(3)), (1, 8, 8)), "other choices or layers"),
    ],
)
def test_networks_that_differ_in_more_than_their_heads_are_refused(other, message):
    with pytest.raises(SpaceError, match=message):
        MultiPath({"a": NETWORKS["a"], "b": other})
    with pytest.raises(SpaceError, match="no domain 'z'; there are a, b, c"):
        MultiPath(NETWORKS).net("z")


# ---------------------------------------------------------------- accounting


def nodes(domain, own):
    """(name of a node, its parameters) of a plain network: by the modules that torch lists, norms and head under the domain's name."""
    module = build(NETWORKS[domain], own)
    found = {}
    for name, p in module.named_parameters():
        layer = module.get_submodule(name.rpartition(".")[0])
        mine = isinstance(layer, (_BatchNorm, torch.nn.Linear))
        found[(domain if mine else "", name)] = p.numel()
    return found


def test_the_union_counts_every_node_once():
    """Multi-path, check 2, against a union of sets of (layer, candidate), for random paths, the same and disjoint ones."""
    rng = np.random.default_rng(0)
    cases = [{domain: path(*rng.choice(OPTIONS, 4)) for domain in CLASSES} for _ in range(6)]
    same = dict.fromkeys(CLASSES, path("k3e2", "k5e2", "k3e4", "k3e2"))
    for paths in [*cases, same]:
        union = {}
        for domain, own in paths.items():
            union |= nodes(domain, own)
        assert union_params(NETWORKS, paths) == sum(union.values())
    one = count_params(NETWORKS["a"])(same["a"])
    extra = [sum(size for (owner, _), size in nodes(domain, same[domain]).items() if owner) for domain in "bc"]
    assert union_params(NETWORKS, same) == one + sum(extra)
    disjoint = {domain: path(*[option] * 4) for domain, option in zip("abc", OPTIONS, strict=True)}
    stem = sum(size for (owner, name), size in nodes("a", disjoint["a"]).items() if not owner and name.startswith("stem"))
    total = sum(count_params(NETWORKS[domain])(own) for domain, own in disjoint.items())
    assert union_params(NETWORKS, disjoint) == total - 2 * stem  # the stem is no choice, so all have it


def test_parts_of_a_weight_are_counted_once_too():
    """Widths 4 and 8 of one convolution: the narrow one lies within the wide one."""

    def network(classes):
        return Network(Chain(Conv(Choice((4, 8), "/width"), 3, name="conv"), BatchNorm(name="bn"), classifier(classes)), (1, 8, 8))

    networks = {"a": network(3), "b": network(3)}
    space = space_of(networks["a"])
    narrow, wide = (space.architecture({"width": width}) for width in (4, 8))
    assert union_params(networks, {"a": wide, "b": narrow}) == 9 * 8 + (2 * 8 + 8 * 3 + 3) + (2 * 4 + 4 * 3 + 3)


def test_the_final_model_gives_what_the_supernet_gives_and_has_the_parameters_of_the_union():
    net = MultiPath(NETWORKS, seed=1)
    paths = {
        "a": path("k3e2", "k5e2", "k3e2", "k3e2"),
        "b": path("k5e2", "k5e2", "k3e4", "k3e2"),
        "c": path("k3e4", "k3e2", "k5e2", "k3e2"),
    }
    for domain, own in paths.items():
        net.train()(inputs(domain)[0], domain, own)  # statistics that are not those of the beginning
    model = net.eval().extract(paths).eval()
    for domain, own in paths.items():
        assert torch.allclose(model(inputs(domain)[0], domain), net(inputs(domain)[0], domain, own), atol=1e-5)
    assert sum(p.numel() for p in model.parameters()) == union_params(NETWORKS, paths)


def test_shared_share():
    a, b = path("k3e2", "k5e2", "k3e2", "k3e2"), path("k3e2", "k5e2", "k3e4", "k3e2")
    assert (shared_share(a, a), shared_share(a, b)) == (1.0, 0.75)


# ---------------------------------------------------------------- balance


def trajectory(rng, domains=4, steps=60):
    """Random walks of qualities between 0 and 1."""
    return np.clip(rng.uniform(0.2, 0.8, domains) + rng.normal(0, 0.05, (steps, domains)).cumsum(axis=0), 0, 1)


def run(balance, qualities):
    state = balance.init([100] * qualities.shape[1])
    weights = [balance.weights(state)]
    for step, quality in enumerate(qualities, start=1):
        state = balance.after(state, Seen(quality, np.ones_like(quality), np.ones_like(quality), step / len(qualities)))
        weights.append(balance.weights(state))
    return state, np.array(weights)


@pytest.mark.parametrize("seed", range(20))
def test_prioritised_weights_are_positive_with_mean_one_and_grow_with_the_gap(seed):
    """Multi-path, check 3, on random trajectories."""
    rng = np.random.default_rng(seed)
    references = None if seed % 2 else tuple(rng.uniform(0.5, 1, 4))
    state, weights = run(Prioritised(references), trajectory(rng))
    assert (weights > 0).all()
    assert np.allclose(weights.mean(axis=1), 1)
    assert (weights[0] == 1).all()
    gaps = np.array(state["gaps"])
    assert (np.diff(weights[-1][np.argsort(gaps)]) >= 0).all()
    if len(set(gaps)) == 4:
        assert (np.diff(weights[-1][np.argsort(gaps)]) > 0).all()


def test_equal_gaps_or_no_ramp_weigh_alike_and_what_has_converged_does_too():
    gaps = np.array([0.1, 0.5, 0.9])
    assert prioritised(np.full(5, 0.37), 0.25, 1.0) == pytest.approx(np.ones(5))
    assert prioritised(gaps, 0.25, 0.0) == pytest.approx(np.ones(3))
    assert prioritised(gaps, 0.25, 1.0) == pytest.approx(3 * np.exp(gaps / 0.25) / np.exp(gaps / 0.25).sum())
    rising = np.minimum(np.linspace(0, 2, 200)[:, None] * np.array([0.9, 0.8, 0.7]), [0.9, 0.8, 0.7])
    for references in (None, (0.9, 0.8, 0.7)):
        _, weights = run(Prioritised(references), rising)
        assert np.abs(weights[-1] - 1).max() < 0.05
    _, lagging = run(Prioritised((0.9, 0.9, 0.9)), np.tile([0.9, 0.9, 0.45], (200, 1)))
    assert lagging[-1] == pytest.approx(3 * np.exp([0, 0, 2]) / np.exp([0, 0, 2]).sum(), rel=1e-3)
    assert lagging[-1].argmax() == 2


def test_domains_are_drawn_by_their_sizes():
    sizes = [9_000, 1_000, 10]
    for temperature, power in ((1.0, 1.0), (2.0, 0.5), (1e9, 0.0)):
        balance = Sampled(temperature)
        state = balance.init(sizes)
        drawn = np.bincount(np.concatenate([balance.turns(state, np.random.default_rng(at)) for at in range(3_000)]), minlength=3)
        expected = np.array(sizes, dtype=float) ** power
        assert drawn / drawn.sum() == pytest.approx(expected / expected.sum(), abs=0.015)
    assert Uniform().turns(Uniform().init(sizes), np.random.default_rng(0)) == [0, 1, 2]


def test_uncertainties_settle_where_their_objective_is_least():
    """sum L / (2 s^2) + log s is least at s^2 = L."""
    balance, losses = Uncertainty(0.05), np.array([0.2, 1.0, 3.0])
    state = balance.init([1, 1, 1])
    for _ in range(2_000):
        state = balance.after(state, Seen(losses, losses, losses, 0.5))
    assert np.exp(2 * np.array(state["log_s"])) == pytest.approx(losses, rel=1e-3)
    assert balance.weights(state) == pytest.approx(1 / (2 * losses), rel=1e-3)


def test_gradnorm_brings_gradients_to_one_size_and_favours_what_learns_slowly():
    norms, ones = np.array([4.0, 1.0, 2.0]), np.ones(3)
    balance = GradNorm(lr=1e-3)
    state = balance.init([1, 1, 1])
    for _ in range(4_000):
        state = balance.after(state, Seen(ones, ones, norms, 0.5))
    assert balance.weights(state) * norms == pytest.approx(np.full(3, 3 / (1 / norms).sum()), rel=0.02)
    slow = balance.init([1, 1, 1])
    for step in range(500):
        slow = balance.after(slow, Seen(ones, np.array([1.0, 1.0, 0.9**step]), ones, 0.5))
    assert balance.weights(slow)[2] < 0.9 < balance.weights(slow)[0]
    assert balance.weights(slow).mean() == pytest.approx(1)


# ---------------------------------------------------------------- training

QUICK = JointTraining(steps=12, batch_size=16, weight_lr=0.05, validation_batches=1)


def searching(seed=0, **given):
    spaces = {
        domain: within(SPACE, [Limit(count_macs(NETWORKS[domain]), int(1.2 * count_macs(NETWORKS[domain]).minimum()[0]))])
        for domain in CLASSES
    }
    return MultiPathSearch(NETWORKS, TASKS, spaces, MPNAS(QUICK, Control(lr=0.2), 0.3), seed=seed, **given)


def test_a_search_goes_on_with_the_same_bits():
    whole, part, again = (searching() for _ in range(3))
    whole.run()
    part.run(5)
    again.load(*part.state_dict())
    again.run()
    first, second = whole.state_dict(), again.state_dict()
    assert first[1] == second[1]
    assert all(torch.equal(first[0][name], second[0][name]) for name in first[0])
    assert whole.finished
    for domain, own in whole.paths.items():
        assert whole.controllers[domain].within.holds(np.array([SPACE.indices([own])[0]])).all()
    other = searching(seed=1)
    other.run()
    assert other.state_dict()[1] != first[1]


@pytest.mark.parametrize("name", BALANCES)
def test_every_balance_trains_all_domains_jointly(name):
    """Chance is 1/3 and 1/4; a bright row is easily told."""
    method = JointTraining(steps=30, batch_size=32, weight_lr=0.1, label_smoothing=0.0, validation_batches=1)
    parts = {domain: (one.part("train"), one.part("validation")) for domain, one in TASKS.items()}
    training = Together(NETWORKS, TASKS, parts, method, BALANCES[name], seed=0, device="cpu")
    own = dict(path("k3e2", "k3e2", "k3e2", "k3e2"))
    seen = [training.advance([own] * 3) for _ in range(30)]
    late = np.nanmean([one.losses for one in seen[-10:]], axis=0)
    assert (late < 0.5).all()
    assert np.nanmean([one.losses for one in seen[:5]]) > 0.5


def test_the_trained_paths_are_what_the_same_seed_gives():
    paths = {domain: path("k3e2", "k5e2", "k3e2", "k3e2") for domain in CLASSES}
    first, second = (train_paths(NETWORKS, TASKS, paths, QUICK, seed=5).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(ValueError, match="each domain needs both"):
        train_paths(NETWORKS, {"a": TASKS["a"]}, paths, QUICK)


def test_the_decathlon_scores_a_baseline_2500_and_no_errors_10000():
    baseline = {f"domain{at}": 0.05 * (at + 1) for at in range(10)}
    assert decathlon_score(baseline, baseline) == pytest.approx(2_500)
    assert decathlon_score(dict.fromkeys(baseline, 0.0), baseline) == pytest.approx(10_000)
    assert decathlon_score({name: 3 * error for name, error in baseline.items()}, baseline) == 0
    with pytest.raises(ValueError, match="above 0"):
        decathlon_score({"a": 0.1}, {"a": 0.0})


# ---------------------------------------------------------------- the experiment


def test_the_experiment_trains_small_stores_each_part_and_gives_a_section(shared_data, tmp_path, monkeypatch):
    """Every part is read, not made again, the second time; whatever it says, a quick run decides nothing."""
    monkeypatch.setenv("NIWAKI_SHARED", str(shared_data.parent))
    plan = experiment.Plan(2, 2, 1, 1, 1, ("uniform", "prioritised"), minutes="seconds")
    folder = Folder(tmp_path / "run", asked={"plan": plan.to_json()}, plan=dict)
    measured = experiment.measure(plan, folder, Silent(), 1)
    monkeypatch.setattr(experiment, "train_jointly", None)
    assert experiment.measure(plan, folder, Silent(), 1) == measured
    folder.close()
    section = experiment.section_of({"quick": True, "plan": plan.to_json(), **measured})
    assert {claim.verdict for claim in section.claims} == {"not decided (quick)", "not testable here"}
    (sharing,) = measured["sharing"]
    assert sharing["apart"]["params"] > sharing["together"]["params"]
    assert abs(np.mean(sharing["random"]["macs"]) / measured["target"] - 1) <= experiment.NEAR


def test_domains_of_the_experiment_are_what_they_are_called():
    digits, copy, permuted, turned = (experiment.domain_task(kind, None, 0).images for kind in ("digits", "copy", "permuted", "turned"))
    assert (digits.images == copy.images).all()
    assert (digits.labels == copy.labels).all()
    assert (permuted.labels != digits.labels).all()
    assert len(set(zip(permuted.labels.tolist(), digits.labels.tolist(), strict=True))) == 10
    assert (np.rot90(digits.images[5]) == turned.images[5]).all()
    assert len(experiment.domain_task("turned", 200, 1).images.images) == 200
