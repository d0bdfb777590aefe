"""Descriptions changed by rule, and architectures as descriptions and back."""

import json
import random

import pytest
import torch

from niwaki import zoo
from niwaki.net.block import conv_bn_act
from niwaki.net.control import Chain, Network, OneOf, Repeat, Residual
from niwaki.net.edit import decode, edit, encode, expose, restrict
from niwaki.net.layer import Conv, Flatten, GlobalPool, Identity, Linear
from niwaki.net.place import fix, place, space_of
from niwaki.net.program import program
from niwaki.net.text import diff
from niwaki.net.tree import choices_in
from niwaki.nn.build import build
from niwaki.space.architecture import Architecture
from niwaki.space.choice import Choice, SpaceError, choose
from niwaki.space.size import in_channels
from niwaki.testing.primitives import BLOCKS, PRIMITIVES

NETWORKS = {
    **{kind.__name__: network for kind, network in PRIMITIVES.items()},
    **BLOCKS,
    **{name: zoo.network(name) for name in ("mobile-8", "mobile-32", "fbnet", "fbnetv2")},
}


def layers(network, arch):
    """What `fix` makes of an architecture: paths, layers with their sizes, connections, shapes."""
    placement = fix(place(network), arch)
    return [(i.path, i.layer, i.inputs, sum(i.shape.channels), i.shape.spatial) for i in placement.items], placement.output


def members(network, count, seed=0):
    rng = random.Random(seed)
    return [space_of(network).sample(rng) for _ in range(count)]


# --- decode and encode ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_a_decoded_architecture_has_no_choices_and_the_same_layers_under_the_same_paths(name):
    network = NETWORKS[name]
    for arch in members(network, 5):
        plain = decode(network, arch)
        assert not list(choices_in(plain.body))
        assert len(space_of(plain)) == 0
        assert layers(plain, {}) == layers(network, arch)


@pytest.mark.parametrize("name", NETWORKS)
def test_encode_finds_an_architecture_with_the_program_that_was_decoded(name):
    network = NETWORKS[name]
    for arch in members(network, 5):
        plain = decode(network, arch)
        found = encode(network, plain)
        assert program(network, found) == program(plain) == program(network, arch)


def unambiguous() -> Network:
    """Every genotype is a program of its own; nested and tied choices, a depth, branches."""
    return Network(
        Chain(
            conv_bn_act(Choice((8, 16), "/w"), Choice((3, 5)), name="stem"),
            OneOf(
                Chain(Conv(Choice((8, 24)), 1), Conv(Choice((8, 16), "/w"), Choice((3, 5, 7))), name="pair"),
                Residual(OneOf(Conv(in_channels, 3, name="one"), Conv(in_channels, 5, groups=4, name="five"), name="inner"), name="same"),
                name="op",
            ),
            Repeat(conv_bn_act(Choice((4, 12)), 5, name="block"), Choice((0, 1, 2, 3))),
            GlobalPool(),
            Flatten(),
            Linear(5),
        ),
        (3, 16, 16),
    )


def test_encode_inverts_decode_and_decoded_networks_run_with_the_stated_shapes():
    network = unambiguous()
    space = space_of(network)
    assert space.size == 2 * 2 * (2 * 3 + 2) * (1 + 2 + 4 + 8)
    for number, arch in enumerate(members(network, 1000)):
        plain = decode(network, arch)
        assert encode(network, plain) == arch
        assert Architecture.from_json(json.loads(json.dumps(arch.to_json())), space) == arch
        if number % 100 == 0:
            assert build(plain)(torch.zeros(2, 3, 16, 16)).shape == (2, 5)


def test_an_ambiguous_program_is_encoded_as_the_first_of_its_genotypes():
    network = Network(Chain(*(OneOf(Identity(name="skip"), Conv(3, name="conv"), name=f"block{at}") for at in range(4))))
    space = space_of(network)
    for arch in space.enumerate():
        first = next(other for other in space.enumerate() if program(network, other) == program(network, arch))
        assert encode(network, decode(network, arch)) == first


def test_a_network_outside_the_space_is_an_error_that_names_the_first_difference():
    with pytest.raises(SpaceError, match=r"head.linear is Linear\(10\), where the space has Linear\(1000\)"):
        encode(zoo.network("fbnet"), zoo.network("fbnet-a", classes=10))
    with pytest.raises(SpaceError, match=r"\(3, 192, 192\)"):
        encode(zoo.network("fbnet"), zoo.network("fbnet-a", (3, 192, 192)))
    with pytest.raises(SpaceError, match="choices itself"):
        encode(zoo.network("fbnet"), zoo.network("fbnet"))


def test_an_architecture_of_another_space_is_an_error():
    [arch] = members(zoo.network("mobile-8"), 1)
    with pytest.raises(SpaceError, match="belongs to the space"):
        decode(zoo.network("mobile-32"), arch)


# --- rules ------------------------------------------------------------------------------------------------------------------


def static() -> Network:
    return Network(Chain(conv_bn_act(8, 3), Residual(conv_bn_act(8, 5)), Conv(12, 1), GlobalPool(), Flatten(), Linear(4)), (3, 9, 9))


def test_a_rule_that_searches_every_kernel_size_gives_three_to_the_number_of_convolutions():
    network = static()
    searched = edit(network, lambda path, value, parent: Choice((1, 3, 5)) if path.endswith("kernel_size") else value)
    assert space_of(searched).size == 3**3
    changed = diff(network, searched)
    assert [(path, old) for path, old, _ in changed] == [
        ("chain0.conv.kernel_size", 3),
        ("residual0.conv.kernel_size", 5),
        ("conv0.kernel_size", 1),
    ]
    original = decode(searched, {path: old for path, old, _ in changed})
    assert original == network
    built, reference = build(original).state_dict(), build(network).state_dict()
    assert {name: tensor.shape for name, tensor in built.items()} == {name: tensor.shape for name, tensor in reference.items()}


def test_a_rule_sees_every_field_and_layer_with_its_path_and_its_parent():
    seen = []
    edit(static(), lambda path, value, parent: (seen.append((path, type(parent).__name__)), value)[1])
    assert ("residual0.conv.out_channels", "Conv") in seen
    assert ("residual0.conv", "Chain") in seen
    assert seen[-1] == ("", "Network")


def test_a_rule_can_replace_layers():
    network = edit(static(), lambda path, value, parent: OneOf(value, Identity(), name="maybe") if isinstance(value, Residual) else value)
    assert space_of(network).size == 2


def test_a_rule_that_changes_nothing_gives_an_equal_network():
    for network in NETWORKS.values():
        assert edit(network, lambda path, value, parent: value) == network


# --- fewer choices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BLOCKS, "mobile-8", "fbnet"])
def test_a_restricted_space_has_exactly_the_architectures_with_the_options_left(name):
    network, rng = NETWORKS[name], random.Random(0)
    space = space_of(network)
    for _ in range(4):
        some = [d for d in space if rng.random() < 0.5]
        left = {d.name: tuple(o for o in d.options if rng.random() < 0.6) or d.options[-1:] for d in some}
        restricted = restrict(network, left)
        for arch in members(restricted, 5):
            fixed = {d.name: left[d.name][0] for d in space if len(left.get(d.name, "ab")) == 1}
            whole = {**fixed, **arch}
            active = space.active({**{d.name: d.options[0] for d in space}, **whole})
            assert program(restricted, arch) == program(network, {name: whole[name] for name in active})
        if space.size <= 500:
            allowed = [a for a in space.enumerate() if all(a[d] in options for d, options in left.items() if d in a)]
            assert space_of(restricted).size == len(allowed)


def test_copies_of_a_repeat_are_written_out_where_they_come_to_differ():
    network = Network(Chain(Conv(8), Repeat(conv_bn_act(8, Choice((3, 5, 7)), name="block"), Choice((1, 2, 3), "/depth"))))
    restricted = restrict(network, {"block1.conv.kernel_size": (5,)})
    assert space_of(restricted).size == 3 + 3 + 9
    assert restrict(network, {}) == network


def test_where_exposes_some_choices_and_fixes_the_others():
    network = zoo.network("mobile-8")
    searched = expose(network, lambda decision: decision.name.endswith("kernel"))
    assert {d.name.rsplit(".", 1)[-1] for d in space_of(searched)} <= {"kernel"}
    point = Network(Chain(*(Conv(size) for size in choose(2, (4, 6, 8), name="two")), Conv(Choice((1, 2, 3)))))
    assert space_of(expose(point, lambda decision: decision.name == "two")).size == 6
    assert space_of(expose(point, lambda decision: decision.name != "two", {"two": (8, 4)})).size == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [({"stage9.width": (8,)}, "no decision"), ({"stage1.width": (9,)}, "no option 9"), ({"stage1.width": ()}, "at least one")],
)
def test_an_option_that_does_not_exist_is_an_error_that_names_the_decision(options, message):
    with pytest.raises(SpaceError, match=message):
        restrict(zoo.network("mobile-8"), options)


# --- PyGlove's counting rules ------------------------------------------------------------------------------------------------


def eighteen_points() -> Network:
    """a in {1, one of (2, 3), {k: one of (3, 5, 7), e: one of (3, 6)}} and b in {0, 1}: (1 + 2 + 6) * 2."""
    a = OneOf(Conv(1, name="one"), Conv(Choice((2, 3)), name="two"), Conv(Choice((3, 6)), Choice((3, 5, 7)), name="three"), name="a")
    return Network(Chain(a, Conv(1, 1 + 2 * Choice((0, 1), "b"))))


def test_the_eighteen_points_of_pyglove_and_its_products():
    space = space_of(eighteen_points())
    assert space.size == len(set(space.enumerate())) == 18
    pair = Chain(*(Conv(size) for size in choose(2, (8, 16, 24, 32), name="pair")))
    product = space_of(Network(Chain(eighteen_points().body, pair)))
    assert product.size == len(set(product.enumerate())) == 18 * 12
