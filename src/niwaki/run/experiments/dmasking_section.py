"""What the trainings and searches of `niwaki reproduce dmaskingnas` say of the paper's claims: a function of the stored results alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby, pairwise
from math import ceil, prod
from typing import Any

import numpy as np

from niwaki.recipe import fbnetv2
from niwaki.run.claims import Claim, Section, Table, percent
from niwaki.run.experiments.verdicts import at_most, below, claim, not_testable, section
from niwaki.run.statistics import Interval, bootstrap, expected_pick, ranks, spearman

TOP = 0.15  # of the members at its cost: where the derived network has to be
AT_ITS_COST = 2 / 3  # of its multiply-adds, at least, and at most the budget: the members that a network is compared with
FLAT = 1.10  # of the plain network's time and bytes, at most, with the most options
EXACT = 1e-5  # relative error of an expected cost, at most
ERASED = 1e-3  # of the gradient behind BatchNorm, at most, is left before it
DERIVATIONS = {
    "mode": "most likely member within the budget (ours)",
    "options": "most likely option of each decision (published)",
    "judged": "best of several drawn within the budget, by validation with shared weights (ours)",
}


class Truth:
    """What is known of every member: its cost, and its metrics after each of its trainings."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.macs = np.array([network["macs"] for network in results["networks"]])  # (N,)
        trainings = results["trainings"]
        self.test = np.array([[one["test"]["accuracy"] for one in member] for member in trainings])  # (N, training seeds)
        self.validation = np.array([[one["validation"]["accuracy"] for one in member] for member in trainings])
        loss = np.array([[one["validation"]["loss"] for one in member] for member in trainings])
        # as niwaki chooses: by validation accuracy, then by loss; the place in that order, larger is better
        self.preference = np.stack(
            [np.lexsort((-lost, got)).argsort() for got, lost in zip(self.validation.T, loss.T, strict=True)], axis=1
        )
        self.quality = self.test.mean(axis=1)  # (N,): what members are ranked by; no search and no selection has seen it
        self.training_seconds = float(np.mean([[one["seconds"] for one in member] for member in trainings]))

    def within(self, budget: float) -> np.ndarray:
        return np.flatnonzero(self.macs <= budget)

    def rank(self, member: int, budget: float) -> float:
        """Its rank by test accuracy among the members within the budget, from 1."""
        pool = self.within(max(budget, self.macs[member]))
        return float(ranks(self.quality[pool])[list(pool).index(member)])

    def share(self, member: int, budget: float) -> float:
        """Its rank over the number of members at its cost: within the budget, with at least `AT_ITS_COST` of its multiply-adds."""
        pool = self.within(max(budget, self.macs[member]))
        pool = pool[self.macs[pool] >= AT_ITS_COST * self.macs[member]]
        return float(ranks(self.quality[pool])[list(pool).index(member)]) / len(pool)

    def by_random_search(self, budget: float, draws: int, value: Callable[[int], float] | None = None) -> float:
        """Mean over training seeds of the exact expectation of `value` (test accuracy, if None) of what random search picks."""
        pool = self.within(budget)
        picks = []
        for seed in range(self.test.shape[1]):
            values = self.test[pool, seed].tolist() if value is None else [value(member) for member in pool]
            picks.append(expected_pick(self.preference[pool, seed].tolist(), values, min(draws, len(pool))))
        return float(np.mean(picks))

    def draws(self, seconds: float) -> int:
        """Trainings that cost what a search of `seconds` and the training of its result cost; rounded up, in favour of random search."""
        return ceil(seconds / self.training_seconds) + 1


def section_of(results: Mapping[str, Any]) -> Section:
    """The section on DMaskingNAS in the page of claims."""
    truth = Truth(results)
    claims = (
        *_standing(results, truth), *_cost_weights(results, truth), _published_form(results, truth),
        _expected_cost(results, truth), _flat(results), _place(results), _counts(results), *_not_testable(results, truth),
    )  # fmt: skip
    tables = (_search_table(results, truth), _sweep_table(results, truth), _noise_table(truth))
    return section("dmasking", "DMaskingNAS (FBNetV2)", results, _about(results, truth), claims, tables)


# --- claims --------------------------------------------------------------------------------------------------------------------------


def _standing(results: Mapping[str, Any], truth: Truth) -> Iterator[Claim]:
    """Check 7: in the top 15 % at its cost, and better than random search at equal cost on mean rank."""
    searches = results["searches"]
    shares = [truth.share(one["derived"]["mode"], one["budget"]) for one in searches]
    random_shares = _memo(lambda budget, draws: truth.by_random_search(budget, draws, lambda member: truth.share(member, budget)))
    random_ranks = _memo(lambda budget, draws: truth.by_random_search(budget, draws, lambda member: truth.rank(member, budget)))
    draws = [truth.draws(one["seconds"]) for one in searches]
    ours, theirs = (
        _over_seeds(searches, shares),
        _over_seeds(searches, [random_shares(one["budget"], n) for one, n in zip(searches, draws, strict=True)]),
    )
    inside = sum(share <= TOP for share in shares)
    yield claim(
        f"The derived network is in the top {percent(TOP, 0)} at its cost: the whole interval of the mean",
        "better accuracy than other networks of its FLOPs [abstract]",
        f"top {_share(ours)} on average; in {inside} of {len(shares)} searches",
        f"top {_share(theirs)}, with {_range(draws)} trainings",
        at_most(ours, TOP),
    )
    found = [truth.rank(one["derived"]["mode"], one["budget"]) for one in searches]
    baseline = [random_ranks(one["budget"], n) for one, n in zip(searches, draws, strict=True)]
    difference = _over_seeds(searches, [a - b for a, b in zip(found, baseline, strict=True)])
    yield claim(
        "The search beats random search of equal cost on mean rank: the whole interval of the difference below 0",
        "no random search in the paper",
        f"mean rank {_over_seeds(searches, found).text(1)}; paired difference {difference.text(1)}",
        f"mean rank {_over_seeds(searches, baseline).text(1)}, with {_range(draws)} trainings",
        below(difference),
    )


def _cost_weights(results: Mapping[str, Any], truth: Truth) -> Iterator[Claim]:
    """Check 7: the cost falls monotonically with the cost weight, on average over seeds."""
    for kind, rows in _by_objective(results):
        weights = list(rows)
        mean = {name: [float(np.mean(_costs(rows[weight], truth, name))) for weight in weights] for name in ("expected", "derived")}
        falls = all(after <= before for costs in mean.values() for before, after in pairwise(costs))
        seeds = zip(*(_costs(rows[weight], truth, "expected") for weight in weights), strict=True)
        monotone = [all(after <= before for before, after in pairwise(costs)) for costs in seeds]
        form = "CE + w log(cost)" if kind == "add" else "CE * 0.2 log(1 + cost / largest)^w"
        yield claim(
            f"The cost, mean over seeds, falls monotonically with the cost weight: {form}",
            "the weight trades accuracy against cost [secondary]" + ("; w = 0.6" if kind == "mul" else ""),
            f"expected cost of the learned distribution: {_thousands(mean['expected'])} "
            f"at w = {', '.join(map(str, weights))}; "
            f"derived by argmax: {_thousands(mean['derived'])}; in single seeds it does in {sum(monotone)} of {len(monotone)}",
            "has no such weight",
            falls,
        )


def _published_form(results: Mapping[str, Any], truth: Truth) -> Claim:
    """The product and argmax as published, at the published exponent where it was swept; the budget is the cost of what was found."""
    rows = dict(_by_objective(results))["mul"]
    weight = fbnetv2.PUBLISHED.beta if fbnetv2.PUBLISHED.beta in rows else max(rows)
    found = [(one["derived"]["options"], truth.draws(one["seconds"])) for one in rows[weight]]
    costs = [int(truth.macs[member]) for member, _ in found]
    shares = bootstrap([truth.share(member, cost) for (member, _), cost in zip(found, costs, strict=True)])
    theirs = bootstrap(
        [truth.by_random_search(cost, draws, partial(truth.share, budget=cost)) for (_, draws), cost in zip(found, costs, strict=True)]
    )
    return claim(
        f"As published (product, w = {weight}; argmax), the found network is in the top {percent(TOP, 0)} at its cost: the whole interval",
        "better accuracy than other networks of its FLOPs [abstract]",
        f"top {_share(shares)}, at {_thousands([float(np.mean(costs))])} multiply-adds on average",
        f"top {_share(theirs)}, with {_range([draws for _, draws in found])} trainings",
        at_most(shares, TOP),
    )


def _expected_cost(results: Mapping[str, Any], truth: Truth) -> Claim:
    """Effective shape propagation, against the mean over all members weighed by their probability."""
    errors = []
    for one in (*results["searches"], *results["sweep"]):
        options = {name: dict(zip(_options(results, name), p, strict=True)) for name, p in one["probabilities"].items()}
        weights = np.array([prod(options[name][taken] for name, taken in network["choices"].items()) for network in results["networks"]])
        mean = float(weights @ truth.macs / weights.sum())
        errors.append(abs(one["expected_macs"] / mean - 1))
    return claim(
        f"Effective shapes give the expected cost of the distribution, to {EXACT:.0e} of it",
        "expected size of every layer from those of its neighbours [secondary]",
        f"largest relative error over {len(errors)} learned distributions, against all {len(truth.macs)} members: {max(errors):.0e} "
        "(computed exactly, also where layers share a decision; probabilities are float32)",
        "not applicable",
        max(errors) < EXACT,
    )


def _flat(results: Mapping[str, Any]) -> Claim:
    masks = dict(sorted(results["masks"]["masks"].items(), key=lambda kept: int(kept[0])))
    branches = results["masks"]["branches"]
    time, size = (", ".join(f"{row[key]:.2f}x" for row in masks.values()) for key in ("time", "bytes"))
    beside = "; ".join(f"with {count}, {row['time']:.1f}x and {row['bytes']:.1f}x" for count, row in branches.items())
    *_, most = masks.values()
    return claim(
        f"{fbnetv2.MEMORY_AND_TIME.text}: at most {FLAT:.2f} times those of one network",
        f"{fbnetv2.MEMORY_AND_TIME.figure} [{fbnetv2.MEMORY_AND_TIME.source}]",
        f"a training step with {', '.join(masks)} options of every width and expansion, over the plain largest network: time {time}, "
        f"bytes kept for backward {size} (benchmarks/masks.py measures more). A branch for every option: {beside}",
        "trains one network at a time",
        max(most["time"], most["bytes"]) <= FLAT,
    )


def _place(results: Mapping[str, Any]) -> Claim:
    norms = results["mask place"]
    ratio = norms["before"] / norms["after"]
    return claim(
        f"Masks stand behind BatchNorm and activation: before them they are divided away, to less than {ERASED:g} of the gradient",
        "the mask is on the output of the block (Fig. 2) [abstract of the figure]",
        f"gradient that reaches the logits through a mask before BatchNorm: {ratio:.0e} of that through one behind it "
        f"({norms['leak'] / norms['after']:.0e} with BatchNorm's usual epsilon)",
        "not applicable",
        ratio < ERASED,
    )


def _counts(results: Mapping[str, Any]) -> Claim:
    rows = results["counts"]
    wrong = [name for name, row in rows.items() if row["counted"] != row["published"]]
    return claim(
        fbnetv2.MODELS.text,
        f"{fbnetv2.MODELS.figure} [{fbnetv2.MODELS.source}]",
        f"weights and multiply-adds of {len(rows) - len(wrong)} of {len(rows)} to the unit"
        + (f"; not of {', '.join(wrong)}" if wrong else ""),
        "not applicable",
        not wrong,
    )


def _not_testable(results: Mapping[str, Any], truth: Truth) -> Iterator[Claim]:
    ratio = bootstrap([one["seconds"] / truth.training_seconds for one in results["searches"]])
    for published, reason in fbnetv2.NOT_TESTABLE:
        measured = f"{reason}: {ratio.mean:.1f} trainings" if "figure" in reason else reason
        yield not_testable(published.text, f"{published.figure} [{published.source}]", measured)


# --- tables and text -----------------------------------------------------------------------------------------------------------------


def _search_table(results: Mapping[str, Any], truth: Truth) -> Table:
    """One row for each way to a network, over all searches."""
    searches = results["searches"]
    rows = []
    for name, words in DERIVATIONS.items():
        extra = [one["judging_seconds"] if name == "judged" else 0.0 for one in searches]
        found = [(one["derived"][name], one["budget"]) for one in searches]
        rows.append(
            _row(
                words,
                searches,
                truth,
                found,
                [f"{(one['seconds'] + more) / truth.training_seconds + 1:.1f}" for one, more in zip(searches, extra, strict=True)],
            )
        )
    random = _memo(lambda budget, draws: (
        truth.by_random_search(budget, draws, lambda member: truth.share(member, budget)),
        truth.by_random_search(budget, draws, lambda member: truth.rank(member, budget)),
        truth.by_random_search(budget, draws),
    ))  # fmt: skip
    for words, draws in (
        ("one random member within the budget", [1] * len(searches)),
        ("random search of the search's cost", [truth.draws(one["seconds"]) for one in searches]),
        (
            "random search of the search's and the judging's cost",
            [truth.draws(one["seconds"] + one["judging_seconds"]) for one in searches],
        ),
        ("all members within the budget, by validation", [len(truth.within(one["budget"])) for one in searches]),
    ):
        figures = [random(one["budget"], min(n, len(truth.within(one["budget"])))) for one, n in zip(searches, draws, strict=True)]
        share, rank, accuracy = (_over_seeds(searches, [figure[at] for figure in figures]) for at in range(3))
        rows.append((words, f"{np.mean(draws):.1f}", _share(share), rank.text(1), accuracy.text(2, scale=100, unit=" %"), "0"))
    budgets = ", ".join(f"{budget:,} ({len(truth.within(budget))} members)" for budget in results["plan"]["budgets"])
    columns = ("network", "cost in trainings", "top share at its cost", "rank within the budget", "test accuracy", "over budget")
    return Table(
        f"{len(searches)} searches: seeds {_range(results['plan']['search_seeds'])} at budgets of {budgets} multiply-adds",
        columns,
        tuple(rows),
    )


def _row(
    words: str, searches: Sequence[Mapping[str, Any]], truth: Truth, found: Sequence[tuple[int, int]], costs: Sequence[str]
) -> tuple[str, ...]:
    share = _over_seeds(searches, [truth.share(member, budget) for member, budget in found])
    rank = _over_seeds(searches, [truth.rank(member, budget) for member, budget in found])
    accuracy = _over_seeds(searches, [float(truth.quality[member]) for member, _ in found])
    over = sum(truth.macs[member] > budget for member, budget in found)
    return (
        words,
        f"{np.mean([float(cost) for cost in costs]):.1f}",
        _share(share),
        rank.text(1),
        accuracy.text(2, scale=100, unit=" %"),
        str(over),
    )


def _sweep_table(results: Mapping[str, Any], truth: Truth) -> Table:
    rows = []
    for kind, swept in _by_objective(results):
        for weight, found in swept.items():
            members = [one["derived"]["options"] for one in found]
            rows.append((
                "sum" if kind == "add" else "product", str(weight), f"{np.mean([one['expected_macs'] for one in found]):,.0f}",
                f"{np.mean(truth.macs[members]):,.0f}", percent(float(truth.quality[members].mean()), 2),
                percent(float(np.mean([truth.share(member, truth.macs[member]) for member in members]))),
            ))  # fmt: skip
    columns = (
        "objective",
        "cost weight",
        "expected multiply-adds",
        "of the derived network",
        "its test accuracy",
        "its top share at its cost",
    )
    return Table(f"Cost weights: means over seeds {_range(results['plan']['search_seeds'])}, derived by argmax", columns, tuple(rows))


def _noise_table(truth: Truth) -> Table:
    """What the order of the members is worth: spread between members against that between seeds of one member."""
    rows = []
    for part, figures in (("validation", truth.validation), ("test", truth.test)):
        between, noise = figures.mean(axis=1).std(ddof=1), np.sqrt(figures.var(axis=1, ddof=1).mean())
        agreement = spearman(figures[:, 0], figures[:, 1])
        rows.append(
            (
                part,
                percent(float(figures.mean()), 2),
                percent(float(between), 2),
                percent(float(noise), 2),
                "-" if agreement is None else f"{agreement:.2f}",
            )
        )
    columns = ("accuracy on", "mean", "standard deviation between members", "between training seeds", "rank correlation of two seeds")
    return Table(f"All {len(truth.macs)} members, trained with {truth.test.shape[1]} seeds each", columns, tuple(rows))


def _about(results: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    plan, machine, networks = results["plan"], results["machine"], results["networks"]
    names = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    decisions = "; ".join(f"{name} {_words(_options(results, name))}" for name in networks[0]["choices"])
    search_seconds = float(np.mean([one["seconds"] for one in results["searches"]]))
    yield (
        f"Written by `niwaki reproduce {results['method']}{' --quick' if results['quick'] else ''}`. {names}; "
        f"{machine['processor']}, {machine['cores']} cores, one thread for each training and search."
    )
    yield (
        f"**Space.** {len(networks)} networks for scikit-learn's digits (8 x 8 pixels; the last 360 images are the test set), "
        f"{truth.macs.min():,} to {truth.macs.max():,} multiply-adds: {decisions}. All were trained from scratch, epochs: "
        f"{plan['training']['epochs']}, seeds: {_range(plan['training_seeds'])}, {truth.training_seconds:.1f} s of CPU each. Searches and "
        "selection see the training and validation parts only; members are ranked by test accuracy, the mean over training seeds."
    )
    yield (
        f"**Searches.** Epochs: {plan['search']['epochs']}, with the settings that `niwaki search` takes by itself for data of this "
        "size, but "
        "that all steps run the mixture of both resolutions, as published: `recipe/fbnetv2.py` says why, and what was tried. A search "
        "costs "
        f"{search_seconds:.1f} s of CPU. Means are over searches; intervals (95 %) are bootstrapped over search seeds, each the mean over "
        "its budgets."
    )
    yield (
        f"**At its cost**: among the members within the budget that have at least {percent(AT_ITS_COST, 0)} of its multiply-adds; the top "
        "share is its rank over their number, so that the best of 20 is in the top 5 %."
    )
    yield (
        "**Random search at equal cost** draws different members within the budget uniformly, trains each once, and keeps the best by "
        "validation accuracy: as many as the search and one training cost in CPU time, rounded up. Its mean is computed exactly from all "
        "trainings (member i of N by validation is picked with probability C(i-1, n-1) / C(N, n)), not simulated. Tags of the paper's "
        "figures: abstract; secondary, known from other writers."
    )
    excess = [truth.macs[one["derived"]["options"]] / one["budget"] for one in results["searches"]]
    over = [ratio for ratio in excess if ratio > 1]
    yield (
        "**The budget.** What we derive keeps it by construction; the published derivation, the most likely option of each decision, "
        "does not ask, "
        f"and is over it in {len(over)} of {len(excess)} searches{f', by up to {percent(max(over) - 1, 0)}' if over else ''}."
    )


# --- figures -------------------------------------------------------------------------------------------------------------------------


def _over_seeds(searches: Sequence[Mapping[str, Any]], values: Sequence[float]) -> Interval:
    """Mean with an interval over search seeds, each seed by its mean over budgets."""
    seeds: dict[int, list[float]] = {}
    for one, value in zip(searches, values, strict=True):
        seeds.setdefault(one["seed"], []).append(value)
    return bootstrap([float(np.mean(seeds[seed])) for seed in sorted(seeds)])


def _by_objective(results: Mapping[str, Any]) -> Iterator[tuple[str, dict[float, list[Mapping[str, Any]]]]]:
    """Objective, and its searches by cost weight, ascending."""
    ordered = sorted(results["sweep"], key=lambda one: (one["objective"], one["weight"], one["seed"]))
    for kind, rows in groupby(ordered, key=lambda one: one["objective"]):
        yield kind, {weight: list(found) for weight, found in groupby(rows, key=lambda one: one["weight"])}


def _costs(found: Sequence[Mapping[str, Any]], truth: Truth, name: str) -> list[float]:
    return [one["expected_macs"] if name == "expected" else float(truth.macs[one["derived"]["options"]]) for one in found]


def _options(results: Mapping[str, Any], name: str) -> list[Any]:
    """The options of a decision in their order, which is that of the enumeration."""
    return list(dict.fromkeys(network["choices"][name] for network in results["networks"]))


def _memo(function: Callable[[int, int], Any]) -> Callable[[int, int], Any]:
    """`function` of budget and draws, computed once for each: searches of one budget mostly cost the same number of trainings."""
    known: dict[tuple[int, int], Any] = {}

    def look(budget: int, draws: int) -> Any:
        if (budget, draws) not in known:
            known[budget, draws] = function(budget, draws)
        return known[budget, draws]

    return look


def _share(interval: Interval) -> str:
    return interval.text(1, scale=100, unit=" %")


def _range(values: Sequence[int]) -> str:
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _thousands(values: Sequence[float]) -> str:
    return ", ".join(f"{value / 1000:.1f} k" for value in values)


def _words(options: Sequence[Any]) -> str:
    return "|".join(map(str, options))
