"""A process of its own that makes and checks tasks of reasoning-gym: `python -m bide.data.gym_worker`.

Some of its generators iterate over sets of words, so what they make depends on the hash seed of the process; and some
of its verifiers are slow, or evaluate what a model wrote. So `gym.Gym` starts this with one hash seed and a deadline.
Requests and replies are lines of JSON, in order:

    {"make": ["gcd", 20, 0]}                           -> a line for each task, then null
    {"check": ["gcd", 20, 0], "index": 3, "answer": "12"}  -> {"score": 1.0}; {"score": null, "why": "..."}
"""

from __future__ import annotations

import json
import re
import sys
from functools import lru_cache
from typing import Any, TextIO

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

import reasoning_gym
from reasoning_gym.factory import DATASETS

EVALUATES = frozenset((
    "string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "simple_integration", "intermediate_integration",
    "polynomial_multiplication", "puzzle24", "countdown",
))  # fmt: skip
"""Tasks whose verifier runs an answer as Python, by `eval` or by way of sympy (0.1.25)."""
_HARMLESS = re.compile(
    r"(?:[\d\s\[\](),+\-/^'\"_]|\*(?!\s*\*)|\*\*\s*\d(?!\d|\s*\*\*)|\.(?=\d)"
    r"|(?<![A-Za-z_.])(?:[A-Za-z]|sin|cos|tan|exp|log|sqrt)(?!\d*[A-Za-z_]))*"
)
_LONGEST = 500
_MOST_BYTES = 2 << 30


def is_harmless(answer: str) -> bool:
    """Whether text may be evaluated: numbers, brackets, signs, single letters and elementary functions only, powers up
    to 9."""
    return len(answer) <= _LONGEST and _HARMLESS.fullmatch(answer) is not None


@lru_cache(maxsize=64)
def _tasks(name: str, count: int, seed: int) -> Any:
    return reasoning_gym.create_dataset(name, size=count, seed=seed)


def make(name: str, count: int, seed: int, out: TextIO) -> None:
    """Write all tasks, then null."""
    for index in range(count):
        out.write(json.dumps(_tasks(name, count, seed)[index], default=str) + "\n")
    out.write("null\n")


def check(name: str, count: int, seed: int, index: int, answer: str) -> dict[str, Any]:
    """The verifier's score of an answer, 0 to 1, or why it was not asked."""
    tasks = _tasks(name, count, seed)
    entry = tasks[index]
    if answer == entry["answer"]:
        return {"score": 1.0}
    if name in EVALUATES and not is_harmless(answer):
        return {"score": None, "why": "would be run as code"}
    try:
        return {"score": float(tasks.score_answer(answer=answer, entry=entry))}
    except Exception as error:
        return {"score": None, "why": f"verifier: {type(error).__name__}"}


def main() -> None:
    """Serve until the input ends."""
    if resource is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    out = sys.stdout
    sys.stdout = sys.stderr  # what generators print is no reply
    out.write(json.dumps({"tasks": sorted(set(DATASETS) - {"composite"})}) + "\n")
    out.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        if "make" in asked:
            name, count, seed = asked["make"]
            make(name, count, seed, out)
        else:
            name, count, seed = asked["check"]
            out.write(json.dumps(check(name, count, seed, asked["index"], asked["answer"])) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
