"""Tables of perceptrons that are trained here: all members of a small space at once, side by side in batched matrix products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor
from torch.nn import functional as F

from niwaki.run.experiments.data import shared_data
from niwaki.task.task import derive_seed


@dataclass(frozen=True)
class Rows:
    """A table in three parts. inputs: float32 (N, features), standardised by the training part; targets: int64 (N,)."""

    name: str
    inputs: tuple[Tensor, Tensor, Tensor]  # training, validation, test
    targets: tuple[Tensor, Tensor, Tensor]
    classes: int

    @property
    def features(self) -> int:
        return self.inputs[0].shape[1]


@dataclass(frozen=True)
class Training:
    """AdamW with a cosine to zero."""

    epochs: int = 30
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 1e-4


def train_all(rows: Rows, members: Sequence[tuple[int, ...]], training: Training, seed: int) -> dict[str, list[float]]:
    """Accuracy and loss of every member, (members,) each, on the validation and the test part.

    members: hidden widths, the same number of layers each. A unit beyond a member's width is held at zero, so its weights learn nothing, and what
    a member learns depends on itself and the seed alone. Every member sees the same batches.
    """
    widths = torch.tensor(members)  # (A, layers)
    most = [rows.features, *widths.max(dim=0).values.tolist(), rows.classes]
    layers = len(most) - 1
    masks = [(torch.arange(most[at + 1]) < widths[:, at, None]).float()[:, None] for at in range(layers - 1)]  # (A, 1, H)
    weights, biases = [], []
    for at, (before, after) in enumerate(pairwise(most)):
        parts = []
        for member in members:
            own = torch.Generator().manual_seed(derive_seed(seed, "member", str(member), str(at)))
            inside = rows.features if at == 0 else member[at - 1]
            weight = torch.zeros(before, after)
            outside = rows.classes if at == layers - 1 else member[at]
            weight[:inside, :outside] = torch.randn(inside, outside, generator=own) * (2 / inside) ** 0.5
            parts.append(weight)
        weights.append(torch.stack(parts).requires_grad_())
        biases.append(torch.zeros(len(members), 1, after, requires_grad=True))
    optimizer = torch.optim.AdamW([*weights, *biases], lr=training.lr, weight_decay=training.weight_decay)
    x, y = rows.inputs[0], rows.targets[0]
    per_epoch = len(x) // training.batch_size
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.epochs * per_epoch)
    order = torch.Generator().manual_seed(derive_seed(seed, "batches"))

    def outputs(inputs: Tensor) -> Tensor:  # (B, features) -> (A, B, classes)
        h = inputs.expand(len(members), *inputs.shape)
        for at in range(layers):
            h = torch.baddbmm(biases[at], h, weights[at])
            if at < layers - 1:
                h = F.relu(h) * masks[at]
        return h

    for _ in range(training.epochs):
        shuffled = torch.randperm(len(x), generator=order)
        for step in range(per_epoch):
            picked = shuffled[step * training.batch_size : (step + 1) * training.batch_size]
            out = outputs(x[picked])
            # a mean per member, summed: no member's gradient depends on how many others there are
            loss = F.cross_entropy(out.flatten(0, 1), y[picked].repeat(len(members)), reduction="sum") / len(picked)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    found = {}
    with torch.no_grad():
        for part, name in ((1, "validation"), (2, "test")):
            hits, losses = torch.zeros(len(members)), torch.zeros(len(members))
            for inputs, targets in zip(rows.inputs[part].split(1024), rows.targets[part].split(1024), strict=True):
                out = outputs(inputs)
                hits += (out.argmax(dim=2) == targets).sum(dim=1)
                losses += F.cross_entropy(out.transpose(1, 2), targets.expand(len(members), -1), reduction="none").sum(dim=1)
            found[f"{name}_accuracy"] = (hits / len(rows.targets[part])).tolist()
            found[f"{name}_loss"] = (losses / len(rows.targets[part])).tolist()
    return found


def load_rows(name: str) -> Rows:
    """The digits and breast_cancer sets of scikit-learn, in parts of 60, 20 and 20 % drawn with a fixed seed; adult and connect_4 of the shared
    data in the parts that they have, categories as one-hot columns."""
    if name in ("digits", "breast_cancer"):
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        split = np.random.default_rng(20240611).permutation(np.arange(len(y)) * 5 // len(y))
        part = np.select([split < 3, split == 3], [0, 1], 2)
        return _rows(name, np.asarray(x, dtype=np.float32), y, part)
    with np.load(shared_data("tabular", f"{name}.npz"), allow_pickle=False) as data:
        x, y, part, columns = data["X"], data["y"], data["split"], [str(column) for column in data["columns"]]
    numeric = NUMERIC if name == "adult" else ()
    parts = []
    for at, column in enumerate(columns):
        if column in numeric:
            parts.append(x[:, at : at + 1])
        else:
            parts.append((x[:, at : at + 1] == np.unique(x[part == 0, at])).astype(np.float32))
    return _rows(name, np.concatenate(parts, axis=1), y, part)


NUMERIC = ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week")


def _rows(name: str, x: np.ndarray, y: np.ndarray, part: np.ndarray) -> Rows:
    mean, std = x[part == 0].mean(axis=0), x[part == 0].std(axis=0)
    scaled = (x - mean) / np.where(std > 0, std, 1)
    inputs = tuple(torch.from_numpy(scaled[part == p].astype(np.float32)) for p in range(3))
    targets = tuple(torch.from_numpy(y[part == p].astype(np.int64)) for p in range(3))
    return Rows(name, inputs, targets, int(y.max()) + 1)  # type: ignore[arg-type]
