"""Killing a search: a process of its own that is stopped at any instant, and the files in which that may leave no trace."""

from __future__ import annotations

import hashlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def run_command(arguments: Sequence[str]) -> tuple[int, list[tuple[float, str]]]:
    """Exit code of `niwaki` with `arguments`, and what it told: seconds after its start, line."""
    began, told = time.monotonic(), []
    with _niwaki(arguments) as process:
        for text in process.stderr or ():
            told.append((time.monotonic() - began, text))
    return process.returncode, told


def run_until(arguments: Sequence[str], line: str, *, then_s: float = 0.0, by: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
    """Exit code (negative: the signal that ended it) and messages, sent `by` when it tells something that begins with `line`, a regular
    expression, and `then_s` seconds have passed."""
    told = []
    with _niwaki(arguments) as process:
        assert process.stderr is not None
        for text in process.stderr:
            told.append(text)
            if re.match(line, text):
                time.sleep(then_s)
                process.send_signal(by)
                break
        told += process.stderr.readlines()
    return process.returncode, "".join(told)


def _niwaki(arguments: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "niwaki.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def safetensors_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every safetensors file in a run's folder, by its path there."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.safetensors"))}
