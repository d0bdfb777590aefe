"""Policy gradient: architectures drawn from a learned distribution, which every told reward moves towards what did better than usual.

REINFORCE (Williams 1992) as in TuNAS, and the clipped surrogate of PPO (Schulman et al. 2017) as in MnasNet; what is learned is a `Policy`
(policy.py: independent softmaxes, given budgets or not; lstm.py: MnasNet's recurrent controller).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random
from typing import Any, ClassVar, Protocol

import numpy as np

from niwaki.objective import BEST_ACCURACY, Objective, State
from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError
from niwaki.strategy.policy import Controller, Policy, softmaxes
from niwaki.strategy.strategy import SearchSpace, fingerprint, origin, unseen
from niwaki.trial import Trial

# --- how parameters move ----------------------------------------------------------------------------------------------------------


def constant(step: int) -> float:
    """The learning rate stays as it is."""
    return 1.0


@dataclass(frozen=True)
class DelayedRamp:
    """No learning for the first `delay` of `total` steps, then a learning rate that grows exponentially to `ramp` times itself (TuNAS)."""

    total: int
    delay: float = 0.25
    ramp: float = 10.0

    def __post_init__(self) -> None:
        if self.total < 1 or not 0 <= self.delay < 1 or not self.ramp > 0:
            raise ValueError(
                f"total={self.total}, delay={self.delay}, ramp={self.ramp}: at least 1 step, a delay from 0 to below 1, a ramp above 0"
            )

    def __call__(self, step: int) -> float:
        done = step / self.total
        return 0.0 if done < self.delay else self.ramp ** min(1.0, (done - self.delay) / (1 - self.delay))


@dataclass(frozen=True)
class WarmUp:
    """p(step): with this probability a decision is not sampled, but all its operations run, averaged, or its largest width; from 1 to 0.

    share: of all steps. It must be over when the controller begins to learn, or the log-probabilities would be of what was not sampled.
    """

    total: int
    share: float = 0.25

    def __post_init__(self) -> None:
        if self.total < 1 or not 0 <= self.share <= 1:
            raise ValueError(f"total={self.total}, share={self.share}: at least 1 step, and a share of them from 0 to 1")

    def __call__(self, step: int) -> float:
        return max(0.0, 1 - step / (self.share * self.total)) if self.share else 0.0

    def before(self, schedule: DelayedRamp) -> WarmUp:
        """This, or an error where the controller learns while it lasts."""
        if self.share * self.total > schedule.delay * schedule.total:
            raise ValueError(
                f"a warm-up of {self.share:g} of {self.total} steps ends after the controller begins to learn, at {schedule.delay:g} of "
                f"{schedule.total}; it must end no later"
            )
        return self


@dataclass(frozen=True)
class Moments:
    """What Adam keeps: running means of the gradient and of its square, and the number of gradients."""

    first: np.ndarray
    second: np.ndarray
    steps: int = 0

    @staticmethod
    def of(parameters: np.ndarray) -> Moments:
        return Moments(np.zeros_like(parameters), np.zeros_like(parameters))


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma & Ba 2015), uphill. schedule: what the learning rate is multiplied by at each step, from step 0."""

    lr: float = 3.5e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    schedule: Callable[[int], float] = constant

    def __post_init__(self) -> None:
        if not self.lr > 0 or not all(0 <= beta < 1 for beta in self.betas) or not self.eps > 0:
            raise ValueError(f"lr={self.lr}, betas={self.betas}, eps={self.eps}: lr and eps are above 0, betas from 0 to below 1")

    def step(self, parameters: np.ndarray, moments: Moments, gradient: np.ndarray) -> tuple[np.ndarray, Moments]:
        """New parameters and moments."""
        (b1, b2), steps = self.betas, moments.steps + 1
        first, second = b1 * moments.first + (1 - b1) * gradient, b2 * moments.second + (1 - b2) * gradient**2
        rate = self.lr * self.schedule(moments.steps)
        moved = parameters + rate * (first / (1 - b1**steps)) / (np.sqrt(second / (1 - b2**steps)) + self.eps)
        return moved, Moments(first, second, steps)


class Update(Protocol):
    """How a batch of rewarded architectures changes the parameters."""

    def __call__(
        self, policy: Policy, parameters: np.ndarray, moments: Moments, rows: np.ndarray, advantages: np.ndarray, adam: Adam
    ) -> tuple[np.ndarray, Moments]:
        """New parameters and moments. rows: (N, decisions); advantages: (N,) reward - baseline."""
        ...


@dataclass(frozen=True)
class Reinforce:
    """One step along the mean of advantage * grad log p, plus `entropy` times the gradient of the entropy (TuNAS: 0)."""

    entropy: float = 0.0

    def __call__(
        self, policy: Policy, parameters: np.ndarray, moments: Moments, rows: np.ndarray, advantages: np.ndarray, adam: Adam
    ) -> tuple[np.ndarray, Moments]:
        gradient = policy.gradient(parameters, rows, advantages / len(rows), self.entropy, moments.steps)
        if gradient is None:
            return parameters, replace(moments, steps=moments.steps + 1)
        return adam.step(parameters, moments, gradient)


@dataclass(frozen=True)
class Clipped:
    """PPO's clipped surrogate: a few steps on mean(min(rho A, clip(rho, 1 - clip, 1 + clip) A)) + entropy * H, rho = p_new / p_old.

    MnasNet gives no constants; these are the common ones. p_old is the policy that the update begins with: where architectures were out
    while another update was made, they count as drawn from it.
    """

    clip: float = 0.2
    passes: int = 4
    entropy: float = 1e-3

    def __post_init__(self) -> None:
        if not self.clip > 0 or self.passes < 1 or not self.entropy >= 0:
            raise ValueError(
                f"clip={self.clip}, passes={self.passes}, entropy={self.entropy}: clip above 0, 1 pass at least, entropy not below 0"
            )

    def __call__(
        self, policy: Policy, parameters: np.ndarray, moments: Moments, rows: np.ndarray, advantages: np.ndarray, adam: Adam
    ) -> tuple[np.ndarray, Moments]:
        old = policy.log_prob(parameters, rows)
        for at in range(self.passes):
            ratio = np.exp(policy.log_prob(parameters, rows) - old) if at else np.ones(len(rows))
            # where the minimum is the clipped term, it is constant
            flat = np.where(advantages > 0, ratio > 1 + self.clip, ratio < 1 - self.clip)
            weights = np.where(flat, 0.0, ratio * advantages) / len(rows)
            gradient = policy.gradient(parameters, rows, weights, self.entropy, moments.steps)
            if gradient is None:
                moments = replace(moments, steps=moments.steps + 1)
            else:
                parameters, moments = adam.step(parameters, moments, gradient)
        return parameters, moments


@dataclass(frozen=True)
class Baseline:
    """A zero-debiased exponential average of rewards (TuNAS): numerator and denominator, both decaying."""

    above: float = 0.0
    below: float = 0.0

    def after(self, reward: float, momentum: float) -> Baseline:
        return Baseline(momentum * self.above + (1 - momentum) * reward, momentum * self.below + (1 - momentum))

    @property
    def value(self) -> float:
        return self.above / self.below


# --- the strategy -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rewarded:
    """An architecture that was told. metrics: None where its evaluation failed."""

    arch: Architecture
    reward: float
    metrics: Mapping[str, float] | None


@dataclass(frozen=True, eq=False)
class PolicyState:
    space: SearchSpace
    policy: Policy
    parameters: np.ndarray
    moments: Moments
    average: Baseline = field(default_factory=Baseline)
    batch: tuple[Rewarded, ...] = ()  # not learned from yet
    shaping: State = field(default_factory=dict)  # of the objective's form, where it has a state
    worst: float | None = None  # reward told so far: that of a failed trial
    failed: frozenset[str] = frozenset()  # fingerprints


@dataclass(frozen=True)
class PolicyGradient:
    """A policy that proposes what it draws and learns from each full batch of rewards.

    objective: what a trial's metrics are worth (`Objective.reward`); a form with a state, such as multipliers, follows each batch. controller:
    the kind of policy. update: `Reinforce()` or `Clipped()`. The baseline is a zero-debiased exponential average of the batches' mean
    rewards, the present one included. The defaults are TuNAS's: one architecture a step, momentum 0.95, Adam without a first moment.

    A policy draws what it has drawn before, and learns from it again: proposals repeat (`repeats`), and each counts as an evaluation. Only what
    failed is not proposed again; the policy learns of it as if it had the worst reward told so far. Trials that were cut are not learned from.
    """

    repeats: ClassVar[bool] = True

    objective: Objective = BEST_ACCURACY
    controller: Controller = softmaxes
    update: Update = field(default_factory=Reinforce)
    optimizer: Adam = field(default_factory=lambda: Adam(4.8e-3, betas=(0.0, 0.999)))
    batch_size: int = 1
    momentum: float = 0.95
    name: str = "reinforce"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.momentum < 1:
            raise ValueError(f"batch_size={self.batch_size}, momentum={self.momentum}: at least 1 trial, and a momentum from 0 to below 1")

    def init(self, space: SearchSpace) -> PolicyState:
        policy = self.controller(space)
        parameters = policy.initial()
        return PolicyState(space, policy, parameters, Moments.of(parameters), shaping=self.objective.init())

    def ask(self, state: PolicyState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        generator = np.random.default_rng(rng.getrandbits(128))
        asked = [self._drawn(state, row) for row in state.policy.sample(state.parameters, count, generator)]
        if not state.failed:
            return asked

        def again() -> Architecture:
            return self._drawn(state, state.policy.sample(state.parameters, 1, generator)[0])

        kept = [unseen(partial(_first, [arch], again), state.space, state.failed, rng) for arch in asked]
        return [arch for arch in kept if arch is not None]

    def tell(self, state: PolicyState, trials: Sequence[Trial]) -> PolicyState:
        for trial in trials:
            state = self._told(state, trial)
        return state

    def mode(self, state: PolicyState) -> Architecture:
        """The policy's most likely architecture."""
        return state.policy.mode(state.parameters)

    def _drawn(self, state: PolicyState, row: np.ndarray) -> Architecture:
        return state.space.from_indices(row.tolist())

    def _told(self, state: PolicyState, trial: Trial) -> PolicyState:
        if trial.status == "cut":
            return state
        if trial.status == "failed":
            state = replace(state, failed=state.failed | {fingerprint(trial.arch)})
            if state.worst is None:
                return state
            told = Rewarded(trial.arch, state.worst, None)
        else:
            reward = self.objective.reward(trial.metrics, state.shaping)
            state = replace(state, worst=reward if state.worst is None else min(reward, state.worst))
            told = Rewarded(trial.arch, reward, trial.metrics)
        state = replace(state, batch=(*state.batch, told))
        return self._learned(state) if len(state.batch) == self.batch_size else state

    def _learned(self, state: PolicyState) -> PolicyState:
        rows = np.array(state.space.indices([one.arch for one in state.batch]), dtype=np.int64)
        rewards = np.array([one.reward for one in state.batch])
        average = state.average.after(float(rewards.mean()), self.momentum)
        advantages = rewards - average.value
        parameters, moments = self.update(state.policy, state.parameters, state.moments, rows, advantages, self.optimizer)
        shaping = self.objective.update(state.shaping, [one.metrics for one in state.batch if one.metrics is not None])
        return replace(state, parameters=parameters, moments=moments, average=average, batch=(), shaping=shaping)

    def save(self, state: PolicyState) -> tuple[Any, dict[str, np.ndarray]]:
        content = {
            "space": state.space.hash,
            "steps": state.moments.steps,
            "average": [state.average.above, state.average.below],
            "batch": [
                {
                    "row": state.space.indices([one.arch])[0],
                    "reward": one.reward,
                    "metrics": None if one.metrics is None else dict(one.metrics),
                }
                for one in state.batch
            ],
            "shaping": dict(state.shaping),
            "worst": state.worst,
            "failed": sorted(state.failed),
        }
        return content, {"parameters": state.parameters, "first": state.moments.first, "second": state.moments.second}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> PolicyState:
        if content["space"] != space.hash:
            raise SpaceError(f"the state of this search belongs to the space {content['space']}, but is read for the space {space.hash}")
        state = self.init(space)
        if arrays["parameters"].shape != state.parameters.shape:
            raise SpaceError(
                f"the policy kept has parameters of {arrays['parameters'].shape}, but this controller {state.parameters.shape}"
            )
        return replace(
            state,
            parameters=arrays["parameters"],
            moments=Moments(arrays["first"], arrays["second"], content["steps"]),
            average=Baseline(*content["average"]),
            batch=tuple(Rewarded(origin(space).from_indices(one["row"]), one["reward"], one["metrics"]) for one in content["batch"]),
            shaping=content["shaping"],
            worst=content["worst"],
            failed=frozenset(content["failed"]),
        )


def _first(stock: list[Architecture], then: Callable[[], Architecture]) -> Architecture:
    """What is in stock, then what `then` draws."""
    return stock.pop() if stock else then()
