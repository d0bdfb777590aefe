"""Ordinary distillation: the loss is Hinton's, a teacher changes nothing else of a training, and teachers come from files without unpickling."""

import json
import math
import pickle
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from niwaki.deploy.card import ModelCard, Preprocessing, write_architecture
from niwaki.deploy.export import capture, export_onnx
from niwaki.net.block import classifier, conv_bn_act
from niwaki.net.control import Chain, Network
from niwaki.net.text import to_json
from niwaki.nn.build import build
from niwaki.run import shrink
from niwaki.run.config import ConfigError, config_of, without_effect
from niwaki.run.model import ModelError
from niwaki.run.plan import search_of
from niwaki.run.shrink_plan import asked_for
from niwaki.run.teacher import load_teacher
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.task.table import table
from niwaki.task.tabular import Tabular
from niwaki.task.task import derive_seed
from niwaki.train.distill import DistillationError, Teacher, check_teaches, softened_divergence, teacher_of
from niwaki.train.loop import epoch_batches, evaluate, start, train
from niwaki.train.recipe import Recipe

TASK = ImageClassification(digits())
SOME = TASK.part("train")[:160]
SHORT = Recipe(epochs=2, batch_size=32)


def network(width, classes=10):
    return Network(Chain(conv_bn_act(width, stride=2, name="stem"), classifier(classes)), (1, 8, 8))


def weights(module):
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


# --- the loss ---


def test_the_loss_is_temperature_squared_times_the_divergence_written_out():
    student, teacher, temperature = (
        torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]),
        torch.tensor([[2.0, 0.0, -1.0], [1.0, 1.0, 4.0]]),
        4.0,
    )
    total = 0.0
    for own, other in zip(student.tolist(), teacher.tolist(), strict=True):
        q, p = ([math.exp(x / temperature) for x in row] for row in (own, other))
        q, p = [x / sum(q) for x in q], [x / sum(p) for x in p]
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert float(softened_divergence(student, teacher, temperature)) == pytest.approx(temperature**2 * total / 2, rel=1e-5)


def test_at_high_temperature_the_gradient_is_that_of_matching_centred_logits():
    """Hinton et al., Eq. 4: with logits of mean 0, d/dz = (z - v) / N as T grows, once T^2 makes up for the softening."""
    student = torch.tensor([[1.0, -1.5, 0.5]], requires_grad=True)
    teacher = torch.tensor([[2.0, -1.0, -1.0]])
    softened_divergence(student, teacher, 1000.0).backward()
    assert torch.allclose(student.grad, (student - teacher).detach() / 3, atol=2e-3)


def test_a_training_adds_the_divergence_to_the_loss_of_the_task():
    teacher = teacher_of(build(network(16), seed=3), weight=5e3)
    losses = {}
    for name, whom in (("alone", None), ("taught", teacher)):
        training = start(build(network(4)), TASK, Recipe(epochs=1, batch_size=160), SOME, teacher=whom)
        training.run()
        losses[name] = training.history[0].loss
    (batch,) = epoch_batches(SOME, 160, seed=derive_seed(0, "order", 0))
    generator = torch.Generator().manual_seed(derive_seed(0, "augment", 0, 0))
    inputs, _ = TASK.augmented_batch(batch, torch.device("cpu"), generator)
    expected = 5e3 * softened_divergence(build(network(4)).train()(inputs).detach(), teacher.logits(inputs), 4.0)
    assert losses["taught"] - losses["alone"] == pytest.approx(float(expected), rel=1e-4)


def test_a_teacher_of_no_weight_changes_no_bit_of_the_result():
    teacher = teacher_of(build(network(16), seed=3), weight=0.0)
    alone, taught = (train(build(network(4)), TASK, SHORT, SOME, teacher=whom) for whom in (None, teacher))
    assert weights(alone) == weights(taught)


def test_the_teacher_is_a_copy_in_evaluation_mode_that_the_training_leaves_as_it_is():
    module = build(network(16), seed=3).train()
    before = weights(module)
    teacher = teacher_of(module)
    inputs, _ = TASK.batch(SOME[:8], torch.device("cpu"))
    expected = module.eval()(inputs)
    module.train()
    train(build(network(4)), TASK, SHORT, SOME, teacher=teacher)
    assert module.training
    assert weights(module) == before
    assert torch.equal(teacher.logits(inputs), expected)


def test_a_student_that_hears_only_the_teacher_comes_to_agree_with_it():
    def linear(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    recipe, part = Recipe(epochs=6, batch_size=32, lr=0.01), TASK.part("train")
    taught = train(linear(1), TASK, recipe, part)
    # labels that say nothing, so that what the student learns is the teacher's
    shuffled = ImageClassification(replace(TASK.images, labels=np.random.default_rng(0).permutation(TASK.images.labels)))
    student = train(linear(2), shuffled, recipe, part, teacher=teacher_of(taught, weight=20.0))
    untaught = train(linear(2), shuffled, recipe, part)
    accuracy = [evaluate(one, TASK, TASK.part("validation"))["accuracy"] for one in (taught, student, untaught)]
    assert accuracy[2] < 0.3 < 0.7 < accuracy[0] - 0.05 < accuracy[1], accuracy


def test_a_training_resumes_with_its_own_teacher_to_the_same_bits_and_with_no_other():
    def training(seed):
        return start(build(network(4)), TASK, SHORT, SOME, teacher=teacher_of(build(network(16), seed=seed)))

    whole, half = training(3), training(3)
    while not whole.finished:
        whole.run()
    half.run(3)
    again = training(3)
    again.load(*half.state_dict())
    while not again.finished:
        again.run()
    assert weights(again.evaluation_module()) == weights(whole.evaluation_module())
    with pytest.raises(ValueError, match="another training: it differs in teacher"):
        training(4).load(*half.state_dict())
    with pytest.raises(ValueError, match="it differs in teacher"):
        start(build(network(4)), TASK, SHORT, SOME).load(*half.state_dict())


# --- what cannot be ---


def test_a_teacher_of_other_classes_or_other_images_is_refused_with_both_sizes():
    with pytest.raises(DistillationError, match=r"gives \(7,\) numbers .* 10 are needed"):
        check_teaches(teacher_of(build(network(8, classes=7))), TASK)
    with pytest.raises(DistillationError, match=r"does not take the examples .* 1 x 8 x 8 each"):
        check_teaches(teacher_of(build(Network(network(8).body, (3, 8, 8)))), TASK)


def test_numbers_without_classes_have_no_softened_probabilities():
    rows = torch.randn(40, 3).double().numpy()
    regression = Tabular(table(rows, rows[:, 0] * 1.7, target="y"))
    with pytest.raises(DistillationError, match="at least two"):
        check_teaches(Teacher(lambda x: x[:, :1], "one number"), regression)
    with pytest.raises(DistillationError, match="a temperature is above 0"):
        Teacher(lambda x: x, "cold", temperature=0.0)


# --- teachers from files ---


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """What a run delivers of one network: model.onnx, model.safetensors, architecture.json."""
    folder = tmp_path_factory.mktemp("teacher")
    module = train(build(network(12), seed=5), TASK, SHORT, SOME)
    mean, std = TASK.normalisation
    form = Preprocessing((8, 8), "uint8", (0.0, 16.0), tuple(mean.tolist()), tuple(std.tolist()))
    card = ModelCard(TASK.images.class_names, form, 1, 1, 4, network=to_json(network(12)))
    export_onnx(capture(module, TASK.preprocess(), TASK.images.test_images[:32]), folder / "model.onnx", card)
    write_architecture(card, folder / "architecture.json")
    safetensors.torch.save_file(module.state_dict(), folder / "model.safetensors")
    (folder / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    return folder, module.eval()


def _batch():
    return TASK.batch(TASK.part("test")[:16], torch.device("cpu"))[0]


def test_the_folder_of_a_run_and_its_onnx_file_teach_what_the_run_delivered(run_folder):
    folder, module = run_folder
    for word in (str(folder), str(folder / "model.onnx")):
        assert torch.allclose(load_teacher(word, TASK).logits(_batch()), module(_batch()), atol=1e-4), word


def test_a_run_on_data_of_another_normalisation_is_put_right(run_folder):
    folder, module = run_folder
    other = ImageClassification(replace(TASK.images, images=TASK.images.images // 2))  # its train part has another mean and deviation
    inputs, _ = other.batch(TASK.part("test")[:16], torch.device("cpu"))
    assert not torch.allclose(module(inputs), module(_batch()), atol=1e-2)
    for word in (str(folder), str(folder / "model.onnx")):
        assert torch.allclose(load_teacher(word, other).logits(inputs), module(_batch()), atol=1e-3), word


def test_classes_in_another_order_are_refused(run_folder, tmp_path):
    folder, _ = run_folder
    for name in ("model.safetensors", "architecture.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    card = json.loads((tmp_path / "architecture.json").read_text())
    card["class_names"] = card["class_names"][::-1]
    (tmp_path / "architecture.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="tells apart 9, 8"):
        load_teacher(str(tmp_path), TASK)


def test_a_teacher_of_ones_own_is_code_and_safetensors(run_folder, tmp_path):
    folder, _ = run_folder
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    safetensors.torch.save_file(module.state_dict(), tmp_path / "w.safetensors")
    found = load_teacher(f"{folder / 'mine.py'}:net", TASK, weights=tmp_path / "w.safetensors", temperature=2.0, weight=0.3)
    assert torch.equal(found.logits(_batch()), module(_batch()))
    assert (found.temperature, found.weight) == (2.0, 0.3)
    torch.onnx.export(module.eval(), (torch.randn(2, 1, 8, 8),), tmp_path / "own.onnx", dynamo=True, verbose=False,
                      dynamic_shapes=({0: torch.export.Dim("batch")},))  # fmt: skip
    assert torch.allclose(load_teacher(str(tmp_path / "own.onnx"), TASK).logits(_batch()), module(_batch()), atol=1e-5)


def test_weights_are_never_unpickled_and_must_fit(run_folder, tmp_path):
    folder, _ = run_folder
    word = f"{folder / 'mine.py'}:net"
    (tmp_path / "w.pt").write_bytes(pickle.dumps({"1.weight": torch.zeros(10, 64)}))
    with pytest.raises(ModelError, match="would be unpickled"):
        load_teacher(word, TASK, weights=tmp_path / "w.pt")
    safetensors.torch.save_file({"1.weight": torch.zeros(10, 63)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1.bias is missing; 1.weight is \(10, 63\), not \(10, 64\)"):
        load_teacher(word, TASK, weights=tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"no architecture.json and no model.safetensors"):
        load_teacher(str(tmp_path), TASK)
    with pytest.raises(ModelError, match="one file too many"):
        load_teacher(str(folder), TASK, weights=tmp_path / "w.safetensors")
    (tmp_path / "empty.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be loaded by ONNX Runtime"):
        load_teacher(str(tmp_path / "empty.onnx"), TASK)


# --- in a configuration ---


def test_a_search_trains_what_it_chose_under_the_teacher_of_its_configuration(run_folder):
    folder, module = run_folder
    config = config_of({"train": {"teacher": str(folder), "teacher_weight": 0.7, "epochs": 3}, "search": {"epochs": 2}})
    _, search = search_of(config, TASK)
    assert search.teacher is not None
    assert (search.teacher.temperature, search.teacher.weight) == (4.0, 0.7)
    assert torch.allclose(search.teacher.logits(_batch()), module(_batch()), atol=1e-5)
    assert search_of(config_of({"train": {"epochs": 3}, "search": {"epochs": 2}}), TASK)[1].teacher is None


def test_shrink_learns_from_another_teacher_than_the_owners_network_where_one_is_named(run_folder):
    folder, module = run_folder
    given = {"train.teacher": str(folder), "train.teacher_temperature": 2.0}
    asked = asked_for("mine.py:net", "macs<=50%", method="morphnet", settings=given, own_task=True)
    work = SimpleNamespace(asked=asked, task=TASK, plan=SimpleNamespace(settings=asked.settings))
    found = shrink._teacher(work, nn.Identity())
    assert found.temperature == 2.0
    assert torch.allclose(found.logits(_batch()), module(_batch()), atol=1e-5)
    with pytest.raises(ConfigError, match=r"train.teacher_weight has no effect: the teacher is the owner's network"):
        asked_for("mine.py:net", "macs<=50%", method="morphnet", settings={"train.teacher_weight": 2.0}, own_task=True)
    with pytest.raises(ConfigError, match=r"train.stored has no effect"):
        asked_for("mine.py:net", "macs<=50%", method="morphnet", settings={"train.stored": 0.5}, own_task=True)


def test_settings_of_a_teacher_without_a_teacher_are_named():
    told = without_effect(config_of({"train": {"teacher_temperature": 2.0}}))
    assert told == ["train.teacher_temperature = 2.0 has no effect: it is about a teacher, and train.teacher names none"]
    with pytest.raises(ConfigError, match=r"train.teacher = 'nowhere.onnx': there is no file"):
        search_of(config_of({"train": {"teacher": "nowhere.onnx"}}), TASK)
