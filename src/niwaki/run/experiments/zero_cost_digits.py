"""Zero-cost proxies, shared weights and a search, each against the digits networks of which everything is known (`digits_networks.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import asin, pi, sin, sqrt
from random import Random
from typing import Any

import numpy as np

from niwaki.evaluate.proxy import PROXIES, VOTERS, ZeroCost, vote
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.within import within
from niwaki.gradient.one_shot import OneShot, OneShotSearch
from niwaki.net.place import space_of
from niwaki.objective import Objective
from niwaki.run.asking import asked_of, begun, told
from niwaki.run.claims import Claim, Section, Table, percent
from niwaki.run.experiments.digits_networks import SPACE, TRAINING, both_seeds, known, members, network, task, train_member
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.verdicts import above, below, claim, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import (
    Interval,
    bootstrap,
    expected_pick,
    expected_picks,
    kendall,
    kendall_resampled,
    kendall_top,
    precision_at,
    ranks,
    regret_of_best,
)
from niwaki.run.strategies import strategy_named
from niwaki.run.workers import Job, Workers
from niwaki.trial import Trial

BEST = "default"  # the library's best searcher, named before anything was run
BESIDE = "evolution"
BASELINES = ("params", "macs")
AGAIN = "another training"
OWN_SEEDS = 100  # of real trainings, from here on: none of those that the table is made of
RESAMPLES = 2000
METRIC = "accuracy"
TOP = (0.1, 0.2)  # of the networks
NO_SEARCH = "not a search: a ranking of given networks"


@dataclass(frozen=True)
class Plan:
    """What is scored, searched and trained. networks, subnets: the first so many, in a fixed random order."""

    networks: int = 216
    images: int = 64  # in the batch of the proxies
    initialisations: int = 3
    evaluations: int = 60  # of a search on the table
    seeds: int = 30
    trainings: int = 20  # of a search that trains
    training_seeds: int = 5
    epochs: int = TRAINING.epochs
    supernets: int = 3
    supernet_epochs: int = 150
    subnets: int = 72
    minutes: str = "about 5 minutes on one core"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "minutes"}


QUICK = Plan(10, 4, 2, 6, 2, 3, 2, 1, 2, 2, 6, "half a minute")


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    table = known()
    order = np.random.default_rng(0).permutation(len(table)).tolist()
    scored, judged = order[: plan.networks], order[: plan.subnets]
    scores = {number: Job(f"scores {number}", score, (number, plan)) for number in scored}
    searches = {
        (name, seed): Job(f"search {name} {seed}", search_table, (name, seed, plan.evaluations))
        for name in (BEST, BESIDE)
        for seed in range(plan.seeds)
    }
    trainings = [Job(f"training search {seed}", search_training, (BEST, seed, plan)) for seed in range(plan.training_seeds)]
    supernets = [Job(f"supernet {seed}", supernet_ranks, (judged, seed, plan)) for seed in range(plan.supernets)]
    with Workers(workers) as pool:
        jobs = [*scores.values(), *searches.values(), *trainings, *supernets]
        found = pool.run(jobs, folder, progress, f"{len(scores)} networks scored, {len(searches) + len(trainings)} searches")
    return {
        "scored": scored,
        "scores": [found[job.name] for job in scores.values()],
        "params": table.cost("params")[scored].tolist(),
        "macs": table.cost("macs")[scored].tolist(),
        "validation": both_seeds(table, "validation").tolist(),
        "test": both_seeds(table, "test").tolist(),
        "seconds": table.column("training_seconds").tolist(),
        "all_macs": table.cost("macs").tolist(),
        "searches": {name: [found[searches[name, seed].name] for seed in range(plan.seeds)] for name in (BEST, BESIDE)},
        "trainings": [found[job.name] for job in trainings],
        "judged": judged,
        "supernets": [found[job.name] for job in supernets],
    }


# --- jobs: functions of their arguments alone --------------------------------------------------------------------------------------


def score(number: int, plan: Plan) -> dict[str, list[float | None]]:
    """The proxies' scores of a network at each initialisation, on images of the train part; None where one has none."""
    judge = ZeroCost.of(network(), task(), images=plan.images, initialisations=plan.initialisations)
    scores = [judge.scores(members()[number], at) for at in range(plan.initialisations)]
    return {name: [one[name] if np.isfinite(one[name]) else None for one in scores] for name in PROXIES}


def search_table(name: str, seed: int, evaluations: int) -> dict[str, Any]:
    """A search told of the mean validation accuracy of a network's two trainings, which take what they took when the table was made."""
    told_of, seconds = both_seeds(known(), "validation").mean(axis=0), known().column("training_seconds")
    return clocked(name, seed, evaluations, lambda place: (float(told_of[place]), float(seconds[place])))


def search_training(name: str, seed: int, plan: Plan) -> dict[str, Any]:
    """A search that trains each network that it asks for, with a seed of its own."""
    recipe = replace(TRAINING, epochs=plan.epochs)

    def evaluate(place: int) -> tuple[float, float]:
        found = train_member(place, OWN_SEEDS + seed, recipe)
        return found["validation"], found["seconds"]

    return clocked(name, seed, plan.trainings, evaluate)


def clocked(name: str, seed: int, evaluations: int, evaluate: Callable[[int], tuple[float, float]]) -> dict[str, Any]:
    """A search one by one. places: of the networks, in order; values: what it was told; seconds: what evaluating each took, and finished:
    when that was, with what the strategy itself took. evaluate: place -> value, seconds."""
    space = space_of(network())
    strategy = strategy_named(name, (Objective(METRIC),), evaluations)
    places, values, seconds, finished = list[int](), list[float](), list[float](), list[float]()
    number_of = {arch: number for number, arch in enumerate(members())}
    now, began = 0.0, time.process_time()
    state = begun(strategy, space)
    while len(places) < evaluations:
        asked = asked_of(strategy, space, state, 1, Random(f"{seed}/{len(places)}"), ())
        if not asked:
            break
        now += time.process_time() - began
        place = number_of[asked[0]]
        value, took = evaluate(place)
        now += took
        places, values, seconds, finished = [*places, place], [*values, value], [*seconds, took], [*finished, now]
        began = time.process_time()
        state = told(strategy, state, [Trial(len(places) - 1, asked[0], {METRIC: value}, strategy.name, took)])
    return {"places": places, "values": values, "seconds": seconds, "finished": finished}


def supernet_ranks(numbers: Sequence[int], seed: int, plan: Plan) -> dict[str, Any]:
    """A supernet trained on one path a step, and what its weights say of the networks on the validation part, in %."""
    method = OneShot(plan.supernet_epochs, TRAINING.batch_size, lr=0.1)
    learner = OneShotSearch(network(), task(), [within(space_of(network()), ())], method, seed=seed)
    began = time.process_time()
    while not learner.finished:
        learner.run()
    judge = SharedWeights(learner.net, task(), seed=seed)
    accuracies = [100 * judge(members()[number])["accuracy"] for number in numbers]
    return {"seconds": time.process_time() - began, "accuracies": accuracies}


# --- regret over time -------------------------------------------------------------------------------------------------------------


def heights(values: np.ndarray) -> np.ndarray:
    """log10 of each network's regret by `values`; the best one's, of 0, counts as the smallest above 0."""
    regret = values.max() - values
    return np.log10(np.maximum(regret, regret[regret > 0].min()))


def mean_over_log_time(finished: Sequence[float] | np.ndarray, after: Sequence[float] | np.ndarray, before: float, span: tuple[float, float]) -> float:  # fmt: skip
    """The mean over the logarithm of time, from span[0] to span[1], of what is `before` at first and `after[k]` from finished[k] on.

    >>> round(mean_over_log_time([10.0], [1.0], 0.0, (1.0, 100.0)), 9)  # half of two decades
    0.5
    """
    start, end = span
    edges = np.log(np.clip([start, *finished, end], start, end))
    return float((np.diff(edges) * [before, *after]).sum() / np.log(end / start))


def less_than_random(search: Mapping[str, Any], selecting: np.ndarray, valued: np.ndarray, mean_seconds: float) -> float:
    """The search's area under log10 regret over log time less that of exact random search, from the first draw to the search's end.

    selecting: by what random search picks; the search picks by what it was told. valued: by what regret is. mean_seconds: of a draw.
    """
    span, of = (mean_seconds, float(search["finished"][-1])), heights(valued)
    best = [int(np.argmax(search["values"][: at + 1])) for at in range(len(search["values"]))]
    own = mean_over_log_time(search["finished"], of[np.array(search["places"])[best]], float(of.max()), span)
    drawn = draws_within(span[1], mean_seconds, len(valued))
    random = mean_over_log_time(mean_seconds * np.arange(1, drawn + 1), expected_picks(selecting, of, drawn), float(of.max()), span)
    return own - random


def draws_within(seconds: float, mean_seconds: float, most: int) -> int:
    """How many draws random search has finished by then."""
    return min(most, max(1, int(seconds / mean_seconds + 1e-9)))


def pace(search: Mapping[str, Any], seconds: np.ndarray) -> float:
    """How long trainings took in this search, over what those of the same networks took when the table was made."""
    return float(sum(search["seconds"]) / seconds[search["places"]].sum())


# --- what it says -----------------------------------------------------------------------------------------------------------------


def section_of(results: dict[str, Any]) -> Section:
    scores, test = scores_of(results), np.array(results["test"])
    here, macs = test[:, results["scored"]], np.array(results["macs"])
    counts = _resamples(len(macs))
    found = {name: _tau(rows, here, counts) for name, rows in scores.items()}
    rng = np.random.default_rng(0)
    shuffled = {
        name: _tau([rng.permutation(rows[0])], here, counts, tests=len(scores) - 1) for name, rows in scores.items() if name != AGAIN
    }
    table, real = Outcome.on_table(results, BEST), Outcome.of_trainings(results)
    claims = (
        _control(shuffled),
        _over_sizes(scores, here, counts),
        _beats(f"On the table `{BEST}`, the library's best searcher, beats exact random search in equal time", table),
        _beats("So it does where each network that it asks for is trained", real),
        _shared(results),
    )
    tables = (_taus(results, scores, here, found, shuffled), _at_the_top(scores, here), _searches(results, table, real))
    title = "Zero-cost proxies, shared weights and a search, where all networks are trained"
    return section("zero_cost_digits", title, results, _about(results), claims, tables)


def scores_of(results: Mapping[str, Any]) -> dict[str, list[np.ndarray]]:
    """Score -> ranks of the networks that were scored, largest first as -rank: one (N,), but for another training one for each of the two."""
    found = {name: np.array([_mean(one[name]) for one in results["scores"]]) for name in PROXIES}
    found["vote"] = vote([found[name].tolist() for name in VOTERS])
    found |= {name: np.array(results[name], dtype=float) for name in BASELINES}
    again = [-ranks(np.array(results["test"][seed])[results["scored"]]) for seed in (1, 0)]
    return {**{name: [-ranks(values)] for name, values in found.items()}, AGAIN: again}


def _mean(values: Sequence[float | None]) -> float:
    return float(np.mean([value if value is not None else -np.inf for value in values]))


def _resamples(count: int) -> np.ndarray:
    """(RESAMPLES + 1, count): how often each network is in a resample; the first is all of them once."""
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return np.concatenate([np.ones((1, count), dtype=np.int64), drawn])


def _taus_of(scores: Sequence[np.ndarray], accuracies: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(resamples,): tau with one training, the mean over the two. scores: one for both, or one for each."""
    pairs = zip(scores if len(scores) == len(accuracies) else [scores[0]] * len(accuracies), accuracies, strict=True)
    return np.mean([kendall_resampled(score, accuracy, counts) for score, accuracy in pairs], axis=0)


def _tau(scores: Sequence[np.ndarray], accuracies: np.ndarray, counts: np.ndarray, *, tests: int = 1) -> Interval:
    """tests: of how many intervals all are to hold at once in 95 % (Bonferroni)."""
    return _interval(_taus_of(scores, accuracies, counts), tests)


def _interval(values: np.ndarray, tests: int = 1) -> Interval:
    low, high = np.quantile(values[1:], (0.025 / tests, 1 - 0.025 / tests))
    return Interval(float(values[0]), float(low), float(high))


def _control(shuffled: Mapping[str, Interval]) -> Claim:
    out = [name for name, one in shuffled.items() if not one.low <= 0 <= one.high]
    return claim(
        f"Shuffled scores tell nothing (a control): each of {len(shuffled)} intervals of tau, 95 % for all at once, holds 0",
        "0",
        f"tau from {min(one.mean for one in shuffled.values()):+.2f} to {max(one.mean for one in shuffled.values()):+.2f}; "
        + ("all hold 0" if not out else f"not {', '.join(out)}"),
        NO_SEARCH,
        not out,
    )


def _over_sizes(scores: Mapping[str, list[np.ndarray]], accuracies: np.ndarray, counts: np.ndarray) -> Claim:
    each = {name: _taus_of(scores[name], accuracies, counts) for name in ("vote", *BASELINES)}
    apart = {name: _interval(each["vote"] - each[name]) for name in BASELINES}
    return claim(
        "The vote of three proxies ranks better than parameters and than multiply-adds alone: each whole interval of the difference above 0",
        "no proxy was consistently better than #params before ZiCo (2023)",
        "tau of the vote less that of " + ", ".join(f"{name}: {one.text(sign=True)}" for name, one in apart.items()),
        NO_SEARCH,
        all(above(one) for one in apart.values()),
    )


def _shared(results: Mapping[str, Any]) -> Claim:
    tau, ceiling = shared_taus(results)
    accuracies, counts = _judged(results)
    beside = []
    for name in BASELINES:
        sizes = dict(zip(results["scored"], results[name], strict=True))
        sizes_there = np.array([sizes[at] for at in results["judged"]], dtype=float)
        beside.append(f"{name} alone {_tau([sizes_there], accuracies, counts).text()}")
    return claim(
        f"Shared weights rank networks better than chance: tau over {len(results['judged'])} networks, the whole interval above 0",
        "-",
        f"tau {tau.text()}; the ceiling, another training of the same networks, {ceiling.text()}",
        f"chance: 0; {', '.join(beside)}",
        above(tau),
    )


def shared_taus(results: Mapping[str, Any]) -> tuple[Interval, Interval]:
    """Of the supernets, the mean over them, and of another training: tau with the test accuracy of one training."""
    accuracies, counts = _judged(results)
    supernets = [_taus_of([np.array(one["accuracies"])], accuracies, counts) for one in results["supernets"]]
    return _interval(np.mean(supernets, axis=0)), _tau([accuracies[1], accuracies[0]], accuracies, counts)


def _judged(results: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Test accuracies of the networks that supernets judged, (trainings, networks), and how often each is in a resample."""
    return np.array(results["test"])[:, results["judged"]], _resamples(len(results["judged"]))


@dataclass(frozen=True)
class Outcome:
    """What searches came to, one number for each seed, and exact random search in the same time. Regret and accuracy in points."""

    area: Interval  # less that of random search
    regret: tuple[Interval, Interval]
    test: tuple[Interval, Interval]
    evaluations: int
    draws: float
    seconds: float
    own_share: float  # of the time, that the strategy itself took

    @staticmethod
    def on_table(results: Mapping[str, Any], name: str) -> Outcome:
        mean = np.array(results["validation"]).mean(axis=0)
        return Outcome._of(results, results["searches"][name], [(mean, mean)], paced=False)

    @staticmethod
    def of_trainings(results: Mapping[str, Any]) -> Outcome:
        """Regret by either of the table's trainings; random search picks by the other, as the search does by its own."""
        first, second = np.array(results["validation"])
        return Outcome._of(results, results["trainings"], [(first, second), (second, first)], paced=True)

    @staticmethod
    def _of(
        results: Mapping[str, Any], searches: Sequence[Mapping[str, Any]], pairs: Sequence[tuple[np.ndarray, np.ndarray]], *, paced: bool
    ) -> Outcome:
        """pairs: by what random search selects, and by what regret is."""
        seconds, test = np.array(results["seconds"]), np.array(results["test"]).mean(axis=0)
        rows, draws = [], []
        for one in searches:
            mean = float(seconds.mean()) * (pace(one, seconds) if paced else 1.0)
            drawn = draws_within(one["finished"][-1], mean, len(test))
            at = one["places"][int(np.argmax(one["values"]))]
            draws.append(drawn)
            rows.append([
                np.mean([less_than_random(one, selecting, valued, mean) for selecting, valued in pairs]),
                np.mean([valued.max() - valued[at] for _, valued in pairs]),
                np.mean([valued.max() - expected_pick(selecting, valued, drawn) for selecting, valued in pairs]),
                test[at],
                np.mean([expected_pick(selecting, test, drawn) for selecting, _ in pairs]),
            ])  # fmt: skip
        area, *pairs_of = (bootstrap(column.tolist()) for column in np.array(rows).T)
        ends = np.array([one["finished"][-1] for one in searches])
        own = 1 - np.array([sum(one["seconds"]) for one in searches]) / ends
        return Outcome(
            area, (pairs_of[0], pairs_of[1]), (pairs_of[2], pairs_of[3]), len(searches[0]["places"]), float(np.mean(draws)), float(ends.mean()),
            float(own.mean()),
        )  # fmt: skip


def _beats(text: str, found: Outcome) -> Claim:
    return claim(
        f"{text}: the area under log10 regret over log time, less that of random search, the whole interval below 0",
        "-",
        f"{found.area.text(sign=True)}; at the end ({found.evaluations} networks, {found.seconds:.0f} s of which the strategy {percent(found.own_share)}) "
        f"regret {found.regret[0].text()} points on validation, test accuracy of the pick {found.test[0].text()} %",
        f"regret {found.regret[1].text()} points, with {found.draws:.0f} draws; test accuracy {found.test[1].text()} %",
        below(found.area),
    )


def _about(results: dict[str, Any]) -> tuple[str, ...]:
    plan, test = results["plan"], np.array(results["test"])
    supernet = np.mean([one["seconds"] for one in results["supernets"]])
    return (
        f"The {test.shape[1]} networks of `{SPACE}` (see the section on one processor used in three ways), each trained twice on scikit-learn's "
        f"digits, {np.mean(results['seconds']):.2f} s of CPU each; test accuracy {test.mean():.1f} % on average, {test.mean(axis=0).std():.1f} points of standard "
        f"deviation between networks, {np.abs(test[0] - test[1]).mean() / 1.128:.1f} between trainings of one. {plan['networks']} of them are scored on "
        f"{plan['images']} training images, means of {plan['initialisations']} initialisations. Kendall's tau-b is with the test accuracy of one "
        "training, the mean over the two, so that what another training tells stands beside as the ceiling. It is as noisy as the first: what has no noise "
        f"of its own may pass it, up to about {noise_free(_another(results)):.2f} were all normal. Quartiles are of multiply-adds: within them no score can "
        "live on size alone. Intervals (95 %) are bootstrapped over networks.",
        f"**Searches** are told validation accuracy. Regret is in validation points: on the table by the mean of both trainings, which is also what is told, "
        f"{plan['seeds']} seeds; where networks are trained ({plan['training_seeds']} seeds of training that the table has not) by the table's trainings, one at a "
        "time, and random search picks by the other one. Time is CPU time of trainings and strategy on one thread; random search, in closed form, draws "
        "a network in the mean time of all, which is as much slower or faster as the search's own trainings were. Areas are means over the logarithm of time, "
        "from the first draw to the end of the search; a regret of 0 counts as the smallest above 0. Intervals are over seeds.",
        f"**Shared weights**: {plan['supernets']} supernets trained on one random path a step for {plan['supernet_epochs']} epochs, {supernet:.0f} s of CPU each with "
        f"judging {plan['subnets']} networks by validation accuracy with BatchNorm statistics of their own.",
    )


def _taus(
    results: Mapping[str, Any], scores: Mapping[str, list[np.ndarray]], accuracies: np.ndarray, found: Mapping[str, Interval],
    shuffled: Mapping[str, Interval],
) -> Table:  # fmt: skip
    macs = np.array(results["macs"], dtype=float)
    quartile = np.searchsorted(np.quantile(macs, (0.25, 0.5, 0.75)), macs)
    ceiling = found[AGAIN].mean
    rows = []
    for name, of in scores.items():
        within_ = []
        for number in range(4):
            places = np.flatnonzero(quartile == number)
            within_.append(_tau([one[places] for one in of], accuracies[:, places], _resamples(len(places))).text())
        share = f"{found[name].mean / ceiling:.2f}" if ceiling > 0 else "-"
        control = shuffled[name].text() if name in shuffled else "-"
        rows.append((name, found[name].text(), share, *within_, control))
    quartiles = ("smallest quartile", "second", "third", "largest")
    return Table(
        "Kendall's tau with the test accuracy of one training",
        ("score", "tau", "of another training's", *quartiles, "shuffled"),
        tuple(rows),
    )


def _at_the_top(scores: Mapping[str, list[np.ndarray]], accuracies: np.ndarray) -> Table:
    """Where it is decided what a search finds; of scores of a training of its own, the mean over the two."""
    count = accuracies.shape[1]
    rows = []
    for name, of in scores.items():
        pairs = list(zip(of if len(of) == len(accuracies) else of * len(accuracies), accuracies, strict=True))
        taus = [[kendall_top(score, one, share) for score, one in pairs] for share in TOP]
        precise = [float(np.mean([precision_at(score, one, max(1, count // part)) for score, one in pairs])) for part in (10, 5)]
        regret = np.mean([regret_of_best(score, one) for score, one in pairs])
        cells = ("-" if None in found else f"{np.mean([tau for tau in found if tau is not None]):.2f}" for found in taus)
        rows.append((name, *cells, *(percent(share) for share in precise), f"{regret:.2f}"))
    columns = (
        "score",
        *(f"tau in the best {percent(share, 0)}" for share in TOP),
        "best tenth found",
        "best fifth found",
        "lost by its pick",
    )
    title = "Among the best networks by one training: tau, the share of them among as many best scores, points lost by the best score"
    return Table(title, columns, tuple(rows))


def _another(results: Mapping[str, Any]) -> float:
    """Tau of another training with one, over the networks that are scored."""
    first, second = np.array(results["test"])[:, results["scored"]]
    return kendall(first, second) or 0.0


def noise_free(tau: float) -> float:
    """What a score without noise could reach at most where two trainings reach `tau`: normal figures of correlation sin(pi tau / 2), of which
    a noise-free one has the root (Greiner's relation; Spearman's attenuation).

    >>> round(noise_free(1.0), 3), round(noise_free(0.5), 3)
    (1.0, 0.636)
    """
    return 2 / pi * asin(sqrt(sin(pi / 2 * max(tau, 0.0))))


def _searches(results: Mapping[str, Any], table: Outcome, real: Outcome) -> Table:
    validation, test = (np.array(results[part]).mean(axis=0) for part in ("validation", "test"))
    regret, largest = validation.max() - validation, int(np.argmax(results["all_macs"]))
    rows = []
    named = ((BEST, table), (BESIDE, Outcome.on_table(results, BESIDE)), (f"{BEST}, training", real))
    for name, one in named:
        rows.append((name, str(one.evaluations), f"{one.seconds:.0f}", one.area.text(sign=True), one.regret[0].text(), one.test[0].text()))
        rows.append(
            ("random search in that time, exact", f"{one.draws:.0f}", f"{one.seconds:.0f}", "0", one.regret[1].text(), one.test[1].text())
        )
    rows.append(("one draw", "1", f"{np.mean(results['seconds']):.1f}", "-", f"{regret.mean():.2f}", f"{test.mean():.2f}"))
    rows.append(("the largest by multiply-adds", "0", "0", "-", f"{regret[largest]:.2f}", f"{test[largest]:.2f}"))
    columns = ("search", "networks", "seconds", "area less that of random search", "regret, validation points", "test accuracy of the pick")
    return Table(f"Searches; the standard deviation between networks is {regret.std():.2f} validation points", columns, tuple(rows))


EXPERIMENT = Experiment(("zero_cost_digits", "zero-cost-digits"), lambda quick: QUICK if quick else Plan(), measure, section_of)
