"""Rows from and to parquet files. The only module of `bide.data` that imports pyarrow; `parquet_module` loads it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from ..errors import UsageError

_ROWS_AT_ONCE = 200
"""They hold whole thoughts: some MB."""


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """All rows, some at a time. Raises `UsageError` for a file that is none."""
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for group in range(file.num_row_groups):  # all at once, it would keep what it has read
                for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[group]):
                    yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None


def rows_of(path: Path) -> int:
    """How many rows a file has. Raises `UsageError` for a file that is none."""
    try:
        found: int = pyarrow.parquet.read_metadata(path).num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"{path} cannot be read as parquet: {str(error).splitlines()[0]}") from None
    return found


def write_parquet(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[tuple[str, str]]) -> None:
    """Write `rows` with `columns`, (name, type) each; types: string, strings, integer, number, boolean."""
    schema = pyarrow.schema([(name, _types()[kind]) for name, kind in columns])
    rows = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


def _types() -> dict[str, Any]:
    return {
        "string": pyarrow.string(),
        "strings": pyarrow.list_(pyarrow.string()),
        "integer": pyarrow.int64(),
        "number": pyarrow.float64(),
        "boolean": pyarrow.bool_(),
    }
