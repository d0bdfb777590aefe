"""FiGS: stochastic gates, their penalty, and networks that are what the open gates leave."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from niwaki.adoption.adopted import read
from niwaki.adoption.axes import Term
from niwaki.gradient.adopted import gated
from niwaki.gradient.figs import SMALL, FiGS, FigsError, Gate, Gates
from niwaki.gradient.gate import (
    any_of,
    first_unit_open,
    hard_gate,
    logistic_noise,
    mean_gate,
    soft_gate,
    straight_through_gate,
)
from niwaki.gradient.resource import Polynomial, penalty


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("tau", [0.001, 0.1, 1.0])
def test_a_gate_is_open_with_the_probability_of_its_logit_at_any_temperature(tau):
    for logit in (-3.0, -1.0, 0.0, 1.0, 3.0):
        logits = torch.full((1_000_000,), logit)
        z = soft_gate(logits, logistic_noise(logits, generator()), tau)
        p = torch.sigmoid(torch.tensor(logit))
        assert (z > 0.5).double().mean().item() == pytest.approx(p.item(), abs=0.002)
        if tau == 0.001:
            assert z.double().mean().item() == pytest.approx(p.item(), abs=0.002), "as the temperature falls, the mean tends to it, too"


def test_the_gradient_of_a_gate_is_that_of_finite_differences_with_the_noise_fixed():
    logits = torch.linspace(-2, 2, 9, dtype=torch.float64, requires_grad=True)
    noise, tau, step = logistic_noise(logits, generator()), 0.5, 1e-6
    z = soft_gate(logits, noise, tau)
    z.sum().backward()
    differences = (soft_gate(logits + step, noise, tau) - soft_gate(logits - step, noise, tau)) / (2 * step)
    assert torch.allclose(logits.grad, differences, atol=1e-8)
    assert torch.allclose(logits.grad, z * (1 - z) / tau)


def test_straight_through_is_binary_forward_and_soft_backward():
    logits = torch.linspace(-2, 2, 50, requires_grad=True)
    noise = logistic_noise(logits, generator())
    hard = straight_through_gate(logits, noise, 0.5)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    (slope,) = torch.autograd.grad(hard.sum(), logits)
    assert torch.allclose(slope, torch.autograd.grad(soft_gate(logits, noise, 0.5).sum(), logits)[0])


def test_in_inference_a_gate_is_shut_or_as_open_as_it_was_on_average():
    logits = torch.tensor([-4.0, -0.1, 0.1, 4.0])
    assert mean_gate(logits).tolist() == pytest.approx([0, 0, *torch.sigmoid(logits[2:]).tolist()])
    assert hard_gate(logits).tolist() == [0, 0, 1, 1]


def test_a_unit_of_several_sources_is_there_where_any_of_them_is():
    first, second, third = torch.rand(3, 5)
    assert torch.allclose(any_of([first, second, third]), 1 - (1 - first) * (1 - second) * (1 - third))
    assert any_of([torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 1.0])]).tolist() == [0, 1, 1]


def test_the_repository_keeps_the_first_unit_of_a_layer_open():
    assert first_unit_open(torch.zeros(4)).tolist() == [1, 0, 0, 0]


# --- the penalty on gates ----------------------------------------------------------------------------------------------------------------

LAYER = Polynomial("macs", (Term(9, ((("in", 1),), (("out", 1),))),))
STREAM = Polynomial("macs", (Term(9, ((("in", 1),), (("in", 1),))),))  # input and output of one residual group


def masks(logits, count, seed=0):
    """`count` samples of all gates."""
    noise = generator(seed)
    return {group: straight_through_gate(s.expand(count, -1), logistic_noise(s.expand(count, -1), noise)) for group, s in logits.items()}


def test_the_penalty_on_sampled_masks_is_on_average_the_one_on_probabilities():
    logits = {"in": torch.linspace(-2, 2, 5).double(), "out": torch.linspace(-1, 3, 7).double()}
    p = {group: torch.sigmoid(s) for group, s in logits.items()}
    alive = {"in": 4, "out": 6}
    closed = penalty(LAYER, alive, p).item()
    assert closed == pytest.approx(9 * (4 * p["out"].sum() + 6 * p["in"].sum()).item())
    sampled = masks(logits, 40_000)
    mean = penalty(LAYER, alive, {group: z.mean(0) for group, z in sampled.items()}).item()
    assert mean == pytest.approx(closed, rel=0.005)


def test_masks_that_count_as_alive_too_bias_the_penalty_only_where_a_group_meets_itself():
    logits = {"in": torch.linspace(-2, 2, 5).double(), "out": torch.linspace(-1, 3, 7).double()}
    p = {group: torch.sigmoid(s) for group, s in logits.items()}
    counts = {group: z.sum(1) for group, z in masks(logits, 40_000).items()}
    apart = (9 * 2 * counts["in"] * counts["out"]).mean().item()  # c (A_in sum z_out + A_out sum z_in), A from the same masks
    assert apart == pytest.approx(2 * 9 * (p["in"].sum() * p["out"].sum()).item(), rel=0.01)
    met = (9 * 2 * counts["in"] ** 2).mean().item()
    variance = (p["in"] * (1 - p["in"])).sum().item()
    assert met - 2 * 9 * p["in"].sum().item() ** 2 == pytest.approx(2 * 9 * variance, rel=0.1), "the bias, 2 c sum p (1 - p)"


# --- networks with gates ------------------------------------------------------------------------------------------------------------------


class TwoBranches(nn.Module):
    """Two convolutions with gates of their own make the units of one group; gates are modules, or absent (plain=True)."""

    def __init__(self, *, plain=False):
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 9, 3, padding=1), nn.Conv2d(2, 9, 1)
        self.gate_a, self.gate_b = (nn.Identity(), nn.Identity()) if plain else (Gate(), Gate())
        self.last = nn.Conv2d(9, 3, 3)

    def forward(self, x):
        return self.last(torch.relu(self.gate_a(self.a(x)) + self.gate_b(self.b(x))))


def test_a_unit_goes_if_all_gates_of_its_group_are_shut_and_the_rest_is_the_gated_network():
    torch.manual_seed(0)
    net, plain = TwoBranches(), TwoBranches(plain=True)
    x = torch.randn(2, 2, 8, 8)
    gates = Gates({"units": [net.gate_a.put, net.gate_b.put]}, {"units": 9}, SMALL)
    with torch.no_grad():
        for _ in range(100):
            for logits in gates.logits.values():
                logits.normal_()
            gates.close_()
            shut = [logits <= 0 for logits in gates.logits.values()]
            alive = gates.margins()["units"] > 0
            assert torch.equal(~alive, shut[0] & shut[1])
            if not alive.any():
                continue
            plain.load_state_dict(net.state_dict())
            for layer, dead in zip((plain.a, plain.b), shut, strict=True):
                layer.weight[dead], layer.bias[dead] = 0, 0
            kept = alive.nonzero().flatten()
            small = TwoBranches(plain=True)
            for layer, own in ((small.a, plain.a), (small.b, plain.b)):
                layer.weight, layer.bias = nn.Parameter(own.weight[kept]), nn.Parameter(own.bias[kept])
            small.last.weight, small.last.bias = nn.Parameter(plain.last.weight[:, kept]), plain.last.bias
            assert torch.allclose(small(x), net(x), atol=1e-5)


class Residual(nn.Module):
    """A stem, a residual block, a strided layer; with batch norm."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.inner = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.outer = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6))
        self.down = nn.Sequential(nn.Conv2d(6, 7, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(7))
        self.head = nn.Linear(7, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


def test_with_hard_gates_an_adopted_network_is_what_the_open_units_leave():
    torch.manual_seed(0)
    x = torch.randn(2, 2, 8, 8)
    adopted = read(Residual(), x)
    module, sources = gated(adopted)
    gates = Gates(sources, adopted.whole, SMALL)
    with torch.no_grad():
        for _ in range(40):
            for logits in gates.logits.values():
                logits.normal_()
                logits[0] = 1.0  # a group of a chain cannot vanish
            gates.close_()
            keep = {group: (margins > 0).nonzero().flatten() for group, margins in gates.margins().items()}
            assert torch.allclose(adopted.cut(keep)(x), module(x), atol=1e-5)


def test_a_sampled_step_sets_the_gates_and_gives_what_the_penalty_is_on():
    gate = Gate()
    gates = Gates({"units": [gate.put]}, {"units": 5}, FiGS(tau=0.5, last_tau=0.5, keep_first=True))
    presence = gates.presence(0.0, generator())["units"]
    assert torch.equal(presence, gate.values)
    assert presence[0] == 1
    assert torch.equal(gates.alive()["units"], presence >= 0.1)
    by_probability = Gates({"units": [gate.put]}, {"units": 5}, SMALL).presence(0.0, generator())["units"]
    assert torch.allclose(by_probability, torch.sigmoid(torch.tensor(2.5)))
    with pytest.raises(FigsError, match="no group"):
        Gates({"units": []}, {"units": 5})
    with pytest.raises(FigsError, match=r"tau=0 \(above 0\)"):
        FiGS(tau=0)


def first_to_die(taps, prices, seed, steps=500, units=2):
    """Which of two operators, over 3 and over 5 taps, loses all its gates first, where a filter with these taps made the data; None: neither."""
    torch.manual_seed(seed)
    noise, taps = generator(seed), torch.tensor(taps)
    narrow, wide, mix, gates = nn.Linear(3, units), nn.Linear(5, units), nn.Linear(units, 1), {"narrow": Gate(), "wide": Gate()}
    learned = Gates({name: [gate.put] for name, gate in gates.items()}, dict.fromkeys(gates, units), replace(SMALL, temper=1.0))
    weights = [*narrow.parameters(), *wide.parameters(), *mix.parameters()]
    optimizer = torch.optim.Adam([*weights, *learned.parameters().values()], lr=2e-2)
    for step in range(steps):
        x = torch.randn(64, 5, generator=noise)
        presence = learned.presence(step / (2 * steps), noise)
        found = mix(torch.relu(gates["narrow"](narrow(x[:, 1:4])) + gates["wide"](wide(x))))
        price = sum(price * presence[name].sum() for name, price in prices.items()) / (units * sum(prices.values()))
        optimizer.zero_grad()
        ((found - torch.relu(x @ taps)[:, None]).square().mean() + price).backward()
        optimizer.step()
        if dead := [name for name, margins in learned.margins().items() if bool((margins <= 0).all())]:
            return dead[0]
    return None


def test_swapped_prices_change_which_operator_dies_first_only_where_either_would_do():
    usual, swapped = {"narrow": 9, "wide": 25}, {"narrow": 25, "wide": 9}
    either, needs_wide = [0.0, 1.0, 1.0, 1.0, 0.0], [2.0, 0.5, 0.5, 0.5, 2.0]
    for seed in range(3):
        assert [first_to_die(either, prices, seed) for prices in (usual, swapped)] == ["wide", "narrow"]
        assert first_to_die(needs_wide, usual, seed) != "wide"
        assert first_to_die(needs_wide, swapped, seed) == "narrow"
