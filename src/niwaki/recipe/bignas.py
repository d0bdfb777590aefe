"""BigNAS (Yu et al., ECCV 2020, arXiv 2003.11142) and its relatives: one supernet, trained once, whose members are delivered as they are.

Parts: the sandwich rule, in-place distillation, the constant ending of the learning rate and regularisation of the biggest member only
(train/sandwich.py); residual branches that begin at zero (nn/residual.py); BatchNorm measured anew for every member that is looked at
(evaluate/shared.py); the training (gradient/train_once.py); coarse-to-fine selection (strategy/coarse_to_fine.py); the space (zoo/bignas.py).
Alternatives are other values of the same recipe: once-for-all's progressive shrinking (Cai et al., ICLR 2020, arXiv 1908.09791),
AttentiveNAS's sampling (Wang et al., CVPR 2021, arXiv 2011.09011), AlphaNet's divergence (Wang et al., ICML 2021, arXiv 2102.07954).

Marks: [V] read in the authors' or, for BigNAS, a reproduction's code; [M] from memory; [ours].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from niwaki.gradient.train_once import Phase, TrainOnce, TrainOnceError

# RMSProp, 0.256 for 4,096 images, decayed by 0.97 every 2.4 epochs to 5 % [M]; 360 epochs, warm-up of 5, drop-connect 0.2, weight decay 1e-5 [V].
# Weight decay acts on the shared weights; dropout and drop-connect on the biggest member only. Deviation: BatchNorm's running statistics follow at
# PyTorch's 0.1, not at the paper's 0.01 [M]; no member is evaluated by them.
BIGNAS = TrainOnce()
# SGD with Nesterov momentum, 0.1 for 256 images, cosine, 360 epochs of batches of 2,048, gradients clipped at 1 each, weight decay 1e-5; 3 candidates,
# best-up [V]. Deviation: drop-connect in all stages, not in the last two only.
ATTENTIVE_NAS = TrainOnce(
    (Phase(360, 0.8, 2, warm_up=5 / 360),), 2048, sampling="attentive", schedule="cosine", optimizer="sgd", nesterov=True, clip_value=1.0
)
ALPHA_NET = replace(ATTENTIVE_NAS, divergence="alpha")  # alphas -1 and 1, clipped at 5 [V]; the strongest of the three on ImageNet
# 32 GPUs of 64 images; learning rates for all of them. First 180 epochs of the biggest member alone, at 2.6 [M], then [V]. The image's resolution
# is drawn in every phase. Widths were expansions only. Deviations: a smaller kernel is the centre of the larger one, not its learned transform, and
# channels are not sorted by their importance before widths shrink.
ONCE_FOR_ALL = TrainOnce(
    (
        Phase(180, 2.6, 1, (("resolution", None),), 5 / 180),
        Phase(120, 0.96, 1, (("resolution", None), ("kernel", None)), 5 / 120),
        Phase(25, 0.08, 2, (("resolution", None), ("kernel", None), ("depth", 2)), 5 / 25),
        Phase(120, 0.24, 2, (("resolution", None), ("kernel", None), ("depth", None)), 5 / 120),
        Phase(25, 0.08, 4, (("resolution", None), ("kernel", None), ("depth", None), ("width", 2)), 5 / 25),
        Phase(120, 0.24, 4, (("resolution", None), ("kernel", None), ("depth", None), ("width", None)), 5 / 120),
    ),
    2048, rule="shrinking", schedule="cosine", optimizer="sgd", nesterov=True, weight_decay=3e-5, drop_connect=0.0, zero_gamma=False,
)  # fmt: skip
PUBLISHED: Mapping[str, TrainOnce] = {"bignas": BIGNAS, "attentivenas": ATTENTIVE_NAS, "alphanet": ALPHA_NET, "ofa": ONCE_FOR_ALL}

LR = 0.3  # [ours] for the small images of `small`
OWNER_LR = 0.1  # [ours] where training begins with weights that are trained
CALIBRATION_BATCHES = 64  # by which BatchNorm is measured anew [V: AttentiveNAS]; 128 in the reproduction of BigNAS


def small(
    method: str = "bignas",
    *,
    epochs: int = 30,
    batch_size: int = 64,
    lr: float = LR,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
) -> TrainOnce:
    """A published recipe at the size of small images and a few thousand steps [ours]: SGD, and no regularisation but the network's own dropout.

    Phases keep their shares of the epochs, and their learning rates that to the first one; the constant ending its 5 % and its place. Label
    smoothing stays. Drop-connect is off: members this small underfit. lr: with the constant ending it is a fifth of it on average, which is why it is
    larger than a cosine's; on digits, 12 epochs of niwaki's own family, 0.05 had hardly begun, 0.2 to 0.4 were best and 0.8 failed.
    """
    if method not in PUBLISHED:
        raise TrainOnceError(
            f"there is no way {method!r} to train a supernet once; there are {', '.join(PUBLISHED)}, or a TrainOnce of one's own"
        )
    published = PUBLISHED[method]
    return replace(
        published,
        phases=shortened(published.phases, epochs, lr),
        batch_size=batch_size,
        optimizer="sgd",
        momentum=momentum,
        nesterov=True,
        weight_decay=weight_decay,
        drop_connect=0.0,
        clip_norm=5.0,
        clip_value=None,
    )


def shortened(phases: tuple[Phase, ...], epochs: int, lr: float) -> tuple[Phase, ...]:
    """`phases` in `epochs` in all, each in its share and at least one, with learning rates from `lr`; where there are fewer epochs than phases,
    the last ones alone."""
    if epochs < 1:
        raise TrainOnceError(f"epochs={epochs}: a supernet is trained for at least 1")
    kept = phases[-epochs:]
    total, ends, done = sum(phase.epochs for phase in kept), [], 0
    for at, phase in enumerate(kept):
        done += phase.epochs
        ends.append(max(at + 1, min(epochs - (len(kept) - 1 - at), round(epochs * done / total))))
    return tuple(
        replace(phase, epochs=end - begin, lr=lr * phase.lr / phases[0].lr)
        for phase, begin, end in zip(kept, [0, *ends[:-1]], ends, strict=True)
    )


# (million multiply-adds, ImageNet top-1 in %), without any training after the supernet's; BigNAS's own: zoo/bignas.PUBLISHED, per model [M], the range [V]
TOP1 = {
    "attentivenas": {"A0": (203, 77.3), "A1": (279, 78.4), "A2": (317, 78.8), "A3": (357, 79.1), "A4": (444, 79.8), "A5": (491, 80.1), "A6": (709, 80.7)},
    "alphanet": {"A0": (203, 77.87), "A1": (279, 78.94), "A2": (317, 79.20), "A3": (357, 79.41), "A4": (444, 80.01), "A5": (491, 80.29), "A6": (709, 80.78)},
    "ofa": {"595M": (595, 80.0)},
}  # fmt: skip
