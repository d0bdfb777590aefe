"""A cascade of the networks that runs produced: from what is demanded, in words, to one ONNX file, a Python class, and figures on other examples.

made = niwaki.cascade("runs/digits", "accuracy>=largest-1%")      a run with several budgets, several runs, or ONNX files
print(made)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from niwaki.adoption.counter import counted_macs
from niwaki.deploy.card import ModelCard, Preprocessing, TableForm
from niwaki.deploy.cascade import cascade_model, export_cascade, measured
from niwaki.deploy.cascade_source import write_cascade_source
from niwaki.deploy.committee import ANSWERS, Average, Committee, OnnxMember, Report, Resized, outputs_of
from niwaki.deploy.confidence import Confidence, max_probability
from niwaki.deploy.export import capture, export_pt2, translated
from niwaki.deploy.thresholds import CommitteeError, Point, Sequences, by_budget, by_target
from niwaki.device.measure import in_turns
from niwaki.device.runtime_onnx import NAME, onnx_step
from niwaki.net.place import space_of
from niwaki.net.text import from_json
from niwaki.nn.build import build
from niwaki.report.page import render
from niwaki.run.config import TRAIN_ONCE, config_of
from niwaki.run.demand import parse_demand
from niwaki.run.folder import Folder, RunError, check_is_search, read_config
from niwaki.run.model import profile
from niwaki.run.plan import task_of
from niwaki.run.progress import Progress, Silent
from niwaki.run.search import AnyTask, plain
from niwaki.run.shrink_story import record_of as record_of_shrinking
from niwaki.run.story import write_page
from niwaki.store.files import atomic_write
from niwaki.task.classify import Preprocess
from niwaki.task.cut import stratified_cut
from niwaki.task.tabular import Tabular
from niwaki.task.task import Part, derive_seed

FILE, FOLDER, ABOUT = "cascade.onnx", "cascade", "cascade.json"
CHECKED = 256  # images on which what was written is compared with the committee


# --- members and examples ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Member:
    """An ONNX model, and the torch program of the same network, where there is one. macs: of one run on one example."""

    name: str
    model: OnnxMember
    macs: int
    program: bytes | None


@dataclass(frozen=True, eq=False)
class Examples:
    """Stored examples with labels; about: which they are, for people."""

    x: NDArray
    y: NDArray
    about: str


@dataclass(frozen=True, eq=False)
class Cascade:
    """What `cascade` made: the committee as it was fitted, its reports, and what was written. summary: all of it, as JSON."""

    committee: Committee
    held_out: Report
    test: Report
    summary: dict[str, Any]
    folder: Path

    @property
    def model(self) -> Path:
        """The ONNX file."""
        return self.folder / FILE

    def __str__(self) -> str:
        summary, test = self.summary, self.test
        largest, latency = summary["largest"], summary["latency"]
        unit = "multiply-adds" if summary["cost"] == "macs" else "ms"
        lines = [
            f"chosen on {summary['held_out']['about']} (accuracy {self.held_out.accuracy:.4f}); the answer is {summary['answer']}; on "
            f"{summary['test']['about']}:",
            str(test),
            f"the largest member, {largest['name']}: accuracy {largest['accuracy']:.4f}, {largest['cost']:,.6g} {unit}: the cascade takes "
            f"{test.average_cost / largest['cost']:.1%} of that",
            f"one example at a time in {latency['runtime']}: {latency['average_ms']:.4f} ms on average, the largest member {latency['largest_ms']:.4f} ms "
            f"(ratio {latency['ratio']:.2f})",
        ]
        return "\n".join(lines)

    @cached_property
    def front(self) -> list[tuple[float, float]]:
        """(average cost, accuracy) of all that could have been chosen, on the held-out examples."""
        return [(point.cost, point.accuracy) for point in self.committee.front]


def cascade(
    members: str | Path | Sequence[str | Path],
    demand: str,
    *,
    cost: str | None = None,
    data: str | Path | None = None,
    task: AnyTask | None = None,
    part: Part | None = None,
    confidence: Confidence = max_probability,
    average: Average | None = None,
    resolutions: Sequence[int] = (),
    sequences: Sequences | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Cascade:
    """The cascade of members that meets `demand` at the least cost, or within its cost is right most often; written and checked.

    members: folders of finished runs (all their budgets) and ONNX files. demand: see `parse_demand`. cost: what is minimized for an accuracy, and
    counted: "macs", or "latency(onnxruntime)", measured here; left out, what the demand limits, else multiply-adds. average: how
    members answer together, see `Committee`; left out, what is best on the examples that the rule is chosen on. resolutions: each network of the runs is a member at each of these image sizes.

    The rule is chosen on examples that no member was trained on. Of a run that was searched for a cascade (`cascade` in its configuration), whose
    networks are members of a supernet trained once, or that shrank a network which it had trained itself, these are its validation part. Any
    other run trains what it delivers on that, too, or does not know what its owner trained it on: then half of the test part is taken to choose,
    and the figures are those of the other half. data: an .npz file with `images` (or rows) and `labels` to choose on instead. task: of a run that was
    started from Python with a task of its own, or of ONNX files. part: of its data, to choose on, where the caller knows that no member was trained
    on it, such as "validation". out: where cascade.onnx, cascade.json and cascade/ go; the first run's folder, if left out. The report of a run
    into whose folder they go tells of them.
    """
    places = [Path(members)] if isinstance(members, (str, Path)) else [Path(one) for one in members]
    home = _home(places, out)
    of_run = home.is_dir() and any(place.is_dir() and place.samefile(home) for place in places)
    with closing(Folder(home)) if of_run else nullcontext() as folder:  # nobody else is at work there meanwhile
        made = make_cascade(
            places, demand, home, cost=cost, data=data, task=task, part=part, confidence=confidence, average=average,
            resolutions=resolutions, sequences=sequences, progress=progress or Silent(),
        )  # fmt: skip
        if folder is not None:
            folder.store.set_fact("result cascade", made.summary)
            if "shrink" in folder.asked:
                atomic_write(home / "report.html", render(record_of_shrinking(folder)))
            else:
                write_page(folder)
    return made


def _home(places: Sequence[Path], out: str | Path | None) -> Path:
    if not places:
        raise CommitteeError("no members were given: a run's folder, or ONNX files")
    return Path(out) if out is not None else next((place for place in places if place.is_dir()), places[0].parent)


def make_cascade(
    places: Sequence[Path],
    demand: str,
    home: Path,
    *,
    cost: str | None = None,
    data: str | Path | None = None,
    task: AnyTask | None = None,
    part: Part | None = None,
    confidence: Confidence = max_probability,
    average: Average | None = None,
    resolutions: Sequence[int] = (),
    sequences: Sequences | None = None,
    progress: Progress,
) -> Cascade:
    """`cascade`, written to the folder `home`, without a word of it in a run's store and report."""
    wanted = parse_demand(demand)
    counted = wanted.counted(cost)
    runs = [place for place in places if place.is_dir()]
    found = [member for place in places for member in _members_of(place, resolutions)]
    if len(found) < 2:
        raise CommitteeError(
            f"a cascade is made of several networks, such as those of a run with several budgets, of several runs, or of one at several "
            f"resolutions; {places[0]} has one"
        )
    card = _card(found)
    held_out, test = _examples(runs, data, task, part, card)
    costs = [float(member.macs) for member in found] if counted == "macs" else _latencies(found, held_out.x)
    models = [member.model for member in found]
    whole = Committee(models, costs, _distinct_names(found), confidence=confidence)
    progress.phase("answers of the members", len(models))
    logits = []
    for model in whole.models:
        logits.append(outputs_of(model, held_out.x))
        progress.advance(len(logits))
    largest = int(np.argmax(costs))
    reached = float((logits[largest].argmax(1) == held_out.y).mean())
    budget, worst = (None if one is None else float(one.of(costs[largest]).target) for one in (wanted.limit, wanted.worst))
    target = wanted.target(reached)
    ways = [average] if average is not None else list(get_args(Average))
    progress.phase("choosing members and thresholds", 1)
    chosen = _best_way(
        [replace(whole, average=way) for way in ways],
        lambda one: one.fit(logits, held_out.y, budget=budget, target=target, worst_case=worst, sequences=sequences),
        by_target(target) if target is not None else by_budget(budget or 0.0),
    )

    progress.advance(1)

    progress.phase("cascade: test, export, time", 3)
    home.mkdir(parents=True, exist_ok=True)
    assert chosen.rule is not None
    report = chosen.report(test.x, test.y)
    progress.advance(1)
    card = _card_of_cascade(card, chosen, report)
    audits = [export_cascade(chosen, home / FILE, card, test.x[:CHECKED])]
    programs = [found[member].program for member in chosen.rule.members]
    if all(program is not None for program in programs):
        audits.append(write_cascade_source(chosen, home / FOLDER, card, test.x[:CHECKED], [one for one in programs if one is not None]))
    progress.advance(2)
    content = cascade_model(chosen, card).SerializeToString()
    latency = measured(content, found[largest].model.content, test.x, chosen.predict(test.x).exits)
    alone = (outputs_of(whole.models[largest], test.x).argmax(1) == test.y).mean()
    progress.advance(3)
    summary = {
        "demand": demand,
        "cost": counted,
        "members": [
            {"name": name, "cost": one, "used": at in chosen.rule.members} for at, (name, one) in enumerate(zip(whole.names, costs, strict=True))
        ],
        "order": [whole.names[member] for member in chosen.rule.members],
        "thresholds": list(chosen.rule.thresholds),
        "temperatures": [chosen.temperatures[member] for member in chosen.rule.members],
        "confidence": confidence.__name__,
        "average": chosen.average,
        "answer": ANSWERS[chosen.average],
        "held_out": {"about": held_out.about, **chosen.report().to_json()},
        "test": {"about": test.about, **report.to_json()},
        "largest": {"name": whole.names[largest], "cost": costs[largest], "held_out_accuracy": reached, "accuracy": float(alone)},
        "latency": {
            "runtime": NAME, "exits_ms": {str(at): ms for at, ms in latency.exits_ms.items()}, "average_ms": latency.average_ms,
            "largest_ms": latency.largest_ms, "ratio": latency.ratio,
        },
        "files": [{"file": FILE if at == 0 else f"{FOLDER}/{audit.file}", "bytes": audit.size_bytes,
                   "difference": audit.max_difference} for at, audit in enumerate(audits)],
    }  # fmt: skip
    atomic_write(home / ABOUT, json.dumps(summary, indent=2) + "\n")
    return Cascade(chosen, chosen.report(), report, summary, home)


def _best_way(ways: Sequence[Committee], fit: Callable[[Committee], Committee], prefers: Callable[[Point], tuple]) -> Committee:
    """The fitted committee that comes first; raises what the way that comes nearest raises, where none meets the demand."""
    fitted, failed = [], []
    for way in ways:
        try:
            fitted.append(fit(way))
        except CommitteeError as error:
            failed.append(error)
    if not fitted:
        raise max(failed, key=lambda error: error.reached)
    return min(fitted, key=lambda one: prefers(next(point for point in one.front if point.rule == one.rule)))


def _latencies(members: Sequence[Member], x: NDArray) -> list[float]:
    steps = {str(at): onnx_step(member.model.content, batch=x[:1]) for at, member in enumerate(members)}
    return [one.latency_ms for one in in_turns(steps, str(len(members) - 1), runtime=NAME).values()]


def _members_of(place: Path, resolutions: Sequence[int]) -> Iterator[Member]:
    """The networks of a run, one for each budget, or the model in an ONNX file."""
    if not place.is_dir():
        yield _in_file(place, place.name)
        return
    _check_finished(place)
    for file in (place / "model.onnx", *sorted(place.glob("budget-*/model.onnx"), key=lambda one: int(one.parent.name.partition("-")[2]))):
        name = file.relative_to(place.parent).parent.as_posix()
        if resolutions:
            yield from _resized(file.parent, name, resolutions)
        else:
            yield _in_file(file, name)


def _check_finished(place: Path) -> None:
    content = read_config(place)
    if content is None:
        raise RunError(f"{place} is no run: it has no config.json")
    check_is_search(place, content["asked"])
    if not (place / "model.onnx").is_file():
        raise RunError(f"{place} has no model.onnx; has its run finished? `niwaki resume {place}` goes on with it")


def _in_file(file: Path, name: str) -> Member:
    """The model, with the multiply-adds that its metadata tell, or that are counted, and what lies beside it as a torch program."""
    model, program = OnnxMember(file), file.with_suffix(".pt2")
    told = model.properties.get("macs")
    return Member(name, model, int(told) if told else profile(str(file))["macs"], program.read_bytes() if program.is_file() else None)


def _resized(place: Path, name: str, resolutions: Sequence[int]) -> Iterator[Member]:
    """One network of a run at several image sizes."""
    about = json.loads((place / "architecture.json").read_text("utf-8"))
    if "columns" in about["preprocessing"]:
        raise CommitteeError("resolutions are of images; this run is of a table")
    form, network = Preprocessing(**about["preprocessing"]), from_json(about["network"])
    module = build(network, space_of(network).architecture({})).eval()
    module.load_state_dict(safetensors.torch.load((place / "model.safetensors").read_bytes()))
    preprocess = Preprocess(torch.tensor(form.mean), torch.tensor(form.std), channels_last=len(form.stored_shape) == 3)
    blank = np.zeros((1, *form.stored_shape), dtype=form.stored_dtype)
    card = ModelCard(tuple(about["class_names"]), form, 0, 0, 0)
    for size in resolutions:
        resized = Resized(module, (size, size))
        try:
            counted = counted_macs(resized, torch.zeros(1, form.channels, *form.stored_shape[:2]))
        except RuntimeError as error:
            raise CommitteeError(f"{name} does not run on images of {size} x {size}: {str(error).splitlines()[0]}") from error
        shipment = capture(resized, preprocess, blank)
        program = place / f".{size}.pt2"
        export_pt2(shipment, program, card)
        content = program.read_bytes()
        program.unlink()
        yield Member(f"{name} at {size}", OnnxMember(translated(shipment, card).SerializeToString()), counted, content)


def _distinct_names(members: Sequence[Member]) -> list[str]:
    names = [member.name for member in members]
    return [f"{name} ({at + 1})" if names.count(name) > 1 else name for at, name in enumerate(names)]


def _card(members: Sequence[Member]) -> ModelCard:
    """Class names and the form of the examples, from the first member that tells; all that do tell the same."""
    told = [member for member in members if {"class_names", "preprocessing"} <= set(member.model.properties)]
    if not told:
        names = ", ".join(member.name for member in members)
        raise CommitteeError(
            f"none of {names} tells class names and preprocessing; one of them at least is to be a model that niwaki wrote"
        )
    first = told[0].model.properties
    for one in told[1:]:
        if any(one.model.properties[key] != first[key] for key in ("class_names", "preprocessing")):
            raise CommitteeError(f"{one.name} and {told[0].name} are of different data: their classes or the form of their examples differ")
    if not (names := json.loads(first["class_names"])):
        raise CommitteeError("a cascade is of classifiers: it asks how sure each is of a class; these members predict a number")
    form = json.loads(first["preprocessing"])
    return ModelCard(tuple(names), TableForm.from_json(form) if "columns" in form else Preprocessing(**form), 0, 0, 0)


def _card_of_cascade(card: ModelCard, committee: Committee, report: Report) -> ModelCard:
    """macs: the average. params, size_bytes: of all members that may run."""
    assert committee.rule is not None
    properties = [committee.models[member].properties for member in committee.rule.members]
    params, size = (sum(int(one.get(key, 0)) for one in properties) for key in ("params", "size_bytes"))
    metrics = {"held out": {"accuracy": committee.report().accuracy}, "test": {"accuracy": report.accuracy}}
    return replace(card, macs=round(report.average_cost), params=params, size_bytes=size, metrics=metrics)


def _examples(
    runs: Sequence[Path], data: str | Path | None, task: AnyTask | None, part: Part | None, card: ModelCard
) -> tuple[Examples, Examples]:
    """Those to choose on, and others to tell the figures on."""
    given = None if data is None else _read(Path(data), card)
    if not runs and task is None:
        if given is None:
            raise CommitteeError(
                "ONNX files come without examples: data names an .npz file with images and labels that none was trained on"
            )
        return _halves(given)
    found, held = _task_of_runs(runs, task)
    test = _part(found, "test")
    if given is not None:
        return given, test
    chosen_on = part or ("validation" if held else "test")
    return _halves(test) if chosen_on == "test" else (_part(found, chosen_on), test)


def _task_of_runs(runs: Sequence[Path], task: AnyTask | None) -> tuple[AnyTask, bool]:
    """The task of all runs, and whether its validation part was seen by none of their networks."""
    contents = [content for run in runs if (content := read_config(run)) is not None]
    described = [content["plan"]["data"] for content in contents]
    if len({one["sha256"] for one in described}) > 1:
        raise CommitteeError(f"the runs {', '.join(map(str, runs))} are of different data")
    held = (
        bool(contents) and all(map(_keeps_validation, contents)) and all(one == described[0] for one in described)
    )  # the same seed of the split, too
    if task is not None:
        if described and task.sha256 != described[0]["sha256"]:
            raise CommitteeError(f"the task that is given has other data than the run in {runs[0]}")
        return task, held
    if any("task" in content["asked"].get("given", ()) for content in contents):
        raise RunError(f"the run in {runs[0]} was started from Python with a task of its own; niwaki.cascade(..., task=) takes it")
    of_search = "shrink" not in contents[0]["asked"]
    config = contents[0]["plan"]["config"] if of_search else contents[0]["asked"]["config"]
    made = task_of(config_of(config, str(runs[0] / "config.json")))
    if made.sha256 != described[0]["sha256"]:
        raise RunError(f"the data have changed since the run in {runs[0]} began ({made.source})")
    return made, held


def _keeps_validation(content: Mapping[str, Any]) -> bool:
    """Whether a run trained none of its networks on the validation part."""
    if "shrink" in content["asked"]:
        return content["plan"]["plan"]["before"] is not None  # else its owner did, on nobody knows what
    config = content["plan"]["config"]
    return bool(config.get("cascade")) or config["method"] in TRAIN_ONCE  # a supernet that is trained once never learns from it


def _part(task: AnyTask, name: Part) -> Examples:
    """The stored examples of a part of the data."""
    indices, of = task.part(name), plain(task)
    labels = of.labels(indices).numpy()
    if isinstance(of, Tabular):
        stored = np.concatenate([of.table.rows, of.table.test_rows])[indices.numpy()]
    else:
        count, places = len(of.images.images), indices.numpy()
        stored = of.images.test_images[places - count] if name == "test" else of.images.images[places]
    return Examples(stored, labels, f"{len(labels):,} of the {name} part")


def _halves(whole: Examples) -> tuple[Examples, Examples]:
    """Class by class: one half to choose on, the other to tell the figures on."""
    rest, chosen = stratified_cut(whole.y, 0.5, np.random.default_rng(derive_seed("cascade", len(whole.y))))
    if not len(chosen) or not len(rest):
        raise CommitteeError(f"{len(whole.y)} held-out examples are too few to choose on one half and tell the figures on the other")
    return (
        Examples(whole.x[chosen], whole.y[chosen], f"{len(chosen):,} of {whole.about}"),
        Examples(whole.x[rest], whole.y[rest], f"the other {len(rest):,} of {whole.about}"),
    )


def _read(file: Path, card: ModelCard) -> Examples:
    """The examples of an .npz file, in the form that the members take."""
    try:
        with np.load(file, allow_pickle=False) as loaded:
            names = [name for name in ("images", "rows", "x") if name in loaded.files]
            if not names or "labels" not in loaded.files:
                raise CommitteeError(f"{file} holds {', '.join(loaded.files) or 'nothing'}; images (or rows) and labels are needed")
            x, y = loaded[names[0]], loaded["labels"]
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, CommitteeError):
            raise
        raise CommitteeError(f"{file} cannot be read as an .npz file: {error}") from error
    form = card.preprocessing
    shape, dtype = ((len(form.columns),), "float64") if isinstance(form, TableForm) else (form.stored_shape, form.stored_dtype)
    if x.shape[1:] != tuple(shape) or x.dtype != np.dtype(dtype):
        wanted = " x ".join(map(str, ("N", *shape)))
        raise CommitteeError(f"{file} holds {x.dtype} of shape {x.shape}; the members take {dtype}, {wanted}")
    return Examples(x, y.astype(np.int64) if y.dtype.kind in "iu" else y, str(file))


def in_one_line(summary: Mapping[str, Any]) -> str:
    """A cascade by its summary."""
    test, largest = summary["test"], summary["largest"]
    unit = "multiply-adds" if summary["cost"] == "macs" else "ms"
    return (
        f"cascade for {summary['demand']}: {' -> '.join(summary['order'])}, {test['average_cost']:,.6g} {unit} on average "
        f"({test['average_cost'] / largest['cost']:.0%} of the largest), test accuracy {test['accuracy']:.4f} (largest {largest['accuracy']:.4f})"
    )
