"""Budget forcing from inside somebody else's sampling loop, where all that one can do is change logits.

An engine that calls logits processors samples once for every row and step, keeps what it sampled,
and has given it out before it asks again. So nothing can be taken back, and the two halves of
budget forcing take another form than in bide's own engines:

- A forced id gets a logit that no other can reach.
- An end of thinking that must not stand is never sampled. Its probability goes to the first id of
  the text that would replace it ("Wait", or what closes the thought where the model would end its
  turn): that id is sampled as often as it and the ends together. When it is, one more draw decides
  whether an end was meant, with the odds that the logits gave; then the rest of the text is forced.

The law of the text is that of "sample; if it is an end, write the text instead", for any
temperature (at 0 it is the limit). Filters that come after (top-k, top-p, min-p) see the joint
probability, where that loop would have filtered the end alone: an end that a filter would have cut
off may survive in the sum, and the other way around.

`ForcedRow` is one request, driven by the same `BudgetForcer` as every engine. `HostRows` writes the
decisions of many into the logits of a batch that lies in host memory. `bide.logits_kernel` does
both on a GPU.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container, Sequence

import numpy as np
from numpy.typing import NDArray

from .budget_forcing import Action, BudgetForcer, Ending, Ids, State

FORCED_LOGIT = 1e9
"""Far above all others, and finite: penalties and temperatures that come later keep it there."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1): a pure function of a seed and of a place in the output. The kernel has the
    same one, so both decide alike. (32-bit murmur3 finalizer.)"""
    x = (seed ^ (position * 0x9E3779B1)) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return ((x ^ (x >> 16)) >> 8) / (1 << 24)


class ForcedRow:
    """One request of a batch: follows its output, and says what may be sampled next.

    `opening`: ids to force before anything else, where the prompt does not open the thought itself.
    They stand in the output, but the `forcer` does not see them. `temperature`: the one that is
    sampled with, 0 for greedy. `seed`: of the draws that tell a replaced end from a word of the
    model's own.
    """

    def __init__(self, forcer: BudgetForcer, *, opening: Ids = (), temperature: float = 1.0, seed: int = 0) -> None:
        self.forcer = forcer
        self.temperature = temperature
        self.seed = seed & 0xFFFFFFFF
        self.seen = 0
        """Output ids taken so far."""
        self.odds = 0.0
        """That the target, if it was sampled, stands for an end. Set by who wrote the logits."""
        self.opening = len(opening)
        self.queue: deque[int] = deque(opening)
        """Ids that must come next."""
        self.ending: Ending | None = None
        """What must not be sampled next, if anything."""
        self._checked = 0
        self._quiet_until = 0
        self._watch: Container[int] = ()
        self._line_ends: Container[int] = ()
        self._line_complete = False
        self._take_forced()

    def quiet(self, output: Sequence[int]) -> bool:
        """Whether nothing can have come of the latest of `output`, all ids so far: it is then taken
        later, together with others. O(1), and all that most rows need at most steps."""
        count, token = len(output), output[-1]
        if count >= self._quiet_until or token in self._watch or token < 0:
            return False
        if (token in self._line_ends) is not self._line_complete:
            return False
        self._checked = count
        return True

    def advance(self, output: Sequence[int]) -> bool:
        """Take what is new in `output`, all ids of this request so far. Negative ids are not known yet.
        Whether the decision may be another now."""
        if self._checked > self.seen:
            self.forcer.feed_segment(output[self.seen : self._checked])
            self.seen = self._checked
        changed = False
        for position in range(self.seen, len(output)):
            token = output[position]
            if token < 0:
                break
            changed |= self._take(token, self.odds)
            self.odds = 0.0
        return changed

    def replay(self, output: Sequence[int]) -> None:
        """Take ids of which nothing is known but themselves: a request comes back that was forgotten.
        Where the text that would replace an end stands complete, it counts as that."""
        for position in range(len(output)):
            meant = self.ending is not None and tuple(output[position : position + len(self.ending.text)]) == (
                self.ending.text
            )
            self._take(output[position], float(meant))

    def _take(self, token: int, odds: float) -> bool:
        self.seen += 1
        if self.queue:
            self.queue.popleft()
            if not self.queue:
                self._look()
            return True
        forcer = self.forcer
        if forcer.done:
            return False
        ending = self.ending
        if ending is not None and token == ending.text[0] and odds > 0 and uniform(self.seed, self.seen) < odds:
            forcer.take_end()
            self._take_forced(standing=1)
            return True
        action = forcer.feed(token)
        if action is Action.HOLD:
            action = forcer.settle()
        self._take_forced()
        return True

    def _take_forced(self, standing: int = 0) -> None:
        """Queue what is forced, less the first ids that stand already."""
        self.queue.extend(self.forcer.drain_forced()[standing:])
        self._look()

    def _look(self) -> None:
        """Decide anew, and see for how long that will do."""
        forcer = self.forcer
        self.ending, self._quiet_until = None, 0
        if self.queue or forcer.done:
            return
        self._watch, self._line_ends, self._line_complete = forcer.watched_ids, (), False
        if forcer.state is not State.THINKING:
            self._quiet_until = 0 if forcer.pending else self.seen + forcer.lookahead()
            return
        ending = forcer.ending()
        self._quiet_until = self.seen + ending.tokens
        if ending.ids:
            self.ending = ending
            self._watch = forcer.watched_ids | {ending.text[0]}
            self._line_ends, self._line_complete = forcer.markers.line_ends, not forcer.line_is_open


class HostRows:
    """Writes the decisions of `ForcedRow`s into logits, for rows of one batch. No row, no work."""

    def __init__(self) -> None:
        self._forced: tuple[list[int], list[int]] | None = None
        self._watched: _Watched | None = None

    def advance(self, rows: Sequence[tuple[int, ForcedRow, Sequence[int]]], moved: bool) -> None:
        """Take what has been sampled since the last step. `rows`: for each the number of its row in
        the logits, and all of its output ids so far. `moved`: whether these are other rows, or
        other numbers, than at the last step."""
        changed = moved
        for _, row, output in rows:
            if len(output) > row.seen and not row.quiet(output):
                if row.ending is not None and output[-1] == row.ending.text[0]:
                    self.park(row)
                changed |= row.advance(output)
        if changed:
            self._decide(rows)

    def park(self, row: ForcedRow) -> None:
        """Keep the odds of the latest `apply` with `row`: it leaves the batch, or needs them now."""
        if self._watched is not None and (odds := self._watched.odds_of(row)) is not None:
            row.odds = odds

    def _decide(self, rows: Sequence[tuple[int, ForcedRow, Sequence[int]]]) -> None:
        forced = [(number, row.queue[0]) for number, row, _ in rows if row.queue]
        watched = [(number, row, row.ending) for number, row, _ in rows if row.ending is not None]
        self._forced = ([number for number, _ in forced], [token for _, token in forced]) if forced else None
        self._watched = _Watched(watched) if watched else None

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change `logits` ([rows, vocabulary]) in place."""
        if self._watched is not None:
            self._watched.move_mass(logits)
        if self._forced is not None:
            logits[self._forced] = FORCED_LOGIT


class _Watched:
    """The rows whose ends must not be sampled: ids and temperatures as arrays."""

    def __init__(self, rows: Sequence[tuple[int, ForcedRow, Ending]]) -> None:
        self._rows = [row for _, row, _ in rows]  # held, so that no other object gets the id of one
        self._index: dict[int, int] | None = None
        most = max(len(ending.ids) for _, _, ending in rows)
        # Rows with fewer ids repeat their target, which is masked out below.
        ids = [[e.text[0], *e.ids, *[e.text[0]] * (most - len(e.ids))] for _, _, e in rows]
        self._places = np.array([number for number, _, _ in rows])[:, None], np.array(ids)
        self._void = self._places[1] == self._places[1][:, :1]
        self._void[:, 0] = False
        heat = np.array([row.temperature for row in self._rows], dtype=np.float32)
        self._greedy = heat < 1e-5  # vLLM's own bound
        self._any_greedy = bool(self._greedy.any())
        self._heat = np.where(self._greedy, np.float32(1.0), heat)
        self._values = np.zeros(self._void.shape, dtype=np.float32)  # the target's logit, then those of the ends

    def move_mass(self, logits: NDArray[np.float32]) -> None:
        self._values = values = logits[self._places]
        values[self._void] = -np.inf
        top = np.maximum(values.max(1), np.float32(-1e30))  # where something else forbids them all, it stays so
        joint = top + self._heat * np.log(np.exp((values - top[:, None]) / self._heat[:, None]).sum(1))
        if self._any_greedy:
            joint = np.where(self._greedy, top, joint)
        written = np.full_like(values, -np.inf)
        written[:, 0] = joint
        logits[self._places] = np.where(self._void, joint[:, None], written)

    def odds_of(self, row: ForcedRow) -> float | None:
        """That the target, if it was sampled for `row`, stands for an end."""
        if self._index is None:
            self._index = {id(row): i for i, row in enumerate(self._rows)}
        at = self._index.get(id(row))
        if at is None:
            return None
        target, *ends = (float(value) for value in self._values[at])
        top = max(ends)
        if self._greedy[at] or top == -math.inf:
            return float(top > target)
        heat = float(self._heat[at])
        mass = sum(math.exp((end - top) / heat) for end in ends)
        return mass / (mass + math.exp(min(700.0, (target - top) / heat)))
