"""Rates: quantiles against numpy and finite differences, bounds by hand and by count, figures against scikit-learn, constraints met."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, fbeta_score, precision_recall_curve, roc_curve

from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.task.task import Task
from niwaki.train.loop import evaluate, train
from niwaki.train.rate_bounds import RateBound, area_loss, area_multipliers, area_precisions, bounds, unit
from niwaki.train.rates import (
    Rated,
    RateError,
    RateObjective,
    f_beta_sweep,
    parse_rate,
    precision_at_k,
    quantile,
    quantile_loss,
    rates_at,
    score_of,
)
from niwaki.train.recipe import Recipe

LOSSES = [
    RateObjective("precision_at_k", 0.1, surrogate="negatives"),
    RateObjective("precision_at_k", 0.3, surrogate="contrast"),
    RateObjective("precision_at_recall", 0.9),
    RateObjective("tpr_at_fpr", 0.1),
    RateObjective("f_beta", 2.0, share=0.3, surrogate="positives"),
    RateObjective("aucpr"),
]


def random_batch(seed, count=60, share=0.3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    positive = torch.rand(count, generator=generator) < share
    scores = torch.randn(count, generator=generator, dtype=dtype) + positive
    return scores, positive


# ---------------------------------------------------------------- quantiles


def test_without_a_bandwidth_the_quantile_is_numpys():
    rng = np.random.default_rng(0)
    for _ in range(200):
        values, level = rng.normal(size=int(rng.integers(1, 60))), float(rng.uniform(0, 1))
        found = float(quantile(torch.from_numpy(values), level, bandwidth=0.0))
        assert found == pytest.approx(np.quantile(values, level, method="hazen"), abs=1e-6)
    assert float(quantile(torch.arange(5.0), 0.0)) == pytest.approx(0.0, abs=1e-12)
    assert float(quantile(torch.arange(5.0), 1.0)) == pytest.approx(4.0)


def test_a_wide_quantile_is_near_the_narrow_one_of_many_values_also_far_out():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for level in (0.01, 0.05, 0.5, 0.9, 0.99):
        assert float(quantile(values, level, bandwidth=0.02)) == pytest.approx(np.quantile(values.numpy(), level), abs=0.1)


@pytest.mark.parametrize("bandwidth", [0.0, 0.02, 0.1, 0.4])
def test_the_gradient_of_the_quantile_sums_to_one_and_is_the_finite_difference(bandwidth):
    for seed in range(20):
        values = random_batch(seed, 30)[0].requires_grad_()
        quantile(values, 0.7, bandwidth=bandwidth).backward()
        gradient = values.grad
        assert float(gradient.sum()) == pytest.approx(1, abs=1e-12)
        with torch.no_grad():
            for i in range(0, 30, 7):
                step = torch.zeros(30, dtype=torch.float64)
                step[i] = 1e-7
                slope = (quantile(values + step, 0.7, bandwidth=bandwidth) - quantile(values - step, 0.7, bandwidth=bandwidth)) / 2e-7
                assert float(slope) == pytest.approx(float(gradient[i]), abs=1e-4)


def test_a_quantile_that_cannot_be_is_an_error():
    for values, level, bandwidth in (
        (torch.zeros(0), 0.5, 0.1),
        (torch.zeros(2, 2), 0.5, 0.1),
        (torch.zeros(3), 1.1, 0.1),
        (torch.zeros(3), 0.5, -1),
    ):
        with pytest.raises(RateError):
            quantile(values, level, bandwidth=bandwidth)


# ---------------------------------------------------------------- quantile losses


@pytest.mark.parametrize("objective", LOSSES, ids=lambda objective: objective.name)
def test_a_loss_does_not_change_with_shift_or_scale_and_its_gradient_is_the_finite_difference(objective):
    for seed in range(5):
        scores, positive = random_batch(seed)
        scores.requires_grad_()
        loss = objective.loss(scores, positive)
        loss.backward()
        with torch.no_grad():
            assert objective.loss(scores + 17.0, positive).item() == pytest.approx(loss.item(), abs=1e-12)
            assert objective.loss(scores * 3.0, positive).item() == pytest.approx(loss.item(), abs=1e-12)
            assert abs(float(scores.grad.sum())) < 1e-12
            assert abs(float((scores.grad * scores).sum())) < 1e-12, "no pull on the scale either"
            for i in range(0, len(scores), 9):
                step = torch.zeros(len(scores), dtype=torch.float64)
                step[i] = 1e-6
                slope = (objective.loss(scores + step, positive) - objective.loss(scores - step, positive)) / 2e-6
                assert float(slope) == pytest.approx(float(scores.grad[i]), rel=1e-4, abs=1e-8)


def test_a_batch_of_one_kind_gives_a_loss_of_nothing_to_learn_rather_than_nan():
    scores = torch.randn(8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for positive in (torch.zeros(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)):
        for objective in LOSSES:
            loss = objective.loss(scores, positive)
            gradient = torch.autograd.grad(loss, scores)[0]
            assert bool(loss.isfinite())
            assert bool(gradient.isfinite().all())
    equal = torch.zeros(8, requires_grad=True)
    torch.autograd.grad(LOSSES[0].loss(equal, torch.arange(8) < 3), equal)


def test_cutting_the_gradient_through_the_threshold_is_another_gradient():
    scores, positive = random_batch(1)
    scores.requires_grad_()
    whole, cut = (
        torch.autograd.grad(quantile_loss(scores, positive, positive, 0.9, "negatives", through_threshold=through), scores)[0]
        for through in (True, False)
    )
    assert abs(float(whole.sum())) < 1e-12
    assert float(cut.sum()) > 0.1, "all scores drift down"


def test_objectives_that_cannot_be_are_refused_with_what_is_possible():
    for make, says in (
        (lambda: RateObjective("precision"), r"there are precision_at_k"),
        (lambda: RateObjective("precision_at_k", 1.5), r"between 0 and 1"),
        (lambda: RateObjective("f_beta", 0.0), r"between 0 and infinity"),
        (lambda: RateObjective("aucpr", surrogate="hinge"), r"there are negatives, positives, contrast"),
        (lambda: RateObjective("precision_at_k", 0.1, share=0.2), r"belongs to f_beta"),
        (lambda: RateObjective("f_beta", 2.0).loss(*random_batch(0)), r"give share="),
        (lambda: RateObjective("recall_at_precision", 0.9).loss(*random_batch(0)), r"rate_bounds"),
        (lambda: RateObjective("precision_at_recall", 0.9).metric(torch.zeros(4), torch.zeros(4)), r"0 of 4 are positive"),
        (lambda: RateObjective("precision_at_recall", 0.9).metric(torch.tensor([1.0, torch.nan]), torch.tensor([0, 1])), r"finite"),
        (lambda: RateObjective("aucpr").threshold(*random_batch(0)), r"no threshold"),
        (
            lambda: RateObjective("recall_at_precision", 0.9).threshold(torch.tensor([1.0, 0.0]), torch.tensor([False, True])),
            r"no threshold of 2",
        ),
        (lambda: parse_rate("precision@recal=0.95"), r"did you mean precision@recall=0.95"),
        (lambda: RateBound("f_beta", 0.5), r"there are recall_at_precision"),
        (lambda: RateBound("tpr_at_fpr", 0.0), r"between 0 and 1"),
    ):
        with pytest.raises(RateError, match=says):
            make()
    assert parse_rate("recall@precision = 90%") == RateObjective("recall_at_precision", 0.9)
    assert parse_rate("tpr@fpr=0.01") == RateObjective("tpr_at_fpr", 0.01)
    assert parse_rate("f2") == RateObjective("f_beta", 2.0)
    assert parse_rate("aucpr") == RateObjective("aucpr")


# ---------------------------------------------------------------- figures


def test_figures_are_scikit_learns_with_ties_and_without():
    for seed in range(12):
        scores, positive = random_batch(seed, 60)
        if seed % 2:
            scores = (scores * 2).round() / 2
        s, y = scores.numpy(), positive.numpy()
        precision, recall, _ = precision_recall_curve(y, s)
        fpr, tpr, _ = roc_curve(y, s, drop_intermediate=False)
        assert RateObjective("aucpr").metric(scores, positive) == pytest.approx(average_precision_score(y, s), abs=1e-12)
        for target in (0.05, 0.3, 0.8, 0.95):
            assert RateObjective("precision_at_recall", target).metric(scores, positive) == pytest.approx(precision[recall >= target].max())
            at_precision = recall[:-1][precision[:-1] >= target].max(initial=0.0)  # the last point is of no threshold
            assert RateObjective("recall_at_precision", target).metric(scores, positive) == pytest.approx(at_precision)
            assert RateObjective("tpr_at_fpr", target).metric(scores, positive) == pytest.approx(tpr[fpr <= target].max())
        for beta in (0.5, 2.0):
            objective = RateObjective("f_beta", beta)
            best = max(fbeta_score(y, s >= t, beta=beta) for t in np.unique(s)[::-1])
            assert objective.metric(scores, positive) == pytest.approx(best)
            assert fbeta_score(y, s >= objective.threshold(scores, positive), beta=beta) == pytest.approx(best)


def test_precision_at_k_is_the_mean_over_all_orders_of_equal_scores():
    scores, positive = torch.tensor([3.0, 2.0, 2.0, 2.0, 1.0]), torch.tensor([1, 1, 0, 0, 1], dtype=torch.bool)
    assert [precision_at_k(scores, positive, share) for share in (0.2, 0.4, 0.8, 1.0, 0.01)] == pytest.approx(
        [1, (1 + 1 / 3) / 2, 0.5, 0.6, 1]
    )
    rng = np.random.default_rng(0)
    total = []
    for _ in range(4000):
        order = rng.permutation(5)
        ranked = order[np.argsort(-scores.numpy()[order], kind="stable")]
        total.append(positive.numpy()[ranked[:3]].mean())
    assert precision_at_k(scores, positive, 0.6) == pytest.approx(np.mean(total), abs=0.02)


def test_a_threshold_from_validation_gives_its_rate_there():
    scores, positive = random_batch(3, 400)
    for objective, rate in (
        (RateObjective("precision_at_recall", 0.9), "recall"),
        (RateObjective("tpr_at_fpr", 0.1), "false_positive_rate"),
        (RateObjective("precision_at_k", 0.05), "share"),
    ):
        rates = rates_at(scores, positive, objective.threshold(scores, positive))
        assert rates[rate] == pytest.approx(objective.target, abs=0.02)
        figure = {"recall": "precision", "false_positive_rate": "recall", "share": "precision"}[rate]
        assert rates[figure] == pytest.approx(objective.metric(scores, positive))


# ---------------------------------------------------------------- bounds

SIX = torch.tensor([2.0, 0.5, -1.0, 1.0, -0.5, -2.0], dtype=torch.float64)
LABELS = torch.tensor([1, 1, 1, 0, 0, 0], dtype=torch.bool)


def test_bounds_and_their_losses_have_the_values_of_six_points_by_hand():
    plus, minus = bounds(SIX, LABELS, "hinge")
    assert (float(plus), float(minus)) == (0 + 0.5 + 2.0, 2.0 + 0.5 + 0)
    hand_plus = np.log1p(np.exp([-2.0, -0.5, 1.0])).sum()
    hand_minus = np.log1p(np.exp([1.0, -0.5, -2.0])).sum()
    assert [float(part) for part in bounds(SIX, LABELS, "cross_entropy")] == pytest.approx([hand_plus, hand_minus])
    state = {"multiplier": 0.5}
    by_hand = {
        # (1 + lam (1 - a)) L+ + lam a L- - lam (1 - a) |Y+|, each over 6
        "recall_at_precision": (1 + 0.5 * 0.2) * 2.5 + 0.5 * 0.8 * 2.5 - 0.5 * 0.2 * 3,
        # L- + lam (L+ + (b - 1) |Y+|)
        "precision_at_recall": 2.5 + 0.5 * (2.5 - 0.2 * 3),
        # L+ + lam (L- - r |Y-|)
        "tpr_at_fpr": 2.5 + 0.5 * (2.5 - 0.8 * 3),
    }
    for kind, value in by_hand.items():
        assert float(RateBound(kind, 0.8, bound="hinge").loss(SIX, LABELS, state)) == pytest.approx(value / 6)
    crossed = float(RateBound("precision_at_recall", 0.8).loss(SIX, LABELS, state))
    assert crossed == pytest.approx((hand_minus + 0.5 * (hand_plus - 0.2 * 3 * np.log(2))) / 6)


def test_the_paper_s_form_of_recall_at_precision_is_the_code_s_with_its_multiplier_scaled():
    scores, positive = random_batch(0)
    alpha, lam = 0.8, 0.7
    plus, minus = (float(part) for part in bounds(scores, positive, "hinge"))
    paper = (1 + lam) * plus + lam * alpha / (1 - alpha) * minus - lam * int(positive.sum())
    ours = RateBound("recall_at_precision", alpha, bound="hinge").loss(scores, positive, {"multiplier": lam / (1 - alpha)})
    assert float(ours) * len(scores) == pytest.approx(paper)


@pytest.mark.parametrize("bound", ["hinge", "cross_entropy"])
def test_true_positives_are_bounded_from_below_and_false_positives_from_above(bound):
    for seed in range(1000):
        scores, positive = random_batch(seed, 20)
        scores = scores * (0.1 + seed % 7) - 0.5
        plus, minus = (float(part) / unit(bound) for part in bounds(scores, positive, bound))
        predicted = scores > 0
        assert int(positive.sum()) - plus <= int((predicted & positive).sum()) + 1e-9
        assert minus >= int((predicted & ~positive).sum()) - 1e-9


def test_a_multiplier_follows_the_true_rates_and_never_falls_below_zero():
    state = {"multiplier": 1.0}
    recall = RateBound("precision_at_recall", 0.9, rate=1.0).update(state, SIX, LABELS)["multiplier"]
    assert recall == pytest.approx(1 + 0.9 - 2 / 3)
    precision = RateBound("recall_at_precision", 0.5, rate=1.0).update(state, SIX, LABELS)["multiplier"]
    assert precision == pytest.approx(1 + (0.5 * 1 - 0.5 * 2) / 3)
    false = RateBound("tpr_at_fpr", 0.1, rate=1.0).update(state, SIX, LABELS)["multiplier"]
    assert false == pytest.approx(1 + 1 / 3 - 0.1)
    assert RateBound("recall_at_precision", 0.1, rate=100.0).update(state, SIX, LABELS)["multiplier"] == 0.0


def test_the_area_is_the_mean_of_recalls_at_its_precisions_each_with_its_own_bias():
    scores, positive = random_batch(5)
    biases, multipliers = torch.linspace(-1, 1, 4, dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    assert area_precisions(4).tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    for bound in ("hinge", "cross_entropy"):
        single = [
            float(RateBound("recall_at_precision", float(p), bound=bound).loss(scores + b, positive, {"multiplier": float(m)}))
            for p, b, m in zip(area_precisions(4), biases, multipliers, strict=True)
        ]
        assert float(area_loss(scores, positive, biases, multipliers, bound=bound)) == pytest.approx(np.mean(single))
    moved = area_multipliers(multipliers, scores, positive, biases, rate=0.3)
    for p, b, m, after in zip(area_precisions(4), biases, multipliers, moved, strict=True):
        expected = RateBound("recall_at_precision", float(p), rate=0.3).update({"multiplier": float(m)}, scores + b, positive)
        assert float(after) == pytest.approx(expected["multiplier"])


# ---------------------------------------------------------------- tasks


def test_scores_are_log_odds_of_the_positive_class():
    logits = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = torch.softmax(logits, 1)[:, 2]
    assert torch.allclose(score_of(logits, 2), torch.log(p / (1 - p)))
    assert torch.equal(score_of(logits[:, :1]), logits[:, 0])
    assert torch.equal(score_of(logits[:, 0]), logits[:, 0])
    with pytest.raises(RateError, match=r"class 4 cannot be the positive one of 4"):
        score_of(logits, 4)


def test_any_classification_task_can_be_trained_for_a_rate():
    task = ImageClassification(digits())
    rated = Rated(task, parse_rate("precision@recall=0.95"), positive_class=8)
    with torch.random.fork_rng():  # whatever tests ran before
        torch.manual_seed(0)
        module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    module = train(module, rated, Recipe(epochs=15, weight_decay=1e-4), rated.part("train"))
    figures = evaluate(module, rated, rated.part("validation"))
    assert rated.metric == "precision_at_recall_0.95"
    assert figures["precision_at_recall_0.95"] > 0.4, "0.1 by chance"
    assert {"loss", "accuracy"} <= set(figures)
    assert rated.describe() == task.describe() | {
        "metric": rated.metric,
        "rate": {"kind": "precision_at_recall", "target": 0.95, "surrogate": None, "bandwidth": 0.02, "share": None},
        "positive_class": 8,
        "own_share": 0.2,
    }
    missing = [name for name in vars(Task) if not name.startswith("_") and not hasattr(rated, name)]
    assert not missing, "it is a task in every respect"
    assert (rated.source, rated.sha256, rated.nbytes) == (task.source, task.sha256, task.nbytes)
    with pytest.raises(RateError, match=r"class 10 cannot be"):
        replace(rated, positive_class=10)


def test_a_sweep_for_f_beta_spans_the_prevalence():
    for beta, prevalence in ((0.5, 0.1), (1.0, 0.3), (2.0, 0.1), (2.0, 0.7)):
        shares = [objective.share for objective in f_beta_sweep(beta, prevalence)]
        assert shares == sorted(shares)
        assert shares[0] < prevalence < shares[-1] < 1


def trained(kind, positive, x, steps=400, **how):
    """A linear model trained for recall 0.95; its recall at its own threshold on the same data."""
    torch.manual_seed(0)
    model = torch.nn.Linear(x.shape[1], 1).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    bound = RateBound("precision_at_recall", 0.95, rate=how.get("rate", 0.1))
    state = bound.init()
    for _ in range(steps):
        scores = model(x)[:, 0]
        if kind == "quantile":
            loss = quantile_loss(scores, positive, positive, 0.95, "negatives", through_threshold=how.get("through", True))
        else:
            loss = bound.loss(scores, positive, state)
            state = bound.update(state, scores, positive)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model(x)[:, 0].detach()


def test_multipliers_reach_the_recall_and_without_steps_they_do_not():
    generator = torch.Generator().manual_seed(0)
    positive = torch.rand(1500, generator=generator) < 0.15
    x = torch.randn(1500, 5, generator=generator, dtype=torch.float64) + 0.8 * positive[:, None]
    met, missed = (rates_at(trained("bound", positive, x, rate=rate), positive, 0.0)["recall"] for rate in (1.0, 0.0))
    assert met == pytest.approx(0.95, abs=0.03)
    assert abs(missed - 0.95) > 0.03
    ranked = RateObjective("precision_at_recall", 0.95)
    chance = float(positive.double().mean())
    assert ranked.metric(trained("quantile", positive, x), positive) > 2 * chance
