"""Search methods on NAS-Bench-201, as `niwaki bench` compares them: the drawing in docs/regret.svg, and whether it comes out again.

python benchmarks/regret.py                      compares, keeps results/regret.json and docs/regret.svg
python benchmarks/regret.py --check              runs a part of it again, and fails where it lies outside the interval of what is kept
python benchmarks/regret.py --check --strategies default,evolution,local-search
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
RESAMPLES, CHANCE = 20_000, 1e-3  # that a figure lies outside its interval, though nothing has changed, at most; so of any of 30, 3 %
DIGITS = 6  # of what is kept
PLOT = HERE.parent / "docs" / "regret.svg"


def main() -> int:
    given = arguments(__doc__.splitlines()[0], _options)
    on_one_thread()
    table = Path(given.shared) / "data" / "nasbench201" / "nasbench201_cifar10.npz"
    if not table.is_file():
        raise SystemExit(f"there is no {table}; give the folder above data/ with --shared")
    if given.check:
        return _check(table, given.strategies.split(",") if given.strategies else list(QUICK_TO_RUN), given.seeds)
    about = machine(threads=1, seed=given.seed)
    seeds, evaluations = (3, 20) if given.quick else (given.seeds or SEEDS, EVALUATIONS)
    strategies = given.strategies.split(",") if given.strategies else list(STRATEGIES)
    out = HERE / "work" / ("regret-quick" if given.quick else f"regret-{code_hash()}")  # searches of other code are not mixed in
    bench(
        [table],
        objectives=[OBJECTIVE],
        strategies=strategies,
        evaluations=evaluations,
        seeds=seeds,
        out=out,
        fresh=given.quick,
        processes=given.workers,
    )
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
    parser.add_argument("--workers", type=int, default=1, help="searches at once; regrets do not depend on it, CPU times may")
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


def outside(
    kept: Mapping[str, Mapping[str, Sequence[float]]],
    found: Mapping[str, np.ndarray],
    *,
    chance: float = CHANCE,
    resamples: int = RESAMPLES,
) -> list[str]:
    """Where means of `found`, contestant -> (seeds, evaluations), are further from those that are kept than seeds dealt out anew would be.

    kept: contestant -> number of evaluations -> the regret of each seed. Both are samples, so the seeds of both are put together and dealt out
    in two parts of the same sizes, `resamples` times: a permutation test of the difference, which is exact. Where nothing has changed, a
    figure is told to lie outside with a probability of at most `chance`, whatever the distribution of regrets is.
    """
    wrong = []
    for name, regrets in found.items():
        for at, values in kept[name].items():
            if int(at) > regrets.shape[1]:
                continue
            again, known = np.round(regrets[:, int(at) - 1], DIGITS), np.asarray(values)
            together = np.concatenate([again, known])
            dealt = np.random.default_rng(int(at)).permuted(np.tile(together, (resamples, 1)), axis=1)[:, : len(again)].mean(axis=1)
            # the two means are as far apart as the mean of one part is from the mean of all
            apart = abs(again.mean() - together.mean())
            further = int((np.abs(dealt - together.mean()) >= apart - 1e-12).sum())
            if (1 + further) / (1 + resamples) <= chance:
                wrong.append(
                    f"{name} after {at} evaluations: {again.mean():.4f} in {len(again)} seeds, {known.mean():.4f} in the {len(known)} that are kept"
                )
    return wrong


def _check(table: Path, strategies: list[str], seeds: int | None) -> int:
    stored = json.loads((RESULTS / "regret.json").read_text())["figures"]
    kept, evaluations = stored["regret_of_each_seed"], stored["evaluations"]
    seeds = min(seeds or stored["seeds"], stored["seeds"])
    if missing := [name for name in strategies if name not in kept]:
        raise SystemExit(f"results/regret.json keeps nothing of {', '.join(missing)}; it has {', '.join(kept)}")
    with tempfile.TemporaryDirectory() as folder:
        bench([table], objectives=[OBJECTIVE], strategies=strategies, evaluations=evaluations, seeds=seeds, out=Path(folder) / "run")
        found = curves(Path(folder) / "run")
    wrong = outside(kept, found)
    for line in wrong:
        say(line)
    figures = sum(int(at) <= evaluations for name in found for at in kept[name])
    say(
        f"{', '.join(found)} with {seeds} seeds: {len(wrong)} of {figures} figures outside the interval of results/regret.json; with nothing "
        f"changed, any would be in at most {figures * CHANCE:.1%} of such checks"
    )
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
        "`python benchmarks/regret.py --check` runs a part again and fails where it lies outside the interval: further from what is kept than seeds dealt "
        "out anew would be, by a permutation test; with nothing changed it fails in at most 3 % of the times.",
    )
    figures = {
        "seeds": seeds,
        "evaluations": last,
        "regret_of_each_seed": {
            name: {str(at): np.round(regrets[:, at - 1], DIGITS).tolist() for at in counts} for name, regrets in found.items()
        },
        "random_exact": {str(at): exact[at - 1] for at in counts},
        "code": results["run"]["code"],
    }
    command = "python benchmarks/regret.py"
    return Result("regret", "10. Search methods on NAS-Bench-201", command, tuple(claims), (table,), notes, figures)


if __name__ == "__main__":
    sys.exit(main())
