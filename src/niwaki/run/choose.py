"""Which of the networks that were measured to look at again, and which to deliver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from niwaki.net.layer import Conv, Linear, SqueezeExcite, Subsample
from niwaki.net.place import INPUT, Placement, fix, forks
from niwaki.report.figure import SHARES
from niwaki.space.architecture import Architecture
from niwaki.space.size import refs
from niwaki.trial import Trial

FEW = 1000  # images in a validation part that cannot tell good networks apart by itself


def preferred(trials: Sequence[Trial], *, metric: str, examples: int, simplest: Placement | None = None) -> list[Trial]:
    """The trials that succeeded, the one to choose first. examples: that `metric` was measured on.

    A few hundred examples cannot tell 99.0 from 99.3 %: of the trials within one standard error of the best metric the one of the smallest
    loss comes first, which every example has a part in. simplest: in place of that the network of the fewest layers (the one-standard-error
    rule, Breiman et al. 1984, section 3.4.3), for data so few that a more complex one is hardly ever worth its risk.
    """
    succeeded = [trial for trial in trials if trial.status == "ok"]
    best = max((trial.metrics[metric] for trial in succeeded), default=0.0)
    tied = best - (max(best * (1 - best), 0.0) / examples) ** 0.5 if metric in SHARES else best  # of others the spread is not known

    def order(trial: Trial) -> tuple[float, float, float, int]:
        if (value := trial.metrics[metric]) < tied:
            return -value, 0, trial.metrics["loss"], trial.number
        return -tied, layers_with_weights(simplest, trial.arch) if simplest else 0, trial.metrics["loss"], trial.number

    return sorted(succeeded, key=order)


def layers_with_weights(placement: Placement, arch: Mapping[str, Any]) -> int:
    """Convolutions, linear layers and squeeze-excites that `arch` has: what a device runs one after the other."""
    return sum(isinstance(item.layer, (Conv, Linear, SqueezeExcite)) for item in fix(placement, arch).items)


def unlike(trials: Sequence[Trial], placement: Placement, count: int) -> list[Trial]:
    """`count` of the ranked `trials` that differ in structure (block types, depths, resolution).

    In turn the first with an option of a frame decision that none before it has; when there is no such, the first of a new structure; then
    the first that is left. Shared weights tell widths apart, but not structures, of which they favour what the search has trained most; a
    short training does, where it is given the chance.
    """
    rest, taken, seen = list(trials), list[Trial](), set[Hashable]()
    every, leading = forks(placement), frame(placement)

    def structure(trial: Trial) -> Hashable:
        return frozenset((name, option) for name, option in trial.arch.items() if name in every)

    while rest and len(taken) < count:
        new = (trial for trial in rest if any((name, trial.arch[name]) not in seen for name in leading))
        other = (trial for trial in rest if structure(trial) not in seen)
        trial = next(new, None) or next(other, None) or rest[0]
        rest.remove(trial)
        taken.append(trial)
        seen |= {structure(trial), *((name, trial.arch[name]) for name in leading)}
    return taken


def frame(placement: Placement) -> list[str]:
    """The forks that every architecture has to decide: resolutions, depths, and block types that are always there."""
    every = forks(placement)
    return [decision.name for decision in placement.decisions if decision.condition is True and decision.name in every]


def resolutions(placement: Placement) -> list[str]:
    """The decisions that say to which size the network's input is reduced before anything else."""
    subsampled = (item for item in placement.items if isinstance(item.layer, Subsample) and item.inputs == (INPUT,))
    return list(dict.fromkeys(ref.name for item in subsampled for size in item.shape.spatial for ref in refs(size)))


def all_options(archs: Sequence[Architecture], added: Sequence[Architecture], names: Sequence[str], count: int) -> list[Architecture]:
    """`count` of `archs` and `added`: of `archs` the last are left out, but none that alone has an option of one of `names`.

    Where so few networks cannot have every option between them, the last of all are left out. The first always stays.
    """
    kept = [*archs, *added]
    while len(kept) > count:
        having = Counter((name, arch[name]) for arch in kept for name in names)
        last = len(kept) - len(added) - 1  # of `archs`
        spare = (at for at in range(last, 0, -1) if all(having[name, kept[at][name]] > 1 for name in names))
        del kept[next(spare, -1)]
    return kept
