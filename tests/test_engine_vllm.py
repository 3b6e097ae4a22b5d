"""Real vLLM on a tiny random model: the same tokens as an engine without a batch scheduler."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (see .ci/vllm)")

from bide.engines.base import DoneEvent, Engine, Request, RequestControl
from bide.engines.vllm import VLLMEngine
from bide.errors import CapabilityError, ModelError, UsageError
from bide.sampling import ask_request, generate
from bide.thinking_budget import ThinkingBudget
from bide.types import Completion, Sampling

EAGER: dict[str, Any] = {"enforce_eager": True, "dtype": "float32", "block_size": 32}


def request(i: int, form: str = "qwen3", sampling: Sampling = Sampling(), **more: Any) -> Request:
    budget = ThinkingBudget(5 + 7 * i % 90, waits=i % 3, **more)
    return ask_request(f"Question {i}?", budget=budget, max_answer_tokens=10, format=form, sampling=sampling)


def tokens(done: list[Completion]) -> list[tuple[Any, ...]]:
    return [(one.token_ids, one.forced, one.budget, one.finish_reason) for one in done]


@pytest.fixture(scope="module")
def reference(tiny_vllm_model: Path) -> Engine:
    from bide.engines.transformers import TransformersEngine

    return TransformersEngine(str(tiny_vllm_model), device="cpu", dtype="float32", parallel=1)


@pytest.mark.parametrize("form", ["qwen3", "s1", "cot"])  # cot: end markers of two tokens
def test_greedy_equals_the_token_at_a_time_engine(tiny_vllm: Engine, reference: Engine, form: str) -> None:
    requests = [request(i, form) for i in range(64)]  # four times what fits into the batch
    ours, theirs = generate(tiny_vllm, requests), generate(reference, requests)
    assert tokens(ours) == tokens(theirs)
    assert all(one.budget["exact"] for one in ours)
    assert {"budget", "natural", "eos"} <= {one.budget["ended_by"] for one in ours}
    assert max(one.budget["waits"] for one in ours) == 2


def test_seeds_do_not_depend_on_the_batch(tiny_vllm: Engine) -> None:
    requests = [request(i, sampling=Sampling(0.8, top_p=0.9, top_k=20, seed=i)) for i in range(20)]
    together = generate(tiny_vllm, requests)
    alone = [generate(tiny_vllm, [one])[0] for one in requests]
    assert sum(a.token_ids == b.token_ids for a, b in zip(together, alone)) >= 19  # low bits of another batch
    assert all(one.budget["exact"] for one in together)


def test_an_empty_wait_masks_the_end(tiny_vllm: Engine) -> None:
    done = generate(tiny_vllm, [request(i, wait_strings="") for i in range(1, 20, 3)])
    assert any(one.budget["waits"] for one in done) and all(one.budget["exact"] for one in done)


def test_mode_s1(tiny_vllm: Engine, reference: Engine) -> None:
    requests = [request(i, "s1", mode="s1") for i in range(12)]
    assert tokens(generate(tiny_vllm, requests)) == tokens(generate(reference, requests))


def test_recomputation_is_at_most_a_block_for_each_segment(tiny_vllm: Engine) -> None:
    (done,) = generate(tiny_vllm, [ask_request("q", budget=ThinkingBudget(300, waits=2), format="qwen3")])
    segments = done.budget["waits"] + 2
    assert done.timing.recomputed_prompt_tokens <= 32 * segments


def test_controls_act_between_steps(tiny_vllm: Engine) -> None:
    control = RequestControl()
    long = ThinkingBudget(400, min_thinking_tokens=400)
    requests = [ask_request("q", budget=long, format="qwen3", control=control), request(3), request(4)]
    found = {}
    for event in tiny_vllm.generate(requests):
        if isinstance(event, DoneEvent):
            found[event.index] = event.completion
        elif event.index == 0 and event.used >= 10:
            control.cancel()
    assert found[0].finish_reason == "client" and found[0].budget["used"] < 400
    assert found[1].budget["exact"] and found[2].budget["exact"]


def test_mistakes(tiny_vllm: Engine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a model"):
        VLLMEngine(None)
    with pytest.raises(UsageError, match="engine_args may not hold max_model_len"):
        VLLMEngine("any", engine_args={"max_model_len": 5})
    with pytest.raises(ModelError, match="vLLM cannot load"):
        VLLMEngine(str(tmp_path))
    running = tiny_vllm.generate([request(3), request(4)])
    next(running)
    with pytest.raises(CapabilityError, match="one generate"):
        next(tiny_vllm.generate([request(5)]))
    running.close()  # type: ignore[attr-defined]
    assert astuple(tiny_vllm.capabilities)
    assert generate(tiny_vllm, [request(5)])[0].budget["exact"]


# Last: a second vLLM in one process takes the first one's distributed state with it when it closes.


def test_whole_segments_give_the_same(tiny_vllm_model: Path, reference: Engine) -> None:
    whole = VLLMEngine(str(tiny_vllm_model), streaming=False, parallel=16, engine_args=EAGER)
    requests = [request(i, form) for form in ("qwen3", "cot") for i in range(24)]
    assert tokens(generate(whole, requests)) == tokens(generate(reference, requests))
    whole.close()


def test_preemption_chunked_prefill_and_no_prefix_cache_change_nothing(
    tiny_vllm_model: Path, reference: Engine
) -> None:
    """A cache of 24 blocks of 32 tokens for 16 turns of up to 150: sequences are put out and taken back."""
    tight = VLLMEngine(
        str(tiny_vllm_model),
        parallel=16,
        context=512,
        engine_args={
            **EAGER, "num_gpu_blocks_override": 24, "max_num_batched_tokens": 48, "enable_prefix_caching": False,
            "enable_chunked_prefill": True,
        },
    )  # fmt: skip
    requests = [request(i) for i in range(48)]
    assert tokens(generate(tight, requests)) == tokens(generate(reference, requests))
    assert not tight.capabilities.keeps_cache and tight.capabilities.notes
    tight.close()
