"""The contract of a store, as a test: for SQLite, and for any other database."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np

from niwaki.store.checkpoint import StoreError
from niwaki.store.engine import LogRow, Store
from niwaki.testing.toy import toy_arrays, toy_evaluate, toy_space
from niwaki.trial import Trial


def check_store(open_it: Callable[[], Store]) -> None:
    """Raises AssertionError naming the first clause that is broken. open_it: opens an empty store, and the same one again each time."""
    space, rng = toy_space(), Random(0)
    evaluate = toy_evaluate(space)
    archs = [space.sample_uniform(rng) for _ in range(6)]
    trials = [Trial(number, arch, evaluate(arch), "random", 0.5, "ok") for number, arch in enumerate(archs[:4])]
    failed = Trial(4, archs[4], {}, "random", 0.25, "failed", "its loss became NaN")
    with open_it() as store:
        assert store.trials("run", space) == [], "an empty store has no trials"
        assert store.load_state("run") is None, "an empty store has no state"
        store.add_pending("run", dict(enumerate(archs)))
        for trial in [*trials[::-1], failed]:
            store.append("run", trial)
        store.append("another run", Trial(0, archs[5], {"accuracy": 1.0}))
    with open_it() as store:
        assert store.trials("run", space) == [*trials, failed], "trials come back as they were, in the order of their numbers"
        assert store.pending("run", space) == {5: archs[5]}, "what has a trial is pending no more"
        assert store.runs() == ["another run", "run"], "runs are kept apart"

        store.append("run", trials[2])
        assert len(store.trials("run", space)) == 5, "the same trial once more changes nothing"
        _refused(lambda: store.append("run", Trial(2, archs[0], {"accuracy": 0.0})), "another trial of the same number is refused")
        _refused(lambda: store.add_pending("run", {6: archs[0], 2: archs[2]}), "a proposal that has a trial is refused")
        assert store.trials("run", space)[:4] == trials, "what is refused changes nothing"
        assert store.pending("run", space) == {5: archs[5]}, "pending proposals are kept all or none"

        store.save_state("run", {"population": [1, 2.5, "x"]}, told=3, arrays=toy_arrays(1))
        store.save_state("run", {"population": [2]}, told=4, arrays=toy_arrays(2))
        state = store.load_state("run")
        assert state is not None and (state.told, state.content) == (4, {"population": [2]}), "the last state counts"  # noqa: PT018
        assert state.arrays.keys() == toy_arrays().keys(), "a state keeps its arrays"
        for name, array in toy_arrays(2).items():
            assert state.arrays[name].dtype == array.dtype, "arrays keep their type"
            assert np.array_equal(state.arrays[name], array), "arrays keep their values"

        store.log("run", "search", 1, {"loss": 2.0})
        store.log("run", "train", 1, {"loss": 1.0})
        store.log("run", "search", 2, {"loss": 1.5, "temperature": [5.0]})
        store.log("run", "search", 1, {"loss": 1.75})
        expected = [LogRow("search", 1, {"loss": 1.75}), LogRow("search", 2, {"loss": 1.5, "temperature": [5.0]})]
        assert store.log_rows("run", "search") == expected, "an epoch logged again replaces its row"
        assert len(store.log_rows("run")) == 3, "phases are kept apart"

        assert store.fact("config", "none") == "none", "a fact that was never kept has the default"
        store.set_fact("config", {"seed": 0})
        store.set_fact("config", {"seed": 1})
        assert store.fact("config") == {"seed": 1}, "the last fact counts"
        _refused(lambda: store.set_fact("config", float("nan")), "numbers that are not finite are refused")
        assert store.fact("config") == {"seed": 1}, "what is refused changes nothing"


def _refused(action: Callable[[], None], clause: str) -> None:
    try:
        action()
    except StoreError:
        return
    raise AssertionError(clause)
