"""Shrinking a network that its owner trained: accuracy at 50 % and 25 % of its multiply-adds after the same 5 epochs of fine-tuning.

    python benchmarks/shrink.py [--data FOLDER] [--workers N] [--device cuda] [--sets fashion,cifar] [--methods morphnet,...] [--quick]

A residual network on 12,000 images of Fashion-MNIST and an inverted-residual one on 10,000 of CIFAR-10, written as plain PyTorch, trained for
10 epochs. From those weights on: MorphNet, FiGS, DMaskingNAS on the adopted widths, BigNAS sub-networks (not retrained), Torch-Pruning's
magnitude pruning, uniform width scaling. Every training that is finished is kept in benchmarks/work/; started again, the benchmark goes on.

`--subset FOLDER` writes the images that are used, and no others, where they can be carried from. Torch-Pruning is no dependency of niwaki: `pip install --no-deps --target benchmarks/work/torch-pruning torch-pruning` puts it where it is looked for.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors.torch
import torch
from harness import HERE, Claim, Result, Table, arguments, machine, on_one_thread, report
from jobs import Job, run_jobs, work_folder
from torch import Tensor, nn

from niwaki.adoption import adopt
from niwaki.adoption.adopted import read
from niwaki.cost.count import count_macs
from niwaki.gradient.adopted import resource_of, scales_of
from niwaki.gradient.expand import Bound, best_first
from niwaki.gradient.figs import SMALL
from niwaki.gradient.landing import Landing, cut, judged_by_training, landings, pressed, uniform
from niwaki.gradient.morphnet import SHORT, Scales
from niwaki.run.statistics import bootstrap
from niwaki.run.train_once import train_once
from niwaki.run.widths import lasting, search_widths
from niwaki.task.classify import ImageClassification
from niwaki.task.cut import stratified_cut
from niwaki.task.embedded import digits
from niwaki.task.images import Images, arrays, npz
from niwaki.task.task import derive_seed
from niwaki.train.distill import Teacher, teacher_of
from niwaki.train.loop import evaluate, train
from niwaki.train.recipe import Recipe

SET_SEED = 0  # of the images that are taken: one set, whatever the seed of a run
SHARES = (0.5, 0.25)
SETS = {"fashion": "fashion_mnist", "cifar": "cifar10"}
OURS = ("morphnet", "figs")
METHODS = ("uniform", "torch-pruning", "morphnet", "figs", "dmasking", "bignas")
LANDINGS = 4  # at most, of one epoch of a smaller network each
NARROWEST = 3 / 8  # of the owner's widths, of BigNAS's members: about 15 % of the multiply-adds, as its own space goes down to a tenth
TORCH_PRUNING = HERE / "work" / "torch-pruning"


@dataclass(frozen=True)
class Plan:
    """owner, tune, search: epochs of the owner's training, of the fine-tuning, and of pressure before it; searching: of DMaskingNAS, with steps on
    weights and on logits; supernet: of BigNAS, in which each step trains four members; evaluations: of its selection."""

    images: tuple[tuple[str, int], ...]
    owner: int = 10
    tune: int = 5
    search: int = 3
    searching: int = 5
    supernet: int = 8
    evaluations: int = 60
    seeds: int = 3

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


PLANS = {
    "full": Plan((("fashion", 12_000), ("cifar", 10_000))),
    "quick": Plan((("fashion", 300), ("cifar", 300)), owner=1, tune=1, search=1, searching=1, supernet=2, evaluations=3, seeds=1),
}
OWNER = Recipe(epochs=10, lr=0.1, weight_decay=5e-4, label_smoothing=0.0)
TUNE = Recipe(epochs=5, lr=0.03, weight_decay=5e-4, label_smoothing=0.0)


# --- the owners' networks -------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential()
        if stride > 1 or into != out:
            self.shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride=stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


class Residual(nn.Module):
    """Three stages of two blocks; 3.1 M multiply-adds on 28 x 28 grey images."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU())
        self.blocks = nn.Sequential(
            Block(12, 12, 1), Block(12, 12, 1), Block(12, 24, 2), Block(24, 24, 1), Block(24, 48, 2), Block(48, 48, 1)
        )
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Inverted(nn.Module):
    """An inverted residual block of MobileNetV2: expand, depthwise, project; a shortcut where the shape stays."""

    def __init__(self, into: int, out: int, stride: int, expand: int) -> None:
        super().__init__()
        inner = expand * into
        self.conv = nn.Sequential(
            nn.Conv2d(into, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False), nn.BatchNorm2d(inner), nn.ReLU6(),
            nn.Conv2d(inner, out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.same = stride == 1 and into == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.same else self.conv(x)


class InvertedResidual(nn.Module):
    """MobileNetV2 for 32 x 32 colour images, of 3.2 M multiply-adds."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        rows = ((16, 16, 1), (16, 24, 2), (24, 24, 1), (24, 40, 2), (40, 40, 1), (40, 64, 1))
        self.blocks = nn.Sequential(*(Inverted(into, out, stride, 4) for into, out, stride in rows))
        self.last = nn.Sequential(nn.Conv2d(64, 160, 1, bias=False), nn.BatchNorm2d(160), nn.ReLU6())
        self.head = nn.Linear(160, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.blocks(self.stem(x))).mean((2, 3)))


NETWORKS: Mapping[str, Callable[[int], nn.Module]] = {"fashion": Residual, "cifar": InvertedResidual}


# --- data and jobs ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """Where a benchmark works, and on what. data: the folder with fashion_mnist and cifar10, or "digits"."""

    plan: Plan
    data: str
    work: str
    device: str = "cpu"


@dataclass(frozen=True)
class Contestant:
    """One job: everything that a method does for one data set and seed."""

    set: str
    seed: int
    method: str  # "owner", or one of METHODS

    @property
    def key(self) -> str:
        return f"{self.set}-{self.seed}-{self.method}"


def data_folder(given: str | None) -> Path:
    shared = os.environ.get("NIWAKI_SHARED")
    looked = [Path(given)] if given else [Path(shared) / "data"] if shared else [HERE.parent.parent / "shared" / "data"]
    for folder in looked:
        if all((folder / name / "train.npz").is_file() for name in ("fashion_mnist", "cifar10")):
            return folder
    raise SystemExit(f"no fashion_mnist/ and cifar10/ with train.npz in {', '.join(map(str, looked))}; give their folder with --data")


@lru_cache(maxsize=2)
def images_of(data: str, name: str, count: int) -> Images:
    """`count` of the training images, every class as often as in the set, and all test images."""
    full = digits() if data == "digits" else npz(f"{data}/{SETS[name]}")
    if count >= len(full.labels):
        return full
    _, kept = stratified_cut(full.labels, count / len(full.labels), np.random.default_rng(derive_seed(SET_SEED, "shrink")))
    source = f"{len(kept):,} images of {full.source}"
    return arrays(full.images[kept], full.labels[kept], full.test_images, full.test_labels, class_names=full.class_names, source=source)


def write_subset(plan: Plan, data: str, folder: Path) -> None:
    """The chosen images of each set, and its test images, in the form and under the names of the whole sets."""
    for name, count in plan.images:
        images, home = images_of(data, name, count), folder / SETS[name]
        home.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(home / "train.npz", images=images.images, labels=images.labels.astype(np.uint8))
        np.savez_compressed(home / "test.npz", images=images.test_images, labels=images.test_labels.astype(np.uint8))


@lru_cache(maxsize=2)
def task_of(site: Site, name: str, seed: int) -> ImageClassification:
    return ImageClassification(images_of(site.data, name, dict(site.plan.images)[name]), seed=seed)


def fresh(name: str, task: ImageClassification, seed: int) -> nn.Module:
    torch.manual_seed(derive_seed(seed, "owner"))
    return NETWORKS[name](task.input_shape[0])


def weights_file(site: Site, job: Contestant) -> Path:
    return Path(site.work) / "owners" / f"{job.set}-{job.seed}.safetensors"


def run_job(site: Site, job: Contestant) -> dict[str, Any]:
    """What `job` comes to. owner_job is done before its methods."""
    if site.device == "mixed":
        site = replace(site, device="cpu" if derive_seed(job.key) % 3 == 0 else "cuda")
    task = task_of(site, job.set, job.seed)
    began = time.perf_counter()
    if job.method == "owner":
        found = owner_job(site, job, task)
    else:
        module = fresh(job.set, task, job.seed)
        module.load_state_dict(safetensors.torch.load_file(weights_file(site, job)))
        found = RUNNERS[job.method](site, job, task, module.eval())
    return {**asdict(job), **found, "device": site.device, "seconds": time.perf_counter() - began}


def owner_job(site: Site, job: Contestant, task: ImageClassification) -> dict[str, Any]:
    module = fresh(job.set, task, job.seed)
    recipe = replace(OWNER, epochs=site.plan.owner)
    trained = train(module, task, recipe, task.part("train"), seed=derive_seed(job.seed, "owner order"), device=site.device).cpu()
    file = weights_file(site, job)
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in trained.state_dict().items()}, file)
    adopted = read(trained, example_of(task))
    macs = resource_of(adopted, "macs").cost(adopted.whole)
    return {"points": {"1": point(site, trained, task, macs, macs)}, "epochs": 0}


def example_of(task: ImageClassification) -> Tensor:
    return task.batch(task.part("train")[:2], torch.device("cpu"))[0]


def point(site: Site, module: nn.Module, task: ImageClassification, macs: float, whole: float) -> dict[str, float]:
    parts = {part: evaluate(module, task, task.part(part), device=site.device)["accuracy"] for part in ("validation", "test")}
    return {**parts, "macs": macs, "share": macs / whole}


def tuned(site: Site, job: Contestant, task: ImageClassification, module: nn.Module, teacher: Teacher | None = None) -> nn.Module:
    """The same fine-tuning for every method."""
    recipe = replace(TUNE, epochs=site.plan.tune)
    return train(module, task, recipe, task.part("train"), seed=derive_seed(job.seed, "tune"), device=site.device, teacher=teacher)


def macs_of(module: nn.Module, task: ImageClassification) -> float:
    """Counted anew, on the module as it is, by hooks: the same count for every method."""
    total = 0

    def count(layer: Any, _: Any, output: Tensor) -> None:
        nonlocal total
        positions = output[0, 0].numel() if isinstance(layer, nn.Conv2d) else 1
        total += positions * layer.weight.numel()

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        module.eval()(example_of(task)[:1])
    for hook in hooks:
        hook.remove()
    return total


# --- methods ------------------------------------------------------------------------------------------------------------------------------


def by_pressure(site: Site, job: Contestant, task: ImageClassification, module: nn.Module) -> dict[str, Any]:
    """MorphNet or FiGS as `niwaki shrink` does it: pressure, the best of its landings by validation after an epoch each, fine-tuning with the owner as teacher."""
    method = {"morphnet": replace(SHORT, epochs=site.plan.search), "figs": replace(SMALL, epochs=site.plan.search)}[job.method]
    teacher, points = teacher_of(module), {}
    for share in SHARES:
        adopted = read(module, example_of(task))
        macs, units = resource_of(adopted, "macs"), adopted.whole
        bounds = [Bound(macs, int(share * macs.cost(units)))]
        shrinking = pressed(
            adopted, task, method, bounds, task.part("train"), teacher=teacher, seed=derive_seed(job.seed, "shrink"), device=site.device
        )
        while not shrinking.finished:
            shrinking.run()
        found = landings(adopted, shrinking, bounds)
        seeds = (derive_seed(job.seed, "refresh"), derive_seed(job.seed, "judge"))
        judged = {
            one.name: judged_by_training(one, task, TUNE, epochs=1, seeds=seeds, teacher=teacher, device=site.device) for one in found
        }
        landing = max(found, key=lambda one: judged[one.name])
        small = tuned(site, job, task, cut(landing), teacher)
        points[str(share)] = {
            **point(site, small, task, macs.cost(landing.counts), macs.cost(units)), "landing": landing.name, "judged": judged, "alive": shrinking.history[-1].share,
            "strength": shrinking.strength[0], "counts": landing.counts,
        }  # fmt: skip
    return {"points": points, "epochs": site.plan.search + LANDINGS + site.plan.tune}


def by_dmasking(site: Site, job: Contestant, task: ImageClassification, module: nn.Module) -> dict[str, Any]:
    """DMaskingNAS on the widths of the adopted model, in eighths, one search for each budget, fine-tuned from the weights that it ended with."""
    network, weights = adopt(module, example_of(task))
    points, method = {}, lasting(site.plan.searching)
    for share in SHARES:
        seed = derive_seed(job.seed, "dmasking")
        found = search_widths(network, weights, task, f"macs<={100 * share:g}%", method=method, seed=seed, device=site.device)
        small = tuned(site, job, task, found.module)
        points[str(share)] = {**point(site, small, task, found.costs["macs"], found.whole["macs"]), "counts": dict(found.architecture)}
    return {"points": points, "epochs": method.epochs + site.plan.tune}


def by_bignas(site: Site, job: Contestant, task: ImageClassification, module: nn.Module) -> dict[str, Any]:
    """One supernet for both budgets, from the owner's weights; its members are taken as they are."""
    network, weights = adopt(module, example_of(task), narrowest=NARROWEST)
    trained = train_once(
        network, task, epochs=site.plan.supernet, weights=weights, budgets=[f"macs<={100 * share:g}%" for share in SHARES],
        seed=derive_seed(job.seed, "bignas"), device=site.device,
    )  # fmt: skip
    macs, points = count_macs(network), {}
    for share in SHARES:
        arch, small = trained.best(f"macs<={100 * share:g}%", evaluations=site.plan.evaluations)
        points[str(share)] = {**point(site, small, task, macs(arch), macs.maximum()[0]), "counts": dict(arch)}
    return {"points": points, "epochs": site.plan.supernet}


def by_uniform(site: Site, job: Contestant, task: ImageClassification, module: nn.Module) -> dict[str, Any]:
    """Every width times one number; of each group the units with the largest batch norm scales, so that the owner's weights are kept here, too."""
    points = {}
    for share in SHARES:
        adopted = read(module, example_of(task))
        macs, units = resource_of(adopted, "macs"), adopted.whole
        counts = uniform(adopted, [Bound(macs, int(share * macs.cost(units)))])
        order, _ = best_first(Scales(adopted.module, scales_of(adopted)).margins())
        landing = Landing("uniform", {group: tuple(sorted(order[group][:count])) for group, count in counts.items()}, adopted)
        small = tuned(site, job, task, cut(landing))
        points[str(share)] = {**point(site, small, task, macs.cost(counts), macs.cost(units)), "counts": counts}
    return {"points": points, "epochs": site.plan.tune}


def by_torch_pruning(site: Site, job: Contestant, task: ImageClassification, module: nn.Module) -> dict[str, Any]:
    """Torch-Pruning's group magnitude importance, one ranking over all layers; its ratio bisected until the multiply-adds are within the budget."""
    pruning = torch_pruning()
    whole, points = macs_of(module, task), {}
    for share in SHARES:
        low, high, best = 0.0, 1.0, None
        for _ in range(12):
            ratio = (low + high) / 2
            pruned = pruned_at(pruning, module, task, ratio)
            macs = macs_of(pruned, task)
            if macs <= share * whole:
                high, best = ratio, (pruned, macs)
            else:
                low = ratio
        assert best is not None
        points[str(share)] = point(site, tuned(site, job, task, best[0].train()), task, best[1], whole)
    return {"points": points, "epochs": site.plan.tune}


def pruned_at(pruning: Any, module: nn.Module, task: ImageClassification, ratio: float) -> nn.Module:
    copy = fresh("fashion" if isinstance(module, Residual) else "cifar", task, 0)
    copy.load_state_dict(module.state_dict())
    pruner = pruning.pruner.MagnitudePruner(
        copy.eval(), example_of(task), importance=pruning.importance.GroupMagnitudeImportance(p=2), global_pruning=True, pruning_ratio=ratio,
        max_pruning_ratio=0.95, ignored_layers=[copy.head],
    )  # fmt: skip
    pruner.step()
    return copy


def torch_pruning() -> Any:
    if importlib.util.find_spec("torch_pruning") is None and TORCH_PRUNING.is_dir():
        sys.path.append(str(TORCH_PRUNING))
    if importlib.util.find_spec("torch_pruning") is None:
        raise RuntimeError(
            f"Torch-Pruning is not there: pip install --no-deps --target {TORCH_PRUNING.relative_to(HERE.parent)} torch-pruning"
        )
    return importlib.import_module("torch_pruning")


RUNNERS: dict[str, Callable[[Site, Contestant, ImageClassification, nn.Module], dict[str, Any]]] = {
    "uniform": by_uniform,
    "torch-pruning": by_torch_pruning,
    "morphnet": by_pressure,
    "figs": by_pressure,
    "dmasking": by_dmasking,
    "bignas": by_bignas,
}


# --- what it comes to -----------------------------------------------------------------------------------------------------------------------


def summary(plan: Plan, results: Sequence[dict[str, Any]], methods: Sequence[str], seed: int, wall_s: float, workers: int) -> Result:
    by = {(one["set"], one["seed"], one["method"]): one for one in results}
    sets, seeds = list(dict.fromkeys(one["set"] for one in results)), range(plan.seeds)

    def test(name: str, method: str, share: float) -> list[float]:
        return [100 * by[name, at, method]["points"][str(share)]["test"] for at in seeds]

    claims = []
    for name in sets:
        for share in SHARES:
            for rival in [one for one in ("torch-pruning", "uniform") if one in methods]:
                ours = {method: mean(test(name, method, share)) for method in OURS if method in methods}
                if not ours:
                    continue
                best = max(ours, key=lambda method: ours[method])
                pairs = zip(test(name, best, share), test(name, rival, share), strict=True)
                difference = bootstrap([a - b for a, b in pairs], seed=seed)
                measured = f"{best}: {difference.mean:+.2f} points ({difference.low:+.2f} to {difference.high:+.2f})"
                claims.append(
                    Claim(f"{name} at {share:.0%}: the better of MorphNet and FiGS minus {rival}", "> 0", measured, difference.mean > 0)
                )
    worst = min(
        (point["share"] / float(share) for one in results if one["method"] in OURS for share, point in one["points"].items()), default=1.0
    )
    claims.append(
        Claim(
            "MorphNet and FiGS use at least 98 % of the budget, and never more than it",
            ">= 98 %",
            f"{worst:.1%} at least",
            0.98 <= worst <= 1,
        )
    )
    claims.append(Claim(f"wall time of the benchmark, {workers} at a time", "<= 90 minutes", f"{wall_s / 60:.0f} minutes", wall_s <= 5400))
    rows = []
    for name in sets:
        owner = mean(100 * by[name, at, "owner"]["points"]["1"]["test"] for at in seeds)
        rows.append((name, "the owner's", f"{owner:.2f} %", "", "", f"{plan.owner}"))
        for method in methods:
            cells = [
                f"{mean(values):.2f} % ({min(values):.2f}-{max(values):.2f})" for share in SHARES for values in [test(name, method, share)]
            ]
            share = ", ".join(f"{mean(by[name, at, method]['points'][str(one)]['share'] for at in seeds):.1%}" for one in SHARES)
            epochs = by[name, 0, method]["epochs"]
            rows.append((name, method, *cells, share, f"{epochs} ({mean(by[name, at, method]['seconds'] for at in seeds):.0f} s)"))
    notes = (
        f"Owners are trained for {plan.owner} epochs on {', '.join(f'{count:,} images of {name}' for name, count in plan.images)}, a fifth of "
        f"them kept for validation; {plan.seeds} seeds. Test accuracy, measured once per network, mean and range over seeds.",
        f"All begin from the owner's weights, and are fine-tuned for {plan.tune} epochs by the same recipe (BigNAS: not at all; its members have at least {NARROWEST:g} of each width). Epochs: for one budget, "
        f"pressure, search and the choice between landings (up to {LANDINGS} epochs) included, and in brackets the seconds of both budgets together. MorphNet and FiGS have {plan.search} epochs of "
        "pressure before; in those and in the fine-tuning they learn from the owner's network, too (distillation), which the baselines do not.",
        "Torch-Pruning: GroupMagnitudeImportance, global, its ratio bisected until the network is within the budget, for a ratio of 0.5 leaves far less "
        "than half of the multiply-adds. Uniform scaling keeps the units with the largest batch norm scales.",
    )
    return Result(
        "shrink", "16. Shrinking an owner's network", "python benchmarks/shrink.py", tuple(claims),
        tables=(Table("Test accuracy after fine-tuning", ("set", "method", "at 50 %", "at 25 %", "multiply-adds", "epochs"), tuple(rows)),), notes=notes,
        figures={"plan": plan.to_json(), "results": list(results)},
    )  # fmt: skip


def jobs_of(site: Site, sets: Sequence[str], methods: Sequence[str], owners: bool) -> Iterator[Job]:
    """The owners' trainings; or those of the methods, what the claims are about first, and of that the longest first."""
    order = ["owner"] if owners else sorted(methods, key=("morphnet", "figs", "torch-pruning", "uniform", *METHODS).index)
    for method in order:
        for seed in range(site.plan.seeds):
            for name in sets:
                one = Contestant(name, seed, method)
                yield Job(one.key, run_job, (site, one))


def main() -> None:
    on_one_thread()

    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", help="folder with fashion_mnist/ and cifar10/")
        parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
        parser.add_argument("--device", default="cpu", help="cpu, cuda, or mixed: of three jobs two on the GPU")
        parser.add_argument("--work", help="folder in which finished jobs are kept (default: benchmarks/work/shrink)")
        parser.add_argument(
            "--subset", metavar="FOLDER", help="write the images that are used there, for --data elsewhere, and do nothing else"
        )
        parser.add_argument("--sets", default="fashion,cifar")
        parser.add_argument("--methods", default=",".join(RUNNERS), help=f"of {', '.join(METHODS)}")

    options = arguments(__doc__ or "", more)
    plan = PLANS["quick" if options.quick else "full"]
    about = machine(threads=1, seed=options.seed, device=None if options.device == "cpu" else torch.cuda.get_device_name())
    data = "digits" if options.quick else str(data_folder(options.data).resolve())
    if options.subset:
        write_subset(plan, data, Path(options.subset))
        return
    sets, methods = options.sets.split(","), options.methods.split(",")
    if unknown := [one for one in methods if one not in RUNNERS]:
        raise SystemExit(f"there is no method {unknown[0]!r}; there are {', '.join(RUNNERS)}")
    with TemporaryDirectory() as scratch:
        work = Path(scratch) if options.quick else Path(options.work).resolve() if options.work else HERE / "work" / "shrink"
        with closing(work_folder(work, plan.to_json())) as folder:
            site = Site(plan, data, str(work), options.device)
            owners = run_jobs(list(jobs_of(site, sets, methods, True)), folder, options.workers)
            results = run_jobs(list(jobs_of(site, sets, methods, False)), folder, options.workers)
            wall_s = folder.elapsed()
        report(
            summary(plan, [*owners.values(), *results.values()], methods, options.seed, wall_s, options.workers), about, quick=options.quick
        )


if __name__ == "__main__":
    import shrink  # workers know functions by the name of their module, which a script has not

    shrink.main()
