"""vLLM in this process: one call for any mixture of budgets, every request going on by itself.

vLLM samples segments; what was forced goes into the prompt of the next one, which its prefix
cache serves. No request waits for another: as soon as one segment ends, the next is added to the
running batch. Token ids all the way, nothing is tokenised again. Only `LLMEngine`, `EngineArgs` and
`SamplingParams` are used, which vLLM documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import vllm
from vllm.sampling_params import RequestOutputKind

from ..budget_forcing import Action
from ..errors import CapabilityError, EngineError, ModelError, UsageError
from .base import Capabilities, Event, Request, check_capabilities
from .hf_tokenizer import HuggingFaceTokenizer
from .turn import Turn, common_prefix, make_turns, segment_seed


class VLLMEngine:
    """`model`: what vLLM takes (a directory or "org/name"; "hf:org/name" too).

    `context`: the window in tokens, None for the model's own. `parallel`: most sequences in a
    batch. `streaming`: whether tokens are given out as they come; without, vLLM reports whole
    segments, which costs less for each step, and formats whose end marker has several tokens are
    streamed all the same. `engine_args`: any further `vllm.EngineArgs` (tensor_parallel_size,
    pipeline_parallel_size, gpu_memory_utilization, enforce_eager, ...). Raises `ModelError`.
    """

    name = "vllm"

    def __init__(
        self,
        model: str | None = None,
        *,
        context: int | None = None,
        parallel: int = 256,
        streaming: bool = True,
        engine_args: dict[str, Any] | None = None,
    ) -> None:
        if not model:
            raise UsageError("the engine 'vllm' needs a model", hint="name a directory or hf:org/name")
        if parallel < 1:
            raise UsageError(f"parallel must be at least 1, not {parallel}")
        if taken := sorted({"model", "max_model_len", "max_num_seqs"} & set(engine_args or {})):
            raise UsageError(f"engine_args may not hold {', '.join(taken)}", hint="use model, context and parallel")
        self.model = model
        arguments: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True, **(engine_args or {})}
        arguments |= {"model": model.removeprefix("hf:"), "max_model_len": context, "max_num_seqs": parallel}
        try:
            self._engine: Any = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"vLLM cannot load {model!r}: {lines[0]}") from error
        tokenizer = self._engine.get_tokenizer()
        self.tokenizer = HuggingFaceTokenizer(tokenizer, frozenset({int(tokenizer.eos_token_id)}))
        self._window = int(self._engine.model_config.max_model_len)
        self._streaming = streaming
        self._cached = bool(arguments["enable_prefix_caching"])
        self._names = itertools.count()
        self.capabilities = Capabilities(
            token_ids=True,
            per_token_control=streaming,
            masks_tokens=True,
            keeps_cache=self._cached,
            streaming=streaming,
            parallel=parallel,
            notes=() if self._cached else ("without prefix caching, every continuation evaluates its prompt again",),
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Work on all `requests` in one batch; vLLM queues what is more than `parallel`."""
        if self._engine is None:
            raise EngineError("the engine is closed")
        if self._engine.has_unfinished_requests():
            raise CapabilityError("the engine 'vllm' runs one generate() at a time", hint="put all into one call")
        check_capabilities(self.name, self.capabilities, requests)
        turns = make_turns(requests, self.tokenizer, engine=self.name, model=self.model, window=self._window)
        running: dict[str, _Running] = {}
        try:
            for turn in turns:
                turn.heed_control()
                yield from self._go_on(_Running(turn), running)
            while running:
                outputs = self._engine.step()
                for name in [name for name, one in running.items() if one.turn.request.control.pending]:
                    yield from self._interrupt(name, running)
                for output in outputs:
                    if output.request_id in running:  # else it was aborted: what it sampled is void
                        yield from self._take(output, running)
        finally:
            self._engine.abort_request(list(running))

    def close(self) -> None:
        """Free the model."""
        self._engine = None

    def _go_on(self, one: _Running, running: dict[str, _Running]) -> Iterator[Event]:
        """Take what is forced, then ask for the next segment, or end the turn."""
        turn, forcer = one.turn, one.turn.forcer
        if not turn.done:
            forcer.drain_forced()
        context = [] if turn.done else turn.context
        if not turn.done and len(context) >= self._window:
            forcer.finish("length")  # mode="s1" keeps more ids in view than it puts out
        if turn.done:
            yield from turn.finish()
            return
        yield from turn.events()
        name = f"{turn.index}-{next(self._names)}"
        one.began(context)
        running[name] = one
        self._engine.add_request(name, {"prompt_token_ids": context}, self._params(turn, len(context)))

    def _params(self, turn: Turn, position: int) -> Any:
        forcer, sampling = turn.forcer, turn.request.sampling
        banned = forcer.banned_ids()
        ends = turn.markers.ends
        one_token = all(len(end) == 1 for end in ends)
        # A longer end marker may begin below the maximum and be complete above it.
        room = forcer.lookahead() + max(map(len, ends)) - 1
        kind = RequestOutputKind.DELTA if self._streaming or not one_token else RequestOutputKind.FINAL_ONLY
        return vllm.SamplingParams(
            max_tokens=1 if banned else min(room, self._window - position),
            min_tokens=1 if banned else 0,  # keeps end-of-turn ids that only vLLM knows from being sampled
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k or -1,
            seed=segment_seed(sampling.seed, position) if sampling.temperature > 0 else None,
            stop_token_ids=sorted({end[0] for end in ends if len(end) == 1} | self.tokenizer.eos_ids),
            logit_bias={token: -100.0 for token in banned} or None,
            detokenize=False,
            output_kind=kind,
        )

    def _take(self, output: Any, running: dict[str, _Running]) -> Iterator[Event]:
        one = running[output.request_id]
        turn, result = one.turn, output.outputs[0]
        ids = list(result.token_ids)
        turn.recomputed += one.recomputed(output)
        known = self.tokenizer.eos_ids | {end[0] for end in turn.markers.ends}
        if result.finish_reason == "stop" and ids and ids[-1] not in known:
            ids[-1] = min(self.tokenizer.eos_ids)  # an end of turn that only the model's settings name
        one.sampled += ids
        _, action = turn.forcer.feed_segment(ids)
        if turn.done or action is Action.FORCE or output.finished:
            del running[output.request_id]
            if not output.finished:
                self._engine.abort_request([output.request_id])
            yield from self._go_on(one, running)
        else:
            yield from turn.events()

    def _interrupt(self, name: str, running: dict[str, _Running]) -> Iterator[Event]:
        """Do what a request's control asks for, between two steps."""
        one = running[name]
        one.turn.heed_control()
        if one.turn.done:
            del running[name]
            self._engine.abort_request([name])
            yield from one.turn.finish()


@dataclass(slots=True, init=False)
class _Running:
    """A turn, and what vLLM has evaluated for it."""

    turn: Turn
    sampled: list[int]
    _context: list[int]
    _fresh: int | None

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.sampled, self._context, self._fresh = [], [], None

    def began(self, context: list[int]) -> None:
        """A segment begins behind `context`."""
        evaluated = [*self._context, *self.sampled[:-1]]  # the last sampled id has not been evaluated
        self._fresh = len(context) - common_prefix(evaluated, context) if self._context else None
        self._context, self.sampled = context, []

    def recomputed(self, output: Any) -> int:
        """Prompt tokens of this segment that vLLM evaluated again, as it reports them; asked once."""
        if self._fresh is None:
            return 0
        evaluated = len(self._context) - (output.num_cached_tokens or 0)
        again, self._fresh = max(0, evaluated - self._fresh), None
        return again
