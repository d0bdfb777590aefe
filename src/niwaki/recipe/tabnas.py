"""TabNAS (Yang et al., NeurIPS 2022, arXiv 2204.07615): its parts, its defaults, what it claims, and spaces to try it in.

Parts: independent softmaxes; what is over the budget is rejected, and the policy gradient is that of p(y | V) = p(y) / P(V), V the feasible part
of the space: P(V) by Monte Carlo as published (`Rejecting`), or exactly by the cost algebra (`Conditioned`, ours); REINFORCE with a
zero-debiased average as the baseline; at the end the most likely architecture *given the budget*, which the most likely option of every
decision may be far over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from niwaki.net.control import Chain, Network
from niwaki.net.layer import Activation, Layer, Linear
from niwaki.objective import Absolute, Objective, params
from niwaki.space.architecture import Architecture
from niwaki.space.choice import Choice
from niwaki.strategy.policy import Rejecting, softmaxes
from niwaki.strategy.policy_gradient import Adam, PolicyGradient

MOMENTUM = 0.9  # of the baseline, over feasible samples [official notebook]
NOTEBOOK_LR = 0.1  # of Adam on the toy space [official notebook]: too hot, about a quarter of the runs ends elsewhere
WARM_UP = 0.25  # share of the epochs in which only weights learn, with shared weights [secondary]
SAMPLES = 1_024  # of the Monte-Carlo estimate; "larger is better" [secondary; the magnitude from memory]

EXACT_LR = 0.02  # ours, for the 1,500 evaluations of the toy space
TABLE_LR = 0.1  # ours, for some tens of evaluations


def exact(objective: Objective, *, lr: float = EXACT_LR, batch_size: int = 1, name: str = "tabnas") -> PolicyGradient:
    """TabNAS with P(V) and its gradient exact; of a space within budgets."""
    return PolicyGradient(objective, softmaxes, optimizer=Adam(lr), batch_size=batch_size, momentum=MOMENTUM, name=name)


def published(
    objective: Objective, *, lr: float = EXACT_LR, samples: int | tuple[int, int] = SAMPLES, steps: int | None = None, seed: int = 0
) -> PolicyGradient:
    """TabNAS as published: P(V) from `samples` draws a step; of two numbers, N goes from one to the other in `steps`. 0: uncorrected."""
    rule = Rejecting(samples, steps, seed)
    return PolicyGradient(objective, rule, optimizer=Adam(lr), momentum=MOMENTUM, name="tabnas-published")


def absolute(objective: Objective, *, beta: float = -2.0, lr: float = 0.05) -> PolicyGradient:
    """What TabNAS compares itself with: the same policy on the whole space, with TuNAS's absolute reward toward the budget.

    The notebook's learning rate; beta decides where it ends on the toy space: -2 at the wrong architecture of just the budget's size.
    """
    toward = objective.toward or objective.subject_to
    return PolicyGradient(
        Objective(objective.maximize, objective.subject_to, Absolute(beta), toward), optimizer=Adam(lr), momentum=MOMENTUM, name="absolute"
    )


def perceptron(inputs: int, widths: Sequence[int], layers: int, outputs: int) -> Network:
    """A space of multi-layer perceptrons: `layers` hidden layers of a width each, ReLU between, biases everywhere."""
    body: list[Layer] = []
    for number in range(1, layers + 1):
        body += [
            Linear(Choice(tuple(widths), f"/hidden{number}"), name=f"hidden{number}"),
            Activation("relu", name=f"act{number}"),
        ]
    return Network(Chain(*body, Linear(outputs, name="output")), (inputs,))


def parameters_of(inputs: int, hidden: Sequence[int], outputs: int) -> int:
    """Weights and biases of a plain perceptron: sum of (in + 1) * out.

    >>> parameters_of(2, (4, 2), 1)
    25
    """
    sizes = (inputs, *hidden, outputs)
    return sum((before + 1) * after for before, after in pairwise(sizes))


# --- the toy space of the official notebook ------------------------------------------------------------------------------------------

TOY_WIDTHS, TOY_BUDGET, TOY_BEST = (2, 3, 4), 25, (4, 2)  # the best is a bottleneck: no option of it is the best on the whole
TOY_LOSSES: Mapping[tuple[int, int], float] = {
    (2, 2): 0.9, (2, 3): 0.9, (3, 2): 0.9, (2, 4): 0.66, (4, 2): 0.6, (3, 3): 0.66, (3, 4): 0.3, (4, 3): 0.3, (4, 4): 0.1,
}  # fmt: skip


def toy() -> Network:
    """Two hidden layers of 2, 3 or 4 units, two inputs, one output: nine networks, six of them with at most 25 parameters."""
    return perceptron(2, TOY_WIDTHS, 2, 1)


def toy_metrics(arch: Architecture) -> dict[str, float]:
    """ "quality" 1 - loss, and "params"."""
    first, second = arch["hidden1"], arch["hidden2"]
    assert isinstance(first, int)
    assert isinstance(second, int)
    hidden = first, second
    return {"quality": 1 - TOY_LOSSES[hidden], "params": float(parameters_of(2, hidden, 1))}


def toy_objective() -> Objective:
    return Objective("quality", (params <= TOY_BUDGET,), form=quality_alone)


def quality_alone(quality: float, spent: Sequence[object]) -> float:
    """The reward of a search that is never over budget: Q."""
    return quality


@dataclass(frozen=True)
class PaperClaim:
    """What the paper says. source: "official notebook", or "secondary" where it is known from other writers and from memory only."""

    text: str
    figure: str
    source: str


CLAIMS = {
    "feasible": PaperClaim("The reward by rejection always meets the constraint", "always", "secondary"),
    "bottleneck": PaperClaim("It finds a bottleneck that TuNAS's absolute reward misses", "4-2 in the toy space", "official notebook"),
    "samples": PaperClaim("A larger number of Monte-Carlo samples is better", "larger is better", "secondary"),
    "criteo": PaperClaim("On Criteo it finds networks on the front of size and loss", "41,153 parameters", "secondary"),
}
