"""The drawing of a network: every layer's type, shape and cost is in it, every edge, and nothing stands on anything else."""

from __future__ import annotations

import random
import re
from html import unescape
from itertools import combinations
from xml.etree import ElementTree

import pytest

from niwaki.net.arrange import Arrangement, Edge, Row, arrange
from niwaki.net.block import classifier, conv_bn_act, maybe, mbconv
from niwaki.net.control import Chain, Concat, Graph, Network, Node, OneOf, Repeat, Residual
from niwaki.net.layer import BatchNorm, Cat, Conv, Identity, Pool, SqueezeExcite, Sum
from niwaki.net.picture import describe, picture, shape_text
from niwaki.net.place import INPUT, fix, place
from niwaki.space.choice import Choice
from niwaki.space.size import Symbol
from niwaki.testing.primitives import BLOCKS, PRIMITIVES

SVG = "{http://www.w3.org/2000/svg}"


def deep(blocks: int) -> Network:
    body = [
        Chain(*(mbconv(16, expand=4, squeeze_excite=True, activation="hswish", name=f"block{b}") for b in range(4)), name=f"stage{at}")
        for at in range(blocks)
    ]
    return Network(Chain(conv_bn_act(16, name="stem"), *body, classifier(10)), (3, 32, 32))


def cell() -> Network:
    nodes = (
        ("a", Node(conv_bn_act(16))),
        ("b", Node(conv_bn_act(16), ("input", "a"))),
        ("c", Node(Pool("max", 3, 1, 1), ("a", "b"))),
        ("d", Node(conv_bn_act(16), ("input", "b", "c"))),
        ("out", Node(Identity(), ("a", "b", "c", "d"), join="concat")),
    )
    return Network(Chain(conv_bn_act(16, name="stem"), Graph(nodes, name="cell"), classifier(10)), (3, 16, 16))


def branches(count: int) -> Network:
    parts = [Chain(conv_bn_act(8, 1, name="reduce"), Residual(conv_bn_act(8, 3)), name=f"branch{at}") for at in range(count)]
    return Network(Chain(conv_bn_act(16, name="stem"), Concat(*parts, name="mixed"), classifier(10)), (3, 16, 16))


def space() -> Network:
    ops = OneOf(
        *(
            mbconv(Choice((16, 24), "width"), kernel, expand=expand, name=f"k{kernel}_e{expand}")
            for kernel in (3, 5, 7)
            for expand in (1, 3, 6)
        ),
        name="layer",
    )
    block = mbconv(Choice((16, 24, 32), "width"), Choice((3, 5)), squeeze_excite=maybe(SqueezeExcite(), name="se"), name="block")
    return Network(
        Chain(conv_bn_act(16, name="stem"), ops, Chain(Repeat(block, Choice((1, 2, 3), "depth")), name="stage"), classifier(10)),
        (3, 16, 16),
    )


NETWORKS = {"deep": deep(5), "cell": cell(), "few branches": branches(3), "many branches": branches(9), "space": space()}


def paths(svg: ElementTree.Element, kind: str) -> list[ElementTree.Element]:
    return [path for path in svg.iter(f"{SVG}path") if kind in (path.get("class") or "").split()]


@pytest.mark.parametrize("network", [*PRIMITIVES.values(), *BLOCKS.values(), *NETWORKS.values()])
def test_every_layer_stands_in_the_picture_with_type_and_shape(network):
    placement = place(network)
    text = unescape(re.sub(r"<style>.*?</style>", "", picture(placement), flags=re.S))
    for item in placement.items:
        assert f"{item.path}: {describe(item.layer, item)[0]}, {shape_text(item.shape)}" in text, item.path


@pytest.mark.parametrize("name", ["deep", "cell", "few branches"])
def test_an_architecture_shows_type_shape_and_label_of_every_layer_in_its_row(name):
    placement = fix(place(NETWORKS[name]), {})
    labels = {item.path: f"{at}k" for at, item in enumerate(placement.items) if not isinstance(item.layer, (Sum, Cat, BatchNorm))}
    svg = ElementTree.fromstring(picture(placement, labels))
    rows = [" | ".join(text.text or "" for text in group.iter(f"{SVG}text")) for group in svg.iter(f"{SVG}g")]
    for item in placement.items:
        kind, shape = describe(item.layer, item)[0], shape_text(item.shape)
        assert any(kind in row and shape in row for row in rows), item.path
        if isinstance(item.layer, (Conv, SqueezeExcite, Pool)):
            assert any(kind in row and shape in row and row.endswith(labels[item.path]) for row in rows), item.path


def test_there_is_one_shortcut_for_every_residual_sum():
    placement = fix(place(deep(5)), {})
    svg = ElementTree.fromstring(picture(placement))
    assert len(paths(svg, "skip")) == sum(isinstance(item.layer, Sum) for item in placement.items) == 20


@pytest.mark.parametrize("network", [*NETWORKS.values(), *BLOCKS.values()])
def test_every_edge_between_rows_is_drawn_and_conditional_ones_are_dashed(network):
    placement = place(network)
    svg = ElementTree.fromstring(picture(placement))
    rows = len(list(svg.iter(f"{SVG}g"))) - 1  # but the input's
    edges = sum(len(item.inputs) for item in placement.items)
    fused = len(placement.items) - rows  # a fused layer's one edge lies inside its row
    assert len(paths(svg, "edge")) == edges - fused
    assert len(paths(svg, "maybe")) == sum(isinstance(edge, Symbol) for item in placement.items for edge in item.edges)


def test_searched_sizes_are_listed():
    svg = picture(Network(Chain(Conv(Choice((16, 24, 32), "width"), Choice((3, 5))), Conv(Choice(tuple(range(8, 120, 8))))), (3, 8, 8)))
    assert "16|24|32 × 8 × 8" in svg
    assert "Conv 3|5 square" in svg
    assert "8..112 × 8 × 8" in svg
    assert "decided by width" in svg


def test_normalisation_stays_a_row_of_its_own_where_something_else_reads_its_input():
    fused = picture(Network(Chain(Conv(8), BatchNorm()), (3, 8, 8)))
    assert "Conv 3×3 · BN" in fused
    apart = picture(Network(Chain(Conv(8), Residual(Chain(BatchNorm(), Conv(8)))), (3, 8, 8)))
    assert "Conv 3×3 · BN" not in apart
    assert ">BN<" in apart


def test_names_from_a_user_cannot_become_markup():
    svg = picture(Network(Chain(Conv(8, name='<script>"&'), BatchNorm()), (3, 8, 8)), {'<script>"&': "<b>"})
    assert "<script" not in svg
    assert "<b>" not in svg
    ElementTree.fromstring(svg)


def test_a_tall_network_is_broken_into_even_columns_between_blocks():
    placement = fix(place(deep(5)), {})
    tall, broken = (ElementTree.fromstring(picture(placement, tall=height)) for height in (1e9, 500))
    assert float(broken.get("height")) < 0.6 * float(tall.get("height"))
    assert float(broken.get("width")) <= 1160
    assert "continued" not in picture(placement, tall=500)
    assert len(paths(broken, "skip")) == 20


def rows_of(network: Network) -> tuple[list[Row], list[Edge]]:
    placement = place(network)
    rows = [Row((), 20, 34), *(Row(tuple(item.path.split(".")[:1]), 20, 34) for item in placement.items), Row((), 0, 0)]
    edges = [
        Edge(source + 1 if source != INPUT else 0, at, number)
        for at, item in enumerate(placement.items, 1)
        for number, source in enumerate(item.inputs)
    ]
    read = {edge.source for edge in edges}
    return rows, edges + [Edge(at, len(rows) - 1) for at in range(len(rows) - 1) if at not in read]


def random_graph(rng: random.Random) -> tuple[list[Row], list[Edge]]:
    """A graph of no particular shape: every row reads one or two of the eight before it."""
    count = rng.randrange(3, 30)
    edges = [
        Edge(source, at) for at in range(1, count) for source in {rng.randrange(max(0, at - 8), at) for _ in range(rng.choice((1, 1, 2)))}
    ]
    read = {edge.source for edge in edges}
    return [Row((), 20, 34)] * count + [Row((), 0, 0)], edges + [Edge(at, count) for at in range(count) if at not in read]


def check_arrangement(found: Arrangement, rows: list[Row], edges: list[Edge]) -> None:
    boxes = []
    for at, (x, y) in enumerate(found.at[:-1]):
        height, reach = (rows[at].narrow, 120) if at in found.narrow else (rows[at].wide, 240)
        boxes.append((x - 6, y - height / 2, x + reach, y + height / 2))
        assert x - 6 >= 0
        assert x + reach <= found.width + 1e-6
        assert y - height / 2 >= 0
        assert y + height / 2 <= found.height + 1e-6
    for (ax, ay, bx, by), (cx, cy, dx, dy) in combinations(boxes, 2):
        assert bx <= cx or dx <= ax or by <= cy or dy <= ay, "two rows overlap"
    assert sorted((route.edge.source, route.edge.target, route.edge.number) for route in found.routes) == sorted(
        (edge.source, edge.target, edge.number) for edge in edges
    )
    for route in found.routes:
        assert route.points[-1] == found.at[route.edge.target]
        assert all(a[0] == pytest.approx(b[0]) or a[1] == pytest.approx(b[1]) for a, b in zip(route.points, route.points[1:], strict=False))
    for frame in found.frames:
        assert frame.x >= 0
        assert frame.y >= 0
        assert frame.x + frame.width <= found.width + 1e-6
        assert frame.y + frame.height <= found.height + 1e-6


@pytest.mark.parametrize("name", NETWORKS)
def test_rows_do_not_overlap_and_every_edge_ends_at_its_row(name):
    rows, edges = rows_of(NETWORKS[name])
    for tall in (300, 1e9):
        check_arrangement(arrange(rows, edges, wide=240, narrow=120, width=1000, tall=tall), rows, edges)


def test_any_graph_can_be_drawn():
    for seed in range(150):
        rows, edges = random_graph(random.Random(seed))
        check_arrangement(arrange(rows, edges, wide=240, narrow=120, width=1000, tall=400), rows, edges)
