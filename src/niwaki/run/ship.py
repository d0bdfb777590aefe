"""What a finished search leaves behind: checked exports, and what the report tells about the network's answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from niwaki.deploy.audit import scale_of
from niwaki.deploy.card import ModelCard, Preprocessing, TableForm, write_architecture
from niwaki.deploy.export import capture, export_onnx, export_pt2, logits_of
from niwaki.deploy.multi_hash import MultiHashed, load_compressed, save_compressed
from niwaki.deploy.source import Factories, opaque_factories, write_source
from niwaki.net.edit import decode
from niwaki.net.text import to_json
from niwaki.report.image import png_text
from niwaki.run.search import AnyTask, Chosen, Search, plain
from niwaki.task.classify import ImageClassification, confusion_matrix
from niwaki.task.table import Column
from niwaki.task.tabular import Tabular
from niwaki.train.loop import predict

CHECKED = 256  # test images on which every exported file is compared with the network
MISTAKES = 12
PAIRS = 500  # predictions of numbers that the page shows beside the truth
SHOWN_COLUMNS = 8  # of a row


def ship(search: Search, chosen: Chosen, folder: Path) -> list[dict[str, Any]]:
    """Writes model.onnx, model.pt2, model.py with model.safetensors, and architecture.json into `folder`; one row per file: name, bytes, check.

    With model.smh.safetensors, the variables alone, where the weights are made from fewer.
    """
    factories = opaque_factories(search.network, chosen.arch)
    rows = write_files(search.task, chosen.module, card_of(search, chosen), folder, factories)
    return rows if chosen.hashed is None else [*rows, _write_variables(search.task, chosen.module, chosen.hashed, folder)]


def _write_variables(task: AnyTask, module: fx.GraphModule, hashed: MultiHashed, folder: Path) -> dict[str, Any]:
    """The file read back, and its network compared with the one that was trained."""
    file, preprocess, real = "model.smh.safetensors", task.preprocess(), stored_test(task)[:CHECKED]
    size = save_compressed(hashed.cpu(), folder / file)
    logits, again = (
        logits_of(nn.Sequential(preprocess, one.cpu().eval()), real) for one in (module, load_compressed(folder / file, module))
    )
    return {
        "file": file, "bytes": size, "difference": float(np.abs(logits - again).max()), "scale": scale_of(logits), "images": len(real),
    }  # fmt: skip


def write_files(
    task: AnyTask, module: fx.GraphModule, card: ModelCard, folder: Path, factories: Factories | None = None
) -> list[dict[str, Any]]:
    """The same, of a trained network however it was found."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess, module = task.preprocess(), task.delivered(module.cpu().eval())
    real = stored_test(task)[:CHECKED]
    source = write_source(module, preprocess, real, folder, card, factories=factories)
    shipment = capture(module, preprocess, real)
    audits = [export_onnx(shipment, folder / "model.onnx", card), export_pt2(shipment, folder / "model.pt2", card), source]
    write_architecture(card, folder / "architecture.json")
    return [
        {"file": audit.file, "bytes": audit.size_bytes, "difference": audit.max_difference, "scale": audit.scale, "images": audit.images}
        for audit in audits
    ]


def card_of(search: Search, chosen: Chosen) -> ModelCard:
    counted = {name: cost(chosen.arch) for name, cost in search.costs.items()}
    return ModelCard(
        class_names=class_names(search.task),
        preprocessing=form_of(search.task),
        macs=counted["macs"],
        params=counted["params"],
        size_bytes=counted["size"],
        metrics={"validation": chosen.validation, "test": chosen.test},
        architecture=dict(chosen.arch),
        space=chosen.arch.space,
        network=to_json(decode(search.network, chosen.arch)),
    )


def class_names(task: AnyTask) -> tuple[str, ...]:
    """Of a classifier; none where a number is predicted."""
    task = plain(task)
    return (task.table.class_names or ()) if isinstance(task, Tabular) else task.images.class_names


def form_of(task: AnyTask) -> Preprocessing | TableForm:
    """How examples are stored, and what the exported model does to them."""
    task = plain(task)
    if isinstance(task, Tabular):
        return TableForm(task.table.columns, task.table.target, task.table.missing)
    images, (mean, std) = task.images, task.normalisation
    return Preprocessing(images.images.shape[1:], str(images.images.dtype), images.pixel_range, tuple(mean.tolist()), tuple(std.tolist()))


def stored_test(task: AnyTask) -> NDArray:
    task = plain(task)
    return task.table.test_rows if isinstance(task, Tabular) else task.images.test_images


def answers(task: AnyTask, module: nn.Module, device: str) -> dict[str, Any]:
    """Confusion matrix and worst mistakes on the test part, as JSON; mistakes with their images or rows. Of a target of numbers, some
    predictions beside the truth."""
    task = plain(task)
    indices = task.part("test")
    logits = predict(module, task, indices, device=device)
    truth = task.labels(indices)
    if isinstance(task, Tabular) and not task.is_classification:
        mean, std = task.target_scale
        pairs = torch.stack([torch.from_numpy(task.table.test_targets.copy()), logits[:, 0].double() * std + mean], 1)
        largest = (pairs[:, 0] - pairs[:, 1]).abs().argsort(descending=True)[:MISTAKES]
        mistakes = [
            {**_row(task, i), "label": f"{pairs[i, 0]:.5g}", "predicted": f"{pairs[i, 1]:.5g}", "probability": None}
            for i in largest.tolist()
        ]
        return {"confusion": [], "pairs": pairs[:PAIRS].tolist(), "mistakes": mistakes}
    chances = torch.softmax(logits, 1)
    sure, guess = chances.max(1)
    wrong = (guess != truth).nonzero().flatten()
    names = class_names(task)
    worst: Tensor = wrong[sure[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    return {
        "confusion": confusion_matrix(logits, truth).tolist(),
        "mistakes": [
            {
                **shown_example(task, i),
                "label": names[int(truth[i])],
                "predicted": names[int(guess[i])],
                "probability": float(sure[i]),
            }
            for i in worst.tolist()
        ],
    }


def shown_example(task: AnyTask, at: int) -> dict[str, str]:
    """Test example number `at`, as the page shows it."""
    task = plain(task)
    return _row(task, at) if isinstance(task, Tabular) else {"image": _shown(task, task.images.test_images[at])}


def _row(task: Tabular, at: int) -> dict[str, str]:
    """The row as text: the first few columns with their values."""
    columns, row = task.table.columns[:SHOWN_COLUMNS], task.table.test_rows[at]
    told = [f"{column.name} {_value(column, float(value))}" for column, value in zip(columns, row, strict=False)]
    return {"image": "", "text": ", ".join(told) + (", …" if len(task.table.columns) > SHOWN_COLUMNS else "")}


def _value(column: Column, value: float) -> str:
    if value != value:
        return "missing"
    return column.names[int(value)] if column.names is not None else f"{value:g}"


def examples(task: AnyTask, count: int = 12) -> list[dict[str, str]]:
    """A few training images with their classes, class by class in turn; of tables none."""
    task = plain(task)
    if isinstance(task, Tabular):
        return []
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
