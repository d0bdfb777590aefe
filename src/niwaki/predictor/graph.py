"""The graph convolutional regressor of "Neural Predictor for Neural Architecture Search" (Wen et al., ECCV 2020, arXiv 1912.00848).

An architecture is a graph of nodes with one-hot features. Layer sizes, normalisation and optimizer are those of the public PyTorch port
(ultmaster/neuralpredictor.pytorch); the paper chose learning rate, weight decay and sizes by cross-validation.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PredictorError(ValueError):
    """Data that no predictor can be fitted to."""


@dataclass(frozen=True)
class Graphs:
    """N architectures. nodes: (N, I, O) features; adjacency: (N, I, I) or (I, I), [i, j] = 1 where i feeds j; real: (N, I), False for padding."""

    nodes: np.ndarray
    adjacency: np.ndarray
    real: np.ndarray

    def __post_init__(self) -> None:
        count, size = self.nodes.shape[:2]
        if self.adjacency.shape not in ((count, size, size), (size, size)) or self.real.shape != (count, size):
            raise PredictorError(
                f"graphs of {count} x {size} nodes have adjacencies {self.adjacency.shape} and masks {self.real.shape}, which do not fit"
            )

    def __len__(self) -> int:
        return len(self.nodes)

    def at(self, places: np.ndarray) -> Graphs:
        adjacency = self.adjacency[places] if self.adjacency.ndim == 3 else self.adjacency
        return Graphs(self.nodes[places], adjacency, self.real[places])

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Nodes, normalised forward and backward adjacencies are made of these: float32 nodes, adjacency (N, I, I), real (N, I)."""
        real = torch.from_numpy(np.ascontiguousarray(self.real)).float()
        adjacency = torch.from_numpy(np.ascontiguousarray(self.adjacency)).float().expand(len(self), -1, -1)
        return torch.from_numpy(np.ascontiguousarray(self.nodes)).float(), adjacency * real[:, :, None] * real[:, None, :], real


def normalised(adjacency: Tensor) -> Tensor:
    """Rows of adjacency + identity, each of sum 1."""
    looped = adjacency + torch.eye(adjacency.shape[-1], device=adjacency.device)
    return looped / looped.sum(-1, keepdim=True)


class GraphConvolution(nn.Module):
    """V' = 1/2 ReLU(Norm(A + I) V W+) + 1/2 ReLU(Norm(A^T + I) V W-): information flows along the edges, and against them."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.along = nn.Linear(fan_in, fan_out, bias=False)
        self.against = nn.Linear(fan_in, fan_out, bias=False)
        for layer in (self.along, self.against):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, nodes: Tensor, forward: Tensor, backward: Tensor) -> Tensor:  # (B, I, C), (B, I, I) twice -> (B, I, C')
        return (F.relu(forward @ self.along(nodes)) + F.relu(backward @ self.against(nodes))) / 2


class GraphPredictor(nn.Module):
    """Graph convolutions, the mean over real nodes, Linear, dropout, Linear to one number, without a nonlinearity between."""

    def __init__(self, features: int, *, layers: int = 3, width: int = 144, head: int = 128, dropout: float = 0.1) -> None:
        super().__init__()
        sizes = [features] + [width] * layers
        self.convolutions = nn.ModuleList(GraphConvolution(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, head, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(head, 1, bias=False)

    def forward(self, nodes: Tensor, adjacency: Tensor, real: Tensor) -> Tensor:  # (B, I, O), (B, I, I), (B, I) -> (B,)
        forward, backward = normalised(adjacency), normalised(adjacency.transpose(1, 2))
        for convolution in self.convolutions:
            nodes = convolution(nodes, forward, backward)
        mean = (nodes * real[:, :, None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
        return self.out(self.dropout(self.head(mean))).squeeze(1)


@dataclass(frozen=True)
class GraphRecipe:
    """How the regressor is fitted: Adam with a cosine schedule on the squared error of standardised targets. The defaults are the port's."""

    epochs: int = 300
    batch_size: int = 10
    lr: float = 1e-4
    weight_decay: float = 1e-3
    layers: int = 3
    width: int = 144
    head: int = 128
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch_size, self.layers, self.width, self.head) < 1 or not self.lr > 0:
            raise PredictorError(f"{self}: sizes and epochs are at least 1, and the learning rate is above 0")


@dataclass(frozen=True)
class Fitted:
    """A fitted regressor. Called with graphs it gives float64 (N,), in the unit of the targets; for a classifier, probabilities."""

    model: GraphPredictor
    mean: float
    scale: float
    probability: bool = False

    def __call__(self, graphs: Graphs, *, chunk: int = 2048) -> np.ndarray:
        nodes, adjacency, real = graphs.tensors()
        with torch.no_grad():
            parts = [self.model(nodes[a : a + chunk], adjacency[a : a + chunk], real[a : a + chunk]) for a in range(0, len(graphs), chunk)]
        raw = torch.cat(parts).double() if parts else torch.zeros(0, dtype=torch.float64)
        return (torch.sigmoid(raw) if self.probability else raw * self.scale + self.mean).numpy()


def fit_regressor(graphs: Graphs, targets: np.ndarray, recipe: GraphRecipe, *, seed: int) -> Fitted:
    """A regressor of `targets` (N,). Standardised by these alone, so that nothing is known of others. The same seed gives the same bits."""
    targets = _checked(graphs, targets)
    mean, scale = float(targets.mean()), float(targets.std()) or 1.0
    model = _trained(graphs, (targets - mean) / scale, recipe, seed, F.mse_loss)
    return Fitted(model, mean, scale)


def fit_classifier(graphs: Graphs, good: np.ndarray, recipe: GraphRecipe, *, seed: int) -> Fitted:
    """The probability that an architecture is good (the first of the paper's two stages); by cross entropy. good: bool (N,)."""
    model = _trained(graphs, _checked(graphs, good.astype(np.float64)), recipe, seed, F.binary_cross_entropy_with_logits)
    return Fitted(model, 0.0, 1.0, probability=True)


@dataclass(frozen=True)
class TwoStage:
    """Predictions of the regressor where the classifier accepts, and below all of these, by how likely it is good, where it does not."""

    classifier: Fitted
    regressor: Fitted

    def __call__(self, graphs: Graphs) -> np.ndarray:
        good, values = self.classifier(graphs), self.regressor(graphs)
        return np.where(good >= 0.5, values, values.min(initial=0.0) - 1 + good)


def fit_two_stage(graphs: Graphs, targets: np.ndarray, recipe: GraphRecipe, *, threshold: float, seed: int) -> TwoStage | Fitted:
    """The two-stage predictor: a classifier of targets >= threshold, and a regressor of those alone; one stage where all are on one side."""
    targets = _checked(graphs, targets)
    good = targets >= threshold
    if good.all() or good.sum() < 2:
        return fit_regressor(graphs, targets, recipe, seed=seed)
    places = np.flatnonzero(good)
    regressor = fit_regressor(graphs.at(places), targets[places], recipe, seed=seed)
    return TwoStage(fit_classifier(graphs, good, recipe, seed=seed), regressor)


def _checked(graphs: Graphs, targets: np.ndarray) -> np.ndarray:
    targets = np.asarray(targets, dtype=np.float64)
    if targets.shape != (len(graphs),) or not len(graphs):
        raise PredictorError(f"{len(graphs)} graphs with {targets.shape} targets: one target for each, and at least one")
    if not all(map(isfinite, targets)):
        raise PredictorError("a target is no finite number; leave failed architectures out")
    return targets


def _trained(graphs: Graphs, targets: np.ndarray, recipe: GraphRecipe, seed: int, loss: object) -> GraphPredictor:
    nodes, adjacency, real = graphs.tensors()
    wanted = torch.from_numpy(targets).float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GraphPredictor(nodes.shape[2], layers=recipe.layers, width=recipe.width, head=recipe.head, dropout=recipe.dropout)
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
        steps = -(-len(graphs) // recipe.batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * steps)
        for _ in range(recipe.epochs):
            for batch in torch.randperm(len(graphs)).split(recipe.batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss(model(nodes[batch], adjacency[batch], real[batch]), wanted[batch]).backward()  # type: ignore[operator]
                optimizer.step()
                schedule.step()
    return model.eval()
