"""One set of weights, many members: soft masks, slices and extracted modules agree wherever they must."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from niwaki.net.block import conv_bn_act, mbconv
from niwaki.net.control import Chain, Network, Repeat, Residual
from niwaki.net.layer import Activation, BatchNorm, Conv, Flatten, GlobalPool, Linear
from niwaki.net.place import place, space_of
from niwaki.nn.build import build
from niwaki.nn.supernet import Supernet, extract, supernet
from niwaki.space.choice import Choice, SpaceError
from niwaki.testing.primitives import BLOCKS, PRIMITIVES

NETWORKS = {**{kind.__name__: network for kind, network in PRIMITIVES.items()}, **BLOCKS}


def lively(network: Network, seed: int = 0) -> Supernet:
    """A supernet whose BatchNorms, biases and weights are all far from their initial values, so that nothing is equal by being nothing."""
    net, generator = supernet(network), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=generator) * (0.4 if parameter.dim() > 1 else 0.5) + (parameter.dim() == 1) * 0.5
            )
        for buffer in net.buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return net


def one_hot(space, arch):
    return {
        d.name: F.one_hot(torch.tensor(d.options.index(arch[d.name]) if d.name in arch else 0), len(d.options)).float()
        for d in space.decisions
    }


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_mask_equals_slice_equals_the_extracted_module(name, training):
    network = NETWORKS[name]
    space, rng, net = space_of(network), random.Random(0), lively(NETWORKS[name])
    x = torch.randn(5, *network.input_shape, generator=torch.Generator().manual_seed(1))
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    for _ in range(12):
        arch = space.sample(rng)
        outputs = []
        for forward in (
            lambda arch=arch: extract(net, arch)(x),
            lambda arch=arch: net(x, arch),
            lambda arch=arch: net(x, one_hot(space, arch)),
        ):
            net.load_state_dict(weights)  # training mode moves the running statistics
            net.train(training)
            with torch.no_grad():
                outputs.append(forward())
        plain, sliced, masked = outputs
        assert plain.std() > 1e-3
        torch.testing.assert_close(sliced, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())
        torch.testing.assert_close(masked, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_hard_and_soft_decisions_mix_in_one_call(name):
    network = NETWORKS[name]
    space, rng, net = space_of(network), random.Random(3), lively(network).eval()
    x = torch.randn(3, *network.input_shape, generator=torch.Generator().manual_seed(1))
    for _ in range(5):
        arch = space.sample(rng)
        soft = one_hot(space, arch)
        mixed = {name: (arch[name] if name in arch and rng.random() < 0.5 else soft[name]) for name in soft}
        with torch.no_grad():
            expected = net(x, arch)
            torch.testing.assert_close(net(x, mixed), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_soft_decision_gets_a_finite_gradient_and_some_get_more_than_nothing(name):
    network = NETWORKS[name]
    net, space = lively(network), space_of(network)
    logits = {d.name: torch.zeros(len(d.options), requires_grad=True) for d in space.decisions}
    x = torch.randn(8, *network.input_shape, generator=torch.Generator().manual_seed(1))
    output = net(x, {name: torch.softmax(value, 0) for name, value in logits.items()})
    F.cross_entropy(output, torch.arange(8) % 5).backward()
    gradients = {name: value.grad for name, value in logits.items()}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients.values())
    assert sum(gradient.abs().sum() for gradient in gradients.values()) > 1e-6


def test_the_gradient_of_a_soft_call_is_that_of_finite_differences():
    network = BLOCKS["inverted residual"]
    net, space = lively(network).double(), space_of(network)
    x = torch.randn(6, *network.input_shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = [
        torch.randn(len(d.options), generator=torch.Generator().manual_seed(i), dtype=torch.float64, requires_grad=True)
        for i, d in enumerate(space.decisions)
    ]

    def loss(*logits):
        return net(x, {d.name: torch.softmax(value, 0) for d, value in zip(space.decisions, logits, strict=True)}).square().sum()

    assert torch.autograd.gradcheck(loss, logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("residual", [False, True])
def test_a_mask_is_the_weighted_sum_of_zero_padded_branches(residual):
    """DMaskingNAS, Fig. 2, A = E: sum_i g_i pad(b[:c_i](x)) = b(x) o M, with the gradients to x, w and g.

    A residual exists in the branch whose width is that of its input, and is added behind the mask.
    """
    widths = (2, 4, 5, 7, 8)
    body = Chain(Conv(Choice(widths, "/w"), 3), BatchNorm(), Activation("hswish"))
    network = Network(Chain(Residual(body) if residual else body, Conv(3, 1)), (8, 6, 6))
    net = lively(network).double().eval()
    numbers = torch.Generator().manual_seed(4)
    g = torch.softmax(torch.randn(5, generator=numbers, dtype=torch.float64), 0).requires_grad_()
    x = torch.randn(4, 8, 6, 6, generator=numbers, dtype=torch.float64, requires_grad=True)
    weights = list(net.parameters())
    masked = net(x, {"w": g})
    assert torch.equal(copy.deepcopy(net)(x, {"w": g}), net(x, {"w": g}))
    conv, norm, _, last = extract(net, {"w": 8}).children()
    whole = F.hardswish(norm(conv(x)))
    branches = [F.pad(whole[:, :c], (0, 0, 0, 0, 0, 8 - c)) + (x if residual and c == 8 else 0) for c in widths]
    summed = last(sum(g[i] * branch for i, branch in enumerate(branches)))
    torch.testing.assert_close(masked, summed, rtol=1e-9, atol=1e-9)
    ours = torch.autograd.grad(masked.square().sum(), [x, g, *weights])
    theirs = torch.autograd.grad(summed.square().sum(), [x, g, *conv.parameters(), *norm.parameters(), *last.parameters()])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_a_mask_before_batch_norm_would_lose_the_gradient_of_the_widths():
    """The pitfall that decides where the mask goes: BatchNorm in training mode divides a positive scale per channel away."""
    widths = torch.tensor([4, 6, 8])
    keep = (torch.arange(8) < widths[:, None]).float()
    conv, norm, last = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-12), nn.Conv2d(8, 3, 1)
    x = torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    sizes = []
    for before in (True, False):
        logits = torch.zeros(3, requires_grad=True)
        mask = (torch.softmax(logits, 0) @ keep).view(1, -1, 1, 1)
        y = last(F.relu(norm(conv(x) * mask))) if before else last(F.relu(norm(conv(x))) * mask)
        sizes.append(torch.autograd.grad(y.square().sum(), logits)[0].norm())
    assert sizes[0] < 1e-3 * sizes[1]
    network = Network(Chain(Conv(Choice((4, 6, 8), "w"), 3), BatchNorm(), Activation(), Conv(3, 1)), (3, 6, 6))
    logits = torch.zeros(3, requires_grad=True)
    ours = torch.autograd.grad(supernet(network)(x, {"w": torch.softmax(logits, 0)}).square().sum(), logits)[0].norm()
    assert ours > 1e-2 * sizes[1]


def test_thirty_two_options_call_as_many_convolutions_and_save_as_many_tensors_as_two():
    counts = []
    for options in (2, 32):
        width = Choice(tuple(72 + 2 * i for i in range(-options + 1, 1)), "w")
        network = Network(
            Chain(
                conv_bn_act(72),
                Chain(mbconv(width, expand=Choice(tuple(1 + i / 16 for i in range(options)), "e")), name="b"),
                conv_bn_act(8),
                GlobalPool(),
                Flatten(),
                Linear(5),
            ),
            (3, 8, 8),
        )
        net = supernet(network)
        soft = {d.name: torch.full((len(d.options),), 1 / len(d.options), requires_grad=True) for d in space_of(network).decisions}
        saved, convolutions = [], []
        original = F.conv2d
        with (
            torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.shape) or t, lambda t: t),
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(
                F, "conv2d", lambda *args, original=original, convolutions=convolutions: convolutions.append(1) or original(*args)
            )
            net(torch.randn(2, 3, 8, 8), soft)
        counts.append((len(convolutions), len(saved)))
    assert counts[0] == counts[1]


def test_a_repeat_that_is_off_costs_nothing_in_a_hard_call():
    network = Network(
        Chain(conv_bn_act(8), Repeat(mbconv(8, expand=2, name="b"), Choice((0, 3), "depth")), GlobalPool(), Flatten(), Linear(2)), (3, 8, 8)
    )
    net = supernet(network)
    from torch.utils.flop_counter import FlopCounterMode

    for depth in (0, 3):
        with FlopCounterMode(display=False) as supernet_flops:
            net(torch.zeros(1, 3, 8, 8), {"depth": depth})
        with FlopCounterMode(display=False) as plain_flops:
            build(network, {"depth": depth})(torch.zeros(1, 3, 8, 8))
        assert supernet_flops.get_total_flops() == plain_flops.get_total_flops()


def test_a_decision_left_out_or_of_the_wrong_length_is_named():
    network = BLOCKS["match"]
    net, space = supernet(network), space_of(network)
    soft = one_hot(space, space.sample(random.Random(0)))
    name = space.decisions[0].name
    with pytest.raises(SpaceError, match=name.replace(".", r"\.")):
        net(torch.zeros(1, 3, 8, 8), {k: v for k, v in soft.items() if k != name})
    with pytest.raises(SpaceError, match=r"has 3 options"):
        net(torch.zeros(1, 3, 8, 8), {**soft, name: torch.ones(7)})


def test_placing_is_the_only_elaboration_so_plain_networks_have_no_decisions():
    network = Network(Chain(conv_bn_act(8), GlobalPool(), Flatten(), Linear(2)), (3, 8, 8))
    assert place(network).decisions == ()
    assert build(network)(torch.zeros(2, 3, 8, 8)).shape == (2, 2)
