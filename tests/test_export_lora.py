"""LoRA adapters: llama.cpp with the adapter must say what the merged model says."""
# ruff: noqa: E402 (what an extra brings is asked for first)

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gguf", reason="the extra export is not installed")
torch = pytest.importorskip("torch", reason="the source model needs torch")

import numpy as np
from safetensors.torch import load_file, save_file

from bide.errors import ModelError, UsageError
from bide.export import check
from bide.export.adapter import read_adapter
from bide.export.run import Order, export

Find = Callable[[str], Path]
RANK, ALPHA = 4, 24.0
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(autouse=True)
def _short_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(check, "TEXT_TOKENS", 8)
    monkeypatch.setattr(check, "NEW_TOKENS", 12)


def save_adapter(directory: Path, base: Path, **changes: Any) -> Path:
    """A random adapter in peft's layout, written by hand."""
    directory.mkdir(parents=True)
    state = load_file(base / "model.safetensors")
    rng = torch.Generator().manual_seed(1)
    tensors = {}
    for name, matrix in state.items():
        module = name.removesuffix(".weight")
        if module.endswith(ALL_LINEAR):
            rows, columns = matrix.shape
            tensors[f"base_model.model.{module}.lora_A.weight"] = 0.05 * torch.randn(RANK, columns, generator=rng)
            tensors[f"base_model.model.{module}.lora_B.weight"] = 0.05 * torch.randn(rows, RANK, generator=rng)
    save_file(tensors, directory / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": str(base)}
    (directory / "adapter_config.json").write_text(json.dumps({**config, **changes}))
    return directory


def merged_tokens(base: Path, adapter: Path, scale: float, prompts: list[list[int]], new: int) -> list[list[int]]:
    """Greedy tokens of base plus scale times B A, by torch and transformers alone."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tensors = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, down in tensors.items():
            if ".lora_A." in name:
                module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                up = tensors[name.replace(".lora_A.", ".lora_B.")]
                model.get_submodule(module).weight += scale * (up @ down)
    found = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=new, do_sample=False)[0].tolist()
        found.append(ids[len(prompt) :])
    return found


@pytest.mark.parametrize(("name", "rslora"), [("llama", False), ("qwen3", True)])
def test_the_adapter_says_what_the_merged_model_says(name: str, rslora: bool, exportable: Find, tmp_path: Path) -> None:
    base = exportable(name)
    adapter = save_adapter(tmp_path / "adapter", base, use_rslora=rslora)
    lines: list[str] = []
    made = export(Order(adapter, tmp_path / "out", ("BF16",), "m", lora=True, threads=1), lines.append)
    assert made.adapter is not None and made.adapter.checked is not None
    assert made.adapter.checked.parted == (None,) * 5, lines
    assert sorted(path.name for path in (tmp_path / "out").glob("*.gguf")) == ["m-BF16.gguf", "m-lora.gguf"]
    # The reference of that check against another way to merge, and both files in the engine as a user loads them.
    from bide import load_engine
    from bide.export.vocabulary import encode_all

    prompts = encode_all(base, ["What is 17 times 23?", "A model that thinks"])
    scale = ALPHA / (RANK**0.5 if rslora else RANK)
    wanted = merged_tokens(base, adapter, scale, prompts, 12)
    for other in (0.0, ALPHA / (RANK if rslora else RANK**0.5)):  # else the test would see neither
        assert merged_tokens(base, adapter, other, prompts, 12) != wanted
    engine: Any = load_engine("llamacpp", str(made.files[0].path), context=128, threads=1, lora=str(made.adapter.path))
    try:
        body = {"n_predict": 12, "temperature": 0.0, "return_tokens": True, "cache_prompt": False}
        got = [engine.complete({"prompt": prompt, **body})["tokens"] for prompt in prompts]
    finally:
        engine.close()
    ended = [ids[: ids.index(2) + 1] if 2 in ids else ids for ids in wanted]
    assert got == ended


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_of_peft_itself(exportable: Find, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    import transformers

    base = exportable("llama")
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(3)
    settings = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    tuned = peft.get_peft_model(model, settings)
    tuned.save_pretrained(tmp_path / "adapter")
    merged = tuned.merge_and_unload().state_dict()
    adapter = read_adapter(tmp_path / "adapter")
    before = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    assert len(adapter.factors) == 14
    for module in adapter.factors:
        change = (merged[f"{module}.weight"] - before[f"{module}.weight"]).numpy()
        assert np.allclose(adapter.change(module), change, atol=1e-5), module


def test_the_base_model_is_found_in_the_hubs_cache(
    exportable: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a hub's own client lays it out: refs/main names a commit, snapshots/COMMIT holds the files."""
    kept, commit = tmp_path / "hub" / "models--org--base", "0" * 40
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    shutil.copytree(exportable("qwen2"), kept / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(kept.parent))
    adapter = save_adapter(tmp_path / "adapter", exportable("qwen2"), base_model_name_or_path="org/base")
    made = export(Order(adapter, tmp_path / "out", (), "m", lora=True, check=False), lambda line: None)
    assert made.adapter is not None and made.adapter.path.is_file()


def test_only_the_adapter(exportable: Find, tmp_path: Path) -> None:
    """Without --gguf the base model is made for the check alone, and not kept."""
    adapter = save_adapter(tmp_path / "adapter", exportable("qwen2"))
    made = export(Order(adapter, tmp_path / "out", (), "m", lora=True, threads=1), lambda line: None)
    assert made.adapter is not None and made.adapter.checked is not None
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".gguf") == ["m-lora.gguf"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
        ({"r": 8}, "no pair of rank 8"),
        ({"base_model_name_or_path": "org/gone"}, "'org/gone' is neither a directory here nor in the hub's cache"),
    ],
)
def test_what_llama_cpp_has_no_word_for_is_refused(
    changes: dict[str, Any], message: str, exportable: Find, tmp_path: Path
) -> None:
    adapter = save_adapter(tmp_path / "adapter", exportable("qwen2"), **changes)
    with pytest.raises(ModelError, match=message.replace("(", "\\(")):
        export(Order(adapter, tmp_path / "out", (), "m", lora=True, check=False), lambda line: None)


def test_an_adapter_of_another_model_is_refused(exportable: Find, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", exportable("llama-tied"))
    other = Order(adapter, tmp_path / "out", (), "m", lora=True, base=exportable("llama"), check=False)
    with pytest.raises(ModelError, match="its base model's"):
        export(other, lambda line: None)


def test_adapters_and_models_are_told_apart(exportable: Find, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", exportable("qwen2"))
    with pytest.raises(ModelError, match="is a LoRA adapter"):
        export(Order(adapter, tmp_path / "out", ("F16",), "m"), lambda line: None)
    with pytest.raises(UsageError, match="it is no LoRA adapter"):
        export(Order(exportable("qwen2"), tmp_path / "out", (), "m", lora=True), lambda line: None)
    with pytest.raises(UsageError, match="--base would have no effect"):
        export(Order(exportable("qwen2"), tmp_path / "out", (), "m", base=tmp_path), lambda line: None)
