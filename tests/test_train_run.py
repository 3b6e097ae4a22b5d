"""`bide train run`, from rows to a model that loads elsewhere: stopped, killed, resumed, on one process and on two."""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")

from bide.cli import bide, train_run  # noqa: E402
from bide.cli.train_run import _without_effect, run  # noqa: E402
from bide.errors import MissingExtraError, UsageError  # noqa: E402
from bide.train.checkpoints import load_checkpoint, newest  # noqa: E402
from bide.train.curve import read_curve  # noqa: E402
from bide.train.examples import load_examples  # noqa: E402
from bide.train.gpus import parse_machine  # noqa: E402
from bide.train.processes import PATIENCE  # noqa: E402
from bide.train.recipe import s1  # noqa: E402
from bide.train.running import _keep_losses  # noqa: E402
from bide.train.tokenizer import TrainTokenizer  # noqa: E402
from bide.train.trainer import NotFiniteError  # noqa: E402
from tiny_models import config_of, save_model  # noqa: E402
from train_runs import QUIET, ROWS, arguments, losses, same, start, sums, train, weights, written  # noqa: E402

pytestmark = QUIET
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), config_of("Qwen2"), shape=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sums(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def whole(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    out = tmp_path_factory.mktemp("whole") / "run"
    train(model, rows, out)
    return out


def sequence_loss(model: Any, ids: Any, begin: int) -> Any:
    """What transformers itself says of one sequence whose tokens from `begin` on are learned."""
    row = torch.tensor([list(ids)])
    labels = row.clone()
    labels[:, :begin] = -100
    return model(input_ids=row, labels=labels).loss


def test_training_is_that_of_a_loop_by_hand(model: Path, rows: Path, tmp_path: Path) -> None:
    """The reference's objective, each sequence's own mean and then the mean over the batch, and its trainer's update:
    transformers' loss, torch's clipping and AdamW, transformers' schedule."""
    train(model, rows, tmp_path / "run", moments="fp32")
    examples = load_examples(rows, s1().with_(max_length=None), TrainTokenizer(model))[0]
    steps = json.loads((tmp_path / "run" / "plan.json").read_text())["steps"]
    byhand = transformers.AutoModelForCausalLM.from_pretrained(model).float().train()
    groups = [
        {"params": [p for p in byhand.parameters() if p.dim() > 1], "weight_decay": 1e-4},
        {"params": [p for p in byhand.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, 1, len(steps))
    curve = read_curve(tmp_path / "run" / "curve.jsonl")
    assert len(curve) == len(steps) == 6
    for point, step in zip(curve, steps):
        total = torch.stack(
            [sequence_loss(byhand, examples[i].token_ids, examples[i].loss[0][0]) for i in step["samples"]]
        ).mean()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(byhand.parameters(), 1.0)
        assert point.learning_rate == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        assert point.loss == pytest.approx(float(total), rel=1e-5)
        assert point.gradient_norm == pytest.approx(float(norm), rel=1e-4)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    exported = weights(tmp_path / "run" / "model")
    for name, tensor in byhand.state_dict().items():
        assert torch.allclose(tensor, exported[name], atol=2e-5), name
    assert curve[-1].loss < 0.8 * curve[0].loss


def test_a_stopped_run_goes_on_to_the_bit(model: Path, rows: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(model, rows, out, "--steps=2")
    assert len(losses(out)) == 2 and not (out / "model").exists()
    done = train(model, rows, out)
    assert losses(out) == losses(whole)
    assert same(weights(out / "model"), weights(whole / "model"))
    assert "6 of 6" in done.output


def test_stochastic_rounding_goes_on_to_the_bit(model: Path, rows: Path, tmp_path: Path) -> None:
    settings = {"weights": "bf16", "moments": "int8"}
    train(model, rows, tmp_path / "whole", **settings)
    train(model, rows, tmp_path / "parts", "--steps=4", **settings)
    train(model, rows, tmp_path / "parts", **settings)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert same(weights(tmp_path / "whole" / "model"), weights(tmp_path / "parts" / "model"))


def test_two_processes_train_what_one_does(model: Path, rows: Path, whole: Path, tmp_path: Path) -> None:
    """And a checkpoint of one goes on at two."""
    out = tmp_path / "run"
    train(model, rows, out, "--steps=2")
    process = start(arguments(model, rows, out), processes=2)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert losses(out) == pytest.approx(losses(whole), rel=1e-4)
    norms, one = ([point.gradient_norm for point in read_curve(run / "curve.jsonl")] for run in (out, whole))
    assert norms == pytest.approx(one, rel=1e-3)
    assert json.loads((out / "receipt.json").read_text())["gpus"] == 2
    mine, theirs = weights(out / "model"), weights(whole / "model")
    assert mine.keys() == theirs.keys()
    for name in mine:
        assert torch.allclose(mine[name], theirs[name], atol=2e-3), name  # the moments are rounded elsewhere


def test_another_recipe_is_no_continuation(model: Path, rows: Path, whole: Path) -> None:
    done = train(model, rows, whole, code=2, learning_rate="5e-3")
    assert f"the run in {whole} cannot be resumed: learning_rate: 0.01 on disk, 0.005 now" == str(done.exception)
    done = train(model, rows, whole, code=2, seed=7)
    assert "resumed: seed: 42 on disk, 7 now; the steps: " in str(done.exception)


def test_other_data_are_no_continuation(model: Path, rows: Path, tmp_path: Path) -> None:
    train(model, rows, tmp_path / "run", "--steps=1")
    other = tmp_path / "other.jsonl"
    other.write_text(rows.read_text().replace("Let me", "Let us"))
    hashes = [json.loads((tmp_path / "run" / "plan.json").read_text())["data"][:16]]
    done = train(model, other, tmp_path / "run", code=2)
    train(model, other, tmp_path / "other", "--steps=1")
    hashes.append(json.loads((tmp_path / "other" / "plan.json").read_text())["data"][:16])
    assert f"resumed: the data's tokens: {hashes[0]} on disk, {hashes[1]} now" in str(done.exception)
    assert str(done.exception).endswith("now")  # other steps are no news then
    (tmp_path / "run" / "plan.json").unlink()
    assert "resumed: the steps: " in str(train(model, other, tmp_path / "run", code=2).exception)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_exported_is_what_was_trained(rows: Path, tmp_path: Path, tied: bool) -> None:
    base = save_model(tmp_path / "base", config_of("Qwen2", tie_word_embeddings=tied), shape=False)
    train(base, rows, tmp_path / "run", "--no-export", epochs=1)  # the weights are in a checkpoint
    train(base, rows, tmp_path / "run", epochs=1)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert loaded.config.use_cache and (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    found = {name: torch.full_like(parameter, torch.nan) for name, parameter in loaded.named_parameters()}
    checkpoint = newest(tmp_path / "run")
    assert checkpoint is not None and checkpoint.name == "step-000003"
    alone(lambda: load_checkpoint(checkpoint, {"model": found}))
    assert same(found, dict(loaded.named_parameters()))
    assert not same(weights(base), weights(tmp_path / "run" / "model"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert "<|im_start|>think" in tokenizer.chat_template
    assert "<|im_start|>think" not in tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)


def alone(work: Any) -> None:
    from bide.train.sharding import start_world

    with start_world("cpu"):
        work()


def test_a_sample_that_breaks_the_loss_is_named(model: Path, rows: Path, tmp_path: Path) -> None:
    """One token's embedding is not a number, and one sample has that token."""
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(broken)
    token = transformers.AutoTokenizer.from_pretrained(broken).convert_tokens_to_ids("Wait")
    with torch.no_grad():
        loaded.model.embed_tokens.weight[token] = torch.nan
    loaded.save_pretrained(broken)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    lines[5]["thinking"] += "Wait"
    done = train(broken, written(tmp_path / "rows.jsonl", lines), tmp_path / "run", code=2)
    assert isinstance(done.exception, NotFiniteError)
    assert "samples: sum-5" in str(done.exception) and "sum-4" not in str(done.exception)
    points = read_curve(tmp_path / "run" / "curve.jsonl")
    if points:  # what was trained before it is saved
        checkpoint = newest(tmp_path / "run")
        assert checkpoint is not None and checkpoint.name == f"step-{len(points):06d}"


def test_the_receipt_counts_what_the_plan_says(whole: Path) -> None:
    receipt = json.loads((whole / "receipt.json").read_text())
    plan = json.loads((whole / "plan.json").read_text())
    points = read_curve(whole / "curve.jsonl")
    assert receipt["plan_hash"] == plan["hash"] and receipt["finished"]
    assert receipt["tokens"] == sum(plan["tokens"][i] for step in plan["steps"] for i in step["samples"])
    assert receipt["gpu_hours"] == pytest.approx(sum(point.seconds for point in points) / 3600)
    assert receipt["seconds_per_step"] == pytest.approx(sum(point.seconds for point in points[1:]) / 5)
    found = json.loads((whole / "sample_losses.json").read_text())
    assert len(found) == ROWS and all(0 < loss < 20 for loss in found.values())


def test_a_finished_run_is_not_paid_for_twice(model: Path, rows: Path, whole: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    done = train(model, rows, whole)
    assert "6 of 6" in done.output and done.return_value == 0
    assert done.stderr == f"nothing was trained: the run in {whole} is finished, and this is its receipt\n"
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}


def test_what_has_no_effect_is_told(model: Path, rows: Path, tmp_path: Path) -> None:
    quiet = train(model, rows, tmp_path / "quiet", "--steps=1")
    assert "warning" not in quiet.stderr
    options = ["--keep=1", f"--calibration={tmp_path / 'c.json'}", "--price=h100=2"]
    done = train(model, rows, tmp_path / "run", "--steps=1", *options)
    assert "warning: --keep without --save-every: " in done.stderr
    assert "warning: --calibration, --price without effect: there is no forecast" in done.stderr
    done = train(model, rows, tmp_path / "run", "--steps=7", "--save-every=6")
    assert "warning: --steps 7 without effect: the plan has 6\n" in done.stderr
    assert "warning: --save-every 6 without effect: the plan has 6 steps\n" in done.stderr


def test_a_price_of_another_gpu_is_told() -> None:
    options = {"keep": 1, "save_every": 0, "steps": None, "price_texts": ("h200=2",), "price_file": None}
    ready: Any = SimpleNamespace(machine=parse_machine("h100:4"))
    plan: Any = SimpleNamespace(steps=[None] * 6, recipe=s1().with_(weights="bf16"))
    with run.make_context("run", ["--data=.", "--out=."]):
        assert _without_effect(options, plan, ready) == ["--price h200 without effect: the GPUs are h100"]
        options["price_texts"] = ("h200=2", "H100=1")
        assert _without_effect(options, plan, ready) == []
        plan.recipe = plan.recipe.with_(lora_rank=4)  # of a recipe file; on the command line it is refused
        (line,) = _without_effect(options, plan, ready)
        assert line.startswith("weights=bf16 of the recipe without effect")


@pytest.mark.parametrize(
    ("ids", "seen", "known", "kept"),
    [
        ("123", {0, 1}, {"1": 8.0, "2": 7.0}, {"1": 8.0, "2": 2.0}),
        ("123", {0, 1, 2}, {"0": 9.0, "1": 8.0, "2": 7.0}, {"2": 2.0}),  # numbered from 0, as once
        ("123", {1, 2}, {"1": 8.0, "2": 7.0}, {"2": 2.0}),  # the same, of the second row and the third
        ("023", {0, 1}, {"0": 9.0, "2": 7.0}, {"0": 9.0, "2": 2.0}),  # the row's own
        ("abc", {0, 1}, {"a": 8.0, "d": 7.0}, {"a": 8.0, "b": 2.0}),  # the data have got another
    ],
)
def test_losses_by_ids_of_another_time_are_not_kept(
    tmp_path: Path, ids: str, seen: set[int], known: dict[str, float], kept: dict[str, float]
) -> None:
    samples: Any = [SimpleNamespace(id=id) for id in ids]
    path = tmp_path / "losses.json"
    path.write_text(json.dumps(known))
    _keep_losses(path, samples, seen, {1: 2.0})
    assert json.loads(path.read_text()) == kept
    _keep_losses(path, samples, {*seen, 2}, {2: 3.0})
    assert json.loads(path.read_text()) == {**kept, ids[2]: 3.0}


def test_another_process_that_is_stopped_leaves_the_first_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun ends all as soon as one has ended with 1."""
    receipt: Any = SimpleNamespace(finished=False, steps=1, steps_of_plan=6)
    monkeypatch.setattr(train_run, "_run", lambda *_, **__: receipt)
    for rank, expected in (("0", []), ("1", [PATIENCE])):
        waited: list[float] = []
        monkeypatch.setattr(time, "sleep", waited.append)
        monkeypatch.setenv("RANK", rank)
        with run.make_context("run", ["--data=.", "--out=."]) as context:
            assert context.invoke(run) == 1
        assert waited == expected


@pytest.mark.parametrize("more", [["--preset=s1"], ["--set=epochs=1"]])
def test_a_plan_brings_its_recipe(model: Path, rows: Path, whole: Path, tmp_path: Path, more: list[str]) -> None:
    command = ["train", "run", f"--plan={whole / 'plan.json'}", f"--data={rows}", f"--out={tmp_path / 'run'}"]
    done = CliRunner().invoke(bide, [*command, "--device=cpu", *more], standalone_mode=False)
    assert "--plan brings its recipe" in str(done.exception)
    done = CliRunner().invoke(bide, [*command, "--device=cpu", "--steps=1"], standalone_mode=False)
    assert done.exception is None and losses(tmp_path / "run") == losses(whole)[:1]


def test_a_sink_that_is_not_there_is_told_before_anything_is_loaded(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bide.train.running.assemble", None)
    with pytest.raises(UsageError, match="unknown curve sink 'paper'"):
        train(model, rows, tmp_path / "run", "--sink=paper")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match="pip install"):
        train(model, rows, tmp_path / "run", "--sink=tensorboard")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def adapted(model: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("peft")
    out = tmp_path_factory.mktemp("adapted") / "run"
    train(model, rows, out, lora_rank=4, lora_alpha=8, lora_dropout=0.1, learning_rate="3e-2", epochs=4)
    return out


def test_an_adapter_is_what_peft_makes_of_it(model: Path, adapted: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    done = CliRunner().invoke(bide, ["train", "merge", str(adapted / "adapter"), "--out", str(tmp_path / "merged")])
    assert done.exit_code == 0, done.output
    plain = transformers.AutoModelForCausalLM.from_pretrained(model)
    theirs = peft.PeftModel.from_pretrained(plain, adapted / "adapter").merge_and_unload()
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = dict(theirs.state_dict())
    for name, tensor in merged.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    moved = weights(model)
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, moved[name])}
    assert changed and all("proj" in name for name in changed)


def test_an_adapter_begins_at_the_model_and_goes_on_to_the_bit(model: Path, rows: Path, whole: Path, adapted: Path,
                                                              tmp_path: Path) -> None:  # fmt: skip
    assert losses(adapted)[0] == pytest.approx(losses(whole)[0], rel=0.02)  # the model's weights are bf16 there
    assert losses(adapted)[-1] < losses(adapted)[0]
    settings: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1, "learning_rate": "3e-2"}
    train(model, rows, tmp_path / "parts", "--steps=5", **settings, epochs=4)
    train(model, rows, tmp_path / "parts", **settings, epochs=4)
    assert losses(tmp_path / "parts") == losses(adapted)


def test_what_is_computed_again_drops_the_same(model: Path, rows: Path, adapted: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.1, "learning_rate": "3e-2"}
    train(model, rows, tmp_path / "run", "--steps=4", **settings, epochs=4, recompute="full")
    assert losses(tmp_path / "run") == pytest.approx(losses(adapted)[:4], rel=1e-6)


def test_an_adapter_of_another_model_is_refused(adapted: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", config_of("Qwen2", hidden_size=64, head_dim=16), shape=False)
    command = ["train", "merge", str(adapted / "adapter"), "--base", str(other), "--out", str(tmp_path / "merged")]
    done = CliRunner().invoke(bide, command)
    assert "its adapter is for" in str(done.exception) and not (tmp_path / "merged").exists()


def _sums(draw: random.Random, count: int) -> Iterator[dict[str, str]]:
    for _ in range(count):
        digit = draw.randrange(10)
        yield {"question": f"{digit}?", "thinking": f"I think of {digit}.", "answer": f"{digit}"}


def test_a_model_learns_the_format_and_budget_forcing_finds_it(tmp_path: Path) -> None:
    from bide import ThinkingBudget, load_engine
    from bide.sampling import ask

    base = save_model(tmp_path / "base", config_of("Qwen2", hidden_size=64, intermediate_size=128, head_dim=16),
                      shape=False, seed=3)  # fmt: skip
    data = written(tmp_path / "rows.jsonl", list(_sums(random.Random(0), 24)))
    out = tmp_path / "run"
    train(base, data, out, "--no-export", "--steps=1", epochs=30, batch_size=8, learning_rate="1e-2")
    train(base, data, out, epochs=30, batch_size=8, learning_rate="1e-2")
    assert losses(out)[-1] < 0.25 * losses(out)[0]
    engine = load_engine("transformers", str(out / "model"))
    try:
        free = ask(engine, "7?", ThinkingBudget(60), max_answer_tokens=20)
        cut = ask(engine, "7?", ThinkingBudget(4), max_answer_tokens=20)
    finally:
        engine.close()
    assert free.budget["format"] == "s1" if "format" in free.budget else True
    assert free.budget["used"] < 60 and "I think of" in free.thinking  # it ended by itself
    assert free.answer.strip()
    assert cut.budget["used"] == 4


def test_adapters_on_four_bits(rows: Path, tmp_path: Path) -> None:
    """QLoRA: the frozen weights are bitsandbytes' own, so the first loss is that of its model."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    base = save_model(tmp_path / "base", config_of("Qwen2", hidden_size=64, head_dim=16, intermediate_size=64),
                      shape=False)  # fmt: skip
    settings: dict[str, Any] = {"lora_rank": 4, "quantized_base": "true", "learning_rate": "3e-2", "epochs": 4}
    train(base, rows, tmp_path / "run", "--steps=4", **settings)
    train(base, rows, tmp_path / "run", **settings)
    how = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base, quantization_config=how, dtype=torch.float32)
    examples = load_examples(rows, s1().with_(max_length=None), TrainTokenizer(base))[0]
    step = json.loads((tmp_path / "run" / "plan.json").read_text())["steps"][0]
    with torch.no_grad():
        each = [sequence_loss(theirs, examples[i].token_ids, examples[i].loss[0][0]) for i in step["samples"]]
    found = losses(tmp_path / "run")
    assert found[0] == pytest.approx(float(torch.stack(each).mean()), rel=1e-3)
    assert found[-1] < found[0] and len(found) == 12
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").is_file()
