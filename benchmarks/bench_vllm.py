"""Caps and waits in vLLM: plain generation, bide's engine, and rounds with barriers (s1's way).

    python benchmarks/bench_vllm.py --requests 64 --slots 16 --median 80 --most 249 --answer 24   # CPU, tiny
    python benchmarks/bench_vllm.py --shape 1.5b --requests 256 --slots 256 --median 1200 --most 4000 \\
        --answer 300 --bias 5.9                                                                  # one GPU

The model has random weights: "tiny", or the shape of Qwen2.5-1.5B. Every request has a budget of
its own, lognormal with the given median (sigma 0.8). --bias is added to the end marker's logit in
every arm, so that thoughts of a random model end now and then by themselves.

- plain: the same numbers of tokens, nothing forced
- bide: `VLLMEngine`, whole segments, each request going on by itself
- rounds: all requests generate until all have stopped, then all go on: one round a wait, one for
  the answers

Same engine, same process, one after the other, after a warm-up. "computed prompt tokens" are those
that the prefix cache did not serve, as vLLM reports them.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import vllm
from vllm.sampling_params import RequestOutputKind

from bide import ThinkingBudget
from bide.engines.base import DoneEvent
from bide.engines.turn import Turn
from bide.engines.vllm import VLLMEngine
from bide.sampling import ask_request

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from tiny_models import config_of, save_model, save_tokenizer

SHAPES: dict[str, dict[str, int]] = {
    "tiny": dict(hidden_size=128, head_dim=32, max_position_embeddings=4096),
    "1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                 num_key_value_heads=2, head_dim=128, vocab_size=151936, max_position_embeddings=32768),
}  # fmt: skip


class Counted(VLLMEngine):
    """Counts steps, and the prompt tokens that were computed; adds the bias."""

    bias = 0.0
    end = 0
    steps = 0
    computed = 0

    def reset(self) -> None:
        self.steps = self.computed = 0
        self._engine.reset_prefix_cache()

    def step(self) -> list[Any]:
        self.steps += 1
        outputs = self._plain_step()
        for output in outputs:
            if output.finished:
                self.computed += len(output.prompt_token_ids) - (output.num_cached_tokens or 0)
        return outputs

    def _params(self, turn: Turn, position: int) -> Any:
        params = super()._params(turn, position)
        return biased(params, self)


def biased(params: Any, engine: Counted) -> Any:
    """In every arm: ends at a rate that --bias sets, and no end of turn, so that answers are of one length."""
    ban = dict.fromkeys(engine.tokenizer.eos_ids, -100.0)
    params.seed = None  # vLLM 0.32 on a CPU fails on a seeded request whose prefill is cut in chunks
    params.logit_bias = {engine.end: engine.bias, **ban, **(params.logit_bias or {})}
    return params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="tiny", choices=SHAPES)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--median", type=float, default=80)
    parser.add_argument("--most", type=int, default=249)
    parser.add_argument("--answer", type=int, default=24)
    parser.add_argument("--bias", type=float, default=0.0)
    parser.add_argument("--waits", default="0,1,2,4")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    engine = build(options)
    draw = random.Random(options.seed)
    caps = [
        min(options.most, max(8, int(draw.lognormvariate(0, 0.8) * options.median))) for _ in range(options.requests)
    ]
    prompts = [turn.prompt_ids for turn in turns(engine, caps, 0, options)]
    measure(engine, "warm-up", lambda: plain(engine, prompts, [20] * len(prompts)))
    rows = []
    for _ in range(options.repeats):
        rows.append(measure(engine, "plain", lambda: plain(engine, prompts, [cap + options.answer for cap in caps])))
        for waits in map(int, options.waits.split(",")):
            rows.append(measure(engine, f"bide, {waits} waits", lambda w=waits: bide(engine, caps, w, options)))
            rows.append(
                measure(engine, f"rounds, {waits} waits", lambda w=waits: rounds(engine, prompts, caps, w, options))
            )
    print(f"\nvLLM {vllm.__version__}, {options}")
    print("| arm | tokens | seconds | tokens/s | steps | tokens a step | computed prompt tokens | over budget |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(row)


def build(options: Any) -> Counted:
    directory = Path(tempfile.mkdtemp())
    arguments: dict[str, Any] = {"dtype": "bfloat16", "load_format": "dummy"}
    if options.shape == "tiny":
        save_model(directory, config_of("Qwen2", **SHAPES["tiny"]), shape=False)
        arguments = {"dtype": "float32", "enforce_eager": True, "block_size": 32}
    else:
        save_tokenizer(directory)
        config = config_of("Qwen2", **SHAPES[options.shape])
        config.architectures = ["Qwen2ForCausalLM"]
        config.save_pretrained(directory)
    window = SHAPES[options.shape]["max_position_embeddings"]
    engine = Counted(
        str(directory), streaming=False, parallel=options.slots, context=min(window, 8192), engine_args=arguments
    )
    engine.end = engine.tokenizer.encode("</think>")[0]
    engine.bias = options.bias
    engine._plain_step = engine._engine.step
    engine._engine.step = engine.step
    return engine


def turns(engine: Counted, caps: list[int], waits: int, options: Any) -> list[Turn]:
    return [
        Turn(i, request, engine.tokenizer, engine="", model="", window=None)
        for i, request in enumerate(requests(caps, waits, options))
    ]


def requests(caps: list[int], waits: int, options: Any) -> list[Any]:
    return [
        ask_request(
            f"Question {i}: " + "x" * 48,
            budget=ThinkingBudget(cap, waits=waits),
            max_answer_tokens=options.answer,
            format="qwen3",
        )
        for i, cap in enumerate(caps)
    ]


def bide(engine: Counted, caps: list[int], waits: int, options: Any) -> tuple[int, int]:
    made = requests(caps, waits, options)
    for i, request in enumerate(made):
        object.__setattr__(request, "sampling", type(request.sampling)(temperature=1.0, seed=i))
    done = [event.completion for event in engine.generate(made) if isinstance(event, DoneEvent)]
    return sum(len(one.token_ids or ()) for one in done), sum(not one.budget["exact"] for one in done)


def plain(engine: Counted, prompts: list[list[int]], lengths: list[int]) -> tuple[int, int]:
    outputs = batch(engine, prompts, lengths, stops=())
    return sum(map(len, outputs)), 0


def rounds(engine: Counted, prompts: list[list[int]], caps: list[int], waits: int, options: Any) -> tuple[int, int]:
    """s1's scheme, with one budget for all rounds, as bide has it."""
    encode = engine.tokenizer.encode
    texts = [list[int]() for _ in prompts]
    live = list(range(len(prompts)))
    for number in range(waits + 1):
        outputs = batch(
            engine, [prompts[i] + texts[i] for i in live], [caps[i] - len(texts[i]) for i in live], stops=(engine.end,)
        )
        again = []
        for i, ids in zip(live, outputs):
            ended = ids[-1] == engine.end
            texts[i] += ids[:-1] if ended else ids
            if ended and number < waits and len(texts[i]) + len(encode("Wait")) < caps[i]:
                texts[i] += encode("Wait")
                again.append(i)
        live = again
        if not live:
            break
    over = sum(len(text) > cap for text, cap in zip(texts, caps))
    closed = [
        text + encode("</think>" if len(text) < cap else "\n</think>\n\nFinal Answer:")
        for text, cap in zip(texts, caps)
    ]
    answers = batch(engine, [a + b for a, b in zip(prompts, closed)], [options.answer] * len(prompts), stops=())
    return sum(map(len, closed)) + sum(map(len, answers)), over


def batch(engine: Counted, prompts: list[list[int]], lengths: list[int], stops: tuple[int, ...]) -> list[list[int]]:
    """Generate for all `prompts`, and wait for all."""
    for i, (prompt, length) in enumerate(zip(prompts, lengths)):
        params = vllm.SamplingParams(
            max_tokens=length,
            temperature=1.0,
            ignore_eos=True,
            stop_token_ids=list(stops),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        engine._engine.add_request(str(i), {"prompt_token_ids": prompt}, biased(params, engine))
    found: dict[int, list[int]] = {}
    while engine._engine.has_unfinished_requests():
        for output in engine._engine.step():
            if output.finished:
                found[int(output.request_id)] = list(output.outputs[0].token_ids)
    return [found[i] for i in range(len(prompts))]


def measure(engine: Counted, name: str, work: Any) -> str:
    engine.reset()
    begin = time.perf_counter()
    tokens, over = work()
    seconds = time.perf_counter() - begin
    row = (
        f"| {name} | {tokens} | {seconds:.1f} | {tokens / seconds:.0f} | {engine.steps} "
        f"| {tokens / engine.steps:.1f} | {engine.computed} | {over} |"
    )
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
