"""How many architectures keep a budget, how likely one does, which is the best of them, and drawing them: by elimination along the space.

Work is done in *slack*. With V(state) the least that can still follow, an arc spends `cost + V(after) - V(before)` >= 0 of the slack
`budget - V(start)`, exactly. Only the slack is binned, so the resolution lies where the budget bites:

- Rounded down, what seems to fit includes all that fits: a superset, for drawing (the exact cost is then checked) and for the A* bound.
- Rounded to the nearest bin, the true slack spent differs from the binned by at most the sum of roundings along a path, whose
  least and largest value are known exactly. Reading the one message where the budget would lie at either end brackets the count.
- A budget whose slack, in units of what all arcs have as a common divisor, has no more values than bins is exact.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from heapq import heappop, heappush
from itertools import count as counter
from math import floor, inf, isfinite, log

import numpy as np

from niwaki.factor.chain import UNREACHABLE, Chain
from niwaki.factor.factor import Cost, CostError, Limit, index_type
from niwaki.factor.message import Grid, Moves, meet, padded, pull, pull_largest, scaled
from niwaki.space.architecture import Architecture
from niwaki.space.space import Space
