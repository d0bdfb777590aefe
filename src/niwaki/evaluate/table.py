"""A tabular benchmark as an evaluator: what others have measured, looked up. One row for each architecture, one column for each metric."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path

import numpy as np

from niwaki import zoo
from niwaki.cost.count import COSTS
from niwaki.evaluate.listed import Listed, places
from niwaki.net.control import Network
from niwaki.net.place import space_of
from niwaki.space.architecture import Architecture
from niwaki.space.space import Decision, Space

CODES = ("ops", "arch")  # what the array of the architectures is called
OFA = ("ks", "e", "d", "r")  # or, where there are these, they are: kernel sizes, expansions, depths and the resolution
KNOWN = {(6, 5): "nasbench201", (8, 3): "nasbench-macro"}  # columns, operations: the network in the zoo that a table is of if none is named
SUPPOSED = {(22, 9): "fbnet-cifar100"}  # the same, but only where all of the operations stand in the table, and no others
KNOWN_OFA = "ofa-mobilenetv3"
LISTED_WHOLE = 1_000_000  # architectures: a table of a space of at most so many has all of them, of a larger one a sample
MOST_HELD = 1  # last decisions of a network, such as the width of its tail, that a table may leave out
SMALL_BY_NAME = ("lat", "latency", "ms", "seconds", "macs", "flops", "params", "energy", "loss", "error", "rmse", "mae", "size", "bytes")


class TableError(ValueError):
    """A table that cannot be what it should, or is asked for what it does not have."""


@dataclass(frozen=True, eq=False)
class Table:
    """Architecture -> metrics, by looking them up.

    space: of the architectures: the whole space, or those of it that are `Listed`. rows: (N, decisions) option numbers, canonical.
    columns: metric -> (N,) float64; what is no finite number is refused where a column is asked for. network: the description, where one is known; costs are counted on it. small: columns that are
    to be small, as far as their names, or their files' names, say so. notes: what a reader of results should know.
    """

    name: str
    space: Space | Listed
    rows: np.ndarray
    columns: Mapping[str, np.ndarray]
    network: Network | None = None
    small: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    _costs: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __call__(self, arch: Architecture) -> dict[str, float]:
        """All metrics of `arch` that are finite numbers."""
        at = self.place(arch)
        return {name: float(column[at]) for name, column in self.columns.items() if np.isfinite(column[at])}

    def place(self, arch: Architecture) -> int:
        """The number of the row of `arch`. TableError for what the table does not have."""
        found = self._places.get(self.space.key(arch))
        if found is None:
            raise TableError(f"{self.name} has no row for the architecture {dict(arch)}; it has {len(self):,} rows")
        return found

    def architecture(self, place: int) -> Architecture:
        """The architecture of row number `place`."""
        return self.space.from_indices(self.rows[place].tolist())

    def column(self, name: str) -> np.ndarray:
        """(N,) float64, finite. TableError, with what there is, for a name that is none, and for a column that is not finite throughout."""
        if name not in self.columns:
            close = get_close_matches(name, self.columns, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {', '.join(self.columns)}"
            raise TableError(f"{self.name} has no column {name!r}; {hint}")
        column = self.columns[name]
        if len(wrong := np.flatnonzero(~np.isfinite(column))):
            raise TableError(
                f"{self.name}: the column {name!r} is {column[wrong[0]]} in row {wrong[0]}, and no finite number in {len(wrong):,} rows; "
                f"a metric is a finite number"
            )
        return column

    def cost(self, name: str) -> np.ndarray:
        """int64 (N,): "macs", "params" or another count of every row, from the description, never from a column."""
        if self.network is None:
            raise TableError(f"{self.name} has no description from which {name} could be counted; name its network with --space")
        if name not in self._costs:
            self._costs[name] = COSTS[name](self.network).batch(self.rows)
        return self._costs[name]

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return places(self.space, self.rows)


def load_table(paths: str | Path | Sequence[str | Path], network: Network | None = None, *, plain: bool = False) -> Table:
    """The table in an .npz file; further files add columns to its rows.

    The file has `ops` or `arch`, (N, decisions) whole numbers, and arrays of N numbers, the metrics; one of (N, K) is K metrics, `name[0]`
    and so on. Nothing is unpickled. network: whose decisions, in order, the numbers are about: each is the number of the option taken.
    A last decision of the network that has no column is held at its first option. Without a network six columns of 0 to 4 are the zoo's
    nasbench201 and eight of 0 to 2 nasbench-macro. plain: the columns are decisions as they stand, the numbers their options; so is a table
    of other columns. An OFA table (`ks`, `e`, `d`, `r`: the values, not numbers of options) has its decisions by these names, and is of the
    zoo's ofa-mobilenetv3; one of 22 columns of 0 to 8 is of its fbnet-cifar100.

    Raises TableError for whatever is wrong, before anything else is done with it.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    if not files:
        raise TableError("a table is one .npz file, or several that add columns; none was given")
    first, *others = [_arrays(file) for file in files]
    name = files[0].stem
    codes, labels = _codes(files[0], first)
    columns: dict[str, np.ndarray] = {}
    small: set[str] = set()
    for file, arrays in zip(files, (first, *others), strict=True):
        if arrays is not first and any(key in arrays for key in CODES):
            again, _ = _codes(file, arrays)
            if not np.array_equal(again, codes):
                raise TableError(
                    f"{file} lists other architectures than {files[0]}, or the same in another order; columns are added row by row"
                )
        for key, column in _columns(file, arrays, len(codes)):
            if key in columns and not np.array_equal(columns[key], column, equal_nan=True):
                raise TableError(f"{file} has a column {key!r}, and so has a file before it, with other numbers")
            columns[key] = column
            if any(word in SMALL_BY_NAME for word in _words(f"{file.stem if _is_about_costs(file) else ''} {key}")):
                small.add(key)
    if not columns:
        raise TableError(f"{', '.join(map(str, files))}: there is no column of metrics beside {', '.join(k for k in first)}")
    notes: list[str] = []
    if network is None and not plain and (known := _known(files[0], codes, labels)) is not None:
        network = zoo.network(known)
        if known not in KNOWN.values():
            notes.append(f"{name} is taken to be of {known} in the zoo, as its columns are; another network is named by --space")
    if network is None:
        space = _plain_space(codes, labels)
        rows = np.stack([np.searchsorted(d.options, column) for d, column in zip(space, codes.T, strict=True)], axis=1)
        notes.append(f"{name} stands for no known network: its {codes.shape[1]} columns are taken as decisions, and MACs cannot be counted")
    else:
        space = space_of(network)
        rows = _option_numbers(files[0], codes, labels, space, notes)
    _check_distinct(files[0], rows)
    if network is None or space.size > LISTED_WHOLE:
        if len(rows) < space.size:
            size = f"{space.size:,}" if space.size <= LISTED_WHOLE else f"{space.size:.3g}"
            what = "combinations of the columns" if network is None else "architectures of the space"
            notes.append(f"{name}: {len(rows):,} of {size} {what} are listed, and searches choose among these")
            return Table(name, Listed(space, rows), rows, columns, network, frozenset(small), tuple(notes))
    elif len(rows) < space.size:
        raise TableError(_missing(files[0], rows, space))
    return Table(name, space, rows, columns, network, frozenset(small), tuple(notes))


def _arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file; none of objects, which would have to be unpickled."""
    if not file.is_file():
        raise TableError(f"there is no file {file}; a table is an .npz file")
    try:
        with file.open("rb") as stream:
            start = stream.read(6)
        if start == b"\x93NUMPY":
            raise TableError(f"{file} is a single array; a table is an .npz file of several arrays with names")
        if not start.startswith(b"PK"):  # not a zip: numpy would take it for a pickle, and advise how to run whatever is in it
            raise TableError(f"{file} is no .npz file, which is a zip of arrays, as numpy.savez writes it")
        content = np.load(file, allow_pickle=False)
    except TableError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise TableError(f"{file} is no .npz file: {error}") from None
    arrays = {}
    with content:
        for key in content.files:
            try:
                arrays[key] = content[key]
            except ValueError as error:
                what = (
                    "an array of Python objects, which is not read, as it could run code"
                    if "allow_pickle" in str(error)
                    else f"no array: {error}"
                )
                raise TableError(f"{file}: {key!r} is {what}") from None
            except (OSError, EOFError, zipfile.BadZipFile, zlib.error, MemoryError) as error:
                raise TableError(f"{file}: {key!r} cannot be read: {error}") from None
            if not isinstance(arrays[key], np.ndarray):  # of a member that is not .npy there come bytes
                raise TableError(f"{file}: {key!r} is no array; a table is an .npz file of arrays and nothing else")
    return arrays


def _codes(file: Path, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[str]]:
    """(N, columns) int64 as the file has them, and what the columns are called."""
    found = [key for key in CODES if key in arrays] or ([*OFA] if all(key in arrays for key in OFA) else [])
    if not found:
        raise TableError(f"{file} has neither {' nor '.join(CODES)}, the architectures row by row; it has {', '.join(arrays) or 'nothing'}")
    if found == [*CODES]:
        raise TableError(f"{file} has both {' and '.join(CODES)}; the architectures stand in one of them")
    parts: list[np.ndarray] = []
    labels: list[str] = []
    for key in found:
        part = arrays[key]
        if part.dtype.kind not in "iu":
            raise TableError(f"{file}: {key!r} holds {part.dtype}; the architectures are whole numbers")
        part = part[:, None] if part.ndim == 1 and key == "r" else part
        if part.ndim != 2 or not part.size:
            raise TableError(f"{file}: {key!r} has the shape {part.shape}; it is (architectures, decisions), at least one of each")
        if parts and len(part) != len(parts[0]):
            raise TableError(f"{file}: {key!r} has {len(part):,} rows, but {found[0]!r} has {len(parts[0]):,}")
        parts.append(part.astype(np.int64))
        labels += [f"{key}{at}" for at in range(part.shape[1])] if key != "r" else ["r"]
    return np.concatenate(parts, axis=1), labels


def _columns(file: Path, arrays: Mapping[str, np.ndarray], count: int) -> Iterable[tuple[str, np.ndarray]]:
    """The metrics of a file, as float64. Text, and what has one value for the whole table, is none."""
    skipped = {*CODES, *(OFA if all(key in arrays for key in OFA) else ())}
    for key, array in arrays.items():
        if key in skipped or array.ndim == 0 or array.dtype.kind not in "iufb":
            continue
        if len(array) != count:
            raise TableError(f"{file}: the column {key!r} has {len(array):,} rows, but there are {count:,} architectures")
        if array.ndim > 2:
            raise TableError(
                f"{file}: the column {key!r} has the shape {array.shape}; a metric is one number for each architecture, or a few"
            )
        values = array.astype(np.float64)
        yield from [(key, values)] if array.ndim == 1 else ((f"{key}[{k}]", values[:, k]) for k in range(array.shape[1]))


def _known(file: Path, codes: np.ndarray, labels: Sequence[str]) -> str | None:
    """The network in the zoo that a table of such columns is of; None where it may be of anything."""
    if labels[0] == "ks0":
        return KNOWN_OFA
    for (columns, operations), network in KNOWN.items():
        if codes.shape[1] == columns:
            wrong = np.argwhere((codes < 0) | (codes >= operations))
            if len(wrong):
                row, column = wrong[0].tolist()
                raise TableError(
                    f"{file}: row {row} has the operation {codes[row, column]} in column {column}, but a table of {columns} columns is taken "
                    f"to be {network}, whose operations are 0 to {operations - 1}; name another network with --space, or --space columns"
                )
            return network
    for (columns, operations), network in SUPPOSED.items():
        if codes.shape[1] == columns and set(np.unique(codes).tolist()) == set(range(operations)):
            return network
    return None


def _plain_space(codes: np.ndarray, labels: Sequence[str]) -> Space:
    return Space(tuple(Decision(label, tuple(np.unique(column).tolist())) for label, column in zip(labels, codes.T, strict=True)))


def _option_numbers(file: Path, codes: np.ndarray, labels: Sequence[str], space: Space, notes: list[str]) -> np.ndarray:
    """(N, decisions): the option numbers that the codes of a table stand for, canonical."""
    decisions = space.decisions
    if labels[0] == "ks0":  # by name and value, in whatever order the network has them
        if missing := [d.name for d in decisions if d.name not in labels]:
            raise TableError(f"{file} has no column for the decision {missing[0]!r} of the network; it has {', '.join(labels)}")
        rows = np.zeros((len(codes), len(decisions)), dtype=np.int64)
        for at, decision in enumerate(decisions):
            column = codes[:, labels.index(decision.name)]
            options = np.array(decision.options)
            known = column[:, None] == options[None, :]
            if not (sure := known.any(axis=1)).all():
                row = int(np.argmin(sure))
                raise TableError(f"{file}: row {row} has {column[row]} for {decision.name!r}, whose options are {decision.options}")
            rows[:, at] = known.argmax(axis=1)
    else:
        given = codes.shape[1]
        held = decisions[given:]
        if given > len(decisions) or len(held) > MOST_HELD:
            raise TableError(f"{file} has {given} columns of options, but the network has {len(decisions)} decisions")
        for at, decision in enumerate(decisions[:given]):
            wrong = np.flatnonzero((codes[:, at] < 0) | (codes[:, at] >= len(decision.options)))
            if len(wrong):
                raise TableError(
                    f"{file}: row {wrong[0]} has the option number {codes[wrong[0], at]} in column {at}, but {decision.name!r} has the options "
                    f"0 to {len(decision.options) - 1}: {', '.join(map(str, decision.options[:12]))}"
                )
        if held:
            notes.append(f"the table says nothing of {', '.join(f'{d.name} (held at {d.options[0]})' for d in held)}")
        rows = np.concatenate([codes, np.zeros((len(codes), len(held)), dtype=np.int64)], axis=1)
    if any(decision.condition is not True for decision in decisions):
        rows = np.array(space.indices(space.from_indices(row) for row in rows.tolist()), dtype=np.int64)
    return rows


def _check_distinct(file: Path, rows: np.ndarray) -> None:
    _, firsts, counts = np.unique(rows, axis=0, return_index=True, return_counts=True)
    if len(firsts) < len(rows):
        first = int(firsts[counts > 1].min())
        again = int(np.flatnonzero((rows == rows[first]).all(axis=1))[1])
        raise TableError(
            f"{file}: rows {first} and {again} are the same architecture, {rows[first].tolist()}; "
            f"{len(rows) - len(firsts):,} rows repeat one before them"
        )


def _missing(file: Path, rows: np.ndarray, space: Space) -> str:
    listed = set(map(tuple, rows.tolist()))
    absent = next(row for row in space.indices(space.enumerate()) if tuple(row) not in listed)
    return (
        f"{file} lacks {space.size - len(rows):,} of the {space.size:,} architectures of its space, the first of them {absent}; "
        f"a table of a space of at most {LISTED_WHOLE:,} has them all"
    )


def _words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def _is_about_costs(file: Path) -> bool:
    """Whether a file's name says that its columns are latencies: then a device's name is enough for a column."""
    return "latency" in _words(file.stem) and not {"acc", "accuracy"} & set(_words(file.stem))
