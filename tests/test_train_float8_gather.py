"""Weights gathered in 8 bits against the same trainings whose weights are rounded after they were gathered."""

from __future__ import annotations

import os
import random
import socket
from functools import partial
from typing import Any, NamedTuple

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import torch.distributed as dist  # noqa: E402
import torch.multiprocessing as mp  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402

from bide.train import recompute, sharding, trainee  # noqa: E402
from bide.train.batches import make_batch  # noqa: E402
from bide.train.float8 import Float8Linear  # noqa: E402
from bide.train.float8_gather import gather_in_float8  # noqa: E402
from bide.train.recipe import s1  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
torch.set_num_threads(1)

CONFIG = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "use_cache": False,
}  # fmt: skip
LINEAR = 2 * 7


class Sample(NamedTuple):
    token_ids: list[int]
    loss: tuple[tuple[int, int], ...]


def samples() -> dict[int, Sample]:
    draw = random.Random(0)
    return {i: Sample([draw.randrange(64) for _ in range(9 + 5 * i)], ((3, 9 + 5 * i),)) for i in range(8)}


def assembled(world: Any, *, compiled: bool = False, **changes: Any) -> Any:
    recipe = s1().with_(**{"weights": "bf16", "moments": "int8", "float8": "tensorwise", **changes})
    return trainee.assemble(
        transformers.Qwen2Config(**CONFIG),
        recipe,
        world,
        weights=None,
        recomputed="attention,matmuls:1",
        compiled=compiled,
    )


def trained(made: Any, world: Any, steps: int = 3) -> list[Any]:
    """Losses and norms of some steps of two passes, and the weights behind them. The rate moves the largest weights, so
    that each step has scales of its own."""
    found: list[Any] = []
    for _ in range(steps):
        for pack in ([world.rank, world.rank + 2], [world.rank + 4]):
            total, sums = made.compute(make_batch(pack, samples(), dict.fromkeys(range(8), 0.01), world.device))
            found += [float(total), *sums.tolist()]
        norm = made.gradient_norm()
        found.append(float(norm))
        made.update(1e-2, norm, 1.0)
    return [found, *(sharding.whole(p.detach()).clone() for p in made.model.parameters())]


def rounded_later(*_: Any, **__: Any) -> None:
    """In place of `gather_in_float8`."""


def assert_alike(world: Any, **settings: Any) -> None:
    made = assembled(world, **settings)
    assert made.facts["gathered_in_float8"] == LINEAR
    found = trained(made, world)
    layers = [module for module in made.model.modules() if isinstance(module, Float8Linear)]
    for layer in layers:
        assert layer.rounded is not None and layer.rounded[0].dtype is torch.float8_e4m3fn
        assert layer.rounded[0].untyped_storage().size() == 0, "gathered weights are freed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainee, "gather_in_float8", rounded_later)
        plain = assembled(world, **settings)
    assert plain.facts["gathered_in_float8"] == 0
    expected = trained(plain, world)
    assert found[0] == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(found[1:], expected[1:], strict=True))
    start, end = expected[0][0], expected[0][-4]
    assert end != start, "nothing was trained"


@pytest.mark.parametrize("weights", ["bf16", "fp32"])
def test_training_is_the_same_to_the_bit(weights: str) -> None:
    with sharding.start_world("cpu") as world:
        assert_alike(world, weights=weights)


def test_compiled_too_and_no_layer_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_ = recompute._compiled
    monkeypatch.setattr(recompute, "_compiled", lambda name, _, random: compile_(name, "aot_eager", random))
    with sharding.start_world("cpu") as world:
        assert_alike(world, compiled=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * 2, "a policy, rounded before or after"


def in_two_processes(rank: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with sharding.start_world("cpu") as world:
        assert_alike(world)


def test_processes_agree_on_scales() -> None:
    """Each has half of the rows, and the largest number is in one half."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(in_two_processes, args=(port,), nprocs=2)


def test_weights_that_were_read_are_measured_again() -> None:
    with sharding.start_world("cpu") as world:
        made, other = assembled(world), assembled(world, seed=1)
        trained(made, world, steps=1)
        with torch.no_grad():
            for mine, theirs in zip(made.model.parameters(), other.model.parameters()):
                sharding.local_part(mine).copy_(3 * sharding.local_part(theirs))
                sharding.local_part(theirs).mul_(3)
        made.weights_changed()
        batch = partial(make_batch, [0, 1], samples(), dict.fromkeys(range(8), 0.01), world.device)
        assert made.compute(batch())[0] == other.compute(batch())[0]


@pytest.mark.parametrize(
    ("float8", "processes", "gathered"), [("tensorwise", 4, LINEAR), ("tensorwise", 3, 2 * 2), ("rowwise", 4, 0)]
)
def test_what_is_gathered_in_8_bits(float8: str, processes: int, gathered: int) -> None:
    """Not what has a scale for each row and each column, and not where some process has fewer rows: of these layers
    only gate and up have a number of rows that three can share."""
    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (processes,))
        world = sharding.World(0, processes, torch.device("cpu"), mesh)
        made = assembled(world, float8=float8)
        assert made.facts["gathered_in_float8"] == gathered
        assert len(gather_in_float8([], world, compute=torch.bfloat16)) == 0
    finally:
        dist.destroy_process_group()
