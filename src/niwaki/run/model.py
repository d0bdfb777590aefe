"""From the word a user gives to the model it means, and what that model costs layer by layer."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
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
from niwaki.net.text import from_json
from niwaki.space.choice import SpaceError

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_INPUT = re.compile(r"(?:(?P<name>\w+)=)?(?P<shape>\d{1,18}(?:x\d{1,18})*)(?::(?P<dtype>\w+)(?:<(?P<below>\d{1,30}))?)?")
LARGEST_SIDE = 2**31 - 1  # what a size can be in an ONNX file, and more than any model's
LARGEST_EXAMPLE = 2**30  # numbers in an input that a torch module is run on
_MULTIPLY_ADDS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_FLOATS = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}


class ModelError(ValueError):
    """A model that cannot be found, made or run."""


def load_model(word: str) -> Network | nn.Module | onnx.ModelProto:
    """The model that `word` names: in the zoo, an `.onnx` file, an architecture.json that a run wrote, `module:attr` or `file.py:attr`.

    attr is a Network, a torch module, or a class or function that gives one without arguments.
    """
    if word.endswith(".onnx"):
        if not Path(word).is_file():
            raise ModelError(f"there is no file {word}")
        try:
            return onnx.load(word)
        except Exception as error:  # protobuf's own kinds
            raise ModelError(f"{word} is no ONNX model: {error}") from error
    if word.endswith(".json"):
        return _described(Path(word))
    if ":" not in word:
        return zoo.network(word)
    where, _, attribute = word.rpartition(":")
    found = module_of(where)
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
        try:
            found = found()
        except SpaceError:
            raise  # says itself what does not fit
        except Exception as error:
            raise ModelError(f"{word} cannot be made: {_raised(error)}") from error
    if not isinstance(found, (Network, nn.Module)):
        raise ModelError(
            f"{word} is a {type(found).__name__}; a niwaki Network, a torch.nn.Module, or a class or function that gives one is needed"
        )
    return found


@dataclass(frozen=True)
class Input:
    """One argument of a model, as `text` describes it. below: whole numbers are drawn from 0 up to it."""

    text: str
    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    below: int

    def example(self) -> torch.Tensor:
        if (count := prod(self.shape)) > LARGEST_EXAMPLE:
            raise ModelError(f"--input {self.text}: {count:,} numbers; a module is run on {LARGEST_EXAMPLE:,} at most")
        generator = torch.Generator().manual_seed(0)
        if self.dtype.is_floating_point:
            return torch.randn(self.shape, generator=generator).to(self.dtype)
        return torch.randint(0, self.below, self.shape, generator=generator).to(self.dtype)


def parse_input(text: str) -> Input:
    """The argument that `text` describes: `1x3x224x224`, `ids=1x128:int64<1000`."""
    match = _INPUT.fullmatch(text)
    if match is None:
        raise ModelError(f"--input {text!r} is not understood; it looks like 1x3x224x224, or ids=1x128:int64<1000")
    shape, dtype = tuple(map(int, match["shape"].split("x"))), match["dtype"] or "float32"
    if dtype not in _DTYPES or not all(1 <= size <= LARGEST_SIDE for size in shape):
        raise ModelError(f"--input {text!r}: sizes are 1 to {LARGEST_SIDE:,}, and a type is one of {', '.join(_DTYPES)}")
    kind = _DTYPES[dtype]
    if match["below"] is not None:
        if kind.is_floating_point:
            raise ModelError(f"--input {text!r}: `<` is for whole numbers; {dtype} is drawn from a normal distribution")
        most = 2 if kind == torch.bool else min(torch.iinfo(kind).max + 1, 2**63 - 1)
        if not 1 <= int(match["below"]) <= most:
            raise ModelError(f"--input {text!r}: what follows `<` is 1 to {most:,} for {dtype}")
    return Input(text, match["name"], shape, kind, int(match["below"] or 2))


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
    return _profile_onnx(model, inputs) if isinstance(model, onnx.ModelProto) else _profile_module(model, inputs)


def _profile_network(network: Network, inputs: Sequence[str], arch: str | Path | None, rule: str) -> dict[str, Any]:
    if len(inputs) > 1:
        raise ModelError(f"a network takes one input; given are {', '.join(inputs)}")
    if inputs:
        shape = parse_input(inputs[0]).shape
        network = Network(network.body, shape[1:] if len(shape) == len(network.input_shape) + 1 else shape)
    space = space_of(network)
    if arch is not None:
        chosen = space.architecture(_choices(Path(arch)))
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
    given = [parse_input(text) for text in inputs]
    layers: list[dict[str, Any]] = []

    def count(path: str, layer: Any):
        def hook(_: nn.Module, taken: Any, output: Any) -> None:
            shape = list(output.shape) if isinstance(output, torch.Tensor) else []
            macs = 0
            if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                macs = prod(shape) // shape[0] * prod(layer.weight.shape[1:])
            elif isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
                macs = prod(taken[0].shape[2:]) * layer.weight.numel()
            elif isinstance(layer, nn.Linear):
                macs = prod(shape) // shape[0] * layer.in_features
            params = sum(p.numel() for p in layer.parameters(recurse=False)) if all(row["path"] != path for row in layers) else 0
            layers.append({"path": path, "kind": type(layer).__name__, "shape": shape[1:], "macs": macs, "params": params})

        return hook

    hooks = [layer.register_forward_hook(count(path, layer)) for path, layer in module.named_modules() if not any(layer.children())]
    was_training = module.training
    try:
        with torch.no_grad():
            named = {one.name: one.example() for one in given if one.name is not None}
            module.eval()(*(one.example() for one in given if one.name is None), **named)
    except ModelError:
        raise
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


def _profile_onnx(model: onnx.ModelProto, inputs: Sequence[str]) -> dict[str, Any]:
    """Counted from the graph after shape inference. Sizes that the file leaves open come from `inputs`; an open batch is one image."""
    given = [parse_input(text) for text in inputs]
    weights = {w.name: w for w in model.graph.initializer}
    sources = [value for value in model.graph.input if value.name not in weights]
    for at, one in enumerate(given):
        value = (
            next((value for value in sources if value.name == one.name), None) if one.name else sources[at] if at < len(sources) else None
        )
        if value is None or len(value.type.tensor_type.shape.dim) != len(one.shape):
            listed = ", ".join(
                f"{v.name} ({' x '.join(d.dim_param or str(d.dim_value) for d in v.type.tensor_type.shape.dim)})" for v in sources
            )
            raise ModelError(f"--input {one.text} fits no input of the model; they are {listed}")
        for dim, size in zip(value.type.tensor_type.shape.dim, one.shape, strict=True):
            dim.dim_value = size
    for value in sources:
        first = value.type.tensor_type.shape.dim
        if first and not first[0].dim_value:
            first[0].dim_value = 1
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)
    except Exception as error:  # onnx's own kinds have no common base below Exception
        raise ModelError(f"the shapes of the ONNX model cannot be inferred: {str(error).strip().splitlines()[0]}") from error
    graph = inferred.graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in [*graph.value_info, *graph.output, *graph.input]}
    shapes |= {name: list(weight.dims) for name, weight in weights.items()}
    batch = max(1, shapes[sources[0].name][0]) if sources and shapes[sources[0].name] else 1
    learned = {name: prod(weight.dims) for name, weight in weights.items() if weight.data_type in _FLOATS}
    layers = []
    for node in graph.node:
        shape, macs = shapes.get(node.output[0], []), 0
        if node.op_type in _MULTIPLY_ADDS:
            kernel = shapes.get(node.input[1], [])
            if 0 in (*shape, *kernel) or not kernel:
                raise ModelError(
                    f"the sizes of {node.name or node.output[0]} ({node.op_type}) are left open; give those of the inputs by --input"
                )
            if node.op_type == "ConvTranspose":
                macs = prod(shapes[node.input[0]][2:]) * prod(kernel)
            else:
                macs = prod(shape) // batch * _terms(node, kernel)
        own = sum(learned.get(name, 0) for name in node.input)
        layers.append({"path": node.name or node.output[0], "kind": node.op_type, "shape": shape[1:], "macs": macs, "params": own})
    return {"macs": sum(row["macs"] for row in layers), "params": sum(learned.values()), "rule": "all", "layers": layers}


def _terms(node: onnx.NodeProto, kernel: Sequence[int]) -> int:
    """Multiply-adds in each number that the node gives."""
    if node.op_type == "Conv":
        return prod(kernel[1:])
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return kernel[1] if transposed else kernel[-2] if len(kernel) > 1 else kernel[0]


def _described(file: Path) -> Network:
    """The network in an architecture.json."""
    try:
        description = json.loads(file.read_text("utf-8"))["network"]
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{file} describes no network: {error}") from error
    return from_json(description)


def _choices(file: Path) -> dict[str, Any]:
    """What an architecture.json chooses: alone, as `niwaki search --json` prints it, or as a run writes it."""
    try:
        data = json.loads(file.read_text("utf-8"))
        choices = data.get("architecture", data.get("choices", data))
        return {name: tuple(option) if isinstance(option, list) else option for name, option in choices.get("choices", choices).items()}
    except OSError as error:
        raise ModelError(f"--arch {file} cannot be read: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise ModelError(f"--arch {file} is no architecture in JSON: {error}") from error


def module_of(where: str) -> Any:
    """The module called `where`, or run from the file `where`, which ends with .py."""
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ModelError(f"there is no module {where!r}: {error}") from error
        except SpaceError:
            raise
        except Exception as error:
            raise ModelError(f"the module {where!r} cannot be imported: {_raised(error)}") from error
    path = Path(where)
    if not path.is_file():
        raise ModelError(f"there is no file {where}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and torch.export look a class's module up by its name
    try:
        spec.loader.exec_module(module)
    except SpaceError:
        raise
    except Exception as error:
        raise ModelError(f"{where} cannot be run: {_raised(error)}") from error
    return module


def _raised(error: Exception) -> str:
    """The error of somebody's code in one line, with the place where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = "" if isinstance(error, SyntaxError) else f" ({Path(last.filename).name}, line {last.lineno})"
    return f"{type(error).__name__}: {error}{where}"
