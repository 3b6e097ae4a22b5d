"""Whole turns, written down by hand from the rules: `golden/*.json`, one file for each format.

A case says what the model writes (`script`: a text for each time it is given the floor; what is
left of a text when forced ids come is void; {"do": ...} is the client) and what must come out
(`runs`: text, "sampled" or "forced", region), as text of `MockTokenizer`, so that a person can
check it against the docstring of `bide.budget_forcing`. "bans": so many samples with banned ids.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bide.budget_forcing import Action, Region
from bide.engines.base import DoneEvent, Request, TokensEvent
from bide.engines.mock import MockEngine, MockTokenizer
from bide.engines.turn import Turn
from bide.formats import FORMATS
from bide.thinking_budget import ThinkingBudget
from bide.types import Message

FILES = sorted((Path(__file__).parent / "golden").glob("*.json"))
TOKENIZER = MockTokenizer()


def load() -> list[Any]:
    cases = []
    for file in FILES:
        golden = json.loads(file.read_text(encoding="utf-8"))
        assert golden["format"] == file.stem
        cases += [pytest.param(file.stem, case, id=f"{file.stem}: {case['name']}") for case in golden["cases"]]
    return cases


def request_of(format: str, case: dict[str, Any]) -> Request:
    return Request(
        messages=(Message("user", "q"),),
        budget=ThinkingBudget(**case["budget"]),
        format=format,
        max_tokens=case.get("max_tokens"),
        max_answer_tokens=case.get("max_answer_tokens"),
    )


def expected_rows(case: dict[str, Any]) -> list[tuple[int, int, int]]:
    """(id, forced, region) for each output token."""
    return [
        (token, int(who == "forced"), int(Region[region.upper()]))
        for text, who, region in case["runs"]
        for token in TOKENIZER.encode(text)
    ]


def play(turn: Turn, script: list[Any]) -> int:
    """Feed the script. Returns how many samples were taken under a ban."""
    forcer, bans = turn.forcer, 0
    for part in script:
        if isinstance(part, dict):
            for _ in range(part.get("after_forced", 0)):
                assert forcer.next_forced() is not None
            if part["do"] == "end_thinking":
                forcer.end_thinking()
            else:
                forcer.finish("client")
            continue
        for token in TOKENIZER.encode(part):
            forcer.drain_forced()
            if forcer.done:
                break
            bans += bool(forcer.banned_ids())
            assert token not in forcer.banned_ids()
            action = forcer.feed(token)
            if action is Action.FORCE:
                break
    forcer.drain_forced()
    return bans


def check_report(case: dict[str, Any], report: dict[str, Any], finish_reason: str | None) -> None:
    for name in ("used", "sampled", "forced_tokens", "waits", "ended_by"):
        assert report[name] == case[name], name
    assert finish_reason == case["finish_reason"]
    maximum, minimum = report["max"], report["min"]
    assert report["exact"] == ((maximum is None or case["used"] <= maximum) and case["used"] >= minimum)


def test_there_is_a_file_for_each_format() -> None:
    assert {file.stem for file in FILES} == set(FORMATS)


@pytest.mark.parametrize(("format", "case"), load())
def test_transcript(format: str, case: dict[str, Any]) -> None:
    rows = expected_rows(case)
    # The hand-written counts and the hand-written text must agree before anything is run.
    assert case["used"] == sum(region == Region.THINKING for _, _, region in rows)
    assert case["forced_tokens"] == sum(forced for _, forced, _ in rows)
    turn = Turn(0, request_of(format, case), TOKENIZER, engine="test", model="test", window=None)
    bans = play(turn, case["script"])
    forcer = turn.forcer
    assert list(zip(forcer.token_ids, forcer.forced, forcer.regions)) == rows
    completion = turn.completion()
    check_report(case, completion.budget, completion.finish_reason)
    if "bans" in case:
        assert bans >= case["bans"]


@pytest.mark.parametrize("chunk", [1, 6])
@pytest.mark.parametrize(("format", "case"), load())
def test_transcript_through_the_engine(format: str, case: dict[str, Any], chunk: int) -> None:
    if not all(isinstance(part, str) for part in case["script"]):
        return  # the client's part is played above
    rows: list[tuple[int, int, int]] = []
    for event in MockEngine(case["script"], chunk=chunk).generate([request_of(format, case)]):
        if isinstance(event, TokensEvent):
            rows += [(token, int(event.forced), int(event.region)) for token in event.token_ids]
    assert isinstance(event, DoneEvent)
    assert rows == expected_rows(case)
    check_report(case, event.completion.budget, event.completion.finish_reason)
