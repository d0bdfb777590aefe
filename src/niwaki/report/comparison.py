"""A comparison of search methods on a table as one page; and its curves as a drawing that stands alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from typing import Any

from niwaki.report.charts import amount, percent
from niwaki.report.comparison_charts import STYLE, Band, kinds, number, rank_chart, regret_chart, standalone
from niwaki.report.parts import LOGO, Section, card, document, fact_list, folded, listing

COUNTS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)  # of evaluations, that tables show
MARKS = {"pass": "<span class=ok>pass</span>", "fail": "<span class=no>fail</span>", "n.a.": "<span class=soft>n.a.</span>"}

Results = Mapping[str, Any]  # results.json of `niwaki bench`


def render_comparison(results: Results) -> str:
    """The page, as the text of one HTML file."""
    parts = (_curves, _figures, _ranks, _pairs, _checklist, _run)
    sections = [section for part in parts if (section := part(results))]
    return document(_title(results), f"<style>{STYLE}</style>{_head(results)}", sections, _foot(results))


def regret_svg(results: Results) -> str:
    """The curves of regret over evaluations, as an SVG file."""
    return standalone(_regret_chart(results))


def _title(results: Results) -> str:
    return f"Search methods on {results['facts']['table']}"


def _unit(facts: Results) -> str:
    """What a regret is told in."""
    return "hypervolume" if facts["report"] == "hypervolume" else facts["report"].removeprefix("-")


def _last(results: Results) -> int:
    return int(results["facts"]["evaluations"])


def _head(results: Results) -> str:
    facts, found = results["facts"], results["strategies"]
    last = str(_last(results))
    order = sorted(found, key=lambda name: found[name]["regret"][last]["mean"])
    leads = [name for name in order if found[name]["regret"][last]["mean"] == found[order[0]]["regret"][last]["mean"]]
    best, seeds = found[leads[0]]["regret"][last]["mean"], next(iter(found.values()))["seeds"]
    one, names = len(leads) == 1, f"{', '.join(leads[:-1])}{' and ' if leads[1:] else ''}{leads[-1]}"
    if best:
        headline = (
            f"After {_last(results):,} evaluations {names} {'is' if one else 'are'} nearest to the best there is: regret {number(best)}"
        )
    else:
        headline = f"{names} {'finds' if one else 'find'} the best there is within {_last(results):,} evaluations, with every seed"
    limits = f"within {' and '.join(facts['limits'])}" if facts["limits"] else ""
    lead = [" and ".join(map(_goal, facts["objectives"])), limits, f"{seeds} seeds each", f"{facts['architectures']:,} architectures"]
    if facts["report"] != "hypervolume" and facts["report"] != facts["objectives"][0]:
        lead.insert(1, f"regret of {facts['report'].removeprefix('-')}")
    notes = "".join(f"<li>{escape(note)}</li>" for note in facts["notes"])
    return (
        f'<header><div class="brand">{LOGO}<span>niwaki bench</span><span class="state finished">{escape(facts["table"])}</span></div>'
        f'<h1>{escape(headline)}</h1><p class="lead">{escape(" · ".join(filter(None, lead)))}</p>{f"<ul class=notes>{notes}</ul>" if notes else ""}</header>'
    )


def _goal(metric: str) -> str:
    return f"smallest {metric[1:]}" if metric.startswith("-") else f"largest {metric}"


# --- sections --------------------------------------------------------------------------------------------------------


def _regret_chart(results: Results) -> str:
    found, colors = results["strategies"], kinds(list(results["strategies"]))
    bands = []
    for name, one in found.items():
        entries = list(one["regret"].values())
        columns = {key: [entry[key] for entry in entries] for key in ("mean", "low", "high")}
        bands.append(Band(name, colors[name], range(1, len(entries) + 1), **columns))
    facts = results["facts"]
    label = f"mean regret in {_unit(facts)}, 95 % interval over seeds"
    return regret_chart("Regret", bands, x_label="evaluations", y_label=label, exact=facts["random_exact"])


def _curves(results: Results) -> Section:
    facts, found = results["facts"], results["strategies"]
    exact = " The dotted line is random search in closed form, without the noise of a simulation." if facts["random_exact"] else ""
    told = (
        "How far the best that was found so far is from the best there is, both axes logarithmic; at the foot lies 0. Bands are 95 % bootstrap "
        f"intervals of the mean over seeds.{exact}"
    )
    if facts["limits"]:
        told += " Only what keeps the limits counts; until something does, the regret is that of the worst that does."
    body = f'<p class="sub">{escape(told)}</p><div class="card scroll">{_regret_chart(results)}</div>'
    if all("over_time" in one for one in found.values()):
        colors = kinds(list(found))
        bands = [
            Band(name, colors[name], *(one["over_time"][key] for key in ("seconds", "mean", "low", "high"))) for name, one in found.items()
        ]
        chart = regret_chart("Regret over time", bands, x_label="simulated time", y_label=f"mean regret in {_unit(facts)}")
        unit = f"durations from the column {facts['seconds']}" if facts["seconds"] else "every evaluation takes 1"
        body += f'<h3>Over simulated time</h3><p class="sub">{facts["workers"]} workers; {escape(unit)}.</p><div class="card scroll">{chart}</div>'
    return "curves", "Regret", body


def _figures(results: Results) -> Section:
    facts, found, last = results["facts"], results["strategies"], _last(results)
    counts = [at for at in COUNTS if at < last][-5:] + [last]
    order = sorted(found, key=lambda name: found[name]["area"]["mean"])
    rows = []
    for name in order:
        entries = [found[name]["regret"][str(at)] for at in counts]
        cells = [f"{number(e['mean'])} <span class=soft>±{e['sem']:.2g}</span>" for e in entries]
        rows.append((_name(name), *cells))
    if facts["random_exact"]:
        exact = ("random, exact", *(number(facts["random_exact"][at - 1]) for at in counts))
        rows.append(tuple(f"<span class=soft>{cell}</span>" for cell in exact))
    head = ("strategy", *(f">{at:,}" for at in counts))
    body = f'<p class="sub">Mean regret after so many evaluations, in {escape(_unit(facts))}, ± the standard error over seeds.</p>'
    body += f'<div class="card below">{listing(head, rows)}</div>'
    told = (
        "Area: mean log10 regret over log evaluations with its 95 % interval, smaller is better; a regret of 0 counts as the smallest above 0, "
        f"{number(facts['floor'])}. Against random search in closed form: the area of the mean curve less its own. Then the seeds that reached "
        "a level, and after how many evaluations half of them had; the regret at the end in standard deviations of the table; the CPU time of "
        "the search itself."
    )
    columns = _columns(facts, found)
    rows = [(_name(name), *(cell(found[name]) for cell in columns.values())) for name in order]
    body += f'<p class="sub">{escape(told)}</p><div class="card">{listing(("strategy", *columns), rows)}</div>'
    return "figures", "Figures", body


def _columns(facts: Results, found: Mapping[str, Results]) -> dict[str, Callable[[Results], str]]:
    """What there is to say of each contestant beside its curve: head of a column -> its cell."""
    last = str(facts["evaluations"])
    columns: dict[str, Callable[[Results], str]] = {">area under log regret": lambda one: _interval(one["area"])}
    if facts["random_exact"]:
        columns[">against random, exact"] = lambda one: _interval(one["against_random"])
    for at, level in enumerate(facts["levels"]):
        columns[f">{level['name']} (≤ {number(level['regret'])})"] = partial(_reached, at)
    if facts["std"]:
        columns[">regret in std"] = lambda one: f"{one['regret'][last]['mean'] / facts['std']:.3f}"
    if facts["limits"]:
        columns[">within limits"] = lambda one: percent(one["within"])
    if any(one["distinct"] < one["evaluations"] for one in found.values()):
        columns[">distinct"] = lambda one: f"{one['distinct']:,.0f}"
    columns[">CPU ms / evaluation"] = lambda one: number(one["cpu_ms_per_evaluation"])
    return columns


def _reached(at: int, one: Results) -> str:
    level = one["reached"][at]
    when = f" <span class=soft>after {level['median']:g}</span>" if level["median"] is not None else ""
    return f"{level['seeds']} of {one['seeds']}{when}"


def _name(name: str) -> str:
    return f'<b class="name">{escape(name)}</b>'


def _interval(one: Results) -> str:
    return f"{one['mean']:.3f} <span class=soft>{one['low']:.3f} to {one['high']:.3f}</span>"


def _ranks(results: Results) -> Section | None:
    comparison = results["comparison"]
    if len(comparison["order"]) < 2:
        return None
    names = comparison["order"]
    told = (
        "Within each seed the methods are ranked by their area, 1 is the best. Bars join methods that Wilcoxon's signed-rank test over the "
        "seeds does not tell apart at 5 %, adjusted by Holm's for all pairs."
    )
    if comparison["friedman_p"] is not None:
        told += f" Friedman's test that all rank alike: p = {comparison['friedman_p']:.2g}."
    chart = rank_chart(
        "Mean ranks",
        comparison["ranks"]["area"],
        comparison["alike"],
        comparison["critical_difference"],
        kinds(list(results["strategies"])),
    )
    columns = [what for what in comparison["ranks"] if what != "area"][-5:]
    rows = [
        (
            _name(name),
            *(f"{comparison['ranks'][what][name]:.2f}" for what in columns),
            f"<b>{comparison['ranks']['area'][name]:.2f}</b>",
        )
        for name in names
    ]
    table = listing(("mean rank of", *(f">regret at {int(what):,}" for what in columns), ">area"), rows)
    return "ranks", "Ranks", f'<p class="sub">{escape(told)}</p><div class="card scroll below">{chart}</div><div class="card">{table}</div>'


def _pairs(results: Results) -> Section | None:
    pairs = results["comparison"]["pairs"]
    if not pairs:
        return None
    seeds = next(iter(results["strategies"].values()))["seeds"]
    rows = []
    for pair in pairs:
        interval, better = pair["difference"], pair["first"] if pair["difference"]["mean"] < 0 else pair["second"]
        verdict = f"<b>{escape(better)}</b>" if pair["p"] < 0.05 else "<span class=soft>not told apart</span>"
        rows.append((
            escape(pair["first"]), escape(pair["second"]), f"{interval['mean']:+.3f} <span class=soft>{interval['low']:+.3f} to {interval['high']:+.3f}</span>",
            f"{pair['delta']:+.2f}", f"{pair['p']:.2g}", verdict,
        ))  # fmt: skip
    told = (
        "Paired by seed: difference of the areas (first minus second, below 0 the first is better) with its 95 % bootstrap interval, Cliff's "
        "delta, and Wilcoxon's p, adjusted by Holm's."
    )
    if seeds < 6:
        told += f" With {seeds} seeds the smallest p there can be is {2 / 2**seeds:g}, before it is adjusted: look at the intervals."
    table = listing(("first", "second", ">difference", ">Cliff's delta", ">p", "better"), rows)
    return (
        "pairs",
        "Pair by pair",
        f'<p class="sub">{escape(told)}</p><div class="card">{table if len(rows) <= 12 else folded(f"All {len(rows)} pairs", table)}</div>',
    )


def _checklist(results: Results) -> Section | None:
    items = results.get("checklist")
    if not items:
        return None
    rows = [(escape(item["item"]), MARKS[item["status"]], escape(item["evidence"])) for item in items]
    told = "What a comparison of search methods should keep (after Lindauer & Hutter, JMLR 21(243), 2020), and where it can be seen."
    return "checklist", "Checklist", f'<p class="sub">{told}</p><div class="card">{listing(("item", "", "evidence"), rows)}</div>'


def _run(results: Results) -> Section:
    facts, run = results["facts"], results.get("run", {})
    asked = {
        "objective": ", ".join(map(_goal, facts["objectives"])),
        "regret of": facts["report"],
        "limits": ", ".join(facts["limits"]),
        "architectures": f"{facts['architectures']:,}, of which {facts['allowed']:,} may be proposed and {facts['feasible']:,} are feasible",
        "best there is": number(facts["best"]),
        "simulated workers": str(facts["workers"]),
        "durations": facts["seconds"] or "1 each",
    }
    shown = {
        key: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)
        for key, value in run.items()
        if key != "command"
    }
    command = f"<pre>{escape(run['command'])}</pre>" if run.get("command") else ""
    return (
        "run",
        "Run",
        f'<div class="grid two">{card("What was asked", fact_list(asked))}{card("Do it again", command + fact_list(shown))}</div>',
    )


def _foot(results: Results) -> str:
    version = results.get("run", {}).get("versions", {}).get("niwaki", "")
    count = sum(one["seeds"] for one in results["strategies"].values())
    return f"<footer>Written by niwaki {escape(version)} from the logs of {amount(count)} searches. Pointing at a line tells its numbers.</footer>"


__all__: Sequence[str] = ("regret_svg", "render_comparison")
