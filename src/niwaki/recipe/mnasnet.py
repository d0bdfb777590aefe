"""MnasNet (Tan et al., CVPR 2019, arXiv 1807.11626): its parts, its defaults, what it claims.

Parts: the factorised hierarchical space, and the published networks and figures (zoo/mnasnet.py); accuracy * (latency / target)^w as the reward (objective/reward.py: soft -0.07 on both
sides, hard 0 and -1); an LSTM that takes the decisions in turn (strategy/lstm.py), updated with PPO (strategy/policy_gradient.py); latency measured on
the device (device/). What is trained in full is not the controller's most likely network, but the best of those that were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence

from niwaki.objective import Objective, mnasnet_hard, mnasnet_soft
from niwaki.strategy.lstm import Lstm
from niwaki.strategy.policy import Controller
from niwaki.strategy.policy_gradient import Adam, Clipped, PolicyGradient
from niwaki.trial import Trial

SOFT, HARD = mnasnet_soft, mnasnet_hard
TARGET_MS = 75  # on the big core of a Pixel 1, one thread, batch 1
MODELS, EPOCHS, TRAINED = 8_000, 5, 15  # sampled, each trained so long on the task itself; then the best so many in full
LR = 3.5e-4  # ours, as the batch, the passes and the entropy: the paper gives no constants of its PPO; for thousands of models
RECURRENT = Lstm(64)
TABLE_LR = 0.03  # for hundreds of models: at 3.5e-4 softmaxes have hardly moved by then


def controller(
    objective: Objective,
    *,
    lr: float = LR,
    batch_size: int = 20,
    kind: Controller = RECURRENT,
    name: str = "mnasnet",
) -> PolicyGradient:
    """PPO on the recurrent controller. kind: or another, such as `softmaxes`. objective: with the form `SOFT` or `HARD`."""
    return PolicyGradient(objective, kind, Clipped(clip=0.2, passes=4, entropy=1e-3), Adam(lr), batch_size, name=name)


def to_train(trials: Sequence[Trial], objective: Objective, count: int = TRAINED) -> list[Trial]:
    """The `count` different architectures of the best rewards among those sampled, the best first: what MnasNet trains in full."""
    best: dict[object, tuple[float, Trial]] = {}
    for trial in trials:
        if trial.status == "ok":
            reward = objective.reward(trial.metrics)
            if trial.arch not in best or reward > best[trial.arch][0]:
                best[trial.arch] = reward, trial
    return [trial for _, trial in sorted(best.values(), key=lambda pair: (-pair[0], pair[1].number))[:count]]


def off_target(cost: float, target: float) -> float:
    """|cost / target - 1|: the soft reward does not aim at the target, so every report says how far off it ended."""
    return abs(cost / target - 1)
