"""The network of a run read as a tree of decisions: tuned with tree supervision, told in the report, and exported beside the network."""

from __future__ import annotations

import copy
import hashlib
import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.deploy.card import ModelCard
from niwaki.deploy.export import capture, export_onnx
from niwaki.explain.hierarchy import Hierarchy, HierarchyError, induced_tree
from niwaki.explain.nbdt import NeuralTree, Path, decision_paths, final_linear, hard, soft, tree_accuracy, tune_tree, visited
from niwaki.run.folder import Folder, RunError, once
from niwaki.run.progress import Progress
from niwaki.run.search import AnyTask, plain
from niwaki.run.ship import CHECKED, class_names, shown_example, stored_test
from niwaki.store.files import atomic_write
from niwaki.task.tabular import Tabular
from niwaki.task.task import Part, derive_seed
from niwaki.train.loop import Training, predict
from niwaki.train.recipe import Recipe

NAME = "tree"  # of the result, the checkpoint and the files
SLOWER = 0.1  # of the learning rate of the training: 0.01 where that was 0.1, as the released code tunes
SHARE = 0.25  # of its epochs
DELIVERED = "the tree, soft inference"  # in tree.onnx
FAR = 0.05  # of accuracy: a tree that is further below its network is warned of
WAYS, WRONG = 9, 3  # examples that the page shows, and how many of them are mistakes


@dataclass(frozen=True)
class Trained:
    """A run's network as it was delivered. recipe, part: of its last training; card: of its exported form."""

    task: AnyTask
    module: nn.Module
    recipe: Recipe
    part: Part
    card: ModelCard
    seed: int
    device: str


def explain(trained: Trained, folder: Folder, progress: Progress, epochs: int | None, own: Hierarchy | None) -> dict[str, Any]:
    """The tree of the network as JSON, kept as the result of the run; tree.json and tree.onnx in its folder.

    epochs: of tree supervision; None: a quarter of those of the training; 0: the tree of the network as it is. own: a hierarchy in place of the
    induced one. Goes on where it was stopped.
    """
    task, recipe = trained.task, trained.recipe
    if isinstance(inside := plain(task), Tabular) and not inside.is_classification:
        raise RunError(f"the run in {folder.path} predicts a number; a tree of decisions is one over classes")
    asked = max(1, round(SHARE * recipe.epochs)) if epochs is None else epochs
    names = class_names(task) or tuple(map(str, range(task.outputs)))
    if own is not None and own.classes != names:
        raise HierarchyError(f"the tree is over {', '.join(own.classes)}; the run in {folder.path} knows {', '.join(names)}, in this order")
    source = "induced" if own is None else hashlib.sha256(json.dumps(own.to_json()).encode()).hexdigest()[:8]
    known = folder.store.fact(f"result {NAME}")
    if known is not None and (known["epochs"], known.get("source")) == (asked, source) and (folder.path / "tree.onnx").is_file():
        return known
    folder.store.set_fact(f"result {NAME}", None)
    device = torch.device(trained.device)
    network = copy.deepcopy(trained.module).to(device).eval()
    if own is None:
        example = task.batch(task.part("train")[:4], device)[0]
        hierarchy = induced_tree(final_linear(network, example)[1].cpu().numpy(), names)
    else:
        hierarchy = own
    tuned = network
    if asked:
        slower = replace(recipe, epochs=asked, lr=SLOWER * recipe.lr, label_smoothing=0.0)
        tuned = _tuned(trained, copy.deepcopy(network), hierarchy, slower, folder, progress, f"{NAME} {source} {asked}")
    _export(trained, NeuralTree(copy.deepcopy(tuned), hierarchy), folder)
    return once(folder, NAME, lambda: _facts(trained, hierarchy, network, tuned, asked, source))


def told(found: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
    """What the command prints of it."""
    return {
        "accuracy": dict(found["accuracy"]),
        "delivered": DELIVERED,
        "warning": _warning(dict(found["accuracy"]), found["epochs"]),
        "epochs": found["epochs"],
        "hierarchy": found["hierarchy"],
        "report": str(path / "report.html"),
    }


def _warning(accuracy: Mapping[str, float], epochs: int) -> str | None:
    """Where the tree that is delivered is far below its network."""
    below = accuracy["the network"] - accuracy[DELIVERED]
    if below <= FAR:
        return None
    return (
        f"the tree in tree.onnx (soft inference) is {100 * below:.1f} points below the network on the test part, after {epochs} epochs of tree "
        f"supervision; more --epochs may bring it nearer"
    )


def _tuned(
    trained: Trained, module: nn.Module, hierarchy: Hierarchy, recipe: Recipe, folder: Folder, progress: Progress, name: str
) -> nn.Module:
    """name: of the checkpoint."""
    progress.phase("tree supervision", recipe.epochs)

    def begin(training: Training) -> None:
        if (saved := folder.load(name)) is not None:
            training.load(*saved)
        progress.advance(training.epoch)

    def after_epoch(training: Training) -> None:
        progress.advance(training.epoch)
        if training.finished:
            folder.seal(name, training.state_dict())
        elif folder.due():
            folder.save(name, training.state_dict())

    return tune_tree(
        module, trained.task, hierarchy, recipe, trained.task.part(trained.part), seed=derive_seed(trained.seed, NAME),
        device=torch.device(trained.device), begin=begin, after_epoch=after_epoch,
    )  # fmt: skip


def _export(trained: Trained, tree: NeuralTree, folder: Folder) -> None:
    """tree.onnx, from stored examples to log probabilities of the classes: `niwaki predict` reads it; and tree.json, the hierarchy."""
    shipment = capture(tree.cpu().eval(), trained.task.preprocess(), stored_test(trained.task)[:CHECKED])
    export_onnx(shipment, folder.path / "tree.onnx", replace(trained.card, network=None))
    atomic_write(folder.path / "tree.json", json.dumps(tree.hierarchy.to_json(), indent=1) + "\n")


def _facts(trained: Trained, hierarchy: Hierarchy, network: nn.Module, tuned: nn.Module, epochs: int, source: str) -> dict[str, Any]:
    task = trained.task
    test = task.part("test")
    truth = task.labels(test)
    before, logits = (predict(module, task, test, device=trained.device) for module in (network, tuned))
    untuned, found = tree_accuracy(hierarchy, before, truth), tree_accuracy(hierarchy, logits, truth)
    accuracy = {"the network": float((before.argmax(1) == truth).float().mean())}
    if epochs:
        accuracy |= {"its tree, untuned, soft": untuned["soft_accuracy"], "its tree, untuned, hard": untuned["hard_accuracy"]}
    accuracy |= {DELIVERED: found["soft_accuracy"], "the tree, hard inference": found["hard_accuracy"]}
    taken, count = soft(hierarchy, logits).argmax(1), len(hierarchy.classes)
    paths, names = decision_paths(hierarchy, logits), hierarchy.classes
    warning = _warning(accuracy, epochs)
    made = "induced from the rows of the last layer (Ward)" if source == "induced" else "the one that was given"
    return {
        "hierarchy": hierarchy.to_json(),
        "epochs": epochs,
        "source": source,
        "accuracy": list(accuracy.items()),  # the store sorts the keys of mappings
        "passed": visited(hierarchy, logits).sum(0).tolist(),
        "seen": torch.bincount(truth, minlength=count).tolist(),
        "right": torch.bincount(truth[hard(hierarchy, logits) == truth], minlength=count).tolist(),
        "made": (
            f"The hierarchy is {made}, and the network was tuned with tree supervision for {epochs} epochs, as a copy: the delivered network is as it was. Its tree is in tree.onnx, which gives log probabilities by soft inference, and tree.json."
            if epochs
            else f"The hierarchy is {made}; nothing was tuned. The tree is in tree.onnx, which gives log probabilities by soft inference, and tree.json."
        )
        + (f" Warning: {warning}." if warning else ""),
        "ways": [_way(task, at, paths[at], names, int(truth[at])) for at in _picked(truth, taken, paths)],
    }


def _picked(truth: Tensor, taken: Tensor, paths: list[Path]) -> list[int]:
    """The surest mistakes, then of each class in turn the first example that is right: not the best, nor the worst."""
    wrong = sorted((taken != truth).nonzero().flatten().tolist(), key=lambda at: -paths[at].probability)[:WRONG]
    firsts = [int(found[0]) for label in truth.unique() if len(found := ((truth == label) & (taken == truth)).nonzero().flatten())]
    return [*firsts[: WAYS - len(wrong)], *wrong]


def _way(task: AnyTask, at: int, path: Path, names: tuple[str, ...], label: int) -> dict[str, Any]:
    example = {**shown_example(task, at), "label": names[label], "predicted": names[path.predicted], "probability": path.probability}
    return {"example": example, "nodes": list(path.nodes), "probabilities": list(path.probabilities)}
