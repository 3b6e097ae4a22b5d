"""The logits processor in vLLM's own OpenAI server, asked over HTTP as any client asks it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (see .ci/vllm)")

import httpx

from bide.engines.base import Engine
from bide.engines.turn import Turn
from bide.sampling import generate
from test_vllm_plugin import PLUGIN, check_budget, request, xargs

START_UP = 300.0
OPENING = "<think>\n"
ENDPOINTS = ["/v1/completions", "/v1/chat/completions"]
WAITS = ["Wait, Wait", "Hmm, Wait"]
SELDOM = {str(i): -8.0 for i in (256, 257, 259)}
"""A logit bias for the ids of <|im_end|>, <|im_start|> and </think>: longer thoughts, so that some must be cut."""


@dataclass
class Choice:
    """What came back for one sample: the same whether it was streamed or not."""

    text: str
    ids: list[int]
    finish: str | None
    pieces: int = 1


class Server:
    """The server, and what its own description says that a request may contain."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=300, limits=httpx.Limits(max_connections=64))
        schemas = self.http.get("/openapi.json").json()["components"]["schemas"]
        names = {"/v1/completions": "CompletionRequest", "/v1/chat/completions": "ChatCompletionRequest"}
        self.fields = {endpoint: schemas[name]["properties"] for endpoint, name in names.items()}

    def takes_lists(self, endpoint: str) -> bool:
        """Whether `vllm_xargs` may hold lists at this endpoint (some releases: only at the other one)."""
        return '"array"' in json.dumps(self.fields[endpoint]["vllm_xargs"])

    def body(self, endpoint: str, extra: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        found: dict[str, Any] = dict(model="tiny", return_token_ids=True, skip_special_tokens=False, temperature=0.0)
        if endpoint == "/v1/completions":
            found["prompt"] = f"<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{OPENING}"
        else:
            found["messages"] = [{"role": "user", "content": "q"}]
        return found | ({} if extra is None else {"vllm_xargs": extra}) | more

    def post(self, endpoint: str, extra: dict[str, Any] | None, **more: Any) -> httpx.Response:
        headers = {"Connection": "close"}  # vLLM 0.25 closes it after an error, without a word
        return self.http.post(endpoint, json=self.body(endpoint, extra, **more), headers=headers)

    def ask(self, endpoint: str, extra: dict[str, Any] | None, *, stream: bool = False, **more: Any) -> list[Choice]:
        """The samples, by their index."""
        if not stream:
            response = self.post(endpoint, extra, **more)
            assert response.status_code == 200, response.text
            choices = sorted(response.json()["choices"], key=lambda one: one["index"])
            return [Choice(_text(one), one["token_ids"], one["finish_reason"]) for one in choices]
        found: dict[int, Choice] = {}
        with self.http.stream("POST", endpoint, json=self.body(endpoint, extra, stream=True, **more)) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                for one in json.loads(line.removeprefix("data: "))["choices"]:
                    choice = found.setdefault(one["index"], Choice("", [], None, pieces=0))
                    choice.text += _text(one)
                    choice.ids += one.get("token_ids") or []
                    choice.finish = one["finish_reason"] or choice.finish
                    choice.pieces += 1
        return [found[index] for index in sorted(found)]


def _text(choice: dict[str, Any]) -> str:
    if "text" in choice:
        return str(choice["text"])
    return (choice.get("delta") or choice.get("message") or {}).get("content") or ""


@pytest.fixture(scope="module")
def server(tiny_vllm_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm-server") / "log"
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(tiny_vllm_model),
        "--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--logits-processors", PLUGIN,
        "--enforce-eager", "--dtype", "float32", "--block-size", "32", "--max-num-seqs", "16",
        "--max-model-len", "1024",
    ]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + START_UP
        while not _healthy(address):
            ended = process.poll()
            assert ended is None and time.monotonic() < end, f"the server did not start ({ended}):\n{_tail(log)}"
            time.sleep(0.5)
        one = Server(address)
        yield one
        one.http.close()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # whatever it left behind
        process.wait()


def _healthy(address: str) -> bool:
    try:
        return httpx.get(address + "/health").status_code == 200
    except httpx.HTTPError:
        return False


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-4000:]


@pytest.fixture(scope="module")
def reference(tiny_vllm_model: Path) -> Engine:
    from bide.engines.transformers import TransformersEngine

    return TransformersEngine(str(tiny_vllm_model), device="cpu", dtype="float32", parallel=1)


def at_once(calls: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [one.result() for one in [pool.submit(call) for call in calls]]


def thought(ids: list[int], endpoint: str, tokenizer: Any) -> list[int]:
    """`ids` behind the opening marker: the chat template does not write it, so it must be the first output."""
    if endpoint == "/v1/completions":
        return ids
    opening = tokenizer.encode(OPENING)
    assert ids[: len(opening)] == opening
    return ids[len(opening) :]


def shown(choice: Choice, tokenizer: Any) -> list[int]:
    """The ids whose text vLLM gives out: not the end of the turn."""
    if choice.finish != "stop":
        return choice.ids
    assert choice.ids[-1] in tokenizer.eos_ids
    return choice.ids[:-1]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_concurrent_requests_keep_their_own_budgets(
    server: Server, reference: Engine, endpoint: str, stream: bool
) -> None:
    tokenizer = reference.tokenizer
    (end,) = tokenizer.encode("</think>")
    message = "\nTime is up."
    strings: Any = WAITS if server.takes_lists(endpoint) else WAITS[0]
    asked: list[dict[str, Any]] = []
    for i in range(32):
        extra: dict[str, Any] = dict(thinking_token_budget=20 + 8 * i, waits=i % 3, reasoning_format="qwen3")
        if extra["waits"]:
            extra["wait_strings"] = strings
        if i % 4 == 1:
            extra["end_message"] = message
        asked.append(extra)

    def call(i: int, extra: dict[str, Any]) -> Any:
        sampling = dict(temperature=1.0, seed=i, logit_bias=SELDOM)
        return lambda: server.ask(endpoint, extra, stream=stream, max_tokens=320, **sampling)

    cut = waited = 0
    for extra, (choice,) in zip(asked, at_once([call(i, extra) for i, extra in enumerate(asked)])):
        if stream:
            assert choice.pieces > 5
        assert "\ufffd" in choice.text or choice.text == tokenizer.decode(shown(choice, tokenizer))
        ids = thought(choice.ids, endpoint, tokenizer)
        budget, said = extra["thinking_token_budget"], tokenizer.encode(extra.get("end_message", ""))
        text = tokenizer.decode(ids[: ids.index(end)])
        if check_budget(ids, budget, tokenizer):
            cut += 1
            assert ids[budget - len(said) : budget] == said
            assert sum(text.count(wait) for wait in WAITS) <= extra["waits"]
        else:
            taken = [strings if isinstance(strings, str) else strings[k % 2] for k in range(extra["waits"])]
            while taken and [text.count(wait) for wait in WAITS] != [taken.count(wait) for wait in WAITS]:
                # One that is missing would not have left room for another token below the maximum.
                assert len(ids[: ids.index(end)]) + len(tokenizer.encode(taken.pop())) >= budget - len(said)
            waited += len(taken)
    assert cut > 3
    assert waited > 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_greedy_equals_the_token_at_a_time_engine(
    server: Server, reference: Engine, endpoint: str, stream: bool
) -> None:
    """So the streamed text is the one that is not streamed, too."""
    requests = [request(i, waits=(0, 0, 2, 1)[i % 4]) for i in range(16)]
    opening = len(reference.tokenizer.encode(OPENING)) if endpoint != "/v1/completions" else 0
    calls = []
    for i, one in enumerate(requests):
        if opening:
            more: dict[str, Any] = dict(messages=[{"role": m.role, "content": m.content} for m in one.messages])
        else:
            more = dict(prompt=Turn(i, one, reference.tokenizer, engine="", model="", window=None).prompt_ids)
        assert one.max_tokens is not None
        more["max_tokens"] = one.max_tokens + opening
        calls.append(lambda one=one, more=more: server.ask(endpoint, xargs(one), stream=stream, **more))
    for theirs, (choice,) in zip(generate(reference, requests), at_once(calls)):
        assert thought(choice.ids, endpoint, reference.tokenizer) == theirs.token_ids
        assert choice.text == reference.tokenizer.decode(shown(choice, reference.tokenizer))


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (dict(thinking_token_budget=-1), {}, "thinking_token_budget must be 0 or more, not -1"),
    (dict(thinking_token_budget="12"), {}, "whole number"),
    (dict(thinking_token_budget=5.5), {}, "whole number"),
    (dict(thinking_budget=5), {}, "did you mean 'thinking_token_budget'?"),
    (dict(wait=2), {}, "did you mean 'waits'?"),
    (dict(waits=1, mode="s1"), {}, "no mode='s1'"),
    (dict(waits=1 << 40), {}, "counts to"),
    (dict(waits=1, wait_strings="Wait " * 2000), {}, "8192 bytes"),
    (dict(waits=1, reasoning_format="quen3"), {}, "unknown reasoning format"),
    (dict(waits=1), dict(response_format={"type": "json_object"}), "would break the grammar"),
    (dict(waits=1), dict(thinking_token_budget=7), "given twice"),
]


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize(("extra", "more", "message"), REFUSED)
def test_what_cannot_be_is_refused_and_the_server_lives(
    server: Server, endpoint: str, extra: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    if "thinking_token_budget" in more and "thinking_token_budget" not in server.fields[endpoint]:
        pytest.skip("this vLLM has no thinking_token_budget of its own")
    response = server.post(endpoint, extra, max_tokens=5, **more)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]
    assert server.http.get("/health").status_code == 200
    (after,) = server.ask(endpoint, dict(thinking_token_budget=1, reasoning_format="qwen3"), max_tokens=9)
    assert after.text.count("</think>") == 1


def test_plain_requests_are_what_the_model_says(server: Server, reference: Engine, tiny_vllm_model: Path) -> None:
    """Alone, and in a batch of forced ones: the greedy text of transformers' own loop."""
    import torch
    import transformers

    endpoint = "/v1/completions"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_vllm_model)
    prompt = reference.tokenizer.encode(server.body(endpoint, None)["prompt"])
    ids = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=40, pad_token_id=0)
    expected = ids[0, len(prompt) :].tolist()
    forced = dict(thinking_token_budget=7, waits=1, reasoning_format="qwen3")

    def plain() -> Any:
        return server.ask(endpoint, None, max_tokens=40)

    assert plain()[0].ids == expected
    calls = [plain if i % 4 == 0 else lambda: server.ask(endpoint, forced, max_tokens=40) for i in range(24)]
    found = at_once(calls)
    assert all(found[i][0].ids == expected for i in range(0, 24, 4))
    assert all(check_budget(found[i][0].ids, 7, reference.tokenizer) in (True, False) for i in range(1, 24, 4))


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_both_samples_of_a_request_are_within_its_budget(server: Server, reference: Engine, endpoint: str) -> None:
    extra = dict(thinking_token_budget=12, waits=1, wait_strings=WAITS[0], reasoning_format="qwen3")
    sampling = dict(temperature=1.0, logit_bias=SELDOM)
    found = at_once([lambda i=i: server.ask(endpoint, extra, n=2, seed=i, max_tokens=80, **sampling) for i in range(8)])
    cut = 0
    for both in found:
        assert len(both) == 2
        for choice in both:
            cut += check_budget(thought(choice.ids, endpoint, reference.tokenizer), 12, reference.tokenizer)
    assert cut > 2
    assert sum(one.ids != other.ids for one, other in found) > 4


def test_clients_that_leave_do_not_disturb_the_others(server: Server, reference: Engine) -> None:
    """32 streams are dropped after their first piece; those behind them get their rows, and their own budgets."""
    endpoint = "/v1/completions"
    left = server.body(
        endpoint,
        dict(waits=3, reasoning_format="qwen3"),
        temperature=1.0,
        stream=True,
        max_tokens=900,
        ignore_eos=True,
    )

    def leave() -> None:
        with server.http.stream("POST", endpoint, json=left) as response:
            next(response.iter_lines())

    def stay(i: int) -> Any:
        extra = dict(thinking_token_budget=5 + i, reasoning_format="qwen3")
        return lambda: server.ask(endpoint, extra, temperature=1.0, seed=i, logit_bias=SELDOM, max_tokens=80)

    found = at_once([leave if i % 2 else stay(i) for i in range(64)])
    cut = [check_budget(found[i][0].ids, 5 + i, reference.tokenizer) for i in range(0, 64, 2)]
    assert sum(cut) > 3


def test_an_answer_shorter_than_the_opening_is_cut_by_max_tokens(server: Server, reference: Engine) -> None:
    (choice,) = server.ask("/v1/chat/completions", dict(waits=1, reasoning_format="deepseek-r1"), max_tokens=1)
    assert choice.ids == reference.tokenizer.encode(OPENING)[:1]
    assert choice.finish == "length"
