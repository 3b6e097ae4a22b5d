"""What `transformers_batching` gives to transformers' continuous batching: a logits processor, and a manager.

Nothing here is documented by transformers but `init_continuous_batching`, its configuration and the
class `ContinuousBatchingLogitsProcessor`; so all that may change with a version stands in this file.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import transformers

from ..errors import ModelError, UsageError

try:
    from transformers.generation.continuous_batching import cb_logits_processors as parts
    from transformers.generation.continuous_batching import model_runner
except ImportError:  # an older version: `check_version` refuses it
    parts = model_runner = None

Step = Callable[[Sequence[Any], torch.Tensor], torch.Tensor]
"""Takes transformers' request states, and a row of logits for each; gives what takes their place."""


class Processor(parts.ContinuousBatchingLogitsProcessor if parts else object):  # type: ignore[misc]
    """Hands each step to `step`, while there is one."""

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(self) -> None:
        self.step: Step | None = None
        self._states: list[Any] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Its tensor is not used."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
        """Called before each step with the requests that will sample, in the order of their rows."""
        self._states = [request.state for request in requests_with_new_token]
        return torch.zeros(len(self._states), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        """Change the rows of the requests. Those behind them, if any, are not sampled from."""
        return self.step(self._states, scores) if self.step is not None and self._states else scores


def check_version() -> None:
    """Raises `ModelError`."""
    if parts is None or tuple(map(int, re.findall(r"\d+", transformers.__version__)[:2])) < _OLDEST:
        raise ModelError(
            f"the engine 'transformers-cb' needs transformers {'.'.join(map(str, _OLDEST))} or later, "
            f"this is {transformers.__version__}",
            hint="pip install --upgrade transformers, or use --engine transformers",
        )


def check_batching_args(given: dict[str, Any]) -> None:
    """Raises `UsageError` for fields that this engine sets, or that transformers does not have."""
    for name in given:
        if name not in _fields():
            raise UsageError(f"batching_args: transformers' ContinuousBatchingConfig has no field {name!r}")
        if name in _TAKEN:
            raise UsageError(f"batching_args may not hold {name}", hint="the engine sets it, or cannot run with it")


def make_manager(model: Any, window: int | None, parallel: int, given: dict[str, Any], processor: Processor) -> Any:
    """transformers' manager, with a cache for `parallel` full windows. Raises `ModelError`."""
    attention = model.config._attn_implementation
    if "paged|" not in attention and ("auto_switch_to_flash" not in _fields() or attention == "eager"):
        model.set_attn_implementation(f"paged|{attention}")  # else it is switched, at times to another one
    config: dict[str, Any] = dict(
        max_requests_per_batch=parallel, use_cuda_graph=False, use_async_batching=False, auto_switch_to_flash=False,
    )  # fmt: skip
    if "flash" not in attention:
        config["max_batch_tokens"] = max(512, parallel)  # the mask has this times all tokens of the cache
    if model.device.type == "cpu":
        config["max_memory_percent"] = 0.25  # of all memory, which is not the model's alone
    if window is not None and "num_blocks" not in given and "max_memory_percent" not in given:
        block = given.get("page_size") or given.get("block_size") or 256
        config["num_blocks"] = parallel * -(-window // block)
    config = {name: value for name, value in {**config, **given}.items() if name in _fields()}
    try:
        return _manager(model, config, processor)
    except MemoryError as error:
        if "num_blocks" in given:
            raise ModelError(f"there is no room for the cache: {error}", hint="lower num_blocks") from error
    config.pop("num_blocks", None)  # as many as there is room for
    try:
        return _manager(model, config, processor)
    except (MemoryError, ValueError) as error:
        raise ModelError(f"there is no room for the cache: {error}", hint="use a smaller model") from error


def _manager(model: Any, config: dict[str, Any], processor: Processor) -> Any:
    settings = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(settings, transformers.ContinuousBatchingConfig(**config))
    # This one alone: what the model's settings name (a temperature, a penalty) would change its law.
    manager.logit_processor = parts.ContinuousBatchingLogitsProcessorList(transformers.LogitsProcessorList([processor]))
    manager.logit_processor.tensors_required = 1  # every one gets a tensor, only transformers' own are counted
    manager.warmup()  # nothing runs without graphs, but the cache is made
    return manager


def cancel(manager: Any, name: str) -> None:
    """End a request before the next step."""
    manager.cancel_request(name)
    # Set when the cache was full; transformers clears it where a request finishes, not where one is cancelled,
    # and would let nobody in any more.
    manager.batch_processor.scheduler.block_new_requests = False


def capacity(manager: Any) -> int:
    """How many tokens one request may have, alone in the cache."""
    cache = manager.batch_processor.cache
    if infer := getattr(model_runner, "infer_max_single_request_tokens", None):
        return int(infer(cache))
    return int(cache.num_pages) // int(cache.num_groups)  # transformers 5.17


def _fields() -> set[str]:
    return {field.name for field in dataclasses.fields(transformers.ContinuousBatchingConfig)}


_OLDEST = 5, 17
"""The oldest transformers that the tests have run with."""
_TAKEN = {
    "max_requests_per_batch", "use_cuda_graph", "use_async_batching", "varlen_compile_config", "decode_compile_config",
    "default_compile_level", "use_default_compile_configs", "q_padding_interval_size", "kv_padding_interval_size",
    "per_request_processors", "drop_unsupported_processors", "return_logprobs", "seed", "auto_switch_to_flash",
    "max_queue_size",
}  # fmt: skip
