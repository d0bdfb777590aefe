"""niwaki.search and what the command line calls: a run from its configuration to its result."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch
import torch
from torch import fx

from niwaki.deploy.card import versions
from niwaki.deploy.multi_hash import sizes
from niwaki.deploy.thresholds import CommitteeError
from niwaki.explain.hierarchy import Hierarchy
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.net.text import from_json, network_hash
from niwaki.nn.build import build
from niwaki.report.figure import figure_name
from niwaki.run.cascade import make_cascade
from niwaki.run.checklist import Item, checklist_of_run
from niwaki.run.config import Config, ConfigError, changed, config_of, load_config, uses, without_effect
from niwaki.run.explained import Trained, explain, told
from niwaki.run.finalists import judged_by
from niwaki.run.folder import Folder, RunError, check_is_not_shrunken, check_is_search, once, read_config
from niwaki.run.loop import HARDLY, run, trained_share, training_name
from niwaki.run.model import ModelError
from niwaki.run.plan import PLANNED, fit_to_minutes, search_of
from niwaki.run.progress import Progress, Silent
from niwaki.run.search import AnyTask, Chosen, Search, trains_once
from niwaki.run.ship import answers, card_of, examples, ship
from niwaki.run.story import network_facts, record_of, write_page
from niwaki.space.architecture import Architecture
from niwaki.space.space import Space
from niwaki.task.cut import DataError
from niwaki.task.tabular import in_units
from niwaki.train.loop import TrainingDiverged
from niwaki.train.rates import Rated

Then = Callable[[Search, list[Chosen], Folder], None]  # what is done with a run that is finished, before its page is written


class RunFailed(RuntimeError):
    """A run whose configuration was sound, and whose work came to nothing."""


@dataclass(frozen=True)
class Result:
    """A finished run. model: the trained network of the first budget, a plain torch module in evaluation mode that takes normalised images.

    metrics: "macs", "params", "accuracy": {"validation", "test"}, and the test metrics. summary: what `niwaki search --json` prints.
    load: gives the model, when it is first asked for.
    """

    architecture: Architecture
    metrics: dict[str, Any]
    folder: Path
    summary: dict[str, Any]
    load: Callable[[], fx.GraphModule] = field(repr=False, compare=False)

    @cached_property
    def model(self) -> fx.GraphModule:
        return self.load()


def search(
    network: Network | str = "auto",
    task: AnyTask | None = None,
    budget: str | Sequence[str] | None = None,
    *,
    method: str = "dmasking",
    cascade: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Result:
    """Searches `network` for the best member within `budget` on `task`, trains it, exports it, and returns it with its run's folder.

    network: a description with choices, or a name ("auto": niwaki's own family at the size of the data). task: the digits, if left out.
    budget: such as "macs<=5e6"; a list asks for one network each. method: "dmasking", "tunas", "bignas" (or its relatives "attentivenas",
    "alphanet" and "ofa"), or a strategy: "default", "random", "evolution", "reinforce", "ppo", "tabnas". cascade: what one of the networks of
    several budgets shall come to, such as "accuracy>=largest-1%"; it is in cascade.onnx, and `summary["cascade"]` tells of it. settings: any
    other key of the configuration, such as {"train.epochs": 30}. The same arguments and folder
    go on with an unfinished run.
    """
    budgets = None if budget is None else [budget] if isinstance(budget, str) else list(budget)
    named = {"network": network} if isinstance(network, str) else {}
    config = load_config(
        None, (), {"budget": budgets, "method": method, "cascade": cascade, "seed": seed, "minutes": minutes, **named, **(settings or {})}
    )
    described = None if isinstance(network, str) else network
    _check_effect(config, task, described)
    return _run(config, out, "search", fresh=fresh, progress=progress, command="niwaki.search(...)", task=task, network=described)


def search_config(
    config: Config, *, out: Path | None, name: str, fresh: bool = False, progress: Progress | None = None, command: str = ""
) -> Result:
    """The run that a configuration asks for."""
    _check_effect(config)
    return _run(config, out, name, fresh=fresh, progress=progress, command=command)


def resume(path: str | Path, *, progress: Progress | None = None) -> Result:
    """Goes on with the run in `path`; gives the result of one that is finished."""
    path = Path(path)
    if (content := read_config(path)) is None:
        raise RunError(f"{path} is no run: it has no config.json")
    asked = content["asked"]
    check_is_search(path, asked)
    check_is_not_shrunken(path, asked)
    if given := asked.get("given"):
        raise RunError(
            f"the run in {path} was started from Python with a {' and a '.join(given)} of its own; make the same call of niwaki.search again"
        )
    return _run(config_of(asked["config"], str(path / "config.json")), path, path.name, progress=progress, command=f"niwaki resume {path}")


def write_report(path: str | Path) -> Path:
    """Writes report.html of the run in `path` from what its store holds: finished, stopped, or with a process at work in it."""
    folder = Folder(path, read_only=True)
    try:
        check_is_search(folder.path, folder.asked)
        return write_page(folder)
    finally:
        folder.close()


def run_checklist(path: str | Path) -> list[Item]:
    """What a comparison of search methods should keep, for the run in `path`: item by item, with where it can be seen."""
    folder = Folder(path, read_only=True)
    try:
        check_is_search(folder.path, folder.asked)
        return checklist_of_run(record_of(folder))
    finally:
        folder.close()


def export_run(path: str | Path, *, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Exports the networks of a finished run anew; one row per file: its path, bytes, and how far it was off on real images."""
    path = Path(path)
    folder = Folder(path, read_only=True)
    try:
        check_is_search(path, folder.asked)
        check_is_not_shrunken(path, folder.asked)
        if not folder.store.fact("finished"):
            raise RunError(f"the run in {path} is not finished; `niwaki resume {path}` goes on with it")
        if given := folder.asked.get("given"):
            what = f"the run in {path} was started from Python with a {' and a '.join(given)} of its own"
            raise RunError(f"{what}; delete its model.onnx and make the same call of niwaki.search again, which exports it anew")
    finally:
        folder.close()
    config = config_of(folder.asked["config"], str(path / "config.json"))
    _run(config, path, path.name, progress=progress, command=f"niwaki export {path}", export_anew=True)
    folder = Folder(path, read_only=True)
    try:
        rows = folder.store.fact("result files", [])
        return [
            {**row, "file": str(place / row["file"])} for place, files in zip(_places(path, len(rows)), rows, strict=True) for row in files
        ]
    finally:
        folder.close()


def explain_search(
    path: str | Path,
    *,
    epochs: int | None = None,
    task: AnyTask | None = None,
    network: Network | None = None,
    progress: Progress | None = None,
    hierarchy: Hierarchy | None = None,
) -> dict[str, Any]:
    """What `niwaki.explain_run` does with the run of a search."""
    path = Path(path)
    folder = Folder(path, read_only=True)
    try:
        check_is_search(path, folder.asked)
        if not folder.store.fact("finished"):
            raise RunError(f"the run in {path} is not finished; `niwaki resume {path}` goes on with it")
        given = [word for word, value in (("task", task), ("network", network)) if value is not None]
        if given != (asked := folder.asked.get("given", [])):
            what = f"a {' and a '.join(asked)} of its own" if asked else "nothing of its own"
            raise RunError(f"the run in {path} was started from Python with {what}: niwaki.explain_run is to be given the same")
    finally:
        folder.close()
    config = config_of(folder.asked["config"], str(path / "config.json"))
    found: dict[str, Any] = {}

    def then(search: Search, chosen: list[Chosen], folder: Folder) -> None:
        first = chosen[0]
        trained = Trained(
            search.task, first.module, search.recipe, search.final_part, card_of(search, first), search.seed, search.device
        )  # fmt: skip
        found.update(explain(trained, folder, progress or Silent(), epochs, hierarchy))

    _run(config, path, path.name, progress=progress, command=f"niwaki explain {path}", task=task, network=network, then=then)
    return told(found, path)


def _run(
    config: Config, out: str | Path | None, name: str, *, fresh: bool = False, progress: Progress | None = None, command: str = "",
    task: AnyTask | None = None, network: Network | None = None, export_anew: bool = False, then: Then | None = None,
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
    made: list[Search] = []

    def plan() -> dict[str, Any]:
        progress.phase("planning", 1)
        progress.advance(0)
        decided, search = search_of(config, task, network)
        with repeatable(decided):
            decided, search, expected = fit_to_minutes(config, decided, search)
        made.append(search)
        progress.advance(1)
        return {
            "config": decided.to_json(),
            "data": search.task.describe(),
            "expected_s": expected,
            "limits": [{limit.cost.name: limit.upper for limit in budget.limits} for budget in search.budgets],
            "network": network_hash(search.network),
            "space": space_of(search.network).to_json(),
        }

    folder = Folder(path, asked=asked, plan=plan, fresh=fresh, say=progress.note)
    try:
        decided = config_of(folder.plan["config"], str(path / "config.json"))
        if folder.store.fact("finished"):  # a warm start has had its effect, and its folder may be gone
            decided = decided.model_copy(update={"warm_start": None})
        try:
            search = made[0] if made else search_of(decided, task, network)[1]
        except (ConfigError, DataError, ModelError) as error:
            if export_anew or then or not _is_complete(folder):
                raise
            progress.note(f"the run in {path} is finished; what it was made from is not there as it was: {error}")
            return _stored(folder)
        _check_unchanged(folder, search)
        with repeatable(decided):
            _introduce(folder, search, config, command, progress)
            return _finish(search, folder, progress, export_anew=export_anew, then=then)
    except KeyboardInterrupt:
        again = "The same call of niwaki.search" if given else f"`niwaki resume {path}`, or the same command again,"
        raise KeyboardInterrupt(f"interrupted; everything done so far is kept in {path}. {again} goes on from there") from None
    except TrainingDiverged as error:
        raise RunFailed(
            f"{error}. The last good state is kept in {path / 'checkpoints'}; what the configuration says needs a change, so go on in another folder"
        ) from error
    finally:
        folder.close()


def _check_effect(config: Config, task: AnyTask | None = None, network: Network | None = None) -> None:
    """Refuses keys that were set and would not be looked at, all of them at once."""
    idle = without_effect(config)
    for key, value in changed(config).items():
        if task is not None and key.startswith("data."):
            idle.append(f"{key} = {value!r} has no effect: a task is given, which has data of its own")
        if network is not None and key == "network":
            idle.append(f"{key} = {value!r} has no effect: a network is given")
    if idle:
        raise ConfigError("the configuration", idle)


def _check_unchanged(folder: Folder, search: Search) -> None:
    """Refuses to go on with other data, or with another network, than the run began with."""
    advice = "choose another --out, or --fresh to start anew"
    if search.task.sha256 != folder.plan["data"]["sha256"]:
        raise RunError(f"the data have changed since the run in {folder.path} began ({search.task.source}); {advice}")
    if network_hash(search.network) != folder.plan["network"]:
        raise RunError(f"the network {folder.plan['config']['network']!r} has changed since the run in {folder.path} began; {advice}")


def _introduce(folder: Folder, search: Search, asked: Config, command: str, progress: Progress) -> None:
    """Keeps what the report tells about the run's beginning, and says how long it will take."""
    store, task = folder.store, search.task
    if store.fact("finished"):
        return
    folder.book("planning")
    expected, spent = folder.plan["expected_s"], store.fact("seconds", {})
    left = sum(max(0.0, seconds - spent.get(phase, 0.0)) for phase, seconds in expected.items())
    phases = ", ".join(f"{phase} {told_duration(seconds)}" for phase, seconds in expected.items())
    begun = store.fact("started") is not None
    progress.note(f"{folder.path}: about {told_duration(left)} {'left' if begun else 'in all'} ({phases}), then test and export")
    if begun:
        for note in store.fact("notes", []):
            progress.note(note)
        return
    store.set_fact("command", command)
    store.set_fact("versions", versions())
    store.set_fact("machine", {"processor": platform.processor() or platform.machine(), "system": platform.system(), "python": platform.python_version(),
                               "threads": str(torch.get_num_threads()), "device": search.device})  # fmt: skip
    store.set_fact("examples", examples(task))
    store.set_fact("counts", {part: len(task.part(part)) for part in ("train", "validation", "test")})
    for note in _remarks(folder, search, asked):
        folder.note(note)
    store.set_fact("started", time.strftime("%Y-%m-%d %H:%M"))


def _remarks(folder: Folder, search: Search, asked: Config) -> Iterator[str]:
    """What a reader should know of the plan before the work begins."""
    if search.left_out:
        yield f"Options that hardly fit the budget were left out of the supernet (search.trim): {'; '.join(search.left_out)}."
    for budget in search.budgets:
        for limit in budget.limits:
            if limit.upper >= (most := limit.cost.maximum()[0]):
                yield f"The budget {budget.text} keeps nothing out: the largest network has {most:,} {limit.cost.unit or limit.cost.name}."
    if missing := folder.plan["data"].get("missing_texts"):
        told = "; ".join(
            f"{name}: {', '.join(f'{text!r} {count} times' for text, count in found.items())}" for name, found in missing.items()
        )
        yield f"Texts taken for missing values (data.missing says which): {told}."
    if isinstance(search.task, Rated):
        name = (folder.plan["data"]["class_names"] or ["", "1"])[search.task.positive_class]
        yield f"{figure_name(search.task.metric).capitalize()} is of the class {name!r} against all others."
    decided = folder.plan["config"]
    if shortened := [
        f"{section}.{key} = {decided[section][key]}"
        for section, key in PLANNED
        if asked.minutes and uses(asked, f"{section}.{key}") and getattr(getattr(asked, section), key) is None
    ]:
        yield f"To end within {asked.minutes:g} minute{'s' * (asked.minutes != 1)}, the plan is: {', '.join(shortened)}."


def _finish(search: Search, folder: Folder, progress: Progress, *, export_anew: bool, then: Then | None = None) -> Result:
    store = folder.store
    chosen = run(search, folder, progress)
    places = _places(folder.path, len(chosen))
    known = not export_anew and _has_files(folder)  # somebody may have deleted one
    if not known:
        store.set_fact("result files", None)
        if search.cascade is not None or not _has_cascade(folder):
            store.set_fact("result cascade", None)
        progress.phase("exporting", len(chosen))
        progress.advance(0)

    def export() -> list[Any]:
        files = []
        for one, place in zip(chosen, places, strict=True):
            files.append(ship(search, one, place))
            progress.advance(len(files))
        return files

    once(folder, "files", export)
    for at, one in enumerate(chosen):
        once(folder, f"answers {at}", partial(answers, search.task, one.module, search.device))
    once(folder, "network facts", lambda: network_facts(search, folder))
    if not store.fact("finished"):
        folder.book("export")

    def summarise() -> dict[str, Any]:
        rows = []
        for at, (one, place) in enumerate(zip(chosen, places, strict=True)):
            counted = {name: cost(one.arch) for name, cost in search.costs.items()}
            rows.append({
                "budget": one.budget.text, "architecture": one.arch.to_json()["choices"], "space": one.arch.space, "macs": counted["macs"],
                "params": counted["params"], "costs": counted, "folder": str(place),
                **({"stored_params": sizes(one.hashed).stored} if one.hashed is not None else {}),
                "source": store.fact(f"result choice {at}")["source"],
                "judged": judged_by(search, store.fact(f"result choice {at}")["source"]),
                "hardly_trained": trained_share(folder, "search" if trains_once(search) else training_name(len(chosen), at)) < HARDLY,
                **_shares(one),
                "metrics": {"validation": one.validation, "test": one.test},
            })  # fmt: skip
        keys = ("architecture", "macs", "params", "accuracy")
        return {
            **{key: rows[0][key] for key in keys if key in rows[0]},
            "folder": str(folder.path),
            "seconds": round(folder.elapsed(), 2),
            "seed": search.seed,
            "budgets": rows,
        }

    once(folder, "summary", summarise)
    if search.cascade is not None:
        once(folder, "cascade", partial(_cascade, search, folder, progress))
    if then is not None:
        then(search, chosen, folder)
    if not store.fact("finished") or then or not known or not (folder.path / "report.html").is_file():
        store.set_fact("finished", True)
        write_page(folder)
    if then is None and (why := (store.fact("result cascade") or {}).get("error")):
        raise CommitteeError(
            f"{why}. The networks themselves are finished: `niwaki export {folder.path} --cascade ...` makes a cascade of them for another demand"
        )
    return _result(folder, chosen[0].arch, lambda: search.task.delivered(chosen[0].module).eval())


def _cascade(search: Search, folder: Folder, progress: Progress) -> dict[str, Any]:
    """The summary of the cascade that was asked for, or the reason why there is none."""
    assert search.cascade is not None
    try:
        return make_cascade([folder.path], search.cascade, folder.path, task=search.task, progress=progress).summary
    except CommitteeError as error:
        return {"error": str(error)}


def _shares(chosen: Chosen) -> dict[str, Any]:
    """The accuracy by part, of a classifier."""
    parts = {"validation": chosen.validation, "test": chosen.test}
    return {"accuracy": {part: metrics["accuracy"] for part, metrics in parts.items()}} if "accuracy" in chosen.test else {}


def _has_files(folder: Folder) -> bool:
    """Whether all that was exported is there."""
    known = folder.store.fact("result files") or []
    places = _places(folder.path, len(known))
    return (
        _has_cascade(folder)
        and bool(known)
        and all((place / row["file"]).is_file() for place, rows in zip(places, known, strict=True) for row in rows)
    )


def _has_cascade(folder: Folder) -> bool:
    """Whether all files of a cascade are there; of none, if there is none."""
    files = (folder.store.fact("result cascade") or {}).get("files", ())
    return all((folder.path / row["file"]).is_file() for row in files)


def _is_complete(folder: Folder) -> bool:
    """Whether there is nothing left to do, so that nothing but the folder is needed to tell its result."""
    return bool(folder.store.fact("finished")) and _has_files(folder)


def _stored(folder: Folder) -> Result:
    """The result of a run that is complete, from what its folder holds."""
    arch = Architecture.from_json(folder.store.fact("result choice 0")["chosen"]["arch"], Space.from_json(folder.plan["space"]))

    def load() -> fx.GraphModule:
        network = from_json(json.loads((folder.path / "architecture.json").read_text("utf-8"))["network"])
        module = build(network, space_of(network).architecture({}))
        module.load_state_dict(safetensors.torch.load((folder.path / "model.safetensors").read_bytes()))
        return in_units(module, *folder.plan["data"].get("target_scale") or (0.0, 1.0)).eval()

    return _result(folder, arch, load)


def _result(folder: Folder, arch: Architecture, load: Callable[[], fx.GraphModule]) -> Result:
    summary = folder.store.fact("result summary")
    # the folder may have been moved since, or be called from elsewhere
    summary |= {"folder": str(folder.path), "metric": folder.plan["data"]["metric"]}
    for row, place in zip(summary["budgets"], _places(folder.path, len(summary["budgets"])), strict=True):
        row["folder"] = str(place)
    if (made := folder.store.fact("result cascade")) is not None:
        summary["cascade"] = made
    metrics = {key: summary[key] for key in ("macs", "params", "accuracy") if key in summary} | summary["budgets"][0]["metrics"]
    return Result(arch, metrics, folder.path, summary, load)


def _places(path: Path, budgets: int) -> list[Path]:
    """Where the network of each budget is exported to: the first in the folder itself."""
    return [path if at == 0 else path / f"budget-{at + 1}" for at in range(budgets)]


class _Computed(Protocol):
    """A configuration or a plan that says where torch computes."""

    @property
    def threads(self) -> int | None: ...
    @property
    def device(self) -> str: ...


@contextmanager
def repeatable(config: _Computed) -> Iterator[None]:
    """Within, torch computes with the threads of `config`, and the same bits each time, on a GPU too; afterwards as before."""
    threads, deterministic, benchmark = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
    )
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.device.startswith("cuda"):
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts: without it matrix products may differ
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False  # it times kernels, and may take another one each time
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark


def told_duration(seconds: float) -> str:
    """`42 s`, `3.5 min`, `2.0 h`."""
    return (
        "1 s"
        if seconds < 1
        else f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.1f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )


def _short(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:6]
