"""The engine for /v1/completions, against a fake server: exact where ids are known, capped where not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bide.engines.base import DoneEvent, TokensEvent
from bide.engines.mock import CHATML, MockEngine
from bide.engines.openai import OpenAIEngine
from bide.engines.turn import segment_seed
from bide.errors import CapabilityError, ModelError
from bide.formats import FORMATS
from bide.types import Region, Sampling
from fake_upstream import BUDGETS, EOS, FakeUpstream, finish, request


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream() as server:
        yield server


@pytest.fixture
def text_fake() -> Iterator[FakeUpstream]:
    with FakeUpstream("text") as server:
        yield server


@pytest.mark.parametrize("form", ["s1", "qwen3", "gpt-oss", "cot", "magistral"])
@pytest.mark.parametrize("shows", [True, False])
def test_same_tokens_as_the_mock(fake: FakeUpstream, form: str, shows: bool) -> None:
    fake.shows_template, fake.ends = shows, FORMATS[form].ends
    engine = OpenAIEngine(upstream=fake.url)
    mock = MockEngine("random")
    for seed, budget in itertools.product(range(4), BUDGETS):
        fake.seed, fake.per_chunk = seed, 1 + seed % 3
        one = request(budget, format=form, sampling=Sampling(seed=seed))
        (got,), (want,) = finish(engine, one), finish(mock, one)
        assert (got.token_ids, got.forced) == (want.token_ids, want.forced), (seed, budget)
        assert (got.budget, got.finish_reason) == (want.budget, want.finish_reason)
        assert (got.thinking, got.answer) == (want.thinking, want.answer)
    engine.close()


def test_s1_mode_masks(fake: FakeUpstream) -> None:
    fake.ends = FORMATS["s1"].ends
    engine = OpenAIEngine(upstream=fake.url)
    one = request({"thinking_token_budget": 20, "waits": 2, "mode": "s1"}, format="s1")
    (got,), (want,) = finish(engine, one), finish(MockEngine("random"), one)
    assert (got.token_ids, got.forced, got.budget) == (want.token_ids, want.forced, want.budget)
    engine.close()


def test_chunks_and_parallel_change_nothing(fake: FakeUpstream) -> None:
    one = [request(budget) for budget in BUDGETS]
    whole, parts = OpenAIEngine(upstream=fake.url), OpenAIEngine(upstream=fake.url + "/v1/", chunk=3, parallel=1)
    assert [c.token_ids for c in finish(whole, *one)] == [c.token_ids for c in finish(parts, *one)]
    assert all(body["max_tokens"] <= 3 for body in fake.requests[-5:])
    whole.close()
    parts.close()


def test_a_long_segment_is_one_request(fake: FakeUpstream) -> None:
    fake.script = [[97] * 300, [98] * 5]
    engine = OpenAIEngine(upstream=fake.url)
    (done,) = finish(engine, request({"thinking_token_budget": 200}, max_tokens=None))
    assert len(fake.requests) == 2
    assert done.budget["used"] == 200
    assert done.budget["ended_by"] == "budget"
    engine.close()


def test_an_end_marker_may_begin_below_the_maximum(fake: FakeUpstream) -> None:
    fake.script = [[*b"aaaaa", *b"Final Answer", *b": 3"]]
    engine = OpenAIEngine(upstream=fake.url)
    (done,) = finish(engine, request({"thinking_token_budget": 8}, format="cot", max_tokens=None))
    assert (done.budget["used"], done.budget["ended_by"], done.answer) == (5, "natural", "3")
    assert fake.requests[0]["max_tokens"] == 8 + len(" Final Answer") - 1
    engine.close()


def test_cutting_stops_the_upstream(fake: FakeUpstream) -> None:
    fake.delay, fake.script = 0.005, [[10] * 5000, [EOS]]
    engine = OpenAIEngine(upstream=fake.url)
    budget = {"thinking_token_budget": 4000, "grace_tokens": 3990, "boundary": "line"}
    (done,) = finish(engine, request(budget, max_tokens=None))
    assert done.budget["used"] == 10
    time.sleep(0.1)
    assert fake.computed <= 10 + 12  # the cut is noticed when the next tokens are written
    engine.close()


def test_closing_the_iterator_stops_the_upstream(fake: FakeUpstream) -> None:
    fake.delay, fake.script = 0.005, [[97] * 5000]
    engine = OpenAIEngine(upstream=fake.url)
    events = engine.generate([request(max_tokens=None)])
    next(events), next(events)
    events.close()
    computed = fake.computed
    time.sleep(0.1)
    assert fake.computed <= computed + 5
    engine.close()


def test_end_thinking_and_cancel(fake: FakeUpstream) -> None:
    fake.delay, fake.script = 0.002, [[97] * 5000, [98] * 5000]
    engine = OpenAIEngine(upstream=fake.url)
    one = request(max_tokens=None)
    shown: list[TokensEvent] = []
    for event in engine.generate([one]):
        if isinstance(event, TokensEvent):
            shown.append(event)
            if event.used >= 5:
                one.control.end_thinking()
            if "bbb" in "".join(e.text for e in shown):
                one.control.cancel()
        else:
            assert event.completion.budget["ended_by"] == "client"
            assert event.completion.finish_reason == "client"
            assert event.completion.answer.startswith("Final Answer:bbb")
    engine.close()


def test_seeds_differ_by_position() -> None:
    seeds = {segment_seed(seed, position) for seed in range(20) for position in range(50)}
    assert len(seeds) == 1000
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_the_sampling_is_said_in_full(fake: FakeUpstream) -> None:
    engine = OpenAIEngine(upstream=fake.url)
    finish(engine, request(sampling=Sampling(temperature=0.7, top_p=0.9, top_k=5, seed=3)))
    body = fake.requests[0]
    assert (body["temperature"], body["top_p"], body["top_k"]) == (0.7, 0.9, 5)
    assert body["repetition_penalty"] == 1.0  # a model's generation config may say otherwise
    assert body["seed"] == segment_seed(3, 0)
    assert body["skip_special_tokens"] is False
    assert body["stop_token_ids"] == fake.tokenizer.encode("</think>")  # nothing is computed behind the end
    assert "stop_token_ids" not in fake.requests[-1]
    engine.close()


def test_recomputed_tokens(fake: FakeUpstream) -> None:
    fake.script = [[97] * 20, [98, EOS]]
    engine = OpenAIEngine(upstream=fake.url)
    (done,) = finish(engine, request({"thinking_token_budget": 10}))
    assert done.timing.recomputed_prompt_tokens == done.timing.prompt_tokens + 10  # nothing is said: all of it
    fake.script, fake.cached = [[97] * 20, [98, EOS]], 30
    (done,) = finish(engine, request({"thinking_token_budget": 10}))
    assert done.timing.recomputed_prompt_tokens == done.timing.prompt_tokens + 10 - 30
    engine.close()


def test_format_auto_needs_a_template(fake: FakeUpstream) -> None:
    engine = OpenAIEngine(upstream=fake.url)
    assert finish(engine, request(format="auto"))[0].format == "cot"
    engine.close()
    fake.shows_template = False
    engine = OpenAIEngine(upstream=fake.url)
    with pytest.raises(ModelError, match="does not show its chat template"):
        finish(engine, request(format="auto"))
    engine.close()


def test_a_full_window_ends_the_turn(fake: FakeUpstream) -> None:
    fake.window, fake.script = 200, [[97] * 400]
    engine = OpenAIEngine(upstream=fake.url)
    (done,) = finish(engine, request(max_tokens=None))
    assert done.finish_reason == "length"
    assert done.timing.prompt_tokens + len(done.token_ids or []) <= 200
    engine.close()


# Text only.


def text_engine(fake: FakeUpstream, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(upstream=fake.url, chat_template=CHATML, **options)


@pytest.mark.parametrize("names_stop", [True, False])
@pytest.mark.parametrize("usage", [True, False])
def test_text_never_exceeds_the_maximum(text_fake: FakeUpstream, names_stop: bool, usage: bool) -> None:
    text_fake.names_stop, text_fake.usage = names_stop, usage
    engine = text_engine(text_fake)
    for form, seed, budget in itertools.product(["s1", "qwen3", "cot"], range(4), BUDGETS):
        if budget.get("wait_strings") == "":
            continue
        text_fake.ends, text_fake.seed, text_fake.per_chunk = FORMATS[form].ends, seed, 1 + seed
        before = len(text_fake.requests)
        (done,) = finish(engine, request(budget, format=form))
        assert done.token_ids is None and done.forced is None
        assert done.budget["used"] <= budget.get("thinking_token_budget", 160)
        assert done.budget["exact"] or done.budget["ended_by"] == "length" or done.budget["min"]
        prompts = [body["prompt"] for body in text_fake.requests[before:]]
        assert all(later.startswith(prompts[0]) for later in prompts)
    engine.close()


@pytest.mark.parametrize("usage", [True, False])
@pytest.mark.parametrize("per_chunk", [1, 4])
def test_text_counts_what_the_upstream_counts(text_fake: FakeUpstream, usage: bool, per_chunk: int) -> None:
    text_fake.usage, text_fake.per_chunk = usage, per_chunk
    text_fake.script = [[97] * 30 + [259], [98] * 3]
    engine = text_engine(text_fake)
    (done,) = finish(engine, request({"thinking_token_budget": 50}, max_tokens=None))
    assert done.thinking == "a" * 30
    assert done.answer == "bbb"
    assert done.budget["used"] == 30
    assert done.budget["ended_by"] == "natural"
    engine.close()


def test_text_waits_and_answer_prefix_reach_the_upstream(text_fake: FakeUpstream) -> None:
    text_fake.script = [[97, 259], [98] * 100, [99]]
    engine = text_engine(text_fake)
    events = list(engine.generate([request({"thinking_token_budget": 20, "waits": 1}, max_tokens=None)]))
    done = events[-1]
    assert isinstance(done, DoneEvent)
    first, second, third = (body["prompt"] for body in text_fake.requests)
    assert second == first + "aWait"
    assert text_fake.requests[1]["max_tokens"] == 20 - 1 - len("Wait")
    assert third == first + "aWait" + "b" * 15 + "\n</think>\n\nFinal Answer:"
    assert done.completion.answer == "Final Answer:c"
    assert done.completion.budget["waits"] == 1
    assert done.completion.budget["used"] == 20
    assert not any(event.token_ids for event in events if isinstance(event, TokensEvent))
    shown = "".join(event.text for event in events if isinstance(event, TokensEvent))
    assert shown == third[len(first) :] + "c"
    engine.close()


def test_text_upstream_says_what_it_cannot_do(text_fake: FakeUpstream) -> None:
    engine = text_engine(text_fake)
    assert not engine.capabilities.token_ids and not engine.capabilities.masks_tokens
    assert any("UTF-8" in note for note in engine.capabilities.notes)
    for bad in (
        request({"waits": 1, "wait_strings": ""}),
        request(sampling=Sampling(top_k=3)),
        request(format="gpt-oss"),
    ):
        with pytest.raises(CapabilityError):
            finish(engine, bad)
    engine.close()
    bare = OpenAIEngine(upstream=text_fake.url)
    with pytest.raises(ModelError, match="chat template"):
        finish(bare, request())
    assert finish(bare, request(format="s1"))
    bare.close()


def test_a_token_is_given_out_before_the_next_one_is_sampled() -> None:
    """vLLM says with a token whether it is the last, so none has to wait for its successor."""
    with FakeUpstream() as fake:
        fake.script = [fake.tokenizer.encode("abcdefgh")]
        fake.delay = 0.05
        engine = OpenAIEngine(upstream=fake.url)
        ahead = []
        for event in engine.generate([request({"thinking_token_budget": 8}, max_tokens=9)]):
            if isinstance(event, TokensEvent) and not event.forced and event.region is Region.THINKING:
                ahead.append(fake.computed - event.used)
        engine.close()
    assert len(ahead) == 8 and ahead.count(0) >= 7  # one may come late on a busy machine
