"""A small HTTP server that imitates vLLM, or a server that knows text only, over the mock's model.

The model is `random_id`: a pure function of the fake's own seed and the context, so that any way
of driving it must give the tokens that the mock engine gives.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bide.chat_template import render_chat
from bide.engines.base import DoneEvent, Request
from bide.engines.mock import CHATML, MockTokenizer, random_id
from bide.thinking_budget import ThinkingBudget
from bide.types import Completion, Message

EOS = 256


class FakeUpstream:
    """Set the attributes, then send requests to `url`. Use as a context manager."""

    def __init__(self, kind: str = "vllm", ends: tuple[str, ...] = ("</think>",), seed: int = 0) -> None:
        self.kind = kind  # "vllm", "text", "ollama"
        self.ends, self.seed = ends, seed
        self.tokenizer = MockTokenizer()
        self.models = ["fake"]
        self.window: int | None = 100_000
        self.shows_template = True
        self.names_stop = True  # text: says what stopped it
        self.usage = True
        self.cached: int | None = None
        self.per_chunk = 1  # tokens of one streamed chunk
        self.delay = 0.0  # seconds for each token
        self.script: list[list[int]] | None = None  # what it says, one entry a request
        self.key: str | None = None
        self.faults: list[tuple[int, dict[str, str], bytes]] = []  # for the next completions, in turn
        self.break_after: int | None = None  # tokens, then the connection is cut
        self.requests: list[dict[str, Any]] = []
        self.authorizations: set[str | None] = set()
        self.computed = 0  # tokens, all requests
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                fake._get(self)

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length", 0))
                fake._post(self, json.loads(self.rfile.read(length)))

            def log_message(self, *args: object) -> None:
                """Silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeUpstream:
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    # Routes.

    def _get(self, handler: BaseHTTPRequestHandler) -> None:
        self.authorizations.add(handler.headers.get("authorization"))
        models = [{"id": name, "max_model_len": self.window} for name in self.models]
        info = {"chat_template": CHATML, "eos_token": "<|im_end|>"}
        answers: dict[str, Any] = {"/v1/models": {"data": models}}
        if self.kind == "vllm":
            answers["/version"] = {"version": "0.33.0"}
            if self.shows_template:
                answers["/tokenizer_info"] = info
        if self.kind == "ollama":
            answers["/api/version"] = {"version": "0.20"}
        if self.key and handler.headers.get("authorization") != f"Bearer {self.key}":
            self._send(handler, 401, {"error": {"message": f"bad key {handler.headers.get('authorization')}"}})
        elif handler.path in answers:
            self._send(handler, 200, answers[handler.path])
        else:
            self._send(handler, 404, {"detail": "Not Found"})

    def _post(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.authorizations.add(handler.headers.get("authorization"))
        if handler.path == "/tokenize" and self.kind == "vllm":
            text = body.get("prompt")
            if text is None:
                text = render_chat(CHATML, [Message(**message) for message in body["messages"]])
            self._send(handler, 200, {"tokens": self.tokenizer.encode(text)})
        elif handler.path == "/detokenize" and self.kind == "vllm":
            self._send(handler, 200, {"prompt": self.tokenizer.decode(body["tokens"])})
        elif handler.path == "/v1/completions":
            self._complete(handler, body)
        else:
            self._send(handler, 404, {"detail": "Not Found"})

    def _send(self, handler: BaseHTTPRequestHandler, status: int, value: Any) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        handler.send_response(status)
        handler.send_header("content-type", "text/html" if data.startswith(b"<") else "application/json")
        handler.send_header("content-length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    # The model.

    def _complete(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        if body.get("stream") and self.faults:
            status, headers, data = self.faults.pop(0)
            handler.send_response(status)
            for name, value in {"content-length": str(len(data)), **headers}.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(data)
            return
        prompt = body["prompt"]
        context = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not body.get("stream"):
            answer = {"text": "", "token_ids": [65], "finish_reason": "length"}
            self._send(handler, 200, {"choices": [answer]})
            return
        self.requests.append(body)
        handler.send_response(200)
        handler.send_header("content-type", "text/event-stream")
        handler.send_header("connection", "close")
        handler.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a closed stream stops the model
            self._stream(handler, body, context)
        handler.close_connection = True

    def _stream(self, handler: BaseHTTPRequestHandler, body: dict[str, Any], context: list[int]) -> None:
        length, size = body["max_tokens"], len(context)
        banned = frozenset(int(token) for token in body.get("logit_bias", {}))
        if body.get("min_tokens"):
            banned |= {EOS}
        markers = self.tokenizer.encode("".join((*self.ends, "<|im_end|>")))
        script = None if self.script is None else (self.script.pop(0) if self.script else [EOS])
        out: list[int] = []
        text, sent, finish, reason = "", 0, None, None
        while finish is None:
            if script is None:
                token = random_id(self.seed, context + out, markers, banned)
            else:
                token = script[len(out)] if len(out) < len(script) else EOS
            if self.delay:
                time.sleep(self.delay)
            if self.break_after is not None and len(out) >= self.break_after:
                return
            out.append(token)
            self.computed += 1
            if token == EOS:
                finish = "stop"
            elif token in body.get("stop_token_ids", []):
                finish, reason = "stop", token
            else:
                text += self.tokenizer.decode([token])
                hits = [stop for stop in body.get("stop") or [] if stop in text]
                if hits:
                    finish, reason = "stop", hits[0]
                    text = text[: text.index(hits[0])]
            if finish is None and len(out) >= length:
                finish = "length"
            if finish is None and len(out) % self.per_chunk:
                continue
            hold = 0 if finish else max((len(stop) - 1 for stop in body.get("stop") or []), default=0)
            visible = max(sent, len(text) - hold)
            choice: dict[str, Any] = {"index": 0, "text": text[sent:visible], "finish_reason": finish}
            sent = visible
            if self.names_stop:
                choice["stop_reason"] = reason
            if body.get("return_token_ids"):
                choice["token_ids"] = out[len(out) - ((len(out) - 1) % self.per_chunk + 1) :]
            self._event(handler, {"choices": [choice]})
        if self.usage:
            usage: dict[str, Any] = {"prompt_tokens": size, "completion_tokens": len(out)}
            if self.cached is not None:
                usage["prompt_tokens_details"] = {"cached_tokens": min(self.cached, size)}
            self._event(handler, {"choices": [], "usage": usage})
        handler.wfile.write(b"data: [DONE]\n\n")

    def _event(self, handler: BaseHTTPRequestHandler, value: dict[str, Any]) -> None:
        handler.wfile.write(b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n")
        handler.wfile.flush()


BUDGETS: list[dict[str, Any]] = [
    {},
    {"thinking_token_budget": 0},
    {"thinking_token_budget": 1},
    {"thinking_token_budget": 7},
    {"thinking_token_budget": 60, "waits": 3},
    {"thinking_token_budget": 25, "min_thinking_tokens": 20, "wait_strings": ("Wait", "Hm, but")},
    {"thinking_token_budget": 40, "waits": 2, "wait_strings": "", "answer_prefix": ""},
    {"thinking_token_budget": 90, "soft_limit": 10, "soft_limit_message": "Soon.", "waits": 1},
    {"thinking_token_budget": 50, "grace_tokens": 20, "boundary": "line", "end_message": "\nEnough."},
    {"waits": 4, "min_thinking_tokens": 30},
]


def request(budget: dict[str, Any] | None = None, **fields: Any) -> Request:
    fields = {"format": "qwen3", "max_tokens": 160, **fields}
    return Request((Message("user", "How many r are in raspberry?"),), ThinkingBudget(**(budget or {})), **fields)


def finish(engine: Any, *requests: Request) -> list[Completion]:
    done = [event for event in engine.generate(requests) if isinstance(event, DoneEvent)]
    return [event.completion for event in sorted(done, key=lambda event: event.index)]
