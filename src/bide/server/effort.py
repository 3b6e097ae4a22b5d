"""What an effort word is worth: a table that can be read, shown and replaced.

APIs have words ("low", "high") where bide has tokens, and no two of them agree on the exchange rate.
So there is no hidden one here: the table in force is an `EffortTable`, which a server shows in its
capabilities and takes from its command line as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ..errors import BudgetError, UsageError, unknown_name

Amount = int | Fraction | None
"""A maximum of thinking tokens; or a share of the response window; or None: no maximum."""


@dataclass(frozen=True, slots=True)
class EffortTable:
    """Effort word -> maximum of thinking tokens. Made with `from_mapping` or `from_json`."""

    amounts: Mapping[str, Amount]

    @classmethod
    def from_mapping(cls, given: Mapping[str, object]) -> EffortTable:
        """A table of `given`: word -> tokens (a whole number), a share of the response window (a number
        between 0 and 1, or text such as "1/16"), or None (no maximum). "none" is always 0.
        Raises `UsageError`."""
        amounts: dict[str, Amount] = {"none": 0}
        for word, value in given.items():
            if not isinstance(word, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", word):
                raise UsageError(f"an effort word is lower-case letters, not {word!r}")
            amounts[word] = _amount(word, value)
        if amounts["none"] != 0:
            raise UsageError(f"the effort 'none' is no thinking, so its amount is 0, not {given['none']!r}")
        return cls(amounts)

    @classmethod
    def from_json(cls, text: str) -> EffortTable:
        """A table from a JSON object, as a command-line option gives it. Raises `UsageError`."""
        try:
            given = json.loads(text, object_pairs_hook=_no_word_twice)
        except json.JSONDecodeError as error:
            raise UsageError(
                f"the effort table is not JSON: {error}", hint='for example {"low": 1024, "high": "1/2"}'
            ) from None
        if not isinstance(given, dict):
            raise UsageError(f"the effort table must be a JSON object, not {given!r}", hint='{"low": 1024, ...}')
        return cls.from_mapping(given)

    def amount(self, word: str) -> Amount:
        """What `word` stands for. Raises `UnknownNameError`, which lists the words there are."""
        try:
            return self.amounts[word]
        except KeyError:
            raise unknown_name("effort", word, self.amounts) from None

    def tokens(self, word: str, window: int | None) -> int | None:
        """`word` as a maximum of thinking tokens, None for no maximum. `window`: tokens of the response.
        Raises `UnknownNameError`, and `BudgetError` for a share of a window that nobody knows."""
        return amount_in_tokens(self.amount(word), window, f"the effort {word!r}")

    def to_dict(self) -> dict[str, int | str | None]:
        """As JSON has it; `from_mapping` reads it back."""
        return {word: str(amount) if isinstance(amount, Fraction) else amount for word, amount in self.amounts.items()}


def amount_in_tokens(amount: Amount, window: int | None, what: str) -> int | None:
    """`amount` in tokens. A share is rounded down, but never to 0, which would be no thinking at all.
    Raises `BudgetError` where `amount` is a share and the `window` is None."""
    if not isinstance(amount, Fraction):
        return amount
    if window is None:
        raise BudgetError(
            f"{what} is {amount} of the response window, which is not known",
            hint="limit the response (max_tokens), or give thinking_token_budget in tokens",
        )
    return max(1, int(amount * window))


def _amount(word: str, value: object) -> Amount:
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    share: Fraction | None = None
    if isinstance(value, Fraction):
        share = value
    elif isinstance(value, float) and 0 < value < 1:
        share = Fraction(value).limit_denominator(10_000)
    elif isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}/[1-9][0-9]{0,5}", value):
        share = Fraction(value)
    if share is None or not 0 < share < 1:
        raise UsageError(
            f"the effort {word!r} cannot be worth {value!r}",
            hint='tokens (1024), a share of the response window between 0 and 1 ("1/4" or 0.25), or null: no maximum',
        )
    return share


def _no_word_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        words = [word for word, _ in pairs]
        twice = next(word for word in words if words.count(word) > 1)
        raise UsageError(f"the effort {twice!r} stands twice in the table")
    return table


LITELLM_EFFORTS = EffortTable.from_mapping(
    {"minimal": 128, "low": 1024, "medium": 2048, "high": 4096, "xhigh": 8192, "max": 16384}
)
"""LiteLLM's exchange rate, in tokens. The default."""

OLLAMA_EFFORTS = EffortTable.from_mapping(
    {"minimal": "1/16", "low": "1/8", "medium": "1/4", "high": "1/2", "max": "4/5"}
)
"""Shares of the response window, as proposed for Ollama."""

EFFORT_TABLES: dict[str, EffortTable] = {"litellm": LITELLM_EFFORTS, "ollama": OLLAMA_EFFORTS}
"""Name -> table, for an option that takes a name in place of JSON."""
