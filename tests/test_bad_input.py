"""Whatever is wrong is told in one clear message with exit code 2; nothing is made, nothing is lost, and no traceback is shown."""

import errno
import json
import os
import re
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import SMALL_SETTINGS
from niwaki.run import folder as folder_module
from niwaki.run import loop
from niwaki.run.folder import Folder, RunError
from niwaki.store import files


@pytest.fixture
def wrong(niwaki_command, tmp_path):
    """`wrong("search", ...)` is the message of a command that is refused; the folder that it runs in is as it was before."""

    def told(*arguments, code=2):
        before = sorted(tmp_path.rglob("*"))
        answer = niwaki_command(*arguments, "--json", cwd=tmp_path)
        assert answer.code == code, answer.err
        assert "Traceback" not in answer.err
        assert re.search(r"^error: ", answer.err, re.MULTILINE)
        assert answer.json["exit_code"] == code
        message = answer.json["error"]
        assert f"error: {message}" in answer.err
        assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"
        return message

    return told


def settings(**values):
    return [word for key, value in values.items() for word in ("--set", f"{key.replace('__', '.')}={value}")]


# --- words -------------------------------------------------------------------------------------------------------------------


def test_every_wrong_key_is_named_at_once_with_the_nearest_valid_one(wrong, tmp_path):
    config = tmp_path / "search.toml"
    config.write_text('sead = 3\n[train]\nepocs = 5\nlr = "fast"\n[search]\ncandidates = 0\n')
    message = wrong("search", config, "--set", "metod=random")
    assert "search.toml has 5 problems" in message
    for expected in (
        "did you mean seed?",
        "did you mean train.epochs?",
        "train.lr = 'fast': it is a number",
        "search.candidates = 0",
        "did you mean method?",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["search", "nowhere.toml"], "nowhere.toml has 1 problem:\n  there is no such file"),
        (["search", "--sed", "3"], "No such option: --sed"),
        (["serach"], "No such command 'serach'"),
        (["search", "--seed", "one"], "Invalid value for '--seed'"),
        (["search", "--set", "seed"], "--set seed: a setting is key=value, such as train.epochs=30"),
        (["search", "--set", "budget=flops<=5"], "there are macs, params"),
        (["search", "--set", "budget=macs>=5"], "a budget is an upper limit"),
        (["search", "--set", "budget=[]"], "budget = []: it is a list of texts such as"),
        (["search", "--set", "search.evaluations=7"], "search.evaluations = 7 has no effect: method = dmasking does not use it"),
        (["search", "--device", "cuda:99"], "device = 'cuda:99': on this machine torch can use cpu"),
        (["search", "--set", "network=mobil"], "the zoo has no network called 'mobil'"),
        (["search", "--set", "warm_start=nowhere"], "nowhere' is no folder of an earlier search"),
        (["search", "--device", "cuda:99x"], "device = 'cuda:99x': it is auto, cpu, cuda or cuda:N"),
        (["search", "--minutes", "0"], "minutes = 0.0: it is a number, above 0"),
        (["resume", "nowhere"], "nowhere is no run: it has no config.json"),
        (["report", "nowhere"], "nowhere is no run: it has no config.json"),
        (["export", "nowhere"], "nowhere is no run: it has no config.json"),
        (["predict", "nowhere", "a.png"], "there is no nowhere"),
        (["profile", "fbnetv2-f9"], "the zoo has no network called 'fbnetv2-f9'; did you mean"),
        (["profile", "fbnetv2"], "choices; give one of its architectures by --arch FILE"),
        (["profile", "fbnetv2-f1", "--rule", "flops"], "flops"),
        (["profile", "nowhere.onnx"], "there is no file nowhere.onnx"),
        (["profile", "nowhere.py:net"], "there is no file nowhere.py"),
        (["profile", "no_such_module:net"], "there is no module 'no_such_module'"),
        (["profile", "torch.nn:ReLU"], "needs --input"),
        (["profile", "torch.nn:Linear"], "needs the arguments in_features, out_features"),
        (["profile", "torch.nn:ReLU", "--input", "3xthree"], "--input '3xthree' is not understood"),
        (["profile", "torch.nn:ReLU", "--input", "x=1x5:int64<0"], "what follows `<` is 1 to 9,223,372,036,854,775,807 for int64"),
        (["profile", "torch.nn:ReLU", "--input", "1x5:uint8<300"], "what follows `<` is 1 to 256 for uint8"),
        (["profile", "torch.nn:ReLU", "--input", "1x5:float32<3"], "`<` is for whole numbers"),
        (["profile", "torch.nn:ReLU", "--input", "1x0"], "sizes are 1 to 2,147,483,647"),
        (["profile", "torch.nn:ReLU", "--input", "1x99999999999"], "sizes are 1 to 2,147,483,647"),
        (["profile", "torch.nn:ReLU", "--input", "99999x99999"], "9,999,800,001 numbers; a module is run on 1,073,741,824 at most"),
        (["profile", "fbnetv2-f1", "--input", "1x3x2000000000x2000000000"], "more than the 2,305,843,009,213,693,952 that 64-bit counts"),
        (["profile", "fbnetv2-f1", "--input", "1x3x9x9", "--input", "1x2"], "a network takes one input; given are 1x3x9x9, 1x2"),
        (["space", "mobile-8", "--budget", "macs<=10"], "no architecture has macs <= 10: the least is "),
        (["reproduce", "alchemy"], "alchemy"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_words_are_answered_with_what_is_possible(wrong, arguments, expected):
    assert expected in wrong(*arguments)


# --- budgets -----------------------------------------------------------------------------------------------------------------


def test_a_budget_below_the_smallest_network_says_the_minimum_and_which_choices_reach_it(wrong, tmp_path):
    message = wrong("search", "--set", "budget=macs<=5000", "--out", tmp_path / "runs" / "one")
    least = int(re.search(r"no architecture has macs <= 5,000: the least is ([\d,]+)", message)[1].replace(",", ""))
    assert 5_000 < least <= 20_000
    assert "stage0.width = 4" in message


def test_a_budget_above_the_largest_network_says_so_and_goes_on(niwaki_command, tmp_path):
    data = three_digits(tmp_path / "data")
    file = tmp_path / "family.py"
    file.write_text(FAMILY)
    answer = niwaki_command(
        "search",
        *settings(data__kind="npz", data__path=data, network=f"{file}:network", budget="macs<=1G"),
        *SMALL_SETTINGS,
        "--out",
        tmp_path / "run",
    )
    assert answer.code == 0
    assert "The budget macs<=1000000000 keeps nothing out: the largest network has " in answer.err


# --- data --------------------------------------------------------------------------------------------------------------------

FAMILY = "from niwaki import *\nnetwork = Network(Chain(conv_bn_act(Choice((4, 8), 'w'), stride=2), GlobalPool(), Flatten(), Linear(3)), (1, 8, 8))\n"


def three_digits(folder, images=None, labels=None, test=True):
    """An npz set of 90 + 30 small images of three classes, or of what is given; gives its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    known = np.arange(90) % 3
    images = np.clip(rng.normal(60 * known[:, None, None], 20, (90, 8, 8)), 0, 255).astype(np.uint8) if images is None else images
    np.savez(folder / "train.npz", images=images, labels=known if labels is None else labels)
    if test:
        np.savez(folder / "test.npz", images=images[:30], labels=(known if labels is None else labels)[:30])
    return folder


def with_value(value, at):
    labels = np.arange(90) % 3
    labels[at] = value
    return labels


def nan_images():
    images = np.random.default_rng(0).random((90, 8, 8), dtype=np.float32)
    images[7, 3, 3] = np.nan
    return images


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"images": np.zeros((90, 8), np.uint8)}, "images have the shape (90, 8)"),
        ({"images": np.zeros((90, 8, 8), np.int32)}, "images are int32; convert them to uint8"),
        ({"images": np.zeros((90, 8, 8), np.uint8)}, "every pixel of every training image is 0"),
        ({"images": np.zeros((0, 8, 8), np.uint8), "labels": np.zeros(0, int)}, "is empty"),
        ({"images": np.zeros((90, 5, 8, 7), np.uint8)}, "state layout='NHWC' or layout='NCHW'"),
        ({"images": nan_images()}, "1 image(s) contain NaN or infinity, the first of them number 7"),
        ({"labels": np.arange(80) % 3}, "has 90 images and 80 labels"),
        ({"labels": with_value(-1, 4)}, "label -1 (image 4) is negative"),
        ({"labels": with_value(1000, 50)}, "label 1000 is out of range"),
        ({"labels": np.linspace(0, 2, 90)}, "labels are float64 of shape (90,); one integer per image is needed"),
        ({"labels": with_value(3, 80)}, "only one training image of class 3"),
    ],
    ids=[
        "two axes",
        "integers",
        "constant",
        "empty",
        "unclear layout",
        "NaN",
        "fewer labels",
        "negative label",
        "large label",
        "float labels",
        "one example",
    ],
)
def test_data_that_cannot_be_learned_from_are_refused_with_the_reason(wrong, tmp_path, given, expected):
    data = three_digits(tmp_path / "data", **given)
    assert expected in wrong("search", *settings(data__kind="npz", data__path=data))


def test_missing_data_are_named(wrong, tmp_path):
    assert "nowhere is missing; a folder with train.npz" in wrong("search", *settings(data__kind="npz", data__path="nowhere"))
    assert "nowhere is missing; a folder with one sub-folder of images per class" in wrong(
        "search", *settings(data__kind="folder", data__path="nowhere")
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "readme.txt").write_text("")
    assert "has no train.npz; it holds readme.txt" in wrong("search", *settings(data__kind="npz", data__path="other"))
    assert "needs data.path" in wrong("search", *settings(data__kind="npz"))


def test_arrays_that_hold_python_objects_are_never_unpickled(wrong, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    data = tmp_path / "data"
    data.mkdir()
    np.savez(data / "train.npz", images=np.array([Trap()], dtype=object), labels=np.zeros(1, int))
    assert "cannot be read as an .npz file of plain arrays" in wrong("search", *settings(data__kind="npz", data__path=data))


def test_a_corrupt_image_among_good_ones_is_named(wrong, tmp_path):
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(np.full((9, 9), 40 * number, np.uint8)).save(tmp_path / "data" / label / f"{number}.png")
    bad = tmp_path / "data" / "dog" / "2.png"
    bad.write_bytes(bad.read_bytes()[:40])
    message = wrong("search", *settings(data__kind="folder", data__path=tmp_path / "data"))
    assert message.startswith("1 of 8 files cannot be read:")
    assert str(bad) in message


# --- networks ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Network(Chain(Conv(8, name='first'), Linear(3, name='last')), (1, 8, 8))", ["last", "8 x 8"]),
        ("Network(Chain(Add(Conv(8, name='left'), Conv(4, name='right')), GlobalPool(), Flatten(), Linear(3)), (1, 8, 8))", ["8", "4"]),
        (
            "Network(Chain(Conv(Choice((4, 8), 'w')), GlobalPool(), Flatten(), Linear(7)), (1, 8, 8))",
            ["gives 7 numbers for an image, where 3 are needed"],
        ),
        ("Network(Chain(Conv(Choice((4, 8), 'w')), Conv(3)), (1, 8, 8))", ["gives maps of 3 x 8 x 8 for an image, where 3 are needed"]),
        ("Network(Chain(Conv(Choice((4, 4), 'w'))), (1, 8, 8))", ["4"]),
        ("Network(Chain(GlobalPool(), Flatten(), Linear(3)), (1, 8, 8))", ["the network has no choices, so there is nothing to search"]),
        ("1 / 0", ["family.py cannot be run: ZeroDivisionError: division by zero (family.py, line 2)"]),
        ("lambda: undefined", ["family.py:network cannot be made: NameError", "(family.py, line 2)"]),
        ("3", ["is a int; a niwaki Network, a torch.nn.Module"]),
        ("__import__('torch').nn.ReLU()", ["the network has no choices, so there is nothing to search"]),
    ],
    ids=[
        "linear on a map",
        "sum of widths",
        "classes",
        "map",
        "option twice",
        "no choices",
        "error in file",
        "error in function",
        "number",
        "module",
    ],
)
def test_a_network_that_cannot_work_is_refused_by_name(wrong, tmp_path, text, expected):
    data = three_digits(tmp_path / "data")
    file = tmp_path / "family.py"
    file.write_text(f"from niwaki import *\nnetwork = {text}\n")
    message = wrong("search", *settings(data__kind="npz", data__path=data, network=f"{file}:network"))
    for part in expected:
        assert part in message


def test_an_architecture_file_that_is_none_is_refused(wrong, tmp_path):
    assert "--arch nowhere.json cannot be read: No such file" in wrong("profile", "mobile-8", "--arch", "nowhere.json")
    (tmp_path / "arch.json").write_text("{")
    assert "--arch arch.json is no architecture in JSON" in wrong("profile", "mobile-8", "--arch", "arch.json")
    (tmp_path / "arch.json").write_text('{"architecture": {"resolution": 7}}')
    assert "resolution" in wrong("profile", "mobile-8", "--arch", "arch.json")


def test_a_network_in_json_that_is_none_is_refused_with_the_place(wrong, tmp_path):
    conv = {"layer": "Conv", "out_channels": 8}
    for change, expected in (
        ({"input_shape": 8}, "a network's input is (channels, height, width) or (features,), all positive, not 8"),
        ({"body": {"layer": "Chain", "layers": [conv, {**conv, "stride": 0}]}}, "body.layers.1: Conv: stride = 0"),
        ({"body": {"layer": "Chain", "layers": 3}}, "body: "),
    ):
        (tmp_path / "net.json").write_text(json.dumps({"network": {"niwaki": 1, "input_shape": [3, 8, 8], "body": conv, **change}}))
        assert expected in wrong("profile", "net.json")


# --- folders -----------------------------------------------------------------------------------------------------------------


def test_an_output_folder_that_cannot_be_written_to_is_refused(wrong, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert f"the output folder {tmp_path / 'file'} cannot be made: {tmp_path / 'file'} is a file" in wrong(
        "search", "--out", tmp_path / "file"
    )
    assert f"{tmp_path / 'file'} is a file; choose another --out" in wrong("search", "--out", tmp_path / "file" / "below")
    assert "the output folder /proc/niwaki cannot be made" in wrong("search", "--out", "/proc/niwaki")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_holds_something_else_is_refused(wrong, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_text("mine")
    for fresh in ((), ("--fresh",)):
        message = wrong("search", "--out", "photos", *fresh)
        assert message == "photos is not empty and holds no run (holiday.jpg); choose another --out"


def test_a_folder_of_reproduce_is_no_search_and_says_what_goes_on_with_it(wrong, tmp_path):
    Folder(tmp_path / "claims", asked={"reproduce": "dmasking", "quick": True}).close()
    for command in ("resume", "report", "export"):
        message = wrong(command, "claims")
        assert "claims holds a run of `niwaki reproduce`" in message
        assert "`niwaki reproduce dmasking --quick --out claims` goes on with it" in message


def test_a_process_that_is_refused_leaves_the_lock_of_another_alone(tmp_path, monkeypatch):
    make, first = folder_module._make, []

    def overtaken(path):
        made = make(path)  # there was no folder yet ...
        monkeypatch.undo()
        first.append(Folder(path, asked={}))  # ... but another process is the first to lock it
        return made

    monkeypatch.setattr(folder_module, "_make", overtaken)
    for _ in range(2):
        with pytest.raises(RunError, match="another process is at work"):
            Folder(tmp_path / "run", asked={})
    first[0].close()
    Folder(tmp_path / "run", asked={}).close()


def test_a_lock_on_a_file_that_another_process_has_removed_keeps_nobody_out_and_is_taken_anew(tmp_path, monkeypatch):
    def impossible():  # while the first one plans, which fails, a second one opens the lock file
        second.append((tmp_path / "run" / ".lock").open("a"))
        raise RunError("nothing within this budget")

    second = []
    with pytest.raises(RunError, match="nothing within"):
        Folder(tmp_path / "run", asked={}, plan=impossible)
    assert not (tmp_path / "run").exists(), "nothing is left behind"
    (tmp_path / "run").mkdir()
    opened = iter(second)
    monkeypatch.setattr(folder_module, "open", lambda *arguments: next(opened, None) or open(*arguments), raising=False)  # noqa: SIM115
    held = Folder(tmp_path / "run", asked={})
    monkeypatch.undo()
    with pytest.raises(RunError, match="another process is at work"):
        Folder(tmp_path / "run", asked={})
    held.close()


@pytest.fixture
def stopped(niwaki_command, tmp_path, monkeypatch):
    """The folder of a small search that was stopped after its search, and how to go on with it."""
    data = three_digits(tmp_path / "data")
    (tmp_path / "family.py").write_text(FAMILY)
    words = settings(data__kind="npz", data__path=data, network=f"{tmp_path / 'family.py'}:network", budget="macs<=1M")
    arguments = ("search", *words, *SMALL_SETTINGS, "--out", tmp_path / "run")
    with monkeypatch.context() as patched:
        patched.setattr(loop, "choose", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert niwaki_command(*arguments).code == 130
    return tmp_path / "run", arguments


def test_a_store_of_a_newer_version_is_refused_and_left_alone(wrong, stopped, tmp_path):
    folder, arguments = stopped
    with sqlite3.connect(folder / "run.sqlite") as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    for words in (arguments, ("resume", folder), ("report", folder)):
        assert "is of a newer version: 99, where this niwaki reads and writes 1; update niwaki" in wrong(*words)


def test_a_damaged_config_or_store_is_named(wrong, stopped):
    folder, arguments = stopped
    store = (folder / "run.sqlite").read_bytes()
    (folder / "run.sqlite").write_bytes(store[: len(store) // 2])
    assert "has been cut short" in wrong(*arguments)
    (folder / "run.sqlite").write_bytes(store)
    (folder / "config.json").write_text('{"asked": ')
    assert f"{folder / 'config.json'} is damaged or not niwaki's" in wrong(*arguments)


def test_a_truncated_checkpoint_falls_back_to_the_one_before_and_says_so(stopped, niwaki_command, monkeypatch, tmp_path):
    folder, arguments = stopped
    with sqlite3.connect(folder / "run.sqlite") as connection:  # so that the search's own checkpoint is read again
        connection.execute("DELETE FROM meta WHERE key LIKE 'fact/result %'")
    connection.close()
    newest = folder / "checkpoints" / "search.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(whole[:1000])
    answer = niwaki_command(*arguments)
    assert answer.code == 0, answer.err
    assert re.search(
        r"search\.safetensors cannot be read \(.*\); went on from search\.previous\.safetensors, the one before it", answer.err
    )
    assert newest.read_bytes() == whole
    assert "went on from search.previous.safetensors" in (folder / "report.html").read_text()


# --- failing work ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("phase", "count"), [("search", 1), ("training", 1), ("training", 4)])
def test_a_loss_that_becomes_nan_stops_the_run_says_where_and_keeps_the_last_good_state(
    niwaki_command, tmp_path, monkeypatch, phase, count
):
    data = three_digits(tmp_path / "data")
    (tmp_path / "family.py").write_text(FAMILY)
    words = settings(data__kind="npz", data__path=data, network=f"{tmp_path / 'family.py'}:network", budget="macs<=1M")
    high = (
        settings(search__weight_lr="1e30")
        if phase == "search"
        else settings(train__lr="1e30", train__epochs=9, train__warmup=0.5, train__last_lr=1)
    )
    monkeypatch.setattr("niwaki.run.folder.SAVE_EVERY_S", 0.0)
    finalists = settings(search__finalists=count, search__folds=1) if count > 1 else []
    answer = niwaki_command("search", *words, *SMALL_SETTINGS, *high, *finalists, "--out", tmp_path / "run", "--json")
    assert answer.code == 2
    if count > 1:
        assert re.search(r"None of \d finalists could be trained; the best with shared weights is taken; trial \d+: ", answer.err), (
            answer.err
        )
    assert "Traceback" not in answer.err
    message = answer.json["error"]
    assert re.search(r"became (nan|inf|NaN or infinite) in epoch \d+, step \d+; a smaller learning rate", message), message
    assert f"The last good state is kept in {tmp_path / 'run' / 'checkpoints'}" in message
    assert json.loads((tmp_path / "run" / "config.json").read_text())["plan"]
    for checkpoint in (tmp_path / "run" / "checkpoints").glob("*.safetensors"):
        from niwaki.store.checkpoint import load_checkpoint

        assert all(np.isfinite(array).all() for array in load_checkpoint(checkpoint).arrays.values())


def test_a_full_disk_is_told_and_with_room_the_run_goes_on(niwaki_command, stopped, monkeypatch):
    folder, arguments = stopped
    before = {path: path.read_bytes() for path in (folder / "checkpoints").iterdir()}

    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(files, "_fsync", full)
        answer = niwaki_command(*arguments, "--json")
    assert answer.code == 2
    assert "No space left on device" in answer.json["error"]
    assert str(folder) in answer.json["error"]
    assert "Traceback" not in answer.err
    assert before == {path: path.read_bytes() for path in before}
    assert niwaki_command(*arguments).code == 0


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="a small file system can only be mounted by root")
def test_a_disk_that_is_really_full_is_told_at_whatever_write_it_happens(niwaki_command, stopped, tmp_path):
    folder, arguments = stopped
    small = tmp_path / "small"
    small.mkdir()
    used = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    mounted = os.system(f"mount -t tmpfs -o size={used + 70_000} tmpfs {small} 2>/dev/null") == 0
    if not mounted:
        pytest.skip("mounting is not allowed here")
    try:
        answer = niwaki_command(*arguments[:-1], small / "run", "--json")
        assert answer.code == 2, answer.err
        assert re.search(r"No space left on device|the disk is full", answer.json["error"])
        assert "Traceback" not in answer.err
        os.system(f"mount -o remount,size=64M {small}")
        assert niwaki_command(*arguments[:-1], small / "run").code == 0
    finally:
        os.system(f"umount {small}")


def test_a_mistake_of_our_own_shows_where_and_is_an_error_for_programs_too(niwaki_command, monkeypatch):
    monkeypatch.setattr("niwaki.run.model.profile", lambda *_, **__: {}["macs"])
    answer = niwaki_command("profile", "fbnetv2-f1", "--json")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "KeyError" in answer.json["error"]


def test_a_value_that_niwaki_itself_gets_wrong_is_not_blamed_on_the_input(niwaki_command, monkeypatch):
    monkeypatch.setattr("niwaki.run.describe.distinct", lambda network: (1, "", "one too many"))
    answer = niwaki_command("space", "mobile-8", "--json")
    assert answer.code == 1
    assert "Traceback" in answer.err
    assert "ValueError: too many values to unpack" in answer.json["error"]


def test_a_file_that_cannot_be_predicted_costs_only_itself(niwaki_command, finished, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_text("no image")
    answer = niwaki_command("predict", finished.folder, tmp_path / "good.png", tmp_path / "bad.png", "--json")
    assert answer.code == 1
    assert len(answer.json["predictions"]) == 1
    assert list(answer.json["failures"]) == [str(tmp_path / "bad.png")]
    alone = niwaki_command("predict", finished.folder, tmp_path / "bad.png")
    assert alone.code == 2
    assert alone.err.startswith(f"error: {tmp_path / 'bad.png'}")
    assert "cannot be read as an image" in alone.err
    assert Path(tmp_path / "bad.png").read_text() == "no image"
