"""A supernet trained once for every budget: BigNAS's sandwich, with AttentiveNAS's and AlphaNet's changes, or once-for-all's progressive shrinking."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.cost.count import count_macs
from niwaki.factor.eliminate import even
from niwaki.factor.factor import Limit
from niwaki.factor.within import Within, within
from niwaki.gradient.weights import rising_cosine, saved
from niwaki.net.control import Network
from niwaki.net.layer import Conv, Pool, Subsample
from niwaki.net.operation import Operation
from niwaki.net.place import INPUT, Placement, place, space_of
from niwaki.nn.residual import drop_connect, zero_last_gammas_
from niwaki.nn.supernet import extract, supernet
from niwaki.space.architecture import Architecture
from niwaki.space.size import scope
from niwaki.task.task import Task, derive_seed
from niwaki.train.loop import TrainingDiverged, batches_per_epoch, epoch_batches, own_randomness, seed_dropout, under_way
from niwaki.train.sandwich import Divergence, alpha_divergence, constant_ending, kl_divergence, sandwich_backward, without_dropout

Kind = Literal["resolution", "depth", "kernel", "width"]
Sampling = Literal["even", "attentive"]
Members = Literal["anywhere", "within"]
KINDS = get_args(Kind)
BANDS = 24  # of cost, from the least to the most, that attentive sampling aims at; AttentiveNAS's are 25 million FLOPs wide
ROUNDS, ROUND = 20, 1024  # of draws below a band's upper end, of which those within it are candidates
SPARE = 3  # members drawn beside those wanted of a step, for some may be the same


class TrainOnceError(ValueError):
    """What a supernet cannot be trained once with."""


@dataclass(frozen=True)
class Phase:
    """Some epochs with a schedule of their own. open: the kinds of decisions that are drawn, and from how many of their largest options (None:
    all); the others stay at their largest. children: members that are drawn in each step. warm_up: share of the phase's steps."""

    epochs: int
    lr: float
    children: int = 2
    open: tuple[tuple[Kind, int | None], ...] = tuple((kind, None) for kind in KINDS)
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "open", tuple((kind, count) for kind, count in self.open))
        wrong = [
            f"{name}={getattr(self, name)!r} ({possible})"
            for name, possible, holds in (
                ("epochs", "at least 1", self.epochs >= 1),
                ("lr", "above 0", self.lr > 0),
                ("children", "at least 0", self.children >= 0),
                (
                    "open",
                    f"of {', '.join(KINDS)}, each from at least 1 option",
                    all(k in KINDS and (n is None or n >= 1) for k, n in self.open),
                ),
                ("warm_up", "from 0 to below 1", 0 <= self.warm_up < 1),
            )
            if not holds
        ]
        if wrong:
            raise TrainOnceError(f"a phase cannot have {'; '.join(wrong)}")


@dataclass(frozen=True)
class TrainOnce:
    """Hyper-parameters. The defaults are BigNAS's but for the optimizer; `recipe.bignas` has those of its relatives.

    rule: "sandwich": each step trains the biggest member on the labels, and the smallest and `children` others on what the biggest gives.
    "shrinking" (once-for-all): each step trains `children` members on labels and, after the first phase, on what the biggest member then gave, half
    and half. divergence: what those learn by ("alpha": AlphaNet's). members: children are drawn from "anywhere" in the space (BigNAS), or from
    "within" the budgets, which take turns. sampling: "even", choice by choice (BigNAS); "attentive" (AttentiveNAS): of `attention` members that
    cost about as much, as a cost drawn from those there are, the one whose loss on the batch is lowest (best-up). A supernet that learns a number
    (one output) learns it by squared error. schedule: of the learning rate in each phase: "constant" at the end, from the share `reached` of its
    steps, or "cosine". drop_connect: of the biggest member, as the network's own dropout is.
    """

    phases: tuple[Phase, ...] = (Phase(epochs=360, lr=0.256, warm_up=5 / 360),)
    batch_size: int = 4096
    rule: Literal["sandwich", "shrinking"] = "sandwich"
    divergence: Literal["kl", "alpha"] = "kl"
    members: Members = "anywhere"
    sampling: Sampling = "even"
    attention: int = 3
    schedule: Literal["constant", "cosine"] = "constant"
    last_lr: float = 0.05
    reached: float = 236 / 360
    optimizer: Literal["rmsprop", "sgd"] = "rmsprop"
    momentum: float = 0.9
    nesterov: bool = False  # of SGD
    weight_decay: float = 1e-5
    label_smoothing: float = 0.1
    drop_connect: float = 0.2
    clip_norm: float | None = None  # of all gradients together
    clip_value: float | None = None  # of each entry
    zero_gamma: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "phases", tuple(self.phases))
        wrong = [
            f"{name}={getattr(self, name)!r} ({possible})"
            for name, possible, holds in (
                ("phases", "at least one", len(self.phases) >= 1),
                ("batch_size", "at least 2", self.batch_size >= 2),
                ("rule", "sandwich or shrinking", self.rule in ("sandwich", "shrinking")),
                ("divergence", "kl or alpha", self.divergence in ("kl", "alpha")),
                ("members", " or ".join(get_args(Members)), self.members in get_args(Members)),
                ("sampling", " or ".join(get_args(Sampling)), self.sampling in get_args(Sampling)),
                ("attention", "at least 1", self.attention >= 1),
                ("schedule", "constant or cosine", self.schedule in ("constant", "cosine")),
                ("last_lr", "above 0, at most 1", 0 < self.last_lr <= 1),
                ("reached", "above 0, at most 1", 0 < self.reached <= 1),
                ("optimizer", "rmsprop or sgd", self.optimizer in ("rmsprop", "sgd")),
                ("momentum", "from 0 to below 1", 0 <= self.momentum < 1),
                ("weight_decay", "at least 0", self.weight_decay >= 0),
                ("label_smoothing", "from 0 to below 1", 0 <= self.label_smoothing < 1),
                ("drop_connect", "from 0 to below 1", 0 <= self.drop_connect < 1),
                ("clip_norm", "None, or above 0", self.clip_norm is None or self.clip_norm > 0),
                ("clip_value", "None, or above 0", self.clip_value is None or self.clip_value > 0),
            )
            if not holds
        ]
        if self.rule == "shrinking" and any(phase.children < 1 for phase in self.phases):
            wrong.append("a phase without children, of which every step of rule='shrinking' trains at least 1")
        if wrong:
            raise TrainOnceError(f"a supernet cannot be trained once with {'; '.join(wrong)}")

    @property
    def epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases)

    def lr_at(self, phase: int, step: int, total: int) -> float:
        """Of step 0, 1, ... of `total` of a phase."""
        one = self.phases[phase]
        if self.schedule == "constant":
            return constant_ending(one.lr, step, total, warm_up=one.warm_up, last=self.last_lr, reached=self.reached)
        return rising_cosine(one.lr, one.warm_up, step, total)


@dataclass(frozen=True)
class TrainOnceRecord:
    """One epoch. weight_loss: mean over its steps of the biggest member's loss (of rule "shrinking": of its children's); child_loss: of the mean
    divergence of the others from it; lr: at its end."""

    epoch: int
    weight_loss: float
    child_loss: float
    lr: float


class TrainOnceSearch:
    """A supernet's training under way. The same seed gives the same weights, also after `load`, at the same number of threads.

    spaces: the network's space within each budget, from which members are drawn where `method.members` says so, in turns; none: the whole space.
    weights: to begin with, of an adopted model by the owner's names, of a described network by their names in the supernet; residual branches
    then begin as they are.
    """

    def __init__(
        self,
        network: Network,
        task: Task,
        spaces: Sequence[Within],
        method: TrainOnce,
        *,
        weights: Mapping[str, Tensor] | None = None,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task, self.method, self.seed, self.device = task, method, seed, torch.device(device)
        self.space, self.macs = space_of(network), count_macs(network)
        everywhere = within(self.space, ())
        self.spaces = tuple(spaces) if spaces and method.members == "within" else (everywhere,)
        self.biggest, self.smallest = self.macs.maximum()[1], self.macs.minimum()[1]
        adopted = is_adopted(network)
        self.net = supernet(network, weights if adopted else None, seed=derive_seed(seed, "supernet"))
        if weights is not None and not adopted:
            self.net.load_state_dict(dict(weights))
        elif weights is None and method.zero_gamma:
            zero_last_gammas_(self.net)
        self.net.to(self.device)
        self.kinds = kinds_of(self.net.placement)
        self.part = task.part("train")
        self.steps_per_epoch = batches_per_epoch(len(self.part), method.batch_size)
        self.step = 0
        self.history: list[TrainOnceRecord] = []
        self._sums = [0.0, 0.0]  # of the epoch under way
        self._ends = np.cumsum([phase.epochs for phase in method.phases]).tolist()  # epochs
        self.optimizer = self._new_optimizer()
        self.teacher: nn.Module | None = None  # the biggest member as the first phase of "shrinking" left it
        self._after = drop_connect(self.net.placement, method.drop_connect) if method.drop_connect else None
        soft: Divergence = kl_divergence if method.divergence == "kl" else alpha_divergence
        self.divergence = soft if task.outputs > 1 else squared_error

    # --- progress ----------------------------------------------------------------------------------------------------

    @property
    def total_steps(self) -> int:
        return self.method.epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    def phase_of(self, epoch: int) -> int:
        """The number of the phase that `epoch`, from 0, is in."""
        return next(at for at, end in enumerate(self._ends) if epoch < end)

    def run(self, max_steps: int | None = None) -> None:
        """Takes `max_steps` steps, or as many as are left of the epoch under way."""
        if self.finished:
            return
        epoch, first, last = under_way(self.step, self.steps_per_epoch, max_steps)
        at = self.phase_of(epoch)
        begins = self._ends[at - 1] if at else 0
        if first == 0 and epoch == begins and at > 0:
            self._new_phase(at)
        batches = epoch_batches(self.part, self.method.batch_size, seed=derive_seed(self.seed, "weights", epoch))
        members = self._members(epoch)
        total, lr = self.method.phases[at].epochs * self.steps_per_epoch, 0.0
        self.net.train()
        with own_randomness(self.device):
            for step in range(first, last):
                lr = self.method.lr_at(at, self.step - begins * self.steps_per_epoch, total)
                for group in self.optimizer.param_groups:
                    group["lr"] = lr
                losses = torch.stack(self._step(batches[step], members[step], epoch, step)).tolist()
                if not all(map(isfinite, losses)):
                    raise TrainingDiverged(f"the supernet's loss became {next(v for v in losses if not isfinite(v))}", epoch + 1, step + 1)
                self._sums = [total + loss for total, loss in zip(self._sums, losses, strict=True)]
                self.step += 1
        if last == self.steps_per_epoch:
            own, told = (total / self.steps_per_epoch for total in self._sums)
            self.history.append(TrainOnceRecord(epoch + 1, own, told, lr))
            self._sums = [0.0, 0.0]

    def _new_phase(self, at: int) -> None:
        if self.method.rule == "shrinking" and self.teacher is None:
            self.teacher = self._as_teacher(extract(self.net, self.biggest))
        self.optimizer = self._new_optimizer()

    @staticmethod
    def _as_teacher(module: nn.Module) -> nn.Module:
        """With the statistics of the batch, as its students are, and nothing dropped."""
        module.train()
        for one in module.modules():
            if isinstance(one, nn.Dropout):
                one.eval()
        return module.requires_grad_(False)

    # --- steps -------------------------------------------------------------------------------------------------------

    def _step(self, indices: Tensor, members: list[list[Architecture]], epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """members: for each child, the candidates that it is chosen of."""
        method = self.method
        seed_dropout(derive_seed(self.seed, "dropout", epoch, step), self.device)
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "augment", epoch, step))
        inputs, targets = self.task.augmented_batch(indices, self.device, generator)
        loss = partial(self.task.loss, targets=targets, label_smoothing=method.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        children = [self._best_up(some, inputs, targets) for some in members]
        if method.rule == "sandwich":
            others = [self.smallest, *children] if self.smallest != self.biggest else children
            losses = sandwich_backward(self.net, inputs, self.biggest, others, loss=loss, divergence=self.divergence, after=self._after)
        else:
            losses = self._shrinking_backward(inputs, children, loss)
        if method.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.net.parameters(), method.clip_norm)
        if method.clip_value is not None:
            nn.utils.clip_grad_value_(self.net.parameters(), method.clip_value)
        self.optimizer.step()
        return losses

    def _shrinking_backward(self, inputs: Tensor, children: list[Architecture], loss: Any) -> tuple[Tensor, Tensor]:
        """Once-for-all: CE(labels) + KD(the biggest member as it was when shrinking began), for each child."""
        own, told = [], []
        teacher = None
        if self.teacher is not None:
            with torch.no_grad():
                teacher = self.teacher(inputs)
        for arch in children:
            outputs = self.net(inputs, arch, after=self._after)
            labels = loss(outputs)
            learned = self.divergence(outputs, teacher) if teacher is not None else torch.zeros_like(labels)
            (labels + learned).backward()
            own.append(labels.detach())
            told.append(learned.detach())
        return torch.stack(own).mean(), torch.stack(told).mean()

    def _best_up(self, candidates: list[Architecture], inputs: Tensor, targets: Tensor) -> Architecture:
        """The candidate of the lowest loss on the batch (AttentiveNAS)."""
        if len(candidates) == 1:
            return candidates[0]
        with torch.no_grad(), without_dropout(self.net):
            losses = [float(self.task.loss(self.net(inputs, arch), targets)) for arch in candidates]
        return candidates[int(np.argmin(losses))]

    # --- members -----------------------------------------------------------------------------------------------------

    def _members(self, epoch: int) -> list[list[list[Architecture]]]:
        """For each step of the epoch, for each child, the candidates: one, or `attention` of about the same cost."""
        phase, steps = self.method.phases[self.phase_of(epoch)], self.steps_per_epoch
        if self.method.sampling == "attentive":
            return self._attentive_members(epoch, phase)
        each = phase.children + SPARE
        rows = []
        for at, space in enumerate(self.spaces):
            generator = np.random.default_rng(derive_seed(self.seed, "children", epoch, at))
            rows.append(space.sample_many(steps * each, generator, self.chances(phase)).reshape(steps, each, -1))
        known = {self.biggest, self.smallest} if self.method.rule == "sandwich" else set[Architecture]()
        found = []
        for step in range(steps):
            taken: list[Architecture] = []
            for spare in range(each):
                # over the whole training the budgets take turns, and so they do within a step
                turn = ((epoch * steps + step) * phase.children + spare) % len(self.spaces)
                arch = self.space.from_indices(rows[turn][step, spare].tolist())
                if len(taken) < phase.children and arch not in known and arch not in taken:
                    taken.append(arch)
            if not taken and phase.children and self.method.rule == "shrinking":
                taken = [self.space.from_indices(rows[0][step, 0].tolist())]
            found.append([[arch] for arch in taken])
        return found

    def chances(self, phase: Phase) -> dict[str, np.ndarray]:
        """Of each option in a phase: even among those that are open, the largest ones; the biggest member's alone where the kind is closed."""
        open_ = dict(phase.open)
        chances = {}
        for name, p in even(self.space).items():
            kind, options = self.kinds[name], self.space[name].options
            top = options.index(self.biggest[name]) if name in self.biggest else len(options) - 1
            if kind not in open_:
                keep = np.arange(len(p)) == top
            else:
                order = np.argsort([abs(at - top) for at in range(len(p))], kind="stable")
                keep = np.isin(np.arange(len(p)), order[: open_[kind]])
            chances[name] = keep / keep.sum()
        return chances

    def _attentive_members(self, epoch: int, phase: Phase) -> list[list[list[Architecture]]]:
        """AttentiveNAS: costs are drawn as they are distributed over the space, and for each `attention` members of that cost.

        Its tables of what is likely at a cost are the exact sampler here: members are drawn within the upper end of the cost's band, and those
        below its lower end are left out, so that what is kept is distributed exactly as the space is within the band.
        """
        wanted: dict[tuple[int, int], list[tuple[int, int]]] = {}  # (space, band) -> steps and children
        chances, width = self.chances(phase), self._band_width
        for at, space in enumerate(self.spaces):
            generator = np.random.default_rng(derive_seed(self.seed, "targets", epoch, at))
            costs = self.macs.batch(space.sample_many(self.steps_per_epoch * phase.children, generator, chances))
            for number, cost in enumerate(costs.tolist()):
                if number % len(self.spaces) == at:
                    wanted.setdefault((at, (cost - self._least) // width), []).append(divmod(number, phase.children))
        found: list[list[list[Architecture]]] = [[[] for _ in range(phase.children)] for _ in range(self.steps_per_epoch)]
        for (at, band), places in sorted(wanted.items()):
            generator = np.random.default_rng(derive_seed(self.seed, "candidates", epoch, at, band))
            rows = self._in_band(at, band, len(places) * self.method.attention, generator, chances)
            for number, (step, child) in enumerate(places):
                some = rows[number * self.method.attention : (number + 1) * self.method.attention]
                found[step][child] = list(dict.fromkeys(self.space.from_indices(row) for row in some.tolist()))
        return found

    def _in_band(self, at: int, band: int, count: int, generator: np.random.Generator, chances: dict[str, np.ndarray]) -> np.ndarray:
        low = self._least + band * self._band_width
        part = self._below(at, low + self._band_width - 1)
        kept: list[np.ndarray] = []
        for _ in range(ROUNDS):
            rows = part.sample_many(ROUND, generator, chances)
            kept.append(rows[self.macs.batch(rows) >= low])
            if sum(map(len, kept)) >= count:
                break
        rows = np.concatenate(kept)
        if not len(rows):  # a band that hardly anything lies in: the nearest to it
            rows = part.sample_many(ROUND, generator, chances)
            rows = rows[np.argsort(-self.macs.batch(rows), kind="stable")[:1]]
        return np.resize(rows, (count, rows.shape[1]))

    def _below(self, at: int, upper: int) -> Within:
        key = (at, upper)
        if key not in self._parts:
            self._parts[key] = within(self.space, [*self.spaces[at].limits, Limit(self.macs, upper)])
        return self._parts[key]

    @cached_property
    def _parts(self) -> dict[tuple[int, int], Within]:
        return {}

    @cached_property
    def _least(self) -> int:
        return self.macs.minimum()[0]

    @cached_property
    def _band_width(self) -> int:
        return max(1, -(-(self.macs.maximum()[0] - self._least + 1) // BANDS))

    # --- state -------------------------------------------------------------------------------------------------------

    def _new_optimizer(self) -> torch.optim.Optimizer:
        method, lr = self.method, self.method.phases[0].lr
        groups = [
            {"params": [p for p in self.net.parameters() if p.dim() > 1], "weight_decay": method.weight_decay},
            {"params": [p for p in self.net.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ]
        if method.optimizer == "sgd":
            return torch.optim.SGD(groups, lr=lr, momentum=method.momentum, nesterov=method.nesterov and method.momentum > 0, foreach=True)
        # EfficientNet's, whose eps stands inside the root: here beside it, where 0.03 is as much for a small gradient
        return torch.optim.RMSprop(groups, lr=lr, alpha=0.9, eps=0.001**0.5, momentum=method.momentum, foreach=True)

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that `load` needs to go on with the same bits: named tensors (copies, on the CPU) and JSON."""
        tensors = {f"net.{name}": tensor for name, tensor in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
        if self.teacher is not None:
            tensors |= {f"teacher.{name}": tensor for name, tensor in self.teacher.state_dict().items()}
        return saved(tensors), {
            "method": _plain(self.method), "step": self.step, "sums": self._sums, "history": [asdict(record) for record in self.history],
        }  # fmt: skip

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave, in a training started alike."""
        if state["method"] != _plain(self.method):
            raise ValueError(f"this state is of a training with {state['method']}, not with {_plain(self.method)}")
        self.net.load_state_dict({name.removeprefix("net."): tensor for name, tensor in tensors.items() if name.startswith("net.")})
        self.optimizer = self._new_optimizer()
        of: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, key, owner = name.split(".", 2)
                of.setdefault(owner, {})[key] = tensor.to("cpu" if key == "step" else self.device, copy=True)
        for name, parameter in self.net.named_parameters():
            if name in of:
                self.optimizer.state[parameter] = of[name]
        if teacher := {name.removeprefix("teacher."): tensor for name, tensor in tensors.items() if name.startswith("teacher.")}:
            self.teacher = self._as_teacher(extract(self.net, self.biggest))
            self.teacher.load_state_dict(teacher)
        self.step, self._sums = state["step"], list(state["sums"])
        self.history = [TrainOnceRecord(**record) for record in state["history"]]


def is_adopted(network: Network) -> bool:
    """Whether `network` is a model of an owner's, whose weights go by the owner's names."""
    return any(isinstance(item.layer, Operation) for item in place(network).items)


def squared_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Of outputs that are numbers, (B, 1) each: what a member learns from the biggest one where there are no classes."""
    return F.mse_loss(student, teacher)


def kinds_of(placement: Placement) -> dict[str, Kind]:
    """What each decision is about: the input's resolution; depth, whatever says which layers there are; kernel sizes; or width, all others."""
    kinds: dict[str, Kind] = {decision.name: "width" for decision in placement.decisions}
    for item in placement.items:
        if isinstance(item.layer, (Conv, Pool)):
            kinds |= dict.fromkeys(scope(item.layer.kernel_size), "kernel")
    for item in placement.items:
        kinds |= dict.fromkeys(scope(item.condition, *item.edges), "depth")
    for item in placement.items:
        if isinstance(item.layer, Subsample) and item.inputs == (INPUT,):
            kinds |= dict.fromkeys(scope(*item.shape.spatial), "resolution")
    return kinds


def _plain(method: TrainOnce) -> dict[str, Any]:
    """As JSON has it."""
    return json.loads(json.dumps(asdict(method)))
