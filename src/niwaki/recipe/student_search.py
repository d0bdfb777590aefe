"""Student search (Shao et al. 2020, arXiv:2010.01189): candidates for every neighbourhood of a teacher, trained once, are a search space.

Parts: the teacher in pieces (`students.described`); a student for each piece and candidate by neighbourhood distillation
(`train/neighbourhood.py`), all apart, so that they may be trained anywhere, and are kept under the hash of all that they depend on; how large an
error each boundary bears, measured with injected noise; and choices among the m^n combinations without any training:

- `local`: for each piece the cheapest candidate whose error is at most kappa of what its boundary bears;
- `knapsack`: the least cost at which errors, each as a share of what its boundary bears, add up to at most 1; or, given a budget, the least
  such sum within it;
- `greedy`: one replacement after the other, by what it saves for its error, with the metric measured after each.

Errors and costs are factors over one decision each, so that budgets, and the exact minimum, are those of every other space. The paper's figures:
up to 4.6 times faster than end-to-end distillation at equal quality [abstract]; detailed tables were not to be had. Defaults are ours unless
said: Adam 1e-3 on half a cosine, batches of 128, kappa = 0.5.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from niwaki.cost.count import COSTS
from niwaki.factor.factor import Cost, Factor, Limit
from niwaki.factor.within import within
from niwaki.net.control import Chain, Network
from niwaki.net.place import space_of
from niwaki.net.text import network_hash
from niwaki.net.tree import called
from niwaki.nn.build import build
from niwaki.recipe.students import KEEP, Candidate, Neighbourhood
from niwaki.space.architecture import Architecture
from niwaki.space.choice import BudgetError
from niwaki.space.space import Decision, Space
from niwaki.store.checkpoint import pack, unpack
from niwaki.store.files import atomic_write
from niwaki.task.task import Task, derive_seed
from niwaki.train.batch_norm import recalibrate_batch_norm_
from niwaki.train.distill import weights_hash
from niwaki.train.gaussian import Moments, boundary_moments, gaussian_inputs
from niwaki.train.loop import evaluate
from niwaki.train.neighbourhood import (
    NOISE,
    Distilling,
    LocalError,
    NeighbourhoodError,
    Pairs,
    cache_boundaries,
    distil,
    drift_pairs,
    inherit_,
    local_error,
    noise_curve,
    rows,
    stream,
    threshold,
)
from niwaki.train.pieces import assembled

KAPPA = 0.5  # of what a boundary bears, where several pieces are replaced
UNIT = 10**9  # errors are counted in billionths of what a boundary bears: costs are whole numbers
RECALIBRATION = 40  # batches
COUNTED_OF_MODULES = ("macs", "params", "size")
SPREAD = 200.0  # of the logarithms that stand for a cost to be made small


@dataclass(frozen=True)
class Settings:
    """What a library of students depends on, beside the teacher, the data and the seed.

    half: activations are kept as float16. copies: augmented copies of each example that students learn on; 0: the examples as they are.
    noise: None, or how many inputs of each piece are drawn by the moments that the teacher's BatchNorm layers remember, instead of any data;
    real: so many true examples are mixed into them. allowed: drop of the metric that a boundary may cause alone, at relative variances
    `levels` of noise. kappa: see `local`. inherit: students start from the teacher's weights, as far as they have these (see `inherit_`);
    False: from random ones.
    """

    how: Distilling = field(default_factory=Distilling)
    half: bool = False
    copies: int = 0
    noise: int | None = None
    real: int = 0
    allowed: float = 0.005
    kappa: float = KAPPA
    levels: tuple[float, ...] = NOISE
    inherit: bool = True


@dataclass(frozen=True)
class Trained:
    """A candidate after its training. seconds: of CPU time. file: with its weights; none for the teacher's own piece."""

    error: LocalError
    losses: tuple[float, ...]
    seconds: float
    file: Path | None = None


# ---------------------------------------------------------------- one candidate


def train_candidate(
    neighbourhood: Neighbourhood,
    candidate: Candidate,
    pairs: Pairs,
    held: Pairs,
    how: Distilling,
    tail: nn.Module | None,
    seed: int,
    device: str,
    file: Path,
    inherit: bool = True,
) -> None:
    """Trains one candidate and writes it to `file`, weights and figures: a job for any process; nothing else is read or written.

    held: examples that the errors are told of.
    """
    began = time.process_time()
    student, masks = started(neighbourhood, candidate, seed, inherit=inherit)
    hooks = [parameter.register_hook(mask.__mul__) for parameter, mask in masks]
    done = distil(student, pairs, how, seed=seed, tail=tail, device=device)
    for hook in hooks:
        hook.remove()
    error = local_error(done.module, held, tail if how.tail and held.after is not None else None, device)
    seconds = time.process_time() - began
    state = {name: tensor.detach().cpu().numpy() for name, tensor in done.module.state_dict().items()}
    atomic_write(file, pack(state, {"error": asdict(error), "losses": list(done.losses), "seconds": seconds}))


def started(
    neighbourhood: Neighbourhood, candidate: Candidate, seed: int, *, inherit: bool = True
) -> tuple[nn.Module, list[tuple[nn.Parameter, Tensor]]]:
    """The candidate before its training, and what of its weights is held at 0: of sparse ones, the smallest of each convolution and linear layer."""
    if candidate.sparsity or candidate.name == KEEP:
        student = _copy(neighbourhood.teacher)
    elif candidate.layer is not None:
        student = build(neighbourhood.network(candidate.layer), seed=derive_seed(seed, "weights"))
        if inherit:
            inherit_(student, neighbourhood.teacher)
    else:
        assert candidate.module is not None
        student = _copy(candidate.module)
    masks = []
    if candidate.sparsity:
        for parameter in student.parameters():
            if parameter.ndim > 1:
                count = int(candidate.sparsity * parameter.numel())
                kept = torch.ones(parameter.numel())
                kept[parameter.detach().abs().flatten().argsort()[:count]] = 0.0
                mask = kept.view_as(parameter)
                parameter.data.mul_(mask)
                masks.append((parameter, mask))
    return student, masks


def _copy(module: nn.Module) -> nn.Module:
    """A copy whose parameters learn."""
    return copy.deepcopy(module).requires_grad_(True)


# ---------------------------------------------------------------- the library


Job = tuple[Any, ...]  # arguments of `train_candidate`
Run = Callable[[Sequence[Job]], None]


def one_by_one(jobs: Sequence[Job]) -> None:
    for job in jobs:
        train_candidate(*job)


@dataclass(frozen=True, eq=False)
class Library:
    """Students of every neighbourhood, trained, with what they cost and how large an error each boundary bears: a space and its costs.

    trained: by neighbourhood and candidate. bears: of each neighbourhood, the relative variance of noise behind it (with a tail, behind the next)
    that costs `settings.allowed` of the metric. clean: the teacher's metric on the validation part, on which all this is measured.
    """

    neighbourhoods: tuple[Neighbourhood, ...]
    task: Task
    settings: Settings
    trained: Mapping[tuple[str, str], Trained]
    bears: tuple[float, ...]
    curves: tuple[tuple[float, ...], ...]
    clean: float
    boundaries: tuple[tuple[Path, ...], tuple[Path, ...]]  # of the examples that students learned on, and of those held out
    folder: Path
    seed: int
    device: str = "cpu"
    keep: bool = True

    @cached_property
    def space(self) -> Space:
        """One decision for each neighbourhood: which of its candidates; the teacher's own where there is no other, or `keep`."""
        return Space(tuple(Decision(one.name, tuple(each.name for each in self.options(one))) for one in self.neighbourhoods))

    def options(self, neighbourhood: Neighbourhood) -> tuple[Candidate, ...]:
        """The candidates that may be chosen."""
        every = neighbourhood.candidates
        return every if self.keep or len(every) == 1 else tuple(one for one in every if one.name != KEEP)

    @cached_property
    def costs(self) -> dict[str, Cost]:
        """What a combination costs: sums over its pieces, as all candidates of a piece read and give the same shapes; peak memory, a maximum."""
        found = {}
        for name in COSTS if all(one.layer is not None for one in self.neighbourhoods) else COUNTED_OF_MODULES:
            factors = tuple(
                Factor((one.name,), np.array([_counted(one, candidate, name) for candidate in self.options(one)], dtype=np.int64))
                for one in self.neighbourhoods
            )
            found[name] = Cost(
                name, "bytes" if name == "size" else "", factors, self.space, kind="max" if name == "peak_activation" else "sum"
            )
        return found

    def shares(self) -> tuple[tuple[float, ...], ...]:
        """Of each candidate, its error as a share of what its boundary bears."""
        return tuple(
            tuple(self.trained[one.name, candidate.name].error.relative_mse / bears for candidate in self.options(one))
            for one, bears in zip(self.neighbourhoods, self.bears, strict=True)
        )

    @cached_property
    def error(self) -> Cost:
        """The sum of these shares, in billionths."""
        return additive("error", self.space, self.shares())

    @cached_property
    def largest_error(self) -> Cost:
        """The largest of these shares, in billionths."""
        return additive("largest_error", self.space, self.shares(), kind="max")

    def module(self, neighbourhood: Neighbourhood, name: str) -> nn.Module:
        """A copy of the trained candidate, in evaluation mode."""
        trained = self.trained[neighbourhood.name, name]
        if trained.file is None:
            return _copy(neighbourhood.teacher).eval()
        student, _ = started(neighbourhood, neighbourhood[name], 0)
        arrays, _ = unpack(trained.file.read_bytes())
        student.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
        return student.eval()

    def pieces(self, arch: Mapping[str, Any]) -> list[nn.Module]:
        """The chosen candidates, copies, in order."""
        return [self.module(one, arch[one.name]) for one in self.neighbourhoods]

    def assemble(self, arch: Mapping[str, Any]) -> nn.Sequential:
        """The chosen candidates as one module: nothing is trained."""
        return assembled(self.pieces(arch), [one.name for one in self.neighbourhoods])

    def network(self, arch: Mapping[str, Any]) -> Network | None:
        """The description of a combination, where all of its candidates are described."""
        layers = [one[arch[one.name]].layer for one in self.neighbourhoods]
        if any(layer is None for layer in layers):
            return None
        named = [called(layer, one.name) for layer, one in zip(layers, self.neighbourhoods, strict=True) if layer is not None]
        return Network(Chain(*named), self.neighbourhoods[0].input_shape)

    def plain(self, arch: Mapping[str, Any], student: nn.Module) -> nn.Module:
        """An assembled student as the module that `build` makes of its description, where it has one; else as it is."""
        network = self.network(arch)
        if network is None:
            return student
        module = build(network)
        values = [tensor for piece in student.children() for tensor in piece.state_dict().values()]
        module.load_state_dict(dict(zip(module.state_dict(), values, strict=True)))
        return module.eval()

    def limits(self, budget: Sequence[Any]) -> list[Limit]:
        """The limits of a budget (`objective.parse_budget`) on this space; a share is one of the teacher's cost."""
        found = []
        for constraint in budget:
            name = constraint.resource.name
            if name not in self.costs:
                raise BudgetError(
                    f"{constraint}: {name} is not counted of modules without a description; there are {', '.join(self.costs)}"
                )
            upper = constraint.of(self.of_teacher(name)).upper
            assert upper is not None
            found.append(Limit(self.costs[name], int(upper)))
        return found

    def of_teacher(self, name: str) -> int:
        """What the teacher costs."""
        amounts = [_counted(one, one[KEEP], name) for one in self.neighbourhoods]
        return max(amounts) if name == "peak_activation" else sum(amounts)

    @cached_property
    def teacher(self) -> dict[str, str]:
        """Every piece the teacher's own."""
        return {one.name: KEEP for one in self.neighbourhoods}


def build_library(
    neighbourhoods: Sequence[Neighbourhood],
    task: Task,
    folder: str | Path,
    settings: Settings = Settings(),
    *,
    seed: int = 0,
    run: Run = one_by_one,
    device: str = "cpu",
    keep: bool = True,
) -> Library:
    """Trains what is not in `folder` yet, and measures what boundaries bear. The same arguments find it all done.

    Files are named by the hash of what their content depends on: teacher, boundary, candidate, data, settings, seed. run: trains the
    candidates, in any order and any processes, with the same result. keep: whether the teacher's own piece may be chosen beside others.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    places = tuple(neighbourhoods)
    teachers = [one.teacher for one in places]
    prefixes = _prefixes(teachers)
    data = _hash(task.sha256, {key: value for key, value in task.describe().items() if key != "source"}, seed, settings.half, settings.copies, settings.noise, settings.real)  # fmt: skip
    base = folder / f"boundaries-{_hash(prefixes[-1], data)}"
    train_on, hold = task.part("train"), task.part("validation")
    learn, held = base / "train", base / "validation"
    targets = _cached(held, len(teachers), lambda: cache_boundaries(teachers, task, hold, held, device=device))
    if settings.noise is None:
        paths = _cached(
            learn, len(teachers),
            lambda: cache_boundaries(teachers, task, train_on, learn, half=settings.half, copies=settings.copies, seed=seed, device=device),
        )  # fmt: skip
        pairs = [_pairs(paths, at, settings.how.tail) for at in range(len(places))]
    else:
        pairs = _noise_pairs(places, task, settings, learn, seed, device)
        paths = list(targets)
    tests = [_pairs(targets, at, settings.how.tail) for at in range(len(places))]
    jobs, trained = list[Job](), dict[tuple[str, str], Path | None]()
    for at, one in enumerate(places):
        tail = teachers[at + 1] if settings.how.tail and at + 1 < len(teachers) else None
        for candidate in one.candidates:
            if candidate.name == KEEP:
                trained[one.name, KEEP] = None
                continue
            key = _hash(
                prefixes[at],
                _spec(one, candidate),
                data,
                asdict(settings.how),
                settings.inherit,
                prefixes[at + 1] if tail is not None else "",
            )
            file = folder / f"student-{key}.safetensors"
            trained[one.name, candidate.name] = file
            if not file.is_file():
                jobs.append(
                    (one, candidate, pairs[at], tests[at], settings.how, tail, derive_seed(seed, key), device, file, settings.inherit)
                )
    run(jobs)
    results = {key: _read(file) for key, file in trained.items()}
    labels = task.labels(hold)
    clean = task.metrics(rows(targets[-1], slice(None)), labels)[task.metric]
    measured = _measured(places, targets, task, hold, settings, seed, folder, _hash(prefixes[-1], data, settings.levels))
    shift = 1 if settings.how.tail else 0
    curves = [measured[min(at + shift, len(measured) - 1)] for at in range(len(measured))]
    bears = tuple(threshold(settings.levels, curve, clean, settings.allowed) for curve in curves)
    return Library(
        places, task, settings, results, bears, tuple(map(tuple, curves)), clean, (tuple(paths), tuple(targets)), folder, seed, device, keep
    )


def _pairs(paths: Sequence[Path], at: int, tail: bool) -> Pairs:
    return Pairs(paths[at], paths[at + 1], paths[at + 2] if tail and at + 2 < len(paths) else None)


def _cached(folder: Path, pieces: int, make: Callable[[], list[Path]]) -> list[Path]:
    """The files of a folder of boundaries, made where it does not say that all of them are whole."""
    done = folder / "done"
    if not done.is_file():
        make()
        atomic_write(done, "")
    return [folder / f"x{at}.npy" for at in range(pieces + 1)]


def _noise_pairs(places: Sequence[Neighbourhood], task: Task, settings: Settings, folder: Path, seed: int, device: str) -> list[Pairs]:
    """For each piece, inputs drawn by its moments, and what the teacher's piece makes of them. Every piece has inputs of its own."""
    count = settings.noise or 0
    teachers = [one.teacher for one in places]
    found, real_paths = list[Pairs](), None
    if settings.real:
        chosen = task.part("train")[: settings.real]
        real_paths = cache_boundaries(teachers, task, chosen, folder / "real", device=device)
    for at, (one, moments) in enumerate(zip(places, boundary_moments(teachers, places[0].input_shape[0]), strict=True)):
        if len(moments.mean) != one.input_shape[0]:
            moments = Moments(torch.zeros(one.input_shape[0]), torch.ones(one.input_shape[0]))
        real = rows(real_paths[at], slice(None)) if real_paths is not None else None
        pieces = teachers[at : at + 2] if settings.how.tail else [one.teacher]
        batches = gaussian_inputs(moments, one.input_shape, count, seed=derive_seed(seed, "gaussian", at), real=real)
        on_device = (batch.to(device) for batch in batches)
        paths = _cached(
            folder / f"piece{at}", len(pieces), partial(stream, pieces, on_device, count, folder / f"piece{at}", half=settings.half)
        )
        found.append(Pairs(*paths))
    return found


def _measured(
    places: Sequence[Neighbourhood],
    targets: Sequence[Path],
    task: Task,
    hold: Tensor,
    settings: Settings,
    seed: int,
    folder: Path,
    key: str,
) -> list[list[float]]:
    """The noise curve behind each piece, kept in a file."""
    file = folder / f"noise-{key}.json"
    if file.is_file():
        return json.loads(file.read_text("utf-8"))
    teachers = [one.teacher for one in places]
    curves = [
        noise_curve(teachers[at + 1 :], targets[at + 1], task, hold, settings.levels, seed=derive_seed(seed, "noise", at))
        for at in range(len(places))
    ]
    atomic_write(file, json.dumps(curves))
    return curves


def _read(file: Path | None) -> Trained:
    if file is None:
        return Trained(LocalError(0.0, 1.0, 1.0), (), 0.0)
    _, content = unpack(file.read_bytes())
    return Trained(LocalError(**content["error"]), tuple(content["losses"]), content["seconds"], file)


def _prefixes(teachers: Sequence[nn.Module]) -> list[str]:
    """For each piece, a hash of the teacher up to and with it: its inputs and its targets follow from that."""
    found, so_far = list[str](), ""
    for piece in teachers:
        code = piece.code if isinstance(piece, torch.fx.GraphModule) else str(piece)
        so_far = _hash(so_far, weights_hash(piece), code)
        found.append(so_far)
    return found


def _spec(neighbourhood: Neighbourhood, candidate: Candidate) -> str:
    start = weights_hash(candidate.module) if candidate.module is not None else ""
    described = network_hash(neighbourhood.network(candidate.layer)) if candidate.layer is not None else str(candidate.module)
    return f"{described} {start} {candidate.sparsity}"


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


# ---------------------------------------------------------------- what a candidate costs


def _counted(neighbourhood: Neighbourhood, candidate: Candidate, name: str) -> int:
    """One cost of one candidate. Of sparse ones, multiply-adds and parameters are those of weights that are not 0."""
    if candidate.layer is not None and not candidate.sparsity:
        network = neighbourhood.network(candidate.layer)
        return COSTS[name](network)(space_of(network).architecture({}))
    student, _ = started(neighbourhood, candidate, 0)
    if name == "macs":
        return count_module_macs(student, neighbourhood.input_shape)
    if name in ("params", "size"):
        params = sum(int(p.count_nonzero()) if p.ndim > 1 else p.numel() for p in student.parameters())
        floats = sum(b.numel() for b in student.buffers() if b.is_floating_point())
        return params if name == "params" else 4 * (params + floats)
    assert candidate.layer is not None  # other costs are counted of described teachers alone
    network = neighbourhood.network(candidate.layer)
    return COSTS[name](network)(space_of(network).architecture({}))


@torch.no_grad()
def count_module_macs(module: nn.Module, input_shape: Sequence[int]) -> int:
    """Multiply-adds for one example, by PyTorch's counter of operations; less those with weights that are 0."""
    zeros = 0

    def count(layer: nn.Module, given: Any, output: Tensor) -> None:
        nonlocal zeros
        weight = layer.weight
        assert isinstance(weight, Tensor)
        positions = output[0].numel() // output.shape[1] if isinstance(layer, nn.Conv2d) else output[0].numel() // output.shape[-1]
        zeros += int((weight == 0).sum()) * positions

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    with FlopCounterMode(display=False) as counter:
        module.eval()(torch.zeros(1, *input_shape))
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() // 2 - zeros


# ---------------------------------------------------------------- choosing


def additive(name: str, space: Space, amounts: Sequence[Sequence[float]], kind: Any = "sum") -> Cost:
    """A cost that is a sum (or maximum) over the decisions of `amounts[decision][option]`, in billionths, rounded to the nearest."""
    for decision, own in zip(space.decisions, amounts, strict=True):
        if len(own) != len(decision.options) or any(not 0 <= amount < 1e6 for amount in own):
            raise NeighbourhoodError(
                f"{name} of {decision.name} is a number from 0 to a million for each of {len(decision.options)} options, not {own}"
            )
    factors = tuple(
        Factor((decision.name,), np.rint(np.array(own) * UNIT).astype(np.int64))
        for decision, own in zip(space.decisions, amounts, strict=True)
    )
    return Cost(name, "billionths", factors, space, kind)


def least(cost: Cost, limits: Sequence[Limit]) -> Architecture:
    """The architecture within the limits with the least `cost`, exactly: a sum over single decisions is the logarithm of a probability, and the
    most likely architecture within limits is found by dynamic programming (`factor/mode.py`). BudgetError where there is none.

    Differences below 1e-12 of the spread of the costs count as none.
    """
    if cost.kind != "sum" or any(len(factor.scope) != 1 for factor in cost.factors):
        raise NeighbourhoodError(f"{cost.name} is no sum over single decisions")
    tables = {factor.scope[0]: factor.table.astype(np.float64) for factor in cost.factors}
    spread = sum(float(table.max() - table.min()) for table in tables.values()) or 1.0
    weights = {
        decision.name: np.exp(-SPREAD * (tables[decision.name] - tables[decision.name].min()) / spread)
        if decision.name in tables
        else np.ones(len(decision.options))
        for decision in cost.space.decisions
    }
    return within(cost.space, limits).mode(weights)


def knapsack(library: Library, limits: Sequence[Limit] = (), *, minimize: str = "macs", by: Cost | None = None) -> Architecture:
    """Within limits, the least sum of errors; without, the least cost whose sum of errors is at most what boundaries bear. by: the errors."""
    error = by or library.error
    return least(error, limits) if limits else least(library.costs[minimize], [Limit(error, UNIT)])


def local(library: Library, limits: Sequence[Limit] = (), *, minimize: str = "macs", by: Cost | None = None) -> Architecture:
    """The least cost with every error at most kappa of what its boundary bears. BudgetError where that is over a limit."""
    most = Limit(library.largest_error, int(library.settings.kappa * UNIT))
    return least(library.costs[minimize], [most, *limits])


def greedy(
    library: Library,
    limits: Sequence[Limit] = (),
    *,
    minimize: str = "macs",
    by: Cost | None = None,
    look: int = 3,
    most_drop: float | None = None,
) -> Architecture:
    """From the teacher on, one replacement after the other: of the `look` that save most of `minimize` for their error, the one that leaves the
    metric highest on the validation part, until the limits hold.

    Without limits it goes on while the metric stays within `most_drop` (`settings.allowed`, if left out) of the teacher's.
    """
    error, cost, space = by or library.error, library.costs[minimize], library.space
    if limits:
        within(space, limits)  # BudgetError, with the least there is
    if not library.keep:
        raise NeighbourhoodError("a greedy search begins with the teacher, whose pieces are left out of this library (keep=False)")
    allowed = library.settings.allowed if most_drop is None else most_drop
    now = space.architecture(library.teacher)
    while not limits or not all(limit.cost(now) <= limit.upper for limit in limits):
        moves = []
        for decision in space.decisions:
            for option in decision.options:
                other = space.architecture({**now, decision.name: option})
                saved = cost(now) - cost(other)
                if saved > 0 or (limits and any(limit.cost(other) < limit.cost(now) for limit in limits if limit.cost(now) > limit.upper)):
                    moves.append((saved / max(error(other) - error(now), 1), other))
        moves.sort(key=lambda move: -move[0])
        judged = [(accuracy(library, other), other) for _, other in moves[:look]]
        if not judged:
            if limits:  # no single move helps any more: the exact minimum does
                return knapsack(library, limits, by=by)
            return now
        best, other = max(judged, key=lambda one: one[0])
        if not limits and best < library.clean - allowed:
            return now
        now = other
    return now


def accuracy(library: Library, arch: Mapping[str, Any]) -> float:
    """The metric of a combination on the validation part, as it is put together; the teacher's pieces at its beginning are not run again."""
    same = 0
    for one in library.neighbourhoods:
        if arch[one.name] != KEEP:
            break
        same += 1
    start = library.boundaries[1][same]
    hold = library.task.part("validation")
    with torch.no_grad():
        pieces = library.pieces(arch)[same:]
        outputs = []
        for part in (slice(at, at + 512) for at in range(0, len(hold), 512)):
            x = rows(start, part)
            for piece in pieces:
                x = piece(x)
            outputs.append(x)
    return library.task.metrics(torch.cat(outputs), library.task.labels(hold))[library.task.metric]


def swapped_losses(library: Library) -> Cost:
    """Another error to add up (ours): how much the loss on the validation part rises when a candidate alone stands among the teacher's pieces.

    One evaluation for each candidate. In billionths of a nat; what lowers the loss counts as 0.
    """
    hold, task = library.task.part("validation"), library.task
    labels, teachers = task.labels(hold), [one.teacher for one in library.neighbourhoods]
    clean = float(task.loss(rows(library.boundaries[1][-1], slice(None)), labels))
    amounts = []
    for at, one in enumerate(library.neighbourhoods):
        own = []
        for candidate in library.options(one):
            rise = 0.0
            if candidate.name != KEEP:
                with torch.no_grad():
                    x = rows(library.boundaries[1][at], slice(None))
                    for piece in (library.module(one, candidate.name), *teachers[at + 1 :]):
                        x = piece(x)
                    rise = max(0.0, float(task.loss(x, labels)) - clean)
            own.append(rise)
        amounts.append(own)
    return additive("swapped_loss", library.space, amounts)


# ---------------------------------------------------------------- put together


def recalibrated(library: Library, arch: Mapping[str, Any], student: nn.Module | None = None, *, batches: int = RECALIBRATION) -> nn.Module:
    """An assembled student with BatchNorm statistics of its own activations: forward passes on training examples, without labels.

    Students keep statistics of what the teacher's pieces gave them; behind other students they read something else. A piece that is the
    teacher's own keeps its statistics as long as nothing before it was replaced.
    """
    module = library.assemble(arch) if student is None else student
    first = next((at for at, one in enumerate(library.neighbourhoods) if arch[one.name] != KEEP), None)
    if first is None:
        return module
    size = library.settings.how.recipe.batch_size
    indices = library.task.part("train")
    order = indices[torch.randperm(len(indices), generator=torch.Generator().manual_seed(derive_seed(library.seed, "recalibration")))]
    parts = list(module.cpu().children())
    before, after = assembled(parts[:first]), assembled(parts[first:])
    with torch.no_grad():
        inputs = [
            before(library.task.batch(part, torch.device(library.device))[0]) for part in order.split(size)[:batches] if len(part) == size
        ]
    recalibrate_batch_norm_(after, inputs)
    return module.eval()


def drifted(library: Library, arch: Mapping[str, Any]) -> nn.Module:
    """The students trained once more, in order, each on what the students before it give, to the teacher's targets ("drift training").

    It cannot be done in parallel, and is cheaper than it sounds: they start from where they are, for a third of the epochs.
    """
    if library.settings.noise is not None:
        raise NeighbourhoodError("drift training reads what students make of data, and this library was made without any (noise=...)")
    pieces = library.pieces(arch)
    how = Distilling(_shorter(library.settings.how.recipe), library.settings.how.plateau)
    inputs = library.boundaries[0]
    for at, one in enumerate(library.neighbourhoods):
        if arch[one.name] == KEEP or at == 0:
            continue
        pairs = drift_pairs(pieces, inputs, inputs[0], library.folder / f"drift-{_hash(dict(arch), library.seed)}", at=at)
        _, masks = started(one, one[arch[one.name]], 0)
        hooks = [
            parameter.register_hook(mask.__mul__)
            for parameter, (_, mask) in zip([p for p in pieces[at].parameters() if p.ndim > 1], masks, strict=False)
        ]
        pieces[at] = distil(pieces[at], pairs, how, seed=derive_seed(library.seed, "drift", at), device=library.device).module
        for hook in hooks:
            hook.remove()
        with suppress(OSError):
            for path in pairs.inputs.parent.glob("x*.npy"):
                path.unlink()
    return assembled(pieces, [one.name for one in library.neighbourhoods])


def _shorter(recipe: Any) -> Any:
    return replace(recipe, epochs=max(1, recipe.epochs // 3), lr=recipe.lr / 2)


def figures(library: Library, arch: Mapping[str, Any], part: Any = "test") -> dict[str, Any]:
    """What is to be told of a combination: its costs, the local errors, and beside them the metric as assembled and as recalibrated."""
    task, indices = library.task, library.task.part(part)
    whole, student = library.space.architecture(dict(arch)), library.assemble(arch)
    as_is = evaluate(student, task, indices, device=library.device)[task.metric]
    again = evaluate(recalibrated(library, arch, student), task, indices, device=library.device)[task.metric]
    teacher = evaluate(library.assemble(library.teacher), task, indices, device=library.device)[task.metric]
    return {
        "choice": dict(whole),
        "costs": {name: cost(whole) for name, cost in library.costs.items()},
        "errors": {one.name: asdict(library.trained[one.name, arch[one.name]].error) for one in library.neighbourhoods},
        "bears": dict(zip([one.name for one in library.neighbourhoods], library.bears, strict=True)),
        "error": library.error(whole) / UNIT,
        task.metric: {"teacher": teacher, "assembled": as_is, "recalibrated": again},
    }
