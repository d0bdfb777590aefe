"""Tables of published benchmarks as evaluators: what they look up, and what they refuse."""

import re
import zipfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from niwaki import zoo
from niwaki.evaluate.listed import NEAR, Listed
from niwaki.evaluate.table import TableError, load_table
from niwaki.net.place import space_of
from niwaki.run.statistics import spearman
from niwaki.space.space import Decision, Space

OPS = np.array(np.meshgrid(*[np.arange(5)] * 6, indexing="ij")).reshape(6, -1).T.astype(np.uint8)  # all cells, the last edge moving fastest
SPACE = Space((Decision("a", (1, 2, 3)), Decision("b", ("x", "y"))))


def saved(folder: Path, name: str = "table", **arrays: object) -> Path:
    path = folder / f"{name}.npz"
    np.savez(path, **arrays)
    return path


def cells(folder: Path, **changed: object) -> Path:
    """A table of all cells of NAS-Bench-201, in random order, with one made-up metric."""
    order = np.random.default_rng(0).permutation(len(OPS))
    arrays = {"ops": OPS[order], "accuracy": OPS[order].sum(axis=1).astype(np.float32), **changed}
    return saved(folder, **{key: value for key, value in arrays.items() if value is not None})


def test_a_row_is_found_again_and_its_metrics_are_those_of_the_row(tmp_path):
    table = load_table(cells(tmp_path, doubled=np.arange(len(OPS), dtype=np.int64)))
    assert len(table) == table.space.size == 15_625
    for at in range(200):
        arch = table.space.sample_uniform(Random(at))
        place = table.place(arch)
        numbers = [decision.options.index(arch[decision.name]) for decision in table.space]
        assert table(arch) == {"accuracy": sum(numbers), "doubled": place}
        assert table.rows[place].tolist() == numbers
        assert table.architecture(place) == arch


def test_further_files_add_columns_by_row(tmp_path):
    more = saved(tmp_path, "more_latency_ms", phone=np.linspace(1, 2, 15_625))
    table = load_table([cells(tmp_path), more])
    assert list(table.columns) == ["accuracy", "phone"]
    assert table.small == {"phone"}  # the file's name says that it is about latencies


def test_what_the_columns_count_is_what_the_description_counts(tmp_path, shared_data):
    for folder, file, count in (("nasbench201", "nasbench201_cifar10", "macs"), ("nasbench_macro", "nasbench_macro_cifar10", "flops")):
        table = load_table(shared_data / folder / f"{file}.npz")
        assert np.array_equal(table.cost("params"), table.column("params"))
        difference = table.column(count) - table.cost("macs")
        assert (difference == difference[0]).all()
        assert difference[0] == (10 if folder == "nasbench201" else 0)  # this table counts the bias of the classifier as 10 multiply-adds


def test_a_table_of_a_large_space_is_a_sample_of_it(shared_data):
    table = load_table(shared_data / "latency_spaces" / "fbnet_5000.npz", zoo.network("fbnet"))
    assert isinstance(table.space, Listed)
    assert table.space.size == 5000
    assert {arch.space for arch in table.space.enumerate()} == {space_of(zoo.network("fbnet")).hash}
    arch = table.space.sample_uniform(Random(0))
    assert all(near in table.space and near != arch for near in table.space.neighbours(arch))
    assert table.space.mutate(arch, Random(1)) in set(table.space.neighbours(arch))


def test_tables_of_latencies_are_known_by_their_columns_and_the_counts_of_their_networks_explain_them(shared_data):
    """The multiply-adds are right, or they would not order what a simulated chip, and a graphics card with full batches, take for them."""
    for file, network, column, least in (
        ("fbnet_5000", "fbnet-cifar100", "lat_eyeriss", 0.95),
        ("ofa_5000", "ofa-mobilenetv3", "lat_titan_rtx_32", 0.99),
    ):
        table = load_table(shared_data / "latency_spaces" / f"{file}.npz")
        assert table.space.hash == space_of(zoo.network(network)).hash
        assert spearman(table.cost("macs"), table.column(column)) > least
        assert load_table(shared_data / "latency_spaces" / f"{file}.npz", plain=True).network is None


def test_the_rows_of_an_ofa_table_are_what_its_arrays_say(shared_data):
    table = load_table(shared_data / "latency_spaces" / "ofa_5000.npz")
    arrays = np.load(shared_data / "latency_spaces" / "ofa_5000.npz")
    assert table.space.space.size == 25 * (9**2 + 9**3 + 9**4) ** 5
    for place in (0, 17, 4999):
        arch = table.architecture(place)
        depths = arrays["d"][place].tolist()
        expected = {"r": int(arrays["r"][place]), **{f"d{stage}": depth for stage, depth in enumerate(depths)}}
        for key in ("ks", "e"):
            expected |= {f"{key}{at}": value for at, value in enumerate(arrays[key][place].tolist()) if at % 4 < depths[at // 4]}
        assert dict(arch) == expected
        assert table(arch)["lat_v100_1"] == arrays["lat_v100_1"][place]


def test_neighbours_among_the_listed_are_the_nearest_by_brute_force():
    space = Space(tuple(Decision(f"d{at}", (0, 1, 2)) for at in range(12)))
    rows = np.unique(np.random.default_rng(1).integers(3, size=(200, 12)), axis=0)
    listed = Listed(space, rows)
    for at, arch in enumerate(listed.enumerate()):
        apart = [sum(x != y for x, y in zip(arch.values(), other.values(), strict=True)) for other in listed.enumerate()]
        ordered = sorted(distance for place, distance in enumerate(apart) if place != at)
        expected = {other for other, distance in zip(listed.enumerate(), apart, strict=True) if 0 < distance <= ordered[NEAR - 1]}
        assert set(listed.neighbours(arch)) == expected


def test_a_table_of_other_columns_is_taken_as_it_stands(tmp_path):
    table = load_table(saved(tmp_path, arch=np.array([[3, 0], [7, 1], [3, 2]]), score=np.array([1, 2, 3])))
    assert [decision.options for decision in table.space] == [(3, 7), (0, 1, 2)]
    assert [table(arch)["score"] for arch in table.space.enumerate()] == [1, 2, 3]
    assert table.network is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ops": OPS[:-2], "accuracy": np.zeros(15_623)}, "lacks 2 of the 15,625 architectures"),
        ({"ops": OPS[[*range(15_624), 7]]}, "rows 7 and 15624 are the same architecture"),
        ({"accuracy": np.where(np.arange(15_625) == 5, np.nan, 1.0)}, "'accuracy' is nan in row 5"),
        ({"accuracy": np.where(np.arange(15_625) == 5, np.inf, 1.0)}, "'accuracy' is inf in row 5"),
        ({"ops": np.where(OPS == 4, 5, OPS)}, "operation 5 in column 5.*operations are 0 to 4"),
        ({"ops": OPS.astype(float)}, "whole numbers"),
        ({"ops": OPS.astype(str)}, "whole numbers"),
        ({"ops": OPS.astype(object)}, "Python objects"),
        ({"ops": OPS.reshape(-1)}, "shape"),
        ({"ops": OPS[:0], "accuracy": np.zeros(0)}, "shape"),
        ({"accuracy": np.zeros(15_624)}, "'accuracy' has 15,624 rows, but there are 15,625"),
        ({"accuracy": None}, "no column of metrics"),
        ({"ops": None}, "neither ops nor arch"),
        ({"arch": OPS}, "both"),
    ],
)  # fmt: skip
def test_a_table_that_is_wrong_is_refused(tmp_path, changed, message):
    with pytest.raises(TableError, match=message):
        load_table(cells(tmp_path, **changed)).column("accuracy")


def test_a_column_that_nobody_asks_for_may_lack_values(tmp_path):
    gaps = np.where(np.arange(15_625) == 5, np.nan, 1.0)
    table = load_table(cells(tmp_path, other=gaps, several=np.stack([gaps, gaps + 1], axis=1)))
    assert np.isfinite(table.column("accuracy")).all()
    assert set(table(table.architecture(4))) - set(table(table.architecture(5))) == {"other", "several[0]", "several[1]"}
    for name in ("other", "several[1]"):
        with pytest.raises(TableError, match=rf"{re.escape(repr(name))} is nan in row 5, and no finite number in 1 rows"):
            table.column(name)
    load_table([cells(tmp_path, other=gaps), saved(tmp_path, "more", other=gaps, x=gaps)])  # the same gaps twice are no contradiction


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(TableError, match="there is no file"):
        load_table(tmp_path / "missing.npz")
    (tmp_path / "text.npz").write_text("not a table")
    with pytest.raises(TableError, match=r"no \.npz file") as refused:
        load_table(tmp_path / "text.npz")
    assert "pickle" not in str(refused.value)
    whole = cells(tmp_path).read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TableError):
        load_table(tmp_path / "half.npz")
    damaged = bytearray(whole)
    damaged[2000:2100] = bytes(100)
    (tmp_path / "damaged.npz").write_bytes(damaged)
    with pytest.raises(TableError):
        load_table(tmp_path / "damaged.npz")
    with zipfile.ZipFile(cells(tmp_path), "a") as members:
        members.writestr("readme.txt", "cells of NAS-Bench-201")
    with pytest.raises(TableError, match=r"'readme.txt' is no array; a table is an .npz file of arrays"):
        load_table(tmp_path / "table.npz")
    np.save(tmp_path / "one.npy", OPS)
    with pytest.raises(TableError, match="single array"):
        load_table(tmp_path / "one.npy")


def test_files_that_do_not_fit_together_are_refused(tmp_path):
    table = cells(tmp_path)
    with pytest.raises(TableError, match="in another order"):
        load_table([table, saved(tmp_path, "other", ops=OPS, x=np.zeros(15_625))])
    with pytest.raises(TableError, match=r"'accuracy'.*other numbers"):
        load_table([table, saved(tmp_path, "other", accuracy=np.zeros(15_625))])
    with pytest.raises(TableError, match="6 columns of options, but the network has 40 decisions"):
        load_table(table, zoo.network("mobile-32"))


def test_a_wrong_column_is_told_the_right_one(tmp_path):
    with pytest.raises(TableError, match="no column 'acuracy'; did you mean 'accuracy'"):
        load_table(cells(tmp_path)).column("acuracy")
