"""Records of files: JSON lines, a JSON list, CSV, parquet. One at a time where the format allows it."""

from __future__ import annotations

import csv
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from ..errors import MissingExtraError, UsageError
from .live_line import Tick, silent, watched

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
_FIELD_LIMIT = 10_000_000


def read_records(path: Path) -> Iterator[Mapping[str, Any]]:
    """The records of a file, in its order. Raises `UsageError` for one that cannot be read, with the place."""
    for _, record in read_numbered(path):
        yield record


def read_numbered(path: Path, tick: Tick = silent) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The records of a file with where they stand, from 1 on: see `unit_of`. `tick`: told how much of the file is read.
    Raises as `read_records` does."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    records: Iterator[tuple[int, Any]]
    if path.suffix == ".parquet":
        records = enumerate(_parquet(path, tick), start=1)
    elif path.suffix == ".csv":
        records = enumerate(_csv(path, tick), start=1)
    elif path.suffix == ".json":
        records = enumerate(_json_list(path, tick), start=1)
    elif path.suffix == ".jsonl":
        records = _json_lines(path, tick)
    else:
        raise UsageError(f"{path}: wanted a file that ends in one of {', '.join(SUFFIXES)}")
    for count, (number, record) in enumerate(records, start=1):
        if not isinstance(record, Mapping):
            raise UsageError(f"{path}, record {count}: wanted an object with a question, got {type(record).__name__}")
        yield number, record


def unit_of(path: Path) -> str:
    """What the records of a file are counted in: "line" of JSON lines, blank ones included, else "record"."""
    return "line" if path.suffix == ".jsonl" else "record"


def files_of(path: Path) -> list[Path]:
    """`path`, or the files of rows in the directory `path`, by name. Raises `UsageError` where there is none."""
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if not found:
            raise UsageError(f"the directory {path} has no file that ends in one of {', '.join(SUFFIXES)}")
        return found
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    return [path]


def parquet_module() -> Any:
    """What reads and writes parquet. Raises `MissingExtraError` without pyarrow."""
    try:
        return importlib.import_module("bide.data.parquet")
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise MissingExtraError("pyarrow", "curate") from None


def _json_lines(path: Path, tick: Tick) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(_text(path, file, tick), start=1):
            if line.strip():
                yield number, _json(line, f"{path}, line {number}")


def _json_list(path: Path, tick: Tick) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        found = _json("".join(_text(path, file)), str(path))
    if not isinstance(found, list):
        raise UsageError(f"{path} is no JSON list of questions")
    yield from watched(found, len(found), tick)


def _csv(path: Path, tick: Tick) -> Iterator[Any]:
    csv.field_size_limit(_FIELD_LIMIT)
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            for record in csv.DictReader(_text(path, file, tick)):
                yield {name: value for name, value in record.items() if name is not None}
        except csv.Error as error:
            raise UsageError(f"{path} cannot be read as CSV: {error}") from None


def _parquet(path: Path, tick: Tick) -> Iterator[Any]:
    parquet = parquet_module()
    yield from watched(parquet.read_parquet(path), 1 if tick is silent else parquet.rows_of(path), tick)


def _text(path: Path, file: TextIO, tick: Tick = silent) -> Iterator[str]:
    """Its lines. How far it is, is told by the bytes that are read."""
    size = max(1, os.fstat(file.fileno()).st_size)
    try:
        yield from watched(file, 1, lambda _: tick(min(1.0, file.buffer.tell() / size))) if tick is not silent else file
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}") from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{place}: not JSON ({error})") from None
    except RecursionError:
        raise UsageError(f"{place}: lists or objects stand too deep in each other") from None
