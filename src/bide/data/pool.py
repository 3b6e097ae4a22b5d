"""The pool: every record of every source, as a row or with the reason why it is none."""

from __future__ import annotations

import ast
import importlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import gym
from .live_line import Tick, part_of, silent, watched
from .places import Named, Place, PoolFile, Tell, named, size_of
from .pool_files import files_of, read_numbered
from .records import BAD_TEXT, Row, is_sound, row_id
from .source_rules import Refused
from .sources import SOURCES, Source, chosen, is_used, kind_of, place_of, rule_for

MOST_METADATA = 200_000
"""Characters of a Python literal that are read; a longer one stays text."""
SAME_QUESTION = "same_question"
"""Why a record is no row: another one with the same question is."""
NOT_DRAWN = "source_rule:not_drawn"
_NO_PARTS = ("data", "default", "main")
_SPLIT = re.compile(r"(?:train|test|validation|valid|val|dev)[-_]?\d*", re.IGNORECASE)


@dataclass(slots=True)
class Pool:
    """Rows in the order of their ids, and what became of the other records."""

    rows: list[Row]
    copies: dict[str, list[str]]
    """Row id -> sources of the further records with this very question."""
    refused: Counter[tuple[str, str]]
    """(source, reason) -> records that are no rows."""

    @property
    def records(self) -> int:
        """All that were read."""
        return len(self.rows) + sum(map(len, self.copies.values())) + sum(self.refused.values())


def pool_files(specs: Iterable[str], *, licences: Mapping[str, str], unpinned: bool = False) -> list[PoolFile]:
    """The files that "FILE", "DIR", "NAME=FILE", "NAME=DIR" mean, those of the hub that "NAME" and "NAME@COMMIT" (of
    `SOURCES`) mean, and tasks of reasoning-gym (`gym.parse`).

    Sources of the hub come at their pinned commits; `unpinned`: as they are now. Raises `UsageError` for what is not
    there.
    """
    found = []
    for spec in specs:
        name, given, place = spec.partition("=")
        known, _, commit = spec.partition("@")
        if not given and known in SOURCES and not Path(spec).exists():
            found += _from_hub(SOURCES[known], commit or None, licences, unpinned)
            continue
        if not given and spec.startswith(f"{gym.SOURCE}:"):
            made_by = f"{gym.SOURCE} {gym.installed()}"
            found += [
                PoolFile(f"{gym.SOURCE}/{one.task}", Path(), gym.LICENCE, "train", f"{made_by}, seed {one.seed}", one)
                for one in gym.parse(spec)
            ]
            continue
        path = Path(place if given else spec).expanduser()
        for file in files_of(path):
            source = name if given else file.stem
            if given and path.is_dir():
                source = f"{name}/{file.stem}"
            found.append(_pool_file(source, file, licences))
    if not found:
        raise UsageError("the pool is empty", hint="--pool FILE, --pool NAME=FILE, or --pool NAME of a source")
    unknown = set(licences) - {file.source for file in found} - {file.source.partition("/")[0] for file in found}
    if unknown:
        raise UsageError(f"--licence names sources that are not in the pool: {', '.join(sorted(unknown))}")
    return found


def read_pool(
    files: Iterable[PoolFile], *, limit: int | None = None, tell: Tell | None = None, tick: Tick = silent
) -> Pool:
    """All rows of `files`, by id. `limit`: only the first so many records of each file. `tell`: told of each record
    that is no row, once. `tick`: told how much is read, by bytes.

    Records with the same question are one row: of the source that stands first in `SOURCES` (others after them, by
    name), then the one with a solution, with an answer, with the longer solution. The order of files makes no
    difference, and that of the records in them none but through `limit`, and to what `tell` is told.
    """
    best: dict[str, Row] = {}
    places: dict[str, Place] = {}
    copies: dict[str, list[str]] = {}
    refused: Counter[tuple[str, str]] = Counter()

    def refuse(place: Place, reason: str, record: Mapping[str, Any] | None, row: str | None) -> None:
        refused[place[0].file.source, reason] += 1
        if tell is not None:
            tell(place, reason, record, row)

    with gym.LazyGym() as made:
        for row, place in _drawn_rows(named(files), made, refuse, limit, tick):
            other = best.get(row.id)
            if other is None:
                best[row.id], places[row.id] = row, place
                continue
            first, second = sorted((row, other), key=_rank)
            best[row.id] = first
            copies.setdefault(row.id, []).append(second.source)
            lost = place
            if first is row:
                lost, places[row.id] = places[row.id], place
            if tell is not None:
                tell(lost, SAME_QUESTION, None, row.id)
    for sources in copies.values():
        sources.sort()
    return Pool([best[one] for one in sorted(best)], copies, refused)


def literal(text: Any) -> Any:
    """What a text of Python or JSON says, without running it; a text that is neither, or too long, stays as it is."""
    if not isinstance(text, str) or len(text) > MOST_METADATA or not text.lstrip().startswith(("{", "[")):
        return text
    for read in (json.loads, ast.literal_eval):
        try:
            return json.loads(json.dumps(read(text), allow_nan=False))
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    return text


def as_json(value: Any) -> Any:
    """`value` as JSON has it: no NaN, texts as keys, bytes as their number."""
    if isinstance(value, Mapping):
        return {str(name): as_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def _drawn_rows(
    files: Sequence[Named], made: gym.LazyGym, refuse: Tell, limit: int | None, tick: Tick
) -> Iterator[tuple[Row, Place]]:
    """The rows of all files; of a source that only some are taken of, these, out of all its files."""
    waiting: dict[str, list[tuple[Row, Place]]] = {}
    whole, read = max(1, sum(size_of(file.file) for file in files)), 0
    for file in files:
        size, before = size_of(file.file), read
        rows = _rows(file, made, refuse, limit, part_of(tick, before / whole, size / whole))
        read += size
        known = SOURCES.get(file.file.source.partition("/")[0])
        if known and known.take:
            waiting.setdefault(known.name, []).extend(rows)
        else:
            yield from rows
    for name, drawn_from in waiting.items():
        keep = chosen(sorted({row.id for row, _ in drawn_from}), SOURCES[name].take, name)
        for row, place in drawn_from:
            if row.id in keep:
                yield row, place
            else:
                refuse(place, NOT_DRAWN, None, row.id)


def _rows(at: Named, made: gym.LazyGym, refuse: Tell, limit: int | None, tick: Tick) -> Iterator[tuple[Row, Place]]:
    file = at.file
    rule = gym.task if file.generated else rule_for(file.source)
    used = is_used(file.source)
    for number, record in _records(file, made, limit, tick):
        fields = rule(record) if used else Refused("source_rule:part_not_used")
        if isinstance(fields, Refused):
            refuse((at, number), fields.reason, record, None)
            continue
        metadata = {name: literal(value) for name, value in fields.metadata.items() if value is not None}
        kind = kind_of(file.source) or fields.kind
        if kind != "math":
            metadata["cot_type"] = kind
        metadata = as_json(metadata)
        texts = (fields.question, fields.solution, fields.answer, json.dumps(metadata, ensure_ascii=False))
        if not all(map(is_sound, texts)):
            refuse((at, number), BAD_TEXT, record, None)
            continue
        row = Row(
            row_id(fields.question),
            fields.question,
            fields.solution,
            fields.answer,
            file.source,
            file.split,
            file.licence,
            metadata,
        )
        yield row, (at, number)


def _records(
    file: PoolFile, made: gym.LazyGym, limit: int | None, tick: Tick
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if file.generated is None:
        yield from islice(read_numbered(file.path, tick), limit)
    else:
        for number, record in enumerate(watched(made().make(file.generated), file.generated.count, tick), start=1):
            if limit is None or number <= limit:  # the others are taken, too, or they would pass for the next kind's
                yield number, record


def _rank(row: Row) -> tuple[Any, ...]:
    place, _ = place_of(row.source)
    text = json.dumps([row.question, row.answer, row.solution, row.metadata], sort_keys=True)
    return place, row.solution is None, row.answer is None, row.source, -len(row.solution or ""), text


def _pool_file(source: str, path: Path, licences: Mapping[str, str], revision: str | None = None) -> PoolFile:
    name = source.partition("/")[0]
    if not is_sound(source):
        raise UsageError(f"the name of the source {source!r} is no text of UTF-8", hint="--pool NAME=FILE names it")
    known = SOURCES.get(name)
    licence = licences.get(source) or licences.get(name) or (known.licence if known else "unknown")
    if not is_sound(licence):
        raise UsageError(f"the licence {licence!r} is no text of UTF-8")
    in_name = re.search(r"(?:^|[^a-z])(train|test|validation|val|dev)(?:[^a-z]|$)", path.stem.lower())
    split = in_name[1] if in_name else known.split if known else "unknown"
    return PoolFile(source, path, licence, split, revision)


def _from_hub(source: Source, commit: str | None, licences: Mapping[str, str], unpinned: bool) -> list[PoolFile]:
    wanted = commit or (None if unpinned else source.revision)
    hub = importlib.import_module("bide.models.hub")
    files, commit = hub.dataset_rows(source.hub, source.split, wanted, source.files)
    return [
        _pool_file(f"{source.name}{f'/{part}' if (part := _part_of(name)) else ''}", path, licences, commit)
        for name, path in files
    ]


def _part_of(name: str) -> str:
    """The part that a file of the hub is of: the last name in its path that is no split, nor a number."""
    names = [re.sub(r"-\d{5}-of-\d{5}$", "", one) for one in Path(name).with_suffix("").parts]
    plain = [one for one in names if one not in _NO_PARTS and not one.isdecimal() and not _SPLIT.fullmatch(one)]
    return plain[-1] if plain else ""
