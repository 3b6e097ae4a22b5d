"""Weights out of a run: a directory as Hugging Face has it, or an adapter as peft has it; and the two made one.

Tensors go by one at a time, so no process holds more than a few gigabytes, and none waits long for another. A directory
appears under its name when it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import BideError, ModelError, UsageError
from ..formats import FORMATS
from .checkpoints import sync
from .model_files import WEIGHT_FILES, model_directory
from .recipe import TrainRecipe
from .sharding import World, whole

SHARD_BYTES = 4 << 30
"""Of one file."""
_INDEX = "model.safetensors.index.json"
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_PART = ".part"
_WORDS = (".json", ".txt", ".jinja", ".model", ".tiktoken")
"""Suffixes of config, tokenizer and templates."""


def export_model(model: Any, base: Path, out: Path, recipe: TrainRecipe, world: World) -> None:
    """Write a model that was trained whole, in the type that `base` is stored in, with `base`'s config and tokenizer.
    Every process must call it. Raises `ModelError`, on all of them, where files cannot be written."""
    kept = stored_type(base)
    named = list(model.named_parameters())
    sizes = {name: parameter.numel() * kept.itemsize for name, parameter in named}
    files = _files(sizes)
    written = _Written(out, world)
    written.do(written.begin)
    held: dict[str, torch.Tensor] = {}
    for (name, parameter), file in zip(named, (file for file, names in files.items() for _ in names)):
        full = whole(parameter.detach())
        if world.is_first:
            held[name] = full.to(kept).cpu().contiguous()
            if len(held) == len(files[file]):
                written.do(save_file, held, str(written.part / file), {"format": "pt"})
                held = {}
    written.do(_finish, written.part, out, base, files, sizes, recipe)
    written.agree()


def export_adapter(model: Any, base: Path, out: Path, recipe: TrainRecipe, world: World, adapters: Any) -> None:
    """Write adapters as peft reads them. adapters: the module `bide.train.lora`. Every process must call it.
    Raises `ModelError`, on all of them, where files cannot be written."""
    named = [(name, whole(p.detach())) for name, p in model.named_parameters() if adapters.is_adapter(name)]
    written = _Written(out, world)

    def write() -> None:
        written.begin()
        tensors = adapters.adapter_tensors((name, full.cpu().contiguous()) for name, full in named)
        save_file(tensors, str(written.part / adapters.WEIGHTS), metadata={"format": "pt"})
        targets = sorted({name.partition(".lora_")[0].rpartition(".")[2] for name, _ in named})
        adapters.adapter_config(recipe, targets, _base_name(recipe, base)).save_pretrained(str(written.part))
        _copy_words(base, written.part, recipe)
        _replace(written.part, out)

    written.do(write)
    written.agree()


def _base_name(recipe: TrainRecipe, base: Path) -> str:
    """What an adapter calls its model: a directory by its whole path, a model of the hub by its id, which others can
    look up too."""
    return str(base.resolve()) if Path(recipe.model).expanduser().is_dir() else recipe.model


def merge_adapter(adapter: Path, base: Path | None, out: Path, adapters: Any) -> Path:
    """Add an adapter to the weights of `base` (None: of the model that the adapter names, a directory or one of the
    hub), file by file.

    Returns the base. adapters: the module `bide.train.lora`. Raises `ModelError` and `UsageError`; then nothing is
    left of it.
    """
    found = adapters.AdapterFile(adapter, lambda path: dict(_tensors(path)))
    if out.exists():
        raise UsageError(f"{out} is there already", hint="another --out")
    home = base or _named_base(found.base)
    part = out.with_name(out.name + _PART)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _merge(found, adapter, home, part)
        _replace(part, out)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{out} could not be written: {error}", hint="make room, or another --out") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return home


def _named_base(name: str) -> Path:
    if not name:
        raise UsageError("the adapter does not name its model", hint="give --base DIR")
    try:
        return model_directory(name, (*WEIGHT_FILES, *(f"*{suffix}" for suffix in _WORDS)))
    except BideError as error:
        raise ModelError(
            f"the model that the adapter names, {name!r}, is not to be had: {error}", hint="give --base DIR"
        ) from error


def _merge(found: Any, adapter: Path, home: Path, part: Path) -> None:
    _copy_words(adapter, part, None)
    for path in weight_files(home):
        tensors = {name: found.merged(name, tensor) for name, tensor in _tensors(path)}
        save_file(tensors, str(part / path.name), metadata={"format": "pt"})
    if found.left:
        raise ModelError(
            f"{home} has no weight {min(found.left)!r}, for which there is an adapter",
            hint="merge into the model that the adapter was trained on",
        )
    _copy_words(home, part, None, over=False)
    if (home / _INDEX).is_file():
        shutil.copyfile(home / _INDEX, part / _INDEX)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model. Raises `ModelError`."""
    found = sorted(path for path in directory.glob("*.safetensors") if not path.name.startswith("adapter_"))
    if not found:
        raise ModelError(f"{directory} holds no safetensors files")
    return found


def stored_type(directory: Path) -> torch.dtype:
    """The type that a model's config says its weights have; float32 where it says nothing."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return _TYPES.get(str(config.get("dtype") or config.get("torch_dtype")), torch.float32)


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                yield name, file.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error


def _files(sizes: dict[str, int]) -> dict[str, list[str]]:
    groups: list[list[str]] = [[]]
    held = 0
    for name, size in sizes.items():
        if groups[-1] and held + size > SHARD_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{k + 1:05d}-of-{len(groups):05d}.safetensors": names for k, names in enumerate(groups)}


class _Written:
    """A directory that the first process writes, while the others go on with it to the end: they learn there what went
    wrong."""

    def __init__(self, out: Path, world: World) -> None:
        self.part = out.with_name(out.name + _PART)
        self._out, self._world, self._problem = out, world, ""

    def begin(self) -> None:
        """Make it, under the name that it has until it is whole."""
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)

    def do(self, work: Callable[..., None], *arguments: Any) -> None:
        """Let the first process do a part of it, unless one has failed."""
        if self._world.is_first and not self._problem:
            try:
                work(*arguments)
            except (OSError, SafetensorError) as error:
                self._problem = str(error)

    def agree(self) -> None:
        """Wait for the first process. Raises `ModelError` on all where it could not write."""
        problem = self._world.gather(self._problem)[0]
        if problem:
            if self._world.is_first:
                shutil.rmtree(self.part, ignore_errors=True)
            self._world.barrier()
            raise ModelError(
                f"{self._out} could not be written: {problem}",
                hint="the last checkpoint has what is trained: make room, and give the same command again",
            )


def _finish(
    part: Path, out: Path, base: Path, files: dict[str, list[str]], sizes: dict[str, int], recipe: TrainRecipe
) -> None:
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        (part / _INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    _copy_words(base, part, recipe)
    _replace(part, out)


def _replace(part: Path, out: Path) -> None:
    for path in part.iterdir():  # there may be no checkpoint of what is in it
        sync(path)
    sync(part)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(part, out)
    sync(out.parent)


def _copy_words(source: Path, target: Path, recipe: TrainRecipe | None, *, over: bool = True) -> None:
    """Config, tokenizer and templates: everything small that is neither weights nor a README. Under a recipe, with the
    chat template that was trained on."""
    for path in sorted(source.iterdir()):
        small = path.is_file() and path.suffix in _WORDS
        named = path.name.startswith("adapter_") or path.name.endswith(".index.json")
        if small and not named and (over or not (target / path.name).exists()):
            shutil.copyfile(path, target / path.name)
    if recipe is not None:
        template = trained_template(recipe)
        if template:
            (target / "chat_template.jinja").write_text(template, encoding="utf-8")
        (target / "README.md").write_text(_readme(recipe), encoding="utf-8")


def trained_template(recipe: TrainRecipe) -> str:
    """The chat template of the training, marked so that `--format auto` knows the format; "" for the model's own."""
    style = FORMATS.get(recipe.format)
    template = recipe.chat_template or (style.chat_template if style else None) or ""
    if not template or style is None or all(mark in template for mark in style.template_marks):
        return template
    return f"{{#- trained by bide for the format {style.name}: {' '.join(style.template_marks)} -#}}{template}"


def _readme(recipe: TrainRecipe) -> str:
    style = FORMATS.get(recipe.format)
    lines = [f"# {recipe.model}, trained by bide with the recipe {recipe.name}", ""]
    if style is not None:
        lines += [
            f"Reasoning format: `{style.name}` ({style.description}). In `bide`, `--format {style.name}`.",
            "",
            f"- thinking opens with `{_shown(style.open)}`",
            f"- it ends with {', '.join(f'`{_shown(end)}`' for end in style.ends)}, and the answer follows "
            f"`{_shown(style.natural_close or style.close)}`",
            "",
        ]
    lines += ["| setting | value |", "|---|---|"]
    lines += [f"| {name} | {_cell(value)} |" for name, value in recipe.to_json().items() if name != "chat_template"]
    return "\n".join(lines) + "\n"


def _shown(text: str) -> str:
    return text.replace("\n", "\\n")


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
