"""In-place operators, written as plain ones: a graph that nobody writes into says by its edges who reads what."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from niwaki.adoption.operators import arguments, aten, name_of, overload

SCATTERS: Mapping[Any, Any] = {aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default}
RESHAPES = ("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "ravel")


def without_writing_(graph: fx.Graph) -> None:
    """Replace in-place operators, and with them assignments to parts of a tensor (`y[:, :2] = x`, which becomes a scatter).

    What stays: writing into a weight or buffer, whose state is to change, and into memory that several tensors of other shapes look into.
    """
    for node in list(graph.nodes):
        written = node.args[0] if node.args else None
        plain = _plain_form(node)
        if plain is None or not isinstance(written, fx.Node):
            continue
        order = {each: number for number, each in enumerate(graph.nodes)}
        shared = _in_the_same_memory(written, order, order[node])
        if any(each.op == "get_attr" for each in shared):
            continue
        read_later = {each for each in shared - {written} if any(order[user] > order[node] for user in each.users)}
        chain = _views(written)
        if not read_later <= set(chain):
            continue
        value = _plain(node, plain)
        if read_later:
            whole = _scattered(graph, node, value, chain)
            for old, new in zip(chain, [whole, *_viewed_again(graph, whole, chain)], strict=True):
                _replace_later(old, new, order, order[node])
                value = new
        else:
            _replace_later(written, value, order, order[node])
        _replace_later(node, value, order, order[node])
        if node.target is not plain:
            graph.erase_node(node)


def _plain_form(node: fx.Node) -> Any:
    """`relu` for `relu_`."""
    target = overload(node)
    if target is None or not target._schema.is_mutable:
        return None
    name = target.overloadpacket.__name__
    packet = getattr(aten, name[:-1], None) if name.endswith("_") and target.namespace == "aten" else None
    return getattr(packet, target._overloadname, None) if packet is not None else None


def _plain(node: fx.Node, plain: Any) -> fx.Node:
    """What a node writes, as a value: a copy of a tensor of the same shape and type is that tensor."""
    if plain is aten.copy.default:
        into, source = (each.meta["val"] for each in node.all_input_nodes[:2])
        if into.shape == source.shape and into.dtype == source.dtype:
            return node.all_input_nodes[1]
    node.target = plain
    return node


def _replace_later(old: fx.Node, new: fx.Node, order: dict[fx.Node, int], after: int) -> None:
    for user in list(old.users):
        if order.get(user, -1) > after:
            user.replace_input_with(old, new)


def _scattered(graph: fx.Graph, node: fx.Node, value: fx.Node, chain: Sequence[fx.Node]) -> fx.Node:
    """The whole, after `node` wrote `value` to a view: put back into what that is a view of, and this into the next, up to the whole."""
    place = node
    for view, whole in zip(chain[:0:-1], chain[-2::-1], strict=True):
        with graph.inserting_after(place):
            if view.target in SCATTERS:
                place = graph.call_function(SCATTERS[view.target], (whole, value, *view.args[1:]))
            else:
                place = graph.call_function(aten.reshape_as.default, (value, whole))
        place.meta = {**node.meta, "val": whole.meta["val"]}
        value = place
    return value


def _viewed_again(graph: fx.Graph, whole: fx.Node, chain: Sequence[fx.Node]) -> list[fx.Node]:
    """The same views of the new whole as were taken of the old one: what is written to them next is to reach the whole again."""
    views: list[fx.Node] = []
    for view, old in zip(chain[1:], chain, strict=False):
        new = views[-1] if views else whole
        with graph.inserting_after(new):
            views.append(graph.node_copy(view, lambda each, old=old, new=new: new if each is old else each))  # type: ignore[misc]
    return views


def _views(node: fx.Node) -> list[fx.Node]:
    """The tensor that a node is a view of, by slices, selections and reshapes alone, the views between, and the node; or the node alone."""
    chain = [node]
    while chain[0].target in SCATTERS or name_of(chain[0]) in RESHAPES:
        chain.insert(0, chain[0].all_input_nodes[0])
    return [node] if shares_memory(chain[0]) else chain


def _in_the_same_memory(node: fx.Node, order: dict[fx.Node, int], before: int) -> set[fx.Node]:
    """A tensor, what it is a view of, and all views of those that are made before a point of the graph."""
    found, queue = {node}, [node]
    while queue:
        here = queue.pop()
        near = [*aliased(here), *(user for user in here.users if order[user] < before and here in aliased(user))]
        queue += [other for other in near if other not in found]
        found.update(near)
    return found


def shares_memory(node: fx.Node) -> bool:
    """Whether a node gives a view of what it is given, one of several that another node gives, or what it wrote into."""
    return bool(aliased(node))


def aliased(node: fx.Node) -> list[fx.Node]:
    """Inputs in whose memory the result of a node lies: what it is a view of, or wrote into and gives back."""
    if node.op != "call_function":
        return []
    if node.target is operator.getitem:
        return [whole for whole in node.all_input_nodes if shares_memory(whole)]
    target = overload(node)
    if target is None or all(result.alias_info is None for result in target._schema.returns):
        return []
    shared = [argument.name for argument in target._schema.arguments if argument.alias_info is not None]
    given = arguments(node)
    return [each for name in shared for each in pytree.tree_leaves(given[name]) if isinstance(each, fx.Node)]
