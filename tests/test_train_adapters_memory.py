"""Memory of layers under adapters that are not compiled: the forecast against a step that runs, whose tensors are
counted; in 4 bits on bitsandbytes' own layers."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from bide.train import recompute_policies, trainee  # noqa: E402
from bide.train.batches import make_batch  # noqa: E402
from bide.train.lora import is_adapter  # noqa: E402
from bide.train.memory import GIB, memory, state_bytes  # noqa: E402
from bide.train.recipe import s1  # noqa: E402
from bide.train.shapes import ModelShape  # noqa: E402
from bide.train.sharding import start_world  # noqa: E402
from train_runs import QUIET  # noqa: E402

pytestmark = QUIET
torch.set_num_threads(1)
SHAPE = ModelShape("small", 4, 128, 2, 1, 64, 704, 64, False)
"""In the proportions of a 32B, of few words: the loss is no peak."""
TOKENS = 1024
RESIZE = torch.UntypedStorage.resize_


class Sample:
    token_ids = tuple(place % 60 for place in range(TOKENS))
    loss = ((64, TOKENS),)


class Counter(TorchDispatchMode):
    """Bytes of the storages of all tensors that it has seen and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.sizes: dict[int, int] = {}

    def see(self, tensor: Any) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            weakref.finalize(storage, self.forget, storage._cdata)

    def resize(self, storage: Any, size: int) -> None:
        RESIZE(storage, size)
        if storage._cdata in self.sizes:
            self.now += storage.nbytes() - self.sizes[storage._cdata]
            self.sizes[storage._cdata] = storage.nbytes()

    def forget(self, storage: int) -> None:
        self.now -= self.sizes.pop(storage)

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = operator(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor)
        self.peak = max(self.peak, self.now)
        return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("model")
    config = transformers.Qwen2Config(
        vocab_size=SHAPE.vocab, hidden_size=SHAPE.hidden, intermediate_size=SHAPE.intermediate,
        num_hidden_layers=SHAPE.layers, num_attention_heads=SHAPE.heads, num_key_value_heads=SHAPE.kv_heads,
        tie_word_embeddings=False,
    )  # fmt: skip
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(directory)
    return config, directory


def tensors_of(model: Any) -> list[Any]:
    """All that a model holds, the scales of its 4-bit matrices too."""
    found = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            found += [state.absmax, state.state2.absmax]  # not the tables, a kilobyte of each matrix
    return found


@pytest.mark.parametrize("dropout", [0.0, 0.05])
@pytest.mark.parametrize("bits", [4, 16])
@pytest.mark.parametrize("choice", ["full", "attention", "matmuls", "none"])
def test_a_step_takes_what_was_forecast(
    choice: str, bits: int, dropout: float, model: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if bits == 4:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config, directory = model
    monkeypatch.setitem(trainee.COMPUTE, "cpu", torch.bfloat16)
    recipe = s1().with_(lora_rank=2, quantized_base=bits == 4, compile=False, moments="bf16", lora_dropout=dropout)
    with start_world("cpu") as world:
        made = trainee.assemble(config, recipe, world, weights=directory, recomputed=choice)
        counter = Counter()
        # FSDP frees by this what it has gathered.
        monkeypatch.setattr(torch.UntypedStorage, "resize_", lambda storage, size: counter.resize(storage, size))
        for tensor in tensors_of(made.model):
            counter.see(tensor)
        frozen = counter.now - sum(p.nbytes for name, p in made.model.named_parameters() if is_adapter(name))
        assert frozen == pytest.approx(state_bytes(SHAPE, recipe)["frozen weights"], rel=0.01)
        for _ in range(2):  # the second one has moments
            with counter:
                counter.peak = counter.now
                for _ in range(2):
                    made.compute(make_batch([0], [Sample()], {0: 1.0}, world.device))
                made.update(1e-5, made.gradient_norm(), 1.0)
    monkeypatch.setattr(recompute_policies, "MASK", 1.0)  # a CPU's is of the layer's own type
    told = memory(SHAPE, recipe, 1, tokens=TOKENS, later=TOKENS, recompute=choice)
    assert counter.peak == pytest.approx(told.allocated, rel=0.04), (told.moment, told.parts)
    assert counter.peak < GIB


def test_adapters_compute_in_the_models_type(model: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept in fp32; what comes in is not copied to it. peft's own way, with casts, adds more exactly."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config, directory = model
    monkeypatch.setitem(trainee.COMPUTE, "cpu", torch.bfloat16)
    recipe = s1().with_(lora_rank=16, quantized_base=True, lora_alpha=32)
    with start_world("cpu") as world:
        made = trainee.assemble(config, recipe, world, weights=directory, recomputed="none")
        layer = made.model.model.layers[0].mlp.gate_proj
        with torch.no_grad():
            layer.lora_B["default"].weight.normal_()
        x = torch.randn(32, SHAPE.hidden, dtype=torch.bfloat16)
        found = layer(x)
        found.sum().backward()
        a, b = (getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B"))
        expected = layer.base_layer(x).float() + 2.0 * (x.float() @ a.T) @ b.T
        assert found.dtype is torch.bfloat16 and a.dtype is a.grad.dtype is torch.float32
        assert float((found.float() - expected).norm() / expected.norm()) < 0.01
        of_b = 2.0 * (x.float() @ a.T).sum(0).expand_as(b)
        assert float((b.grad - of_b).norm() / of_b.norm()) < 0.02
