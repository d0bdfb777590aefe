"""Models written by someone who had not seen how adoption works: they stay the same, their channels are found, cuts run and cost what was said."""

from importlib import import_module

import pytest
import torch

from niwaki.testing import check_adoption

NAMES = ("ghost_res2", "swin", "conformer", "detector", "points")


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_adoption_was_not_written_for(name):
    torch.manual_seed(0)
    source = import_module(f"models.unseen.{name}")
    check_adoption(source.make(), source.example(2), onnx=name == "points")
