"""What the experiments on MorphNet and FiGS share: a seed network of nine layers, its shrinking, and trainings from scratch of what it led to."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.adoption.adopted import Adopted, read
from niwaki.gradient.adopted import resource_of
from niwaki.gradient.expand import Bound, Widths, expand
from niwaki.gradient.figs import SMALL
from niwaki.gradient.landing import Method, pressed, uniform
from niwaki.gradient.morphnet import MorphNet
from niwaki.run.experiments.data import shared_data
from niwaki.run.statistics import spearman
from niwaki.task.classify import ImageClassification
from niwaki.task.cut import stratified_cut
from niwaki.task.images import arrays, npz
from niwaki.task.task import derive_seed
from niwaki.train.loop import evaluate, train
from niwaki.train.recipe import Recipe

WIDTHS, STRIDES = (8, 8, 8, 16, 16, 16, 32, 32, 32), (2, 1, 1, 2, 1, 1, 2, 1, 1)
THIRD = 3  # the first layers, at the highest resolution
METHODS: dict[str, Method] = {"morphnet": MorphNet(), "figs": replace(SMALL, temper=1.0)}
RECIPE = Recipe(lr=0.1, weight_decay=5e-4, label_smoothing=0.0)


class Seed(nn.Module):
    """Nine convolutions with batch norm, three at each of three resolutions, no shortcuts; 0.9 M multiply-adds on 28 x 28 grey images."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for into, out, stride in zip((1, *WIDTHS), WIDTHS, STRIDES, strict=False):
            layers += [nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        self.layers, self.head = nn.Sequential(*layers), nn.Linear(WIDTHS[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


@lru_cache(maxsize=2)
def task_of(images: int) -> ImageClassification:
    """So many training images of Fashion-MNIST, every class as often as in the set, and all test images."""
    full = npz(shared_data("fashion_mnist"))
    _, kept = stratified_cut(full.labels, images / len(full.labels), np.random.default_rng(0))
    source = f"{len(kept):,} images of {full.source}"
    return ImageClassification(
        arrays(full.images[kept], full.labels[kept], full.test_images, full.test_labels, class_names=full.class_names, source=source)
    )


def seed_network(task: ImageClassification, seed: int) -> Adopted:
    torch.manual_seed(derive_seed(seed, "seed network"))
    return read(Seed(), task.batch(task.part("train")[:2], torch.device("cpu"))[0])


def bound_of(adopted: Adopted, metric: str, share: float) -> Bound:
    resource = resource_of(adopted, metric)
    return Bound(resource, int(share * resource.cost(adopted.whole)), f"{metric}<={share:.0%}")


def shrunk(images: int, epochs: int, final: int, method: str, metric: str, share: float, seed: int) -> dict[str, Any]:
    """One shrinking of the seed network from scratch, expanded to the budget, and the network of those widths trained from scratch.

    lost: of each layer, the part of its channels that the expanded network has lost; correlation: of it with what a channel of the layer costs.
    """
    task = task_of(images)
    adopted = seed_network(task, seed)
    bound = bound_of(adopted, metric, share)
    training = pressed(
        adopted, task, replace(METHODS[method], epochs=epochs), [bound], task.part("train"), seed=derive_seed(seed, "shrink")
    )
    while not training.finished:
        training.run()
    shape = {group: max(1, int((margins > 0).sum())) for group, margins in training.sparsity.margins().items()}
    omega, counts = expand(shape, Widths(adopted.whole, needed=adopted.least), [bound])
    slopes = bound.resource.slopes(adopted.whole)
    lost = [1 - counts[group] / units for group, units in adopted.whole.items()]
    return {
        "counts": list(counts.values()),
        "alive": bound.resource.cost(shape) / bound.resource.cost(adopted.whole),
        "omega": omega,
        "lost": lost,
        "correlation": spearman(lost, [slopes[group] for group in adopted.whole]) or 0.0,
        "accuracy": retrained(adopted, task, counts, final, seed),
    }


def at_strength(images: int, epochs: int, method: str, metric: str, strength: float, seed: int) -> dict[str, float]:
    """What is alive after a shrinking with lambda held, as a share of the seed network's cost; nothing is expanded or trained again."""
    task = task_of(images)
    adopted = seed_network(task, seed)
    bound = bound_of(adopted, metric, 1.0)
    chosen = replace(METHODS[method], epochs=epochs, strength=strength)
    training = pressed(adopted, task, chosen, [bound], task.part("train"), seed=derive_seed(seed, "shrink"))
    while not training.finished:
        training.run()
    shape = {group: max(1, int((margins > 0).sum())) for group, margins in training.sparsity.margins().items()}
    return {"alive": bound.share(shape)}


def baseline(images: int, final: int, kind: str, metric: str, share: float, seed: int) -> dict[str, Any]:
    """A network of the same budget, trained from scratch: "uniform", every width times one number, or "random", a random shape times one."""
    task = task_of(images)
    adopted = seed_network(task, seed)
    bound = bound_of(adopted, metric, share)
    counts = uniform(adopted, [bound])
    if kind == "random":
        rng = Random(f"{seed}/{metric}/{share}")
        counts = expand(
            {group: rng.uniform(0.2, 1) * units for group, units in adopted.whole.items()},
            Widths(adopted.whole, needed=adopted.least),
            [bound],
        )[1]
    return {"counts": list(counts.values()), "accuracy": retrained(adopted, task, counts, final, seed)}


def retrained(adopted: Adopted, task: ImageClassification, counts: dict[str, int], epochs: int, seed: int) -> float:
    """Test accuracy of the network of those widths, from new weights."""
    module = adopted.cut({group: range(count) for group, count in counts.items()})
    torch.manual_seed(derive_seed(seed, "weights"))
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            layer.reset_parameters()
    trained = train(module, task, replace(RECIPE, epochs=epochs), task.part("train"), seed=derive_seed(seed, "final"))
    return evaluate(trained, task, task.part("test"))["accuracy"]
