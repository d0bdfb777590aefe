"""How the losses of several domains are balanced while they are trained together: which are trained on in a step, and how much each counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

Balances = Mapping[str, list[float]]  # the state of a balance: JSON


@dataclass(frozen=True)
class Seen:
    """What a step showed, (D,) each; losses and norms are NaN for a domain without a batch.

    qualities: of validation batches. losses: divided by the logarithm of the number of classes. norms: of the gradient of each domain's
    loss by the shared weights, before it is weighed. done: the share of all steps that is over.
    """

    qualities: np.ndarray
    losses: np.ndarray
    norms: np.ndarray
    done: float


class Balance(Protocol):
    """A rule. Its state is handed in and returned. wants_norms: whether it looks at the norms of gradients, which cost a second backward pass."""

    wants_norms: ClassVar[bool]

    def init(self, sizes: Sequence[int]) -> Balances:
        """sizes: training examples of each domain."""
        ...

    def turns(self, state: Balances, generator: np.random.Generator) -> list[int]:
        """The domains of which a step has a batch, as many as there are domains."""
        ...

    def weights(self, state: Balances) -> np.ndarray:
        """(D,): of the losses."""
        ...

    def after(self, state: Balances, seen: Seen) -> Balances: ...


@dataclass(frozen=True)
class Uniform:
    """Every domain in every step, and all the same."""

    wants_norms: ClassVar[bool] = False

    def init(self, sizes: Sequence[int]) -> Balances:
        return {"sizes": [float(size) for size in sizes]}

    def turns(self, state: Balances, generator: np.random.Generator) -> list[int]:
        return list(range(len(state["sizes"])))

    def weights(self, state: Balances) -> np.ndarray:
        return np.ones(len(state["sizes"]))

    def after(self, state: Balances, seen: Seen) -> Balances:
        return state


@dataclass(frozen=True)
class Sampled:
    """Domains are drawn with p ~ size^(1 / temperature): 1 is proportional to their sizes, large temperatures come near to even."""

    wants_norms: ClassVar[bool] = False
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature={self.temperature}: it is above 0; 1 draws in proportion to the sizes")

    def init(self, sizes: Sequence[int]) -> Balances:
        scaled = (np.array(sizes, dtype=float) / max(sizes)) ** (1 / self.temperature)
        return {"chances": (scaled / scaled.sum()).tolist()}

    def turns(self, state: Balances, generator: np.random.Generator) -> list[int]:
        chances = state["chances"]
        return generator.choice(len(chances), size=len(chances), p=chances).tolist()

    def weights(self, state: Balances) -> np.ndarray:
        return np.ones(len(state["chances"]))

    def after(self, state: Balances, seen: Seen) -> Balances:
        return state


@dataclass(frozen=True)
class Prioritised:
    """Adaptive balanced domain prioritisation: domains that lag behind their reference count more, until they no longer do.

    The paper's formula was not found; this one is ours and keeps what is known of it:
    w = D softmax(g / tau) rho + (1 - rho), g an exponential average (decay) of clip((reference - quality) / reference, 0, 1), rho from 0 to
    1 over the first `ramp` of the steps. Weights are above 0 and their mean is 1; equal gaps give 1 each.

    references: a quality for each domain, that of a network of its own, say; None: the best average that it has had so far.
    """

    wants_norms: ClassVar[bool] = False
    references: tuple[float, ...] | None = None
    temperature: float = 0.25
    decay: float = 0.9
    ramp: float = 0.25

    def __post_init__(self) -> None:
        if not self.temperature > 0 or not 0 <= self.decay < 1 or not 0 < self.ramp <= 1:
            raise ValueError(
                f"temperature={self.temperature}, decay={self.decay}, ramp={self.ramp}: a temperature above 0, a decay from 0 to below 1, and a "
                f"share of the steps"
            )

    def init(self, sizes: Sequence[int]) -> Balances:
        if self.references is not None and len(self.references) != len(sizes):
            raise ValueError(f"there are {len(self.references)} references for {len(sizes)} domains; each needs one")
        zeros = [0.0] * len(sizes)
        return {"gaps": zeros, "average": zeros, "best": zeros, "weight": [0.0], "rho": [0.0]}

    def turns(self, state: Balances, generator: np.random.Generator) -> list[int]:
        return list(range(len(state["gaps"])))

    def weights(self, state: Balances) -> np.ndarray:
        return prioritised(np.array(state["gaps"]), self.temperature, state["rho"][0])

    def after(self, state: Balances, seen: Seen) -> Balances:
        decay = self.decay
        average = decay * np.array(state["average"]) + (1 - decay) * seen.qualities
        weight = decay * state["weight"][0] + 1 - decay  # the averages begin at 0: divided by this, they are of what was seen
        best = np.maximum(state["best"], average / weight)
        reference = best if self.references is None else np.array(self.references)
        gap = np.clip((reference - seen.qualities) / np.maximum(reference, 1e-8), 0, 1)
        gaps = decay * np.array(state["gaps"]) + (1 - decay) * gap
        return {
            "gaps": gaps.tolist(), "average": average.tolist(), "best": best.tolist(), "weight": [weight], "rho": [min(1.0, seen.done / self.ramp)],
        }  # fmt: skip


def prioritised(gaps: np.ndarray, temperature: float, rho: float) -> np.ndarray:
    """(D,): D softmax(gaps / temperature) rho + (1 - rho).

    >>> prioritised(np.array([0.2, 0.2]), 0.25, 1.0).tolist()
    [1.0, 1.0]
    """
    scaled = np.exp((gaps - gaps.max()) / temperature)
    return len(gaps) * scaled / scaled.sum() * rho + (1 - rho)


@dataclass(frozen=True)
class Uncertainty:
    """sum of L_d / (2 s_d^2) + log s_d, the s_d learned by gradient descent (Kendall et al., CVPR 2018). lr: of log s, ours."""

    wants_norms: ClassVar[bool] = False
    lr: float = 0.01

    def init(self, sizes: Sequence[int]) -> Balances:
        return {"log_s": [0.0] * len(sizes)}

    def turns(self, state: Balances, generator: np.random.Generator) -> list[int]:
        return list(range(len(state["log_s"])))

    def weights(self, state: Balances) -> np.ndarray:
        return np.exp(-2 * np.array(state["log_s"])) / 2

    def after(self, state: Balances, seen: Seen) -> Balances:
        log_s = np.array(state["log_s"])
        return {"log_s": (log_s - self.lr * (1 - seen.losses * np.exp(-2 * log_s))).tolist()}


@dataclass(frozen=True)
class GradNorm:
    """Weights that bring the gradients of all domains to a common size, larger for those that learn slowly (Chen et al., ICML 2018).

    One step of gradient descent on sum of |w_d G_d - mean(w G) r_d^alpha|, the second part taken as constant, r_d the loss over its first
    value, divided by the mean of that; then the weights are scaled to a mean of 1. alpha: 1.5 in most of the paper; lr 0.025.
    """

    wants_norms: ClassVar[bool] = True
    alpha: float = 1.5
    lr: float = 0.025

    def init(self, sizes: Sequence[int]) -> Balances:
        return {"weights": [1.0] * len(sizes), "first": []}

    def turns(self, state: Balances, generator: np.random.Generator) -> list[int]:
        return list(range(len(state["weights"])))

    def weights(self, state: Balances) -> np.ndarray:
        return np.array(state["weights"])

    def after(self, state: Balances, seen: Seen) -> Balances:
        weights, first = np.array(state["weights"]), state["first"] or seen.losses.tolist()
        rates = seen.losses / np.array(first)
        target = (weights * seen.norms).mean() * (rates / rates.mean()) ** self.alpha
        weights = np.maximum(
            weights - self.lr * np.sign(weights * seen.norms - target) * seen.norms, 1e-3
        )  # a weight of 0 never comes back
        return {"weights": (weights * len(weights) / weights.sum()).tolist(), "first": first}
