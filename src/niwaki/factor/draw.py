"""Drawing architectures that keep the budgets: exactly uniform, or exactly as a distribution gives them once it is known that they do."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from niwaki.factor.eliminate import COARSE_BINS, Binned, Feasible, Weights
from niwaki.factor.factor import index_type
from niwaki.factor.message import padded
from niwaki.space.choice import BudgetError

DRAW_WORK = 250_000_000  # arcs times cells of the one pass; about a quarter of a second, once
ACCEPTED = 0.9  # part of the proposals that should turn out to keep the budgets
BATCH = 65_536  # proposals at a time: many of them share a state and an amount of slack, and so one table
MOST_PROPOSALS = 4_000_000  # without a single one accepted
TRIED, ENOUGH = (
    4_096,
    0.02,
)  # plain draws, and the part of them within the budgets with which nothing better is needed: of large chains only


class Sampler:
    """Draws from a `Feasible` set. What a draw gives depends on the generator alone.

    Proposals are drawn from a superset (spends rounded down), in which every architecture has its right weight, and those whose exact
    cost is over a limit are rejected: what remains is exactly distributed.
    """

    def __init__(self, feasible: Feasible, probabilities: Weights | None = None) -> None:
        self.feasible = feasible
        given = None if probabilities is None else feasible.checked_probabilities(probabilities)
        self._plain = _cumulative(feasible, given) if feasible.chain.is_merged else None
        if self._plain is not None and feasible.keeps(self.propose(TRIED, np.random.default_rng(0))).mean() >= ENOUGH:
            return
        self._plain = None
        stages, slack = feasible.stages, feasible.slack
        raw = [np.ones(len(arcs.raw)) if given is None else feasible.raw_weights(given, number) for number, arcs in enumerate(stages)]
        weights = [np.bincount(arcs.group, weights=w, minlength=len(arcs.source)) for arcs, w in zip(stages, raw, strict=True)]
        bins = feasible.affordable(stages, slack, DRAW_WORK, kept=True)
        if not all(units < bins for units in slack):  # rounding down leaves half a bin of slack too much per stage, on average
            coarse = Binned(stages, slack, COARSE_BINS[len(slack) - 1], "down")
            steepness = coarse.steepness(coarse.backward(weights, keep=False)[0][0])
            bins = min(bins, max(COARSE_BINS[len(slack) - 1], ceil(steepness * len(stages) / 2 / (1 - ACCEPTED))))
        self._binned = Binned(stages, slack, bins, "down")
        messages = self._binned.backward(weights)[0]
        if not messages[0][0, -1]:
            kind = "architecture" if given is None else "architecture of positive probability"
            raise BudgetError(f"no {kind} has {feasible.text()}; this is certain")
        self._after = [padded(message, left=message.shape[1]) for message in messages[1:]]
        self._bundle_weights = [part.total(w) for part, w in zip(self._binned.stages, weights, strict=True)]
        self._members = [_Members(part.of_raw(arcs.group), w) for part, arcs, w in zip(self._binned.stages, stages, raw, strict=True)]

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """(count, decisions): option numbers of `count` independent draws, for `Space.from_indices`."""
        drawn: list[np.ndarray] = []
        missing, proposed, accepted = count, 0, 0
        while missing > 0:
            rate = accepted / proposed if accepted else 1.0
            rows = self.propose(BATCH if proposed and not accepted else min(BATCH, ceil(missing / rate * 1.05) + 16), generator)
            kept = rows[self.feasible.keeps(rows)]
            proposed, accepted = proposed + len(rows), accepted + len(kept)
            drawn.append(kept[:missing])
            missing -= len(kept)
            if not accepted and proposed >= MOST_PROPOSALS:
                bounds = self.feasible.count()
                raise BudgetError(
                    f"none of {proposed:,} architectures drawn has {self.feasible.text()}; between {bounds.lo:,} and {bounds.hi:,} "
                    f"of {bounds.size:,} have it; loosen one of the limits"
                )
        return np.concatenate(drawn) if drawn else np.zeros((0, len(self.feasible.space)), dtype=index_type(self.feasible.space))

    def propose(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """(count, decisions): option numbers of draws from the superset."""
        space = self.feasible.space
        if self._plain is not None:
            columns = [np.searchsorted(steps, generator.random(count), side="right") for steps in self._plain]
            return np.stack(columns, axis=1).astype(index_type(space))
        rows = np.zeros((count, len(space)), dtype=index_type(space))
        state, cell = np.zeros(count, dtype=np.int64), np.full(count, self._binned.grid.cells - 1)
        for number, stage in enumerate(self.feasible.chain.stages):
            bundle = self._step(number, state, cell, generator)
            raw = self.feasible.stages[number].raw[self._members[number].draw(bundle, generator)]
            rows[:, stage.start : stage.stop] = stage.options[raw]
            moves = self._binned.stages[number].moves
            state, cell = moves.away[bundle], cell - moves.shift[bundle]
        return rows

    def _step(self, number: int, state: np.ndarray, cell: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(N,): a bundle of the stage for each draw, as likely as its weight times the weight of finishing after it."""
        moves, weight = self._binned.stages[number].moves, self._bundle_weights[number]
        flat, bounds, cells = self._after[number], moves.bounds(), self._binned.grid.cells
        start = moves.away * (2 * cells) + cells - moves.shift
        bundle, u = np.empty(len(state), dtype=np.int64), generator.random(len(state))
        order = np.argsort(state, kind="stable")
        ends = np.searchsorted(state[order], np.arange(moves.homes + 1))
        for home in np.flatnonzero(np.diff(ends)):
            here = order[ends[home] : ends[home + 1]]
            amounts, which = np.unique(cell[here], return_inverse=True)
            low = bounds[home]
            high = low + np.searchsorted(moves.shift[low : bounds[home + 1]], amounts[-1], side="right")
            tables = flat[start[low:high] + amounts[:, None]]  # (distinct amounts of slack, bundles)
            tables *= weight[low:high]
            np.cumsum(tables, axis=1, out=tables)
            tables /= tables[:, -1:]
            tables += np.arange(len(amounts))[:, None]  # one ascending list for all rows; 2^-40 of a unit is lost at most
            at = np.searchsorted(tables.ravel(), which + u[here], side="right") - which * (high - low)
            bundle[here] = low + np.minimum(at, high - low - 1)
        return bundle


def _cumulative(feasible: Feasible, given: dict[Any, np.ndarray] | None) -> list[np.ndarray] | None:
    """For each decision the sums of its probabilities before each option but the first; None where decisions do not always exist, or weights
    are of several together. Draws by these are as the distribution says before the budgets are looked at."""
    space = feasible.space
    if feasible.joint or any(decision.condition is not True for decision in space.decisions):
        return None
    weights = [np.ones(len(d.options)) if given is None else given[d.name] for d in space.decisions]
    if any(not weight.sum() for weight in weights):
        return None
    return [np.cumsum(weight / weight.sum())[:-1] for weight in weights]


class _Members:
    """The arcs behind each bundle, to draw one of them by its weight."""

    def __init__(self, bundle: np.ndarray, weight: np.ndarray) -> None:
        """bundle: (R,) of each arc, -1 for none; weight: (R,)."""
        self._order = np.argsort(bundle, kind="stable")
        self._order = self._order[np.searchsorted(bundle[self._order], 0) :]
        self._sum = np.concatenate(([0.0], np.cumsum(weight[self._order])))
        self._first = np.searchsorted(bundle[self._order], np.arange(bundle.max(initial=-1) + 2))

    def draw(self, bundle: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(N,): an arc of each of the bundles."""
        first, last = self._first[bundle], self._first[bundle + 1]
        low, high = self._sum[first], self._sum[last]
        at = np.searchsorted(self._sum, low + generator.random(len(bundle)) * (high - low), side="right") - 1
        return self._order[np.clip(at, first, last - 1)]
