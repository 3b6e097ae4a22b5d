"""One arm of `bench_train.py` in one of its processes: measured, profiled, set beside its forecast."""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))  # a checkout needs no installation

from bench_train_arms import ARMS, PROMPT, TINY, Arm, Bide, Made, Marks, Reference, s1k_lengths
from bench_train_profile import profiled

from bide.train.plan import Plan
from bide.train.recipe import AUTO, TrainRecipe, s1
from bide.train.shapes import SHAPES, ModelShape

PEAK = 989e12


def run_arm(options: argparse.Namespace) -> None:
    """One arm, in one of its processes."""
    begin = time.time()
    import torch

    from bide.train.sharding import start_world
    from bide.train.trainee import prepare_attention

    arm = ARMS[options.arm]
    settings: dict[str, Any] = {**arm.choices[options.choice]}
    for text in () if arm.reference else options.set:  # the reference is what it is
        name, _, value = text.partition("=")
        settings[name] = {"true": True, "false": False}.get(value.lower(), value)
    name = options.shape or arm.shape
    shape = TINY if name == "tiny" else SHAPES[name]
    small = name == "tiny"
    recipe = s1().with_(name=options.arm, seed=options.seed, **arm.changes)
    changed = {key: value for key, value in settings.items() if key in TrainRecipe.__dataclass_fields__}
    recipe = recipe.with_(**{key: value for key, value in changed.items() if key not in ("recompute", "compile")})
    lengths = s1k_lengths(1_000, options.seed, 0.01 if small else 1.0)
    prompt = 4 if small else PROMPT
    plan = Plan.make(lengths, recipe, shape, loss_lengths=[count - prompt for count in lengths])
    with start_world() as world:
        machine = machine_of(world)
        choose(settings, plan, machine)
        most = int(settings.get("max_tokens") or 0)
        if world.device.type == "cpu":
            torch.set_num_threads(1)
            settings["backend"] = None
        draw = random.Random(options.seed)
        needed = sorted({i for step in plan.steps[: options.warmup + options.steps + 1] for i in step.samples})
        samples = {i: Made(draw.choices(range(shape.vocab), k=lengths[i]), ((prompt, lengths[i]),)) for i in needed}
        cap = max(most // (100 if small else 1), max(lengths)) if most else None
        made_by: Any = Reference if arm.reference else Bide
        runner = made_by(shape, recipe, plan, samples, world, settings, cap, machine)
        if world.device.type == "cuda":
            if not arm.reference:
                prepare_attention(runner.made, max(lengths))
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        started = time.time() - begin
        rows: list[dict[str, Any]] = []
        last = 0.0
        for step in range(min(options.warmup + options.steps, len(plan.steps))):
            late = bool(options.deadline) and time.time() + 1.2 * last > options.deadline
            if step > options.warmup and world.any(late):
                break
            row = timed(runner, step, world)
            last = row["seconds"]
            if world.is_first:
                print(f"step {step}: {json.dumps(row)}", flush=True)
            if step < options.warmup:
                continue
            rows.append(row)
            peaks = world.gather(memory_peaks(world.device))
            result = summary(options, shape, recipe, plan, rows, world, cap) | {
                "settings": {
                    **settings,
                    "weights": recipe.weights,
                    "moments": recipe.moments,
                    "reduce": recipe.reduce,
                    "float8": recipe.float8,
                },
                "peak_reserved_gib": round(max(p[0] for p in peaks), 1),
                "peak_allocated_gib": round(max(p[1] for p in peaks), 1),
                "seconds_to_start": round(started, 1),
                "forecast": {},
                "kernels": {},
            }
            write(options, result, world)
        if world.is_first and not arm.reference:
            try:
                result["forecast"] = foretold(plan, settings, cap, result, max(p[1] for p in peaks), machine)
            except Exception as error:  # the others wait for this process to profile
                result["forecast"] = {"error": f"{type(error).__name__}: {error}"}
        write(options, result, world)
        if options.profile and not world.any(bool(options.deadline) and time.time() + 4 * last > options.deadline):
            try:
                result["kernels"] = profiled(runner, options.warmup + len(rows), world)
            except Exception:  # its own: the step has been run by all
                traceback.print_exc()
            write(options, result, world)


def memory_peaks(device: Any) -> tuple[float, float]:
    """GiB that the allocator had reserved, and that tensors had, at most."""
    import torch

    if device.type != "cuda":
        return 0.0, 0.0
    return torch.cuda.max_memory_reserved() / 2**30, torch.cuda.max_memory_allocated() / 2**30


def write(options: argparse.Namespace, result: dict[str, Any], world: Any) -> None:
    """The result so far, whole: what comes later may fail without harm."""
    if world.is_first:
        path = options.out / f"{options.arm}.part.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(result))
        fresh.replace(path)


def timed(runner: Any, step: int, world: Any) -> dict[str, Any]:
    """One optimizer step with its parts, in seconds on the first process."""
    marks = Marks(world.device)
    world.barrier()
    marks.at("begin")
    told = runner.step(step, marks)
    marks.at("end")
    return {**told, **marks.seconds()}


def summary(
    options: argparse.Namespace,
    shape: ModelShape,
    recipe: TrainRecipe,
    plan: Plan,
    rows: Sequence[dict[str, Any]],
    world: Any,
    cap: int | None,
) -> dict[str, Any]:
    """What the measured steps say of the whole training."""
    import torch
    import transformers

    numbers = range(options.warmup, options.warmup + len(rows))
    seconds = sum(row["seconds"] for row in rows)
    tokens = sum(plan.step_tokens[k] for k in numbers)
    flops = sum(plan.cost(i) for k in numbers for i in plan.steps[k].samples)
    hours = plan.total_flops / flops * seconds * world.size / 3600
    if recipe.lora_rank:  # frozen weights have no gradient: 4 FLOPs a parameter and token, not 6
        flops -= 2 * shape.matmul_parameters * tokens
    rate = flops / seconds / world.size
    on_gpu = world.device.type == "cuda"
    return {
        "arm": options.arm,
        "shape": shape.name,
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "gpus": world.size,
        "warmup": options.warmup,
        "steps": len(rows),
        "seconds_per_step": round(seconds / len(rows), 3),
        "seconds_of_steps": [row["seconds"] for row in rows],
        "tokens_per_step": round(tokens / len(rows)),
        "tokens_per_second_per_gpu": round(tokens / seconds / world.size, 1),
        "tflops_per_gpu": round(rate / 1e12, 2),
        "mfu": round(rate / PEAK, 4),
        "gpu_hours_of_315_steps": round(seconds / len(rows) * 315 * world.size / 3600, 3),
        "gpu_hours_of_the_plan": round(hours, 3),
        "plan_steps": len(plan.steps),
        "balance": round(balance(plan, numbers, world.size, ARMS[options.arm], cap), 4),
        "forward_backward": round(sum(row["forward_backward"] for row in rows) / len(rows), 3),
        "update": round(sum(row["update"] for row in rows) / len(rows), 3),
        "losses": [row["loss"] for row in rows],
        "plan_hash": plan.hash,
        "seed": options.seed,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if on_gpu else None,
            "python": sys.version.split()[0],
        },
    }


def balance(plan: Plan, numbers: Sequence[int], processes: int, arm: Arm, cap: int | None) -> float:
    """As `Plan.balance`, of what this arm does in these steps."""
    if not arm.reference:
        return plan.balance(processes, cap, steps=numbers)
    done = taken = 0
    for batch in (plan.steps[k].samples for k in numbers):
        for turn in range(0, len(batch), processes):
            costs = [plan.cost(i) for i in batch[turn : turn + processes]]
            done += sum(costs)
            taken += processes * max(costs)
    return done / taken


def machine_of(world: Any) -> Any:
    """As forecasts know it; None: they do not."""
    import torch

    from bide.train.gpus import GPUS, Machine

    device = torch.cuda.get_device_name() if world.device.type == "cuda" else ""
    name = next((name for name in GPUS if name.upper() in device.upper()), None)
    return None if name is None else Machine(GPUS[name], world.size)


def choose(settings: dict[str, Any], plan: Plan, machine: Any) -> None:
    """What `bide train run` would take in place of "auto"."""
    from bide.train.forecast import forecast

    if settings.get("recompute") == AUTO:
        told = None if machine is None else forecast(plan, machine)
        settings["recompute"] = "attention" if told is None else told.recompute
        if told is not None:
            settings.setdefault("max_tokens", told.max_tokens)


def foretold(
    plan: Plan, settings: dict[str, Any], cap: int | None, result: dict[str, Any], peak: float, machine: Any
) -> dict[str, Any]:
    """What `bide train plan` counts with for the same packs and settings, and measured over that: of the GPU-hours of
    the plan, and of the allocator's peak with the packs that were measured."""
    from bide.train.memory import GIB
    from bide.train.pace import peak as peak_of
    from bide.train.pace import seconds_per_step
    from bide.train.shares import longest_pack, share

    if machine is None:
        return {}
    same = replace(plan, recipe=plan.recipe.with_(recompute=settings["recompute"], compile=settings["compile"]))
    longest = cap or longest_pack(plan, machine.count)
    seconds = seconds_per_step(same, machine, share(plan, machine.count, longest), settings["recompute"])
    hours = seconds * len(plan.steps) * machine.count / 3600
    measured = share(plan, machine.count, longest, numbers=range(result["warmup"] + result["steps"]))
    held = peak_of(same, machine, measured, settings["recompute"])
    return {
        "longest_pack": max(tokens for step in measured.steps for each in step for tokens, _ in each),
        "seconds_per_step": round(seconds, 3),
        "gpu_hours": round(hours, 3),
        "allocated_gib": round(held.allocated / GIB, 1),
        "hours_ratio": round(result["gpu_hours_of_the_plan"] / hours, 3),
        "memory_ratio": round(peak / (held.allocated / GIB), 3),
    }
