"""Image sets as numpy arrays, checked once: from arrays, from `.npz` files. Folders of files are read in `folder.py`."""

from __future__ import annotations

import hashlib
import lzma
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niwaki.task.cut import DataError, group_cut, group_numbers, stratified_cut

Layout = Literal["NHW", "NHWC", "NCHW"]
PARTS = ("train", "test")
TEST_SHARE = 0.2  # of a set that comes without a test part
CHANNELS = (1, 3, 4)  # what an axis of colours may measure for the layout to be inferred
# what numpy raises for a damaged array file; a NotImplementedError, for a mangled zip header, is a RuntimeError
DAMAGED = (OSError, EOFError, ValueError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, tokenize.TokenError)


@dataclass(frozen=True, eq=False)
class Images:
    """Images and labels, for training and for the test, as they are stored: the exported network takes them just so.

    images: uint8 or float32, (N, H, W) or (N, H, W, C). labels: int64, (N,), class numbers 0..K-1. stated_range: the stored values of black
    and white, where the source states them, as image files do; for all others there is `pixel_range`. groups: int64, (N,), of the training
    images: what makes some of them alike beside their class, as one writer, patient or camera; a group is never divided between parts
    or folds; but where the train part is one group alone, a search divides it. Made by `arrays`, `npz`, `image_folder` and `digits`, which bring data into this form; what does not fit is refused here.
    """

    images: NDArray
    labels: NDArray
    test_images: NDArray
    test_labels: NDArray
    class_names: tuple[str, ...]
    source: str  # where the data came from and what was done to it, for people
    stated_range: tuple[float, float] | None = None
    groups: NDArray | None = None

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        if len(set(self.class_names)) < classes:
            raise DataError(f"two classes of {self.source} bear one name: {self.class_names}")
        if classes < 2:
            raise DataError(f"{self.source} has a single class; a classifier needs at least two")
        for part, images, labels in self._parts():
            where = f"the {part} part of {self.source}"
            _check_images(images, where)
            _check_labels(labels, len(images), where)
            if labels.max() >= classes:
                raise DataError(f"{where}: label {labels.max()} is out of range; the {classes} classes are 0..{classes - 1}{self._named()}")
        if self.images.shape[1:] != self.test_images.shape[1:] or self.images.dtype != self.test_images.dtype:
            raise DataError(
                f"{self.source}: training images are {_shape(self.images)} of {self.images.dtype}, test images {_shape(self.test_images)} "
                f"of {self.test_images.dtype}; both must have one size, one number of channels and one type"
            )
        counts = np.bincount(self.labels, minlength=classes)
        if len(missing := np.flatnonzero(counts == 0)):
            raise DataError(f"{self.source} has no training image of {self._list(missing)}; labels are class numbers 0..K-1, each in use")
        if len(lonely := np.flatnonzero(counts == 1)):
            raise DataError(
                f"{self.source} has only one training image of {self._list(lonely)}; at least 2 of each class are needed, "
                f"one to train on and one to validate on"
            )
        if self.images.min() == self.images.max():
            raise DataError(f"{self.source}: every pixel of every training image is {self.images.min()}; there is nothing to learn from")
        if self.stated_range is not None and not self.stated_range[0] < self.stated_range[1]:
            raise DataError(f"{self.source}: pixel_range={self.stated_range} is no scale; it is the values of black and white: (0, 255)")
        if self.groups is not None and (self.groups.shape != self.labels.shape or self.groups.dtype != np.int64):
            raise DataError(
                f"{self.source}: groups have the shape {self.groups.shape} and the type {self.groups.dtype}; "
                f"one whole number for each of the {len(self.labels)} training images is needed"
            )
        for array in (self.images, self.labels, self.test_images, self.test_labels, *(() if self.groups is None else (self.groups,))):
            array.setflags(write=False)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W), as a network sees one image."""
        height, width, *channels = self.images.shape[1:]
        return (channels[0] if channels else 1, height, width)

    @cached_property
    def pixel_range(self) -> tuple[float, float] | None:
        """The stored values of black and white, as stated or else as far as the training images tell, see `guess_pixel_range`."""
        return self.stated_range or guess_pixel_range(self.images)

    @cached_property
    def sha256(self) -> str:
        """Hash of all that a training could see: pixels, labels, their shapes and types, class names, groups."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for _, images, labels in self._parts():
            for array in (images, labels):
                digest.update(f"{array.dtype.str}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array).data)
        if self.groups is not None:
            digest.update(np.ascontiguousarray(self.groups).data)
        return digest.hexdigest()

    def _parts(self) -> tuple[tuple[str, NDArray, NDArray], ...]:
        return ("training", self.images, self.labels), ("test", self.test_images, self.test_labels)

    def _list(self, classes: NDArray) -> str:
        named = [f"class {c}" if self.class_names[c] == str(c) else f"class {c} ({self.class_names[c]!r})" for c in classes[:10]]
        return ", ".join(named) + (f" and {len(classes) - 10} more" if len(classes) > 10 else "")

    def _named(self) -> str:
        names = self.class_names
        if names == tuple(str(c) for c in range(len(names))):
            return ""
        return f" ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})"


def arrays(
    images: ArrayLike,
    labels: ArrayLike,
    test_images: ArrayLike | None = None,
    test_labels: ArrayLike | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    layout: Layout | None = None,
    source: str = "the given arrays",
    test_seed: int = 0,
    pixel_range: tuple[float, float] | None = None,
    groups: ArrayLike | None = None,
) -> Images:
    """An image set from the reader's own arrays: uint8, or float of any width (kept as float32).

    layout: of the axes; "NHW" (grey), "NHWC" or "NCHW" (stored as "NHWC"); inferred where one reading is possible only.
    pixel_range: the values of black and white, to which image files are brought for a prediction; left out, it is guessed from the pixels.
    groups: one whole number or text for each training image, alike for those of one writer, patient or camera: validation, and a test part
    that has to be cut off, are then of other groups than training, which is what the network will meet. Without a test part, a fifth of
    every class, or of the groups, is cut off as one (drawn with `test_seed`); `source` then says so.
    """
    if (test_images is None) != (test_labels is None):
        raise DataError(f"{source}: test images and test labels come together; only one of them was given")
    x, y = np.asarray(images), np.asarray(labels)
    _check_labels(y, len(x) if x.ndim else 0, f"the training part of {source}")
    x = _stored(x, layout, f"the training part of {source}")
    y = y.astype(np.int64)
    if class_names is None:
        # a label as large as the number of images leaves classes without any: refused before a table of that length is made
        if y.max() >= len(y):
            raise DataError(f"{source}: label {y.max()} is out of range for {len(y)} images; labels are class numbers 0..K-1, each in use")
        class_names = tuple(str(c) for c in range(y.max() + 1))
    kinds = None if groups is None else group_numbers(groups, len(y), source)
    if test_images is None or test_labels is None:
        train, test = _cut_test(y, kinds, class_names, test_seed, source)
        x, y, x_test, y_test, kinds = x[train], y[train], x[test], y[test], None if kinds is None else kinds[train]
        of = "every class" if kinds is None else "the groups"
        source = f"{source}, {TEST_SHARE:.0%} of {of} cut off as the test part (seed {test_seed}), as it had none"
    else:
        x_test, y_test = np.asarray(test_images), np.asarray(test_labels)
        _check_labels(y_test, len(x_test) if x_test.ndim else 0, f"the test part of {source}")
        x_test, y_test = _stored(x_test, layout, f"the test part of {source}"), y_test.astype(np.int64)
    return Images(x, y, x_test, y_test, tuple(class_names), source, pixel_range, kinds)


def npz(folder: str | Path, *, class_names: tuple[str, ...] | None = None, layout: Layout | None = None, test_seed: int = 0) -> Images:
    """The image set of a folder with `train.npz` and, if it has one, `test.npz`; each holds the arrays `images` and `labels`.

    `groups` in train.npz, if there are any, say which images belong together, see `arrays`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder} is {'a file' if folder.exists() else 'missing'}; a folder with train.npz (and test.npz) is needed")
    if not (folder / "train.npz").is_file():
        found = sorted(path.name for path in folder.iterdir())
        raise DataError(f"{folder} has no train.npz; it holds {', '.join(found[:10]) or 'nothing'}{', ...' if len(found) > 10 else ''}")
    parts = {part: _load_npz(folder / f"{part}.npz") for part in PARTS if (folder / f"{part}.npz").is_file()}
    *train, groups = parts["train"]
    return arrays(
        *train,
        *parts.get("test", (None, None))[:2],
        groups=groups,
        class_names=class_names,
        layout=layout,
        source=str(folder),
        test_seed=test_seed,
    )


def guess_pixel_range(images: NDArray) -> tuple[float, float] | None:
    """The stored values of black and white, as far as the pixels tell.

    uint8 is 0..255, unless no pixel reaches 128: then 0..largest (scikit-learn's digits: 0..16). Floats are 0..1, -1..1 or 0..255, the
    narrowest that holds them all; None for any other float data.

    >>> guess_pixel_range(np.array([[[0, 7], [16, 3]]], dtype=np.uint8))
    (0.0, 16.0)
    >>> guess_pixel_range(np.array([[[-0.5, 0.25]]], dtype=np.float32))
    (-1.0, 1.0)
    """
    lowest, highest = float(images.min()), float(images.max())
    if images.dtype == np.uint8:
        return (0.0, highest if 0 < highest < 128 else 255.0)
    return next((bounds for bounds in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)) if bounds[0] <= lowest and highest <= bounds[1]), None)


def _cut_test(y: NDArray, groups: NDArray | None, class_names: tuple[str, ...], seed: int, source: str) -> tuple[NDArray, NDArray]:
    """Positions to train on, and to test on."""
    counts = np.bincount(y)
    if len(few := np.flatnonzero((counts > 0) & (counts < 3))):
        named = ", ".join(f"{class_names[c] if c < len(class_names) else c} ({counts[c]})" for c in few[:10])
        raise DataError(
            f"{source} has no test part, and too few images to cut one from for class {named}; at least 3 of each class are needed, one "
            f"each to train on, to validate on and to test on"
        )
    if groups is None:
        return stratified_cut(y, TEST_SHARE, np.random.default_rng(seed))
    train, test = group_cut(y, groups, TEST_SHARE, np.random.default_rng(seed))
    if len(test) == 0:
        raise DataError(f"{source} has no test part, and none can be cut from its groups: each has all images of some class")
    return train, test


def _load_npz(path: Path) -> tuple[NDArray, NDArray, NDArray | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in ("images", "labels") if name not in file.files]:
                raise DataError(f"{path} has no array {' and no array '.join(missing)}; it holds {', '.join(file.files) or 'nothing'}")
            return file["images"], file["labels"], file["groups"] if "groups" in file.files else None
    except DataError:
        raise
    except DAMAGED as error:
        raise DataError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from error


def _stored(images: NDArray, layout: Layout | None, where: str) -> NDArray:
    """The images as they will be stored: uint8 or float32, channels last."""
    if layout is None:
        layout = _infer_layout(images, where)
    elif layout not in ("NHW", "NHWC", "NCHW"):
        raise DataError(f"layout {layout!r} is not known; it is NHW, NHWC or NCHW")
    elif images.ndim != len(layout):
        raise DataError(f"{where}: images have the shape {images.shape}, which layout {layout} cannot describe")
    if images.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what does not fit float32 becomes infinite, and is refused with the other infinities
            images = images.astype(np.float32)
    if layout == "NCHW":
        images = np.moveaxis(images, 1, -1)
    return np.ascontiguousarray(images).view()  # a view: the reader's own array stays writable


def _infer_layout(images: NDArray, where: str) -> Layout:
    if images.ndim == 3:
        return "NHW"
    if images.ndim != 4:
        raise DataError(f"{where}: images have the shape {images.shape}; N x H x W, N x H x W x C or N x C x H x W is needed")
    first, last = images.shape[1] in CHANNELS, images.shape[3] in CHANNELS
    if first == last:
        why = "both the second and the last axis could be" if first else "neither the second nor the last axis looks like"
        raise DataError(f"{where}: images have the shape {images.shape}, and {why} colour channels; state layout='NHWC' or layout='NCHW'")
    return "NCHW" if first else "NHWC"


def _check_images(images: NDArray, where: str) -> None:
    if images.ndim not in (3, 4) or 0 in images.shape:
        problem = "is empty" if 0 in images.shape else "is not a set of images"
        raise DataError(f"{where} {problem}: images have the shape {images.shape}; N x H x W or N x H x W x C is needed")
    if images.dtype not in (np.uint8, np.float32):
        raise DataError(f"{where}: images are {images.dtype}; convert them to uint8 (0..255) or to float32, whichever keeps their values")
    if images.dtype == np.float32 and not (finite := np.isfinite(images).reshape(len(images), -1).all(axis=1)).all():
        bad = np.flatnonzero(~finite)
        raise DataError(f"{where}: {len(bad)} image(s) contain NaN or infinity, the first of them number {bad[0]}")


def _check_labels(labels: NDArray, count: int, where: str) -> None:
    if not labels.size:
        raise DataError(f"{where} is empty: it has {count} images, and labels of shape {labels.shape}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        given = f"{labels.dtype} of shape {labels.shape}"
        raise DataError(f"{where}: labels are {given}; one integer per image is needed, a class number 0..K-1")
    if len(labels) != count:
        raise DataError(f"{where} has {count} images and {len(labels)} labels; one label per image is needed")
    if labels.min() < 0:
        raise DataError(f"{where}: label {labels.min()} (image {int(labels.argmin())}) is negative; labels are class numbers 0..K-1")


def _shape(images: NDArray) -> str:
    return " x ".join(str(side) for side in images.shape[1:])


def describe(images: Images) -> dict[str, Any]:
    """What identifies the set, as JSON."""
    return {
        "source": images.source,
        "sha256": images.sha256,
        "stored_shape": list(images.images.shape[1:]),
        "stored_dtype": str(images.images.dtype),
        "class_names": list(images.class_names),
        "train": len(images.images),
        "test": len(images.test_images),
        "groups": None if images.groups is None else len(np.unique(images.groups)),
    }
