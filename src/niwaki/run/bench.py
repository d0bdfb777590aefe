"""`niwaki bench`: search methods compared on a table, fairly. What was searched is kept, each search once; all that is told is made from that."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from niwaki.deploy.card import versions
from niwaki.report.comparison import regret_svg, render_comparison
from niwaki.run.checklist import checklist
from niwaki.run.contest import BenchError, Question, contents, contest_of
from niwaki.run.curves import summary
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress, Silent
from niwaki.run.reproduce import machine
from niwaki.run.strategies import own_code, random_at_first
from niwaki.run.workers import Job, Workers
from niwaki.store.files import atomic_write

PACKAGE = Path(__file__).parents[1]


def bench(
    tables: Sequence[str | Path],
    *,
    objectives: Sequence[str],
    strategies: Sequence[str] = ("random",),
    limits: Sequence[str] = (),
    space: str | None = None,
    report: str | None = None,
    seconds: str | None = None,
    workers: int = 1,
    evaluations: int = 200,
    seeds: int = 20,
    out: str | Path | None = None,
    fresh: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """strategy -> {"regret": {"1": {"mean", "sem", "low", "high"}, ...}, ...}: one entry for each count of evaluations, in the objective's units.

    Each method's other figures stand beside its "regret"; those of all together are in results.json.

    tables, objectives, limits, space, report, seconds, workers, evaluations: see `Question`. strategies: names; random search, and
    parameters and MACs alone, are always added; `file.py:attr` is a strategy of one's own. seeds: 0 to `seeds` - 1, the same for all. out: the folder of the searches, where finished
    ones are found again, and of results.json, report.html and regret.svg. processes: that search at once; the results do not depend on it.
    """
    progress = progress or Silent()
    if seeds < 1:
        raise BenchError(f"{seeds} seeds; there is at least one")
    if processes < 1:
        raise BenchError(f"{processes} processes; there is at least one")
    question = Question(tuple(map(str, tables)), tuple(objectives), tuple(limits), space, report, seconds, workers, evaluations)
    files = contents(question)
    contest = contest_of(question, files)
    # of a strategy of the caller's own, searches are kept as long as its file stays as it is
    contestants = {name: f"{name} {own}" if (own := own_code(name)) else name for name in contest.contestants(strategies)}
    facts = contest.facts()
    for note in facts["notes"]:
        progress.note(note)
    asked = {
        **asdict(question),
        "tables": [f"{Path(path).name} {digest}" for path, digest in zip(question.tables, files, strict=False)],
        "space": " ".join([*([space] if space else []), *files[len(question.tables) :]]) or None,
        "code": code_hash(),
    }
    folder = Folder(
        out or Path("runs") / f"bench-{contest.table.name}-{_short(asked)}", asked={"bench": asked}, plan=lambda: facts, fresh=fresh
    )
    try:
        jobs = [Job(f"{key}/{seed}", play, (name, seed)) for seed in range(seeds) for name, key in contestants.items()]
        with Workers(processes, common=(question, files)) as pool:
            pool.run(jobs, folder, progress, f"{len(contestants)} searches with {seeds} seeds")
        run = {"command": command, "seeds": f"0 to {seeds - 1}", "finished": _now(), "code": asked["code"], **_machine()}
        known = folder.store.fact("contest")
        if known is None or (known["contestants"], known["seeds"]) != (contestants, seeds):
            folder.store.set_fact("contest", {"contestants": contestants, "seeds": seeds, "run": run})
        results = _write(folder)
        for note in results["facts"]["notes"][len(facts["notes"]) :]:  # of the methods; those of the table were said before
            progress.note(note)
        return results["strategies"]
    finally:
        folder.close()


def play(question: Question, files: tuple[str, ...], name: str, seed: int) -> dict[str, Any]:
    return contest_of(question, files).play(name, seed)


def write_comparison(folder: str | Path) -> dict[str, Any]:
    """results.json, report.html and regret.svg of a finished comparison anew, from what its folder holds: the same bytes. Returns the first."""
    opened = Folder(folder)
    try:
        return _write(opened)
    finally:
        opened.close()


def _write(folder: Folder) -> dict[str, Any]:
    contest = folder.store.fact("contest")
    if contest is None:
        raise BenchError(f"{folder.path} holds no finished comparison; `niwaki bench` with the same words goes on with it")
    records = {
        name: [folder.store.fact(f"result {key}/{seed}") for seed in range(contest["seeds"])]
        for name, key in contest["contestants"].items()
    }
    facts = {**folder.plan, "notes": [*folder.plan["notes"], *_of_methods(folder.plan, records)]}
    results = {**summary(facts, records), "run": contest["run"]}
    results["checklist"] = [asdict(item) for item in checklist(results)]
    atomic_write(folder.path / "results.json", json.dumps(results, indent=1) + "\n")
    atomic_write(folder.path / "report.html", render_comparison(results))
    atomic_write(folder.path / "regret.svg", regret_svg(results))
    return results


def _of_methods(facts: Mapping[str, Any], records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """What a reader should know of the methods as they searched here."""
    evaluations = min(facts["evaluations"], facts["allowed"])
    for name, of_seeds in records.items():
        if evaluations <= (first := random_at_first(name.partition("#")[0])):
            yield f"{name}: its first {first} evaluations are random; of {evaluations} all are"
        if again := sum(record.get("repeated", 0) for record in of_seeds):  # not kept by earlier versions
            made = sum(len(record["places"]) for record in of_seeds)
            yield f"{again:,} of {made:,} proposals of {name} were repeats; the contract forbids them unless its class says `repeats = True`"


def is_comparison(folder: str | Path) -> bool:
    """Whether the folder is one of `niwaki bench`."""
    file = Path(folder) / "config.json"
    try:
        return file.is_file() and "bench" in json.loads(file.read_text("utf-8"))["asked"]
    except (ValueError, KeyError, TypeError):
        return False


def table_of(results: Mapping[str, Any]) -> str:
    """The results as lines of text: mean regret after some numbers of evaluations, with its standard error."""
    last = len(next(iter(results.values()))["regret"])
    shown = [at for at in (10, 20, 50, 100, 150, 200, 500, 1000, 2000, 5000, 10_000) if at < last] + [last]
    lines = [f"{'evaluations':<20}" + "".join(f"{at:>18}" for at in shown)]
    for name, found in sorted(results.items(), key=lambda item: item[1]["regret"][str(last)]["mean"]):
        entries = [found["regret"][str(at)] for at in shown]
        lines.append(f"{name:<20}" + "".join(f"{entry['mean']:>10.4f} ±{entry['sem']:<6.4f}" for entry in entries))
    return "\n".join(lines)


def code_hash(package: Path = PACKAGE) -> str:
    """A hash of all code of niwaki: searches that other code has made are not gone on with. All, because a list of what decides how a search
    goes would be wrong with the next file that does."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(package).as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _machine() -> dict[str, Any]:
    known = machine()
    return {
        "processor": known["processor"],
        "cores": known["cores"],
        "versions": {key: versions()[key] for key in ("niwaki", "python", "numpy")},
    }


def cores() -> int:
    """How many processes may compute at once here."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _short(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:6]
