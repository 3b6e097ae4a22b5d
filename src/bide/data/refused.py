"""Records of the pool that are no rows: where each stood, and why, so that their histories can be had like a row's.

A record has no question of its own to be named by, or shares it with a row, so its name is its place:
"SOURCE:FILE:NUMBER", as "mine:train.jsonl:12", the line of JSON lines, else the number of the record. What is refused
goes straight to the disk: a source may refuse more than memory holds.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import UsageError
from .places import Place
from .pool import SAME_QUESTION
from .records import Decision, is_sound
from .stages import encode, unwritten

POOL = "pool"
"""The stage that refuses them."""
_OWN_IDS = ("id", "ID", "unique_id", "uuid", "Record ID")
_MOST_COLUMNS = 20
_LONGEST_NAME = 100
"""Characters of what a record calls itself, or its columns, that are kept."""


@dataclass(frozen=True, slots=True)
class RefusedRecord:
    """A record that is no row."""

    id: str
    """"SOURCE:FILE:NUMBER"."""
    source: str
    reason: str
    evidence: Mapping[str, Any]
    """`source`, `file` (or what was `generated`), `line` or `record`: where it stood. `id`: what it calls itself.
    `row`: the row, or what would be one, with its question. `columns`: of a record that cannot be read as a row."""

    @property
    def decision(self) -> Decision:
        """As a stage says it of a row."""
        return Decision(self.id, POOL, self.reason, self.evidence)


class Refusals:
    """Writes what `read_pool` refuses to a file in `directory` that is named by what is in it; use it as a context.
    Nothing is left of one that is not `keep`t."""

    def __init__(self, directory: Path) -> None:
        self.count = 0
        self._fresh = directory / "refused.jsonl.new"
        self._hash = hashlib.sha256()
        self._file: BinaryIO | None = None

    def __enter__(self) -> Refusals:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with suppress(OSError):  # what it still holds does not fit on a full disk
                self._file.close()
            with suppress(OSError):
                self._fresh.unlink(missing_ok=True)

    def add(self, place: Place, reason: str, record: Mapping[str, Any] | None, row: str | None) -> None:
        """One record: `record` as it stands in its file, `row` the id of its question, where these are to be had.
        Raises `BideError` on a full disk."""
        if self._file is None:
            self._write(encode({"stage": POOL}) + b"\n")  # as all files of stages begin
        self._write(encode(_line(place, reason, record, row)) + b"\n")
        self.count += 1

    def keep(self) -> Path | None:
        """The file, whole; None if nothing was refused. Raises `BideError` on a full disk."""
        if self._file is None:
            return None
        path = self._fresh.with_name(f"refused-{self._hash.hexdigest()[:16]}.jsonl")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            if not path.exists():
                os.replace(self._fresh, path)
        except OSError as error:
            raise unwritten(path, error) from error
        return path

    def _write(self, line: bytes) -> None:
        try:
            if self._file is None:
                self._fresh.parent.mkdir(parents=True, exist_ok=True)
                self._file = self._fresh.open("wb")
            self._file.write(line)
        except OSError as error:
            raise unwritten(self._fresh, error) from error
        self._hash.update(line)


def _line(place: Place, reason: str, record: Mapping[str, Any] | None, row: str | None) -> dict[str, Any]:
    named, number = place
    evidence: dict[str, Any] = {**named.where, named.unit: number}
    if record is not None:
        own = next((record[name] for name in _OWN_IDS if record.get(name) not in (None, "")), None)
        if isinstance(own, str | int) and is_sound(str(own)):
            evidence["id"] = str(own)[:_LONGEST_NAME]
        if row is None and not reason.startswith("source_rule:"):
            names = [str(name)[:_LONGEST_NAME] for name in list(record)[:_MOST_COLUMNS]]
            evidence["columns"] = [name for name in names if is_sound(name)]
    if row is not None:
        evidence["row"] = row
    return {"row": f"{named.name}:{number}", "reason": reason, "evidence": evidence}


def read_refused(path: Path, about: str = "") -> Iterator[RefusedRecord]:
    """The records in a file of `Refusals`, in its order; `about`: only those whose line holds this text. Raises
    `UsageError` for a file that is none."""
    if not path.is_file():
        raise UsageError(f"{path} is gone", hint="run the recipe again")
    needle = encode(about)[1:-1]
    with path.open("rb") as file:
        next(file, b"")  # the head
        for text in file:
            if needle in text:
                try:
                    line = json.loads(text)
                    yield RefusedRecord(line["row"], line["evidence"]["source"], line["reason"], line["evidence"])
                except (ValueError, KeyError) as error:
                    raise UsageError(
                        f"{path} is damaged: {error!r}", hint="delete it and run the recipe again"
                    ) from None


def find_refused(path: Path, wanted: str) -> RefusedRecord | None:
    """The one that is called `wanted`: by its place, also without the source; by what it calls itself; or by the id of
    its question, if it is not the same as a row's. None: there is none. Raises `UsageError` where several are."""
    found: list[list[RefusedRecord]] = [[], [], [], []]
    for one in read_refused(path, wanted):
        names = (one.id == wanted, one.id.endswith(f":{wanted}") and ":" in wanted, one.evidence.get("id") == wanted)
        question = one.evidence.get("row", "") if one.reason != SAME_QUESTION else ""
        for rank, is_it in enumerate((*names, bool(question) and question.startswith(wanted))):
            if is_it:
                found[rank].append(one)
                break
    best = next((some for some in found if some), [])
    if len(best) > 1:
        told = ", ".join(one.id for one in best[:3])
        raise UsageError(f"{len(best)} refused records are called {wanted!r}", hint=f"name one by its place: {told}")
    return best[0] if best else None


def places_of(path: Path, row: str) -> list[str]:
    """The names of the records with the same question as this row of the pool."""
    return sorted(one.id for one in read_refused(path, row) if one.evidence.get("row") == row)
