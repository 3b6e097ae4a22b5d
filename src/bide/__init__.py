"""bide: make a language model think exactly as long as you ask."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .budget_forcing import Action, BudgetForcer, BudgetReport, ForcedTexts, Markers, Region, State
    from .engines import ENGINES, load_engine
    from .engines.base import Request
    from .errors import BideError
    from .formats import FORMATS, ReasoningFormat
    from .thinking_budget import ThinkingBudget
    from .types import Completion, Message, Sampling, Timing

__version__ = "0.1.0"

_HOMES = {
    "ENGINES": "engines",
    "FORMATS": "formats",
    "Action": "budget_forcing",
    "BideError": "errors",
    "BudgetForcer": "budget_forcing",
    "BudgetReport": "budget_forcing",
    "Completion": "types",
    "ForcedTexts": "budget_forcing",
    "Markers": "budget_forcing",
    "Message": "types",
    "ReasoningFormat": "formats",
    "Region": "budget_forcing",
    "Request": "engines.base",
    "Sampling": "types",
    "State": "budget_forcing",
    "ThinkingBudget": "thinking_budget",
    "Timing": "types",
    "load_engine": "engines",
}
"""Public name -> the module that has it, imported when the name is first used: `bide --help` needs none of them."""

__all__ = [
    "ENGINES",
    "FORMATS",
    "Action",
    "BideError",
    "BudgetForcer",
    "BudgetReport",
    "Completion",
    "ForcedTexts",
    "Markers",
    "Message",
    "ReasoningFormat",
    "Region",
    "Request",
    "Sampling",
    "State",
    "ThinkingBudget",
    "Timing",
    "load_engine",
]


_MODULES = ("budget_forcing", "engines", "errors", "formats", "thinking_budget", "types")
"""Modules that are attributes too, `bide.errors` after `import bide`."""

if not TYPE_CHECKING:  # for a type checker, a module that has this has every name

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")  # which makes it an attribute
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_MODULES})
