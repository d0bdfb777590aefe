"""Canonical keys: equal for architectures that compute the same; paths: counted as by hand. Oracles: evaluating cells, and the benchmark's own rule."""

from itertools import product
from random import Random

import numpy as np
import pytest

from niwaki import zoo
from niwaki.net.canon import Canon
from niwaki.net.control import Add, Chain, Concat, Network, OneOf, Repeat
from niwaki.net.layer import Activation, BatchNorm, Conv, Identity, Pool, Subsample, Zero
from niwaki.net.place import place, space_of
from niwaki.net.program import program
from niwaki.space.choice import Choice
from niwaki.testing.toy import toy_space
from niwaki.zoo.nasbench import EDGES_201, OPERATIONS_201


@pytest.fixture(scope="module")
def cells() -> np.ndarray:
    """All 15,625 cells of NAS-Bench-201, (N, 6) numbers of operations."""
    return np.array(list(product(range(5), repeat=6)))


@pytest.fixture(scope="module")
def keys(cells) -> np.ndarray:
    return space_of(zoo.network("nasbench201")).canonical_keys(cells)


def classes(labels) -> np.ndarray:
    """Labels as numbers from 0."""
    return np.unique(np.asarray(labels), return_inverse=True)[1]


def refines(finer, coarser) -> bool:
    """Whether what is equal in `finer` is equal in `coarser`."""
    pairs = len(np.unique(np.stack([classes(finer), classes(coarser)]), axis=1).T)
    return pairs == len(np.unique(finer))


def test_cells_have_one_key_iff_they_are_the_same_function_of_their_operations(cells, keys):
    # each operation is some nonlinear function with f(0) = 0; a cell is evaluated at a few inputs in whole numbers modulo a prime
    prime = (1 << 31) - 1
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, prime, (2, 5, 1))

    def applied(operation: np.ndarray, x: np.ndarray) -> np.ndarray:
        square = x * x % prime
        return np.where(operation == 0, 0, np.where(operation == 1, x, (a[operation[:, 0]] * x + b[operation[:, 0]] * square) % prime))

    nodes = {0: np.broadcast_to(rng.integers(1, prime, 4), (len(cells), 4))}
    for end in (1, 2, 3):
        parts = [applied(cells[:, [at]], nodes[start]) for at, (start, to) in enumerate(EDGES_201) if to == end]
        nodes[end] = np.sum(parts, axis=0) % prime
    values = np.unique(nodes[3], axis=0, return_inverse=True)[1].ravel()
    assert refines(values, keys)
    assert refines(keys, values)
    assert len(np.unique(keys)) == 4930


def published_rule(cell) -> str:
    """NAS-Bench-201's own text of a cell (`Structure.to_unique_str` with consider_zero): sums are sorted as texts, but zeros stay in them."""
    nodes = {0: "0"}
    for end in (1, 2, 3):
        texts = []
        for operation, (start, to) in zip(cell, EDGES_201, strict=True):
            if to == end:
                name, source = OPERATIONS_201[operation], nodes[start]
                texts.append("#" if name == "none" or source == "#" else source if name == "skip_connect" else f"({source})@{name}")
        nodes[end] = "+".join(sorted(texts))
    return nodes[3]


def test_keys_merge_the_6466_published_classes_further_and_split_none(cells, keys):
    # the published text keeps "#" in sums ("#+0" is not "0", "#+#" not "#") and does not sort sums of sums again: 6,466 texts, 4,930 functions
    published = [published_rule(cell) for cell in cells.tolist()]
    assert len(set(published)) == 6466
    assert refines(published, keys)


def test_no_published_isomorphism_class_of_the_table_has_two_keys(shared_data):
    table = np.load(shared_data / "nasbench201" / "nasbench201_cifar10.npz")
    found = space_of(zoo.network("nasbench201")).canonical_keys(table["ops"])
    assert len(np.unique(table["iso_id"])) == 6466
    assert refines(table["iso_id"], found)
    assert refines(table["iso_id"], [published_rule(cell) for cell in table["ops"].tolist()])


def test_paths_of_a_cell_are_counted_as_by_walking_them(cells):
    space = space_of(zoo.network("nasbench201"))
    counted = space.features(cells).paths

    def walked(cell) -> dict:
        edges = {edge: OPERATIONS_201[operation] for edge, operation in zip(EDGES_201, cell, strict=True)}
        found: dict = {}
        for route in ((0, 3), (0, 1, 3), (0, 2, 3), (0, 1, 2, 3)):
            names = [edges[route[i], route[i + 1]] for i in range(len(route) - 1)]
            if "none" not in names:
                sequence = tuple(name for name in names if name != "skip_connect")
                found[sequence] = found.get(sequence, 0) + 1
        return found

    drawn = Random(0).sample(range(len(cells)), 400)
    expected = [walked(cells[at].tolist()) for at in drawn]
    sequences = sorted({sequence for paths in expected for sequence in paths})
    matrix = np.array([[paths.get(sequence, 0) for sequence in sequences] for paths in expected])
    assert counted.shape[1] == 1 + 3 + 9 + 27 + 4  # and live layers, see below
    ours = counted[drawn, :40]
    used = ours[:, (ours != 0).any(axis=0)]
    assert sorted(map(tuple, used.T.tolist())) == sorted(map(tuple, matrix.T.tolist()))


def test_layers_count_where_the_input_reaches_them_and_they_reach_the_output(cells):
    live = space_of(zoo.network("nasbench201")).features(cells).paths[:, 40:]
    for cell, found in zip(cells[::37].tolist(), live[::37], strict=True):
        edges = dict(zip(EDGES_201, cell, strict=True))
        routes = [((0, 3),), ((0, 1), (1, 3)), ((0, 2), (2, 3)), ((0, 1), (1, 2), (2, 3))]
        used = {edge for route in routes if all(edges[edge] for edge in route) for edge in route}
        counts = [sum(edges[edge] == operation for edge in used) for operation in (2, 3, 4)]
        expected = sorted([*counts, counts[0] + counts[1]])  # 1x1, 3x3, pools; ReLUs and BatchNorms are as many as convolutions
        assert sorted(np.round(found / live[live > 0].min()).tolist()) == expected


def test_layers_are_counted_as_run_where_the_output_reads_them_though_the_input_may_not_reach_them(cells):
    counts = space_of(zoo.network("nasbench201")).features(cells).counts
    for cell, found in zip(cells[::37].tolist(), counts[::37].tolist(), strict=True):
        edges = dict(zip(EDGES_201, cell, strict=True))
        read, waiting = set(), [3]
        while waiting:
            node = waiting.pop()
            for edge in EDGES_201:
                if edge[1] == node and edges[edge] and edge not in read:
                    read.add(edge)
                    waiting.append(edge[0])
        layers = [sum(edges[edge] == operation for edge in read) for operation in (2, 3, 4)]
        assert found[:5] == [cell.count(operation) for operation in range(5)]
        assert sorted(found[5:]) == sorted([*layers, layers[0] + layers[1]])  # ReLUs and BatchNorms are as many as convolutions


def conv(kernel: int) -> Conv:
    return Conv(8, kernel)


def keys_of(network: Network) -> list[int]:
    space = space_of(network)
    return space.canonical_keys(np.array(space.indices(space.enumerate()))).tolist()


def test_sums_commute_and_their_order_of_writing_does_not_matter():
    branch = OneOf(conv(1), conv(3), by=Choice(("conv0", "conv1"), "/a"))
    other = OneOf(conv(1), conv(3), by=Choice(("conv0", "conv1"), "/b"))
    first, second, third, fourth = keys_of(Network(Chain(conv(1), Add(branch, other)), (3, 8, 8)))
    assert second == third
    assert len({first, second, fourth}) == 3


def test_concatenations_do_not_commute_and_zeros_have_a_width_in_them():
    branch = OneOf(conv(1), conv(3), by=Choice(("conv0", "conv1"), "/a"))
    other = OneOf(conv(1), conv(3), by=Choice(("conv0", "conv1"), "/b"))
    assert len(set(keys_of(Network(Chain(conv(1), Concat(branch, other)), (3, 8, 8))))) == 4
    wide = Network(Chain(Conv(Choice((4, 8)), 1), Concat(Zero(), Conv(8, 1))), (3, 8, 8))
    narrow = Network(Chain(conv(1), Concat(OneOf(Zero(), Chain(Conv(4, 1), Zero())), conv(1))), (3, 8, 8))
    assert len(set(keys_of(wide))) == 2
    assert len(set(keys_of(narrow))) == 2


def test_zeros_end_where_a_bias_begins():
    kept = Network(Chain(OneOf(Zero(), conv(1)), OneOf(conv(3), Chain(conv(1), BatchNorm())), Activation("relu")), (8, 8, 8))
    assert len(set(keys_of(kept))) == 3  # the two behind zeros are one
    biased = Network(Chain(OneOf(Zero(), conv(1)), OneOf(Conv(8, 3, bias=True), Conv(8, 1, bias=True))), (8, 8, 8))
    assert len(set(keys_of(biased))) == 4
    sigmoid = Network(Chain(OneOf(Zero(), conv(1)), Activation(Choice(("relu", "sigmoid"))), conv(1)), (8, 8, 8))
    assert len(set(keys_of(sigmoid))) == 4


def test_identities_vanish_wherever_they_come_from():
    network = Network(
        Chain(
            conv(1),
            OneOf(Identity(), Activation("identity"), Activation(Choice(("identity", "relu")))),
            Subsample(Choice((4, 8))),
            Repeat(conv(3), Choice((0, 1))),
        ),
        (3, 8, 8),
    )
    assert len(set(keys_of(network))) == 2 * 2 * 2


def test_keys_are_the_same_whatever_other_rows_stand_beside(cells, keys):
    space = space_of(zoo.network("nasbench201"))
    some = np.array([7, 100, 15_000, 7])
    assert space.canonical_keys(cells[some]).tolist() == keys[some].tolist()


@pytest.mark.parametrize("name", ["mobile-8", "fbnetv2", "fbnet", "nasbench-macro"])
def test_architectures_of_one_program_have_one_key(name):
    network = zoo.network(name)
    space, rng = space_of(network), np.random.default_rng(0)
    rows = space.sample_many(12, rng)
    changed = rows.copy()
    for row in changed:
        at = rng.integers(len(space))
        row[at] = rng.integers(len(space.decisions[at].options))
    both = np.concatenate([rows, space.canonical_rows(changed)])
    found = space.canonical_keys(both)
    programs = [program(network, space.from_indices(row.tolist())) for row in both]
    for at in range(12):
        assert (found[at] == found[at + 12]) == (programs[at] == programs[at + 12])


def test_spaces_without_joined_branches_count_options_instead_of_paths():
    network = zoo.network("nasbench-macro")
    space = space_of(network)
    assert Canon(place(network)).paths(space.sample_many(3, np.random.default_rng(0))).shape == (3, 0)
    row = [0, 1, 2, 0, 0, 1, 2, 2]
    assert space.features(np.array([row])).counts[0].tolist() == [3, 2, 3]


# --- rows -------------------------------------------------------------------------------------------------------------------


def test_rows_are_made_canonical_as_one_architecture_at_a_time():
    space, rng = toy_space(), np.random.default_rng(0)
    raw = np.stack([rng.integers(len(decision.options), size=300) for decision in space.decisions], axis=1)
    expected = space.indices(space.from_indices(row) for row in raw.tolist())
    assert space.canonical_rows(raw).tolist() == expected


def test_rows_are_drawn_uniformly_from_a_conditional_space():
    space = toy_space()
    drawn = space.sample_many(60_000, np.random.default_rng(1))
    rows, times = np.unique(drawn, axis=0, return_counts=True)
    assert {tuple(row) for row in rows.tolist()} == {tuple(row) for row in space.indices(space.enumerate())}
    expected = 60_000 / space.size
    assert ((times - expected) ** 2 / expected).sum() < space.size + 5 * np.sqrt(2 * space.size)  # chi-squared, five deviations
    network = zoo.network("fbnetv2")
    many = space_of(network).sample_many(50, np.random.default_rng(0))
    assert space_of(network).canonical_rows(many).tolist() == many.tolist()


def test_pooling_is_not_an_identity():
    network = Network(Chain(conv(1), OneOf(Identity(), Pool("avg", 3, 1, 1))), (3, 8, 8))
    assert len(set(keys_of(network))) == 2
