"""Structured multi-hashing: all weights of a network as one matrix product of a few variables (Eban et al., CVPR 2020, arXiv 1911.11177).

hashed = compress(module, fraction=0.25)      # or params=50_000: all that is stored then
trained = train(hashed, task, recipe, indices)
plain = materialise(trained)                  # the module again, every weight written out: what is exported
save_compressed(trained, "model.smh.safetensors")

What shrinks is what is stored, and the optimizer's state; multiply-adds, latency and the memory of the written-out network do not. `sizes`
tells the two apart. Deviations from the paper: a layer starts with the spread that its own initialisation gave it, not with a formula's
(`fan_out` is the formula); and its scale is divided by the root mean square that the pool happens to give to the layer, which at the paper's
800 products is 1 and at a rank of ten is not. The mapping is the paper's plain sequence; a pool always has room for all weights, so that the
code's cyclic and padded index stores are not needed.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from niwaki.deploy.weight_pool import STRUCTURED, Hash, HashingError, Kronecker, Pool, SumProduct
from niwaki.store.files import atomic_write

FORMAT = "niwaki.multi_hash"
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)  # they fold away, or are small and delicate


# ---------------------------------------------------------------- which tensors, how they start, what is done to them

Which = Callable[[str, nn.Module, nn.Parameter], bool]  # (name, the module that owns it, the parameter)
Scale = Callable[[nn.Module, Tensor], float]
Modify = Callable[[Tensor], Tensor]
Draw = Callable[[Sequence[int], float, torch.Generator], Tensor]


def weights(name: str, owner: nn.Module, parameter: nn.Parameter) -> bool:
    """Kernels of convolutions and matrices: whatever has two axes or more and is not a normalisation's."""
    return parameter.ndim > 1 and not isinstance(owner, NORMS)


def weights_and_biases(name: str, owner: nn.Module, parameter: nn.Parameter) -> bool:
    """With the biases of convolutions and linear layers."""
    return weights(name, owner, parameter) or (name.endswith("bias") and isinstance(owner, (nn.modules.conv._ConvNd, nn.Linear)))


def convolutions(name: str, owner: nn.Module, parameter: nn.Parameter) -> bool:
    """Kernels of convolutions alone: better on small networks, where in large ones the dense layers are worth it, too (the paper)."""
    return parameter.ndim > 1 and isinstance(owner, nn.modules.conv._ConvNd)


def own(owner: nn.Module, tensor: Tensor) -> float:
    """The spread that the layer has: root mean square of its weights as they are."""
    return float(tensor.detach().double().square().mean().sqrt())


def fan_out(owner: nn.Module, tensor: Tensor) -> float:
    """The released code's: sqrt(2 / (kh kw c_out)) of a convolution, 1 / sqrt(c_out) of a dense layer."""
    outputs, *kernel = (tensor.shape[0], *tensor.shape[2:])
    return math.sqrt(2 / (outputs * math.prod(kernel))) if kernel else outputs**-0.5


def one(owner: nn.Module, tensor: Tensor) -> float:
    """1: no scale but what is learned."""
    return 1.0


def identity(values: Tensor) -> Tensor:
    return values


def relu(values: Tensor) -> Tensor:
    """A modifier of the released code: no weight below 0."""
    return values.relu()


def sign(values: Tensor) -> Tensor:
    """A modifier of the released code: weights of -1 and 1, times the scale, with a straight-through gradient."""
    return values + (values.sign() - values).detach()


def normal(shape: Sequence[int], std: float, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=generator) * std


def uniform(shape: Sequence[int], std: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(*shape, generator=generator) * 2 - 1) * (math.sqrt(3) * std)


def truncated(shape: Sequence[int], std: float, generator: torch.Generator) -> Tensor:
    """A normal distribution without what is more than two of its standard deviations off, of standard deviation `std` all the same."""
    drawn = nn.init.trunc_normal_(torch.empty(*shape), generator=generator)
    return drawn * (std / 0.879625662)  # the standard deviation of a normal cut at 2


# ---------------------------------------------------------------- the compressed module


@dataclass(frozen=True)
class Place:
    """One tensor among the weights. owners: (module, attribute) of each that has it, by the paths in the compressed module."""

    name: str
    owners: tuple[tuple[str, str], ...]
    shape: tuple[int, ...]
    start: int
    scale: float

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def stop(self) -> int:
        return self.start + self.count


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters. pool: variables; scales: one a layer; excluded: kept as they were; generated: made from the pool."""

    pool: int
    scales: int
    excluded: int
    generated: int

    @property
    def stored(self) -> int:
        """What a file holds, buffers aside."""
        return self.pool + self.scales + self.excluded

    @property
    def materialised(self) -> int:
        """What the network computes with."""
        return self.generated + self.excluded


class MultiHashed(nn.Module):
    """A module whose weights are made from `variables` at every call. Its state dict holds the variables, `scales`, and under `module.` what
    was not hashed. Made by `compress`."""

    def __init__(
        self, module: nn.Module, places: tuple[Place, ...], pool: Pool, variables: Mapping[str, Tensor], modify: Modify, learn_scales: bool
    ) -> None:
        super().__init__()
        self.module, self.places, self.pool, self.modify = module, places, pool, modify
        self.variables = nn.ParameterDict({name: nn.Parameter(values) for name, values in variables.items()})
        like = next(iter(variables.values()))
        scales = torch.tensor([place.scale for place in places], device=like.device, dtype=like.dtype)
        if learn_scales:
            self.scales = nn.Parameter(scales)
        else:
            self.register_buffer("scales", scales)
        owners = [(path, name) for place in places for path, name in place.owners]
        self.order = {path: tuple(module.get_submodule(path)._parameters) for path, _ in owners}
        for path, name in owners:
            owner = module.get_submodule(path)
            del owner._parameters[name]
            setattr(owner, name, None)  # a plain attribute: its value stands there during a call alone

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._holding(self.generated()):
            return self.module(*args, **kwargs)

    def generated(self) -> dict[str, Tensor]:
        """Every hashed tensor by its name in the module. The product is in float32 whatever autocast says: a sum of many small products."""
        with torch.autocast(self.scales.device.type, enabled=False):
            variables, scales = self._precise()
            parts = self.modify(self.pool.generate(variables, 0, self.places[-1].stop)).split([place.count for place in self.places])
            return {
                place.name: (part.view(place.shape) * scale).to(self.scales.dtype)
                for place, part, scale in zip(self.places, parts, scales.unbind(), strict=True)
            }

    def weight(self, name: str) -> Tensor:
        """One hashed tensor, from the rows of A that it needs."""
        at = next((at for at, place in enumerate(self.places) if place.name == name), None)
        if at is None:
            raise HashingError(f"{name!r} is not hashed; hashed are {', '.join(place.name for place in self.places)}")
        place = self.places[at]
        with torch.autocast(self.scales.device.type, enabled=False):
            variables, scales = self._precise()
            values = self.modify(self.pool.generate(variables, place.start, place.stop))
            return (values.view(place.shape) * scales[at]).to(self.scales.dtype)

    def _precise(self) -> tuple[dict[str, Tensor], Tensor]:
        """Variables and scales in float32, of a module in half precision too; in float64 of one that is."""
        dtype = torch.promote_types(self.scales.dtype, torch.float32)
        return {name: values.to(dtype) for name, values in self.variables.items()}, self.scales.to(dtype)

    @contextmanager
    def _holding(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Within, the module has the tensors; not after, or it could be neither copied nor saved without them."""
        owners = [(self.module.get_submodule(path), name, tensors[place.name]) for place in self.places for path, name in place.owners]
        try:
            for owner, name, tensor in owners:
                setattr(owner, name, tensor)
            yield
        finally:
            for owner, name, _ in owners:
                setattr(owner, name, None)


def compress(
    module: nn.Module,
    *,
    params: int | None = None,
    fraction: float | None = None,
    which: Which = weights,
    pool: Pool = STRUCTURED,
    scale: Scale = own,
    learn_scales: bool = True,
    modify: Modify = identity,
    draw: Draw = normal,
    seed: int = 0,
) -> MultiHashed:
    """A copy of the module that stores at most `params` parameters in all, or, of the weights it hashes, at most `fraction` as variables.

    The hashed weights start anew: the copy is to be trained. The size is never exceeded, and missed by less than one unit of rank, 2 n
    variables for n^2 weights. Buffers, normalisation, frozen parameters and what `which` leaves out stay as they are; a parameter that
    several modules share is made once, and shared still. learn_scales: a factor for each layer that is learned (the paper: always better,
    by 0.7 points), or fixed; without it the smallest layers suffer most. draw: `normal`, `uniform` or `truncated`, as the scheme was that the
    network is published with. Weight decay of an optimizer acts on the variables; `generated_norm` is for decaying what they make.
    """
    if (params is None) == (fraction is None):
        raise HashingError(f"params={params}, fraction={fraction}: one of the two says how much is to be stored")
    if fraction is not None and not 0 < fraction <= 1:
        raise HashingError(f"fraction={fraction}: it is a share of the weights, above 0 and at most 1")
    copied = copy.deepcopy(module)
    places = _places(copied, which, scale)
    count = places[-1].stop
    excluded = sum(parameter.numel() for parameter in copied.parameters()) - count
    unit = pool.unit(count)
    most = params - len(places) - excluded if params is not None else math.floor(cast(float, fraction) * count)
    if params is not None and params >= count + excluded:
        raise HashingError(f"params={params:,}: the module has {count + excluded:,}; there is nothing to compress")
    if most < unit:
        least = (
            f"{unit + len(places) + excluded:,} parameters in all, {unit:,} of them ({unit / count:.3g} of the hashed weights) variables"
        )
        raise HashingError(
            f"{'params' if params is not None else 'fraction'}={params or fraction}: the least that can be stored is {least}"
        )
    return _hashed_module(copied, places, pool, most // unit, modify, draw, learn_scales, seed)


def _hashed_module(
    module: nn.Module, places: Sequence[Place], pool: Pool, rank: int, modify: Modify, draw: Draw, learn_scales: bool, seed: int
) -> MultiHashed:
    like = module.get_parameter(places[0].name)
    generator = torch.Generator().manual_seed(seed)
    shapes = pool.shapes(places[-1].stop, rank)
    variables = {name: draw(shape, pool.std(rank), generator) for name, shape in shapes.items()}
    values = modify(pool.generate(variables, 0, places[-1].stop))
    # the rows of A that a small layer lies in are large or small together, so its spread is only near 1 before this
    spreads = [float(values[place.start : place.stop].square().mean().sqrt()) or 1.0 for place in places]
    scaled = tuple(replace(place, scale=place.scale / spread) for place, spread in zip(places, spreads, strict=True))
    variables = {name: values.to(like.device, like.dtype) for name, values in variables.items()}
    return MultiHashed(module, scaled, pool, variables, modify, learn_scales)


def _places(module: nn.Module, which: Which, scale: Scale) -> tuple[Place, ...]:
    """The tensors to hash, in order of creation, each once."""
    owners: dict[int, list[tuple[str, str]]] = {}
    first: dict[int, tuple[str, nn.Module, nn.Parameter]] = {}
    for path, owner in module.named_modules():  # a module at two places comes once
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((path, name))
                first.setdefault(id(parameter), (f"{path}.{name}".lstrip("."), owner, parameter))
    found, start = [], 0
    for key, (name, owner, parameter) in first.items():
        if not parameter.requires_grad or not parameter.is_floating_point() or not which(name, owner, parameter):
            continue
        if not math.isfinite(target := scale(owner, parameter)):
            raise HashingError(f"{name} has weights that are not finite, so no spread can be taken from it")
        found.append(Place(name, tuple(owners[key]), tuple(parameter.shape), start, target))
        start = found[-1].stop
    if not found:
        raise HashingError(f"{type(module).__name__} has no weight to hash: no parameter that learns is one that `which` takes")
    return tuple(found)


def sizes(hashed: MultiHashed) -> Sizes:
    """What is stored, and what the network computes with, counted from the tensors that are there."""
    pool = sum(values.numel() for values in hashed.variables.values())
    excluded = sum(parameter.numel() for parameter in hashed.module.parameters())
    return Sizes(pool, hashed.scales.numel(), excluded, sum(place.count for place in hashed.places))


def generated_norm(hashed: MultiHashed) -> Tensor:
    """Sum of squares of all generated weights, a scalar: times half a weight decay, added to a loss, it decays these and not the variables."""
    return torch.stack([tensor.square().sum() for tensor in hashed.generated().values()]).sum()


@torch.no_grad()
def materialise(hashed: MultiHashed) -> nn.Module:
    """The module as it was before `compress`, with every generated weight as a parameter of its own: for inference and export."""
    module = copy.deepcopy(hashed.module)
    for place, tensor in zip(hashed.places, hashed.generated().values(), strict=True):
        parameter = nn.Parameter(tensor.clone().contiguous())
        for path, name in place.owners:
            setattr(module.get_submodule(path), name, parameter)
    for path, names in hashed.order.items():  # as they were: a weight before its bias
        parameters = module.get_submodule(path)._parameters
        for name in names:
            parameters[name] = parameters.pop(name)
    return module


# ---------------------------------------------------------------- files

POOLS: Mapping[str, type] = {pool.__name__: pool for pool in (SumProduct, Kronecker, Hash)}
MODIFIERS: Mapping[str, Modify] = {modify.__name__: modify for modify in (identity, relu, sign)}


def save_compressed(hashed: MultiHashed, path: str | Path) -> int:
    """Writes variables, scales and what was not hashed as one safetensors file; gives its bytes."""
    if type(hashed.pool).__name__ not in POOLS or MODIFIERS.get(name := getattr(hashed.modify, "__name__", "")) is not hashed.modify:
        raise HashingError(
            f"a file can name the pools {', '.join(POOLS)} and the modifiers {', '.join(MODIFIERS)} alone; keep the state dict"
        )
    about = {
        "pool": type(hashed.pool).__name__,
        "options": asdict(cast(Any, hashed.pool)),
        "modify": name,
        "learn_scales": isinstance(hashed.scales, nn.Parameter),
        "tensors": [place.name for place in hashed.places],
    }
    tensors = {name: tensor.detach().contiguous() for name, tensor in _each_once(hashed).items()}
    content = safetensors.torch.save(tensors, metadata={FORMAT: json.dumps(about, separators=(",", ":"))})
    atomic_write(path, content)
    return len(content)


def load_compressed(path: str | Path, module: nn.Module) -> MultiHashed:
    """What `save_compressed` wrote, in a copy of `module`, which is built as the one that was compressed; its own weights do not matter."""
    try:
        with safetensors.safe_open(str(path), framework="pt") as file:
            about = (file.metadata() or {}).get(FORMAT)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no mapping
    except (OSError, safetensors.SafetensorError) as error:
        raise HashingError(f"{path} cannot be read as a safetensors file: {error}") from error
    if about is None:
        raise HashingError(f"{path} is no file of a compressed module: its metadata have no {FORMAT}")
    told = json.loads(about)
    if told["pool"] not in POOLS or told["modify"] not in MODIFIERS:
        raise HashingError(
            f"{path} is of the pool {told['pool']} with {told['modify']}; known are {', '.join(POOLS)} and {', '.join(MODIFIERS)}"
        )
    wanted = set(told["tensors"])
    copied = copy.deepcopy(module)
    places = _places(copied, lambda name, owner, parameter: name in wanted, one)
    if missing := wanted - {place.name for place in places}:
        raise HashingError(f"{path} is of another module: this one has no parameter {sorted(missing)[0]} that learns")
    pool = POOLS[told["pool"]](**told["options"])
    variables = {name.removeprefix("variables."): tensor for name, tensor in tensors.items() if name.startswith("variables.")}
    hashed = MultiHashed(copied, places, pool, variables, MODIFIERS[told["modify"]], told["learn_scales"])
    mine = _each_once(hashed)
    if wrong := [name for name in (*mine, *tensors) if name not in mine or name not in tensors or mine[name].shape != tensors[name].shape]:
        raise HashingError(f"{path} is of another module: they differ in {wrong[0]}")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])
    return hashed


def _each_once(hashed: MultiHashed) -> dict[str, Tensor]:
    """The state dict, a tensor that several names share under the first of them; the tensors themselves."""
    seen: dict[int, str] = {}
    state = hashed.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if seen.setdefault(id(tensor), name) == name}
