"""The page of claims: for each method what was published, what was measured here, and whether it holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from niwaki.store.files import atomic_write

Verdict = Literal["holds", "does not hold", "not testable here", "not decided (quick)"]

HEAD = """# Claims

Every claim is an experiment. `niwaki reproduce METHOD` runs what a paper claims at the scale of the machine it stands on, and writes its section
of this page: the paper's figure, the measured one, random search at equal cost beside it, and a verdict. What does not hold is reported so.
Every row states its bar. A bar on a mean is met by the whole 95 % interval or not at all, and what is so by construction has no verdict.
"""


@dataclass(frozen=True)
class Claim:
    """One row. paper: the figure and where it comes from. random_search: the same, for random search at equal cost, or why there is none."""

    claim: str
    paper: str
    measured: str
    random_search: str
    verdict: Verdict

    def __post_init__(self) -> None:
        if self.verdict not in get_args(Verdict):
            raise ValueError(f"the verdict on {self.claim!r} is one of {', '.join(get_args(Verdict))}, not {self.verdict!r}")


@dataclass(frozen=True)
class Table:
    """A table below the claims. columns: its head; rows: as many texts each."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Section:
    """What the page says of one method. about: how it was measured, one paragraph each. quick: of a run that decides nothing."""

    method: str
    title: str
    about: tuple[str, ...]
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...] = ()
    quick: bool = False

    def __post_init__(self) -> None:
        if self.quick and (decided := [one.claim for one in self.claims if one.verdict in ("holds", "does not hold")]):
            raise ValueError(f"a quick run decides nothing, but the section of {self.method} has a verdict on {decided[0]!r}")

    def text(self) -> str:
        """The section in Markdown, between its markers."""
        claims = Table("", ("claim", "paper", "measured here", "random search at equal cost", "verdict"), tuple(
            (one.claim, one.paper, one.measured, one.random_search, f"**{one.verdict}**") for one in self.claims
        ))  # fmt: skip
        parts = [f"## {self.title}", "\n".join(grid(claims.columns, claims.rows)), *self.about]
        for table in self.tables:
            parts += [f"### {table.title}", "\n".join(grid(table.columns, table.rows))]
        return "\n\n".join([_begin(self.method, quick=self.quick), *parts, _end(self.method)])


def write_section(path: Path, section: Section) -> bool:
    """Puts the section into the page, in place of the one of the same method; the rest of the page stays as it is.

    Returns False, and leaves the page, where a quick run's would take the place of a full run's.
    """
    page = path.read_text("utf-8") if path.is_file() else HEAD
    found = _section(section.method).search(page)
    if found and section.quick and not found["quick"]:
        return False
    text = section.text()
    page = page[: found.start()] + text + page[found.end() :] if found else f"{page.rstrip()}\n\n{text}\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, page)
    return True


def percent(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def _begin(method: str, *, quick: bool) -> str:
    return f"<!-- {method}{' (quick)' if quick else ''}: written by `niwaki reproduce {method}`, do not edit -->"


def _end(method: str) -> str:
    return f"<!-- end of {method} -->"


def _section(method: str) -> re.Pattern[str]:
    name = re.escape(method)
    return re.compile(rf"<!-- {name}(?P<quick> \(quick\))?: .*?<!-- end of {name} -->", re.DOTALL)


def grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = (columns, tuple("---" for _ in columns), *rows)
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]
