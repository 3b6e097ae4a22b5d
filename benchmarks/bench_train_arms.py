"""What `bench_train.py` measures: arms and their settings, samples, and one step of bide and of the reference."""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "src"))  # a checkout needs no installation

from bide.train.plan import Plan
from bide.train.recipe import AUTO, TrainRecipe
from bide.train.recompute_policies import by_pack
from bide.train.room import Room
from bide.train.shapes import ModelShape

TINY = ModelShape("tiny", 15, 64, 4, 2, 16, 128, 512, False)
PROMPT = 250
"""Tokens of a sample that carry no loss."""


@dataclass(frozen=True)
class Arm:
    """One way to train. `choices`: settings tried in order, until one runs."""

    shape: str
    changes: dict[str, Any]
    """Of the recipe s1."""
    choices: tuple[dict[str, Any], ...]
    reference: bool = False


PLAIN = {"backend": "cudnn-repeated", "recompute": "full", "compile": False}
"""The last choice: the least that can go wrong."""
FAST = (
    {"backend": "cudnn", "recompute": AUTO, "compile": True},
    {"backend": "cudnn", "recompute": "attention,matmuls:14", "compile": True},
    {"backend": "varlen", "recompute": "attention,matmuls:4", "compile": True},
    PLAIN,
)
SMALL = (
    {"backend": "cudnn", "recompute": "attention", "compile": True},
    {"backend": "varlen", "recompute": "full", "compile": True},
    PLAIN,
)
BF16 = {"weights": "bf16", "moments": "bf16"}
INT8 = {"weights": "bf16", "moments": "int8"}
ARMS: dict[str, Arm] = {
    "bide-bf16": Arm("qwen2.5-32b", BF16, FAST),
    "bide-float8": Arm("qwen2.5-32b", {**INT8, "float8": "tensorwise"}, FAST),
    "bide-int8": Arm("qwen2.5-32b", INT8, FAST),
    "reference": Arm("qwen2.5-32b", BF16, ({},), reference=True),
    "reference-int8": Arm("qwen2.5-32b", INT8, ({},), reference=True),
    "bide-fp32w": Arm(
        "qwen2.5-32b",
        {"weights": "fp32", "moments": "bf16"},
        ({"backend": "cudnn", "recompute": AUTO, "compile": True}, {**SMALL[1]}, PLAIN),
    ),
    "full-1.5b": Arm("qwen2.5-1.5b", BF16, ({**SMALL[0], "recompute": AUTO}, *SMALL)),
    "lora-7b": Arm(
        "qwen2.5-7b",
        {**BF16, "lora_rank": 16, "learning_rate": 1e-4},
        ({**SMALL[0], "recompute": AUTO}, *SMALL),
    ),
}
"""Name -> arm, in the order in which they run."""
MANY_GPUS = ("bide-bf16", "reference", "bide-float8", "bide-fp32w")
ONE_GPU = ("full-1.5b", "lora-7b")


def s1k_lengths(count: int, seed: int, scale: float = 1.0) -> list[int]:
    """Token counts after the law of s1K's; `scale` shrinks them for small machines."""
    draw = random.Random(seed)
    found: list[int] = []
    while len(found) < count:
        length = draw.gauss(5_230, 1_750)
        if 700 <= length <= 9_109:
            found.append(max(int(length * scale), 8))
    return found


@dataclass
class Made:
    """A sample of random tokens."""

    token_ids: list[int]
    loss: tuple[tuple[int, int], ...]


def config_of(shape: ModelShape) -> Any:
    """A Qwen2 of this shape."""
    import transformers

    return transformers.Qwen2Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=32_768,
        rope_theta=1_000_000.0,
        tie_word_embeddings=shape.tied,
        use_cache=False,
    )


class Marks:
    """Moments of a step, on the device's clock where it has one."""

    def __init__(self, device: Any) -> None:
        import torch

        self.on_gpu = device.type == "cuda"
        self.torch = torch
        self.found: list[tuple[str, Any]] = []

    def at(self, name: str) -> None:
        """Remember this moment."""
        if self.on_gpu:
            event = self.torch.cuda.Event(enable_timing=True)
            event.record()
            self.found.append((name, event))
        else:
            self.found.append((name, time.perf_counter()))

    def seconds(self) -> dict[str, float]:
        """From each moment to the next by the later one's name, and "seconds" from the first to the last."""
        if self.on_gpu:
            self.torch.cuda.synchronize()

        def between(a: Any, b: Any) -> float:
            return float(a.elapsed_time(b) / 1000 if self.on_gpu else b - a)

        parts = {name: round(between(a, b), 4) for (_, a), (name, b) in zip(self.found, self.found[1:])}
        parts.pop("end", None)
        return {"seconds": round(between(self.found[0][1], self.found[-1][1]), 4), **parts}


class Bide:
    """The package's own way: the plan's packs through `bide.train`."""

    def __init__(
        self,
        shape: ModelShape,
        recipe: TrainRecipe,
        plan: Plan,
        samples: dict[int, Made],
        world: Any,
        settings: dict[str, Any],
        max_tokens: int | None,
        machine: Any,
    ) -> None:
        from bide.train.trainee import assemble

        self.plan, self.samples, self.world, self.recipe = plan, samples, world, recipe
        self.max_tokens = max_tokens
        self.fresh = True
        chosen = settings["recompute"]
        self.made = assemble(
            config_of(shape),
            recipe,
            world,
            weights=None,
            recomputed=chosen,
            room=Room(shape, recipe, machine, settings["recompute"])
            if machine and by_pack(settings["recompute"])
            else None,
            backend=settings["backend"],
            compiled=settings["compile"],
        )

    def step(self, number: int, marks: Marks) -> dict[str, Any]:
        """Forward, backward and update of one step of the plan."""
        from bide.train.batches import make_batch

        weights = self.plan.weights(number)
        packs = self.plan.layout(number, self.world.size, self.max_tokens)[self.world.rank]
        loss = 0.0
        for pack in packs:
            batch = make_batch(pack, self.samples, weights, self.world.device)  # type: ignore[arg-type]
            loss = loss + self.made.compute(batch, all_kinds=self.fresh)[0]  # no later step is to compile any
            self.fresh = False
        marks.at("forward_backward")
        norm = self.made.gradient_norm()
        self.made.update(self.recipe.learning_rate, norm, self.recipe.max_grad_norm)
        marks.at("update")
        return {"loss": round(self.world.sum([float(loss)])[0], 4), "gradient_norm": round(float(norm), 4)}


class Reference:
    """One random sequence for each GPU in each micro-step, as the module says."""

    def __init__(
        self,
        shape: ModelShape,
        recipe: TrainRecipe,
        plan: Plan,
        samples: dict[int, Made],
        world: Any,
        settings: dict[str, Any],
        max_tokens: int | None,
        machine: Any,
    ) -> None:
        import torch
        import transformers
        from torch.distributed.fsdp import fully_shard

        from bide.train.sharding import decoder_layers, fill, randomise
        from bide.train.trainee import make_optimizer

        self.plan, self.samples, self.world, self.recipe, self.torch = plan, samples, world, recipe, torch
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config_of(shape), dtype=torch.bfloat16, attn_implementation="sdpa"
            )
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
        for layer in decoder_layers(model):
            fully_shard(layer, mesh=world.mesh)
        fully_shard(model, mesh=world.mesh)
        fill(model, world)
        randomise(dict(model.named_parameters()), recipe.seed)
        self.model = model
        if recipe.moments == "int8":  # torch has none
            self.optimizer: Any = make_optimizer(model, recipe)
            return
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), weight_decay=1e-4,
            fused=world.device.type == "cuda",
        )  # fmt: skip

    def step(self, number: int, marks: Marks) -> dict[str, Any]:
        """The batch in its own order, one sequence a GPU at a time."""
        torch, world = self.torch, self.world
        batch = self.plan.steps[number].samples
        rounds = -(-len(batch) // world.size)
        loss = 0.0
        for turn in range(rounds):
            index = batch[(turn * world.size + world.rank) % len(batch)]
            sample = self.samples[index]
            ids = torch.tensor([sample.token_ids], device=world.device)
            labels = ids.clone()
            labels[:, : sample.loss[0][0]] = -100
            mine = self.model(input_ids=ids, labels=labels, use_cache=False).loss / rounds
            mine.backward()
            loss = loss + mine.detach()
        marks.at("forward_backward")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        marks.at("update")
        mean = world.sum([float(loss)])[0] / world.size
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        return {"loss": round(mean, 4), "gradient_norm": round(float(norm), 4)}
