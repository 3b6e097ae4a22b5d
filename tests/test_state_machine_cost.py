"""The machine's cost for one token must not grow with the history. Loose: only growth is measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from bide.budget_forcing import BudgetForcer, ForcedTexts, Markers
from bide.engines.mock import MockTokenizer
from bide.engines.turn import Detokenizer
from bide.thinking_budget import ThinkingBudget
from bide.token_sequences import LoopDetector

MARKERS = Markers(ends=((7, 8, 9),), close=(7, 8, 9), start=(6, 7))
Step = Callable[[int], object]


def ordinary(forcer: BudgetForcer) -> Step:
    return lambda number: forcer.feed(1 + number % 5)


def holding(forcer: BudgetForcer) -> Step:
    return lambda number: forcer.feed((7, 8, 1)[number % 3])


def waiting(forcer: BudgetForcer) -> Step:
    def step(number: int) -> None:
        forcer.feed((1, 7, 8, 9)[number % 4])
        forcer.drain_forced()

    return step


def machine(waits: int = 0, guard: int | None = None) -> BudgetForcer:
    budget = ThinkingBudget(10**7, waits=waits, loop_guard=guard)
    return BudgetForcer(budget, MARKERS, ForcedTexts(waits=((2, 3),)))


def seconds(step: Step, count: int, begin: int = 0) -> float:
    start = time.perf_counter()
    for number in range(begin, begin + count):
        step(number)
    return time.perf_counter() - start


CASES: dict[str, Callable[[], Step]] = {
    "ordinary": lambda: ordinary(machine()),
    "holding": lambda: holding(machine()),
    "waiting": lambda: waiting(machine(waits=10**6)),
    "loop detector": lambda: (lambda push: lambda number: push(number * number % 1009))(LoopDetector(10**6).push),
    "detokenizer": lambda: (lambda push: lambda number: push((97 + number % 20,)))(
        Detokenizer(MockTokenizer().decode).push
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_cost_of_a_token_is_flat(name: str) -> None:
    sample = 3000
    for _ in range(4):  # a noisy machine may need another try; growth with length never passes
        step = CASES[name]()
        early = min(seconds(step, sample, at * sample) for at in range(3))
        seconds(step, 60_000 if name != "detokenizer" else 12_000, 9000)
        late = min(seconds(step, sample, 69_000 + at * sample) for at in range(3))
        if late < 3 * early + 1e-3:
            return
    raise AssertionError(f"{name}: {late / early:.1f} times as slow at the end")
