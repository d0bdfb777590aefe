"""Reading a user's own PyTorch model: equal outputs, exact costs, and cuts that compute what gates of zero compute."""

import copy
import pickle
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from niwaki.adoption import AdoptionError, Run, gated, read
from niwaki.adoption.capture import arguments_of
from niwaki.adoption.counter import counted_macs
from niwaki.adoption.gates import gates_of


def randomised(model):
    """Statistics and weights of BatchNorm as after training, so that no channel looks like another."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


def assert_close(found, expected):
    for one, other in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.abs().max())))


def some_units(adopted, seed):
    rng = random.Random(seed)
    return {group.name: sorted(rng.sample(range(group.units), rng.randint(1, group.units))) for group in adopted.groups}


@torch.no_grad()
def check(model, example):
    """The contract of an adopted model; gives what was read."""
    randomised(model)
    before = copy.deepcopy(model.state_dict())
    adopted = read(model, example)
    args, _ = arguments_of(example)
    assert_close(adopted.module(*args), model(*args))
    if adopted.symbolic:
        more = pytree.tree_map(lambda x: x.repeat(3, *[1] * (x.dim() - 1)), args)
        assert_close(adopted.module(*more), model(*more))
    after, given = adopted.module.state_dict(), model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) and torch.equal(given[name], before[name]) for name in before)
    assert adopted.cost("macs") == counted_macs(model, *args)
    assert adopted.cost("params") == sum(parameter.numel() for parameter in model.parameters())
    for seed in range(2):
        keep = some_units(adopted, seed)
        alive = {name: len(units) for name, units in keep.items()}
        cut = adopted.cut(keep)
        assert_close(gated(adopted, gates_of(adopted, keep))(*args), cut(*args))
        assert adopted.cost("macs", alive) == counted_macs(cut, *args)
        assert adopted.cost("params", alive) == sum(parameter.numel() for parameter in cut.parameters())
    return adopted


def units(adopted):
    return {group.name: group.units for group in adopted.groups}


class Block(nn.Module):
    """As torchvision writes it."""

    def __init__(self, inplanes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(Block(8, 8, 1), Block(8, 8, 1))
        self.layer2 = nn.Sequential(Block(8, 16, 2), Block(16, 16, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def test_a_residual_network_has_one_group_per_stage_and_one_inside_every_block():
    adopted = check(ResNet(), torch.randn(1, 3, 16, 16))
    stages, inside = (
        {"conv1": 8, "layer2.0.downsample.0": 16},
        {"layer1.0.conv1": 8, "layer1.1.conv1": 8, "layer2.0.conv1": 16, "layer2.1.conv1": 16},
    )
    assert units(adopted) == stages | inside
    assert adopted.opaque == ()
    assert adopted.weights["layer1.0.conv1.weight"][:2] == ((Run("layer1.0.conv1", 8),), (Run("conv1", 8),))


def test_a_cut_module_trains_and_pickles_and_shares_nothing():
    adopted = read(ResNet().requires_grad_(False), torch.randn(1, 3, 16, 16))
    cut = adopted.cut({"conv1": [0, 3]})
    assert not any(parameter.requires_grad for parameter in cut.parameters())
    cut.train()
    cut(torch.randn(4, 3, 16, 16))
    assert int(cut.bn1.num_batches_tracked) == 1
    assert int(adopted.module.bn1.num_batches_tracked) == 0
    x = torch.randn(2, 3, 16, 16)
    assert_close(pickle.loads(pickle.dumps(cut.eval()))(x), cut(x))


def test_a_cut_is_asked_for_by_units_that_exist():
    adopted = read(ResNet(), torch.randn(1, 3, 16, 16))
    with pytest.raises(AdoptionError, match="there is no group 'stem'"):
        adopted.cut({"stem": [0]})
    with pytest.raises(AdoptionError, match="1 to 8 units; given 0"):
        adopted.cut({"conv1": []})
    with pytest.raises(AdoptionError, match="ascending"):
        adopted.cut({"conv1": [3, 1]})
