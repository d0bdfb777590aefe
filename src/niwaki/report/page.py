"""A record as one HTML page: nothing is loaded from anywhere, nothing runs; it can be mailed, archived and printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

from niwaki.report.charts import (
    COLORS,
    Dot,
    Mark,
    amount,
    confusion_matrix,
    decision_strip,
    interval_bar,
    layer_bars,
    line_chart,
    meter,
    percent,
    scatter_chart,
    width_bars,
    worst_confusions,
)
from niwaki.report.decision_tree import tree_picture, way_card
from niwaki.report.figure import figure, figure_name, is_share
from niwaki.report.parts import LOGO, Section, card, document, fact_list, folded, listing
from niwaki.report.record import Budget, Candidate, Data, Decision, Example, File, Record, SpaceFacts

UNITS = {"macs": "MACs", "params": "parameters", "size": "bytes", "peak_activation": "peak activations"}
MOST_NAMES = 40  # classes that are listed
SETTLED = 0.9  # probability of an option above which its choice counts as settled
RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
SOURCES = {"finalist": "finalist, trained on its own", "regular": "regular network, trained on its own", "final": "delivered network"}
STATES = {"finished": "finished", "running": "still running", "stopped": "stopped before its end"}
NO_NETWORK = {
    "finished": "No network",
    "running": "No network yet: the run goes on",
    "stopped": "The run stopped before a network was chosen",
}


def render(record: Record) -> str:
    """The page of `record`, as the text of one HTML file."""
    parts = (_shrunk, _search, _choices, _network, _training, _errors, _tree, _cascade, _run)
    sections = [section for part in parts if (section := part(record))]
    return document(record.title, _head(record), sections, _foot(record))


# --- the answer ------------------------------------------------------------------------------------------------------


def _head(record: Record) -> str:
    spent = f"{_duration(sum(record.seconds.values()))} in all" if record.seconds else ""
    lead = " · ".join(filter(None, (record.title, record.network, record.method, record.started, spent)))
    notes = "".join(f"<li>{escape(note)}</li>" for note in record.notes)
    cards = f"{_quality_card(record)}{_budget_card(record)}{_size_card(record)}{_use_card(record)}"
    return (
        f'<header><div class="brand">{LOGO}<span>niwaki</span><span class="state {record.status}">{STATES[record.status]}</span></div>'
        f'<h1>{escape(_headline(record))}</h1><p class="lead">{escape(lead)}</p>{f"<ul class=notes>{notes}</ul>" if notes else ""}'
        f'<div class="hero">{cards}</div></header>'
    )


def _headline(record: Record) -> str:
    """One sentence: how good, how large, and whether it holds the budget."""
    test, macs = record.quality.test if record.quality else None, record.macs
    if test is None and macs is None:
        return NO_NETWORK[record.status]
    size = f"{amount(macs)} multiply-adds" if macs is not None else "a trained network"
    said = f"{_figure(record, test)} with {size}" if test is not None else f"A network of {size}"
    if record.hardly_trained:
        said = f"Hardly trained, the time was too short: {said[0].lower()}{said[1:]}"
    if over := [budget.text for budget in record.budgets if budget.reached is not None and budget.reached > budget.limit]:
        return f"{said}, over the budget {' and '.join(over)}"
    if record.budgets and all(budget.reached is not None for budget in record.budgets):
        return f"{said}, within {'the budget' if len(record.budgets) == 1 else f'all {len(record.budgets)} budgets'}"
    return said


def _figure(record: Record, test: float) -> str:
    """`98.6 % test accuracy`, `test rmse of 3.21`."""
    name = figure_name(record.metric)
    return f"{percent(test)} test {name}" if is_share(record.metric) else f"Test {name} of {figure(record.metric, test)}"


def _quality_card(record: Record) -> str:
    quality = record.quality
    if quality is None or (quality.test is None and quality.validation is None):
        return card("How good", '<div class="big">–</div><p class="soft">not measured yet</p>')
    rows = []
    if quality.test is not None:
        rows.append(
            f'<div class="big">{_shown(record.metric, quality.test)} <small>test {escape(figure_name(record.metric))}</small></div>'
        )
        if quality.interval:
            tested = record.data.counts.get("test") if record.data else None
            seen = f" on {tested:,} {record.data.noun if record.data else 'examples'} seen once, at the end" if tested else ""
            low, high = quality.interval
            rows.append(f'{interval_bar(quality.test, low, high)}<p class="soft">95 % interval {percent(low)} to {percent(high)}{seen}</p>')
    if quality.validation is not None:
        rows.append(
            f"<p>{_shown(record.metric, quality.validation)} <span class=soft>{quality.judged}, when the network was chosen</span></p>"
        )
    rows += [
        f"<p>{_shown(name, value)} <span class=soft>test {escape(figure_name(name))}</span></p>" for name, value in quality.others.items()
    ]
    return card("How good", "".join(rows))


def _budget_card(record: Record) -> str:
    return card("Budget", "".join(map(_budget, record.budgets))) if record.budgets else ""


def _budget(budget: Budget) -> str:
    limit = _quantity(budget.resource, budget.limit)
    if budget.reached is None:
        verdict, used = '<span class="soft">not reached yet</span>', f"at most {limit}"
    else:
        verdict = '<span class="ok">✓ within</span>' if budget.reached <= budget.limit else '<span class="no">✗ over</span>'
        used = f"{_quantity(budget.resource, budget.reached)} of {limit}"
        used += f", {percent(budget.reached / budget.limit)}" if budget.limit else ""
    return (
        f'<div class="budget"><div><code>{escape(budget.text)}</code>{verdict}</div>'
        f'{meter(budget.reached, budget.limit)}<p class="soft">{escape(used)}</p></div>'
    )


def _size_card(record: Record) -> str:
    if record.macs is None and record.params is None:
        return ""
    facts = {
        "multiply-adds": f"{record.macs:,}" if record.macs is not None else "",
        "parameters": f"{record.params:,}" if record.params is not None else "",
        "stored of them": f"{record.stored:,}, the rest made from these" if record.stored is not None else "",
        "layers": f"{sum(1 for layer in record.layers if layer.params):,} with weights" if record.layers else "",
        "input": " × ".join(map(str, record.data.stored_shape)) if record.data else "",
        "classes": f"{len(record.data.classes):,}" if record.data and record.data.classes else "",
    }
    return card("The network", fact_list(facts))


def _use_card(record: Record) -> str:
    file = "rows.csv" if record.data and record.data.noun == "rows" else "image.png"
    use = f"<pre>niwaki predict {escape(record.folder or '.')} {file}</pre>" if record.files else ""
    place = f'<p class="soft">Files are in <code>{escape(record.folder)}</code></p>' if record.folder else ""
    names = ", ".join(f"<code>{escape(file.name)}</code>" for file in record.files[:5])
    return card("Use it", f"{use}{place}<p>{names}</p>") if use or place else ""


# --- shrinking -------------------------------------------------------------------------------------------------------


def _shrunk(record: Record) -> Section | None:
    """What shrinking an owner's network changed: figures before and after, and the widths."""
    shrunk = record.shrunk
    if shrunk is None:
        return None
    figures = [(escape(name), escape(before), escape(after)) for name, (before, after) in shrunk.figures.items()]
    rows = [
        (f"<code>{escape(one.group)}</code>", str(one.before), str(one.after), percent(one.after / one.before, 0), escape(one.layers))
        for one in shrunk.widths
    ]
    table = listing(("group, by its first layer", ">before", ">after", ">left", "whose channels they are"), rows)
    parts = [card("Before and after", listing(("", ">before", ">after"), figures))] if figures else []
    parts += [width_bars(shrunk.widths)] if shrunk.widths else []
    below = folded(f"All {len(rows)} groups as a table", table) if rows else ""
    return "shrunk", "Shrunk", f'<div class="grid">{"".join(parts)}</div>{below}'


# --- search ----------------------------------------------------------------------------------------------------------


def _search(record: Record) -> Section | None:
    cost = record.cost
    dots = [dot for candidate in record.candidates if (dot := _dot(record, candidate, cost))]
    limits = [Mark(limit, f"budget {_quantity(cost, limit)}") for limit in _limits(record, cost)]
    title = f"{figure_name(record.metric).capitalize()} against cost" + (f", judged {record.judged}" if record.judged else "")
    delivered = record.quality.judged if record.quality else ""
    apart = record.judged and delivered and record.judged not in delivered
    note = (
        f"Candidates and their front are judged {record.judged}; the delivered network, when it was chosen, {delivered}. The two are not on one scale."
        if apart
        else ""
    )
    charts = [
        scatter_chart(
            title,
            dots,
            x_label=UNITS.get(cost, cost),
            y_label=figure_name(record.metric),
            limits=limits,
            write=partial(_shown, record.metric),
            note=note,
        ),
        line_chart("Loss during the search", record.search_loss),
        line_chart("Expected cost during the search", record.search_cost, marks=[Mark(limit.value, "budget") for limit in limits[:1]]),
    ]
    facts = _space(record.space) if record.space else ""
    table = _front_table(record, dots)
    if not facts and not any(charts):
        return None
    return "search", "Search", f'{_chosen(record)}<div class="grid">{facts}{"".join(charts)}</div>{table}'


def _limits(record: Record, resource: str) -> list[float]:
    """The limits on `resource` of all budgets asked for, the delivered network's first."""
    budgets = [*record.budgets, *(budget for chosen in record.chosen for budget in chosen.budgets)]
    return list(dict.fromkeys(budget.limit for budget in budgets if budget.resource == resource))


def _dot(record: Record, candidate: Candidate, cost: str) -> Dot | None:
    quality, price = candidate.metrics.get(record.metric), candidate.metrics.get(cost)
    if quality is None or price is None:
        return None
    group = SOURCES.get(candidate.source, candidate.source)
    told = f"{group} {candidate.number}: {_shown(record.metric, quality, 2)}, {_quantity(cost, price)}"
    return Dot(price, quality, group, told, final=candidate.source == "final", on_front=candidate.on_front)


def _front_table(record: Record, dots: Sequence[Dot]) -> str:
    front = sorted((dot for dot in dots if dot.on_front), key=lambda dot: dot.x)
    if len(front) < 2:
        return ""
    rows = [(f"{dot.x:,.6g}", _shown(record.metric, dot.y, 2), escape(dot.title.split(":")[0])) for dot in front]
    judged = record.quality.judged if record.quality else ""
    rows += [
        (f"{dot.x:,.6g}", _shown(record.metric, dot.y, 2), f"delivered network{f', {judged}' if judged else ''}")
        for dot in dots
        if dot.final
    ]
    strong = set(range(len(front), len(rows)))
    head = (f">{UNITS.get(record.cost, record.cost)}", f">{figure_name(record.metric)}", "trial")
    how = f", judged {record.judged}" if record.judged else ""
    return folded(f"The front as a table ({len(front)} networks{how})", listing(head, rows, strong=strong))


def _space(space: SpaceFacts) -> str:
    within = [_large(space.within)] if space.within is not None else []
    within += [_share(space.share)] if space.share is not None else []
    facts = {
        "choices": f"{space.choices:,}",
        "architectures": _large(space.size),
        "distinct programs": _large(space.distinct) if space.distinct is not None else "",
        "within the budget": ", ".join(within),
        "multiply-adds": f"{amount(space.macs[0])} to {amount(space.macs[1])}" if space.macs else "",
    }
    note = f'<p class="note">{escape(space.note)}</p>' if space.note else ""
    return card("The space", fact_list(facts) + note)


def _chosen(record: Record) -> str:
    """The networks for several budgets, below each other."""
    if len(record.chosen) < 2:
        return ""
    rows, strong = [], set()
    for at, chosen in enumerate(record.chosen):
        counts = [f"{chosen.metrics[name]:,.0f}" if name in chosen.metrics else "" for name in ("macs", "params")]
        shares = [_shown(record.metric, chosen.metrics[name], 2) if name in chosen.metrics else "" for name in ("validation", "test")]
        budgets = ", ".join(budget.text for budget in chosen.budgets)
        rows.append((f"<code>{escape(budgets)}</code>", *counts, *shares, f"<code>{escape(chosen.folder)}</code>"))
        strong |= {at} if chosen.delivered else set()
    metric = figure_name(record.metric)
    head = ("budget", ">MACs", ">parameters", f">validation {metric}", f">test {metric}", "folder")
    return card("One network for each budget", listing(head, rows, strong=strong), "below")


def _choices(record: Record) -> Section | None:
    shown = sorted((decision for decision in record.decisions if len(decision.options) > 1), key=_idle)
    if shown:
        settled = sum(1 for decision in shown if decision.probabilities and max(decision.probabilities[-1]) >= SETTLED)
        idle = " Faded choices do not exist in the network that was chosen." if _idle(shown[-1]) and not _idle(shown[0]) else ""
        text = (
            "How the probability of each option moved over the search, the first option at the bottom; the one taken is underlined."
            f"{idle} {settled} of {len(shown)} choices ended with an option above {percent(SETTLED)}."
        )
        strips = "".join(map(decision_strip, shown))
        return "choices", "Choices", f'<p class="sub">{text}</p><div class="card"><div class="decisions">{strips}</div></div>'
    if record.architecture:
        return "choices", "Choices", card("", fact_list({name: str(option) for name, option in record.architecture.items()}))
    return None


def _idle(decision: Decision) -> bool:
    return decision.taken is None


# --- the network -----------------------------------------------------------------------------------------------------


def _network(record: Record) -> Section | None:
    parts = []
    if record.picture:
        parts.append('<p class="sub">Every layer with the shape it gives and its multiply-adds. Shortcuts run at the left.</p>')
        parts.append(f'<div class="card scroll picture below" tabindex="0">{record.picture}</div>')
    if record.layers:
        rows = [
            (f"<code>{escape(layer.path)}</code>", escape(layer.kind), escape(layer.shape), f"{layer.macs:,}", f"{layer.params:,}")
            for layer in record.layers
        ]
        rows.append(("all", "", "", f"{sum(layer.macs for layer in record.layers):,}", f"{sum(layer.params for layer in record.layers):,}"))
        table = listing(("layer", "type", "output", ">MACs", ">parameters"), rows, strong={len(rows) - 1})
        parts += [layer_bars(record.layers), folded(f"All {len(record.layers)} layers as a table", table)]
    return ("network", "Network", "".join(parts)) if parts else None


# --- training and errors ---------------------------------------------------------------------------------------------


def _training(record: Record) -> Section | None:
    chart = line_chart("Loss in the final training", record.training_loss)
    data = _data(record.data) if record.data else ""
    return ("training", "Data and training", f'<div class="grid">{data}{chart}</div>') if data or chart else None


def _data(data: Data) -> str:
    names = ", ".join(data.classes[:MOST_NAMES])
    names += f" and {len(data.classes) - MOST_NAMES:,} more" if len(data.classes) > MOST_NAMES else ""
    if data.columns:
        numbers = [name for name, categories in data.columns if categories is None]
        kinds = [f"{name} ({categories})" for name, categories in data.columns if categories is not None]
        facts = {"data": data.name, "target": data.target, "numbers": _named(numbers), "categories": _named(kinds)}
        facts |= {"missing values": f"{data.missing:,} in the training rows" if data.missing else ""}
        texts = (f"{text} ({name}, {count:,})" for name, found in data.missing_texts.items() for text, count in found.items())
        facts |= {"texts for missing": ", ".join(texts)}
    else:
        facts = {"data": data.name, "image": " × ".join(map(str, data.stored_shape))}
    facts |= {part: f"{count:,} {data.noun}" for part, count in data.counts.items()}
    facts |= {"classes": f"{len(data.classes):,}: {names}" if data.classes else ""}
    images = "".join(_image(example, example.label) for example in data.examples)
    return card("The data", fact_list(facts) + (f'<div class="strip">{images}</div>' if images else ""))


def _named(names: Sequence[str]) -> str:
    if not names:
        return ""
    return f"{len(names):,}: {', '.join(names[:MOST_NAMES])}{', ...' if len(names) > MOST_NAMES else ''}"


def _errors(record: Record) -> Section | None:
    quality, parts, told = record.quality, [], ""
    if quality and quality.confusion and record.data:
        classes = record.data.classes
        worst = "; ".join(f"{predicted} for {true}: {n}" for true, predicted, n in worst_confusions(quality.confusion, classes))
        note = f"Most frequent, predicted for true: {worst}." if worst else "No mistakes."
        matrix = f'<div class="scroll">{confusion_matrix(quality.confusion, classes)}</div><p class="note">{escape(note)}</p>'
        parts.append(card("True classes down, predicted classes across", matrix))
        wrong = sum(n for i, row in enumerate(quality.confusion) for j, n in enumerate(row) if i != j)
        told = f'<p class="sub">{wrong:,} of {sum(map(sum, quality.confusion)):,} test {record.data.noun} are taken for another class.</p>'
    if quality and quality.pairs:
        dots = [Dot(truth, said, "test rows", f"{amount(said)} for {amount(truth)}") for truth, said in quality.pairs]
        target = record.data.target if record.data else "target"
        parts.append(scatter_chart("Predicted against true", dots, x_label=f"true {target}", y_label=f"predicted {target}", write=amount))
    if quality and quality.mistakes and not quality.mistakes[0].image:
        sure = [percent(one.probability, 0) for one in quality.mistakes if one.probability is not None]  # of classes only
        head = ("true", "predicted", *(["sure"] if sure else []), "row")
        told_of = [
            (escape(one.label), escape(one.predicted), *([sure[at]] if sure else []), escape(one.text))
            for at, one in enumerate(quality.mistakes)
        ]
        parts.append(card("Worst mistakes first", listing(head, told_of)))
    elif quality and quality.mistakes:
        parts.append(card("Worst mistakes, the surest first", f'<div class="images">{"".join(map(_mistake, quality.mistakes))}</div>'))
    return ("errors", "Errors", f'{told}<div class="grid two">{"".join(parts)}</div>') if parts else None


def _mistake(example: Example) -> str:
    sure = f", {percent(example.probability, 0)} sure" if example.probability is not None else ""
    image = _image(example, f"{example.label} taken for {example.predicted}{sure}")
    return (
        f'<figure>{image}<b>{escape(example.label)}</b> <span class="soft">taken for</span> '
        f'<b class="no">{escape(example.predicted)}</b><span class="soft">{escape(sure)}</span></figure>'
    )


def _image(example: Example, told: str) -> str:
    return f'<img src="data:image/png;base64,{escape(example.image)}" alt="{escape(told)}" title="{escape(told)}">'


def _tree(record: Record) -> Section | None:
    tree = record.tree
    if tree is None:
        return None
    text = (
        "The network read as a tree of decisions: each chooses among groups of classes by the mean of their logits. A branch is as thick as the "
        f"share of test {record.data.noun if record.data else 'examples'} that pass it; beside each class stands how many of its own find it by the likelier branch each time."
    )
    facts = card("Test accuracy", fact_list({name: percent(share, 2) for name, share in tree.accuracy.items()}) + _note(tree.made))
    drawn = f'<div class="card scroll picture wide" tabindex="0">{tree_picture(tree)}</div>'
    ways = "".join(way_card(tree, way) for way in tree.ways)
    cards = card("How single ones came to their class", f'<div class="ways">{ways}</div>', "below") if ways else ""
    return "tree", "Decisions", f'<p class="sub">{escape(text)}</p><div class="grid below">{drawn}{facts}</div>{cards}'


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>' if text else ""


# --- the run ---------------------------------------------------------------------------------------------------------


def _cascade(record: Record) -> Section | None:
    """Who leaves where, how often rightly, and at what cost, beside the largest member alone."""
    if (made := record.cascade) is None:
        return None
    test, held_out, largest, latency = made["test"], made["held_out"], made["largest"], made["latency"]
    unit = "MACs" if made["cost"] == "macs" else "ms"
    rows = []
    for at, name in enumerate(made["order"]):
        sure = "all others" if at == len(made["thresholds"]) else f"confidence of at least {made['thresholds'][at]:.4f}"
        right = test["exit_accuracies"][at]
        took = latency["exits_ms"].get(str(at + 1))
        rows.append((
            escape(name), sure, percent(test["shares"][at]), "" if right is None else percent(right), f"{sum(test['costs'][: at + 1]):,.6g}",
            "" if took is None else f"{took:.4f}",
        ))  # fmt: skip
    rows.append((
        "the cascade", f"chosen for {escape(made['demand'])}", "", percent(test["accuracy"]), f"{test['average_cost']:,.6g}",
        f"{latency['average_ms']:.4f}",
    ))  # fmt: skip
    rows.append((
        f"{escape(largest['name'])} alone", "the largest member", "", percent(largest["accuracy"]), f"{largest['cost']:,.6g}",
        f"{latency['largest_ms']:.4f}",
    ))  # fmt: skip
    table = listing(("network", "who stops", ">share", ">accuracy", f">{unit}", ">ms"), rows, strong={len(rows) - 2})
    about = (
        f"The answer is {made['answer']}. Thresholds were chosen on {held_out['about']} (accuracy {percent(held_out['accuracy'])} there); all figures are of "
        f"{test['about']}. Costs are those of all networks that ran; milliseconds were measured in {latency['runtime']}, one example at a time."
    )
    return "cascade", "Cascade", f'<p class="sub">{escape(about)}</p>{table}'


def _run(record: Record) -> Section | None:
    cards = []
    if record.files:
        rows = [(f"<code>{escape(file.name)}</code>", _bytes(file.size_bytes), _about(file)) for file in record.files]
        cards.append(card("Files", listing(("file", ">size", ""), rows)))
    if any(file.name == "model.onnx" for file in record.files):
        cards.append(card("Predict without niwaki", f"<pre>{escape(_snippet(record.data))}</pre>"))
    if record.command or record.versions or record.machine:
        command = f"<pre>{escape(record.command)}</pre>" if record.command else ""
        cards.append(card("Do it again", command + fact_list({**record.versions, **record.machine})))
    if record.seconds:
        cards.append(card("Time", _phases(record.seconds)))
    config = folded("The whole configuration", fact_list(_flat(record.config))) if record.config else ""
    return ("run", "Files and run", f'<div class="grid two">{"".join(cards)}</div>{config}') if cards or config else None


def _about(file: File) -> str:
    check = f"<span class=ok>✓</span> <span class=soft>{escape(file.check)}</span>" if file.check else ""
    return "<br>".join(filter(None, (escape(file.about), check)))


def _snippet(data: Data | None) -> str:
    shape = " x ".join(map(str, ("N", *(data.stored_shape if data else ("H", "W")))))
    if data and data.columns:
        last = "classes = outputs.argmax(1)" if data.classes else "predictions = outputs[:, 0]"
        return (
            f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\nname = session.get_inputs()[0].name\n'
            f"# rows: float64, {shape}, NaN where a value is missing, categories of text by their number in architecture.json\n"
            f"outputs, = session.run(None, {{name: rows}})\n{last}"
        )
    return (
        f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("model.onnx")\nname = session.get_inputs()[0].name\n'
        f'# images: {shape}, as the data set stores them\nlogits, = session.run(["logits"], {{name: images}})\nclasses = logits.argmax(1)'
    )


def _phases(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values()) or 1.0
    bar, rows = [], []
    for at, (name, value) in enumerate(seconds.items()):
        color = f"c{at % COLORS}"
        bar.append(f'<i class="{color}" style="flex:{value / total:.4f}" title="{escape(name)}: {_duration(value)}"></i>')
        rows.append((f'<span class="key"><i class="{color}"></i>{escape(name)}</span>', _duration(value), percent(value / total, 0)))
    return f'<div class="phases" aria-hidden="true">{"".join(bar)}</div>{listing(("phase", ">time", ">share"), rows)}'


def _foot(record: Record) -> str:
    writer = f"niwaki {record.versions.get('niwaki', '')}".strip()
    return (
        f"<footer>Written by {escape(writer)}. MACs are multiply-adds of convolutions and linear layers. "
        "Pointing at a part of a picture tells its numbers.</footer>"
    )


# --- small texts -----------------------------------------------------------------------------------------------------


def _shown(metric: str, value: float, digits: int = 1) -> str:
    return percent(value, digits) if is_share(metric) else figure(metric, value, digits)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{"data": {"kind": "npz"}} as {"data.kind": "npz"}."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = "–" if value in (None, "") else str(value)
    return flat


def _quantity(resource: str, value: float) -> str:
    """A value of a resource with its unit."""
    return _bytes(value) if resource == "size" else f"{amount(value)} {UNITS.get(resource, resource)}"


def _bytes(value: float) -> str:
    return f"{value:,.0f} B" if value < 1000 else f"{value / 1000:.1f} kB" if value < 1e6 else f"{value / 1e6:.2f} MB"


def _duration(seconds: float) -> str:
    """`42 s`, `3 min 12 s`, `1 h 4 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _large(count: int) -> str:
    """`1,234,567`, or `3.2 × 10²¹` from a million million."""
    if count < 10**12:
        return f"{count:,}"
    digits = str(count)
    return f"{digits[0]}.{digits[1]} × 10{str(len(digits) - 1).translate(RAISED)}"


def _share(share: float) -> str:
    """`12.3 %`, or `1 in 244 M`."""
    if share >= 0.001 or not share:
        return percent(share)
    return f"1 in {amount(1 / share)}" if share > 1e-12 else f"1 in {_large(round(1 / share))}"
