"""niwaki.search and what the command line calls: a run from its configuration to its result."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx

from niwaki.deploy.card import versions
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.net.text import network_hash
from niwaki.run.config import Config, load_config
from niwaki.run.folder import Folder, RunError, clear, once
from niwaki.run.plan import fit_to_minutes, search_of
from niwaki.run.search import Progress, Search, Silent, run
from niwaki.run.ship import answers, examples, ship
from niwaki.run.story import network_facts, write_page
from niwaki.space.architecture import Architecture
from niwaki.task.classify import ImageClassification


@dataclass(frozen=True)
class Result:
    """A finished run. model: the trained network of the first budget, a plain torch module in evaluation mode that takes normalised images.

    metrics: "macs", "params", "accuracy": {"validation", "test"}, and the test metrics. summary: what `niwaki search --json` prints.
    """

    model: fx.GraphModule
    architecture: Architecture
    metrics: dict[str, Any]
    folder: Path
    summary: dict[str, Any]


def search(
    network: Network | str = "auto",
    task: ImageClassification | None = None,
    budget: str | Sequence[str] | None = None,
    *,
    method: str = "dmasking",
    seed: int = 0,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Searches `network` for the best member within `budget` on `task`, trains it, exports it, and returns it with its run's folder.

    network: a description with choices, or a name ("auto": niwaki's own family at the size of the data). task: the digits, if left out.
    budget: such as "macs<=5e6"; a list asks for one network each. method: "dmasking", "random" or "evolution". settings: any other key of
    the configuration, such as {"train.epochs": 30}. The same arguments and folder go on with an unfinished run.
    """
    budgets = None if budget is None else [budget] if isinstance(budget, str) else list(budget)
    named = {"network": network} if isinstance(network, str) else {}
    config = load_config(None, (), {"budget": budgets, "method": method, "seed": seed, "minutes": minutes, **named, **(settings or {})})
    described = None if isinstance(network, str) else network
    return _run(config, out, "search", fresh=fresh, progress=progress, command="niwaki.search(...)", task=task, network=described)


def search_config(
    config: Config, *, out: Path | None, name: str, fresh: bool = False, progress: Progress | None = None, command: str = ""
) -> Result:
    """The run that a configuration asks for."""
    return _run(config, out, name, fresh=fresh, progress=progress, command=command)


def resume(path: str | Path, *, progress: Progress | None = None) -> Result:
    """Goes on with the run in `path`."""
    path = Path(path)
    if not (path / "config.json").is_file():
        raise RunError(f"{path} is no run: it has no config.json")
    asked = json.loads((path / "config.json").read_text())["asked"]
    if given := asked.get("given"):
        raise RunError(
            f"the run in {path} was started from Python with a {' and a '.join(given)} of its own; make the same call of niwaki.search again to go on"
        )
    return _run(Config.model_validate(asked["config"]), path, path.name, progress=progress, command=f"niwaki resume {path}")


def write_report(path: str | Path) -> Path:
    """Writes report.html of the run in `path` from what its store holds, finished or not."""
    folder = Folder(path)
    try:
        return write_page(folder)
    finally:
        folder.close()


def export_run(path: str | Path) -> list[dict[str, Any]]:
    """Exports the networks of a finished run anew; one row per file."""
    path = Path(path)
    folder = Folder(path)
    finished = folder.store.fact("finished")
    if finished:
        folder.store.set_fact("result files", None)
    folder.close()
    if not finished:
        raise RunError(f"the run in {path} is not finished; `niwaki resume {path}` goes on with it")
    resume(path, progress=Silent())
    folder = Folder(path)
    try:
        return [row for rows in folder.store.fact("result files", []) for row in rows]
    finally:
        folder.close()


def _run(
    config: Config, out: str | Path | None, name: str, *, fresh: bool = False, progress: Progress | None = None, command: str = "",
    task: ImageClassification | None = None, network: Network | None = None,
) -> Result:  # fmt: skip
    progress = progress or Silent()
    given = [word for word, value in (("task", task), ("network", network)) if value is not None]
    asked: dict[str, Any] = {"config": config.to_json(), "given": given}
    if task is not None:
        asked["task"] = task.describe()
    if network is not None:
        asked["network"] = network_hash(network)
    key = config.hash if not given else f"{config.hash}-{_short(asked)}"
    path = Path(out) if out is not None else Path("runs") / f"{name}-{key}"
    if fresh:
        clear(path)
    made: list[Search] = []

    def plan() -> dict[str, Any]:
        decided, search = search_of(config, task, network)
        _set_threads(decided)
        decided, search, expected = fit_to_minutes(config, decided, search)
        made.append(search)
        return {
            "config": decided.to_json(),
            "data": search.task.describe(),
            "expected_s": expected,
            "space": space_of(search.network).to_json(),
        }

    folder = Folder(path, asked=asked, plan=plan)
    try:
        decided = Config.model_validate(folder.plan["config"])
        _set_threads(decided)
        search = made[0] if made else search_of(decided, task, network)[1]
        if search.task.images.sha256 != folder.plan["data"]["sha256"]:
            raise RunError(
                f"the data have changed since the run in {path} began ({search.task.images.source}); choose another --out, or --fresh"
            )
        _introduce(folder, search, command, progress)
        return _finish(search, folder, progress)
    finally:
        folder.close()


def _introduce(folder: Folder, search: Search, command: str, progress: Progress) -> None:
    """Keeps what the report tells about the run's beginning, and says how long it will take."""
    store, task = folder.store, search.task
    if store.fact("started") is None:
        store.set_fact("command", command)
        store.set_fact("versions", versions())
        store.set_fact("machine", {"processor": platform.processor() or platform.machine(), "system": platform.system(), "python": platform.python_version(),
                                   "threads": str(torch.get_num_threads()), "device": search.device})  # fmt: skip
        store.set_fact("examples", examples(task))
        store.set_fact("counts", {part: len(task.part(part)) for part in ("train", "validation", "test")})
        store.set_fact("started", time.strftime("%Y-%m-%d %H:%M"))
        if search.left_out:
            folder.note(f"Options that hardly fit the budget were left out of the supernet (search.trim): {'; '.join(search.left_out)}.")
        for budget in search.budgets:
            for limit in budget.limits:
                if limit.upper >= (most := limit.cost.maximum()[0]):
                    folder.note(
                        f"The budget {budget.text} keeps nothing out: the largest network has {most:,} {limit.cost.unit or limit.cost.name}."
                    )
    if store.fact("finished") is None:
        expected = folder.plan["expected_s"]
        spent = sum(store.fact("seconds", {}).values())
        left = max(0.0, sum(expected.values()) - spent)
        phases = ", ".join(f"{phase} {_duration(seconds)}" for phase, seconds in expected.items())
        progress.note(f"{folder.path}: about {_duration(left)} {'left' if spent else 'in all'} ({phases}), then tests and export")
        for note in store.fact("notes", []):
            progress.note(note)


def _finish(search: Search, folder: Folder, progress: Progress) -> Result:
    began, before = time.monotonic(), sum(folder.store.fact("seconds", {}).values())
    chosen = run(search, folder, progress)
    again = folder.store.fact("result files") is not None
    if not again:
        progress.phase("exporting", len(chosen))
    shipping = time.monotonic()
    places = [folder.path if at == 0 else folder.path / f"budget-{at + 1}" for at in range(len(chosen))]
    once(folder, "files", lambda: [ship(search, one, place) for one, place in zip(chosen, places, strict=True)])
    for at, one in enumerate(chosen):
        once(folder, f"answers {at}", partial(answers, search.task, one.module, search.device))
    _facts(folder, search)
    if not again:
        folder.spend("export", time.monotonic() - shipping)

    def summarise() -> dict[str, Any]:
        rows = []
        for one, place in zip(chosen, places, strict=True):
            counted = {name: cost(one.arch) for name, cost in search.costs.items()}
            rows.append({
                "budget": one.budget.text, "architecture": one.arch.to_json()["choices"], "space": one.arch.space, "macs": counted["macs"],
                "params": counted["params"], "costs": counted, "folder": str(place),
                "accuracy": {"validation": one.validation["accuracy"], "test": one.test["accuracy"]},
                "metrics": {"validation": one.validation, "test": one.test},
            })  # fmt: skip
        keys = ("architecture", "macs", "params", "accuracy")
        return {
            **{key: rows[0][key] for key in keys},
            "folder": str(folder.path),
            "seconds": before + time.monotonic() - began,
            "seed": search.seed,
            "budgets": rows,
        }

    summary = once(folder, "summary", summarise)
    summary["folder"] = str(folder.path)
    folder.store.set_fact("finished", True)
    page = write_page(folder)
    progress.note(f"report: {page}")
    first = chosen[0]
    metrics = {key: summary[key] for key in ("macs", "params", "accuracy")} | {"test": first.test, "validation": first.validation}
    return Result(first.module.eval(), first.arch, metrics, folder.path, summary)


def _facts(folder: Folder, search: Search) -> None:
    """Keeps what the report tells about space and network."""
    once(folder, "network facts", lambda: network_facts(search, folder))


def _set_threads(config: Config) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
