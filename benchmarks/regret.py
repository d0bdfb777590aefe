"""Search methods on NAS-Bench-201, as `niwaki bench` compares them: the drawing in docs/regret.svg, and whether it comes out again.

python benchmarks/regret.py                      compares, keeps results/regret.json and docs/regret.svg
python benchmarks/regret.py --check              runs a part of it again, and fails where it lies outside the interval of what is kept
python benchmarks/regret.py --check --seeds 50 --strategies default,evolution,local-search
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, RESULTS, Claim, Result, Table, arguments, machine, on_one_thread, report, say

from niwaki.run.bench import bench, code_hash
from niwaki.store.files import atomic_write

OBJECTIVE = "cifar10_test_acc_200ep"
STRATEGIES = ("default", "optuna-tpe", "local-search", "evolution")
QUICK_TO_RUN = ("local-search", "evolution")  # and random search, parameters and multiply-adds alone: some seconds for 50 seeds
SEEDS, EVALUATIONS = 50, 200
COUNTS = (10, 20, 50, 100, 150, 200)
RESAMPLES, CHANCE = 20_000, 1e-3  # that a figure lies outside its interval, though nothing is wrong: of each, so of all about 3 %
ROUNDED = 1e-6  # what is kept
PLOT = HERE.parent / "docs" / "regret.svg"


def main() -> int:
    given = arguments(__doc__.splitlines()[0], _options)
    on_one_thread()
    table = Path(given.shared) / "data" / "nasbench201" / "nasbench201_cifar10.npz"
    if not table.is_file():
        raise SystemExit(f"there is no {table}; give the folder above data/ with --shared")
    if given.check:
        return _check(table, given.strategies.split(",") if given.strategies else list(QUICK_TO_RUN), given.seeds or SEEDS)
    about = machine(threads=1, seed=given.seed)
    seeds, evaluations = (3, 20) if given.quick else (given.seeds or SEEDS, EVALUATIONS)
    strategies = given.strategies.split(",") if given.strategies else list(STRATEGIES)
    out = HERE / "work" / ("regret-quick" if given.quick else f"regret-{code_hash()}")  # searches of other code are not mixed in
    bench([table], objectives=[OBJECTIVE], strategies=strategies, evaluations=evaluations, seeds=seeds, out=out, fresh=given.quick)
    results = json.loads((out / "results.json").read_text())
    report(_result(results, curves(out), seeds), about, quick=given.quick)
    if not given.quick:
        atomic_write(PLOT, (out / "regret.svg").read_text())
        say(f"the drawing is {PLOT.relative_to(HERE.parent)}")
    return 0


def _options(parser: ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="run a part again and compare it with what is kept")
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--strategies", default="", help="NAME,NAME")
    parser.add_argument(
        "--shared", default=os.environ.get("NIWAKI_SHARED", str(HERE.parent.parent / "shared")), help="the folder above data/"
    )


def curves(folder: Path) -> dict[str, np.ndarray]:
    """contestant -> (seeds, evaluations): the regret of every search in a folder of `niwaki bench`."""
    from niwaki.run.folder import Folder

    opened = Folder(folder)
    try:
        contest = opened.store.fact("contest")
        return {
            name: np.array([opened.store.fact(f"result {key}/{seed}")["regret"] for seed in range(contest["seeds"])])
            for name, key in contest["contestants"].items()
        }
    finally:
        opened.close()


def outside(kept: Mapping[str, Mapping[str, Sequence[float]]], found: Mapping[str, np.ndarray]) -> list[str]:
    """Where means of `found`, contestant -> (seeds, evaluations), lie outside the interval for the mean of so many of the seeds that are kept.

    kept: contestant -> number of evaluations -> the regret of each seed. One more seed is thought of, that stopped at the worst regret of the
    count before: where all that are kept have found the best, the next need not.
    """
    wrong = []
    for name, regrets in found.items():
        before: list[float] = []
        for at, values in kept[name].items():
            if int(at) > regrets.shape[1]:
                continue
            known = np.array([*values, *before])
            before = [max(values)]
            picked = np.random.default_rng(int(at)).integers(len(known), size=(RESAMPLES, len(regrets)))
            low, high = np.quantile(known[picked].mean(axis=1), (CHANCE / 2, 1 - CHANCE / 2))
            mean = regrets[:, int(at) - 1].mean()
            if not low - ROUNDED <= mean <= high + ROUNDED:
                wrong.append(f"{name} after {at} evaluations: {mean:.4f}, outside {low:.4f} to {high:.4f}")
    return wrong


def _check(table: Path, strategies: list[str], seeds: int) -> int:
    stored = json.loads((RESULTS / "regret.json").read_text())
    kept, evaluations = stored["figures"]["regret_of_each_seed"], stored["figures"]["evaluations"]
    with tempfile.TemporaryDirectory() as folder:
        asked = [name for name in strategies if name in kept]
        bench([table], objectives=[OBJECTIVE], strategies=asked, evaluations=evaluations, seeds=seeds, out=Path(folder) / "run")
        found = curves(Path(folder) / "run")
    wrong = outside(kept, found)
    for line in wrong:
        say(line)
    say(f"{', '.join(found)} with {seeds} seeds: {'outside the interval' if wrong else 'within the intervals of results/regret.json'}")
    return 1 if wrong else 0


def _result(results: Mapping[str, Any], found: Mapping[str, np.ndarray], seeds: int) -> Result:
    facts, strategies, comparison = results["facts"], results["strategies"], results["comparison"]
    last = facts["evaluations"]
    counts = [at for at in COUNTS if at <= last]
    rows = []
    for name in comparison["order"]:
        one = strategies[name]
        cells = [f"{one['regret'][str(at)]['mean']:.4f} ± {one['regret'][str(at)]['sem']:.4f}" for at in counts]
        area = one["area"]
        rows.append((
            name, *cells, f"{area['mean']:.3f} ({area['low']:.3f} to {area['high']:.3f})", f"{comparison['ranks']['area'][name]:.2f}",
            f"{one['cpu_ms_per_evaluation']:.2f}",
        ))  # fmt: skip
    exact = facts["random_exact"]
    rows.append(("random, closed form", *(f"{exact[at - 1]:.4f}" for at in counts), "", "", ""))
    apart = [
        abs(strategies["random"]["regret"][str(at)]["mean"] - exact[at - 1]) / strategies["random"]["regret"][str(at)]["sem"]
        for at in counts
    ]
    claims = [
        Claim(
            "random search, simulated, is random search in closed form",
            "within 3.5 standard errors",
            f"at most {max(apart):.1f}",
            max(apart) < 3.5,
        )
    ]
    if "default" in strategies:
        against = strategies["default"]["against_random"]
        claims.append(
            Claim(
                f"`default` beats exact random search in the area under log regret over {seeds} seeds",
                "95 % interval of the difference below 0",
                f"{against['mean']:.3f} ({against['low']:.3f} to {against['high']:.3f})",
                against["high"] < 0,
            )
        )
    table = Table(
        "Mean regret in points of accuracy after so many evaluations",
        ("strategy", *map(str, counts), "area", "rank", "CPU ms"),
        tuple(rows),
    )
    notes = (
        f"{seeds} seeds. Area: mean log10 regret over log evaluations, with its 95 % interval; rank: mean over seeds, by area; CPU ms: of the search itself, "
        "for each evaluation. `params` and `macs` try the largest networks first, and know nothing else: on this table that is hard to beat.",
        "`python benchmarks/regret.py --check` runs a part again and fails where it lies outside the interval.",
    )
    figures = {
        "seeds": seeds,
        "evaluations": last,
        "regret_of_each_seed": {
            name: {str(at): np.round(regrets[:, at - 1], 6).tolist() for at in counts} for name, regrets in found.items()
        },
        "random_exact": {str(at): exact[at - 1] for at in counts},
        "code": results["run"]["code"],
    }
    command = "python benchmarks/regret.py"
    return Result("regret", "10. Search methods on NAS-Bench-201", command, tuple(claims), (table,), notes, figures)


if __name__ == "__main__":
    sys.exit(main())
