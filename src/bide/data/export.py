"""The set as files: parquet and JSON lines in s1K's columns, and bide's own beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..formats import ReasoningFormat
from ..training_text import training_text
from .live_line import Tick, silent, watched
from .pool_files import parquet_module
from .records import Row, Trace
from .stages import encode, write_whole
from .subjects import SUBJECTS

COLUMNS: tuple[tuple[str, str], ...] = (
    ("solution", "string"),
    ("question", "string"),
    ("cot_type", "string"),
    ("source_type", "string"),
    ("metadata", "string"),
    ("cot", "string"),
    ("thinking_trajectories", "strings"),
    ("attempt", "string"),
    ("text", "string"),
    ("id", "string"),
    ("answer", "string"),
    ("split", "string"),
    ("licence", "string"),
    ("subject", "string"),
    ("subject_title", "string"),
    ("teacher", "string"),
    ("thinking_tokens", "integer"),
    ("correct", "boolean"),
    ("attempts", "string"),
    ("selected_by", "string"),
    ("draw", "integer"),
)
"""Name and type. The first eight are s1K's, `text` is that of s1K_tokenized; `metadata` and `attempts` are JSON."""
SECOND_COLUMNS = (("first_teacher", "string"), ("first_thinking", "string"), ("first_attempt", "string"))
"""Of a set with traces of two teachers: the first one's. `thinking_trajectories` and `attempt` are the second's."""


def record_of(row: Row, trace: Trace, features: Mapping[str, Any], style: ReasoningFormat, template: str | None,
              first: Trace | None = None) -> dict[str, Any]:  # fmt: skip
    """One line of the set. The answer of the training text gets "Answer: " before it unless "Answer:" stands in it,
    for the format s1, as s1 has it."""
    answer = trace.answer.strip()
    if style.name == "s1" and "Answer:" not in answer:
        answer = f"Answer: {answer}"
    subject = features.get("subject")
    attempts = features.get("attempts")
    found = {
        "solution": row.solution if row.solution is not None else row.answer,
        "question": row.question,
        "cot_type": row.metadata.get("cot_type", "math"),
        "source_type": row.source,
        "metadata": json.dumps(row.metadata, ensure_ascii=False, sort_keys=True),
        "cot": None,
        "thinking_trajectories": [trace.thinking],
        "attempt": trace.answer,
        "text": training_text(style, row.question, trace.thinking, answer, chat_template=template),
        "id": row.id,
        "answer": row.answer,
        "split": row.split,
        "licence": row.licence,
        "subject": subject,
        "subject_title": SUBJECTS.get(subject or ""),
        "teacher": trace.teacher,
        "thinking_tokens": trace.thinking_tokens,
        "correct": features.get("correct") if first is None else None,
        "attempts": None if attempts is None else json.dumps(attempts, sort_keys=True),
        "selected_by": features.get("how"),
        "draw": features.get("draw"),
    }
    if first is not None:
        found |= {"first_teacher": first.teacher, "first_thinking": first.thinking, "first_attempt": first.answer}
    return found


def write_set(
    directory: Path, records: Iterator[dict[str, Any]], *, two_teachers: bool, rows: int, tick: Tick = silent
) -> int:
    """Write `train.jsonl` and `train.parquet`. `rows`: how many there should be. Returns how many there were. Raises
    `MissingExtraError` without pyarrow."""
    parquet = parquet_module()
    count = 0

    def lines() -> Iterator[bytes]:
        nonlocal count
        for record in watched(records, rows, tick, 0.0, 0.5):
            count += 1
            yield encode(record) + b"\n"

    columns: Sequence[tuple[str, str]] = (*COLUMNS, *SECOND_COLUMNS) if two_teachers else COLUMNS
    lined = directory / "train.jsonl"
    write_whole(lined, lines())

    def again() -> Iterator[dict[str, Any]]:
        with lined.open(encoding="utf-8", errors="surrogatepass") as file:
            for line in watched(file, rows, tick, 0.5, 1.0):
                yield json.loads(line)

    fresh = directory / "train.parquet.new"
    parquet.write_parquet(fresh, again(), columns)
    fresh.replace(directory / "train.parquet")
    return count
