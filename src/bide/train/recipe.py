"""Recipes: how a model is trained, as one frozen object. A recipe of one's own is a Python file with a function
`recipe()` that returns one; the presets below are such functions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

from ..errors import UsageError, unknown_name
from ..formats import FORMATS, S1_CHAT_TEMPLATE
from ..recipe_files import recipe_of
from . import recompute_policies

PLAIN = "plain"
"""The format of replies without markers of thinking: thought and answer as one text in the chat template's turns."""

Schedule = Literal["cosine", "linear", "constant"]
LossWeighting = Literal["sample_mean", "token_mean"]
TooLong = Literal["refuse", "drop", "truncate"]
Weights = Literal["fp32", "bf16"]
Moments = Literal["fp32", "bf16", "int8"]
Reduce = Literal["fp32", "bf16"]
Float8 = Literal["", "tensorwise", "rowwise"]
LastBatch = Literal["wrap", "drop", "short"]

AUTO = "auto"
"""The `recompute` that the memory plan chooses: the quickest that fits."""
_MOST_LAYERS = 1000


@dataclass(frozen=True, slots=True)
class TrainRecipe:
    """The whole of a training but the data and the machine. Raises `UsageError` for settings that cannot be."""

    name: str = "mine"
    description: str = ""
    model: str = "Qwen/Qwen2.5-32B-Instruct"
    """A Hugging Face id, or a directory with config, tokenizer and weights."""
    format: str = "s1"
    """A name in `bide.formats.FORMATS`, or "plain": no markers of thinking."""
    system: str = ""
    """The system text. "": what the chat template has by itself."""
    chat_template: str = ""
    """Jinja. "": the format's own, else the model's."""
    epochs: int = 5
    batch_size: int = 16
    """Samples of an optimizer step, at any number of GPUs."""
    learning_rate: float = 1e-5
    """At its peak."""
    warmup_fraction: float = 0.05
    """Of all steps, rounded up: the rate rises linearly."""
    schedule: Schedule = "cosine"
    """After the warm-up."""
    min_learning_rate_ratio: float = 0.0
    """Where the schedule ends, as a part of `learning_rate`."""
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    """Gradients longer than this (2-norm of all) are scaled down to it. 0: none are."""
    loss_weighting: LossWeighting = "sample_mean"
    """"sample_mean": each sample weighs 1/B, whatever its length (what s1 optimised). "token_mean": each token of the
    batch weighs the same (what today's trainers do), so long thoughts weigh more."""
    max_length: int | None = None
    """Most tokens of a sample. None: as many as there are."""
    too_long: TooLong = "refuse"
    """What becomes of a sample above `max_length`."""
    weights: Weights = "fp32"
    """Of the sharded weights and their gradients; layers compute in bf16 either way. "bf16": updated with stochastic
    rounding. Not for adapters: those are fp32, and the model's own weights bf16."""
    moments: Moments = "bf16"
    """Of AdamW's two moments."""
    reduce: Reduce = "fp32"
    """Of gradients while they are summed over several GPUs. "bf16", what s1's trainer did, moves half the bytes. CPUs
    sum in fp32, in which they compute."""
    recompute: str = AUTO
    """Which activations are computed again in the backward pass: a choice as in `recompute_policies`, or "auto"."""
    compile: bool = True
    """Whether each layer goes through torch.compile (on a GPU)."""
    float8: Float8 = ""
    """How the linear layers' inputs are scaled to 8 bits. "": they stay in bf16."""
    lora_rank: int = 0
    """Of adapters on all linear layers. 0: all weights are trained."""
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    quantized_base: bool = False
    """Keep the frozen weights under the adapters in 4 bits (QLoRA)."""
    last_batch: LastBatch = "wrap"
    """What becomes of an epoch's last, incomplete batch: filled from the epoch's beginning, dropped, or run short."""
    seed: int = 42
    """Of the order of samples, of stochastic rounding, and of new weights."""

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            value, choices = getattr(self, name), get_args(kind)
            if choices and not _optional(kind) and value not in choices:
                raise UsageError(f"{name} is one of {', '.join(map(repr, choices))}, not {value!r}")
            if isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
                raise UsageError(f"{name} holds half of a surrogate pair or no UTF-8: {value!a}")
        if self.format != PLAIN and self.format not in FORMATS:
            raise unknown_name("reasoning format", self.format, [*FORMATS, PLAIN])
        if self.recompute != AUTO:
            recompute_policies.parse(self.recompute, _MOST_LAYERS)
        if not self.model:
            raise UsageError("model is a directory or a model of the hub, not ''")
        for name, low in (("epochs", 1), ("batch_size", 1), ("lora_rank", 0)):
            if getattr(self, name) < low:
                raise UsageError(f"{name} is at least {low}, not {getattr(self, name)}")
        if self.max_length is not None and self.max_length < 2:
            raise UsageError(f"max_length is at least 2 tokens, or none, not {self.max_length}")
        for name in ("learning_rate", "eps", "lora_alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is above 0, not {getattr(self, name)}")
        for name in ("weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"{name} is 0 or above, not {getattr(self, name)}")
        for name in ("beta1", "beta2", "lora_dropout", "warmup_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is from 0 to below 1, not {getattr(self, name)}")
        if not 0 <= self.min_learning_rate_ratio <= 1:
            raise UsageError(f"min_learning_rate_ratio is from 0 to 1, not {self.min_learning_rate_ratio}")
        if self.quantized_base and not self.lora_rank:
            raise UsageError("quantized_base needs adapters: 4-bit weights cannot be trained", hint="set lora_rank")
        if self.float8 and self.lora_rank:
            raise UsageError("float8 does not go with adapters", hint="set one of float8 and lora_rank")
        self._check_effects()

    def _check_effects(self) -> None:
        """Raises `UsageError` for what others make a setting without effect."""

        for name, (why, remedy) in _idle(self.to_json()).items():
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise UsageError(f"{name} would have no effect{why}", hint=f"{remedy}, or {name}={default}")

    def with_(self, **changes: Any) -> TrainRecipe:
        """A copy with `changes`. Raises `UsageError` for an unknown name or a value of another type."""
        for name, value in changes.items():
            if name not in _KINDS:
                raise unknown_name("setting of a recipe", name, _KINDS)
            _check_type(name, value)
        return replace(self, **changes)

    def with_settings(self, texts: Mapping[str, str]) -> TrainRecipe:
        """A copy with settings read from text, as a command line has them: {"epochs": "3", "max_length": "none"}.
        Raises `UsageError`."""
        found = self.with_(**{name: _read(name, text) for name, text in texts.items()})
        if "weights" in texts and found.lora_rank:
            raise _weights_of_adapters()
        _check_seed(found)
        return found

    def to_json(self) -> dict[str, Any]:
        """All settings by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> TrainRecipe:
        """The inverse of `to_json`. Raises `UsageError`. What other settings leave without effect is at its default: a
        run that an older version has begun with it is the same run without it."""
        told = {**found}
        idle = {*_idle(told), *(["weights"] if told.get("lora_rank") else [])}
        return cls().with_(**{name: value for name, value in told.items() if name not in idle})


_KINDS: dict[str, Any] = {
    name: kind for name, kind in get_type_hints(TrainRecipe).items() if name in TrainRecipe.__dataclass_fields__
}


def _idle(told: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Settings that others leave without effect -> why, and what would give them one."""
    found: dict[str, tuple[str, str]] = {}
    if not told.get("lora_rank"):
        found |= dict.fromkeys(("lora_alpha", "lora_dropout"), (" without adapters", "set lora_rank"))
    if told.get("max_length") is None:
        found["too_long"] = (" without max_length", "set max_length")
    if told.get("schedule") == "constant":
        found["min_learning_rate_ratio"] = (": the schedule is constant", "set schedule")
    return found


def _check_seed(recipe: TrainRecipe) -> None:
    """Where a user says it, and not where a recipe is read: older versions took any."""
    if not 0 <= recipe.seed < 2**32:
        raise UsageError(f"seed is from 0 to {2**32 - 1}, not {recipe.seed}")


def _weights_of_adapters() -> UsageError:
    return UsageError(
        "weights would have no effect under adapters: those are fp32, the model's own weights bf16",
        hint="leave weights or lora_rank out",
    )


def _optional(kind: Any) -> bool:
    return type(None) in get_args(kind)


def _base(kind: Any) -> type:
    if _optional(kind):
        return int
    return str if get_args(kind) else kind


def _check_type(name: str, value: Any) -> None:
    kind = _KINDS[name]
    base = _base(kind)
    if value is None and _optional(kind):
        return
    fits = type(value) is base or (base is float and type(value) is int)
    if not fits:
        raise UsageError(f"{name} is {_TYPE_NAMES[base]}, not {value!r}")


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def _read(name: str, text: str) -> Any:
    if name not in _KINDS:
        raise unknown_name("setting of a recipe", name, _KINDS)
    base = _base(_KINDS[name])
    if _optional(_KINDS[name]) and text.lower() == "none":
        return None
    try:
        if base is bool:
            return {"true": True, "false": False}[text.lower()]
        return base(text)
    except (ValueError, KeyError):
        raise UsageError(f"{name} is {_TYPE_NAMES[base]}, not {text!r}") from None


def s1() -> TrainRecipe:
    """s1-32B (paper, appendix D; the reference's train/sft.sh): 5 epochs of s1K, 16 samples a step, 315 steps.

    The reference keeps weights, gradients and moments in fp32 (16 bytes a parameter); here the moments are bf16 unless
    told otherwise, which is what lets 4 GPUs of 141 GB hold it. Gradients are summed in bf16, as by accelerate 1.0.1
    under `--bf16` (`reduce_dtype` of its FSDP plugin).
    """
    return TrainRecipe(
        "s1",
        "s1-32B: s1K, 5 epochs, 16 samples a step, each sample of the same weight",
        reduce="bf16",
        max_length=32_768,
    )


def s1_1() -> TrainRecipe:
    """s1.1-32B: the recipe of s1 with s1K-1.1's traces, and the reference's limit of 20,000 tokens (its README), above
    which the reference cuts in silence."""
    return s1().with_(
        name="s1.1", description="s1.1-32B: s1K-1.1 under the recipe of s1, 20,000 tokens at most", max_length=20_000
    )


def limo() -> TrainRecipe:
    """LIMO (train/examples/train_limo.yaml): 15 epochs, rate 5e-6, no warm-up, plain Qwen turns under LIMO's system
    text, the token mean. The batch of 64 is the paper's. The reference cuts at 16,384 tokens in silence."""
    return TrainRecipe(
        "limo",
        "LIMO: 15 epochs, 64 samples a step, plain turns, the token mean",
        format=PLAIN,
        system="Please reason step by step, and put your final answer within \\boxed{}.",
        chat_template=S1_CHAT_TEMPLATE,  # under a system text of one's own it is Qwen's ChatML
        epochs=15,
        batch_size=64,
        learning_rate=5e-6,
        warmup_fraction=0.0,
        beta2=0.999,
        weight_decay=0.0,
        loss_weighting="token_mean",
        max_length=16_384,
    )


PRESETS: dict[str, Callable[[], TrainRecipe]] = {"s1": s1, "s1.1": s1_1, "limo": limo}
"""Name -> recipe."""


def load_recipe(name: str) -> TrainRecipe:
    """A preset, or what `recipe()` in a Python file returns. Raises `UsageError`."""
    found = recipe_of(name, PRESETS, TrainRecipe, "bide_train_recipe")
    if found.lora_rank and found.weights != TrainRecipe().weights:
        raise _weights_of_adapters()
    _check_seed(found)
    return found
