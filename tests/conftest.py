"""What the tests of the whole product share: the command line in this process, one small finished run, and small data."""

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# A shell that runs the tests in the background has them ignore Ctrl-C, which some of them are about.
signal.signal(signal.SIGINT, signal.default_int_handler)

PUBLISHED = {  # weights and MACs by the rule of FBNet: convolutions and linear layers, and one operation per input of an average pool
    "fbnetv2-f1": (5_999_408, 56_410_560),
    "fbnetv2-f2": (5_999_408, 85_441_392),
    "fbnetv2-f3": (6_899_504, 121_824_000),
    "fbnetv2-f4": (6_994_824, 238_351_984),
    "fbnetv2-l1": (8_496_520, 326_023_008),
    "fbnetv2-l2": (8_496_520, 423_912_768),
    "fbnetv2-l3": (9_402_096, 750_681_952),
    "fbnet-a": (4_270_288, 244_526_360),
    "fbnet-b": (4_766_672, 291_101_640),
    "fbnet-c": (5_525_424, 378_233_440),
}

SMALL = {"threads": 1, "search.epochs": 2, "search.logit_passes": 1, "search.candidates": 3, "search.finalists": 1, "train.epochs": 2}
SMALL_SETTINGS = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The last line of standard output, which is one JSON object."""
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture(scope="session")
def niwaki_command() -> Callable[..., Answer]:
    """`niwaki_command("search", "--json", cwd=folder)`: the command as the shell would run it, but in this process."""
    from niwaki.cli import main

    def command(*arguments: object, cwd: Path | None = None) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sys, "argv", ["niwaki", *map(str, arguments)])
            patched.chdir(cwd or Path.cwd())
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
                main()
        assert isinstance(stop.value.code, int)
        return Answer(stop.value.code, out.getvalue(), err.getvalue())

    return command


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published tables and data sets, of $NIWAKI_SHARED or beside the repository; tests that need it are skipped where it is not."""
    root = Path(__file__).resolve().parents[1]
    homes = [Path(home) for home in (os.environ.get("NIWAKI_SHARED"), root / "shared", root.parent / "shared") if home]
    for home in homes:
        if (home / "data").is_dir():
            return home / "data"
    pytest.skip(f"no published tables: there is no data/ in {' or '.join(map(str, homes))}; NIWAKI_SHARED names another folder")


@dataclass(frozen=True)
class Finished:
    """A finished search of the digits with two budgets, as the command line made it. Nothing may change its folder."""

    folder: Path
    arguments: tuple[str, ...]
    answer: Answer


@pytest.fixture(scope="session")
def finished(niwaki_command: Callable[..., Answer], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished") / "run"
    arguments = ("search", "--out", str(folder), "--set", 'budget=["macs<=60k", "macs<=20k and params<=8k"]', *SMALL_SETTINGS, "--json")
    answer = niwaki_command(*arguments)
    assert answer.code == 0, answer.err
    return Finished(folder, arguments, answer)
