"""Reading a user's own PyTorch model: equal outputs, exact costs, and cuts that compute what gates of zero compute."""

import copy
import pickle
import random
import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from niwaki.adoption import AdoptionError, Run, gated, read
from niwaki.adoption import adopted as adopted_module
from niwaki.adoption.axes import positions
from niwaki.adoption.capture import arguments_of
from niwaki.adoption.counter import counted_macs
from niwaki.adoption.cut import plain_module
from niwaki.adoption.describe import adopt, describe
from niwaki.adoption.gates import gates_of
from niwaki.deploy.card import ExportError
from niwaki.deploy.plain import onnx_of
from niwaki.gradient.adopted import resource_of
from niwaki.gradient.expand import Bound, LandingError
from niwaki.gradient.landing import uniform
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.nn.supernet import Supernet, load_owned_
from niwaki.testing import check_adoption
from niwaki.testing.adoption import examine


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
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(1.0, float(other.detach().abs().max())))


def some_units(adopted, seed):
    rng = random.Random(seed)
    return {group.name: sorted(rng.sample(range(group.units), rng.randint(group.least, group.units))) for group in adopted.groups}


def reordered(adopted, seed):
    """The same network with the units of every group in another order, done on the weights alone."""
    rng = random.Random(seed)
    order = {group.name: rng.sample(range(group.units), group.units) for group in adopted.groups}
    module = copy.deepcopy(adopted.module)
    for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
        for dim, axis in enumerate(adopted.weights.get(name, ())):
            tensor.data = tensor.data.index_select(dim, torch.tensor(positions(axis, order)))
    return module


def rows(args, times, axis=0):
    return pytree.tree_map(lambda x: torch.cat([x] * times, axis), args)


@torch.no_grad()
def check(model, example):
    """The contract of an adopted model; gives what was read.

    Two oracles that know nothing of the rules: units that were coupled rightly can be put in any order, and gates of zero on the whole
    network must compute what the network without those units computes. PyTorch's own counter is the third.
    """
    randomised(model)
    before = copy.deepcopy(model.state_dict())
    adopted = read(model, example)
    args, _ = arguments_of(example)
    assert_close(adopted.module(*args), model(*args))
    if adopted.symbolic:
        assert_close(adopted.module(*rows(args, 3, adopted.batch)), model(*rows(args, 3, adopted.batch)))
    after, given = adopted.module.state_dict(), model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) and torch.equal(given[name], before[name]) for name in before)
    assert_close(reordered(adopted, 1)(*args), model(*args))
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


class Dense(nn.Module):
    """Every layer reads all that came before it (DenseNet)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(inplace=True), nn.Conv2d(8 + 4 * i, 4, 3, padding=1)) for i in range(2)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 10, 1), nn.AvgPool2d(2))
        self.fc = nn.Linear(10 * 4 * 4, 5)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.fc(self.transition(torch.cat(features, 1)).view(x.size(0), -1))


def test_concatenated_channels_are_runs_of_their_producers_and_a_flattened_map_lies_inside_them():
    adopted = check(Dense(), torch.randn(1, 3, 8, 8))
    assert units(adopted) == {"stem": 8, "layers.0.2": 4, "layers.1.2": 4, "transition.2": 10}
    assert adopted.weights["transition.2.weight"][1] == (Run("stem", 8), Run("layers.0.2", 4), Run("layers.1.2", 4))
    assert adopted.weights["fc.weight"][1] == (Run("transition.2", 10, inner=16),)


class InvertedResidual(nn.Module):
    """MobileNetV3's block with squeeze-excite through linear layers and a view."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(channels, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden), nn.BatchNorm2d(hidden), nn.ReLU6(inplace=True))
        self.squeeze = nn.Sequential(nn.Linear(hidden, 4), nn.ReLU(True), nn.Linear(4, hidden), nn.Sigmoid())
        self.project = nn.Sequential(nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x):
        y = self.depthwise(self.expand(x))
        b, c, _, _ = y.size()
        scale = self.squeeze(F.adaptive_avg_pool2d(y, 1).view(b, c)).view(b, c, 1, 1)
        return x + self.project(y * scale.expand_as(y))


def test_squeeze_excite_and_a_depthwise_convolution_follow_the_channels_they_work_on():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), InvertedResidual(8, 24), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    adopted = check(model, torch.randn(1, 3, 8, 8))
    assert units(adopted) == {"0": 8, "1.expand.0": 24, "1.squeeze.0": 4}
    assert adopted.cut({"1.expand.0": range(5)}).get_submodule("1.depthwise.0").groups == 5


def shuffled(x, groups):
    b, c, h, w = x.size()
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


class ShuffleUnit(nn.Module):
    """ShuffleNetV2's unit: half of the channels pass, and both halves are interleaved."""

    def __init__(self, channels, hidden):
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden), nn.Conv2d(hidden, half, 1)
        )

    def forward(self, x):
        one, other = x.chunk(2, dim=1)
        return shuffled(torch.cat((one, self.branch(other)), dim=1), 2)


def test_a_shuffled_half_is_tied_to_the_half_it_is_interleaved_with():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), ShuffleUnit(8, 6), ShuffleUnit(8, 6), nn.Conv2d(8, 5, 1), nn.Conv2d(5, 2, 1))
    adopted = check(model, torch.randn(1, 3, 6, 6))
    assert {"1.branch.0": 6, "2.branch.0": 6, "3": 5}.items() <= units(adopted).items()
    # Of channels 0-7, 4-7 only feed the first branch. 0-3 pass and are tied to the branch's outputs one by one, so that the shuffle gives
    # 0 0 1 1 2 2 3 3. Of these, 2 2 3 3 only feed the second branch; 0 0 1 1 pass and are tied to its outputs: 0 0 0 0 1 1 1 1.
    assert adopted.weights["0.weight"][0] == (Run("0", 2), Run("0#2", 2), Run("0#3", 4))
    assert adopted.weights["2.branch.0.weight"][1] == (Run("0#2", 2, inner=2),)
    assert adopted.weights["3.weight"][1] == (Run("0", 2, inner=4),)


@pytest.mark.parametrize(("groups", "expected"), [(4, {"0": 4, "2": 6}), (2, {"0": 4, "1": 3, "2": 6})])
def test_a_grouped_convolution_loses_whole_groups_or_the_same_positions_of_every_group(groups, expected):
    """Four groups of two channels: whole ones, which ties output to input. Two groups of four: positions, the same in both."""
    width = 8 if groups == 4 else 6
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, width, 3, groups=groups), nn.Conv2d(width, 6, 1), nn.Conv2d(6, 2, 1))
    assert units(check(model, torch.randn(1, 3, 6, 6))) == expected


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.middle = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.up2, self.merge2 = nn.ConvTranspose2d(8, 6, 2, 2), nn.Conv2d(12, 6, 3, padding=1)
        self.merge1, self.out = nn.Conv2d(10, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        one = F.relu(self.down1(x))
        two = F.relu(self.down2(F.max_pool2d(one, 2)))
        y = self.up2(F.relu(self.middle(F.max_pool2d(two, 2))))
        y = F.pad(y, [0, two.size(3) - y.size(3), 0, two.size(2) - y.size(2)])
        y = F.interpolate(F.relu(self.merge2(torch.cat([two, y], 1))), scale_factor=2, mode="bilinear", align_corners=False)
        return self.out(F.relu(self.merge1(torch.cat([one, y], 1))))


def test_skip_connections_of_a_u_net_carry_their_own_groups():
    adopted = check(UNet(), torch.randn(1, 3, 12, 12))
    assert units(adopted) == {"down1": 4, "down2": 6, "middle": 8, "up2": 6, "merge2": 6, "merge1": 4}


class Attention(nn.Module):
    """As timm writes it: one weight for queries, keys and values."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.randn(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12))
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(12), Attention(12, 3), nn.LayerNorm(12)
        self.mlp = nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Dropout(0.1), nn.Linear(20, 12))
        self.scale = nn.Parameter(torch.randn(12))
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        x = x + self.attention(self.norm1(x))
        return self.head((x + self.scale * self.mlp(self.norm2(x)))[:, 0])


def test_attention_loses_whole_heads_of_queries_keys_and_values_together():
    adopted = check(ViT(), torch.randn(1, 3, 8, 8))
    assert units(adopted) == {"patch": 12, "attention.qkv": 3, "mlp.0": 20}
    assert adopted.weights["attention.qkv.weight"][0] == (Run("attention.qkv", 3, inner=4, outer=3),)
    assert adopted.weights["attention.proj.weight"][1] == (Run("attention.qkv", 3, inner=4),)
    assert adopted.weights["pos_embed"][1:] == ((Run(None, 5),), (Run("patch", 12),))


def test_torch_s_own_multi_head_attention_is_read_with_time_first_or_batch_first():
    """Its heads share an axis with the batch."""
    for batch_first, shape in ((True, (1, 5, 8)), (False, (5, 1, 8))):
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=batch_first)
        adopted = check(nn.Sequential(nn.Linear(8, 8), layer, nn.Linear(8, 3)), torch.randn(*shape))
        assert units(adopted) == {"0": 8, "1.self_attn": 2, "1.linear1": 12}
        assert adopted.batch == (0 if batch_first else 1)


class GroupedQueries(nn.Module):
    """Llama's attention: four heads of queries read two of keys and values, which are turned by their positions."""

    def __init__(self):
        super().__init__()
        self.embed, self.q, self.k, self.v = nn.Linear(3, 16), nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.o, self.out = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x):
        x = self.embed(x)
        b, t, _ = x.shape
        q, k, v = (layer(x).view(b, t, -1, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        angles = torch.arange(t, device=x.device)[:, None] * torch.tensor([1.0, 0.5]).repeat(2)
        q, k = (y * angles.cos() + torch.cat((-y[..., 2:], y[..., :2]), -1) * angles.sin() for y in (q, k))
        k = k[:, :, None].expand(b, 2, 2, t, 4).reshape(b, 4, t, 4)
        y = (q @ k.transpose(2, 3) / 2).softmax(-1) @ v.repeat_interleave(2, dim=1)
        return self.out(x + self.o(y.transpose(1, 2).reshape(b, t, 16)))


def test_heads_of_queries_go_with_the_head_of_keys_they_read():
    adopted = check(GroupedQueries(), torch.randn(1, 5, 3))
    assert units(adopted) == {"embed": 16, "q": 2}
    assert adopted.weights["q.weight"][0] == (Run("q", 2, inner=8),)
    assert adopted.weights["k.weight"][0] == (Run("q", 2, inner=4),)


class GPT(nn.Module):
    """nanoGPT's, with its embedding tied to its head."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(20, 8), nn.Embedding(6, 8)
        self.ln_1, self.c_attn, self.c_proj = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.ln_f, self.lm_head = nn.LayerNorm(8), nn.Linear(8, 20, bias=False)
        self.wte.weight = self.lm_head.weight

    def forward(self, idx):
        b, t = idx.size()
        x = self.wte(idx) + self.wpe(torch.arange(0, t, dtype=torch.long, device=idx.device))
        q, k, v = (part.view(b, t, 2, 4).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(8, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(y.transpose(1, 2).contiguous().view(b, t, 8))
        return self.lm_head(self.ln_f(x))


def test_a_tied_embedding_is_one_weight_with_two_names():
    adopted = check(GPT(), torch.randint(0, 20, (1, 6)))
    assert units(adopted) == {"wte": 8, "c_attn": 2}
    cut = adopted.cut({"wte": range(5)})
    assert cut.get_parameter("wte.weight") is cut.get_parameter("lm_head.weight")
    assert cut.get_parameter("wte.weight").shape == (20, 5)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Embedding(10, 6), nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True, dropout=0.5)
        self.hidden, self.out = nn.Linear(10, 7), nn.Linear(7, 3)

    def forward(self, words):
        return self.out(F.relu(self.hidden(self.lstm(self.embed(words))[0])))


def test_a_recurrent_layer_stays_as_it_is_and_is_said_to():
    adopted = check(Tagger(), torch.randint(0, 10, (1, 4)))
    assert units(adopted) == {"hidden": 7}
    assert adopted.opaque == ("lstm",)
    assert any("lstm" in note and "test_adoption.py:" in note for note in adopted.notes)
    words = torch.randint(0, 10, (2, 4))
    trained = adopted.module.train()
    assert not torch.equal(trained(words), trained(words)), "its dropout follows the mode"


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.table = nn.Conv2d(3, 6, 3), nn.Linear(4, 5)
        self.shared = nn.Linear(8, 8)
        self.join, self.label, self.value = nn.Linear(11, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, image, record):
        x = torch.cat([self.image(image).mean((2, 3)), F.relu(self.table(record["columns"][0]))], dim=1)
        x = self.shared(F.relu(self.shared(F.relu(self.join(x)))))
        return {"label": self.label(x), "more": (self.value(x), x.sum(1))}


def test_several_inputs_and_outputs_keep_their_structure_and_a_layer_used_twice_is_one_layer():
    adopted = check(TwoInputs(), (torch.randn(1, 3, 6, 6), {"columns": [torch.randn(1, 4)]}))
    assert units(adopted) == {"image": 6, "table": 5, "join": 8}
    assert adopted.weights["shared.weight"] == ((Run("join", 8),), (Run("join", 8),))
    by_name, model = {"record": {"columns": [torch.randn(2, 4)]}, "image": torch.randn(2, 3, 6, 6)}, TwoInputs().eval()
    assert_close(read(model, by_name).module(**by_name), model(**by_name))


class Around(nn.Module):
    """Something between two convolutions."""

    def __init__(self, between, channels=12, after=None):
        super().__init__()
        self.before, self.after, self.head = nn.Conv2d(3, channels, 1), nn.Conv2d(after or channels, 6, 1), nn.Conv2d(6, 2, 1)
        self.between = between

    def forward(self, x):
        return self.head(self.after(self.between(self.before(x))))


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def assigned(x):
    """As temporal shift modules do: parts of a fresh tensor are assigned, and one is changed in place."""
    out = torch.zeros_like(x)
    out[:, :5] = x[:, :5]
    out[:, 5:, 1:] = x[:, 5:, :-1]
    out[:, :5] *= 2
    out[:, :, 0, 0] = 1.0
    return out


OPERATORS = {  # what stands between, channels after it, and the units of the channels before it (none: they are frozen)
    "slice inside a run": (Call(lambda x: torch.cat([x[:, 5:], x[:, :5]], 1)), 12, {"before": 5, "before#2": 7}),
    "split by sizes": (Call(lambda x: torch.cat(x.split([4, 8], 1)[::-1], 1)), 12, {"before": 4, "before#2": 8}),
    "every other channel": (Call(lambda x: x[:, ::2]), 6, {}),
    "pixel shuffle": (nn.PixelShuffle(2), 3, {"before": 3}),
    "pixel unshuffle": (nn.PixelUnshuffle(2), 48, {"before": 12}),
    "channel shuffle": (nn.ChannelShuffle(3), 12, {"before": 4}),
    "repeat": (Call(lambda x: x.repeat(1, 2, 1, 1)), 24, {"before": 12}),
    "repeat interleave": (Call(lambda x: x.repeat_interleave(2, 1)), 24, {"before": 12}),
    "padding with channels": (Call(lambda x: F.pad(x, (0, 0, 0, 0, 2, 3))), 17, {"before": 12}),
    "gated linear unit": (Call(lambda x: F.glu(x, 1)), 6, {"before": 6}),
    "group norm": (nn.GroupNorm(4, 12), 12, {"before": 4}),
    "group norm of one group": (nn.GroupNorm(1, 12), 12, {"before": 12}),
    "instance norm": (nn.InstanceNorm2d(12, affine=True), 12, {"before": 12}),
    "prelu": (nn.PReLU(12), 12, {"before": 12}),
    "layer norm written out": (Call(lambda x: (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + 1.0)), 12, {"before": 12}),
    "largest channel": (Call(lambda x: x * x.max(1, keepdim=True)[0]), 12, {"before": 12}),
    "softmax over channels": (nn.Softmax(1), 12, {}),
    "sum over channels": (Call(lambda x: x + x.sum(1, keepdim=True)), 12, {"before": 12}),
    "einsum": (Call(lambda x: torch.einsum("bchw,bchw->bc", x, x)[:, :, None, None]), 12, {"before": 12}),
    "normalised": (Call(lambda x: F.normalize(x, dim=1)), 12, {"before": 12}),
    "cosine": (Call(lambda x: x * F.cosine_similarity(x, x.relu(), 1).unsqueeze(1)), 12, {"before": 12}),
    "fold": (Call(lambda x: F.fold(F.unfold(x, 2), (4, 4), 2)), 12, {"before": 12}),
    "unpool": (Call(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)), 12, {"before": 12}),
    "where": (Call(lambda x: torch.where((x > 0) & (x < 1), x, 0.5)), 12, {"before": 12}),
    "gathered": (Call(lambda x: x.gather(2, torch.zeros_like(x, dtype=torch.long))), 12, {"before": 12}),
    "flip": (Call(lambda x: x.flip(1)), 12, {}),
    "unfold": (Call(lambda x: F.unfold(x, 3).unsqueeze(-1)), 108, {"before": 12}),
    "in place": (Call(lambda x: x.mul_(2).add_(1).clamp_(min=0)), 12, {"before": 12}),
    "zeros": (Call(lambda x: x + torch.zeros(12, device=x.device).view(1, 12, 1, 1)), 12, {"before": 12}),
    "written into": (Call(lambda x: x.index_fill_(1, torch.tensor([0, 1]), 0.0)), 12, {}),
    "a part assigned": (Call(assigned), 12, {"before": 5, "before#2": 7}),
    "a view written": (Call(lambda x: x + x.view(x.size(0), -1).mul_(2).view_as(x) * 0 + x), 12, {"before": 12}),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_does_to_channels_what_its_rule_says(name):
    between, after, expected = OPERATORS[name]
    adopted = check(Around(between, after=after), torch.randn(1, 3, 4, 4))
    assert units(adopted) == expected | {"after": 6}


def test_control_flow_that_depends_on_values_is_refused_with_its_line():
    class Branch(nn.Module):
        def forward(self, x):
            if x.sum() > 0:
                x = 2 * x
            return x

    with pytest.raises(AdoptionError, match=r"test_adoption.py:\d+, in forward: `if x.sum\(\) > 0:`: a branch .*torch\.where") as caught:
        read(Branch(), torch.randn(1, 3))
    assert str(caught.value).endswith("or adopt the parts before and after it as models of their own"), "and no symbols of PyTorch's"


def test_a_size_that_depends_on_values_is_refused_with_its_line():
    chosen = Around(Call(lambda x: x + x[x > 0.5].sum()))
    with pytest.raises(
        AdoptionError, match=r"test_adoption.py:\d+: the size of what aten.* depends on the values of a tensor. .*torch\.where"
    ):
        read(chosen, torch.randn(1, 3, 4, 4))


def test_a_convolution_by_each_example_s_own_weights_is_left_with_the_reason():
    class Dynamic(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.kernel, self.out = nn.Conv2d(3, 8, 1), nn.Linear(8, 8 * 9), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            x = self.a(x)
            b, c, h, w = x.shape
            kernel = self.kernel(x.mean((2, 3))).view(b * c, 1, 3, 3)
            return self.out(F.conv2d(x.reshape(1, b * c, h, w), kernel, padding=1, groups=b * c).view(b, c, h, w))

    adopted = read(Dynamic(), torch.randn(2, 3, 4, 4))
    assert units(adopted) == {}
    assert "the number of groups depends on the batch" in " ".join(adopted.notes)


def test_an_example_that_does_not_fit_is_refused_with_what_was_given():
    with pytest.raises(AdoptionError, match=r"forward\(image, record\): missing .* given \(1x3x6x6:float32\)"):
        read(TwoInputs(), torch.randn(1, 3, 6, 6))
    with pytest.raises(AdoptionError, match="1x4x8x8:float32"):
        read(ResNet(), torch.randn(1, 4, 8, 8))


def test_a_model_in_half_precision_is_read_in_single_and_left_as_it_was():
    model = Around(nn.ReLU()).half()
    adopted = read(model, torch.randn(1, 3, 4, 4).half())
    assert "the owner's model stays in torch.float16" in adopted.notes[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert model.training


@torch.library.custom_op("niwaki_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@twice.register_fake
def _(x):
    return torch.empty_like(x)


def test_a_custom_operator_freezes_what_it_touches_and_no_more():
    adopted = check(Around(Call(twice)), torch.randn(1, 3, 4, 4))
    assert units(adopted) == {"after": 6}
    assert adopted.opaque == ("between",)


def test_a_batch_that_the_model_works_into_a_number_stays_fixed():
    class PerRow(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            return torch.stack([self.out(self.hidden(x[row])) for row in range(x.shape[0])])

    adopted = check(PerRow(), torch.randn(2, 3))
    assert adopted.batch is None
    assert "the batch size is the example's" in adopted.notes[0]
    assert units(adopted) == {"hidden": 5}


def test_a_block_without_gradients_stays_one():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.fixed, self.out = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, x):
            with torch.no_grad():
                x = self.fixed(x)
            return self.out(x)

    adopted = check(Half(), torch.randn(1, 3))
    assert units(adopted) == {"fixed": 5}
    adopted.module(torch.randn(2, 3)).sum().backward()
    assert adopted.module.fixed.weight.grad is None
    assert adopted.module.out.weight.grad is not None


def test_what_was_cut_can_be_read_again():
    adopted = read(ViT(), torch.randn(1, 3, 8, 8))
    cut = adopted.cut({"patch": range(8), "attention.qkv": [0, 2]})
    again = check(cut, torch.randn(1, 3, 8, 8))
    assert units(again) == {"patch": 8, "attention.qkv": 2, "mlp.0": 20}


def test_a_deep_copy_keeps_unread_weights_and_leaves_constants_out_of_the_state_dict():
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Module()
            self.part.used, self.part.unused = nn.Linear(3, 4), nn.Linear(4, 2)
            self.register_buffer("shift", torch.ones(4), persistent=False)

        def forward(self, x):
            return self.part.used(x) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + self.shift

    model = Unread()
    adopted = check(model, torch.randn(1, 3))
    copied = copy.deepcopy(copy.deepcopy(adopted.module))
    assert list(copied.state_dict()) == list(model.state_dict())
    x = torch.randn(2, 3)
    assert_close(copied(x), model(x))
    assert copied.part.used.weight is not adopted.module.part.used.weight


def test_arguments_without_names_and_wrappers_are_read_through():
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(3, 5), nn.Linear(5, 2)

        def forward(self, *parts, scale=1.0):
            return self.out(self.hidden(sum(parts)) * scale)

    adopted = read(nn.DataParallel(Summed()), (torch.randn(1, 3), torch.randn(1, 3)))
    assert units(adopted) == {"hidden": 5}
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    assert_close(adopted.module(x, y), adopted.module(y, x))


def test_what_holds_no_python_or_no_numbers_is_refused():
    with pytest.raises(AdoptionError, match="TorchScript"):
        read(torch.jit.script(nn.Linear(3, 2)), torch.randn(1, 3))
    with pytest.raises(AdoptionError, match="meta device"):
        read(nn.Linear(3, 2, device="meta"), torch.randn(1, 3))
    with pytest.raises(AdoptionError, match="given function"):
        read(lambda x: x, torch.randn(1, 3))


def test_a_model_that_counts_its_calls_is_left_at_its_count():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(3, 5), nn.Linear(5, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return self.out(self.hidden(x)) + self.calls

    model = Counting()
    adopted = read(model, torch.randn(1, 3))
    assert float(model.calls) == float(adopted.module.calls) == 0
    x = torch.randn(2, 3)
    for _ in range(2):
        assert_close(adopted.module(x), model(x))
    assert units(adopted) == {"hidden": 5}


def test_a_batch_norm_with_an_activation_inside_follows_the_mode():
    """As timm's BatchNormAct2d: a subclass that holds its activation, and calls the function itself."""

    class NormAct(nn.BatchNorm2d):
        def __init__(self, channels):
            super().__init__(channels)
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            x = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps)
            return self.act(x)

    adopted = check(nn.Sequential(nn.Conv2d(3, 5, 1), NormAct(5), nn.Conv2d(5, 2, 1)), torch.randn(1, 3, 4, 4))
    assert adopted.notes == ()
    before = adopted.module.get_submodule("1").running_mean.clone()
    adopted.module.train()(torch.randn(4, 3, 4, 4))
    assert not torch.equal(adopted.module.get_submodule("1").running_mean, before)


class Positions(nn.Module):
    """A table of positions outside the state dict, added to channels or read by a layer of its own."""

    def __init__(self, own_layer, persistent=False):
        super().__init__()
        self.register_buffer("table", torch.randn(1, 7, 16), persistent=persistent)
        self.embed, self.out = nn.Linear(8, 16), nn.Linear(16, 5)
        self.read = nn.Linear(16, 16) if own_layer else nn.Identity()

    def forward(self, x):
        return self.out(torch.relu(self.embed(x) + self.read(self.table)))


@pytest.mark.parametrize("own_layer", [False, True])
def test_a_table_outside_the_state_dict_follows_the_channels_it_is_added_to(own_layer):
    """The network built from the description gets the columns that were kept, and columns that nothing learned makes are not removed."""
    found = check_adoption(Positions(own_layer), torch.randn(2, 7, 8), onnx=False)
    assert units(found.adopted) == {"embed": 16}
    columns = Run(None, 16) if own_layer else Run("embed", 16)
    assert found.adopted.weights["table"][2] == (columns,)


def test_frequencies_that_nobody_learns_are_an_input_and_stay():
    class Frequencies(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("f", 2.0 ** torch.arange(4))
            self.hidden, self.out = nn.Linear(12, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.hidden((x[..., None] * self.f).flatten(-2).sin()))

    assert units(check(Frequencies(), torch.randn(1, 3))) == {"hidden": 8}


class WithStatistic(nn.Module):
    """A number over the whole batch beside the outputs: an auxiliary loss; or a batch written into the code."""

    def __init__(self, batch=None):
        super().__init__()
        self.a, self.out, self.batch = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 5), batch

    def forward(self, x):
        x = self.a(x)
        if self.batch is None:
            return self.out(x.mean((2, 3))), x.norm()
        return self.out(x.reshape(self.batch, 16, -1).mean(2))


def test_costs_are_of_one_example_or_say_of_how_many():
    one = 16 * 3 * 9 * 64 + 16 * 5
    free = read(WithStatistic(), torch.randn(4, 3, 8, 8))
    assert (free.batch, free.examples, free.cost("macs", {"a": 16})) == (0, 1, one)
    fixed = read(WithStatistic(4), torch.randn(4, 3, 8, 8))
    assert (fixed.batch, fixed.examples, fixed.cost("macs")) == (None, 4, 4 * one)
    assert any("of the 4 examples together" in note for note in fixed.notes)


class Rounded(torch.autograd.Function):
    """Rounds, and hands the gradient on: a straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x * 8) / 8

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Doubled(Rounded):
    """A backward that says what differentiating its forward says."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_a_backward_written_by_hand_is_said_to_be_lost_where_gradients_are_others():
    (note,) = read(Around(Call(Rounded.apply)), torch.randn(1, 3, 4, 4)).notes
    assert re.search(r"Rounded \(test_adoption.py:\d+\) defines is not kept.*before.weight, before.bias would get no gradient at all", note)
    assert read(Around(Call(Doubled.apply)), torch.randn(1, 3, 4, 4)).notes == ()
    with_statistics = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Call(Rounded.apply), nn.Conv2d(4, 2, 1))
    assert "Rounded" in read(with_statistics, torch.randn(1, 3, 4, 4)).notes[0]
    straight = Call(lambda x: x + (torch.round(x) - x).detach())
    assert read(Around(straight), torch.randn(1, 3, 4, 4)).notes == ()


def reversed_(x):
    if x.requires_grad:
        x.register_hook(lambda gradient: -gradient)
    return x * 1


def test_what_hooks_do_to_gradients_is_said_to_be_lost():
    (note,) = read(Around(Call(reversed_)), torch.randn(1, 3, 4, 4)).notes
    assert "those of before.weight, before.bias are others" in note
    model = Around(nn.ReLU())
    model.after.register_full_backward_hook(lambda _, given, __: (given[0] * 0,))
    assert "hooks do to gradients" in read(model, torch.randn(1, 3, 4, 4)).notes[0]
    model = Around(nn.ReLU())
    model.before.weight.register_hook(lambda gradient: gradient * 0)
    assert read(model, torch.randn(1, 3, 4, 4)).notes == (
        "what hooks do to the gradients of before.weight is not kept; register them with what was read",
    )


def test_what_no_graph_keeps_is_refused_with_what_to_do():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, (x[:, :, 0] > -9).sum(1), batch_first=True, enforce_sorted=False)
            return self.recurrent(packed)[1][0]

    with pytest.raises(AdoptionError, match="Adopt the parts around the recurrent layer"):
        read(Packed(), torch.randn(2, 5, 3))
    with pytest.raises(AdoptionError, match=r"write torch.no_grad\(\) for torch.inference_mode"):
        read(nn.Sequential(Call(torch.inference_mode()(lambda x: x + 1)), nn.Linear(4, 2)), torch.randn(1, 4))
    drawn = Around(Call(lambda x: x[:, torch.randperm(12, generator=torch.Generator().manual_seed(0))]))
    with pytest.raises(AdoptionError, match="forward makes a Generator"):
        read(drawn, torch.randn(1, 3, 4, 4))
    with pytest.raises(AdoptionError, match="run it once on the example"):
        read(nn.Sequential(nn.LazyLinear(3)), torch.randn(1, 4))


def test_other_outputs_are_told_with_the_batch_and_the_first_node_that_differs(monkeypatch):
    def wrong(*args):
        module = plain_module(*args)
        module.get_submodule("2").weight.data.mul_(2)
        return module

    monkeypatch.setattr(adopted_module, "plain_module", wrong)
    with pytest.raises(AdoptionError, match="for a batch of 3, from linear_1"):
        read(nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 2))


FROZEN = {  # what keeps the channels of `before` whole, and what is said of it
    "neighbouring channels": (
        Call(lambda x: x * F.conv1d(x.mean((2, 3)).unsqueeze(1), torch.ones(1, 1, 3), padding=1).transpose(1, 2).unsqueeze(-1)),
        "conv1d (test_adoption.py:LINE) keeps them whole, for it slides along them, mixing neighbours",
    ),
    "local response norm": (nn.LocalResponseNorm(3), "avg_pool3d (test_adoption.py:LINE) keeps them whole, for it slides along them"),
    "flip": (Call(lambda x: x.flip(1)), "flip (test_adoption.py:LINE) keeps them whole, for it depends on their order"),
    "fixed numbers": (
        Call(lambda x: x[:, torch.arange(11, -1, -1)]),
        "index (test_adoption.py:LINE) keeps them whole, for it picks them by number",
    ),
    "one group of a norm": (Call(lambda x: x + x.view(-1, 1, 12, 4, 4).sum(1).softmax(1)), "softmax (test_adoption.py:LINE) keeps them whole, for it normalises over them"),
    "the input": (Call(lambda x: x), None),
}  # fmt: skip


@pytest.mark.parametrize("name", FROZEN)
def test_channels_that_no_cut_reaches_are_told_with_the_operator_that_keeps_them_and_why(name):
    between, expected = FROZEN[name]
    adopted = read(Around(between), torch.randn(1, 3, 4, 4))
    notes = [re.sub(r"py:\d+", "py:LINE", note) for note in adopted.notes]
    if expected is None:
        assert notes == []
    else:
        (note,) = notes
        assert note.startswith("before stays at 12: between ")
        assert note.endswith(expected)
    assert adopted.opaque == ()


OUTPUTS = {  # what is made of features and logits, and what is said of the features
    "a dict": (lambda feat, logits: {"logits": logits, "feat": feat.relu()}, "body stays at 12: they are an output (feat)"),
    "a tuple": (lambda feat, logits: (logits, [feat]), "body stays at 12: they are an output (1.0)"),
    "a sum over all": (lambda feat, logits: feat + logits.sum(1, keepdim=True), "body stays at 12: they are the output"),
    "logits alone": (lambda feat, logits: {"logits": logits, "shares": logits.softmax(1)}, None),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_channels_that_are_an_output_and_would_else_be_searched_are_told_with_its_name(name):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 12), nn.Linear(12, 2)

        def forward(self, x):
            feat = self.body(x)
            return given(feat, self.head(feat))

    given, told = OUTPUTS[name]
    adopted = read(Model(), torch.randn(3, 4))
    assert adopted.notes == (() if told is None else (told,))
    assert ("body" in units(adopted)) == (told is None)


class SpatialGate(nn.Module):
    """gMLP's: half of the channels gate the others, mixed over tokens by a convolution whose channels are the tokens."""

    def __init__(self):
        super().__init__()
        self.into, self.norm, self.tokens, self.out = nn.Linear(8, 20), nn.LayerNorm(10), nn.Conv1d(6, 6, 1), nn.Linear(10, 3)

    def forward(self, x):
        one, other = F.gelu(self.into(x)).chunk(2, -1)
        return self.out(one * self.tokens(self.norm(other)))


def test_a_convolution_of_one_position_leaves_the_axis_it_slides_along_as_it_is():
    assert units(check(SpatialGate(), torch.randn(1, 6, 8))) == {"into": 10}


def test_the_check_says_what_it_asks_for_and_what_was_left_in_words_of_the_owner():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.out(torch.linalg.matrix_exp(self.hidden(x)[..., None, None]).flatten(1))

    with pytest.raises(AssertionError, match=r"(?s)left as they are: forward test_adoption.py:\d+\n.*\n  aten.linalg_matrix_exp"):
        check_adoption(Odd().half(), torch.randn(2, 4).half(), onnx=False)
    with pytest.raises(
        AssertionError, match=r"at least 80% of the parameters .* must lie in searchable groups .*; 0.0% do\n  read and cut in float32"
    ):
        check_adoption(Odd().half(), torch.randn(2, 4).half(), opaque=True, onnx=False)
    found = check_adoption(Odd(), torch.randn(2, 4), opaque=True, searchable=0.0, onnx=False)
    assert found.cut.onnx_equal is None


def test_an_operator_that_onnx_has_not_is_named_without_colours():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.linalg.matrix_exp(x)

    with pytest.raises(ExportError, match=r"No ONNX function found for .*linalg_matrix_exp") as caught:
        onnx_of(Odd(), torch.randn(2, 4, 4))
    assert "\x1b" not in str(caught.value)


def test_a_part_in_torchscript_is_refused_by_its_path():
    with pytest.raises(AdoptionError, match=r"^1 is TorchScript"):
        read(nn.Sequential(nn.Linear(3, 4), torch.jit.script(nn.ReLU())), torch.randn(1, 3))


def test_a_sum_without_weights_is_checked_by_gates():
    """What a removed unit gives after a bias or an exponential is no zero: no weights of zero tell what a sum is without it."""
    for between in (Call(lambda x: x * x.exp().sum(1, keepdim=True)), Call(lambda x: x * (x + 1).sum(1, keepdim=True))):
        assert units(check_adoption(Around(between), torch.randn(1, 3, 4, 4), onnx=False).adopted) == {"before": 12, "after": 6}


@pytest.mark.parametrize("example", [torch.zeros(1, 3, 4, 4), torch.ones(2, 3, 4, 4)])
def test_an_example_of_one_number_is_as_good_as_any(example):
    assert check_adoption(Around(nn.ReLU()), example, onnx=False).searchable_share == 1


SPREADS = {
    "an unbiased deviation": lambda x: x / (1 + x.std(1, keepdim=True)),
    "a biased variance": lambda x: x * x.var(1, correction=0, keepdim=True),
    "a layer norm": lambda x: F.layer_norm(x.movedim(1, 3), x.shape[1:2]).movedim(3, 1),
}


@pytest.mark.parametrize("name", SPREADS)
def test_no_member_of_the_family_takes_the_variance_of_a_single_channel(name):
    """PyTorch divides by one less than the count, so that it would be NaN; without that it would always be zero, as would be what is normalised."""
    found = check_adoption(Around(Call(SPREADS[name]), channels=8), torch.randn(2, 3, 4, 4), onnx=False)
    adopted = found.adopted
    assert (units(adopted), adopted.least) == ({"before": 8, "after": 6}, {"before": 2, "after": 1})
    family, _ = describe(adopted)
    options = {decision.name: decision.options for decision in space_of(family)}
    assert options["before"] == (2, 3, 4, 5, 6, 7, 8)
    assert options["after"][0] == 1
    narrow = {
        decision.name: decision.options for decision in space_of(adopt(found.adopted.owner, torch.randn(2, 3, 4, 4), narrowest=0.5)[0])
    }
    assert narrow == {"before": (4, 5, 6, 7, 8), "after": (3, 4, 5, 6)}, "eighths from a half on, rounded"
    smallest = adopted.cut({"before": [0, 5], "after": [3]}).train()(torch.randn(2, 3, 4, 4))
    assert torch.isfinite(smallest).all()
    for ask in (
        lambda: adopted.cut({"before": [0]}),
        lambda: adopted.cost("macs", {"before": 1}),
        lambda: describe(adopted, options=lambda _: (1,)),
    ):
        with pytest.raises(AdoptionError, match="'before' has 2 to 8 units"):
            ask()
    macs = resource_of(adopted, "macs")
    tight = Bound(macs, macs.cost({"before": 2, "after": 1}))
    assert uniform(adopted, [tight]) == {"before": 2, "after": 1}
    with pytest.raises(LandingError, match="with 2 units left of each of the 2 groups, or fewer"):
        uniform(adopted, [replace(tight, upper=tight.upper - 1)])


def test_a_variance_over_more_than_one_group_or_place_needs_no_second_channel():
    over_space = Around(Call(lambda x: x / (1 + x.std((1, 2, 3), keepdim=True))))
    assert set(read(over_space, torch.randn(1, 3, 4, 4)).least.values()) == {1}
    two = Around(Call(lambda x: x / (1 + torch.cat([x, torch.ones_like(x[:, :1])], 1).std(1, keepdim=True))))
    assert set(read(two, torch.randn(1, 3, 4, 4)).least.values()) == {1}, "one position is always there"


def test_a_group_whose_units_a_variance_needs_all_stays_whole():
    adopted = read(Around(Call(lambda x: x * x.std(1, keepdim=True)), channels=2), torch.randn(1, 3, 4, 4))
    assert units(adopted) == {"after": 6}
    assert re.match("before stays at 2: .*std.* keeps them whole, for with fewer its variance would be of a single one", adopted.notes[0])


def test_gates_that_leave_one_channel_of_a_variance_give_no_nan():
    adopted = read(Around(Call(lambda x: x / (1 + x.std(1, keepdim=True))), channels=4), torch.randn(1, 3, 4, 4))
    gate = torch.nn.Parameter(torch.tensor([0.0, 1.0, 0.0, 0.0]))
    gated(adopted, {"before": gate})(torch.randn(2, 3, 4, 4)).sum().backward()
    assert torch.isfinite(gate.grad).all()


# --- writing in place, mode, dimensions ------------------------------------------------------------------------------------------


class Writes(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.a, self.b, self.write = nn.Linear(4, 8), nn.Linear(8, 3), write
        self.register_buffer("mu", torch.ones(8))

    def forward(self, x):
        return self.b(self.write(self, self.a(x)))


def average(self, y):
    self.mu.mul_(0.5).add_(1).clamp_(max=1.6)
    return y * self.mu


def transposed(self, y):
    y = y.view(-1, 2, 4)
    y.transpose(1, 2).mul_(2).add_(1)
    return y.flatten(1)


def parts(self, y):
    y[:, :4].mul_(2)[:, :2].add_(5)
    return y


def part_again(self, y):
    whole = y.clone()
    half = whole[:, :4]
    half.mul_(2)
    half[:, 1:3].add_(3)
    half.sub_(y[:, :4])
    return torch.cat([whole[:, :4] + half, whole[:, 4:]], 1)


@pytest.mark.parametrize("write", [average, transposed, parts, part_again])
def test_what_is_written_through_the_result_of_writing_reaches_the_memory(write):
    torch.manual_seed(0)
    model, x = Writes(write).eval(), torch.randn(6, 4)
    module = read(model, x[:4]).module
    for _ in range(3):
        assert_close(module(x), model(x))
    assert_close(module.state_dict()["mu"], model.mu)


class Clips(nn.Module):
    """Frames of clips, (B, T, 3, H, W), through a network for images."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3), nn.Linear(6, 2)

    def forward(self, x):
        y = self.b(self.norm(self.a(x.flatten(0, 1))).relu()).mean((2, 3))
        return self.head(y.view(len(x), -1, 6).mean(1))


class Points(nn.Module):
    """Points of clouds, (B, N, 4), each by itself."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.norm(self.a(x.flatten(0, 1))).view(*x.shape[:2], 8).relu().amax(1))


class WholeBatch(nn.Module):
    """Its batch is fixed: every output is one of the batch's."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        y = self.b(self.norm(self.a(torch.cat([x, x.flip(3)]))).relu())
        return (y - y.mean(0, keepdim=True)).reshape(4, -1)


@pytest.mark.parametrize(("model", "shape"), [(Clips, (1, 4, 3, 6, 6)), (Points, (2, 5, 4)), (WholeBatch, (2, 3, 6, 6))])
def test_a_batch_norm_over_frames_or_points_is_built_for_the_dimensions_that_it_gets(model, shape):
    found = check_adoption(model(), torch.randn(shape), searchable=0.0, onnx=False)
    assert found.cut.counted_macs < found.macs


class HeldNorms(nn.Module):
    """Batch norms held at their statistics while the rest is trained, as detectors do."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)

    def train(self, mode=True):
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x):
        return self.b(self.norm(self.a(x)).relu()).mean((2, 3))


class BorrowedNorm(nn.Module):
    """The tensors of a batch norm in a function that never trains."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)

    def forward(self, x):
        norm = self.norm
        y = F.batch_norm(self.a(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, training=False)
        return self.b(y.relu()).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "told"), [(HeldNorms, "the batch norm norm stays in evaluation"), (BorrowedNorm, "is a function, not a layer")]
)
def test_a_batch_norm_that_never_trains_is_one_in_everything_that_is_made_of_it(model, told):
    model, x = randomised(model()), torch.randn(4, 3, 6, 6)
    adopted = read(model, x)
    network, weights = describe(adopted)
    space = space_of(network)
    built = build(network, space.architecture({each.name: each.options[-1] for each in space.decisions}))
    built.load_state_dict({name: weights[name] for name in built.state_dict()})
    supernet = Supernet(network)
    load_owned_(supernet, weights)
    expected = model.train()(x)
    for module in (adopted.module, adopted.cut({}), read(adopted.cut({}), x).module, built):
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        assert_close(module.train()(x), expected)
        assert all(torch.equal(tensor, module.state_dict()[name]) for name, tensor in before.items())
    assert_close(supernet.train()(x, {each.name: each.options[-1] for each in space.decisions}), expected)
    assert any(told in note for note in adopted.notes)


def test_a_model_that_counts_its_calls_passes_the_check():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.calls.add_(1)
            return self.b(self.a(x).relu())

    assert check_adoption(Counting(), torch.randn(4, 4), onnx=False).same_weights


def test_a_count_that_is_lost_fails_the_check(monkeypatch):
    monkeypatch.setattr("niwaki.adoption.writing.aliased", lambda node: [])
    with pytest.raises(AssertionError, match="leaves the same buffers"):
        check_adoption(Writes(counted_twice), torch.randn(4, 4), opaque=True, searchable=0.0, onnx=False)


def counted_twice(self, y):
    self.mu.add_(1).add_(1)
    return y


class AsksInAMethod(nn.Module):
    """Its forward does not ask for the mode itself."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def hidden(self, x):
        y = self.a(x).relu()
        return 2 * y if self.training else y

    def forward(self, x):
        return self.b(self.hidden(x))


class SaysThatItAsks(AsksInAMethod):
    def forward(self, x):
        y = self.a(x).relu()
        return self.b(2 * y if self.training else y)


class Drops(AsksInAMethod):
    def hidden(self, x):
        return F.dropout(self.a(x).relu(), 0.3, self.training)


def test_training_mode_is_proved_or_a_note_tells_that_it_differs():
    x = torch.randn(4, 4)
    with pytest.raises(AssertionError, match="in training mode it does the same, or a note says that it does not"):
        check_adoption(AsksInAMethod(), x, onnx=False)
    told = check_adoption(SaysThatItAsks(), x, onnx=False)
    assert told.trains_otherwise
    assert told.to_json()["trained"] > 0.1
    assert check_adoption(Drops(), x, onnx=False).trained == 0, "the same random numbers, of the same seed"


def test_a_model_without_a_description_is_told_why_after_its_cut_was_tested():
    class Star(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, *xs):
            return self.b(self.a(xs[0]).relu())

    with pytest.raises(AssertionError, match="the model is described as a network: the argument '_xs' of the model is no tensor"):
        check_adoption(Star(), torch.randn(4, 4), onnx=False)
    found = examine(Star(), torch.randn(4, 4), onnx=False)
    assert "give them as arguments of their own" in found.to_json()["undescribed"]
    assert not found.cut.why
    assert found.cut.predicted_macs == found.cut.counted_macs < found.macs


class Weighted(nn.Module):
    """A convolution, of 8 channels to 8, whose weight is computed; what is given beside its output."""

    def __init__(self, weight, beside=None):
        super().__init__()
        self.a, self.b, self.head, self.weight, self.beside = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5), weight, beside

    def forward(self, x):
        y = self.head(F.conv2d(self.a(x).relu(), self.weight(self.b.weight)).relu().mean((2, 3)))
        return y if self.beside is None else (y, self.beside(self))


def ternary(weight):
    large = weight.abs() > 0.7 * weight.abs().mean()
    return (weight.abs() * large).sum() / large.sum() * weight.sign() * large


@pytest.mark.parametrize(
    ("weight", "beside"),
    [
        (ternary, None),
        (nn.Identity(), lambda self: sum(parameter.square().sum() + parameter.cos().sum() for parameter in self.parameters())),
    ],
)
def test_a_gate_stands_on_every_axis_that_a_sum_runs_over(weight, beside):
    torch.manual_seed(0)
    assert check_adoption(Weighted(weight, beside), torch.randn(2, 3, 8, 8), searchable=0.0, onnx=False).cut.masked < 1e-6


class Experts(nn.Module):
    """A linear layer whose weights are three experts', mixed for every example."""

    def __init__(self):
        super().__init__()
        self.rates, self.weight, self.head = nn.Linear(4, 3), nn.Parameter(torch.randn(3, 8, 4)), nn.Linear(8, 2)

    def forward(self, x):
        weights = torch.einsum("bk,koi->boi", self.rates(x).sigmoid(), self.weight)
        return self.head(torch.einsum("boi,bi->bo", weights, x).relu())


def test_an_einsum_over_one_expert_is_predicted_and_not_counted():
    x = torch.randn(2, 4)
    cuts = [check_adoption(Experts(), x, seed=seed, searchable=0.0, onnx=False).cut for seed in range(4)]
    alone = [len(cut.keep["rates"]) == 1 for cut in cuts]
    assert any(alone)
    for cut, is_alone in zip(cuts, alone, strict=True):
        hidden = next(len(units) for group, units in cut.keep.items() if group != "rates")
        assert cut.elementwise_macs == (4 * hidden if is_alone else 0) == cut.predicted_macs - cut.counted_macs
