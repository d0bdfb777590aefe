"""14. Adoption: reading a MobileNetV2 of 224 x 224 pixels, finding what changes together, and cutting it to half its multiply-adds, against
Torch-Pruning's dependency graph and step.

python benchmarks/adopt.py --torch-pruning PYTHON    (an interpreter that has torch and torch-pruning; niwaki does not depend on it)
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import harness
import torch

from niwaki.adoption.adopted import Adopted, read
from niwaki.adoption.counter import counted_macs
from niwaki.run.model import module_of

MODEL = Path(__file__).resolve().parents[1] / "tests" / "models" / "mobilenet_v2.py"
SHARE = 0.5  # of the multiply-adds: the budget
RATIO = 0.5  # of the channels: what Torch-Pruning is asked to remove where it is asked for half
TRIES = 20  # of Torch-Pruning, to meet the budget
PROMISED_SECONDS = 0.5  # Torch-Pruning's graph and step on the machine where niwaki was planned
PROMISED_ERROR = 0.02  # below the budget
WORKER = """
import importlib.util, json, sys, time, warnings
warnings.simplefilter("ignore")
import torch
import torch_pruning as tp
spec = importlib.util.spec_from_file_location("owner", sys.argv[1])
owner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(owner)
print(json.dumps({"version": tp.__version__}), flush=True)
for line in sys.stdin:
    size, ratio = json.loads(line)
    torch.manual_seed(0)
    model, example = owner.mobilenet_v2().eval(), torch.randn(1, 3, size, size)
    before, _ = tp.utils.count_ops_and_params(model, example)
    began = time.process_time()
    pruner = tp.pruner.MagnitudePruner(
        model, example, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=ratio, ignored_layers=[model.classifier[1]]
    )
    graph = time.process_time() - began
    pruner.step()
    seconds = time.process_time() - began
    after, params = tp.utils.count_ops_and_params(model, example)
    print(json.dumps({"seconds": seconds, "graph": graph, "share": after / before, "params": params}), flush=True)
"""


@contextmanager
def torch_pruning(python: str):
    """A process that prunes a MobileNetV2 as often as it is asked, and says how long that took; None where there is no interpreter for it."""
    if not python:
        yield None, "not measured"
        return
    command = [python, "-c", WORKER, str(MODEL)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        version = json.loads(process.stdout.readline())["version"]

        def prune(size: int, ratio: float) -> dict[str, float]:
            process.stdin.write(json.dumps([size, ratio]) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield prune, version
        process.stdin.close()


def magnitudes(adopted: Adopted) -> dict[str, torch.Tensor]:
    """For every group, how large the weights of each of its units are: the L2 norm over every weight that is cut with it, as Torch-Pruning's."""
    found = {group.name: torch.zeros(group.units) for group in adopted.groups}
    weights = dict(adopted.module.named_parameters())
    for name, axes in adopted.weights.items():
        if name not in weights:
            continue
        square = weights[name].detach().square()
        for dim, axis in enumerate(axes):
            if all(run.group is None for run in axis):
                continue
            sums = square.sum([other for other in range(square.ndim) if other != dim]) if square.ndim > 1 else square
            start = 0
            for run in axis:
                if run.group is not None:
                    found[run.group] += sums[start : start + run.length].reshape(run.outer, run.units, run.inner).sum((0, 2))
                start += run.length
    return found


def half(adopted: Adopted, importance: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The units to keep: of every group the same share, the largest within the budget, then one more of one group after the other while they fit."""
    units = {group.name: group.units for group in adopted.groups}
    budget = int(SHARE * adopted.cost("macs", units))

    def widths(share: float) -> dict[str, int]:
        return {name: max(1, int(share * count)) for name, count in units.items()}

    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if adopted.cost("macs", widths(middle)) <= budget else (low, middle)
    alive = widths(low)
    for name in alive:
        more = {**alive, name: alive[name] + 1}
        if more[name] <= units[name] and adopted.cost("macs", more) <= budget:
            alive = more
    return {name: importance[name].topk(count).indices.sort().values for name, count in alive.items()}


def ours(size: int) -> dict[str, float]:
    """CPU seconds of reading, choosing and cutting, and the share of multiply-adds that is left, counted on the module."""
    torch.manual_seed(0)
    model, example = module_of(str(MODEL)).mobilenet_v2().eval(), torch.randn(1, 3, size, size)
    began = time.process_time()
    adopted = read(model, example)
    graph = time.process_time() - began
    module = adopted.cut(half(adopted, magnitudes(adopted)))
    seconds = time.process_time() - began
    return {
        "seconds": seconds,
        "graph": graph,
        "share": counted_macs(module, example) / counted_macs(model, example),
        "params": sum(p.numel() for p in module.parameters()),
    }


def measure(prune: Callable[[int, float], dict[str, float]] | None, size: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Each of them in turns; the first round warms up and is left out."""
    found: dict[str, list[dict[str, float]]] = {"niwaki": [], "torch-pruning": []}
    for number in range(rounds + 1):
        harness.say(f"round {number} of {rounds}")
        row = {"niwaki": ours(size), **({"torch-pruning": prune(size, RATIO)} if prune is not None else {})}
        if number:
            for name, figures in row.items():
                found[name].append(figures)
    return found


def searched(prune: Callable[[int, float], dict[str, float]] | None, size: int) -> dict[str, float] | None:
    """Pruning again and again, the ratio halved in between, until what is left is at most the budget and within what is promised of it."""
    low, high, seconds = 0.0, 1.0, 0.0
    for tries in range(1, TRIES + 1) if prune is not None else ():
        ratio = (low + high) / 2
        found = prune(size, ratio)
        seconds += found["seconds"]
        error = found["share"] / SHARE - 1
        if -PROMISED_ERROR <= error <= 0:
            return {"tries": tries, "seconds": seconds, "ratio": ratio, "share": found["share"]}
        low, high = (ratio, high) if error > 0 else (low, ratio)
    return None


def main() -> None:
    given = harness.arguments(
        __doc__ or "",
        lambda parser: parser.add_argument("--torch-pruning", metavar="PYTHON", default="", help="an interpreter that has torch-pruning"),
        lambda parser: parser.add_argument("--rounds", type=int, default=15),
    )
    harness.on_one_thread()
    about = harness.machine(threads=1, seed=given.seed)
    size, rounds = (64, 2) if given.quick else (224, given.rounds)
    with torch_pruning(given.torch_pruning) as (prune, version):
        found = measure(prune, size, rounds)
        budget = searched(prune, size)
    harness.report(result(found, budget, size, rounds, version), about, quick=given.quick)


def result(
    found: dict[str, list[dict[str, float]]], budget: dict[str, float] | None, size: int, rounds: int, version: str
) -> harness.Result:
    seconds = {name: harness.Spread.of(row["seconds"] for row in rows) for name, rows in found.items() if rows}
    error = {name: rows[0]["share"] / SHARE - 1 for name, rows in found.items() if rows}
    theirs = seconds.get("torch-pruning")
    rows = []
    for name, each in found.items():
        if each:
            graph = harness.Spread.of(row["graph"] for row in each)
            rows.append(
                (name, seconds[name].text(unit=" s"), graph.text(unit=" s"), f"{each[0]['share']:.1%}", f"{error[name]:+.1%}", f"{each[0]['params']:,.0f}")
            )  # fmt: skip
    claims = [
        harness.Claim(
            f"reading, grouping and cutting a MobileNetV2 ({size} x {size}), CPU time",
            f"less than Torch-Pruning's graph and step ({PROMISED_SECONDS} s where it was planned)",
            seconds["niwaki"].text(unit=" s") + (f"; Torch-Pruning {version}: {theirs.text(unit=' s')}" if theirs else ""),
            seconds["niwaki"].median < theirs.median if theirs else None,
        ),
        harness.Claim(
            f"multiply-adds that are left, against a budget of {SHARE:.0%}",
            f"at most {PROMISED_ERROR:.0%} below",
            f"{error['niwaki']:+.2%}" + (f"; Torch-Pruning at ratio {RATIO}: {error['torch-pruning']:+.1%}" if theirs else ""),
            -PROMISED_ERROR <= error["niwaki"] <= 0,
        ),
    ]
    columns = ("", "graph, groups and cut", "of it: graph and groups", "multiply-adds left", "error to the budget", "parameters left")
    return harness.Result(
        name="adopt",
        title="14. Adoption against Torch-Pruning's dependency graph",
        command="python benchmarks/adopt.py --torch-pruning PYTHON",
        claims=tuple(claims),
        tables=(harness.Table("Both remove the units with the smallest L2 norm, in one process each, in turns", columns, tuple(rows)),),
        notes=(
            f"{rounds} rounds after one to warm up; the median with quartiles. Reading follows every call of the model twice, on tensors without numbers.",
            "Torch-Pruning takes a share of the channels, not a budget"
            + (
                f"; pruning again and again met it after {budget['tries']} tries, {budget['seconds']:.2f} s of CPU time." if budget else "."
            ),
        ),
        figures={**found, "searched": budget},
    )


if __name__ == "__main__":
    main()
