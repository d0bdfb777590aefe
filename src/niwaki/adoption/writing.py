"""In-place operators, written as plain ones: a graph that nobody writes into says by its edges who reads what."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from torch import fx

from niwaki.adoption.operators import aten, name_of, overload

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
        if read_later and not (len(chain) > 1 and read_later == {chain[0]}):
            continue
        value = _plain(node, plain)
        _replace_later(written, value, order, order[node])
        if read_later:
            _replace_later(chain[0], _scattered(graph, node, value, chain), order, order[node])
        if value is not node:
            node.replace_all_uses_with(value)
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
        near = list(here.all_input_nodes) if shares_memory(here) else []
        near += [user for user in here.users if shares_memory(user) and order[user] < before]
        queue += [other for other in near if other not in found]
        found.update(near)
    return found


def shares_memory(node: fx.Node) -> bool:
    """Whether a node gives a view of what it is given, or one of several that another node gives."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return all(map(shares_memory, node.all_input_nodes))
    returns = overload(node)._schema.returns if overload(node) is not None else ()
    return any(result.alias_info is not None and not result.alias_info.is_write for result in returns)
