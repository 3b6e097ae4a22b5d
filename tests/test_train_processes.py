"""`bide train run` in two processes: that they run the same, and what they say where they do not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

from bide.errors import UsageError  # noqa: E402
from bide.train import processes  # noqa: E402
from bide.train.processes import ProcessGoneError  # noqa: E402
from bide.train.recipe import s1  # noqa: E402
from bide.train.same_run import DATA, differences, identity  # noqa: E402
from bide.train.sharding import while_others_last  # noqa: E402
from tiny_models import config_of, save_model  # noqa: E402
from train_runs import QUIET, arguments, start, sums  # noqa: E402

pytestmark = QUIET

OTHER = """
import os, sys
from bide.cli import main

before, after = sys.argv.pop(1), sys.argv.pop(1)
if os.environ["RANK"] == "1":
    sys.argv = [one.replace(before, after) for one in sys.argv]
main()
"""
"""bide, in whose second process one text of the arguments is another."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), config_of("Qwen2"), shape=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = sums(tmp_path_factory.mktemp("data") / "rows.jsonl")
    found.with_name("other.jsonl").write_text(found.read_text().replace("Let me", "Let us"))
    return found


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("rows.jsonl", "other.jsonl", f"process 1 does not run what process 0 runs: {DATA}: "),
        ("rate=1e-2", "rate=2e-2", "process 0 runs: learning_rate: 0.01 in process 0, 0.02 in process 1 "),
        ("--steps=1", "--steps=2", "process 0 runs: stop_after: 1 in process 0, 2 in process 1 "),
        ("--attention=plain", "--attention=none", "process 1: unknown attention backend 'none'"),
        ("--model=", "--model=/nowhere", "process 1: neither a directory nor a model"),
        ("anything", "anything", "bide: error: float8 does not go with adapters"),
    ],
)
def test_what_differs_between_processes_is_told_once_and_by_name(
    model: Path, rows: Path, tmp_path: Path, before: str, after: str, told: str
) -> None:
    program = tmp_path / "other.py"
    program.write_text(OTHER)
    settings = {"lora_rank": 4, "float8": "rowwise"} if before == after else {}
    command = arguments(model, rows, tmp_path / "run", "--steps=1", "--attention=plain", **settings)
    process = start(command, 2, (str(program), before, after))
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1 and not (tmp_path / "run" / "curve.jsonl").exists()
    lines = [line for line in said.splitlines() if line.startswith("bide: error: ")]
    assert len(lines) == 1 and told in lines[0], said
    assert "RuntimeError" not in said, said  # of the one that the other has left
    reason = lines[0].removeprefix("bide: error: ")
    assert said.split("Root Cause")[-1].count(reason) == 1, said  # where torchrun's own report ends


def test_the_others_leave_the_first_time_to_speak(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    for rank, expected in (("0", []), ("3", [processes.PATIENCE])):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UsageError, match="no"), processes.first_speaks():
            raise UsageError("no")
        assert waited == expected
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ProcessGoneError), processes.first_speaks():
        raise ProcessGoneError("gone")
    assert waited[-1] > processes.PATIENCE, "the one that is gone says why, and before"


GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:43136. This is"


@pytest.mark.parametrize(
    ("size", "error", "gone"),
    [
        (2, RuntimeError(f"{GLOO} typically\n caused"), True),
        (2, torch.distributed.DistBackendError("NCCL error: Connection closed\nLast error"), True),
        (1, torch.distributed.DistBackendError("NCCL error: Connection closed\nLast error"), False),
        (2, RuntimeError("The size of tensor a (Connection closed) must match"), False),
        (2, torch.OutOfMemoryError("Connection closed for want of memory"), False),
    ],
)
def test_a_process_that_is_gone_is_told_in_one_line(
    size: int, error: Exception, gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(size))
    told = pytest.raises(ProcessGoneError if gone else type(error), match="Connection closed")
    with told as raised, while_others_last():
        raise error
    assert raised.value is error or "\n" not in str(raised.value)


FAILING = """
import os, sys
from bide.cli import main
from bide.errors import UsageError
from bide.train import running
from bide.train.trainer import Trainer

def fail(*_, **__):
    raise UsageError("I cannot go on")

where, rank = sys.argv.pop(1), sys.argv.pop(1)
if os.environ["RANK"] == rank:
    if where == "assemble":
        running.assemble = fail
    else:
        Trainer._update = fail
main()
"""
"""bide, one of whose processes fails by itself."""


@pytest.mark.parametrize(("where", "rank"), [("assemble", "1"), ("step", "0")])
def test_one_process_that_fails_leaves_no_traceback_of_the_other(
    model: Path, rows: Path, tmp_path: Path, where: str, rank: str
) -> None:
    """Which waits for it in FSDP, and not in a call of ours."""
    program = tmp_path / "failing.py"
    program.write_text(FAILING)
    process = start(arguments(model, rows, tmp_path / "run"), 2, (str(program), where, rank))
    said, _ = process.communicate(timeout=120)
    reason = "process 1: I cannot go on" if rank == "1" else "I cannot go on"
    assert [line for line in said.splitlines() if line.startswith("bide: error: ")] == [f"bide: error: {reason}"], said
    assert process.returncode == 1 and "RuntimeError" not in said, said
    assert said.split("Root Cause")[-1].count(reason) == 1, said


def test_differences_are_told_setting_by_setting() -> None:
    def of(data: str = "1" * 64, steps: str = "3" * 64, **changes: object) -> dict[str, object]:
        return identity(steps, s1().with_(**changes).to_json(), data)

    def told(one: dict[str, object], other: dict[str, object]) -> str:
        return differences(one, other, ("on disk", "now"))

    assert told(of(), of(recompute="full", name="mine", compile=False)) == ""  # which may change
    assert told(of(), of(learning_rate=2e-5)) == "learning_rate: 1e-05 on disk, 2e-05 now"
    assert told(of(), of(steps="4" * 64, seed=7)) == (
        f"seed: 42 on disk, 7 now; the steps: {'3' * 16} on disk, {'4' * 16} now"
    )
    other_data = f"the data's tokens: {'1' * 16} on disk, {'2' * 16} now"
    assert told(of(), of(data="2" * 64, steps="4" * 64)) == other_data
    assert told(of(data=""), of(steps="4" * 64)) == f"the steps: {'3' * 16} on disk, {'4' * 16} now"
    assert len(told(of(), of(chat_template="{{ x }}" * 500))) < 120
