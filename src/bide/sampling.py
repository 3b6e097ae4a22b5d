"""Drive an engine: one question, or many.

The layer between engines and what uses them (command line, server, evaluation).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .engines.base import DoneEvent, Engine, Event, Request
from .thinking_budget import ThinkingBudget
from .types import Completion, Message, Sampling


def ask_request(question: str, *, system: str | None = None, **fields: Any) -> Request:
    """A `Request` for one `question`, with a system line if given; `fields` as of `Request`."""
    messages: tuple[Message, ...] = (Message("user", question),)
    if system is not None:
        messages = (Message("system", system), *messages)
    return Request(messages, **fields)


def ask(
    engine: Engine,
    question: str,
    budget: ThinkingBudget = ThinkingBudget(),
    *,
    sampling: Sampling = Sampling(),
    on_event: Callable[[Event], None] | None = None,
    **fields: Any,
) -> Completion:
    """Think about `question` under `budget`, then answer. `on_event` sees every token as it comes."""
    request = ask_request(question, budget=budget, sampling=sampling, **fields)
    return generate(engine, [request], on_event=on_event)[0]


def generate(
    engine: Engine, requests: Sequence[Request], *, on_event: Callable[[Event], None] | None = None
) -> list[Completion]:
    """The completions of all `requests`, in their order."""
    found: dict[int, Completion] = {}
    for event in engine.generate(requests):
        if on_event is not None:
            on_event(event)
        if isinstance(event, DoneEvent):
            found[event.index] = event.completion
    return [found[index] for index in range(len(requests))]
