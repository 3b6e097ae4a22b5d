"""How far a run is: counts, cost, and about how long it will take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .live_line import LiveLine, duration


@dataclass(eq=False)
class Progress(LiveLine):
    """Counts of requests. `answered`, `failed`, `not_asked` and `cached` add up to `total` in the end."""

    total: int = 0
    cached: int = 0
    """Known from before, answers and failures."""
    answered: int = 0
    failed: int = 0
    not_asked: int = 0
    retried: int = 0
    tokens: int = 0
    """Of the replies that came in."""
    running: int = 0
    width: int = 0
    spent: float = 0.0
    """USD, by this run and what went before on its account."""
    reserved: float = 0.0
    cap: float | None = None
    has_price: bool = False
    _is_on: bool = False

    def begin(self) -> None:
        """Now. May be called again, for further requests."""
        if not self._is_on:
            self.start_clock()
            self._is_on = True

    @property
    def done(self) -> int:
        """Requests that are settled in this run."""
        return self.answered + self.failed + self.not_asked

    def seconds_left(self) -> float | None:
        """At the speed so far. None: too early to say."""
        left = self.total - self.cached - self.done
        if not self.done:
            return 0.0 if not left else None
        return (self.clock() - self._began) / self.done * left

    def line(self) -> str:
        """All of it in one line."""
        parts = [f"{self.cached + self.done:,}/{self.total:,} done"]
        if self.cached:
            parts.append(f"{self.cached:,} known before")
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        if self.not_asked:
            parts.append(f"{self.not_asked:,} not asked")
        parts.append(f"{self.running} of at most {self.width} in flight")
        seconds = max(1e-9, self.clock() - self._began)
        parts.append(f"{self.tokens / seconds:,.0f} tokens/s")
        if self.has_price:
            cap = "" if self.cap is None else f" of at most ${self.cap:,.2f}"
            parts.append(f"${self.spent:,.4f} spent{cap}, ${self.reserved:,.4f} reserved")
        left = self.seconds_left()
        if left:
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def share(self) -> float:
        """Of the requests that are settled."""
        return (self.cached + self.done) / self.total if self.total else 0.0

    def to_json(self) -> dict[str, Any]:
        """The counts, as a receipt holds them."""
        names = ("total", "cached", "answered", "failed", "not_asked", "retried")
        return {name: getattr(self, name) for name in names}
