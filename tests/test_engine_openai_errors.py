"""What goes wrong between the engine and a server over HTTP: one line each, and nothing hangs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bide.engines.mock import CHATML
from bide.engines.openai import OpenAIEngine
from bide.errors import BideError, CapabilityError, ContextOverflowError, ModelError, UpstreamError, UsageError
from fake_upstream import EOS, FakeUpstream, finish, request


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream() as server:
        yield server


@pytest.fixture
def text_fake() -> Iterator[FakeUpstream]:
    with FakeUpstream("text") as server:
        yield server


def text_engine(fake: FakeUpstream, **options: Any) -> OpenAIEngine:
    return OpenAIEngine(upstream=fake.url, chat_template=CHATML, **options)


def test_ollama_is_refused() -> None:
    with FakeUpstream("ollama") as fake, pytest.raises(CapabilityError, match="Ollama") as caught:
        OpenAIEngine(upstream=fake.url)
    assert "--engine llamacpp" in caught.value.one_line()


def test_no_server() -> None:
    with FakeUpstream() as fake:
        url = fake.url
    with pytest.raises(UpstreamError, match="no server answers"):
        OpenAIEngine(upstream=url)


@pytest.mark.parametrize("url", ["", "127.0.0.1:8000", "ftp://host", "http://"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(UsageError, match="no URL"):
        OpenAIEngine(upstream=url)


def test_models(fake: FakeUpstream) -> None:
    fake.models = ["one", "two"]
    with pytest.raises(ModelError) as caught:
        OpenAIEngine(upstream=fake.url)
    assert "one, two" in caught.value.one_line()
    with pytest.raises(ModelError, match="no model 'three'"):
        OpenAIEngine("three", upstream=fake.url)
    engine = OpenAIEngine("two", upstream=fake.url)
    assert engine.model == "two"
    engine.close()


def test_the_key_stays_between_us(fake: FakeUpstream) -> None:
    fake.key = "sk-right"
    for key in (None, "sk-wrong"):
        with pytest.raises(UpstreamError, match="refuses access") as caught:
            OpenAIEngine(upstream=fake.url, api_key=key)
        assert "sk-" not in caught.value.one_line()
    engine = OpenAIEngine(upstream=fake.url, api_key="sk-right")
    fake.faults = [(302, {"location": "http://127.0.0.1:9/v1/completions"}, b"")]
    with pytest.raises(UpstreamError, match="302"):
        finish(engine, request())
    engine.close()
    with pytest.raises(UsageError) as refused:
        OpenAIEngine(upstream=fake.url, api_key="sk-\n")
    assert "sk-" not in refused.value.one_line()


HTML = {"content-type": "text/html"}
FAULTS: list[tuple[tuple[int, dict[str, str], bytes], type[BideError], str]] = [
    ((500, {}, b'{"error": {"message": "out of\\nmemory"}}'), UpstreamError, "500: out of memory"),
    ((404, {}, b'{"error": {"message": "The model `x` does not exist."}}'), UpstreamError, "does not exist"),
    ((400, {}, b'{"error": "' + b"long " * 200 + b'"}'), UpstreamError, r"400: long .*\.\.\.$"),
    ((400, {}, b'{"message": "maximum context length is 9"}'), ContextOverflowError, "context length"),
    ((200, HTML, b"<html>hello</html>"), UpstreamError, "text/html, not with JSON"),
    ((200, {"content-type": "text/event-stream"}, b"data: {broken\n\n"), UpstreamError, "not with JSON"),
    ((200, {"content-type": "text/event-stream"}, b'data: {"error": {"message": "dead"}}\n'), UpstreamError, "dead"),
    ((200, {"content-type": "application/json"}, b"[1]"), UpstreamError, "not with JSON"),
    ((200, {"content-type": "text/event-stream"}, b"data: [DONE]\n\n"), UpstreamError, "broke off after 0"),
]


@pytest.mark.parametrize(("fault", "kind", "match"), FAULTS)
def test_faults_are_one_line(fake: FakeUpstream, fault: Any, kind: type[BideError], match: str) -> None:
    engine = OpenAIEngine(upstream=fake.url)
    fake.faults = [fault]
    with pytest.raises(kind, match=match) as caught:
        finish(engine, request())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 320
    engine.close()


def test_busy_servers_are_asked_again(fake: FakeUpstream) -> None:
    engine = OpenAIEngine(upstream=fake.url)
    busy = (429, {"retry-after": "0"}, b"{}")
    fake.faults = [busy, (503, {"retry-after": "0"}, b"")]
    assert finish(engine, request())[0].token_ids
    fake.faults = [busy] * 4
    with pytest.raises(UpstreamError, match="429"):
        finish(engine, request())
    assert not fake.faults
    engine.close()


@pytest.mark.parametrize("kind", ["vllm", "text"])
def test_a_broken_stream_is_an_error(kind: str) -> None:
    with FakeUpstream(kind) as fake:
        engine = text_engine(fake)
        fake.script, fake.break_after = [[97] * 50], 7
        with pytest.raises(UpstreamError, match=f"broke off after {7 if kind == 'vllm' else 0} tokens"):
            finish(engine, request())
        engine.close()


def test_a_silent_server_is_an_error(fake: FakeUpstream) -> None:
    engine = OpenAIEngine(upstream=fake.url, timeout=0.2)
    fake.delay = 1.0
    with pytest.raises(UpstreamError, match=r"silent for 0\.2 seconds"):
        finish(engine, request())
    engine.close()


def test_line_separators_inside_a_text_do_not_cut_an_event(text_fake: FakeUpstream) -> None:
    text_fake.script = [[120, 200, 121, EOS], [EOS]]
    text_fake.tokenizer.decode = lambda ids: "\u2028" if ids[0] > 127 else bytes(ids).decode()  # type: ignore[method-assign]
    engine = text_engine(text_fake)
    assert "\u2028" in finish(engine, request())[0].thinking
    engine.close()
