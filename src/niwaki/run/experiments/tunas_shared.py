"""TuNAS with shared weights on scikit-learn's digits: what it finds, trained from scratch, beside the other members of its size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from niwaki.cost.count import count_params
from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.gradient.controller import Control
from niwaki.gradient.tunas import TuNAS, TuNASSearch
from niwaki.net.control import Chain, Network
from niwaki.net.layer import Activation, BatchNorm, Flatten, Layer, Linear
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.run.claims import Claim, Table, percent
from niwaki.run.experiments.verdicts import above, at_least, claim
from niwaki.run.statistics import Interval, bootstrap, expected_pick, share_of
from niwaki.space.architecture import Architecture
from niwaki.space.choice import Choice
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.task.task import derive_seed
from niwaki.train.loop import evaluate, train
from niwaki.train.recipe import Recipe

WIDTHS, LAYERS = (8, 16, 32, 64), 3
TARGETS = (2_490, 5_082)  # parameters; eight of the 64 members are within 10 % of each, the most there are anywhere
NEAR = 0.10
ENDS_NEAR = 0.8  # of the searches


@dataclass(frozen=True)
class SharedPlan:
    """seeds: of searches and trainings, for each target. epochs: of a search; scratch_epochs: of a training from scratch."""

    seeds: int = 10
    epochs: int = 120
    scratch_epochs: int = 60


SHARED = SharedPlan()
Budget = Literal["soft", "hard"]
BUDGETS: tuple[Budget, ...] = ("soft", "hard")


def network() -> Network:
    """A perceptron of three hidden layers, each with BatchNorm and of 8, 16, 32 or 64 units."""
    layers: list[Layer] = [Flatten(name="flat")]
    for at in range(1, LAYERS + 1):
        layers += [
            Linear(Choice(WIDTHS, f"/hidden{at}.width"), bias=False, name=f"hidden{at}"),
            BatchNorm(name=f"bn{at}"),
            Activation("relu", name=f"act{at}"),
        ]
    return Network(Chain(*layers, Linear(10, name="output")), (1, 8, 8))


def method(budget: Budget, epochs: int) -> TuNAS:
    """Ours, for 1,437 images: TuNAS's warm-ups, delay, ramp, baseline and beta; learning rates for some thousand steps of 64 images."""
    return TuNAS(
        epochs=epochs, batch_size=64, weight_lr=0.05, weight_decay=1e-4, architecture_share=0.2, control=Control(lr=0.02, budget=budget)
    )


def run_search(budget: Budget, target: int, plan: SharedPlan, seed: int) -> dict[str, Any]:
    """What a search finds, its most likely member; and that member trained from scratch."""
    task, space = ImageClassification(digits(), seed=seed), space_of(network())
    search = TuNASSearch(network(), task, [within(space, [Limit(count_params(network()), target)])], method(budget, plan.epochs), seed=seed)
    while not search.finished:
        search.run()
    found = search.controllers[0].mode()
    return {"quality": search.history[-1].quality, "entropy": search.history[-1].entropy, **member(found, target, plan, task, seed)}


def run_members(target: int, plan: SharedPlan, seed: int) -> list[dict[str, Any]]:
    """All members near the target, trained from scratch."""
    cost, task = count_params(network()), ImageClassification(digits(), seed=seed)
    near = [arch for arch in space_of(network()).enumerate() if abs(cost(arch) / target - 1) <= NEAR]
    return [member(arch, target, plan, task, seed) for arch in near]


def member(arch: Architecture, target: int, plan: SharedPlan, task: ImageClassification, seed: int) -> dict[str, Any]:
    """Trained on the train part: accuracies on validation and test part, in points."""
    recipe = Recipe(epochs=plan.scratch_epochs)
    module = build(network(), arch, seed=derive_seed(seed, "scratch weights"))
    trained = train(module, task, recipe, task.part("train"), seed=derive_seed(seed, "scratch"))
    accuracy = {part: 100 * evaluate(trained, task, task.part(part))["accuracy"] for part in ("validation", "test")}
    return {"arch": list(arch.values()), "ratio": count_params(network())(arch) / target, **accuracy}


def draws(plan: SharedPlan) -> int:
    """How many trainings from scratch a search costs, in examples seen forward (1) or forward and backward (3)."""
    task, own = ImageClassification(digits()), method("hard", plan.epochs)
    weights, _ = task.search_split(own.architecture_share)
    steps = -(-len(weights) // own.batch_size)
    search = plan.epochs * (3 * len(weights) + steps * own.batch_size * own.validation_batches)
    return max(1, round(search / (3 * plan.scratch_epochs * len(task.part("train")))))


def claims_of(results: dict[str, Any], plan: SharedPlan) -> tuple[tuple[Claim, ...], tuple[Table, ...]]:
    """results: by target, "soft" and "hard", lists of `run_search`, and "members", of `run_members`, by seed."""
    claims, tables = [_at_target([one for found in results.values() for one in found["soft"]])], []
    for target, found in results.items():
        better, table = _of_target(int(target), found, plan)
        claims.append(better)
        tables.append(table)
    return tuple(claims), tuple(tables)


def _of_target(target: int, results: dict[str, Any], plan: SharedPlan) -> tuple[Claim, Table]:
    members = results["members"]
    picks = min(draws(plan), len(members[0]))
    means = [float(np.mean([one["test"] for one in of_seed])) for of_seed in members]
    random = [expected_pick([one["validation"] for one in of_seed], [one["test"] for one in of_seed], picks) for of_seed in members]
    return _better(target, results, means, random, picks), _table(target, results, plan, picks, means, random)


def _less(found: list[float], others: list[float]) -> Interval:
    return bootstrap([one - other for one, other in zip(found, others, strict=True)])


def _tests(found: list[dict[str, Any]]) -> list[float]:
    return [one["test"] for one in found]


def _near(found: list[dict[str, Any]]) -> int:
    return sum(abs(one["ratio"] - 1) <= NEAR for one in found)


def _at_target(soft: list[dict[str, Any]]) -> Claim:
    near = share_of(_near(soft), len(soft))
    return claim(
        f"With shared weights, too, the search ends within {percent(NEAR, 0)} of the target, at least {percent(ENDS_NEAR, 0)} of the "
        "time: the whole interval",
        "one search [paper]",
        f"{_near(soft)} of {len(soft)} searches: {near.text(0, scale=100, unit=' %')}",
        "not a search",
        at_least(near, ENDS_NEAR),
    )


def _better(target: int, results: dict[str, Any], means: list[float], random: list[float], picks: int) -> Claim:
    soft, hard = (_less(_tests(results[budget]), means) for budget in BUDGETS)
    return claim(
        f"What it finds with shared weights at {target:,} parameters is better than the mean network of that size, trained from scratch: the "
        "whole interval above 0",
        "matches or beats random search [paper]",
        f"test accuracy {soft.text(sign=True)} points; with a hard budget (ours) {hard.text(sign=True)}",
        f"{_less(random, means).text(sign=True)}, best of {picks}",
        above(soft),
    )


def _table(target: int, results: dict[str, Any], plan: SharedPlan, picks: int, means: list[float], random: list[float]) -> Table:
    rows = []
    for budget, label in zip(BUDGETS, ("soft, as published", "hard, ours"), strict=True):
        found = results[budget]
        ratio, tests = f"{np.mean([one['ratio'] for one in found]):.2f}", _tests(found)
        against = (_less(tests, others).text(sign=True) for others in (means, random))
        rows.append((f"TuNAS, budget {label}", ratio, f"{_near(found)} of {len(found)}", bootstrap(tests).text(), *against))
    for label, values in ((f"random search, best of {picks} near the target", random), ("mean member near the target", means)):
        rows.append((label, "-", "all", bootstrap(values).text(), _less(values, means).text(sign=True), "-"))
    title = (
        f"Shared weights: digits at {target:,} parameters, {len(means)} seeds, all trained from scratch for {plan.scratch_epochs} epochs"
    )
    columns = ("network", "parameters / target", "within 10 %", "test accuracy", "against the mean member", "against random search")
    return Table(title, columns, tuple(rows))


ABOUT = (
    "Shared weights: a perceptron of three hidden layers of 8, 16, 32 or 64 units on scikit-learn's digits; its 64 members share the "
    "weights of the largest. "
    f"The targets are {TARGETS[0]:,} and {TARGETS[1]:,} parameters; 8 members lie within 10 % of each: the mean member is the mean of "
    "all of these, where the "
    "check asks for 20 random ones. Warm-ups, delay and ramp over a quarter of the steps, "
    "beta -0.1; the quality is measured on 256 examples a step. The hard budget draws what is within the target only."
)
