"""The command line, command by command: what it prints, to people and to programs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

import niwaki
from conftest import PUBLISHED, SMALL_SETTINGS
from niwaki.run import loop
from niwaki.run.config import ConfigError, load_config
from niwaki.run.plan import device_of, fit_to_minutes, search_of
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits

# --- quick, and no more than asked -------------------------------------------------------------------------------------------


def test_help_takes_less_than_300_ms_of_cpu_and_does_not_import_torch():
    code = """
import resource, sys
sys.argv = ["niwaki", "--help"]
from niwaki.cli import main
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("torch" in sys.modules, "numpy" in sys.modules, used.ru_utime + used.ru_stime, file=sys.stderr)
"""
    best = 9.0
    for _ in range(3):  # the least of three: the first one also writes bytecode
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        torch_there, numpy_there, seconds = done.stderr.split()
        assert (torch_there, numpy_there) == ("False", "False")
        best = min(best, float(seconds))
    assert best <= 0.3
    for command in ("search", "resume", "predict", "report", "export", "profile", "space", "reproduce"):
        assert command in done.stdout


def test_the_installed_command_is_the_module():
    command = Path(sys.executable).with_name("niwaki")
    if not command.exists():
        pytest.skip("niwaki is not installed as a command beside this Python")
    for words in ([str(command)], [sys.executable, "-m", "niwaki.cli"]):
        done = subprocess.run([*words, "profile", "no-such-network"], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("error: the zoo has no network called 'no-such-network'")
        assert done.stdout == ""


def test_without_arguments_it_helps(niwaki_command):
    assert niwaki_command().out == niwaki_command("--help").out
    assert niwaki_command().code == 0


def test_quiet_prints_the_result_and_nothing_else(finished, niwaki_command):
    quiet = niwaki_command("resume", finished.folder, "--quiet")
    assert quiet.err == ""
    first, second = quiet.out.splitlines()
    assert first.startswith("macs<=60000: ")
    assert second.startswith("macs<=20000 and params<=8000: ")
    told = niwaki_command("resume", finished.folder)
    assert f"report: {finished.folder}/report.html" in told.out


def test_a_search_tells_its_phases_with_an_estimate_first(finished):
    lines = finished.answer.err.splitlines()
    assert lines[0] == "planning"
    assert lines[1].startswith(f"{finished.folder}: about ")
    assert "(search " in lines[1]
    assert [line for line in lines if line in ("search", "judging 3 candidates", "exporting")] == [
        "search", "judging 3 candidates", "judging 3 candidates", "exporting",
    ]  # fmt: skip
    assert len(finished.answer.out.splitlines()) == 1, "with --json, standard output is one object"


# --- profile -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_profile_counts_the_published_networks_to_the_unit(niwaki_command, name):
    answer = niwaki_command("profile", name, "--rule", "fbnet", "--json")
    assert answer.code == 0
    assert (answer.json["params"], answer.json["macs"]) == PUBLISHED[name]
    assert answer.json["rule"] == "fbnet"
    assert sum(row["macs"] for row in answer.json["layers"]) == answer.json["macs"]
    assert all({"path", "kind", "shape", "macs", "params"} <= set(row) for row in answer.json["layers"])


MODELS = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)

    def forward(self, image, scale):
        return self.head(self.up(self.depthwise(self.conv(image))).mean((2, 3))) * scale

model = Two()

def words():
    return nn.Sequential(nn.Embedding(1000, 16), nn.Linear(16, 4))
"""


def test_profile_reads_a_module_of_a_file_with_the_inputs_it_is_given(niwaki_command, tmp_path):
    (tmp_path / "models.py").write_text(MODELS)
    expected = 8 * 27 * 16 * 16 + 8 * 9 * 16 * 16 + 8 * 4 * 4 * 16 * 16 + 4 * 5
    for batch in (1, 4):  # for one image, whatever the batch
        answer = niwaki_command(
            "profile", f"{tmp_path / 'models.py'}:Two", "--input", f"{batch}x3x32x32", "--input", f"scale={batch}x1", "--json"
        )
        assert answer.json["macs"] == expected
    assert answer.json["params"] == (8 * 27 + 8) + 72 + (8 * 16 + 4) + 25
    assert [row["path"] for row in answer.json["layers"]] == ["conv", "depthwise", "up", "head"]
    ids = niwaki_command("profile", f"{tmp_path / 'models.py'}:words", "--input", "ids=1x12:int64<1000", "--json")
    assert ids.code == 2
    assert "does not run on ids=1x12:int64<1000" in ids.json["error"]
    ids = niwaki_command("profile", f"{tmp_path / 'models.py'}:words", "--input", "1x12:int64<1000", "--json")
    assert ids.json["macs"] == 12 * 16 * 4


def test_profile_reads_an_onnx_file_and_takes_open_sizes_from_the_input(niwaki_command, tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    sizes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    torch.onnx.export(model, (torch.zeros(2, 3, 16, 16),), tmp_path / "m.onnx", dynamo=True, dynamic_shapes=({**sizes},), verbose=False)
    answer = niwaki_command("profile", tmp_path / "m.onnx", "--input", "1x3x20x24", "--json")
    assert answer.json["macs"] == 8 * 27 * 20 * 24 + 8 * 5
    assert answer.json["params"] == sum(p.numel() for p in model.parameters())
    unknown = niwaki_command("profile", tmp_path / "m.onnx", "--json")
    assert unknown.code == 2
    assert "give those of the inputs by --input" in unknown.json["error"]


def test_profile_of_what_a_run_delivered_agrees_with_the_run(finished, niwaki_command):
    found = finished.answer.json
    assert niwaki_command("profile", finished.folder / "model.onnx", "--json").json["macs"] == found["macs"]
    described = niwaki_command("profile", finished.folder / "architecture.json", "--json").json
    assert (described["macs"], described["params"]) == (found["macs"], found["params"])


def test_profile_reads_one_architecture_of_a_space(finished, niwaki_command, tmp_path):
    (tmp_path / "family.py").write_text("from niwaki import mobile\nnetwork = mobile(8, 1, 10)\n")
    found = finished.answer.json
    for content in (found, {"architecture": found["architecture"]}, found["architecture"]):
        (tmp_path / "arch.json").write_text(json.dumps(content))
        answer = niwaki_command("profile", f"{tmp_path / 'family.py'}:network", "--arch", tmp_path / "arch.json", "--json")
        assert (answer.json["macs"], answer.json["params"]) == (found["macs"], found["params"])
    people = niwaki_command("profile", f"{tmp_path / 'family.py'}:network", "--arch", tmp_path / "arch.json")
    assert people.out.splitlines()[-1] == f"{found['macs']:,} multiply-adds, {found['params']:,} parameters (rule all)"


# --- space -------------------------------------------------------------------------------------------------------------------


def test_space_tells_choices_size_costs_and_the_share_within_a_budget(niwaki_command):
    found = niwaki_command("space", "mobile-8", "--budget", "macs<=100k and params<=20k", "--json").json
    assert {"choices", "assignments", "size", "distinct", "macs", "within"} <= set(found)
    assert type(found["size"]) is type(found["distinct"]) is int
    assert found["distinct"] <= found["size"] <= found["assignments"]
    assert {"min", "max", "quantiles"} <= set(found["macs"])
    quantiles = list(found["macs"]["quantiles"].values())
    assert all(type(value) is int for value in (found["macs"]["min"], found["macs"]["max"], *quantiles))
    assert [found["macs"]["min"], *quantiles, found["macs"]["max"]] == sorted([found["macs"]["min"], *quantiles, found["macs"]["max"]])
    within = found["within"]
    low, high = within["bounds"]["count"]
    assert all(type(value) is int for value in (within["count"], low, high))
    assert low <= within["count"] <= high <= found["size"]
    assert within["share"] == pytest.approx(within["count"] / found["size"])
    people = niwaki_command("space", "mobile-8", "--quiet")
    assert f"{len(found['choices'])} choices, {found['size']:,} architectures, {found['distinct']:,} distinct" in people.out
    assert "within" not in people.out


def test_space_of_the_published_network_is_counted_exactly(niwaki_command):
    found = niwaki_command("space", "fbnetv2", "--json").json
    assert type(found["size"]) is int
    assert found["size"] > 10**30
    assert found["distinct"] is not None or found["distinct_reason"]


# --- runs --------------------------------------------------------------------------------------------------------------------


def test_predict_reads_files_folders_and_arrays(finished, niwaki_command, tmp_path):
    images = digits()
    shown = images.test_images[:20]
    np.savez(tmp_path / "test.npz", images=shown, labels=images.test_labels[:20])
    for number, (image, label) in enumerate(zip(shown, images.test_labels, strict=False)):
        folder = tmp_path / "digits" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.round(image * (255 / 16)).astype(np.uint8)).save(folder / f"{number:02}.png")
    arrays = niwaki_command("predict", finished.folder, tmp_path / "test.npz", "--json").json
    files = niwaki_command("predict", finished.folder / "model.onnx", tmp_path / "digits", "--json").json
    assert len(arrays["predictions"]) == len(files["predictions"]) == 20
    assert arrays["accuracy"] == files["accuracy"]
    by_number = sorted(files["predictions"], key=lambda row: Path(row["file"]).name)
    assert [row["label"] for row in by_number] == [row["label"] for row in arrays["predictions"]]
    assert all(row["label"] in images.class_names and 0 < row["probability"] <= 1 for row in files["predictions"])
    one = niwaki_command("predict", finished.folder, next((tmp_path / "digits").rglob("00.png")))
    name, label, probability = one.out.splitlines()[0].split("\t")
    assert (Path(name).name, label) == ("00.png", by_number[0]["label"])
    assert float(probability) == pytest.approx(by_number[0]["probability"], abs=1e-3)


def test_report_is_written_anew_of_a_finished_run(finished, niwaki_command):
    page = finished.folder / "report.html"
    page.unlink()
    assert niwaki_command("report", finished.folder, "--json").json == {"report": str(page)}
    text = page.read_text()
    assert "macs&lt;=60000" in text
    assert f"niwaki search --out {finished.folder} --set &#x27;budget=[&quot;macs&lt;=60k&quot;, " in text


def test_export_writes_the_same_networks_anew(finished, niwaki_command):
    files = [
        path for path in finished.folder.rglob("*") if path.name in ("model.onnx", "model.py", "model.safetensors", "architecture.json")
    ]
    before = {path: path.read_bytes() for path in files}
    for path in files:
        path.unlink()
    rows = niwaki_command("export", finished.folder, "--json").json["files"]
    assert {Path(row["file"]).name for row in rows} == {"model.onnx", "model.pt2", "model.py"}
    assert all(Path(row["file"]).is_file() and row["bytes"] > 0 for row in rows)
    assert {path for path in before if not path.is_file()} == set()
    assert all(path.read_bytes() == content for path, content in before.items() if path.suffix != ".onnx")
    people = niwaki_command("resume", finished.folder, "--quiet")
    assert people.code == 0


def test_a_run_that_was_stopped_can_be_looked_at_but_not_exported_and_then_gone_on_with(niwaki_command, tmp_path, monkeypatch):
    file = tmp_path / "family.py"
    file.write_text(
        "from niwaki import *\nnetwork = Network(Chain(conv_bn_act(Choice((4, 8), 'w'), stride=2), GlobalPool(), Flatten(), Linear(10)), (1, 8, 8))\n"
    )
    with monkeypatch.context() as patched:
        patched.setattr(loop, "choose", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        words = ("--set", f"network={file}:network", "--set", "budget=macs<=20k", *SMALL_SETTINGS)
        stopped = niwaki_command("search", *words, cwd=tmp_path)
    assert stopped.code == 130
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-"), "without --out it is named after the data, or the file of the configuration"
    assert f"`niwaki resume runs/{folder.name}`" in stopped.err
    assert niwaki_command("report", folder).code == 0
    assert "stopped" in (folder / "report.html").read_text()
    assert "is not finished; `niwaki resume" in niwaki_command("export", folder).err
    assert "has its run finished?" in niwaki_command("predict", folder, file).err
    gone_on = niwaki_command("resume", folder, "--json")
    assert gone_on.code == 0
    assert "left (search " in gone_on.err
    again = niwaki_command("search", *words, "--json", cwd=tmp_path)
    assert again.json["architecture"] == gone_on.json["architecture"]
    assert again.json["folder"] == str(Path("runs") / folder.name)


@pytest.fixture(scope="module")
def moved_world(finished, niwaki_command, tmp_path_factory):
    """A finished run of which data, network and warm start are gone since: its folder, and what was told of it when they were there."""
    place = tmp_path_factory.mktemp("world")
    images = digits()
    (place / "data").mkdir()
    np.savez(place / "data" / "train.npz", images=images.images[:300], labels=images.labels[:300])
    np.savez(place / "data" / "test.npz", images=images.test_images[:90], labels=images.test_labels[:90])
    shutil.copytree(finished.folder, place / "earlier")
    (place / "family.py").write_text(
        "from niwaki import *\nnetwork = Network(Chain(conv_bn_act(Choice((4, 8), 'w'), stride=2), GlobalPool(), Flatten(), Linear(10)), (1, 8, 8))\n"
    )
    told = {
        "data.kind": "npz", "data.path": "data", "data.metric": "macro_f1", "network": "family.py:network", "warm_start": "earlier", "budget": "macs<=20k",
    }  # fmt: skip
    words = (
        "search",
        "--out",
        place / "run",
        *SMALL_SETTINGS,
        *(word for key, value in told.items() for word in ("--set", f"{key}={value}")),
    )
    made = niwaki_command(*words, "--json", cwd=place)
    assert made.code == 0, made.err
    elsewhere = niwaki_command("resume", place / "run", "--json", cwd=place / "data")
    assert elsewhere.json == made.json, "from any folder"
    assert "not there" not in elsewhere.err
    for name in ("data", "earlier", "family.py"):
        (place / name).rename(place / f"old-{name}")
    return place, words, made


def test_a_finished_run_is_told_when_what_it_was_made_from_is_gone(moved_world, niwaki_command):
    place, words, made = moved_world
    for arguments in (("resume", place / "run"), words):
        again = niwaki_command(*arguments, "--json", cwd=place)
        assert again.json == made.json
        assert "is finished; what it was made from is not there as it was: " in again.err
    result = niwaki.resume(place / "run")
    images = digits().test_images[:90]
    session = onnxruntime.InferenceSession(place / "run" / "model.onnx", providers=["CPUExecutionProvider"])
    card = json.loads((place / "run" / "architecture.json").read_text())["preprocessing"]
    normalised = (torch.tensor(images[:, None]).float() - card["mean"][0]) / card["std"][0]
    with torch.no_grad():
        np.testing.assert_allclose(session.run(["logits"], {"images": images})[0], result.model(normalised).numpy(), atol=1e-4)
    assert dict(result.architecture) == made.json["architecture"]


def test_what_needs_the_data_says_that_they_are_gone_and_loses_nothing(moved_world, niwaki_command):
    place, _, made = moved_world
    refused = niwaki_command("export", place / "run")
    assert refused.code == 2
    assert f"{place / 'data'} is missing" in refused.err
    assert niwaki_command("resume", place / "run", "--json").json == made.json


def test_the_result_is_told_by_the_metric_that_was_maximized(moved_world, niwaki_command):
    place, _, made = moved_world
    metrics = made.json["budgets"][0]["metrics"]
    assert made.json["accuracy"] == {part: metrics[part]["accuracy"] for part in ("validation", "test")}
    first = niwaki_command("resume", place / "run").out.splitlines()[0]
    assert f"test macro f1 {100 * metrics['test']['macro_f1']:.2f} % of the trained network" in first
    assert f"({100 * metrics['validation']['macro_f1']:.2f} % when it was chosen, on validation, " in first


def test_a_device_is_one_that_the_machine_has(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [device_of(word) for word in ("auto", "cpu", "cuda", "cuda:1")] == ["cuda", "cpu", "cuda", "cuda:1"]
    with pytest.raises(ConfigError, match=r"device = 'cuda:7': on this machine torch can use cpu, cuda:0, cuda:1$"):
        device_of("cuda:7")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert device_of("auto") == "cpu"
    for word in ("cuda", "cuda:0"):
        with pytest.raises(ConfigError, match=r"torch can use cpu$"):
            device_of(word)


def test_a_time_limit_keeps_a_warm_up_that_was_asked_for(monkeypatch):
    slow = {"search": 600.0, "judging": 60.0, "finalists": 60.0, "training": 600.0}
    monkeypatch.setattr("niwaki.run.plan.estimate", lambda search: slow)
    asked = load_config(None, (), {"minutes": 0.1, "search.warmup_epochs": 10, "budget": ["macs<=20k"]})
    planned, search, _ = fit_to_minutes(asked, *search_of(asked))
    assert (planned.search.warmup_epochs, planned.search.epochs) == (search.method.warmup_epochs, search.method.epochs) == (10, 11)


def test_the_plan_that_a_time_limit_made_is_told_in_keys_that_the_method_uses(niwaki_command, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "learn", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr("niwaki.run.plan.estimate", lambda search: {"search": 1.0, "judging": 1.0, "training": 1.0})
    for method, other in (("dmasking", "search.evaluations"), ("random", "search.candidates")):
        told = niwaki_command(
            "search", "--minutes", "9", "--out", tmp_path / method, "--set", f"method={method}", "--set", "budget=macs<=20k"
        ).err
        (plan,) = [line for line in told.splitlines() if line.startswith("To end within 9 minutes, the plan is: ")]
        assert "search.epochs = " in plan
        assert other not in plan


def test_a_task_of_ones_own_has_its_own_data(tmp_path):
    task = ImageClassification(digits())
    settings = {"data.kind": "npz", "data.path": "x", "search.evaluations": 3}
    with pytest.raises(ConfigError) as caught:
        niwaki.search(task=task, settings=settings, out=tmp_path / "run")
    assert [problem.split(" = ")[0] for problem in caught.value.problems] == ["search.evaluations", "data.kind", "data.path"]
    assert "has no effect: a task is given" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_what_the_command_does_is_a_call_in_python(finished):
    result = niwaki.resume(finished.folder)
    assert result.summary == finished.answer.json
    assert niwaki.profile("fbnetv2-f1", rule="fbnet")["macs"] == PUBLISHED["fbnetv2-f1"][1]
    assert niwaki.describe_space("mobile-8")["size"] > 10**6
    assert callable(niwaki.reproduce)
    assert os.fspath(niwaki.write_report(finished.folder)) == str(finished.folder / "report.html")
