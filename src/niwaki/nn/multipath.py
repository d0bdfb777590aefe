"""One supernet for several domains (Wang et al., MPNAS, WACV 2021): shared layers, but BatchNorms and a head for each domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki.net.control import Network
from niwaki.nn.build import module_name
from niwaki.nn.supernet import WITH_WEIGHTS, Supernet, extract, supernet
from niwaki.space.choice import SpaceError


class MultiPath(nn.Module):
    """The members of a network, for several domains at once, over one set of the largest weights.

    networks: for each domain its description; they may differ in nothing but the width of the head, which is the last layer with weights.
    Where the paths of two domains take the same option of a layer they use, and train, the same weights. BatchNorm, whose statistics small
    domains would suffer from if they were common, and the head are each domain's own.

    forward(x, domain, decisions): as of a `Supernet`, by the domain's path.
    """

    def __init__(self, networks: Mapping[str, Network], *, seed: int = 0) -> None:
        super().__init__()
        if not networks or any("." in domain or not domain for domain in networks):
            raise SpaceError(f"a multi-path network is of one domain at least, named without a point, not of {list(networks)}")
        nets = {domain: supernet(network, seed=seed) for domain, network in networks.items()}
        first = next(iter(nets.values()))
        self.head = _head(first)
        self.shared = tuple(name for name, layer in first.layers.items() if name != self.head and not isinstance(layer, _BatchNorm))
        for domain, net in nets.items():
            _check_alike(domain, net, first, self.shared, self.head)
            for name in self.shared:
                net.layers[name] = first.layers[name]
        self.nets = nn.ModuleDict(nets)

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(self.nets)

    def net(self, domain: str) -> Supernet:
        """The supernet as `domain` sees it; its shared layers are those of all."""
        if domain not in self.nets:
            raise SpaceError(f"there is no domain {domain!r}; there are {', '.join(self.nets)}")
        net = self.nets[domain]
        assert isinstance(net, Supernet)
        return net

    def forward(self, x: Tensor, domain: str, decisions: Mapping[str, Any]) -> Tensor:
        return self.net(domain)(x, decisions)

    def extract(self, paths: Mapping[str, Mapping[str, Any]]) -> MultiPathModel:
        """The final model: the plain module of each domain's path; a weight that two paths both have whole is one parameter of both.

        Where a path takes a part of another's weight, a smaller width say, it gets a copy: the model has somewhat more parameters than
        `union_params` says then.
        """
        modules = {domain: extract(self.net(domain), path) for domain, path in paths.items()}
        known: dict[str, list[nn.Parameter]] = {}
        for module in modules.values():
            for name, parameter in list(module.named_parameters()):
                layer, _, key = name.rpartition(".")
                if not {layer, layer.removesuffix("_reduce"), layer.removesuffix("_expand")} & {*self.shared}:  # as squeeze-excite's two
                    continue
                same = next((one for one in known.setdefault(name, []) if torch.equal(one, parameter)), None)
                if same is None:
                    known[name].append(parameter)
                else:
                    setattr(module.get_submodule(layer), key, same)
        return MultiPathModel(modules)


class MultiPathModel(nn.Module):
    """Plain modules by domain, which have parameters in common."""

    def __init__(self, modules: Mapping[str, fx.GraphModule]) -> None:
        super().__init__()
        self.paths = nn.ModuleDict(modules)

    def forward(self, x: Tensor, domain: str) -> Tensor:
        """x: (B, *input_shape)."""
        return self.paths[domain](x)


def union_params(networks: Mapping[str, Network], paths: Mapping[str, Mapping[str, Any]]) -> int:
    """How many parameters the paths have together, each weight counted once, however many of them use it: exact for parts of weights, too.

    Every weight of the supernets is given a number of its own; what is counted is how many different numbers the extracted paths hold.
    """
    net = MultiPath({domain: networks[domain] for domain in paths}).double()
    start = 0
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.arange(start, start + parameter.numel(), dtype=torch.float64).view_as(parameter))
            start += parameter.numel()
    numbers = [p.detach().flatten() for domain, path in paths.items() for p in extract(net.net(domain), path).parameters()]
    return len(torch.cat(numbers).unique())


def shared_share(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Of the decisions that exist in either path, the share that both take alike: 1 for the same path."""
    names = first.keys() | second.keys()
    return sum(name in first and name in second and first[name] == second[name] for name in names) / max(1, len(names))


def _head(net: Supernet) -> str:
    weighted = [item.path for item in net.placement.items if isinstance(item.layer, WITH_WEIGHTS)]
    return module_name(weighted[-1])


def _check_alike(domain: str, net: Supernet, first: Supernet, shared: tuple[str, ...], head: str) -> None:
    if net.placement.decisions != first.placement.decisions or net.layers.keys() != first.layers.keys() or _head(net) != head:
        raise SpaceError(f"the network of the domain {domain!r} has other choices or layers than that of the first; only heads may differ")
    for name in shared:
        ours, theirs = ([tuple(p.shape) for p in one.layers[name].parameters()] for one in (net, first))
        if ours != theirs:
            raise SpaceError(f"{name} of the domain {domain!r} has weights of {ours}, that of the first of {theirs}; only heads may differ")
