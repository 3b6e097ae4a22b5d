"""Small trainings through the command line, for the tests of `bide train run`."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner

from bide.cli import bide
from bide.train.curve import read_curve

QUIET = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning", "ResourceWarning")
]
"""Of torch and transformers, for `pytestmark`."""
ROWS = 10
BASE = {"epochs": "2", "batch_size": "4", "learning_rate": "1e-2", "max_length": "none"}
"""3 steps an epoch: the last one is filled from the epoch's beginning."""


def sums(path: Path) -> Path:
    """Ten rows, always the same."""
    draw = random.Random(1)
    found = [
        {
            "id": f"sum-{number}",
            "question": f"{draw.randrange(10)} + {draw.randrange(10)}?",
            "thinking": "Let me think. " * draw.randrange(1, 6),
            "answer": str(draw.randrange(19)),
        }
        for number in range(ROWS)
    ]
    return written(path, found)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def arguments(model: Path, rows: Path, out: Path, *more: str, **settings: Any) -> list[str]:
    told = {**BASE, **{name: str(value) for name, value in settings.items()}}
    sets = [f"--set={name}={value}" for name, value in told.items()]
    return ["train", "run", f"--model={model}", f"--data={rows}", f"--out={out}", "--device=cpu", *sets, *more]


def train(model: Path, rows: Path, out: Path, *more: str, code: int = 0, **settings: Any) -> Any:
    done = CliRunner().invoke(bide, arguments(model, rows, out, *more, **settings), standalone_mode=False)
    if done.exception is not None and not isinstance(done.exception, SystemExit) and code == 0:
        raise done.exception
    return done


def start(arguments: list[str], processes: int = 0, program: Sequence[str] = ("-m", "bide")) -> subprocess.Popen[str]:
    """The command in a process, or under torchrun in several."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, *launcher, *program, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def losses(run: Path) -> list[float]:
    return [point.loss for point in read_curve(run / "curve.jsonl")]


def weights(directory: Path) -> dict[str, Any]:
    return dict(transformers.AutoModelForCausalLM.from_pretrained(directory).state_dict())


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def wait_for(found: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 60
    while not found():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def wait_for_steps(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    wait_for(lambda: (out / "curve.jsonl").exists() and len(losses(out)) >= count, process)
