"""Caps and waits on llama.cpp: what does forcing cost, and what do rounds cost?

    python benchmarks/bench_waits.py [--tokens 256] [--waits 2] [--repeats 3]

Arms, greedy, the same questions, the same model and server:

- plain: one call for all the tokens, nothing forced (the speed of llama.cpp itself)
- bide, cap: the engine, thinking cut at --tokens
- bide, waits: the engine, --waits ends refused; an end is a natural one or that of the turn
- rounds: the same text by the s1 README's scheme: after every end the whole text is sent again
  and evaluated again (no prefix cache), once more for the answer

Prints a Markdown table. "evaluated" counts prompt tokens that the server evaluated, from its own
counters, so it includes what was evaluated more than once.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import time
from typing import Any

import httpx
import xllamacpp

from bide import ThinkingBudget
from bide.engines.base import DoneEvent
from bide.engines.llamacpp import LlamaCppEngine
from bide.sampling import ask_request

QUESTIONS = [
    "How many r in raspberry?",
    "A train leaves at 9:40 and arrives at 12:05. How long does it take?",
    "What is 17 times 23?",
    "Which weighs more, a litre of water or a litre of ice?",
    "Name three prime numbers above 50 and show that they are prime.",
]
ANSWER_TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--waits", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default=None)
    options = parser.parse_args()
    engine = LlamaCppEngine(options.model, report=print)
    arms: dict[str, list[dict[str, float]]] = {}
    cap = ThinkingBudget(options.tokens)
    wait = ThinkingBudget(options.tokens, waits=options.waits)
    for _ in range(options.repeats):
        for question in QUESTIONS:
            for name, budget in (("bide, cap", cap), (f"bide, {options.waits} waits", wait)):
                arms.setdefault(name, []).append(bide(engine, question, budget))
            arms.setdefault(f"rounds, {options.waits} waits", []).append(rounds(engine, question, wait))
            arms.setdefault("plain", []).append(plain(engine, question, options.tokens + ANSWER_TOKENS))
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"\ncommit {commit}, Python {platform.python_version()}, xllamacpp {xllamacpp.__version__}, greedy, seed 0")
    print("| arm | tokens | seconds | tokens/s | prompt tokens evaluated | of them again |")
    print("|---|---|---|---|---|---|")
    for name, rows in arms.items():
        total = {key: sum(row[key] for row in rows) for key in rows[0]}
        print(
            f"| {name} | {total['tokens']:.0f} | {total['seconds']:.1f} | {total['tokens'] / total['seconds']:.1f} "
            f"| {total['evaluated']:.0f} | {total['again']:.0f} |"
        )
    engine.close()


def bide(engine: LlamaCppEngine, question: str, budget: ThinkingBudget) -> dict[str, float]:
    request = ask_request(question, budget=budget, max_answer_tokens=ANSWER_TOKENS)
    begin = time.perf_counter()
    done = [event for event in engine.generate([request]) if isinstance(event, DoneEvent)]
    seconds = time.perf_counter() - begin
    completion = done[0].completion
    assert completion.token_ids is not None and completion.forced is not None
    timing = completion.timing
    return {
        "tokens": len(completion.token_ids),
        "seconds": seconds,
        "evaluated": timing.prompt_tokens + sum(completion.forced) + timing.recomputed_prompt_tokens,
        "again": timing.recomputed_prompt_tokens,
    }


def call(engine: LlamaCppEngine, prompt: list[int], count: int, **fields: Any) -> dict[str, Any]:
    http: httpx.Client = engine._http
    body = {"prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": True, **fields}
    return dict(http.post("/completion", json=body).json())


def plain(engine: LlamaCppEngine, question: str, count: int) -> dict[str, float]:
    prompt = prompt_ids(engine, question)
    begin = time.perf_counter()
    reply = call(engine, prompt, count, ignore_eos=True, cache_prompt=False)
    seconds = time.perf_counter() - begin
    return {"tokens": len(reply["tokens"]), "seconds": seconds, "evaluated": reply["timings"]["prompt_n"], "again": 0}


def rounds(engine: LlamaCppEngine, question: str, budget: ThinkingBudget) -> dict[str, float]:
    """The scheme with barriers, with bide's total budget so that the texts are comparable."""
    prompt = prompt_ids(engine, question)
    tokenizer = engine.tokenizer
    thought: list[int] = []
    evaluated = 0
    begin = time.perf_counter()
    assert budget.thinking_token_budget is not None
    for number in range(budget.waits + 1):
        reply = call(engine, prompt + thought, budget.thinking_token_budget - len(thought), cache_prompt=False)
        evaluated += reply["timings"]["prompt_n"]
        thought += [token for token in reply["tokens"] if token not in tokenizer.eos_ids]
        if reply["stop_type"] != "eos" or number == budget.waits:
            break
        thought += tokenizer.encode("\nWait")
        if len(thought) >= budget.thinking_token_budget:
            break
    closing = tokenizer.encode("\nFinal Answer:")
    reply = call(engine, prompt + thought + closing, ANSWER_TOKENS, cache_prompt=False)
    evaluated += reply["timings"]["prompt_n"]
    seconds = time.perf_counter() - begin
    tokens = len(thought) + len(closing) + len(reply["tokens"])
    return {
        "tokens": tokens,
        "seconds": seconds,
        "evaluated": evaluated,
        "again": evaluated - len(prompt) - len(thought) - len(closing),
    }


def prompt_ids(engine: LlamaCppEngine, question: str) -> list[int]:
    from bide.engines.compile import build_prompt
    from bide.formats import FORMATS
    from bide.types import Message

    return engine.tokenizer.encode(build_prompt((Message("user", question),), FORMATS["cot"], engine.tokenizer))


if __name__ == "__main__":
    main()
