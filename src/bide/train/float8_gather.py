"""Weights that cross the GPUs' links in 8 bits: rounded where they lie, gathered, and multiplied as they come.

A float8 layer rounds its gathered weights before each of its matmuls, on every GPU, in every pass. With one scale for a
matrix (recipe "tensorwise") that can be done before they are gathered: each GPU rounds its own part by a scale that all
agree on once a step. Half as many bytes are gathered and copied, and the numbers multiplied are the same (to the bit on
CPUs; compiled code on a GPU need not divide alike in both places).

FSDP lets a sharded tensor say what is gathered in its place (`fsdp_pre_all_gather`, `fsdp_post_all_gather`). It asks
the local tensor itself, so plain tensors are given the two functions: optimizer and checkpoints see nothing of it. What
stands for the gathered weights then is a parameter of the right shape and type without memory, which takes the
gradient. Which layer a sharded tensor belongs to only private names of FSDP tell: they are used here only (torch 2.11
and 2.13 have been run).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UsageError
from .compiling import compiled
from .float8 import E4M3, RECIPES, Float8Linear, in_8_bits, scale_of

_APART = 4
"""Scales stand 16 bytes from each other: compiled code copies inputs whose address is no multiple of that."""


class Float8Gather:
    """The float8 weights of some sharded modules. `measure` comes before each pass, `weights_changed` after each change
    of the weights."""

    def __init__(self, weights: list[_Weight], world: Any, kind: torch.dtype) -> None:
        self._weights, self._world, self._kind = weights, world, kind
        self._measured = False

    def __len__(self) -> int:
        return len(self._weights)

    def weights_changed(self) -> None:
        """The next pass wants new scales."""
        self._measured = False

    @torch.no_grad()
    def measure(self) -> None:
        """Find the scales of the weights as they are, if they have changed. Every process must call it, before FSDP's
        own hooks of the root module: its streams wait there for what is on the device's, and first layers are rounded
        on a stream that waits no second time."""
        if self._measured or not self._weights:
            return
        parts = [weight.part for weight in self._weights]
        found = torch._foreach_norm(parts, float("inf"))
        largest = torch.stack(found).to(self._kind).float()  # as if the numbers were cast before they were compared
        if self._world.size > 1:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        scales = torch.zeros(len(parts), _APART, device=largest.device)
        scales[:, 0] = scale_of(largest, E4M3)
        for weight, scale in zip(self._weights, scales[:, 0].unbind()):
            weight.scale_is(scale)
        self._measured = True


def gather_in_float8(groups: Iterable[Any], world: Any, *, compute: torch.dtype) -> Float8Gather:
    """Let the float8 layers of these sharded modules, which compute in `compute`, gather 8 bits, where they have one
    scale for a matrix and every process has as many rows. Call it when the parameters have their memory. Raises
    `UsageError` for a torch whose FSDP is another."""
    try:
        found = [
            _Weight(each._module_info.module, each, compute)
            for group in groups
            for each in group._get_fsdp_state()._fsdp_param_group.fsdp_params
            if _fits(each._module_info, world.size)
        ]
    except AttributeError as error:
        raise UsageError(
            f"float8 weights cannot be gathered by torch {torch.__version__}: {error}",
            hint="torch 2.11 and 2.13 are known to work; or float8=rowwise, or none",
        ) from error
    return Float8Gather(found, world, compute)


def _fits(info: Any, processes: int) -> bool:
    """Whether a parameter, as FSDP describes it, can be gathered in 8 bits."""
    layer: Any = info.module
    if not isinstance(layer, Float8Linear) or info.param_name != "weight" or RECIPES[layer.recipe].rowwise:
        return False
    return bool(layer.out_features % processes == 0)


class _Weight:
    """One layer's weights on their way, as FSDP asks for them. The tensor has this object, and it holds none that has
    the tensor: a model that is dropped is gone at once."""

    def __init__(self, layer: Float8Linear, sharded: Any, kind: torch.dtype) -> None:
        self._layer: Any = weakref.proxy(layer)
        self._sharded: Any = weakref.proxy(sharded)
        self._kind = kind
        self._scale: Tensor | None = None
        self._gathered: Tensor | None = None
        local = sharded._sharded_local_tensor
        local.fsdp_pre_all_gather, local.fsdp_post_all_gather = self.before, self.after

    @property
    def part(self) -> Tensor:
        """This process's rows."""
        local: Tensor = self._sharded._sharded_local_tensor.detach()
        return local

    def scale_is(self, scale: Tensor) -> None:
        self._scale = scale
        self._give()

    def before(self, mesh: Any, size: Any, stride: Any, module: Any, policy: Any) -> tuple[tuple[Tensor], None]:
        """What is gathered."""
        assert self._scale is not None, "weights were gathered before they were measured"
        part = self.part.to(self._kind)  # not in the compiled function, which would leave a cast of fp32 out
        run = _compiled_round() if part.is_cuda else _round
        return (run(part.view(-1), self._scale).view(part.shape),), None

    def after(self, gathered: tuple[Tensor], data: None, kind: torch.dtype, *, out: Any = None) -> Any:
        """What the layer gets, and, the first time, what stands for its parameter. FSDP frees the memory and fills it
        again; tensors stay."""
        if out is not None:
            return None
        (self._gathered,) = gathered
        self._give()
        return _Shapeless(torch.full((), math.nan, dtype=kind, device=self._gathered.device)), ()

    def _give(self) -> None:
        if self._gathered is not None and self._scale is not None:
            self._layer.rounded = self._gathered, self._scale


class _Shapeless:
    """A number that takes the shape which FSDP gives to what it has gathered: NaN, so that who reads it sees it."""

    def __init__(self, number: Tensor) -> None:
        self.number = number

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, inputs: Any = (), settings: Any = None) -> Tensor:
        assert function is torch.as_strided, function
        shapeless, size, *_ = inputs
        found: Tensor = shapeless.number.expand(size)
        return found


def _round(part: Tensor, scale: Tensor) -> Tensor:
    return in_8_bits(part, scale, E4M3)


@cache
def _compiled_round() -> Callable[..., Any]:
    return compiled(_round)
