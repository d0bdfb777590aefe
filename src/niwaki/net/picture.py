"""A drawing of a network, as SVG: every layer's type, output shape and label (its MACs), every edge.

`arrange` says where things stand; this file says what they are called and how they look.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from html import escape
from math import ceil
from typing import Any

from niwaki.net.arrange import Arrangement, Edge, Point, Route, Row, arrange
from niwaki.net.axes import Axis, length, size_of
from niwaki.net.control import Network
from niwaki.net.layer import (
    Activation,
    BatchNorm,
    Cat,
    ChannelShuffle,
    Conv,
    Dropout,
    Embed,
    Flatten,
    GlobalPool,
    Identity,
    Interleave,
    Layer,
    Linear,
    Opaque,
    Pick,
    Pool,
    SqueezeExcite,
    Subsample,
    Sum,
    Zero,
)
from niwaki.net.operation import Operation, open_sizes
from niwaki.net.place import INPUT, Placed, Placement, Shape, place
from niwaki.space.size import Expr, Symbol, scope, smallest, values

# --- what a layer is called ------------------------------------------------------------------------------------------


@singledispatch
def describe(layer: Layer, item: Placed) -> tuple[str, str]:
    """The type of a placed layer as people say it, and the family that gives it its colour: ("Conv 3×3 /2", "conv").

    Searched sizes are written `3|5|7`.
    """
    raise TypeError(f"describe() has no rule for {type(layer).__name__}; it belongs in this file")


@describe.register
def _(layer: Conv, item: Placed) -> tuple[str, str]:
    kernel = sizes(layer.kernel_size)
    window = f"{kernel}×{kernel}" if not isinstance(layer.kernel_size, Symbol) else f"{kernel} square"
    window += f" /{layer.stride}" * (layer.stride > 1) + f" dilated {layer.dilation}" * (layer.dilation > 1)
    if layer.groups == item.input_shapes[0].width == layer.out_channels and layer.groups != 1:
        return f"Depthwise {window}", "depthwise"
    return f"Conv {window}" + f" ({sizes(layer.groups)} groups)" * (layer.groups != 1), "conv"


@describe.register
def _(layer: Linear, item: Placed) -> tuple[str, str]:
    return "Linear", "linear"


@describe.register
def _(layer: Pick, item: Placed) -> tuple[str, str]:
    return f"Columns {layer.first}-{layer.first + layer.count - 1}" if layer.count > 1 else f"Column {layer.first}", "other"


@describe.register
def _(layer: Embed, item: Placed) -> tuple[str, str]:
    columns = f"{len(layer.rows)} column{'s' * (len(layer.rows) > 1)}"
    return f"{'Curves' if layer.between else 'Embedding'} of {columns}, up to {sizes(layer.width)} each", "linear"


@describe.register
def _(layer: BatchNorm, item: Placed) -> tuple[str, str]:
    return "BN", "other"


@describe.register
def _(layer: Activation, item: Placed) -> tuple[str, str]:
    return sizes(layer.kind), "other"


@describe.register
def _(layer: Pool, item: Placed) -> tuple[str, str]:
    return f"{layer.kind.capitalize()} pool {layer.kernel_size}×{layer.kernel_size}" + f" /{layer.stride}" * (layer.stride > 1), "pool"


@describe.register
def _(layer: GlobalPool, item: Placed) -> tuple[str, str]:
    return "Global pool", "pool"


@describe.register
def _(layer: SqueezeExcite, item: Placed) -> tuple[str, str]:
    return f"Squeeze-excite {sizes(layer.hidden)}", "gate"


@describe.register
def _(layer: Subsample, item: Placed) -> tuple[str, str]:
    return "Subsample", "pool"


@describe.register
def _(layer: Interleave, item: Placed) -> tuple[str, str]:
    return "Interleave", "pool"


@describe.register
def _(layer: Flatten, item: Placed) -> tuple[str, str]:
    return "Flatten", "other"


@describe.register
def _(layer: ChannelShuffle, item: Placed) -> tuple[str, str]:
    return f"Shuffle {layer.groups}", "other"


@describe.register
def _(layer: Dropout, item: Placed) -> tuple[str, str]:
    return f"Dropout {layer.p:g}", "other"


@describe.register
def _(layer: Zero, item: Placed) -> tuple[str, str]:
    return "Zero", "other"


@describe.register
def _(layer: Identity, item: Placed) -> tuple[str, str]:
    return "Identity", "other"


@describe.register
def _(layer: Opaque, item: Placed) -> tuple[str, str]:
    return f"Opaque {layer.factory.partition(':')[2] or layer.factory}", "opaque"


@describe.register
def _(layer: Sum, item: Placed) -> tuple[str, str]:
    searched = [isinstance(edge, Symbol) for edge in item.edges]
    return "One of" if all(searched) else "Add if equal" if any(searched) else "Add", "join"


@describe.register
def _(layer: Cat, item: Placed) -> tuple[str, str]:
    return "Concat", "join"


# operators whose rows are drawn in another colour, by kind
_FAMILIES = {
    **dict.fromkeys(("linear", "matmul", "bmm", "mm", "addmm", "embedding", "scaled_dot_product_attention"), "linear"),
    **dict.fromkeys(("cat", "stack", "add"), "join"),
    "mul": "gate",
}


@describe.register
def _(layer: Operation, item: Placed) -> tuple[str, str]:
    kind = layer.kind
    words = kind.replace("_", " ")
    if kind.startswith("conv") and layer.weights and len(axes := layer.weights[0].axes) > 2:
        window = "×".join(str(size_of(axis)) for axis in axes[2:])
        transposed = " transposed" if "transpose" in kind or layer.arguments[6:7] == (True,) else ""
        alone = size_of(axes[1]) == 1 and item.input_shapes[0].channels != (1,)
        return (f"Depthwise {window}", "depthwise") if alone else (f"Conv {window}{transposed}", "conv")
    if kind == "batch_norm":
        return "BN", "other"
    if layer.note:
        return f"Opaque {words}", "opaque"
    return words[:1].upper() + words[1:], "pool" if "pool" in kind else _FAMILIES.get(kind, "other")


def sizes(size: Expr, most: int = 6) -> str:
    """A size as it stands in a picture: `16|24|32`, or `8..256` where it can be more than `most`."""
    if not isinstance(size, Symbol):
        return str(size)
    options: list[Any] = sorted(set(values(size)))
    return "|".join(map(str, options)) if len(options) <= most else f"{options[0]}..{options[-1]}"


def shape_text(shape: Shape) -> str:
    """`16|24 × 8 × 8`."""
    if shape.axes is not None:
        return " × ".join(map(_axis_text, shape.axes))
    return " × ".join(sizes(size) for size in (shape.width, *shape.spatial))


def _axis_text(axis: Axis) -> str:
    """As `sizes`; of many runs only the least and the most, for the sizes between are too many to list."""
    open_runs = [run for run in axis if isinstance(run.units, Symbol)]
    if len(open_runs) < 2:
        return sizes(size_of(axis))
    return f"{sum(run.inner * run.outer * smallest(run.units) for run in axis)}..{length(axis)}"


# --- rows ------------------------------------------------------------------------------------------------------------

FUSED = (BatchNorm, Activation, ChannelShuffle)  # stand in the row of the convolution or linear layer whose output they change
FUSED_KINDS = ("batch_norm", "relu", "relu6", "hardtanh", "hardswish", "silu", "gelu", "sigmoid", "tanh", "leaky_relu", "prelu", "dropout")
BAR = 44.0  # length of the longest bar
CORNER = 9.0  # radius of the corners of edges
CHARACTER = 6.6  # pixels for a character of 12 pixels height, in the widest of the usual fonts
ONE_LINE = 430.0  # a wider row is written in two lines


@dataclass(frozen=True)
class _Line:
    """One row of the picture: a layer, and those that are drawn with it. inputs: lines; -1 is the network's own input."""

    items: tuple[Placed, ...]
    inputs: tuple[int, ...]
    text: str
    family: str
    shape: str
    label: str
    share: float

    @property
    def head(self) -> Placed:
        return self.items[0]


def picture(network: Placement | Network, labels: Mapping[str, str] | None = None, *, shares: Mapping[str, float] | None = None,
            width: float = 1160, tall: float = 640, name: str = "network") -> str:  # fmt: skip
    """The network as one `<svg>` element that needs nothing else, readable on light and dark pages.

    labels: what stands at the end of each layer's row, by path: its MACs. shares: length of each layer's bar, by path, 1 at the longest.
    A layer that may or may not exist has a hollow dot; an edge that may or may not exist is dashed. width: pixels to fit into where
    possible; a network taller than `tall` is broken into columns. Pointing at a row tells paths and what decides their sizes.
    """
    placement = place(network) if isinstance(network, Network) else network
    lines = _lines(placement, labels or {}, shares or {})
    text = max((len(line.text) for line in lines), default=0) * CHARACTER
    shape = max((len(line.shape) for line in lines), default=0) * CHARACTER
    label = max((len(line.label) for line in lines), default=0) * CHARACTER
    columns = _Columns(14.0, text, shape, label and 14 + label, BAR + 8 if shares else 0.0)
    two_lines = columns.one_line > ONE_LINE
    rows = [Row((), 34 if two_lines else 20, 34)]
    rows += [Row(frames, 34 if two_lines else 20, 34) for frames in _frames(lines)]
    rows.append(Row((), 0, 0))
    seen: dict[tuple[int, int], int] = {}
    edges, dashed = [], set()
    for at, line in enumerate(lines, 1):
        for source, condition in zip(line.inputs, line.head.edges, strict=True):
            edge = Edge(source + 1, at, seen.setdefault((source + 1, at), 0))
            seen[source + 1, at] += 1
            edges.append(edge)
            if isinstance(condition, Symbol):
                dashed.add(edge)
    read = {edge.source for edge in edges}
    ends = [Edge(at, len(rows) - 1) for at in range(len(rows) - 1) if at not in read]
    wide = columns.two_lines if two_lines else columns.one_line
    layout = arrange(rows, edges + ends, wide=wide, narrow=columns.two_lines, width=width, tall=tall)
    stacked = frozenset(range(len(rows))) if two_lines else layout.narrow
    return _svg(placement, lines, layout, stacked, columns, dashed, set(ends), name)


def _lines(placement: Placement, labels: Mapping[str, str], shares: Mapping[str, float]) -> list[_Line]:
    """The rows, in order of execution; BatchNorm and activation in the row of their convolution, if nothing else reads it."""
    readers: dict[int, int] = {placement.output: 1}
    for item in placement.items:
        for source in item.inputs:
            readers[source] = readers.get(source, 0) + 1
    lines: list[_Line] = []
    line_of = dict.fromkeys(placement.entering, -1)
    last: dict[int, int] = {}  # the tensor that a line gives -> the line
    for at, item in enumerate(placement.items):
        source = item.inputs[0]
        if _is_fused(item.layer) and source in last and readers[source] == 1:
            line = lines[last[source]]
            if _is_map(line.head.layer) and line.head.condition == item.condition:
                lines[last[source]] = replace(line, items=(*line.items, item))
                line_of[at] = last[at] = last.pop(source)
                continue
        line_of[at] = last[at] = len(lines)
        lines.append(_Line((item,), tuple(line_of[source] for source in item.inputs), "", "", "", "", 0.0))
    return [_written(line, labels, shares) for line in lines]


def _is_fused(layer: Layer) -> bool:
    return isinstance(layer, FUSED) or (isinstance(layer, Operation) and layer.kind in FUSED_KINDS)


def _is_map(layer: Layer) -> bool:
    return isinstance(layer, (Conv, Linear)) or (isinstance(layer, Operation) and layer.kind.startswith(("conv", "linear")))


def _written(line: _Line, labels: Mapping[str, str], shares: Mapping[str, float]) -> _Line:
    names = [describe(item.layer, item) for item in line.items]
    return replace(
        line,
        text=" · ".join(text for text, _ in names),
        family=names[0][1],
        shape=shape_text(line.items[-1].shape),
        label=labels.get(line.head.path, ""),
        share=min(1.0, sum(shares.get(item.path, 0.0) for item in line.items)),
    )


def _frames(lines: Sequence[_Line]) -> list[tuple[str, ...]]:
    """The blocks around each line, outermost first: those of at least two lines, one of which lies in no smaller one."""
    paths = [line.head.path.split(".")[:-1] for line in lines]
    total: dict[str, int] = {}
    for path in paths:
        for depth in range(1, len(path) + 1):
            prefix = ".".join(path[:depth])
            total[prefix] = total.get(prefix, 0) + 1
    prefixes = [[prefix for depth in range(1, len(path) + 1) if total[prefix := ".".join(path[:depth])] > 1] for path in paths]
    own = {found[-1] for found in prefixes if found}
    return [tuple(prefix for prefix in found if prefix in own) for found in prefixes]


# --- SVG -------------------------------------------------------------------------------------------------------------

# Colours are set once for light and once for dark; a page may set --nw-surface to the colour behind the picture.
STYLE = """
.nw{--ink:#1d2420;--soft:#5d6862;--line:#9aa69f;--frame:#d5dcd7;--fill:#f3f6f3;--back:var(--nw-surface,#fff);--bar:#2f6f4f;--skip:#d0692c;
--conv:#2b6cb0;--depthwise:#14866d;--linear:#7b4bb3;--gate:#b8417e;--pool:#b7791f;--join:#5d6862;--opaque:#8a5a44;--other:#87928c;
font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
@media screen and (prefers-color-scheme:dark){
.nw{--ink:#e6ece8;--soft:#a3b0a9;--line:#6c7a73;--frame:#36413b;--fill:#1d2420;--back:var(--nw-surface,#151a17);--bar:#6fcf9c;--skip:#f0995c;
--conv:#6cb0f5;--depthwise:#4fd1b0;--linear:#b794f4;--gate:#f28ab8;--pool:#e5b567;--join:#a3b0a9;--opaque:#d09a80;--other:#7d8a83}}
.nw text{fill:var(--ink)}.nw .shape{fill:var(--soft)}.nw .end{text-anchor:end}.nw .label{font-weight:600}
.nw .title{fill:var(--soft);font-size:11px;font-weight:600}.nw .frame{fill:var(--fill);fill-opacity:.75;stroke:var(--frame)}
.nw .bar{fill:var(--bar);opacity:.55}.nw .edge{fill:none;stroke:var(--line);stroke-width:1.6}.nw .skip{stroke:var(--skip)}
.nw .maybe{stroke-dasharray:4 3}.nw .dot{stroke:var(--back);stroke-width:1.5}.nw .hollow{fill:var(--back);stroke-width:2}
"""


@dataclass(frozen=True)
class _Columns:
    """Where the text of a row starts, right of its spine, and how wide its parts are, with the space before them."""

    start: float
    text: float
    shape: float
    label: float
    bar: float

    @property
    def one_line(self) -> float:
        return self.start + self.text + 14 + self.shape + self.label + self.bar

    @property
    def two_lines(self) -> float:
        return max(self.start + self.text, self.start + self.shape + self.label + self.bar, 120.0)


def _svg(
    placement: Placement,
    lines: Sequence[_Line],
    layout: Arrangement,
    stacked: frozenset[int],
    columns: _Columns,
    dashed: set[Edge],
    hidden: set[Edge],
    name: str,
) -> str:
    """The text of the picture. stacked: rows in two lines; hidden: edges that only close the graph."""
    width, height = ceil(layout.width), ceil(layout.height)
    shapes = shape_text(placement.shape_of(INPUT)), shape_text(placement.shape_of(placement.output))
    what = f"Drawing of the {name}: {len(placement.items)} layers, from an input of {shapes[0]} to an output of {shapes[1]}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="nw" role="img" aria-label="{escape(what)}" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        f"<style>{STYLE}</style>",
        '<rect width="100%" height="100%" rx="6" style="fill:var(--back)"/>',
    ]
    drawn: list[str] = []  # frames so far, to shorten the titles of those inside
    for frame in layout.frames:
        outer = max((other for other in drawn if frame.name.startswith(f"{other}.")), key=len, default="")
        title = frame.name[len(outer) + 1 :] if outer else frame.name
        title = f"{title} (continued)" if frame.continued else title
        box = f'x="{frame.x:.1f}" y="{frame.y:.1f}" width="{frame.width:.1f}" height="{frame.height:.1f}"'
        parts.append(f'<rect class="frame" {box} rx="6"/>')
        parts.append(f'<text class="title" x="{frame.spine + columns.start:.1f}" y="{frame.y + 14:.1f}">{escape(title)}</text>')
        drawn.append(frame.name)
    for route in sorted(layout.routes, key=lambda route: route.kind == "skip"):
        if route.edge not in hidden:
            parts.append(f'<path class="edge {route.kind}{" maybe" * (route.edge in dashed)}" d="{_path(route)}"/>')
    parts.extend(_row(None, *layout.at[0], columns, "Input", shapes[0], stacked=0 in stacked))
    for at, line in enumerate(lines, 1):
        parts.extend(_row(line, *layout.at[at], columns, line.text, line.shape, stacked=at in stacked))
    return "".join([*parts, "</svg>"])


def _row(line: _Line | None, x: float, y: float, columns: _Columns, text: str, shape: str, *, stacked: bool) -> Iterator[str]:
    """One row of text with its dot at (x, y); `line` None is the network's input."""
    start, end = x + columns.start, x + (columns.two_lines if stacked else columns.one_line) - columns.bar
    first, second = (y - 3, y + 12) if stacked else (y + 4, y + 4)
    yield f'<g class="row"><title>{escape(_tooltip(line) if line else text)}</title>'
    family = line.family if line else "ink"
    hollow = line is not None and isinstance(line.head.condition, Symbol)
    color = f"fill:var(--{family})" if not hollow else f"stroke:var(--{family})"
    radius = 4 if family in ("join", "other") else 5
    yield f'<circle class="dot{" hollow" * hollow}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}" style="{color}"/>'
    yield f'<text class="{"name" if line else "label"}" x="{start:.1f}" y="{first:.1f}">{escape(text)}</text>'
    if stacked:
        yield f'<text class="shape" x="{start:.1f}" y="{second:.1f}">{shape}</text>'
    else:
        yield f'<text class="shape end" x="{end - columns.label:.1f}" y="{second:.1f}">{shape}</text>'
    if line and line.label:
        yield f'<text class="label end" x="{end:.1f}" y="{second:.1f}">{escape(line.label)}</text>'
    if line and line.share:
        yield f'<rect class="bar" x="{end + 8:.1f}" y="{second - 9:.1f}" width="{max(1.0, line.share * BAR):.1f}" height="10" rx="1.5"/>'
    yield "</g>"


def _tooltip(line: _Line) -> str:
    told = []
    for item in line.items:
        deciders = scope(*item.shape.channels, *item.shape.spatial, *open_sizes(item.layer))
        told.append(f"{item.path}: {describe(item.layer, item)[0]}, {shape_text(item.shape)}")
        if deciders:
            told.append(f"  decided by {', '.join(deciders)}")
        if exists := scope(item.condition):
            told.append(f"  exists by {', '.join(exists)}")
    return "\n".join(told + ([line.label] if line.label else []))


def _path(route: Route) -> str:
    """The path data of a route, its corners rounded."""
    points = [point for at, point in enumerate(route.points) if at == 0 or point != route.points[at - 1]]
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for at, (before, corner, after) in enumerate(zip(points, points[1:], points[2:], strict=False), 1):
        shared = 1 if at == 1 else 2, 1 if at == len(points) - 2 else 2  # a leg between two corners has room for half of each
        radius = min(CORNER, _distance(before, corner) / shared[0], _distance(corner, after) / shared[1])
        (x0, y0), (x1, y1) = _towards(corner, before, radius), _towards(corner, after, radius)
        path += f"L{x0:.1f} {y0:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {x1:.1f} {y1:.1f}"
    return f"{path}L{points[-1][0]:.1f} {points[-1][1]:.1f}"


def _distance(a: Point, b: Point) -> float:
    return abs(a[0] - b[0]) + abs(a[1] - b[1])


def _towards(start: Point, end: Point, by: float) -> Point:
    """The point `by` from `start` on the way to `end`, along an axis."""
    length = _distance(start, end) or 1.0
    return start[0] + (end[0] - start[0]) * by / length, start[1] + (end[1] - start[1]) * by / length
