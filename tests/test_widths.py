"""DMaskingNAS on a model that somebody has already: within the budget, from the owner's weights, repeatable."""

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import nn

from niwaki.adoption import adopt
from niwaki.adoption.counter import counted_macs
from niwaki.factor.within import within
from niwaki.net.place import space_of
from niwaki.nn.supernet import member
from niwaki.run.config import config_of
from niwaki.run.plan import search_of
from niwaki.run.widths import TRAINED, budget_of, drawn_within, lasting, owners, search_widths
from niwaki.space.choice import BudgetError
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits

TASK = ImageClassification(digits())
SHORT = replace(lasting(2), warmup_epochs=0, batch_size=256)


class Inverted(nn.Module):
    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        wide = 3 * channels
        self.expand = nn.Sequential(nn.Conv2d(channels, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(inplace=True))
        self.depthwise = nn.Sequential(nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        self.project = nn.Sequential(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        return x + self.project(self.depthwise(self.expand(x)))


def owned() -> nn.Module:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    return nn.Sequential(stem, Inverted(8), Inverted(8), *head).eval()


@pytest.fixture(scope="module")
def adopted():
    return adopt(owned(), torch.zeros(1, 1, 8, 8))


def test_the_network_that_is_found_keeps_its_budget_and_is_a_member_with_the_owners_names(adopted):
    network, weights = adopted
    found = search_widths(network, weights, TASK, "macs<=50% and params<=70%", method=SHORT, candidates=4, seed=1)
    assert found.costs["macs"] <= found.whole["macs"] // 2
    assert found.costs["params"] <= found.whole["params"] * 0.7
    assert counted_macs(found.module, torch.zeros(1, 1, 8, 8)) == found.costs["macs"]
    assert counted_macs(owned(), torch.zeros(1, 1, 8, 8)) == found.whole["macs"]
    assert found.module.state_dict().keys() == owned().state_dict().keys()
    assert len(found.history) == 2
    assert not found.module.training
    again = search_widths(network, weights, TASK, "macs<=50% and params<=70%", method=SHORT, candidates=4, seed=1)
    assert again.architecture == found.architecture
    assert all(torch.equal(a, b) for a, b in zip(found.module.state_dict().values(), again.module.state_dict().values(), strict=True))


def test_candidates_are_different_members_within_the_budget_and_use_it(adopted):
    network, _ = adopted
    space = budget_of(network, "macs<=40%")
    even = {
        decision.name: torch.full((len(decision.options),), 1 / len(decision.options)).double().numpy() for decision in space_of(network)
    }
    found = drawn_within(space, even, 12, seed=0)
    assert len(set(found)) == 12
    assert all(space.keeps(found))
    (limit,) = space.limits
    assert sum(limit.cost(arch) >= 0.95 * limit.upper for arch in found[1:]) == 11


def test_the_owners_architecture_is_the_largest_and_budgets_that_cannot_be_kept_say_the_least(adopted):
    network, _ = adopted
    space = space_of(network)
    assert dict(owners(network)) == {decision.name: max(decision.options) for decision in space}
    with pytest.raises(BudgetError, match="the least is 1,210"):
        budget_of(network, "macs<=1")


def test_a_preset_of_another_length_ends_at_the_same_temperature():
    for epochs in (1, 5, 12):
        method = lasting(epochs)
        assert method.epochs == epochs
        assert method.temperature_decay**epochs == pytest.approx(TRAINED.temperature_decay**TRAINED.epochs)


def test_a_search_takes_a_torch_module_for_its_network_and_begins_with_its_weights(tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    config, search = search_of(config_of({"network": f"{tmp_path}/own.py:net", "budget": ["macs<=50%"]}, "here"))
    assert {decision.name for decision in space_of(search.network)} == {"0", "3"}
    arch = within(space_of(search.network), search.budgets[0].limits).sample(Random(0))
    module = member(search.network, arch, search.weights)
    owner = dict(search.weights)
    for name, tensor in module.state_dict().items():
        kept = owner[name][tuple(slice(0, size) for size in tensor.shape)] if tensor.dim() else owner[name]
        assert torch.equal(tensor, kept), name
    again = search_of(config)[1]
    assert again.network == search.network
    assert all(torch.equal(again.weights[name], owner[name]) for name in owner)


OWN = """
from torch import nn
net = lambda: nn.Sequential(
    nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
)
"""
