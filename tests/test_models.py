"""The models of other people that niwaki is tried on are the published ones: their parameters are counted as their authors did."""

import pytest
import torch

from models import FULL, SMALL

PUBLISHED = {  # parameters, by the model's paper, torchvision's or timm's tables, or the repository that the code is written like
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "preact-resnet18": 11_171_146,
    "densenet121": 7_978_856,
    "mobilenet-v2-1.0": 3_504_872,
    "mobilenet-v3-small": 2_542_856,
    "mobilenet-v3-large": 5_483_032,
    "shufflenet-v2-x1.0": 2_278_604,
    "efficientnet-b0": 5_288_548,
    "regnet-x-400mf": 5_495_976,
    "regnet-y-400mf": 4_344_144,
    "convnext-tiny": 28_589_128,
    "unet-64": 31_037_698,
    "inception-v3": 27_161_264 - 3_326_696,  # torchvision's, less its auxiliary classifier
    "alexnet": 61_100_840,
    "vgg11-bn": 132_868_840,
    "vit-tiny-16": 5_717_416,
    "vit-base-16": 86_567_656,
    "vit-b-16-multihead": 86_567_656,
    "mixer-b-16": 59_880_472,
    "gpt2": 124_439_808,
    "edsr-baseline-x2": 1_369_859,
}


@pytest.mark.parametrize("name", FULL)
def test_a_full_model_has_as_many_parameters_as_published(name):
    with torch.device("meta"):
        module = FULL[name].make()
    assert sum(parameter.numel() for parameter in module.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_a_small_model_answers_each_example_of_a_batch_alone(name):
    module = SMALL[name].make().eval()
    inputs = SMALL[name].example(3)
    together, alone = outputs(module(*inputs)), outputs(module(*(x[1:2] for x in inputs)))
    assert all(torch.allclose(a[1:2], b, atol=1e-5) for a, b in zip(together, alone, strict=True))


def outputs(given):
    return [given] if isinstance(given, torch.Tensor) else list(given.values() if isinstance(given, dict) else given)
