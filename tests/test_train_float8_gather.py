"""Weights gathered in 8 bits against the same trainings whose weights are rounded after they were gathered."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import socket
import weakref
from collections.abc import Callable, Iterator
from functools import partial, wraps
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
from bide.train.float8_gather import Float8Gather, _Weight  # noqa: E402
from bide.train.gpus import parse_machine  # noqa: E402
from bide.train.memory import gathered_bytes  # noqa: E402
from bide.train.pace import seconds_per_step  # noqa: E402
from bide.train.plan import Plan  # noqa: E402
from bide.train.recipe import s1  # noqa: E402
from bide.train.shapes import SHAPES, ModelShape  # noqa: E402
from bide.train.shares import share  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
torch.set_num_threads(1)

CONFIG = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "use_cache": False,
}  # fmt: skip
LINEAR = 2 * 7


SHAPE = ModelShape("tiny", 2, 32, 4, 2, 8, 48, 64, False)
"""The same."""


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


def rounded_later(*_: Any, **__: Any) -> Float8Gather:
    """In place of `gather_in_float8`."""
    return Float8Gather([], None, torch.float32)


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
@pytest.mark.parametrize("compute", ["bfloat16", "float32"])
def test_training_is_the_same_to_the_bit(compute: str, weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As layers compute on a GPU, and as they do on a CPU."""
    monkeypatch.setitem(trainee.COMPUTE, "cpu", getattr(torch, compute))
    with sharding.start_world("cpu") as world:
        assert_alike(world, weights=weights)


def test_a_model_that_is_dropped_is_gone() -> None:
    with sharding.start_world("cpu") as world:
        made = assembled(world)
        trained(made, world, steps=1)
        layer = weakref.ref(next(m for m in made.model.modules() if isinstance(m, Float8Linear)))
        del made
        gc.collect()
        assert layer() is None


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


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Any]]:
    """The first of so many processes, of which there is no other."""

    def start(processes: int) -> Any:
        dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
        return sharding.World(0, processes, torch.device("cpu"), init_device_mesh("cpu", (processes,)))

    yield start
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("float8", "processes", "gathered"), [("tensorwise", 4, LINEAR), ("tensorwise", 3, 2 * 2), ("rowwise", 4, 0)]
)
def test_what_is_gathered_in_8_bits(
    float8: str, processes: int, gathered: int, pretended: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what has a scale for each row and each column, and not where some process has fewer rows: of these layers
    only gate and up have a number of rows that three can share. The forecast knows it."""
    monkeypatch.setitem(trainee.COMPUTE, "cpu", torch.bfloat16)
    made = assembled(pretended(processes), float8=float8)
    assert made.facts["gathered_in_float8"] == gathered
    bytes_ = sum(
        p.numel() * (1 if hasattr(p._local_tensor, "fsdp_pre_all_gather") else 2)
        for p in sharding.decoder_layers(made.model)[0].parameters()
    )
    assert gathered_bytes(SHAPE, s1().with_(float8=float8), processes) == bytes_


def test_a_forecast_knows_that_less_is_gathered() -> None:
    """Of steps so short that links decide how long they take."""
    recipe = s1().with_(weights="bf16", moments="int8")
    plan = {
        kind: Plan.make([16] * 16, recipe.with_(float8=kind, epochs=1), SHAPES["qwen2.5-32b"], loss_lengths=[8] * 16)
        for kind in ("tensorwise", "rowwise")
    }
    machine = parse_machine("h200:4")
    seconds = {kind: seconds_per_step(one, machine, share(one, 4, 128), "full") for kind, one in plan.items()}
    shape = SHAPES["qwen2.5-32b"]
    less = 2 * shape.layers * shape.layer_matmul_parameters * 3 / 4 / (machine.link_gb_per_second * 1e9)
    assert seconds["rowwise"] - seconds["tensorwise"] == pytest.approx(less, rel=1e-3)


class Stream:
    """What of all streams' work is done before its own next: a vector clock."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.seen = {self: 0}

    def now(self) -> dict[Stream, int]:
        self.seen[self] += 1
        return dict(self.seen)

    def wait_for(self, seen: dict[Stream, int]) -> None:
        self.seen = {one: max(self.seen.get(one, 0), seen.get(one, 0)) for one in {*self.seen, *seen}}

    def wait_stream(self, other: Stream) -> None:
        self.wait_for(other.now())

    def record_event(self, event: Event | None = None) -> Event:
        return (event or Event()).record(self)

    def wait_event(self, event: Event) -> None:
        self.wait_for(event.seen)


class Streams:
    """What FSDP asks of a kind of device, for one that does nothing."""

    Stream = Stream

    def __init__(self) -> None:
        self.current = [Stream()]
        self.Event = type("Event", (Event,), {"streams": self})

    def current_stream(self, *_: Any) -> Stream:
        return self.current[-1]

    def current_device(self) -> int:
        return 0

    @contextlib.contextmanager
    def stream(self, one: Stream) -> Iterator[None]:
        self.current.append(one)
        yield
        self.current.pop()


class Event:
    streams: Streams

    def __init__(self, *_: Any, **__: Any) -> None:
        self.seen: dict[Stream, int] = {}

    def record(self, stream: Stream | None = None) -> Event:
        self.seen = (stream or self.streams.current_stream()).now()
        return self

    def wait(self, *_: Any) -> None:
        self.streams.current_stream().wait_event(self)

    def synchronize(self) -> None: ...


@pytest.mark.parametrize("tied", [False, True])
def test_no_stream_rounds_weights_before_their_scales_are_there(
    tied: bool, pretended: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU what is gathered ahead is rounded on another stream than the one that measures."""
    streams, rounded = Streams(), []
    places = ("_fsdp_collectives", "_fsdp_param_group", "_fsdp_state", "_fsdp_init")
    for place in places:
        module = importlib.import_module(f"torch.distributed.fsdp._fully_shard.{place}")
        monkeypatch.setattr(module, "_get_device_handle", lambda *_: streams, raising=place != "_fsdp_init")
    measured: dict[Stream, int] = {}
    measure, before = Float8Gather.measure, _Weight.before

    def noted(self: Float8Gather) -> None:
        if not self._measured:
            stream = streams.current_stream()
            measured.clear()
            measured[stream] = stream.now()[stream]
        measure(self)

    @wraps(before)  # FSDP counts the parameters
    def checked(self: _Weight, *given: Any) -> Any:
        stream = streams.current_stream()
        rounded.append((stream, all(stream.seen.get(one, 0) >= when for one, when in measured.items())))
        return before(self, *given)

    monkeypatch.setattr(Float8Gather, "measure", noted)
    monkeypatch.setattr(_Weight, "before", checked)
    monkeypatch.setitem(CONFIG, "tie_word_embeddings", tied)
    world = pretended(2)
    made = assembled(world)
    for _ in range(2):
        for pack in ([0, 2], [4]):
            made.compute(make_batch(pack, samples(), dict.fromkeys(range(8), 0.01), world.device))
        made.optimizer.zero_grad()
        made.weights_changed()
    assert len(rounded) == 2 * 2 * 2 * LINEAR, "steps, passes, forward and backward"
    assert streams.current[0] not in dict(rounded), "FSDP gathers on streams of its own"
    assert all(known for _, known in rounded)
