"""Neural predictor and NAO: layers by hand, tokens both ways, what the gradient moves, and the strategies' phases.

The specifications' checks 2 to 6 on NAS-Bench-201 (methods/neural_predictor.md, methods/nao.md) are experiments: `niwaki reproduce
neural_predictor` and `niwaki reproduce nao`.
"""

from random import Random

import numpy as np
import pytest
import torch

from niwaki import zoo
from niwaki.factor.factor import Limit
from niwaki.factor.within import within
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.objective import Objective, parse_budget
from niwaki.predictor.graph import (
    Fitted,
    GraphConvolution,
    GraphPredictor,
    GraphRecipe,
    Graphs,
    PredictorError,
    TwoStage,
    fit_regressor,
    fit_two_stage,
    normalised,
)
from niwaki.predictor.sequence import SequenceRecipe, fit_autoencoder, moved
from niwaki.recipe import nao, neural_predictor
from niwaki.space.rows import genotype_keys
from niwaki.space.space import Space
from niwaki.strategy.nao import NAO
from niwaki.strategy.neural_predictor import NeuralPredictor, graphs_of
from niwaki.strategy.scores import scores_of
from niwaki.strategy.tokens import Tokens
from niwaki.testing.toy import toy_evaluate, toy_macs, toy_space
from niwaki.trial import Trial
from niwaki.zoo import nao as zoo_nao

QUICK = GraphRecipe(epochs=30, lr=3e-3, width=16, head=16, layers=2)
SHORT = SequenceRecipe(epochs=60, embedding=8, hidden=16, mlp_width=16, batch_size=64)


def run(strategy, space, evaluate, evaluations, batch=8):
    state, trials = strategy.init(space), []
    while len(trials) < evaluations:
        asked = strategy.ask(state, min(batch, evaluations - len(trials)), Random(f"0/{len(trials)}"), pending=())
        if not asked:
            break
        told = [Trial(len(trials) + at, arch, evaluate(arch), strategy.name) for at, arch in enumerate(asked)]
        state = strategy.tell(state, told)
        trials += told
    return state, trials


# --- the graph convolution ---------------------------------------------------------------------------------------------------------


def test_a_graph_convolution_with_identities_as_weights_is_as_by_hand():
    """0 -> 1 -> 2. Rows of Norm(A + I): (1/2, 1/2, 0), (0, 1/2, 1/2), (0, 0, 1); of Norm(A^T + I): (1, 0, 0), (1/2, 1/2, 0), (0, 1/2, 1/2)."""
    layer = GraphConvolution(2, 2)
    with torch.no_grad():
        layer.along.weight.copy_(torch.eye(2))
        layer.against.weight.copy_(torch.eye(2))
    adjacency = torch.tensor([[[0.0, 1, 0], [0, 0, 1], [0, 0, 0]]])
    nodes = torch.tensor([[[1.0, -1.0], [3.0, 2.0], [5.0, -4.0]]])
    out = layer(nodes, normalised(adjacency), normalised(adjacency.transpose(1, 2)))
    assert out.tolist() == [[[(2 + 1) / 2, (0.5 + 0) / 2], [(4 + 2) / 2, (0 + 0.5) / 2], [(5 + 4) / 2, 0.0]]]


def random_graphs(count=6, size=5, features=4, seed=0):
    rng = np.random.default_rng(seed)
    adjacency = np.triu(rng.random((count, size, size)) < 0.5, 1).astype(np.float32)
    return Graphs(np.eye(features, dtype=np.float32)[rng.integers(features, size=(count, size))], adjacency, np.ones((count, size), bool))


def predictor(features=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Fitted(GraphPredictor(features).eval(), 0.0, 1.0)


def test_the_order_of_nodes_and_padding_change_no_prediction():
    graphs, predict = random_graphs(), predictor()
    order = np.random.default_rng(1).permutation(5)
    shuffled = Graphs(graphs.nodes[:, order], graphs.adjacency[:, order][:, :, order], graphs.real)
    assert np.abs(predict(graphs) - predict(shuffled)).max() <= 1e-6
    nodes = np.concatenate([graphs.nodes, np.ones((6, 3, 4), np.float32)], axis=1)
    adjacency = np.ones((6, 8, 8), np.float32)
    adjacency[:, :5, :5] = graphs.adjacency
    padded = Graphs(nodes, adjacency, np.arange(8)[None, :].repeat(6, 0) < 5)
    assert np.abs(predict(graphs) - predict(padded)).max() <= 1e-6


def test_graphs_that_do_not_fit_and_targets_that_are_no_numbers_are_refused():
    graphs = random_graphs()
    with pytest.raises(PredictorError, match="do not fit"):
        Graphs(graphs.nodes, graphs.adjacency[:, :4], graphs.real)
    with pytest.raises(PredictorError, match="one target for each"):
        fit_regressor(graphs, np.zeros(5), QUICK, seed=0)
    with pytest.raises(PredictorError, match="no finite number"):
        fit_regressor(graphs, np.array([0, 1, 2, 3, 4, np.nan]), QUICK, seed=0)


def test_a_fit_comes_again_by_its_seed_in_the_unit_of_its_targets_and_knows_nothing_of_an_offset():
    graphs = random_graphs(40)
    targets = graphs.nodes[:, :, 0].sum(1).astype(float)
    first, again = (fit_regressor(graphs, targets, QUICK, seed=3)(graphs) for _ in range(2))
    assert (first == again).all()
    assert np.corrcoef(first, targets)[0, 1] > 0.9
    moved_up = fit_regressor(graphs, 1000 + 10 * targets, QUICK, seed=3)(graphs)
    assert np.allclose(moved_up, 1000 + 10 * first, atol=0.05)
    assert (fit_regressor(graphs, targets, QUICK, seed=4)(graphs) != first).any()


def test_two_stages_tell_failures_from_the_rest_and_the_regressor_sees_the_good_alone():
    graphs = random_graphs(120)
    failed = graphs.nodes[:, :, 0].sum(1) >= 2
    good = graphs.nodes[:, :, 1].sum(1).astype(float)
    targets = np.where(failed, -50.0, good)
    predict = fit_two_stage(graphs, targets, QUICK, threshold=-1, seed=0)
    assert isinstance(predict, TwoStage)
    predicted = predict(graphs)
    accepted = predict.classifier(graphs) >= 0.5
    assert (accepted == ~failed).mean() > 0.9
    assert predicted[~accepted].max() < predicted[accepted].min()
    assert np.corrcoef(predicted[~failed], good[~failed])[0, 1] > 0.9
    assert isinstance(fit_two_stage(graphs, good, QUICK, threshold=-1, seed=0), Fitted), "where none failed, one stage"


def test_the_graph_of_a_space_is_how_data_flow_between_its_decisions():
    """NAS-Bench-201: an operation on an edge is read by those on the edges that leave where it ends."""
    flow = space_of(zoo.network("nasbench201")).flow()
    edges = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    expected = np.zeros((8, 8))
    for i, (a, b) in enumerate(edges, 1):
        expected[0, i], expected[i, 7] = a == 0, b == 3
        expected[i, 1:7] = [c == b for c, _ in edges]
    assert (flow == expected).all()
    chain = space_of(zoo.network("nasbench-macro")).flow()
    assert (chain == np.eye(10, k=1)).all()
    toy = toy_space()
    rows = np.array(toy.indices(toy.enumerate()), dtype=np.int32)
    graphs = graphs_of(toy, rows)
    assert (graphs.real[:, 1:-1] == [[decision.name in arch for decision in toy] for arch in toy.enumerate()]).all()
    assert (graphs.nodes.sum(2) == 1).all()


# --- tokens ------------------------------------------------------------------------------------------------------------------------


def test_architectures_are_sequences_of_tokens_and_back():
    space = toy_space()
    tokens, rows = Tokens(space), np.array(space.indices(space.enumerate()), dtype=np.int32)
    spelled = tokens.of(rows)
    assert len(np.unique(spelled, axis=0)) == space.size
    assert (tokens.rows(spelled) == rows).all()
    widths = [spelled[:, space.position(f"block{block}.width")] for block in range(3)]
    assert set(widths[0]) == set(widths[1]) - {0} == set(widths[2]) - {0}, "equal options are one token wherever they are"


def test_what_is_legal_at_a_place_is_what_some_architecture_has_there():
    space = toy_space()
    tokens, rows = Tokens(space), np.array(space.indices(space.enumerate()), dtype=np.int32)
    spelled = tokens.of(rows)
    for position in range(tokens.length):
        legal = tokens.legal(spelled, position)
        for before in np.unique(spelled[:, :position], axis=0):
            alike = (spelled[:, :position] == before).all(1)
            assert set(np.flatnonzero(legal[np.flatnonzero(alike)[0]])) == set(spelled[alike, position])


def test_sequences_that_spell_no_architecture_are_rejected_with_the_place():
    space = toy_space()
    tokens = Tokens(space)
    spelled = tokens.of(np.array(space.indices(list(space.enumerate())[:1]), dtype=np.int32))
    absent = space.position("block2.width")
    spelled[0, absent] = tokens.of(np.array(space.indices([space.architecture(deep())]), dtype=np.int32))[0, absent]
    with pytest.raises(ValueError, match=r"sequence 0 has the token \d+ for 'block2.width'"):
        tokens.rows(spelled)
    spelled[0, absent], spelled[0, 0] = 0, tokens.vocabulary - 1
    with pytest.raises(ValueError, match="'depth', which is none of"):
        tokens.rows(spelled)


def deep():
    found = {"depth": 3, "block1.kind": "plain"}
    return found | {f"block{block}.{name}": option for block in range(3) for name, option in (("width", 8), ("kernel", 3))}


# --- NAO ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def autoencoder():
    space = toy_space()
    tokens, rows = Tokens(space), np.array(space.indices(space.enumerate()), dtype=np.int32)
    scores = np.array([toy_evaluate(space)(arch)["accuracy"] for arch in space.enumerate()])
    recipe = SequenceRecipe(epochs=150, embedding=16, hidden=32, mlp_width=32, dropout=0.0, trade_off=0.5)
    return space, tokens, rows, fit_autoencoder(tokens.of(rows), scores, tokens.vocabulary, recipe, seed=0)


def test_steps_and_embeddings_have_length_one_and_what_is_decoded_is_an_architecture(autoencoder):
    _, tokens, rows, model = autoencoder
    steps = model.encode(torch.from_numpy(tokens.of(rows)))
    assert torch.allclose(steps.norm(dim=-1), torch.ones(()), atol=1e-5)
    there = moved(model, steps, 1000.0)
    assert torch.allclose(there.norm(dim=-1), torch.ones(()), atol=1e-5)
    found = tokens.rows(model.decode(there.detach(), tokens.legal))  # raises where it spells none
    assert len(found) == len(rows)


def test_what_was_encoded_is_decoded_again(autoencoder):
    _, tokens, rows, model = autoencoder
    spelled = tokens.of(rows)
    with torch.no_grad():
        assert (model.decode(model.encode(torch.from_numpy(spelled)), tokens.legal) == spelled).mean() > 0.97


def test_the_gradient_that_moves_the_steps_is_that_of_the_predicted_score(autoencoder):
    _, tokens, rows, model = autoencoder
    exact = model.double()
    steps = exact.encode(torch.from_numpy(tokens.of(rows[:3]))).detach()
    variable = steps.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(exact.score(variable).sum(), variable)
    there = moved(exact, steps, 0.25)
    assert torch.allclose(there, torch.nn.functional.normalize(steps + 0.25 * gradient, dim=-1), atol=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(20):
        at = tuple(int(rng.integers(size)) for size in steps.shape)
        low, high = steps.clone(), steps.clone()
        low[at] -= 1e-6
        high[at] += 1e-6
        numeric = float((exact.score(high) - exact.score(low)).sum().detach()) / 2e-6
        assert numeric == pytest.approx(float(gradient[at]), rel=1e-3, abs=1e-8)
    model.float()


def test_nao_fills_its_pool_at_random_and_then_moves_the_best_to_architectures_that_are_new():
    space = space_of(zoo.network("nasbench201"))
    strategy = NAO(first=24, per_round=8, seeds=24, recipe=SHORT)

    def evaluate(arch):
        return {"accuracy": sum(option == "nor_conv_3x3" for option in arch.values()) / 6}

    state, trials = run(strategy, space, evaluate, 40)
    assert state.ends == (24, 32, 40)
    drawn, _ = run(NAO(first=40, recipe=SHORT), space, evaluate, 24)
    assert [m.arch for m in drawn.ok] == [trial.arch for trial in trials[:24]], "the pool is the random numbers' alone"
    pool = strategy.tell(strategy.init(space), trials[:24])
    generated = list(strategy.generated(pool))
    known = space.canonical_keys(np.array(space.indices(trial.arch for trial in trials[:24]), dtype=np.int32)).tolist()
    new = space.canonical_keys(np.array(generated)).tolist()
    assert 1 <= len(new) == len(set(new)) <= 8
    assert not set(new) & set(known)
    proposed = space.indices(trial.arch for trial in trials[24:32])
    assert proposed[: len(new)] == [row.tolist() for row in generated], "and where too few were found, the rest is drawn"
    assert np.mean([t.metrics["accuracy"] for t in trials[24:]]) > np.mean([t.metrics["accuracy"] for t in trials[:24]])
    assert list(strategy.generated(strategy.init(space))) == []


# --- the neural predictor as a strategy --------------------------------------------------------------------------------------------


def test_the_neural_predictor_proposes_what_it_predicts_best_of_what_is_different_and_fits_once():
    space = space_of(zoo.network("nasbench201"))
    strategy = NeuralPredictor(first=24, recipe=QUICK)

    def evaluate(arch):
        return {"accuracy": sum(option == "nor_conv_3x3" for option in arch.values()) / 6}

    state, trials = run(strategy, space, evaluate, 48)
    assert state.ends == (24,)
    known = np.array(space.indices(trial.arch for trial in trials[:24]), dtype=np.int32)
    keys = space.canonical_keys(np.array(space.indices(trial.arch for trial in trials), dtype=np.int32)).tolist()
    assert len(set(keys[24:])) == 24
    assert not set(keys[24:]) & set(space.canonical_keys(known).tolist())
    assert np.mean([t.metrics["accuracy"] for t in trials[24:]]) > np.mean([t.metrics["accuracy"] for t in trials[:24]]) + 0.2
    ranked = [row.tolist() for row, _ in zip(strategy.ranked(state), range(10), strict=False)]
    proposed = strategy.ask(state, 10, Random(1), pending=())
    assert [space.indices([arch])[0] for arch in proposed] == ranked, "the same whatever the random numbers are"
    refitted, _ = run(NeuralPredictor(first=24, refit=8, recipe=QUICK), space, evaluate, 40)
    assert refitted.ends == (24, 32, 40)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NeuralPredictor(first=0), "first=0"),
        (lambda: NeuralPredictor(good=1.5), "good=1.5"),
        (lambda: NAO(seeds=0), "seeds=0"),
        (lambda: GraphRecipe(lr=0), "above 0"),
        (lambda: SequenceRecipe(trade_off=2), "trade_off is from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_scores_put_what_is_over_a_limit_below_all_that_is_within_it_by_how_far_it_is_over():
    objective = Objective("accuracy", parse_budget("macs<=100"))
    metrics = [{"accuracy": a, "macs": m} for a, m in ((0.5, 90), (0.7, 100), (0.9, 110), (0.95, 150), (0.1, 400))]
    scores = scores_of(objective, metrics)
    assert scores[1] > scores[0] > scores[2] > scores[3] > scores[4]
    points = [{**one, "accuracy": 100 * one["accuracy"]} for one in metrics]
    assert scores_of(objective, points) == pytest.approx(scores), "in another unit it is the same"
    assert scores_of(Objective("accuracy"), metrics).tolist() == [0.5, 0.7, 0.9, 0.95, 0.1]


@pytest.mark.parametrize(
    ("strategy", "proposed", "told_apart_by"),
    [
        (NeuralPredictor(first=12, recipe=QUICK), lambda strategy, state: strategy.ranked(state), slice(None)),
        (NAO(first=12, per_round=6, seeds=4, most_eta=3, recipe=SHORT), lambda strategy, state: strategy.generated(state), slice(0)),
    ],
    ids=["neural_predictor", "nao"],
)
def test_spaces_of_the_same_decisions_that_know_other_things_of_their_architectures_share_no_result(strategy, proposed, told_apart_by):
    class Alike:
        """As a network in which nothing flows, and in which some decisions change nothing."""

        def keys(self, rows):
            return genotype_keys(rows[:, told_apart_by])

        def paths(self, rows):
            return np.zeros((len(rows), 0), dtype=np.float32)

        def flow(self):
            return np.zeros((len(toy_space()) + 2, len(toy_space()) + 2), dtype=np.float32)

    plain, alike = toy_space(), Space(toy_space().decisions, Alike())
    assert plain == alike
    evaluate, first = toy_evaluate(plain), plain.sample_many(12, np.random.default_rng(0)).tolist()

    def rows(space):
        trials = [Trial(number, space.from_indices(row), evaluate(space.from_indices(row))) for number, row in enumerate(first)]
        return [row.tolist() for row in proposed(strategy, strategy.tell(strategy.init(space), trials))]

    assert rows(plain) != rows(alike)


# --- the recipes -------------------------------------------------------------------------------------------------------------------


def test_naos_cells_are_sequences_of_40_tokens_with_12_words_and_swapping_pairs_changes_nothing_but_their_order():
    space = nao.cells()
    tokens = Tokens(space)
    assert (tokens.length, tokens.vocabulary) == (40, 12)
    rows = space.sample_many(50, np.random.default_rng(0))
    spelled = tokens.of(rows)
    rewritten = nao.swapped(tokens, spelled, np.random.default_rng(1))
    assert (tokens.rows(rewritten) == tokens.rows(rewritten)).all()

    def nodes(sequence):
        return [tuple(sorted([tuple(node[:2]), tuple(node[2:])])) for node in sequence.reshape(10, 4).tolist()]

    assert [nodes(a) for a in spelled] == [nodes(b) for b in rewritten]
    changed = (spelled != rewritten).reshape(50, 2, 5, 4).any(3).sum(2)
    assert changed.max() == 1, "one node of each cell at most"
    assert changed.mean() > 0.8
    strategy = nao.published()
    assert (strategy.first, strategy.per_round, strategy.seeds, strategy.recipe.trade_off) == (600, 200, 200, 0.8)


def test_the_published_search_reports_its_cost_and_refuses_more_than_there_are_and_keeps_limits():
    space = toy_space()
    evaluate, limit = toy_evaluate(space), Limit(toy_macs(space), 300)
    inside = within(space, [limit])
    found = neural_predictor.search(inside, evaluate, first=30, top=10, recipe=QUICK)
    assert found.trainings == len({trial.arch for trial in found.trials}) == 40
    assert found.predictions == inside.size - 30
    assert all(trial.metrics["macs"] <= 300 for trial in found.trials)
    assert found.best.metrics["accuracy"] == max(trial.metrics["accuracy"] for trial in found.trials)
    again = neural_predictor.search(inside, evaluate, first=30, top=10, recipe=QUICK)
    assert again.trials == found.trials
    with pytest.raises(PredictorError, match=f"{inside.size} architectures are left .* only {inside.size - 30}"):
        neural_predictor.search(inside, evaluate, first=30, top=inside.size, recipe=QUICK)


def test_all_that_is_left_holds_the_best_and_more_of_the_predicted_best_is_never_worse():
    space = toy_space()
    evaluate = toy_evaluate(space)
    best = [neural_predictor.search(space, evaluate, first=30, top=top, recipe=QUICK).best for top in (5, 20, 80, space.size - 30)]
    accuracies = [trial.metrics["accuracy"] for trial in best]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] == max(evaluate(arch)["accuracy"] for arch in space.enumerate())


def test_the_pairs_of_a_node_swapped_are_the_same_program_and_with_their_weights_swapped_the_same_function():
    small = zoo_nao.nao((3, 16, 16), nodes=3, channels=4)
    space, rng = space_of(small), Random(2)
    for _ in range(3):
        arch = space.sample(rng)
        node = f"normal.node{rng.randrange(2, 5)}"
        flip = {f"{node}.{kind}_{side}": arch[f"{node}.{kind}_{other}"] for kind in ("from", "op") for side, other in ("ab", "ba")}
        other = space.architecture({**arch, **flip})
        keys = space.canonical_keys(np.array(space.indices([arch, other]), dtype=np.int32))
        assert keys[0] == keys[1]
        first, second = build(small, arch, seed=1), build(small, other, seed=2)
        number = node[-1]
        swap = str.maketrans("ab", "ba")
        weights = {}
        normal = [f"cell{at}_node{number}" for at in (0, 2, 4)]  # cells 1 and 3 are reductions
        for name in second.state_dict():
            hit = next((f"{cell}{side}" for cell in normal for side in "ab" if f"{cell}{side}_" in name), None)
            weights[name] = first.state_dict()[name.replace(hit, hit[:-1] + hit[-1].translate(swap)) if hit else name]
        second.load_state_dict(weights)
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            difference = (first.eval()(images) - second.eval()(images)).abs().max()
        assert float(difference) <= 1e-5
