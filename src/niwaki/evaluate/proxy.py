"""Zero-cost proxies: scores of an untrained network on one batch, larger for networks that are expected to train better.

Abdelfattah et al., ICLR 2021 (grad_norm, snip, grasp, fisher, synflow, jacob_cov, vote); Mellor et al., ICML 2021 (naswot); Lin et al.,
ICCV 2021 (zen). They are cheap features and filters. Parameters and multiply-adds alone rank as well as most of them, so report these beside
them, and never select by a proxy alone: within a narrow range of costs little of what they tell is left.

Every function takes a plain module, which it leaves as it is, and gives a number. Layers are convolutions and linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.net.control import Network
from niwaki.nn.build import build
from niwaki.task.classify import ImageClassification
from niwaki.task.task import derive_seed
from niwaki.trial import EvaluationFailed

LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
# what has a kink at 0, or is smooth around one: the sign of its input is the code of `naswot`
KINKED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.SiLU, nn.GELU)
VOTERS = ("synflow", "jacob_cov", "snip")  # of the vote (Abdelfattah et al., section 4)


class ProxyError(ValueError):
    """A score that cannot be taken of what was given."""


@dataclass(frozen=True)
class Batch:
    """What is scored on. images: (B, *input_shape); labels: (B,) int64."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels) or len(self.images) < 2:
            raise ProxyError(f"a batch for proxies has 2 examples or more with a label each, not {len(self.images)} and {len(self.labels)}")


Proxy = Callable[[nn.Module, Batch, torch.Generator], float]


def grad_norm(model: nn.Module, batch: Batch, generator: torch.Generator) -> float:
    """Sum over layers of the norm of the gradient of the loss in the layer's weights."""
    model = _training_copy(model)
    _loss(model, batch).backward()
    return sum(float(weight.grad.norm()) for weight in _weights(model) if weight.grad is not None)


def snip(model: nn.Module, batch: Batch, generator: torch.Generator) -> float:
    """Sum over weights of |weight * gradient of the loss| (Lee et al., ICLR 2019)."""
    model = _training_copy(model)
    _loss(model, batch).backward()
    return _saliency(_weights(model))


def grasp(model: nn.Module, batch: Batch, generator: torch.Generator) -> float:
    """-sum over weights of weight * (H g), H the Hessian and g the gradient of the loss (Wang et al., ICLR 2020)."""
    model = _training_copy(model)
    weights = _weights(model)
    gradients = torch.autograd.grad(_loss(model, batch), weights, create_graph=True, allow_unused=True)
    product = sum(((g * g.detach()).sum() for g in gradients if g is not None and g.requires_grad), torch.zeros(()))
    if not product.requires_grad:  # the loss is linear in all weights
        return 0.0
    curved = torch.autograd.grad(product, weights, allow_unused=True)
    return -sum(float((w.detach() * hg).sum()) for w, hg in zip(weights, curved, strict=True) if hg is not None)


def fisher(model: nn.Module, batch: Batch, generator: torch.Generator) -> float:
    """Sum over the output channels of all layers of the mean over images of (sum over positions of a dL/da)^2 / 2 (Theis et al. 2018)."""
    model, kept = _training_copy(model), []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    for layer in _layers(model):
        layer.register_forward_hook(keep)
    _loss(model, batch).backward()
    scores = [
        (out.detach() * out.grad).flatten(2).sum(2) if out.dim() > 2 else out.detach() * out.grad for out in kept if out.grad is not None
    ]
    return sum(float(score.square().mean(0).sum()) / 2 for score in scores)


def synflow(model: nn.Module, batch: Batch, generator: torch.Generator) -> float:
    """Natural logarithm of the sum over weights of |w| dR/d|w|, R the sum of outputs for an image of ones, without BatchNorm (Tanaka et al. 2020).

    No data. In float64; the logarithm because the sum grows with the power of the depth.
    """
    model = deepcopy(model).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    for norm in _modules(model, NORMS):
        norm.register_forward_hook(lambda module, inputs, output: inputs[0])
    weights = _weights(model)
    ones = torch.ones(1, *batch.images.shape[1:], dtype=torch.float64, device=batch.images.device)
    gradients = torch.autograd.grad(model(ones).sum(), weights, allow_unused=True)
    total = sum(float((w.detach() * g).abs().sum()) for w, g in zip(weights, gradients, strict=True) if g is not None)
    return float(np.log(total)) if total > 0 else float("-inf")


def jacob_cov(model: nn.Module, batch: Batch, generator: torch.Generator) -> float:
    """-sum_v [log(v + k) + 1 / (v + k)], k = 1e-5, v the eigenvalues of the correlation between images of d(sum of outputs)/d(image)."""
    model = _training_copy(model)
    images = batch.images.clone().requires_grad_()
    (jacobian,) = torch.autograd.grad(model(images).sum(), images, allow_unused=True)
    if jacobian is None:  # no path leads from the input to the output
        return float("-inf")
    with np.errstate(invalid="ignore", divide="ignore"):  # an input that does not matter at all has no correlation
        correlation = np.corrcoef(jacobian.flatten(1).double().numpy(force=True))
    if not np.isfinite(correlation).all():
        return float("-inf")
    values = np.linalg.eigvalsh(correlation) + 1e-5
    # the smallest ones are zeros that rounding may push below -k: to k, where both terms are largest
    values = np.maximum(values, 1e-5)
    return float(-(np.log(values) + 1 / values).sum())


def naswot(model: nn.Module, batch: Batch, generator: torch.Generator) -> float:
    """log |det K|, K_ij = on how many units images i and j agree whether they are active; -inf where two images agree on all."""
    model, count = _training_copy(model), len(batch.images)
    kernel = torch.zeros(count, count, dtype=torch.float64, device=batch.images.device)

    def compare(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        active = (inputs[0].detach().flatten(1) > 0).float()
        kernel.add_((active @ active.T + (1 - active) @ (1 - active).T).double())

    for module in _modules(model, KINKED):
        module.register_forward_hook(compare)
    with torch.no_grad():
        model(batch.images)
    _, log_determinant = np.linalg.slogdet(kernel.numpy(force=True))
    return float(log_determinant)


def zen(model: nn.Module, batch: Batch, generator: torch.Generator, *, repeats: int = 32, size: int = 16, step: float = 0.01) -> float:
    """log E sum |f(x) - f(x + 0.01 e)| + sum over BatchNorms of log sqrt(mean variance), f the features before the last pooling.

    Gaussian weights, x and e; no data. The variances are those of the batch x, which is what BatchNorm divided by; a BatchNorm that reads
    zeros alone (behind an edge without an operation) scales nothing, and is left out.
    """
    model = _training_copy(model)
    norms, features = _modules(model, NORMS), _Last(model)
    for norm in norms:
        norm.momentum = 1.0  # the running statistics are those of the last batch
    shape = (size, *batch.images.shape[1:])
    scores = []
    with torch.no_grad():
        for _ in range(repeats):
            for weight in _weights(model):
                weight.copy_(torch.randn(weight.shape, generator=generator))
            x, e = torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)
            there, moved = features(x.to(batch.images.device), variances=True), features((x + step * e).to(batch.images.device))
            apart = float((there - moved).abs().flatten(1).sum(1).mean())
            scale = sum(0.5 * float(np.log(variance)) for variance in features.variances)
            scores.append(float("-inf") if apart == 0 else float(np.log(apart)) + scale)
    return float(np.mean(scores))


class _Last:
    """The features of a network: what its last global pooling reads, or its last linear layer where it has none; and variances of its norms."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.variances = model, list[float]()
        pools = _modules(model, (nn.AdaptiveAvgPool2d,)) or _modules(model, (nn.Linear,))
        if not pools:
            raise ProxyError("zen needs a global pooling or a linear layer, whose input is the features; the network has neither")
        self._seen: list[Tensor] = []
        for pool in pools:
            pool.register_forward_hook(lambda module, inputs, output: self._seen.append(inputs[0]))

    def __call__(self, images: Tensor, *, variances: bool = False) -> Tensor:
        self._seen.clear()
        self.model(images)
        if variances:
            found = (float(norm.running_var.double().mean()) for norm in _modules(self.model, NORMS))
            self.variances = [variance for variance in found if variance > 0]
        return self._seen[-1].double()


PROXIES: Mapping[str, Proxy] = {
    "grad_norm": grad_norm, "snip": snip, "grasp": grasp, "fisher": fisher, "synflow": synflow, "jacob_cov": jacob_cov, "naswot": naswot, "zen": zen,
}  # fmt: skip


@dataclass(frozen=True)
class ZeroCost:
    """architecture -> {"snip": mean over initialisations, "snip_std": their spread, ...}, all on the same batch and with the same seeds."""

    network: Network
    batch: Batch
    proxies: tuple[str, ...] = tuple(PROXIES)
    initialisations: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [name for name in self.proxies if name not in PROXIES]:
            raise ProxyError(f"there is no proxy {unknown[0]!r}; there are {', '.join(PROXIES)}")
        if self.initialisations < 1 or not self.proxies:
            raise ProxyError(f"{len(self.proxies)} proxies of {self.initialisations} initialisations: there is at least one of each")

    @staticmethod
    def of(
        network: Network,
        task: ImageClassification,
        proxies: Sequence[str] = tuple(PROXIES),
        *,
        images: int = 64,
        initialisations: int = 3,
        seed: int = 0,
    ) -> ZeroCost:
        """On so many images of the task's train part, drawn with `seed`."""
        part = task.part("train")
        picked = part[torch.from_numpy(np.random.default_rng(seed).permutation(len(part))[:images])]
        return ZeroCost(network, Batch(*task.batch(picked, torch.device("cpu"))), tuple(proxies), initialisations, seed)

    def __call__(self, arch: Mapping[str, Any]) -> dict[str, float]:
        """Raises EvaluationFailed where a score is no finite number (an input that does not reach the output, say)."""
        rows = [self.scores(arch, number) for number in range(self.initialisations)]
        found: dict[str, float] = {}
        for name in self.proxies:
            values = np.array([row[name] for row in rows])
            if not np.isfinite(values).all():
                raise EvaluationFailed(f"the proxy {name} of this network is {values.tolist()}")
            found |= {name: float(values.mean()), f"{name}_std": float(values.std(ddof=1)) if len(values) > 1 else 0.0}
        return found

    def scores(self, arch: Mapping[str, Any], number: int) -> dict[str, float]:
        """The scores of initialisation `number`; -inf where a network has none."""
        model = build(self.network, arch, seed=derive_seed(self.seed, "proxy weights", number))
        # each proxy has random numbers of its own: what others are asked for changes nothing
        return {
            name: PROXIES[name](model, self.batch, torch.Generator().manual_seed(derive_seed(self.seed, "proxy", name, number)))
            for name in self.proxies
        }


def vote(scores: Sequence[Sequence[float]]) -> np.ndarray:
    """(N,): how many of the N networks each one beats by a majority of the scores (P, N); equal scores are half a vote."""
    table = np.asarray(scores, dtype=np.float64)
    one, other = table[:, :, None], table[:, None, :]
    majority = np.sign(((one > other).astype(int) - (one < other)).sum(0))
    return (majority > 0).sum(1) + 0.5 * ((majority == 0).sum(1) - 1)


def _training_copy(model: nn.Module) -> nn.Module:
    """In training mode, but for dropout, which would add noise that is nobody's seed."""
    copied = deepcopy(model).train()
    for dropout in _modules(copied, (nn.Dropout,)):
        dropout.eval()
    for parameter in copied.parameters():
        parameter.grad = None
    return copied


def _modules(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kinds)]


def _layers(model: nn.Module) -> list[Any]:
    return _modules(model, LAYERS)


def _weights(model: nn.Module) -> list[nn.Parameter]:
    return [layer.weight for layer in _layers(model)]


def _saliency(weights: Sequence[nn.Parameter]) -> float:
    return sum(float((weight.detach() * weight.grad).abs().sum()) for weight in weights if weight.grad is not None)


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.images), batch.labels)
