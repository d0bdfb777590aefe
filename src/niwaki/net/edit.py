"""Descriptions changed by rule: a network becomes a space, a space a smaller one or one of its networks, and a network its architecture.

The idea is PyGlove's (Peng et al., NeurIPS 2020): a search space is a program in which some values are replaced by choices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

from niwaki.net.control import Chain, Graph, Network, Node, OneOf, Repeat, Residual, Several
from niwaki.net.layer import Cat, Identity, Interleave, Layer, Subsample, Sum, Zero
from niwaki.net.operation import Operation, open_sizes, resized
from niwaki.net.place import CONTAINERS, INPUT, Placed, Where, fix, labels, place, space_of, standing
from niwaki.net.program import joints, settle
from niwaki.net.tree import called, joined, parts_of, with_parts
from niwaki.space.architecture import Architecture
from niwaki.space.choice import Choice, SpaceError, Value
from niwaki.space.size import Expr, Ref, Symbol, evaluate, largest, leaves, op, refs, smallest, substitute
from niwaki.space.space import Decision

Rule = Callable[[str, Any, Any], Any]


def edit(network: Network, rule: Rule) -> Network:
    """`network` with every value v replaced by `rule(path, v, parent)`, which returns v itself where nothing is to change.

    Values are the fields of layers (sizes, kinds, tuples), then the layers themselves: a rule sees a layer after its parts were edited, and
    `parent` as it was before. Paths are those of `place`, but a repeated body has no number.

    >>> from niwaki.net.layer import Conv
    >>> plain = Network(Chain(Conv(8), Conv(16)))
    >>> searched = edit(plain, lambda path, value, parent: Choice((3, 5, 7)) if path.endswith("kernel_size") else value)
    >>> space_of(searched).size
    9
    """
    return replace(network, body=_edited(network.body, "", network, rule))


def restrict(network: Network, options: Mapping[str, Sequence[Value]]) -> Network:
    """`network` with only these options left of the decisions named; a decision with one option left is taken, and is no choice any more.

    Other decisions keep their names, and the architectures that remain their programs. Where a repeat's copies come to differ, they are
    written out.
    """
    space = space_of(network)
    for name, left in options.items():
        decision = space[name]
        if not left or (unknown := [option for option in left if option not in decision.options]):
            given = f"has no option {unknown[0]!r}" if left else "needs at least one option"
            raise SpaceError(f"decision {name!r} {given}; its options are {decision.options}")
    kept = {decision.name: tuple(o for o in decision.options if o in options.get(decision.name, decision.options)) for decision in space}
    return replace(network, body=_Narrower(kept).layer(network.body, Where("", "", (), True), absolute=False))


def expose(network: Network, where: Callable[[Decision], bool], choices: Mapping[str, Value] | None = None) -> Network:
    """`network` with only those decisions left open that `where` selects; the others take the option in `choices`, or else their first."""
    given = dict(choices or {})
    return restrict(network, {d.name: (given.get(d.name, d.options[0]),) for d in space_of(network) if not where(d)})


def decode(network: Network, arch: Mapping[str, Value]) -> Network:
    """The architecture `arch` of `network`, as a description without choices. Layers keep their paths."""
    architecture = arch if isinstance(arch, Architecture) else space_of(network).architecture(arch)
    if architecture.space != space_of(network).hash:
        raise SpaceError(f"the architecture belongs to the space {architecture.space}, not to this network's, {space_of(network).hash}")
    return expose(network, lambda decision: False, architecture)


def encode(network: Network, plain: Network) -> Architecture:
    """The first architecture of `network`, in reading order, that is the program of `plain`, a description without choices."""
    if network.reads != plain.reads:
        given, wanted = (one.inputs or one.input_shape for one in (plain, network))
        raise SpaceError(f"the network reads inputs of {given}, the space is one of networks that read {wanted}")
    if len(space_of(plain)):
        raise SpaceError(f"the network to encode has choices itself: {', '.join(d.name for d in space_of(plain))}; decode it first")
    return _Matcher(network, plain).architecture()


def _edited(value: Any, path: str, parent: Any, rule: Rule) -> Any:
    if isinstance(value, (Layer, Node)):
        parts = [_edited(part.value, joined(path, part.label), value, rule) for part in parts_of(value)]
        value = with_parts(value, parts)
    return rule(path, value, parent)


# --- fewer options -----------------------------------------------------------------------------------------------------------


class _Narrower:
    """Writes a description again with only the options `kept` of each decision.

    absolute: choices are called "/name of the decision", so that they are the same decisions wherever they come to stand.
    """

    def __init__(self, kept: Mapping[str, tuple[Value, ...]]) -> None:
        self.kept = kept
        self.unnamed: dict[tuple[int, tuple[Value, ...]], tuple[Choice, Choice]] = {}  # what is one unnamed choice stays one

    def layer(self, layer: Layer, where: Where, *, absolute: bool) -> Layer:
        if isinstance(layer, Several):
            return self.several(layer, where, absolute=absolute)
        if isinstance(layer, OneOf):
            return self.one_of(layer, where, absolute=absolute)
        if isinstance(layer, Repeat):
            found = self.repeat(layer, where, absolute=absolute)
            return found if isinstance(found, Layer) else Chain(*found, name=layer.name)
        if isinstance(layer, Residual):
            inner = where.inside(layer.body, layer.body.name) if layer.body.name else where
            return with_parts(layer, (layer.when, self.layer(layer.body, inner, absolute=absolute)))
        if isinstance(layer, Graph):
            inside = [(node, where.inside(node.layer, label)) for label, node in layer.nodes]
            return with_parts(
                layer, (*(replace(node, layer=self.layer(node.layer, at, absolute=absolute)) for node, at in inside), layer.output)
            )
        if isinstance(layer, Operation):
            return resized(layer, lambda choice: self.size(choice, where, "size", absolute=absolute))
        return with_parts(layer, [self.size(part.value, where, part.field, absolute=absolute) for part in parts_of(layer)])

    def several(self, layer: Several, where: Where, *, absolute: bool) -> Layer:
        children: list[Layer] = []
        for child, label in zip(layer.layers, labels(layer), strict=True):
            inner = where.inside(child, label)
            if isinstance(child, Repeat) and not label:  # its copies stand in this container themselves
                found = self.repeat(child, inner, absolute=absolute)
                children += [found] if isinstance(found, Layer) else found
            else:
                children.append(self.under(child, label, inner, absolute=absolute))
        return with_parts(layer, children) if len(children) == len(layer.layers) else type(layer)(*children, name=layer.name)

    def under(self, child: Layer, label: str, where: Where, *, absolute: bool) -> Layer:
        """`child` narrowed, and called `label` if it would otherwise be called differently than before."""
        found = self.layer(child, where, absolute=absolute)
        if type(found) is type(child):
            return found
        if child.name is None and isinstance(found, CONTAINERS):  # a name makes it a block, in which other names tie
            found = self.layer(child, where, absolute=True)
        return called(found, label)

    def one_of(self, layer: OneOf, where: Where, *, absolute: bool) -> Layer:
        names = layer.labels
        by: Expr = layer.by
        left: tuple[Value, ...] = names
        if by is None or isinstance(by, Choice):
            name = where.decision(Choice(names) if by is None else by, "" if by is None else "by")
            left = self.kept[name]
            if by is not None or absolute:
                by = left[0] if len(left) == 1 else self.choice(Choice(names, f"/{name}") if by is None else by, name, absolute=absolute)
        else:
            by = self.size(by, where, "by", absolute=absolute)
            if not isinstance(by, Symbol):
                left = (names[int(by)],)
        branches = []
        for branch, label in zip(layer.branches, names, strict=True):
            if label in left:
                inner = where.inside(branch, label)
                found = self.under(branch, label, inner, absolute=absolute)
                if found.name is None and len(left) < len(names):  # its position is another now
                    found = called(self.layer(branch, inner, absolute=True) if isinstance(found, CONTAINERS) else found, label)
                branches.append(found)
        if len(left) == 1:
            return Chain(*branches, name=layer.name)
        return with_parts(layer, (by, *branches)) if len(left) == len(names) else OneOf(*branches, by=by, name=layer.name)

    def repeat(self, layer: Repeat, where: Where, *, absolute: bool) -> Layer | list[Layer]:
        """The repeat, or its copies one by one if they differ."""
        label = layer.body.name or "block"
        times = self.size(layer.times, where, "times", absolute=absolute)
        known = self.decided(times, where)
        copies = range(int(largest(self.decided(layer.times, where))))
        inner = [where.inside(layer.body, label, repeat=at) for at in copies]
        used = range(int(largest(known)))
        bodies = [self.layer(layer.body, inner[at], absolute=absolute) for at in used]
        if bodies and all(body == bodies[0] for body in bodies):
            return with_parts(layer, (times, bodies[0]))
        deeper = self.size(layer.times, where, "times", absolute=True)
        found: list[Layer] = []
        for at in used:
            body, name = self.layer(layer.body, inner[at], absolute=True), f"{label}{at}"
            optional = OneOf(Identity(name="no"), called(body, "yes"), by=op("int", op(">", deeper, at)), name=name)
            found.append(called(body, name) if at < smallest(known) else optional)
        return found

    def decided(self, times: Expr, where: Where) -> Expr:
        """`times` over decisions, to see how large it can be."""
        stands = standing(times, "times")
        if any(not isinstance(leaf, Choice) for leaf in leaves(times)):
            raise SpaceError(f"{where.path}: the depth {times!r} depends on the input's channels; its repeats cannot be written out")
        return substitute(times, lambda leaf: Ref(where.decision(leaf, stands.get(id(leaf), "times")), leaf.options))  # type: ignore[arg-type, attr-defined]

    def size(self, expr: Expr, where: Where, field: str, *, absolute: bool) -> Expr:
        if not isinstance(expr, Symbol):
            return expr
        stands = standing(expr, field)

        def leaf(symbol: Symbol) -> Expr:
            if not isinstance(symbol, Choice):
                return symbol
            return self.choice(symbol, where.decision(symbol, stands.get(id(symbol), field)), absolute=absolute)

        return substitute(expr, leaf)

    def choice(self, choice: Choice, name: str, *, absolute: bool) -> Value | Choice:
        """What is left of `choice`, which is the decision `name`."""
        kept = self.kept[name]
        if len(kept) == 1:
            return kept[0]
        if absolute:
            return Choice(kept, f"/{name}")
        if kept == choice.options:
            return choice
        return Choice(kept, choice.name) if choice.name else self.unnamed.setdefault((id(choice), kept), (choice, Choice(kept)))[1]


# --- from a network to its architecture ----------------------------------------------------------------------------------------

Tensor = int | tuple[str, Any]  # an entry of the plain network, INPUT, or ("zeros", like which tensor)


class _Matcher:
    """Goes through the placed space and the plain network side by side, deciding what it must and going back where they differ.

    What failed from a joint on is remembered with all that the rest could depend on, so that no part is searched twice.
    """

    def __init__(self, network: Network, plain: Network) -> None:
        self.placement, self.space = place(network), space_of(network)
        self.joints = joints(self.placement)
        self.entries, self.paths, self.output = _entries(plain)
        asked: dict[str, list[int]] = {}
        for at, item in enumerate(self.placement.items):
            for expr in _open_sizes(item):
                for ref in refs(expr):
                    asked.setdefault(ref.name, []).append(at)
        # the decisions taken before a joint about which items after it ask; what is decided about their existence is decided before
        self.known = {joint: tuple(name for name, items in asked.items() if min(items) < joint <= max(items)) for joint in self.joints}
        self.failed: set[tuple] = set()
        self.furthest = -1  # entry up to which there was a match
        self.offered: dict[str, None] = {}  # what the space has in its place

    def architecture(self) -> Architecture:
        taken = self.from_joint(0, {}, INPUT, 0)
        if taken is None:
            at = self.furthest
            has = f"{self.paths[at]} is {_layer_text(self.entries[at][0])}" if at < len(self.entries) else "the network ends"
            offered = " or ".join(list(self.offered)[:4]) or "other connections"
            raise SpaceError(f"the network is no member of the space: {has}, where the space has {offered}")
        return self.space.from_indices([d.options.index(taken[d.name]) if d.name in taken else 0 for d in self.space])

    def from_joint(self, at: int, taken: dict[str, Value], entering: Tensor, done: int) -> dict[str, Value] | None:
        """The decisions that make what follows item `at` match the entries from `done` on; None if nothing does."""
        if at == len(self.placement.items):
            return taken if entering == self.output and done == len(self.entries) else None
        key = (at, tuple(taken.get(name) for name in self.known[at]), entering, done)
        if key in self.failed:
            return None
        found = self.matched(at, taken, {self.joints[at]: entering}, done)
        if found is None:
            self.failed.add(key)
        return found

    def matched(self, at: int, taken: dict[str, Value], now: dict[int, Tensor], done: int) -> dict[str, Value] | None:
        """As `from_joint`, from within a segment; now: what the items before are in the plain network."""
        while True:
            item = self.placement.items[at]
            for expr in _open_sizes(item):
                if (decision := self.undecided(expr, taken)) is not None:
                    for option in decision.options if self.exists(decision, taken) else decision.options[:1]:
                        if (found := self.matched(at, {**taken, decision.name: option}, dict(now), done)) is not None:
                            return found
                    return None
                if expr is item.condition and not evaluate(expr, taken):
                    break
            else:
                layer, sources = settle(item, lambda expr: evaluate(expr, taken))
                inputs = tuple([now[source] if source >= INPUT else source for source in sources])  # further inputs are their own
                if isinstance(layer, Sum):
                    inputs = tuple([tensor for tensor in inputs if not isinstance(tensor, tuple)]) or inputs[:1]
                if layer is None or (isinstance(layer, (Sum, Cat)) and len(inputs) == 1):
                    now[at] = inputs[0]
                elif isinstance(layer, Zero):
                    now[at] = ("zeros", inputs[0])
                elif done < len(self.entries) and self.entries[done] == (layer, inputs):
                    now[at] = done
                    done += 1
                else:
                    self.note(done, layer)
                    return None
            at += 1
            if at in self.joints:
                return self.from_joint(at, taken, now[self.joints[at]], done)

    def undecided(self, expr: Expr, taken: Mapping[str, Value]) -> Decision | None:
        """A decision to take before `expr` has a value; one on whose existence another depends comes first."""
        for ref in refs(expr):
            if ref.name not in taken:
                decision = self.space[ref.name]
                return self.undecided(decision.condition, taken) or decision
        return None

    def exists(self, decision: Decision, taken: Mapping[str, Value]) -> bool:
        return bool(evaluate(decision.condition, taken))

    def note(self, done: int, layer: Layer) -> None:
        """Remembers, for the message, how far the networks were the same."""
        if done > self.furthest:
            self.furthest, self.offered = done, {}
        if done == self.furthest:
            self.offered[_layer_text(layer)] = None


def _entries(plain: Network) -> tuple[list[tuple[Layer, tuple[Tensor, ...]]], list[str], Tensor]:
    """The primitives of a network without choices and which tensors they read, their paths, and the tensor that leaves."""
    placement = fix(place(plain), {})
    now: dict[int, Tensor] = {source: source for source in placement.entering}
    entries: list[tuple[Layer, tuple[Tensor, ...]]] = []
    paths = []
    for at, item in enumerate(placement.items):
        layer, sources = settle(item, lambda size: size)
        if layer is None:
            now[at] = now[sources[0]]
        elif isinstance(layer, Zero):
            now[at] = ("zeros", now[sources[0]])
        else:
            now[at] = len(entries)
            entries.append((layer, tuple(now[source] for source in sources)))
            paths.append(item.path)
    return entries, paths, now[placement.output]


def _open_sizes(item: Placed) -> Iterator[Expr]:
    """All about an item that depends on decisions, its condition first."""
    sizes: list[Expr] = [item.condition, *open_sizes(item.layer), *item.edges]
    if isinstance(item.layer, (Subsample, Interleave)):
        sizes += [*item.input_shapes[0].spatial, *item.shape.spatial]
    return (size for size in sizes if isinstance(size, Symbol))


def _layer_text(layer: Layer) -> str:
    """`Conv(32, 3)`: the type and what differs from its defaults."""
    given = [(f, getattr(layer, f.name)) for f in fields(layer) if f.name not in ("name", "make")]
    differ = [(f, value) for f, value in given if f.default is MISSING or value != f.default]
    shown = [str(value) if f.default is MISSING else f"{f.name}={value}" for f, value in differ]
    return f"{type(layer).__name__}({', '.join(shown)})"
