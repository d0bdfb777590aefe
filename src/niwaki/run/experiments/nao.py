"""NAO's claims on NAS-Bench-201, and its autoencoder on its own 40 tokens: what the gradient is worth, and what the search finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from niwaki.objective import Objective
from niwaki.predictor.sequence import SequenceRecipe, fit_autoencoder, moved, moved_at_random
from niwaki.recipe import nao as recipe
from niwaki.run.claims import Claim, Section, Verdict
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import SIGNAL, benchmark, searched
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import bootstrap, expected_picks
from niwaki.run.workers import Job, Workers
from niwaki.strategy.nao import NAO, generate
from niwaki.strategy.tokens import Tokens

HELD_OUT = 200
CELL_RECIPE = SequenceRecipe(per_step=2, epochs=300)


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
    plan, jobs, quick = results["plan"], results["jobs"], results["quick"]
    found = [jobs[f"search {seed}"] for seed in range(plan["seeds"])]
    evaluations = plan["first"] + plan["rounds"] * plan["per_round"]

    def verdict(holds: bool) -> Verdict:
        return "not decided (quick)" if quick else "holds" if holds else "does not hold"

    def interval(values: list[float]) -> str:
        one = bootstrap(values)
        return f"{one.mean:.2f} ({one.low:.2f} to {one.high:.2f})"

    wins = sum(one["best"] >= one["random_best"] for one in found)
    apart = np.array([one["mean"]["gradient"] - one["mean"]["random"] for one in found])
    error = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else float("inf")
    near = [one["mean"]["gradient"] - one["mean"]["neighbours"] for one in found]
    swaps, plain = jobs["cells True"], jobs["cells False"]
    return Section(
        "nao", "Neural architecture optimization (NAO, Luo et al., 2018)",
        (
            f"NAS-Bench-201, 12-epoch validation accuracy; a pool of {plan['first']} and {plan['rounds']} rounds of {plan['per_round']}, {plan['seeds']} seeds, 95 % intervals bootstrapped over them. "
            f"Encoder and decoder are trained on {plan['recipe']['unlabelled']} unscored architectures, too (ours): {interval([100 * one['tokens'] for one in found])} % of the tokens of held-out sequences are decoded again.",
            f"Generated in the first round, mean accuracy: {interval([one['mean']['gradient'] for one in found])}; one-token neighbours of the same parents {interval([one['mean']['neighbours'] for one in found])}, "
            f"paired difference {interval(near)}; the parents {interval([one['mean']['parents'] for one in found])}.",
        ),
        (
            Claim("The search finds more than random search of as many evaluations", "1,000 architectures instead of 20,000 and more [memory]", f"best of {evaluations}: {interval([one['best'] for one in found])}; at least random search's best in {wins} of {len(found)} seeds",
                  f"{interval([one['random_best'] for one in found])}, exact mean {results['random_exact']:.2f}; the best there is {results['best']:.2f}", verdict(wins >= 0.8 * len(found))),
            Claim("The gradient finds better architectures than random directions of equal length", "the method's premise", f"{apart.mean():+.2f} points, {apart.mean() / error:.1f} standard errors",
                  f"random directions {interval([one['mean']['random'] for one in found])}", verdict(apart.mean() >= 2 * error)),
            Claim("Moving along the gradient raises what is predicted for what is decoded", "by construction, where the decoder is right", f"in {interval([100 * one['rises'] for one in found])} % of changed sequences", "not applicable",
                  verdict(float(np.mean([one["rises"] for one in found])) >= 0.8)),
            Claim("What is generated is valid and different", "duplicates are not new", f"{min(one['distinct'] for one in found)} to {max(one['distinct'] for one in found)} different programs of {evaluations - plan['first']}", "not applicable",
                  verdict(min(one["distinct"] for one in found) == evaluations - plan["first"])),
            Claim("Sequences of 40 tokens are decoded again", "99 % (a bar of ours)", f"{100 * swaps['tokens']:.1f} % of held-out tokens, pairs in the right order {swaps['pairs']:.2f}", "not applicable", verdict(swaps["tokens"] >= 0.99 and swaps["pairs"] >= 0.8)),
            Claim("Swapping pairs in training makes equal architectures alike", "symmetric augmentation [the authors' code]", f"prediction gap between equal encodings {swaps['gap']:.4f}, without swapping {plain['gap']:.4f}", "not applicable", verdict(plain["gap"] >= 2 * swaps["gap"])),
            Claim("CIFAR-10 error 1.93 %, PTB perplexity 56.0", "abstract", "200 GPU days of training", "-", "not testable here"),
        ),
        quick=quick,
    )  # fmt: skip


def _plan(quick: bool) -> Plan:
    if not quick:
        return Plan()
    return Plan(2, 1, 20, 5, 60, replace(recipe.TABLE, epochs=3), SequenceRecipe(per_step=2, epochs=2), "seconds")


EXPERIMENT = Experiment(("nao",), _plan, measure, section_of)
