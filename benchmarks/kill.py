"""A digits search killed again and again ends with the same bits as one left alone.

    python benchmarks/kill.py [--kills 20] [--seed 0] [--full] [--folder FOLDER]

One search is left alone and timed. Another is sent SIGKILL at instants drawn uniformly over that wall time, one in each of
as many equal parts - reading data, search, judging, final training, export, while a checkpoint is written - in their order; after each
kill it is resumed and runs on to the same place in the same phase as the one left alone had come to at the next instant, and after the
last to its end. Every safetensors file, every trial and the result must then be the same; exit code 1 if anything differs.

--full: the default search of the digits, as `niwaki search` runs it; else a short one.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

from harness import Claim, Result, Table, machine, report

from niwaki.run.folder import Folder
from niwaki.space.space import Space
from niwaki.testing.kill import run_command, run_until, safetensors_of

SHORT = {"threads": 1, "workers": 2, "search.epochs": 6, "search.candidates": 16, "search.finalists": 4, "train.epochs": 40}


PHASES = {
    "planning": "planning",
    "search": "search",
    "judging": "judging",
    "finalists": r"training \d+ finalists",
    "final training": r"training$",
    "export": "exporting",
}


def phases(told: list[tuple[float, str]], wall_s: float) -> list[tuple[str, float, float]]:
    """Of a whole search: each phase, and when it begins and ends."""
    starts = {name: next(second for second, line in told if re.match(pattern, line)) for name, pattern in PHASES.items()}
    return [(name, start, end) for (name, start), end in zip(starts.items(), [*list(starts.values())[1:], wall_s], strict=True)]


def outcome(folder: Path) -> dict[str, Any]:
    """All in which two finished runs must agree: files, trials, result; none of the times."""
    run = Folder(folder, read_only=True)
    try:
        space = Space.from_json(run.plan["space"])
        trials = [trial.to_json() | {"seconds": 0} for name in run.store.runs() for trial in run.store.trials(name, space)]
        summary = run.store.fact("result summary")
    finally:
        run.close()
    result = {key: summary[key] for key in ("architecture", "macs", "params", "accuracy")}
    onnx = (folder / "model.onnx").read_bytes()
    return {**safetensors_of(folder), "trials": trials, "result": result, "model.onnx": len(onnx)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the instants")
    parser.add_argument("--full", action="store_true", help="the default search instead of a short one")
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    given = parser.parse_args()
    root = given.folder or Path(tempfile.mkdtemp(prefix="niwaki-kill-"))
    alone, killed = root / "alone", root / "killed"
    for folder in (alone, killed):
        shutil.rmtree(folder, ignore_errors=True)
    settings = [] if given.full else [word for key, value in SHORT.items() for word in ("--set", f"{key}={value}")]

    about = machine(threads=None, seed=given.seed)
    began = time.monotonic()
    code, told = run_command(["search", "--out", str(alone), *settings])
    wall_s = time.monotonic() - began
    if code != 0:
        print("".join(line for _, line in told))
        return 1
    parts = phases(told, wall_s)
    print(f"left alone: {wall_s:.0f} s\n\n| kill | instant (s of wall time) | stopped in |\n|---:|---:|---|")

    reference, rng = outcome(alone), Random(given.seed)
    differing: list[str] = []
    stopped: list[tuple[str, ...]] = []

    def compare() -> None:
        found = outcome(killed)
        differing.extend(name for name in {**reference, **found} if reference.get(name) != found.get(name))

    last = ("", 0.0)  # where the one before went to: its phase, and seconds after that began
    for kill in range(1, given.kills + 1):
        instant = (kill - rng.random()) / given.kills * wall_s  # one in each of as many equal parts, so that no phase is spared by chance
        phase, start, _ = next(part for part in parts if instant < part[2])
        here = max(instant - start, 0.0)
        begun = last[1] if last[0] == phase else 0.0  # what is done of this phase, but for what the last kill destroyed
        while True:
            code, messages = run_until(["search", "--out", str(killed), *settings], PHASES[phase], then_s=here - begun)
            if code != 0:
                break
            compare()  # it was quicker than the one left alone, and at its end before the kill: the kill goes to a new one
            shutil.rmtree(killed)
            begun = 0.0
        if code > 0:
            print(messages)
            return 1
        last = (phase, here)
        stopped.append((str(kill), f"{instant:.1f}", phase))
        print(f"| {' | '.join(stopped[-1])} |", flush=True)
    code, told = run_command(["search", "--out", str(killed), *settings])
    if code != 0:
        print("".join(line for _, line in told))
        return 1
    compare()
    same = [name for name in reference if name.endswith(".safetensors")]
    print(f"\n{len(same)} safetensors files: {', '.join(same)}")
    claim = Claim(
        f"{given.kills} times killed (SIGKILL) at instants uniform over the wall time and begun again: safetensors, trials, result",
        "bit for bit those of a search left alone",
        f"differing: {', '.join(differing)}" if differing else "the same",
        not differing,
    )
    command = f"python benchmarks/kill.py --kills {given.kills} --seed {given.seed}{' --full' if given.full else ''}"
    table = Table(f"Instants, of {wall_s:.0f} s of wall time left alone", ("kill", "second", "stopped in"), tuple(stopped))
    report(Result("kill", "7. Killed and resumed", command, (claim,), (table,)), about, quick=not given.full)
    if given.folder is None:
        shutil.rmtree(root)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
