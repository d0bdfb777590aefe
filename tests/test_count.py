"""Counts: multiply-adds, parameters, bytes, activations and their peak, against counters that share no code with ours."""

import os
import random

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from niwaki import zoo
from niwaki.cost.count import COSTS, count_activations, count_macs, count_params, count_peak_activation, count_size_bytes, layer_table
from niwaki.factor.factor import CostError
from niwaki.net.control import Chain, Concat, Network
from niwaki.net.layer import Activation, BatchNorm, Conv, Dropout, Flatten, GlobalPool, Linear, Opaque
from niwaki.net.place import INPUT, fix, place, space_of
from niwaki.nn.build import build
from niwaki.objective import COUNTED
from niwaki.space.choice import Choice
from niwaki.testing.primitives import BLOCKS, PRIMITIVES

SMALL = {**{kind.__name__: network for kind, network in PRIMITIVES.items()}, **BLOCKS}
MEMBERS = int(os.environ.get("NIWAKI_MEMBERS", "30"))  # random architectures of each large space; 300 takes two minutes


@pytest.mark.parametrize("name", zoo.PUBLISHED_COUNTS)
def test_published_networks_have_their_weights_and_macs_to_the_unit(name):
    network = zoo.network(name)
    counted = tuple(sum(getattr(row, what) for row in layer_table(network, rule="fbnet")) for what in ("params", "macs"))
    assert counted == zoo.PUBLISHED_COUNTS[name]
    assert counted == (count_params(network, "fbnet").minimum()[0], count_macs(network, "fbnet").minimum()[0])


def independent_counts(module: nn.Module, input_shape: tuple[int, ...]) -> dict[str, int]:
    """Counted on the built module, on the meta device: torch's flop counter, the parameters it has, hooks on what it calls."""
    elements = 0

    def hook(layer, inputs, output):
        nonlocal elements
        elements += output.numel()

    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(hook)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        module.eval()(torch.empty(1, *input_shape, device="meta"))
    running = sum(buffer.numel() for name, buffer in module.named_buffers() if name.endswith(("running_mean", "running_var")))
    params = sum(parameter.numel() for parameter in module.parameters())
    return {"macs": flops.get_total_flops() // 2, "params": params, "activations": elements, "size": 4 * (params + running)}


def assert_counts_agree(network: Network, count: int, seed: int = 0) -> None:
    rng, space = random.Random(seed), space_of(network)
    costs = {name: COSTS[name](network) for name in ("macs", "params", "activations", "size")}
    for _ in range(count):
        arch = space.sample(rng)
        with torch.device("meta"):
            module = build(network, arch)
        assert {name: cost(arch) for name, cost in costs.items()} == independent_counts(module, network.input_shape)


@pytest.mark.parametrize("name", ["fbnetv2", "mobile-32"])
def test_counts_are_those_of_the_built_module(name):
    assert_counts_agree(zoo.network(name), MEMBERS)


@pytest.mark.parametrize("name", SMALL)
def test_counts_of_every_primitive_and_block_are_those_of_the_built_module(name):
    if name == "Opaque":
        pytest.skip("what an opaque layer costs is what its owner says")
    assert_counts_agree(SMALL[name], 4)


def test_an_opaque_layer_costs_what_its_owner_says():
    network = Network(Chain(Opaque("a:b", macs=70, params=5, channels=3)), (3, 4, 4))
    assert (count_macs(network).minimum()[0], count_params(network).minimum()[0], count_size_bytes(network).minimum()[0]) == (70, 5, 20)


@pytest.mark.parametrize("name", SMALL)
def test_the_cost_of_an_architecture_is_the_sum_over_its_layers(name):
    network = SMALL[name]
    macs, params = count_macs(network, "fbnet"), count_params(network, "fbnet")
    for arch in list(space_of(network).enumerate())[:40]:
        rows = layer_table(network, arch, "fbnet")
        assert (macs(arch), params(arch)) == (sum(row.macs for row in rows), sum(row.params for row in rows))


# --- the peak ---------------------------------------------------------------------------------------------------------------


def simulated_peak(network: Network, arch) -> int:
    """Runs one architecture, primitive by primitive, with a set of buffers."""
    placement = fix(place(network), arch)
    last_read = {placement.output: len(placement.items)}
    for at, item in enumerate(placement.items):
        for source in item.inputs:
            last_read[source] = max(last_read.get(source, -1), at)
    size = {INPUT: torch.Size(network.input_shape).numel()}
    held, peak = {INPUT}, size[INPUT]
    for at, item in enumerate(placement.items):
        size[at] = torch.Size((sum(item.shape.channels), *item.shape.spatial)).numel()
        overwrites = isinstance(item.layer, (BatchNorm, Activation, Dropout, Flatten)) and last_read[item.inputs[0]] <= at
        if not overwrites:
            peak = max(peak, size[at] + sum(size[tensor] for tensor in held))
        held = {tensor for tensor in (*held, at) if last_read.get(tensor, -1) > at}
    return peak


@pytest.mark.parametrize("name", [*SMALL, "mobile-8", "mobile-32", "fbnetv2"])
def test_the_peak_of_an_architecture_is_that_of_running_it(name):
    network = SMALL.get(name) or zoo.network(name)
    peak, rng = count_peak_activation(network), random.Random(1)
    for _ in range(12):
        arch = space_of(network).sample(rng)
        assert peak(arch) == simulated_peak(network, arch)


# --- tables stay small ------------------------------------------------------------------------------------------------------


def test_a_sum_of_widths_stays_a_sum_of_tables():
    widths = tuple(range(1, 33))
    network = Network(Chain(Concat(*(Conv(Choice(widths), 1) for _ in range(4))), Conv(Choice(widths), 3)), (3, 8, 8))
    macs = count_macs(network)  # one table would have 32^5 entries
    assert max(factor.table.size for factor in macs.factors) == 32 * 32
    arch = space_of(network).sample(random.Random(0))
    assert macs(arch) == sum(row.macs for row in layer_table(network, arch))


def test_a_table_too_large_is_an_error_that_names_the_layer_and_the_choices():
    widths = tuple(range(1, 65))
    network = Network(
        Chain(Conv(Choice(widths, "/a") + Choice(widths, "/b"), 1), Conv(Choice(widths, "/c") + Choice(widths, "/d"), 1)), (3, 4, 4)
    )
    with pytest.raises(CostError, match=r"conv1.*16,777,216.*a \(64\), b \(64\)"):
        count_macs(network)


def test_the_full_fbnetv2_space_is_counted_by_tables_of_370_692_entries():
    assert sum(factor.table.size for factor in count_macs(zoo.network("fbnetv2")).factors) == 370_692  # the largest has 63,504


def test_every_counted_resource_of_a_budget_has_a_cost_of_its_name_and_a_trial_holds_it_under_that_name():
    assert {resource.metric for resource in COUNTED.values()} == set(COUNTED) == set(COSTS)
    assert {COSTS[name](zoo.network("fbnet-a")).name for name in COUNTED} == set(COUNTED)


def test_an_unknown_rule_is_an_error_that_names_the_known_ones():
    with pytest.raises(CostError, match="all, fbnet"):
        count_macs(zoo.network("fbnet-a"), "mine")


def test_a_network_of_features_is_counted_too():
    network = Network(Chain(Linear(Choice((4, 8), "w")), Activation(), Linear(3, bias=False)), (5,))
    assert [count_macs(network)(space_of(network).architecture({"w": width})) for width in (4, 8)] == [5 * 4 + 4 * 3, 5 * 8 + 8 * 3]
    assert count_activations(network).maximum()[0] == 11


def test_average_pools_cost_their_input_under_the_rule_of_fbnet():
    network = Network(Chain(Conv(4, 1), GlobalPool(), Flatten(), Linear(2)), (3, 5, 5))
    assert count_macs(network, "fbnet").minimum()[0] == count_macs(network).minimum()[0] + 4 * 25
    assert count_params(network, "fbnet").minimum()[0] == 4 * 3 + 4 * 2
