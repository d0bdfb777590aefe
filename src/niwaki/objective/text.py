"""Rewards and ways over devices from text, as a command line or a configuration gives them: "tunas-absolute:beta=-0.1"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from niwaki.objective.devices import Across, CVaR, Mean, SmoothWorst, Worst
from niwaki.objective.dual import Adaptive, AugmentedLagrangian, Chance, Lagrangian, Minimax, feasible_first
from niwaki.objective.error import ObjectiveError
from niwaki.objective.front import HypervolumeGain
from niwaki.objective.reward import (
    Form,
    Hinge,
    Linear,
    Logarithm,
    LossProduct,
    Rejection,
    mnasnet_hard,
    mnasnet_soft,
    tunas_absolute,
)

FORMS: Mapping[str, Form | Adaptive | type[Linear]] = {  # as they are by themselves; a price has no default
    "mnasnet-soft": mnasnet_soft,
    "mnasnet-hard": mnasnet_hard,
    "tunas-absolute": tunas_absolute,
    "hinge": Hinge(),
    "rejection": Rejection(),
    "linear": Linear,
    "logarithm": Logarithm(),
    "fbnet-product": LossProduct(),
    "lagrangian": Lagrangian(),
    "augmented-lagrangian": AugmentedLagrangian(),
    "chance": Chance(),
    "minimax": Minimax(),
    "hypervolume": HypervolumeGain(),
    "feasible-first": feasible_first,
}
ACROSS: Mapping[str, Across] = {"mean": Mean(), "worst": Worst(), "smooth-worst": SmoothWorst(), "cvar": CVaR()}


def parse_form(text: str) -> Form | Adaptive:
    """A reward: its name, and numbers after a colon where others than the defaults are wanted.

    >>> parse_form("tunas-absolute:beta=-0.2"), parse_form("lagrangian:rate=0.1,decay=0.5")
    (Absolute(beta=-0.2), Lagrangian(rate=0.1, decay=0.5, most=10.0, two_sided=False))
    """
    return _parsed(text, FORMS, "reward")


def parse_across(text: str) -> Across:
    """How several devices become one: "mean", "mean:weights=1/2/1", "worst", "smooth-worst:temperature=0.1", "cvar:level=0.5"."""
    return _parsed(text, ACROSS, "way over devices")


def _parsed(text: str, known: Mapping[str, Any], what: str) -> Any:
    name, colon, rest = text.strip().partition(":")
    if name not in known:
        near = get_close_matches(name, known, n=1)
        raise ObjectiveError(
            f"{text!r}: {name!r} is no {what}{f' (did you mean {near[0]}?)' if near else ''}; there are {', '.join(known)}"
        )
    possible = [field.name for field in fields(known[name]) if field.name != "form"]
    values: dict[str, Any] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or key not in possible or key in values:
            wrong = f"{key!r} is given twice" if key in values else f"{part.strip()!r} is no setting"
            raise ObjectiveError(f"{text!r}: {wrong} of {name}; it has {', '.join(f'{one}=...' for one in possible) or 'none'}")
        values[key] = _value(value, text, key)
    if known[name] is Linear:
        if "price" not in values:
            raise ObjectiveError(f"{text!r}: {name} needs price=..., what a unit of the cost is worth in quality")
        return Linear(**values)
    return replace(known[name], **values)


def _value(text: str, whole: str, key: str) -> Any:
    if key == "two_sided":
        if text not in ("true", "false"):
            raise ObjectiveError(f"{whole!r}: {key} is true or false, not {text!r}")
        return text == "true"
    if text == "none" and key == "otherwise":
        return None
    listed = text.split("/") if key in ("weights", "price") else [text]
    try:
        numbers = tuple(float(part) for part in listed)
    except ValueError:
        raise ObjectiveError(f"{whole!r}: {key}={text} is no number") from None
    return numbers if key == "weights" or len(numbers) > 1 else numbers[0]
