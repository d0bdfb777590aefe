"""A trained network as source: `model.py`, plain PyTorch to read, change and run without niwaki, and its weights `model.safetensors`."""

from __future__ import annotations

import copy
import math
import operator
import re
import textwrap
import time
from collections.abc import Callable, Mapping
from functools import singledispatch
from itertools import groupby
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from niwaki.deploy.audit import BATCH_SIZES, Audit, compare, scale_of
from niwaki.deploy.card import ExportError, ModelCard, Preprocessing, TableForm
from niwaki.deploy.export import TORCH_TOLERANCE, logits_of
from niwaki.net.control import Network
from niwaki.net.layer import Opaque
from niwaki.net.place import fix, place
from niwaki.nn.build import module_name
from niwaki.store.files import atomic_write

LINE = 140
MOST_WRITTEN = 1024  # numbers of a buffer that stand in the text, unless it has a formula
NEGATIVE = "neg_"  # of metrics that are told as they are, too
INFIX: Mapping[Any, str] = {
    function: sign
    for sign, functions in {
        "+": (operator.add, torch.add),
        "-": (operator.sub, torch.sub),
        "*": (operator.mul, torch.mul),
        "/": (operator.truediv, torch.div),
        "//": (operator.floordiv,),
        "%": (operator.mod,),
        "**": (operator.pow,),
    }.items()
    for function in functions
}
Factories = Mapping[str, tuple[str, Mapping[str, Any]]]  # module name -> "pkg.mod:factory", its arguments


def write_source(
    module: fx.GraphModule,
    preprocess: nn.Module,
    images: NDArray,
    folder: str | Path,
    card: ModelCard,
    *,
    factories: Factories | None = None,
) -> Audit:
    """Writes `model.py` and `model.safetensors` into `folder`, and sees that they give the logits of `module` on `images`.

    images: real ones as stored, (N, H, W[, C]). The keys in the weights are those of `module`'s state_dict. factories: where the modules
    come from that are not of torch.nn, see `opaque_factories`; `model.py` imports them.
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
    logits = logits_of(nn.Sequential(preprocess, module), images)
    difference = compare("model.py", lambda x: logits_of(nn.Sequential(ready, net), x), images, logits, tolerance=TORCH_TOLERANCE)
    atomic_write(folder / "model.py", source)
    size = sum((folder / name).stat().st_size for name in ("model.py", "model.safetensors"))
    return Audit("model.py", size, time.perf_counter() - began, len(images), BATCH_SIZES, difference, scale_of(logits))


def write_weights(module: nn.Module, path: str | Path) -> None:
    """Writes the state_dict as safetensors, in its order; the same weights give the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    atomic_write(path, safetensors.torch.save(tensors))


def opaque_factories(network: Network, arch: Mapping[str, Any]) -> Factories:
    """For each opaque layer of an architecture, by its name in the built module: the factory's path and its arguments."""
    items = fix(place(network), arch).items
    return {module_name(item.path): (item.layer.factory, dict(item.layer.kwargs)) for item in items if isinstance(item.layer, Opaque)}


def source_of(
    module: fx.GraphModule, preprocess: nn.Module, images: NDArray, card: ModelCard, *, factories: Factories | None = None
) -> str:
    """The text of `model.py`. images: one or more, stored; their shapes are written beside the blocks."""
    traced = preprocess if isinstance(preprocess, fx.GraphModule) else fx.symbolic_trace(preprocess)
    ready = traced(torch.tensor(images))
    for graph_module, example in ((traced, torch.tensor(images)), (module, ready)):
        ShapeProp(graph_module).propagate(example)
    factories = factories or {}
    imports = sorted({path.partition(":")[0] for path, _ in factories.values()})
    stored, noun = card.preprocessing, card.input_name
    given = f"logits, B x {len(card.class_names)}" if card.class_names else "predictions, B x 1"
    parts = {
        "TITLE": _title(card),
        "IMPORTS": "".join(f"import {name}\n" for name in imports),
        "PREPROCESS": class_text(
            "Preprocess", f"{noun.capitalize()} as stored to what Net takes, float32 {_sizes(ready)}.", traced, {}, grouped=False
        ),
        "NET": class_text("Net", f"Preprocessed {noun}, float32 {_sizes(ready)}, to {given}.", module, factories, grouped=True),
    }
    if isinstance(stored, TableForm):
        parts |= {
            "COLUMNS": _columns(stored),
            "MISSING": repr(("", *stored.missing)),
            "CLASSES": f"{_class_names(card.class_names)}\n" if card.class_names else "",
            "TELL": _TELL_CLASS if card.class_names else _TELL_NUMBER,
            "GIVES": "logits" if card.class_names else "values",
            "SAYS": "the likeliest class" if card.class_names else f"the predicted {stored.target.name}".replace('"', "'"),
        }
        template = _TABLE_TEMPLATE
    else:
        parts |= {
            "CLASSES": _class_names(card.class_names),
            "STORED": f"{stored.stored_dtype} {' x '.join(['B', *map(str, stored.stored_shape)])}",
            "READ_IMAGE": _read_image(stored),
        }
        template = _TEMPLATE
    # in one pass: a class may bear the name of a mark
    return re.sub(r"@([A-Z_]+)@", lambda mark: parts[mark[1]], template.replace("@LOAD@", _LOAD))


# --- one class from one graph -----------------------------------------------------------------------------------------


def class_text(name: str, docstring: str, module: fx.GraphModule, factories: Factories | None = None, *, grouped: bool = True) -> str:
    """`class NAME(nn.Module)`: an attribute for every layer in order of execution, and a forward that a person would write.

    The shapes in its comments are those of the last `ShapeProp` over the module.
    """
    factories = factories or {}
    layers, steps = ["super().__init__()"], list[str]()
    variables = _Variables(module.graph)
    defined = {"training"}  # every module has it
    for block, nodes in _blocks(module.graph):
        definitions = list[str]()
        for node in nodes:
            for source in (node, *node.all_input_nodes):
                if source.op in ("call_module", "get_attr") and source.target not in defined:
                    definitions += [*_containers(module, str(source.target), defined), *_definition(module, source, factories)]
                    defined.add(str(source.target))
        if definitions:
            layers += ["", f"# {block}", *definitions] if grouped else definitions
        steps += ["", f"# {block}: {_passage(nodes)}"] if grouped else []
        for node in nodes:
            steps += variables.step(node)
    layers += _rest(module, defined)
    parameters = ", ".join(f"{node.target}: Tensor" for node in module.graph.nodes if node.op == "placeholder")
    (output,) = [node for node in module.graph.nodes if node.op == "output"]
    steps.append(f"return {_argument(output.args[0], variables)}")
    indented = "\n        "
    return f'''class {name}(nn.Module):
    """{docstring}"""

    def __init__(self) -> None:
        {indented.join(layers)}

    def forward(self, {parameters}) -> Tensor:
        {indented.join(steps[1:] if grouped else steps)}'''.replace(f"{indented}\n", "\n\n")


def _blocks(graph: fx.Graph) -> list[tuple[str, list[fx.Node]]]:
    """The operations in order, in runs that belong to one block."""
    named, block = [], "input"
    for node in graph.nodes:
        if node.op in ("call_module", "call_function", "call_method"):
            block = _block(node) or block
            named.append((block, node))
    return [(block, [node for _, node in run]) for block, run in groupby(named, key=operator.itemgetter(0))]


def _block(node: fx.Node) -> str | None:
    """The block that a node's name speaks of: up to the last numbered part (`stage1_block0` of `stage1_block0_dw_bn`), else the first part.

    None for an operation that bears fx's own name (`add_3`) and reads no attribute: it belongs to the block it stands in.
    """
    name = str(node.target) if node.op == "call_module" else re.sub(r"_\d+$", "", node.name)
    if node.op != "call_module" and name == (node.target if isinstance(node.target, str) else node.target.__name__):
        name = next((str(source.target) for source in node.all_input_nodes if source.op == "get_attr"), "")
        if not name:
            return None
    *parts, last = name.replace(".", "_").split("_")
    numbered = [at for at, part in enumerate(parts) if part[-1:].isdigit()]
    return "_".join(parts[: numbered[-1] + 1]) if numbered else (parts or [last])[0]


def _passage(nodes: list[fx.Node]) -> str:
    """What enters a run of operations and what leaves it, without the batch."""
    into = next((x for x in nodes[0].all_input_nodes if x.op != "get_attr"), nodes[0])
    metas = [node.meta.get("tensor_meta") for node in (into, nodes[-1])]  # none, or several, of what gives no tensor
    before, after = (" x ".join(map(str, shape[1:])) if (shape := getattr(meta, "shape", None)) else "several" for meta in metas)
    return f"{before} -> {after}"


class _Variables:
    """Names for the tensors of a graph, as a person would give them: `x` goes through the layers, `shortcut` waits for its sum, a `gate`
    is computed beside the map that it multiplies, and parallel branches are numbered."""

    def __init__(self, graph: fx.Graph) -> None:
        self.at = {node: at for at, node in enumerate(graph.nodes)}
        self.names: dict[fx.Node, str] = {node: str(node.target) for node in graph.nodes if node.op == "placeholder"}

    def of(self, node: fx.Node) -> str:
        return _attribute(str(node.target)) if node.op == "get_attr" else self.names[node]

    def step(self, node: fx.Node) -> list[str]:
        """The line or two that compute `node`."""
        inputs = [x for x in node.all_input_nodes if x.op != "get_attr"]
        dying = [x for x in inputs if self._last(x) <= self.at[node]]
        expression, lines = _expression(node, self), list[str]()
        if len(inputs) == 1 and not dying:
            name, lines = self._branch(node, inputs[0])
        elif not self._holds("x", after=node):
            name = "x"
        else:
            name = self.names[dying[0]] if dying else self._free("branch", node)
        self.names[node] = name
        return [*lines, f"{name} = {expression}"]

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
        return f"{_attribute(str(node.target))}({', '.join(args + kwargs)})"
    if node.op == "call_method":
        return f"{args[0]}.{node.target}({', '.join(args[1:] + kwargs)})"
    if node.target in INFIX and len(args) == 2 and not kwargs:
        return f"{args[0]} {INFIX[node.target]} {args[1]}"
    if node.target is operator.getitem:
        index = node.args[1]
        inside = ", ".join(_index(one, variables) for one in index) if isinstance(index, tuple) and index else _index(index, variables)
        return f"{args[0]}[{inside}]"
    if node.target is getattr:
        return f"{args[0]}.{node.args[1]}"
    if node.target is operator.neg:
        return f"-{args[0]}"
    return f"{_function(node.target)}({', '.join(args + kwargs)})"


def _argument(value: Any, variables: _Variables) -> str:
    if isinstance(value, fx.Node):
        return variables.of(value)
    if isinstance(value, (tuple, list)):
        inside = ", ".join(_argument(item, variables) for item in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' if len(value) == 1 else ''})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_argument(item, variables)}" for key, item in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, slice):
        return f"slice({_argument(value.start, variables)}, {_argument(value.stop, variables)}, {_argument(value.step, variables)})"
    if value is None or value is ... or isinstance(value, (bool, int, float, str, torch.dtype, torch.memory_format, torch.layout)):
        return "..." if value is ... else repr(value)
    raise ExportError(f"model.py cannot show {value!r}, an argument in the network's graph; numbers, text and tensors can be")


def _index(value: Any, variables: _Variables) -> str:
    """One part of an index: a slice as `1:3`."""
    if not isinstance(value, slice):
        return _argument(value, variables)
    start, stop, step = ("" if part is None else _argument(part, variables) for part in (value.start, value.stop, value.step))
    return f"{start}:{stop}" + (f":{step}" if step else "")


def _function(function: Callable[..., Any] | str) -> str:
    name = getattr(function, "__name__", repr(function))
    if isinstance(function, torch._ops.OpOverload):
        return f"torch.ops.{function}"
    for prefix, home in (("torch", torch), ("nn.functional", nn.functional)):
        if getattr(home, name, None) is function:
            return f"{prefix}.{name}"
    raise ExportError(f"model.py cannot call {function!r}; it can call functions of torch and torch.nn.functional, others in a module only")


# --- layers -----------------------------------------------------------------------------------------------------------


def _attribute(name: str) -> str:
    """What the layer `name` is called in the class: `self.stem["0"].conv` of stem.0.conv."""
    first, *parts = name.split(".")
    inside = "".join(f".{part}" if part.isidentifier() else f'["{part}"]' for part in parts)
    return f"self.{first}{inside}" if first.isidentifier() else f'getattr(self, "{first}"){inside}'


def _containers(module: nn.Module, name: str, defined: set[str]) -> list[str]:
    """The lines that make the parts which `name` is a part of, where they are not there yet."""
    lines, parts = [], name.split(".")[:-1]
    for at in range(1, len(parts) + 1):
        if (path := ".".join(parts[:at])) not in defined:
            defined.add(path)
            numbered = any(not child.isidentifier() for child, _ in module.get_submodule(path).named_children())
            lines.append(_assignment(path, f"nn.{'ModuleDict' if numbered else 'Module'}()"))
    return lines


def _assignment(name: str, made: str) -> str:
    return f"{_attribute(name)} = {made}" if name.isidentifier() or "." in name else f'self.add_module("{name}", {made})'


def _rest(module: nn.Module, defined: set[str]) -> list[str]:
    """The lines for what the state dict holds beside: tensors that nothing reads, and further names of those that several layers share."""
    first = dict[int, str]()
    lines = list[str]()
    tensors = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    inside = {name: any(name == other or name.startswith(f"{other}.") for other in defined if _is_leaf(module, other)) for name in tensors}
    for name in sorted(tensors, key=lambda name: not inside[name]):
        shared = first.setdefault(id(tensors[name]), name)
        if inside[name] and shared == name:
            continue
        lines += _containers(module, name, defined)
        lines += [f"{_attribute(name)} = {_attribute(shared)}"] if shared != name else _tensor_definition(module, name, tensors[name])
    return ["", "# held, not read, or shared", *lines] if lines else []


def _is_leaf(module: nn.Module, name: str) -> bool:
    """Whether `name` is a layer or a tensor, and no module that only holds others."""
    parent, _, last = name.rpartition(".")
    held = module.get_submodule(parent)
    return last not in held._modules or type(held._modules[last]) not in (nn.Module, nn.ModuleDict)


def _definition(module: fx.GraphModule, node: fx.Node, factories: Factories) -> list[str]:
    """The lines of `__init__` that make what `node` refers to."""
    name = str(node.target)
    value = operator.attrgetter(name)(module)
    if isinstance(value, Tensor):
        return _tensor_definition(module, name, value)
    if name in factories:
        path, kwargs = factories[name]
        made = f"{path.replace(':', '.')}({', '.join(f'{key}={value!r}' for key, value in kwargs.items())})"
    else:
        made = constructor(value)
    return [_assignment(name, made)]


def _tensor_definition(module: nn.Module, name: str, value: Tensor) -> list[str]:
    home, _, leaf = name.rpartition(".")
    persistent = leaf not in module.get_submodule(home)._non_persistent_buffers_set
    at = _attribute(home) if home else "self"
    if isinstance(value, nn.Parameter):
        form = f"torch.empty({tuple(value.shape)}{'' if value.dtype == torch.float32 else f', dtype={value.dtype}'})"
        frozen = "" if value.requires_grad else ", requires_grad=False"
        return [f'{at}.register_parameter("{leaf}", nn.Parameter({form}{frozen}))']  # load() fills it
    end = ")" if persistent else ", persistent=False)"
    if persistent and value.numel() > MOST_WRITTEN and not _formula(value):  # load() fills it
        return [f'{at}.register_buffer("{leaf}", torch.zeros({tuple(value.shape)}, dtype={value.dtype}))']
    if formula := _formula(value):
        text = f'{at}.register_buffer("{leaf}", {formula}{end}'
        return textwrap.wrap(text, LINE - 8, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    dtype = "" if value.dtype in (torch.float32, torch.int64) else f", dtype={value.dtype}"
    text = f'{at}.register_buffer("{leaf}", torch.tensor({value.tolist()}{dtype}){end}'
    return textwrap.wrap(text, LINE - 8, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _formula(rows: Tensor) -> str | None:
    """The rows that a nearest-neighbour resize reads, floor(i H / size), as a formula instead of a list of numbers; and a matrix that says
    to which of a few each of many belongs."""
    if rows.dim() == 2 and len(rows) > 1 and torch.equal(rows, torch.eye(rows.shape[1], dtype=rows.dtype)[rows.argmax(1)]):
        dtype = "" if rows.dtype == torch.float32 else f", dtype={rows.dtype}"
        return f"torch.eye({rows.shape[1]}{dtype})[{rows.argmax(1).tolist()}]"
    if rows.dim() >= 2 and rows.shape[-1] > 1 and rows.numel() > 4 and torch.equal(rows, torch.ones_like(rows).tril()):  # a causal mask
        return f"torch.ones({tuple(rows.shape)}, dtype={rows.dtype}).tril()"
    if rows.dtype != torch.int64 or rows.dim() != 1 or len(rows) < 2:
        return None
    size, steps = len(rows), torch.arange(len(rows))
    for height in range(int(rows[-1]) + 1, 2 * int(rows[-1]) + 2):
        if torch.equal(steps * height // size, rows):
            return f"torch.arange({size})" if height == size else f"torch.arange({size}) * {height} // {size}"
    return None


@singledispatch
def constructor(layer: nn.Module) -> str:
    """The expression that makes an equal, untrained layer. For layers without a rule below that is their `repr`."""
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
    shown += "" if layer.bias is not None else ", bias=False"
    return f"nn.Conv2d({layer.in_channels}, {layer.out_channels}, {_pair(layer.kernel_size)}{shown})"


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
def _(layer: nn.AdaptiveAvgPool2d) -> str:
    return f"nn.AdaptiveAvgPool2d({_pair(layer.output_size)})"


@constructor.register
def _(layer: nn.Dropout) -> str:
    return f"nn.Dropout({layer.p}{', inplace=True' if layer.inplace else ''})"


@constructor.register
def _(layer: nn.Flatten) -> str:
    end = "" if layer.end_dim == -1 else f", {layer.end_dim}"
    return f"nn.Flatten({layer.start_dim}{end})" if end or layer.start_dim != 1 else "nn.Flatten()"


def _pair(value: Any) -> str:
    """(3, 3) is written 3."""
    return repr(value[0]) if isinstance(value, tuple) and len(set(value)) == 1 else repr(value)


# --- words around the classes -----------------------------------------------------------------------------------------


def _sizes(ready: Tensor) -> str:
    return " x ".join(["B", *map(str, ready.shape[1:])])


def _read_image(stored: Preprocessing) -> str:
    """The function that brings an image file to the form of the data set; the same as `niwaki.deploy.predict.stored_image`."""
    if stored.channels not in (1, 3) or stored.pixel_range is None:
        return _READ_NO_IMAGE
    low, high = stored.pixel_range
    if (low, high) == (0.0, 255.0):
        values = "pixels" if stored.stored_dtype == "uint8" else "pixels.float()"
    else:
        values = f"(pixels.float() * {(high - low) / 255!r}{f' + {low!r}' if low else ''})"
        values += ".round().byte()" if stored.stored_dtype == "uint8" else ""
        values += f"  # black is stored as {low:g}, white as {high:g}"
    marks = {
        "MODE": {1: "L", 3: "RGB"}[stored.channels],
        "SIZE": repr(stored.stored_shape[:2]),
        "FORM": f"{stored.stored_dtype} {' x '.join(map(str, stored.stored_shape))}",
        "SHAPE": ", ".join(map(str, stored.stored_shape)),
        "VALUES": values,
    }
    return re.sub(r"@([A-Z_]+)@", lambda mark: marks[mark[1]], _READ_IMAGE)


def _title(card: ModelCard) -> str:
    metrics = "; ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in _numbers(card.metrics) if NEGATIVE not in name)
    of = "table" if isinstance(card.preprocessing, TableForm) else "image"
    what = f"{len(card.class_names)} classes" if card.class_names else "one number for a row"
    kind = f"{'An image' if of == 'image' else 'A table'} {'classifier' if card.class_names else 'regression'}"
    lines = [
        f"{kind} found by niwaki: {what}, {card.macs:,} multiply-adds, {card.params:,} parameters.",
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


def _columns(form: TableForm) -> str:
    """A tuple of (name, the texts of its categories, or None for numbers), one to a line."""
    lines = []
    for column in form.columns:
        names = "None" if column.names is None else f"({', '.join(map(repr, column.names))}{',' if len(column.names) == 1 else ''})"
        lines += textwrap.wrap(
            f"({column.name!r}, {names}),", LINE - 4, initial_indent="    ", subsequent_indent="        ", break_long_words=False
        )
    return "\n".join(["COLUMNS = (", *lines, ")"])


def _class_names(names: tuple[str, ...]) -> str:
    line = f"CLASSES = ({', '.join(map(repr, names))}{',' if len(names) == 1 else ''})"
    return line if len(line) <= LINE else "\n".join(["CLASSES = (", *(f"    {name!r}," for name in names), ")"])


_LOAD = '''def load(path: str | Path = Path(__file__).with_name("model.safetensors")) -> Net:
    """The trained network, in evaluation mode."""
    net = Net()
    net.load_state_dict(read_safetensors(path))
    return net.eval()


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name. The format: 8 bytes of header length, a JSON header, then the numbers."""
    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "BOOL": torch.bool}
    content = Path(path).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            numbers = bytearray(content[start + first : start + last])
            tensors[name] = torch.frombuffer(numbers, dtype=dtypes[entry["dtype"]]).reshape(entry["shape"])
    return tensors'''

_TEMPLATE = '''"""@TITLE@

    python model.py IMAGE...                                      prints the three likeliest classes of image files
    net = load(); logits = net(Preprocess()(images))              images as stored: @STORED@

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


@LOAD@


@READ_IMAGE@


def main(paths: list[str]) -> None:
    if not paths:
        sys.exit(f"usage: python {Path(__file__).name} IMAGE...")
    net, preprocess, failed = load(), Preprocess(), False
    for path in paths:
        try:
            image = read_image(path)
        except Exception as error:  # Pillow raises a dozen kinds for damaged files
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

_READ_IMAGE = '''def read_image(path: str | Path) -> Tensor:
    """An image file as the training data store theirs, @FORM@: turned upright, on white where transparent, resized."""
    from PIL import Image, ImageOps

    height, width = @SIZE@
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers, on a scale that the file does not tell")
        if image.mode.startswith("I"):  # 16 bits of grey
            wide = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
            wide[wide == image.info.get("transparency", -1)] = 65535
            image = Image.frombytes("L", image.size, bytes((wide / 257).round().clamp(0, 255).byte().tolist()))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("@MODE@")
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(@SHAPE@)
    return @VALUES@'''

_READ_NO_IMAGE = '''def read_image(path: str | Path) -> Tensor:
    """Image files cannot be brought to the form of the training data: those have other channels, or values on a scale of their own."""
    raise ValueError("the network was not trained on ordinary images; call it with tensors")'''

_TABLE_TEMPLATE = '''"""@TITLE@

    python model.py FILE.csv...                          prints @SAYS@ of each row of tables with the columns below
    net = load(); @GIVES@ = net(Preprocess()(rows))      rows as stored: float64 B x columns, NaN where a value is missing

Needs torch. The weights are in model.safetensors, beside this file.
"""

import csv
import json
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
@IMPORTS@
# Each column: its name, and the texts of its categories, which are stored as their place here, 0 the first; None: numbers.
@COLUMNS@
@CLASSES@MISSING = @MISSING@


@PREPROCESS@


@NET@


@LOAD@


def read_rows(path: str | Path) -> Tensor:
    """The rows of a CSV file as the training data store theirs; what is missing, or a text that is no category, is NaN."""
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = list(csv.DictReader(file))
    return torch.tensor([[stored(line[name], names) for name, names in COLUMNS] for line in lines], dtype=torch.float64)


def stored(text: str, names: tuple[str, ...] | None) -> float:
    text = text.strip()
    if names is not None:
        return float(names.index(text)) if text in names else math.nan
    return math.nan if text.lower() in MISSING else float(text)


def main(paths: list[str]) -> None:
    if not paths:
        sys.exit(f"usage: python {Path(__file__).name} FILE.csv...")
    net, preprocess = load(), Preprocess()
    for path in paths:
        with torch.no_grad():
            outputs = net(preprocess(read_rows(path)))
        for at, output in enumerate(@TELL@):
            print(f"{path}[{at}]", *output, sep="  ")


if __name__ == "__main__":
    main(sys.argv[1:])
'''

_TELL_CLASS = 'zip((CLASSES[k] for k in outputs.argmax(1)), (f"{p:.1%}" for p in outputs.softmax(1).amax(1).tolist()))'

_TELL_NUMBER = "outputs.tolist()"
