"""Committees: thresholds against brute force and closed forms, compaction, one ONNX file that stops early, and what is refused."""

import json
import re
import shutil
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import niwaki
from niwaki.adoption.counter import counted_macs
from niwaki.deploy.card import ExportError, ModelCard, Preprocessing
from niwaki.deploy.cascade import cascade_model, export_cascade, measured, with_onnx_members
from niwaki.deploy.cascade_source import loaded, write_cascade_source
from niwaki.deploy.committee import Committee, OnnxMember, at_resolutions
from niwaki.deploy.confidence import CONFIDENCES, entropy, gap, logit_gap, max_probability, softmax, temperature
from niwaki.deploy.export import capture, export_pt2
from niwaki.deploy.predict import predict
from niwaki.deploy.thresholds import NEVER, CommitteeError, Exits, Rule, Sequences, by_budget, by_target, front, points_of
from niwaki.device.measure import Protocol
from niwaki.device.onnx_session import session_of
from niwaki.run.demand import parse_demand
from niwaki.run.experiments import committees as experiment
from niwaki.store.engine import open_store
from niwaki.task.classify import ImageClassification, Preprocess
from niwaki.task.embedded import digits

CLASSES = 5


def answers(strength, count=200, seed=0, classes=CLASSES):
    """(logits of a member for each strength, labels): the stronger, the more often right; what is hard is hard for all."""
    rng = np.random.default_rng(seed)
    labels, ease = rng.integers(0, classes, count), rng.standard_normal(count)
    logits = [rng.standard_normal((count, classes)) for _ in strength]
    for one, s in zip(logits, strength, strict=True):
        one[np.arange(count), labels] += s + 1.5 * ease
    return logits, labels


def committee(logits, costs, **more):
    """Its models look their answers up: an example is its own number."""
    return Committee([lambda x, one=one: one[x] for one in logits], costs, **more)


# --- confidence ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [max_probability, gap, logit_gap, entropy])
def test_confidence_is_0_at_the_least_and_1_at_the_most_and_grows_with_the_scale_of_the_logits(confidence):
    even, sure = np.full((1, 4), 0.25), np.array([[0.0, 1.0, 0.0, 0.0]])
    assert confidence(even)[0] == pytest.approx(0.25 if confidence is max_probability else 0)
    assert confidence(sure)[0] == pytest.approx(1)
    logits = np.random.default_rng(0).standard_normal((50, 4))
    assert (confidence(softmax(2 * logits)) > confidence(softmax(logits))).all()


def test_the_gap_of_logits_has_the_order_that_it_has_before_the_softmax():
    logits = np.random.default_rng(0).standard_normal((50, 4)) * 3
    top = np.sort(logits, 1)
    assert np.allclose(logit_gap(softmax(logits)), np.tanh((top[:, -1] - top[:, -2]) / 2))


def test_the_temperature_undoes_a_scale_and_stays_finite_where_all_is_right():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5000, 4)) * 2
    labels = np.array([rng.choice(4, p=p) for p in softmax(logits)])  # calibrated by construction
    assert temperature(logits, labels) == pytest.approx(1, abs=0.06)
    assert temperature(logits * 2, labels) == pytest.approx(2, abs=0.12)
    assert 0.2 < temperature(np.eye(4) * 5, np.arange(4)) < 1


# --- a rule, applied ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_a_threshold_of_0_is_the_first_model_and_one_above_1_the_whole_ensemble(average, confidence):
    logits, labels = answers((1, 2, 3))
    whole, x = committee(logits, (1, 2, 4), average=average, confidence=confidence), np.arange(200)
    first, every = (whole.with_rule((0, 1, 2), (t, t)).predict(x) for t in (0.0, 1.1))
    votes = logits if average == "logits" else [softmax(one) for one in logits]
    mean = np.mean(votes, 0)
    assert np.allclose(softmax(first.outputs), softmax(logits[0]), atol=1e-6)
    assert np.allclose(softmax(every.outputs), softmax(mean) if average == "logits" else mean, atol=1e-6)
    assert (first.costs == 1).all()
    assert (every.costs == 7).all()
    report = whole.with_rule((0, 1, 2), (1.1, 1.1)).report(x, labels)
    assert report.shares == (0, 0, 1)
    assert report.accuracy == (mean.argmax(1) == labels).mean()


def test_where_the_last_member_answers_alone_a_weak_one_drags_nobody_down():
    logits, labels = answers((0.2, 3), count=400)
    alone = (logits[1].argmax(1) == labels).mean()
    pair = committee([logits[0] * 5, logits[1]], (1, 4), average="last", calibrate=False)
    x = np.arange(400)
    every = pair.with_rule((0, 1), (NEVER,)).predict(x)
    assert (every.labels == logits[1].argmax(1)).all()
    assert np.allclose(softmax(every.outputs), softmax(logits[1]), atol=1e-6)
    assert (pair.with_rule((0, 1), (0.0,)).predict(x).labels == logits[0].argmax(1)).all()
    half = pair.with_rule((0, 1), (0.97,))
    short, full = half.predict(x), half.predict_in_full(x)
    assert set(short.exits) == {1, 2}
    assert (short.outputs == full.outputs).all()
    reached = [max(p.accuracy for p in points_of((0, 1), one.exits_of([logits[0] * 5, logits[1]], labels)((0, 1)), 24))
               for one in (pair, replace(pair, average="logits"))]  # fmt: skip
    assert reached[0] >= alone > reached[1]


def test_shares_sum_to_1_and_the_average_cost_is_the_shares_times_the_costs_so_far():
    logits, labels = answers((1, 2, 3))
    report = committee(logits, (1.5, 2.25, 4)).with_rule((0, 1, 2), (0.8, 0.7)).report(np.arange(200), labels)
    assert sum(report.shares) == pytest.approx(1, abs=1e-12)
    assert min(report.shares) > 0
    assert report.average_cost == pytest.approx(np.dot(report.shares, [1.5, 3.75, 7.75]), abs=1e-9)
    assert report.accuracy == pytest.approx(np.dot(report.shares, report.exit_accuracies), abs=1e-9)
    assert report.worst_cost == 7.75
    assert json.loads(json.dumps(report.to_json()))["shares"] == list(report.shares)


def test_each_member_sees_only_who_is_left_and_the_answers_are_those_of_the_full_run():
    seen = []

    def member(logits):
        return lambda x: (seen.append(len(x)), logits[x])[1]

    logits, _ = answers((1, 2, 3))
    cascade = Committee([member(one) for one in logits], (1, 2, 4)).with_rule((0, 1, 2), (0.8, 0.7))
    found = cascade.predict(np.arange(200), batch=200)
    assert seen == [200, (found.exits > 1).sum(), (found.exits > 2).sum()]
    full = cascade.predict_in_full(np.arange(200))
    assert (found.outputs == full.outputs).all()
    assert (found.exits == full.exits).all()
    small = cascade.predict(np.arange(200), batch=7)
    assert (found.outputs == small.outputs).all()


# --- thresholds ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_search_over_two_models_is_brute_force_over_all_observed_thresholds(seed):
    logits, labels = answers((1.5, 2.5), count=60, seed=seed)
    costs = (1, 3)
    pair = committee(logits, costs, calibrate=False)
    sure, right = max_probability(softmax(logits[0])), [one.argmax(1) == labels for one in (logits[0], np.mean(logits, 0))]
    points = [(right[0].mean(), 1.0), ((logits[1].argmax(1) == labels).mean(), 3.0)]
    for t in [*sure, 2.0]:
        stops = sure >= t
        points.append((np.where(stops, *right).mean(), 1 + 3 * (~stops).mean()))
    for budget in (1, 1.7, 2.5, 10):
        best = pair.fit(logits, labels, budget=budget).report()
        assert best.average_cost <= budget
        assert best.accuracy == pytest.approx(max(accuracy for accuracy, cost in points if cost <= budget + 1e-9))
    reachable = max(accuracy for accuracy, _ in points)
    for target in (0.5, reachable - 0.05, reachable):
        best = pair.fit(logits, labels, target=target).report()
        assert best.accuracy >= target - 1e-9
        assert best.average_cost == pytest.approx(min(cost for accuracy, cost in points if accuracy >= target - 1e-9))
    with pytest.raises(CommitteeError, match=rf"the best reaches {reachable:.2%}".replace("%", r"\%")):
        pair.fit(logits, labels, target=min(1.0, reachable + 0.004))


def test_the_threshold_for_an_accuracy_is_the_analytic_one():
    """Model 1 is right with a probability equal to its confidence u ~ U(.5, 1), model 2 always; accuracy 2t - t^2 at threshold t."""
    rng = np.random.default_rng(0)
    u = rng.uniform(0.5, 1, 20_000)
    exits = Exits(u[None], np.array([rng.random(20_000) < u, np.ones(20_000, bool)]), np.array([1.0, 9.0]))
    points = points_of((0, 1), exits, 24)
    for accuracy in (0.80, 0.85, 0.9, 0.95, 0.97):
        best = min(points, key=by_target(accuracy))
        assert best.rule.thresholds[0] == pytest.approx(1 - np.sqrt(1 - accuracy), abs=0.02)


def brute_force(sequence, exits, grids):
    """(accuracy, cost) of every combination of thresholds, one example after the other."""
    found = []
    for thresholds in product(*grids):
        correct = cost = 0.0
        for x in range(exits.right.shape[1]):
            stop = next((k for k, t in enumerate(thresholds) if exits.sure[k, x] >= t), len(sequence) - 1)
            correct, cost = correct + exits.right[stop, x], cost + exits.costs[: stop + 1].sum()
        found.append((correct / exits.right.shape[1], cost / exits.right.shape[1]))
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_front_of_four_models_is_brute_force_over_the_grid(seed):
    rng = np.random.default_rng(seed)
    exits = Exits(rng.random((3, 6)), rng.random((4, 6)) < np.array([[0.4], [0.6], [0.7], [0.8]]), np.array([1.0, 2.0, 3.0, 5.0]))
    grids = [np.append((np.sort(sure)[1:] + np.sort(sure)[:-1]) / 2, NEVER) for sure in exits.sure]
    whole = {(round(p.accuracy, 9), round(p.cost, 9)) for p in points_of((0, 1, 2, 3), exits, 24)}
    every = brute_force((0, 1, 2, 3), exits, grids)
    efficient = {(a, c) for a, c in every if not any((b > a and d <= c) or (b >= a and d < c) for b, d in every)}
    efficient = {(round(a, 9), round(c, 9)) for a, c in efficient}
    # what is pruned is beaten by a sequence that ends earlier, which is tried by itself
    shorter = [(p.accuracy, p.cost) for length in (1, 2, 3) for p in points_of(tuple(range(length)), cut(exits, length), 24)]
    left = {(a, c) for a, c in efficient if not any(b >= a - 1e-9 and d <= c + 1e-9 for b, d in shorter)}
    assert left <= whole
    assert all(any(b >= a - 1e-9 and d <= c + 1e-9 for b, d in every) for a, c in whole)


def cut(exits, length):
    return Exits(exits.sure[: length - 1], exits.right[:length], exits.costs[:length])


def test_every_point_of_the_front_is_what_the_rule_comes_to():
    logits, labels = answers((1, 1.5, 2, 2.5), count=150)
    fitted = committee(logits, (1, 2, 4, 8)).fit(logits, labels, budget=6)
    assert len(fitted.front) > 10
    for point in fitted.front:
        report = replace(fitted, rule=point.rule).report(np.arange(150), labels)
        assert report.accuracy == pytest.approx(point.accuracy)
        assert report.average_cost == pytest.approx(point.cost)
        assert report.worst_cost == point.worst


def test_sequences_run_from_cheap_to_dear_with_equals_in_any_order():
    assert set(Sequences(longest=2).of((2, 1, 2))) == {(0,), (1,), (2,), (1, 0), (1, 2), (0, 2), (2, 0)}
    assert set(Sequences(worst=3).of((1, 2, 4))) == {(0,), (1,), (0, 1)}


def test_the_worst_case_is_bounded():
    logits, labels = answers((1, 1.5, 2, 2.5))
    free, bounded = (committee(logits, (1, 2, 4, 8)).fit(logits, labels, budget=6, worst_case=worst) for worst in (None, 8))
    assert bounded.report().worst_cost <= 8 < free.report().worst_cost
    assert all(point.worst <= 8 for point in bounded.front)


def test_a_beam_over_more_than_twelve_models_finds_what_the_exhaustive_search_finds():
    logits, labels = answers((1, 1.5, 2, 2.5), count=120)
    costs, prefers = (1, 2, 4, 8), by_budget(5.0)
    few = committee(logits, costs)
    best = min(front(costs, few.exits_of(logits, labels), Sequences(longest=3)), key=prefers)
    many = committee(logits * 4, costs * 4)  # each model four times: copies add nothing that is worth its cost
    found = min(front(costs * 4, many.exits_of(logits * 4, labels), Sequences(longest=3), prefers), key=prefers)
    assert found.accuracy >= best.accuracy


def test_calibration_makes_an_overconfident_first_member_useful_for_averaging():
    logits, labels = answers((1, 3), count=400)
    loud = [logits[0] * 20, logits[1]]
    plain, calibrated = (committee(loud, (1, 4), calibrate=on).fit(loud, labels, budget=5) for on in (False, True))
    assert calibrated.temperatures[0] > 5 * calibrated.temperatures[1]
    ensembles = [one.with_rule((0, 1), (NEVER,)).report(np.arange(400), labels).accuracy for one in (plain, calibrated)]
    assert ensembles[1] > ensembles[0] + 0.05


# --- one file -------------------------------------------------------------------------------------------------------------------

SHAPE = (8, 8)
PREPROCESS = Preprocess(torch.tensor([8.0]), torch.tensor([4.0]), channels_last=False)
CARD = ModelCard(tuple("abcde"), Preprocessing(SHAPE, "uint8", (0, 16), (8.0,), (4.0,)), 0, 0, 0)


def network(width, seed):
    torch.manual_seed(seed)
    body = (nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))
    made = nn.Sequential(*body).eval()
    made[-1].weight.data *= 6
    return made


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 17, (90, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(images):
    """A committee of three small networks as ONNX models of stored images, about a third of the images leaving at each exit."""
    whole = Committee(
        [network(width, width) for width in (3, 4, 6)], (1, 3, 9), names=("small", "middle", "large"), temperatures=(1, 1.3, 0.8)
    )
    whole = with_onnx_members(whole.with_rule((0, 1, 2), (0, 0)), PREPROCESS, CARD, images)
    return halfway(whole, images)


def halfway(whole, images):
    """Thresholds at which a third of the images leaves at the first exit, and half of the others at the second."""
    first, second = whole.with_rule((0, 1, 2), (0, 0)).confidences(images)[0]
    low = float(np.quantile(first, 0.66)) + 1e-5
    return whole.with_rule((0, 1, 2), (low, float(np.quantile(second[first < low], 0.5)) + 1e-5))


@pytest.mark.parametrize("average", ["logits", "probabilities", "last"])
@pytest.mark.parametrize("confidence", CONFIDENCES)
def test_the_onnx_file_answers_what_the_python_class_answers(exported, images, tmp_path, average, confidence):
    whole = halfway(replace(exported, average=average, confidence=confidence), images)
    audit = export_cascade(whole, tmp_path / "cascade.onnx", CARD, images)
    session = session_of((tmp_path / "cascade.onnx").read_bytes(), threads=1)
    expected = whole.predict(images)
    assert set(expected.exits) == {1, 2, 3}
    for batch in (1, 2, 7, 90):
        parts = [session.run(["logits", "exits"], {"images": images[at : at + batch]}) for at in range(0, 90, batch)]
        logits, exits = (np.concatenate(part) for part in zip(*parts, strict=True))
        assert np.abs(logits - expected.outputs).max() < 1e-5 * np.abs(expected.outputs).max()
        assert (exits == expected.exits).all()
    assert audit.max_difference < 1e-5 * audit.scale


def kernels(content, image, tmp_path):
    """How often ONNX Runtime ran a convolution for the image, by its own profile."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    exits = session.run(["exits"], {"images": image})[0]
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = [event["args"]["op_name"] for event in events if event.get("args", {}).get("op_name") and event["name"].endswith("kernel_time")]
    return exits.tolist(), sum("Conv" in name for name in ran)


def test_an_early_exit_really_skips_the_members_behind_it(exported, images, tmp_path):
    content = cascade_model(exported, CARD).SerializeToString()
    exits = exported.predict(images).exits
    for at in (1, 2, 3):
        place = int(np.flatnonzero(exits == at)[0])
        assert kernels(content, images[place : place + 1], tmp_path) == ([at], at)
    together = images[np.flatnonzero(exits == 1)[:4]]
    assert kernels(content, together, tmp_path) == ([1] * 4, 1)


def test_an_exit_where_nobody_stops_is_no_branch(exported, images):
    model = cascade_model(exported.with_rule((0, 1, 2), (NEVER, 0.5)), CARD)
    assert [node.op_type for node in model.graph.node].count("If") == 1
    assert session_of(model.SerializeToString(), threads=1).run(["exits"], {"images": images})[0].min() >= 2
    single = cascade_model(exported.with_rule((1,), ()), CARD)
    assert "If" not in [node.op_type for node in single.graph.node]


def test_the_file_tells_its_classes_and_is_predicted_with_like_any_other(exported, images, tmp_path):
    export_cascade(exported, tmp_path / "cascade.onnx", CARD, images)
    np.savez(tmp_path / "some.npz", images=images[:20], labels=np.zeros(20, int))
    found = predict(tmp_path / "cascade.onnx", [tmp_path / "some.npz"])
    expected = exported.predict(images[:20])
    assert [row.label for row in found.rows] == ["abcde"[k] for k in expected.labels]
    assert [row.exit for row in found.rows] == expected.exits.tolist()
    told = json.loads({p.key: p.value for p in onnx.load(tmp_path / "cascade.onnx").metadata_props}["cascade"])
    assert told["members"] == ["small", "middle", "large"]
    assert told["thresholds"] == list(exported.rule.thresholds)


@pytest.mark.parametrize(("average", "confidence"), [("last", max_probability), ("probabilities", entropy)])
def test_the_python_class_needs_torch_alone_and_answers_the_same(images, tmp_path, average, confidence):
    networks = [network(width, width) for width in (3, 6)]
    programs = []
    for one in networks:
        export_pt2(capture(one, PREPROCESS, images), tmp_path / "one.pt2", CARD)
        programs.append((tmp_path / "one.pt2").read_bytes())
    members = [nn.Sequential(PREPROCESS, one) for one in networks]
    whole = Committee(members, (1, 9), average=average, confidence=confidence).with_rule((0, 1), (0,))
    whole = whole.with_rule((0, 1), (float(np.median(whole.confidences(images)[0])) + 1e-5,))
    write_cascade_source(whole, tmp_path / "out", CARD, images, programs)
    assert "niwaki" not in [line.split()[1] for line in (tmp_path / "out" / "cascade.py").read_text().splitlines() if "import" in line[:6]]
    logits, exits = loaded(tmp_path / "out" / "cascade.py").Cascade()(torch.from_numpy(images))
    expected = whole.predict(images)
    assert set(expected.exits) == {1, 2}
    assert (exits.numpy() == expected.exits).all()
    assert np.abs(logits.numpy() - expected.outputs).max() < 1e-5 * np.abs(expected.outputs).max()


def test_latency_is_measured_exit_by_exit_beside_the_largest_member(exported, images):
    quick = Protocol(warmup=1, rounds=2, least_ms=0)
    content = cascade_model(exported, CARD).SerializeToString()
    exits = exported.predict(images).exits
    found = measured(content, exported.models[2].content, images, exits, protocol=quick)
    assert set(found.exits_ms) == {1, 2, 3}
    assert found.average_ms == pytest.approx(np.mean([found.exits_ms[at] for at in exits]))
    assert 0 < found.ratio < 100
    report = exported.report(images, np.zeros(len(images), int), latency=quick)
    assert report.average_latency_ms == pytest.approx(np.mean([report.latency_ms[at - 1] for at in exits]))


# --- one network at two resolutions ---------------------------------------------------------------------------------------------


def test_a_self_cascade_asks_one_network_at_two_resolutions(tmp_path, images):
    one = network(6, 0)
    members = at_resolutions(one, (4, 8))
    assert sum(p.numel() for p in nn.ModuleList(members).parameters()) == sum(p.numel() for p in one.parameters())
    costs = [counted_macs(member, torch.zeros(1, 1, 8, 8)) for member in members]
    assert costs == [2 * 2 * 9 * 6 + 30, 4 * 4 * 9 * 6 + 30]
    whole = Committee(members, costs).with_rule((0, 1), (0.5,))
    whole = with_onnx_members(whole, PREPROCESS, CARD, images)
    whole = whole.with_rule((0, 1), (float(np.median(whole.confidences(images)[0])) + 1e-5,))
    export_cascade(whole, tmp_path / "cascade.onnx", CARD, images)
    assert set(whole.predict(images).exits) == {1, 2}


# --- of a run -------------------------------------------------------------------------------------------------------------------

TINY = {"threads": 1, "search.epochs": 1, "search.warmup_epochs": 0, "search.candidates": 2, "search.finalists": 1, "train.epochs": 6}


@pytest.fixture(scope="module")
def searched(niwaki_command, tmp_path_factory):
    """(folder, answer) of one command: two budgets and their cascade."""
    place = tmp_path_factory.mktemp("searched")
    (place / "family.py").write_text(
        "from niwaki import *\nw = Choice((4, 24), 'w')\n"
        "network = Network(Chain(conv_bn_act(w, stride=2), conv_bn_act(w, stride=2), GlobalPool(), Flatten(), Linear(10)), (1, 8, 8))\n"
    )
    settings = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    words = ["--set", f"network={place / 'family.py'}:network", "--set", 'budget=["macs<=3k", "macs<=60k"]', *settings]
    answer = niwaki_command("search", "--out", place / "run", *words, "--cascade", "accuracy>=largest-5%", "--json")
    assert answer.code == 0, answer.err
    return place / "run", answer


def test_one_command_gives_two_networks_and_their_cascade(searched, niwaki_command):
    folder, answer = searched
    made = answer.json["cascade"]
    assert [member["cost"] for member in made["members"]] == [row["macs"] for row in answer.json["budgets"]]
    count = len(ImageClassification(digits()).part("validation"))
    assert made["held_out"]["about"] == f"{count} of the validation part", "which neither network was trained on"
    assert made["test"]["about"] == "360 of the test part"
    assert made["held_out"]["accuracy"] >= made["largest"]["held_out_accuracy"] - 0.05
    assert made["test"]["average_cost"] == pytest.approx(np.dot(made["test"]["shares"], np.cumsum(made["test"]["costs"])))
    assert {path.name for path in folder.glob("cascade*")} == {"cascade.onnx", "cascade.json", "cascade"}
    assert '<h2 id="cascade">' in (folder / "report.html").read_text()
    images, labels = digits().test_images, digits().test_labels
    np.savez(folder.parent / "test.npz", images=images, labels=labels)
    found = niwaki_command("predict", folder / "cascade.onnx", folder.parent / "test.npz", "--json").json
    assert found["accuracy"] == pytest.approx(made["test"]["accuracy"])
    assert found["exit_shares"].get("1", 0) == pytest.approx(made["test"]["shares"][0])
    again = niwaki_command("resume", folder, "--quiet")
    assert "cascade for accuracy>=largest-5%: " in again.out


def test_export_makes_a_cascade_for_another_demand_and_keeps_it_in_the_report(searched, niwaki_command, tmp_path):
    folder = shutil.copytree(searched[0], tmp_path / "run")
    costs = [member["cost"] for member in searched[1].json["cascade"]["members"]]
    budget = round((costs[0] + sum(costs)) / 2)
    made = niwaki_command(
        "export", folder, "--cascade", f"macs<={budget}", "--confidence", "entropy", "--average", "probabilities", "--json"
    ).json
    assert made["held_out"]["average_cost"] <= budget
    assert (made["confidence"], made["average"]) == ("entropy", "probabilities")
    assert f"macs&lt;={budget}" in (folder / "report.html").read_text()
    told = niwaki_command("export", folder, "--cascade", "accuracy>=largest-5% and worst(macs)<=100%", "--out", folder)
    page = (folder / "report.html").read_text()
    assert "worst(macs)&lt;=100%" in page, "the report tells of what lies in its folder, however it came there"
    assert f"The answer is {json.loads((folder / 'cascade.json').read_text())['answer']}." in page
    assert "one example at a time in onnxruntime" in told.out
    assert "choosing members and thresholds" in told.err
    assert json.loads((folder / "cascade.json").read_text())["test"]["worst_cost"] <= costs[1]


def test_a_run_whose_cascade_cannot_be_says_so_each_time_and_keeps_its_networks(searched, niwaki_command, tmp_path):
    folder = shutil.copytree(searched[0], tmp_path / "run")
    before = (folder / "model.onnx").read_bytes()
    for file in (*folder.glob("cascade.*"), *folder.glob("cascade/*")):
        file.unlink()
    with closing(open_store(folder / "run.sqlite")) as store:
        store.set_fact("result cascade", {"error": "no committee is right so often"})
    for _ in range(2):
        again = niwaki_command("resume", folder)
        assert again.code == 2
        assert "no committee is right so often. The networks themselves are finished: `niwaki export" in again.err
    assert (folder / "model.onnx").read_bytes() == before
    assert niwaki_command("explain", folder, "--epochs", 0, "--quiet").code == 0, "the networks are there to be explained"
    assert niwaki_command("export", folder, "--cascade", "accuracy>=largest-5%").code == 0
    assert niwaki_command("resume", folder).code == 0


def test_onnx_files_are_members_too_with_examples_of_their_own(searched, tmp_path):
    images, labels = digits().images[:400], digits().labels[:400]
    np.savez(tmp_path / "held.npz", images=images, labels=labels)
    files = [searched[0] / "model.onnx", searched[0] / "budget-2" / "model.onnx"]
    made = niwaki.cascade(files, "macs<=150%", data=tmp_path / "held.npz", out=tmp_path)
    assert made.held_out.examples + made.test.examples == 400
    assert made.held_out.average_cost <= 1.5 * made.summary["largest"]["cost"]
    assert made.front[0][0] <= made.front[-1][0]
    assert "accuracy" in str(made)
    with pytest.raises(CommitteeError, match="ONNX files come without examples"):
        niwaki.cascade(files, "macs<=150%")


def test_a_run_at_two_resolutions_is_a_self_cascade(searched, tmp_path):
    made = niwaki.cascade(searched[0], "accuracy>=largest-5%", resolutions=(6,), out=tmp_path)
    assert [member["name"] for member in made.summary["members"]] == ["run at 6", "run/budget-2 at 6"]
    assert made.summary["largest"]["cost"] < searched[1].json["cascade"]["largest"]["cost"]
    assert (tmp_path / "cascade.onnx").is_file()


def test_a_cascade_of_one_network_is_refused(searched, niwaki_command, tmp_path):
    folder = shutil.copytree(searched[0], tmp_path / "run", ignore=shutil.ignore_patterns("budget-*", "cascade*"))
    answer = niwaki_command("export", folder, "--cascade", "accuracy>=largest-1%")
    assert answer.code == 2
    assert "error: a cascade is made of several networks, such as those of a run with several budgets" in answer.err
    assert not list(folder.glob("cascade*"))


def test_a_run_that_was_not_searched_for_a_cascade_has_only_its_test_part(searched, tmp_path):
    folder = shutil.copytree(searched[0], tmp_path / "run")
    content = json.loads((folder / "config.json").read_text())
    content["plan"]["config"]["cascade"] = content["asked"]["config"]["cascade"] = None
    (folder / "config.json").write_text(json.dumps(content))
    made = niwaki.cascade(folder, "accuracy>=largest-5%")
    assert made.held_out.examples + made.test.examples == 360
    assert 170 <= made.test.examples <= 190


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cascade", "accuracy>=largest+1%"), "not understood"),
        (("--cascade", "params<=1M"), "counted in macs or"),
        (("--cascade", "macs<=1M and accuracy>=97%"), "one of the two"),
        (("--cascade", "macs<=1"), "the cheapest costs"),
        (("--cascade", "accuracy>=100%"), "the best reaches"),
        (("--cascade", "macs<=50%", "--cost", "params"), "not in 'params'"),
        (("--cascade", "macs<=50%", "--confidence", "margin"), "no confidence function 'margin'"),
        (("--cascade", "macs<=50%", "--data", "nowhere.npz"), "nowhere.npz cannot be read"),
        (("--cascade", "macs<=50%", "--cost", "latency(onnxruntime)"), "'macs<=50%' limits macs, so that is the cost"),
        (("--cascade", "macs<=50%", "--average", "votes"), "cannot be averaged by 'votes'"),
        (("--cost", "latency(onnxruntime)", "--average", "last"), "--cost, --average: these are of a cascade, and --cascade says"),
    ],
)
def test_the_command_says_what_it_cannot_do(searched, niwaki_command, tmp_path, words, message):
    found = niwaki_command("export", searched[0], *words, *(("--out", tmp_path) if words[0] == "--cascade" else ()))
    assert found.code == 2
    assert message in found.err


def test_a_search_for_a_cascade_of_one_budget_is_refused_before_any_work(niwaki_command, tmp_path):
    found = niwaki_command("search", "--set", "budget=macs<=60k", "--cascade", "macs<=50%", "--out", tmp_path / "run")
    assert found.code == 2
    assert "the networks of several budgets" in found.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("accuracy>=97.5%", (0.975, None, None, None)),
        ("accuracy >= 0.9 and worst(macs)<=2M", (0.9, None, None, "macs<=2000000")),
        ("accuracy>=largest", (None, 0.0, None, None)),
        ("accuracy>=largest - 0.5%", (None, 0.005, None, None)),
        ("latency(onnxruntime)<=50%", (None, None, "latency(onnxruntime)<=50%", None)),
    ],
)
def test_a_demand_is_read(text, told):
    found = parse_demand(text)
    assert (found.accuracy, found.below_largest) == pytest.approx(told[:2])
    assert tuple(one and str(one) for one in (found.limit, found.worst)) == told[2:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy>=largest-1", "one point below the largest is largest-1%"),
        ("accuracy>=97", "a share, from 0 to 1, or from 0 to 100 %"),
        ("accuracy>=97% and macs<=1M", "one of the two"),
        ("accuracy>=97% and accuracy>=largest", "says twice what the accuracy shall be"),
        ("macs<=1M and macs<=2M", "says twice what the average cost shall be"),
        ("macs<=1M and worst(latency(onnxruntime))<=2ms", "in the same cost as the average"),
        ("latency(onnxruntime)+2std<=1ms", "without a deviation"),
        ("fast", "a demand is one such as"),
    ],
)
def test_a_demand_that_cannot_be_is_refused(text, message):
    with pytest.raises(CommitteeError, match=re.escape(message)):
        parse_demand(text)


# --- the experiment --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "counted"), [(2, 2_464), (4, 7_232), (24, 181_632)])
def test_the_networks_of_the_experiment_cost_what_was_published(width, counted):
    assert counted_macs(experiment.network(width).eval(), torch.zeros(1, 1, 8, 8)) == experiment.macs(width) == counted
    assert experiment.width_within(counted) == width
    assert experiment.width_within(counted - 1) == width - 1


def test_leaving_by_chance_is_worth_what_random_picks_are_worth_on_average():
    logits, labels = answers((1, 3), count=100)
    found = experiment.by_confidence(logits, labels, 0.5)
    rng, first, both = np.random.default_rng(0), logits[0].argmax(1) == labels, sum(logits).argmax(1) == labels
    drawn = [np.where(rng.permutation(100) < 50, first, both).mean() for _ in range(4000)]
    assert found["chance"] == pytest.approx(np.mean(drawn), abs=0.003)
    surest = np.argsort(-softmax(logits[0]).max(1))[:50]
    assert found["max_probability"] == pytest.approx((both.sum() - both[surest].sum() + first[surest].sum()) / 100)


def test_the_claims_follow_from_the_figures_alone():
    seeds = [
        {
            "large": {"validation": 0.99, "test": 0.98}, "small": {"2": 0.7, "4": 0.9},
            **{way: {"accuracy": 0.97, "cost": 20_000.0 + 100 * at, "held_out": 0.98, "most": 0.985, "width": 7, "alone": 0.95} for way in ("logits", "last")},
            "confidences": {share: {"max_probability": 0.9, "gap": 0.9, "entropy": 0.89, "chance": 0.85} for share in ("0.5", "0.7")},
        }
        for at in range(3)
    ]  # fmt: skip
    timings = {f"timing {at}": {"ratio": 0.5, "first": 0.6, "same": 1.0, "difference": 1e-6} for at in range(3)}
    results = {"plan": {"seeds": 3, "train": 1000, "validation": 300, "epochs": 30}, "quick": False, "timings": timings}
    results["jobs"] = {f"split {at}": one for at, one in enumerate(seeds)}
    verdicts = [row.verdict for row in experiment.section_of(results).claims]
    assert verdicts == ["holds"] * 11 + ["not testable here"]
    for one in seeds:
        one["last"] |= {"accuracy": 0.94, "cost": 50_000.0}
    timings["timing 0"]["same"] = 0.99
    verdicts = [row.verdict for row in experiment.section_of(results).claims]
    assert verdicts[:7] == ["holds"] * 3 + ["does not hold"] * 4
    assert (
        experiment.section_of(results)
        .about[1]
        .startswith("The large network's own accuracy on validation was out of the pair's reach in 3 of 3")
    )


# --- what is refused ------------------------------------------------------------------------------------------------------------


def test_bad_input_is_named(images):
    logits, labels = answers((1, 2))
    pair = committee(logits, (1, 3))
    for wrong, message in (
        (lambda: Committee([], ()), "at least one model"),
        (lambda: Committee([len], (1, 2)), "a cost for each"),
        (lambda: Committee([len], (0,)), "above 0"),
        (lambda: Committee([3], (1,)), "not a int"),
        (lambda: Committee(["nowhere.onnx"], (1,)), "no file nowhere.onnx"),
        (lambda: Committee([b"no model"], (1,)), "cannot be loaded"),
        (lambda: committee(logits, (1, 3), average="votes"), "logits or probabilities or last"),
        (lambda: pair.predict(np.arange(3)), "no thresholds yet"),
        (lambda: pair.report(), "nothing to report"),
        (lambda: pair.with_rule((0, 1), ()), "a threshold each"),
        (lambda: pair.with_rule((0, 2), (0.5,)), r"names the members \(0, 2\)"),
        (lambda: pair.fit(logits, labels), "one of the two"),
        (lambda: pair.fit(logits, labels, budget=1, target=0.5), "one of the two"),
        (lambda: pair.fit(logits, labels, target=97), "from 0 to 1"),
        (lambda: pair.fit(logits, labels, budget=0.5), "the cheapest costs 1"),
        (lambda: pair.fit(logits, labels, budget=2, worst_case=0.5), "worst case of 0.5"),
        (lambda: pair.fit(logits[:1], labels, budget=2), "logits of 1 models"),
        (lambda: pair.fit([logits[0], logits[1][:9]], labels, budget=2), "one shape"),
        (lambda: pair.fit([logits[0], logits[1] * np.nan], labels, budget=2), "NaN"),
        (lambda: pair.fit(logits, labels + 1, budget=2), r"within 0\.\.4"),
        (lambda: pair.fit(logits, labels / 2, budget=2), "float64"),
        (lambda: pair.with_rule((0,), ()).predict(np.arange(0)), "nothing to predict"),
        (lambda: Rule((), ()), "0 members"),
        (lambda: Sequences(longest=0), "at least 1 member"),
    ):
        with pytest.raises(CommitteeError, match=message):
            wrong()


def test_what_no_file_can_hold_is_refused(exported, images, tmp_path):
    own = replace(exported, confidence=lambda p: p[:, 0])
    for wrong, message in (
        (lambda: cascade_model(replace(exported, rule=None), CARD), "no thresholds"),
        (lambda: cascade_model(own, CARD), "one of its own"),
        (lambda: cascade_model(replace(exported, models=(len, *exported.models[1:])), CARD), "small: members are ONNX models"),
        (lambda: export_cascade(exported, tmp_path / "a.onnx", CARD, images[:0]), "none were given"),
        (lambda: write_cascade_source(exported, tmp_path, CARD, images, []), "0 programs"),
    ):
        with pytest.raises(ExportError, match=message):
            wrong()
    fixed = onnx.load_from_string(exported.models[0].content)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    with pytest.raises(ExportError, match="batches of 1 only"):
        cascade_model(replace(exported, models=(OnnxMember(fixed.SerializeToString()), *exported.models[1:])), CARD)
