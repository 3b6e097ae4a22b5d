"""How the optimizer's numbers are kept in fewer bytes than it computes with.

Rounding is stochastic: up or down with the chances that make its mean exact, so that what is too small for one step is
not lost in all steps. Its randomness is a hash of the number's place and a key; there is no generator whose state would
have to be saved.

int8 keeps blocks of 128 numbers by their largest. Between 0 and it, codes lie on a curve, dense near 0:
first moment  +-(code / 127)^3, second moment (code / 255)^6, that is, cubes for the root that AdamW divides by.
A second moment above 0 never becomes 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128
"""Numbers that share a scale, neighbours in a row."""


class Form(NamedTuple):
    """The types of the two moments, and whether they have scales."""

    first: torch.dtype
    second: torch.dtype
    scaled: bool


FORMS = {
    "fp32": Form(torch.float32, torch.float32, False),
    "bf16": Form(torch.bfloat16, torch.bfloat16, False),
    "int8": Form(torch.int8, torch.uint8, True),
}
"""By the name that a recipe gives."""


def random_bits(places: Tensor, key: Tensor) -> Tensor:
    """32 random bits for each place, as int32: a hash of the place, then with the key two rounds more.

    Of places and keys the lower 32 bits count. Products wrap around; shifted-in signs are masked off. In 32 bits,
    because GPUs have no 64-bit multiplication and this runs once or twice for every number of a model.
    """
    x = places.to(torch.int32)
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x21F0AAAD
    x = x ^ ((x >> 15) & 0x1FFFF) ^ key.to(torch.int32)
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x735A2D97
    x = (x ^ ((x >> 15) & 0x1FFFF)) * 0x2C1B3C6D
    return x ^ ((x >> 16) & 0xFFFF)


def rounded(x: Tensor, kind: torch.dtype, places: Tensor, key: Tensor) -> Tensor:
    """float32 `x` in the type `kind`; bfloat16 is rounded stochastically."""
    if kind is torch.float32:
        return x
    return to_bfloat16(x, random_bits(places, key) & 0xFFFF)


def to_bfloat16(x: Tensor, bits: Tensor) -> Tensor:
    """float32 -> bfloat16: a bfloat16 is the upper half of a float32, so adding 16 random `bits` (int32) to the lower
    half carries with the right chance."""
    return ((x.view(torch.int32) + bits) & -65536).view(torch.float32).to(torch.bfloat16)


def stored(
    m: Tensor,
    v: Tensor,
    first: Tensor,
    first_scale: Tensor | None,
    second: Tensor,
    second_scale: Tensor | None,
    places: Tensor,
    key: Tensor,
) -> None:
    """Write the moments m and v (float32) to where they are kept. `places` and `key` are as wide, or broadcast.

    Where there are scales [..., 1], all others are blocks [..., BLOCK] already: were rows cut into blocks here, the
    compiled update would be six kernels that hand each other float32, and divide 64-bit indices for every number.
    """
    if first.dtype is torch.float32:
        first.copy_(m)
        second.copy_(v)
        return
    bits = random_bits(places, key)
    if first_scale is None or second_scale is None:
        first.copy_(to_bfloat16(m, bits & 0xFFFF))
        second.copy_(to_bfloat16(v, (bits >> 16) & 0xFFFF))
        return
    of_first, of_second = ((part & 0xFFFF) / 65536 for part in (bits, bits >> 16))
    largest, codes = _codes(m.abs(), 127, 3, of_first)
    first_scale.copy_(largest)
    first.copy_(torch.where(m < 0, -codes, codes))
    largest, codes = _codes(v, 255, 6, of_second)
    second_scale.copy_(largest)
    second.copy_(codes.maximum((v > 0).int()))


def read_first(first: Tensor, scale: Tensor | None) -> Tensor:
    """The first moment as float32: of blocks [..., BLOCK] where there are scales [..., 1]."""
    if scale is None:
        return first.float()
    part = first.float() / 127
    return part * part * part * scale


def read_second(second: Tensor, scale: Tensor | None) -> Tensor:
    """The second moment as float32: of blocks [..., BLOCK] where there are scales [..., 1]."""
    if scale is None:
        return second.float()
    part = second.float() / 255
    cube = part * part * part
    return cube * cube * scale


def _codes(x: Tensor, top: int, power: int, chance: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number of each block [..., 1], and codes from 0 to `top` (int32) of x >= 0 [..., BLOCK], such that
    largest * (code / top)^power is x on the mean."""
    largest = x.amax(-1, keepdim=True)
    part = x / largest.clamp(min=torch.finfo(torch.float32).tiny)
    # The root by a logarithm: a GPU would spend more on `pow`, exact to the last bit, than on all else of the update.
    # It does not matter on which side of a code a root falls that is next to it: the rounding leads to that code.
    below = ((part.log2() / power).exp2() * top).int().clamp(max=top - 1)
    low, high = (below.float() / top).pow(power), ((below.float() + 1) / top).pow(power)
    return largest, below + (part - low > chance * (high - low)).int()
