"""One network for several devices that are here: one processor used in three ways. It makes the table of digits networks on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from niwaki.cost.count import count_macs
from niwaki.device.measure import Protocol, in_turns
from niwaki.device.runtime_onnx import NAME, dynamic_int8, onnx_step, traced_onnx
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.recipe.tunas import BETA
from niwaki.run.claims import Claim, Section, Table
from niwaki.run.experiments.digits_networks import FILE, SPACE, TRAINING, members, network, train_member
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.verdicts import at_least, at_most, claim, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import Interval, bootstrap_of, spearman
from niwaki.run.workers import Job, Workers

MODES = ("one thread", "two threads", "int8")  # of ONNX Runtime: float32, float32, and dynamically quantised on one thread
COLUMNS = {"one thread": "latency_one_thread_ms", "two threads": "latency_two_threads_ms", "int8": "latency_int8_ms"}
BATCH = 8  # images in a run: of one image half the time is that of the call
ALIKE = 0.9  # rank correlation of two measurements
LOSS = 1.5  # points of accuracy that serving all may cost
RESAMPLES = 1000
REFERENCES = (0.25, 0.5, 0.75)  # quantiles of the latencies: the reference network is the one nearest to all three there
DECIDES = 0.5
WORST, TEST = len(MODES), len(MODES) + 1  # columns of what picks come to
EVERY_NETWORK = "none: every network of the space is looked at"


@dataclass(frozen=True)
class Plan:
    """What is trained and timed. networks: the first so many, in a fixed random order. chunk: networks that are timed in turns."""

    networks: int = 216
    epochs: int = TRAINING.epochs
    seeds: int = 2
    passes: int = 2
    warmup: int = 10
    rounds: int = 30
    least_ms: float = 0.5  # of a sample; short, so that on a busy machine some of them are not disturbed
    chunk: int = 24
    minutes: str = "about 13 minutes on one core"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "minutes"}

    @property
    def numbers(self) -> list[int]:
        """The networks' numbers, ascending."""
        return sorted(np.random.default_rng(0).permutation(len(members()))[: self.networks].tolist())


QUICK = replace(Plan(), networks=5, epochs=1, warmup=1, rounds=2, chunk=3, minutes="half a minute")


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    """Accuracies and all samples of all latencies; the table is written beside them."""
    numbers, recipe = plan.numbers, replace(TRAINING, epochs=plan.epochs)
    trainings = {
        (number, seed): Job(f"training {number} {seed}", train_member, (number, seed, recipe))
        for seed in range(plan.seeds)
        for number in numbers
    }
    with Workers(workers) as pool:
        trained = pool.run(list(trainings.values()), folder, progress, f"{len(trainings)} trainings of {len(numbers)} networks")
    chunks = [numbers[at : at + plan.chunk] for at in range(0, len(numbers), plan.chunk)]
    timings = [
        [Job(f"timing {number} {at}", time_networks, (chunk, plan)) for at, chunk in enumerate(chunks)] for number in range(plan.passes)
    ]
    with Workers(1) as here:  # one after the other, with nothing of ours beside it
        jobs = [job for of_pass in timings for job in of_pass]
        timed = here.run(jobs, folder, progress, f"timing {len(numbers)} networks in {len(MODES)} ways, {plan.passes} times")
    results = {
        "numbers": numbers,
        "trained": [[trained[trainings[number, seed].name] for number in numbers] for seed in range(plan.seeds)],
        "timed": [{mode: [row for job in of_pass for row in timed[job.name][mode]] for mode in MODES} for of_pass in timings],
    }
    np.savez_compressed(folder.path / FILE.name, **arrays_of(results))  # type: ignore[arg-type]
    return results


def time_networks(numbers: Sequence[int], plan: Plan) -> dict[str, list[list[float]]]:
    """Mode -> for each network the milliseconds of a run of BATCH images in each round: CPU time, or wall time where two threads are used."""
    models = {number: traced_onnx(build(network(), members()[number], seed=0), network().input_shape, batch=BATCH) for number in numbers}
    reference = str(numbers[0])
    found = {}
    for mode in MODES:
        protocol = Protocol(plan.warmup, plan.rounds, plan.least_ms, threads=2 if mode == "two threads" else 1)
        steps = {
            str(number): onnx_step(dynamic_int8(content) if mode == "int8" else content, threads=protocol.threads)
            for number, content in models.items()
        }
        samples = in_turns(steps, reference, runtime=NAME, protocol=protocol)
        clock = "cpu_ms" if protocol.threads == 1 else "wall_ms"
        found[mode] = [[round(value, 6) for value in getattr(samples[str(number)], clock)] for number in numbers]
    return found


def arrays_of(results: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The table as its file has it: options by number, and a column for each figure."""
    space = space_of(network())
    found = {"arch": np.array(space.indices(members()[number] for number in results["numbers"]), dtype=np.int8)}
    for part in ("validation", "test"):
        each = np.array([[one[part] for one in of_seed] for of_seed in results["trained"]])
        found[f"{part}_accuracy"] = each.mean(axis=0).round(4)
        found |= {f"{part}_accuracy_seed{seed}": row.round(4) for seed, row in enumerate(each)}
    found["training_seconds"] = np.mean([[one["seconds"] for one in of_seed] for of_seed in results["trained"]], axis=0).round(4)
    samples = samples_of(results)
    found |= {column: samples[:, at].min(axis=(0, 2)).round(6) for at, column in enumerate(COLUMNS.values())}
    return found


# --- picks ------------------------------------------------------------------------------------------------------------------------


def samples_of(results: Mapping[str, Any]) -> np.ndarray:
    """(passes, modes, networks, rounds), milliseconds."""
    return np.array([[one[mode] for mode in MODES] for one in results["timed"]])


def reference_of(latency: np.ndarray, quantile: float) -> int:
    """The place of the network that is nearest to this quantile in all modes. latency: (modes, networks)."""
    middle = np.quantile(latency, quantile, axis=1, keepdims=True)
    return int(np.argmin(np.abs(np.log(latency / middle)).max(axis=0)))


def picks(accuracy: np.ndarray, latency: np.ndarray, reference: int) -> dict[str, int]:
    """The places of what is picked of all networks for the mean and the worst over the modes, and for each mode alone: the largest
    accuracy + beta * |ratio - 1|, as `multihardware.pick` has it (the absolute reward), here for all networks at once.

    accuracy: (networks,), from 0 to 1. latency: (modes, networks), what the pick sees. Targets are the reference's.
    """
    ratios = latency / latency[:, [reference]]
    aims = {"mean": ratios.mean(axis=0), "worst": ratios.max(axis=0), **dict(zip(MODES, ratios, strict=True))}
    return {name: int(np.argmax(accuracy + BETA * np.abs(aim - 1))) for name, aim in aims.items()}


def outcomes(results: Mapping[str, Any], quantile: float, resamples: int = RESAMPLES) -> dict[str, np.ndarray]:
    """Pick -> (2 + resamples, modes + 2): its ratios in the modes, their largest, and its test accuracy in %.

    What is picked by one pass is judged by the other, so that no pick is judged by the noise it was made by: both ways first, as measured,
    then with the rounds of both passes resampled, in turns one way and the other.
    """
    samples, table = samples_of(results), arrays_of(results)
    accuracy, test = table["validation_accuracy"] / 100, table["test_accuracy"]
    reference = reference_of(samples.min(axis=(0, 3)), quantile)
    rng, rounds = np.random.default_rng(0), samples.shape[3]
    found: dict[str, list[list[float]]] = {}
    for number in range(2 + resamples):
        by, judge = (0, 1) if number % 2 == 0 else (1, 0)
        rows = [np.arange(rounds) if number < 2 else rng.integers(rounds, size=rounds) for _ in range(2)]
        seen, there = samples[by][:, :, rows[0]].min(axis=2), samples[judge][:, :, rows[1]].min(axis=2)
        ratios = there / there[:, [reference]]
        for name, at in picks(accuracy, seen, reference).items():
            found.setdefault(name, []).append([*ratios[:, at].tolist(), float(ratios[:, at].max()), float(test[at])])
    return {name: np.array(rows) for name, rows in found.items()}


def interval(values: np.ndarray) -> Interval:
    """As measured, the mean both ways; and the percentiles of the resamples."""
    low, high = np.quantile(values[2:], (0.025, 0.975)) if len(values) > 2 else (values.min(), values.max())
    return Interval(float(values[:2].mean()), float(low), float(high))


# --- what it says -----------------------------------------------------------------------------------------------------------------


def section_of(results: dict[str, Any]) -> Section:
    found = {quantile: outcomes(results, quantile) for quantile in REFERENCES}
    claims = (_measured_again(results), _worst_case(found[DECIDES]), _accuracy(found[DECIDES]), _several(found))
    tables = (_picks(found), _modes(results))
    title = "Multi-hardware search on one processor used in three ways"
    return section("multihardware_hosts", title, results, _about(results), claims, tables)


def _measured_again(results: dict[str, Any]) -> Claim:
    passes = samples_of(results).min(axis=3)  # (passes, modes, networks)
    agree = {mode: _alike(passes[0, at], passes[1, at]) for at, mode in enumerate(MODES)}
    apart = {mode: np.median(np.abs(np.log(passes[0, at] / passes[1, at]))) for at, mode in enumerate(MODES)}
    return claim(
        f"Measured again, the networks rank alike in each mode: Spearman at least {ALIKE}, each whole interval (the bar is ours)",
        "-",
        "Spearman of two passes: "
        + ", ".join(f"{mode} {one.text()} (half of the networks within {100 * apart[mode]:.1f} %)" for mode, one in agree.items()),
        "not a search",
        all(at_least(one, ALIKE) for one in agree.values()),
    )


def _alike(first: np.ndarray, second: np.ndarray) -> Interval:
    return bootstrap_of(lambda places: spearman(first[places], second[places]) or 0.0, len(first))


def _worst_case(found: dict[str, np.ndarray]) -> Claim:
    gaps = {mode: interval(found["worst"][:, WORST] - found[mode][:, WORST]) for mode in MODES}
    return claim(
        "The worst ratio of the network picked for all modes is no worse than that of any picked for one: no interval of the difference above 0",
        "state of the art in the worst case [abstract]",
        f"worst ratio {interval(found['worst'][:, WORST]).text()}, less that of the pick for "
        + "; ".join(f"{mode}: {one.text(sign=True)}" for mode, one in gaps.items()),
        EVERY_NETWORK,
        all(at_most(one, 0) for one in gaps.values()),
    )


def _accuracy(found: dict[str, np.ndarray]) -> Claim:
    best = max(MODES, key=lambda mode: float(found[mode][:2, TEST].mean()))
    loss = interval(found[best][:, TEST] - found["worst"][:, TEST])
    return claim(
        f"Serving all modes costs at most {LOSS} points of accuracy: the whole interval (the bar is ours)",
        "similar to or better than networks for one device [abstract]",
        f"the best pick for one mode ({best}, {interval(found[best][:, TEST]).text()} %) less that for all: {loss.text(sign=True)} points",
        EVERY_NETWORK,
        at_most(loss, LOSS),
    )


def _several(found: dict[float, dict[str, np.ndarray]]) -> Claim:
    over = {quantile: interval(picked["mean"][:, WORST] - picked["worst"][:, WORST]) for quantile, picked in found.items()}
    return claim(
        "Picked for the worst case the worst ratio is no larger than picked for the mean, at all three references: no interval above 0",
        "-",
        "worst ratio of Multi-MAX less that of Multi-AVG: "
        + "; ".join(f"{_named(quantile)} {_negative(one).text(sign=True)}" for quantile, one in over.items()),
        EVERY_NETWORK,
        all(at_most(_negative(one), 0) for one in over.values()),
    )


def _negative(one: Interval) -> Interval:
    return Interval(-one.mean, -one.high, -one.low)


def _named(quantile: float) -> str:
    return {0.25: "a small reference", 0.5: "a middle one", 0.75: "a large one"}[quantile]


def _about(results: dict[str, Any]) -> tuple[str, ...]:
    table, plan = arrays_of(results), results["plan"]
    seconds, apart = table["training_seconds"], np.abs(table["test_accuracy_seed0"] - table["test_accuracy_seed1"])
    middle = reference_of(samples_of(results).min(axis=(0, 3)), DECIDES)
    targets = ", ".join(f"{mode} {1000 * table[column][middle]:.0f} us" for mode, column in COLUMNS.items())
    return (
        f"{len(seconds)} networks for scikit-learn's digits (`{SPACE}` in the zoo: plain convolutions, inverted residuals and depthwise "
        f"convolutions of several widths and depths), each trained with {plan['seeds']} seeds for {plan['epochs']} epochs, {seconds.mean():.2f} s of "
        f"CPU each; picks see the validation accuracy, the mean over seeds, and what is reported is test accuracy. Two trainings of a network "
        f"are {np.median(apart):.1f} points apart (median), which the intervals, over repeats of the timing, do not contain.",
        f"**Timing.** {NAME}, a batch of {BATCH} images: one thread and two threads in float32, and one thread with dynamically quantised 8 bits "
        f"(timed only: the accuracy is that of float32). In turns with a reference, {plan['rounds']} rounds of samples of {plan['least_ms']} ms in each of "
        f"{plan['passes']} passes, minutes apart, on a machine that does other things; a latency is the least CPU time of a round, with two threads the least wall time. "
        "What is picked by one pass is judged by the other, both ways; intervals (95 %) are over resampled rounds, with every pick made anew.",
        f"**Picks** have the best absolute reward, beta {BETA}, of all networks. The targets are a reference network's, the nearest to a quantile of the "
        f"latencies in all modes; the one at the median ({targets}) decides. The table of these networks comes with the package: "
        f"`niwaki bench src/niwaki/run/experiments/{FILE.name} --space {SPACE} --objective validation_accuracy`.",
    )


def _picks(found: dict[float, dict[str, np.ndarray]]) -> Table:
    rows = []
    for quantile, picked in found.items():
        for name, values in picked.items():
            label = {"mean": "all, Multi-AVG", "worst": "all, Multi-MAX"}.get(name, f"{name} alone")
            each = (f"{value:.2f}" for value in values[:2, :WORST].mean(axis=0))
            rows.append((_named(quantile), label, *each, interval(values[:, WORST]).text(), interval(values[:, TEST]).text()))
    return Table(
        "Ratios to the targets, in the pass that did not pick",
        ("targets of", "picked for", *MODES, "worst ratio", "test accuracy"),
        tuple(rows),
    )


def _modes(results: dict[str, Any]) -> Table:
    """How far apart the modes are: a pick for one can only be poor for another where they disagree."""
    table = arrays_of(results)
    macs = np.array([count_macs(network())(members()[number]) for number in results["numbers"]])
    figures = {mode: table[column] for mode, column in COLUMNS.items()} | {
        "multiply-adds": macs,
        "validation accuracy": table["validation_accuracy"],
    }
    rows = [(name, *(f"{spearman(column, figures[mode]) or 0.0:.2f}" for mode in MODES)) for name, column in figures.items()]
    least, most = ([f"{1000 * at(table[column]):.0f} us" for column in COLUMNS.values()] for at in (np.min, np.max))
    return Table("Spearman between latencies, and their range", ("", *MODES), (*rows, ("least", *least), ("most", *most)))


EXPERIMENT = Experiment(
    ("multihardware_hosts", "multihardware-hosts", "digits-table"), lambda quick: QUICK if quick else Plan(), measure, section_of
)
