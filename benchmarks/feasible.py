"""P(feasible) and its gradient under a policy, exactly and by TabNAS's Monte-Carlo estimate: error and time; and TabNAS's searches with both."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import torch
from harness import Claim, Result, Table, arguments, cpu_seconds, machine, on_one_thread, report, say

from niwaki import zoo
from niwaki.cost.count import count_macs, count_params
from niwaki.factor.chain import all_rows
from niwaki.factor.factor import Limit
from niwaki.factor.within import Within, within
from niwaki.net.place import space_of
from niwaki.recipe import tabnas
from niwaki.run.experiments.perceptrons import Training
from niwaki.run.experiments.tabnas import NAMES, DataSet, Known, Plan, table_searches, train_table
from niwaki.run.statistics import bootstrap
from niwaki.strategy.policy import Conditioned, Rejected, Rejecting, Softmaxes
from niwaki.zoo.mlp import TABNAS_BUDGET

SAMPLES = (64, 1_024, 16_384)
EXACT_ERROR = 1e-9
WRONG = 0.1  # relative error of the gradient, above which an estimate says little


@dataclass(frozen=True)
class Scale:
    """repeats: estimates, of which the root mean square error is taken. sets: whose perceptrons are trained and searched."""

    samples: tuple[int, ...]
    repeats: int
    large: bool
    plan: Plan


TABLES = (DataSet("adult", Training(2, 512), 1), DataSet("connect_4", Training(2, 512), 1))
FULL = Scale(SAMPLES, 20, True, Plan(TABLES))
QUICK = Scale(
    (64,), 3, False, replace(Plan((DataSet("breast_cancer", Training(1, 64), 1),)), widths=(4, 16), search_seeds=2, evaluations=6)
)


@dataclass(frozen=True)
class Setting:
    """A budget on a space, and logits: 0 before the search, or drawn, as of a policy that has learned something of its own."""

    name: str
    inside: Within
    logits: np.ndarray


def settings(scale: Scale) -> list[Setting]:
    networks: list[tuple[str, Any, Any, float | int]] = [
        ("the toy space", tabnas.toy(), count_params, tabnas.TOY_BUDGET),
        ("Criteo's space", zoo.network("tabnas-criteo"), count_params, TABNAS_BUDGET),
    ]
    if scale.large:
        networks.append(("FBNet's space", zoo.network("fbnet"), count_macs, 0.5))
    found = []
    for name, network, count, budget in networks:
        space, cost = space_of(network), count(network)
        upper = budget if isinstance(budget, int) else int(cost.minimum()[0] + budget**3 * (cost.maximum()[0] - cost.minimum()[0]))
        inside = within(space, [Limit(cost, upper)])
        plain = Softmaxes(space)
        for kind, logits in (
            ("even", plain.initial()),
            ("learned", np.random.default_rng(1).normal(0, 1.0, plain.shape)),
            ("far off", plain.initial() + 0.5 * np.arange(plain.shape[1])),
        ):
            found.append(Setting(f"{name}, {_size(space.size)} networks, {kind}", inside, logits))
    return found


def _size(size: int) -> str:
    return f"{size:,}" if size < 1_000_000 else f"{size:.1e}"


def truth(setting: Setting) -> tuple[float, np.ndarray] | None:
    """log P(V) and its gradient by going through every network, where that can be done."""
    space = setting.inside.space
    if space.size > 100_000:
        return None
    rows = all_rows(space)[0].astype(np.int64)
    plain = Softmaxes(space)
    p = np.exp(plain.log_prob(setting.logits, rows))
    kept = setting.inside.feasible.keeps(rows)
    total = float(p[kept].sum())
    return float(np.log(total)), plain.gradient(setting.logits, rows[kept], p[kept] / total, 0.0, 0)


def by_elimination(setting: Setting) -> Callable[[], tuple[float, np.ndarray]]:
    """As the strategy asks for it, but never by listing the space: what a space of any size costs."""
    policy = Conditioned(setting.inside)
    if setting.inside.space.size > 100_000:
        return lambda: policy.log_feasible(setting.logits)

    def found() -> tuple[float, np.ndarray]:
        p = policy.softmaxes.probabilities(setting.logits)
        log_p, slopes = setting.inside.feasible.log_probability_by_elimination(p)
        gradient = np.zeros(policy.softmaxes.shape)
        for row, (name, own) in enumerate(p.items()):
            gradient[row, : len(own)] = own * (slopes[name] - own @ slopes[name])
        return log_p, gradient

    return found


def compare(scale: Scale) -> tuple[list[Claim], Table, list[dict[str, Any]]]:
    rows, figures, worst_exact, worst_gap = [], [], 0.0, 0.0
    for setting in settings(scale):
        known, exact = truth(setting), by_elimination(setting)
        log_p, gradient = exact()
        seconds = cpu_seconds(exact, rounds=5).median
        bounds = setting.inside.feasible.probability_by_elimination(Softmaxes(setting.inside.space).probabilities(setting.logits))
        if known:
            error = float(np.linalg.norm(gradient - known[1]) / np.linalg.norm(known[1]))
            worst_exact = max(worst_exact, abs(np.expm1(log_p - known[0])), error)
            shown = f"{abs(np.expm1(log_p - known[0])):.0e}", f"{error:.0e}"
        else:
            worst_gap = max(worst_gap, abs(float(np.expm1(bounds.log_hi - bounds.log_lo))))
            shown = f"bounds {100 * float(np.expm1(bounds.log_hi - bounds.log_lo)):.2g} % apart", "-"
        log_p, gradient = known or (log_p, gradient)
        rows.append((setting.name, f"{np.exp(log_p):.3g}", "exact", *shown, "0 %", f"{1e3 * seconds:.2f} ms"))
        figures.append({"setting": setting.name, "samples": None, "log_p": log_p, "seconds": seconds})
        for samples in scale.samples:
            policy = Rejected(Rejecting(samples), setting.inside)
            began, found = time.process_time(), [policy.log_feasible(setting.logits, step) for step in range(scale.repeats)]
            each = (time.process_time() - began) / scale.repeats
            kept = [one for one in found if one is not None]
            errors = [float("nan"), float("nan")]
            if kept:
                errors[0] = float(np.sqrt(np.mean([np.expm1(one[0] - log_p) ** 2 for one in kept])))
                errors[1] = float(np.sqrt(np.mean([np.linalg.norm(one[1] - gradient) ** 2 for one in kept])) / np.linalg.norm(gradient))
            skipped = 1 - len(kept) / len(found)
            rows.append(
                (
                    setting.name,
                    "",
                    f"N = {samples:,}",
                    *(f"{error:.2g}" if kept else "-" for error in errors),
                    f"{skipped:.0%}",
                    f"{1e3 * each:.2f} ms",
                )
            )
            figures.append({"setting": setting.name, "samples": samples, "errors": errors, "skipped": skipped, "seconds": each})
            say(f"{setting.name}, N = {samples:,}: {errors}, {skipped:.0%} skipped, {1e3 * each:.2f} ms")
    table = Table(
        "P(feasible) and its gradient by the logits",
        ("policy", "P", "how", "relative error of P", "of the gradient", "steps left out", "CPU time"),
        tuple(rows),
    )
    published = [one for one in figures if one["samples"] == 1_024]
    claims = [
        Claim(
            "exact: relative error of P and of its gradient against enumeration, at most",
            f"{EXACT_ERROR:.0e}",
            f"{worst_exact:.0e}",
            worst_exact <= EXACT_ERROR,
        ),
    ]
    if published:
        bad = [one for one in published if not one["errors"][1] <= WRONG]
        claims.append(
            Claim(
                f"Monte Carlo with 1,024 draws: policies whose gradient it misses by more than {WRONG:.0%}",
                "",
                f"{len(bad)} of {len(published)}; of these all steps left out in {sum(one['skipped'] == 1 for one in published)}",
            )
        )
    if worst_gap:
        claims.append(
            Claim("in FBNet's space: certain bounds of P, apart by at most", "1 %", f"{100 * worst_gap:.2g} %", worst_gap <= 0.01)
        )
    return claims, table, figures


def searches(scale: Scale) -> tuple[list[Claim], Table, dict[str, Any]]:
    plan, rows, figures, claims = scale.plan, [], {}, []
    members = list(product(plan.widths, repeat=3))
    for one in plan.sets:
        tables = [train_table(one, members, seed) for seed in range(one.seeds)]
        known = Known({"members": members, "tables": {one.name: tables}}, one.name)
        figures[one.name] = {}
        for kind in ("exact", "mc64", "mc1024", "uncorrected"):
            began = time.process_time()
            found = table_searches(kind, plan, one.name, tables)
            per_trial = (time.process_time() - began) / len(found) / plan.evaluations
            lost = bootstrap([known.best - known.quality[run["mode"]] for run in found])
            top = float(np.mean([known.in_top(run["mode"]) for run in found]))
            over = sum(bool(known.costs[run["mode"]] > known.budget) for run in found)
            figures[one.name][kind] = {"regret": lost.mean, "top": top, "over": over, "cpu_s_per_trial": per_trial}
            rows.append(
                (
                    one.name,
                    NAMES[kind],
                    f"{100 * lost.mean:.2f} [{100 * lost.low:.2f}, {100 * lost.high:.2f}]",
                    f"{top:.0%}",
                    f"{over}",
                    f"{1e3 * per_trial:.2f} ms",
                )
            )
            say(f"{one.name}, {NAMES[kind]}: regret {100 * lost.mean:.2f} points, in the top {top:.0%}")
        top, regret = known.random(plan.evaluations)
        rows.append((one.name, "best of as many random draws within the budget", f"{100 * regret:.2f}", f"{top:.0%}", "0", ""))
        claims.append(
            Claim(
                f"{one.name}: regret with the exact P less that with 1,024 draws, validation points",
                "",
                f"{100 * (figures[one.name]['exact']['regret'] - figures[one.name]['mc1024']['regret']):+.2f}",
            )
        )
    columns = ("table", "search", "regret, validation points", "in the best 10 %", "over budget", "CPU time of ask and tell")
    return (
        claims,
        Table(
            f"TabNAS on {len(members)} trained perceptrons, {plan.evaluations} evaluations, {plan.search_seeds} seeds", columns, tuple(rows)
        ),
        figures,
    )


def main() -> None:
    on_one_thread()
    options: argparse.Namespace = arguments(__doc__ or "")
    torch.set_num_threads(1)
    about = machine(threads=1, seed=options.seed)
    scale = QUICK if options.quick else FULL
    claims, table, figures = compare(scale)
    more, searched, found = searches(scale)
    notes = (
        "Policies: even, all logits 0, as before a search; learned, normal logits; far off, logits that grow with the option, as of a policy drawn to what is too large.",
        "exact: by elimination, also where the space is small enough to be listed; the error is against going through every network. Monte Carlo: root mean square over "
        f"{scale.repeats} estimates, of those that had a feasible draw; where none had, TabNAS leaves out the step.",
    )
    report(
        Result(
            "feasible",
            "13. P(feasible), exactly and by Monte Carlo",
            "python benchmarks/feasible.py",
            (*claims, *more),
            (table, searched),
            notes,
            {"estimates": figures, "searches": found},
        ),
        about,
        quick=options.quick,
    )


if __name__ == "__main__":
    main()
