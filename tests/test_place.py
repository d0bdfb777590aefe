"""The one elaboration: names, ties, conditions, shapes."""

import pytest

from niwaki.net.block import classifier, conv_bn_act, maybe, mbconv
from niwaki.net.control import Add, Chain, Concat, Graph, Match, Network, Node, OneOf, Repeat, Residual
from niwaki.net.layer import (
    BatchNorm,
    ChannelShuffle,
    Conv,
    Dropout,
    Flatten,
    GlobalPool,
    Identity,
    Interleave,
    Linear,
    Opaque,
    Pool,
    Subsample,
    Sum,
)
from niwaki.net.place import ShapeError, fix, place, space_of
from niwaki.net.program import distinct
from niwaki.space.choice import Choice, SpaceError, choose
from niwaki.space.size import evaluate, in_channels, round8

IMAGE = (3, 16, 16)


def names(*layers, shape=IMAGE):
    return [decision.name for decision in space_of(Network(Chain(*layers), shape))]


def test_an_unnamed_choice_is_named_by_its_path():
    assert names(Chain(Conv(Choice((4, 8)), name="c"), name="stage")) == ["stage.c.out_channels"]
    assert names(Conv(4), Conv(Choice((4, 8)), Choice((3, 5)))) == ["conv1.out_channels", "conv1.kernel_size"]
    assert names(OneOf(Conv(4), Conv(4, 5), name="op")) == ["op"]


def test_a_name_ties_within_the_nearest_named_block_and_a_slash_in_the_whole_network():
    block = lambda name, width: Chain(Conv(Choice((4, 8), width)), Conv(Choice((4, 8), width)), name=name)  # noqa: E731
    assert names(block("a", "w"), block("b", "w")) == ["a.w", "b.w"]
    assert names(block("a", "/w"), block("b", "/w")) == ["w"]
    assert names(block(None, "w"), block(None, "w")) == ["w"]


def test_named_choices_are_tied_over_repeats_unless_the_body_is_a_named_block():
    tied = Chain(Repeat(Chain(Conv(Choice((4, 8), "w"))), 2), name="s")
    assert names(tied) == ["s.w"]
    assert names(Chain(Repeat(Chain(Conv(Choice((4, 8), "w")), name="block"), 2), name="s")) == ["s.block0.w", "s.block1.w"]
    assert names(Chain(Repeat(Conv(Choice((4, 8)), name="c"), 2), name="s")) == ["s.c0.out_channels", "s.c1.out_channels"]


def test_the_same_unnamed_choice_at_two_places_is_an_error_that_says_what_to_do():
    width = Choice((4, 8))
    with pytest.raises(SpaceError, match=r"conv0\.out_channels.*conv1\.out_channels.*name it to tie it, copy it to free it"):
        names(Conv(width), Conv(width))
    block = OneOf(Conv(4), Conv(4, 5))
    with pytest.raises(SpaceError, match="copy it to free it"):
        names(block, block)


def test_equal_descriptions_keep_their_own_ties():
    width = Choice((4, 8))
    once, twice = Network(Conv(width + width), IMAGE), Network(Conv(Choice((4, 8)) + Choice((4, 8))), IMAGE)
    assert once == twice
    assert (space_of(once).size, space_of(twice).size) == (2, 4)


def test_one_name_with_different_options_is_an_error_with_both_places():
    with pytest.raises(SpaceError, match=r"\(4, 8\) at conv0\.out_channels and \(4, 16\) at conv1\.out_channels"):
        names(Conv(Choice((4, 8), "w")), Conv(Choice((4, 16), "w")))


def test_choices_inside_an_option_or_a_repeat_exist_only_when_it_is_taken():
    network = Network(
        Chain(
            OneOf(Conv(4, Choice((3, 5)), name="a"), Identity(name="b"), name="op"),
            Repeat(Conv(Choice((4, 8)), name="c"), Choice((0, 1, 2), "depth")),
        ),
        IMAGE,
    )
    space = space_of(network)
    assert space.size == (2 + 1) * (1 + 2 + 4)
    assert {tuple(arch) for arch in space.enumerate()} == {
        (*op, "depth", *repeats)
        for op in (("op", "op.a.kernel_size"), ("op",))
        for repeats in ((), ("c0.out_channels",), ("c0.out_channels", "c1.out_channels"))
    }


def test_input_channels_are_inferred_through_everything():
    network = Network(Chain(Conv(Choice((4, 8), "w")), Conv(round8(1.5 * in_channels)), Concat(Conv(4), Conv(Choice((2, 6), "v")))), IMAGE)
    placement = place(network)
    for w, v in ((4, 2), (8, 6)):
        assert [evaluate(item.shape.width, {"w": w, "v": v}) for item in placement.items] == [w, 8 if w == 4 else 16, 4, v, 4 + v]


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (5, 3, 2), (7, 2, 1)])
def test_the_output_size_of_a_convolution_is_torchs(kernel, stride, dilation):
    import torch

    for size in (5, 8, 13):
        placed = place(Network(Conv(1, kernel, stride, dilation=dilation), (1, size, size))).items[0]
        conv = torch.nn.Conv2d(1, 1, kernel, stride, dilation * (kernel - 1) // 2, dilation)
        assert placed.shape.spatial == tuple(conv(torch.zeros(1, 1, size, size)).shape[2:])


def test_a_residual_exists_exactly_where_the_shapes_are_equal():
    network = Network(Chain(Conv(Choice((4, 8), "a")), Residual(Conv(Choice((4, 8), "b")))), IMAGE)
    for a in (4, 8):
        for b in (4, 8):
            fixed = fix(place(network), {"a": a, "b": b})
            assert any(isinstance(item.layer, Sum) for item in fixed.items) == (a == b)
    assert not any(isinstance(item.layer, Sum) for item in place(Network(Residual(Conv(3, 3, 2)), IMAGE)).items)


def test_a_residual_that_must_always_exist_is_proved_or_refused_with_both_widths():
    width = Choice((4, 8), "w")
    place(Network(Chain(Conv(width), Residual(Conv(width), "always")), IMAGE))
    with pytest.raises(ShapeError, match=r"residual0.*4\|8 \(by a\).*4\|8 \(by b\)"):
        place(Network(Chain(Conv(Choice((4, 8), "a")), Residual(Conv(Choice((4, 8), "b")), "always")), IMAGE))


def test_match_is_the_identity_where_the_widths_are_equal():
    network = Network(Chain(Conv(Choice((4, 8), "w")), Match(8)), IMAGE)
    assert [len(fix(place(network), {"w": w}).items) for w in (4, 8)] == [4, 1]


def test_the_third_repeat_knows_that_the_second_was_there():
    block = Chain(Conv(Choice((4, 8))), name="block")
    placement = place(Network(Chain(Conv(16), Repeat(block, Choice((0, 1, 2), "depth"))), IMAGE))
    second = next(item for item in placement.items if item.path.startswith("block1"))
    assert {ref.name for size in second.input_shapes[0].channels for ref in getattr(size, "refs", ())} == {"block0.conv0.out_channels"}


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((Flatten(), Conv(4)), r"conv0: Conv needs a map of channels x height x width; it is given 768"),
        ((Linear(4),), r"linear0: Linear needs a flat vector; it is given 3 x 16 x 16; put Flatten"),
        ((Conv(4, 2),), r"conv0: kernel size 2 has an even value"),
        ((Conv(4, Choice((3, 4))),), r"conv0: kernel size 3\|4 .*even value"),
        ((Conv(6, groups=4),), r"conv0: input channels 3 are not always a multiple of the groups 4"),
        ((Conv(0),), r"conv0: out_channels = 0; it must be a whole number of at least 1"),
        ((Conv(Choice((4, 8)) / 3),), r"conv0: out_channels = 1\.33.*whole number"),
        ((Pool("max", 32, 32),), r"pool0: Pool leaves nothing of its input 3 x 16 x 16"),
        ((Add(Conv(4), Conv(8)),), r"add0: cannot add maps of the shapes 4 x 16 x 16 and 8 x 16 x 16"),
        ((Concat(Conv(4), Conv(4, 3, 2)),), r"concat0: cannot concatenate maps of the shapes 4 x 16 x 16 and 4 x 8 x 8"),
        ((OneOf(Conv(4), Conv(4, 3, 2), name="op"),), r"op.*one option gives 4 x 16 x 16, another 4 x 8 x 8"),
        ((Subsample(32),), r"subsample0: Subsample to 32 of a map 3 x 16 x 16; it only makes maps smaller"),
        ((Interleave(8),), r"interleave0: .*only makes maps larger"),
        ((ChannelShuffle(2),), r"3 channels are not always a multiple of 2 groups"),
        ((Subsample(Choice((8, 16))), Flatten()), r"flatten0: Flatten of .*height and width are searched"),
        ((Conv(Choice((4, 8))), Opaque("a.b:c")), r"opaque0: the opaque layer a\.b:c needs a fixed number of channels"),
        (
            (OneOf(Conv(4), Conv(8), by=Choice(("x", "y")), name="op"),),
            r"op: the choice 'op\.by' has the options \('x', 'y'\); the branches are \('conv0', 'conv1'\)",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_the_layer_and_the_shapes(layers, message):
    with pytest.raises(SpaceError, match=message):
        place(Network(Chain(*layers), IMAGE))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv(4, stride=0), "Conv: stride = 0; it is a whole number of at least 1"),
        (lambda: Conv(4, dilation=0, name="stem"), "Conv 'stem': dilation = 0"),
        (lambda: Conv(4, padding=-1), "padding = -1; it is a whole number of at least 0"),
        (lambda: Conv(4, stride=Choice((1, 2))), r"stride = Choice\(.*\) cannot be searched, only sizes can; it is a whole number"),
        (lambda: Pool(stride=0), "Pool: stride = 0"),
        (lambda: Pool("max", 3, 2, padding=2), "padding = 2; it is at most half of kernel_size = 3"),
        (lambda: Pool(kernel_size=Choice((2, 3))), "kernel_size = .* cannot be searched"),
        (lambda: ChannelShuffle(0), "groups = 0"),
        (lambda: Dropout(2.0), "Dropout: p = 2.0; it is a probability, from 0 to 1"),
        (lambda: BatchNorm(momentum=-0.1), "momentum = -0.1; it is a number from 0 to 1"),
        (lambda: Opaque("a:b", stride=0), "Opaque: stride = 0"),
    ],
)
def test_a_constant_of_a_layer_is_checked_when_the_layer_is_made(make, message):
    with pytest.raises(SpaceError, match=message):
        make()


def test_a_table_too_large_to_hold_is_refused_at_description_time_naming_layer_and_choices():
    wide = Chain(Concat(*(Conv(Choice(tuple(range(1, 40)), f"w{i}")) for i in range(5))), Conv(round8(1.5 * in_channels), name="after"))
    with pytest.raises(SpaceError, match=r"after: .*w0 \(39 options\).*90,224,199 combinations"):
        place(Network(wide, IMAGE))


def test_graphs_read_named_nodes_and_refuse_unknown_ones():
    graph = Graph((("a", Node(Conv(4))), ("b", Node(Conv(4), ("input", "a"), "concat"))))
    assert place(Network(graph, IMAGE)).items[-1].input_shapes[0].width == 7
    with pytest.raises(SpaceError, match=r"node 'b' .* reads \['c'\]; before it stand \['a', 'input'\]"):
        Graph((("a", Node(Conv(4))), ("b", Node(Conv(4), ("c",)))))


def test_several_of_a_list_share_one_decision():
    first, second = choose(2, (4, 6, 8), ordered=True, name="two")
    assert space_of(Network(Chain(Conv(first), Conv(second)), IMAGE)).size == 6


def test_fixing_some_decisions_leaves_the_others_open():
    network = Network(
        Chain(
            maybe(Conv(8), name="m"),
            mbconv(Choice((8, 16), "w"), expand=Choice((2, 3), "e"), name="b"),
            BatchNorm(),
            GlobalPool(),
            classifier(3),
        ),
        IMAGE,
    )
    partly = fix(place(network), {"m": "yes", "b.e": 3})
    assert [decision.name for decision in partly.decisions] == ["b.w"]
    with pytest.raises(SpaceError, match="no decision 'z'"):
        fix(place(network), {"z": 1})
    with pytest.raises(SpaceError, match="GlobalPool needs a map"):
        place(Network(Chain(conv_bn_act(4), classifier(3), GlobalPool()), IMAGE))


def test_what_no_architecture_can_have_is_not_placed():
    """A branch, a repeat or a match whose condition contradicts the one it stands under."""
    which = Choice(("small", "large"), "/which")
    inner = OneOf(Conv(4, 1, name="small"), Conv(4, 3, name="large"), by=which, name="inner")
    outer = OneOf(Chain(inner, name="small"), Chain(inner, Conv(4, 5), name="large"), by=which, name="outer")
    assert [item.layer.kernel_size for item in place(Network(outer, IMAGE)).items if isinstance(item.layer, Conv)] == [1, 3, 5]
    depth = Choice((1, 2), "/depth")
    body = OneOf(Repeat(Conv(4), depth), Repeat(Conv(4, 5), depth), by=depth - 1, name="op")
    convolutions = [item.path for item in place(Network(body, IMAGE)).items if isinstance(item.layer, Conv)]
    assert convolutions == ["repeat0.block0", "repeat1.block0", "repeat1.block1"]
    for network in (Network(outer, IMAGE), Network(body, IMAGE)):
        assert all(item.condition is not False for item in place(network).items)
        assert distinct(network) == (2, "")
