"""A learner run to its end: from its last checkpoint, saving and logging on the way, within its time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor

from niwaki.gradient.dmasking import DMaskingSearch
from niwaki.gradient.tunas import TuNASSearch
from niwaki.run.folder import Folder, RunError
from niwaki.run.progress import Progress
from niwaki.train.loop import Training, TrainingDiverged

CHUNK_S = 1.0  # seconds between looks at the clock


class _Learner(Protocol):
    """A training of a supernet: DMaskingSearch, TuNASSearch, OneShotSearch or TrainOnceSearch."""

    step: int
    history: list[Any]

    @property
    def total_steps(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    def run(self, max_steps: int | None = None) -> None: ...
    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...
    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None: ...


class _Limit(Protocol):
    """When the time for a phase is over: a `Clock`."""

    def over(self, phase: str, part: float = 1.0) -> bool: ...


class NoLimit:
    """There is all the time in the world."""

    def over(self, phase: str, part: float = 1.0) -> bool:
        return False


def learn(
    learner: _Learner | Training,
    folder: Folder,
    progress: Progress,
    clock: _Limit,
    *,
    phase: str,
    name: str,
    part: float = 1.0,
    begin: Callable[[], None] = lambda: None,
) -> None:
    """Runs `learner` to its end, from its last checkpoint, saving and logging on the way; cut short where the time is up.

    phase: whose time it takes, up to `part` of it. name: of its checkpoints, its log and its facts. begin: done first, where there is no
    checkpoint yet.
    """
    if (saved := folder.load(name)) is not None:
        learner.load(*saved)
    elif folder.store.fact(f"cut {name}") is not None:
        raise RunError(f"{folder.path} has no checkpoint of {name} any more, which a time limit had cut short; --fresh starts the run anew")
    else:
        begin()
    total = learner.recipe.epochs * learner.steps_per_epoch if isinstance(learner, Training) else learner.total_steps
    progress.phase(name, total)
    progress.advance(learner.step)
    steps, logged = 4, len(learner.history)  # an epoch is logged before it is in a checkpoint
    with interruptible() as interrupted:
        while not learner.finished and folder.store.fact(f"cut {name}") is None:
            at = time.monotonic()
            learner.run(steps)
            took = time.monotonic() - at
            # what a chunk holds never matters to the result, only how soon a key press or the limit is noticed
            steps = max(1, min(2 * steps, int(steps * CHUNK_S / max(took, 1e-3))))
            logged = _log(learner, folder, name, logged)
            progress.advance(learner.step)
            cut = clock.over(phase, part) and not learner.finished
            if cut or interrupted() or learner.finished or folder.due():
                folder.save(name, _whole(learner))
                folder.book(phase)
            if cut:
                folder.store.set_fact(f"cut {name}", learner.step)
                folder.store.set_fact(f"planned {name}", total)
                folder.note(f"The time limit cut {name} short: {learner.step} of {total} steps were taken.")
            if interrupted():
                raise KeyboardInterrupt
    folder.seal(name, _whole(learner))


def _whole(learner: _Learner | Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of `learner`, of which every number is finite: a checkpoint never takes the place of a better one."""
    tensors, content = learner.state_dict()
    if wrong := next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None):
        raise TrainingDiverged(f"{wrong} became NaN or infinite", len(learner.history) + 1, learner.step)
    return tensors, content


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, Ctrl-C only makes the yielded function true, so that a step is never left half done; a second Ctrl-C stops at once."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is not signal.default_int_handler:
        yield lambda: False  # somebody else's to handle
        return
    pressed: list[int] = []

    def remember(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, handler)


def _log(learner: _Learner | Training, folder: Folder, name: str, logged: int) -> int:
    """Stores the records of epochs that are over, with the probabilities of the choices where some are learned."""
    for record in learner.history[logged:]:
        row = {key: value for key, value in vars(record).items() if key != "epoch"}
        if isinstance(learner, (DMaskingSearch, TuNASSearch)) and record is learner.history[-1]:
            row["probabilities"] = [{key: p.tolist() for key, p in own.items()} for own in learner.probabilities()]
        folder.store.log("run", name, record.epoch, row)
    return len(learner.history)
