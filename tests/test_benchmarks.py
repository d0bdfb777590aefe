"""The benchmark scripts run from end to end, and what README.md says about them is what was measured."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from niwaki.net.place import space_of
from niwaki.run.config import load_config
from niwaki.run.folder import Folder
from niwaki.run.plan import search_of
from niwaki.run.workers import Job
from niwaki.space.space import Space
from niwaki.task.folder import image_folder
from niwaki.task.images import npz

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import harness  # noqa: E402
import jobs  # noqa: E402
import masks  # noqa: E402
import search_pays  # noqa: E402
import shows  # noqa: E402


def kept():
    return {path: path.read_bytes() for path in [harness.README, *harness.RESULTS.glob("*"), *BENCHMARKS.glob("work/**/*.json")]}


@pytest.mark.parametrize("script", ["masks", "algebra", "search_pays", "shows digits", "feasible", "bignas --workers 1"])
def test_a_quick_run_ends_with_its_table_and_keeps_nothing(script):
    before = kept()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    name, *words = script.split()
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *words, "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "| claim | promised | measured | holds |" in done.stdout
    assert kept() == before


def test_the_tables_of_the_readme_are_made_of_the_results():
    readme = harness.README.read_text()
    assert harness.with_results(readme, harness.stored_results()) == readme


def test_a_result_survives_json_and_a_second_writing_changes_nothing():
    result = harness.Result(
        "name",
        "A title",
        "command",
        (harness.Claim("time", "<= 1", "2", False),),
        (harness.Table("rows", ("a", "b"), (("1", "2"),)),),
        ("a note",),
    )
    about = harness.machine(threads=1, seed=0)
    content = json.loads(json.dumps({**harness.asdict(result), "machine": about}))
    page = f"before\n{harness.BEGIN}\nstale\n{harness.END}\nafter"
    once = harness.with_results(page, [content])
    assert "| time | <= 1 | 2 | **no** |" in once
    assert "stale" not in once
    assert once.startswith("before\n")
    assert once.endswith("\nafter")
    assert harness.with_results(once, [content]) == once


def test_a_readme_without_the_markers_is_refused():
    with pytest.raises(ValueError, match="needs the lines"):
        harness.with_results("no markers", [])


def test_steps_in_turns_each_run_once_a_round_and_begin_it_in_turn():
    calls = []
    seconds = harness.in_turns({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmup=0)
    assert ["".join(calls[at : at + 3]) for at in (0, 3, 6)] == ["abc", "bca", "cab"]
    assert [len(values) for values in seconds.values()] == [3, 3, 3]


def test_a_paired_ratio_is_the_median_over_rounds_not_the_ratio_of_medians():
    seconds = {"ours": [1.0, 2.2, 30.0], "theirs": [1.0, 2.0, 20.0]}
    assert harness.paired_ratio(seconds, "ours", "theirs").median == pytest.approx(1.1)


@pytest.mark.parametrize("count", [2, 8, 32])
def test_more_options_leave_the_largest_network_as_it_is(count):
    network = masks.mobile(32)
    edited = masks.with_options(network, count)
    before, after = ({d.name: d.options for d in masks.space_of(one)} for one in (network, edited))
    assert before.keys() == after.keys()
    changed = [name for name in before if name.endswith(("width", "expand"))]
    assert all(len(after[name]) == count and after[name][-1] == before[name][-1] for name in changed)
    assert all(before[name] == after[name] for name in before if name not in changed)


def test_random_members_are_within_ten_percent_below_the_budget_and_differ():
    network, budget = search_pays.mobile(28, 1), 500_000
    found = search_pays.random_members(network, budget, 16, seed=0)
    macs = [search_pays.count_macs(network)(arch) for arch in found]
    assert len(set(found)) == 16
    assert all(0.9 * budget < cost <= budget for cost in macs)
    assert found != search_pays.random_members(network, budget, 16, seed=1)


def test_the_scaled_mobilenetv2_uses_the_budget_up():
    assert 450_000 < search_pays.macs_of(search_pays.scaled_mobilenetv2(500_000, (1, 28, 28), 10)) <= 500_000


def test_ranks_count_equals_against_the_network_found():
    assert search_pays.Comparison(0, 90.0, 89.5, (91.0, 90.0, 89.0), 90.0, 88.0).rank == 3


def test_missing_data_are_named_with_every_place_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("NIWAKI_SHARED", str(tmp_path / "shared"))
    with pytest.raises(SystemExit, match=r"--data.*NIWAKI_SHARED"):
        search_pays.data_folder(str(tmp_path))


def test_the_search_that_is_measured_is_that_of_the_command_line(tmp_path):
    """On niwaki's own family for such images, without the options that hardly fit the budget."""
    plan = search_pays.PLANS["quick"]
    task = search_pays.task_of("digits", plan.images, 0)
    found = search_pays.searched(search_pays.Site(plan, "digits", str(tmp_path)), search_pays.Contestant("search", 0), task)
    assert found["macs"] <= plan.budget
    assert min(found["search_s"], found["train_s"]) > 0
    _, by_default = search_of(load_config(None, (), {"budget": [f"macs<={plan.budget}"]}), task)
    folder = Folder(tmp_path / "run-0", read_only=True)
    with closing(folder):
        searched = Space.from_json(folder.plan["space"])
    assert searched == space_of(by_default.network)
    assert searched.size < space_of(search_pays.space_for(task.input_shape, task.outputs)).size


# --- what is kept ------------------------------------------------------------------------------------------------------------------------


def test_results_of_another_plan_or_of_other_code_are_refused(tmp_path, monkeypatch):
    with closing(jobs.work_folder(tmp_path / "work", asdict(search_pays.PLANS["cpu"]))):
        pass
    with closing(jobs.work_folder(tmp_path / "work", asdict(search_pays.PLANS["cpu"]))):
        pass
    with pytest.raises(SystemExit, match=r"another plan.*plan.images is 12000 there and 60000 now.*delete it: rm -r"):
        jobs.work_folder(tmp_path / "work", asdict(search_pays.PLANS["gpu"]))
    monkeypatch.setattr(jobs, "code", lambda: "0123456789ab")
    with pytest.raises(SystemExit, match=r"other code \(code is .* there and \"0123456789ab\" now\).*delete it"):
        jobs.work_folder(tmp_path / "work", asdict(search_pays.PLANS["cpu"]))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "plan.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"not empty and holds no run.*delete it"):
        jobs.work_folder(tmp_path / "other", {})


def test_the_code_is_other_code_when_any_source_file_is_changed_added_or_moved(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.niwaki, "__file__", str(tmp_path / "__init__.py"))
    seen = []
    for change in (
        lambda: (tmp_path / "__init__.py").write_text("a = 1"),
        lambda: (tmp_path / "__init__.py").write_text("a = 2"),
        lambda: (tmp_path / "more.py").write_text(""),
        lambda: (tmp_path / "more.py").rename(tmp_path / "less.py"),
    ):
        change()
        assert jobs.code() == jobs.code()
        seen.append(jobs.code())
    (tmp_path / "notes.txt").write_text("no code")
    assert len(set(seen)) == 4
    assert jobs.code() == seen[-1]


def test_an_interrupted_benchmark_goes_on_where_it_was(tmp_path):
    begun, left = [], [3]

    def work(number):
        begun.append(number)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return {"square": number**2}

    todo = [Job(f"job-{number}", work, (number,)) for number in range(4)]
    with closing(jobs.work_folder(tmp_path / "work", {})) as folder:
        with pytest.raises(SystemExit, match="the same command goes on"):
            jobs.run_jobs(todo, folder, 1)
        assert jobs.run_jobs(todo, folder, 1) == {f"job-{number}": {"square": number**2} for number in range(4)}
    assert begun == [0, 1, 2, 2, 3]


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_a_result_names_its_commit_and_whether_library_or_benchmarks_differ_from_it(tmp_path, monkeypatch):
    def git(*words):
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
        return subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True, capture_output=True, text=True).stdout.strip()

    def told():
        about = harness.machine(threads=1, seed=0)
        line = harness.markdown({**asdict(harness.Result("name", "1. A title", "command", ())), "machine": about})[-1]
        return about.get("commit"), about.get("local_changes"), line

    for file in ("src/niwaki/a.py", "benchmarks/b.py", "benchmarks/results/c.json", "docs/d.md"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    monkeypatch.setattr(harness, "HERE", tmp_path / "benchmarks")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert told()[:2] == (None, None)
    assert "commit" not in told()[2]
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "first")
    commit = git("rev-parse", "--short=7", "HEAD")
    for file in ("benchmarks/results/c.json", "docs/d.md"):  # results are written and pages change without the figures meaning less
        (tmp_path / file).write_text("new")
    assert told()[:2] == (commit, False)
    assert f"; commit {commit}; seed 0" in told()[2]
    for file in ("src/niwaki/a.py", "benchmarks/b.py"):
        (tmp_path / file).write_text("new")
        assert told()[:2] == (commit, True)
        (tmp_path / file).write_text("")
    (tmp_path / "src" / "niwaki" / "untracked.py").write_text("")
    assert f"; commit {commit}, with local changes; seed 0" in told()[2]


# --- shows: the data that they make, and the tables, on small sets made up here -----------------------------------------------------------


def test_the_networks_written_by_hand_have_the_size_that_they_are_to_have():
    """Of the three convolutions by hand: 8 x 8 x 9 x 16, 4 x 4 x 9 x 16 x 24, 2 x 2 x 9 x 24 x 40, and 40 x 10."""
    assert search_pays.macs_of(shows.three_convolutions()) == 9_216 + 55_296 + 34_560 + 400
    assert 900_000 < search_pays.macs_of(shows.inverted_residuals()) <= shows.FASHION_BUDGET


def written(result):
    return "\n".join(harness.markdown({**asdict(result), "machine": harness.machine(threads=1, seed=0)}))


def verdicts(result):
    return [claim.holds for claim in result.claims]


def test_the_show_of_an_own_set_cuts_it_evenly_and_compares_seed_by_seed(tmp_path, monkeypatch):
    source, rng = tmp_path / "shared" / "data" / "fashion_mnist", np.random.default_rng(0)
    source.mkdir(parents=True)
    for name, count in (("train", 600), ("test", 50)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        np.savez(source / f"{name}.npz", images=images, labels=np.arange(count) % 10)
    accuracy = {"found": (0.90, 0.91, 0.92), "hand": (0.88, 0.92, 0.91)}

    def searched(out, words, seed, told, images):
        one = accuracy["found"][seed]
        return {"macs": 990_000 + seed, "search_wall_s": 800 + 50 * seed, "accuracy": one, "reported": {"test": one}}

    monkeypatch.setattr(shows, "FASHION_IMAGES", 300)
    monkeypatch.setattr(shows, "searched", searched)
    monkeypatch.setattr(
        shows, "rival", lambda network, data, budget, seed, told: {"macs": 999_000, "epochs": 7, "accuracy": accuracy["hand"][seed]}
    )
    with closing(jobs.work_folder(tmp_path / "work", {})) as folder:
        result = shows.show_fashion(folder, tmp_path / "shared", False)

    made, whole = npz(str(tmp_path / "work" / "data")), np.load(source / "train.npz")["images"]
    assert Counter(made.labels.tolist()) == dict.fromkeys(range(10), 30)
    assert len({image.tobytes() for image in made.images} & {image.tobytes() for image in whole}) == 300
    assert (made.test_images == np.load(source / "test.npz")["images"]).all()
    assert verdicts(result) == [True, True, True, True]
    text = written(result)
    assert "| +0.67 points (-1.00 to +2.00) |" in text, "2, -1 and 1 points: their mean, and of three values the least and the greatest"
    assert "| 850 s, at most 900 s |" in text
    assert "| 1 | 91.00% at 990,001 MACs | 92.00% at 999,000 MACs |" in text

    accuracy["found"] = (0.80, 0.81, 0.82)
    with closing(jobs.work_folder(tmp_path / "again", {})) as folder:
        assert verdicts(shows.show_fashion(folder, tmp_path / "shared", False)) == [False, True, True, True]


COLOURS = {"RBC": (200, 0, 0), "WBC": (0, 200, 0), "Platelets": (0, 0, 200)}


def cells(folder, images, boxes):
    """A set such as BCCD: `images` images with `boxes` boxes of each class, each in its class's colour, and one too small for an image."""
    for part in ("train", "val"):
        (folder / part).mkdir(parents=True)
        with (folder / f"{part}_boxes.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("image", "class_id", "xmin", "ymin", "xmax", "ymax"))
            for number in range(images):
                picture = Image.new("RGB", (120, 40 * boxes))
                for kind, colour in enumerate(COLOURS.values()):
                    for at in range(boxes):
                        x, y, width, height = 40 * kind, 40 * at, 16 + 2 * kind + at, 20 + number
                        picture.paste(colour, (x, y, x + width, y + height))
                        rows.writerow((f"cell_{number}", kind, f"{x:.1f}", f"{y:.1f}", f"{x + width:.1f}", f"{y + height:.1f}"))
                rows.writerow((f"cell_{number}", 2, "1.0", "1.0", "4.0", "30.0"))
                picture.save(folder / part / f"cell_{number}.jpg", quality=95, subsampling=0)


def test_the_show_of_a_folder_cuts_the_cells_out_class_by_class_and_predicts_them(tmp_path, monkeypatch):
    cells(tmp_path / "shared" / "data" / "bccd", images=3, boxes=4)
    monkeypatch.setattr(shows, "CROPS", {"RBC": 10, "WBC": None, "Platelets": None})
    asked = []

    def niwaki(*words):
        asked.append(words)
        if words[0] == "search":
            out = Path(words[words.index("--out") + 1])
            out.mkdir()
            (out / "config.json").write_text(json.dumps({"plan": {"limits": [{"macs": 20_000}]}}))
        return {"accuracy": 0.75} if words[0] == "predict" else {"macs": 12_345, "accuracy": {"test": 0.75}, "architecture": {}}

    monkeypatch.setattr(shows, "niwaki", niwaki)
    with closing(jobs.work_folder(tmp_path / "work", {})) as folder:
        left = tmp_path / "work" / "cells.begun" / "train" / "RBC" / "half.png"  # by a preparation that was interrupted
        left.parent.mkdir(parents=True)
        left.write_bytes(b"")
        result = shows.show_folder(folder, tmp_path / "shared", False)

    made = image_folder(str(tmp_path / "work" / "cells"))
    names = [made.class_names[label] for label in made.labels]
    assert Counter(names) == {"RBC": 10, "WBC": 12, "Platelets": 12}, "the boxes of 3 pixels are no images"
    for part in ("train", "test"):
        for name, colour in COLOURS.items():
            for path in (tmp_path / "work" / "cells" / part / name).glob("*.png"):
                with Image.open(path) as crop:
                    assert 16 <= crop.width <= 23
                    assert 20 <= crop.height <= 22
                    assert np.abs(np.asarray(crop)[3:-3, 3:-3].mean((0, 1)) - colour).max() < 8
    search, predict = asked
    assert search[0] == "search"
    assert "--fresh" in search, "a search that was interrupted would be timed from there on only"
    assert predict == ("predict", search[search.index("--out") + 1], str(tmp_path / "work" / "cells" / "test"))
    assert verdicts(result)[:2] == [False, True]
    assert "68, of 16 to 23 pixels a side" in written(result), "34 to train with, and all 36 but RBC's last two to test with: 34"
    assert "| 75.00%, reported 75.00% | yes |" in written(result)


def test_a_show_without_its_data_says_where_it_looked(tmp_path):
    for show in (shows.show_fashion, shows.show_folder):
        with closing(jobs.work_folder(tmp_path / show.__name__, {})) as folder, pytest.raises(SystemExit, match=r"there is no .*--shared"):
            show(folder, tmp_path, True)
