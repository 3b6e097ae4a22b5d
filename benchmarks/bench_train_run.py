"""`bide train run` itself on one device, from files to files: what its receipt says beside its forecast, whether a run
that was stopped and resumed ends with the same weights, and LoRA.

    python benchmarks/bench_train_run.py --out $OUT                # one GPU, the 1.5B shape
    python benchmarks/bench_train_run.py --out $OUT --deterministic --plans whole,stopped,resumed  # to the byte
    python benchmarks/bench_train_run.py --shape tiny --out /tmp/run   # proof on a CPU

Random weights of the shape are written to a directory with a small tokenizer (bytes), and 64 rows whose lengths follow
the law of s1K. Three trainings of 2 epochs, 16 samples a step: one in one go with checkpoints in the background, the
same stopped after half of its steps and resumed, and one of LoRA adapters. Each is a process of its own. Weights are
bf16 unless `--set weights=fp32` says otherwise.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "tests"), str(HERE)]  # a checkout needs no installation

from bench_train_arms import TINY, config_of, s1k_lengths  # noqa: E402

from bide.train.shapes import SHAPES  # noqa: E402
from tiny_models import save_tokenizer  # noqa: E402

ROWS = 64
HALF = 4
LORA = {"lora_rank": 16, "learning_rate": 1e-4}
PLANS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "whole": (("--save-every=3",), {}),
    "stopped": ((f"--steps={HALF}",), {}),
    "resumed": ((), {}),
    "lora": ((), LORA),
    "qlora": ((), {**LORA, "quantized_base": "true"}),
}
"""Name -> what a training is told beside the others, and the settings of its recipe."""


def main() -> None:
    parser = argparse.ArgumentParser(description=" ".join(__doc__.split("\n\n")[0].split()))
    parser.add_argument("--shape", default="qwen2.5-1.5b", help=f"tiny, {', '.join(SHAPES)}")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--seconds", type=float, default=300, help="for each process")
    parser.add_argument("--out", type=Path, default=Path("bench_train_run"))
    parser.add_argument("--deterministic", action="store_true", help="all trainings are told so")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the recipe, for all")
    parser.add_argument(
        "--plans",
        default=",".join(name for name in PLANS if name != "qlora"),
        help="those to run, in this order; qlora needs bitsandbytes [default: all others]",
    )
    options = parser.parse_args()
    if unknown := set(options.plans.split(",")) - set(PLANS):
        parser.error(f"--plans knows {', '.join(PLANS)}, not {', '.join(sorted(unknown))}")
    if "resumed" in options.plans and "stopped" not in options.plans.split("resumed")[0]:
        parser.error("resumed goes on with what stopped has left: name stopped before it")
    options.out.mkdir(parents=True, exist_ok=True)
    work = options.out / "work"
    try:
        report(options, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)  # gigabytes


def report(options: argparse.Namespace, work: Path) -> None:
    """All trainings, one after the other. What each says goes to log.txt, the receipts to NAME.json."""
    tiny = options.shape == "tiny"
    model = work / "model"
    own = multiprocessing.get_context("spawn").Process(target=save_model, args=(model, options.shape, options.seed))
    own.start()  # whose memory on the GPU ends with it
    own.join()
    if own.exitcode:
        raise SystemExit(f"no model was written: exit code {own.exitcode}")
    rows = save_rows(work / "rows.jsonl", options.seed, 0.01 if tiny else 1.0)
    told: dict[str, Any] = {"epochs": 2, "weights": "bf16", "seed": options.seed}
    told |= dict(text.split("=", 1) for text in options.set)
    base = [f"--model={model}", f"--data={rows}", *["--deterministic"] * options.deterministic]
    for name in options.plans.split(","):
        run = work / ("stopped" if name == "resumed" else name)
        begin = time.monotonic()
        more, changed = PLANS[name]
        settings = told | changed
        if "lora_rank" in settings:
            del settings["weights"]  # frozen ones are bf16
        sets = [f"--set={key}={value}" for key, value in settings.items()]
        code = train([*base, *sets, *more, f"--out={run}"], options)
        print(
            f"# {name}: exit code {code}, {time.monotonic() - begin:.1f} s with start, loading and export", flush=True
        )
        if (run / "receipt.json").exists():
            shutil.copy(run / "receipt.json", options.out / f"{name}.json")
            print((run / "receipt.md").read_text(), flush=True)
        if name == "resumed":
            compare(work)


def compare(work: Path) -> None:
    """The run that was stopped and resumed with the one that was not, if both came to their end."""
    if not all((work / name / "model").exists() for name in ("whole", "stopped")):
        print("# not both runs came to their end: nothing to compare", flush=True)
        return
    whole, resumed = curve(work / "whole"), curve(work / "stopped")
    print(f"# losses and norms of the resumed run equal those of the whole one: {whole == resumed}")
    apart = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(whole, resumed)]
    print(
        f"# largest difference of a loss, before and after the stop: {max(apart[:HALF]):.1e}, {max(apart[HALF:]):.1e}"
    )
    same = same_files(work / "whole" / "model", work / "stopped" / "model")
    print(f"# and its weights, to the byte: {same}", flush=True)


def save_model(directory: Path, name: str, seed: int) -> None:
    """Random bf16 weights."""
    import torch
    import transformers

    shape = TINY if name == "tiny" else SHAPES[name]
    directory.mkdir(parents=True)
    save_tokenizer(directory)
    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16)
    model.save_pretrained(directory)


def save_rows(path: Path, seed: int, scale: float) -> Path:
    """A byte is a token: a thought of about as many letters as the law wants tokens."""
    draw = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz      "
    rows = [
        {
            "question": f"What is {draw.randrange(100)} + {draw.randrange(100)}?",
            "thinking": "".join(draw.choices(letters, k=max(length - 200, 8))).strip() or "x",
            "answer": str(draw.randrange(200)),
        }
        for length in s1k_lengths(ROWS, seed, scale)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(arguments: list[str], options: argparse.Namespace) -> int:
    """`bide train run` in a process."""
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent / "src"), environment.get("PYTHONPATH")]))
    with (options.out / "log.txt").open("a") as log:
        log.write(f"\n# {' '.join(arguments)}\n")
        log.flush()
        try:
            return subprocess.run(
                [sys.executable, "-m", "bide", "train", "run", *arguments],
                env=environment, stdout=log, stderr=subprocess.STDOUT, timeout=options.seconds,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            return 124


def curve(run: Path) -> list[dict[str, Any]]:
    """Of each step what does not depend on the clock."""
    rows = [json.loads(line) for line in (run / "curve.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name not in ("seconds", "warm")} for row in rows]


def same_files(first: Path, second: Path) -> bool:
    """Whether two directories hold the same weights."""
    names = sorted(path.name for path in first.glob("*.safetensors"))
    assert names, f"no weights in {first}"
    return names == sorted(path.name for path in second.glob("*.safetensors")) and all(
        (first / name).read_bytes() == (second / name).read_bytes() for name in names
    )


if __name__ == "__main__":
    main()
