"""What a plan will take on a machine: memory, minutes, GPU-hours, dollars; and if it does not fit, what would.

Time and memory of one way to do it are `pace`'s; what earlier runs measured corrects both (`Calibration`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import recompute_policies
from .calibration import Calibration
from .gpus import GPUS, PRICES, Machine
from .memory import GIB, Memory, limit, memory, most_tokens, state_bytes, variant_of
from .pace import DEFAULT_ATTENTION, peak, seconds_per_step
from .plan import Plan
from .recipe import AUTO, TrainRecipe
from .recompute_policies import by_pack
from .shares import Sharer, Shares, longest_pack, padded, share

TABLE_COUNTS = (1, 2, 4, 8, 16)
"""Numbers of GPUs in a table of forecasts."""
_MOST_STEPS = 512
"""Of many steps, the fullest pack is looked for in the largest ones only."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """Of one plan on one machine. Where it does not fit, figures of time and packs are 0."""

    machine: Machine
    steps: int
    dollars_per_hour: float
    """Of one GPU."""
    memory: Memory
    """At its peak; where it does not fit, of the least that was tried."""
    recompute: str
    """A choice of `recompute_policies`."""
    needed: float = 0.0
    """Bytes of a GPU that must be free: `memory`, if the gradients of a step were always there (see `room`)."""
    reason: str = ""
    """Why it does not fit. "": it does."""
    remedies: tuple[str, ...] = ()
    """Settings, or machines, with which it would."""
    max_tokens: int = 0
    """Of a pack, for `Plan.layout`."""
    passes: float = 0.0
    """Packs of a GPU in a step, in the mean."""
    balance: float = 0.0
    """As `Plan.balance`."""
    seconds_per_step: float = 0.0
    mfu: float = 0.0
    """Model FLOPs over the bf16 peak; nothing recomputed counts."""
    tokens_per_second: float = 0.0
    """Of one GPU."""
    factors: tuple[float, float] | None = None
    """(seconds, bytes) that it was corrected by, of earlier runs' measurements; None: there were none."""

    @property
    def fits(self) -> bool:
        """Whether the machine can run it."""
        return not self.reason

    @property
    def hours(self) -> float:
        """Of wall time, without start and saving."""
        return self.seconds_per_step * self.steps / 3600

    @property
    def gpu_hours(self) -> float:
        """Of all GPUs."""
        return self.hours * self.machine.count

    @property
    def dollars(self) -> float:
        """Of all GPUs."""
        return self.gpu_hours * self.dollars_per_hour

    def to_json(self) -> dict[str, Any]:
        """Numbers as they are; memory in GiB of one GPU."""
        return {
            "gpus": self.machine.label,
            "fits": self.fits,
            "reason": self.reason,
            "remedies": list(self.remedies),
            "memory": {name: size / GIB for name, size in self.memory.parts.items()},
            "memory_moment": self.memory.moment,
            "memory_allocated": self.memory.allocated / GIB,
            "memory_total": self.memory.total / GIB,
            "memory_needed": self.needed / GIB,
            "memory_limit": limit(self.machine) / GIB,
            "recompute": self.recompute,
            "max_tokens": self.max_tokens,
            "passes": self.passes,
            "balance": self.balance,
            "seconds_per_step": self.seconds_per_step,
            "steps": self.steps,
            "minutes": 60 * self.hours,
            "gpu_hours": self.gpu_hours,
            "dollars": self.dollars,
            "dollars_per_gpu_hour": self.dollars_per_hour,
            "mfu": self.mfu,
            "tokens_per_second_per_gpu": self.tokens_per_second,
            "factors": self.factors,
        }


def forecast(
    plan: Plan,
    machine: Machine,
    *,
    prices: Mapping[str, float] = PRICES,
    calibration: Calibration | None = None,
    remedies: bool = True,
    sharer: Sharer | None = None,
    max_tokens: int | None = None,
    attention: str = DEFAULT_ATTENTION,
) -> Forecast:
    """The quickest way to run `plan` on `machine` that fits, or why there is none.

    With `recompute="auto"` all policies are tried, and mixtures of two, where each pack has as many layers of the
    dearer one as it leaves room for. `remedies`: whether to look for what would help where nothing fits, and through
    all steps for the fullest pack. `sharer`: of this plan's samples, to be used again. `max_tokens`: of a pack, where
    that is settled. `attention`: what computes it, a name in `pace.ATTENTION`.
    """
    recipe, price = plan.recipe, prices[machine.gpu.name]
    base = Forecast(machine, len(plan.steps), price, Memory({}, "", 0.0), recipe.recompute)
    if recipe.float8 and not machine.gpu.float8_tflops:
        return replace(base, reason=f"{machine.gpu.name} has no float8 units", remedies=('float8=""',))
    if recipe.quantized_base and machine.count > 1:
        found = replace(base, reason="4-bit weights are for one GPU")
        return replace(found, remedies=_remedies(plan, machine, calibration, Sharer(plan))) if remedies else found
    factors = calibration.factors(machine, recipe, plan.shape.parameters) if calibration else None
    slower, larger = factors or (1.0, 1.0)
    best: tuple[float, Shares, str] | None = None
    sharer = sharer or Sharer(plan)
    if max_tokens:
        ways = [share(plan, machine.count, min(max_tokens, longest_pack(plan, machine.count)))]
    else:
        ways = sharer.ways(machine.count)
    for shares in ways:
        for choice in _choices(plan, machine, shares, larger):
            seconds = seconds_per_step(plan, machine, shares, choice, larger, attention) * slower
            if best is None or seconds < best[0]:
                best = (seconds, shares, choice)
    if best is None:
        found = _too_small(plan, base, larger, max_tokens)
        return replace(found, remedies=_remedies(plan, machine, calibration, sharer)) if remedies else found
    seconds, shares, choice = best
    flops = _model_flops(plan) / len(plan.steps)
    # The longest pack may be in a step that is not among those that were tried.
    whole = share(plan, machine.count, shares.max_tokens, numbers=plan.spread_steps()) if remedies else shares
    return replace(
        base,
        memory=_scaled(peak(plan, machine, whole, choice, larger), larger),
        needed=_scaled(peak(plan, machine, whole, choice, larger, gradients=True), larger).total,
        recompute=choice,
        max_tokens=shares.max_tokens,
        passes=shares.passes,
        balance=shares.balance,
        seconds_per_step=seconds,
        mfu=flops / (seconds * machine.count * machine.gpu.bf16_tflops * 1e12),
        tokens_per_second=plan.total_tokens / len(plan.steps) / seconds / machine.count,
        factors=factors,
    )


def memory_of_steps(plan: Plan, told: Forecast, steps: Sequence[int]) -> Memory:
    """The peak of some of the plan's steps, run as `told` says. steps: their numbers, from 0."""
    assert told.fits and steps
    larger = told.factors[1] if told.factors else 1.0
    tokens = plan.step_tokens
    largest = sorted(steps, key=lambda step: -tokens[step])[:_MOST_STEPS]
    shares = share(plan, told.machine.count, told.max_tokens, numbers=largest)
    return _scaled(peak(plan, told.machine, shares, told.recompute, larger), larger)


def table(
    plan: Plan,
    *,
    gpus: Sequence[str] = ("h100", "h200"),
    counts: Sequence[int] = TABLE_COUNTS,
    prices: Mapping[str, float] = PRICES,
    calibration: Calibration | None = None,
) -> list[Forecast]:
    """Forecasts for each kind of GPU and each number of them."""
    machines = [Machine(GPUS[name], count) for name in gpus for count in counts]
    sharer = Sharer(plan)
    return [forecast(plan, machine, prices=prices, calibration=calibration, sharer=sharer) for machine in machines]


def _scaled(found: Memory, larger: float) -> Memory:
    return replace(found, parts={name: size * larger for name, size in found.parts.items()}) if larger != 1 else found


def _longest(plan: Plan, machine: Machine, tokens: int, choice: str, larger: float) -> Memory:
    """What a pack of `tokens` has to find room for: the step's gradients too, see `room`."""
    return _scaled(memory(plan.shape, plan.recipe, machine.count, tokens=0, later=tokens, recompute=choice), larger)


def _choices(plan: Plan, machine: Machine, shares: Shares, larger: float) -> list[str]:
    """What may be recomputed such that the longest pack fits."""

    def fits(choice: str) -> bool:
        return _longest(plan, machine, padded(shares.max_tokens), choice, larger).fits(machine)

    told = plan.recipe.recompute
    if told != AUTO:
        least = f"{told.removesuffix(recompute_policies.FIT)}0" if by_pack(told) else told
        return [told] if fits(least) else []
    names = list(recompute_policies.VARIANTS[variant_of(plan.recipe)])  # from the least memory to the most
    whole = [name for name in names if fits(name)]
    others = [name for name in names if name not in whole]
    return [*whole, *(f"{whole[-1]},{other}:{recompute_policies.FIT}" for other in others if whole)]


def _model_flops(plan: Plan) -> int:
    """Of all steps. Frozen matrices have no gradient: 4 FLOPs a parameter and token, not 6."""
    spared = 2 * plan.shape.matmul_parameters * plan.total_tokens if plan.recipe.lora_rank else 0
    return plan.total_flops - spared


def _too_small(plan: Plan, base: Forecast, larger: float, max_tokens: int | None) -> Forecast:
    """Why not even the least fits, in figures."""
    machine, recipe = base.machine, plan.recipe
    choice = "full" if recipe.recompute == AUTO else recipe.recompute
    choice = f"{choice.removesuffix(recompute_policies.FIT)}0" if by_pack(choice) else choice
    longest = max_tokens or max(plan.tokens)
    used = _longest(plan, machine, padded(longest), choice, larger)
    states = sum(state_bytes(plan.shape, recipe).values()) * larger / machine.count / GIB
    top = limit(machine) / GIB
    if states > top:
        reason = f"weights, gradients and moments alone take {states:.1f} GiB of each GPU; {top:.1f} can be used"
    else:
        most = most_tokens(plan.shape, recipe, machine, recompute=choice)
        reason = (
            f"{'a pack' if max_tokens else 'the longest sample'} ({longest:,} tokens) needs {used.total / GIB:.1f} GiB "
            f"of each GPU; {top:.1f} can be used, which is enough for {most:,} tokens"
        )
    return replace(base, reason=reason, memory=used, recompute=choice)


SMALLER_STATES: tuple[dict[str, str], ...] = (
    {"moments": "bf16"},
    {"moments": "int8"},
    {"weights": "bf16", "moments": "bf16"},
    {"weights": "bf16", "moments": "int8"},
)
"""In the order in which they are tried: the nearest to the reference's numerics first."""
_RANK = 64
"""Of the adapters that are proposed."""
_LARGEST = max(GPUS.values(), key=lambda gpu: gpu.memory_gib)
_SMALLER = ("a smaller max_length", "a smaller model")


def _remedies(plan: Plan, machine: Machine, calibration: Calibration | None, sharer: Sharer) -> tuple[str, ...]:
    """Of each kind the nearest that fits: smaller states, whole recomputation, more GPUs, a larger GPU, adapters."""
    recipe = plan.recipe

    def fits(changed: TrainRecipe, there: Machine) -> bool:
        again = replace(plan, recipe=changed)
        return forecast(again, there, calibration=calibration, remedies=False, sharer=sharer).fits

    found: list[str] = []
    if recipe.quantized_base and machine.count > 1:
        found += [f"{gpu.name}:1" for gpu in (machine.gpu, _LARGEST) if fits(recipe, Machine(gpu, 1))][:1]
        if fits(recipe.with_(quantized_base=False), machine):
            found.append("quantized_base=false")
        return tuple(found) or _SMALLER
    size = sum(state_bytes(plan.shape, recipe).values())
    for change in () if recipe.lora_rank else SMALLER_STATES:
        changed = recipe.with_(**change)
        if sum(state_bytes(plan.shape, changed).values()) < size and fits(changed, machine):
            new = {name: value for name, value in change.items() if getattr(recipe, name) != value}
            found.append(" ".join(f"{name}={value}" for name, value in new.items()))
            break
    if recipe.recompute != AUTO and fits(recipe.with_(recompute=AUTO), machine):
        found.append("recompute=auto")
    for count in (2, 4, 8, 16, 32, 64):
        if count > machine.count and fits(recipe, replace(machine, count=count)):
            found.append(f"{machine.gpu.name}:{count}")
            break
    if machine.gpu.memory_gib < _LARGEST.memory_gib and fits(recipe, Machine(_LARGEST, machine.count)):
        found.append(f"{_LARGEST.name}:{machine.count}")
    rank = recipe.lora_rank or _RANK
    adapters = "" if recipe.lora_rank else f"lora_rank={rank}" + (' float8=""' if recipe.float8 else "")
    refused = f" without weights={recipe.weights}" if adapters and recipe.weights != TrainRecipe().weights else ""
    if adapters and fits(recipe.with_(lora_rank=rank, float8=""), machine):
        found.append(adapters + refused)
    elif machine.count == 1 and not recipe.quantized_base:
        if fits(recipe.with_(lora_rank=rank, float8="", quantized_base=True), machine):
            found.append(f"{adapters} quantized_base=true".lstrip() + refused)
    return tuple(found) or _SMALLER
