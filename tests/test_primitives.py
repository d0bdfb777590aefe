"""Every primitive and every container, asked of every reader."""

import inspect
import json
import random
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import niwaki.net.layer
import niwaki.net.operation
from niwaki.cost.count import count_activations, count_macs, count_params, layer_table
from niwaki.net.edit import decode, encode
from niwaki.net.layer import Layer, Opaque
from niwaki.net.picture import picture
from niwaki.net.place import fix, place, space_of
from niwaki.net.text import from_json, to_json
from niwaki.nn.build import build
from niwaki.testing import BLOCKS, PRIMITIVES

NETWORKS = {**{kind.__name__: network for kind, network in PRIMITIVES.items()}, **BLOCKS}
MEMBERS = 6


def members(network):
    space, rng = space_of(network), random.Random(0)
    return [space.sample(rng) for _ in range(MEMBERS)]


def factories(network):
    return {item.layer.factory: item.layer.make for item in place(network).items if isinstance(item.layer, Opaque)}


def test_every_primitive_layer_has_a_network_that_uses_it():
    modules = (niwaki.net.layer, niwaki.net.operation)
    classes = [kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)]
    defined = {kind for kind in classes if issubclass(kind, Layer) and kind is not Layer}
    assert set(PRIMITIVES) == defined
    for kind, network in PRIMITIVES.items():
        if kind is not niwaki.net.layer.Identity:  # the one primitive that leaves no trace
            assert any(isinstance(item.layer, kind) for item in place(network).items), kind.__name__


@pytest.mark.parametrize("name", NETWORKS)
def test_a_built_member_runs_and_has_the_shape_that_was_placed(name):
    network = NETWORKS[name]
    for arch in members(network):
        placed = fix(place(network), arch)
        output = build(network, arch)(torch.randn(2, *network.input_shape))
        assert tuple(output.shape[1:]) == (placed.shape_of(placed.output).width, *placed.shape_of(placed.output).spatial)


@pytest.mark.parametrize("name", NETWORKS)
def test_counts_are_those_of_independent_counters(name):
    network = NETWORKS[name]
    macs, params, activations = count_macs(network), count_params(network), count_activations(network)
    for arch in members(network):
        module, seen = build(network, arch).eval(), []
        for layer in module.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_hook(lambda layer, inputs, output, seen=seen: seen.append(output.numel()))
        with FlopCounterMode(display=False) as flops, torch.no_grad():
            module(torch.zeros(1, *network.input_shape))
        assert params(arch) == sum(p.numel() for p in module.parameters())
        assert sum(row.macs for row in layer_table(network, arch)) == macs(arch) == flops.get_total_flops() // 2
        if not factories(network):  # an opaque layer states its multiply-adds and parameters, not its activations
            assert activations(arch) == sum(seen)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_description_survives_json(name):
    network = NETWORKS[name]
    again = from_json(json.loads(json.dumps(to_json(network))), factories=factories(network))
    assert again == network
    assert space_of(again) == space_of(network)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_decoded_member_is_a_plain_network_of_the_same_program_and_is_found_again(name):
    network = NETWORKS[name]
    for arch in members(network):
        plain = decode(network, arch)
        assert len(space_of(plain)) == 0
        assert count_macs(plain)(space_of(plain).architecture({})) == count_macs(network)(arch)
        found = encode(network, plain)
        ours, theirs = build(network, arch).state_dict(), build(network, found).state_dict()
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_and_its_members_can_be_drawn(name):
    network = NETWORKS[name]
    for drawing in (picture(network), *(picture(fix(place(network), arch)) for arch in members(network)[:2])):
        assert ElementTree.fromstring(drawing).tag.endswith("svg")
