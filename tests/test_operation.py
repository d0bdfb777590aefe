"""Adopted models as descriptions: every reader says of them what PyTorch says of the plain modules."""

import json
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils import _pytree as pytree

from models import SMALL
from niwaki.adoption import AdoptionError, adopt
from niwaki.adoption.counter import counted_macs
from niwaki.cost.count import count_macs, count_params, count_peak_activation
from niwaki.deploy.source import class_text
from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.net.axes import Run, axis, positions, unit_numbers
from niwaki.net.control import Graph, Network, Node
from niwaki.net.operation import In, Operation, Weight
from niwaki.net.picture import picture
from niwaki.net.place import ShapeError, place, space_of
from niwaki.net.text import from_json, network_hash, to_json
from niwaki.nn.build import build
from niwaki.nn.importance import important_first
from niwaki.nn.supernet import extract, supernet
from niwaki.space.choice import Choice, SpaceError

# residuals, depthwise with squeeze-excite, split and shuffle, heads beside the batch, a tied tensor, several inputs, concatenation
NAMES = ("mobilenet-v3", "shufflenet-v2", "vit-multihead", "gpt", "image-and-table")


def lively(model: nn.Module) -> nn.Module:
    """With batch norms that change something, and nothing left to chance."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            with torch.no_grad():
                for tensor, mean in ((layer.weight, 1.0), (layer.bias, 0.0), (layer.running_mean, 0.0), (layer.running_var, 1.0)):
                    tensor.copy_(mean + 0.4 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module", params=NAMES)
def adopted(request):
    torch.manual_seed(0)
    model = lively(SMALL[request.param].make())
    return model, *adopt(model, SMALL[request.param].example()), SMALL[request.param].example(3, seed=1)


def whole(network):
    return space_of(network).architecture({decision.name: decision.options[-1] for decision in space_of(network)})


def members(network, count=2):
    space, rng = space_of(network), random.Random(0)
    return [space.sample(rng) for _ in range(count)]


def one_hot(space, arch):
    return {d.name: F.one_hot(torch.tensor(d.options.index(arch[d.name])), len(d.options)).float() for d in space}


def assert_equal(found, expected, tolerance=1e-5):
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * max(1.0, other.abs().max().item()))


def test_the_whole_network_is_the_owners_model_under_the_owners_names(adopted):
    model, network, weights, inputs = adopted
    module = extract(supernet(network, weights).eval(), whole(network))
    with torch.no_grad():
        assert_equal(module(*inputs), model(*inputs))
    theirs, ours = model.state_dict(), module.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in theirs)


def test_a_slice_is_the_built_module_with_inherited_weights_in_both_modes(adopted):
    _, network, weights, inputs = adopted
    net = supernet(network, weights)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    for arch in members(network):
        for training in (False, True):
            net.load_state_dict(state)
            net.train(training)
            module = extract(net, arch)
            assert module.training is training
            with torch.no_grad():
                assert_equal(net(inputs, arch), module(*inputs))
            if training:  # what it learned of the data is what the module learned
                assert_equal(list(extract(net, arch).buffers()), list(module.buffers()))


def test_counts_are_those_of_independent_counters_and_descriptions_survive_json(adopted):
    _, network, _, inputs = adopted
    macs, params = count_macs(network), count_params(network)
    for arch in members(network):
        module = build(network, arch).eval()
        assert macs(arch) == counted_macs(module, *(x[:1] for x in inputs))
        assert params(arch) == sum(parameter.numel() for parameter in module.parameters())
    again = from_json(json.loads(json.dumps(to_json(network))))
    assert again == network
    assert (network_hash(again), space_of(again)) == (network_hash(network), space_of(network))
    assert picture(network).endswith("</svg>")


def test_one_hot_masks_are_slices(adopted):
    _, network, weights, inputs = adopted
    net, space = supernet(network, weights).eval(), space_of(network)
    with torch.no_grad():
        for arch in members(network):
            assert_equal(net(inputs, one_hot(space, arch)), net(inputs, arch))


@pytest.mark.parametrize("name", ["mobilenet-v3", "gpt", "odd"])
def test_the_source_of_a_member_is_plain_pytorch_that_computes_the_same(name):
    make, example, inputs = (
        (Odd, torch.randn(1, 3, 4, 4), (torch.randn(2, 3, 4, 4),))
        if name == "odd"
        else (SMALL[name].make, SMALL[name].example(), SMALL[name].example(2, seed=1))
    )
    network, weights = adopt(lively(make()), example)
    module = extract(supernet(network, weights), members(network)[0]).eval()
    ShapeProp(module).propagate(*inputs)
    namespace = {"torch": torch, "nn": nn, "Tensor": Tensor}
    exec(class_text("Net", "A member.", module), namespace)
    net = namespace["Net"]()
    net.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert_equal(net.eval()(*inputs), module(*inputs))


def test_samples_keep_a_budget_exactly_and_the_count_is_that_of_enumeration():
    network, _ = adopt(lively(SMALL["vgg"].make()), SMALL["vgg"].example(), options=lambda group: (group.units // 4, group.units // 2))
    space, macs = space_of(network), count_macs(network)
    costs = [macs(arch) for arch in space.enumerate()]
    limit = sorted(costs)[len(costs) // 3]
    inside = within(space, [Limit(macs, limit)])
    assert inside.count.lo == inside.count.hi == sum(cost <= limit for cost in costs) > 1
    assert all(macs(inside.sample(random.Random(seed))) <= limit for seed in range(20))
    assert count_peak_activation(network)(whole(network)) >= max(3 * 32 * 32, 1)


def test_units_in_order_of_importance_leave_the_model_as_it_was(adopted):
    model, network, weights, inputs = adopted
    ordered = important_first(network, weights)
    assert any(not torch.equal(ordered[name], weights[name]) for name in weights)
    with torch.no_grad():
        assert_equal(supernet(network, ordered).eval()(inputs, whole(network)), model(*inputs))


class Odd(nn.Module):
    """Frozen, shared, tied, unused, functional: what state dicts of real models hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1, bias=False).requires_grad_(False)
        self.twice = nn.Conv2d(8, 8, 1)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.register_buffer("shift", torch.randn(8, 1, 1))
        self.register_buffer("mask", torch.tensor([True, False, True, True]), persistent=False)
        self.head = nn.Linear(8, 4)
        self.tied = nn.Linear(8, 4)
        self.tied.weight = self.head.weight
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.twice(F.relu(self.twice(F.relu(self.first(x))))) * self.scale + self.shift
        x = F.dropout(x, 0.5, self.training).mean((2, 3))
        return {"logits": self.head(x).masked_fill(~self.mask, 0.0), "others": self.tied(x)}


def test_what_is_frozen_shared_tied_and_unused_stays_so():
    model = Odd().eval()
    network, weights = adopt(model, torch.randn(1, 3, 4, 4))
    net = supernet(network, weights).eval()
    for arch in (whole(network), *members(network)):
        module = extract(net, arch)
        assert module.state_dict().keys() == model.state_dict().keys()
        assert module.head.weight is module.tied.weight
        assert {name for name, parameter in module.named_parameters() if not parameter.requires_grad} == {"first.weight"}
        assert count_params(network)(arch) == sum(parameter.numel() for parameter in module.parameters())
        x = torch.randn(2, 3, 4, 4)
        with torch.no_grad():
            assert_equal(net(x, arch), module(x))
    assert_equal(extract(net, whole(network))(x), model(x))
    assert not torch.equal(module.train()(x)["others"], module(x)["others"])  # dropout follows the mode


def test_a_built_member_starts_from_a_seed_and_follows_the_device_of_its_input():
    network, _ = adopt(lively(SMALL["resnet-basic"].make()), SMALL["resnet-basic"].example())
    arch = members(network, 1)[0]
    one, same, other = (build(network, arch, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), same.state_dict().values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_where_no_soft_rule_exists_the_operation_is_named_and_hard_decisions_still_run():
    width = Choice((2, 4), "/width")
    first = Operation("aten.linear.default", (In(0), Weight("a.weight", (axis(width), axis(3)))), shape=(axis(width),))
    soft = Operation("aten.softmax.int", (In(0), 1), shape=(axis(width),))
    last = Operation("aten.linear.default", (In(0), Weight("b.weight", (axis(2), axis(width)))), shape=(axis(2),))
    graph = Graph((("a", Node(first)), ("chances", Node(soft, ("a",))), ("b", Node(last, ("chances",)))))
    net = supernet(Network(graph, (3,))).eval()
    x = torch.randn(5, 3)
    with torch.no_grad():
        assert_equal(net(x, {"width": 2}), extract(net, space_of(net.network).architecture({"width": 2}))(x))
    with pytest.raises(SpaceError, match=r"chances: aten\.softmax\.int has no rule for soft widths.*decide width by an option"):
        net(x, {"width": torch.tensor([0.5, 0.5])})


@pytest.mark.parametrize("name", ["convnext", "retina"])
def test_norms_over_searched_channels_weigh_each_by_how_likely_it_is_alive(name):
    torch.manual_seed(0)
    network, weights = adopt(lively(SMALL[name].make()), SMALL[name].example())
    net, space, inputs = supernet(network, weights).eval(), space_of(network), SMALL[name].example(2, seed=1)
    arch = members(network, 1)[0]
    with torch.no_grad():
        assert_equal(net(inputs, one_hot(space, arch)), net(inputs, arch))


class Inline(nn.Module):
    """A model whose forward is a function of it and its input; `layer` makes 8 searchable channels."""

    def __init__(self, function, **tensors):
        super().__init__()
        self.layer, self.fc, self.function = nn.Conv2d(3, 8, 1), nn.Linear(8, 5), function
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x):
        return self.fc(self.function(self, self.layer(x)))


SOFT = {
    "a mean of everything": lambda net, y: y.mean((2, 3)) + y.mean(),
    "a mean over channels, the batch being a number": lambda net, y: (y - y.mean(1, keepdim=True)).reshape(2, 8, -1).mean(2),
    "a softmax beside the channels": lambda net, y: (y * y.flatten(2).softmax(-1).view_as(y)).sum((2, 3)),
    "waves, and an instance norm": lambda net, y: torch.nn.functional.instance_norm(y.cos()).abs().mean((2, 3)),
    "a part that is written to": lambda net, y: torch.slice_scatter(y, y[:, :4] * 2, 1, 0, 4).roll(1, 3).mean((2, 3)),
}
NO_RULE = {
    "the largest channel": lambda net, y: (y - y.amax(1, keepdim=True)).mean((2, 3)),
    "the largest channel, the batch being a number": lambda net, y: (y - y.amax(1, keepdim=True)).reshape(2, 8, -1).mean(2),
    "the length of a whole weight": lambda net, y: F.linear(y.mean((2, 3)), net.weight / net.weight.norm()),
    "the mean of a weight over its inputs": lambda net, y: F.linear(y.mean((2, 3)), net.weight - net.weight.mean(1, keepdim=True)),
}


@pytest.mark.parametrize("what", [*SOFT, *NO_RULE])
def test_a_one_hot_mask_is_a_slice_or_the_operator_is_named(what):
    torch.manual_seed(0)
    model = Inline({**SOFT, **NO_RULE}[what], **({"weight": torch.randn(8, 8)} if "weight" in what else {})).eval()
    x = torch.randn(2, 3, 4, 4)
    network, weights = adopt(model, x)
    net, space = supernet(network, weights).eval(), space_of(network)
    with torch.no_grad():
        for arch in members(network, 3):
            if what in NO_RULE:
                with pytest.raises(SpaceError, match="has no rule for soft widths"):
                    net(x, one_hot(space, arch))
            else:
                assert_equal(net(x, one_hot(space, arch)), net(x, arch))


def test_runs_say_which_positions_a_smaller_axis_keeps():
    full = (Run(4, inner=2, outer=2), Run(3))
    assert positions(full, (Run(1, inner=2, outer=2), Run(2))) == (0, 1, 8, 9, 16, 17)
    assert positions(full, full) == slice(0, 19)
    assert unit_numbers((Run(2, inner=2, outer=2), Run(1))) == (0, 0, 1, 1, 0, 0, 1, 1, 2)


def test_bad_operations_are_refused_where_they_are_made():
    width = Choice((2, 4), "/width")
    with pytest.raises(SpaceError, match="a target is 'aten"):
        Operation("os.system", ("echo",))
    with pytest.raises(SpaceError, match="a target is 'aten"):
        Operation("aten.from_file.default", ("/etc/passwd",))
    with pytest.raises(SpaceError, match="unnamed choice"):
        Operation("aten.relu.default", (In(0),), shape=(axis(Choice((2, 4))),))
    with pytest.raises(ShapeError, match="reads 2 tensors; it is given 1"):
        place(Network(Graph((("add", Node(Operation("aten.add.Tensor", (In(0), In(1)), shape=(axis(3),)))),)), (3,)))
    linear = Operation("aten.linear.default", (In(0), Weight("fc.weight", (axis(width), axis(3)))), shape=(axis(width),))
    other = replace(linear, arguments=(In(0), Weight("fc.weight", (axis(4), axis(3)))))
    with pytest.raises(ShapeError, match=r"'fc.weight' has other axes at b than at a"):
        place(Network(Graph((("a", Node(linear)), ("b", Node(other)))), (3,)))
    network = Network(Graph((("a", Node(linear)),)), (3,))
    with pytest.raises(SpaceError, match=r"the weights have no 'fc.weight'"):
        supernet(network, {"else": torch.zeros(1)})
    with pytest.raises(SpaceError, match=r"'fc.weight' is of \(2, 3\); the network reads \(4, 3\)"):
        supernet(network, {"fc.weight": torch.zeros(2, 3)})
    with pytest.raises(AdoptionError, match="has 1 to 8 units"):
        adopt(Odd(), torch.randn(1, 3, 4, 4), options=lambda group: (0, 99))
