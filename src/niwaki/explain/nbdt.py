"""Neural-backed decision trees: any classifier that ends in a linear layer, read as a tree of decisions (Wan et al., ICLR 2021, 2004.00221).

tree = neural_tree(module, images, class_names)             # the hierarchy induced from a trained network; no parameter is added
tuned = tune_tree(module, task, tree.hierarchy, FINE_TUNE, indices)
decision_paths(tree.hierarchy, tuned(images))

The logit of a node is the mean of the logits of the classes below it, which is the product of the features and the mean of their rows, biases
with it; a node chooses among its children by softmax. Soft inference multiplies along each path, hard inference follows the likelier child.
Products are sums of logarithms here: long paths underflow otherwise. A network trained with label smoothing, or whose logits are divided by a
temperature, gives other node probabilities for the same predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from niwaki.explain.hierarchy import Hierarchy, induced_tree
from niwaki.task.around import Around
from niwaki.task.task import Task
from niwaki.train.loop import Training, start
from niwaki.train.recipe import Recipe

FINE_TUNE = Recipe(
    epochs=20, lr=0.01, label_smoothing=0.0
)  # the released code's rate for a trained network; smoothing blunts the decisions


class NbdtError(ValueError):
    """A classifier that cannot be read as a tree, or a tree that is not of its classes."""


# ---------------------------------------------------------------- inference


class _Tables(NamedTuple):
    """mean: (nodes but the root, K), the share of each class in a node. groups: (inner nodes, most children), nodes, with the number of the
    root where a node has fewer. place: (nodes but the root,), where each stands in `groups`. paths: (K, nodes but the root), 1 on the path."""

    mean: Tensor
    groups: Tensor
    place: Tensor
    paths: Tensor


def tables_of(hierarchy: Hierarchy) -> _Tables:
    count, edges = len(hierarchy.classes), hierarchy.root
    mean, paths = torch.zeros(edges, count), torch.zeros(count, edges)
    for node in range(edges):
        below = list(hierarchy.leaves(node))
        mean[node, below] = 1 / len(below)
        paths[below, node] = 1.0
    most = max(map(len, hierarchy.inner))
    groups = torch.tensor([[*children, *[edges] * (most - len(children))] for children in hierarchy.inner])
    flat = groups.flatten().tolist()
    return _Tables(mean, groups, torch.tensor([flat.index(node) for node in range(edges)]), paths)


@lru_cache(maxsize=64)
def _on(hierarchy: Hierarchy, device: str) -> _Tables:
    return _Tables(*(table.to(device) for table in tables_of(hierarchy)))


def _edges(tables: _Tables, logits: Tensor) -> Tensor:
    values = logits.float() @ tables.mean.T  # (B, nodes but the root)
    padded = F.pad(values, (0, 1), value=float("-inf"))  # the root is no child: it stands where there is none
    return F.log_softmax(padded[:, tables.groups], -1).flatten(1)[:, tables.place]


def edge_log_probabilities(hierarchy: Hierarchy, logits: Tensor) -> Tensor:
    """log p(node | its parent), (B, nodes but the root), by node number. logits: (B, K) of the network."""
    _check(hierarchy, logits)
    return _edges(_on(hierarchy, str(logits.device)), logits)


def soft(hierarchy: Hierarchy, logits: Tensor) -> Tensor:
    """log p(class), (B, K): the sum of the log probabilities along its path."""
    return edge_log_probabilities(hierarchy, logits) @ _on(hierarchy, str(logits.device)).paths.T


def hard(hierarchy: Hierarchy, logits: Tensor) -> Tensor:
    """The class where the likelier child leads each time, (B,)."""
    return _descend(hierarchy, edge_log_probabilities(hierarchy, logits))


def _descend(hierarchy: Hierarchy, edges: Tensor) -> Tensor:
    groups, count = _on(hierarchy, str(edges.device)).groups, len(hierarchy.classes)
    padded = F.pad(edges, (0, 1), value=float("-inf"))
    best = groups.expand(len(edges), -1, -1).gather(2, padded[:, groups].argmax(2, keepdim=True))[:, :, 0]  # (B, inner): the child taken
    node = torch.full((len(edges),), hierarchy.root, device=edges.device)
    while bool((node >= count).any()):
        node = torch.where(node >= count, best.gather(1, (node - count).clamp(min=0)[:, None])[:, 0], node)
    return node


def visited(hierarchy: Hierarchy, logits: Tensor) -> Tensor:
    """Which nodes hard inference passes, bool (B, nodes), the root always."""
    taken = hard(hierarchy, logits)
    passed = _on(hierarchy, str(logits.device)).paths[taken] > 0
    return torch.cat([passed, torch.ones_like(passed[:, :1])], 1)


class _Binary(NamedTuple):
    """Of a tree of binary decisions; e = logits @ apart.T is how much logits are for the second child, (B, inner nodes).

    -log p(first child) = softplus(e) and -log p(second) = softplus(e) - e, so log p(class) = logits @ linear - softplus(e) @ turns: two products
    in place of gathering. apart: (inner nodes, K); linear: (K, K); turns: (inner nodes, K), -1 where the decision is on the path.
    """

    apart: Tensor
    linear: Tensor
    turns: Tensor


def _binary_of(hierarchy: Hierarchy, tables: _Tables) -> _Binary:
    first, second = torch.tensor(hierarchy.inner).T
    apart = tables.mean[second] - tables.mean[first]
    return _Binary(apart, apart.T @ tables.paths.T[second], -(tables.paths.T[first] + tables.paths.T[second]))


class NeuralTree(nn.Module):
    """A classifier read as a tree: log p(class), (B, K), in place of logits. It has the parameters of the classifier and no others."""

    def __init__(self, module: nn.Module, hierarchy: Hierarchy) -> None:
        super().__init__()
        _check_no_tree(module)
        self.module, self.hierarchy = module, hierarchy
        self.is_binary = all(len(children) == 2 for children in hierarchy.inner)
        tables = tables_of(hierarchy)
        for name, table in (_binary_of(hierarchy, tables) if self.is_binary else tables)._asdict().items():
            self.register_buffer(name, table, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.module(x).float()
        if self.is_binary:
            tree = _Binary(*(self.get_buffer(name) for name in _Binary._fields))
            return torch.addmm(logits @ tree.linear, F.softplus(logits @ tree.apart.T), tree.turns)
        tables = _Tables(*(self.get_buffer(name) for name in _Tables._fields))
        return _edges(tables, logits) @ tables.paths.T


def neural_tree(module: nn.Module, example: Tensor, classes: Sequence[str] | None = None, *, normalise: bool = False) -> NeuralTree:
    """The trained classifier with the hierarchy that the rows of its last layer induce. example: two inputs or more, to find that layer."""
    _, weight = final_linear(module, example)
    return NeuralTree(module, induced_tree(weight.cpu().numpy(), classes, normalise=normalise))


def final_linear(module: nn.Module, example: Tensor) -> tuple[str, Tensor]:
    """Name and weight (K, F) of the linear layer that a classifier ends in, however it is written, if by log_softmax after it: log probabilities are
    logits less one number in each row, and a tree over them is the same. example: (2 or more, ...).

    It is the parameter of which row k alone moves logit k, and moves it in proportion: logits - weight @ features is the same for every
    input, the bias. The features are the gradient of a logit by its row. So a 1x1 convolution before the pooling is found, too.
    """
    was_training, learns = module.training, {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    module.eval().requires_grad_(True)
    try:
        with torch.enable_grad():
            logits = _outputs(module, example)
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) < 2:
                raise NbdtError("a classifier gives logits (B, K) for two inputs or more")
            count = logits.shape[1]
            chances, one = logits.detach().exp()[:2], torch.ones(2).to(logits)
            is_log = torch.allclose(chances.sum(1), one, atol=1e-4)
            least, watched = logits[:2].min(1)  # log p(k) hardly moves where p(k) is near 1
            moves = F.one_hot(watched, count).to(logits) - (
                chances if is_log else 0
            )  # (2, K), d log p(k) = d logit k - sum_j p(j) d logit j
            rows = {name: parameter for name, parameter in module.named_parameters() if parameter.ndim > 1 and len(parameter) == count}
            for name, parameter in reversed(rows.items()):
                found = [torch.autograd.grad(logit, parameter, retain_graph=True, allow_unused=True)[0] for logit in least]
                slopes = [slope.flatten(1) for slope in found if slope is not None]
                if len(slopes) < 2:
                    continue
                slope = torch.stack(slopes)  # (2, K, F)
                features = (moves[:, :, None] * slope).sum(1) / moves.square().sum(1, keepdim=True)  # (2, F)
                if not torch.allclose(slope, moves[:, :, None] * features[:, None], atol=1e-5 * float(slope.abs().max())):
                    continue
                rest = logits[:2] - features @ parameter.flatten(1).T
                rest = rest - rest.mean(1, keepdim=True) if is_log else rest
                if torch.allclose(rest[0], rest[1], atol=1e-4 * float(logits.detach().abs().max())):
                    return name, parameter.detach().flatten(1).clone()
    finally:
        module.train(was_training)
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(learns[name])
    softmax = "; it gives probabilities: leave its softmax out, or write log_softmax" if torch.allclose(logits[:2].sum(1), one) else ""
    raise NbdtError(f"the model does not end in a linear layer with a row for each of its {count} classes{softmax}")


def _outputs(module: nn.Module, example: Tensor) -> Any:
    try:
        return module(example)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise NbdtError(f"the model does not take inputs {tuple(example.shape)}: {str(error).splitlines()[0]}") from error


# ---------------------------------------------------------------- tree supervision

TreeLoss = Callable[[Hierarchy, Tensor, Tensor], Tensor]


def soft_loss(hierarchy: Hierarchy, logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -log p(class) by soft inference, a scalar. logits: (B, K), the network's; targets: (B,)."""
    return F.nll_loss(soft(hierarchy, logits), targets)


def released_soft_loss(hierarchy: Hierarchy, logits: Tensor, targets: Tensor) -> Tensor:
    """What the released code computes: it hands the probabilities of soft inference to cross entropy as if they were logits, so that a second
    softmax runs over numbers between 0 and 1. For comparisons with it."""
    return F.cross_entropy(soft(hierarchy, logits).exp(), targets)


def hard_loss(hierarchy: Hierarchy, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of the decisions on the label's path, summed, over B x inner nodes / 2 (the released code's normalisation).

    The sum over one path is -log p(class) of soft inference: so the two correct losses differ by the factor 2 / inner nodes and no more.
    """
    return soft_loss(hierarchy, logits, targets) * (2 / len(hierarchy.inner))


@dataclass(frozen=True)
class Ramp:
    """A weight from `start`, in the first epoch, to `end`, in the last: (1 - q) start + q end, q = (epoch / (epochs - 1))^power.

    The released code divides by `epochs`, and never quite reaches the end.
    """

    start: float
    end: float
    power: float = 1.0

    def __post_init__(self) -> None:
        if min(self.start, self.end) < 0 or self.power <= 0:
            raise NbdtError(f"{self}: weights are at least 0, and the power is above 0")

    def at(self, epoch: int, epochs: int) -> float:
        """In epoch 0, 1, ... of so many; of a single one, the end."""
        q = (epoch / (epochs - 1)) ** self.power if epochs > 1 else 1.0
        return (1 - q) * self.start + q * self.end


@dataclass(frozen=True)
class Supervision:
    """beta CE(logits, y) + omega tree loss. own: beta; tree: omega."""

    loss: TreeLoss = soft_loss
    own: Ramp = Ramp(1.0, 1.0)
    tree: Ramp = Ramp(1.0, 1.0)


PAPER = Supervision(soft_loss, Ramp(1.0, 0.0), Ramp(0.0, 0.5))  # [memory]: tree supervision slows early learning
RELEASED = Supervision(released_soft_loss)  # omega 1 for CIFAR; 10 for TinyImageNet and 5 for ImageNet


@dataclass(frozen=True)
class Supervised(Around):
    """A task of which the tree loss is a part. Everything else is the task's own; metrics with those of the tree beside them."""

    hierarchy: Hierarchy
    supervision: Supervision = Supervision()
    epoch: int = 0
    epochs: int = 1

    def __post_init__(self) -> None:
        if self.task.outputs != len(self.hierarchy.classes):
            raise NbdtError(f"the tree is over {len(self.hierarchy.classes)} classes, and the task has {self.task.outputs}")

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """label_smoothing: of the task's own part."""
        own, tree = self.supervision.own.at(self.epoch, self.epochs), self.supervision.tree.at(self.epoch, self.epochs)
        found = own * self.task.loss(outputs, targets, label_smoothing=label_smoothing)
        return found + tree * self.supervision.loss(self.hierarchy, outputs, targets) if tree else found

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        return self.task.metrics(outputs, targets) | tree_accuracy(self.hierarchy, outputs, targets)

    def describe(self) -> dict[str, Any]:
        return self.task.describe() | {"hierarchy": self.hierarchy.to_json()}


def tree_accuracy(hierarchy: Hierarchy, logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Shares of examples that soft and hard inference get right."""
    found = {"soft_accuracy": soft(hierarchy, logits).argmax(1), "hard_accuracy": hard(hierarchy, logits)}
    return {name: float((taken == targets).float().mean()) for name, taken in found.items()}


def tune_tree(
    module: nn.Module,
    task: Task,
    hierarchy: Hierarchy,
    recipe: Recipe,
    indices: Tensor,
    *,
    supervision: Supervision = Supervision(),
    seed: int = 0,
    device: torch.device | str = "cpu",
    begin: Callable[[Training], None] = lambda training: None,
    after_epoch: Callable[[Training], None] = lambda training: None,
) -> nn.Module:
    """The classifier after training with tree supervision, in evaluation mode: its logits are to be read with `soft`, `hard` or `NeuralTree`.

    module: trained, and taken on in place; the hierarchy is induced from it before, and stays. begin: called first, to load a saved state.
    """
    _check_no_tree(module)
    training = start(module, Supervised(task, hierarchy, supervision, 0, recipe.epochs), recipe, indices, seed=seed, device=device)
    begin(training)
    while not training.finished:
        training.task = Supervised(task, hierarchy, supervision, training.epoch, recipe.epochs)
        training.run()
        after_epoch(training)
    return training.evaluation_module()


def train_rebuilding(
    module: nn.Module,
    task: Task,
    recipe: Recipe,
    indices: Tensor,
    *,
    classes: Sequence[str] | None = None,
    supervision: Supervision = Supervision(),
    first: int = 67,
    every: int = 10,
    last: int = 120,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[nn.Module, Hierarchy]:
    """From scratch (the released SoftTreeLoss): without a tree before epoch `first`; then the tree is induced anew from the weights as they are
    every so many epochs, until `last`."""
    if recipe.epochs <= first:
        raise NbdtError(f"the tree is first induced in epoch {first}, and the recipe has {recipe.epochs}")
    _check_no_tree(module)
    training = start(module, task, recipe, indices, seed=seed, device=device)
    hierarchy = None
    example = task.batch(indices[:2], torch.device(device))[0]
    while not training.finished:
        epoch = training.epoch
        if first <= epoch <= last and (epoch - first) % every == 0:
            hierarchy = induced_tree(final_linear(training.module, example)[1].cpu().numpy(), classes)
            training.module.train()
        if hierarchy is not None:
            training.task = Supervised(task, hierarchy, supervision, epoch, recipe.epochs)
        training.run()
    assert hierarchy is not None
    return training.evaluation_module(), hierarchy


# ---------------------------------------------------------------- paths


@dataclass(frozen=True)
class Path:
    """How one example came to its class. nodes: after the root, down to the leaf; probabilities: of each, given its parent."""

    predicted: int
    nodes: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def probability(self) -> float:
        """Of the class, by soft inference."""
        found = 1.0
        for one in self.probabilities:
            found *= one
        return found


def decision_paths(hierarchy: Hierarchy, logits: Tensor) -> list[Path]:
    """The path to the class that soft inference predicts, of each example. logits: (B, K)."""
    edges = edge_log_probabilities(hierarchy, logits)
    return _paths(hierarchy, edges, (edges @ _on(hierarchy, str(logits.device)).paths.T).argmax(1))


def hard_paths(hierarchy: Hierarchy, logits: Tensor) -> list[Path]:
    """The path that hard inference takes, of each example."""
    edges = edge_log_probabilities(hierarchy, logits)
    return _paths(hierarchy, edges, _descend(hierarchy, edges))


def path_text(hierarchy: Hierarchy, path: Path) -> str:
    """`animal 99.5 % > dog 98.0 %`."""
    return " > ".join(
        f"{hierarchy.label(node)} {100 * share:.1f} %" for node, share in zip(path.nodes, path.probabilities, strict=True)
    )  # fmt: skip


def _paths(hierarchy: Hierarchy, edges: Tensor, predicted: Tensor) -> list[Path]:
    chances = edges.exp().tolist()
    found = []
    for row, leaf in zip(chances, predicted.tolist(), strict=True):
        nodes = hierarchy.path(leaf)[1:]
        found.append(Path(leaf, nodes, tuple(row[node] for node in nodes)))
    return found


def _check(hierarchy: Hierarchy, logits: Tensor) -> None:
    if logits.ndim != 2 or logits.shape[1] != len(hierarchy.classes):
        raise NbdtError(f"logits (B, {len(hierarchy.classes)}) are needed, one for each class of the tree, not {tuple(logits.shape)}")


def _check_no_tree(module: nn.Module) -> None:
    """Log probabilities of a tree are no logits: a second tree over them would give other numbers, and no error."""
    if any(isinstance(part, NeuralTree) for part in module.modules()):
        raise NbdtError("this is a tree already; the classifier inside of it (its `module`) is what a tree is made of, and trained with")
