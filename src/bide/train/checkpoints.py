"""Checkpoints of a run: written by all processes, seen only when whole, read back at any number of processes.

A run directory holds `checkpoints/step-000120/`, in the format of torch.distributed.checkpoint beside a `state.json`.
It is written and synced under another name, and renamed when the last byte is down, so a kill at any moment leaves the
one before. `bide.train.saving` says when, and from which copy of the numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.filesystem import FileSystem

from ..errors import BideError, ModelError

FOLDER = "checkpoints"
_STATE = "state.json"
_PART = ".part"


def checkpoint_path(run: Path, step: int) -> Path:
    """Of the checkpoint made after `step` optimizer steps."""
    return run / FOLDER / f"step-{step:06d}"


def is_whole(checkpoint: Path) -> bool:
    """Whether all of it was written: it has its name, and what is written last."""
    return checkpoint.suffix != _PART and (checkpoint / _STATE).is_file()


def newest(run: Path) -> Path | None:
    """The last whole checkpoint of a run."""
    found = sorted(filter(is_whole, (run / FOLDER).glob("step-*")))
    return found[-1] if found else None


class CheckpointError(BideError):
    """A checkpoint could not be written. Those before it are whole."""


def write_checkpoint(
    run: Path,
    step: int,
    tensors: dict[str, Any],
    facts: dict[str, Any],
    group: Any,
    *,
    keep: int = 1,
    planner: Any = None,
) -> Path:
    """Write `tensors` (a nested dict, each process its own shards) and `facts` (JSON), then remove all but the `keep`
    newest. One that is whole already is left as it is.

    group: gloo, of all processes, which must all call this. planner: of torch.distributed.checkpoint, where the numbers
    are taken from elsewhere than `tensors`. Raises `CheckpointError`, on all processes or on none.
    """
    final = checkpoint_path(run, step)
    part = final.with_name(final.name + _PART)
    is_first = dist.get_rank(group) == 0

    def prepare() -> bool:
        if is_whole(final):
            return False
        for left in final.parent.glob("*" + _PART):  # by a run that was killed
            shutil.rmtree(left)
        part.mkdir(parents=True)
        return True

    def write() -> None:
        # One thread, for what goes wrong in further ones is lost; nothing copied ahead, which would wait for the
        # training's own work on the device again and again.
        writer = dcp.FileSystemWriter(part, thread_count=1, per_thread_copy_ahead=0)
        writer.fs = _Files()
        dcp.save(tensors, storage_writer=writer, planner=planner, process_group=group)

    def finish() -> None:
        write_atomically(part / _STATE, json.dumps({"step": step, **facts}, indent=1) + "\n")
        sync(part)
        shutil.rmtree(final, ignore_errors=True)  # which is not whole
        os.replace(part, final)
        sync(final.parent)
        for old in sorted(filter(is_whole, final.parent.glob("step-*")))[:-keep]:
            gone = old.with_name(old.name + _PART)  # so that none with a part missing has a name
            os.replace(old, gone)
            shutil.rmtree(gone)

    try:
        if _together(prepare if is_first else None, final, group):
            _together(write, final, group)
            _together(finish if is_first else None, final, group)
    except CheckpointError:
        if is_first:
            shutil.rmtree(part, ignore_errors=True)  # room for the next try
        raise
    return final


class _Files(FileSystem):
    """Files whose errors are the system's ("No space left on device"), and not what torch makes of them."""

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        try:
            with super().create_stream(path, mode) as stream:
                yield stream
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _together(work: Callable[[], Any] | None, final: Path, group: Any) -> Any:
    """Do this process's work (None: it has none), wait for the others, return what the first one's returned. Raises
    `CheckpointError` on all where one has failed."""
    result, problems = None, set[str]()
    try:
        result = work() if work else None
    except dcp.api.CheckpointException as error:
        problems = {_said(reason[0]) for reason in error.failures.values()}
    except Exception as error:  # whatever it is, the others wait
        problems = {_said(error)}
    found: list[Any] = [None] * dist.get_world_size(group)
    try:
        dist.all_gather_object(found, (result, problems), group=group)
    except RuntimeError as error:
        raise _failed(final, f"another process is gone ({error})") from error
    if any(theirs for _, theirs in found):
        raise _failed(final, "; ".join(sorted(set().union(*(theirs for _, theirs in found)))))
    return found[0][0]


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if text and isinstance(error, OSError) else f"{type(error).__name__} {text}".rstrip()


def _failed(final: Path, problem: str) -> CheckpointError:
    before = newest(final.parent.parent)
    left = f"{before.name} is whole, and the same command goes on from it" if before else "there is none before it"
    return CheckpointError(f"the checkpoint {final} could not be written: {problem}", hint=left)


def read_facts(checkpoint: Path) -> dict[str, Any]:
    """What was said beside the tensors, with "step". Raises `ModelError` for one that is not whole."""
    try:
        found = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{checkpoint} is not a whole checkpoint: {error}") from error
    assert isinstance(found, dict)
    return found


def load_checkpoint(checkpoint: Path, tensors: dict[str, Any]) -> None:
    """Read into the `tensors` given, in place; they may be sharded over another number of processes than wrote them.
    Raises `ModelError` where the checkpoint holds others."""
    try:
        dcp.load(tensors, checkpoint_id=str(checkpoint))
    except dcp.api.CheckpointException as error:
        reasons = {str(reason[0]) for reason in error.failures.values()}
        raise ModelError(f"{checkpoint} is of another model or recipe: {'; '.join(sorted(reasons))}") from error


def sync(path: Path) -> None:
    """Bring to the disk a file, or the names in a directory (where there is such a thing)."""
    if path.is_dir() and not hasattr(os, "O_DIRECTORY"):
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_atomically(path: Path, text: str) -> None:
    """The whole file or none."""
    part = path.with_name(path.name + _PART)
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
