"""Adapters and their models: what an adapter calls its model, merging wherever one stands, and refusals of one line
that leave nothing behind."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
safetensors_torch = pytest.importorskip("safetensors.torch")

from bide.cli import main  # noqa: E402
from bide.models import hub  # noqa: E402
from tiny_models import config_of, save_model  # noqa: E402
from train_runs import QUIET, same, sums, train, weights  # noqa: E402

pytestmark = QUIET
torch.set_num_threads(1)
LORA: dict[str, Any] = {"lora_rank": 4, "learning_rate": "3e-2", "epochs": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base") / "m", config_of("Qwen2"), shape=False)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sums(tmp_path_factory.mktemp("data") / "rows.jsonl")


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that peft made and saved, of random numbers."""
    out = tmp_path_factory.mktemp("made") / "adapter"
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    peft.get_peft_model(model, config).save_pretrained(out)
    return out


@pytest.fixture
def adapter(made: Path, tmp_path: Path) -> Path:
    """A copy, to be broken."""
    return Path(shutil.copytree(made, tmp_path / "adapter"))


def test_what_merges_says_nothing_of_kernels() -> None:
    """Of bitsandbytes, which peft imports where it is installed."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    done = subprocess.run([sys.executable, "-c", "import bide.train.lora"], capture_output=True, text=True, check=True)
    assert "kernels" not in done.stderr


def named_base(adapter: Path) -> str:
    return str(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])


def merge(capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[int, str]:
    """Exit code, and what was told of an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["train", "merge", *map(str, args)])
    return int(stopped.value.code or 0), capsys.readouterr().err


def test_a_directory_is_named_by_its_whole_path(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """So what was trained as "m" can be merged, and read by peft, from anywhere."""
    monkeypatch.chdir(base.parent)
    train(Path("m"), rows, tmp_path / "run", **LORA)
    adapter = tmp_path / "run" / "adapter"
    assert named_base(adapter) == str(base.resolve())
    monkeypatch.chdir(tmp_path)
    assert merge(capsys, adapter, "--out", "merged") == (0, "")
    plain = transformers.AutoModelForCausalLM.from_pretrained(named_base(adapter))
    theirs = peft.PeftModel.from_pretrained(plain, adapter).merge_and_unload()
    for name, tensor in weights(tmp_path / "merged").items():
        assert torch.allclose(tensor, theirs.state_dict()[name], atol=1e-6), name


def test_a_model_of_the_hub_is_named_by_its_id(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def cached(repo: str, patterns: Any) -> Path:
        asked.append(repo)
        return base

    monkeypatch.setattr(hub, "model_files", cached)
    train(Path("Org/tiny"), rows, tmp_path / "run", **LORA)
    adapter = tmp_path / "run" / "adapter"
    assert named_base(adapter) == "Org/tiny"
    asked.clear()
    assert merge(capsys, adapter, "--out", tmp_path / "found") == (0, "") and asked == ["Org/tiny"]
    assert merge(capsys, adapter, "--base", base, "--out", tmp_path / "told") == (0, "") and asked == ["Org/tiny"]
    assert same(weights(tmp_path / "found"), weights(tmp_path / "told"))
    assert not same(weights(tmp_path / "found"), weights(base))


def config_with(**changes: Any) -> Any:
    def change(adapter: Path, base: Path) -> None:
        file = adapter / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def tensors_with(**changes: Any) -> Any:
    def change(adapter: Path, base: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        tensors = {**safetensors_torch.load_file(file), **changes}
        safetensors_torch.save_file({name: one for name, one in tensors.items() if one is not None}, file)

    return change


def text_of(name: str, text: str) -> Any:
    return lambda adapter, base: (adapter / name).write_text(text)


FIRST = "base_model.model.model.layers.0.self_attn.q_proj"
BROKEN: dict[str, tuple[Any, str]] = {
    "weights that are none": (text_of("adapter_model.safetensors", "no"), "adapter_model.safetensors cannot be read: "),
    "weights that are not there": (
        lambda adapter, base: (adapter / "adapter_model.safetensors").unlink(),
        "adapter_model.safetensors cannot be read: ",
    ),
    "half a config": (text_of("adapter_config.json", '{"peft_type":"LORA"}'), "r None and lora_alpha None are no rank"),
    "a list": (text_of("adapter_config.json", "[]"), "adapter_config.json is no JSON object"),
    "no JSON": (text_of("adapter_config.json", "{"), "holds no adapter: "),
    "no rank": (config_with(r=0), "r 0 and lora_alpha 8 are no rank"),
    "another rank": (config_with(r=5), "is no pair of the rank 5"),
    "another kind": (config_with(use_dora=True), "only plain LoRA adapters can be merged, not use_dora"),
    "a bias": (config_with(lora_bias=True), "only plain LoRA adapters can be merged, not lora_bias"),
    "half a pair": (tensors_with(**{f"{FIRST}.lora_A.weight": None}), "q_proj.weight is no pair of the rank 4"),
    "another tensor": (tensors_with(**{"lm_head.weight": torch.ones(2, 2)}), "'lm_head.weight' is no matrix of a LoRA"),
    "a layer that is not there": (
        tensors_with(**{f"{FIRST}x.lora_{side}.weight": torch.ones(4, 4) for side in "AB"}),
        "has no weight 'model.layers.0.self_attn.q_projx.weight', for which there is an adapter",
    ),
    "no name": (config_with(base_model_name_or_path=None), "the adapter does not name its model (give --base DIR)"),
    "a path that is gone": (
        config_with(base_model_name_or_path="/gone/m"),
        "the model that the adapter names, '/gone/m', is not to be had: neither a directory nor a model",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_merged_is_one_line(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    change, message = BROKEN[name]
    change(adapter, base)
    code, told = merge(capsys, adapter, "--out", tmp_path / "merged")
    assert code == 2 and told.startswith("bide: error: ") and told.count("\n") == 1 and message in told, told
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"], "nothing is left behind"


def test_a_disk_that_is_full(base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The system refuses to write longer files, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        code, told = merge(capsys, adapter, "--out", tmp_path / "merged")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2 and told.count("\n") == 1
    assert f"bide: error: {tmp_path / 'merged'} could not be written: " in told and "File too large" in told
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_what_stands_there_is_kept(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "merged").mkdir()
    code, told = merge(capsys, adapter, "--out", tmp_path / "merged")
    assert code == 2 and "is there already (another --out)" in told and not list((tmp_path / "merged").iterdir())
