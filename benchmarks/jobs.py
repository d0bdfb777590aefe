"""Long benchmarks as jobs, each kept when it is done: started again, a benchmark goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

from harness import duration, say

from niwaki.store.files import atomic_write


@dataclass(frozen=True)
class Job:
    """`work(*args)`, a function of its arguments alone that returns JSON, in a process of its own. kind: jobs of one kind take equally long;
    weight: how long one takes beside those of weight 1, until it is known."""

    key: str
    kind: str
    work: Callable[..., dict[str, Any]]
    args: tuple[Any, ...] = ()
    weight: float = 1.0


def run_jobs(jobs: Sequence[Job], folder: Path, workers: int, tell: Callable[[dict[str, Any]], str]) -> dict[str, dict[str, Any]]:
    """The results of all jobs by key, with "wall_s" and "cpu_s"; those that `folder` keeps are read. tell: a result in a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    results = {job.key: json.loads(path.read_text()) for job in jobs if (path := folder / f"{job.key}.json").is_file()}
    todo = [job for job in jobs if job.key not in results]
    say(f"{len(jobs)} jobs, {len(results)} of them done before; {workers} at a time; kept in {folder}")
    began = time.monotonic()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running: dict[Future, Job] = {pool.submit(_timed, job): job for job in todo}
        try:
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    job, found = running.pop(future), future.result()
                    atomic_write(folder / f"{job.key}.json", json.dumps(found, indent=1) + "\n")
                    results[job.key] = found
                    left = _expected([*running.values()], [(one, results[one.key]) for one in jobs if one.key in results]) / workers
                    say(
                        f"[{len(results)}/{len(jobs)}] {job.key}: {tell(found)} in {duration(found['wall_s'])}; "
                        f"{duration(time.monotonic() - began)} so far, about {duration(left)} left"
                    )
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if isinstance(error, KeyboardInterrupt):
                raise SystemExit(f"interrupted with {len(results)} of {len(jobs)} jobs done; the same command goes on") from None
            raise
    return {job.key: results[job.key] for job in jobs}


def _timed(job: Job) -> dict[str, Any]:
    began, cpu = time.perf_counter(), time.process_time()
    found = job.work(*job.args)
    return {"cpu_s": time.process_time() - cpu, **found, "wall_s": time.perf_counter() - began}


def _expected(jobs: Sequence[Job], done: Sequence[tuple[Job, Mapping[str, Any]]]) -> float:
    """Seconds that `jobs` will take one after another."""
    unit = mean(found["wall_s"] / job.weight for job, found in done)
    known = {kind: mean(found["wall_s"] for job, found in done if job.kind == kind) for kind in {job.kind for job, _ in done}}
    return sum(known.get(job.kind, unit * job.weight) for job in jobs)


def require_same_plan(plan: Mapping[str, Any], folder: Path) -> None:
    """Refuses to mix results of different plans."""
    path, content = folder / "plan.json", json.loads(json.dumps(plan))
    if path.is_file() and (before := json.loads(path.read_text())) != content:
        raise SystemExit(f"{folder} holds results of another plan ({before}, now {content}); remove it to start anew")
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(content, indent=1) + "\n")
