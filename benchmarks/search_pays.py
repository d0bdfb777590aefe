"""The search pays: DMaskingNAS's network against random members of the same family and budget, trained the same way.

    python benchmarks/search_pays.py [--data FOLDER] [--workers N] [--preset cpu|gpu] [--quick]

For each seed: `niwaki.search` with its defaults, 16 architectures drawn uniformly from those at most 10 % below the budget, and a uniformly
scaled MobileNetV2; all trained on the same images by the same recipe, weights and order from the same seed. Where the search delivers one of
the regular networks among its finalists, the best of those that DMaskingNAS itself found is trained, too, and stands beside it. The random
networks are judged by the finalists' short training as well: the best of them by that is what random search would deliver. Every finished
training is kept in benchmarks/work/; started again, the benchmark goes on.
"""

from __future__ import annotations

import argparse
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import HERE, Claim, Result, Table, arguments, machine, on_one_thread, report
from jobs import Job, run_jobs, work_folder
from torch import nn

import niwaki
from niwaki.cost.count import count_macs
from niwaki.evaluate.scratch import Scratch
from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Network
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.run.choose import preferred
from niwaki.run.config import load_config
from niwaki.run.folder import Folder
from niwaki.run.plan import search_of
from niwaki.run.search import Search
from niwaki.run.statistics import bootstrap, spearman
from niwaki.space.architecture import Architecture
from niwaki.space.space import Space
from niwaki.task.classify import ImageClassification
from niwaki.task.cut import stratified_cut
from niwaki.task.embedded import digits
from niwaki.task.images import Images, arrays, npz
from niwaki.task.task import derive_seed
from niwaki.train.loop import evaluate, train
from niwaki.trial import Trial
from niwaki.zoo.mobile import mobile

NEAR = 0.9  # random networks have more than this part of the budget
SET_SEED = 0  # of the images that are taken from the full set: one set, whatever the seed of a run


@dataclass(frozen=True)
class Plan:
    """images: of the training set that are used, class by class. train_epochs: of the final training of every network. search_epochs,
    candidates: of the search; None for niwaki's own choice. rivals: random networks for each seed.
    """

    images: int
    budget: int
    train_epochs: int
    search_epochs: int | None = None
    candidates: int | None = None
    rivals: int = 16
    seeds: int = 3
    device: str = "cpu"


PLANS = {
    "cpu": Plan(images=12_000, budget=500_000, train_epochs=10),
    "gpu": Plan(images=60_000, budget=500_000, train_epochs=60, search_epochs=90, device="cuda"),
    "quick": Plan(images=300, budget=200_000, train_epochs=1, search_epochs=1, candidates=2, rivals=2, seeds=1),
}


@dataclass(frozen=True)
class Site:
    """Where a benchmark works, and on what."""

    plan: Plan
    data: str  # a folder, or "digits"
    work: str


@dataclass(frozen=True)
class Contestant:
    """One thing to train. kind: "search", "random", "mobilenetv2"; number: of the random network."""

    kind: str
    seed: int
    number: int = 0

    @property
    def key(self) -> str:
        return f"{self.kind}-{self.seed}" + (f"-{self.number}" if self.kind == "random" else "")


def jobs_of(site: Site) -> Iterator[Job]:
    """All that is to be done, the longest first."""
    for kind, count in (("search", 1), ("mobilenetv2", 1), ("random", site.plan.rivals)):
        for one in (Contestant(kind, seed, number) for seed in range(site.plan.seeds) for number in range(count)):
            yield Job(one.key, run_job, (site, one))


# --- data and networks ---------------------------------------------------------------------------------------------------------------


def data_folder(given: str | None) -> Path:
    """The folder with train.npz and test.npz of Fashion-MNIST."""
    shared = os.environ.get("NIWAKI_SHARED")
    roots = [Path(shared)] if shared else [HERE.parent.parent / "shared"]
    looked = [Path(given)] if given else [root / "data" / "fashion_mnist" for root in roots]
    for folder in looked:
        if (folder / "train.npz").is_file() and (folder / "test.npz").is_file():
            return folder
    raise SystemExit(
        f"no Fashion-MNIST (train.npz and test.npz, each with the arrays images and labels) in {', '.join(map(str, looked))}; "
        f"give its folder with --data, or the folder above data/fashion_mnist as NIWAKI_SHARED"
    )


@lru_cache(maxsize=1)
def images_of(data: str, count: int) -> Images:
    """`count` of the training images, every class as often as in the full set, and all test images."""
    full = digits() if data == "digits" else npz(data)
    if count >= len(full.labels):
        return full
    _, kept = stratified_cut(full.labels, count / len(full.labels), np.random.default_rng(derive_seed(SET_SEED, "search pays")))
    source = f"{len(kept):,} images of {full.source}"
    return arrays(full.images[kept], full.labels[kept], full.test_images, full.test_labels, class_names=full.class_names, source=source)


@lru_cache(maxsize=4)
def task_of(data: str, count: int, seed: int) -> ImageClassification:
    return ImageClassification(images_of(data, count), seed=seed)


@lru_cache(maxsize=4)
def space_for(input_shape: tuple[int, int, int], classes: int) -> Network:
    return mobile(input_shape[1], input_shape[0], classes)


def mobilenetv2(multiplier: float, input_shape: tuple[int, int, int], classes: int) -> Network:
    """The first four stages of MobileNetV2 (Sandler et al. 2018, table 2), every width times `multiplier`, for images of about 28 pixels.

    All seven, scaled to half a million multiply-adds, would be four channels wide; the last stride, which would leave a map of 2 x 2, is 1.
    Widths are even numbers, for steps of eight would be coarse here.
    """

    def width(channels: int) -> int:
        return max(2, 2 * round(channels * multiplier / 2))

    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 1))
    blocks = [(t, c, s if at == 0 else 1) for t, c, n, s in rows for at in range(n)]
    return Network(
        Chain(
            conv_bn_act(width(32), 3, stride=2, activation="relu6", name="stem"),
            *(mbconv(width(c), 3, expand=t, stride=s, activation="relu6", name=f"block{at}") for at, (t, c, s) in enumerate(blocks)),
            classifier(classes),
        ),
        input_shape,
    )


@lru_cache(maxsize=4)
def scaled_mobilenetv2(budget: int, input_shape: tuple[int, int, int], classes: int) -> Network:
    """The largest uniformly scaled MobileNetV2 within the budget."""
    fitting = bisect_right(range(1, 400), budget, key=lambda percent: macs_of(mobilenetv2(percent / 100, input_shape, classes)))
    if not fitting:
        raise ValueError(f"no uniformly scaled MobileNetV2 for {input_shape} has at most {budget:,} multiply-adds")
    return mobilenetv2(fitting / 100, input_shape, classes)


def macs_of(plain: Network) -> int:
    return count_macs(plain)(space_of(plain).architecture({}))


@lru_cache(maxsize=8)
def random_members(network: Network, budget: int, count: int, seed: int) -> list[Architecture]:
    """Different architectures, uniformly drawn from those within the budget and at most 10 % below it."""
    space, macs = space_of(network), count_macs(network)
    allowed, rng = within(space, [Limit(macs, budget)]), np.random.default_rng(derive_seed(seed, "random members"))
    found: dict[Architecture, None] = {}
    while len(found) < count:
        rows = allowed.sample_many(64, rng)
        near = rows[macs.batch(rows) > NEAR * budget]
        found.update((space.from_indices(row.tolist()), None) for row in near)
    return list(found)[:count]


# --- one job ----------------------------------------------------------------------------------------------------------------------------


def settings(plan: Plan) -> dict[str, Any]:
    """What is told to `niwaki.search` beside data, budget and seed; the rest, the network with it, is its own defaults."""
    told: dict[str, Any] = {"train.epochs": plan.train_epochs, "threads": 1, "device": plan.device}
    if plan.search_epochs is not None:
        told |= {"search.epochs": plan.search_epochs, **({"search.warmup_epochs": 0} if plan.search_epochs == 1 else {})}
    if plan.candidates is not None:
        told |= {"search.candidates": plan.candidates, "search.finalists": plan.candidates}
    return told


def run_job(site: Site, job: Contestant) -> dict[str, Any]:
    """What `job` comes to."""
    task = task_of(site.data, site.plan.images, job.seed)
    return (searched(site, job, task) if job.kind == "search" else trained(site.plan, job, task)) | asdict(job)


def searched(site: Site, job: Contestant, task: ImageClassification) -> dict[str, Any]:
    """What `niwaki.search` comes to on the family that it takes by itself. search_s: learning and judging, without the final training and
    the exports; like train_s over all processes that worked on it, should it have been interrupted."""
    out = Path(site.work) / f"run-{job.seed}"
    result = niwaki.search(task=task, budget=f"macs<={site.plan.budget}", seed=job.seed, out=out, settings=settings(site.plan))
    folder = Folder(out, read_only=True)
    try:
        phases = folder.store.fact("seconds", {})
        trials = folder.store.trials("budget 0", Space.from_json(folder.plan["space"]))
        choice = folder.store.fact("result choice 0")
    finally:
        folder.close()
    delivered = {
        "accuracy": result.metrics["accuracy"]["test"], "macs": result.metrics["macs"], "params": result.metrics["params"],
        "architecture": dict(result.architecture), "source": choice["source"],
    }  # fmt: skip
    own_figures = delivered
    if choice["own"] != choice["chosen"]:
        network = planned(site.plan, job.seed, task).network
        own = Architecture.from_json(choice["own"]["arch"], space_of(network))
        own_figures = trained_as_delivered(site.plan, job.seed, task, build(network, own, seed=derive_seed(job.seed, "final weights")))
        own_figures |= {"macs": count_macs(network)(own), "architecture": dict(own)}
    search_s = phases["search"] + sum(trial.seconds for trial in trials)
    return delivered | {"own": own_figures, "search_s": search_s, "train_s": phases["training"]}


def trained(plan: Plan, job: Contestant, task: ImageClassification) -> dict[str, Any]:
    """A network of this job, trained."""
    network = space_for(task.input_shape, task.outputs)
    weights_seed = derive_seed(job.seed, "final weights")
    if job.kind == "random":
        arch = random_members(network, plan.budget, plan.rivals, job.seed)[job.number]
        macs, module, chosen = count_macs(network)(arch), build(network, arch, seed=weights_seed), dict(arch)
        began = time.perf_counter()
        short = Scratch(network, task, planned(plan, job.seed, task).proxy, seed=job.seed, device=plan.device)(arch)
        judged = {"short": short, "short_s": time.perf_counter() - began}
    else:
        plain = scaled_mobilenetv2(plan.budget, task.input_shape, task.outputs)
        macs, module, chosen, judged = macs_of(plain), build(plain, seed=weights_seed), {}, {}
    return trained_as_delivered(plan, job.seed, task, module) | {"macs": macs, "architecture": chosen} | judged


def trained_as_delivered(plan: Plan, seed: int, task: ImageClassification, module: nn.Module) -> dict[str, Any]:
    """`module` trained as `niwaki.search` trains the network that it chose: same recipe, same images, same seeds."""
    recipe = planned(plan, seed, task).recipe
    began = time.perf_counter()
    model = train(module, task, recipe, task.part("train+validation"), seed=derive_seed(seed, "final"), device=plan.device)
    spent = time.perf_counter() - began
    params = sum(parameter.numel() for parameter in model.parameters())
    return {"accuracy": evaluate(model, task, task.part("test"), device=plan.device)["accuracy"], "params": params, "train_s": spent}


def planned(plan: Plan, seed: int, task: ImageClassification) -> Search:
    """What `niwaki.search` decides on for such data."""
    config = load_config(None, (), {"budget": [f"macs<={plan.budget}"], "seed": seed, **settings(plan)})
    return search_of(config, task)[1]


# --- what it comes to ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """One seed: test accuracies in percent."""

    seed: int
    found: float
    own: float  # of the best that DMaskingNAS itself found
    rivals: tuple[float, ...]
    picked: float  # of the rivals, by their short training
    scaled: float

    @property
    def rank(self) -> int:
        """The place of the network found among itself and the random ones, from 1; of equals, the worst."""
        return 1 + sum(rival >= self.found for rival in self.rivals)


def comparisons(plan: Plan, results: Sequence[dict[str, Any]]) -> list[Comparison]:
    def percent(kind: str, seed: int) -> list[float]:
        return [100 * found["accuracy"] for found in results if found["kind"] == kind and found["seed"] == seed]

    own = {found["seed"]: 100 * found["own"]["accuracy"] for found in results if found["kind"] == "search"}

    def picked(seed: int) -> float:
        rivals = [found for found in results if found["kind"] == "random" and found["seed"] == seed]
        judged = [Trial(number, Architecture("", found["architecture"]), found["short"]) for number, found in enumerate(rivals)]
        examples = round(plan.images * ImageClassification.validation)
        return 100 * rivals[preferred(judged, metric="accuracy", examples=examples)[0].number]["accuracy"]  # as the search picks its own

    return [
        Comparison(s, percent("search", s)[0], own[s], tuple(percent("random", s)), picked(s), percent("mobilenetv2", s)[0])
        for s in range(plan.seeds)
    ]


def summary(plan: Plan, results: Sequence[dict[str, Any]], seed: int, wall_s: float, workers: int) -> Result:
    compared = comparisons(plan, results)

    def paired(of: Callable[[Comparison], float], found: Callable[[Comparison], float] = attrgetter("found")) -> tuple[str, bool]:
        difference = bootstrap([found(one) - of(one) for one in compared], seed=seed)
        return f"{difference.mean:+.2f} points ({difference.low:+.2f} to {difference.high:+.2f})", difference.mean > 0

    pays = all(one.found > median(one.rivals) for one in compared)
    own_pays = all(one.own > median(one.rivals) for one in compared)
    searches = [found for found in results if found["kind"] == "search"]
    one_training = mean(found["train_s"] for found in results if found["kind"] != "search")
    search_s = mean(found["search_s"] for found in searches)
    short_s = sum(found.get("short_s", 0.0) for found in results) / plan.seeds
    ranks = ", ".join(str(one.rank) for one in compared)
    claims = (
        Claim("pays: above the median of the random networks in every seed", "yes", "yes" if pays else "no", pays),
        Claim(f"rank among {plan.rivals + 1}, by seed", "", ranks),
        Claim("minus the median of the random networks", "> 0", *paired(lambda one: median(one.rivals))),
        Claim("minus the mean of the random networks", "> 0", *paired(lambda one: mean(one.rivals))),
        Claim(f"minus random search: of the {plan.rivals}, the best by a short training", "> 0", *paired(attrgetter("picked"))),
        Claim(f"minus the best of the {plan.rivals} (the aim: 0)", "", paired(lambda one: max(one.rivals))[0]),
        Claim("minus the uniformly scaled MobileNetV2", "> 0", *paired(lambda one: one.scaled)),
        Claim(
            "DMaskingNAS's own best, without regular networks: above the median in every seed", "yes", "yes" if own_pays else "no", own_pays
        ),
        Claim("its own best minus the median of the random networks", "> 0", *paired(lambda one: median(one.rivals), attrgetter("own"))),
        Claim("its own best minus random search", "> 0", *paired(attrgetter("picked"), attrgetter("own"))),
        Claim(f"wall time of the benchmark, {workers} at a time", "<= 60 minutes", f"{wall_s / 60:.0f} minutes", wall_s <= 3600),
        Claim("rank correlation of short and full training, of the random networks by seed", "", _correlations(plan, results)),
        Claim("work: random search / the search", "", f"{short_s / search_s:.2f} ({short_s:.0f} s / {search_s:.0f} s)"),
        Claim("work: search / training one network", "", f"{search_s / one_training:.1f} ({search_s:.0f} s / {one_training:.0f} s)"),
    )
    columns = (
        "seed",
        "delivered",
        "DMaskingNAS's own",
        "random: worst",
        "median",
        "best",
        "picked by random search",
        "MobileNetV2, scaled",
        "rank",
    )

    def row(one: Comparison) -> tuple[str, ...]:
        accuracies = (one.found, one.own, min(one.rivals), median(one.rivals), max(one.rivals), one.picked, one.scaled)
        return str(one.seed), *(f"{value:.2f} %" for value in accuracies), f"{one.rank} of {plan.rivals + 1}"

    macs = {kind: mean(found["macs"] for found in results if found["kind"] == kind) for kind in ("search", "random", "mobilenetv2")}
    notes = (
        f"{plan.images:,} training images, {plan.train_epochs} epochs of final training for every network, at most {plan.budget:,} "
        f"multiply-adds; mean MACs: delivered {macs['search']:,.0f}, random {macs['random']:,.0f}, MobileNetV2 {macs['mobilenetv2']:,.0f}.",
        "Test accuracy, measured once per network. Intervals: 95 % bootstrap over the seeds; of three seeds, about the range of the three.",
        f"{sum(found['train_s'] + found.get('search_s', 0) + found.get('short_s', 0) for found in results) / 60:.0f} minutes of searching and training in all.",
    )
    gpu = plan.device != "cpu"
    return Result(
        "search_pays-gpu" if gpu else "search_pays", f"3. The search pays{' (full scale)' if gpu else ''}",
        f"python benchmarks/search_pays.py{' --preset gpu' if gpu else ''}", claims,
        tables=(Table("Test accuracy", columns, tuple(map(row, compared))),), notes=notes,
        figures={"plan": asdict(plan), "results": list(results)},
    )  # fmt: skip


def _correlations(plan: Plan, results: Sequence[dict[str, Any]]) -> str:
    """Spearman, of validation accuracy after the one and test accuracy after the other."""
    found = []
    for seed in range(plan.seeds):
        rivals = [one for one in results if one["kind"] == "random" and one["seed"] == seed]
        found.append(spearman([one["short"]["accuracy"] for one in rivals], [one["accuracy"] for one in rivals]))
    return ", ".join("–" if one is None else f"{one:.2f}" for one in found)


def main() -> None:
    on_one_thread()

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", help="folder with train.npz and test.npz")
        parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
        parser.add_argument("--preset", choices=("cpu", "gpu"), default="cpu", help="gpu: full scale, on CUDA")

    options = arguments(__doc__ or "", more)
    plan = PLANS["quick" if options.quick else options.preset]
    about = machine(threads=1, seed=options.seed, device=None if plan.device == "cpu" else torch.cuda.get_device_name())
    data = "digits" if options.quick else str(data_folder(options.data).resolve())
    with TemporaryDirectory() as scratch:
        work = Path(scratch) if options.quick else HERE / "work" / f"search_pays-{options.preset}"
        with closing(work_folder(work, asdict(plan))) as folder:
            results = run_jobs(list(jobs_of(Site(plan, data, str(work)))), folder, options.workers)
            wall_s = folder.elapsed()
        report(summary(plan, [*results.values()], options.seed, wall_s, options.workers), about, quick=options.quick)


if __name__ == "__main__":
    import search_pays  # workers know functions by the name of their module, which a script has not

    search_pays.main()
