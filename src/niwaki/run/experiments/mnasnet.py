"""MnasNet's controller and rewards as experiments on NAS-Bench-201, and how well latency is measured on this machine."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import comb
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from niwaki.cost.count import count_macs
from niwaki.device.measure import ONE_THREAD, Protocol, Samples, in_turns
from niwaki.device.runtime_onnx import NAME, onnx_step, to_onnx
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.objective import Form, Objective, Product, measured
from niwaki.recipe import mnasnet
from niwaki.run.claims import Claim, Section, Table, Verdict
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.searching import searched
from niwaki.run.experiments.tunas import SIGNAL, benchmark
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import bootstrap, spearman
from niwaki.run.workers import Job, Workers
from niwaki.space.architecture import Architecture
from niwaki.store.files import atomic_write
from niwaki.strategy.lstm import Lstm
from niwaki.strategy.policy import softmaxes
from niwaki.zoo.nasbench import nasbench201

LAST = 100  # trials, whose mean reward is compared
ERRORS = 5.0  # standard errors above random search


@dataclass(frozen=True)
class Kind:
    """A controller: "lstm" (64 units, as published) or "softmaxes", and its learning rate."""

    controller: str
    lr: float

    @property
    def text(self) -> str:
        return f"{'LSTM' if self.controller == 'lstm' else 'independent softmaxes'}, lr {self.lr:g}"


KINDS = (*(Kind("lstm", lr) for lr in (3.5e-4, 3.5e-3, 0.01)), *(Kind("softmaxes", lr) for lr in (3.5e-4, 3.5e-3, 0.03)))


@dataclass(frozen=True)
class Plan:
    """What is searched and measured."""

    kinds: tuple[Kind, ...] = KINDS
    seeds: int = 10
    evaluations: int = 500
    timed: int = 20  # networks, in each of `passes` processes
    passes: int = 3
    timing: Protocol = ONE_THREAD
    minutes: str = "about 4 minutes on one core"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "minutes"}


QUICK = Plan((KINDS[1], KINDS[-1]), 2, 200, timed=3, passes=2, timing=Protocol(1, 2), minutes="a minute")


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    jobs = {kind: Job(f"search {kind.text}", run_searches, (kind, plan.seeds, plan.evaluations)) for kind in plan.kinds}
    with Workers(workers) as pool:
        found = pool.run(list(jobs.values()), folder, progress, f"{len(jobs)} kinds of controller")
    macs = benchmark().cost("macs").astype(float)
    target = float(np.median(macs))
    drift = []
    for name, form in (*((f"soft, w = {w}", Product(w, w)) for w in (-0.03, -0.07, -0.15)), ("hard, 0 and -1", mnasnet.HARD)):
        drift.append([name, float(macs[int(np.argmax(rewards_of(form, target)))] / target)])
    models = [folder.path / "models" / f"{number}.onnx" for number in range(plan.timed)]
    with Workers(1) as here:
        jobs_of = [Job(f"model {number}", write_network, (number, str(path))) for number, path in enumerate(models)]
        written = here.run(jobs_of, folder, progress, f"{plan.timed} networks to be timed")
    timed = []
    for number in range(plan.passes):
        # a process of its own for each, one after the other, with nothing of ours beside it
        with Workers(2) as pool:
            job = Job(f"timing {number}", time_networks, ([str(path) for path in models], plan.timing))
            timed.append(pool.run([job], folder, progress, f"timing {plan.timed} networks, pass {number + 1}")[job.name])
    return {
        "target": target,
        "drift": drift,
        "found": {kind.text: found[job.name] for kind, job in jobs.items()},
        "networks": [written[job.name] for job in jobs_of],
        "timed": timed,
    }


def write_network(number: int, path: str) -> dict[str, Any]:
    """A cell drawn from NAS-Bench-201, one cell a stage, as an ONNX file; its operations and multiply-adds."""
    network = nasbench201(cells=1)
    space = space_of(network)
    arch = space.sample_uniform(Random(f"timed/{number}"))
    torch.manual_seed(number)
    Path(path).parent.mkdir(exist_ok=True)
    atomic_write(path, to_onnx(build(network, arch), network.input_shape))
    return {"cell": dict(arch), "macs": count_macs(network)(arch)}


def time_networks(models: list[str], protocol: Protocol) -> list[dict[str, Any]]:
    """The samples of each model, with all raw figures; the first is the reference."""
    steps = {path: onnx_step(Path(path).read_bytes(), threads=protocol.threads) for path in models}
    return [samples.to_json() for samples in in_turns(steps, models[0], runtime=NAME, protocol=protocol).values()]


def objective_of(form: Form, target: float) -> Objective:
    return Objective("accuracy", form=form, toward=(measured("macs") <= target,))


def rewards_of(form: Form, target: float) -> np.ndarray:
    """(15,625,): the reward of every row."""
    table, objective = benchmark(), objective_of(form, target)
    rows = zip(table.column(SIGNAL).tolist(), table.cost("macs").tolist(), strict=True)
    return np.array([objective.reward({"accuracy": quality / 100, "macs": float(macs)}) for quality, macs in rows])


def run_searches(kind: Kind, seeds: int, evaluations: int) -> list[dict[str, float]]:
    """For each seed: means of the last rewards and of random search's, their standard error, the best of each, and how far off target that is."""
    table = benchmark()
    macs, quality = table.cost("macs").astype(float), table.column(SIGNAL) / 100
    target = float(np.median(macs))
    rewards, objective = rewards_of(mnasnet.SOFT, target), objective_of(mnasnet.SOFT, target)

    def metrics(arch: Architecture) -> dict[str, float]:
        place = table.place(arch)
        return {"accuracy": float(quality[place]), "macs": float(macs[place])}

    found = []
    for seed in range(seeds):
        controller = Lstm(64, seed=seed) if kind.controller == "lstm" else softmaxes
        strategy = mnasnet.controller(objective, lr=kind.lr, kind=controller)
        places = [table.place(trial.arch) for trial in searched(strategy, table.space, metrics, evaluations, seed).trials]
        gained, last = rewards[places], rewards[places[-LAST:]]
        drawn = np.random.default_rng(seed).integers(len(rewards), size=evaluations)
        error = float(np.sqrt(last.var(ddof=1) / LAST + rewards[drawn].var(ddof=1) / evaluations))
        found.append({
            "last": float(last.mean()), "random": float(rewards[drawn].mean()), "error": error,
            "best": float(gained.max()), "random_best": float(rewards[drawn].max()),
            "off": mnasnet.off_target(float(macs[places[int(np.argmax(gained))]]), target), "different": float(len(set(places))),
        })  # fmt: skip
    return found


def section_of(results: dict[str, Any]) -> Section:
    quick, found, seeds = results["quick"], results["found"], results["plan"]["seeds"]

    def verdict(holds: bool) -> Verdict:
        return "not decided (quick)" if quick else "holds" if holds else "does not hold"

    def errors(text: str) -> list[float]:
        return [(one["last"] - one["random"]) / one["error"] for one in found[text]]

    kinds = [Kind(**one) for one in results["plan"]["kinds"]]
    recurrent = [kind.text for kind in kinds if kind.controller == "lstm"][-1]
    independent = [kind.text for kind in kinds if kind.controller == "softmaxes"][-1]
    rows = []
    for kind in kinds:
        one, above = found[kind.text], errors(kind.text)
        last, random = (bootstrap([entry[key] for entry in one]) for key in ("last", "random"))
        wins = sum(entry["best"] >= entry["random_best"] for entry in one)
        rows.append((kind.text, f"{last.mean:.4f} [{last.low:.4f}, {last.high:.4f}]", f"{random.mean:.4f}", f"{min(above):.1f} to {max(above):.1f}",
                     f"{wins} of {len(one)}", f"{np.mean([entry['off'] for entry in one]):.0%}", f"{np.mean([entry['different'] for entry in one]):.0f}"))  # fmt: skip
    passes = [[Samples.from_json(one) for one in part] for part in results["timed"]]
    macs = [one["macs"] for one in results["networks"]]
    pairs = [(a, b) for a in range(len(passes)) for b in range(a)]
    again = [spearman([one.median_ms for one in passes[a]], [one.median_ms for one in passes[b]]) or 0.0 for a, b in pairs]
    ratios = [spearman([one.ratio for one in passes[a]], [one.ratio for one in passes[b]]) or 0.0 for a, b in pairs]
    by_macs = [spearman(macs, [one.median_ms for one in part]) or 0.0 for part in passes]
    moved = {
        "least CPU time": [[one.latency_ms for one in part] for part in passes],
        "median CPU time": [[one.median_ms for one in part] for part in passes],
        "median ratio to the reference": [[one.ratio for one in part] for part in passes],
        "median wall time": [[one.wall_quantiles()[1] for one in part] for part in passes],
    }
    timing = [
        (
            name,
            f"{100 * float(np.median(np.ptp(values, axis=0) / np.mean(values, axis=0))):.1f} %",
            f"{100 * float(np.max(np.ptp(values, axis=0) / np.mean(values, axis=0))):.1f} %",
        )
        for name, values in moved.items()
    ]
    first = passes[0][0]
    drift = dict(results["drift"])
    soft = [ratio for name, ratio in drift.items() if name.startswith("soft")]
    beats = {text: sum(e >= ERRORS for e in errors(text)) for text in (recurrent, independent)}
    best = {text: sum(one["best"] >= one["random_best"] for one in found[text]) for text in (recurrent, independent)}
    chances = ", ".join(f"{by_chance(count, seeds):.3f}" for count in best.values())
    return Section(
        "mnasnet",
        "MnasNet: controller and rewards",
        (
            f"NAS-Bench-201: accuracy is the validation accuracy after 12 epochs, multiply-adds stand for latency (the table's devices are for `niwaki reproduce multihardware`), the target is their median, "
            f"{results['target'] / 1e6:.1f} million. Reward accuracy * (macs / target)^-0.07; PPO with clip 0.2, 4 passes over batches of 20, entropy 1e-3; {results['plan']['evaluations']} evaluations, {seeds} seeds, random search "
            f"with as many draws beside each. The learning rate that suits 8,000 models hardly moves a controller in 500.",
        ),
        (
            Claim("The controller learns: its rewards exceed random search's", "8,000 models, 75.2 % top-1 [paper]",
                  "mean of the last 100 rewards at least 5 standard errors above random search's mean: " + "; ".join(f"{text}: {count} of {seeds} searches" for text, count in beats.items()),
                  "its mean reward, in the table below", verdict(all(count == seeds for count in beats.values()))),
            Claim("The best network that it samples is better than random search's best", "top 15 of 8,000 are trained in full [paper]",
                  "at least as good: " + "; ".join(f"{text}: {count} of {seeds}" for text, count in best.items()) + f" (as many or more by chance: {chances})", "best of as many draws", verdict(all(by_chance(count, seeds) < 0.05 for count in best.values()))),
            Claim("The soft reward does not aim at the target, the hard one does not exceed it", "A1 takes 78 ms where 75 were aimed at [release]",
                  "cost / target of the best reward in the table: " + ", ".join(f"{ratio:.2f} ({name})" for name, ratio in drift.items()), "not a search",
                  verdict(max(abs(ratio - 1) for ratio in soft) > 0.1 and drift["hard, 0 and -1"] <= 1)),
            Claim("Latency is measured on the device, and measured again it ranks networks alike", "Pixel 1, one thread [paper]",
                  f"{len(macs)} cells in {first.runtime}, {first.protocol.threads} thread, {first.protocol.warmup} rounds to warm up, {first.protocol.rounds} samples each; rank correlation of medians between {len(passes)} processes: "
                  f"{min(again):.3f} at least; of ratios to a reference in turns: {min(ratios):.3f}. With multiply-adds: {min(by_macs):.2f} to {max(by_macs):.2f}; all raw samples are in results.json", "not a search",
                  verdict(min(again) >= 0.9)),
            Claim("1.8 times as fast as MobileNetV2 at 0.5 points more", "75.2 % top-1, 78 ms on the Pixel 1 [release]", "needs ImageNet and the phone; the published networks are built to the parameter, and A1 to the paper's multiply-adds (`niwaki profile mnasnet-a1`)", "-", "not testable here"),
        ),
        (Table("Controllers", ("controller", f"mean of the last {LAST} rewards", "random search's mean", "standard errors above it", "best at least random's best", "best's cost off target", "different networks"), tuple(rows)),
         Table("Timing again in another process: (most - least) / mean of one network over the passes", ("figure", "median over networks", "largest"), tuple(timing)),),
        quick=quick,
    )  # fmt: skip


def by_chance(wins: int, of: int) -> float:
    """P(as many wins or more) if each comparison were a coin's toss: a sign test.

    >>> by_chance(8, 10)
    0.0546875
    """
    return sum(comb(of, n) for n in range(wins, of + 1)) / 2**of


EXPERIMENT = Experiment(("mnasnet",), lambda quick: QUICK if quick else Plan(), measure, section_of)
