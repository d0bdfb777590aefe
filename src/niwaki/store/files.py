"""Files that are either the old one or the new one, whole, whenever the process or the machine stops."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def atomic_write(path: str | Path, content: bytes | str | Callable[[Path], None]) -> None:
    """Puts `content` at `path` in one step: written to a temporary name beside it, fsynced, renamed, and the folder fsynced.

    content: bytes, text (UTF-8), or a function that writes to the path that it is given. One writer per file: the temporary name is fixed,
    so that what a killed process leaves behind is overwritten by the next attempt instead of piling up.
    Raises OSError naming `path` (a full disk among them); the old file, if there was one, is then untouched.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        if callable(content):
            content(partial)
        else:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
        _fsync(partial)
        os.replace(partial, path)
        _fsync(path.parent)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None and error.filename != str(path):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
