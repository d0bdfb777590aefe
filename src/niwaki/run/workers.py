"""Work that is done once: named jobs on a few processes of one thread each, every result stored as soon as it is there."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from niwaki.run.folder import Folder, once
from niwaki.run.search import Progress


class JobFailed(RuntimeError):
    """A job that raised an error, or whose process died. What other jobs gave is kept."""


@dataclass(frozen=True)
class Job:
    """`function(*arguments)` gives JSON. name: of its result in the folder. function: of a module, as it goes to its process by name."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


class Workers:
    """`count` processes, started when there is something to do; of one worker, the work is done in this process.

    A job is a function of its arguments alone, so that results do not depend on how many workers there are. With the caller's death, by
    whatever signal, the processes end, too. They start by spawning: a program that calls this guards its main part by `__name__`.
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"{count} workers were asked for; there is at least one")
        self.count = count
        self._processes: list[tuple[BaseProcess, Connection]] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process, connection in self._processes:
            connection.close()
            process.terminate()
            process.join()
        self._processes.clear()

    def run(self, jobs: Sequence[Job], folder: Folder, progress: Progress, phase: str) -> dict[str, Any]:
        """The results of all jobs by name: those that `folder` has are read, the others made, in this order as far as workers are free."""
        results = {job.name: folder.store.fact(f"result {job.name}") for job in jobs}
        waiting = [job for job in jobs if results[job.name] is None]
        progress.phase(phase, len(jobs))
        progress.advance(len(jobs) - len(waiting))
        if self.count == 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            try:
                for done, job in enumerate(waiting, len(jobs) - len(waiting) + 1):
                    results[job.name] = once(folder, job.name, partial(job.function, *job.arguments))
                    progress.advance(done)
            finally:
                torch.set_num_threads(threads)
        elif waiting:
            self._share(waiting, results, folder, progress)
        return results

    def _share(self, waiting: list[Job], results: dict[str, Any], folder: Folder, progress: Progress) -> None:
        while len(self._processes) < self.count:
            self._processes.append(_started())
        busy: dict[Connection, Job] = {}
        queue = list(reversed(waiting))
        done = len(results) - len(waiting)
        while queue or busy:
            for _, connection in self._processes:
                if queue and connection not in busy:
                    busy[connection] = queue.pop()
                    connection.send((busy[connection].function, busy[connection].arguments))
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                job = busy.pop(ready)
                results[job.name] = once(folder, job.name, partial(_received, ready, job))
                done += 1
                progress.advance(done)


def _received(connection: Connection, job: Job) -> Any:
    try:
        succeeded, result = connection.recv()
    except EOFError:
        raise JobFailed(f"the process that worked on {job.name!r} died; it may have run out of memory") from None
    if not succeeded:
        raise JobFailed(f"{job.name!r} failed:\n{result}")
    return result


def _started() -> tuple[BaseProcess, Connection]:
    context = get_context("spawn")  # a fork would inherit torch's threads and the store's connection
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()  # or the death of the process would go unnoticed
    return process, ours


def _serve(connection: Connection) -> None:
    """What a worker does: one job after the other, until there is nobody left to ask for one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = (True, function(*arguments))
        except Exception:  # whatever it was, the caller is told and raises it there
            answer = (False, traceback.format_exc())
        connection.send(answer)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
