"""Neighbourhood distillation's claims (Shao et al., 2020) at the scale of Fashion-MNIST and digits: quality, speed, thresholds, search, noise."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.net.block import classifier, conv_bn_act
from niwaki.net.control import Chain, Network
from niwaki.net.layer import Layer
from niwaki.nn.build import build
from niwaki.objective import parse_budget
from niwaki.recipe.student_library import UNIT, Library, Settings, build_library
from niwaki.recipe.student_search import accuracy, drifted, greedy, knapsack, recalibrated, swapped_losses
from niwaki.recipe.student_training import train_candidate
from niwaki.recipe.students import KEEP, Candidate, described, variants_of
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.images import fashion_mnist
from niwaki.run.experiments.neighbourhood_section import CANDIDATES, FLAT, HALF, LEVELS, SHARES, TEST, section_of
from niwaki.run.folder import Folder, once
from niwaki.run.progress import Progress
from niwaki.run.workers import Job, Pool, Workers
from niwaki.store.checkpoint import pack, unpack
from niwaki.store.files import atomic_write
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.task.images import arrays
from niwaki.task.task import derive_seed
from niwaki.train.batch_norm import recalibrate_batch_norm_
from niwaki.train.distill import softened_divergence, teacher_of
from niwaki.train.loop import epoch_batches, evaluate, predict, train
from niwaki.train.neighbourhood import ADAM, Distilling, Pairs
from niwaki.train.recipe import Recipe, lr_at, optimizer_for

JUDGED, STATISTICS = 1_000, 512  # images that combinations are evaluated on, and that their BatchNorm is recalibrated on
UNIFORM = 0.7  # of all widths: about half the multiply-adds
LENGTHS = (1, 2, 4)  # end-to-end trainings, in epochs, beside those as long as the students'


@dataclass(frozen=True)
class Plan:
    """seeds: of Fashion-MNIST and of noise each. images: of Fashion-MNIST, a fifth of them for validation. noise: inputs drawn for each piece."""

    seeds: int = 3
    images: int = 10_000
    widths: tuple[int, ...] = (16, 32, 48, 64)
    teacher_epochs: int = 12
    student_epochs: int = 6
    noise: int = 4_096
    noise_epochs: int = 6
    judged: int = JUDGED
    minutes: str = "about 6 minutes on two idle cores"

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items() if key != "minutes"}


QUICK = Plan(1, 200, (16, 16, 16, 16), 1, 1, 64, 1, 20, "seconds")


# ---------------------------------------------------------------- networks and data


def block(width: int, stride: int, name: str) -> Chain:
    """Two convolutions, as the teacher's neighbourhoods are."""
    return Chain(conv_bn_act(width, stride=stride, name="c1"), conv_bn_act(width, name="c2"), name=name)


def teacher_network(widths: tuple[int, ...]) -> Network:
    """Four blocks for 28 x 28 images: 14 x 14, 7 x 7, 4 x 4 and again."""
    blocks = [block(width, stride, f"block{at}") for at, (width, stride) in enumerate(zip(widths, (2, 2, 2, 1), strict=True), start=1)]
    return Network(Chain(*blocks, classifier(10)), (1, 28, 28))


def fashion_task(images: int, seed: int) -> ImageClassification:
    x, y, test_x, test_y = fashion_mnist(images, seed)
    return ImageClassification(arrays(x, y, test_x[:TEST], test_y[:TEST], source="Fashion-MNIST"), seed=seed)


def chosen_variants(layer: Layer, shape: tuple[int, ...]) -> list[Candidate]:
    """The five candidates of each block, in one order."""
    known = {one.name: one for one in variants_of(layer, shape)}
    return [known[name] for name in CANDIDATES if name in known]


def end_to_end(epochs: int) -> Recipe:
    return Recipe(epochs=epochs, batch_size=64, lr=0.05, weight_decay=5e-4, label_smoothing=0.0)


# ---------------------------------------------------------------- what is measured


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    work = folder.path / "work"
    jobs = [Job(f"fashion {seed}", fashion, (plan, str(work / f"fashion{seed}"), seed)) for seed in range(plan.seeds)]
    jobs += [Job(f"noise {seed}", noise, (plan, str(work / f"noise{seed}"), seed)) for seed in range(plan.seeds)]
    with Workers(workers) as pool:
        found = pool.run(jobs, folder, progress, f"{plan.seeds} teachers of Fashion-MNIST, their students, and {plan.seeds} without data")
    speed = once(folder, "speed", partial(side_by_side, plan, work / "speed"))
    return {"jobs": found, "speed": speed}


def fashion(plan: Plan, where: str, seed: int) -> dict[str, Any]:
    """A teacher, its library of students, the half-width student beside end-to-end training, every combination, and what is chosen."""
    folder, task = Path(where), fashion_task(plan.images, seed)
    network, part = teacher_network(plan.widths), task.part("train")
    began = time.process_time()
    teacher = kept(folder / "teacher.safetensors", build(network, seed=derive_seed(seed, "teacher")), partial(
        train, task=task, recipe=end_to_end(plan.teacher_epochs), indices=part, seed=seed
    ))  # fmt: skip
    taught_s = time.process_time() - began
    settings = Settings(
        Distilling(replace(ADAM, epochs=plan.student_epochs, batch_size=64, lr=1e-2)), half=True, allowed=FLAT, levels=LEVELS
    )
    places = described(network, teacher, variants=chosen_variants)
    library = build_library(places, task, folder / "library", settings, seed=seed, keep=False)
    half = {one.name: HALF if len(one.candidates) > 1 else KEEP for one in places}
    trained = {key: one for key, one in library.trained.items() if key[1] != KEEP}
    result = {
        "teacher": _tested(teacher, task),
        "teacher_s": taught_s,
        "validation": library.clean,
        "macs": library.of_teacher("macs"),
        "half": _half(plan, library, half, teacher, task, seed),
        "bears": library.bears,
        "curves": library.curves,
        "errors": {f"{name} {candidate}": one.error.relative_mse for (name, candidate), one in trained.items()},
        "seconds": {f"{name} {candidate}": one.seconds for (name, candidate), one in trained.items()},
        **_searched(plan, library, task, seed),
    }
    for boundaries in (folder / "library").glob("boundaries-*"):
        rmtree(boundaries)
    return result


def _half(
    plan: Plan, library: Library, half: Mapping[str, str], teacher: nn.Module, task: ImageClassification, seed: int
) -> dict[str, Any]:
    """The student with half the width in every block: distilled in pieces, and trained end to end for as many epochs; CPU seconds of each."""
    part, own = task.part("train"), [library.trained[name, candidate].seconds for name, candidate in half.items() if candidate != KEEP]
    assembled_accuracy = _tested(library.assemble(half), task)
    again = _tested(recalibrated(library, half), task)
    began = time.process_time()
    drift = _tested(recalibrated(library, half, drifted(library, half)), task)
    drift_s = time.process_time() - began
    network = library.network(half)
    assert network is not None
    arch = library.space.architecture(dict(half))
    ends: dict[str, Any] = {}
    learner = teacher_of(teacher)
    for epochs in sorted({*(n for n in LENGTHS if n < plan.student_epochs), plan.student_epochs}):
        for kind, whom in (("distilled", learner), ("labels", None)):
            if kind == "labels" and epochs != plan.student_epochs:
                continue
            began = time.process_time()
            module = train(build(network, seed=derive_seed(seed, kind)), task, end_to_end(epochs), part, seed=seed, teacher=whom)
            ends[f"{kind} {epochs}"] = {"accuracy": _tested(module, task), "seconds": time.process_time() - began}
    uniform = teacher_network(tuple(max(4, round(width * UNIFORM / 4) * 4) for width in plan.widths))
    began = time.process_time()
    module = train(build(uniform, seed=derive_seed(seed, "uniform")), task, end_to_end(plan.student_epochs), part, seed=seed)
    ends["uniform"] = {"accuracy": _tested(module, task), "seconds": time.process_time() - began}
    began = time.process_time()
    predict(teacher, task, part)
    forward_s = time.process_time() - began
    return {
        "macs": library.costs["macs"](arch),
        "forward_s": forward_s,
        "assembled": assembled_accuracy,
        "recalibrated": again,
        "drift": drift,
        "drift_s": drift_s,
        "seconds": sum(own),
        "longest_s": max(own, default=0.0),
        "ends": ends,
    }


def _searched(plan: Plan, library: Library, task: ImageClassification, seed: int) -> dict[str, Any]:
    """Every combination evaluated, and beside them what is chosen without that: by added errors, by added losses, and greedily."""
    truth = {"assembled": list[float](), "recalibrated": list[float]()}
    order = [library.space.architecture(dict(choice)) for choice, _ in _walk(plan, library, task, truth)]
    cost, error, swaps = library.costs["macs"], library.error, swapped_losses(library)
    macs, errors = [cost(arch) for arch in order], [error(arch) / UNIT for arch in order]
    place = {tuple(arch.items()): at for at, arch in enumerate(order)}
    chosen: dict[str, Any] = {}
    whole = build_library(library.neighbourhoods, task, library.folder, library.settings, seed=library.seed)
    for share in SHARES:
        limits = library.limits(parse_budget(f"macs<={share}"))
        picks = {"errors": knapsack(library, limits), "losses": knapsack(library, limits, by=swaps)}
        chosen[share] = {
            "limit": limits[0].upper,
            **{name: place[tuple(arch.items())] for name, arch in picks.items()},
            "greedy": {"macs": (found := greedy(whole, whole.limits(parse_budget(f"macs<={share}")))) and whole.costs["macs"](found),
                       "accuracy": accuracy(whole, found)},
        }  # fmt: skip
    hold = task.part("validation")[: plan.judged]
    with torch.no_grad():
        clean = float(
            (library.assemble(library.teacher)(task.batch(hold, torch.device("cpu"))[0]).argmax(1) == task.labels(hold)).float().mean()
        )
    return {
        "clean": clean,
        "truth": truth,
        "combinations": {"macs": macs, "errors": errors, "losses": [swaps(arch) / UNIT for arch in order]},
        "chosen": chosen,
    }


@torch.no_grad()
def _walk(plan: Plan, library: Library, task: ImageClassification, truth: dict[str, list[float]]) -> list[tuple[dict[str, str], float]]:
    """Accuracy of all combinations, as put together and with BatchNorm recalibrated; what comes before a piece is computed once for all that
    begin alike, and so are its statistics, which depend on nothing else."""
    hold, part = task.part("validation")[: plan.judged], task.part("train")[:STATISTICS]
    images, _ = task.batch(hold, torch.device("cpu"))
    unlabelled, _ = task.batch(part, torch.device("cpu"))
    labels = task.labels(hold)
    modules = {(one.name, each.name): library.module(one, each.name) for one in library.neighbourhoods for each in library.options(one)}
    found: list[tuple[dict[str, str], float]] = []

    def right(logits: Tensor) -> float:
        return float((logits.argmax(1) == labels).float().mean())

    def walk(at: int, plain: Tensor, ours: Tensor, statistics: Tensor, taken: dict[str, str]) -> None:
        if at == len(library.neighbourhoods):
            truth["assembled"].append(right(plain))
            truth["recalibrated"].append(right(ours))
            found.append((taken, truth["recalibrated"][-1]))
            return
        one = library.neighbourhoods[at]
        for each in library.options(one):
            module = modules[one.name, each.name]
            again = copy.deepcopy(module)
            recalibrate_batch_norm_(again, [statistics])
            walk(at + 1, module(plain), again.eval()(ours), again(statistics), {**taken, one.name: each.name})

    walk(0, images, images, unlabelled, {})
    return found


def noise(plan: Plan, where: str, seed: int) -> dict[str, Any]:
    """Digits: students of single convolutions, from Gaussian inputs alone, and the same network distilled end to end on Gaussian images."""
    folder, task = Path(where), ImageClassification(digits(), seed=seed)
    blocks = [block(width, stride, f"block{at}") for at, (width, stride) in enumerate(((24, 1), (32, 2), (48, 2)), start=1)]
    network = Network(Chain(*blocks, classifier(10)), (1, 8, 8))
    epochs = 20 if plan.noise_epochs > 1 else 1
    teacher = kept(folder / "teacher.safetensors", build(network, seed=derive_seed(seed, "teacher")), partial(
        train, task=task, recipe=Recipe(epochs=epochs, batch_size=32, lr=0.05), indices=task.part("train"), seed=seed
    ))  # fmt: skip
    how = Distilling(replace(ADAM, epochs=plan.noise_epochs, batch_size=32, lr=5e-3))
    places = described(
        network,
        teacher,
        blocks=True,
        variants=lambda layer, shape: [one for one in variants_of(layer, shape, rank=0.5) if one.name == "low-rank-0.5"],
    )
    library = build_library(places, task, folder / "library", Settings(how, noise=plan.noise, inherit=False, levels=(0.1,)), seed=seed)
    arch = {one.name: one.candidates[-1].name for one in places}
    student = library.network(arch)
    assert student is not None
    end = _end_to_end_on_noise(build(student, seed=derive_seed(seed, "student")), teacher, plan, how.recipe, seed)
    rmtree(next((folder / "library").glob("boundaries-*")))
    return {
        "teacher": _tested(teacher, task),
        "pieces": _tested(library.assemble(arch), task),
        "end": _tested(end, task),
        "errors": {name: library.trained[name, candidate].error.relative_mse for name, candidate in arch.items()},
        "macs": [library.of_teacher("macs"), library.costs["macs"](library.space.architecture(arch))],
    }


def _end_to_end_on_noise(student: nn.Module, teacher: nn.Module, plan: Plan, recipe: Recipe, seed: int) -> nn.Module:
    """T^2 KL to the teacher, T = 4, on as many images of N(0, 1), for as many steps; there are no labels."""
    images = torch.randn((plan.noise, 1, 8, 8), generator=torch.Generator().manual_seed(derive_seed(seed, "images")))
    with torch.no_grad():
        taught = teacher.eval()(images)
    optimizer, student = optimizer_for(student, recipe), student.train()
    for epoch in range(recipe.epochs):
        batches = epoch_batches(torch.arange(plan.noise), recipe.batch_size, seed=derive_seed(seed, epoch))
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(epoch * len(batches) + step, len(batches), recipe)
            optimizer.zero_grad(set_to_none=True)
            softened_divergence(student(images[batch]), taught[batch], 4.0).backward()
            optimizer.step()
    return student.eval()


def side_by_side(plan: Plan, folder: Path) -> dict[str, Any]:
    """Wall seconds of the same eight candidates in one process and in two, in turns, and whether the bits are the same. Processes are started first."""
    task, network = fashion_task(min(plan.images, 4_000), 0), teacher_network(plan.widths)
    places = described(network, build(network, seed=1).eval(), variants=lambda layer, shape: chosen_variants(layer, shape)[:2])
    settings = Settings(Distilling(replace(ADAM, epochs=max(1, plan.student_epochs // 2))), levels=(0.1,))
    seconds: dict[int, list[float]] = {1: [], 2: []}
    bits: list[dict[str, bytes]] = []
    for turn in range(2):
        for count in (1, 2):
            with Pool(count, train_candidate) as pool:
                for ready in [pool.submit(*_tiny(folder / f"warm{turn}-{count}-{k}")) for k in range(count)]:
                    ready.result()

                def run(jobs: Any, pool: Pool = pool, count: int = count) -> None:
                    began = time.perf_counter()
                    for ready in [pool.submit(*job) for job in jobs]:
                        ready.result()
                    seconds[count].append(time.perf_counter() - began)

                place = folder / f"{turn}-{count}"
                build_library(places, task, place, settings, run=run)
            bits.append({path.name: _weights(path) for path in sorted(place.glob("student-*"))})
            rmtree(place)
    return {"one": seconds[1], "two": seconds[2], "same": all(one == bits[0] for one in bits), "candidates": len(bits[0])}


def _tiny(folder: Path) -> tuple[Any, ...]:
    """A job that takes no time: it has its process import all it needs."""
    network = Network(Chain(conv_bn_act(2, name="a"), conv_bn_act(2, name="b")), (1, 4, 4))
    (place, _) = described(network, build(network).eval(), variants=lambda layer, shape: [Candidate("own", layer)])
    folder.mkdir(parents=True, exist_ok=True)
    for name, channels in (("x", 1), ("y", 2)):
        np.save(folder / f"{name}.npy", np.zeros((4, channels, 4, 4), dtype=np.float32))
    pairs = Pairs(folder / "x.npy", folder / "y.npy")
    return place, place["own"], pairs, pairs, Distilling(replace(ADAM, epochs=1)), None, 0, "cpu", folder / "own.safetensors"


def _weights(path: Path) -> bytes:
    arrays_, _ = unpack(path.read_bytes())
    return b"".join(arrays_[name].tobytes() for name in sorted(arrays_))


def kept(path: Path, module: nn.Module, make: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """`make(module)`, whose weights are kept in `path`, and read from there afterwards."""
    if path.is_file():
        values, _ = unpack(path.read_bytes())
        module.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()})
        return module.eval()
    made = make(module)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, pack({name: value.numpy() for name, value in made.state_dict().items()}, {}))
    return made


def _tested(module: nn.Module, task: ImageClassification) -> float:
    return evaluate(module, task, task.part("test"))["accuracy"]


def _plan(quick: bool) -> Plan:
    return QUICK if quick else Plan()


EXPERIMENT = Experiment(("neighbourhood_distillation", "neighbourhood-distillation", "student-search"), _plan, measure, section_of)
