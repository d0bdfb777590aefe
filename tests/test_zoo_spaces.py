"""Published spaces and networks of inverted bottlenecks: sizes, parameters and multiply-adds as published, and one supernet for each space."""

import random
from dataclasses import fields

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from niwaki import zoo
from niwaki.cost.count import count_macs, count_params, layer_table
from niwaki.net.block import fused_mbconv, mbconv, shared_kernel, tucker
from niwaki.net.control import Chain, Network
from niwaki.net.edit import encode
from niwaki.net.layer import Activation, Conv, SqueezeExcite
from niwaki.net.place import place, space_of
from niwaki.net.program import distinct, program
from niwaki.nn.build import build
from niwaki.nn.supernet import extract, supernet
from niwaki.space.choice import SpaceError
from niwaki.space.size import Symbol, evaluate, in_channels, round_to, values
from niwaki.zoo import mnasnet, mobiledets, multihardware, tunas
from test_supernet import lively, one_hot

TUNAS = {
    "proxylessnas": tunas.proxylessnas,
    "proxylessnas-enlarged": tunas.proxylessnas_enlarged,
    "mobilenetv3-like": tunas.mobilenetv3_like,
}


def independent_counts(network: Network, arch=None) -> tuple[int, int]:
    """Parameters and multiply-adds of the built module, on the meta device, by torch's own counter."""
    with torch.device("meta"):
        module = build(network, arch).eval()
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        module(torch.empty(1, *network.input_shape, device="meta"))
    return sum(parameter.numel() for parameter in module.parameters()), flops.get_total_flops() // 2


def assert_one_supernet_is_all_members(network: Network, members: int) -> None:
    """With one-hot decisions mask = slice = the extracted module, in evaluation and training mode, and counts are those of the module."""
    space, rng, net = space_of(network), random.Random(0), lively(network)
    x = torch.randn(3, *network.input_shape, generator=torch.Generator().manual_seed(1))
    weights = {key: value.clone() for key, value in net.state_dict().items()}
    for at in range(members):
        arch = space.sample(rng)
        outputs = []
        for forward in (
            lambda arch=arch: extract(net, arch)(x),
            lambda arch=arch: net(x, arch),
            lambda arch=arch: net(x, one_hot(space, arch)),
        ):
            net.load_state_dict(weights)
            net.train(at % 2 == 1)
            with torch.no_grad():
                outputs.append(forward())
        plain, sliced, masked = outputs
        assert plain.std() > 1e-3
        torch.testing.assert_close(sliced, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())
        torch.testing.assert_close(masked, plain, rtol=1e-5, atol=1e-5 * plain.abs().max().item())
        assert (count_params(network)(arch), count_macs(network)(arch)) == independent_counts(network, arch)


# --- TuNAS ------------------------------------------------------------------------------------------------------------------

# distinct programs: a body block is one of its first layers, then a string of 0 to 3 of its other layers, wherever the skipped ones stand
STRINGS_OF_6, STRINGS_OF_36 = sum(6**n for n in range(4)), sum(36**n for n in range(4))


@pytest.mark.parametrize(
    ("name", "assignments", "size", "programs"),
    [
        ("proxylessnas", 18 * (6 * 12**3) ** 5, 18 * (6 * 7**3) ** 5, 18 * (6 * STRINGS_OF_6) ** 5),
        (
            "proxylessnas-enlarged",
            18 * (6 * 12**3) ** 5 * 4**3 * 6 * 7**5,
            18 * (6 * 7**3) ** 5 * 4**3 * 6 * 7**5,
            18 * (6 * STRINGS_OF_6) ** 5 * 4**3 * 6 * 7**5,
        ),
        (
            "mobilenetv3-like",
            12 * (36 * 72**3) ** 5 * 4**2 * 6 * 7**5,
            8 * (36 * 37**3) ** 5 * 4**2 * 6 * 7**5,
            8 * (36 * STRINGS_OF_36) ** 5 * 4**2 * 6 * 7**5,
        ),
    ],
)
def test_the_spaces_of_tunas_have_exactly_the_published_sizes(name, assignments, size, programs):
    network = zoo.network(name)
    assert space_of(network).assignments == assignments
    assert space_of(network).size == size
    assert distinct(network) == (programs, "")


def test_the_published_magnitudes_are_the_assignments():
    magnitudes = {name: f"{space_of(zoo.network(name)).assignments:.0e}" for name in TUNAS}
    assert magnitudes == {"proxylessnas": "2e+21", "proxylessnas-enlarged": "1e+28", "mobilenetv3-like": "8e+42"}  # the paper: ~1e43


def test_widths_of_a_block_are_seven_multiples_rounded_half_up_to_multiples_of_8():
    space = space_of(zoo.network("mobilenetv3-like"))
    assert space["stem.width"].options == (8, 16, 24, 32)
    assert space["stage1.width"].options == (16, 24, 32, 40, 48, 64)
    assert space["stage2.width"].options == (32, 40, 48, 64, 80, 96, 128)
    assert space["features.width"].options == (512, 640, 768, 1024, 1280, 1536, 2048)


@pytest.mark.parametrize("name", tunas.MODELS)
def test_reference_genotypes_decode_to_networks_of_the_published_parameters(name):
    network = zoo.network(name)
    assert count_params(network).minimum()[0] == tunas.PUBLISHED_PARAMS[name]
    assert (count_params(network).minimum()[0], count_macs(network).minimum()[0]) == independent_counts(network)


def test_mobilenetv2_costs_the_multiply_adds_of_torchvisions_table():
    assert round(count_macs(zoo.network("mobilenetv2")).minimum()[0] / 1e6, 1) == 300.8


def test_a_genotype_reads_expansion_first_then_kernel_then_skip():
    choices = tunas.proxylessnas_choices(tunas.MODELS["proxylessnas-mobile"][1])
    assert choices["separable.kernel"] == 3
    assert (choices["stage0.layer0.expand"], choices["stage0.layer0.kernel"]) == (3, 5)  # operator 1
    assert choices["stage0.layer2"] == choices["stage0.layer3"] == "skip"  # operators 6
    assert "stage0.layer2.kernel" not in choices
    assert (choices["last.expand"], choices["last.kernel"]) == (6, 7)  # operator 5
    assert sum(option == "skip" for option in choices.values()) == 2


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ([0] * 21, "22 operators, not 21"),
        ([3, *[0] * 21], "operator 3 of 'separable'.*0 to 2"),
        ([0, 6, *[0] * 20], "operator 6 of 'stage0.layer0'.*0 to 5"),
        ([0, 0, 7, *[0] * 19], "operator 7 of 'stage0.layer1'.*0 to 6"),
    ],
)
def test_a_genotype_that_cannot_be_is_an_error_that_names_the_layer(operators, message):
    with pytest.raises(SpaceError, match=message):
        tunas.proxylessnas_choices(operators)


def test_too_few_widths_are_an_error_that_lists_what_the_frame_needs():
    with pytest.raises(SpaceError, match=r"3 widths \(8, 16, 24\); the frame needs 8, of stem, stage0"):
        tunas.mobilenetv3_like(widths=(8, 16, 24))


TINY = tunas.Frame(1, (2, 1), 2, ("relu", "hswish"))
TINY_SPACES = {
    "proxylessnas": lambda **given: tunas.proxylessnas((3, 8, 8), 5, widths=(8, 8, 8, 16, 16, 24), frame=TINY, **given),
    "proxylessnas-enlarged": lambda **given: tunas.proxylessnas_enlarged((3, 8, 8), 5, widths=(8, 8, 16, 16, 24, 32), frame=TINY, **given),
    "mobilenetv3-like": lambda **given: tunas.mobilenetv3_like((3, 8, 8), 5, widths=(16, 16, 24, 32, 40), frame=TINY, **given),
}


@pytest.mark.parametrize("name", TINY_SPACES)
@pytest.mark.parametrize("given", [{}, {"kernels": shared_kernel}], ids=["separate kernels", "shared kernel"])
def test_every_member_of_a_tunas_space_is_in_one_supernet(name, given):
    assert_one_supernet_is_all_members(TINY_SPACES[name](**given), members=6)


def test_the_bottlenecks_share_their_1x1_convolutions_and_have_a_depthwise_one_for_each_kernel_size():
    net = supernet(TINY_SPACES["mobilenetv3-like"]())
    own = [name for name in net.layers if name.startswith("stage1_layer0")]
    assert sum("expand" in name and "bn" not in name for name in own) == 1
    assert sum("project" in name and "bn" not in name for name in own) == 1
    assert [name.rpartition("_dw_")[2] for name in own if name.endswith("conv")] == ["k3_conv", "k5_conv", "k7_conv"]
    cropped = supernet(TINY_SPACES["mobilenetv3-like"](kernels=shared_kernel))
    assert [name for name in cropped.layers if name.startswith("stage1_layer0") and name.endswith("conv")] == ["stage1_layer0_dw_conv"]


def test_separate_and_shared_kernels_are_the_same_space_and_the_same_programs():
    separate, shared = TINY_SPACES["proxylessnas"](), TINY_SPACES["proxylessnas"](kernels=shared_kernel)
    assert space_of(separate).hash == space_of(shared).hash
    arch = space_of(separate).sample(random.Random(3))
    assert program(separate, arch) == program(shared, arch)


@pytest.mark.parametrize("name", [name for name in zoo.SPACES if name.endswith(("-small", "-tiny"))])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_small_presets_read_digits_and_cifar_and_run(name, shape):
    network = zoo.network(name, shape, classes=10)
    arch = space_of(network).sample(random.Random(0))
    assert build(network, arch).eval()(torch.zeros(2, *shape)).shape == (2, 10)
    assert supernet(network).eval()(torch.zeros(2, *shape), arch).shape == (2, 10)


def test_widths_and_expansions_are_filters_and_all_else_is_an_operator():
    space = space_of(zoo.network("mobilenetv3-like"))
    # 8 widths and an expansion in each of 20 layers; 2 kernels of the stem, 20 of layers, 20 squeeze-excites, 1 + 15 skips
    assert sum(tunas.is_filters(decision.name) for decision in space) == 8 + 20
    assert sum(not tunas.is_filters(decision.name) for decision in space) == 2 + 20 + 20 + 16


@pytest.mark.parametrize("name", [name for name in zoo.SPACES if name.endswith(("-small", "-tiny"))])
def test_soft_decisions_of_the_small_presets_all_get_a_finite_gradient(name):
    network = zoo.network(name, (1, 16, 16), classes=5)  # at 8 x 8 the last maps are of one pixel, on which kernels of 3 and 5 are the same
    logits = {d.name: torch.zeros(len(d.options), requires_grad=True) for d in space_of(network).decisions}
    x = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    output = supernet(network)(x, {name: torch.softmax(value, 0) for name, value in logits.items()})
    torch.nn.functional.cross_entropy(output, torch.arange(4)).backward()
    gradients = {name: value.grad for name, value in logits.items()}
    assert all(gradient is not None and gradient.isfinite().all() and gradient.abs().sum() > 0 for gradient in gradients.values())


# --- MnasNet ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", mnasnet.MODELS)
def test_block_strings_survive_being_read_and_written(name):
    for text in mnasnet.MODELS[name][1].split():
        assert mnasnet.encode_block(mnasnet.decode_block(text)) == text


@pytest.mark.parametrize("text", ["r1_k3_s1_e1_i32_o16", "r1_k3_s12_e1_i32_o16", "r0_k3_s11_e1_i32_o16", "k3", "r1_k3_s11_e1_i32_o16_se"])
def test_a_string_that_is_no_block_is_an_error_that_shows_it(text):
    with pytest.raises(SpaceError, match=text):
        mnasnet.decode_block(text)


@pytest.mark.parametrize("name", mnasnet.PUBLISHED_PARAMS)
def test_mnasnet_has_the_published_parameters(name):
    assert count_params(zoo.network(name)).minimum()[0] == mnasnet.PUBLISHED_PARAMS[name]


@pytest.mark.parametrize("name", mnasnet.MODELS)
def test_mnasnet_is_counted_as_torch_counts_it(name):
    network = zoo.network(name)
    assert (count_params(network).minimum()[0], count_macs(network).minimum()[0]) == independent_counts(network)


def test_mnasnet_a1_costs_the_papers_multiply_adds_and_the_release_adds_less_than_one_for_each_normalised_element():
    assert round(count_macs(zoo.network("mnasnet-a1")).minimum()[0] / 1e6) == mnasnet.PAPER_A1_MACS_M
    for multiplier, millions in mnasnet.PUBLISHED_A1_MACS_M.items():
        rows = layer_table(mnasnet.mnasnet_model("mnasnet-a1", multiplier=multiplier))
        more = 1e6 * millions - sum(row.macs for row in rows)
        assert 0 < more < sum(row.elements for row in rows if row.kind == "BatchNorm")


def test_the_ratio_of_squeeze_excite_is_of_the_block_input_and_may_be_of_the_expanded_width():
    """The second layer of the third block of A1 reads 40 channels and expands them to 120; MobileNetV3's rule gives another network."""
    hidden = []
    for rule in (mnasnet.squeeze_excite_of_input, mnasnet.squeeze_excite_of_expanded):
        items = place(mnasnet.mnasnet_model("mnasnet-a1", squeeze_excite=rule)).items
        hidden.append(next(item.layer.hidden for item in items if item.path == "block2_layer1.se"))
    assert hidden == [10, 30]


def test_mnasnet_b1_is_the_network_that_tunas_writes_as_a_genotype_of_its_own():
    b1 = tunas.proxylessnas(widths=(32, 16, 24, 40, 80, 96, 192, 320, 1280))
    arch = space_of(b1).architecture(tunas.proxylessnas_choices("0 0006 1116 4446 3366 4444 3"))
    assert program(b1, arch) == program(zoo.network("mnasnet-b1"))


def test_five_blocks_of_mnasnet_have_432_choices_each_and_layers_of_their_own_the_cube_of_that():
    assert space_of(zoo.network("mnasnet-five")).size == 432**5
    assert space_of(zoo.network("mnasnet-per-layer")).size == 432**15
    # 16 x 0.75 rounds to 16, and one layer less than one is one: two widths and two depths at the ends
    assert space_of(zoo.network("mnasnet")).size == 432**5 * (4 * 2 * 2 * 3 * 2 * 2) * (4 * 2 * 2 * 3 * 3 * 2)


def test_all_layers_of_a_block_of_mnasnet_are_identical():
    network, rng = zoo.network("mnasnet"), random.Random(0)
    space, placement = space_of(network), place(network)
    for _ in range(1000):
        arch = space.sample(rng)
        layers: dict[tuple[str, str], list] = {}
        for item in placement.items:
            block, _, rest = item.path.partition(".layer")
            if rest and evaluate(item.condition, arch):
                number, _, part = rest.partition(".")
                sizes = [evaluate(getattr(item.layer, field.name), arch) for field in fields(item.layer)]
                layers.setdefault((block, number), []).append((part, type(item.layer), sizes))
        depths = {block: arch[f"{block}.depth"] for block, _ in layers}
        for block, depth in depths.items():
            equal = [found for (other, _), found in layers.items() if other == block]
            assert len(equal) == depth - 1
            assert all(found == equal[0] for found in equal)


def test_an_identity_skip_of_mnasnet_is_the_program_of_none_where_the_shape_changes():
    network = mnasnet.mnasnet((3, 8, 8), 5, blocks=(mnasnet.Searched(24, 1, 2),), stem=8, stem_stride=1, features=16)
    space = space_of(network)
    arch = dict(next(space.enumerate()))
    programs = {skip: program(network, space.architecture(arch | {"block0.skip": skip, "block0.depth": 1})) for skip in mnasnet.SKIPS}
    assert programs["identity"] == programs["none"] != programs["pool"]
    longer = {skip: program(network, space.architecture(arch | {"block0.skip": skip, "block0.depth": 2})) for skip in mnasnet.SKIPS}
    assert len(set(longer.values())) == 3
    assert distinct(network) == (len({program(network, arch) for arch in space.enumerate()}), "")


def test_every_member_of_mnasnet_is_in_one_supernet():
    blocks = (mnasnet.Searched(24, 2, 1), mnasnet.Searched(32, 1, 2))
    assert_one_supernet_is_all_members(mnasnet.mnasnet((3, 8, 8), 5, blocks=blocks, stem=8, stem_stride=1, features=16), members=8)


def test_the_programs_of_mnasnet_are_all_but_those_with_an_identity_on_one_layer_that_changes_the_shape():
    """Of 432 choices of a block, 48 stand for a lone first layer with an identity skip: one without skip is the same."""
    stem_keeps_its_width = 4 * 2 * 2  # 16 channels in and out, stride 1: there the identity is one
    assert distinct(zoo.network("mnasnet-tiny")) == ((432 - 48 + stem_keeps_its_width) * (432 - 48) ** 2, "")
    ends = (4 * 2 * 2 * 3 * 2 * 2 - 32) * (4 * 2 * 2 * 3 * 3 * 2 - 48)
    assert distinct(zoo.network("mnasnet")) == (ends * (432 - 48) * 432**4, "")  # only the second block may have one layer


# --- MobileDets -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [16, 32, 72])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("se", [False, True])
def test_blocks_cost_what_their_formulas_say(channels, stride, se):
    c, e, out, k, n = channels, 4, 24, 5, 12 // stride
    hidden = max(8, 8 * ((c * e + 16) // 32))  # a quarter of the expanded width, to the nearest multiple of 8
    gate = SqueezeExcite(round_to(0.25 * in_channels), gate="sigmoid") if se else False
    gate_macs = 2 * c * e * hidden if se else 0
    gate_params = gate_macs + (hidden + c * e if se else 0)
    low, high = max(8, 8 * ((c + 16) // 32)), max(8, 8 * ((3 * out + 16) // 32))
    blocks = {
        "inverted": (
            mbconv(out, k, expand=e, stride=stride, squeeze_excite=gate),
            c * c * e * 144 + (c * e * k * k + c * e * out) * n * n + gate_macs,
            c * c * e + c * e * k * k + c * e * out + 2 * (2 * c * e + out) + gate_params,
        ),
        "fused": (
            fused_mbconv(out, k, expand=e, stride=stride, squeeze_excite=gate),
            (c * c * e * k * k + c * e * out) * n * n + gate_macs,
            c * c * e * k * k + c * e * out + 2 * (c * e + out) + gate_params,
        ),
        "tucker": (
            tucker(out, 3, in_ratio=0.25, out_ratio=0.75, stride=stride),
            c * low * 144 + (low * high * 9 + high * out) * n * n,
            c * low + low * high * 9 + high * out + 2 * (low + high + out),
        ),
    }
    for block, macs, params in blocks.values():
        network = Network(Chain(block, name="body"), (c, 12, 12))
        assert (params, macs) == (count_params(network).minimum()[0], count_macs(network).minimum()[0]) == independent_counts(network)


@pytest.mark.parametrize("name", mobiledets.BACKBONES)
def test_released_backbones_have_the_recounted_parameters_and_multiply_adds(name):
    network = zoo.network(name)
    rows = [row for row in layer_table(network) if row.path.startswith("backbone")]
    params, millions = mobiledets.RECOUNTED[name]
    assert sum(row.params for row in rows) == params
    assert round(sum(row.macs for row in rows) / 1e6, 1) == millions
    assert (count_params(network).minimum()[0], count_macs(network).minimum()[0]) == independent_counts(network)


@pytest.mark.parametrize(
    ("name", "widths"),
    [
        ("mobiledet-cpu", (8, 16, 32, 72, 144)),
        ("mobiledet-dsp", (24, 32, 64, 144, 240)),
        ("mobiledet-edgetpu", (16, 16, 40, 96, 384)),
        ("mobiledet-gpu", (16, 32, 64, 128, 384)),
    ],
)
def test_the_maps_c1_to_c5_have_strides_2_to_32_and_the_widths_of_the_tables(name, widths):
    items = place(zoo.network(name)).items
    maps = {item.path.split(".")[1]: item.shape for item in items if item.path.startswith("backbone.c")}  # the last of each stage
    assert [(maps[f"c{at}"].width, *maps[f"c{at}"].spatial) for at in range(1, 6)] == [
        (width, 320 // 2**at, 320 // 2**at) for at, width in enumerate(widths, 1)
    ]


def test_half_a_backbone_has_widths_in_multiples_of_8():
    for name in mobiledets.BACKBONES:
        assert all(item.shape.width % 8 == 0 for item in place(mobiledets.mobiledet(name, multiplier=0.5, classes=8)).items)


@pytest.mark.parametrize(
    ("space", "name"), [("mobiledets-cpu", "mobiledet-cpu"), ("mobiledets", "mobiledet-dsp"), ("mobiledets", "mobiledet-edgetpu")]
)
def test_three_of_the_backbones_are_members_of_their_space(space, name):
    network, plain = zoo.network(space), zoo.network(name)
    assert program(network, encode(network, plain)) == program(plain)


def test_the_gpus_backbone_is_no_member_for_its_width_of_128():
    with pytest.raises(SpaceError, match=r"Conv\(128"):
        encode(zoo.network("mobiledets"), zoo.network("mobiledet-gpu"))


def test_the_spaces_of_mobiledets_have_as_many_members_as_their_tables_say():
    """Layers of 4 inverted, 4 fused and 4 Tucker variants; the layer behind the stem is a bottleneck without expansion or a Tucker one."""
    widths = 6 * 4 * 6 * 7 * 7 * 7 * 7 * 7  # stem, C1, C2, C3, C4 twice, C5 twice
    inverted = 4 * (4 * 5**3) ** 5 * widths
    assert space_of(zoo.network("mobiledets-ibn")).size == inverted
    assert space_of(zoo.network("mobiledets-fused")).size == 8 * (8 * 9**3) ** 5 * widths
    # with 8 channels both ratios round to the rank 8, so that one of the two is no option: C1 may be 8 wide, and C2 read that
    behind_the_stem = (1 + 2) * (8 + 2) + 3 * (1 + 4) * (8 + 4)  # by whether C1 is 8 wide, or one of three other widths
    elsewhere = (12 * 13**3) ** 4 * 13**3 * 12
    assert space_of(zoo.network("mobiledets")).size == behind_the_stem * elsewhere * widths // 4


def test_no_two_architectures_of_mobiledets_differ_in_ratios_that_round_to_the_same_rank():
    frame = mobiledets.Frame(1, 16, (("c1", 8, 1, 1), ("c2", 16, 2, 2)))
    network = mobiledets.mobiledets((3, 8, 8), 5, operators=("tucker",), multipliers=(0.5, 1.0), frame=frame)
    space = space_of(network)
    listed = len({program(network, arch) for arch in space.enumerate()})
    assert (space.size, distinct(network)) == (listed, (listed, ""))


@pytest.mark.parametrize("given", [{}, {"squeeze_excite": True, "activation": "hswish", "kernels": shared_kernel}], ids=["", "cpu"])
def test_every_member_of_mobiledets_is_in_one_supernet(given):
    frame = mobiledets.Frame(1, 16, (("c1", 16, 1, 1), ("c2", 16, 2, 2)))
    assert_one_supernet_is_all_members(mobiledets.mobiledets((3, 8, 8), 5, frame=frame, **given), members=8)


@pytest.mark.parametrize(("operators", "message"), [(("ibn", "dense"), "'dense'; there are ibn, fused, tucker"), ((), "at least one")])
def test_an_operator_that_mobiledets_has_not_is_an_error(operators, message):
    with pytest.raises(SpaceError, match=message):
        mobiledets.mobiledets(operators=operators)


# --- several devices --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", multihardware.MODELS)
def test_multi_avg_and_multi_max_have_their_parameters_a_stride_of_32_and_channels_in_multiples_of_32(name):
    network = zoo.network(name)
    assert count_params(network).minimum()[0] == multihardware.RECOUNTED_PARAMS[name]
    assert (count_params(network).minimum()[0], count_macs(network).minimum()[0]) == independent_counts(network)
    maps = [item.shape for item in place(network).items if len(item.shape.spatial) == 2 and item.shape.spatial != (1, 1)]
    assert maps[-1].spatial == (224 // 32, 224 // 32)
    assert all(shape.width % 32 == 0 for shape in maps)
    space = zoo.network("mobilenet-multi")
    assert program(space, encode(space, network)) == program(network)


def test_the_multi_hardware_space_has_only_multiples_of_32_channels():
    for item in place(zoo.network("mobilenet-multi")).items[:-1]:
        assert all(width % 32 == 0 for width in (values(item.shape.width) if isinstance(item.shape.width, Symbol) else (item.shape.width,)))
    assert space_of(zoo.network("mobilenet-multi")).size == (12 * 13**3) ** 5 * 2 * 4 * 6 * 6 * 7


def operators_in(network: Network) -> set[str]:
    """The operators that some architecture of `network` has, read off its placed primitives."""
    found: set[str] = set()
    for layer in (item.layer for item in place(network).items):
        if isinstance(layer, SqueezeExcite):
            found.add("squeeze_excite")
        elif isinstance(layer, Activation):
            found |= set(values(layer.kind) if isinstance(layer.kind, Symbol) else (layer.kind,))
        elif isinstance(layer, Conv) and layer.groups != 1:
            found.add(f"depthwise{layer.kernel_size}x{layer.kernel_size}")
    return found


def test_a_space_for_several_devices_has_an_operator_iff_every_device_lists_it_and_grows_with_fewer_devices():
    rng = random.Random(0)
    for _ in range(40):
        capabilities = {
            device: {"relu", "depthwise3x3", *(name for name in multihardware.OPERATORS if rng.random() < 0.7)}
            for device in ("cpu", "gpu", "dsp")
        }
        shared = multihardware.shared_operators(capabilities)
        network = multihardware.mobilenet_multi((3, 8, 8), 5, operators=shared, widths=(32, 64, 32), frame=tunas.SMALL)
        assert operators_in(network) == set.intersection(*capabilities.values())
        gone = rng.choice(list(capabilities))
        fewer = {device: supported for device, supported in capabilities.items() if device != gone}
        more = multihardware.mobilenet_multi(
            (3, 8, 8), 5, operators=multihardware.shared_operators(fewer), widths=(32, 64, 32), frame=tunas.SMALL
        )
        assert space_of(more).size >= space_of(network).size
        assert all(set(decision.options) <= set(space_of(more)[decision.name].options) for decision in space_of(network))


@pytest.mark.parametrize(
    ("capabilities", "message"),
    [
        (
            {"a": {"depthwise3x3", "relu"}, "b": {"depthwise5x5", "relu"}},
            "share no depthwise kernel: a has depthwise3x3; b has depthwise5x5",
        ),
        ({"a": {"depthwise3x3", "relu"}, "b": {"depthwise3x3", "hswish"}}, "share no activation: a has relu; b has hswish"),
        ({"a": {"depthwise3x3", "relu"}, "b": set()}, "b has none"),
        ({"a": {"conv9x9"}}, "'a' lists 'conv9x9'"),
        ({"a": "relu"}, "'a' lists 'relu'; a device lists some of"),
        ({}, "no device"),
    ],
)
def test_devices_that_share_too_little_are_an_error_that_says_what_each_has(capabilities, message):
    with pytest.raises(SpaceError, match=message):
        multihardware.shared_operators(capabilities)


@pytest.mark.parametrize("operators", [multihardware.SHARED, multihardware.OPERATORS], ids=["shared", "all"])
def test_every_member_of_the_multi_hardware_space_is_in_one_supernet(operators):
    frame = tunas.Frame(1, (2, 1), 2)
    network = multihardware.mobilenet_multi((3, 8, 8), 5, operators=operators, widths=(32, 64), head=(32, 64), frame=frame)
    assert_one_supernet_is_all_members(network, members=5)
