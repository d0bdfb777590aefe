"""A classifier read as a tree of decisions, drawn: the tree, as thick as examples pass, and how single examples came to their class."""

from __future__ import annotations

from html import escape

from niwaki.report.charts import percent
from niwaki.report.record import Example, Tree, Way

ROW, LEVEL, MARGIN = 28.0, 120.0, 16.0  # pixels: from class to class, from decision to decision, around it all
MOST_WIDE = 560.0  # of the decisions; more levels stand closer
LETTER = 7.2  # pixels of a letter of a class's name, at most
THICK = 13.0  # pixels of a branch that every example passes
LONGEST = 22  # letters of a name that are drawn


def tree_picture(tree: Tree) -> str:
    """The tree as an <svg>: the root at the left, the classes at the right, a branch as thick as the share of examples that pass it."""
    count, height = len(tree.classes), _heights(tree)
    order = _order(tree)
    step = min(LEVEL, MOST_WIDE / max(height))
    across = step * max(height)
    ends = MARGIN + across
    letters = max(min(len(name), LONGEST) for name in tree.classes)
    width, tall = ends + 12 + LETTER * (letters + 14), ROW * count + 2 * MARGIN
    at: dict[int, tuple[float, float]] = {}
    for row, leaf in enumerate(order):
        at[leaf] = ends, MARGIN + ROW * (row + 0.5)
    for node, children in enumerate(tree.inner, start=count):
        # by the rows of the outermost children, not of all classes: the decision stands between what it decides
        rows = [at[child][1] for child in children]
        at[node] = ends - step * height[node], (min(rows) + max(rows)) / 2
    total = max(1, tree.passed[-1])
    parts = [
        f'<svg class="tree" viewBox="0 0 {width:.0f} {tall:.0f}" width="{width:.0f}" height="{tall:.0f}" role="img" '
        f'aria-label="A tree of {len(tree.inner)} decisions over {count} classes">'
    ]
    for node, children in enumerate(tree.inner, start=count):
        for child in sorted(children, key=lambda one: -tree.passed[one]):
            parts.append(_branch(tree, at[node], at[child], child, tree.passed[child] / total))
    for node in range(count, len(at)):
        x, y = at[node]
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5"><title>{escape(_decision(tree, node))}</title></circle>')
        if label := tree.labels[node - count] if tree.labels else "":
            parts.append(f'<text class="idea" x="{x:.1f}" y="{y - 10:.1f}">{escape(_short(label))}</text>')
    for leaf in order:
        x, y = at[leaf]
        right = f" {percent(tree.right[leaf] / tree.seen[leaf])} right" if tree.seen[leaf] else ""
        parts.append(
            f'<text x="{x + 10:.1f}" y="{y + 4.5:.1f}">{escape(_short(tree.classes[leaf]))}<tspan class="soft">  {right}</tspan>'
            f"<title>{escape(_leaf(tree, leaf))}</title></text>"
        )
    return "".join(parts) + "</svg>"


def way_card(tree: Tree, way: Way) -> str:
    """One example, and the decisions on its way down, each with what else there was; the one that went astray, if one did, marked."""
    example = way.example
    verdict = "ok" if example.label == example.predicted else "no"
    sure = f", {percent(example.probability or 0.0, 1)}"
    shown = f'<img src="data:image/png;base64,{escape(example.image)}" alt="{escape(example.label)}">' if example.image else ""
    rows, off = [], False
    for node, share in zip(way.nodes, way.probabilities, strict=True):
        others = [_name(tree, one) for one in _siblings(tree, node)]
        strays = not off and example.label not in [tree.classes[leaf] for leaf in _leaves(tree, node)]
        off = off or strays
        rows.append(
            f'<li{" class=stray" if strays else ""}><i style="width:{100 * share:.1f}%"></i><span>{escape(_name(tree, node))} <b>{percent(share)}</b>'
            f'<small class="soft"> not {escape(" or ".join(others[:3]) + (" ..." if len(others) > 3 else ""))}</small></span></li>'
        )
    return (
        f'<figure class="way">{shown}<div><figcaption><b class="{verdict}">{escape(example.predicted)}</b>'
        f'<span class="soft">{escape(sure)}{_truth(example)}</span></figcaption><ol>{"".join(rows)}</ol></div></figure>'
    )


def _truth(example: Example) -> str:
    told = "" if example.label == example.predicted else f"; it is {example.label}"
    return f"{told}{f'; {example.text}' if example.text else ''}"


def _branch(tree: Tree, start: tuple[float, float], end: tuple[float, float], child: int, share: float) -> str:
    (x, y), (to_x, to_y) = start, end
    middle = (x + to_x) / 2
    told = f"{_name(tree, child)}: {tree.passed[child]:,} of {tree.passed[-1]:,} test examples, {percent(share)}"
    return (
        f'<path d="M{x:.1f} {y:.1f}C{middle:.1f} {y:.1f} {middle:.1f} {to_y:.1f} {to_x:.1f} {to_y:.1f}" '
        f'stroke-width="{max(1.2, THICK * share):.2f}"><title>{escape(told)}</title></path>'
    )


def _decision(tree: Tree, node: int) -> str:
    choices = " or ".join(_name(tree, child) for child in tree.inner[node - len(tree.classes)])
    return f"{choices}: {tree.passed[node]:,} test examples come here"


def _leaf(tree: Tree, leaf: int) -> str:
    return f"{tree.classes[leaf]}: {tree.right[leaf]:,} of {tree.seen[leaf]:,} test examples find it; {tree.passed[leaf]:,} end here"


def _name(tree: Tree, node: int) -> str:
    """The class, the label of a decision, or the classes below it."""
    if node < len(tree.classes):
        return tree.classes[node]
    if tree.labels and tree.labels[node - len(tree.classes)]:
        return tree.labels[node - len(tree.classes)]
    names = [tree.classes[leaf] for leaf in sorted(_leaves(tree, node))]
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:4])} and {len(names) - 4} more"


def _leaves(tree: Tree, node: int) -> list[int]:
    if node < len(tree.classes):
        return [node]
    return [leaf for child in tree.inner[node - len(tree.classes)] for leaf in _leaves(tree, child)]


def _siblings(tree: Tree, node: int) -> list[int]:
    children = next(children for children in tree.inner if node in children)
    return [child for child in children if child != node]


def _heights(tree: Tree) -> list[int]:
    """Decisions below each node at most; 0 of a class."""
    found = [0] * len(tree.classes)
    for children in tree.inner:
        found.append(1 + max(found[child] for child in children))
    return found


def _order(tree: Tree) -> list[int]:
    """The classes from top to bottom, so that no branches cross."""
    return _leaves(tree, len(tree.classes) + len(tree.inner) - 1)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
