"""What communication costs a training step that hides it behind matmuls: a layer of the 32B shape, its backward pass,
with the gather of the next layer's weights and the sum of the last one's gradients beside it, on all GPUs of a machine.

    torchrun --standalone --nproc-per-node 4 benchmarks/bench_train_overlap.py

For each communicator (how many blocks NCCL may take, which sit on as many multiprocessors), type of the sum, and number
of tokens: milliseconds a layer of the matmuls alone, of the collectives alone, and of both at once. GB/s: what a GPU
sends.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

HIDDEN, INTERMEDIATE, HEADS_WIDTH, KEYS_WIDTH = 5120, 27_648, 5120, 1024
PARAMETERS = HIDDEN * (2 * HEADS_WIDTH + 2 * KEYS_WIDTH + 3 * INTERMEDIATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--layers", type=int, default=12, help="measured one behind the other")
    parser.add_argument("--tokens", type=int, nargs="+", default=[7168])
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 4, 8, 16, 24, 32], help="0: NCCL's choice")
    options = parser.parse_args()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    size, first = dist.get_world_size(), dist.get_rank() == 0
    part = -(-PARAMETERS // size)
    shard = torch.randn(part, device="cuda").bfloat16() * 0.02
    gathered = torch.empty(part * size, dtype=torch.bfloat16, device="cuda")
    if first:
        print(f"{size} x {torch.cuda.get_device_name()}, torch {torch.__version__}, NCCL {torch.cuda.nccl.version()}")
        print("| blocks | sum in | tokens | matmuls | collectives (GB/s) | both | matmuls slower by |")
        print("|--:|---|--:|--:|--:|--:|--:|", flush=True)
    for blocks in options.blocks:
        settings: Any = dist.ProcessGroupNCCL.Options()
        if blocks:
            settings.config.max_ctas = blocks
        group = dist.new_group(pg_options=settings)
        for kind in (torch.float32, torch.bfloat16):
            gradients = torch.randn(part * size, device="cuda").to(kind)
            summed = torch.empty(part, dtype=kind, device="cuda")
            sent = (size - 1) * part * (2 + kind.itemsize)

            def collectives(gradients: Any = gradients, summed: Any = summed, group: Any = group) -> None:
                dist.all_gather_into_tensor(gathered, shard, group=group)
                dist.reduce_scatter_tensor(summed, gradients, group=group)

            for tokens in options.tokens:
                found = row(matmuls(tokens), collectives, options.layers)
                if first:
                    alone, sending, both = found
                    print(
                        f"| {blocks or 'NCCL'} | {str(kind)[6:]} | {tokens} | {alone:.1f} | {sending:.1f} "
                        f"({sent / sending / 1e6:.0f}) | {both:.1f} | {100 * (both / alone - 1):.0f} % |",
                        flush=True,
                    )
            del gradients, summed
        dist.destroy_process_group(group)
    dist.destroy_process_group()


def matmuls(tokens: int) -> Callable[[], None]:
    """Those of a layer's backward pass: for each matrix the gradients of its input and of itself."""
    shapes = [
        (HIDDEN, HEADS_WIDTH), (HIDDEN, 2 * KEYS_WIDTH), (HEADS_WIDTH, HIDDEN),
        (HIDDEN, INTERMEDIATE), (HIDDEN, INTERMEDIATE), (INTERMEDIATE, HIDDEN),
    ]  # fmt: skip
    made = [
        tuple(torch.randn(*size, device="cuda").bfloat16() for size in ((tokens, n), (tokens, m), (m, n)))
        for n, m in shapes
    ]

    def run() -> None:
        for inputs, gradient, weight in made:
            torch.mm(gradient, weight)
            torch.mm(gradient.T, inputs)

    return run


def row(compute: Callable[[], None], send: Callable[[], None], layers: int) -> tuple[float, float, float]:
    """Milliseconds a layer: of `compute`, of `send`, of both at once, where a layer waits for what was sent beside the
    layer before it."""
    beside = torch.cuda.Stream(priority=-1)
    here = torch.cuda.current_stream()

    def both() -> None:
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            send()
        compute()
        here.wait_stream(beside)

    found = []
    for work in (compute, send, both):
        for _ in range(2):
            work()
        dist.barrier()
        torch.cuda.synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(layers):
            work()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / layers)
    return found[0], found[1], found[2]


if __name__ == "__main__":
    main()
