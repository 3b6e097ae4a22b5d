"""The same bytes twice: sums in one order only, and the same kernels whenever they are compiled.

Without it a GPU adds in the order in which its parts finish, in the backward pass of attention above all, and two runs
agree to rounding only. What the loop does itself (order of samples, dropout, stochastic rounding) is the same always.
"""

from __future__ import annotations

import contextlib
import os
import re
import warnings
from collections.abc import Iterator

import torch

from ..errors import BideError, UsageError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED_WORKSPACES = (":4096:8", ":16:8")
"""With these cuBLAS adds in one order (its manual, "Results Reproducibility"). The first is what PyTorch takes on a
Hopper GPU anyway."""
_REFUSAL = re.compile(r"(\S+) does not have a deterministic implementation")
"""In the RuntimeError of an operator that would add in any order: PyTorch has no type of its own for it."""


class NotDeterministicError(BideError):
    """An operator of this model has no way to compute the same bytes twice."""


@contextlib.contextmanager
def deterministic(*, on_gpu: bool) -> Iterator[None]:
    """Inside of it, PyTorch's operators sum in one order, or refuse. To be entered before anything runs on the GPU.

    Raises `UsageError` where the process was told otherwise, or CUDA runs already, and `NotDeterministicError` in place
    of an operator's refusal.
    """
    before = os.environ.get(WORKSPACE)
    if on_gpu and before not in (None, *FIXED_WORKSPACES):
        raise UsageError(
            f"a deterministic run wants {WORKSPACE} to be one of {', '.join(FIXED_WORKSPACES)}, not {before!r}",
            hint="leave it unset: the run sets it",
        )
    if on_gpu and before is None and torch.cuda.is_initialized():
        raise UsageError(
            f"a deterministic run sets {WORKSPACE} before CUDA starts, and it has started in this process",
            hint=f"a process of its own, or {WORKSPACE}={FIXED_WORKSPACES[0]} from its beginning",
        )
    modes = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    filled = torch.utils.deterministic.fill_uninitialized_memory
    os.environ[WORKSPACE] = before or FIXED_WORKSPACES[0]
    # Where it is on, memory is filled before it is written, for programs that read what they never wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False
    # It holds for the compiler too, which then times nothing whose numbers depend on the choice (torch 2.11 and later).
    torch.use_deterministic_algorithms(True)
    try:
        # Compiled code of another training may lie in the caches. It computes the same, but how it splits a sum follows
        # the length of the row that it was compiled for.
        with torch.compiler.config.patch(force_disable_caches=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="dynamo_pgo force disabled")  # one of these caches says so
            yield
    except RuntimeError as error:
        if (refused := _REFUSAL.search(str(error))) is None:
            raise
        raise NotDeterministicError(
            f"{refused[1]} has no way to compute the same bytes twice on this device",
            hint="run without --deterministic",
        ) from error
    finally:
        torch.use_deterministic_algorithms(modes[0], warn_only=modes[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled
        if before is None:
            del os.environ[WORKSPACE]
