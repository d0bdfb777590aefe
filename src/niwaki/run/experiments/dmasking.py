"""DMaskingNAS's claims as experiments, on a space of which every member is trained, with random search beside them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki import zoo
from niwaki.cost.count import count_macs, count_params
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.expect import expected
from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.gradient.dmasking import DMasking, DMaskingSearch
from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Network, OneOf
from niwaki.net.edit import restrict
from niwaki.net.place import space_of
from niwaki.net.text import network_hash
from niwaki.nn.build import build
from niwaki.nn.supernet import supernet
from niwaki.recipe import fbnetv2
from niwaki.run.experiments.dmasking_section import section_of
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.workers import Job, Workers
from niwaki.space.choice import Choice
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.task.task import derive_seed
from niwaki.testing.memory import saved_bytes
from niwaki.train.loop import TrainingDiverged, evaluate, train
from niwaki.train.recipe import Recipe

CALIBRATION_BATCHES = 4  # by which BatchNorm is measured anew for a member with shared weights


@dataclass(frozen=True)
class Plan:
    """What is trained and searched. sweep: objective -> cost weights. masks: options per layer in the measurement of what masks cost."""

    network: Network
    training: Recipe
    search: DMasking
    budgets: tuple[int, ...]
    candidates: int
    sweep: tuple[tuple[Literal["add", "mul"], tuple[float, ...]], ...]
    masks: tuple[int, ...] = (2, 8, 32)
    branches: tuple[int, ...] = (2, 8)
    rounds: int = 15
    training_seeds: tuple[int, ...] = (0, 1)
    search_seeds: tuple[int, ...] = (10, 11, 12, 13, 14)  # others than those that the preset was looked at with
    minutes: str = "about 35 minutes on two idle cores"

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON; two plans are the same where these are."""
        plain = {key: value for key, value in vars(self).items() if key not in ("network", "training", "search", "minutes")}
        texts = {"network": network_hash(self.network), "training": asdict(self.training), "search": asdict(self.search)}
        return json.loads(json.dumps({**plain, **texts}))


def full_plan() -> Plan:
    """Check 7 of DMaskingNAS: 108 networks in 216 trainings; 20 searches for budgets, 50 over cost weights."""
    return Plan(
        fbnetv2.digits_space(), fbnetv2.DIGITS_TRAINING, fbnetv2.DIGITS_SEARCH, fbnetv2.DIGITS_BUDGETS, fbnetv2.DIGITS_CANDIDATES,
        (("add", fbnetv2.DIGITS_COST_WEIGHTS["add"]), ("mul", fbnetv2.DIGITS_COST_WEIGHTS["mul"])),
    )  # fmt: skip


def quick_plan() -> Plan:
    """Every step of it, on 8 members, for an epoch or two: shows that everything works, and decides nothing."""
    full = full_plan()
    network = restrict(full.network, {"block0.width": (4,), "block1.width": (4, 16), "block2.width": (8,)})
    return replace(
        full, network=network, training=replace(full.training, epochs=1), search=replace(full.search, epochs=2, warmup_epochs=1, logit_passes=1),
        budgets=(20_000, 40_000), candidates=4, sweep=(("add", (0.0, 1.0)), ("mul", (0.0, 2.4))), masks=(2, 8), branches=(2,), rounds=2,
        search_seeds=(0, 1), minutes="about a minute",
    )  # fmt: skip


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    """Everything that the claims are made from, as JSON."""
    space, cost = space_of(plan.network), count_macs(plan.network)
    members = list(space.enumerate())
    most = cost.maximum()[0]
    trainings = {
        (number, seed): Job(f"training {number} {seed}", train_member, (plan, number, seed))
        for number in range(len(members))
        for seed in plan.training_seeds
    }
    searches = {
        (budget, seed): Job(f"search {budget} {seed}", run_search, (plan, plan.search, budget, seed))
        for budget in plan.budgets
        for seed in plan.search_seeds
    }
    sweep = {
        (kind, weight, seed): Job(f"sweep {kind} {weight} {seed}", run_search, (plan, weighted(plan.search, kind, weight), most, seed))
        for kind, weights in plan.sweep for weight in weights for seed in plan.search_seeds
    }  # fmt: skip
    with Workers(workers) as pool:
        trained = pool.run(list(trainings.values()), folder, progress, f"training {len(members)} networks")
        found = pool.run(list(searches.values()), folder, progress, f"{len(searches)} searches")
        swept = pool.run(list(sweep.values()), folder, progress, f"{len(sweep)} cost weights")
    with Workers(1) as here:  # timed, so with nothing beside it
        other = here.run([
            Job("masks", masks_cost, (plan.masks, plan.branches, plan.rounds)), Job("mask place", mask_place), Job("counts", published_counts),
        ], folder, progress, "masks and counts")  # fmt: skip
    return {
        "networks": [{"choices": arch.to_json()["choices"], "macs": cost(arch)} for arch in members],
        "trainings": [[trained[trainings[number, seed].name] for seed in plan.training_seeds] for number in range(len(members))],
        "searches": [{"budget": budget, "seed": seed, **found[job.name]} for (budget, seed), job in searches.items()],
        "sweep": [{"objective": kind, "weight": weight, "seed": seed, **swept[job.name]} for (kind, weight, seed), job in sweep.items()],
        **other,
    }


# --- jobs: functions of their arguments alone --------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def task() -> ImageClassification:
    """The digits, the same split for all trainings and searches."""
    return ImageClassification(digits())


def train_member(plan: Plan, number: int, seed: int) -> dict[str, Any]:
    """Validation and test metrics of member `number` of the space, trained from scratch on the train part; CPU seconds of the training."""
    arch = list(space_of(plan.network).enumerate())[number]
    began = time.process_time()
    module: nn.Module = build(plan.network, arch, seed=derive_seed(seed, "member weights"))
    try:
        module = train(module, task(), plan.training, task().part("train"), seed=derive_seed(seed, "member"))
    except TrainingDiverged as error:  # a failure counts as the worst value, and is not left out
        worst = {"accuracy": 0.0, "loss": 1e6}
        return {"validation": worst, "test": worst, "seconds": time.process_time() - began, "note": str(error)}
    seconds = time.process_time() - began
    parts: tuple[Literal["validation", "test"], ...] = ("validation", "test")
    figures = {part: evaluate(module, task(), task().part(part)) for part in parts}
    return {**{part: {key: figures[part][key] for key in ("accuracy", "loss")} for part in parts}, "seconds": seconds}


def weighted(search: DMasking, kind: Literal["add", "mul"], weight: float) -> DMasking:
    """`search` with a published form of the objective at a cost weight; the product's weight is the exponent of its cost."""
    return replace(search, objective="add", cost_weight=weight) if kind == "add" else replace(search, objective="mul", beta=weight)


def run_search(plan: Plan, method: DMasking, budget: int, seed: int) -> dict[str, Any]:
    """What a search for networks of at most `budget` multiply-adds learned, and the members that are derived from it.

    derived: "mode", ours: the most likely member within the budget; "options", the published one: the most likely option of each decision;
    "judged", ours: the best of several drawn within the budget, by validation with shared weights.
    """
    space, cost = space_of(plan.network), count_macs(plan.network)
    inside = within(space, (Limit(cost, budget),))
    began = time.process_time()
    search = DMaskingSearch(plan.network, task(), [inside], method, seed=seed)
    while not search.finished:
        search.run()
    seconds = time.process_time() - began
    with torch.no_grad():
        mean = float(expected(cost, {name: p.double() for name, p in search.distributions[0].probabilities().items()}))
    probabilities = search.distributions[0].arrays()
    mode = inside.mode(probabilities)
    drawn = inside.sample_many(4 * plan.candidates, np.random.default_rng(derive_seed(seed, "candidates")), probabilities)
    candidates = list(dict.fromkeys([mode, *(inside.from_indices(row.tolist()) for row in drawn)]))[: plan.candidates]
    began = time.process_time()
    judge = SharedWeights(search.net, task(), calibration_batches=CALIBRATION_BATCHES, seed=seed)
    judged = {arch: judge(arch) for arch in candidates}
    best = max(candidates, key=lambda arch: (judged[arch]["accuracy"], -judged[arch]["loss"]))
    derived = {"mode": mode, "options": fbnetv2.most_likely_options(space, probabilities), "judged": best}
    numbers = {arch: number for number, arch in enumerate(space.enumerate())}
    return {
        "probabilities": {name: p.tolist() for name, p in probabilities.items()},
        "expected_macs": mean,
        "derived": {name: numbers[arch] for name, arch in derived.items()},
        "candidates": len(candidates),
        "seconds": seconds,
        "judging_seconds": time.process_time() - began,
    }


def published_counts() -> dict[str, Any]:
    """Weights and multiply-adds of the ten published networks by the authors' rule, counted here and published."""
    rows = {}
    for name, published in zoo.PUBLISHED_COUNTS.items():
        network = zoo.network(name)
        rows[name] = {
            "counted": [count(network, "fbnet").minimum()[0] for count in (count_params, count_macs)],
            "published": list(published),
        }
    return rows


def mask_place() -> dict[str, float]:
    """Norm of the gradient that reaches the logits of a width through a mask after BatchNorm and activation, and through one before them.

    "leak": before, with BatchNorm's usual epsilon, by which it does not quite divide by the standard deviation; it is next to 0 elsewhere.
    """
    generator = torch.Generator().manual_seed(0)
    widths = torch.tensor([4, 8, 12, 16])
    keep = (torch.arange(16) < widths[:, None]).float()  # (O, C)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first, last = nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.Conv2d(16, 10, 1)
    x, targets = torch.randn(64, 8, 8, 8, generator=generator), torch.randint(10, (64,), generator=generator)
    norms = {}
    for place, eps in (("after", 1e-12), ("before", 1e-12), ("leak", 1e-5)):
        norm = nn.BatchNorm2d(16, eps=eps)
        logits = torch.zeros(4, requires_grad=True)
        mask = (torch.softmax(logits, 0) @ keep).view(1, -1, 1, 1)
        y = F.relu(norm(first(x))) * mask if place == "after" else F.relu(norm(first(x) * mask))
        F.cross_entropy(last(y).mean((2, 3)), targets).backward()
        assert logits.grad is not None
        norms[place] = float(logits.grad.norm())
    return norms


def masks_cost(options: tuple[int, ...], branches: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Time and bytes saved for backward (parameters left out) of one training step of a supernet, over those of its plain largest member.

    By number of options: of every width and expansion under "masks", of every block as branches under "branches". Timed in turns, on one
    thread: the median over rounds of the ratio within a round.
    """
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    labels = torch.arange(32) % 10
    largest = _options_network(1, branches=False)
    plain = build(largest, space_of(largest).architecture({})).train()
    modules: dict[tuple[str, int], nn.Module] = {("plain", 1): plain}
    steps: dict[tuple[str, int], Callable[[], Tensor]] = {("plain", 1): partial(_loss, plain, images, labels)}
    for kind, counts in (("masks", options), ("branches", branches)):
        for count in counts:
            network = _options_network(count, branches=kind == "branches")
            net = modules[kind, count] = supernet(network).train()
            weights = {d.name: torch.softmax(torch.linspace(-1, 1, len(d.options)), 0).requires_grad_() for d in space_of(network)}
            steps[kind, count] = partial(_loss, partial(net, decisions=weights), images, labels)
    saved = {name: saved_bytes(step, modules[name]) for name, step in steps.items()}
    seconds: dict[tuple[str, int], list[float]] = {name: [] for name in steps}
    for number in range(-1, rounds):
        for name in [*steps][number % len(steps) :] + [*steps][: number % len(steps)]:  # another one first in every round
            began = time.process_time()
            steps[name]().backward()
            if number >= 0:
                seconds[name].append(time.process_time() - began)
    reference = np.array(seconds["plain", 1])
    found: dict[str, Any] = {"masks": {}, "branches": {}}
    for (kind, count), taken in seconds.items():
        if kind != "plain":
            found[kind][str(count)] = {
                "time": float(np.median(np.array(taken) / reference)),
                "bytes": saved[kind, count] / saved["plain", 1],
            }
    return found


def _options_network(count: int, *, branches: bool) -> Network:
    """Three inverted residuals for 32 x 32 images, with `count` options each, evenly spaced up to the same largest; of one, it is no choice."""
    body = []
    for at, (most, stride) in enumerate(((32, 1), (64, 2), (64, 1))):
        widths = [max(1, most * (i + 1) // count) for i in range(count)]
        expansions = [1 + 3 * (i + 1) / count for i in range(count)]
        if count == 1:
            body.append(mbconv(most, expand=4, stride=stride, residual=False, name=f"block{at}"))
        elif branches:
            pairs = zip(widths, expansions, strict=True)
            several = (
                mbconv(width, expand=expand, stride=stride, residual=False, name=f"option{i}") for i, (width, expand) in enumerate(pairs)
            )
            body.append(OneOf(*several, name=f"block{at}"))
        else:
            width, expand = Choice(tuple(widths), f"/width{at}"), Choice(tuple(expansions), f"/expand{at}")
            body.append(mbconv(width, expand=expand, stride=stride, residual=False, name=f"block{at}"))
    return Network(Chain(conv_bn_act(32, stride=2, name="stem"), *body, classifier(10)), (3, 32, 32))


def _loss(forward: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(forward(images), labels)


EXPERIMENT = Experiment(
    ("dmaskingnas", "dmasking", "fbnetv2"), lambda quick: quick_plan() if quick else full_plan(), measure, section_of, section="dmasking"
)
