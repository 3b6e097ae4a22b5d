"""The evaluated ids of several rows, and their keys and values: what an engine need not compute again.

Knows models and tensors; no budgets, no requests, no sampling.

Shapes: B rows, H heads, L columns (the longest row), D head size, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_PLAIN_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's: it prepares anew for every shape, and here the shape grows with every token."""


def choose_cache(model: Any) -> type[BatchCache] | type[SingleCache] | None:
    """What keeps the rows of `model`.

    `BatchCache` where all layers are attention, full or windowed, and positions can be given.
    `SingleCache` for the rest: recurrent, indexed, shared layers. None: the model keeps nothing.
    """
    if not _takes(model, "past_key_values") or not _takes(model, "use_cache"):
        return None
    layers = DynamicCache(config=model.config).layers
    batch = _takes(model, "position_ids") and all(type(layer) in _PLAIN_LAYERS for layer in layers)
    return BatchCache if batch else SingleCache


class BatchCache:
    """Rows in one tensor (B, H, L, D) per layer, each row flush right: row b fills the last
    `len(ids[b])` columns, and what is left of them is masked.

    No row has a hole, so a model may tell distances by columns. Every layer keeps all columns,
    windowed ones too (the model masks them): tokens that have left a window come back when the
    tokens after them are dropped.
    """

    def __init__(self, model: Any) -> None:
        self.ids: list[list[int]] = []
        """What has been evaluated, by row."""
        self._model = model
        self._cache = DynamicCache()  # without a config: no layer forgets

    def add(self, ids: Sequence[int]) -> Any:
        """Evaluate `ids` (at least one) as a new, last row. Returns the logits (V,) after them."""
        alone = DynamicCache()
        logits = _forward(self._model, [ids], alone).logits[:, -1]
        self.ids.append(list(ids))
        if len(self.ids) == 1:
            self._cache = alone
            return logits[0]
        columns = max(map(len, self.ids))
        for layer, new in zip(self._cache.layers, alone.layers):
            if layer.is_initialized:
                layer.keys = torch.cat([_flush_right(layer.keys, columns), _flush_right(new.keys, columns)])
                layer.values = torch.cat([_flush_right(layer.values, columns), _flush_right(new.values, columns)])
        return logits[0]

    def step(self, tokens: Sequence[int]) -> Any:
        """Evaluate one token of each row. Returns the logits (B, V) after them."""
        lengths = [len(ids) for ids in self.ids]
        columns = max(lengths)
        device = self._model.device
        positions = torch.tensor(lengths, device=device)[:, None]  # (B, 1)
        mask = None
        if min(lengths) < columns:
            mask = torch.arange(columns + 1, device=device) >= columns - positions  # (B, L + 1)
        column = [[token] for token in tokens]
        output = _forward(self._model, column, self._cache, attention_mask=mask, position_ids=positions)
        for ids, token in zip(self.ids, tokens):
            ids.append(token)
        return output.logits[:, -1]

    def drop(self, row: int, count: int) -> int:
        """Forget the last `count` ids of a row. Returns how many of the others must be evaluated
        again: none."""
        length = len(self.ids[row])
        with torch.inference_mode():
            for layer in self._cache.layers:
                for tensor in (layer.keys, layer.values) if layer.is_initialized else ():
                    end = tensor.shape[-2]
                    tensor[row, :, end - length + count :] = tensor[row, :, end - length : end - count].clone()
        del self.ids[row][length - count :]
        self._trim()
        return 0

    def remove(self, rows: Sequence[int]) -> None:
        """Forget whole rows. The others move up."""
        kept = [row for row in range(len(self.ids)) if row not in rows]
        self.ids = [self.ids[row] for row in kept]
        if not kept:
            self._cache = DynamicCache()
            return
        index = torch.tensor(kept, device=self._model.device)
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[index], layer.values[index]
        self._trim()

    def _trim(self) -> None:
        columns = max(map(len, self.ids))
        for layer in self._cache.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[..., -columns:, :], layer.values[..., -columns:, :]


class SingleCache:
    """One row, in whatever cache the model makes for itself.

    Such a cache goes on but not back: after a drop, the row is evaluated again from the start.
    """

    def __init__(self, model: Any) -> None:
        self.ids: list[list[int]] = []
        self._model = model
        self._cache: Any = None

    def add(self, ids: Sequence[int]) -> Any:
        """As `BatchCache.add`; there can be no second row."""
        assert not self.ids
        self.ids.append(list(ids))
        return self._go_on(ids)[0]

    def step(self, tokens: Sequence[int]) -> Any:
        """As `BatchCache.step`."""
        (row,) = self.ids
        row += tokens
        return self._go_on(row if self._cache is None else tokens)

    def drop(self, row: int, count: int) -> int:
        """As `BatchCache.drop`, but all that is left must be evaluated again."""
        del self.ids[row][len(self.ids[row]) - count :]
        self._cache = None
        return len(self.ids[row])

    def remove(self, rows: Sequence[int]) -> None:
        """As `BatchCache.remove`."""
        if rows:
            self.ids.clear()
            self._cache = None

    def _go_on(self, ids: Sequence[int]) -> Any:
        output = _forward(self._model, [ids], self._cache)
        self._cache = output.past_key_values
        return output.logits[:, -1]


def _forward(model: Any, ids: Sequence[Sequence[int]], cache: Any, **inputs: Any) -> Any:
    """Evaluate `ids` (B, n) behind what `cache` holds. Logits, if the model can save the rest, only
    of the last id of each row."""
    if _takes(model, "logits_to_keep"):
        inputs["logits_to_keep"] = 1
    with torch.inference_mode(), sdpa_kernel(_KERNELS):
        tensor = torch.tensor(ids, device=model.device)
        return model(input_ids=tensor, past_key_values=cache, use_cache=True, **inputs)


def _takes(model: Any, argument: str) -> bool:
    return argument in inspect.signature(model.forward).parameters


def _flush_right(tensor: Any, columns: int) -> Any:
    """(B, H, l, D) -> (B, H, columns, D), zeros at the left."""
    return pad(tensor, (0, 0, columns - tensor.shape[-2], 0))
