"""The chunked loss against PyTorch's cross-entropy, and what a batch optimises against simulations and TRL."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from bide.errors import ModelError  # noqa: E402
from bide.train import loss as loss_module  # noqa: E402
from bide.train.attention import Documents, register  # noqa: E402
from bide.train.loss import LossHead, chunked_cross_entropy  # noqa: E402
from bide.train.optimizer import AdamW, clip_scale, gradient_norm  # noqa: E402

torch.set_num_threads(1)
VOCABULARY = 96


def plain(hidden: Any, head: Any, labels: Any, weights: Any) -> Any:
    """The whole logits at once, in the type that is given."""
    return (torch.nn.functional.cross_entropy(hidden @ head.T, labels, reduction="none") * weights).sum()


def inputs(tokens: int, seed: int = 0, kind: Any = torch.float32, zeros: float = 0.4) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, 16, generator=generator).to(kind).requires_grad_()
    head = torch.randn(97, 16, generator=generator).to(kind).requires_grad_()
    labels = torch.randint(97, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator) * (torch.rand(tokens, generator=generator) >= zeros)
    return hidden, head, labels, weights


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 40),
    chunk=st.integers(1, 50),
    seed=st.integers(0, 999),
    zeros=st.sampled_from([0.0, 0.4, 1.0]),
    given_rows=st.booleans(),
)
def test_chunks_change_nothing(tokens: int, chunk: int, seed: int, zeros: float, given_rows: bool) -> None:
    hidden, head, labels, weights = inputs(tokens, seed, zeros=zeros)
    rows = weights.nonzero().squeeze(1) if given_rows else None
    found = chunked_cross_entropy(hidden, head, labels, weights, rows=rows, chunk_tokens=chunk)
    gradients = torch.autograd.grad(3 * found.total, [hidden, head])
    expected = plain(hidden, head, labels, weights)
    torch.testing.assert_close(found.total, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients, torch.autograd.grad(3 * expected, [hidden, head]), rtol=1e-4, atol=1e-5)
    alone = torch.nn.functional.cross_entropy(hidden @ head.T, labels, reduction="none")
    torch.testing.assert_close(found.tokens, alone.detach() * (weights != 0), rtol=1e-5, atol=1e-5)
    assert found.total.dtype is torch.float32 and not found.tokens.requires_grad


def test_in_bfloat16_the_heads_gradient_is_summed_in_float32() -> None:
    """Over 512 chunks: sums in bfloat16 lose what is 256 times smaller than they are."""
    hidden, head, labels, weights = inputs(512, kind=torch.bfloat16, zeros=0.0)
    chunked_cross_entropy(hidden, head, labels, weights, chunk_tokens=1).total.backward()
    wide_hidden, wide_head = (x.detach().double().requires_grad_() for x in (hidden, head))
    plain(wide_hidden, wide_head, labels, weights).backward()
    off = (head.grad.double() - wide_head.grad).norm() / wide_head.grad.norm()
    assert off < 0.006, off  # bfloat16 logits and one rounding at the end; 0.02 with sums in bfloat16
    assert head.grad.dtype is torch.bfloat16


def test_logits_never_exist_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    softmax = loss_module._softmax_gradient
    monkeypatch.setattr(
        loss_module, "_softmax_gradient", lambda logits, *a: (seen.append(len(logits)), softmax(logits, *a))[1]
    )
    hidden, head, labels, weights = inputs(40)
    chunked_cross_entropy(hidden, head, labels, weights, chunk_tokens=8)
    assert seen and max(seen) <= 8 and sum(seen) == int((weights != 0).sum())


def test_a_frozen_head_and_a_row_without_loss() -> None:
    hidden, head, labels, weights = inputs(9)
    chunked_cross_entropy(hidden, head.detach(), labels, weights).total.backward()
    assert hidden.grad.abs().sum() > 0
    nothing = chunked_cross_entropy(hidden, head, labels, torch.zeros(9))
    assert nothing.total == 0
    nothing.total.backward()
    assert not head.grad.any()


# What a batch optimises -----------------------------------------------------------------------------------------------

LENGTHS = [12, 5, 9, 20, 7, 7, 3, 16, 11, 4, 6, 13, 8, 10, 5, 9]
PROMPTS = [3, 2, 4, 6, 1, 3, 1, 5, 2, 1, 2, 4, 3, 2, 1, 6]


def tiny(implementation: str = "eager", **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen2Config(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "initializer_range": 0.3,
            **changes,
        }
    )
    return transformers.Qwen2ForCausalLM._from_config(config, attn_implementation=implementation).train()


def samples() -> list[Any]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(VOCABULARY, (length,), generator=generator) for length in LENGTHS]


def packed_loss(model: Any, members: list[int], weighting: str, *, row: int | None = None) -> Any:
    """The part of a batch's loss that some of its samples make, packed into one row."""
    texts, ids, labels, weights = samples(), [], [], []
    predicted = [length - prompt for length, prompt in zip(LENGTHS, PROMPTS)]
    for i in members:
        ids.append(texts[i])
        labels.append(texts[i].roll(-1))
        weight = 1 / (len(LENGTHS) * predicted[i]) if weighting == "sample_mean" else 1 / sum(predicted)
        one = torch.full((LENGTHS[i],), weight)
        one[: PROMPTS[i] - 1] = 0
        one[-1] = 0
        weights.append(one)
    documents = Documents.make([LENGTHS[i] for i in members], row=row)
    spare = documents.row - sum(LENGTHS[i] for i in members)
    pad = torch.zeros(spare, dtype=torch.int64)
    hidden = model.model(
        input_ids=torch.cat([*ids, pad])[None], use_cache=False, **documents.arguments()
    ).last_hidden_state
    return model.lm_head(hidden, torch.cat([*labels, pad]), torch.cat([*weights, torch.zeros(spare)]))


def gradients(model: Any) -> Any:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def of_reference(model: Any, i: int) -> Any:
    """A process of the reference: one sequence, -100 on the prompt, the mean over its own tokens."""
    labels = samples()[i].clone()
    labels[: PROMPTS[i]] = -100
    logits = model(input_ids=samples()[i][None]).logits[0]
    return torch.nn.functional.cross_entropy(logits[:-1], labels[1:], ignore_index=-100)


@pytest.mark.parametrize(
    ("kind", "settings_", "message"),
    [
        ("Granite", {"logits_scaling": 8.0}, "scales its logits .logits_scaling"),
        ("Cohere", {"logit_scale": 0.0625}, "scales its logits .logit_scale"),
        ("Phi", {}, "another head than a matrix"),
        ("Granite", {"logits_scaling": 1.0}, None),
    ],
)
def test_a_model_whose_logits_are_more_than_a_product_is_refused(
    kind: str, settings_: dict[str, Any], message: str | None
) -> None:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings_,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    if message is None:
        assert type(LossHead.put_on(model)) is LossHead
    else:
        with pytest.raises(ModelError, match=message):
            LossHead.put_on(model)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("layout", [[list(range(16))], [[3, 0, 7, 5], [1, 2, 4], [6], [8, 9, 10, 11, 12, 13, 14, 15]]])
def test_sample_mean_is_the_mean_over_sixteen_processes(layout: list[list[int]], tied: bool) -> None:
    """However the batch is packed: losses of each sample, the loss, and all gradients."""
    mine, reference = tiny(register(), tie_word_embeddings=tied), tiny(tie_word_embeddings=tied)
    LossHead.put_on(mine)
    total = 0.0
    for members in layout:
        found = packed_loss(mine, members, "sample_mean", row=160)
        found.total.backward()
        total += float(found.total.detach())
        starts = [0, *itertools.accumulate(LENGTHS[i] for i in members)]
        for start, i in zip(starts, members):
            own = found.tokens[start : start + LENGTHS[i]].sum() / (LENGTHS[i] - PROMPTS[i])
            torch.testing.assert_close(own, of_reference(reference, i).detach(), rtol=1e-5, atol=1e-5)
    losses = [of_reference(reference, i) for i in range(16)]  # of 16 processes, whose gradients are averaged
    (sum(losses) / 16).backward()
    assert total == pytest.approx(sum(float(x.detach()) for x in losses) / 16, rel=1e-5)
    torch.testing.assert_close(gradients(mine), gradients(reference), rtol=1e-4, atol=1e-6)


def test_the_two_weightings_differ_and_token_mean_is_the_mean_over_tokens() -> None:
    mine, reference = tiny(register()), tiny()
    LossHead.put_on(mine)
    by_sample = float(packed_loss(mine, list(range(16)), "sample_mean").total.detach())
    by_token = float(packed_loss(mine, list(range(16)), "token_mean").total.detach())
    counts = [length - prompt for length, prompt in zip(LENGTHS, PROMPTS)]
    expected = sum(float(of_reference(reference, i).detach()) * n for i, n in enumerate(counts)) / sum(counts)
    assert by_token == pytest.approx(expected, rel=1e-5)
    assert abs(by_sample - by_token) > 1e-3


@pytest.mark.filterwarnings("ignore")
def test_one_step_is_that_of_trls_trainer(tmp_path: Path) -> None:
    """A padded batch under TRL's SFTTrainer (token mean), and the same samples packed: equal weights after one step."""
    trl = pytest.importorskip("trl", reason="pip install trl: the parity with its trainer is not checked")
    datasets = pytest.importorskip("datasets")
    mine, theirs = tiny(register(), vocab_size=300), tiny("sdpa", vocab_size=300)  # room for the tokenizer's padding
    LossHead.put_on(mine)
    rate, eps = 1e-2, 1e-3  # under a small eps the first step is the gradient's sign, and noise decides where it is 0
    optimizer = AdamW(mine.parameters(), lr=rate, eps=eps, moments="fp32", weight_decay=1e-4)
    packed_loss(mine, list(range(16)), "token_mean").total.backward()
    norm = gradient_norm(mine.parameters())
    optimizer.step(scale=clip_scale(norm, 1.0))
    rows = [
        {"input_ids": text.tolist(), "completion_mask": [0] * prompt + [1] * (len(text) - prompt)}
        for text, prompt in zip(samples(), PROMPTS)
    ]
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=16, max_steps=1, report_to=[], learning_rate=rate,
        lr_scheduler_type="constant", adam_beta2=0.95, adam_epsilon=eps, weight_decay=1e-4, max_grad_norm=1.0,
        use_cpu=True, bf16=False, completion_only_loss=True, packing=False, max_length=None, save_strategy="no",
        disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    from tiny_models import save_tokenizer

    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    trainer = trl.SFTTrainer(
        model=theirs, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    assert float(norm) > 1  # so that clipping is compared too
    for (name, ours), other in zip(mine.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(ours, other, rtol=0, atol=1e-5, msg=name)
