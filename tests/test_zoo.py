"""The zoo: published networks and spaces, and our family, are what they say."""

from math import prod

import pytest

from niwaki import zoo
from niwaki.cost.count import count_macs, count_params, layer_table
from niwaki.net.edit import encode
from niwaki.net.place import fix, place, space_of
from niwaki.net.program import distinct, program
from niwaki.net.tree import choices_in
from niwaki.space.choice import SpaceError
from niwaki.zoo.fbnet import BLOCKS, MODELS


@pytest.mark.parametrize("name", zoo.names())
def test_every_name_gives_a_network_that_can_be_placed_for_any_number_of_classes(name):
    placement = place(zoo.network(name, classes=7))
    assert placement.shape_of(placement.output).width == 7
    assert bool(placement.decisions) == (name in (*zoo.SPACES, *zoo.TABLES) or name.startswith("mobile-"))


def test_published_networks_have_no_choices():
    for name in zoo.MODELS:
        assert not list(choices_in(zoo.network(name).body))


@pytest.mark.parametrize("name", MODELS)
def test_fbnet_a_b_and_c_are_members_of_the_fbnet_space(name):
    space, plain = zoo.network("fbnet"), zoo.network(name)
    architecture = encode(space, plain)
    assert program(space, architecture) == program(plain)
    published = MODELS[name][1].split()
    assert architecture["tail.width"] == MODELS[name][0]
    # the same blocks, but for where among equal neighbours a skipped one stands
    taken = [architecture[f"block{at}"] for at in range(len(BLOCKS))]
    assert [block for block in taken if block != "skip"] == [block for block in published if block != "skip"]


def test_the_fbnet_space_has_nine_candidates_in_22_blocks_and_two_tails():
    assert space_of(zoo.network("fbnet")).size == 2 * 9**22


def test_the_fbnetv2_space_is_the_papers_table():
    space = space_of(zoo.network("fbnetv2"))
    widths = [d.options for d in space if d.name.endswith(".width")]
    assert prod(map(len, widths)) == 442_136_281_481_216  # the 4.4e14 of the widths alone
    assert len(widths) == 18
    assert widths[0] == (12, 16)
    assert widths[-1] == tuple(range(112, 217, 8))
    assert space["resolution"].options == (128, 160, 192, 224, 256, 288)
    assert [len(space[f"block{at}"].options) for at in (0, 1, 2)] == [9, 8, 9]  # no skip where the map is halved
    expansions = [d for d in space if d.name.endswith(".expand")]
    assert len(expansions) == 17
    assert {d.options for d in expansions} == {(0.75, 1.5, 2.25, 3.0, 3.75, 4.5)}
    architecture = {d.name: d.options[0] for d in space}
    architecture["block2"] = "skip"
    assert "block2.expand" not in space.active(architecture), "a skip has no expansion"


def test_a_block_of_fbnetv2_costs_by_its_own_decisions_and_the_width_before_it():
    for factor in count_macs(zoo.network("fbnetv2")).factors:
        assert len(factor.scope) <= 5


def test_fbnetv2_leaves_out_resolutions_above_the_input():
    assert "resolution" not in [d.name for d in space_of(zoo.network("fbnetv2", (3, 96, 96)))]
    assert space_of(zoo.network("fbnetv2", (3, 160, 160)))["resolution"].options == (128, 160)


def test_the_smallest_and_largest_members_of_mobile_fit_small_and_large_budgets():
    assert count_macs(zoo.mobile(8)).minimum()[0] <= 20_000
    assert count_macs(zoo.mobile(28)).minimum()[0] <= 100_000
    assert count_macs(zoo.mobile(224)).maximum()[0] >= 300_000_000
    assert count_macs(zoo.mobile(8)).maximum()[0] <= 10_000_000
    assert count_macs(zoo.mobile(32)).maximum()[0] <= 65_000_000


def test_mobile_32_has_more_than_a_million_million_different_members():
    assert distinct(zoo.mobile(32))[0] >= 10**12


def test_no_kernel_of_mobile_is_larger_than_the_map_it_reads():
    asked = [d.name for d in space_of(zoo.mobile(8)).decisions if d.name.endswith(".kernel")]
    assert asked == ["stage0.block0.inverted.kernel"], "it reads maps of 8 pixels; the others of 4 and 2"
    assert space_of(zoo.mobile(224))["stage4.block0.inverted.kernel"].options == (3, 5, 7)


@pytest.mark.parametrize("size", [*range(8, 225, 9), 224])
def test_mobile_is_there_for_every_size(size):
    network = zoo.mobile(size, channels=1, classes=3)
    smallest = count_macs(network).minimum()[1]
    assert [row.shape for row in layer_table(network, smallest)][-1] == (3,)
    largest = fix(place(network), count_macs(network).maximum()[1])
    assert largest.items[0].shape.spatial[0] in (size, (size - 1) // 2 + 1), "the largest member reads the whole image"


def test_mobile_takes_its_size_from_the_name_or_from_the_input():
    assert zoo.network("mobile-28", (1, 28, 28)) == zoo.network("mobile", (1, 28, 28)) == zoo.mobile(28, channels=1)


def test_the_family_is_called_as_it_is_written_in_python_too():
    assert zoo.network("mobile(32)") == zoo.network("mobile-32")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("fbnetv2-f5", None, "fbnetv2-f"),
        ("mobil-32", None, "mobile-32"),
        ("mobile", None, "8 to 224"),
        ("mobile-300", None, "8 to 224"),
        ("mobile-32", (3, 28, 28), "32 pixels, not 28 x 28"),
        ("vgg16", None, "it has fbnet, .*fbnetv2-l3"),
        ("fbnet", (10,), "channels x height x width"),
    ],
)
def test_a_name_or_shape_that_cannot_be_is_an_error_that_says_what_can(name, shape, message):
    with pytest.raises(SpaceError, match=message):
        zoo.network(name, shape)


def test_nas_bench_201_and_macro_have_the_published_sizes_and_extremes():
    """Parameters and multiply-adds of the smallest and largest networks, as the benchmarks state them."""
    for name, genotypes, parameters, multiply_adds in (
        ("nasbench201", 5**6, (73_306, 1_531_546), (7_783_040, 220_119_680)),
        ("nasbench-macro", 3**8, (387_882, 2_932_586), (7_713_280, 105_660_928)),
    ):
        network = zoo.network(name)
        assert space_of(network).size == genotypes
        for cost, extremes in ((count_params(network), parameters), (count_macs(network), multiply_adds)):
            assert (cost.minimum()[0], cost.maximum()[0]) == extremes
