"""TuNAS's controller and reward as experiments, on NAS-Bench-201: where a search ends, and at which cost. Shared weights: tunas_shared.py."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from niwaki.evaluate.table import Table as Benchmark
from niwaki.evaluate.table import load_table
from niwaki.objective import Absolute, Form, Objective, Product, measured
from niwaki.recipe import tunas
from niwaki.run.claims import Claim, Section, Table, Verdict, percent
from niwaki.run.experiments.data import shared_data
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.searching import searched
from niwaki.run.experiments.tunas_shared import ABOUT, BUDGETS, SHARED, SharedPlan, claims_of, run_members, run_search
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import bootstrap
from niwaki.run.workers import Job, Workers
from niwaki.space.architecture import Architecture

SIGNAL, TRUTH = "cifar10_valid_acc_12ep", "cifar10_test_acc_200ep"
NEAR = 0.10  # of the target, as a share of it
TOP = 0.05  # of the members as near
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
    minutes: str = "about 6 minutes on one core"

    def to_json(self) -> dict[str, Any]:
        return {"searches": [asdict(one) for one in self.searches], "seeds": self.seeds, "shared": asdict(self.shared)}


QUICK = Plan(tuple(replace(one, steps=100) for one in (SEARCHES[0], *SEARCHES[-2:])), 2, SharedPlan(1, 2, 1), "seconds")


@lru_cache(maxsize=1)
def benchmark() -> Benchmark:
    return load_table(shared_data("nasbench201", "nasbench201_cifar10.npz"))


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    jobs = {one: Job(f"search {one.text}", run_searches, (one, plan.seeds)) for one in plan.searches}
    with Workers(workers) as pool:
        found = pool.run(list(jobs.values()), folder, progress, f"{len(jobs)} kinds of search")
        seeds = range(plan.shared.seeds)
        shared = {"members": [Job(f"members {seed}", run_members, (plan.shared, seed)) for seed in seeds]} | {
            budget: [Job(f"shared {budget} {seed}", run_search, (budget, plan.shared, seed)) for seed in seeds] for budget in BUDGETS
        }
        made = [job for of_kind in shared.values() for job in of_kind]
        trained = pool.run(made, folder, progress, f"{len(made)} searches with shared weights, and trainings")
    table = benchmark()
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
        "shared": {kind: [trained[job.name] for job in of_kind] for kind, of_kind in shared.items()},
        "draw": float(np.mean([bool(near) and rank <= TOP for near, rank in map(_standing_of(SIGNAL), range(len(macs)))])),
    }


def objective_of(one: Search, target: float) -> Objective:
    return Objective("accuracy", form=one.reward, toward=(measured("macs") <= target,))


def _standing_of(signal: str) -> Any:
    """Row number -> whether it is near the target, and the share of the members there that are better by the column `signal`."""
    table = benchmark()
    macs, quality = table.cost("macs").astype(float), table.column(signal)
    target = float(np.median(macs))
    near = np.abs(macs / target - 1) <= NEAR
    among = np.sort(quality[near])

    def standing(place: int) -> tuple[bool, float]:
        return bool(near[place]), float(1 - np.searchsorted(among, quality[place], side="right") / len(among))

    return standing


def run_searches(one: Search, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Where searches end, and what random search of as many evaluations picks by the same reward, one entry per seed."""
    table = benchmark()
    macs, quality = table.cost("macs").astype(float), table.column(one.signal) / 100
    target = float(np.median(macs))
    objective, standing = objective_of(one, target), _standing_of(one.signal)

    def metrics(arch: Architecture) -> dict[str, float]:
        place = table.place(arch)
        return {"accuracy": float(quality[place]), "macs": float(macs[place])}

    def told(place: int) -> dict[str, float]:
        near, rank = standing(place)
        return {"ratio": float(macs[place] / target), "near": float(near), "rank": rank, "signal": float(table.column(SIGNAL)[place]), "truth": float(table.column(TRUTH)[place])}  # fmt: skip

    rewards = np.array([objective.reward({"accuracy": q, "macs": m}) for q, m in zip(quality.tolist(), macs.tolist(), strict=True)])
    policy, sampled, random = [], [], []
    for seed in range(seeds):
        done = searched(tunas.controller(objective, steps=one.steps, lr=one.lr), table.space, metrics, one.steps, seed)
        policy.append(told(table.place(done.mode)))
        places = [table.place(trial.arch) for trial in done.trials]
        sampled.append(told(max(places, key=lambda place: rewards[place])))
        drawn = np.random.default_rng(seed).integers(len(macs), size=one.steps)
        random.append(told(int(drawn[np.argmax(rewards[drawn])])))
    return {"policy": policy, "sampled": sampled, "random": random}


# --- what it says -----------------------------------------------------------------------------------------------------------------


def section_of(results: dict[str, Any]) -> Section:
    quick, found = results["quick"], results["found"]
    seeds = results["plan"]["seeds"]

    def verdict(holds: bool) -> Verdict:
        return "not decided (quick)" if quick else "holds" if holds else "does not hold"

    def share(text: str, who: str, test: Any) -> float:
        return float(np.mean([test(one) for one in found[text][who]]))

    def near(one: dict[str, float]) -> bool:
        return bool(one["near"])

    def top(one: dict[str, float]) -> bool:
        return one["rank"] <= TOP

    def both(one: dict[str, float]) -> bool:
        return near(one) and top(one)

    searches = [Search(**one) for one in results["plan"]["searches"]]
    main = searches[0].text
    soft = [one for one in searches if one.form == "soft"]
    rows = []
    for one in searches:
        for who, label in (
            ("policy", "most likely at the end"),
            ("sampled", "best reward that it sampled"),
            ("random", "random search, best reward"),
        ):
            entries = found[one.text][who]
            truth = bootstrap([entry["truth"] for entry in entries])
            rows.append((one.text, label, f"{np.mean([abs(entry['ratio'] - 1) for entry in entries]):.1%}", percent(share(one.text, who, near), 0), percent(share(one.text, who, top), 0),
                         percent(share(one.text, who, both), 0), f"{truth.mean:.2f} [{truth.low:.2f}, {truth.high:.2f}]"))  # fmt: skip
    fronts = results["fronts"]
    held = [one for one in fronts if one["form"] == "absolute"]
    drift = [one["ratio"] for one in fronts if one["form"] == "soft"]
    shared_claims, shared_tables = claims_of(results["shared"], SharedPlan(**results["plan"]["shared"]), verdict)
    better = bootstrap([a["truth"] - b["truth"] for a, b in zip(found[main]["policy"], found[main]["random"], strict=True)])
    return Section(
        "tunas",
        "TuNAS: controller, reward and shared weights",
        (
            f"NAS-Bench-201, 15,625 cells: the signal is the validation accuracy after 12 epochs, the cost multiply-adds (only {results['costs']} different values), the target "
            f"their median, {results['target'] / 1e6:.1f} million, within 10 % of which {results['near']:,} cells lie. REINFORCE on independent softmaxes, one cell a step, "
            f"momentum {tunas.MOMENTUM}, Adam without a first moment, a learning rate that waits for a quarter of the steps and then grows tenfold; {seeds} seeds; at the "
            f"end the most likely option of each decision. Here every step's reward is exact; shared weights come after.",
            f"A step costs one evaluation here, so 3,000 steps may look at a fifth of the table, and random search of equal cost does. One random draw meets both conditions in {percent(results['draw'])}.",
            ABOUT,
        ),
        (
            Claim(tunas.CLAIMS["target"][0], tunas.CLAIMS["target"][1],
                  "best reward in the table, cost / target: " + ", ".join(f"{one['ratio']:.2f} at beta {one['weight']}" for one in held), "not a search", verdict(all(abs(one["ratio"] - 1) <= NEAR for one in held))),
            Claim(tunas.CLAIMS["soft"][0], tunas.CLAIMS["soft"][1], f"best reward in the table, cost / target: {', '.join(f'{r:.2f}' for r in drift)} at w = -0.03, -0.07, -0.15", "not a search",
                  verdict(max(drift) / min(drift) > 1.1)),
            Claim("One search with the absolute reward ends at the target", "one search [paper]",
                  f"within 10 % of it: {percent(share(main, 'policy', near), 0)} of the searches at beta -0.1; with MnasNet's soft reward: "
                  + ", ".join(f"{percent(share(one.text, 'policy', near), 0)} at w = {one.weight}" for one in soft), f"{percent(share(main, 'random', near), 0)}", verdict(share(main, "policy", near) >= 0.8)),
            Claim("Its network is among the best of its cost", "matches or beats random search [paper]",
                  f"in the top 5 % within 10 % of the target, and that near: {percent(share(main, 'policy', both), 0)} of the searches (learning rate {tunas.TABLE_LR}, beta -0.1)", percent(share(main, "random", both), 0),
                  verdict(share(main, "policy", near) >= 0.8 and share(main, "policy", top) >= 0.7)),
            Claim("The search beats random search of equal cost", tunas.CLAIMS["quality"][1],
                  f"{TRUTH.replace('_', ' ')} of what is found: {better.mean:+.2f} points [{better.low:+.2f}, {better.high:+.2f}] against random search",
                  "best reward of as many draws, in the table below", verdict(better.low > 0)),
            *shared_claims,
            Claim("ImageNet accuracy of the found networks", "ProxylessNAS, enlarged and MobileNetV3-like spaces [paper]", "ImageNet and a supernet at that scale are not here", "-", "not testable here"),
        ),
        (Table(f"Where {seeds} searches of each kind end", ("search", "network", "off target, mean", "within 10 % of the target", "in the top 5 % there", "both", "test accuracy after 200 epochs"), tuple(rows)), *shared_tables),
        quick=quick,
    )  # fmt: skip


EXPERIMENT = Experiment(("tunas",), lambda quick: QUICK if quick else Plan(), measure, section_of)
