"""s1's second use of its rule for benchmarks: a row that shares eight words in a row with one of an earlier source goes
(data/collect_data.py, which adds what it keeps of each source to the questions that later ones are held against).

Kept n-grams of a whole pool would fill the memory. Only those that stand in two sources can matter, so a first pass
finds out, by buckets, which n-grams may, and a second one keeps these only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from zlib import crc32

from .live_line import Tick, silent, watched
from .records import Decision, Row

_BUCKETS = 1 << 25
_SEVERAL = 255


def decide(
    rows: Sequence[Row],
    order: Callable[[str], int],
    *,
    n: int = 8,
    late: Sequence[str] = (),
    text: Callable[[Row], str] = lambda row: row.question,
    tick: Tick = silent,
) -> dict[str, Decision]:
    """Row id -> decision. `order`: the place of a source, as "name"; `late` sources join afterwards: their rows stay,
    and nothing is held against them. `text`: what of a row is read. Inside a source nothing is dropped. `tick`: told
    how far it is."""
    found = {row.id: Decision(row.id, "cross-source", "") for row in rows}
    checked = sorted(
        (row for row in rows if _source(row) not in late), key=lambda row: (order(_source(row)), _source(row), row.id)
    )
    groups = [list(group) for _, group in groupby(checked, _source)]
    seen_in = bytearray(_BUCKETS)
    done = 0.0
    for number, group in enumerate(groups, start=1):
        mark = min(number, _SEVERAL - 1)
        first, done = done, done + len(group) / max(1, 2 * len(checked))
        for row in watched(group, len(group), tick, first, done):
            for run in _runs(text(row), n):
                bucket = crc32(run) % _BUCKETS
                seen_in[bucket] = mark if seen_in[bucket] in (0, mark) and number < _SEVERAL else _SEVERAL
    kept: dict[bytes, str] = {}
    for group in groups:
        fresh: dict[bytes, str] = {}
        first, done = done, done + len(group) / max(1, 2 * len(checked))
        for row in watched(group, len(group), tick, first, done):
            shared = [run for run in _runs(text(row), n) if seen_in[crc32(run) % _BUCKETS] == _SEVERAL]
            earlier = next((run for run in shared if run in kept), None)
            if earlier is None:
                for run in shared:
                    fresh.setdefault(run, row.id)
            else:
                words = earlier.decode("utf-8", "surrogatepass")
                found[row.id] = Decision(row.id, "cross-source", f"earlier_source:{kept[earlier]}", {"words": words})
        kept |= fresh
    return found


def _runs(text: str, n: int) -> Iterator[bytes]:
    """All runs of `n` words, lower-cased, with one blank between two words."""
    words = [word.encode("utf-8", "surrogatepass") for word in text.lower().split()]
    line = b" ".join(words)
    starts = [0]
    for word in words:
        starts.append(starts[-1] + len(word) + 1)
    for at in range(len(words) - n + 1):
        yield line[starts[at] : starts[at + n] - 1]


def _source(row: Row) -> str:
    return row.source.partition("/")[0]
