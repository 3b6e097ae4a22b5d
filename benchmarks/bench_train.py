"""Seconds of an optimizer step of supervised fine-tuning, with random weights of a real shape: bide beside the
reference's own way, one after the other on the same GPUs.

    python benchmarks/bench_train.py --processes 4 --seconds 560 --profile --out $OUT   # 4 GPUs, the 32B shape
    python benchmarks/bench_train.py --processes 1 --seconds 560 --profile --out $OUT   # one GPU: 1.5B, LoRA of 7B
    python benchmarks/bench_train.py --processes 4 --arms bide-bf16 --set recompute=attention,matmuls:16 --out $OUT
    python benchmarks/bench_train.py --processes 2 --shape tiny --steps 3 --out /tmp/bench   # proof on a CPU

Each arm runs in processes of its own, started as

    PYTORCH_ALLOC_CONF=expandable_segments:True torchrun --standalone --nproc-per-node 4 benchmarks/bench_train.py \\
        --arm bide-bf16 --steps 10 --out $OUT

and prints its JSON as soon as it is done; results.json has all of them, table.md the table, log.txt what the processes
said. An arm that fails (out of memory, say) is tried again with its next choice of settings; `tries` in its JSON says
why. --seconds is the limit for all arms together, --arm-seconds for one try; where time runs out, fewer steps are
measured, and `steps` says how many. Needs torch, transformers and (for LoRA) peft; no installation.

Samples: 1,000 lengths after the law of s1K (a normal law of mean 5,230 and deviation 1,750 tokens, cut at 700 and
9,109: mean 5,200, 26 % under 4,096), random tokens, 250 of each without loss. Steps: the first ones of the plan of
recipe s1, 16 samples each, the same in all arms. MFU: model FLOPs (nothing recomputed counted, nor what frozen weights
save) over 989 TFLOP/s, the dense bf16 peak of an H100 or H200, whatever the precision of the arm. "forecast" is what
`bide train plan` says of the same plan with the same settings, and measured / forecast.

The reference's own way, as in simplescaling/s1 train/sft.py: each GPU takes one random sequence in each micro-step, in
the order of the batch, all ranks wait for the longest; every layer is recomputed; logits are whole; FSDP without
compilation; SDPA. Two things differ: batch 16 is reached by accumulation (16 GPUs are not there), and weights,
gradients and moments are bf16, because the reference's fp32 states (122 GiB a GPU at 4 GPUs) leave no room for a
sequence of 9,109 tokens. `reference-int8` is the same with bide's AdamW and moments in 8 bits: with bf16 ones it does
not fit two GPUs.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from bench_train_arms import ARMS, MANY_GPUS, ONE_GPU
from bench_train_measure import run_arm

from bide.train.shapes import SHAPES

PAPER_GPU_HOURS = 6.93
ENOUGH = 5
"""Measured steps that count although the arm failed after them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--processes", type=int, default=1, help="GPUs (or, without any, gloo processes)")
    parser.add_argument("--arms", default="", help="names with commas; otherwise those for this many GPUs")
    parser.add_argument("--shape", default="", help=f"in place of each arm's own: tiny, {', '.join(SHAPES)}")
    parser.add_argument("--steps", type=int, default=10, help="measured")
    parser.add_argument("--warmup", type=int, default=2, help="steps before, not measured")
    parser.add_argument("--seconds", type=float, default=1_500, help="for all arms together")
    parser.add_argument("--arm-seconds", type=float, default=240, help="for one try of one arm")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="over an arm's first choice: any setting of a recipe, backend, max_tokens (of a pack)",
    )
    parser.add_argument("--profile", action="store_true", help="one more step under the profiler")
    parser.add_argument("--out", type=Path, default=Path("bench_train"))
    parser.add_argument("--arm", default="", help="run this one here (what torchrun is given)")
    parser.add_argument("--choice", type=int, default=0, help="which of its choices")
    parser.add_argument("--deadline", type=float, default=0, help="Unix time after which no step is begun")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.arm:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is measured is written, what runs is ended
        drive(options)
        return
    try:
        run_arm(options)
    except BaseException:
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # NCCL's own end might wait for processes that wait for this one


def drive(options: argparse.Namespace) -> None:
    """All arms, each in processes of its own. After each, what there is so far is written."""
    names = [name for name in options.arms.split(",") if name] or (MANY_GPUS if options.processes > 1 else ONE_GPU)
    for name in names:
        if name not in ARMS:
            raise SystemExit(f"no arm {name!r}; there are: {', '.join(ARMS)}")
    end = time.time() + options.seconds
    found: dict[str, dict[str, Any]] = {}
    try:
        for name in names:
            measure(name, end, found, options)
    finally:
        print(table(found), flush=True)


def measure(name: str, end: float, found: dict[str, dict[str, Any]], options: argparse.Namespace) -> None:
    """Try an arm's choices until one runs, and add its result to `found` and to the files."""
    tries: list[str] = []
    for choice in range(1 if options.set else len(ARMS[name].choices)):
        left = min(end - time.time(), options.arm_seconds)
        if left < 20:
            print(f"# {name}: no time left", flush=True)
            return
        problem, stopped = "", None
        try:
            problem = try_arm(name, choice, left, options)
        except (SystemExit, KeyboardInterrupt) as signalled:
            problem, stopped = "stopped", signalled
        path = options.out / f"{name}.part.json"
        result = json.loads(path.read_text()) if path.exists() else None
        path.unlink(missing_ok=True)
        if result and (not problem or stopped or result["steps"] >= min(ENOUGH, options.steps)):
            found[name] = {**result, "ended": problem or "well", "tries": tries}
            (options.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
            (options.out / "table.md").write_text(table(found))
            print(json.dumps({k: v for k, v in found[name].items() if k != "kernels"}), flush=True)
            problem = ""
        if stopped:
            raise stopped
        if not problem:
            return
        tries.append(problem + (f", after {result['steps']} measured steps" if result else ""))
        print(f"# {name}, choice {choice}: {tries[-1]}", flush=True)


def try_arm(name: str, choice: int, seconds: float, options: argparse.Namespace) -> str:
    """One arm under torchrun, which writes what it has measured to NAME.part.json. Returns what went wrong, or ""."""
    told = [f"--{flag}={getattr(options, flag)}" for flag in ("shape", "steps", "warmup", "seed", "out")]
    told += [f"--set={text}" for text in options.set] + (["--profile"] if options.profile else [])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.processes}"]
    command += [__file__, f"--arm={name}", f"--choice={choice}", f"--deadline={time.time() + seconds}", *told]
    (options.out / f"{name}.part.json").unlink(missing_ok=True)
    log = options.out / "log.txt"
    allocator = {
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }
    environment = {**allocator, "OMP_NUM_THREADS": "1" if options.processes > 1 else "4", **os.environ}
    print(f"# {name}, choice {choice}", flush=True)
    with log.open("a") as file:
        file.write(f"# {name}, choice {choice}\n")
        file.flush()
        begin = file.tell()
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds + 30)  # a step under way may end
            problem = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"not done after {seconds:.0f} s"
        finally:
            with_group_killed(process)
    return f"{problem}: {last_error(log, begin)}" if problem else ""


def with_group_killed(process: subprocess.Popen[bytes]) -> None:
    """End what torchrun may have left."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(timeout=15)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass


def last_error(log: Path, begin: int) -> str:
    """The line of a log, from byte `begin` on, that says most."""
    text = log.read_bytes()[begin:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"(\[rank\d+\]: )?[\w.]+(Error|Exception|Interrupt)\b", line)]
    telling = [line for line in named if "ChildFailedError" not in line]
    return (telling[0] if telling else lines[-1] if lines else "no output")[-400:]


def table(found: dict[str, dict[str, Any]]) -> str:
    """The arms side by side, in Markdown."""
    lines = [
        "| arm | GPUs | settings | s/step | tokens/s/GPU | MFU | GPU-h, 315 steps | of paper | peak GiB | balance |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in found.items():
        told = ", ".join(str(v) for k, v in row["settings"].items() if v and k not in ("weights", "moments"))
        paper = f"1 / {PAPER_GPU_HOURS / row['gpu_hours_of_315_steps']:.2f}" if row["shape"] == "qwen2.5-32b" else ""
        lines.append(
            f"| {name} | {row['gpus']} x {row['device']} | {told} | {row['seconds_per_step']:.3f} | "
            f"{row['tokens_per_second_per_gpu']:.0f} | {100 * row['mfu']:.1f} % | "
            f"{row['gpu_hours_of_315_steps']:.2f} | "
            f"{paper} | {row['peak_reserved_gib']:.1f} | {row['balance']:.3f} |"
        )
    for name, row in found.items():
        if row["kernels"]:
            kernels = row["kernels"]
            lines += ["", f"{name}: a step of {kernels['wall_ms']:.0f} ms under the profiler, first GPU", ""]
            lines += ["| kernels | ms | of the step |", "|---|--:|--:|"]
            for kind, spent in [*kernels["by_kind_ms"].items(), ("none computes", kernels["not_computing_ms"])]:
                lines.append(f"| {kind} | {spent:.0f} | {100 * spent / kernels['wall_ms']:.1f} % |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
