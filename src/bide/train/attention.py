"""Causal attention over one packed row of documents, where no document sees another.

A row holds several samples one behind the other. Their bounds go through a transformers model as two keyword arguments
(`Documents.arguments`), down to one custom operator, `bide::documents_attention`, which torch.compile keeps whole and
activation checkpointing can save by name. What computes it is an entry of `BACKENDS`.

Attention is O = softmax(scale * Q K^T + M) V with M = 0 where key and query stand in the same document and the key not
after the query, else minus infinity; query heads share key and value heads in groups of equal size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface

from ..errors import UsageError, unknown_name
from .attention_backends import BACKENDS

DEFAULT_BACKEND = {"cpu": "plain", "cuda": "cudnn"}
"""By type of device."""
REPEATABLE_BACKEND = {"cpu": "plain", "cuda": "varlen"}
"""The same for runs that compute the same bytes twice."""
SLOTS = 32
"""The table of bounds has a multiple of this many places, so that compiled code meets few shapes."""


@dataclass(frozen=True)
class Documents:
    """Where the documents of a row of T tokens lie, for the model and for the loss.

    Places that no document needs are documents of length 0 at the end.
    """

    lengths: tuple[int, ...]
    """Of the documents, in order; where the row is padded, the padding is the last one."""
    bounds: Tensor
    """int32 [places + 1] on the device: document i is the tokens bounds[i] to bounds[i + 1]."""
    sizes: Tensor
    """int64 [places] on the host: the lengths once more, readable without waiting for the device."""
    positions: Tensor
    """int64 [1, T] on the device: each token's place in its document."""

    @classmethod
    def make(cls, lengths: Sequence[int], *, row: int | None = None, device: torch.device | str = "cpu") -> Documents:
        """For documents of these `lengths`, padded to a row of `row` tokens (None: not padded).

        Raises `UsageError` for an empty document or a row that is too short.
        """
        total = sum(lengths)
        if not lengths or min(lengths) < 1:
            raise UsageError(f"a packed row wants documents of at least one token, not lengths {list(lengths)}")
        if row is not None and row < total:
            raise UsageError(f"documents of {total} tokens do not fit into a row of {row}")
        filled = (*lengths, row - total) if row is not None and row > total else tuple(lengths)
        places = -(-len(filled) // SLOTS) * SLOTS
        sizes = torch.tensor([*filled, *[0] * (places - len(filled))], dtype=torch.int64)
        bounds = torch.zeros(places + 1, dtype=torch.int32)
        bounds[1:] = sizes.cumsum(0)
        positions = torch.cat([torch.arange(length) for length in filled])[None]
        return cls(filled, _moved(bounds, device), sizes, _moved(positions, device))

    @property
    def row(self) -> int:
        """Tokens of the row, padding included."""
        return sum(self.lengths)

    def arguments(self) -> dict[str, Tensor]:
        """What the model is to be called with beside `input_ids` [1, T] and `use_cache=False`."""
        return {"position_ids": self.positions, "document_bounds": self.bounds, "document_sizes": self.sizes}


def choose_backend(told: str | None, *, device: torch.device | str, deterministic: bool) -> str:
    """A key of `BACKENDS`: the one that was told, else the device's. Raises `UnknownNameError`, and `UsageError` for
    one that the device has not, or whose gradients vary where they must not."""
    defaults = REPEATABLE_BACKEND if deterministic else DEFAULT_BACKEND
    chosen = told or defaults[torch.device(device).type]
    if chosen not in BACKENDS:
        raise unknown_name("attention backend", chosen, BACKENDS)
    if deterministic and not BACKENDS[chosen].repeatable:
        kept = ", ".join(name for name, backend in BACKENDS.items() if backend.repeatable)
        raise UsageError(
            f"attention backend {chosen!r} adds gradients in an order that varies: it does not go with --deterministic",
            hint=f"one of {kept}",
        )
    if torch.device(device).type == "cpu" and chosen != DEFAULT_BACKEND["cpu"]:
        raise UsageError(
            f"attention backend {chosen!r} wants a GPU, and this runs on a CPU", hint=f"{DEFAULT_BACKEND['cpu']!r}"
        )
    return chosen


def register(backend: str | None = None, *, device: torch.device | str = "cpu") -> str:
    """The name to give transformers as `attn_implementation`, so that its models attend by `backend`.

    backend: a key of `BACKENDS`; None takes that of `DEFAULT_BACKEND` for `device`. Raises `UnknownNameError`.
    """
    chosen = choose_backend(backend, device=device, deterministic=False)
    name = f"bide_{chosen.replace('-', '_')}"
    AttentionInterface.register(name, _FORWARDS[chosen])
    AttentionMaskInterface.register(name, _no_mask)
    return name


def prepare(
    backend: str, longest: int, *, heads: int, key_heads: int, width: int, kind: torch.dtype, device: torch.device | str
) -> int:
    """Let `backend` build what it builds for every length up to `longest`, forward, backward and recomputed, so that no
    step waits for it. Returns the number of lengths. longest: tokens of the longest document, or of the padding."""
    step = BACKENDS[backend].step
    lengths = [*range(step, longest + step, step)] if step else []
    for length in lengths:
        documents = Documents.make([length], device=device)
        rows = [
            torch.ones(length, n, width, dtype=kind, device=device, requires_grad=True)
            for n in (heads, key_heads, key_heads)
        ]

        def run(query: Tensor, key: Tensor, value: Tensor, documents: Documents = documents) -> Tensor:
            return attend(query, key, value, documents.bounds, documents.sizes, width**-0.5, backend)

        # cuDNN's plans belong to a thread, and autograd recomputes in a thread of its own: hence the checkpoint.
        checkpoint(run, *rows, use_reentrant=False).sum().backward()
    return len(lengths)


def attend(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, sizes: Tensor, scale: float, backend: str
) -> Tensor:
    """Attention of a row: query [T, H, D], key and value [T, H / n, D] -> [T, H, D]; see the module for the rest."""
    return documents_attention(query, key, value, bounds, sizes, scale, backend)[0]


@torch.library.custom_op("bide::documents_attention", mutates_args=())
def documents_attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, sizes: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """Output [T, H, D] and the logarithm of each softmax's sum, float32 [H, T]."""
    return BACKENDS[backend].forward(query, key, value, bounds, sizes.tolist(), scale)


@documents_attention.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, sizes: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    tokens, heads, _ = query.shape
    sums = query.new_empty((heads, tokens), dtype=torch.float32)
    return torch.empty(query.shape, dtype=query.dtype, device=query.device), sums


@torch.library.custom_op("bide::documents_attention_backward", mutates_args=())
def documents_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sums: Tensor,
    bounds: Tensor,
    sizes: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each in its own shape."""
    return BACKENDS[backend].backward(gradient, query, key, value, output, sums, bounds, sizes.tolist(), scale)


@documents_attention_backward.register_fake
def _(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sums: Tensor,
    bounds: Tensor,
    sizes: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value))
    return first, second, third


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, bounds, sizes, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(query, key, value, *output, bounds, sizes)


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = documents_attention_backward(gradient, *ctx.saved_tensors, ctx.scale, ctx.backend)
    return (*gradients, None, None, None, None)


documents_attention.register_autograd(_backward, setup_context=_keep)


def _forward_by(backend: str) -> Any:
    """A transformers attention function, bound to `backend`."""

    def forward(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **settings: Any
    ) -> tuple[Tensor, None]:
        bounds, sizes = settings.get("document_bounds"), settings.get("document_sizes")
        if bounds is None or sizes is None:
            raise UsageError(
                "the model was called without the bounds of its documents", hint="call it with **documents.arguments()"
            )
        if attention_mask is not None or query.shape[0] != 1:
            raise UsageError("packed attention takes one row of documents and no mask")
        if settings.get("sliding_window") is not None or settings.get("softcap") is not None:
            raise UsageError("packed attention has no sliding window and no soft cap, which this model asks for")
        if settings.get("dropout"):
            raise UsageError(f"packed attention has no dropout, the model asks for {settings['dropout']}")
        scale = settings.get("scaling")
        q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
        output = attend(q, k, v, bounds, sizes, query.shape[-1] ** -0.5 if scale is None else scale, backend)
        return output.unsqueeze(0), None

    return forward


_FORWARDS = {name: _forward_by(name) for name in BACKENDS}


def _no_mask(*_: Any, **__: Any) -> None:
    """The bounds say it all."""


def _moved(host: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cuda":
        return host.pin_memory().to(device, non_blocking=True)
    return host.to(device)
