"""CRANK's claims as experiments: label sets of scene, yeast and emotions, and searches of spaces with planted pairwise interactions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from itertools import product
from time import process_time
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.multioutput import ClassifierChain

from niwaki.run.claims import Claim, Section, Table
from niwaki.run.experiments.data import shared_data
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import searched
from niwaki.run.experiments.verdicts import at_least, at_most, claim, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.significance import wilcoxon
from niwaki.run.statistics import Interval, bootstrap, bootstrap_of
from niwaki.run.workers import Job, Workers
from niwaki.space.architecture import Architecture
from niwaki.space.space import Decision, Space
from niwaki.strategy.random import RandomSearch
from niwaki.strategy.strategy import Strategy
from niwaki.strategy.tree import ChowLiuSearch, CrankSearch
from niwaki.structure.crank import CrankSettings, Examples, Predictor, best_l2, fit_chow_liu, fit_crank, fit_on, standardised
from niwaki.structure.forest import all_pairs, maximum_forest
from niwaki.task.task import derive_seed
from niwaki.trial import Trial

MODELS = ("independent", "chow_liu", "crank", "full")
# C of scikit-learn's logistic regressions over the number of inputs (`INPUTS`), beside ours: one for each label, given those before it
CHAIN_C = (0.003, 0.01, 0.03, 0.1, 1.0, 10.0)
LABELS = {"scene": 6, "yeast": 14, "emotions": 6}
INPUTS = {"scene": 295, "yeast": 104, "emotions": 73}  # the features, and a constant
SETS = tuple(LABELS)
SEARCHES: dict[str, Callable[[], Strategy[Any]]] = {
    "random": RandomSearch,
    "chow-liu without edges": lambda: ChowLiuSearch(edges=False),
    "chow-liu": ChowLiuSearch,
    "crank without edges": lambda: CrankSearch(edges=False),
    "crank": CrankSearch,
}


@dataclass(frozen=True)
class Plan:
    """grid: values of lambda, chosen on a third of the training rows that is held out: for independent labels and for the Chow-Liu tree, whose
    choice CRANK and the full model take. rows: of each set, at most (None: all of them)."""

    grid: tuple[float, ...] = (0.001, 0.003, 0.01)
    settings: CrankSettings = field(default_factory=lambda: CrankSettings(mu=3e-3, passes=30))
    rows: int | None = None
    rounds: int = 9  # of the timing
    decisions: int = 12
    seeds: int = 20
    first_seed: int = 100  # others than those that the searches were looked at with
    evaluations: int = 500
    minutes: str = "about 8 minutes on an idle core"

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps({key: value for key, value in asdict(self).items() if key != "minutes"}))


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    """Everything that the claims are made from, as JSON."""
    fits = {(name, model): Job(f"{name} {model}", fitted, (plan, name, model)) for name in SETS for model in MODELS}
    kinds = ("pairwise", "additive")
    chains = {name: Job(f"{name} classifier chain", chained, (plan, name)) for name in SETS}
    searches = {(kind, name): Job(f"planted {kind} {name}", evaluations_needed, (plan, kind, name)) for kind in kinds for name in SEARCHES}
    with Workers(workers) as pool:
        found = pool.run(
            [*searches.values(), *chains.values(), *fits.values()], folder, progress, f"{len(fits)} predictors and {len(searches)} searches"
        )
    with Workers(1) as here:
        timed = here.run([Job("timing", prediction_times, (plan,))], folder, progress, "timing")
    return {
        "predictors": {name: {model: found[fits[name, model].name] for model in MODELS} for name in SETS},
        "chains": {name: found[chains[name].name] for name in SETS},
        "searches": {kind: {name: found[searches[kind, name].name] for name in SEARCHES} for kind in kinds},
        "timing": timed["timing"],
    }


# --- jobs: functions of their arguments alone ----------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _data(name: str, rows: int | None) -> tuple[Examples, Examples]:
    """Training and test examples of the published split."""
    with np.load(shared_data("multilabel", f"{name}.npz"), allow_pickle=False) as z:
        x, tested = standardised(z["X_train"].astype(np.float64), z["X_test"].astype(np.float64))
        return Examples(x[:rows], z["Y_train"][:rows]), Examples(tested[:rows], z["Y_test"][:rows])


def _predictor(model: str, examples: Examples, settings: CrankSettings, rng: np.random.Generator) -> Predictor:
    if model == "independent":
        return fit_on(examples, (), settings, rng)
    if model == "full":
        return fit_on(examples, all_pairs(examples.y.shape[1]), settings, rng)
    return fit_chow_liu(examples, settings, rng) if model == "chow_liu" else fit_crank(examples, settings, rng).predictor


def fitted(plan: Plan, name: str, model: str) -> dict[str, Any]:
    """What a predictor gets right on the test rows, and the same of a label set drawn from the training rows, on average."""
    train, test = _data(name, plan.rows)
    seed, began = derive_seed(0, f"{name} {model}"), process_time()
    order = np.random.default_rng(derive_seed(0, name)).permutation(len(train.y))
    third = len(order) // 3

    judge = "independent" if model == "independent" else "chow_liu"

    def fit(examples: Examples, settings: CrankSettings, rng: np.random.Generator) -> Predictor:
        return _predictor(judge, examples, settings, rng)

    l2 = best_l2(train.part(order[third:]), train.part(order[:third]), plan.grid, fit, plan.settings, derive_seed(0, f"{name} {judge}"))
    settings = replace(plan.settings, l2=l2)
    path: list[Any] = []
    if model == "crank":
        learned = fit_crank(train, settings, np.random.default_rng(seed))
        predictor, path = learned.predictor, [[mu, value, rank] for mu, value, rank, _ in learned.path]
    else:
        predictor = _predictor(model, train, settings, np.random.default_rng(seed))
    found = predictor.predict(test.x)
    code = 2 ** np.arange(train.y.shape[1])
    shares = np.bincount(train.y @ code, minlength=code.sum() + 1) / len(train.y)
    return {
        "l2": l2,
        "edges": [list(map(int, edge)) for edge in predictor.edges],
        "exact": (found == test.y).all(axis=1).astype(int).tolist(),
        "wrong": (found != test.y).sum(axis=1).tolist(),
        "drawn": float(shares[test.y @ code].mean()),
        "path": path,
        "seconds": process_time() - began,
    }


def chained(plan: Plan, name: str) -> dict[str, Any]:
    """scikit-learn's classifier chain of logistic regressions in label order, C chosen as lambda is: an outside baseline."""
    train, test = _data(name, plan.rows)
    order = np.random.default_rng(derive_seed(0, name)).permutation(len(train.y))
    third, began = len(order) // 3, process_time()
    kept = [i for i in range(train.y.shape[1]) if 0 < train.y[order[third:], i].sum() < len(order) - third]  # others are constant

    def fit(c: float, part: Examples) -> ClassifierChain:
        return ClassifierChain(LogisticRegression(C=c * INPUTS[name], max_iter=300)).fit(part.x[:, :-1], part.y[:, kept])

    def found(chain: ClassifierChain, x: np.ndarray) -> np.ndarray:
        labels = np.tile((train.y.mean(axis=0) > 0.5).astype(np.int64), (len(x), 1))
        labels[:, kept] = chain.predict(x[:, :-1])
        return labels

    held = train.part(order[:third])
    c = max(CHAIN_C, key=lambda c: (found(fit(c, train.part(order[third:])), held.x) == held.y).all(axis=1).mean())
    predicted = found(fit(c, train), test.x)
    wrong = (predicted != test.y).sum(axis=1)
    return {"c": c, "exact": (wrong == 0).astype(int).tolist(), "wrong": wrong.tolist(), "seconds": process_time() - began}


def prediction_times(plan: Plan) -> list[dict[str, float]]:
    """CPU seconds of predicting yeast's test rows, in turns: on a tree, and with all pairs, all label sets enumerated."""
    _, test = _data("yeast", plan.rows)
    rng, labels = np.random.default_rng(0), test.y.shape[1]
    edges = all_pairs(labels)
    unary, pair = rng.normal(size=(test.x.shape[1], labels, 1)), rng.normal(size=(len(edges), 1, 1, 1))
    tree = maximum_forest(labels, edges, rng.random(len(edges)))
    full = Predictor(unary, tuple(edges), pair)
    small = Predictor(unary, tuple(edges[e] for e in tree), pair[tree])
    times = []
    for number in range(-1, plan.rounds):
        taken = {}
        for name, predictor in (("tree", small), ("full", full)):
            began = process_time()
            predictor.predict(test.x)
            taken[name] = process_time() - began
        if number >= 0:
            times.append(taken)
    return times


def planted(kind: str, seed: int, decisions: int) -> tuple[Space, np.ndarray]:
    """Binary decisions, and the value of every architecture in the order of enumeration.

    "pairwise": a random tree couples decisions, (-1)^(a + b) times a normal number for each edge, and fields of a tenth of that let one of
    two mirrored optima win. "additive": fields alone.
    """
    rng = np.random.default_rng(derive_seed(seed, kind))
    space = Space(tuple(Decision(f"d{i}", (0, 1)) for i in range(decisions)))
    signs = 1.0 - 2 * np.array(list(product((0, 1), repeat=decisions)))
    fields = rng.normal(size=decisions)
    if kind == "additive":
        return space, signs @ fields
    order = rng.permutation(decisions)
    edges = [(order[rng.integers(i)], order[i]) for i in range(1, decisions)]
    return space, sum(rng.normal() * signs[:, i] * signs[:, j] for i, j in edges) + 0.1 * signs @ fields


def evaluations_needed(plan: Plan, kind: str, name: str) -> list[int]:
    """By seed, how many evaluations the search needs to reach the best architecture; one more than it was given, where it does not."""
    return [_needed(plan, kind, name, seed) for seed in range(plan.first_seed, plan.first_seed + plan.seeds)]


def _needed(plan: Plan, kind: str, name: str, seed: int) -> int:
    space, values = planted(kind, seed, plan.decisions)
    code, best = 2 ** np.arange(plan.decisions)[::-1], float(values.max())

    def metrics(arch: Architecture) -> dict[str, float]:
        return {"accuracy": float(values[int(np.array(space.indices([arch])[0]) @ code)])}

    def reached(trial: Trial) -> bool:
        return trial.metrics["accuracy"] >= best

    trials, _ = searched(SEARCHES[name](), space, metrics, plan.evaluations, seed, until=reached)
    return len(trials) if reached(trials[-1]) else plan.evaluations + 1


# --- claims ------------------------------------------------------------------------------------------------------------------------------


def section_of(results: dict[str, Any]) -> Section:
    chance = ", ".join(f"{100 * results['predictors'][name]['crank']['drawn']:.1f} % ({name})" for name in SETS)
    by_chance = f"a label set drawn from the training rows is right in {chance}"
    claims = [_as_full(results, by_chance), _hamming(results, by_chance), _over_independent(results, by_chance)]
    claims += [_as_chow_liu(results, by_chance), _faster(results["timing"])]
    for tree in ("chow-liu", "crank"):
        claims += [_sooner(results, tree), _no_later(results, tree)]
    return section(
        "crank", "CRANK and tree-structured search", results, _about(results["plan"]), claims, (_label_sets(results), _searches(results))
    )


def _exact(results: dict[str, Any], name: str, model: str) -> np.ndarray:
    """(test rows,): whether all labels are right."""
    return np.array(results["predictors"][name][model]["exact"], dtype=float)


def _hamming_loss(results: dict[str, Any], name: str, model: str) -> np.ndarray:
    """(test rows,): the share of the labels that is wrong."""
    return np.array(results["predictors"][name][model]["wrong"]) / LABELS[name]


def _exact_apart(results: dict[str, Any], first: str, second: str, name: str) -> Interval:
    return bootstrap((_exact(results, name, first) - _exact(results, name, second)).tolist())


def _points(found: Interval) -> str:
    return found.text(1, scale=100, unit=" points")


def _as_full(results: dict[str, Any], by_chance: str) -> Claim:
    found = {name: _exact_apart(results, "crank", "full", name) for name in SETS}
    return claim(
        "A learned tree matches the accuracy of the fully connected model: at most a point of exact match below, the whole interval, on "
        "each set "
        "(the bar is ours)",
        "matches it on several domains [abstract]",
        "exact match, tree less full: " + ", ".join(f"{name} {_points(one)}" for name, one in found.items()),
        by_chance,
        all(at_least(one, -0.01) for one in found.values()),
    )


def _hamming(results: dict[str, Any], by_chance: str) -> Claim:
    wrong = bootstrap((_hamming_loss(results, "scene", "crank") - _hamming_loss(results, "scene", "full")).tolist())
    return claim(
        "... at most a point of Hamming loss above it on scene, the whole interval",
        "the same [abstract]; the bar is ours",
        f"labels wrong, tree less full: {_points(wrong)}",
        by_chance,
        at_most(wrong, 0.01),
    )


def _over_independent(results: dict[str, Any], by_chance: str) -> Claim:
    found = _exact_apart(results, "crank", "independent", "scene")
    return claim(
        "It is better than independent labels by at least 3 points of exact match on scene: the whole interval",
        "the bar is ours",
        _points(found),
        by_chance,
        at_least(found, 0.03),
    )


def _as_chow_liu(results: dict[str, Any], by_chance: str) -> Claim:
    found = {name: _exact_apart(results, "crank", "chow_liu", name) for name in SETS}
    return claim(
        "It is no worse than the Chow-Liu tree of the labels, which never sees x: at most half a point of exact match below, the whole "
        "interval, on "
        "scene and yeast",
        "the bar is ours",
        ", ".join(f"{name} {_points(one)}" for name, one in found.items()),
        by_chance,
        all(at_least(found[name], -0.005) for name in ("scene", "yeast")),
    )


def _faster(timing: list[dict[str, float]]) -> Claim:
    ratio = [one["full"] / one["tree"] for one in timing]
    return claim(
        "Prediction is at least 5 times as fast as with all pairs, on yeast, in every round (the bar is ours)",
        "substantially faster [abstract]",
        f"{np.median(ratio):.0f} times ({min(ratio):.0f} to {max(ratio):.0f} over {len(ratio)} rounds), features included, against all "
        "16,384 label "
        "sets of each example compared by matrix products",
        "not a search",
        min(ratio) >= 5,
    )


def _sooner(results: dict[str, Any], tree: str) -> Claim:
    plan, needed, factorised = results["plan"], results["searches"]["pairwise"], f"{tree} without edges"
    p = {other: wilcoxon(needed[tree], needed[other]) for other in (factorised, "random")}
    return claim(
        f"Planted pairs of decisions: the tree search ({tree}) reaches the best with fewer evaluations than without its edges, and than "
        "random "
        "search: Wilcoxon's p < 0.05",
        "ours (EDAs with dependency trees: BMDA, COMIT)",
        f"{_count(needed[tree])} evaluations against {_count(needed[factorised])}, p = {p[factorised]:.2g}; reached in "
        f"{_reached(needed[tree], plan)} against {_reached(needed[factorised], plan)}",
        f"{_count(needed['random'])}, p = {p['random']:.2g}; reached in {_reached(needed['random'], plan)}",
        all(np.mean(needed[tree]) < np.mean(needed[other]) and p[other] < 0.05 for other in p),
    )


def _no_later(results: dict[str, Any], tree: str) -> Claim:
    needed = results["searches"]["additive"]
    ours, without = (np.array(needed[name], dtype=float) for name in (tree, f"{tree} without edges"))
    more = bootstrap_of(lambda places: float(ours[places].mean() / without[places].mean() - 1), len(ours))
    return claim(
        f"Nothing but single decisions matters (control): {tree} needs at most 10 % more evaluations than without its edges, the whole "
        "interval",
        "ours",
        f"{_count(needed[tree])} against {_count(needed[f'{tree} without edges'])}: {more.text(0, scale=100, unit=' %', sign=True)}",
        _count(needed["random"]),
        at_most(more, 0.1),
    )


def _about(plan: dict[str, Any]) -> tuple[str, ...]:
    return (
        "**Label sets.** The published splits of scene, yeast and emotions (6, 14 and 6 labels); features standardised by the training "
        "rows; one "
        "weight for each pair of labels. All four predictors are max-margin (structured hinge with Hamming loss) by the same solver, "
        "lambda of "
        f"{', '.join(f'{l2:g}' for l2 in plan['grid'])} chosen by exact match on a third of the training rows, for independent labels "
        "and for the "
        "Chow-Liu tree; CRANK and the full model, which take longest, take the Chow-Liu tree's, the baseline's. Intervals (95 %) are "
        "bootstrapped "
        "over test rows, paired where two predictors are compared. J never rises from one CCCP step to the next by construction: a step "
        "that an "
        "inexact solution made worse is taken back.",
        f"**Searches.** {plan['decisions']} binary decisions ({2 ** plan['decisions']:,} architectures), {plan['seeds']} planted "
        "problems, one "
        f"proposal at a time, at most {plan['evaluations']} evaluations; a search that does not reach the best counts as "
        f"{plan['evaluations'] + 1}. Without edges the same searches are factorised: marginals of the elites (UMDA), an additive "
        "surrogate.",
    )


def _label_sets(results: dict[str, Any]) -> Table:
    rows = []
    for name in SETS:
        for model in MODELS:
            one = results["predictors"][name][model]
            wrong = f"{100 * _hamming_loss(results, name, model).mean():.2f} %"
            exact = _points(bootstrap(_exact(results, name, model).tolist()))
            rows.append((name, model.replace("_", "-"), f"{one['l2']:g}", exact, wrong, str(len(one["edges"])), f"{one['seconds']:.0f} s"))
    for name, one in results["chains"].items():
        exact, wrong = _points(bootstrap(list(map(float, one["exact"])))), f"{100 * np.mean(one['wrong']) / LABELS[name]:.2f} %"
        c = f"C = {one['c'] * INPUTS[name]:.3g}"
        rows.append((name, "classifier chain (scikit-learn)", c, exact, wrong, "-", f"{one['seconds']:.0f} s"))
    columns = ("set", "predictor", "lambda", "exact match", "Hamming loss", "edges", "CPU, choice of lambda included")
    return Table("Label sets", columns, tuple(rows))


def _searches(results: dict[str, Any]) -> Table:
    kinds, plan = [results["searches"][kind] for kind in ("pairwise", "additive")], results["plan"]
    rows = tuple((name, *(text for kind in kinds for text in (_count(kind[name]), _reached(kind[name], plan)))) for name in SEARCHES)
    columns = ("search", "planted pairs", "reached", "single decisions", "reached")
    return Table("Evaluations until the best of the space was found, mean over problems", columns, rows)


def _count(needed: list[int]) -> str:
    return bootstrap(list(map(float, needed))).text(0)


def _reached(needed: list[int], plan: dict[str, Any]) -> str:
    return f"{sum(one <= plan['evaluations'] for one in needed)} of {len(needed)}"


def _plan(quick: bool) -> Plan:
    if not quick:
        return Plan()
    return Plan((0.01,), CrankSettings(mu=0.03, growth=10, passes=2, step_passes=1, steps=1), 60, 1, 6, 3, 0, 60, "half a minute")


EXPERIMENT = Experiment(("crank",), _plan, measure, section_of)
