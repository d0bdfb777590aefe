"""What is known of a trained network, as data: `architecture.json`, and the metadata in `model.onnx` and `model.pt2`. No torch here."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from niwaki.store.files import atomic_write
from niwaki.task.table import MISSING, Column

FORMAT = 1  # of architecture.json and of the metadata; raised when a reader of the old form would be misled
PACKAGES = ("niwaki", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "safetensors", "scikit-learn", "pillow")


class ExportError(RuntimeError):
    """A network that cannot be shipped, or whose shipped form does not compute what the network computes."""


@dataclass(frozen=True)
class Preprocessing:
    """How images are stored, and what is done to them inside the exported model.

    stored_shape: of one image, (H, W) or (H, W, C). stored_dtype: "uint8" or "float32". pixel_range: the stored values of black and
    white, by which image files are brought to the data set's scale; None where the data do not tell, and files cannot be predicted.
    mean, std: of each channel, in stored units: the model subtracts and divides.
    """

    stored_shape: tuple[int, ...]
    stored_dtype: str
    pixel_range: tuple[float, float] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("stored_shape", "pixel_range", "mean", "std"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else tuple(value))
        if len(self.stored_shape) not in (2, 3) or self.stored_dtype not in ("uint8", "float32"):
            raise ExportError(f"stored images are uint8 or float32, (H, W) or (H, W, C), not {self.stored_dtype} {self.stored_shape}")

    @property
    def channels(self) -> int:
        return self.stored_shape[2] if len(self.stored_shape) == 3 else 1


@dataclass(frozen=True)
class TableForm:
    """How the rows of a table are stored, float64 (N, D) with NaN where a value is missing, and what is predicted of them. missing: texts that
    stand for missing values."""

    columns: tuple[Column, ...]
    target: Column
    missing: tuple[str, ...] = MISSING

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> TableForm:
        def column(one: Mapping[str, Any]) -> Column:
            values, names = one["values"], one["names"]
            return Column(one["name"], None if values is None else tuple(values), None if names is None else tuple(names))

        return TableForm(tuple(map(column, data["columns"])), column(data["target"]), tuple(data.get("missing", MISSING)))


@dataclass(frozen=True)
class ModelCard:
    """One trained network. metrics: names to numbers, nested as they come. architecture: option by decision name; space: the space's hash.

    network: the plain description, as JSON. size_bytes: of the parameters as float32.
    """

    class_names: tuple[str, ...]  # none where a number is predicted
    preprocessing: Preprocessing | TableForm
    macs: int
    params: int
    size_bytes: int
    metrics: Mapping[str, Any] = field(default_factory=dict)
    architecture: Mapping[str, Any] = field(default_factory=dict)
    space: str = ""
    network: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: versions())

    @property
    def input_name(self) -> str:
        """Of the exported model: of images or of rows as stored."""
        return "rows" if isinstance(self.preprocessing, TableForm) else "images"

    @property
    def output_name(self) -> str:
        """Of the exported model: logits (B, classes), or values (B, 1) in the units of the target."""
        return "logits" if self.class_names else "values"

    def to_json(self) -> dict[str, Any]:
        """The content of `architecture.json`."""
        return {
            "format": FORMAT,
            "architecture": dict(self.architecture),
            "space": self.space,
            "network": self.network,
            "class_names": list(self.class_names),
            "preprocessing": asdict(self.preprocessing),
            "macs": self.macs,
            "params": self.params,
            "size_bytes": self.size_bytes,
            "metrics": dict(self.metrics),
            "versions": dict(self.versions),
        }

    def properties(self) -> dict[str, str]:
        """Metadata for a model file: the entries of `to_json`, each as JSON text, without the description (the file is one)."""
        return {name: json.dumps(value) for name, value in self.to_json().items() if name != "network"}


def write_architecture(card: ModelCard, path: str | Path) -> None:
    """Writes `architecture.json`."""
    atomic_write(path, json.dumps(card.to_json(), indent=2) + "\n")


def versions() -> dict[str, str]:
    """Version of Python and of each package that had a part in the result, without importing any."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
