"""Parquet files as columns; the one file that knows pyarrow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from niwaki.task.cut import DataError


def read_parquet(path: Path) -> dict[str, NDArray]:
    """Columns by name: numbers and truth values as float64, NaN where they are null; texts, and columns of whole numbers that float64 cannot
    hold, as objects, None where they are null."""
    try:
        from pyarrow import ArrowException, parquet, types  # an extra, and slow to load
    except ImportError as error:
        raise DataError(f"{path}: Parquet files are read by pyarrow, which is not installed: pip install 'niwaki[parquet]'") from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a Parquet file: {str(error).splitlines()[0]}") from error
    columns: dict[str, NDArray] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type.value_type if types.is_dictionary(column.type) else column.type
        if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind):
            values = column.to_pylist()
            if types.is_integer(kind) and any(value is not None and abs(value) > 2**53 for value in values):
                columns[name] = np.array(values, dtype=object)
            else:
                columns[name] = np.array([np.nan if value is None else float(value) for value in values])
        elif types.is_string(kind) or types.is_large_string(kind) or types.is_null(kind):
            columns[name] = np.array(column.to_pylist(), dtype=object)
        else:
            raise DataError(
                f"{path}: column {name!r} is of the type {kind}; columns hold numbers, truth values or texts (data.ignore leaves one out)"
            )
    return columns
