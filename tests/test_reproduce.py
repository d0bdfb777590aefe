"""Reproducing a claim: every training once, random search exact, and a page that says what came out."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations, permutations
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from niwaki.cost.count import count_macs
from niwaki.net.place import space_of
from niwaki.recipe.fbnetv2 import DIGITS_BUDGETS, digits_space, most_likely_options
from niwaki.run.claims import Claim, Section, write_section
from niwaki.run.experiments import dmasking as module
from niwaki.run.experiments.dmasking import Plan, mask_place, quick_plan
from niwaki.run.experiments.dmasking_section import Truth, section_of
from niwaki.run.folder import RunError
from niwaki.run.reproduce import reproduce, write_page
from niwaki.run.statistics import bootstrap, expected_pick, ranks, spearman
from niwaki.testing.memory import saved_bytes


def tiny() -> Plan:
    """The quick plan with a single seed of searches and of everything as little as there can be."""
    quick = quick_plan()
    return replace(
        quick, search=replace(quick.search, batch_size=400), training=replace(quick.training, batch_size=400), budgets=(20_000,), search_seeds=(0,),
        sweep=(("add", (0.0, 1.0)), ("mul", (0.0, 2.4))), masks=(2,), branches=(2,), rounds=1,
    )  # fmt: skip


# --- statistics ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [1, 2, 3, 6])
def test_exact_random_search_is_the_mean_over_all_orders_of_drawing(draws):
    key, values = [0.3, 0.1, 0.9, 0.5, 0.2, 0.8], [3.0, -1.0, 4.0, 1.5, 9.0, 2.6]
    picks = [values[max(order[:draws], key=lambda i: key[i])] for order in permutations(range(6))]
    assert expected_pick(key, values, draws) == pytest.approx(np.mean(picks))


def test_of_equal_candidates_random_search_picks_each_as_often():
    key, values = [1, 1, 0, 1, 0], [10.0, 20.0, 5.0, 60.0, 7.0]
    picks = []
    for drawn in combinations(range(5), 3):
        best = [i for i in drawn if key[i] == max(key[j] for j in drawn)]
        picks.append(np.mean([values[i] for i in best]))
    assert expected_pick(key, values, 3) == pytest.approx(np.mean(picks))
    with pytest.raises(ValueError, match="6 draws of 5 candidates"):
        expected_pick(key, values, 6)


def test_an_interval_is_over_the_seeds_and_the_same_every_time():
    values = np.random.default_rng(0).normal(5, 2, 40).tolist()
    interval = bootstrap(values)
    assert interval == bootstrap(values)
    error = np.std(values) / np.sqrt(40)
    assert interval.low == pytest.approx(np.mean(values) - 1.96 * error, abs=0.2 * error)
    assert interval.high == pytest.approx(np.mean(values) + 1.96 * error, abs=0.2 * error)


def test_ranks_share_ties_and_correlate():
    assert ranks([5, 7, 5, 1]).tolist() == [2.5, 1, 2.5, 4]
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3], [9, 4, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [1, 1, 1]) is None


# --- the space and what stands where ------------------------------------------------------------------------------------------


def test_the_space_of_check_seven_has_108_members_and_its_budgets_spread_over_them():
    network = digits_space()
    space, cost = space_of(network), count_macs(network)
    macs = np.array([cost(arch) for arch in space.enumerate()])
    assert len(macs) == space.size == 108
    shares = [(macs <= budget).mean() for budget in DIGITS_BUDGETS]
    assert shares == sorted(shares)
    assert shares[0] < 0.25
    assert shares[-1] > 0.9


def test_the_published_derivation_takes_the_likeliest_option_of_each_decision():
    space = space_of(digits_space())
    p = {decision.name: np.eye(len(decision.options))[-1] for decision in space.decisions}
    assert list(most_likely_options(space, p).values()) == [decision.options[-1] for decision in space.decisions]


def test_a_member_is_compared_with_those_at_its_cost_and_within_the_budget():
    macs, tests = [10, 20, 28, 30, 40, 50], [0.5, 0.6, 0.9, 0.7, 0.8, 0.95]
    trainings = [[{"validation": {"accuracy": t, "loss": 1.0}, "test": {"accuracy": t}, "seconds": 2.0}] * 2 for t in tests]
    truth = Truth({"networks": [{"macs": m} for m in macs], "trainings": trainings})
    assert truth.rank(3, 40) == 3  # 0.9 and 0.8 are better, 0.95 is over the budget
    assert truth.share(3, 40) == 3 / 4  # those of 20 to 40
    assert truth.share(5, 40) == 1 / 2  # over the budget: those up to its own cost, and of at least 33: 40 and itself
    assert truth.draws(5.0) == 4  # 2.5 trainings, rounded up, and the one of what was found
    assert truth.by_random_search(40, 5) == pytest.approx(0.9)
    assert truth.by_random_search(40, 1) == pytest.approx(np.mean(tests[:5]))


def test_a_mask_before_batch_norm_is_divided_away():
    norms = mask_place()
    assert norms["before"] < 1e-3 * norms["after"]


def test_bytes_saved_are_those_of_the_maps_each_once_without_the_parameters():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8, bias=False))
    x = torch.randn(16, 4)
    maps = 4 * (16 * 4 + 16 * 8)  # the input of the first layer; the ReLU's output, which it and the next layer keep
    assert saved_bytes(lambda: module(x).sum(), module) == maps

    scale = torch.ones(8, requires_grad=True)

    def scaled():  # the product of a weight and a mask is no parameter, and is kept for the gradient of its input; so is the mask
        return F.linear(module[1](module[0](x)), module[2].weight * scale).sum()

    assert saved_bytes(scaled, module) == maps + 4 * 8 * 8 + 4 * 8
    with torch.no_grad():
        assert saved_bytes(lambda: module(x).sum(), module) == 0


# --- running -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A tiny run that was stopped on its way and taken up again; how often each job was begun."""
    path = tmp_path_factory.mktemp("reproduce")
    begun: list[tuple] = []
    original = {name: getattr(module, name) for name in ("train_member", "run_search")}
    left = [20]

    def watched(name):
        def job(*arguments):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            result = original[name](*arguments)
            begun.append((name, *arguments[1:]))
            return result

        return job

    patch = pytest.MonkeyPatch()
    for name in original:
        patch.setattr(module, name, watched(name))
    with pytest.raises(KeyboardInterrupt):
        reproduce("dmasking", out=path / "run", claims=path / "claims.md", quick=True, workers=1, plan=tiny())
    assert not (path / "claims.md").exists()
    found = reproduce("dmaskingnas", out=path / "run", claims=path / "claims.md", quick=True, workers=1, plan=tiny())
    patch.undo()
    return path, found, begun


def test_a_run_taken_up_again_repeats_nothing_and_leaves_nothing_out(finished):
    path, _, begun = finished
    assert len(begun) == len(set(map(repr, begun))) == 8 * 2 + 1 + 4
    again = len(begun)
    reproduce("dmasking", out=path / "run", claims=path / "claims.md", quick=True, workers=1, plan=tiny())
    assert len(begun) == again


def test_a_quick_run_decides_nothing_but_shows_every_claim(finished):
    _, found, _ = finished
    assert {row["verdict"] for row in found["claims"]} == {"not decided (quick)", "not testable here"}
    assert all(row["claim"] and row["paper"] and row["measured"] and row["random_search"] for row in found["claims"])
    assert json.loads(json.dumps(found)) == found


def test_the_page_is_a_function_of_the_stored_results(finished):
    path, _, _ = finished
    page = (path / "claims.md").read_bytes()
    write_page(path / "run" / "results.json", path / "again.md")
    assert (path / "again.md").read_bytes() == page


def test_the_expected_cost_that_is_reported_is_the_mean_over_all_members(finished):
    path, _, _ = finished
    results = json.loads((path / "run" / "results.json").read_text())
    network = tiny().network
    space, cost = space_of(network), count_macs(network)
    for one in results["searches"]:
        p = {d.name: dict(zip(d.options, one["probabilities"][d.name], strict=True)) for d in space.decisions}
        mean = sum(prod(p[name][option] for name, option in arch.items()) * cost(arch) for arch in space.enumerate())
        assert one["expected_macs"] == pytest.approx(mean, rel=1e-5)


def test_full_results_are_decided(finished):
    path, _, _ = finished
    results = json.loads((path / "run" / "results.json").read_text())
    claims = section_of({**results, "quick": False}).claims
    assert {claim.verdict for claim in claims} >= {"holds", "not testable here"}
    assert "not decided (quick)" not in {claim.verdict for claim in claims}
    assert next(claim for claim in claims if "published size" in claim.claim).verdict == "holds"


def test_another_plan_does_not_go_on_in_the_same_folder(finished):
    path, _, _ = finished
    with pytest.raises(RuntimeError, match="another configuration"):
        reproduce("dmasking", out=path / "run", claims=path / "claims.md", quick=True, workers=1, plan=replace(tiny(), candidates=2))


def test_an_unknown_method_is_named_with_the_nearest_one(tmp_path):
    with pytest.raises(RunError, match="did you mean dmasking"):
        reproduce("dmaskin", out=tmp_path / "run", claims=tmp_path / "claims.md")
    assert not (tmp_path / "run").exists()


# --- the page ------------------------------------------------------------------------------------------------------------------


def section(method: str, measured: str, *, quick: bool = False) -> Section:
    claim = Claim("it works", "always [abstract]", measured, "9 | 10", "holds" if not quick else "not decided (quick)")
    return Section(method, method.upper(), ("How it was measured.",), (claim,), quick=quick)


def test_a_section_takes_the_place_of_its_own_and_of_no_other(tmp_path):
    page = tmp_path / "docs" / "claims.md"
    write_section(page, section("one", "1.0"))
    write_section(page, section("two", "2.0"))
    page.write_text(page.read_text().replace("# Claims", "# Our claims") + "\nA note of our own.\n")
    write_section(page, section("one", "1.5"))
    text = page.read_text()
    assert text.count("## ONE") == text.count("## TWO") == 1
    assert "1.5" in text
    assert "1.0" not in text
    assert "2.0" in text
    assert text.startswith("# Our claims")
    assert text.endswith("A note of our own.\n")
    before = page.read_bytes()
    write_section(page, section("one", "1.5"))
    assert page.read_bytes() == before


def test_a_quick_section_never_replaces_a_full_one(tmp_path):
    page = tmp_path / "claims.md"
    assert write_section(page, section("one", "quick 1", quick=True))
    assert write_section(page, section("one", "quick 2", quick=True))
    assert "quick 1" not in page.read_text()
    assert write_section(page, section("one", "full"))
    assert not write_section(page, section("one", "quick 3", quick=True))
    assert "full" in Path(page).read_text()
    assert "quick 3" not in page.read_text()
