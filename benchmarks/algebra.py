"""The cost algebra on the full FBNetV2 space: costing, means with gradients, counts, quantiles, uniform members of tight budgets, log P.

    python benchmarks/algebra.py [--quick] [--seed N]

Beside it: the same multiply-adds by `torch.utils.flop_counter`, which runs a built network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Claim, Result, Spread, Table, arguments, cpu_seconds, machine, on_one_thread, report, say, timed
from torch.utils.flop_counter import FlopCounterMode

from niwaki.cost.count import count_macs
from niwaki.factor.draw import Sampler
from niwaki.factor.eliminate import Count, Feasible
from niwaki.factor.expect import expected, log_probability_within
from niwaki.factor.factor import Cost, Limit
from niwaki.factor.quantile import quantiles
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.zoo.fbnetv2 import fbnetv2

COSTED_PER_SECOND = 8e6
EXPECTED_MS, COUNT_S, GAP, LOG_P_S = 2.0, 1.0, 0.01, 0.5
SAMPLED_PER_SECOND, RARE = 20_000, 1e-6


@dataclass(frozen=True)
class Scale:
    """rows: architectures costed at once. budgets, in multiply-adds; the first is met by fewer than one in a million."""

    input_shape: tuple[int, ...]
    budgets: tuple[int, ...]
    rows: int
    drawn: int
    rounds: int
    networks: int  # built and run by the flop counter


FULL = Scale((3, 288, 288), (28_000_000, 60_000_000, 100_000_000, 150_000_000, 250_000_000), 1_000_000, 200_000, 20, 5)
QUICK = Scale((3, 128, 128), (28_000_000,), 20_000, 2_000, 1, 1)


class Bench:
    """One full set of measurements; each method is one of them and adds to `claims` and `tables`."""

    def __init__(self, scale: Scale, seed: int) -> None:
        self.scale, self.seed = scale, seed
        self.network: Network = fbnetv2(scale.input_shape)
        self.space = space_of(self.network)
        self.macs: Cost = count_macs(self.network)
        self.claims: list[Claim] = []
        self.tables: list[Table] = []
        self.figures: dict[str, Any] = {}

    def rows(self, count: int) -> np.ndarray:
        """Option numbers of architectures drawn uniformly from the whole space."""
        everything = Feasible(self.space, [Limit(self.macs, self.macs.maximum()[0])])
        return Sampler(everything).draw(count, np.random.default_rng(self.seed))

    def distributions(self) -> dict[str, dict[str, np.ndarray]]:
        """One random, one that has nearly decided, for a member drawn at random."""
        rng = np.random.default_rng(self.seed)
        dirichlet = {d.name: rng.dirichlet(np.ones(len(d.options))) for d in self.space}
        decided = {}
        for decision, at in zip(self.space, self.rows(1)[0], strict=True):
            rest = len(decision.options) - 1
            decided[decision.name] = np.full(len(decision.options), 1e-3 / rest if rest else 0.0)
            decided[decision.name][at] = 1 - 1e-3 if rest else 1.0
        return {"random (Dirichlet)": dirichlet, "near one-hot (0.999)": decided}

    # --- measurements ------------------------------------------------------------------------------------------------------

    def costing(self) -> None:
        rows = self.rows(self.scale.rows)
        spread = cpu_seconds(lambda: self.macs.batch(rows), rounds=self.scale.rounds)
        rate = len(rows) / spread.median
        self.figures["costed_per_second"] = rate
        promised, measured = (f"{figure / 1e6:.{digits}f} million" for figure, digits in ((COSTED_PER_SECOND, 0), (rate, 1)))
        self.claim("architectures costed per second", f">= {promised}", measured, rate >= COSTED_PER_SECOND)

    def mean(self) -> None:
        probabilities = {name: torch.tensor(p, requires_grad=True) for name, p in self.distributions()["random (Dirichlet)"].items()}

        def step() -> None:
            expected(self.macs, probabilities).backward()
            for p in probabilities.values():
                p.grad = None

        spread = cpu_seconds(step, rounds=10 * self.scale.rounds, warmup=5)
        milliseconds = Spread(*(1000 * value for value in (spread.median, spread.low, spread.high)))
        self.figures["expected_ms"] = milliseconds.median
        holds = milliseconds.median <= EXPECTED_MS
        self.claim("expected MACs with gradient, CPU time", f"<= {EXPECTED_MS:.0f} ms", milliseconds.text(2, " ms"), holds)

    def counts(self) -> None:
        rows = []
        for upper in self.scale.budgets:
            ask = partial(self.count, upper)
            count, cold = timed(ask)
            warm = cpu_seconds(ask, rounds=max(1, self.scale.rounds // 4), warmup=0)
            gap = (count.hi - count.lo) / count.count
            rows.append((upper, count, gap, cold, warm.median))
        shown = tuple(
            (f"{upper / 1e6:.0f} M", f"{count.count:.3e}", f"{count.share:.3e}", f"{gap:.2%}", f"{cold:.2f} s", f"{warm:.2f} s")
            for upper, count, gap, cold, warm in rows
        )
        columns = ("MACs <=", "count", "share", "gap of the bounds", "CPU time, first call", "again (median)")
        self.tables.append(Table("Architectures within a budget", columns, shown))
        self.figures["counts"] = [
            {"budget": upper, "count": [str(n) for n in (count.lo, count.count, count.hi)], "gap": gap, "first_s": cold, "again_s": warm}
            for upper, count, gap, cold, warm in rows
        ]
        self.timed_claim("count and share, the worst budget", max(gap for *_, gap, _, _ in rows), max(cold for *_, cold, _ in rows))

    def count(self, upper: int) -> Count:
        """How many have at most `upper` MACs; the tables of the budget are made anew for every question."""
        return Feasible(self.space, [Limit(self.macs, upper)]).count()

    def quantiles(self) -> None:
        found, cold = timed(lambda: quantiles(self.macs))
        warm = cpu_seconds(lambda: quantiles(self.macs), rounds=max(1, self.scale.rounds // 4), warmup=0)
        gaps = [(quantile.hi - quantile.lo) / quantile.value for quantile in found]
        shown = tuple((f"{q.share:.0%}", f"{q.value / 1e6:.1f} M", f"{gap:.2%}") for q, gap in zip(found, gaps, strict=True))
        self.tables.append(Table("Quantiles of the MACs over the space", ("share", "MACs", "gap of the bounds"), shown))
        self.figures["quantiles"] = {"seconds": warm.median, "first_s": cold, "values": [[q.share, q.lo, q.value, q.hi] for q in found]}
        self.timed_claim("five quantiles in one call", max(gaps), cold)

    def timed_claim(self, what: str, gap: float, seconds: float) -> None:
        holds = gap <= GAP and seconds <= COUNT_S
        self.claim(f"{what}: relative gap, CPU time", f"<= {GAP:.0%}, <= {COUNT_S:.0f} s", f"{gap:.2%}, {seconds:.2f} s", holds)

    def sampling(self) -> None:
        upper = self.scale.budgets[0]
        feasible = Feasible(self.space, [Limit(self.macs, upper)])
        count = feasible.count()
        sampler, prepared = timed(lambda: Sampler(feasible))
        rows, spent = timed(lambda: sampler.draw(self.scale.drawn, np.random.default_rng(self.seed)))
        rate, with_all = len(rows) / spent, len(rows) / (spent + prepared)
        assert (self.macs.batch(rows) <= upper).all()
        rare = count.hi / count.size
        self.figures["sampling"] = {"budget": upper, "share_at_most": rare, "per_second": rate, "prepared_s": prepared, "drawn": len(rows)}
        self.claim(
            f"uniform samples per second within {upper / 1e6:.0f} M MACs, met by at most {rare:.1e} of the space",
            f">= {SAMPLED_PER_SECOND:,}", f"{rate:,.0f} ({with_all:,.0f} with the {prepared:.2f} s of preparation, for {len(rows):,})",
            rate >= SAMPLED_PER_SECOND and rare < RARE,
        )  # fmt: skip
        self.uniformity(rows, upper)

    def uniformity(self, rows: np.ndarray, upper: int) -> None:
        """An independent look at the samples: the part of them within a still smaller budget against the ratio of the counts."""
        smaller = int(np.median(self.macs.batch(rows)))
        inner, outer = self.count(smaller), self.count(upper)
        low, high = inner.lo / outer.hi, inner.hi / outer.lo
        seen = float((self.macs.batch(rows) <= smaller).mean())
        error = 3 * math.sqrt(seen * (1 - seen) / len(rows))
        self.claim(
            f"of these samples, within {smaller / 1e6:.2f} M", f"{low:.4f}-{high:.4f} (from the counts)", f"{seen:.4f} +- {error:.4f}",
            low - error <= seen <= high + error,
        )  # fmt: skip

    def probabilities(self) -> None:
        rows = []
        for name, distribution in self.distributions().items():
            for upper in self.scale.budgets:
                feasible = Feasible(self.space, [Limit(self.macs, upper)])
                leaves = {key: torch.tensor(p, requires_grad=True) for key, p in distribution.items()}
                found = partial(self._log_p, feasible, leaves)
                bounds = feasible.probability(distribution)
                spread = cpu_seconds(found, rounds=max(1, self.scale.rounds // 4), warmup=0)
                rows.append((name, upper, found(), bounds, spread.median))
        shown = tuple(
            (name, f"{upper / 1e6:.0f} M", f"{value:.4f}", f"{bounds.log_lo:.4f} to {bounds.log_hi:.4f}", f"{seconds:.2f} s")
            for name, upper, value, bounds, seconds in rows
        )
        columns = ("distribution", "MACs <=", "log P", "certain bounds", "CPU time")
        self.tables.append(Table("log P(MACs within the budget) and its gradient", columns, shown))
        self.figures["log_p"] = [
            [name, upper, value, bounds.log_lo, bounds.log_hi, seconds] for name, upper, value, bounds, seconds in rows
        ]
        worst = max(seconds for *_, seconds in rows)
        self.claim("log P(feasible) and its gradient, the worst of these", f"<= {LOG_P_S} s", f"{worst:.2f} s", worst <= LOG_P_S)

    def _log_p(self, feasible: Feasible, leaves: dict[str, torch.Tensor]) -> float:
        for p in leaves.values():
            p.grad = None
        value = log_probability_within(feasible, leaves)
        value.backward()
        return value.item()

    def flop_counter(self) -> None:
        """What an independent counter takes on built networks, and whether it agrees."""
        seconds = []
        for row in self.rows(self.scale.networks):
            arch = self.space.from_indices(row.tolist())
            module, image = build(self.network, arch).eval(), torch.zeros(1, *self.network.input_shape)

            def count(module: torch.nn.Module = module, image: torch.Tensor = image) -> int:
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    module(image)
                return counter.get_total_flops() // 2

            assert count() == self.macs(arch), "flop_counter and the cost algebra count the same"
            seconds.append(cpu_seconds(count, rounds=5).median)
        spread = Spread.of(1000 * value for value in seconds)
        self.figures["flop_counter_ms"] = spread.median
        what = "beside it: torch.utils.flop_counter on one built network, equal to the unit"
        self.claim(what, "", spread.text(0, " ms") + " each, without building it")

    def claim(self, *of: Any) -> None:
        self.claims.append(Claim(*of))
        say(f"{of[0]}: {of[2]}")


def main() -> None:
    on_one_thread()
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    about = machine(threads=1, seed=options.seed)
    scale = QUICK if options.quick else FULL
    bench, prepared = timed(lambda: Bench(scale, options.seed))
    for measure in (bench.counts, bench.quantiles, bench.costing, bench.mean, bench.sampling, bench.probabilities, bench.flop_counter):
        measure()
    entries = sum(factor.table.size for factor in bench.macs.factors)
    result = Result(
        "algebra", "2. The cost algebra is exact and quick", "python benchmarks/algebra.py", tuple(bench.claims), tuple(bench.tables),
        notes=(
            f"The space: {len(bench.space)} decisions, {bench.space.size:.2e} architectures; its MACs are {len(bench.macs.factors)} "
            f"tables of {entries:,} entries in all, made from the description in {prepared:.2f} s of CPU. The first count also cuts the "
            f"space into stages, which all later questions share.",
            "log P as the gradient's pass finds it, an estimate of finite resolution; the bounds are the counting pass's, and certain.",
        ),
        figures=bench.figures,
    )  # fmt: skip
    report(result, about, quick=options.quick)


if __name__ == "__main__":
    main()
