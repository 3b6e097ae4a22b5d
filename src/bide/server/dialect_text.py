"""What the dialects of Anthropic, Ollama and OpenAI's responses share on their way out: text as it is shown.

Text that is streamed must be, joined, the text of the whole reply. The whole one is trimmed at its edges
and ends before a stop sequence; so the stream holds back what may yet turn out to be an edge or the
beginning of a stop sequence, and sends it when it is certain.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..engines.base import Event, TokensEvent
from ..formats import FORMATS
from ..types import Completion, Region
from .dialect import Call, Json

Kind = Literal["thinking", "answer"]
STOPS = "stops"
"""The key of `Call.shape` under which a dialect has the strings that end an answer."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a client sees of a completion."""

    thinking: str
    answer: str
    stop: str | None
    """The stop sequence before which the answer ends."""


def shown(call: Call, completion: Completion) -> Shown:
    """What the client of `call` sees of `completion`."""
    answer, stop = cut_at_stop(completion.answer, call.shape.get(STOPS, ()))
    return Shown("" if call.ask.include_reasoning is False else completion.thinking, answer, stop)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """`text` before the stop sequence that is complete first, and that sequence. Of two that end at the
    same place, the longer. (Thus it does not matter in which pieces a text comes.)"""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return text, None
    end, length, stop = min(found)
    return text[: end + length], stop


class TextStream:
    """The events of the one request of `call`, to pieces of the text that its client sees.

    When the answer reaches a stop sequence, the request is cancelled: nothing is computed in vain."""

    def __init__(self, call: Call) -> None:
        self._control = call.requests[0].control
        self._stops: Sequence[str] = call.shape.get(STOPS, ())
        self._visible = call.ask.include_reasoning is not False
        self._at_once = call.ask.stream_reasoning is not False
        form = FORMATS.get(call.requests[0].format)
        # While the format is open, what may be one of its separators waits for the completion.
        self._separators = " \t\r\n" + (form.answer_strip if form else "")
        self._doubtful = "" if form else "".join(form.answer_strip for form in FORMATS.values())
        self._thinking: list[str] = []  # all that was given out
        self._thinking_held = ""
        self._answer = ""  # what is not given out yet
        self._given: list[str] = []
        self._began = False
        self.stop: str | None = None
        """The stop sequence that was met."""
        self.completion: Completion | None = None
        """What the turn came to, once it is over."""

    def push(self, event: Event) -> list[tuple[Kind, str]]:
        """The text that has become certain with `event`, in its order."""
        if not isinstance(event, TokensEvent):
            return self._finish(event.completion)
        if event.region is Region.THINKING and self._visible:
            self._thinking_held += event.text
            return self._thoughts() if self._at_once else []
        if event.region is Region.ANSWER and (text := self._grow(event.text)):
            return [*self._thoughts(), ("answer", text)]
        return []

    def _thoughts(self) -> list[tuple[Kind, str]]:
        text, self._thinking_held = self._thinking_held, ""
        self._thinking.append(text)
        return [("thinking", text)] if text else []

    def _grow(self, text: str) -> str:
        if self.stop is not None:
            return ""
        self._answer += text
        if not self._began:
            self._answer = self._answer.lstrip(self._separators)
            if not self._answer or self._answer[0] in self._doubtful:
                return ""
            self._began = True
        certain, self.stop = cut_at_stop(self._answer.rstrip(), self._stops)
        if self.stop is not None:
            self._control.cancel()
        else:
            longest = max(map(len, self._stops), default=1) - 1
            tails = (certain[len(certain) - size :] for size in range(min(longest, len(certain)), 0, -1))
            held = next((tail for tail in tails if any(stop.startswith(tail) for stop in self._stops)), "")
            certain = certain[: len(certain) - len(held)]
        self._answer = self._answer[len(certain) :]
        self._given.append(certain)
        return certain

    def _finish(self, completion: Completion) -> list[tuple[Kind, str]]:
        self.completion = completion
        given = "".join(self._thinking)
        if self._visible and completion.thinking.startswith(given):  # also what an engine did not stream
            self._thinking_held = completion.thinking[len(given) :]
        pieces = self._thoughts()
        given = "".join(self._given)
        if self.stop is None:
            rest = completion.answer[len(given) :] if completion.answer.startswith(given) else self._answer.rstrip()
            rest, self.stop = cut_at_stop(rest, self._stops)
            if rest:
                pieces.append(("answer", rest))
        return pieces


# What all answers have.


def output_tokens(completion: Completion) -> int:
    """All tokens of the output: thinking, markers and answer."""
    if completion.token_ids is not None:
        return len(completion.token_ids)
    timing = completion.timing  # of an engine that sees text: it knows how many it drew, by their rate
    drawn = round(timing.tokens_per_second * timing.seconds)
    return max(drawn + int(completion.budget["forced_tokens"]), int(completion.budget["used"]))


def extras(call: Call, completion: Completion) -> Json:
    """bide's own keys of an answer. (`seed`: with it, the answer can be drawn again.)"""
    found: Json = {"budget": completion.budget, "seed": completion.seed}
    if call.ask.warnings:
        found["warnings"] = list(call.ask.warnings)
    return found


def json_line(value: Json) -> str:
    """JSON on one line, in ASCII: clients split lines at U+2028 and U+0085 too, and not every string
    that JSON can hold is valid Unicode."""
    return json.dumps(value, separators=(",", ":"))


def sse(event: str, data: Json) -> bytes:
    """One server-sent event."""
    return f"event: {event}\ndata: {json_line(data)}\n\n".encode()
