"""Rows of the files that training reads: JSON lines, a JSON list, parquet."""

from __future__ import annotations

import codecs
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, UsageError

SUFFIXES = (".jsonl", ".json", ".parquet")
Faults = list[tuple[int, UsageError]]
"""What is wrong with rows, by their numbers, so that all of it can be told at once."""


def read_rows(path: Path, faults: Faults) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The rows of a file and their numbers, from 1 (in JSON lines, the line's), in its order; of a directory, those of
    its train.jsonl or train.parquet, as `bide curate` writes them.

    A row that cannot be read is left out and goes to `faults`, with the place. Raises `UsageError` for a file that
    cannot be read, `MissingExtraError` without pyarrow.
    """
    if path.is_dir():
        found = [path / f"train{suffix}" for suffix in SUFFIXES if (path / f"train{suffix}").is_file()]
        if not found:
            raise UsageError(f"the directory {path} holds no train.jsonl, train.json or train.parquet")
        path = found[0]
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    if path.suffix not in SUFFIXES:
        raise UsageError(f"{path}: wanted a file that ends in one of {', '.join(SUFFIXES)}")
    if path.suffix == ".jsonl":
        rows = _lines(path, faults)
    else:
        rows = enumerate(_parquet(path) if path.suffix == ".parquet" else _list(path), start=1)
    for number, row in rows:
        if isinstance(row, Mapping):
            yield number, row
        else:
            fault = UsageError(f"{path}, row {number}: wanted an object, got {type(row).__name__}")
            faults.append((number, fault))


def _lines(path: Path, faults: Faults) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = _parsed(line, f"{path}, line {number}")
                except UsageError as fault:
                    faults.append((number, fault))
                else:
                    yield number, row


def _list(path: Path) -> Iterator[Any]:
    found = _parsed(path.read_bytes(), str(path))
    if not isinstance(found, list):
        raise UsageError(f"{path} is no JSON list of rows")
    yield from found


def _parsed(text: bytes, place: str) -> Any:
    try:
        return json.loads(text.removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place}: not JSON in UTF-8 ({error})") from None


def _parquet(path: Path) -> Iterator[Any]:
    try:
        module = importlib.import_module("bide.train.parquet")
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        raise MissingExtraError("pyarrow", "train") from None
    yield from module.read_parquet(path)
