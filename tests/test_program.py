"""Programs: what is the same is counted once, by the automaton as by listing."""

import random

import pytest

from niwaki import zoo
from niwaki.net.block import mbconv
from niwaki.net.control import Add, Chain, Concat, Graph, Match, Network, Node, OneOf, Repeat, Residual
from niwaki.net.layer import Activation, BatchNorm, Conv, Identity, Interleave, Layer, Subsample, Zero
from niwaki.net.place import fix, place, space_of
from niwaki.net.program import distinct, program
from niwaki.space.choice import Choice
from niwaki.space.size import in_channels, round8
from niwaki.testing.primitives import BLOCKS, PRIMITIVES


def described(network: Network, arch) -> tuple:
    """A program by way of `fix`, which shares no code with the automaton: what every primitive is and reads."""
    placement = fix(place(network), arch)
    now, lines = {-1: -1}, []
    for at, item in enumerate(placement.items):
        if isinstance(item.layer, Interleave) and item.shape.spatial == item.input_shapes[0].spatial:
            now[at] = now[item.inputs[0]]
        else:
            now[at] = len(lines)
            lines.append((item.layer, tuple(now[source] for source in item.inputs)))
    return (*lines, now[placement.output])


def listed(network: Network) -> int:
    return len({described(network, arch) for arch in space_of(network).enumerate()})


SMALL = {**{kind.__name__: network for kind, network in PRIMITIVES.items()}, **BLOCKS}


@pytest.mark.parametrize("name", SMALL)
def test_the_number_of_programs_of_every_primitive_and_block_is_that_of_listing(name):
    assert distinct(SMALL[name]) == (listed(SMALL[name]), "")


@pytest.mark.parametrize("name", [*SMALL, "mobile-8", "fbnetv2"])
def test_two_architectures_have_one_program_iff_fix_makes_the_same_of_both(name):
    network, rng = SMALL.get(name) or zoo.network(name), random.Random(0)
    space = space_of(network)
    for _ in range(15):
        one = space.sample(rng)
        for other in (space.sample(rng), space.mutate(one, rng) if space.size > 1 else one):
            assert (program(network, one) == program(network, other)) == (described(network, one) == described(network, other))


# --- random networks, full of ways to be the same -----------------------------------------------------------------------------


def random_layer(rng: random.Random, depth: int) -> Layer:
    """Keeps height and width, and mixes all that makes genotypes coincide: skips, depths, rounding, zeros, identities, ties."""
    width = rng.choice([8, in_channels, Choice((4, 8)), Choice((8, 16), "/w"), round8(Choice((0.5, 0.9, 1.6)) * in_channels)])
    simple = [
        lambda: Conv(width, Choice((1, 3))),
        lambda: Conv(8, 1),
        lambda: Match(width),
        lambda: Activation(Choice(("relu", "identity"))),
        lambda: BatchNorm(),
        lambda: Zero(),
        lambda: Chain(Subsample(Choice((4, 8))), Conv(in_channels, 1), Interleave(8)),
    ]
    if depth == 0:
        return rng.choice(simple)()

    def inner() -> Layer:
        return random_layer(rng, depth - 1)

    return rng.choice(
        [
            *simple,
            lambda: OneOf(Identity(), inner(), inner()),
            lambda: OneOf(Identity(), Chain(inner(), inner())),
            lambda: Repeat(Conv(8, Choice((1, 3))), Choice((0, 1, 2))),
            lambda: Repeat(Chain(Conv(8, 1), OneOf(Identity(), Conv(8, 1)), name="block"), Choice((0, 1, 2), "/depth")),
            lambda: Residual(Chain(inner(), Conv(in_channels, 1))),
            lambda: Chain(inner(), inner()),
            lambda: Chain(Conv(8), Add(OneOf(Zero(), Conv(8, 3)), OneOf(Zero(), Identity(), Conv(8, 1)))),
            lambda: Concat(Conv(Choice((2, 4)), 1), Conv(4, 1)),
            lambda: Graph({"a": Node(Conv(8, 1)), "b": Node(OneOf(Zero(), Identity()), "a"), "c": Node(Conv(8), ("a", "b"))}),
        ]
    )()


def random_network(seed: int) -> Network:
    """At most 3,000 genotypes."""
    rng = random.Random(seed)
    while True:
        layers = [random_layer(rng, rng.choice((1, 1, 2))) for _ in range(rng.randrange(2, 7))]
        network = Network(Chain(Conv(8, 1, name="stem"), *layers), (3, 8, 8))
        try:
            if 2 <= space_of(network).size <= 3_000:
                return network
        except ValueError:  # shapes that do not fit together
            continue


@pytest.mark.parametrize("seeds", [range(at, at + 10) for at in range(0, 60, 10)], ids=str)
def test_the_number_of_programs_of_random_networks_is_that_of_listing(seeds):
    for seed in seeds:
        network = random_network(seed)
        assert distinct(network) == (listed(network), "")


# --- closed forms -----------------------------------------------------------------------------------------------------------


def test_a_chain_of_optional_equal_layers_has_as_many_programs_as_lengths():
    network = Network(Chain(*(OneOf(Identity(), Conv(3)) for _ in range(40))))
    assert space_of(network).size == 2**40
    assert distinct(network) == (41, "")


def test_a_skip_among_different_layers_counts_the_words_up_to_the_length():
    network = Network(Chain(*(OneOf(Identity(), Conv(3, 1), Conv(3, 3), Conv(3, 5)) for _ in range(30))))
    assert distinct(network)[0] == sum(3**length for length in range(31))


def test_widths_that_round_to_the_same_are_one_program():
    network = Network(Chain(*(mbconv(16, expand=Choice((1.0, 1.05, 2.0)), stride=2) for _ in range(5))), (16, 64, 64))
    assert space_of(network).size == 3**5
    assert distinct(network)[0] == 2**5


def test_a_program_does_not_depend_on_where_its_parts_were_written():
    conv = [Conv(3, 1), Conv(3, 3)]
    one = Network(Chain(Chain(*conv), OneOf(Identity(), conv[0])))
    other = Network(Chain(conv[0], OneOf(Identity(), Chain(conv[1], conv[0])), name="else"))
    programs = [{program(network, arch) for arch in space_of(network).enumerate()} for network in (one, other)]
    assert len(programs[0] & programs[1]) == 1


def test_a_space_without_joints_is_listed_or_is_unknown_for_a_stated_reason():
    def dense(nodes: int) -> Network:
        graph = {str(at): Node(OneOf(Conv(3, 1), Conv(3, 3)), ("input", *map(str, range(at)))) for at in range(nodes)}
        return Network(Graph(graph))

    assert distinct(dense(8)) == (2**8, "")
    count, reason = distinct(dense(22))
    assert count is None
    assert "4,194,304" in reason


def test_the_programs_of_the_large_spaces_are_counted_exactly():
    stage = 9 * (1 + 8 + 8**2 + 8**3)  # a first block that halves or widens, then as many words as three blocks or skips can make
    assert distinct(zoo.network("fbnet"))[0] == 2 * 9 * stage**5 * 9
    count, _ = distinct(zoo.network("mobile-32"))
    assert 10**12 <= count <= space_of(zoo.network("mobile-32")).size
