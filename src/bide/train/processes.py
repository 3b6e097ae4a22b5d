"""The processes of one run, which torchrun has started: who of them says what when one cannot go on."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import BideError


class ProcessGoneError(BideError):
    """Another process of this run has ended, or cannot be reached."""


PATIENCE = 5.0
"""Seconds for which the others leave it to the first process to tell an error."""


def own_rank() -> int:
    """This process's number. 0: the first, or the only one."""
    return int(os.environ.get("RANK", 0))


@contextlib.contextmanager
def first_speaks() -> Iterator[None]:
    """Hold back an error of another process than the first, for it is mostly everybody's: a wrong path. Then the first
    one tells it and ends, and torchrun ends the others. What is one process's own comes out a little later.

    So the processes need not talk to each other, which they cannot where one has failed.
    """
    try:
        yield
    except ProcessGoneError:
        time.sleep(2 * PATIENCE)  # for the one that is gone to say why
        raise
    except BideError:
        if own_rank():
            time.sleep(PATIENCE)
        raise


def leave_word(line: str) -> None:
    """Let torchrun end its own report of a process that has failed with this line."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        beside = {"py_callstack": line, "timestamp": str(int(time.time()))}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": {"message": line, "extraInfo": beside}}), encoding="utf-8")
