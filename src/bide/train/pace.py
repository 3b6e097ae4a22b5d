"""How long a step of a plan takes on a machine, and how much memory, when it is shared and recomputed in a given way.

A pass takes as long as its dearest pack: matrix work and attention at measured rates, what is computed again included;
or as long as its collectives, if that is longer.
"""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

from . import recompute_policies
from .gpus import Machine
from .memory import (
    COMPUTE_BYTES,
    Memory,
    gathered_bytes,
    is_compiled,
    memory,
    reduce_bytes,
    state_bytes,
    trained_parameters,
    widths_of,
)
from .plan import Plan
from .recompute_policies import by_pack
from .room import Room
from .shares import Shares

MATRIX_SHARE = {True: 0.543, False: 0.514}
"""Compiled or not -> part of the bf16 peak that layers reach, all that is no attention counted as matrix work. Fitted
to three measured probes of a 32B shape on 4 H200 (FSDP2, one document of 16K or 32K tokens each); whole steps of bide
take 0.98 to 1.02 of what it says, see benchmarks/train_h200_2026-11-22.md."""
SUMMED_IN_BF16 = 1.035
"""How much quicker matrix work is when gradients are summed over GPUs beside it in bf16 and not in fp32, which takes
more of the memory's bandwidth (a layer's backward pass on 4 H200: 17 % slower beside fp32 sums, 10 % beside bf16 ones).
Fitted to one run of whole steps there."""
FLOAT8_GAIN = {"": 1.0, "tensorwise": 1.39, "rowwise": 0.97}
"""How much quicker matrix work is. Measured on the MLP of a 32B on one H100; that all of a layer gains as much is
assumed."""


class AttentionRate(NamedTuple):
    """Of causal attention, forward and backward."""

    share: float
    """Part of the bf16 peak that a row by itself nears as documents grow, by the 7 FLOPs that kernels do for the 6 of
    MFU. A step counts 6: that of matrix work was fitted so."""
    keys: int
    """What each token costs beside, in keys more than it sees."""


DEFAULT_ATTENTION = "cudnn"
ATTENTION = {
    DEFAULT_ATTENTION: AttentionRate(0.664, 3_800),
    "cudnn-repeated": AttentionRate(0.572, 3_800),
    "varlen": AttentionRate(0.342, 1_180),
    "varlen-repeated": AttentionRate(0.324, 1_180),
}
"""A name in `attention_backends.BACKENDS` -> its rate. Measured on one H100: with cuDNN a document of 20,992 tokens
reaches 0.56 of the peak, a row of five documents from 1,100 to 9,109 tokens 0.41; varlen's by rows of four kinds under
the heads of three models, see benchmarks/train-attention_h100_2026-11-22.md; the repeated ones in proportion."""
STEP_SECONDS, PASS_SECONDS = 0.1, 0.05
"""Of an optimizer step beside its passes and its update (clipping, data), and of a pass beside its work (the first
gather, the last sum)."""


def seconds_per_step(
    plan: Plan,
    machine: Machine,
    shares: Shares,
    choice: str,
    larger: float = 1.0,
    attention: str = DEFAULT_ATTENTION,
) -> float:
    """In the mean over all steps of the plan, shared like this, under this choice of `recompute_policies`; whether it
    fits is not asked. larger: as for `peak`; attention: a name in `ATTENTION`."""
    recipe, gpu = plan.recipe, machine.gpu
    least = _collective_seconds(plan, machine)
    rates = cache(partial(_rates, plan, machine, attention))
    beside = ATTENTION[attention].keys
    room = Room(plan.shape, recipe, machine, choice, larger) if by_pack(choice) else None
    busy = 0.0
    for step in shares.steps:
        for each in step:
            longest = least
            for tokens, squares in each:
                a_token, a_square = rates(room.choice(tokens) if room else choice)
                longest = max(longest, a_token * tokens + a_square * (squares + beside * tokens))
            busy += longest
    mean = busy / len(shares.steps) * plan.total_tokens / len(plan.steps) / shares.tokens  # to the mean of all steps
    moved = 2.0 * sum(state_bytes(plan.shape, recipe).values()) / machine.count
    return mean + STEP_SECONDS + shares.passes * PASS_SECONDS + moved / (gpu.memory_gb_per_second * 1e9)


def _rates(plan: Plan, machine: Machine, attention: str, choice: str) -> tuple[float, float]:
    """Seconds of a token, and of a squared length of a document."""
    shape, recipe, gpu = plan.shape, plan.recipe, machine.gpu
    trained = trained_parameters(shape, recipe)
    again = 2.0 * recompute_policies.recomputed_weights(choice, shape.layers, widths_of(shape))
    layers = shape.layers * shape.layer_matmul_parameters
    # Frozen matrices are multiplied forward and for the gradient of their input; only adapters get gradients.
    work = 4.0 * layers + 6.0 * trained + again if recipe.lora_rank else 6.0 * layers + again
    head = (4.0 if recipe.lora_rank else 6.0) * shape.head_parameters
    peak = gpu.bf16_tflops * 1e12
    reached = peak * MATRIX_SHARE[is_compiled(recipe)]
    if recipe.reduce == "bf16" and machine.count > 1 and not recipe.lora_rank:
        reached *= SUMMED_IN_BF16
    a_token = work / (reached * FLOAT8_GAIN[recipe.float8]) + head / reached
    attentions = 6.0 * shape.layers + 2.0 * recompute_policies.layers_attending_again(choice, shape.layers)
    return a_token, attentions * shape.attention_width / (peak * ATTENTION[attention].share)


def _collective_seconds(plan: Plan, machine: Machine) -> float:
    """Of one pass: all weights gathered twice, all gradients summed."""
    shape, recipe = plan.shape, plan.recipe
    summed = reduce_bytes(recipe, machine.count) * trained_parameters(shape, recipe)
    apart = shape.parameters - shape.layers * shape.layer_parameters
    moved = 2.0 * (shape.layers * gathered_bytes(shape, recipe, machine.count) + COMPUTE_BYTES * apart) + summed
    return (machine.count - 1) / machine.count * moved / (machine.link_gb_per_second * 1e9)


def peak(
    plan: Plan, machine: Machine, shares: Shares, choice: str, larger: float = 1.0, *, gradients: bool = False
) -> Memory:
    """Of the fullest pack of these steps, on any GPU: what tensors take. larger: what memory takes over what is
    counted. gradients: as if a step's gradients were there in its first pack too."""
    packs = {
        (tokens, gradients or number > 0)
        for step in shares.steps
        for number, each in enumerate(step)
        for tokens, _ in each
        if tokens
    }
    room = Room(plan.shape, plan.recipe, machine, choice, larger) if by_pack(choice) else None
    found = (
        memory(
            plan.shape, plan.recipe, machine.count, tokens=0 if behind else tokens, later=tokens if behind else 0,
            recompute=room.choice(tokens) if room else choice,
        )
        for tokens, behind in packs
    )  # fmt: skip
    return max(found, key=lambda one: one.allocated)
