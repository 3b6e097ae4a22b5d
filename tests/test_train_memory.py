"""The forecast of memory against what a step of the trainer allocates: FSDP on one of several GPUs, compiled layers and
all, on tensors that have sizes and no memory, and whose kernels do nothing."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch.distributed as dist  # noqa: E402
from torch._inductor.codecache import PyCodeCache  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from bide.train import recompute, trainee  # noqa: E402
from bide.train.batches import make_batch  # noqa: E402
from bide.train.float8_gather import Float8Gather  # noqa: E402
from bide.train.memory import memory  # noqa: E402
from bide.train.optimizer import AdamW  # noqa: E402
from bide.train.recipe import TrainRecipe, s1  # noqa: E402
from bide.train.shapes import ModelShape  # noqa: E402
from bide.train.sharding import World  # noqa: E402
from without_kernels import skip_kernels  # noqa: E402

SMALL = ModelShape("small", 6, 256, 4, 2, 64, 1408, 64, False)
"""Widths in the proportions of the 32B; so few words that the loss, which a CPU computes otherwise, is no peak."""
TOKENS = 2048
RESIZE = torch.UntypedStorage.resize_

pytestmark = pytest.mark.filterwarnings("ignore")


class Sample:
    def __init__(self, tokens: int) -> None:
        self.token_ids = range(tokens)
        self.loss = ((64, tokens),)


class Tracker(TorchDispatchMode):
    """Counts the bytes of all storages that tensors of `mode` have."""

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # or nothing would be compiled

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode, self.now, self.peak = mode, 0, 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operator(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and getattr(tensor, "fake_mode", None) is self.mode:
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = 0
                    weakref.finalize(storage, self.forget, storage._cdata)
                self.resized(storage)
        return made

    def resize(self, storage: Any, size: int) -> None:
        RESIZE(storage, size)
        self.resized(storage)

    def resized(self, storage: Any) -> None:
        if storage._cdata in self.sizes:
            self.now += storage.nbytes() - self.sizes[storage._cdata]
            self.sizes[storage._cdata] = storage.nbytes()
            self.peak = max(self.peak, self.now)

    def forget(self, storage: int) -> None:
        self.now -= self.sizes.pop(storage)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiled code allocates and frees as it would, and computes nothing. Layers compute in bf16, as on a GPU."""
    skip_kernels(monkeypatch)
    monkeypatch.setitem(trainee.COMPUTE, "cpu", torch.bfloat16)
    monkeypatch.setattr(trainee, "randomise", lambda *_: None)
    state_of = AdamW.state_of
    monkeypatch.setattr(AdamW, "state_of", lambda self, p: count_steps(state_of(self, p)))
    recompute._COMPILED.clear()
    torch._dynamo.reset()
    with torch._inductor.config.patch("fx_graph_cache", False):  # that of others, and what is made here for others
        yield
    recompute._COMPILED.clear()
    torch._dynamo.reset()
    PyCodeCache.cache_clear()
    dist.destroy_process_group()


def count_steps(state: dict[str, Any]) -> dict[str, Any]:
    """A tensor without memory has no number of steps."""
    if isinstance(state["step"], torch.Tensor):
        state["step"] = 0
    return state


def peak_of_a_step(
    shape: ModelShape, recipe: TrainRecipe, gpus: int, choice: str, passes: int, tokens: int = TOKENS
) -> int:
    """Of the second one, when the moments are there."""
    import transformers

    dist.init_process_group("fake", rank=0, world_size=gpus, store=FakeStore())
    config = transformers.Qwen2Config(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )  # fmt: skip
    world = World(0, gpus, torch.device("cpu"), init_device_mesh("cpu", (gpus,)))
    with (
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        Tracker(mode) as tracker,
        pytest.MonkeyPatch.context() as patch,
    ):
        # FSDP frees by this what it has gathered.
        patch.setattr(torch.UntypedStorage, "resize_", lambda storage, size: tracker.resize(storage, size))
        made = trainee.assemble(config, recipe, world, weights=None, recomputed=choice, compiled=recipe.compile)
        for _ in range(2):
            tracker.peak = tracker.now
            for _ in range(passes):
                made.compute(make_batch([0], [Sample(tokens)], {0: 1.0}, world.device))
            made.update(1e-5, made.gradient_norm(), 1.0)
    return tracker.peak


@pytest.mark.parametrize(
    ("choice", "gpus", "passes", "changes"),
    [
        ("full,matmuls:2", 4, 1, {"weights": "fp32"}),
        ("full", 4, 1, {"compile": False}),
        ("attention", 1, 2, {"compile": False}),
        ("matmuls", 4, 2, {"compile": False}),
        ("none", 8, 1, {"compile": False}),
    ],
)
def test_a_step_takes_what_was_forecast(
    without_kernels: None, choice: str, gpus: int, passes: int, changes: dict[str, Any]
) -> None:
    recipe = s1().with_(**{"weights": "bf16", "moments": "bf16", **changes})
    told = memory(SMALL, recipe, gpus, tokens=TOKENS, recompute=choice, later=TOKENS if passes > 1 else 0)
    found = peak_of_a_step(SMALL, recipe, gpus, choice, passes)
    assert found == pytest.approx(told.allocated, rel=0.04), (told.moment, told.parts)


@pytest.mark.parametrize("reduce", ["fp32", "bf16"])
def test_the_type_of_sums_counts(without_kernels: None, reduce: str) -> None:
    """In short packs, whose peak is a layer's gradients: 9 % between the two."""
    recipe = s1().with_(weights="bf16", moments="bf16", compile=False, reduce=reduce)
    told = memory(SMALL, recipe, 4, tokens=256, later=256, recompute="attention")
    found = peak_of_a_step(SMALL, recipe, 4, "attention", 2, 256)
    assert found == pytest.approx(told.allocated, rel=0.03), (told.moment, told.parts)


def test_weights_that_are_gathered_in_8_bits_take_half_the_room(
    without_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the layer that computes, and of the next."""
    recipe = s1().with_(weights="bf16", moments="int8", compile=False, float8="tensorwise")
    told, found = [], []
    for kind in ("tensorwise", "rowwise"):
        of_kind = recipe.with_(float8=kind)
        told.append(memory(SMALL, of_kind, 4, tokens=256, later=256, recompute="attention").allocated)
    found.append(peak_of_a_step(SMALL, recipe, 4, "attention", 2, 256))
    dist.destroy_process_group()
    monkeypatch.setattr(trainee, "gather_in_float8", lambda *_, **__: Float8Gather([], None, torch.bfloat16))
    found.append(peak_of_a_step(SMALL, recipe, 4, "attention", 2, 256))
    assert found[1] - found[0] == pytest.approx(told[1] - told[0], rel=0.1)
    assert told[1] - told[0] == 2 * SMALL.layer_matmul_parameters
