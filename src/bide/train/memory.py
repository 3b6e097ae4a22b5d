"""Bytes of one GPU while a model is trained: what is kept, what comes and goes, and when it is most.

Weights, gradients and moments are sharded over all GPUs (FSDP). The peak is the highest of these moments: the loss; the
backward pass of some layer (of the last ones, where activations are most, or of the first ones, where all gradients are
there); the sum of a layer's gradients over the GPUs; and the end, when the gradient of the embedding is summed. The
optimizer's step takes less: its updates are fused. tests/test_train_memory.py compares this with what a step of the
trainer itself allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from .gpus import Machine
from .recipe import TrainRecipe
from .recompute_policies import VARIANTS, Widths, dropped, parse
from .shapes import ModelShape

GIB = 1 << 30
COMPUTE_BYTES = 2
"""A number in bf16, in which layers compute."""
STATE_BYTES: dict[str, float] = {"fp32": 4, "bf16": 2, "int8": 1 + 4 / 128}
"""A number of weights, gradients or moments, by type; 8-bit blocks of 128 have a scale each."""
FOUR_BIT_BYTES = 0.5 + 0.127 / 8
"""A number of a 4-bit matrix: NF4 in blocks of 64 with 8-bit scales (QLoRA, Dettmers et al. 2023)."""
LOGITS_TOKENS = 4096
"""Rows of logits at a time (`loss.chunked_cross_entropy`)."""
LOGITS_BYTES = COMPUTE_BYTES
"""A logit, whose gradient takes its place."""
HEAD_ROWS = 32_768
"""Rows of the head whose gradient is added to at a time (there too)."""
SUMMED_FIRST = 4
"""A number of the head's gradient while the loss adds to it."""
CONTEXT_GIB, CONTEXT_GIB_ALONE = 3.0, 1.0
"""Of CUDA, libraries and, with several GPUs, NCCL."""
USABLE = 0.93
"""Part of a GPU's memory that a plan may fill; the rest is for fragments and what is not modelled."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one GPU at the peak."""

    parts: dict[str, float]
    """What the GPU holds at its peak, by name."""
    moment: str
    """When that is."""
    context: float
    """Of CUDA, NCCL and libraries, outside of the allocator."""

    @property
    def allocated(self) -> float:
        """What the allocator's own peak shows."""
        return sum(self.parts.values())

    @property
    def total(self) -> float:
        """With the context."""
        return self.allocated + self.context

    def fits(self, machine: Machine) -> bool:
        """Whether a GPU of `machine` has room for it, with some to spare."""
        return self.total <= limit(machine)


def limit(machine: Machine) -> float:
    """Bytes of one GPU that a plan may fill."""
    return machine.gpu.memory_gib * GIB * USABLE


def widths_of(shape: ModelShape) -> Widths:
    """A layer's widths, as `recompute_policies` takes them."""
    return Widths(shape.hidden, shape.attention_width, shape.kv_width, shape.intermediate)


def adapter_parameters(shape: ModelShape, rank: int) -> int:
    """Of LoRA adapters on all linear layers: rank * (inputs + outputs) each."""
    q = shape.hidden + shape.attention_width
    kv = shape.hidden + shape.kv_width
    mlp = shape.hidden + shape.intermediate
    return rank * shape.layers * (2 * q + 2 * kv + 3 * mlp)


def trained_parameters(shape: ModelShape, recipe: TrainRecipe) -> int:
    """How many numbers the optimizer moves."""
    return adapter_parameters(shape, recipe.lora_rank) if recipe.lora_rank else shape.parameters


def state_bytes(shape: ModelShape, recipe: TrainRecipe) -> dict[str, float]:
    """Bytes over all GPUs of what stays from step to step: weights, gradients, moments.

    Under adapters the model's own weights stay in bf16, or its layers' matrices in 4 bits; adapters are in fp32.
    """
    trained = trained_parameters(shape, recipe)
    if recipe.lora_rank:
        matrices = shape.layers * shape.layer_matmul_parameters if recipe.quantized_base else 0
        frozen = (shape.parameters - matrices) * COMPUTE_BYTES + matrices * FOUR_BIT_BYTES
        return {
            "frozen weights": frozen,
            "adapters": trained * 4.0,
            "gradients": trained * 4.0,
            "moments": 2 * trained * STATE_BYTES[recipe.moments],
        }
    each = STATE_BYTES[recipe.weights]
    return {
        "weights": trained * each,
        "gradients": trained * each,
        "moments": 2 * trained * STATE_BYTES[recipe.moments],
    }


def checkpoint_bytes(shape: ModelShape, recipe: TrainRecipe) -> float:
    """A checkpoint: what is trained, and its moments. As many on disk, and over the hosts of all GPUs while one is
    written in the background."""
    return sum(size for name, size in state_bytes(shape, recipe).items() if name in ("weights", "adapters", "moments"))


def variant_of(recipe: TrainRecipe) -> str:
    """How layers run, as `recompute_policies.VARIANTS` has it."""
    if recipe.lora_rank:
        return "adapters" if is_compiled(recipe) else "uncompiled adapters"
    return "uncompiled" if not is_compiled(recipe) else "float8" if recipe.float8 else ""


def is_compiled(recipe: TrainRecipe) -> bool:
    """Whether layers are, on a GPU. The kernels for 4-bit weights are not for it."""
    return recipe.compile and not recipe.quantized_base


def reduce_bytes(recipe: TrainRecipe, gpus: int) -> int:
    """A number of a gradient while it is summed over GPUs."""
    return int(STATE_BYTES[recipe.reduce]) if gpus > 1 else COMPUTE_BYTES


def gathered_bytes(shape: ModelShape, recipe: TrainRecipe, gpus: int) -> float:
    """Of one layer's weights as they are gathered; in 8 bits where each GPU has as many rows of a matrix
    (`bide.train.float8_gather`). 4-bit weights are not: each matrix is unpacked while it is multiplied."""
    if recipe.quantized_base:
        return float(COMPUTE_BYTES * max(rows * columns for rows, columns in shape.layer_matrices))
    matrices = shape.layer_matrices if recipe.float8 == "tensorwise" else ()
    in_8_bits = sum(rows * columns for rows, columns in matrices if rows % gpus == 0)
    return float(COMPUTE_BYTES * (shape.layer_parameters - in_8_bits) + in_8_bits)


def memory(shape: ModelShape, recipe: TrainRecipe, gpus: int, *, tokens: int, recompute: str, later: int = 0) -> Memory:
    """The peak of one of `gpus` GPUs, in steps whose first pack has at most `tokens`, and those behind it `later`; 0:
    there are none.

    `recompute`: a choice of `recompute_policies`, none of ":fit". While the first pack is computed the step's gradients
    are not there yet; all of them are while the later ones are. What a GPU needs is more: see `room`.
    """
    found: dict[str, dict[str, float]] = {}
    if tokens:
        first = moments(shape, recipe, gpus, tokens, recompute, gradients=False)
        found |= {f"{name}, first pack" if later else name: parts for name, parts in first.items()}
    if later:
        second = moments(shape, recipe, gpus, later, recompute, gradients=True)
        found |= {f"{name}, later pack": parts for name, parts in second.items()}
    moment = max(found, key=lambda name: sum(found[name].values()))
    parts = {name: size for name, size in found[moment].items() if size}
    return Memory(parts, moment, context_bytes(gpus))


def context_bytes(gpus: int) -> float:
    """What CUDA and libraries take of a GPU beside the allocator."""
    return (CONTEXT_GIB if gpus > 1 else CONTEXT_GIB_ALONE) * GIB


def moments(
    shape: ModelShape, recipe: TrainRecipe, gpus: int, tokens: int, recompute: str, *, gradients: bool
) -> dict[str, dict[str, float]]:
    """Each moment of one pass -> what is there, in bytes by name. gradients: whether those of a pack before are."""
    trains_all = not recipe.lora_rank
    summed = reduce_bytes(recipe, gpus)
    states = {name: size / gpus for name, size in state_bytes(shape, recipe).items()}
    kept = {name: size for name, size in states.items() if name != "gradients"}
    number, head, layer = float(COMPUTE_BYTES * tokens), float(shape.head_parameters), float(shape.layer_parameters)
    matrix = {"output matrix": head * COMPUTE_BYTES}
    of_matrix = {"gradient of the output matrix": head * COMPUTE_BYTES} if trains_all else {}
    gathered = gathered_bytes(shape, recipe, gpus)  # of the next layer, while one computes
    widths, policies = widths_of(shape), VARIANTS[variant_of(recipe)]
    names = parse(recompute, shape.layers)
    dropouts = dropped(widths) if recipe.lora_rank and recipe.lora_dropout else 0.0
    activations = [0.0]
    for name in names:
        kept_here = policies[name].kept(widths) + dropouts * (name == "none")
        activations.append(activations[-1] + number * (shape.hidden + kept_here))
    logits = float(LOGITS_TOKENS * shape.vocab * LOGITS_BYTES)
    found: dict[str, dict[str, float]] = {}
    of_head = {"gradient of the output matrix": head * SUMMED_FIRST} if trains_all else {}
    if trains_all:  # logits and what is added to the gradient at a time; then the gradient in bf16, beside itself
        logits = max(logits + min(HEAD_ROWS, shape.vocab) * shape.hidden * SUMMED_FIRST, head * COMPUTE_BYTES)
    found["the loss"] = {
        **kept, **(states if gradients else {}), **matrix, **of_head,
        "activations": activations[-1],
        "the last norm and the loss": number * 5 * shape.hidden + logits,
        "gathered layers": gathered * (gpus > 1),
    }  # fmt: skip
    of_layers = shape.layers * layer / shape.parameters if trains_all else 1.0  # part of all that is trained
    for place in _turns(names):
        done = 1.0 if gradients else of_layers * (shape.layers - 1 - place) / shape.layers
        there = {**kept, "gradients": states["gradients"] * done, **matrix, **of_matrix}
        behind = layer * summed if trains_all and place < shape.layers - 1 else 0.0
        at = f"the backward pass of layer {place + 1} of {shape.layers}"
        found[at] = {
            **there,
            "activations": activations[place + 1],
            "gathered layers": gathered * (2 if gpus > 1 and place else 1),
            "a layer at work": number * (policies[names[place]].at_work(widths) + dropouts * (names[place] != "none")),
            "gradients of the layer behind": behind,
        }
        if trains_all:
            found[f"the gradients of layer {place + 1} of {shape.layers}"] = {
                **there,
                "activations": activations[place] + number * shape.hidden,
                "gathered layers": gathered * (gpus > 1),
                "gradients of a layer": layer * (COMPUTE_BYTES + summed * (1 + 1 / gpus)),
            }
    if trains_all:
        of_embedding = head * (COMPUTE_BYTES + summed * (1 + 1 / gpus))
        found["the end of the backward pass"] = {**states, **of_matrix, "gradients of the embedding": of_embedding}
    return found


def _turns(names: list[str]) -> list[int]:
    """Layers among which one has the peak: the first and last of each policy, and the last but one, which is the
    first with another layer's gradients behind it."""
    last = len(names) - 1
    changes = {place for place in range(last) if names[place] != names[place + 1]}
    found = {0, 1, last - 1, last} | changes | {place + 1 for place in changes}
    return sorted(place for place in found if 0 <= place <= last)


def most_tokens(shape: ModelShape, recipe: TrainRecipe, machine: Machine, *, recompute: str) -> int:
    """The longest pack that fits beside the step's gradients, in tokens; 0 where even none does."""
    low, high = 0, 1 << 22
    while low < high:
        middle = (low + high + 1) // 2
        used = memory(shape, recipe, machine.count, tokens=0, later=middle, recompute=recompute)
        low, high = (middle, high) if used.fits(machine) else (low, middle - 1)
    return low
