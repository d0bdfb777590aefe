"""Neighbourhood distillation: a student for each piece of a trained teacher, learned on the teacher's own activations, apart from all others.

Shao, Moroz, Eban & Movshovitz-Attias 2020, "Neighbourhood distillation: on the benefits of non end-to-end distillation", arXiv:2010.01189.
The teacher is t_n o ... o t_1, with boundaries x_0 (its input) and x_i = t_i(x_(i-1)). The student s_i of piece i makes
E |s_i(x_(i-1)) - x_i|^2 small. Put together, the students are a network. Details below that are ours say so: the paper's text was not to be had.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.task.task import Task, derive_seed
from niwaki.train.batch_norm import recalibrate_batch_norm_
from niwaki.train.loop import TrainingDiverged, batches_per_epoch, epoch_batches, own_randomness, seed_dropout
from niwaki.train.pieces import assembled
from niwaki.train.recipe import Recipe, lr_at, optimizer_for

ADAM = Recipe(epochs=10, batch_size=128, optimizer="adamw", lr=1e-3, weight_decay=0.0, warmup=0.0, label_smoothing=0.0)
AT_ONCE = 256  # examples that pass through the teacher together
STATISTICS = 40  # batches that BatchNorm's statistics are taken from
NOISE = tuple(10.0 ** (-4 + k / 3) for k in range(13))  # relative variances, 1e-4 to 1
LARGEST_FLOAT16 = 65_504


class NeighbourhoodError(ValueError):
    """Pieces, boundaries and students that do not fit together."""


# ---------------------------------------------------------------- boundaries


@dataclass(frozen=True)
class Pairs:
    """What one student learns from, as files of one array each (`.npy`), read a batch at a time: inputs (N, ...), targets (N, ...).

    after: where the loss is also measured behind the teacher's next piece, what comes out there (N, ...).
    """

    inputs: Path
    targets: Path
    after: Path | None = None

    def __post_init__(self) -> None:
        counts = {str(path): len(_opened(path)) for path in (self.inputs, self.targets, self.after) if path is not None}
        if len(set(counts.values())) != 1:
            raise NeighbourhoodError(f"inputs and targets are of the same examples; these have {counts}")

    @property
    def examples(self) -> int:
        return len(_opened(self.inputs))


def cache_boundaries(
    pieces: Sequence[nn.Module],
    task: Task,
    indices: Tensor,
    folder: Path,
    *,
    half: bool = False,
    copies: int = 0,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Path]:
    """x_0, x_1, ..., x_n of the examples, as the files `x0.npy`, ... in `folder`: the teacher runs once, in evaluation mode, some at a time.

    half: kept as float16, half the room; what the students then read is rounded to 11 bits. copies: 0 takes every example as it is; k takes
    k augmented copies of each. The last boundary are the logits.
    """
    inputs = (
        task.batch(part, torch.device(device))[0] for part in indices.split(AT_ONCE)
    ) if not copies else _augmented(task, indices, copies, seed, torch.device(device))  # fmt: skip
    return stream(pieces, inputs, len(indices) * max(1, copies), folder, half=half)


def _augmented(task: Task, indices: Tensor, copies: int, seed: int, device: torch.device) -> Iterator[Tensor]:
    for copy in range(copies):
        for at, part in enumerate(indices.split(AT_ONCE)):
            yield task.augmented_batch(part, device, torch.Generator().manual_seed(derive_seed(seed, "copy", copy, at)))[0]


@torch.no_grad()
def stream(pieces: Sequence[nn.Module], inputs: Iterator[Tensor], count: int, folder: Path, *, half: bool = False) -> list[Path]:
    """Boundaries of `count` inputs, given in batches, as files in `folder`: the inputs, and what each piece makes of them."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"x{at}.npy" for at in range(len(pieces) + 1)]
    files: list[np.memmap] = []
    done = 0
    for x in inputs:
        tensors = [x]
        for piece in pieces:
            tensors.append(piece.to(x.device).eval()(tensors[-1]))
        kind = np.float16 if half else np.float32
        if not files:
            files = [np.lib.format.open_memmap(path, "w+", kind, (count, *one.shape[1:])) for path, one in zip(paths, tensors, strict=True)]
        for file, one in zip(files, tensors, strict=True):
            if half and float(one.abs().max()) > LARGEST_FLOAT16:
                raise NeighbourhoodError(f"activations reach {float(one.abs().max()):.0f}, more than float16 holds; keep them as float32")
            file[done : done + len(one)] = one.float().cpu().numpy()
        done += len(x)
    if done != count:
        raise NeighbourhoodError(f"{done} examples came where {count} were announced")
    for file in files:
        file.flush()
    for piece in pieces:
        piece.cpu()  # where whatever comes next expects them
    return paths


def _opened(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def rows(path: Path, indices: Tensor | slice, device: torch.device | str = "cpu") -> Tensor:
    """Some examples of a boundary, float32 (B, ...); maps with the channels last in memory."""
    chosen = _opened(path)[indices if isinstance(indices, slice) else indices.numpy()]
    x = torch.from_numpy(np.array(chosen, dtype=np.float32)).to(device)
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x


def _batches(count: int) -> Iterator[slice]:
    return (slice(start, min(count, start + AT_ONCE)) for start in range(0, count, AT_ONCE))


# ---------------------------------------------------------------- errors


@dataclass(frozen=True)
class LocalError:
    """How far a student is from its piece of the teacher, over held-out examples.

    relative_mse: E|s - t|^2 / E|t|^2, 0 for an exact copy. cosine: mean over examples. explained: 1 - Var(s - t) / Var(t), channels taken
    apart, so that a constant error costs nothing.
    """

    relative_mse: float
    cosine: float
    explained: float


@torch.no_grad()
def local_error(student: nn.Module, pairs: Pairs, tail: nn.Module | None = None, device: torch.device | str = "cpu") -> LocalError:
    """Errors of the student in evaluation mode; with a tail, behind it. Sums are float64."""
    student.to(device).eval()
    squared = total = cosine = 0.0
    moments: list[Tensor] = []
    for part in _batches(pairs.examples):
        given = student(rows(pairs.inputs, part, device))
        if tail is not None:
            assert pairs.after is not None
            given = tail.to(device).eval()(given)
        target = rows(pairs.targets if tail is None or pairs.after is None else pairs.after, part, device)
        _same_shape(given, target)
        off, aim = (given - target).double(), target.double()
        squared, total = squared + float((off**2).sum()), total + float((aim**2).sum())
        flat = given.double().flatten(1), aim.flatten(1)
        cosine += float(torch.cosine_similarity(*flat, dim=1).sum())
        by_channel = [_by_channel(one) for one in (off, aim)]
        sums = torch.stack([stat for one in by_channel for stat in (one.sum(1), (one**2).sum(1), torch.full_like(one[:, 0], one.shape[1]))])
        moments.append(sums)
    student.cpu()
    if tail is not None:
        tail.cpu()
    sums = torch.stack(moments).sum(0)
    variances = [sums[3 * k + 1] / sums[3 * k + 2] - (sums[3 * k] / sums[3 * k + 2]) ** 2 for k in (0, 1)]
    explained = 1 - float(variances[0].sum()) / max(float(variances[1].sum()), 1e-30)
    return LocalError(squared / max(total, 1e-30), cosine / pairs.examples, explained)


def _by_channel(x: Tensor) -> Tensor:
    """(B, C, ...) as (C, everything else)."""
    return x.transpose(0, 1).flatten(1)


def _same_shape(given: Tensor, target: Tensor) -> None:
    if given.shape[1:] != target.shape[1:]:
        raise NeighbourhoodError(
            f"the student gives {tuple(given.shape[1:])}, where its piece of the teacher gives {tuple(target.shape[1:])}"
        )


def channel_variance(path: Path) -> Tensor:
    """Variance of each channel of a boundary, over examples and positions: float32 (C,). What hardly varies counts as 1e-5 of the mean."""
    count, mean, squares = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for part in _batches(len(_opened(path))):
        flat = _by_channel(rows(path, part).double())
        count, mean, squares = count + flat.shape[1], mean + flat.sum(1), squares + (flat**2).sum(1)
    variance = squares / count - (mean / count) ** 2
    return variance.clamp(min=float(variance.mean()) * 1e-5 + 1e-12).float()


# ---------------------------------------------------------------- training


@dataclass(frozen=True)
class Distilling:
    """How a student of one piece is trained: Adam along half a cosine, errors in units of each channel's variance (ours).

    Of the recipe, label smoothing and precision say nothing here: there are no labels, and all is float32. plateau: it ends once an epoch makes
    the error smaller by less than this share. tail: half of the loss is measured behind the teacher's
    next piece, and errors are told there, which is nearer to what the rest of the network notices (ours).
    """

    recipe: Recipe = ADAM
    plateau: float = 0.01
    tail: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.plateau < 1:
            raise NeighbourhoodError(f"plateau={self.plateau}: it is a share, from 0 (never) to below 1")
        if self.recipe.ema is not None:
            raise NeighbourhoodError(f"ema={self.recipe.ema}: students are distilled without an average of their weights; leave it out")


@dataclass(frozen=True)
class Distilled:
    """A student in evaluation mode. losses: the mean over each epoch of the squared error, in units of the channels' variance."""

    module: nn.Module
    losses: tuple[float, ...] = field(default=())


def distil(
    student: nn.Module, pairs: Pairs, how: Distilling, *, seed: int = 0, tail: nn.Module | None = None, device: torch.device | str = "cpu"
) -> Distilled:
    """`student`, trained in place on one piece's pairs, and on the CPU again. The bits of the result follow from the arguments alone, on one thread.

    tail: the teacher's next piece, where `how.tail` asks for it and there is one.
    """
    device = torch.device(device)
    student.to(device).train()
    measured = [(pairs.targets, _scale(pairs.targets, device))]
    if how.tail and tail is not None and pairs.after is not None:
        tail.to(device).eval().requires_grad_(False)
        measured.append((pairs.after, _scale(pairs.after, device)))
    else:
        tail = None
    if not any(parameter.requires_grad for parameter in student.parameters()):
        return Distilled(student.cpu().eval())  # nothing to learn: a piece without weights
    recipe, everything = how.recipe, torch.arange(pairs.examples)
    optimizer = optimizer_for(student, recipe)
    steps = batches_per_epoch(pairs.examples, recipe.batch_size)
    losses: list[float] = []
    with own_randomness(device):
        for epoch in range(recipe.epochs):
            total = torch.zeros((), device=device)
            for step, batch in enumerate(epoch_batches(everything, recipe.batch_size, seed=derive_seed(seed, "order", epoch))):
                seed_dropout(derive_seed(seed, "dropout", epoch, step), device)
                for group in optimizer.param_groups:
                    group["lr"] = lr_at(epoch * steps + step, steps, recipe)
                given = student(rows(pairs.inputs, batch, device))
                answers = [given] if tail is None else [given, tail(given)]
                targets = [rows(path, batch, device) for path, _ in measured]
                _same_shape(given, targets[0])
                loss = sum(
                    (_loss(a, t, s) for a, t, (_, s) in zip(answers, targets, measured, strict=True)), start=torch.zeros((), device=device)
                )
                loss = loss / len(answers)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if recipe.clip_norm is not None:
                    nn.utils.clip_grad_norm_(student.parameters(), recipe.clip_norm)
                optimizer.step()
                total += loss.detach()
            losses.append(float(total) / steps)
            if not math.isfinite(losses[-1]):
                raise TrainingDiverged(f"the error became {losses[-1]}", epoch + 1, steps)
            if how.plateau and epoch and losses[-1] > (1 - how.plateau) * losses[-2]:
                break
    # running averages remember the weights of many steps ago: statistics are taken anew, of the same inputs (ours)
    size = min(recipe.batch_size, pairs.examples)
    recalibrate_batch_norm_(student, (rows(pairs.inputs, slice(at, at + size), device) for at in _firsts(pairs.examples, size)))
    if tail is not None:
        tail.cpu()
    return Distilled(student.cpu().eval(), tuple(losses))


def _firsts(count: int, size: int) -> range:
    """Where `STATISTICS` batches of equal size begin, or as many as there are."""
    return range(0, count - size + 1, max(size, count // STATISTICS))


def _scale(path: Path, device: torch.device) -> Tensor:
    return channel_variance(path).to(device)


def _loss(given: Tensor, target: Tensor, variance: Tensor) -> Tensor:
    """Mean over all elements of (s - t)^2 / variance of the channel: 1 for a student that knows the mean alone."""
    return ((given - target) ** 2 / variance.view(1, -1, *[1] * (given.ndim - 2))).mean()


@torch.no_grad()
def inherit_(student: nn.Module, teacher: nn.Module) -> int:
    """Starts a student from the teacher's piece (ours): tensors of one name share what they have in common, channels from the first on, kernels
    around their middle. Returns how many tensors did."""
    theirs, taken = teacher.state_dict(), 0
    for name, own in student.state_dict().items():
        other = theirs.get(name)
        if other is not None and other.ndim == own.ndim and own.ndim:
            for dim in range(own.ndim):
                size = min(own.shape[dim], other.shape[dim])
                own = own.narrow(dim, (own.shape[dim] - size) // 2 if dim >= 2 else 0, size)
                other = other.narrow(dim, (other.shape[dim] - size) // 2 if dim >= 2 else 0, size)
            own.copy_(other)
            taken += 1
    return taken


# ---------------------------------------------------------------- what an error costs


@torch.no_grad()
def answers_from(pieces: Sequence[nn.Module], boundary: Path, change: Callable[[Tensor, int], Tensor] = lambda x, _: x) -> Tensor:
    """What the pieces make of a boundary, float32 (N, ...), some examples at a time, each `change(batch, number)`d first."""
    outputs = []
    for number, part in enumerate(_batches(len(_opened(boundary)))):
        x = change(rows(boundary, part), number)
        for piece in pieces:
            x = piece(x)
        outputs.append(x.float())
    return torch.cat(outputs)


def noise_curve(
    pieces: Sequence[nn.Module], boundary: Path, task: Task, indices: Tensor, levels: Sequence[float] = NOISE, *, seed: int = 0
) -> list[float]:
    """The metric with Gaussian noise added where the pieces begin, of relative variance `levels`: E|noise|^2 = level E|x|^2, all elements alike."""
    x = _opened(boundary)
    size = float(np.mean([np.square(np.asarray(x[part], dtype=np.float64)).mean() for part in _batches(len(x))]))

    def noisy(level: float) -> Callable[[Tensor, int], Tensor]:
        def change(batch: Tensor, number: int) -> Tensor:
            generator = torch.Generator().manual_seed(derive_seed(seed, "noise", number))  # the same for all levels, but for its size
            return batch + math.sqrt(level * size) * torch.randn(batch.shape, generator=generator)

        return change

    labels = task.labels(indices)
    return [task.metrics(answers_from(pieces, boundary, noisy(level)), labels)[task.metric] for level in levels]


def threshold(levels: Sequence[float], curve: Sequence[float], clean: float, allowed: float) -> float:
    """The largest level up to which the metric stays within `allowed` of `clean`, between two levels on a straight line over log(level).

    Below the first level, if that is too much already; the last, if nothing is.

    >>> round(threshold((0.01, 0.1, 1.0), (0.9, 0.88, 0.3), 0.9, 0.02), 6)
    0.1
    """
    drops = [clean - value for value in curve]
    over = next((at for at, drop in enumerate(drops) if drop > allowed + 1e-12), None)
    if over is None:
        return levels[-1]
    if over == 0:
        return levels[0] * allowed / max(drops[0], 1e-12)
    below, above = drops[over - 1], drops[over]
    share = (allowed - below) / max(above - below, 1e-12)
    return math.exp(math.log(levels[over - 1]) + share * (math.log(levels[over]) - math.log(levels[over - 1])))


# ---------------------------------------------------------------- put together


def drift_pairs(students: Sequence[nn.Module], teacher: Sequence[Path], inputs: Path, folder: Path, *, at: int) -> Pairs:
    """What student number `at` learns from once it is to read what the students before it give: these inputs, and the teacher's target.

    teacher: the teacher's boundaries. Deep networks drift from the teacher's activations (a known weakness of the method).
    """
    count = len(_opened(inputs))
    before = assembled(students[:at])
    batches = (rows(inputs, part) for part in _batches(count))
    path = stream([before], batches, count, folder)[1]
    return Pairs(path, teacher[at + 1])
