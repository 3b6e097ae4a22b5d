"""Weighted cross-entropy of a linear head, chunk by chunk: the logits of a row never exist as a whole.

    loss = sum over tokens t of weights[t] * -log softmax(W hidden[t])[labels[t]]

With weights 1 / (B * T_i) for the T_i loss tokens of sample i of B, that is the mean over samples of their token means;
with 1 / (sum of all T_i), the mean over tokens. Gradients are made in the forward pass, while a chunk's logits are at
hand (as Liger Kernel's fused linear cross-entropy does), so the head's matmul runs three times and not four. Logits
have the type of `hidden`; what is made of them, and the head's gradient, is summed in float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .compiling import compiled
from .memory import HEAD_ROWS, LOGITS_TOKENS


class Loss(NamedTuple):
    """What a row costs."""

    total: Tensor
    """Scalar, float32: the weighted sum, which has a gradient."""
    tokens: Tensor
    """float32 [T], without gradient: each token's own -log p, 0 where its weight is 0."""


def chunked_cross_entropy(
    hidden: Tensor,
    head: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    rows: Tensor | None = None,
    chunk_tokens: int = LOGITS_TOKENS,
) -> Loss:
    """The loss of one row; nothing is divided by anything.

    hidden: [T, d]; head: [V, d], of the same type; labels: int64 [T], labels[t] the token behind t, anything below V
    where the weight is 0; weights: float32 [T]. rows: int64, the places of the weights that are not 0, which alone are
    multiplied; None finds them, which waits for the device. chunk_tokens: rows of logits at a time.
    """
    if rows is None:
        rows = weights.nonzero().squeeze(1)
    total, tokens = _ChunkedCrossEntropy.apply(hidden, head, labels, weights, rows, chunk_tokens)
    return Loss(total, tokens)


_SCALES = ("logits_scaling", "logit_scale", "lm_head_multiplier", "final_logit_softcapping")
"""Settings of models that change logits behind the head: Granite, Cohere, Falcon-H1, Gemma2."""


class LossHead(nn.Linear):
    """A model's output layer that returns the loss in place of logits: same weight, same name, so that what gathers
    the weights of a module before it runs (`fully_shard`) works on it."""

    @classmethod
    def put_on(cls, model: Any) -> LossHead:
        """Make `model.get_output_embeddings()` a `LossHead`, in place: weights that are tied stay tied. Raises
        `ModelError` for a model whose logits are more than hidden states times a matrix."""
        head = model.get_output_embeddings()
        if type(head) is not nn.Linear or head.bias is not None:
            raise ModelError(
                f"{type(model).__name__} has another head than a matrix, which cannot be trained: {head}",
                hint="take a model without a bias there, such as Qwen2.5 or Llama",
            )
        config = getattr(model, "config", None)
        if scales := [name for name in _SCALES if getattr(config, name, None) not in (None, 1)]:
            raise ModelError(
                f"{type(model).__name__} scales its logits ({', '.join(scales)}); the loss here is of unscaled ones",
                hint="take a model that does not, such as Qwen2.5 or Llama",
            )
        head.__class__ = cls
        assert isinstance(head, cls)
        return head

    def forward(self, hidden: Tensor, labels: Tensor, weights: Tensor, rows: Tensor | None = None) -> Loss:
        """`chunked_cross_entropy` of hidden [T, d] or [1, T, d]."""
        return chunked_cross_entropy(hidden.flatten(0, -2), self.weight, labels, weights, rows=rows)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor, rows: Tensor, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        softmax = _compiled_softmax if hidden.is_cuda else _softmax_gradient
        tokens = torch.zeros_like(weights)
        of_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        of_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        for part in rows.split(chunk_tokens) if len(rows) else ():
            inputs = hidden[part]
            of_logits = inputs @ head.T  # the logits, until softmax writes their gradient in their place
            tokens[part] = softmax(of_logits, labels[part], weights[part])
            if of_hidden is not None:
                of_hidden[part] = of_logits @ head
            if of_head is not None:
                _add_product(of_head, of_logits.T, inputs)
            del of_logits  # before the next chunk's are made
        ctx.gradients = (of_hidden, None if of_head is None else of_head.to(head.dtype))
        ctx.mark_non_differentiable(tokens)
        return tokens @ weights, tokens

    @staticmethod
    def backward(ctx: Any, factor: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the gradients of a loss are made once"
        return (*(None if x is None else x.mul_(factor) for x in gradients), None, None, None, None)


def _softmax_gradient(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """-log p of the labels (float32 [n]); the logits [n, V] become the gradient of the weighted sum by themselves."""
    wide = logits.float()
    sums = wide.logsumexp(-1, keepdim=True)
    losses = (sums - wide.gather(-1, labels[:, None])).squeeze(-1)
    places = torch.arange(logits.shape[-1], device=logits.device)
    gradient = ((wide - sums).exp() - (places == labels[:, None]).float()) * weights[:, None]
    logits.copy_(gradient)
    return losses


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in float32 from the first to the last."""
    if not left.is_cuda:
        total.addmm_(left.float(), right.float())
        return
    for part, rows in zip(total.split(HEAD_ROWS), left.split(HEAD_ROWS)):  # the product is never held as a whole
        part += rows @ right if rows.dtype is torch.float32 else torch.mm(rows, right, out_dtype=torch.float32)


_COMPILED: list[Any] = []


def _compiled_softmax(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """`_softmax_gradient` in two passes over the logits instead of eight. V is compiled in, so that no logit's place is
    divided by a number of 64 bits."""
    if not _COMPILED:
        _COMPILED.append(compiled(_softmax_gradient))
    torch._dynamo.mark_static(logits, 1)
    losses: Tensor = _COMPILED[0](logits, labels, weights)
    return losses
