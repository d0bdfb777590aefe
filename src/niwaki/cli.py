"""The command line: words to objects. Heavy parts are imported inside their commands, so that `niwaki --help` is quick."""

from __future__ import annotations

import errno
import json
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="niwaki",
    help="Find, train and ship the best neural network for a hardware budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
INPUT_ERRNOS = {  # of files that the user named, or of a disk that the user can make room on
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG,
}  # fmt: skip

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but results and errors.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder of the run (default: runs/<config>-<hash>).")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Delete what the folder holds of an earlier run and start anew.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the configuration; may be repeated.")
]

Cascade = Annotated[
    str | None,
    typer.Option(
        metavar="DEMAND",
        help='Also a cascade of the networks of all budgets, for "accuracy>=largest-1%", "accuracy>=97%" or "macs<=50%" on average; '
        '"... and worst(macs)<=2M" bounds the worst case.',
    ),
]


@app.command()
def search(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.toml]", help="What to search; the embedded digits, if left out.")
    ] = None,
    settings: Setting = None,
    out: Out = None,
    minutes: Annotated[float | None, typer.Option(help="Wall-clock limit; a plan that keeps it is made by a short timing.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads of torch, and processes that train finalists; part of the configuration, as results depend on it."),
    ] = None,
    device: Device = None,
    cascade: Cascade = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Search, train and ship a network within a budget."""
    with _told(as_json):
        from niwaki.run.api import search_config
        from niwaki.run.config import load_config

        given = {"minutes": minutes, "seed": seed, "threads": threads, "device": device, "cascade": cascade}
        loaded = load_config(config, settings or (), given)
        name = config.stem if config is not None else loaded.data.kind
        with _watched(quiet) as progress:
            result = search_config(loaded, out=out, name=name, fresh=fresh, progress=progress, command=_command())
        _print_result(result.summary, as_json, quiet)


@app.command()
def resume(folder: Path, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Go on with a run that was interrupted; print the result of one that is finished."""
    with _told(as_json):
        from niwaki.run.api import resume as go_on
        from niwaki.run.shrink import is_shrinking
        from niwaki.run.shrink import resume as go_on_shrinking

        with _watched(quiet) as progress:
            if is_shrinking(folder):
                _print_shrunken(go_on_shrinking(folder, progress=progress).summary, as_json, quiet)
                return
            result = go_on(folder, progress=progress)
        _print_result(result.summary, as_json, quiet)


@app.command()
def predict(
    folder: Annotated[Path, typer.Argument(help="A run's folder, or a model.onnx that niwaki wrote.")],
    files: Annotated[
        list[Path], typer.Argument(help="Images, folders of images, or .npy and .npz files; tables as .csv, .parquet or .npz.")
    ],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Classify files, or predict the rows of tables, with the exported model, in ONNX Runtime."""
    with _told(as_json):
        from niwaki.deploy.predict import Estimate, PredictError
        from niwaki.deploy.predict import predict as classify

        model = folder / "model.onnx" if folder.is_dir() else folder
        if not model.is_file():
            missing = f"{folder} has no model.onnx; has its run finished? `niwaki resume {folder}` goes on with it"
            raise PredictError(missing if folder.is_dir() else f"there is no {folder}; a run's folder or a model.onnx is needed")
        found = classify(model, files)
        if not as_json:
            for row in found.rows:
                said = f"{row.value:.6g}" if isinstance(row, Estimate) else f"{row.label}\t{row.probability:.3f}"
                print(f"{row.source}\t{said}")
            if found.accuracy is not None and not quiet:
                print(f"accuracy {found.accuracy:.4f} over {len(found.rows)} examples")
            if found.exit_shares and not quiet:
                print("of a cascade: " + ", ".join(f"exit {at} {share:.1%}" for at, share in found.exit_shares.items()))
            if found.rmse is not None and not quiet:
                print(f"rmse {found.rmse:.6g} over {len(found.rows)} rows")
        for file, why in found.failures.items():
            print(f"error: {file}: {why}", file=sys.stderr)
        if as_json:
            rows: list[dict[str, Any]] = [
                {"file": r.source, "value": r.value, "truth": r.truth}
                if isinstance(r, Estimate)
                else {
                    "file": r.source,
                    "label": r.label,
                    "probability": r.probability,
                    "top": r.top,
                    "truth": r.truth,
                    **({} if r.exit is None else {"exit": r.exit}),
                }
                for r in found.rows
            ]
            shares = {"exit_shares": found.exit_shares} if found.exit_shares else {}
            print(json.dumps({"predictions": rows, "failures": found.failures, "accuracy": found.accuracy, "rmse": found.rmse, **shares}))
        if found.failures:
            raise typer.Exit(FAILED if found.rows else BAD_INPUT)


@app.command()
def report(
    folder: Path,
    checklist: Annotated[
        bool, typer.Option("--checklist", help="Print what a comparison of methods should keep, item by item, with where it can be seen.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write report.html of a run anew, finished or not; or of a comparison."""
    with _told(as_json):
        from niwaki.run.api import run_checklist, write_report
        from niwaki.run.bench import is_comparison, write_comparison
        from niwaki.run.shrink import is_shrinking
        from niwaki.run.shrink import write_report as write_shrinking

        if is_comparison(folder):
            path, items = folder / "report.html", write_comparison(folder)["checklist"]
        elif is_shrinking(folder):
            path, items = write_shrinking(folder), []
        else:
            path = write_report(folder)
            items = [vars(item) for item in run_checklist(folder)] if checklist else []
        found = {"report": str(path), **({"checklist": items} if checklist else {})}
        print(json.dumps(found) if as_json else path)
        for item in items if checklist and not as_json else ():
            print(f"{item['status']:<5} {item['item']}\n      {item['evidence']}")


@app.command()
def explain(
    folder: Annotated[Path, typer.Argument(help="The folder of a finished search or shrinking.")],
    epochs: Annotated[
        int | None, typer.Option(help="Of training with tree supervision (default: a quarter of the run's own; 0: the network as it is).")
    ] = None,
    hierarchy: Annotated[
        Path | None, typer.Option(help="A tree.json in place of the induced tree: another's, or its own with names in `labels`.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read the network of a run as a tree of decisions, and show it in the report with the paths of single examples."""
    with _told(as_json):
        from niwaki.run.explaining import explain_run

        with _watched(quiet) as progress:
            found = explain_run(folder, epochs=epochs, progress=progress, hierarchy=hierarchy)
        if as_json:
            print(json.dumps(found))
            return
        for name, share in found["accuracy"].items():
            print(f"test accuracy {share:.4f} of {name}{', which tree.onnx gives' if name == found['delivered'] else ''}")
        if found["warning"]:
            print(f"warning: {found['warning']}", file=sys.stderr)
        if not quiet:
            print(f"report: {found['report']}#tree")


@app.command()
def export(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="A finished run; for a cascade several, or ONNX files.")],
    cascade: Cascade = None,
    cost: Annotated[str | None, typer.Option(help="Of a cascade, what is least for an accuracy: macs, or latency(onnxruntime).")] = None,
    data: Annotated[Path | None, typer.Option(help="Of a cascade: .npz with images and labels that no network was trained on.")] = None,
    confidence: Annotated[str | None, typer.Option(help="Of a cascade: max_probability (the default), gap, logit_gap or entropy.")] = None,
    average: Annotated[
        str | None,
        typer.Option(help="Of a cascade, how members answer: mean logits, mean probabilities, or the last alone (default: the best)."),
    ] = None,
    resolution: Annotated[
        list[int] | None, typer.Option(help="Of a cascade: each network is a member at this image size; may be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Of a cascade: its folder (default: the run's).")] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write model.onnx, model.pt2, model.py and architecture.json of a finished run anew, checked on its data; or a cascade of networks."""
    with _told(as_json):
        from niwaki.deploy.thresholds import CommitteeError
        from niwaki.run.api import export_run

        if cascade is not None:
            from niwaki.deploy.confidence import confidence_named
            from niwaki.run.cascade import cascade as make

            told: Any = {"cost": cost, "data": data, "average": average, "resolutions": resolution or (), "out": out}
            with _watched(quiet) as progress:
                made = make(folders, cascade, confidence=confidence_named(confidence or "max_probability"), progress=progress, **told)
            if as_json:
                print(json.dumps({**made.summary, "folder": str(made.folder)}))
            else:
                print(made)
                if not quiet:
                    print(f"model:  {made.model}")
            return
        of_cascade = {
            "--cost": cost,
            "--data": data,
            "--confidence": confidence,
            "--average": average,
            "--resolution": resolution,
            "--out": out,
        }
        if idle := [word for word, value in {**of_cascade, "several folders": folders[1:]}.items() if value]:
            raise CommitteeError(f"{', '.join(idle)}: these are of a cascade, and --cascade says what it shall come to")
        rows = export_run(folders[0])
        if as_json:
            print(json.dumps({"files": rows}))
        else:
            for row in rows:
                print(f"{row['file']}\t{row['bytes']:,} bytes\tlargest difference {row['difference']:.1e}")


@app.command()
def profile(
    model: Annotated[str, typer.Argument(help="A name in the zoo, an .onnx file, module:attr or file.py:attr.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="1x3x224x224, or ids=1x128:int64<1000; once for each argument.")
    ] = None,
    arch: Annotated[Path | None, typer.Option(help="architecture.json, for a network with choices.")] = None,
    rule: Annotated[str, typer.Option(help="How to count: all, or fbnet.")] = "all",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Shapes, multiply-adds and parameters, layer by layer."""
    with _told(as_json):
        from niwaki.run.model import profile as count

        found = count(model, inputs=inputs or (), arch=arch, rule=rule)
        if as_json:
            print(json.dumps(found))
            return
        for row in [] if quiet else found["layers"]:
            print(f"{row['path']:<44} {row['kind']:<16} {'x'.join(map(str, row['shape'])):>14} {row['macs']:>15,} {row['params']:>12,}")
        print(f"{found['macs']:,} multiply-adds, {found['params']:,} parameters (rule {found['rule']})")


@app.command()
def adopt(
    model: Annotated[str, typer.Argument(help="module:attr or file.py:attr, a PyTorch model; or a name in the zoo.")],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="1x3x224x224, or ids=1x128:int64<1000; once for each argument.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random cut, and of the inputs that outputs are compared on.")] = 0,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the network, with the group of every layer's channels.")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read a PyTorch model, see that it stays the same, find its channels that change together, and try a random cut of it."""
    with _told(as_json):
        from niwaki.run.adopting import describe_adoption

        found, page = describe_adoption(model, inputs or (), seed=seed, picture_file=picture)
        if as_json:
            print(json.dumps(found))
        elif not quiet:
            print(page)
        if not (found["equal_outputs"] and found["cut"]["onnx_equal"] and found["cut"]["predicted_macs"] == found["cut"]["counted_macs"]):
            raise typer.Exit(FAILED)


@app.command()
def space(
    network: Annotated[str, typer.Argument(help="A name in the zoo, module:attr or file.py:attr.")],
    budget: Annotated[str | None, typer.Option(help='Such as "macs<=5e6", or several limits joined by "and".')] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Choices, size, distribution of the cost, and the share within a budget."""
    with _told(as_json):
        from niwaki.run.describe import describe_space

        found = describe_space(network, budget)
        if as_json:
            print(json.dumps(found))
            return
        if not quiet:
            for choice in found["choices"]:
                options = ", ".join(map(str, choice["options"]))
                print(f"{choice['name']:<40} {options}{'  (conditional)' if choice['conditional'] else ''}")
        print(
            f"{len(found['choices'])} choices, {found['size']:,} architectures, "
            + (f"{found['distinct']:,} distinct" if found["distinct"] else found["distinct_reason"])
        )
        if found["assignments"] != found["size"]:
            print(f"{found['assignments']:,} assignments, counting choices also where they do not exist")
        macs = found["macs"]
        print(
            f"multiply-adds {macs['min']:,} to {macs['max']:,}; quantiles " + ", ".join(f"{q}: {v:,}" for q, v in macs["quantiles"].items())
        )
        if (within := found.get("within")) is not None:
            lo, hi = within["bounds"]["count"]
            sure = "" if lo == hi else f" (certainly {lo:,} to {hi:,})"
            print(f"within {found['budget']}: {within['count']:,} architectures{sure}, a share of {within['share']:.4g}")


@app.command()
def bench(
    tables: Annotated[list[Path], typer.Argument(metavar="TABLE.npz...", help="The table; further files add columns to its rows.")],
    objective: Annotated[
        list[str], typer.Option(help="Column to search for; -COLUMN for one that is to be small. Twice for two objectives at once.")
    ],
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[,NAME...], or file.py:attr; random, params and macs are always there. NAME#2 is NAME again with other random numbers."
        ),
    ] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help='"pixel3<=4" on a column, or "macs<=50M" on a count of the description; may be repeated.')
    ] = None,
    space: Annotated[
        str | None, typer.Option(metavar="NETWORK", help="What the table is of: a name in the zoo, module:attr, file.py:attr, or columns.")
    ] = None,
    evaluations: Annotated[int, typer.Option(help="Of each search; repeats count.")] = 200,
    seeds: Annotated[int, typer.Option(help="How many searches of each strategy.")] = 20,
    workers: Annotated[int, typer.Option(help="Simulated workers, which evaluate at the same time.")] = 1,
    seconds: Annotated[str | None, typer.Option(help="Column of the evaluations' durations (default: 1 for each).")] = None,
    report: Annotated[str | None, typer.Option(help="Column in which regret is told (default: the objective).")] = None,
    processes: Annotated[int | None, typer.Option(help="That search at the same time (default: one for each core).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the searches and the report (default: runs/bench-<table>-<hash>).")] = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compare search methods on a table of architectures that others have trained and measured."""
    with _told(as_json):
        from niwaki.run.bench import bench as compare
        from niwaki.run.bench import cores, table_of

        with nullcontext(_Notes()) if quiet else _watched(quiet) as progress:
            found = compare(
                tables,
                objectives=objective,
                strategies=[name.strip() for given in strategy or ["random"] for name in given.split(",")],
                limits=limit or (),
                space=space,
                report=report,
                seconds=seconds,
                workers=workers,
                evaluations=evaluations,
                seeds=seeds,
                out=out,
                fresh=fresh,
                processes=processes or cores(),
                progress=progress,
                command=_command(),
            )
        print(json.dumps(found) if as_json else table_of(found))


@app.command()
def shrink(
    model: Annotated[str, typer.Argument(help="module:attr or file.py:attr of a torch module or of what makes one, or a name in the zoo.")],
    budget: Annotated[
        list[str],
        typer.Option(
            help='"macs<=50%" of what the model costs, "params<=1M", "activation_bytes<=200kB", "roofline(T4)<=60%"; several limits together.'
        ),
    ],
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="1x3x32x32: checked against the data, which say it otherwise.")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with train.npz and test.npz, or of images by class; a table. Default: Fashion-MNIST in the shared folder, or digits."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="shrink.*, data.* or train.* (the fine-tuning); may be repeated."),
    ] = None,
    method: Annotated[str, typer.Option(help="figs or morphnet.")] = "figs",
    out: Out = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    device: Device = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make your own model smaller for a budget, fine-tune it on your data, and say what it cost in accuracy."""
    with _told(as_json):
        from niwaki.run.shrink import shrink as make_smaller

        with _watched(quiet) as progress:
            result = make_smaller(
                model, budget, method=method, seed=seed, out=out, settings=settings or (), data=None if data is None else str(data), inputs=inputs or (),
                threads=threads, device=device, fresh=fresh, progress=progress, command=_command(),
            )  # fmt: skip
        _print_shrunken(result.summary, as_json, quiet)


@app.command()
def reproduce(
    method: Annotated[str, typer.Argument(help="dmaskingnas, or another method with published claims; an unknown one lists them.")],
    out: Annotated[Path | None, typer.Option(help="Folder of what was trained (default: runs/reproduce-METHOD).")] = None,
    claims: Annotated[Path, typer.Option(help="The page to write the result into.")] = Path("docs/claims.md"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A small part of the trainings, to see that everything works; decides nothing.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run a method's published claim at the scale of this machine, random search beside it, and say whether it holds."""
    with _told(as_json):
        from niwaki.run.reproduce import reproduce as run_claims

        with _watched(quiet) as progress:
            found = run_claims(
                method,
                out=out or Path("runs") / f"reproduce-{method}{'-quick' if quick else ''}",
                claims=claims,
                quick=quick,
                progress=progress,
            )
        if as_json:
            print(json.dumps(found))
            return
        for claim in found["claims"]:
            print(f"{claim['verdict']:<18} {claim['claim']}\n{'':<18} paper: {claim['paper']}; measured: {claim['measured']}")


def main() -> None:
    """Entry point of the `niwaki` command."""
    arguments = sys.argv[1:] or ["--help"]
    try:
        code = app(arguments, prog_name="niwaki", standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        # an unknown option or a missing argument; which class says so has changed with typer's versions, what it offers has not
        if (format_message := getattr(error, "format_message", None)) is None:
            raise
        commands = {info.name or getattr(info.callback, "__name__", "") for info in app.registered_commands}
        command = next((f"{word} " for word in arguments[:1] if word in commands), "")
        code = _tell(f"{format_message().rstrip('.')}; `niwaki {command}--help` lists what there is", BAD_INPUT, "--json" in arguments)
    sys.exit(code if isinstance(code, int) else 0)


# --- errors, progress, results -----------------------------------------------------------------------------------------------


@contextmanager
def _told(as_json: bool) -> Iterator[None]:
    """Turns errors into one clear message and the exit code: 2 for bad input, 1 for work that failed."""
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt as stop:
        raise typer.Exit(_tell(str(stop) or "interrupted", INTERRUPTED, as_json)) from None
    except Exception as error:
        code, message = _verdict(error)
        if message is None:
            traceback.print_exc()
            message = f"this should not have happened, and is a mistake in niwaki or below it: {type(error).__name__}: {error}"
        raise typer.Exit(_tell(message, code, as_json)) from None


def _verdict(error: Exception) -> tuple[int, str | None]:
    """The exit code for an error, and what to tell; no message where the error was not foreseen, and a traceback is of more use."""
    kind = type(error).__name__
    is_ours = type(error).__module__.startswith("niwaki.")
    if is_ours and (isinstance(error, ValueError) or kind in ("RunError", "RunFailed", "StoreError")):
        return BAD_INPUT, str(error)
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        message = f"{place}{error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            message += (
                "; make room, then the same command, or `niwaki resume` with the run's folder, goes on. Nothing that was stored is lost"
            )
        return BAD_INPUT if error.errno in INPUT_ERRNOS else FAILED, message
    if is_ours:  # ExportError and the like
        return FAILED, str(error)
    if kind == "OutOfMemoryError":
        return FAILED, f"{str(error).splitlines()[0]}; a smaller search.batch_size or train.batch_size needs less"
    return FAILED, None


def _tell(message: str, code: int, as_json: bool) -> int:
    """Says what went wrong, on standard error, and for programs as the last line of standard output; gives `code` back."""
    print(f"error: {message}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": message, "exit_code": code}))
    return code


@contextmanager
def _watched(quiet: bool) -> Iterator[Any]:
    """Who tells, on standard error, how far the work is: bars with the time left on a terminal, now and then a line in a file."""
    if quiet:
        from niwaki.run.progress import Silent

        yield Silent()
    elif not sys.stderr.isatty():
        yield _Lines()
    else:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
            yield _Bars(bars)


class _Bars:
    """One bar for each phase, those that are over above the one under way."""

    def __init__(self, bars: Any) -> None:
        self._bars, self._task, self._name, self._total = bars, None, "", 0

    def phase(self, name: str, total: int) -> None:
        self._finish()
        self._task, self._name, self._total = None, name, total

    def advance(self, done: int) -> None:
        if self._task is None:  # only now: what was done before this process does not count as speed
            self._task = self._bars.add_task(self._name, total=self._total, completed=done)
        self._bars.update(self._task, completed=done)

    def note(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False)

    def _finish(self) -> None:
        if self._task is not None:
            self._bars.stop_task(self._task)


class _Notes:
    """What is noted, and nothing of the progress: what a table lacks is a part of what is found on it, also for who wants nothing else."""

    def phase(self, name: str, total: int) -> None: ...
    def advance(self, done: int) -> None: ...

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class _Lines(_Notes):
    """A line when a phase begins, and another every 20 seconds."""

    EVERY_S = 20.0

    def __init__(self) -> None:
        self._name, self._total, self._first, self._began, self._next = "", 0, 0, 0.0, 0.0

    def phase(self, name: str, total: int) -> None:
        now = time.monotonic()
        self._name, self._total, self._first, self._began, self._next = name, total, -1, now, now + self.EVERY_S
        self.note(name)

    def advance(self, done: int) -> None:
        if self._first < 0:
            self._first = done
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self.EVERY_S
            steps = done - self._first
            left = f", about {(now - self._began) / steps * (self._total - done):.0f} s left" if steps else ""
            self.note(f"{self._name}: {done} of {self._total}{left}")


def _command() -> str:
    return shlex.join(["niwaki", *sys.argv[1:]])


def _print_result(summary: dict[str, Any], as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json.dumps(summary))
        return
    from niwaki.report.figure import figure, figure_name

    metric = summary["metric"]
    for found in summary["budgets"]:
        stored = f" made from {found['stored_params']:,} that are stored" if "stored_params" in found else ""
        test, validation = (figure(metric, found["metrics"][part][metric], 2) for part in ("test", "validation"))
        print(
            f"{found['budget']}: {found['macs']:,} multiply-adds, {found['params']:,} parameters{stored}, "
            f"{'hardly trained: ' if found.get('hardly_trained') else ''}test {figure_name(metric)} {test} of the trained network"
            f" ({validation} when it was chosen, {found.get('judged', 'on validation')})"
        )
    if made := summary.get("cascade"):
        from niwaki.run.cascade import in_one_line

        print(in_one_line(made))
    if not quiet:
        print(f"report: {summary['folder']}/report.html\nmodel:  {summary['folder']}/model.onnx")


def _print_shrunken(summary: dict[str, Any], as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json.dumps(summary))
        return
    from niwaki.report.figure import figure, figure_name

    metric, before, after = summary["metric"], summary["costs"]["before"], summary["costs"]["after"]
    for name in before:
        limit = f" (at most {summary['limits'][name]:,.6g})" if name in summary["limits"] else ""
        print(f"{name:<20} {before[name]:>14,.6g} -> {after[name]:>14,.6g}  {after[name] / before[name]:6.1%}{limit}")
    for part in ("validation", "test"):
        values = (figure(metric, summary["metrics"][when][part][metric], 2) for when in ("before", "after"))
        print(f"{part + ' ' + figure_name(metric):<20} {next(values):>14} -> {next(values):>14}")
    for landing in summary.get("landings", ()):
        judged = landing["judged"].items()
        told = ", ".join(f"{name} {figure(metric, value, 2)}" for name, value in judged) if len(judged) > 1 else "all ways come to the same"
        print(f"{'landing':<20} {landing['name']:>14} (judged on validation: {told})")
    if not quiet:
        print(f"report: {summary['folder']}/report.html\nmodel:  {summary['folder']}/model.onnx")


if __name__ == "__main__":
    main()
