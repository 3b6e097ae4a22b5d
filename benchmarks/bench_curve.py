"""Accuracy against thinking budget on GSM8K, with intervals: the curve of the README.

    python benchmarks/bench_curve.py QUESTIONS.jsonl --engine transformers --model MODEL --count 200

QUESTIONS.jsonl: the test file of openai/grade-school-math (MIT): "question", and "answer" ending
in "#### number". The first --count rows are asked, greedily. Thinking is cut at each budget; the
answer may be 24 tokens long and its last number is compared. Prints a table with exact 95 %
intervals, checks that no turn exceeded its budget, and writes every turn to --out.

This shows what a cut costs. It does not show that more thinking helps beyond the natural end: the
rows with waits are there for that.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from pathlib import Path
from typing import Any

from bide import Completion, Request, ThinkingBudget, load_engine
from bide.engines.base import DoneEvent
from bide.sampling import ask_request

ANSWER_TOKENS = 24
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path)
    parser.add_argument("--engine", default="llamacpp")
    parser.add_argument("--model")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=N", help="a setting of the engine")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--budgets", default="0,16,32,64,128,256,512")
    parser.add_argument("--waits", default="1,2", help="numbers of waits, each at the largest budget")
    parser.add_argument("--format", default="auto")
    parser.add_argument("--out", type=Path, default=Path("curve.jsonl"))
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.questions.read_text(encoding="utf-8").splitlines()[: options.count]]
    budgets = [int(part) for part in options.budgets.split(",")]
    arms = [ThinkingBudget(tokens) for tokens in budgets]
    arms += [ThinkingBudget(max(budgets), waits=int(part)) for part in options.waits.split(",") if part]
    settings = {name: int(value) for name, _, value in (text.partition("=") for text in options.option)}
    engine = load_engine(options.engine, options.model, **settings)
    requests: list[Request] = [
        ask_request(row["question"], budget=arm, max_answer_tokens=ANSWER_TOKENS, format=options.format)
        for arm in arms
        for row in rows
    ]
    # Longest first: a batch that is refilled wastes least when its short turns come last.
    order = sorted(range(len(requests)), key=lambda i: -(requests[i].budget.thinking_token_budget or 0))
    found: dict[int, Completion] = {}
    begin = time.perf_counter()
    with options.out.open("w", encoding="utf-8") as out:
        for event in engine.generate([requests[i] for i in order]):
            if isinstance(event, DoneEvent):
                index = order[event.index]
                found[index] = event.completion
                out.write(json.dumps({"index": index, **event.completion.to_dict()}) + "\n")
                if len(found) % 100 == 0:
                    print(f"{len(found)}/{len(requests)} after {time.perf_counter() - begin:.0f} s", flush=True)
    seconds = time.perf_counter() - begin
    tokens = sum(len(completion.token_ids or ()) for completion in found.values())
    print(f"\n{len(found)} turns, {tokens} tokens in {seconds:.0f} s: {tokens / seconds:.0f} tokens/s")
    print("| budget | waits | mean used | cut | correct | accuracy | 95 % interval | over budget |")
    print("|---|---|---|---|---|---|---|---|")
    for number, arm in enumerate(arms):
        done = [found[number * len(rows) + i] for i in range(len(rows))]
        print_row(arm, rows, done)


def print_row(arm: ThinkingBudget, rows: list[dict[str, Any]], done: list[Completion]) -> None:
    correct = sum(last_number(c.answer) == gold(row) for c, row in zip(done, rows))
    low, high = exact_interval(correct, len(done))
    used = sum(c.budget["used"] for c in done) / len(done)
    cut = sum(c.budget["ended_by"] == "budget" for c in done)
    over = sum(not c.budget["exact"] for c in done)
    print(
        f"| {arm.thinking_token_budget} | {arm.waits} | {used:.0f} | {cut} | {correct} | {correct / len(done):.3f} "
        f"| {low:.3f} to {high:.3f} | {over} |"
    )


def gold(row: dict[str, Any]) -> float:
    return float(row["answer"].split("####")[-1].strip().replace(",", ""))


def last_number(answer: str) -> float | None:
    numbers = NUMBER.findall(answer)
    return float(numbers[-1].replace(",", "")) if numbers else None


def exact_interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson interval of k successes in n, by bisection."""

    def tail(p: float, k: int) -> float:  # P(X <= k)
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))

    def solve(wanted: float, k: int) -> float:
        low, high = 0.0, 1.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if tail(middle, k) > wanted else (low, middle)
        return low

    alpha = (1 - level) / 2
    return (0.0 if k == 0 else solve(1 - alpha, k - 1)), (1.0 if k == n else solve(alpha, k))


if __name__ == "__main__":
    main()
