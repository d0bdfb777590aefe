"""A choice: one decision with finitely many options. The atom of every space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement, permutations, product
from math import comb, perm
from typing import Any

from niwaki.space.size import Symbol, op

Value = int | float | str | bool | tuple  # what an option may be; layers are options of `OneOf`, not of a Choice

MOST_OPTIONS = 100_000


class SpaceError(ValueError):
    """Choices, spaces or architectures that do not fit together."""


class BudgetError(ValueError):
    """Budgets that cannot be read, or that no architecture keeps; `architecture` is the one of least cost, where one limit alone cannot be kept."""

    def __init__(self, message: str, architecture: Any = None) -> None:
        super().__init__(message)
        self.architecture = architecture


@dataclass(frozen=True)
class Choice(Symbol):
    """One decision: exactly one of `options` is taken.

    name: ties. The same name within the nearest named block is one decision; `/name` is one decision in the whole
    network. Without a name the choice is a decision of its own, named by its path.

    A choice may stand wherever a size may, also inside an expression: `4 * Choice((8, 16))`.
    """

    options: tuple[Value, ...]
    name: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", tuple(self.options))
        label = f"choice {self.name!r}" if self.name else "an unnamed choice"
        if not self.options:
            raise SpaceError(f"{label} has no options; it needs at least one")
        for option in self.options:
            if not _is_value(option):
                raise SpaceError(
                    f"{label} has the option {option!r} of type {type(option).__name__}; an option is a number, a text or a tuple "
                    f"of these (layers are options of OneOf)"
                )
        # 1 and True and 1.0 are equal in Python, so two of them would be one option to every dictionary
        if len(set(self.options)) < len(self.options):
            raise SpaceError(f"{label} lists an option twice: {self.options}")
        if self.name is not None and not _is_name(self.name.removeprefix("/")):
            raise SpaceError(
                f"{self.name!r} cannot name a choice; a name has letters, digits and '_', after a '/' if it means the whole network"
            )

    def __getitem__(self, index: int) -> Symbol:
        """Element `index` of the option taken, where the options are tuples (see `choose`)."""
        if not all(isinstance(option, tuple) and -len(option) <= index < len(option) for option in self.options):
            raise SpaceError(f"element {index} does not exist in every option of {self!r}")
        return op("item", self, index)

    def __iter__(self):
        """The elements of the option taken: `first, second = choose(2, (8, 16, 24), name="pair")`."""
        if not all(isinstance(option, tuple) for option in self.options):
            raise TypeError(f"{self!r} has options that are no tuples, so it cannot be unpacked")
        return (self[i] for i in range(len(tuple(self.options[0]))))  # type: ignore[arg-type]


def choose(k: int, options: Sequence[Value], *, distinct: bool = True, ordered: bool = True, name: str | None = None) -> Choice:
    """A choice of `k` of the `options` at once; each option of the result is a k-tuple.

    distinct: no option is taken twice. ordered: (a, b) and (b, a) differ. With n options there are, in this order,
    n!/(n-k)! permutations, n^k tuples, C(n, k) combinations, C(n+k-1, k) combinations with repeats.

    >>> [len(choose(2, "abcd", distinct=d, ordered=o).options) for d in (True, False) for o in (True, False)]
    [12, 6, 16, 10]
    """
    n = len(options)
    if k < 1 or (distinct and k > n):
        raise SpaceError(f"cannot choose {k} of {n} {'distinct ' if distinct else ''}options: {tuple(options)}")
    count = (perm(n, k) if ordered else comb(n, k)) if distinct else (n**k if ordered else comb(n + k - 1, k))
    if count > MOST_OPTIONS:
        raise SpaceError(f"choosing {k} of {n} options gives {count:,} options, more than {MOST_OPTIONS:,}; use several choices instead")
    if distinct:
        return Choice(tuple(permutations(options, k) if ordered else combinations(options, k)), name)
    return Choice(tuple(product(options, repeat=k) if ordered else combinations_with_replacement(options, k)), name)


def _is_value(option: object) -> bool:
    if isinstance(option, tuple):
        return all(_is_value(part) for part in option)
    return isinstance(option, (int, float, str, bool))


def _is_name(name: str) -> bool:
    return bool(name) and all(part.replace("_", "a").isalnum() for part in name.split("."))
