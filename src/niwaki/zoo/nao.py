"""NAO's cells (Luo et al., NeurIPS 2018; its space is ENAS's): two cells of five nodes, each the sum of two operations on two earlier tensors."""

from __future__ import annotations

from niwaki.net.block import classifier, conv_bn_act, depthwise
from niwaki.net.control import Chain, Graph, Network, Node, OneOf
from niwaki.net.layer import Activation, BatchNorm, Conv, Identity, Pool, Zero
from niwaki.space.choice import Choice
from niwaki.space.size import op

OPERATIONS = ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3", "identity")


def nao(
    input_shape: tuple[int, ...] = (3, 32, 32), classes: int = 10, *, nodes: int = 5, channels: int = 20, cells_per_stage: int = 1
) -> Network:
    """The published search network: three stages of normal cells with a reduction cell before the second and the third.

    A node takes two (predecessor, operation) pairs; predecessors 0 and 1 are the outputs of the two cells before. All normal cells are alike,
    and so are the reduction cells: 8 decisions for each node, 40 in all, named `normal.node2.from_a` and so on.

    Ours: the two inputs of a cell are brought to its width and size by a 1x1 convolution, so that a reduction cell halves them there and not in
    the operations that read them; a cell's output is the concatenation of all its nodes, where the authors leave out those that others read.
    """
    graph: dict[str, Node] = {"stem": Node(conv_bn_act(channels, 3, activation=None))}
    done = [("stem", 0), ("stem", 0)]  # the last two cells, and how often their maps were halved
    for stage in range(3):
        for kind in (["reduction"] if stage else []) + ["normal"] * cells_per_stage:
            label, width = f"cell{len(done) - 2}", channels * 2**stage
            for side, (source, halved) in zip("xy", done[-2:], strict=True):
                read = Chain(Activation("relu", name="act"), Conv(width, 1, 2 ** (stage - halved), name="conv"), BatchNorm(name="bn"))
                graph[f"{label}.{side}"] = Node(read, (source,))
            _add_cell(graph, label, kind, nodes, width)
            done.append((label, stage))
    return Network(
        Chain(Graph(tuple(graph.items()), name="cells"), Activation("relu", name="act"), classifier(classes)), tuple(input_shape)
    )


def _add_cell(graph: dict[str, Node], label: str, kind: str, nodes: int, width: int) -> None:
    """Adds a cell on the nodes `label`.x and `label`.y; its output is the node `label`."""
    tensors = [f"{label}.x", f"{label}.y"]
    for node in range(2, nodes + 2):
        sides = [f"{label}.node{node}{side}" for side in "ab"]
        for side, name in zip("ab", sides, strict=True):
            source = Choice(tuple(range(node)), f"/{kind}.node{node}.from_{side}")
            operation = Choice(OPERATIONS, f"/{kind}.node{node}.op_{side}")
            for earlier, tensor in enumerate(tensors):
                way = OneOf(Zero(name="no"), _operation(operation, width), by=op("int", op("==", source, earlier)), name="way")
                graph[f"{name}.{earlier}"] = Node(way, (tensor,))
            graph[name] = Node(Identity(), tuple(f"{name}.{earlier}" for earlier in range(len(tensors))))
        graph[f"{label}.node{node}"] = Node(Identity(), tuple(sides))
        tensors.append(f"{label}.node{node}")
    graph[label] = Node(Identity(), tuple(tensors[2:]), "concat")


def _operation(choice: Choice, width: int) -> OneOf:
    def separable(size: int) -> Chain:
        layers = (Activation("relu", name="act"), depthwise(size, name="dw"), Conv(width, 1, name="pw"), BatchNorm(name="bn"))
        return Chain(*layers, name=f"sep_conv_{size}x{size}")

    pools = [Pool(kind, 3, 1, 1, name=f"{kind}_pool_3x3") for kind in ("avg", "max")]
    return OneOf(separable(3), separable(5), *pools, Identity(name="identity"), by=choice, name="yes")
