"""The configuration of a search: what may be said, what is assumed where nothing is said, and errors that name every mistake at once.

A configuration is the defaults, then a TOML file, then `key=value` settings. A field that is None is decided from the size of the data
before any work starts (see `undecided`), and the result of that is stored with the run.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from niwaki.deploy.thresholds import CommitteeError
from niwaki.objective import Budget, budget_text, parse_budget, parse_budgets
from niwaki.run.demand import parse_demand
from niwaki.space.choice import BudgetError

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, lt=1)]
Part = Annotated[float, Field(ge=0, lt=1)]
Words = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]


OF_TABLES = ("task", "target", "categorical", "ignore", "split", "groups", "missing", "knots", "fill")
# in run/strategies.py; named here, too, because a configuration is read without all that they import
STRATEGY_NAMES = (
    *("default", "random", "exhaustive", "evolution", "local-search", "nsga2", "chow-liu", "crank", "reinforce", "ppo", "tabnas", "nao"),
    *("neural-predictor", "q-learning", "coarse-to-fine", "optuna", "optuna-tpe", "optuna-nsga2", "optuna-gp"),
)
BY_GRADIENT = ("dmasking", "tunas")  # methods that learn weights and a distribution together; the others ask and tell
TRAIN_ONCE = (
    "bignas",
    "attentivenas",
    "alphanet",
    "ofa",
)  # methods that train one supernet for all budgets, whose members are delivered as they are
METHODS = (*BY_GRADIENT, *TRAIN_ONCE, *STRATEGY_NAMES)
DECIDED_OF_TABLES = ("task", "target", "categorical", "missing", "knots")  # where nothing is said, the data decide
OF_IMAGES = ("accuracy", "balanced_accuracy", "macro_f1")
METRICS = (*OF_IMAGES, "log_loss", "rmse", "mae", "r2")
RATES = ("precision@", "tpr@fpr=", "aucpr")  # how those begin that can be trained for; read by train/rates.py


class ConfigError(ValueError):
    """A configuration that says what cannot be. `problems` has one text per mistake."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__(f"{where} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Data(_Section):
    """Where the examples come from, and what counts."""

    kind: Literal["digits", "npz", "folder", "table"] = "digits"
    path: Words | None = None  # of the folder; of npz: one with train.npz and test.npz; of a table: the file, CSV, Parquet or npz
    layout: Literal["NHW", "NHWC", "NCHW"] | None = None  # of the axes of the images in npz files; None: inferred where there is no doubt
    size: Count | None = None  # of a folder's images, height and width in pixels; None: the size they have, or the median side
    validation: Share = 0.2
    metric: Words | None = None  # one of METRICS, or a rate such as precision@10%; None: accuracy, or rmse
    positive: Words | None = None  # the class that a rate is of; None: the second of two
    class_weights: Literal["auto", "balanced", "none"] = "auto"
    # of a table; None: as far as the data tell
    task: Literal["classification", "regression"] | None = None
    target: Words | None = None  # the column that is to be predicted
    categorical: list[Words] | None = None  # the columns that are categories
    ignore: list[Words] | None = None  # columns that are left out
    split: Words | None = None  # the column that says train, validation or test
    groups: Words | None = None  # the column that says which rows belong together
    missing: list[str] | None = None  # texts that stand for missing values, in any case; an empty one always does
    knots: Annotated[int, Field(ge=0)] | None = None  # of the curves that columns of numbers become; 0: no curves
    fill: Literal["mean", "median"] = "mean"  # what a missing number is taken for

    @property
    def is_rate(self) -> bool:
        """Whether the metric is a rate of one class."""
        return self.metric is not None and self.metric not in METRICS

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str | None) -> str | None:
        if value is None or value in METRICS:
            return value
        if not value.startswith(RATES):
            close = get_close_matches(value, METRICS, n=1)
            listed = f"it is one of {', '.join(METRICS)}{f' (did you mean {close[0]}?)' if close else ''}"
            rates = "precision@2%, precision@recall=0.95, tpr@fpr=0.01, aucpr"
            raise _mistake(f"data.metric = {value!r}: {listed}, or a rate of one class that can be trained for: {rates}")
        return value

    @model_validator(mode="after")
    def _fits_its_kind(self) -> Data:
        if self.kind == "digits" and self.path is not None:
            raise _mistake("digits come with scikit-learn and have no path; set data.kind to npz, folder or table")
        if self.kind != "digits" and self.path is None:
            what = "file that holds the table" if self.kind == "table" else "folder that holds the data"
            raise _mistake(f"data.kind={self.kind} needs data.path, the {what}")
        if self.kind != "npz" and self.layout is not None:
            raise _mistake(f"data.layout says how npz files are laid out; data.kind is {self.kind}")
        if self.kind != "folder" and self.size is not None:
            raise _mistake(f"data.size is for folders of image files; data.kind is {self.kind}")
        if self.kind != "table" and (idle := [key for key in OF_TABLES if getattr(self, key) != type(self).model_fields[key].default]):
            raise _mistake(f"data.{idle[0]} is for tables; data.kind is {self.kind}")
        if self.kind != "table" and self.metric in METRICS and self.metric not in OF_IMAGES:
            raise _mistake(f"data.metric = {self.metric!r} is for tables; for images it is {', '.join(OF_IMAGES)}, or a rate")
        if self.positive is not None and not self.is_rate:
            raise _mistake(f"data.positive = {self.positive!r} is the class that a rate is of, such as data.metric = 'precision@10%'")
        if self.knots == 1:
            raise _mistake("data.knots = 1: a curve has at least 2 of them, and 0 is for no curves")
        return self


class Search(_Section):
    """How the architecture is found. The fields of DMaskingNAS and of the other methods, under one roof."""

    epochs: Count | None = None  # of the supernet
    warmup_epochs: Annotated[int, Field(ge=0)] | None = None  # in which only weights learn
    batch_size: Annotated[int, Field(ge=2)] | None = None
    temperature: Rate | None = None
    temperature_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    weight_lr: Rate | None = None
    momentum: Part | None = None
    weight_decay: Amount | None = None
    logit_lr: Rate | None = None  # of the distribution
    logit_weight_decay: Amount | None = None
    architecture_share: Share | None = None  # of the training part, for the logits
    logit_passes: Count | None = None
    paths: Literal["mixture", "sample"] | None = None  # in steps on the weights: all options of a layer or resolution, or one
    resolutions: Literal["apart", "mixed"] | None = None  # a distribution for each input resolution, or the resolution a choice like others
    objective: Literal["mul", "add", "absolute", "limit"] | None = None
    alpha: Amount | None = None
    beta: Amount | None = None
    cost_weight: Amount | None = None  # of |log(cost / limit)| in the loss; with tunas -beta, of |cost / limit - 1| in the reward
    candidates: Count | None = None  # architectures of the learned distribution that are judged with shared weights
    finalists: Count | None = None  # networks judged by a short training of their own: the best candidates, and regular networks
    regular: Annotated[int, Field(ge=0)] | None = None  # how many of the finalists are regular networks: alike in all stages
    folds: Annotated[int, Field(ge=1)] | None = None  # of the cross-validation that judges them; 1: on the validation part
    trim: Part | None = None  # options that fewer of the architectures within the budget take are left out of the supernet
    evaluations: Count | None = None  # trials of an ask/tell strategy
    strategy: Words | None = None  # by which a member of a supernet that is trained once is chosen: any strategy's name
    members: Literal["within", "anywhere"] | None = (
        None  # that such a supernet trains beside the largest and the smallest: of the budgets, or any
    )
    proposals: Count = 4  # asked for at a time
    population_size: Annotated[int, Field(ge=2)] = 50
    tournament_size: Count = 10

    @model_validator(mode="after")
    def _fits_together(self) -> Search:
        if self.epochs is not None and self.warmup_epochs is not None and self.warmup_epochs >= self.epochs:
            raise _mistake(f"search.warmup_epochs={self.warmup_epochs} leaves nothing of search.epochs={self.epochs}")
        if self.tournament_size > self.population_size:
            raise _mistake(f"search.tournament_size={self.tournament_size} is more than search.population_size={self.population_size}")
        return self


class Train(_Section):
    """How the chosen network is trained: the fields of a `Recipe`, a teacher, if there is one, and what of its weights is stored."""

    epochs: Count | None = None
    batch_size: Annotated[int, Field(ge=2)] | None = None
    optimizer: Literal["sgd", "adamw"] | None = None
    lr: Rate | None = None
    momentum: Part | None = None
    nesterov: bool | None = None
    betas: Annotated[list[Part], Field(min_length=2, max_length=2)] | None = None
    weight_decay: Amount | None = None
    warmup: Part | None = None  # share of all steps
    last_lr: Annotated[float, Field(ge=0, le=1)] | None = None  # share of lr
    label_smoothing: Part | None = None
    ema: Part | None = None  # 0: no average
    clip_norm: Amount | None = None  # 0: gradients are not clipped
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    # whom the chosen network learns from beside the labels, see run/teacher.py: a run's folder, a .onnx file, or a model and its weights
    teacher: Words = "none"
    teacher_weights: Words = "none"  # a .safetensors file
    teacher_temperature: Rate = 4.0
    teacher_weight: Amount = 1.0  # of T^2 KL beside the loss on the labels
    stored: Part = 0.0  # of the weights of the chosen network, the share that is stored (structured multi-hashing); 0: they are as they are


class Config(_Section):
    """Everything a search is told. budget: one entry for each network that is asked for."""

    network: Words = "auto"  # "auto" (the mobile family at the size of the data), a name in the zoo, "module:attr" or "file.py:attr"
    data: Data = Data()
    budget: list[str] | None = None
    method: Words = "dmasking"  # one of METHODS, or a strategy of the caller's own, "file.py:attr"
    evaluator: Literal["shared", "scratch"] = "shared"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    threads: Count | None = None
    workers: Count | None = None  # processes, of one thread each, that train finalists, or trials from scratch, side by side
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    search: Search = Search()
    train: Train = Train()
    warm_start: Words | None = None  # the folder of an earlier run
    cascade: Words | None = None  # what a cascade of the networks of several budgets shall come to, such as "accuracy>=largest-1%"
    minutes: Rate | None = None

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        word = value if ":" in value else value.replace("_", "-")
        if ":" not in word and word not in METHODS:
            close = get_close_matches(word, METHODS, n=1)
            raise _mistake(
                f"method = {value!r}{f' (did you mean {close[0]}?)' if close else ''}: it is one of {', '.join(METHODS)}, or file.py:attr"
            )
        return word

    @field_validator("budget", mode="before")
    @classmethod
    def _readable_budget(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, (str, list)) or not value:
            raise _mistake(f'budget = {value!r}: it is a list of texts such as ["macs<=5e6", "params<=1M and macs<=1e7"]')
        mistakes = []
        for entry in value if isinstance(value, list) else value.split(";"):
            try:
                parse_budget(entry)
            except BudgetError as error:
                mistakes.append(str(error))
        if mistakes:
            raise _mistake(f"budget: {'; '.join(mistakes)}")
        try:
            return [budget_text(budget) for budget in parse_budgets(value)]  # one text for one budget, however it was written
        except BudgetError as error:
            raise _mistake(f"budget: {error}") from error

    @field_validator("cascade")
    @classmethod
    def _readable_demand(cls, value: str | None) -> str | None:
        try:
            return None if value is None else parse_demand(value).text
        except CommitteeError as error:
            raise _mistake(f"cascade = {error}") from error

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return parse_budgets(self.budget or [])

    @property
    def hash(self) -> str:
        """12 hexadecimal digits that name what was asked for: the same for every way of writing it."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(mode="json")

    def undecided(self) -> list[str]:
        """The keys that wait for the data: they are None, and None is no answer ("search.epochs")."""
        waiting = [f"{name}.{field}" for name in ("search", "train") for field, value in getattr(self, name) if value is None]
        of_data = ("metric", *DECIDED_OF_TABLES) if self.data.kind == "table" else ("metric",)
        waiting += [f"data.{field}" for field in of_data if getattr(self.data, field) is None]
        return waiting + [name for name in ("budget", "threads", "workers") if getattr(self, name) is None]

    def decided(self, values: Mapping[str, Any]) -> Config:
        """This configuration with `values` (dotted key -> value) for keys that are undecided; what was said stays as it was said."""
        waiting = set(self.undecided())
        answers = {key: value for key, value in values.items() if key in waiting}
        return config_of(_merged(self.to_json(), answers), "the decided configuration")


def load_config(path: str | Path | None = None, settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration of a TOML file, changed by `settings` ("train.epochs=30"), then by `overrides` (dotted key -> value; None is none).

    A setting's value is read as TOML, and as text where it is none: `data.path=/some/where`. Paths are relative to the working folder, and
    absolute in what is returned: a run can be resumed from any other.
    """
    where = "the configuration" if path is None else f"the configuration {path}"
    table = _read(Path(path)) if path is not None else {}
    problems, values = [], {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            problems.append(f"--set {setting}: a setting is key=value, such as train.epochs=30")
        else:
            values[key.strip()] = _value(text.strip())
    values |= {key: value for key, value in (overrides or {}).items() if value is not None}
    return _with_absolute_paths(config_of(_merged(table, values), where, problems))


def _with_absolute_paths(config: Config) -> Config:
    paths = {
        key: str(Path(value).resolve()) for key, value in (("data.path", config.data.path), ("warm_start", config.warm_start)) if value
    }
    paths |= {
        key: _absolute(value)
        for key, value in (("train.teacher", config.train.teacher), ("train.teacher_weights", config.train.teacher_weights))
        if value != "none" and Path(value.rpartition(":")[0] or value).exists()
    }
    file, colon, _ = config.network.rpartition(":")
    if colon and file.endswith(".py"):
        paths["network"] = _absolute(config.network)
    return config_of(_merged(config.to_json(), paths)) if paths else config


def _absolute(word: str) -> str:
    """A path, or `file.py:attr`, that means the same from any folder."""
    file, colon, attribute = word.rpartition(":")
    return f"{Path(file).resolve()}:{attribute}" if colon else str(Path(word).resolve())


def config_of(table: Mapping[str, Any], where: str = "the configuration", problems: Sequence[str] = ()) -> Config:
    """The configuration that a nested mapping describes; ConfigError names everything that is wrong with it."""
    try:
        config = Config.model_validate(dict(table))
    except ValidationError as error:
        raise ConfigError(where, [*problems, *(_told(detail, table) for detail in error.errors())]) from None
    if problems:
        raise ConfigError(where, problems)
    return config


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"the configuration {path}", ["there is no such file"]) from None
    except OSError as error:
        raise ConfigError(f"the configuration {path}", [f"it cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the configuration {path}", [f"it is no text in UTF-8: {error.reason} at byte {error.start}"]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the configuration {path}", [f"it is no TOML: {error}"]) from error


def _value(text: str) -> Any:
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return table["value"] if set(table) == {"value"} else text


def _merged(table: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`table` with each of `values` (dotted key -> value) in its place; a key without a place stays dotted, to be named as unknown."""
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    for key, value in values.items():
        section, dot, field = key.partition(".")
        inside = merged.setdefault(section, {}) if dot and section in _SECTIONS else None
        if isinstance(inside, dict):
            inside[field] = value
        elif inside is None:
            merged[key] = value  # else the section itself is a mistake, and is told as one
    return merged


# ---------------------------------------------------------------- keys that do something

_SUPERNET = {"epochs", "batch_size", "weight_lr", "momentum", "weight_decay"}  # how its weights are trained
_ASKED = {"evaluations", "proposals"}  # of a strategy
_OF_STRATEGIES = {"finalists", "regular", "folds", "trim", *_SUPERNET, *_ASKED}
_USES: dict[str, set[str]] = {
    "dmasking": set(Search.model_fields) - _ASKED - {"population_size", "tournament_size", "strategy", "members"},
    "tunas": {"architecture_share", "logit_lr", "cost_weight", "candidates", "finalists", "regular", "folds", "trim", *_SUPERNET},
    **{name: {"trim", "strategy", *(["members"] if name != "ofa" else []), *_SUPERNET, *_ASKED} for name in TRAIN_ONCE},
    **dict.fromkeys(STRATEGY_NAMES, _OF_STRATEGIES),
    "evolution": {*_OF_STRATEGIES, "population_size", "tournament_size"},
}


def from_scratch(config: Config) -> bool:
    """Whether a strategy is told of trainings from scratch: there is no supernet, and every trial is a finalist."""
    return config.method not in (*BY_GRADIENT, *TRAIN_ONCE) and config.evaluator == "scratch"


def uses(config: Config, key: str) -> bool:
    """Whether a search by the method of `config` looks at `key` ("search.epochs")."""
    alone = from_scratch(config)
    section, _, field = key.rpartition(".")
    if config.method in TRAIN_ONCE and (section == "train" or field == "workers"):
        return False
    if field in {"regular", "folds"} and (alone or config.search.finalists == 1):
        return False
    if field == "workers" and config.search.finalists == 1 and not alone:
        return False
    if key == "search.proposals" and alone and (config.workers or 1) > 1:
        return False
    if key in ("train.teacher_weights", "train.teacher_temperature", "train.teacher_weight"):
        return config.train.teacher != "none"
    if section == "search":
        return field in _USES.get(config.method, _OF_STRATEGIES) and not (alone and field in {*_SUPERNET, "finalists"})
    return not (key == "warm_start" and alone) and not (key == "evaluator" and config.method in (*BY_GRADIENT, *TRAIN_ONCE))


def changed(config: Config) -> dict[str, Any]:
    """Every key ("search.epochs") that is set to something else than its default, with its value."""
    values, defaults = _flat(config), _flat(Config())
    return {key: value for key, value in values.items() if value != defaults[key]}


def without_effect(config: Config) -> list[str]:
    """One text for each changed key that the search would not look at."""
    told = []
    for key, value in changed(config).items():
        if not uses(config, key):
            methods = [method for method in METHODS if uses(config.model_copy(update={"method": method, "evaluator": "shared"}), key)]
            of_strategies = set(STRATEGY_NAMES) <= set(methods)  # too many to name; and so of one's own, which METHODS has not
            if config.search.finalists == 1 and key in ("search.regular", "search.folds", "workers"):
                why = "search.finalists = 1 is chosen without a training of its own"
            elif key.startswith("train.teacher"):
                why = "it is about a teacher, and train.teacher names none"
            elif key == "search.proposals" and from_scratch(config):
                why = "with workers there is one proposal for each"
            elif config.method in methods or (of_strategies and config.method not in METHODS):
                why = "evaluator = scratch trains each network by itself"
            else:
                those = [
                    *(one for one in methods if one not in TRAIN_ONCE and (one not in STRATEGY_NAMES or not of_strategies)),
                    *["strategies"] * of_strategies,
                    *["supernets trained once"] * ("bignas" in methods),
                ]
                why = f"method = {config.method} does not use it; it is for {' and '.join(those)}"
            told.append(f"{key} = {value!r} has no effect: {why}")
    return told


def _flat(config: Config) -> dict[str, Any]:
    inside = {f"{section}.{field}": value for section in _SECTIONS for field, value in getattr(config, section)}
    return {name: value for name, value in config if name not in _SECTIONS} | inside


# ---------------------------------------------------------------- messages


def _mistake(message: str) -> PydanticCustomError:
    return PydanticCustomError("niwaki", "{message}", {"message": message})


def _told(detail: Any, table: Mapping[str, Any]) -> str:
    """One mistake in a reader's words: the key, what was given, what is possible."""
    key = ".".join(str(part) for part in detail["loc"] if isinstance(part, str))
    if detail["type"] == "niwaki":
        return detail["ctx"]["message"]
    if detail["type"] == "extra_forbidden":
        return _unknown(key, detail["input"])
    if key in _SECTIONS:
        return f"{key} = {detail['input']!r}: {key} is a section; its keys are {', '.join(_SECTIONS[key].model_fields)}"
    field = _FIELDS.get(key) or next(field for name, field in _FIELDS.items() if key.startswith(f"{name}."))
    given = _given(detail["loc"], table, detail["input"])
    options = [option for option in _options(field.annotation) if isinstance(option, str)]
    close = get_close_matches(given, options, n=1) if isinstance(given, str) else []
    return f"{key} = {given!r}: it is {_possible(field)}{f' (did you mean {close[0]}?)' if close else ''}"


def _given(location: Sequence[Any], table: Any, default: Any) -> Any:
    """The whole value of the key, where the mistake is in an element of it."""
    for part in location:
        if not isinstance(part, str) or not isinstance(table, Mapping) or part not in table:
            break
        table = table[part]
    return default if isinstance(table, Mapping) else table


def _unknown(key: str, value: Any) -> str:
    section, _, field = key.rpartition(".")
    if section in _SECTIONS:
        listed = f"{section} has {', '.join(_SECTIONS[section].model_fields)}"
        close = [f"{section}.{name}" for name in get_close_matches(field, _SECTIONS[section].model_fields, n=1)]
    else:
        listed = f"there are {', '.join(Config.model_fields)}"
        close = [name for name in _KEYS if name.split(".")[-1] == field and not section]  # spelt right, only its section is missing
    close = close or get_close_matches(key, (*_KEYS, *_SECTIONS), n=1)
    if not close and (nearest := get_close_matches(field, [name.split(".")[-1] for name in _KEYS], n=1)):
        close = [name for name in _KEYS if name.split(".")[-1] == nearest[0]]
    inside = f" with {', '.join(map(str, value))} in it" if isinstance(value, Mapping) and value else ""
    return f"{key}{inside}: there is no such key" + (f"; did you mean {' or '.join(close)}?" if close else "") + f" ({listed})"


def _possible(field: FieldInfo) -> str:
    """What a field may be, from its type: "a whole number, at least 1"."""
    if options := _options(field.annotation):
        return f"one of {', '.join(map(str, options))}"
    kinds, bounds = [], []
    for kind, constraint in _leaves(field):
        kinds += [kind] if kind else []
        for attribute, words in ((Ge, "at least"), (Gt, "above"), (Le, "at most"), (Lt, "below")):
            if isinstance(constraint, attribute):
                bounds.append(f"{words} {getattr(constraint, attribute.__name__.lower()):,}")
        if isinstance(constraint, StringConstraints) and constraint.pattern:
            return "auto, cpu, cuda or cuda:N"
    return ", ".join([" or ".join(dict.fromkeys(kinds)), *dict.fromkeys(bounds)])


def _leaves(field: FieldInfo) -> Iterator[tuple[str, Any]]:
    """The plain types of a field, in words, and its constraints, one at a time."""
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}

    def walk(annotation: Any) -> Iterator[tuple[str, Any]]:
        if annotation in words:
            yield words[annotation], None
        elif isinstance(annotation, FieldInfo):
            yield from (("", constraint) for constraint in annotation.metadata)
        elif get_origin(annotation) is list:
            yield "a list of two" if get_args(annotation)[0] is not str else "a list of texts", None
            yield from (("", constraint) for _, constraint in walk(get_args(annotation)[0]))
        elif arguments := get_args(annotation):
            for argument in arguments:
                yield from walk(argument)
        else:
            yield "", annotation

    yield from walk(field.annotation)
    yield from (("", constraint) for constraint in field.metadata)


def _options(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [option for argument in get_args(annotation) for option in _options(argument)] if not isinstance(annotation, type) else []


_SECTIONS: dict[str, type[_Section]] = {"data": Data, "search": Search, "train": Train}
_FIELDS: dict[str, FieldInfo] = {
    **{name: field for name, field in Config.model_fields.items() if name not in _SECTIONS},
    **{f"{section}.{name}": field for section, model in _SECTIONS.items() for name, field in model.model_fields.items()},
}
_KEYS = tuple(_FIELDS)
