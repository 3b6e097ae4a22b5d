"""The receipt of a run: what it took, against what was told before. JSON to keep, Markdown to read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .calibration import Calibration, Measurement
from .checkpoints import write_atomically
from .curve import Point
from .forecast import Forecast, memory_of_steps
from .gpus import Machine
from .memory import GIB, is_compiled
from .plan import Plan

RECEIPT = "receipt.json"
PAGE = "receipt.md"


@dataclass
class Receipt:
    """One training, over all the times that it was started."""

    finished: bool
    steps: int
    """Optimizer steps done."""
    steps_of_plan: int
    plan_hash: str
    device: str
    gpus: int
    tokens: int
    """Of all samples in these steps; padding is not counted."""
    hours: float
    """In optimizer steps, over all starts: without loading, checkpoints and export, and without what is compiled before
    the first step."""
    gpu_hours: float
    dollars: float | None
    """None where the GPU has no price."""
    seconds_per_step: float
    """The mean of the steps that were timed: each start's first one, and those in which something was compiled, are
    left out."""
    tokens_per_second_per_gpu: float
    mfu: float | None
    """Model FLOPs, nothing recomputed counted, over the GPU's dense bf16 peak. None for a device without one."""
    peak_gib: float
    """Of the allocator, on the fullest GPU, at this start."""
    reserved_gib: float
    balance: float
    """Work over what all GPUs could do in the time of the most loaded one, over these steps."""
    first_loss: float
    last_loss: float
    cold_steps: int = 0
    """Steps that are left out of that mean."""
    cold_seconds: float = 0.0
    """What they took longer than as many of the others."""
    forecast: dict[str, Any] = field(default_factory=dict)
    """What was told before, and measured / told: of the seconds of a step (None where no step was timed) and of the
    memory of this start's fullest step."""
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)

    def save(self, run: Path) -> None:
        """Write `receipt.json` and `receipt.md`."""
        write_atomically(run / RECEIPT, json.dumps(asdict(self), indent=1) + "\n")
        write_atomically(run / PAGE, self.page())

    @classmethod
    def load(cls, run: Path) -> Receipt:
        """What `save` wrote. Raises `UsageError`."""
        try:
            return cls(**json.loads((run / RECEIPT).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{run / RECEIPT} cannot be read: {error}", hint="remove it") from None

    def page(self) -> str:
        """In Markdown."""
        rows: list[tuple[str, str]] = [
            ("steps", f"{self.steps} of {self.steps_of_plan}" + ("" if self.finished else " (stopped)")),
            ("tokens", f"{self.tokens:,}"),
            ("machine", f"{self.gpus} x {self.device}"),
            ("time in steps", f"{60 * self.hours:.1f} min, {self.seconds_per_step:.2f} s a step"),
            ("GPU-hours", f"{self.gpu_hours:.3f}"),
        ]
        if self.cold_seconds >= 0.05:
            count = f"{self.cold_steps} step{'s' * (self.cold_steps > 1)}"
            rows.append(("first steps and compiling", f"{count}, {self.cold_seconds:.1f} s more than others"))
        if self.dollars is not None:
            rows.append(("price", f"{self.dollars:.2f} USD"))
        rows.append(("tokens/s/GPU", f"{self.tokens_per_second_per_gpu:,.0f}"))
        if self.mfu is not None:
            rows.append(("MFU", f"{100 * self.mfu:.1f} %"))
        if self.peak_gib:
            rows.append(("peak memory", f"{self.peak_gib:.1f} GiB (reserved {self.reserved_gib:.1f})"))
        rows += [
            ("balance", f"{self.balance:.3f}"),
            ("loss", f"{self.first_loss:.4f} to {self.last_loss:.4f}"),
        ]
        if self.forecast:
            told = self.forecast
            rows.append(
                ("forecast", f"{told['seconds_per_step']:.2f} s a step, measured {_off(told['time_ratio'])}; "
                 f"{told['peak_gib']:.1f} GiB, measured {_off(told['memory_ratio'])}" + _of_these_steps(told))
            )  # fmt: skip
        rows.append(("plan", f"`{self.plan_hash[:16]}`"))
        rows += [(name, str(value)) for name, value in {**self.settings, **self.versions}.items()]
        lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
        return "# Receipt\n\n" + "\n".join(lines) + "\n"


def _of_these_steps(told: dict[str, Any]) -> str:
    """The memory's forecast for the steps of this start, where the plan has fuller ones."""
    mine = told.get("peak_gib_of_steps", told["peak_gib"])
    return f" over the {mine:.1f} of these steps" if round(mine - told["peak_gib"], 1) else ""


def _off(ratio: float | None) -> str:
    return "not" if ratio is None else f"{100 * (ratio - 1):+.1f} %"


def make_receipt(
    plan: Plan,
    points: list[Point],
    *,
    device: str,
    gpus: int,
    began: int,
    max_tokens: int | None,
    peak_gib: float,
    reserved_gib: float,
    machine: Machine | None,
    price: float | None,
    told: Forecast | None,
    settings: dict[str, Any],
    versions: dict[str, str],
) -> Receipt:
    """From the curve of a run. began: steps that were done before this start, to which the memory belongs."""
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    done = [point.step - 1 for point in points]
    timed = [point.step - 1 for point in points if point.warm]
    warm = timed or done
    cold = sorted(set(done) - set(warm))
    seconds = sum(points[k].seconds for k in warm)
    per_step = seconds / len(warm)
    tokens = sum(plan.step_tokens[k] for k in warm)
    flops = sum(plan.cost(i) for k in warm for i in plan.steps[k].samples)
    if plan.recipe.lora_rank:  # frozen weights have no gradient: 4 FLOPs a parameter and token, not 6
        flops -= 2 * plan.shape.matmul_parameters * tokens
    hours = sum(point.seconds for point in points) / 3600
    receipt = Receipt(
        finished=len(points) == len(plan.steps),
        steps=len(points),
        steps_of_plan=len(plan.steps),
        plan_hash=plan.hash,
        device=device,
        gpus=gpus,
        tokens=sum(plan.step_tokens[k] for k in done),
        hours=hours,
        gpu_hours=hours * gpus,
        dollars=None if price is None else hours * gpus * price,
        seconds_per_step=per_step,
        tokens_per_second_per_gpu=tokens / seconds / gpus,
        mfu=None if machine is None else flops / seconds / gpus / (machine.gpu.bf16_tflops * 1e12),
        peak_gib=peak_gib,
        reserved_gib=reserved_gib,
        balance=plan.balance(gpus, max_tokens, steps=sorted(done)[:: max(1, len(done) // 64)]),
        first_loss=points[0].loss,
        last_loss=points[-1].loss,
        cold_steps=len(cold),
        cold_seconds=max(0.0, sum(points[k].seconds for k in cold) - len(cold) * per_step),
        settings=settings,
        versions=versions,
        recipe=plan.recipe.to_json(),
    )
    if told is not None and told.fits:
        # the forecast is of a mean step of the whole plan, the steps that were timed may be heavier or lighter
        heavier = (flops / len(warm)) / (_all_flops(plan) / len(plan.steps))
        mine = done[began:]
        partly = 0 < len(mine) < len(plan.steps)
        counted = (memory_of_steps(plan, told, mine) if partly else told.memory).allocated / GIB
        receipt.forecast = {
            "seconds_per_step": told.seconds_per_step,
            "gpu_hours": told.gpu_hours,
            "dollars": told.dollars,
            "peak_gib": told.memory.allocated / GIB,
            "peak_gib_of_steps": counted,
            "time_ratio": per_step / heavier / told.seconds_per_step if timed else None,
            "memory_ratio": peak_gib / counted if peak_gib and mine else None,
            "factors": told.factors or (1.0, 1.0),
        }
    return receipt


def _all_flops(plan: Plan) -> int:
    spared = 2 * plan.shape.matmul_parameters * plan.total_tokens if plan.recipe.lora_rank else 0
    return plan.total_flops - spared


def add_to_calibration(path: Path, receipt: Receipt, plan: Plan, machine: Machine) -> bool:
    """Append what was measured over what is forecast without any calibration. Returns whether there was something."""
    told = receipt.forecast
    recipe = plan.recipe
    if not told or None in (told["time_ratio"], told["memory_ratio"]):
        return False
    seconds_factor, bytes_factor = told["factors"]  # another forecast could choose other packs
    known = Calibration.read(path) if path.exists() else Calibration()
    known.measurements.append(
        Measurement(
            machine.gpu.name,
            machine.count,
            is_compiled(recipe),
            recipe.float8,
            bool(recipe.lora_rank),
            seconds=told["time_ratio"] * seconds_factor,
            bytes=told["memory_ratio"] * bytes_factor,
            parameters=plan.shape.parameters,
            quantized_base=recipe.quantized_base,
        )
    )
    known.write(path)
    return True
