"""The public surface, pinned: a change here is a change for every user."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import bide

NAMES = {
    "ENGINES", "FORMATS", "Action", "BideError", "BudgetForcer", "BudgetReport", "Completion", "ForcedTexts",
    "Markers", "Message", "ReasoningFormat", "Region", "Request", "Sampling", "State", "ThinkingBudget", "Timing",
    "load_engine",
}  # fmt: skip
EXTRAS = {
    "reasoning-gym", "lm-eval", "inspect", "transformers", "vllm", "serve", "eval", "curate", "train", "train-4bit",
    "explore", "export", "tensorboard", "wandb", "test", "all",
}  # fmt: skip


def test_exported_names() -> None:
    assert set(bide.__all__) == set(bide._HOMES) == NAMES <= set(dir(bide))
    for name in NAMES:
        assert getattr(bide, name).__doc__ or isinstance(getattr(bide, name), dict), f"{name} has no docstring"


def test_extras() -> None:
    project = Path(__file__).parent.parent / "pyproject.toml"
    if not project.exists():
        pytest.skip("not a source tree")
    data = tomllib.loads(project.read_text(encoding="utf-8"))
    assert set(data["project"]["optional-dependencies"]) == EXTRAS


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="'bide' has no attribute 'BudgetForcr'"):
        bide.BudgetForcr  # type: ignore[attr-defined]  # noqa: B018
