"""The network of a run as a tree: the command, what it leaves in the folder, and the section of the report."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from niwaki.explain.hierarchy import Hierarchy, HierarchyError, flat_tree
from niwaki.report.decision_tree import tree_picture, way_card
from niwaki.report.page import render
from niwaki.report.record import Example, Record, RecordError, Tree, Way
from niwaki.run import explained
from niwaki.run.explaining import explain_run
from niwaki.run.folder import Folder, RunError
from niwaki.task.embedded import digits

TREE = Tree(
    ("car", "cat", "dog", "ship"), ((1, 2), (0, 3), (4, 5)), ("animal", "", ""), (20, 30, 40, 10, 70, 30, 100), (20, 35, 35, 10), (18, 30, 35, 9),
    {"the network": 0.95, "the tree, soft inference": 0.92},
    (Way(Example("AAAA", "cat", "dog", 0.6), (4, 2), (0.9, 0.66)), Way(Example("", "car", "car", 0.9, "wheels 4"), (5, 0), (0.95, 0.94))),
    "made by hand",
)  # fmt: skip


def test_the_picture_draws_every_decision_as_thick_as_it_is_passed():
    drawn = tree_picture(TREE)
    assert drawn.startswith("<svg")
    assert drawn.count("<path") == 6
    assert drawn.count("<circle") == 3
    widths = {float(part.split('"')[0]) for part in drawn.split('stroke-width="')[1:]}
    assert max(widths) == pytest.approx(0.7 * 13.0)
    assert "animal" in drawn
    assert "18 of 20 test examples find it" in drawn
    assert [name for _, name in sorted((drawn.index(f">{name}<"), name) for name in TREE.classes)] == ["cat", "dog", "car", "ship"]


def test_a_way_tells_each_decision_what_else_there_was_and_where_it_went_astray():
    wrong, right = (way_card(TREE, way) for way in TREE.ways)
    assert wrong.index("animal") < wrong.index("not car, ship") < wrong.index("<li class=stray>") < wrong.index("not cat")
    assert "it is cat" in wrong
    assert "stray" not in right
    assert "wheels 4" in right
    assert "<img" not in right


def test_the_page_has_the_section_where_the_run_has_a_tree_and_escapes_what_stands_in_it():
    assert 'id="tree"' not in render(Record("plain"))
    odd = replace(TREE, classes=("<b>", "cat", "dog", "ship"), made="<script>")
    page = render(Record("with a tree", tree=odd))
    assert 'id="tree"' in page
    assert "<script" not in page
    assert "&lt;b&gt;" in page
    with pytest.raises(RecordError, match="a count for each"):
        replace(TREE, passed=(1, 2))


def test_the_command_reads_a_run_as_a_tree_and_shows_it_in_the_report(finished, niwaki_command, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    before = (folder / "model.onnx").read_bytes()
    answer = niwaki_command("explain", folder, "--epochs", 1, "--json")
    assert answer.code == 0, answer.err
    tree = Hierarchy.from_json(json.loads((folder / "tree.json").read_text()))
    assert answer.json["hierarchy"] == tree.to_json()
    assert tree.classes == digits().class_names
    page = (folder / "report.html").read_text()
    assert 'id="tree"' in page
    assert (folder / "model.onnx").read_bytes() == before

    images, labels = digits().test_images, digits().test_labels
    session = onnxruntime.InferenceSession((folder / "tree.onnx").read_bytes())
    (logs,) = session.run(None, {"images": images})
    assert np.allclose(np.exp(logs).sum(1), 1, atol=1e-4)
    assert (logs.argmax(1) == labels).mean() == pytest.approx(answer.json["accuracy"]["the tree, soft inference"], abs=1e-6)

    run = Folder(folder, read_only=True)
    found = run.store.fact("result tree")
    run.close()
    assert found["passed"][-1] == len(images)
    assert page.count('class="way"') == len(found["ways"]) >= 3
    for node, children in enumerate(tree.inner, start=len(tree.classes)):
        assert found["passed"][node] == sum(found["passed"][child] for child in children)
    assert sum(found["right"]) / len(images) == pytest.approx(answer.json["accuracy"]["the tree, hard inference"])
    labels = ["even or odd", *[""] * (len(tree.inner) - 1)]
    (tmp_path / "named.json").write_text(json.dumps({**tree.to_json(), "labels": labels}))
    named = niwaki_command("explain", folder, "--epochs", 0, "--hierarchy", tmp_path / "named.json", "--json").json
    assert named["hierarchy"] == {**tree.to_json(), "labels": labels}
    assert "even or odd" in (folder / "report.html").read_text()
    monkeypatch.setattr(explained, "FAR", -1.0)
    far = niwaki_command("explain", folder, "--epochs", 0)
    assert "of the tree, soft inference, which tree.onnx gives\n" in far.out
    assert "warning: the tree in tree.onnx (soft inference) is " in far.err
    assert "more --epochs may" in far.err
    assert "Warning: the tree in tree.onnx" in (folder / "report.html").read_text()
    assert explain_run(folder, epochs=1)["accuracy"] == answer.json["accuracy"]  # of the checkpoint, with the induced tree again
    stamp = (folder / "tree.onnx").stat().st_mtime_ns
    assert explain_run(folder, epochs=1)["accuracy"] == answer.json["accuracy"]  # done already
    assert (folder / "tree.onnx").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(("share", "warned"), [(0.95, False), (0.91, False), (0.89, True)])
def test_a_tree_far_below_its_network_is_warned_of(tmp_path, share, warned):
    accuracy = {"the network": 0.95, "the tree, soft inference": share, "the tree, hard inference": 0.5}
    warning = explained.told({"accuracy": accuracy, "epochs": 3, "hierarchy": {}}, tmp_path)["warning"]
    assert (warning is not None) == warned
    assert not warned or "6.0 points below the network on the test part, after 3 epochs" in warning


def test_what_cannot_be_explained_is_said(finished, tmp_path):
    with pytest.raises(RunError, match="is no run"):
        explain_run(tmp_path)
    with pytest.raises(RunError, match="none or more"):
        explain_run(finished.folder, epochs=-1)
    (tmp_path / "text.json").write_text("no tree")
    other = tmp_path / "other.json"
    other.write_text(json.dumps(flat_tree(("cat", "dog")).to_json()))
    cycle = tmp_path / "cycle.json"
    cycle.write_text(json.dumps({**flat_tree(("cat", "dog")).to_json(), "inner": [[0, 2]]}))
    for file, words in (
        (tmp_path / "text.json", "text.json is no hierarchy"),
        (tmp_path / "nowhere.json", "nowhere.json is no hierarchy"),
        (cycle, "cycle.json: node 2 has the child 2"),
        (other, "the tree is over cat, dog; the run in .* knows 0, 1"),
    ):
        with pytest.raises(HierarchyError, match=words):
            explain_run(finished.folder, hierarchy=file)
