"""Tables: rows of numbers and categories with a target, checked once; from arrays and columns, CSV, Parquet and `.npz` files."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from niwaki.task.cut import DataError, group_cut, group_numbers, stratified_cut
from niwaki.task.images import DAMAGED, TEST_SHARE
from niwaki.task.parquet import read_parquet

Kind = Literal["classification", "regression"]
MISSING = ("na", "n/a", "nan", "null", "none", "?")  # texts that stand for a value that is not known, in any case; an empty one always does
EXACT = 2**53  # up to here float64 holds every whole number
SHOWN = 5  # texts that a message lists
MOST_INFERRED = 50  # different whole numbers in a column that is taken for categories, or in a target that is taken for classes
ROWS_EACH = 20  # rows for each of them, at least
TARGETS = ("target", "class", "label", "y")  # names that a target is recognised by
PARTS = ("train", "validation", "test")
SUFFIXES = (".csv", ".tsv", ".parquet", ".npz")
STRATA = 10  # of a target of numbers: each part of the data has a tenth of each


@dataclass(frozen=True)
class Column:
    """One column. values: what its categories are stored as, or None for a column of numbers. names: the text of each category, where the
    source holds text, or whole numbers that float64 cannot tell apart: it is stored as its place among them, 0 to K - 1."""

    name: str
    values: tuple[float, ...] | None = None
    names: tuple[str, ...] | None = None

    def stored(self, column: NDArray, where: str, missing: Sequence[str] = MISSING) -> NDArray:
        """The column as float64, NaN where the value is missing, or a text that is none of the names."""
        if self.names is not None:
            number: dict[str | None, float] = {name: float(at) for at, name in enumerate(self.names)}
            return np.array([number.get(text, np.nan) for text in texts(column, missing)], dtype=np.float64)
        found = numbers(column, missing)
        if found is None:
            wrong = next(text for text in texts(column, missing) if text is not None and not _is_number(text))
            raise DataError(f"{where}: column {self.name!r} holds numbers, and {wrong!r} is none")
        if np.isinf(found).any():
            raise DataError(f"{where}: column {self.name!r} is infinite in row {int(np.flatnonzero(np.isinf(found))[0])}")
        if (large := np.abs(found) > np.finfo(np.float32).max).any():
            raise DataError(
                f"{where}: column {self.name!r} has {found[large][0]:g}, which is more than float32, in which networks compute, holds"
            )
        return found


@dataclass(frozen=True, eq=False)
class Table:
    """Rows and targets, for training and for the test, as they are stored: the exported network takes them just so.

    rows: float64 (N, D), NaN where a value is missing: in float32 whole numbers above 2**24, such as times, would be taken for each other.
    What enters the network is standardised in float64 before it becomes float32. targets: class numbers, int64 (N,), or numbers, float64 (N,). class_names: None where
    targets are numbers. validation: (N,) bool, the training rows that the source keeps for validation, or None. groups: (N,) int64 or None,
    see `Images`. cut: how the test part was cut off, where the source had none. missing: texts that stand for missing values, and
    missing_texts: how often each did, by column. Made by `table` and `read_table`, which bring data into this form.
    """

    rows: NDArray
    targets: NDArray
    test_rows: NDArray
    test_targets: NDArray
    columns: tuple[Column, ...]
    target: Column
    class_names: tuple[str, ...] | None
    source: str
    validation: NDArray | None = None
    groups: NDArray | None = None
    cut: str = ""
    missing: tuple[str, ...] = MISSING
    missing_texts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for array in (self.rows, self.targets, self.test_rows, self.test_targets):
            array.setflags(write=False)

    @cached_property
    def sha256(self) -> str:
        """Hash of all that a training could see; not of where it came from."""
        digest = hashlib.sha256(repr((self.columns, self.class_names)).encode())
        given = [array for array in (self.validation, self.groups) if array is not None]
        for array in (self.rows, self.targets, self.test_rows, self.test_targets, *given):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def strata(self) -> NDArray:
        """(N,): what every part of the data shall have of: classes, or tenths of a target of numbers."""
        return self.targets if self.class_names is not None else strata_of(self.targets)


def table(
    columns: ArrayLike | Mapping[str, Any],
    targets: ArrayLike,
    *,
    names: Sequence[str] | None = None,
    kind: Kind | None = None,
    categorical: Sequence[str] | None = None,
    split: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    missing: Sequence[str] = MISSING,
    target: str = "target",
    source: str = "the given table",
    test_seed: int = 0,
) -> Table:
    """A table from the reader's own arrays: a matrix (N, D) of numbers, or columns by name (a dict, or a data frame) of numbers and texts.

    kind: of the target; left out, texts, two whole numbers (truth values among them) and few different ones (at most 50, of 20 rows each)
    are classes, anything else numbers.
    categorical: the columns that are categories; left out, those of texts and of few different whole numbers. missing: texts that stand
    for missing values, in any case, beside empty ones, NaN and None. split: for each row "train", "validation" or "test", or 0, 1, 2; without a test part a fifth is cut off as
    one, without a validation part the task makes one. groups: as for images (`arrays`). class_names: of the classes 0..K-1.
    """
    frame = _frame(columns, names, source)
    count = len(next(iter(frame.values())))
    if isinstance(missing, str):
        raise DataError(f"missing={missing!r}: a list of texts is needed, such as {list(MISSING)}")
    missing = tuple(dict.fromkeys(text.strip().lower() for text in missing))
    y = _column(targets, target, source)
    if len(y) != count:
        raise DataError(f"{source} has {count} rows and {len(y)} targets; one target for each row is needed")
    if count == 0:
        raise DataError(f"{source} is empty: it has no rows")
    part = np.zeros(count, np.int64) if split is None else _parts(split, count, source)
    kinds = None if groups is None else group_numbers(groups, count, source, "rows")
    if (part == 0).sum() < 4:
        raise DataError(f"{source} has {(part == 0).sum()} training rows; at least 4 are needed")
    label, named, about = _targets(y, kind, class_names, target, part != 2, source, missing)
    cut = ""
    if not (part == 2).any():
        part = _cut_test(label, named, kinds, part, test_seed, source)
        cut = f"{TEST_SHARE:.0%} of {'the rows' if kinds is None else 'the groups'} cut off as the test part (seed {test_seed}), as it had none"
    training = part != 2
    described = _described(frame, categorical, training, source, missing)
    rows = np.stack([column.stored(frame[column.name], source, missing) for column in described], axis=1)
    if named is not None:
        _check_classes(label[training], label[~training], named, source)
    elif np.ptp(label[training]) == 0:
        raise DataError(f"{source}: the target {target!r} is {label[0]:g} in every training row; there is nothing to learn")
    return Table(
        rows[training], label[training], rows[~training], label[~training], described, about, named, source,
        validation=(part == 1)[training] if (part == 1).any() else None, groups=None if kinds is None else kinds[training], cut=cut, missing=missing,
        missing_texts={name: found for name, column in frame.items() if (found := _missing_texts(column, missing))},
    )  # fmt: skip


def read_table(
    path: str | Path,
    *,
    target: str | None = None,
    kind: Kind | None = None,
    categorical: Sequence[str] | None = None,
    ignore: Sequence[str] = (),
    split: str | None = None,
    groups: str | None = None,
    missing: Sequence[str] = MISSING,
    test_seed: int = 0,
) -> Table:
    """The table in a CSV file (with a line of names), a Parquet file, or an `.npz` file of `X` (N, D) and `y`, perhaps with `columns`,
    `split`, `groups` and `target_values`.

    target, split, groups: the columns that say these; left out, a target is looked for under `TARGETS`, and a column "split" says the parts.
    ignore: columns that are left out. missing: as for `table`.
    """
    path = Path(path)
    frame, class_names = read_columns(path)
    if target is None:
        found = [name for name in (("y",) if path.suffix.lower() == ".npz" else TARGETS) if name in frame]
        if not found:
            raise DataError(
                f"{path} has no {'array y' if path.suffix.lower() == '.npz' else f'column called {_or(TARGETS)}'}; say which is the target (data.target): {_listed(frame)}"
            )
        target = min(found, key=lambda name: name in ignore)
    split = split if split is not None else "split" if "split" in frame and "split" not in ignore else None
    for what, name in (("target", target), ("split", split), ("groups", groups), *(("ignore", name) for name in ignore)):
        if name is not None and name not in frame:
            raise DataError(f"{path} has no column {name!r} (data.{what}); it has {_listed(frame)}")
    for what, name in (("target", target), ("split", split), ("groups", groups)):
        if name in ignore:
            raise DataError(f"{path}: column {name!r} is both data.{what} and in data.ignore; it can only be one of the two")
    left = {name: column for name, column in frame.items() if name not in {target, split, groups, *ignore}}
    if not left:
        raise DataError(f"{path} has no column beside the target {target!r}; there is nothing to learn from")
    return table(
        left, frame[target], kind=kind, categorical=categorical, split=None if split is None else frame[split],
        groups=None if groups is None else [str(text) for text in texts(frame[groups])], class_names=class_names, target=target, source=str(path),
        missing=missing, test_seed=test_seed,
    )  # fmt: skip


def read_columns(path: Path) -> tuple[dict[str, NDArray], tuple[str, ...] | None]:
    """All columns of a file by name, float64 or objects (texts, None), and the names of the classes where an `.npz` file tells them."""
    if not path.is_file():
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'missing'}; a table is a file: {', '.join(SUFFIXES)}")
    kind = path.suffix.lower()
    if kind == ".npz":
        return _npz(path)
    if kind == ".parquet":
        frame = read_parquet(path)
    elif kind in (".csv", ".tsv"):
        frame = _csv(path, "\t" if kind == ".tsv" else ",")
    else:
        raise DataError(f"{path}: a table is a file of one of the kinds {', '.join(SUFFIXES)}")
    if not frame or not len(next(iter(frame.values()))):
        raise DataError(f"{path} is empty: it has no {'rows' if frame else 'columns'}")
    return frame, None


def stored_rows(frame: Mapping[str, NDArray], columns: Sequence[Column], where: str, missing: Sequence[str] = MISSING) -> NDArray:
    """The rows of `frame` as a table of these columns stores them: float64 (N, D)."""
    if missing := [column.name for column in columns if column.name not in frame]:
        raise DataError(
            f"{where} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing[:10])}; the model reads {', '.join(c.name for c in columns)}"
        )
    return np.stack([column.stored(frame[column.name], where, missing) for column in columns], axis=1)


def numbers(column: NDArray, missing: Sequence[str] = MISSING) -> NDArray | None:
    """The column as float64, NaN where missing; None where something in it is no number."""
    if column.dtype.kind in "biuf":
        return column.astype(np.float64)
    try:
        return np.array([np.nan if _is_missing(value, missing) else float(value) for value in column], dtype=np.float64)
    except (TypeError, ValueError):
        return None


def texts(column: NDArray, missing: Sequence[str] = MISSING) -> list[str | None]:
    """The column as texts, None where missing; whole numbers without a fraction."""
    if column.dtype.kind in "biuf":
        return [
            None if value != value else str(int(value)) if float(value).is_integer() else repr(float(value)) for value in column.tolist()
        ]
    return [None if _is_missing(value, missing) else str(value).strip() for value in column]


def strata_of(targets: NDArray) -> NDArray:
    """(N,) int64: in which tenth of the targets each lies."""
    ranks = np.argsort(np.argsort(targets, kind="stable"), kind="stable")
    return ranks * min(STRATA, max(1, len(targets) // 2)) // len(targets)


def describe(data: Table) -> dict[str, Any]:
    """What identifies the table, as JSON."""
    return {
        "source": ", ".join(filter(None, (data.source, data.cut))),
        "sha256": data.sha256,
        "stored_shape": [data.rows.shape[1]],
        "stored_dtype": "float64",
        "class_names": list(data.class_names or ()),
        "target": data.target.name,
        "columns": [{"name": c.name, "categories": None if c.values is None else len(c.values)} for c in data.columns],
        "missing": int(np.isnan(data.rows).sum()),
        "missing_texts": {name: dict(found) for name, found in data.missing_texts.items()},
        "train": len(data.rows),
        "test": len(data.test_rows),
        "groups": None if data.groups is None else len(np.unique(data.groups)),
    }


# --- columns -------------------------------------------------------------------------------------------------------------------


def _frame(columns: Any, names: Sequence[str] | None, source: str) -> dict[str, NDArray]:
    if isinstance(columns, (np.ndarray, list, tuple)):
        matrix = np.asarray(columns)
        if matrix.ndim != 2 or 0 in matrix.shape:
            raise DataError(f"{source}: the rows have the shape {matrix.shape}; a matrix of rows x columns is needed, with something in it")
        names = [f"x{at}" for at in range(matrix.shape[1])] if names is None else [str(name) for name in names]
        if len(names) != matrix.shape[1] or len(set(names)) < len(names):
            raise DataError(f"{source}: {len(names)} names, {len(set(names))} of them different, for {matrix.shape[1]} columns")
        return {name: _column(matrix[:, at], name, source) for at, name in enumerate(names)}
    frame = {str(name): _column(column, str(name), source) for name, column in dict(columns).items()}
    if not frame:
        raise DataError(f"{source} has no columns")
    if len(lengths := {len(column) for column in frame.values()}) > 1:
        raise DataError(f"{source}: its columns have {' and '.join(map(str, sorted(lengths)))} rows; all need as many")
    return frame


def _column(values: Any, name: str, source: str) -> NDArray:
    column = np.asarray(values)
    if column.ndim != 1:
        raise DataError(f"{source}: column {name!r} has the shape {column.shape}; one value for each row is needed")
    if column.dtype.kind in "iu" and len(column) and max(int(column.max()), -int(column.min())) > EXACT:
        return column.astype(object)
    if column.dtype.kind in "biuf":
        return column.astype(np.float64)
    if column.dtype.kind in "USO":
        return column.astype(object)
    raise DataError(f"{source}: column {name!r} is of the type {column.dtype}; columns hold numbers or texts")


def _described(
    frame: Mapping[str, NDArray], categorical: Sequence[str] | None, training: NDArray, source: str, missing: Sequence[str]
) -> tuple[Column, ...]:
    if unknown := [name for name in categorical or () if name not in frame]:
        raise DataError(f"{source} has no column {unknown[0]!r} (data.categorical); it has {_listed(frame)}")
    described, odd = [], {}
    for name, column in frame.items():
        found, stated = numbers(column, missing), categorical is not None and name in categorical
        if found is None and not stated and (wrong := _odd_texts(texts(column, missing))):
            odd[name] = wrong
        elif found is None or _merges(column, found):
            said = texts(column, missing)
            names = tuple(sorted({text for text in np.array(said, dtype=object)[training].tolist() if text is not None}))
            if found is not None and not (stated if categorical is not None else are_few(_codes(said)[training])):
                raise DataError(
                    f"{source}: column {name!r} holds whole numbers beyond 2**53 that float64 cannot tell apart, {found[np.abs(found) >= EXACT][0]:.0f} among "
                    "them; leave it out (data.ignore), or say that they are categories (data.categorical)"
                )
            if categorical is not None and not stated:
                raise DataError(f"{source}: column {name!r} holds texts such as {names[0]!r}; it can only be a category (data.categorical)")
            if categorical is None and len(names) > max(MOST_INFERRED, training.sum() / 2):
                raise DataError(
                    f"{source}: column {name!r} has {len(names):,} different texts in {training.sum():,} training rows, and is no category; leave it out (data.ignore), or say that it is one (data.categorical)"
                )
            described.append(Column(name, tuple(map(float, range(len(names)))), names))
        elif stated if categorical is not None else are_few(found[training]):
            values = np.unique(found[training][~np.isnan(found[training])])
            described.append(Column(name, tuple(values.tolist())))
        else:
            described.append(Column(name))
    if odd:
        raise DataError(f"{source}: {_told_odd(odd, [one.name for one in described if one.values is not None], missing)}")
    return tuple(described)


def _odd_texts(said: Sequence[str | None]) -> list[tuple[int, str]]:
    """Of a column most of whose values are numbers, the rows and texts that are none."""
    wrong = [(row, text) for row, text in enumerate(said) if text is not None and not _is_number(text)]
    return wrong if 2 * len(wrong) < sum(text is not None for text in said) else []


def _told_odd(odd: Mapping[str, Sequence[tuple[int, str]]], categories: Sequence[str], missing: Sequence[str]) -> str:
    """The texts among numbers, where they are, and what may be said of them."""
    told = []
    for name, wrong in odd.items():
        listed = ", ".join(f"{text!r} in row {row}" for row, text in wrong[:SHOWN]) + (", ..." if len(wrong) > SHOWN else "")
        told.append(
            f"column {name!r} holds numbers, and {len(wrong):,} text{'s' * (len(wrong) > 1)} that {'are' if len(wrong) > 1 else 'is'} none: {listed}"
        )
    new = list(dict.fromkeys(text for wrong in odd.values() for _, text in wrong))[:SHOWN]
    return (
        f"{'; '.join(told)}. Numbers are written like 1200.5. If a text says that a value is missing: data.missing={json.dumps([*missing, *new])};"
        f" if such a column is one of categories: data.categorical={json.dumps([*categories, *odd])}"
    )


def are_few(column: NDArray) -> bool:
    """Whether numbers look like codes of categories: whole ones, few of them, each of many rows."""
    values = np.unique(column[~np.isnan(column)])
    return 1 < len(values) <= MOST_INFERRED and len(column) >= ROWS_EACH * len(values) and bool((values == np.round(values)).all())


def are_two(column: NDArray) -> bool:
    """Whether there are two values, both whole: truth values among them."""
    values = np.unique(column[~np.isnan(column)])
    return len(values) == 2 and bool((values == np.round(values)).all())


def _merges(column: NDArray, found: NDArray) -> bool:
    """Whether `found`, the column in float64, takes different whole numbers for one."""
    large = np.abs(found) >= EXACT
    return (
        column.dtype == object and bool(large.any()) and len({str(value).strip() for value in column[large]}) > len(np.unique(found[large]))
    )


def _codes(said: Sequence[str | None]) -> NDArray:
    """Texts as numbers 0.. in order of appearance, NaN where missing."""
    number = {text: float(at) for at, text in enumerate(dict.fromkeys(text for text in said if text is not None))}
    return np.array([np.nan if text is None else number[text] for text in said])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_missing(value: Any, missing: Sequence[str]) -> bool:
    if isinstance(value, str):
        return not (text := value.strip()) or text.lower() in missing
    return value is None or (isinstance(value, float) and value != value)


def _missing_texts(column: NDArray, missing: Sequence[str]) -> dict[str, int]:
    """How often each text, but for the empty one, was taken for a missing value."""
    if column.dtype != object:
        return {}
    return dict(Counter(text for value in column if isinstance(value, str) and (text := value.strip()) and text.lower() in missing))


# --- targets and parts ---------------------------------------------------------------------------------------------------------


def _targets(
    y: NDArray, kind: Kind | None, class_names: Sequence[str] | None, target: str, training: NDArray, source: str, missing: Sequence[str]
) -> tuple[NDArray, tuple[str, ...] | None, Column]:
    """Class numbers and the names of the classes, or numbers; and what is to be known for reading other targets."""
    found, said = numbers(y, missing), texts(y, missing)
    gone = sum(text is None for text in said) if found is None else int(np.isnan(found).sum())
    if gone:
        listed = ", ".join(f"{text!r} {count} times" for text, count in _missing_texts(y, missing).items())
        why = f" ({listed}; data.missing says which texts stand for missing values)" if listed else ""
        raise DataError(f"{source}: the target {target!r} is missing in {gone} rows{why}; every row needs one")
    if found is not None and np.isinf(found).any():
        raise DataError(f"{source}: the target {target!r} is infinite in row {int(np.flatnonzero(np.isinf(found))[0])}")
    if kind is None:
        kind = (
            "classification" if class_names is not None or found is None or _look_like_classes(y, found, said, training) else "regression"
        )
    if kind == "regression":
        if found is None:
            raise DataError(
                f"{source}: the target {target!r} holds texts such as {next(t for t in said if t and not _is_number(t))!r}; a regression needs numbers (data.task, or a data.metric of numbers)"
            )
        return found, None, Column(target)
    if class_names is not None:
        names = tuple(map(str, class_names))
        if found is None or (found != np.round(found)).any() or found.min() < 0 or found.max() >= len(names):
            raise DataError(f"{source}: the target {target!r} is not one of the class numbers 0..{len(names) - 1} everywhere")
        return found.astype(np.int64), names, Column(target, tuple(map(float, range(len(names)))), names)
    known = {text for text, trained in zip(said, training, strict=True) if text is not None and trained}
    names = tuple(sorted(known, key=(lambda text: (float(text), text)) if found is not None else str))
    if unseen := sorted({text for text in said if text is not None} - known):
        raise DataError(f"{source}: the test part has the class {unseen[0]!r} of {target!r}, which no training row has")
    number = {name: at for at, name in enumerate(names)}
    return (
        np.array([number[text] for text in said if text is not None], dtype=np.int64),
        names,
        Column(target, tuple(map(float, range(len(names)))), names),
    )


def _look_like_classes(y: NDArray, found: NDArray, said: Sequence[str | None], training: NDArray) -> bool:
    if _merges(y, found):
        return are_few(_codes(said)[training])
    return are_two(found) or are_few(found[training])


def _check_classes(labels: NDArray, test: NDArray, names: tuple[str, ...], source: str) -> None:
    counts = np.bincount(labels, minlength=len(names))
    if len(names) < 2:
        raise DataError(f"{source} has a single class, {names[0]!r}; a classifier needs at least two")
    if len(few := np.flatnonzero(counts < 2)):
        listed = ", ".join(f"{names[c]!r} ({counts[c]})" for c in few[:10])
        raise DataError(f"{source} has too few training rows of the class {listed}; 2 of each are needed, one to train on and one to validate on"
                        " (or is the target a number? data.task=regression)")  # fmt: skip
    if not len(test):
        raise DataError(f"{source} has no test rows")


def _parts(split: ArrayLike, count: int, source: str) -> NDArray:
    column = np.asarray(split)
    if column.shape != (count,):
        raise DataError(f"{source}: the split has the shape {column.shape}; one part for each of the {count} rows is needed")
    words = {**{str(at): at for at in range(3)}, **{name: at for at, name in enumerate(PARTS)}, "valid": 1, "val": 1}
    said = [str(text).lower() for text in texts(_column(column, "split", source))]
    if unknown := sorted(set(said) - words.keys()):
        raise DataError(f"{source}: the split says {unknown[0]!r}; a row is {', '.join(PARTS)}, or 0, 1, 2")
    return np.array([words[text] for text in said], dtype=np.int64)


def _cut_test(label: NDArray, named: tuple[str, ...] | None, groups: NDArray | None, part: NDArray, seed: int, source: str) -> NDArray:
    """The parts, with a share of the train part as the test part."""
    train = np.flatnonzero(part == 0)
    strata, rng = (label if named is not None else strata_of(label))[train], np.random.default_rng(seed)
    if named is not None:
        counts = np.bincount(strata, minlength=len(named))
        if len(few := np.flatnonzero((counts > 0) & (counts < 3))):
            listed = ", ".join(f"{named[c]!r} ({counts[c]})" for c in few[:10])
            raise DataError(f"{source} has no test part, and too few rows to cut one from for class {listed}; at least 3 of each are needed"
                            " (or is the target a number? data.task=regression)")  # fmt: skip
    cut = stratified_cut(strata, TEST_SHARE, rng)[1] if groups is None else group_cut(strata, groups[train], TEST_SHARE, rng)[1]
    if not len(cut):
        raise DataError(f"{source} has no test part, and none can be cut from its groups: each has all rows of some class")
    part = part.copy()
    part[train[cut]] = 2
    return part


# --- files ---------------------------------------------------------------------------------------------------------------------


def _csv(path: Path, delimiter: str) -> dict[str, NDArray]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, delimiter=delimiter)
            names = [name.strip() for name in next(lines, [])]
            if len(set(names)) < len(names):
                raise DataError(f"{path}: two columns bear one name: {', '.join(names)}")
            rows = []
            for row in lines:
                if not row:
                    continue
                if len(row) != len(names):
                    raise DataError(f"{path}, line {lines.line_num}: {len(row)} values where the first line names {len(names)} columns")
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table in UTF-8: {error}") from error
    return {name: np.array([row[at] for row in rows], dtype=object) for at, name in enumerate(names)}


def _npz(path: Path) -> tuple[dict[str, NDArray], tuple[str, ...] | None]:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
    except DAMAGED as error:
        raise DataError(f"{path} cannot be read as an .npz file of plain arrays: {error}") from error
    if "X" not in held:
        raise DataError(f"{path} has no array X; it holds {', '.join(held) or 'nothing'}")
    frame = _frame(held["X"], held["columns"].tolist() if "columns" in held else None, str(path))
    for name in ("y", "split", "groups"):
        if name in held:
            if name in frame:
                raise DataError(f"{path}: one of the columns is called {name!r}, as is the array beside X")
            frame[name] = _column(held[name], name, str(path))
            if len(frame[name]) != len(held["X"]):
                raise DataError(f"{path}: X has {len(held['X'])} rows and {name} {len(frame[name])}")
    classes = held.get("target_values")
    return frame, None if classes is None else _class_texts(classes, path)


def _class_texts(values: NDArray, path: Path) -> tuple[str, ...]:
    return tuple(str(text) for text in texts(_column(values, "target_values", str(path))))


def _or(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def _listed(names: Any) -> str:
    listed = list(names)
    return ", ".join(listed[:20]) + (f" and {len(listed) - 20} more" if len(listed) > 20 else "")
