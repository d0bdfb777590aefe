"""The table of digits networks: what is picked for several devices, what a search is worth over time, and that it comes again."""

from dataclasses import replace

import numpy as np
import pytest

from niwaki.net.place import space_of
from niwaki.net.program import distinct
from niwaki.recipe import multihardware
from niwaki.recipe.tunas import BETA
from niwaki.run.experiments import multihardware_hosts as hosts
from niwaki.run.experiments import zero_cost_digits as digits
from niwaki.run.experiments.digits_networks import TRAINING, both_seeds, known, members, network, train_member
from niwaki.run.reproduce import reproduce
from niwaki.run.statistics import kendall, kendall_resampled
from niwaki.trial import Trial


def test_the_space_has_216_networks_of_which_no_two_are_the_same_program():
    assert space_of(network()).size == len(members()) == distinct(network())[0] == 216


# --- the table that comes with the package ---------------------------------------------------------------------------------------


def test_the_table_has_every_network_with_two_trainings_and_three_latencies():
    table = known()
    assert len(table) == 216
    assert [table.place(arch) for arch in members()] == list(range(216))  # a network's number is its row
    for part, images in (("validation", 258), ("test", 360)):
        each = both_seeds(table, part)
        assert table.column(f"{part}_accuracy") == pytest.approx(each.mean(axis=0), abs=1e-3)
        right = each / 100 * images  # accuracies are shares of so many images
        assert right == pytest.approx(right.round(), abs=1e-3)
    for column in hosts.COLUMNS.values():
        assert column in table.small
        assert 0.005 < table.column(column).min() < table.column(column).max() < 5


def test_a_training_is_what_the_table_says_up_to_what_another_machine_rounds():
    found, column = train_member(3, 0, TRAINING), both_seeds(known(), "test")[0]
    assert found["test"] == pytest.approx(column[3], abs=3)
    assert train_member(3, 0, replace(TRAINING, epochs=1))["test"] < column[3] - 10


# --- picks ------------------------------------------------------------------------------------------------------------------------


def test_what_is_picked_is_what_the_recipe_picks_of_all_networks():
    rng = np.random.default_rng(0)
    for _ in range(20):
        accuracy, latency, at = rng.uniform(0.8, 1, 30), rng.uniform(0.5, 2, (3, 30)), int(rng.integers(30))
        targets = dict(zip(hosts.MODES, latency[:, at], strict=True))
        metrics = [dict(zip(hosts.MODES, column, strict=True)) for column in latency.T]
        trials = [Trial(n, members()[n], {"accuracy": accuracy[n], **metrics[n]}) for n in range(30)]
        objectives = {"mean": multihardware.average_case(targets, beta=BETA), "worst": multihardware.worst_case(targets, beta=BETA)}
        objectives |= {mode: multihardware.average_case({mode: targets[mode]}, beta=BETA) for mode in hosts.MODES}
        expected = {name: multihardware.pick(trials, objective).number for name, objective in objectives.items()}
        assert hosts.picks(accuracy, latency, at) == expected


def made(latency, noise=0.0, accuracy=(80, 90, 95, 92), rounds=6):
    """Results of four networks with these latencies (modes, networks), each round slower by up to `noise`; and every second pass exchanged."""
    rng = np.random.default_rng(0)
    trained = [[{"validation": value, "test": value - 1, "seconds": 1.0} for value in accuracy]] * 2
    timed = [
        {mode: [[value * (1 + noise * rng.random()) for _ in range(rounds)] for value in row] for mode, row in zip(hosts.MODES, latency, strict=True)}
        for _ in range(2)
    ]  # fmt: skip
    return {"numbers": [0, 1, 2, 3], "trained": trained, "timed": timed}


def test_of_latencies_without_noise_every_resample_says_the_same():
    """Network 2 is best for one thread alone, and twice the target elsewhere; 3 is on target everywhere; 1 is the reference."""
    latency = [[0.5, 1, 1, 1], [0.5, 1, 2, 1], [0.5, 1, 2, 1]]
    found = hosts.outcomes(made(latency), 0.5, resamples=5)
    assert hosts.reference_of(np.array(latency), 0.5) == 1
    assert found["one thread"].tolist() == [[1, 2, 2, 2, 94]] * 7
    assert found["worst"].tolist() == [[1, 1, 1, 1, 91]] * 7
    assert hosts.interval(found["one thread"][:, hosts.WORST]) == hosts.Interval(2, 2, 2)


def test_a_pick_is_judged_by_the_pass_that_did_not_pick_it():
    results = made([[1, 1, 1, 1]] * 3, accuracy=(80, 90, 90, 90))
    for mode in hosts.MODES:
        results["timed"][0][mode][0], results["timed"][1][mode][0] = [9.0] * 6, [9.0] * 6  # slow, poor, and never picked
        results["timed"][0][mode][2] = [1.5] * 6  # slow in the first pass alone
        results["timed"][1][mode][1] = [2.0] * 6
    found = hosts.outcomes(results, 0.5, resamples=0)["worst"]
    reference = hosts.reference_of(hosts.samples_of(results).min(axis=(0, 3)), 0.5)
    judged = [hosts.samples_of(results)[judge][0].min(axis=1) for judge in (1, 0)]
    seen = [hosts.samples_of(results)[by].min(axis=2) for by in (0, 1)]
    picked = [hosts.picks(hosts.arrays_of(results)["validation_accuracy"] / 100, one, reference)["worst"] for one in seen]
    assert found[:, hosts.WORST].tolist() == [there[at] / there[reference] for there, at in zip(judged, picked, strict=True)]


# --- rank correlation, and regret over time ---------------------------------------------------------------------------------------


def test_the_tau_of_resamples_is_that_of_the_candidates_drawn():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 9, 40).astype(float), rng.integers(0, 9, 40).astype(float)  # with ties
    picks = rng.integers(40, size=(50, 40))
    counts = np.stack([np.bincount(pick, minlength=40) for pick in picks])
    assert kendall_resampled(a, b, counts) == pytest.approx([kendall(a[pick], b[pick]) for pick in picks], abs=1e-12)
    assert kendall_resampled(np.ones(40), b, counts).tolist() == [0.0] * 50
    with pytest.raises(ValueError, match="finite"):
        kendall_resampled(np.full(40, np.inf), b, counts)


def test_what_has_no_noise_may_pass_another_training_by_so_much():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    first, second = (truth + 0.7 * rng.normal(size=4000) for _ in range(2))
    assert digits.noise_free(kendall(first, second)) == pytest.approx(kendall(truth, first), abs=0.02)
    assert kendall(truth, first) > kendall(first, second) + 0.05


def test_the_mean_over_log_time_is_that_of_a_fine_grid():
    finished, after, span = [0.5, 2.0, 3.0, 30.0], [-1.0, -2.0, -2.5, -9.0], (1.0, 20.0)
    grid = np.exp(np.linspace(*np.log(span), 400_001))
    values = np.concatenate([[0.0], after])[np.searchsorted(finished, grid, "right")]
    assert digits.mean_over_log_time(finished, after, 0.0, span) == pytest.approx(values.mean(), abs=1e-4)


def test_random_search_is_even_with_exact_random_search_and_a_good_one_is_below():
    rng = np.random.default_rng(0)
    told = rng.integers(0, 60, 80).astype(float)
    valued = told + rng.normal(0, 5, 80)

    def search(order):
        return {
            "places": order.tolist(),
            "values": told[order].tolist(),
            "seconds": [2.0] * 25,
            "finished": (2.0 * np.arange(1, 26)).tolist(),
        }

    areas = [digits.less_than_random(search(rng.permutation(80)[:25]), told, valued, 2.0) for _ in range(1500)]
    assert abs(np.mean(areas)) < 4 * np.std(areas) / np.sqrt(len(areas))
    assert digits.less_than_random(search(np.argsort(-told)[:25]), told, valued, 2.0) < np.mean(areas) - np.std(areas)
    slower = search(np.argsort(-told)[:25])
    slower["finished"] = (200 + 2.0 * np.arange(1, 26)).tolist()  # the strategy thinks for long before its first network
    assert (
        digits.less_than_random(slower, told, valued, 2.0)
        > digits.less_than_random(search(np.argsort(-told)[:25]), told, valued, 2.0) + 0.1
    )


def test_a_search_on_the_clock_pays_for_what_it_trains_and_for_its_own_thoughts():
    found = digits.search_table("random", 0, 6)
    table = known()
    assert found["seconds"] == table.column("training_seconds")[found["places"]].tolist()
    own = np.diff([0.0, *found["finished"]]) - found["seconds"]
    assert (own >= 0).all()
    assert found["values"] == pytest.approx(table.column("validation_accuracy")[found["places"]], abs=1e-3)
    assert digits.pace({**found, "seconds": [2 * one for one in found["seconds"]]}, table.column("training_seconds")) == pytest.approx(2)


# --- as experiments ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("experiment", [hosts, digits], ids=lambda module: module.EXPERIMENT.method)
def test_a_quick_run_writes_its_section_decides_nothing_and_repeats_nothing(experiment, tmp_path):
    claims = tmp_path / "claims.md"
    found = reproduce(experiment.EXPERIMENT.method, out=tmp_path / "run", claims=claims, quick=True, workers=1)
    assert {claim["verdict"] for claim in found["claims"]} == {"not decided (quick)"}
    assert f"<!-- end of {experiment.EXPERIMENT.method} -->" in claims.read_text()
    again = reproduce(experiment.EXPERIMENT.method, out=tmp_path / "run", claims=claims, quick=True, workers=1)
    assert again == found
    if experiment is hosts:
        with np.load(tmp_path / "run" / "digits_networks.npz") as table:
            assert table["arch"].shape == (5, 5)
            assert {*hosts.COLUMNS.values(), "test_accuracy_seed1", "training_seconds"} < set(table.files)


def test_the_proxies_of_a_network_are_those_of_the_same_images_each_time():
    first, second = (digits.score(5, replace(digits.QUICK, images=4, initialisations=1)) for _ in range(2))
    assert first == second
    assert all(len(values) == 1 for values in first.values())
