"""How a run is told to stop: by a signal, or by a file in its directory."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

STOP = "stop"
"""A file of this name in a run's directory stops the run after the step under way, as SIGTERM and Ctrl-C do."""


def remove_stop(run: Path) -> bool:
    """Remove the file: one that has been obeyed, or that an earlier start was killed over before it could obey. Returns
    whether it was there."""
    try:
        (run / STOP).unlink()
    except FileNotFoundError:
        return False
    return True


@contextlib.contextmanager
def signals_held() -> Iterator[list[int]]:
    """Fills the list when SIGINT, SIGTERM or SIGUSR1 comes, in place of ending the process."""
    told: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, lambda caught, _: told.append(caught)) for number in numbers}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
