"""Token by token and segment by segment must be the same turn, whatever the segments."""

from __future__ import annotations

import random

import pytest

from bide.budget_forcing import BudgetForcer
from bide.engines.base import DoneEvent, Request, TokensEvent
from bide.engines.mock import MockEngine
from bide.formats import FORMATS
from bide.s1_parity import S1Forcer
from bide.thinking_budget import ThinkingBudget
from bide.types import Message, Sampling
from forcing_tools import Case, hashed_model, outcome, random_case, random_s1_case, run_turn


def assert_segments_change_nothing(case: Case, kind: type[BudgetForcer]) -> None:
    model = hashed_model(case.seed)
    single, segments = case.forcer(kind), case.forcer(kind)
    one = run_turn(single, case.prompt, model, events=case.events)
    draw = random.Random(case.seed)
    longest = draw.choice((2, 5, 50))
    other = run_turn(segments, case.prompt, model, events=case.events, chunk=lambda: draw.randint(1, longest))
    assert outcome(single) == outcome(segments), case
    assert [(s.context, s.token) for s in one] == [(s.context, s.token) for s in other], case


@pytest.mark.parametrize("block", range(4))
def test_exact_mode_in_segments(block: int) -> None:
    for seed in range(block * 700, (block + 1) * 700):
        assert_segments_change_nothing(random_case(seed, events=seed % 2 == 0, loops=True), BudgetForcer)


@pytest.mark.parametrize("block", range(2))
def test_s1_mode_in_segments(block: int) -> None:
    for seed in range(block * 700, (block + 1) * 700):
        assert_segments_change_nothing(random_s1_case(seed, longest=20), S1Forcer)


def random_request(draw: random.Random, format: str, mode: str) -> Request:
    maximum = draw.randint(1, 24)
    minimum = draw.choice((0, 0, draw.randint(1, maximum)))
    waits = draw.randint(0, 3)
    strings = draw.choice((None, ("Wait",), ("", "Hmm"), ("",)))
    if mode == "s1":
        minimum = 0 if waits else minimum
        budget = ThinkingBudget(maximum, minimum, waits, wait_strings=strings if waits else None, mode="s1")
    else:
        budget = ThinkingBudget(
            maximum,
            minimum,
            waits,
            wait_strings=strings if waits or minimum else None,
            soft_limit=draw.choice((None, 0)) if maximum > 3 else None,
            soft_limit_message=None,
            grace_tokens=(grace := draw.choice((0, min(3, maximum)))),
            boundary=draw.choice(("line", "sentence")) if grace else "token",
            end_message=draw.choice(("", "", "!")) if maximum > 1 else "",
            answer_prefix=draw.choice((None, "", "So:")),
            reserve_answer_tokens=0,
        )
        if budget.soft_limit is not None:
            budget = ThinkingBudget(maximum, waits=waits, soft_limit=0, soft_limit_message="h", end_message="")
    return Request(
        messages=(Message("user", "q"),),
        budget=budget,
        sampling=Sampling(seed=draw.randint(0, 10**6)),
        format=format,
        max_tokens=draw.randint(20, 90),
        max_answer_tokens=draw.choice((None, 10)),
    )


def play(request: Request, chunk: int) -> tuple[object, ...]:
    """All that a caller of the engine gets, without the boundaries between events."""
    pieces: list[str] = []
    rows: list[tuple[int, bool, int]] = []
    for event in MockEngine("random", chunk=chunk).generate([request]):
        if isinstance(event, TokensEvent):
            pieces.append(event.text)
            rows += [(token, event.forced, int(event.region)) for token in event.token_ids]
    assert isinstance(event, DoneEvent)
    done = event.completion
    assert done.token_ids == [token for token, _, _ in rows]
    assert done.forced == [int(forced) for _, forced, _ in rows]
    return rows, done.budget, done.finish_reason, done.thinking, done.answer, "".join(pieces)


@pytest.mark.parametrize(
    ("format", "mode"),  # mode="s1" refuses end markers of several tokens, which cot has
    [(name, mode) for name in sorted(FORMATS) for mode in ("exact", "s1") if (name, mode) != ("cot", "s1")],
)
def test_engine_gives_the_same_turn_in_segments(format: str, mode: str) -> None:
    draw = random.Random(f"{format} {mode}")
    for _ in range(300):
        request = random_request(draw, format, mode)
        single = play(request, 1)
        chunk = draw.randint(2, 50)
        assert play(request, chunk) == single, (request, chunk)
