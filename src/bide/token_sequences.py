"""Two observers of a stream of token ids, each O(1) a token: markers and loops.

They know nothing of thinking or budgets. Standard library only.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

LOOP_BLOCK = 16
"""Shortest block, in tokens, whose repetition counts as a loop: rules such as "-----" are shorter."""

_HASH_BASE = 1_000_003
_HASH_MODULUS = (1 << 61) - 1


class _Automaton(NamedTuple):
    """Of Aho and Corasick. By node: where its ids lead, its depth, the index of the sequence that ends there, and
    the node of the longest suffix that begins a sequence too."""

    children: list[dict[int, int]]
    depths: list[int]
    matches: list[int | None]
    fails: list[int]

    def next(self, node: int, token: int) -> int:
        while node and token not in self.children[node]:
            node = self.fails[node]
        return self.children[node].get(token, 0)


@functools.lru_cache(maxsize=256)  # turns come and go, and their formats are few
def _automaton(sequences: tuple[tuple[int, ...], ...]) -> _Automaton:
    assert all(sequences), "an empty sequence would match everywhere"
    made = _Automaton([{}], [0], [None], [0])
    children, depths, matches, fails = made
    for index, sequence in enumerate(sequences):
        node = 0
        for token in sequence:
            if token not in children[node]:
                children.append({})
                depths.append(depths[node] + 1)
                matches.append(None)
                fails.append(0)
                children[node][token] = len(children) - 1
            node = children[node][token]
        if matches[node] is None:
            matches[node] = index
    queue = deque(children[0].values())
    while queue:
        node = queue.popleft()
        for token, child in children[node].items():
            fails[child] = made.next(fails[node], token)
            queue.append(child)
        if matches[node] is None:  # a shorter sequence may end here
            matches[node] = matches[fails[node]]
    return made


class MarkerMatcher:
    """Finds any of several id sequences in a stream, and how much of one may have begun.

    After each `step`, `depth` is the length of the longest suffix of the stream that begins a
    sequence: those tokens must be held back until more is known.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self._automaton = _automaton(tuple(map(tuple, sequences)))
        self._node = 0
        self.first_ids = frozenset(self._automaton.children[0])

    @property
    def depth(self) -> int:
        """Number of latest tokens that may be the beginning of a sequence."""
        return self._automaton.depths[self._node]

    def step(self, token: int) -> int | None:
        """Take one token. Index of the sequence that it completes (the first given, where several
        are equal), or None. After a match the matcher starts afresh."""
        self._node = self._automaton.next(self._node, token)
        match = self._automaton.matches[self._node]
        if match is not None:
            self._node = 0
        return match

    def completing_ids(self) -> set[int]:
        """The ids that would complete a sequence if they came next."""
        return self.completing_at(self._node)

    def nodes(self) -> list[tuple[dict[int, int], int, int | None]]:
        """The automaton as a table. For each node: where each id leads (any other: to node 0), the
        node's depth, and the sequence that is complete there."""
        made = self._automaton
        ids = {token for children in made.children for token in children}
        return [
            ({t: to for t in ids if (to := made.next(node, t))}, made.depths[node], made.matches[node])
            for node in range(len(made.children))
        ]

    @property
    def node(self) -> int:
        """Where the stream stands in `nodes`."""
        return self._node

    def completing_at(self, node: int) -> set[int]:
        """The ids that would complete a sequence if they came next at `node`."""
        made = self._automaton
        found: set[int] = set()
        while True:
            found |= {t for t, child in made.children[node].items() if made.matches[child] is not None}
            if node == 0:
                return found
            node = made.fails[node]

    def reset(self) -> None:
        """Forget what has been seen."""
        self._node = 0


class LoopDetector:
    """Says when the stream has become the same block over and over.

    A block is the repeating unit, or the smallest multiple of it with at least `LOOP_BLOCK`
    tokens. `push` returns True once `repeats` such blocks in a row have been verified token by
    token. It never fires on a stream that does not end in that repetition; it may fire a little
    after the first moment at which it could (the repetition must be noticed before it is counted).
    """

    def __init__(self, repeats: int) -> None:
        assert repeats >= 2
        self._repeats = repeats
        self._history: list[int] = []
        self._seen: dict[int, int] = {}  # hash of LOOP_BLOCK ids -> index after them, latest
        self._hash = 0
        self._drop = pow(_HASH_BASE, LOOP_BLOCK, _HASH_MODULUS)
        self._period = 0
        self._run = 0

    def push(self, token: int) -> bool:
        """Take one token; True when the stream ends in the repetition."""
        history = self._history
        history.append(token)
        size = len(history)
        self._hash = (self._hash * _HASH_BASE + token + 1) % _HASH_MODULUS
        if size > LOOP_BLOCK:
            self._hash = (self._hash - (history[size - 1 - LOOP_BLOCK] + 1) * self._drop) % _HASH_MODULUS
        period = self._period
        if period and token == history[size - 1 - period]:
            self._run += 1
        else:
            earlier = self._seen.get(self._hash) if size >= LOOP_BLOCK else None
            self._period = period = size - earlier if earlier else 0
            self._run = 0
        if size >= LOOP_BLOCK:
            self._seen[self._hash] = size
        if not period:
            return False
        block = period * -(-LOOP_BLOCK // period)
        return self._run + period >= self._repeats * block
