"""From the word a user gives to the model it means, and what that model costs layer by layer."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from niwaki import zoo
from niwaki.cost.count import count_macs, count_params, layer_table
from niwaki.net.control import Network
from niwaki.net.place import space_of

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_INPUT = re.compile(r"(?:(?P<name>\w+)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+)(?:<(?P<below>\d+))?)?")
_MULTIPLY_ADDS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


class ModelError(ValueError):
    """A model that cannot be found, made or run."""


def load_model(word: str) -> Network | nn.Module | onnx.ModelProto:
    """The model that `word` names: in the zoo, an `.onnx` file, `module:attr` or `file.py:attr`.

    attr is a Network, a torch module, or a class or function that gives one without arguments.
    """
    if word.endswith(".onnx"):
        if not Path(word).is_file():
            raise ModelError(f"there is no file {word}")
        try:
            return onnx.load(word)
        except Exception as error:  # protobuf's own kinds
            raise ModelError(f"{word} is no ONNX model: {error}") from error
    if ":" not in word:
        return zoo.network(word)
    where, _, attribute = word.rpartition(":")
    found = _module(where)
    for part in attribute.split("."):
        if not hasattr(found, part):
            public = ", ".join(name for name in vars(found) if not name.startswith("_"))
            raise ModelError(f"{where} has no {attribute!r}; it has {public}")
        found = getattr(found, part)
    if not isinstance(found, (Network, nn.Module)) and callable(found):
        needed = [
            p.name
            for p in inspect.signature(found).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        ]
        if needed:
            raise ModelError(f"{word} needs the arguments {', '.join(needed)}; name a function that gives the model without arguments")
        found = found()
    if not isinstance(found, (Network, nn.Module)):
        raise ModelError(
            f"{word} is a {type(found).__name__}; a niwaki Network, a torch.nn.Module, or a class or function that gives one is needed"
        )
    return found


def parse_input(text: str) -> tuple[str | None, torch.Tensor]:
    """Name (or None) and an example of an argument: `1x3x224x224`, `ids=1x128:int64<1000`."""
    match = _INPUT.fullmatch(text)
    if match is None:
        raise ModelError(f"--input {text!r} is not understood; it looks like 1x3x224x224, or ids=1x128:int64<1000")
    shape, dtype = tuple(map(int, match["shape"].split("x"))), match["dtype"] or "float32"
    if dtype not in _DTYPES or 0 in shape:
        raise ModelError(f"--input {text!r}: sizes are positive, and a type is one of {', '.join(_DTYPES)}")
    generator = torch.Generator().manual_seed(0)
    if _DTYPES[dtype].is_floating_point:
        return match["name"], torch.randn(shape, generator=generator).to(_DTYPES[dtype])
    return match["name"], torch.randint(0, int(match["below"] or 2), shape, generator=generator).to(_DTYPES[dtype])


def profile(word: str, *, inputs: Sequence[str] = (), arch: str | Path | None = None, rule: str = "all") -> dict[str, Any]:
    """`macs`, `params`, `rule` and one row per layer: path, kind, output shape, macs, params; for one image.

    arch: an architecture.json, for a network with choices. rule: "all", or "fbnet" for described networks (methods differ by 9 % on one
    network, so the rule is always stated).
    """
    model = load_model(word)
    if isinstance(model, Network):
        return _profile_network(model, inputs, arch, rule)
    if rule != "all":
        raise ModelError(f"--rule {rule} counts described networks only; {word} is counted by the rule 'all'")
    return _profile_onnx(model) if isinstance(model, onnx.ModelProto) else _profile_module(model, inputs)


def _profile_network(network: Network, inputs: Sequence[str], arch: str | Path | None, rule: str) -> dict[str, Any]:
    if inputs:
        shape = tuple(parse_input(inputs[0])[1].shape)
        network = Network(network.body, shape[1:] if len(shape) == len(network.input_shape) + 1 else shape)
    space = space_of(network)
    if arch is not None:
        data = json.loads(Path(arch).read_text())
        choices = data.get("architecture", data.get("choices", data))
        chosen = space.architecture({name: tuple(option) if isinstance(option, list) else option for name, option in choices.items()})
    elif space.decisions:
        raise ModelError(
            f"this network has {len(space.decisions)} choices; give one of its architectures by --arch FILE, or see them all by `niwaki space`"
        )
    else:
        chosen = space.architecture({})
    rows = layer_table(network, chosen, rule)
    return {
        "macs": count_macs(network, rule)(chosen),
        "params": count_params(network, rule)(chosen),
        "rule": rule,
        "layers": [{"path": row.path, "kind": row.kind, "shape": list(row.shape), "macs": row.macs, "params": row.params} for row in rows],
    }


def _profile_module(module: nn.Module, inputs: Sequence[str]) -> dict[str, Any]:
    """Counted by hooks on a run with the inputs: convolutions and linear layers, each as often as it is called."""
    if not inputs:
        raise ModelError("a torch module needs --input, such as --input 1x3x224x224")
    layers: list[dict[str, Any]] = []

    def count(path: str, layer: Any):
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            shape = list(output.shape) if isinstance(output, torch.Tensor) else []
            macs = 0
            if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                macs = prod(shape) // shape[0] * prod(layer.weight.shape[1:])
            elif isinstance(layer, nn.Linear):
                macs = prod(shape) // shape[0] * layer.in_features
            params = sum(p.numel() for p in layer.parameters(recurse=False)) if all(row["path"] != path for row in layers) else 0
            layers.append({"path": path, "kind": type(layer).__name__, "shape": shape[1:], "macs": macs, "params": params})

        return hook

    hooks = [layer.register_forward_hook(count(path, layer)) for path, layer in module.named_modules() if not any(layer.children())]
    named = [parse_input(text) for text in inputs]
    was_training = module.training
    try:
        with torch.no_grad():
            module.eval()(*(x for name, x in named if name is None), **{name: x for name, x in named if name is not None})
    except Exception as error:
        raise ModelError(f"the model does not run on {', '.join(inputs)}: {error}") from error
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    return {
        "macs": sum(row["macs"] for row in layers),
        "params": sum(p.numel() for p in module.parameters()),
        "rule": "all",
        "layers": layers,
    }


def _profile_onnx(model: onnx.ModelProto) -> dict[str, Any]:
    """Counted from the graph after shape inference, with a batch of one."""
    for value in model.graph.input:
        first = value.type.tensor_type.shape.dim
        if first and not first[0].dim_value:
            first[0].dim_value = 1
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in [*inferred.graph.value_info, *inferred.graph.output, *inferred.graph.input]
    }
    weights = {w.name: list(w.dims) for w in inferred.graph.initializer}
    layers = []
    for node in inferred.graph.node:
        shape = shapes.get(node.output[0], [])
        own = [weights[name] for name in node.input if name in weights]
        macs = 0
        if node.op_type in _MULTIPLY_ADDS and shape:
            kernel = weights.get(node.input[1]) or shapes.get(node.input[1], [])
            if node.op_type == "Conv":
                macs = prod(shape) * prod(kernel[1:])
            else:
                transposed = any(a.name == "transB" and a.i for a in node.attribute)
                macs = prod(shape) * (kernel[1] if transposed else kernel[-2] if len(kernel) > 1 else kernel[0])
        layers.append(
            {"path": node.name or node.output[0], "kind": node.op_type, "shape": shape[1:], "macs": macs, "params": sum(map(prod, own))}
        )
    return {
        "macs": sum(row["macs"] for row in layers),
        "params": sum(prod(dims) for name, dims in weights.items()),
        "rule": "all",
        "layers": layers,
    }


def _module(where: str) -> Any:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ModelError(f"there is no module {where!r}: {error}") from error
    path = Path(where)
    if not path.is_file():
        raise ModelError(f"there is no file {where}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and torch.export look a class's module up by its name
    spec.loader.exec_module(module)
    return module
