"""The experiments behind the claims on objectives and rates: exact expectations, no test data in choices, sections that follow from results."""

import json
from itertools import product

import numpy as np
import pytest
import torch

from niwaki.run.experiments import objectives, rate_constraints
from niwaki.run.reproduce import reproduce


@pytest.fixture
def shared(shared_data, monkeypatch):
    monkeypatch.setenv("NIWAKI_SHARED", str(shared_data.parent))


def test_the_expectation_of_a_table_is_the_mean_over_its_networks():
    generator = torch.Generator().manual_seed(0)
    table, logits = torch.randn(3, 3, 3, generator=generator), torch.randn(3, 3, generator=generator)
    p = torch.softmax(logits, 1)
    mean = sum(table[at] * p[0, at[0]] * p[1, at[1]] * p[2, at[2]] for at in product(range(3), repeat=3))
    assert float(objectives.expectation(table, logits)) == pytest.approx(float(mean), abs=1e-6)


@pytest.mark.parametrize(
    ("method", "plan", "rows"),
    [
        ("objectives", objectives.Plan(shares=(0.5,), known=100, steps=3, rounds=2, steps_per_round=2, starts=(0,)), 8),
        ("rate_constraints", rate_constraints.Plan(seeds=(0,), epochs=1), 9),
    ],
)
def test_a_small_run_writes_its_section_and_given_again_the_same(method, plan, rows, tmp_path, shared):
    found = reproduce(method, out=tmp_path / "run", claims=tmp_path / "claims.md", quick=True, workers=1, plan=plan)
    page = (tmp_path / "claims.md").read_text("utf-8")
    assert len(found["claims"]) == rows
    assert {claim["verdict"] for claim in found["claims"]} <= {"not decided (quick)", "not testable here"}
    assert "nan" not in json.dumps(found["claims"]).lower()
    again = reproduce(method, out=tmp_path / "run", claims=tmp_path / "claims.md", quick=True, workers=1, plan=plan)
    assert again == found
    assert (tmp_path / "claims.md").read_text("utf-8") == page


def test_the_parts_of_the_data_are_disjoint_and_the_seed_decides(shared):
    for split in (rate_constraints.higgs_data, rate_constraints.logistic_data):
        one, same, other = split(0), split(0), split(1)
        assert all(torch.equal(a[0], b[0]) for a, b in zip(one, same, strict=True))
        assert not torch.equal(one[0][0], other[0][0])
        rows = [tuple(row) for part in one for row in np.round(part[0].numpy(), 5).tolist()]
        assert len(rows) == 7500
        assert len(set(rows)) > 7400, "duplicates are of the data"
    thinned = rate_constraints.higgs_data(0, prevalence=0.15)
    assert np.mean(torch.cat([part[1] for part in thinned]).numpy()) == pytest.approx(0.15, abs=0.001)
