"""Low-rank adapters on all linear layers of the decoder (LoRA, Hu et al. 2021), by peft.

Under adapters the model's own weights stay in bf16 and are not moved. Files are peft's own, so anything that reads its
adapters reads these; a merged model is a plain Hugging Face directory: W + alpha / rank * B A, added in float32.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# Where bitsandbytes is installed, peft imports it, which warns of a kernel for inference on CPUs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from peft import LoraConfig, inject_adapter_in_model  # noqa: E402

from ..errors import ModelError, UsageError  # noqa: E402
from .recipe import TrainRecipe  # noqa: E402
from .sharding import World, decoder_layers, local_part  # noqa: E402

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_ROOT = "base_model.model."
_ADAPTER = ".default"
"""What peft calls an adapter that has no other name."""
_NOT_PLAIN = (
    "use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias", "use_qalora",
    "layer_replication", "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_bdlora",
    "arrow_config", "velora_config", "monteclora_config", "kasa_config",
)  # fmt: skip
"""Settings of peft under which an adapter is more, or else, than the product of two matrices."""


def add_adapters(model: Any, recipe: TrainRecipe) -> None:
    """Put adapters of `recipe.lora_rank` on every linear layer of the decoder's layers, in place, and freeze the rest.
    Their values are not there yet: `initialise` or a checkpoint brings them."""
    layers = decoder_layers(model)
    linear = {name.rpartition(".")[2] for name, m in layers.named_modules() if isinstance(m, torch.nn.Linear)}
    empty = model.get_input_embeddings().weight.is_meta
    inject_adapter_in_model(adapter_config(recipe, sorted(linear)), model, low_cpu_mem_usage=empty)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if is_adapter(name):
            parameter.data = parameter.data.float()


class _InInputsType(torch.nn.Linear):
    """A matrix of an adapter that multiplies in the type of what it is given, whatever type it is kept in."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(input, self.weight.to(input.dtype))


def compute_as_given(model: Any) -> None:
    """Let adapters in fp32 multiply in the type that the model computes in, as sharding has it done where it does the
    casts. By itself peft casts what comes in to fp32, once for each matrix, and all of that is kept for the backward
    pass."""
    for module in model.modules():
        if hasattr(module, "lora_A"):
            module.cast_input_dtype_enabled = False
            for matrix in (*module.lora_A.values(), *module.lora_B.values()):
                assert type(matrix) is torch.nn.Linear and matrix.bias is None, matrix
                matrix.__class__ = _InInputsType


def adapter_config(recipe: TrainRecipe, targets: list[str], base: str = "") -> LoraConfig:
    """The recipe's adapters as peft describes them."""
    return LoraConfig(
        r=recipe.lora_rank,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base or None,
    )


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


def base_name(name: str) -> str:
    """What the model without adapters calls this parameter."""
    return name.replace(".base_layer.", ".")


@torch.no_grad()
def initialise(model: Any, seed: int, world: World) -> None:
    """A uniform in +- 1 / sqrt(inputs), as peft has it, and B zero, so that training begins at the model as it is.
    The same numbers at any number of processes."""
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if not is_adapter(name):
            continue
        local = local_part(parameter)
        if ".lora_B." in name:
            local.zero_()
            continue
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        bound = 1 / math.sqrt(parameter.shape[1])  # of kaiming_uniform_ with a = sqrt(5)
        whole = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
        parts = whole.chunk(world.size) if local is not parameter else (whole,)
        if local.numel():
            local.copy_(parts[world.rank if len(parts) > 1 else 0])


def adapter_tensors(named: Iterator[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Adapters by the names of peft's files."""
    return {_ROOT + name.replace(_ADAPTER, ""): tensor for name, tensor in named if is_adapter(name)}


class AdapterFile:
    """The adapters of a directory, to be added to a model's weights."""

    def __init__(self, directory: Path, read: Any) -> None:
        """read: reads a safetensors file as a dict of tensors, or raises `ModelError`. Raises that and `UsageError`."""
        wanted = f"wanted: {CONFIG}, {WEIGHTS}"
        try:
            config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{directory} holds no adapter: {error}", hint=wanted) from error
        if not isinstance(config, dict):
            raise ModelError(f"{directory / CONFIG} is no JSON object", hint=wanted)
        odd = [name for name in _NOT_PLAIN if config.get(name)]
        if config.get("peft_type") != "LORA" or odd:
            what = ", ".join(odd) or f"peft_type {config.get('peft_type')}"
            raise UsageError(f"{directory}: only plain LoRA adapters can be merged, not {what}", hint="merge with peft")
        found = read(directory / WEIGHTS)
        self.base = str(config.get("base_model_name_or_path") or "")
        """What the adapter calls its model."""
        rank: Any = config.get("r")
        alpha: Any = config.get("lora_alpha")
        if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
            raise ModelError(f"{directory / CONFIG}: r {rank!r} and lora_alpha {alpha!r} are no rank and no number")
        self.scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._pairs: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in found.items():
            layer, _, side = name.removeprefix(_ROOT).partition(".lora_")
            if side not in ("A.weight", "B.weight") or tensor.dim() != 2:
                raise ModelError(
                    f"{directory / WEIGHTS}: {name!r} is no matrix of a LoRA adapter", hint="merge with peft"
                )
            self._pairs.setdefault(f"{layer}.weight", {})[side[0]] = tensor
        for name, pair in self._pairs.items():
            if pair.keys() != {"A", "B"} or (pair["A"].shape[0], pair["B"].shape[1]) != (rank, rank):
                raise ModelError(f"{directory / WEIGHTS}: the adapter of {name} is no pair of the rank {rank}")
        if not self._pairs:
            raise ModelError(f"{directory / WEIGHTS} holds nothing")
        self.left = set(self._pairs)
        """Weights that have not been merged yet."""

    def merged(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The weight of this name with its adapter added, in its own type; as it is where it has none.
        Raises `ModelError` where the shapes do not fit."""
        pair = self._pairs.get(name)
        if pair is None:
            return weight
        a, b = pair["A"].float(), pair["B"].float()
        if (b.shape[0], a.shape[1]) != tuple(weight.shape):
            raise ModelError(
                f"{name} has the shape {list(weight.shape)}, its adapter is for {[b.shape[0], a.shape[1]]}",
                hint="merge into the model that the adapter was trained on",
            )
        self.left.discard(name)
        return (weight.float() + self.scale * (b @ a)).to(weight.dtype)
