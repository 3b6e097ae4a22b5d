"""AdamW (Loshchilov & Hutter, 2019) whose weights and moments may take fewer bytes, over parameters or their shards.

    m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
    w <- (1 - lr * decay) w - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

All of it is computed in float32; `bide.train.moments` has how the results are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from ..errors import UsageError, unknown_name
from .compiling import compiled
from .moments import BLOCK, FORMS, read_first, read_second, rounded, stored

SMALL = 1 << 16
"""Parameters of at most so many numbers are updated all together, in a copy: a model has hundreds."""


class AdamW(torch.optim.Optimizer):
    """AdamW for parameters in float32 or bfloat16, plain or DTensor.

    moments: "fp32", "bf16" (rounded stochastically) or "int8" (blocks of 128 numbers with a scale each; tensors of one
    dimension, and rows that are no multiple of 128, keep fp32). Parameters in bfloat16 are rounded stochastically.
    Rounding depends on `seed`, the step, and the number's place in the whole tensor: a resumed run goes on exactly, and
    the number of processes does not matter. The state has the parameter's layout (DTensors for DTensors), as
    distributed checkpoints want it. Raises `UnknownNameError` and `UsageError`.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1e-4,
        moments: str = "bf16",
        seed: int = 0,
        compiled: bool | None = None,
    ) -> None:
        """compiled: fuse the updates by torch.compile; None does so for parameters on CUDA."""
        if moments not in FORMS:
            raise unknown_name("form of moments", moments, FORMS)
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._moments, self._seed, self._compiled = moments, seed, compiled
        self._order = {parameter: place for place, parameter in enumerate(self._parameters())}
        self._starts = {parameter: _start(parameter) for parameter in self._order}
        for parameter in self._order:
            if parameter.dtype not in (torch.float32, torch.bfloat16):
                raise UsageError(f"AdamW updates float32 and bfloat16 weights, not {parameter.dtype}")

    @torch.no_grad()
    def step(self, closure: None = None, *, scale: Tensor | None = None) -> None:
        """One step. scale: a scalar on the device that every gradient is multiplied by (`clip_scale`)."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[Any, list[Any]] = {}
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                state, local = self.state_of(parameter), _local(parameter)
                state["step"] += 1  # also where no row is here: a checkpoint takes the number from any process
                if not local.numel():
                    continue
                own = place if local.numel() > SMALL else -1
                kind = (int(state["step"]), own, local.numel(), local.dtype, state["exp_avg"].dtype)
                alike.setdefault(kind, []).append(parameter)
            if alike:
                self._update_group(group, [(step, parameters) for (step, *_), parameters in alike.items()], scale)

    def _update_group(self, group: Any, calls: list[tuple[int, list[Any]]], scale: Tensor | None) -> None:
        """The step of some parameters of a group: (its number, those that one call updates). What the device is told
        goes there at once."""
        device = _local(calls[0][1][0]).device
        rows = [(*self._keys(step, p), self._starts[p], 0) for step, parameters in calls for p in parameters]
        keys = _sent(torch.tensor(rows, dtype=torch.int64), device)
        factors = {
            step: _sent(torch.tensor(_factors(group, step), dtype=torch.float32), device) for step in dict(calls)
        }
        scale = torch.ones((), device=device) if scale is None else scale
        first = 0
        for step, parameters in calls:
            self._update(parameters, keys[first : first + len(parameters)], factors[step], scale)
            first += len(parameters)

    def _update(self, parameters: list[Any], keys: Tensor, factors: Tensor, scale: Tensor) -> None:
        """One parameter's step, or that of small ones whose parts are of one size and type."""
        rows = [self._tensors(parameter) for parameter in parameters]
        columns = [None if parts[0] is None else list(parts) for parts in zip(*rows)]
        copied = len(parameters) > 1
        stacked: list[Any] = [
            None if parts is None else torch.stack(parts) if copied else parts[0].unsqueeze(0) for parts in columns
        ]
        fuse = keys.is_cuda if self._compiled is None else self._compiled
        run: Any = _compiled_update() if fuse else _update
        run(*stacked, keys, factors, scale)
        if copied:
            for parts, changed in zip(columns, stacked):
                if parts is not None:
                    torch._foreach_copy_(parts, list(changed.unbind()))

    def _tensors(self, parameter: Any) -> list[Any]:
        """For `_update`, this process's weight, gradient, first moment and its scales, second moment and its scales: in
        one row, or in blocks; None for scales where there are none."""
        state = self.state[parameter]
        shape = (-1, BLOCK) if "exp_avg_scale" in state else (-1,)
        wide = (parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"])
        weight, gradient, first, second = (_local(x).view(shape) for x in wide)
        scales = (state.get("exp_avg_scale"), state.get("exp_avg_sq_scale"))
        first_scale, second_scale = (None if x is None else _local(x).view(-1, 1) for x in scales)
        return [weight, gradient, first, first_scale, second, second_scale]

    def state_of(self, parameter: Any) -> dict[str, Any]:
        """What is kept for a parameter; zeros before its first step. Checkpoints read it and write into it."""
        state: dict[str, Any] = self.state[parameter]
        if not state:
            whole_blocks = parameter.dim() > 1 and parameter.shape[-1] % BLOCK == 0
            form = FORMS[self._moments if self._moments != "int8" or whole_blocks else "fp32"]
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter, dtype=form.first)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=form.second)
            if form.scaled:
                state["exp_avg_scale"] = _scales_like(parameter)
                state["exp_avg_sq_scale"] = _scales_like(parameter)
        return state

    def _keys(self, step: int, parameter: Any) -> tuple[int, int]:
        """Two numbers of 32 bits for the rounding of a parameter in a step, the moments' and the weights'."""
        mixed = (self._seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + self._order[parameter]) % 2**64
        mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
        mixed ^= mixed >> 31
        return mixed & 0xFFFFFFFF, mixed >> 32

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state as it is: torch's own method would cast the moments to the weights' type.
        Raises `UsageError` where it belongs to other parameters."""
        groups = state_dict["param_groups"]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in self.param_groups]:
            raise UsageError("this optimizer's state belongs to other parameters")
        for mine, saved in zip(self.param_groups, groups):
            mine.update({name: value for name, value in saved.items() if name != "params"})
            for parameter, number in zip(mine["params"], saved["params"]):
                if number in state_dict["state"]:
                    self.state[parameter] = dict(state_dict["state"][number])

    def _parameters(self) -> Iterator[Any]:
        for group in self.param_groups:
            yield from group["params"]


def _update(
    weight: Tensor,
    gradient: Tensor,
    first: Tensor,
    first_scale: Tensor | None,
    second: Tensor,
    second_scale: Tensor | None,
    keys: Tensor,
    factors: Tensor,
    scale: Tensor,
) -> None:
    """The update of n parameters of one size, in place: all [n, size], or [n, blocks, BLOCK] where there are scales
    [n, blocks, 1], and the keys of the moments' and of the weights' rounding and the place of the first number, [n, 4].
    """
    # Thus the width is compiled in, and the update is one kernel that keeps whole blocks in registers.
    assert first_scale is None or weight.shape[-1] == BLOCK
    decay, rate, correction, eps, rest1, beta2, rest2 = factors.unbind()  # on the device: none is compiled in
    of_moments, of_weights, start, _ = (key.view(-1, *[1] * (weight.dim() - 1)) for key in keys.unbind(1))
    # In 64 bits until `random_bits` cuts them: compiled for a GPU, an index is as wide as the sizes are, whatever type
    # it is said to have, and casts to that type are left out.
    places = torch.arange(weight[0].numel(), device=weight.device).view(weight.shape[1:]) + start
    g = gradient.float() * scale
    m = read_first(first, first_scale)
    v = read_second(second, second_scale)
    m = m + (g - m) * rest1
    v = v * beta2 + g * g * rest2
    w = weight.float()
    w = w - decay * w - rate * m / (v.sqrt() / correction + eps)
    stored(m, v, first, first_scale, second, second_scale, places, of_moments)
    weight.copy_(rounded(w, weight.dtype, places, of_weights))


_COMPILED: list[Any] = []


def _compiled_update() -> Any:
    if not _COMPILED:
        _COMPILED.append(compiled(_update, fullgraph=True))
    return _COMPILED[0]


def gradient_norm(parameters: Iterable[Any]) -> Tensor:
    """The 2-norm of all gradients as one vector over all processes: scalar, float32, on the device, without waiting.
    Every process must ask for it."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    assert gradients, "no parameter has a gradient"
    shares: dict[Any, list[Tensor]] = {}
    for gradient in gradients:
        spread = isinstance(gradient, DTensor) and any(p.is_shard() for p in gradient.placements)
        shares.setdefault((gradient.device_mesh, gradient.placements) if spread else None, []).append(_local(gradient))
    total = torch.zeros((), dtype=torch.float32, device=_local(gradients[0]).device)
    for layout, local in shares.items():
        norms = torch._foreach_norm([x for x in local if x.numel()], 2, dtype=torch.float32)
        part = torch.stack(norms).square().sum() if norms else torch.zeros_like(total)
        if layout is not None:
            mesh, placements = layout
            for dimension, placement in enumerate(placements):
                if placement.is_shard():
                    dist.all_reduce(part, group=mesh.get_group(dimension))
        total += part
    return total.sqrt()


def clip_scale(norm: Tensor, max_norm: float) -> Tensor:
    """What gradients of this `norm` are multiplied by so that it is at most `max_norm`, as `clip_grad_norm_` has it:
    `AdamW.step` takes it. max_norm 0: 1."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0) if max_norm > 0 else torch.ones_like(norm)


def learning_rate(
    step: int, steps: int, *, peak: float, warmup_fraction: float, schedule: str, min_ratio: float = 0.0
) -> float:
    """The rate of optimizer step `step` (from 0) of `steps`, as transformers' schedules have it: linear from 0 to
    `peak` over ceil(warmup_fraction * steps) steps, then along `schedule` to min_ratio * peak. Raises
    `UnknownNameError`."""
    if schedule not in SCHEDULES:
        raise unknown_name("schedule", schedule, SCHEDULES)
    warmup = math.ceil(warmup_fraction * steps)
    if step < warmup:
        return peak * step / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (min_ratio + (1 - min_ratio) * SCHEDULES[schedule](done))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
    "constant": lambda done: 1.0,
}
"""Name -> what is left of the rate when that part of the steps after the warm-up is done."""


def _local(tensor: Any) -> Any:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _factors(group: Any, step: int) -> list[float]:
    """What `_update` is told of step number `step` (from 1)."""
    (beta1, beta2), rate = group["betas"], float(group["lr"])
    return [
        rate * group["weight_decay"], rate / (1 - beta1**step), math.sqrt(1 - beta2**step), group["eps"],
        1 - beta1, beta2, 1 - beta2,
    ]  # fmt: skip


def _start(parameter: Any) -> int:
    """The place of this process's first number in the whole tensor."""
    if not isinstance(parameter, DTensor):
        return 0
    start = 0
    for dimension, placement in enumerate(parameter.placements):
        if placement == Shard(0):
            rows = -(-parameter.shape[0] // parameter.device_mesh.size(dimension))
            start = rows * parameter.device_mesh.get_local_rank(dimension) * math.prod(parameter.shape[1:])
        elif placement != Replicate():
            raise UsageError(f"AdamW takes tensors that are sharded by their rows, not {parameter.placements}")
    return start


def _scales_like(parameter: Any) -> Any:
    """One float32 number, 0, for each block of a parameter, in its layout."""
    shape = (*parameter.shape[:-1], parameter.shape[-1] // BLOCK)
    local = _local(parameter)
    scales = torch.zeros(*local.shape[:-1], shape[-1], dtype=torch.float32, device=local.device)
    if not isinstance(parameter, DTensor):
        return scales
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        scales, parameter.device_mesh, parameter.placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def _sent(host: Tensor, device: torch.device) -> Tensor:
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)
