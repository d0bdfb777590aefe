"""Tables of numbers: their columns, the networks that read them, and a search from a file to an exported model."""

import random

import pytest
import torch

from niwaki import zoo
from niwaki.cost.count import count_params
from niwaki.net.block import Columns
from niwaki.net.control import Network
from niwaki.net.layer import Embed
from niwaki.net.place import ShapeError, place, space_of
from niwaki.nn.build import build
from niwaki.space.choice import SpaceError
from niwaki.zoo.mlp import TABNAS_BUDGET, mlp

# --- layers and networks -----------------------------------------------------------------------------------------------------


def test_an_embedding_looks_up_each_feature_in_a_table_of_its_own():
    net = build(Network(Embed((3, 2), 2), (2,)))
    table = next(net.parameters()).detach()[:, 0]
    assert len(table) == 3 + 2 + 3  # two features of the column of three rows, one of the column of two
    for a in range(3):
        for b in range(2):
            out = net(torch.tensor([[float(a), float(b)]]))
            assert out[0].tolist() == [table[a], table[3 + b], table[5 + a]]


def test_curves_run_straight_between_their_knots_and_level_beyond_their_ends():
    net = build(Network(Embed((4,), 1, between=True), (1,)))
    table = next(net.parameters()).detach()[:, 0]
    codes = torch.tensor([[0.0], [1.25], [2.5], [3.0], [7.0], [-2.0]])
    expected = [table[0], table[1] * 0.75 + table[2] * 0.25, (table[2] + table[3]) / 2, table[3], table[3], table[0]]
    assert torch.allclose(net(codes)[:, 0], torch.stack(expected))


@pytest.mark.parametrize(("width", "numbers"), [(1, 3 + 2 + 9), (2, 2 * 3 + 2 + 2 * 9), (5, 2 * 3 + 2 + 5 * 9)])
def test_the_numbers_in_tables_are_counted(width, numbers):
    network = Network(Embed((3, 2, 9), width), (3,))
    arch = space_of(network).architecture({})
    assert count_params(network)(arch) == numbers == sum(p.numel() for p in build(network).parameters())


def test_tabnas_reference_network_has_the_published_number_of_parameters():
    network = zoo.network("tabnas-criteo")
    assert space_of(network).size == 8000
    assert count_params(network)(space_of(network).architecture({"hidden1": 32, "hidden2": 144, "hidden3": 24})) == TABNAS_BUDGET == 41_153


def test_members_of_the_family_have_exactly_as_many_parameters_as_are_counted():
    network = mlp(Columns(2, (24, 7), (9, 16, 2)), 3)
    params, space, rng = count_params(network), space_of(network), random.Random(0)
    for _ in range(10):
        arch = space.sample(rng)
        module = build(network, arch)
        assert params(arch) == sum(p.numel() for p in module.parameters())
        assert module(torch.zeros(4, 7)).shape == (4, 3)


def test_a_layer_that_reads_columns_beyond_the_row_is_refused():
    with pytest.raises(ShapeError, match="reads the features 1 to 3"):
        place(Network(Embed((3, 2, 9), 2, first=1), (3,)))
    with pytest.raises(SpaceError, match="rows = "):
        Embed((3, 0), 2)
    with pytest.raises(SpaceError, match="reads the rows of a table"):
        zoo.network("mlp", input_shape=(3, 8, 8))
