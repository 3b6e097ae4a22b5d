"""Packed attention, its backward pass, checkpoints and compilation, against documents that stand alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from bide.errors import BideError, UsageError  # noqa: E402
from bide.train import attention, attention_backends, float8, recompute  # noqa: E402
from bide.train.attention import Documents, attend, documents_attention, prepare, register  # noqa: E402
from bide.train.recompute_policies import POLICIES, Widths, parse, recomputed_weights  # noqa: E402
from bide.train.self_test import SelfTestError, check_isolation  # noqa: E402
from bide.train.sharding import shard, start_world  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
torch.set_num_threads(1)
LENGTHS = (5, 9, 1, 7)
VOCABULARY = 96


def tiny(*, implementation: str = "", layers: int = 2, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            **changes,
        }
    )
    return transformers.Qwen2ForCausalLM._from_config(config, attn_implementation=implementation or register()).train()


def packed(model: Any, ids: Any, documents: Documents) -> Any:
    return model.model(input_ids=ids, use_cache=False, **documents.arguments()).last_hidden_state


def some_ids(tokens: int, seed: int = 1) -> Any:
    return torch.randint(VOCABULARY, (1, tokens), generator=torch.Generator().manual_seed(seed))


def of_parameters(model: Any) -> Any:
    return torch.cat([p.grad.flatten() for p in model.model.parameters()])


def test_documents_lie_where_their_lengths_say() -> None:
    documents = Documents.make([3, 2], row=8)
    assert documents.lengths == (3, 2, 3) and documents.row == 8
    assert documents.bounds.tolist() == [0, 3, 5] + [8] * (attention.SLOTS - 2)
    assert documents.sizes.tolist() == [3, 2, 3] + [0] * (attention.SLOTS - 3)
    assert documents.positions.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert len(Documents.make([1] * (attention.SLOTS + 1)).sizes) == 2 * attention.SLOTS


@pytest.mark.parametrize(("lengths", "row"), [([], None), ([3, 0], None), ([3, 4], 6)])
def test_documents_that_cannot_be(lengths: list[int], row: int | None) -> None:
    with pytest.raises(UsageError):
        Documents.make(lengths, row=row)


def test_the_formula_against_pytorchs_own_attention() -> None:
    """Values and gradients in double precision, grouped heads, a scale of its own."""
    torch.manual_seed(0)
    query = torch.randn(22, 6, 8, dtype=torch.float64, requires_grad=True)
    key, value = (torch.randn(22, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    documents = Documents.make(LENGTHS)
    gradient = torch.randn(22, 6, 8, dtype=torch.float64)
    mine = attend(query, key, value, documents.bounds, documents.sizes, 0.3, "plain")
    found = torch.autograd.grad(mine, [query, key, value], gradient)
    theirs, start = [], 0
    for length in LENGTHS:
        q, k, v = (x[start : start + length].transpose(0, 1)[None] for x in (query, key, value))
        one = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
        theirs.append(one[0].transpose(0, 1))
        start += length
    expected = torch.autograd.grad(torch.cat(theirs), [query, key, value], gradient)
    torch.testing.assert_close(mine, torch.cat(theirs))
    torch.testing.assert_close(found, expected)


def test_the_operator_keeps_its_promises_to_pytorch() -> None:
    """Schema, shapes under compilation with sizes that vary, autograd: PyTorch's own checks."""
    documents = Documents.make(LENGTHS)
    rows = [torch.randn(22, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    torch.library.opcheck(documents_attention, (*rows, documents.bounds, documents.sizes, 0.3, "plain"))


@pytest.mark.parametrize("tied", [False, True])
def test_a_packed_row_is_its_documents_alone(tied: bool) -> None:
    """Hidden states of each document, and the gradient of all weights as the sum over documents, in float32."""
    model, alone = tiny(tie_word_embeddings=tied), tiny(implementation="eager", tie_word_embeddings=tied)
    alone.load_state_dict(model.state_dict())
    ids, documents = some_ids(24), Documents.make(LENGTHS, row=24)
    weights = torch.randn(24, 32, generator=torch.Generator().manual_seed(2))
    hidden = packed(model, ids, documents)[0]
    (hidden * weights).sum().backward()
    start = 0
    for length in documents.lengths:
        here = slice(start, start + length)
        expected = alone.model(input_ids=ids[:, here]).last_hidden_state[0]
        torch.testing.assert_close(hidden[here], expected, rtol=0, atol=2e-6)
        (expected * weights[here]).sum().backward()
        start += length
    torch.testing.assert_close(of_parameters(model), of_parameters(alone), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("choice", "compiler"),
    [*((name, "") for name in (*POLICIES, "attention,matmuls:1")), ("attention,matmuls:1", "aot_eager")],
)
def test_recomputing_changes_no_gradient(choice: str, compiler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And attention runs a second time exactly where the policy says."""
    torch._dynamo.reset()
    runs = Counter[str]()
    forward = attention_backends.Plain.forward
    monkeypatch.setattr(attention_backends.Plain, "forward", lambda *a: (runs.update(["attention"]), forward(*a))[1])
    plain, wrapped = tiny(layers=3), tiny(layers=3)
    recompute.wrap_layers(wrapped.model.layers, choice, compiled=bool(compiler), backend=compiler or "inductor")
    assert plain.state_dict().keys() == wrapped.state_dict().keys()
    for lengths, row in ((LENGTHS, 24), ((3, 4), 32)):
        ids, documents = some_ids(row), Documents.make(lengths, row=row)
        packed(plain, ids, documents).square().sum().backward()
        runs.clear()
        packed(wrapped, ids, documents).square().sum().backward()
        assert runs["attention"] == 3 + sum(POLICIES[name].attention_again for name in parse(choice, 3))
        expected = of_parameters(plain)
        # In float32, whose sums some processors make in an order that depends on where numbers lie in memory.
        within = 2e-6 * float(expected.abs().max())
        torch.testing.assert_close(of_parameters(wrapped), expected, rtol=1e-4, atol=within)


def test_layers_share_one_compiled_graph() -> None:
    """Twelve layers and three row lengths: one graph, or a training on a GPU would spend its time compiling."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = tiny(layers=12)
    recompute.wrap_layers(model.model.layers, "attention", compiled=True, backend="aot_eager")
    for lengths, row in ((LENGTHS, 24), ((3, 4), 32), ((2,) * 20, 48)):
        packed(model, some_ids(row), Documents.make(lengths, row=row)).sum().backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_sharding_makes_nothing_but_tokens_and_places_dynamic() -> None:
    """Dynamo treats modules under `fully_shard` by rules of its own: a head's width became a size that may change."""
    torch._dynamo.reset()
    found = []

    def keep(graph: Any, _: Any) -> Any:
        found.append(graph.graph)
        return graph.forward

    with start_world("cpu") as world:
        model = tiny(layers=6)
        recompute.wrap_layers(model.model.layers, "attention", compiled=True, backend=keep)
        shard(model.model, model, world, compute=torch.float32)
        for lengths, row in ((LENGTHS, 40), ((3, 4), 56), ((2,) * 20, 72)):
            packed(model, some_ids(row), Documents.make(lengths, row=row)).sum().backward()
    assert len(found) == 1
    inputs = [node.meta["example_value"] for node in found[0].find_nodes(op="placeholder")]
    rows = [x.shape for x in inputs if isinstance(x, torch.Tensor) and x.dim() == 3]  # what layers pass on, cos, sin
    assert [(type(tokens), width) for _, tokens, width in rows] == [(torch.SymInt, n) for n in (32, 8, 8)]
    assert all(isinstance(size, int) for x in inputs if isinstance(x, torch.nn.Parameter) for size in x.shape)
    assert not any("head_dim" in node.name for node in found[0].nodes)
    assert all(x.dim() for x in inputs if isinstance(x, torch.Tensor)), "the epsilon of a norm is an input"


def graphs_of(choice: str, *, row: int = 24, in_float8: bool = False) -> tuple[Any, Any]:
    """The compiled forward and backward graphs of a layer."""
    from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
    from torch._dynamo.backends.common import aot_autograd

    torch._dynamo.reset()
    found = []

    def keep(graph: Any, _: Any) -> Any:
        found.append(graph.graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition)
    model = tiny(layers=1)
    if in_float8:
        float8.use_float8(model)
    recompute.wrap_layers(model.model.layers, choice, compiled=True, backend=backend)
    packed(model, some_ids(row), Documents.make(LENGTHS, row=row)).sum().backward()
    return found[0], found[1]


def numbers_kept(forward: Any, row: int) -> float:
    """For each token, beside the layer's input."""
    kept = [
        node.meta["val"]
        for node in forward.find_nodes(op="output")[0].args[0][1:]  # the first is what the layer puts out
        if isinstance(node, torch.fx.Node) and node.op != "placeholder" and "val" in node.meta
    ]
    return sum(int(x.numel()) for x in kept if isinstance(x, torch.Tensor) and x.dim()) / row


@pytest.mark.parametrize("choice", list(POLICIES))
def test_what_a_layer_keeps_and_recomputes_is_what_the_table_says(choice: str) -> None:
    """The memory plan and the forecast count with these numbers."""
    widths = Widths(hidden=32, query=32, key=16, intermediate=48)
    forward, backward = graphs_of(choice)
    numbers = numbers_kept(forward, 24)
    heads_and_norms = {"full": 0, "attention": 4, "matmuls": 4, "none": 4 + 2}[choice]  # too small for the table
    assert numbers - heads_and_norms == POLICIES[choice].kept(widths)
    operands = [
        [x.meta["val"] for x in node.args if isinstance(x, torch.fx.Node)][-2:]
        for node in backward.nodes
        if node.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    ]
    multiplied = sum(int(left.numel()) * int(right.shape[1]) for left, right in operands) / 24
    weights = 32 * 64 + 32 * 32 + 3 * 32 * 48
    assert multiplied - 2 * weights == recomputed_weights(choice, 1, widths)


@pytest.mark.parametrize("choice", ["full", "attention"])
def test_a_layer_in_float8_keeps_no_more(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11 does not recompute what an autograd.Function made unless it is told so operator by operator: 158 GiB
    of a 32B."""
    monkeypatch.setattr(float8, "_multiply", float8._multiply_on_cuda)
    forward, _ = graphs_of(choice, row=32, in_float8=True)
    assert numbers_kept(forward, 32) == {"full": 0, "attention": 4 + 32}[choice]


def test_choices_of_layers() -> None:
    assert parse("attention", 3) == ["attention"] * 3
    assert parse("attention,matmuls:1", 3) == ["attention", "attention", "matmuls"]
    assert parse("layers:2", 3) == ["full", "none", "none"]
    for wrong in ("", "most", "attention,matmuls", "attention,matmuls:4", "layers:x", "attention,:1"):
        with pytest.raises(UsageError):
            parse(wrong, 3)


def test_the_self_test_passes_packed_attention_and_catches_documents_that_see_each_other() -> None:
    model, leaky = tiny(), tiny(implementation="sdpa")
    check_isolation(lambda ids, documents: packed(model, ids, documents), vocabulary=VOCABULARY)

    def masked(ids: Any, documents: Documents) -> Any:  # the usual fault: an all-ones mask
        return leaky.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state

    with pytest.raises(SelfTestError, match="see each other"):
        check_isolation(masked, vocabulary=VOCABULARY)
    with pytest.raises(SelfTestError, match="look back"):
        check_isolation(lambda ids, _: model.model.embed_tokens(ids), vocabulary=VOCABULARY)
    with pytest.raises(SelfTestError, match="finite"):
        check_isolation(lambda ids, _: ids / 0, vocabulary=VOCABULARY)


def test_what_packed_attention_cannot_do_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown attention backend 'plan'"):
        register("plan")
    with pytest.raises(UsageError, match="bounds"):
        tiny().model(input_ids=some_ids(4))
    documents = Documents.make([4])
    with pytest.raises(UsageError, match="dropout"):
        packed(tiny(attention_dropout=0.1), some_ids(4), documents)
    with pytest.raises(UsageError, match="sliding"):
        packed(tiny(use_sliding_window=True, sliding_window=2, max_window_layers=0), some_ids(4), documents)
    with pytest.raises(BideError, match="one row"):
        tiny().model(input_ids=some_ids(4).repeat(2, 1), use_cache=False, **documents.arguments())


def pretend_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """PyTorch's CUDA operators that the backends call, computed by the formula and held to their rules on this CPU."""
    called: list[tuple[Any, ...]] = []
    plain = attention_backends.Plain()

    def flash(q: Any, k: Any, v: Any, bounds: Any, same: Any, longest: int, *rest: Any, scale: float) -> Any:
        assert rest == (longest, 0.0, True, False) and same is bounds and all(x.stride(-1) == 1 for x in (q, k, v))
        called.append((tuple(q.shape), tuple(k.shape), bounds.tolist(), longest))
        return (*plain.forward(q, k, v, bounds, bounds.diff().tolist(), scale), None, None, None)

    def flash_back(g: Any, q: Any, k: Any, v: Any, o: Any, sums: Any, bounds: Any, *rest: Any, scale: float) -> Any:
        assert g.is_contiguous() and rest[1:5] == (max(bounds.diff().tolist()),) * 2 + (0.0, True)
        return plain.backward(g, q, k, v, o, sums, bounds, bounds.diff().tolist(), scale)

    def rows(x: Any) -> Any:
        assert x.dim() == 4 and x.shape[0] == 1 and x.transpose(1, 2).is_contiguous()
        return x[0].transpose(0, 1)

    def cudnn(q: Any, k: Any, v: Any, *rest: Any, scale: float) -> Any:
        assert rest == (None, True, 0.0, True, False) and q.shape[2] % attention_backends.PLAN_STEP == 0
        called.append((tuple(q.shape), tuple(k.shape)))
        output, sums = plain.forward(rows(q), rows(k), rows(v), q, [q.shape[2]], scale)
        return output.transpose(0, 1)[None], sums[None, :, :, None]

    def cudnn_back(g: Any, q: Any, k: Any, v: Any, o: Any, sums: Any, *rest: Any, scale: float) -> Any:
        length = q.shape[2]
        assert rest[2:] == (None, None, None, length, length, 0.0, True) and sums.shape == (*q.shape[:3], 1)
        padding = sums[0, 0, :, 0] == attention_backends.FAR
        assert not rows(g)[padding].any() and rows(q)[~padding].any(-1).all()
        query, key, value, gradient, output = map(rows, (q, k, v, g, o))
        times = query.shape[1] // key.shape[1]
        wide_key, wide_value = (x.repeat_interleave(times, dim=1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query, wide_key) * scale
        chances = (scores - sums[0]).exp().tril()  # from the sums that were kept, as the kernel does it
        of_chances = torch.einsum("qhd,khd->hqk", gradient, wide_value)
        of_scores = chances * (of_chances - (gradient * output).sum(-1).T[:, :, None]) * scale
        of_key = torch.einsum("hqk,qhd->khd", of_scores, query).unflatten(1, (-1, times)).sum(2)
        of_value = torch.einsum("hqk,qhd->khd", chances, gradient).unflatten(1, (-1, times)).sum(2)
        of_query = torch.einsum("hqk,khd->qhd", of_scores, wide_key)
        return tuple(x.transpose(0, 1)[None] for x in (of_query, of_key, of_value))

    pretended = {
        "_flash_attention_forward": flash,
        "_flash_attention_backward": flash_back,
        "_scaled_dot_product_cudnn_attention": cudnn,
        "_scaled_dot_product_cudnn_attention_backward": cudnn_back,
    }
    for name, function in pretended.items():
        schema = getattr(torch.ops.aten, name).default._schema
        monkeypatch.setattr(attention_backends, f"_{name.strip('_')}", checked(schema, function), raising=True)
    return called


def checked(schema: Any, function: Any) -> Any:
    """`function`, after PyTorch's own schema has taken the arguments."""

    def call(*values: Any, **named: Any) -> Any:
        positional = [argument for argument in schema.arguments if not argument.kwarg_only]
        assert len(values) <= len(positional) and named.keys() <= {a.name for a in schema.arguments}
        missing = [a.name for a in positional[len(values) :] if not a.has_default_value() and a.name not in named]
        assert not missing, missing
        return function(*values, **named)

    return call


@pytest.mark.parametrize("backend", ["varlen", "varlen-repeated", "cudnn", "cudnn-repeated"])
def test_the_ways_of_a_gpu_prepare_and_undo_what_the_formula_computes(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels cannot run here; padding, bounds, shapes, repeated heads and their sums can."""
    monkeypatch.setattr(attention_backends, "PLAN_STEP", 8)
    called = pretend_cuda_kernels(monkeypatch)
    torch.manual_seed(0)
    rows = [torch.randn(24, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    documents, gradient = Documents.make((*LENGTHS, 2)), torch.randn(24, 4, 8)
    found = {}
    for name in ("plain", backend):
        output = attend(*rows, documents.bounds, documents.sizes, 0.3, name)
        found[name] = (output, *torch.autograd.grad(output, rows, gradient))
    torch.testing.assert_close(found[backend], found["plain"], rtol=1e-4, atol=1e-5)
    heads = 4 if "repeated" in backend else 2
    if backend.startswith("varlen"):
        assert called == [((24, 4, 8), (24, heads, 8), [0, 5, 14, 15, 22, 24], 9)]
    else:
        padded = [8, 16, 8, 8, 8]
        assert called == [((1, 4, length, 8), (1, heads, length, 8)) for length in padded]


def test_preparing_meets_every_length_that_a_training_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_backends, "PLAN_STEP", 8)
    monkeypatch.setattr(attention_backends.Cudnn, "step", 8)
    called = pretend_cuda_kernels(monkeypatch)
    sizes = {"heads": 4, "key_heads": 2, "width": 8, "kind": torch.float32, "device": "cpu"}
    assert prepare("cudnn", 30, **sizes) == 4
    assert called == [((1, 4, n, 8), (1, 2, n, 8)) for n in (8, 8, 16, 16, 24, 24, 32, 32)]  # once more recomputed
    assert prepare("varlen", 30, **sizes) == prepare("plain", 30, **sizes) == 0
