"""The logits processor in a batch as vLLM's V1 runner keeps it: requests come, go, are put out and taken back, change
places, leave for good. Each must write what it writes alone."""

from __future__ import annotations

import gc
import random
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (see .ci/vllm)")

import torch
import vllm
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from bide.engines.vllm_plugin import BudgetForcing
from test_vllm_plugin import PLUGIN
from tiny_models import VOCABULARY

OPENED = "<|im_start|>assistant\n<think>\n"
ROWS = 6


def config(model: Path, **more: Any) -> Any:
    """As much of vLLM's configuration as the processor looks at."""
    settings: dict[str, Any] = dict(
        tokenizer=str(model), tokenizer_revision=None, trust_remote_code=False, logits_processors=[PLUGIN], seed=0,
        get_vocab_size=lambda: VOCABULARY, try_get_generation_config=dict,
    )  # fmt: skip
    return SimpleNamespace(
        model_config=SimpleNamespace(**(settings | more)), scheduler_config=SimpleNamespace(max_num_seqs=ROWS),
        parallel_config=SimpleNamespace(), speculative_config=None,
    )  # fmt: skip


@dataclass
class One:
    """A request, and the model that answers it: its logits are a pure function of name and context."""

    name: int
    params: Any
    prompt: list[int] | None
    output: list[int] = field(default_factory=list)
    under_way: int | None = None
    """Asynchronous scheduling: what was sampled last, while -1 stands in the output."""

    def logits(self) -> torch.Tensor:
        draw = random.Random(zlib.crc32(repr((self.name, self.output[-3:], len(self.output))).encode()))
        found = torch.tensor([draw.gauss(0.0, 1.0) for _ in range(VOCABULARY)])
        found[:256] -= 4.0
        found[[64, 65, 66, 198]] += 6.0
        found[[256, 257, 259]] += 2.5  # the ends
        return found

    def sample(self, logits: torch.Tensor) -> int:
        if self.params.temperature < 1e-5:
            return int(logits.argmax())
        draw = torch.Generator().manual_seed(zlib.crc32(repr((self.name, len(self.output))).encode()))
        return int(torch.multinomial(torch.softmax(logits / self.params.temperature, 0), 1, generator=draw))

    @property
    def ended(self) -> bool:
        return len(self.output) >= self.params.max_tokens or (bool(self.output) and self.output[-1] == 256)


class Runner:
    """The batch: what vLLM 0.14 to 0.32 tell a processor about it, and in which order."""

    def __init__(self, model: Path, draw: random.Random, *, asynchronous: bool = False, calm: bool = False) -> None:
        self.plugin = BudgetForcing(config(model), torch.device("cpu"), False)
        self.draw, self.asynchronous, self.calm = draw, asynchronous, calm
        self.rows: list[One | None] = []
        self.waiting: list[One] = []
        self.preemptions = self.swaps = self.condensed = 0

    def run(self, requests: list[One], leave: float = 0.0) -> None:
        self.waiting = list(requests)
        while self.waiting or any(self.rows):
            self.step(leave)

    def step(self, leave: float) -> None:
        removed, added, moved = self.change(leave)
        update = None
        if removed or added or moved:
            update = BatchUpdate(batch_size=len(self.rows), removed=removed, added=added, moved=moved)
        self.plugin.update_state(update)
        batch = [one for one in self.rows if one is not None]
        for one in batch:
            if one.under_way is not None:
                one.output[-1], one.under_way = one.under_way, None
        if not batch:
            return
        plain = torch.stack([one.logits() for one in batch])
        logits = self.plugin.apply(plain.clone())
        for number, one in enumerate(batch):
            if one.params.extra_args is None:
                assert torch.equal(logits[number], plain[number])
            if not self.calm and self.draw.random() < (0.1 if one.output else 0.6):
                continue  # a part of a prompt: what is sampled is thrown away
            token = one.sample(logits[number])
            if self.asynchronous:
                one.output.append(-1)
                one.under_way = token
            else:
                one.output.append(token)

    def change(self, leave: float) -> tuple[Any, Any, Any]:
        """Who is where in the next step."""
        rows, draw = self.rows, self.draw
        removed: list[int] = []
        for number, one in enumerate(rows):
            assert one is not None
            shown = one if one.under_way is None else One(one.name, one.params, None, [*one.output[:-1], one.under_way])
            if shown.ended:
                one.output, one.under_way = shown.output, None
            elif draw.random() < leave:
                pass  # the client has left
            elif not self.calm and draw.random() < (0.06 if shown.output else 0.3):
                self.preemptions += 1
                if self.asynchronous:  # what was under way is dropped, and the list that comes back is another
                    one.output = one.output[:-1] if one.under_way is not None else list(one.output)
                    one.under_way = None
                self.waiting.insert(0, one)
            else:
                continue
            removed.append(number)
            rows[number] = None
        added, moved = [], []
        while self.waiting and (None in rows or len(rows) < ROWS) and draw.random() < 0.8:
            one = self.waiting.pop(0)
            number = rows.index(None) if None in rows else len(rows)
            if number == len(rows):
                rows.append(None)
            rows[number] = one
            if number in removed:
                removed.remove(number)
            added.append((number, one.params, one.prompt, one.output))
        while None in rows:  # condense: the last one fills the first hole
            if rows[-1] is None:
                rows.pop()
                continue
            hole = rows.index(None)
            moved.append((len(rows) - 1, hole, MoveDirectionality.UNIDIRECTIONAL))
            rows[hole] = rows.pop()
            self.condensed += 1
        if len(rows) > 1 and not self.calm and draw.random() < 0.2:
            one_row, other_row = draw.sample(range(len(rows)), 2)
            moved.append((one_row, other_row, MoveDirectionality.SWAP))
            rows[one_row], rows[other_row] = rows[other_row], rows[one_row]
            self.swaps += 1
        return removed, added, moved


def ask(draw: random.Random, plugin: BudgetForcing, count: int) -> list[One]:
    """Requests of all kinds; some share their parameters, as the samples of one request do."""
    prompt = plugin._maker._tokenizer.encode(OPENED)
    found: list[One] = []
    while len(found) < count:
        extra: dict[str, Any] | None = dict(
            reasoning_format=draw.choice(["qwen3", "s1", "deepseek-r1"]), waits=draw.randrange(4)
        )
        assert extra is not None
        if draw.random() < 0.8:
            extra["thinking_token_budget"] = draw.randrange(40)
        if extra["waits"]:
            extra["wait_strings"] = draw.choice([["Wait"], ["Hmm", "Wait, Wait"], ["a"]])
        if draw.random() < 0.2:
            extra["end_message"] = "x"
            extra.pop("thinking_token_budget", None)
        params = vllm.SamplingParams(
            max_tokens=draw.choice([1, 3, 60]), temperature=draw.choice([0.0, 0.7, 1.0]), seed=draw.randrange(1 << 40),
            extra_args=extra if draw.random() < 0.8 else None,
        )  # fmt: skip
        tail = draw.choice([prompt, prompt[:-2], [*prompt, 64, 65], [], None])
        for _ in range(draw.choice([1, 1, 3])):
            found.append(One(len(found), params, tail))
    return found


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_every_request_writes_what_it_writes_alone(tiny_vllm_model: Path, seed: int, asynchronous: bool) -> None:
    draw = random.Random(seed)
    runner = Runner(tiny_vllm_model, draw, asynchronous=asynchronous)
    requests = ask(draw, runner.plugin, 60)
    runner.run(requests)
    alone = Runner(tiny_vllm_model, draw, calm=True)
    for one in requests:
        again = One(one.name, one.params, one.prompt)
        alone.run([again])
        assert one.output == again.output, one.params.extra_args
    assert min(runner.preemptions, runner.swaps, runner.condensed) > 5


def test_nothing_is_left_of_thousands_of_requests(tiny_vllm_model: Path) -> None:
    """Finished, dropped or put out: what the processor keeps is bounded by the size of its batch."""
    draw = random.Random(1)
    runner = Runner(tiny_vllm_model, draw)
    for _ in range(20):
        requests = [
            One(i, vllm.SamplingParams(max_tokens=4, extra_args={"waits": 1, "reasoning_format": "qwen3"}), [5])
            for i in range(100)
        ]
        runner.run(requests, leave=0.2)
    plugin = runner.plugin
    assert len(plugin._entries) <= plugin._capacity == len(plugin._entries) + len(plugin._free)
    assert not plugin._batch
    requests.clear()
    gc.collect()
    kept = [one for one in gc.get_objects() if type(one) is type(next(iter(plugin._entries.values())))]
    assert len(kept) <= plugin._capacity + 1


@pytest.mark.parametrize("extra", [dict(thinking_token_budget=-1), dict(waits=1, mode="s1"), dict(wait=3)])
def test_settings_that_nobody_has_checked_end_the_request_and_not_the_engine(
    tiny_vllm_model: Path, extra: dict[str, Any]
) -> None:
    """Offline, vLLM 0.14 does not ask `validate_params`."""
    runner = Runner(tiny_vllm_model, random.Random(1), calm=True)
    bad, good = (
        One(i, vllm.SamplingParams(max_tokens=9, temperature=0.0, extra_args=args), [5])
        for i, args in enumerate([extra, dict(thinking_token_budget=2, reasoning_format="qwen3")])
    )
    runner.run([bad, good])
    assert bad.output == [256]
    assert 259 in good.output[2:5]


def test_sharded_sampling_is_refused_at_the_start(tiny_vllm_model: Path) -> None:
    sharded = config(tiny_vllm_model)
    sharded.parallel_config.enable_batch_sharded_sampling = True
    with pytest.raises(ValueError, match="enable_batch_sharded_sampling"):
        BudgetForcing(sharded, torch.device("cpu"), False)


def test_an_entry_point_is_refused_at_the_start(tiny_vllm_model: Path) -> None:
    with pytest.raises(ValueError, match="entry point"):
        BudgetForcing(config(tiny_vllm_model, logits_processors=None), torch.device("cpu"), False)
