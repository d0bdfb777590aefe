"""BigNAS's claims on Fashion-MNIST: members of a supernet against the same networks trained alone, single paths, calibration, ranking, selection."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from random import Random
from typing import Any

import numpy as np

from niwaki.cost.count import count_macs
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.factor import Limit
from niwaki.factor.within import Within, within
from niwaki.gradient.one_shot import OneShot, OneShotSearch
from niwaki.gradient.train_once import TrainOnceSearch
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.nn.supernet import extract
from niwaki.objective import Objective
from niwaki.recipe import bignas as recipe
from niwaki.run.asking import asked_of, begun, told
from niwaki.run.claims import Claim, Section, Table
from niwaki.run.experiments.data import shared_data
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.verdicts import above, at_least, claim, not_testable, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import Interval, bootstrap, correlation_interval, kendall
from niwaki.run.workers import Job, Workers
from niwaki.space.architecture import Architecture
from niwaki.strategy.coarse_to_fine import CoarseToFine, skeletons_of
from niwaki.task.augment import Augment
from niwaki.task.classify import ImageClassification
from niwaki.task.images import arrays
from niwaki.task.task import derive_seed
from niwaki.train.loop import evaluate, train
from niwaki.train.recipe import Recipe
from niwaki.trial import Trial
from niwaki.zoo.bignas import bignas_small

SIZES = ("smallest", "middle", "biggest")
WORSE = 1.5  # points that a member may be behind the same network trained alone
GAP = 10.0  # points that calibration is worth at least
TAU = 0.5
NEAR = 0.95  # of a budget: what random members must cost at least to be compared with what is selected within it
SHARES = (0.3, 0.5, 0.8)  # of the largest member's multiply-adds: the budgets


@dataclass(frozen=True)
class Plan:
    """images: to train on; validation: more, for selection; test: images of the test part. members: networks that are ranked, evenly spaced in cost,
    the smallest, one of the middle and the biggest first; these three are trained alone with every seed, the others with the first `ranked`.
    evaluations: of a selection, and random members near each budget. relatives: with the first seed only."""

    seeds: int = 3
    images: int = 3_000
    validation: int = 1_000
    test: int = 4_000
    epochs: int = 30
    lr: float = recipe.LR
    alone_lr: float = 0.1
    weight_decay: float = 1e-4
    members: int = 20
    ranked: int = 2
    evaluations: int = 100
    relatives: tuple[str, ...] = ("alphanet",)
    minutes: str = "about 45 minutes on two idle cores"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "minutes"}


@lru_cache(maxsize=1)
def task_of(plan: Plan) -> ImageClassification:
    """The first images of the training set, without augmentation; the same for all trainings."""
    of = {part: np.load(shared_data("fashion_mnist", f"{part}.npz")) for part in ("train", "test")}
    there = plan.images + plan.validation
    images = arrays(
        of["train"]["images"][:there], of["train"]["labels"][:there].astype(np.int64),
        of["test"]["images"][: plan.test], of["test"]["labels"][: plan.test].astype(np.int64), source="Fashion-MNIST",
    )  # fmt: skip
    return ImageClassification(images, validation=plan.validation / there, augment=Augment())


@lru_cache(maxsize=1)
def network() -> Network:
    return bignas_small()


def space_within(share: float) -> Within:
    """The members that cost at most that share of the largest."""
    cost = count_macs(network())
    return within(space_of(network()), [Limit(cost, int(share * cost.maximum()[0]))])


def members_of(count: int) -> list[Architecture]:
    """The smallest member, one of the middle (small, middle or large alike in all stages), the biggest; then others, evenly spaced in cost."""
    space, cost = space_of(network()), count_macs(network())
    (least, smallest), (most, biggest) = cost.minimum(), cost.maximum()
    found = [smallest, skeletons_of(space_within((least + most) / 2 / most))[0], biggest]
    rows = space.sample_many(4096, np.random.default_rng(0))
    costs = cost.batch(rows)
    for target in np.linspace(least, most, count - 1)[1:-1]:
        nearest = rows[np.argsort(np.abs(costs - target), kind="stable")]
        found.append(next(arch for row in nearest.tolist() if (arch := space.from_indices(row)) not in found))
    return found[:count]


# --- jobs: functions of their arguments alone -----------------------------------------------------------------------------------


def alone(plan: Plan, number: int, seed: int) -> dict[str, Any]:
    """Member `number` trained by itself for as many epochs, by the same recipe, but with a cosine to zero and the rate for that. Accuracy in points."""
    arch, task = members_of(plan.members)[number], task_of(plan)
    how = Recipe(epochs=plan.epochs, batch_size=64, lr=plan.alone_lr, weight_decay=plan.weight_decay)
    module, began = build(network(), arch, seed=derive_seed(seed, "alone weights")), time.process_time()
    trained = train(module, task, how, task.part("train"), seed=derive_seed(seed, "alone"))
    seconds = time.process_time() - began
    return {"accuracy": points(trained, task), "seconds": seconds}


def points(module: Any, task: ImageClassification, part: Any = "test") -> float:
    return 100 * evaluate(module, task, task.part(part))["accuracy"]


def trained_once(plan: Plan, name: str, seed: int) -> tuple[TrainOnceSearch, float]:
    """A supernet by the recipe called `name`, and the CPU seconds it took."""
    method = recipe.small(name, epochs=plan.epochs, lr=plan.lr, weight_decay=plan.weight_decay)
    learner = TrainOnceSearch(network(), task_of(plan), [], method, seed=seed)
    began = time.process_time()
    while not learner.finished:
        learner.run()
    return learner, time.process_time() - began


def once(plan: Plan, name: str, seed: int, *, select: bool = True) -> dict[str, Any]:
    """A supernet, its members on the test part, what calibration is worth to the smallest, and what is selected within each budget."""
    learner, seconds = trained_once(plan, name, seed)
    task, judge = task_of(plan), SharedWeights(learner.net, task_of(plan), seed=seed)
    archs = members_of(plan.members) if select else members_of(len(SIZES))
    found = {
        "seconds": seconds,
        "steps": learner.step,
        "members": [points(judge.module(arch), task) for arch in archs],
        # as the biggest member would have it: with the running statistics of the supernet, which has just been run as a whole
        "uncalibrated": points(_with_statistics_of_biggest(learner, judge), task),
    }
    return found | {"selections": [selection(plan, judge, share, seed) for share in SHARES]} if select else found


def _with_statistics_of_biggest(learner: TrainOnceSearch, judge: SharedWeights) -> Any:
    """The smallest member with the first channels of the biggest one's own statistics."""
    from_biggest = {name: value for name, value in judge.module(learner.biggest).state_dict().items() if "running" in name}
    module = extract(learner.net, learner.smallest)
    for name, value in module.state_dict().items():
        if "running" in name:
            value.copy_(from_biggest[name][: len(value)])
    return module.eval()


def selection(plan: Plan, judge: SharedWeights, share: float, seed: int) -> dict[str, Any]:
    """What coarse to fine selects within the budget on the validation part; random members near the budget; and the best of those by validation."""
    task, space, cost = task_of(plan), space_within(share), count_macs(network())
    (limit,) = space.limits
    strategy = CoarseToFine(skeletons=min(64, plan.evaluations // 2))
    state, trials = begun(strategy, space), list[Trial]()
    while len(trials) < plan.evaluations:
        asked = asked_of(strategy, space, state, 1, Random(f"{seed}/{len(trials)}"), ())
        if not asked:
            break
        trials.append(Trial(len(trials), asked[0], judge(asked[0]), strategy.name))
        state = told(strategy, state, trials[-1:])
    picked = Objective(task.metric).best(trials).arch
    near: dict[Architecture, float] = {}
    rows = space.sample_many(64 * plan.evaluations, np.random.default_rng(derive_seed(seed, "near", share)))
    for row in rows[cost.batch(rows) >= NEAR * limit.upper].tolist():
        if len(near) < plan.evaluations and (arch := space.from_indices(row)) not in near:
            near[arch] = judge(arch)["accuracy"]
    tested = [points(judge.module(arch), task) for arch in near]
    return {
        "share": share, "upper": limit.upper, "macs": cost(picked), "most": max(cost(trial.arch) for trial in trials),
        "picked": points(judge.module(picked), task), "median": float(np.median(tested)), "near": len(near),
        "random_best": tested[int(np.argmax(list(near.values())))],
    }  # fmt: skip


def single_path(plan: Plan, seed: int) -> dict[str, Any]:
    """A supernet of which each step trains one member, drawn evenly: for as many multiply-adds in all as the sandwich costs."""
    task, cost, space = task_of(plan), count_macs(network()), space_of(network())
    mean = float(cost.batch(space.sample_many(4096, np.random.default_rng(0))).mean())
    a_step = (cost.maximum()[0] + cost.minimum()[0] + 2 * mean) / mean  # in steps of one member
    method = OneShot(round(plan.epochs * a_step), 64, plan.alone_lr, 0.9, plan.weight_decay)
    learner, began = OneShotSearch(network(), task, [within(space, ())], method, seed=seed), time.process_time()
    while not learner.finished:
        learner.run()
    seconds, judge = time.process_time() - began, SharedWeights(learner.net, task, seed=seed)
    return {"seconds": seconds, "steps": learner.step, "members": [points(judge.module(arch), task) for arch in members_of(len(SIZES))]}


def relative(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    return once(plan, name, seed, select=False)


def seeds_of(plan: Mapping[str, Any], number: int) -> range:
    """Seeds with which member `number` is trained alone."""
    return range(plan["seeds"] if number < len(SIZES) else min(plan["ranked"], plan["seeds"]))


# --- the experiment -------------------------------------------------------------------------------------------------------------


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    seeds = range(plan.seeds)
    jobs = [Job(f"sandwich {seed}", once, (plan, "bignas", seed)) for seed in seeds]
    jobs += [Job(f"single path {seed}", single_path, (plan, seed)) for seed in seeds]
    jobs += [Job(f"relative {name}", relative, (plan, name, 0)) for name in plan.relatives]
    jobs += [
        Job(f"alone {number} {seed}", alone, (plan, number, seed))
        for number in range(plan.members)
        for seed in seeds_of(plan.to_json(), number)
    ]
    with Workers(workers) as pool:
        found = pool.run(jobs, folder, progress, f"{len(jobs)} trainings")
    cost = count_macs(network())
    return {"jobs": found, "macs": [cost(arch) for arch in members_of(plan.members)]}


def section_of(results: dict[str, Any]) -> Section:
    plan, jobs = results["plan"], results["jobs"]
    seeds = range(plan["seeds"])
    sandwich = [jobs[f"sandwich {seed}"] for seed in seeds]
    single = [jobs[f"single path {seed}"] for seed in seeds]
    alone_ = [[jobs[f"alone {number} {seed}"]["accuracy"] for seed in seeds_of(plan, number)] for number in range(plan["members"])]
    claims = (
        *_against_alone(sandwich, alone_),
        *_against_single_paths(sandwich, single),
        _calibrated(sandwich),
        _ranking(sandwich, alone_),
        *_selections(sandwich),
        not_testable(
            "ImageNet: 76.5 to 80.9 % at 242 to 1,040 million multiply-adds, without retraining", "abstract", "36 hours on 64 TPUs"
        ),
    )
    title = "BigNAS: one supernet, trained once (Yu et al., ECCV 2020)"
    return section("bignas", title, results, _about(plan, results, sandwich, single), claims, [_table(results, sandwich, single, alone_)])


def _accuracies(found: Sequence[Mapping[str, Any]], size: int) -> list[float]:
    return [one["members"][size] for one in found]


def _less(a: Sequence[float], b: Sequence[float]) -> Interval:
    return bootstrap([x - y for x, y in zip(a, b, strict=True)])


def _against_alone(sandwich: Sequence[Mapping[str, Any]], alone_: Sequence[Sequence[float]]) -> list[Claim]:
    rows = []
    for size, name in enumerate(SIZES):
        apart = _less(_accuracies(sandwich, size), alone_[size])
        rows.append(
            claim(
                f"The {name} member is no more than {WORSE} points behind the same network trained alone for as many epochs: the whole interval",
                "not behind; retraining does not help [memory]",
                f"{bootstrap(_accuracies(sandwich, size)).text()} %; {apart.text(sign=True)} points",
                f"alone {bootstrap(alone_[size]).text()} %",
                at_least(apart, -WORSE),
            )
        )
    return rows


def _against_single_paths(sandwich: Sequence[Mapping[str, Any]], single: Sequence[Mapping[str, Any]]) -> list[Claim]:
    rows = []
    for size in (0, 2):
        apart = _less(_accuracies(sandwich, size), _accuracies(single, size))
        rows.append(
            claim(
                f"The sandwich trains the {SIZES[size]} member better than single paths at equal multiply-adds do: the whole interval above 0",
                "section 4.3, by figure",
                f"{apart.text(sign=True)} points",
                f"single paths, drawn evenly: {bootstrap(_accuracies(single, size)).text()} %",
                above(apart),
            )
        )
    return rows


def _calibrated(sandwich: Sequence[Mapping[str, Any]]) -> Claim:
    gap = _less(_accuracies(sandwich, 0), [one["uncalibrated"] for one in sandwich])
    return claim(
        f"BatchNorm statistics of its own are worth {GAP:.0f} points or more to the smallest member: the whole interval",
        "without them near chance [memory]",
        f"{gap.text(sign=True)} points",
        f"with the biggest member's {bootstrap([one['uncalibrated'] for one in sandwich]).text()} %",
        at_least(gap, GAP),
    )


def _ranking(sandwich: Sequence[Mapping[str, Any]], alone_: Sequence[Sequence[float]]) -> Claim:
    shared = np.mean([one["members"] for one in sandwich], axis=0)
    seeds = min(map(len, alone_))
    by_seed = np.array([accuracies[:seeds] for accuracies in alone_]).T
    tau = correlation_interval(kendall, shared, by_seed.mean(axis=0))
    return claim(
        f"Members rank as they do trained alone: Kendall's tau over {len(shared)} members, means over {len(sandwich)} supernets and {seeds} trainings alone, at least {TAU}: the whole interval",
        "-",
        "no spread" if tau is None else tau.text(),
        f"one seed of the trainings alone against the mean of the others {_between_seeds(by_seed)}",
        tau is not None and at_least(tau, TAU),
    )


def _between_seeds(alone_: np.ndarray) -> str:
    """How well one training alone ranks the members, which is what could be hoped for."""
    if len(alone_) < 2:
        return "-"
    taus = [kendall(alone_[at], np.delete(alone_, at, axis=0).mean(axis=0)) for at in range(len(alone_))]
    return f"{np.mean([tau for tau in taus if tau is not None]):.2f}"


def _selections(sandwich: Sequence[Mapping[str, Any]]) -> list[Claim]:
    rows = []
    for at, share in enumerate(SHARES):
        found = [one["selections"][at] for one in sandwich]
        apart = bootstrap([one["picked"] - one["median"] for one in found])
        kept = all(one["most"] <= one["upper"] for one in found)
        rows.append(
            claim(
                f"Coarse to fine within {share:.0%} of the largest keeps the budget always, and beats the median of random members near it: the "
                "whole interval above 0",
                "-",
                f"{bootstrap([one['picked'] for one in found]).text()} %, {apart.text(sign=True)} points; {'never' if kept else '**sometimes**'} over",
                f"best of {found[0]['near']} random members by validation {bootstrap([one['random_best'] for one in found]).text()} %",
                above(apart) and kept,
            )
        )
    return rows


def _about(
    plan: Mapping[str, Any], results: Mapping[str, Any], sandwich: Sequence[Mapping[str, Any]], single: Sequence[Any]
) -> tuple[str, ...]:
    seconds = np.mean([one["seconds"] for one in sandwich])
    each = [np.mean([results["jobs"][f"alone {size} {seed}"]["seconds"] for seed in range(plan["seeds"])]) for size in range(len(SIZES))]
    return (
        f"Fashion-MNIST, {plan['images']:,} training images without augmentation, {plan['epochs']} epochs ({sandwich[0]['steps']:,} steps of 64), "
        f"accuracy on {plan['test']:,} test images, {plan['seeds']} seeds, 95 % intervals bootstrapped over them. The supernet has 5,832 members of "
        f"{min(results['macs']):,} to {max(results['macs']):,} multiply-adds; SGD from {plan['lr']:g}, with the constant ending. Alone: the same "
        f"recipe with a cosine from {plan['alone_lr']:g} to zero; so are single paths. Selections look at "
        f"{plan['evaluations']} members on {plan['validation']:,} other images; nothing is trained after the supernet.",
        f"CPU seconds of one thread: the supernet {seconds:.0f}, its smallest, a middle and its biggest member alone {each[0]:.0f}, {each[1]:.0f} and "
        f"{each[2]:.0f}; single paths took {single[0]['steps']:,} steps and {np.mean([one['seconds'] for one in single]):.0f} seconds.",
    )


def _table(results: Mapping[str, Any], sandwich: Sequence[Any], single: Sequence[Any], alone_: Sequence[Sequence[float]]) -> Table:
    jobs, plan = results["jobs"], results["plan"]
    rows = [
        (
            "BigNAS",
            *(bootstrap(_accuracies(sandwich, size)).text() for size in range(3)),
            f"{np.mean([one['seconds'] for one in sandwich]):.0f}",
        ),
        *(
            (
                f"{name} (one seed)",
                *(f"{jobs[f'relative {name}']['members'][size]:.2f}" for size in range(3)),
                f"{jobs[f'relative {name}']['seconds']:.0f}",
            )
            for name in plan["relatives"]
        ),
        (
            "single paths",
            *(bootstrap(_accuracies(single, size)).text() for size in range(3)),
            f"{np.mean([one['seconds'] for one in single]):.0f}",
        ),
        ("each alone", *(bootstrap(alone_[size]).text() for size in range(3)), "-"),
    ]
    return Table("Test accuracy in %, and CPU seconds of the supernet", ("method", *SIZES, "seconds"), tuple(rows))


def _plan(quick: bool) -> Plan:
    if not quick:
        return Plan()
    return replace(
        Plan(),
        seeds=2,
        images=160,
        validation=60,
        test=100,
        epochs=1,
        members=5,
        evaluations=4,
        relatives=("alphanet",),
        minutes="a minute",
    )


EXPERIMENT = Experiment(("bignas",), _plan, measure, section_of)
