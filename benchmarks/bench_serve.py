"""What `bide serve` adds to a stream: one upstream, asked directly and through bide, in the same run.

    python benchmarks/bench_serve.py
    python benchmarks/bench_serve.py --streams 64 --tokens 200 --interval 0.02

The upstream imitates vLLM: every stream gives one token, one letter, each --interval seconds, and the
upstream notes when it sends it. A client in a process of its own notes when the letter arrives:
straight from the upstream, or as a delta of a chat completion of `bide serve`, which drives the
upstream by token ids. One machine, one monotonic clock. "added" is the difference of the medians of
(arrival - sending). Throughput: tokens by the wall time of all streams.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from bide.engines.mock import CHATML, MockTokenizer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

UPSTREAM, SERVER = 8397, 8398


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--interval", type=float, default=0.02)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=upstream, args=(options.interval,), daemon=True)]
    processes[0].start()
    wait_for(f"http://127.0.0.1:{UPSTREAM}/version")
    processes.append(spawn.Process(target=server, args=(options.streams,), daemon=True))
    processes[1].start()
    wait_for(f"http://127.0.0.1:{SERVER}/health")
    print(f"{os.cpu_count()} cores, {vars(options)}\n")
    print("| streams | arm | tokens | wall s | tokens/s | delay of a token, ms: p50 | p95 | added p50, ms |")
    print("|---|---|---|---|---|---|---|---|")
    try:
        for streams in sorted({1, options.streams}):
            asyncio.run(run("direct", streams, 20))
            asyncio.run(run("through bide", streams, 20))
            direct = 0.0
            for arm in ("direct", "through bide"):
                found = [asyncio.run(run(arm, streams, options.tokens)) for _ in range(options.repeats)]
                wall = statistics.median(seconds for seconds, _ in found)
                delays = sorted(delay for _, some in found for delay in some)
                count = len(delays) // options.repeats
                p50, p95 = delays[len(delays) // 2] * 1e3, delays[len(delays) * 95 // 100] * 1e3
                added = "-" if arm == "direct" else f"{p50 - direct:.3f}"
                direct = p50
                print(
                    f"| {streams} | {arm} | {count} | {wall:.2f} | {count / wall:.0f} "
                    f"| {p50:.3f} | {p95:.3f} | {added} |"
                )
    finally:
        for process in processes:
            process.terminate()


def wait_for(url: str) -> None:
    for _ in range(200):
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


# The three processes.


def upstream(interval: float) -> None:
    """As much of vLLM's server as bide asks."""
    tokenizer, sent = MockTokenizer(), dict[str, list[float]]()

    async def version(request: Request) -> Response:
        return JSONResponse({"version": "0.33.0"})

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": "fake", "max_model_len": 100_000}]})

    async def info(request: Request) -> Response:
        return JSONResponse({"chat_template": CHATML, "eos_token": "<|im_end|>"})

    async def tokenize(request: Request) -> Response:
        return JSONResponse({"tokens": tokenizer.encode((await request.json())["prompt"])})

    async def detokenize(request: Request) -> Response:
        return JSONResponse({"prompt": tokenizer.decode((await request.json())["tokens"])})

    async def times(request: Request) -> Response:
        taken = dict(sent)
        sent.clear()
        return JSONResponse(taken)

    async def complete(request: Request) -> Response:
        body = await request.json()
        prompt = body["prompt"]
        text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
        if not body.get("stream"):
            return JSONResponse({"choices": [{"text": "", "token_ids": [65], "finish_reason": "length"}]})
        noted = sent.setdefault(text.partition("stream ")[2].partition(" ")[0], [])

        async def stream() -> AsyncIterator[bytes]:
            begin = time.monotonic()
            for number in range(body["max_tokens"]):
                await asyncio.sleep(max(0.0, begin + number * interval - time.monotonic()))
                over = number + 1 == body["max_tokens"]
                choice = {"index": 0, "text": "a", "token_ids": [97], "finish_reason": "length" if over else None}
                noted.append(time.monotonic())
                yield b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"
            yield b"data: [DONE]\n\n"

        return StreamingResponse(stream(), media_type="text/event-stream")

    routes = [
        Route("/version", version), Route("/v1/models", models), Route("/tokenizer_info", info),
        Route("/times", times), Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]), Route("/v1/completions", complete, methods=["POST"]),
    ]  # fmt: skip
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=UPSTREAM, log_level="error")


def server(parallel: int) -> None:
    """`bide serve` before it."""
    from bide.cli import main as bide

    sys.argv = ["bide", "serve", "--engine", "openai", "--upstream", f"http://127.0.0.1:{UPSTREAM}", "--format",
                "qwen3", "--port", str(SERVER), "--parallel", str(parallel)]  # fmt: skip
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    bide()


async def run(arm: str, streams: int, tokens: int) -> tuple[float, list[float]]:
    """Wall seconds, and for each token the seconds between its sending and its arrival."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60, limits=limits, trust_env=False) as http:
        await http.get(f"http://127.0.0.1:{UPSTREAM}/times")
        begin = time.monotonic()
        arrived = await asyncio.gather(*(listen(http, arm, number, tokens) for number in range(streams)))
        wall = time.monotonic() - begin
        sent: dict[str, list[float]] = (await http.get(f"http://127.0.0.1:{UPSTREAM}/times")).json()
    delays = []
    for number, letters in enumerate(arrived):
        assert len(letters) == tokens, f"{arm}: stream {number} gave {len(letters)} letters, not {tokens}"
        delays += [b - a for a, b in zip(sent[str(number)], letters)]
    return wall, delays


async def listen(http: httpx.AsyncClient, arm: str, number: int, tokens: int) -> list[float]:
    """When each letter arrived."""
    question = f"stream {number} of many"
    if arm == "direct":
        url = f"http://127.0.0.1:{UPSTREAM}/v1/completions"
        body: dict[str, Any] = {"model": "fake", "prompt": question, "max_tokens": tokens, "stream": True}
    else:
        url = f"http://127.0.0.1:{SERVER}/v1/chat/completions"
        body = {"messages": [{"role": "user", "content": question}], "stream": True, "thinking_token_budget": tokens,
                "max_tokens": tokens, "temperature": 0}  # fmt: skip
    letters: list[float] = []
    async with http.stream("POST", url, json=body) as response:
        if not response.is_success:
            raise SystemExit((await response.aread()).decode())
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                now = time.monotonic()
                for choice in json.loads(line[6:]).get("choices", ()):
                    delta = choice.get("delta") or {}
                    text = choice.get("text") or delta.get("reasoning_content") or delta.get("content") or ""
                    letters += [now] * len(text.replace("\n", ""))
    return letters


if __name__ == "__main__":
    main()
