"""NAO's claims on NAS-Bench-201, and its autoencoder on its own 40 tokens: what the gradient is worth, and what the search finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from niwaki.objective import Objective
from niwaki.predictor.sequence import SequenceRecipe, fit_autoencoder, moved, moved_at_random
from niwaki.recipe import nao as recipe
from niwaki.run.claims import Claim, Section, percent
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import SIGNAL, benchmark, searched
from niwaki.run.experiments.verdicts import above, at_least, claim, not_testable, section, sign_test
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import bootstrap, expected_picks
from niwaki.run.workers import Job, Workers
from niwaki.strategy.nao import NAO, generate
from niwaki.strategy.tokens import Tokens

HELD_OUT = 200
RISES = 0.8  # of changed sequences
CELL_RECIPE = SequenceRecipe(per_step=2, epochs=200)


@dataclass(frozen=True)
class Plan:
    """seeds: of the searches on NAS-Bench-201, of `rounds` rounds; cells: 2-cell architectures that the autoencoder is trained on."""

    seeds: int = 10
    rounds: int = 3
    first: int = 100
    per_round: int = 30
    cells: int = 500
    recipe: SequenceRecipe = recipe.TABLE
    cell_recipe: SequenceRecipe = CELL_RECIPE
    minutes: str = "about 12 minutes on two idle cores"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "minutes"}


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    jobs = [Job(f"search {seed}", search, (plan, seed)) for seed in range(plan.seeds)]
    jobs += [Job(f"cells {symmetric}", cells, (plan, symmetric)) for symmetric in (True, False)]
    with Workers(workers) as pool:
        found = pool.run(jobs, folder, progress, f"{plan.seeds} searches, and the autoencoder of two cells")
    values = benchmark("nasbench201").columns[SIGNAL]
    exact = float(expected_picks(values, values, plan.first + plan.rounds * plan.per_round)[-1])
    return {"jobs": found, "random_exact": exact, "best": float(values.max())}


def search(plan: Plan, seed: int) -> dict[str, Any]:
    """A search, random search beside it; of the first round also random directions, one-token neighbours, and what re-encoding predicts."""
    table = benchmark("nasbench201")
    truth = table.columns[SIGNAL]
    strategy = NAO(Objective(SIGNAL), first=plan.first, per_round=plan.per_round, seeds=plan.per_round, most_eta=20, recipe=plan.recipe)
    trials, _ = searched(strategy, table.space, table, plan.first + plan.rounds * plan.per_round, seed, batch=10)
    places = np.array([table.place(trial.arch) for trial in trials])
    known, scores = table.rows[places[: plan.first]], truth[places[: plan.first]]
    parents = known[np.argsort(-scores, kind="stable")[: plan.per_round]]
    near = [table.place(other) for row in parents for other in table.space.neighbours(table.space.from_indices(row.tolist()))]
    new = {name: generate(strategy, table.space, known, scores, move) for name, move in (("gradient", moved), ("random", moved_at_random))}
    mean = {
        name: float(np.mean([truth[table.place(table.space.from_indices(row.tolist()))] for row in rows])) for name, rows in new.items()
    }
    drawn = np.random.default_rng(seed).choice(len(truth), len(places), replace=False)
    model, tokens = _model(plan, known, scores, seed)
    held = tokens.of(table.rows[np.random.default_rng([seed, 1]).choice(len(truth), HELD_OUT, replace=False)])
    return {
        "best": float(truth[places].max()),
        "random_best": float(truth[drawn].max()),
        "found": {name: len(rows) for name, rows in new.items()},
        "mean": {**mean, "neighbours": float(truth[near].mean()), "parents": float(np.sort(scores)[-plan.per_round :].mean())},
        "distinct": len(set(table.space.canonical_keys(table.rows[places[plan.first :]]).tolist())),
        **_read(model, tokens, held),
    }


def _model(plan: Plan, known: np.ndarray, scores: np.ndarray, seed: int) -> tuple[Any, Tokens]:
    space = benchmark("nasbench201").space
    tokens = Tokens(space)
    more = tokens.of(space.sample_many(plan.recipe.unlabelled, np.random.default_rng(seed))) if plan.recipe.unlabelled else None
    return fit_autoencoder(tokens.of(known), scores, tokens.vocabulary, plan.recipe, seed=seed, unlabelled=more), tokens


def _read(model: Any, tokens: Tokens, held: np.ndarray) -> dict[str, float]:
    """Of held-out sequences: share of tokens decoded again; and how often moving by 1 to 10 raises the prediction, where the decoded one changed."""
    with torch.no_grad():
        steps = model.encode(torch.from_numpy(held))
        again = model.decode(steps, tokens.legal)
        before, rises = model.score(model.encode(torch.from_numpy(again))), []
        for eta in range(1, 11):
            there = model.decode(moved(model, steps, float(eta)), tokens.legal)
            changed = (there != again).any(1)
            after = model.score(model.encode(torch.from_numpy(there)))
            rises += (after > before)[torch.from_numpy(changed)].tolist()
    return {"tokens": float((again == held).mean()), "rises": float(np.mean(rises)) if rises else 0.0}


def cells(plan: Plan, symmetric: bool) -> dict[str, float]:
    """The autoencoder on `cells` random architectures of NAO's own space with smooth synthetic scores, with pairs swapped in training or not."""
    space = recipe.cells()
    tokens = Tokens(space)
    spelled = tokens.of(space.sample_many(plan.cells + HELD_OUT, np.random.default_rng(0)))
    values = _synthetic(spelled, tokens)
    rewrite = (lambda given, rng: recipe.swapped(tokens, given, rng)) if symmetric else None
    model = fit_autoencoder(spelled[: plan.cells], values[: plan.cells], tokens.vocabulary, plan.cell_recipe, seed=0, symmetric=rewrite)
    held, truth = spelled[plan.cells :], values[plan.cells :]
    with torch.no_grad():
        steps = model.encode(torch.from_numpy(held))
        predicted = model.score(steps).numpy()
        again = model.decode(steps, tokens.legal)
        swapped = recipe.swapped(tokens, held, np.random.default_rng(1))
        other = model.score(model.encode(torch.from_numpy(swapped))).numpy()
    order = (np.sign(truth[:, None] - truth[None, :]) * np.sign(predicted[:, None] - predicted[None, :]))[np.triu_indices(HELD_OUT, 1)]
    return {"tokens": float((again == held).mean()), "pairs": float((order >= 0).mean()), "gap": float(np.abs(predicted - other).mean())}


def _synthetic(spelled: np.ndarray, tokens: Tokens) -> np.ndarray:
    """A smooth score that knows no order within a node: what its two operations are worth, more the nearer what they read is."""
    worth = np.random.default_rng(7).random(tokens.vocabulary)
    nodes = spelled.reshape(len(spelled), 10, 2, 2)
    return (worth[nodes[..., 1]] * (0.5 + 0.5 * worth[nodes[..., 0]])).sum((1, 2))


def section_of(results: dict[str, Any]) -> Section:
    found = [results["jobs"][f"search {seed}"] for seed in range(results["plan"]["seeds"])]
    claims = (
        _against_random(results, found),
        _gradient(found),
        _rises(found),
        *_cells(results["jobs"]["cells True"], results["jobs"]["cells False"]),
        not_testable("CIFAR-10 error 1.93 %, PTB perplexity 56.0", "abstract", "200 GPU days of training"),
    )
    title = "Neural architecture optimization (NAO, Luo et al., 2018)"
    return section("nao", title, results, _about(results["plan"], found), claims)


def _evaluations(plan: dict[str, Any]) -> int:
    return plan["first"] + plan["rounds"] * plan["per_round"]


def _against_random(results: dict[str, Any], found: list[dict[str, Any]]) -> Claim:
    """Random search's best is often as good to the digit, so wins and losses are counted, and what is even is neither."""
    wins, losses = (sum(sign * (one["best"] - one["random_best"]) > 0 for one in found) for sign in (1, -1))
    chance = sign_test(wins, losses)
    return claim(
        "The search finds more than random search of as many evaluations: sign test over seeds, p < 0.05",
        "1,000 architectures instead of 20,000 and more [memory]",
        f"best of {_evaluations(results['plan'])}: {bootstrap([one['best'] for one in found]).text()}; better in {wins}, worse in "
        f"{losses} of "
        f"{len(found)} seeds (p = {chance:.2g})",
        f"{bootstrap([one['random_best'] for one in found]).text()}, exact mean {results['random_exact']:.2f}; the best there is "
        f"{results['best']:.2f}",
        chance < 0.05,
    )


def _gradient(found: list[dict[str, Any]]) -> Claim:
    apart = bootstrap([one["mean"]["gradient"] - one["mean"]["random"] for one in found])
    return claim(
        "The gradient finds better architectures than random directions of equal length: the whole interval above 0",
        "the method's premise",
        f"{apart.text(sign=True)} points",
        f"random directions {bootstrap([one['mean']['random'] for one in found]).text()}",
        above(apart),
    )


def _rises(found: list[dict[str, Any]]) -> Claim:
    rises = bootstrap([one["rises"] for one in found])
    return claim(
        f"Moving along the gradient raises what is predicted for what is decoded, in at least {percent(RISES, 0)} of changed sequences: "
        "the whole interval",
        "so it would be wherever the decoder is right",
        f"in {rises.text(1, scale=100, unit=' %')}",
        "not applicable",
        at_least(rises, RISES),
    )


def _cells(swaps: dict[str, Any], plain: dict[str, Any]) -> tuple[Claim, Claim]:
    once = "one training each, so without an interval"
    return (
        claim(
            "At least 99 % of the tokens of held-out sequences of 40 are decoded again, and 80 % of pairs in the right order (bars of "
            "ours)",
            "-",
            f"{100 * swaps['tokens']:.1f} % of held-out tokens, pairs in the right order {swaps['pairs']:.2f}; {once}",
            "not applicable",
            swaps["tokens"] >= 0.99 and swaps["pairs"] >= 0.8,
        ),
        claim(
            "Swapping pairs in training at least halves the difference that the predictor makes between equal architectures (a bar of "
            "ours)",
            "symmetric augmentation [the authors' code]",
            f"prediction gap between equal encodings {swaps['gap']:.4f}, without swapping {plain['gap']:.4f}; {once}",
            "not applicable",
            plain["gap"] >= 2 * swaps["gap"],
        ),
    )


def _about(plan: dict[str, Any], found: list[dict[str, Any]]) -> tuple[str, ...]:
    mean = {name: bootstrap([one["mean"][name] for one in found]).text() for name in ("gradient", "neighbours", "parents")}
    near = bootstrap([one["mean"]["gradient"] - one["mean"]["neighbours"] for one in found])
    tokens = bootstrap([one["tokens"] for one in found])
    return (
        f"NAS-Bench-201, 12-epoch validation accuracy; a pool of {plan['first']} and {plan['rounds']} rounds of {plan['per_round']}, "
        f"{plan['seeds']} seeds, 95 % intervals bootstrapped over them. Encoder and decoder are trained on {plan['recipe']['unlabelled']} "
        f"unscored architectures, too (ours): {tokens.text(1, scale=100, unit=' %')} of the tokens of held-out sequences are decoded "
        "again. "
        f"What is generated is valid and new by construction: {min(one['distinct'] for one in found)} to "
        f"{max(one['distinct'] for one in found)} "
        f"different programs of {_evaluations(plan) - plan['first']}.",
        f"Generated in the first round, mean accuracy: {mean['gradient']}; one-token neighbours of the same parents "
        f"{mean['neighbours']}, paired "
        f"difference {near.text(sign=True)}; the parents {mean['parents']}.",
    )


def _plan(quick: bool) -> Plan:
    if not quick:
        return Plan()
    return Plan(2, 1, 20, 5, 60, replace(recipe.TABLE, epochs=3), SequenceRecipe(per_step=2, epochs=2), "seconds")


EXPERIMENT = Experiment(("nao",), _plan, measure, section_of)
