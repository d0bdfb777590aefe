"""What strategies remember and how they find what is new: frozen sets that share their memory, and draws near the end of a space."""

from random import Random

import numpy as np
import pytest

from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.space.space import Decision, Space
from niwaki.strategy.seen import Seen
from niwaki.strategy.strategy import (
    architectures_from_array,
    architectures_to_array,
    fingerprint,
    metrics_from_array,
    metrics_to_array,
    propose,
    unseen,
)
from niwaki.testing.toy import toy_macs, toy_space


def prints(*numbers):
    return [f"{number:016x}" for number in numbers]


def test_a_set_made_larger_leaves_the_smaller_one_as_it_was_in_any_order_of_growth():
    rng = Random(0)
    sets = [(Seen(), [])]
    for _ in range(300):
        seen, plain = rng.choice(sets[-6:])  # older sets grow again, beside those that grew from them
        more = prints(*(rng.randrange(200) for _ in range(rng.randrange(4))))
        sets.append((seen.with_(more), list(dict.fromkeys([*plain, *more]))))
    for seen, plain in sets:
        assert list(seen) == plain
        assert len(seen) == len(plain)
        assert [name in seen for name in prints(*range(200))] == [name in plain for name in prints(*range(200))]
        assert Seen.from_array(seen.to_array()) == seen
        assert list(Seen.from_array(seen.to_array())) == plain


def test_telling_one_after_the_other_copies_nothing():
    seen = Seen()
    first = seen._places
    for number in range(1000):
        seen = seen.with_(prints(number))
    assert seen._places is first


def test_random_architectures_near_the_end_of_a_small_space_are_drawn_evenly_from_those_that_are_left():
    space = toy_space()
    everything = list(space.enumerate())
    left = everything[::60]
    seen = Seen(fingerprint(arch) for arch in everything if arch not in left)
    rng = Random(1)
    drawn = [unseen(lambda: everything[0] if everything[0] not in left else everything[1], space, seen, rng) for _ in range(2000)]
    share = 2000 / len(left)
    assert all(abs(drawn.count(arch) - share) < 5 * share**0.5 for arch in left)
    assert set(drawn) == set(left)


@pytest.mark.parametrize("upper", [None, 60], ids=["whole", "within"])
def test_in_a_space_too_large_to_list_the_last_architectures_are_found_and_then_no_more(monkeypatch, upper):
    monkeypatch.setattr("niwaki.strategy.strategy.MOST_LISTED", 10)
    space = toy_space() if upper is None else within(toy_space(), [Limit(toy_macs(toy_space()), 1500)])
    everything = list(space.enumerate())
    left = [everything[3], everything[-1], everything[len(everything) // 2]]
    seen, rng, found = Seen(fingerprint(arch) for arch in everything if arch not in left), Random(0), []
    for _ in range(3):
        (arch,) = propose(1, lambda _: space.sample_uniform(rng), space, seen, (), rng)
        seen = seen.with_([fingerprint(arch)])
        found.append(arch)
    assert set(found) == set(left)
    assert propose(1, lambda _: space.sample_uniform(rng), space, seen, (), rng) == []


def test_architectures_and_metrics_come_back_from_arrays():
    for space in (toy_space(), Space((Decision("many", tuple(range(300))), Decision("few", ("a", "b")))), Space(())):
        archs = list(space.enumerate())
        array = architectures_to_array(archs)
        assert array.dtype == np.uint8
        assert len(array) == len(archs)
        assert architectures_from_array(array, space) == archs
    metrics = [{"accuracy": 0.1 + 0.2, "macs": 1e15 + 1}, {"accuracy": 1 / 3}, {}]
    names, values = metrics_to_array(metrics)
    assert metrics_from_array(names, values) == metrics
    assert metrics_from_array(*metrics_to_array([])) == []
