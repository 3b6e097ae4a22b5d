"""What computes the attention of a packed row: one entry of `BACKENDS` each, all to the same contract.

forward(query [T, H, D], key and value [T, H / n, D], bounds int32 [places + 1], sizes of the documents, scale) returns
the output [T, H, D] and the logarithm of each softmax's sum, float32 [H, T]; backward takes these back.
Which is the fastest depends on the machine and on the lengths: benchmarks/bench_train_kernels.py times them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

PLAN_STEP = 256
"""cuDNN builds a plan for every length it meets, and keeps it; documents are padded to a multiple of this, so that a
run meets a few dozen lengths and not a thousand."""
FAR = 1e30
"""In place of a sum of logarithms where padding attends: its softmax is 0 everywhere, and so are its gradients."""

_flash_attention_forward = torch.ops.aten._flash_attention_forward
_flash_attention_backward = torch.ops.aten._flash_attention_backward
_scaled_dot_product_cudnn_attention = torch.ops.aten._scaled_dot_product_cudnn_attention
_scaled_dot_product_cudnn_attention_backward = torch.ops.aten._scaled_dot_product_cudnn_attention_backward
"""PyTorch's own operators under its public functions, which cannot be called inside of an operator."""


class Backend(Protocol):
    """See the module. `step`: it builds something for each length that it meets, in such steps; 0: it does not.
    `repeatable`: its gradients are the same bytes each time where PyTorch is told to be deterministic."""

    step: int
    repeatable: bool

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, sizes: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]: ...

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        sums: Tensor,
        bounds: Tensor,
        sizes: Sequence[int],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]: ...


class Varlen:
    """One call of PyTorch's FlashAttention-2 kernels for all documents (what `torch.nn.attention.varlen` calls too).
    CUDA, bf16 or fp16. `repeated`: repeat the key and value heads before instead of letting the kernel share them."""

    step = 0
    repeatable = True  # the operator asks for PyTorch's setting, and then gives each part of a sum a place of its own

    def __init__(self, *, repeated: bool = False) -> None:
        self.repeated = repeated

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, sizes: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]:
        filled, longest = _filled(bounds, sizes)
        query, key, value = (x.contiguous() for x in (query, *self._keys(query, key, value)))
        output, sums, *_ = _flash_attention_forward(
            query, key, value, filled, filled, longest, longest, 0.0, True, False, scale=scale
        )
        return output, sums

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        sums: Tensor,
        bounds: Tensor,
        sizes: Sequence[int],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        filled, longest = _filled(bounds, sizes)
        dense = (x.contiguous() for x in (query, *self._keys(query, key, value)))
        random = torch.zeros(2, dtype=torch.uint64, device=query.device)  # of a dropout that there is not
        of_query, of_key, of_value = _flash_attention_backward(
            gradient.contiguous(), *dense, output, sums, filled, filled, longest, longest, 0.0, True,
            random, torch.empty(0, device=query.device), scale=scale,
        )  # fmt: skip
        return of_query, _summed(of_key, key), _summed(of_value, value)

    def _keys(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        return (_repeated(key, query), _repeated(value, query)) if self.repeated else (key, value)


class Cudnn:
    """cuDNN's attention, document by document, each padded to a multiple of `PLAN_STEP`. CUDA (Hopper and later are
    what it is for), bf16 or fp16. `repeated`: as for `Varlen`."""

    step = PLAN_STEP
    repeatable = False  # PyTorch does not pass its setting on to cuDNN

    def __init__(self, *, repeated: bool = False) -> None:
        self.repeated = repeated

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, sizes: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]:
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        sums = torch.empty(query.shape[1], query.shape[0], dtype=torch.float32, device=query.device)
        for start, end in _spans(sizes):
            parts = (self._padded(x[start:end], query) for x in (query, key, value))
            part, part_sums, *_ = _scaled_dot_product_cudnn_attention(*parts, None, True, 0.0, True, False, scale=scale)
            output[start:end] = part[0].transpose(0, 1)[: end - start]
            sums[:, start:end] = part_sums.view(query.shape[1], -1)[:, : end - start]
        return output, sums

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        sums: Tensor,
        bounds: Tensor,
        sizes: Sequence[int],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)]
        random = torch.zeros((), dtype=torch.int64, device=query.device)  # of a dropout that there is not
        for start, end in _spans(sizes):
            rows = (self._padded(x[start:end], query) for x in (gradient, query, key, value, output))
            spare = -(end - start) % PLAN_STEP
            part_sums = pad(sums[:, start:end], (0, spare), value=FAR)[None, :, :, None].contiguous()
            length = end - start + spare
            parts = _scaled_dot_product_cudnn_attention_backward(
                *rows, part_sums, random, random, None, None, None, length, length, 0.0, True, scale=scale
            )
            for whole, part in zip(found, parts):
                whole[start:end] = _summed(part[0].transpose(0, 1)[: end - start], whole)
        return found[0], found[1], found[2]

    def _padded(self, rows: Tensor, query: Tensor) -> Tensor:
        """[n, heads, D] as cuDNN wants it, [1, heads, n padded, D], in memory by token, head, number."""
        if self.repeated:
            rows = _repeated(rows, query)
        return pad(rows, (0, 0, 0, 0, 0, -rows.shape[0] % PLAN_STEP)).contiguous().transpose(0, 1)[None]


class Plain:
    """The formula as it stands, document by document, in float32 (float64 for float64), on any device and in any type.
    It holds n x n numbers for each query head that shares a key head: for CPUs, tests, and as the others' reference."""

    step = 0
    repeatable = True

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, sizes: Sequence[int], scale: float
    ) -> tuple[Tensor, Tensor]:
        output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        sums = torch.empty(query.shape[1], query.shape[0], dtype=torch.float32, device=query.device)
        for q, k, v, o, s in self._groups(sizes, query, key, value, output, sums.T):
            scores = self._scores(q, k, scale)
            logarithms = scores.logsumexp(-1, keepdim=True)
            o.copy_(((scores - logarithms).exp() @ _wide(v)).transpose(0, 1))
            s.copy_(logarithms.squeeze(-1).T)
        return output, sums

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        sums: Tensor,
        bounds: Tensor,
        sizes: Sequence[int],
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)]
        for q, k, v, g, of_q, of_k, of_v in self._groups(sizes, query, key, value, gradient, *found):
            chances = self._scores(q, k, scale).softmax(-1)  # P
            g = _wide(g)
            of_chances = g @ _wide(v).mT
            of_scores = chances * (of_chances - (chances * of_chances).sum(-1, keepdim=True))
            of_q.copy_((of_scores @ _wide(k) * scale).transpose(0, 1))
            of_k.copy_((of_scores.mT @ _wide(q) * scale).sum(0, keepdim=True).transpose(0, 1))
            of_v.copy_((chances.mT @ g).sum(0, keepdim=True).transpose(0, 1))
        return found[0], found[1], found[2]

    @staticmethod
    def _groups(sizes: Sequence[int], query: Tensor, key: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """For each document and key head: the part of every tensor that belongs to it, still [n, heads, ...]."""
        heads = key.shape[1]
        for start, end in _spans(sizes):
            parts = [x[start:end].unflatten(1, (heads, -1)) for x in (query, key, *others)]
            yield from (tuple(part[:, head] for part in parts) for head in range(heads))

    @staticmethod
    def _scores(query: Tensor, key: Tensor, scale: float) -> Tensor:
        """[heads, n, n], minus infinity where the key stands after the query."""
        scores = _wide(query) @ _wide(key).mT * scale
        after = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        return scores.masked_fill(after, -torch.inf)


BACKENDS: dict[str, Backend] = {
    "varlen": Varlen(),
    "varlen-repeated": Varlen(repeated=True),
    "cudnn": Cudnn(),
    "cudnn-repeated": Cudnn(repeated=True),
    "plain": Plain(),
}
"""Name -> what computes attention."""


def _spans(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First token and the one after the last, of every document that has any."""
    start = 0
    for size in sizes:
        if size:
            yield start, start + size
        start += size


def _filled(bounds: Tensor, sizes: Sequence[int]) -> tuple[Tensor, int]:
    """The bounds without the places that no document needs, and the longest document's length."""
    return bounds[: sum(size > 0 for size in sizes) + 1], max(sizes)


def _repeated(rows: Tensor, query: Tensor) -> Tensor:
    """[n, H / k, D] -> [n, H, D]: each head k times, as grouped heads are shared."""
    times = query.shape[1] // rows.shape[1]
    return rows if times == 1 else rows.repeat_interleave(times, dim=1)


def _summed(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of repeated heads, summed over the copies: [n, H, D] -> [n, heads of `like`, D]."""
    if gradient.shape[1] == like.shape[1]:
        return gradient
    return gradient.unflatten(1, (like.shape[1], -1)).sum(2, dtype=torch.float32).to(like.dtype)


def _wide(rows: Tensor) -> Tensor:
    """[n, heads, D] -> [heads, n, D], in the type that sums are made in."""
    return rows.transpose(0, 1).to(torch.promote_types(rows.dtype, torch.float32))
