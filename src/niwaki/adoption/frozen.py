"""Why channels stay: for every layer whose channels no cut reaches, the operator that keeps them whole, its line, and the reason."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx

from niwaki.adoption.cut import evaluated_always
from niwaki.adoption.flat import layer_of, place_in_code
from niwaki.adoption.groups import Array
from niwaki.adoption.operators import arguments, name_of
from niwaki.adoption.reading import Output, Reading

MAKES = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "convolution"), 0),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "embedding"), 1),
}  # axis of the weight along which a layer makes channels
SHOWN = 3  # layers named in a note
SLIDES, PICKS, ORDER = "it slides along them", "it picks them by number", "it depends on their order"
WHY = (
    (("conv",), SLIDES + ", mixing neighbours"),
    (("pool", "unfold", "upsample", "grid", "pad"), SLIDES),
    (("var", "std"), "with fewer its variance would be of a single one"),
    (("layer_norm", "rms_norm", "group_norm", "batch_norm"), "with fewer it would normalise a single one"),
    (("softmax",), "it normalises over them"),
    (("index", "gather", "select", "slice", "narrow", "split", "chunk", "unbind"), PICKS),
    (("flip", "roll", "sort", "topk", "cum", "diff", "tril", "triu"), ORDER),
    (("arg", "prod", "logsumexp", "median", "all", "any", "count", "norm", "numel"), "it works on all of them at once"),
    (("view", "reshape", "flatten"), "it mixes their positions with those of another axis"),
    (("attention",), "a softmax runs over them"),
)  # what an operator that freezes an axis does with it, by a part of its name; any other lets them meet channels that are fixed
MEET = "they meet positions there that never change"


def frozen_notes(reading: Reading) -> list[str]:
    """One note per operator that keeps layers' channels whole, and per output that has channels of which others are made; none for those of
    other outputs (logits are read by nobody, and would stay anyway), nor where the layer is noted as opaque."""
    read = [reading.of(meeting.value)[meeting.axis] for meeting in reading.meetings]
    summed_over = np.unique(np.concatenate(read)) if read else np.zeros(0, np.int64)
    found: dict[Any, dict[str, int]] = {}
    for node in reading.captured.graph.nodes:
        axis = _made(reading, node)
        if axis is None or len(axis) < 2 or not reading.is_fixed(axis):
            continue
        reasons = [reason for reason in reading.units.reasons(axis) if reason is not None]
        outputs = [reason for reason in reasons if isinstance(reason, Output)]
        ends = bool(outputs) and not reading.units.share(axis, summed_over)
        if reasons and not ends and not any(isinstance(reason, fx.Node) and reason in reading.opaque for reason in reasons):
            found.setdefault((outputs or reasons)[0], {})[layer_of(node) or name_of(node)] = len(axis)
    notes: dict[str, dict[str, int]] = {}
    for reason, layers in found.items():
        notes.setdefault(_told(reason), {}).update(layers)
    return [f"{_layers(layers)}: {told}" for told, layers in notes.items()] + _always_evaluated(reading)


def _always_evaluated(reading: Reading) -> list[str]:
    norms = evaluated_always(reading.captured.owner)
    named = ", ".join(norms[:SHOWN]) + (f" and {len(norms) - SHOWN} more" if len(norms) > SHOWN else "")
    told = f"the batch norm {named} stays" if len(norms) == 1 else f"the batch norms {named} stay"
    return (
        [f"{told} in evaluation while the model is trained, as its own train() has it, and so in all that is made of it"] if norms else []
    )


def _made(reading: Reading, node: fx.Node) -> Array | None:
    """Channels that a layer with a weight of the owner's makes."""
    dim = MAKES.get(name_of(node)) if node.op == "call_function" else None
    weight = arguments(node).get("weight") if dim is not None else None
    if dim is None or not isinstance(weight, fx.Node) or weight not in reading.axes:
        return None
    axis: Array = reading.of(weight)[dim]
    return np.unique(axis)


def _layers(layers: dict[str, int]) -> str:
    shown = [f"{layer} stays at {size}" for layer, size in list(layers.items())[:SHOWN]]
    return ", ".join(shown) + (f" and {len(layers) - SHOWN} more layers stay" if len(layers) > SHOWN else "")


def _told(reason: Any) -> str:
    if not isinstance(reason, fx.Node):
        return str(reason)
    name = name_of(reason) or str(getattr(reason.target, "__name__", reason.target))
    where = " ".join(filter(None, (layer_of(reason), name, f"({place})" if (place := place_in_code(reason)) else "")))
    return f"{where} keeps them whole, for {next((why for parts, why in WHY if any(part in name for part in parts)), MEET)}"
