"""Recipes, the training loop and its resumption, averages of weights, recalibrated batch norm, evaluation."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from niwaki.evaluate.shared import SharedWeights
from niwaki.net.block import conv_bn_act
from niwaki.net.control import Chain, Network
from niwaki.net.layer import Flatten, GlobalPool, Linear
from niwaki.nn.supernet import supernet
from niwaki.space.choice import Choice
from niwaki.task.augment import Augment
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.task.images import arrays
from niwaki.train.batch_norm import recalibrate_batch_norm_
from niwaki.train.ema import Ema
from niwaki.train.loop import TrainingDiverged, epoch_batches, evaluate, predict, start, train
from niwaki.train.recipe import Recipe, RecipeError, lr_at, optimizer_for, param_groups

TASK = ImageClassification(digits(), augment=Augment(shift=0.1, rotate=10, erase=0.2))
SOME = TASK.part("train")[:150]


def small_network(seed=0, dropout=0.3):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(36, 10)
    )  # fmt: skip


def trained_bits(training):
    tensors, state = training.state_dict()
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, [(r["epoch"], r["loss"]) for r in state["history"]]


# --- recipe ---


def test_the_rate_rises_linearly_and_falls_along_half_a_cosine():
    recipe = Recipe(epochs=10, lr=0.4, warmup=0.1, last_lr=0.25)
    rates = [lr_at(step, 20, recipe) for step in range(200)]
    assert rates[:20] == pytest.approx([0.4 * (i + 1) / 21 for i in range(20)])
    assert rates[20] == 0.4
    assert rates[110] == pytest.approx(0.4 * (0.25 + 0.75 * 0.5))
    assert rates[20:] == pytest.approx([0.1 + 0.15 * (1 + math.cos(math.pi * i / 180)) for i in range(180)])
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert lr_at(0, 1, Recipe(epochs=1, lr=0.3, warmup=0.0)) == 0.3


def test_weight_decay_spares_biases_and_normalisation():
    module = small_network()
    decayed, spared = param_groups(module, Recipe(weight_decay=0.01))
    assert {id(p) for p in decayed["params"]} == {id(module[0].weight), id(module[5].weight)}
    assert {id(p) for p in spared["params"]} == {id(p) for p in (module[0].bias, module[1].weight, module[1].bias, module[5].bias)}
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.01, 0.0)
    module[5].weight.requires_grad_(False)
    assert len(param_groups(module, Recipe())[0]["params"]) == 1
    with pytest.raises(RecipeError, match="no parameter that learns"):
        optimizer_for(nn.ReLU(), Recipe())


def test_every_wrong_field_of_a_recipe_is_named_at_once():
    with pytest.raises(RecipeError) as error:
        Recipe(epochs=0, batch_size=2.5, optimizer="adam", lr=-1, momentum=1.0, weight_decay=math.nan, warmup=1.0, ema=1.5)
    for field in ("epochs=0", "batch_size=2.5", "'adam'", "lr=-1", "momentum=1.0", "weight_decay=nan", "warmup=1.0", "ema=1.5"):
        assert field in str(error.value)
    with pytest.raises(RecipeError, match="nesterov"):
        Recipe(momentum=0.0)
    Recipe(momentum=0.0, nesterov=False)


# --- loop ---


def test_batches_hold_every_example_once_and_differ_in_size_by_one_at_most():
    batches = epoch_batches(torch.arange(1000, 1130), 64, seed=3)
    assert sorted(torch.cat(batches).tolist()) == list(range(1000, 1130))
    assert [len(batch) for batch in batches] == [44, 43, 43]
    assert torch.equal(batches[0], epoch_batches(torch.arange(1000, 1130), 64, seed=3)[0])
    assert not torch.equal(batches[0], epoch_batches(torch.arange(1000, 1130), 64, seed=4)[0])


def test_no_batch_has_a_single_example():
    for count in range(2, 40):
        for batch_size in range(2, 45):
            batches = epoch_batches(torch.arange(count), batch_size, seed=count)
            sizes = [len(batch) for batch in batches]
            assert sorted(torch.cat(batches).tolist()) == list(range(count))
            assert min(sizes) >= 2
            assert max(sizes) <= max(batch_size, 3)  # of an odd number, not all can go in pairs
            assert max(sizes) - min(sizes) <= 1


def test_an_odd_number_of_examples_trains_in_pairs():
    norm_of_one_number = nn.Sequential(nn.Conv2d(1, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 10))
    training = start(norm_of_one_number, TASK, Recipe(epochs=2, batch_size=2), SOME[:25])
    while not training.finished:
        training.run(5)
    assert (training.steps_per_epoch, training.step) == (12, 24)
    with pytest.raises(RecipeError, match=r"batch_size=1 .*at least 2: BatchNorm cannot train on one example"):
        Recipe(batch_size=1)


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(epochs=3, batch_size=32, ema=0.9, clip_norm=1.0),
        Recipe(epochs=3, batch_size=32, optimizer="adamw", lr=0.01),
        Recipe(epochs=3, batch_size=32, momentum=0.0, nesterov=False),
    ],
    ids=["sgd, average, clipping", "adamw", "sgd without momentum"],
)
def test_a_training_resumed_at_any_step_ends_with_the_same_bits(recipe):
    whole = start(small_network(), TASK, recipe, SOME, seed=5)
    while not whole.finished:
        whole.run()
    for stop in range(1, 3 * 5, 3 if recipe.ema is None else 1):  # 5 steps an epoch
        first = start(small_network(), TASK, recipe, SOME, seed=5)
        while first.step < stop:
            first.run(stop - first.step)
        tensors, state = first.state_dict()
        first.run()  # what was saved is a copy: going on does not change it
        resumed = start(small_network(seed=99), TASK, recipe, SOME, seed=5)
        torch.rand(stop)  # the state of the global generator does not matter
        resumed.load(tensors, json.loads(json.dumps(state)))
        assert resumed.step == stop
        while not resumed.finished:
            resumed.run(2)
        assert trained_bits(resumed) == trained_bits(whole)


def test_the_same_seed_gives_the_same_network_and_another_seed_another():
    recipe = Recipe(epochs=1, batch_size=32)
    bits = []
    for seed in (0, 0, 1):
        training = start(small_network(), TASK, recipe, SOME, seed=seed)
        training.run()
        bits.append(trained_bits(training))
    assert bits[0] == bits[1] != bits[2]


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    training = start(small_network(), TASK, Recipe(epochs=1), SOME)
    torch.manual_seed(7)
    training.run()
    assert torch.equal(torch.rand(3), expected)


def test_a_state_of_another_training_is_refused_and_the_difference_named():
    tensors, state = start(small_network(), TASK, Recipe(epochs=3), SOME).state_dict()
    with pytest.raises(ValueError, match=r"differs in seed \(0 saved, 1 here\)"):
        start(small_network(), TASK, Recipe(epochs=3), SOME, seed=1).load(tensors, state)
    with pytest.raises(ValueError, match="differs in recipe"):
        start(small_network(), TASK, Recipe(epochs=4), SOME).load(tensors, state)
    with pytest.raises(ValueError, match="differs in examples_seed"):
        start(small_network(), TASK, Recipe(epochs=3), SOME + 1).load(tensors, state)


def test_a_loss_that_is_no_longer_finite_stops_the_training_and_names_the_step():
    training = start(small_network(), TASK, Recipe(epochs=2, batch_size=32), SOME)
    training.run()
    training.run(2)
    with torch.no_grad():
        training.module[5].weight[0, 0] = math.nan
    with pytest.raises(TrainingDiverged, match="the loss became nan in epoch 2, step 3;") as error:
        training.run()
    assert (error.value.epoch, error.value.step) == (2, 3)
    with pytest.raises(TrainingDiverged):
        train(small_network(), TASK, Recipe(epochs=30, lr=1e30, batch_size=32, label_smoothing=0.0), SOME)


def test_the_history_has_one_record_per_epoch_and_training_learns():
    seen = []
    module = train(small_network(dropout=0.0), TASK, Recipe(epochs=12, batch_size=16), SOME, after_epoch=lambda t: seen.append(t.epoch))
    assert seen == list(range(1, 13))
    assert not module.training
    assert evaluate(module, TASK, SOME)["accuracy"] > 0.8
    training = start(small_network(), TASK, Recipe(epochs=2, batch_size=16), SOME)
    training.run()
    training.run()
    training.run()  # finished: nothing more to do
    assert [record.epoch for record in training.history] == [1, 2]
    assert training.history[1].loss < training.history[0].loss


def test_one_step_of_sgd_is_the_formula():
    """With Nesterov's momentum from rest: v = g + decay w; w <- w - lr (v + 0.9 v)."""
    task = ImageClassification(digits(), augment=Augment())
    module = small_network(dropout=0.0)
    recipe = Recipe(epochs=1, batch_size=150, lr=0.1, warmup=0.0, weight_decay=0.01, label_smoothing=0.1)
    reference = copy.deepcopy(module).train()
    inputs, targets = task.batch(SOME, torch.device("cpu"))
    log_p = reference(inputs).log_softmax(1)
    loss = -(0.9 * log_p[torch.arange(150), targets] + 0.1 * log_p.mean(1)).mean()
    loss.backward()
    training = start(module, task, recipe, SOME)
    training.run()
    assert training.history[0].loss == pytest.approx(loss.item(), rel=1e-5)
    for decay, old, new in ((0.01, reference[5].weight, module[5].weight), (0.0, reference[5].bias, module[5].bias)):
        v = old.grad + decay * old
        assert torch.allclose(new, old - 0.1 * (v + 0.9 * v), atol=1e-6)


def test_fewer_than_two_examples_are_refused():
    with pytest.raises(ValueError, match="1 training examples"):
        start(small_network(), TASK, Recipe(epochs=1), SOME[:1])


# --- averages of weights ---


def test_the_average_has_its_closed_form():
    layer = nn.BatchNorm1d(1)
    ema = Ema(layer, decay=0.3)
    expected = 1.0  # the weight a batch norm starts with
    for t, value in enumerate((2.0, -1.0, 5.0, 3.0, 8.0)):
        with torch.no_grad():
            layer.weight.fill_(value)
            layer.num_batches_tracked += 1
        ema.update(layer)
        decay = min(0.3, (1 + t) / (10 + t))
        expected = decay * expected + (1 - decay) * value
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert ema.average["num_batches_tracked"] == 5
    assert layer.weight.item() == 8.0


def test_evaluation_uses_the_average_where_the_recipe_has_one():
    training = start(small_network(), TASK, Recipe(epochs=1, batch_size=32, ema=0.9), SOME)
    training.run()
    averaged = training.evaluation_module()
    assert torch.equal(averaged[5].weight, training.ema.average["5.weight"])
    assert not torch.equal(averaged[5].weight, training.module[5].weight)


# --- batch norm ---


def test_recalibrated_statistics_are_those_of_all_the_data():
    head = nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2, momentum=0.01)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.5), *head)
    module[3].eval()  # an unusual mode, to be left as it is
    weights = copy.deepcopy(dict(module.named_parameters()))
    batches = torch.randn(8, 16, 1, 8, 8)
    recalibrate_batch_norm_(module, iter(batches))
    first = module[0](batches.flatten(0, 1))
    assert torch.allclose(module[1].running_mean, first.mean((0, 2, 3)), atol=1e-5)
    within = torch.stack([module[0](batch).var((0, 2, 3)) for batch in batches]).mean(0)
    assert torch.allclose(module[1].running_var, within, atol=1e-5)
    # the second norm sees the first normalising by each batch's own statistics
    normalised = [nn.functional.batch_norm(module[0](batch), None, None, training=True).relu() for batch in batches]
    second = torch.stack([module[4](batch).mean((0, 2, 3)) for batch in normalised]).mean(0)
    assert torch.allclose(module[5].running_mean, second, atol=1e-5)
    assert all(torch.equal(weights[name], parameter) for name, parameter in module.named_parameters())
    assert (module.training, module[3].training, module[1].momentum, module[5].momentum) == (True, False, 0.1, 0.01)
    with pytest.raises(ValueError, match="at least one batch"):
        recalibrate_batch_norm_(module, [])


# --- evaluation ---


def test_predictions_do_not_depend_on_batches_and_leave_the_mode_alone():
    module = small_network()
    test = TASK.part("test")
    outputs = predict(module, TASK, test, batch_size=100)
    assert module.training
    assert outputs.shape == (360, 10)
    assert torch.allclose(outputs, predict(module, TASK, test, batch_size=7), atol=1e-5)
    figures = evaluate(module, TASK, test)
    assert figures["accuracy"] == pytest.approx(np.mean(outputs.argmax(1).numpy() == TASK.images.test_labels))
    assert set(figures) == {"loss", "accuracy", "balanced_accuracy", "macro_f1"}


def test_evaluation_makes_the_inputs_of_every_example_once(monkeypatch):
    made, batch = [], ImageClassification.batch

    def counted(task, indices, device):
        made.extend(indices.tolist())
        return batch(task, indices, device)

    monkeypatch.setattr(ImageClassification, "batch", counted)
    evaluate(small_network(), TASK, TASK.part("test"), batch_size=100)
    assert made == TASK.part("test").tolist()


def test_a_judge_of_shared_weights_gives_the_same_answer_again_and_keeps_no_images():
    network = Network(
        Chain(conv_bn_act(Choice((4, 8), "/width"), name="stem"), GlobalPool(name="pool"), Flatten(name="flat"), Linear(10, name="head")),
        (1, 8, 8),
    )
    judge = SharedWeights(supernet(network, seed=0), TASK, calibration_batches=2, batch_size=100)
    assert judge({"width": 4}) == judge({"width": 4}) != judge({"width": 8})
    assert [batch.dtype for batch in judge.batches] == [torch.int64] * 2
    module = judge.module({"width": 4})
    means = [module.stem_conv(TASK.batch(indices, torch.device("cpu"))[0]).mean((0, 2, 3)) for indices in judge.batches]
    assert torch.allclose(module.stem_bn.running_mean, torch.stack(means).mean(0), atol=1e-5)


def test_the_exported_form_predicts_the_same_from_stored_images():
    module = small_network().eval()
    whole = nn.Sequential(TASK.preprocess(), module)
    outputs = whole(torch.tensor(TASK.images.test_images))
    assert torch.allclose(outputs, predict(module, TASK, TASK.part("test"), batch_size=360), atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_trains_resumes_and_agrees_with_the_cpu():
    recipe, module = Recipe(epochs=2, batch_size=32, ema=0.9, precision="float32"), small_network(dropout=0.0)
    states = []
    for stop in (None, 3):
        training = start(copy.deepcopy(module), TASK, recipe, SOME, device="cuda")
        training.run(stop)
        saved = training.state_dict()
        training = start(small_network(seed=9), TASK, recipe, SOME, device="cuda")
        training.load(*saved)
        while not training.finished:
            training.run()
        states.append(training)
    assert trained_bits(states[0]) == trained_bits(states[1])
    on_cpu = train(copy.deepcopy(module), TASK, recipe, SOME)
    for name, tensor in states[0].evaluation_module().state_dict().items():
        assert torch.allclose(tensor.cpu().float(), on_cpu.state_dict()[name].float(), atol=1e-2), name
    mixed = train(small_network(dropout=0.0), TASK, Recipe(epochs=12, batch_size=16), SOME, device="cuda")
    assert evaluate(mixed, TASK, SOME, device="cuda")["accuracy"] > 0.8


def test_colour_images_train_too():
    images = np.random.default_rng(0).integers(0, 100, (40, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(40) % 2
    images[labels == 1, :, :, 2] += 100
    task = ImageClassification(arrays(images, labels), metric="macro_f1")
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    module = train(module, task, Recipe(epochs=20, batch_size=8), task.part("train+validation"))
    assert evaluate(module, task, task.part("test"))["macro_f1"] == 1.0
