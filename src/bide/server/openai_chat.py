"""OpenAI's /v1/chat/completions, with what others have added to it.

Thinking stands in `reasoning_content` and in `reasoning`: clients know one or the other. Every choice has its
`budget`, and the whole reply too if it has one choice. `bide_forced` marks deltas of forced text for those who
ask with "mark_forced": true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..engines.base import DoneEvent, Event, Request, TokensEvent
from ..errors import UsageError
from ..types import Completion, Message, Sampling
from .budget_fields import Ask
from .claims import FieldError, short
from .dialect import Call, Host, Json, Writer
from .dialect_parts import Fields, refuse
from .dialect_parts import sampling as read_sampling
from .dialect_text import TextStream, extras, json_line, output_tokens, shown

MOST_CHOICES = 128
"""Answers of one request."""

_NO_EFFECT = (
    "user", "metadata", "store", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "service_tier",
    "parallel_tool_calls", "prediction", "cache_prompt",
)  # fmt: skip
"""Fields that say nothing about the text of the answer."""

_ONE_WAY: tuple[tuple[tuple[str, ...], tuple[object, ...], str], ...] = (
    (("tools", "functions"), ([],), "no engine here calls tools"),
    (("tool_choice", "function_call"), ("none", "auto"), "no engine here calls tools"),
    (("response_format",), ({"type": "text"},), "no engine here constrains its output"),
    (("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs", "grammar", "json_schema"),
     (), "no engine here constrains its output"),
    (("logprobs",), (False,), "no engine here gives log probabilities"),
    (("top_logprobs",), (0,), "no engine here gives log probabilities"),
    (("logit_bias",), ({},), "the engines' masks are taken by the thinking budget"),
    (("presence_penalty", "frequency_penalty"), (0,), "no engine here has penalties"),
    (("repetition_penalty", "repeat_penalty"), (1,), "no engine here has penalties"),
    (("min_p",), (0,), "sampling has temperature, top_p and top_k"),
    (("typical_p",), (1,), "sampling has temperature, top_p and top_k"),
    (("best_of",), (1,), "ask for n answers, and choose"),
    (("min_tokens",), (0,), "min_thinking_tokens is the minimum that there is"),
    (("ignore_eos", "echo", "continue_final_message"), (False,), "a turn ends where the model ends it"),
    (("add_generation_prompt", "skip_special_tokens"), (True,), "a turn is always one of the assistant, in text"),
    (("modalities",), (["text"],), "only text comes out"),
    (("verbosity",), ("medium",), "the models here know no verbosity"),
    (("audio", "web_search_options", "chat_template", "suffix", "documents"), (), "no engine here has it"),
)  # fmt: skip
"""Fields that can be done in one way only: names, what is accepted, why nothing else is possible."""

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_OF_MESSAGES = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "refusal", "annotations")


class Chat:
    """The dialect. See `bide.server.dialect.Dialect`."""

    media_type = "text/event-stream"

    def parse(self, body: Json, ask: Ask, host: Host) -> Call:
        """See `Dialect.parse`."""
        fields = Fields(ask.rest)
        model = fields.text("model")
        warnings = list(ask.warnings)
        messages = read_messages(fields.items("messages"), warnings)
        choices = fields.whole("n", 1) or 1
        if choices > MOST_CHOICES:
            raise FieldError(f"n must be at most {MOST_CHOICES}, not {choices}", field="n")
        limits = {name: fields.whole(name, 1) for name in ("max_completion_tokens", "max_tokens")}
        if None not in limits.values() and len(set(limits.values())) > 1:
            raise FieldError(
                f"max_completion_tokens is {limits['max_completion_tokens']}, but max_tokens is {limits['max_tokens']}",
                hint="send one of them",
                field="max_completion_tokens",
            )
        max_tokens = next((limit for limit in limits.values() if limit is not None), host.max_tokens)
        max_answer_tokens = fields.whole("max_answer_tokens", 1)
        drawn = read_sampling(Fields({name: fields.take(name) for name in ("seed", *_DRAWING)}))
        shape: Json = {
            "stops": fields.stops("stop"),
            "mark_forced": fields.flag("mark_forced") or False,
            "include_usage": False,
        }
        stream = fields.flag("stream") or False
        options = fields.take("stream_options")
        if options is not None:
            if not stream:
                raise refuse("stream_options", "it goes with stream=true only")
            inner = Fields(options, "stream_options")
            shape["include_usage"] = inner.flag("include_usage") or False
            inner.without_effect("include_obfuscation", "continuous_usage_stats")
            inner.close()
        fields.without_effect(*_NO_EFFECT)
        for names, accepted, why in _ONE_WAY:
            fields.only(names, accepted, why)
        fields.close()
        if ask.separate_reasoning is False:
            path = ask.sources.get("separate_reasoning", "separate_reasoning")
            raise refuse(path, "thinking always has fields of its own here")
        if choices > 1 and drawn.temperature == 0:
            warnings.append(f"n={choices} with temperature 0: greedy sampling gives one answer {choices} times")
        requests = tuple(
            _request(messages, ask, host, replace(drawn, seed=drawn.seed + index), max_tokens, max_answer_tokens)
            for index in range(choices)
        )
        return Call(requests, replace(ask, warnings=tuple(warnings)), stream, model or host.model, shape)

    def reply(self, call: Call, done: Sequence[Completion], *, id: str, created: int) -> Json:
        """See `Dialect.reply`."""
        choices = []
        for index, completion in enumerate(done):
            text = shown(call, completion)
            message: Json = {"role": "assistant", "content": text.answer, "refusal": None}
            if call.ask.include_reasoning is not False:
                message |= {"reasoning_content": text.thinking, "reasoning": text.thinking}
            choices.append({"index": index, "message": message, "logprobs": None,
                            **_ending(completion, text.stop)})  # fmt: skip
        reply: Json = {**_head(call, id, created, "chat.completion"), "choices": choices, "usage": usage(done)}
        return reply | (extras(call, done[0]) if len(done) == 1 else _warnings(call))

    def writer(self, call: Call, *, id: str, created: int) -> Writer:
        """See `Dialect.writer`."""
        return _ChatWriter(call, _head(call, id, created, "chat.completion.chunk"))

    def error(self, status: int, message: str, *, field: str | None = None) -> Json:
        """See `Dialect.error`."""
        kind = _KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
        return {"error": {"message": message, "type": kind, "param": field, "code": _CODES.get(status)}}


_DRAWING = ("temperature", "top_p", "top_k")
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {401: "invalid_api_key", 404: "not_found", 413: "request_too_large", 429: "rate_limit_exceeded"}


def read_messages(items: Sequence[Any], warnings: list[str]) -> tuple[Message, ...]:
    """The conversation. Reasoning of earlier turns is dropped: templates want it gone, and it would count as
    prompt. What else has no effect is told in `warnings`. Raises `FieldError`."""
    if not items:
        raise FieldError("messages must be a list with at least one message", field="messages")
    messages = [_message(value, f"messages[{index}]", warnings) for index, value in enumerate(items)]
    if messages[-1].role == "assistant":
        raise FieldError(
            "the last message is the assistant's, but an answer that was begun cannot be continued",
            hint="end with a user message; answer_prefix sets the beginning of the answer",
            field="messages",
        )
    return tuple(messages)


def _message(value: object, path: str, warnings: list[str]) -> Message:
    fields = Fields(value, path)
    role = fields.text("role")
    if role not in _ROLES:
        known = ", ".join(_ROLES)
        raise FieldError(f"{path}.role must be one of {known}, not {short(role)}", field=f"{path}.role")
    content = fields.take("content")
    fields.without_effect(*_OF_MESSAGES)
    warnings += [f"{name} has no effect: chat templates know roles only" for name in fields.without_effect("name")]
    fields.only(("tool_calls",), ([],), "no engine here calls tools")
    fields.only(("function_call", "audio", "tool_call_id"), (), "no engine here calls tools or hears")
    fields.close()
    where = f"{path}.content"
    if content is None and role != "assistant":
        raise FieldError(f"{where} is missing", field=where)
    return Message(_ROLES[role], _text(content or "", where))  # type: ignore[arg-type]


def _text(content: object, path: str) -> str:
    """The text of a message's content: a string, or its parts joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise FieldError(f"{path} must be a string or a list of parts, not {short(content)}", field=path)
    texts = []
    for index, part in enumerate(content):
        inner = Fields(part, f"{path}[{index}]")
        kind = inner.text("type")
        if kind != "text":
            raise refuse(f"{path}[{index}].type", f"parts of type {short(kind)} cannot be read here, only text")
        texts.append(inner.text("text") or "")
        inner.without_effect("cache_control", "prompt_cache_breakpoint")
        inner.close()
    return "".join(texts)


def _request(
    messages: tuple[Message, ...],
    ask: Ask,
    host: Host,
    drawn: Sampling,
    max_tokens: int | None,
    max_answer_tokens: int | None,
) -> Request:
    try:
        return Request(messages, ask.budget, drawn, host.format, max_tokens, max_answer_tokens)
    except UsageError as error:
        field = next((name for name in _DRAWING if str(error).startswith(name)), "messages")
        raise FieldError(str(error), hint=error.hint, field=field) from None


# What goes out.


def usage(done: Sequence[Completion]) -> Json:
    """All tokens: the prompt once, the outputs of every choice. Reasoning has the forced ones too."""
    prompt = done[0].timing.prompt_tokens
    output = sum(output_tokens(completion) for completion in done)
    thinking = sum(completion.budget["used"] for completion in done)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "completion_tokens_details": {"reasoning_tokens": thinking},
    }


def _head(call: Call, id: str, created: int, kind: str) -> Json:
    return {"id": f"chatcmpl-{id}", "object": kind, "created": created, "model": call.model}


def _ending(completion: Completion, stop: str | None) -> Json:
    """What a choice has at its end."""
    length = completion.finish_reason == "length" and stop is None
    return {"finish_reason": "length" if length else "stop", "seed": completion.seed, "budget": completion.budget}


def _warnings(call: Call) -> Json:
    return {"warnings": list(call.ask.warnings)} if call.ask.warnings else {}


class _ChatWriter:
    """A stream of chunks."""

    def __init__(self, call: Call, head: Json) -> None:
        self._call, self._head = call, head
        self._texts = [TextStream(replace(call, requests=(request,))) for request in call.requests]
        self._mark = bool(call.shape["mark_forced"])

    def begin(self) -> bytes:
        """See `Writer`."""
        first = {"role": "assistant", "content": ""}
        return b"".join(self._chunk({"index": index, "delta": first}) for index in range(len(self._texts)))

    def event(self, event: Event) -> bytes:
        """See `Writer`."""
        stream = self._texts[event.index]
        forced = self._mark and isinstance(event, TokensEvent) and event.forced
        data = []
        for kind, text in stream.push(event):
            delta: Json = {"content": text} if kind == "answer" else {"reasoning_content": text, "reasoning": text}
            if forced:
                delta["bide_forced"] = True
            data.append(self._chunk({"index": event.index, "delta": delta}))
        if isinstance(event, DoneEvent):
            more = extras(self._call, event.completion) if len(self._texts) == 1 else _warnings(self._call)
            end = {"index": event.index, "delta": {}, **_ending(event.completion, stream.stop)}
            data.append(self._chunk(end, more))
        return b"".join(data)

    def end(self) -> bytes:
        """See `Writer`."""
        done = [stream.completion for stream in self._texts if stream.completion is not None]
        last = b"data: [DONE]\n\n"
        if self._call.shape["include_usage"] and done:
            return _data({**self._head, "choices": [], "usage": usage(done)}) + last
        return last

    def error(self, status: int, message: str) -> bytes:
        """See `Writer`."""
        return _data(Chat().error(status, message))

    def _chunk(self, choice: Json, more: Mapping[str, Any] = {}) -> bytes:
        return _data({**self._head, "choices": [{"finish_reason": None, **choice}], **more})


def _data(value: Json) -> bytes:
    return f"data: {json_line(value)}\n\n".encode()
