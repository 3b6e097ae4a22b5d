"""Budget forcing by logits alone: the same text as the token-at-a-time driver, the same law, any batch."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch

from bide.budget_forcing import BudgetForcer, ForcedTexts, Markers
from bide.logits_processor import FORCED_LOGIT, ForcedRow, HostRows, uniform
from bide.thinking_budget import ThinkingBudget
from forcing_tools import EOS, VOCABULARY, Case, random_case


def logits_of(seed: int, context: list[int]) -> list[float]:
    """A pure function of seed and context, no two alike; the end of the turn is rare."""
    draw = random.Random(hash((seed, len(context), *context[-3:])))
    found = [draw.gauss(0, 1.5) for _ in range(VOCABULARY)]
    found[EOS] -= 2
    return found


def suits(case: Case, several: bool) -> bool:
    """What a processor can do: ends of one id, or of `several`, and a wait that says something."""
    ends = {i for end in case.markers.ends for i in end} | case.markers.eos
    waits = [case.markers.newline + w if case.markers.waits_on_new_line else w for w in case.texts.waits]
    line = case.markers.newline + case.markers.close, case.markers.empty + case.markers.close
    natural = case.markers.natural_close
    return (
        case.max_answer_tokens is None
        and case.markers.eos <= {EOS}
        and case.markers.opened
        and any(len(end) > 1 for end in case.markers.ends) == several
        and all(case.texts.waits) and not any({w[0], t[0]} & ends for w, t in zip(waits, case.texts.waits))
        and not {text[0] for text in line} & case.markers.eos
        and (natural is None or (natural[:1] == case.markers.ends[0] and len(case.markers.ends) == 1))
    )  # fmt: skip


def reference(case: Case) -> BudgetForcer:
    """Token by token, greedy; what is to be replaced is taken back."""
    forcer = case.forcer()
    while not forcer.done:
        forcer.drain_forced()
        if not forcer.done:
            context = [*case.prompt, *forcer.token_ids, *forcer.pending]
            logits = logits_of(case.seed, context)
            forcer.feed(max(range(VOCABULARY), key=logits.__getitem__))
    return forcer


def cases(count: int, first: int = 0, several: bool = False) -> Iterator[Case]:
    seed = first
    while count:
        case = random_case(seed)
        if suits(case, several):
            count -= 1
            yield case
        seed += 1


def run_alone(case: Case, rows: HostRows, row: ForcedRow) -> list[int]:
    """As an engine does it: sample, keep, ask again. Ends where vLLM would end."""
    output: list[int] = []
    while len(output) < case.max_tokens and not (output and output[-1] in case.markers.eos):
        rows.advance([(0, row, output)], moved=not output)
        logits = torch.tensor([logits_of(case.seed, [*case.prompt, *output])])
        rows.apply(logits.numpy())
        output.append(int(logits[0].argmax()))
    return output


def test_greedy_text_is_that_of_the_token_at_a_time_driver() -> None:
    seen: Counter[Any] = Counter()
    for case in cases(1500):
        expected = reference(case)
        row = ForcedRow(case.forcer(), temperature=0.0)
        output = run_alone(case, HostRows(), row)
        assert output == expected.token_ids, case
        row.advance(output)
        report = expected.report()
        seen[report.ended_by] += 1
        seen["waits"] += report.waits
    assert min(seen[kind] for kind in ("budget", "natural", "eos", "grace", "waits")) > 20, seen


def test_a_maximum_is_exact_with_end_markers_of_several_ids() -> None:
    """Ids of a marker cannot be taken back, so near a cut a marker that has begun becomes thought."""
    cut = 0
    for case in cases(600, several=True):
        row = ForcedRow(case.forcer(), temperature=0.0)
        output = run_alone(case, HostRows(), row)
        row.advance(output)
        # Its record is what was given out: nothing was void.
        assert output == [*row.forcer.token_ids, *row.forcer.pending], case
        report, maximum = row.forcer.report(), case.budget.thinking_token_budget
        assert maximum is None or report.used <= maximum, case
        if report.ended_by == "budget" and not case.texts.end_message:
            assert report.used == maximum, case
            cut += 1
    assert cut > 100


def test_rows_of_a_batch_do_not_touch_each_other() -> None:
    """Each row alone and all in one batch, in places that change: the same text."""
    several = list(cases(40, first=9000))
    alone = [run_alone(case, HostRows(), ForcedRow(case.forcer(), temperature=0.0)) for case in several]
    rows = [ForcedRow(case.forcer(), temperature=0.0) for case in several]
    outputs: list[list[int]] = [[] for _ in rows]
    batch, draw = HostRows(), random.Random(1)
    live = set(range(len(rows)))
    previous: list[int] = []
    while live:
        chosen = draw.sample(sorted(live), max(1, len(live) - 3))  # some are left out: preempted
        for gone in set(previous) - set(chosen):
            batch.park(rows[gone])
        batch.advance([(n, rows[i], outputs[i]) for n, i in enumerate(chosen)], moved=True)
        logits = torch.tensor([logits_of(several[i].seed, [*several[i].prompt, *outputs[i]]) for i in chosen])
        untouched = torch.zeros(2, VOCABULARY)
        logits = torch.cat([logits, untouched])
        batch.apply(logits.numpy())
        assert torch.equal(logits[-2:], untouched)
        for number, i in enumerate(chosen):
            outputs[i].append(int(logits[number].argmax()))
            if len(outputs[i]) >= several[i].max_tokens or outputs[i][-1] in several[i].markers.eos:
                live.discard(i)
        previous = chosen
    assert outputs == alone


class Oracle:
    """One row by itself, as the module's docstring has it, in Python's floats."""

    def __init__(self, row: ForcedRow, logits: list[float]) -> None:
        self.row, self.logits = row, logits
        ending = row.ending
        self.target = None if ending is None else ending.text[0]
        self.ends = [] if ending is None else [logits[i] / (row.temperature or 1) for i in ending.ids]

    def decided(self) -> list[float]:
        """The logits as they should be after `apply`."""
        found, row = list(self.logits), self.row
        if row.ending is not None and self.target is not None:
            mine = [found[self.target] / (row.temperature or 1), *self.ends]
            for i in row.ending.ids:
                found[i] = -math.inf
            top = max(mine)
            sums = 0.0 if top == -math.inf or not row.temperature else math.log(sum(math.exp(x - top) for x in mine))
            found[self.target] = (top + sums) * (row.temperature or 1)
        if row.queue:
            found[row.queue[0]] = FORCED_LOGIT
        return found

    def odds(self) -> float:
        """That the target, sampled, stands for an end."""
        assert self.target is not None
        mine = self.logits[self.target] / (self.row.temperature or 1)
        if not self.row.temperature:
            return float(max(self.ends) > mine)
        top = max(mine, *self.ends)
        masses = [math.exp(x - top) for x in self.ends]
        return sum(masses) / (sum(masses) + math.exp(mine - top))


def test_logits_of_a_batch_are_those_of_each_row_by_itself() -> None:
    """Rows of many formats come, go and change places, some greedy, with ids that something else forbids or wants at
    any price. Some are not sampled in a step, or not known yet when they are asked for."""
    draw, generator, batch = random.Random(5), torch.Generator().manual_seed(5), HostRows()
    waiting = [case for case in cases(150, first=40_000)] + [case for case in cases(50, first=50_000, several=True)]
    live: list[tuple[ForcedRow, list[int], Case]] = []
    alone: dict[int, ForcedRow] = {}  # by row: one like it, which takes each id at once
    seen: Counter[str] = Counter()
    numbers: list[int] = []
    moved = True
    while waiting or live:
        while waiting and len(live) < 12:
            case = waiting.pop()
            heat, number = draw.choice([0.0, 0.6, 1.0, 1.0, 1.7]), draw.getrandbits(32)
            fresh, like = (ForcedRow(case.forcer(), temperature=heat, seed=number) for _ in range(2))
            alone[id(fresh)] = like
            live.insert(draw.randrange(len(live) + 1), (fresh, [], case))
            moved = True
        numbers = draw.sample(range(16), len(live)) if moved else numbers
        followed = [(number, row, output) for number, (row, output, _) in zip(numbers, live)]
        if draw.random() < 0.2:  # ids that the engine has sampled and not told yet: nothing may come of them
            late = [output.pop() if output and draw.random() < 0.5 else None for _, _, output in followed]
            for (_, _, output), token in zip(followed, late):
                output += [] if token is None else [-1]
            batch.advance(followed, moved)
            for (_, _, output), token in zip(followed, late):
                if token is not None:
                    output[-1] = token
                    seen["late"] += 1
            moved = False
        batch.advance(followed, moved)
        for _, row, output in followed:
            like = alone[id(row)]
            like.advance(output)
            assert (row.ending is None) == (like.ending is None) and row.queue == like.queue
            if row.ending is not None and like.ending is not None:
                assert (row.ending.ids, row.ending.text) == (like.ending.ids, like.ending.text)
        logits = torch.randn(16, VOCABULARY, generator=generator) * 2
        logits[torch.rand(logits.shape, generator=generator) < 0.1] = -math.inf
        for number, (row, _, _) in zip(numbers, live):
            if row.ending is None:
                logits[number, draw.randrange(VOCABULARY)] = math.inf
        oracles = [Oracle(row, logits[number].tolist()) for number, (row, _, _) in zip(numbers, live)]
        wanted = logits.clone()
        for number, oracle in zip(numbers, oracles):
            wanted[number] = torch.tensor(oracle.decided())
            seen["forced" if oracle.row.queue else "refused" if oracle.ends else "free"] += 1
        batch.apply(logits.numpy())
        torch.testing.assert_close(logits, wanted, rtol=2e-6, atol=2e-6)
        free = [number for number, oracle in zip(numbers, oracles) if oracle.row.ending is None]
        assert torch.equal(logits[free], wanted[free])  # whatever the others do
        staying, moved = [], draw.random() < 0.2
        for number, oracle, (row, output, case) in zip(numbers, oracles, live):
            if draw.random() < 0.15:  # not sampled in this step
                seen["waited"] += 1
                staying.append((row, output, case))
                continue
            if abs(logits[number].max()) == math.inf:
                output.append(0)
            else:
                output.append(int(torch.softmax(logits[number], -1).multinomial(1, generator=generator)))
            if output[-1] == oracle.target and max(oracle.ends) > -math.inf:
                alone[id(row)].odds = oracle.odds()
                seen["odds"] += 1
            if len(output) >= case.max_tokens or output[-1] in case.markers.eos:
                moved = True
            else:
                staying.append((row, output, case))
        live = staying
        if moved:
            draw.shuffle(live)
        if not live:
            batch.advance([], True)
    assert min(seen[kind] for kind in ("forced", "refused", "free", "odds", "late", "waited")) > 100, seen


@pytest.mark.parametrize("ends", [((3,),), ((3,), (4,))])
def test_a_wait_that_begins_with_what_is_an_end_takes_the_others_probability(ends: tuple[tuple[int, ...], ...]) -> None:
    """Not its own twice, and it stays possible."""
    markers = Markers(ends=ends, close=(3,), eos=frozenset())
    forcer = BudgetForcer(ThinkingBudget(20, waits=1), markers, ForcedTexts(waits=((3, 2),)), last_prompt_id=1)
    row, rows = ForcedRow(forcer), HostRows()
    rows.advance([(0, row, [])], True)
    assert row.ending is not None and row.ending.text[0] == 3 and row.ending.ids == {end[0] for end in ends}
    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(1))
    wanted, share = logits.clone(), 0.0
    if len(ends) > 1:
        wanted[0, 3], wanted[0, 4] = torch.logsumexp(logits[0, 3:5], 0), -math.inf
        share = float(torch.softmax(logits[0, 3:5], 0)[1])
    rows.apply(logits.numpy())
    torch.testing.assert_close(logits, wanted)
    rows.park(row)
    assert row.odds == pytest.approx(share, abs=1e-6)


def law(temperature: float, waits: int) -> tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]]:
    """Texts of a short turn, drawn by "sample; if it is an end, write the wait" and by the processor."""
    markers = Markers(ends=((5,),), close=(5,), eos=frozenset((EOS,)), newline=(3,), line_ends=frozenset((3,)))
    budget, texts = ThinkingBudget(6, waits=waits), ForcedTexts(waits=((4, 2),) if waits else ((),))
    draw = random.Random(waits)
    loop: Counter[tuple[int, ...]] = Counter()
    processor: Counter[tuple[int, ...]] = Counter()

    def chances(logits: Any) -> list[float]:
        return torch.softmax(torch.as_tensor(logits) / temperature, -1).tolist()  # type: ignore[no-any-return]

    for seed in range(4000):
        forcer = BudgetForcer(budget, markers, texts, max_tokens=4, last_prompt_id=3)
        while not forcer.done:
            forcer.drain_forced()
            if not forcer.done:
                weights = chances(logits_of(1, [*forcer.token_ids]))
                forcer.feed(draw.choices(range(VOCABULARY), weights)[0])
        loop[tuple(forcer.token_ids)] += 1
        row = ForcedRow(
            BudgetForcer(budget, markers, texts, max_tokens=4, last_prompt_id=3), temperature=temperature, seed=seed
        )
        rows = HostRows()
        output: list[int] = []
        while len(output) < 4 and EOS not in output:
            rows.advance([(0, row, output)], moved=not output)
            logits = torch.tensor([logits_of(1, output)])
            rows.apply(logits.numpy())
            output.append(draw.choices(range(VOCABULARY), chances(logits[0]))[0])
        processor[tuple(output)] += 1
    return loop, processor


@pytest.mark.parametrize("waits", [0, 1, 2])
@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_the_law_of_the_text_is_that_of_sampling_and_replacing(temperature: float, waits: int) -> None:
    """Chi-square of two samples of 4,000 whole texts; rare ones together. p below 1e-4 fails."""
    loop, processor = law(temperature, waits)
    frequent = [text for text, count in (loop + processor).items() if count >= 20]
    pairs = [(loop[text], processor[text]) for text in frequent]
    pairs.append((4000 - sum(a for a, _ in pairs), 4000 - sum(b for _, b in pairs)))
    statistic = sum((a - b) ** 2 / (a + b) for a, b in pairs if a + b)
    freedom = len(pairs) - 1
    # Wilson-Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal
    normal = ((statistic / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / (2 / (9 * freedom)) ** 0.5
    assert freedom > 10 and normal < 3.72, (statistic, freedom)


def test_draws_are_uniform_and_a_pure_function() -> None:
    draws = [uniform(seed, position) for seed in range(100) for position in range(100)]
    assert draws[:5] == [uniform(0, position) for position in range(5)]
    assert all(0 <= u < 1 for u in draws)
    assert abs(sum(draws) / len(draws) - 0.5) < 0.015
    assert abs(sum(u < 0.1 for u in draws) / len(draws) - 0.1) < 0.015


def test_a_forgotten_request_is_replayed_from_its_text() -> None:
    """Greedy: what was forced is where the texts stand, so a row built anew goes on alike."""
    same = 0
    for case in cases(300, first=20_000):
        expected = run_alone(case, HostRows(), ForcedRow(case.forcer(), temperature=0.0))
        half = len(expected) // 2
        row, rows = ForcedRow(case.forcer(), temperature=0.0), HostRows()
        row.replay(expected[:half])
        output = expected[:half]
        while len(output) < len(expected):
            rows.advance([(0, row, output)], moved=True)
            logits = torch.tensor([logits_of(case.seed, [*case.prompt, *output])])
            rows.apply(logits.numpy())
            output.append(int(logits[0].argmax()))
        same += output == expected
    assert same >= 285  # a word of the model's own may look like a wait
