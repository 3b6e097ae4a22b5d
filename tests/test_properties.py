"""What holds after every single step of every turn, whatever the model and the client do."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bide.budget_forcing import Action, BudgetForcer, Region, State
from bide.s1_parity import S1Forcer
from forcing_tools import Case, hashed_model, outcome, random_case, random_s1_case, run_turn

SETTINGS = settings(max_examples=250, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 2**32)


class Invariants:
    """Compares a forcer with what it was a step before."""

    def __init__(self, forcer: BudgetForcer, case: Case) -> None:
        self.forcer, self.case = forcer, case
        self.token_ids: list[int] = []
        self.forced = self.regions = b""
        self.longest = max(len(m) for m in (*case.markers.ends, case.markers.start, case.markers.answer_start))

    def check(self) -> None:
        forcer, size = self.forcer, len(self.token_ids)
        assert forcer.token_ids[:size] == self.token_ids, "what was shown was withdrawn"
        assert bytes(forcer.forced[:size]) == self.forced and bytes(forcer.regions[:size]) == self.regions
        assert len(forcer.token_ids) == len(forcer.forced) == len(forcer.regions)
        self.token_ids = list(forcer.token_ids)
        self.forced, self.regions = bytes(forcer.forced), bytes(forcer.regions)
        report = forcer.report()
        assert report.max is None or report.used <= report.max
        assert report.used == self.regions.count(Region.THINKING)
        assert report.forced_tokens == self.forced.count(1)
        forced_thoughts = sum(f and r == Region.THINKING for f, r in zip(self.forced, self.regions))
        assert report.sampled == report.used - forced_thoughts
        assert report.exact == ((report.max is None or report.used <= report.max) and report.used >= report.min)
        assert len(self.token_ids) <= self.case.max_tokens
        if self.case.budget.min_thinking_tokens == 0:
            assert report.waits <= self.case.budget.waits
        assert (forcer.finish_reason is not None) == forcer.done == (forcer.state is State.DONE)
        if forcer.done:
            assert not forcer.pending and forcer.banned_ids() == frozenset()
        if not isinstance(forcer, S1Forcer):
            assert len(forcer.pending) < max(self.longest, 1)
            if forcer.state is State.THINKING:
                held = tuple(forcer.pending)
                assert not any(
                    end == held[i : i + len(end)] for end in self.case.markers.ends for i in range(len(held))
                )


def check_turn(forcer: BudgetForcer, case: Case, disturb: random.Random | None) -> None:
    """Run `case` with a check after every step; `disturb` draws the client's whims, at any moment."""
    invariants = Invariants(forcer, case)
    model = hashed_model(case.seed)
    context = list(case.prompt)
    for _ in range(3000):
        invariants.check()
        if disturb is not None and disturb.random() < 0.04:
            forcer.end_thinking()
        if disturb is not None and disturb.random() < 0.01:
            forcer.finish(disturb.choice(("client", "length")))
            invariants.check()
        forced_before = sum(forcer.forced)
        if (forced := forcer.next_forced()) is not None:
            assert not forcer.forced or sum(forcer.forced) - forced_before in (0, 1)
            context.append(forced)
            continue
        if forcer.done:
            return
        assert context == [*case.prompt, *forcer.token_ids, *forcer.pending]
        assert forcer.lookahead() >= 1
        banned = forcer.banned_ids()
        token = model(context, banned)
        action = forcer.feed(token)
        assert sum(forcer.forced) == forced_before, "a sampled token was marked as forced"
        context.append(token)
        assert (action is Action.STOP) == forcer.done
        if action is Action.FORCE:
            del context[len(case.prompt) + forcer.context_length :]
    raise AssertionError("the turn never ends")


@SETTINGS
@given(seeds)
def test_every_step_keeps_every_promise(seed: int) -> None:
    case = random_case(seed, loops=True)
    check_turn(case.forcer(), case, None)


@SETTINGS
@given(seeds)
def test_whatever_the_client_does(seed: int) -> None:
    case = random_case(seed, loops=True)
    check_turn(case.forcer(), case, random.Random(seed))


@SETTINGS
@given(seeds, st.booleans())
def test_s1_mode_keeps_them_too(seed: int, disturbed: bool) -> None:
    case = random_s1_case(seed, longest=20)
    check_turn(case.forcer(S1Forcer), case, random.Random(seed) if disturbed else None)


@SETTINGS
@given(seeds)
def test_same_seed_same_turn(seed: int) -> None:
    case = random_case(seed, events=True, loops=True)
    outcomes = []
    for _ in range(2):
        forcer = case.forcer()
        run_turn(forcer, case.prompt, hashed_model(seed), events=case.events)
        outcomes.append(outcome(forcer))
    assert outcomes[0] == outcomes[1]


@SETTINGS
@given(seeds)
def test_the_minimum_holds_unless_the_turn_is_cut_short(seed: int) -> None:
    """Only a limit on all output, the loop guard or the client may end thinking below it."""
    case = random_case(seed)
    forcer = case.forcer()
    run_turn(forcer, case.prompt, hashed_model(seed))
    if case.markers.opened and forcer.ended_by in ("natural", "eos", "grace", "budget"):
        assert forcer.report().exact or case.budget.reserve_answer_tokens


@SETTINGS
@given(seeds)
def test_lookahead_is_never_too_long(seed: int) -> None:
    """So many ids can be fed without a count (rather than a marker or a boundary) asking for more."""
    case = random_case(seed)
    if case.budget.grace_tokens:
        return
    forcer = case.forcer()
    forcer.drain_forced()
    dull = 9  # no marker, no end of the turn
    while not forcer.done and forcer.state is not State.FORCING:
        for left in range(forcer.lookahead(), 0, -1):
            action = forcer.feed(dull)
            assert left == 1 or action is Action.ACCEPT
            if left > 1000:
                raise AssertionError("max_tokens was overlooked")
        if not forcer.done and forcer.state is not State.ANSWERING:
            assert action is not Action.HOLD
        forcer.drain_forced()
