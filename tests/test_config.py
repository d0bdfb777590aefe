"""A configuration says all that is wrong with it at once, and means the same however it is written."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from niwaki.gradient.dmasking import DMasking
from niwaki.objective import macs, params
from niwaki.run import plan
from niwaki.run.config import Config, ConfigError, Search, Train, config_of, load_config, uses, without_effect
from niwaki.run.plan import search_of
from niwaki.train.recipe import Recipe

FILE = """
network = "mobile-32"
budget = ["macs<=1e6", "macs<=2e6 and params<=1M"]
method = "evolution"

[data]
kind = "npz"
path = "somewhere"

[train]
epochs = 30
lr = 1
"""


def written(tmp_path, text, name="run.toml"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(*settings, path=None):
    with pytest.raises(ConfigError) as caught:
        load_config(path, settings)
    return caught.value.problems


def test_nothing_said_is_the_digits_by_dmasking():
    config = load_config()
    assert config == Config()
    assert (config.data.kind, config.method, config.network, config.budget) == ("digits", "dmasking", "auto", None)


def test_a_file_is_laid_over_the_defaults_settings_over_the_file_and_overrides_over_all(tmp_path):
    path = written(tmp_path, FILE)
    config = load_config(path, ["train.epochs=40", "seed=1", "search.evaluations=12"], {"seed": 7, "minutes": None, "train.batch_size": 32})
    assert (config.data.path, config.train.lr, config.data.validation) == (str(Path("somewhere").resolve()), 1.0, 0.2)
    assert (config.train.epochs, config.search.evaluations, config.seed, config.minutes, config.train.batch_size) == (40, 12, 7, None, 32)
    assert config.budgets == ((macs <= 1e6,), (macs <= 2e6, params <= 1e6))


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ('budget=["macs<=1e6"]', lambda c: c.budget == ["macs<=1000000"]),
        ("budget=macs<=1e6", lambda c: c.budget == ["macs<=1000000"]),
        ("budget=macs<=1e6;macs<=2e6", lambda c: c.budget == ["macs<=1000000", "macs<=2000000"]),
        ("method=random", lambda c: c.method == "random"),
        ('method="random"', lambda c: c.method == "random"),
        (" train.lr = 0.5 ", lambda c: c.train.lr == 0.5),
        ("train.nesterov=false", lambda c: c.train.nesterov is False),
        ("train.betas=[0.9, 0.99]", lambda c: c.train.betas == [0.9, 0.99]),
        ("network=my_module:make=x", lambda c: c.network == "my_module:make=x"),
        ("network=my/family.py:net", lambda c: c.network == f"{Path.cwd()}/my/family.py:net"),
        ("warm_start=../earlier", lambda c: c.warm_start == str(Path.cwd().parent / "earlier")),
        ("device=cuda:1", lambda c: c.device == "cuda:1"),
    ],
)
def test_a_setting_is_read_as_toml_or_as_text(setting, read):
    assert read(load_config(None, [setting]))


def test_every_mistake_is_named_at_once_with_the_nearest_key_and_what_is_possible(tmp_path):
    path = written(tmp_path, 'methd = "random"\nepochs = 3\n[trian]\nlr = 1\n[data]\nvalidaton = 0.1\nmetric = "acuracy"\n')
    settings = ("train.epochs=ten", "seed=-1", "budget=mac<=3", "device=gpu", "threads=true", "nonsense", "train.betas=[0.9, 2]")
    told = problems(*settings, path=path)
    expected = [
        ("methd", "did you mean method?"),
        ("epochs", "did you mean search.epochs or train.epochs?"),
        ("trian with lr in it", "did you mean train?"),
        ("data.validaton", "did you mean data.validation?"),
        ("data.metric = 'acuracy'", "one of accuracy, balanced_accuracy, macro_f1, log_loss, rmse, mae, r2 (did you mean accuracy?)"),
        ("train.epochs = 'ten'", "a whole number, at least 1"),
        ("seed = -1", "a whole number, at least 0"),
        ("budget: 'mac<=3'", "did you mean macs?"),
        ("device = 'gpu'", "auto, cpu, cuda or cuda:N"),
        ("threads = True", "a whole number, at least 1"),
        ("--set nonsense", "key=value"),
        ("train.betas = [0.9, 2]", "a list of two, at least 0, below 1"),
    ]
    assert len(told) == len(expected)
    for start, part in expected:
        assert any(problem.startswith(start) and part in problem for problem in told), (start, told)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train=5"], "train is a section; its keys are epochs, batch_size"),
        (["train.epochs.x=5"], "train.epochs.x: there is no such key; did you mean train.epochs?"),
        (["tran.batch_sise=5"], "did you mean train.batch_size"),
        (["data.kind=npz"], "data.kind=npz needs data.path"),
        (["data.path=x"], "digits come with scikit-learn and have no path"),
        (["data.kind=folder", "data.path=x", "data.layout=NHWC"], "data.layout says how npz files are laid out"),
        (["data.kind=npz", "data.path=x", "data.size=32"], "data.size is for folders"),
        (["search.epochs=5", "search.warmup_epochs=5"], "leaves nothing of search.epochs=5"),
        (["search.tournament_size=60"], "more than search.population_size=50"),
        (["budget=5"], "budget = 5: it is a list of texts"),
        (["budget=[]"], "budget = []: it is a list of texts"),
        (['budget=""'], "budget = '': it is a list of texts"),
        (["budget=latency(onnxruntime)<=2ms"], "cannot be searched under yet"),
        (['budget=["macs<=1", "macs<=1"]'], "asked for twice"),
        (["minutes=inf"], "minutes = inf: it is a number, above 0"),
        (["train.lr=nan"], "train.lr = nan: it is a number, above 0"),
        (["train.epochs=1.5"], "train.epochs = 1.5: it is a whole number"),
        (["train.nesterov=1"], "train.nesterov = 1: it is true or false"),
        (["=5"], "a setting is key=value"),
    ],
)
def test_a_mistake_is_told_in_a_readers_words(settings, says):
    assert len(problems(*settings)) == 1
    assert says in problems(*settings)[0]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    cases = [
        (tmp_path / "none.toml", "there is no such file"),
        (written(tmp_path, "a = = 3"), "it is no TOML: .*line 1"),
        (written(tmp_path, b"a = '\xff'", "binary.toml"), "no text in UTF-8"),
        (tmp_path, "cannot be read"),
    ]
    for path, says in cases:
        with pytest.raises(ConfigError, match=f"{path} has 1 problem:\n  .*{says}"):
            load_config(path)


def test_the_hash_names_what_was_asked_for_however_it_was_written(tmp_path):
    plain = load_config(None, ['budget=["macs<=1e6 and params<=1M"]', "train.lr=1"])
    other = load_config(written(tmp_path, 'budget = ["macs<=1000k, params<=1_000_000"]\nseed = 0\ntrain.lr = 1.0\n'))
    assert plain.hash == other.hash == config_of(json.loads(json.dumps(plain.to_json()))).hash
    assert len({plain.hash, load_config().hash, load_config(None, ["seed=1"]).hash}) == 3
    code = "from niwaki.run.config import load_config; print(load_config(None, ['train.lr=1']).hash)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "5"}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True).stdout
    assert said.strip() == load_config(None, ["train.lr=1"]).hash


def test_reading_a_configuration_needs_no_torch():
    code = "import sys; from niwaki.run.config import load_config; load_config(); print('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True).stdout
    assert said.strip() == "False"


def test_what_is_left_open_is_decided_once_and_what_was_said_stays():
    asked = load_config(None, ["train.epochs=30", "budget=macs<=1e6"])
    assert "train.epochs" not in asked.undecided()
    assert {"search.epochs", "train.lr", "threads"} <= set(asked.undecided())
    decided = asked.decided({"train.epochs": 99, "train.lr": 0.1, "budget": ["macs<=3"], "threads": 2})
    assert (decided.train.epochs, decided.train.lr, decided.threads, decided.budget) == (30, 0.1, 2, ["macs<=1000000"])
    assert set(asked.undecided()) - set(decided.undecided()) == {"train.lr", "threads"}
    with pytest.raises(ConfigError, match=r"the decided configuration has 1 problem"):
        asked.decided({"train.lr": -1.0})


def test_a_configuration_comes_back_from_json_as_it_was():
    config = load_config(None, ["train.betas=[0.8, 0.9]", "budget=macs<=1e6;macs<=2e6"])
    assert config_of(json.loads(json.dumps(config.to_json()))) == config


def test_a_path_is_the_same_from_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["data.kind=npz", "data.path=data", "warm_start=./earlier"])
    assert (config.data.path, config.warm_start) == (str(tmp_path / "data"), str(tmp_path / "earlier"))
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert load_config(None, ["data.kind=npz", "data.path=../data", "warm_start=../earlier"]).hash == config.hash


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["evaluator=scratch", "search.evaluations=7"], {"evaluator": "it is for strategies", "search.evaluations": "it is for strategies"}),
        (["search.population_size=20", "search.tournament_size=2"], {"search.population_size": "for evolution", "search.tournament_size": "for evolution"}),
        (["method=random", "search.candidates=9", "search.objective=mul"], {"search.candidates": "for dmasking", "search.objective": "for dmasking"}),
        (["method=random", "search.population_size=20"], {"search.population_size": "for evolution"}),
        (["method=evolution", "search.logit_lr=0.1"], {"search.logit_lr": "method = evolution does not use it; it is for dmasking"}),
        (["method=random", "evaluator=scratch", "search.epochs=5", "warm_start=x"], {"search.epochs": "evaluator = scratch", "warm_start": "evaluator = scratch"}),
        (["search.regular=2", "search.finalists=1"], {"search.regular": "search.finalists = 1"}),
        (["workers=2", "search.folds=3", "search.finalists=1"], {"workers": "search.finalists = 1", "search.folds": "search.finalists = 1"}),
        (["method=random", "evaluator=scratch", "workers=2", "search.proposals=6"], {"search.proposals": "one proposal for each"}),
        (["method=random", "evaluator=scratch", "search.proposals=6"], {}),
        (["evaluator=shared", "search.proposals=4"], {}),  # which is what they are anyway
        (["search.candidates=9", "search.logit_lr=0.1", "warm_start=x", "train.epochs=3"], {}),
        (["method=evolution", "search.evaluations=7", "search.population_size=20", "search.epochs=5", "search.finalists=2"], {}),
        (["method=random", "evaluator=scratch", "search.evaluations=7"], {}),
        (["method=own.py:Mine", "evaluator=scratch", "search.finalists=1"], {"search.finalists": "evaluator = scratch"}),
    ],
)  # fmt: skip
def test_a_key_that_the_method_does_not_use_is_told_with_what_it_is_for(settings, expected):
    told = without_effect(load_config(None, settings))
    assert len(told) == len(expected)
    for (key, part), text in zip(sorted(expected.items()), sorted(told), strict=True):
        assert text.startswith(f"{key} = ")
        assert "has no effect" in text
        assert part in text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["search.regular=16"], "search.regular = 16 of search.finalists = 8: at least one is a network that the search found"),
        (["search.regular=3", "search.finalists=3"], "search.regular = 3 of search.finalists = 3"),
        (
            ["search.resolutions=apart"],
            "search.resolutions = 'apart': the network searches 1 input resolution; from 2 to 8 can be searched apart",
        ),
    ],
)
def test_what_cannot_be_is_told_before_any_work(settings, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        search_of(load_config(None, settings))


def test_cores_are_those_of_the_affinity_and_of_the_containers_quota(tmp_path, monkeypatch):
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(plan, "CPU_QUOTA", quota)
    monkeypatch.setattr(plan.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for text, cores in ((None, 8), ("max 100000", 8), ("200000 100000", 2), ("50000 100000", 1), ("3200000 100000", 8)):
        if text is not None:
            quota.write_text(f"{text}\n")
        assert plan.allotted_cores() == cores


def test_what_is_decided_for_a_search_is_what_its_method_uses():
    fields_of_dmasking = {f"search.{field.name}" for field in fields(DMasking)}
    assert all(uses(load_config(), key) for key in fields_of_dmasking)
    one_shot = load_config(None, ["method=random"])
    assert {key for key in fields_of_dmasking if uses(one_shot, key)} == {
        "search.epochs", "search.batch_size", "search.weight_lr", "search.momentum", "search.weight_decay"
    }  # fmt: skip


def test_the_sections_cover_the_recipe_and_dmasking():
    of_recipe = [name for name in Train.model_fields if not name.startswith("teacher") and name != "stored"]
    assert of_recipe == [field.name for field in fields(Recipe)]
    assert {field.name for field in fields(DMasking)} <= set(Search.model_fields)
    decided = {
        "stored",
        "proposals",
        "population_size",
        "tournament_size",
        "teacher",
        "teacher_weights",
        "teacher_temperature",
        "teacher_weight",
    }
    for section in (Train(), Search()):
        assert all(value is None for name, value in section if name not in decided)


def test_every_message_can_be_written_for_every_field():
    keys = [*(f"search.{name}" for name in Search.model_fields), *(f"train.{name}" for name in Train.model_fields)]
    for key in [*keys, *(name for name in Config.model_fields if name not in ("data", "search", "train", "budget"))]:
        (problem,) = problems(f"{key}=[[]]")
        assert problem.startswith(f"{key} = [[]]: it is ")
        assert not problem.endswith("it is ")
