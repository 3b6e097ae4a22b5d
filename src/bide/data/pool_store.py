"""The pool as a file of a run's directory: what was read, and from where."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .places import PoolFile
from .pool import Pool
from .records import fields_of
from .stages import encode, write_lines


def keep_pool(directory: Path, pool: Pool, files: Sequence[PoolFile], hashes: Mapping[str, str]) -> Path:
    """Write the pool to a file in `directory` that is named by what is in it. `hashes`: row id -> `row_hash`."""
    refused = [[source, reason, count] for (source, reason), count in sorted(pool.refused.items())]
    revisions = {file.source: file.revision for file in files if file.revision}
    head = {"records": pool.records, "refused": refused, "revisions": revisions}
    digest = _pool_hash(pool, head, hashes)
    path = directory / f"pool-{digest}.jsonl"
    if not path.exists():
        write_lines(
            path,
            (
                head,
                *(
                    {"row": fields_of(row), **({"copies": copies} if (copies := pool.copies.get(row.id)) else {})}
                    for row in pool.rows
                ),
            ),
        )
    return path


def _pool_hash(pool: Pool, head: Mapping[str, Any], hashes: Mapping[str, str]) -> str:
    """Names a pool by all of its rows."""
    found = hashlib.sha256(encode(head))
    for row in pool.rows:
        found.update(encode([hashes[row.id], pool.copies.get(row.id, [])]))
    return found.hexdigest()[:16]
