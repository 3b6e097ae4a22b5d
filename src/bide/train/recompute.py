"""Decoder layers that compute part of their activations again in the backward pass, and go through torch.compile.

Checkpointing lies inside the compiled function, so that the compiler sees both passes: what the backward pass does not
need is not computed again (the last matmul of a layer, for one), and what is kept is chosen by operator
(`bide.train.recompute_policies` has the choices and their cost). Only `layer.forward` is replaced: names of parameters
stay, and hooks of `fully_shard` run outside of the compiled function. Call it before `fully_shard`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from .attention import documents_attention
from .compiling import compiled as compile_
from .recompute_policies import by_pack, parse

ATTENTION = documents_attention._opoverload
MATMULS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten._scaled_mm.default)
MATMUL_OF_4_BITS = "bitsandbytes.gemm_4bit.default"
"""By name: it is there once bitsandbytes is imported. Older versions unpack the matrix and call a plain matmul."""


@dataclass
class Fitting:
    """How many of the last layers follow the second policy of a choice that ends in "fit", from the next forward pass
    on. A forward pass that begins with one number ends with it; what is behind it, its backward pass too, does not ask.
    """

    layers: int = 0


def wrap_layers(
    layers: Iterable[Any], choice: str = "full", *, compiled: bool = False, backend: str = "inductor"
) -> Fitting | None:
    """Let each of `layers` follow `choice` ("full", "attention", "attention,matmuls:12", "layers:8", ...), in place.

    compiled: run each layer through torch.compile, with a number of tokens that may change from call to call; `backend`
    is the compiler's. Returns what to set before each pack for a choice that ends in "fit", else None. Raises
    `UsageError` for a choice that is none.
    """
    modules = list(layers)
    fitting = Fitting() if by_pack(choice) else None
    least, most = (parse(choice, len(modules), fitting=count) for count in (0, len(modules) if fitting else 0))
    for place, (layer, name, other) in enumerate(zip(modules, least, most)):
        assert "forward" not in vars(layer), "this layer is wrapped already"
        random = any(isinstance(module, torch.nn.Dropout) and module.p for module in layer.modules())
        runs = [_compiled(n, backend, random) if compiled else _RUNS[n](random) for n in (name, other)]
        if fitting is None:
            layer.forward = partial(runs[0], layer)
        else:
            layer.forward = partial(_by_fitting, fitting, len(modules) - place, runs, layer)
    return fitting


def _by_fitting(
    fitting: Fitting, from_the_end: int, runs: list[Callable[..., Any]], layer: Any, *args: Any, **settings: Any
) -> Any:
    """from_the_end: 1 for the last layer."""
    return runs[from_the_end <= fitting.layers](layer, *args, **settings)


def _plain(random: bool) -> Callable[..., Any]:
    return _run_plain


def _run_plain(layer: Any, *args: Any, **settings: Any) -> Any:
    return type(layer).forward(layer, *args, **settings)


def _checkpointed(contexts: Callable[[], Any] | None, random: bool) -> Callable[..., Any]:
    """A layer's forward pass under a checkpoint that keeps what `contexts` say (None: nothing). random: it has dropout,
    which must drop the same numbers the second time."""
    options: dict[str, Any] = {} if contexts is None else {"context_fn": contexts}

    def run(layer: Any, *args: Any, **settings: Any) -> Any:
        def forward(*inner: Any) -> Any:
            return type(layer).forward(layer, *inner, **settings)

        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=random, **options)

    return run


def _keep_nothing(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    """Said of each operator: a plain checkpoint, compiled by torch 2.11, keeps what an autograd.Function made."""
    return CheckpointPolicy.PREFER_RECOMPUTE


def _keep_attention(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operator is ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE


def _keep_matmuls(context: Any, operator: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    kept = operator is ATTENTION or operator in MATMULS or str(operator) == MATMUL_OF_4_BITS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


_RUNS: dict[str, Callable[[bool], Callable[..., Any]]] = {
    "full": partial(_checkpointed, partial(create_selective_checkpoint_contexts, _keep_nothing)),
    "attention": partial(_checkpointed, partial(create_selective_checkpoint_contexts, _keep_attention)),
    "matmuls": partial(_checkpointed, partial(create_selective_checkpoint_contexts, _keep_matmuls)),
    "none": _plain,
}
"""By policy: what makes the function that runs a layer, told whether the layer has dropout."""
_COMPILED: dict[tuple[str, str, bool], Callable[..., Any]] = {}


def _compiled(name: str, backend: str, random: bool) -> Callable[..., Any]:
    """One compiled function for all layers of a policy, which are arguments to it: compiled once, not once a layer."""
    key = (name, backend, random)
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_tells_news)
    if key not in _COMPILED:
        _COMPILED[key] = partial(_with_known_widths, compile_(_RUNS[name](random), backend=backend, fullgraph=True))
    return _COMPILED[key]


def _tells_news(record: logging.LogRecord) -> bool:
    """torch warns of every selective checkpoint that it compiles, in four lines: a region must not change its inputs in
    place. Decoder layers do not."""
    return "context_fn is passed to torch.utils.checkpoint" not in record.getMessage()


def _with_known_widths(run: Callable[..., Any], layer: Any, *args: Any, **settings: Any) -> Any:
    """The compiler takes sizes that are equal for one. Were widths not told apart, a first row of as many tokens as a
    head or the model is wide would be compiled for just that many."""
    for x in torch.utils._pytree.tree_leaves((args, settings)):
        if isinstance(x, torch.Tensor) and x.is_floating_point():
            torch._dynamo.mark_static(x, x.dim() - 1)
    return run(layer, *args, **settings)
