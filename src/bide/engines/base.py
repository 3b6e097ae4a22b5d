"""What every engine shares: the protocol, the turn that drives a `BudgetForcer`, the segment loop.

An engine only has to sample. Counting, forcing, holding back, text and receipts are here, once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Protocol

from ..budget_forcing import BudgetForcer, ForcedTexts, Markers, Region
from ..errors import CapabilityError, ContextOverflowError, ModelError, UsageError
from ..formats import ReasoningFormat, detect_format, get_format
from ..s1_parity import S1Forcer
from ..thinking_budget import ThinkingBudget
from ..types import Completion, Message, Sampling, Timing


class Tokenizer(Protocol):
    """A model's tokenizer and chat template."""

    eos_ids: frozenset[int]
    chat_template: str | None

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; marker texts become their special ids; nothing is added."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special ones included; U+FFFD where bytes are no valid UTF-8."""

    def render(self, template: str, messages: Sequence[Message]) -> str:
        """`messages` through `template`, with the model's own special token texts."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can do. What it cannot is refused by name, never ignored."""

    token_ids: bool
    """It takes prompts as token ids and returns the ids that it sampled."""
    per_token_control: bool
    """It can be stopped and steered after any token; otherwise after segments."""
    masks_tokens: bool
    """It can keep given ids from being sampled."""
    keeps_cache: bool
    """It goes on after forced text without evaluating the earlier tokens again."""
    streaming: bool
    """Tokens are given out while the turn goes on."""
    parallel: int
    """How many requests it works on at a time."""
    notes: tuple[str, ...] = ()
    """What it cannot force, in words."""


class RequestControl:
    """Steers a running request from another thread or a signal handler."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._end_thinking = threading.Event()

    def cancel(self) -> None:
        """End the turn after the token in flight, with what there is."""
        self._cancelled.set()

    def end_thinking(self) -> None:
        """End thinking after the token in flight and go on to the answer."""
        self._end_thinking.set()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def take_end_thinking(self) -> bool:
        """Whether `end_thinking` was called since this was last asked."""
        if self._end_thinking.is_set():
            self._end_thinking.clear()
            return True
        return False


@dataclass(frozen=True, slots=True)
class Request:
    """One turn that an engine shall generate."""

    messages: tuple[Message, ...]
    budget: ThinkingBudget = ThinkingBudget()
    sampling: Sampling = Sampling()
    format: str = "auto"
    max_tokens: int | None = None
    """Limit of all output tokens. None: what the context window leaves."""
    max_answer_tokens: int | None = None
    control: RequestControl = field(default_factory=RequestControl, compare=False)

    def __post_init__(self) -> None:
        if not any(message.role == "user" and message.content.strip() for message in self.messages):
            raise UsageError("the question is empty")
        for name in ("max_tokens", "max_answer_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}")
        if self.sampling.temperature < 0:
            raise UsageError(f"temperature must be 0 or more, not {self.sampling.temperature}")


@dataclass(frozen=True, slots=True)
class TokensEvent:
    """Output tokens that stand for good: they are never taken back."""

    index: int
    """Which of the requests."""
    token_ids: tuple[int, ...]
    text: str
    """Whole characters only; a character that is not complete yet comes with a later event."""
    forced: bool
    region: Region
    used: int
    """Thinking tokens so far."""


@dataclass(frozen=True, slots=True)
class DoneEvent:
    """The turn is over."""

    index: int
    completion: Completion


Event = TokensEvent | DoneEvent


class Engine(Protocol):
    """Runs a model under budgets."""

    name: str
    model: str
    capabilities: Capabilities

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Work on all `requests`, each under its own budget; events as they come.
        Raises `UsageError` before the first token for what this engine cannot do."""

    def close(self) -> None:
        """Free the model. May be called twice."""


@dataclass(slots=True)
class Segment:
    """What one call to a model gave."""

    ids: list[int]
    recomputed: int = 0
    """Prompt tokens that had been evaluated before and were evaluated again."""


class Turn:
    """One request on its way: prompt, `BudgetForcer`, text, receipt.

    `window` is the engine's context length in tokens, None if unknown. Raises `BudgetError`,
    `ModelError` or `ContextOverflowError` when the request does not fit the model.
    """

    def __init__(
        self, index: int, request: Request, tokenizer: Tokenizer, *, engine: str, model: str, window: int | None
    ) -> None:
        self.index = index
        self.request = request
        self._tokenizer = tokenizer
        self._engine, self._model = engine, model
        self.format = choose_format(request.format, tokenizer)
        self.prompt_ids = tokenizer.encode(build_prompt(request.messages, self.format, tokenizer))
        markers = compile_markers(self.format, tokenizer)
        texts = compile_texts(request.budget, self.format, tokenizer)
        limit = request.max_tokens
        if window is not None:
            room = window - len(self.prompt_ids) - _HELD_BACK_ROOM
            if room < 1:
                raise ContextOverflowError(
                    f"the prompt has {len(self.prompt_ids)} tokens, the context window {window}",
                    hint="ask a shorter question or give the engine a larger context",
                )
            limit = room if limit is None else min(limit, room)
        forcer = S1Forcer if request.budget.mode == "s1" else BudgetForcer
        self.forcer = forcer(
            request.budget,
            markers,
            texts,
            max_tokens=limit,
            max_answer_tokens=request.max_answer_tokens,
            last_prompt_id=self.prompt_ids[-1] if self.prompt_ids else None,
        )
        self.recomputed = 0
        self._shown = 0
        self._kind = (0, int(Region.MARKER))  # forced, region of the latest event
        self._detokenizer = Detokenizer(tokenizer.decode)
        self._began = time.perf_counter()
        self._seconds: float | None = None

    @property
    def context(self) -> list[int]:
        """All ids that the model must have seen before the next sample."""
        return [*self.prompt_ids, *self.forcer.token_ids, *self.forcer.pending]

    @property
    def done(self) -> bool:
        """Whether the turn is over."""
        return self.forcer.done

    def heed_control(self) -> None:
        """Do what the request's control asks for."""
        if self.request.control.cancelled:
            self.forcer.finish("client")
        elif self.request.control.take_end_thinking():
            self.forcer.end_thinking()

    def events(self) -> Iterator[TokensEvent]:
        """What has become output since the last call."""
        forcer = self.forcer
        total = len(forcer.token_ids)
        while self._shown < total:
            begin = self._shown
            kind = forcer.forced[begin], forcer.regions[begin]
            if kind != self._kind and (rest := self._detokenizer.rest()):
                yield self._event((), rest)  # a character that was cut in two
            self._kind = kind
            end = begin + 1
            while end < total and (forcer.forced[end], forcer.regions[end]) == kind:
                end += 1
            ids = tuple(forcer.token_ids[begin:end])
            self._shown = end
            yield self._event(ids, self._detokenizer.push(ids))
        if forcer.done and (rest := self._detokenizer.rest()):
            yield self._event((), rest)

    def _event(self, ids: tuple[int, ...], text: str) -> TokensEvent:
        forced, region = self._kind
        return TokensEvent(self.index, ids, text, bool(forced), Region(region), self.forcer.used)

    def finish(self) -> Iterator[Event]:
        """The last events of the turn."""
        assert self.done
        self._seconds = time.perf_counter() - self._began
        yield from self.events()
        yield DoneEvent(self.index, self.completion())

    def region_text(self, region: Region) -> str:
        """Text of all output tokens of one region."""
        forcer = self.forcer
        return self._tokenizer.decode([t for t, r in zip(forcer.token_ids, forcer.regions) if r == region])

    def completion(self) -> Completion:
        """The turn as far as it is."""
        forcer = self.forcer
        seconds = self._seconds if self._seconds is not None else time.perf_counter() - self._began
        sampled = len(forcer.token_ids) - sum(forcer.forced)
        return Completion(
            question=next(m.content for m in reversed(self.request.messages) if m.role == "user"),
            thinking=self.region_text(Region.THINKING),
            answer=self.format.answer_text(self.region_text(Region.ANSWER)),
            token_ids=list(forcer.token_ids),
            forced=list(forcer.forced),
            budget=asdict(forcer.report()),
            model=self._model,
            engine=self._engine,
            format=self.format.name,
            seed=self.request.sampling.seed,
            timing=Timing(
                prompt_tokens=len(self.prompt_ids),
                recomputed_prompt_tokens=self.recomputed,
                seconds=round(seconds, 6),
                tokens_per_second=round(sampled / seconds, 3) if seconds > 0 else 0.0,
            ),
            finish_reason=forcer.finish_reason,
        )


_HELD_BACK_ROOM = 8
"""Tokens of the window kept free for ids that are held back or void."""


def drive(turn: Turn, sample: Callable[[Turn, int, frozenset[int]], Segment]) -> Iterator[Event]:
    """Run a turn to its end, segment by segment.

    `sample(turn, count, banned)` draws up to `count` (>= 1) ids after `turn.context`, none of
    `banned` (which is only given with count 1). No ids: the engine has no room left.
    """
    forcer = turn.forcer
    while True:
        turn.heed_control()
        if not turn.done:
            forcer.drain_forced()
        yield from turn.events()
        if turn.done:
            break
        banned = forcer.banned_ids()
        segment = sample(turn, 1 if banned else forcer.lookahead(), banned)
        turn.recomputed += segment.recomputed
        if segment.ids:
            forcer.feed_segment(segment.ids)
        elif not turn.request.control.cancelled:
            forcer.finish("length")
    yield from turn.finish()


def run_parallel(turns: Sequence[Turn], run: Callable[[Turn], Iterator[Event]], parallel: int) -> Iterator[Event]:
    """Run each turn with `run`, up to `parallel` at a time; events of all as they come.
    The first error ends all. Closing the iterator cancels what runs."""
    if parallel == 1 or len(turns) == 1:
        for turn in turns:
            yield from run(turn)
        return
    events: queue.Queue[Event | BaseException | None] = queue.Queue()
    waiting = iter(turns)
    lock = threading.Lock()
    stopping = threading.Event()

    def work() -> None:
        try:
            while not stopping.is_set():
                with lock:
                    turn = next(waiting, None)
                if turn is None:
                    break
                for event in run(turn):
                    events.put(event)
        except BaseException as error:  # handed to the caller's thread
            events.put(error)
        finally:
            events.put(None)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(parallel, len(turns)))]
    for worker in workers:
        worker.start()
    try:
        running = len(workers)
        while running:
            item = events.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        stopping.set()
        for turn in turns:
            if not turn.done:
                turn.request.control.cancel()
        for worker in workers:
            worker.join()


# From text to ids.


def choose_format(name: str, tokenizer: Tokenizer) -> ReasoningFormat:
    """The format called `name`; "auto" reads the model's chat template."""
    return detect_format(tokenizer.chat_template) if name == "auto" else get_format(name)


def build_prompt(messages: Sequence[Message], format: ReasoningFormat, tokenizer: Tokenizer) -> str:
    """The prompt text, thinking opened. Raises `ModelError` for a model without a chat template."""
    template = format.chat_template or tokenizer.chat_template
    if not template:
        raise ModelError(
            "the model has no chat template", hint="use a chat model, or --format s1, which brings its own"
        )
    prompt = tokenizer.render(template, messages)
    opened = prompt.rstrip("\n").endswith(format.open.rstrip("\n"))
    return prompt if opened else prompt + format.open


def compile_markers(format: ReasoningFormat, tokenizer: Tokenizer) -> Markers:
    """`format` as ids of `tokenizer`. Raises `ModelError` if a marker does not survive it."""
    ids = _Encoder(tokenizer)
    ends = tuple(dict.fromkeys(ids(end) for end in format.ends))
    return Markers(
        ends=ends,
        close=ids(format.close),
        natural_close=None if format.natural_close is None else ids(format.natural_close),
        start=ids(format.start),
        answer_start=ids(format.answer_start),
        eos=tokenizer.eos_ids - {end[0] for end in ends if len(end) == 1},
        newline=ids(format.newline),
        empty=ids(format.empty),
        waits_on_new_line=format.waits_on_new_line,
        line_ends=_TokensEnding(tokenizer, ("\n",)),
        sentence_ends=_TokensEnding(tokenizer, _SENTENCE_ENDS),
    )


def compile_texts(budget: ThinkingBudget, format: ReasoningFormat, tokenizer: Tokenizer) -> ForcedTexts:
    """The texts of `budget` as ids of `tokenizer`."""
    ids = _Encoder(tokenizer)
    prefix = budget.answer_prefix
    if prefix is None:
        prefix = "" if budget.thinking_token_budget == 0 else format.answer_prefix
    prefix_ids: tuple[int, ...] = ()
    if prefix:  # one text with the marker, as s1 has it, so that the same ids come out
        close, joint = ids(format.close), ids(format.close + format.answer_separator + prefix)
        joined = joint[: len(close)] == close
        prefix_ids = joint[len(close) :] if joined else ids(format.answer_separator + prefix)
    return ForcedTexts(
        waits=tuple(ids(text) for text in budget.effective_wait_strings),
        soft_limit_message=() if budget.soft_limit is None else ids(budget.effective_soft_limit_message),
        end_message=ids(budget.end_message),
        answer_prefix=prefix_ids,
    )


def check_capabilities(engine: str, capabilities: Capabilities, requests: Sequence[Request]) -> None:
    """Raises `CapabilityError` for the first request that the engine cannot serve."""
    for request in requests:
        budget = request.budget
        masks = budget.mode == "s1" and bool(budget.waits or budget.min_thinking_tokens)
        if budget.refuses_ends and "" in budget.effective_wait_strings:
            masks = True
        if masks and not capabilities.masks_tokens:
            raise CapabilityError(
                f"the engine {engine!r} cannot mask tokens, which mode='s1' with waits or a minimum, "
                "and an empty wait string, need",
                hint="use --engine llamacpp or transformers, or a wait string with text",
            )


_SENTENCE_ENDS = (".", "!", "?", "\n", "\u3002", "\uff01", "\uff1f")


class _TokensEnding:
    """The ids whose text ends with one of some strings, decided when asked."""

    def __init__(self, tokenizer: Tokenizer, endings: tuple[str, ...]) -> None:
        self._tokenizer = tokenizer
        self._endings = endings
        self._known: dict[object, bool] = {}

    def __contains__(self, token: object) -> bool:
        if token not in self._known:
            assert token is None or isinstance(token, int)
            text = "" if token is None else self._tokenizer.decode([token])
            self._known[token] = text.rstrip(" ").endswith(self._endings)
        return self._known[token]


class _Encoder:
    """Ids of a text that stands in the middle of a turn."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> tuple[int, ...]:
        if not text:
            return ()
        encode, decode = self._tokenizer.encode, self._tokenizer.decode
        ids = encode(text)
        if decode(ids) != text:  # SentencePiece begins a text with a space of its own
            anchor = encode("\n")
            joint = encode("\n" + text)
            if joint[: len(anchor)] == anchor:
                ids = joint[len(anchor) :]
            if decode(joint) != "\n" + text and decode(ids) != text:
                raise ModelError(f"the model's tokenizer does not keep the text {text!r}: it reads {decode(ids)!r}")
        return tuple(ids)


class Detokenizer:
    """Text of a growing list of ids, in pieces that never break a character.

    Decodes a short window of the latest ids each time, so the cost does not grow with the text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._done = 0  # ids of the window that have been given out

    def push(self, ids: Sequence[int]) -> str:
        """The text that has become certain with `ids`."""
        before = self._decode(self._window[: self._done])
        self._window += ids
        total = len(self._window)
        for end in range(total, max(self._done, total - _LONGEST_CHARACTER), -1):
            after = self._decode(self._window[:end])
            if not after.endswith("\ufffd"):
                break
        else:  # nothing of it is certain yet
            if total - self._done < _LONGEST_CHARACTER:
                return ""
            end, after = total, self._decode(self._window)
        start = max(0, end - _WINDOW)
        self._window, self._done = self._window[start:], end - start
        return after[len(before) :]

    def rest(self) -> str:
        """What is left at the end, incomplete characters as U+FFFD."""
        before = self._decode(self._window[: self._done])
        after = self._decode(self._window)
        self._done = len(self._window)
        return after[len(before) :]


_WINDOW = 6
_LONGEST_CHARACTER = 8
"""Ids after which an incomplete character is given out as U+FFFD."""
