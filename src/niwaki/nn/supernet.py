"""supernet(network): one set of weights, the largest, for every member; the decisions come with each call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from niwaki.net.axes import most
from niwaki.net.control import Network
from niwaki.net.layer import BatchNorm, Conv, Embed, Linear, Opaque, SqueezeExcite
from niwaki.net.operation import Operation, mapped
from niwaki.net.place import Placed, Placement, Shape, place
from niwaki.nn.build import build, module_name, module_of
from niwaki.nn.forward import After, Plan, kernel_crop, take
from niwaki.nn.operate import OWNED, cut, form_of, held, hold_, started
from niwaki.space.choice import SpaceError
from niwaki.space.size import Symbol, largest

WITH_WEIGHTS = (Conv, Linear, Embed, BatchNorm, SqueezeExcite, Opaque)
PLANS = 256  # plans kept: one for each set of hard decisions seen lately


def supernet(network: Network, weights: Mapping[str, Tensor] | None = None, *, seed: int = 0) -> Supernet:
    """The supernet of `network`, freshly initialised from `seed`; of an adopted model, with the owner's `weights` (`adopt` gives them)."""
    net = Supernet(network, seed=seed)
    if weights is not None:
        load_owned_(net, weights)
    return net


def member(network: Network, arch: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None, *, seed: int = 0) -> fx.GraphModule:
    """The plain module of `arch` before it is trained: freshly initialised from `seed`; of an adopted model, with the owner's `weights`, cut."""
    module = build(network, arch, seed=seed)
    if weights is not None:
        inherit_(module, supernet(network, weights), arch)
    return module


class Supernet(nn.Module):
    """All members of a network over one set of the largest weights.

    forward(x, decisions): x (B, *input_shape); decisions: for each decision its option (hard), or a tensor of one weight per option that
    sums to 1 (soft). Hard decisions cut the weights: the call costs what the smaller network costs (slice), and only the branch taken
    runs (sample). Soft ones are masks folded into the weights (mask; widths, kernel sizes, repeats) or weighted sums of the branches
    (mixture; layers and resolutions). Both kinds may be mixed in a call. Decisions that do not exist under the hard ones may be left out.

    Several inputs are given as a tuple, or by name. With one-hot weights, masks equal slices equal `extract`ed modules.
    """

    def __init__(self, network: Network, *, seed: int = 0) -> None:
        super().__init__()
        self.network = network
        self.placement: Placement = place(network)
        self.layers = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for item in self.placement.items:
                if isinstance(item.layer, WITH_WEIGHTS):
                    item = at_largest(item)
                    self.layers[module_name(item.path)] = module_of(item.layer, item)
            self._own()
        self._plan = lru_cache(maxsize=PLANS)(self._make_plan)

    def _own(self) -> None:
        """Makes the tensors of adopted models, by their owners' names, those that are one tensor as one."""
        operations = [item.layer for item in self.placement.items if isinstance(item.layer, Operation)]
        weights = [weight for layer in operations for weight in layer.weights]
        if not weights:
            return
        if OWNED in self.layers:
            raise SpaceError(f"a layer beside adopted ones cannot be called {OWNED!r}, under which a supernet keeps their weights")
        self.layers[OWNED] = nn.Module()
        made: dict[str, Tensor] = {}
        for weight in weights:
            tensor = made.setdefault(weight.key, started(weight, weight))
            for name in weight.names:
                hold_(self.layers[OWNED], name, tensor, weight.kind)
        for item in self.placement.items:
            whole = at_largest(item) if isinstance(item.layer, Operation) else item
            if isinstance(whole.layer, Operation) and (form := form_of(whole.layer, whole)) is not None:
                fresh = form.make()
                for key, value in (dict(fresh.named_parameters()) | dict(fresh.named_buffers())).items():
                    if key in form.weights and made[form.weights[key].key].shape == value.shape:
                        made[form.weights[key].key].data.copy_(value.data)

    def forward(self, x: Any, decisions: Mapping[str, Any], *, after: After | None = None) -> Any:
        """after: of a primitive in its place and what it gives, what is handed on in place of that: noise, say, that training wants there."""
        hard = {name: option for name, option in decisions.items() if not isinstance(option, Tensor)}
        soft = {name: weights for name, weights in decisions.items() if isinstance(weights, Tensor)}
        plan = self._plan(tuple(sorted(hard.items())))
        if isinstance(x, Tensor):
            return plan.run((x,), soft, self.layers, after)
        given = [x[one.name] for one in self.placement.reads] if isinstance(x, Mapping) else x
        return plan.run(given, soft, self.layers, after)

    def _make_plan(self, hard: tuple[tuple[str, Any], ...]) -> Plan:
        return Plan(self.placement, dict(hard))

    def __deepcopy__(self, memo: dict) -> Supernet:
        copy = Supernet(self.network).to(next(self.parameters()))  # its device and its type
        copy.load_state_dict(self.state_dict())
        return copy.train(self.training)


def extract(net: Supernet, arch: Mapping[str, Any]) -> fx.GraphModule:
    """The plain module of `arch` with the weights it has in the supernet, by copy, of their type and on their device."""
    module = build(net.network, arch).to(next(net.parameters()))  # its device and its type
    inherit_(module, net, arch)
    return module.train(net.training)


@torch.no_grad()
def inherit_(module: nn.Module, net: Supernet, arch: Mapping[str, Any]) -> None:
    """Writes the supernet's weights for `arch` into its built `module`, in place."""
    plan = Plan(net.placement, dict(arch))
    for step in plan.steps:
        if step.call is not None:
            for number, (path, where) in enumerate(step.call.weights):
                held(module, path).copy_(cut(step.call.whole_weight(number, net.layers), where))
            continue
        item, name = step.item, module_name(step.item.path)
        if name not in net.layers:
            continue
        source = net.layers[name]
        if isinstance(item.layer, SqueezeExcite):
            index, hidden = step.inputs_index, slice(0, item.layer.hidden)
            for part, out, into in (("reduce", hidden, index), ("expand", index, hidden)):
                target, weights = module.get_submodule(f"{name}_{part}"), source[part]  # type: ignore[index]
                target.weight.copy_(take(take(weights.weight, 0, out), 1, into))  # type: ignore[operator]
                target.bias.copy_(take(weights.bias, 0, out))  # type: ignore[operator]
            continue
        target = module.get_submodule(name)
        if isinstance(item.layer, Opaque):
            target.load_state_dict(source.state_dict())
            continue
        if isinstance(item.layer, Embed):  # a smaller width is a prefix, of features as of rows
            target.weight.copy_(source.weight[: len(target.weight)])  # type: ignore[index, operator, arg-type]
            continue
        own = dict(target.named_parameters()) | dict(target.named_buffers())
        for key, value in (dict(source.named_parameters()) | dict(source.named_buffers())).items():
            if key == "num_batches_tracked":
                own[key].copy_(value)
                continue
            value = take(value, 0, step.output_index)
            if key == "weight" and isinstance(item.layer, (Conv, Linear)):
                value = take(value, 1, step.inputs_index)
            if key == "weight" and isinstance(item.layer, Conv):
                value = kernel_crop(value, item.layer.kernel_size)
            own[key].copy_(value)


@torch.no_grad()
def load_owned_(net: Supernet, weights: Mapping[str, Tensor]) -> None:
    """Gives the adopted layers of `net` the owner's weights, in place. weights: as `adopt` gives them, by the names in the owner's state dict."""
    items = [item for item in net.placement.items if isinstance(item.layer, Operation)]
    for item in items:
        for weight in item.layer.weights:  # type: ignore[attr-defined]
            target = held(net.layers[OWNED], weight.name)
            source = next((weights[name] for name in weight.names if name in weights), None)
            if source is None:
                if weight.kind == "constant" or weight.again:
                    continue  # in no state dict
                raise SpaceError(
                    f"the weights have no {weight.name!r}, which {item.path} reads; they have {', '.join(list(weights)[:4])}, ..."
                )
            if source.shape != target.shape:
                raise SpaceError(f"the weight {weight.name!r} is of {tuple(source.shape)}; the network reads {tuple(target.shape)}")
            target.copy_(source)


def at_largest(item: Placed) -> Placed:
    """`item` with every size at its largest; each run of channels on its own, since that is how they lie side by side."""

    def shape(of: Shape) -> Shape:
        return Shape((sum(largest(size) for size in of.channels),), tuple(largest(size) for size in of.spatial))

    layer = item.layer
    if isinstance(layer, Operation):
        return replace(item, layer=mapped(layer, most))
    if isinstance(layer, Conv) and isinstance(layer.groups, Symbol) and layer.groups != item.input_shapes[0].width:
        raise SpaceError(f"{item.path}: a supernet has no shared weights for a searched number of groups; make it a OneOf of convolutions")
    depthwise = isinstance(layer, Conv) and layer.groups == item.input_shapes[0].width == layer.out_channels
    sizes: dict[str, Any] = {
        f.name: largest(value) for f in fields(layer) if isinstance(value := getattr(layer, f.name), Symbol) and f.name != "kind"
    }
    if depthwise:
        sizes = {**sizes, "out_channels": shape(item.shape).channels[0], "groups": shape(item.shape).channels[0]}
    return replace(item, layer=replace(layer, **sizes), input_shapes=tuple(map(shape, item.input_shapes)), shape=shape(item.shape))
