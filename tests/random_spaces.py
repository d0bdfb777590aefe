"""Small random spaces and costs, to be compared with brute force."""

from random import Random

import numpy as np

from niwaki.factor.factor import Factor
from niwaki.space.size import Expr, both, either, equal, op, opposite, taken
from niwaki.space.space import Decision, Space

MOST_MEMBERS = 20_000


def random_space(rng: Random) -> Space:
    """At most 20,000 architectures; conditional choices up to depth 4, depths that are a prefix, skips, names tied at several places."""
    while True:
        decisions: list[Decision] = []
        for number in range(rng.randint(1, 4)):
            _branch(decisions, f"part{number}", True, rng, depth=rng.randint(0, 3))
        if decisions and 1 < (space := Space(tuple(decisions))).size <= MOST_MEMBERS:
            return space


def _branch(decisions: list[Decision], path: str, condition: Expr, rng: Random, depth: int) -> None:
    kind = rng.choice(["plain", "one_of", "repeat", "skip", "tied"])
    if kind == "plain" or depth == 0:
        decisions.append(Decision(f"{path}.width", tuple(rng.sample(range(1, 9), rng.randint(1, 4))), condition))
    elif kind == "one_of":
        which = Decision(f"{path}.op", tuple("abc"[: rng.randint(2, 3)]), condition)
        decisions.append(which)
        for option in which.options[1:]:
            _branch(decisions, f"{path}.{option}", both(condition, taken(which.ref, (option,))), rng, depth - 1)
    elif kind == "repeat":
        repeats = Decision(f"{path}.depth", tuple(range(rng.randint(0, 1), rng.randint(2, 3) + 1)), condition)
        decisions.append(repeats)
        for index in range(repeats.options[-1]):
            decisions.append(Decision(f"{path}.{index}.kernel", (3, 5), both(condition, op(">", repeats.ref, index))))
    elif kind == "skip":
        skip = Decision(f"{path}.skip", (False, True), condition)
        decisions.append(skip)
        _branch(decisions, f"{path}.body", both(condition, opposite(equal(skip.ref, True))), rng, depth - 1)
    else:
        first, second = Decision(f"{path}.left", ("x", "y"), condition), Decision(f"{path}.right", ("x", "y", "z"), condition)
        decisions.extend((first, second))
        either_takes_y = either(both(condition, taken(first.ref, ("y",))), both(condition, taken(second.ref, ("y",))))
        decisions.append(Decision(f"{path}.tied", (1, 2, 4), either_takes_y))


def random_factors(space: Space, rng: Random, largest: int = 400) -> list[Factor]:
    """Factors over one to four decisions, most of them close together; entries do not vanish where decisions do not exist."""
    factors = [Factor((), np.array(rng.randint(0, largest), dtype=np.int64))]
    unit = rng.choice([1, 1, 7, 16])
    for position in range(len(space)):
        near = [p for p in range(max(0, position - 2), position + 1) if p == position or rng.random() < 0.5]
        if rng.random() < 0.1:
            near.append(rng.randrange(len(space)))
        scope = tuple(dict.fromkeys(space.decisions[p].name for p in rng.sample(near, len(near))))
        shape = [len(space[n].options) for n in scope]
        table = np.array([unit * rng.randint(0, largest) for _ in range(int(np.prod(shape)))], dtype=np.int64).reshape(shape)
        factors.append(Factor(scope, table))
    return factors


def random_probabilities(space: Space, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {decision.name: rng.dirichlet(np.ones(len(decision.options))) for decision in space.decisions}
