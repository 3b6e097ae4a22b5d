"""One step of `bench_train.py` under the profiler: where the first GPU's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bench_train_arms import Marks

KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("communication", ("nccl",)),
    ("attention", ("flash", "fmha", "attention", "sdpa", "cudnn_generated")),
    ("matmul", ("gemm", "nvjet", "cutlass", "cublas", "matmul", "scaled_mm", "xmma", "wgmma")),
    ("copy", ("memcpy", "memset", "copy", "cat")),
    ("fused elementwise", ("triton",)),
    ("elementwise", ("elementwise", "reduce", "index", "softmax", "norm", "vectorized", "multi_tensor", "foreach")),
)
"""Kind of kernel -> pieces of names, the first that fits."""


def kind_of(kernel: str) -> str:
    """By its name."""
    low = kernel.lower()
    return next((kind for kind, pieces in KINDS if any(piece in low for piece in pieces)), "other")


def profiled(runner: Any, step: int, world: Any) -> dict[str, Any]:
    """One more step: milliseconds of the first GPU's kernels by kind, the longest kernels, and how long it did nothing.
    Kernels of communication run beside others, so kinds add up to more than the step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    if world.device.type != "cuda":
        with profile(activities=[ProfilerActivity.CPU]):
            runner.step(step, Marks(world.device))
        return {}
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        begin = time.perf_counter()
        runner.step(step, Marks(world.device))
        torch.cuda.synchronize()
        wall = time.perf_counter() - begin
    if not world.is_first:
        return {}
    spans: list[tuple[float, float]] = []
    by_kind: dict[str, float] = {}
    by_name: dict[str, list[float]] = {}
    for event in kernels_of(seen):
        start, length, name = event
        by_kind[kind_of(name)] = by_kind.get(kind_of(name), 0.0) + length
        by_name.setdefault(name[:110], []).append(length)
        if kind_of(name) != "communication":
            spans.append((start, start + length))
    busy, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        busy += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    longest = sorted(by_name.items(), key=lambda item: -sum(item[1]))[:15]
    return {
        "wall_ms": round(wall * 1e3, 1),
        "computing_ms": round(busy, 1),
        "not_computing_ms": round(wall * 1e3 - busy, 1),
        "by_kind_ms": {kind: round(total, 1) for kind, total in sorted(by_kind.items(), key=lambda item: -item[1])},
        "longest": [{"kernel": name, "calls": len(lengths), "ms": round(sum(lengths), 1)} for name, lengths in longest],
    }


def kernels_of(seen: Any) -> Iterator[tuple[float, float, str]]:
    """Start, length (ms) and name of every kernel."""
    import torch

    marks = ("FSDP::", "Torch-Compiled", "## ", "Optimizer.", "ProfilerStep", "nccl:")  # spans that hold kernels
    for event in seen.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.name.startswith(marks):
            yield event.time_range.start / 1e3, event.time_range.elapsed_us() / 1e3, event.name
