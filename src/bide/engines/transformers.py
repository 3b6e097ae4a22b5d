"""Any Hugging Face causal model through transformers: token by token, batched, with its cache kept.

Each row of the batch is one turn. In every step each row evaluates exactly one token, a forced or a
sampled one; a turn that ends gives its place to the next request at once. Forced tokens go behind
the kept cache, so nothing is evaluated twice.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from ..budget_forcing import State
from ..errors import CapabilityError, EngineError, ModelError, UsageError
from ..models import CATALOGUE, resolve
from ..types import Sampling
from .base import Capabilities, Event, Request, check_capabilities
from .hf_tokenizer import HuggingFaceTokenizer
from .transformers_cache import BatchCache, SingleCache, choose_cache
from .turn import Turn, make_turns


class TransformersEngine:
    """`model`: a directory, a .gguf file, a repository on the Hugging Face hub ("org/name", or
    "hf:org/name"), or a name from `bide.models`.

    `device`: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1". `dtype`: "auto" (the
    model's own on a GPU, float32 on a CPU), or a name such as "bfloat16". `context`: the window in tokens, None for the
    model's own. `parallel`: rows that run together. `attn_implementation`: as transformers
    takes it ("eager", "sdpa", "flash_attention_2").
    """

    name = "transformers"

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        context: int | None = None,
        parallel: int = 8,
        attn_implementation: str | None = None,
    ) -> None:
        if not model:
            raise UsageError("the engine 'transformers' needs a model", hint="name a directory or hf:org/name")
        for option, value in (("parallel", parallel), ("context", context)):
            if value is not None and value < 1:
                raise UsageError(f"{option} must be at least 1, not {value}")
        self.model = os.fspath(model)
        self._device = _find_device(device)
        self._model, tokenizer = _load(self.model, self._device, dtype, attn_implementation)
        self.tokenizer = HuggingFaceTokenizer(tokenizer, _eos_ids(self._model, tokenizer))
        self._window = _find_window(self._model.config, context)
        cache_class = choose_cache(self._model)
        if cache_class is None:
            raise CapabilityError(
                f"the engine 'transformers' cannot keep the cache of a {self._model.config.model_type} model",
                hint="use --engine llamacpp",
            )
        self._cache_class = cache_class
        batched = cache_class is BatchCache
        self.capabilities = Capabilities(
            token_ids=True,
            per_token_control=True,
            masks_tokens=True,
            keeps_cache=batched,
            streaming=True,
            parallel=parallel if batched else 1,
            notes=() if batched else (_SINGLE_NOTE,),
        )

    def generate(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Work on `requests`, up to `parallel` of them at a time."""
        if self._model is None:
            raise EngineError("the engine is closed")
        check_capabilities(self.name, self.capabilities, requests)
        turns = make_turns(requests, self.tokenizer, engine=self.name, model=self.model, window=self._window)
        waiting = deque(turns)
        cache = self._cache_class(self._model)
        rows: list[_Row] = []  # as in the cache
        try:
            while waiting or rows:
                while waiting and len(rows) < self.capabilities.parallel:
                    turn = waiting.popleft()
                    turn.heed_control()
                    if not turn.done:
                        turn.forcer.drain_forced()  # a budget of 0 closes thinking at once
                    if turn.done:
                        yield from turn.finish()
                    else:
                        rows.append(_Row(turn, cache.add(turn.context)))
                self._choose(rows, cache)
                for row in rows:
                    yield from row.turn.finish() if row.turn.done else row.turn.events()
                ended = [i for i, row in enumerate(rows) if row.turn.done]
                if ended:
                    cache.remove(ended)
                    rows = [row for row in rows if not row.turn.done]
                    continue  # the free places first
                for row, logits in zip(rows, cache.step([row.due.popleft() for row in rows])):
                    row.logits = logits
        finally:
            rows.clear()
            cache.remove(range(len(cache.ids)))

    def close(self) -> None:
        """Free the model."""
        if self._model is not None:
            self._model = None
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def _choose(self, rows: list[_Row], cache: BatchCache | SingleCache) -> None:
        """Give each row a token to evaluate, forced or sampled, or end its turn."""
        for row in rows:
            row.turn.heed_control()
        asking = list(enumerate(rows))
        while asking:
            sampling = []
            for i, row in asking:
                if row.due or row.turn.done:
                    continue
                if self._window is not None and len(cache.ids[i]) >= self._window:
                    row.turn.forcer.finish("length")  # mode="s1" keeps more ids in view than it puts out
                elif (token := row.turn.forcer.next_forced()) is not None:
                    row.due.append(token)
                else:
                    sampling.append((i, row))
            if sampling:
                for (i, row), token in zip(sampling, _sample([row for _, row in sampling])):
                    row.take(token, i, cache)
            asking = sampling  # a refused end leaves its row without a token


class _Row:
    """A turn that runs."""

    def __init__(self, turn: Turn, logits: Any) -> None:
        self.turn = turn
        self.logits = logits
        """(V,), after the last evaluated id."""
        self.due: deque[int] = deque()
        """Ids of the context that are yet to be evaluated."""
        self.generator = torch.Generator().manual_seed(turn.request.sampling.seed % (1 << 63))

    def take(self, token: int, index: int, cache: BatchCache | SingleCache) -> None:
        """Feed a sampled id, and bring row `index` of `cache` to the context that then holds."""
        forcer = self.turn.forcer
        evaluated = cache.ids[index]
        forcer.feed(token)
        if forcer.done:
            return
        if len(self.turn.prompt_ids) + forcer.context_length == len(evaluated) + 1:
            self.due.append(token)
            return
        context = self.turn.context
        assert context == evaluated[: len(context)], "a forcer takes the latest ids back, or none"
        kept = len(context)
        if kept < len(evaluated):
            if forcer.state is not State.FORCING:
                kept -= 1  # the next sample needs the logits of an id whose logits are gone
                self.turn.recomputed += 1
            self.turn.recomputed += cache.drop(index, len(evaluated) - kept)
        self.due.extend(context[kept:])


# Sampling.


def _sample(rows: Sequence[_Row]) -> list[int]:
    """One id for each row. One transfer from the device for all."""
    with torch.inference_mode():
        logits = torch.stack([row.logits for row in rows]).float()  # (rows, V)
        for i, row in enumerate(rows):
            if banned := row.turn.forcer.banned_ids():
                logits[i, sorted(banned)] = -torch.inf
        peaks, ids = logits.max(dim=-1)  # (rows,)
        for i, row in enumerate(rows):
            sampling = row.turn.request.sampling
            if sampling.temperature > 0:
                uniform = torch.rand((), dtype=torch.float64, generator=row.generator).item()
                ids[i] = draw(logits[i], sampling, uniform)
        tokens, broken = torch.stack([ids, peaks.isnan()]).tolist()
    if any(broken):
        raise EngineError("the model gives logits that are not numbers", hint="try dtype float32 or bfloat16")
    return [int(token) for token in tokens]


def draw(logits: Any, sampling: Sampling, uniform: float) -> Any:
    """The id at the point `uniform` (0 <= u < 1) of the distribution that `sampling` makes of
    `logits` (V,) float32: temperature, then top_k, then top_p. Returns a tensor ().

    One number decides, drawn from the request's own generator: so neither the device nor the
    other rows have a part in it.
    """
    chances = torch.softmax((logits - logits.max()) / sampling.temperature, dim=-1)
    order = None
    if sampling.top_k > 0 or sampling.top_p < 1:
        chances, order = chances.sort(descending=True, stable=True)
        if sampling.top_k > 0:
            chances = chances[: sampling.top_k]
        before = chances.double().cumsum(-1) - chances
        inside = before < sampling.top_p * chances.double().sum()
        inside[0] = True
        chances = chances * inside
    reached = chances.double().cumsum(-1)  # in float32, 150,000 terms would blur the rare ids
    place = torch.searchsorted(reached, (uniform * reached[-1]).reshape(1), right=True)[0].clamp(max=len(reached) - 1)
    return place if order is None else order[place]


# Loading.


def _load(model: str, device: Any, dtype: str, attn_implementation: str | None) -> tuple[Any, Any]:
    """The model, on its device, and its tokenizer. Raises `ModelError`."""
    options: dict[str, Any] = {"dtype": _find_dtype(dtype)}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    if device.type != "cpu":
        options["device_map"] = {"": device}  # straight to its memory
    source, file = _find(model)
    names: dict[str, str] = {}
    if file:
        names["gguf_file"] = file
        if dtype == "auto":
            options["dtype"] = torch.bfloat16  # the file has no dtype of its own
        if hasattr(transformers, "GgufConfig"):  # older versions always dequantise
            options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if dtype == "auto" and device.type == "cpu":
        options["dtype"] = torch.float32  # without special instructions, 16 bits are 10 times slower or worse
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, **names)
        loaded = transformers.AutoModelForCausalLM.from_pretrained(source, **names, **options).eval()
    except Exception as error:  # whatever is wrong with a file, some library says it in its own way
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(f"transformers cannot load {model!r}: {lines[0]}") from error
    return loaded, tokenizer


def _find(model: str) -> tuple[str, str | None]:
    """(directory or hub name, .gguf file in it). Raises `ModelError` for a path where no model is."""
    if model.startswith("hf:"):
        return model.removeprefix("hf:"), None
    path = resolve(model) if model in CATALOGUE else Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{model!r} is a file, but no .gguf file", hint="name the directory of the model")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise ModelError(f"{model!r} is not a GGUF file, whatever its name says")
        return str(path.parent), path.name
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"the directory {model!r} holds no transformers model: there is no config.json")
        return str(path), None
    if path.suffix == ".gguf" or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelError(f"there is no model at {model!r}", hint="a model on the hub is named org/name or hf:org/name")
    return model, None


def _find_device(name: str) -> Any:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise UsageError(f"device must be 'auto', 'cpu', 'cuda' or 'cuda:N', not {name!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no device {name!r}: torch sees {torch.cuda.device_count()} GPUs")
    return device


def _find_dtype(name: str) -> Any:
    dtype = "auto" if name == "auto" else getattr(torch, name, None)
    if dtype != "auto" and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"dtype must be 'auto', 'float32', 'bfloat16' or 'float16', not {name!r}")
    return dtype


def _find_window(config: Any, context: int | None) -> int | None:
    window = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if context is not None and window is not None and context > window:
        raise UsageError(f"context is {context} tokens, the model's own is {window}")
    return window if context is None else context


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ids that end a turn, as the model's generation settings and its tokenizer have them."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = {*(named if isinstance(named, list | tuple) else [named]), tokenizer.eos_token_id}
    return frozenset(int(i) for i in ids if i is not None)


_SINGLE_NOTE = (
    "this model's layers are not all plain attention: one request at a time, "
    "and a dropped end marker of several tokens is paid with a new prefill"
)
