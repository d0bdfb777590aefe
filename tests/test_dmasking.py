"""DMaskingNAS: checks 1-6 of its specification (methods/dmaskingnas.md, "Works when"), and the formulas of its parts.

Elsewhere: the other half of check 1 (descriptions counted by our own tables) in test_count.py; checks 2 and 4 (a mask is the sum of
padded branches, and lies behind BatchNorm; 32 options call as many convolutions as two) in test_supernet.py; check 7 is an experiment,
`niwaki reproduce dmaskingnas`.
"""

import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conftest import PUBLISHED
from niwaki import zoo
from niwaki.cost.count import count_macs
from niwaki.distribution.soft import SoftIndependent
from niwaki.factor.expect import expected
from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.gradient.cost_loss import absolute_loss, limit_loss, log_loss, product_loss
from niwaki.gradient.dmasking import DMasking, DMaskingSearch
from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Match, Network, OneOf, Repeat, Residual
from niwaki.net.layer import Conv, Flatten, GlobalPool, Interleave, Linear, Subsample
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.nn.relax import gumbel_softmax
from niwaki.nn.supernet import extract, supernet
from niwaki.space.choice import Choice
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from test_supernet import lively, one_hot


def counted_macs(module: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Multiply-adds by torch's own counter, which shares no code with ours."""
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        module(torch.empty(1, *input_shape, device=next(module.parameters()).device))
    return flops.get_total_flops() // 2


def chi_square(seen: np.ndarray, chances: np.ndarray) -> float:
    """Pearson's statistic of how often each option was drawn."""
    means = seen.sum() * chances
    return float(((seen - means) ** 2 / means).sum())


# Of as many degrees of freedom, Pearson's statistic is above these once in a thousand times.
ONCE_IN_A_THOUSAND = {1: 10.83, 2: 13.82, 3: 16.27, 4: 18.47}


# --- 1. counter --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_weights_and_macs_when_they_are_built_and_counted_by_torch(name):
    """The authors' rule: weights of convolutions and linear layers; a multiply-add per weight and position, one per input of a pool."""
    network, pooled = zoo.network(name), []
    with torch.device("meta"):
        module = build(network).eval()
    for layer in module.modules():
        if isinstance(layer, nn.AdaptiveAvgPool2d):
            layer.register_forward_hook(lambda layer, inputs, output: pooled.append(inputs[0].numel()))
    macs = counted_macs(module, network.input_shape)
    weights = sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, (nn.Conv2d, nn.Linear)))
    assert (weights, macs + sum(pooled)) == PUBLISHED[name]


# --- 3. hard consistency ----------------------------------------------------------------------------------------------------------


def in_small() -> Network:
    """All that the method decides, small: operator or skip, squeeze-excite, width, expansion, resolution; strides and residuals."""

    def block(name: str, widths: tuple[int, ...], stride: int) -> OneOf:
        width, expand = Choice(widths, f"/{name}.width"), Choice((0.75, 1.5, 3.0), f"/{name}.expand")
        plain = mbconv(width, 3, expand=expand, stride=stride, name="k3r")
        gated = mbconv(width, 5, expand=expand, stride=stride, activation="hswish", squeeze_excite=True, name="k5h_se")
        return OneOf(plain, gated, *([Match(width, name="skip")] if stride == 1 else []), name=name)

    blocks = (block("block0", (8, 12, 16), 1), block("block1", (12, 16), 2), block("block2", (12, 16, 24), 1))
    return Network(
        Chain(Subsample(Choice((9, 12), "/resolution")), conv_bn_act(8, stride=2, activation="hswish"), *blocks, classifier(10)),
        (3, 12, 12),
    )


def lively_norms(network: Network, seed: int = 0):
    """A deep supernet whose BatchNorms are no identities; its convolutions keep their initial values, or a deep network would overflow."""
    net, generator = supernet(network), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for values in (*net.parameters(), *net.buffers()):
            if values.dim() == 1:
                values.add_(torch.rand(values.shape, generator=generator) * 0.5)
    return net


@pytest.mark.parametrize(("name", "make", "count"), [
    ("in small", in_small, 200),
    # the convolution of this skip is there for a width of 8 alone, and a width of 16 has none
    ("a skip whose convolution is never as wide as the skip", lambda: Network(Chain(Conv(16), Match(Choice((8, 16))), classifier(5)), (3, 6, 6)), 4),
    ("mobile-32", lambda: zoo.network("mobile-32"), 4),
    ("fbnetv2", lambda: zoo.network("fbnetv2", (3, 160, 160)), 2),
])  # fmt: skip
def test_one_hot_supernet_equals_the_extracted_network_and_its_effective_cost_is_that_networks_count(name, make, count):
    network = make()
    space, rng, macs = space_of(network), random.Random(0), count_macs(network)
    net = (lively if name == "in small" else lively_norms)(network).eval()
    x = torch.randn(2, *network.input_shape, generator=torch.Generator().manual_seed(1))
    for _ in range(count):
        arch = space.sample(rng)
        weights = one_hot(space, arch)
        module = extract(net, arch)
        with torch.no_grad():
            plain, masked, sliced = module(x), net(x, weights), net(x, arch)
        assert plain.std() > 1e-3
        for shared in (masked, sliced):
            torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())
        effective = expected(macs, {name: row.double() for name, row in weights.items()})
        assert effective.item() == counted_macs(module, network.input_shape)


# --- 5. resolution ----------------------------------------------------------------------------------------------------------------

# height, width, size; rows and columns that are read, floor(i height / size), worked out by hand
GRIDS = [
    (8, 8, 4, [0, 2, 4, 6], [0, 2, 4, 6]),
    (8, 8, 5, [0, 1, 3, 4, 6], [0, 1, 3, 4, 6]),
    (8, 8, 6, [0, 1, 2, 4, 5, 6], [0, 1, 2, 4, 5, 6]),
    (9, 9, 8, [0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]),
    (6, 9, 4, [0, 1, 3, 4], [0, 1, 3, 4, 6, 7]),
]


def grid_of(x: torch.Tensor, rows: list[int], columns: list[int]) -> torch.Tensor:
    """`x` on the sampled grid, 0 elsewhere."""
    kept = torch.zeros_like(x)
    for i in rows:
        for j in columns:
            kept[:, :, i, j] = x[:, :, i, j]
    return kept


@pytest.mark.parametrize(("height", "width", "size", "rows", "columns"), GRIDS)
def test_with_the_identity_a_resolution_gives_the_sampled_grid_and_zeros_between(height, width, size, rows, columns):
    network = Network(Chain(Subsample(Choice((size, height), "/resolution")), Interleave(height)), (2, height, width))
    space, net = space_of(network), supernet(network)
    x = torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(0))
    arch, whole = space.architecture({"resolution": size}), space.architecture({"resolution": height})
    for y in (net(x, arch), net(x, one_hot(space, arch)), build(network, arch)(x)):
        assert torch.equal(y, grid_of(x, rows, columns))
    assert torch.equal(net(x, whole), x)
    soft = net(x, {"resolution": torch.tensor([0.25, 0.75])})
    torch.testing.assert_close(soft, 0.25 * grid_of(x, rows, columns) + 0.75 * x)


@pytest.mark.parametrize(("height", "width", "size", "rows", "columns"), GRIDS)
def test_a_resolution_reads_the_nearest_row_above_and_the_nearest_column_before(height, width, size, rows, columns):
    network = Network(Chain(Subsample(Choice((size, height), "/resolution"))), (2, height, width))
    x = torch.randn(3, 2, height, width, generator=torch.Generator().manual_seed(0))
    for y in (supernet(network)(x, {"resolution": size}), build(network, {"resolution": size})(x)):
        assert torch.equal(y, x[:, :, rows][:, :, :, columns])


def test_a_convolution_at_half_resolution_is_that_of_every_second_pixel_put_back_on_the_grid():
    network = Network(Chain(Subsample(Choice((4, 8), "/resolution")), Conv(5, 3, bias=True), Interleave(8)), (3, 8, 8))
    space, net = space_of(network), lively(network)
    weight, bias = net.parameters()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    half = torch.zeros(2, 5, 8, 8)
    half[:, :, ::2, ::2] = F.conv2d(x[:, :, ::2, ::2], weight, bias, padding=1)
    arch = space.architecture({"resolution": 4})
    for y in (net(x, arch), net(x, one_hot(space, arch)), extract(net, arch)(x)):
        torch.testing.assert_close(y, half, rtol=1e-5, atol=1e-5)
    soft = net(x, {"resolution": torch.tensor([0.3, 0.7])})
    torch.testing.assert_close(soft, 0.3 * half + 0.7 * F.conv2d(x, weight, bias, padding=1), rtol=1e-5, atol=1e-5)

    zeros_first = torch.zeros_like(x)
    zeros_first[:, :, ::2, ::2] = x[:, :, ::2, ::2]
    difference = (F.conv2d(zeros_first, weight, bias, padding=1) - half)[:, :, ::2, ::2]
    assert difference.norm() > 0.5 * half.norm()


def test_zeros_before_a_convolution_would_leave_it_one_two_or_four_of_nine_pixels():
    """Why they come after it (FBNetV2, Fig. 3): counted by a kernel of ones on an image of ones."""
    ones, kernel = torch.ones(1, 1, 8, 8), torch.ones(1, 1, 3, 3)
    zeros_first = grid_of(ones, [0, 2, 4, 6], [0, 2, 4, 6])
    assert F.conv2d(zeros_first, kernel, padding=1).unique().tolist() == [1, 2, 4]
    network = Network(Chain(Subsample(Choice((4, 8), "/resolution")), Conv(1, 3), Interleave(8)), (1, 8, 8))
    net = supernet(network)
    with torch.no_grad():
        next(net.parameters()).fill_(1)
        y = net(ones, {"resolution": torch.tensor([1.0, 0.0])})
    assert y[0, 0, 2:6:2, 2:6:2].tolist() == [[9, 9], [9, 9]]  # all pixels, within the border


def test_the_input_resolution_ends_after_the_global_pool_so_that_one_hot_is_the_plain_network_at_that_input():
    network = Network(Chain(Subsample(Choice((4, 8), "/resolution")), Conv(5, 3, bias=True), GlobalPool(), Flatten(), Linear(4)), (3, 8, 8))
    net = lively(network)
    weight, bias, last_weight, last_bias = net.parameters()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    small, large = (F.linear(F.conv2d(image, weight, bias, padding=1).mean((2, 3)), last_weight) for image in (x[:, :, ::2, ::2], x))
    for g in ([1.0, 0.0], [0.0, 1.0], [0.3, 0.7]):
        expected_output = g[0] * small + g[1] * large + last_bias
        torch.testing.assert_close(net(x, {"resolution": torch.tensor(g)}), expected_output, rtol=1e-5, atol=1e-5)


# --- 6. the cost and its gradient ----------------------------------------------------------------------------------------------------


def of_72() -> Network:
    """72 networks: a width that three layers share, a depth whose second block has a decision of its own, a kernel size, a last width."""
    width = Choice((4, 8, 12), "/width")
    return Network(
        Chain(
            conv_bn_act(width, 3, stride=2),
            Repeat(mbconv(width, 3, expand=Choice((1, 2))), Choice((1, 2), "/depth")),
            mbconv(Choice((4, 6), "/last"), Choice((3, 5), "/kernel"), expand=1.5, squeeze_excite=True),
            classifier(5),
        ),
        (3, 8, 8),
    )


@pytest.fixture(scope="module")
def counted() -> dict:
    """All 72 networks, built and counted by torch."""
    network = of_72()
    with torch.device("meta"):
        return {arch: counted_macs(build(network, arch).eval(), network.input_shape) for arch in space_of(network).enumerate()}


def random_logits(space, seed: int) -> torch.Tensor:
    """(D, O), as a search might have learned them."""
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(len(space), max(len(d.options) for d in space.decisions), generator=numbers, dtype=torch.float64)


def chance(space, logits: np.ndarray, arch) -> float:
    """p(arch) by its definition: the product of its decisions' softmax."""
    product = 1.0
    for row, decision in zip(logits, space.decisions, strict=True):
        if decision.name in arch:
            powers = np.exp(row[: len(decision.options)])
            product *= powers[decision.options.index(arch[decision.name])] / powers.sum()
    return product


@pytest.mark.parametrize("seed", range(3))
def test_the_effective_cost_and_its_gradient_by_the_logits_are_those_of_all_networks_counted_by_torch(counted, seed):
    network = of_72()
    space, step = space_of(network), 1e-5
    assert len(counted) == 72
    logits = random_logits(space, seed).requires_grad_()
    total = expected(count_macs(network), SoftIndependent(space, logits).probabilities())
    total.backward()

    def mean(values: np.ndarray) -> float:
        return sum(chance(space, values, arch) * macs for arch, macs in counted.items())

    assert total.item() == pytest.approx(mean(logits.detach().numpy()), rel=1e-10)
    largest = logits.grad.abs().max().item()
    for row, decision in enumerate(space.decisions):
        for option in range(len(decision.options)):
            above, below = logits.detach().numpy().copy(), logits.detach().numpy().copy()
            above[row, option] += step
            below[row, option] -= step
            difference = (mean(above) - mean(below)) / (2 * step)
            assert logits.grad[row, option].item() == pytest.approx(difference, rel=1e-4, abs=1e-6 * largest)


def many_draws(distribution: SoftIndependent, count: int, *, temperature: float, seed: int) -> dict[str, torch.Tensor]:
    """`count` draws of the weights of every decision, (O, count)."""
    generator = torch.Generator().manual_seed(seed)

    def relax(logits: torch.Tensor) -> torch.Tensor:  # (D, O)
        drawn = gumbel_softmax(logits[:, None].expand(-1, count, -1), temperature=temperature, generator=generator)
        return drawn.transpose(1, 2)

    return distribution.draw(relax)


def test_twenty_thousand_hard_samples_cost_on_average_what_the_effective_cost_says(counted):
    network = of_72()
    space = space_of(network)
    distribution = SoftIndependent(space, random_logits(space, 0))
    weights = many_draws(distribution, 20_000, temperature=1.0, seed=1)
    rows = torch.stack([weights[decision.name].argmax(0) for decision in space.decisions], 1)
    different, times = rows.unique(dim=0, return_counts=True)
    costs = [counted[space.from_indices(row)] for row in different.tolist()]
    mean = float(torch.tensor(costs, dtype=torch.float64) @ times.double()) / 20_000
    assert expected(count_macs(network), distribution.probabilities()).item() == pytest.approx(mean, rel=0.02)


def effective(network: Network, **probabilities: list[float]) -> float:
    return expected(count_macs(network), {name: torch.tensor(p, dtype=torch.float64) for name, p in probabilities.items()}).item()


def test_a_shared_width_adds_its_variance_to_the_product_of_effective_widths():
    """k^2 h w E[C_in C_out]: of 4 and 12 channels with equal chances the mean is 8 and the variance 16."""
    width = Choice((4, 12), "/width")
    tied = Network(Chain(Conv(width, 1), Residual(Conv(width, 3), "always")), (3, 6, 6))
    assert effective(tied, width=[0.5, 0.5]) == 36 * (3 * 8 + 9 * (8 * 8 + 16))
    free = Network(Chain(Conv(Choice((4, 12), "/a"), 1), Conv(Choice((4, 12), "/b"), 3)), (3, 6, 6))
    assert effective(free, a=[0.5, 0.5], b=[0.5, 0.5]) == 36 * (3 * 8 + 9 * 8 * 8)


def test_the_effective_area_is_the_mean_of_areas_each_after_its_own_stride():
    """E[h w], not the product of means; 5 and 8 pixels become 3 and 4 by a stride of 2, whose mean is not that of 6.5."""
    network = Network(Chain(Subsample(Choice((5, 8), "/resolution")), Conv(4, 3, 2)), (3, 8, 8))
    assert effective(network, resolution=[0.5, 0.5]) == 9 * 3 * 4 * (3 * 3 + 4 * 4) / 2


def test_a_skip_costs_its_convolution_only_where_the_widths_differ():
    network = Network(Chain(Conv(Choice((4, 8), "/before"), 1), Match(Choice((4, 8), "/after"))), (3, 2, 2))
    before = 4 * 3 * (0.3 * 4 + 0.7 * 8)
    assert effective(network, before=[0.3, 0.7], after=[0.6, 0.4]) == pytest.approx(before + 4 * 4 * 8 * (0.3 * 0.4 + 0.7 * 0.6))


# --- Gumbel-softmax -------------------------------------------------------------------------------------------------------------------

LOGITS = torch.tensor([1.2, -0.5, 0.0, 0.4], dtype=torch.float64)


def drawn(count: int, *, temperature: float, logits: torch.Tensor = LOGITS, seed: int = 0) -> torch.Tensor:
    """(count, O) draws."""
    return gumbel_softmax(logits.expand(count, -1), temperature=temperature, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.1, 1.0, 5.0])
def test_the_largest_weight_of_a_draw_is_each_options_with_its_softmax_probability(temperature):
    weights = drawn(20_000, temperature=temperature)
    torch.testing.assert_close(weights.sum(-1), torch.ones(20_000, dtype=torch.float64))
    assert bool((weights >= 0).all())
    seen = np.bincount(weights.argmax(-1).numpy(), minlength=4)
    powers = np.exp([1.2, -0.5, 0.0, 0.4])
    assert chi_square(seen, powers / powers.sum()) < ONCE_IN_A_THOUSAND[3]


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_a_draw_of_two_options_has_the_distribution_of_a_logistic_variable(temperature):
    """The difference of two Gumbel variables is logistic: P(g_1 <= t) = sigmoid(temperature logit(t) - (alpha_1 - alpha_2))."""
    count = 20_000
    weights = drawn(count, temperature=temperature, logits=torch.tensor([0.8, 0.1], dtype=torch.float64))[:, 0]
    for t in (0.1, 0.3, 0.5, 0.7, 0.9):
        p = 1 / (1 + math.exp(0.7 - temperature * math.log(t / (1 - t))))
        assert float((weights <= t).double().mean()) == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / count))


def test_a_small_temperature_gives_one_hot_draws_and_a_large_one_equal_weights():
    cold, hot = drawn(1000, temperature=1e-4), drawn(1000, temperature=1e4)
    assert float((cold.max(-1).values > 0.999).double().mean()) > 0.99
    assert float((hot - 0.25).abs().max()) < 0.01
    assert torch.equal(cold.argmax(-1), hot.argmax(-1)), "the same noise has the same winner at any temperature"


def test_the_gradient_of_a_draw_is_that_of_a_softmax_over_the_temperature():
    """dg_i / dalpha_j = g_i ([i = j] - g_j) / temperature, the noise held."""
    for temperature in (0.7, 5.0):
        for seed in range(5):

            def draw(logits: torch.Tensor, temperature: float = temperature, seed: int = seed) -> torch.Tensor:
                return gumbel_softmax(logits, temperature=temperature, generator=torch.Generator().manual_seed(seed))

            g = draw(LOGITS)
            slopes = torch.autograd.functional.jacobian(draw, LOGITS)
            torch.testing.assert_close(slopes, (torch.diag(g) - torch.outer(g, g)) / temperature)


def test_a_generator_that_draws_zero_gives_a_finite_draw(monkeypatch):
    """Once in 2^24 times torch.rand is exactly 0, and -log(-log 0) is not finite."""
    monkeypatch.setattr(torch, "rand", lambda shape, **_: torch.zeros(shape))
    assert gumbel_softmax(torch.zeros(4), temperature=0.1).tolist() == [0.25] * 4


# --- the objective ----------------------------------------------------------------------------------------------------------------------


def losses(loss, cross_entropy: float, ratio: float) -> tuple[float, float, float]:
    """The loss, and its derivatives by cross entropy and by cost."""
    ce, cost = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (cross_entropy, ratio))
    value = loss(ce, cost)
    value.backward()
    return value.item(), 0.0 if ce.grad is None else ce.grad.item(), 0.0 if cost.grad is None else cost.grad.item()


FORMS = {"mul": product_loss(), "add": log_loss(), "absolute": absolute_loss(), "limit": limit_loss()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ratio", [0.2, 0.9, 1.3, 4.0])
def test_the_gradient_of_every_form_of_the_loss_is_that_of_differences(form, ratio):
    loss, step = FORMS[form], 1e-6
    _, by_entropy, by_cost = losses(loss, 1.7, ratio)
    assert by_entropy == pytest.approx((losses(loss, 1.7 + step, ratio)[0] - losses(loss, 1.7 - step, ratio)[0]) / (2 * step), rel=1e-6)
    difference = (losses(loss, 1.7, ratio + step)[0] - losses(loss, 1.7, ratio - step)[0]) / (2 * step)
    assert by_cost == pytest.approx(difference, rel=1e-6, abs=1e-9)


def test_the_product_is_fbnets_loss_of_the_raw_cost():
    """CE * alpha * log(cost)^beta with alpha = 0.2 and beta = 0.6, of 1.5 million multiply-adds where the limit is one million."""
    fbnet = 2.3 * 0.2 * math.log(1_500_000) ** 0.6
    assert losses(product_loss(unit=1e-6), 2.3, 1.5)[0] == pytest.approx(fbnet, rel=1e-7)  # 1 + 1,500,000 for 1,500,000
    value, by_entropy, by_cost = losses(product_loss(), 2.3, 1.0)
    assert value == pytest.approx(2.3 * 0.2 * math.log(2) ** 0.6)
    assert by_entropy == pytest.approx(0.2 * math.log(2) ** 0.6)
    assert by_cost == pytest.approx(2.3 * 0.2 * 0.6 * math.log(2) ** -0.4 / 2)
    assert losses(product_loss(alpha=1, beta=1), 2.3, math.e - 1)[0] == pytest.approx(2.3)


def test_the_sum_makes_every_halving_of_the_cost_worth_the_same():
    loss = log_loss(weight=0.3)
    assert losses(loss, 2.3, 1.0)[0] == 2.3
    for ratio in (0.25, 1.0, 8.0):
        assert losses(loss, 2.3, ratio)[0] - losses(loss, 2.3, ratio / 2)[0] == pytest.approx(0.3 * math.log(2))
        assert losses(loss, 2.3, ratio)[1:] == pytest.approx((1, 0.3 / ratio))


def test_a_higher_cost_is_worse_but_below_the_limit_where_a_form_says_so():
    signs = {
        form: [math.copysign(1, slope) if (slope := losses(loss, 1.0, ratio)[2]) else 0 for ratio in (0.5, 2.0)]
        for form, loss in FORMS.items()
    }
    assert signs == {"mul": [1, 1], "add": [1, 1], "absolute": [-1, 1], "limit": [0, 1]}
    above = [losses(FORMS[form], 1.0, 2.0)[0] for form in ("absolute", "limit")]
    assert above == pytest.approx([1 + math.log(2)] * 2)
    assert losses(FORMS["absolute"], 1.0, 0.5)[0] == pytest.approx(1 + math.log(2))
    assert losses(FORMS["limit"], 1.0, 0.5)[0] == 1


def test_the_method_takes_the_form_weight_and_exponents_that_it_is_given():
    assert losses(DMasking(alpha=0.5, beta=2.0).cost_loss(), 3.0, math.e**2 - 1)[0] == pytest.approx(3 * 0.5 * 2**2)
    for form, value in (("add", 3 - 0.7), ("absolute", 3 + 0.7), ("limit", 3)):
        assert losses(DMasking(objective=form, cost_weight=0.7).cost_loss(), 3.0, 1 / math.e)[0] == pytest.approx(value)


# --- the distribution --------------------------------------------------------------------------------------------------------------------


def test_entropy_is_the_mean_over_decisions_of_the_share_of_the_largest_there_can_be():
    space = space_of(Network(Chain(Conv(Choice((1, 2, 3, 4), "/a")), Conv(Choice((1, 2), "/b")), Conv(Choice((5,), "/c"))), (3, 4, 4)))
    order = [decision.name for decision in space.decisions]

    def entropy(**logits: list[float]) -> float:
        rows = [[*logits[name], *[9.0] * (4 - len(logits[name]))] for name in order]  # what is beyond the options counts for nothing
        return SoftIndependent(space, torch.tensor(rows, dtype=torch.float64)).entropy().item()

    assert entropy(a=[0, 0, 0, 0], b=[3, 3], c=[0]) == pytest.approx(1)
    assert entropy(a=[50, 0, 0, 0], b=[0, 60], c=[0]) == pytest.approx(0, abs=1e-12)
    assert entropy(a=[7, 7, -60, -60], b=[0, 60], c=[0]) == pytest.approx(0.5 / 2)  # log 2 / log 4, and 0
    thirds = -(math.log(1 / 3) / 3 + math.log(2 / 3) * 2 / 3) / math.log(2)
    assert entropy(a=[60, 0, 0, 0], b=[0, math.log(2)], c=[0]) == pytest.approx(thirds / 2)


def test_draws_take_each_option_of_each_decision_as_often_as_its_probability_says_and_no_other():
    space = space_of(of_72())
    distribution, count = SoftIndependent(space, random_logits(space, 5)), 20_000
    weights = many_draws(distribution, count, temperature=0.5, seed=2)
    for row, decision in zip(distribution.logits.numpy(), space.decisions, strict=True):
        drawn_here, options = weights[decision.name], len(decision.options)
        assert drawn_here.shape == (options, count)
        torch.testing.assert_close(drawn_here.sum(0), torch.ones(count, dtype=torch.float64))
        powers = np.exp(row[:options])
        np.testing.assert_allclose(distribution.probabilities()[decision.name], powers / powers.sum())
        seen = np.bincount(drawn_here.argmax(0).numpy(), minlength=options)
        assert chi_square(seen, powers / powers.sum()) < ONCE_IN_A_THOUSAND[options - 1]


@pytest.mark.parametrize("seed", range(4))
def test_the_derived_network_is_the_likeliest_of_all_that_torch_counts_within_the_budget(counted, seed):
    network = of_72()
    space = space_of(network)
    distribution = SoftIndependent(space, 3 * random_logits(space, seed))
    chances = {arch: chance(space, distribution.logits.numpy(), arch) for arch in counted}
    for budget in np.quantile(list(counted.values()), (0.02, 0.1, 0.3, 0.6, 1.0), method="lower"):
        derived = within(space, [Limit(count_macs(network), int(budget))]).mode(distribution.arrays())
        assert counted[derived] <= budget
        assert chances[derived] == pytest.approx(max(chances[arch] for arch, macs in counted.items() if macs <= budget), rel=1e-8)


# --- the loop -----------------------------------------------------------------------------------------------------------------------------


def test_the_defaults_are_the_published_ones():
    """FBNet's configuration as the specification quotes it; FBNetV2's own was not found."""
    method = DMasking()
    assert (method.weight_lr, method.momentum, method.weight_decay) == (0.1, 0.9, 1e-4)
    assert (method.logit_lr, method.logit_weight_decay, method.alpha, method.beta) == (0.01, 5e-4, 0.2, 0.6)
    assert (method.epochs, method.batch_size, method.warmup_epochs, method.architecture_share) == (90, 192, 10, 0.2)
    assert (method.temperature, method.objective, method.paths) == (5.0, "mul", "mixture")
    assert method.temperature_decay == pytest.approx(math.exp(-0.045), abs=5e-4)


def test_a_search_cools_learns_the_weights_first_and_then_both_each_on_its_own_share_of_the_data():
    task = ImageClassification(digits())
    network = Network(Chain(conv_bn_act(Choice((2, 4), "/width"), 3, stride=2), classifier(10)), task.input_shape)
    space = space_of(network)
    inside = within(space, [Limit(count_macs(network), 5000)])
    method = DMasking(epochs=3, warmup_epochs=1, batch_size=128, temperature_decay=0.9)
    search = DMaskingSearch(network, task, [inside], method, seed=0)

    weights, architecture = set(search.weight_part.tolist()), set(search.architecture_part.tolist())
    assert not weights & architecture
    assert weights | architecture == set(task.part("train").tolist())
    assert len(architecture) / len(task.part("train")) == pytest.approx(0.2, abs=0.03)  # whole groups of images

    steps = math.ceil(len(weights) / 128), math.ceil(len(architecture) / 128)
    assert [search.steps_in(epoch) for epoch in range(3)] == [steps[0], sum(steps), sum(steps)]

    def state() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([p.detach().flatten() for p in search.net.parameters()]), search.distributions[0].probabilities()["width"].detach()

    (first_weights, even), _ = state(), search.run()
    assert torch.equal(state()[1], even), "the architecture waits for the weights"
    assert not torch.equal(state()[0], first_weights)
    search.run(max_steps=steps[0])
    (second_weights, probabilities), _ = state(), search.run()
    assert torch.equal(probabilities, even), "the steps on the weights leave the architecture alone"
    assert torch.equal(state()[0], second_weights), "the steps on the architecture leave the weights alone"
    assert not torch.equal(state()[1], even)
    search.run()
    assert search.finished
    assert [record.temperature for record in search.history] == pytest.approx([5.0, 5.0 * 0.9, 5.0 * 0.81])
    assert [record.logit_loss is None for record in search.history] == [True, False, False]
    macs = {width: 16 * 9 * width + 10 * width for width in (2, 4)}  # 4 x 4 positions, one grey channel; ten classes
    p = state()[1].tolist()
    assert search.history[-1].ratios[0] == pytest.approx((p[0] * macs[2] + p[1] * macs[4]) / 5000, rel=1e-6)
    assert search.history[-1].entropy == pytest.approx(-sum(q * math.log(q, 2) for q in p), rel=1e-5)
