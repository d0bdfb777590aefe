"""Structured multi-hashing's claims: against plain hashing on the digits, against narrower networks on Fashion-MNIST, and what a step costs."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.deploy.multi_hash import compress, sizes
from niwaki.deploy.weight_pool import Hash, Kronecker, Pool, SumProduct
from niwaki.run.claims import Claim, Section, Table
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.images import digits_of_seed, fashion_mnist
from niwaki.run.experiments.verdicts import above, at_least, claim, not_testable, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import Interval, bootstrap
from niwaki.run.workers import Job, Workers
from niwaki.task.augment import Augment
from niwaki.task.classify import ImageClassification
from niwaki.task.images import arrays
from niwaki.train.loop import evaluate, train
from niwaki.train.recipe import Recipe

POOLS: dict[str, Pool] = {"structured": SumProduct(), "hash": Hash(), "kronecker": Kronecker()}
HIDDEN = 256  # of the perceptron: 84,480 weights
WIDTHS = (16, 32, 64)  # of the residual network
QUARTER, TENTH = 0.25, 0.1
BATCH = 64  # of the timed step
DIGITS = Recipe(epochs=40, optimizer="adamw", lr=2e-3, weight_decay=1e-4, label_smoothing=0.0)
FASHION = Recipe(epochs=8, optimizer="adamw", lr=1e-2, weight_decay=1e-4, label_smoothing=0.0)
MANY = 10  # hashes of the timed baseline, as in the paper's table


@dataclass(frozen=True)
class Plan:
    """seeds: of the digits, each with a test part of its own; fashion_seeds: of Fashion-MNIST; timings: of each network's step, in turns."""

    seeds: int = 8
    fractions: tuple[float, ...] = (0.25, 0.05, 0.02)
    digits: Recipe = DIGITS
    fashion_seeds: int = 5
    fashion_images: int = 10_000
    fashion: Recipe = FASHION
    timings: int = 30
    minutes: str = "about 5 minutes on two idle cores"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "minutes"}


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    jobs = [Job("steps", steps, (plan,))]  # first, before the cores are warm with two trainings
    jobs += [Job(f"fashion {seed}", on_fashion, (plan, seed)) for seed in range(plan.fashion_seeds)]
    jobs += [Job(f"digits {seed}", on_digits, (plan, seed)) for seed in range(plan.seeds)]
    with Workers(workers) as pool:
        return {"jobs": pool.run(jobs, folder, progress, f"{plan.seeds} seeds of the digits, {plan.fashion_seeds} of Fashion-MNIST")}


# --- what is trained -------------------------------------------------------------------------------------------------------------


def on_digits(plan: Plan, seed: int) -> dict[str, Any]:
    """Test accuracy of a perceptron: dense, and of each pool at each fraction of its weights. One test part, order and start for all."""
    task = ImageClassification(digits_of_seed(seed), augment=Augment())
    accuracy = {"dense": _trained(perceptron(seed), task, plan.digits, seed)}
    for fraction in plan.fractions:
        for name, pool in POOLS.items():
            hashed = compress(perceptron(seed), fraction=fraction, pool=pool, seed=seed)
            accuracy[f"{name} {fraction}"] = _trained(hashed, task, plan.digits, seed)
    return {"accuracy": accuracy}


def on_fashion(plan: Plan, seed: int) -> dict[str, Any]:
    """Test accuracy and stored parameters of a residual network: hashed to a tenth, and as narrow as stores as much."""
    task = ImageClassification(arrays(*fashion_mnist(plan.fashion_images, seed), source="Fashion-MNIST"), augment=Augment())
    hashed = compress(residual_network(1.0, seed), fraction=TENTH, seed=seed)
    narrow = residual_network(width_for(sizes(hashed).stored), seed)
    found = {}
    for name, module in (("structured", hashed), ("narrow", narrow)):
        stored = sum(parameter.numel() for parameter in module.parameters())
        found[name] = {"stored": stored, "accuracy": _trained(module, task, plan.fashion, seed)}
    return found


def steps(plan: Plan) -> dict[str, Any]:
    """CPU seconds of a training step of the residual network, batch 64: the least of each network's, measured in turns."""
    x, y = torch.randn(BATCH, 1, 28, 28, generator=torch.Generator().manual_seed(0)), torch.arange(BATCH) % 10
    networks: dict[str, nn.Module] = {
        "dense": residual_network(1.0, 0),
        "structured": compress(residual_network(1.0, 0), fraction=QUARTER),
        "hash": compress(residual_network(1.0, 0), fraction=QUARTER, pool=Hash()),
        "hashes": compress(residual_network(1.0, 0), fraction=QUARTER, pool=Hash(hashes=MANY)),
    }
    optimizers = {name: torch.optim.AdamW(module.parameters(), fused=True) for name, module in networks.items()}
    taken: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(plan.timings + 3):
        for name, module in networks.items():
            began = time.process_time()
            optimizers[name].zero_grad(set_to_none=True)
            F.cross_entropy(module(x), y).backward()
            optimizers[name].step()
            if turn >= 3:  # the first ones allocate
                taken[name].append(time.process_time() - began)
    return {"least_s": {name: min(values) for name, values in taken.items()}, "all_s": taken}


def _trained(module: nn.Module, task: ImageClassification, recipe: Recipe, seed: int) -> float:
    """Test accuracy in per cent."""
    trained = train(module, task, recipe, task.part("train+validation"), seed=seed)
    return 100 * evaluate(trained, task, task.part("test"))["accuracy"]


# --- networks --------------------------------------------------------------------------------------------------------------------


def perceptron(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 10)
    )  # fmt: skip


class _Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(after), nn.BatchNorm2d(after)])
        self.shortcut = nn.Identity() if before == after and stride == 1 else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(h + self.shortcut(x))


def residual_network(width: float, seed: int) -> nn.Module:
    """Three blocks of 16, 32 and 64 channels times `width`, on maps of 14, 7 and 4 pixels."""
    torch.manual_seed(seed)
    first, second, third = (max(1, round(width * channels)) for channels in WIDTHS)
    return nn.Sequential(
        nn.Conv2d(1, first, 3, 2, 1, bias=False), nn.BatchNorm2d(first), nn.ReLU(), _Block(first, first, 1), _Block(first, second, 2),
        _Block(second, third, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(third, 10),
    )  # fmt: skip


def width_for(params: int) -> float:
    """The largest multiplier, in hundredths, with which the residual network stores at most `params`."""

    def stored(hundredths: int) -> int:
        return sum(parameter.numel() for parameter in residual_network(hundredths / 100, 0).parameters())

    return max(hundredths for hundredths in range(1, 101) if stored(hundredths) <= params) / 100


# --- the section -----------------------------------------------------------------------------------------------------------------


def section_of(results: dict[str, Any]) -> Section:
    jobs, plan = results["jobs"], results["plan"]
    digits = [jobs[f"digits {seed}"]["accuracy"] for seed in range(plan["seeds"])]
    fashion = [jobs[f"fashion {seed}"] for seed in range(plan["fashion_seeds"])]
    claims = (
        *_digits(digits),
        _narrow(fashion),
        *_steps(jobs["steps"]["least_s"]),
        not_testable("EfficientNet-B4 in 5.0 M parameters: 79.2 % on ImageNet, where B0 (5.3 M) has 76.3 %", "Table 1", "ImageNet"),
    )
    title = "Structured multi-hashing (Eban et al., 2020)"
    about = (
        f"Digits: a perceptron 64-{HIDDEN}-{HIDDEN}-10 with 84,480 weights, {plan['digits']['epochs']} epochs, {plan['seeds']} seeds, each with a "
        "fifth of the images of its own as the test part; biases are stored as they are. Plain hashing is one hash function for all layers, without "
        "signs, its layers scaled as the structured ones are. Nothing is searched, so no random search stands beside it: the baseline is plain "
        "hashing, or a narrower network, with as many stored parameters.",
        f"Fashion-MNIST: {plan['fashion_images']:,} training images, the 10,000 test images, {plan['fashion']['epochs']} epochs of a residual network "
        f"of {'-'.join(map(str, WIDTHS))} channels with {fashion[0]['structured']['stored']:,} parameters stored, against the network of narrower "
        f"layers with {fashion[0]['narrow']['stored']:,}. Hashing keeps the multiply-adds of the wide network; only what is stored is equal. "
        "Intervals of 95 % are bootstrapped over seeds.",
    )
    return section("multihashing", title, results, about, claims, (_table(digits, plan["fractions"]),))


def _apart(rows: list[dict[str, float]], first: str, second: str) -> Interval:
    """The paired difference over the seeds."""
    return bootstrap([row[first] - row[second] for row in rows])


def _digits(rows: list[dict[str, float]]) -> tuple[Claim, ...]:
    found = {name: bootstrap([row[name] for row in rows]) for name in rows[0]}
    loss, quarter = _apart(rows, "structured 0.25", "dense"), _apart(rows, "structured 0.25", "hash 0.25")
    twentieth = _apart(rows, "structured 0.05", "hash 0.05")
    return (
        claim(
            "Digits, a quarter of the weights stored: at most 1.5 points below the dense network, the whole interval",
            "ResNet-32 on CIFAR-10: 25 % of the variables without loss",
            f"{found['structured 0.25'].text()} %, dense {found['dense'].text()} %; difference {loss.text(sign=True)} points",
            "not applicable",
            at_least(loss, -1.5),
        ),
        claim(
            "and at least 0.7 points above plain hashing of as many variables, the whole interval",
            "EfficientNet-B2 in 5.3 M: 77.4 %, one hash 76.2 %",
            f"{quarter.text(sign=True)} points",
            f"plain hashing {found['hash 0.25'].text()} %",
            at_least(quarter, 0.7),
        ),
        claim(
            "Digits, a twentieth stored: above plain hashing, the whole interval above 0",
            "the same",
            f"{found['structured 0.05'].text()} %; {twentieth.text(sign=True)} points",
            f"plain hashing {found['hash 0.05'].text()} %",
            above(twentieth),
        ),
    )


def _narrow(rows: list[dict[str, Any]]) -> Claim:
    wide, narrow = (bootstrap([row[name]["accuracy"] for row in rows]) for name in ("structured", "narrow"))
    apart = bootstrap([row["structured"]["accuracy"] - row["narrow"]["accuracy"] for row in rows])
    return claim(
        "Fashion-MNIST, a tenth stored: at least 1 point above a narrower network with as many parameters, the whole interval",
        "ResNet-50 and -101: half the size of width-multiplier models at 70 % accuracy",
        f"{wide.text()} %; {apart.text(sign=True)} points",
        f"narrower network {narrow.text()} %",
        at_least(apart, 1.0),
    )


def _steps(least: dict[str, float]) -> tuple[Claim, ...]:
    more = {name: value / least["dense"] - 1 for name, value in least.items()}
    once = f"dense {1000 * least['dense']:.1f} ms of CPU time, the least of many steps, in turns; one machine, without an interval"
    return (
        claim(
            f"A training step at batch {BATCH} with a quarter stored takes less than 30 % more CPU time than the dense network's",
            "6,060 images/s, as fast as the dense network [Table 3]",
            f"{100 * more['structured']:+.1f} %; {once}",
            "not applicable",
            more["structured"] < 0.3,
        ),
        claim(
            f"and {MANY} plain hashes of as many variables take more than that",
            "760 to 790 images/s",
            f"{100 * more['hashes']:+.1f} %",
            f"one plain hash {100 * more['hash']:+.1f} %",
            more["hashes"] > more["structured"],
        ),
    )


def _table(rows: list[dict[str, float]], fractions: list[float]) -> Table:
    lines = [
        (f"{100 * fraction:g} %", *(bootstrap([row[f"{name} {fraction}"] for row in rows]).text() for name in POOLS))
        for fraction in fractions
    ]
    return Table(
        "Digits: test accuracy by what is stored of the weights", ("stored", "structured", "plain hash", "Kronecker pool"), tuple(lines)
    )


def _plan(quick: bool) -> Plan:
    if not quick:
        return Plan()
    short = Recipe(epochs=1, optimizer="adamw", lr=2e-3)
    return Plan(1, (0.25, 0.05), short, 1, 300, short, 2, "seconds")


EXPERIMENT = Experiment(("multihashing", "multi-hashing", "smh"), _plan, measure, section_of)
