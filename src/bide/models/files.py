"""Files that must be whole or absent: hashes, locks, free space, and errors of the disk in one line.

Standard library only.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import DownloadError, ModelError
from .gguf import MAGIC

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Report = Callable[[str], None]
"""Takes one line for the user to read."""

MB = 1_000_000
GO_ON = "run the same command again: it goes on where it stopped"
_LOCK_POLL_SECONDS = 0.2


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def has_size(path: Path, size_bytes: int) -> bool:
    """Whether `path` is a file of that size."""
    return path.is_file() and path.stat().st_size == size_bytes


def check_gguf(path: Path) -> None:
    """Raises `ModelError` unless `path` is a file that begins as a GGUF file does."""
    if path.is_dir():
        inside = ", ".join(sorted(file.name for file in path.glob("*.gguf"))[:5])
        raise ModelError(
            f"{path} is a directory, not a .gguf file",
            hint=f"it contains {inside}: name one" if inside else "name the .gguf file itself",
        )
    if not path.is_file():
        raise ModelError(f"there is no model file {path}", hint="see the models that bide knows: bide models")
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if head[: len(MAGIC)] != MAGIC:
        pointer = head == b"version "  # how a Git LFS pointer begins
        raise ModelError(
            f"{path} is not a GGUF file: wanted {MAGIC!r} at its beginning, got {head[: len(MAGIC)]!r}",
            hint="it is a Git LFS pointer; run: git lfs pull" if pointer else "convert the model to GGUF first",
        )


def beside(target: Path, suffix: str) -> Path:
    """The path of a helper file of `target`."""
    return target.with_name(f"{target.name}.{suffix}")


def sync(file: IO[Any]) -> None:
    """Have what was written stand on the disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Have renames in `directory` stand on the disk, where the system can."""
    if sys.platform == "win32":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_space(directory: Path, needed_bytes: int) -> None:
    """Raises `DownloadError` unless the disk of `directory` has room."""
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise DownloadError(
            f"the disk is too full: {needed_bytes / MB:,.0f} MB needed in {directory}, {free / MB:,.0f} MB free",
            hint="free some space; " + GO_ON,
        )


@contextmanager
def explained(what: str, directory: Path) -> Iterator[None]:
    """Make errors of the disk, and Ctrl-C, one `DownloadError` each. `what` is work into `directory`."""
    try:
        yield
    except KeyboardInterrupt:
        raise DownloadError(f"{what} was interrupted", hint=GO_ON) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DownloadError(
                f"{what} stopped: the disk of {directory} is full", hint="free some space; " + GO_ON
            ) from error
        raise DownloadError(f"{what} stopped in {directory}: {error.strerror or error}", hint=GO_ON) from error


@contextmanager
def locked(path: Path, report: Report) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process or thread holds it.

    The system's own lock: it ends with the process, however that ends. The file stays, for
    removing it would let two processes hold two files of the same name.
    """
    with path.open("ab") as file:
        told = False
        while not _try_lock(file.fileno()):
            if not told:
                report(f"another process is at work on {path.name.removesuffix('.lock')}: waiting")
                told = True
            time.sleep(_LOCK_POLL_SECONDS)
        yield  # closing the file frees the lock


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        raise
    return True
