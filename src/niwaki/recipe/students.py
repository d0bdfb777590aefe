"""What may stand in place of one piece of a teacher: smaller descriptions that read and give the same shapes, and sparse copies of it.

The candidate set of student search (Shao et al. 2020, arXiv:2010.01189; which kinds and how small is ours): all widths scaled, with a 1x1
convolution back to the width that follows; inner widths scaled; fewer layers; depthwise-separable; low rank; magnitude-sparse. The last
activation is always the teacher's: behind a ReLU no student can reach a negative number, and without one it should not have to avoid them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from niwaki.adoption import AdoptionError, read
from niwaki.cost.count import count_macs
from niwaki.gradient.landing import magnitudes
from niwaki.net.block import conv_bn_act
from niwaki.net.control import Chain, Network, Repeat
from niwaki.net.edit import edit
from niwaki.net.layer import Activation, BatchNorm, Conv, Flatten, GlobalPool, Layer, Linear
from niwaki.net.place import labels, place, space_of
from niwaki.net.text import network_hash
from niwaki.net.tree import called, layers_in
from niwaki.nn.build import build
from niwaki.space.choice import SpaceError
from niwaki.space.size import Symbol, in_channels, round_to
from niwaki.train.neighbourhood import NeighbourhoodError
from niwaki.train.pieces import pieces_of

KEEP = "keep"  # the teacher's own piece, with its weights
WIDTHS = (0.75, 0.5, 0.25)
RANK = 0.25


@dataclass(frozen=True, eq=False)
class Candidate:
    """One stand-in. layer: its description; or module: where it starts from, when it is not described. sparsity: share of the weights that
    are 0, the smallest by magnitude, and stay 0 (0: dense)."""

    name: str
    layer: Layer | None = None
    module: nn.Module | None = None
    sparsity: float = 0.0

    def __post_init__(self) -> None:
        if (self.layer is None) == (self.module is None):
            raise NeighbourhoodError(f"candidate {self.name!r} has either a description or a module")
        if not 0 <= self.sparsity < 1:
            raise NeighbourhoodError(f"candidate {self.name!r}: sparsity={self.sparsity} is a share, from 0 to below 1")


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """One piece of the teacher, and what may stand in its place. Shapes are of one example; layer: of the teacher, where it is described."""

    name: str
    teacher: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    layer: Layer | None = None

    def __post_init__(self) -> None:
        names = [candidate.name for candidate in self.candidates]
        if len(set(names)) < len(names) or not names:
            raise NeighbourhoodError(f"the candidates of {self.name} need different names, and there is at least one: {', '.join(names)}")
        for candidate in self.candidates:
            if candidate.layer is not None and (shape := output_shape(self.network(candidate.layer))) != self.output_shape:
                raise NeighbourhoodError(
                    f"candidate {candidate.name!r} of {self.name} gives {_sizes(shape)}, the teacher's piece {_sizes(self.output_shape)}"
                )
            if candidate.module is not None and candidate.module is not self.teacher:
                _check_fits(candidate.name, candidate.module, self)

    def network(self, layer: Layer) -> Network:
        """`layer` alone, under the name that it has in the whole network."""
        return Network(Chain(called(layer, self.name)), self.input_shape)

    def __getitem__(self, name: str) -> Candidate:
        known = {candidate.name: candidate for candidate in self.candidates}
        if name not in known:
            raise NeighbourhoodError(f"{self.name} has no candidate {name!r}; it has {', '.join(known)}")
        return known[name]


@torch.no_grad()
def _check_fits(name: str, module: nn.Module, place: Neighbourhood) -> None:
    """Refuses a module that does not take what the piece takes, or gives something else."""
    try:
        given = copy.deepcopy(module).eval()(torch.zeros(2, *place.input_shape))
    except (RuntimeError, ValueError, TypeError) as error:
        raise NeighbourhoodError(f"candidate {name!r} of {place.name} does not take {_sizes(place.input_shape)}: {error}") from error
    shape = tuple(given.shape[1:]) if isinstance(given, torch.Tensor) else None
    if shape != place.output_shape:
        told = _sizes(shape) if shape is not None else type(given).__name__
        raise NeighbourhoodError(f"candidate {name!r} of {place.name} gives {told}, the teacher's piece {_sizes(place.output_shape)}")


Variants = Callable[[Layer, tuple[int, ...]], Sequence[Candidate]]


def described(network: Network, teacher: nn.Module, *, variants: Variants | None = None, blocks: bool = False) -> tuple[Neighbourhood, ...]:
    """The neighbourhoods of a teacher that was built from `network`: its stages, the head last, which is kept as it is.

    network: a plain description, a Chain; teacher: of `build(network)`, or of the same layers in the same order. variants: stand-ins for a
    layer that reads a shape, `variants_of` if left out; the teacher's own piece is always one. blocks: the parts of a stage are taken apart.
    """
    if len(space_of(network)):
        raise NeighbourhoodError(f"the teacher is one network; this one has {len(space_of(network))} choices, which `decode` takes")
    layers = list(_parts(network.body, blocks=blocks))
    if len(layers) < 2:
        raise NeighbourhoodError("a teacher in pieces is a Chain of at least two layers; this description is in one piece")
    head = next((at for at, (_, layer) in enumerate(layers) if _ends_space(layer)), len(layers))
    state = iter(teacher.state_dict().items())
    found, shape = [], network.input_shape
    for at, (name, layer) in enumerate(layers):
        own = Network(Chain(called(layer, name)), shape)
        piece = build(own)
        piece.load_state_dict({key: _next(state, key, tensor.shape) for key, tensor in piece.state_dict().items()})
        out = output_shape(own)
        others = (variants or variants_of)(layer, shape) if at < head else ()
        keep = Candidate(KEEP, layer)
        found.append(Neighbourhood(name, piece.eval(), shape, out, (keep, *others), layer))
        shape = out
    if (left := next(state, None)) is not None:
        raise NeighbourhoodError(f"the teacher's module has {left[0]}, which the description does not")
    return tuple(found)


def undescribed(
    teacher: nn.Module, cuts: Sequence[str], shapes: Sequence[tuple[int, ...]], candidates: Sequence[Sequence[Candidate]]
) -> tuple[Neighbourhood, ...]:
    """The neighbourhoods of a module that is cut after `cuts` (see `train/pieces.py`).

    shapes: of its boundaries for one example, input and output included; candidates: of each piece, beside the teacher's own.
    """
    pieces = pieces_of(teacher, cuts)
    if len(shapes) != len(pieces) + 1 or len(candidates) != len(pieces):
        raise NeighbourhoodError(
            f"{len(pieces)} pieces have {len(pieces) + 1} shapes and {len(pieces)} sets of candidates; given are {len(shapes)} and {len(candidates)}"
        )
    return tuple(
        Neighbourhood(f"piece{at}", piece, shapes[at], shapes[at + 1], (Candidate(KEEP, module=piece), *candidates[at]))
        for at, piece in enumerate(pieces)
    )


def cut_candidates(piece: nn.Module, input_shape: Sequence[int], *, widths: Sequence[float] = WIDTHS) -> list[Candidate]:
    """Stand-ins for a piece of any module: the piece itself with fewer of the channels that nothing outside sees (`adoption.read`), those of the
    largest magnitude; their training starts from these weights. Empty where the piece has no such channels, or cannot be read."""
    try:
        adopted = read(piece, torch.zeros(2, *input_shape))
    except AdoptionError:
        return []
    largest = {group: norms for group, norms in magnitudes(adopted).items() if len(norms) > 1}
    found, known = list[Candidate](), {adopted.cost("macs")}
    for ratio in widths:
        keep = {
            name: norms.argsort(descending=True)[: max(adopted.least[name], round(ratio * len(norms)))].sort().values.tolist()
            for name, norms in largest.items()
        }
        macs = adopted.cost("macs", {name: len(units) for name, units in keep.items()})
        if macs not in known:
            known.add(macs)
            found.append(Candidate(f"cut-{ratio:g}", module=adopted.cut(keep)))
    return found


def output_shape(network: Network) -> tuple[int, ...]:
    """(C, H, W), or (features,), that a plain network gives for one example."""
    placement = place(network)
    shape = placement.shape_of(placement.output)
    return (sum(shape.channels), *shape.spatial)


# ---------------------------------------------------------------- stand-ins


def variants_of(
    layer: Layer, shape: tuple[int, ...], *, widths: Sequence[float] = WIDTHS, rank: float = RANK, sparsity: float = 0.0
) -> list[Candidate]:
    """Stand-ins for a described layer that reads `shape`, from large to small; only those that need fewer multiply-adds than it, each once."""
    makers: list[tuple[str, Callable[[], Layer]]] = []
    makers += [(f"width-{ratio:g}", partial(scaled, layer, shape, ratio)) for ratio in widths]
    makers += [(f"inner-{ratio:g}", partial(inner_scaled, layer, shape, ratio)) for ratio in widths]
    makers += [("shallow", partial(shallow, layer, shape)), ("separable", partial(separable, layer, shape))]
    makers += [(f"low-rank-{rank:g}", partial(low_rank, layer, shape, rank))]
    whole = _alone(layer, shape)
    most, wanted = _macs(whole), output_shape(whole)
    known, found = {network_hash(whole)}, list[Candidate]()
    for name, make in makers:
        with suppress(SpaceError):  # a kind that this layer has no form of
            network = _alone(make(), shape)
            if output_shape(network) == wanted and _macs(network) < most and network_hash(network) not in known:
                known.add(network_hash(network))
                found.append(Candidate(name, network.body))
    found.sort(key=lambda one: -_macs(_alone(one.layer, shape)) if one.layer is not None else 0)
    return found + ([Candidate(f"sparse-{sparsity:g}", layer, sparsity=sparsity)] if sparsity else [])


def scaled(layer: Layer, shape: tuple[int, ...], ratio: float) -> Layer:
    """All widths times `ratio`, in multiples of 4; then a 1x1 convolution, BatchNorm and the last activation, back to the teacher's width."""
    out = output_shape(_alone(layer, shape))
    thin = edit(_alone(layer, shape), lambda path, value, parent: _times(value, ratio) if _is_width(path, parent) else value).body
    last = last_activation(layer, shape)
    return Chain(*(thin.layers if isinstance(thin, Chain) else [thin]), conv_bn_act(out[0], 1, activation=last, name="adapter"))


def inner_scaled(layer: Layer, shape: tuple[int, ...], ratio: float) -> Layer:
    """The widths that nothing outside sees, times `ratio`: those whose change leaves the shape, and every sum, as it was."""
    network = _alone(layer, shape)
    free = [path for path in _width_paths(network) if _is_free(network, path)]
    if not free:
        raise SpaceError("no width of this layer is seen by itself alone")
    return edit(network, lambda path, value, parent: _times(value, ratio) if path in free else value).body


def shallow(layer: Layer, shape: tuple[int, ...]) -> Layer:
    """The layer without the last of its parts that changes no shape."""
    parts = list(layer.layers) if isinstance(layer, Chain) else [layer]
    for at in reversed(range(len(parts))):
        before = Network(Chain(*parts[:at]), shape) if at else None
        entering = output_shape(before) if before is not None else shape
        if (
            any(isinstance(inner, Conv) for inner in layers_in(parts[at]))
            and output_shape(_alone(parts[at], entering)) == entering
            and len(parts) > 1
        ):
            return Chain(*parts[:at], *parts[at + 1 :])
    raise SpaceError("no part of this layer can be left out")


def separable(layer: Layer, shape: tuple[int, ...]) -> Layer:
    """Every dense convolution of more than one pixel as a depthwise one, BatchNorm, and a 1x1 convolution (MobileNet)."""

    def rule(path: str, value: Any, parent: Any) -> Any:
        if not _is_dense(value):
            return value
        spatial = Conv(in_channels, value.kernel_size, value.stride, in_channels, value.dilation, value.padding, name="dw")
        return Chain(spatial, BatchNorm(name="dw_bn"), Conv(value.out_channels, 1, bias=value.bias, name="pw"), name=value.name)

    return edit(_alone(layer, shape), rule).body


def low_rank(layer: Layer, shape: tuple[int, ...], ratio: float) -> Layer:
    """Every dense convolution of more than one pixel through fewer channels: to `ratio` of its output, then 1x1, with nothing between."""

    def rule(path: str, value: Any, parent: Any) -> Any:
        if not _is_dense(value) or isinstance(value.out_channels, Symbol):
            return value
        narrow = Conv(_times(value.out_channels, ratio), value.kernel_size, value.stride, 1, value.dilation, value.padding, name="down")
        return Chain(narrow, Conv(value.out_channels, 1, bias=value.bias, name="up"), name=value.name)

    return edit(_alone(layer, shape), rule).body


def stand_ins(
    input_shape: tuple[int, ...], output_shape: tuple[int, ...], *, positive: bool, widths: Sequence[float] = WIDTHS
) -> list[Candidate]:
    """Stand-ins for a piece that is known by its shapes alone, of maps: two convolutions and a 1x1 one, of several widths, and a separable one.

    positive: whether what the piece gives is never negative; it then ends with a ReLU. Empty where the shapes are not of maps.
    """
    if len(input_shape) != 3 or len(output_shape) != 3:
        return []
    strides = {max(1, round(before / after)) for before, after in zip(input_shape[1:], output_shape[1:], strict=True)}
    if len(strides) != 1:
        return []
    (stride,) = strides
    last = "relu" if positive else None
    out, found = output_shape[0], list[Candidate]()
    for ratio in widths:
        middle = _times(max(out, input_shape[0]), ratio)
        body: list[Layer] = [
            conv_bn_act(middle, 3, stride=stride, name="conv1"),
            conv_bn_act(middle, 3, name="conv2"),
            conv_bn_act(out, 1, activation=last, name="project"),
        ]
        found.append(Candidate(f"width-{ratio:g}", Chain(*body)))
    spatial = [Conv(in_channels, 3, stride, in_channels, name="dw"), BatchNorm(name="dw_bn"), Activation(name="act")]
    found.append(Candidate("separable", Chain(*spatial, conv_bn_act(out, 1, activation=last, name="project"))))
    return [one for one in found if one.layer is not None and _gives(one.layer, input_shape) == output_shape]


def last_activation(layer: Layer, shape: tuple[int, ...]) -> str | None:
    """The activation that a layer ends with; None, where it ends with something else, as a residual without one does."""
    placement = place(_alone(layer, shape))
    last = placement.items[placement.output].layer
    return str(last.kind) if isinstance(last, Activation) else None


# ---------------------------------------------------------------- inside


def _parts(layer: Layer, *, blocks: bool) -> Iterator[tuple[str, Layer]]:
    """The layers of a chain, with names unlike each other; with `blocks`, also those of the chains in it, and every repeat."""
    found: list[tuple[str, Layer]] = []

    def walk(name: str, one: Layer, depth: int) -> None:
        if isinstance(one, Chain) and (depth == 0 or (blocks and not _ends_space(one) and not _is_unit(one))):
            for label, child in zip(labels(one), one.layers, strict=True):
                walk("_".join(filter(None, (name, label))), child, depth + 1)
        elif isinstance(one, Repeat) and isinstance(one.times, int) and blocks:
            for number in range(one.times):
                walk(f"{name or one.body.name or 'block'}{number}", one.body, depth + 1)
        else:
            found.append((name or type(one).__name__.lower(), one))

    walk("", layer, 0)
    for at in reversed(range(1, len(found))):  # what has nothing to learn belongs to what stands before it
        if not _ends_space(found[at][1]) and not any(isinstance(inner, Conv) for inner in layers_in(found[at][1])):
            (name, before), (_, after) = found[at - 1 : at + 1]
            found[at - 1 : at + 1] = [(name, Chain(before, after))]
    seen: dict[str, int] = {}
    for name, one in found:
        seen[name] = seen.get(name, -1) + 1
        yield (f"{name}_{seen[name]}" if seen[name] else name), one


def _is_unit(layer: Chain) -> bool:
    """A chain with a convolution of its own, such as an inverted bottleneck: it is not taken apart."""
    return any(isinstance(child, Conv) for child in layer.layers)


def _ends_space(layer: Layer) -> bool:
    return any(isinstance(inner, (GlobalPool, Flatten, Linear)) for inner in layers_in(layer))


def _next(state: Iterator[tuple[str, Any]], key: str, shape: Any) -> Any:
    name, tensor = next(state, ("nothing more", None))
    if tensor is None or tensor.shape != shape:
        given = "ends there" if tensor is None else f"has {name} of {_sizes(tensor.shape)}"
        raise NeighbourhoodError(f"the description has {key} of {_sizes(shape)}, where the teacher's module {given}")
    return tensor


def _alone(layer: Layer, shape: tuple[int, ...]) -> Network:
    return Network(layer if isinstance(layer, Chain) else Chain(layer), shape)


def _gives(layer: Layer, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    try:
        return output_shape(_alone(layer, shape))
    except SpaceError:
        return None


def _macs(network: Network) -> int:
    return count_macs(network)(space_of(network).architecture({}))


def _times(width: Any, ratio: float) -> Any:
    return round_to(width * ratio, 4)


def _is_width(path: str, parent: Any) -> bool:
    """Whether a value is a width of its own: not that of a depthwise convolution, which follows its input."""
    if not isinstance(parent, Conv) or not path.endswith("out_channels"):
        return False
    return parent.out_channels is not in_channels


def _is_dense(value: Any) -> bool:
    return (
        isinstance(value, Conv)
        and not isinstance(value.groups, Symbol)
        and value.groups == 1
        and not isinstance(value.kernel_size, Symbol)
        and value.kernel_size > 1
    )


def _width_paths(network: Network) -> list[str]:
    found: list[str] = []

    def rule(path: str, value: Any, parent: Any) -> Any:
        if _is_width(path, parent):
            found.append(path)
        return value

    edit(network, rule)
    return found


def _is_free(network: Network, path: str) -> bool:
    """Whether half the width at `path` changes neither the shape of what comes out, nor which sums there are."""
    try:
        other = edit(network, lambda at, value, parent: _times(value, 0.5) if at == path else value)
        return output_shape(other) == output_shape(network) and _kinds(other) == _kinds(network)
    except SpaceError:
        return False


def _kinds(network: Network) -> list[type]:
    return [type(item.layer) for item in place(network).items]


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
