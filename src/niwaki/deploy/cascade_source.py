"""A cascade as a small Python class, `cascade.py`, with its members as torch programs beside it: torch is all that it needs."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from niwaki.deploy.audit import BATCH_SIZES, Audit, compare, scale_of
from niwaki.deploy.card import ExportError, ModelCard
from niwaki.deploy.cascade import clear_of_thresholds, facts_of
from niwaki.deploy.committee import Committee
from niwaki.deploy.confidence import CONFIDENCES, Confidence, entropy, gap, logit_gap, max_probability
from niwaki.deploy.export import ONNX_TOLERANCE
from niwaki.store.files import atomic_write

FILE = "cascade.py"

# of probabilities p (B, K), as niwaki.deploy.confidence has them
_CONFIDENCE_LINES: dict[Confidence, tuple[str, ...]] = {
    max_probability: ("return p.amax(1)",),
    gap: ("first, second = p.topk(2, 1).values.unbind(1)", "return first - second"),
    logit_gap: ("first, second = p.topk(2, 1).values.unbind(1)", "return (first - second) / (first + second)"),
    entropy: ("return 1 + torch.special.xlogy(p, p).sum(1) / math.log(p.shape[1])",),
}
assert set(_CONFIDENCE_LINES) == set(CONFIDENCES)


def write_cascade_source(committee: Committee, folder: str | Path, card: ModelCard, images: NDArray, programs: Sequence[bytes]) -> Audit:
    """Writes `cascade.py` and `member-1.pt2`, `member-2.pt2`, ... into `folder`; they were loaded, and answered `images` as the committee does.

    programs: of each member of the rule, in its order, what `torch.export.save` wrote (as `model.pt2`): stored images to logits.
    """
    began, folder, rule = time.perf_counter(), Path(folder), committee.rule
    if rule is None or len(programs) != len(rule.members):
        raise ExportError(f"{len(programs)} programs were given for {0 if rule is None else len(rule.members)} members")
    if committee.confidence not in _CONFIDENCE_LINES:
        known = ", ".join(one.__name__ for one in _CONFIDENCE_LINES)
        raise ExportError(f"cascade.py can hold the confidence functions {known}; this committee has one of its own")
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"member-{at + 1}.pt2" for at in range(len(programs))]
    for stale in folder.glob("member-*.pt2"):  # of a cascade of more members
        stale.unlink()
    for name, content in zip(names, programs, strict=True):
        atomic_write(folder / name, content)
    atomic_write(folder / FILE, _source(committee, card, names))
    cascade = loaded(folder / FILE).Cascade()
    clear, outputs = clear_of_thresholds(committee, images)

    def run(batch: NDArray) -> NDArray:
        logits, exits = cascade(torch.from_numpy(batch))
        if (exits.numpy() != committee.predict(batch).exits).any():
            raise ExportError(f"{FILE} lets images leave at another exit than the committee does")
        return logits.numpy()

    difference = compare(FILE, run, clear, outputs, tolerance=ONNX_TOLERANCE)
    size = sum((folder / name).stat().st_size for name in (FILE, *names))
    return Audit(FILE, size, time.perf_counter() - began, len(clear), BATCH_SIZES, max_difference=difference, scale=scale_of(outputs))


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("niwaki_written_cascade", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _source(committee: Committee, card: ModelCard, names: Sequence[str]) -> str:
    facts: dict[str, Any] = facts_of(committee)
    lines = _CONFIDENCE_LINES[committee.confidence]
    vote = "outputs.softmax(1)" if committee.average == "probabilities" else "outputs"
    total = vote if committee.average == "last" else f"{vote} if at == 0 else total + {vote}"
    title = " -> ".join(facts["members"])
    return _TEMPLATE.format(
        title=title.replace('"', "'").replace("\\", "/"),
        imports="import math\n" if any("math." in line for line in lines) else "",
        classes=_words("CLASSES", card.class_names),
        members=_words("MEMBERS", names),
        costs=_tuple(facts["costs"]),
        thresholds=_tuple(facts["thresholds"]),
        temperatures=_tuple(facts["temperatures"]),
        total=total,
        mean="total" if committee.average == "last" else "total / (at + 1)",
        probabilities="mean" if committee.average == "probabilities" else "mean.softmax(1)",
        answer="means.clamp(min=1e-300).log()" if committee.average == "probabilities" else "means",
        of="of the last member that ran" if committee.average == "last" else "averaged over the members that ran",
        confidence="\n".join(f"    {line}" for line in lines),
    )


def _words(name: str, words: Sequence[str]) -> str:
    """The words as a tuple called `name`, in one line where they fit."""
    quoted = [json.dumps(word, ensure_ascii=False) for word in words]
    line = f"{name} = ({', '.join(quoted)}{',' if len(words) == 1 else ''})"
    return line if len(line) <= 140 else "\n".join([f"{name} = (", *(f"    {word}," for word in quoted), ")"])


def _tuple(values: Sequence[float]) -> str:
    return f"({', '.join(repr(float(np.float64(value))) for value in values)}{',' if len(values) == 1 else ''})"


_TEMPLATE = '''"""A cascade of classifiers, {title}: whoever is sure enough is the last to be asked.

    cascade = Cascade(); logits, exits = cascade(images)      images as stored; exits: how many members ran for each

Needs torch. The members are the torch programs beside this file.
"""

{imports}from pathlib import Path

import torch
from torch import Tensor

{classes}
{members}
COSTS = {costs}  # of one run of each member
THRESHOLDS = {thresholds}  # of confidence, behind each member but the last; above 1: nobody stops there
TEMPERATURES = {temperatures}  # by which the logits of each member are divided


class Cascade:
    def __init__(self, folder: str | Path = Path(__file__).parent) -> None:
        self.members = [torch.export.load(Path(folder) / name).module() for name in MEMBERS]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K), {of}, and how many did (B,). Each member runs on those that are left."""
        left = torch.arange(len(images))
        exits = torch.zeros(len(images), dtype=torch.int64)
        for at, member in enumerate(self.members):
            outputs = member(images[left]).double() / TEMPERATURES[at]
            total = {total}
            mean = {mean}
            means = torch.empty_like(mean) if at == 0 else means
            stop = confidence({probabilities}) >= THRESHOLDS[at] if at < len(THRESHOLDS) else torch.ones(len(left), dtype=torch.bool)
            means[left[stop]], exits[left[stop]] = mean[stop], at + 1
            left, total = left[~stop], total[~stop]
            if not len(left):
                break
        return {answer}.float(), exits


def confidence(p: Tensor) -> Tensor:
    """How sure the answer with probabilities p (B, K) is, from 0 to 1."""
{confidence}
'''
