"""Structured multi-hashing: sizes to the digit, spreads as they were, gradients, shared modules, files, training and export."""

import copy
import json
import math
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import nn

from niwaki.deploy.card import ModelCard, Preprocessing
from niwaki.deploy.export import capture, export_onnx
from niwaki.deploy.multi_hash import (
    Sizes,
    compress,
    convolutions,
    fan_out,
    generated_norm,
    load_compressed,
    materialise,
    relu,
    save_compressed,
    sign,
    sizes,
    truncated,
    uniform,
    weights_and_biases,
)
from niwaki.deploy.weight_pool import Hash, HashingError, Kronecker, SumProduct, root
from niwaki.net.block import conv_bn_act
from niwaki.net.control import Chain, Network
from niwaki.net.layer import Flatten, GlobalPool, Linear
from niwaki.net.place import space_of
from niwaki.net.text import from_json
from niwaki.nn.build import build
from niwaki.run.experiments import multihashing as experiment
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.train.loop import train
from niwaki.train.recipe import Recipe

POOLS = (SumProduct(), Kronecker(), Hash(), Hash(hashes=3, signs=True))


SMALL = {"threads": 1, "search.epochs": 2, "search.logit_passes": 1, "search.candidates": 3, "search.finalists": 1, "train.epochs": 2}


def perceptron(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))


def convolutional(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 64, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


WEIGHTS = 64 * 256 + 256 * 256 + 256 * 10  # of the perceptron
BIASES = 256 + 256 + 10


# --- size ---


@pytest.mark.parametrize("fraction", [1, 0.5, 0.25, 0.1, 0.02])
def test_what_is_stored_is_counted_to_the_digit(fraction):
    hashed = compress(perceptron(), fraction=fraction)
    side, rank = math.ceil(math.sqrt(WEIGHTS)), hashed.variables["A"].shape[1]
    assert sum(parameter.numel() for parameter in hashed.parameters()) == 2 * rank * side + 3 + BIASES == sizes(hashed).stored
    assert 0 <= fraction * WEIGHTS - 2 * rank * side < 2 * side
    assert sizes(hashed).materialised == sum(parameter.numel() for parameter in perceptron().parameters())


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("params", [3_000, 12_345, 60_000])
def test_a_number_of_parameters_is_never_exceeded_and_missed_by_less_than_a_unit(pool, params):
    hashed = compress(perceptron(), params=params, pool=pool)
    assert 0 <= params - sizes(hashed).stored < pool.unit(WEIGHTS)
    assert sizes(hashed).stored == sum(parameter.numel() for parameter in hashed.parameters())


def test_a_size_that_cannot_be_is_refused_with_the_one_that_can():
    least = 2 * 291 + 3 + BIASES
    assert sizes(compress(perceptron(), params=least)).stored == least
    with pytest.raises(HashingError, match=f"params={least - 1}.*least.*{least:,}"):
        compress(perceptron(), params=least - 1)
    with pytest.raises(HashingError, match="least"):
        compress(perceptron(), fraction=0.001)
    with pytest.raises(HashingError, match="nothing to compress"):
        compress(perceptron(), params=WEIGHTS + BIASES)
    for wrong in ({"params": 9_000, "fraction": 0.1}, {}, {"fraction": 0.0}, {"fraction": 1.5}):
        with pytest.raises(HashingError):
            compress(perceptron(), **wrong)
    with pytest.raises(HashingError, match="BatchNorm2d has no weight to hash"):
        compress(nn.BatchNorm2d(4), fraction=0.5)


@pytest.mark.parametrize(("count", "degree"), [(1, 2), (16, 4), (17, 4), (84_480, 2), (10**12, 2), (10**12 + 1, 2)])
def test_a_root_is_the_least_side_that_has_room(count, degree):
    side = root(count, degree)
    assert (side - 1) ** degree < count <= side**degree


# --- how it starts ---


@pytest.mark.parametrize("draw", [uniform, truncated])
def test_variables_of_the_published_spread_give_weights_of_spread_one_and_naive_ones_do_not(draw):
    pool, rank = SumProduct(), 36

    def spread(std):
        generator = torch.Generator().manual_seed(0)
        variables = {name: draw(shape, std, generator) for name, shape in pool.shapes(WEIGHTS, rank).items()}
        return float(pool.generate(variables, 0, WEIGHTS).std())

    assert spread(pool.std(rank)) == pytest.approx(1, rel=0.05)
    assert spread(1.0) > 3


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("fraction", [0.5, 0.02])
def test_every_layer_starts_with_the_spread_that_its_own_initialisation_gave_it(pool, fraction):
    module = perceptron()
    hashed = compress(module, fraction=fraction, pool=pool)
    for name, tensor in hashed.generated().items():
        assert float(tensor.detach().std()) == pytest.approx(float(module.get_parameter(name).detach().std()), rel=0.05), name


def test_the_released_spread_is_that_of_the_fan_out():
    for name, tensor in compress(convolutional(), fraction=0.3, scale=fan_out).generated().items():
        expected = {"0.weight": (2 / (9 * 32)) ** 0.5, "3.weight": (2 / (9 * 32)) ** 0.5, "4.weight": (2 / 64) ** 0.5, "7.weight": 10**-0.5}
        assert float(tensor.detach().square().mean().sqrt()) == pytest.approx(expected[name], rel=1e-4)


# --- what is computed ---


def test_the_structured_pool_is_the_sum_of_products_that_the_paper_writes():
    hashed = compress(perceptron(), fraction=0.1)
    a, b = (hashed.variables[name].detach().double().numpy() for name in "AB")
    scales = hashed.scales.tolist()
    side, start = len(a), 0
    for at, (name, tensor) in enumerate(hashed.generated().items()):
        flat = tensor.detach().flatten().numpy()
        for p in (0, 1, len(flat) // 2, len(flat) - 1):
            row, column = divmod(start + p, side)
            expected = sum(a[row, m] * b[m, column] for m in range(a.shape[1])) * scales[at]
            assert flat[p] == pytest.approx(expected, abs=1e-6), name
        start += len(flat)


def test_the_kronecker_pool_is_the_sum_of_kronecker_products():
    hashed = compress(perceptron(), fraction=0.1, pool=Kronecker())
    p, q = (hashed.variables[name].detach().double().numpy() for name in "PQ")
    whole = sum(np.kron(left, right) for left, right in zip(p, q, strict=True)).flatten()[: 64 * 256]
    assert np.allclose(hashed.weight("1.weight").detach().flatten(), whole * hashed.scales.tolist()[0], atol=1e-6)


def test_one_hash_shares_values_and_spreads_them_over_all_layers():
    hashed = compress(perceptron(), fraction=0.05, pool=Hash())
    plain = torch.cat(
        [tensor.detach().flatten() / scale for tensor, scale in zip(hashed.generated().values(), hashed.scales.detach(), strict=True)]
    )
    values = hashed.variables["V"].detach().flatten()
    apart = (plain[:2000, None] - values[None]).abs().min(1).values
    assert float(apart.max()) < 1e-5
    used = (plain[:, None] - values[None, :50]).abs() < 1e-6
    assert float(used.sum(0).float().mean()) == pytest.approx(WEIGHTS / len(values), rel=0.2)


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_one_layer_can_be_made_without_the_others(pool):
    hashed = compress(convolutional(), fraction=0.3, pool=pool)
    for name, tensor in hashed.generated().items():
        assert torch.allclose(hashed.weight(name), tensor, atol=1e-6)
    with pytest.raises(HashingError, match=r"'1\.weight' is not hashed; hashed are 0\.weight"):
        hashed.weight("1.weight")


def test_modifiers_of_the_released_code():
    positive = compress(perceptron(), fraction=0.2, modify=relu)
    assert all(float(tensor.detach().min()) == 0 for tensor in positive.generated().values())
    binary = compress(perceptron(), fraction=0.2, modify=sign)
    for tensor, scale in zip(binary.generated().values(), binary.scales, strict=True):
        assert torch.allclose(tensor.abs(), scale.expand_as(tensor))
    binary(torch.randn(4, 64)).sum().backward()
    assert float(binary.variables["A"].grad.abs().sum()) > 0  # straight through


def test_the_product_is_in_float32_under_autocast():
    hashed, x = compress(perceptron(), fraction=0.2), torch.randn(4, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert hashed(x).dtype == torch.bfloat16
        under = hashed.generated()
    assert all(torch.equal(under[name], tensor) for name, tensor in hashed.generated().items())
    half = compress(perceptron().to(torch.bfloat16), fraction=0.2)
    made = half.weight("3.weight")
    assert made.dtype == torch.bfloat16
    exact = half.float().weight("3.weight")  # of the same variables
    assert torch.equal(made, exact.to(torch.bfloat16))


def test_gradients_reach_variables_and_scales_as_finite_differences_say():
    hashed, x = compress(perceptron(), fraction=0.02).double(), torch.randn(3, 64).double()
    hashed(x).square().sum().backward()

    def loss():
        with torch.no_grad():
            return float(hashed(x).square().sum())

    for tensor, at in ((hashed.variables["A"], (5, 0)), (hashed.variables["B"], (1, 7)), (hashed.scales, (2,))):
        step, before = 1e-6, float(tensor.detach()[at])
        with torch.no_grad():
            tensor[at] = before + step
            above = loss()
            tensor[at] = before - step
            below = loss()
            tensor[at] = before
        assert float(tensor.grad[at]) == pytest.approx((above - below) / (2 * step), rel=1e-5)


# --- what is left alone ---


def test_normalisation_buffers_and_frozen_tensors_stay_and_the_state_holds_nothing_twice():
    module = convolutional()
    module[4].weight.requires_grad_(False)
    hashed = compress(module, fraction=0.5)
    names = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    made = {"0.weight", "3.weight", "7.weight"}
    assert set(hashed.state_dict()) == {f"module.{name}" for name in names - made} | {"variables.A", "variables.B", "scales"}
    assert torch.equal(hashed.module[4].weight, module[4].weight)
    assert [place.name for place in compress(module, fraction=0.5, which=convolutions).places] == ["0.weight", "3.weight"]
    with_biases = compress(convolutional(), fraction=0.5, which=weights_and_biases)
    assert {"3.bias", "4.bias", "7.bias"} < {place.name for place in with_biases.places}
    assert "1.bias" not in {place.name for place in with_biases.places}


def test_the_module_itself_is_not_touched_and_a_fixed_scale_does_not_learn():
    module = perceptron()
    before = copy.deepcopy(module.state_dict())
    hashed = compress(module, fraction=0.1, learn_scales=False)
    hashed(torch.randn(2, 64)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert {name for name, _ in hashed.named_parameters() if "bias" not in name} == {"variables.A", "variables.B"}
    assert "scales" in hashed.state_dict()


class Shared(nn.Module):
    """A layer called at two places, and an embedding whose matrix is the output layer's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.twice = nn.Linear(32, 32)
        self.again = self.twice
        self.out = nn.Linear(32, 50, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens):
        return self.out(self.again(self.twice(self.embed(tokens))))


def test_what_is_shared_is_made_once_and_shared_still():
    hashed = compress(Shared(), fraction=0.3)
    assert [place.shape for place in hashed.places] == [(50, 32), (32, 32)]
    assert sizes(hashed) == Sizes(hashed.variables["A"].numel() * 2, 2, 32, 50 * 32 + 32 * 32)
    plain, tokens = materialise(hashed), torch.arange(6)[None]
    assert plain.out.weight is plain.embed.weight
    assert plain.again is plain.twice
    assert torch.allclose(plain(tokens), hashed(tokens), atol=1e-6)


@pytest.mark.parametrize(
    ("module", "example"),
    [(nn.LSTM(8, 16, num_layers=2), torch.randn(5, 2, 8)), (nn.TransformerEncoderLayer(16, 4, 32, dropout=0), torch.randn(5, 2, 16))],
    ids=["lstm", "transformer"],
)
def test_any_module_learns_is_copied_and_written_out(module, example):
    hashed = compress(module, fraction=0.4)
    out = hashed(example)
    (out[0] if isinstance(out, tuple) else out).square().mean().backward()
    assert all(values.grad is not None for values in hashed.variables.values())
    again, plain = copy.deepcopy(hashed)(example), materialise(hashed)(example)
    first = [value[0] if isinstance(value, tuple) else value for value in (out, again, plain)]
    assert torch.allclose(first[0], first[1])
    assert torch.allclose(first[0], first[2], atol=1e-6)
    assert list(materialise(hashed).state_dict()) == list(module.state_dict())


# --- files, training, export ---


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_a_file_holds_four_bytes_a_variable_and_comes_back_exactly(pool, tmp_path):
    hashed, x = compress(perceptron(), fraction=0.1, pool=pool, modify=relu), torch.randn(5, 64)
    size = save_compressed(hashed, tmp_path / "small.safetensors")
    assert size == (tmp_path / "small.safetensors").stat().st_size
    assert size == pytest.approx(4 * sizes(hashed).stored, rel=0.05)
    loaded = load_compressed(tmp_path / "small.safetensors", perceptron(seed=9))
    assert torch.equal(loaded(x), hashed(x))
    assert torch.allclose(materialise(loaded)(x), hashed(x), atol=1e-6)


def test_a_file_of_another_module_is_refused(tmp_path):
    save_compressed(compress(perceptron(), fraction=0.1), tmp_path / "small.safetensors")
    with pytest.raises(HashingError, match="of another module"):
        load_compressed(tmp_path / "small.safetensors", convolutional())
    (tmp_path / "text.safetensors").write_text("no tensors")
    for file, words in (("text", "cannot be read as a safetensors file"), ("nowhere", "nowhere.safetensors cannot be read")):
        with pytest.raises(HashingError, match=words):
            load_compressed(tmp_path / f"{file}.safetensors", perceptron())
    safetensors.torch.save_file({"A": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(HashingError, match="no file of a compressed module"):
        load_compressed(tmp_path / "plain.safetensors", perceptron())
    with pytest.raises(HashingError, match="modifiers"):
        save_compressed(compress(perceptron(), fraction=0.1, modify=torch.tanh), tmp_path / "own.safetensors")


def test_a_described_network_is_compressed_trained_in_the_usual_loop_and_exported(tmp_path):
    network = Network(
        Chain(conv_bn_act(16, 3, stride=2), conv_bn_act(32, 3), GlobalPool(), Flatten(), Linear(10)), input_shape=(1, 8, 8)
    )  # fmt: skip
    task = ImageClassification(digits())
    module = build(network, space_of(network).architecture({}))
    hashed = compress(module, fraction=0.4)
    recipe = Recipe(epochs=3, optimizer="adamw", lr=0.01, weight_decay=1e-4, ema=0.9)
    trained = train(hashed, task, recipe, task.part("train"), seed=0)
    assert not torch.equal(trained.variables["A"], compress(module, fraction=0.4).variables["A"])
    plain = materialise(trained)
    assert list(plain.state_dict()) == list(module.state_dict())
    images = task.images.test_images[:16]
    mean, std = task.normalisation
    form = Preprocessing(images.shape[1:], str(images.dtype), task.images.pixel_range, tuple(mean.tolist()), tuple(std.tolist()))
    card = ModelCard(task.images.class_names, form, macs=0, params=sizes(trained).materialised, size_bytes=0)
    export_onnx(capture(plain, task.preprocess(), images), tmp_path / "model.onnx", card)
    session = onnxruntime.InferenceSession((tmp_path / "model.onnx").read_bytes())
    with torch.no_grad():
        expected = trained(task.preprocess()(torch.from_numpy(images.copy())))
    assert np.allclose(session.run(None, {"images": images})[0], expected, atol=1e-4)


def test_the_norm_of_what_is_generated_is_that_of_the_written_out_weights():
    hashed = compress(perceptron(), fraction=0.1)
    plain = materialise(hashed)
    expected = sum(float(plain.get_parameter(place.name).detach().square().sum()) for place in hashed.places)
    assert float(generated_norm(hashed).detach()) == pytest.approx(expected, rel=1e-5)


def test_a_search_stores_a_share_of_the_weights_of_its_network_and_delivers_them_all(niwaki_command, tmp_path):
    told = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    folder = tmp_path / "run"
    answer = niwaki_command("search", "--out", folder, *told, "--set", 'budget=["macs<=60k"]', "--set", "train.stored=0.3", "--json")
    assert answer.code == 0, answer.err
    (row,) = answer.json["budgets"]
    description = from_json(json.loads((folder / "architecture.json").read_text())["network"])
    module = build(description, space_of(description).architecture({}))
    loaded = load_compressed(folder / "model.smh.safetensors", module)
    assert sizes(loaded).stored == row["stored_params"]
    assert sizes(loaded).materialised == row["params"]
    assert sizes(loaded).pool <= 0.3 * sizes(loaded).generated
    module.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    x = torch.randn(4, *description.input_shape)
    assert torch.allclose(loaded.eval()(x), module.eval()(x), atol=1e-6)
    assert f"{row['stored_params']:,}, the rest made from these" in (folder / "report.html").read_text()
    refused = niwaki_command("search", "--out", tmp_path / "no", *told, "--set", "train.stored=0.001")
    assert refused.code == 2
    assert "train.stored = 0.001: of the smallest network" in refused.err


def some_results(quarter=97.5, hashed=95.5, twentieth=95.8, narrow=84.0, step=1.1, many=1.4):
    """What the experiment gives, made up: five seeds that hardly differ."""
    jobs = {"steps": {"least_s": {"dense": 0.01, "structured": 0.01 * step, "hash": 0.011, "hashes": 0.01 * many}}}
    for seed in range(5):
        named = {"structured 0.25": quarter, "hash 0.25": hashed, "structured 0.05": twentieth, "hash 0.05": 94.8}
        others = {f"{name} {fraction}": 93.0 for name in experiment.POOLS for fraction in (0.25, 0.05, 0.02)}
        accuracy = {"dense": 97.8, **others, **named}
        jobs[f"digits {seed}"] = {"accuracy": {name: value + 0.1 * seed for name, value in accuracy.items()}}
        jobs[f"fashion {seed}"] = {
            "structured": {"stored": 7728, "accuracy": 86.0 + 0.1 * seed}, "narrow": {"stored": 7390, "accuracy": narrow + 0.1 * seed},
        }  # fmt: skip
    plan = json.loads(json.dumps(experiment.Plan(seeds=5).to_json()))
    return {"method": "multihashing", "quick": False, "plan": plan, "machine": {}, "jobs": jobs}


@pytest.mark.parametrize(
    ("changed", "wrong"),
    [
        ({"quarter": 96.2, "hashed": 94.0}, [0]),
        ({"hashed": 97.0}, [1]),
        ({"twentieth": 94.7}, [2]),
        ({"narrow": 85.5}, [3]),
        ({"step": 1.35}, [4]),
        ({"many": 1.05}, [5]),
    ],
)
def test_each_claim_holds_by_its_own_bar(changed, wrong):
    good, bad = (experiment.section_of(some_results(**figures)) for figures in ({}, changed))
    assert [one.verdict for one in good.claims[:6]] == ["holds"] * 6
    assert [at for at, one in enumerate(bad.claims[:6]) if one.verdict == "does not hold"] == wrong


def test_what_the_readme_shows_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    (block,) = [text for text in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "niwaki.compress(" in text]
    names: dict[str, object] = {}
    exec(block, names)
    assert sizes(names["hashed"]).stored <= 50_000
    assert (tmp_path / "model.smh.safetensors").stat().st_size < 4 * 50_000 * 1.01
    assert list(names["plain"].state_dict()) == list(names["module"].state_dict())
