"""What a run chooses before its first step: recomputation, packs, how checkpoints are written, by the machine."""

from __future__ import annotations

import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import UsageError
from .attention import DEFAULT_BACKEND, choose_backend
from .calibration import Calibration
from .checkpoints import FOLDER, is_whole
from .forecast import Forecast, forecast
from .gpus import GPUS, Machine
from .host_memory import available_bytes
from .memory import COMPUTE_BYTES, GIB, checkpoint_bytes, state_bytes
from .pace import ATTENTION, DEFAULT_ATTENTION
from .plan import Plan
from .recompute_policies import by_pack
from .room import Room
from .sharding import World

HOST_USABLE = 0.8
"""Part of the memory that a host still has which the copy of a checkpoint may take."""


@dataclass(frozen=True)
class RunSettings:
    """Where a plan runs, and what is done beside it."""

    out: Path
    device: str | None = None
    """"cuda" or "cpu"; None takes CUDA where there is one."""
    attention: str | None = None
    """A name in `attention_backends.BACKENDS`; None takes the device's."""
    deterministic: bool = False
    """Whether two runs, and one that was stopped, compute the same bytes on one GPU too (`determinism`)."""
    max_tokens: int | None = None
    """Of a pack. None: what the forecast says for this machine; where there is none, one pack for each process."""
    save_every: int = 0
    """Steps from one checkpoint to the next. 0: only when it is stopped, or where `export` is False at the end."""
    save_async: bool | None = None
    """Whether checkpoints are written in the background, from a copy in host memory, while the training goes on. None:
    where there is room for the copy."""
    keep: int = 1
    stop_after: int | None = None
    export: bool = True
    sinks: tuple[str, ...] = ()
    calibration: Path | None = None
    """Earlier runs' measurements; this one's are added."""
    prices: dict[str, float] | None = None


@dataclass(frozen=True)
class Ready:
    """What was chosen before the first step."""

    world: World
    machine: Machine | None
    """None for a device that no forecast knows."""
    told: Forecast | None
    attention: str
    """A name in `attention_backends.BACKENDS`."""
    recomputed: str
    room: Room | None
    """What a policy that ends in "fit" asks before each pack; None for the others."""
    max_tokens: int | None
    in_background: bool
    """Whether checkpoints are written while the training goes on."""
    deterministic: bool
    notes: tuple[str, ...]

    @property
    def calibrates(self) -> bool:
        """Whether what it measures says something of other runs: those attend by the default."""
        return self.attention == DEFAULT_BACKEND[self.world.device.type]


def choose(plan: Plan, settings: RunSettings, world: World) -> Ready:
    """The policy of recomputation, the length of packs, and how checkpoints are written. Every process must call it.
    Raises `UsageError` where nothing fits."""
    name = device_name(world)
    kind = next((GPUS[known] for known in GPUS if world.device.type == "cuda" and _is(known, name)), None)
    attention = choose_backend(settings.attention, device=world.device, deterministic=settings.deterministic)
    recipe, notes = plan.recipe, []
    if settings.deterministic and world.device.type == "cuda" and world.size > 1:
        notes.append("deterministic on each GPU; NCCL adds over GPUs in an order of its own, which is not fixed here")
    plain = "none" if world.device.type == "cpu" else "full"
    recomputed = plain if recipe.recompute == "auto" else recipe.recompute
    if world.device.type == "cpu" and recipe.float8:
        notes.append("a CPU imitates float8: right, and slow")
    in_background = _save_in_background(plan, settings, world, notes)
    _check_disk(plan, settings, world, notes)
    if kind is None and by_pack(recomputed):
        raise UsageError(
            f"recompute {recomputed!r} wants a GPU whose memory is known ({', '.join(GPUS)}), not {name}",
            hint="give a number of layers",
        )
    room = None
    if kind is None:
        if world.device.type == "cuda":
            notes.append(f"there is no forecast for {name}: recompute={recomputed}, packs as long as they come")
        machine, told, max_tokens = None, None, settings.max_tokens
    else:
        machine = Machine(kind, world.size)
        known = settings.calibration
        calibration = Calibration.read(known) if known is not None and known.exists() else None
        counted = attention if attention in ATTENTION else DEFAULT_ATTENTION
        told = forecast(plan, machine, calibration=calibration, max_tokens=settings.max_tokens, attention=counted)
        if not told.fits:
            raise UsageError(
                f"this does not fit {machine.label}: {told.reason}", hint="; ".join(told.remedies) or "use more GPUs"
            )
        larger = told.factors[1] if told.factors else 1.0
        room = Room(plan.shape, recipe, machine, told.recompute, larger) if by_pack(told.recompute) else None
        recomputed, max_tokens = told.recompute, told.max_tokens
        if attention != counted:
            notes.append(f"attention is {attention}, whose rate is not known: the forecast counts {counted}")
        if attention != DEFAULT_ATTENTION and settings.calibration is not None:
            notes.append(f"attention is {attention}: what is measured is not added to the calibration")
    return Ready(
        world, machine, told, attention, recomputed, room, max_tokens, in_background, settings.deterministic,
        tuple(notes),
    )  # fmt: skip


def _save_in_background(plan: Plan, settings: RunSettings, world: World, notes: list[str]) -> bool:
    """Whether checkpoints are: as asked for, else where the hosts have room for the copy. Raises `UsageError`."""
    if not settings.save_every:
        if settings.save_async is not None:
            raise UsageError("save_async would have no effect without save_every")
        return False
    if settings.save_async is False:
        return False
    here = [name for name in world.gather(platform.node()) if name == platform.node()]
    copy = checkpoint_bytes(plan.shape, plan.recipe) * len(here) / world.size
    beside = 0.0
    if world.device.type == "cpu":  # the training itself is there too, and has not begun
        beside = sum(state_bytes(plan.shape, plan.recipe).values()) * len(here) / world.size
    free = available_bytes()
    lacking = free is not None and copy > HOST_USABLE * max(0.0, free - beside)
    if not any(world.gather(lacking)):
        return True
    short = (
        f"the copy that checkpoints are written from takes {copy / GIB:,.1f} GiB of this host's memory, of which "
        f"{HOST_USABLE:.0%} of {(free or 0) / GIB:,.1f} GiB may be used"
    )
    if settings.save_async:
        raise UsageError(short, hint="without --save-async, training stops while a checkpoint is written")
    notes.append(f"{short}: training stops while a checkpoint is written")
    return False


def _check_disk(plan: Plan, settings: RunSettings, world: World, notes: list[str]) -> None:
    """Note it where what the run writes will hardly find room."""
    if not world.is_first:
        return
    each = checkpoint_bytes(plan.shape, plan.recipe)
    there = sum(is_whole(path) for path in (settings.out / FOLDER).glob("step-*"))
    needed = max(0, settings.keep + 1 - there) * each if settings.save_every else each
    if settings.export and not plan.recipe.lora_rank:
        needed += plan.shape.parameters * COMPUTE_BYTES
    place = next(path for path in (settings.out.absolute(), *settings.out.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        notes.append(
            f"warning: {place} has {free / GIB:,.1f} GiB left; checkpoints of {each / GIB:,.1f} GiB, and the model, "
            f"may need {needed / GIB:,.1f}"
        )


def device_name(world: World) -> str:
    """Of this process's device."""
    return torch.cuda.get_device_name() if world.device.type == "cuda" else (platform.machine() + " CPU")


def _is(known: str, name: str) -> bool:
    return all(part.upper() in name.upper() for part in known.split("-"))
