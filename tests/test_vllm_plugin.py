"""The logits processor inside real vLLM (V1 runner, CPU): exact, and the text of the token-at-a-time engine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (see .ci/vllm)")

import vllm
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from bide.engines.base import Engine, Request
from bide.engines.turn import Turn
from bide.sampling import ask_request, generate
from bide.thinking_budget import ThinkingBudget
from bide.types import Sampling

FINAL = RequestOutputKind.FINAL_ONLY
PLUGIN = "bide.engines.vllm_plugin:BudgetForcing"


def engine_with_plugin(model: Path, **more: Any) -> Any:
    arguments: dict[str, Any] = dict(
        model=str(model), max_num_seqs=16, enforce_eager=True, dtype="float32", block_size=32,
        logits_processors=[PLUGIN], disable_log_stats=True,
    )  # fmt: skip
    return vllm.LLMEngine.from_engine_args(vllm.EngineArgs(**(arguments | more)))


@pytest.fixture(scope="module")
def reference(tiny_vllm_model: Path) -> Engine:
    from bide.engines.transformers import TransformersEngine

    return TransformersEngine(str(tiny_vllm_model), device="cpu", dtype="float32", parallel=1)


@pytest.fixture(scope="module")
def plugged(tiny_vllm_model: Path) -> Any:
    return engine_with_plugin(tiny_vllm_model)


def request(i: int, form: str = "qwen3", sampling: Sampling = Sampling(), **more: Any) -> Request:
    settings: dict[str, Any] = dict(thinking_token_budget=5 + 7 * i % 90, waits=i % 3) | more
    return ask_request(
        f"Question {i}?", budget=ThinkingBudget(**settings), max_tokens=60 + i % 60, format=form, sampling=sampling
    )


def xargs(request: Request) -> dict[str, Any]:
    """The settings as a client sends them: flat, and only what is not the default."""
    budget, default = request.budget, ThinkingBudget()
    found = {name: getattr(budget, name) for name in budget.__slots__}
    found = {name: value for name, value in found.items() if value != getattr(default, name)}
    if "wait_strings" in found:
        found["wait_strings"] = list(found["wait_strings"])
    return found | {"reasoning_format": request.format}


def run(engine: Any, tokenizer: Any, requests: list[Request], **more: Any) -> list[list[int]]:
    for i, one in enumerate(requests):
        turn = Turn(i, one, tokenizer, engine="", model="", window=None)
        params = vllm.SamplingParams(
            max_tokens=one.max_tokens, temperature=one.sampling.temperature, extra_args=xargs(one),
            detokenize=False, **more,
        )  # fmt: skip
        engine.add_request(str(i), {"prompt_token_ids": turn.prompt_ids}, params)
    found: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                found[output.request_id] = list(output.outputs[0].token_ids)
    return [found[str(i)] for i in range(len(requests))]


@pytest.mark.parametrize("form", ["qwen3", "s1", "deepseek-r1"])
def test_greedy_equals_the_token_at_a_time_engine(plugged: Any, reference: Engine, form: str) -> None:
    requests = [request(i, form) for i in range(64)]
    theirs = generate(reference, requests)
    assert run(plugged, reference.tokenizer, requests) == [one.token_ids for one in theirs]
    assert {"budget", "natural", "eos"} <= {one.budget["ended_by"] for one in theirs}
    assert max(one.budget["waits"] for one in theirs) == 2


def test_greedy_with_all_other_settings(plugged: Any, reference: Engine) -> None:
    kinds: list[dict[str, Any]] = [
        dict(end_message="\nTime is up.", thinking_token_budget=40),
        dict(soft_limit=5, thinking_token_budget=90),
        dict(soft_limit=0.5, thinking_token_budget=80, soft_limit_message="Hurry. "),
        dict(min_thinking_tokens=20, thinking_token_budget=40, wait_strings=("Hmm", "Wait, Wait")),
        dict(grace_tokens=10, boundary="sentence", thinking_token_budget=60),
        dict(reserve_answer_tokens=30),
        dict(answer_prefix="So: "),
        dict(thinking_token_budget=0, waits=0),
        dict(thinking_token_budget=None, waits=2),
    ]
    requests = [request(i, ("qwen3", "s1")[i % 2], **kinds[i % len(kinds)]) for i in range(36)]
    theirs = generate(reference, requests)
    assert run(plugged, reference.tokenizer, requests) == [one.token_ids for one in theirs]
    assert sum(one.budget["forced_tokens"] for one in theirs) > 200


def test_a_maximum_holds_where_the_end_marker_has_two_tokens(plugged: Any, reference: Engine) -> None:
    """cot: "Final Answer". The other text is allowed to differ: what was sampled cannot be taken back."""
    requests = [request(i, "cot", waits=0, thinking_token_budget=3 + i % 9) for i in range(32)]
    encode = reference.tokenizer.encode
    close, newline = encode("\nFinal Answer:"), encode("\n")
    ends = [encode(text) for text in ("Final Answer", " Final Answer", "Final answer", " Final answer")]
    cut = 0
    for one, ids in zip(requests, run(plugged, reference.tokenizer, requests)):
        budget = one.budget.thinking_token_budget
        assert budget is not None
        end = min(at for at in range(len(ids)) if ids[at : at + 2] in ends)
        lines = 0
        while lines < 2 and [ids[end - lines - 1]] == newline:  # forced: they are not counted
            lines += 1
        assert end - lines <= budget
        cut += budget in (end - 1, end - 2) and ids[end - 1 : end - 1 + len(close)] == close
    assert 5 < cut < 32


def test_other_requests_of_the_batch_are_not_touched(plugged: Any, reference: Engine) -> None:
    tokenizer = reference.tokenizer
    prompt = tokenizer.encode("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n")
    params = vllm.SamplingParams(max_tokens=50, temperature=0.0, detokenize=False)
    plugged.add_request("plain", {"prompt_token_ids": prompt}, params)
    alone = drain(plugged)["plain"]
    plugged.add_request("plain", {"prompt_token_ids": prompt}, params)
    for i in range(20):
        extra = dict(thinking_token_budget=5 + i, waits=i % 3, reasoning_format="qwen3")
        budgeted = vllm.SamplingParams(max_tokens=60, temperature=0.0, detokenize=False, extra_args=extra)
        plugged.add_request(str(i), {"prompt_token_ids": prompt}, budgeted)
    assert drain(plugged)["plain"] == alone


def drain(engine: Any) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                for one in output.outputs:
                    found[output.request_id + (f"/{one.index}" if one.index else "")] = list(one.token_ids)
    return found


def check_budget(ids: list[int], budget: int, tokenizer: Any) -> bool:
    """Whether the thought was cut, which must then be after exactly `budget` ids, and a newline if need be."""
    (end,) = tokenizer.encode("</think>")
    at = ids.index(end)
    if not tokenizer.decode(ids[at:]).startswith("</think>" + CLOSE):
        assert at <= budget
        return False
    assert at == budget or (at == budget + 1 and [ids[budget]] == tokenizer.encode("\n"))
    return True


CLOSE = "\n\nFinal Answer:"


@pytest.mark.parametrize(
    "sampling",
    [
        dict(temperature=1.0),
        dict(temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.2, presence_penalty=1.0),
        dict(temperature=1.0, min_p=0.05, seed=3),
        dict(temperature=1.0, n=4),
    ],
)
def test_every_sampled_request_is_within_its_budget(plugged: Any, reference: Engine, sampling: dict[str, Any]) -> None:
    """And a thought that is cut has exactly its budget."""
    tokenizer = reference.tokenizer
    prompt = tokenizer.encode("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n")
    budgets = {}
    for i in range(64):
        budgets[str(i)] = 5 + i
        extra = dict(thinking_token_budget=5 + i, waits=i % 3, reasoning_format="qwen3")
        params = vllm.SamplingParams(max_tokens=120, detokenize=False, output_kind=FINAL, extra_args=extra, **sampling)
        plugged.add_request(str(i), {"prompt_token_ids": prompt}, params)
    found = drain(plugged)
    assert len(found) == 64 * sampling.get("n", 1)
    cut = sum(check_budget(ids, budgets[name.split("/")[0]], tokenizer) for name, ids in found.items())
    assert 3 < cut < len(found)


def test_samples_of_one_request_differ_and_take_their_waits(plugged: Any, reference: Engine) -> None:
    tokenizer = reference.tokenizer
    prompt = tokenizer.encode("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n")
    extra = dict(waits=2, thinking_token_budget=100, wait_strings=["Wait, Wait"], reasoning_format="qwen3")
    params = vllm.SamplingParams(
        max_tokens=150, temperature=1.0, n=8, detokenize=False, output_kind=FINAL, extra_args=extra
    )
    plugged.add_request("n", {"prompt_token_ids": prompt}, params)
    texts = [tokenizer.decode(ids) for ids in drain(plugged).values()]
    assert len(set(texts)) == 8
    assert all(text.count("Wait, Wait") == 2 for text in texts if CLOSE not in text)
    assert any(CLOSE not in text for text in texts)


REFUSED: list[tuple[dict[str, Any], str]] = [
    (dict(thinking_token_budget=-1), "must be 0 or more"),
    (dict(thinking_token_budget="many"), "whole number"),
    (dict(thinking_budget=5), "did you mean 'thinking_token_budget'"),
    (dict(max_thinking_tokens=5), "did you mean 'min_thinking_tokens'"),
    (dict(thinking_token_budget=5, min_thinking_tokens=6), "above the maximum"),
    (dict(waits=1, wait_strings=[""]), "without a wait string"),
    (dict(waits=1, wait_strings=["a"] * 9), "at most 8"),
    (dict(waits=1, wait_strings=[5]), "strings"),
    (dict(thinking_token_budget=5, mode="s1"), "no mode='s1'"),
    (dict(thinking_token_budget=50, loop_guard=3), "no loop_guard"),
    (dict(waits=1, reasoning_format="quen3"), "unknown reasoning format"),
    (dict(waits=1, thinking_opened="yes"), "true or false"),
]


@pytest.mark.parametrize(("extra", "message"), REFUSED)
def test_settings_that_cannot_be_are_refused_and_the_engine_lives(
    plugged: Any, reference: Engine, extra: dict[str, Any], message: str
) -> None:
    if tuple(map(int, vllm.__version__.split(".")[:2])) < (0, 20):
        pytest.skip("this vLLM checks settings in its server only; here the request ends at once, and is logged")
    params = vllm.SamplingParams(max_tokens=5, extra_args=extra)
    with pytest.raises(Exception, match=message):  # ValueError, or since 0.31 an error of its own
        plugged.add_request("bad", {"prompt_token_ids": [5, 6]}, params)
    assert run(plugged, reference.tokenizer, [request(1)])[0]


def test_two_budgets_and_grammars_are_refused(plugged: Any) -> None:
    from bide.engines.vllm_settings import check_sampling
    from bide.errors import UsageError

    with pytest.raises(UsageError, match="given twice"):
        check_sampling(SimpleNamespace(extra_args={"waits": 1}, thinking_token_budget=5))
    structured = StructuredOutputsParams(regex="a*")
    params = vllm.SamplingParams(extra_args={"waits": 1}, structured_outputs=structured)
    with pytest.raises(UsageError, match="would break the grammar"):
        check_sampling(params)
    assert check_sampling(vllm.SamplingParams(extra_args={"kv_transfer_params": {}})) is None


# Last: a second vLLM in one process takes the first one's distributed state with it when it closes.


@pytest.mark.parametrize("cached", [True, False])
def test_preemption_and_chunked_prefill_change_nothing(tiny_vllm_model: Path, reference: Engine, cached: bool) -> None:
    """A cache of 24 blocks of 32 tokens for 16 turns of up to 150: sequences are put out and taken back."""
    tight = engine_with_plugin(
        tiny_vllm_model, max_model_len=512, num_gpu_blocks_override=24, max_num_batched_tokens=48,
        enable_prefix_caching=cached, enable_chunked_prefill=True,
    )  # fmt: skip
    scheduler = tight.engine_core.engine_core.scheduler
    preempted, plain = [], scheduler._preempt_request
    scheduler._preempt_request = lambda *a, **k: (preempted.append(1), plain(*a, **k))[1]
    requests = [request(i, ("qwen3", "s1")[i % 2]) for i in range(48)]
    theirs = generate(reference, requests)
    assert run(tight, reference.tokenizer, requests) == [one.token_ids for one in theirs]
    assert len(preempted) > 3


def test_speculative_decoding_is_refused_at_the_start(tiny_vllm_model: Path) -> None:
    with pytest.raises(Exception, match=r"speculative|initialization failed"):  # 0.25: in another process
        engine_with_plugin(
            tiny_vllm_model, speculative_config={"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
        )
