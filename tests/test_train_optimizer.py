"""The optimizer against torch's, its roundings against their laws, its state through distributed checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from torch.distributed.checkpoint.state_dict import (  # noqa: E402
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.distributed.tensor import Shard, distribute_tensor  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from bide.errors import UsageError  # noqa: E402
from bide.train import optimizer as optimizer_module  # noqa: E402
from bide.train.moments import BLOCK, _codes, random_bits, read_first, read_second, stored, to_bfloat16  # noqa: E402
from bide.train.optimizer import AdamW, clip_scale, gradient_norm, learning_rate  # noqa: E402

torch.set_num_threads(1)
SHAPES = [(4, 128), (6, 256), (7,), (3, 100), (2, 3, 128)]


def parameters(kind: Any = torch.float32, copies: int = 1) -> list[Any]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape).to(kind)) for shape in SHAPES * copies]


def give_gradients(made: list[Any], step: int, size: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in made:
        parameter.grad = (torch.randn(parameter.shape, generator=generator) * size).to(parameter.dtype)


def as_wide(made: list[Any]) -> list[Any]:
    return [torch.nn.Parameter(p.detach().float()) for p in made]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_in_float32_it_is_torchs_adamw(decay: float) -> None:
    mine, theirs = parameters(), parameters()
    one = AdamW(mine, lr=1e-2, moments="fp32", weight_decay=decay)
    other = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), weight_decay=decay)
    for step in range(20):
        for group in (*one.param_groups, *other.param_groups):
            group["lr"] = 1e-2 * (step + 1) / 20
        give_gradients(mine, step)
        give_gradients(theirs, step)
        one.step()
        other.step()
    torch.testing.assert_close(mine, theirs, rtol=0, atol=3e-6)


def test_a_scale_is_the_scale_of_the_gradients() -> None:
    """With torch's clipping beside it; the norm is over all, in float32 also for gradients in bfloat16."""
    mine, theirs = parameters(), parameters()
    one = AdamW(mine, lr=1e-2, moments="fp32", eps=0.1)
    other = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), weight_decay=1e-4, eps=0.1)
    for limit in (1.0, 1e9):
        give_gradients(mine, 1)
        give_gradients(theirs, 1)
        norm = gradient_norm(mine)
        one.step(scale=clip_scale(norm, limit))
        torch.testing.assert_close(norm, torch.nn.utils.clip_grad_norm_(theirs, limit))
        other.step()
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
    assert clip_scale(norm, 0.0) == 1
    many = [torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)) for _ in range(5000)]
    for parameter in many:
        parameter.grad = torch.ones_like(parameter)
    assert float(gradient_norm(many)) == pytest.approx(5000**0.5)


@pytest.mark.parametrize(("moments", "most", "mean"), [("bf16", 5e-3, 5e-4), ("int8", 3e-2, 3e-3)])
def test_fewer_bytes_for_moments_cost_little(moments: str, most: float, mean: float) -> None:
    """After 40 steps of size 0.01: in parts of the way that weights went."""
    mine, theirs = parameters(copies=4), parameters(copies=4)
    one = AdamW(mine, lr=1e-2, moments=moments)
    other = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.95), weight_decay=1e-4)
    for step in range(40):
        give_gradients(mine, step)
        give_gradients(theirs, step)
        one.step()
        other.step()
    off = torch.cat([(a - b).detach().abs().flatten() for a, b in zip(mine, theirs)])
    assert off.max() < most and off.mean() < mean, (off.max(), off.mean())
    assert off.max() > 0


def test_what_is_too_small_for_bfloat16_adds_up() -> None:
    """A thousand updates, each a 50th of the distance of neighbours: rounded to the nearest, nothing moves."""
    weight = torch.nn.Parameter(torch.ones(64, 128, dtype=torch.bfloat16))
    optimizer = AdamW([weight], lr=2**-8 / 50, weight_decay=0.0, moments="fp32")
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight.float().mean().item() == pytest.approx(1 - 1000 * 2**-8 / 50, rel=2e-3)


def test_bfloat16_moments_follow_a_slow_mean() -> None:
    """b2 = 0.999: (1 - b2) g^2 is less than half the distance of neighbours, so the nearest would stand still."""
    weight = torch.nn.Parameter(torch.zeros(32, 128))
    optimizer = AdamW([weight], lr=0.0, betas=(0.9, 0.999), moments="bf16")
    for _ in range(1500):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    expected = 1 - 0.999**1500
    assert optimizer.state[weight]["exp_avg_sq"].float().mean().item() == pytest.approx(expected, rel=5e-3)


def test_random_bits_are_random() -> None:
    """Mean, spread, each bit, neighbours, and two keys."""
    places = torch.arange(1 << 18)
    bits, other = (random_bits(places, torch.tensor(key)).long() & 0xFFFFFFFF for key in (12345, 12346))
    for found in (bits, other, bits & 0xFFFF, bits >> 16):
        span = 1 << (32 if found.max() > 1 << 17 else 16)
        assert (found / span).mean().item() == pytest.approx(0.5, abs=0.003)
        assert (found / span).std().item() == pytest.approx(12**-0.5, abs=0.003)
    assert all(((bits >> k) & 1).double().mean().item() == pytest.approx(0.5, abs=0.005) for k in range(32))
    rows = [bits, bits.roll(1), other, other.roll(1), bits >> 16, bits & 0xFFFF]
    pairs = torch.stack([row.double() for row in rows])
    off = torch.corrcoef(pairs).fill_diagonal_(0)
    off[0, 4] = off[4, 0] = 0  # the upper half is most of the whole
    assert off.abs().max() < 0.01
    assert not torch.equal(bits.sort().values, other.sort().values)


def test_stochastic_rounding_is_right_on_the_mean_and_never_further_than_a_neighbour() -> None:
    places = torch.arange(1 << 16)
    for value in (1.001, -3.3e-5, 7.0, 1e-30, 0.0, float("inf")):
        x = torch.full((1 << 16,), value)
        found = to_bfloat16(x, random_bits(places, torch.tensor(7)) & 0xFFFF).double()
        nearest = x[0].to(torch.bfloat16).double()
        assert found.mean().item() == pytest.approx(value, rel=1e-4)
        assert len(found.unique()) <= 2
        assert value in (7.0, 0.0, float("inf")) or (found - nearest).abs().max() <= abs(value) * 2**-7
    assert to_bfloat16(torch.tensor([float("nan")]), torch.tensor([3], dtype=torch.int32)).isnan().all()


def test_int8_moments_are_right_on_the_mean_and_keep_what_is_small() -> None:
    torch.manual_seed(0)
    m = torch.randn(4 * BLOCK) * torch.logspace(-6, 0, 4 * BLOCK)
    v = torch.rand(4 * BLOCK) * torch.logspace(-12, 0, 4 * BLOCK)
    v[:3], v[3:6] = 0, 1e-25
    first, second = torch.zeros(len(m), dtype=torch.int8), torch.zeros(len(m), dtype=torch.uint8)
    places, m, v, first, second = (x.view(4, BLOCK) for x in (torch.arange(len(m)), m, v, first, second))
    scales = torch.zeros(4, 1), torch.zeros(4, 1)
    sums = torch.zeros(2, 4, BLOCK, dtype=torch.float64)
    for key in range(400):
        stored(m, v, first, scales[0], second, scales[1], places, torch.tensor(key * 977 + 1))
        sums += torch.stack([read_first(first, scales[0]), read_second(second, scales[1])]).double()
    found = sums / 400
    largest = m.abs().amax(1, keepdim=True)
    assert ((found[0] - m).abs() / (m.abs() + 1e-4 * largest)).mean() < 0.02
    big = v > 1e-6
    assert ((found[1] - v).abs() / v)[big].mean() < 0.01
    assert (second[v > 0] > 0).all() and (second[0, :3] == 0).all()
    assert torch.equal(scales[0], largest)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("moments", ["fp32", "bf16", "int8"])
def test_a_resumed_optimizer_goes_on_to_the_bit(kind: Any, moments: str, tmp_path: Path) -> None:
    """Through a file; torch's own load_state_dict would turn codes and bfloat16 into the weights' type."""
    straight = parameters(kind)
    optimizer = AdamW(straight, lr=1e-2, moments=moments, seed=5)
    for step in range(6):
        if step == 3:
            torch.save(optimizer.state_dict(), tmp_path / "state")
            again = [torch.nn.Parameter(p.detach().clone()) for p in straight]
        give_gradients(straight, step)
        optimizer.step()
    resumed = AdamW(again, lr=9.0, moments=moments, seed=5)
    resumed.load_state_dict(torch.load(tmp_path / "state"))
    kinds = {name: x.dtype for name, x in resumed.state[again[0]].items()}
    assert kinds == {name: x.dtype for name, x in optimizer.state[straight[0]].items()}
    for step in range(3, 6):
        give_gradients(again, step)
        resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(straight, again))
    with pytest.raises(UsageError, match="other parameters"):
        AdamW(again[:2], lr=1.0).load_state_dict(torch.load(tmp_path / "state"))


@pytest.mark.parametrize("power", [3, 6])
def test_a_code_is_one_of_the_two_around_a_number_at_the_right_chance(power: int) -> None:
    """Of numbers at, next to and between all codes: the chance to go up is where the number lies, in float64."""
    top = {3: 127, 6: 255}[power]
    places = (torch.arange(top + 1).double() / top) ** power
    at = torch.cat(
        [places, torch.nextafter(places.float(), torch.ones(())).double(), places[:-1].lerp(places[1:], 0.4)]
    )
    x = at.float().clamp(max=1.0)[:, None].expand(-1, BLOCK).contiguous()
    x[:, 0] = 1.0  # the largest of each block
    chances = ((torch.arange(BLOCK) - 0.5) / (BLOCK - 1)).expand(len(x), -1)  # of all but the first
    largest, codes = _codes(x, top, power, chances)
    assert (largest == 1).all() and (codes[:, 0] == top).all()
    found, x = codes[:, 1:].double().mean(1), x[:, 1].double()
    below = (torch.searchsorted(places, x, right=True) - 1).clamp(max=top - 1)
    expected = below + (x - places[below]) / (places[below + 1] - places[below])
    assert (found - expected).abs().max() < 1.01 / (BLOCK - 1)
    assert (codes[:, 1:].amax(1) - codes[:, 1:].amin(1)).max() == 1


@pytest.mark.parametrize("moments", ["bf16", "int8"])
def test_compiled_blocks_have_a_fixed_width(moments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's one kernel for blocks needs: all that is as large as a weight is of blocks, whose width is compiled
    in; only places are counted in a row."""
    widths: set[str] = set()  # as text: a fixed one is a number, another a symbol

    def backend(graph: Any, _: Any) -> Any:
        values = [node.meta.get("example_value") for node in graph.graph.nodes]
        widths.update(str(x.shape[-1]) for x in values if isinstance(x, torch.Tensor) and x.dim() > 1)
        return graph.forward

    monkeypatch.setattr(optimizer_module, "compiled", lambda f, **_: torch.compile(f, dynamic=True, backend=backend))
    monkeypatch.setattr(optimizer_module, "_COMPILED", [])
    torch._dynamo.reset()
    made = [torch.nn.Parameter(torch.randn(520, 2 * BLOCK)), *(torch.nn.Parameter(torch.randn(4, BLOCK)) for _ in "ab")]
    give_gradients(made, 0)
    AdamW(made, lr=1e-2, moments=moments, compiled=True).step()
    assert (widths == {"1", "4", str(BLOCK)}) == (moments == "int8"), widths


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.parametrize("moments", ["bf16", "int8"])
def test_compiled_is_uncompiled(moments: str) -> None:
    torch._dynamo.reset()
    pair = [parameters(torch.bfloat16, copies=2) for _ in range(2)]
    made = [AdamW(p, lr=1e-2, moments=moments, compiled=flag) for p, flag in zip(pair, (True, False))]
    for step in range(2):
        for own, optimizer in zip(pair, made):
            give_gradients(own, step)
            optimizer.step()
    differ = sum(int((a != b).sum()) for a, b in zip(*pair))
    assert differ <= sum(p.numel() for p in pair[0]) // 200  # a rounding may fall otherwise where sums differ in a bit


def test_no_place_is_counted_in_32_bits() -> None:
    """A compiler for GPUs may count in 64 bits all the same, and then leaves out the cast that rounding relies on."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = function(*args, **(kwargs or {}))
            if function.overloadpacket is torch.ops.aten.arange:
                kinds.append(found.dtype)
            return found

    for moments in ("bf16", "int8"):
        kinds: list[Any] = []
        made = parameters(torch.bfloat16)
        give_gradients(made, 0)
        with Watch():
            AdamW(made, lr=1e-2, moments=moments, compiled=False).step()
        assert set(kinds) == {torch.int64}


def test_the_seed_and_the_step_decide_the_rounding() -> None:
    def after(seed: int, steps: int = 1) -> Any:
        weight = torch.nn.Parameter(torch.ones(8, 128, dtype=torch.bfloat16))
        optimizer = AdamW([weight], lr=2**-10, moments="fp32", seed=seed)
        for _ in range(steps):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        return weight.detach()

    assert torch.equal(after(1), after(1)) and not torch.equal(after(1), after(2))


def test_a_process_without_rows_counts_steps_too() -> None:
    """Three rows over four processes: a checkpoint may take the number of steps from the one that has none."""
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=4)
    try:
        mesh = init_device_mesh("cpu", (4,))
        made = torch.nn.Parameter(distribute_tensor(torch.ones(3, 8), mesh, [Shard(0)], src_data_rank=None))
        made.grad = torch.ones_like(made)
        assert made.to_local().numel() == 0
        optimizer = AdamW([made], lr=1e-2)
        optimizer.step()
        optimizer.step()
        assert optimizer.state_of(made)["step"] == 2
    finally:
        dist.destroy_process_group()


def test_what_it_does_not_take() -> None:
    with pytest.raises(UsageError, match="unknown form of moments"):
        AdamW(parameters(), lr=1.0, moments="fp8")
    with pytest.raises(UsageError, match="float16"):
        AdamW(parameters(torch.float16), lr=1.0)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "cosine_with_min"])
@pytest.mark.parametrize(("steps", "fraction"), [(315, 0.05), (195, 0.0), (7, 0.5), (1, 0.0)])
def test_rates_are_those_of_transformers(schedule: str, steps: int, fraction: float) -> None:
    transformers = pytest.importorskip("transformers")
    import math

    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weight], lr=1e-5)
    warmup = math.ceil(fraction * steps)
    options: dict[str, Any] = {"num_warmup_steps": warmup}
    if schedule == "cosine":
        made = transformers.get_cosine_schedule_with_warmup(theirs, num_training_steps=steps, **options)
    elif schedule == "linear":
        made = transformers.get_linear_schedule_with_warmup(theirs, num_training_steps=steps, **options)
    elif schedule == "constant":
        made = transformers.get_constant_schedule_with_warmup(theirs, **options)
    else:
        made = transformers.get_cosine_with_min_lr_schedule_with_warmup(
            theirs, num_training_steps=steps, min_lr_rate=0.1, **options
        )
    for step in range(steps):
        mine = learning_rate(
            step, steps, peak=1e-5, warmup_fraction=fraction, schedule=schedule.removesuffix("_with_min"),
            min_ratio=0.1 if schedule == "cosine_with_min" else 0.0,
        )  # fmt: skip
        assert mine == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-9, abs=1e-18)
        theirs.step()
        made.step()


def test_an_unknown_schedule() -> None:
    with pytest.raises(UsageError, match="unknown schedule"):
        learning_rate(0, 1, peak=1.0, warmup_fraction=0.0, schedule="cosin")


# Sharded --------------------------------------------------------------------------------------------------------------


class Two(torch.nn.Module):
    """7 rows over 2 processes: shards of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(128, 7)
        self.second = torch.nn.Linear(7, 5, bias=False)

    def forward(self, x: Any) -> Any:
        return self.second(self.first(x)).square().mean()


def trained(model: Any, optimizer: Any, steps: range) -> list[float]:
    norms = []
    for step in steps:
        x = torch.randn(4, 128, generator=torch.Generator().manual_seed(step))
        model(x.to(next(model.parameters()).dtype)).backward()
        norm = gradient_norm(model.parameters())
        optimizer.step(scale=clip_scale(norm, 1e9))
        optimizer.zero_grad()
        norms.append(float(norm))
    return norms


CASES = [("float32", "int8"), ("bfloat16", "bf16")]


def in_two_processes(rank: int, directory: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    try:
        for kind, moments in CASES:
            found = one_of_two(getattr(torch, kind), moments, f"{directory}/{kind}-checkpoint")
            if rank == 0:
                torch.save(found, f"{directory}/{kind}")
        dist.barrier()  # neither leaves while the other still talks
    finally:
        dist.destroy_process_group()


def one_of_two(kind: Any, moments: str, checkpoint: str) -> dict[str, Any]:
    """Six steps, a checkpoint after three, and the last three once more from it."""
    mesh = init_device_mesh("cpu", (2,))

    def made() -> tuple[Any, Any]:
        model = Two().to(kind)
        fully_shard(model.first, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model, AdamW(model.parameters(), lr=1e-2, moments=moments, seed=3)

    model, optimizer = made()
    norms = trained(model, optimizer, range(3))
    state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.save(state, checkpoint_id=checkpoint)
    norms += trained(model, optimizer, range(3, 6))
    weights = [p.full_tensor() for p in model.parameters()]

    again, resumed = made()
    state = {"model": again.state_dict(), "optimizer": get_optimizer_state_dict(again, resumed)}
    dcp.load(state, checkpoint_id=checkpoint)
    again.load_state_dict(state["model"])
    set_optimizer_state_dict(again, resumed, state["optimizer"])
    trained(again, resumed, range(3, 6))
    same = [torch.equal(a, p.full_tensor()) for a, p in zip(weights, again.parameters())]
    return {"norms": norms, "weights": weights, "same": same}


@pytest.mark.filterwarnings("ignore")
def test_two_processes_do_what_one_does_and_resume_to_the_bit(tmp_path: Path) -> None:
    """The norm is over both; rounding depends on the place in the whole tensor, not in the shard."""
    mp.spawn(in_two_processes, args=(str(tmp_path),), nprocs=2)
    for kind, moments in CASES:
        found = torch.load(tmp_path / kind)
        assert all(found["same"])
        model = Two().to(getattr(torch, kind))
        norms = trained(model, AdamW(model.parameters(), lr=1e-2, moments=moments, seed=3), range(6))
        assert found["norms"] == pytest.approx(norms, rel=1e-5)
        assert all(torch.equal(sharded, alone) for sharded, alone in zip(found["weights"], model.parameters()))
