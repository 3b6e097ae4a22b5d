"""What bide's logits processor costs a step inside vLLM, without a model: rows x history x settings.

    PYTHONPATH=tests python benchmarks/bench_logits_processor.py            # GPU if there is one, else CPU
    PYTHONPATH=tests python benchmarks/bench_logits_processor.py --rows 64 --vocabulary 8192

One step is what the V1 runner does: `update_state(None)`, one more id in each output list, `apply`.
Two times: the host's (how long the call keeps the CPU, which launches the rest of the step) and,
on a GPU, the device's (with events, the kernel and the copy of the ids). Medians of --steps steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import vllm
from vllm.v1.sample.logits_processor import BatchUpdate

from bide.engines.vllm_plugin import BudgetForcing
from tiny_models import save_tokenizer

CASES: dict[str, dict[str, Any]] = {
    "no budget": {},
    "cap": {"thinking_token_budget": 1 << 20},
    "cap, 2 waits": {"thinking_token_budget": 1 << 20, "waits": 2},
    "2 waits, one row in 16 forced": {"thinking_token_budget": 1 << 20, "waits": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--history", default="1000,4000,16000,32000")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, vLLM {vllm.__version__}, {vars(options)}")
    print("| settings | history | host, us a step | device, us a step |")
    print("|---|---|---|---|")
    directory = tempfile.mkdtemp()
    save_tokenizer(Path(directory))
    logits = torch.randn(options.rows, options.vocabulary, device=device)
    for case, settings in CASES.items():
        for history in map(int, options.history.split(",")):
            host, on_device = measure(directory, settings, history, "forced" in case, logits, options.steps)
            print(f"| {case} | {history} | {host:.0f} | {on_device:.0f} |", flush=True)


def measure(
    directory: str, settings: dict[str, Any], history: int, forced: bool, logits: torch.Tensor, steps: int
) -> tuple[float, float]:
    rows, device = logits.shape[0], logits.device
    processor = BudgetForcing(config(directory, *logits.shape), device, device.type == "cuda")
    added, outputs = [], []
    for number in range(rows):
        extra = dict(settings, reasoning_format="qwen3", thinking_opened=True) if settings else {}
        if forced and number % 16 == 0:
            extra["end_message"] = "x" * (steps + 10)  # forced from the first step to the last
            extra["thinking_token_budget"] = history + steps + 11
        params = vllm.SamplingParams(max_tokens=1 << 20, extra_args=extra or None)
        outputs.append([5] * history)
        added.append((number, params, [1], outputs[-1]))
    processor.update_state(BatchUpdate(batch_size=rows, removed=[], added=added, moved=[]))
    host, on_device = [], []
    for _ in range(steps):
        for output in outputs:
            output.append(5)
        if device.type == "cuda":
            torch.cuda.synchronize()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
        clock = time.perf_counter()
        processor.update_state(None)
        processor.apply(logits)
        host.append(time.perf_counter() - clock)
        if device.type == "cuda":
            end.record()
            torch.cuda.synchronize()
            on_device.append(begin.elapsed_time(end) * 1e-3)
    late = slice(steps // 4, None)
    return statistics.median(host[late]) * 1e6, statistics.median(on_device[late] or [0.0]) * 1e6


def config(directory: str, rows: int, vocabulary: int) -> Any:
    """As much of vLLM's own configuration as the processor reads."""
    model = SimpleNamespace(
        tokenizer=directory, tokenizer_revision=None, trust_remote_code=False, seed=0,
        logits_processors=["bide.engines.vllm_plugin:BudgetForcing"],
        try_get_generation_config=dict, get_vocab_size=lambda: vocabulary,
    )  # fmt: skip
    scheduler = SimpleNamespace(max_num_seqs=rows)
    parallel = SimpleNamespace()
    return SimpleNamespace(
        model_config=model, scheduler_config=scheduler, parallel_config=parallel, speculative_config=None
    )


if __name__ == "__main__":
    main()
