"""Training examples: rows of a file as the text of their format, as token ids, and which of them carry loss.

The text up to the reply and the reply are encoded apart, as inference has them: a token never lies across the place
where loss begins.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ..errors import UsageError
from .recipe import TrainRecipe
from .rows import Faults, read_rows
from .writing import Tokenizer, Writer, Written

_AT_ONCE = 256
_NAMED = 5
"""Rows that a sentence names."""
_TOLD = 10
"""Faults of rows that a refusal tells."""


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation."""

    id: str
    token_ids: array[int]
    """All of it, type code "i"."""
    loss: tuple[tuple[int, int], ...]
    """Spans [start, end) of positions whose token is to be predicted with loss."""

    @property
    def tokens(self) -> int:
        """How many."""
        return len(self.token_ids)

    @property
    def loss_tokens(self) -> int:
        """How many carry loss."""
        return sum(end - start for start, end in self.loss)


@dataclass
class Report:
    """What was found in a file of rows."""

    rows: int = 0
    columns: tuple[str, ...] = ()
    dropped: list[str] = field(default_factory=list)
    """Rows above the recipe's `max_length`: numbers from 1, with their ids, as the other lists of rows."""
    truncated: list[str] = field(default_factory=list)
    repeated: int = 0
    """Rows whose whole text another row has."""
    shared_ids: list[str] = field(default_factory=list)
    """Ids that several examples have."""
    other_text: list[str] = field(default_factory=list)
    """Rows whose own column "text" is not what the recipe makes of them."""
    compared_text: int = 0
    """Rows that have such a column."""
    normalised: list[str] = field(default_factory=list)
    """Rows whose text the tokenizer changes before it cuts it (Unicode NFC, for Qwen's)."""

    def warnings(self) -> list[str]:
        """One line each."""
        found = []
        if self.dropped:
            found.append(f"{_are(len(self.dropped))} dropped, longer than max_length: {_some(self.dropped)}")
        if self.truncated:
            found.append(
                f"{_are(len(self.truncated))} cut to max_length, the ends of answers are not learned: "
                f"{_some(self.truncated)}"
            )
        if self.normalised:
            found.append(
                f"{_are(len(self.normalised))} normalised by the tokenizer (Unicode): {_some(self.normalised)}"
            )
        if self.repeated:
            found.append(f"{_are(self.repeated, 'a copy of another', 'copies of others')}")
        if self.shared_ids:
            found.append(
                f"{_are(len(self.shared_ids), noun='id')} of several rows, of which sample_losses.json keeps one: "
                f"{_some(self.shared_ids)}"
            )
        if self.other_text:
            found.append(
                f"{_are(len(self.other_text))} not what the column text says ({self.compared_text} rows have one; "
                f"another recipe, or another version of it, made that): {_some(self.other_text)}"
            )
        return found


def read_examples(path: Path, recipe: TrainRecipe, tokenizer: Tokenizer) -> list[Example]:
    """The examples of `path` (see `rows.read_rows`), in its order. Raises as `load_examples`."""
    return load_examples(path, recipe, tokenizer)[0]


def load_examples(path: Path, recipe: TrainRecipe, tokenizer: Tokenizer) -> tuple[list[Example], Report]:
    """The examples of `path`, and what was found on the way.

    Every row is checked: its columns are there and not empty, no text of it holds a marker of the format or a control
    token, its ids are its text again when decoded. Raises `UsageError` naming the rows where that is not so, all
    together, and those longer than `max_length` unless the recipe drops or truncates them.
    """
    report = Report()
    examples: list[Example] = []
    faults: Faults = []
    too_long: list[tuple[str, int]] = []
    seen: Counter[bytes] = Counter()
    writer = Writer(recipe, tokenizer)
    rows = read_rows(path, faults)
    while batch := list(islice(rows, _AT_ONCE)):
        written = []
        for number, row in batch:
            report.rows += 1
            try:
                one = writer.write(row, number)
                _note(report, one)
            except UsageError as fault:
                faults.append((number, fault))
                continue
            seen[hashlib.sha256(one.text.encode()).digest()] += 1
            written.append(one)
        heads = tokenizer.encode([one.head for one in written])
        replies = tokenizer.encode([one.reply for one in written])
        decoded = tokenizer.decode([head + reply for head, reply in zip(heads, replies)])
        for one, head, reply, text in zip(written, heads, replies, decoded):
            ids = array("i", head + reply)
            above = recipe.max_length is not None and len(ids) > recipe.max_length
            try:
                _check_round_trip(one, text, tokenizer, report)
                if above and recipe.too_long == "refuse":
                    too_long.append((one.label, len(ids)))
                elif above and recipe.too_long == "drop":
                    report.dropped.append(one.label)
                else:
                    if above:
                        report.truncated.append(one.label)
                        del ids[recipe.max_length :]
                    if len(ids) <= len(head):
                        raise UsageError(f"row {one.label}: its question alone fills max_length", hint="too_long=drop")
                    examples.append(Example(one.id, ids, ((len(head), len(ids)),)))
            except UsageError as fault:
                faults.append((one.number, fault))
    _refuse(faults, too_long, recipe)
    if not examples:
        why = f": {_are(len(report.dropped))} dropped, longer than max_length" if report.dropped else ""
        raise UsageError(f"{path} holds no rows to train on{why}")
    report.repeated = sum(count - 1 for count in seen.values())
    report.shared_ids = [id for id, count in Counter(example.id for example in examples).items() if count > 1]
    return examples, report


def _refuse(faults: Faults, too_long: Sequence[tuple[str, int]], recipe: TrainRecipe) -> None:
    """Raises `UsageError`, one for all, unless there is nothing to refuse."""
    faults = sorted(faults, key=lambda one: one[0])
    found = [fault for _, fault in faults[:_TOLD]]
    if faults[_TOLD:]:
        found.append(UsageError(f"and {len(faults) - _TOLD:,} more"))
    if too_long:
        longest = max(count for _, count in too_long)
        found.append(
            UsageError(
                f"{_are(len(too_long))} longer than max_length ({recipe.max_length:,} tokens), the longest has "
                f"{longest:,}: {_some([label for label, _ in too_long])}",
                hint="a larger max_length, or too_long=drop, or too_long=truncate",
            )
        )
    if len(found) == 1:
        raise found[0]
    if found:
        hints = dict.fromkeys(one.hint for one in found if one.hint)
        raise UsageError(
            f"{len(faults) + len(too_long):,} rows cannot be trained on: {'; '.join(map(str, found))}",
            hint="; ".join(hints),
        )


def _note(report: Report, one: Written) -> None:
    if report.columns and report.columns != one.columns:
        raise UsageError(
            f"row {one.label}: its text is in {', '.join(one.columns)}; rows before it have {', '.join(report.columns)}"
        )
    report.columns = one.columns
    if one.own_text is not None:
        report.compared_text += 1
        if one.own_text != one.text:
            report.other_text.append(one.label)


def data_hash(examples: Sequence[Example]) -> str:
    """sha256 over all token ids and spans, as hex."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.tokens}:{example.loss};".encode())
        ids = example.token_ids
        if sys.byteorder == "big":
            ids = ids[:]
            ids.byteswap()
        digest.update(ids.tobytes())
    return digest.hexdigest()


def _check_round_trip(one: Written, text: str, tokenizer: Tokenizer, report: Report) -> None:
    """text: that of its tokens."""
    whole = one.text
    if text == whole:
        return
    if text == tokenizer.normalised(whole):
        report.normalised.append(one.label)
        return
    place = next((i for i, (a, b) in enumerate(zip(text, whole)) if a != b), min(len(text), len(whole)))
    raise UsageError(
        f"row {one.label}: its tokens are not its text again, from character {place} on: "
        f"{text[place : place + 20]!r} for {whole[place : place + 20]!r}",
        hint="the tokenizer is not of this model, or its decoder loses text",
    )


def _are(count: int, one: str = "", many: str = "", noun: str = "row") -> str:
    """ "3 rows are", "1 row is", and what they are."""
    return f"{count:,} {noun}s are {many}".rstrip() if count > 1 else f"{count} {noun} is {one}".rstrip()


def _some(names: Sequence[str]) -> str:
    """The first of them."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
