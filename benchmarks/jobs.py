"""Long benchmarks as jobs (niwaki.run.workers), each kept when it is done: started again, a benchmark goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import duration, say

import niwaki
from niwaki.run.bench import code_hash
from niwaki.run.folder import Folder, RunError, differences, read_config
from niwaki.run.workers import Job, Workers


def work_folder(path: Path, plan: Mapping[str, Any]) -> Folder:
    """Where the results of jobs are kept. Those of another plan, or of other code, are not mixed in: they are refused."""
    asked = json.loads(json.dumps({"plan": plan, "code": code()}))
    anew = f"to start anew, delete it: rm -r {path}"
    try:
        if (before := read_config(path)) and (differing := differences(before["asked"], asked)):
            raise SystemExit(f"{path} holds results of another plan, or of other code ({'; '.join(differing)}); {anew}")
        return Folder(path, asked=asked)
    except RunError as error:  # something else is there, or another process is at work in it
        raise SystemExit(f"{error}; {anew}") from error


def code() -> str:
    """A hash of niwaki's source files, as they are, committed or not."""
    return code_hash(Path(niwaki.__file__).parent)


def run_jobs(jobs: Sequence[Job], folder: Folder, workers: int) -> dict[str, dict[str, Any]]:
    """The results of all jobs by name; those that `folder` has are read."""
    try:
        with Workers(workers) as pool:
            return pool.run(jobs, folder, Spoken(folder), f"{workers} at a time, kept in {folder.path}")
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted; what is done is kept in {folder.path}, and the same command goes on") from None
    finally:
        folder.book("jobs")


class Spoken:
    """A line for every job that is done; the time it took is booked, so that a benchmark that is killed and goes on knows how long it took."""

    def __init__(self, folder: Folder) -> None:
        self._folder, self._began, self._total = folder, time.monotonic(), 0

    def phase(self, name: str, total: int) -> None:
        self._total = total
        say(f"{total} jobs, {name}")

    def advance(self, done: int) -> None:
        self._folder.book("jobs")
        say(f"[{done}/{self._total}] after {duration(time.monotonic() - self._began)}")

    def note(self, text: str) -> None:
        say(text)
