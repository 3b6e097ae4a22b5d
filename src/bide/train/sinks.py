"""Trackers that can show a curve while it grows. Each package is asked for by name on the command line."""

from __future__ import annotations

import importlib
import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .checkpoints import write_atomically
from .curve import Point

WANDB_ID = "wandb_id"
"""The file of a run that holds what Weights & Biases calls it."""


class TensorBoardSink:
    """Event files in `tensorboard/` of the run's directory (package tensorboard)."""

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        self._make = importlib.import_module("torch.utils.tensorboard").SummaryWriter
        self._directory = run / "tensorboard"
        self._settings = settings
        self._writer: Any = None

    def add(self, point: Point) -> None:
        if self._writer is None:  # what earlier files have from this step on, of a run that was killed, is not shown
            self._writer = self._make(str(self._directory), purge_step=point.step)
            text = "\n".join(f"    {name}: {value}" for name, value in self._settings.items())
            self._writer.add_text("settings", text, point.step)
        for name, value in _shown(point).items():
            self._writer.add_scalar(name, value, point.step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandbSink:
    """A run of Weights & Biases (package wandb; its own login and environment). Its id stands in the run's directory:
    a run that goes on goes on there, and two directories of one name are two runs."""

    def __init__(self, run: Path, settings: dict[str, Any]) -> None:
        wandb = importlib.import_module("wandb")
        run.mkdir(parents=True, exist_ok=True)
        kept, name = run / WANDB_ID, run.resolve().name
        id = kept.read_text(encoding="utf-8").strip() if kept.exists() else ""
        if not id:  # one that an older version has begun there is called by its directory's name
            id = name if (run / "wandb").is_dir() else uuid.uuid4().hex
            write_atomically(kept, id + "\n")
        try:
            self._run = wandb.init(project="bide", dir=str(run), name=name, config=settings, resume="allow", id=id)
        except wandb.errors.Error as error:
            raise UsageError(
                f"Weights & Biases did not begin: {error}", hint="wandb login; or WANDB_MODE=offline"
            ) from error

    def add(self, point: Point) -> None:
        self._run.log(_shown(point), step=point.step)

    def close(self) -> None:
        self._run.finish()


def _shown(point: Point) -> dict[str, Any]:
    return {f"train/{name}": value for name, value in asdict(point).items() if name != "step"}
