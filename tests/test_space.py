"""What a space is: which architectures exist, how many, and how to move among them."""

import json
import pickle
import sys
from collections import Counter
from itertools import product
from random import Random
from time import perf_counter

import pytest

from niwaki.space.architecture import Architecture
from niwaki.space.choice import SpaceError, choose
from niwaki.space.size import both, evaluate, taken
from niwaki.space.space import Decision, Space
from random_spaces import random_space

SPACES = [random_space(Random(seed)) for seed in range(40)]


def pyglove_space() -> Space:
    """methods/pyglove.md: a in {1, oneof(2, 3), {k: oneof(3, 5, 7), e: oneof(3, 6)}}, b in {0, 1}."""
    a = Decision("a", ("one", "inner", "conv"))
    inner = Decision("a.inner", (2, 3), taken(a.ref, ("inner",)))
    kernel = Decision("a.k", (3, 5, 7), taken(a.ref, ("conv",)))
    expand = Decision("a.e", (3, 6), taken(a.ref, ("conv",)))
    return Space((a, inner, kernel, expand, Decision("b", (0, 1))))


def brute_architectures(space: Space) -> list[dict]:
    """Every combination of all options, kept if nothing is taken (but first options) where a decision does not exist."""
    kept = []
    for options in product(*(d.options for d in space.decisions)):
        taken_options = dict(zip((d.name for d in space.decisions), options, strict=True))
        exists = {d.name: bool(evaluate(d.condition, taken_options)) for d in space.decisions}
        if all(exists[d.name] or taken_options[d.name] == d.options[0] for d in space.decisions):
            kept.append({name: option for name, option in taken_options.items() if exists[name]})
    return kept


def test_the_space_of_pyglove_has_18_points():
    space = pyglove_space()
    assert space.size == len(list(space.enumerate())) == len(set(space.enumerate())) == 18
    assert space.architecture({"a": "conv", "a.k": 5, "a.e": 3, "b": 1}) in set(space.enumerate())


@pytest.mark.parametrize(("distinct", "ordered", "count"), [(True, True, 12), (True, False, 6), (False, True, 16), (False, False, 10)])
def test_choosing_two_of_four_gives_12_6_16_or_10_and_multiplies_with_the_rest(distinct, ordered, count):
    pair = Decision("pair", choose(2, "abcd", distinct=distinct, ordered=ordered).options)
    assert Space((pair,)).size == count
    assert Space((*pyglove_space().decisions, pair)).size == 18 * count
    arch = next(Space((pair,)).enumerate())
    assert Architecture.from_json(json.loads(json.dumps(arch.to_json())), Space((pair,))) == arch


def test_enumeration_lists_every_architecture_once_in_reading_order():
    for space in SPACES:
        listed = list(space.enumerate())
        assert len(listed) == len(set(listed)) == space.size
        rows = space.indices(listed)
        assert rows == sorted(rows)
        if len(space) <= 9:
            assert [dict(arch) for arch in listed] == brute_architectures(space)


def test_enumeration_goes_on_after_any_architecture():
    for space in SPACES[:10]:
        listed = list(space.enumerate())[:300]
        last = len(listed) - 1
        for place in (0, last // 3, last):
            following = space.enumerate(listed[place])
            assert [next(following) for _ in listed[place + 1 :]] == listed[place + 1 :]


def test_keys_are_the_option_numbers_and_lead_back_to_the_architecture():
    many = Space((Decision("a", tuple(range(70_000))), Decision("b", (0, 1)), Decision("c", (0, 1))))
    some = Space((Decision("a", tuple(range(300))), Decision("b", ("x", "y"))))
    assert [space.key_bytes for space in (many, some, SPACES[0])] == [4, 2, 1]
    for space in (*SPACES[:10], some, many):
        archs = [space.sample_uniform(Random(seed)) for seed in range(20)]
        for arch, row in zip(archs, space.indices(archs), strict=True):
            width = space.key_bytes
            key = space.key(arch)
            assert [int.from_bytes(key[at : at + width], sys.byteorder) for at in range(0, len(key), width)] == row
            again = space.architecture(dict(arch))
            assert space.from_key(key) == again == arch
            assert hash(again) == hash(arch)
            assert pickle.loads(pickle.dumps(arch)) == arch
            assert dict(pickle.loads(pickle.dumps(arch))) == dict(arch)
    with pytest.raises(SpaceError, match="a key of this space has 4 bytes, not 3"):
        some.from_key(b"abc")
    with pytest.raises(SpaceError, match="none has the number 7"):
        some.from_key((7).to_bytes(2, sys.byteorder) * 2)
    with pytest.raises(SpaceError, match="belongs to the space"):
        some.key(many.sample_uniform(Random(0)))


def test_a_crossover_takes_each_decision_from_a_parent_at_even_odds_and_is_an_architecture():
    for number, space in enumerate(SPACES[:12]):
        rng = Random(number)
        first, second = space.sample(rng), space.sample(rng)
        children = [space.cross(first, second, rng) for _ in range(400)]
        for child in children[:40]:
            assert space.architecture(dict(child)) == child
        for decision in space:
            name = decision.name
            having = [child[name] for child in children if name in child]
            if name in first and name in second:
                assert set(having) <= {first[name], second[name]}
                if decision.condition is True and first[name] != second[name]:
                    assert abs(having.count(first[name]) / 400 - 0.5) < 0.125  # five standard deviations
            elif name in first or name in second:
                assert set(having) <= {(first if name in first else second)[name]}


def test_a_condition_at_depth_four_exists_only_where_all_above_it_hold():
    decisions, condition = [], True
    for depth in range(4):
        decisions.append(Decision(f"level{depth}", (0, 1, 2), condition))
        condition = both(condition, taken(decisions[-1].ref, (1, 2)))
    space = Space(tuple(decisions))
    assert space.size == 1 + 2 * (1 + 2 * (1 + 2 * 3)) == len(set(space.enumerate()))


def test_a_space_of_10_to_the_400_is_counted_in_milliseconds():
    layers = []
    for number in range(200):
        which = Decision(f"op{number}", tuple(range(10)))
        layers += [which, Decision(f"kernel{number}", tuple(range(11)), taken(which.ref, tuple(range(5))))]
    started = perf_counter()
    assert Space(tuple(layers)).size == (5 * 11 + 5) ** 200
    assert perf_counter() - started < 0.5


def test_sampling_is_uniform_per_choice_or_uniform_over_architectures():
    space, rng, draws = pyglove_space(), Random(0), 18_000
    per_choice = Counter(space.sample(rng)["a"] for _ in range(draws))
    assert all(abs(count - draws / 3) < 5 * (draws * 2 / 9) ** 0.5 for count in per_choice.values())
    uniform = Counter(space.sample_uniform(rng) for _ in range(draws))
    chi_square = sum((uniform[arch] - draws / 18) ** 2 / (draws / 18) for arch in space.enumerate())
    assert chi_square < 17 + 5 * 34**0.5  # 17 degrees of freedom, five standard deviations


def test_neighbours_are_all_that_differ_at_one_decision_with_first_options_where_new():
    for space in SPACES[:15]:
        everything = set(space.enumerate()) if space.size <= 2_000 else None
        arch = space.sample(Random(1))
        near = list(space.neighbours(arch))
        assert len(near) == len(set(near)) == sum(len(space[name].options) - 1 for name in arch)
        for other in near:
            assert everything is None or other in everything
            changed = [name for name in other if name in arch and other[name] != arch[name]]
            new = [name for name in other if name not in arch]
            assert len(changed) == 1
            assert all(other[name] == space[name].options[0] for name in new)


def test_a_mutation_changes_one_decision_and_keeps_the_others_that_still_exist():
    rng = Random(3)
    for space in SPACES[:15]:
        arch = space.sample(rng)
        for _ in range(20):
            other = space.mutate(arch, rng)
            assert sum(other[name] != arch[name] for name in other if name in arch) == 1
    draws = Counter(pyglove_space().mutate(pyglove_space().architecture({"a": "one", "b": 0}), rng) for _ in range(3_000))
    assert len(draws) == 2 + 6 + 1
    assert sum(count for arch, count in draws.items() if arch["b"] == 1) == pytest.approx(1_000, abs=150)


def test_rows_of_option_numbers_and_json_give_the_architecture_back():
    for space in SPACES[:15]:
        assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
        for arch in (space.sample(Random(seed)) for seed in range(10)):
            (row,) = space.indices([arch])
            assert space.from_indices(row) == arch
            assert Architecture.from_json(json.loads(json.dumps(arch.to_json())), space) == arch
            assert space.architecture(arch) == arch
            assert space.active(arch) == tuple(arch)


def test_two_spaces_have_one_hash_only_if_they_are_equal():
    hashes = {space.hash: space for space in SPACES}
    assert all(hashes[space.hash] == space for space in SPACES)
    assert pyglove_space().hash == pyglove_space().hash != Space(pyglove_space().decisions[:1]).hash


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"a": "one", "b": 2}, "'b' cannot be 2; its options are (0, 1)"),
        ({"a": "one"}, "no option is given for 'b'; its options are (0, 1)"),
        ({"a": "one", "b": 0, "a.k": 3}, "'a.k' does not exist"),
        ({"a": "one", "c": 0}, "'c' is no decision of this space"),
        ({"a": "conv", "a.k": 3, "b": 0}, "no option is given for 'a.e'"),
    ],
)
def test_a_wrong_architecture_is_refused_by_name(choices, said):
    with pytest.raises(SpaceError, match="^" + said.replace("(", r"\(").replace(")", r"\)").replace(".", r"\.")):
        pyglove_space().architecture(choices)


def test_an_architecture_of_another_space_is_refused_with_both_hashes():
    space, other = pyglove_space(), SPACES[0]
    with pytest.raises(SpaceError) as caught:
        Architecture.from_json(space.sample(Random(0)).to_json(), other)
    assert space.hash in str(caught.value)
    assert other.hash in str(caught.value)
    with pytest.raises(SpaceError):
        list(other.neighbours(space.sample(Random(0))))


def test_decisions_with_one_name_or_with_a_condition_on_a_later_one_are_refused():
    first = Decision("a", (1, 2))
    with pytest.raises(SpaceError, match="decisions 0 and 1 are both named 'a'"):
        Space((first, Decision("a", (3, 4))))
    with pytest.raises(SpaceError, match="'b', which is not an earlier decision"):
        Space((Decision("a", (1, 2), taken(Decision("b", (1, 2)).ref, (1,))), Decision("b", (1, 2))))
