"""Folders of image files: one sub-folder per class, PNG, JPEG or WebP, of any size, grey or colour."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from niwaki.task.images import PARTS, DataError, Images, arrays

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SMALLEST_SIDE, LARGEST_SIDE = 8, 224  # of the default size: past the largest, memory and time grow faster than accuracy
MOST_LISTED = 10
T = TypeVar("T")


def image_folder(folder: str | Path, *, size: int | tuple[int, int] | None = None, test_seed: int = 0) -> Images:
    """The image set of a folder, read into memory as uint8: (N, H, W) if every pixel is grey, else (N, H, W, 3).

    Class sub-folders lie in `folder` itself, or in its `train/` and `test/`. size: (H, W), or one number for a square; images of
    another size are resized to it, without keeping the ratio of their sides. Left out, it is a square of the median side, from
    8 to 224 pixels; a multiple of 8, where images are larger than 32 pixels and not all alike.
    """
    folder = Path(folder)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "missing"
        raise DataError(f"{folder} is {found}; a folder with one sub-folder of images per class is needed")
    parts = {part: folder / part for part in PARTS if (folder / part).is_dir()}
    if "train" not in parts:  # a class may be called "test" when there is no "train" beside it
        parts = {"train": folder}
    files = {part: _files_by_class(path) for part, path in parts.items()}
    class_names = tuple(files["train"])
    if strangers := sorted(set(files.get("test", {})) - set(class_names)):
        raise DataError(f"{folder / 'test'} has classes that train lacks: {', '.join(strangers)}; the classes are {', '.join(class_names)}")

    every = [(part, class_names.index(name), path) for part, classes in files.items() for name, paths in classes.items() for path in paths]
    headers, unreadable = _attempt(_header, [path for _, _, path in every])
    if len(unreadable) == len(every):
        _raise_any(unreadable, len(every))
    colour = any(is_colour for _, is_colour in headers)
    height_width = _size(size, [side for side, _ in headers])
    readable = [path for _, _, path in every if path not in unreadable]
    pixels, corrupt = _attempt(lambda path: read_image(path, height_width, colour=colour), readable)
    _raise_any(unreadable | corrupt, len(every))

    stacked = np.stack(pixels)
    if colour and (stacked == stacked[..., :1]).all():  # WebP has no grey, and many JPEGs make no use of it
        stacked, colour = stacked[..., 0], False
    part_of = np.array([part for part, _, _ in every])
    x, y = ({part: array[part_of == part] for part in parts} for array in (stacked, np.array([label for _, label, _ in every])))
    source = f"{folder} ({len(every)} files, read at {height_width[0]} x {height_width[1]}, {'colour' if colour else 'grey'})"
    return arrays(
        x["train"],
        y["train"],
        x.get("test"),
        y.get("test"),
        class_names=class_names,
        layout="NHWC" if colour else "NHW",
        source=source,
        test_seed=test_seed,
        pixel_range=(0.0, 255.0),  # however dark the images are
    )


def read_image(path: str | Path, size: tuple[int, int], *, colour: bool) -> NDArray:
    """One file as uint8 (H, W), or (H, W, 3) if `colour`: turned as its EXIF data say, on white where transparent, resized."""
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers, on a scale that the file does not tell")
            if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip at 255
                deep = np.array(image, dtype=np.float32)
                deep[deep == image.info.get("transparency", -1)] = 65535
                image = Image.fromarray((deep / 257).round().clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            image = image.convert("RGB" if colour else "L")
            height, width = size
            if image.size != (width, height):
                image = image.resize((width, height), Image.Resampling.BILINEAR)  # Pillow widens the filter when it shrinks: no aliasing
            return np.asarray(image)
    except Exception as error:  # Pillow raises a dozen kinds: struct.error and TypeError, for one, where the EXIF data are damaged
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def read_images(paths: Sequence[Path], size: tuple[int, int], *, colour: bool) -> NDArray:
    """Files as one array, uint8 (N, H, W) or (N, H, W, 3): what a network trained on an image folder takes. See `read_image`."""
    if not paths:
        raise DataError("no image files were given")
    images, failed = _attempt(lambda path: read_image(path, size, colour=colour), paths)
    _raise_any(failed, len(paths))
    return np.stack(images)


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    """Class name -> its files, both in the order of their names."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} has no sub-folders; one sub-folder of images per class is needed")
    files = {path.name: sorted(filter(_is_image, path.rglob("*"))) for path in classes}
    if empty := [name for name, found in files.items() if not found]:
        raise DataError(f"{folder}: no PNG, JPEG or WebP file in the class folder(s) {', '.join(empty[:MOST_LISTED])}")
    return files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def _header(path: Path) -> tuple[tuple[int, int], bool]:
    """(height, width) and whether the file has colour, without decoding its pixels."""
    try:
        with Image.open(path) as file:
            width, height = file.size
            turned = file.getexif().get(0x0112, 1) >= 5  # EXIF orientations 5..8 lie on their side
            return ((width, height) if turned else (height, width)), not (file.mode in ("1", "L", "LA", "La") or file.mode.startswith("I"))
    except Exception as error:  # as in `read_image`
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _size(size: int | tuple[int, int] | None, found: list[tuple[int, int]]) -> tuple[int, int]:
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if min(height, width) < 1:
            raise DataError(f"images cannot be resized to {size}; a size is a positive number of pixels, or (height, width)")
        return height, width
    side = round(median(side for sides in found for side in sides))
    if side > 32 and len({side for sides in found for side in sides}) > 1:
        side = round(side / 8) * 8  # halves evenly, stage after stage
    side = min(LARGEST_SIDE, max(SMALLEST_SIDE, side))
    return side, side


def _attempt(read: Callable[[Path], T], paths: Sequence[Path]) -> tuple[list[T], dict[Path, DataError]]:
    """What `read` makes of every file that it can read, in order; and the error of every file that it cannot."""

    def one(path: Path) -> T | DataError:
        try:
            return read(path)
        except DataError as error:
            return error

    with ThreadPoolExecutor() as pool:  # decoding releases the interpreter lock
        results = list(pool.map(one, paths))
    failed = {path: result for path, result in zip(paths, results, strict=True) if isinstance(result, DataError)}
    return [result for result in results if not isinstance(result, DataError)], failed


def _raise_any(failed: Mapping[Path, DataError], count: int) -> None:
    """One error that names every file at fault, so that all can be mended at once."""
    if failed:
        listed = [str(error) for error in failed.values()][:MOST_LISTED]
        more = [f"... and {len(failed) - MOST_LISTED} more"] if len(failed) > MOST_LISTED else []
        raise DataError("\n".join([f"{len(failed)} of {count} files cannot be read:", *listed, *more]))
