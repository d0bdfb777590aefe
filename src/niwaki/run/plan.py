"""From a configuration to a search that is fixed in every detail, before any work starts."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from math import ceil, prod
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki import zoo
from niwaki.adoption import AdoptionError, adopt
from niwaki.cost.count import COSTS
from niwaki.deploy.weight_pool import HashingError
from niwaki.evaluate.shared import SharedWeights
from niwaki.factor.eliminate import even
from niwaki.factor.factor import Cost, Limit
from niwaki.factor.within import within
from niwaki.gradient.controller import Control
from niwaki.gradient.dmasking import DMasking, DMaskingSearch
from niwaki.gradient.one_shot import OneShot, OneShotSearch
from niwaki.gradient.train_once import TrainOnceSearch
from niwaki.gradient.tunas import TuNAS, TuNASSearch
from niwaki.net.control import Network
from niwaki.net.edit import restrict
from niwaki.net.place import place, space_of
from niwaki.nn.importance import important_first
from niwaki.objective import Objective, budget_text, parse_budgets
from niwaki.recipe import bignas
from niwaki.run import workers
from niwaki.run.candidates import SPENT, aims_of
from niwaki.run.choose import FEW, resolutions
from niwaki.run.clock import working_seconds
from niwaki.run.config import BY_GRADIENT, TRAIN_ONCE, Config, ConfigError, Data, config_of, from_scratch
from niwaki.run.finalists import finalist_workers, processes
from niwaki.run.loop import learner_of, shared_learner, to_train
from niwaki.run.model import ModelError, load_model
from niwaki.run.regular import regular
from niwaki.run.search import AnyTask, AskTell, Budget, Search, plain, trains_once
from niwaki.run.strategies import strategy_named
from niwaki.run.teacher import load_teacher
from niwaki.run.warm_start import checkpoint_of
from niwaki.space.choice import SpaceError
from niwaki.space.size import largest, smallest
from niwaki.strategy.evolution import RegularizedEvolution
from niwaki.strategy.strategy import Strategy
from niwaki.task.classify import ImageClassification
from niwaki.task.cut import DataError
from niwaki.task.embedded import digits
from niwaki.task.folder import image_folder
from niwaki.task.images import npz
from niwaki.task.table import MISSING, read_table
from niwaki.task.tabular import Tabular, kind_of_metric
from niwaki.train.distill import DistillationError, Teacher
from niwaki.train.loop import Training, TrainingDiverged, batches_per_epoch, start
from niwaki.train.rates import Rated, RateError, parse_rate
from niwaki.train.recipe import Recipe
from niwaki.trial import EvaluationFailed
from niwaki.zoo.mobile import LARGEST, SMALLEST, mobile

SEARCH_MACS = 3e12  # what all epochs of a search may cost, counted on forward passes of the supernet's largest member
MOST_EPOCHS = 40
MIXTURE = 6  # passes of the largest member that a step on the logits costs, with all block types, depths and resolutions
LOGIT_STEPS = 400  # wanted for a distribution, by going over the architecture's share more than once an epoch
MOST_PASSES = 2  # over the architecture's share in an epoch
MOST_APART, MOST_RESOLUTIONS = 3, 8  # input resolutions that are searched each for itself: by default, and where it is asked for
FINAL_STEPS = 7000  # optimizer steps of the final training, where the fewest and most epochs allow it
THREADED_MACS = 3e8  # of a batch through the largest member; with fewer, one thread is as fast as two
WORKERS_START_S = 5.0  # until processes that train finalists have imported what they need, where nothing else runs
STARTING = 0.15  # of a time limit, at most, may go by while they do; else finalists are trained in the process of the search
TIMED_S = 0.1  # for which steps are timed at least, where there is a time limit: longer than a busy machine lets one process run at a time
FOLDS = 3
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
TIMED = 4  # networks, for an estimate
FINALISTS, CROSS_VALIDATED = 20, 8  # networks that are trained for a choice: where one training each is enough, and where it is not
REGULAR = 0.75  # of the finalists
COST_WEIGHT = 0.2  # with more, the logits run for the cheapest options before the weights have shown what the others are worth
TRIM = 0.05  # of the architectures within the budget; options of fewer are left out of niwaki's own family
TABLE_BUDGET = "params<=10000"
TABLE_RECIPE = Recipe(optimizer="adamw", lr=0.015, weight_decay=1e-4, warmup=0.1, label_smoothing=0.0)
TABLE_BATCHES = ((20_000, 256), (5_000, 128), (1_000, 64), (0, 32))  # from so many rows on, so many in a batch
TABLE_STEPS, TABLE_SEARCH_STEPS = 6000, 1000  # of the final training, and of the supernet's weights
TABLE_FINALISTS = 12  # as FINALISTS; networks that differ in widths alone are less unlike
PLANNED = {  # what a time limit may reduce where nothing was asked for, and the least that means anything
    ("search", "epochs"): 3,
    ("search", "candidates"): 8,
    ("search", "finalists"): 1,
    ("search", "regular"): 0,
    ("search", "evaluations"): 8,
    ("train", "epochs"): 3,
}
RATIO = DMasking().temperature_decay ** DMasking().epochs  # how far the published schedule lowers the temperature


def task_of(config: Config) -> AnyTask:
    """The task that `config.data` describes; reads the data. Raises DataError."""
    data, task = config.data, _task_of_data(config)
    if not data.is_rate:
        return task
    assert data.metric is not None
    names = tuple(_class_names(task))
    if len(names) < 2:
        raise ConfigError("the configuration", [f"data.metric = {data.metric!r} is a rate of classes, and the target is a number"])
    if data.positive not in names and (data.positive is not None or len(names) > 2):
        said = (
            f"data.positive = {data.positive!r} is none of the classes"
            if data.positive is not None
            else "data.metric is of one class against all others; say which (data.positive)"
        )
        raise ConfigError("the configuration", [f"{said}: {', '.join(names)}"])
    try:
        return Rated(task, parse_rate(data.metric), 1 if data.positive is None else names.index(data.positive))
    except RateError as error:
        raise ConfigError("the configuration", [f"data.metric: {error}"]) from error


def _class_names(task: AnyTask) -> Sequence[str]:
    of = plain(task)
    return (of.table.class_names or ()) if isinstance(of, Tabular) else of.images.class_names


def _task_of_data(config: Config) -> ImageClassification | Tabular:
    data, own = config.data, None if config.data.is_rate else config.data.metric
    weights: Any = None if data.class_weights == "none" else data.class_weights
    if data.kind == "table":
        rows = read_table(
            str(data.path),
            target=data.target,
            kind=data.task or kind_of_metric(data.metric),
            categorical=data.categorical,
            ignore=data.ignore or (),
            split=data.split,
            groups=data.groups,
            missing=MISSING if data.missing is None else data.missing,
        )
        return Tabular(
            rows,
            validation=data.validation,
            metric=own or "auto",
            class_weights=weights,
            knots=data.knots,
            fill=data.fill,
            seed=config.seed,
        )
    if data.kind == "digits":
        images = digits()
    elif data.kind == "npz":
        images = npz(str(data.path), layout=data.layout)
    else:
        images = image_folder(str(data.path), size=data.size)
    metric: Any = own or "accuracy"
    return ImageClassification(images, validation=data.validation, metric=metric, class_weights=weights, seed=config.seed)


def network_of(config: Config, task: AnyTask) -> tuple[Network, Mapping[str, Tensor] | None]:
    """The network or space that `config.network` names, at the size of the data.

    A torch module is adopted: its widths are what is searched, and its weights, the units of each width in order of importance, come with it.
    """
    task = plain(task)
    if ":" in config.network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            found = load_model(config.network)
        if isinstance(found, nn.Module):
            try:
                network, weights = adopt(found, torch.zeros(1, *task.input_shape))
            except AdoptionError as error:
                raise ModelError(f"{config.network}: {error}") from error
            return network, important_first(network, weights)
        if not isinstance(found, Network):
            raise ModelError(
                f"{config.network} is a {type(found).__name__}; a search needs a niwaki Network with choices, or a torch module"
            )
        return (Network(found.body, task.input_shape) if found.input_shape != task.input_shape else found), None
    return _named(config, task), None


def _named(config: Config, task: ImageClassification | Tabular) -> Network:
    """The network of the zoo that `config.network` names."""
    if isinstance(task, Tabular):
        name = "mlp" if config.network == "auto" else config.network
        return zoo.network(name, input_shape=task.input_shape, classes=task.outputs, columns=task.columns)
    if isinstance(task, ImageClassification) and config.network == "auto":
        channels, height, width = task.input_shape
        if min(height, width) < SMALLEST:
            raise ConfigError(
                "the configuration", [f"network = 'auto' is made for images of at least {SMALLEST} pixels; these are {height} x {width}"]
            )
        size = min(height, LARGEST)
        return Network(mobile(size, channels, task.outputs).body, task.input_shape)
    return zoo.network(config.network, input_shape=task.input_shape, classes=task.outputs)


def _check_fits(network: Network, task: AnyTask) -> None:
    """Refuses a network that cannot read the examples of `task`, does not give what it asks for, or leaves nothing to choose."""
    if network.input_shape != task.input_shape:
        what, axes = ("rows", "features") if isinstance(plain(task), Tabular) else ("images", "channels, height, width")
        raise ModelError(f"the network reads {what} of {_sizes(network.input_shape)}, the data are {_sizes(task.input_shape)} ({axes})")
    placement = place(network)
    if not placement.decisions:
        raise ModelError("the network has no choices, so there is nothing to search; make a size a Choice, or a layer a OneOf")
    shape = placement.shape_of(placement.output)
    least, most = smallest(shape.width), largest(shape.width)
    if shape.spatial or (least, most) != (task.outputs, task.outputs):
        given = (
            f"maps of {_sizes((most, *map(largest, shape.spatial)))}"
            if shape.spatial
            else f"{least if least == most else f'{least} to {most}'} numbers"
        )
        example = "a row" if isinstance(plain(task), Tabular) else "an image"
        raise ModelError(f"the network gives {given} for {example}, where {task.outputs} are needed: one for each class of the data")


def _check_cascade(config: Config, task: AnyTask, budgets: int) -> None:
    """Refuses a cascade of one network, or of networks that know no classes."""
    if config.cascade is None:
        return
    where = f"cascade = {config.cascade!r}"
    if budgets < 2:
        raise ConfigError(
            "the configuration", [f'{where} is made of the networks of several budgets, such as ["macs<=50k", "macs<=500k"]; there is one']
        )
    if not _class_names(task):
        raise ConfigError("the configuration", [f"{where} asks how sure a network is of a class; the target is a number"])


def _check_of_table(config: Config, task: AnyTask) -> None:
    """Refuses keys that were set and mean nothing for the table of `task`."""
    task = plain(task)
    if not isinstance(task, Tabular):
        return
    idle = []
    if config.data.kind == "table" and task.table.validation is not None and config.data.validation != Data().validation:
        idle.append(f"data.validation = {config.data.validation} has no effect: the table says itself which rows are for validation")
    if config.train.label_smoothing and not task.is_classification:
        idle.append(f"train.label_smoothing = {config.train.label_smoothing} has no effect: it is for classes, and the target is a number")
    if idle:
        raise ConfigError("the configuration", idle)


def _sizes(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def trimmed(network: Network, budgets: Sequence[Budget], share: float) -> tuple[Network, list[str]]:
    """`network` without the options that hardly fit any budget, and what was left out, for people.

    An option goes if, of the architectures within a budget (every choice drawn evenly), less than `share` take it, whichever the budget. It
    keeps the supernet, which is as wide as the widest option, near the size of what may be delivered. Ours; 0 leaves everything in.
    """
    space = space_of(network)
    chances = even(space)
    seen = {name: np.zeros_like(p) for name, p in chances.items()}
    for budget in budgets:
        _, slopes = within(space, budget.limits).feasible.log_probability(chances)
        for name, p in chances.items():
            seen[name] = np.maximum(seen[name], p * np.asarray(slopes[name]))  # P(option | within the budget)
    kept, told = {}, []
    for decision in space.decisions:
        gone = [option for option, chance in zip(decision.options, seen[decision.name], strict=True) if chance < share]
        if decision.condition is True and gone and len(gone) < len(decision.options):
            kept[decision.name] = [option for option in decision.options if option not in gone]
            told.append(f"{decision.name} {', '.join(map(str, gone))}")
    return (restrict(network, kept) if kept else network), told


def default_budget(task: AnyTask) -> str:
    """A modest budget for images of this size, or for a table."""
    if isinstance(plain(task), Tabular):
        return TABLE_BUDGET
    side = max(task.input_shape[1:])
    return "macs<=100000" if side <= 16 else "macs<=1000000" if side <= 48 else "macs<=10000000" if side <= 96 else "macs<=100000000"


def decide(config: Config, task: AnyTask, network: Network) -> Config:
    """`config` with an answer for every key that was left open, from the sizes of data and network and the number of cores: never from a clock."""
    cores = allotted_cores()
    recipe, batch, final_epochs = default_recipe(task)
    search_batch = config.search.batch_size or batch
    weight_part, architecture_part = task.search_split(config.search.architecture_share or DMasking.architecture_share)
    most_macs = COSTS["macs"](network).maximum()[0]
    per_epoch = most_macs * (len(weight_part) + MIXTURE * len(architecture_part))
    affordable = round(SEARCH_MACS / max(per_epoch, 1))  # epochs
    stated = config.search.warmup_epochs
    if isinstance(plain(task), Tabular):
        affordable = min(affordable, ceil(TABLE_SEARCH_STEPS / batches_per_epoch(len(weight_part), search_batch)))
    once = config.method in TRAIN_ONCE  # its training is the last one, too
    search_epochs = (
        config.search.epochs or final_epochs
        if once
        else config.search.epochs or max(8 if stated is None else stated + 1, min(MOST_EPOCHS, affordable))
    )
    sizes = prod(len(space_of(network)[name].options) for name in resolutions(place(network)))
    apart = config.search.resolutions or ("apart" if 1 < sizes <= MOST_APART else "mixed")
    if config.search.resolutions == "apart" and not 1 < sizes <= MOST_RESOLUTIONS:
        raise ConfigError(
            "the configuration",
            [
                f"search.resolutions = 'apart': the network searches {sizes} input resolution{'s' * (sizes > 1)}; from 2 to {MOST_RESOLUTIONS} can be searched apart"
            ],
        )
    distributions = (sizes if apart == "apart" else 1) * len(config.budget or [""])
    passes = ceil(LOGIT_STEPS * distributions / (search_epochs * batches_per_epoch(len(architecture_part), search_batch)))
    folds = config.search.folds or (1 if once else _folds(task))
    alone = TABLE_FINALISTS if isinstance(plain(task), Tabular) else FINALISTS
    finalists = 1 if once else config.search.finalists or (alone if folds == 1 else CROSS_VALIDATED)
    regular_ones = round(REGULAR * (finalists - 1)) if config.method in BY_GRADIENT else 0  # else methods could not be told apart
    if config.search.regular is not None and config.search.regular >= finalists:
        raise ConfigError(
            "the configuration",
            [
                f"search.regular = {config.search.regular} of search.finalists = {finalists}: at least one is a network that the search found"
            ],
        )
    published = DMasking()
    warmup = stated if stated is not None else min(max(1, search_epochs // 4), search_epochs - 1)
    values = {
        # of small networks a training is mostly overhead, which a second thread does not share, and which it suffers from beside other work
        "threads": cores if batch * most_macs > THREADED_MACS else 1,
        # which trials a strategy knows of when it proposes depends on their number: more than one only where it was said
        "workers": 1 if from_scratch(config) else config.threads or cores,
        "search.epochs": search_epochs,
        "search.warmup_epochs": warmup,
        "search.batch_size": batch,
        "search.temperature": published.temperature,
        "search.temperature_decay": RATIO ** (1 / search_epochs),
        "search.weight_lr": bignas.LR if once else 0.05,
        "search.momentum": published.momentum,
        "search.weight_decay": published.weight_decay,
        "search.logit_lr": 0.05,
        "search.logit_weight_decay": published.logit_weight_decay,
        "search.architecture_share": published.architecture_share,
        "search.logit_passes": max(1, min(MOST_PASSES, passes)),
        # all paths in all steps, as published, where that is affordable
        "search.paths": "mixture" if affordable >= MOST_EPOCHS else "sample",
        "search.resolutions": apart,
        "search.objective": "absolute",
        "search.alpha": published.alpha,
        "search.beta": published.beta,
        "search.cost_weight": -Control().beta if config.method == "tunas" else COST_WEIGHT,
        "search.candidates": 48,
        "search.finalists": finalists,
        "search.regular": regular_ones,
        # one or two of a few hundred images decide between networks that are all good; cross-validation looks at several times as many
        "search.folds": folds,
        "search.evaluations": 200,
        "search.strategy": "coarse-to-fine",
        "search.members": "within",
        "train.epochs": final_epochs,
        "train.batch_size": batch,
        **(_told_of(task) if (config.data.kind == "table") == isinstance(plain(task), Tabular) else {}),  # else data and task are others
        **{f"train.{key}": _plain(value) for key, value in asdict(recipe).items() if key not in ("epochs", "batch_size")},
    }
    return config.decided(values)


def default_recipe(task: AnyTask) -> tuple[Recipe, int, int]:
    """How networks are trained on data of this kind and size: the recipe, and its batch size and epochs."""
    examples = len(task.part("train+validation"))
    if isinstance(plain(task), Tabular):
        batch = next(size for least, size in TABLE_BATCHES if examples >= least)
        epochs = ceil(TABLE_STEPS / batches_per_epoch(examples, batch))
        return TABLE_RECIPE, batch, max(20, min(200, epochs))
    batch = 64 if examples < 20_000 else 128
    return Recipe(), batch, max(15, min(300, ceil(FINAL_STEPS / batches_per_epoch(examples, batch))))


def _told_of(task: AnyTask) -> dict[str, Any]:
    """What the data say of themselves, for a configuration that leaves it open."""
    metric, task = (task.objective.text if isinstance(task, Rated) else None), plain(task)
    if not isinstance(task, Tabular):
        return {"data.metric": metric or task.metric}
    table = task.table
    return {
        "data.metric": metric or task.asked,
        "data.task": "classification" if task.is_classification else "regression",
        "data.target": table.target.name,
        "data.categorical": [column.name for column in table.columns if column.values is not None],
        "data.missing": list(table.missing),
        "data.knots": task.most_knots,
    }


def allotted_cores() -> int:
    """Of this machine's cores, those that this process may use: by its affinity, and by the quota of its container (cgroup v2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no such file, or no quota
        quota, period = map(int, CPU_QUOTA.read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def _folds(task: AnyTask) -> int:
    """How many folds to judge finalists on: one where there are many images, or groups that cannot be dealt to several."""
    if len(task.part("validation")) >= FEW:
        return 1
    try:
        task.folds(FOLDS)
    except DataError:
        return 1
    return FOLDS


def device_of(word: str) -> str:
    """The device that `word` means; "auto" is a GPU where there is one. Raises ConfigError for one that this machine has not."""
    there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0))]
    if word == "auto":
        return "cuda" if len(there) > 1 else "cpu"
    if word not in there and not (word == "cuda" and len(there) > 1):
        raise ConfigError("the configuration", [f"device = {word!r}: on this machine torch can use {', '.join(there)}"])
    return word


def search_of(config: Config, task: AnyTask | None = None, network: Network | None = None) -> tuple[Config, Search]:
    """The configuration with nothing left open, and the search it stands for. Everything that can be wrong is found here.

    task, network: in place of those that the configuration names, for callers in Python.
    """
    if (device := device_of(config.device)) != config.device:
        config = Config.model_validate({**config.to_json(), "device": device})
    if config.warm_start is not None and not checkpoint_of(Path(config.warm_start)).is_file():
        raise ConfigError(
            "the configuration",
            [f"warm_start = {config.warm_start!r} is no folder of an earlier search: there is no {checkpoint_of(Path(config.warm_start))}"],
        )
    task = task if task is not None else task_of(config)
    _check_of_table(config, task)
    given, weights = network, None
    if network is None:
        network, weights = network_of(config, task)
    _check_fits(network, task)
    if config.budget is None:
        config = config.decided({"budget": [default_budget(task)]})
    if config.search.trim is None:
        config = config.decided({"search.trim": TRIM if config.network == "auto" and given is None else 0.0})
    costs, budgets = _counted(config, network)
    _check_cascade(config, task, len(budgets))
    for budget in budgets:
        within(space_of(network), budget.limits)  # raises BudgetError, with the least there is and what reaches it
    left_out: list[str] = []
    if config.search.trim:
        network, left_out = trimmed(network, budgets, config.search.trim)
        costs, budgets = _counted(config, network, costs)
    config = decide(config, task, network)
    if (folds := config.search.folds or 1) > 1:
        task.folds(folds)  # raises DataError
    alone = from_scratch(config)  # its trials are what finalists are elsewhere
    search = Search(
        network, task, budgets, costs,
        method=_method(config, task.metric),
        recipe=_recipe(config),
        proxy=_proxy(_recipe(config)),
        candidates=config.search.candidates or 1,
        finalists=1 if alone or config.method in TRAIN_ONCE else config.search.finalists or 1,
        regular=0 if alone or config.method in TRAIN_ONCE else config.search.regular or 0,
        folds=config.search.folds or 1,
        workers=config.workers or 1,
        seed=config.seed,
        device=config.device,
        minutes=config.minutes,
        warm_start=None if config.warm_start is None else Path(config.warm_start),
        cascade=config.cascade,
        resolutions=config.search.resolutions or "mixed",
        left_out=tuple(left_out),
        teacher=teacher_asked(config, task),
        stored=config.train.stored,
        weights=weights,
    )  # fmt: skip
    _check_stored(search)
    return config, search


def fit_to_minutes(asked: Config, config: Config, search: Search) -> tuple[Config, Search, dict[str, float]]:
    """Configuration and search with as much of everything in PLANNED as the time limit allows, by a short timing; and the seconds expected
    of each phase.

    What was asked for stays as it is. Without a limit nothing changes, and the estimate is all.
    """
    if config.minutes is None:
        return config, search, estimate(search)
    working_s = working_seconds(config.minutes, len(search.budgets))
    if asked.workers is None and STARTING * working_s < WORKERS_START_S:
        config = config_of({**config.to_json(), "workers": 1}, "the planned configuration")
        search = replace(search, workers=1)
    began = time.perf_counter()
    seconds = estimate(search)
    room = 0.9 * (working_s - (time.perf_counter() - began))
    for scale in 0.97 ** np.arange(150):  # down to a hundredth
        smaller = _scaled(asked, config, float(scale))
        expected = {phase: _share(phase, config, smaller) * value for phase, value in seconds.items()}
        if sum(expected.values()) <= room:
            break
    recipe = _recipe(smaller)
    return (
        smaller,
        replace(
            search,
            method=_method(smaller, search.task.metric),
            recipe=recipe,
            proxy=_proxy(recipe),
            candidates=smaller.search.candidates or 1,
            finalists=min(search.finalists, smaller.search.finalists or 1),
            regular=min(search.regular, smaller.search.regular or 0),
        ),
        expected,
    )


def _scaled(asked: Config, config: Config, scale: float) -> Config:
    """`config` with what `asked` left open shrunk, all alike, down to the least that means anything."""
    data = config.to_json()
    # a warm-up that was asked for stays, and leaves at least one epoch
    planned = PLANNED | {("search", "epochs"): max(PLANNED["search", "epochs"], (asked.search.warmup_epochs or 0) + 1)}
    planned["search", "finalists"] = (asked.search.regular or 0) + 1  # one of them is always the search's own
    for (section, key), least in planned.items():
        if getattr(getattr(asked, section), key) is None:
            data[section][key] = min(data[section][key], max(least, round(data[section][key] * scale)))
    data["search"]["regular"] = min(data["search"]["regular"], data["search"]["finalists"] - 1)
    epochs = data["search"]["epochs"]
    if asked.search.warmup_epochs is None:
        data["search"]["warmup_epochs"] = min(config.search.warmup_epochs or 0, epochs // 4)
    if asked.search.temperature_decay is None and epochs != config.search.epochs:
        data["search"]["temperature_decay"] = RATIO ** (1 / epochs)
    return config_of(data, "the planned configuration")


def _share(phase: str, config: Config, smaller: Config) -> float:
    """What of the time of `phase` under `config` is left under `smaller`."""

    def ratio(section: str, key: str) -> float:
        return getattr(getattr(smaller, section), key) / getattr(getattr(config, section), key)

    proxy = _proxy(_recipe(smaller)).epochs / _proxy(_recipe(config)).epochs
    trials = ratio("search", "candidates") if config.method in BY_GRADIENT else ratio("search", "evaluations")
    return {
        "search": trials * proxy if from_scratch(config) else ratio("search", "epochs"),
        "judging": trials,
        "finalists": proxy * ratio("search", "finalists"),
        "training": ratio("train", "epochs"),
    }[phase]


def estimate(search: Search) -> dict[str, float]:
    """Seconds that each phase will take on this machine, in their order, by timing a few steps of each."""
    timed_s = 0.0 if search.minutes is None else TIMED_S
    space = space_of(search.network)
    spaces = [within(space, budget.limits) for budget in search.budgets]
    # of networks of one budget one may take several times as long as another
    archs = [regular(one, TIMED, np.random.default_rng(0), spent=SPENT) or [one.mode(even(space))] for one in spaces]
    examples = search.task.part(search.final_part)
    trainings = [
        [
            start(to_train(search, arch), search.task, search.recipe, examples, device=search.device, teacher=search.teacher)
            for arch in of_budget
        ]
        for of_budget in archs
    ]

    def per_epoch() -> float:
        """Of one network of each budget."""
        return sum(mean(_seconds_per_step(one, timed_s) for one in of_budget) * of_budget[0].steps_per_epoch for of_budget in trainings)

    an_epoch = per_epoch()
    short = search.proxy.epochs * an_epoch
    seconds: dict[str, float] = {}
    method = search.method
    if isinstance(method, AskTell) and method.evaluator == "scratch":
        side_by_side = processes(search, method.evaluations)
        if side_by_side > 1:
            with workers.one_thread():
                short = search.proxy.epochs * per_epoch()
        seconds["search"] = short * ceil(method.evaluations / max(1, side_by_side)) + (WORKERS_START_S if side_by_side > 1 else 0.0)
    else:
        learner: DMaskingSearch | TuNASSearch | OneShotSearch | TrainOnceSearch
        if isinstance(method, AskTell):
            learner = shared_learner(search, method, spaces)
        else:
            learner = learner_of(search, method, aims_of(search, spaces))
        if isinstance(learner, DMaskingSearch):
            weight_steps = learner.method.epochs * learner.weight_steps
            seconds["search"] = weight_steps * _seconds_per_step(learner, timed_s)
            if learner.method.warmup_epochs < learner.method.epochs:  # steps on the logits run all paths, and cost several times as much
                learner.step = learner.method.warmup_epochs * learner.weight_steps + learner.weight_steps
                seconds["search"] += (learner.total_steps - weight_steps) * _seconds_per_step(learner, timed_s)
        else:
            seconds["search"] = learner.total_steps * _seconds_per_step(learner, timed_s)
        began = time.perf_counter()
        with suppress(EvaluationFailed):  # what a few steps have made is not always of any use; how long it takes is the same
            SharedWeights(learner.net, search.task)(archs[0][0])
        trials = method.evaluations if isinstance(method, AskTell) else search.candidates
        seconds["judging"] = (time.perf_counter() - began) * trials * len(spaces)
    if search.finalists > 1:
        side_by_side = finalist_workers(search)
        if side_by_side:
            with workers.one_thread():
                short = search.proxy.epochs * per_epoch()
        near = search.regular // 2  # these wait for all the others
        turns = sum(ceil(count * search.folds / max(1, side_by_side)) for count in (search.finalists - near, near))
        seconds["finalists"] = short * turns + (WORKERS_START_S if side_by_side > 1 else 0.0)
    if not trains_once(search):
        seconds["training"] = search.recipe.epochs * an_epoch
    return seconds


def _seconds_per_step(
    learner: DMaskingSearch | TuNASSearch | OneShotSearch | TrainOnceSearch | Training, timed_s: float, steps: int = 4
) -> float:
    began, before = time.perf_counter(), learner.step
    with suppress(TrainingDiverged):  # the work itself will find that out, and keep its last good state
        learner.run(1)  # the first one allocates
        began, before = time.perf_counter(), learner.step
        learner.run(steps)
        while time.perf_counter() - began < timed_s and not learner.finished:
            learner.run(steps)
    return (time.perf_counter() - began) / max(1, learner.step - before)


TWO_OBJECTIVES = ("nsga2", "optuna-nsga2")  # methods that look for a whole front


def _method(config: Config, metric: str) -> DMasking | TuNAS | AskTell:
    chosen = config.search.model_dump()
    if config.method == "dmasking":
        return DMasking(**{field.name: chosen[field.name] for field in fields(DMasking)})
    if config.method == "tunas":
        alike = ("epochs", "batch_size", "weight_lr", "momentum", "weight_decay", "architecture_share")
        control = Control(lr=chosen["logit_lr"], beta=-chosen["cost_weight"])
        return TuNAS(**{name: chosen[name] for name in alike}, control=control)
    objectives: tuple[Objective, ...] = (Objective(metric),)
    if config.method in TWO_OBJECTIVES:  # the second is to need little of what is scarce
        objectives += (Objective(f"-{config.budgets[0][0].metric if config.budgets else 'macs'}"),)
    if config.method in TRAIN_ONCE:
        once = bignas.small(
            config.method, **{name: chosen[name] for name in ("epochs", "batch_size", "momentum", "weight_decay")}, lr=chosen["weight_lr"]
        )
        if once.rule == "sandwich":  # a phase of shrinking may have no member that any budget has
            once = replace(once, members=chosen["members"])
        selection = strategy_named(chosen["strategy"], objectives, chosen["evaluations"])
        return AskTell(selection, chosen["evaluations"], "shared", once, config.search.proposals)
    strategy: Strategy[Any] = (
        RegularizedEvolution(objectives[0], population_size=config.search.population_size, tournament_size=config.search.tournament_size)
        if config.method == "evolution"
        else strategy_named(config.method, objectives, chosen["evaluations"])
    )
    one_shot = OneShot(chosen["epochs"], chosen["batch_size"], chosen["weight_lr"], chosen["momentum"], chosen["weight_decay"])
    return AskTell(strategy, chosen["evaluations"], config.evaluator, one_shot, config.search.proposals)


def _recipe(config: Config) -> Recipe:
    values = {key: value for key, value in config.train.model_dump().items() if not key.startswith("teacher") and key != "stored"}
    values["betas"] = tuple(values["betas"])
    return Recipe(**{**values, "ema": values["ema"] or None, "clip_norm": values["clip_norm"] or None})


def _check_stored(search: Search) -> None:
    """Refuses a share that the smallest network cannot store: it would only be found out after the search, should that be chosen."""
    if search.stored:
        try:
            to_train(search, COSTS["params"](search.network).minimum()[1])
        except HashingError as error:
            raise ConfigError("the configuration", [f"train.stored = {search.stored}: of the smallest network, {error}"]) from error


def teacher_asked(config: Config, task: AnyTask) -> Teacher | None:
    """Whom the final training learns from, by `train.teacher`, if anybody. Raises ConfigError."""
    own = config.train
    if own.teacher == "none":
        return None
    weights = None if own.teacher_weights == "none" else own.teacher_weights
    try:
        return load_teacher(
            own.teacher,
            task,
            weights=weights,
            temperature=own.teacher_temperature,
            weight=own.teacher_weight,
            device=device_of(config.device),
        )
    except (ModelError, DistillationError, SpaceError) as error:
        raise ConfigError("the configuration", [f"train.teacher = {own.teacher!r}: {error}"]) from error


def _proxy(recipe: Recipe) -> Recipe:
    """The short training by which finalists, and the trials of the scratch evaluator, are judged: a quarter of the final one."""
    return replace(recipe, epochs=max(3, recipe.epochs // 4))


def _counted(config: Config, network: Network, reference: Mapping[str, Cost] | None = None) -> tuple[dict[str, Cost], tuple[Budget, ...]]:
    """The costs of `network`, and the budgets as limits on them, see `budgets_of`."""
    costs = {name: count(network) for name, count in COSTS.items()}
    return costs, budgets_of(config.budget or [], costs, reference)


def budgets_of(texts: Sequence[str], costs: Mapping[str, Cost], reference: Mapping[str, Cost] | None = None) -> tuple[Budget, ...]:
    """Budgets as limits on `costs`. One in % is a share of the largest member that `reference` counts, by default of `costs` itself."""
    budgets = []
    for budget in parse_budgets(list(texts)):
        limits = []
        for constraint in budget:
            name = constraint.resource.name
            upper = constraint.of((reference or costs)[name].maximum()[0]).upper
            assert upper is not None
            limits.append(Limit(costs[name], int(upper)))
        budgets.append(Budget(budget_text(budget), tuple(limits)))
    return tuple(budgets)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else 0.0 if value is None else value
