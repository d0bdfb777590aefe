"""What the measurements of `neighbourhood` come to: the section on neighbourhood distillation in docs/claims.md, each verdict with its bar."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from niwaki.run.claims import Claim, Section, Table, percent
from niwaki.run.experiments.verdicts import above, at_least, at_most, claim, not_testable, section
from niwaki.run.statistics import bootstrap, expected_pick, spearman

HALF = "inner-0.5"  # the width between the two convolutions of a block
CANDIDATES = (HALF, "width-0.5", "width-0.25", "separable", "low-rank-0.25")
TEST = 5_000  # images of Fashion-MNIST's test part
LEVELS = tuple(10 ** (-3 + k / 3) for k in range(16))  # relative variance of noise, 0.001 to 100
LOST = 0.02  # of accuracy, at most, with students of half width
FLAT, FALL, DECADES = 0.005, 0.20, 100.0
SPEED_UP, RECALL = 1.5, 0.9
NEAR, DEARER = 0.01, 1.1  # of the best combination: accuracy and cost of what is chosen
OF_TEACHER, APART = 0.7, 0.2  # on noise: of the teacher's accuracy, and above end-to-end distillation
SHARES = ("50%", "35%")  # of the teacher's multiply-adds


def section_of(results: dict[str, Any]) -> Section:
    seeds = range(results["plan"]["seeds"])
    found = [results["jobs"][f"fashion {seed}"] for seed in seeds]
    without = [results["jobs"][f"noise {seed}"] for seed in seeds]
    claims = (
        _half_width(results["plan"], found),
        _recalibration(found),
        _speed(results["plan"], found),
        _two_processes(results["speed"]),
        _fall(found),
        _admissible(found),
        *(_search(found, name) for name in ("errors", "losses")),
        *_noise(without),
        not_testable(
            "Smaller and sparser ImageNet models at the teacher's accuracy", "ResNets and others on ImageNet [abstract]", "needs ImageNet"
        ),
    )
    title = "Neighbourhood distillation and student search (Shao et al., 2020)"
    return section("neighbourhood_distillation", title, results, _about(results, found, without), claims, (_table(results["plan"], found),))


def _half_width(plan: Mapping[str, Any], found: list[dict[str, Any]]) -> Claim:
    half = [one["half"] for one in found]
    lost = bootstrap([one["teacher"] - one["half"]["recalibrated"] for one in found])
    epochs = plan["student_epochs"]
    beside = ", ".join(
        f"{name} {bootstrap([one['teacher'] - one['half']['ends'][key]['accuracy'] for one in found]).text(1, scale=100)}"
        for name, key in (
            ("end-to-end distillation", f"distilled {epochs}"),
            ("labels alone", f"labels {epochs}"),
            ("uniform width", "uniform"),
        )
    )
    kept_macs = np.mean([one["macs"] for one in half]) / np.mean([one["macs"] for one in found])
    return claim(
        f"Students of half the inner width in all four blocks, put together and recalibrated, lose at most {100 * LOST:.0f} points: the whole interval",
        "model reduction at little loss [abstract]",
        f"{lost.text(1, scale=100)} points lost at {percent(kept_macs, 0)} of the multiply-adds, in {epochs} epochs for each piece",
        f"not random search, but trained end to end for {epochs} epochs: {beside} points lost",
        at_most(lost, LOST),
    )


def _recalibration(found: list[dict[str, Any]]) -> Claim:
    gains = bootstrap([float(np.mean(one["truth"]["recalibrated"]) - np.mean(one["truth"]["assembled"])) for one in found])
    half = bootstrap([one["half"]["recalibrated"] - one["half"]["assembled"] for one in found])
    return claim(
        "Without recalibrated BatchNorm the drop is not smaller, on average over all combinations: the whole interval",
        "-",
        f"recalibration gives {gains.text(1, scale=100, sign=True)} points on average over {len(found[0]['truth']['assembled'])} combinations; "
        f"{half.text(1, scale=100, sign=True)} with students of half the width",
        "not applicable",
        at_least(gains, 0.0),
    )


def _ratio(one: Mapping[str, Any], spent: float) -> float:
    """CPU time of the shortest end-to-end distillation that is at least as good as the pieces, over what these take; of the longest, where
    none is."""
    ends = sorted((end["seconds"], end["accuracy"]) for name, end in one["half"]["ends"].items() if name.startswith("distilled"))
    good = [seconds for seconds, reached in ends if reached >= one["half"]["recalibrated"]]
    return (good[0] if good else ends[-1][0]) / spent


def _speed(plan: Mapping[str, Any], found: list[dict[str, Any]]) -> Claim:
    parallel = bootstrap([_ratio(one, one["half"]["longest_s"] + one["half"]["forward_s"]) for one in found])
    alone = bootstrap([_ratio(one, one["half"]["seconds"] + one["half"]["forward_s"]) for one in found])
    reached = sum(
        any(end["accuracy"] >= one["half"]["recalibrated"] for name, end in one["half"]["ends"].items() if name.startswith("distilled"))
        for one in found
    )
    return claim(
        "With a process for each piece, the half-width student takes less time than end-to-end distillation to equal quality: the whole interval "
        "above 1",
        "up to 4.6 times faster [abstract]",
        f"{parallel.text(1)} times as fast; {alone.text(1)} times in one process (CPU time, with the teacher's forward pass). End to end, "
        f"trainings of up to {plan['student_epochs']} epochs were as good in {reached} of {len(found)} seeds; where none was, the longest counts",
        "not applicable",
        above(parallel, 1.0),
    )


def _two_processes(speed: Mapping[str, Any]) -> Claim:
    ratios = [one / two for one, two in zip(speed["one"], speed["two"], strict=True)]
    return claim(
        f"Two processes train the candidates more than {SPEED_UP} times as fast as one, to the same bits",
        "neighbourhoods are independent [abstract]",
        f"{min(ratios):.2f} and {max(ratios):.2f} times in two turns, {speed['candidates']} candidates, wall time once processes are up; "
        f"bits {'the same' if speed['same'] else 'not the same'}. The time depends on what else the machine does",
        "not applicable",
        min(ratios) > SPEED_UP and bool(speed["same"]),
    )


def _boundaries(found: list[dict[str, Any]]) -> Iterator[tuple[float, list[float], float]]:
    """What each boundary between blocks bears, its curve and the clean accuracy; the head's own output is none."""
    for one in found:
        for bears, curve in list(zip(one["bears"], one["curves"], strict=True))[:-1]:
            yield bears, curve, one["validation"]


def _fall(found: list[dict[str, Any]]) -> Claim:
    falls, rises = list[bool](), list[float]()
    for bears, curve, clean in _boundaries(found):
        near = [clean - value for level, value in zip(LEVELS, curve, strict=True) if level <= DECADES * bears]
        falls.append(max(near, default=0.0) > FALL)
        rises.append(bears)
    low, high = np.quantile(rises, (0.0, 1.0))
    return claim(
        f"Accuracy under noise is flat, then collapses: behind every block it falls by more than {100 * FALL:.0f} points within two decades above the "
        f"level that costs {100 * FLAT:.1f} points",
        "a threshold [memory]",
        f"behind {sum(falls)} of {len(falls)} blocks; the level is a relative variance of {low:.3f} to {high:.2f}",
        "not applicable",
        all(falls),
    )


def _admissible(found: list[dict[str, Any]]) -> Claim:
    good = [[one["clean"] - value <= 2 * FLAT for value in one["truth"]["recalibrated"]] for one in found]
    said = [[error <= 1.0 for error in one["combinations"]["errors"]] for one in found]
    hits = sum(a and b for g, s in zip(good, said, strict=True) for a, b in zip(g, s, strict=True))
    total, admitted = sum(map(sum, good)), sum(map(sum, said))
    ranked = [spearman(one["combinations"]["errors"], [-value for value in one["truth"]["recalibrated"]]) or 0.0 for one in found]
    by_loss = [spearman(one["combinations"]["losses"], [-value for value in one["truth"]["recalibrated"]]) or 0.0 for one in found]
    return claim(
        f"Of the combinations that lose at most {200 * FLAT:.0f} point, at least {percent(RECALL, 0)} have errors that add up to no more than "
        "boundaries bear",
        "errors of independent pieces add, roughly [memory]",
        f"{hits} of {total}; {admitted} are admitted in all. Rank correlation of the added errors with the accuracy lost, over all: "
        f"{bootstrap(ranked).text()}; of added losses (ours) {bootstrap(by_loss).text()}",
        "not applicable",
        total > 0 and hits / total >= RECALL,
    )


def _search(found: list[dict[str, Any]], name: str) -> Claim:
    gaps, dearer, drawn, lucky = list[float](), list[float](), list[float](), list[float]()
    greedy_gaps = list[float]()
    for one in found:
        right, macs = np.array(one["truth"]["recalibrated"]), np.array(one["combinations"]["macs"])
        for share in SHARES:
            chosen = one["chosen"][share]
            fits = np.flatnonzero(macs <= chosen["limit"])
            best = fits[np.lexsort((macs[fits], -right[fits]))[0]]
            gaps.append(float(right[best] - right[chosen[name]]))
            dearer.append(float(macs[chosen[name]] / macs[best]))
            drawn.append(float(right[best] - right[fits].mean()))
            lucky.append(float(right[best] - expected_pick(right[fits], right[fits], min(20, len(fits)))))
            greedy_gaps.append(float(one["clean"] - chosen["greedy"]["accuracy"]))
    gap = bootstrap(gaps)
    how = "errors as shares of what boundaries bear" if name == "errors" else "rises of the loss when one candidate stands alone (ours)"
    return claim(
        f"The knapsack over added {how} is within {100 * NEAR:.0f} point and 10 % of the cost of the best combination within the budget: the whole "
        "interval",
        "search without training [abstract]",
        f"{gap.text(1, scale=100)} points below the best of {len(found[0]['combinations']['macs'])} by evaluating them all, at "
        f"{max(dearer):.2f} times its cost at most; budgets of {' and '.join(SHARES)} of the teacher",
        f"one drawn within the budget {bootstrap(drawn).text(1, scale=100)} points below; the best of 20 evaluated, exact, "
        f"{bootstrap(lucky).text(1, scale=100)}",
        at_most(gap, NEAR) and max(dearer) <= DEARER,
    )


def _noise(found: list[dict[str, Any]]) -> tuple[Claim, Claim]:
    share = bootstrap([one["pieces"] / one["teacher"] for one in found])
    apart = bootstrap([one["pieces"] - one["end"] for one in found])
    macs = np.mean([one["macs"][1] / one["macs"][0] for one in found])
    return (
        claim(
            f"From Gaussian inputs alone, students of single convolutions put together reach {percent(OF_TEACHER, 0)} of the teacher's accuracy on digits: the "
            "whole interval",
            "Gaussian noise suffices for small pieces [abstract]",
            f"{share.text(1, scale=100, unit=' %')} of it, at {percent(macs, 0)} of its multiply-adds; nothing was recalibrated on digits",
            "not applicable",
            at_least(share, OF_TEACHER),
        ),
        claim(
            f"End-to-end distillation on as much noise stays {100 * APART:.0f} points lower: the whole interval",
            "it fails [abstract]",
            f"{apart.text(1, scale=100)} points lower, at {bootstrap([one['end'] for one in found]).text(1, scale=100, unit=' %')}",
            "not applicable",
            at_least(apart, APART),
        ),
    )


def _about(results: dict[str, Any], found: list[dict[str, Any]], without: list[dict[str, Any]]) -> tuple[str, ...]:
    plan = results["plan"]
    trained, each = len(found[0]["seconds"]), [sum(one["seconds"].values()) for one in found]
    greedy_lost = bootstrap([one["clean"] - one["chosen"][share]["greedy"]["accuracy"] for one in found for share in SHARES])
    return (
        f"Fashion-MNIST, {plan['images']:,} images of which a fifth is for validation, {TEST:,} test images; a teacher of four blocks of two "
        f"convolutions, {found[0]['macs']:,} multiply-adds, {plan['teacher_epochs']} epochs, test accuracy "
        f"{bootstrap([one['teacher'] for one in found]).text(1, scale=100, unit=' %')}. {plan['seeds']} seeds, 95 % intervals bootstrapped over them "
        f"(over seeds and budgets for searches). Five candidates for each block, {plan['student_epochs']} epochs each: {trained} trainings, "
        f"{bootstrap(each).text(0)} s of CPU in all, for {len(found[0]['combinations']['macs'])} combinations.",
        "A candidate has the same bits trained alone, beside others and in another process, a student that is the teacher's piece has no error, and "
        "the knapsack is what brute force finds: tests/test_neighbourhood.py.",
        f"Accuracy of combinations is on {plan['judged']:,} validation images with recalibrated BatchNorm. Greedy replacement with every step "
        f"measured ends {greedy_lost.text(1, scale=100)} points below the teacher on the validation part, as put together, without recalibration.",
        f"Drift training: the students of half width learn once more, each behind the others, for a third of the epochs; "
        f"{bootstrap([one['half']['drift'] - one['half']['recalibrated'] for one in found]).text(1, scale=100, sign=True)} points. Noise: "
        f"{plan['noise']:,} inputs for each piece; teachers reach {bootstrap([one['teacher'] for one in without]).text(1, scale=100, unit=' %')}.",
    )


def _table(plan: Mapping[str, Any], found: list[dict[str, Any]]) -> Table:
    blocks = sorted({name.split()[0] for name in found[0]["errors"]} - {"head"})
    lines = []
    for at, name in enumerate(blocks):
        bears = bootstrap([one["bears"][at] for one in found])
        errors = [bootstrap([one["errors"].get(f"{name} {each}", 0.0) for one in found]).text(3) for each in CANDIDATES]
        lines.append((name, bears.text(3), *errors))
    return Table(
        "Relative squared error of each candidate on validation activations, beside what its boundary bears",
        ("block", "bears", *CANDIDATES),
        tuple(lines),
    )
