"""What a proposal costs: ask and tell with 25 decisions, in memory and stored in SQLite; PyGlove and Optuna doing the same in the same run.

PyGlove is no dependency: it is measured where `--pyglove PYTHON` names an interpreter that has it.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import harness
import optuna
from optuna.samplers import RandomSampler, TPESampler

from niwaki.run.ask_tell import AskTellSearch
from niwaki.space.architecture import Architecture
from niwaki.space.size import op
from niwaki.space.space import Decision, Space
from niwaki.store.engine import open_store
from niwaki.strategy.default import Default
from niwaki.strategy.evolution import RegularizedEvolution
from niwaki.strategy.local_search import LocalSearch
from niwaki.strategy.nsga2 import NSGA2
from niwaki.strategy.random import RandomSearch
from niwaki.trial import Trial

DECISIONS, OPTIONS = 25, 4
MEMORY_MS, STORED_MS, DEFAULT_MS = 0.1, 1.0, 50.0  # promised
OURS = {"random": RandomSearch(), "evolution": RegularizedEvolution(), "local search": LocalSearch(), "NSGA-II": NSGA2()}
PROMISED = ("random", "evolution")

PYGLOVE = """
import json, sys, time
import pyglove as pg
decisions, options, trials = map(int, sys.argv[1:])
found = {}
for name, make in (("random", lambda: pg.geno.Random(seed=0)), ("evolution", lambda: pg.evolution.regularized_evolution(population_size=50, tournament_size=10, seed=0))):
    space = pg.Dict(**{f"d{i}": pg.oneof(list(range(options))) for i in range(decisions)})
    began = time.process_time()
    for example, feedback in pg.sample(space, make(), num_examples=trials):
        feedback(sum(example.values()) / 100)
    found[name] = (time.process_time() - began) / trials * 1e3
print(json.dumps(found))
"""


def flat() -> Space:
    return Space(tuple(Decision(f"d{at}", tuple(range(OPTIONS))) for at in range(DECISIONS)))


def conditional() -> Space:
    """As many decisions: a depth of 1 to 8, and three of each block, which exist where the depth reaches it."""
    depth = Decision("depth", tuple(range(1, 9)))
    blocks = [Decision(f"{what}{at}", tuple(range(OPTIONS)), op(">", depth.ref, at)) for at in range(8) for what in "abc"]
    return Space((depth, *blocks))


def metrics(arch: Architecture) -> dict[str, float]:
    return {"accuracy": sum(map(float, arch.values())) / 100, "macs": float(len(arch))}  # type: ignore[arg-type]


def in_memory(strategy: Any, space: Space, trials: int, batch: int) -> float:
    """Milliseconds of CPU per trial: ask and tell, and nothing else."""
    state, done, seconds = strategy.init(space), 0, 0.0
    while done < trials:
        began = time.process_time()
        asked = strategy.ask(state, batch, Random(f"0/{done}"), pending=())
        seconds += time.process_time() - began
        told = [Trial(done + at, arch, metrics(arch), strategy.name) for at, arch in enumerate(asked)]
        began = time.process_time()
        state = strategy.tell(state, told)
        seconds += time.process_time() - began
        done += len(told)
    return seconds / trials * 1e3


def stored(strategy: Any, space: Space, trials: int, batch: int) -> float:
    """The same through `AskTellSearch` and a store on the disk: every proposal and every trial is safe before it goes on."""
    with tempfile.TemporaryDirectory() as folder, open_store(Path(folder) / "run.sqlite") as store:
        search = AskTellSearch(space, space, strategy, store, run="r", evaluations=trials, batch_size=batch)
        seconds, began = 0.0, time.process_time()
        while out := search.ask():
            for number, arch in out.items():
                seconds += time.process_time() - began
                trial = Trial(number, arch, metrics(arch), strategy.name)
                began = time.process_time()
                search.finish(trial)
        return (seconds + time.process_time() - began) / trials * 1e3


def optuna_ms(make: Callable[[], Any], trials: int, storage: str | None) -> float:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=make(), storage=storage)
    began = time.process_time()
    for _ in range(trials):
        trial = study.ask()
        values = [trial.suggest_categorical(f"d{at}", list(range(OPTIONS))) for at in range(DECISIONS)]
        study.tell(trial, sum(values) / 100)
    return (time.process_time() - began) / trials * 1e3


def default_ms(told: int, rounds: int) -> float:
    """Milliseconds of one ask and tell of `default` after so many told trials."""
    space, rng, strategy = flat(), Random(0), Default()
    archs = list(dict.fromkeys(space.sample_uniform(rng) for _ in range(told)))
    state = strategy.init(space)
    state = strategy.tell(state, [Trial(at, arch, metrics(arch), "random") for at, arch in enumerate(archs)])
    return in_memory_from(strategy, state, told, rounds)


def in_memory_from(strategy: Any, state: Any, done: int, rounds: int) -> float:
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        (arch,) = strategy.ask(state, 1, Random(f"0/{done}"), pending=())
        half = time.process_time() - began
        told = [Trial(done, arch, metrics(arch), strategy.name)]
        began = time.process_time()
        state = strategy.tell(state, told)
        spent.append(half + time.process_time() - began)
        done += 1
    return harness.Spread.of(spent).median * 1e3


def main() -> None:
    given = harness.arguments(
        __doc__ or "", lambda parser: parser.add_argument("--pyglove", metavar="PYTHON", help="an interpreter that has pyglove")
    )
    harness.on_one_thread()
    about = harness.machine(threads=1, seed=given.seed)
    rounds, trials = (1, 100) if given.quick else (3, 1000)
    rows, figures, claims, default_rounds = [], {}, [], (2 if given.quick else 20)

    def measured(steps: dict[str, Callable[[], float]]) -> dict[str, float]:
        """The median of the rounds, which take the steps in turns."""
        found: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(rounds):
            for name, step in steps.items():
                found[name].append(step())
        return {name: harness.Spread.of(values).median for name, values in found.items()}

    steps: dict[str, Callable[[], float]] = {}
    for name, strategy in OURS.items():
        for kind, space in (("", flat()), (", conditional", conditional())):
            for batch in (1, 4):
                label = f"niwaki {name}{kind}, {'one by one' if batch == 1 else f'batches of {batch}'}"
                steps[f"{label}|memory"] = lambda s=strategy, sp=space, b=batch: in_memory(s, sp, trials, b)  # type: ignore[misc]
                if not kind:
                    steps[f"{label}|stored"] = lambda s=strategy, sp=space, b=batch: stored(s, sp, trials // 4, b)  # type: ignore[misc]
    for name, make in {"random": lambda: RandomSampler(seed=0), "TPE": lambda: TPESampler(seed=0)}.items():
        few = trials // 5
        steps[f"Optuna {optuna.__version__} {name}|memory"] = lambda m=make, n=few: optuna_ms(m, n, None)  # type: ignore[misc]

        def on_disk(m: Callable[[], Any] = make, n: int = max(10, trials // 50)) -> float:
            with tempfile.TemporaryDirectory() as folder:
                return optuna_ms(m, n, f"sqlite:///{folder}/study.db")

        steps[f"Optuna {optuna.__version__} {name}|stored"] = on_disk
    found = measured(steps)
    if given.pyglove:
        command = [given.pyglove, "-W", "ignore", "-c", PYGLOVE, *map(str, (DECISIONS, OPTIONS, max(20, trials // 10)))]
        answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        found |= {f"PyGlove {name}|memory": value for name, value in answer.items()}
    for label in dict.fromkeys(name.partition("|")[0] for name in found):
        cells = [found.get(f"{label}|{where}") for where in ("memory", "stored")]
        rows.append((label, *(f"{cell:.3f} ms" if cell is not None else "" for cell in cells)))
    figures["milliseconds"] = found
    for where, promise in (("memory", MEMORY_MS), ("stored", STORED_MS)):
        worst = max(
            (value, name)
            for name, value in found.items()
            if name.endswith(where) and name.split()[1].rstrip(",") in PROMISED and name.startswith("niwaki")
        )
        claims.append(
            harness.Claim(
                f"ask + tell of {DECISIONS} decisions, random and evolution, {'in memory' if where == 'memory' else 'stored in SQLite'}",
                f"<= {promise} ms of CPU per trial",
                f"{worst[0]:.3f} ms at most ({worst[1].partition('|')[0]})",
                None if given.quick else worst[0] <= promise,
            )
        )
    slow = default_ms(100 if given.quick else 1000, default_rounds)
    figures["default_ms_at_1000"] = slow
    claims.append(
        harness.Claim(
            "`default`, ask + tell at 1,000 told trials",
            f"<= {DEFAULT_MS:.0f} ms",
            f"{slow:.1f} ms",
            None if given.quick else slow <= DEFAULT_MS,
        )
    )
    harness.report(
        harness.Result(
            "ask_tell",
            "9. Ask and tell",
            "python benchmarks/ask_tell.py --pyglove PYTHON",
            tuple(claims),
            (harness.Table(f"CPU per trial, {DECISIONS} decisions of {OPTIONS} options", ("method", "in memory", "SQLite"), tuple(rows)),),
            (
                f"{trials:,} trials in memory, {trials // 4} stored, {trials // 5} and {trials // 50} for Optuna, {trials // 10} for PyGlove; medians of {rounds} rounds, in turns. "
                "Stored: every proposal before it is evaluated and every trial when it is finished, each a commit on the disk.",
                "Conditional: a depth of 1 to 8 and three decisions of each block.",
            ),
            figures,
        ),
        about,
        quick=given.quick,
    )


if __name__ == "__main__":
    main()
