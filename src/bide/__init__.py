"""bide: make a language model think exactly as long as you ask."""

from __future__ import annotations

from .budget_forcing import Action, BudgetForcer, BudgetReport, ForcedTexts, Markers, Region, State
from .engines import ENGINES, load_engine
from .engines.base import Request
from .errors import BideError
from .formats import FORMATS, ReasoningFormat
from .thinking_budget import ThinkingBudget
from .types import Completion, Message, Sampling, Timing

__version__ = "0.1.0"

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
