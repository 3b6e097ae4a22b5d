"""What inductor compiles, without what it computes: for tests that ask how often it compiles, or what it allocates."""

from __future__ import annotations

import pytest
import torch
from torch._inductor import async_compile


def skip_kernels(patch: pytest.MonkeyPatch) -> None:
    """Let compiled code allocate and free as it would, on tensors that may have no memory, with kernels that do
    nothing."""
    patch.setattr(async_compile.AsyncCompile, "cpp_pybinding", lambda *_: lambda *_: None)
    guards = torch._C._dynamo.guards
    patch.setattr(
        guards, "_empty_strided_cpu", lambda size, stride, kind: torch.empty_strided(size, stride, dtype=kind)
    )
    patch.setattr(
        guards, "_reinterpret_tensor",
        lambda x, size, stride, offset=0: torch.as_strided(x.detach(), size, stride, offset),
    )  # fmt: skip
