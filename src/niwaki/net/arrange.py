"""Where the rows of a network's picture stand: one row per layer on a vertical spine, shortcuts in lanes to its left.

The graph is taken apart in series (where every path passes through one row) and in parallel (what lies between two such rows).
Parallel parts stand side by side while they fit, else below each other between an input and an output bus. What is neither, such
as a cell whose nodes read several others, is a list of rows with arcs beside it. A long spine is broken into columns, like a newspaper.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

LANE = 13.0  # between a spine and the shortcuts beside it; in pixels, as everything here
GAP = 3.0  # between two rows
FORK = 20.0  # height in which edges fan out to, or in from, parallel parts
BETWEEN = 30.0  # between parallel parts side by side
INDENT = 26.0  # of parallel parts below each other
TITLE = 20.0  # height of a frame's title
PAD = 7.0  # inside and outside of a frame
GUTTER = 44.0  # between the columns of a long network
OPEN_FRAME = 60.0  # a break inside a frame is taken only where it makes the columns this much more even


@dataclass(frozen=True)
class Row:
    """What is placed: the `frames` it lies in, outermost first, and its height in a wide and in a narrow column."""

    frames: tuple[str, ...]
    wide: float
    narrow: float


@dataclass(frozen=True)
class Edge:
    """From row `source` down to row `target`; `number` tells edges between the same two rows apart."""

    source: int
    target: int
    number: int = 0


@dataclass(frozen=True)
class Route:
    """How an edge is drawn: corner by corner. kind: "plain" along a spine, "skip" in a lane beside it, "branch" from spine to spine."""

    edge: Edge
    kind: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Frame:
    """A rectangle around the rows of one block. continued: from the column before."""

    name: str
    continued: bool
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Arrangement:
    """Where everything is. at: x of the spine and y of the middle of each row; narrow: the rows that are; frames: outer before inner."""

    at: tuple[tuple[float, float], ...]
    narrow: frozenset[int]
    routes: tuple[Route, ...]
    frames: tuple[Frame, ...]
    width: float
    height: float


def arrange(rows: Sequence[Row], edges: Sequence[Edge], *, wide: float, narrow: float, width: float, tall: float) -> Arrangement:
    """`rows` in their places. Every edge comes from row 0 in the end, and leads to the last row.

    wide, narrow: how far a row reaches to the right of its spine. width: of the whole picture, if possible. tall: the height above which
    the spine is broken into columns, as many as fit.
    """
    layout = _Layout(rows, wide=wide, narrow=narrow, width=width)
    last = len(rows) - 1
    layout.place(0)
    layout.series(0, list(range(1, last)), last, list(edges))
    layout.place(last)
    layout.close(())
    return layout.broken(tall)


@dataclass
class _Spine:
    """One vertical line of rows. `enter` and `leave`: the heights at which edges come over from the spine `parent`, and go back to it.

    bus: how far right of the parent's spine edges go down to `rejoin` before they go back to it (None: they go back straight).
    """

    parent: int | None
    x: float = 0.0
    left: float = 0.0
    right: float = 0.0
    enter: float = 0.0
    leave: float = 0.0
    bus: float | None = None
    rejoin: float = 0.0


@dataclass
class _Layout:
    rows: Sequence[Row]
    wide: float
    narrow: float
    width: float
    y: float = 0.0  # where the next row starts
    here: int = 0  # the spine it stands on
    frames: tuple[str, ...] = ()  # open at this point
    spines: list[_Spine] = field(default_factory=lambda: [_Spine(None)])
    home: dict[int, int] = field(default_factory=dict)  # row -> spine
    middle: dict[int, float] = field(default_factory=dict)  # row -> y
    slim: set[int] = field(default_factory=set)  # rows of narrow columns
    lanes: dict[Edge, tuple[int, float | None]] = field(default_factory=dict)  # edge -> spine it runs along, and its lane beside it
    span: dict[str, tuple[float, float]] = field(default_factory=dict)  # frame -> top and bottom
    breaks: list[tuple[float, int]] = field(default_factory=list)  # where the first spine may be broken, and how many frames are open there
    slender: bool = False  # in a narrow column

    # --- rows and frames ---------------------------------------------------------------------------------------------

    def close(self, frames: tuple[str, ...]) -> None:
        """Closes the open frames that are not among `frames`."""
        kept = _common(self.frames, frames)
        for frame in reversed(self.frames[kept:]):
            self.y += PAD - GAP
            self.span[frame] = (self.span[frame][0], self.y)
            self.y += PAD
        self.frames = self.frames[:kept]

    def open(self, frames: tuple[str, ...]) -> None:
        """Makes `frames` the open ones."""
        self.close(frames)
        for frame in frames[len(self.frames) :]:
            self.span.setdefault(frame, (self.y, self.y))
            self.y += TITLE
        self.frames = frames

    def place(self, row: int) -> None:
        """Puts `row` next on the spine."""
        self.open(self.rows[row].frames)
        height = self.rows[row].narrow if self.slender else self.rows[row].wide
        self.home[row], self.middle[row] = self.here, self.y + height / 2
        if self.slender:
            self.slim.add(row)
        self.y += height + GAP
        spine = self.spines[self.here]
        spine.right = max(spine.right, self.narrow if self.slender else self.wide)

    # --- series, parallel, and what is neither -----------------------------------------------------------------------

    def series(self, source: int, inner: list[int], sink: int, edges: list[Edge]) -> float:
        """Puts `inner` on the spine, from cut to cut; a cut is a row that no edge passes by. Returns the width of the lanes used."""
        order = [source, *inner, sink]
        rank = {row: at for at, row in enumerate(order)}
        cuts = _cuts(len(order), [(rank[edge.source], rank[edge.target]) for edge in edges])
        used = 0.0
        for first, last in pairwise(cuts):
            a, between, b = order[first], order[first + 1 : last], order[last]
            part = [edge for edge in edges if first <= rank[edge.source] and rank[edge.target] <= last]
            direct = [edge for edge in part if (edge.source, edge.target) == (a, b)]
            if between:
                lanes = self.between(a, between, b, [edge for edge in part if edge not in direct])
                skips = direct
            else:
                lanes, skips = 0.0, direct[1:]
                self.lanes[direct[0]] = (self.here, None)
                if self.here == 0 and not (a == 0 or b == len(self.rows) - 1 or b == sink):
                    self.close(self.rows[b].frames)
                    self.breaks.append((self.y, len(self.frames)))
            for edge in skips:
                lanes += LANE
                self.lanes[edge] = (self.here, -lanes)
            used = max(used, lanes)
            self.spines[self.here].left = max(self.spines[self.here].left, lanes)
            if b != sink:
                self.place(b)
        return used

    def between(self, a: int, inner: list[int], b: int, edges: list[Edge]) -> float:
        """Puts what lies between two cuts that no edge connects directly."""
        groups = _components(inner, edges)
        if len(groups) > 1:
            parts = [(group, [edge for edge in edges if edge.source in group or edge.target in group]) for group in map(set, groups)]
            self.parallel(a, [(sorted(group), own) for group, own in parts], b)
            return 0.0
        rank = {row: at for at, row in enumerate([a, *inner, b])}
        if len(_cuts(len(rank), [(rank[edge.source], rank[edge.target]) for edge in edges])) > 2:
            return self.series(a, inner, b, edges)
        return self.arcs(inner, edges)

    def arcs(self, inner: list[int], edges: list[Edge]) -> float:
        """Puts `inner` below each other, every edge that passes by a row in the nearest free lane."""
        rank = {row: at for at, row in enumerate(inner, 1)}

        def ends(edge: Edge) -> tuple[int, int]:
            return rank.get(edge.source, 0), rank.get(edge.target, len(inner) + 1)

        lanes: list[list[tuple[int, int]]] = []  # what each lane holds
        straight: set[tuple[int, int]] = set()
        for edge in sorted(edges, key=lambda edge: ends(edge)[1] - ends(edge)[0]):
            first, last = ends(edge)
            if last == first + 1 and (first, last) not in straight:
                straight.add((first, last))
                self.lanes[edge] = (self.here, None)
                continue
            free = next((at for at, lane in enumerate(lanes) if all(last <= low or high <= first for low, high in lane)), len(lanes))
            lanes[free : free + 1] = [[*(lanes[free] if free < len(lanes) else []), (first, last)]]
            self.lanes[edge] = (self.here, -LANE * (free + 1))
        for row in inner:
            self.place(row)
        return LANE * len(lanes)

    def parallel(self, a: int, parts: list[tuple[list[int], list[Edge]]], b: int) -> None:
        """Puts each of `parts` on a spine of its own: side by side if they fit, else below each other."""
        shared = self.rows[parts[0][0][0]].frames
        for row in (row for rows, _ in parts for row in rows):
            shared = shared[: _common(shared, self.rows[row].frames)]
        self.open(shared)
        parent, was_slender, start = self.here, self.slender, self.frames
        beside = not was_slender and len(parts) * (self.narrow + BETWEEN) <= self.width
        top, right, bottom = self.y, self.spines[parent].right, self.y
        spines = []
        for number, (rows, edges) in enumerate(parts):
            spine = _Spine(parent, enter=(top if beside else self.y) + FORK / 2)
            self.spines.append(spine)
            spines.append(spine)
            self.here, self.slender, self.frames = len(self.spines) - 1, was_slender or beside, start
            self.y = (top if beside else self.y) + FORK
            self.series(a, rows, b, edges)
            self.close(start)
            spine.leave = self.y + FORK / 4
            bottom = max(bottom, self.y)
            margin = PAD * (max(len(self.rows[row].frames) for row in rows) - len(start))
            spine.left, spine.right = spine.left + margin, spine.right + margin
            if not beside:
                spine.x = INDENT + spine.left
            elif number:
                spine.x = spines[number - 1].x + spines[number - 1].right + BETWEEN + spine.left
            right = max(right, spine.x + spine.right)
            if not beside:
                self.y += FORK / 2
        self.here, self.slender, self.frames = parent, was_slender, start
        self.y = bottom + FORK
        for spine in spines:
            if beside:
                spine.leave = bottom + FORK / 2
            else:
                spine.bus, spine.rejoin = right + LANE, bottom + FORK / 2
        self.spines[parent].right = right if beside else right + 2 * LANE
        self.spines[parent].left = max(self.spines[parent].left, spines[0].left if beside else 0.0)

    # --- from places beside their spine to places in the picture -----------------------------------------------------

    def broken(self, tall: float) -> Arrangement:
        """The arrangement, in columns where the spine is taller than `tall`."""
        absolute: list[float] = []
        for spine in self.spines:  # a spine stands after its parent
            absolute.append(spine.x + (absolute[spine.parent] if spine.parent is not None else 0.0))
        depth = max(len(row.frames) for row in self.rows)
        left = PAD * (depth + 1) + max(spine.left - x for spine, x in zip(self.spines, absolute, strict=True))
        right = PAD * (depth + 1) + max(spine.right + x for spine, x in zip(self.spines, absolute, strict=True))
        pitch = left + right + GUTTER
        tops = self.column_tops(max(1, int((self.width + GUTTER) // pitch)), tall)
        bottoms = [*tops[1:], self.y]

        def column(y: float) -> int:
            return max(at for at, top in enumerate(tops) if at == 0 or top <= y)

        def moved(x: float, y: float) -> tuple[float, float]:
            at = column(y)
            return left + x + at * pitch, y - tops[at] + PAD

        height = max(bottom - top for top, bottom in zip(tops, bottoms, strict=True)) + 2 * PAD
        at = tuple(moved(absolute[self.home[row]], self.middle[row]) for row in range(len(self.rows)))
        routes = []
        for edge, (along, lane) in self.lanes.items():
            points = list(self.corners(edge, along, lane, absolute))
            first, last = column(points[0][1]), column(points[-1][1])
            if first != last:  # down to the foot of its column, and from the head of the next one
                gutter = last * pitch - GUTTER / 2
                a, b = at[edge.source], at[edge.target]
                low, high = bottoms[first] - tops[first] + PAD, PAD / 2
                points = [a, (a[0], low), (gutter, low), (gutter, high), (b[0], high), b]
            else:
                points = [moved(*point) for point in points]
            kind = "skip" if lane is not None else "plain" if all(x == points[0][0] for x, _ in points) or first != last else "branch"
            routes.append(Route(edge, kind, tuple(points)))
        frames = tuple(self.boxes(absolute, moved, list(zip(tops, bottoms, strict=True))))
        return Arrangement(at, frozenset(self.slim), tuple(routes), frames, pitch * len(tops) - GUTTER, height)

    def column_tops(self, most: int, tall: float) -> list[float]:
        """Where each of at most `most` columns starts, so that they are about equally high."""
        columns = min(most, max(1, round(self.y / tall)))
        tops = [0.0]
        while len(tops) < columns:
            ideal = tops[-1] + (self.y - tops[-1]) / (columns - len(tops) + 1)
            possible = [(abs(y - ideal) + OPEN_FRAME * frames, y) for y, frames in self.breaks if y > tops[-1]]
            if not possible:
                break
            tops.append(min(possible)[1])
        return tops

    def corners(self, edge: Edge, along: int, lane: float | None, absolute: list[float]) -> Iterator[tuple[float, float]]:
        """The corners of an edge that runs along the spine `along`, before columns are broken."""
        source, target = self.home[edge.source], self.home[edge.target]
        x = absolute[source]
        yield x, self.middle[edge.source]
        entered = list(reversed(list(self.ancestors(along, source))))
        for spine in entered:
            yield x, self.spines[spine].enter
            x = absolute[spine] + (lane or 0.0 if spine == along else 0.0)
            yield x, self.spines[spine].enter
        left = list(self.ancestors(along, target))
        if lane is not None:
            x = absolute[along] + lane
            if not entered:
                yield x, self.middle[edge.source]
            if not left:
                yield x, self.middle[edge.target]
        for at in left:
            spine, parent = self.spines[at], self.spines[at].parent
            assert parent is not None
            yield x, spine.leave
            if spine.bus is not None:
                yield absolute[parent] + spine.bus, spine.leave
                yield absolute[parent] + spine.bus, spine.rejoin
            x = absolute[parent]
            yield x, spine.leave if spine.bus is None else spine.rejoin
        yield absolute[target], self.middle[edge.target]

    def ancestors(self, spine: int, end: int) -> Iterator[int]:
        """`spine`, its parent, and so on, before the spine `end`."""
        at: int | None = spine
        while at is not None and at != end:
            yield at
            at = self.spines[at].parent

    def boxes(self, absolute: list[float], moved: Callable[[float, float], tuple[float, float]], columns: list[tuple[float, float]]) -> Iterator[Frame]:
        """The frames, outer before inner, one for each column that a frame lies in."""
        rows_of: dict[str, list[int]] = {frame: [] for frame in self.span}
        level: dict[str, int] = {}
        for number, row in enumerate(self.rows):
            for depth, frame in enumerate(row.frames):
                rows_of[frame].append(number)
                level[frame] = depth
        deepest = max(level.values(), default=0)
        for frame, (top, bottom) in sorted(self.span.items(), key=lambda found: (level[found[0]], found[1])):
            homes = {self.home[row] for row in rows_of[frame]}
            inset = PAD * (deepest - level[frame] + 1)
            left = min(absolute[home] - self.spines[home].left for home in homes) - inset
            right = max(absolute[home] + self.spines[home].right for home in homes) + inset
            for start, end in columns:
                low, high = max(top, start), min(bottom, end)
                if low < high:
                    yield Frame(frame, low > top, *moved(left, low), right - left, high - low)


def _common(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """How many frames two rows share, from the outermost."""
    at = 0
    while at < min(len(first), len(second)) and first[at] == second[at]:
        at += 1
    return at


def _cuts(count: int, edges: list[tuple[int, int]]) -> list[int]:
    """Those of 0, ..., count - 1 that no edge passes by."""
    change = [0] * (count + 1)  # of the number of edges that pass by
    for source, target in edges:
        change[source + 1] += 1
        change[target] -= 1
    cuts, passing = [], 0
    for at in range(count):
        passing += change[at]
        if not passing:
            cuts.append(at)
    return cuts


def _components(inner: list[int], edges: list[Edge]) -> list[list[int]]:
    """`inner` in groups that edges among it connect."""
    group = {row: row for row in inner}

    def root(row: int) -> int:
        while group[row] != row:
            row = group[row]
        return row

    for edge in edges:
        if edge.source in group and edge.target in group:
            first, second = sorted((root(edge.source), root(edge.target)))
            group[second] = first
    found: dict[int, list[int]] = {}
    for row in inner:
        found.setdefault(root(row), []).append(row)
    return list(found.values())
