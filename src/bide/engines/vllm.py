"""vLLM in this process: one call for any mixture of budgets, every request going on by itself.

vLLM samples segments; what was forced goes into the prompt of the next one, which its prefix
cache serves. No request waits for another: as soon as one segment ends, the next is added to the
running batch. Token ids all the way, nothing is tokenised again. Only `LLMEngine`, `EngineArgs` and
`SamplingParams` are used, which vLLM documents.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import vllm
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind

from ..budget_forcing import Action
from ..errors import CapabilityError, EngineError, ModelError, UsageError
from ..types import Sampling
from .base import Capabilities, Event, Request, check_capabilities
from .hf_tokenizer import HuggingFaceTokenizer
from .turn import Turn, make_turns, segment_seed


class VLLMEngine:
    """`model`: what vLLM takes (a directory or "org/name"; "hf:org/name" too).

    `context`: the window in tokens, None for the model's own. `parallel`: most sequences in a
    batch. `streaming`: whether tokens are given out as they come; without, vLLM reports whole
    segments, which costs less for each step, and formats whose end marker has several tokens are
    streamed all the same. (Streaming costs some 10 microseconds of Python a token; with
    `engine_args={"stream_interval": 8}` vLLM reports 8 at a time.) `engine_args`: any further
    `vllm.EngineArgs` (tensor_parallel_size, pipeline_parallel_size, gpu_memory_utilization,
    enforce_eager, speculative_config, ...). Raises `ModelError`.
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
        version = _version()
        if version < _OLDEST:
            raise ModelError(
                f"the engine 'vllm' needs vLLM {'.'.join(map(str, _OLDEST))} or later, this is {vllm.__version__}",
                hint="pip install --upgrade vllm",
            )
        self.model = model
        arguments: dict[str, Any] = {"enable_prefix_caching": True, "disable_log_stats": True, **(engine_args or {})}
        arguments |= {"model": model.removeprefix("hf:"), "max_model_len": context, "max_num_seqs": parallel}
        try:
            self._engine: Any = vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**arguments))
        except (ValueError, TypeError, OSError, RuntimeError, AssertionError, VLLMValidationError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ModelError(f"vLLM cannot load {model!r}: {lines[0]}") from error
        tokenizer = self._engine.get_tokenizer()
        self.tokenizer = HuggingFaceTokenizer(tokenizer, frozenset({int(tokenizer.eos_token_id)}))
        self._window = int(self._engine.model_config.max_model_len)
        self._streaming = streaming
        self._look_every = 0.0 if streaming else _LOOK_SECONDS
        self._gather = 1 if streaming else _GATHER_STEPS
        self._cached = bool(arguments["enable_prefix_caching"])
        self._names = itertools.count()
        self.capabilities = Capabilities(
            token_ids=True,
            per_token_control=streaming,
            masks_tokens=not arguments.get("speculative_config") or version >= _MASKS_DRAFTS,
            keeps_cache=self._cached,
            streaming=streaming,
            parallel=parallel,
            notes=() if self._cached else ("without prefix caching, every continuation evaluates its prompt again",),
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Work on all `requests`, up to `parallel` at a time."""
        if self._engine is None:
            raise EngineError("the engine is closed")
        if self._engine.has_unfinished_requests():
            raise CapabilityError("the engine 'vllm' runs one generate() at a time", hint="put all into one call")
        check_capabilities(self.name, self.capabilities, requests)
        for sampling in {request.sampling for request in requests}:
            try:
                vllm.SamplingParams(**_drawing(sampling))
            except (ValueError, VLLMValidationError) as error:  # it knows limits of its own
                raise CapabilityError(f"vLLM cannot sample so: {error}") from error
        # All of them before the first step: a mistake in the last one must not cost the work on the others.
        turns = iter(make_turns(requests, self.tokenizer, engine=self.name, model=self.model, window=self._window))
        running: dict[str, _Running] = {}
        held: list[_Running] = []  # their next segments are not in the batch yet
        next_look, held_steps = 0.0, 0
        try:
            while True:
                # No more than fit into the batch: vLLM would put every continuation behind those that wait.
                while len(running) + len(held) < self.capabilities.parallel:
                    if (turn := next(turns, None)) is None:
                        break
                    turn.heed_control()
                    self._go_on(one := _Running(turn, self.tokenizer), held)
                    yield from one.events()
                held_steps = held_steps + 1 if held else 0
                if held_steps >= self._gather or len(held) * _GATHER_SHARE >= len(running):
                    for one in held:
                        self._submit(one, running)
                    held, held_steps = [], 0
                if not running:
                    break
                outputs = self._engine.step()
                moved: list[_Running] = []
                if (now := time.perf_counter()) >= next_look:
                    next_look = now + self._look_every
                    moved = self._heed_controls(running)
                for output in outputs:
                    if (found := running.get(output.request_id)) is not None:  # else it was aborted: void
                        self._take(found, output, running, held)
                        moved.append(found)
                for one in moved:  # vLLM has its next segments: now there is time for texts
                    yield from one.events()
        finally:
            self._engine.abort_request(list(running))

    def close(self) -> None:
        """Free the model."""
        self._engine = None

    def _heed_controls(self, running: dict[str, _Running]) -> list[_Running]:
        """Do what the requests' controls ask for, between two steps. Returns the turns that it ended."""
        ended = []
        for name in [name for name, one in running.items() if one.control.pending]:
            one = running[name]
            one.turn.heed_control()
            if one.turn.done:
                del running[name]
                self._engine.abort_request([name])
                ended.append(one)
        return ended

    def _go_on(self, one: _Running, held: list[_Running]) -> None:
        """Take what is forced, then ask for the next segment, unless the turn is over."""
        turn = one.turn
        if turn.done:
            return
        turn.forcer.drain_forced()
        if turn.done:
            return
        if len(turn.prompt_ids) + turn.forcer.context_length >= self._window:
            turn.forcer.finish("length")  # mode="s1" keeps more ids in view than it puts out
            return
        held.append(one)

    def _submit(self, one: _Running, running: dict[str, _Running]) -> None:
        turn, context = one.turn, one.turn.context
        name = f"{turn.index}-{next(self._names)}"
        one.evaluated = len(context) - 1
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
            # Below the minimum vLLM masks what would stop it: `banned`, and end-of-turn ids that only vLLM
            # knows. A logit_bias would be a mask too, but vLLM refuses it beside speculative decoding.
            min_tokens=1 if banned else 0,
            **_drawing(sampling),
            seed=segment_seed(sampling.seed, position) if sampling.temperature > 0 else None,
            stop_token_ids=sorted({end[0] for end in ends if len(end) == 1} | self.tokenizer.eos_ids | banned),
            detokenize=False,
            output_kind=kind,
            skip_clone=True,  # made for one segment: vLLM need not copy it
        )

    def _take(self, one: _Running, output: Any, running: dict[str, _Running], held: list[_Running]) -> None:
        """Feed what was sampled; go on behind a segment that has ended, or must."""
        turn, result = one.turn, output.outputs[0]
        ids = list(result.token_ids)
        one.count(output, len(ids))
        if result.finish_reason == "stop" and ids and ids[-1] not in one.ends:
            ids[-1] = min(self.tokenizer.eos_ids)  # an end of turn that only the model's settings name
        _, action = turn.forcer.feed_segment(ids)
        if turn.done or action is Action.FORCE or output.finished:
            del running[output.request_id]
            if not output.finished:
                self._engine.abort_request([output.request_id])
            one.shared = min(one.evaluated, len(turn.prompt_ids) + turn.forcer.context_length)
            self._go_on(one, held)


def _drawing(sampling: Sampling) -> dict[str, Any]:
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1}


class _Running:
    """A turn in the batch, and what vLLM has evaluated for it."""

    __slots__ = ("control", "ends", "evaluated", "shared", "turn")

    def __init__(self, turn: Turn, tokenizer: HuggingFaceTokenizer) -> None:
        self.turn = turn
        self.control = turn.request.control
        self.ends = tokenizer.eos_ids | {end[0] for end in turn.markers.ends}
        self.evaluated = 0
        """Ids that vLLM has evaluated: all but the latest sampled one."""
        self.shared: int | None = None
        """How many of them the segment before had evaluated, until that is counted."""

    def count(self, output: Any, sampled: int) -> None:
        """A segment has given `sampled` ids; its first output says what the prefix cache held."""
        if self.shared is not None:
            self.turn.recomputed += max(0, self.shared - (output.num_cached_tokens or 0))
            self.shared = None
        self.evaluated += sampled

    def events(self) -> Iterator[Event]:
        """What has become output, and the end of the turn if it is over."""
        return self.turn.finish() if self.turn.done else self.turn.events()


def _version() -> tuple[int, ...]:
    found = str(vllm.__version__)
    return _NEWEST if "dev" in found else tuple(map(int, re.findall(r"\d+", found)[:2]))


_NEWEST = sys.maxsize, 0
"""What is built from source counts as: such builds often bear no number."""
_OLDEST = 0, 14
"""The oldest vLLM that the tests have run with."""
_MASKS_DRAFTS = 0, 22
"""From here on vLLM is known to keep `min_tokens` under speculative decoding; 0.14 drops it with a warning."""
_LOOK_SECONDS = 0.05
"""How often controls are looked at where segments come whole: a look costs time for every row, and
no person notices. Engines that stream promise to act after the token in flight."""
_GATHER_STEPS = 4
_GATHER_SHARE = 8
"""Where segments come whole, a continuation waits for others, so that they begin in one step: a step
that evaluates prompts costs a GPU up to twice a pure one. For at most so many steps, and not while
as many as one in `_GATHER_SHARE` of the batch are waiting."""
