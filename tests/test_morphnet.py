"""MorphNet: what units cost, the penalty that follows, and widths that land within a budget."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from random import Random

import pytest
import torch
from torch import fx, nn

from niwaki.adoption.adopted import read
from niwaki.adoption.axes import Term
from niwaki.gradient.adopted import operators, resource_of, scales_of
from niwaki.gradient.expand import Bound, LandingError, Widths, by_rank, check_needed, expand, fill, used
from niwaki.gradient.morphnet import MorphNet, MorphNetError, Scale, Scales, joined, lengths
from niwaki.gradient.resource import DEVICES, Marginal, Operator, Polynomial, charged_twice, penalty, roofline

# A stem (image of 3 channels -> a), a residual block a -> b -> a, a depthwise convolution over b, a concatenation (a, b) -> c, a head c x 2 x 2 -> 10.
UNITS = {"a": 6, "b": 9, "c": 7}
STEM = Term(9 * 64, (((None, 3),), (("a", 1),)))
INTO_BLOCK, OUT_OF_BLOCK = Term(9 * 64, ((("a", 1),), (("b", 1),))), Term(64, ((("b", 1),), (("a", 1),)))
SAME_STAGE = Term(9 * 64, ((("a", 1),), (("a", 1),)))
DEPTHWISE = Term(9 * 64, ((("b", 1),),))
JOINED = Term(16, ((("a", 1), ("b", 1)), (("c", 1),)))
HEAD = Term(10, ((("c", 4),),))
MACS = Polynomial("macs", (STEM, INTO_BLOCK, OUT_OF_BLOCK, DEPTHWISE, JOINED, HEAD))
RESIDUAL = Polynomial("macs", (*MACS.terms, SAME_STAGE))


def macs_by_hand(a, b, c):
    return 9 * 64 * 3 * a + 9 * 64 * a * b + 64 * b * a + 9 * 64 * b + 16 * (a + b) * c + 10 * 4 * c


def test_a_cost_is_that_of_every_layer_at_its_widths_left():
    for a, b, c in product(range(7), range(10), range(8)):
        assert MACS.cost({"a": a, "b": b, "c": c}) == macs_by_hand(a, b, c)


def test_the_slope_of_a_unit_sums_over_all_layers_that_make_or_read_it():
    slopes = MACS.slopes(UNITS)
    a, b, c = UNITS.values()
    assert slopes["a"] == 9 * 64 * 3 + 9 * 64 * b + 64 * b + 16 * c  # the stem, both convolutions of the block, the concatenation
    assert slopes["b"] == 9 * 64 * a + 64 * a + 9 * 64 + 16 * c
    assert slopes["c"] == 16 * (a + b) + 40


def test_the_penalty_has_the_slopes_as_its_gradient_and_a_channel_read_by_three_convolutions_pays_three_terms():
    alive = {"a": 4, "b": 5, "c": 7}
    presence = {group: torch.rand(units, dtype=torch.float64, requires_grad=True) for group, units in UNITS.items()}
    penalty(MACS, alive, presence).backward()
    for group, r in presence.items():
        assert r.grad.tolist() == pytest.approx([MACS.slopes(alive)[group]] * UNITS[group])
    by_layer = sum(  # c (A_in sum r_out + A_out sum r_in) of each layer, as published
        term.coefficient * sum(r(axis) * others(term, at) for at, axis in enumerate(term.sizes))
        for term in MACS.terms
        for r, others in [
            (
                lambda axis: sum(factor * presence[group].sum().item() for group, factor in axis if group),
                lambda term, at: torch.tensor([
                    sum(factor * (alive[group] if group else 1) for group, factor in axis) for n, axis in enumerate(term.sizes) if n != at
                ]).prod().item(),
            )
        ]
    )  # fmt: skip
    assert penalty(MACS, alive, presence).item() == pytest.approx(by_layer)


def test_the_slope_is_what_one_unit_less_saves_except_within_one_residual_group():
    rng = Random(0)
    for _ in range(50):
        alive = {group: rng.randint(1, units) for group, units in UNITS.items()}
        slopes, saved = MACS.slopes(alive), Marginal(MACS).slopes(alive)
        for group in UNITS:
            assert slopes[group] == saved[group] == MACS.cost(alive) - MACS.cost({**alive, group: alive[group] - 1})
        stage = RESIDUAL.slopes(alive)["a"] - slopes["a"], Marginal(RESIDUAL).slopes(alive)["a"] - saved["a"]
        assert stage == (2 * 9 * 64 * alive["a"], 9 * 64 * (2 * alive["a"] - 1))


def test_the_repository_charges_a_depthwise_convolution_twice():
    published = charged_twice(MACS, [DEPTHWISE])
    assert published.slopes(UNITS)["b"] - MACS.slopes(UNITS)["b"] == 9 * 64


def test_a_roofline_takes_the_longer_of_computing_and_moving_and_its_slope():
    compute_bound = Operator(Polynomial("macs", (INTO_BLOCK,)), Polynomial("bytes", (Term(4, ((("a", 1),),)),)))
    memory_bound = Operator(Polynomial("macs", (DEPTHWISE,)), Polynomial("bytes", (Term(4 * 10**6, ((("b", 1),),)),)))
    model = roofline("V100", [compute_bound, memory_bound])
    gflops, gbytes = DEVICES["V100"]
    compute, moved = 2 * 9 * 64 * 6 * 9 / (gflops * 1e9), 4e6 * 9 / (gbytes * 1e9)  # seconds
    assert model.cost(UNITS) == pytest.approx(1e3 * (compute + moved))
    assert model.slopes(UNITS)["a"] == pytest.approx(1e3 * compute / 6)
    assert model.slopes(UNITS)["b"] == pytest.approx(1e3 * (compute / 9 + moved / 9))


# --- widths within budgets ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multiple_of", [1, 2, 4])
@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.5, 0.77, 1.0])
def test_the_multiplier_is_the_largest_that_keeps_the_budget(share, multiple_of):
    widths, bounds = Widths(UNITS, multiple_of), [Bound(MACS, share * MACS.cost(UNITS))]
    if not bounds[0].holds(widths.least):
        with pytest.raises(LandingError, match="the least is"):
            expand(UNITS, widths, bounds)
        return
    for shape in (UNITS, {"a": 1, "b": 9, "c": 3}):
        omega, counts = expand(shape, widths, bounds)
        assert bounds[0].holds(counts)
        larger = {group: widths.near(group, 1.001 * omega * shape[group]) for group in UNITS}
        assert larger == counts or not bounds[0].holds(larger)
        assert all(counts[group] % multiple_of == 0 or counts[group] == UNITS[group] for group in UNITS)
    assert expand({"a": 1, "b": 1, "c": 1}, widths, [Bound(MACS, 10**9)])[1] == UNITS, "no group grows beyond the owner's"


def test_a_shape_that_was_shrunk_too_far_is_multiplied_by_more_than_one():
    omega, counts = expand({"a": 1, "b": 2, "c": 1}, Widths(UNITS), [Bound(MACS, 0.5 * MACS.cost(UNITS))])
    assert omega > 1
    assert counts["a"] >= 1


def test_filling_lands_within_two_percent_of_the_budget_and_never_above():
    units = {"a": 24, "b": 60, "c": 33}
    rng = Random(1)
    for share in (0.1, 0.25, 0.37, 0.5, 0.8):
        bounds = [Bound(RESIDUAL, share * RESIDUAL.cost(units))]
        shape = {group: rng.randint(1, count) for group, count in units.items()}
        scores = {group: sorted((rng.random() for _ in range(count)), reverse=True) for group, count in units.items()}
        for counts in (expand(shape, Widths(units), bounds)[1], by_rank(scores, Widths(units), bounds)):
            landed = fill(counts, Widths(units), bounds, scores)
            assert 0.98 <= used(bounds, landed) <= 1


def test_one_threshold_for_all_groups_keeps_the_best_units_that_fit():
    scores = {"a": [0.9, 0.8, 0.3, 0.2, 0.1, 0.0], "b": [0.95, 0.7, *[0.05] * 7], "c": [0.6, 0.5, 0.4, 0.35, 0.3, 0.2, 0.1]}
    for share in (0.1, 0.3, 0.6):
        bound = Bound(MACS, share * MACS.cost(UNITS))
        counts = by_rank(scores, Widths(UNITS), [bound])
        thresholds = sorted({score for of_group in scores.values() for score in of_group})
        fitting = [{group: max(1, sum(score >= level for score in of_group)) for group, of_group in scores.items()} for level in thresholds]
        assert counts == next(one for one in fitting if bound.holds(one)), "the lowest threshold that fits, by trying them all"


def test_several_budgets_are_kept_together():
    params = Polynomial("params", (Term(1000, ((("c", 1),), (("a", 1),))),))
    bounds = [Bound(MACS, 0.6 * MACS.cost(UNITS)), Bound(params, 0.3 * params.cost(UNITS))]
    _, counts = expand(UNITS, Widths(UNITS), bounds)
    assert all(bound.holds(counts) for bound in bounds)
    assert MACS.cost(counts) < 0.5 * MACS.cost(UNITS), "the parameters bind here"


def test_a_budget_that_no_cut_reaches_says_the_least():
    least = MACS.cost({"a": 1, "b": 1, "c": 1})
    with pytest.raises(LandingError, match=f"macs<=1k cannot be reached .* the least is {least:,} macs .* one unit left of each of the 3"):
        expand(UNITS, Widths(UNITS), [Bound(MACS, 1000, "macs<=1k")])
    with pytest.raises(LandingError, match=r"the least is 64 macs \(100.0% of 64\), for none of its channels may be removed"):
        expand({}, Widths({}), [Bound(Polynomial("macs", (Term(64),)), 32, "macs<=50%")])


def test_a_budget_that_the_network_keeps_already_is_refused_and_one_beside_it_that_it_exceeds_is_not():
    whole, least = MACS.cost(UNITS), MACS.cost({"a": 1, "b": 1, "c": 1})
    loose, tight = Bound(MACS, 1.5 * whole, "macs<=150%"), Bound(replace(MACS, name="params"), whole - 1, "params<=99%")
    with pytest.raises(
        LandingError, match=rf"macs<=150%: there is nothing to shrink.* costs {whole:,} macs, of at most .* down to {least:,} \("
    ):
        check_needed(Widths(UNITS), [loose])
    with pytest.raises(LandingError, match="nothing to shrink"):
        check_needed(Widths(UNITS), [Bound(MACS, whole)])
    check_needed(Widths(UNITS), [loose, tight])


# --- networks as their owners wrote them ------------------------------------------------------------------------------------------------


def conv_bn(into, out, kernel=3, stride=1, groups=1):
    return nn.Sequential(nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(out))


class TwoStages(nn.Module):
    """A ResNet of two stages of two blocks: the stages' streams and the four inner widths are six groups."""

    GROUPS = 6

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.inner = nn.ModuleList([conv_bn(6, 7), conv_bn(6, 5), conv_bn(6, 8, stride=2), conv_bn(9, 7)])
        self.outer = nn.ModuleList([conv_bn(7, 6), conv_bn(5, 6), conv_bn(8, 9), conv_bn(7, 9)])
        self.down = conv_bn(6, 9, 1, 2)
        self.head = nn.Linear(9, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for at, (inner, outer) in enumerate(zip(self.inner, self.outer, strict=True)):
            x = torch.relu((self.down(x) if at == 2 else x) + outer(torch.relu(inner(x))))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all before it: four layers, four groups, and a linear head on a map of 4 x 4."""

    GROUPS = 4

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([conv_bn(3, 5), conv_bn(8, 4, stride=1), conv_bn(12, 6)])
        self.last = conv_bn(18, 8, 1, 2)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return self.head(torch.relu(self.last(x)).flatten(1))


class Inverted(nn.Module):
    """MBConv: a stem and its residual stream, an expansion that a depthwise convolution shares, a head of its own width."""

    GROUPS = 4

    def __init__(self):
        super().__init__()
        self.stem = conv_bn(3, 6, stride=2)
        self.expand, self.depthwise, self.project = conv_bn(6, 11, 1), conv_bn(11, 11, 3, groups=11), conv_bn(11, 6, 1)
        self.second, self.last = nn.Sequential(conv_bn(6, 9, 1), nn.ReLU(), conv_bn(9, 9, 3, 2, 9)), conv_bn(9, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.project(torch.relu(self.depthwise(torch.relu(self.expand(x)))))
        return self.head(torch.relu(self.last(torch.relu(self.second(x)))).mean((2, 3)))


NETWORKS = (TwoStages, Dense, Inverted)
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def adopted():
    found = {}
    for network in NETWORKS:
        torch.manual_seed(0)
        module = network()
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias)
                nn.init.normal_(layer.running_mean)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
        found[network] = read(module, IMAGES)
    return found


def counted(module):
    """Multiply-adds for one image and parameters, by hooks: knows nothing of groups."""
    macs = []

    def count(layer, _, output):
        macs.append((output[0, 0].numel() if output.ndim == 4 else 1) * layer.weight.numel())

    hooks = [layer.register_forward_hook(count) for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        module.eval()(IMAGES[:1])
    for hook in hooks:
        hook.remove()
    return sum(macs), sum(parameter.numel() for parameter in module.parameters())


def groups_by_union_find(module):
    """How many sets of layers there are whose outputs are added up, or scaled by a depthwise convolution: knows nothing of axes."""
    traced, parents, makers = fx.symbolic_trace(module), {"image": "image"}, {}

    def root(name):
        return name if parents[name] == name else root(parents[name])

    for node in traced.graph.nodes:
        layer = traced.get_submodule(node.target) if node.op == "call_module" else None
        if node.op == "placeholder":
            makers[node] = ["image"]
        elif isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, "groups", 1) == 1:
            parents[node.name] = last = node.name
            makers[node] = [last]
        elif node.target is torch.cat:
            makers[node] = [maker for one in node.args[0] for maker in makers[one]]
        else:
            makers[node], *others = [makers[one] for one in node.all_input_nodes]
            for maker, other in [pair for each in others for pair in zip(makers[node], each, strict=True)]:  # an addition
                parents[root(maker)] = root(other)
    return len({root(name) for name in parents} - {root("image"), root(last)})


def patterns(adopted, count, seed=0):
    rng = Random(seed)
    for _ in range(count):
        yield {
            group: tuple(sorted(rng.sample(range(units), rng.randint(adopted.least[group], units))))
            for group, units in adopted.whole.items()
        }


@pytest.mark.parametrize("network", NETWORKS)
def test_the_cost_of_a_structure_is_that_of_the_extracted_network(adopted, network):
    one = adopted[network]
    macs, params, moved = (resource_of(one, name) for name in ("macs", "params", "roofline(T4)"))
    for keep in patterns(one, 34):
        counts = {group: len(units) for group, units in keep.items()}
        assert (macs.cost(counts), params.cost(counts)) == counted(one.cut(keep))
        assert sum(operator.macs.cost(counts) for operator in moved.operators) == macs.cost(counts)


@pytest.mark.parametrize("network", NETWORKS)
def test_an_extracted_network_is_the_one_with_its_dead_scales_and_shifts_at_zero(adopted, network):
    one = adopted[network]
    assert len(one.groups) == groups_by_union_find(network()) == network.GROUPS
    scales = scales_of(one)
    with torch.no_grad():
        for keep in patterns(one, 34, seed=1):
            masked = one.cut({})
            named = dict(masked.named_parameters())
            for group, members in scales.items():
                dead = [unit for unit in range(one.whole[group]) if unit not in keep[group]]
                for scale in members:
                    at = scale.places[dead].flatten()
                    named[scale.weight][at] = 0
                    named[scale.weight.replace("weight", "bias")][at] = 0
            assert torch.allclose(one.cut(keep)(IMAGES), masked(IMAGES), atol=1e-5)


def test_every_layer_that_makes_a_residual_stream_has_its_scale_in_the_group(adopted):
    found = {group: [scale.weight for scale in members] for group, members in scales_of(adopted[TwoStages]).items()}
    assert ["stem.1.weight", "outer.0.1.weight", "outer.1.1.weight"] in found.values()
    assert sorted(weight for weights in found.values() for weight in weights) == sorted(
        name for name, _ in TwoStages().named_parameters() if name.endswith(".1.weight")
    )


def test_a_layer_moves_its_input_its_output_and_its_weights(adopted):
    (first, *_) = operators(adopted[TwoStages])
    assert first.moved_bytes.cost(adopted[TwoStages].whole) == 4 * (3 * 64 + 6 * 64 + 6 * 3 * 9)


# --- scales -------------------------------------------------------------------------------------------------------------------------------


def test_filters_are_as_long_as_the_group_lasso_says():
    weight = torch.randn(4, 3, 2, 2)
    scale = Scale("w", torch.arange(4)[:, None], filters=True)
    for fraction in (0.0, 0.3, 1.0):
        by_hand = [(1 - fraction) * one.square().mean().sqrt() + fraction * one.abs().mean() for one in weight]
        assert torch.allclose(lengths(weight, scale, fraction), torch.stack(by_hand), atol=1e-5)


def test_a_unit_of_several_layers_is_as_long_as_its_longest_or_as_all_together():
    members = [torch.tensor([3.0, 0.0, 0.001]), torch.tensor([4.0, 0.5, 0.002])]
    assert joined(members, "max").tolist() == pytest.approx([4, 0.5, 0.002])
    assert joined(members, "l2").tolist() == pytest.approx([5, 0.5, 0.001 * 5**0.5])


def test_a_unit_is_alive_while_any_scale_of_its_group_is_above_the_threshold():
    module = nn.Module()
    module.a, module.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    at = torch.arange(3)[:, None]
    scales = Scales(module, {"g": [Scale("a.weight", at), Scale("b.weight", at)]})
    with torch.no_grad():
        module.a.weight.copy_(torch.tensor([1.0, 0.005, 0.005]))
        module.b.weight.copy_(torch.tensor([0.0, 0.02, 0.0]))
    assert scales.alive()["g"].tolist() == [True, True, False]
    with pytest.raises(MorphNetError, match="no group of channels"):
        Scales(module, {"g": []})
    with pytest.raises(MorphNetError, match=r"threshold=2 .*join='mean'"):
        MorphNet(threshold=2, join="mean")
