"""Descriptions as JSON: nothing is lost, nothing is imported, and what differs is named."""

import json

import pytest

from niwaki import zoo
from niwaki.net.control import Chain, Graph, Network, Node, OneOf, Repeat, Residual
from niwaki.net.layer import Conv, Opaque
from niwaki.net.place import space_of
from niwaki.net.text import diff, from_json, network_hash, to_json
from niwaki.space.choice import Choice, SpaceError, choose
from niwaki.space.size import in_channels, maximum, round8
from niwaki.testing.primitives import BLOCKS, PRIMITIVES

MIXED = Network(
    Chain(
        Conv(round8(Choice((1.5, 2.0, 3)) * in_channels) + 8, Choice((3, 5), "kernel"), name="first"),
        OneOf(Conv(8), Conv(16, name="wide"), by=Choice(("conv0", "wide"), "/which")),
        OneOf(Conv(8), Conv(16), by=maximum(0, Choice((0, 1)))),
        Conv(choose(2, (8, 16, 24), name="pair")[1]),
        Repeat(Residual(Conv(in_channels, Choice((3, 5))), "always"), Choice((1, 2), "/depth") + 1),
        Graph({"a": Node(Conv(8)), "b": Node(Conv(8), ("input", "a"), "concat")}, "b", name="graph"),
        Opaque("pkg.mod:factory", (("kernels", (3, 5)), ("scale", 0.5), ("flag", None)), channels=4, macs=3),
        name="body",
    ),
    (3, 16, 12),
)
NETWORKS = {
    **{kind.__name__: network for kind, network in PRIMITIVES.items()},
    **BLOCKS,
    **{name: zoo.network(name) for name in zoo.names()},
    "mixed": MIXED,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_reading_what_was_written_gives_an_equal_description(name):
    network = NETWORKS[name]
    read = from_json(json.loads(json.dumps(to_json(network))))
    assert read == network
    assert space_of(read) == space_of(network)
    assert network_hash(read) == network_hash(network)


def test_the_type_of_an_option_survives():
    network = Network(Chain(Conv(8), Conv(round8(8 * Choice((1, 2.0, 3.5))))))
    read = from_json(json.loads(json.dumps(to_json(network))))
    assert [type(option) for option in space_of(read).decisions[0].options] == [int, float, float]


def test_one_unnamed_choice_used_twice_in_an_expression_stays_one_decision():
    width = Choice((8, 16))
    once, twice = Network(Conv(width + width), (3, 8, 8)), Network(Conv(Choice((8, 16)) + Choice((8, 16))), (3, 9, 9))
    assert [space_of(from_json(to_json(network))).size for network in (once, twice)] == [2, 4]


def test_no_two_descriptions_of_the_zoo_share_a_hash():
    hashes = [network_hash(network) for network in NETWORKS.values()]
    assert len(set(hashes)) == len(hashes)


def test_the_hash_of_a_description_is_stable():
    assert network_hash(Network(Chain(Conv(8), Conv(Choice((8, 16), "w"))), (3, 8, 8))) == "7361b97f679d56fe"


def test_an_opaque_layer_is_made_by_what_the_caller_hands_in_and_never_imported():
    written = to_json(Network(Opaque("no.such.module:make", (("a", 1),))))
    assert from_json(written).body.make is None
    assert from_json(written, {"no.such.module:make": dict}).body.make is dict


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("body"), "'body'"),
        (lambda data: data.update(niwaki=2), "format 2"),
        (lambda data: data["body"].update(layer="Conf"), "did you mean Conv"),
        (lambda data: data["body"].update(kernelsize=3), "did you mean 'kernel_size'"),
        (lambda data: data["body"].pop("out_channels"), "lacks 'out_channels'"),
        (lambda data: data["body"].update(out_channels={"function": "eval", "args": [1]}), "no function of sizes"),
        (lambda data: data["body"].update(out_channels={"wide": 3}), "neither a layer nor a choice"),
        (lambda data: data["body"].update(stride=0), "body: Conv: stride = 0"),
        (lambda data: data["body"].update(name=3), "body: Conv is called 3; a name is a text"),
        (lambda data: data["body"].update(out_channels={"choice": 3}), "body.out_channels: "),
        (lambda data: data.update(body={"layer": "Chain", "layers": 3}), "body: .*not int"),
        (lambda data: data.update(input_shape=8), r"a network's input is \(channels, height, width\) .*not 8"),
    ],
)
def test_json_that_is_no_description_is_an_error_that_says_where(change, message):
    data = to_json(Network(Conv(8)))
    change(data)
    with pytest.raises(SpaceError, match=message):
        from_json(data)


def test_what_json_cannot_hold_is_an_error_that_names_it():
    with pytest.raises(SpaceError, match="type object"):
        to_json(Network(Opaque("a:b", (("x", object()),))))


def test_equal_descriptions_have_no_differences():
    assert diff(zoo.network("fbnetv2"), zoo.network("fbnetv2")) == []


def test_a_difference_has_a_path_and_both_values():
    assert diff(zoo.network("fbnetv2-f1"), zoo.network("fbnetv2-f3")) == [
        ("input_shape", (3, 128, 128), (3, 192, 192)),
        ("features.out_channels", 1600, 1984),
    ]
    longer = Network(Chain(Conv(8), Conv(16), name="a"))
    assert diff(Network(Chain(Conv(8, 5), name="a")), longer) == [("conv0.kernel_size", 5, 3), ("conv1", None, Conv(16))]
