"""The page of claims: a bar is met by a whole interval or not at all, a quick run decides nothing, and the page has every experiment."""

import re
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from niwaki.objective import ObjectiveError
from niwaki.run.claims import Claim, Section
from niwaki.run.experiments import crank, irlas, multihardware, nao, neural_predictor, pyglove, rate_constraints, zero_cost
from niwaki.run.experiments.tables import searched
from niwaki.run.experiments.verdicts import above, at_least, at_most, below, claim, inside, not_testable, outside, section, sign_test
from niwaki.run.reproduce import EXPERIMENTS
from niwaki.run.statistics import Interval, bootstrap, bootstrap_of, share_of, spearman
from niwaki.space.space import Decision, Space
from niwaki.strategy.random import RandomSearch

PAGE = Path(__file__).parents[1] / "docs" / "claims.md"
NOT_ON_THE_PAGE: set[str] = set()  # experiments that nobody has run in full yet


# --- the page ---------------------------------------------------------------------------------------------------------------------


def test_the_page_has_a_section_of_every_experiment_but_of_those_known_to_be_missing():
    on_the_page = re.findall(r"<!-- (\w+): written by `niwaki reproduce", PAGE.read_text("utf-8"))
    assert len(set(on_the_page)) == len(on_the_page)
    known = {experiment.method for experiment in EXPERIMENTS}
    assert set(on_the_page) <= known
    assert known - set(on_the_page) <= NOT_ON_THE_PAGE
    assert "(quick)" not in re.sub(r"not decided \(quick\)", "", PAGE.read_text("utf-8"))
    assert "not decided" not in PAGE.read_text("utf-8")


# --- bars -------------------------------------------------------------------------------------------------------------------------


def test_a_bar_is_decided_by_the_end_of_the_interval_that_is_worse():
    found = Interval(0.5, 0.4, 0.6)
    assert at_least(found, 0.4)
    assert not at_least(found, 0.45)
    assert at_most(found, 0.6)
    assert not at_most(found, 0.55)
    assert above(found, 0.39)
    assert not above(found, 0.4)
    assert below(found, 0.61)
    assert not below(found, 0.6)
    assert inside(found, 0.5, 0.2)
    assert not inside(found, 0.5, 0.05)
    assert not inside(found, 0.45, 0.1)
    assert outside(found, 0.2, 0.1)
    assert outside(found, 0.8, 0.1)
    assert not outside(found, 0.35, 0.1)


def test_the_sign_test_counts_all_tosses_of_a_coin():
    for wins, losses in ((8, 2), (5, 5), (0, 3), (7, 0)):
        tosses = [sum(toss) for toss in product((0, 1), repeat=wins + losses)]
        assert sign_test(wins, losses) == np.mean([heads >= wins for heads in tosses])
    assert sign_test(0, 0) == 1


def test_the_interval_of_a_share_is_wilsons():
    """Its ends are the shares from which the observed one is 1.96 standard errors away: the definition, and no formula of it."""
    for hits, of in ((0, 10), (18, 20), (36, 40), (10, 10)):
        found = share_of(hits, of)
        assert found.mean == hits / of
        assert found.low + 1e-12 >= 0
        assert found.high <= 1 + 1e-12
        for end in (found.low, found.high):
            assert abs(end - found.mean) == pytest.approx(1.959964 * np.sqrt(max(end * (1 - end), 0) / of), abs=1e-6)


def test_a_bootstrapped_statistic_is_the_bootstrap_of_the_mean_where_it_is_the_mean():
    values = np.random.default_rng(1).normal(size=60)
    one, other = bootstrap_of(lambda places: float(values[places].mean()), 60, resamples=10_000), bootstrap(values.tolist())
    assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high), abs=1e-9)
    noisy = values + np.random.default_rng(2).normal(size=60)
    paired = bootstrap_of(lambda at: (spearman(values[at], noisy[at]) or 0.0) - (spearman(noisy[at], values[at]) or 0.0), 60)
    assert (paired.mean, paired.low, paired.high) == (0, 0, 0), "the same places for both"


# --- quick runs -------------------------------------------------------------------------------------------------------------------


def test_a_quick_section_has_no_verdict_and_cannot_be_given_one():
    claims = (claim("a", "-", "1", "-", True), claim("b", "-", "1", "-", False), not_testable("c", "-", "no data"))
    full = section("m", "M", {"quick": False}, ("how",), claims)
    assert [one.verdict for one in full.claims] == ["holds", "does not hold", "not testable here"]
    quick = section("m", "M", {"quick": True}, ("how",), claims)
    assert [one.verdict for one in quick.claims] == ["not decided (quick)", "not decided (quick)", "not testable here"]
    with pytest.raises(ValueError, match="a quick run decides nothing"):
        Section("m", "M", ("how",), (Claim("a", "-", "1", "-", "does not hold"),), quick=True)


def synthetic_multihardware(off=0.0):
    """Five searches; the worst ratio of Multi-MAX is off by about `off`."""
    rng, devices = np.random.default_rng(0), ["a", "b"]

    def entries(worst):
        return [{"ratios": [0.7, worst + 0.02 * rng.random()], "truth": 93 + rng.random()} for _ in range(5)]

    worsts = {"mean": 1.2, "worst": 1 + off, "a": 1.4, "b": 1.5, "capped": 1.0}
    found = {kind: {"policy": entries(worst), "random": entries(worst)} for kind, worst in worsts.items()}
    found["mean"]["policy"] = [{"ratios": [0.8, 1.2], "truth": 93.0} for _ in range(5)]
    found["capped"]["policy"][0] = {"error": "nothing within the caps"}
    return {
        "plan": {"steps": 10, "seeds": 5, "cap": 1.05}, "targets": dict.fromkeys(devices, 1.0), "found": found,
        "reference": {"row": 0, "cell": {"edge": "none"}, "truth": 92.0},
    }  # fmt: skip


def synthetic_rates():
    rates = {part: {"recall": 0.95, "precision": 0.5} for part in ("train", "validation", "test")}
    recall = [dict.fromkeys(("quantile", "cut", "bound", "frozen"), rates)] * 3
    one = {"chosen": "negatives", "test": 0.8, "validation": {"x": 0.8}, "tests": {"x": 0.8}}
    gains = [{"quantile": {**one, "test": 0.8 + gain}, "cross_entropy": one} for gain in (0.01, 0.06, 0.08)]
    f2 = [{"sweep": {"test": 0.5 - lost}, "cross_entropy": 0.5} for lost in (-0.01, 0.0, 0.02)]
    parts = {"recall digits": recall, "recall breast_cancer": recall, "higgs": gains, "logistic": gains, "f2": f2}
    return {"parts": parts, "plan": rate_constraints.Plan(seeds=(0, 1, 2)).to_json()}


def synthetic_nao():
    plan = nao.Plan(seeds=3).to_json()
    search = {
        "best": 91.0, "random_best": 90.0, "found": {}, "tokens": 0.99, "rises": 0.9, "distinct": 90,
        "mean": {"gradient": 88.0, "random": 87.0, "neighbours": 87.5, "parents": 86.0},
    }  # fmt: skip
    jobs = {f"search {seed}": search for seed in range(3)}
    jobs |= {f"cells {symmetric}": {"tokens": 0.995, "pairs": 0.9, "gap": 0.01 if symmetric else 0.05} for symmetric in (True, False)}
    return {"plan": plan, "jobs": jobs, "random_exact": 90.0, "best": 91.5}


def synthetic_neural_predictor():
    plan = neural_predictor.Plan(ranked=(100, 400), splits=((12, 8),), seeds=2, evolutions=2, most_evaluations=50).to_json()
    jobs = {f"rank {count} {seed}": {"predictor": 0.8, "params": 0.4} for count in (100, 400) for seed in range(2)}
    for seed in range(2):
        jobs |= {f"port {seed}": 0.5, f"stages {seed}": {"one": 80.0, "two": 81.0}}
        jobs |= {
            f"search {signal} {seed}": {"regret": [0.1] * 70, "rank": [3.0] * 70}
            for signal in ("cifar10_valid_acc_12ep", neural_predictor.TRUTH)
        }
        for name in neural_predictor.COLUMNS:
            jobs |= {f"sooner {name} 12 8 {seed}": 0.2 + 0.1 * seed}
            jobs |= {f"evolution {name} {population} {seed}": np.linspace(2, 0, 50).tolist() for population in (30, 100)}
    exact = {name: np.linspace(2, 0.1, 200).tolist() for name in neural_predictor.COLUMNS}
    return {"plan": plan, "jobs": jobs, "random_exact": exact}


def synthetic_irlas():
    plan = irlas.Plan(weights=(0.0, 0.1), seeds=3, tuned_on=9).to_json()
    one = {"accuracy": 94.0, "signal": 80.0, "topology": 0.5, "depth": 3.0, **dict.fromkeys(irlas.DEVICES, 10.0)}
    fast = {**one, "depth": 2.0, **dict.fromkeys(irlas.DEVICES, 10.5), "pixel3": 9.0}
    jobs = {f"{name} {w} {seed}": fast if w else one for name in irlas.STRATEGIES for w in (0.0, 0.1) for seed in (0, 1, 2, 9)}
    return {"plan": plan, "jobs": jobs, "above_expert": 0.01, "as_expert": 3}


def synthetic_zero_cost():
    rng, count = np.random.default_rng(0), 30
    truth = rng.random(count)
    scores = [{name: [float(value + 0.3 * rng.random())] * 2 for name in zero_cost.PROXIES} for value in truth]
    numbers = {name: rng.random(count).tolist() for name in ("params", "macs", "signal")}
    return {"plan": zero_cost.Plan(networks=count).to_json(), "scores": scores, "truth": truth.tolist(), **numbers}


def synthetic_pyglove():
    found = {"random": [94.0, 94.1, 94.2], "evolution": [94.0, 94.1, 94.2], "other": [94.2, 94.3, 94.3]}
    return {"plan": pyglove.Plan(("evolution", "other"), 40, 3, 3).to_json(), "found": found, "best": 94.4, "exact": 94.1}


SYNTHETIC = {
    irlas: synthetic_irlas, multihardware: synthetic_multihardware, nao: synthetic_nao, neural_predictor: synthetic_neural_predictor,
    pyglove: synthetic_pyglove, rate_constraints: synthetic_rates, zero_cost: synthetic_zero_cost,
}  # fmt: skip


@pytest.mark.parametrize("module", SYNTHETIC, ids=lambda module: module.EXPERIMENT.method)
def test_a_section_says_holds_of_a_full_run_alone(module, monkeypatch):
    monkeypatch.setattr(zero_cost, "bootstrap_of", partial(bootstrap_of, resamples=40))  # seconds of correlations, otherwise
    results = SYNTHETIC[module]()
    quick = module.section_of({**results, "quick": True})
    assert {one.verdict for one in quick.claims} <= {"not decided (quick)", "not testable here"}
    full = module.section_of({**results, "quick": False})
    assert {one.verdict for one in full.claims} <= {"holds", "does not hold", "not testable here"}
    assert [one.claim for one in full.claims] == [one.claim for one in quick.claims]
    assert not re.search(r"\bnan\b", full.text())


def verdict(module, results, words):
    (one,) = [one for one in module.section_of({**results, "quick": False}).claims if words in one.claim]
    return one.verdict


# --- what single experiments decide by ----------------------------------------------------------------------------------------------


def test_a_mean_within_the_bar_does_not_hold_where_its_interval_is_not():
    rates = synthetic_rates()
    assert verdict(rate_constraints, rates, "gains precision at 2 %") == "holds"
    assert verdict(rate_constraints, rates, "gains at least 0.04") == "does not hold", "0.05 on average, from 0.01 to 0.08"
    assert verdict(rate_constraints, rates, "F2") == "does not hold", "0.003 lost on average, but up to 0.02"
    assert verdict(rate_constraints, rates, "by the quantile") == "holds"
    assert verdict(rate_constraints, rates, "multiplier it is missed") == "does not hold"
    assert verdict(multihardware, synthetic_multihardware(), "meets the target") == "holds"
    assert verdict(multihardware, synthetic_multihardware(0.095), "meets the target") == "does not hold"
    assert verdict(multihardware, synthetic_multihardware(), "beats random search") == "does not hold"


def test_one_device_that_gains_and_depth_do_not_make_networks_faster():
    assert verdict(irlas, synthetic_irlas(), "faster") == "does not hold", "10 % on one of four, 5 % lost on the others"


def test_even_is_not_won():
    results = synthetic_nao()
    assert verdict(nao, results, "more than random search") == "does not hold", "three of three: p = 0.125"
    results["jobs"]["search 0"] = {**results["jobs"]["search 0"], "best": 90.0}
    (one,) = [one for one in nao.section_of({**results, "quick": False}).claims if "more than random search" in one.claim]
    assert "better in 2, worse in 0 of 3" in one.measured
    assert verdict(pyglove, synthetic_pyglove(), "at least as good") == "holds"
    assert verdict(pyglove, synthetic_pyglove(), "better than random search on average") == "does not hold", "evolution is even"


def test_a_search_that_found_nothing_is_left_out_in_pairs():
    first = [{"ratios": [1.0], "truth": 1.0}, {"error": "-"}, {"ratios": [3.0], "truth": 3.0}]
    second = [{"ratios": [0.5], "truth": 0.5}, {"ratios": [9.0], "truth": 9.0}, {"ratios": [2.5], "truth": 2.5}]
    assert multihardware._less(first, second, "truth") == Interval(0.5, 0.5, 0.5)


def test_a_pick_of_the_policy_is_kept_where_random_search_has_none(shared_data, monkeypatch):
    monkeypatch.setenv("NIWAKI_SHARED", str(shared_data.parent))
    picked, calls = multihardware._picked, []

    def second_fails(trials, objective):
        calls.append(len(trials))
        if len(calls) == 2:
            raise ObjectiveError("nothing within the caps")
        return picked(trials, objective)

    monkeypatch.setattr(multihardware, "_picked", second_fails)
    found = multihardware.run_searches("capped", multihardware.Plan(steps=40, seeds=1, cap=100.0))
    assert calls == [40, 40]
    assert list(found["policy"][0]) == ["ratios", "truth"]
    assert found["random"] == [{"error": "nothing within the caps"}]


def test_the_c_that_is_printed_is_that_of_the_data(shared_data, monkeypatch):
    monkeypatch.setenv("NIWAKI_SHARED", str(shared_data.parent))
    for name in crank.SETS:
        train, _ = crank._data(name, None)
        assert (train.x.shape[1], train.y.shape[1]) == (crank.INPUTS[name], crank.LABELS[name])


# --- searches -----------------------------------------------------------------------------------------------------------------------


def test_a_search_ends_with_the_trial_that_it_was_for():
    space = Space((Decision("d", tuple(range(9))), Decision("e", tuple(range(20)))))

    def metrics(arch):
        return {"accuracy": float(arch["d"])}

    whole, _ = searched(RandomSearch(), space, metrics, 40, 0)
    until, _ = searched(RandomSearch(), space, metrics, 40, 0, until=lambda trial: trial.arch["d"] == 8)
    first = next(at for at, trial in enumerate(whole) if trial.arch["d"] == 8)
    assert [trial.arch for trial in until] == [trial.arch for trial in whole[: first + 1]]
    batches, _ = searched(RandomSearch(), space, metrics, 40, 0, batch=7)
    assert [trial.number for trial in batches] == list(range(40))
