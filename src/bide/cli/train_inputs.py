"""What `bide train plan` and `bide train run` read from their options alike."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import MissingExtraError, UsageError
from ..train.gpus import PRICES, checked_prices, read_prices
from ..train.model_files import model_directory
from ..train.recipe import TrainRecipe


def pairs(texts: Sequence[str], option: str) -> dict[str, str]:
    """From NAME=VALUE, repeated, each name once. Raises `UsageError`."""
    found: dict[str, str] = {}
    for text in texts:
        name, given, value = text.partition("=")
        if not given or not name:
            raise UsageError(f"{option} takes NAME=VALUE, not {text!r}")
        name = name.replace("-", "_")
        if name in found:
            raise UsageError(f"{option} gives {name} twice: {found[name]!r} and {value!r}", hint="leave one out")
        found[name] = value
    return found


def prices(file: Path | None, texts: Sequence[str]) -> dict[str, float]:
    """USD for an hour of each kind of GPU: the table, a file over it, single ones over that. Raises `UsageError`."""
    found = dict(PRICES) if file is None else read_prices(file)
    single: dict[str, float] = {}
    for text in texts:
        name, _, value = text.lower().partition("=")
        try:
            price = float(value)
        except ValueError:
            raise UsageError(f"--price takes NAME=USD, such as h200=3.5, not {text!r}") from None
        if name in single:
            raise UsageError(f"--price gives {name} twice: {single[name]:g} and {price:g}", hint="leave one out")
        single |= checked_prices({name: price}, found)
    return found | single


def tokenizer(directory: Path | None, recipe: TrainRecipe) -> Any:
    """Of a directory, or of the recipe's model. Raises `MissingExtraError`, and as `model_directory`."""
    try:
        module = importlib.import_module("bide.train.tokenizer")
    except ModuleNotFoundError as error:
        if error.name != "tokenizers":
            raise
        raise MissingExtraError("tokenizers", "train") from None
    return module.TrainTokenizer(directory or model_directory(recipe.model, module.FILES))
