"""Masks are free: a training step of the supernet, with many options for every width and expansion, against its plain largest member.

    python benchmarks/masks.py [--quick] [--seed N]

The supernet takes soft weights of all widths, expansions and kernel sizes, and everything else decided: inverted residuals, full depth,
full resolution. A step is forward, loss and backward, to the weights of the network and to the weights of the options; an optimizer would
cost both sides the same. Beside it: a mask multiplied onto every feature map, a branch for every option, and what is *not* free.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from harness import Claim, Result, Table, arguments, in_turns, machine, on_one_thread, paired_ratio, report, say
from torch import Tensor, fx, nn

from niwaki.net.block import conv_bn_act, mbconv
from niwaki.net.control import Chain, Network
from niwaki.net.edit import edit, restrict
from niwaki.net.layer import Activation, BatchNorm, Conv, Linear, SqueezeExcite, Subsample
from niwaki.net.place import Placed, fix, place, space_of
from niwaki.nn.build import build, module_name
from niwaki.nn.supernet import supernet
from niwaki.space.choice import Choice
from niwaki.space.size import Symbol, refs, substitute
from niwaki.space.space import Decision
from niwaki.testing.memory import saved_bytes
from niwaki.zoo.fbnetv2 import fbnetv2
from niwaki.zoo.mobile import mobile

OPTIONS = (2, 8, 32)  # of every width and every expansion
REFERENCE = "plain largest member"
RESTARTS = 3  # fresh processes for one figure of peak memory
LIGHT_ROUNDS, HEAVY_ROUNDS = 24, 3
MOST_TIME, MOST_BYTES, MOST_PEAK = 1.05, 1.05, 1.10


@dataclass(frozen=True)
class Case:
    """A space and the batch it is trained with. types, resolutions: the same space with two soft options of these."""

    name: str
    space: Callable[[], Network]
    batch: int
    types: Callable[[], Network]
    resolutions: Callable[[], Network]


def fbnetv2_body(side: int, operators: tuple[str, ...] = ("k5h_se",)) -> Network:
    """FBNetV2's space for images of `side` pixels: one resolution, in each block `operators` only, or one of any kernel size."""
    network = fbnetv2((3, side, side))
    network = restrict(network, {decision.name: operators for decision in space_of(network) if "k5h_se" in decision.options})
    if len(operators) > 1:
        return network
    return edit(network, lambda path, value, parent: Choice((3, 5)) if path.endswith("dw.kernel_size") else value)


def with_resolutions(network: Network, *sizes: int) -> Network:
    return Network(Chain(Subsample(Choice(sizes, "/resolution"), name="input"), network.body), network.input_shape)


def cases(quick: bool) -> tuple[Case, ...]:
    if quick:
        return (Case("mobile(16)", partial(mobile, 16), 4, partial(mobile, 16), partial(mobile, 16)),)
    body = partial(fbnetv2_body, 96)
    return (
        Case("mobile(32), batch 64", partial(mobile, 32), 64, partial(mobile, 32), partial(mobile, 32)),
        Case("FBNetV2 at 96 pixels, batch 16", body, 16, partial(body, ("k3h_se", "k5h_se")), lambda: with_resolutions(body(), 64, 96)),
    )


def with_options(network: Network, count: int) -> Network:
    """`network` with `count` options for every width and expansion, evenly spaced up to the same largest (fewer if it has no more)."""

    def leaf(symbol: Symbol) -> Any:
        name = symbol.name or "" if isinstance(symbol, Choice) else ""
        if not isinstance(symbol, Choice) or not name.endswith(("width", "expand")):
            return symbol
        most: Any = symbol.options[-1]
        steps = [most * (at + 1) / count for at in range(count)]
        return Choice(tuple(dict.fromkeys(max(1, round(step)) for step in steps)) if name.endswith("width") else tuple(steps), name)

    return edit(network, lambda path, value, parent: substitute(value, leaf) if isinstance(value, Symbol) else value)


def largest(network: Network) -> dict[str, Any]:
    """The last option of every decision, which is its largest; of block types, the inverted residual."""
    return {decision.name: decision.options[-1] for decision in space_of(network)}


def is_masked(decision: Decision) -> bool:
    return decision.name.endswith(("width", "expand", "kernel", "kernel_size"))


def is_type(decision: Decision) -> bool:
    return "inverted" in decision.options or "k5h_se" in decision.options


def is_resolution(decision: Decision) -> bool:
    return decision.name == "resolution"


# --- what is compared ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """Something that can be trained: its module, its forward pass, and the weights of options that learn with it."""

    module: nn.Module
    forward: Callable[[Tensor], Tensor]
    weights: tuple[Tensor, ...] = ()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.forward(images), labels)

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.loss(images, labels).backward()
        self.module.zero_grad(set_to_none=True)
        for weight in self.weights:
            weight.grad = None


def plain(network: Network) -> Subject:
    module = build(network, member(network)).train()
    return Subject(module, module)


def soft(network: Network, open_: Callable[[Decision], bool]) -> Subject:
    """The supernet with soft weights for the decisions that `open_` selects, and the others at their largest."""
    net = supernet(network).train()
    decided = largest(network)
    weights = {d.name: option_weights(len(d.options)) for d in space_of(network) if open_(d)}
    return Subject(net, lambda images: net(images, {**decided, **weights}), tuple(weights.values()))


def option_weights(count: int) -> Tensor:
    """(count,): any weights that sum to 1, to be learned."""
    return torch.softmax(torch.linspace(-1, 1, count), 0).requires_grad_()


def member(network: Network) -> dict[str, Any]:
    """The largest architecture, without what does not exist in it."""
    space, taken = space_of(network), largest(network)
    return {name: taken[name] for name in space.active(taken)}


def multiplied(network: Network) -> Subject:
    """The plain largest member with a mask multiplied onto every feature map whose width is searched, after its activation."""
    module, weights = plain(network).module, {}
    assert isinstance(module, fx.GraphModule)
    norms = [item for item in soft_items(network) if isinstance(item.layer, BatchNorm)]
    searched = {module_name(item.path): item for item in norms if isinstance(item.shape.width, Symbol)}
    names = {node.name: node for node in module.graph.nodes}
    for name in searched:
        users = [user for user in names[name].users if user.op == "call_module"]
        where = str(users[0].target) if users and isinstance(module.get_submodule(str(users[0].target)), (nn.ReLU, nn.Hardswish)) else name
        batch_norm = module.get_submodule(name)
        assert isinstance(batch_norm, nn.BatchNorm2d)
        count = max(len(ref.options) for ref in refs(searched[name].shape.width))
        weights[name] = option_weights(count)
        setattr(module, where, nn.Sequential(module.get_submodule(where), FeatureMask(batch_norm.num_features, weights[name])))
    return Subject(module, module, tuple(weights.values()))


class FeatureMask(nn.Module):
    """x times the mean keep-mask of evenly spaced widths (FBNetV2, Fig. 2), on the feature map itself."""

    def __init__(self, channels: int, weights: Tensor) -> None:
        super().__init__()
        widths = torch.arange(1, len(weights) + 1) * channels / len(weights)
        self.keep = (torch.arange(channels) < widths[:, None]).float()  # (O, C)
        self.weights = (weights,)  # in a tuple: no parameter of the module

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weights[0] @ self.keep)[:, None, None]


def branched(network: Network, count: int) -> Subject:
    """A branch for every option, as DARTS or FBNet would have it: zero-padded to the largest width and summed by weight.

    The i-th branch of a block has the i-th width and the i-th expansion: `count` branches, where all pairs would be the square of that.
    """
    placed = fix(place(network), member(network)).items
    searched = {item.path for item in soft_items(network) if isinstance(item.layer, Conv) and isinstance(item.layer.out_channels, Symbol)}
    blocks: list[Branches] = []
    for path, group in groupby(placed, key=lambda item: item.path.replace(".se.yes", ".se").rpartition(".")[0]):
        items = {item.path.rpartition(".")[2]: item for item in group}
        if convolutions := [item for item in items.values() if isinstance(item.layer, Conv)]:
            options = count if any(item.path in searched for item in convolutions) else 1
            blocks.append(Branches(items, options, searched=f"{path}.expand" in searched))
    # of a hidden layer in the head there is one: on vectors, its branches would cost next to nothing
    linear = [nn.Linear(item.input_shapes[0].width, item.shape.width) for item in placed if isinstance(item.layer, Linear)]
    head = nn.Sequential(*(layer for one in linear for layer in (one, nn.Hardswish())))[:-1]
    module = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), head)
    chosen = nn.ModuleList([*(block.branches[-1] for block in blocks), head])
    expected = sum(parameter.numel() for parameter in plain(network).module.parameters())
    assert sum(parameter.numel() for parameter in chosen.parameters()) == expected, "the last branches make up the plain largest member"
    return Subject(module.train(), module, tuple(block.weights[0] for block in blocks if len(block.branches) > 1))


class Branches(nn.Module):
    """Weighted sum of one block in `count` sizes, the last of which is the block that `items` (name in the block -> primitive) are."""

    def __init__(self, items: dict[str, Placed], count: int, *, searched: bool) -> None:
        super().__init__()
        first, last = next(iter(items.values())), [item for item in items.values() if isinstance(item.layer, Conv)][-1]
        self.width = last.shape.width
        self.residual = "add" in items
        shape = (first.input_shapes[0].width, *first.input_shapes[0].spatial)
        activation = next(item.layer.kind for item in items.values() if isinstance(item.layer, Activation))
        attention = any(isinstance(item.layer, SqueezeExcite) for item in items.values())
        body = []
        for at in range(1, count + 1):
            width = max(1, round(self.width * at / count))
            if "dw" in items:
                depthwise = items["dw"].layer
                expand = items["expand"].shape.width / shape[0] * (at / count if searched else 1) if "expand" in items else 1
                stride, kernel_size = depthwise.stride, depthwise.kernel_size  # type: ignore[attr-defined]
                given = {"stride": stride, "activation": activation, "squeeze_excite": attention, "residual": False}
                body.append(mbconv(width, kernel_size, expand=expand, **given))
            else:
                layer = last.layer
                body.append(conv_bn_act(width, layer.kernel_size, stride=layer.stride, activation=activation))  # type: ignore[attr-defined]
        self.branches = nn.ModuleList(build(Network(block, shape)) for block in body)
        self.weights = (option_weights(count),)

    def forward(self, x: Tensor) -> Tensor:
        total = x if self.residual else None
        for weight, branch in zip(self.weights[0], self.branches, strict=True):
            y = branch(x)
            y = weight * F.pad(y, (0, 0, 0, 0, 0, self.width - y.shape[1]))
            total = y if total is None else total + y
        assert total is not None
        return total


def soft_items(network: Network) -> tuple[Placed, ...]:
    """The primitives of the largest member with what is masked left open."""
    hard = {name: option for name, option in largest(network).items() if not is_masked(space_of(network)[name])}
    return tuple(fix(place(network), hard).items)


def subjects(case: Case, options: tuple[int, ...]) -> dict[str, Callable[[], Subject]]:
    """Everything that is compared, by name; made when called."""

    def many(count: int) -> Network:
        return with_options(case.space(), count)

    return {
        REFERENCE: lambda: plain(case.space()),
        **{f"masks, {count} options": partial(lambda n: soft(many(n), is_masked), count) for count in options},
        f"a mask on every feature map, {options[0]} options": lambda: multiplied(many(options[0])),
        **{f"a branch per option, {count} options": partial(lambda n: branched(many(n), n), count) for count in options},
        "block types, 2, soft": lambda: soft(case.types(), is_type),
        "resolutions, 2, soft": lambda: soft(case.resolutions(), is_resolution),
    }


def batch_of(case: Case, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    network = case.space()
    images = torch.randn(case.batch, *network.input_shape, generator=generator)
    return images.to(memory_format=torch.channels_last), torch.randint(0, 10, (case.batch,), generator=generator)


# --- what is measured --------------------------------------------------------------------------------------------------------------


def peak_mib() -> float:
    """The most memory that this process has held. Not `ru_maxrss`: that begins at the peak of the process which started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def peak_in_fresh_process(case: int, name: str, *, quick: bool, seed: int) -> float:
    command = [sys.executable, __file__, "--seed", str(seed), "--peak-of", json.dumps([case, name]), *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name!r} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def print_peak(case: int, name: str, *, quick: bool, seed: int) -> None:
    """What the fresh process does: three training steps of one subject (none of "", which is the imports alone)."""
    if name:
        chosen = cases(quick)[case]
        images, labels = batch_of(chosen, seed)
        subject = subjects(chosen, options_of(quick))[name]()
        for _ in range(3):
            subject.step(images, labels)
    print(peak_mib())


def options_of(quick: bool) -> tuple[int, ...]:
    return (2,) if quick else OPTIONS


def available_mib() -> float:
    """Memory that the machine has left."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("MemAvailable"))) / 1024


def keep_within_memory() -> None:
    """From now on an allocation that the machine could not bear fails, here and in processes started here, instead of taking it down."""
    bytes_ = int(0.6 * available_mib() * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))


@dataclass(frozen=True)
class Measured:
    table: Table
    claims: tuple[Claim, ...]
    figures: dict[str, Any]
    left_out: tuple[str, ...]


def measure(number: int, case: Case, *, quick: bool, seed: int) -> Measured:
    options = options_of(quick)
    names = list(subjects(case, options))
    say(f"{case.name}: peak memory of fresh processes ...")
    promised = ["", *(name for name in names if name.startswith(("plain", "masks")))]  # "": the imports alone
    several = [name for name in names if name.startswith("a branch")]
    jobs = promised if quick else promised * (RESTARTS - 1) + ["", *(name for name in names if name not in several)]
    with ThreadPoolExecutor(2) as pool:  # before this process grows, so that they never wait for memory
        peaks = list(pool.map(lambda name: peak_in_fresh_process(number, name, quick=quick, seed=seed), jobs))
    peak = {name: median(value for other, value in zip(jobs, peaks, strict=True) if other == name) for name in jobs}
    left_out, previous = [], peak[REFERENCE]
    for name, more in zip(several, (1, *(b / a for a, b in pairwise(options))), strict=True) if not quick else ():
        if (needed := more * previous) > available_mib() / 3:
            left_out.append(f"{case.name}: {name} left out; it would take up to {needed / 1024:.0f} GiB.")
            continue
        previous = peak[name] = peak_in_fresh_process(number, name, quick=quick, seed=seed)
    if not quick:
        names = [name for name in names if name in peak]

    images, labels = batch_of(case, seed)
    made = {name: make() for name, make in subjects(case, options).items() if name in names}
    saved = {name: saved_bytes(partial(subject.loss, images, labels), subject.module) for name, subject in made.items()}
    steps = {name: partial(subject.step, images, labels) for name, subject in made.items()}
    light = {name: step for name, step in steps.items() if not name.startswith("a branch")}
    heavy = {name: step for name, step in steps.items() if name not in light or name == REFERENCE}
    say(f"{case.name}: training steps in turns ...")
    turns = in_turns(light, rounds=2 if quick else LIGHT_ROUNDS), in_turns(heavy, rounds=1 if quick else HEAVY_ROUNDS, warmup=1)
    seconds = {name: turns[0] if name in light else turns[1] for name in names}
    times = {name: paired_ratio(seconds[name], name, REFERENCE) for name in names}
    seconds_of = {name: median(seconds[name][name]) for name in names}

    def ratio(of: dict[str, Any], name: str) -> float:
        return of[name] / of[REFERENCE]

    rows, claims = [], []
    for name in names:
        memory = ("", "", "")
        if name in peak:
            net = (peak[name] - peak[""]) / (peak[REFERENCE] - peak[""])
            memory = (f"{peak[name]:.0f} MiB", f"{ratio(peak, name):.3f}", f"{net:.3f}")
        kept = f"{saved[name] / 2**20:.1f} MiB", f"{ratio(saved, name):.3f}"
        rows.append((name, f"{1000 * seconds_of[name]:.0f} ms", times[name].text(), *kept, *memory))
        if name.startswith("masks"):
            ratios = (times[name].median, ratio(saved, name), ratio(peak, name))
            claims.append(Claim(
                f"{case.name}: {name}",
                f"time <= {MOST_TIME:.2f}x, bytes saved <= {MOST_BYTES:.2f}x, peak memory <= {MOST_PEAK:.2f}x",
                "{:.3f}x, {:.3f}x, {:.3f}x".format(*ratios),
                all(measured <= most for measured, most in zip(ratios, (MOST_TIME, MOST_BYTES, MOST_PEAK), strict=True)),
            ))  # fmt: skip
    columns = ("", "CPU time of a step", "ratio (quartiles)", "kept for backward", "ratio", "peak memory", "ratio", "without imports")
    figures = {"cpu_seconds": seconds_of, "saved_bytes": saved, "peak_mib": peak, "rounds": {name: seconds[name][name] for name in names}}
    return Measured(Table(case.name, columns, tuple(rows)), tuple(claims), figures, tuple(left_out))


def main() -> None:
    on_one_thread()
    options = arguments(__doc__ or "", lambda parser: parser.add_argument("--peak-of", help=argparse.SUPPRESS))
    torch.set_num_threads(1)
    if options.peak_of:
        case, name = json.loads(options.peak_of)
        print_peak(case, name, quick=options.quick, seed=options.seed)
        return
    about = machine(threads=1, seed=options.seed)
    keep_within_memory()
    found = [measure(number, case, quick=options.quick, seed=options.seed) for number, case in enumerate(cases(options.quick))]
    result = Result(
        "masks", "1. Masks are free", "python benchmarks/masks.py", tuple(claim for one in found for claim in one.claims),
        tables=tuple(one.table for one in found),
        notes=(
            f"Peak memory: median of {RESTARTS} processes for the plain member and the masks, one process for the rest. Time: "
            f"{LIGHT_ROUNDS} rounds, {HEAVY_ROUNDS} with branches.",
            "A branch per option: the i-th branch has the i-th width and expansion of its block; every pair of them would be the square.",
            *(note for one in found for note in one.left_out),
        ),
        figures={one.table.title: one.figures for one in found},
    )  # fmt: skip
    report(result, about, quick=options.quick)


if __name__ == "__main__":
    main()
