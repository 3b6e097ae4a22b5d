"""A server that speaks the OpenAI protocol: what it is, and how it fails.

`Upstream` posts, streams and turns every failure into one line. `identify` asks a server what it
is and what it takes. Nothing here knows budgets or turns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from ..errors import CapabilityError, ContextOverflowError, ModelError, UpstreamError, UsageError

Json = dict[str, Any]
Kind = Literal["vllm", "sglang", "llama-server", "other"]

_TRIES = 4
_LONGEST_PAUSE = 30.0
"""Most seconds between two tries, whatever Retry-After says."""
_LONGEST_MESSAGE = 200
"""Most characters of an upstream's own message that are shown."""


class Upstream:
    """One server. `timeout`: seconds between two signs of life. Raises `UsageError` for a URL or
    key that cannot be used; its methods raise `UpstreamError` and `ContextOverflowError`."""

    def __init__(self, url: str, api_key: str | None, timeout: float) -> None:
        try:
            parsed = httpx.URL(url.rstrip("/").removesuffix("/v1"))
        except (httpx.InvalidURL, TypeError) as error:
            raise UsageError(f"upstream {url!r} is no URL") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(f"upstream {url!r} is no URL", hint="write it like http://127.0.0.1:8000")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise UsageError("the API key holds characters that no HTTP header can carry")
        if not timeout > 0:
            raise UsageError(f"timeout must be more than 0 seconds, not {timeout}")
        self.name = f"{parsed.scheme}://{parsed.netloc.decode()}"  # without user and password
        self._key = api_key
        self._timeout = timeout
        # No redirects, no proxies, no netrc: the key goes to the upstream and nowhere else.
        self._http = httpx.Client(
            base_url=parsed,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, 10.0)),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    def close(self) -> None:
        """Close all connections. May be called twice."""
        self._http.close()

    def get(self, path: str, *, required: bool = False) -> Json | None:
        """The JSON object at `path`; None where this server has no such thing and it is not `required`."""
        return self._ask("GET", path, None, optional=not required)

    def post(self, path: str, body: Json) -> Json:
        """The answer to `body`."""
        answer = self._ask("POST", path, body, optional=False)
        assert answer is not None
        return answer

    def try_post(self, path: str, body: Json) -> Json | None:
        """As `post`; None where this server refuses it."""
        return self._ask("POST", path, body, optional=True)

    @contextmanager
    def stream(self, path: str, body: Json) -> Iterator[Iterator[Json]]:
        """The objects of the answer to `body` as they come. Leaving the block early closes the
        connection, which makes the server stop computing."""
        try:
            for attempt in range(1, _TRIES + 1):
                with self._http.stream("POST", path, json=body) as response:
                    pause = self._pause(response, attempt)
                    if pause is None:
                        if not response.is_success:
                            response.read()
                        self._check(response)
                        yield self._events(response)
                        return
                time.sleep(pause)
        except httpx.HTTPError as error:
            raise self._broken(error) from error

    def _ask(self, method: str, path: str, body: Json | None, optional: bool) -> Json | None:
        try:
            for attempt in range(1, _TRIES + 1):
                response = self._http.request(method, path, json=body)
                pause = self._pause(response, attempt)
                if pause is None:
                    break
                time.sleep(pause)
        except httpx.HTTPError as error:
            raise self._broken(error) from error
        if optional and (not response.is_success) and response.status_code not in (401, 403, 429, 503):
            return None
        self._check(response)
        try:
            answer = response.json()
        except ValueError as error:
            if optional:
                return None
            raise self._not_json(response) from error
        if isinstance(answer, dict):
            return answer
        if optional:
            return None
        raise self._not_json(response)

    def _pause(self, response: httpx.Response, attempt: int) -> float | None:
        """Seconds to wait before the next try; None: this answer stands."""
        if response.status_code not in (429, 503) or attempt == _TRIES:
            return None
        try:
            seconds = float(response.headers.get("retry-after", ""))
        except ValueError:  # none, or a date
            seconds = 0.5 * 2**attempt
        return min(max(seconds, 0.0), _LONGEST_PAUSE)

    def _events(self, response: httpx.Response) -> Iterator[Json]:
        """Server-sent events. Lines are split at "\\n" only: a JSON text may hold U+2028 and its
        like, at which str.splitlines would cut it."""
        if "text/event-stream" not in response.headers.get("content-type", ""):
            response.read()
            yield self._object(response.content, response)
            return
        rest = b""
        for block in response.iter_bytes():
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if line.startswith((b"data:", b"error:")):
                    data = line.partition(b":")[2].strip()
                    if data == b"[DONE]":
                        return
                    yield self._object(data, response)

    def _object(self, data: bytes, response: httpx.Response) -> Json:
        try:
            value = json.loads(data)
        except ValueError as error:
            raise self._not_json(response) from error
        if not isinstance(value, dict):
            raise self._not_json(response)
        if value.get("error"):
            raise UpstreamError(f"{self.name} failed while it generated: {self._message(data)}")
        return value

    def _check(self, response: httpx.Response) -> None:
        status = response.status_code
        if response.is_success:
            return
        message = self._message(response.content)
        if status in (401, 403):
            hint = "the API key is wrong" if self._key else "give the upstream's key"
            raise UpstreamError(f"{self.name} refuses access ({status}): {message}", hint=hint)
        words = message.lower()
        if status in (400, 413, 422) and "context" in words and ("length" in words or "size" in words):
            raise ContextOverflowError(f"{self.name}: {message}", hint="ask for fewer tokens")
        raise UpstreamError(f"{self.name} answered {status}: {message}")

    def _message(self, content: bytes) -> str:
        """The upstream's own words on one short line; the key, should it be among them, is not shown."""
        try:
            value = json.loads(content)
        except ValueError:
            words = "no JSON" if b"<" in content[:200] else content.decode(errors="replace")
        else:
            error = value.get("error", value) if isinstance(value, dict) else value
            if isinstance(error, dict):
                error = error.get("message") or error.get("detail") or error
            words = error if isinstance(error, str) else json.dumps(error)
        if self._key:
            words = words.replace(self._key, "***")
        words = " ".join(words.split()) or "no message"
        return words if len(words) <= _LONGEST_MESSAGE else words[: _LONGEST_MESSAGE - 3] + "..."

    def _not_json(self, response: httpx.Response) -> UpstreamError:
        kind = response.headers.get("content-type", "an unnamed type").partition(";")[0]
        return UpstreamError(f"{self.name} answered with {kind}, not with JSON", hint="is this the URL of the API?")

    def _broken(self, error: httpx.HTTPError) -> UpstreamError:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return UpstreamError(f"no server answers at {self.name}", hint="is it running, and is --upstream right?")
        if isinstance(error, httpx.TimeoutException):
            return UpstreamError(f"{self.name} was silent for {self._timeout:g} seconds", hint="raise the timeout")
        return UpstreamError(f"the connection to {self.name} broke: {error or type(error).__name__}")


@dataclass(frozen=True, slots=True)
class Served:
    """What a server turned out to be."""

    kind: Kind
    model: str
    window: int | None
    """Context length in tokens. None: not reported."""
    returns_ids: bool
    """It takes prompts as token ids and gives the ids that it sampled."""
    chat_template: str | None
    """None: not shown."""
    eos: str
    """Text of the token that ends a turn. "": not shown."""


def identify(upstream: Upstream, model: str | None) -> Served:
    """Ask the server what it is. Raises `CapabilityError` for Ollama, `ModelError` where the model
    must be named or is unknown, `UpstreamError` if there is no such server."""
    if "version" in (upstream.get("/api/version") or {}):
        raise CapabilityError(
            f"{upstream.name} is Ollama, which wraps each text in the chat template again, so none can be continued",
            hint="use --engine llamacpp with the same GGUF",
        )
    listed = (upstream.get("/v1/models", required=model is None) or {}).get("data")
    entries = [e for e in listed if isinstance(e, dict) and "id" in e] if isinstance(listed, list) else []
    names = [str(entry["id"]) for entry in entries]
    if model is None and len(names) != 1:
        raise ModelError(
            f"{upstream.name} lists {len(names)} models, so one must be named",
            hint=f"--model with one of: {', '.join(names)}" if names else "give --model",
        )
    name = names[0] if model is None else model
    entry = next((entry for entry in entries if entry["id"] == name), {})
    window = entry.get("max_model_len")
    kind: Kind = "other"
    props = upstream.get("/props") or {}
    if isinstance(settings := props.get("default_generation_settings"), dict):
        kind, window = "llama-server", settings.get("n_ctx")
    elif upstream.get("/model_info") or upstream.get("/get_model_info"):
        kind = "sglang"
    elif "version" in (upstream.get("/version") or {}):
        kind = "vllm"
    if kind in ("vllm", "sglang") and names and name not in names:
        raise ModelError(f"{upstream.name} has no model {name!r}", hint=f"it has: {', '.join(names)}")
    returns_ids = kind != "other" and _returns_ids(upstream, kind, name)
    shown = (props or upstream.get("/tokenizer_info") or {}) if returns_ids else {}
    template, eos = shown.get("chat_template"), shown.get("eos_token")
    return Served(
        kind=kind,
        model=name,
        window=window if isinstance(window, int) else None,
        returns_ids=returns_ids,
        chat_template=template if isinstance(template, str) and template else None,
        eos=eos if isinstance(eos, str) else "",
    )


def ask_for_ids(kind: Kind) -> Json:
    """What makes a server of this kind return the ids that it sampled. llama-server has no option
    for it on this route, but its log probabilities name the ids; streamed, they lack the ids of
    incomplete characters, so its answers are taken whole."""
    if kind == "llama-server":
        return {"logprobs": 1, "stream": False}
    return {"return_token_ids": True}


def sampled_ids(choice: Json) -> list[int]:
    """The ids that `choice` brings. [] if it brings none."""
    ids = choice.get("token_ids")
    if not isinstance(ids, list):
        content = (choice.get("logprobs") or {}).get("content") or []
        ids = [token.get("id") for token in content if isinstance(token, dict)]
    return ids if all(isinstance(token, int) for token in ids) else []


def _returns_ids(upstream: Upstream, kind: Kind, model: str) -> bool:
    question = {"model": model, "content": "a", "prompt": "a", "add_special_tokens": False}
    prompt = (upstream.try_post("/tokenize", question) or {}).get("tokens")
    if not prompt or upstream.try_post("/detokenize", {"model": model, "tokens": prompt}) is None:
        return False
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0.0, **ask_for_ids(kind)}
    choices = (upstream.try_post("/v1/completions", body) or {}).get("choices")
    return bool(choices and sampled_ids(choices[0]))
