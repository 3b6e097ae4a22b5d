"""Linear layers whose three matmuls run on 8-bit floats, scaled anew at every call (Micikevicius et al., 2022).

    y = x W^T        x and W in e4m3
    dx = dy W        dy in e5m2 (tensorwise) or e4m3 (rowwise)
    dW = dy^T x

"tensorwise": one scale for a tensor, the fastest. "rowwise": one for each row of the left and each column of the right
operand of a matmul, which loses less to outliers. Sums are float32; weights, their gradients and what layers pass on
keep their types. Where there is no such hardware (CPUs), the same rounded numbers are multiplied in float32.

One scale for a tensor ties the documents of a packed row to each other: the largest number of any of them decides how
all are rounded. `unscaled` is for who looks for other ties.

Sharded weights of "tensorwise" layers can be rounded before they are gathered, not after: `bide.train.float8_gather`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import UsageError, unknown_name

ALIGNMENT = 16
"""Each side of a matmul of 8-bit floats is a multiple of this."""
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


class Recipe(NamedTuple):
    """How operands are scaled, of what type gradients are, and which matmuls may sum in short steps."""

    rowwise: bool
    gradient: torch.dtype
    fast_output: bool
    fast_gradients: bool


RECIPES = {
    "tensorwise": Recipe(False, E5M2, fast_output=True, fast_gradients=False),
    "rowwise": Recipe(True, E4M3, fast_output=True, fast_gradients=True),
}
"""By name; the settings are torchao's of the same names."""


def use_float8(model: nn.Module, recipe: str = "tensorwise", *, skip: Sequence[str] = ("lm_head",)) -> list[str]:
    """Let the linear layers of `model` multiply in float8, in place; parameters and their names stay. Returns the names
    of those layers. Call it before compiling and sharding.

    skip: last parts of names of layers that stay. Layers whose widths are no multiple of 16 stay too. Raises
    `UsageError`, also for a GPU without 8-bit floats and a model without a layer to take.
    """
    if recipe not in RECIPES:
        raise unknown_name("float8 recipe", recipe, RECIPES)
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
        raise UsageError(f"{torch.cuda.get_device_name()} has no 8-bit floats; H100, H200 and later ones have")
    changed = []
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name.rpartition(".")[2] not in skip:
            if module.in_features % ALIGNMENT == 0 and module.out_features % ALIGNMENT == 0:
                module.__class__ = Float8Linear
                module.recipe = recipe
                changed.append(name)
    if not changed:
        raise UsageError(f"float8 wants linear layers with widths that are multiples of {ALIGNMENT}; there are none")
    return changed


class Float8Linear(nn.Linear):
    """A linear layer that multiplies in float8. Made by `use_float8`."""

    recipe: str
    rounded: tuple[Tensor, Tensor] | None = None
    """The weights in e4m3 and their scale, where they are not made from `weight` at each call."""
    scaled: bool = True
    """Whether what is multiplied has a scale of its own; else it is 1 (`unscaled`)."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]. Raises `UsageError` for a number of tokens that is no multiple of 16."""
        rows = input.reshape(-1, input.shape[-1])
        if rows.shape[0] % ALIGNMENT:
            raise UsageError(f"float8 wants rows of a multiple of {ALIGNMENT} tokens, not {rows.shape[0]}; pad them")
        output = _Matmul.apply(rows, self.weight, *(self.rounded or (None, None)), self.recipe, self.scaled)
        output = output.unflatten(0, input.shape[:-1])
        return output if self.bias is None else output + self.bias


@contextlib.contextmanager
def unscaled(model: nn.Module) -> Iterator[None]:
    """Inside, forward passes of tensorwise layers round each number by itself, with a scale of 1, so that no token
    changes another's rounding. Compiled layers run uncompiled there, so that nothing is compiled for it; the backward
    pass is as ever. Models without such layers run as ever."""
    layers = [one for one in model.modules() if isinstance(one, Float8Linear) and not RECIPES[one.recipe].rowwise]
    with torch.compiler.set_stance("force_eager") if layers else contextlib.nullcontext():
        for layer in layers:
            layer.scaled = False
        try:
            yield
        finally:
            for layer in layers:
                layer.scaled = True


Operand = tuple[Tensor, Tensor]
"""A matrix in 8 bits, and its scale (float32): a scalar, or one for each row or column."""


class _Matmul(torch.autograd.Function):
    """x [M, K], W [N, K] -> x W^T [M, N]. With W in 8 bits and its scale, numbers of `weight` are not read."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        rounded: Tensor | None,
        weight_scale: Tensor | None,
        name: str,
        scaled: bool,
    ) -> Tensor:
        ctx.save_for_backward(x, weight if rounded is None else None, rounded, weight_scale)
        ctx.name = name
        recipe = RECIPES[name]
        if rounded is None or weight_scale is None:
            right = _scaled(weight.T, E4M3, _columns(recipe))
        else:
            right = rounded.T, weight_scale
        left = _scaled(x, E4M3, _rows(recipe)) if scaled else _as_it_is(x)
        return _product(left, right, x.dtype, recipe.fast_output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rounded, weight_scale = ctx.saved_tensors
        recipe = RECIPES[ctx.name]
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            right = _scaled(weight, E4M3, _columns(recipe)) if rounded is None else (rounded, weight_scale)
            left = _scaled(gradient, recipe.gradient, _rows(recipe))
            of_x = _product(left, right, gradient.dtype, recipe.fast_gradients)
        if ctx.needs_input_grad[1]:
            left, right = _scaled(gradient.T, recipe.gradient, _rows(recipe)), _scaled(x, E4M3, _columns(recipe))
            of_weight = _product(left, right, gradient.dtype, recipe.fast_gradients)
        return of_x, of_weight, None, None, None, None


def _rows(recipe: Recipe) -> int | None:
    """For `_scaled`, of a matmul's left operand."""
    return 1 if recipe.rowwise else None


def _columns(recipe: Recipe) -> int | None:
    """For `_scaled`, of a matmul's right operand."""
    return 0 if recipe.rowwise else None


def _product(left: Operand, right: Operand, kind: torch.dtype, fast: bool) -> Tensor:
    """left [m, k] @ right [k, n] in float8, in the type `kind`."""
    (a, a_scale), (b, b_scale) = left, right
    multiply = _multiply_on_cuda if a.is_cuda else _multiply
    return multiply(a, b, a_scale, b_scale, kind, fast)


def _multiply(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, kind: torch.dtype, fast: bool) -> Tensor:
    product = (a.float() @ b.float()) * (a_scale * b_scale)
    return product if product.dtype is kind else product.to(kind)  # torch 2.11 compiles an idle cast to no gradient


def _multiply_on_cuda(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, kind: torch.dtype, fast: bool) -> Tensor:
    """The kernels want the left operand's rows in memory one by one, and the right one's columns."""
    columns = b.T.contiguous().T
    scales = a_scale.contiguous(), b_scale.contiguous()
    return torch._scaled_mm(a.contiguous(), columns, *scales, out_dtype=kind, use_fast_accum=fast)


def _scaled(x: Tensor, kind: torch.dtype, dimension: int | None) -> Operand:
    """x / scale in 8 bits. One scale, or one for all that lies along `dimension`."""
    if dimension is None:
        rows = x if x.stride(-1) == 1 else x.T
        largest = rows.abs().amax(-1).amax()  # in the order of memory, and in rows: compiled code divides no places
    else:
        largest = x.abs().amax(dimension, keepdim=True)
    scale = scale_of(largest, kind)
    return in_8_bits(x, scale, kind), scale


def _as_it_is(x: Tensor) -> Operand:
    scale = torch.ones((), device=x.device)
    return in_8_bits(x, scale, E4M3), scale


def scale_of(largest: Tensor, kind: torch.dtype) -> Tensor:
    """The scale (float32) by which the largest number becomes the largest of the type."""
    return largest.float().clamp(min=1e-12) / torch.finfo(kind).max  # zeros have a scale too


def in_8_bits(x: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """x / scale, rounded."""
    top = torch.finfo(kind).max
    return (x.float() / scale).clamp(-top, top).to(kind)
