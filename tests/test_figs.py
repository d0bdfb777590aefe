"""FiGS: stochastic gates, their penalty, and networks that are what the open gates leave."""

from __future__ import annotations

import pytest
import torch

from niwaki.gradient.gate import (
    any_of,
    first_unit_open,
    hard_gate,
    logistic_noise,
    mean_gate,
    soft_gate,
    straight_through_gate,
)


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
