"""One turn on its way through an upstream, one HTTP request after another.

The token that ends a segment can only be told from a thought when the upstream says why it
stopped. So the latest token is held back until the next one, or the finish, has come; not where the
upstream is known to say so together with the token.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..budget_forcing import Action, State
from ..errors import UpstreamError
from .openai_tokens import END_OF_TURN, RemoteTokenizer, TextTokenizer
from .openai_upstream import Json, Kind, Served, Upstream, ask_for_ids, sampled_ids
from .turn import Turn, segment_seed

_PENALTIES = {"min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_PLAIN_SAMPLING: dict[Kind, Json] = {
    "vllm": {**_PENALTIES, "top_k": 0, "skip_special_tokens": False, "spaces_between_special_tokens": False},
    "sglang": {**_PENALTIES, "top_k": -1, "skip_special_tokens": False},
    "llama-server": {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0, "samplers": ["top_k", "top_p", "temperature"]},
    "other": {},
}
"""What must be said, lest a server's or a model's own defaults bend the distribution or the text."""
_SAYS_AT_ONCE: frozenset[Kind] = frozenset({"vllm"})
"""Their finish_reason stands in the chunk of the token that it is about."""
_MOST_STOPS = 4
"""OpenAI's own limit of stop strings."""


class Segments:
    """The requests of one turn. `chunk`: most tokens of one request."""

    def __init__(
        self, turn: Turn, tokenizer: RemoteTokenizer | TextTokenizer, upstream: Upstream, served: Served, chunk: int
    ) -> None:
        self.turn = turn
        self.prompt_tokens: int | None = None
        """Tokens of the prompt as the upstream counts them. None: not reported."""
        self._tokenizer, self._upstream, self._served, self._chunk = tokenizer, upstream, served, chunk
        self._ends = turn.markers.ends
        self._evaluated = 0  # tokens of the context, from its beginning, that the upstream has evaluated

    def next(self) -> Iterator[None]:
        """Run the next request. Yields whenever tokens have been fed. Raises `UpstreamError`."""
        if isinstance(self._tokenizer, TextTokenizer):
            return self._by_text(self._tokenizer)
        return self._by_ids()

    def _by_ids(self) -> Iterator[None]:
        turn, forcer = self.turn, self.turn.forcer
        context, banned = turn.context, forcer.banned_ids()
        thinking = forcer.state is State.THINKING
        # Room for an end marker that begins below the maximum saves a request; the forcer cuts exactly.
        count = 1 if banned else forcer.lookahead() + (max(map(len, self._ends)) - 1 if thinking else 0)
        if self._served.window is not None:
            count = min(count, self._served.window - len(context))
        count = min(count, self._chunk)
        if count < 1:
            forcer.finish("length")
            return
        ends = {end[0] for end in self._ends if len(end) == 1}
        body = {**self._body(count), **ask_for_ids(self._served.kind), "prompt": context}
        if self._served.kind == "sglang":
            body["no_stop_trim"] = True
        if banned:
            body["logit_bias"] = {str(token): -100 for token in sorted(banned) if token >= 0}
            if self._served.kind != "llama-server":
                body["min_tokens"] = 1  # masks the end-of-turn tokens that we may not know
        elif thinking and self._served.kind != "llama-server":
            body["stop_token_ids"] = sorted(ends)
        got, finish, stop, usage = 0, None, None, Json()
        held: int | None = None
        try:
            with self._upstream.stream("/v1/completions", body) as answers:
                for answer in answers:
                    usage = answer.get("usage") or usage
                    for choice in (answer.get("choices") or [])[:1]:
                        finish = choice.get("finish_reason") or finish
                        stop = choice.get("stop_reason", choice.get("matched_stop", stop))
                        for token in sampled_ids(choice):
                            if held is not None and not self._feed(held):
                                return
                            got, held = got + 1, token
                        if finish is None and held is not None and self._served.kind in _SAYS_AT_ONCE:
                            if not self._feed(held):
                                return
                            held = None
                    yield
            self._check_finish(finish, got)
            if held in banned:
                raise UpstreamError(f"{self._upstream.name} ignored logit_bias and sampled a masked token")
            left_out = isinstance(stop, int) and stop != held  # the token that stopped it is not among the ids
            if finish == "stop" and (left_out or usage.get("completion_tokens") == got + 1):
                if held is not None and not self._feed(held):
                    return
                held = stop if isinstance(stop, int) else None
            if finish == "stop" and held not in ends:
                self._feed_end_of_turn(held)
            elif held is not None:
                self._feed(held)
            elif not got:
                forcer.finish("length")
        finally:
            self._count_recomputed(usage, len(context), len(turn.context) - len(context))

    def _by_text(self, tokenizer: TextTokenizer) -> Iterator[None]:
        turn, forcer = self.turn, self.turn.forcer
        context, form = turn.context, turn.format
        count = min(forcer.lookahead(), self._chunk)
        body = {**self._body(count), "prompt": tokenizer.decode(context)}
        stops: list[str] = []
        if forcer.state is State.THINKING:  # a marker that holds another one never comes first
            stops = [end for end in form.ends if not any(end != other and other in end for other in form.ends)]
        elif form.start and self._served.kind in ("vllm", "sglang"):  # others do not say what stopped them
            stops = [form.start]
        if stops:
            body["stop"] = stops[:_MOST_STOPS]
        fed, sampled, size, finish, usage = 0, 0, 0, None, Json()
        named, stop = False, None
        held: str | None = None
        try:
            with self._upstream.stream("/v1/completions", body) as answers:
                for answer in answers:
                    usage = answer.get("usage") or usage
                    for choice in (answer.get("choices") or [])[:1]:
                        finish = choice.get("finish_reason") or finish
                        named = named or "stop_reason" in choice or "matched_stop" in choice
                        stop = choice.get("stop_reason", choice.get("matched_stop")) or stop
                        if text := choice.get("text"):
                            if held is not None:
                                for piece in self._padded(held, sampled - fed - 1):
                                    fed += 1
                                    if not self._feed(tokenizer.piece(piece)):
                                        return
                            held, size = text, size + len(text.encode(errors="replace"))
                        sampled = max(sampled, int(usage.get("completion_tokens") or 0))
                    yield
            self._check_finish(finish, fed + (held is not None))
            # Chunks may bring several tokens, and tokens no text. What no usage tells is bounded from above.
            total = usage.get("completion_tokens")
            if total is None:
                total = count if finish == "length" else min(count, size + 1)
            missing = total - (1 if finish == "stop" else 0) - fed - (held is not None)
            for piece in self._padded(held, missing):
                if not self._feed(tokenizer.piece(piece)):
                    return
            if finish == "stop":
                self._feed_stop(tokenizer, stops, stop, named)
            elif not total:
                forcer.finish("length")
        finally:
            if usage.get("prompt_tokens") is not None and self.prompt_tokens is None:
                self.prompt_tokens = int(usage["prompt_tokens"])
            length = int(usage.get("prompt_tokens") or len(context))
            self._count_recomputed(usage, length, int(usage.get("completion_tokens") or 0))

    def _feed(self, token: int) -> bool:
        """Give one sampled id to the forcer. False: what the upstream samples from now on is void."""
        self.turn.heed_control()
        return not self.turn.done and self.turn.forcer.feed(token) not in (Action.FORCE, Action.STOP)

    def _feed_end_of_turn(self, token: int | None) -> None:
        """The model has ended its turn, with `token`. None: not known, so it is not put out."""
        self._feed(END_OF_TURN)
        forcer = self.turn.forcer
        if forcer.token_ids and forcer.token_ids[-1] == END_OF_TURN:
            if token is not None:
                forcer.token_ids[-1] = token
            else:
                for output in (forcer.token_ids, forcer.forced, forcer.regions):
                    del output[-1]

    def _feed_stop(self, tokenizer: TextTokenizer, stops: list[str], stop: object, named: bool) -> None:
        """The upstream has stopped at one of `stops`, or because the model ended its turn. `named`:
        it says which, as `stop`; one that says nothing is taken to have met the first of `stops`."""
        marker = stop if stop in stops else None
        if not named and stops:
            marker = stops[0]
        if not isinstance(marker, str):
            self._feed_end_of_turn(None)
            return
        for token in tokenizer.encode(marker):
            if not self._feed(token):
                return

    def _padded(self, piece: str | None, missing: int) -> list[str]:
        """`piece` behind an empty one for each token that brought no text of its own: behind, since
        the text of the latest piece says whether a line is complete."""
        return [""] * max(0, missing) + ([] if piece is None else [piece])

    def _body(self, count: int) -> Json:
        """A request for up to `count` tokens, without its prompt."""
        kind, sampling = self._served.kind, self.turn.request.sampling
        body: Json = {
            "model": self._served.model,
            "max_tokens": count,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": segment_seed(sampling.seed, self.turn.forcer.context_length),
            "stream": True,
            "stream_options": {"include_usage": True},
            **_PLAIN_SAMPLING[kind],
        }
        if sampling.top_k:
            body["top_k"] = sampling.top_k
        if kind in ("vllm", "sglang"):
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
        return body

    def _check_finish(self, finish: object, got: int) -> None:
        if finish is None:
            raise UpstreamError(f"{self._upstream.name} broke off after {got} tokens of a segment")
        if finish not in ("stop", "length"):
            raise UpstreamError(f"{self._upstream.name} ended a segment with {finish!r}")

    def _count_recomputed(self, usage: Json, length: int, grown: int) -> None:
        """The context had `length` tokens and has `grown` since."""
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        self.turn.recomputed += max(0, min(self._evaluated, length) - cached)
        self._evaluated = length + grown
