"""DMaskingNAS on the widths of a model that somebody has already: which of its channels to keep for a budget, learned from where it stands.

`search_widths(*adopt(model, example), task, "macs<=50%")` gives the architecture and the plain module, cut and within the budget, before
any fine-tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, fx

from niwaki.cost.count import COSTS
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.factor import Limit
from niwaki.factor.within import Within, within
from niwaki.gradient.dmasking import DMasking, DMaskingSearch, SearchRecord
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.nn.importance import important_first
from niwaki.objective.limit import Budget, parse_budget
from niwaki.space.architecture import Architecture
from niwaki.task.task import Task, derive_seed

PUBLISHED = DMasking()
DRAWN = 512  # architectures drawn within the budget, of which the candidates are the first that spend at least this share of it
SPENT = 0.95

# A preset of the published method for a model that is trained: its weights are neither warmed up nor changed much, the temperature falls as far
# in fewer epochs, and the logits take larger and more steps. "limit" is ours: pressure on the cost while over the budget only.
TRAINED = DMasking(
    epochs=5, warmup_epochs=1, batch_size=128, temperature_decay=PUBLISHED.temperature_decay ** (PUBLISHED.epochs / 5), weight_lr=0.02,
    weight_decay=5e-4, logit_lr=0.1, logit_passes=1, objective="limit", cost_weight=2.0,
)  # fmt: skip


@dataclass(frozen=True)
class FoundWidths:
    """What a search over widths found. module: the plain network of `architecture`, with the weights that the search left it and BatchNorm
    statistics of its own, in evaluation mode. costs: by resource. whole: those of the owner's model."""

    architecture: Architecture
    module: fx.GraphModule
    costs: Mapping[str, int]
    whole: Mapping[str, int]
    probabilities: Mapping[str, np.ndarray]
    history: tuple[SearchRecord, ...]


def lasting(epochs: int, method: DMasking = TRAINED) -> DMasking:
    """`method` over that many epochs, a fifth of them on the weights alone, with the temperature falling as far."""
    decay = method.temperature_decay ** (method.epochs / epochs)
    return replace(method, epochs=epochs, warmup_epochs=epochs // 5, temperature_decay=decay)


def owners(network: Network) -> Architecture:
    """The architecture that is the owner's model: every width at its largest."""
    return space_of(network).architecture({decision.name: decision.options[-1] for decision in space_of(network)})


def budget_of(network: Network, budget: str | Sequence[str] | Budget) -> Within:
    """The space of `network` within a budget; a share is one of the owner's model. BudgetError, with the minimum, if it cannot be kept."""
    limits = budget if isinstance(budget, tuple) else parse_budget(budget)
    whole, found = owners(network), []
    for limit in limits:
        cost = COSTS[limit.resource.name](network)
        found.append(Limit(cost, int(limit.of(cost(whole)).target)))
    return within(space_of(network), found)


def drawn_within(space: Within, probabilities: Mapping[str, np.ndarray], count: int, *, seed: int) -> list[Architecture]:
    """At most `count` architectures within the budget: the likeliest, and others drawn, those first that use the budget."""
    found = {space.mode(probabilities): None}
    if count > 1:
        rows = space.sample_many(DRAWN, np.random.default_rng(seed), probabilities)
        spent = np.max([limit.cost.batch(rows) / limit.upper for limit in space.limits], axis=0)
        for row in rows[np.argsort(spent < SPENT, kind="stable")].tolist():
            if len(found) == count:
                break
            found[space.space.from_indices(row)] = None
    return list(found)


def search_widths(
    network: Network,
    weights: Mapping[str, Tensor],
    task: Task,
    budget: str | Sequence[str] | Budget,
    *,
    method: DMasking = TRAINED,
    candidates: int = 16,
    ordered: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Callable[[SearchRecord], None] | None = None,
) -> FoundWidths:
    """Learn, by DMaskingNAS on the owner's weights, how wide each part of an adopted model is to be; never over the budget.

    network, weights: as `adopt` gives them. method: how long and how; `lasting(epochs)` for another length. candidates: how many networks are
    judged by the shared weights, on the validation part: the likeliest within the budget, and others drawn from what was learned; ours, the
    paper takes the likeliest. ordered: first put the units of every group in order of importance, for a smaller width keeps the first.
    progress: told of every epoch. The same seed gives the same result.
    """
    space = budget_of(network, budget)
    start = important_first(network, weights) if ordered else weights
    search = DMaskingSearch(network, task, [space], method, weights=start, seed=seed, device=device)
    while not search.finished:
        search.run()
        if progress is not None:
            progress(search.history[-1])
    probabilities = search.probabilities()[0]
    judge = SharedWeights(search.net, task, seed=seed)
    drawn = drawn_within(space, probabilities, candidates, seed=derive_seed(seed, "candidates"))
    architecture = drawn[0] if len(drawn) == 1 else max(drawn, key=lambda arch: -judge(arch)["loss"])
    module = judge.module(architecture)
    counts = {name: COSTS[name](network) for name in ("macs", "params", "activations")}
    whole = owners(network)
    return FoundWidths(
        architecture,
        module,
        {name: cost(architecture) for name, cost in counts.items()},
        {name: cost(whole) for name, cost in counts.items()},
        probabilities,
        tuple(search.history),
    )
