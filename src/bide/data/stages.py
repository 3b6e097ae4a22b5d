"""Stages: pure functions of rows, of what earlier stages found, and of settings; each outcome is kept under their hash.

A stage's file is named by a hash of all that it may depend on: the rows that are still there, the earlier findings that
it names in `reads`, its settings, and the text of the code that it runs. So a change runs again what it touches and
nothing else, and the same input gives the same file, byte for byte. Files are written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from ..errors import BideError, UsageError
from .fingerprints import code_hash, fingerprint
from .live_line import Tick, silent, watched
from .records import Decision, Row

Features = Mapping[str, Any]
"""What stages found out about a row, by name, as JSON has it."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage says of a row."""

    decision: Decision
    features: Features = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Work:
    """What a stage works on."""

    rows: Sequence[Row]
    """Those that are still there, by id."""
    features: Mapping[str, Features]
    """Row id -> what was found out. Only what the stage reads."""
    tick: Tick = silent
    """To be told how far a stage is that has much to do before its first outcome."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of the pipeline."""

    name: str
    decide: Callable[[Work], Iterable[Outcome]]
    """One outcome for each row, in any order."""
    settings: Any = None
    """What else it depends on: see `fingerprint`."""
    code: tuple[str, ...] = ()
    """Modules whose text it depends on, besides those of what is in `settings`."""
    reads: tuple[str, ...] = ()
    """Names of the earlier features that it sees."""
    asks: bool = False
    """Whether it asks models, which tell by themselves how far they are."""


@dataclass(frozen=True, slots=True)
class Result:
    """A stage's outcome, as it lies in its file."""

    stage: str
    path: Path
    outcomes: Mapping[str, Outcome]
    """Row id -> what was said of it, but for the evidence: that stays in the file, it is most of a stage."""
    fresh: bool
    """Whether it was made now."""


class StageStore:
    """Outcomes of stages in `directory`, over the rows of one pool."""

    def __init__(self, directory: Path, hashes: Mapping[str, str] | None = None) -> None:
        """`hashes`: row id -> `row_hash`, where somebody has made them."""
        self.directory = directory
        self._hashes = dict(hashes or {})

    def run(
        self, stage: Stage, rows: Sequence[Row], features: Mapping[str, Features], *, again: bool = False,
        tick: Tick = silent,
    ) -> Result:  # fmt: skip
        """The outcome of `stage` over `rows`, sorted by id: from its file, or made now (`again`: in any case) and
        kept. `tick`: told how far it is while it is made."""
        seen: dict[str, Features] = {}
        if stage.reads:
            for row in rows:
                found = features[row.id]
                seen[row.id] = {name: found[name] for name in stage.reads if name in found}
        head = {
            "stage": stage.name,
            "settings": fingerprint(stage.settings),
            "code": {name: code_hash(name) for name in sorted({__name__, *stage.code})},
            "rows": len(rows),
            "input": self._input_hash(rows, seen),
        }
        path = self.directory / f"{stage.name}-{_hash(head)[:16]}.jsonl"
        if path.exists() and not again:
            known = {row: _without_evidence(outcome) for row, outcome in _read(path, stage.name)}
            return Result(stage.name, path, known, fresh=False)
        lines: dict[str, bytes] = {}
        outcomes: dict[str, Outcome] = {}
        count_by = silent if stage.asks else tick
        for outcome in watched(stage.decide(Work(rows, seen, tick)), len(rows), count_by):
            assert outcome.decision.stage == stage.name, stage.name
            lines[outcome.decision.row] = encode(_line(outcome)) + b"\n"
            outcomes[outcome.decision.row] = _without_evidence(outcome)
        missing = [row.id for row in rows if row.id not in outcomes]
        assert not missing and len(outcomes) == len(rows), f"{stage.name} must decide on each row once: {missing[:3]}"
        write_whole(path, chain([encode(head) + b"\n"], (lines[row.id] for row in rows)))
        return Result(stage.name, path, outcomes, fresh=True)

    def _input_hash(self, rows: Sequence[Row], seen: Mapping[str, Features]) -> str:
        found = hashlib.sha256()
        for row in rows:
            if row.id not in self._hashes:
                self._hashes[row.id] = row_hash(row)
            found.update(
                encode([self._hashes[row.id], seen[row.id]]) if row.id in seen else self._hashes[row.id].encode()
            )
        return found.hexdigest()


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""

    def parts() -> Iterator[bytes]:
        for line in lines:
            yield encode(line) + b"\n"

    write_whole(path, parts())


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """Write a file, whole or not at all; what a kill leaves is overwritten by the next writer of it. Raises
    `BideError` where it cannot be written, as on a full disk."""
    fresh = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with fresh.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise unwritten(path, error) from error


def unwritten(path: Path, error: OSError) -> BideError:
    """What a full disk, and whatever else keeps a file from being written, is told as."""
    return BideError(f"{path} cannot be written: {error.strerror or error}",
                     hint="what was made before is kept; the same command goes on")  # fmt: skip


_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def encode(value: Any) -> bytes:
    """JSON, the same for equal values."""
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def read_outcomes(path: Path) -> Iterator[tuple[str, Outcome]]:
    """(row id, outcome) of a stage's file. Raises `UsageError` for a file that is none."""
    return _read(path, path.name.rpartition("-")[0])


def read_reasons(path: Path) -> Iterator[tuple[str, str, Sequence[str]]]:
    """(row id, reason, notes) of a stage's file: what a funnel counts, in a fraction of the time of `read_outcomes`,
    since lines without a reason or a note are not parsed. Raises `UsageError` for a file that is none."""
    with path.open("rb") as file:
        if not next(file, b""):  # the head
            raise _damaged(path, "it is empty")
        for line in file:
            plain = b'"reason"' not in line and b'"notes"' not in line
            if plain and line.endswith(b'"}\n') and (at := line.rfind(_ROW)) >= 0:  # the last key, in their order
                yield line[at + len(_ROW) : -3].decode(), "", ()
                continue
            row, outcome = _outcome(path, line, path.name.rpartition("-")[0])
            yield row, outcome.decision.reason, outcome.decision.evidence.get("notes", ())


_ROW = b'"row":"'


def row_hash(row: Row) -> str:
    """A hash of all of a row."""
    named = [row.id, row.question, row.solution, row.answer, row.source, row.split, row.licence, row.metadata]
    return hashlib.sha256(encode(named)).hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(encode(value)).hexdigest()


def _line(outcome: Outcome) -> dict[str, Any]:
    decision = outcome.decision
    line: dict[str, Any] = {"row": decision.row}
    for name, value in (("reason", decision.reason), ("evidence", decision.evidence), ("features", outcome.features)):
        if value:
            line[name] = value
    return line


def _without_evidence(outcome: Outcome) -> Outcome:
    decision = outcome.decision
    if not decision.evidence:
        return outcome
    return Outcome(Decision(decision.row, decision.stage, decision.reason), outcome.features)


def _read(path: Path, stage: str) -> Iterator[tuple[str, Outcome]]:
    with path.open("rb") as file:
        if not next(file, b""):  # the head
            raise _damaged(path, "it is empty")
        for text in file:
            yield _outcome(path, text, stage)


def _outcome(path: Path, text: bytes, stage: str) -> tuple[str, Outcome]:
    try:
        line = json.loads(text.decode("utf-8", "surrogatepass"))
        decision = Decision(line["row"], stage, line.get("reason", ""), line.get("evidence", {}))
        return line["row"], Outcome(decision, line.get("features", {}))
    except (ValueError, KeyError) as error:
        raise _damaged(path, repr(error)) from None


def _damaged(path: Path, why: str) -> UsageError:
    return UsageError(f"{path} is damaged: {why}", hint="delete it; it will be made again")
