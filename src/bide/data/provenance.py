"""What a set's manifest says of its inputs, so that one can tell whether one has the same. No paths: those are of the
machine, and the manifest is the same on all."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .audit import Against
from .places import PoolFile


def of_files(files: Iterable[PoolFile]) -> list[dict[str, Any]]:
    """Of each file of the pool its name and bytes; of generated tasks what made them."""
    found: list[dict[str, Any]] = []
    for file in files:
        if file.generated is None:
            with file.path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            found.append({"source": file.source, "file": file.path.name, "sha256": digest})
        else:
            found.append({"source": file.source, "generated_by": file.revision})
    return sorted(found, key=lambda one: (one["source"], one.get("file", "")))


def of_benchmarks(benchmarks: Sequence[Against]) -> list[dict[str, Any]]:
    """Of each benchmark its questions: how many, and a hash of them in their order."""
    found = []
    for one in benchmarks:
        digest = hashlib.sha256()
        for item in one.items:
            digest.update(item.question.encode("utf-8", "surrogatepass") + b"\0")
        place = Path(one.source)
        source = place.name if place.exists() else one.source
        found.append({"name": one.name, "questions": len(one.items), "source": source, "sha256": digest.hexdigest()})
    return found


def of_text(format: str, chat_template: str | None) -> dict[str, Any]:
    """Of the texts that are trained on: the format, and the model's template if it has none of its own."""
    digest = None if chat_template is None else hashlib.sha256(chat_template.encode()).hexdigest()
    return {"format": format, "chat_template_sha256": digest}
