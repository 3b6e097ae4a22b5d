"""Which activations of a layer are kept from the forward to the backward pass, and what that costs: numbers only.

A choice is text: the name of one policy for all layers, or "NAME,OTHER:K", where the last K layers follow OTHER and
the rest NAME: "attention,matmuls:12". With "fit" for K they are as many as each pack leaves room for
(`bide.train.room`). "layers:K" is short for "full,none:K". Whatever the policy, the input of every layer is kept.
`bide.train.recompute` does what is said here.

    full        nothing: the whole layer runs again, but for its last matmul, whose output no gradient wants
    attention   what attention put out; all else runs again
    matmuls     what attention and the matmuls put out; norms, rotation and activation run again
    none        everything that the backward pass wants

What that means in numbers depends on how layers run: `VARIANTS`. They were counted in one step of the 32B shape (7B for
adapters) that ran on tensors without memory, compiled for an H100; tests/test_train_memory.py counts again. To keep the
output of one matmul saves as much time for a byte as that of another (all contract the hidden width), so mixtures of
layers are all that is needed. The last layers keep more because the backward pass frees them first, before gradients
fill the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import UsageError, unknown_name


@dataclass(frozen=True)
class Widths:
    """Widths of one decoder layer, in numbers for each token."""

    hidden: int
    query: int
    """Query heads times head width."""
    key: int
    """Key heads times head width."""
    intermediate: int


@dataclass(frozen=True)
class Policy:
    """What a layer keeps beside its input, and what is computed again."""

    kept: Callable[[Widths], int]
    """Numbers of the compute type for each token of the row (bf16: 2 bytes each)."""
    at_work: Callable[[Widths], int]
    """More of them while the layer runs backward, at the fullest moment."""
    recomputed: Callable[[Widths], int]
    """Weights (numbers) of the matmuls that run once more in the backward pass."""
    attention_again: bool
    """Whether attention runs once more."""


def _matmuls(w: Widths) -> int:
    """Weights of q, k, v, o, gate and up. Not of down: its output is no input of a gradient, so it never runs again."""
    return w.hidden * (w.query + 2 * w.key) + w.query * w.hidden + 2 * w.hidden * w.intermediate


def _outputs(w: Widths) -> int:
    """Widths of what those matmuls put out."""
    return w.query + 2 * w.key + w.hidden + 2 * w.intermediate


POLICIES: dict[str, Policy] = {
    "full": Policy(lambda w: 0, lambda w: 6 * w.intermediate + 6 * w.hidden, _matmuls, True),
    "attention": Policy(lambda w: w.query, lambda w: 6 * w.intermediate + 4 * w.hidden, _matmuls, False),
    "matmuls": Policy(lambda w: w.query + _outputs(w), lambda w: 4 * w.intermediate + w.hidden, lambda w: 0, False),
    "none": Policy(
        lambda w: 2 * w.query + 2 * w.key + 3 * w.hidden + 3 * w.intermediate,
        lambda w: w.intermediate + 3 * w.hidden,
        lambda w: 0,
        False,
    ),
}
"""Name -> policy, from the least memory to the most, of compiled layers."""


def _changed(name: str, kept: Callable[[Widths], int], at_work: Callable[[Widths], int]) -> Policy:
    return replace(POLICIES[name], kept=kept, at_work=at_work)


VARIANTS: dict[str, dict[str, Policy]] = {
    "": POLICIES,
    "float8": {**POLICIES, "none": POLICIES["matmuls"]},  # the compiler keeps what the matmuls put out either way
    "adapters": {  # each matmul has a second one beside it, whose output is kept too
        "full": _changed("full", POLICIES["full"].kept, lambda w: 11 * w.intermediate + 8 * w.hidden),
        "attention": _changed("attention", POLICIES["attention"].kept, lambda w: 11 * w.intermediate + 5 * w.hidden),
        "none": _changed("none", POLICIES["none"].kept, lambda w: 5 * w.intermediate + 2 * w.hidden),
        "matmuls": _changed("matmuls", lambda w: w.query + 2 * _outputs(w), lambda w: 7 * w.intermediate + w.hidden),
    },
    "uncompiled": {
        "full": _changed("full", POLICIES["full"].kept, lambda w: 6 * w.intermediate + 13 * w.hidden),
        "attention": _changed("attention", POLICIES["attention"].kept, lambda w: 6 * w.intermediate + 12 * w.hidden),
        "matmuls": _changed(
            "matmuls", lambda w: w.query + _outputs(w) + w.hidden, lambda w: 5 * w.intermediate + 5 * w.hidden
        ),
        "none": _changed(
            "none",
            lambda w: 2 * w.query + 2 * w.key + 7 * w.hidden + 4 * w.intermediate,
            lambda w: 2 * w.intermediate + 3 * w.hidden,
        ),
    },
    "uncompiled adapters": {  # also in 4 bits; what comes into a frozen matrix is kept for the adapter's gradient
        "full": _changed("full", POLICIES["full"].kept, lambda w: 6 * w.intermediate + 11 * w.hidden),
        "attention": _changed("attention", POLICIES["attention"].kept, lambda w: 6 * w.intermediate + 10 * w.hidden),
        "none": _changed(
            "none",
            lambda w: 2 * w.query + 2 * w.key + 5 * w.hidden + 4 * w.intermediate,
            lambda w: 2 * w.intermediate + 2 * w.hidden,
        ),
        "matmuls": _changed(
            "matmuls", lambda w: w.query + 2 * _outputs(w), lambda w: 4 * w.intermediate + 4 * w.hidden
        ),
    },
}
"""How layers run -> name -> policy, from the least memory to the most."""

MASK = 0.5
"""Of a number dropped or kept, in numbers of the compute type: a byte."""


def dropped(w: Widths) -> float:
    """What dropout before adapters adds, in numbers for each token: for each matrix a copy of what comes in, kept in
    its place, and which of it was dropped. The policy "none" keeps that; under another it is there while a layer runs
    backward. An upper bound, counted in layers that are not compiled."""
    copies = 5 * w.hidden + w.query + w.intermediate
    return (1 + MASK) * copies - 2 * w.hidden - w.intermediate


FIT = "fit"
"""For a number of layers: as many as fit, decided for each pack."""


def parse(choice: str, layers: int, *, fitting: int = 0) -> list[str]:
    """The policy of each of `layers` layers, in order; `fitting`: what "fit" stands for. Raises `UsageError`."""
    text = choice if not choice.startswith("layers:") else f"full,none:{choice.removeprefix('layers:')}"
    rest, _, exception = text.partition(",")
    other, _, count = exception.partition(":")
    for name in (rest, other) if exception else (rest,):
        if name not in POLICIES:
            raise unknown_name("recompute policy", name, POLICIES)
    if not exception:
        return [rest] * layers
    if count == FIT:
        if list(POLICIES).index(rest) >= list(POLICIES).index(other):
            raise UsageError(f"recompute {choice!r} wants the policy that keeps more behind the comma")
        count = str(fitting)
    if not count.isdecimal() or int(count) > layers:
        raise UsageError(
            f"recompute {choice!r} wants a number of layers from 0 to {layers} behind the colon, or {FIT!r}"
        )
    return [rest] * (layers - int(count)) + [other] * int(count)


def by_pack(choice: str) -> bool:
    """Whether each pack decides a choice's number of layers."""
    return choice.endswith(f":{FIT}")


def recomputed_weights(choice: str, layers: int, widths: Widths) -> int:
    """Weights of all matmuls that run a second time: 2 FLOPs a token for each. Raises `UsageError`."""
    assert not by_pack(choice), choice
    return sum(POLICIES[name].recomputed(widths) for name in parse(choice, layers))


def layers_attending_again(choice: str, layers: int) -> int:
    """How many layers compute attention a second time. Raises `UsageError`."""
    assert not by_pack(choice), choice
    return sum(POLICIES[name].attention_again for name in parse(choice, layers))
