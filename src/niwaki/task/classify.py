"""Image classification: splits, normalised and augmented batches, loss and metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from niwaki.task.augment import Augment, augment_for, augment_images
from niwaki.task.images import DataError, Images, describe
from niwaki.task.split import Parts
from niwaki.task.task import Part

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1"]
VALUES_AT_ONCE = 2**20  # of float64, 8 MiB: a copy of all pixels would be eight times the size of the data


@dataclass(frozen=True)
class _OnDevice:
    """What batches are made of, put on a device once."""

    images: Tensor  # (N, C, H, W), training and test, uint8 or float32 as stored
    labels: Tensor  # (N,)
    mean: Tensor  # (C, 1, 1), stored units
    std: Tensor  # (C, 1, 1)
    background: Tensor  # (C,), normalised
    class_weights: Tensor | None  # (K,)


@dataclass(frozen=True, eq=False)
class ImageClassification:
    """One label per image. Indices 0..N-1 are the training images, N.. the test images, as `images` has them.

    validation: share of every class, or of the groups where the images have some, that is kept out of the train part. class_weights:
    "balanced" weighs the loss of class c by N / (K N_c); "auto" does so where the metric counts classes alike (balanced accuracy, macro F1)
    and not for accuracy, which is best served by the classes as frequent as they are. augment: "auto" is `augment_for`. seed: of the splits.
    """

    images: Images
    validation: float = 0.2
    metric: Metric = "accuracy"
    class_weights: Literal["auto", "balanced"] | None = "auto"
    augment: Augment | Literal["auto"] = "auto"
    seed: int = 0
    _devices: dict[torch.device, _OnDevice] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: without the copies on devices, which it makes anew."""
        return {**vars(self), "_devices": {}}

    def __post_init__(self) -> None:
        if self.metric not in get_args(Metric):
            raise DataError(f"metric {self.metric!r} is not known; it is one of {', '.join(get_args(Metric))}")
        if not 0 < self.validation < 1:
            raise DataError(f"validation={self.validation} is no share of the data; it lies between 0 and 1, say 0.2")
        if self.class_weights not in ("auto", "balanced", None):
            raise DataError(f"class_weights={self.class_weights!r} is not known; it is 'auto', 'balanced' or None")
        if not (self.augment == "auto" or isinstance(self.augment, Augment)):
            raise DataError(f"augment={self.augment!r} is not known; it is 'auto' or an Augment")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.images.image_shape

    @property
    def outputs(self) -> int:
        return len(self.images.class_names)

    @property
    def source(self) -> str:
        return self.images.source

    @property
    def sha256(self) -> str:
        return self.images.sha256

    @property
    def nbytes(self) -> int:
        return self.images.images.nbytes + self.images.test_images.nbytes

    def part(self, name: Part) -> Tensor:
        """Index set of a part, int64, ascending, see `Parts`."""
        return self._parts.part(name)

    def search_split(self, architecture_share: float = 0.2) -> tuple[Tensor, Tensor]:
        """The train part in two disjoint index sets, for weights and for the architecture, see `Parts`."""
        return self._parts.search_split(architecture_share)

    def folds(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Training and validation parts cut into `count` folds, see `Parts`."""
        return self._parts.folds(count)

    def labels(self, indices: Tensor) -> Tensor:
        """Class numbers, int64 (I,), on the CPU."""
        return self._labels[indices]

    def batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Normalised images, float32 (B, C, H, W) with the channels last in memory, and labels, int64 (B,)."""
        images, labels = self._contiguous_batch(indices, device)
        return _channels_last(images), labels

    def augmented_batch(self, indices: Tensor, device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The same, augmented. generator: on the CPU."""
        images, labels = self._contiguous_batch(indices, device)
        return _channels_last(augment_images(images, self.augmentation, self._on(device).background, generator)), labels

    def loss(self, outputs: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
        """Cross entropy of logits (B, K) and labels (B,), weighted by class where `class_weights` says so."""
        weights = self._on(outputs.device).class_weights
        return F.cross_entropy(outputs.float(), targets, weight=weights, label_smoothing=label_smoothing)

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Loss, accuracy, balanced accuracy and macro F1 of logits (N, K) against labels (N,)."""
        figures = classification_metrics(confusion_matrix(outputs, targets))
        return {"loss": float(self.loss(outputs, targets))} | figures

    def preprocess(self) -> Preprocess:
        """Stored images to inputs of the network; goes into the exported model."""
        return Preprocess(*self.normalisation, channels_last=self.images.images.ndim == 4)

    def delivered(self, module: fx.GraphModule) -> fx.GraphModule:
        """The trained network as it is: its logits need no further step."""
        return module

    def describe(self) -> dict[str, Any]:
        """What identifies the task, as JSON."""
        mean, std = self.normalisation
        augment = self.augmentation
        return describe(self.images) | {
            "validation": self.validation,
            "metric": self.metric,
            "class_weights": "balanced" if self._balanced else None,
            "augment": {name: getattr(augment, name) for name in augment.__dataclass_fields__},
            "seed": self.seed,
            "mean": mean.tolist(),
            "std": std.tolist(),
        }

    @cached_property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the train part, in stored units: float32, (C,) each."""
        count = len(self._parts.split[0]) * self.images.images[0].size // self.input_shape[0]
        mean = sum(pixels.sum(axis=0) for pixels in self._train_pixels()) / count
        std = np.sqrt(sum(((pixels - mean) ** 2).sum(axis=0) for pixels in self._train_pixels()) / count)
        std[std == 0] = 1.0  # a channel that never changes carries nothing, and stays 0
        return torch.from_numpy(mean).float(), torch.from_numpy(std).float()

    @cached_property
    def augmentation(self) -> Augment:
        """The augmentation in force."""
        return augment_for(self.images) if self.augment == "auto" else self.augment

    @property
    def _balanced(self) -> bool:
        return self.class_weights == "balanced" or (self.class_weights == "auto" and self.metric != "accuracy")

    @cached_property
    def _parts(self) -> Parts:
        images = self.images
        return Parts(
            images.labels, len(images.test_labels), images.class_names, images.groups, images.source,
            validation=self.validation, seed=self.seed,
        )  # fmt: skip

    @cached_property
    def _labels(self) -> Tensor:
        return torch.from_numpy(np.concatenate([self.images.labels, self.images.test_labels]))

    def _train_pixels(self) -> Iterator[NDArray]:
        """The pixels of the train part, float64 (P, C), some images at a time."""
        channels = self.input_shape[0]
        step = max(1, VALUES_AT_ONCE // self.images.images[0].size)
        for start in range(0, len(self._parts.split[0]), step):
            images = self.images.images[self._parts.split[0][start : start + step]]
            yield images.reshape(-1, channels).astype(np.float64)  # channels are last, or there is one

    @cached_property
    def _background(self) -> Tensor:
        """What lies beyond the edges of the images, in stored units, (C,): the median of their rims; 0 for digits, grey for photographs."""
        images, train = self.images.images, self._parts.split[0]
        images = images.reshape(*images.shape[:3], self.input_shape[0])
        rims = [rim[train] for rim in (images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1])]  # (N, side, C) each
        return torch.from_numpy(np.median(np.concatenate(rims, axis=1), axis=(0, 1))).float()

    def _contiguous_batch(self, indices: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        data = self._on(device)
        indices = indices.to(data.images.device)
        return (data.images[indices].float() - data.mean) / data.std, data.labels[indices]

    def _on(self, device: torch.device | str) -> _OnDevice:
        device = torch.device(device)
        if device.type == "cuda" and device.index is None:  # as the tensors on it will call it: or there would be two copies
            device = torch.device("cuda", torch.cuda.current_device())
        if device not in self._devices:
            images = np.concatenate([self.images.images, self.images.test_images])
            images = np.moveaxis(images.reshape(*images.shape[:3], self.input_shape[0]), -1, 1)
            mean, std = self.normalisation
            counts = np.bincount(self.images.labels[self._parts.split[0]], minlength=self.outputs)
            weights = torch.from_numpy(counts.sum() / (self.outputs * counts)).float() if self._balanced else None
            self._devices[device] = _OnDevice(
                images=torch.from_numpy(np.ascontiguousarray(images)).to(device),
                labels=self._labels.to(device),
                mean=mean.view(-1, 1, 1).to(device),
                std=std.view(-1, 1, 1).to(device),
                background=((self._background - mean) / std).to(device),
                class_weights=None if weights is None else weights.to(device),
            )
        return self._devices[device]


class Preprocess(nn.Module):
    """(images - mean) / std of images as they are stored, uint8 or float, (B, H, W) or (B, H, W, C); gives float32 (B, C, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, *, channels_last: bool) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.register_buffer("mean", mean.view(-1, 1, 1).clone())
        self.register_buffer("std", std.view(-1, 1, 1).clone())

    def forward(self, images: Tensor) -> Tensor:
        images = images.permute(0, 3, 1, 2) if self.channels_last else images.unsqueeze(1)
        return (images.float() - self.mean) / self.std


def _channels_last(images: Tensor) -> Tensor:
    """The same images in the memory order that convolutions are fastest in, and hand on to the layers after them.

    `to`, because `contiguous` leaves a single channel as it is.
    """
    return images.to(memory_format=torch.channels_last)


def confusion_matrix(outputs: Tensor, targets: Tensor) -> Tensor:
    """How often class i was taken for class j: int64 (K, K), of logits (N, K) and labels (N,)."""
    classes = outputs.shape[1]
    return torch.bincount(targets * classes + outputs.argmax(1), minlength=classes**2).view(classes, classes)


def classification_metrics(confusion: Tensor) -> dict[str, float]:
    """Accuracy; balanced accuracy, the mean recall of the classes that occur; macro F1, over the classes that occur or are predicted."""
    matrix = confusion.double()
    correct, occurring, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    recall, f1 = correct / occurring, 2 * correct / (occurring + predicted)  # 0/0, NaN, is a class that plays no part
    return {
        "accuracy": float(correct.sum() / matrix.sum()),
        "balanced_accuracy": float(recall.nanmean()),
        "macro_f1": float(f1.nanmean()),
    }
