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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, Any

import torch

from niwaki.run.asking import PLAIN
from niwaki.run.folder import Folder, once
from niwaki.run.progress import Progress

LOOK_S = 0.5  # seconds between looks at the clock while processes work

Stop = Callable[[Mapping[str, Any]], bool]


class JobFailed(RuntimeError):
    """A job that raised an error in its process, or whose process died. What other jobs gave is kept."""


@dataclass(frozen=True)
class Job:
    """`function(*common, *arguments)` gives JSON. name: of its result in the folder. function: of a module; it goes to its process by name."""

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()


class Workers:
    """`count` processes, started when there is something to do; of one worker, the work is done in this process.

    common: what every job is given before its own arguments; sent to each process once. threads: of this process while it works, 1 as a
    worker has, or None for as many as before.
    A job is a function of its arguments alone, so that results do not depend on how many workers there are. With the caller's death, by
    whatever signal, the processes end, too. They are new interpreters, which know nothing of the caller's main program: a script need not
    be guarded by `__name__`, as for `multiprocessing`, and functions and classes of the script itself cannot be sent.
    """

    def __init__(self, count: int, *, common: tuple[Any, ...] = (), threads: int | None = 1) -> None:
        if count < 1:
            raise ValueError(f"{count} workers were asked for; there is at least one")
        self.count, self.common, self.threads = count, common, threads
        self._started: list[_Worker] = []

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._started:
            worker.end()
        self._started.clear()

    def run(
        self,
        jobs: Sequence[Job],
        folder: Folder,
        progress: Progress,
        phase: str,
        stop: Stop = lambda results: False,
        abandon: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """The results by name: those that `folder` has are read, the others made, in this order as far as workers are free.

        stop: asked with the results so far; once it says so, no further job is begun, and what was not has no result.
        abandon: asked every now and then while processes work; once it says so, what they have begun is given up, too.
        """
        known = {job.name: folder.store.fact(f"result {job.name}") for job in jobs}
        results = {name: result for name, result in known.items() if result is not None}
        waiting = [job for job in jobs if job.name not in results]
        progress.phase(phase, len(jobs))
        progress.advance(len(results))
        if self.count > 1 and waiting:
            self._share(waiting, results, folder, progress, stop, abandon)
        elif waiting:
            self._do(waiting, results, folder, progress, stop)
        return {job.name: results[job.name] for job in jobs if job.name in results}

    def _do(self, waiting: list[Job], results: dict[str, Any], folder: Folder, progress: Progress, stop: Stop) -> None:
        with one_thread() if self.threads == 1 else nullcontext():
            for job in waiting:
                if stop(results):
                    return
                results[job.name] = once(folder, job.name, partial(job.function, *self.common, *job.arguments))
                progress.advance(len(results))

    def _share(
        self, waiting: list[Job], results: dict[str, Any], folder: Folder, progress: Progress, stop: Stop, abandon: Callable[[], bool]
    ) -> None:
        if (missing := min(self.count, len(waiting)) - len(self._started)) > 0:
            common = pickle.dumps(self.common)
            self._started += [_Worker(common) for _ in range(missing)]
        idle, todo = list(self._started), list(reversed(waiting))
        busy: dict[Future, tuple[_Worker, Job]] = {}
        with ThreadPoolExecutor(self.count) as threads:
            try:
                while todo or busy:
                    while todo and idle and not stop(results):
                        worker, job = idle.pop(), todo.pop()
                        busy[threads.submit(worker.ask, job)] = worker, job
                    if not busy:
                        return
                    done = wait(busy, timeout=LOOK_S, return_when=FIRST_COMPLETED).done
                    if not done and abandon():
                        self.__exit__()
                        return
                    for ready in sorted(done, key=lambda one: one.exception() is not None):  # results are kept before an error is raised
                        worker, job = busy.pop(ready)
                        idle.append(worker)
                        results[job.name] = once(folder, job.name, ready.result)
                        progress.advance(len(results))
            except BaseException:
                self.__exit__()  # or the threads would wait for the jobs that still run
                raise


class Pool:
    """`count` processes for calls of `function(*common, *arguments)`, which give what can be pickled. What is submitted while all are busy waits.

    function, common: as of `Job` and `Workers`; the processes are of the same kind.
    """

    def __init__(self, count: int, function: Callable[..., Any], common: tuple[Any, ...] = ()) -> None:
        if count < 1:
            raise ValueError(f"{count} workers were asked for; there is at least one")
        self._function, self._idle = function, queue.SimpleQueue[_Worker]()
        packed = pickle.dumps(common)
        self._started = [_Worker(packed) for _ in range(count)]
        for worker in self._started:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(count)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._started:
            worker.end()
        self._threads.shutdown(cancel_futures=True)

    def submit(self, *arguments: Any) -> Future[Any]:
        """The result to be; JobFailed, where the function raises or its process dies, but `PLAIN` errors as they are."""
        return self._threads.submit(self._call, arguments)

    def _call(self, arguments: tuple[Any, ...]) -> Any:
        worker = self._idle.get()
        try:
            return worker.ask(Job(f"{self._function.__name__} of {arguments!r:.200}", self._function, arguments))
        finally:
            self._idle.put(worker)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch computes on one thread, as a worker does: the same bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Worker:
    """A process that does one job after the other, as its caller sees it. common: pickled; it goes with the first job."""

    def __init__(self, common: bytes) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(os.path.abspath(place or ".") for place in sys.path)}
        # Ctrl-C is for the caller, who ends the process, which may not have come further than its imports
        code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); from niwaki.run.workers import serve; serve()"
        # -P: or whatever lies in the current folder would come before all that the caller imports
        command = [sys.executable, "-P", "-c", code]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        self._unsent = [common]

    def ask(self, job: Job) -> Any:
        """The result of `job`; waits for it, so it is called in a thread of its own. Raises JobFailed, and `PLAIN` errors as they are."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for message in (*self._unsent, pickle.dumps((job.function, job.arguments))):
                _send(process.stdin, message)
            self._unsent.clear()
            succeeded, result = pickle.loads(_receive(process.stdout))
        except (EOFError, BrokenPipeError):
            killed = process.wait() == -signal.SIGKILL
            why = (
                "was killed; it may have run out of memory, of which fewer workers need less"
                if killed
                else f"ended with status {process.returncode}"
            )
            raise JobFailed(f"the process that worked on {job.name!r} {why}. What other jobs gave is kept, and the run can go on") from None
        if not succeeded:
            if isinstance(result, PLAIN):
                raise result
            raise JobFailed(f"{job.name!r} failed:\n{result}")
        return result

    def end(self) -> None:
        self._process.kill()
        with suppress(BrokenPipeError), self._process:  # which closes the pipes and waits
            pass


def serve() -> None:
    """What a worker does: one job after the other, from its standard input, until there is nobody left to ask for one."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a job prints must not get among the answers
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    torch.set_num_threads(1)
    unread: list[bytes] = [messages.get()]
    common: tuple[Any, ...] = ()
    while True:
        message = messages.get()
        try:
            while unread:
                common = pickle.loads(unread[-1])
                unread.pop()
            function, arguments = pickle.loads(message)
            answer = pickle.dumps((True, function(*common, *arguments)))
        except PLAIN as error:  # raised there as it would have been here: a traceback would hide what it says
            answer = pickle.dumps((False, error))
        except Exception:  # whatever it was, the caller is told and raises it there
            answer = pickle.dumps((False, traceback.format_exc()))
        _send(answers, answer)


def _listen(messages: queue.SimpleQueue[bytes]) -> None:
    """Hands on what the caller asks for. It listens while a job runs, too: so a worker ends with its caller at once."""
    while True:
        try:
            messages.put(_receive(sys.stdin.buffer))
        except EOFError:
            os._exit(1)


# A message is its length, 8 bytes, and so many bytes of a pickle: who cannot make sense of one is not out of step for the next.


def _send(stream: IO[bytes], message: bytes) -> None:
    stream.write(len(message).to_bytes(8))
    stream.write(message)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    """The next message. Raises EOFError where the stream ends before it does."""
    return _exactly(stream, int.from_bytes(_exactly(stream, 8)))


def _exactly(stream: IO[bytes], length: int) -> bytes:
    found = stream.read(length)
    if len(found) < length:
        raise EOFError
    return found
