"""The parts of a training step on one GPU, each against a float32 reference and each against its rivals.

    python benchmarks/bench_train_kernels.py --out kernels.json      # all but "layer": under 90 s on an H100
    python benchmarks/bench_train_kernels.py --only layer            # a layer of Qwen2.5-32B by policy, compiled
    python benchmarks/bench_train_kernels.py --device cpu --small    # proof that the script runs

attention  every backend on one packed row of documents of 1K to 9K tokens, 40 query and 8 key heads of 128
loss       chunked cross-entropy at d = 5,120 and 152,064 words, by rows of a chunk; plain logits where they fit
float8     a linear layer 5,120 -> 27,648 and back: bf16, tensorwise, rowwise, all compiled
optimizer  a step of AdamW for a billion parameters, by type of weights and moments, compiled; torch's fused AdamW;
           bytes: what it must read and write for each, tb_s: those by its time
layer      forward and backward of a decoder layer by recompute policy and backend: ms, model FLOP/s, GiB kept

"error" is |x - reference| / |reference| over all values and gradients, on smaller inputs; a row is "ok" when it is
below `--tolerance` of its section. Times are medians of --repeats by CUDA events. A row that raises says so and the
rest goes on; the exit status is 1 when a row is not ok.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))  # a checkout needs no installation

import torch
from torch import nn

from bide.train.attention import Documents, attend, register
from bide.train.attention_backends import BACKENDS
from bide.train.compiling import compiled
from bide.train.float8 import RECIPES, use_float8
from bide.train.loss import chunked_cross_entropy
from bide.train.optimizer import AdamW
from bide.train.recompute import wrap_layers
from bide.train.recompute_policies import POLICIES

LENGTHS = (9_109, 5_150, 3_900, 1_721, 1_100)
"""20,980 tokens, and 12 of padding: the share of one of 4 GPUs in a batch of s1K."""
SMALL_LENGTHS = (900, 523, 77, 1)
TOLERANCE = {"attention": 0.01, "loss": 0.02, "float8": 0.12, "optimizer": 0.002, "layer": 0.03}
PEAK = 989e12


class Bench:
    """Sizes, device and clock."""

    def __init__(self, device: str, small: bool, repeats: int) -> None:
        self.device, self.small, self.repeats = torch.device(device), small, repeats
        self.lengths = (61, 40, 19) if small else LENGTHS
        self.row = 128 if small else 20_992
        self.heads, self.keys, self.width = (4, 2, 16) if small else (40, 8, 128)
        self.hidden, self.intermediate, self.words = (64, 128, 512) if small else (5_120, 27_648, 152_064)
        self.kind = torch.bfloat16

    def random(self, *shape: int, kind: torch.dtype | None = None) -> torch.Tensor:
        return torch.randn(*shape, device=self.device, dtype=torch.float32).to(kind or self.kind)

    def milliseconds(self, run: Callable[[], Any]) -> float:
        """The median of several runs, after two."""
        for _ in range(2):
            run()
        times = []
        for _ in range(self.repeats):
            if self.device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                run()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            else:
                began = time.perf_counter()
                run()
                times.append(1000 * (time.perf_counter() - began))
        return statistics.median(times)

    def gib(self) -> float:
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0


def error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest of the relative errors in norm."""
    return max(
        float(((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30)).detach())
        for a, b in zip(found, expected)
    )


def attention(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    def rows(lengths: tuple[int, ...], row: int) -> tuple[list[torch.Tensor], torch.Tensor, Documents]:
        torch.manual_seed(0)
        inputs = [bench.random(row, n, bench.width).requires_grad_() for n in (bench.heads, bench.keys, bench.keys)]
        return (
            inputs,
            bench.random(row, bench.heads, bench.width),
            Documents.make(lengths, row=row, device=bench.device),
        )

    small, small_gradient, small_documents = rows(
        (61, 40, 19) if bench.small else SMALL_LENGTHS, 128 if bench.small else 1_536
    )
    scale = bench.width**-0.5

    def both(
        inputs: list[torch.Tensor], gradient: torch.Tensor, documents: Documents, backend: str
    ) -> list[torch.Tensor]:
        output = attend(*inputs, documents.bounds, documents.sizes, scale, backend)
        return [output, *torch.autograd.grad(output, inputs, gradient)]

    wide = [x.detach().float().requires_grad_() for x in small]
    expected = both(wide, small_gradient.float(), small_documents, "plain")
    inputs, gradient, documents = rows(bench.lengths, bench.row)
    forward_flops = 2 * bench.heads * bench.width * sum(n * n for n in documents.lengths)  # causal: half of 4 n n d

    def one(backend: str) -> dict[str, Any]:
        off = error(both(small, small_gradient, small_documents, backend), expected)
        with torch.no_grad():
            ahead = bench.milliseconds(lambda: attend(*inputs, documents.bounds, documents.sizes, scale, backend))
        began = time.perf_counter()
        both(inputs, gradient, documents, backend)
        first = time.perf_counter() - began
        total = bench.milliseconds(lambda: both(inputs, gradient, documents, backend))
        return {
            "error": off, "forward_ms": ahead, "both_ms": total, "first_ms": 1000 * first,
            "forward_tflops": forward_flops / ahead / 1e9, "both_tflops": 3.5 * forward_flops / total / 1e9,
        }  # fmt: skip

    for backend in BACKENDS:
        if backend != "plain" or bench.small:
            if bench.device.type == "cuda" or backend == "plain":
                yield backend, lambda backend=backend: one(backend)
    if bench.device.type == "cuda":

        def dense(backend: Any) -> dict[str, Any]:
            """One document of the whole row: what the kernels can do at best."""
            heads = [x.detach().transpose(0, 1)[None].requires_grad_() for x in inputs]
            upper = gradient.transpose(0, 1)[None]
            flops = 2 * bench.heads * bench.width * bench.row**2

            def run() -> Any:
                with torch.nn.attention.sdpa_kernel(backend):
                    output = nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
                return torch.autograd.grad(output, heads, upper)

            total = bench.milliseconds(run)
            return {"both_ms": total, "both_tflops": 3.5 * flops / total / 1e9}

        for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
            chosen = getattr(torch.nn.attention.SDPBackend, backend)
            yield f"one document, SDPA {backend}", lambda chosen=chosen: dense(chosen)


def loss(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    torch.manual_seed(0)
    head = (bench.random(bench.words, bench.hidden) * 0.02).requires_grad_()
    hidden = bench.random(bench.row, bench.hidden).requires_grad_()
    labels = torch.randint(bench.words, (bench.row,), device=bench.device)
    weights = torch.full((bench.row,), 1 / bench.row, device=bench.device)
    weights[: bench.row // 14] = 0
    rows = weights.nonzero().squeeze(1)
    flops = 6 * len(rows) * bench.hidden * bench.words

    def run(tokens: int, chunk: int) -> list[torch.Tensor]:
        part = hidden[:tokens]
        found = chunked_cross_entropy(
            part, head, labels[:tokens], weights[:tokens], rows=rows[rows < tokens], chunk_tokens=chunk
        )
        return [found.total, *torch.autograd.grad(found.total, [hidden, head])]

    def whole(tokens: int, wide: bool) -> list[torch.Tensor]:
        x, w = (y.detach().float().requires_grad_() if wide else y for y in (hidden, head))
        logits = (x[:tokens] @ w.T).float()
        total = (nn.functional.cross_entropy(logits, labels[:tokens], reduction="none") * weights[:tokens]).sum()
        return [total, *torch.autograd.grad(total, [x, w])]

    few = 64 if bench.small else 2_048

    def one(chunk: int) -> dict[str, Any]:
        off = error(run(few, chunk // 4), whole(few, wide=True))
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 2**30 if bench.device.type == "cuda" else 0.0
        total = bench.milliseconds(lambda: run(bench.row, chunk))
        return {"error": off, "both_ms": total, "both_tflops": flops / total / 1e9, "extra_gib": bench.gib() - before}

    for chunk in (32,) if bench.small else (1_024, 2_048, 4_096):
        yield f"chunks of {chunk}", lambda chunk=chunk: one(chunk)

    def plainly() -> dict[str, Any]:
        tokens = few if bench.small else 4_096
        total = bench.milliseconds(lambda: whole(tokens, wide=False))
        return {
            "both_ms": total,
            "both_tflops": 6 * tokens * bench.hidden * bench.words / total / 1e9,
            "tokens": tokens,
        }

    yield "whole logits, part of the row", plainly


def float8(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    torch.manual_seed(0)
    x = bench.random(bench.row, bench.hidden).requires_grad_()
    gradient = bench.random(bench.row, bench.hidden)
    flops = 2 * 6 * bench.row * bench.hidden * bench.intermediate

    def block(recipe: str) -> Any:
        torch.manual_seed(1)
        made = nn.Sequential(
            nn.Linear(bench.hidden, bench.intermediate, bias=False), nn.SiLU(),
            nn.Linear(bench.intermediate, bench.hidden, bias=False),
        )  # fmt: skip
        made = made.to(device=bench.device, dtype=bench.kind)
        if recipe:
            use_float8(made, recipe)
        return made

    def run(made: Any, tokens: int) -> list[torch.Tensor]:
        output = made(x[:tokens])
        return [output, *torch.autograd.grad(output, [x, *parameters[id(made)]], gradient[:tokens])]

    parameters: dict[int, list[Any]] = {}

    def one(recipe: str) -> dict[str, Any]:
        tokens = 128 if bench.small else 2_048
        reference, made = block("").float(), block(recipe)
        wide = x.detach().float().requires_grad_()
        output = reference(wide[:tokens])
        expected = [output, *torch.autograd.grad(output, [wide, *reference.parameters()], gradient[:tokens].float())]
        quick = compiled(made) if bench.device.type == "cuda" else made
        parameters[id(quick)] = list(made.parameters())
        off = error(run(quick, tokens), expected)
        del reference, expected, wide, output
        total = bench.milliseconds(lambda: run(quick, bench.row))
        return {"error": off, "both_ms": total, "both_tflops": flops / total / 1e9}

    for recipe in ("", *RECIPES):
        yield recipe or "bf16", lambda recipe=recipe: one(recipe)


def optimizer(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    side = 256 if bench.small else 5_120
    shapes = [(side, side)] * (4 if bench.small else 38) + [(side,)] * 8
    count = sum(torch.Size(shape).numel() for shape in shapes)

    def parameters(kind: torch.dtype, shapes: list[Any]) -> list[Any]:
        torch.manual_seed(0)
        made = [nn.Parameter(bench.random(*shape, kind=kind)) for shape in shapes]
        for parameter in made:
            parameter.grad = torch.randn_like(parameter) * 0.1
        return made

    def one(kind: torch.dtype, moments: str) -> dict[str, Any]:
        few = [(64, 256)] * 18 + [(100,)] * 2 + [(640, 256)]  # updated together, and alone
        pair = []
        for fused in (None, False):
            made = parameters(kind, few)
            made_by = AdamW(made, lr=1e-2, moments=moments, compiled=fused)
            for _ in range(3):
                made_by.step()
            states = [made_by.state[p][name] for p in made for name in ("exp_avg", "exp_avg_sq")]
            pair.append([*(p.detach() for p in made), *states])
        off = error(*pair)
        big = parameters(kind, shapes)
        stepping = AdamW(big, lr=1e-5, moments=moments)
        total = bench.milliseconds(stepping.step)
        moved = sum(3 * p.nbytes + sum(2 * x.nbytes for x in stepping.state[p].values() if x.dim()) for p in big)
        return {
            "error": off,
            "ms_per_billion": total / count * 1e9,
            "bytes": moved / count,
            "tb_s": moved / total / 1e9,
        }

    def torchs() -> dict[str, Any]:
        stepping = torch.optim.AdamW(parameters(torch.float32, shapes), lr=1e-5, fused=True)
        return {"ms_per_billion": bench.milliseconds(stepping.step) / count * 1e9}

    for name, kind, moments in (
        ("fp32 weights, bf16 moments", torch.float32, "bf16"),
        ("bf16 weights, bf16 moments", torch.bfloat16, "bf16"),
        ("bf16 weights, int8 moments", torch.bfloat16, "int8"),
    ):
        yield name, lambda kind=kind, moments=moments: one(kind, moments)
    yield "torch, fused, fp32 throughout", torchs


def layer(bench: Bench) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    import transformers

    settings: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": bench.hidden, "intermediate_size": bench.intermediate,
        "num_hidden_layers": 2, "num_attention_heads": bench.heads, "num_key_value_heads": bench.keys,
        "head_dim": bench.width, "max_position_embeddings": 32_768,
    }  # fmt: skip
    documents = Documents.make(bench.lengths, row=bench.row, device=bench.device)
    ids = torch.randint(512, (1, bench.row), generator=torch.Generator().manual_seed(0)).to(bench.device)
    matmul = bench.hidden * bench.width * (2 * bench.heads + 2 * bench.keys) + 3 * bench.hidden * bench.intermediate
    squares = sum(n * n for n in documents.lengths)
    flops = 2 * (6 * matmul * bench.row + 6 * bench.heads * bench.width * squares)

    def model(backend: str, recipe: str = "") -> Any:
        torch.manual_seed(0)
        with torch.device(bench.device):
            made = transformers.Qwen2ForCausalLM._from_config(
                transformers.Qwen2Config(**settings), dtype=bench.kind, attn_implementation=register(backend)
            ).train()
        if recipe:
            use_float8(made, recipe)
        return made

    def run(made: Any) -> torch.Tensor:
        hidden = made.model(input_ids=ids, use_cache=False, **documents.arguments()).last_hidden_state
        return hidden  # type: ignore[no-any-return]

    def one(policy: str, backend: str, recipe: str = "") -> dict[str, Any]:
        torch._dynamo.reset()
        made = model(backend, recipe)
        began = time.perf_counter()
        wrap_layers(made.model.layers, policy, compiled=bench.device.type == "cuda")
        run(made).float().square().mean().backward()
        first = time.perf_counter() - began
        made.zero_grad()
        before = torch.cuda.memory_allocated() if bench.device.type == "cuda" else 0
        hidden = run(made)
        kept = (torch.cuda.memory_allocated() - before) / 2**30 / 2 if bench.device.type == "cuda" else 0.0
        hidden.float().square().mean().backward()
        del hidden

        def both() -> None:
            made.zero_grad()
            run(made).sum().backward()

        total = bench.milliseconds(both)
        return {
            "layer_ms": total / 2, "model_tflops": flops / total / 1e9, "mfu": flops / total / 1e-3 / PEAK,
            "kept_gib": kept, "compile_s": first,
        }  # fmt: skip

    quick = "plain" if bench.device.type == "cpu" else "cudnn"
    for policy in POLICIES:
        yield f"{policy}, {quick}", lambda policy=policy: one(policy, quick)
    if bench.device.type == "cuda":
        yield "attention, varlen", lambda: one("attention", "varlen")
        yield "attention, cudnn, float8 tensorwise", lambda: one("attention", "cudnn", "tensorwise")


SECTIONS = {"attention": attention, "loss": loss, "float8": float8, "optimizer": optimizer, "layer": layer}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="attention,loss,float8,optimizer", help="sections, with commas")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="tiny sizes")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write JSON there")
    options = parser.parse_args()
    machine = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"# {machine}, torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    bench, rows, failed = Bench(options.device, options.small, options.repeats), [], 0
    for section in options.only.split(","):
        began = time.perf_counter()
        print(f"\n{section}")
        for name, measure in SECTIONS[section](bench):
            row: dict[str, Any] = {"section": section, "name": name}
            try:
                row |= measure()
                row["ok"] = row.get("error", 0.0) <= TOLERANCE[section]
            except Exception as problem:  # whatever a kernel says; the other rows are wanted all the same
                row |= {"ok": False, "raised": f"{type(problem).__name__}: {str(problem)[-1500:]}"}
            failed += not row["ok"]
            rows.append(row)
            values = (f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in list(row.items())[2:])
            print(f"  {name:38} {'  '.join(values)}", flush=True)
            if options.device == "cuda":
                torch.cuda.empty_cache()
        print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)
        if options.out:
            found = {"machine": machine, "torch": torch.__version__, "cuda": torch.version.cuda, "rows": rows}
            options.out.write_text(json.dumps(found, indent=1))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
