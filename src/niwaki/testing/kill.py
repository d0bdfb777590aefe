"""Killing a search: a process of its own that is stopped at any instant, and the files in which that may leave no trace."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path


def run_command(arguments: Sequence[str], *, stop_after_s: float | None = None, by: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
    """Exit code (negative: the signal that ended it) and messages of `niwaki` with `arguments`, sent `by` after so many seconds."""
    command = [sys.executable, "-m", "niwaki.cli", *arguments]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, told = process.communicate(timeout=stop_after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(by)
            _, told = process.communicate()
        return process.returncode, told


def run_until(arguments: Sequence[str], line: str, *, then_s: float = 0.0, by: signal.Signals = signal.SIGKILL) -> tuple[int, str]:
    """The same, but sent `by` when it tells something that begins with `line`, and `then_s` seconds have passed."""
    command = [sys.executable, "-m", "niwaki.cli", *arguments]
    told = []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for text in process.stderr:
            told.append(text)
            if text.startswith(line):
                time.sleep(then_s)
                process.send_signal(by)
                break
        told += process.stderr.readlines()
    return process.returncode, "".join(told)


def safetensors_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every safetensors file in a run's folder, by its path there."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.safetensors"))}
