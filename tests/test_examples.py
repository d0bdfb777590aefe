"""What the README and the examples show runs as it stands there, with a search made short."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import niwaki
from conftest import SMALL
from niwaki.run.config import load_config
from niwaki.run.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


@pytest.fixture
def short_search(monkeypatch, tmp_path):
    """`niwaki.search` as it is, but for how long it trains; in a folder of its own. What it was asked for, and gave."""
    search, found = niwaki.search, []

    def short(*arguments, minutes=None, **given):
        found.append((minutes, search(*arguments, settings=SMALL, **given)))
        return found[-1][1]

    monkeypatch.setattr(niwaki, "search", short)
    monkeypatch.chdir(tmp_path)
    return found


def photos(folder):
    rng = np.random.default_rng(0)
    for name, shade in (("cats", 60), ("dogs", 180)):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            pixels = np.clip(rng.normal(shade, 30, (12, 12, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_the_example_on_own_data_ends_with_networks_and_predictions(short_search, monkeypatch, capsys):
    folder = photos(Path("photos"))
    monkeypatch.setattr(sys, "argv", ["own_data.py", str(folder), str(folder / "cats" / "0.png")])
    runpy.run_path(str(ROOT / "examples" / "own_data.py"))
    [(minutes, result)] = short_search
    assert minutes == 15
    assert result.metrics["macs"] <= 1e6
    assert len(list(result.folder.rglob("model.onnx"))) == 2
    assert re.search(r"0\.png (cats|dogs) 0\.\d+|0\.png (cats|dogs) 1\.0", capsys.readouterr().out)


def test_the_example_that_trains_once_ends_with_three_files_and_a_cascade(monkeypatch, tmp_path, capsys):
    once = niwaki.train_once

    def short(*arguments, epochs, **given):
        trained = once(*arguments, epochs=1, **given)
        best = trained.best
        object.__setattr__(trained, "best", lambda budget: best(budget, evaluations=2))
        return trained

    monkeypatch.setattr(niwaki, "train_once", short)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")
    runpy.run_path(str(ROOT / "examples" / "train_once.py"))
    made = {path.name for path in (tmp_path / "runs" / "train-once").glob("*.onnx")}
    assert made == {"25.onnx", "50.onnx", "100.onnx", "cascade.onnx"}
    assert "258 of the validation part" in capsys.readouterr().out
    code = (ROOT / "examples" / "train_once.py").read_text().partition('"""\n\n')[2]
    assert len([line for line in code.splitlines() if line]) <= 15


def test_the_readme_shows_the_example_on_own_data():
    code = (ROOT / "examples" / "own_data.py").read_text()
    assert BLOCKS[0].strip() == code[code.index("import sys") :].strip()


def test_the_family_of_the_readme_is_one():
    names: dict[str, object] = {}
    exec(BLOCKS[1], names)
    assert names["space"].size > 100
    assert names["macs"].minimum()[0] < 2_000_000 < names["macs"].maximum()[0]


def test_the_example_of_an_own_family_is_searched_within_its_budget(short_search, monkeypatch, capsys):
    runpy.run_path(str(ROOT / "examples" / "own_network.py"), run_name="__main__")
    [(_, result)] = short_search
    assert result.metrics["macs"] <= 200_000
    assert "architectures of" in capsys.readouterr().out


def test_the_example_on_a_table_ends_with_a_network_within_its_budget(short_search, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["own_table.py"])
    runpy.run_path(str(ROOT / "examples" / "own_table.py"))
    [(_, result)] = short_search
    assert result.metrics["params"] <= 500
    assert str(result.metrics["test"]["rmse"]) in capsys.readouterr().out


def test_the_configuration_among_the_examples_can_be_read():
    config = load_config(ROOT / "examples" / "fashion.toml", ())
    assert config.data.kind == "npz"
    assert len(config.budget) == 2


def test_the_comparison_of_the_readme_finds_the_best_of_its_table(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(BLOCKS[2], names)
    assert names["found"]["default"]["seeds"] == 20
    assert names["found"]["default"]["regret"]["20"]["mean"] <= names["found"]["random"]["regret"]["20"]["mean"]
    assert (tmp_path / "runs" / "mine-bench" / "report.html").is_file()
    pytest.importorskip("optuna")
    exec(BLOCKS[3], names)
    assert names["objective"].best(names["trials"]).metrics["accuracy"] == 90.0
    assert len(names["study"].trials) == 20
    assert names["study"].best_value == 90.0


def test_the_readme_names_every_strategy():
    named = set(re.findall(r"`([a-z0-9-]+)`", "".join(re.findall(r"^\| `.*? \|", (ROOT / "README.md").read_text(), re.MULTILINE))))
    assert set(STRATEGIES) <= named
