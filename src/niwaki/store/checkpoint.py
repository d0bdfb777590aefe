"""Checkpoints: named arrays and JSON in one safetensors file, checksummed, written in one step, with the one before kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from niwaki.store.files import atomic_write

HEADER = "niwaki"  # the one entry of safetensors' own metadata: with more, their order, and the file, would differ between processes


class StoreError(RuntimeError):
    """A store or a checkpoint that cannot be read or written. What was in it before is untouched."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds. note: empty, or why the previous file was taken in place of the newest."""

    arrays: dict[str, np.ndarray]
    metadata: Any
    note: str = ""


def save_checkpoint(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Any) -> None:
    """Writes a checkpoint at `path` and keeps the one that was there as `previous_path(path)`.

    metadata: anything JSON holds. Killed at any instant, at least one of the two files is whole and `load_checkpoint` finds it.
    """
    path = Path(path)
    data = pack(arrays, metadata)

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # the old file moves only once the new one is safe
        if _fault(path) is None:  # a corrupt newest file must not take the place of a good previous one
            os.replace(path, previous_path(path))

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, write)
    except OSError as error:
        raise StoreError(f"the checkpoint {path} cannot be written: {error.strerror or error}; the one before it is untouched") from error


def load_checkpoint(path: str | Path) -> Checkpoint | None:
    """The newest whole checkpoint of those at `path` and `previous_path(path)`; None if there is neither."""
    faults = []
    for candidate in (Path(path), previous_path(path)):
        try:
            arrays, metadata = unpack(candidate.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, StoreError) as error:
            faults.append(f"{candidate} cannot be read ({error})")
        else:
            return Checkpoint(arrays, metadata, f"{faults[0]}; went on from {candidate.name}, the one before it" if faults else "")
    if faults:
        raise StoreError(f"{'; '.join(faults)}; there is no other checkpoint of it")
    return None


def previous_path(path: str | Path) -> Path:
    """Where the checkpoint before the newest lies: `search.safetensors` -> `search.previous.safetensors`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def pack(arrays: Mapping[str, np.ndarray], metadata: Any) -> bytes:
    """Named arrays and JSON as the bytes of a safetensors file; equal content gives equal bytes."""
    contiguous = {name: np.asarray(arrays[name], order="C") for name in sorted(arrays)}
    for name, array in contiguous.items():
        if array.dtype.kind not in "biuf":
            raise StoreError(f"array {name!r} is of {array.dtype}; checkpoints hold booleans, integers and floats")
    try:
        text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"the metadata of a checkpoint must be JSON, with finite numbers: {error}") from error
    header = json.dumps({"metadata": text, "sha256": _digest(contiguous, text)}, sort_keys=True)
    return safetensors.numpy.save(contiguous, metadata={HEADER: header})


def unpack(data: bytes) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays (writable) and the JSON that `pack` was given. Nothing is unpickled, and every byte is covered by a checksum."""
    try:
        arrays = safetensors.numpy.load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][HEADER])
        text, expected = header["metadata"], header["sha256"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"it is cut short or no checkpoint of niwaki: {error}") from error
    if _digest(arrays, text) != expected:
        raise StoreError("its content does not match its checksum")
    return {name: array.copy() for name, array in arrays.items()}, json.loads(text)


def _digest(arrays: Mapping[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        digest.update(f"\0{name}\0{arrays[name].dtype.str}\0{arrays[name].shape}\0".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


def _fault(path: Path) -> Exception | None:
    """What keeps the file at `path` from being a checkpoint, if anything."""
    try:
        unpack(path.read_bytes())
    except (OSError, StoreError) as error:
        return error
    return None
