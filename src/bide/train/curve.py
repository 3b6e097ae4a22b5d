"""The curve of a run: one JSON line a step, drawn in a terminal, beside a reference curve where one is given.

The file is the truth; a terminal, TensorBoard and Weights & Biases only show it.
"""

from __future__ import annotations

import csv
import importlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from ..errors import MissingExtraError, UsageError, unknown_name

CURVE = "curve.jsonl"
SMOOTHED = 9
"""Steps of the running mean that is compared with a reference."""


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


def make_sink(name: str, run: Path, settings: dict[str, Any]) -> Sink:
    """A sink by name. Raises `UnknownNameError`, and `MissingExtraError` where its package is not installed."""
    if name not in SINKS:
        raise unknown_name("curve sink", name, SINKS)
    module, _, attribute = SINKS[name].partition(":")
    try:
        found: Sink = getattr(importlib.import_module(module), attribute)(run, settings)
    except ImportError as error:
        raise MissingExtraError(error.name or name, "train") from error
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
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines):
        if number == len(lines) - 1 and not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
            found.append(Point(**{name: row[name] for name in names}))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}, line {number + 1}: not a step of a curve ({error!r})") from error
    return found


def read_reference(path: Path) -> dict[int, float]:
    """Step -> loss, of a curve file of bide, or of a CSV with the columns step and loss (or train/loss), as trackers
    export it. Raises `UsageError`."""
    if path.suffix == ".jsonl":
        return {point.step: point.loss for point in read_curve(path)}
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    steps = next((name for name in columns if name.lower() in ("step", "global_step", "train/global_step")), None)
    losses = next((name for name in columns if name.lower().endswith("loss")), None)
    if steps is None or losses is None:
        raise UsageError(f"{path} has no columns step and loss, but: {', '.join(columns) or 'none'}")
    try:
        return {int(float(row[steps])): float(row[losses]) for row in rows if row[losses]}
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error


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
