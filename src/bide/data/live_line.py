"""One line that says how far long work is: it changes in its place on a terminal, and comes now and then in a log."""

from __future__ import annotations

import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TextIO, TypeVar

_EVERY_SECONDS = 5.0
_EVERY_SECONDS_IN_PLACE = 0.2
_BAR = 24
_CLEAR = "\r\x1b[2K"
_EVERY_ITEMS = 256
_Item = TypeVar("_Item")

Tick = Callable[[float], None]
"""Told of the share of some work that is done, 0 to 1."""


def silent(share: float) -> None:
    """A `Tick` that tells nobody."""


@dataclass(eq=False)
class LiveLine(ABC):
    """What all such lines share: when they are written, and the bar."""

    log: TextIO | None = None
    """Gets a line now and then; a terminal, one line with a bar that changes in its place."""
    clock: Callable[[], float] = time.monotonic
    _began: float = 0.0
    _said: float = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @abstractmethod
    def line(self) -> str:
        """All of it in one line."""

    @abstractmethod
    def share(self) -> float:
        """How much is done, 0 to 1."""

    def start_clock(self) -> None:
        """Now."""
        self._began = self._said = self.clock()

    def bar(self) -> str:
        """How far it is."""
        full = int(_BAR * self.share() + 1e-9)
        return "\u2588" * full + "\u2591" * (_BAR - full)

    def changed(self) -> None:
        """To be called after changes: writes a line if the last one is old enough."""
        if self.log is None:
            return
        now = self.clock()
        if self.log.isatty():
            if now - self._said >= _EVERY_SECONDS_IN_PLACE:
                self._said = now
                line = f"{self.bar()} {self.line()}"
                columns = shutil.get_terminal_size().columns
                print(_CLEAR + line[: max(20, columns - 1)], end="", file=self.log, flush=True)
        elif now - self._said >= _EVERY_SECONDS:
            self._said = now
            print(self.line(), file=self.log, flush=True)

    def end(self) -> None:
        """It is done: a terminal gets its line back."""
        if self.log is not None and self.log.isatty():
            print(_CLEAR, end="", file=self.log, flush=True)


@dataclass(eq=False)
class StageLine(LiveLine):
    """How far a stage is that asks no model."""

    name: str = ""
    total: int = 0
    unit: str = "rows"
    _share: float = 0.0

    def begin(self, name: str, total: int, unit: str = "rows") -> None:
        """Another stage, of `total` rows or, for the unit "MB", bytes."""
        self.name, self.total, self.unit, self._share = name, total, unit, 0.0
        self.start_clock()

    def at(self, share: float) -> None:
        """A `Tick`. What was told before is not taken back, so a stage may tell by itself how far it is, and be counted
        by its outcomes as well. 0: it begins only now, what went before was told by somebody else."""
        if not share:
            self.start_clock()
        if share > self._share:
            self._share = min(1.0, share)
            self.changed()

    def share(self) -> float:
        """0 to 1."""
        return self._share

    def line(self) -> str:
        """Done of all, how fast, and how long it will take at the speed so far."""
        scale = 1e6 if self.unit == "MB" else 1.0
        done, total = self._share * self.total / scale, self.total / scale
        seconds = max(1e-9, self.clock() - self._began)
        line = f"{self.name}: {done:,.0f}/{total:,.0f} {self.unit}"
        if 0 < self._share < 1:  # before the speed: a narrow terminal cuts that off
            line += f", about {duration(seconds / self._share * (1 - self._share))} left"
        return f"{line}, {done / seconds:,.0f} {self.unit}/s"


def watched(items: Iterable[_Item], count: int, tick: Tick, first: float = 0.0, last: float = 1.0) -> Iterator[_Item]:
    """The items, of which there are `count`; `tick` is told now and then. They are the work from the share `first` to
    `last`."""
    if tick is silent:
        yield from items
        return
    for number, item in enumerate(items, start=1):
        yield item
        if not number % _EVERY_ITEMS:
            tick(first + (last - first) * number / count)


def part_of(tick: Tick, first: float, size: float) -> Tick:
    """A tick for a part of the work, from the share `first` on, so large."""
    if tick is silent:
        return silent
    return lambda share: tick(first + size * share)


def duration(seconds: float) -> str:
    """In words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
