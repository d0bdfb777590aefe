"""The proof that a PyTorch model was read rightly: equal outputs, equal weights, and a random cut that runs, trains, exports and costs what was said.

found = examine(model, example)     # what holds and what does not, for any model
check_adoption(model, example)      # the same as a test: raises AssertionError naming the first clause that is broken
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from random import Random
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from niwaki.adoption.adopted import Adopted, read
from niwaki.adoption.axes import AdoptionError, alive_length, groups_of, positions, total
from niwaki.adoption.batch import has_rows
from niwaki.adoption.counter import counted_macs
from niwaki.adoption.describe import choices_of, describe
from niwaki.adoption.gates import gated, gates_of
from niwaki.adoption.operators import arguments, name_of
from niwaki.cost.count import count_macs
from niwaki.deploy.card import ExportError
from niwaki.deploy.export import ONNX_TOLERANCE
from niwaki.deploy.plain import Example, arguments_of, onnx_of, run_onnx, tensors_of
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.nn.build import build

TOLERANCE = 1e-5  # of the largest output: the same kernels on the same numbers
TRAINED = 1e-4  # the same in training mode, where statistics of a small batch are divided by
TRAINS_OTHERWISE = (
    "in training mode the owner's model does something else than what was read, which is its evaluation; dropout and BatchNorm alone follow "
    ".train() and .eval()"
)
MODE_NOTES = ("asks whether it is trained", "also while it is trained")  # in notes of a reading that tell of the mode
MASKED = 1e-4  # the cut network sums fewer numbers, in another order
SHARE = 0.6  # of the multiply-adds: the most that the random cut may cost
SEARCHABLE = 0.8  # of a convolutional network's convolution and linear parameters
_PRODUCTS = ("conv", "linear", "addmm", "matmul", "mm", "bmm")


@dataclass(frozen=True)
class Cut:
    """A random member of the family. counted_macs: of the module itself, by torch.utils.flop_counter, for one example. masked: how far its
    outputs are from those of the whole network when the removed units count as nothing there. trains: one step of gradient descent leaves
    finite weights. onnx_equal: None where no ONNX file was made. elementwise_macs: of those predicted, what an einsum over a single position does,
    which PyTorch multiplies element by element, and does not count."""

    keep: Mapping[str, Tensor]
    module: nn.Module
    predicted_macs: int
    counted_macs: int
    predicted_params: int
    counted_params: int
    masked: float
    trains: bool
    onnx_equal: bool | None
    why: str = ""
    elementwise_macs: int = 0


@dataclass(frozen=True)
class Examination:
    """What was found out about a model. Differences are shares of the largest output.

    differences: by batch size, of the model read from the owner's, and of the buffers that it leaves; permuted: the same with the units of every group in another order, which
    must change nothing where they are rightly coupled; described: of the model built from its description, `network` (None where it has none),
    with the owner's weights, and undescribed says why there is none or why it cannot be built; trained: the same in training mode, or None where
    that is random. same_weights: the state dict came back equal. searchable_share: of the parameters of
    convolutions and linear layers, those on an axis that may be cut. budget: multiply-adds that the cut had to keep within.
    """

    adopted: Adopted
    network: Network | None
    differences: Mapping[int, float]
    permuted: float
    described: float | None
    trained: float | None
    same_weights: bool
    searchable_share: float
    macs: int
    counted_macs: int
    budget: int
    cut: Cut
    undescribed: str = ""

    @property
    def trains_otherwise(self) -> bool:
        """Whether the owner's model is seen to do something in training mode that what was read does not."""
        return self.trained is not None and self.trained > TRAINED

    @property
    def equal_outputs(self) -> bool:
        return self.same_weights and max(*self.differences.values(), self.permuted, self.described or 0.0) <= TOLERANCE

    @property
    def least(self) -> int:
        """Multiply-adds of the smallest member."""
        options = choices_of(self.adopted).items()
        return self.adopted.cost("macs", {group: min(o for o in choice.options if isinstance(o, int)) for group, choice in options})

    @property
    def choices(self) -> int:
        return 0 if self.network is None else len(space_of(self.network).decisions)

    def to_json(self) -> dict[str, Any]:
        return {
            "equal_outputs": self.equal_outputs,
            "trained": self.trained,
            "undescribed": self.undescribed,
            "groups": len(self.adopted.groups),
            "choices": self.choices,
            "searchable_share": self.searchable_share,
            "opaque": list(self.adopted.opaque),
            "notes": list(self.adopted.notes),
            "macs": self.macs,
            "examples": self.adopted.examples,
            "cut": {
                "predicted_macs": self.cut.predicted_macs,
                "counted_macs": self.cut.counted_macs,
                "elementwise_macs": self.cut.elementwise_macs,
                "onnx_equal": self.cut.onnx_equal,
            },
        }


def check_adoption(
    model: nn.Module, example: Example, *, seed: int = 0, searchable: float = SEARCHABLE, opaque: bool = False, onnx: bool = True
) -> Examination:
    """Raises AssertionError naming the first clause that `model` breaks; gives back what was found.

    example: a tensor, a sequence of tensors, or a mapping from argument names to tensors, with the batch first. searchable: the least share of
    convolution and linear parameters that must lie in searchable groups. opaque: whether a layer may be left as it is. onnx: whether the
    cut is exported, which takes seconds.
    """
    found = examine(model, example, seed=seed, onnx=onnx)
    cut, least = found.cut, found.least
    assert found.same_weights, "the state dict comes back with the same names and values"
    for batch, difference in found.differences.items():
        assert difference <= TOLERANCE, (
            f"a batch of {batch} gets the same outputs, and leaves the same buffers; they differ by {difference:.2g}"
        )
    assert found.permuted <= TOLERANCE, f"units of a group can be listed in any order; the outputs change by {found.permuted:.2g}"
    assert not found.trains_otherwise or any(told in note for note in found.adopted.notes for told in MODE_NOTES), (
        f"in training mode it does the same, or a note says that it does not; outputs or buffers differ by {found.trained:.2g}: {TRAINS_OTHERWISE}"
    )
    assert found.macs == found.counted_macs, f"the model costs {found.counted_macs:,} multiply-adds; {found.macs:,} were predicted"
    told = "".join(f"\n  {note}" for note in found.adopted.notes)
    assert opaque or not found.adopted.opaque, (
        f"every layer is understood, or opaque=True says that some may be left; left as they are: {', '.join(found.adopted.opaque)}{told}"
    )
    assert found.searchable_share >= searchable, (
        f"at least {searchable:.0%} of the parameters of convolutions and linear layers must lie in searchable groups (searchable=...); "
        f"{found.searchable_share:.1%} do{told}"
    )
    assert not cut.why, f"the cut model runs, trains and exports: {cut.why}"
    assert cut.masked <= MASKED, f"the cut computes what the whole does without the removed units; outputs differ by {cut.masked:.2g}"
    assert cut.predicted_macs - cut.elementwise_macs == cut.counted_macs, (
        f"the cut costs {cut.counted_macs:,} multiply-adds; {cut.predicted_macs:,} were predicted"
    )
    assert cut.predicted_params == cut.counted_params, (
        f"the cut has {cut.counted_params:,} parameters; {cut.predicted_params:,} were predicted"
    )
    assert cut.counted_macs <= max(found.budget, least), (
        f"the cut costs {cut.counted_macs:,} multiply-adds; the budget was {found.budget:,}"
    )
    assert found.network is not None, f"the model is described as a network: {found.undescribed}"
    assert (found.described or 0.0) <= TOLERANCE, (
        f"built from its description, it gives the same; outputs differ by {found.described:.2g}{found.undescribed and f': {found.undescribed}'}"
    )
    return found


def examine(model: nn.Module, example: Example, *, seed: int = 0, onnx: bool = True) -> Examination:
    """Reads a copy of `model` whose BatchNorm statistics were drawn anew, and compares everything that can be compared."""
    generator = torch.Generator().manual_seed(seed)
    first = read(model, example)  # what cannot be read is refused here
    owner = first.owner  # the model's own copy, and in single precision, which only the first reading knows
    randomise_batch_norm_(owner, generator)
    adopted = read(owner, example)
    adopted = replace(adopted, notes=tuple(dict.fromkeys((*first.notes, *adopted.notes))))
    rows, axis = _rows(example, adopted), adopted.batch
    batches = (rows, rows + 2) if adopted.symbolic else (rows,)
    examples = {batch: resampled(example, batch, generator, axis=axis) for batch in batches}
    read_back = adopted.module.eval()
    same_weights = _same_weights(read_back, owner)
    buffers = [name for name, _ in owner.named_buffers() if name in owner.state_dict()]
    differences = {
        batch: _difference(_left(read_back, inputs, buffers), _left(owner, inputs, buffers)) for batch, inputs in examples.items()
    }
    order = {group.name: torch.randperm(group.units, generator=generator).tolist() for group in adopted.groups}
    inputs = examples[max(examples)]
    reordered = _difference(_run(_reordered(adopted, order), inputs), _run(owner, inputs))
    network, described, undescribed = _described(adopted, owner, inputs)
    macs = adopted.cost("macs")
    budget = int(SHARE * macs)
    return Examination(
        adopted=adopted,
        network=network,
        differences=differences,
        permuted=reordered,
        described=described,
        trained=training_difference(read_back, owner, inputs),
        same_weights=same_weights,
        searchable_share=searchable_share(adopted),
        macs=macs,
        counted_macs=_macs(read_back, adopted, example),
        budget=budget,
        cut=_examined_cut(adopted, network, random_cut(adopted, budget, seed), example, generator, onnx=onnx),
        undescribed=undescribed,
    )


# --- what the check is made of -------------------------------------------------------------------------------------------------


@torch.no_grad()
def randomise_batch_norm_(module: nn.Module, generator: torch.Generator) -> None:
    """Statistics and weights as after a training: a layer that starts as the identity hides what is wrong with it."""
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            for tensor, low, high in (
                (layer.running_mean, -0.5, 0.5), (layer.running_var, 0.5, 2.0), (layer.weight, 0.5, 1.5), (layer.bias, -0.5, 0.5),
            ):  # fmt: skip
                if tensor is not None:
                    tensor.copy_(torch.empty(tensor.shape).uniform_(low, high, generator=generator))


def resampled(example: Example, batch: int, generator: torch.Generator, *, axis: int | None = 0) -> Example:
    """An input like `example` whose numbers are drawn from those of `example`: never outside of what they may be.

    batch: how many examples lie along `axis`; where that is None, the sizes stay.
    """

    def draw(tensor: Any) -> Any:
        if not isinstance(tensor, Tensor) or not tensor.ndim:
            return tensor
        pool = tensor.detach().cpu().flatten()
        if pool.is_floating_point():
            pool = pool.float()
            if (pool == pool[0]).all():
                pool = pool[:1] + torch.rand(1024, generator=generator)  # zeros or ones would show nothing
        shape = list(tensor.shape)
        if axis is not None and has_rows(tensor, example, axis):
            shape[axis] = batch
        return pool[torch.randint(len(pool), shape, generator=generator)]

    return pytree.tree_map(draw, example)


def random_cut(adopted: Adopted, budget: int, seed: int) -> dict[str, Tensor]:
    """Units kept of every group, ascending: random ones, as many as one of the options of its choice.

    Every group gets a random share of its units, and all shares are made smaller together until the budget holds; where it holds from the
    beginning, they are as they were drawn, and where no member keeps it, there is the smallest.
    """
    rng = Random(seed)
    options = {group: sorted(o for o in choice.options if isinstance(o, int)) for group, choice in choices_of(adopted).items()}
    shares = {group: rng.uniform(0.25, 1.0) for group in options}

    def widths(scale: float) -> dict[str, int]:
        largest = {group: scale * shares[group] * sizes[-1] for group, sizes in options.items()}
        return {group: max((size for size in sizes if size <= largest[group]), default=sizes[0]) for group, sizes in options.items()}

    low, high = 0.0, 1.0
    if adopted.cost("macs", widths(high)) <= budget:
        low = high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if adopted.cost("macs", widths(middle)) <= budget else (low, middle)
    alive = widths(low)
    return {group.name: torch.tensor(sorted(rng.sample(range(group.units), alive[group.name]))) for group in adopted.groups}


def searchable_share(adopted: Adopted) -> float:
    """Share of the parameters of convolutions and linear layers that lie on an axis with units that may be cut; 1 where there are none."""
    searchable = total = 0
    for name in _product_weights(adopted.graph):
        axes = adopted.weights[name]
        fixed = cells = 1
        for axis in axes:
            cells *= sum(run.length for run in axis)
            fixed *= sum(run.length for run in axis if run.group is None)
        total, searchable = total + cells, searchable + cells - fixed
    return searchable / total if total else 1.0


def couplings(adopted: Adopted) -> dict[str, list[str]]:
    """For every group, the weights that it cuts, in the order of the state dict: what has to change together."""
    found: dict[str, list[str]] = {group.name: [] for group in adopted.groups}
    for name, axes in adopted.weights.items():
        for group in dict.fromkeys(group for axis in axes for group in groups_of(axis)):
            found[group].append(name)
    return found


def _described(adopted: Adopted, owner: nn.Module, inputs: Example) -> tuple[Network | None, float | None, str]:
    """The model's description, how far the network built from it, at the owner's widths and with the owner's weights, is from the owner, and
    why there is no description, or none that runs."""
    try:
        network, weights = describe(adopted)
    except AdoptionError as error:  # what the description cannot say; reading and cutting do without it
        return None, None, str(error)
    expected = tensors_of(_run(owner, inputs))
    try:
        built = build(network, space_of(network).architecture(_decided(adopted, adopted.whole)))
        built.load_state_dict({name: weights[name] for name in built.state_dict()})
        return network, _difference(tensors_of(_run(built.eval(), inputs)), expected), ""
    except Exception as error:  # whatever a wrong description brings about
        return network, float("inf"), f"{type(error).__name__}: {error}"


def _decided(adopted: Adopted, alive: Mapping[str, int]) -> dict[str, int]:
    """Decisions of the description for `alive` units of each group."""
    return {str(choice.name).lstrip("/"): alive[group] for group, choice in choices_of(adopted).items()}


def _member(adopted: Adopted, network: Network, keep: Mapping[str, Tensor], module: nn.Module, inputs: Example) -> str:
    """What is wrong with the member of the described family that has the widths of `keep` and the weights of `module`, the cut; or nothing."""
    alive = {name: len(units) for name, units in keep.items()}
    arch = space_of(network).architecture(_decided(adopted, alive))
    if (predicted := count_macs(network)(arch)) != adopted.cost("macs", alive):
        return f"the description predicts {predicted:,} multiply-adds, the model that was read {adopted.cost('macs', alive):,}"
    built = build(network, arch)
    tensors = {**dict(module.named_buffers(remove_duplicate=False)), **module.state_dict()}  # tables outside the state dict, too
    built.load_state_dict({name: tensors[name] for name in built.state_dict()})
    difference = _difference(tensors_of(_run(built.eval(), inputs)), tensors_of(_run(module, inputs)))
    return "" if difference <= TOLERANCE else f"built from the description with the same weights, its outputs differ by {difference:.2g}"


def _examined_cut(
    adopted: Adopted, network: Network | None, keep: Mapping[str, Tensor], example: Example, generator: torch.Generator, *, onnx: bool
) -> Cut:
    alive = {name: len(units) for name, units in keep.items()}
    module = adopted.cut(keep).eval()
    counted, why, masked, trains, onnx_equal = 0, "", float("inf"), False, None
    rows, axis = _rows(example, adopted), adopted.batch
    inputs = [resampled(example, rows + more, generator, axis=axis) for more in (2, 1)]
    try:
        counted = _macs(module, adopted, example)
        masked = max(_difference(_run(module, given), _run(_masked(adopted, keep), given)) for given in inputs)
        why = _member(adopted, network, keep, module, inputs[0]) if network is not None else ""
        trains = _trains(module, inputs[0])
        if not trains:
            why = why or "a weight gets no finite gradient"
        if onnx:
            onnx_equal = _onnx_is_equal(module, inputs, axis=axis)
            if not onnx_equal:
                why = why or "ONNX Runtime gives other outputs"
    except ExportError as error:
        onnx_equal, why = False, str(error)
    except Exception as error:  # whatever a wrong cut brings about
        why = f"{type(error).__name__}: {error}"
    return Cut(
        keep=keep,
        module=module,
        predicted_macs=adopted.cost("macs", alive),
        counted_macs=counted,
        predicted_params=adopted.cost("params", alive),
        counted_params=sum(parameter.numel() for parameter in module.parameters()),
        masked=masked,
        trains=trains,
        onnx_equal=onnx_equal,
        why=why,
        elementwise_macs=_elementwise_macs(adopted, {**adopted.whole, **alive}),
    )


def _elementwise_macs(adopted: Adopted, alive: Mapping[str, int]) -> int:
    """Multiply-adds of einsums that sum over axes of a single position each: experts, say, of which one is left."""
    found = 0
    for node in adopted.graph.nodes:
        if name_of(node) != "einsum" or node.name not in adopted.products:
            continue
        left, _, out = arguments(node)["equation"].replace(" ", "").partition("->")
        parts, operands = left.split(","), arguments(node)["tensors"]
        axes = [dict(zip(part, adopted.activations.get(each.name, ()), strict=False)) for part, each in zip(parts, operands, strict=True)]
        summed = [label for label in set(parts[0]).intersection(*parts[1:]) if label not in out and label in axes[0]]
        if len(parts) == 2 and out and summed and all(alive_length(axes[0][label], alive) == 1 for label in summed):
            found += total(adopted.products[node.name], alive)
    return found


@torch.no_grad()
def _reordered(adopted: Adopted, order: Mapping[str, Sequence[int]]) -> nn.Module:
    """The whole network with the units of every group in another order, on every axis of every weight that is said to carry them."""
    module = copy.deepcopy(adopted.module)
    for name, axes in adopted.weights.items():
        tensor = attrgetter(name)(module)
        for dim, axis in enumerate(axes):
            tensor.copy_(tensor.index_select(dim, torch.tensor(positions(axis, order))))
    return module


@torch.no_grad()
def _masked(adopted: Adopted, keep: Mapping[str, Tensor]) -> nn.Module:
    """The whole network, every weight of the removed units being zero: nothing reads what they give. Where the network averages over channels,
    which zeros would enter, or sums over them without a weight of theirs (y.exp().sum(1)), they are left out by gates."""
    kept = {name: units.tolist() for name, units in keep.items()}
    if adopted.averages or not _sums_by_weights(adopted):
        return gated(adopted, gates_of(adopted, kept)).eval()
    module = copy.deepcopy(adopted.module)
    for name, axes in adopted.weights.items():
        tensor = attrgetter(name)(module)
        for dim, axis in enumerate(axes):
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone[positions(axis, kept)] = False
            tensor.index_fill_(dim, gone.nonzero().flatten(), 0)
    return module


def _sums_by_weights(adopted: Adopted) -> bool:
    """Whether whatever sums over channels that may be cut multiplies each of them with a weight of the owner's first."""
    nodes = {node.name: node for node in adopted.graph.nodes}
    for gate in adopted.meetings:
        weights = [str(value.target) for value in nodes[gate.reader].all_input_nodes if value.op == "get_attr"]
        carried = {group for name in weights for axis in adopted.weights[name] for group in groups_of(axis)}
        if not carried.issuperset(groups_of(adopted.activations[gate.value][gate.axis])):
            return False
    return True


def _trains(module: nn.Module, inputs: Example) -> bool:
    """Whether one step of gradient descent, in training mode, reaches weights and leaves all of them finite."""
    module = copy.deepcopy(module).train()
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    positional, named = arguments_of(inputs)
    outputs = [tensor for tensor in tensors_of(module(*positional, **named)) if tensor.requires_grad]
    if not outputs:
        return not trainable
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    reached = [parameter for parameter in trainable if parameter.grad is not None]
    torch.optim.SGD(trainable, lr=1e-3).step()
    return bool(reached) and all(bool(torch.isfinite(parameter).all()) for parameter in trainable)


def training_difference(module: nn.Module, owner: nn.Module, inputs: Example) -> float | None:
    """The difference of outputs, and of buffers afterwards, in training mode, as a share of the largest number. None where the owner's outputs
    are random there, and those of `module` other ones from the same seed; or where it has none: BatchNorm refuses a batch of one."""

    stored = list(owner.state_dict())

    def trained(given: nn.Module, seed: int) -> Any:
        given = copy.deepcopy(given).train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            outputs, state = _outputs(given, inputs), given.state_dict()
        return [outputs, [state[name] for name in stored]]  # a copied GraphModule stores more: all of its buffers become persistent

    try:
        first = trained(owner, 0)
        difference = _difference(trained(module, 0), first)
        return difference if difference <= TRAINED or not _difference(trained(owner, 1), first) else None
    except Exception:  # the owner's code
        return None


def _onnx_is_equal(module: nn.Module, inputs: Sequence[Example], *, axis: int | None) -> bool:
    content = onnx_of(module, inputs[0], batch=axis)
    return all(
        _difference([torch.from_numpy(array) for array in run_onnx(content, given)], tensors_of(_run(module, given))) <= ONNX_TOLERANCE
        for given in inputs
    )


def _macs(module: nn.Module, adopted: Adopted, example: Example) -> int:
    """Multiply-adds counted while the module runs: for one example, or for all of them where their number cannot be changed."""
    positional, named = arguments_of(resampled(example, 1, torch.Generator(), axis=adopted.batch) if adopted.symbolic else example)
    return counted_macs(copy.deepcopy(module).eval(), *positional, **named)


@torch.no_grad()
def _outputs(module: nn.Module, example: Example) -> Any:
    positional, named = arguments_of(copy.deepcopy(example))  # a model may write to its input
    return module(*positional, **named)


def _run(module: nn.Module, example: Example) -> Any:
    """What a module gives; its buffers, where it counts its calls for one, are afterwards what they were."""
    return _left(module, example, ())[0]


def _left(module: nn.Module, example: Example, buffers: Sequence[str]) -> list[Any]:
    """What a module gives, and what `buffers` are then, before they become again what they were."""
    tables = [part._buffers for part in module.modules()]
    before = [(table, name, tensor, tensor.clone()) for table in tables for name, tensor in table.items() if tensor is not None]
    outputs = _outputs(module, example)
    found = dict(module.named_buffers())
    left = [found[name].clone() if name in found else None for name in buffers]
    for table, name, tensor, values in before:
        table[name] = tensor
        if not torch.equal(tensor, values):
            tensor.copy_(values)
    return [outputs, left]


def _difference(found: Any, expected: Any) -> float:
    """Largest difference of two structures of tensors, as a share of the largest number in each; infinite where they are not alike."""
    (ours, shape), (theirs, wanted) = pytree.tree_flatten(found), pytree.tree_flatten(expected)
    if shape != wanted:
        return float("inf")
    worst = 0.0
    for one, other in zip(ours, theirs, strict=True):
        if not isinstance(other, Tensor):
            worst = worst if one == other else float("inf")
        elif one.shape != other.shape or one.dtype != other.dtype:
            return float("inf")
        elif other.numel():
            one, other = (torch.view_as_real(each) if each.is_complex() else each for each in (one, other))
            finite = torch.isfinite(other)
            if not torch.equal(finite, torch.isfinite(one)):
                return float("inf")
            one, other = (torch.where(finite, value, 0).double() for value in (one, other))
            worst = max(worst, float((one - other).abs().max() / (other.abs().max() or 1.0)))
    return worst


def _same_weights(module: nn.Module, owner: nn.Module) -> bool:
    ours, theirs = module.state_dict(), owner.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def _product_weights(graph: fx.Graph) -> list[str]:
    """Names of the weights that convolutions and linear layers multiply by, each once."""
    found = []
    for node in graph.nodes:
        kind = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        if node.op == "call_function" and kind.startswith(_PRODUCTS):
            found += [str(given.target) for given in node.args[1:2] if isinstance(given, fx.Node) and given.op == "get_attr"]
    return list(dict.fromkeys(found))


def _rows(example: Example, adopted: Adopted) -> int:
    """How many examples there are in the example; 1 where none can be told apart."""
    axis = adopted.batch
    return (
        adopted.examples if axis is None else next(tensor.shape[axis] for tensor in tensors_of(example) if has_rows(tensor, example, axis))
    )
