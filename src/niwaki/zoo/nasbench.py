"""The spaces of two tabular benchmarks, as descriptions that build the real networks: NAS-Bench-201 and NAS-Bench-Macro.

`OPTIONS` says what the numbers in the benchmarks' tables stand for.
"""

from __future__ import annotations

from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Add, Chain, Graph, Network, Node, OneOf
from niwaki.net.layer import Activation, BatchNorm, Conv, Identity, Layer, Pool, Zero
from niwaki.space.choice import Choice

# number of an operation -> its name, in the benchmarks' own order
OPERATIONS_201 = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
EDGES_201 = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))  # of the cell, in the order of the columns `ops`
OPERATIONS_MACRO = ("identity", "mb3_k3", "mb6_k5")
_ROWS_MACRO = ((64, 2), (128, 3), (256, 3))  # width, layers; the first of each halves the map


def nasbench201(
    input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, *, channels: int = 16, cells: int = 5, stages: int = 3
) -> Network:
    """NAS-Bench-201 (Dong & Yang, ICLR 2020; NATS-Bench's topology space): one cell of six edges with five operations each, everywhere the same.

    Of 5^6 = 15,625 cells 6,466 have different texts by the benchmark's own rule; of these 4,930 compute different things (`niwaki.net.canon`:
    the text leaves zeros in sums, and does not sort sums of sums). channels, cells, stages: of the
    published skeleton, width of the first stage, cells in each, and stages, between which a residual block halves the map.
    """
    edges = tuple(Choice(OPERATIONS_201, f"/edge{a}{b}") for a, b in EDGES_201)
    body: list[Layer] = [conv_bn_act(channels, 3, activation=None, name="stem")]
    for stage in range(stages):
        width = channels * 2**stage
        if stage:
            body.append(_reduction(width, f"reduce{stage}"))
        body += [_cell(edges, width, f"stage{stage}.cell{at}") for at in range(cells)]
    return Network(Chain(*body, BatchNorm(name="bn"), Activation("relu", name="act"), classifier(classes)), tuple(input_shape))


def _cell(edges: tuple[Choice, ...], width: int, name: str) -> Graph:
    """Node 3 of a cell reads nodes 0, 1 and 2, node 2 reads 0 and 1, node 1 reads 0; each over an edge with an operation."""
    nodes: dict[str, Node] = {}
    for end in (1, 2, 3):
        for (a, b), choice in zip(EDGES_201, edges, strict=True):
            if b == end:
                nodes[f"edge{a}{b}"] = Node(_operation(choice, width), ("input" if a == 0 else f"node{a}",))
        nodes[f"node{end}"] = Node(Identity(), tuple(label for label in nodes if label.endswith(str(end))))
    return Graph(tuple(nodes.items()), name=name)


def _operation(choice: Choice, width: int) -> OneOf:
    def convolution(size: int) -> Chain:
        return Chain(Activation("relu", name="act"), Conv(width, size, name="conv"), BatchNorm(name="bn"), name=f"nor_conv_{size}x{size}")

    return OneOf(
        Zero(name="none"),
        Identity(name="skip_connect"),
        convolution(1),
        convolution(3),
        Pool("avg", 3, 1, 1, name="avg_pool_3x3"),
        by=choice,
    )


def _reduction(width: int, name: str) -> Add:
    """A basic residual block of stride 2; its shortcut averages 2 x 2 pixels before a 1x1 convolution without BatchNorm."""
    body = Chain(
        *(Activation("relu", name="act1"), Conv(width, 3, 2, name="conv1"), BatchNorm(name="bn1")),
        *(Activation("relu", name="act2"), Conv(width, 3, name="conv2"), BatchNorm(name="bn2")),
        name="body",
    )
    return Add(body, Chain(Pool("avg", 2, 2, name="pool"), Conv(width, 1, name="conv"), name="shortcut"), name=name)


def nasbench_macro(input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10) -> Network:
    """NAS-Bench-Macro (Su et al., CVPR 2021): eight layers, each the identity, or an inverted residual of expansion 3 and kernel 3, or 6 and 5.

    Where shapes change, the identity is a 1x1 convolution with BatchNorm, without activation (recounted: the table's parameters).
    """
    body: list[Layer] = [conv_bn_act(32, 3, name="stem")]
    for width, count in _ROWS_MACRO:
        for at in range(count):
            body.append(_macro_layer(width, 2 if at == 0 else 1, f"layer{len(body) - 1}"))
    return Network(Chain(*body, conv_bn_act(1280, 1, name="features"), classifier(classes)), tuple(input_shape))


def _macro_layer(width: int, stride: int, name: str) -> OneOf:
    identity = Identity(name="identity") if stride == 1 else conv_bn_act(width, 1, stride=stride, activation=None, name="identity")
    return OneOf(
        identity,
        *(
            mbconv(width, kernel, expand=expand, stride=stride, name=label)
            for label, kernel, expand in zip(OPERATIONS_MACRO[1:], (3, 5), (3, 6), strict=True)
        ),
        name=name,
    )
