"""A trained network as source: `model.py`, plain PyTorch to read, change and run without niwaki, and its weights `model.safetensors`."""

from __future__ import annotations

import copy
import json
import operator
import textwrap
import time
from collections.abc import Callable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from niwaki.deploy.audit import BATCH_SIZES, Audit, compare
from niwaki.deploy.card import ExportError, ModelCard
from niwaki.deploy.export import TORCH_TOLERANCE, logits_of
from niwaki.net.control import Network
from niwaki.net.layer import Opaque
from niwaki.net.place import fix, place
from niwaki.nn.build import module_name
from niwaki.store.files import atomic_write

LINE = 140
INFIX = {operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", torch.add: "+", torch.sub: "-", torch.mul: "*", torch.div: "/"}
Factories = Mapping[str, tuple[str, Mapping[str, Any]]]  # module name -> "pkg.mod:factory", its arguments


def write_source(
    module: fx.GraphModule, preprocess: nn.Module, images: NDArray, folder: str | Path, card: ModelCard, *, factories: Factories | None = None
) -> Audit:
    """Writes `model.py` and `model.safetensors` into `folder`; run afresh, they gave the logits of `module` on `images`, stored (N, H, W[, C]).

    The keys in the weights are those of `module`'s state_dict. factories: where the modules come from that are not of torch.nn, see
    `opaque_factories`; `model.py` imports them.
    """
    began = time.perf_counter()
    folder = Path(folder)
    module, preprocess = copy.deepcopy(module).cpu().eval(), copy.deepcopy(preprocess).cpu().eval()
    source = source_of(module, preprocess, images[:1], card, factories=factories)
    write_weights(module, folder / "model.safetensors")

    namespace: dict[str, Any] = {"__name__": "model", "__file__": str(folder / "model.py")}
    try:
        exec(compile(source, "model.py", "exec"), namespace)
        net, ready = namespace["load"](folder / "model.safetensors"), namespace["Preprocess"]()
    except Exception as error:
        raise ExportError(f"model.py does not run: {type(error).__name__}: {error}") from error
    if (keys := list(net.state_dict())) != list(module.state_dict()):
        raise ExportError(f"the network of model.py has other weights than the network: {set(keys) ^ set(module.state_dict())}")
    logits = logits_of(nn.Sequential(preprocess, module), images)
    difference = compare("model.py", lambda x: logits_of(nn.Sequential(ready, net), x), images, logits, tolerance=TORCH_TOLERANCE)
    atomic_write(folder / "model.py", source)
    size = sum((folder / name).stat().st_size for name in ("model.py", "model.safetensors"))
    return Audit("model.py", size, time.perf_counter() - began, len(images), BATCH_SIZES, difference, float(np.abs(logits).max()))


def write_weights(module: nn.Module, path: str | Path) -> None:
    """Writes the state_dict as safetensors, in its order; the same weights give the same bytes."""
    atomic_write(path, safetensors.torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}))


def opaque_factories(network: Network, arch: Mapping[str, Any]) -> Factories:
    """For each opaque layer of an architecture, by its name in the built module: the factory's path and its arguments."""
    items = fix(place(network), arch).items
    return {module_name(item.path): (item.layer.factory, dict(item.layer.kwargs)) for item in items if isinstance(item.layer, Opaque)}


def source_of(module: fx.GraphModule, preprocess: nn.Module, images: NDArray, card: ModelCard, *, factories: Factories | None = None) -> str:
    """The text of `model.py`. images: one or more, stored; their shapes are written beside the blocks."""
    traced = preprocess if isinstance(preprocess, fx.GraphModule) else fx.symbolic_trace(preprocess)
    ready = traced(torch.from_numpy(images))
    for graph_module, example in ((traced, torch.from_numpy(images)), (module, ready)):
        ShapeProp(graph_module).propagate(example)
    factories = factories or {}
    imports = sorted({path.partition(":")[0] for path, _ in factories.values()})
    text = _TEMPLATE
    for mark, part in {
        "@TITLE@": _title(card),
        "@IMPORTS@": "".join(f"import {name}\n" for name in imports),
        "@CLASSES@": _wrapped(card.class_names, "CLASSES = (", ")", ""),
        "@SIZE@": repr(card.preprocessing.stored_shape[:2]),
        "@MODE@": repr({1: "L", 3: "RGB"}.get(card.preprocessing.channels)),
        "@RANGE@": repr(card.preprocessing.pixel_range),
        "@DTYPE@": card.preprocessing.stored_dtype,
        "@SHAPE@": repr(tuple(card.preprocessing.stored_shape)),
        "@PREPROCESS@": _class("Preprocess", _stored_line(card, ready), traced, {}, grouped=False),
        "@NET@": _class("Net", _net_line(ready, card), module, factories, grouped=True),
    }.items():
        text = text.replace(mark, part)
    return text


# --- one class from one graph -----------------------------------------------------------------------------------------


def _class(name: str, docstring: str, module: fx.GraphModule, factories: Factories, *, grouped: bool) -> str:
    """`class NAME(nn.Module)`: an attribute for every layer in order of execution, and a forward that a person would write."""
    layers, steps = [], []
    block = None
    variables = _Variables(module.graph)
    defined: set[str] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            parameter = variables.of(node)
        elif node.op == "output":
            steps.append(f"return {_argument(node.args[0], variables)}")
        else:
            if grouped and node.op != "get_attr" and (now := _block(node)) not in (None, block):
                block = now
                steps += ["", f"# {block}: {_shapes(module.graph, block)}"]
                layers += ["", f"# {block}"]
            if node.op in ("call_module", "get_attr") and node.target not in defined:
                defined.add(node.target)
                layers += _definition(module, node, factories)
            if node.op != "get_attr":
                steps += variables.step(node)
    body = ["super().__init__()", *layers]
    return "\n".join(
        [
            f"class {name}(nn.Module):",
            f'    """{docstring}"""',
            "",
            "    def __init__(self) -> None:",
            *(f"        {line}".rstrip() for line in body),
            "",
            f"    def forward(self, {parameter}: Tensor) -> Tensor:",
            *(f"        {line}".rstrip() for line in steps),
        ]
    ).replace(":\n\n        #", ":\n        #")


class _Variables:
    """Names for the tensors of a graph, as a person would give them: `x` goes through the layers, `shortcut` waits for its sum, a `gate`
    is computed beside the map that it multiplies, and parallel branches are numbered."""

    def __init__(self, graph: fx.Graph) -> None:
        self.at = {node: at for at, node in enumerate(graph.nodes)}
        self.names: dict[fx.Node, str] = {node: node.target if node.target.isidentifier() else "x" for node in graph.nodes if node.op == "placeholder"}

    def of(self, node: fx.Node) -> str:
        return f"self.{node.target}" if node.op == "get_attr" else self.names[node]

    def step(self, node: fx.Node) -> list[str]:
        """The line or two that compute `node`."""
        inputs = [x for x in node.all_input_nodes if x.op != "get_attr"]
        dying = [x for x in inputs if self._last(x) <= self.at[node]]
        lines = []
        if len(inputs) == 1 and not dying:
            name, lines = self._branch(node, inputs[0])
        elif not self._holds("x", after=node):
            name = "x"
        else:
            name = self.names[dying[0]] if dying else self._free("branch", node)
        lines.append(f"{name} = {_expression(node, self)}")
        self.names[node] = name
        return lines

    def _branch(self, node: fx.Node, source: fx.Node) -> tuple[str, list[str]]:
        """The name of a tensor that is computed from `source` while `source` is still needed, and what must be set aside first."""
        later = [user for user in source.users if user is not node]
        join = max(later, key=self.at.__getitem__)
        if len(later) == 1 and INFIX.get(join.target) == "+" and self.names[source] == "x":
            kept = self._free("shortcut", node)
            self.names[source] = kept
            return "x", [f"{kept} = x"]
        return self._free("gate" if len(later) == 1 and INFIX.get(join.target) == "*" else "branch", node), []

    def _last(self, node: fx.Node) -> int:
        return max((self.at[user] for user in node.users), default=-1)

    def _holds(self, name: str, *, after: fx.Node) -> bool:
        return any(held == name and self._last(node) > self.at[after] for node, held in self.names.items())

    def _free(self, base: str, node: fx.Node) -> str:
        number = 1
        while self._holds(name := base if number == 1 else f"{base}{number}", after=node):
            number += 1
        return name


def _expression(node: fx.Node, variables: _Variables) -> str:
    args = [_argument(arg, variables) for arg in node.args]
    kwargs = [f"{name}={_argument(value, variables)}" for name, value in node.kwargs.items()]
    if node.op == "call_module":
        return f"self.{node.target}({', '.join(args + kwargs)})"
    if node.op == "call_method":
        return f"{args[0]}.{node.target}({', '.join(args[1:] + kwargs)})"
    if node.target in INFIX and len(args) == 2 and not kwargs:
        return f"{args[0]} {INFIX[node.target]} {args[1]}"
    if node.target is operator.getitem:
        return f"{args[0]}[{args[1]}]"
    return f"{_function(node.target)}({', '.join(args + kwargs)})"


def _argument(value: Any, variables: _Variables) -> str:
    if isinstance(value, fx.Node):
        return variables.of(value)
    if isinstance(value, (tuple, list)):
        inside = ", ".join(_argument(item, variables) for item in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if isinstance(value, slice):
        return f"slice({_argument(value.start, variables)}, {_argument(value.stop, variables)}, {_argument(value.step, variables)})"
    if value is None or value is ... or isinstance(value, (bool, int, float, str, torch.dtype)):
        return "..." if value is ... else repr(value)
    raise ExportError(f"model.py cannot show {value!r}, an argument in the network's graph; numbers, text and tensors can be")


def _function(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", repr(function))
    for prefix, home in (("torch", torch), ("nn.functional", nn.functional), ("operator", operator)):
        if getattr(home, name, None) is function and prefix != "operator":
            return f"{prefix}.{name}"
    raise ExportError(f"model.py cannot call {function!r}; functions of torch and torch.nn.functional can be, put others into a module of their own")


# --- layers -----------------------------------------------------------------------------------------------------------


def _definition(module: fx.GraphModule, node: fx.Node, factories: Factories) -> list[str]:
    """The lines of `__init__` that make what `node` refers to."""
    name = str(node.target)
    if not name.isidentifier():
        raise ExportError(f"model.py needs flat names; the network's graph refers to {name!r}")
    value = getattr(module, name)
    if isinstance(value, Tensor):
        return _tensor_definition(module, name, value)
    if name in factories:
        path, kwargs = factories[name]
        return [f"self.{name} = {path.replace(':', '.')}({', '.join(f'{key}={value!r}' for key, value in kwargs.items())})"]
    return [f"self.{name} = {constructor(value)}"]


def _tensor_definition(module: fx.GraphModule, name: str, value: Tensor) -> list[str]:
    persistent = name not in module._non_persistent_buffers_set
    if isinstance(value, nn.Parameter):
        return [f"self.{name} = nn.Parameter(torch.empty({tuple(value.shape)}))"]  # load() fills it
    end = ")" if persistent else ", persistent=False)"
    if formula := _formula(value):
        return [f'self.register_buffer("{name}", {formula}{end}']
    dtype = "" if value.dtype in (torch.float32, torch.int64) else f", dtype={value.dtype}"
    text = f'self.register_buffer("{name}", torch.tensor({value.tolist()}{dtype}){end}'
    return textwrap.wrap(text, LINE - 8, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _formula(rows: Tensor) -> str | None:
    """The rows that a nearest-neighbour resize reads, floor(i H / size), as a formula instead of a list of numbers."""
    if rows.dtype != torch.int64 or rows.dim() != 1 or len(rows) < 2:
        return None
    size, steps = len(rows), torch.arange(len(rows))
    for height in range(int(rows[-1]) + 1, 2 * int(rows[-1]) + 2):
        if torch.equal(steps * height // size, rows):
            return f"torch.arange({size}) * {height} // {size}"
    return None


@singledispatch
def constructor(layer: nn.Module) -> str:
    """The expression that makes an equal, untrained layer. Layers without a rule below are shown by `repr` if that is such an expression."""
    text = repr(layer)
    if not type(layer).__module__.startswith("torch.nn.modules.") or "\n" in text:
        raise ExportError(
            f"model.py cannot make a {type(layer).__module__}.{type(layer).__name__}: it is no layer of torch.nn; pass factories={{name: "
            f"('package.module:factory', arguments)}} to say where it comes from"
        )
    return f"nn.{text}"


@constructor.register
def _(layer: nn.Conv2d) -> str:
    defaults = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
    changed = {name: getattr(layer, name) for name, default in defaults.items() if getattr(layer, name) != default}
    shown = "".join(f", {name}={_pair(value)}" for name, value in changed.items())
    return f"nn.Conv2d({layer.in_channels}, {layer.out_channels}, {_pair(layer.kernel_size)}{shown}{'' if layer.bias is not None else ', bias=False'})"


@constructor.register
def _(layer: nn.Linear) -> str:
    return f"nn.Linear({layer.in_features}, {layer.out_features}{'' if layer.bias is not None else ', bias=False'})"


@constructor.register(nn.BatchNorm1d)
@constructor.register(nn.BatchNorm2d)
def _(layer: nn.BatchNorm1d | nn.BatchNorm2d) -> str:
    defaults = {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True}
    shown = "".join(f", {name}={getattr(layer, name)!r}" for name, default in defaults.items() if getattr(layer, name) != default)
    return f"nn.{type(layer).__name__}({layer.num_features}{shown})"


@constructor.register
def _(layer: nn.MaxPool2d) -> str:
    defaults = {"padding": 0, "dilation": 1, "ceil_mode": False}
    shown = "".join(f", {name}={_pair(getattr(layer, name))}" for name, default in defaults.items() if getattr(layer, name) != default)
    return f"nn.MaxPool2d({_pair(layer.kernel_size)}, stride={_pair(layer.stride)}{shown})"


@constructor.register
def _(layer: nn.AvgPool2d) -> str:
    defaults = {"padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}
    shown = "".join(f", {name}={_pair(getattr(layer, name))}" for name, default in defaults.items() if getattr(layer, name) != default)
    return f"nn.AvgPool2d({_pair(layer.kernel_size)}, stride={_pair(layer.stride)}{shown})"


@constructor.register
def _(layer: nn.ChannelShuffle) -> str:
    return f"nn.ChannelShuffle({layer.groups})"


@constructor.register(nn.ReLU)
@constructor.register(nn.ReLU6)
@constructor.register(nn.Hardswish)
@constructor.register(nn.SiLU)
@constructor.register(nn.Hardsigmoid)
def _(layer: nn.Module) -> str:
    return f"nn.{type(layer).__name__}({'inplace=True' if layer.inplace else ''})"


@constructor.register
def _(layer: nn.Flatten) -> str:
    end = "" if layer.end_dim == -1 else f", {layer.end_dim}"
    return f"nn.Flatten({layer.start_dim}{end})" if end or layer.start_dim != 1 else "nn.Flatten()"


def _pair(value: Any) -> str:
    """(3, 3) is written 3."""
    return repr(value[0]) if isinstance(value, tuple) and len(set(value)) == 1 else repr(value)


# --- words around the classes -----------------------------------------------------------------------------------------


def _block(node: fx.Node) -> str | None:
    """The block that a node is part of: its name up to the last numbered part (`stage1_block0` of `stage1_block0_dw_bn`), or else the first."""
    parts = str(node.target if node.op == "call_module" else node.name).split("_")
    if len(parts) == 1:
        return parts[0] if node.op == "call_module" else None
    numbered = [at for at, part in enumerate(parts[:-1]) if part[-1:].isdigit()]
    if node.op != "call_module" and not numbered:
        return None  # an operation of fx's own naming, part of the block it stands in
    return "_".join(parts[: numbered[-1] + 1 if numbered else 1])


def _shapes(graph: fx.Graph, block: str) -> str:
    """What enters and what leaves a block."""
    inside = [node for node in graph.nodes if node.op not in ("placeholder", "output", "get_attr") and _block(node) == block]
    into = next(x for x in inside[0].all_input_nodes if x.op != "get_attr")
    before, after = (" x ".join(map(str, node.meta["tensor_meta"].shape[1:])) for node in (into, inside[-1]))
    return f"{before} -> {after}"


def _stored_line(card: ModelCard, ready: Tensor) -> str:
    shape = " x ".join(["B", *map(str, card.preprocessing.stored_shape)])
    return f"Images as stored, {card.preprocessing.stored_dtype} {shape}, to what Net takes: float32 B x {' x '.join(map(str, ready.shape[1:]))}."


def _net_line(ready: Tensor, card: ModelCard) -> str:
    return f"float32 B x {' x '.join(map(str, ready.shape[1:]))}, preprocessed, to logits B x {len(card.class_names)}."


def _title(card: ModelCard) -> str:
    metrics = "; ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in _numbers(card.metrics))
    lines = [
        f"An image classifier found by niwaki: {len(card.class_names)} classes, {card.macs:,} multiply-adds, {card.params:,} parameters.",
        *textwrap.wrap(metrics.replace('"', "'").replace("\\", "/"), LINE),
    ]
    return "\n".join(lines)


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name} ")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((f"{prefix}{name}", float(value)))
    return found


def _wrapped(items: tuple[str, ...], start: str, end: str, indent: str) -> str:
    text = start + ", ".join(json.dumps(item, ensure_ascii=False) for item in items) + ("," if len(items) == 1 else "") + end
    if len(text) <= LINE:
        return text
    return "\n".join([start, *(f"{indent}    {json.dumps(item, ensure_ascii=False)}," for item in items), f"{indent}{end}"])


_TEMPLATE = '''"""@TITLE@

    python model.py IMAGE...                                      prints the three likeliest classes of image files
    net = load(); logits = net(Preprocess()(images))              images as stored: @DTYPE@ (B, *@SHAPE@)

Needs torch, and Pillow to read image files. The weights are in model.safetensors, beside this file.
"""

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
@IMPORTS@
@CLASSES@


@PREPROCESS@


@NET@


def load(path: str | Path = Path(__file__).with_name("model.safetensors")) -> Net:
    """The trained network, in evaluation mode."""
    net = Net()
    net.load_state_dict(read_safetensors(path))
    return net.eval()


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name. The format: 8 bytes of header length, a JSON header, then the numbers."""
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64, "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8}
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            numbers = bytearray(content[start + first : start + last])
            tensors[name] = torch.frombuffer(numbers, dtype=dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def read_image(path: str | Path) -> Tensor:
    """An image file as the training data store theirs: turned upright, on white where transparent, resized; @DTYPE@ @SHAPE@."""
    from PIL import Image, ImageOps

    mode, (height, width), pixel_range = @MODE@, @SIZE@, @RANGE@  # pixel_range: the stored values of black and white
    if mode is None or pixel_range is None:
        raise ValueError("the training data are no ordinary images; image files cannot be brought to their form")
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        if image.mode.startswith("I"):  # 16 bits of grey
            wide = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
            image = Image.frombytes("L", image.size, bytes((wide.float() / 257).round().clamp(0, 255).byte().tolist()))
        image = image.convert(mode)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(@SHAPE@)
    low, high = pixel_range
    if (low, high) != (0.0, 255.0):
        pixels = pixels.float() * ((high - low) / 255) + low
    return pixels.round().to(torch.@DTYPE@) if pixels.dtype != torch.@DTYPE@ and torch.@DTYPE@ == torch.uint8 else pixels.to(torch.@DTYPE@)


def main(paths: list[str]) -> None:
    if not paths:
        sys.exit(f"usage: python {Path(__file__).name} IMAGE...")
    net, preprocess, failed = load(), Preprocess(), False
    for path in paths:
        try:
            image = read_image(path)
        except (OSError, ValueError) as error:
            failed = True
            print(f"{path}: {error}", file=sys.stderr)
            continue
        with torch.no_grad():
            probabilities = net(preprocess(image[None])).softmax(1)[0]
        top = probabilities.topk(min(3, len(CLASSES)))
        print(path, *(f"{CLASSES[k]} {p:.1%}" for p, k in zip(top.values.tolist(), top.indices.tolist())), sep="  ")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
'''
