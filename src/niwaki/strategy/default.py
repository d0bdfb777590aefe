"""Our default: Bayesian optimisation over what architectures are made of. For when evaluations are few, and nothing should need tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np

from niwaki.objective import BEST_ACCURACY, Objective
from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError
from niwaki.strategy.ground import Ground, generator_of
from niwaki.strategy.strategy import SearchSpace, fingerprint, origin, unseen
from niwaki.strategy.surrogate import (
    Belief,
    Model,
    Points,
    Setting,
    expected_hypervolume_improvement,
    expected_improvement,
    normal_cdf,
    normal_scores,
    normal_scores_among,
    settings_of,
    standard_scores,
    usual,
)
from niwaki.trial import Trial

STARTS = 10  # architectures at random before anything is modelled
MOST_TOLD = 256  # trials that a model is conditioned on
MOST_FITTED = 160  # trials from which the settings of the kernel are found
AVERAGED = 256  # settings times trials: fewer settings are averaged where more is known
MOST_SETTINGS = 16
MERGED = 0.0  # largest mixture of the kernel at which architectures that compute the same count as one
LEAST_KEPT = 5  # trials within all limits, from which on ranks are those among them
MOST_SHARE = 1e6  # of a limit, so that squares stay finite
FAR = 20.0  # times the median distance to a limit: what exceeds it by more counts as if by that
SHORTLIST = 1024  # candidates of a list that are looked at under all settings and trials; all are, under the first and some
MOST_TOLD_FIRST = 64
CLIMBS = 2  # times that the neighbours of the most promising join a pool
CLIMBED = 4  # most promising


@dataclass(frozen=True)
class DefaultState:
    """What was told. rows: int32 (n, decisions); values: float64 (n, objectives + limits), qualities and spent / limit, NaN where failed;
    status: int8 (n,), 1 ok, 0 failed, -1 cut. settings: for each column of values, of the kernel; they follow from the rest, and are not saved."""

    space: SearchSpace
    rows: np.ndarray
    values: np.ndarray
    status: np.ndarray
    settings: tuple[tuple[Setting, ...], ...]
    ground: Ground = field(compare=False, repr=False)


@dataclass(frozen=True)
class Default:
    """The candidate of greatest expected improvement under a Gaussian process; one after the other, what is out being taken as its mean.

    Features are of the description (see `Space.features`): options taken, and paths or counts that they make; targets are the ranks of the
    qualities as normal quantiles, so that neither units nor outliers matter; failed trials rank below all others. Of architectures that
    compute the same only one is proposed, where the description knows no paths, or they alone explain what was told. Limits on metrics that are told are modelled, too,
    as shares of the limit: improvement counts by the probability that all are kept (Gardner et al. 2014), and ranks are those among what
    keeps them. objective: one, or a tuple of several: of two the hypervolume is improved, of more a weighted sum, its weights drawn anew for
    each proposal; limits are those of the first.
    """

    objective: Objective | tuple[Objective, ...] = BEST_ACCURACY
    name: str = "default"

    @property
    def objectives(self) -> tuple[Objective, ...]:
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)

    def init(self, space: SearchSpace) -> DefaultState:
        columns = len(self.objectives) + len(self.objectives[0].subject_to)
        rows = np.zeros((0, len(space.decisions)), dtype=np.int32)
        return DefaultState(space, rows, np.zeros((0, columns)), np.zeros(0, dtype=np.int8), ((),) * columns, Ground(space))

    def tell(self, state: DefaultState, trials: Sequence[Trial]) -> DefaultState:
        if not trials:
            return state
        rows = np.array(state.space.indices([trial.arch for trial in trials]), dtype=np.int32).reshape(len(trials), -1)
        values = np.array([self._values(trial) for trial in trials])
        status = np.array([{"ok": 1, "failed": 0, "cut": -1}[trial.status] for trial in trials], dtype=np.int8)
        told = replace(
            state,
            rows=np.concatenate([state.rows, rows]),
            values=np.concatenate([state.values, values]),
            status=np.concatenate([state.status, status]),
        )
        # the settings follow from how many were told, not from how they were told
        due = _latest_due(len(told.rows))
        return replace(told, settings=self._settings(told, due)) if due > len(state.rows) else told

    def ask(self, state: DefaultState, count: int, rng: Random, pending: Sequence[Architecture]) -> list[Architecture]:
        space, generator = state.space, generator_of(rng)
        out = np.array(space.indices(pending), dtype=np.int32).reshape(len(pending), len(space.decisions))
        asked: list[Architecture] = []
        view = None
        while len(asked) < count:
            if len(state.rows) + len(out) < STARTS or not self._modelled(state):
                row = self._start(state, out, generator)
            else:
                view = view or _View(self, state, out, generator)
                row = view.best_()
            if row is None:  # nothing new came up
                known = {fingerprint(origin(space).from_indices(told.tolist())) for told in np.concatenate([state.rows, out])}
                arch = unseen(lambda: space.sample_uniform(rng), space, known, rng)
                if arch is None:
                    break
                row, view = np.array(space.indices([arch])[0], dtype=np.int32), None
            else:
                arch = space.from_indices(row.tolist())
            asked.append(arch)
            out = np.concatenate([out, row[None]])
        return asked

    def save(self, state: DefaultState) -> tuple[Any, dict[str, np.ndarray]]:
        return {"space": state.space.hash}, {"rows": state.rows, "values": state.values, "status": state.status}

    def load(self, space: SearchSpace, content: Any, arrays: dict[str, np.ndarray]) -> DefaultState:
        if (of := content["space"]) != space.hash:
            raise SpaceError(f"the state of this search belongs to the space {of}, but is read for the space {space.hash}")
        told = DefaultState(space, arrays["rows"], arrays["values"], arrays["status"], self.init(space).settings, Ground(space))
        due = _latest_due(len(told.rows))
        return replace(told, settings=self._settings(told, due)) if due else told

    # ---------------------------------------------------------------- inside

    def _values(self, trial: Trial) -> list[float]:
        limits = self.objectives[0].subject_to
        if trial.status != "ok":
            return [np.nan] * (len(self.objectives) + len(limits))
        return [objective.quality(trial.metrics) for objective in self.objectives] + [limit.ratio(trial.metrics) for limit in limits]

    def _modelled(self, state: DefaultState) -> bool:
        """Whether there is anything to tell trials apart by."""
        return bool((state.status == 1).any()) and bool(state.settings[0])

    def _start(self, state: DefaultState, out: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
        """An architecture at random, and one that computes what no other does, if there is one."""
        known = np.concatenate([state.rows, out])
        ground = state.ground
        if ground.rows is not None:
            free = ~_in(ground.rows, known)
            if not free.any():
                return None
            other = free & ~np.isin(ground.keys, ground.keys_of(known))
            choice = np.flatnonzero(other if other.any() else free)
            return ground.rows[choice[generator.integers(len(choice))]]
        drawn = ground.draw(32, generator)
        keys = state.space.canonical_keys(np.concatenate([known, drawn]))
        fresh = ~_in(drawn, known) & ~np.isin(keys[len(known) :], keys[: len(known)])
        return drawn[np.argmax(fresh)] if fresh.any() else None

    def targets(self, values: np.ndarray, status: np.ndarray, column: int) -> np.ndarray:
        """(n,): what is modelled of a column of values: of a single objective the ranks, of several standard scores, of limits the shares.

        What is spent adds up over layers, so that its logarithm would be harder to learn, and most of all where it is next to nothing.
        """
        ok = status == 1
        if column >= len(self.objectives):
            shares = np.clip(values[:, column], -MOST_SHARE, MOST_SHARE)
            return np.minimum(shares, 1 + FAR * (float(np.median(np.abs(shares - 1))) or 1.0)) if len(shares) else shares
        scored = values[:, column].copy()
        low, high = (scored[ok].min(), scored[ok].max()) if ok.any() else (0.0, 0.0)
        scored[~ok] = low - (high - low) - 1e-9  # worse than all others
        if len(self.objectives) > 1:
            return standard_scores(scored)
        kept = ok & (values[:, 1:] <= 1).all(axis=1)
        return normal_scores_among(scored, kept) if kept.sum() >= LEAST_KEPT and not kept[ok].all() else normal_scores(scored)

    def matter(self, targets: np.ndarray, column: int) -> np.ndarray:
        """(n,): how much each target matters to a model that cannot have all: the best of an objective, of a limit what is close to it."""
        return targets if column < len(self.objectives) else -np.abs(targets - 1)

    def learned_from(self, values: np.ndarray, status: np.ndarray, column: int) -> np.ndarray:
        """(n,) bool: from which trials a column is learned: of the limits nothing is known where a trial failed."""
        return status >= 0 if column < len(self.objectives) else status == 1

    def _settings(self, state: DefaultState, due: int) -> tuple[tuple[Setting, ...], ...]:
        rows, values, status = state.rows[:due], state.values[:due], state.status[:due]
        points = None
        found: list[tuple[Setting, ...]] = []
        for column in range(values.shape[1]):
            use = np.flatnonzero(self.learned_from(values, status, column))
            use = use[_some(self.matter(self.targets(values[use], status[use], column), column), MOST_FITTED)]
            targets = self.targets(values[use], status[use], column)
            points = points or state.ground.points(rows)
            if len(use) < 3 or np.ptp(targets) == 0:  # nothing to tell settings apart by
                found.append((usual(points),) if len(use) else ())
                continue
            found.append(settings_of(points.at(use), targets, MOST_SETTINGS))
        return tuple(found)


class _View:
    """Candidates for one batch, and what is believed of them."""

    def __init__(self, strategy: Default, state: DefaultState, out: np.ndarray, generator: np.random.Generator) -> None:
        self.state, self.generator = state, generator
        ground, count, ok = state.ground, len(strategy.objectives), state.status == 1
        self.several = count > 1
        self.known, self.out = np.concatenate([state.rows, out]), out
        self.scores = [self._scores(strategy, column) for column in range(count)]
        self.weights = self._drawn_weights()
        self.kept = ok & (state.values[:, count:] <= 1).all(axis=1)
        # of limits that nothing has exceeded there is nothing to be learned yet
        self.limits = [c for c in range(count, state.values.shape[1]) if state.settings[c] and (state.values[ok, c] > 1).any()]
        order = np.lexsort((-self.scores[0], ~self.kept, ~ok))
        self.rows = ground.pool(state.rows[order], generator) if ground.rows is None else ground.rows
        self.free = ~_in(self.rows, self.known)
        models = {column: self._models(strategy, column, MOST_TOLD) for column in [*range(count), *self.limits]}
        self.keys = None if ground.rows is None else ground.keys
        self.last: int | None = None  # proposal, of which nothing is assumed before another is asked for
        if ground.rows is None:
            self._look(models, ground.points(self.rows))
            for _ in range(CLIMBS):
                self._climb(models)
        else:
            if len(self.rows) > SHORTLIST:
                few = {column: self._models(strategy, column, MOST_TOLD_FIRST) for column in models}
                self._look({column: (found[:1], told) for column, (found, told) in few.items()}, ground.listed_points)
                self._merge()
                self._shorten()
                self._look(models, ground.listed_points.at(self.places))
            else:
                self._look(models, ground.listed_points)
                self._merge()

    def _scores(self, strategy: Default, column: int) -> np.ndarray:
        """(n,): what is modelled of an objective, -inf where nothing is learned of it."""
        state = self.state
        use = strategy.learned_from(state.values, state.status, column)
        scores = np.full(len(use), -np.inf)
        scores[use] = strategy.targets(state.values[use], state.status[use], column)
        return scores

    def _drawn_weights(self) -> np.ndarray | None:
        """(objectives,): of a sum of more than two."""
        return self.generator.dirichlet(np.ones(len(self.scores))) if len(self.scores) > 2 else None

    def _models(self, strategy: Default, column: int, most_told: int) -> tuple[list[Model], Points]:
        """Of a column of values, and the points that they were told."""
        state = self.state
        use = np.flatnonzero(strategy.learned_from(state.values, state.status, column))
        targets = strategy.targets(state.values[use], state.status[use], column)
        some = _some(strategy.matter(targets, column), most_told)
        told = state.ground.points(state.rows[use[some]])
        among, most = told.among, 1 if self.several else max(1, AVERAGED // len(some))
        return [Model(setting, among, targets[some]) for setting in state.settings[column][:most]], told

    def _believed(self, models: list[Model], told: Points, points: Points) -> list[Belief]:
        """What `models` say of `points`, those that are out being assumed to come out at their means."""
        if not len(self.out):
            relation = told.to(points)
            return [model(points, relation) for model in models]
        both = self.state.ground.points(self.out).and_(points)
        relation = told.to(both)
        beliefs = [model(both, relation) for model in models]
        for belief in beliefs:
            for place in range(len(self.out)):
                belief.assume_(place)
        return [belief.at(np.arange(len(self.out), len(both)), points) for belief in beliefs]

    def _look(self, models: dict[int, tuple[list[Model], Points]], points: Points) -> None:
        self.beliefs = {column: self._believed(*found, points) for column, found in models.items()}

    def _shorten(self) -> None:
        """Leaves the most promising candidates."""
        self.places = np.sort(np.argpartition(-self.value(), SHORTLIST)[:SHORTLIST])
        self.rows, self.free = self.rows[self.places], self.free[self.places]
        self.keys = None if self.keys is None else self.keys[self.places]

    def _climb(self, models: dict[int, tuple[list[Model], Points]]) -> None:
        """Adds the neighbours of the most promising candidates."""
        promising = self.rows[np.argsort(-self.value(), kind="stable")[:CLIMBED]]
        near = self.state.ground.near(promising, self.generator)
        near = near[~_in(near, self.rows)]
        if len(near):
            points = self.state.ground.points(near)
            joined = self.beliefs[0][0].points.and_(points)
            self.beliefs = {
                column: [old.and_(new, joined) for old, new in zip(self.beliefs[column], self._believed(*found, points), strict=True)]
                for column, found in models.items()
            }
            self.rows = np.concatenate([self.rows, near])
            self.free = np.concatenate([self.free, ~_in(near, self.known)])

    def _alike(self) -> bool:
        """Whether architectures that compute the same count as one: where the model tells them apart by their paths alone, or knows no paths."""
        best = [found[0] for found in self.beliefs.values()]
        return all(
            (belief.setting.mixture <= MERGED and belief.setting.structure == "paths") or "paths" not in belief.points.structures
            for belief in best
        )

    def _merge(self) -> None:
        """Leaves out what computes the same as a known architecture, if such count as one; of a pool see `_fresh`."""
        if self.keys is not None and self._alike():
            other = self.free & ~np.isin(self.keys, self.state.ground.keys_of(self.known))
            self.free = other if other.any() else self.free

    def _fresh(self, value: np.ndarray) -> int:
        """The place of the greatest value; of a pool, if such count as one, among what computes what no known architecture does, if any."""
        place, ground = self._greatest(value), self.state.ground
        if self.keys is None and self._alike():
            known = ground.keys_of(self.known)
            if ground.keys_of(self.rows[place][None])[0] in known:
                other = self.free & ~np.isin(self.state.space.canonical_keys(self.rows), known)
                place = self._greatest(np.where(other, value, -np.inf)) if other.any() else place
        return place

    def _greatest(self, value: np.ndarray) -> int:
        ties = np.flatnonzero(value == value.max())
        return int(ties[self.generator.integers(len(ties))])

    def value(self) -> np.ndarray:
        """(N,): how promising each candidate is; -inf for those that are known."""
        value = self._improvement()
        for column in self.limits:
            value = value * self._averaged(column, lambda belief: normal_cdf((1 - belief.mean) / belief.spread))
        return np.where(self.free, value, -np.inf)

    def _improvement(self) -> np.ndarray:
        if not self.kept.any():
            return np.ones(len(self.beliefs[0][0].mean))  # first of all, something that keeps them
        if len(self.scores) == 2:
            first, second = (self.beliefs[c][0] for c in (0, 1))
            told = np.stack([self.scores[0][self.kept], self.scores[1][self.kept]], axis=1)
            return expected_hypervolume_improvement((first.mean, second.mean), (first.deviation, second.deviation), told)
        if self.weights is not None:
            weights = self.weights
            beliefs = [self.beliefs[column][0] for column in range(len(weights))]
            mean = np.sum([w * b.mean for w, b in zip(weights, beliefs, strict=True)], axis=0)
            deviation = np.sqrt(np.sum([(w * b.deviation) ** 2 for w, b in zip(weights, beliefs, strict=True)], axis=0))
            return expected_improvement(mean, deviation, np.max(weights @ np.array([scores[self.kept] for scores in self.scores])))
        best = self.scores[0][self.kept].max()
        return self._averaged(0, lambda belief: expected_improvement(belief.mean, belief.deviation, best))

    def _averaged(self, column: int, of: Callable[[Belief], np.ndarray]) -> np.ndarray:
        """(N,): over the settings of a column, by their weights."""
        beliefs = self.beliefs[column]
        total = sum(belief.setting.weight for belief in beliefs)
        return np.sum([belief.setting.weight / total * of(belief) for belief in beliefs], axis=0)

    def best_(self) -> np.ndarray | None:
        """The most promising candidate, from then on taken as known; None if all are."""
        if not self.free.any():
            return None
        if self.last is not None:
            for belief in (belief for beliefs in self.beliefs.values() for belief in beliefs):
                belief.assume_(self.last)
        value = self.value()
        if value.max() <= 0:  # no improvement is expected any more, as far as numbers go: what is known least, or likeliest to be kept
            margins = [(1 - self.beliefs[column][0].mean) / self.beliefs[column][0].spread for column in self.limits]
            least_known = self.beliefs[0][0].mean + 3 * self.beliefs[0][0].deviation
            value = np.where(self.free, np.min(margins, axis=0) if margins else least_known, -np.inf)
        place = self._fresh(value)
        self.last = place
        row = self.rows[place]
        self.free[place] = False
        self.known = np.concatenate([self.known, row[None]])
        self.weights = self._drawn_weights()
        self._merge()
        return row


def _in(rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(N,) bool: which of `rows` are among `known`."""
    if not len(known) or not rows.shape[1]:
        return np.full(len(rows), bool(len(known)))
    kind = np.dtype((np.void, rows.shape[1] * 4))
    return np.isin(np.ascontiguousarray(rows, np.int32).view(kind).ravel(), np.ascontiguousarray(known, np.int32).view(kind).ravel())


def _some(targets: np.ndarray, most: int) -> np.ndarray:
    """Places of at most `most` trials: the half of the greatest targets, the latest quarter, and the rest evenly from all."""
    count = len(targets)
    if count <= most:
        return np.arange(count)
    taken = set(np.argsort(-targets, kind="stable")[: most // 2].tolist()) | set(range(count - most // 4, count))
    rest = [place for place in range(count) if place not in taken]
    more = most - len(taken)
    return np.array(sorted(taken | {rest[at * len(rest) // more] for at in range(more)}))


def _latest_due(count: int) -> int:
    """The largest number of trials up to `count` at which settings are found anew: each of the first 24, then every twelfth more."""
    due = min(count, 24)
    while (following := due + max(1, due // 12)) <= count:
        due = following
    return due
