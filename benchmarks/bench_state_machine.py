"""Microseconds per token of the budget-forcing state machine, by path and length of the history.

Run: python benchmarks/bench_state_machine.py [--repeats 5]
Each figure is the best of the repeats, over 5000 sampled tokens that come after the history.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from bide.budget_forcing import BudgetForcer, ForcedTexts, Markers
from bide.thinking_budget import ThinkingBudget

HISTORIES = (1_000, 10_000, 100_000)
TOKENS = 5000  # measured after the history
WORDS = tuple(range(10, 30))
END = (7, 8, 9)
MARKERS = Markers(ends=(END,), close=END, start=(6, 7), eos=frozenset((0,)))


def machine(waits: int = 0, loop_guard: int | None = None) -> BudgetForcer:
    budget = ThinkingBudget(10**9, waits=waits, loop_guard=loop_guard)
    return BudgetForcer(budget, MARKERS, ForcedTexts(waits=((2, 3),)))


def fed(forcer: BudgetForcer, script: tuple[int, ...]) -> Callable[[int], None]:
    """Feeds `script` over and over, so many tokens a call, and takes what is forced."""
    position = 0

    def feed(count: int) -> None:
        nonlocal position
        for number in range(position, position + count):
            forcer.feed(script[number % len(script)])
            while forcer.next_forced() is not None:
                pass
        position += count

    return feed


PATHS: dict[str, Callable[[], Callable[[int], None]]] = {
    "ordinary tokens": lambda: fed(machine(), WORDS),
    "ordinary tokens, loop guard": lambda: fed(machine(loop_guard=10**6), WORDS),
    "held back two of three": lambda: fed(machine(), (7, 8, 10)),
    "every end refused by a wait": lambda: fed(machine(waits=10**6), (10, *END)),
    "answer": lambda: fed(machine(), (10, *END, *[10] * 1_200_000)),
}


def microseconds(path: Callable[[], Callable[[int], None]], history: int) -> float:
    feed = path()
    feed(history)
    start = time.perf_counter()
    feed(TOKENS)
    return (time.perf_counter() - start) / TOKENS * 1e6


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    print(f"Python {platform.python_version()}, {cpu_model()}, commit {commit()}")
    print(f"{'us per sampled token after':<30}" + "".join(f"{history:>10,}" for history in HISTORIES))
    for name, path in PATHS.items():
        cells = (min(microseconds(path, history) for _ in range(repeats)) for history in HISTORIES)
        print(f"{name:<30}" + "".join(f"{cell:>10.2f}" for cell in cells))


if __name__ == "__main__":
    main()
