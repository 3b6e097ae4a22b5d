"""Files of the pool, and the places of records in them by names that say nothing of the machine."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .gym import Generated
from .pool_files import unit_of

_BYTES_OF_A_TASK = 20_000
"""Of a file that takes as long to read as a task to make."""


@dataclass(frozen=True, slots=True)
class PoolFile:
    """A file of the pool."""

    source: str
    """"name" or "name/part"."""
    path: Path
    licence: str
    split: str
    revision: str | None = None
    """The commit of the hub that it is of; of generated tasks, what made them."""
    generated: Generated | None = None
    """Tasks to make, in place of `path`."""


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """A file of the pool by a name that no other one has, and that says nothing of the machine."""

    file: PoolFile
    name: str
    """"SOURCE:FILE"; "SOURCE:COUNT@SEED" of generated tasks; with a part of its hash where two would be called so."""

    @property
    def where(self) -> dict[str, Any]:
        """Which file it is, as JSON has it."""
        if self.file.generated is not None:
            return {"source": self.file.source, "generated": self.file.revision}
        return {"source": self.file.source, "file": _plain_name(self.file.path)}

    @property
    def unit(self) -> str:
        """What its records are counted in."""
        return "record" if self.file.generated is not None else unit_of(self.file.path)


Place = tuple[Named, int]
"""Where a record stands: its file, and which of its records, or lines, from 1 on."""
Tell = Callable[[Place, str, Mapping[str, Any] | None, str | None], None]
"""Told of a record that is no row: its place, the reason, the record, the id of its question; None what is not at hand
any more, or not to be had."""


def named(files: Iterable[PoolFile]) -> list[Named]:
    """The files, each by a name of its own, in the order of these."""
    files = list(files)
    names = [_name_of(file) for file in files]
    often = Counter(names)
    for place, file in enumerate(files):
        if often[names[place]] > 1 and file.path.is_file():
            with file.path.open("rb") as opened:
                names[place] += f"@{hashlib.file_digest(opened, 'sha256').hexdigest()[:12]}"
    found, met = [], Counter[str]()
    for name, file in sorted(zip(names, files), key=lambda one: one[0]):
        met[name] += 1
        found.append(Named(file, name if met[name] == 1 else f"{name}#{met[name]}"))
    return found


def size_of(file: PoolFile) -> int:
    """Bytes of it; of generated tasks, about as many as take so long to read."""
    if file.generated is not None:
        return file.generated.count * _BYTES_OF_A_TASK
    return file.path.stat().st_size if file.path.is_file() else 0


def _name_of(file: PoolFile) -> str:
    if file.generated is not None:
        return f"{file.source}:{file.generated.count}@{file.generated.seed}"
    return f"{file.source}:{_plain_name(file.path)}"


def _plain_name(path: Path) -> str:
    return path.name.encode("utf-8", "backslashreplace").decode()
