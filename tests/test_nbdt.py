"""Neural-backed decision trees: hierarchies, soft and hard inference against loops, losses, schedules, the last layer found, paths."""

import copy
import json
import math
from itertools import combinations, pairwise
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from niwaki.explain.hierarchy import (
    Hierarchy,
    HierarchyError,
    ancestor_tree,
    flat_tree,
    induced_tree,
    labelled_tree,
    nested_tree,
    random_tree,
)
from niwaki.explain.nbdt import (
    PAPER,
    RELEASED,
    NbdtError,
    NeuralTree,
    Ramp,
    Supervised,
    Supervision,
    decision_paths,
    edge_log_probabilities,
    final_linear,
    hard,
    hard_loss,
    hard_paths,
    neural_tree,
    path_text,
    released_soft_loss,
    soft,
    soft_loss,
    train_rebuilding,
    tree_accuracy,
    tune_tree,
    visited,
)
from niwaki.run.experiments import nbdt as experiment
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.train.recipe import Recipe

NAMES = ("car", "cat", "dog", "ship")
HAND = nested_tree({"animal": ["cat", "dog"], "vehicle": ["car", "ship"]}, NAMES)  # 4 animal, 5 vehicle, 6 root
UNEVEN = nested_tree([["a", "b", "c"], "d", ["e", ["f", "g"]]], tuple("abcdefg"))
LOGITS = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * 3


def some_trees(count):
    names = tuple(map(str, range(count)))
    weight = torch.randn(count, 5, generator=torch.Generator().manual_seed(count))
    return {"induced": induced_tree(weight, names), "random": random_tree(names, Random(3)), "flat": flat_tree(names)}


def node_logits(tree, logits, node):
    return torch.stack([logits[leaf] for leaf in tree.leaves(node)]).mean()


def soft_by_hand(tree, logits):
    """Probabilities of the classes of one example, by walking down every path."""
    found = []
    for leaf in range(len(tree.classes)):
        probability, path = 1.0, tree.path(leaf)
        for above, node in pairwise(path):
            values = torch.stack([node_logits(tree, logits, child) for child in tree.children(above)])
            probability *= float(values.softmax(0)[tree.children(above).index(node)])
        found.append(probability)
    return torch.tensor(found)


def hard_by_hand(tree, logits):
    node = tree.root
    while node >= len(tree.classes):
        node = max(tree.children(node), key=lambda child: float(node_logits(tree, logits, child)))
    return node


# --- hierarchies ---


@pytest.mark.parametrize("count", [2, 3, 10, 57])
@pytest.mark.parametrize("kind", ["induced", "random"])
def test_a_binary_tree_of_k_classes_has_k_leaves_k_minus_1_decisions_and_one_root(count, kind):
    tree = some_trees(count)[kind]
    assert len(tree.inner) == count - 1
    assert all(len(children) == 2 for children in tree.inner)
    assert sorted(child for children in tree.inner for child in children) == list(range(2 * count - 2))
    assert tree.leaves(tree.root) == tuple(range(count))
    assert all(tree.path(leaf)[0] == tree.root and tree.path(leaf)[-1] == leaf for leaf in range(count))


def test_the_induced_tree_merges_what_raises_the_sum_of_squares_least():
    """Ward by definition: of all pairs of clusters, the one whose union adds least to the squared distances from the means."""
    weight = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)).double()

    def spread(leaves):
        rows = weight[list(leaves)]
        return float((rows - rows.mean(0)).square().sum())

    clusters, merges = {(leaf,) for leaf in range(8)}, []
    while len(clusters) > 1:
        pair = min(combinations(sorted(clusters), 2), key=lambda two: spread(two[0] + two[1]) - spread(two[0]) - spread(two[1]))
        clusters = clusters - set(pair) | {tuple(sorted(pair[0] + pair[1]))}
        merges.append(tuple(sorted(pair[0] + pair[1])))
    tree = induced_tree(weight)
    assert [tree.leaves(node) for node in range(8, 15)] == merges


def test_raw_rows_and_normalised_ones_may_make_other_trees():
    rows = [[1.0, 0.0], [10.0, 0.2], [1.0, 1.0]]
    assert induced_tree(rows).leaves(3) == (0, 2)  # near each other
    assert induced_tree(rows, normalise=True).leaves(3) == (0, 1)  # of one direction
    with pytest.raises(HierarchyError, match="no direction"):
        induced_tree([[0.0, 0.0], [1.0, 0.0]], normalise=True)
    with pytest.raises(HierarchyError, match="finite"):
        induced_tree([[math.nan], [1.0]])


@pytest.mark.parametrize("tree", [HAND, UNEVEN, *some_trees(10).values()], ids=["hand", "uneven", "induced", "random", "flat"])
def test_a_hierarchy_comes_back_from_its_json_as_it_was(tree):
    assert Hierarchy.from_json(json.loads(json.dumps(tree.to_json()))) == tree


def test_nodes_that_are_no_tree_are_refused():
    for inner, words in (
        (((0, 1),), "node 2 has no parent"),
        (((0,), (1, 2), (3, 4)), "nothing to decide"),
        (((0, 1), (0, 2)), "two parents"),
        (((0, 4), (1, 2)), "children come before"),
    ):
        with pytest.raises(HierarchyError, match=words):
            Hierarchy(("a", "b", "c"), inner)
    with pytest.raises(HierarchyError, match="two classes or more"):
        flat_tree(("a",))
    with pytest.raises(HierarchyError, match="'bird' in the tree is none of the classes"):
        nested_tree(["cat", "bird"], NAMES)
    with pytest.raises(HierarchyError, match="format 9"):
        Hierarchy.from_json(HAND.to_json() | {"format": 9})


def test_a_node_is_named_after_the_nearest_idea_that_is_shared_and_not_taken():
    ideas = {
        "cat": ["feline", "carnivore", "animal"], "dog": ["canine", "carnivore", "animal"], "horse": ["animal"], "ship": ["craft"],
    }  # fmt: skip
    tree = labelled_tree(nested_tree([[["cat", "dog"], "horse"], "ship"], tuple(ideas)), ideas)
    assert [tree.label(node) for node in range(7)] == ["cat", "dog", "horse", "ship", "carnivore", "animal", "cat, dog, horse, ship"]
    chained = nested_tree([["cat", "dog"], "horse"], ("cat", "dog", "horse"))
    both = labelled_tree(chained, {name: ["animal"] for name in chained.classes})
    assert [both.label(3), both.label(4)] == ["animal", "cat, dog, horse"]  # used once
    assert HAND.label(4) == "animal"
    assert HAND.join([1, 2]) == 4
    assert HAND.join([0, 1]) == HAND.root


def test_a_tree_of_ideas_parts_where_ideas_part_and_has_no_node_with_one_child():
    ideas = {
        "ship": ["craft"], "cat": ["feline", "carnivore", "animal"], "dog": ["canine", "carnivore", "animal"], "horse": ["animal"],
        "barge": ["craft"], "stone": [],
    }  # fmt: skip
    tree = ancestor_tree(tuple(ideas), ideas)
    told = {tree.label(node): {tree.label(child) for child in tree.children(node)} for node in range(6, tree.root)}
    assert told == {"craft": {"ship", "barge"}, "carnivore": {"cat", "dog"}, "animal": {"carnivore", "horse"}}
    assert {tree.label(child) for child in tree.children(tree.root)} == {"craft", "animal", "stone"}
    assert ancestor_tree(("cat", "dog"), ideas).label(2) == "carnivore", "the nearest idea of those that all share"
    with pytest.raises(HierarchyError, match="no ancestors are given of the class 'car'"):
        ancestor_tree(NAMES, ideas)


# --- inference ---


def test_a_hand_made_tree_gives_the_numbers_of_its_closed_form():
    logits = torch.tensor([[1.0, 2.0, 4.0, -1.0]])  # car, cat, dog, ship: animal 3, vehicle 0
    sigmoid = lambda value: 1 / (1 + math.exp(-value))  # noqa: E731
    edges = edge_log_probabilities(HAND, logits).exp()[0]
    expected = {"car": sigmoid(2), "cat": sigmoid(-2), "dog": sigmoid(2), "ship": sigmoid(-2), "animal": sigmoid(3), "vehicle": sigmoid(-3)}
    assert {HAND.label(node): float(edges[node]) for node in range(6)} == pytest.approx(expected, abs=1e-6)
    assert soft(HAND, logits).exp()[0].tolist() == pytest.approx(
        [sigmoid(-3) * sigmoid(2), sigmoid(3) * sigmoid(-2), sigmoid(3) * sigmoid(2), sigmoid(-3) * sigmoid(-2)], abs=1e-6
    )
    (path,) = decision_paths(HAND, logits)
    assert path_text(HAND, path) == f"animal {100 * sigmoid(3):.1f} % > dog {100 * sigmoid(2):.1f} %"
    assert path.probability == pytest.approx(sigmoid(3) * sigmoid(2))


@pytest.mark.parametrize("tree", [UNEVEN, *some_trees(7).values()], ids=["uneven", "induced", "random", "flat"])
def test_soft_and_hard_inference_are_the_walks_down_the_tree(tree):
    found, taken = soft(tree, LOGITS), hard(tree, LOGITS)
    assert torch.allclose(found.exp().sum(1), torch.ones(40), atol=1e-6)
    for row, own, leaf in zip(LOGITS, found, taken.tolist(), strict=True):
        assert torch.allclose(own.exp(), soft_by_hand(tree, row), atol=1e-6)
        assert leaf == hard_by_hand(tree, row)
    for leaf, passed, path in zip(taken.tolist(), visited(tree, LOGITS), hard_paths(tree, LOGITS), strict=True):
        assert tuple(passed.nonzero().flatten().tolist()) == tuple(sorted(tree.path(leaf)))
        assert (tree.root, *path.nodes) == tree.path(leaf)
        assert path.predicted == leaf


def test_a_flat_tree_is_the_network_itself():
    tree = some_trees(7)["flat"]
    assert torch.equal(soft(tree, LOGITS), F.log_softmax(LOGITS, 1))
    assert torch.equal(hard(tree, LOGITS), LOGITS.argmax(1))


def test_means_of_weights_and_means_of_logits_are_one():
    generator = torch.Generator().manual_seed(4)
    weight, bias, z = (torch.randn(*shape, generator=generator) for shape in ((7, 5), (7,), (40, 5)))
    for tree in (UNEVEN, some_trees(7)["induced"]):
        of_rows = torch.stack([weight[list(tree.leaves(node))].mean(0) for node in range(tree.root)])
        biases = torch.stack([bias[list(tree.leaves(node))].mean() for node in range(tree.root)])
        values = z @ of_rows.T + biases
        edges = edge_log_probabilities(tree, z @ weight.T + bias)
        for children in tree.inner:
            assert torch.allclose(edges[:, list(children)], F.log_softmax(values[:, list(children)], 1), atol=1e-5)


def test_hard_is_soft_where_every_decision_is_sure():
    sure, seen = 0, torch.randn(4000, 7, generator=torch.Generator().manual_seed(5)) * 40
    for tree in some_trees(7).values():
        edges = edge_log_probabilities(tree, seen).exp()
        decided = torch.stack([edges[:, list(children)].amax(1) for children in tree.inner], 1).amin(1) > 0.99
        assert torch.equal(hard(tree, seen)[decided], soft(tree, seen).argmax(1)[decided])
        sure += int(decided.sum())
    assert sure > 1000
    tree = nested_tree([["a", "b"], ["c", "d"]], tuple("abcd"))
    unsure = torch.tensor([[0.3, 0.2, 2.5, -2.5]])  # left by 0.56, but evenly split there; c has nearly all of the right
    assert (int(hard(tree, unsure)), int(soft(tree, unsure).argmax())) == (0, 2)


def test_a_path_of_many_sure_decisions_does_not_underflow():
    names = tuple(map(str, range(200)))
    chain = Hierarchy(names, ((0, 1), *((200 + i, i + 2) for i in range(198))))
    logits = torch.zeros(1, 200)
    logits[0, 150:] = 40.0
    found = soft(chain, logits)
    assert bool(found.isfinite().all())
    assert float(found[0, 0]) < -1000


def test_logits_of_another_number_of_classes_are_refused():
    with pytest.raises(NbdtError, match=r"logits \(B, 7\)"):
        soft(UNEVEN, torch.zeros(2, 4))


# --- wrapping ---


class Odd(nn.Module):
    """Its last layer is a plain parameter, and a layer of as many rows stands before and an unused one after it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.rows = nn.Parameter(torch.randn(4, 8))
        self.between = nn.Linear(4, 8)
        self.unused = nn.Linear(8, 4)

    def forward(self, x):
        return torch.tanh(self.between(self.first(x))) @ self.rows.T + 0.3


def test_the_last_linear_layer_is_found_however_it_is_written():
    torch.manual_seed(0)
    odd, example = Odd(), torch.randn(3, 6)
    name, weight = final_linear(odd, example)
    assert name == "rows"
    assert torch.equal(weight, odd.rows.detach())
    images = torch.randn(2, 3, 8, 8)
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert final_linear(pooled, images)[0] == "3.weight"
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4)).requires_grad_(False)
    assert final_linear(frozen, images)[0] == "3.weight"
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    for last, words in ((nn.Tanh(), "classes$"), (nn.Softmax(1), "leave its softmax out, or write log_softmax")):
        with pytest.raises(NbdtError, match=f"the model does not end in a linear layer .*{words}"):
            final_linear(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), last), images)
    with pytest.raises(NbdtError, match="does not end in a linear layer"):
        final_linear(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Tanh(), nn.LogSoftmax(1)), images)
    with pytest.raises(NbdtError, match=r"the model does not take inputs \(2, 3, 9, 9\): mat1 and mat2"):
        neural_tree(frozen, torch.randn(2, 3, 9, 9), NAMES)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_a_classifier_that_gives_log_probabilities_is_the_same_tree(scale):
    torch.manual_seed(0)
    plain = Odd().eval()
    plain.rows.data *= scale
    x = torch.randn(50, 6)
    tree, logs = neural_tree(plain, x, NAMES), neural_tree(nn.Sequential(plain, nn.LogSoftmax(1)), x, NAMES)
    assert logs.hierarchy == tree.hierarchy
    assert torch.allclose(logs(x), tree(x), atol=1e-5 * scale)
    assert torch.equal(hard(logs.hierarchy, logs.module(x)), hard(tree.hierarchy, plain(x)))


def test_wrapping_adds_no_parameter_and_gives_the_log_probabilities_of_the_tree():
    torch.manual_seed(0)
    module, x = Odd().eval(), torch.randn(5, 6)
    tree = neural_tree(module, x, NAMES)
    assert [id(parameter) for parameter in tree.parameters()] == [id(parameter) for parameter in module.parameters()]
    assert set(tree.state_dict()) == {f"module.{name}" for name in module.state_dict()}
    assert tree.hierarchy == induced_tree(module.rows.detach(), NAMES)
    assert torch.allclose(tree(x), soft(tree.hierarchy, module(x)), atol=1e-6)
    exported = torch.export.export(tree, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), strict=False).module()
    assert torch.allclose(exported(x[:1]), tree(x)[:1], atol=1e-6)


@pytest.mark.parametrize("tree", [UNEVEN, *some_trees(7).values()], ids=["uneven", "induced", "random", "flat"])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_wrapped_network_gives_what_soft_inference_does(tree, scale):
    """Two forms of one formula: binary decisions by softplus, others by log-softmax; with sure decisions, too."""
    wrapped = NeuralTree(nn.Identity(), tree)
    assert wrapped.is_binary == (tree not in (UNEVEN, some_trees(7)["flat"]))
    assert torch.allclose(wrapped(scale * LOGITS), soft(tree, scale * LOGITS), rtol=1e-5, atol=1e-5 * scale)


def test_a_tree_of_a_tree_is_refused():
    tree = NeuralTree(Odd(), HAND)
    with pytest.raises(NbdtError, match="a tree already"):
        NeuralTree(tree, HAND)
    with pytest.raises(NbdtError, match="a tree already"):
        tune_tree(tree, TASK, some_trees(10)["flat"], Recipe(epochs=1), TASK.part("train")[:20])


# --- tree supervision ---


def test_the_soft_loss_is_the_mean_of_minus_log_p_and_the_released_one_takes_probabilities_for_logits():
    targets = torch.arange(40) % 7
    by_hand = torch.stack([soft_by_hand(UNEVEN, row) for row in LOGITS])
    assert float(soft_loss(UNEVEN, LOGITS, targets)) == pytest.approx(float(-by_hand[range(40), targets].log().mean()), rel=1e-5)
    released = -torch.log_softmax(by_hand, 1)[range(40), targets].mean()
    assert float(released_soft_loss(UNEVEN, LOGITS, targets)) == pytest.approx(float(released), rel=1e-5)


def test_the_hard_loss_is_the_sum_over_the_decisions_on_the_path_of_the_label():
    targets, total = torch.arange(40) % 7, 0.0
    for row, target in zip(LOGITS, targets.tolist(), strict=True):
        for above, node in pairwise(UNEVEN.path(target)):
            values = torch.stack([node_logits(UNEVEN, row, child) for child in UNEVEN.children(above)])
            total += float(F.cross_entropy(values[None], torch.tensor([UNEVEN.children(above).index(node)])))
    assert float(hard_loss(UNEVEN, LOGITS, targets)) == pytest.approx(total / (40 * len(UNEVEN.inner) / 2), rel=1e-5)


def test_weights_are_those_configured_in_the_first_and_the_last_epoch():
    for supervision in (PAPER, RELEASED, Supervision(own=Ramp(0.7, 0.2, 2.0), tree=Ramp(0.1, 3.0, 0.5))):
        for ramp in (supervision.own, supervision.tree):
            assert (ramp.at(0, 30), ramp.at(29, 30)) == (ramp.start, ramp.end)
    assert Ramp(1, 0, 2).at(5, 11) == pytest.approx(0.75)
    task = ImageClassification(digits())
    targets, logits = torch.tensor([3, 1]), torch.randn(2, 10)
    tree = some_trees(10)["induced"]
    first, last = (float(Supervised(task, tree, PAPER, epoch, 4).loss(logits, targets)) for epoch in (0, 3))
    assert first == pytest.approx(float(F.cross_entropy(logits, targets)))
    assert last == pytest.approx(0.5 * float(soft_loss(tree, logits, targets)))
    with pytest.raises(NbdtError, match="at least 0"):
        Ramp(-1, 0)
    with pytest.raises(NbdtError, match="over 4 classes, and the task has 10"):
        Supervised(task, HAND)


TASK = ImageClassification(digits())


def test_fine_tuning_brings_hard_inference_towards_the_network_and_a_tree_may_grow_along():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    part, recipe = TASK.part("train"), Recipe(epochs=8, lr=0.05, weight_decay=1e-4, label_smoothing=0.0)
    grown, hierarchy = train_rebuilding(module, TASK, recipe, part, classes=TASK.images.class_names, first=5, every=2, last=6)
    assert len(hierarchy.inner) == 9
    x, y = TASK.batch(TASK.part("validation"), torch.device("cpu"))
    shuffled = random_tree(hierarchy.classes, Random(0))
    before = tree_accuracy(shuffled, grown(x), y)
    seen = []
    tuned = tune_tree(
        copy.deepcopy(grown),
        TASK,
        shuffled,
        Recipe(epochs=6, lr=0.05, label_smoothing=0.0),
        part,
        after_epoch=lambda t: seen.append(t.epoch),
    )
    after = tree_accuracy(shuffled, tuned(x).detach(), y)
    assert seen == [1, 2, 3, 4, 5, 6]
    assert after["hard_accuracy"] > before["hard_accuracy"] + 0.1
    assert after["soft_accuracy"] > 0.7


# --- the claims ---


def some_results(soft=98.0, hard=88.0, random=65.0, footwear=5, descend=90.0, tree_s=1.02e-3):
    """What the experiment gives, made up: five seeds that hardly differ."""
    kinds = lambda value: {"soft": value, "hard": value}  # noqa: E731
    jobs = {"latency": {"network": 1e-3, "tree": tree_s}}
    for seed in range(5):
        own = {"network": 98.5 + 0.1 * seed, "untuned": kinds(hard + 0.1 * seed), "random": [kinds(random)] * 2, "normalised": kinds(90.0)}
        tuned = {name: kinds(soft + 0.1 * seed) for name in experiment.SUPERVISIONS}
        jobs[f"digits {seed}"] = {**own, "sgd": own, "tuned": tuned, "longer": {**kinds(80.0), "network": 98.9}}
        jobs[f"fashion {seed}"] = {
            "accuracy": 86.0, "footwear": seed < footwear, "chance": 0.01, "descend": descend + seed, "leaf_share": 22.2, "inner": [],
        }  # fmt: skip
    plan = {**experiment.Plan(seeds=5).to_json()}
    return {"method": "nbdt", "quick": False, "plan": plan, "machine": {}, "jobs": jobs}


@pytest.mark.parametrize(
    ("changed", "claim"),
    [
        ({"soft": 97.0}, 0),
        ({"hard": 95.0}, 1),
        ({"random": 80.0}, 2),
        ({"footwear": 3}, 3),
        ({"descend": 70.0}, 4),
        ({"tree_s": 1.2e-3}, 5),
    ],
)
def test_each_claim_holds_by_its_own_bar(changed, claim):
    good, bad = (experiment.section_of(some_results(**figures)) for figures in ({}, changed))
    assert [one.verdict for one in good.claims[:6]] == ["holds"] * 6
    assert [at for at, one in enumerate(bad.claims[:6]) if one.verdict == "does not hold"] == [claim]
    assert "normalised rows" in good.text()
