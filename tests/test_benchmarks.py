"""The benchmark scripts run from end to end, and what README.md says about them is what was measured."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import harness  # noqa: E402
import jobs  # noqa: E402
import masks  # noqa: E402
import search_pays  # noqa: E402


def kept():
    return {path: path.read_bytes() for path in [harness.README, *harness.RESULTS.glob("*"), *BENCHMARKS.glob("work/**/*.json")]}


@pytest.mark.parametrize("script", ["masks", "algebra", "search_pays", "shows digits"])
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
    about = harness.machine(threads=1, seed=0, load=0.5)
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
    assert search_pays.Comparison(0, 90.0, (91.0, 90.0, 89.0), 88.0).rank == 3


def test_missing_data_are_named_with_every_place_looked_at(tmp_path, monkeypatch):
    monkeypatch.setenv("NIWAKI_SHARED", str(tmp_path / "shared"))
    with pytest.raises(SystemExit, match=r"--data.*NIWAKI_SHARED"):
        search_pays.data_folder(str(tmp_path))


def test_trainings_of_another_plan_are_not_mixed_in(tmp_path):
    jobs.require_same_plan(asdict(search_pays.PLANS["cpu"]), tmp_path)
    jobs.require_same_plan(asdict(search_pays.PLANS["cpu"]), tmp_path)
    with pytest.raises(SystemExit, match="another plan"):
        jobs.require_same_plan(asdict(search_pays.PLANS["gpu"]), tmp_path)
