"""Runs of tokens that stand in a text and in one of some others, which are few."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import compress, count

Tokens = Sequence[Hashable]


class Runs:
    """Where each run of `n` tokens stands in some texts.

    A text that shares no run with them costs little: it is cut into blocks of three quarters of a run, so close to each
    other that every run of `n` holds one whole, and only around a block that stands in one of the texts are runs looked
    up. So nothing is missed.
    """

    def __init__(self, n: int, texts: Mapping[int, Tokens]) -> None:
        """`texts`: number -> its tokens."""
        self.n = n
        self._block = n - n // 4
        self._stride = n - self._block + 1
        self._columns = [slice(at, None, self._stride) for at in range(self._block)]
        self._steps = [min(1 << at, n - (1 << at)) for at in range((n - 1).bit_length())]
        """How far to spread, one after the other, from the start of a run to its end."""
        self._blocks: dict[tuple[Hashable, ...], None] = {}
        """A dict for a set: most look-ups find nothing, which its smaller table tells faster."""
        self._places: dict[tuple[Hashable, ...], dict[int, int]] = {}
        for number, tokens in texts.items():
            if len(tokens) >= n:
                self._blocks.update(dict.fromkeys(_windows(tokens, self._block)))
            for run, starts in starts_of_runs(tokens, n).items():
                self._places.setdefault(run, {})[number] = starts

    def shared(self, tokens: tuple[Hashable, ...]) -> list[tuple[int, Mapping[int, int]]]:
        """Each run of `tokens` that stands in some of the texts, in order: where it starts, and number of a text ->
        where in that, a bit for each place."""
        blocks = zip(*map(tokens.__getitem__, self._columns))
        found: list[tuple[int, Mapping[int, int]]] = []
        n, before, places_of = self.n, self._stride - 1, self._places.get
        for at in compress(count(0, self._stride), map(self._blocks.__contains__, blocks)):
            for here in range(at - before if at > before else 0, at + 1):
                places = places_of(tokens[here : here + n])
                if places is not None:
                    found.append((here, places))
        return found

    def covered(self, starts: int) -> int:
        """The tokens in the runs that start there; a bit each, as in `starts`."""
        for step in self._steps:
            starts |= starts << step
        return starts


def starts_of_runs(tokens: Tokens, n: int) -> dict[tuple[Hashable, ...], int]:
    """Each run of `n` tokens -> where it starts, a bit for each place."""
    found: dict[tuple[Hashable, ...], int] = {}
    for at, run in enumerate(_windows(tokens, n)):
        found[run] = found.get(run, 0) | 1 << at
    return found


def _windows(tokens: Tokens, size: int) -> Iterator[tuple[Hashable, ...]]:
    return zip(*(tokens[at:] for at in range(size)))
