"""How figures become verdicts: a bar on a mean is met by its whole interval or not at all, and a quick run decides nothing.

Every row states its bar. What is true by construction is no claim: it is said in the text of the section, without a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import comb
from typing import Any

from niwaki.run.claims import Claim, Section, Table
from niwaki.run.statistics import Interval


def at_least(found: Interval, bar: float) -> bool:
    """With a bar below 0, of a difference: it is not worse by more than that (non-inferiority)."""
    return found.low >= bar


def at_most(found: Interval, bar: float) -> bool:
    return found.high <= bar


def above(found: Interval, bar: float = 0.0) -> bool:
    return found.low > bar


def below(found: Interval, bar: float = 0.0) -> bool:
    return found.high < bar


def inside(found: Interval, centre: float, band: float) -> bool:
    return at_least(found, centre - band) and at_most(found, centre + band)


def outside(found: Interval, centre: float, band: float) -> bool:
    return below(found, centre - band) or above(found, centre + band)


def sign_test(wins: int, losses: int) -> float:
    """P(as many wins or more) if each comparison that is not even were a coin's toss.

    >>> sign_test(8, 2)
    0.0546875
    """
    return sum(comb(wins + losses, n) for n in range(wins, wins + losses + 1)) / 2 ** (wins + losses)


def claim(text: str, paper: str, measured: str, random_search: str, holds: bool) -> Claim:
    return Claim(text, paper, measured, random_search, "holds" if holds else "does not hold")


def not_testable(text: str, paper: str, why: str) -> Claim:
    return Claim(text, paper, why, "-", "not testable here")


def section(
    method: str, title: str, results: Mapping[str, Any], about: Iterable[str], claims: Iterable[Claim], tables: Iterable[Table] = ()
) -> Section:
    """The method's section; of a quick run with no verdict but that something is not testable."""
    quick = bool(results["quick"])
    rows = tuple(replace(one, verdict="not decided (quick)") if quick and one.verdict != "not testable here" else one for one in claims)
    return Section(method, title, tuple(about), rows, tuple(tables), quick)
