"""A plan's steps shared among GPUs under one limit of a pack, as far as a forecast needs to know."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .plan import Plan

PAD_TOKENS = 128
"""A pack's length is rounded up to a multiple of so many."""
_SAMPLES = 1536
"""A forecast is made over steps of the plan with so many samples, evenly spread."""
_MOST_STEPS = 512
"""Of longer plans, the longest pack is looked for in the largest steps only."""


@dataclass(frozen=True, slots=True)
class Shares:
    """Some steps of a plan, shared."""

    max_tokens: int
    """Of a pack, for `Plan.layout`; padding included."""
    steps: list[list[list[tuple[int, int]]]]
    """For each step and pass, of each rank: tokens with padding, and the sum of its documents' squared lengths."""
    passes: float
    """In the mean over these steps."""
    balance: float
    tokens: float
    """Of a step, in the mean over these steps."""


class Sharer:
    """Shares a plan's steps among any number of GPUs, and remembers it: neither settings of the recipe nor the kind of
    GPU change it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._known: dict[int, list[Shares]] = {}

    def ways(self, world_size: int) -> list[Shares]:
        """As `ways_to_share`."""
        if world_size not in self._known:
            self._known[world_size] = ways_to_share(self._plan, world_size)
        return self._known[world_size]


def ways_to_share(plan: Plan, world_size: int) -> list[Shares]:
    """One pass a step, and limits of a pack that make several."""
    longest_sample = padded(max(plan.tokens))
    longest = longest_pack(plan, world_size)
    parts = (math.ceil(longest * part) for part in (0.9, 0.75, 0.55, 0.4, 0.3, 0.2, 0.15))
    limits = {max(longest_sample, padded(most)) for most in parts} | {longest_sample, longest}
    return [share(plan, world_size, most) for most in sorted(limits, reverse=True)]


def share(plan: Plan, world_size: int, max_tokens: int, *, numbers: Sequence[int] | None = None) -> Shares:
    """Under `max_tokens`, these steps, or some that are evenly spread. Raises `UsageError` for a sample longer than
    that."""
    if numbers is None:
        numbers = plan.spread_steps(max(16, _SAMPLES // plan.recipe.batch_size))
    steps, count, tokens, done, taken = [], 0, 0, 0, 0
    for number in numbers:
        packs = plan.layout(number, world_size, max_tokens)
        sizes = [[[plan.tokens[i] for i in one] for one in rank] for rank in packs]
        costs = [[sum(plan.cost(i) for i in one) for one in rank] for rank in packs]
        steps.append([[(padded(sum(one)), sum(n * n for n in one)) for one in each] for each in zip(*sizes)])
        count += len(packs[0])
        tokens += sum(sum(one) for rank in sizes for one in rank)
        done += sum(map(sum, costs))
        taken += world_size * sum(max(each) for each in zip(*costs))
    each = len(numbers)
    return Shares(max_tokens, steps, count / each, done / taken, tokens / each)


def longest_pack(plan: Plan, world_size: int) -> int:
    """Tokens of the longest pack where every step has one pass, padding included."""
    sums = plan.step_tokens
    steps = sorted(range(len(sums)), key=lambda step: (-sums[step], step))[:_MOST_STEPS]
    return max(
        padded(sum(plan.tokens[i] for i in one))
        for step in steps
        for rank in plan.layout(step, world_size)
        for one in rank
    )


def padded(tokens: int) -> int:
    """Rounded up as packs are."""
    return -(-tokens // PAD_TOKENS) * PAD_TOKENS
