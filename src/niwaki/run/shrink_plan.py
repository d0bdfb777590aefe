"""What `niwaki shrink` is asked for, and the plan that follows: the data, the owner's network, the budgets as bounds, and how long all takes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from niwaki.adoption.adopted import Adopted
from niwaki.gradient.adopted import COUNTED, ROOFLINES, resource_of
from niwaki.gradient.expand import Bound
from niwaki.gradient.figs import SMALL
from niwaki.gradient.landing import Method
from niwaki.gradient.morphnet import SHORT, MorphNet
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.objective.limit import BYTES, COUNT, MILLISECONDS, Constraint, Resource, parse_limit
from niwaki.run.config import Config, ConfigError, changed, config_of, load_config
from niwaki.run.experiments.data import shared_data
from niwaki.run.folder import RunError
from niwaki.run.model import Input, ModelError, load_model
from niwaki.run.plan import allotted_cores, default_recipe, device_of
from niwaki.run.search import AnyTask
from niwaki.space.choice import BudgetError
from niwaki.task.task import derive_seed
from niwaki.train.loop import Training, batches_per_epoch, evaluate, own_randomness, start
from niwaki.train.recipe import Recipe

METHODS: Mapping[str, Method] = {"morphnet": SHORT, "figs": SMALL}
RESOURCES: Mapping[str, Resource] = {
    "macs": Resource("macs", "macs", COUNT),
    "params": Resource("params", "params", COUNT),
    "activation_bytes": Resource("activation_bytes", "activation_bytes", BYTES),
    **{name: Resource(name, name, MILLISECONDS, counted=False) for name in ROOFLINES},
}
TRAINED_STEPS, SHRINK_STEPS, TUNE_STEPS = 3000, 1500, 2600  # of each phase, where the fewest and most epochs allow it
EPOCHS = {"before": (5, 60), "shrink": (3, 30), "tune": (5, 50)}
TUNE = Recipe(lr=0.03, weight_decay=5e-4, label_smoothing=0.0)
UNTRAINED = 5.0  # standard deviations above the most frequent class, below which a network's accuracy counts as none
LOOKED_AT = 2000  # validation examples, at most, that tell whether it was trained
TIMED = 3  # steps, for an estimate
THREADED_MACS = 1e8  # of a batch; with fewer, one thread is as fast as two


@dataclass(frozen=True)
class Settings:
    """What `--set shrink.KEY=` may change. before: epochs of training before anything else, None: as many as an untrained network needs.

    epochs, rounds, lr, strength, exact: of the method, None for its own. multiple_of: of the numbers of channels that are left. distill:
    weight of the owner's network as a teacher, 0 for none; temperature: of it. judged: epochs of training by which ways to land are compared.
    """

    before: int | None = None
    epochs: int | None = None
    rounds: int | None = None
    lr: float | None = None
    strength: float | None = None
    exact: bool | None = None
    multiple_of: int = 1
    distill: float = 1.0
    temperature: float = 4.0
    judged: int = 1

    def __post_init__(self) -> None:
        def whole(value: Any, least: int) -> bool:
            return isinstance(value, int) and not isinstance(value, bool) and value >= least

        def number(value: Any) -> bool:
            return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")

        wrong = [
            f"shrink.{name} = {getattr(self, name)!r}: it is {possible}"
            for name, possible, holds in (
                ("before", "a whole number of epochs, at least 0", self.before is None or whole(self.before, 0)),
                ("epochs", "a whole number, at least 1", self.epochs is None or whole(self.epochs, 1)),
                ("rounds", "a whole number, at least 1", self.rounds is None or whole(self.rounds, 1)),
                ("lr", "a number above 0", self.lr is None or (number(self.lr) and self.lr > 0)),
                ("strength", "a number, at least 0", self.strength is None or number(self.strength)),
                ("exact", "true or false", self.exact is None or isinstance(self.exact, bool)),
                ("multiple_of", "a whole number, at least 1", whole(self.multiple_of, 1)),
                ("distill", "a number, at least 0", number(self.distill)),
                ("judged", "a whole number of epochs, at least 0", whole(self.judged, 0)),
                ("temperature", "a number above 0", number(self.temperature) and self.temperature > 0),
            )
            if not holds
        ]
        if wrong:
            raise ConfigError("the call", wrong)


@dataclass(frozen=True)
class Asked:
    """One call, as it was made. model: its word, or "" where the caller gave the network itself; config: data, fine-tuning, seed, device."""

    model: str
    budget: tuple[Constraint, ...]
    method: str
    config: Config
    settings: Settings
    inputs: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        config = self.config.to_json()
        return {
            "shrink": {
                "model": self.model,
                "budget": [str(limit) for limit in self.budget],
                "method": self.method,
                "inputs": list(self.inputs),
                **asdict(self.settings),
            },
            "config": {key: config[key] for key in ("data", "train", "seed", "threads", "device")},
        }

    @property
    def hash(self) -> str:
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Plan:
    """What will be done, fixed before it begins. before: of the owner's network, if it has to be trained; tune: of what is left of it."""

    method: Method
    before: Recipe | None
    tune: Recipe
    threads: int
    device: str
    settings: Settings

    def to_json(self) -> dict[str, Any]:
        def recipe(one: Recipe | None) -> Any:
            return None if one is None else {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(one).items()}

        return {
            "method": asdict(self.method), "before": recipe(self.before), "tune": recipe(self.tune), "threads": self.threads, "device": self.device,
            "settings": asdict(self.settings),
        }  # fmt: skip

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Plan:
        def recipe(one: Mapping[str, Any] | None) -> Recipe | None:
            return None if one is None else Recipe(**{**one, "betas": tuple(one["betas"])})

        kind = type(SMALL) if "tau" in content["method"] else MorphNet
        tune = recipe(content["tune"])
        assert tune is not None
        return Plan(
            kind(**content["method"]),
            recipe(content["before"]),
            tune,
            content["threads"],
            content["device"],
            Settings(**content["settings"]),
        )


# --- what was asked ---------------------------------------------------------------------------------------------------------------------


def asked_for(
    model: str, budget: str | Sequence[str], *, method: str, inputs: Sequence[str] = (), data: str | None = None,
    settings: Sequence[str] | Mapping[str, Any] = (), given: Mapping[str, Any] | None = None, own_task: bool = False,
) -> Asked:  # fmt: skip
    """What a call asks for, checked. settings: "key=value" texts, or a mapping: shrink.*, data.*, train.*. data: a folder, short for data.path.

    given: seed, threads and device. own_task: the caller has a task, so that no data are looked for.
    """
    texts = [f"{key}={_toml(value)}" for key, value in settings.items()] if isinstance(settings, Mapping) else list(settings)
    keys = [text.partition("=")[0].strip() for text in texts]
    if bare := [key for key in keys if key in {one.name for one in fields(Settings)}]:
        raise ConfigError("the call", [f"{key}: there is no such key; did you mean shrink.{key}?" for key in bare])
    own = [text for text in texts if text.partition("=")[0].strip().startswith("shrink.")]
    if data is not None:
        kind = "npz" if (Path(data) / "train.npz").is_file() else "table" if Path(data).is_file() else "folder"
        texts = [f"data.kind={kind}", f"data.path={data}", *texts]
    config = load_config(None, [text for text in texts if text not in own], given)
    idle = [key for key in changed(config) if not key.startswith(("data.", "train.")) and key not in ("seed", "threads", "device")]
    recipe_keys = {f"train.{one.name}" for one in fields(Recipe)}
    idle += [key for key in changed(config) if key.startswith("train.") and not key.startswith("train.teacher") and key not in recipe_keys]
    taught = [key for key in changed(config) if key.startswith("train.teacher") and config.train.teacher == "none"]
    if idle or taught:
        problems = [f"{key} has no effect: shrink takes data.*, shrink.*, and train.* as far as it is about the training" for key in idle]
        why = "the teacher is the owner's network, see shrink.distill, where train.teacher names no other"
        raise ConfigError("the call", problems + [f"{key} has no effect: {why}" for key in taught])
    if not own_task and data is None and not any(text.strip().startswith("data.") for text in texts):
        config = _with_usual_data(config)
    if method not in METHODS:
        close = get_close_matches(method, METHODS, n=1)
        raise ConfigError("the call", [f"--method {method}: it is {' or '.join(METHODS)}{f'; did you mean {close[0]}?' if close else ''}"])
    file, colon, attribute = model.rpartition(":")
    word = f"{Path(file).resolve()}:{attribute}" if colon and file.endswith(".py") else model
    return Asked(word, parse_bounds(budget), method, config, _settings(own), tuple(inputs))


def parse_bounds(budget: str | Sequence[str]) -> tuple[Constraint, ...]:
    """The limits of one budget, joined by commas or "and", or in a list."""
    texts = [budget] if isinstance(budget, str) else list(budget)
    parts = [part for text in texts for part in text.replace(" and ", ",").split(",")]
    if timed := [part for part in parts if part.strip().startswith("latency")]:
        raise BudgetError(
            f"{timed[0].strip()!r}: measured latency is no budget of shrink yet; {next(iter(ROOFLINES))} and the like are a model of a device's "
            f"limits, and there are {', '.join(COUNTED)}"
        )
    limits = [parse_limit(part, resources=RESOURCES) for part in parts]
    for at, limit in enumerate(limits):
        if limit.margin:
            raise BudgetError(f"{limit}: what shrink limits has no standard deviation; give the limit alone")
        if any(limit.resource.name == other.resource.name for other in limits[:at]):
            raise BudgetError(f"{', '.join(map(str, limits))}: {limit.resource.name} is limited twice")
    return tuple(limits)


def _settings(texts: Sequence[str]) -> Settings:
    values, problems = {}, []
    known = [one.name for one in fields(Settings)]
    for text in texts:
        key, equals, value = text.partition("=")
        name = key.strip().removeprefix("shrink.")
        if not equals or name not in known:
            close = get_close_matches(name, known, n=1)
            problems.append(
                f"{text}: there is no such key{f'; did you mean shrink.{close[0]}?' if close else ''} (shrink.* has {', '.join(known)})"
            )
            continue
        try:
            values[name] = json.loads(value.strip())
        except ValueError:
            problems.append(f"{text}: {value.strip()!r} is no number, true or false")
    if problems:
        raise ConfigError("the call", problems)
    return Settings(**values)


def _toml(value: Any) -> str:
    return json.dumps(value)


def _with_usual_data(config: Config) -> Config:
    """Fashion-MNIST, where it lies in the shared folder; else the digits."""
    try:
        folder = shared_data("fashion_mnist")
    except RunError:
        return config
    return config_of({**config.to_json(), "data": {**config.to_json()["data"], "kind": "npz", "path": str(folder.resolve())}})


# --- model and budgets --------------------------------------------------------------------------------------------------------------------


def model_for(word: str, task: AnyTask, seed: int) -> nn.Module:
    """The owner's network that `word` names, as it is. A described network without choices is built.

    What it draws at its making follows from `seed`, so that the same call has the same weights.
    """
    with own_randomness(torch.device("cpu")):
        torch.manual_seed(derive_seed(seed, "owner"))
        found = load_model(word)
    if isinstance(found, Network):
        network = found if found.input_shape == task.input_shape else Network(found.body, task.input_shape)
        space = space_of(network)
        if space.decisions:
            raise ModelError(
                f"{word} is a space of {len(space.decisions)} choices; shrinking begins with one network: fix the choices, or use `niwaki search`"
            )
        return build(network, space.architecture({}), seed=derive_seed(seed, "owner"))
    if not isinstance(found, nn.Module):
        raise ModelError(f"{word} is a {type(found).__name__}; shrinking trains, and needs a torch.nn.Module or a niwaki Network")
    return found


def checked_model(module: nn.Module, task: AnyTask, inputs: Sequence[Input] = ()) -> nn.Module:
    """The module, put on the CPU and in float32, if it takes the task's examples and gives one number for each class. Raises ModelError, saying
    what does not fit."""
    shape = " x ".join(map(str, task.input_shape))
    if len(inputs) > 1:
        raise ModelError(f"--input is given {len(inputs)} times; the data have one input, of {shape}")
    if inputs and tuple(inputs[0].shape[1:]) != tuple(task.input_shape):
        raise ModelError(
            f"--input {inputs[0].text} has examples of {' x '.join(map(str, inputs[0].shape[1:]))}; the data have {shape}: {task.source}"
        )
    try:
        with torch.no_grad():
            outputs = module.cpu().float().eval()(task.batch(task.part("train")[:2], torch.device("cpu"))[0])
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise ModelError(f"the model does not take the examples of {task.source}, {shape} each: {str(error).splitlines()[0]}") from error
    given = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs).__name__
    if given != (2, task.outputs):
        raise ModelError(
            f"the model gives {given} for 2 examples of {task.source}; (2, {task.outputs}) is needed, one number for each class"
        )
    return module


def bounds_of(adopted: Adopted, budget: Sequence[Constraint]) -> list[Bound]:
    """The limits as bounds on the model's resources; a share is one of what the owner's network costs."""
    units, found = adopted.whole, []
    for limit in budget:
        resource = resource_of(adopted, limit.resource.name)
        upper = limit.of(resource.cost(units)).upper
        assert upper is not None
        found.append(Bound(resource, upper, str(limit)))
    return found


def costs_of(adopted: Adopted, budget: Sequence[Constraint], alive: Mapping[str, int]) -> dict[str, float]:
    """What is counted of a network with so many units of each group: multiply-adds, parameters, activations, and whatever is limited."""
    names = dict.fromkeys((*COUNTED, *(limit.resource.name for limit in budget)))
    return {name: resource_of(adopted, name).cost(alive) for name in names}


# --- the plan -------------------------------------------------------------------------------------------------------------------------------


def plan_of(asked: Asked, task: AnyTask, module: nn.Module, macs: float) -> Plan:
    """How it will be done, from the sizes of data and network: never from a clock."""
    settings = asked.settings
    general, batch, _ = default_recipe(task)
    steps = batches_per_epoch(len(task.part("train")), batch)

    def epochs(phase: str, wanted: int) -> int:
        least, most = EPOCHS[phase]
        return max(least, min(most, ceil(wanted / steps)))

    before = settings.before
    if before is None:
        before = epochs("before", TRAINED_STEPS) if not is_trained(module, task) else 0
    method = METHODS[asked.method]
    told = {key: value for key in ("rounds", "lr", "strength", "exact") if (value := getattr(settings, key)) is not None}
    method = replace(method, epochs=settings.epochs or epochs("shrink", SHRINK_STEPS), batch_size=batch, **told)
    recipe_keys = {one.name for one in fields(Recipe)}
    own = {key: value for key, value in asked.config.train.model_dump().items() if value is not None and key in recipe_keys}
    if "betas" in own:
        own["betas"] = tuple(own["betas"])
    own = {key: value or None if key in ("ema", "clip_norm") else value for key, value in own.items()}
    tune = replace(TUNE, **{"epochs": epochs("tune", TUNE_STEPS), "batch_size": batch, **own})
    threads = asked.config.threads or (allotted_cores() if batch * macs > THREADED_MACS else 1)
    return Plan(
        method,
        replace(general, epochs=before, batch_size=batch) if before else None,
        tune,
        threads,
        device_of(asked.config.device),
        settings,
    )


def is_trained(module: nn.Module, task: AnyTask) -> bool:
    """Whether the network knows anything of the data: it is clearly better than naming the most frequent class. Where the metric is no
    accuracy, it counts as trained."""
    indices = task.part("validation")[:LOOKED_AT]
    metrics = evaluate(module, task, indices)
    if "accuracy" not in metrics:
        return True
    guess = float(torch.bincount(task.labels(indices)).max()) / len(indices)
    return metrics["accuracy"] > guess + UNTRAINED * (guess * (1 - guess) / len(indices)) ** 0.5


def seconds_of(plan: Plan, task: AnyTask, module: nn.Module) -> dict[str, float]:
    """What each phase will take, by a few timed steps of a copy of the owner's network; for people, nothing depends on it."""
    indices = task.part("train")
    recipe = replace(plan.tune, epochs=1)
    training: Training = start(module, task, recipe, indices, device=plan.device)
    training.run(1)  # the first one allocates
    began = time.perf_counter()
    training.run(TIMED)
    step = (time.perf_counter() - began) / TIMED
    per_epoch = step * batches_per_epoch(len(indices), recipe.batch_size)
    taught = 1.3 if plan.settings.distill else 1.0
    phases = {
        "training before": plan.before.epochs * per_epoch if plan.before else 0.0,
        "shrinking": plan.method.rounds * plan.method.epochs * per_epoch * 1.2,
        "fine-tuning": plan.tune.epochs * per_epoch * 0.7 * taught,
    }
    return {phase: seconds for phase, seconds in phases.items() if seconds}
