"""From the threads that engines run in to asyncio, through a bounded queue.

Each call is a `Work`: its requests wait in one queue, and what they give comes back merged, in
batches. A thread hands events over with one wake-up of the loop for as many as have gathered.

Most engines work in many generate() calls at once and get a thread for each running request. The
others run one call at a time: one thread takes all that wait as a batch, and what comes meanwhile waits
for the whole batch. Nothing is ever cut off in a thread: a turn that nobody waits for is cancelled by its
`RequestControl`, and ends as the engine ends it.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace

from ..engines.base import DoneEvent, Engine, Event, Request
from ..errors import ContextOverflowError, EngineError, ModelError, UsageError
from ..types import Completion

CONCURRENT: dict[str, int | None] = {"llamacpp": None, "openai": None, "mock": 64}
"""Engines that take several generate() calls at once -> how many, None for as many as their
`capabilities.parallel` says. (The mock's turns share nothing, so its own "one after another" is no limit.)"""

DEFAULT_WAITING = 256
"""Requests in the queue."""
_LONGEST_RETRY = 60
_OWN_FAULTS = (UsageError, ModelError, ContextOverflowError)
"""What one request of a batch may be to blame for, before its first token."""

Observer = Callable[[Completion, float, float], None]
"""Told of each finished turn: its completion, and the seconds from its arrival to its first token and to
its end. Called in the engine's threads."""


class QueueFullError(EngineError):
    """No room in the queue. `retry_after`: seconds after which it may be worth a try."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"the server is busy: {waiting} requests are waiting", hint=f"try again in {retry_after} s")
        self.retry_after = retry_after


class ShuttingDownError(EngineError):
    """The server is about to end."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class _Job:
    """One request of a `Work`."""

    __slots__ = ("arrived", "first", "index", "request", "work")

    def __init__(self, work: Work, index: int, request: Request) -> None:
        self.work, self.index, self.request = work, index, request
        self.arrived, self.first = time.perf_counter(), 0.0


class Work:
    """The requests of one call on their way. Made by `Runner.open`, used in one event loop."""

    def __init__(self, runner: Runner, requests: Sequence[Request]) -> None:
        self.jobs = [_Job(self, index, request) for index, request in enumerate(requests)]
        self.closed = False
        """Nobody waits for it any more."""
        self._runner = runner
        self._left = len(self.jobs)
        self._loop = asyncio.get_running_loop()
        self._ready = asyncio.Event()
        self._lock = threading.Lock()
        self._items: list[Event | Exception] = []
        self._told = False

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Events of all requests as they come, `event.index` the place in the call; ends when all are done, or
        the work is closed. Raises what the engine raises for any of them."""
        try:
            while self._left and not self.closed:
                await self._ready.wait()
                self._ready.clear()
                with self._lock:
                    items, self._items, self._told = self._items, [], False
                error = next((item for item in items if isinstance(item, Exception)), None)
                events = [item for item in items if not isinstance(item, Exception)]
                self._left -= sum(isinstance(event, DoneEvent) for event in events)
                if events and not self.closed:
                    yield events
                if error is not None and not self.closed:
                    raise error
        finally:
            self.close()

    def close(self) -> None:
        """Cancel what is not done. May be called twice, and from any coroutine of the loop."""
        if not self.closed:
            self.closed = True
            self._ready.set()
            self._runner._withdraw(self)
            for job in self.jobs:
                job.request.control.cancel()

    def put(self, item: Event | Exception) -> None:
        """Hand over an event, or the error that ends the call. From any thread."""
        if self.closed:
            return
        with self._lock:
            self._items.append(item)
            if self._told:
                return
            self._told = True
        try:
            self._loop.call_soon_threadsafe(self._ready.set)
        except RuntimeError:  # the loop is closed: nobody waits for it any more
            self.closed = True


class Runner:
    """Runs requests on `engine`, at most `max_running` at a time, with at most `max_waiting` behind them.
    Raises `UsageError` for limits that the engine cannot have."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_running: int | None = None,
        max_waiting: int = DEFAULT_WAITING,
        observe: Observer = lambda completion, first, total: None,
    ) -> None:
        self.engine = engine
        self.batched = engine.name not in CONCURRENT
        able = CONCURRENT.get(engine.name) or engine.capabilities.parallel
        if max_running is not None and max_running < 1:
            raise UsageError(f"max_running must be at least 1, not {max_running}")
        if max_running is not None and max_running > able:
            raise UsageError(
                f"max_running is {max_running}, but the engine works on {able} requests at a time",
                hint="--parallel gives some engines more",
            )
        if max_waiting < 0:
            raise UsageError(f"max_waiting must be 0 or more, not {max_waiting}")
        self.max_running = max_running or able
        self.max_waiting = max_waiting
        self._observe = observe
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[_Job] = deque()
        self._running: set[_Job] = set()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._closing = False
        self._seconds = 1.0  # of a turn, a moving average

    @property
    def running(self) -> int:
        """Requests that the engine works on."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def open(self, requests: Sequence[Request]) -> Work:
        """Put `requests` into the queue, all or none. Raises `QueueFullError`, `ShuttingDownError`, and
        `UsageError` for more than could ever be in the queue together."""
        work = Work(self, requests)
        with self._changed:
            if self._closing:
                raise ShuttingDownError()
            room = self.max_running + self.max_waiting
            if len(requests) > room:
                raise UsageError(f"{len(requests)} answers in one request; this server takes {room} at most")
            if len(self._running) + len(self._waiting) + len(requests) > room:
                raise QueueFullError(len(self._waiting), self._retry_after())
            self._waiting.extend(work.jobs)
            most = 1 if self.batched else self.max_running
            for _ in range(min(len(self._waiting) - self._idle, most - len(self._threads))):
                thread = threading.Thread(target=self._serve, name="bide-engine", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify(len(requests))
        return work

    async def run(self, request: Request) -> AsyncIterator[Event]:
        """The events of one request. Leaving the loop early cancels it."""
        work = self.open([request])
        try:
            async for events in work.batches():
                for event in events:
                    yield event
        finally:
            work.close()

    def stop(self) -> None:
        """Refuse new requests, and end those that are there with an error. From any thread."""
        with self._changed:
            self._closing = True
            jobs = [*self._running, *self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
        for job in jobs:
            job.work.put(ShuttingDownError())
            job.request.control.cancel()

    def refuse(self) -> None:
        """Refuse new requests; those that are there go on. From any thread."""
        with self._changed:
            self._closing = True

    def close(self, timeout: float = 10.0) -> bool:
        """`stop`, and wait for the threads, `timeout` seconds at most. Whether all have ended."""
        self.stop()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    # In the threads.

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._waiting and not self._closing:
                    self._changed.wait()
                self._idle -= 1
                if not self._waiting:
                    return
                count = min(len(self._waiting), self.max_running) if self.batched else 1
                jobs = [self._waiting.popleft() for _ in range(count)]
                self._running.update(jobs)
            try:
                self._run([job for job in jobs if not job.work.closed])
            finally:
                with self._changed:
                    self._running.difference_update(jobs)

    def _run(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        begun = False
        left = set(jobs)
        try:
            for event in self.engine.generate([job.request for job in jobs]):
                begun = True
                self._hand_over(jobs[event.index], event, left)
            error: Exception = EngineError(f"the engine {self.engine.name!r} left a turn unfinished")
        except _OWN_FAULTS as fault:
            if not begun and len(jobs) > 1:  # one of them spoils it for all: find out which
                middle = len(jobs) // 2
                self._run(jobs[:middle])
                self._run(jobs[middle:])
                return
            error = fault
        except Exception as fault:
            error = fault
        except BaseException as fault:  # a panic in Rust (tokenizers) is no Exception; this thread must live on
            error = EngineError(f"the engine {self.engine.name!r} failed: {type(fault).__name__}")
        for job in left:
            job.work.put(error)

    def _hand_over(self, job: _Job, event: Event, left: set[_Job]) -> None:
        if not job.first:
            job.first = time.perf_counter()
        if isinstance(event, DoneEvent):
            seconds = time.perf_counter() - job.arrived
            self._seconds += 0.1 * (seconds - self._seconds)
            with self._changed:  # before the client can know that there is room again
                self._running.discard(job)
            self._observe(event.completion, job.first - job.arrived, seconds)
        job.work.put(event if event.index == job.index else replace(event, index=job.index))
        if isinstance(event, DoneEvent):
            left.discard(job)

    def _withdraw(self, work: Work) -> None:
        with self._changed:
            self._waiting = deque(job for job in self._waiting if job.work is not work)

    def _retry_after(self) -> int:
        turns = 1 + len(self._waiting) / self.max_running
        return max(1, min(_LONGEST_RETRY, math.ceil(turns * self._seconds / 2)))
