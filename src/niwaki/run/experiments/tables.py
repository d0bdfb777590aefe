"""The benchmark tables, and searches on them, as all experiments read and run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from random import Random
from typing import Any

from niwaki.evaluate.table import Table, load_table
from niwaki.run.experiments.data import shared_data
from niwaki.space.architecture import Architecture
from niwaki.strategy.strategy import SearchSpace, Strategy
from niwaki.trial import Trial

SIGNAL, TRUTH = "cifar10_valid_acc_12ep", "cifar10_test_acc_200ep"  # of NAS-Bench-201
NASBENCH201 = ("nasbench201", "nasbench201_cifar10.npz")
FILES = {
    "nasbench201": (NASBENCH201,),
    "nasbench201 with latencies": (NASBENCH201, ("nasbench201", "nasbench201_latency_ms.npz")),
    "nasbench-macro": (("nasbench_macro", "nasbench_macro_cifar10.npz"),),
}


@lru_cache(maxsize=3)
def benchmark(name: str) -> Table:
    return load_table([shared_data(*file) for file in FILES[name]])


def searched(
    strategy: Strategy[Any],
    space: SearchSpace,
    metrics: Callable[[Architecture], Mapping[str, float]],
    evaluations: int,
    seed: int,
    *,
    batch: int = 1,
    until: Callable[[Trial], bool] = lambda trial: False,
) -> tuple[list[Trial], Any]:
    """The trials of a search, in order, and the strategy's last state; a batch that begins with number i draws from (seed, i).

    until: of a trial after which the search ends, with the batch that it is of.
    """
    state, trials = strategy.init(space), list[Trial]()
    while len(trials) < evaluations and not any(map(until, trials[-batch:])):
        asked = strategy.ask(state, min(batch, evaluations - len(trials)), Random(f"{seed}/{len(trials)}"), pending=())
        if not asked:
            break
        told = [Trial(len(trials) + at, arch, metrics(arch), strategy.name) for at, arch in enumerate(asked)]
        state, trials = strategy.tell(state, told), trials + told
    return trials, state
