"""vLLM's V2 model runner on a CPU, through Triton's interpreter: in a process of its own, because what
makes that possible must be set before anything imports vLLM. `test_vllm_v2_runner.py` reads what it finds.

    python tests/vllm_v2_script.py MODEL RESULT.json
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

PROMPT = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n"
SAMPLES = {f"n{i}": 4 + 3 * i for i in range(4)}
"""Name of a request with several samples -> its budget."""
SETTINGS: list[dict[str, Any]] = [
    dict(end_message="\nTime is up.", thinking_token_budget=25),
    dict(soft_limit=5, thinking_token_budget=90, soft_limit_message="Hurry. "),
    dict(min_thinking_tokens=12, thinking_token_budget=30, wait_strings=("Hmm", "Wait, Wait")),
    dict(grace_tokens=10, boundary="sentence", thinking_token_budget=30),
    dict(reserve_answer_tokens=20),
    dict(thinking_token_budget=0, waits=0),
    dict(thinking_token_budget=None, waits=2),
]


def requests(kind: str) -> list[Any]:
    """What is asked greedily, and must be what another engine of bide says."""
    from test_vllm_plugin import request

    found = [request(i, "qwen3" if kind in ("settings", "preempted") else kind) for i in range(12)]
    if kind == "settings":
        found = [request(i, ("qwen3", "s1")[i % 2], **SETTINGS[i % len(SETTINGS)]) for i in range(14)]
    # Long enough for any cut; the interpreter needs a good part of a second for each step.
    return [dataclasses.replace(one, max_tokens=45 if kind != "preempted" else 70) for one in found]


KINDS = ["qwen3", "s1", "deepseek-r1", "settings", "preempted"]


def interpret_triton() -> None:
    """Before vLLM is imported: it takes a CPU for one that has Triton."""
    os.environ.update(TRITON_INTERPRET="1", VLLM_USE_V2_MODEL_RUNNER="1")
    import triton.backends
    from triton.backends.compiler import GPUTarget

    class Driver:
        @staticmethod
        def is_active() -> bool:
            return True

        def get_current_target(self) -> Any:
            return GPUTarget("cpu", 0, 1)

    triton.backends.backends["cpu"] = types.SimpleNamespace(compiler=None, driver=Driver)


class Script:
    def __init__(self, model: Path) -> None:
        import transformers

        from bide.engines import vllm_plugin
        from bide.engines.hf_tokenizer import HuggingFaceTokenizer

        self.model = model
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        self.tokenizer = HuggingFaceTokenizer(tokenizer, frozenset([tokenizer.eos_token_id]))
        self.calls = {"with a context": 0, "without": 0}
        self.known = {"found": 0, "not found": 0}
        plugin: Any = vllm_plugin.BudgetForcing
        apply, known = plugin.apply, plugin._known

        def counted_apply(this: Any, logits: Any, ctx: Any = None) -> Any:
            self.calls["without" if ctx is None else "with a context"] += 1
            return apply(this, logits, ctx)

        def counted_known(this: Any, *arguments: Any) -> Any:
            entry = known(this, *arguments)
            self.known["not found" if entry is None else "found"] += 1
            return entry

        plugin.apply, plugin._known = counted_apply, counted_known

    def engine(self, **more: Any) -> Any:
        from test_vllm_plugin import engine_with_plugin

        return engine_with_plugin(self.model, max_model_len=256, **({"max_num_seqs": 12} | more))

    def run(self) -> dict[str, Any]:
        from test_vllm_plugin import run

        engine = self.engine()
        found: dict[str, Any] = {kind: run(engine, self.tokenizer, requests(kind)) for kind in KINDS[:4]}
        found["plain alone"] = self.plain(engine, others=0)
        found["plain among others"] = self.plain(engine, others=6)
        found["samples"] = self.samples(engine)
        found["unpromising"] = self.unpromising(engine)
        found["moved"] = self.moved(engine, samples=1)
        found["shared"] = self.moved(engine, samples=2)
        found["preempted"], found["preemptions"] = self.preempted()
        found["calls"], found["known"] = self.calls, self.known
        found["speculative"] = self.speculative()
        return found

    def plain(self, engine: Any, others: int) -> list[int]:
        import vllm

        from test_vllm_plugin import drain

        prompt = {"prompt_token_ids": self.tokenizer.encode(PROMPT)}
        engine.add_request("plain", prompt, vllm.SamplingParams(max_tokens=25, temperature=0.0, detokenize=False))
        for i in range(others):
            extra = dict(thinking_token_budget=3 + i, waits=i % 3, reasoning_format="qwen3")
            params = vllm.SamplingParams(max_tokens=25, temperature=0.0, detokenize=False, extra_args=extra)
            engine.add_request(str(i), prompt, params)
        return drain(engine)["plain"]

    def samples(self, engine: Any) -> dict[str, list[int]]:
        import vllm

        from test_vllm_plugin import FINAL, drain

        for i, (name, budget) in enumerate(SAMPLES.items()):
            extra = dict(thinking_token_budget=budget, waits=i % 3, reasoning_format="qwen3")
            params = vllm.SamplingParams(
                max_tokens=40, temperature=1.0, n=3, seed=i, detokenize=False, output_kind=FINAL, extra_args=extra,
                logit_bias={i: -8.0 for i in (256, 257, 259)},
            )  # fmt: skip
            engine.add_request(name, {"prompt_token_ids": self.tokenizer.encode(PROMPT)}, params)
        return drain(engine)

    def unpromising(self, engine: Any) -> dict[str, str]:
        """What is out of any proportion must be refused, or work. In no case may the engine end."""
        import vllm

        from test_vllm_plugin import drain

        kinds: dict[str, dict[str, Any]] = {
            "budget": dict(thinking_token_budget=1 << 40, waits=1),
            "waits": dict(thinking_token_budget=9, waits=1 << 40),
            "minimum": dict(thinking_token_budget=1 << 40, min_thinking_tokens=1 << 35),
            "wait string": dict(thinking_token_budget=9, waits=1, wait_strings=["Wait " * 1500]),
            "message": dict(thinking_token_budget=9000, soft_limit=5000, soft_limit_message="Hurry " * 1000),
            "end message": dict(thinking_token_budget=9000, end_message="Stop " * 1200),
            "prefix": dict(thinking_token_budget=9, answer_prefix="So " * 600),
        }
        found: dict[str, str] = {}
        for name, extra in kinds.items():
            params = vllm.SamplingParams(
                max_tokens=14, temperature=0.0, detokenize=False, extra_args=extra | {"reasoning_format": "qwen3"}
            )
            try:
                engine.add_request(name, {"prompt_token_ids": self.tokenizer.encode(PROMPT)}, params)
            except Exception as error:  # ValueError, or since 0.31 an error of its own
                found[name] = f"refused: {error}"
                continue
            found[name] = self.tokenizer.decode(drain(engine)[name])
        return found

    def preempted(self) -> tuple[list[list[int]], int]:
        from test_vllm_plugin import run

        engine = self.engine(
            num_gpu_blocks_override=14, max_num_batched_tokens=32, max_num_seqs=8, enable_chunked_prefill=True
        )
        scheduler = engine.engine_core.engine_core.scheduler
        count, preempt = [], scheduler._preempt_request
        scheduler._preempt_request = lambda *a, **k: (count.append(1), preempt(*a, **k))[1]
        return run(engine, self.tokenizer, requests("preempted")), len(count)

    def moved(self, engine: Any, samples: int) -> list[list[int]]:
        """A request leaves its slot, comes back elsewhere, and more others than the table has rows pass
        through the slot that it had. Of two samples, which share one object of parameters, the second
        is away meanwhile. The model here writes nothing but "a"."""
        import torch
        import vllm

        from bide.engines.vllm_plugin import BudgetForcing

        counts, ids = torch.zeros(2, 2, dtype=torch.int32), torch.zeros(2, 256, dtype=torch.int32)
        states = types.SimpleNamespace(
            device="cpu", max_num_reqs=2, all_token_ids=types.SimpleNamespace(gpu=ids),
            prompt_len=types.SimpleNamespace(np=counts[0].numpy()),
            prefill_len=types.SimpleNamespace(np=counts[1].numpy()),
        )  # fmt: skip
        plugin: Any = BudgetForcing(engine.vllm_config, states)
        prompt = self.tokenizer.encode(PROMPT)

        def params(budget: int) -> Any:
            extra = dict(thinking_token_budget=budget, reasoning_format="qwen3")
            return vllm.SamplingParams(max_tokens=100, temperature=0.0, extra_args=extra)

        def enter(slot: int, params: Any, output: list[int]) -> None:
            known = prompt + output
            ids[slot, : len(known)] = torch.tensor(known)
            counts[:, slot] = torch.tensor([len(prompt), len(known)])
            plugin.add_request(slot, params)
            plugin.apply_staged_writes()

        def steps(slot: int, output: list[int], count: int) -> None:
            for _ in range(count):
                logits = torch.zeros(1, engine.vllm_config.model_config.get_vocab_size())
                logits[0, self.tokenizer.encode("a")] = 5.0
                known = prompt + output
                slots = torch.tensor([slot], dtype=torch.int32)
                ctx = types.SimpleNamespace(
                    idx_mapping_np=slots.numpy(), expanded_idx_mapping=slots, input_ids=torch.tensor(known[-1:]),
                    pos=torch.tensor([len(known) - 1]),
                )  # fmt: skip
                output.append(int(plugin.apply(logits, ctx).argmax()))

        mine, first, second = params(20), [], []  # type: Any, list[int], list[int]
        enter(0, mine, first)
        steps(0, first, 5)
        if samples == 1:
            enter(1, mine, first)  # it was preempted in between
        else:
            enter(1, mine, second)
            steps(1, second, 3)
        busy = 1 if samples == 1 else 0
        for i in range(100):
            enter(1 - busy, params(i), [])
            steps(1 - busy, [], 1)
        if samples == 2:
            enter(1, mine, second)
            steps(1, second, 10)
        steps(busy, first, 25)
        if samples == 2:
            steps(1, second, 17)
        return [first, second][:samples]

    def speculative(self) -> str:
        ngram = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 2}
        try:
            self.engine(speculative_config=ngram)
        except ValueError as error:
            return str(error)
        return "not refused"


if __name__ == "__main__":
    interpret_triton()
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest

    conftest.pytest_configure()
    Path(sys.argv[2]).write_text(json.dumps(Script(Path(sys.argv[1])).run()))
