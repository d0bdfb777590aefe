"""The epsilon-constraint method: one search for each of several budgets traces the front, also where it is not convex and weights cannot go."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from niwaki.objective.error import ObjectiveError
from niwaki.objective.limit import Constraint, Resource
from niwaki.objective.objective import Objective


def geometric_bounds(least: float, most: float, count: int) -> tuple[float, ...]:
    """`count` budgets from `least` to `most`, each the same factor above the one before; counts are rounded to whole numbers by the limits.

    >>> geometric_bounds(1e6, 4e6, 3)
    (1000000.0, 2000000.0, 4000000.0)
    """
    if not (0 < least < most < math.inf) or count < 2:
        raise ObjectiveError(f"{count} budgets from {least:g} to {most:g}: at least 2, from a number above 0 to a larger one")
    return (float(least), *(least * (most / least) ** (at / (count - 1)) for at in range(1, count - 1)), float(most))


def sweep(objective: Objective, resource: Resource, bounds: Sequence[float]) -> list[Objective]:
    """The objective under each of these limits on `resource`, in place of one that it has; its other limits stay.

    The budgets of one `niwaki search` share what is learned; a search from Python starts each from the trials of the one before.
    """
    kept = tuple(limit for limit in objective.subject_to if not (isinstance(limit, Constraint) and limit.resource == resource))
    return [replace(objective, subject_to=(*kept, resource <= bound)) for bound in bounds]
