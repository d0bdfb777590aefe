"""From a configuration to a search that is fixed in every detail, before any work starts."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

from niwaki import zoo
from niwaki.cost.count import COSTS
from niwaki.factor.factor import Cost, Limit
from niwaki.factor.within import within
from niwaki.gradient.dmasking import DMasking, DMaskingSearch
from niwaki.gradient.one_shot import OneShot, OneShotSearch
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.objective import Budget as Constraints
from niwaki.objective import budget_text, parse_budgets
from niwaki.run.config import Config, ConfigError
from niwaki.run.model import ModelError, load_model
from niwaki.run.search import SHIPPING_S, AskTell, Budget, Search
from niwaki.strategy.evolution import RegularizedEvolution
from niwaki.strategy.random import RandomSearch
from niwaki.task.classify import ImageClassification
from niwaki.task.embedded import digits
from niwaki.task.folder import image_folder
from niwaki.task.images import npz
from niwaki.train.loop import start
from niwaki.train.recipe import Recipe
from niwaki.zoo.mobile import LARGEST, SMALLEST, mobile

SUPERNET_MACS = 4e11  # what all epochs of a search may cost, counted on the supernet's forward passes; about three minutes of two cores
FINAL_STEPS = 3000  # optimizer steps of the final training, the fewest and most epochs allowing
RATIO = DMasking().temperature_decay ** DMasking().epochs  # how far the published schedule lowers the temperature


def task_of(config: Config) -> ImageClassification:
    """The task that `config.data` describes; reads the data. Raises DataError."""
    data = config.data
    if data.kind == "digits":
        images = digits()
    elif data.kind == "npz":
        images = npz(str(data.path), layout=data.layout)
    else:
        images = image_folder(str(data.path), size=data.size)
    weights: Any = None if data.class_weights == "none" else data.class_weights
    return ImageClassification(images, validation=data.validation, metric=data.metric, class_weights=weights, seed=config.seed)


def network_of(config: Config, task: ImageClassification) -> Network:
    """The network or space that `config.network` names, at the size of the data."""
    channels, height, width = task.input_shape
    if config.network == "auto":
        if min(height, width) < SMALLEST:
            raise ConfigError("the configuration", [f"network = 'auto' is made for images of at least {SMALLEST} pixels; these are {height} x {width}"])
        size = min(height, LARGEST)
        return Network(mobile(size, channels, task.outputs).body, task.input_shape)
    if ":" in config.network:
        found = load_model(config.network)
        if not isinstance(found, Network):
            raise ModelError(f"{config.network} is a {type(found).__name__}; a search needs a niwaki Network with choices")
        if found.input_shape != task.input_shape:
            found = Network(found.body, task.input_shape)
        return found
    return zoo.network(config.network, input_shape=task.input_shape, classes=task.outputs)


def default_budget(task: ImageClassification) -> str:
    """A modest budget for images of this size."""
    side = max(task.input_shape[1:])
    return "macs<=100000" if side <= 16 else "macs<=1000000" if side <= 48 else "macs<=10000000" if side <= 96 else "macs<=100000000"


def decide(config: Config, task: ImageClassification, network: Network) -> Config:
    """`config` with an answer for every key that was left open, from the sizes of data and network alone: never from a clock."""
    examples = len(task.part("train+validation"))
    weight_part, _ = task.search_split(config.search.architecture_share or 0.2)
    largest_macs = COSTS["macs"](network).maximum()[0]
    affordable = SUPERNET_MACS / (len(weight_part) * max(largest_macs, 1))
    search_epochs = config.search.epochs or max(12, min(60, round(affordable)))
    batch = 64 if examples < 20_000 else 128
    steps = ceil(examples / batch)
    recipe = Recipe()
    published = DMasking()
    warmup = config.search.warmup_epochs if config.search.warmup_epochs is not None else max(1, search_epochs // 4)
    values = {
        "budget": [default_budget(task)],
        "threads": os.cpu_count() or 1,
        "search.epochs": search_epochs,
        "search.warmup_epochs": warmup,
        "search.batch_size": batch,
        "search.temperature": published.temperature,
        "search.temperature_decay": RATIO ** (1 / search_epochs),
        "search.weight_lr": 0.05,
        "search.momentum": published.momentum,
        "search.weight_decay": published.weight_decay,
        "search.logit_lr": 0.05,
        "search.logit_weight_decay": published.logit_weight_decay,
        "search.architecture_share": published.architecture_share,
        "search.logit_passes": 2,
        "search.objective": "limit",
        "search.alpha": published.alpha,
        "search.beta": published.beta,
        "search.cost_weight": published.cost_weight,
        "search.candidates": 48,
        "search.finalists": 1,
        "search.evaluations": 200,
        "train.epochs": max(15, min(150, ceil(FINAL_STEPS / steps))),
        "train.batch_size": batch,
        **{f"train.{key}": _plain(value) for key, value in asdict(recipe).items() if key not in ("epochs", "batch_size")},
    }
    return config.decided(values)


def search_of(config: Config, task: ImageClassification | None = None, network: Network | None = None) -> tuple[Config, Search]:
    """The configuration with nothing left open, and the search it stands for. Everything that can be wrong is found here.

    task, network: in place of those that the configuration names, for callers in Python.
    """
    if config.device == "auto":
        config = Config.model_validate({**config.to_json(), "device": "cuda" if torch.cuda.is_available() else "cpu"})
    elif config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError("the configuration", ["device = 'cuda': this machine has no CUDA device that torch can use"])
    if config.warm_start is not None and not (Path(config.warm_start) / "checkpoints" / "search.safetensors").is_file():
        raise ConfigError("the configuration", [f"warm_start = {config.warm_start!r} is no folder of an earlier search: it has no checkpoints/search.safetensors"])
    task = task if task is not None else task_of(config)
    network = network if network is not None else network_of(config, task)
    space = space_of(network)
    config = decide(config, task, network)
    costs = {name: count(network) for name, count in COSTS.items()}
    budgets = tuple(_limits(budget, costs) for budget in parse_budgets(config.budget or []))
    for budget in budgets:
        within(space, budget.limits)  # raises BudgetError, with the least there is and what reaches it
    search = Search(
        network, task, budgets, costs,
        method=_method(config),
        recipe=_recipe(config),
        proxy=_proxy(_recipe(config)),
        candidates=config.search.candidates or 1,
        finalists=config.search.finalists or 1,
        seed=config.seed,
        device=config.device,
        minutes=config.minutes,
        warm_start=None if config.warm_start is None else Path(config.warm_start),
    )  # fmt: skip
    return config, search


def fit_to_minutes(asked: Config, config: Config, search: Search) -> tuple[Config, Search, dict[str, float]]:
    """Configuration and search with as many epochs as the time limit allows, by a short timing; and the seconds expected for each phase.

    Epochs that were asked for stay as they are. Without a limit nothing changes, and the estimate is all.
    """
    expected = estimate(search)
    if config.minutes is None:
        return config, search, expected
    room = 0.9 * max(10.0, 60 * config.minutes - SHIPPING_S)
    if (total := sum(expected.values())) <= room:
        return config, search, expected
    # search and training shrink alike, down to the fewest epochs that mean anything
    scale, data = room / total, config.to_json()
    if asked.search.epochs is None:
        epochs = max(3, int(data["search"]["epochs"] * scale))
        data["search"].update(epochs=epochs)
        if asked.search.warmup_epochs is None:
            data["search"].update(warmup_epochs=max(1, epochs // 4))
        if asked.search.temperature_decay is None:
            data["search"].update(temperature_decay=RATIO ** (1 / epochs))
    if asked.train.epochs is None:
        data["train"].update(epochs=max(3, int(data["train"]["epochs"] * scale)))
    config = Config.model_validate(data)
    recipe = _recipe(config)
    search = replace(search, method=_method(config), recipe=recipe, proxy=_proxy(recipe))
    return config, search, {phase: seconds * scale for phase, seconds in expected.items()}


def estimate(search: Search) -> dict[str, float]:
    """Seconds that each phase will take on this machine, by timing a few steps of each."""
    space = space_of(search.network)
    spaces = [within(space, budget.limits) for budget in search.budgets]
    seconds: dict[str, float] = {}
    if isinstance(search.method, DMasking) or search.method.evaluator == "shared":
        learner: Any = (
            DMaskingSearch(search.network, search.task, spaces, search.method, device=search.device)
            if isinstance(search.method, DMasking)
            else OneShotSearch(search.network, search.task, spaces, search.method.one_shot, device=search.device)
        )
        seconds["search"] = learner.total_steps * _seconds_per_step(learner)
    arch = spaces[0].mode({d.name: [1 / len(d.options)] * len(d.options) for d in space.decisions})  # any member within the budget
    training = start(build(search.network, arch), search.task, search.recipe, search.task.part("train+validation"), device=search.device)
    per_step = _seconds_per_step(training)
    scratch = search.proxy.epochs * training.steps_per_epoch * per_step
    if isinstance(search.method, AskTell) and search.method.evaluator == "scratch":
        seconds["search"] = scratch * search.method.evaluations * len(spaces)
    if search.finalists > 1:
        seconds["finalists"] = scratch * search.finalists * len(spaces)
    seconds["training"] = search.recipe.epochs * training.steps_per_epoch * per_step * len(spaces)
    return seconds


def _seconds_per_step(learner: Any, steps: int = 3) -> float:
    learner.run(1)  # the first one allocates
    began = time.perf_counter()
    learner.run(steps)
    return (time.perf_counter() - began) / steps


def _method(config: Config) -> DMasking | AskTell:
    chosen = config.search.model_dump()
    if config.method == "dmasking":
        return DMasking(**{field.name: chosen[field.name] for field in fields(DMasking)})
    strategy = (
        RandomSearch()
        if config.method == "random"
        else RegularizedEvolution(population_size=config.search.population_size, tournament_size=config.search.tournament_size)
    )
    one_shot = OneShot(chosen["epochs"], chosen["batch_size"], chosen["weight_lr"], chosen["momentum"], chosen["weight_decay"])
    return AskTell(strategy, chosen["evaluations"], config.evaluator, one_shot, config.search.proposals)


def _recipe(config: Config) -> Recipe:
    values = config.train.model_dump()
    values["betas"] = tuple(values["betas"])
    return Recipe(**{**values, "ema": values["ema"] or None, "clip_norm": values["clip_norm"] or None})


def _proxy(recipe: Recipe) -> Recipe:
    """The short training by which finalists, and the trials of the scratch evaluator, are judged: a quarter of the final one."""
    return replace(recipe, epochs=max(3, recipe.epochs // 4))


def _limits(budget: Constraints, costs: Mapping[str, Cost]) -> Budget:
    """The limits of one budget; a share is one of the largest member of the space."""
    limits = []
    for constraint in budget:
        cost = costs[constraint.resource.name]
        upper = constraint.of(cost.maximum()[0]).upper
        assert upper is not None
        limits.append(Limit(cost, int(upper)))
    return Budget(budget_text(budget), tuple(limits))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else 0.0 if value is None else value
