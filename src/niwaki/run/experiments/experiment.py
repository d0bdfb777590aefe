"""What `niwaki reproduce` needs of a method: a plan, what is measured by it, and the section of the page of claims that follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from niwaki.run.claims import Section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress


class Plan(Protocol):
    """All that decides what is measured, fixed before any work starts."""

    @property
    def minutes(self) -> str:
        """How long it takes, for people, as in "about 35 minutes on two idle cores"."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Two plans are the same where these are."""
        ...


@dataclass(frozen=True)
class Experiment:
    """A method's claims. names: what it may be called, the first its own. plan: the full one, or (quick: True) a small one that decides nothing.

    measure(plan, folder, progress, workers): everything that the claims are made from, as JSON; each part of the work is stored in the folder
    when it is done (see `run.workers` and `run.folder.once`), so that the same command goes on where it was stopped, and what comes out does not depend on the
    number of workers. section_of: the claims, a function of `{"method", "quick", "plan", "machine", **measured}` alone. section: its name
    in the page, where that is not the first of `names`.
    """

    names: tuple[str, ...]
    plan: Callable[[bool], Any]
    measure: Callable[[Any, Folder, Progress, int], dict[str, Any]]
    section_of: Callable[[dict[str, Any]], Section]
    section: str = ""

    @property
    def method(self) -> str:
        return self.section or self.names[0]
