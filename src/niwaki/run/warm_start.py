"""Warm start: a search that begins with the shared weights, and what was learned of the choices, of an earlier run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.gradient.dmasking import DMaskingSearch
from niwaki.gradient.one_shot import OneShotSearch
from niwaki.gradient.train_once import TrainOnceSearch
from niwaki.gradient.tunas import TuNASSearch
from niwaki.run.folder import RunError, read_config
from niwaki.space.space import Space
from niwaki.store.checkpoint import load_checkpoint


def checkpoint_of(earlier: Path) -> Path:
    """Where the run in `earlier` keeps the state of its search."""
    return earlier / "checkpoints" / "search.safetensors"


def warm_start_(learner: DMaskingSearch | TuNASSearch | OneShotSearch | TrainOnceSearch, earlier: Path) -> str:
    """Sets the weights of `learner`, and its logits where it has any, from the run in `earlier`; what was taken over, for people.

    Tensors go by name. Channels are shared from the first on, and kernels around their middle, in a supernet: so they are here, where the
    two networks differ in size. Logits go by decision and option; where the earlier run had fewer budgets, its last one's.
    """
    found, config = load_checkpoint(checkpoint_of(earlier)), read_config(earlier)
    if found is None or config is None:
        raise RunError(f"{earlier} has no checkpoint of a search to start from")
    own, taken = learner.net.state_dict(), 0
    for name, value in own.items():
        other = found.arrays.get(f"net.{name}")
        if other is not None and other.ndim == value.dim():
            _overlay_(value, torch.from_numpy(np.array(other)))
            taken += 1
    text = f"Warm start: {taken} of {len(own)} tensors of the supernet come from {earlier}"
    if isinstance(learner, DMaskingSearch) and "logits" in found.arrays:
        logits, certain = torch.from_numpy(np.array(found.arrays["logits"])), found.metadata["taken"]
        known = _inherit_logits_(learner, Space.from_json(config["plan"]["space"]), logits, certain)
        text += f", and what is known of {known} of its {len(learner.spaces[0])} choices"
    return f"{text}{f' ({found.note})' if found.note else ''}."


@torch.no_grad()
def _inherit_logits_(learner: DMaskingSearch, earlier: Space, logits: Tensor, certain: Sequence[dict[str, Any]]) -> int:
    """Sets the logits of options that `earlier`, of which `logits` (A, D, O) are, has too; gives the number of such decisions.

    certain: the options taken in each of the A. Each distribution gets those with its own options taken, or else any.
    """
    sources, own_taken = [], [distribution.taken for distribution in learner.distributions]
    for at, taken in enumerate(own_taken):
        alike = [row for row, one in enumerate(certain) if one == taken] or list(range(len(certain)))
        sources.append(logits[alike[min(own_taken[:at].count(taken), len(alike) - 1)]])
    known = 0
    for row, decision in enumerate(learner.spaces[0].decisions):
        if decision.name not in {other.name for other in earlier.decisions}:
            continue
        there = earlier[decision.name].options
        pairs = [(option, there.index(value)) for option, value in enumerate(decision.options) if value in there]
        for own, source in zip(learner.logits, sources, strict=True):
            for mine, theirs in pairs:
                own[row, mine] = source[earlier.position(decision.name), theirs]
        known += bool(pairs)
    return known


@torch.no_grad()
def _overlay_(value: Tensor, other: Tensor) -> None:
    """Copies `other` into `value` where they overlap: from the first in dimensions of channels, around the middle in those of space."""
    for dim in range(value.dim()):
        mine, theirs = value.shape[dim], other.shape[dim]
        size = min(mine, theirs)
        value = value.narrow(dim, (mine - size) // 2 if dim >= 2 else 0, size)
        other = other.narrow(dim, (theirs - size) // 2 if dim >= 2 else 0, size)
    value.copy_(other)
