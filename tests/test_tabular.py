"""Tables of numbers: their columns, the networks that read them, and a search from a file to an exported model."""

import csv
import json
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
import torch
from sklearn import metrics

import niwaki
from conftest import SMALL, SMALL_SETTINGS
from niwaki import zoo
from niwaki.cost.count import count_params
from niwaki.deploy.predict import ExportedModel
from niwaki.net.block import Columns
from niwaki.net.control import Network
from niwaki.net.layer import Embed
from niwaki.net.place import ShapeError, place, space_of
from niwaki.nn.build import build
from niwaki.run import loop
from niwaki.run.clock import Clock
from niwaki.run.config import load_config
from niwaki.run.folder import Folder
from niwaki.run.plan import fit_to_minutes, search_of
from niwaki.run.progress import Silent
from niwaki.run.ship import answers
from niwaki.run.workers import Job, Workers
from niwaki.space.choice import SpaceError
from niwaki.task.classify import ImageClassification
from niwaki.task.cut import DataError
from niwaki.task.embedded import digits
from niwaki.task.table import describe, read_table, stored_rows, table
from niwaki.task.tabular import Tabular
from niwaki.train.rates import Rated, parse_rate
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


# --- reading tables ----------------------------------------------------------------------------------------------------------

ROWS = 240


def people(rows=ROWS, seed=0):
    """Columns by name: numbers, texts and numbers that are codes, some of them missing; and a class and a number to predict."""
    rng = np.random.default_rng(seed)
    age, city, code = rng.normal(40, 10, rows), rng.choice(["Kyoto", "Nara", "Uji"], rows), rng.integers(0, 3, rows).astype(float)
    income = 3 * age + 20 * (city == "Nara") - 10 * code + rng.normal(0, 3, rows) + 1000
    age[::17], city = np.nan, city.astype(object)
    city[::13] = None
    return {"age": age, "city": city, "code": code, "flat": np.full(rows, 7.0)}, np.where(income > 1115, "rich", "poor"), income


def written(path, columns, targets, **more):
    """A CSV or Parquet file."""
    frame = {**columns, **more, "target": targets}
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        told = {name: [None if value is None or value != value else value for value in column] for name, column in frame.items()}
        parquet.write_table(pyarrow.table(told), path)
        return path
    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(frame)
        lines.writerows([["" if value is None or value != value else value for value in row] for row in zip(*frame.values(), strict=True)])
    return path


def test_a_table_is_the_same_from_columns_csv_and_parquet(tmp_path):
    columns, classes, _ = people()
    given = table(columns, classes)
    assert [(c.name, c.names or c.values) for c in given.columns] == [
        ("age", None), ("city", ("Kyoto", "Nara", "Uji")), ("code", (0.0, 1.0, 2.0)), ("flat", None),
    ]  # fmt: skip
    for kind in ("csv", "parquet"):
        assert read_table(written(tmp_path / f"people.{kind}", columns, classes)).sha256 == given.sha256


def test_a_table_of_numbers_is_the_same_from_csv_npz_and_an_array(tmp_path):
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(90, 3)).astype(np.float32), rng.normal(size=90)
    given = table(X, y, target="y")
    np.savez(tmp_path / "numbers.npz", X=X, y=y)
    assert given.class_names is None
    assert read_table(tmp_path / "numbers.npz").sha256 == given.sha256
    columns = {f"x{at}": X[:, at].astype(float) for at in range(3)}
    assert read_table(written(tmp_path / "numbers.csv", columns, y)).sha256 == given.sha256


def test_the_layout_of_the_shared_sets_is_read(tmp_path):
    X, y, split = np.arange(80, dtype=np.float32).reshape(40, 2), np.arange(40, dtype=np.uint8) % 2, np.repeat([0, 1, 2], [24, 8, 8])
    path = tmp_path / "set.npz"
    np.savez(path, X=X, y=y, split=split.astype(np.uint8), columns=np.array(["left", "right"]), target_values=np.array([5, 9]))
    task = Tabular(read_table(path))
    assert task.table.class_names == ("5", "9")
    assert [column.name for column in task.table.columns] == ["left", "right"]
    assert [task.part(part).tolist() for part in ("train", "validation", "test")] == [
        list(range(24)),
        list(range(24, 32)),
        list(range(32, 40)),
    ]
    assert np.array_equal(task.table.test_rows, X[32:])


def test_parts_by_word_are_kept_and_what_is_missing_is_cut():
    columns, classes, _ = people()
    split = np.array(["train", "valid", "train", "test"])[np.arange(ROWS) % 4]
    task = Tabular(table(columns, classes, split=split))
    assert [len(task.part(part)) for part in ("train", "validation", "test")] == [120, 60, 60]
    made = Tabular(table(columns, classes))
    shares = [len(made.part(part)) / ROWS for part in ("train", "validation", "test")]
    assert shares == pytest.approx([0.64, 0.16, 0.2], abs=0.02)
    assert not set(made.part("train").tolist()) & set(made.part("validation").tolist())


def test_groups_are_never_divided():
    columns, _, income = people()
    groups = np.arange(ROWS) // 10
    task = Tabular(table(columns, income, groups=groups, kind="regression"))
    kept = task.table.groups
    train, validation = (set(kept[task.part(part).numpy()].tolist()) for part in ("train", "validation"))
    assert not train & validation
    assert len(train | validation) < 24, "whole groups were cut off for the test"


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        (["a", "b"] * 60, ("a", "b")), ([1.0, 2.0, 10.0] * 40, ("1", "2", "10")), (list(np.linspace(0, 1, 120)), None), (list(range(120)), None),
    ],
)  # fmt: skip
def test_texts_and_few_whole_numbers_are_classes_and_anything_else_is_a_number(targets, classes):
    assert table(np.random.default_rng(0).normal(size=(120, 2)), targets).class_names == classes


# --- what tables of users hold ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [100_000_001, 1_700_000_000, 2**53 - 2])
def test_whole_numbers_that_float32_would_merge_stay_different(numbers, tmp_path):
    """As categories, as numbers, in the exported model's input and in what the network reads."""
    ids = numbers + np.arange(80) % 2
    given = table({"id": ids}, np.array(["x", "y"])[np.arange(80) % 2])
    task = Tabular(given)
    assert task.ignored == []
    assert given.columns[0].values == (float(numbers), float(numbers + 1))
    inputs, truth = task.batch(torch.arange(len(given.rows)), torch.device("cpu"))
    assert set(zip(inputs[:, 0].tolist(), truth.tolist(), strict=True)) == {(0.0, 0), (1.0, 1)}
    times = Tabular(table({"time": np.int64(numbers) - np.arange(300)}, np.random.default_rng(0).normal(size=300)))
    read = times.batch(torch.arange(300), torch.device("cpu"))[0]
    assert len(read.unique(dim=0)) > 290, "all but those beyond the end knots"
    plain = Tabular(times.table, knots=0)
    assert len(plain.batch(torch.arange(300), torch.device("cpu"))[0].unique()) == 300
    assert read_table(written(tmp_path / "ids.csv", {"id": ids}, np.array(["x", "y"])[np.arange(80) % 2])).sha256 == given.sha256


@pytest.mark.parametrize("kind", ["array", "csv", "parquet"])
def test_whole_numbers_that_float64_would_merge_are_kept_by_their_text_or_refused(kind, tmp_path):
    classes, ids = np.array(["x", "y"])[np.arange(80) % 2], 2**60 + np.arange(80) % 2

    def read(ids, **settings):
        if kind == "array":
            return table({"id": ids}, classes, **settings)
        return read_table(written(tmp_path / f"ids.{kind}", {"id": ids.tolist()}, classes), **settings)

    given = read(ids)
    assert given.columns[0].names == (str(2**60), str(2**60 + 1))
    assert set(given.rows[:, 0]) == {0.0, 1.0}
    stored = stored_rows({"id": np.array([2**60 + 1, 2**60, 7], object)}, given.columns, "new")
    assert stored[:, 0].tolist()[:2] == [1.0, 0.0]
    assert np.isnan(stored[2, 0])
    with pytest.raises(DataError, match=r"'id' holds whole numbers beyond 2\*\*53.*data.ignore.*data.categorical"):
        read(2**60 + np.arange(80))
    assert len(read(2**60 + np.arange(80), categorical=["id"]).columns[0].names) == 64


def test_two_whole_values_are_classes_and_a_metric_says_what_a_target_is(tmp_path):
    age = {"age": np.arange(30.0)}
    for target in ([False, True] * 15, [0, 1] * 15, [3.0, 7.0] * 15):
        assert len(table(age, target).class_names) == 2
    assert table(age, [0.25, 1.0] * 15).class_names is None
    assert table(age, [0, 1, 2] * 10).class_names is None, "few rows"
    data = written(tmp_path / "few.csv", {"age": range(30)}, [0, 1, 2] * 10)
    for metric, classes in (("accuracy", 3), ("log_loss", 3), ("rmse", None), ("r2", None)):
        settings = ("data.kind=table", f"data.path={data}", f"data.metric={metric}", 'budget=["params<=1500"]')
        decided, search = search_of(load_config(None, settings))
        assert len(search.task.table.class_names or ()) == (classes or 0)
        assert decided.data.task == ("classification" if classes else "regression")


@pytest.mark.parametrize("wrong", ["abc", "1,200"])
def test_a_text_in_a_column_of_numbers_is_told_and_not_taken_for_a_category(wrong, tmp_path):
    ages: list[object] = [20 + at % 60 for at in range(300)]
    ages[17] = wrong
    columns, classes = {"age": ages, "city": ["Nara", "Uji"] * 150}, ["a", "b"] * 150
    path = written(tmp_path / "ages.csv", columns, classes)
    with pytest.raises(
        DataError,
        match=rf"'age' holds numbers, and 1 text that is none: '{wrong}' in row 17.*data.missing.*data.categorical=\[\"city\", \"age\"\]",
    ):
        read_table(path)
    assert len(read_table(path, categorical=["city", "age"]).columns[0].names) > 50
    told = read_table(path, missing=[wrong])
    assert told.columns[0].values is None
    assert np.isnan(told.rows).sum() + np.isnan(told.test_rows).sum() == 1
    assert told.missing_texts == {"age": {wrong: 1}}


def test_which_texts_stand_for_missing_values_can_be_said_and_is_told(tmp_path):
    country, said = np.array(["NA", "JP", "FR", "na"] * 30), np.array(["None", "Some"] * 60)
    path = written(tmp_path / "texts.csv", {"country": country, "age": np.arange(120.0)}, said)
    with pytest.raises(DataError, match=r"is missing in 60 rows \('None' 60 times; data.missing says"):
        read_table(path)
    kept = read_table(path, missing=["?"])
    assert kept.class_names == ("None", "Some")
    assert kept.columns[0].names == ("FR", "JP", "NA", "na")
    assert kept.missing_texts == {}
    settings = ("data.kind=table", f"data.path={path}", "data.target=age", 'budget=["params<=1500"]')
    decided, search = search_of(load_config(None, settings))
    assert "na" in decided.data.missing
    assert search.task.describe()["missing_texts"] == {"country": {"NA": 30, "na": 30}, "target": {"None": 60}}
    assert search_of(load_config(None, (*settings, 'data.missing=["?"]')))[0].data.missing == ["?"]


def test_errors_name_the_file_alone_and_reports_say_what_was_cut(tmp_path):
    path = written(tmp_path / "one.csv", {"flat": [1] * 80}, ["a", "b"] * 40)
    loaded = read_table(path)
    assert loaded.source == str(path)
    assert "20% of the rows cut off as the test part" in describe(loaded)["source"]
    with pytest.raises(DataError, match=rf"^{path}: no column has two different values"):
        Tabular(loaded)


def test_what_is_ignored_is_no_target_and_no_split(tmp_path):
    path = written(tmp_path / "parts.csv", {"age": range(80), "split": ["train", "test"] * 40}, ["a", "b"] * 40)
    assert [column.name for column in read_table(path, ignore=["split"]).columns] == ["age"]
    assert len(read_table(path, ignore=["split"]).rows) == 64
    with pytest.raises(DataError, match=r"both data.target and in data.ignore"):
        read_table(path, target="target", ignore=["target"])


def test_targets_are_shown_as_they_are_stored():
    targets = np.where(np.arange(100) % 4 == 0, 0.0, np.arange(100) * 1000.1)
    task = Tabular(table({"x": np.arange(100.0)}, targets, kind="regression"))
    network = mlp(task.columns, 1)
    told = answers(task, build(network, space_of(network).sample(random.Random(0))), "cpu")
    assert [truth for truth, _ in told["pairs"]] == task.table.test_targets.tolist()
    assert {row["label"] for row in told["mistakes"]} <= {f"{value:.5g}" for value in targets}


# --- what enters the network --------------------------------------------------------------------------------------------------


def test_numbers_are_standardised_by_the_train_part_and_missing_ones_filled_and_marked():
    X = np.array([[1.0], [3.0], [np.nan], [8.0], [100.0], [5.0]])
    task = Tabular(table(X, [1.5, 2.5, 3.5, 4.5, 5.5, 6.5], split=[0, 0, 0, 0, 1, 2], kind="regression"), knots=0)
    mean, std = 4.0, np.sqrt(((1 - 4) ** 2 + (3 - 4) ** 2 + (8 - 4) ** 2) / 3)
    inputs, _ = task.batch(torch.arange(6), torch.device("cpu"))
    assert inputs[:, 0].tolist() == pytest.approx([(x - mean) / std for x in (1, 3, mean, 8, 100, 5)], rel=1e-6)
    assert inputs[:, 1].tolist() == [0, 0, 1, 0, 0, 0]
    median = Tabular(task.table, knots=0, fill="median").batch(torch.tensor([2]), torch.device("cpu"))[0]
    assert median[0, 0].item() == pytest.approx((3 - mean) / std)


def test_the_place_among_the_knots_is_that_of_numpys_interpolation():
    values = np.random.default_rng(0).exponential(size=(500, 1)).round(2)
    task = Tabular(table(values, np.random.default_rng(1).normal(size=500)), knots=9)
    number = task.numbers[0]
    knots = np.array(number.knots) * number.std + number.mean
    assert len(knots) == 9
    tested = np.linspace(-1, 9, 50, dtype=np.float32)
    expected = np.interp(tested, knots, np.arange(9))
    assert task.preprocess()(torch.tensor(tested)[:, None])[:, 0].numpy() == pytest.approx(expected, abs=1e-4)


def test_categories_have_codes_and_what_was_never_seen_is_taken_for_missing_or_else_for_the_commonest():
    columns = {"with": ["a", "b", None, "a"] * 30, "without": ["u", "v", "v", "v"] * 30}
    task = Tabular(table(columns, [0, 1] * 60))
    assert [one.rows for one in task.categories] == [3, 2]
    stored = stored_rows(
        {"with": np.array(["b", "zebra", None], object), "without": np.array(["u", "zebra", None], object)}, task.table.columns, "new"
    )
    assert task.preprocess()(torch.tensor(stored)).tolist() == [[1, 0], [2, 1], [2, 1]]


def test_columns_that_never_change_are_not_given_to_the_network():
    columns, classes, _ = people()
    task = Tabular(table(columns, classes))
    assert task.ignored == ["flat"]
    assert task.describe()["ignored"] == ["flat"]
    assert task.input_shape == (1 + 1 + 2,), "a mark for the missing age, its curve, and two codes"


# --- loss and metrics ----------------------------------------------------------------------------------------------------------


def test_metrics_of_classes_are_those_of_scikit_learn():
    columns, classes, _ = people()
    task = Tabular(table(columns, classes), metric="log_loss")
    outputs, truth = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 3 % 2
    found, guess = task.metrics(outputs, truth), outputs.argmax(1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
    assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, guess))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(truth, outputs.double().softmax(1)), rel=1e-6)
    assert task.metric == "neg_log_loss"
    assert found[task.metric] == -found["log_loss"]


def test_metrics_of_numbers_are_those_of_scikit_learn_in_the_units_of_the_target():
    columns, _, income = people()
    task = Tabular(table(columns, income))
    mean, std = task.target_scale
    test = task.part("test")
    truth, outputs = task.labels(test), torch.randn(len(test), 1, generator=torch.Generator().manual_seed(0))
    found, y, guess = task.metrics(outputs, truth), task.table.test_targets, outputs[:, 0].double() * std + mean
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(y, guess), rel=1e-5)
    assert found["mae"] == pytest.approx(metrics.mean_absolute_error(y, guess), rel=1e-5)
    assert found["r2"] == pytest.approx(metrics.r2_score(y, guess), rel=1e-4)
    assert task.metric == "neg_rmse"
    assert found[task.metric] == -found["rmse"]


# --- from a file to a model -----------------------------------------------------------------------------------------------------

SCRATCH = tuple(
    word
    for key in ("method=random", "evaluator=scratch", "search.evaluations=1", "train.epochs=20", 'budget=["params<=1500"]')
    for word in ("--set", key)
)
QUICK = ("--set", 'budget=["params<=1500"]', *SMALL_SETTINGS, "--set", "search.finalists=2", "--set", "search.folds=1")


@pytest.fixture(scope="module")
def classified(niwaki_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    columns, classes, _ = people()
    data = written(folder / "people.csv", columns, classes)
    answer = niwaki_command("search", "--set", "data.kind=table", "--set", f"data.path={data}", *QUICK, "--out", folder / "run", "--json")
    assert answer.code == 0, answer.err
    return folder, answer.json


def test_a_search_on_a_csv_file_keeps_its_budget_and_says_what_it_read(classified):
    folder, found = classified
    weights = safetensors.numpy.load_file(folder / "run" / "model.safetensors")
    learned = sum(
        w.size
        for name, w in weights.items()
        if not name.endswith(("running_mean", "running_var", "tracked", "_columns", "_starts", "_last"))
    )
    assert learned == found["params"] <= 1500
    config = json.loads((folder / "run" / "config.json").read_text())["plan"]["config"]
    assert config["data"]["categorical"] == ["city", "code"]
    assert (config["data"]["task"], config["data"]["target"], config["data"]["metric"]) == ("classification", "target", "accuracy")
    assert config["train"]["optimizer"] == "adamw"


def test_predictions_for_a_file_are_those_of_the_onnx_model_and_of_model_py(classified, niwaki_command):
    folder, found = classified
    classes = people()[1]
    answer = niwaki_command("predict", folder / "run", folder / "people.csv", "--json").json
    assert len(answer["predictions"]) == ROWS
    assert [row["truth"] for row in answer["predictions"]] == classes.tolist()
    done = subprocess.run([sys.executable, folder / "run" / "model.py", folder / "people.csv"], capture_output=True, text=True, check=True)
    said = [line.split("  ")[1] for line in done.stdout.splitlines()]
    assert said == [row["label"] for row in answer["predictions"]]
    test = read_table(folder / "people.csv").test_rows
    logits = ExportedModel(folder / "run" / "model.onnx").logits(test)
    truth = read_table(folder / "people.csv").test_targets
    assert (logits.argmax(1) == truth).mean() == pytest.approx(found["accuracy"]["test"])


def test_a_model_takes_missing_columns_values_and_categories_as_it_should(classified, niwaki_command):
    folder, _ = classified
    new = written(
        folder / "new.csv",
        {"age": [41.0, np.nan], "city": ["Osaka", "Uji"], "code": [9, 1], "flat": [1, 2], "more": ["x", "y"]},
        ["rich", "?"],
    )
    told = niwaki_command("predict", folder / "run", new, "--json").json
    assert [row["truth"] for row in told["predictions"]] == ["rich", None]
    lacking = written(folder / "lacking.csv", {"age": [41.0], "code": [1]}, ["rich"])
    answer = niwaki_command("predict", folder / "run", lacking, "--json")
    assert answer.code == 2
    assert "lacks the columns city, flat" in answer.err


def test_the_report_of_a_table_speaks_of_rows(classified):
    folder, _ = classified
    page = (folder / "run" / "report.html").read_text()
    assert "<img" not in page
    assert "images" not in page.partition("</style>")[2].replace('class="images"', "")
    assert "city (3)" in page
    assert "rows.csv" in page
    assert "Accuracy against cost, judged with shared weights" in page
    assert "The two are not on one scale." in page
    assert "delivered network, on validation, after a short training" in page
    assert re.search(r"missing values</dt><dd>\d+ in the training rows", page)
    assert "<th scope=col>sure" in page


def test_a_regression_runs_from_end_to_end_in_the_units_of_its_target(niwaki_command, tmp_path):
    columns, _, income = people()
    data = written(tmp_path / "income.csv", columns, income)
    settings = (
        "data.kind=table",
        f"data.path={data}",
        'budget=["params<=1500"]',
        "train.epochs=30",
        "method=random",
        "evaluator=scratch",
        "search.evaluations=3",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    answer = niwaki_command("search", *words, "--out", "run", "--json", cwd=tmp_path)
    assert answer.code == 0, answer.err
    told = answer.json["budgets"][0]["metrics"]["test"]
    assert told["rmse"] < 0.5 * np.std(income), "it has learned"
    loaded = read_table(data)
    values = ExportedModel(tmp_path / "run" / "model.onnx").logits(loaded.test_rows)[:, 0]
    assert metrics.root_mean_squared_error(loaded.test_targets, values) == pytest.approx(told["rmse"], rel=1e-4)
    predicted = niwaki_command("predict", tmp_path / "run", data, "--json").json
    assert predicted["rmse"] < 0.5 * np.std(income)
    assert predicted["predictions"][0]["truth"] == pytest.approx(income[0])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Predicted against true" in page
    assert "Worst mistakes first" in page
    assert "<th scope=col>sure" not in page
    again = niwaki_command("search", *words, "--out", "run", cwd=tmp_path)
    assert f"test rmse {told['rmse']:.5g} of the trained network" in again.out
    assert "when it was chosen, on validation, after a short training)" in again.out


# --- rates -----------------------------------------------------------------------------------------------------------------------


def test_a_rate_is_searched_for_from_a_configuration(niwaki_command, tmp_path):
    columns, classes, _ = people()
    data = written(tmp_path / "people.csv", columns, classes)
    settings = ("data.kind=table", f"data.path={data}", "data.metric=precision@recall=0.9", "data.positive=poor")
    words = [word for setting in settings for word in ("--set", setting)]
    answer = niwaki_command("search", *words, *SCRATCH, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "Precision at recall 0.9 is of the class 'poor' against all others." in answer.err
    assert re.search(r"test precision at recall 0.9 \d+\.\d\d % of the trained network", answer.out)
    found = json.loads((tmp_path / "run" / "architecture.json").read_text())["metrics"]["test"]["precision_at_recall_0.9"]
    loaded = read_table(data)
    logits = ExportedModel(tmp_path / "run" / "model.onnx").logits(loaded.test_rows).astype(float)
    precision, recall, _ = metrics.precision_recall_curve(loaded.test_targets == 0, logits[:, 0] - logits[:, 1])
    assert found == pytest.approx(precision[recall >= 0.9].max())


@pytest.mark.parametrize("what", ["table", "digits"])
def test_a_rated_task_is_searched_for_from_python(what, tmp_path):
    columns, classes, _ = people()
    own = Tabular(table(columns, classes)) if what == "table" else ImageClassification(digits())
    rated = Rated(own, parse_rate("precision@10%"), positive_class=1)
    if what == "table":
        budget, settings = "params<=1500", {"search.finalists": 2, "search.folds": 1, "workers": 1}
    else:
        budget, settings = "macs<=20k", {"method": "random", "evaluator": "scratch", "search.evaluations": 1}
    settings = {key: value for key, value in SMALL.items() if "search" not in key or what == "table"} | settings
    method = settings.pop("method", "dmasking")
    found = niwaki.search("auto", rated, budget, method=method, out=tmp_path / "run", settings=settings)
    assert 0 <= found.metrics["test"]["precision_at_k_0.1"] <= 1
    plan = json.loads((tmp_path / "run" / "config.json").read_text())["plan"]
    assert plan["data"]["metric"] == rated.metric
    assert parse_rate(plan["config"]["data"]["metric"] or "precision@10%") == rated.objective
    assert "Precision at k 0.1 against cost" in (tmp_path / "run" / "report.html").read_text()


def test_rates_that_cannot_be_searched_for_are_refused(niwaki_command, tmp_path):
    columns, _, income = people()
    data = written(tmp_path / "people.csv", columns, np.array(["a", "b", "c"])[np.arange(ROWS) % 3], income=income)
    for settings, message in (
        (["data.metric=precision@10%"], "say which (data.positive): a, b, c"),
        (["data.metric=precision@10%", "data.positive=d"], "'d' is none of the classes: a, b, c"),
        (["data.metric=f2"], "or a rate of one class that can be trained for: precision@2%"),
        (["data.metric=precision@200%", "data.positive=a"], "data.metric: precision_at_k of 2.0: it lies between 0 and 1"),
        (["data.metric=precision@most", "data.positive=a"], "'precision@most' is no rate"),
        (["data.metric=precison@10%"], "one of accuracy, balanced_accuracy, macro_f1, log_loss, rmse, mae, r2, or a rate"),
        (["data.positive=a"], "is the class that a rate is of"),
        (["data.metric=aucpr", "data.task=regression", "data.target=income"], "a rate of classes, and the target is a number"),
    ):
        words = [word for one in ("data.kind=table", f"data.path={data}", *settings) for word in ("--set", one)]
        answer = niwaki_command("search", *words, "--json", "--out", tmp_path / "run")
        assert answer.code == 2, answer.err
        assert message in answer.json["error"]


# --- time ------------------------------------------------------------------------------------------------------------------------


def test_the_final_trainings_part_of_a_time_limit_is_kept_free(tmp_path):
    columns, classes, _ = people()
    task = Tabular(table(columns, classes))
    asked = load_config(None, (), {"network": "mlp", "minutes": 5.0, "budget": ["params<=1500"]})
    _, search = search_of(asked, task)
    expected = {"search": 1.0, "judging": 1.0, "finalists": 17.0, "training": 1.0}
    folder = Folder(tmp_path / "run", asked={}, plan=lambda: {"expected_s": expected})
    try:
        clock = Clock(folder, search, [])
        for share, over in ((0.5, False), (0.74, False), (0.76, True)):
            folder.elapsed = lambda share=share: share * clock.limit_s  # type: ignore[method-assign]
            assert clock.over("finalists") == clock.past() == over, "a quarter, where less is expected"
            assert not clock.over("training")
        folder.elapsed = lambda: 0.5 * clock.limit_s  # type: ignore[method-assign]
        assert clock.over("finalists", next_s=0.3 * clock.limit_s)
        assert not clock.over("training", next_s=0.3 * clock.limit_s)
    finally:
        folder.close()


def test_what_workers_have_begun_is_given_up_when_the_time_is_up(tmp_path):
    folder, began = Folder(tmp_path / "run", asked={}), time.monotonic()
    try:
        with Workers(2) as pool:
            jobs = [Job(f"sleep {at}", time.sleep, (300,)) for at in range(3)]
            assert pool.run(jobs, folder, Silent(), "sleeping", abandon=lambda: True) == {}
    finally:
        folder.close()
    assert time.monotonic() - began < 60


def test_a_short_limit_starts_no_workers_unless_they_are_asked_for(monkeypatch):
    columns, classes, _ = people()
    task = Tabular(table(columns, classes))
    monkeypatch.setattr("niwaki.run.plan.estimate", lambda search: {"search": 1.0, "judging": 1.0, "finalists": 60.0, "training": 9.0})
    monkeypatch.setattr("niwaki.run.plan.allotted_cores", lambda: 4)
    for minutes, settings, workers in ((0.5, {}, 1), (0.5, {"workers": 3}, 3), (5.0, {}, 4)):
        asked = load_config(None, (), {"network": "mlp", "minutes": minutes, "budget": ["params<=1500"], **settings})
        planned, shorter, _ = fit_to_minutes(asked, *search_of(asked, task))
        assert planned.workers == shorter.workers == workers


def test_a_network_that_time_left_hardly_trained_is_told_so(tmp_path, monkeypatch, niwaki_command):
    columns, classes, _ = people()
    data = written(tmp_path / "people.csv", columns, classes)
    learn = loop.learn

    def late(learner, folder, *arguments, name, **more):
        if name == "training":
            monkeypatch.setattr(Folder, "elapsed", lambda self: 3600.0)
        return learn(learner, folder, *arguments, name=name, **more)

    monkeypatch.setattr(loop, "learn", late)
    settings = ("data.kind=table", f"data.path={data}", "method=random", "evaluator=scratch", "search.evaluations=1")
    words = [word for setting in (*settings, 'budget=["params<=1500"]') for word in ("--set", setting)]
    answer = niwaki_command("search", *words, "--minutes", 1, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "hardly trained: test accuracy" in answer.out
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h1>Hardly trained, the time was too short: " in page
    assert "is hardly trained: the time limit left" in page
    assert "To end within 1 minute, the plan is: train.epochs = " in page


def test_tabnas_space_reads_any_table(tmp_path):
    columns, classes, _ = people()
    config = load_config(
        None,
        (
            "network=tabnas-criteo",
            "data.kind=table",
            f"data.path={written(tmp_path / 'people.csv', columns, classes)}",
            "budget=params<=41153",
        ),
    )
    decided, search = search_of(config)
    assert space_of(search.network).size == 8000
    assert search.recipe.label_smoothing == 0
    assert decided.undecided() == []


# --- bad input ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": [0.0] * 40}, "is 0 in every training row"),
        ({"target": ["a"] * 39 + [None]}, "missing in 1 rows"),
        ({"target": ["a"] * 40}, "a single class"),
        ({"target": [*["a"] * 39, "b"]}, "too few"),
        ({"age": [np.inf] + [1.0] * 39}, "infinite in row 0"),
        ({"split": [7] * 40}, "the split says '7'"),
        ({"split": ["test"] * 40}, "0 training rows"),
        ({"name": [f"person {at}" for at in range(40)] * 1}, None),
    ],
)
def test_data_that_cannot_be_learned_from_are_refused(change, message):
    columns = {"age": list(np.arange(40.0)), "target": ["a", "b"] * 20} | change
    targets, split = columns.pop("target"), columns.pop("split", None)
    if message is None:  # few rows, in which every text may be a category
        assert table(columns, targets, split=split).columns[1].names is not None
        return
    with pytest.raises(DataError, match=message):
        table(columns, targets, split=split)


def test_a_column_of_names_is_no_category_unless_one_says_so():
    columns = {"name": [f"person {at}" for at in range(200)]}
    with pytest.raises(DataError, match=r"160 different texts.*leave it out"):
        table(columns, [0, 1] * 100)
    assert len(table(columns, [0, 1] * 100, categorical=["name"]).columns[0].names) == 160


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.path=gone.csv"], "gone.csv is missing"),
        (["data.path=data.txt"], "a table is a file of one of the kinds"),
        (["data.path=people.csv", "data.target=wage"], "no column 'wage' (data.target)"),
        (["data.path=people.csv", 'data.categorical=["town"]'], "no column 'town'"),
        (["data.path=people.csv", "data.metric=rmse"], "a data.metric of numbers"),
        (["data.path=people.csv", "data.metric=rmse", "data.task=classification"], "is none for a target of classes"),
        (["data.path=people.csv", 'data.ignore=["age","target"]'], "both data.target and in data.ignore"),
        (["data.path=one.csv"], "/one.csv has a single class"),
        (["data.path=people.csv", "data.task=regression"], "holds texts such as"),
        (["data.path=ragged.csv"], "line 3: 1 values where the first line names 2 columns"),
        (["data.path=bare.npz"], "no array X"),
        (["data.path=people.csv", 'budget=["params<=5"]'], "no architecture has params <= 5"),
        (["data.path=people.csv", "network=fbnetv2"], "the rows of a table are read by"),
        (["data.path=people.csv", "data.knots=1"], "at least 2"),
        (["data.path=parts.npz", "data.validation=0.3"], "the table says itself"),
        (["data.path=numbers.npz", "train.label_smoothing=0.1"], "the target is a number"),
        (["data.path=people.csv", "data.layout=NHW"], "data.layout says how npz files are laid out"),
    ],
)
def test_what_cannot_be_searched_is_told_at_once_with_exit_code_2(niwaki_command, tmp_path, settings, message):
    columns, classes, _ = people(60)
    written(tmp_path / "people.csv", columns, classes)
    written(tmp_path / "one.csv", columns, ["a"] * 60)
    (tmp_path / "data.txt").write_text("a,b\n1,2\n")
    (tmp_path / "ragged.csv").write_text("a,target\n1,2\n3\n")
    np.savez(tmp_path / "bare.npz", a=np.zeros(3))
    X, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60)
    np.savez(tmp_path / "parts.npz", X=X, y=y % 2, split=y % 3)
    np.savez(tmp_path / "numbers.npz", X=X, y=y)
    before = sorted(tmp_path.rglob("*"))
    answer = niwaki_command(
        "search", "--set", "data.kind=table", *(word for one in settings for word in ("--set", one)), "--json", cwd=tmp_path
    )
    assert answer.code == 2, answer.err
    assert message in answer.json["error"].replace("\n", " ")
    assert "Traceback" not in answer.err
    assert sorted(tmp_path.rglob("*")) == before
