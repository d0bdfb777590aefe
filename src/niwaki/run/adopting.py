"""`niwaki adopt`: whether somebody's PyTorch model can be read, whether it stays the same, and which of its channels change together."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from niwaki.adoption.describe import choices_of
from niwaki.cost.count import count_params
from niwaki.deploy.plain import Example
from niwaki.net.control import Network
from niwaki.net.operation import Operation
from niwaki.net.picture import picture
from niwaki.net.place import place
from niwaki.nn.build import build
from niwaki.run.claims import grid
from niwaki.run.model import Input, ModelError, load_model, parse_input
from niwaki.space.size import Ref, leaves
from niwaki.store.files import atomic_write
from niwaki.testing.adoption import TRAINS_OTHERWISE, Examination, couplings, examine

SHOWN = 40  # groups in the table for people
READ = 3  # layers named in a row of it


def adoptable(word: str, inputs: Sequence[str]) -> tuple[nn.Module, Example]:
    """The model that `word` names, with an example as `inputs` describe it.

    A described network stands for its largest member, and its input may be left out.
    """
    model = load_model(word)
    if isinstance(model, Network):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = build(model, count_params(model).maximum()[1])
        return module, example_for(module, inputs or [_input_text(one) for one in model.inputs] or [_shape_text(model.input_shape)])
    if not isinstance(model, nn.Module):
        raise ModelError(f"{word} is an ONNX file; a torch.nn.Module is adopted: name one by module:attr or file.py:attr")
    if not inputs:
        raise ModelError(f"{word} needs --input for each argument of its forward{inspect.signature(model.forward)}, such as 1x3x224x224")
    return model, example_for(model, inputs)


def _input_text(one: Any) -> str:
    below = f"<{one.below}" if one.below else ""
    return f"{_shape_text(one.shape)}:{one.dtype}{below}"


def _shape_text(shape: Sequence[int]) -> str:
    """One example of it: 1x3x32x32."""
    return "x".join(map(str, (1, *shape)))


def example_for(module: nn.Module, inputs: Sequence[str]) -> Example:
    """Tensors for the arguments of `module`, in order, or by name where some are left out between them."""
    given = [parse_input(text) for text in inputs]
    signature = inspect.signature(module.forward)
    try:
        bound = signature.bind(*(one for one in given if one.name is None), **{one.name: one for one in given if one.name is not None})
    except TypeError as error:
        raise ModelError(f"--input {', '.join(inputs)}: {error}; the model is called forward{signature}") from error
    if bound.kwargs:
        return {name: one.example() for name, one in bound.arguments.items() if isinstance(one, Input)}
    return tuple(one.example() for one in bound.args)


def describe_adoption(word: str, inputs: Sequence[str], *, seed: int = 0, picture_file: Path | None = None) -> tuple[dict[str, Any], str]:
    """What `niwaki adopt` prints: the object of `--json`, and the page for people. picture_file: where a drawing goes, if anywhere."""
    model, example = adoptable(word, inputs)
    found = examine(model, example, seed=seed)
    if picture_file is not None:
        atomic_write(picture_file, drawing(found))
    return found.to_json(), page(word, found)


def drawing(found: Examination) -> str:
    """The network as SVG, every layer labelled with the numbers of the groups that its channels are in: equal numbers change together."""
    if found.network is None:
        raise ModelError("no description can be made of this model, and so no picture; the table names what changes together")
    numbers = {str(choice.name).lstrip("/"): number for number, choice in enumerate(choices_of(found.adopted).values(), 1)}
    placement, labels = place(found.network), {}
    for item in placement.items:
        if isinstance(item.layer, Operation) and item.layer.shape is not None:
            sizes = [leaf for axis in item.layer.shape for run in axis for leaf in leaves(run.units)]
            inside = sorted({numbers[leaf.name] for leaf in sizes if isinstance(leaf, Ref) and leaf.name in numbers})
            labels[item.path] = ("group " if len(inside) == 1 else "groups ") + ", ".join(map(str, inside)) if inside else ""
    return picture(placement, labels, name="adopted")


def page(word: str, found: Examination) -> str:
    """Groups with the layers that each of them cuts, what was left as it is, and what the checks found."""
    adopted, cut = found.adopted, found.cut
    of = "one example" if adopted.examples == 1 else f"the {adopted.examples} examples of the input, whose number is fixed"
    lines = [f"{word}: {found.macs:,} multiply-adds for {of}, {adopted.cost('params'):,} parameters", ""]
    cuts = couplings(adopted)
    rows = [
        (str(number), group.name, str(group.units), str(len(cut.keep[group.name])), _few(cuts[group.name]))
        for number, group in enumerate(adopted.groups, 1)
    ]
    if rows:
        lines += [*grid(("", "group", "units", "random cut", "layers that change together"), rows[:SHOWN])]
    if len(rows) > SHOWN:
        lines.append(f"... and {len(rows) - SHOWN} groups more")
    lines += ["", f"{found.searchable_share:.1%} of the parameters of convolutions and linear layers are searchable"]
    lines += [f"left as it is: {name}" for name in adopted.opaque]
    lines += [f"note: {note}" for note in adopted.notes]
    lines.append(_outputs(found))
    if found.trains_otherwise:
        lines.append(f"note: {TRAINS_OTHERWISE} (outputs or buffers differ by {found.trained:.1e})")
    if found.network is None:
        lines.append(f"note: no description can be made of it: {found.undescribed}. It can be read, cut and shrunk, but not searched")
    elif found.undescribed:
        lines.append(f"note: what its description is built to does not run: {found.undescribed}")
    least = found.least
    if least > found.budget:
        lines.append(f"note: no cut reaches {found.budget:,} multiply-adds; the smallest member has {least:,}")
    alone = f" and {cut.elementwise_macs:,} of einsums over one position, which PyTorch does not count" if cut.elementwise_macs else ""
    lines.append(
        f"a random cut to {max(found.budget, least):,} multiply-adds: {cut.predicted_macs:,} predicted, {cut.counted_macs:,} counted{alone}; "
        + (cut.why or "it runs, trains, and is equal in ONNX Runtime")
    )
    return "\n".join(lines)


def _outputs(found: Examination) -> str:
    told = ", ".join(f"{difference:.1e} at batch {batch}" for batch, difference in found.differences.items())
    verdict = "equal" if found.equal_outputs else "NOT EQUAL"
    weights = "the same state dict" if found.same_weights else "ANOTHER STATE DICT"
    return f"outputs {verdict} ({told}; {found.permuted:.1e} with every group's units in another order), {weights}"


def _few(weights: Sequence[str]) -> str:
    """The layers that hold the weights, the first of them by name."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in weights))
    rest = f" and {len(layers) - READ} more" if len(layers) > READ else ""
    return ", ".join(layers[:READ]) + rest
