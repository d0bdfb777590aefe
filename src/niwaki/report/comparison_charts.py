"""Drawings of a comparison of search methods: regret against evaluations or time, and ranks with what is not told apart. Plain SVG, texts included.

Colours are classes: the page styles them, and `standalone` brings a style of its own, so that a drawing can stand in a README.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLORS = 6  # classes k0 ... k5; a seventh method has the first colour and a dashed line
PLAIN = {"random": "kr", "params": "kp", "macs": "km"}  # contestants that are always there have colours of their own
WIDTH, HEIGHT = 960.0, 500.0
LEFT, RIGHT, TOP, BOTTOM = 74.0, 178.0, 36.0, 50.0
ZERO = 26.0  # height of the lane below the logarithmic axis, at the foot of which 0 lies
BETWEEN = 16.0  # of labels
MOST_POINTS = 240  # of a curve

STYLE = """
.name{white-space:nowrap}
.cmp{display:block;width:100%;height:auto;min-width:620px;font-family:system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;font-size:13px}
.cmp text{fill:var(--soft)}.cmp .t{fill:var(--ink);font-weight:600}.cmp .g{stroke:var(--faint);stroke-width:1;fill:none}
.cmp .a{stroke:var(--soft);stroke-width:1.2;fill:none}.cmp .l{fill:none;stroke-width:2.2;stroke-linejoin:round}.cmp .b{stroke:none;opacity:.14}
.cmp .d{stroke-dasharray:6 4}.cmp .x{stroke:var(--soft);stroke-width:1.4;stroke-dasharray:2 4;fill:none}.cmp .e{stroke-width:1;opacity:.6;fill:none}
.cmp .j{stroke:var(--ink);stroke-width:5;stroke-linecap:round}.cmp text.n{font-weight:600}
.cmp .k0{stroke:var(--c0)}.cmp .k1{stroke:var(--c1)}.cmp .k2{stroke:var(--c2)}.cmp .k3{stroke:var(--c3)}.cmp .k4{stroke:var(--c4)}
.cmp .k5{stroke:var(--c5)}.cmp .kr{stroke:var(--soft)}.cmp .kp{stroke:var(--final)}.cmp .km{stroke:#c77fb0}
.cmp .b.k0{fill:var(--c0)}.cmp .b.k1{fill:var(--c1)}.cmp .b.k2{fill:var(--c2)}.cmp .b.k3{fill:var(--c3)}.cmp .b.k4{fill:var(--c4)}
.cmp .b.k5{fill:var(--c5)}.cmp .b.kr{fill:var(--soft)}.cmp .b.kp{fill:var(--final)}.cmp .b.km{fill:#c77fb0}
.cmp text.k0{fill:var(--c0)}.cmp text.k1{fill:var(--c1)}.cmp text.k2{fill:var(--c2)}.cmp text.k3{fill:var(--c3)}.cmp text.k4{fill:var(--c4)}
.cmp text.k5{fill:var(--c5)}.cmp text.kr{fill:var(--soft)}.cmp text.kp{fill:var(--final)}.cmp text.km{fill:#c77fb0}.cmp text.n{stroke:none}
"""
_ALONE = """
svg{--page:#fff;--ink:#1b211d;--soft:#5c6660;--faint:#dfe3dc;--c0:#2f6f4f;--c1:#d0692c;--c2:#3b6fb5;--c3:#8d4fb0;--c4:#a58a1c;--c5:#4b9a9a;--final:#b8283f;background:var(--page)}
@media (prefers-color-scheme:dark){svg{--page:#0f1311;--ink:#e7ece8;--soft:#9caaa2;--faint:#2d3631;--c0:#6fcf9c;--c1:#f0995c;--c2:#7fb2f0;--c3:#c79af0;--c4:#e0cb68;--c5:#7fd1d1;--final:#ff7a90}}
"""


@dataclass(frozen=True)
class Band:
    """A curve with its interval. x, mean, low, high: as many numbers each, x above 0 and ascending. kind: its class, from `kinds`."""

    name: str
    kind: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def kinds(names: Sequence[str]) -> dict[str, str]:
    """The class of each contestant, in every drawing the same."""
    others = [name for name in names if name not in PLAIN]
    found = {name: f"k{at % COLORS}{' d' if at >= COLORS else ''}" for at, name in enumerate(others)}
    return {name: found.get(name) or f"{PLAIN[name]}{'' if name == 'random' else ' d'}" for name in names}


def standalone(drawing: str) -> str:
    """A drawing as a file of its own."""
    return (
        drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(">", f"><style>{_ALONE}{STYLE}</style>", 1) + "\n"
    )


def number(value: float) -> str:
    """A figure as it stands in tables and on axes: three digits that count.

    >>> [number(v) for v in (0, 0.00123456, 0.5, 12.345, 1234.5, 15625)]
    ['0', '0.00123', '0.5', '12.3', '1,234', '15,625']
    """
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".") if value else "0"


def regret_chart(title: str, bands: Sequence[Band], *, x_label: str, y_label: str, exact: Sequence[float] | None = None) -> str:
    """Regret on a logarithmic axis over evaluations or time on another, with intervals; 0 lies at the foot. exact: random search's, at 1, 2, ..."""
    first, last = min(band.x[0] for band in bands), max(band.x[-1] for band in bands)
    positive = [value for band in bands for value in (*band.mean, *band.high) if value > 0] or [1.0]
    means = [value for band in bands for value in band.mean if value > 0] or positive
    low, high = min(means) / 1.3, max(positive) * 1.15
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM - ZERO

    def at_x(value: float) -> float:
        return LEFT + width * (math.log(value / first) / math.log(last / first) if last > first else 0.5)

    def at_y(value: float) -> float:
        if value < low:
            return TOP + height + ZERO
        return TOP + height * (1 - math.log(value / low) / math.log(high / low))

    parts = []
    for value in _ticks(low, high):
        parts.append(f'<path class="g" d="M{LEFT} {at_y(value):.1f}h{width}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at_y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>')
    foot = TOP + height + ZERO
    parts.append(f'<path class="a" d="M{LEFT} {foot}h{width}"/><text x="{LEFT - 8}" y="{foot + 4}" text-anchor="end">0</text>')
    for value in _ticks(first, last):
        parts.append(f'<path class="a" d="M{at_x(value):.1f} {foot}v5"/>')
        parts.append(f'<text x="{at_x(value):.1f}" y="{foot + 20}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<text x="{LEFT + width}" y="{foot + 42}" text-anchor="end">{escape(x_label)}</text>')
    parts.append(f'<text x="10" y="14">{escape(y_label)}</text>')
    for band in bands:
        picked = _picked(len(band.x))
        up = " ".join(f"{at_x(band.x[i]):.1f},{at_y(band.high[i]):.1f}" for i in picked)
        down = " ".join(f"{at_x(band.x[i]):.1f},{at_y(band.low[i]):.1f}" for i in reversed(picked))
        parts.append(f'<polygon class="b {band.kind}" points="{up} {down}"/>')
    if exact:
        line = " ".join(f"{at_x(i + 1):.1f},{at_y(exact[i]):.1f}" for i in _picked(len(exact)))
        parts.append(f'<polyline class="x" points="{line}"><title>random search, exact</title></polyline>')
    for band in bands:
        line = " ".join(f"{at_x(band.x[i]):.1f},{at_y(band.mean[i]):.1f}" for i in _picked(len(band.x)))
        told = f"{band.name}: {number(band.mean[-1])} at the end, 95 % interval {number(band.low[-1])} to {number(band.high[-1])}"
        parts.append(f'<polyline class="l {band.kind}" points="{line}"><title>{escape(told)}</title></polyline>')
    places = _spread([at_y(band.mean[-1]) for band in bands], TOP, foot)
    for band, place in zip(bands, places, strict=True):
        end = at_y(band.mean[-1])
        x = at_x(band.x[-1])
        parts.append(f'<path class="e {band.kind}" d="M{x:.1f} {end:.1f}L{LEFT + width + 14} {place:.1f}"/>')
        parts.append(f'<text class="n {band.kind}" x="{LEFT + width + 18}" y="{place + 4:.1f}">{escape(band.name)}</text>')
    ends = ", ".join(f"{band.name} ends at {number(band.mean[-1])}" for band in bands)
    return _svg(HEIGHT, f"{title}: {ends}", parts)


def rank_chart(
    title: str, ranks: Mapping[str, float], alike: Sequence[Sequence[str]], critical: float | None, colors: Mapping[str, str]
) -> str:
    """Mean ranks on a line, the best at the left; bars join those that are not told apart (Demsar 2006, Fig. 1)."""
    order = sorted(ranks, key=lambda name: ranks[name])
    count = len(order)
    half = (count + 1) // 2
    left, right = 220.0, WIDTH - 220.0
    axis = 74.0
    joined = axis + 22
    below = joined + 12.0 * len(alike) + 12

    def at(rank: float) -> float:
        return left + (right - left) * (rank - 1) / max(count - 1, 1)

    parts = [f'<path class="a" d="M{left} {axis}H{right}"/>']
    for rank in range(1, count + 1):
        parts.append(
            f'<path class="a" d="M{at(rank):.1f} {axis}v-6"/><text x="{at(rank):.1f}" y="{axis - 12}" text-anchor="middle">{rank}</text>'
        )
    parts.append(f'<text x="{left - 14}" y="{axis + 4}" text-anchor="end">better</text><text x="{right + 14}" y="{axis + 4}">worse</text>')
    if critical is not None and count > 1:
        length = min((right - left) * critical / (count - 1), right - left)
        parts.append(f'<path class="a" d="M{left} 20v8m0 -4h{length:.1f}m0 -4v8"/>')
        parts.append(
            f'<text x="{left + length + 10:.1f}" y="28">critical difference of mean ranks (Nemenyi, 5 %): {number(critical)}</text>'
        )
    for row, name in enumerate(order):
        is_left = row < half
        y = below + 22 * (row if is_left else count - 1 - row)
        end, anchor, text = (left - 14, "end", left - 20) if is_left else (right + 14, "start", right + 20)
        x = at(ranks[name])
        parts.append(
            f'<path class="l {colors[name]}" d="M{x:.1f} {axis}V{y:.1f}H{end}"><title>{escape(name)}: {ranks[name]:.2f}</title></path>'
        )
        parts.append(
            f'<text class="n {colors[name]}" x="{text}" y="{y + 4:.1f}" text-anchor="{anchor}">{escape(name)} {ranks[name]:.2f}</text>'
        )
    for row, run in enumerate(alike):
        y = joined + 12 * row
        parts.append(
            f'<path class="j" d="M{at(ranks[run[0]]) - 4:.1f} {y}H{at(ranks[run[-1]]) + 4:.1f}"><title>{escape(", ".join(run))}</title></path>'
        )
    told = ", ".join(f"{name} {ranks[name]:.2f}" for name in order)
    return _svg(below + 22 * half + 4, f"{title}: {told}", parts)


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    return f'<svg class="cmp" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def _ticks(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if high / low < 300 else (1, 3) if high / low < 3e4 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**decade for decade in decades for step in steps if low * 0.999 <= step * 10.0**decade <= high * 1.001]


def _picked(count: int) -> list[int]:
    """Which points of a curve are drawn: all, or so many, evenly spread on the logarithmic axis."""
    if count <= MOST_POINTS:
        return list(range(count))
    return sorted({round(count ** (i / (MOST_POINTS - 1))) - 1 for i in range(MOST_POINTS)})


def _spread(places: Sequence[float], top: float, foot: float) -> list[float]:
    """`places` moved as little as it takes for labels not to overlap, in the same order, and none below the foot."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for at in range(1, len(moved)):
        moved[at] = max(moved[at], moved[at - 1] + BETWEEN)
    for at in reversed(range(len(moved))):
        moved[at] = min(moved[at], foot - BETWEEN * (len(moved) - 1 - at))
    back = dict(zip(order, moved, strict=True))
    return [max(back[i], top) for i in range(len(places))]
