"""What is shipped computes what was trained, says what it needs, and runs without niwaki (and predicts without torch)."""

import ast
import json
import subprocess
import sys
import types

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import fx, nn

from niwaki.deploy import export
from niwaki.deploy.audit import compare
from niwaki.deploy.card import ExportError, ModelCard, Preprocessing, write_architecture
from niwaki.deploy.export import capture, export_onnx, export_pt2
from niwaki.deploy.predict import ExportedModel, PredictError, predict, stored_image
from niwaki.deploy.source import opaque_factories, source_of, write_source
from niwaki.net.block import conv_bn_act, mbconv
from niwaki.net.control import Add, Chain, Concat, Network
from niwaki.net.layer import (
    ACTIVATIONS,
    Activation,
    BatchNorm,
    Conv,
    Dropout,
    Flatten,
    GlobalPool,
    Identity,
    Interleave,
    Linear,
    Opaque,
    Pool,
    Subsample,
    Zero,
)
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.run.config import Config
from niwaki.run.plan import search_of
from niwaki.run.search import Chosen
from niwaki.run.ship import examples, ship
from niwaki.space.choice import Choice
from niwaki.store.files import atomic_write
from niwaki.task.classify import ImageClassification, Preprocess
from niwaki.task.embedded import digits
from niwaki.task.folder import image_folder
from niwaki.task.images import arrays


@pytest.fixture(scope="module")
def task():
    return ImageClassification(digits())


@pytest.fixture(scope="module")
def module(task):
    """Every primitive of the library once, on digits, with BatchNorm statistics of real data."""
    network = Network(
        Chain(
            conv_bn_act(8, name="stem"),
            Chain(
                mbconv(16, activation="hswish", squeeze_excite=True, name="block0"),
                mbconv(16, 5, expand=2, groups=2, activation="swish", squeeze_excite=True, name="block1"),
                name="stage1",
            ),
            Subsample(6, name="down"),
            Interleave(8, name="up"),
            Concat(
                Conv(6, 3, dilation=2, bias=True, name="dilated"),
                Chain(Pool("avg", 3, 1, 1, name="mean"), Conv(6, 1, groups=2, name="reduce")),
                Pool("max", 3, 1, 1, name="max"),
                name="mix0",
            ),
            Conv(12, 1, name="squeeze"),
            Add(Conv(12, 3, name="wide"), Zero(name="nothing"), Identity(name="same"), name="sum0"),
            BatchNorm(name="sum_bn"),
            *(Chain(Conv(12, 1, name="conv"), BatchNorm(name="bn"), Activation(kind, name="act"), name=kind) for kind in ACTIVATIONS),
            Chain(GlobalPool(name="pool"), Flatten(name="flatten"), Linear(24, name="hidden"), BatchNorm(name="bn"), name="neck"),
            Dropout(0.2, name="dropout"),
            Linear(10, name="head"),
        ),
        (1, 8, 8),
    )
    return calibrated(build(network), task.batch(task.part("train")[:512], torch.device("cpu"))[0])


@pytest.fixture(scope="module")
def card(task):
    mean, std = task.normalisation
    images = task.images
    return ModelCard(
        class_names=images.class_names,
        preprocessing=Preprocessing((8, 8), "uint8", images.pixel_range, mean.tolist(), std.tolist()),
        macs=1234,
        params=567,
        size_bytes=2268,
        metrics={"accuracy": {"validation": 0.5, "test": 0.25}},
        architecture={"stage1.width": 16},
        space="abc",
        network={"type": "Network"},
    )


@pytest.fixture(scope="module")
def folder(module, task, card, tmp_path_factory):
    """Everything that is shipped of one network."""
    folder = tmp_path_factory.mktemp("shipped")
    images = task.images.test_images
    shipment = capture(module, task.preprocess(), images)
    audits = [
        export_onnx(shipment, folder / "model.onnx", card),
        export_pt2(shipment, folder / "model.pt2", card),
        write_source(module, task.preprocess(), images, folder, card),
    ]
    write_architecture(card, folder / "architecture.json")
    assert [audit.file for audit in audits] == ["model.onnx", "model.pt2", "model.py"]
    assert all(audit.images == len(images) and audit.max_difference <= 1e-4 * audit.scale for audit in audits)
    return folder


@pytest.fixture(scope="module")
def logits(module, task):
    """What the trained network answers to the test images, by the task's own normalisation."""
    with torch.no_grad():
        return module(task.batch(task.part("test"), torch.device("cpu"))[0]).numpy()


def calibrated(module, inputs):
    module.train()
    with torch.no_grad():
        for _ in range(60):  # running statistics have momentum 0.1
            module(inputs)
    return module.eval()


# --- ONNX ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 7, 360])
def test_onnx_gives_the_logits_of_the_trained_network_at_any_batch_size(folder, task, logits, batch):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    (found,) = session.run(None, {"images": task.images.test_images[:batch]})
    assert found.shape == (batch, 10)
    assert np.ptp(logits, axis=0).min() > 0.01, "a network that answers the same to all images proves nothing"
    assert np.abs(found - logits[:batch]).max() <= 1e-4 * np.abs(logits).max()
    assert (found.argmax(1) == logits[:batch].argmax(1)).all()


def test_onnx_takes_images_as_the_data_set_stores_them_and_says_so(folder, card):
    model = onnx.load(folder / "model.onnx")
    (given,), (output,) = model.graph.input, model.graph.output
    assert (given.name, output.name) == ("images", "logits")
    assert given.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == ["batch", 8, 8]
    assert [dim.dim_param or dim.dim_value for dim in output.type.tensor_type.shape.dim] == ["batch", 10]
    metadata = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert metadata["class_names"] == list(card.class_names)
    assert metadata["preprocessing"]["stored_dtype"] == "uint8"
    assert metadata["preprocessing"]["mean"] == list(card.preprocessing.mean)
    assert metadata["architecture"] == {"stage1.width": 16}


def test_onnx_holds_no_more_weights_than_the_network_and_batch_norm_is_folded(folder, module):
    graph = onnx.load(folder / "model.onnx").graph
    floats = sum(np.prod(t.dims, dtype=int) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    own = sum(p.numel() for p in module.parameters())
    assert floats <= own + 10, "a few constants beside the weights"
    # those left stand behind a sum or a shuffle, or before the features: no convolution to be folded into
    makers = {output: node.op_type for node in graph.node for output in node.output}
    assert all(makers[node.input[0]] != "Conv" for node in graph.node if node.op_type == "BatchNormalization")


def test_exported_files_tell_nothing_of_the_machine_or_the_data(folder):
    for name in ("model.onnx", "model.pt2"):
        content = (folder / name).read_bytes()
        for secret in (b"site-packages", b"/src/", str(folder).encode(), b"stack_trace"):
            assert secret not in content, (name, secret)
    (example,), _ = torch.export.load(folder / "model.pt2").example_inputs
    assert not example.any(), "the example that was traced is blank, not one of the images"


def test_a_weight_that_nothing_reads_is_found():
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Relu", ["images"], ["logits"])],
        "g",
        [onnx.helper.make_tensor_value_info("images", 1, [1])],
        [onnx.helper.make_tensor_value_info("logits", 1, [1])],
        [onnx.numpy_helper.from_array(np.ones(3, np.float32), "spare")],
    )
    with pytest.raises(ExportError, match="1 weights that nothing reads, spare"):
        export._check_lean(onnx.helper.make_model(graph))


def test_a_norm_behind_a_convolution_that_is_called_at_two_places_may_stay():
    """Weights that two places share cannot take in the norm of each; those of one place must."""
    norm = [onnx.numpy_helper.from_array(np.ones(1, np.float32), name) for name in ("scale", "shift", "mean", "var")]
    weight = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "weight")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1, 1, 2, 2]) for name in ("images", "logits")]
    first, second = (
        [
            onnx.helper.make_node("Conv", [start, "weight"], [f"{end}_"]),
            onnx.helper.make_node("BatchNormalization", [f"{end}_", "scale", "shift", "mean", "var"], [end], name=f"norm of {end}"),
        ]
        for start, end in (("images", "between"), ("between", "logits"))
    )
    export._check_lean(onnx.helper.make_model(onnx.helper.make_graph([*first, *second], "g", ends[:1], ends[1:], [weight, *norm])))
    once = onnx.helper.make_graph(
        [*first, onnx.helper.make_node("Relu", ["between"], ["logits"])], "g", ends[:1], ends[1:], [weight, *norm]
    )
    with pytest.raises(ExportError, match="norm of between is not folded"):
        export._check_lean(onnx.helper.make_model(once))


def test_pt2_runs_and_carries_the_card(folder, task, logits, card):
    files = {"niwaki.json": ""}
    program = torch.export.load(folder / "model.pt2", extra_files=files)
    found = program.module()(torch.tensor(task.images.test_images[:5])).detach().numpy()
    assert np.abs(found - logits[:5]).max() <= 1e-6 * np.abs(logits).max()
    assert json.loads(files["niwaki.json"]) == json.loads((folder / "architecture.json").read_text())


def test_a_network_that_fixes_the_batch_is_refused(task):
    class Fixed(nn.Module):
        def forward(self, x):
            return x.reshape(2, -1)[:, :10]

    with pytest.raises(ExportError, match="cannot be captured for batches of any size"):
        capture(Fixed(), task.preprocess(), task.images.test_images[:2])


def test_a_network_that_gives_nan_is_refused(module, task):
    broken = build_copy(module)
    nn.init.constant_(broken.head.bias, float("nan"))
    with pytest.raises(ExportError, match="gives NaN or infinity"):
        capture(broken, task.preprocess(), task.images.test_images[:4])


def build_copy(module):
    copied = fx.GraphModule(module, module.graph)
    copied.head = nn.Linear(24, 10)
    return copied


# --- the check itself ----------------------------------------------------------------------------------------------------


def test_the_check_refuses_what_it_should():
    logits = np.array([[3.0, 1.0], [1.0, 1.0 + 1e-9], [0.0, 2.0]])
    images = np.arange(3)
    exact = compare("f", lambda x: logits[x], images, logits, tolerance=1e-4)
    assert exact == 0
    assert compare("f", lambda x: logits[x] + 2e-4, images, logits, tolerance=1e-4) == pytest.approx(2e-4)
    off = logits + np.array([[0, 0], [0, 0], [0, 1e-3]])
    with pytest.raises(ExportError, match=r"f, a batch of 3: logits differ .* by up to 0.001 \(image 2\), where 0.0003 is allowed"):
        compare("f", lambda x: off[x], images, logits, tolerance=1e-4)
    with pytest.raises(ExportError, match="differ"):
        compare("f", lambda x: logits[x] * np.nan, images, logits, tolerance=1e-4)
    with pytest.raises(ExportError, match="shape"):
        compare("f", lambda x: logits[x][:, :1], images, logits, tolerance=1e-4)
    with pytest.raises(ExportError, match="1 image"):  # wrong only where the batch is one image
        compare("f", lambda x: logits[x] + (len(x) == 1) * np.array([-2.0, 2.0]), images, logits, tolerance=1.0)


def test_the_check_lets_classes_that_are_equal_change_places():
    logits = np.array([[1.0, 1.0 + 1e-7]])
    assert compare("f", lambda x: logits[x][:, ::-1], np.arange(1), logits, tolerance=1e-4) == pytest.approx(1e-7)
    wide = np.array([[1.0, 1.00004]])  # within the tolerance, but the network does tell them apart
    with pytest.raises(ExportError, match="gets 0 instead of 1"):
        compare("f", lambda x: wide[x][:, ::-1], np.arange(1), wide, tolerance=1e-4)


# --- model.py ------------------------------------------------------------------------------------------------------------


def test_the_source_imports_torch_and_the_standard_library_only(folder):
    tree = ast.parse((folder / "model.py").read_text())
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in top} == {"torch", "json", "sys", "pathlib"}


def test_the_source_has_the_weights_of_the_network(folder, module):
    saved = safetensors.torch.load_file(folder / "model.safetensors")
    state = module.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], state[name]) and saved[name].dtype == state[name].dtype for name in saved)


def test_the_source_reads_like_the_network(folder):
    text = (folder / "model.py").read_text()
    for line in (
        "self.stage1_block0_dw = nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False)",
        "self.mix0_dilated = nn.Conv2d(16, 6, 3, padding=2, dilation=2)",
        "self.down_rows",
        "# stage1_block1: 16 x 8 x 8 -> 16 x 8 x 8",
        "        shortcut = x\n        x = self.stage1_block1_expand(x)",
        "x = x + shortcut",
        "gate = self.stage1_block0_se_pool(x)",
        "x = x * gate",
        "torch.arange(6) * 8 // 6",
        "1,234 multiply-adds, 567 parameters",
        "accuracy test 0.25",
    ):
        assert line in text, line
    assert "niwaki." not in text
    assert max(map(len, text.splitlines())) <= 140


def test_the_source_predicts_image_files_in_a_fresh_interpreter(folder, task, tmp_path):
    pictures = []
    for i in range(3):  # 0..16 becomes 0..255, as a picture would be
        pictures.append(tmp_path / f"{i}.png")
        Image.fromarray(np.rint(task.images.test_images[i] * (255 / 16)).astype(np.uint8)).save(pictures[-1])
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    code = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    assert "niwaki" not in sys.modules
"""
    command = [sys.executable, "-c", code, folder / "model.py", *pictures, broken]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "broken.png" in done.stderr
    predicted = predict(folder / "model.onnx", pictures)
    assert [line.split("  ")[1].split()[0] for line in done.stdout.splitlines()] == [row.label for row in predicted.rows]
    assert [line.split("  ")[1].split()[1] for line in done.stdout.splitlines()] == [f"{row.probability:.1%}" for row in predicted.rows]


@pytest.mark.parametrize(
    ("shape", "dtype", "bounds"),
    [((8, 8), "uint8", (0, 16)), ((20, 12, 3), "uint8", (0, 255)), ((9, 9, 3), "float32", (-1, 1)), ((5, 7), "float32", (0, 255))],
)
def test_the_source_reads_image_files_as_training_and_prediction_do(module, task, card, tmp_path, shape, dtype, bounds):
    rng = np.random.default_rng(0)
    tmp_path = tmp_path / "Möwen im Flug 🐦"
    tmp_path.mkdir()
    for name, mode, size in (("rgba", "RGBA", (15, 31, 4)), ("grey", "L", (40, 40)), ("rgb", "RGB", (9, 33, 3)), ("la", "LA", (9, 9, 2))):
        Image.fromarray(rng.integers(0, 256, size).astype(np.uint8), mode).save(tmp_path / f"{name}.png")
    deep = Image.fromarray(rng.integers(0, 65536, (30, 30)).astype(np.uint16))
    deep.save(tmp_path / "deep.png")
    deep.save(tmp_path / "deep, one shade transparent.png", transparency=deep.getpixel((0, 0)))
    turned = Image.fromarray(rng.integers(0, 256, (16, 40, 3)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png", "webp"):
        turned.save(tmp_path / f"turned.{suffix}", exif=exif)
    for suffix in ("gif", "png", "webp"):
        turned.save(tmp_path / f"animated.{suffix}", save_all=True, append_images=[turned.rotate(180)], duration=100)
    turned.convert("CMYK").save(tmp_path / "cmyk.jpg")
    turned.convert("1").save(tmp_path / "bits.png")
    turned.convert("1").save(tmp_path / "bits, black transparent.png", transparency=0)
    palette = Image.fromarray(rng.integers(0, 256, (16, 16)).astype(np.uint8)).convert("P")
    palette.save(tmp_path / "palette.png", transparency=7)

    stored = Preprocessing(shape, dtype, bounds, (0.0,), (1.0,))
    other = ModelCard(card.class_names, stored, 0, 0, 0)
    namespace = {"__name__": "model", "__file__": "model.py"}
    exec(source_of(module, task.preprocess(), task.images.test_images[:1], other), namespace)
    for path in sorted(tmp_path.iterdir()):
        expected = stored_image(path, stored)
        assert (expected.shape, expected.dtype) == (shape, dtype)
        assert bounds[0] <= expected.min() <= expected.max() <= bounds[1]
        found = namespace["read_image"](path).numpy()
        assert found.dtype == dtype
        assert np.allclose(found, expected, atol=1e-6 * bounds[1]), path.name
    first = stored_image(tmp_path / "animated.png", stored)
    turned.save(tmp_path / "still.png")
    assert np.array_equal(first, stored_image(tmp_path / "still.png", stored)), "of an animation, the first picture counts"


def test_the_source_names_every_file_that_cannot_be_read_and_goes_on(module, task, card, tmp_path, capsys, monkeypatch):
    write_source(module, task.preprocess(), task.images.test_images[:2], tmp_path, card)
    whole = tmp_path / "a b.png"
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(whole)
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "floats.tif")
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:50])
    namespace = {"__name__": "model", "__file__": str(tmp_path / "model.py")}
    exec((tmp_path / "model.py").read_text(), namespace)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # twice as many are an error that is no ValueError
    with pytest.raises(SystemExit) as stop:
        namespace["main"]([str(tmp_path / name) for name in ("a b.png", "floats.tif", "cut.png", "missing.png")])
    assert stop.value.code == 1
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == [
        str(tmp_path / name) for name in ("a b.png", "floats.tif", "cut.png", "missing.png")
    ]


def test_any_class_name_can_be_written(module, task, card):
    names = ("it's", 'say "hi"', '"""', "@NET@", "back\\slash", "line\nbreak", "🌳", "\udc80", "{x}", "plain")
    namespace = {"__name__": "model", "__file__": "model.py"}
    source = source_of(module, task.preprocess(), task.images.test_images[:1], ModelCard(names, card.preprocessing, 0, 0, 0))
    exec(compile(source.encode(), "model.py", "exec"), namespace)
    assert namespace["CLASSES"] == names


def test_an_opaque_layer_comes_from_its_factory(task, card, tmp_path, monkeypatch):
    own = types.ModuleType("own_layers")

    class Scale(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.weight = nn.Parameter(torch.full((1, 1, 1), by))

        def forward(self, x):
            return x * self.weight

    own.scale = Scale
    monkeypatch.setitem(sys.modules, "own_layers", own)
    layer = Opaque("own_layers:scale", (("by", 2.0),), make=Scale, name="own")
    network = Network(Chain(layer, Flatten(name="flatten"), Linear(10, name="head")), (1, 8, 8))
    module, images = build(network), task.images.test_images[:20]
    with pytest.raises(ExportError, match=r"cannot make a .*Scale.*pass factories="):
        write_source(module, task.preprocess(), images, tmp_path, card)
    assert not (tmp_path / "model.py").exists()
    write_source(module, task.preprocess(), images, tmp_path, card, factories=opaque_factories(network, {}))
    text = (tmp_path / "model.py").read_text()
    assert "import own_layers\n" in text
    assert "self.own = own_layers.scale(by=2.0)" in text


def test_any_graph_of_plain_layers_can_be_written(task, card, tmp_path):
    class Odd(nn.Module):
        """Names and shapes that niwaki does not make: branches read thrice, a parameter of its own, a list of numbers, softmax."""

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([0.5, 2.0]).view(1, 2, 1, 1))
            self.register_buffer("order", torch.tensor([1, 0]), persistent=False)
            self.add_module("0", nn.Conv2d(1, 2, (3, 1), stride=(1, 2), padding=(1, 0), padding_mode="circular"))
            self.prelu = nn.PReLU()
            self.norm = nn.BatchNorm2d(2, eps=1e-3, affine=False)
            self.leaky = nn.LeakyReLU(0.3, inplace=True)
            self.gelu = nn.GELU(approximate="tanh")
            self.pool = nn.MaxPool2d(3, 1, 1, ceil_mode=True)
            self.flatten = nn.Flatten(1, 2)
            self.head = nn.Linear(4, 10, bias=False)

        def forward(self, pixels):
            x = getattr(self, "0")(pixels)
            a, b, c = self.prelu(x), self.norm(x) * self.scale, self.gelu(x) - x
            y = torch.cat([a + b, torch.nn.functional.max_pool2d(c, kernel_size=3, stride=1, padding=1)], dim=1)
            z = y[:, 1:3].index_select(1, self.order) / 2
            return self.head(self.flatten(self.leaky(self.pool(z)))).mean(dim=1)

    module = calibrated(fx.symbolic_trace(Odd()), task.batch(task.part("train")[:64], torch.device("cpu"))[0])
    write_source(module, task.preprocess(), task.images.test_images, tmp_path, card)


# --- prediction ----------------------------------------------------------------------------------------------------------


def test_prediction_needs_no_torch_and_gives_the_accuracy_of_the_network(folder, task, logits, tmp_path):
    np.savez(tmp_path / "test.npz", images=task.images.test_images, labels=task.images.test_labels)
    code = (
        "import sys; from niwaki.deploy.predict import predict; p = predict(sys.argv[1], sys.argv[2:], threads=1); "
        "assert 'torch' not in sys.modules; print(p.accuracy, len(p.rows), p.failures)"
    )
    done = subprocess.run([sys.executable, "-c", code, folder / "model.onnx", tmp_path / "test.npz"], capture_output=True, text=True)
    accuracy, count, failures = done.stdout.split()
    assert float(accuracy) == pytest.approx((logits.argmax(1) == task.images.test_labels).mean())
    assert (count, failures) == ("360", "{}")


def test_a_file_that_cannot_be_read_is_named_and_costs_the_others_nothing(folder, task, logits, tmp_path):
    classes = tmp_path / "pictures" / "7"
    classes.mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(classes / "a.png")
    (classes / "b.jpg").write_bytes(b"")
    np.savez_compressed(tmp_path / "damaged.npz", images=task.images.test_images)
    content = bytearray((tmp_path / "damaged.npz").read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    (tmp_path / "damaged.npz").write_bytes(content)
    (tmp_path / "empty").mkdir()
    images = task.images.test_images
    np.save(tmp_path / "one.npy", images[0])
    np.save(tmp_path / "wide.npy", images[:, :, :4])
    np.save(tmp_path / "floats.npy", images / 16)
    np.savez(tmp_path / "named.npz", pictures=images)
    np.savez(tmp_path / "labels.npz", images=images[:3], labels=np.array([1, 2, 10]))
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    bad = {
        "pictures/7/b.jpg": "cannot be read as an image",
        "empty": "holds no image file",
        "wide.npy": "the model takes N x 8 x 8",
        "floats.npy": "images are float64; the model takes uint8",
        "named.npz": "has no array images; it holds pictures",
        "labels.npz": "3 class numbers within 0..9 are needed",
        "pickled.npy": "cannot be read as an array file",
        "damaged.npz": "cannot be read as an array file",
        "missing.png": "cannot be read as an image",
    }
    files = [tmp_path / name for name in ("pictures", "one.npy", *(name for name in bad if "/" not in name))]
    found = predict(folder / "model.onnx", files)
    assert [row.source for row in found.rows] == [str(classes / "a.png"), f"{tmp_path / 'one.npy'}[0]"]
    assert [row.truth for row in found.rows] == ["7", None]
    assert {str(tmp_path / name) for name in bad} == found.failures.keys()
    for name, why in bad.items():
        assert why in found.failures[str(tmp_path / name)]
    row = found.rows[1]
    shares = np.exp(logits[0] - logits[0].max()) / np.exp(logits[0] - logits[0].max()).sum()
    assert row.label == str(shares.argmax())
    assert row.probability == pytest.approx(shares.max(), abs=1e-5)
    assert [label for label, _ in row.top] == [str(k) for k in np.argsort(-shares)[:3]]


def test_the_class_of_a_file_is_the_nearest_folder_of_that_name_within_what_was_given(folder, tmp_path):
    given = tmp_path / "9" / "photos of 3 people"
    for name in ("7/a.png", "7/2021/Über/a.png", "7/4/x/a.png", "a.png", "x/a.png"):
        (given / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(given / name)

    def truths(*files):
        return {row.source.removeprefix(str(given) + "/"): row.truth for row in predict(folder / "model.onnx", files).rows}

    expected = {"7/a.png": "7", "7/2021/Über/a.png": "7", "7/4/x/a.png": "4", "a.png": None, "x/a.png": None}
    assert truths(given) == expected
    assert truths(given / "7") == {name: truth for name, truth in expected.items() if name.startswith("7")}
    assert truths(given / "7" / "a.png", given / "x" / "a.png") == {"7/a.png": "7", "x/a.png": None}


def test_a_dark_folder_gives_the_network_the_same_input_in_training_prediction_and_source(tmp_path):
    rng = np.random.default_rng(0)
    for part, name, darkest in (("train", "Füchse", 0), ("train", "Möwen", 40), ("test", "Füchse", 0), ("test", "Möwen", 40)):
        (tmp_path / "dark photos" / part / name).mkdir(parents=True)
        for i in range(8):
            pixels = rng.integers(darkest, darkest + 60, (8, 8), dtype=np.uint8)  # at most 99
            Image.fromarray(pixels).save(tmp_path / "dark photos" / part / name / f"{i}.png")
    task = ImageClassification(image_folder(tmp_path / "dark photos"))
    layers = Conv(Choice((4, 8), "/width"), name="conv"), Activation(name="act"), GlobalPool(name="pool"), Flatten(name="flat")
    network = Network(Chain(*layers, Linear(2, name="head")), task.input_shape)
    _, search = search_of(Config(budget=["macs<=1M"], threads=1), task, network)
    arch = space_of(network).architecture({"width": 4})
    module = build(network, arch)
    shipped = tmp_path / "kürzlich geliefert"
    ship(search, Chosen(search.budgets[0], arch, {}, {}, module), shipped)

    files = sorted((tmp_path / "dark photos" / "test").rglob("*.png"))
    namespace = {"__name__": "model", "__file__": str(shipped / "model.py")}
    exec((shipped / "model.py").read_text(), namespace)
    preprocessing = ExportedModel(shipped / "model.onnx").preprocessing
    for file, stored in zip(files, task.images.test_images, strict=True):
        assert np.array_equal(stored_image(file, preprocessing), stored)
        assert np.array_equal(namespace["read_image"](file).numpy(), stored)
    with torch.no_grad():
        chances = module(task.batch(task.part("test"), torch.device("cpu"))[0]).softmax(1)
    predicted = predict(shipped / "model.onnx", [tmp_path / "dark photos" / "test"])
    assert np.allclose([row.probability for row in predicted.rows], chances.max(1).values, atol=1e-5)
    assert [row.truth for row in predicted.rows] == ["Füchse"] * 8 + ["Möwen"] * 8


def test_the_examples_of_the_report_are_of_all_classes_also_where_the_data_are_sorted_by_class():
    labels = np.repeat([0, 1, 2], [2500, 400, 2])
    images = np.zeros((len(labels), 4, 4), np.uint8)
    images[:, 0, 0] = np.arange(len(labels)) % 256
    shown = examples(ImageClassification(arrays(images, labels, images, labels)), 8)
    assert [example["label"] for example in shown] == ["0", "1", "2", "0", "1", "2", "0", "1"]


def test_colour_images_may_come_channels_first(task, tmp_path):
    images = np.random.default_rng(0).random((12, 6, 5, 3)).astype(np.float32)
    layers = Conv(4, bias=True, name="conv"), Activation(name="act"), Flatten(name="flatten"), Linear(3, name="head")
    module = build(Network(Chain(*layers), (3, 6, 5)))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    preprocess = Preprocess(mean, std, channels_last=True)
    card = ModelCard(("a", "b", "c"), Preprocessing((6, 5, 3), "float32", (0, 1), mean.tolist(), std.tolist()), 0, 0, 0)
    export_onnx(capture(module, preprocess, images), tmp_path / "model.onnx", card)
    np.save(tmp_path / "last.npy", images.astype(np.float64))
    np.save(tmp_path / "first.npy", np.moveaxis(images, -1, 1))
    last, first = (predict(tmp_path / "model.onnx", [tmp_path / f"{name}.npy"]).rows for name in ("last", "first"))
    with torch.no_grad():
        inputs = torch.tensor(np.moveaxis(images, -1, 1))
        chances = module((inputs - mean.view(3, 1, 1)) / std.view(3, 1, 1)).softmax(1)
    assert [row.top for row in first] == [row.top for row in last]
    assert np.allclose([row.probability for row in last], chances.max(1).values, atol=1e-5)


def test_what_is_no_model_of_ours_is_refused(tmp_path):
    with pytest.raises(PredictError, match="is missing"):
        ExportedModel(tmp_path / "model.onnx")
    (tmp_path / "model.onnx").write_bytes(b"not onnx")
    with pytest.raises(PredictError, match="cannot be loaded by ONNX Runtime"):
        ExportedModel(tmp_path / "model.onnx")
    values = [onnx.helper.make_tensor_value_info(name, 1, ["b", 2]) for name in ("images", "logits")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["images"], ["logits"])], "g", values[:1], values[1:])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), tmp_path / "model.onnx")
    with pytest.raises(PredictError, match="has no format, class_names, preprocessing in its metadata"):
        ExportedModel(tmp_path / "model.onnx")


def test_image_files_are_refused_where_their_scale_is_unknown(task, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"values on a scale of their own.*give them as .npy"):
        stored_image(tmp_path / "a.png", Preprocessing((8, 8), "float32", None, (0.0,), (1.0,)))


# --- files ---------------------------------------------------------------------------------------------------------------


def test_architecture_json_says_all_that_is_known(folder, card):
    content = json.loads((folder / "architecture.json").read_text())
    known = "architecture space network class_names preprocessing macs params size_bytes metrics versions format"
    assert content.keys() == set(known.split())
    assert Preprocessing(**content["preprocessing"]) == card.preprocessing
    assert content["versions"]["torch"] == torch.__version__


def test_an_atomic_write_gives_the_whole_file_or_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    contents = (b"bytes", "text é", lambda partial: partial.write_bytes(b"written"))
    for content, expected in zip(contents, (b"bytes", "text é".encode(), b"written"), strict=True):
        atomic_write(path, content)
        assert path.read_bytes() == expected

    def fails(partial):
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        atomic_write(path, fails)
    assert path.read_bytes() == b"written"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match="nowhere/file"):
        atomic_write(tmp_path / "nowhere" / "file", b"")
