"""What the kernel of `bide.logits_kernel` reads and writes, as plain numbers: the columns of a row, and how
a `ForcedRow`, its texts and its markers become one.

A row is state (changes with each token), settings (written once) and texts (all that may be forced,
one after the other). Counts are in tokens; `*_AT` says where in the row's texts something is, and
`*_LEN` how many ids it has; the two floats lie there by their bits. No torch, no triton.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .budget_forcing import UNLIMITED, Ids, State
from .errors import BudgetError
from .logits_processor import ForcedRow
from .markers import ForcedTexts, Markers
from .token_sequences import MarkerMatcher

THINKING, FORCING, OUTSIDE, OVER = range(4)
"""Phases of a row."""
BIG = 1 << 30
"""Stands for no limit."""
MOST_WAITS = 8
"""Different wait strings of one request."""
MOST_ENDS = 8
"""Different end markers of one format."""
MOST_TEXT = 1024
"""Ids of all forced texts of one request."""

(PHASE, NODE, USED, SEEN, WAITS, SOFT_DUE, AT, UNTIL, COUNTED, THEN, CAP, LAST, TARGET, ODDS) = range(14)
"""State. ODDS: a float."""
(FORMAT, MAXIMUM, MINIMUM, WAITS_MAX, WAIT_KINDS, SOFT, GRACE, BOUNDARY, RESERVE, OUT_MAX, CLOSING, SEED,
 MESSAGE_LEN, MESSAGE_AT, MESSAGE_CUT_LEN, CUT_AT, CUT_LEN, LINE_LEN, EMPTY_AT, EMPTY_LEN, PREFIX_LEN,
 CLOSE_AT, CLOSE_LEN, HINT_AT, HINT_LEN, WAIT_LINE_LEN, EOS_ENDS, HEAT) = range(16, 44)  # fmt: skip
"""Settings. EOS_ENDS: 1 where the end of the turn ends it. HEAT, the temperature: a float."""
WAIT_AT, WAIT_LEN, END_AT, END_LEN = (48 + 8 * i for i in range(4))
"""Settings, one column for each wait string or end marker."""
TEXT = 80
ROW = TEXT + MOST_TEXT
"""Width of a row."""


@dataclass(frozen=True, slots=True)
class Tables:
    """Marker automata of all formats of one model, in one shape."""

    nodes: int
    symbols: int
    ends: int
    eos: int
    rows: list[list[int]]

    @classmethod
    def build(cls, formats: Sequence[Markers]) -> Tables:
        """One row for each of `formats`. Raises `BudgetError` for one with too many end markers."""
        parts = [_Automaton(markers) for markers in formats]
        nodes = max(len(part.nodes) for part in parts)
        symbols = _power_of_two(max(len(part.ids) for part in parts))
        widest = max(len(c) for part in parts for c in part.completing)
        eos = max(len(markers.eos) for markers in formats)
        ends = _power_of_two(max(widest, 1))
        width = _power_of_two(ends + max(eos, 1)) - ends
        return cls(nodes, symbols, ends, width, [part.row(nodes, symbols, ends, width) for part in parts])


class _Automaton:
    """Both matchers of one format, the one for thinking first."""

    def __init__(self, markers: Markers) -> None:
        self.markers = markers
        if len(markers.ends) > MOST_ENDS:
            raise BudgetError(f"a format may have {MOST_ENDS} end markers here, not {len(markers.ends)}")
        headers = markers.ends if markers.answer_start else ()
        sequences = [s for s in (markers.start, markers.answer_start, *headers) if s]
        thinking, outside = MarkerMatcher(markers.ends), MarkerMatcher(sequences)
        self.outside = len(thinking.nodes())
        self.completing = [sorted(thinking.completing_at(node)) for node in range(self.outside)]
        self.nodes = [(to, depth, -1 if match is None else match) for to, depth, match in thinking.nodes()]
        for to, _, match in outside.nodes():
            if match is not None:  # 0 opens a block, all else only ends what was begun
                match = 0 if markers.start and sequences[match] == markers.start else 1
            moved = {token: node + self.outside for token, node in to.items()}
            self.nodes.append((moved, 0, -1 if match is None else match))
        self.ids = sorted({token for to, _, _ in self.nodes for token in to})

    def row(self, nodes: int, symbols: int, ends: int, eos: int) -> list[int]:
        ids = self.ids + [-1] * (symbols - len(self.ids))
        steps: list[int] = []
        for number in range(nodes):
            to = self.nodes[number][0] if number < len(self.nodes) else {}
            root = self.outside if number >= self.outside else 0
            steps += [root, *[to.get(token, root) for token in ids]]
        rest = [0] * (nodes - len(self.nodes))
        completing = [c + [-1] * (ends - len(c)) for c in self.completing]
        flat = [token for row in completing for token in row] + [-1] * (ends * (nodes - len(completing)))
        lengths = [len(end) for end in self.markers.ends]
        lengths += [0] * (MOST_ENDS - len(lengths))
        over = sorted(self.markers.eos) + [-1] * (eos - len(self.markers.eos))
        depths, matches = [d for _, d, _ in self.nodes], [m for _, _, m in self.nodes]
        return [*ids, *steps, *depths, *rest, *matches, *rest, *flat, *lengths, *over, self.outside]


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()


class _Texts:
    """All texts that may be forced in one request, one after the other."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def add(self, ids: Sequence[int]) -> tuple[int, int]:
        """Where they are now, and how many."""
        self.ids += ids
        return len(self.ids) - len(ids), len(ids)


def bits(value: float) -> int:
    """A float32 as an int32 of the same bits."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def row_values(row: ForcedRow, forced: ForcedTexts, formats: Sequence[Markers]) -> list[int]:
    """`row` as it stands, in the columns above. Raises `BudgetError` if its texts are too long."""
    now = row.forcer.snapshot()
    budget, markers = row.forcer.budget, row.forcer.markers
    columns, texts = [0] * TEXT, _Texts()

    def put(column: int, value: int) -> None:
        columns[column] = value

    def write(at: int, length: int, *parts: Ids) -> None:
        columns[at], columns[length] = texts.add([token for part in parts for token in part])

    put(FORMAT, next(i for i, m in enumerate(formats) if m.ends == markers.ends and m.start == markers.start))
    put(MAXIMUM, BIG if budget.thinking_token_budget is None else budget.thinking_token_budget)
    put(MINIMUM, budget.min_thinking_tokens)
    put(WAITS_MAX, budget.waits)
    put(SOFT, BIG if budget.soft_limit_tokens is None else budget.soft_limit_tokens)
    put(GRACE, budget.grace_tokens)
    put(BOUNDARY, {"token": 0, "line": 1, "sentence": 2}[budget.boundary])
    put(RESERVE, budget.reserve_answer_tokens if now.max_tokens < UNLIMITED else 0)
    put(OUT_MAX, min(BIG, now.max_tokens + row.opening))
    put(CLOSING, now.closing_length)
    put(SEED, row.seed - (1 << 32) if row.seed >> 31 else row.seed)
    put(EOS_ENDS, int(bool(markers.eos)))
    put(HEAT, bits(row.temperature))
    message, close, prefix = forced.end_message, markers.close, forced.answer_prefix
    line: Ids = () if message and message[-1] in markers.line_ends else markers.newline
    put(MESSAGE_LEN, len(message))
    write(MESSAGE_AT, MESSAGE_CUT_LEN, message, line, close, prefix)
    write(CUT_AT, CUT_LEN, markers.newline, close, prefix)
    put(LINE_LEN, len(markers.newline))
    put(PREFIX_LEN, len(prefix))
    if markers.empty:
        write(EMPTY_AT, EMPTY_LEN, markers.empty, close, prefix)
    if markers.natural_close is None:
        put(CLOSE_LEN, -1)
    else:
        write(CLOSE_AT, CLOSE_LEN, markers.natural_close)
    write(HINT_AT, HINT_LEN, forced.soft_limit_message)
    waits = forced.waits if budget.refuses_ends else ((0,),)
    before = markers.newline if markers.waits_on_new_line else ()
    put(WAIT_KINDS, len(waits))
    put(WAIT_LINE_LEN, len(before))
    for kind, wait in enumerate(waits):
        write(WAIT_AT + kind, WAIT_LEN + kind, before, wait)
    for number, end in enumerate(markers.ends):  # what follows an end that the model wrote
        natural = markers.natural_close or ()
        write(END_AT + number, END_LEN + number, natural[len(end) if natural[: len(end)] == end else 0 :])
    _put_state(put, row, texts)
    if len(texts.ids) > MOST_TEXT:
        raise BudgetError(f"all forced texts together are {len(texts.ids)} tokens, at most {MOST_TEXT} here")
    return columns + texts.ids


def _put_state(put: Callable[[int, int], None], row: ForcedRow, texts: _Texts) -> None:
    forcer, now = row.forcer, row.forcer.snapshot()
    at, size = texts.add(row.queue)
    then = {State.THINKING: THINKING, State.DONE: OVER}.get(forcer.state, OUTSIDE)
    root = 0 if forcer.state is State.THINKING else len(MarkerMatcher(forcer.markers.ends).nodes())
    put(PHASE, FORCING if size else then)
    put(THEN, then)
    put(AT, at)
    put(UNTIL, at + size)
    put(COUNTED, at)  # the machine has counted them already
    put(NODE, root + now.marker_node)
    put(USED, forcer.used)
    put(SEEN, row.seen)
    put(WAITS, forcer.waits_taken)
    put(SOFT_DUE, int(now.soft_limit_due))
    put(CAP, min(BIG, now.cap))
    put(LAST, now.last_id)
    put(TARGET, row.ending.text[0] if row.ending else -1)
    put(ODDS, bits(row.odds))
