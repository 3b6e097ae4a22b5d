"""What earlier runs measured against what was forecast for them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import UsageError
from .gpus import Machine
from .memory import is_compiled
from .recipe import TrainRecipe

MODEL = 3
"""The way in which memory is counted. Ratios to another one say nothing of this one. 1: a step's longest pack and its
gradients were taken for one moment. 2: layers under adapters were taken for compiled ones."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run over its forecast."""

    gpu: str
    """A name in `gpus.GPUS`."""
    count: int
    compile: bool
    """Whether layers were compiled: never those of 4 bits."""
    float8: str
    lora: bool
    seconds: float
    """Measured seconds of a step, over those that were forecast without calibration."""
    bytes: float
    """Measured peak of the allocator, over the forecast one without calibration."""
    parameters: int = 0
    """Of the model. 0: not known."""
    quantized_base: bool = False
    model: int = MODEL
    """What forecast it."""


class Calibration:
    """Measurements of earlier runs: a JSON list in a file, to which receipts add."""

    def __init__(self, measurements: Iterable[Measurement] = ()) -> None:
        self.measurements = list(measurements)

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Raises `UsageError`."""
        try:
            found = [Measurement(**{"model": 1, **entry}) for entry in json.loads(path.read_text(encoding="utf-8"))]
            if not all(0 < ratio < math.inf for one in found for ratio in (one.seconds, one.bytes)):
                raise ValueError("a ratio is above 0")
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path} is no calibration: {error}", hint="runs write one, see bide train run") from None
        return cls(found)

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps([asdict(one) for one in self.measurements], indent=1) + "\n", encoding="utf-8")
        fresh.replace(path)

    def factors(self, machine: Machine, recipe: TrainRecipe, parameters: int) -> tuple[float, float] | None:
        """(seconds, bytes) to multiply a forecast by: geometric means over runs on the same kind of GPU with the same
        settings, forecast as today; of those, where there are some, only the models of half to twice as many
        parameters; of those, where there are some, only runs on as many GPUs. None: there is no such run."""
        wanted = (machine.gpu.name, is_compiled(recipe), recipe.float8, bool(recipe.lora_rank), recipe.quantized_base)
        alike = [
            one
            for one in self.measurements
            if (one.gpu, one.compile, one.float8, one.lora, one.quantized_base) == wanted
        ]
        alike = [one for one in alike if one.model == MODEL]
        alike = [one for one in alike if parameters <= 2 * one.parameters <= 4 * parameters] or alike
        alike = [one for one in alike if one.count == machine.count] or alike
        if not alike:
            return None
        return _mean([one.seconds for one in alike]), _mean([one.bytes for one in alike])


def _mean(ratios: list[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))
