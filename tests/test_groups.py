"""Units of channels that are joined and frozen many at a time are those that are found one by one."""

import random

import numpy as np
import pytest

from niwaki.adoption.groups import Units


def by_hand(count, steps):
    """Sets of units; each step is a list of pairs, of which a 0 freezes the other."""
    sets = [{unit} for unit in range(count)]
    for one, other in (pair for step in steps for pair in step):
        sets[one] |= sets[other]
        for unit in sets[one]:
            sets[unit] = sets[one]
    return [0 if 0 in sets[unit] else min(sets[unit]) for unit in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_joining_axes_joins_unit_by_unit(seed):
    rng, units = random.Random(seed), Units()
    count = 1 + sum(len(units.fresh(size)) for size in (5, 7, 1500))
    some = [0, *rng.sample(range(1, count), 40)]
    steps = [[(rng.choice(some), rng.choice(some)) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 8))]
    for step in steps:
        units.join(*np.array(step).T)
    assert units.roots().tolist() == by_hand(count, steps)


def test_a_set_keeps_its_first_reason_until_it_is_settled():
    units = Units()
    a = units.fresh(3)
    units.reason = "first"
    units.freeze(a[1:2])
    units.reason = "second"
    units.join(a[:2], a[1:])  # 1 = 2, 2 = 3: all of them are fixed now
    assert units.is_fixed(a)
    assert units.reasons(a) == ["first"]
    units.settle(a[2:])
    assert units.reasons(a) == ["second"]


def test_axes_of_other_lengths_are_not_joined():
    units = Units()
    with pytest.raises(ValueError, match="2 and 3"):
        units.join(units.fresh(2), units.fresh(3))
