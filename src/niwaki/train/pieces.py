"""A network in consecutive pieces: where it can be cut, the pieces, and the pieces together again."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import fx, nn


class CutError(ValueError):
    """A network that cannot be cut where it was asked to be."""


def cut_points(module: nn.Module) -> tuple[str, ...]:
    """The names after which the module can be cut, in order: there a single tensor is all that what follows needs of what came before.

    Of an `nn.Sequential` its children but for the last; of a `torch.fx.GraphModule` (which `build` gives, and adoption) nodes of its graph.
    The inside of a residual block has none.
    """
    if isinstance(module, nn.Sequential):
        return tuple(name for name, _ in module.named_children())[:-1]
    graph = _graph_of(module).graph
    computed = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    return tuple(node.name for node in computed[:-1] if not _also_needed(graph, node))


def pieces_of(module: nn.Module, cuts: Sequence[str]) -> tuple[nn.Module, ...]:
    """Copies of the consecutive pieces of `module`, one more than there are cuts, in evaluation mode; weights that two pieces share are copied.

    >>> [len(piece) for piece in pieces_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), ["1"])]
    [2, 1]
    """
    if isinstance(module, nn.Sequential):
        children = list(module.named_children())
        places = _places([name for name, _ in children[:-1]], cuts, "nn.Sequential")
        bounds = [0, *(place + 1 for place in places), len(children)]
        parts = [nn.Sequential(OrderedDict(children[a:b])) for a, b in pairwise(bounds)]
        return tuple(copy.deepcopy(part).eval() for part in parts)
    module = _graph_of(module)
    graph = module.graph
    nodes = {node.name: node for node in graph.nodes}
    places = _places(list(nodes), cuts, type(module).__name__)
    for place in places:
        node = list(nodes.values())[place]
        if extra := _also_needed(graph, node):
            possible = ", ".join(cut_points(module)) or "nowhere"
            raise CutError(
                f"a cut after {node.name!r} leaves {', '.join(extra)} behind, which is needed later, too; it can be cut after {possible}"
            )
    entry = next(node for node in graph.nodes if node.op == "placeholder")
    result = next(node for node in graph.nodes if node.op == "output").all_input_nodes[0]
    ends = [*(list(nodes.values())[place] for place in places), result]
    return tuple(copy.deepcopy(_piece(module, graph, first, last)).eval() for first, last in zip([entry, *ends[:-1]], ends, strict=True))


def balanced_cuts(module: nn.Module, count: int) -> tuple[str, ...]:
    """`count` - 1 of the cut points, so that the pieces have about the same number of parameters each; CutError where there are too few."""
    points = cut_points(module)
    if count < 2 or len(points) < count - 1:
        raise CutError(
            f"{count} pieces: at least 2, and at most {len(points) + 1}, as the module can be cut after {', '.join(points) or 'nothing'}"
        )
    sizes = [sum(p.numel() for p in piece.parameters()) for piece in pieces_of(module, points)]
    total, chosen, so_far = sum(sizes), list[str](), 0
    for at, (point, size) in enumerate(zip(points, sizes, strict=False)):
        so_far += size
        left = len(points) - at - 1  # cuts that could still follow
        if len(chosen) < count - 1 and (so_far >= total * (len(chosen) + 1) / count or left < count - 1 - len(chosen)):
            chosen.append(point)
    return tuple(chosen)


def assembled(pieces: Iterable[nn.Module], names: Sequence[str] | None = None) -> nn.Sequential:
    """The pieces one after the other, as one module in evaluation mode that shares their weights."""
    parts = list(pieces)
    labels = names if names is not None else [f"piece{at}" for at in range(len(parts))]
    return nn.Sequential(OrderedDict(zip(labels, parts, strict=True))).eval()


def _graph_of(module: nn.Module) -> fx.GraphModule:
    if not isinstance(module, fx.GraphModule):
        raise CutError(
            f"a {type(module).__name__} shows no order of its parts; give an nn.Sequential or a torch.fx.GraphModule, such as "
            "torch.fx.symbolic_trace(module), or the module of niwaki.adoption.read(module, example)"
        )
    if (entries := sum(node.op == "placeholder" for node in module.graph.nodes)) != 1:
        raise CutError(f"the graph takes {entries} inputs; a network in consecutive pieces takes one")
    end = next(node for node in module.graph.nodes if node.op == "output")
    if not isinstance(end.args[0], fx.Node):
        raise CutError(f"the graph gives {end.args[0]}; a network in consecutive pieces gives one tensor")
    return module


def _places(known: Sequence[str], cuts: Sequence[str], kind: str) -> list[int]:
    if unknown := [cut for cut in cuts if cut not in known]:
        raise CutError(f"the {kind} has nothing called {unknown[0]!r} to cut after; it has {', '.join(known)}")
    places = [list(known).index(cut) for cut in cuts]
    if places != sorted(set(places)):
        raise CutError(f"cuts stand in the order of the network, each once; given are {', '.join(cuts)}")
    return places


def _also_needed(graph: fx.Graph, cut: fx.Node) -> list[str]:
    """What stands before `cut`, beside itself and constants, and is read after it."""
    before = set[fx.Node]()
    needed = []
    for node in graph.nodes:
        before.add(node)
        if node is cut:
            break
    for node in before - {cut}:
        if node.op != "get_attr" and any(user not in before for user in node.users):
            needed.append(node.name)
    return sorted(needed)


def _piece(module: fx.GraphModule, graph: fx.Graph, first: fx.Node, last: fx.Node) -> fx.GraphModule:
    """What lies between two nodes, the first left out: a module of its own that reads the first."""
    own = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {first: own.placeholder("x")}
    inside = first.op == "placeholder"
    for node in graph.nodes:
        if inside and node.op not in ("placeholder", "output", "get_attr"):
            for constant in node.all_input_nodes:
                if constant.op == "get_attr" and constant not in copied:
                    copied[constant] = own.node_copy(constant)
            copied[node] = own.node_copy(node, lambda other: copied[other])
        if node is first:
            inside = True
        if node is last:
            break
    own.output(copied[last])
    return fx.GraphModule(module, own, class_name="Piece")
