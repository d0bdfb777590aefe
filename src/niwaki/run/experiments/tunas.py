"""TuNAS's controller and reward as experiments, on NAS-Bench-201: where a search ends, and at which cost. Shared weights: tunas_shared.py."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from niwaki.objective import Absolute, Form, Objective, Product, measured
from niwaki.recipe import tunas
from niwaki.run.claims import Claim, Section, Table, percent
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.tables import SIGNAL, TRUTH, benchmark, searched
from niwaki.run.experiments.tunas_shared import ABOUT, BUDGETS, SHARED, TARGETS, SharedPlan, claims_of, run_members, run_search
from niwaki.run.experiments.verdicts import above, at_least, claim, not_testable, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import Interval, bootstrap, share_of
from niwaki.run.workers import Job, Workers
from niwaki.space.architecture import Architecture

NEAR = 0.10  # of the target, as a share of it
TOP = 0.05  # of the members as near
ENDS_NEAR, ENDS_TOP = 0.8, 0.7  # shares of the searches
BATCH_LR = 4.8e-3  # the published one, of a batch of 4,096


@dataclass(frozen=True)
class Search:
    """One kind of search. form: "absolute" with beta, "soft" or "hard" (MnasNet's, w beyond the target) with w. signal: the column it sees."""

    form: str
    weight: float
    lr: float = tunas.TABLE_LR
    steps: int = 3_000
    signal: str = SIGNAL

    @property
    def reward(self) -> Form:
        if self.form == "absolute":
            return Absolute(self.weight)
        return Product(self.weight if self.form == "soft" else 0.0, self.weight)

    @property
    def text(self) -> str:
        name = f"absolute, beta = {self.weight}" if self.form == "absolute" else f"MnasNet's {self.form}, w = {self.weight}"
        return f"{name}, lr {self.lr}, {self.steps:,} steps" + ("" if self.signal == SIGNAL else ", 200-epoch test accuracy as the signal")


SEARCHES = (
    *(Search("absolute", beta, lr) for lr in (tunas.TABLE_LR, BATCH_LR) for beta in (-0.1, -0.3, -1.0)),
    Search("absolute", -0.3, BATCH_LR, 10_000),
    Search("absolute", -0.1, signal=TRUTH),
    *(Search("soft", w) for w in (-0.03, -0.07, -0.15)),
    Search("hard", -1.0),
)


@dataclass(frozen=True)
class Plan:
    """What is searched."""

    searches: tuple[Search, ...] = SEARCHES
    seeds: int = 20
    shared: SharedPlan = SHARED
    minutes: str = "about 8 minutes on one core"

    def to_json(self) -> dict[str, Any]:
        return {"searches": [asdict(one) for one in self.searches], "seeds": self.seeds, "shared": asdict(self.shared)}


QUICK = Plan(tuple(replace(one, steps=100) for one in (SEARCHES[0], *SEARCHES[-2:])), 2, SharedPlan(1, 2, 1), "seconds")


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    jobs = {one: Job(f"search {one.text}", run_searches, (one, plan.seeds)) for one in plan.searches}
    with Workers(workers) as pool:
        found = pool.run(list(jobs.values()), folder, progress, f"{len(jobs)} kinds of search")
        seeds = range(plan.shared.seeds)
        shared = {
            str(target): {"members": [Job(f"members {target} {seed}", run_members, (target, plan.shared, seed)) for seed in seeds]}
            | {
                budget: [Job(f"shared {budget} {target} {seed}", run_search, (budget, target, plan.shared, seed)) for seed in seeds]
                for budget in BUDGETS
            }
            for target in TARGETS
        }
        made = [job for of_target in shared.values() for of_kind in of_target.values() for job in of_kind]
        trained = pool.run(made, folder, progress, f"{len(made)} searches with shared weights, and trainings")
    table = benchmark("nasbench201")
    macs = table.cost("macs").astype(float)
    target = float(np.median(macs))
    fronts = []
    for form, weights in (("absolute", (-0.05, -0.1, -0.2, -0.4, -0.8)), ("soft", (-0.03, -0.07, -0.15)), ("hard", (-1.0,))):
        for weight in weights:
            objective = objective_of(Search(form, weight), target)
            rewards = [objective.reward({"accuracy": q / 100, "macs": m}) for q, m in zip(table.column(SIGNAL), macs, strict=True)]
            fronts.append({"form": form, "weight": weight, "ratio": float(macs[int(np.argmax(rewards))] / target)})
    return {
        "target": target,
        "costs": len(np.unique(macs)),
        "near": int((np.abs(macs / target - 1) <= NEAR).sum()),
        "found": {one.text: found[job.name] for one, job in jobs.items()},
        "fronts": fronts,
        "shared": {
            target: {kind: [trained[job.name] for job in of_kind] for kind, of_kind in of_target.items()}
            for target, of_target in shared.items()
        },
        "draw": float(np.mean([bool(near) and rank <= TOP for near, rank in map(_standing_of(SIGNAL), range(len(macs)))])),
    }


def objective_of(one: Search, target: float) -> Objective:
    return Objective("accuracy", form=one.reward, toward=(measured("macs") <= target,))


def _standing_of(signal: str) -> Any:
    """Row number -> whether it is near the target, and the share of the members there that are better by the column `signal`."""
    table = benchmark("nasbench201")
    macs, quality = table.cost("macs").astype(float), table.column(signal)
    target = float(np.median(macs))
    near = np.abs(macs / target - 1) <= NEAR
    among = np.sort(quality[near])

    def standing(place: int) -> tuple[bool, float]:
        return bool(near[place]), float(1 - np.searchsorted(among, quality[place], side="right") / len(among))

    return standing


def run_searches(one: Search, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Where searches end, and what random search of as many evaluations picks by the same reward, one entry per seed."""
    table = benchmark("nasbench201")
    macs, quality = table.cost("macs").astype(float), table.column(one.signal) / 100
    target = float(np.median(macs))
    objective, standing = objective_of(one, target), _standing_of(one.signal)

    def metrics(arch: Architecture) -> dict[str, float]:
        place = table.place(arch)
        return {"accuracy": float(quality[place]), "macs": float(macs[place])}

    def told(place: int) -> dict[str, float]:
        near, rank = standing(place)
        signal, truth = (float(table.column(name)[place]) for name in (SIGNAL, TRUTH))
        return {"ratio": float(macs[place] / target), "near": float(near), "rank": rank, "signal": signal, "truth": truth}

    rewards = np.array([objective.reward({"accuracy": q, "macs": m}) for q, m in zip(quality.tolist(), macs.tolist(), strict=True)])
    policy, sampled, random = [], [], []
    for seed in range(seeds):
        strategy = tunas.controller(objective, steps=one.steps, lr=one.lr)
        trials, state = searched(strategy, table.space, metrics, one.steps, seed, batch=strategy.batch_size)
        policy.append(told(table.place(strategy.mode(state))))
        places = [table.place(trial.arch) for trial in trials]
        sampled.append(told(max(places, key=lambda place: rewards[place])))
        drawn = np.random.default_rng(seed).integers(len(macs), size=one.steps)
        random.append(told(int(drawn[np.argmax(rewards[drawn])])))
    return {"policy": policy, "sampled": sampled, "random": random}


# --- what it says -----------------------------------------------------------------------------------------------------------------


def section_of(results: dict[str, Any]) -> Section:
    shared_claims, shared_tables = claims_of(results["shared"], SharedPlan(**results["plan"]["shared"]))
    return section(
        "tunas",
        "TuNAS: controller, reward and shared weights",
        results,
        (*about(results), ABOUT),
        (*claims_of_the_table(results), *shared_claims, NOT_TESTABLE),
        (ends(results), *shared_tables),
    )


def claims_of_the_table(results: dict[str, Any]) -> tuple[Claim, ...]:
    return _absolute(results["fronts"]), _soft(results["fronts"]), _at_target(results), _among_the_best(results), _against_random(results)


def _searches(results: dict[str, Any]) -> list[Search]:
    return [Search(**one) for one in results["plan"]["searches"]]


def _main(results: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """Of the first search of the plan, which claims are about."""
    return results["found"][_searches(results)[0].text]


def _near(entries: list[dict[str, float]]) -> Interval:
    return share_of(sum(bool(one["near"]) for one in entries), len(entries))


def _top(entries: list[dict[str, float]]) -> Interval:
    return share_of(sum(one["rank"] <= TOP for one in entries), len(entries))


def _both(entries: list[dict[str, float]]) -> Interval:
    return share_of(sum(bool(one["near"]) and one["rank"] <= TOP for one in entries), len(entries))


def _share(found: Interval) -> str:
    return found.text(0, scale=100, unit=" %")


def _absolute(fronts: list[dict[str, Any]]) -> Claim:
    held = {one["weight"]: one["ratio"] for one in fronts if one["form"] == "absolute"}
    return claim(
        f"{tunas.CLAIMS['target'][0]}: within {percent(NEAR, 0)} of it",
        tunas.CLAIMS["target"][1],
        "best reward in the table, cost / target: " + ", ".join(f"{ratio:.2f} at beta {beta}" for beta, ratio in held.items()),
        "not a search: all networks listed",
        all(abs(ratio - 1) <= NEAR for ratio in held.values()),
    )


def _soft(fronts: list[dict[str, Any]]) -> Claim:
    drift = {one["weight"]: one["ratio"] for one in fronts if one["form"] == "soft"}
    return claim(
        f"{tunas.CLAIMS['soft'][0]}: costs differ by more than {percent(NEAR, 0)} between exponents",
        tunas.CLAIMS["soft"][1],
        "best reward in the table, cost / target: " + ", ".join(f"{ratio:.2f} at w = {w}" for w, ratio in drift.items()),
        "not a search: all networks listed",
        max(drift.values()) / min(drift.values()) > 1 + NEAR,
    )


def _at_target(results: dict[str, Any]) -> Claim:
    near = _near(_main(results)["policy"])
    soft = ", ".join(
        f"{_share(_near(results['found'][one.text]['policy']))} at w = {one.weight}" for one in _searches(results) if one.form == "soft"
    )
    return claim(
        f"One search with the absolute reward ends within {percent(NEAR, 0)} of the target, at least {percent(ENDS_NEAR, 0)} of the "
        "time: the whole interval",
        "one search [paper]",
        f"{_share(near)} of the searches at beta -0.1; with MnasNet's soft reward: {soft}",
        _share(_near(_main(results)["random"])),
        at_least(near, ENDS_NEAR),
    )


def _among_the_best(results: dict[str, Any]) -> Claim:
    policy = _main(results)["policy"]
    near, top = _near(policy), _top(policy)
    return claim(
        f"Its network is within {percent(NEAR, 0)} of the target at least {percent(ENDS_NEAR, 0)} of the time, and in the top "
        f"{percent(TOP, 0)} there at least "
        f"{percent(ENDS_TOP, 0)} of it: whole intervals",
        "matches or beats random search [paper]",
        f"near: {_share(near)}, top: {_share(top)}, both: {_share(_both(policy))} of the searches (learning rate {tunas.TABLE_LR}, beta "
        "-0.1)",
        f"both: {_share(_both(_main(results)['random']))}",
        at_least(near, ENDS_NEAR) and at_least(top, ENDS_TOP),
    )


def _against_random(results: dict[str, Any]) -> Claim:
    main = _main(results)
    better = bootstrap([a["truth"] - b["truth"] for a, b in zip(main["policy"], main["random"], strict=True)])
    return claim(
        "The search beats random search of equal cost: the whole interval above 0",
        tunas.CLAIMS["quality"][1],
        f"test accuracy after 200 epochs of what is found: {better.text(sign=True)} points against random search",
        "best reward of as many draws, in the table below",
        above(better),
    )


NOT_TESTABLE = not_testable(
    "ImageNet accuracy of the found networks",
    "ProxylessNAS, enlarged and MobileNetV3-like spaces [paper]",
    "ImageNet and a supernet at that scale are not here",
)


def about(results: dict[str, Any]) -> tuple[str, ...]:
    return (
        "NAS-Bench-201, 15,625 cells: the signal is the validation accuracy after 12 epochs, the cost multiply-adds (only "
        f"{results['costs']} different values), the target their median, {results['target'] / 1e6:.1f} million, within 10 % of which "
        f"{results['near']:,} cells lie. REINFORCE on independent softmaxes, one cell a step, momentum {tunas.MOMENTUM}, Adam without a "
        "first "
        "moment, a learning rate that waits for a quarter of the steps and then grows tenfold; "
        f"{results['plan']['seeds']} seeds; at the end the most likely option of each decision. Every step's reward is exact here.",
        f"The learning rate of {tunas.TABLE_LR} and beta -0.1, which claims are about, were chosen on this very table, and looked at "
        "with these "
        f"seeds among others: the figures flatter the search. The bars, {percent(ENDS_NEAR, 0)} and {percent(ENDS_TOP, 0)} of the "
        "searches, are ours.",
        "A step costs one evaluation here, so 3,000 steps may look at a fifth of the table, and random search of equal cost does. One "
        "random "
        f"draw meets both conditions in {percent(results['draw'])}.",
    )


def ends(results: dict[str, Any]) -> Table:
    rows = []
    for one in _searches(results):
        for who, label in (
            ("policy", "most likely at the end"),
            ("sampled", "best reward that it sampled"),
            ("random", "random search, best reward"),
        ):
            entries = results["found"][one.text][who]
            shares = (percent(share(entries).mean, 0) for share in (_near, _top, _both))
            off = f"{np.mean([abs(entry['ratio'] - 1) for entry in entries]):.1%}"
            rows.append((one.text, label, off, *shares, bootstrap([entry["truth"] for entry in entries]).text()))
    columns = (
        "search", "network", "off target, mean", "within 10 % of the target", "in the top 5 % there", "both",
        "test accuracy after 200 epochs",
    )  # fmt: skip
    return Table(f"Where {results['plan']['seeds']} searches of each kind end", columns, tuple(rows))


EXPERIMENT = Experiment(("tunas",), lambda quick: QUICK if quick else Plan(), measure, section_of)
