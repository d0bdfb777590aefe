"""Neighbourhood distillation and student search: pieces, their errors, independence, what boundaries bear, and exact choices among combinations."""

import json
import math
import runpy
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import fx, nn

import niwaki
from niwaki.adoption.axes import AdoptionError
from niwaki.cost.count import COSTS
from niwaki.deploy.predict import ExportedModel
from niwaki.factor.factor import Limit
from niwaki.net.block import classifier, conv_bn_act
from niwaki.net.control import Chain, Network, Residual
from niwaki.net.edit import decode
from niwaki.net.layer import Activation
from niwaki.net.place import place, space_of
from niwaki.nn.build import build
from niwaki.objective import parse_budget
from niwaki.recipe.student_library import (
    UNIT,
    Library,
    Settings,
    additive,
    build_library,
    one_by_one,
)
from niwaki.recipe.student_search import accuracy, drifted, figures, greedy, knapsack, least, local, recalibrated, swapped_losses
from niwaki.recipe.student_training import Trained, count_module_macs, held_at_zero, started, train_candidate
from niwaki.recipe.students import KEEP, Candidate, Neighbourhood, described, output_shape, stand_ins, undescribed, variants_of
from niwaki.run.model import ModelError
from niwaki.run.student_search import student_search
from niwaki.run.workers import Pool
from niwaki.space.choice import BudgetError
from niwaki.space.space import Decision, Space
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.train.distill import DistillationError
from niwaki.train.gaussian import Moments, boundary_moments, gaussian_inputs
from niwaki.train.loop import evaluate, predict, train
from niwaki.train.neighbourhood import (
    ADAM,
    Distilling,
    LocalError,
    NeighbourhoodError,
    Pairs,
    cache_boundaries,
    distil,
    drift_pairs,
    local_error,
    noise_curve,
    rows,
    threshold,
)
from niwaki.train.pieces import CutError, assembled, balanced_cuts, cut_points, pieces_of
from niwaki.train.recipe import Recipe
from niwaki.zoo.mobile import mobile

TASK = ImageClassification(digits())


def block(width, stride, name):
    inner = Chain(conv_bn_act(width, name="c1"), conv_bn_act(width, activation=None, name="c2"))
    return Chain(
        conv_bn_act(width, stride=stride, name="down"), Residual(inner, when="always", name="res"), Activation(name="act"), name=name
    )


NETWORK = Network(Chain(block(8, 1, "b1"), block(12, 2, "b2"), block(16, 2, "b3"), classifier(10)), (1, 8, 8))


@pytest.fixture(scope="module")
def teacher():
    return train(build(NETWORK, seed=1), TASK, Recipe(epochs=4, batch_size=32, lr=0.05), TASK.part("train"))


@pytest.fixture(scope="module")
def pieces(teacher):
    return [one.teacher for one in described(NETWORK, teacher)]


@pytest.fixture(scope="module")
def boundaries(pieces, tmp_path_factory):
    return cache_boundaries(pieces, TASK, TASK.part("train"), tmp_path_factory.mktemp("boundaries"))


def bits(module):
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def two(layer, shape):
    """Two stand-ins for each piece: quick to train."""
    return [one for one in variants_of(layer, shape) if one.name in ("width-0.5", "separable")]


QUICK = Settings(Distilling(Recipe(**{**vars(ADAM), "epochs": 2, "lr": 3e-3})), levels=(1e-3, 1e-2, 0.1, 1.0), allowed=0.02)


@pytest.fixture(scope="module")
def library(teacher, tmp_path_factory):
    return build_library(described(NETWORK, teacher, variants=two), TASK, tmp_path_factory.mktemp("students") / "library", QUICK)


# --- pieces ---


def test_the_pieces_of_a_description_compute_what_the_teacher_computes(teacher, pieces):
    inputs, _ = TASK.batch(TASK.part("test")[:32], torch.device("cpu"))
    assert torch.equal(assembled(pieces)(inputs), teacher(inputs))


def test_a_teacher_is_taken_apart_into_stages_or_blocks_and_what_learns_nothing_stays_with_what_it_follows(teacher):
    names = [one.name for one in described(NETWORK, teacher, blocks=True)]
    assert names == ["b1_down", "b1_res", "b2_down", "b2_res", "b3_down", "b3_res", "head"]
    network = decode(mobile(32, 1), space_of(mobile(32, 1)).sample(Random(1)))
    module = build(network, seed=0).eval()
    for blocks, count in ((False, 6), (True, 9)):
        places = described(network, module, blocks=blocks)
        x = torch.randn(2, 1, 32, 32)
        assert len(places) == count
        assert torch.equal(assembled([one.teacher for one in places])(x), module(x))
        assert [len(one.candidates) for one in places][-1] == 1  # the head


def test_a_graph_is_cut_only_where_one_tensor_is_enough(teacher):
    points = cut_points(teacher)
    assert "b1_act" in points
    assert not any("res" in point and "c1" in point for point in points)  # the shortcut runs beside these
    found = pieces_of(teacher, ["b1_act", "b2_act"])
    inputs, _ = TASK.batch(TASK.part("test")[:8], torch.device("cpu"))
    assert torch.equal(assembled(found)(inputs), teacher(inputs))
    with pytest.raises(CutError, match=r"leaves b2_down_act behind, which is needed later, too; it can be cut after .*b1_act"):
        pieces_of(teacher, ["b2_res_c1_conv"])
    with pytest.raises(CutError, match="in the order of the network"):
        pieces_of(teacher, ["b2_act", "b1_act"])


def test_every_cut_point_of_a_graph_gives_two_halves_of_the_same_network(teacher):
    inputs, _ = TASK.batch(TASK.part("test")[:4], torch.device("cpu"))
    expected = teacher(inputs)
    for point in cut_points(teacher):
        assert torch.equal(assembled(pieces_of(teacher, [point]))(inputs), expected), point


def test_a_sequential_and_a_traced_module_can_be_cut_and_others_say_how():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10)).eval()
    x = torch.randn(2, 1, 8, 8)
    for whole, cuts in ((module, ["1"]), (fx.symbolic_trace(module), ["_1"])):
        found = pieces_of(whole, cuts)
        assert torch.equal(assembled(found)(x), module(x))
        assert all(not own.is_set_to(theirs) for own in found[0].parameters() for theirs in module.parameters())
    assert balanced_cuts(module, 2) == ("3",)
    with pytest.raises(CutError, match="shows no order of its parts"):
        cut_points(nn.Bilinear(2, 2, 2))


def test_a_description_that_is_not_the_teachers_is_told_by_the_first_weight_that_differs(teacher):
    other = Network(Chain(block(8, 1, "b1"), block(16, 2, "b2"), classifier(10)), (1, 8, 8))
    with pytest.raises(
        NeighbourhoodError, match=r"has b2_down_conv.weight of 16 x 8 x 3 x 3, where the teacher's module has b2_down_conv.weight of 12"
    ):
        described(other, teacher)


# --- candidates ---


def test_candidates_keep_shapes_and_last_activation_and_need_fewer_multiply_adds(teacher):
    kinds = set()
    for one in described(NETWORK, teacher)[:-1]:
        macs = [COSTS["macs"](net)(space_of(net).architecture({})) for net in (one.network(each.layer) for each in one.candidates)]
        assert all(count < macs[0] for count in macs[1:])
        for each in one.candidates[1:]:
            network = one.network(each.layer)
            assert output_shape(network) == one.output_shape
            last = place(network).items[place(network).output].layer
            assert isinstance(last, Activation)
            assert last.kind == "relu"
            built = build(network)
            assert built(torch.randn(2, *one.input_shape)).shape[1:] == one.output_shape
            kinds.add(each.name.split("-")[0])
    assert kinds == {"width", "inner", "shallow", "separable", "low"}


def test_sparse_candidates_start_from_the_teacher_and_count_what_is_left(teacher, boundaries):
    (first, *_) = described(NETWORK, teacher, variants=lambda layer, shape: variants_of(layer, shape, widths=(), sparsity=0.9)[-1:])
    student, masks = started(first, first["sparse-0.9"], seed=0)
    for (parameter, mask), theirs in zip(masks, [p for p in first.teacher.parameters() if p.ndim > 1], strict=True):
        assert int(mask.sum()) == parameter.numel() - int(0.9 * parameter.numel())
        assert theirs.detach().abs()[mask == 0].max() <= theirs.detach().abs()[mask == 1].min()
    with held_at_zero(masks):
        distil(student, Pairs(boundaries[0], boundaries[1]), QUICK.how)
    assert all(bool((parameter[mask == 0] == 0).all()) for parameter, mask in masks)
    dense = count_module_macs(first.teacher, first.input_shape)
    network = first.network(first.layer)
    assert dense == COSTS["macs"](network)(space_of(network).architecture({}))
    assert count_module_macs(student, first.input_shape) == pytest.approx(0.1 * dense, rel=0.05)


def test_sparse_weights_stay_0_when_a_combination_is_tuned_and_files_count_them(teacher, tmp_path):
    first = described(NETWORK, teacher)[0].layer
    found = student_search(
        teacher, TASK, network=NETWORK, settings=QUICK, out=tmp_path, workers=1, export=False, tune=Recipe(epochs=1, batch_size=64, lr=0.05),
        variants=lambda layer, shape: variants_of(layer, shape, widths=(), sparsity=0.9)[-1:] if layer == first else (),
        choose=lambda library, limits: library.space.architecture({**library.teacher, "b1": "sparse-0.9"}),
    )  # fmt: skip
    sparse, dense = [], []
    for name, parameter in found[0].module.named_parameters():
        (sparse if name.startswith("b1") else dense).extend([float((parameter == 0).float().mean())] if parameter.ndim > 1 else [])
    assert sparse == pytest.approx([0.9] * 3, abs=0.02)
    assert max(dense) < 0.01
    costs = found[0].figures["costs"]
    assert costs["size"] == found.library.of_teacher("size")
    assert costs["params"] < found.library.of_teacher("params")


def test_a_candidate_that_is_a_module_has_to_fit_its_piece():
    keep = Candidate(KEEP, module=nn.Conv2d(2, 4, 1))
    for module, said in (
        (nn.Conv2d(2, 5, 1), "gives 5 x 3 x 3, the teacher's piece 4 x 3 x 3"),
        (nn.Conv2d(3, 4, 1), "does not take 2 x 3 x 3"),
    ):
        with pytest.raises(NeighbourhoodError, match=f"candidate 'own' of piece0 {said}"):
            Neighbourhood("piece0", keep.module, (2, 3, 3), (4, 3, 3), (keep, Candidate("own", module=module)))


# --- works when 1: the identity ---


def test_a_student_that_is_the_teacher_has_no_error_and_gives_the_teachers_logits(teacher, pieces, boundaries):
    for at, piece in enumerate(pieces):
        error = local_error(piece, Pairs(boundaries[at], boundaries[at + 1]))
        assert error.relative_mse == 0.0
        assert (error.cosine, error.explained) == (pytest.approx(1.0, abs=1e-6), 1.0)
    assert torch.equal(predict(assembled(pieces), TASK, TASK.part("test")), predict(teacher, TASK, TASK.part("test")))


def test_swapping_one_piece_changes_no_bit_of_the_others(library):
    base = library.pieces(library.teacher)
    for at, one in enumerate(library.neighbourhoods):
        for candidate in one.candidates[1:]:
            other = library.pieces({**library.teacher, one.name: candidate.name})
            same = [bits(a) == bits(b) for a, b in zip(base, other, strict=True)]
            assert same == [place_ != at for place_ in range(len(base))]


def test_the_activations_are_those_of_evaluation_mode_and_half_precision_rounds_to_11_bits(pieces, boundaries, tmp_path):
    for piece in pieces:
        piece.train()
    half = cache_boundaries(pieces, TASK, TASK.part("train")[:64], tmp_path, half=True)
    assert not any(piece.training for piece in pieces)
    for whole, rounded in zip(boundaries, half, strict=True):
        expected = rows(whole, slice(0, 64))
        assert torch.allclose(rows(rounded, slice(0, 64)), expected, rtol=2**-11, atol=1e-6)
    huge = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    nn.init.constant_(huge[1].bias, 1e6)
    with pytest.raises(NeighbourhoodError, match="more than float16 holds"):
        cache_boundaries([huge], TASK, TASK.part("train")[:8], tmp_path / "huge", half=True)


def test_errors_are_the_formulas_written_out(tmp_path):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(40, 3)).astype("f4"), (rng.normal(size=(40, 3)) + 2).astype("f4")
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "t.npy", t)
    error = local_error(nn.Identity(), Pairs(tmp_path / "x.npy", tmp_path / "t.npy"))
    assert error.relative_mse == pytest.approx(((x - t) ** 2).sum() / (t**2).sum(), rel=1e-6)
    cosine = (x * t).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(t, axis=1)
    assert error.cosine == pytest.approx(cosine.mean(), rel=1e-5)
    assert error.explained == pytest.approx(1 - (x - t).var(0).sum() / t.var(0).sum(), rel=1e-5)


def test_each_channel_counts_alike_however_large_it_is(tmp_path):
    """A student that knows the channels' means alone has a loss of 1: the sum of variance / variance."""
    x = np.random.default_rng(0).normal(size=(2000, 2)).astype("f4") * np.array([1.0, 100.0], dtype="f4")
    np.save(tmp_path / "x.npy", np.zeros((2000, 1), dtype="f4"))
    np.save(tmp_path / "t.npy", x)
    student = nn.Linear(1, 2)
    nn.init.zeros_(student.bias)
    done = distil(student, Pairs(tmp_path / "x.npy", tmp_path / "t.npy"), Distilling(Recipe(**{**vars(ADAM), "epochs": 1, "lr": 1e-6})))
    assert done.losses[0] == pytest.approx(1.0, abs=0.02)


def test_a_training_ends_where_an_epoch_gains_less_than_the_plateau(boundaries, pieces):
    first = Neighbourhood("b1", pieces[0], (1, 8, 8), (8, 8, 8), (Candidate("own", conv_bn_act(8)),))
    student, _ = started(first, first["own"], 0)
    done = distil(student, Pairs(boundaries[0], boundaries[1]), Distilling(Recipe(**{**vars(ADAM), "epochs": 30}), plateau=0.2))
    gains = [1 - after / before for before, after in zip(done.losses, done.losses[1:], strict=False)]
    assert len(done.losses) < 30
    assert all(gain >= 0.2 for gain in gains[:-1])
    assert gains[-1] < 0.2


def test_without_a_plateau_a_training_goes_on_where_the_error_rises(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((64, 1), dtype="f4"))
    np.save(tmp_path / "t.npy", np.random.default_rng(0).normal(size=(64, 1)).astype("f4"))
    how = Distilling(replace(ADAM, epochs=8, batch_size=16, lr=0.3), plateau=0.0)
    losses = distil(nn.Linear(1, 1), Pairs(tmp_path / "x.npy", tmp_path / "t.npy"), how).losses
    assert any(after > before for before, after in pairwise(losses[:-1]))
    assert len(losses) == 8
    with pytest.raises(NeighbourhoodError, match="without an average of their weights"):
        Distilling(replace(ADAM, ema=0.9))


def test_with_a_tail_half_of_the_loss_and_the_error_are_measured_behind_the_next_piece(pieces, boundaries):
    first = Neighbourhood("b1", pieces[0], (1, 8, 8), (8, 8, 8), (Candidate("own", conv_bn_act(8)),))
    pairs = Pairs(*boundaries[:3])
    plain, with_tail = (
        distil(started(first, first["own"], 0)[0], pairs, replace(QUICK.how, tail=tail), tail=pieces[1]).module for tail in (False, True)
    )
    before, after = (local_error(one, pairs, pieces[1]).relative_mse for one in (plain, with_tail))
    assert after < before
    with torch.no_grad():
        given, target = pieces[1](with_tail(rows(boundaries[0], slice(None)))), rows(boundaries[2], slice(None))
    assert after == pytest.approx(float(((given - target) ** 2).sum() / (target**2).sum()), rel=1e-4)
    assert not any(parameter.grad is not None for parameter in pieces[1].parameters())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"copies": -1}, "copies=-1 .a whole number"), ({"noise": 1}, "noise=1 .None, or at least 2"), ({"real": 5}, "real=5 .0 without noise"),
        ({"noise": 64, "copies": 2}, "takes the place of the data"), ({"allowed": 0.0}, "allowed=0.0 "), ({"kappa": 2.0}, "kappa=2.0 "),
        ({"levels": ()}, "at least one, above 0, rising"), ({"levels": (0.1, 0.01)}, "rising"),
    ],
)  # fmt: skip
def test_a_library_of_students_says_what_it_cannot_be_made_with(given, said):
    with pytest.raises(NeighbourhoodError, match=said):
        Settings(**given)


# --- works when 2: independence ---


def test_a_candidate_trained_alone_beside_others_or_in_another_process_has_the_same_bits(teacher, library, tmp_path):
    places = described(NETWORK, teacher, variants=two)
    alone = build_library([_only(one, "separable" if at == 1 else None) for at, one in enumerate(places)], TASK, tmp_path / "alone", QUICK)
    with Pool(1, train_candidate) as pool:

        def run(jobs):
            for done in [pool.submit(*job) for job in jobs]:
                done.result()

        beside = build_library(places, TASK, tmp_path / "beside", QUICK, run=run)
    for found in (alone, beside):
        assert bits(found.module(places[1], "separable")) == bits(library.module(places[1], "separable"))
    for one in places:
        for candidate in one.candidates:
            assert bits(beside.module(one, candidate.name)) == bits(library.module(one, candidate.name)), (one.name, candidate.name)
    assert {path.name for path in (tmp_path / "alone").glob("student-*")} < {path.name for path in library.folder.glob("student-*")}


def _only(one, name):
    kept = tuple(each for each in one.candidates if each.name in (KEEP, name))
    return Neighbourhood(one.name, one.teacher, one.input_shape, one.output_shape, kept, one.layer)


def test_what_was_trained_is_found_again_and_other_settings_train_anew(teacher, library):
    asked = []

    def run(jobs):
        asked.extend(jobs)
        one_by_one(jobs)

    places = described(NETWORK, teacher, variants=two)
    build_library(places, TASK, library.folder, QUICK, run=run)
    assert not asked
    build_library([_only(one, "separable") for one in places], TASK, library.folder, QUICK, run=run, seed=1)
    assert len(asked) == 3


# --- works when 3, small: put together ---


def test_an_assembled_student_is_one_plain_network(library):
    arch = {one.name: "separable" if len(one.candidates) > 1 else KEEP for one in library.neighbourhoods}
    told = figures(library, arch)
    assert told["accuracy"]["teacher"] > 0.9
    assert set(told["accuracy"]) == {"teacher", "assembled", "recalibrated"}
    assert told["costs"]["macs"] == COSTS["macs"](library.network(arch))(space_of(library.network(arch)).architecture({}))
    student = library.assemble(arch)
    plain = library.plain(arch, student)
    inputs, _ = TASK.batch(TASK.part("test")[:16], torch.device("cpu"))
    assert isinstance(plain, fx.GraphModule)
    assert torch.allclose(plain(inputs), student(inputs), atol=1e-6)
    again = recalibrated(library, arch)
    changed = [bits(a) != bits(b) for a, b in zip(library.pieces(arch), again.children(), strict=True)]
    assert changed[:3] == [True, True, True]
    assert all(torch.equal(a, b) for a, b in zip(library.assemble(arch).parameters(), again.parameters(), strict=True))


def test_recalibration_finds_the_statistics_that_a_network_has_lost(library):
    """Of the teacher, put together of its own pieces: students of so short a training are near chance with any statistics."""
    arch = {one.name: KEEP for one in library.neighbourhoods}
    lost = library.assemble(arch)
    for layer in lost.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.fill_(1.0)
            layer.running_var.fill_(0.01)
    test = TASK.part("test")
    whole, ruined = (evaluate(one, TASK, test)["accuracy"] for one in (library.assemble(arch), lost))
    assert recalibrated(library, arch, lost) is lost, "nothing was replaced, so all statistics are the teacher's own"
    first = library.neighbourhoods[0].name
    found = evaluate(recalibrated(library, {**arch, first: "separable"}, lost), TASK, test)["accuracy"]  # from there on
    assert ruined < 0.5 < 0.85 < whole
    assert abs(found - whole) < 0.05


def test_drift_training_reads_what_the_students_before_give(library, tmp_path):
    arch = {one.name: "separable" if len(one.candidates) > 1 else KEEP for one in library.neighbourhoods}
    students = library.pieces(arch)
    pairs = drift_pairs(students, library.boundaries[0], library.boundaries[0][0], tmp_path, at=2)
    inputs = rows(library.boundaries[0][0], slice(0, 32))
    with torch.no_grad():
        assert torch.allclose(rows(pairs.inputs, slice(0, 32)), students[1](students[0](inputs)), atol=1e-5)
    assert pairs.targets == library.boundaries[0][3]
    trained = list(drifted(library, arch).children())
    changed = [bits(a) != bits(b) for a, b in zip(students, trained, strict=True)]
    assert changed == [False, True, True, False]  # the first reads what the teacher reads, the head stays
    again = drift_pairs(trained, library.boundaries[0], library.boundaries[0][0], tmp_path / "again", at=2)
    assert local_error(trained[2], again).relative_mse < local_error(students[2], again).relative_mse


# --- works when 4, small: what a boundary bears ---


def test_noise_has_the_relative_variance_it_says_and_the_threshold_lies_between(pieces, boundaries):
    seen = []

    class Looks(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 10)

    hold = TASK.part("train")
    noise_curve([Looks()], boundaries[2], TASK, hold, (0.01, 0.25))
    x = rows(boundaries[2], slice(None))
    half = len(seen) // 2
    for level, parts in ((0.01, seen[:half]), (0.25, seen[half:])):
        noise = torch.cat(parts) - x
        assert float((noise**2).sum() / (x**2).sum()) == pytest.approx(level, rel=0.02)
    curve = noise_curve(pieces[2:], boundaries[2], TASK, hold, (1e-3, 1e-2, 0.1, 1.0, 10.0))
    assert curve[0] > curve[-1] + 0.2
    assert threshold((0.01, 0.1, 1.0), (0.9, 0.89, 0.79), 0.9, 0.06) == pytest.approx(math.sqrt(0.1))
    assert threshold((0.01, 0.1), (0.9, 0.9), 0.9, 0.01) == 0.1
    assert threshold((0.01, 0.1), (0.5, 0.2), 0.9, 0.04) == pytest.approx(0.001)


# --- works when 5, small: choosing is exact ---


def made_up(seed, decisions=4, options=4):
    """A library of random errors and costs, of which nothing was trained."""
    rng = np.random.default_rng(seed)
    module = nn.Conv2d(2, 2, 1)
    places, trained = [], {}
    for at in range(decisions):
        names = [KEEP, *(f"c{k}" for k in range(1, options))]
        shape = (2, 8, 8)
        layers = [conv_bn_act(2, 3), *(Chain(*[conv_bn_act(2, 1)] * int(k)) for k in rng.permutation(np.arange(1, 8))[: options - 1])]
        places.append(Neighbourhood(f"n{at}", module, shape, shape, tuple(Candidate(n, x) for n, x in zip(names, layers, strict=True))))
        for k, name in enumerate(names):
            trained[f"n{at}", name] = Trained(LocalError(0.0 if k == 0 else float(rng.lognormal(-2, 1)), 1.0, 1.0), (), 0.0)
    bears = tuple(rng.uniform(0.1, 1.0, decisions).tolist())
    return Library(tuple(places), TASK, Settings(), trained, bears, (), 1.0, ((), ()), None, 0)


def everything(library):
    return [
        library.space.architecture(dict(zip([d.name for d in library.space], row, strict=True)))
        for row in product(*(d.options for d in library.space))
    ]


@pytest.mark.parametrize("seed", range(6))
def test_the_knapsack_finds_what_brute_force_finds(seed):
    library = made_up(seed)
    macs, error = library.costs["macs"], library.error
    every = everything(library)
    within_error = [macs(arch) for arch in every if error(arch) <= UNIT]
    assert macs(knapsack(library)) == min(within_error)
    for share in ("90%", "75%", "55%"):
        limits = library.limits(parse_budget(f"macs<={share}"))
        best = min((error(arch) for arch in every if all(limit.cost(arch) <= limit.upper for limit in limits)), default=None)
        if best is None:
            with pytest.raises(BudgetError):
                knapsack(library, limits)
        else:
            found = knapsack(library, limits)
            assert error(found) == best
            assert macs(found) <= limits[0].upper


@pytest.mark.parametrize("seed", range(6))
def test_the_local_choice_is_the_cheapest_admissible_candidate_of_each_piece(seed):
    library = made_up(seed)
    chosen = local(library)
    for one, shares in zip(library.neighbourhoods, library.shares(), strict=True):
        macs = {each.name: _macs_of(one, each) for each in one.candidates}
        admissible = [each.name for each, share in zip(one.candidates, shares, strict=True) if share <= library.settings.kappa]
        assert macs[chosen[one.name]] == min(macs[name] for name in admissible)


def _macs_of(one, candidate):
    network = one.network(candidate.layer)
    return COSTS["macs"](network)(space_of(network).architecture({}))


def test_costs_of_combinations_are_those_of_the_assembled_network_for_every_budget(library):
    for arch in everything(library)[::3]:
        network = library.network(arch)
        for name, count in COSTS.items():
            assert library.costs[name](arch) == count(network)(space_of(network).architecture({})), name
    found = knapsack(library, library.limits(parse_budget("macs<=60% and params<=1M and peak_activation<=100k")))
    assert library.costs["macs"](found) <= 0.6 * library.of_teacher("macs")
    with pytest.raises(BudgetError, match="the least is"):
        knapsack(library, library.limits(parse_budget("macs<=1%")))


def test_two_errors_that_differ_by_a_billionth_are_told_apart():
    space = Space((Decision("a", ("x", "y", "z")), Decision("b", ("x", "y"))))
    cost = additive("error", space, ((0.5 + 1e-9, 0.5, 100.0), (1.0, 1.0 - 1e-9)))
    assert dict(least(cost, ())) == {"a": "y", "b": "y"}


def test_the_greedy_choice_measures_every_step_and_keeps_the_budget(library):
    limits = library.limits(parse_budget("macs<=60%"))
    found = greedy(library, limits)
    assert library.costs["macs"](found) <= limits[0].upper
    free = greedy(library, most_drop=0.02)
    assert accuracy(library, free) >= library.clean - 0.02
    assert library.costs["macs"](free) <= library.of_teacher("macs")


def test_a_greedy_search_for_one_limit_does_not_go_back_and_forth_for_another_cost(monkeypatch):
    """The second option saves multiply-adds and has more parameters, the third the reverse: measured best is what undoes the last step."""
    library = made_up(0, decisions=1, options=3)
    library.__dict__["costs"] = {
        "macs": additive("macs", library.space, ((100, 50, 200),)), "params": additive("params", library.space, ((100, 120, 80),)),
    }  # fmt: skip
    monkeypatch.setattr("niwaki.recipe.student_search.accuracy", lambda _, arch: {KEEP: 0.9, "c1": 0.95, "c2": 0.1}[arch["n0"]])
    assert dict(greedy(library, [Limit(library.costs["params"], 90 * UNIT)])) == {"n0": "c2"}


def test_the_accuracy_of_a_combination_is_that_of_the_module_it_is(library):
    for arch in (library.teacher, {**library.teacher, "b2": "separable"}, {**library.teacher, "b1": "width-0.5", "b3": "separable"}):
        expected = evaluate(library.assemble(arch), TASK, TASK.part("validation"))["accuracy"]
        assert accuracy(library, arch) == pytest.approx(expected, abs=1e-9)
    swaps = swapped_losses(library)
    assert swaps(library.space.architecture(library.teacher)) == 0


# --- noise in place of data ---


def test_the_moments_behind_batch_norm_relu_and_sums_are_those_of_the_tensors():
    """On normal inputs the moments of x, relu(BN(x)), and sums of independent terms are met by what the layers give."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6)
    norm.weight.data.uniform_(0.5, 2), norm.bias.data.uniform_(-1, 1)
    traced = fx.symbolic_trace(nn.Sequential(norm, nn.ReLU()))
    first, second = boundary_moments([traced, nn.Identity()], 6)
    given = nn.functional.relu(norm.train()(torch.randn(400, 6, 8, 8)))
    mean, variance = second.after
    assert torch.allclose(given.mean((0, 2, 3)), mean, atol=0.02)
    assert torch.allclose(given.var((0, 2, 3)), variance, rtol=0.05)
    drawn = torch.cat(list(gaussian_inputs(second, (6, 8, 8), 400, seed=0)))
    assert float(drawn.min()) == 0.0
    assert torch.allclose(drawn.mean((0, 2, 3)), mean, atol=0.02)
    assert torch.equal(first.std, torch.ones(6))

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(6, affine=False)

        def forward(self, x):
            return self.norm(x).relu()

    _, plain = boundary_moments([nn.Sequential(nn.Identity(), fx.symbolic_trace(Own())), nn.Identity()], 6)
    assert plain.rectified
    assert torch.equal(plain.std, torch.ones(6))
    real = torch.full((3, 6, 8, 8), 7.0)
    mixed = torch.cat(list(gaussian_inputs(second, (6, 8, 8), 10, seed=0, real=real)))
    assert torch.equal(mixed[:3], real)
    assert len(mixed) == 10


def test_students_learn_from_noise_alone(teacher, tmp_path):
    settings = Settings(
        Distilling(Recipe(**{**vars(ADAM), "epochs": 6, "batch_size": 32, "lr": 3e-3})), noise=512, levels=(0.1,), inherit=False
    )
    places = described(NETWORK, teacher, variants=lambda layer, shape: variants_of(layer, shape, widths=(0.75,))[:1])
    library = build_library(places, TASK, tmp_path, settings)
    arch = {one.name: one.candidates[-1].name for one in places}
    assert all(library.trained[key].error.relative_mse < 0.9 for key in arch.items())  # of true examples; giving 0 would have 1
    with pytest.raises(NeighbourhoodError, match="was made without any"):
        drifted(library, arch)


# --- modules without a description ---


def test_a_module_of_ones_own_is_cut_and_searched_by_its_shapes(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10),
    )  # fmt: skip
    trained = train(module, TASK, Recipe(epochs=2, batch_size=32, lr=0.05), TASK.part("train"))
    shapes = [(1, 8, 8), (8, 8, 8), (12, 4, 4), (10,)]
    sets = [stand_ins(a, b, positive=True) for a, b in pairwise(shapes)]
    assert [len(one) for one in sets] == [4, 4, 0]
    library = build_library(undescribed(trained, ["2", "5"], shapes, [sets[0][-1:], sets[1][-1:], []]), TASK, tmp_path, QUICK)
    assert library.of_teacher("macs") == 9 * 8 * 64 + 9 * 8 * 12 * 16 + 192 * 10
    found = knapsack(library, library.limits(parse_budget("macs<=60%")))
    assert library.costs["macs"](found) == count_module_macs(library.assemble(found), (1, 8, 8)) <= 0.6 * library.of_teacher("macs")
    assert library.network(found) is None
    with pytest.raises(BudgetError, match="is not counted of modules without a description"):
        library.limits(parse_budget("activations<=50%"))


def test_moments_draw_what_they_say():
    drawn = Moments(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])).draw(4000, (2, 2, 2), torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean((0, 2, 3)), torch.tensor([1.0, -2.0]), atol=0.1)
    assert torch.allclose(drawn.std((0, 2, 3)), torch.tensor([0.5, 3.0]), rtol=0.05)


# --- the whole of it, for a user ---


def test_a_student_for_each_budget_from_one_library_tuned_and_exported(teacher, library, monkeypatch, capsys):
    given = {"network": NETWORK, "variants": two, "settings": QUICK, "out": library.folder.parent, "workers": 1}
    found = student_search(
        teacher, TASK, "macs<=75%; macs<=50%", tune=Recipe(epochs=1, batch_size=32, lr=0.01), drift=True, export=False, **given
    )
    told = json.loads((library.folder.parent / "students.json").read_text())
    assert [one["budget"] for one in told] == ["macs<=75%", "macs<=50%"]
    for student, share in zip(found.students, (0.75, 0.5), strict=True):
        assert student.figures["costs"]["macs"] <= share * library.of_teacher("macs")
        assert set(student.figures["accuracy"]) == {"teacher", "assembled", "recalibrated", "drift", "tuned"}
        assert set(student.figures["errors"]) == {"b1", "b2", "b3", "head"}
    (student,) = student_search(teacher, TASK, "macs<=50%", **given).students
    folder = library.folder.parent / "student-1"
    card = json.loads((folder / "architecture.json").read_text())
    assert card["macs"] == student.figures["costs"]["macs"]
    assert card["metrics"] == {"test": {"accuracy": student.figures["accuracy"]["recalibrated"]}}
    logits = ExportedModel(folder / "model.onnx").logits(TASK.images.test_images[:8])
    inputs, _ = TASK.batch(TASK.part("test")[:8], torch.device("cpu"))
    assert np.allclose(logits, student.module(inputs).detach(), atol=1e-3)
    for images, said in (
        (replace(TASK.images, images=255 - TASK.images.images), "normalised its images by mean"),
        (replace(TASK.images, class_names=tuple("abcdefghij")), "tells apart 0, 1"),
    ):
        with pytest.raises(ModelError, match=said):
            student_search(folder, ImageClassification(images), **{**given, "network": None})
    # the example, with this student as what its search found: a student teaches, too
    short = {**given, "network": None, "out": folder / "next", "variants": lambda layer, shape: two(layer, shape)[-1:], "export": False}
    monkeypatch.setattr(niwaki, "search", lambda **_: SimpleNamespace(folder=folder))
    monkeypatch.setattr(niwaki, "student_search", lambda where, task, budget, tune: student_search(where, task, budget, **short))
    runpy.run_path(str(Path(niwaki.__file__).parents[2] / "examples" / "students.py"))
    told = capsys.readouterr().out
    assert told.count("multiply-adds; test accuracy") == 2
    assert "macs<=50%" in told


def test_any_module_is_cut_in_pieces_of_about_equal_size_and_loses_channels_that_nothing_outside_sees(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two, self.three = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 8, 3, 2, 1)
            self.norm, self.four, self.last = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(128, 10)

        def forward(self, x):
            x = self.norm(self.three(self.two(self.one(x).relu()).relu())).relu()
            return self.last((x + self.four(x)).flatten(1))

    torch.manual_seed(0)
    module = train(Own(), TASK, Recipe(epochs=1, batch_size=32, lr=0.02), TASK.part("train"))
    found = student_search(module, TASK, "macs<=60%", settings=QUICK, out=tmp_path, workers=1)
    names = {one.name for place in found.library.neighbourhoods for one in place.candidates}
    assert any(name.startswith("cut-") for name in names)
    assert found[0].figures["costs"]["macs"] == count_module_macs(found[0].module, (1, 8, 8)) <= 0.6 * count_module_macs(module, (1, 8, 8))
    inputs, _ = TASK.batch(TASK.part("test")[:8], torch.device("cpu"))
    logits = ExportedModel(tmp_path / "student-1" / "model.onnx").logits(TASK.images.test_images[:8])
    assert np.allclose(logits, found[0].module(inputs).detach(), atol=1e-3)
    for place_ in found.library.neighbourhoods:  # no candidate is dearer than what it stands for
        macs = [found.library.costs["macs"].factors[found.library.neighbourhoods.index(place_)].table]
        assert all(table.argmax() == 0 for table in macs)


class Flow(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, x):
        if x.sum() > 0:
            return self.last(x.flatten(1))
        return -self.last(x.flatten(1))


def test_what_student_search_cannot_begin_with_is_said_before_anything_is_trained(teacher, tmp_path):
    given = {"settings": QUICK, "out": tmp_path, "workers": 1}
    teacher.train()
    with pytest.raises(NeighbourhoodError, match="cuts would change nothing of a teacher with a description"):
        student_search(teacher, TASK, network=NETWORK, cuts=["b1_act"], **given)
    with pytest.raises(NeighbourhoodError, match="blocks and variants would change nothing of a teacher without a description"):
        student_search(teacher, TASK, blocks=True, variants=two, **given)
    with pytest.raises(NeighbourhoodError, match=r"reads \(1, 16, 16\), the examples of .* are \(1, 8, 8\)"):
        student_search(teacher, TASK, network=replace(NETWORK, input_shape=(1, 16, 16)), **given)
    with pytest.raises(NeighbourhoodError, match="noise=64 takes the place"):
        student_search(teacher, TASK, network=NETWORK, drift=True, **{**given, "settings": replace(QUICK, noise=64)})
    seven = build(Network(Chain(block(8, 1, "b1"), classifier(7)), (1, 8, 8)))
    with pytest.raises(DistillationError, match=r"gives \(7,\) numbers"):
        student_search(seven, TASK, **given)
    with pytest.raises(AdoptionError, match=r"test_neighbourhood\.py:\d+, in forward: `if x\.sum\(\) > 0:`: a branch or a size depends on"):
        student_search(Flow(), TASK, **given)
    with pytest.raises(ModelError, match=r"has no architecture\.json"):
        student_search(tmp_path, TASK, **given)
    with pytest.raises(BudgetError, match="the least is"):
        student_search(teacher, TASK, "macs<=50%; macs<=1%", network=NETWORK, variants=two, **given)
    assert teacher.training  # it is the caller's
    teacher.eval()
    assert not any(tmp_path.iterdir())
