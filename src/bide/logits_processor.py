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
GREEDY = 1e-5
"""Temperatures below are 0, as they are for vLLM."""
_NEVER = np.float32(-np.inf)


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
        self.place = -1
        """In the arrays of the `HostRows` that has it in its batch; -1: none has."""
        self.odds = 0.0
        """That the target, if it was sampled, stands for an end. Set by who wrote the logits."""
        self.opening = len(opening)
        self.queue: deque[int] = deque(opening)
        """Ids that must come next."""
        self.ending: Ending | None = None
        """What must not be sampled next, if anything."""
        self.checked = 0
        """Output ids of which nothing can have come: they are taken later, together with others."""
        self.quiet_until = 0
        """Nothing comes of an id before the output has so many, unless it is in `watch` or `line_ends`."""
        self.watch: Container[int] = ()
        self.line_ends: Container[int] = ()
        self._take_forced()

    def advance(self, output: Sequence[int]) -> bool:
        """Take what is new in `output`, all ids of this request so far. Negative ids are not known yet.
        Whether the decision may be another now."""
        if self.checked > self.seen:
            self.forcer.feed_segment(output[self.seen : self.checked])
            self.seen = self.checked
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
        self.ending, self.quiet_until = None, 0
        if self.queue or forcer.done:
            return
        self.watch, self.line_ends = forcer.watched_ids, ()
        if forcer.state is not State.THINKING:
            self.quiet_until = 0 if forcer.pending else self.seen + forcer.lookahead()
            return
        ending = forcer.ending()
        if ending.ids:
            self.ending = ending
            self.watch = self.watch | {ending.text[0]}
            self.line_ends = forcer.markers.line_ends
            if not forcer.line_is_open:
                return  # the next id opens a line, most likely: another text then
        self.quiet_until = self.seen + ending.tokens


class HostRows:
    """Writes the decisions of `ForcedRow`s into logits, for rows of one batch.

    What was decided lies in arrays, a row of them for each row of the batch, and is written again only where it has
    changed: at most steps there is little more to do than to look at each row's latest id.
    """

    def __init__(self) -> None:
        self._rows: list[ForcedRow] = []
        """All of the batch, in the order of the arrays."""
        self._endings: list[Ending | None] = []
        """What stands in the arrays."""
        self._forced: dict[int, int] = {}
        """Place in the arrays -> the id that must come."""
        self._numbers = np.zeros(1, dtype=np.int64)
        """[rows]: in the logits."""
        self._ids = np.zeros((1, 1), dtype=np.int64)
        """[width, rows]: the target, the ends whose probability it takes, then the target again. Of a row that may
        sample anything: any id, of which nothing is taken."""
        self._void = np.zeros((1, 1), dtype=np.bool_)
        """[width, rows]: where the target stands again."""
        self._is_end = np.zeros((1, 1), dtype=np.bool_)
        """[width, rows]"""
        self._heat = np.ones(1, dtype=np.float32)
        """[rows]: temperatures, 1 for greedy and for rows that may sample anything."""
        self._greedy = np.zeros(1, dtype=np.bool_)
        self._any_heat = self._any_greedy = False
        """Whether a temperature is not 1, and whether one is 0."""
        self._values: NDArray[np.float32] | None = None
        """[width, rows]: the latest logits at these ids, -inf where the target stands again."""

    def advance(self, rows: Sequence[tuple[int, ForcedRow, Sequence[int]]], moved: bool) -> None:
        """Take what has been sampled since the last step. `rows`: for each the number of its row in
        the logits, and all of its output ids so far. `moved`: whether these are other rows, or
        other numbers, than at the last step."""
        changed = []
        for _, row, output in rows:
            count = len(output)
            if row.seen < count < row.quiet_until:  # all that most rows need at most steps
                token = output[-1]
                if token >= 0 and token not in row.watch and token not in row.line_ends:
                    row.checked = count
                    continue
            if count > row.seen:
                if row.ending is not None and output[-1] == row.ending.text[0]:
                    self.park(row)
                if row.advance(output):
                    changed.append(row)
        if moved:
            self._place(rows)
        for row in changed:
            self._write(row)

    def park(self, row: ForcedRow) -> None:
        """Keep the odds of the latest `apply` with `row`: it leaves the batch, or needs them now."""
        if self._values is not None and row.place >= 0 and self._endings[row.place] is not None:
            row.odds = self._odds(self._values[:, row.place].tolist(), row.temperature)

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Change `logits` ([rows, vocabulary]) in place."""
        self._values = None
        if any(self._endings):
            self._move_mass(logits)
        if self._forced:
            logits[self._numbers[[*self._forced]], [*self._forced.values()]] = FORCED_LOGIT

    def _place(self, rows: Sequence[tuple[int, ForcedRow, Sequence[int]]]) -> None:
        """Order the arrays as the batch is now."""
        before = [row.place for _, row, _ in rows]
        assert all(row.place < 0 or self._rows[row.place] is row for _, row, _ in rows), "a row of another batch"
        for row in self._rows:
            row.place = -1
        self._rows = [row for _, row, _ in rows]
        self._numbers = np.array([number for number, _, _ in rows], dtype=np.int64)
        self._endings = [self._endings[old] if old >= 0 else None for old in before]
        self._forced = {place: self._forced[old] for place, old in enumerate(before) if old in self._forced}
        stay = len(before) == len(self._heat) and all(old in (-1, place) for place, old in enumerate(before))
        if rows and not stay:
            order = np.array(before)
            self._ids, self._void, self._is_end = self._ids[:, order], self._void[:, order], self._is_end[:, order]
            self._heat, self._greedy = self._heat[order], self._greedy[order]
            self._values = None if self._values is None else self._values[:, order]
        for place, row in enumerate(self._rows):
            row.place = place
            if before[place] < 0:  # what lies there is another's
                self._greedy[place] = row.temperature < GREEDY
                if self._values is not None:
                    self._values[:, place] = _NEVER
                if row.ending is None:
                    self._let_end(place)
                self._write(row)
        self._any_greedy = bool(self._greedy.any())
        self._any_heat = any(row.temperature not in (0, 1) for row in self._rows)

    def _write(self, row: ForcedRow) -> None:
        """Put into the arrays what is decided for `row`."""
        place, ending, before = row.place, row.ending, self._endings[row.place]
        if row.queue:
            self._forced[place] = row.queue[0]
        else:
            self._forced.pop(place, None)
        if ending is None:
            if before is not None:
                self._let_end(place)
        elif before is None or ending.text[0] != before.text[0] or ending.ids != before.ids:
            self._refuse_end(place, ending, row.temperature)

    def _let_end(self, place: int) -> None:
        self._endings[place] = None
        self._ids[:, place] = self._ids[0, place]
        self._void[1:, place] = True
        self._is_end[:, place] = False
        self._heat[place] = 1.0  # so that what is written there is what was read

    def _refuse_end(self, place: int, ending: Ending, temperature: float) -> None:
        self._endings[place] = ending
        target = ending.text[0]
        ends = [token for token in ending.ids if token != target]  # a wait may begin with what looks like an end
        again = len(self._ids) - 1 - len(ends)
        if again < 0:
            more = self._ids[:1].repeat(-again, axis=0)
            self._ids = np.concatenate([self._ids, more])
            self._void = np.concatenate([self._void, np.ones(more.shape, dtype=np.bool_)])
            self._is_end = np.concatenate([self._is_end, np.zeros(more.shape, dtype=np.bool_)])
            again = 0
        self._ids[:, place] = [target, *ends] + [target] * again
        self._void[:, place] = [False] * (1 + len(ends)) + [True] * again
        self._is_end[:, place] = [False] + [True] * len(ends) + [False] * again
        self._heat[place] = 1.0 if temperature < GREEDY else temperature

    def _move_mass(self, logits: NDArray[np.float32]) -> None:
        # In as few operations as can be: what each costs here is not its arithmetic.
        places = self._numbers, self._ids
        self._values = values = np.where(self._void, _NEVER, logits[places])
        joint = np.logaddexp.reduce(values / self._heat) * self._heat if self._any_heat else np.logaddexp.reduce(values)
        if self._any_greedy:
            joint = np.where(self._greedy, values.max(0), joint)
        logits[places] = np.where(self._is_end, _NEVER, joint)

    @staticmethod
    def _odds(values: list[float], temperature: float) -> float:
        """That the target, if it was sampled, stands for an end. `values`: its logit, then those of the ends."""
        target, *ends = values
        top = max(ends, default=-math.inf)
        if temperature < GREEDY or top == -math.inf:
            return float(top > target)
        mass = sum(math.exp((end - top) / temperature) for end in ends)
        return mass / (mass + math.exp(min(700.0, (target - top) / temperature)))
