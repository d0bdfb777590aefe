"""`niwaki shrink`: a user's own network made smaller for a budget, from its weights on, fine-tuned, shipped, and what it cost told.

Steps, each stored when it is done: the owner's network is trained if it was not; it is trained under pressure, by FiGS or MorphNet; its units
are chosen so that the budget is used up; what is left is fine-tuned, with the owner's network as its teacher; and exported.
"""

from __future__ import annotations

import copy
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki.adoption.adopted import Adopted, read
from niwaki.adoption.capture import check_module
from niwaki.adoption.describe import adopt
from niwaki.cost.count import layer_table
from niwaki.deploy.card import ModelCard, versions
from niwaki.explain.hierarchy import Hierarchy
from niwaki.gradient.expand import Bound, Widths, check_needed, check_reachable
from niwaki.gradient.landing import Landing, cut, judged_by_training, landings, pressed
from niwaki.net.control import Network
from niwaki.net.edit import decode
from niwaki.net.picture import picture
from niwaki.net.place import fix, place, space_of
from niwaki.net.text import from_json, to_json
from niwaki.nn.build import build
from niwaki.report.page import render
from niwaki.run.api import RunFailed, repeatable, told_duration
from niwaki.run.config import config_of
from niwaki.run.explained import Trained, explain, told
from niwaki.run.folder import Folder, RunError, once, read_config
from niwaki.run.learn import NoLimit, learn
from niwaki.run.model import parse_input
from niwaki.run.plan import task_of, teacher_asked
from niwaki.run.progress import Progress, Silent
from niwaki.run.search import AnyTask
from niwaki.run.ship import answers, class_names, examples, form_of, write_files
from niwaki.run.shrink_plan import (
    Asked,
    Plan,
    Settings,
    asked_for,
    bounds_of,
    checked_model,
    costs_of,
    model_for,
    parse_bounds,
    plan_of,
    seconds_of,
)
from niwaki.run.shrink_story import landings_of, record_of, told_landing
from niwaki.store.files import atomic_write
from niwaki.task.task import derive_seed
from niwaki.testing.adoption import TRAINED, TRAINS_OTHERWISE, resampled, training_difference
from niwaki.train.distill import Teacher, teacher_of, weights_hash
from niwaki.train.loop import TrainingDiverged, evaluate, start

SEEN_TRAINING = 8  # examples on which what was read is compared with the owner's model in training mode


@dataclass(frozen=True)
class Shrunken:
    """A finished run. model: what is left of the owner's network, plain PyTorch in evaluation mode, with the owner's names for weights; it
    takes normalised examples. metrics: {"before", "after"} by part. summary: what `niwaki shrink --json` prints."""

    metrics: dict[str, Any]
    widths: dict[str, int]
    folder: Path
    summary: dict[str, Any]
    load: Callable[[], fx.GraphModule] = field(repr=False, compare=False)

    @cached_property
    def model(self) -> fx.GraphModule:
        return self.load()


def shrink(
    model: nn.Module | str, budget: str | Sequence[str], task: AnyTask | None = None, *, method: str = "figs", seed: int = 0,
    out: str | Path | None = None, settings: Mapping[str, Any] | Sequence[str] = (), data: str | None = None, inputs: Sequence[str] = (),
    threads: int | None = None, device: str | None = None, fresh: bool = False, progress: Progress | None = None, command: str = "niwaki.shrink(...)",
) -> Shrunken:  # fmt: skip
    """What is left of `model` within `budget`, fine-tuned on `task`, with its run's folder.

    model: a torch module, which stays as it is, or a word that names one ("file.py:attr", a zoo name). budget: "macs<=50%" of what it costs
    now, "params<=1M", "activation_bytes<=200kB", "roofline(T4)<=60%", or several. task: else `data` or settings say where the examples lie;
    Fashion-MNIST if the shared folder has it, or the digits, if nothing does. method: "figs" or "morphnet". settings: by their whole keys,
    `{"shrink.epochs": 3, "train.epochs": 10}`, or as texts, "shrink.epochs=3". The same call goes on with an unfinished run.
    """
    own_model = None if isinstance(model, str) else model
    if own_model is not None:
        check_module(own_model)
    given = {"seed": seed, "threads": threads, "device": device}
    asked = asked_for(
        model if isinstance(model, str) else "", budget, method=method, inputs=inputs, data=data, settings=settings, given=given, own_task=task is not None
    )  # fmt: skip
    name = asked.model.rpartition(":")[2] or type(model).__name__.lower()
    return _run(asked, out, name, own_model, task, fresh=fresh, progress=progress, command=command)


def resume(path: str | Path, *, progress: Progress | None = None) -> Shrunken:
    """Goes on with the run in `path`, or gives the result of one that is finished."""
    path = Path(path)
    content = read_config(path)
    if content is None or not is_shrinking(path):
        raise RunError(f"{path} is no run of `niwaki shrink`")
    if content["asked"].get("given"):
        raise RunError(
            f"the run in {path} was started from Python with a {' and a '.join(content['asked']['given'])} of its own; make the same call again"
        )
    shrunk = content["asked"]["shrink"]
    settings = Settings(**{key: value for key, value in shrunk.items() if key not in ("model", "budget", "method", "inputs")})
    config = config_of(content["asked"]["config"], str(path / "config.json"))
    asked = Asked(shrunk["model"], parse_bounds(shrunk["budget"]), shrunk["method"], config, settings, tuple(shrunk["inputs"]))
    return _run(asked, path, path.name, None, None, progress=progress, command=f"niwaki resume {path}")


def is_shrinking(path: str | Path) -> bool:
    """Whether the run in `path` is one of `niwaki shrink`."""
    content = read_config(Path(path))
    return content is not None and "shrink" in content["asked"]


def write_report(path: str | Path) -> Path:
    """Writes report.html of the run in `path` from what its store holds."""
    folder = Folder(path, read_only=True)
    try:
        return _write_page(folder)
    finally:
        folder.close()


def explain_shrunken(
    path: str | Path,
    *,
    epochs: int | None = None,
    task: AnyTask | None = None,
    progress: Progress | None = None,
    hierarchy: Hierarchy | None = None,
) -> dict[str, Any]:
    """What `niwaki.explain_run` does with a run of `niwaki shrink`."""
    path = Path(path)
    folder = Folder(path)
    try:
        asked, store = folder.asked, folder.store
        if not store.fact("finished") or not _has_files(folder):
            raise RunError(f"the run in {path} is not finished; `niwaki resume {path}` goes on with it")
        if (task is not None) != ("task" in asked.get("given", [])):
            raise RunError(
                f"the run in {path} was started from Python with {'a' if task is None else 'no'} task of its own; give it the same"
            )
        config = config_of(asked["config"], str(path / "config.json"))
        task = task if task is not None else task_of(config)
        if folder.plan["data"]["sha256"] != task.sha256:
            raise RunError(f"the data have changed since the run in {path} began ({task.source})")
        plan, shrunken = Plan.from_json(folder.plan["plan"]), _stored(folder)
        card = ModelCard(
            class_names=class_names(task), preprocessing=form_of(task), macs=int(shrunken.summary["macs"]), params=int(shrunken.summary["params"]),
            size_bytes=4 * int(shrunken.summary["params"]), metrics=shrunken.metrics["after"], architecture=shrunken.widths,
        )  # fmt: skip
        with repeatable(plan):
            trained = Trained(task, shrunken.model, plan.tune, "train", card, config.seed, plan.device)
            found = explain(trained, folder, progress or Silent(), epochs, hierarchy)
        _write_page(folder)
        return told(found, path)
    finally:
        folder.close()


def _write_page(folder: Folder) -> Path:
    path = folder.path / "report.html"
    atomic_write(path, render(record_of(folder)))
    return path


# --- the run ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    """What every step is given."""

    asked: Asked
    plan: Plan
    task: AnyTask
    folder: Folder
    progress: Progress
    example: Tensor  # (2, ...), of the task

    def seed(self, what: str) -> int:
        return derive_seed(self.asked.config.seed, what)


def _run(
    asked: Asked, out: str | Path | None, name: str, model: nn.Module | None, task: AnyTask | None, *, fresh: bool = False,
    progress: Progress | None = None, command: str = "",
) -> Shrunken:  # fmt: skip
    progress = progress or Silent()
    given = [word for word, value in (("model", model), ("task", task)) if value is not None]
    content: dict[str, Any] = {**asked.to_json(), "given": given}
    if task is not None:
        content["task"] = task.describe()
    if model is not None:
        content["weights"] = weights_hash(model)
    key = asked.hash if not given else hashlib.sha256(repr(content).encode()).hexdigest()[:12]
    path = Path(out) if out is not None else Path("runs") / f"shrink-{name}-{key}"

    @cache
    def materials() -> tuple[AnyTask, nn.Module, Tensor, list[str]]:
        """The task, the owner's network in float32, two examples, and the other kinds of numbers that its weights were of."""
        data = task if task is not None else task_of(asked.config)
        inputs = [parse_input(text) for text in asked.inputs]
        found = model_for(asked.model, data, asked.config.seed) if model is None else copy.deepcopy(model)
        kinds = sorted(
            {str(tensor.dtype) for tensor in (*found.parameters(), *found.buffers()) if tensor.is_floating_point()} - {"torch.float32"}
        )
        owner = checked_model(found, data, inputs)
        return data, owner, data.batch(data.part("train")[:2], torch.device("cpu"))[0], kinds

    def plan() -> dict[str, Any]:
        progress.phase("planning", 1)
        progress.advance(0)
        data, owner, example, kinds = materials()
        teacher_asked(asked.config, data)  # raises ConfigError
        adopted = read(owner, example)
        units, bounds = adopted.whole, bounds_of(adopted, asked.budget)
        widths = Widths(units, asked.settings.multiple_of, adopted.least)
        check_reachable(widths, bounds)
        check_needed(widths, bounds)
        costs = costs_of(adopted, asked.budget, units)
        made = plan_of(asked, data, owner, costs["macs"])
        with repeatable(made):
            expected = seconds_of(made, data, copy.deepcopy(owner))
        progress.advance(1)
        return {
            "plan": made.to_json(), "data": data.describe(), "weights": weights_hash(owner), "units": units, "layers": layers_of(adopted), "costs": costs,
            "opaque": list(adopted.opaque), "notes": remarks(adopted, owner, kinds, trained=_training_difference(adopted, example)), "expected_s": expected,
            "limits": [{"text": bound.text, "resource": bound.resource.name, "upper": bound.upper} for bound in bounds],
        }  # fmt: skip

    folder = Folder(path, asked=content, plan=plan, fresh=fresh, say=progress.note)
    try:
        if folder.store.fact("finished") and _has_files(folder):
            return _stored(folder)
        data, owner, example, _ = materials()
        if folder.plan["data"]["sha256"] != data.sha256:
            raise RunError(
                f"the data have changed since the run in {path} began ({data.source}); choose another --out, or --fresh to start anew"
            )
        if folder.plan["weights"] != weights_hash(owner):
            raise RunError(
                f"the weights of the model have changed since the run in {path} began; choose another --out, or --fresh to start anew"
            )
        work = _Work(asked, Plan.from_json(folder.plan["plan"]), data, folder, progress, example)
        with repeatable(work.plan):
            _introduce(work, command)
            _finish(work, owner)
            return _stored(folder)
    except KeyboardInterrupt:
        again = "The same call" if given else f"`niwaki resume {path}`, or the same command again,"
        raise KeyboardInterrupt(f"interrupted; everything done so far is kept in {path}. {again} goes on from there") from None
    except TrainingDiverged as error:
        raise RunFailed(
            f"{error}. The last good state is kept in {path / 'checkpoints'}; go on in another folder, with a smaller shrink.lr or train.lr"
        ) from error
    finally:
        folder.close()


def _has_files(folder: Folder) -> bool:
    files = folder.store.fact("result files") or []
    return bool(files) and all((folder.path / row["file"]).is_file() for row in files)


def _stored(folder: Folder) -> Shrunken:
    """The result of a run that is complete, from what its folder holds."""
    summary = folder.store.fact("result summary") | {"folder": str(folder.path)}  # it may have been moved since

    def load() -> fx.GraphModule:
        network = from_json(json.loads((folder.path / "architecture.json").read_text("utf-8"))["network"])
        module = build(network, space_of(network).architecture({}))
        module.load_state_dict(safetensors.torch.load((folder.path / "model.safetensors").read_bytes()))
        return module.eval()

    return Shrunken(summary["metrics"], {one["group"]: one["after"] for one in summary["widths"]}, folder.path, summary, load)


def _training_difference(adopted: Adopted, example: Tensor) -> float | None:
    """How far what was read is from the owner's model in training mode, on a few examples; None where that is random."""
    generator = torch.Generator().manual_seed(0)
    inputs = resampled(example, SEEN_TRAINING, generator, axis=adopted.batch) if adopted.symbolic else example
    return training_difference(adopted.module, adopted.owner, inputs)


def remarks(adopted: Adopted, owner: nn.Module, kinds: Sequence[str] = (), *, trained: float | None = None) -> list[str]:
    """What an owner should know of a model before it is shrunk. kinds: of numbers that its weights were of, beside float32. trained: how far what
    was read is from it in training mode."""
    untouched = [
        name for name, layer in owner.named_modules() if isinstance(layer, _BatchNorm) and layer.num_batches_tracked is not None and layer.num_batches_tracked == 0
    ]  # fmt: skip
    frozen = [name for name, parameter in owner.named_parameters() if not parameter.requires_grad]
    found = list(adopted.notes)
    if kinds:
        found.append(f"read, trained, cut and delivered in float32; the owner's model stays in {', '.join(kinds)}")
    if trained is not None and trained > TRAINED:
        found.append(f"{TRAINS_OTHERWISE}, and that is what is trained here (outputs or buffers differ by {trained:.1e}).")
    if untouched:
        found.append(
            f"{len(untouched)} batch norms, {untouched[0]} the first of them, have never seen data: their statistics are those of their making."
        )
    if frozen:
        found.append(f"{len(frozen)} frozen parameters, {frozen[0]} the first of them, are cut with the others and stay frozen.")
    return found


def layers_of(adopted: Adopted) -> dict[str, str]:
    """For each group, the layers that carry its channels on their outputs, as text."""
    return {
        group.name: ", ".join(dict.fromkeys(weight.rpartition(".")[0] or weight for weight, axis in group.members if axis == 0))
        for group in adopted.groups
    }


def _introduce(work: _Work, command: str) -> None:
    """Says what was read and how long it will take, and keeps what the report tells about the run's beginning."""
    store, plan = work.folder.store, work.folder.plan
    if store.fact("finished"):
        return
    work.folder.book("planning")
    spent = store.fact("seconds", {})
    left = sum(max(0.0, seconds - spent.get(phase, 0.0)) for phase, seconds in plan["expected_s"].items())
    phases = ", ".join(f"{phase} {told_duration(seconds)}" for phase, seconds in plan["expected_s"].items())
    begun = store.fact("started") is not None
    work.progress.note(f"{work.folder.path}: about {told_duration(left)} {'left' if begun else 'in all'} ({phases}), then test and export")
    if begun:
        for note in store.fact("notes", []):
            work.progress.note(note)
        return
    costs, units = plan["costs"], plan["units"]
    work.folder.note(
        f"{len(units)} groups of {sum(units.values()):,} channels; {costs['macs']:,} multiply-adds, {costs['params']:,} parameters before; "
        f"at most {' and '.join(f'{limit_text(one)}' for one in plan['limits'])} after."
    )
    if plan["opaque"]:
        work.folder.note(f"Not understood, and left as it is: {'; '.join(plan['opaque'])}.")
    if work.plan.before is not None and work.plan.settings.before is None:
        work.folder.note(
            f"The network is no better than the most frequent class: it was not trained on {work.task.source}, or for other preprocessing. "
            f"It is trained for {work.plan.before.epochs} epochs first (shrink.before=0 goes without)."
        )
    for note in plan["notes"]:
        work.folder.note(note)
    store.set_fact("command", command)
    store.set_fact("versions", versions())
    store.set_fact("machine", {"processor": platform.processor() or platform.machine(), "system": platform.system(), "python": platform.python_version(),
                               "threads": str(torch.get_num_threads()), "device": work.plan.device})  # fmt: skip
    store.set_fact("examples", examples(work.task))
    store.set_fact("counts", {part: len(work.task.part(part)) for part in ("train", "validation", "test")})
    store.set_fact("started", time.strftime("%Y-%m-%d %H:%M"))


def limit_text(limit: Mapping[str, Any]) -> str:
    upper = limit["upper"]
    return f"{upper:,.0f} {limit['resource']}" if upper >= 100 else f"{upper:.4g} {limit['resource']}"


def _finish(work: _Work, owner: nn.Module) -> None:
    """All that is left to do; its results are in the folder."""
    folder, store = work.folder, work.folder.store
    trained = _train_owner(work, owner)
    before = once(folder, "before", lambda: _metrics(work, trained))
    shrunk, keeps = _shrink(work, trained)
    tuned = _tune(work, shrunk, trained)
    after = once(folder, "after", lambda: _metrics(work, tuned))
    final = read(tuned, work.example)
    costs = {"before": folder.plan["costs"], "after": costs_of(final, work.asked.budget, final.whole)}
    if not _has_files(folder):
        store.set_fact("result files", None)
        work.progress.phase("exporting", 1)
        work.progress.advance(0)
    network, module = as_network(tuned, work.example)

    def export() -> list[Any]:
        card = ModelCard(
            class_names=class_names(work.task), preprocessing=form_of(work.task), macs=int(costs["after"]["macs"]), params=int(costs["after"]["params"]),
            size_bytes=4 * int(costs["after"]["params"]), metrics=after, architecture={group: len(units) for group, units in keeps.items()},
            network=to_json(network),
        )  # fmt: skip
        files = write_files(work.task, module, card, folder.path)
        work.progress.advance(1)
        return files

    once(folder, "files", export)
    once(folder, "answers", partial(answers, work.task, tuned, work.plan.device))
    once(folder, "network facts", partial(network_facts, network))
    if not store.fact("finished"):
        folder.book("export")

    def summarise() -> dict[str, Any]:
        metric, plan = work.task.metric, folder.plan
        epochs = {"shrinking": work.plan.method.epochs * work.plan.method.rounds, "fine-tuning": work.plan.tune.epochs}
        return {
            "budget": [one["text"] for one in plan["limits"]],
            "limits": {one["resource"]: one["upper"] for one in plan["limits"]},
            "method": work.asked.method,
            "landings": landings_of(folder),
            "macs": costs["after"]["macs"],
            "params": costs["after"]["params"],
            "costs": costs,
            "metric": metric,
            "metrics": {"before": before, "after": after},
            "lost": before["test"][metric] - after["test"][metric],
            "groups": len(keeps),
            "widths": [
                {"group": group, "before": units, "after": len(keeps[group]), "layers": plan["layers"][group], "kept": keeps[group]}
                for group, units in plan["units"].items()
            ],
            "epochs": {"before": work.plan.before.epochs if work.plan.before else 0, **epochs},
            "seconds": round(folder.elapsed(), 2),
            "seed": work.asked.config.seed,
        }

    once(folder, "summary", summarise)
    store.set_fact("finished", True)
    _write_page(folder)


def as_network(module: nn.Module, example: Tensor) -> tuple[Network, fx.GraphModule]:
    """The shrunk module as a description of one network without choices, and as the plain module that is built of it, with its weights."""
    family, weights = adopt(module, example, options=lambda group: ())  # nothing is cut again: each width has its own number alone
    space = space_of(family)
    network = decode(family, space.architecture({decision.name: decision.options[0] for decision in space.decisions}))
    built = build(network, space_of(network).architecture({}))
    built.load_state_dict({name: weights[name] for name in built.state_dict()})
    return network, built.eval()


def network_facts(network: Network) -> dict[str, Any]:
    """Layers and picture, for the page."""
    arch = space_of(network).architecture({})
    rows = layer_table(network, arch)
    heaviest = max((row.macs for row in rows), default=1) or 1
    return {
        "layers": [
            {"path": r.path, "kind": r.kind, "shape": " x ".join(map(str, r.shape)), "macs": r.macs, "params": r.params} for r in rows
        ],
        "picture": picture(
            fix(place(network), arch),
            {row.path: f"{row.macs:,}" for row in rows if row.macs},
            shares={row.path: row.macs / heaviest for row in rows if row.macs},
        ),
    }


def _train_owner(work: _Work, owner: nn.Module) -> nn.Module:
    """The owner's network, trained where the plan says so; in evaluation mode."""
    if work.plan.before is None:
        return owner.eval()
    training = start(
        copy.deepcopy(owner), work.task, work.plan.before, work.task.part("train"), seed=work.seed("before"), device=work.plan.device
    )
    learn(training, work.folder, work.progress, NoLimit(), phase="training before", name="training before")
    return training.evaluation_module().cpu()


def _shrink(work: _Work, trained: nn.Module) -> tuple[fx.GraphModule, dict[str, list[int]]]:
    """What is left after all rounds, and the owner's units that it is made of."""
    module, rounds = trained, work.plan.method.rounds
    keeps = {group: list(range(units)) for group, units in work.folder.plan["units"].items()}
    whole, teacher = None, _teacher(work, trained)
    for at in range(rounds):
        adopted = read(module, work.example)
        if whole is None:
            whole = bounds_of(adopted, work.asked.budget)
        bounds = [replace(bound, resource=here.resource) for bound, here in zip(whole, bounds_of(adopted, work.asked.budget), strict=True)]
        bounds = [_on_the_way(bound, adopted.whole, (at + 1) / rounds) if at + 1 < rounds else bound for bound in bounds]
        shrinking = pressed(
            adopted, work.task, work.plan.method, bounds, work.task.part("train"), teacher=teacher, seed=work.seed(f"shrink {at}"),
            device=work.plan.device,
        )  # fmt: skip
        learn(shrinking, work.folder, work.progress, NoLimit(), phase="shrinking", name=f"shrinking {at}")
        found = landings(adopted, shrinking, bounds, multiple_of=work.plan.settings.multiple_of)
        judged = once(work.folder, f"landing {at}", partial(_judged, work, found, teacher, at))
        landing = _named(found, judged["name"], work.folder.path)
        work.progress.note(told_landing(judged, work.task.metric, work.plan.settings.judged))
        keeps = {group: [keeps[group][unit] for unit in units] for group, units in landing.keep.items()} | {
            group: units for group, units in keeps.items() if group not in landing.keep
        }
        module = cut(landing)
    assert isinstance(module, fx.GraphModule)
    return module, keeps


def _named(found: Sequence[Landing], name: str, path: Path) -> Landing:
    for one in found:
        if one.name == name:
            return one
    raise RunError(
        f"the run in {path} chose the landing {name!r}, and its training leads to {', '.join(one.name for one in found)} now: another version "
        f"of niwaki or of PyTorch began it; choose another --out, or --fresh to start anew"
    )


def _on_the_way(bound: Bound, units: Mapping[str, int], progress: float) -> Bound:
    """The bound of a round that is not the last: rounds shrink by equal factors."""
    whole = bound.resource.cost(units)
    return replace(bound, upper=whole * min(1.0, bound.upper / whole) ** progress)


def _judged(work: _Work, found: Sequence[Landing], teacher: Teacher | None, at: int) -> dict[str, Any]:
    """The name of the landing whose network is the best on validation data after a short training, and how good all of them are."""
    if len(found) > 1:
        work.progress.phase("judging landings", len(found))
        work.progress.advance(0)
    judge = partial(
        judged_by_training, task=work.task, recipe=work.plan.tune, epochs=work.plan.settings.judged, seeds=(work.seed("refresh"), work.seed("judge")),
        teacher=teacher, device=work.plan.device,
    )  # fmt: skip
    judged = {}
    for number, landing in enumerate(found):
        judged[landing.name] = once(work.folder, f"judged {at} {landing.name}", partial(judge, landing)) if len(found) > 1 else None
        work.progress.advance(number + 1)
    best = max(found, key=lambda landing: judged[landing.name] or 0.0)
    return {"name": best.name, "judged": judged}


def _tune(work: _Work, module: fx.GraphModule, trained: nn.Module) -> nn.Module:
    """What is left, fine-tuned; in evaluation mode, on the CPU."""
    training = start(
        module, work.task, work.plan.tune, work.task.part("train"), seed=work.seed("tune"), device=work.plan.device, teacher=_teacher(work, trained)
    )  # fmt: skip
    learn(training, work.folder, work.progress, NoLimit(), phase="fine-tuning", name="fine-tuning")
    return training.evaluation_module().cpu()


def _teacher(work: _Work, trained: nn.Module) -> Teacher | None:
    """The owner's network, unless `train.teacher` names another."""
    if (other := teacher_asked(work.asked.config, work.task)) is not None:
        return other
    settings = work.plan.settings
    if not settings.distill or work.task.outputs < 2:
        return None
    return teacher_of(trained, temperature=settings.temperature, weight=settings.distill)


def _metrics(work: _Work, module: nn.Module) -> dict[str, dict[str, float]]:
    return {part: evaluate(module, work.task, work.task.part(part), device=work.plan.device) for part in ("validation", "test")}
