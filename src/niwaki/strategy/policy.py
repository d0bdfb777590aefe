"""Policies: distributions over the architectures of a space that a strategy learns. Independent softmaxes, given a budget or not, and rejection.

An architecture is a row of option numbers here, one per decision, 0 where the decision does not exist. A decision that does not exist adds
nothing to a log-probability, to an entropy, or to a gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, log
from typing import Protocol

import numpy as np

from niwaki.factor.draw import Sampler
from niwaki.factor.eliminate import Feasible
from niwaki.factor.mode import most_likely
from niwaki.factor.within import Within
from niwaki.space.architecture import Architecture
from niwaki.space.choice import BudgetError, SpaceError
from niwaki.space.space import Space
from niwaki.strategy.strategy import MOST_LISTED, SearchSpace

PROPOSALS = 4_096  # drawn for each that is kept before architectures within the budgets are drawn by elimination, without rejection
MOST_REJECTED = 1_000_000  # drawn for each that is kept before a policy that only rejects gives up


class Policy(Protocol):
    """p(architecture), bound to a space and made of parameters: one array of any shape, float64."""

    def initial(self) -> np.ndarray:
        """The parameters before anything is known."""
        ...

    def sample(self, parameters: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        """(count, decisions): rows of option numbers, drawn independently."""
        ...

    def log_prob(self, parameters: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(N,): log p of each row (N, decisions), where the policy is conditional given its condition, if that is known exactly."""
        ...

    def gradient(self, parameters: np.ndarray, rows: np.ndarray, weights: np.ndarray, entropy: float, step: int) -> np.ndarray | None:
        """d/d parameters of sum over n of weights[n] * log p(rows[n]) + entropy * (mean over n of the entropy of the decisions in rows[n]).

        None where no gradient can be had, and the step is to be left out. step: gradients taken before, for policies that change or draw.
        """
        ...

    def mode(self, parameters: np.ndarray) -> Architecture:
        """The most likely architecture."""
        ...


Controller = Callable[[SearchSpace], Policy]  # a kind of policy, before it is bound to a space


class Softmaxes:
    """An independent softmax for every decision; logits begin at 0, so that every option is equally likely (TuNAS, TabNAS).

    parameters: logits (D, O), O the most options of any decision; entries beyond a decision's own options are never looked at.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.counts = np.array([len(decision.options) for decision in space.decisions], dtype=np.int64)
        self.shape = (len(self.counts), int(self.counts.max(initial=1)))
        self.own = np.arange(self.shape[1]) < self.counts[:, None]  # (D, O)
        self.existence = space.existence

    def initial(self) -> np.ndarray:
        return np.zeros(self.shape)

    def log_softmax(self, logits: np.ndarray) -> np.ndarray:
        """(D, O): log-probabilities of the options, -inf beyond a decision's own."""
        masked = np.where(self.own, logits, -np.inf)
        masked = masked - masked.max(axis=1, keepdims=True)
        return masked - np.log(np.exp(masked).sum(axis=1, keepdims=True))

    def probabilities(self, logits: np.ndarray) -> dict[str, np.ndarray]:
        """(O,) for each decision, by name: as the cost algebra takes them."""
        p = np.exp(self.log_softmax(logits))
        return {decision.name: p[row, : self.counts[row]] for row, decision in enumerate(self.space.decisions)}

    def sample(self, parameters: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        return self.existence.canonical_(self.sample_all(parameters, count, generator))

    def sample_all(self, parameters: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        """(count, decisions): an option for every decision, also where it does not exist."""
        below = np.exp(self.log_softmax(parameters)).cumsum(axis=1)[:, :-1]  # (D, O-1): rounding leaves the last option what is missing
        drawn = (generator.random((count, self.shape[0], 1)) >= below).sum(axis=2)
        return np.minimum(drawn, self.counts - 1)

    def log_prob(self, parameters: np.ndarray, rows: np.ndarray) -> np.ndarray:
        log_p = self.log_softmax(parameters)[np.arange(self.shape[0]), rows]  # (N, D)
        return np.where(self.existence.of(rows), log_p, 0.0).sum(axis=1)

    def gradient(self, parameters: np.ndarray, rows: np.ndarray, weights: np.ndarray, entropy: float, step: int) -> np.ndarray:
        log_p, exists = self.log_softmax(parameters), self.existence.of(rows)
        p = np.exp(log_p)
        weighted = weights[:, None] * exists  # (N, D)
        at = np.arange(self.shape[0]) * self.shape[1] + rows
        taken = np.bincount(at.ravel(), weights=weighted.ravel(), minlength=p.size).reshape(p.shape)
        gradient = taken - weighted.sum(axis=0)[:, None] * p  # d log p[taken] / d logits = onehot(taken) - p
        if entropy:
            surprise = np.where(self.own, log_p, 0.0)
            own_entropy = -(p * surprise).sum(axis=1, keepdims=True)
            gradient -= entropy * exists.mean(axis=0)[:, None] * p * (surprise + own_entropy)
        return gradient

    def partial_gradient(self, parameters: np.ndarray, row: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """d log p(the options of `row` (D,) of the decisions `counted`, bool (D,)) / d logits: what was not drawn by the policy does not count."""
        gradient = -np.exp(self.log_softmax(parameters))
        gradient[np.arange(len(row)), row] += 1
        return gradient * counted[:, None]

    def mode(self, parameters: np.ndarray) -> Architecture:
        """The most likely option of every decision: "argmax of every decision's final logits" (TuNAS). What a decision that does not exist
        would have taken is not weighed."""
        return self.space.from_indices(np.where(self.own, parameters, -np.inf).argmax(axis=1).tolist())


class Conditioned:
    """Independent softmaxes given that the budgets hold: p(y | V) = p(y) / P(V), with P(V) and its gradient exact, by elimination (ours).

    What TabNAS estimates from draws has no noise here, and however small P(V) is, no step is left out. Nothing over budget is ever drawn.
    The entropy is that of the softmaxes, not of p(y | V).
    """

    def __init__(self, within: Within) -> None:
        self.within, self.feasible = within, within.feasible
        self.softmaxes = Softmaxes(within.space)

    def initial(self) -> np.ndarray:
        return self.softmaxes.initial()

    def sample(self, parameters: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        """Draws that are over budget are drawn again; where nearly all are, by elimination. Both give p(y | V)."""
        kept = _first_kept(self.softmaxes, self.feasible, parameters, count, generator, PROPOSALS)
        missing = count - len(kept)
        if not missing:
            return kept
        sampler = Sampler(self.feasible, self.softmaxes.probabilities(parameters))
        return np.concatenate([kept, sampler.draw(missing, generator).astype(np.int64)])

    def log_prob(self, parameters: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self.softmaxes.log_prob(parameters, rows) - self.log_feasible(parameters)[0]

    def gradient(self, parameters: np.ndarray, rows: np.ndarray, weights: np.ndarray, entropy: float, step: int) -> np.ndarray:
        gradient = self.softmaxes.gradient(parameters, rows, weights, entropy, step)
        if total := float(weights.sum()):
            gradient -= total * self.log_feasible(parameters)[1]
        return gradient

    def partial_gradient(self, parameters: np.ndarray, row: np.ndarray, counted: np.ndarray) -> np.ndarray:
        """d log p(the options of `row` of the decisions `counted` | V) / d logits, all others summed out, exactly: log P(counted, V) - log P(V).

        row (D,): an option for each that is counted; a decision that does not exist is counted as if drawn from its softmax. BudgetError,
        where no architecture within the budgets has these options.
        """
        p = self.softmaxes.probabilities(parameters)
        given = {name: np.eye(len(own))[row[at]] if counted[at] else own for at, (name, own) in enumerate(p.items())}
        together = self._by_logits(p, self.feasible.log_probability(given)[1]) * ~counted[:, None]
        return self.softmaxes.partial_gradient(parameters, row, counted) + together - self.log_feasible(parameters)[1]

    def mode(self, parameters: np.ndarray) -> Architecture:
        """argmax of p(y | V), which the argmax of p may be far from: conditioned, what is over budget is free to keep its probability."""
        return most_likely(self.feasible, self.softmaxes.probabilities(parameters))

    def log_feasible(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """log P(V), and its gradient by the logits (D, O)."""
        p = self.softmaxes.probabilities(parameters)
        found, by_probability = self.feasible.log_probability(p)
        return found, self._by_logits(p, by_probability)

    def _by_logits(self, p: Mapping[str, np.ndarray], by_probability: Mapping[str, np.ndarray]) -> np.ndarray:
        """(D, O): a gradient by probabilities, through the softmax."""
        gradient = np.zeros(self.softmaxes.shape)
        for row, (name, own) in enumerate(p.items()):
            gradient[row, : len(own)] = own * (by_probability[name] - own @ by_probability[name])
        return gradient


class Among:
    """Independent softmaxes given that the architecture is one of those that the space lists, as the rows of a table that is a sample are.

    p(y | L) = p(y) / sum over the list, with its gradient, and draws, by going through the list. The entropy is that of the softmaxes.
    """

    def __init__(self, space: SearchSpace) -> None:
        if space.size > MOST_LISTED:
            raise SpaceError(
                f"a policy needs a Space, one within budgets, or a list of at most {MOST_LISTED:,}; this one has {space.size:,}"
            )
        self.softmaxes = Softmaxes(Space(tuple(space.decisions)))
        self.rows = np.array(space.indices(space.enumerate()), dtype=np.int64)  # (listed, decisions)
        self.space = space

    def initial(self) -> np.ndarray:
        return self.softmaxes.initial()

    def sample(self, parameters: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        return self.rows[generator.choice(len(self.rows), count, p=self._chances(parameters)[1])]

    def log_prob(self, parameters: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self.softmaxes.log_prob(parameters, rows) - self._chances(parameters)[0]

    def gradient(self, parameters: np.ndarray, rows: np.ndarray, weights: np.ndarray, entropy: float, step: int) -> np.ndarray:
        gradient = self.softmaxes.gradient(parameters, rows, weights, entropy, step)
        if total := float(weights.sum()):
            gradient -= total * self.softmaxes.gradient(parameters, self.rows, self._chances(parameters)[1], 0.0, step)
        return gradient

    def mode(self, parameters: np.ndarray) -> Architecture:
        return self.space.from_indices(self.rows[int(np.argmax(self.softmaxes.log_prob(parameters, self.rows)))].tolist())

    def _chances(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """log of the probability of the list, and p of each row given the list."""
        log_p = self.softmaxes.log_prob(parameters, self.rows)
        most = float(log_p.max())
        p = np.exp(log_p - most)
        return most + log(float(p.sum())), p / p.sum()


def softmaxes(space: SearchSpace) -> Softmaxes | Conditioned | Among:
    """Independent softmaxes on a space; within budgets given that they hold, and on a list given that it has the architecture."""
    if isinstance(space, Within) and isinstance(space.space, Space):
        return Conditioned(space)
    return Softmaxes(space) if isinstance(space, Space) else Among(space)


# --- rejection, as published ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rejecting:
    """A controller that draws from its policy until the budgets hold, and estimates P(V) from draws, as TabNAS does.

    controller: of the space without budgets. samples: N, the draws of an estimate; of two, N goes from the first to the second in `steps`
    gradients, N_t = ceil(N_end + (1 - t / steps) (N_start - N_end)). 0 leaves the correction out, as the official notebook does in effect: its
    gradient is that of p, not of p(y | V). seed: of these draws, which belong to the step, not to the search.
    """

    samples: int | tuple[int, int] = 1_024
    steps: int | None = None
    seed: int = 0
    controller: Controller = softmaxes

    def __post_init__(self) -> None:
        given = self.samples if isinstance(self.samples, tuple) else (self.samples,)
        if min(given) < 1 and self.samples != 0:
            raise ValueError(f"samples={self.samples}: P(feasible) is estimated from 1 draw at least, or, with 0 alone, not at all")
        if (len(given) == 2) != (self.steps is not None):
            raise ValueError(
                f"samples={self.samples}, steps={self.steps}: from one number to another in so many steps, or one number alone"
            )

    def __call__(self, space: SearchSpace) -> Rejected:
        if not isinstance(space, Within):
            raise SpaceError("rejection needs budgets to reject by; give it within(space, limits)")
        return Rejected(self, space)

    def samples_at(self, step: int) -> int:
        """N at gradient number `step`."""
        if isinstance(self.samples, int) or self.steps is None:
            return int(self.samples if isinstance(self.samples, int) else self.samples[0])
        start, end = self.samples
        return ceil(end + (1 - min(1.0, step / self.steps)) * (start - end))


class Rejected:
    """A policy within budgets by rejection (TabNAS, Eq. 3-5): J(y) = A * log(p(y) / P(V)), P(V) estimated by Monte Carlo.

    Phat(V) = 1/N * sum over k of p(z_k) / q(z_k) * [z_k in V], with z_k from q, the policy as it is, and constant. The value is the share of
    the z_k within the budgets; the gradient of its logarithm is the mean of grad log p(z_k) over those within. Without any of these the step
    is left out. Deviation: what is over budget is drawn again, since it costs no evaluation, where the paper's loop goes on without a step.
    """

    def __init__(self, rule: Rejecting, within: Within) -> None:
        self.rule, self.within, self.feasible = rule, within, within.feasible
        self.policy = rule.controller(within.space)

    def initial(self) -> np.ndarray:
        return self.policy.initial()

    def sample(self, parameters: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        kept = _first_kept(self.policy, self.feasible, parameters, count, generator, MOST_REJECTED)
        if len(kept) < count:
            raise BudgetError(
                f"fewer than one in {MOST_REJECTED:,} draws of the policy have {self.feasible.text()}; rejection alone does not get further, the "
                f"exact softmaxes within the budgets do"
            )
        return kept

    def log_prob(self, parameters: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """log p, without log P(V), which is not known."""
        return self.policy.log_prob(parameters, rows)

    def gradient(self, parameters: np.ndarray, rows: np.ndarray, weights: np.ndarray, entropy: float, step: int) -> np.ndarray | None:
        gradient = self.policy.gradient(parameters, rows, weights, entropy, step)
        if not self.rule.samples:
            return gradient
        estimate = self.log_feasible(parameters, step)
        if gradient is None or estimate is None:
            return None
        return gradient - float(weights.sum()) * estimate[1]

    def log_feasible(self, parameters: np.ndarray, step: int) -> tuple[float, np.ndarray] | None:
        """log Phat(V) and its gradient by the parameters, of the draws that belong to `step`; None where none of them is within."""
        count = self.rule.samples_at(step)
        drawn = self.policy.sample(parameters, count, np.random.default_rng((self.rule.seed, step)))
        kept = drawn[self.feasible.keeps(drawn)]
        if not len(kept):
            return None
        gradient = self.policy.gradient(parameters, kept, np.full(len(kept), 1 / len(kept)), 0.0, step)
        return None if gradient is None else (log(len(kept) / count), gradient)

    def mode(self, parameters: np.ndarray) -> Architecture:
        """The most likely of 4,096 draws that are within the budgets: "sample from the final P, reject" (the paper draws fewer)."""
        rows = self.sample(parameters, PROPOSALS, np.random.default_rng(self.rule.seed))
        return self.within.space.from_indices(rows[int(np.argmax(self.policy.log_prob(parameters, rows)))].tolist())


def _first_kept(
    policy: Policy, feasible: Feasible, parameters: np.ndarray, count: int, generator: np.random.Generator, most: int
) -> np.ndarray:
    """(at most count, decisions): the first draws that keep the budgets; fewer than `count` where not one in about `most` does."""
    kept: list[np.ndarray] = []
    missing, proposed, batch = count, 0, 4 * count
    while missing > 0 and proposed < most * (count - missing + 1):
        rows = policy.sample(parameters, batch, generator)
        found = rows[feasible.keeps(rows)][:missing]
        kept.append(found)
        missing, proposed, batch = missing - len(found), proposed + batch, min(4 * batch, 16_384)
    return np.concatenate(kept) if kept else np.zeros((0, len(feasible.space)), dtype=np.int64)
