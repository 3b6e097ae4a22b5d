"""How much of the activations each pack leaves room for: a choice of recomputation that ends in ":fit", made concrete.

Packs of a step differ in length. Each keeps the activations of as many layers as fit beside it: what a step's longest
pack cannot keep, the others can. A step's gradients are counted as if they were always there: when they are freed, the
allocator keeps their memory for the stream that sums them, and the first pack of the next step cannot have it.
"""

from __future__ import annotations

import math
from functools import cache

from .gpus import Machine
from .memory import context_bytes, limit, moments
from .recipe import TrainRecipe
from .recompute_policies import FIT, by_pack
from .shapes import ModelShape


class Room:
    """For packs on one GPU of `machine`. choice: as "attention,matmuls:fit". larger: what memory takes over what is
    counted here (`Calibration`)."""

    def __init__(
        self, shape: ModelShape, recipe: TrainRecipe, machine: Machine, choice: str, larger: float = 1.0
    ) -> None:
        assert by_pack(choice), choice
        self.shape, self.recipe, self.machine = shape, recipe, machine
        self._stem = choice.removesuffix(FIT)
        self._free = (limit(machine) - context_bytes(machine.count)) / larger
        self.layers = cache(self._layers)
        self._most = cache(self._most_tokens)

    def choice(self, tokens: int) -> str:
        """The choice for a pack of so many tokens (padding included), with a number of layers."""
        return f"{self._stem}{self.layers(tokens)}"

    def _layers(self, tokens: int) -> int:
        """How many of the last layers may keep more in such a pack. 0 where nothing fits, too."""
        low, high = 0, self.shape.layers
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if tokens <= self._most(middle) else (low, middle - 1)
        return low

    def _most_tokens(self, layers: int) -> int:
        """The longest pack that leaves room for so many layers. All that memory holds grows in proportion to the
        tokens, beside what is there anyway."""
        choice, many = f"{self._stem}{layers}", 1 << 20
        nothing, much = (
            moments(self.shape, self.recipe, self.machine.count, tokens, choice, gradients=True) for tokens in (0, many)
        )
        most = math.inf
        for name, parts in nothing.items():
            fixed = sum(parts.values())
            each = (sum(much[name].values()) - fixed) / many
            if fixed > self._free:
                return -1
            if each:
                most = min(most, (self._free - fixed) / each)
        return math.floor(most) if most < math.inf else many
