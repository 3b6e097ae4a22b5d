"""torch.compile as this room uses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

VARIANTS = 64
"""Of one function: layers of several kinds, weights and moments of several types. At the usual 8 torch gives up, or
goes on uncompiled."""


def graphs_compiled() -> int:
    """By this process so far. A backward pass is compiled with the first step that has its forward pass."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def compiled(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`function` compiled when it is first called, for sizes that may change between calls."""
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    # Otherwise the whole numbers that a sharded module holds, such as the width of a head, are taken for sizes that may
    # change: kernels would then divide by them for every number that they move.
    torch._dynamo.config.skip_fsdp_guards = False
    # Nor is there a setting that changes. As an input, the epsilon of a norm would be cast by a kernel for the host, at
    # each call, which asks for a C++ compiler besides.
    torch._dynamo.config.specialize_float = True
    # Nor may the number of tokens choose kernels. Sums over the same numbers along rows and along columns (a norm's
    # gradients; a bias's and a scale of float8) become one kernel from twice as many tokens as columns on, and from
    # 5 Mi numbers on. A row on the other side of a bound would compile the layer again, forward and backward.
    torch._inductor.config.triton.mix_order_reduction = False
    made: Callable[..., Any] = torch.compile(function, dynamic=True, **options)
    return made
