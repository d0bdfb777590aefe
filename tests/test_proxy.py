"""Zero-cost proxies: closed forms of small networks, and what every score must leave as it was."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from niwaki.evaluate.proxy import (
    PROXIES,
    Batch,
    ProxyError,
    ZeroCost,
    fisher,
    grad_norm,
    grasp,
    jacob_cov,
    naswot,
    snip,
    synflow,
    vote,
    zen,
)
from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Network, OneOf, Repeat, Residual
from niwaki.net.layer import Identity, Zero
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.space.choice import Choice
from niwaki.trial import EvaluationFailed


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=8, shape=(3, 8, 8), classes=4, seed=0):
    return Batch(torch.randn(count, *shape, generator=generator(seed)), torch.arange(count) % classes)


def linear(*sizes, bias=False, relu=False, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out, bias=bias), *([nn.ReLU()] if relu and fan_out != sizes[-1] else [])]
        return nn.Sequential(*layers)


NETWORK = Network(
    Chain(conv_bn_act(8, name="stem"), mbconv(8, expand=2, name="a"), mbconv(16, stride=2, name="b"), classifier(4)), (3, 8, 8)
)


def test_synflow_of_two_linear_layers_is_twice_the_sum_of_the_products_of_absolute_weights():
    model = linear(5, 7, 3)
    first, second = (layer.weight.detach().double().abs() for layer in model)
    expected = 2 * (second @ first @ torch.ones(5, dtype=torch.float64)).sum()
    assert synflow(model, batch(4, (5,)), generator()) == pytest.approx(float(expected.log()), rel=1e-12)


def test_snip_grad_norm_and_fisher_of_softmax_regression_have_closed_forms():
    model, data = linear(5, 3), batch(6, (5,), 3)
    weight, x = model[0].weight.detach(), data.images
    outputs = x @ weight.T
    g = (torch.softmax(outputs, 1) - F.one_hot(data.labels, 3)) / len(x)  # dL/d outputs
    gradient = g.T @ x
    assert snip(model, data, generator()) == pytest.approx(float((weight * gradient).abs().sum()), rel=1e-5)
    assert grad_norm(model, data, generator()) == pytest.approx(float(gradient.norm()), rel=1e-5)
    assert fisher(model, data, generator()) == pytest.approx(float(((outputs * g) ** 2).mean(0).sum() / 2), rel=1e-5)


def test_grasp_is_minus_the_weights_times_the_hessian_times_the_gradient():
    model, data = linear(4, 5, 3, relu=False).double(), batch(6, (4,), 3)
    data = Batch(data.images.double(), data.labels)
    sizes = [layer.weight.shape for layer in model]

    def loss(flat):
        first, second = (part.view(size) for part, size in zip(flat.split([20, 15]), sizes, strict=True))
        return F.cross_entropy(data.images @ first.T @ second.T, data.labels)

    flat = torch.cat([layer.weight.detach().flatten() for layer in model])
    gradient = torch.autograd.functional.jacobian(loss, flat)
    expected = -flat @ torch.autograd.functional.hessian(loss, flat) @ gradient
    assert grasp(model, data, generator()) == pytest.approx(float(expected), rel=1e-9)


def test_images_with_one_jacobian_have_the_lowest_jacobian_score():
    """A linear network: the correlation is 1 everywhere, with the eigenvalues B, 0, ..., 0."""
    count, k = 6, 1e-5
    expected = -(np.log(count + k) + 1 / (count + k) + (count - 1) * (np.log(k) + 1 / k))
    assert jacob_cov(linear(5, 3), batch(count, (5,), 3), generator()) == pytest.approx(expected, rel=1e-6)
    assert jacob_cov(linear(5, 16, 3, relu=True), batch(count, (5,), 3), generator()) > expected


def test_naswot_is_the_determinant_of_agreements():
    model, data = linear(5, 16, 3, relu=True), batch(6, (5,), 3)
    active = (model[0](data.images) > 0).double().numpy(force=True)
    agreements = np.array([[(a == b).sum() for b in active] for a in active], dtype=float)
    assert naswot(model, data, generator()) == pytest.approx(np.log(np.linalg.det(agreements)), rel=1e-9)


def test_naswot_does_not_depend_on_the_order_of_images_and_tells_no_copies_apart():
    model, data = build(NETWORK), batch()
    order = torch.randperm(len(data.images), generator=generator())
    shuffled = Batch(data.images[order], data.labels[order])
    assert naswot(model, data, generator()) == pytest.approx(naswot(model, shuffled, generator()), rel=1e-9)
    twice = Batch(data.images[[0, 0, *range(2, 8)]], data.labels)
    assert naswot(model, twice, generator()) == float("-inf")


@pytest.mark.parametrize("name", PROXIES)
def test_a_score_leaves_the_model_and_all_random_numbers_as_they_were_and_comes_again(name):
    model, data = build(NETWORK), batch()
    model.train()
    F.cross_entropy(model(data.images), data.labels).backward()
    model.stem_conv.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    modes, drawn = [module.training for module in model.modules()], torch.get_rng_state()
    scores = [PROXIES[name](model, data, generator(3)) for _ in range(2)]
    assert scores[0] == scores[1]
    assert np.isfinite(scores[0])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(parameter.grad, old) for parameter, old in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), drawn)


def test_zen_of_fifty_layers_is_finite_and_grows_with_depth_and_width():
    def score(width, depth):
        body = Chain(*(conv_bn_act(width, name=f"layer{at}") for at in range(depth)), classifier(4))
        return zen(build(Network(body, (3, 8, 8))), batch(), generator(), repeats=4)

    assert np.isfinite(score(8, 50))
    assert score(8, 2) < score(8, 8)  # more layers, more linear regions (Lin et al., Figure 2)
    assert score(4, 4) < score(16, 4)


def test_synflow_of_fifty_layers_does_not_overflow():
    body = Chain(*(conv_bn_act(64, name=f"layer{at}") for at in range(50)), classifier(4))
    assert 100 < synflow(build(Network(body, (3, 8, 8))), batch(), generator()) < 1000


def test_the_vote_counts_the_majorities_won():
    scores = np.random.default_rng(0).integers(0, 5, (3, 12)).astype(float)
    won = np.zeros(12)
    for a, b in combinations(range(12), 2):
        ballot = sum(np.sign(row[a] - row[b]) for row in scores)
        won[a] += 0.5 + 0.5 * np.sign(ballot)
        won[b] += 0.5 - 0.5 * np.sign(ballot)
    assert (vote(scores) == won).all()
    ranked = vote([[-np.inf, 1.0, 2.0], [-np.inf, 5.0, 7.0], [3.0, 1.0, 2.0]])
    assert ranked.tolist() == [0, 1, 2]


def choosing(*, dead=False):
    branch = OneOf(Identity(name="skip"), *([Zero(name="none")] if dead else []), conv_bn_act(8, name="conv"), name="edge")
    return Network(Chain(conv_bn_act(8, name="stem"), branch, classifier(4)), (3, 8, 8))


def test_the_evaluator_gives_means_and_spreads_over_initialisations_and_each_proxy_its_own_random_numbers():
    network = choosing()
    arch = space_of(network).architecture({"edge": "conv"})
    judge = ZeroCost(network, batch(), ("snip", "zen", "synflow"))
    found = judge(arch)
    each = [judge.scores(arch, number) for number in range(3)]
    for name in ("snip", "zen", "synflow"):
        values = [row[name] for row in each]
        assert found[name] == pytest.approx(np.mean(values))
        assert found[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
        assert len(set(values)) == 3
    assert ZeroCost(network, batch(), ("zen",))(arch)["zen"] == found["zen"]


def test_a_network_without_a_score_is_a_failed_evaluation_and_bad_requests_are_refused():
    network = choosing(dead=True)
    with pytest.raises(EvaluationFailed, match="synflow"):
        ZeroCost(network, batch(), ("synflow",))(space_of(network).architecture({"edge": "none"}))
    dead = build(network, space_of(network).architecture({"edge": "none"}))
    assert jacob_cov(dead, batch(), generator()) == float("-inf")
    assert all(np.isfinite(PROXIES[name](dead, batch(), generator())) for name in ("grad_norm", "snip", "grasp", "fisher"))
    with pytest.raises(ProxyError, match="no proxy 'synflo'"):
        ZeroCost(network, batch(), ("synflo",))
    with pytest.raises(ProxyError, match="2 examples"):
        batch(1)


def test_proxies_read_repeats_and_residuals_of_every_depth():
    network = Network(Chain(conv_bn_act(8), Repeat(Residual(conv_bn_act(8), name="r"), Choice((1, 3), "depth")), classifier(4)), (3, 8, 8))
    scores = [ZeroCost(network, batch(), ("synflow", "snip"), initialisations=1)(arch) for arch in space_of(network).enumerate()]
    assert scores[0]["synflow"] < scores[1]["synflow"]
