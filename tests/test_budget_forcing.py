"""`BudgetForcer`: against the slow rules, and its contract with engines, call by call."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from bide.budget_forcing import Action, BudgetForcer, ForcedTexts, Markers, State
from bide.errors import BudgetError
from bide.thinking_budget import ThinkingBudget
from forcing_oracle import Oracle
from forcing_tools import hashed_model, outcome, random_case, run_turn

EOS, LINE = 0, 9


def forcer(
    maximum: int | None = None,
    texts: ForcedTexts = ForcedTexts(),
    *,
    markers: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    **budget: Any,
) -> BudgetForcer:
    """A small format: 7 8 ends thinking, 6 7 opens it, 9 is a line end, 0 ends the turn."""
    known: dict[str, Any] = {
        "ends": ((7, 8),), "close": (7, 8), "start": (6, 7), "eos": frozenset((EOS,)), "newline": (LINE,),
        "line_ends": frozenset((LINE,)), "sentence_ends": frozenset((LINE, 4)),
    }  # fmt: skip
    return BudgetForcer(
        ThinkingBudget(maximum, **budget), Markers(**(known | (markers or {}))), texts, **(options or {})
    )


def feed(machine: BudgetForcer, *tokens: int) -> list[str]:
    """Names of the actions; forced ids are taken as they come."""
    actions = []
    for token in tokens:
        machine.drain_forced()
        actions.append(machine.feed(token).name)
    machine.drain_forced()
    return actions


@pytest.mark.parametrize("block", range(6))
def test_equals_the_slow_rules(block: int) -> None:
    seen: Counter[str | None] = Counter()
    for seed in range(block * 1200, (block + 1) * 1200):
        case = random_case(seed, events=seed % 3 == 0)
        model = hashed_model(seed)
        oracle = Oracle(case, model)
        expected = oracle.run()
        machine = case.forcer()
        trace = run_turn(machine, case.prompt, model, events=case.events)
        assert outcome(machine) == expected, case
        assert trace == oracle.trace, case
        seen[expected.ended_by] += 1
    assert set(seen) == {None, "natural", "eos", "budget", "grace", "client", "length"} and min(seen.values()) > 10


# Held back.


def test_hold_then_release_shows_nothing_early() -> None:
    machine = forcer()
    assert feed(machine, 1, 7) == ["ACCEPT", "HOLD"]
    assert (machine.token_ids, machine.pending, machine.context_length) == ([1], [7], 2)
    assert feed(machine, 2) == ["ACCEPT"]
    assert (machine.token_ids, machine.pending) == ([1, 7, 2], [])


def test_the_fast_path_comes_back_after_a_hold() -> None:
    machine = forcer(5)
    feed(machine, 7, 7, 1)
    assert machine.token_ids == [7, 7, 1]
    assert feed(machine, 7, 8) == ["HOLD", "ACCEPT"]
    assert machine.ended_by == "natural" and machine.used == 3


def test_an_end_at_the_edge_counts_only_what_stands() -> None:
    machine = forcer(3)
    assert feed(machine, 1, 1, 7) == ["ACCEPT", "ACCEPT", "HOLD"]
    assert machine.lookahead() == 1
    feed(machine, 8)
    assert machine.ended_by == "natural" and machine.used == 2
    machine = forcer(3)
    feed(machine, 1, 1, 7, 2)  # no end: the 7 was the third thought, the 2 is void
    assert machine.token_ids == [1, 1, 7, LINE, 7, 8] and machine.ended_by == "budget"


def test_end_of_turn_while_holding_counts_the_held_ids() -> None:
    machine = forcer(9)
    assert feed(machine, 1, 7, EOS) == ["ACCEPT", "HOLD", "FORCE"]
    assert machine.token_ids == [1, 7, 9, 7, 8] and machine.ended_by == "eos" and machine.used == 2


def test_an_end_of_turn_id_inside_a_marker_ends_the_turn() -> None:
    machine = forcer(9, markers={"ends": ((7, EOS),)})
    feed(machine, 1, 7, EOS)
    assert machine.ended_by == "eos" and machine.token_ids == [1, 7, 9, 7, 8]


def test_a_soft_limit_without_a_text_does_not_disturb_a_marker() -> None:
    machine = forcer(9, ends_held := ForcedTexts(), soft_limit=1, markers={"ends": ((7, 7, 8),)})
    assert ends_held.soft_limit_message == ()
    assert feed(machine, 7, 7, 7, 8) == ["HOLD", "HOLD", "HOLD", "ACCEPT"]
    assert machine.ended_by == "natural" and machine.token_ids == [7, 7, 7, 8] and machine.used == 1


# Limits.


def test_max_tokens_stops_thinking_on_the_fast_path() -> None:
    machine = forcer(options={"max_tokens": 3})
    assert machine.lookahead() == 3
    assert feed(machine, 1, 1, 1) == ["ACCEPT", "ACCEPT", "STOP"]
    assert (machine.finish_reason, machine.ended_by, machine.used) == ("length", "length", 3)


def test_max_tokens_inside_a_written_marker_leaves_the_end_natural() -> None:
    machine = forcer(options={"max_tokens": 2})
    assert feed(machine, 1, 7, 8) == ["ACCEPT", "HOLD", "STOP"]
    assert machine.token_ids == [1, 7] and machine.ended_by == "natural" and machine.finish_reason == "length"


def test_max_tokens_inside_a_forced_text_drops_the_rest() -> None:
    machine = forcer(1, ForcedTexts(answer_prefix=(3, 3)), options={"max_tokens": 5})
    assert machine.feed(1) is Action.FORCE
    assert machine.drain_forced() == [LINE, 7, 8, 3]
    assert machine.done and machine.ended_by == "budget" and machine.next_forced() is None


def test_a_spent_budget_is_not_overrun_by_a_second_end_message() -> None:
    machine = forcer(3, ForcedTexts(end_message=(2,)))
    feed(machine, 1, 1, 6, 7)
    assert machine.token_ids == [1, 1, 2, LINE, 7, 8, 6, 7, LINE, 7, 8]
    assert machine.used == 3 and machine.report().exact


def test_grace_never_ends_thinking_before_the_minimum() -> None:
    machine = forcer(8, grace_tokens=6, boundary="line", min_thinking_tokens=4)
    feed(machine, 1, 1, LINE, 1, LINE)
    assert machine.used == 5 and machine.ended_by == "grace" and machine.report().exact


def test_lookahead_stops_at_every_count() -> None:
    hint = ForcedTexts(soft_limit_message=(2,))
    machine = forcer(20, hint, soft_limit=6, grace_tokens=16, boundary="line")
    assert machine.lookahead() == 4  # the window begins
    feed(machine, 1, 1, 1, 1)
    assert machine.lookahead() == 2  # the hint
    feed(machine, 1, 1)
    assert machine.lookahead() == 13  # the maximum
    feed(machine, 7)
    assert machine.lookahead() == 12
    machine.end_thinking()
    assert machine.lookahead() == 1


# Texts.


def test_a_soft_limit_of_nothing_speaks_first() -> None:
    machine = forcer(9, ForcedTexts(soft_limit_message=(2, 2)), soft_limit=0)
    assert machine.drain_forced() == [2, 2] and machine.state is State.THINKING and machine.used == 2


def test_an_empty_wait_bans_the_end_until_a_thought_stands() -> None:
    machine = forcer(9, ForcedTexts(waits=((),)), waits=1)
    assert feed(machine, 1, 7, 8) == ["ACCEPT", "HOLD", "FORCE"]
    assert machine.token_ids == [1] and machine.lookahead() == 1
    assert machine.banned_ids() == {EOS}
    feed(machine, 7)
    assert machine.banned_ids() == {EOS, 8} and machine.lookahead() == 1
    feed(machine, 2)
    assert machine.banned_ids() == frozenset() and machine.lookahead() == 6
    feed(machine, 7, 8)
    assert machine.ended_by == "natural" and machine.waits_taken == 1


def test_the_ban_ends_on_the_fast_path_too() -> None:
    machine = forcer(9, ForcedTexts(waits=((),)), waits=1, markers={"ends": ((7,),), "close": (7,), "start": ()})
    feed(machine, 1, 7)
    assert machine.banned_ids() == {EOS, 7}
    feed(machine, 1)
    assert machine.banned_ids() == frozenset()


def test_an_engine_that_ignores_the_ban_does_not_ban_the_answer() -> None:
    machine = forcer(9, ForcedTexts(waits=((),)), waits=1)
    feed(machine, 7, 8, 7, 8)
    assert machine.state is State.ANSWERING and machine.banned_ids() == frozenset() and machine.lookahead() > 1


# The client.


def test_end_thinking_is_one_token_away() -> None:
    machine = forcer(900)
    feed(machine, 1)
    machine.end_thinking()
    assert machine.lookahead() == 1
    assert machine.feed(2) is Action.FORCE
    assert machine.drain_forced() == [LINE, 7, 8] and machine.ended_by == "client"


def test_end_thinking_takes_no_more_waits() -> None:
    machine = forcer(900, ForcedTexts(waits=((5,),)), waits=3)
    feed(machine, 1)
    machine.end_thinking()
    feed(machine, 7, 8)
    assert machine.token_ids == [1, 7, 8] and machine.ended_by == "natural" and machine.waits_taken == 0


def test_end_thinking_while_a_wait_is_forced() -> None:
    machine = forcer(900, ForcedTexts(waits=((5, 4, 4),)), waits=3)
    for token in (1, 7, 8):
        machine.feed(token)
    assert machine.next_forced() == 5
    machine.end_thinking()
    assert machine.drain_forced() == [4, 4, LINE, 7, 8] and machine.ended_by == "client"


def test_end_thinking_does_not_reach_the_next_block() -> None:
    machine = forcer(900)
    feed(machine, 1)
    machine.end_thinking()
    feed(machine, 7, 8, 3, 6, 7, 1, 1)
    assert machine.state is State.THINKING and machine.used == 3


def test_end_thinking_outside_a_block_does_nothing() -> None:
    machine = forcer(2)
    machine.feed(1)
    machine.feed(1)
    machine.end_thinking()  # the closing text is being forced
    machine.drain_forced()
    machine.end_thinking()
    assert machine.ended_by == "budget" and machine.lookahead() > 1


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_finish_while_forcing(taken: int) -> None:
    machine = forcer(9, ForcedTexts(waits=((5, 5),)), waits=1)
    for token in (1, 7, 8):
        machine.feed(token)
    for _ in range(taken):
        machine.next_forced()
    machine.finish("client")
    assert machine.done and machine.token_ids == [1, 5, 5][: 1 + taken] and machine.next_forced() is None
    assert (machine.ended_by, machine.finish_reason) == ("client", "client")
    machine.finish("length")
    assert machine.finish_reason == "client"


def test_finish_while_the_closing_text_is_forced_keeps_the_reason() -> None:
    machine = forcer(1)
    machine.feed(1)
    machine.finish("client")
    assert machine.ended_by == "budget" and machine.token_ids == [1] and machine.drain_forced() == []


def test_finish_shows_what_is_held_as_far_as_the_budget_goes() -> None:
    machine = forcer(3, markers={"ends": ((7, 7, 7, 8),)})
    feed(machine, 1, 7, 7, 7)
    machine.finish("length")
    assert machine.token_ids == [1, 7, 7] and machine.pending == [] and machine.drain_forced() == []
    assert (machine.ended_by, machine.finish_reason) == ("length", "length")


# Segments.


def test_ids_behind_a_force_are_void() -> None:
    machine = forcer(2)
    assert machine.feed_segment([1, 1, 1, 1]) == (2, Action.FORCE)
    machine.drain_forced()
    assert machine.feed_segment([3, EOS, 3]) == (2, Action.STOP)
    assert machine.feed_segment([]) == (0, Action.ACCEPT)
    assert machine.token_ids == [1, 1, LINE, 7, 8, 3, EOS]


def test_feeding_out_of_turn_is_a_mistake_of_the_engine() -> None:
    machine = forcer(1)
    machine.feed(1)
    with pytest.raises(AssertionError, match="forced ids"):
        machine.feed(1)
    machine.drain_forced()
    machine.feed(EOS)
    with pytest.raises(AssertionError, match="turn is over"):
        machine.feed(1)


# The report and what is refused.


def test_report_tells_minimum_and_maximum() -> None:
    machine = forcer(5, min_thinking_tokens=3, texts=ForcedTexts(waits=((5,),)))
    feed(machine, 1)
    assert not machine.report().exact
    feed(machine, 7, 8, 1, 7, 8)
    report = machine.report()
    assert (report.max, report.min, report.used, report.sampled, report.waits) == (5, 3, 3, 2, 1)
    assert report.exact and report.forced_tokens == 1 and report.ended_by == "natural"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maximum": 3, "texts": ForcedTexts(end_message=(1, 1, 1))}, "end_message alone is 3 tokens.*is 3"),
        ({"maximum": 5, "texts": ForcedTexts(soft_limit_message=(1, 1)), "soft_limit": 3}, "soft_limit at 3.*budget=5"),
        ({"reserve_answer_tokens": 8, "options": {"max_tokens": 10}}, "reserve_answer_tokens=8 and the 3.*into 10"),
        ({"markers": {"ends": ()}}, "at least one end marker"),
        ({"markers": {"ends": ((),)}}, "at least one end marker"),
        ({"markers": {"close": ()}}, "a text that closes"),
        ({"markers": {"ends": ((1, 2, 3), (1, 2))}}, r"\(1, 2, 3\) can never be seen: \(1, 2\)"),
        ({"markers": {"ends": ((1, 2, 3), (2,))}}, r"\(1, 2, 3\) can never be seen: \(2,\)"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        forcer(**arguments)


def test_what_just_fits_is_taken() -> None:
    forcer(3, ForcedTexts(end_message=(1, 1)))
    forcer(5, ForcedTexts(soft_limit_message=(1,)), soft_limit=3)
    forcer(reserve_answer_tokens=7, options={"max_tokens": 10})
    forcer(markers={"ends": ((1, 2, 3), (2, 3), (3,))})  # all end together: the longest is meant


def brute_force_loop(ids: list[int], repeats: int) -> bool:
    """Whether `ids` ends in `repeats` equal blocks of at least 16 ids."""
    return any(
        size * repeats <= len(ids) and ids[-size * repeats :] == ids[-size:] * repeats
        for size in range(16, len(ids) // repeats + 1)
    )


def test_the_loop_guard_cuts_loops_and_nothing_else() -> None:
    draw = random.Random(3)
    for repeats in (2, 3):
        for period in (1, 5, 16, 23):
            text = [draw.randrange(100, 10_000) for _ in range(150)]
            machine = BudgetForcer(ThinkingBudget(loop_guard=repeats), Markers(ends=((7, 8),), close=(7, 8)))
            assert all(machine.feed(token) is Action.ACCEPT for token in text), "text without loops is left alone"
            block = [draw.randrange(100, 10_000) for _ in range(period)]
            while not machine.ended_by:
                text.append(block[len(text) % period])
                machine.feed(text[-1])
                assert len(text) < 400
            assert machine.ended_by == "loop" and machine.token_ids == text
            assert brute_force_loop(text, repeats)
            assert len(text) <= 150 + (repeats + 1) * max(period, 16 + period)


def test_the_loop_guard_leaves_the_minimum_alone() -> None:
    for maximum in (100, 200):
        machine = BudgetForcer(
            ThinkingBudget(maximum, min_thinking_tokens=100, loop_guard=2), Markers(ends=((7, 8),), close=(7, 8))
        )
        while not machine.ended_by:
            machine.feed(5)
        assert machine.used == 100 and machine.ended_by == ("budget" if maximum == 100 else "loop")
