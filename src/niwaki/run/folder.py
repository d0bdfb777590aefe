"""A run's folder: who works in it, what it is a run of, and its checkpoints as torch sees them."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.store.checkpoint import StoreError, load_checkpoint, save_checkpoint
from niwaki.store.engine import Store, open_store
from niwaki.store.files import atomic_write

SAVE_EVERY_S = 10.0  # seconds between checkpoints; what a kill costs at most


class RunError(RuntimeError):
    """A run folder that cannot be used for what was asked."""


class Folder:
    """The folder of one run, held by one process at a time.

    asked: what the run was asked for; a folder of something else is refused. plan: makes what that was resolved to, once, for a new
    folder; what is in the folder already stays as it is, so that a resumed run does what it began, whatever a clock would say now.
    """

    def __init__(self, path: str | Path, *, asked: dict[str, Any] | None = None, plan: Callable[[], dict[str, Any]] = dict) -> None:
        self.path = Path(path)
        file = self.path / "config.json"
        if asked is None and not file.is_file():
            raise RunError(f"{self.path} is no run: it has no config.json")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "w")
        except OSError as error:
            raise RunError(f"the output folder {self.path} cannot be written: {error.strerror or error}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"another process is at work in {self.path}; wait for it, or choose another --out") from error
        if file.is_file():
            content: dict[str, Any] = json.loads(file.read_text())
            if asked is not None and (differing := differences(content["asked"], json.loads(json.dumps(asked)))):
                raise RunError(
                    f"{self.path} holds a run of another configuration: {'; '.join(differing[:5])}{' ...' if len(differing) > 5 else ''}. "
                    f"Choose another --out, or --fresh to start this one anew"
                )
        else:
            others = [entry.name for entry in self.path.iterdir() if entry.name not in (".lock", ".config.json.partial")]
            if others:
                raise RunError(f"{self.path} is not empty and holds no run ({', '.join(sorted(others)[:3])}); choose another --out")
            content = json.loads(json.dumps({"asked": asked, "plan": plan()}))
            atomic_write(file, json.dumps(content, indent=2) + "\n")
        self.asked, self.plan = content["asked"], content["plan"]
        self.store: Store = open_store(self.path / "run.sqlite")
        self._saved = time.monotonic()

    def close(self) -> None:
        self.store.close()
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._lock.close()

    def note(self, text: str) -> None:
        """Keeps `text` among the notes that the report shows; once."""
        notes = self.store.fact("notes", [])
        if text not in notes:
            self.store.set_fact("notes", [*notes, text])

    def spend(self, phase: str, seconds: float) -> None:
        """Adds wall time to what `phase` has taken, over all processes that worked on it."""
        spent = self.store.fact("seconds", {})
        self.store.set_fact("seconds", {**spent, phase: spent.get(phase, 0.0) + seconds})

    # --- checkpoints ---------------------------------------------------------------------------------------------------

    def save(self, name: str, state: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        tensors, content = state
        save_checkpoint(self._checkpoint(name), {key: tensor.numpy() for key, tensor in tensors.items()}, content)
        self._saved = time.monotonic()

    def due(self) -> bool:
        """Whether it is time for another checkpoint."""
        return time.monotonic() - self._saved > SAVE_EVERY_S

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole checkpoint of that name, or None; a damaged one is noted."""
        found = load_checkpoint(self._checkpoint(name))
        if found is None:
            return None
        if found.note:
            self.note(found.note)
        return {key: torch.from_numpy(np.array(array)) for key, array in found.arrays.items()}, found.metadata

    def _checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.safetensors"


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two configurations, as `key: old, now new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    return [] if old == new else [f"{path} is {old!r} there and {new!r} now"]


def once(folder: Folder, name: str, compute: Callable[[], Any]) -> Any:
    """The JSON result of a step of a run: computed and stored the first time, read afterwards."""
    key = f"result {name}"
    if (known := folder.store.fact(key)) is None:
        known = json.loads(json.dumps(compute()))
        folder.store.set_fact(key, known)
    return known


def clear(path: Path) -> None:
    """Deletes what a run wrote in its folder, and nothing else."""
    if not path.exists():
        return
    if not (path / "config.json").is_file() and any(entry.name != ".lock" for entry in path.iterdir()):
        raise RunError(f"{path} holds no run; --fresh only deletes runs")
    shutil.rmtree(path)


__all__ = ["Folder", "RunError", "StoreError", "clear", "differences", "once"]
