"""What a newcomer gets: default searches from the command line, on the digits, on an own `.npz` set and on an own folder of images.

    python benchmarks/shows.py digits|fashion|folder [--shared FOLDER] [--quick]

digits: five seeds of `niwaki search`, each network's test accuracy computed anew from its model.onnx, and three plain convolutions of as
many multiply-adds trained the same way. fashion: 8,000 images of Fashion-MNIST as an `.npz` set, one million multiply-adds, three seeds;
beside each a hand-written network of inverted residuals of that size, trained as long. folder: crops of the blood cells of BCCD, by class,
of mixed sizes; searched, exported, and predicted with `niwaki predict`. Every result is kept in benchmarks/work/; started again, it goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import HERE, Claim, Result, Table, arguments, machine, report
from jobs import Job, run_jobs, work_folder
from PIL import Image
from sklearn.datasets import load_digits

from niwaki.cost.count import count_macs
from niwaki.deploy.predict import ExportedModel
from niwaki.net.block import classifier, conv_bn_act, mbconv
from niwaki.net.control import Chain, Network
from niwaki.net.place import space_of
from niwaki.nn.build import build
from niwaki.run.config import load_config
from niwaki.run.folder import Folder
from niwaki.run.plan import search_of
from niwaki.run.statistics import Interval, bootstrap
from niwaki.store.files import atomic_write
from niwaki.task.classify import ImageClassification
from niwaki.task.cut import stratified_cut
from niwaki.task.embedded import digits
from niwaki.task.images import npz
from niwaki.task.task import derive_seed
from niwaki.train.loop import evaluate, train

QUICK = {"threads": 1, "search.epochs": 2, "search.candidates": 2, "search.finalists": 1, "train.epochs": 2}
FASHION_IMAGES, FASHION_BUDGET = 8_000, 1_000_000
CROPS = {"RBC": 400, "WBC": None, "Platelets": None}  # class -> most boxes of the training part; None: all


# --- rivals --------------------------------------------------------------------------------------------------------------------------------


def three_convolutions() -> Network:
    """Three 3x3 convolutions of 16, 24 and 40 channels, each after the first halving the map: 99,472 multiply-adds at 8 x 8."""
    widths = ((16, 1), (24, 2), (40, 2))
    return Network(
        Chain(*(conv_bn_act(width, 3, stride=stride, name=f"conv{at}") for at, (width, stride) in enumerate(widths)), classifier(10)),
        (1, 8, 8),
    )


def inverted_residuals() -> Network:
    """By hand, as MobileNetV2 is made (Sandler et al. 2018): a stem and six inverted residuals of expansion 4; about a million multiply-adds
    at 28 x 28."""
    rows = ((12, 1), (20, 2), (20, 1), (32, 2), (32, 1), (48, 1))
    return Network(
        Chain(
            conv_bn_act(16, 3, stride=2, activation="relu6", name="stem"),
            *(
                mbconv(width, 3, expand=1 if at == 0 else 4, stride=stride, activation="relu6", name=f"block{at}")
                for at, (width, stride) in enumerate(rows)
            ),
            classifier(10),
        ),
        (1, 28, 28),
    )


def rival(network: Network, data: str, budget: str, seed: int, told: dict[str, Any]) -> dict[str, Any]:
    """`network` trained as the search trains the one it chose: recipe, images, seeds, threads."""
    task = ImageClassification(digits() if data == "digits" else npz(data), seed=seed)
    config, search = search_of(load_config(None, (), {"budget": [budget], "seed": seed, **told}), task)
    torch.set_num_threads(config.threads or 1)
    module = build(network, seed=derive_seed(seed, "final weights"))
    model = train(module, task, search.recipe, task.part("train+validation"), seed=derive_seed(seed, "final"))
    macs = count_macs(network)(space_of(network).architecture({}))
    return {"macs": macs, "accuracy": evaluate(model, task, task.part("test"))["accuracy"], "epochs": search.recipe.epochs}


# --- searches ------------------------------------------------------------------------------------------------------------------------------


def niwaki(*words: str) -> dict[str, Any]:
    """What `niwaki WORDS --json` prints."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-m", "niwaki.cli", *words, "--json", "--quiet"], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"niwaki {' '.join(words)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def timed_search(out: str, words: Sequence[str], told: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """What `niwaki search` prints, and the seconds it took from nothing to its end: what an interrupted one has left is not gone on with."""
    settings = [word for key, value in told.items() for word in ("--set", f"{key}={value}")]
    began = time.perf_counter()
    found = niwaki("search", *words, *settings, "--out", out, "--fresh")
    return found, time.perf_counter() - began


def searched(out: str, words: Sequence[str], seed: int, told: dict[str, Any], images: str) -> dict[str, Any]:
    """`niwaki search` on default settings, timed, and the test accuracy of its model.onnx on images that niwaki did not read."""
    found, wall = timed_search(out, [*words, "--set", f"seed={seed}"], told)
    x, y = _test_digits() if images == "digits" else _arrays(Path(images) / "test.npz")
    logits = ExportedModel(Path(out) / "model.onnx").logits(x)
    return {
        "macs": found["macs"], "params": found["params"], "search_wall_s": wall, "architecture": found["architecture"],
        "reported": found["accuracy"], "accuracy": float((logits.argmax(1) == y).mean()),
    }  # fmt: skip


def _test_digits() -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    return images[-360:].reshape(-1, 8, 8).astype(np.uint8), labels[-360:]


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(path, allow_pickle=False) as data:
        return data["images"], data["labels"].astype(np.int64)


# --- the three shows -----------------------------------------------------------------------------------------------------------------------


def show_digits(folder: Folder, shared: Path, quick: bool) -> Result:
    """`make search`, five times."""
    told, seeds = ({**QUICK, "budget": '["macs<=100000"]'}, range(1)) if quick else ({}, range(5))
    plain = {key: value for key, value in told.items() if key != "budget"}
    results = run_jobs(
        [Job(f"search-{seed}", searched, (str(folder.path / f"run-{seed}"), (), seed, told, "digits")) for seed in seeds]
        + [Job(f"three-{seed}", rival, (three_convolutions(), "digits", "macs<=100000", seed, plain)) for seed in seeds],
        folder, 1,
    )  # fmt: skip
    found, hand = ([results[f"{kind}-{seed}"] for seed in seeds] for kind in ("search", "three"))
    difference = bootstrap([100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(found, hand, strict=True)])
    accuracy = bootstrap([100 * one["accuracy"] for one in found])
    seconds = [one["search_wall_s"] for one in found]
    claims = (
        Claim("mean test accuracy over seeds 0-4, from model.onnx", ">= 98.5 %", _points(accuracy, " %"), accuracy.mean >= 98.5),
        Claim(
            "minus three convolutions of as many MACs, paired",
            ">= -0.3 points",
            _points(difference, " points", "+"),
            difference.mean >= -0.3,
        ),
        Claim("every network within 100 k MACs", "yes", f"at most {max(one['macs'] for one in found):,}", _all(found, 100_000)),
        Claim("the whole search, wall time", "< 4 minutes", f"{mean(seconds):.0f} s, at most {max(seconds):.0f} s", max(seconds) < 240),
        Claim("model.onnx gives the accuracy that was reported", "yes", "", all(map(_as_reported, found))),
    )
    return _result("digits", "4. A first search: the digits", claims, found, hand, "three convolutions", results)


def show_fashion(folder: Folder, shared: Path, quick: bool) -> Result:
    """An own `.npz` set."""
    told, seeds = (QUICK, range(1)) if quick else ({}, range(3))
    data = folder.path / "data"
    _fashion_set(shared / "data" / "fashion_mnist", data, 300 if quick else FASHION_IMAGES)
    words = ("--set", "data.kind=npz", "--set", f"data.path={data}", "--set", 'budget=["macs<=1e6"]')
    results = run_jobs(
        [Job(f"search-{seed}", searched, (str(folder.path / f"run-{seed}"), words, seed, told, str(data))) for seed in seeds]
        + [Job(f"hand-{seed}", rival, (inverted_residuals(), str(data), "macs<=1e6", seed, told)) for seed in seeds],
        folder, 1,
    )  # fmt: skip
    found, hand = ([results[f"{kind}-{seed}"] for seed in seeds] for kind in ("search", "hand"))
    difference = bootstrap([100 * (a["accuracy"] - b["accuracy"]) for a, b in zip(found, hand, strict=True)])
    seconds = [one["search_wall_s"] for one in found]
    claims = (
        Claim(
            "minus a hand-written network of inverted residuals, paired", ">= 0", _points(difference, " points", "+"), difference.mean >= 0
        ),
        Claim("every network within 1 M MACs", "yes", f"at most {max(one['macs'] for one in found):,}", _all(found, FASHION_BUDGET)),
        Claim("the whole search, wall time", "<= 15 minutes", f"{mean(seconds):.0f} s, at most {max(seconds):.0f} s", max(seconds) <= 900),
        Claim("model.onnx gives the accuracy that was reported", "yes", "", all(map(_as_reported, found))),
    )
    return _result("fashion", "5. An own set: 8,000 images of Fashion-MNIST", claims, found, hand, "inverted residuals by hand", results)


def show_folder(folder: Folder, shared: Path, quick: bool) -> Result:
    """An own folder of colour images of mixed sizes."""
    told = QUICK if quick else {}
    data = folder.path / "cells"
    sizes = _crops(shared / "data" / "bccd", data, 20 if quick else None)
    words = ["--set", "data.kind=folder", "--set", f"data.path={data}"]
    run = run_jobs([Job("folder", _folder, (str(folder.path / "run"), words, told, str(data / "test")))], folder, 1)["folder"]
    sides = np.array([side for size in sizes for side in size])
    claims = (
        Claim("colour images of mixed sizes", ">= 500", f"{len(sizes):,}, of {sides.min()} to {sides.max()} pixels a side", len(sizes) >= 500),
        Claim(
            "`niwaki predict` on the test folder gives the accuracy that was reported", "yes",
            f"{run['predicted']:.2%}, reported {run['reported']['test']:.2%}", abs(run["predicted"] - run["reported"]["test"]) < 1e-9,
        ),
        Claim("the whole search, wall time", "", f"{run['search_wall_s']:.0f} s"),
        Claim(f"within the default budget, {run['limit']:,} MACs", "yes", f"{run['macs']:,}", run["macs"] <= run["limit"]),
    )  # fmt: skip
    return Result(
        "folder", "6. An own folder: blood cells", "python benchmarks/shows.py folder", claims,
        notes=("Crops of the boxes of BCCD by class; its own split in training and test images.",), figures={"folder": run},
    )  # fmt: skip


def _folder(out: str, words: Sequence[str], told: dict[str, Any], test: str) -> dict[str, Any]:
    found, wall = timed_search(out, words, told)
    answers = niwaki("predict", out, test)
    limit = json.loads((Path(out) / "config.json").read_text())["plan"]["limits"][0]["macs"]
    return {"macs": found["macs"], "limit": limit, "reported": found["accuracy"], "predicted": answers["accuracy"], "search_wall_s": wall,
            "architecture": found["architecture"]}  # fmt: skip


def _result(name: str, title: str, claims: tuple[Claim, ...], found: Sequence[Any], hand: Sequence[Any], by_hand: str, all_: Any) -> Result:
    def cell(one: dict[str, Any]) -> str:
        return f"{one['accuracy']:.2%} at {one['macs']:,} MACs"

    rows = tuple((str(seed), cell(ours), cell(theirs)) for seed, (ours, theirs) in enumerate(zip(found, hand, strict=True)))
    notes = (
        f"Both networks of a seed are trained by one recipe, {hand[0]['epochs']} epochs, on the same images in the same order. "
        "Intervals: 95 % bootstrap over the seeds.",
    )
    table = Table("Test accuracy", ("seed", "niwaki search", by_hand), rows)
    return Result(name, title, f"python benchmarks/shows.py {name}", claims, (table,), notes, {"results": all_})


def _all(found: Iterable[dict[str, Any]], budget: int) -> bool:
    return all(one["macs"] <= budget for one in found)


def _as_reported(found: dict[str, Any]) -> bool:
    return abs(found["accuracy"] - found["reported"]["test"]) < 1e-9


def _points(interval: Interval, unit: str, sign: str = "") -> str:
    middle, low, high = (f"{value:{sign}.2f}" for value in (interval.mean, interval.low, interval.high))
    return f"{middle}{unit} ({low} to {high})"


# --- data ------------------------------------------------------------------------------------------------------------------------------------


def _fashion_set(source: Path, data: Path, count: int) -> None:
    """`count` training images, every class as often as in the full set, and all test images, as a newcomer would have them."""
    if (data / "test.npz").is_file():
        return
    _require(source)
    images, labels = _arrays(source / "train.npz")
    _, kept = stratified_cut(labels, count / len(labels), np.random.default_rng(0))
    data.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(data / "train.npz", images=images[kept], labels=labels[kept])
    atomic_write(data / "test.npz", (source / "test.npz").read_bytes())


def _crops(source: Path, data: Path, most: int | None) -> list[tuple[int, int]]:
    """The sizes of the crops that `data` has, in train/CLASS/ and test/CLASS/, as PNG; made if they are not there. most: of a class."""
    if not data.is_dir():
        _require(source)
        begun = data.with_name(f"{data.name}.begun")
        shutil.rmtree(begun, ignore_errors=True)
        rng = np.random.default_rng(0)
        for part, where in (("train", "train"), ("val", "test")):
            rows = list(csv.DictReader((source / f"{part}_boxes.csv").open()))
            for number, (name, limit) in enumerate(CROPS.items()):
                boxes = [row for row in rows if int(row["class_id"]) == number]
                for at in rng.permutation(len(boxes))[: most or limit]:
                    row = boxes[at]
                    with Image.open(source / part / f"{row['image']}.jpg") as image:
                        crop = image.crop((float(row["xmin"]), float(row["ymin"]), float(row["xmax"]), float(row["ymax"])))
                    if min(crop.size) >= 4:
                        (begun / where / name).mkdir(parents=True, exist_ok=True)
                        crop.save(begun / where / name / f"{at:04d}.png")
        begun.rename(data)
    sizes = []
    for path in data.rglob("*.png"):
        with Image.open(path) as image:
            sizes.append(image.size)
    return sizes


def _require(folder: Path) -> None:
    if not folder.is_dir():
        raise SystemExit(f"there is no {folder}; give the folder above data/ with --shared")


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("show", choices=SHOWS)
        parser.add_argument("--shared", default=os.environ.get("NIWAKI_SHARED", str(HERE.parent.parent / "shared")), help="above data/")

    options = arguments(__doc__ or "", more)
    about = machine(threads=None, seed=0)
    with TemporaryDirectory() as scratch:
        work = (Path(scratch) if options.quick else HERE / "work") / f"shows-{options.show}"
        with closing(work_folder(work.resolve(), {"show": options.show})) as folder:
            result = SHOWS[options.show](folder, Path(options.shared).resolve(), options.quick)
        report(result, about, quick=options.quick)


SHOWS = {"digits": show_digits, "fashion": show_fashion, "folder": show_folder}


if __name__ == "__main__":
    import shows  # workers know functions by the name of their module, which a script has not

    shows.main()
