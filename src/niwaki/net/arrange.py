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
BETWEEN = 20.0  # between parallel parts side by side
INDENT = 26.0  # of parallel parts below each other
TITLE = 20.0  # height of a frame's title
PAD = 7.0  # inside and outside of a frame
GUTTER = 44.0  # between the columns of a long network
OPEN_FRAME = 60.0  # a break inside a frame is taken only where it makes the columns this much more even
UNEVEN = 1.4  # the highest column over the mean, at most

Point = tuple[float, float]  # x, y


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
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Frame:
    """A rectangle around the rows of one block. spine: x of its first row; continued: from the column before."""

    name: str
    continued: bool
    spine: float
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Arrangement:
    """Where everything is. at: x of the spine and y of the middle of each row; narrow: the rows that are; frames: outer before inner."""

    at: tuple[Point, ...]
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
    """One vertical line of rows. left, right: how far it reaches to both sides; margin: and the frames inside it further.

    enter, leave: the heights at which edges come over from the spine `parent`, and go back to it.
    bus: how far right of the parent's spine edges go down to `rejoin` before they go back to it (None: they go back straight).
    """

    parent: int | None
    x: float = 0.0
    left: float = 0.0
    right: float = 0.0
    margin: float = 0.0
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
    below_row: bool = False  # rather than below a frame or a fork

    # --- rows and frames ---------------------------------------------------------------------------------------------

    def close(self, frames: tuple[str, ...]) -> None:
        """Closes the open frames that are not among `frames`."""
        kept = _common(self.frames, frames)
        for frame in reversed(self.frames[kept:]):
            self.y += PAD - GAP
            self.span[frame] = (self.span[frame][0], self.y)
            self.y += PAD
            self.below_row = False
        self.frames = self.frames[:kept]

    def open(self, frames: tuple[str, ...]) -> None:
        """Makes `frames` the open ones."""
        self.close(frames)
        if self.frames != frames and self.below_row:
            self.y += PAD
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
        self.below_row = True
        spine = self.spines[self.here]
        spine.right = max(spine.right, self.narrow if self.slender else self.wide)

    # --- series, parallel, and what is neither -----------------------------------------------------------------------

    def series(self, source: int, inner: list[int], sink: int, edges: list[Edge]) -> float:
        """Puts `inner` on the spine, from cut to cut; a cut is a row that no edge passes by. Returns the width of the lanes used."""
        order = [source, *inner, sink]
        rank = {row: at for at, row in enumerate(order)}
        cuts = _cuts(len(order), [(rank[edge.source], rank[edge.target]) for edge in edges])
        used = 0.0
        outermost = (source, sink) == (0, len(self.rows) - 1)
        for first, last in pairwise(cuts):
            a, between, b = order[first], order[first + 1 : last], order[last]
            part = [edge for edge in edges if first <= rank[edge.source] and rank[edge.target] <= last]
            direct = [edge for edge in part if (edge.source, edge.target) == (a, b)]
            if outermost and a != source and b != sink:
                self.close(self.rows[order[first + 1]].frames)
                self.breaks.append((self.y, len(self.frames)))
            if between:
                lanes = self.between(a, between, b, [edge for edge in part if edge not in direct])
                skips = direct
            else:
                lanes, skips = 0.0, direct[1:]
                self.lanes[direct[0]] = (self.here, None)
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
            return self.parallel(a, [(sorted(group), own) for group, own in parts], b)
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
            free = next((at for at, lane in enumerate(lanes) if all(last < low or high < first for low, high in lane)), len(lanes))
            lanes[free : free + 1] = [[*(lanes[free] if free < len(lanes) else []), (first, last)]]
            self.lanes[edge] = (self.here, -LANE * (free + 1))
        for row in inner:
            self.place(row)
        return LANE * len(lanes)

    def parallel(self, a: int, parts: list[tuple[list[int], list[Edge]]], b: int) -> float:
        """Puts each of `parts` on a spine of its own: side by side if they fit, else below each other."""
        shared = self.rows[parts[0][0][0]].frames
        for row in (row for rows, _ in parts for row in rows):
            shared = shared[: _common(shared, self.rows[row].frames)]
        self.open(shared)
        parent, was_slender, start = self.here, self.slender, self.frames
        beside = not was_slender and len(parts) * (self.narrow + BETWEEN) <= self.width
        top, right, bottom = self.y, 0.0, self.y
        spines = []
        for number, (rows, edges) in enumerate(parts):
            spine = _Spine(parent, enter=(top if beside else self.y) + FORK / 2)
            self.spines.append(spine)
            spines.append(spine)
            self.here, self.slender, self.frames = len(self.spines) - 1, was_slender or beside, start
            self.y, self.below_row = (top if beside else self.y) + FORK, False
            self.series(a, rows, b, edges)
            self.close(start)
            spine.leave = self.y + FORK / 4
            bottom = max(bottom, self.y)
            spine.margin = PAD * (max(len(self.rows[row].frames) for row in rows) - len(start))
            if not beside:
                spine.x = INDENT + spine.left + spine.margin
            elif number:
                before = spines[number - 1]
                spine.x = before.x + before.right + before.margin + BETWEEN + spine.margin + spine.left
            right = max(right, spine.x + spine.right + spine.margin)
            if not beside:
                self.y += FORK / 2
        self.here, self.slender, self.frames = parent, was_slender, start
        self.y, self.below_row = bottom + FORK, False
        for spine in spines:
            if beside:
                spine.leave = bottom + FORK / 2
            else:
                spine.bus, spine.rejoin = right + LANE, bottom + FORK / 2
        self.spines[parent].right = max(self.spines[parent].right, right if beside else right + 2 * LANE)
        return spines[0].left if beside else 0.0

    # --- from places beside their spine to places in the picture -----------------------------------------------------

    def broken(self, tall: float) -> Arrangement:
        """The arrangement, in columns where the spine is taller than `tall`."""
        absolute: list[float] = []  # x of each spine
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

        def moved(x: float, y: float) -> Point:
            at = column(y)
            return left + x + at * pitch, y - tops[at] + PAD

        height = max(bottom - top for top, bottom in zip(tops, bottoms, strict=True)) + 2 * PAD
        at = tuple(moved(absolute[self.home[row]], self.middle[row]) for row in range(len(self.rows)))
        routes = []
        for edge, (along, lane) in self.lanes.items():
            corners = list(self.corners(edge, along, lane, absolute))
            points = [moved(*corner) for corner in corners]
            first, last = column(corners[0][1]), column(corners[-1][1])
            kind = "skip" if lane is not None else "plain" if all(x == corners[0][0] for x, _ in corners) else "branch"
            if first != last:  # down to the foot of its column, and from the head of the next one
                foot, gutter, head = bottoms[first] - tops[first] + PAD, last * pitch - GUTTER / 2, PAD / 2
                start, on = points[0], moved(corners[0][0], tops[last])[0]
                points = [point for point, corner in zip(points, corners, strict=True) if column(corner[1]) == last]
                if lane is None:
                    points = [start, (start[0], foot), (gutter, foot), (gutter, head), (on, head), *points]
                else:  # it leaves the line of the edge that goes the same way
                    points = [(points[0][0], head), *points]
            routes.append(Route(edge, kind, tuple(points)))
        frames = tuple(self.boxes(absolute, moved, list(zip(tops, bottoms, strict=True))))
        return Arrangement(at, frozenset(self.slim), tuple(routes), frames, pitch * len(tops) - GUTTER, height)

    def column_tops(self, most: int, tall: float) -> list[float]:
        """Where each of at most `most` columns starts, so that they are about equally high; fewer where no breaks make them so."""
        for columns in range(min(most, round(self.y / tall)), 1, -1):
            tops = [0.0]
            while len(tops) < columns:
                ideal = tops[-1] + (self.y - tops[-1]) / (columns - len(tops) + 1)
                possible = [(abs(y - ideal) + OPEN_FRAME * frames, y) for y, frames in self.breaks if y > tops[-1]]
                tops.append(min(possible, default=(0.0, self.y))[1])
            if max(bottom - top for top, bottom in pairwise([*tops, self.y])) <= UNEVEN * self.y / columns:
                return tops
        return [0.0]

    def corners(self, edge: Edge, along: int, lane: float | None, absolute: list[float]) -> Iterator[Point]:
        """The corners of an edge that runs along the spine `along`, before columns are broken."""
        source, target = self.home[edge.source], self.home[edge.target]
        x = absolute[source]
        entered = list(reversed(list(self.ancestors(along, source))))
        if entered and lane is not None:  # it leaves the line of the edge that enters the same spine
            yield absolute[along], self.spines[along].enter
            yield absolute[along] + lane, self.spines[along].enter
        else:
            yield x, self.middle[edge.source]
            for spine in entered:
                yield x, self.spines[spine].enter
                x = absolute[spine]
                yield x, self.spines[spine].enter
        left = [self.spines[spine] for spine in self.ancestors(along, target)]
        if lane is not None:
            x = absolute[along] + lane
            if not entered:
                yield x, self.middle[edge.source]
            if not left:
                yield x, self.middle[edge.target]
        for over in left:
            assert over.parent is not None
            yield x, over.leave
            x = absolute[over.parent]
            if over.bus is None:
                yield x, over.leave
            else:
                yield from ((x + over.bus, over.leave), (x + over.bus, over.rejoin), (x, over.rejoin))
        yield absolute[target], self.middle[edge.target]

    def ancestors(self, spine: int, end: int | None) -> Iterator[int]:
        """`spine`, its parent, and so on, before the spine `end`; None: all of them."""
        at: int | None = spine
        while at is not None and at != end:
            yield at
            at = self.spines[at].parent

    def boxes(self, absolute: list[float], moved: Callable[[float, float], Point], columns: list[tuple[float, float]]) -> Iterator[Frame]:
        """The frames, outer before inner, one for each column that a frame lies in."""
        rows_of: dict[str, list[int]] = {frame: [] for frame in self.span}
        level: dict[str, int] = {}
        for number, row in enumerate(self.rows):
            for depth, frame in enumerate(row.frames):
                rows_of[frame].append(number)
                level[frame] = depth
        above = [set(self.ancestors(spine, None)) for spine in range(len(self.spines))]
        deepest = [0] * len(self.spines)  # most frames around any row of a spine and those that branch off it
        for number, row in enumerate(self.rows):
            for spine in above[self.home[number]]:
                deepest[spine] = max(deepest[spine], len(row.frames))
        for frame, (top, bottom) in sorted(self.span.items(), key=lambda found: (level[found[0]], found[1])):
            homes = {self.home[row] for row in rows_of[frame]}
            inset = PAD * (deepest[max(set.intersection(*(above[home] for home in homes)))] - level[frame])
            left = min(absolute[home] - self.spines[home].left for home in homes) - inset
            right = max(absolute[home] + self.spines[home].right for home in homes) + inset
            for start, end in columns:
                low, high = max(top, start), min(bottom, end)
                if low < high:
                    (x, y), (on, _) = moved(left, low), moved(absolute[self.home[rows_of[frame][0]]], low)
                    yield Frame(frame, low > top, on, x, y, right - left, high - low)


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
