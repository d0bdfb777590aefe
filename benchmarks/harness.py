"""What the benchmarks share: timing in turns, a record of the machine, results as JSON, and the tables of README.md made of them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from niwaki.deploy.card import versions
from niwaki.run.claims import grid
from niwaki.store.files import atomic_write

HERE = Path(__file__).parent
RESULTS, README = HERE / "results", HERE / "README.md"
BEGIN, END = "<!-- results: written by the benchmarks, do not edit -->", "<!-- end of results -->"
PACKAGES = ("niwaki", "torch", "numpy")
BUSY = 0.5  # load average per core from which on figures are not to be trusted


# --- timing ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A median with the quartiles around it."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Iterable[float]) -> Spread:
        low, middle, high = np.quantile(list(values), (0.25, 0.5, 0.75))
        return Spread(float(middle), float(low), float(high))

    def text(self, digits: int = 3, unit: str = "") -> str:
        return f"{self.median:.{digits}f}{unit} ({self.low:.{digits}f}-{self.high:.{digits}f})"


def in_turns(steps: Mapping[str, Callable[[], Any]], *, rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """CPU seconds of each step in each round. Every round runs each step once, starting with another one each time, so that what else
    the machine does, and the order, fall on all alike."""
    names = list(steps)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            began = time.process_time()
            steps[name]()
            if number >= 0:
                seconds[name].append(time.process_time() - began)
    return seconds


def paired_ratio(seconds: Mapping[str, Sequence[float]], name: str, reference: str) -> Spread:
    """time of `name` / time of `reference`, round by round."""
    return Spread.of(a / b for a, b in zip(seconds[name], seconds[reference], strict=True))


def cpu_seconds(step: Callable[[], Any], *, rounds: int, warmup: int = 1) -> Spread:
    """CPU seconds of one call of `step`."""
    return Spread.of(in_turns({"step": step}, rounds=rounds, warmup=warmup)["step"])


def timed(step: Callable[[], Any]) -> tuple[Any, float]:
    """What `step` returns, and the CPU seconds it took: for work that is done once, caches cold."""
    began = time.process_time()
    found = step()
    return found, time.process_time() - began


# --- results ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """One figure that the library promises, and what was measured. holds: None where nothing was promised, or it was not measured."""

    claim: str
    promised: str
    measured: str
    holds: bool | None = None


@dataclass(frozen=True)
class Table:
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Result:
    """What one benchmark found. command: how to measure it again. figures: the raw numbers behind claims and tables, as JSON."""

    name: str
    title: str
    command: str
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)


def machine(*, threads: int | None, seed: int, device: str | None = None) -> dict[str, Any]:
    """What the figures depend on; asked before the work, for the load and the code are those at its beginning. device: the name of the
    accelerator, where one is used. threads: None where what is measured decides that itself."""
    return {
        "processor": _processor(),
        "device": device,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {package: found for package, found in versions().items() if package in PACKAGES},
        **_commit(),
        "threads": threads,
        "seed": seed,
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d"),
    }


def _commit() -> dict[str, Any]:
    """The commit of the code, and whether the library or a benchmark differs from it; nothing where there is no git."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(HERE), *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "--short=7", "HEAD"),
            "local_changes": bool(git("status", "--porcelain", "../src", ":(glob)*.py")),
        }
    except (OSError, subprocess.CalledProcessError):
        return {}


def report(result: Result, about: Mapping[str, Any], *, quick: bool) -> None:
    """Prints the result; unless `quick`, keeps it as results/NAME.json and writes the tables of README.md anew."""
    content = json.loads(json.dumps({**asdict(result), "machine": about}))
    print("\n" + "\n".join(markdown(content)))
    if quick:
        print("(--quick: a smoke test; nothing is kept)")
        return
    RESULTS.mkdir(exist_ok=True)
    atomic_write(RESULTS / f"{result.name}.json", json.dumps(content, indent=1) + "\n")
    atomic_write(README, with_results(README.read_text(), stored_results()))
    print(f"kept in {RESULTS.name}/{result.name}.json and in {README.name}")


def stored_results() -> list[dict[str, Any]]:
    """The contents of results/*.json, by the number that each title begins with."""
    results = [json.loads(path.read_text()) for path in RESULTS.glob("*.json")]
    return sorted(results, key=lambda result: int(result["title"].partition(".")[0]))


def with_results(readme: str, results: Iterable[Mapping[str, Any]]) -> str:
    """`readme` with the part between its markers made anew from `results`: what it says never differs from the JSON."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{README.name} needs the lines {BEGIN!r} and {END!r}; the tables go between them")
    body = "\n\n".join("\n".join(markdown(result)) for result in results)
    return f"{before}{BEGIN}\n\n{body or 'Nothing has been measured yet.'}\n\n{END}{after}"


def markdown(content: Mapping[str, Any]) -> list[str]:
    """The lines of one result."""
    about = content["machine"]
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    lines = [f"### {content['title']}", ""]
    verdicts = {True: "yes", False: "**no**", None: ""}
    claims = [(claim["claim"], claim["promised"], claim["measured"], verdicts[claim["holds"]]) for claim in content["claims"]]
    lines += grid(("claim", "promised", "measured", "holds"), claims)
    for table in content["tables"]:
        lines += ["", f"{table['title']}:", "", *grid(table["columns"], table["rows"])]
    lines += [""] + [f"- {note}" for note in content["notes"]]
    busy = " (**a busy machine: measure again**)" if about["load_before"] > BUSY * about["cores"] else ""
    changed = ", with local changes" if about.get("local_changes") else ""
    commit = f"; commit {about['commit']}{changed}" if "commit" in about else ""
    threads = "threads and workers as niwaki decides" if about["threads"] is None else f"{about['threads']} thread(s)"
    hardware = ", ".join(filter(None, (about["device"], about["processor"], f"{about['cores']} cores")))
    return [
        *lines,
        f"- {about['date']}, {hardware}, {threads}, load {about['load_before']} before the start{busy}; "
        f"Python {about['python']}, {versions}{commit}; seed {about['seed']}; `{content['command']}`",
    ]


# --- command line ------------------------------------------------------------------------------------------------------------


def arguments(description: str, *more: Callable[[argparse.ArgumentParser], Any]) -> argparse.Namespace:
    """The command line: --quick and --seed, and what `more` add."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="everything tiny, to see that it runs; nothing is kept")
    parser.add_argument("--seed", type=int, default=0)
    for add in more:
        add(parser)
    return parser.parse_args()


def on_one_thread() -> None:
    """Starts the program again with one thread for numpy's and torch's kernels, unless it has one: they read this when they are loaded."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        os.environ["OMP_NUM_THREADS"] = "1"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def say(text: str) -> None:
    print(text, flush=True)


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
