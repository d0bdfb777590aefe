"""Budgets are read as they are written, or refused with a reason; objectives put feasible first; the front is what brute force finds."""

from itertools import product
from random import Random

import pytest

from niwaki.objective import (
    Constraint,
    Objective,
    ObjectiveError,
    budget_text,
    latency,
    macs,
    params,
    pareto_front,
    parse_budget,
    parse_budgets,
    parse_limit,
    size,
)
from niwaki.space.choice import BudgetError
from niwaki.testing.toy import toy_space
from niwaki.trial import Trial

ARCH = next(toy_space().enumerate())


@pytest.mark.parametrize(
    ("text", "resource", "upper"),
    [
        ("macs<=5e6", "macs", 5_000_000),
        ("params<=1M", "params", 1_000_000),
        ("params <= 1.1 M", "params", 1_100_000),
        ("macs<=1_000_000", "macs", 1_000_000),
        ("macs<=.3k", "macs", 300),
        ("macs<=2.5", "macs", 2),
        ("macs≤1e3", "macs", 1000),
        ("size<=200kB", "size", 200_000),
        ("size<=1MiB", "size", 1_048_576),
        ("size<=200000", "size", 200_000),
        ("activations<=5k", "activations", 5000),
        ("peak_activation<=3e4", "peak_activation", 30_000),
        ("latency(onnxruntime)<=2ms", "latency(onnxruntime)", 2.0),
        ("latency('torch') <= 1500us", "latency(torch)", 1.5),
        ("latency(openvino)<=0.002s", "latency(openvino)", 2.0),
    ],
)
def test_a_limit_is_read_exactly(text, resource, upper):
    limit = parse_limit(text)
    assert (limit.resource.name, limit.upper, limit.share) == (resource, upper, None)
    assert parse_limit(str(limit)) == limit


def test_a_limit_of_a_million_and_a_tenth_is_not_rounded_down_by_floating_point():
    for tenths in range(1, 300):
        assert parse_limit(f"macs<={tenths / 10}M").upper == tenths * 100_000
        assert parse_limit(f"macs<={tenths}%").of(100).upper == tenths


def test_a_share_becomes_a_limit_once_its_reference_is_known():
    limit = parse_limit("macs<=50%")
    assert (limit.upper, limit.share, str(limit)) == (None, 0.5, "macs<=50%")
    assert limit.of(1_000_001) == parse_limit("macs<=500000")
    assert parse_limit("macs<=3").of(1_000_001).upper == 3
    with pytest.raises(BudgetError, match="fix the reference"):
        limit.ratio({"macs": 3})


def test_limits_written_in_python_are_those_read_from_text():
    assert (macs <= 5e6) == parse_limit("macs<=5e6")
    assert (size <= 200_000) == parse_limit("size<=200kB")
    assert (latency("onnxruntime") <= 2) == parse_limit("latency(onnxruntime)<=2ms")
    assert Objective("accuracy", [macs <= 5e6]).subject_to == parse_budget("macs<=5M")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("macs", "'macs' is no limit; a limit looks like"),
        ("", "is no limit"),
        ("mac<=3", "'mac' is no resource .did you mean macs.*there are macs, params, size"),
        ("flops<=3", "'flops' is no resource.*there are macs"),
        ("<=3", "'' is no resource"),
        ("macs>=3", "'>=' cannot be asked for"),
        ("macs<3", "'<' cannot be asked for"),
        ("macs==3", "'==' cannot be asked for"),
        ("macs<=", "'' is no number; a limit looks like"),
        ("macs<=many", "'many' is no number"),
        ("macs<=nan", "'nan' is no number"),
        ("macs<=-3", "above 0, not -3"),
        ("macs<=0", "above 0, not 0"),
        ("macs<=0%", "above 0, not 0"),
        ("macs<=0.2", "leaves nothing to spend"),
        ("macs<=1e30", "more than can be counted"),
        ("macs<=1e999999999", "is no unit of macs"),
        ("macs<=5ms", "'ms' is no unit of macs.*k, K, M, G"),
        ("macs<=5m", "'m' is no unit of macs"),
        ("size<=5M", "'M' is no unit of size.*MB"),
        ("latency(torch)<=5MB", "'MB' is no unit of latency.torch..*ms"),
        ("latency<=5ms", "latency needs a runtime.*onnxruntime"),
        ("latency(onxruntime)<=5ms", "did you mean onnxruntime"),
    ],
)
def test_what_is_no_limit_is_refused_with_what_is_possible(text, says):
    with pytest.raises(BudgetError, match=says):
        parse_limit(text)


@pytest.mark.parametrize("bound", [0, -1, float("inf"), float("nan"), True, "3", None])
def test_a_limit_is_a_positive_number(bound):
    with pytest.raises(BudgetError):
        Constraint(macs, bound)


def test_a_budget_joins_limits_by_and_or_commas_or_in_a_list():
    expected = (macs <= 5e6, params <= 1e6)
    for written in ("macs<=5e6 and params<=1M", "macs<=5e6,params<=1e6", ["macs<=5M", "params<=1M"], "macs<=5e6 , params <= 1M"):
        assert parse_budget(written) == expected
    assert budget_text(expected) == "macs<=5000000 and params<=1000000"
    assert parse_budget(budget_text(expected)) == expected


def test_several_budgets_are_the_entries_of_a_list_or_stand_between_semicolons():
    expected = ((macs <= 1e6,), (macs <= 2e6, params <= 1e5))
    assert parse_budgets(["macs<=1e6", "macs<=2e6 and params<=1e5"]) == expected
    assert parse_budgets([["macs<=1e6"], ["macs<=2e6", "params<=1e5"]]) == expected
    assert parse_budgets("macs<=1e6; macs<=2e6, params<=1e5") == expected
    assert parse_budgets("macs<=1e6") == expected[:1]
    assert parse_budgets([]) == ()


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("macs<=5e6 and macs<=1M", "macs is limited twice"),
        ("macs<=5e6 and", "is no limit"),
        (["macs<=5e6", 3], "3 is no limit"),
        ("latency(onnxruntime)<=2ms", "cannot be searched under yet; limit macs, params"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(written, says):
    with pytest.raises(BudgetError, match=says):
        parse_budget(written)


def test_the_same_budget_twice_is_refused():
    with pytest.raises(BudgetError, match="asked for twice"):
        parse_budgets(["macs<=1e6", "macs<=1M"])


# ---------------------------------------------------------------- objective

TWO_LIMITS = Objective("accuracy", (macs <= 100, params <= 10))


def figures(accuracy, spent_macs, spent_params):
    return {"accuracy": accuracy, "macs": spent_macs, "params": spent_params}


@pytest.mark.parametrize(
    ("better", "worse", "because"),
    [
        (figures(0.1, 100, 10), figures(0.9, 101, 1), "feasible comes first"),
        (figures(0.6, 100, 10), figures(0.5, 1, 1), "of two feasible ones, quality"),
        (figures(0.5, 50, 10), figures(0.5, 60, 1), "of two equally good ones, cost, by the first limit"),
        (figures(0.5, 50, 5), figures(0.5, 50, 6), "then by the second"),
        (figures(0.1, 110, 10), figures(0.9, 100, 20), "of two infeasible ones, the smaller violation"),
    ],
)
def test_better_is_feasible_first_then_quality_then_cost(better, worse, because):
    assert TWO_LIMITS.better(better, worse), because
    assert not TWO_LIMITS.better(worse, better), because
    assert not TWO_LIMITS.better(better, better), "nothing is better than itself"


def test_better_orders_any_metrics_and_agrees_with_best():
    rng = Random(0)
    trials = [Trial(n, ARCH, figures(rng.randrange(4) / 4, rng.randrange(70, 120), rng.randrange(6, 13))) for n in range(60)]
    best = TWO_LIMITS.best(trials)
    assert TWO_LIMITS.feasible(best.metrics)
    assert not any(TWO_LIMITS.better(trial.metrics, best.metrics) for trial in trials)
    for a, b, c in product([trial.metrics for trial in trials[:20]], repeat=3):
        assert not (TWO_LIMITS.better(a, b) and TWO_LIMITS.better(b, a))
        assert not (TWO_LIMITS.better(a, b) and TWO_LIMITS.better(b, c)) or TWO_LIMITS.better(a, c)


def test_best_of_nothing_feasible_is_an_error_naming_the_closest():
    trials = [
        Trial(0, ARCH, figures(0.9, 300, 1)),
        Trial(1, ARCH, figures(0.8, 120, 1)),
        Trial(2, ARCH, {}, status="failed"),
        Trial(3, ARCH, figures(1.0, 1, 1), status="cut"),
    ]
    with pytest.raises(ObjectiveError, match=r"none of 4 trials is within macs<=100 and params<=10; the closest, trial 1, .*macs = 120"):
        TWO_LIMITS.best(trials)
    with pytest.raises(ObjectiveError, match="none of 0 trials is within the search"):
        Objective().best([])


def test_a_missing_metric_is_named():
    with pytest.raises(ObjectiveError, match="maximizes 'accuracy'; a trial has macs"):
        Objective().better({"macs": 1.0}, {"macs": 1.0})
    with pytest.raises(ObjectiveError, match="macs<=100 needs the metric 'macs'; a trial has accuracy"):
        TWO_LIMITS.feasible({"accuracy": 1.0})


@pytest.mark.parametrize("costs", [("macs",), ("macs", "params"), ()])
def test_the_front_is_what_no_other_trial_dominates(costs):
    rng = Random(1)
    objective = Objective("accuracy", (macs <= 8, params <= 8))
    for _ in range(50):
        trials = [
            Trial(n, ARCH, figures(rng.randrange(5), rng.randrange(1, 9), rng.randrange(1, 9)), status=rng.choice(("ok", "ok", "cut")))
            for n in range(25)
        ]
        names = costs or ("macs", "params")
        ok = [trial for trial in trials if trial.status == "ok"]

        def point(trial, names=names):
            return (-trial.metrics["accuracy"], *(trial.metrics[name] for name in names))

        def dominates(a, b, point=point):
            no_worse = all(x <= y for x, y in zip(point(a), point(b), strict=True))
            return no_worse and (point(a) != point(b) or a.number < b.number)

        expected = [b for b in ok if not any(dominates(a, b) for a in ok)]
        front = pareto_front(trials, objective, costs)
        assert sorted(trial.number for trial in front) == sorted(trial.number for trial in expected)
        assert [trial.metrics["macs"] for trial in front] == sorted(trial.metrics["macs"] for trial in front)
    with pytest.raises(ObjectiveError, match="needs energy of every trial"):
        pareto_front(ok, objective, ("energy",))
