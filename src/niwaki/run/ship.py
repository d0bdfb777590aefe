"""What a finished search leaves behind: checked exports, and what the report tells about the network's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from niwaki.deploy.card import ModelCard, Preprocessing, write_architecture
from niwaki.deploy.export import capture, export_onnx, export_pt2
from niwaki.deploy.source import opaque_factories, write_source
from niwaki.net.edit import decode
from niwaki.net.text import to_json
from niwaki.report.image import png_text
from niwaki.run.search import Chosen, Search
from niwaki.task.classify import ImageClassification, confusion_matrix
from niwaki.train.loop import predict

CHECKED = 256  # test images on which every exported file is compared with the network
MISTAKES = 12


def ship(search: Search, chosen: Chosen, folder: Path) -> list[dict[str, Any]]:
    """Writes model.onnx, model.pt2, model.py with model.safetensors, and architecture.json into `folder`; one row per file: name, bytes, check."""
    folder.mkdir(parents=True, exist_ok=True)
    images = search.task.images
    card = card_of(search, chosen)
    preprocess, module = search.task.preprocess(), chosen.module.cpu().eval()
    real = images.test_images[:CHECKED]
    source = write_source(module, preprocess, real, folder, card, factories=opaque_factories(search.network, chosen.arch))
    shipment = capture(module, preprocess, real)
    audits = [export_onnx(shipment, folder / "model.onnx", card), export_pt2(shipment, folder / "model.pt2", card), source]
    write_architecture(card, folder / "architecture.json")
    return [
        {"file": audit.file, "bytes": audit.size_bytes, "difference": audit.max_difference, "scale": audit.scale, "images": audit.images}
        for audit in audits
    ]


def card_of(search: Search, chosen: Chosen) -> ModelCard:
    images = search.task.images
    mean, std = search.task.normalisation
    counted = {name: cost(chosen.arch) for name, cost in search.costs.items()}
    return ModelCard(
        class_names=images.class_names,
        preprocessing=Preprocessing(
            images.images.shape[1:], str(images.images.dtype), images.pixel_range, tuple(mean.tolist()), tuple(std.tolist())
        ),
        macs=counted["macs"],
        params=counted["params"],
        size_bytes=counted["size"],
        metrics={"validation": chosen.validation, "test": chosen.test},
        architecture=dict(chosen.arch),
        space=chosen.arch.space,
        network=to_json(decode(search.network, chosen.arch)),
    )


def answers(task: ImageClassification, module: nn.Module, device: str) -> dict[str, Any]:
    """Confusion matrix and worst mistakes on the test part, as JSON; mistakes with their images."""
    indices = task.part("test")
    logits = predict(module, task, indices, device=device)
    truth = torch.tensor(task.images.test_labels)
    chances = torch.softmax(logits, 1)
    sure, guess = chances.max(1)
    wrong = (guess != truth).nonzero().flatten()
    names = task.images.class_names
    worst: Tensor = wrong[sure[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    return {
        "confusion": confusion_matrix(logits, truth).tolist(),
        "mistakes": [
            {
                "image": _shown(task, task.images.test_images[i]),
                "label": names[int(truth[i])],
                "predicted": names[int(guess[i])],
                "probability": float(sure[i]),
            }
            for i in worst.tolist()
        ],
    }


def examples(task: ImageClassification, count: int = 12) -> list[dict[str, str]]:
    """A few training images with their classes, class by class in turn."""
    labels = task.images.labels
    by_class: dict[int, list[int]] = {}
    for i, label in enumerate(labels.tolist()):
        by_class.setdefault(label, []).append(i)
    turns = [i for turn in range(count) for label in sorted(by_class) for i in by_class[label][turn : turn + 1]]
    return [{"image": _shown(task, task.images.images[i]), "label": task.images.class_names[int(labels[i])]} for i in turns[:count]]


def _shown(task: ImageClassification, image: NDArray) -> str:
    """The image as a PNG for the page, black and white where the whole data set has them."""
    low, high = task.images.pixel_range or (float(task.images.images.min()), float(task.images.images.max()))
    return png_text(np.clip((image.astype(np.float64) - low) * (255 / ((high - low) or 1.0)), 0, 255).round().astype(np.uint8))
