"""The protocol of timing: against clocks of our own, and on ONNX Runtime."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from niwaki.device.measure import MeasureError, Protocol, Samples, in_turns
from niwaki.device.runtime_onnx import NAME, dynamic_int8, onnx_step, to_onnx, traced_onnx


class Clock:
    """Time that only steps spend. `noise`: factor of each call, in turn."""

    def __init__(self, noise=(1.0,)):
        self.now, self.calls, self.noise = 0.0, [], noise

    def __call__(self):
        return self.now

    def step(self, name, seconds):
        def run():
            self.now += seconds * self.noise[len(self.calls) % len(self.noise)]
            self.calls.append(name)

        return run


def test_every_sample_is_kept_and_stands_beside_one_of_the_reference():
    clock = Clock()
    steps = {"reference": clock.step("reference", 0.002), "a": clock.step("a", 0.004), "b": clock.step("b", 0.001)}
    found = in_turns(steps, "reference", runtime="none", protocol=Protocol(warmup=3, rounds=6), cpu=clock, wall=clock)
    assert found["a"].latency_ms == pytest.approx(4)
    assert found["b"].ratios == pytest.approx([0.5] * 6)
    assert (found["a"].repeats, found["b"].repeats) == (1, 2)  # at least 2 ms a sample
    assert all(len(one.cpu_ms) == len(one.wall_ms) == len(one.ratios) == 6 for one in found.values())
    assert clock.calls[:9] == ["reference"] * 3 + ["a"] * 3 + ["b"] * 3
    first_round = clock.calls[9:16]
    assert first_round == ["reference", "reference", "reference", "a", "reference", "b", "b"]
    assert Samples.from_json(json.loads(json.dumps(found["a"].to_json()))) == found["a"]


def test_a_machine_that_slows_down_changes_times_but_no_ratio():
    clock = Clock()
    drift = iter(np.repeat(np.linspace(1, 3, 400), 1))

    def step(seconds):
        def run():
            clock.now += seconds * next(drift)

        return run

    found = in_turns(
        {"reference": step(0.01), "a": step(0.02)}, "reference", runtime="none", protocol=Protocol(1, 40), cpu=clock, wall=clock
    )
    assert max(found["a"].cpu_ms) > 1.3 * min(found["a"].cpu_ms)
    assert found["a"].ratio == pytest.approx(2, rel=0.01)


def test_what_cannot_be_timed_is_refused():
    with pytest.raises(MeasureError, match="cold runs say nothing"):
        Protocol(warmup=0)
    with pytest.raises(MeasureError, match=r"'c' is none of the steps: a"):
        in_turns({"a": lambda: None}, "c", runtime="none")


@pytest.fixture(scope="module")
def models():
    return {width: to_onnx(nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3)), (3, 24, 24)) for width in (4, 64)}


def test_onnx_runtime_computes_what_the_network_does_and_a_wide_network_takes_longer(models):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).train()
    x = torch.randn(1, 3, 2, 2)
    (out,) = onnx_step(to_onnx(model, (3, 2, 2)), batch=x.numpy())()
    assert out == pytest.approx(model(x).detach().numpy(), abs=1e-5)
    assert model.training
    found = in_turns({str(width): onnx_step(content) for width, content in models.items()}, "4", runtime=NAME, protocol=Protocol(rounds=8))
    assert found["64"].ratio > 3
    assert found["64"].runtime.startswith("onnxruntime")
    assert found["64"].protocol.threads == 1


def test_a_traced_model_computes_the_same_and_its_8_bit_form_nearly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).train()
    x = torch.rand(8, 1, 8, 8)
    content = traced_onnx(model, (1, 8, 8), batch=8)
    expected = model(x).detach().numpy()
    (plain,), (small,) = (onnx_step(one, batch=x.numpy())() for one in (content, dynamic_int8(content)))
    assert plain == pytest.approx(expected, abs=1e-5)
    assert small == pytest.approx(expected, abs=0.05)
    assert np.abs(small - expected).max() > 1e-5  # it is another model
    assert b"ConvInteger" in dynamic_int8(content)
    assert model.training
