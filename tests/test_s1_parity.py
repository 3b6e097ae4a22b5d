"""`mode="s1"` against the reference's round loop, written down again from its description."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from bide.budget_forcing import Action, BudgetForcer, ForcedTexts, Markers, Region, State
from bide.errors import BudgetError
from bide.s1_parity import S1Forcer
from bide.thinking_budget import ThinkingBudget
from forcing_tools import EOS, Case, Model, hashed_model, outcome, random_s1_case, run_turn

END, NEWLINE = 5, 3
THINK_END = [5, 1]


@dataclass
class Generated:
    """What one call of the reference's engine returns."""

    ids: list[int]
    finish: str


def generate(model: Model, prompt: Sequence[int], max_tokens: int, stops: set[int], min_tokens: int) -> Generated:
    """Sample up to `max_tokens` ids; the stop id is among the ids; none before `min_tokens`."""
    ids: list[int] = []
    while True:
        banned = frozenset(stops) if len(ids) < min_tokens else frozenset()
        ids.append(model([*prompt, *ids], banned))
        if ids[-1] in stops:
            return Generated(ids, "stop")
        if len(ids) == max_tokens:
            return Generated(ids, "length")


def reference(case: Case, model: Model) -> tuple[list[int], list[int], int]:
    """The thinking stage of the harness: ids kept as thinking, ids that close it, waits taken."""
    budget = case.budget
    maximum = budget.thinking_token_budget
    assert maximum is not None
    stops = {END, EOS}
    wait = list(case.texts.waits[0])
    rounds = budget.waits + 1
    least = 1 if budget.waits else budget.min_thinking_tokens
    prompt = list(case.prompt)
    kept: list[int] = []
    taken = 0
    for number in range(rounds):
        out = generate(model, prompt, maximum, stops, least)
        if out.finish == "length" or number == rounds - 1:
            kept += out.ids
            break
        again = out.ids[:-1] + wait
        kept += again
        prompt += again
        taken += 1
    uncut = kept[:-1] if out.finish == "stop" else list(kept)
    if budget.waits:
        kept = kept[:maximum]
    if kept and kept[-1] in stops:
        kept = kept[:-1]
    if out.finish == "length":
        line = [] if uncut[-1] == NEWLINE else [NEWLINE]
        return kept, [*line, *THINK_END, *case.texts.answer_prefix], taken
    return kept, THINK_END, taken


def thinking_ids(forcer: BudgetForcer) -> list[int]:
    return [t for t, region in zip(forcer.token_ids, forcer.regions) if region == Region.THINKING]


@pytest.mark.parametrize("block", range(5))
def test_equals_the_reference_round_loop(block: int) -> None:
    endings = set()
    for seed in range(block * 800, (block + 1) * 800):
        case = random_s1_case(seed)
        case = replace(case, markers=replace(case.markers, start=()), max_answer_tokens=None, max_tokens=10_000)
        model = hashed_model(seed)
        kept, closing, waits = reference(case, model)
        forcer = case.forcer(S1Forcer)
        sampled = 0
        while (stage := forcer.state) in (State.THINKING, State.FORCING):
            forcer.drain_forced()
            if stage is State.FORCING and forcer.state is State.ANSWERING:
                break
            context = [*case.prompt, *forcer.token_ids, *forcer.pending]
            forcer.feed(model(context, forcer.banned_ids()))
            sampled += 1
            assert sampled < 1000
        assert thinking_ids(forcer) == kept, seed
        assert forcer.token_ids == kept + closing, seed
        assert forcer.waits_taken == waits, seed
        assert not forcer.pending
        endings.add((forcer.ended_by, waits, len(kept) == case.budget.thinking_token_budget))
    assert {("budget", 0, True), ("eos", 3, False), ("natural", 3, True), ("natural", 1, False)} <= endings


def test_the_answer_is_conditioned_on_what_remains() -> None:
    for seed in range(300):
        case = random_s1_case(seed, longest=10)
        model = hashed_model(seed)
        forcer = case.forcer(S1Forcer)
        run_turn(forcer, case.prompt, model)  # compares the context before every sample
        report = forcer.report()
        assert report.used == len(thinking_ids(forcer)) <= (report.max or 0)
        assert report.forced_tokens == sum(forcer.forced)


def s1_forcer(budget: ThinkingBudget, texts: ForcedTexts = ForcedTexts(), **options: int) -> S1Forcer:
    markers = Markers(
        ends=((END,),), close=(5, 1), natural_close=(5, 1), start=(5, 2), eos=frozenset((EOS,)), newline=(3,),
        line_ends=frozenset((3,)),
    )  # fmt: skip
    return S1Forcer(budget, markers, texts, **options)


def test_every_round_may_use_the_full_maximum() -> None:
    texts = ForcedTexts(waits=((2,),), answer_prefix=(9,))
    forcer = s1_forcer(ThinkingBudget(thinking_token_budget=4, waits=1, mode="s1"), texts)
    assert [forcer.feed(t) for t in (1, 1, 1)] == [Action.ACCEPT] * 3
    assert forcer.feed(END) is Action.FORCE
    assert forcer.drain_forced() == [2]
    assert [forcer.feed(t) for t in (1, 1, 4)] == [Action.ACCEPT] * 3
    assert forcer.token_ids == [1, 1, 1, 2] and forcer.pending == [1, 1, 4]
    assert forcer.lookahead() == 1
    assert forcer.feed(3) is Action.FORCE  # the fourth of this round, and it ends a line
    assert not forcer.pending
    assert forcer.drain_forced() == [5, 1, 9]  # so no newline, though the kept text needs one
    assert forcer.report().used == 4


def test_a_stop_as_the_last_of_a_round_is_a_stop() -> None:
    forcer = s1_forcer(ThinkingBudget(thinking_token_budget=3, mode="s1"), ForcedTexts(answer_prefix=(9,)))
    forcer.feed(1)
    forcer.feed(1)
    forcer.feed(END)
    assert forcer.drain_forced() == [1]
    assert forcer.token_ids == [1, 1, 5, 1]
    assert forcer.ended_by == "natural"


def test_stops_are_banned_at_the_start_of_each_round() -> None:
    forcer = s1_forcer(ThinkingBudget(thinking_token_budget=9, waits=2, mode="s1"), ForcedTexts(waits=((),)))
    for _ in range(3):
        assert forcer.banned_ids() == {END, EOS}
        forcer.feed(1)
        assert forcer.banned_ids() == frozenset()
        forcer.feed(END)
    assert forcer.drain_forced() == [1]
    assert forcer.banned_ids() == frozenset()
    assert forcer.token_ids == [1, 1, 1, 5, 1] and forcer.waits_taken == 2


def test_stops_are_banned_below_the_minimum() -> None:
    forcer = s1_forcer(ThinkingBudget(thinking_token_budget=9, min_thinking_tokens=2, mode="s1"))
    banned = []
    for _ in range(4):
        banned.append(bool(forcer.banned_ids()))
        forcer.feed(1)
    assert banned == [True, True, False, False]


def test_end_thinking_is_heeded_and_takes_no_more_waits() -> None:
    budget = ThinkingBudget(thinking_token_budget=9, waits=2, mode="s1")
    forcer = s1_forcer(budget, ForcedTexts(waits=((2,),), answer_prefix=(9,)))
    forcer.feed(1)
    forcer.end_thinking()
    assert forcer.lookahead() == 1
    forcer.feed(4)
    assert forcer.drain_forced() == [3, 5, 1, 9] and forcer.ended_by == "client"
    forcer = s1_forcer(budget, ForcedTexts(waits=((2,),)))
    forcer.feed(1)
    forcer.end_thinking()
    forcer.feed(END)
    assert forcer.drain_forced() == [1] and forcer.ended_by == "natural" and forcer.waits_taken == 0


def test_an_end_beyond_the_maximum_is_written_anew() -> None:
    """The context is cut to what is kept, so the marker that was sampled further on is forced."""
    forcer = s1_forcer(ThinkingBudget(thinking_token_budget=2, waits=1, mode="s1"), ForcedTexts(waits=((2, 2),)))
    for token in (1, END):
        forcer.feed(token)
    forcer.drain_forced()
    forcer.feed(4)
    assert forcer.pending == [2, 4]
    assert forcer.feed(END) is Action.FORCE and forcer.context_length == 2
    assert forcer.drain_forced() == [5, 1]
    assert list(forcer.forced) == [0, 1, 1, 1] and forcer.ended_by == "natural"


@pytest.mark.parametrize("queued", [False, True])
def test_leaving_never_shows_what_is_beyond_the_maximum(queued: bool) -> None:
    forcer = s1_forcer(ThinkingBudget(thinking_token_budget=3, waits=3, mode="s1"), ForcedTexts(waits=((2, 2),)))
    for token in (1, 1, END):
        forcer.feed(token)
    forcer.drain_forced()
    assert forcer.token_ids == [1, 1, 2] and forcer.pending == [2]
    forcer.feed(4)
    if queued:
        forcer.feed(END)
        assert forcer.state is State.FORCING
    forcer.finish("client")
    assert forcer.token_ids == [1, 1, 2] and not forcer.pending and forcer.next_forced() is None
    assert (forcer.ended_by, forcer.finish_reason) == ("client", "client")


def test_a_further_block_begins_a_new_round() -> None:
    budget = ThinkingBudget(thinking_token_budget=4, waits=1, mode="s1")
    forcer = s1_forcer(budget, ForcedTexts(waits=((),)))
    for token in (1, END, 1, END):
        forcer.feed(token)
    forcer.drain_forced()
    assert forcer.feed_segment([5, 2, END]) == (2, Action.FORCE)
    assert forcer.drain_forced() == [] and forcer.state is State.THINKING and forcer.banned_ids()
    assert [forcer.feed(t) for t in (1, 1, 1)] == [Action.ACCEPT] * 3
    assert forcer.lookahead() == 1 and forcer.used == 4 and forcer.pending == [1]


def test_max_tokens_bounds_lookahead_and_output() -> None:
    forcer = s1_forcer(ThinkingBudget(mode="s1"), max_tokens=3)
    assert forcer.lookahead() == 3
    assert [forcer.feed(1) for _ in range(3)] == [Action.ACCEPT, Action.ACCEPT, Action.STOP]
    assert forcer.finish_reason == "length" and forcer.ended_by == "length"


def test_a_marker_of_several_tokens_is_refused() -> None:
    with pytest.raises(BudgetError, match="one token only"):
        S1Forcer(ThinkingBudget(thinking_token_budget=3, mode="s1"), Markers(ends=((1, 2),), close=(1, 2)))


def test_exact_mode_is_bounded_where_the_reference_is_not() -> None:
    """The defect that bide does not share: N waits may use N + 1 times the maximum."""
    case = replace(random_s1_case(7), max_tokens=500)
    budget = ThinkingBudget(thinking_token_budget=6, waits=3)
    forcer = BudgetForcer(budget, case.markers, ForcedTexts(waits=((2,),)), max_tokens=80)
    trace = run_turn(forcer, case.prompt, hashed_model(3))
    assert outcome(forcer).used <= 6 and len(trace) <= 80
