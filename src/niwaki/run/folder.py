"""A run's folder: who works in it, what it is a run of, and its checkpoints as torch sees them."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor

from niwaki.store.checkpoint import load_checkpoint, pack, previous_path, save_checkpoint
from niwaki.store.engine import Store, open_store
from niwaki.store.files import atomic_write

SAVE_EVERY_S = 10.0  # seconds between checkpoints; what a kill costs at most

# What a run writes, beside config.json. A database goes after its log: alone it is an older state of itself, a log without it is not.
WRITTEN = (
    "run.sqlite-wal", "run.sqlite-shm", "run.sqlite", "checkpoints", "budget-*", "model.*", "cascade*", "architecture.json", "report.html", "results.json",
    "regret.svg", "tree.*",
)  # fmt: skip
LEFT_BEHIND = (".lock", ".*.partial", ".*.partial-*")  # by a process that was killed


class RunError(RuntimeError):
    """A run folder that cannot be used for what was asked."""


class Folder:
    """The folder of one run, held by one process at a time.

    asked: what the run was asked for; a folder of something else is refused. plan: makes what that was resolved to, once, for a new
    folder; what is in the folder already stays as it is, so that a resumed run does what it began, whatever a clock would say now.
    fresh: an earlier run in the folder, of whatever was asked then, is deleted, but only once the new one is planned. say: is told the notes.
    read_only: looks at a run that another process may be at work in.

    Where `plan` fails nothing is left behind, and nothing that was there is lost.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        asked: dict[str, Any] | None = None,
        plan: Callable[[], dict[str, Any]] = dict,
        fresh: bool = False,
        say: Callable[[str], None] = lambda text: None,
        read_only: bool = False,
    ) -> None:
        self.path, self._say = Path(path), say
        self._lock: TextIO | None = None
        self._saved = self._booked = time.monotonic()
        if asked is None and not (self.path / "config.json").is_file():
            raise RunError(f"{self.path} is no run: it has no config.json")
        if not (self.path / "config.json").is_file():
            _check_empty(self.path)
        made = [] if read_only else _make(self.path)
        try:
            if not read_only:
                self._lock = _locked(self.path)
            content = None if fresh else read_config(self.path)
            if content is None:
                content = self._begin(asked, plan)
            elif asked is not None and (differing := differences(content["asked"], json.loads(json.dumps(asked)))):
                raise RunError(
                    f"{self.path} holds a run of another configuration: {'; '.join(differing[:5])}{' ...' if len(differing) > 5 else ''}. "
                    f"Choose another --out, or --fresh to start this one anew"
                )
            self.asked, self.plan = content["asked"], content["plan"]
            self.store: Store = open_store(self.path / "run.sqlite", read_only=read_only)
        except BaseException:
            self._give_up(made)
            raise

    def _begin(self, asked: dict[str, Any] | None, plan: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Plans a new run and writes down what it is, in place of what the folder holds of an earlier one."""
        file = self.path / "config.json"
        content = json.loads(json.dumps({"asked": asked, "plan": plan()}))
        for pattern in WRITTEN:  # config.json goes last, by being replaced: the folder stays a run, whenever the process stops
            for entry in sorted(self.path.glob(pattern)):
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        atomic_write(file, json.dumps(content, indent=2) + "\n")
        return content

    def _give_up(self, made: list[Path]) -> None:
        """Leaves things as they were before, for want of a plan or of the lock."""
        if self._lock is not None and not (self.path / "config.json").is_file():
            (self.path / ".lock").unlink(missing_ok=True)  # only while it is ours: else it is another process that works under it
        _unmake(made)
        self._unlock()

    def close(self) -> None:
        self.store.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()  # which gives the lock back, too

    def is_at_work(self) -> bool:
        """Whether a process, this one or another, works on the run right now."""
        try:
            with (self.path / ".lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # given back at once, by closing the file
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def note(self, text: str) -> None:
        """Says `text`, and keeps it among the notes that the report shows; once."""
        notes = self.store.fact("notes", [])
        if text not in notes:
            self.store.set_fact("notes", [*notes, text])
            self._say(text)

    # --- time --------------------------------------------------------------------------------------------------------

    def book(self, phase: str) -> None:
        """Adds the wall time since the last booking to what `phase` has taken, over all processes that worked on it."""
        now = time.monotonic()
        spent = self.store.fact("seconds", {})
        self.store.set_fact("seconds", {**spent, phase: spent.get(phase, 0.0) + now - self._booked})
        self._booked = now

    def elapsed(self) -> float:
        """Seconds of wall time that the run has taken, over all processes; of one that was killed, up to its last booking."""
        return sum(self.store.fact("seconds", {}).values()) + time.monotonic() - self._booked

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, name: str, state: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        tensors, content = state
        save_checkpoint(self._checkpoint(name), {key: tensor.numpy() for key, tensor in tensors.items()}, content)
        self._saved = time.monotonic()

    def seal(self, name: str, state: tuple[dict[str, Tensor], dict[str, Any]]) -> None:
        """Lets the newest checkpoint and the one before it both hold `state`, in which `name` ended: nothing earlier is needed any more.

        A finished run then has the same files however often it was stopped, and one of them may be damaged without loss.
        """
        tensors, content = state
        data = pack({key: tensor.numpy() for key, tensor in tensors.items()}, content)
        newest = self._checkpoint(name)
        for path in (newest, previous_path(newest)):
            if not path.is_file() or path.read_bytes() != data:
                atomic_write(path, data)

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


def check_is_search(path: Path, asked: dict[str, Any]) -> None:
    """Refuses what `asked` for something else than a search, with the command that it was."""
    if method := asked.get("reproduce"):
        again = f"niwaki reproduce {method}{' --quick' if asked.get('quick') else ''} --out {path}"
        raise RunError(f"{path} holds a run of `niwaki reproduce`, not of a search; `{again}` goes on with it, or tells what it found")
    if "bench" in asked:
        raise RunError(
            f"{path} holds a comparison of `niwaki bench`, not a search; `niwaki report {path}` tells what it found, and the words that "
            f"it was begun with go on with it"
        )


def check_is_not_shrunken(path: Path, asked: dict[str, Any]) -> None:
    """Refuses what `asked` for a network of its owner's to be made smaller, where only a search will do."""
    if "shrink" in asked:
        raise RunError(
            f"{path} holds a run of `niwaki shrink`, not of a search; `niwaki resume {path}` goes on with it, and exports its network anew where a file of it "
            "was deleted"
        )


def read_config(path: Path) -> dict[str, Any] | None:
    """What the run in `path` was asked for and planned to do, `{"asked", "plan"}`; None if there is no run."""
    file = path / "config.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text("utf-8"))
        if {"asked", "plan"} <= set(content):
            return content
        problem = "it says not what was asked and planned"
    except (ValueError, TypeError) as error:
        problem = str(error)
    raise RunError(f"{file} is damaged or not niwaki's: {problem}. Choose another --out, or --fresh to start the run anew")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs between two configurations, key by key."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    return [] if old == new else [f"{path.removeprefix('config.')} is {_word(old)} there and {_word(new)} now"]


def once(folder: Folder, name: str, compute: Callable[[], Any]) -> Any:
    """The JSON result of a step of a run: computed and stored the first time, read afterwards."""
    key = f"result {name}"
    if (known := folder.store.fact(key)) is None:
        folder.store.set_fact(key, compute())
        known = folder.store.fact(key)  # read back: the same value, in the same order, the first time and every other
    return known


def _word(value: Any) -> str:
    return "left open" if value is None else json.dumps(value)


def _check_empty(path: Path) -> None:
    """Refuses a folder that is somebody else's."""
    if not path.is_dir():
        return
    left = {entry for pattern in LEFT_BEHIND for entry in path.glob(pattern)}
    if others := sorted(entry.name for entry in path.iterdir() if entry not in left):
        listed = f"{', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"
        raise RunError(f"{path} is not empty and holds no run ({listed}); choose another --out")


def _make(path: Path) -> list[Path]:
    """Makes the folder `path`; gives those that were not there before, the outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()][::-1]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _unmake(missing)
        in_the_way = next((folder for folder in (path, *path.parents) if folder.is_file()), None)
        reason = f"{in_the_way} is a file" if in_the_way else error.strerror or str(error)
        raise RunError(f"the output folder {path} cannot be made: {reason}; choose another --out") from error
    return missing


def _unmake(made: list[Path]) -> None:
    """Removes what `_make` made and nothing has been written into."""
    for folder in reversed(made):
        try:
            folder.rmdir()
        except OSError:  # something is in it, or it was never made
            continue


def _locked(path: Path) -> TextIO:
    """The open lock file of a run's folder. The system gives the lock back when the process ends, however it ends."""
    while True:
        try:
            lock = open(path / ".lock", "a")  # noqa: SIM115 held until the run is closed
        except OSError as error:
            raise RunError(f"the output folder {path} cannot be written to: {error.strerror or error}; choose another --out") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            if isinstance(error, BlockingIOError):
                raise RunError(f"another process is at work in {path}; wait for it, or choose another --out") from error
            raise RunError(f"the output folder {path} cannot be locked: {error.strerror or error}; choose another --out") from error
        if _is_at(path / ".lock", lock):
            return lock
        lock.close()  # a process that gave up has removed the file since we opened it: a lock on it keeps nobody out


def _is_at(path: Path, file: TextIO) -> bool:
    """Whether the open `file` is what lies at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
