"""The record of a run, as far as it has come, from what its folder holds; and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from niwaki.cost.count import layer_table
from niwaki.factor.within import within
from niwaki.net.picture import picture
from niwaki.net.place import fix, place, space_of
from niwaki.net.program import distinct
from niwaki.objective import Objective, pareto_front, parse_budget
from niwaki.report.figure import NEGATIVE, figure_name
from niwaki.report.page import render
from niwaki.report.record import (
    Budget,
    Candidate,
    Chosen,
    Curve,
    Data,
    Decision,
    Example,
    File,
    Layer,
    Quality,
    Record,
    SpaceFacts,
    Tree,
    Way,
    wilson_interval,
)
from niwaki.run.config import BY_GRADIENT
from niwaki.run.finalists import FINALIST, REGULAR
from niwaki.run.folder import Folder
from niwaki.run.search import Search
from niwaki.space.architecture import Architecture
from niwaki.space.space import Space
from niwaki.store.files import atomic_write
from niwaki.trial import Trial

ABOUT = {
    "model.onnx": "for any runtime that reads ONNX; takes examples as the data set stores them",
    "model.pt2": "a torch.export program",
    "model.smh.safetensors": "the variables alone that its weights are made from; niwaki.load_compressed reads them",
    "model.py": "the network as plain PyTorch, with its weights beside it",
}


def write_page(folder: Folder) -> Path:
    path = folder.path / "report.html"
    atomic_write(path, render(record_of(folder)))
    return path


def network_facts(search: Search, folder: Folder) -> dict[str, Any]:
    """What the page tells about space and chosen network, as JSON; computed while the network is at hand."""
    space = space_of(search.network)
    programs, reason = distinct(search.network)
    macs = search.costs["macs"]
    counts = [within(space, budget.limits).count for budget in search.budgets]
    found = folder.store.fact("result choice 0")
    arch = Architecture.from_json(found["chosen"]["arch"], space)
    rows = layer_table(search.network, arch)
    heaviest = max((row.macs for row in rows), default=1) or 1
    return {
        "space": {
            "choices": len(space.decisions), "size": str(space.size), "distinct": None if programs is None else str(programs), "note": reason,
            "within": str(counts[0].count), "share": counts[0].share, "macs": [macs.minimum()[0], macs.maximum()[0]],
        },
        "decisions": {decision.name: list(map(str, decision.options)) for decision in space.decisions},
        "layers": [{"path": r.path, "kind": r.kind, "shape": " x ".join(map(str, r.shape)), "macs": r.macs, "params": r.params} for r in rows],
        "picture": picture(
            fix(place(search.network), arch),
            {row.path: f"{row.macs:,}" for row in rows if row.macs},
            shares={row.path: row.macs / heaviest for row in rows if row.macs},
        ),
    }  # fmt: skip


def record_of(folder: Folder) -> Record:
    """Everything the page shows of a run, finished or not."""
    store = folder.store
    config, data = folder.plan["config"], folder.plan["data"]
    summary = store.fact("result summary")
    facts = store.fact("result network facts") or {}
    first = summary["budgets"][0] if summary else None
    space = facts.get("space")
    limits, metric = folder.plan["limits"], data["metric"]
    budgets = _budgets(config["budget"][0], limits[0], first)
    files = store.fact("result files") or []
    return Record(
        title=f"{data['source']}: {config['budget'][0]}",
        status="finished" if store.fact("finished") else "running" if folder.is_at_work() else "stopped",
        metric=metric,
        cost=budgets[0].resource,
        network=config["network"] if not folder.asked.get("network") else "a network of the caller's",
        method=config["method"],
        command=store.fact("command", ""),
        folder=str(folder.path),
        started=store.fact("started", ""),
        versions=store.fact("versions", {}),
        machine=store.fact("machine", {}),
        config=config,
        data=Data(
            data["source"], tuple(data["stored_shape"]), tuple(data["class_names"]), store.fact("counts", {}),
            tuple(Example(one["image"], one["label"]) for one in store.fact("examples", [])),
            noun="rows" if "columns" in data else "images", target=data.get("target", ""),
            columns=tuple((column["name"], column["categories"]) for column in data.get("columns", ())), missing=data.get("missing", 0),
            missing_texts=data.get("missing_texts", {}),
        ),
        budgets=budgets,
        space=None if space is None else SpaceFacts(
            space["choices"], int(space["size"]), None if space["distinct"] is None else int(space["distinct"]), int(space["within"]), space["share"],
            tuple(space["macs"]), space["note"],
        ),
        candidates=_candidates(folder, first, metric, budgets[0].resource),
        decisions=_decisions(folder, facts, first),
        architecture=first["architecture"] if first else {},
        search_loss=_curves(folder, "search", {"weight_loss": "weights", "logit_loss": "architecture", "child_loss": "distillation"}),
        search_cost=_costs(folder, budgets, first),
        training_loss=_curves(folder, "training", {"loss": "training"}) or _curves(folder, "training 0", {"loss": "training"}),
        quality=_quality(folder, first, metric),
        macs=first["macs"] if first else None,
        params=first["params"] if first else None,
        stored=first.get("stored_params") if first else None,
        hardly_trained=bool(first and first.get("hardly_trained")),
        judged="by a short training" if config["evaluator"] == "scratch" and config["method"] not in BY_GRADIENT else "with shared weights",
        layers=tuple(Layer(**row) for row in facts.get("layers", [])),
        picture=facts.get("picture", ""),
        tree=tree_of(store.fact("result tree")),
        chosen=tuple(_chosen(row, at, limits[at], metric) for at, row in enumerate(summary["budgets"]) if len(limits) > 1) if summary else (),
        files=tuple(
            File(row["file"], row["bytes"], ABOUT.get(row["file"], ""), f"outputs within {row['difference']:.1e} of {row['scale']:.3g} on {row['images']} test {'rows' if 'columns' in data else 'images'}")
            for row in (files[0] if files else [])
        ),
        cascade=None if "error" in (made := store.fact("result cascade") or {"error": ""}) else made,
        seconds=store.fact("seconds", {}),
        notes=tuple(store.fact("notes", [])),
    )  # fmt: skip


def _budgets(text: str, limits: dict[str, int], row: dict[str, Any] | None) -> tuple[Budget, ...]:
    """One for each limit of the budget `text`. limits: what they came to, by resource. row: of the network's summary, if there is one."""
    names = [(str(constraint), constraint.resource.name) for constraint in parse_budget(text)]
    return tuple(Budget(said, name, limits[name], row["costs"][name] if row else None) for said, name in names)


def _candidates(folder: Folder, first: dict[str, Any] | None, metric: str, cost: str) -> tuple[Candidate, ...]:
    """All that was measured, and the delivered network; the front is that of `metric` against `cost`.

    The trainings of the finalists are left out of the front: theirs is another measurement than that of the search, often on other images.
    """
    trials = _trials(folder)
    searched = [trial for trial in trials if trial.source not in (FINALIST, REGULAR)]
    front = {trial.number for trial in pareto_front(searched, Objective(metric), (cost,))}
    found = [
        Candidate(
            trial.number, trial.metrics, trial.source if trial.source in ("random", FINALIST, REGULAR) else "search", trial.seconds, dict(trial.arch),
            on_front=trial.number in front,
        )
        for trial in trials
        if trial.status == "ok"
    ]  # fmt: skip
    if first is not None:
        found.append(Candidate(len(trials), first["metrics"]["validation"] | first["costs"], "final", 0.0, first["architecture"]))
    return tuple(found)


def _trials(folder: Folder) -> list[Trial]:
    return folder.store.trials("budget 0", Space.from_json(folder.plan["space"]))


def _decisions(folder: Folder, facts: dict[str, Any], first: dict[str, Any] | None) -> tuple[Decision, ...]:
    rows = [row for row in folder.store.log_rows("run", "search") if row.metrics.get("probabilities")]
    options = facts.get("decisions", {})
    taken, at = first["architecture"] if first else {}, _aim(folder, first)
    return tuple(
        Decision(
            name, tuple(words), tuple(float(row.epoch) for row in rows), tuple(tuple(row.metrics["probabilities"][at][name]) for row in rows),
            str(taken[name]) if name in taken else None,
        )
        for name, words in options.items()
        if rows
    )  # fmt: skip


def _aim(folder: Folder, first: dict[str, Any] | None) -> int:
    """Which of the learned distributions is that of the first budget's network."""
    taken = first["architecture"] if first else {}
    aims = folder.store.fact("aims", [])
    return next((at for at, aim in enumerate(aims) if aim["budget"] == 0 and aim["taken"].items() <= taken.items()), 0)


def _curves(folder: Folder, phase: str, names: dict[str, str]) -> tuple[Curve, ...]:
    rows = folder.store.log_rows("run", phase)
    curves = [Curve(label, tuple((float(row.epoch), row.metrics.get(key)) for row in rows)) for key, label in names.items()]
    return tuple(curve for curve in curves if any(value is not None for _, value in curve.points))


def _costs(folder: Folder, budgets: tuple[Budget, ...], first: dict[str, Any] | None) -> tuple[Curve, ...]:
    """Expected cost, where there is one budget with one limit, and the search looked at it: it cannot at a peak, which is no sum."""
    rows, at = folder.store.log_rows("run", "search"), _aim(folder, first)
    points = tuple((float(row.epoch), row.metrics["ratios"][at] * budgets[0].limit) for row in rows if row.metrics.get("ratios"))
    moves = len({value for _, value in points}) > 1
    return (Curve("expected", points),) if len(budgets) == 1 and moves else ()


def _quality(folder: Folder, first: dict[str, Any] | None, metric: str) -> Quality | None:
    found = folder.store.fact("result answers 0")
    if first is None or found is None:
        return None
    test, examples = first["metrics"]["test"], sum(map(sum, found["confusion"]))
    interval = wilson_interval(round(test["accuracy"] * examples), examples) if metric == "accuracy" else None
    said = {name: value for name, value in test.items() if name not in (metric, figure_name(metric).replace(" ", "_"), "loss")}
    return Quality(
        first["metrics"]["validation"][metric], test[metric], interval, tuple(map(tuple, found["confusion"])),
        tuple(Example(**one) for one in found["mistakes"]), {name: value for name, value in said.items() if not name.startswith(NEGATIVE)},
        pairs=tuple(map(tuple, found.get("pairs", ()))),
        judged=first.get("judged", "on validation"),
    )  # fmt: skip


def tree_of(found: dict[str, Any] | None) -> Tree | None:
    if found is None:
        return None
    tree = found["hierarchy"]
    return Tree(
        tuple(tree["classes"]), tuple(map(tuple, tree["inner"])), tuple(tree["labels"]), tuple(found["passed"]), tuple(found["seen"]),
        tuple(found["right"]), dict(found["accuracy"]),
        tuple(Way(Example(**way["example"]), tuple(way["nodes"]), tuple(way["probabilities"])) for way in found["ways"]), found["made"],
    )  # fmt: skip


def _chosen(row: dict[str, Any], at: int, limits: dict[str, int], metric: str) -> Chosen:
    metrics = {"macs": row["macs"], "params": row["params"], **{part: row["metrics"][part][metric] for part in ("validation", "test")}}
    return Chosen(_budgets(row["budget"], limits, row), metrics, row["folder"], at == 0)
