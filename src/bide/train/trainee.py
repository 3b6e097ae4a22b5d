"""A model made ready to be trained: its layers wrapped, its head replaced by the loss, sharded, with an optimizer.

The order matters: attention and head, float8, adapters, recomputation and compilation of each layer, sharding, memory,
weights, what float8 layers gather, optimizer.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from ..errors import MissingExtraError, ModelError, UsageError
from . import attention, float8, recompute
from .batches import PAD_MULTIPLE, Batch
from .float8_gather import Float8Gather, gather_in_float8
from .loss import LossHead
from .optimizer import AdamW, clip_scale, gradient_norm
from .recipe import TrainRecipe
from .room import Room
from .sharding import World, decoder_layers, fill, load_weights, randomise, shard

COMPUTE = {"cuda": torch.bfloat16, "cpu": torch.float32}
"""In what layers compute, by type of device."""
STORED = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""A recipe's `weights` or `reduce` as a type. Under adapters the model's own weights are bf16."""


class Trainee(nn.Module):
    """A causal model whose forward pass returns losses. It is the root of the sharding, so that norm and head are
    gathered once for a pass."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.decoder = [model.get_decoder()]  # in a list: not a submodule a second time

    def forward(self, batch: Batch | None = None, **inputs: Any) -> Any:
        """The batch's part of the objective (scalar, with gradient), and for each of its samples the sum of its tokens'
        negative log likelihoods (float32, without). Without a batch: what the decoder makes of `inputs`."""
        if batch is None:
            return self.decoder[0](**inputs)
        hidden = self.decoder[0](input_ids=batch.input_ids, use_cache=False, **batch.documents.arguments())
        head = self.model.get_output_embeddings()
        total, tokens = head(hidden.last_hidden_state[0], batch.labels, batch.weights, batch.rows)
        sums = torch.zeros(len(batch.samples) + 1, dtype=torch.float32, device=tokens.device)
        return total, sums.index_add_(0, batch.owners, tokens)[:-1]


@dataclass
class Assembled:
    """What the loop needs. `facts`: what was chosen on the way, for the receipt."""

    trainee: Trainee
    optimizer: AdamW
    world: World
    facts: dict[str, Any]
    fitting: recompute.Fitting | None = None
    """What a pack's room decides, with `room`."""
    room: Room | None = None
    float8_gather: Float8Gather | None = None

    @property
    def model(self) -> Any:
        return self.trainee.model

    def trained(self) -> dict[str, Any]:
        """Name -> parameter, of those that are trained."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def compute(self, batch: Batch, *, all_kinds: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Forward and backward of one pack: what `Trainee.forward` returns, both without gradient. Gradients add up
        over packs and processes. all_kinds: have at least one layer of each kind of recomputation, to be compiled."""
        if self.fitting is not None:
            assert self.room is not None
            layers = self.room.layers(batch.input_ids.shape[-1])
            most = len(decoder_layers(self.model)) - 1
            self.fitting.layers = min(max(layers, 1), most) if all_kinds else layers
        total, sums = self.trainee(batch)
        (total * self.world.size).backward()  # FSDP takes the mean over the processes, the objective is a sum
        return total.detach(), sums

    def gradient_norm(self) -> torch.Tensor:
        """Of all gradients, before clipping: a scalar on the device."""
        return gradient_norm(self.trained().values())

    def update(self, rate: float, norm: torch.Tensor, max_norm: float) -> None:
        """One optimizer step at this learning rate with gradients clipped to `max_norm`, and no gradients after it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step(scale=clip_scale(norm, max_norm))
        self.optimizer.zero_grad(set_to_none=True)
        self.weights_changed()

    def weights_changed(self) -> None:
        """To be called by whoever writes into the weights, before the next pass."""
        if self.float8_gather is not None:
            self.float8_gather.weights_changed()


def read_config(directory: Path) -> Any:
    """The transformers config of a model's directory. Raises `ModelError`."""
    try:
        return transformers.AutoConfig.from_pretrained(str(directory), local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory} has no config that transformers can read: {error}") from error


def empty_model(config: Any, recipe: TrainRecipe, world: World, *, backend: str | None = None) -> Any:
    """The model on the meta device, with packed attention, in the recipe's type of weights."""
    name = attention.register(backend, device=world.device)
    stored = torch.bfloat16 if recipe.lora_rank else STORED[recipe.weights]
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=stored, attn_implementation=name)
    model.config.use_cache = False
    return model.train()


def assemble(
    config: Any,
    recipe: TrainRecipe,
    world: World,
    *,
    weights: Path | None,
    recomputed: str,
    room: Room | None = None,
    backend: str | None = None,
    compiled: bool | None = None,
) -> Assembled:
    """A model with its optimizer, for all its weights or for adapters.

    weights: a directory of safetensors; None makes random ones where they lie. recomputed: what `recompute.wrap_layers`
    takes; room: what a choice that ends in "fit" asks before each pack. backend: of attention; None takes the device's.
    compiled: None takes the recipe's on a GPU, and not on a CPU.
    """
    on_gpu = world.device.type == "cuda"
    use_compile = (recipe.compile and on_gpu) if compiled is None else compiled
    if recipe.quantized_base:
        use_compile = False  # the 4-bit kernels are not for it
        model = four_bit_model(weights, world, backend=backend)
    else:
        model = empty_model(config, recipe, world, backend=backend)
    LossHead.put_on(model)
    in_float8 = float8.use_float8(model, recipe.float8) if recipe.float8 else []
    adapters = _adapters() if recipe.lora_rank else None
    if adapters:
        adapters.add_adapters(model, recipe)
        if recipe.quantized_base:  # not sharded
            adapters.compute_as_given(model)
    fitting = recompute.wrap_layers(decoder_layers(model), recomputed, compiled=use_compile)
    assert fitting is None or room is not None, recomputed
    trainee = Trainee(model)
    gather = None
    if not recipe.quantized_base:
        compute = COMPUTE[world.device.type]
        shard(trainee, model, world, compute=compute, reduce=torch.promote_types(compute, STORED[recipe.reduce]))
        fill(trainee, world)
        named = dict(model.named_parameters())
        if adapters:
            named = {adapters.base_name(name): p for name, p in named.items() if not adapters.is_adapter(name)}
        if weights is None:
            randomise(named, recipe.seed)
        else:
            load_weights(named, weights)
        if in_float8:
            gather = gather_in_float8(decoder_layers(model), world, compute=compute)
            trainee.register_forward_pre_hook(lambda *_: gather.measure(), prepend=True)
    if adapters:
        adapters.initialise(model, recipe.seed, world)
    facts = {
        "attention": backend or attention.DEFAULT_BACKEND[world.device.type],
        "recompute": recomputed,
        "compiled": use_compile,
        "float8": recipe.float8 or False,
        "float8_layers": len(in_float8),
        "gathered_in_float8": len(gather or ()),
        "weights": _kept(recipe),
        "moments": recipe.moments,
        "reduce": recipe.reduce,
        "lora_rank": recipe.lora_rank,
    }
    return Assembled(trainee, make_optimizer(model, recipe), world, facts, fitting, room, gather)


def prepare_attention(made: Assembled, longest: int) -> int:
    """Build what the attention backend builds for each length of a document, up to `longest` tokens, so that no step
    waits for it. Returns the number of lengths."""
    config, device = made.model.config, made.world.device
    return attention.prepare(
        made.facts["attention"],
        max(longest, PAD_MULTIPLE[device.type]),
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        width=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        kind=COMPUTE[device.type],
        device=device,
    )


def four_bit_model(weights: Path | None, world: World, *, backend: str | None = None) -> Any:
    """The model with its linear layers' weights in 4 bits (NF4, doubly quantised: QLoRA, Dettmers et al. 2023), by
    bitsandbytes, on one process. Raises `MissingExtraError` and `UsageError`."""
    if world.size > 1 or weights is None:
        raise UsageError("4-bit weights (quantized_base) are for one process and a model on disk")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError("bitsandbytes", "train-4bit")
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=COMPUTE[world.device.type],
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(
        str(weights),
        quantization_config=how,
        dtype=COMPUTE[world.device.type],
        device_map={"": world.device},
        attn_implementation=attention.register(backend, device=world.device),
    )
    model.config.use_cache = False
    return model.train()


def _adapters() -> Any:
    try:
        return importlib.import_module(f"{__package__}.lora")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise MissingExtraError("peft", "train") from None


def _kept(recipe: TrainRecipe) -> str:
    if not recipe.lora_rank:
        return recipe.weights
    return "4 bits under adapters" if recipe.quantized_base else "bf16 under adapters"


def make_optimizer(model: Any, recipe: TrainRecipe) -> AdamW:
    """AdamW over what is trained, as the recipe says. Biases and norms do not decay."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() > 1]},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return AdamW(
        [group for group in groups if group["params"]],
        lr=recipe.learning_rate,
        betas=(recipe.beta1, recipe.beta2),
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
        moments=recipe.moments,
        seed=recipe.seed,
    )
