"""The shape of a dense decoder: its parameters, and the work of a document. Standard library only.

Work is counted as in model FLOP utilisation (MFU): a multiplication and an addition are 2 FLOPs, the backward pass is
twice the forward pass, attention is causal, and nothing that is computed a second time counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Llama-like layers: grouped-query attention, a gated MLP, RMSNorm."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    """Whether the output matrix is the embedding."""
    qkv_bias: bool = True
    """Qwen2 has biases there."""
    qk_norm: bool = False
    """Qwen3 has norms there."""

    @property
    def attention_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together."""
        return self.kv_heads * self.head_dim

    @property
    def layer_matrices(self) -> tuple[tuple[int, int], ...]:
        """Of one layer's matrices rows (what comes out) and columns: q, k, v, o, gate, up, down."""
        wide, key, hidden, inner = self.attention_width, self.kv_width, self.hidden, self.intermediate
        attention = (wide, hidden), (key, hidden), (key, hidden), (hidden, wide)
        return *attention, (inner, hidden), (inner, hidden), (hidden, inner)

    @property
    def layer_matmul_parameters(self) -> int:
        """Parameters of one layer's matrices."""
        return sum(rows * columns for rows, columns in self.layer_matrices)

    @property
    def layer_parameters(self) -> int:
        """All of one layer's."""
        bias = self.attention_width + 2 * self.kv_width if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return self.layer_matmul_parameters + bias + norms

    @property
    def head_parameters(self) -> int:
        """Of the matrix that makes logits."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of the model's; a tied matrix counts once."""
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + embeddings + self.hidden

    @property
    def matmul_parameters(self) -> int:
        """Those that every token is multiplied with: without the embedding's look-up, norms and biases."""
        return self.layers * self.layer_matmul_parameters + self.head_parameters

    def attention_flops(self, tokens: int) -> int:
        """Forward and backward, of a causal document of `tokens`: 6 * layers * width * tokens^2."""
        return 6 * self.layers * self.attention_width * tokens * tokens

    def flops_of_document(self, tokens: int) -> int:
        """Forward and backward, of one document by itself: 6 * matmul_parameters * tokens, and its attention."""
        return 6 * self.matmul_parameters * tokens + self.attention_flops(tokens)

    def flops_per_token(self, context: int) -> float:
        """The mean over a document of `context` tokens."""
        return self.flops_of_document(context) / context

    def to_json(self) -> dict[str, Any]:
        """All fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ModelShape:
        """The inverse of `to_json`."""
        return cls(**found)

    @classmethod
    def read(cls, path: str | Path) -> ModelShape:
        """From a model's directory or its config.json. Raises `ModelError`: no such file, a mixture of experts, or
        fields that a dense decoder must have are missing."""
        file = Path(path)
        file = file / "config.json" if file.is_dir() else file
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from None
        return cls.of_config(config, name=file.parent.name or str(file))

    @classmethod
    def of_config(cls, config: Mapping[str, Any], *, name: str) -> ModelShape:
        """From what a Hugging Face config.json holds. Raises `ModelError`."""
        config = config.get("text_config") or config
        for sign in ("num_experts", "num_local_experts", "n_routed_experts"):
            if config.get(sign):
                raise ModelError(f"{name} is a mixture of experts, which bide train cannot plan", hint="a dense model")
        try:
            hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
            kind = str(config.get("model_type", ""))
            return cls(
                name=name,
                layers=int(config["num_hidden_layers"]),
                hidden=hidden,
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or hidden // heads),
                intermediate=int(config["intermediate_size"]),
                vocab=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", kind not in ("qwen2", "llama", "mistral", "qwen3"))),
                qkv_bias=bool(config.get("attention_bias", kind == "qwen2")),
                qk_norm=kind == "qwen3",
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(
                f"the config of {name} is not that of a dense decoder: {error}",
                hint="wanted: hidden_size, num_hidden_layers, num_attention_heads, intermediate_size, vocab_size",
            ) from None


SHAPES: dict[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("qwen2.5-0.5b", 24, 896, 14, 2, 64, 4_864, 151_936, True),
        ModelShape("qwen2.5-1.5b", 28, 1_536, 12, 2, 128, 8_960, 151_936, True),
        ModelShape("qwen2.5-3b", 36, 2_048, 16, 2, 128, 11_008, 151_936, True),
        ModelShape("qwen2.5-7b", 28, 3_584, 28, 4, 128, 18_944, 152_064, False),
        ModelShape("qwen2.5-14b", 48, 5_120, 40, 8, 128, 13_824, 152_064, False),
        ModelShape("qwen2.5-32b", 64, 5_120, 40, 8, 128, 27_648, 152_064, False),
        ModelShape("qwen2.5-72b", 80, 8_192, 64, 8, 128, 29_568, 152_064, False),
    )
}
"""Shapes that need no file, from the models' own configs. Instruct models have the same."""


def shape_name(model: str) -> str:
    """The name under which a model of the hub stands in `SHAPES`, if it does: its last part without "-Instruct"."""
    return model.rpartition("/")[2].lower().removesuffix("-instruct")
