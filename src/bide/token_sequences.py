"""Two observers of a stream of token ids, each O(1) a token: markers and loops.

They know nothing of thinking or budgets. Standard library only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

LOOP_BLOCK = 16
"""Shortest block, in tokens, whose repetition counts as a loop: rules such as "-----" are shorter."""

_HASH_BASE = 1_000_003
_HASH_MODULUS = (1 << 61) - 1


class MarkerMatcher:
    """Finds any of several id sequences in a stream, and how much of one may have begun.

    An Aho-Corasick automaton. After each `step`, `depth` is the length of the longest suffix of
    the stream that begins a sequence: those tokens must be held back until more is known.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        assert all(sequences), "an empty sequence would match everywhere"
        self._children: list[dict[int, int]] = [{}]
        self._depths = [0]
        self._matches: list[int | None] = [None]  # node -> index of the sequence that ends there
        for index, sequence in enumerate(sequences):
            node = 0
            for token in sequence:
                if token not in self._children[node]:
                    self._children.append({})
                    self._depths.append(self._depths[node] + 1)
                    self._matches.append(None)
                    self._children[node][token] = len(self._children) - 1
                node = self._children[node][token]
            if self._matches[node] is None:
                self._matches[node] = index
        self._fails = [0] * len(self._children)
        queue = deque(self._children[0].values())
        while queue:
            node = queue.popleft()
            for token, child in self._children[node].items():
                self._fails[child] = self._next(self._fails[node], token)
                queue.append(child)
            if self._matches[node] is None:  # a shorter sequence may end here
                self._matches[node] = self._matches[self._fails[node]]
        self._node = 0
        self.first_ids = frozenset(self._children[0])

    @property
    def depth(self) -> int:
        """Number of latest tokens that may be the beginning of a sequence."""
        return self._depths[self._node]

    def step(self, token: int) -> int | None:
        """Take one token. Index of the sequence that it completes (the first given, where several
        are equal), or None. After a match the matcher starts afresh."""
        self._node = self._next(self._node, token)
        match = self._matches[self._node]
        if match is not None:
            self._node = 0
        return match

    def completing_ids(self) -> set[int]:
        """The ids that would complete a sequence if they came next."""
        return self.completing_at(self._node)

    def nodes(self) -> list[tuple[dict[int, int], int, int | None]]:
        """The automaton as a table. For each node: where each id leads (any other: to node 0), the
        node's depth, and the sequence that is complete there."""
        ids = {token for children in self._children for token in children}
        return [
            ({t: to for t in ids if (to := self._next(node, t))}, self._depths[node], self._matches[node])
            for node in range(len(self._children))
        ]

    @property
    def node(self) -> int:
        """Where the stream stands in `nodes`."""
        return self._node

    def completing_at(self, node: int) -> set[int]:
        """The ids that would complete a sequence if they came next at `node`."""
        found: set[int] = set()
        while True:
            found |= {t for t, child in self._children[node].items() if self._matches[child] is not None}
            if node == 0:
                return found
            node = self._fails[node]

    def reset(self) -> None:
        """Forget what has been seen."""
        self._node = 0

    def _next(self, node: int, token: int) -> int:
        while node and token not in self._children[node]:
            node = self._fails[node]
        return self._children[node].get(token, 0)


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
