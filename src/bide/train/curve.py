"""The curve of a run: one JSON line a step, drawn in a terminal, beside a reference curve where one is given.

The file is the truth; a terminal, TensorBoard and Weights & Biases only show it.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from ..errors import MissingExtraError, UsageError, unknown_name

CURVE = "curve.jsonl"
SMOOTHED = 9
"""Steps of the running mean that is compared with a reference."""
_STEPS = ("step", "_step", "global_step", "train/global_step")
_LOSSES = (("train/loss",), ("train_loss", "training_loss", "training loss"), ("loss",))
"""What a column of the training's loss is called, the plainest first. A loss of an evaluation is never taken."""
_TENSORBOARD = ["step", "value", "wall time"]
_EVALUATIONS = {"eval", "evaluation", "val", "valid", "validation", "test"}
"""Words of a tag. TensorBoard names what it exports run-RUN-tag-TAG.csv."""


@dataclass(frozen=True)
class Point:
    """What one optimizer step was."""

    step: int
    """From 1."""
    epoch: float
    loss: float
    """The objective: the mean over samples or tokens, as the recipe weighs them (nats)."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """All tokens of the step's samples, over all processes."""
    seconds: float
    warm: bool
    """Whether its seconds are those of a step: the processes had made one before, and none compiled anything."""


class Sink(Protocol):
    """Something else that shows the curve while it grows."""

    def add(self, point: Point) -> None: ...

    def close(self) -> None: ...


SINKS: dict[str, str] = {
    "tensorboard": "bide.train.sinks:TensorBoardSink",
    "wandb": "bide.train.sinks:WandbSink",
}
"""Name -> "module:class", made with the run's directory and its settings."""


def check_sink(name: str) -> None:
    """Raises `UnknownNameError`."""
    if name not in SINKS:
        raise unknown_name("curve sink", name, SINKS)


def make_sink(name: str, run: Path, settings: dict[str, Any]) -> Sink:
    """A sink by name. Raises `UnknownNameError`, `MissingExtraError` where its package is not installed, `UsageError`
    where its tracker wants something else first."""
    check_sink(name)
    module, _, attribute = SINKS[name].partition(":")
    try:
        found: Sink = getattr(importlib.import_module(module), attribute)(run, settings)
    except ModuleNotFoundError as error:
        raise MissingExtraError((error.name or name).partition(".")[0], name) from error  # extras have the sinks' names
    return found


class CurveFile:
    """`curve.jsonl` of a run, to add to. What stands there from `step` on (of a run that was killed) is cut off."""

    def __init__(self, run: Path, step: int) -> None:
        self.path = run / CURVE
        kept = [point for point in read_curve(self.path) if point.step <= step] if self.path.exists() else []
        text = "".join(json.dumps(asdict(point)) + "\n" for point in kept)
        part = self.path.with_name(CURVE + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(self.path)
        self.points = kept
        self._file = self.path.open("a", encoding="utf-8")

    def add(self, point: Point) -> None:
        self.points.append(point)
        self._file.write(json.dumps(asdict(point)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_curve(path: Path) -> list[Point]:
    """A curve file. A last line that a kill has cut is left out. Raises `UsageError` for what is no curve."""
    found = []
    names = {field.name for field in fields(Point)}
    lines = _text(path).splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            found.append(Point(**{name: row[name] for name in names}))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and not line.endswith("\n"):
                break
            why = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
            raise UsageError(f"{path}, line {number}: not a step of a curve: {why}") from error
    return found


def read_reference(path: Path) -> dict[int, float]:
    """Step -> loss of the training, of a file that bide or a tracker wrote: bide's `curve.jsonl`, Hugging Face's
    `trainer_state.json`, or a CSV with columns of steps and losses, as Weights & Biases and TensorBoard export it.

    Of rows of one step the last counts; those whose loss is empty or not finite are left out. Raises `UsageError` for
    a file that holds no such curve, or several.
    """
    if path.suffix == ".jsonl":
        rows: Iterable[tuple[int, Any, Any]] = ((n, p.step, p.loss) for n, p in enumerate(read_curve(path), start=1))
    elif path.suffix == ".json":
        rows = _logged(path)
    else:
        rows = _columns_of(path)
    found = {}
    for number, step, loss in rows:
        try:
            value = math.nan if loss in ("", None) else float(loss)
            if math.isfinite(value):
                found[int(float(step))] = value
        except (ValueError, TypeError, OverflowError) as error:
            raise UsageError(f"{path}, row {number}: step {step!r} with loss {loss!r}: {error}") from error
    if not found:
        raise UsageError(f"{path} holds no step with a loss")
    return found


def _logged(path: Path) -> Iterator[tuple[int, Any, Any]]:
    """Of transformers' trainer: losses of the training stand under "loss", those of an evaluation under others."""
    try:
        history = list(json.loads(_text(path))["log_history"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} has no log_history, as a trainer_state.json has", hint="a curve.jsonl, or a CSV"
        ) from error
    for number, row in enumerate(history, start=1):
        if isinstance(row, dict) and "loss" in row:
            yield number, row.get("step"), row["loss"]


def _columns_of(path: Path) -> Iterator[tuple[int, Any, Any]]:
    try:
        rows = list(csv.DictReader(io.StringIO(_text(path), newline="")))
    except csv.Error as error:
        raise UsageError(f"{path}: {error}") from error
    columns = [name for name in (rows[0] if rows else ()) if name]
    plain = {name: name.rpartition(" - ")[2].strip().lower() for name in columns}  # without the run's name
    steps = next((name for name in columns if plain[name] in _STEPS), None)
    losses = next((found for names in _LOSSES if (found := [name for name in columns if plain[name] in names])), [])
    if sorted(plain.values()) == _TENSORBOARD:  # of one tag, which only the file's name may name
        _, named, tag = path.stem.rpartition("tag-")
        if named and _EVALUATIONS & set(re.split(r"[^a-z]+", tag.lower())):
            raise UsageError(
                f"{path} is named as a curve of an evaluation, {tag}", hint="export the tag of the training's loss"
            )
        losses = [name for name in columns if plain[name] == "value"]
    listed = ", ".join(columns) or "none"
    if steps is None or not losses:
        raise UsageError(
            f"{path} has no columns step and loss, but: {listed}", hint="name the training's loss train/loss"
        )
    if len(losses) > 1:
        raise UsageError(f"{path} has several losses of a training: {', '.join(losses)}", hint="leave one in the file")
    return ((number, row[steps], row[losses[0]]) for number, row in enumerate(rows, start=1))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no text in UTF-8: {error}") from error


def deviation(points: Sequence[Point], reference: dict[int, float]) -> float | None:
    """How far the last `SMOOTHED` steps lie from the reference at the same steps, as a part of it (0.1: 10 % above).
    None while fewer than that many steps are in both."""
    both = [(point.loss, reference[point.step]) for point in points if point.step in reference][-SMOOTHED:]
    if len(both) < SMOOTHED:
        return None
    mine, theirs = (sum(column) / len(both) for column in zip(*both))
    return mine / theirs - 1 if theirs else None


def draw(
    curves: Sequence[tuple[str, dict[int, float]]], *, width: int = 72, height: int = 12, last_step: int | None = None
) -> str:
    """Loss curves as text, the first over the others: a mark a column (the mean of its steps), losses at the left."""
    marks = "●·+"
    steps = [step for _, curve in curves for step, loss in curve.items() if math.isfinite(loss)]
    if not steps:
        return ""
    end = max(last_step or 0, *steps)
    columns = [_columns(curve, end, width) for _, curve in curves]
    shown = [value for column in columns for value in column if value is not None]
    low, high = min(shown), max(shown)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    grid = [[" "] * width for _ in range(height)]
    for mark, column in reversed(list(zip(marks, columns))):
        for x, value in enumerate(column):
            if value is not None:
                grid[round((high - value) / (high - low) * (height - 1))][x] = mark
    labels = {0: f"{high:.3f}", height // 2: f"{(low + high) / 2:.3f}", height - 1: f"{low:.3f}"}
    lines = [f"{labels.get(y, ''):>8} │{''.join(row).rstrip()}" for y, row in enumerate(grid)]
    lines.append(" " * 9 + "└" + "─" * width)
    lines.append(" " * 10 + f"step 1{'':{max(width - 6 - len(str(end)), 1)}}{end}")
    if len(curves) > 1:
        lines.append(" " * 10 + "   ".join(f"{mark} {name}" for mark, (name, _) in zip(marks, curves)))
    return "\n".join(lines)


def _columns(curve: dict[int, float], end: int, width: int) -> list[float | None]:
    cells: list[list[float]] = [[] for _ in range(width)]
    for step, loss in curve.items():
        if math.isfinite(loss) and 1 <= step <= end:
            cells[min((step - 1) * width // end, width - 1)].append(loss)
    return [_mean(cell) for cell in cells]


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
