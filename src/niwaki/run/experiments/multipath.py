"""MPNAS's claims as experiments, on small grey images: digits, copies of them that are turned or inverted, and Fashion-MNIST."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from niwaki.cost.count import count_macs, count_params
from niwaki.factor.factor import Limit
from niwaki.factor.within import Within, within
from niwaki.gradient.balance import Balance, Prioritised
from niwaki.gradient.multipath import MPNAS, JointTraining, MultiPathSearch, train_paths
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.nn.multipath import shared_share, union_params
from niwaki.nn.supernet import extract
from niwaki.recipe import multipath
from niwaki.recipe.multipath import BALANCES, SMALL, candidates
from niwaki.run.claims import Claim, Section, Table, percent
from niwaki.run.experiments.data import shared_data
from niwaki.run.experiments.experiment import Experiment
from niwaki.run.experiments.verdicts import above, at_least, claim, not_testable, section
from niwaki.run.folder import Folder
from niwaki.run.progress import Progress
from niwaki.run.statistics import bootstrap
from niwaki.run.workers import Job, Workers
from niwaki.space.architecture import Architecture
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.task.images import arrays
from niwaki.task.task import derive_seed
from niwaki.train.loop import evaluate

SIDE = 14
FASHION_TEST = 2_000
NEAR = 0.10  # of the target, for paths drawn at random
SHARE, LOST = 0.6, 1.0  # of the parameters of single networks, and points of accuracy, at most
SHARED, MOSTLY = 0.75, 0.8  # of the nodes of an identical copy, and of searches and seeds, at least
LATE = ("layer3", "layer4")
PERMUTED = (3, 7, 1, 8, 5, 0, 9, 2, 4, 6)  # no digit stays what it was

Domains = tuple[tuple[str, int | None], ...]  # kind and how many training images, None for all
SHARING: Domains = (("digits", None), ("fashion", 5_000), ("turned", None))
CONFLICT: Domains = (("digits", None), ("copy", None), ("permuted", None))
SIZES: Domains = (("fashion", 10_000), ("digits", 1_000), ("turned", 200))


@dataclass(frozen=True)
class Plan:
    """steps: of a search, and of a training. seeds: of the comparison with single networks, of the conflict, and of the balances each."""

    search_steps: int = 200
    train_steps: int = 250
    sharing_seeds: int = 3
    conflict_seeds: int = 5
    balance_seeds: int = 5
    balances: tuple[str, ...] = ("uniform", "prioritised", "proportional")
    minutes: str = "about 6 minutes on one idle core"

    def to_json(self) -> dict[str, Any]:
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items() if key != "minutes"}

    @property
    def training(self) -> JointTraining:
        return JointTraining(**{**asdict(SMALL.training), "steps": self.train_steps, "validation_batches": 1})

    @property
    def search(self) -> MPNAS:
        return MPNAS(JointTraining(**{**asdict(SMALL.training), "steps": self.search_steps}), SMALL.control, SMALL.architecture_share)


QUICK = Plan(4, 4, 1, 1, 1, minutes="seconds")


# --- data and networks ------------------------------------------------------------------------------------------------------------


def domain_task(kind: str, count: int | None, seed: int) -> ImageClassification:
    """A domain: "digits"; "turned" by a quarter; "copy", the same again; "permuted", the same with other labels; "fashion". 14 x 14, uint8."""
    if kind == "fashion":
        (images, labels), (test_images, test_labels) = fashion("train"), fashion("test")
        test_images, test_labels = test_images[:FASHION_TEST], test_labels[:FASHION_TEST]
    else:
        source = digits()
        images, labels, test_images, test_labels = enlarged(source.images), source.labels, enlarged(source.test_images), source.test_labels
        if kind == "turned":
            images, test_images = (np.ascontiguousarray(np.rot90(one, axes=(1, 2))) for one in (images, test_images))
        if kind == "permuted":
            labels, test_labels = (np.array(PERMUTED, dtype=np.int64)[one] for one in (labels, test_labels))
    if count is not None:
        kept = np.random.default_rng(derive_seed(seed, "images", kind)).permutation(len(images))[:count]
        images, labels = images[kept], labels[kept]
    return ImageClassification(arrays(images, labels, test_images, test_labels, source=kind), seed=seed)


@lru_cache(maxsize=2)
def fashion(part: str) -> tuple[NDArray, NDArray]:
    """Fashion-MNIST, 28 x 28 to 14 x 14, each pixel the mean of four."""
    file = np.load(shared_data("fashion_mnist", f"{part}.npz"))
    images = file["images"]
    quarters = images.reshape(len(images), SIDE, 2, SIDE, 2).astype(np.uint16)
    return ((quarters.sum(axis=(2, 4)) + 2) // 4).astype(np.uint8), file["labels"].astype(np.int64)


def enlarged(images: NDArray) -> NDArray:
    """8 x 8 of 0 to 16, to 14 x 14 of 0 to 240, bilinear."""
    large = F.interpolate(torch.from_numpy(images.astype(np.float32))[:, None], (SIDE, SIDE), mode="bilinear")
    return (15 * large[:, 0]).round().numpy().astype(np.uint8)


@lru_cache(maxsize=1)
def target() -> int:
    """Multiply-adds of a path: the median of all paths."""
    cost = count_macs(candidates())
    return int(np.median([cost(arch) for arch in space_of(candidates()).enumerate()]))


def space() -> Within:
    return within(space_of(candidates()), [Limit(count_macs(candidates()), target())])


def networks_of(names: Sequence[str]) -> dict[str, Network]:
    return {name: candidates() for name in names}


def tasks_of(domains: Domains, seed: int) -> dict[str, ImageClassification]:
    return {kind: domain_task(kind, count, seed) for kind, count in domains}


# --- what is measured -------------------------------------------------------------------------------------------------------------


def search_paths(domains: Domains, plan: Plan, seed: int) -> dict[str, dict[str, Any]]:
    """The path of each domain after a search of all of them together."""
    tasks = tasks_of(domains, seed)
    search = MultiPathSearch(networks_of(list(tasks)), tasks, {name: space() for name in tasks}, plan.search, seed=seed)
    search.run()
    return {name: path.to_json() for name, path in search.paths.items()}


def train_jointly(domains: Domains, paths: Mapping[str, Any], plan: Plan, balance: Balance, seed: int) -> dict[str, dict[str, float]]:
    """Accuracies of each domain, in points, after training together on `paths`."""
    tasks, where = tasks_of(domains, seed), space_of(candidates())
    own = {name: Architecture.from_json(path, where) for name, path in paths.items()}
    net = train_paths(networks_of(list(tasks)), tasks, own, plan.training, balance=balance, seed=seed).eval()
    found = {}
    for name, task in tasks.items():
        module = extract(net.net(name), own[name])
        found[name] = {part: 100 * evaluate(module, task, task.part(part))["accuracy"] for part in ("validation", "test")}
    return found


def random_paths(names: Sequence[str], seed: int, number: int) -> dict[str, Any]:
    """Paths drawn evenly among those within 10 % of the target."""
    cost = count_macs(candidates())
    near = [arch for arch in space_of(candidates()).enumerate() if abs(cost(arch) / target() - 1) <= NEAR]
    generator = np.random.default_rng(derive_seed(seed, "random paths", number))
    return {name: near[generator.integers(len(near))].to_json() for name in names}


def run_sharing(plan: Plan, seed: int) -> dict[str, Any]:
    """Together, apart, and on random paths: paths and accuracies. Together and apart have as many steps for each domain."""
    names, balance = [kind for kind, _ in SHARING], Prioritised()
    together = search_paths(SHARING, plan, seed)
    found = {"together": {"paths": together, "accuracy": train_jointly(SHARING, together, plan, balance, seed)}}
    apart: dict[str, Any] = {"paths": {}, "accuracy": {}}
    for domain in SHARING:
        alone = search_paths((domain,), plan, seed)
        apart["paths"] |= alone
        apart["accuracy"] |= train_jointly((domain,), alone, plan, balance, seed)
    draws = []
    for number in range(2):  # a search costs about as much as a training, so the better of two trainings costs as much as the two
        paths = random_paths(names, seed, number)
        draws.append({"paths": paths, "accuracy": train_jointly(SHARING, paths, plan, balance, seed)})
    best = max(draws, key=lambda one: np.mean([accuracy["validation"] for accuracy in one["accuracy"].values()]))
    return found | {"apart": apart, "random": best}


def run_conflict(plan: Plan, seed: int) -> dict[str, Any]:
    names = [kind for kind, _ in CONFLICT]
    return {"paths": search_paths(CONFLICT, plan, seed), "random": random_paths(names, seed, 0)}


def run_alone(plan: Plan, seed: int) -> list[float]:
    """Validation accuracy of each domain by itself, on the path that all take in the comparison of balances."""
    return [train_jointly((one,), {one[0]: common_path()}, plan, BALANCES["uniform"], seed)[one[0]]["validation"] / 100 for one in SIZES]


def run_balance(plan: Plan, name: str, references: Sequence[float], seed: int) -> dict[str, dict[str, float]]:
    balance = Prioritised(tuple(references)) if name == "prioritised" else BALANCES[name]
    return train_jointly(SIZES, {kind: common_path() for kind, _ in SIZES}, plan, balance, seed)


def common_path() -> dict[str, Any]:
    """k3e4 everywhere: nothing about paths may differ where balances are compared."""
    return space_of(candidates()).architecture({f"layer{at}": "k3e4" for at in range(1, 5)}).to_json()


def measure(plan: Plan, folder: Folder, progress: Progress, workers: int) -> dict[str, Any]:
    with Workers(workers) as pool:
        sharing = {seed: Job(f"sharing {seed}", run_sharing, (plan, seed)) for seed in range(plan.sharing_seeds)}
        conflict = {seed: Job(f"conflict {seed}", run_conflict, (plan, seed)) for seed in range(plan.conflict_seeds)}
        alone = {seed: Job(f"alone {seed}", run_alone, (plan, seed)) for seed in range(plan.balance_seeds)}
        jobs = [*sharing.values(), *conflict.values(), *alone.values()]
        first = pool.run(jobs, folder, progress, f"{len(jobs)} searches and trainings")
        balances = {
            (name, seed): Job(f"balance {name} {seed}", run_balance, (plan, name, first[alone[seed].name], seed))
            for seed in range(plan.balance_seeds)
            for name in plan.balances
        }
        second = pool.run(list(balances.values()), folder, progress, f"{len(balances)} trainings")
    return {
        "target": target(),
        "sharing": [counted(first[job.name]) for job in sharing.values()],
        "conflict": [first[job.name] for job in conflict.values()],
        "alone": [first[job.name] for job in alone.values()],
        "balances": {name: [second[balances[name, seed].name] for seed in range(plan.balance_seeds)] for name in plan.balances},
    }


def counted(found: dict[str, Any]) -> dict[str, Any]:
    """With the parameters of all paths together: of single networks the sum, else the union."""
    where, cost, macs = space_of(candidates()), count_params(candidates()), count_macs(candidates())
    for name, one in found.items():
        paths = {domain: Architecture.from_json(path, where) for domain, path in one["paths"].items()}
        alone = sum(cost(path) for path in paths.values())
        one["params"] = alone if name == "apart" else union_params(networks_of(list(paths)), paths)
        one["macs"] = [macs(path) for path in paths.values()]
    return found


# --- what it says -----------------------------------------------------------------------------------------------------------------


def section_of(results: dict[str, Any]) -> Section:
    claims = (
        _parameters(results["sharing"]),
        _accuracy(results["sharing"]),
        _copies_share(results["conflict"]),
        _conflicts_part(results["conflict"]),
        _balanced(results["balances"]),
        not_testable(*multipath.CLAIMS["decathlon"], "the ten domains are not here; the score is `recipe.multipath.decathlon_score`"),
    )
    tables = (_together_and_apart(results), _balances(results))
    return section("multipath", "MPNAS: multi-path networks", results, _about(results), claims, tables)


def _mean(one: Mapping[str, Mapping[str, float]]) -> float:
    """Test accuracy over domains."""
    return float(np.mean([accuracy["test"] for accuracy in one.values()]))


def _parameters(sharing: list[dict[str, Any]]) -> Claim:
    text, paper = multipath.CLAIMS["params"]
    share = {name: [one[name]["params"] / one["apart"]["params"] for one in sharing] for name in ("together", "random")}
    return claim(
        f"{text}: at most {percent(SHARE, 0)} of theirs, with every seed",
        paper,
        f"{percent(float(np.mean(share['together'])), 0)} of the parameters of three single networks "
        f"({', '.join(percent(one, 0) for one in share['together'])})",
        f"{percent(float(np.mean(share['random'])), 0)}, random paths",
        max(share["together"]) <= SHARE,
    )


def _accuracy(sharing: list[dict[str, Any]]) -> Claim:
    text, paper = multipath.CLAIMS["accuracy"]
    gain = {
        name: bootstrap([_mean(one[name]["accuracy"]) - _mean(one["apart"]["accuracy"]) for one in sharing])
        for name in ("together", "random")
    }
    return claim(
        f"{text}; asked for here: at most {LOST:g} point lower, the whole interval",
        paper,
        f"{gain['together'].text(sign=True)} points against the mean of three single networks",
        f"{gain['random'].text(sign=True)}, random paths",
        at_least(gain["together"], -LOST),
    )


def _copies_share(conflict: list[dict[str, Any]]) -> Claim:
    text, paper = multipath.CLAIMS["transfer"]
    found, random = ([pairs(one[key])["copy"] for one in conflict] for key in ("paths", "random"))

    def words(shares: list[float]) -> str:
        return f"{sum(one >= SHARED for one in shares)} of {len(shares)}, {percent(float(np.mean(shares)), 0)} on average"

    return claim(
        f"{text}: an identical copy shares at least {percent(SHARED, 0)} of its nodes, in every search",
        paper, words(found), words(random), all(one >= SHARED for one in found),
    )  # fmt: skip


def _conflicts_part(conflict: list[dict[str, Any]]) -> Claim:
    text, paper = multipath.CLAIMS["transfer"]
    late, random = (sum(pairs(one[key])["late"] for one in conflict) for key in ("paths", "random"))
    return claim(
        f"{text}: paths of a domain and its copy with permuted labels differ in a late layer, in at least {percent(MOSTLY, 0)} of these "
        "searches",
        paper,
        f"{late} of {len(conflict)}; the heads are their own, so that the labels are no conflict for what is shared",
        f"{random} of {len(conflict)}",
        late >= MOSTLY * len(conflict),
    )


def _balanced(balances: dict[str, list[dict[str, dict[str, float]]]]) -> Claim:
    text, paper = multipath.CLAIMS["balance"]
    both = list(zip(balances["prioritised"], balances["uniform"], strict=True))
    smallest = SIZES[-1][0]
    gains = [(a[smallest]["test"] - b[smallest]["test"], _error_of(b[smallest]["test"])) for a, b in both]
    raised, lifted = sum(gain >= error for gain, error in gains), bootstrap([gain for gain, _ in gains])
    changed = bootstrap([_mean(a) - _mean(b) for a, b in both])
    return claim(
        f"{text}: over a uniform sum the smallest domain gains, the whole interval above 0, and a standard error of its test images in "
        "at least "
        f"{percent(MOSTLY, 0)} of these seeds; the mean loses at most {LOST:g} point, the whole interval",
        paper,
        f"of 10,000, 1,000 and 200 images, the smallest gains {lifted.text(sign=True)} points, a standard error in {raised} of "
        f"{len(both)} seeds; "
        f"the mean changes by {changed.text(sign=True)}",
        "not a search",
        above(lifted) and raised >= MOSTLY * len(both) and at_least(changed, -LOST),
    )


def _error_of(value: float) -> float:
    """One standard error of an accuracy in points, of 360 test images."""
    return float(np.sqrt(max(value * (100 - value), 1.0) / 360))


def _about(results: dict[str, Any]) -> tuple[str, ...]:
    plan = results["plan"]
    return (
        "Grey images of 14 x 14 pixels: scikit-learn's digits, enlarged, as they are (1,437 to train on, 360 to test), turned by a "
        "quarter, copied, "
        "or with permuted labels; 5,000 of Fashion-MNIST, halved, and 2,000 to test. Four layers of three candidates each, 81 paths; a "
        "target of "
        f"{results['target']:,} multiply-adds for each path, the median, by the absolute reward (beta -0.1). {plan['search_steps']} "
        "steps of 64 images "
        f"of each domain for a search, {plan['train_steps']} for a training from scratch: minutes on one core, {plan['sharing_seeds']} "
        "seeds beside "
        f"single networks, {plan['conflict_seeds']} for the conflict, {plan['balance_seeds']} for balances, far from Visual Decathlon, "
        "which is not "
        "here. What the paper leaves open is ours: the formula of the prioritisation above all.",
        "Parameters of a multi-path network are of the union of its paths, each weight once. Each domain's request costs its own path: the "
        "multiply-adds in the table; if all domains run, they add up.",
    )


def _together_and_apart(results: dict[str, Any]) -> Table:
    sharing, rows = results["sharing"], []
    labels = {
        "together": "multi-path network",
        "apart": "a network for each domain",
        "random": "random paths, the better of two trainings",
    }
    for name, label in labels.items():
        found = [one[name] for one in sharing]
        each = (np.mean([one["accuracy"][domain]["test"] for one in found]) for domain, _ in SHARING)
        rows.append((
            label, f"{np.mean([one['params'] for one in found]):,.0f}",
            f"{np.mean([one['macs'] for one in found]) / results['target']:.2f}",
            *(f"{value:.2f}" for value in each), f"{np.mean([_mean(one['accuracy']) for one in found]):.2f}",
        ))  # fmt: skip
    columns = ("network", "parameters", "multiply-adds of a path / target", *(kind for kind, _ in SHARING), "mean")
    return Table(f"Three domains together and apart, {len(sharing)} seeds, test accuracy", columns, tuple(rows))


def _balances(results: dict[str, Any]) -> Table:
    rows = []
    for name in results["plan"]["balances"]:
        found = results["balances"][name]
        each = (np.mean([one[domain]["test"] for one in found]) for domain, _ in SIZES)
        rows.append((name, *(f"{value:.2f}" for value in each), f"{np.mean([_mean(one) for one in found]):.2f}"))
    columns = ("balance", *(f"{kind}, {number:,} images" for kind, number in SIZES if number), "mean")
    return Table(f"Balances, one path for all, {len(results['balances']['uniform'])} seeds, test accuracy", columns, tuple(rows))


def pairs(paths: Mapping[str, Any]) -> dict[str, Any]:
    """What the copy shares with the digits, and whether the permuted digits differ from them in a late layer."""
    where = space_of(candidates())
    own = {name: Architecture.from_json(path, where) for name, path in paths.items()}
    return {
        "copy": shared_share(own["digits"], own["copy"]),
        "late": any(own["digits"][layer] != own["permuted"][layer] for layer in LATE),
    }


EXPERIMENT = Experiment(("multipath", "mpnas"), lambda quick: QUICK if quick else Plan(), measure, section_of)
