"""A reasoning format, and the texts of a budget, as ids of one tokenizer.

What `bide.budget_forcing` works with; made by `bide.engines.compile`. Standard library only.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from .errors import BudgetError

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Markers:
    """A reasoning format as ids of one tokenizer."""

    ends: tuple[Ids, ...]
    """What the model writes to end its thinking: any of these."""
    close: Ids
    """Forced to end thinking when it is cut."""
    natural_close: Ids | None = None
    """What stands after an end that the model wrote. None: what it wrote."""
    start: Ids = ()
    """What the model writes to open a (further) block. (): it never does."""
    answer_start: Ids = ()
    """Ends the header that follows a natural end (harmony). (): there is no header."""
    eos: frozenset[int] = frozenset()
    """Ids that end the turn. While thinking they end the thinking."""
    opened: bool = True
    """Whether the prompt already ends inside a thinking block."""
    newline: Ids = ()
    """Forced before `close` (and before waits, if `waits_on_new_line`) unless the line is complete."""
    empty: Ids = ()
    """Forced in place of `newline` when nothing at all was thought."""
    waits_on_new_line: bool = False
    """Whether a wait string starts a line."""
    line_ends: Container[int] = frozenset()
    """The ids whose text ends a line."""
    sentence_ends: Container[int] = frozenset()
    """The ids whose text ends a sentence."""

    def __post_init__(self) -> None:
        if not self.ends or not all(self.ends) or not self.close:
            raise BudgetError("a reasoning format needs at least one end marker, and a text that closes")
        for end in self.ends:
            for other in self.ends:
                if any(other[at : at + len(end)] == end for at in range(len(other) - len(end))):
                    raise BudgetError(f"end marker {other} can never be seen: {end} ends inside it")


@dataclass(frozen=True, slots=True)
class ForcedTexts:
    """The texts of one `ThinkingBudget` as ids of one tokenizer."""

    waits: tuple[Ids, ...] = ((),)
    soft_limit_message: Ids = ()
    end_message: Ids = ()
    answer_prefix: Ids = ()
