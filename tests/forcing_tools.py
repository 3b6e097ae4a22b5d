"""Fake models, random cases and the driver that plays an engine, for the tests of budget forcing."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bide.budget_forcing import Action, BudgetForcer, ForcedTexts, Markers
from bide.errors import BudgetError
from bide.thinking_budget import ThinkingBudget

Model = Callable[[Sequence[int], frozenset[int]], int]
Ids = tuple[int, ...]

EOS = 0
VOCABULARY = 6
_WEIGHTED = (1, 2, 3, 4, 5) * 3 + (EOS,)
_MASK = (1 << 64) - 1


def hashed_model(seed: int) -> Model:
    """A pure function of seed and context over six ids; id 0 is rare."""

    def model(context: Sequence[int], banned: frozenset[int]) -> int:
        number = hash((seed, len(context), *context[-3:]))
        while True:
            number = (number * 6364136223846793005 + 1442695040888963407) & _MASK
            token = _WEIGHTED[(number >> 33) % len(_WEIGHTED)]
            if token not in banned:
                return token

    return model


@dataclass(frozen=True)
class Case:
    """One random turn: everything that a `BudgetForcer` and its engine are given."""

    seed: int
    budget: ThinkingBudget
    markers: Markers
    texts: ForcedTexts
    max_tokens: int
    max_answer_tokens: int | None
    prompt: list[int]
    events: Mapping[int, str]
    """Sample number -> "end_thinking" or "finish", just before that sample."""

    def forcer(self, kind: type[BudgetForcer] = BudgetForcer) -> BudgetForcer:
        return kind(
            self.budget,
            self.markers,
            self.texts,
            max_tokens=self.max_tokens,
            max_answer_tokens=self.max_answer_tokens,
            last_prompt_id=self.prompt[-1] if self.prompt else None,
        )


def random_case(seed: int, *, events: bool = False, loops: bool = False) -> Case:
    """A valid case; what the library refuses is drawn again."""
    draw = random.Random(seed)
    while True:
        try:
            case = _draw_case(draw, seed, events, loops)
            case.forcer()
            return case
        except BudgetError:
            continue


def _draw_case(draw: random.Random, seed: int, events: bool, loops: bool) -> Case:
    def ids(low: int, high: int) -> Ids:
        return tuple(draw.randint(1, VOCABULARY - 1) for _ in range(draw.randint(low, high)))

    def maybe(share: float, value: Any, other: Any) -> Any:
        return value if draw.random() < share else other

    maximum = maybe(0.8, draw.randint(0, 14), None)
    minimum = maybe(0.3, draw.randint(1, 14 if maximum is None else max(1, maximum)), 0)
    waits = maybe(0.6, draw.randint(1, 3), 0)
    grace = maybe(0.25, draw.randint(1, 4), 0)
    soft: int | float | None = maybe(0.3, draw.randint(0, 8), None)
    if soft is not None and maximum and draw.random() < 0.4:
        soft = round(draw.uniform(0.05, 0.95), 2)
    budget = ThinkingBudget(
        thinking_token_budget=maximum,
        min_thinking_tokens=minimum,
        waits=waits,
        soft_limit=soft,
        grace_tokens=grace,
        boundary=draw.choice(("line", "sentence")) if grace else "token",
        reserve_answer_tokens=maybe(0.25, draw.randint(1, 8), 0),
        loop_guard=draw.randint(2, 3) if loops and draw.random() < 0.5 else None,
    )
    ends = tuple(ids(1, 4) for _ in range(draw.randint(1, 3)))
    close = ids(1, 3)
    natural = draw.choice((None, None, close, ends[0] + ids(0, 2), ends[0]))
    markers = Markers(
        ends=ends,
        close=close,
        natural_close=natural,
        start=maybe(0.6, ids(1, 4), ()),
        answer_start=maybe(0.3, ids(1, 2), ()),
        eos=frozenset(draw.choice(((EOS,), (EOS,), (), (EOS, 5)))),
        opened=draw.random() < 0.85,
        newline=ids(0, 1),
        empty=maybe(0.3, ids(1, 1), ()),
        waits_on_new_line=draw.random() < 0.3,
        line_ends=frozenset(draw.sample(range(1, VOCABULARY), draw.randint(0, 2))),
        sentence_ends=frozenset(draw.sample(range(1, VOCABULARY), draw.randint(0, 3))),
    )
    texts = ForcedTexts(
        waits=tuple(ids(0 if draw.random() < 0.3 else 1, 3) for _ in range(draw.randint(1, 3))),
        soft_limit_message=() if soft is None else ids(0, 3),
        end_message=maybe(0.3, ids(1, 3), ()),
        answer_prefix=maybe(0.5, ids(1, 3), ()),
    )
    happens: dict[int, str] = {}
    if events:
        for _ in range(draw.randint(0, 2)):
            happens[draw.randint(0, 20)] = draw.choice(("end_thinking", "end_thinking", "finish"))
    return Case(
        seed=seed,
        budget=budget,
        markers=markers,
        texts=texts,
        max_tokens=draw.randint(1, 60),
        max_answer_tokens=maybe(0.3, draw.randint(1, 12), None),
        prompt=list(ids(0, 3)),
        events=happens,
    )


@dataclass(frozen=True)
class Sampled:
    """One sample as the model saw it."""

    context: Ids
    banned: frozenset[int]
    token: int


def run_turn(
    forcer: BudgetForcer,
    prompt: Sequence[int],
    model: Model,
    *,
    events: Mapping[int, str] | None = None,
    chunk: Callable[[], int] = lambda: 1,
    check: Callable[[], None] = lambda: None,
) -> list[Sampled]:
    """Play the engine until the turn is over, by the contract of `bide.budget_forcing` alone.

    The context is kept as an engine keeps its cache: appended to, and cut when told to. It is
    compared with prompt + output + held-back ids before every sample. `check` runs after each step.
    Returns what was sampled and not void.
    """
    context = list(prompt)
    trace: list[Sampled] = []
    while True:
        while (forced := forcer.next_forced()) is not None:
            context.append(forced)
            check()
        if forcer.done:
            return trace
        happens = (events or {}).get(len(trace))
        if happens == "end_thinking":
            forcer.end_thinking()
        elif happens == "finish":
            forcer.finish("client")
            check()
            return trace
        assert context == [*prompt, *forcer.token_ids, *forcer.pending]
        ahead = forcer.lookahead()
        assert ahead >= 1
        count = 1 if ahead == 1 else chunk()
        segment: list[Sampled] = []
        for number in range(count):
            seen = (*context, *(one.token for one in segment))
            banned = forcer.banned_ids() if number == 0 else frozenset()
            segment.append(Sampled(seen, banned, model(seen, banned)))
            if (events or {}).get(len(trace) + len(segment)):
                break
        consumed, action = forcer.feed_segment([one.token for one in segment])
        assert consumed == len(segment) or action in (Action.FORCE, Action.STOP)
        trace += segment[:consumed]
        context += [one.token for one in segment[:consumed]]
        if action is Action.FORCE:
            del context[len(prompt) + forcer.context_length :]
        check()


@dataclass(frozen=True)
class Outcome:
    """All that a turn leaves behind."""

    token_ids: Ids
    forced: Ids
    regions: Ids
    used: int
    sampled: int
    forced_tokens: int
    waits: int
    ended_by: str | None
    finish_reason: str | None


def outcome(forcer: BudgetForcer) -> Outcome:
    report = forcer.report()
    return Outcome(
        tuple(forcer.token_ids),
        tuple(forcer.forced),
        tuple(forcer.regions),
        report.used,
        report.sampled,
        report.forced_tokens,
        report.waits,
        report.ended_by,
        forcer.finish_reason,
    )


def random_s1_case(seed: int, *, longest: int = 60) -> Case:
    """A valid case with mode="s1": end markers of one id, one maximum, waits or a minimum."""
    draw = random.Random(seed)
    maximum = draw.randint(1, longest)
    waits = draw.randint(0, 3)
    minimum = 0 if waits else draw.choice((0, draw.randint(0, maximum)))
    end = (5,)
    return Case(
        seed=seed,
        budget=ThinkingBudget(thinking_token_budget=maximum, min_thinking_tokens=minimum, waits=waits, mode="s1"),
        markers=Markers(
            ends=(end,),
            close=(5, 1),
            natural_close=(5, 1),
            start=draw.choice(((), (5, 2))),
            eos=frozenset((EOS,)),
            newline=(3,),
            line_ends=frozenset((3,)),
        ),
        texts=ForcedTexts(
            waits=draw.choice((((),), ((2,),), ((2, 4),), ((1, 3),))),
            answer_prefix=draw.choice(((), (1, 4))),
        ),
        max_tokens=100_000,
        max_answer_tokens=draw.randint(1, 5),
        prompt=[1, 2, draw.randint(1, 4)],
        events={},
    )
