"""Metrics as people read them: shares in per cent, others as numbers, and those that a search maximizes as their negative by their name."""

from __future__ import annotations

SHARES = ("accuracy", "balanced_accuracy", "macro_f1")
RATES = ("precision_at_", "recall_at_", "tpr_at_")  # how the names of rates begin that are shares, too
NEGATIVE = "neg_"  # scikit-learn's prefix for what is to be small


def is_share(metric: str) -> bool:
    return metric in SHARES or metric.startswith(RATES)


def figure_name(metric: str) -> str:
    """`balanced accuracy`; `rmse` of neg_rmse."""
    return metric.removeprefix(NEGATIVE).replace("_", " ")


def value_of(metric: str, value: float) -> float:
    return -value if metric.startswith(NEGATIVE) else value


def figure(metric: str, value: float, digits: int = 1) -> str:
    """The value of a metric.

    >>> figure("accuracy", 0.98611), figure("neg_rmse", -12.3456), figure("r2", 0.5)
    ('98.6 %', '12.35', '0.5')
    """
    return f"{100 * value:.{digits}f} %" if is_share(metric) else f"{value_of(metric, value):.{3 + digits}g}"
