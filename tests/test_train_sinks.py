"""Curves in trackers: event files read back by TensorBoard's own reader, calls that Weights & Biases would get."""

from __future__ import annotations

import contextlib
import importlib
import struct
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from bide.errors import MissingExtraError, UnknownNameError, UsageError
from bide.train.choosing import RunSettings
from bide.train.curve import SINKS, Point, make_sink
from bide.train.running import _sinks
from bide.train.sinks import WANDB_ID
from train_runs import QUIET

pytestmark = QUIET


def point(step: int, loss: float) -> Point:
    return Point(step, step / 3, loss, 0.5, 1e-5, 100, 2.0, step > 1)


def test_sinks_are_known_by_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="tensorbord"):
        make_sink("tensorbord", tmp_path, {})


@pytest.mark.parametrize("name", SINKS)
def test_what_is_to_be_installed_is_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for module in [one for one in sys.modules if one.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError) as error:
        make_sink(name, tmp_path / "run", {})
    assert str(error.value) == f"the package '{name}' is not installed; run: pip install 'bide[{name}]'"
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (wanted,) = project["optional-dependencies"][name]
    assert wanted.startswith(f"{name}>=")
    assert not (tmp_path / "run").exists()


def test_event_files_hold_the_curve(tmp_path: Path) -> None:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_sink("tensorboard", tmp_path, {}).close()
    assert not (tmp_path / "tensorboard").exists(), "nothing to show"
    sink = make_sink("tensorboard", tmp_path, {"epochs": 3, "name": "mine"})
    for step, loss in ((1, 2.0), (2, 1.5), (3, 7.0)):
        sink.add(point(step, loss))
    sink.close()
    sink = make_sink("tensorboard", tmp_path, {"epochs": 3})
    sink.add(point(3, 1.25))  # it was killed, and its last checkpoint was of step 2
    sink.close()
    found = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert set(found.Tags()["scalars"]) == {
        f"train/{name}"
        for name in ("epoch", "loss", "gradient_norm", "learning_rate", "tokens", "seconds", "warm")
    }  # fmt: skip
    assert [(one.step, one.value) for one in found.Scalars("train/loss")] == [(1, 2.0), (2, 1.5), (3, 1.25)]
    assert [one.value for one in found.Scalars("train/learning_rate")] == pytest.approx([1e-5] * 3)
    assert found.Tags()["tensors"] == ["settings/text_summary"]
    text = found.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text == "    epochs: 3\n    name: mine"


class FakeRun:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.finished = False

    def log(self, data: dict[str, Any], step: int | None = None, commit: bool | None = None) -> None:
        self.rows.append((step or 0, data))

    def finish(self, exit_code: int | None = None) -> None:
        self.finished = True


class FakeWandb(types.ModuleType):
    """The part of wandb that is called, with its signatures (0.18 to 0.31)."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.began: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []
        self.refuses = ""

    def init(
        self, *, project: str, dir: str, name: str, config: dict[str, Any], resume: str, id: str
    ) -> FakeRun:  # fmt: skip
        if self.refuses:
            raise self.errors.Error(self.refuses)
        self.began.append({"project": project, "dir": dir, "name": name, "config": config, "resume": resume, "id": id})
        self.runs.append(FakeRun())
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_a_run_of_wandb_gets_each_step_once(tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "a" / "run"
    sink = make_sink("wandb", run, {"epochs": 3})
    sink.add(point(1, 2.0))
    sink.add(point(2, 1.5))
    assert not wandb.runs[0].finished
    sink.close()
    assert wandb.runs[0].finished
    assert wandb.runs[0].rows == [
        (step, {"train/epoch": step / 3, "train/loss": loss, "train/gradient_norm": 0.5, "train/learning_rate": 1e-5,
                "train/tokens": 100, "train/seconds": 2.0, "train/warm": step > 1})
        for step, loss in ((1, 2.0), (2, 1.5))
    ]  # fmt: skip
    began = wandb.began[0]
    assert {**began, "id": ""} == {
        "project": "bide", "dir": str(run), "name": "run", "config": {"epochs": 3}, "resume": "allow", "id": "",
    }  # fmt: skip
    monkeypatch.chdir(run)
    make_sink("wandb", Path("."), {})
    assert (wandb.began[1]["id"], wandb.began[1]["name"]) == (began["id"], "run"), "the same run goes on"
    make_sink("wandb", tmp_path / "b" / "run", {})
    assert wandb.began[2]["name"] == "run" and wandb.began[2]["id"] != began["id"], "another run of the same name"
    (tmp_path / "c" / "older" / "wandb").mkdir(parents=True)
    make_sink("wandb", tmp_path / "c" / "older", {})
    assert wandb.began[3]["id"] == "older", "what an older version has begun goes on"
    (tmp_path / "a" / "empty").mkdir()
    (tmp_path / "a" / "empty" / WANDB_ID).write_text("")  # it was killed while it wrote
    for _ in range(2):
        make_sink("wandb", tmp_path / "a" / "empty", {})
    assert wandb.began[4]["id"] == wandb.began[5]["id"] != ""


@pytest.mark.parametrize(("second", "begun"), [("paper", 0), ("tensorboard", 1)])
def test_a_sink_that_cannot_be_made_leaves_none_open(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, second: str, begun: int
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    settings = RunSettings(out=tmp_path, sinks=("wandb", second))
    with pytest.raises((UnknownNameError, MissingExtraError)), contextlib.ExitStack() as around:
        _sinks(around, settings, {})
    assert len(wandb.runs) == begun and all(one.finished for one in wandb.runs)


def test_what_wandb_wants_first_is_one_line(tmp_path: Path, wandb: FakeWandb) -> None:
    wandb.refuses = "No API key configured."
    with pytest.raises(UsageError, match="Weights & Biases did not begin: No API key configured") as error:
        make_sink("wandb", tmp_path, {})
    assert "WANDB_MODE=offline" in error.value.hint


def leveldb_log(data: bytes) -> Iterator[bytes]:
    """The records of a file of wandb: LevelDB's log format behind seven bytes."""
    at, held, block = 7, b"", 32_768
    while at < len(data):
        if block - at % block < 7:
            at += block - at % block
        size, kind = struct.unpack_from("<HB", data, at + 4)  # behind a checksum
        held += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of its parts
            yield held
            held = b""


def test_wandb_itself_keeps_the_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, read back from its own file. Only where wandb is installed."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    sink = make_sink("wandb", tmp_path / "run", {"epochs": 3})
    for step, loss in ((1, 2.0), (2, 1.5)):
        sink.add(point(step, loss))
    sink.close()
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    record = importlib.import_module("wandb.proto.wandb_internal_pb2").Record
    found = []
    for data in leveldb_log(file.read_bytes()):
        one = record.FromString(data)
        values = {"/".join(item.nested_key) or item.key: item.value_json for item in one.history.item}
        if "train/loss" in values:
            found.append((int(values["_step"]), float(values["train/loss"])))
    assert found == [(1, 2.0), (2, 1.5)]
