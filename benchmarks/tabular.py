"""`niwaki search` on tables, against scikit-learn's MLPClassifier tuned within the same number of parameters; LightGBM beside them.

Everyone has the same rows: training rows to train on, validation rows to choose by, both together for the final fit, test rows once at the end.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import lightgbm
import numpy as np
from harness import HERE, Claim, Result, Table, arguments, machine, on_one_thread, report, say
from jobs import run_jobs, work_folder
from shows import niwaki
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer, StandardScaler

from niwaki.deploy.predict import ExportedModel
from niwaki.run.folder import Folder
from niwaki.run.statistics import Interval, bootstrap
from niwaki.run.workers import Job

BUDGETS = {"adult": 5_000, "connect_4": 5_000}
SEEDS, CONFIGURATIONS = 5, 16
TREES = 5_000  # at most, of LightGBM
CATEGORICAL = {  # what a person would call categories; of connect_4 every column
    "adult": ("workclass", "education", "marital-status", "occupation", "relationship", "race", "sex", "native-country"),
}
QUICK = {"search.epochs": 2, "search.candidates": 3, "search.finalists": 1, "train.epochs": 2}
LARGEST_SHARE, LEAST_SHARE = 1.0, 0.5  # of the budget, that a drawn MLPClassifier has


class Data:
    """Arrays of a shared set."""

    def __init__(self, folder: str, name: str) -> None:
        with np.load(Path(folder) / f"{name}.npz", allow_pickle=False) as file:
            self.X, self.y, self.split, columns = file["X"], file["y"].astype(np.int64), file["split"], file["columns"].tolist()
        named = CATEGORICAL.get(name, columns)
        self.categories = [columns.index(column) for column in named]
        self.numbers = [at for at in range(len(columns)) if at not in self.categories]

    def part(self, *parts: int) -> tuple[np.ndarray, np.ndarray]:
        rows = np.isin(self.split, parts)
        return self.X[rows], self.y[rows]


# --- the peers ---------------------------------------------------------------------------------------------------------------------------


def drawn(seed: int, number: int, inputs: dict[str, int], outputs: int, budget: int) -> dict[str, Any]:
    """Configuration `number` of `seed`: one to three hidden layers that use at least half of the budget, and how it is trained.

    inputs: features by encoding of the categories. scikit-learn has one output for two classes.
    """
    rng = np.random.default_rng([seed, number])
    while True:
        encoding = str(rng.choice(sorted(inputs)))
        hidden = tuple(int(width) for width in np.exp(rng.uniform(np.log(4), np.log(256), rng.integers(1, 4))).round())
        sizes = (inputs[encoding], *hidden, outputs)
        params = sum((a + 1) * b for a, b in itertools.pairwise(sizes))
        if LEAST_SHARE * budget <= params <= LARGEST_SHARE * budget:
            break
    return {
        "encoding": encoding,
        "scaling": str(rng.choice(["standard", "quantile"])),
        "hidden": list(hidden),
        "activation": str(rng.choice(["relu", "tanh"])),
        "alpha": float(10 ** rng.uniform(-6, -2)),
        "lr": float(10 ** rng.uniform(-3.3, -1.7)),
        "batch": int(rng.choice([128, 256, 512])),
    }


def encoder(data: Data, told: dict[str, Any]) -> ColumnTransformer:
    numbers = StandardScaler() if told["scaling"] == "standard" else QuantileTransformer(output_distribution="normal", random_state=0)
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    categories = one_hot if told["encoding"] == "one-hot" else StandardScaler()
    return ColumnTransformer([("numbers", numbers, data.numbers), ("categories", categories, data.categories)])


def fitted(folder: str, name: str, seed: int, told: dict[str, Any], fit_on: Sequence[int], score_on: Sequence[int]) -> dict[str, Any]:
    """MLPClassifier with early stopping, by a tenth of what it is fitted on; accuracy on other rows."""
    began, data = time.process_time(), Data(folder, name)
    X, y = data.part(*fit_on)
    prepared = encoder(data, told)
    model = MLPClassifier(
        tuple(told["hidden"]), activation=told["activation"], alpha=told["alpha"], learning_rate_init=told["lr"], batch_size=told["batch"],
        early_stopping=True, max_iter=200, random_state=seed,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(prepared.fit_transform(X), y)
    X, y = data.part(*score_on)
    return {
        "accuracy": float(model.score(prepared.transform(X), y)),
        "params": int(sum(array.size for array in (*model.coefs_, *model.intercepts_))),
        "epochs": model.n_iter_,
        "cpu_s": time.process_time() - began,
        "configuration": told,
    }


def boosted(folder: str, name: str, seed: int) -> dict[str, Any]:
    """LightGBM with its defaults; as many trees as are best on validation, then fitted on both parts."""
    began, data = time.process_time(), Data(folder, name)
    told: dict[str, Any] = {"random_state": seed, "n_jobs": 1, "verbose": -1, "subsample": 0.9, "subsample_freq": 1}
    first = lightgbm.LGBMClassifier(n_estimators=TREES, **told)
    (X, y), (X_valid, y_valid) = data.part(0), data.part(1)
    stop = lightgbm.early_stopping(50, verbose=False)
    first.fit(X, y, eval_set=[(X_valid, y_valid)], callbacks=[stop], categorical_feature=data.categories)
    model = lightgbm.LGBMClassifier(n_estimators=first.best_iteration_, **told)
    model.fit(*data.part(0, 1), categorical_feature=data.categories)
    X, y = data.part(2)
    return {
        "accuracy": float((model.predict(X) == y).mean()),
        "trees": int(first.best_iteration_),
        "leaves": int(sum(tree["num_leaves"] for tree in model.booster_.dump_model()["tree_info"])),
        "cpu_s": time.process_time() - began,
    }


# --- niwaki --------------------------------------------------------------------------------------------------------------------------------


def searched(out: str, folder: str, name: str, seed: int, told: dict[str, Any]) -> dict[str, Any]:
    """`niwaki search` on default settings, and the test accuracy of its model.onnx on rows that niwaki did not read."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    settings = {"data.kind": "table", "data.path": f"{folder}/{name}.npz", "budget": f'["params<={BUDGETS[name]}"]', **told}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    found = niwaki("search", *words, "--seed", str(seed), "--threads", "1", "--out", out, "--fresh")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    X, y = Data(folder, name).part(2)
    logits = ExportedModel(Path(out) / "model.onnx", threads=1).logits(X)
    return {
        "params": found["params"], "architecture": found["architecture"], "source": found["budgets"][0]["source"], "reported": found["accuracy"],
        "accuracy": float((logits.argmax(1) == y).mean()),
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
    }  # fmt: skip


# --- the claim -----------------------------------------------------------------------------------------------------------------------------


def peers(folder: Folder, shared: str, seed: int, configurations: int) -> dict[str, Any]:
    """The results of all peers of a seed, by set."""
    tried: list[Job] = []
    for name, budget in BUDGETS.items():
        data = Data(shared, name)
        one_hot = len(data.numbers) + sum(len(np.unique(data.part(0)[0][:, at])) for at in data.categories)
        classes = len(np.unique(data.y))
        inputs = {"one-hot": one_hot, "codes": data.X.shape[1]}
        for number in range(configurations):
            told = drawn(seed, number, inputs, 1 if classes == 2 else classes, budget)
            tried.append(Job(f"{name}-{seed}-{number}", fitted, (shared, name, seed, told, (0,), (1,))))
        tried.append(Job(f"{name}-{seed}-lightgbm", boosted, (shared, name, seed)))
    results = run_jobs(tried, folder, 1)
    of_sets = {name: [results[f"{name}-{seed}-{number}"] for number in range(configurations)] for name in BUDGETS}
    best = {name: max(tried_ones, key=lambda one: one["accuracy"])["configuration"] for name, tried_ones in of_sets.items()}
    final = run_jobs([Job(f"{name}-{seed}-best", fitted, (shared, name, seed, best[name], (0, 1), (2,))) for name in BUDGETS], folder, 1)
    return {
        name: {
            "mlp": final[f"{name}-{seed}-best"] | {"tuning_cpu_s": sum(one["cpu_s"] for one in of_sets[name])},
            "validation": [one["accuracy"] for one in of_sets[name]],
            "lightgbm": results[f"{name}-{seed}-lightgbm"],
        }
        for name in BUDGETS
    }


def show(shared: str, work: Path, quick: bool, count: int) -> Result:
    """Seed by seed, so that what is stopped halfway has something to tell. Peers do not depend on niwaki's code, and are kept apart."""
    seeds, told, configurations = (range(1), QUICK, 2) if quick else (range(count), {}, CONFIGURATIONS)
    asked = {"peers": {"budgets": BUDGETS, "configurations": configurations, "protocol": 2}}
    beside, found = {}, {}
    with (
        closing(Folder(work / "tabular-peers", asked=asked)) as theirs,
        closing(work_folder(work / "tabular", {"budgets": BUDGETS})) as folder,
    ):
        for seed in seeds:
            of_seed = peers(theirs, shared, seed, configurations)
            beside |= {f"{name}-{seed}": of_seed[name] for name in BUDGETS}
            out = {name: str(folder.path / f"run-{name}-{seed}") for name in BUDGETS}
            found |= run_jobs([Job(f"{name}-{seed}", searched, (out[name], shared, name, seed, told)) for name in BUDGETS], folder, 1)
    claims, rows = [], []
    for name, budget in BUDGETS.items():
        ours = [found[f"{name}-{seed}"] for seed in seeds]
        mlp = [beside[f"{name}-{seed}"]["mlp"] for seed in seeds]
        trees = [beside[f"{name}-{seed}"]["lightgbm"] for seed in seeds]
        difference = bootstrap([100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(ours, mlp, strict=True)])
        claims.append(
            Claim(
                f"{name}, at most {budget:,} parameters: test accuracy minus that of the tuned MLPClassifier, {len(seeds)} seeds, paired",
                "> 0",
                _points(difference),
                difference.low > 0,
            )
        )
        claims.append(
            Claim(
                f"{name}: minus LightGBM, without a limit",
                "",
                _points(bootstrap([100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(ours, trees, strict=True)])),
            )
        )
        most = max(one["params"] for one in (*ours, *mlp))
        claims.append(Claim(f"{name}: every network within the budget", "yes", f"at most {most:,}", most <= budget))
        exact = all(abs(one["accuracy"] - one["reported"]["test"]) < 1e-9 for one in ours)
        claims.append(Claim(f"{name}: model.onnx gives the accuracy that was reported", "yes", "", exact))
        for seed, (a, b, c) in enumerate(zip(ours, mlp, trees, strict=True)):
            cells = (
                f"{a['accuracy']:.2%} ({a['params']:,})",
                f"{b['accuracy']:.2%} ({b['params']:,})",
                f"{c['accuracy']:.2%} ({c['leaves']:,} leaves)",
            )
            rows.append((name, str(seed), *cells))
        means = [f"{mean(one['accuracy'] for one in group):.2%}" for group in (ours, mlp, trees)]
        rows.append((name, "mean", *means))
        seconds = (
            mean(one["cpu_s"] for one in ours),
            mean(one["cpu_s"] + one["tuning_cpu_s"] for one in mlp),
            mean(one["cpu_s"] for one in trees),
        )
        rows.append((name, "CPU time", *(f"{value:.0f} s" for value in seconds)))
    table = Table("Test accuracy (parameters)", ("set", "seed", "niwaki search", "MLPClassifier, best of 16", "LightGBM"), tuple(rows))
    notes = (
        "Rows as the shared sets divide them: 60 % to train on, 20 % to choose by, 20 % to test on; the final fit of each is on the first two. Intervals: 95 % "
        "bootstrap over the seeds.",
        "MLPClassifier: 16 random configurations a seed of one to three layers that use 50 to 100 % of the budget, with one-hot or standardised categories, "
        "standardised or quantile-normal numbers, ReLU or tanh, and penalty, learning rate and batch size at random; early stopping; the best on validation is "
        "fitted again. Of two classes it has one output, niwaki two. What a fitted preprocessing holds is counted for neither.",
        f"LightGBM knows no such limit: its number of trees is the best on validation, of {TREES:,} at most, the rest are defaults.",
        f"{sum(one['source'] == 'regular' for one in found.values())} of the {len(found)} networks that niwaki delivered are regular ones, alike in all their "
        "layers, of those that stand beside what the search finds among the finalists (README.md).",
        "Results of peers are kept, and may have been made before those of niwaki beside them.",
    )
    return Result(
        "tabular", "12. Tables of numbers", "python benchmarks/tabular.py" + (f" --seeds {len(seeds)}" if len(seeds) < SEEDS else ""), tuple(claims), (table,), notes, figures={"niwaki": found, "peers": beside},
    )  # fmt: skip


def _points(interval: Interval) -> str:
    return f"{interval.mean:+.2f} points ({interval.low:+.2f} to {interval.high:+.2f})"


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seeds", type=int, default=SEEDS, help="how many of them")
        parser.add_argument("--shared", default=os.environ.get("NIWAKI_SHARED", str(HERE.parent.parent / "shared")), help="above data/")

    on_one_thread()
    options = arguments(__doc__ or "", more)
    sets = Path(options.shared).resolve() / "data" / "tabular"
    if missing := [name for name in BUDGETS if not (sets / f"{name}.npz").is_file()]:
        raise SystemExit(f"there is no {sets / missing[0]}.npz; give the folder above data/ with --shared")
    about = machine(threads=1, seed=0)
    with TemporaryDirectory() as scratch:
        result = show(str(sets), Path(scratch) if options.quick else (HERE / "work").resolve(), options.quick, options.seeds)
    say("")
    report(result, about, quick=options.quick)


if __name__ == "__main__":
    import tabular  # workers know functions by the name of their module, which a script has not

    tabular.main()
