"""TuNAS (Bender et al., CVPR 2020, arXiv 2008.06120): its controller, its reward, its schedules, and what it claims.

Parts: independent softmaxes from zero; REINFORCE, one architecture a step, baseline with momentum 0.95; the absolute reward, whose optimum is at the
target (objective/reward.py); Adam without a first moment, whose rate waits and then grows; the spaces (zoo/tunas.py). At the end the most
likely option of every decision is taken. Shared weights and warm-ups: gradient/tunas.py and gradient/controller.py.
"""

from __future__ import annotations

from niwaki.objective import Objective
from niwaki.strategy.policy_gradient import Adam, DelayedRamp, PolicyGradient

BETA = -0.10  # of the absolute reward [code]
MOMENTUM = 0.95  # of the baseline [code]
DELAY, RAMP = 0.25, 10.0  # of the controller's learning rate [code]
TABLE_LR = 0.02  # ours, for the 3,000 steps of a table; the code's for a batch of 4,096 is 4.8e-3, for many times as many steps
VALIDATION_BATCHES = 4  # the batch that rewards is so many times the batch that trains [code]


def learning_rate(batch_size: int) -> float:
    """Of the controller: 3e-4 for 256 examples of a training batch [code].

    >>> round(learning_rate(4096), 6)
    0.0048
    """
    return 3e-4 * batch_size / 256


def controller(objective: Objective, *, steps: int, lr: float = TABLE_LR, delay: float = DELAY, name: str = "tunas") -> PolicyGradient:
    """The controller for a search of `steps` evaluations. objective: with the form `Absolute(beta)`, which is an objective's own."""
    schedule = DelayedRamp(steps, delay, RAMP)
    return PolicyGradient(objective, optimizer=Adam(lr, betas=(0.0, 0.999), eps=1e-8, schedule=schedule), momentum=MOMENTUM, name=name)


CLAIMS = {
    "target": (
        "The absolute reward's optimum is at the target for any beta that exceeds the slope there",
        "one search meets its target [paper]",
    ),
    "soft": ("MnasNet's soft reward ends where its exponent happens to meet the slope", "about 7 searches to meet a target [paper]"),
    "quality": ("A search beats random search, the more the larger the space", "on three spaces [paper]"),
}
