"""The experiments of policies: perceptrons trained side by side are those trained alone, and every quick plan comes to a section."""

from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from niwaki.recipe import tabnas as recipe
from niwaki.run.experiments import mnasnet, multihardware, tabnas, tunas
from niwaki.run.experiments.perceptrons import Rows, Training, load_rows, train_all
from niwaki.run.reproduce import reproduce
from niwaki.task.task import derive_seed


def blobs(seed=0, count=180):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(count, 5, generator=generator), torch.arange(count) % 3
    x[:, 0] += 2 * y
    return Rows("blobs", tuple(x.split(count // 3)), tuple(y.split(count // 3)), 3)


def test_perceptrons_trained_side_by_side_are_those_trained_alone():
    rows, training = blobs(), Training(epochs=3, batch_size=10, lr=0.01)
    members = [(2, 7), (4, 4), (8, 3)]
    together = train_all(rows, members, training, 1)
    for at, member in enumerate(members):
        alone = train_all(rows, [member], training, 1)
        for name, values in alone.items():
            assert together[name][at] == pytest.approx(values[0], abs=2e-4)


def test_a_perceptron_of_the_table_is_the_plain_network_trained_with_the_same_batches():
    rows, training, member = blobs(), Training(epochs=2, batch_size=20, lr=0.01), (6, 4)
    layers = [nn.Linear(5, 6), nn.Linear(6, 4), nn.Linear(4, 3)]
    for at, layer in enumerate(layers):
        own = torch.Generator().manual_seed(derive_seed(0, "member", str(member), str(at)))
        nn.init.zeros_(layer.bias)
        layer.weight.data = (
            torch.randn(layer.in_features, layer.out_features, generator=own) * (2 / layer.in_features) ** 0.5
        ).T.contiguous()
    model = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
    order = torch.Generator().manual_seed(derive_seed(0, "batches"))
    for _ in range(2):
        for picked in torch.randperm(60, generator=order).split(20):
            optimizer.zero_grad()
            F.cross_entropy(model(rows.inputs[0][picked]), rows.targets[0][picked]).backward()
            optimizer.step()
            schedule.step()
    found = train_all(rows, [member, (3, 9)], training, 0)
    assert found["test_loss"][0] == pytest.approx(F.cross_entropy(model(rows.inputs[2]), rows.targets[2]).item(), abs=1e-4)


def test_the_digits_come_in_three_parts_without_overlap_and_standardised():
    rows = load_rows("digits")
    assert [len(part) for part in rows.inputs] == [1079, 359, 359]
    assert rows.inputs[0].mean(dim=0).abs().max() < 1e-5
    assert (rows.features, rows.classes) == (64, 10)


def test_what_random_search_picks_is_what_simulated_draws_pick():
    results = {"members": list(product((4, 8, 16), repeat=3)), "tables": {"t": [{"features": 5, "classes": 3}]}}
    generator = np.random.default_rng(0)
    for name in ("validation_accuracy", "test_accuracy"):
        results["tables"]["t"][0][name] = generator.random(27).tolist()
    known = tabnas.Known(results, "t")
    assert known.budget == recipe.parameters_of(5, (16, 16, 16), 3)
    top, regret = known.random(6)
    picked = [max(generator.choice(known.inside, 6), key=lambda member: known.quality[member]) for _ in range(8_000)]
    assert top == pytest.approx(np.mean([known.in_top(member) for member in picked]), abs=0.015)
    losses = np.array([known.best - known.quality[member] for member in picked])
    assert abs(losses.mean() - regret) < 4 * losses.std() / np.sqrt(len(losses))


@pytest.mark.parametrize("experiment", [mnasnet, tunas, multihardware], ids=lambda module: module.EXPERIMENT.method)
def test_a_quick_plan_writes_a_section_that_decides_nothing(experiment, tmp_path, shared_data, monkeypatch):
    monkeypatch.setenv("NIWAKI_SHARED", str(shared_data.parent))
    claims = tmp_path / "claims.md"
    found = reproduce(experiment.EXPERIMENT.method, out=tmp_path / "run", claims=claims, quick=True, workers=1)
    assert {claim["verdict"] for claim in found["claims"]} == {"not decided (quick)", "not testable here"}
    assert f"<!-- end of {experiment.EXPERIMENT.method} -->" in claims.read_text()
    again = reproduce(experiment.EXPERIMENT.method, out=tmp_path / "run", claims=claims, quick=True, workers=1)
    assert again == found
