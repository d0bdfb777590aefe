"""Work that is done once: named jobs on a few processes of one thread each, every result stored as soon as it is there."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from niwaki.run.folder import Folder, once

if TYPE_CHECKING:
    from niwaki.run.search import Progress


in_worker = False  # whether this process is one


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

    threads: of this process while it works, 1 as a worker has, or None for as many as before.
    A job is a function of its arguments alone, so that results do not depend on how many workers there are. With the caller's death, by
    whatever signal, the processes end, too. They are new interpreters, which know nothing of the caller's main program: a script need not
    be guarded by `__name__`, as for `multiprocessing`, and functions and classes of the script itself cannot be sent.
    """

    def __init__(self, count: int, *, threads: int | None = 1) -> None:
        if count < 1:
            raise ValueError(f"{count} workers were asked for; there is at least one")
        self.count, self.threads = count, threads
        self._processes: list[subprocess.Popen] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    def run(
        self, jobs: Sequence[Job], folder: Folder, progress: Progress, phase: str, stop: Callable[[], bool] = lambda: False
    ) -> dict[str, Any]:
        """The results by name: those that `folder` has are read, the others made, in this order as far as workers are free.

        stop: once it says so, no further job is begun; what was not has no result.
        """
        known = {job.name: folder.store.fact(f"result {job.name}") for job in jobs}
        results = {name: result for name, result in known.items() if result is not None}
        waiting = [job for job in jobs if job.name not in results]
        progress.phase(phase, len(jobs))
        progress.advance(len(results))
        if self.count > 1 and waiting:
            self._share(waiting, results, folder, progress, stop)
        elif waiting:
            self._do(waiting, results, folder, progress, stop)
        return {job.name: results[job.name] for job in jobs if job.name in results}

    def _do(self, waiting: list[Job], results: dict[str, Any], folder: Folder, progress: Progress, stop: Callable[[], bool]) -> None:
        with one_thread() if self.threads == 1 else nullcontext():
            for job in waiting:
                if stop():
                    return
                results[job.name] = once(folder, job.name, partial(job.function, *job.arguments))
                progress.advance(len(results))

    def _share(self, waiting: list[Job], results: dict[str, Any], folder: Folder, progress: Progress, stop: Callable[[], bool]) -> None:
        while len(self._processes) < self.count:
            self._processes.append(_started())
        idle, todo = list(self._processes), list(reversed(waiting))
        busy: dict[Future, tuple[subprocess.Popen, Job]] = {}
        with ThreadPoolExecutor(self.count) as threads:
            try:
                while todo or busy:
                    while todo and idle and not stop():
                        process, job = idle.pop(), todo.pop()
                        busy[threads.submit(_asked, process, job)] = process, job
                    if not busy:
                        return
                    for ready in wait(busy, return_when=FIRST_COMPLETED).done:
                        process, job = busy.pop(ready)
                        idle.append(process)
                        results[job.name] = once(folder, job.name, ready.result)
                        progress.advance(len(results))
            except BaseException:
                self.__exit__()  # or the threads would wait for the jobs that still run
                raise


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on one thread, as a worker does: the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _asked(process: subprocess.Popen, job: Job) -> Any:
    """The result of `job` from its process; runs in a thread of its own, which waits."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump((job.function, job.arguments), process.stdin)
        process.stdin.flush()
        succeeded, result = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError):
        raise JobFailed(f"the process that worked on {job.name!r} died; it may have run out of memory") from None
    if not succeeded:
        raise JobFailed(f"{job.name!r} failed:\n{result}")
    return result


def _started() -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(os.path.abspath(place or ".") for place in sys.path)}
    command = [sys.executable, "-c", "from niwaki.run.workers import serve; serve()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def serve() -> None:
    """What a worker does: one job after the other, from its standard input, until there is nobody left to ask for one."""
    global in_worker
    in_worker = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the caller, who ends us
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a job prints must not get among the answers
    jobs: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    torch.set_num_threads(1)
    while True:
        function, arguments = jobs.get()
        try:
            answer = (True, function(*arguments))
        except Exception:  # whatever it was, the caller is told and raises it there
            answer = (False, traceback.format_exc())
        pickle.dump(answer, answers)
        answers.flush()


def _listen(jobs: queue.SimpleQueue) -> None:
    """Hands on what the caller asks for. It listens while a job runs, too: so a worker ends with its caller at once."""
    while True:
        try:
            jobs.put(pickle.load(sys.stdin.buffer))
        except EOFError:
            os._exit(1)
        except Exception:
            jobs.put((_unreadable, (traceback.format_exc(),)))


def _unreadable(reason: str) -> None:
    raise RuntimeError(f"the worker could not read its job:\n{reason}")
