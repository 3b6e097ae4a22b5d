"""The plan of a training: which samples each optimizer step takes, with which weights, and who computes what.

Samples and weights of a step depend on the data and the recipe alone; only `Plan.layout` knows of GPUs. So the same
plan is the same training at any number of GPUs, up to the order in which floating-point numbers are added.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .examples import Example, data_hash
from .packing import cost_of_passes, pack
from .recipe import TrainRecipe
from .shapes import ModelShape

_VERSION = 1
_MOST_STEPS_FOR_BALANCE = 512


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One optimizer step."""

    number: int
    """From 0, over all epochs."""
    epoch: int
    """From 0."""
    samples: tuple[int, ...]
    """Indices of the data, in the order of the epoch. One that fills a wrapped batch can stand there twice."""


@dataclass(frozen=True)
class Plan:
    """All steps of a training. Made by `Plan.make`, or read from a file."""

    tokens: tuple[int, ...]
    """For each sample, how many it has."""
    loss_tokens: tuple[int, ...]
    """For each sample, how many of them carry loss."""
    steps: tuple[PlanStep, ...]
    recipe: TrainRecipe
    shape: ModelShape
    data: str = ""
    """`examples.data_hash` of the samples. "": planned from lengths alone."""

    @classmethod
    def make(
        cls,
        lengths: Sequence[int],
        recipe: TrainRecipe,
        shape: ModelShape,
        *,
        loss_lengths: Sequence[int] | None = None,
        data: str = "",
    ) -> Plan:
        """`lengths`: tokens of each sample. `loss_lengths`: those with loss, for all of them if not given.

        Each epoch takes the samples in an order of its own, by the hash of (seed, epoch, index): no generator of a
        library is involved. Raises `UsageError`: no samples, or one without loss.
        """
        tokens = tuple(lengths)
        loss = tokens if loss_lengths is None else tuple(loss_lengths)
        if not tokens:
            raise UsageError("there are no samples to train on")
        if len(loss) != len(tokens):
            raise UsageError(f"{len(tokens)} lengths, but {len(loss)} counts of tokens with loss")
        for index, (count, carrying) in enumerate(zip(tokens, loss)):
            if not 0 < carrying <= count:
                raise UsageError(f"sample {index + 1}: {carrying} of {count} tokens carry loss", hint="drop it")
        return cls(tokens, loss, _steps(len(tokens), recipe), recipe, shape, data)

    @classmethod
    def of_examples(cls, examples: Sequence[Example], recipe: TrainRecipe, shape: ModelShape) -> Plan:
        """The plan of a training on `examples`. Raises as `make`."""
        return cls.make(
            [example.tokens for example in examples],
            recipe,
            shape,
            loss_lengths=[example.loss_tokens for example in examples],
            data=data_hash(examples),
        )

    @cached_property
    def hash(self) -> str:
        """sha256 of samples, order and weights, as hex. The same at any number of GPUs."""
        told = {
            "version": _VERSION,
            "data": self.data,
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "loss_weighting": self.recipe.loss_weighting,
            "steps": [step.samples for step in self.steps],
        }
        return hashlib.sha256(json.dumps(told, separators=(",", ":")).encode()).hexdigest()

    def cost(self, sample: int) -> int:
        """FLOPs of a sample, forward and backward (`ModelShape.flops_of_document`)."""
        return self.shape.flops_of_document(self.tokens[sample])

    def weights(self, step: int) -> dict[int, float]:
        """Sample -> the weight of each of its tokens with loss, such that
        loss = sum over the step's samples, and over their tokens with loss, of weight * negative log likelihood.

        A sample that stands in the step twice is computed twice with this weight. Over all of the step's tokens the
        weights add up to 1.
        """
        samples = self.steps[step].samples
        if self.recipe.loss_weighting == "token_mean":
            each = 1.0 / sum(self.loss_tokens[i] for i in samples)
            return dict.fromkeys(samples, each)
        return {i: 1.0 / (len(samples) * self.loss_tokens[i]) for i in samples}

    def layout(self, step: int, world_size: int, max_tokens: int | None = None) -> list[list[tuple[int, ...]]]:
        """For each rank its packs, each a tuple of sample indices. All ranks have the same number of packs; a pack
        can be empty. None holds more than `max_tokens`; None: one pack for each rank. Raises `UsageError` for a sample
        longer than that."""
        samples = self.steps[step].samples
        tokens = [self.tokens[i] for i in samples]
        if max_tokens is not None and max(tokens) > max_tokens:
            index = samples[tokens.index(max(tokens))]
            raise UsageError(
                f"sample {index + 1} has {self.tokens[index]:,} tokens, a pack holds {max_tokens:,}",
                hint="more GPUs, smaller states, or max_length",
            )
        costs = [self._costs[i] for i in samples]
        packs = pack(costs, tokens, world_size, max_tokens)
        return [[tuple(samples[position] for position in one) for one in rank] for rank in packs]

    def balance(self, world_size: int, max_tokens: int | None = None, *, steps: Sequence[int] | None = None) -> float:
        """Work of all GPUs over what they could do in the time of the dearest pack of each pass: 1 is perfect.
        `steps`: over these; otherwise over at most 512, evenly spread."""
        done = taken = 0.0
        for step in self.spread_steps() if steps is None else steps:
            packs = self.layout(step, world_size, max_tokens)
            done += sum(self._costs[i] for i in self.steps[step].samples)
            taken += world_size * cost_of_passes(packs, self._costs)
        return done / taken

    def spread_steps(self, most: int = _MOST_STEPS_FOR_BALANCE) -> list[int]:
        """At most so many step numbers, evenly spread over the training."""
        count = min(most, len(self.steps))
        return [i * len(self.steps) // count for i in range(count)]

    @property
    def step_tokens(self) -> list[int]:
        """Tokens of each step."""
        return [sum(self.tokens[i] for i in step.samples) for step in self.steps]

    @cached_property
    def total_tokens(self) -> int:
        """Tokens of all steps."""
        return sum(self.step_tokens)

    @cached_property
    def total_flops(self) -> int:
        """FLOPs of all steps, nothing recomputed counted."""
        return sum(self._costs[i] for step in self.steps for i in step.samples)

    @cached_property
    def _costs(self) -> list[int]:
        return [self.shape.flops_of_document(count) for count in self.tokens]

    def to_json(self) -> dict[str, Any]:
        """All of it, with its hash."""
        return {
            "version": _VERSION,
            "hash": self.hash,
            "data": self.data,
            "recipe": self.recipe.to_json(),
            "shape": self.shape.to_json(),
            "tokens": list(self.tokens),
            "loss_tokens": list(self.loss_tokens),
            "steps": [{"epoch": step.epoch, "samples": list(step.samples)} for step in self.steps],
        }

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Plan:
        """The inverse of `to_json`. Raises `UsageError` for another version or a hash that does not fit."""
        if not isinstance(found, dict):
            raise UsageError("this is no plan: no JSON object")
        if found.get("version") != _VERSION:
            raise UsageError(f"a plan of version {found.get('version')}, wanted {_VERSION}", hint="make the plan anew")
        try:
            plan = cls(
                tuple(found["tokens"]),
                tuple(found["loss_tokens"]),
                tuple(
                    PlanStep(number, step["epoch"], tuple(step["samples"]))
                    for number, step in enumerate(found["steps"])
                ),
                TrainRecipe.from_json(found["recipe"]),
                ModelShape.from_json(found["shape"]),
                found["data"],
            )
        except (KeyError, TypeError) as error:
            raise UsageError(f"this is no plan: {error}") from None
        if plan.hash != found.get("hash"):
            raise UsageError("the plan was changed after it was made: its hash does not fit", hint="make it anew")
        return plan

    def save(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        fresh = path.with_name(path.name + ".new")
        fresh.write_text(json.dumps(self.to_json(), separators=(",", ":")) + "\n", encoding="utf-8")
        os.replace(fresh, path)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Read what `save` wrote. Raises `UsageError`."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as a plan: {error}") from None
        return cls.from_json(found)


def _steps(count: int, recipe: TrainRecipe) -> tuple[PlanStep, ...]:
    size = recipe.batch_size
    if recipe.last_batch == "drop" and count < size:
        raise UsageError(f"{count} samples make no whole batch of {size}", hint='last_batch "wrap" or "short"')
    steps: list[PlanStep] = []
    for epoch in range(recipe.epochs):
        order = sorted(range(count), key=lambda i: _draw(recipe.seed, epoch, i))
        if recipe.last_batch == "wrap":
            order = [order[i % count] for i in range(math.ceil(count / size) * size)]
        whole = len(order) // size if recipe.last_batch == "drop" else math.ceil(len(order) / size)
        for k in range(whole):
            steps.append(PlanStep(len(steps), epoch, tuple(order[k * size : (k + 1) * size])))
    return tuple(steps)


def _draw(seed: int, epoch: int, index: int) -> bytes:
    return hashlib.sha256(f"{seed}:{epoch}:{index}".encode()).digest()
