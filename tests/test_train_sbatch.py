"""examples/train.sbatch, with a SLURM, a training and a timer that end when a file is there: when it queues again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).parent.parent / "examples" / "train.sbatch"
COMMANDS = {
    "scontrol": 'if [ "$1" = show ]; then echo first; else echo "$1" >> asked; fi',
    "srun": 'echo $$ > begun\nuntil [ -e "$UNTIL" ]; do sleep 0.05; done\nexit "$CODE"',
}
STOP = "SHARED/runs/s1/stop"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None or os.name != "posix", reason="it is a script for bash")


@pytest.mark.parametrize(
    ("until", "code", "time_is_over", "asked"),
    [
        ("begun", 0, False, []),
        ("begun", 1, False, []),  # a mistake would only be made again
        (STOP, 1, True, ["requeue"]),  # stopped, with a checkpoint
        (STOP, 0, True, []),  # it came to its end meanwhile
        ("asked", 1, True, ["requeue", "requeue"]),  # too late for its checkpoint: queued while it still runs
    ],
)
def test_it_queues_again_when_time_is_over(
    tmp_path: Path, until: str, code: int, time_is_over: bool, asked: list[str]
) -> None:
    for name, text in COMMANDS.items():
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(f"#!/bin/bash\n{text}\n")
        command.chmod(0o755)
    text = TEMPLATE.read_text(encoding="utf-8")
    assert "sleep 270" in text
    (tmp_path / "job").write_text(text.replace("sleep 270", "until [ -e late ]; do sleep 0.05; done"))
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "all", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, **slurm, "PATH": path, "UNTIL": until, "CODE": str(code)}
    job = subprocess.Popen(["bash", "job"], cwd=tmp_path, env=environment, start_new_session=True)
    try:
        if time_is_over:
            wait_for(tmp_path / "begun")
            job.send_signal(signal.SIGUSR1)
        if until == "asked":
            wait_for(tmp_path / STOP)
            (tmp_path / "late").touch()
        assert job.wait(30) == code
        assert (tmp_path / STOP).exists() == time_is_over
        (tmp_path / "late").touch()
        time.sleep(0.3 if time_is_over else 0)  # a timer that still runs would ask once more
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left where all went well
            os.killpg(job.pid, signal.SIGKILL)
        job.wait()
    found = tmp_path / "asked"
    assert (found.read_text().split() if found.exists() else []) == asked


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert path.exists()
