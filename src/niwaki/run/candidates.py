"""What is learned for a budget, and the architectures that are drawn from what was learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from niwaki.factor.eliminate import certain, even
from niwaki.factor.within import Within
from niwaki.gradient.dmasking import DMasking
from niwaki.net.place import place
from niwaki.net.program import program
from niwaki.run.choose import all_options, frame, resolutions
from niwaki.run.folder import Folder
from niwaki.run.search import Search
from niwaki.space.architecture import Architecture
from niwaki.space.choice import BudgetError
from niwaki.task.task import derive_seed

DRAWN = 4096  # architectures drawn within the budget, of which the candidates are taken
FEW_DRAWN = 64  # of which the one that uses its budget best is taken
LEAST_LOG_P = -40.0  # of an architecture of the learned distribution to be within the budget, for it to be drawn from as it is
EVEN = 0.25  # of even chances in what every other candidate is drawn from: shared weights learn first what is shallow and quick to train
SPENT = 0.85  # of the budget: candidates that cost less come after all that cost more


@dataclass(frozen=True)
class Aim:
    """What one distribution is learned for: a budget, and options that are certain."""

    budget: int
    space: Within
    taken: dict[str, Any] = field(default_factory=dict)

    def blended(self, probabilities: Mapping[str, np.ndarray], share: float) -> dict[str, np.ndarray]:
        """`probabilities` with that share of even chances mixed in, but for what is taken."""
        return {name: p if name in self.taken else (1 - share) * p + share / len(p) for name, p in probabilities.items()}

    def has(self, arch: Architecture) -> bool:
        return all(arch[name] == option for name, option in self.taken.items())


def aims_of(search: Search, spaces: Sequence[Within]) -> list[Aim]:
    """One for each budget; where resolutions are searched apart, one for each resolution that a budget has room for.

    No other choice changes the cost of everything at once: learned together with widths and depths, the resolution falls as soon as the
    cost is felt, long before the weights have shown what a larger one is worth. Networks of several resolutions are told apart by training.
    """
    names = resolutions(place(search.network)) if search.resolutions == "apart" and isinstance(search.method, DMasking) else []
    aims = []
    for at, space in enumerate(spaces):
        every = [dict(zip(names, options, strict=True)) for options in product(*(space.space[name].options for name in names))]
        there = [
            taken for taken in every if not names or space.probability(even(space.space) | certain(space.space, taken)).log > LEAST_LOG_P
        ]
        aims += [Aim(at, space, taken) for taken in there or [{}]]
    return aims


def candidates_of(
    search: Search, at: int, aim: Aim, probabilities: Mapping[str, np.ndarray], count: int, folder: Folder
) -> list[Architecture]:
    """`count` architectures within the budget, of different programs; the most likely one first."""
    space = aim.space
    archs = [space.mode(probabilities)]  # over the budget, by construction, never
    if count > 1:
        learned = _drawn(aim, probabilities, derive_seed(search.seed, "candidates", at), folder)
        blended = aim.blended(probabilities, EVEN)
        wider = _drawn(aim, blended, derive_seed(search.seed, "wider candidates", at), folder)
        by_turns = len(learned) == len(wider)  # else there is none of the one or the other
        drawn = np.stack([learned, wider], axis=1).reshape(-1, len(space)) if by_turns else np.concatenate([learned, wider])
        if not len(drawn):
            folder.note("No candidate within the budget could be drawn beside the most likely one.")
        spent = np.max([limit.cost.batch(drawn) / limit.upper for limit in space.limits], axis=0)
        # what is paid for should be used: shared weights flatter small networks, whose few channels are the best trained ones
        drawn = drawn[np.argsort(spent < SPENT, kind="stable")]
        programs = {program(search.network, archs[0])}
        for row in dict.fromkeys(map(tuple, drawn.tolist())):
            if len(archs) == count:
                break
            arch = space.from_indices(row)
            if (found := program(search.network, arch)) not in programs:  # one network may have several names
                programs.add(found)
                archs.append(arch)
        taken = {(name, option) for arch in archs for name, option in arch.items()}
        names = [name for name in frame(place(search.network)) if name not in aim.taken]
        missing = [(name, option) for name in names for option in space.space[name].options if (name, option) not in taken]
        rare = [one for choice in missing if (one := _with_option(search, at, space, blended, *choice)) is not None]
        archs = all_options(archs, rare[: count // 2], names, count)
    return archs


def _with_option(
    search: Search, at: int, space: Within, probabilities: Mapping[str, np.ndarray], name: str, option: Any
) -> Architecture | None:
    """An architecture within the budget with that option, drawn by `probabilities`; None where there is hardly one.

    What the learned distribution has left behind gets one chance: a search may have settled on a block, depth or resolution early.
    """
    fixed = {**probabilities, **certain(space.space, {name: option})}
    if not space.probability(fixed).log > LEAST_LOG_P:
        return None
    try:
        rows = space.sample_many(FEW_DRAWN, np.random.default_rng(derive_seed(search.seed, "with", at, name, str(option))), fixed)
    except BudgetError:
        return None
    archs = [arch for arch in map(space.from_indices, rows.tolist()) if arch.get(name) == option]
    return max(archs, key=lambda arch: max(limit.cost(arch) / limit.upper for limit in space.limits), default=None)


def _drawn(aim: Aim, probabilities: Mapping[str, np.ndarray], seed: int, folder: Folder) -> np.ndarray:
    """(n, decisions): architectures within the budget by `probabilities`, or nearer to even ones where these lie far outside it."""
    space = aim.space
    for blend in (0.0, 1e-3, 1e-2, 1e-1, 1.0):
        mixed = aim.blended(probabilities, blend)
        if blend == 1.0 or space.probability(mixed).log > LEAST_LOG_P:
            break
    if blend:
        folder.note(
            f"The learned distribution lies far outside the budget; candidates were drawn with {blend:.1%} of even chances mixed in."
        )
    try:
        return space.sample_many(DRAWN, np.random.default_rng(seed), mixed)
    except BudgetError:  # of two limits at once, the table says what may be within; nothing drawn was, but the mode is
        return np.zeros((0, len(space)), dtype=np.int64)
