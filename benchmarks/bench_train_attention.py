"""What the attention of a packed row takes by backend and shape of heads: the rates that forecasts count with.

    python benchmarks/bench_train_attention.py --out $OUT             # one GPU, about 30 s
    python benchmarks/bench_train_attention.py --small --out /tmp/a   # proof on a CPU

Rows of one long document, of five (a GPU's share of a batch of s1K on four), of four alike and of eight, with the heads
of Qwen2.5-32B, 7B, 1.5B and 0.5B, bf16, random inputs, seed 0: milliseconds forward, and forward and backward, medians
of --repeats by CUDA events. `deterministic` is under `torch.use_deterministic_algorithms`. At the end, for each backend
and shape, the two numbers of `bide.train.pace`, by least squares of the relative errors over the rows:

    seconds = 7 * width / (peak * share) * (sum of the squared lengths + keys * tokens)
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))  # a checkout needs no installation

import torch
from bench_train_kernels import LENGTHS, PEAK, Bench

from bide.train.attention import Documents, attend
from bide.train.attention_backends import BACKENDS

HEADS = {"32b": (40, 8, 128), "7b": (28, 4, 128), "1.5b": (12, 2, 128), "0.5b": (14, 2, 64)}
"""Query heads, key heads, width of one."""
ROWS = {
    "one": (20_480,),
    "five": LENGTHS,
    "even": (5_200,) * 4,
    "eight": (4_100, 3_600, 3_100, 2_600, 2_100, 1_600, 1_100, 700),
}
SMALL_ROWS = {"one": (128,), "five": (61, 40, 19)}


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--small", action="store_true", help="tiny rows")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("bench_train_attention"))
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bench = Bench(device, options.small, options.repeats)
    found = [
        {"backend": backend, "deterministic": fixed, "heads": shape, **row}
        for shape in HEADS
        for backend, fixed in ways(device)
        for row in measure(bench, HEADS[shape], backend, fixed)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "attention.json").write_text(json.dumps(found, indent=1) + "\n")
    for shape in HEADS:
        for backend, fixed in ways(device):
            mine = [
                row for row in found if (row["heads"], row["backend"], row["deterministic"]) == (shape, backend, fixed)
            ]
            times = ", ".join(f"{row['row']} {row['forward_ms']:.2f} / {row['both_ms']:.2f}" for row in mine)
            print(f"{shape:5} {backend}{' deterministic' * fixed}: {times}; {fitted(mine)}", flush=True)


def ways(device: str) -> list[tuple[str, bool]]:
    """Backends, and whether under deterministic algorithms."""
    if device == "cpu":
        return [("plain", False), ("plain", True)]
    return [
        (name, fixed) for name in ("cudnn", "varlen") for fixed in (False, True) if BACKENDS[name].repeatable >= fixed
    ]


def measure(bench: Bench, heads: tuple[int, int, int], backend: str, fixed: bool) -> list[dict[str, Any]]:
    """All rows, by one backend."""
    queries, keys, width = heads
    found = []
    torch.use_deterministic_algorithms(fixed)
    for name, lengths in (SMALL_ROWS if bench.small else ROWS).items():
        torch.manual_seed(0)
        tokens = sum(lengths)
        documents = Documents.make(lengths, device=bench.device)
        inputs = [bench.random(tokens, n, width).requires_grad_() for n in (queries, keys, keys)]
        gradient = bench.random(tokens, queries, width)

        def ahead(inputs: Any = inputs, documents: Documents = documents) -> torch.Tensor:
            return attend(*inputs, documents.bounds, documents.sizes, width**-0.5, backend)

        def both(inputs: Any = inputs, gradient: Any = gradient, ahead: Any = ahead) -> Any:
            return torch.autograd.grad(ahead(), inputs, gradient)

        with torch.no_grad():
            forward = bench.milliseconds(ahead)
        found.append(
            {
                "row": name,
                "tokens": tokens,
                "squares": sum(n * n for n in lengths),
                "width": queries * width,
                "forward_ms": forward,
                "both_ms": bench.milliseconds(both),
            }
        )
    torch.use_deterministic_algorithms(False)
    return found


def fitted(rows: list[dict[str, Any]]) -> str:
    """The share of the peak and the keys that a token costs beside, and how far each row is from them."""
    units = torch.tensor([[row["squares"], row["tokens"]] for row in rows], dtype=torch.float64)
    units *= torch.tensor([[7 * row["width"] / PEAK * 1000] for row in rows], dtype=torch.float64)
    times = torch.tensor([row["both_ms"] for row in rows], dtype=torch.float64)
    a, b = torch.linalg.lstsq(units / times[:, None], torch.ones(len(rows), 1, dtype=torch.float64)).solution[:, 0]
    off = (units @ torch.stack([a, b]) / times).tolist()
    return f"share {1 / a:.3f}, keys {b / a:.0f}, fit / measured {min(off):.2f} to {max(off):.2f}"


if __name__ == "__main__":
    main()
