"""MnasNet's and NASNet's controller: a one-layer LSTM that takes the decisions in turn, each with the softmax of its own, fed with what was taken before.

numpy with the gradient written out: a controller is small, and a strategy needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from niwaki.factor.within import Within
from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError
from niwaki.space.space import Space
from niwaki.strategy.strategy import SearchSpace, whole


@dataclass(frozen=True)
class Lstm:
    """A controller of `hidden` units (MnasNet does not give their number; NASNet has 100). Weights begin uniformly within +-`scale` (NASNet).

    seed: of these weights. A decision that does not exist is passed over: the state goes on as it was, and nothing is fed.
    """

    hidden: int = 64
    scale: float = 0.08
    seed: int = 0

    def __post_init__(self) -> None:
        if self.hidden < 1 or not self.scale > 0:
            raise ValueError(f"hidden={self.hidden}, scale={self.scale}: 1 unit at least, and a scale above 0")

    def __call__(self, space: SearchSpace) -> LstmPolicy:
        if isinstance(space, Within):
            raise SpaceError(
                f"this controller knows no budget, but the space holds {space.feasible.text()}; give it the space without, or reject"
            )
        return LstmPolicy(whole(space), self)


@dataclass(frozen=True, eq=False)
class _Step:
    """One decision of a batch of N rows, kept for the way back. H hidden units, O options of the decision."""

    exists: np.ndarray  # bool (N,)
    fed: np.ndarray  # (N,) which embedding was fed
    h: np.ndarray  # (N, H) before
    c: np.ndarray  # (N, H) before
    gates: np.ndarray  # (N, 4, H): input, forget, output after the sigmoid; candidate after tanh
    tanh_c: np.ndarray  # (N, H) of the state after
    after: np.ndarray  # (N, H) output
    log_p: np.ndarray  # (N, O)


class LstmPolicy:
    """p(row) = product over decisions that exist of softmax(heads h)[taken]. parameters: one vector of all weights."""

    def __init__(self, space: Space, rule: Lstm) -> None:
        self.space, self.rule, self.existence = space, rule, space.existence
        counts = [len(decision.options) for decision in space.decisions]
        self.first = np.concatenate(([0], np.cumsum(counts)))  # of each decision's options among all
        hidden, options = rule.hidden, int(self.first[-1])
        self._shapes = {
            "embeddings": (options + 1, hidden),  # the last: what is fed before anything is taken
            "from_fed": (hidden, 4 * hidden),
            "from_state": (hidden, 4 * hidden),
            "bias": (4 * hidden,),
            "heads": (options, hidden),
            "head_bias": (options,),
        }

    def initial(self) -> np.ndarray:
        generator = np.random.default_rng(self.rule.seed)
        return generator.uniform(-self.rule.scale, self.rule.scale, sum(prod(shape) for shape in self._shapes.values()))

    def sample(self, parameters: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        rows = np.zeros((count, len(self.space.decisions)), dtype=np.int64)
        self._run(parameters, rows, generator)
        return rows

    def log_prob(self, parameters: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self._log_prob(rows, self._run(parameters, rows))

    def gradient(self, parameters: np.ndarray, rows: np.ndarray, weights: np.ndarray, entropy: float, step: int) -> np.ndarray:
        """By the chain rule backward through the decisions. The entropy is that of every softmax on the way that the rows take."""
        w, steps = self._views(parameters), self._run(parameters, rows)
        flat = np.zeros_like(parameters)
        d, n, hidden = self._views(flat), len(rows), self.rule.hidden
        d_h, d_c = np.zeros((n, hidden)), np.zeros((n, hidden))
        for at in reversed(range(len(steps))):
            one, own = steps[at], slice(self.first[at], self.first[at + 1])
            there = one.exists[:, None]
            p = np.exp(one.log_p)
            d_logits = -weights[:, None] * p
            d_logits[np.arange(n), rows[:, at]] += weights
            if entropy:
                d_logits -= entropy / n * p * (one.log_p - (p * one.log_p).sum(axis=1, keepdims=True))
            d_logits *= there
            d["heads"][own] += d_logits.T @ one.after
            d["head_bias"][own] += d_logits.sum(axis=0)
            into = (d_h + d_logits @ w["heads"][own]) * there  # what goes on past a decision that does not exist stays in d_h
            i, f, o, g = one.gates.transpose(1, 0, 2)
            d_state = into * o * (1 - one.tanh_c**2) + d_c * there
            d_gates = np.concatenate(
                [d_state * g * i * (1 - i), d_state * one.c * f * (1 - f), into * one.tanh_c * o * (1 - o), d_state * i * (1 - g**2)],
                axis=1,
            )  # (N, 4H)
            d["from_fed"] += w["embeddings"][one.fed].T @ d_gates
            d["from_state"] += one.h.T @ d_gates
            d["bias"] += d_gates.sum(axis=0)
            np.add.at(d["embeddings"], one.fed, d_gates @ w["from_fed"].T)
            d_h = np.where(there, d_gates @ w["from_state"].T, d_h)
            d_c = np.where(there, d_state * f, d_c)
        return flat

    def mode(self, parameters: np.ndarray) -> Architecture:
        """Each decision's most likely option in turn: greedy, so not always the most likely architecture. MnasNet takes the best it sampled."""
        rows = np.zeros((1, len(self.space.decisions)), dtype=np.int64)
        self._run(parameters, rows, greedy=True)
        return self.space.from_indices(rows[0].tolist())

    def _views(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """The weights by name, as views of one vector."""
        views, at = {}, 0
        for name, shape in self._shapes.items():
            views[name] = flat[at : at + prod(shape)].reshape(shape)
            at += prod(shape)
        return views

    def _run(
        self, parameters: np.ndarray, rows: np.ndarray, generator: np.random.Generator | None = None, *, greedy: bool = False
    ) -> list[_Step]:
        """Forward through the decisions of `rows` (N, decisions); with a generator, or greedy, they are taken on the way, in place."""
        w, n, hidden = self._views(parameters), len(rows), self.rule.hidden
        h, c = np.zeros((n, hidden)), np.zeros((n, hidden))
        fed = np.full(n, self.first[-1])
        steps = []
        for at in range(len(self.space.decisions)):
            exists = self.existence.at(rows, at)
            total = w["embeddings"][fed] @ w["from_fed"] + h @ w["from_state"] + w["bias"]
            gates = total.reshape(n, 4, hidden)
            gates[:, :3] = 1 / (1 + np.exp(-gates[:, :3]))
            gates[:, 3] = np.tanh(gates[:, 3])
            i, f, o, g = gates.transpose(1, 0, 2)
            state = f * c + i * g
            tanh_c = np.tanh(state)
            after = o * tanh_c
            own = slice(self.first[at], self.first[at + 1])
            logits = after @ w["heads"][own].T + w["head_bias"][own]
            logits -= logits.max(axis=1, keepdims=True)
            log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
            if greedy:
                rows[:, at] = log_p.argmax(axis=1) * exists
            elif generator is not None:
                below = np.exp(log_p).cumsum(axis=1)[:, :-1]
                rows[:, at] = (generator.random((n, 1)) >= below).sum(axis=1) * exists
            steps.append(_Step(exists, fed, h, c, gates, tanh_c, after, log_p))
            there = exists[:, None]
            h, c = np.where(there, after, h), np.where(there, state, c)
            fed = np.where(exists, self.first[at] + rows[:, at], fed)
        return steps

    def _log_prob(self, rows: np.ndarray, steps: list[_Step]) -> np.ndarray:
        total = np.zeros(len(rows))
        for at, one in enumerate(steps):
            total += np.where(one.exists, one.log_p[np.arange(len(rows)), rows[:, at]], 0.0)
        return total
