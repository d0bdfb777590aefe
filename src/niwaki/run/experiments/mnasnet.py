"""MnasNet's controller and rewards as experiments on NAS-Bench-201, and how well latency is measured on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
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
from niwaki.run.claims import Claim, Section, Table
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import SIGNAL, benchmark, searched
from niwaki.run.experiments.verdicts import at_least, claim, not_testable, section, sign_test
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import bootstrap, bootstrap_of, spearman
from niwaki.run.workers import Job, Workers
from niwaki.space.architecture import Architecture
from niwaki.store.files import atomic_write
from niwaki.strategy.lstm import Lstm
from niwaki.strategy.policy import softmaxes
from niwaki.zoo.nasbench import nasbench201

LAST = 100  # trials, whose mean reward is compared
ERRORS = 5.0  # standard errors above random search
ALIKE = 0.9  # rank correlation of two measurements


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
    macs = benchmark("nasbench201").cost("macs").astype(float)
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
    table, objective = benchmark("nasbench201"), objective_of(form, target)
    rows = zip(table.column(SIGNAL).tolist(), table.cost("macs").tolist(), strict=True)
    return np.array([objective.reward({"accuracy": quality / 100, "macs": float(macs)}) for quality, macs in rows])


def run_searches(kind: Kind, seeds: int, evaluations: int) -> list[dict[str, float]]:
    """For each seed: means of the last rewards and of random search's, their standard error, the best of each, and how far off target that is."""
    table = benchmark("nasbench201")
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
        trials, _ = searched(strategy, table.space, metrics, evaluations, seed, batch=strategy.batch_size)
        places = [table.place(trial.arch) for trial in trials]
        gained, last = rewards[places], rewards[places[-LAST:]]
        drawn = np.random.default_rng(seed).integers(len(rewards), size=evaluations)
        error = float(np.sqrt(last.var(ddof=1) / LAST + rewards[drawn].var(ddof=1) / evaluations))
        found.append({
            "last": float(last.mean()), "random": float(rewards[drawn].mean()), "error": error,
            "best": float(gained.max()), "random_best": float(rewards[drawn].max()),
            "off": mnasnet.off_target(float(macs[places[int(np.argmax(gained))]]), target), "different": float(len(set(places))),
        })  # fmt: skip
    return found


# --- what it says -----------------------------------------------------------------------------------------------------------------


def section_of(results: dict[str, Any]) -> Section:
    claims = (
        _learns(results),
        _best(results),
        _rewards(dict(results["drift"])),
        _timed_again(results),
        not_testable(
            "1.8 times as fast as MobileNetV2 at 0.5 points more",
            "75.2 % top-1, 78 ms on the Pixel 1 [release]",
            "needs ImageNet and the phone; the published networks are built to the parameter, and A1 to the paper's multiply-adds "
            "(`niwaki profile mnasnet-a1`)",
        ),
    )
    return section(
        "mnasnet", "MnasNet: controller and rewards", results, (_about(results),), claims, (_controllers(results), _moved(results))
    )


def _kinds(results: dict[str, Any]) -> list[Kind]:
    return [Kind(**one) for one in results["plan"]["kinds"]]


def _fastest(results: dict[str, Any]) -> list[str]:
    """Of each controller the one with the largest learning rate, which claims are about."""
    return [[kind.text for kind in _kinds(results) if kind.controller == controller][-1] for controller in ("lstm", "softmaxes")]


def _errors(found: list[dict[str, float]]) -> list[float]:
    return [(one["last"] - one["random"]) / one["error"] for one in found]


def _better(found: list[dict[str, float]]) -> tuple[int, int]:
    """Seeds in which its best is better than random search's, and worse; what is even is neither."""
    apart = [one["best"] - one["random_best"] for one in found]
    return sum(one > 0 for one in apart), sum(one < 0 for one in apart)


def _learns(results: dict[str, Any]) -> Claim:
    beats = {text: [error >= ERRORS for error in _errors(results["found"][text])] for text in _fastest(results)}
    return claim(
        f"The controller learns: in every search the mean of its last {LAST} rewards is at least {ERRORS:g} standard errors above random "
        "search's",
        "8,000 models, 75.2 % top-1 [paper]",
        "; ".join(f"{text}: {sum(each)} of {len(each)} searches" for text, each in beats.items()),
        "its mean reward, in the table below",
        all(all(each) for each in beats.values()),
    )


def _best(results: dict[str, Any]) -> Claim:
    counts = {text: _better(results["found"][text]) for text in _fastest(results)}
    return claim(
        "The best network that it samples is better than random search's best: sign test over seeds, p < 0.05",
        "top 15 of 8,000 are trained in full [paper]",
        "; ".join(
            f"{text}: better in {wins}, worse in {losses} (p = {sign_test(wins, losses):.2g})" for text, (wins, losses) in counts.items()
        ),
        "best of as many draws",
        all(sign_test(*each) < 0.05 for each in counts.values()),
    )


def _rewards(drift: dict[str, float]) -> Claim:
    soft = [ratio for name, ratio in drift.items() if name.startswith("soft")]
    return claim(
        "The soft reward does not aim at the target (more than 10 % off it at one exponent at least), the hard one does not exceed it",
        "A1 takes 78 ms where 75 were aimed at [release]",
        "cost / target of the best reward in the table: " + ", ".join(f"{ratio:.2f} ({name})" for name, ratio in drift.items()),
        "not a search: all networks listed",
        max(abs(ratio - 1) for ratio in soft) > 0.1 and drift["hard, 0 and -1"] <= 1,
    )


def _passes(results: dict[str, Any]) -> list[list[Samples]]:
    return [[Samples.from_json(one) for one in part] for part in results["timed"]]


def _timed_again(results: dict[str, Any]) -> Claim:
    passes = _passes(results)
    medians = np.array([[one.median_ms for one in part] for part in passes])  # (passes, networks)
    ratios = np.array([[one.ratio for one in part] for part in passes])
    again, by_ratio = (bootstrap_of(partial(_least_agreement, values), values.shape[1]) for values in (medians, ratios))
    macs = [spearman([one["macs"] for one in results["networks"]], part) or 0.0 for part in medians]
    first = passes[0][0]
    return claim(
        f"Latency is measured on the device, and measured again it ranks networks alike: rank correlation at least {ALIKE}, the whole "
        "interval",
        "Pixel 1, one thread [paper]",
        f"{medians.shape[1]} cells in {first.runtime}, {first.protocol.threads} thread, {first.protocol.warmup} rounds to warm up, "
        f"{first.protocol.rounds} samples each; least rank correlation of medians between {len(passes)} processes (interval over cells): "
        f"{again.text(3)}; of ratios to a reference in turns: {by_ratio.text(3)}. With multiply-adds: {min(macs):.2f} to "
        f"{max(macs):.2f}; all raw "
        "samples are in results.json",
        "not a search",
        at_least(again, ALIKE),
    )


def _least_agreement(values: np.ndarray, places: np.ndarray) -> float:
    """Of (passes, networks): the least rank correlation of two passes, over the networks at `places`."""
    return min(spearman(a[places], b[places]) or 0.0 for a, b in combinations(values, 2))


def _about(results: dict[str, Any]) -> str:
    plan = results["plan"]
    return (
        "NAS-Bench-201: accuracy is the validation accuracy after 12 epochs, multiply-adds stand for latency (the table's devices are for "
        f"`niwaki reproduce multihardware`), the target is their median, {results['target'] / 1e6:.1f} million. Reward accuracy * (macs / "
        f"target)^-0.07; PPO with clip 0.2, 4 passes over batches of 20, entropy 1e-3; {plan['evaluations']} evaluations, "
        f"{plan['seeds']} seeds, "
        "random search with as many draws beside each. The learning rate that suits 8,000 models hardly moves a controller in 500. "
        "Claims are "
        "about the largest learning rate of each controller: it was picked while looking at these same seeds, so the figures flatter both."
    )


def _controllers(results: dict[str, Any]) -> Table:
    rows = []
    for text in (kind.text for kind in _kinds(results)):
        one, above = results["found"][text], _errors(results["found"][text])
        wins, losses = _better(one)
        rows.append((
            text, bootstrap([entry["last"] for entry in one]).text(4), f"{np.mean([entry['random'] for entry in one]):.4f}",
            f"{min(above):.1f} to {max(above):.1f}", f"{wins} better, {losses} worse of {len(one)}",
            f"{np.mean([entry['off'] for entry in one]):.0%}", f"{np.mean([entry['different'] for entry in one]):.0f}",
        ))  # fmt: skip
    columns = (
        "controller", f"mean of the last {LAST} rewards", "random search's mean", "standard errors above it", "best against random's best",
        "best's cost off target", "different networks",
    )  # fmt: skip
    return Table("Controllers", columns, tuple(rows))


def _moved(results: dict[str, Any]) -> Table:
    passes = _passes(results)
    figures: dict[str, Callable[[Samples], float]] = {
        "least CPU time": lambda one: one.latency_ms,
        "median CPU time": lambda one: one.median_ms,
        "median ratio to the reference": lambda one: one.ratio,
        "median wall time": lambda one: one.wall_quantiles()[1],
    }
    rows = []
    for name, figure in figures.items():
        values = np.array([[figure(one) for one in part] for part in passes])
        moved = np.ptp(values, axis=0) / values.mean(axis=0)
        rows.append((name, f"{100 * np.median(moved):.1f} %", f"{100 * np.max(moved):.1f} %"))
    title = "Timing again in another process: (most - least) / mean of one network over the passes"
    return Table(title, ("figure", "median over networks", "largest"), tuple(rows))


EXPERIMENT = Experiment(("mnasnet",), lambda quick: QUICK if quick else Plan(), measure, section_of)
