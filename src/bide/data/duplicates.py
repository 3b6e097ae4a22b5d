"""Questions of the pool that are one question: equal without their dress, or nearly; and templates with other numbers.

Near means a Jaccard similarity of the sets of character 9-shingles of at least a threshold. All such pairs are found,
not most of them: two sets that are so alike share one of each one's rarest shingles (prefix filtering: Chaudhuri et
al. 2006, Bayardo et al. 2007), so only rows that do are compared, and those exactly. MinHash would miss some.
"""

from __future__ import annotations

import heapq
import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from ..errors import UsageError
from .live_line import Tick, silent, watched
from .records import Decision, Row
from .tokens import NUMBER, tokens

SHINGLE = 9
"""Characters."""
KINDS: dict[str, str] = {
    "exact": "equal but for case, layout and LaTeX's dress",
    "near": "nearly equal, no number changed",
    "template": "the same or nearly, with other numbers",
}
"""What a pair may be -> what it means. Templates are different questions: they are told, not dropped."""
_NUMBER = re.compile(r"\d+")
_BETWEEN_NUMBERS = re.compile(r" (?<=\d )(?=\d)")
_BUCKETS = 1 << 24
_CUT, _COUNTED, _COMPARED = 0.16, 0.51, 0.85
"""Shares of the time after which texts are cut, their shingles counted, and those that share some compared."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two questions that are alike, by their places in the pool; `first` < `second`."""

    first: int
    second: int
    kind: str
    """One of `KINDS`."""
    similarity: float
    """Jaccard, 0 to 1; for templates of equal words below the threshold too."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Rows of the pool that are one question, by their places."""

    keep: int
    drop: tuple[int, ...]


def shingles(text: str) -> set[str]:
    """The character 9-shingles of a text as `plain` gives it; of a shorter one, the text."""
    return {text[at : at + SHINGLE] for at in range(max(1, len(text) - SHINGLE + 1))}


def plain(question: str) -> str:
    """The tokens of a question without blanks ("ax" may be "a x" elsewhere), but for one between two numbers; of a
    question that has no tokens, the question itself."""
    found = " ".join(tokens(question))
    return " ".join([part.replace(" ", "") for part in _BETWEEN_NUMBERS.split(found)]) or question.strip()


def jaccard(one: str, other: str) -> float:
    """Similarity of two texts as `plain` gives them."""
    a, b = shingles(one), shingles(other)
    return len(a & b) / len(a | b)


def other_numbers(one: str, other: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """The numbers that only one of two texts has, as `plain` gives them; None unless both have some: a text that only
    has more, such as choices to pick from, is no other question for that."""
    a, b = Counter(_NUMBER.findall(one)), Counter(_NUMBER.findall(other))
    left, right = tuple((a - b).elements()), tuple((b - a).elements())
    return (left, right) if left and right else None


def alike(
    questions: Sequence[str], *, threshold: float = 0.7, templates: bool = True, tick: Tick = silent
) -> list[Pair]:
    """All pairs of questions that are one, or nearly: of equal ones, each with the first of them; the rest between
    those firsts. Sorted by place. `templates`: also pairs with other numbers; of questions that are equal but for
    those, each with the first, however unlike they are. `tick`: told how far it is. Raises `UsageError` for a threshold
    outside (0, 1]."""
    if not 0 < threshold <= 1:
        raise UsageError(f"wanted a similarity above 0 and at most 1, got {threshold}")
    texts = [plain(question) for question in watched(questions, len(questions), tick, 0.0, _CUT)]
    firsts: dict[str, int] = {}
    pairs = []
    for at, text in enumerate(texts):
        first = firsts.setdefault(text, at)
        if first != at:
            pairs.append(Pair(first, at, "exact", 1.0))
    places = list(firsts.values())
    seen = set()
    for one, other in _candidates([texts[place] for place in places], threshold, tick):
        first, second = sorted((places[one], places[other]))
        similarity = jaccard(texts[first], texts[second])
        if similarity >= threshold:
            seen.add((first, second))
            kind = "template" if other_numbers(texts[first], texts[second]) else "near"
            if kind == "near" or templates:
                pairs.append(Pair(first, second, kind, similarity))
    if templates:
        for first, second in _same_words(texts, places):
            if (first, second) not in seen:
                pairs.append(Pair(first, second, "template", jaccard(texts[first], texts[second])))
    return sorted(pairs, key=lambda pair: (pair.first, pair.second))


def _same_words(texts: Sequence[str], places: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Texts that are equal but for numbers, each with the first of its kind."""
    firsts: dict[str, int] = {}
    for place in places:
        masked = _NUMBER.sub(NUMBER, texts[place])
        first = firsts.setdefault(masked, place)
        if first != place:
            yield first, place


def _candidates(texts: Sequence[str], threshold: float, tick: Tick = silent) -> Iterator[tuple[int, int]]:
    """Pairs of texts among which are all that are alike, each once; of texts that are equal but for their numbers only
    those with the same numbers in another order.

    Shingles are hashed to 32 bits and put in one order, rare ones first, where a shingle is as rare as its bucket. Sets
    A and B with J >= t share at least t|A| members, so one of the first |A| - ceil(t|A|) + 1 of A is among as many of
    B. A text whose first ones are all its own is alike to nothing and costs no more than counting. Texts that are equal
    but for numbers are met as one, so a thousand of one template are not a million pairs."""
    counts = bytearray(_BUCKETS)
    hashed = []
    for text in watched(texts, len(texts), tick, _CUT, _COUNTED):
        values = _hashes(text)
        hashed.append(array("I", values))
        for value in values:
            bucket = value & _BUCKETS - 1
            if (seen := counts[bucket]) < 255:
                counts[bucket] = seen + 1
    names: dict[str, int] = {}
    kinds = [names.setdefault(_NUMBER.sub(NUMBER, text), len(names)) for text in texts]
    del names
    sizes = Counter(kinds)
    members: defaultdict[int, list[int]] = defaultdict(list)
    same_numbers: defaultdict[tuple[int, tuple[str, ...]], list[int]] = defaultdict(list)
    index: defaultdict[int, list[int]] = defaultdict(list)
    """Shingle -> the kinds of text that have it among their first ones."""
    by_length = sorted(range(len(texts)), key=lambda at: len(hashed[at]))
    for one in watched(by_length, len(texts), tick, _COUNTED, _COMPARED):
        mine = hashed[one]
        size = len(mine)
        first = size - math.ceil(threshold * size - 1e-9) + 1
        shared = [(count, value) for value in mine if (count := counts[value & _BUCKETS - 1]) > 1]
        wanted = first - (size - len(shared))
        if wanted <= 0:
            continue
        least = threshold * size - 1e-9
        kind = kinds[one]
        met: set[int] = set()
        for _, value in heapq.nsmallest(wanted, shared):
            posting = index[value]
            met.update(posting)
            if not posting or posting[-1] != kind:
                posting.append(kind)
        met.discard(kind)
        others = [other for known in met for other in members[known]]
        members[kind].append(one)
        if sizes[kind] > 1:
            twins = same_numbers[kind, tuple(sorted(_NUMBER.findall(texts[one])))]
            others += twins
            twins.append(one)
        if others:
            own = set(mine)
            for other in sorted(others):
                theirs = hashed[other]
                if len(theirs) >= least:
                    common = len(own.intersection(theirs))
                    if common >= (threshold - 1e-3) * (size + len(theirs) - common):
                        yield other, one


def _hashes(text: str) -> set[int]:
    if text.isascii():
        data = text.encode()
        return {crc32(data[at : at + SHINGLE]) for at in range(max(1, len(data) - SHINGLE + 1))}
    return {crc32(shingle.encode("utf-8", "surrogatepass")) for shingle in shingles(text)}


def clusters(rows: Sequence[Row], pairs: Iterable[Pair], *, sources: Sequence[str] = ()) -> list[Cluster]:
    """The rows that exact and near pairs tie together, and which one stays: of the source named first in `sources`
    (those not named come last), with a solution, with the longest question, of the smallest id. Sorted by `keep`."""
    group = list(range(len(rows)))

    def root(at: int) -> int:
        while group[at] != at:
            group[at] = group[group[at]]
            at = group[at]
        return at

    for pair in pairs:
        if pair.kind != "template":
            group[root(pair.first)] = root(pair.second)
    members: defaultdict[int, list[int]] = defaultdict(list)
    for at in range(len(rows)):
        members[root(at)].append(at)
    order = {source: rank for rank, source in enumerate(sources)}

    def best_first(at: int) -> tuple[Any, ...]:
        row = rows[at]
        rank = order.get(row.source, order.get(row.source.partition("/")[0], len(order)))
        return rank, row.solution is None, -len(row.question), row.id, row.source, row.split, row.solution or "", at

    found = []
    for places in members.values():
        if len(places) > 1:
            keep, *drop = sorted(places, key=best_first)
            found.append(Cluster(keep, tuple(drop)))
    return sorted(found, key=lambda cluster: cluster.keep)


def decide(
    rows: Sequence[Row],
    *,
    threshold: float = 0.7,
    sources: Sequence[str] = (),
    stage: str = "deduplicate",
    tick: Tick = silent,
) -> list[Decision]:
    """For each row, in order, whether it stays; one that goes names the row that stays for it. The evidence of a
    template, which stays, names the rows that it is one with. `tick`: told how far it is."""
    pairs = alike([row.question for row in rows], threshold=threshold, tick=tick)
    reasons: dict[int, str] = {}
    evidence: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for cluster in clusters(rows, pairs, sources=sources):
        kept = rows[cluster.keep]
        for at in cluster.drop:
            reasons[at] = f"duplicate:{kept.id}"
            similarity = jaccard(plain(rows[at].question), plain(kept.question))
            evidence[at] = {"kept": kept.id, "source": kept.source, "similarity": round(similarity, 4)}
    for pair in pairs:
        if pair.kind == "template":
            for at, other in ((pair.first, pair.second), (pair.second, pair.first)):
                evidence[at].setdefault("template_of", []).append(rows[other].id)
    for found in evidence.values():
        found.get("template_of", []).sort()
    return [Decision(row.id, stage, reasons.get(at, ""), evidence.get(at, {})) for at, row in enumerate(rows)]
