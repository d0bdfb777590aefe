"""niwaki.explain_run: the network of any finished run, of a search or of a shrinking, read as a tree of decisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from niwaki.explain.hierarchy import Hierarchy, read_hierarchy
from niwaki.net.control import Network
from niwaki.run.api import explain_search
from niwaki.run.folder import RunError
from niwaki.run.progress import Progress
from niwaki.run.search import AnyTask
from niwaki.run.shrink import explain_shrunken, is_shrinking


def explain_run(
    path: str | Path,
    *,
    epochs: int | None = None,
    task: AnyTask | None = None,
    network: Network | None = None,
    progress: Progress | None = None,
    hierarchy: Hierarchy | str | Path | None = None,
) -> dict[str, Any]:
    """Reads the network of a finished run as a tree of decisions, and tells it in the run's report: the accuracies, and the hierarchy.

    epochs: of training with tree supervision, of a copy (None: a quarter of the run's own; 0: none, the tree of the network as it is). task,
    network: those that were given to `niwaki.search` or `niwaki.shrink`, if they were. hierarchy: in place of the induced one, or a file with it:
    a tree.json, in which the nodes may have been given names, as `labels`. Goes on where it was stopped.
    """
    if epochs is not None and epochs < 0:
        raise RunError(f"epochs={epochs}: of tree supervision there are none or more")
    own = read_hierarchy(hierarchy) if isinstance(hierarchy, (str, Path)) else hierarchy
    if is_shrinking(path):
        return explain_shrunken(path, epochs=epochs, task=task, progress=progress, hierarchy=own)
    return explain_search(path, epochs=epochs, task=task, network=network, progress=progress, hierarchy=own)
