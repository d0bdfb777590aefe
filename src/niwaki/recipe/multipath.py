"""MPNAS (Wang et al., WACV 2021, arXiv 2010.04904): multi-path networks for several image domains; its parts, its defaults, what it claims.

Parts: one supernet with shared layers, but BatchNorms and a head for each domain (nn/multipath.py); a controller for each domain, TuNAS's
(gradient/controller.py), with the absolute reward on a validation batch of its domain; losses balanced by adaptive prioritisation, whose formula
was not found and is ours, and by what it is compared with (gradient/balance.py); then all domains are trained jointly on the paths found
(gradient/multipath.py). Space: MobileNetV3-like (zoo/tunas.py).
"""

from __future__ import annotations

from collections.abc import Mapping

from niwaki.gradient.balance import Balance, GradNorm, Prioritised, Sampled, Uncertainty, Uniform
from niwaki.gradient.controller import Control
from niwaki.gradient.multipath import MPNAS, JointTraining
from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Network, OneOf
from niwaki.net.tree import called

PUBLISHED = MPNAS(control=Control(budget="soft"))
BALANCES: dict[str, Balance] = {
    "prioritised": Prioritised(), "uniform": Uniform(), "proportional": Sampled(), "tempered": Sampled(temperature=2.0),
    "uncertainty": Uncertainty(), "gradnorm": GradNorm(),
}  # fmt: skip
DECATHLON_POINTS = 1000.0  # of a domain without errors

SMALL_TRAINING = JointTraining(steps=300, batch_size=64, weight_lr=0.05, weight_decay=1e-4, label_smoothing=0.0, validation_batches=2)
SMALL = MPNAS(SMALL_TRAINING, Control(lr=0.05, budget="soft"), architecture_share=0.3)  # ours, for small grey images and some hundred steps


def candidates(classes: int = 10, *, size: int = 14, widths: tuple[int, ...] = (16, 16, 24, 24)) -> Network:
    """Ours, for small grey images: four layers of three candidates each, bottlenecks of kernel and expansion 3 and 2, 5 and 2, 3 and 4."""

    def layer(at: int, width: int) -> OneOf:
        kinds = {"k3e2": (3, 2), "k5e2": (5, 2), "k3e4": (3, 4)}
        return OneOf(*(called(mbconv(width, kernel, expand=expand), name) for name, (kernel, expand) in kinds.items()), name=f"layer{at}")

    body = [conv_bn_act(widths[0], 3, stride=2, name="stem"), *(layer(at, width) for at, width in enumerate(widths, start=1))]
    return Network(Chain(*body, classifier(classes)), (1, size, size))


def decathlon_score(errors: Mapping[str, float], baseline: Mapping[str, float]) -> float:
    """Visual Decathlon: sum over domains of 1000 max(0, 1 - E / (2 B))^2, E the error and B that of the baseline, both shares.

    The published form, alpha max(0, Emax - E)^2 with Emax = 2 B and alpha = 1000 / Emax^2, as one square.

    >>> decathlon_score({"a": 0.1, "b": 0.0}, {"a": 0.1, "b": 0.2})
    1250.0
    """
    if errors.keys() != baseline.keys() or not all(0 < error <= 1 for error in baseline.values()):
        raise ValueError(f"errors of {', '.join(errors)} need a baseline's error, above 0, of the same domains; there are {dict(baseline)}")
    return sum(DECATHLON_POINTS * max(0.0, 1 - error / (2 * baseline[domain])) ** 2 for domain, error in errors.items())


CLAIMS = {
    "params": ("One multi-path network needs far fewer parameters than a network for each domain", "-78 % over ten domains [abstract]"),
    "accuracy": ("Its accuracy is higher than theirs, on average", "higher [abstract]"),
    "transfer": ("Domains that help each other share nodes, those that do not choose others", "qualitative [from memory]"),
    "balance": ("Adaptive balanced prioritisation helps the domains that lag behind", "purpose [abstract]; the formula was not found"),
    "decathlon": ("Visual Decathlon", "best of MobileNetV3-like methods [abstract]"),
}
