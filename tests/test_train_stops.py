"""`bide train run` that is stopped, killed, or finds no room: what is left, and that it goes on."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")
resource = pytest.importorskip("resource", reason="limits of a process are tried")

from bide.errors import ModelError, UsageError  # noqa: E402
from bide.train import choosing, saving, trainer  # noqa: E402
from bide.train.checkpoints import FOLDER, CheckpointError, newest  # noqa: E402
from bide.train.memory import checkpoint_bytes  # noqa: E402
from bide.train.model_files import shape_of  # noqa: E402
from bide.train.recipe import s1  # noqa: E402
from tiny_models import config_of, save_model  # noqa: E402
from train_runs import QUIET, arguments, losses, same, start, sums, train, wait_for, wait_for_steps, weights  # noqa: E402

pytestmark = QUIET
torch.set_num_threads(1)

HELD = """
import pathlib, sys, time
import torch.distributed.checkpoint as dcp
from bide.cli import main

save, go = dcp.save, pathlib.Path(sys.argv.pop(1))

def held(*arguments, **more):
    part = more["storage_writer"].path
    if part.name == "step-000006.part":
        (part / "half").write_text("half")
        while not go.exists():
            time.sleep(0.01)
    return save(*arguments, **more)

dcp.save = held
main()
"""
"""bide, whose checkpoint of step 6 stays half written until there is a certain file."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), config_of("Qwen2"), shape=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sums(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def whole(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(model, rows, out)
    return out


def step_of(checkpoint: Path | None) -> int:
    assert checkpoint is not None
    return int(checkpoint.name.removeprefix("step-"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on(model: Path, rows: Path, tmp_path: Path, number: signal.Signals) -> None:
    settings = {"epochs": 60}
    out, other = tmp_path / "killed", tmp_path / "whole"
    process = start(arguments(model, rows, out, "--save-every=3", "--steps=170", **settings))
    wait_for_steps(out, 7, process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    step = step_of(newest(out))
    if number is signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert 3 <= step <= len(losses(out)) and step % 3 == 0
    else:
        assert process.returncode == 1, said  # though --steps was given: that step was not reached
        assert step == len(losses(out)) < 170
        assert said.endswith(f"stopped after step {step} of 180: the same command goes on\n")
    train(model, rows, out, f"--steps={step + 4}", **settings)
    train(model, rows, other, f"--steps={step + 4}", **settings)
    assert losses(out) == losses(other)


@pytest.mark.parametrize(("number", "processes"), [(signal.SIGKILL, 0), (signal.SIGTERM, 2)])
def test_a_signal_in_the_middle_of_a_write(
    model: Path, rows: Path, tmp_path: Path, number: signal.Signals, processes: int
) -> None:
    out, go, program = tmp_path / "run", tmp_path / "go", tmp_path / "held.py"
    program.write_text(HELD)
    command = arguments(model, rows, out, "--save-every=3", "--save-async", epochs=60)
    process = start(command, processes, (str(program), str(go)))
    half = out / FOLDER / "step-000006.part" / "half"
    wait_for(half.exists, process)
    wait_for_steps(out, 9, process)  # the training goes on beside it
    assert step_of(newest(out)) == 3
    process.send_signal(number)  # with processes: to torchrun, which passes it on
    if number is signal.SIGKILL:
        process.wait(60)
        assert step_of(newest(out)) == 3 and half.exists()
        train(model, rows, out, "--steps=12", "--save-every=5", epochs=60)
        train(model, rows, tmp_path / "whole", "--steps=12", epochs=60)
        assert losses(out) == losses(tmp_path / "whole")
    else:
        go.touch()
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 1, said
        assert 9 <= len(losses(out)) < 180
        assert step_of(newest(out)) == len(losses(out))
    assert len(list((out / FOLDER).iterdir())) == 1


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The file "stop" comes during each start's first step."""
    step = trainer.Trainer._step

    def stopped(self: Any, outcome: Any) -> Any:
        (self.out / "stop").touch()
        return step(self, outcome)

    monkeypatch.setattr(trainer.Trainer, "_step", stopped)


@pytest.mark.usefixtures("stopping")
def test_a_file_named_stop_stops_it(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done = train(model, rows, out, "--steps=3")
    assert done.return_value == 1 and done.stderr.endswith("stopped after step 1 of 6: the same command goes on\n")
    assert len(losses(out)) == 1 and newest(out) is not None and not (out / "stop").exists()
    done = train(model, rows, out, "--steps=2")
    assert done.return_value == 0 and "going on from step 1 of 6\n" in done.stderr  # as far as was asked
    assert "2 of 6 steps are done, --steps 2 asks for no more: without it" in done.stderr


def test_a_stop_that_was_there_before_is_not_meant(model: Path, rows: Path, tmp_path: Path) -> None:
    """Of a batch system that killed the run before it could stop, and has started it again."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "stop").touch()
    done = train(model, rows, out, "--steps=2")
    assert done.return_value == 0 and len(losses(out)) == 2 and not (out / "stop").exists()
    assert "removed the file 'stop', which was there before this start" in done.stderr


@pytest.mark.usefixtures("stopping")
def test_no_ending_leaves_a_stop(model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.Trainer, "_tensors", lambda _: {})
    monkeypatch.setattr(trainer.math, "isfinite", lambda _: False)
    with pytest.raises(trainer.NotFiniteError):
        train(model, rows, tmp_path / "run")
    assert not (tmp_path / "run" / "stop").exists()


def test_the_curve_is_on_the_disk_before_a_checkpoint_of_its_steps(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that loses its power would leave a checkpoint that has more steps than the curve."""
    done: list[str] = []
    write = saving.write_checkpoint

    def noted(run: Path, step: int, *rest: Any, **more: Any) -> Path:
        done.append(f"write {step}")
        return write(run, step, *rest, **more)

    monkeypatch.setattr(saving, "write_checkpoint", noted)
    monkeypatch.setattr(trainer, "sync", lambda path: done.append(f"{path.name} {len(losses(path.parent))}"))
    train(model, rows, tmp_path / "run", "--save-every=1", "--no-save-async", "--steps=2")
    assert done == ["curve.jsonl 1", "write 1", "curve.jsonl 2", "write 2"]


def test_steps_without_a_checkpoint_are_told(model: Path, rows: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(model, rows, out, "--steps=2")
    shutil.rmtree(out / FOLDER)
    (out / "receipt.json").unlink()
    done = train(model, rows, out, "--steps=1")
    assert "there is no checkpoint of the 2 steps that curve.jsonl has: it begins anew" in done.stderr
    assert len(losses(out)) == 1


@pytest.mark.parametrize("how", ["--save-async", "--no-save-async"])
def test_saving_changes_nothing_and_goes_on_to_the_bit(
    model: Path, rows: Path, whole: Path, tmp_path: Path, how: str
) -> None:
    out = tmp_path / "run"
    train(model, rows, out, "--save-every=1", how, "--keep=9")
    kept = sorted((out / FOLDER).iterdir())
    assert losses(out) == losses(whole) and [step_of(path) for path in kept] == [1, 2, 3, 4, 5]
    assert same(weights(out / "model"), weights(whole / "model"))
    for later in kept[2:]:
        shutil.rmtree(later)
    for name in ("receipt.json", "model"):
        (shutil.rmtree if name == "model" else Path.unlink)(out / name)  # type: ignore[operator]
    train(model, rows, out)
    assert losses(out) == losses(whole) and same(weights(out / "model"), weights(whole / "model"))


def test_steps_that_are_done_are_not_done_again(model: Path, rows: Path, tmp_path: Path) -> None:
    train(model, rows, tmp_path / "run", "--steps=4")
    train(model, rows, tmp_path / "run", "--steps=2")
    assert len(losses(tmp_path / "run")) == 4 and not (tmp_path / "run" / "model").exists()


def test_a_policy_that_packs_decide_wants_a_known_gpu(model: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="wants a GPU whose memory is known"):
        train(model, rows, tmp_path / "run", recompute="full,none:fit")
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_a_version_with_fewer_settings_goes_on(model: Path, rows: Path, tmp_path: Path) -> None:
    """What it did not know was as it is by default."""
    out = tmp_path / "run"
    train(model, rows, out, "--steps=2", reduce="fp32")
    for path in (*out.rglob("*.json"),):
        found = json.loads(path.read_text())
        if "reduce" in found.get("recipe", {}):
            del found["recipe"]["reduce"]
            path.write_text(json.dumps(found))
    with pytest.raises(UsageError, match="cannot be resumed"):
        train(model, rows, out, reduce="bf16")
    train(model, rows, out, reduce="fp32")
    assert len(losses(out)) == 6


def test_a_run_to_its_end_leaves_the_model_and_no_checkpoint(whole: Path) -> None:
    assert (whole / "model").is_dir() and not (whole / FOLDER).exists()


def test_a_finished_run_is_neither_trained_again_nor_overwritten(model: Path, rows: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    assert train(model, rows, whole, recompute="full").return_value == 0  # which may change
    with pytest.raises(UsageError, match="cannot be resumed"):
        train(model, rows, whole, learning_rate="5e-3")
    hidden = whole / "elsewhere"
    (whole / "model").rename(hidden)
    with pytest.raises(UsageError, match="is finished"):
        train(model, rows, whole)
    hidden.rename(whole / "model")
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}


def limit_files(size: int) -> None:
    """From now on the system refuses to write longer files, as it does on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def unlimited() -> Any:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("unlimited")
def test_a_full_disk_ends_the_run_with_what_is_whole(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, write = tmp_path / "run", saving.write_checkpoint
    free = resource.getrlimit(resource.RLIMIT_FSIZE)[0]

    def full(run: Path, step: int, *rest: Any, **more: Any) -> Path:
        limit_files(5_000 if step == 4 else free)
        return write(run, step, *rest, **more)

    monkeypatch.setattr(saving, "write_checkpoint", full)
    with pytest.raises(CheckpointError, match=r"step-000004 could not be written: .*too large") as raised:
        train(model, rows, out, "--save-every=2", epochs=4)
    assert "step-000002 is whole" in str(raised.value.hint)
    assert step_of(newest(out)) == 2 and len(list((out / FOLDER).iterdir())) == 1
    assert 4 < len(losses(out)) <= 6  # 6 if it was still being written when 5 was done
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    monkeypatch.undo()
    train(model, rows, out, epochs=4)
    train(model, rows, tmp_path / "whole", epochs=4)
    assert losses(out) == losses(tmp_path / "whole")


def test_a_checkpoint_that_fails_at_the_end_does_not_cost_the_model(
    model: Path, rows: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"

    def late(*_: Any, **__: Any) -> Path:
        end = time.monotonic() + 20
        while not (out / "model").is_dir() and time.monotonic() < end:
            time.sleep(0.01)
        raise CheckpointError("no room")

    monkeypatch.setattr(saving, "write_checkpoint", late)
    with pytest.raises(CheckpointError, match="no room"):
        train(model, rows, out, "--save-every=4")
    assert same(weights(out / "model"), weights(whole / "model"))
    monkeypatch.setattr("bide.train.trainer.Trainer._step", None)
    assert train(model, rows, out).return_value == 0  # there is nothing left to do


def test_a_model_that_cannot_be_written_costs_no_step(
    model: Path, rows: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "model.part").touch()  # a file where a directory is wanted
    with pytest.raises(ModelError, match="model could not be written"):
        train(model, rows, out)
    assert step_of(newest(out)) == len(losses(out)) == 6
    (out / "model.part").unlink()
    monkeypatch.setattr("bide.train.trainer.Trainer._step", None)
    train(model, rows, out)
    assert same(weights(out / "model"), weights(whole / "model"))


def test_it_is_in_the_background_where_there_is_room(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    take = saving.HostCopy.take
    monkeypatch.setattr(saving.HostCopy, "take", lambda copy, tensors: (taken.append(1), take(copy, tensors))[1])
    done = train(model, rows, tmp_path / "room", "--save-every=2", "--steps=3")
    assert taken == [1] and "checkpoints in the background" in done.stderr
    assert "2 written in the background" in (tmp_path / "room" / "receipt.md").read_text()
    monkeypatch.setattr(choosing, "available_bytes", lambda: 100_000)
    done = train(model, rows, tmp_path / "tight", "--save-every=2", "--steps=3")
    assert taken == [1] and "training stops while a checkpoint is written" in done.stderr
    with pytest.raises(UsageError, match="of this host's memory"):
        train(model, rows, tmp_path / "asked", "--save-every=2", "--save-async")
    with pytest.raises(UsageError, match="no effect without --save-every"):
        train(model, rows, tmp_path / "asked", "--no-save-async")
    assert not (tmp_path / "asked").exists()


@pytest.mark.parametrize(
    "settings", [{}, {"weights": "bf16"}, {"moments": "fp32"}, {"lora_rank": 4, "moments": "fp32"}]
)
def test_the_copy_is_what_the_memory_plan_counts(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    if "lora_rank" in settings:
        pytest.importorskip("peft")
    found: list[dict[str, Any]] = []
    free = saving.HostCopy.free
    monkeypatch.setattr(saving.HostCopy, "free", lambda copy: (found.append(dict(copy.parts)), free(copy))[1])
    train(model, rows, tmp_path / "run", "--save-every=1", "--steps=2", **settings)
    size = sum(part.nbytes for name, part in found[0].items() if not name.endswith(".step"))
    recipe = s1().with_settings({name: str(value) for name, value in settings.items()})
    assert size == checkpoint_bytes(shape_of(str(model)), recipe)


def test_a_disk_that_is_too_small_is_told_before(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1_000

    monkeypatch.setattr(choosing.shutil, "disk_usage", lambda _: Usage)
    assert "warning: " in train(model, rows, tmp_path / "run", "--steps=1").stderr
