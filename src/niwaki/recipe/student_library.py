"""A library of students: smaller candidates for every neighbourhood of a teacher, trained once, with their costs and errors.

Candidates are trained by neighbourhood distillation (`train/neighbourhood.py`), all apart, so that they may be trained anywhere, and are kept under
the hash of all that they depend on. Errors and costs are factors over one decision each, so that budgets, and the exact minimum, are those of
every other space. What is chosen from a library: recipe/student_search.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.cost.count import COSTS
from niwaki.factor.factor import Cost, Factor, Limit
from niwaki.net.control import Chain, Network
from niwaki.net.text import network_hash
from niwaki.net.tree import called
from niwaki.nn.build import build
from niwaki.recipe.student_training import Masks, Trained, copy_of, cost_of, started, train_candidate, zeros_of
from niwaki.recipe.students import KEEP, Candidate, Neighbourhood
from niwaki.space.choice import BudgetError
from niwaki.space.space import Decision, Space
from niwaki.store.checkpoint import unpack
from niwaki.store.files import atomic_write
from niwaki.task.task import Task, derive_seed
from niwaki.train.distill import weights_hash
from niwaki.train.gaussian import Moments, boundary_moments, gaussian_inputs
from niwaki.train.neighbourhood import (
    NOISE,
    Distilling,
    LocalError,
    NeighbourhoodError,
    Pairs,
    cache_boundaries,
    noise_curve,
    rows,
    stream,
    threshold,
)
from niwaki.train.pieces import assembled

KAPPA = 0.5  # of what a boundary bears, where several pieces are replaced
UNIT = 10**9  # errors are counted in billionths of what a boundary bears: costs are whole numbers
COUNTED_OF_MODULES = ("macs", "params", "size")


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "levels", tuple(self.levels))
        wrong = [
            f"{name}={getattr(self, name)!r} ({possible})"
            for name, possible, holds in (
                ("copies", "a whole number, at least 0", self.copies >= 0),
                ("noise", "None, or at least 2 inputs", self.noise is None or self.noise >= 2),
                ("real", "0 without noise, and with it at most as many", 0 <= self.real <= (self.noise or 0)),
                ("copies", "0 with noise, which takes the place of the data", self.noise is None or not self.copies),
                ("allowed", "a drop of the metric, above 0", 0 < self.allowed < math.inf),
                ("kappa", "above 0, at most 1", 0 < self.kappa <= 1),
                ("levels", "at least one, above 0, rising", _rising(self.levels)),
            )
            if not holds
        ]
        if wrong:
            raise NeighbourhoodError(f"a library of students cannot have {'; '.join(wrong)}")


def _rising(levels: Sequence[float]) -> bool:
    return bool(levels) and levels[0] > 0 and all(a < b for a, b in pairwise(levels))


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
                Factor((one.name,), np.array([cost_of(one, candidate, name) for candidate in self.options(one)], dtype=np.int64))
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
            return copy_of(neighbourhood.teacher).eval()
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

    def zeros(self, arch: Mapping[str, Any], module: nn.Module) -> Masks:
        """What sparse candidates have of a combination's module, assembled or plain, and that further training is to leave at 0."""
        parameters, found = iter(module.parameters()), list[tuple[nn.Parameter, Tensor]]()
        for one in self.neighbourhoods:
            candidate = one[arch[one.name]]
            own = [next(parameters) for _ in started(one, candidate, 0)[0].parameters()]
            found += zeros_of(own) if candidate.sparsity else []
        return found

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
        amounts = [cost_of(one, one[KEEP], name) for one in self.neighbourhoods]
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
    data = hash_of(task.sha256, {key: value for key, value in task.describe().items() if key != "source"}, seed, settings.half, settings.copies, settings.noise, settings.real)  # fmt: skip
    base = folder / f"boundaries-{hash_of(prefixes[-1], data)}"
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
            key = hash_of(
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
    measured = _measured(places, targets, task, hold, settings, seed, folder, hash_of(prefixes[-1], data, settings.levels))
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
        so_far = hash_of(so_far, weights_hash(piece), code)
        found.append(so_far)
    return found


def _spec(neighbourhood: Neighbourhood, candidate: Candidate) -> str:
    start = weights_hash(candidate.module) if candidate.module is not None else ""
    described = network_hash(neighbourhood.network(candidate.layer)) if candidate.layer is not None else str(candidate.module)
    return f"{described} {start} {candidate.sparsity}"


def hash_of(*parts: Any) -> str:
    """20 hexadecimal digits of anything that JSON, or its text, tells apart."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


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
