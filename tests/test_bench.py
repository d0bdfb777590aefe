"""Search methods compared on tables: the clock, the figures, what is refused, and what a comparison of equals must show."""

import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from itertools import product
from pathlib import Path
from random import Random

import moocore
import numpy as np
import pytest

from niwaki.evaluate.table import TableError
from niwaki.run import bench as bench_module
from niwaki.run.asking import StrategyError
from niwaki.run.bench import bench, write_comparison
from niwaki.run.contest import BenchError, Contest, Question
from niwaki.run.curves import area, summary
from niwaki.run.folder import RunError
from niwaki.run.significance import wilcoxon
from niwaki.run.simulate import Evaluated, in_order, simulate
from niwaki.run.statistics import expected_picks
from niwaki.run.strategies import UnknownStrategy, random_at_first, strategy_named
from niwaki.space.choice import BudgetError
from niwaki.space.space import Decision, Space
from niwaki.strategy.random import RandomSearch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import regret  # noqa: E402

CELLS = np.array(list(product(range(5), repeat=6)), dtype=np.uint8)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A table of 125 architectures of no known network: quality, latency and durations made up."""
    arch = np.array(list(product(range(5), repeat=3)), dtype=np.uint8)
    generator = np.random.default_rng(0)
    quality = 90 - ((arch - [3, 1, 4]) ** 2).sum(axis=1) + generator.normal(0, 0.3, 125)
    path = tmp_path_factory.mktemp("tables") / "small.npz"
    np.savez(
        path,
        arch=arch,
        quality=quality,
        early=quality + generator.normal(0, 2, 125),
        lat_phone=1.0 + arch.sum(axis=1),
        hours=generator.random(125),
    )
    return path


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A table of all cells of NAS-Bench-201: a made-up accuracy that likes convolutions, and a latency."""
    score = np.array([0.0, 1.0, 2.0, 3.0, 0.5])[CELLS] @ np.array([1.0, 1.5, 1.0, 2.0, 1.2, 0.8])
    accuracy = 70 + score + np.random.default_rng(1).normal(0, 0.5, len(CELLS))
    path = tmp_path_factory.mktemp("tables") / "cells.npz"
    np.savez(path, ops=CELLS, accuracy=accuracy, latency_ms=1 + score / 4)
    return path


def asked(table, *, objectives=("quality",), **changed):
    return Contest(Question((str(table),), objectives, **changed))


# --- the clock -------------------------------------------------------------------------------------------------------


def test_with_one_worker_every_evaluation_is_told_before_the_next_is_asked_for(small):
    contest = asked(small, seconds="hours", evaluations=30)
    record = contest.play("random", 3)
    hours = contest.table.column("hours")[record["places"]]
    assert np.allclose(record["finished"], np.cumsum(hours))


def test_several_workers_overlap_as_a_queue_would(small):
    contest = asked(small, seconds="hours", evaluations=60, workers=4)
    record = contest.play("random", 0)
    hours = contest.table.column("hours")
    assert record["finished"] == sorted(record["finished"])
    # the same architectures in the order of their starts, each to whoever is free first, by brute force
    starts = sorted((end - hours[place], place) for end, place in zip(record["finished"], record["places"], strict=True))
    free, ends = [0.0] * 4, []
    for _, place in starts:
        at = free.index(min(free))
        free[at] += hours[place]
        ends.append(free[at])
    assert np.allclose(sorted(ends), record["finished"])
    assert record["finished"][-1] < hours[record["places"]].sum() / 2


class InTurn:
    """Proposes 0, 1, 2, ... and writes down what it is asked and told."""

    name = "in turn"

    def __init__(self):
        self.seen = []

    def init(self, space):
        return space, 0

    def ask(self, state, count, rng, pending):
        space, told = state
        self.seen.append(("asked for", count, "pending", [arch["a"] for arch in pending]))
        return [space.architecture({"a": told + len(pending) + at}) for at in range(count)]

    def tell(self, state, trials):
        self.seen.append(("told", [trial.arch["a"] for trial in trials]))
        return state[0], state[1] + len(trials)


def test_a_strategy_is_asked_for_as_many_as_are_idle_and_told_what_is_ready_at_the_same_time_at_once():
    space, strategy, seconds = Space((Decision("a", tuple(range(50))),)), InTurn(), [1.0, 3.0, 2.0, 1.0, 1.0]
    log = simulate(strategy, space, lambda arch: Evaluated(arch["a"], {"m": 1.0}, seconds[arch["a"]]), evaluations=5, workers=2)
    assert strategy.seen == [
        ("asked for", 2, "pending", []),  # at 0
        ("told", [0]),  # at 1
        ("asked for", 1, "pending", [1]),
        ("told", [1, 2]),  # at 3
        ("asked for", 2, "pending", []),
        ("told", [3, 4]),  # at 4
    ]
    assert log.places == (0, 1, 2, 3, 4)
    assert log.finished == (1.0, 3.0, 3.0, 4.0, 4.0)


def test_a_fixed_order_is_scheduled_as_a_search_is(small):
    contest = asked(small, seconds="hours", evaluations=40, workers=3)
    record = contest.play("random", 5)
    hours = contest.table.column("hours")
    starts = sorted(range(40), key=lambda i: record["finished"][i] - hours[record["places"][i]])
    log = in_order([record["places"][i] for i in starts], lambda place: float(hours[place]), workers=3)
    assert log.places == tuple(record["places"])
    assert np.allclose(log.finished, record["finished"])


# --- the figures -----------------------------------------------------------------------------------------------------


def test_regret_is_that_of_the_incumbent_by_brute_force(small):
    signal_and_limit = asked(small, objectives=("early",), report="quality", limits=("lat_phone<=8",), evaluations=50)
    table = signal_and_limit.table
    early, quality, fits = table.column("early"), table.column("quality"), table.column("lat_phone") <= 8
    places = Random(0).sample(range(125), 50)
    best, worst = quality[fits].max(), quality[fits].min()
    expected = []
    for n in range(1, 51):
        feasible = [place for place in places[:n] if fits[place]]
        expected.append(best - (quality[max(feasible, key=lambda place: early[place])] if feasible else worst))
    assert np.allclose(signal_and_limit.regrets(places), expected)


def test_hypervolume_grows_as_moocore_says_and_the_whole_table_has_no_regret(small):
    contest = asked(small, objectives=("quality", "-lat_phone"), evaluations=125)
    places = Random(1).sample(range(125), 125)
    scaled = np.stack([contest.goals[0].values, contest.goals[1].values], axis=1)
    scaled = (scaled - scaled.min(axis=0)) / np.ptp(scaled, axis=0)
    curve = contest.regrets(places)
    for n in (1, 2, 5, 40, 125):
        volume = moocore.hypervolume(scaled[places[:n]], ref=[-0.1, -0.1], maximise=True)
        assert contest.best - curve[n - 1] == pytest.approx(volume)
    assert curve[-1] == pytest.approx(0, abs=1e-12)


def test_random_search_is_what_the_closed_form_says(small, tmp_path):
    found = bench([small], objectives=["quality"], evaluations=60, seeds=120, out=tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "results.json").read_text())["facts"]
    for at in (1, 5, 20, 60):
        entry = found["random"]["regret"][str(at)]
        assert abs(entry["mean"] - facts["random_exact"][at - 1]) < 3.5 * entry["sem"]


def test_a_better_method_beats_random_search_in_closed_form_and_random_search_does_not(small, tmp_path):
    found = bench([small], objectives=["quality"], strategies=["local-search"], evaluations=60, seeds=15, out=tmp_path / "run")
    assert found["local-search"]["against_random"]["high"] < 0
    assert found["random"]["against_random"]["low"] < 0 < found["random"]["against_random"]["high"]


def test_costs_columns_are_small_by_name_and_signs_say_it_otherwise(small):
    assert asked(small, objectives=("lat_phone",)).objectives[0].maximize == "-lat_phone"
    assert asked(small, objectives=("+lat_phone",)).objectives[0].maximize == "lat_phone"
    assert asked(small, objectives=("-quality",)).objectives[0].maximize == "-quality"
    contest = asked(small, objectives=("lat_phone",), evaluations=10)
    assert contest.facts()["best"] == 1.0
    assert contest.regrets([124, 0])[:2] == [12.0, 0.0]


def test_a_limit_on_a_count_is_kept_exactly_and_one_on_a_column_is_found_out(cells):
    contest = asked(cells, objectives=("accuracy",), limits=("macs<=50%", "latency_ms<=5"), evaluations=100)
    macs = contest.table.cost("macs")
    for name in ("random", "evolution", "params", "macs"):
        record = contest.play(name, 0)
        assert (macs[record["places"]] <= macs.max() // 2).all()
        late = contest.table.column("latency_ms")[record["places"]] > 5
        assert record["within"] == (1 - late).tolist()
    assert 0 < np.mean(contest.play("random", 0)["within"]) < 1


def test_parameters_and_multiply_adds_alone_go_from_the_largest_by_the_description(cells):
    contest = asked(cells, objectives=("accuracy",), evaluations=50)
    for name in ("params", "macs"):
        counts = contest.table.cost(name)[contest.play(name, 0)["places"]]
        assert counts.tolist() == sorted(contest.table.cost(name).tolist(), reverse=True)[:50]
    small_first = asked(cells, objectives=("latency_ms",), evaluations=50)
    counts = small_first.table.cost("macs")[small_first.play("macs", 0)["places"]]
    assert counts.tolist() == sorted(small_first.table.cost("macs").tolist())[:50]


def test_the_area_is_the_mean_height_of_the_log_log_curve():
    flat = area([0.1] * 100, 0.01)
    assert flat == pytest.approx(-1.0)
    assert area([0.0] * 50, 0.01) == pytest.approx(-2.0)
    falling = area([1 / n for n in range(1, 1001)], 1e-9)  # a straight line from 0 to -3
    assert falling == pytest.approx(-1.5, abs=0.01)


def test_how_many_seeds_reach_a_level_and_when_half_of_them_have(small):
    contest = asked(small, evaluations=4)
    facts = {**contest.facts(), "levels": [{"name": "one", "regret": 1.0}]}
    curves = [[5, 1, 1, 0], [5, 5, 5, 5], [0.5, 0.5, 0.5, 0.5]]
    records = {"a": [{"regret": c, "places": [0, 1, 2, 3], "finished": [1, 2, 3, 4], "within": [1, 1, 0, 1], "cpu_s": 0.0} for c in curves]}
    found = summary(facts, records)["strategies"]["a"]
    assert found["reached"] == [{"name": "one", "regret": 1.0, "seeds": 2, "median": 2}]
    assert found["within"] == 0.75


# --- the comparison of equals ----------------------------------------------------------------------------------------


def even(curves, p_value):
    """Share of 200 comparisons of 20 seeds of random search with 20 other seeds, each curve by `curves(count)`, that come out significant."""
    found = 0
    for _ in range(200):
        found += p_value(curves(20), curves(20)) < 0.05
    return found / 200


def test_random_search_against_random_search_comes_out_even(small):
    contest = asked(small, evaluations=40)
    generator = np.random.default_rng(11)
    floor = contest.facts()["floor"]

    def curves(count):
        return [contest.regrets(generator.permutation(125)[:40]) for _ in range(count)]

    def by_area(first, second):
        return wilcoxon([area(curve, floor) for curve in first], [area(curve, floor) for curve in second])

    def evaluations_for_seeds(first, second):
        """A harness that takes the evaluations of one seed for independent: it must fail here."""
        return wilcoxon(first[0], second[0])

    assert 0.025 <= even(curves, by_area) <= 0.075
    assert even(curves, evaluations_for_seeds) > 0.5


def test_a_strategy_can_be_compared_with_itself(small):
    contest = asked(small, evaluations=30)
    assert contest.contestants(["random", "random#2"]) == ["random", "random#2"]
    first, again, other = (contest.play(name, 3)["places"] for name in ("random", "random", "random#2"))
    assert first == again != other


OWN = """
from niwaki.strategy.local_search import LocalSearch
from niwaki.strategy.random import RandomSearch

mine = RandomSearch(name="mine")
number = 3

def made(objectives):
    return LocalSearch(objectives[0], founders={founders}, name="made")

def broken(objectives):
    raise KeyError("nothing")
"""


def test_a_strategy_of_ones_own_is_compared_and_searched_again_when_its_file_changes(small, tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN.format(founders=10))
    asks = {
        "objectives": ["quality"],
        "evaluations": 30,
        "seeds": 2,
        "strategies": [f"{file}:mine", f"{file}:made", "local-search", "random"],
    }
    found = bench([small], **asks, out=tmp_path / "run")
    assert found[f"{file}:mine"]["regret"] == found["random"]["regret"]
    assert found[f"{file}:made"]["regret"] == found["local-search"]["regret"]
    file.write_text(OWN.format(founders=1))
    again = bench([small], **asks, out=tmp_path / "run")
    assert again[f"{file}:made"]["regret"] != found[f"{file}:made"]["regret"]
    for attribute, message in (
        ("mime", "it has .*mine"),
        ("number", "one argument, the tuple of the objectives, .*not callable"),
        ("broken", "KeyError"),
        ("OWN", "has no 'OWN'"),
    ):
        with pytest.raises(UnknownStrategy, match=message):
            asked(small).contestants([f"{file}:{attribute}"])


def test_the_simulated_random_search_is_the_permutation_that_the_test_of_equals_draws(small):
    contest = asked(small, evaluations=40)
    searched = np.array([contest.play("random", seed)["regret"] for seed in range(200)])
    exact = contest.best - expected_picks(contest.goals[0].values, contest.goals[0].values, 40)
    assert (np.abs(searched.mean(axis=0) - exact) < 4 * searched.std(axis=0) / np.sqrt(200)).all()


# --- the folder ------------------------------------------------------------------------------------------------------


def test_a_comparison_is_the_same_again_and_from_its_logs_to_the_byte(small, tmp_path):
    asks = {"objectives": ["quality"], "strategies": ["evolution"], "evaluations": 30, "seeds": 4}
    first = bench([small], **asks, out=tmp_path / "one")
    second = bench([small], **asks, out=tmp_path / "two", processes=2)
    assert {name: found["regret"] for name, found in first.items()} == {name: found["regret"] for name, found in second.items()}
    before = {file: (tmp_path / "one" / file).read_bytes() for file in ("results.json", "report.html", "regret.svg")}
    for file in before:
        (tmp_path / "one" / file).unlink()
    write_comparison(tmp_path / "one")
    assert {file: (tmp_path / "one" / file).read_bytes() for file in before} == before


def test_a_comparison_goes_on_where_it_was(small, tmp_path, monkeypatch):
    asks = {"objectives": ["quality"], "evaluations": 20, "out": tmp_path / "run"}
    bench([small], **asks, seeds=2)
    played, play = [], bench_module.play

    def watched(question, files, name, seed):
        played.append((name, seed))
        return play(question, files, name, seed)

    monkeypatch.setattr(bench_module, "play", watched)
    found = bench([small], **asks, seeds=3, strategies=["evolution"])
    assert sorted(played) == [("evolution", 0), ("evolution", 1), ("evolution", 2), ("random", 2)]
    assert found["evolution"]["seeds"] == 3
    fresh = bench([small], **{**asks, "out": tmp_path / "other"}, seeds=3, strategies=["evolution"])
    assert fresh["random"]["regret"] == found["random"]["regret"]


def test_a_search_that_is_interrupted_loses_no_finished_one(small, tmp_path, monkeypatch):
    play, calls = bench_module.play, []

    def interrupted(question, files, name, seed):
        calls.append((name, seed))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return play(question, files, name, seed)

    monkeypatch.setattr(bench_module, "play", interrupted)
    asks = {"objectives": ["quality"], "strategies": ["evolution"], "evaluations": 20, "seeds": 4, "out": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        bench([small], **asks)
    bench([small], **asks)
    assert len(calls) == 5 + 4  # 8 searches, one of them begun twice


def test_optunas_samplers_are_contestants_and_optuna_is_asked_for_where_it_is_missing(small, monkeypatch):
    pytest.importorskip("optuna")
    contest = asked(small, evaluations=15)
    assert len(contest.play("optuna-tpe", 0)["places"]) == 15
    monkeypatch.setitem(sys.modules, "niwaki.strategy.optuna", None)
    with pytest.raises(UnknownStrategy, match=r"pip install 'niwaki\[optuna\]'"):
        contest.contestants(["optuna-tpe"])


def test_the_page_and_the_drawing_stand_alone(small, tmp_path):
    bench(
        [small], objectives=["quality"], strategies=["evolution"], evaluations=30, seeds=3, workers=2, seconds="hours", out=tmp_path / "run"
    )
    page = (tmp_path / "run" / "report.html").read_text()
    assert not re.search(r"<script|https?://(?!www\.w3\.org)|src=|@import", page)
    assert page.count('class="cmp"') == 3  # over evaluations, over time, ranks
    drawing = ET.fromstring((tmp_path / "run" / "regret.svg").read_text())
    assert {"random", "evolution"} <= {text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(results["checklist"]) == 14
    items = {item["item"]: item for item in results["checklist"]}
    assert items["repeated with several seeds"]["status"] == "fail"  # 3 are too few
    assert items["everything that is needed to run it again"]["status"] == "fail"  # called from Python: there is no command
    assert (
        "settings of `default` were chosen while looking at NAS-Bench-201"
        in items["tuning of the methods told, and its time counted"]["evidence"]
    )
    assert items["the same evaluation protocol for all"]["status"] == "pass"


def test_the_command_line_prints_one_entry_for_each_evaluation(cells, tmp_path, niwaki_command):
    answer = niwaki_command(
        "bench", cells, "--objective", "accuracy", "--strategy", "evolution,random", "--evaluations", 25, "--seeds", 3, "--out", tmp_path / "run",
        "--processes", 1, "--json",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    assert set(answer.json) == {"evolution", "random", "params", "macs"}
    for found in answer.json.values():
        assert list(found["regret"]) == [str(at) for at in range(1, 26)]
        assert {"mean", "sem"} <= set(found["regret"]["7"])
    listed = niwaki_command("report", tmp_path / "run", "--checklist")
    assert listed.code == 0
    assert "random search and random sampling included" in listed.out
    assert len(niwaki_command("report", tmp_path / "run", "--checklist", "--json").json["checklist"]) == 14


def test_the_folder_of_a_comparison_is_none_of_a_search(small, tmp_path, niwaki_command):
    bench([small], objectives=["quality"], evaluations=5, seeds=1, out=tmp_path / "run")
    for command in ("resume", "export"):
        answer = niwaki_command(command, tmp_path / "run")
        assert answer.code == 2
        assert "holds a comparison of `niwaki bench`" in answer.err


def test_a_search_has_its_checklist_too(finished, niwaki_command):
    items = niwaki_command("report", finished.folder, "--checklist", "--json").json["checklist"]
    status = {item["item"]: item["status"] for item in items}
    assert status["everything that is needed to run it again"] == "pass"
    assert status["repeated with several seeds"] == "fail"  # it has one
    assert set(status.values()) == {"pass", "fail", "n.a."}


def test_a_table_that_has_changed_is_compared_anew_in_the_same_process(tmp_path):
    arch, file = np.array(list(product(range(4), repeat=3))), tmp_path / "mine.npz"
    for number, top in enumerate((90.0, 1090.0)):
        np.savez(file, arch=arch, accuracy=top - ((arch - [3, 0, 2]) ** 2).sum(axis=1))
        bench([file], objectives=["accuracy"], evaluations=10, seeds=2, out=tmp_path / str(number))
        assert json.loads((tmp_path / str(number) / "results.json").read_text())["facts"]["best"] == top
    with pytest.raises(RunError, match="another configuration"):
        bench([file], objectives=["accuracy"], evaluations=10, seeds=2, out=tmp_path / "0")


def test_the_hash_of_the_code_changes_with_any_file_of_it(tmp_path):
    package = tmp_path / "niwaki"
    shutil.copytree(bench_module.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    before = bench_module.code_hash(package)
    assert before == bench_module.code_hash()
    files = sorted(package.rglob("*.py"))
    assert len(files) > 100
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content + b"# changed\n")
        assert bench_module.code_hash(package) != before, file
        file.write_bytes(content)
    files[-1].rename(files[-1].with_name("renamed.py"))
    assert bench_module.code_hash(package) != before


def test_a_comparison_begun_anew_leaves_nothing_of_the_one_before_it(small, tmp_path, monkeypatch):
    asks = {"objectives": ["quality"], "evaluations": 10, "seeds": 1, "out": tmp_path / "run"}
    bench([small], **asks)
    written = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"results.json", "regret.svg", "report.html", "run.sqlite"} <= written

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_module, "play", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench([small], **{**asks, "evaluations": 11}, fresh=True)
    left = {file.name for file in (tmp_path / "run").iterdir()}
    assert left & {"results.json", "regret.svg", "report.html"} == set()


# --- the comparison that is kept -------------------------------------------------------------------------------------


def test_what_lies_outside_the_interval_of_what_is_kept_is_found():
    generator = np.random.default_rng(0)
    kept = {"a": {"1": generator.normal(5, 1, 50).tolist(), "3": generator.normal(2, 1, 50).tolist()}}
    again = generator.normal((5, 4, 2), 1, size=(50, 3))
    assert regret.outside(kept, {"a": again}) == []
    assert regret.outside(kept, {"a": again[:10]}) == []
    assert [line.split(":")[0] for line in regret.outside(kept, {"a": again + [0, 9, 1.5]})] == ["a after 3 evaluations"]
    assert len(regret.outside(kept, {"a": again[:5] - 4})) == 2
    found_by_all = {"a": {"1": [0.0] * 50}}
    assert regret.outside(found_by_all, {"a": np.array([[0.0], [0.3], [0.0]])}) == []  # one of three need not have found it


def test_seeds_of_the_same_search_lie_outside_as_rarely_as_is_said():
    generator = np.random.default_rng(0)

    def regrets(seeds):  # as they are: many have found the best, some are far from it
        return np.where(generator.random((seeds, 1)) < 0.5, 0.0, generator.lognormal(-2, 1.5, (seeds, 1)))

    for kept, again in ((12, 12), (50, 50), (50, 5)):
        alarms = sum(
            bool(regret.outside({"a": {"1": regrets(kept)[:, 0].tolist()}}, {"a": regrets(again)}, chance=0.1, resamples=199))
            for _ in range(500)
        )
        assert 0.05 <= alarms / 500 <= 0.1 + 3 * 0.0134  # three standard errors


def test_the_kept_regret_plot_comes_out_again_within_its_interval(shared_data, tmp_path):
    figures = json.loads((regret.RESULTS / "regret.json").read_text())["figures"]
    kept = figures["regret_of_each_seed"]
    table = shared_data / "nasbench201" / "nasbench201_cifar10.npz"
    asks = {"objectives": [regret.OBJECTIVE], "evaluations": figures["evaluations"]}
    bench([table], **asks, strategies=["local-search", "evolution"], seeds=figures["seeds"], out=tmp_path / "all")
    found = regret.curves(tmp_path / "all")
    assert set(found) == {"local-search", "evolution", "random", "params", "macs"}
    assert regret.outside(kept, found) == []
    bench([table], **{**asks, "evaluations": 50}, strategies=["default"], seeds=3, out=tmp_path / "default")
    assert regret.outside(kept, regret.curves(tmp_path / "default")) == []
    drawing = (regret.PLOT).read_text()
    assert all(f">{name}</text>" in drawing for name in kept)


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--objective", "acuracy"], "did you mean 'accuracy'"),
        (["--objective", "accuracy", "--strategy", "evolutoin"], "did you mean 'evolution'"),
        (["--objective", "accuracy", "--strategy", ""], "no strategy is called ''; there are default"),
        (["--objective", "accuracy", "--limit", "latency_ms<=0.5"], "no architecture keeps latency_ms<=0.5: the least latency_ms is 1"),
        (["--objective", "accuracy", "--limit", "latency_ms>=2"], "is no limit on a column"),
        (["--objective", "accuracy", "--limit", "latency<=2"], "did you mean 'latency_ms'"),
        (["--objective", "accuracy", "--limit", "macs<=1k"], "no architecture has macs <= 1,000"),
        (["--objective", "accuracy", "--limit", "latency_ms<=4 and latency_ms<=5"], "limited twice"),
        (["--objective", "accuracy", "--objective", "accuracy"], "both objectives"),
        (["--objective", "accuracy", "--objective", "latency_ms", "--strategy", "evolution"], "searches for one objective"),
        (["--objective", "accuracy", "--evaluations", "0"], "at least one"),
        (["--objective", "accuracy", "--seeds", "0"], "at least one"),
        (["--objective", "accuracy", "--workers", "0"], "at least one"),
        (["--objective", "accuracy", "--processes", "-1"], "at least one"),
        (["--objective", "accuracy", "--space", "nasbench-macro"], "operation|option number|decisions"),
        (["--objective", "accuracy", "--space", "nasbench20"], "did you mean"),
        ([], "objective"),
    ],
)
def test_bad_input_is_one_clear_error_before_any_work(cells, tmp_path, niwaki_command, words, message):
    answer = niwaki_command("bench", cells, *words, "--out", tmp_path / "run")
    assert answer.code == 2
    assert re.search(message, answer.err), answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_more_evaluations_than_architectures_end_cleanly_and_say_so(small, tmp_path, niwaki_command):
    answer = niwaki_command(
        "bench", small, "--objective", "quality", "--evaluations", 200, "--seeds", 2, "--strategy", "exhaustive", "--processes", 1,
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert answer.code == 0
    assert "200 evaluations were asked for, but there are 125 architectures" in answer.err
    for found in answer.json.values():
        assert list(found["regret"]) == [str(at) for at in range(1, 201)]  # flat from where there is nothing more to propose
        assert {found["regret"][str(at)]["mean"] for at in range(125, 201)} == {0.0}
    assert answer.json["exhaustive"]["evaluations"] == 125


def test_where_there_are_too_few_a_policy_that_repeats_goes_on_and_the_others_stay_where_they_were(small):
    contest = asked(small, evaluations=150)
    assert len(contest.play("reinforce", 0)["places"]) == 150
    for name in ("random", "local-search", "default"):
        record = contest.play(name, 0)
        assert len(set(record["places"])) == len(record["places"]) == 125
        assert len(record["regret"]) == 150
        assert set(record["regret"][124:]) == {0.0}
    exact = contest.facts()["random_exact"]
    assert len(exact) == 150
    assert exact[124:] == pytest.approx([0.0] * 26)
    done = summary(contest.facts(), {name: [contest.play(name, seed) for seed in range(2)] for name in ("random", "reinforce")})
    assert done["strategies"]["random"]["evaluations"] == 125


def test_a_strategy_that_breaks_its_contract_is_named(small):
    class Greedy(RandomSearch):
        def ask(self, state, count, rng, pending):
            return super().ask(state, count + 1, rng, pending)

    contest = asked(small)
    with pytest.raises(StrategyError, match="greedy was asked for 1"):
        simulate(Greedy(name="greedy"), contest.space, lambda arch: Evaluated(0, {"m": 1.0}), evaluations=3)


BROKEN = """
from niwaki.strategy.random import RandomSearch

class Dicts(RandomSearch):
    def ask(self, state, count, rng, pending):
        return [dict(arch) for arch in super().ask(state, count, rng, pending)]

class Raises(RandomSearch):
    def ask(self, state, count, rng, pending):
        raise KeyError("kernel")

class Alike(RandomSearch):
    def ask(self, state, count, rng, pending):
        return super().ask(state, 1, rng, pending) * count

class Pending(RandomSearch):
    def ask(self, state, count, rng, pending):
        return list(pending[:count]) or super().ask(state, count, rng, pending)

class Text(RandomSearch):
    def ask(self, state, count, rng, pending):
        return "the best"

class Nothing(RandomSearch):
    def tell(self, state, trials):
        pass

class Stumbles(RandomSearch):
    def tell(self, state, trials):
        raise ZeroDivisionError("division by zero")

dicts, raises, alike, pending, text, nothing, stumbles = (
    kind(name=kind.__name__.lower()) for kind in (Dicts, Raises, Alike, Pending, Text, Nothing, Stumbles)
)
nameless, numbered = RandomSearch(name=""), RandomSearch(name=3)
"""


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("dicts", "dicts was asked for 4 .* a dict; .*space.architecture"),
        ("raises", r"raises failed to ask for 4: KeyError: 'kernel' \(broken.py, line 10\)"),
        ("alike", "alike was asked for 4 .* twice.*repeats = True"),
        ("pending", "pending was asked for 1 .* while it is pending"),
        ("text", "text was asked for 4 .*'the best', which is no list"),
        ("nothing", "nothing gave None when it was told of 1 trials"),
        ("stumbles", "stumbles failed to tell of 1 trials: ZeroDivisionError: division by zero"),
        ("nameless", "a RandomSearch has no name"),
        ("numbered", "a RandomSearch has no name"),
    ],
)
def test_what_is_wrong_with_a_strategy_of_ones_own_is_said_before_any_work(small, tmp_path, niwaki_command, attribute, message):
    (tmp_path / "broken.py").write_text(BROKEN)
    answer = niwaki_command(
        "bench", small, "--objective", "quality", "--workers", 4, "--seconds", "hours", "--strategy", f"{tmp_path / 'broken.py'}:{attribute}",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert answer.code == 2
    assert re.search(message, answer.err), answer.err
    assert answer.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_what_a_table_of_unknown_columns_lacks_is_said_also_when_quiet(tmp_path, niwaki_command):
    arch = np.array(list(product(range(3), range(3), range(2))))[:15]
    np.savez(tmp_path / "odd.npz", arch=arch, accuracy=arch.sum(axis=1), gaps=np.full(15, np.nan))
    words = ("bench", tmp_path / "odd.npz", "--evaluations", 5, "--seeds", 1, "--processes", 1, "--quiet")
    answer = niwaki_command(*words, "--objective", "accuracy", "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert "15 of 18 combinations of the columns are listed" in answer.err
    assert "searches with" not in answer.err
    answer = niwaki_command(*words, "--objective", "gaps", "--out", tmp_path / "other")
    assert answer.code == 2
    assert "'gaps' is nan in row 0" in answer.err


LATE = """
from niwaki.strategy.random import RandomSearch

class Late(RandomSearch):
    def ask(self, state, count, rng, pending):
        if len(state.seen) >= 5:
            raise RuntimeError("boom")
        return super().ask(state, count, rng, pending)

class Again(RandomSearch):
    def tell(self, state, trials):
        return state

late, again = Late(name="late"), Again(name="again")
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_a_strategy_that_fails_on_its_way_is_one_line_whatever_process_it_fails_in(small, tmp_path, niwaki_command, processes):
    (tmp_path / "own.py").write_text(LATE)
    answer = niwaki_command(
        "bench", small, "--objective", "quality", "--strategy", f"{tmp_path / 'own.py'}:late", "--evaluations", 12, "--seeds", 2,
        "--processes", processes, "--quiet", "--json", "--out", tmp_path / "run",
    )  # fmt: skip
    assert answer.code == 2
    assert answer.json["error"] == "late failed to ask for 1: RuntimeError: boom (own.py, line 7)"
    assert answer.err.splitlines()[-1] == f"error: {answer.json['error']}"


def test_proposals_that_a_strategy_should_not_have_repeated_are_told_and_those_of_a_policy_are_not(small, tmp_path, niwaki_command):
    (tmp_path / "own.py").write_text(LATE)
    mine = f"{tmp_path / 'own.py'}:again"
    answer = niwaki_command(
        "bench", small, "--objective", "quality", "--strategy", f"{mine},reinforce", "--evaluations", 100, "--seeds", 2,
        "--processes", 1, "--out", tmp_path / "run",
    )  # fmt: skip
    assert answer.code == 0, answer.err
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    repeated = 200 - round(2 * results["strategies"][mine]["distinct"])
    assert results["strategies"]["reinforce"]["distinct"] < 100
    told = [note for note in results["facts"]["notes"] if "repeats" in note]
    assert told == [f"{repeated} of 200 proposals of {mine} were repeats; the contract forbids them unless its class says `repeats = True`"]
    assert told[0] in answer.err
    assert "were repeats" in (tmp_path / "run" / "report.html").read_text()


def test_where_all_that_a_method_evaluates_is_random_the_comparison_says_so(small, tmp_path):
    def notes(evaluations):
        out = tmp_path / str(evaluations)
        bench([small], objectives=["quality"], strategies=["evolution", "local-search"], evaluations=evaluations, seeds=1, out=out)
        return [note for note in json.loads((out / "results.json").read_text())["facts"]["notes"] if "random" in note]

    assert notes(20) == ["evolution: its first 50 evaluations are random; of 20 all are"]
    assert notes(51) == []
    contest = asked(small, evaluations=20)
    for name in ("default", "evolution", "local-search", "chow-liu", "crank", "nsga2"):
        first, quality = random_at_first(name), contest.table.column("quality")
        same, other = (_asked_after(strategy_named(name, contest.objectives), contest.space, score, first) for score in (quality, -quality))
        assert same[:first] == other[:first], "at random, whatever it was told"
        assert same[first:] != other[first:], f"{name} goes by what it was told"


def _asked_after(strategy, space, values, first):
    log = simulate(strategy, space, lambda arch: _looked_up(space, arch, values), evaluations=first + 20)
    return log.places


def _looked_up(space, arch, values):
    place = int(np.array(space.indices([arch])[0]) @ [25, 5, 1])
    return Evaluated(place, {"quality": float(values[place])})


def test_a_limit_is_on_a_cost_and_the_name_of_a_column_may_have_an_and_in_it(tmp_path):
    arch = np.array(list(product(range(4), repeat=3)))
    np.savez(tmp_path / "odd.npz", arch=arch, accuracy=arch.sum(axis=1), **{"a and b, c": 1.0 + arch[:, 0], "gain_db": arch[:, 1] - 2.0})
    contest = asked(tmp_path / "odd.npz", objectives=("accuracy",), limits=("a and b, c<=2 and accuracy<=5",))
    assert [(limit.metric, limit.upper) for limit in contest.measured] == [("a and b, c", 2.0), ("accuracy", 5.0)]
    with pytest.raises(BudgetError, match="gain_db cannot be limited, as its least value is -2"):
        asked(tmp_path / "odd.npz", objectives=("accuracy",), limits=("gain_db<=1",))
    for limit in ("accuracy<=0", "accuracy<=-3", "accuracy<=5 and", "and accuracy<=5"):
        with pytest.raises((BudgetError, TableError), match=r"above 0|no column"):
            asked(tmp_path / "odd.npz", objectives=("accuracy",), limits=(limit,))


def test_what_a_question_cannot_ask_is_refused(small, cells):
    with pytest.raises(BenchError, match="3 objectives"):
        Question((str(small),), ("a", "b", "c"))
    with pytest.raises(BenchError, match="hypervolume"):
        Question((str(small),), ("a", "b"), report="c")
    with pytest.raises(TableError, match="no description"):
        asked(small).contestants(["macs"])
    with pytest.raises(UnknownStrategy, match="no strategy is called"):
        asked(small).contestants(["nothing"])
    with pytest.raises(BudgetError, match="limited twice"):
        asked(cells, objectives=("accuracy",), limits=("macs<=50M", "macs<=60M"))
