"""Charts as fragments of HTML, drawn by hand: they keep their text size at any width, follow light and dark, and need no script.

Geometry is SVG in a square of 1000 x 1000 that is stretched to the plot (strokes are not); texts are laid over it by percentages.
Colours and sizes are classes that `niwaki.report.page` styles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from niwaki.report.record import Curve, Decision, Layer, Width

COLORS = 6  # classes c0 ... c5
SPACE = "\u00a0"  # between a number and its unit; no line breaks there
SIDE = 1000.0  # of the square that geometry is drawn in
MOST_NUMBERED = 16  # classes of a confusion matrix with numbers
LOG_FROM = 12.0  # a cost that varies by more than this factor has a logarithmic axis


def amount(value: float) -> str:
    """A count as people read it.

    >>> print([amount(v).replace(SPACE, " ") for v in (7, 950, 87_312, 1_000_000, 2.5e9)])
    ['7', '950', '87.3 k', '1 M', '2.5 G']
    """
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size * 0.99995:
            return f"{float(f'{value / size:.3g}'):g}{SPACE}{unit}"
    return f"{float(f'{value:.4g}'):g}"


def percent(value: float, digits: int = 1) -> str:
    """A fraction in per cent.

    >>> percent(0.98611).replace(SPACE, " "), percent(1.0).replace(SPACE, " ")
    ('98.6 %', '100 %')
    """
    return f"{100 * value:.{digits}f}".removesuffix("." + "0" * digits) + f"{SPACE}%"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from `low` to `high`.

    >>> ticks(0, 10), ticks(0.91, 0.99, 4)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [0.92, 0.94, 0.96, 0.98])
    """
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = size * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, 12) for at in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if high / low < 30 else (1, 3) if high / low < 1000 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


@dataclass(frozen=True)
class _Axis:
    """From values to the square: `at` gives 0 for `low` and SIDE for `high`."""

    low: float
    high: float
    write: Callable[[float], str]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        if self.logarithmic:
            return SIDE * math.log(value / self.low) / math.log(self.high / self.low)
        return SIDE * (value - self.low) / (self.high - self.low)

    def ticks(self, count: int) -> list[float]:
        return _log_ticks(self.low, self.high) if self.logarithmic else ticks(self.low, self.high, count)


def _axis(values: Iterable[float], write: Callable[[float], str], *, margin: float = 0.0) -> _Axis:
    """An axis over `values`, with a share of its length as margin at both ends."""
    found = list(values)
    low, high = min(found), max(found)
    if low == high:
        low, high = low - (abs(low) * 0.1 or 1.0), high + (abs(high) * 0.1 or 1.0)
    more = (high - low) * margin
    return _Axis(low - more, high + more, write)


def _log_axis(values: Iterable[float], write: Callable[[float], str], *, margin: float) -> _Axis:
    found = list(values)
    factor = (max(found) / min(found)) ** margin
    return _Axis(min(found) / factor, max(found) * factor, write, logarithmic=True)


@dataclass(frozen=True)
class Mark:
    """A line across a chart at `value` of its axis, with a text."""

    value: float
    text: str


def _plot(x: _Axis, y: _Axis, drawing: str, *, label: str, x_label: str, marks_x: Sequence[Mark] = (), marks_y: Sequence[Mark] = ()) -> str:
    """Axes, grid and marks around `drawing`, which is SVG in the square."""
    grid, texts = [], []
    for value in y.ticks(4):
        at = SIDE - y.at(value)
        grid.append(f'<path class="grid" d="M0 {at:.1f}H{SIDE:.0f}"/>')
        texts.append(f'<span class="ty" style="top:{at / 10:.2f}%">{escape(y.write(value))}</span>')
    for value in x.ticks(5):
        at = x.at(value)
        texts.append(f'<span class="tx" style="left:{at / 10:.2f}%">{escape(x.write(value))}</span>')
    for number, mark in enumerate(marks_x):
        at = x.at(mark.value)
        grid.append(f'<path class="limit" d="M{at:.1f} 0V{SIDE:.0f}"/>')
        side, offset = ("right", SIDE - at) if at > SIDE / 2 else ("left", at)  # of the line, towards the middle
        spot = f"{side}:calc({offset / 10:.2f}% + 5px);bottom:{2 + 15 * number}px"
        texts.append(f'<span class="tm" style="{spot}">{escape(mark.text)}</span>')
    for mark in marks_y:
        grid.append(f'<path class="limit" d="M0 {SIDE - y.at(mark.value):.1f}H{SIDE:.0f}"/>')
        texts.append(f'<span class="tm over" style="right:4px;top:{(SIDE - y.at(mark.value)) / 10:.2f}%">{escape(mark.text)}</span>')
    return (
        f'<div class="plot" role="img" aria-label="{escape(label)}"><svg viewBox="0 0 {SIDE:.0f} {SIDE:.0f}" preserveAspectRatio="none" '
        f'aria-hidden="true">{"".join(grid)}{drawing}</svg>{"".join(texts)}<span class="xl">{escape(x_label)}</span></div>'
    )


def _figure(title: str, legend: Sequence[tuple[str, str]], body: str, note: str = "", *, wide: bool = False) -> str:
    """A chart with its title and legend: pairs of a class and a name."""
    keys = "".join(f'<span class="key"><i class="{kind}"></i>{escape(name)}</span>' for kind, name in legend)
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    kind = "chart wide" if wide else "chart"
    return f'<figure class="{kind}"><figcaption><b>{escape(title)}</b><span class="keys">{keys}</span></figcaption>{body}{below}</figure>'


def _dot(x: float, y: float, kind: str, title: str) -> str:
    """A round dot that stretching leaves round: a line without length, with round ends."""
    return f'<path class="point {kind}" d="M{x:.1f} {y:.1f}h.01"><title>{escape(title)}</title></path>'


def line_chart(title: str, curves: Sequence[Curve], *, x_label: str = "epoch", fraction: bool = False, marks: Sequence[Mark] = ()) -> str:
    """Curves over epochs. fraction: values are written in per cent. Gaps where a value is None; "" if no curve has a value."""
    known = [curve for curve in curves if any(value is not None for _, value in curve.points)]
    if not known:
        return ""
    values = [value for curve in known for _, value in curve.points if value is not None]
    write: Callable[[float], str] = (lambda value: percent(value, 1)) if fraction else amount
    x = _axis((at for curve in known for at, _ in curve.points), amount)
    y = _axis([*values, *(mark.value for mark in marks)], write, margin=0.06)
    drawn = []
    for number, curve in enumerate(known):
        color = f"c{number % COLORS}"
        path, pen = "", "M"
        for at, value in curve.points:
            path, pen = (path + f"{pen}{x.at(at):.1f} {SIDE - y.at(value):.1f}", "L") if value is not None else (path, "M")
        drawn.append(f'<path class="line {color}" d="{path}"/>')
        present = [(at, value) for at, value in curve.points if value is not None]
        shown = "" if len(present) == 1 else "ghost "  # only to be pointed at
        every = max(1, len(present) // 100)
        for at, value in present[::every]:
            told = percent(value, 2) if fraction else f"{value:.4g}"
            drawn.append(_dot(x.at(at), SIDE - y.at(value), shown + color, f"{curve.name}, {x_label} {at:g}: {told}"))
    ends = ", ".join(f"{curve.name} ends at {write(next(v for _, v in reversed(curve.points) if v is not None))}" for curve in known)
    legend = [(f"c{number % COLORS}", curve.name) for number, curve in enumerate(known)]
    return _figure(title, legend, _plot(x, y, "".join(drawn), label=f"{title}: {ends}", x_label=x_label, marks_y=marks))


@dataclass(frozen=True)
class Dot:
    """One point of a scatter chart."""

    x: float
    y: float
    group: str
    title: str
    final: bool = False
    on_front: bool = False


def scatter_chart(
    title: str,
    dots: Sequence[Dot],
    *,
    x_label: str,
    y_label: str,
    limits: Sequence[Mark] = (),
    write: Callable[[float], str] = percent,
    note: str = "",
) -> str:
    """Quality against cost, with the front as a staircase and the budgets as lines; "" without dots. write: a quality as text."""
    if not dots:
        return ""
    costs = [*(dot.x for dot in dots), *(mark.value for mark in limits)]
    logarithmic = min(costs) > 0 and max(costs) / min(costs) > LOG_FROM
    x = (_log_axis if logarithmic else _axis)(costs, amount, margin=0.05)
    y = _axis((dot.y for dot in dots), write, margin=0.08)
    groups = sorted({dot.group for dot in dots if not dot.final}, key=lambda group: (group != "search", group))
    front = sorted((dot for dot in dots if dot.on_front), key=lambda dot: dot.x)
    drawn = []
    if len(front) > 1:
        stairs = "".join(f"H{x.at(dot.x):.1f}V{SIDE - y.at(dot.y):.1f}" for dot in front[1:])
        drawn.append(f'<path class="front" d="M{x.at(front[0].x):.1f} {SIDE - y.at(front[0].y):.1f}{stairs}H{SIDE:.0f}"/>')
    for dot in sorted(dots, key=lambda dot: dot.final):
        kind = "final" if dot.final else f"c{groups.index(dot.group) % COLORS}"
        drawn.append(_dot(x.at(dot.x), SIDE - y.at(dot.y), kind, dot.title))
    legend = [(f"c{number % COLORS}", group) for number, group in enumerate(groups)]
    legend += [("final", next(dot.group for dot in dots if dot.final))] if any(dot.final for dot in dots) else []
    legend += [("front", "front")] if len(front) > 1 else []
    label = f"{title}: {len(dots)} networks, {y_label} {y.write(min(d.y for d in dots))} to {y.write(max(d.y for d in dots))}"
    plot = _plot(x, y, "".join(drawn), label=label, x_label=x_label + (" (logarithmic)" if logarithmic else ""), marks_x=limits)
    return _figure(title, legend, plot, note, wide=True)


def decision_strip(decision: Decision) -> str:
    """One choice: its name, how the probability of each option moved (stacked, first option at the bottom), and the options."""
    shades = [0.14 + 0.86 * at / max(1, len(decision.options) - 1) for at in range(len(decision.options))]  # from faint to full
    rows = decision.probabilities
    name, idle = escape(decision.name), "" if decision.taken is not None else " idle"
    ends = ", ".join(f"{option} {percent(p)}" for option, p in zip(decision.options, rows[-1], strict=True)) if rows else "not searched yet"
    listed = "".join(
        f'<span class="option{" taken" * (option == decision.taken)}"><i style="opacity:{shade:.2f}"></i>{escape(option)}</span>'
        for option, shade in zip(decision.options, shades, strict=True)
    )
    return (
        f'<div class="decision{idle}"><div class="name" title="{name}">{name}</div>'
        f'<svg viewBox="0 0 {SIDE:.0f} {SIDE:.0f}" preserveAspectRatio="none" role="img" aria-label="{name}: {escape(ends)}">'
        f'{"".join(_areas(decision, shades)) if rows else ""}</svg><div class="options">{listed}</div></div>'
    )


def _areas(decision: Decision, shades: Sequence[float]) -> Iterator[str]:
    """One area for each option, on top of those before it."""
    epochs, rows = decision.epochs, decision.probabilities
    if len(epochs) == 1:
        epochs, rows = (epochs[0], epochs[0] + 1), (rows[0], rows[0])
    x = _axis(epochs, amount)
    below = [0.0] * len(epochs)
    for at, option in enumerate(decision.options):
        above = [low + row[at] for low, row in zip(below, rows, strict=True)]
        top = [f"{x.at(epoch):.0f} {SIDE * (1 - value):.0f}" for epoch, value in zip(epochs, above, strict=True)]
        base = [f"{x.at(epoch):.0f} {SIDE * (1 - value):.0f}" for epoch, value in zip(epochs, below, strict=True)]
        told = f"{decision.name} = {option}: {percent(rows[0][at])} at first, {percent(rows[-1][at])} at last"
        outline = "L".join([*top, *reversed(base)])
        yield f'<path class="area" fill-opacity="{shades[at]:.2f}" d="M{outline}Z"><title>{escape(told)}</title></path>'
        below = above


def layer_bars(layers: Sequence[Layer]) -> str:
    """What each layer costs, in order of execution: multiply-adds upwards, parameters downwards, each as a share of the largest."""
    costly = [layer for layer in layers if layer.macs or layer.params]
    if not costly:
        return ""
    macs, params = max(layer.macs for layer in costly) or 1, max(layer.params for layer in costly) or 1
    step = SIDE / len(costly)
    bars = []
    for at, layer in enumerate(costly):
        told = f"{layer.path}: {layer.kind}, {layer.shape}: {layer.macs:,} MACs, {layer.params:,} parameters"
        up, down, place = 580 * layer.macs / macs, 380 * layer.params / params, f'x="{at * step:.1f}" width="{step * 0.82:.1f}"'
        bars.append(
            f'<g><title>{escape(told)}</title><rect class="hit" {place} y="0" height="{SIDE:.0f}"/>'
            f'<rect class="c0" {place} y="{600 - up:.1f}" height="{up:.1f}"/><rect class="c1" {place} y="612" height="{down:.1f}"/></g>'
        )
    top = max(costly, key=lambda layer: layer.macs)
    share = percent(top.macs / (sum(layer.macs for layer in costly) or 1), 0)
    body = (
        f'<div class="plot bars" role="img" aria-label="Costs of {len(costly)} layers"><svg viewBox="0 0 {SIDE:.0f} {SIDE:.0f}" '
        f'preserveAspectRatio="none" aria-hidden="true">{"".join(bars)}</svg><span class="ty" style="top:2%">{amount(macs)}</span>'
        f'<span class="ty" style="top:60.6%">0</span><span class="ty" style="top:99%">{amount(params)}</span>'
        f'<span class="xl">layers, first to last</span></div>'
    )
    note = f"Most multiply-adds: {top.path}, {amount(top.macs)} ({share} of all)."
    return _figure("Cost of each layer", [("c0", "multiply-adds"), ("c1", "parameters, downwards")], body, note)


def width_bars(widths: Sequence[Width]) -> str:
    """The units of each group before, as an outline, and those that are left, filled; in order of the network."""
    if not widths:
        return ""
    most, step = max(width.before for width in widths), SIDE / len(widths)
    bars = []
    for at, width in enumerate(widths):
        told = f"{width.group}: {width.after} of {width.before} ({percent(width.after / width.before, 0)}){f'; {width.layers}' if width.layers else ''}"
        before, after, place = SIDE * width.before / most, SIDE * width.after / most, f'x="{at * step:.1f}" width="{step * 0.82:.1f}"'
        bars.append(
            f'<g><title>{escape(told)}</title><rect class="hit" {place} y="0" height="{SIDE:.0f}"/>'
            f'<rect class="c0" fill-opacity=".22" {place} y="{SIDE - before:.1f}" height="{before:.1f}"/>'
            f'<rect class="c0" {place} y="{SIDE - after:.1f}" height="{after:.1f}"/></g>'
        )
    body = (
        f'<div class="plot bars" role="img" aria-label="Widths of {len(widths)} groups before and after"><svg viewBox="0 0 {SIDE:.0f} {SIDE:.0f}" '
        f'preserveAspectRatio="none" aria-hidden="true">{"".join(bars)}</svg><span class="ty" style="top:1%">{most}</span>'
        f'<span class="ty" style="top:99%">0</span><span class="xl">groups of channels, first to last</span></div>'
    )
    most_cut = min(widths, key=lambda width: width.after / width.before)
    note = f"Cut the most: {most_cut.group}, {most_cut.after} of {most_cut.before} left. Faint: before; full: after."
    return _figure("Widths before and after", [("c0", "units that are left")], body, note, wide=True)


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """True classes as rows, predicted ones as columns; with the numbers while there is room for them."""
    return (_confusion_table if len(counts) <= MOST_NUMBERED else _confusion_map)(counts, classes)


def _confusion_table(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    most = _most_errors(counts)
    rows = []
    for i, row in enumerate(counts):
        cells = []
        for j, n in enumerate(row):
            kind = ("right" if i == j else "wrong") if n else "none"
            shade = f' style="--shade:{12 + 60 * n / (sum(row) if i == j else most):.0f}%"' if n else ""
            cells.append(f'<td class="{kind}"{shade} title="{escape(_confused(counts, classes, i, j))}">{n or "·"}</td>')
        recall = percent(row[i] / sum(row)) if sum(row) else "–"
        rows.append(f'<tr><th scope="row">{escape(classes[i])}</th>{"".join(cells)}<td class="recall">{recall}</td></tr>')
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in classes)
    head = f'<tr><th></th>{head}<th class="recall" scope="col">right</th></tr>'
    return f'<table class="confusion"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>'


def _confusion_map(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    size, most = len(counts), _most_errors(counts)
    cells = []
    for i, row in enumerate(counts):
        for j, n in enumerate(row):
            if n:
                kind, shade = ("right", n / sum(row)) if i == j else ("wrong", 0.25 + 0.75 * n / most)
                told = f"<title>{escape(_confused(counts, classes, i, j))}</title>"
                cells.append(f'<rect class="{kind}" x="{j}" y="{i}" width="1" height="1" fill-opacity="{shade:.2f}">{told}</rect>')
    return (
        f'<svg class="matrix" viewBox="0 0 {size} {size}" role="img" aria-label="Confusion matrix of {size} classes">'
        f'<rect class="paper" width="{size}" height="{size}"/>{"".join(cells)}</svg>'
    )


def _most_errors(counts: Sequence[Sequence[int]]) -> int:
    return max((n for i, row in enumerate(counts) for j, n in enumerate(row) if i != j), default=0) or 1


def _confused(counts: Sequence[Sequence[int]], classes: Sequence[str], i: int, j: int) -> str:
    if i == j:
        return f"{classes[i]}: {counts[i][i]} of {sum(counts[i])} right"
    return f"{classes[i]} taken for {classes[j]}: {counts[i][j]}"


def worst_confusions(counts: Sequence[Sequence[int]], classes: Sequence[str], most: int = 8) -> list[tuple[str, str, int]]:
    """(true class, predicted class, how often), the most frequent errors first."""
    errors = [(classes[i], classes[j], n) for i, row in enumerate(counts) for j, n in enumerate(row) if i != j and n]
    return sorted(errors, key=lambda error: -error[2])[:most]


def meter(reached: float | None, limit: float) -> str:
    """A bar from 0 to the larger of `limit` and `reached`, with a line at the limit."""
    full = max(limit, reached or 0.0) * 1.04 or 1.0
    within = reached is not None and reached <= limit
    kind = "within" if within else "over" if reached is not None else ""
    return (
        f'<div class="meter {kind}" aria-hidden="true"><i style="width:{100 * (reached or 0.0) / full:.2f}%"></i>'
        f'<b style="left:{100 * limit / full:.2f}%"></b></div>'
    )


def interval_bar(value: float, low: float, high: float) -> str:
    """A share with its interval, on an axis from a round number below to 1."""
    start = max(0.0, min(0.95, math.floor(20 * (low - (high - low) / 2)) / 20))

    def at(share: float) -> float:
        return 100 * (share - start) / (1 - start)

    told = f"{percent(value)}, 95 % interval {percent(low)} to {percent(high)}"
    return (
        f'<div class="interval" role="img" aria-label="{told}"><i style="left:{at(low):.1f}%;right:{100 - at(high):.1f}%"></i>'
        f'<b style="left:{at(value):.1f}%"></b><span style="left:0">{percent(start, 0)}</span><span style="right:0">100 %</span></div>'
    )
