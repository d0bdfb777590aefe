"""Train once: members straight from a supernet against the same networks trained alone, at five sizes; what it takes; and what a slice costs.

    python benchmarks/bignas.py [--data FOLDER] [--workers N] [--device cpu|cuda] [--method bignas|alphanet|attentivenas|ofa] [--quick]

The space is `bignas-small` (5,832 members), the data 3,000 images of Fashion-MNIST without augmentation, 30 epochs (1,410 steps) of batches of
64 for the supernet and for each network alone: the same optimizer, decay and label smoothing, alone with a cosine from 0.1 to zero in place of 0.3 and
the constant ending. A member is evaluated with BatchNorm statistics of its own; nothing is trained after the supernet. Every training, one
for each seed and size, is kept in benchmarks/work/; started again, the benchmark goes on.

The slice: a training step of the supernet under hard decisions (forward, loss, backward) against the same step of the plain sub-network with the
same weights, in turns. Beside it the same with SGD's update, and with decisions that are new in each step, which have to be planned first.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import HERE, Claim, Result, Table, arguments, in_turns, machine, on_one_thread, paired_ratio, report, say
from jobs import Job, run_jobs, work_folder
from search_pays import data_folder
from torch.nn import functional as F

from niwaki.cost.count import count_macs
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.gradient.train_once import TrainOnceSearch
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.nn.supernet import Supernet, extract, supernet
from niwaki.recipe import bignas as recipe
from niwaki.run.statistics import Interval, bootstrap
from niwaki.space.architecture import Architecture
from niwaki.strategy.coarse_to_fine import skeletons_of
from niwaki.task.augment import Augment
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.task.images import arrays, npz
from niwaki.task.task import derive_seed
from niwaki.train.loop import evaluate, train
from niwaki.train.recipe import Recipe
from niwaki.zoo.bignas import bignas_small

BEHIND = 1.5  # points that a member may be behind the network trained alone
SLICE = 1.1  # times the plain sub-network's step
BATCHES = (16, 64)


@dataclass(frozen=True)
class Plan:
    """sizes: of the five members, shares of the way from the smallest to the largest number of multiply-adds. rounds: of the timing."""

    seeds: int = 3
    images: int = 3_000
    validation: int = 1_000
    epochs: int = 30
    lr: float = recipe.LR
    alone_lr: float = 0.1
    weight_decay: float = 1e-4
    sizes: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    rounds: int = 24


QUICK = Plan(seeds=2, images=300, validation=100, epochs=1, rounds=2)


@dataclass(frozen=True)
class Site:
    plan: Plan
    data: str  # a folder, or "digits"
    device: str
    method: str


@lru_cache(maxsize=1)
def task_of(data: str, plan: Plan) -> ImageClassification:
    full = digits() if data == "digits" else npz(data)
    there = plan.images + plan.validation
    images = arrays(
        full.images[:there], full.labels[:there], full.test_images, full.test_labels, source=f"{there:,} images of {full.source}"
    )
    return ImageClassification(images, validation=plan.validation / there, augment=Augment())


def network_of(task: ImageClassification) -> Network:
    return bignas_small(task.input_shape)


@lru_cache(maxsize=4)
def members_of(network: Network, sizes: tuple[float, ...]) -> tuple[Architecture, ...]:
    """The smallest and the biggest member, and between them the one that is alike in all its stages and uses such a budget best."""
    cost = count_macs(network)
    (least, smallest), (most, biggest) = cost.minimum(), cost.maximum()
    between = {0.0: smallest, 1.0: biggest}
    return tuple(
        between[share]
        if share in between
        else skeletons_of(within(space_of(network), [Limit(cost, int(least + share * (most - least)))]))[0]
        for share in sizes
    )


# --- jobs ------------------------------------------------------------------------------------------------------------------------


def train_supernet(site: Site, seed: int) -> dict[str, Any]:
    """Accuracy of each member on the test part, in points; steps, CPU and wall seconds of the training."""
    plan, task = site.plan, task_of(site.data, site.plan)
    network = network_of(task)
    method = recipe.small(site.method, epochs=plan.epochs, lr=plan.lr, weight_decay=plan.weight_decay)
    learner = TrainOnceSearch(network, task, [], method, seed=seed, device=site.device)
    seconds = spent(lambda: run_to_its_end(learner))
    judge = SharedWeights(learner.net, task, seed=seed)
    members = [points(judge.module(arch), task, site.device) for arch in members_of(network, plan.sizes)]
    return {"members": members, "steps": learner.step, **seconds}


def run_to_its_end(learner: TrainOnceSearch) -> None:
    while not learner.finished:
        learner.run()


def train_alone(site: Site, size: int, seed: int) -> dict[str, Any]:
    plan, task = site.plan, task_of(site.data, site.plan)
    network = network_of(task)
    module = build(network, members_of(network, plan.sizes)[size], seed=derive_seed(seed, "alone weights"))
    how = Recipe(epochs=plan.epochs, batch_size=64, lr=plan.alone_lr, weight_decay=plan.weight_decay)
    trained: list[Any] = []
    seconds = spent(
        lambda: trained.append(train(module, task, how, task.part("train"), seed=derive_seed(seed, "alone"), device=site.device))
    )
    return {"accuracy": points(trained[0], task, site.device), **seconds}


def spent(work: Callable[[], Any]) -> dict[str, float]:
    """CPU and wall seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall}


def points(module: Any, task: ImageClassification, device: str) -> float:
    return 100 * evaluate(module, task, task.part("test"), device=device)["accuracy"]


# --- slices ----------------------------------------------------------------------------------------------------------------------


def slices(plan: Plan, network: Network, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """For each batch and size: step of the slice / step of the plain sub-network, round by round; then with SGD; then with new decisions."""
    rows = []
    for batch in BATCHES:
        for share, arch in zip(plan.sizes, members_of(network, plan.sizes), strict=True):
            net = supernet(network).train()
            plain = extract(net, arch)
            generator = torch.Generator().manual_seed(0)
            x = torch.randn(batch, *network.input_shape, generator=generator).to(memory_format=torch.channels_last)
            y = torch.randint(0, 10, (batch,), generator=generator)
            one, updated = {}, {}
            for name, module, run in (("plain", plain, plain), ("slice", net, partial(net, decisions=arch))):
                one[name] = partial(step, module, run, x, y, None)
                updated[name] = partial(step, module, run, x, y, torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9, fused=True))
            one["new"] = partial(step, net, planned_anew(net, arch), x, y, None)
            seconds = in_turns(one, rounds=plan.rounds)
            with_sgd = in_turns(updated, rounds=plan.rounds)
            found = {
                "batch": batch, "share": share, "macs": count_macs(network)(arch), "plain_ms": 1e3 * float(np.median(seconds["plain"])),
                "slice": asdict(paired_ratio(seconds, "slice", "plain")), "new": asdict(paired_ratio(seconds, "new", "plain")),
                "sgd": asdict(paired_ratio(with_sgd, "slice", "plain")),
            }  # fmt: skip
            say(f"batch {batch}, {found['macs']:,} multiply-adds: slice {found['slice']['median']:.3f}x of {found['plain_ms']:.1f} ms")
            rows.append(found)
    return rows


def step(module: torch.nn.Module, run: Callable[[Any], Any], x: torch.Tensor, y: torch.Tensor, optimizer: Any) -> None:
    for parameter in module.parameters():
        parameter.grad = None
    F.cross_entropy(run(x), y).backward()
    if optimizer is not None:
        optimizer.step()


def planned_anew(net: Supernet, arch: Architecture) -> Callable[[Any], Any]:
    """As `net`, of which no plan is known: what a member costs in the one step in which it is drawn."""

    def run(x: torch.Tensor) -> Any:
        net._plan.cache_clear()
        return net(x, arch)

    return run


# --- what it comes to ----------------------------------------------------------------------------------------------------------------


def summary(
    plan: Plan,
    method: str,
    source: str,
    network: Network,
    found: Mapping[str, Any],
    timed: Sequence[Mapping[str, Any]],
    command: str,
    device: str,
) -> Result:
    seeds, sizes, cost = range(plan.seeds), range(len(plan.sizes)), count_macs(network)
    once = [found[f"supernet {seed}"] for seed in seeds]
    alone = [[found[f"alone {size} {seed}"] for size in sizes] for seed in seeds]
    claims, rows = [], []
    for size, arch in enumerate(members_of(network, plan.sizes)):
        mine, theirs = [one["members"][size] for one in once], [one[size]["accuracy"] for one in alone]
        apart = bootstrap([a - b for a, b in zip(mine, theirs, strict=True)])
        claims.append(
            Claim(
                f"{cost(arch):,} multiply-adds: member of the supernet against the network trained alone",
                f"not more than {BEHIND} points behind, the whole interval",
                f"{apart.text(sign=True)} points",
                apart.low >= -BEHIND,
            )
        )
        rows.append(
            (f"{cost(arch):,}", bootstrap(mine).text(), bootstrap(theirs).text(), apart.text(sign=True), f"{_mean(alone, size):.0f}")
        )
    clock = "cpu_s" if device == "cpu" else "wall_s"
    ratio = bootstrap([one[clock] / sum(each[clock] for each in five) for one, five in zip(once, alone, strict=True)])
    claims.append(Claim("time of the supernet's training / of the five trained alone", "", _text(ratio), None))
    worst = max(timed, key=lambda row: row["slice"]["median"])
    claims.append(
        Claim(
            "slice-mode training step / plain sub-network's, worst of all sizes and batches",
            f"<= {SLICE}x",
            f"{worst['slice']['median']:.3f}x ({worst['slice']['low']:.3f}-{worst['slice']['high']:.3f}), at {worst['macs']:,} and a batch of {worst['batch']}",
            worst["slice"]["median"] <= SLICE,
        )
    )
    steps = tuple(
        (
            f"{row['macs']:,}",
            str(row["batch"]),
            f"{row['plain_ms']:.1f}",
            *(f"{row[key]['median']:.3f}x" for key in ("slice", "sgd", "new")),
        )
        for row in timed
    )
    return Result(
        "bignas" if method == "bignas" else f"bignas-{method}",
        f"17. Train once ({method})" if method != "bignas" else "17. Train once",
        command,
        tuple(claims),
        (
            Table(
                "Test accuracy in %", ("multiply-adds", "from the supernet", "alone", "difference in points", "seconds alone"), tuple(rows)
            ),
            Table(
                "Training step", ("multiply-adds", "batch", "plain, ms", "slice", "slice, with SGD", "slice, decisions that are new"), steps
            ),
        ),
        (
            f"{plan.images:,} images of {source} without augmentation, {plan.epochs} epochs, {once[0]['steps']:,} steps of 64; accuracy on all test images; "
            f"{plan.seeds} seeds, 95 % intervals bootstrapped over them. A step of the supernet trains four members.",
            f"The supernet took {np.mean([one[clock] for one in once]):.0f} seconds, the five alone "
            f"{np.mean([sum(each[clock] for each in five) for five in alone]):.0f} ({'CPU' if clock == 'cpu_s' else 'wall'}). After it any of 5,832 members is "
            "there for no further training.",
        ),
        {"trainings": dict(found), "slices": list(timed)},
    )


def _mean(alone: Sequence[Sequence[Mapping[str, float]]], size: int) -> float:
    return float(np.mean([five[size]["cpu_s"] for five in alone]))


def _text(ratio: Interval) -> str:
    return ratio.text(unit="x")


def main() -> None:
    on_one_thread()

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", help="folder with train.npz and test.npz")
        parser.add_argument("--workers", type=int, default=2, help="processes of one thread each, for the trainings")
        parser.add_argument("--device", default="cpu", help="of the trainings; the slice is timed on the CPU")
        parser.add_argument("--method", default="bignas", choices=sorted(recipe.PUBLISHED))

    options = arguments(__doc__ or "", more)
    plan = QUICK if options.quick else Plan()
    about = machine(threads=1, seed=options.seed, device=None if options.device == "cpu" else torch.cuda.get_device_name())
    data = "digits" if options.quick else str(data_folder(options.data).resolve())
    site = Site(plan, data, options.device, options.method)
    network = network_of(task_of(data, plan))
    command = "python benchmarks/bignas.py" + "".join(
        f" --{key} {value}" for key, value in (("method", options.method), ("device", options.device)) if value not in ("bignas", "cpu")
    )
    with TemporaryDirectory() as scratch:
        work = Path(scratch) if options.quick else HERE / "work" / f"bignas-{options.method}-{options.device.replace(':', '-')}"
        with closing(work_folder(work, asdict(plan))) as folder:
            seeds = range(plan.seeds)
            jobs = [Job(f"supernet {seed}", train_supernet, (site, options.seed + seed)) for seed in seeds]
            jobs += [
                Job(f"alone {size} {seed}", train_alone, (site, size, options.seed + seed))
                for size in reversed(range(len(plan.sizes)))
                for seed in seeds
            ]
            found = run_jobs(jobs, folder, options.workers)
        timed = slices(plan, network, say)  # after the trainings, with nothing beside it
        source = "digits" if options.quick else "Fashion-MNIST"
        report(summary(plan, options.method, source, network, found, timed, command, options.device), about, quick=options.quick)


if __name__ == "__main__":
    import bignas  # workers know functions by the name of their module, which a script has not

    bignas.main()
