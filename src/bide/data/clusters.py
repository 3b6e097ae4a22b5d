"""Clusters of questions in the place of subjects: bags of words as vectors, and spherical k-means over them.

All numbers are whole and small enough to be held, and their sums, without rounding, so neither the order in which a
library adds nor the machine makes a difference. A word weighs the more the rarer it is; numbers are left out.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy

from ..errors import UsageError
from .live_line import Tick, part_of, silent, watched
from .records import Row
from .tokens import is_substance, tokens

AXES = 512
"""Words that count: the most frequent ones of substance, of three letters or more, in at most a fifth of the rows."""
LENGTH = 127
"""Of a vector: a product of two is below 2**24."""
_COMMON = 5
_SHORTEST_WORD = 3
_MOST_ROUNDS = 30
_TITLE_WORDS = 3
_SHORTEST_TITLE_WORD = 4
_CHUNK = 4096
_READ, _PLACED, _CLUSTERED = 0.3, 0.47, 0.92
"""Shares of the time after which words are read, made vectors of, and these put into clusters."""
_BEGUN = 0.15
"""Of the time in which clusters are found, that in which their beginnings are."""


@dataclass(frozen=True, slots=True)
class Clusters:
    """A `roles.Classifier` whose codes are clusters, named by a number and the words that mark them."""

    count: int = 51
    """As many as s1K has subjects."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 2:
            raise UsageError(f"wanted two clusters or more, got {self.count}")

    @property
    def name(self) -> str:
        """With their number."""
        return f"clusters:{self.count}"

    @property
    def version(self) -> str:
        """Of the method."""
        return f"1-{self.seed}"

    def subjects(self, rows: Sequence[Row]) -> Iterator[tuple[str, str | None, str]]:
        """As `Classifier`. Fewer rows than clusters are a cluster each."""
        return self.subjects_told(rows, silent)

    def subjects_told(self, rows: Sequence[Row], tick: Tick) -> Iterator[tuple[str, str | None, str]]:
        """As `Telling`."""
        words = [words_of(row) for row in watched(rows, len(rows), tick, 0.0, _READ)]
        finding = part_of(tick, _PLACED, _CLUSTERED - _PLACED)
        places = cluster(vectors(words), self.count, self.seed, finding)
        named = titles(words, places)
        for row, place in zip(rows, places):
            yield row.id, named[place], self.name


def words_of(row: Row) -> list[str]:
    """The different words of a question."""
    return sorted({word for word in tokens(row.question) if word.isalpha()})


def vectors(bags: Sequence[Sequence[str]]) -> Any:
    """A row of whole numbers for each bag of words, of about the length `LENGTH`; zeros where no word counts."""
    counts = Counter(word for bag in bags for word in bag)
    most = max(1, len(bags) // _COMMON)
    words = [w for w, n in counts.items() if n <= most and len(w) >= _SHORTEST_WORD and is_substance(w)]
    words = sorted(words, key=lambda word: (-counts[word], word))[:AXES]
    axes = {word: (axis, (len(bags) // counts[word]).bit_length() - 1) for axis, word in enumerate(words)}
    found = numpy.zeros((len(bags), max(1, len(words))), dtype=numpy.float32)
    for at, bag in enumerate(bags):
        for word in bag:
            if word in axes:
                axis, weight = axes[word]
                found[at, axis] = weight
    for start in range(0, len(bags), _CHUNK):
        found[start : start + _CHUNK] = _scaled(found[start : start + _CHUNK])
    return found


def folded(points: Sequence[Sequence[int]]) -> Any:
    """Vectors of whole numbers with `AXES` axes or fewer: of more, those that lie `AXES` apart are added, with signs
    that are the same everywhere, so that lengths and angles stay about the same."""
    wide = len(points[0]) if points else 1
    found = numpy.zeros((len(points), min(wide, AXES)), dtype=numpy.float32)
    signs = numpy.array([1 if crc32(str(axis).encode()) & 1 else -1 for axis in range(wide)], dtype=numpy.float32)
    for at, point in enumerate(points):
        for start in range(0, wide, AXES):
            part = numpy.array(point[start : start + AXES], dtype=numpy.float32)
            found[at, : len(part)] += part if wide <= AXES else part * signs[start : start + AXES]
    return found if wide <= AXES else _scaled(found)


def cluster(points: Any, count: int, seed: int, tick: Tick = silent) -> list[int]:
    """The cluster of each point, 0 to count-1: k-means by angle, begun as k-means++ does. `tick`: told how far it is,
    if it takes all of its rounds."""
    draw = random.Random(seed).random
    centres = points[[int(draw() * len(points))]] if len(points) else points
    least = numpy.full(len(points), LENGTH * LENGTH, dtype=numpy.float64)
    while 0 < len(centres) < min(count, len(points)):
        least = numpy.minimum(least, numpy.maximum(0.0, LENGTH * LENGTH - points @ centres[-1]))
        sums = numpy.cumsum(least * least)
        if not sums[-1]:
            break
        place = int(numpy.searchsorted(sums, draw() * sums[-1], side="right"))
        centres = numpy.vstack([centres, points[[min(place, len(points) - 1)]]])
        tick(_BEGUN * len(centres) / count)
    places = numpy.full(len(points), -1)
    for done in range(_MOST_ROUNDS if len(points) else 0):
        tick(_BEGUN + (1 - _BEGUN) * done / _MOST_ROUNDS)
        nearest = numpy.argmax(points @ centres.T, axis=1)  # of equals the first
        if (nearest == places).all():
            break
        places = nearest
        sums = numpy.array([points[places == at].sum(axis=0, dtype=numpy.float64) for at in range(len(centres))])
        empty = numpy.bincount(places, minlength=len(centres)) == 0
        centres = numpy.where(empty[:, None], centres, _scaled(sums))
    return [int(place) for place in places]


def _scaled(sums: Any) -> Any:
    """Rows of whole numbers, each made about `LENGTH` long and rounded."""
    sums = sums.astype(numpy.float64)
    lengths = numpy.sqrt(numpy.maximum((sums * sums).sum(axis=1), 1.0))
    return numpy.rint(LENGTH * sums / lengths[:, None]).astype(numpy.float32)


def titles(bags: Sequence[Sequence[str]], places: Sequence[int]) -> dict[int, str]:
    """A name of each cluster: its number, and the words that it has most beyond what the whole pool has."""
    inside: dict[int, Counter[str]] = {place: Counter() for place in sorted(set(places))}
    everywhere: Counter[str] = Counter()
    for bag, place in zip(bags, places):
        longer = [word for word in bag if len(word) >= _SHORTEST_TITLE_WORD]
        inside[place].update(longer)
        everywhere.update(longer)
    sizes = Counter(places)
    found = {}
    for place, words in inside.items():
        # whole numbers: how many more there are than if the words of the pool lay everywhere alike
        beyond = {word: count * len(places) - everywhere[word] * sizes[place] for word, count in words.items()}
        best = sorted(beyond, key=lambda word: (-beyond[word], word))[:_TITLE_WORDS]
        found[place] = " ".join([f"k{place:02}", *best])
    return found
