"""The server before an upstream: budgets hold there, and what happens there reaches the client as it should."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from bide.cli.serve import host_of, public_name
from bide.engines.mock import MockEngine
from bide.engines.openai import OpenAIEngine
from bide.errors import UsageError
from fake_upstream import FakeUpstream
from server_tools import Running, chunks, joined, serving, wait_for

USER = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


@pytest.fixture
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream() as upstream:
        yield upstream


@pytest.fixture
def proxy(fake: FakeUpstream) -> Iterator[Running]:
    with serving(OpenAIEngine(upstream=fake.url)) as running:
        yield running


def test_the_same_as_without_an_upstream(proxy: Running) -> None:
    bodies = [{"thinking_token_budget": 7, "max_tokens": 80}, {"waits": 1, "max_tokens": 80}]
    with serving(MockEngine("random")) as direct:
        for body in bodies:
            expected = direct.chat(**body, seed=0).json()
            for stream in (False, True):
                reply = proxy.chat(**body, seed=0, stream=stream)
                if stream:
                    found = list(chunks(reply))
                    assert joined(found, "reasoning") == expected["choices"][0]["message"]["reasoning"]
                    assert joined(found, "content") == expected["choices"][0]["message"]["content"]
                    assert found[-1]["budget"] == expected["budget"]
                else:
                    assert reply.json()["choices"][0]["message"] == expected["choices"][0]["message"]
                    assert reply.json()["usage"] == expected["usage"]


def test_when_the_client_leaves_the_upstream_stops(fake: FakeUpstream, proxy: Running) -> None:
    fake.delay = 0.005
    fake.script = [[0x61] * 100_000]
    with proxy.http.stream("POST", CHAT, json={"messages": USER, "stream": True}) as reply:
        found = chunks(reply)
        for _ in range(4):
            next(found)
    wait_for(lambda: not proxy.app.state.runner.running, 1.0)
    computed = fake.computed
    time.sleep(0.2)
    assert fake.computed - computed <= 20  # what was on its way


def test_faults_of_the_upstream(fake: FakeUpstream, proxy: Running) -> None:
    fake.faults = [(500, {}, b"boom")]
    reply = proxy.chat(max_tokens=20)
    assert reply.status_code == 502 and "500" in reply.json()["error"]["message"]
    fake.break_after = 3
    found = list(chunks(proxy.chat(max_tokens=20, stream=True)))
    assert "error" in found[-1]
    fake.break_after = None
    assert proxy.chat(max_tokens=20).status_code == 200


def test_an_upstream_that_dies(fake: FakeUpstream, proxy: Running) -> None:
    assert proxy.chat(max_tokens=20).status_code == 200
    fake.__exit__(None, None, None)
    assert proxy.chat(max_tokens=20).status_code == 502
    assert proxy.http.get("/health").status_code == 200


def test_a_hidden_template_needs_a_format(fake: FakeUpstream) -> None:
    fake.shows_template = False
    engine = OpenAIEngine(upstream=fake.url)
    with pytest.raises(UsageError, match="chat template"):
        host_of(engine, "auto")
    assert host_of(engine, "qwen3").format == "qwen3"
    engine.close()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/home/alice/secret/m.gguf", "m.gguf"),
        ("http://user:password@127.0.0.1:8080", "http://127.0.0.1:8080"),
        ("hf:org/name", "org/name"),
        ("fake", "fake"),
    ],
)
def test_clients_learn_neither_paths_nor_passwords(model: str, name: str) -> None:
    shown, aliases = public_name(model)
    assert shown == name and f"{name}:latest" in aliases
    assert not any("alice" in alias or "password" in alias for alias in aliases)
