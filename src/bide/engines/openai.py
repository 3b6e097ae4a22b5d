"""Budget forcing on a server with /v1/completions, segment by segment.

A segment is one streamed request: prompt and all output so far go up, tokens come down and are
fed to the `BudgetForcer`. When it asks for forced text, the stream is closed, which makes the
server stop computing; the text is appended, and the next request goes on from there. How a server
is driven is found out by asking it, and stated in `capabilities.notes`:

    ids     it takes token ids and returns those that it sampled (vLLM, SGLang, llama-server):
            every count is exact
    text    it knows text only: forced text is counted by its UTF-8 bytes, sampled text by what
            the server reports; the maximum still holds, since max_tokens enforces it
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import CapabilityError, ContextOverflowError, ModelError, UsageError
from ..formats import get_format
from .base import Capabilities, DoneEvent, Event, Request, check_capabilities
from .openai_segments import Segments
from .openai_tokens import UPSTREAM_TEMPLATE, RemoteTokenizer, TextTokenizer
from .openai_upstream import Upstream, identify
from .turn import Turn, run_parallel

_LONGEST_REQUEST = 8192
_LONGEST_UNCUT_REQUEST = 32
"""Tokens of one request to a server that cannot be cut: up to so many are computed in vain."""


class OpenAIEngine:
    """`upstream`: the server's URL, with or without /v1. `model`: its name there, None for the only
    one. `api_key` is sent there and nowhere else. `parallel`: requests at a time. `chunk`: most
    tokens of one HTTP request. `chat_template`: Jinja text, where the server shows none. `timeout`:
    seconds of silence. Raises `UsageError`, `UpstreamError`, `ModelError`, `CapabilityError`.
    """

    name = "openai"

    def __init__(
        self,
        model: str | None = None,
        *,
        upstream: str,
        api_key: str | None = None,
        parallel: int = 8,
        chunk: int | None = None,
        chat_template: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        for option, value in (("parallel", parallel), ("chunk", chunk)):
            if value is not None and value < 1:
                raise UsageError(f"{option} must be at least 1, not {value}")
        self._upstream = Upstream(upstream, api_key, timeout)
        try:
            self._served = served = identify(self._upstream, model)
            hidden = UPSTREAM_TEMPLATE if served.kind == "vllm" and served.returns_ids else None
            self._template = chat_template or served.chat_template or hidden
            self.tokenizer: RemoteTokenizer | None = None
            if served.returns_ids:
                self.tokenizer = RemoteTokenizer(self._upstream, served.kind, served.model, self._template, served.eos)
        except BaseException:
            self._upstream.close()
            raise
        self.model = served.model
        streams = not (served.returns_ids and served.kind == "llama-server")
        self._chunk = chunk or (_LONGEST_REQUEST if streams else _LONGEST_UNCUT_REQUEST)
        self.capabilities = Capabilities(
            token_ids=served.returns_ids,
            per_token_control=served.returns_ids and streams,
            masks_tokens=served.returns_ids,
            keeps_cache=False,
            streaming=True,
            parallel=parallel,
            notes=tuple(self._notes()),
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Work on `requests`, `parallel` at a time; events as they come."""
        check_capabilities(self.name, self.capabilities, requests)
        runs = [self._prepare(index, request) for index, request in enumerate(requests)]
        yield from run_parallel(
            [run.turn for run in runs], lambda turn: self._run(runs[turn.index]), self.capabilities.parallel
        )

    def close(self) -> None:
        """Close the connections. May be called twice."""
        self._upstream.close()

    def _notes(self) -> Iterator[str]:
        kind = self._served.kind
        yield f"the upstream is {'a server of unknown kind' if kind == 'other' else kind}"
        if self._served.returns_ids and kind == "llama-server":
            yield f"driven by token ids, {self._chunk} at a time; --engine llamacpp --model URL wastes less"
        elif self._served.returns_ids:
            yield "driven by token ids, streamed: a cut closes the stream"
        else:
            yield "driven by text: forced text is counted by its UTF-8 bytes, sampled text by the upstream's usage"
            yield "tokens cannot be masked; forced text may merge with its neighbours into other tokens"
            yield "where the upstream does not say what stopped it, thinking is taken to have ended"
        yield "recomputed_prompt_tokens is an upper bound where the upstream does not report cached tokens"

    # One turn.

    def _prepare(self, index: int, request: Request) -> Segments:
        server, hides = self._upstream.name, self._template in (None, UPSTREAM_TEMPLATE)
        if request.format == "auto" and hides:
            raise ModelError(
                f"{server} does not show its chat template, so the format cannot be found out",
                hint="name it with --format, or give chat_template (vLLM: --enable-tokenizer-info-endpoint)",
            )
        if self._template is None and not get_format(request.format).chat_template:
            raise ModelError(
                f"{server} does not show its chat template",
                hint="give chat_template, or use --format s1, which brings its own",
            )
        if request.sampling.top_k and self._served.kind == "other":
            raise CapabilityError(f"{server} may not know top_k", hint="leave top_k at 0")
        tokenizer = self.tokenizer or TextTokenizer(self._template)
        window = self._served.window if self.tokenizer else None
        turn = Turn(index, request, tokenizer, engine=self.name, model=self.model, window=window)
        if self.tokenizer is None and turn.format.answer_start:
            raise CapabilityError(f"the format {turn.format.name!r} needs an upstream that takes token ids")
        return Segments(turn, tokenizer, self._upstream, self._served, self._chunk)

    def _run(self, run: Segments) -> Iterator[Event]:
        turn = run.turn
        while not turn.done:
            turn.heed_control()
            if not turn.done:
                turn.forcer.drain_forced()
            yield from self._events(run, turn.events())
            if turn.done:
                break
            try:
                for _ in run.next():
                    yield from self._events(run, turn.events())
            except ContextOverflowError:
                if self._served.window is not None or not turn.forcer.token_ids:
                    raise
                turn.forcer.finish("length")  # so this is where the window ends
        yield from self._events(run, turn.finish())

    def _events(self, run: Segments, events: Iterator[Event]) -> Iterator[Event]:
        """`events`, without the surrogate ids of an upstream that knows text only."""
        for event in events:
            if self.tokenizer is not None:
                yield event
            elif isinstance(event, DoneEvent):
                done = replace(event.completion, token_ids=None, forced=None)
                if run.prompt_tokens is not None:
                    done = replace(done, timing=replace(done.timing, prompt_tokens=run.prompt_tokens))
                yield replace(event, completion=done)
            else:
                yield replace(event, token_ids=())
