"""`ThinkingBudget`: what it takes, what it refuses, and what its refusals say."""

from __future__ import annotations

from typing import Any

import pytest

from bide.errors import BudgetError, UsageError
from bide.thinking_budget import DEFAULT_SOFT_LIMIT_MESSAGE, ThinkingBudget

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"thinking_token_budget": -1}, r"thinking_token_budget must be 0 or more, not -1", ""),
    ({"thinking_token_budget": 1.5}, r"thinking_token_budget must be a whole number.*not 1\.5", ""),
    ({"thinking_token_budget": True}, r"thinking_token_budget must be a whole number.*not True", ""),
    ({"thinking_token_budget": "9"}, r"thinking_token_budget must be a whole number.*not '9'", ""),
    ({"min_thinking_tokens": -2}, r"min_thinking_tokens must be 0 or more, not -2", ""),
    ({"min_thinking_tokens": None}, r"min_thinking_tokens must be a whole number.*None", ""),
    ({"waits": -1}, r"waits must be 0 or more, not -1", ""),
    ({"waits": 1.0}, r"waits must be a whole number.*1\.0", ""),
    ({"grace_tokens": -1}, r"grace_tokens must be 0 or more", ""),
    ({"reserve_answer_tokens": -1}, r"reserve_answer_tokens must be 0 or more", ""),
    ({"thinking_token_budget": 5, "min_thinking_tokens": 6}, r"is 6, above the maximum .* of 5", "lower the minimum"),
    ({"wait_strings": "Hmm"}, r"wait_strings has no effect with waits=0", "set waits to 1 or more"),
    ({"wait_strings": (), "waits": 1}, r"one or more strings, not \(\)", ""),
    ({"wait_strings": ("a", 3), "waits": 1}, r"one or more strings, not \('a', 3\)", ""),
    ({"wait_strings": 3, "waits": 1}, r"one or more strings, not 3", ""),
    ({"soft_limit_message": "x"}, r"soft_limit_message has no effect without soft_limit", ""),
    ({"soft_limit_message": "", "soft_limit": 3}, r"soft_limit has no effect with an empty", "leave both out"),
    ({"soft_limit_message": 3, "soft_limit": 3}, r"soft_limit_message must be a string, not 3", ""),
    ({"end_message": None}, r"end_message must be a string, not None", ""),
    ({"answer_prefix": 7}, r"answer_prefix must be a string, not 7", ""),
    ({"soft_limit": 0.0, "thinking_token_budget": 9}, r"between 0 and 1, not 0\.0", ""),
    ({"soft_limit": 1.0, "thinking_token_budget": 9}, r"between 0 and 1, not 1\.0", ""),
    ({"soft_limit": float("nan"), "thinking_token_budget": 9}, r"between 0 and 1, not nan", ""),
    ({"soft_limit": 0.5}, r"soft_limit=0\.5 is a fraction of thinking_token_budget, which is not set", ""),
    ({"soft_limit": -3}, r"soft_limit must be 0 or more, not -3", ""),
    ({"soft_limit": "half"}, r"soft_limit must be a whole number.*'half'", ""),
    ({"soft_limit": True}, r"soft_limit must be a whole number.*True", ""),
    ({"soft_limit": 9, "thinking_token_budget": 9}, r"soft_limit is 9, at or above the maximum of 9", ""),
    ({"soft_limit": 0.5, "thinking_token_budget": 0}, r"soft_limit is 0\.5, at or above the maximum of 0", ""),
    ({"boundary": "word"}, r"boundary must be 'token', 'line' or 'sentence', not 'word'", ""),
    ({"boundary": "line"}, r"grace_tokens=0 with boundary='line' has no effect", "a grace window needs boundary"),
    ({"grace_tokens": 3, "thinking_token_budget": 9}, r"grace_tokens=3 with boundary='token' has no effect", "window"),
    ({"grace_tokens": 3, "boundary": "line"}, r"is 3, but the window .* which is None", "set thinking_token_budget"),
    (
        {"grace_tokens": 10, "boundary": "line", "thinking_token_budget": 9},
        r"grace_tokens is 10, but the window must lie inside the maximum, which is 9",
        "more than grace_tokens",
    ),
    ({"loop_guard": 1}, r"loop_guard must be 2 or more repeats, not 1", ""),
    ({"loop_guard": 2.5}, r"loop_guard must be a whole number", ""),
    ({"mode": "s2"}, r"mode must be 'exact' or 's1', not 's2'", ""),
    ({"mode": "s1", "thinking_token_budget": 0}, r"mode='s1' needs a thinking_token_budget of at least 1", ""),
    ({"mode": "s1", "waits": 1, "min_thinking_tokens": 1}, r"waits or min_thinking_tokens, not both", "drops the min"),
    ({"mode": "s1", "soft_limit": 3}, r"soft_limit does not exist in the reference", ""),
    (
        {"mode": "s1", "grace_tokens": 3, "boundary": "line", "thinking_token_budget": 9},
        r"grace_tokens does not exist in the reference",
        "",
    ),
    ({"mode": "s1", "end_message": "x"}, r"end_message does not exist in the reference", ""),
    ({"mode": "s1", "reserve_answer_tokens": 1}, r"reserve_answer_tokens does not exist in the reference", ""),
    ({"mode": "s1", "loop_guard": 2}, r"loop_guard does not exist in the reference", ""),
]


@pytest.mark.parametrize(("values", "message", "hint"), REFUSED)
def test_refused(values: dict[str, Any], message: str, hint: str) -> None:
    with pytest.raises(BudgetError, match=message) as caught:
        ThinkingBudget(**values)
    assert hint in caught.value.hint
    assert isinstance(caught.value, UsageError) and isinstance(caught.value, ValueError)
    assert "\n" not in caught.value.one_line()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"thinking_token_budget": 0},
        {"thinking_token_budget": 5, "min_thinking_tokens": 5},
        {"min_thinking_tokens": 3, "wait_strings": ("a", "")},
        {"waits": 2, "wait_strings": ["a", "b"]},
        {"soft_limit": 0},
        {"soft_limit": 8, "thinking_token_budget": 9, "soft_limit_message": "x"},
        {"soft_limit": 0.99, "thinking_token_budget": 9},
        {"grace_tokens": 9, "boundary": "line", "thinking_token_budget": 9},
        {"grace_tokens": 1, "boundary": "sentence", "thinking_token_budget": 9},
        {"end_message": "x", "answer_prefix": ""},
        {"reserve_answer_tokens": 5, "loop_guard": 2},
        {"mode": "s1", "thinking_token_budget": 1, "waits": 3, "wait_strings": "", "answer_prefix": "x"},
        {"mode": "s1", "min_thinking_tokens": 3},
    ],
)
def test_taken(values: dict[str, Any]) -> None:
    budget = ThinkingBudget(**values)
    assert hash(budget) == hash(ThinkingBudget(**values))


def test_a_plain_string_is_a_list_of_one() -> None:
    assert ThinkingBudget(waits=1, wait_strings="Hmm").wait_strings == ("Hmm",)  # type: ignore[arg-type]
    assert ThinkingBudget(waits=1, wait_strings=["a", "b"]).wait_strings == ("a", "b")  # type: ignore[arg-type]
    assert ThinkingBudget(waits=1).effective_wait_strings == ("Wait",)


def test_soft_limit_in_tokens() -> None:
    assert ThinkingBudget().soft_limit_tokens is None
    assert ThinkingBudget(soft_limit=7).soft_limit_tokens == 7
    assert ThinkingBudget(10, soft_limit=0.75).soft_limit_tokens == 7
    assert ThinkingBudget(3, soft_limit=0.2).soft_limit_tokens == 0
    assert ThinkingBudget(soft_limit=7).effective_soft_limit_message == DEFAULT_SOFT_LIMIT_MESSAGE
    assert ThinkingBudget(soft_limit=7, soft_limit_message="x").effective_soft_limit_message == "x"


def test_refuses_ends() -> None:
    assert not ThinkingBudget(5).refuses_ends
    assert ThinkingBudget(waits=1).refuses_ends and ThinkingBudget(min_thinking_tokens=1).refuses_ends
