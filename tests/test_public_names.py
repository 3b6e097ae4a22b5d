"""The public surface, pinned: a change here is a change for every user."""

from __future__ import annotations

import subprocess
import sys
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


@pytest.mark.parametrize("name", ["budget_forcing", "engines", "errors", "formats", "thinking_budget", "types"])
def test_modules_are_attributes(name: str) -> None:
    """In a process that has imported none of them."""
    program = f"import bide, sys; assert 'bide.{name}' not in sys.modules; print(bide.{name}.__name__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"bide.{name}\n"


def test_a_type_checker_knows_the_names(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import bide\nfrom bide import BudgetForcer, BudgetForcr\n\nbide.ThinkingBudget\nbide.Thinking\n"
    )
    settings = ["--config-file=", "--follow-imports=silent", f"--cache-dir={tmp_path}", str(program)]
    said, _, _ = pytest.importorskip("mypy.api").run(settings)
    assert [line.partition("error: ")[2] for line in said.splitlines() if ": error: " in line] == [
        'Module "bide" has no attribute "BudgetForcr"; maybe "BudgetForcer"?  [attr-defined]',
        'Module has no attribute "Thinking"  [attr-defined]',
    ]
