"""The record of a run of `niwaki shrink`, as far as it has come, for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from niwaki.gradient.landing import WAYS
from niwaki.report.charts import percent
from niwaki.report.figure import NEGATIVE, figure, figure_name, is_share
from niwaki.report.record import Budget, Curve, Data, Example, File, Layer, Quality, Record, Shrunk, Width, wilson_interval
from niwaki.run.folder import Folder
from niwaki.run.story import ABOUT, tree_of

NAMES = {"macs": "multiply-adds", "params": "parameters", "activation_bytes": "bytes of activations"}


def record_of(folder: Folder) -> Record:
    """Everything the page shows of a run, finished or not."""
    store, plan, asked = folder.store, folder.plan, folder.asked["shrink"]
    data, metric = plan["data"], plan["data"]["metric"]
    summary = store.fact("result summary")
    facts = store.fact("result network facts") or {}
    limits = plan["limits"]
    return Record(
        title=f"{asked['model'].rpartition('/')[2] or 'a network of the caller'}: {' and '.join(asked['budget'])}",
        status="finished" if store.fact("finished") else "running" if folder.is_at_work() else "stopped",
        metric=metric,
        cost=limits[0]["resource"],
        network=data["source"],
        method=_method(asked["method"], landings_of(folder)),
        command=store.fact("command", ""),
        folder=str(folder.path),
        started=store.fact("started", ""),
        versions=store.fact("versions", {}),
        machine=store.fact("machine", {}),
        config={"shrink": asked, **folder.asked["config"], "plan": plan["plan"]},
        data=Data(
            data["source"], tuple(data["stored_shape"]), tuple(data["class_names"]), store.fact("counts", {}),
            tuple(Example(one["image"], one["label"]) for one in store.fact("examples", [])), noun="rows" if "columns" in data else "images",
            target=data.get("target", ""), columns=tuple((column["name"], column["categories"]) for column in data.get("columns", ())),
            missing=data.get("missing", 0), missing_texts=data.get("missing_texts", {}),
        ),
        budgets=tuple(
            Budget(one["text"], one["resource"], one["upper"], summary["costs"]["after"][one["resource"]] if summary else None) for one in limits
        ),
        search_loss=_curves(folder, {"loss": "under pressure"}),
        search_cost=_costs(folder, limits),
        training_loss=_loss(folder),
        quality=_quality(folder, summary, metric),
        macs=summary["macs"] if summary else None,
        params=summary["params"] if summary else None,
        layers=tuple(Layer(**row) for row in facts.get("layers", [])),
        picture=facts.get("picture", ""),
        files=tuple(
            File(row["file"], row["bytes"], ABOUT.get(row["file"], ""), f"outputs within {row['difference']:.1e} of {row['scale']:.3g} on {row['images']} test examples")
            for row in store.fact("result files", None) or []
        ),
        seconds=store.fact("seconds", {}),
        notes=(
            *store.fact("notes", []),
            *(told_landing(one, metric, plan["plan"]["settings"]["judged"]) for one in landings_of(folder)),
        ),
        tree=tree_of(store.fact("result tree")),
        cascade=store.fact("result cascade"),
        shrunk=_shrunk(summary, metric) if summary else None,
    )  # fmt: skip


def landings_of(folder: Folder) -> list[dict[str, Any]]:
    """By round: the name of the landing that was taken, and what each was judged at."""
    rounds = range(folder.plan["plan"]["method"]["rounds"])
    return [judged for at in rounds if (judged := folder.store.fact(f"result landing {at}")) is not None]


def told_landing(landing: Mapping[str, Any], metric: str, epochs: int) -> str:
    """One line: how the units were chosen, and what each way was judged at."""
    name, judged = landing["name"], landing["judged"]
    told = f"landing: {name}, {WAYS.get(name, 'another way')}"
    if len(judged) < 2:
        return f"{told}; all ways come to the same"
    shown = ", ".join(f"{one} {_figure(metric, value)}" for one, value in sorted(judged.items(), key=lambda pair: -pair[1]))
    trained = f"after {epochs} epoch{'s' * (epochs != 1)} of training" if epochs else "before any training"
    return f"{told}; validation {figure_name(metric)} {trained}: {shown}"


def _method(method: str, landings: Sequence[Mapping[str, Any]]) -> str:
    """What shrank it: where the units of the owner's weights alone won, not the pressure."""
    name = {"morphnet": "MorphNet", "figs": "FiGS"}[method]
    if not landings or any(one["name"] != "before" for one in landings):
        return name
    return f"magnitudes of the owner's weights, which were better than {name}"


def _shrunk(summary: dict[str, Any], metric: str) -> Shrunk:
    costs, metrics = summary["costs"], summary["metrics"]
    figures = {
        NAMES.get(name, name): (_amount(name, costs["before"][name]), _amount(name, costs["after"][name])) for name in costs["before"]
    }
    for part in ("validation", "test"):
        told = f"{part} {figure_name(metric)}"
        figures[told] = (_figure(metric, metrics["before"][part][metric]), _figure(metric, metrics["after"][part][metric]))
    widths = tuple(Width(one["group"], one["before"], one["after"], one["layers"]) for one in summary["widths"])
    return Shrunk(widths, figures)


def _amount(name: str, value: float) -> str:
    return f"{value:,.0f}" if name in NAMES else f"{value:.4g} ms"


def _figure(metric: str, value: float) -> str:
    return percent(value, 2) if is_share(metric) else figure(metric, value, 2)


def _rounds(folder: Folder) -> list[str]:
    return [f"shrinking {at}" for at in range(folder.plan["plan"]["method"]["rounds"])]


def _curves(folder: Folder, names: dict[str, str]) -> tuple[Curve, ...]:
    found = []
    for at, phase in enumerate(rounds := _rounds(folder)):
        rows = folder.store.log_rows("run", phase)
        for key, label in names.items():
            points = tuple((float(row.epoch), row.metrics.get(key)) for row in rows)
            found += [Curve(label + (f", round {at + 1}" if len(rounds) > 1 else ""), points)] if points else []
    return tuple(found)


def _costs(folder: Folder, limits: list[dict[str, Any]]) -> tuple[Curve, ...]:
    """What the units alive cost, in the unit of the first budget."""
    rows = folder.store.log_rows("run", _rounds(folder)[-1])
    points = tuple((float(row.epoch), row.metrics["share"] * limits[0]["upper"]) for row in rows)
    return (Curve("units alive", points),) if points and len(limits) == 1 else ()


def _loss(folder: Folder) -> tuple[Curve, ...]:
    found = []
    for phase, label in (("training before", "the owner's network"), ("fine-tuning", "fine-tuning")):
        rows = folder.store.log_rows("run", phase)
        found += [Curve(label, tuple((float(row.epoch), row.metrics.get("loss")) for row in rows))] if rows else []
    return tuple(found)


def _quality(folder: Folder, summary: dict[str, Any] | None, metric: str) -> Quality | None:
    found = folder.store.fact("result answers")
    if summary is None or found is None:
        return None
    after = summary["metrics"]["after"]
    tested = sum(map(sum, found["confusion"]))
    interval = wilson_interval(round(after["test"]["accuracy"] * tested), tested) if metric == "accuracy" else None
    others = {name: value for name, value in after["test"].items() if name not in (metric, "loss") and not name.startswith(NEGATIVE)}
    return Quality(
        after["validation"][metric], after["test"][metric], interval, tuple(map(tuple, found["confusion"])),
        tuple(Example(**one) for one in found["mistakes"]), others, pairs=tuple(map(tuple, found.get("pairs", ()))), judged="on validation, after fine-tuning",
    )  # fmt: skip
