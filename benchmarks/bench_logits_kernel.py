"""What a launch of bide's kernel costs, on one GPU, without vLLM: sought by Triton each time, and as it was compiled.

    PYTHONPATH=src python benchmarks/bench_logits_kernel.py

256 rows with a cap and 2 waits, vocabulary 151,936. Three rounds, in turn; medians of the last 300 of 400 steps. Host:
how long the call keeps the CPU; between events: from before the call to the end of the kernel. Then the device alone.
"""

from __future__ import annotations

import statistics
import time

import torch

from bide import logits_kernel
from bide.budget_forcing import BudgetForcer
from bide.logits_processor import ForcedRow
from bide.markers import ForcedTexts, Markers
from bide.thinking_budget import ThinkingBudget

ROWS, VOCABULARY, STEPS = 256, 151_936, 400
MARKERS = Markers(
    ends=((7,),), close=(7,), eos=frozenset({1, 2}), newline=(9,), line_ends=frozenset({9}), waits_on_new_line=True
)
TEXTS = ForcedTexts(waits=((9, 40, 41),))


def main() -> None:
    torch.manual_seed(0)
    kernel = logits_kernel.KernelRows(ROWS, [MARKERS], torch.zeros(VOCABULARY, dtype=torch.uint8), "cuda")
    for slot in range(ROWS):
        kernel.write(slot, ForcedRow(BudgetForcer(ThinkingBudget(1 << 20, waits=2), MARKERS, TEXTS)), TEXTS)
    logits = torch.randn(ROWS, VOCABULARY, device="cuda")
    buffers = [torch.zeros(4, ROWS, dtype=torch.int32, pin_memory=True) for _ in range(4)]
    for buffer in buffers:
        buffer[0] = buffer[1] = torch.arange(ROWS)
        buffer[2] = 5
    kernel.warm_up(VOCABULARY, ROWS)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"numbers of the module that Triton compares at each launch: {len(logits_kernel._step.used_global_vals)}")
    for _ in range(3):
        for name, sought in (("sought at each launch", True), ("as it was compiled", False)):
            host, between = measure(kernel, logits, buffers, sought)
            print(f"{name}: host {host:.1f} us, between events {between:.1f} us", flush=True)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    busy = torch.randn(8192, 8192, device="cuda")
    for _ in range(3):  # so that the launches below lie in a queue before the first begins
        busy @ busy
    begin.record()
    for _ in range(50):
        kernel.apply(logits, buffers[0], ROWS)
    end.record()
    torch.cuda.synchronize()
    print(f"the device alone: {begin.elapsed_time(end) * 20:.1f} us")


def measure(
    kernel: logits_kernel.KernelRows, logits: torch.Tensor, buffers: list[torch.Tensor], sought: bool
) -> tuple[float, float]:
    """Microseconds."""
    host, between = [], []
    for step in range(STEPS):
        if sought:
            kernel._compiled.clear()
        buffer = buffers[step % len(buffers)]
        buffer[3] = step + 1
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        clock = time.perf_counter()
        kernel.apply(logits, buffer, ROWS)
        host.append((time.perf_counter() - clock) * 1e6)
        end.record()
        torch.cuda.synchronize()
        between.append(begin.elapsed_time(end) * 1e3)
    return statistics.median(host[100:]), statistics.median(between[100:])


if __name__ == "__main__":
    main()
