"""Linear layers in float8, as this machine emulates them, against float32 and against roundings made by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from bide.errors import UsageError  # noqa: E402
from bide.train import float8, recompute  # noqa: E402
from bide.train.float8 import RECIPES, Float8Linear, use_float8  # noqa: E402

torch.set_num_threads(1)


def block(bias: bool = True) -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(64, 128, bias=bias), torch.nn.SiLU(), torch.nn.Linear(128, 64, bias=False)
    )


def results(model: Any, x: Any, gradient: Any) -> list[Any]:
    model.zero_grad()
    given = x.detach().clone().requires_grad_()
    output = model(given)
    output.backward(gradient)
    return [output.detach(), given.grad, *(p.grad.clone() for p in model.parameters())]


def off(found: list[Any], expected: list[Any]) -> list[float]:
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected)]


@pytest.mark.parametrize(("recipe", "most"), [("tensorwise", 0.1), ("rowwise", 0.07)])
def test_values_and_gradients_are_near_those_of_float32(recipe: str, most: float) -> None:
    plain = block()
    model = copy.deepcopy(plain)
    assert use_float8(model, recipe) == ["0", "2"]
    assert all(p is q or torch.equal(p, q) for p, q in zip(plain.parameters(), model.parameters()))
    assert plain.state_dict().keys() == model.state_dict().keys()
    x, gradient = torch.randn(2, 16, 64), torch.randn(2, 16, 64)
    errors = off(results(model, x, gradient), results(plain, x, gradient))
    assert max(errors) < most, errors
    assert min(errors) > 1e-3, "nothing was rounded"


def test_one_matmul_by_hand() -> None:
    """With 448, the largest of the type, among the numbers the scale is 1, and each is rounded as e4m3 has it: 3 bits
    behind the first. 17 lies between 16 and 18 (to even: 16), -0.3 between -0.3125 and -0.28125."""
    layer = torch.nn.Linear(16, 16, bias=False)
    torch.nn.init.eye_(layer.weight)
    use_float8(torch.nn.ModuleList([layer]), "tensorwise")
    x = torch.zeros(16, 16)
    x[0, :4] = torch.tensor([448.0, 2.0**-4, 17.0, -0.3])
    found = layer(x)[0, :4]
    by_hand = torch.tensor([448.0, 2.0**-4, 16.0, -0.3125])
    torch.testing.assert_close(found, by_hand, rtol=1e-6, atol=0)


def test_rows_of_their_own_scale_survive_an_outlier() -> None:
    """A row a million times larger than the others: one scale for all rounds them to nothing, their own does not."""
    torch.manual_seed(0)
    x = torch.randn(16, 64)
    x[0] *= 1e6
    errors = {}
    for recipe in RECIPES:
        layer = torch.nn.Linear(64, 32, bias=False)
        expected = layer(x)[1:]
        use_float8(torch.nn.ModuleList([layer]), recipe)
        errors[recipe] = float(((layer(x)[1:] - expected).norm() / expected.norm()).detach())
    assert errors["rowwise"] < 0.06 < 0.9 < errors["tensorwise"]


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_kernel_is_called_as_it_wants_to_be(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types, layouts, scales and their directions, for all three matmuls: what a GPU would refuse fails here."""
    called = []

    def scaled_mm(a: Any, b: Any, a_scale: Any, b_scale: Any, *, out_dtype: Any, use_fast_accum: bool) -> Any:
        assert a.is_contiguous() and b.T.is_contiguous() and a.shape[1] == b.shape[0]
        assert not any(side % 16 for side in (*a.shape, *b.shape))
        assert b.dtype is torch.float8_e4m3fn and a_scale.dtype is b_scale.dtype is torch.float32
        if recipe == "rowwise":
            assert a_scale.shape == (a.shape[0], 1) and b_scale.shape == (1, b.shape[1])
            assert a_scale.is_contiguous() and b_scale.is_contiguous()
        else:
            assert a_scale.numel() == b_scale.numel() == 1
        called.append((tuple(a.shape), b.shape[1], a.dtype))
        return ((a.float() @ b.float()) * a_scale * b_scale).to(out_dtype)

    emulated, model = block(bias=False), block(bias=False)
    use_float8(emulated, recipe)
    use_float8(model, recipe)
    x, gradient = torch.randn(32, 64), torch.randn(32, 64)
    expected = results(emulated, x, gradient)
    monkeypatch.setattr(float8, "_multiply", float8._multiply_on_cuda)
    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    torch.testing.assert_close(results(model, x, gradient), expected, rtol=1e-5, atol=1e-6)
    back = torch.float8_e5m2 if recipe == "tensorwise" else torch.float8_e4m3fn
    assert called == [
        ((32, 64), 128, torch.float8_e4m3fn),
        ((32, 128), 64, torch.float8_e4m3fn),
        ((32, 64), 128, back),
        ((64, 32), 128, back),
        ((32, 128), 64, back),
        ((128, 32), 64, back),
    ]


@pytest.mark.filterwarnings("ignore")
def test_compiled_and_checkpointed_layers_in_float8() -> None:
    """As a training runs them: a decoder layer with packed attention, recomputed, compiled, shapes that vary."""
    transformers = pytest.importorskip("transformers")
    from bide.train.attention import Documents, register
    from bide.train.recompute import wrap_layers

    torch._dynamo.reset()

    def tiny() -> Any:
        torch.manual_seed(0)
        config = transformers.Qwen2Config(
            vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8,
        )  # fmt: skip
        made = transformers.Qwen2ForCausalLM._from_config(config, attn_implementation=register()).train()
        assert len(use_float8(made)) == 14 and not isinstance(made.lm_head, Float8Linear)
        return made

    eager, compiled = tiny(), tiny()
    wrap_layers(compiled.model.layers, "matmuls", compiled=True, backend="aot_eager")
    for lengths, row in (([9, 20], 32), ([40, 3], 48)):
        documents, ids = Documents.make(lengths, row=row), torch.arange(row)[None]
        for model in (eager, compiled):
            model.model(input_ids=ids, use_cache=False, **documents.arguments()).last_hidden_state[
                ..., 0
            ].sum().backward()
    for (name, a), b in zip(eager.model.named_parameters(), compiled.model.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-2, atol=2e-2 * float(a.grad.abs().max()), msg=name)


@pytest.fixture
def kernels_chosen_as_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inductor compiles for the host, but weighs as for a GPU whether sums along rows and along columns are to be one
    kernel, with the guards that this leaves. Such kernels are not made, and no kernel is run."""
    from torch._inductor import scheduler
    from torch._inductor.codecache import PyCodeCache

    from without_kernels import skip_kernels

    node, fusion = scheduler.BaseSchedulerNode, scheduler.MixOrderReduction
    weigh = fusion.can_fuse

    def can_fuse(*nodes: Any) -> bool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(node, "is_gpu", lambda _: True)
            patch.setattr(node, "get_device", lambda _: torch.device("cuda", 0))
            weigh(*nodes)
        return False

    monkeypatch.setattr(fusion, "can_fuse", can_fuse)
    skip_kernels(monkeypatch)
    recompute._COMPILED.clear()
    torch._dynamo.reset()
    with torch._inductor.config.patch({"fx_graph_cache": False, "triton.mix_order_reduction": True}):
        yield
    recompute._COMPILED.clear()
    torch._dynamo.reset()
    PyCodeCache.cache_clear()


def compiles_once(recipe: str, rows: Sequence[int], backend: str, **shape: int) -> None:
    """One layer on tensors without memory, in float8 or ("") not."""
    transformers = pytest.importorskip("transformers")
    from torch._subclasses.fake_tensor import FakeTensorMode

    from bide.train.attention import Documents, register

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with FakeTensorMode(allow_non_fake_inputs=True):
        config = transformers.Qwen2Config(vocab_size=64, num_hidden_layers=1, num_key_value_heads=2, **shape)
        model = transformers.Qwen2ForCausalLM._from_config(config, attn_implementation=register()).train()
        if recipe:
            use_float8(model, recipe)
        recompute.wrap_layers(model.model.layers, "attention", compiled=True, backend=backend)
        for row in rows:
            documents, ids = Documents.make([row - 9], row=row), torch.zeros(1, row, dtype=torch.int64)
            model.model(input_ids=ids, use_cache=False, **documents.arguments()).last_hidden_state.sum().backward()
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1, f"again for {row} tokens"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("recipe", ["", *RECIPES])
def test_the_choice_of_kernels_compiles_no_layer_again(recipe: str, kernels_chosen_as_for_a_gpu: None) -> None:
    """On 4 GPUs each pack of under 5,120 tokens, the first of its kind, took half a minute in the midst of training."""
    shape = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 8}
    compiles_once(recipe, (7680, 4992, 20_608), "inductor", **shape)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("recipe", "first"), [("", 256), ("tensorwise", 256), ("rowwise", 64)])
def test_a_first_row_as_long_as_the_model_is_wide_is_no_exception(recipe: str, first: int) -> None:
    """As its hidden states, or a head: the compiler takes sizes that are equal for one."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    compiles_once(recipe, (first, 96, 256, 64, 512), "aot_eager", **shape)


def test_what_cannot_be_multiplied_in_float8() -> None:
    with pytest.raises(UsageError, match="unknown float8"):
        use_float8(block(), "row")
    with pytest.raises(UsageError, match="multiples of 16"):
        use_float8(torch.nn.Sequential(torch.nn.Linear(10, 10)))
    model = block()
    use_float8(model, skip=("2",))
    assert type(model[2]) is torch.nn.Linear
    with pytest.raises(UsageError, match="multiple of 16 tokens, not 7"):
        model(torch.randn(7, 64))
    zeros = model[0](torch.zeros(16, 64))
    torch.testing.assert_close(zeros, model[0].bias.expand(16, -1))
