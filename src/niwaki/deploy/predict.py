"""Predictions of an exported model for files: ONNX Runtime and Pillow, no torch. The model's own metadata say all that is needed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from niwaki.deploy.card import FORMAT, Preprocessing, TableForm
from niwaki.device.onnx_session import session_of
from niwaki.task.cut import DataError
from niwaki.task.folder import SUFFIXES, read_image
from niwaki.task.images import DAMAGED
from niwaki.task.table import numbers, read_columns, stored_rows, texts

BATCH = 64
ROWS = 4096  # of a table, at a time
TOP = 3
EXITS = "exits"  # the output in which a cascade tells how many of its members ran, (B,)


class PredictError(ValueError):
    """A file that is not a model of ours, or input that it cannot take."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one image. source: the file, with [i] for the i-th image of an array file. truth: its class, where the data tell.

    exit: of a cascade, how many of its members ran.
    """

    source: str
    label: str
    probability: float
    top: tuple[tuple[str, float], ...]  # the three likeliest classes, likeliest first
    truth: str | None = None
    exit: int | None = None


@dataclass(frozen=True)
class Estimate:
    """The number predicted for one row of a table, in the units of the target. truth: what it is, where the file tells."""

    source: str
    value: float
    truth: float | None = None


@dataclass(frozen=True)
class Predictions:
    """Answers in the order of the files, and for each file that could not be read the reason."""

    rows: tuple[Prediction | Estimate, ...]
    failures: dict[str, str]

    @property
    def accuracy(self) -> float | None:
        """Share of right answers among the images whose class is known (labels in an `.npz`, or the name of a folder around the file), or
        among the rows whose target the file has."""
        known = [row for row in self.rows if isinstance(row, Prediction) and row.truth is not None]
        return sum(row.label == row.truth for row in known) / len(known) if known else None

    @property
    def exit_shares(self) -> dict[int, float]:
        """Of a cascade, the share of the answers that each exit gave."""
        known = [row.exit for row in self.rows if isinstance(row, Prediction) and row.exit is not None]
        return {at: known.count(at) / len(known) for at in sorted(set(known))}

    @property
    def rmse(self) -> float | None:
        """Root mean squared error of predicted numbers over the rows whose target the file has."""
        errors = [row.value - row.truth for row in self.rows if isinstance(row, Estimate) and row.truth is not None]
        return float(np.sqrt(np.mean(np.square(errors)))) if errors else None


class ExportedModel:
    """A `model.onnx` in ONNX Runtime, with its classes and preprocessing. threads: of the runtime, None for all cores."""

    def __init__(self, path: str | Path, *, threads: int | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise PredictError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; a model.onnx written by niwaki is needed")
        try:
            self._session = session_of(path.read_bytes(), threads=threads or 0)
        except Exception as error:  # onnxruntime's own kinds have no common base below Exception
            raise PredictError(f"{path} cannot be loaded by ONNX Runtime: {str(error).strip().splitlines()[0]}") from error
        properties = self._session.get_modelmeta().custom_metadata_map
        if missing := [key for key in ("format", "class_names", "preprocessing") if key not in properties]:
            raise PredictError(f"{path} has no {', '.join(missing)} in its metadata; was it written by niwaki?")
        if (found := json.loads(properties["format"])) > FORMAT:
            raise PredictError(f"{path} has metadata of format {found}; this version of niwaki reads up to {FORMAT}")
        self.class_names: tuple[str, ...] = tuple(json.loads(properties["class_names"]))
        form = json.loads(properties["preprocessing"])
        self.preprocessing = TableForm.from_json(form) if "columns" in form else Preprocessing(**form)
        given = self._session.get_inputs()[0]
        self._of_table, self._float32 = "columns" in form, given.type == "tensor(float)"
        self._input, self._batch = given.name, ROWS if "columns" in form else BATCH
        self._outputs = [output.name for output in self._session.get_outputs()]

    def logits(self, examples: NDArray) -> NDArray:
        """(N, K), of images as stored, (N, H, W[, C]), or of rows as stored, (N, D); of a model that predicts a number, (N, 1)."""
        return self.logits_and_exits(examples)[0]

    def logits_and_exits(self, examples: NDArray) -> tuple[NDArray, list[int | None]]:
        """The same, with the number of members that ran for each example, where the model is a cascade."""
        if self._of_table:  # an early model's rows are float32
            examples = examples.astype(np.float32 if self._float32 else np.float64)
        starts = range(0, len(examples), self._batch)
        parts = [self._session.run(None, {self._input: examples[start : start + self._batch]}) for start in starts]
        if EXITS not in self._outputs:
            return np.concatenate([part[0] for part in parts]), [None] * len(examples)
        at = self._outputs.index(EXITS)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[at] for part in parts]).tolist()


def predict(onnx_path: str | Path, files: Sequence[str | Path], *, threads: int | None = None) -> Predictions:
    """Predictions for image files, folders of them, `.npy` and `.npz` files of images as stored (the latter with `labels`, if it has any).

    Of a model for tables: for every row of CSV, Parquet and `.npz` files with the columns it was trained on, by name.
    A file that cannot be read costs its own predictions only.
    """
    model = ExportedModel(onnx_path, threads=threads)
    failures: dict[str, str] = {}
    rows: list[Prediction | Estimate] = []
    if isinstance(form := model.preprocessing, TableForm):
        for file in map(Path, files):
            try:
                rows += _of_table(file, form, model)
            except DataError as error:
                failures[str(file)] = str(error)
        return Predictions(tuple(rows), failures)
    for batch in _batches(_inputs(files, model.class_names, form, failures), BATCH):
        logits, exits = model.logits_and_exits(np.stack([image for _, _, image in batch]))
        rows += _predictions(model, logits, exits, [source for source, _, _ in batch], [truth for _, truth, _ in batch])
    return Predictions(tuple(rows), failures)


def _predictions(
    model: ExportedModel, logits: NDArray, exits: Sequence[int | None], sources: Sequence[str], truths: Sequence[str | None]
) -> list[Prediction]:
    logits = logits.astype(np.float64)
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    found = []
    for source, truth, at, row in zip(sources, truths, exits, probabilities, strict=True):
        top = tuple((model.class_names[k], float(row[k])) for k in np.argsort(-row, kind="stable")[:TOP])
        found.append(Prediction(source, *top[0], top, truth, at))
    return found


def _of_table(file: Path, form: TableForm, model: ExportedModel) -> list[Prediction] | list[Estimate]:
    """The answer for every row of a file."""
    frame, _ = read_columns(file)
    target, names = form.target.name, [column.name for column in form.columns]
    # an .npz file without names has the columns in the order of training
    if (
        file.suffix.lower() == ".npz"
        and not set(names) & set(frame)
        and set(frame) - {"y", "split", "groups"} == {f"x{at}" for at in range(len(names))}
    ):
        frame |= {name: frame[f"x{at}"] for at, name in enumerate(names)}
    outputs, exits = model.logits_and_exits(stored_rows(frame, form.columns, str(file), form.missing))
    sources = [f"{file}[{at}]" for at in range(len(outputs))]
    known = frame.get(target)
    if model.class_names:
        return _predictions(
            model, outputs, exits, sources, [None] * len(outputs) if known is None else _classes(known, model, file, form.missing)
        )
    truths = numbers(known, form.missing) if known is not None else None
    given = [None] * len(outputs) if truths is None else [None if value != value else value for value in truths.tolist()]
    return [Estimate(source, float(value), truth) for source, value, truth in zip(sources, outputs[:, 0], given, strict=True)]


def _classes(targets: NDArray, model: ExportedModel, file: Path, missing: Sequence[str]) -> list[str | None]:
    """The classes that a file states, by name, or as class numbers where the file is an array file."""
    said = texts(targets, missing)
    if file.suffix.lower() == ".npz":
        by_number = {str(at): name for at, name in enumerate(model.class_names)}
        return [None if text is None else by_number.get(text) for text in said]
    return [text if text in model.class_names else None for text in said]


def stored_image(path: str | Path, preprocessing: Preprocessing) -> NDArray:
    """An image file as the data set would store it: turned upright, grey or colour, resized, on its scale; (H, W) or (H, W, C)."""
    if preprocessing.channels not in (1, 3) or preprocessing.pixel_range is None:
        what = f"{preprocessing.channels} channels" if preprocessing.channels not in (1, 3) else "values on a scale of their own"
        raise DataError(f"the model takes images with {what}, which {path} cannot be brought to; give them as .npy or .npz")
    height, width = preprocessing.stored_shape[:2]
    pixels = read_image(path, (height, width), colour=preprocessing.channels == 3)
    low, high = preprocessing.pixel_range
    if (low, high) != (0.0, 255.0):
        pixels = pixels.astype(np.float32) * np.float32((high - low) / 255) + np.float32(low)
    if preprocessing.stored_dtype == "uint8":
        pixels = np.rint(pixels).astype(np.uint8)
    return pixels.astype(preprocessing.stored_dtype).reshape(preprocessing.stored_shape)


def _inputs(
    files: Iterable[str | Path], class_names: tuple[str, ...], form: Preprocessing, failures: dict[str, str]
) -> Iterator[tuple[str, str | None, NDArray]]:
    """(source, class if known, image as stored) of every image that can be read; `failures` takes the others."""
    for file, folder in _expanded(files, failures):
        try:
            if file.suffix.lower() in (".npy", ".npz"):
                yield from _array_file(file, class_names, form)
            else:
                yield str(file), _class_of(file, folder, class_names), stored_image(file, form)
        except DataError as error:
            failures[str(file)] = str(error)


def _class_of(file: Path, folder: Path, class_names: Sequence[str]) -> str | None:
    """The class of the nearest folder around the file that bears the name of one, up to `folder`; training looks at any depth, too."""
    for around in file.absolute().parents:
        if around.name in class_names:
            return around.name
        if around == folder.absolute():
            break
    return None


def _expanded(files: Iterable[str | Path], failures: dict[str, str]) -> Iterator[tuple[Path, Path]]:
    """Every file, with the folder that was given, or its own."""
    for file in map(Path, files):
        if not file.is_dir():
            yield file, file.parent
            continue
        found = sorted(path for path in file.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        if not found:
            failures[str(file)] = f"{file} holds no image file ({', '.join(SUFFIXES)})"
        yield from ((path, file) for path in found)


def _array_file(file: Path, class_names: tuple[str, ...], form: Preprocessing) -> list[tuple[str, str | None, NDArray]]:
    """Every image of an array file, or none and the reason."""
    try:
        with open(file, "rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                images, labels = loaded, None
            elif "images" not in loaded.files:
                raise DataError(f"{file} has no array images; it holds {', '.join(loaded.files) or 'nothing'}")
            else:
                images, labels = loaded["images"], loaded["labels"] if "labels" in loaded.files else None
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(f"{file} cannot be read as an array file: {error}") from error
    images = _as_stored(images, form, file)
    truths: list[str | None] = [None] * len(images)
    if labels is not None:
        classes = len(class_names)
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or ((labels < 0) | (labels >= classes)).any():
            raise DataError(
                f"{file}: labels are {labels.dtype} of shape {labels.shape}; {len(images)} class numbers within 0..{classes - 1} are needed"
            )
        truths = [class_names[label] for label in labels]
    return [(f"{file}[{i}]", truth, image) for i, (truth, image) in enumerate(zip(truths, images, strict=True))]


def _as_stored(images: NDArray, preprocessing: Preprocessing, file: Path) -> NDArray:
    shape, dtype = preprocessing.stored_shape, np.dtype(preprocessing.stored_dtype)
    if images.shape == shape:
        images = images[None]
    channels_first = len(shape) == 3 and images.shape[1:] == (shape[2], *shape[:2])
    if channels_first and images.shape[1:] != shape:
        images = np.moveaxis(images, 1, -1)
    if images.shape[1:] != shape:
        raise DataError(f"{file}: images have the shape {images.shape}; the model takes N x {' x '.join(map(str, shape))}")
    if images.dtype.kind == "f" and dtype.kind == "f":
        images = images.astype(dtype)
        if not np.isfinite(images).all():
            raise DataError(f"{file}: images contain NaN or infinity")
    if images.dtype != dtype:
        raise DataError(f"{file}: images are {images.dtype}; the model takes {dtype}, as its data set stores them")
    return np.ascontiguousarray(images)


def _batches(items: Iterable[tuple[str, str | None, NDArray]], size: int) -> Iterator[list[tuple[str, str | None, NDArray]]]:
    batch: list[tuple[str, str | None, NDArray]] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
