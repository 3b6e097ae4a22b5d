"""`bide ask --file`: JSONL in, JSONL out, resumable.

One line a question, appended and synced as soon as it is answered: a kill loses at most the
questions in work. A line of the output names its question's id and a fingerprint of the settings;
going on with other settings is refused, since one file would then hold two experiments.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ..engines.base import DoneEvent, Engine, RequestControl
from ..errors import UsageError
from ..sampling import ask_request


def run_batch(
    source: Path,
    target: Path,
    load: Callable[[], Engine],
    fields: dict[str, Any],
    settings: dict[str, Any],
    control: RequestControl,
    log: TextIO,
) -> int:
    """Answer what `target` does not hold yet. Returns the exit code: 0, or 130 if cancelled.

    `fields` are those of `ask_request`; `settings` is what the fingerprint is made of. Raises
    `UsageError` for a malformed line of either file before a model is loaded.
    """
    questions = read_questions(source)
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16]
    answered = _answered(target, fingerprint)
    todo = [(key, question) for key, question in questions.items() if key not in answered]
    print(f"{len(questions)} questions, {len(questions) - len(todo)} answered already", file=log)
    if not todo:
        return 0
    engine = load()
    began, done = time.monotonic(), 0
    try:
        with target.open("a", encoding="utf-8") as out:
            requests = [ask_request(question, control=control, **fields) for _, question in todo]
            for event in engine.generate(requests):
                if not isinstance(event, DoneEvent) or control.cancelled:
                    continue  # a turn that was interrupted is asked again next time
                row = {"id": todo[event.index][0], "settings": fingerprint, **event.completion.to_dict()}
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
                out.flush()
                os.fsync(out.fileno())
                done += 1
                left = (time.monotonic() - began) / done * (len(todo) - done)
                print(f"{done}/{len(todo)} answered, about {left:.0f} s left", file=log)
    finally:
        engine.close()
    return 130 if control.cancelled else 0


def read_questions(source: Path) -> dict[str, str]:
    """Id -> question of a JSONL file. The id is the line's own, or a hash of the question."""
    questions: dict[str, str] = {}
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{source}, line {number}: not JSON ({error})") from None
        question = row.get("question") if isinstance(row, dict) else None
        if not isinstance(question, str) or not question.strip():
            raise UsageError(f'{source}, line {number}: wanted an object with a "question", got {line[:60]!r}')
        key = str(row["id"]) if "id" in row else hashlib.sha256(question.encode()).hexdigest()[:16]
        if questions.get(key, question) != question or ("id" in row and key in questions):
            raise UsageError(f"{source}, line {number}: the id {key!r} stands there twice")
        questions[key] = question
    if not questions:
        raise UsageError(f"{source} holds no questions")
    return questions


def _answered(target: Path, fingerprint: str) -> set[str]:
    """Ids that `target` holds. A last line that a kill has torn is taken off."""
    if not target.exists():
        return set()
    data = target.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    keys: set[str] = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            key, settings = row["id"], row["settings"]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{target}, line {number} is no answer of bide", hint="choose another --out") from None
        if settings != fingerprint:
            raise UsageError(
                f"{target}, line {number} was answered with other settings", hint="choose another --out, or delete it"
            )
        keys.add(key)
    if len(whole) < len(data):
        with target.open("r+b") as file:
            file.truncate(len(whole))
    return keys
