"""Sharing the samples of one optimizer step among GPUs: packs of like cost, none too long. Pure functions.

A pack is what one GPU computes in one forward and backward pass. All GPUs pass through the layers together, so a pass
takes as long as its dearest pack, and all have the same number of packs; some may be empty.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from functools import lru_cache

from ..errors import UsageError

_CLOSE = 1.002
"""Within this factor of perfect balance nothing more is tried."""
_MOST_SINGLES = 8
"""With more passes than these, none is set apart for single samples."""
_MOST_WINDOWS = 16
"""Samples of like cost that are tried as a pass of their own."""
_STARTS = 4
"""So many of the ways found at first are improved a little, and the best of them then as far as it goes."""
_FIRST_STEPS = 3
_MOST_STEPS = 200
_KEPT_AWAY = 12
"""For so many steps of a search a sample does not go back to where it was."""
_IDLE_STEPS = 30
"""A search ends after so many steps without a better way,"""
_IDLE_TRIALS = 5_000
"""or when about so many moves and swaps were weighed in them: large batches are balanced well without."""
_KNOWN = 1024
"""Steps whose single pass is remembered: it is asked for again under every limit."""

Bins = list[list[int]]


def pack(
    costs: Sequence[float], tokens: Sequence[int], world_size: int, max_tokens: int | None = None
) -> list[list[tuple[int, ...]]]:
    """For each rank its packs; a pack holds positions in `costs`, the dearest first.

    Longest first to the least loaded (LPT; Graham 1969: at most 4/3 of the best), then improved by moves and swaps
    between any two packs. `max_tokens`: of a pack; None: each rank has one pack. As few packs as can be found: one
    more costs more in nearly every step of a training like s1. The same arguments give the same packs. Raises
    `UsageError` for an item longer than a pack.
    """
    if world_size < 1:
        raise UsageError(f"the number of GPUs is at least 1, not {world_size}")
    for position, count in enumerate(tokens):
        if max_tokens is not None and count > max_tokens:
            raise UsageError(
                f"sample {position + 1} of a step has {count:,} tokens, a pack holds {max_tokens:,}",
                hint="more memory a GPU, or max_length",
            )
    if max_tokens is None or sum(tokens) <= world_size * max_tokens:
        at_once = _in_one_pass(tuple(costs), world_size)
        if max_tokens is None or all(sum(tokens[i] for i in one) <= max_tokens for one in at_once):
            return _to_ranks(at_once, costs, world_size)
    assert max_tokens is not None
    return _to_ranks(_fewest_passes(costs, tokens, world_size, max_tokens), costs, world_size)


def cost_of_passes(packs: Sequence[Sequence[Sequence[int]]], costs: Sequence[float]) -> float:
    """What `packs` (as `pack` returns them) take: of each pass its dearest pack."""
    return math.fsum(max(sum(costs[i] for i in one) for one in each) for each in zip(*packs))


@lru_cache(maxsize=_KNOWN)
def _in_one_pass(costs: tuple[float, ...], world_size: int) -> Bins:
    """Packs of any length; not to be changed."""
    tokens = [0] * len(costs)
    bins = _shared(_dear_first(costs), costs, tokens, world_size, None)
    assert bins is not None
    return _improved([bins], costs, tokens, world_size, None)


def _dear_first(costs: Sequence[float]) -> list[int]:
    return sorted(range(len(costs)), key=lambda i: (-costs[i], i))


def _fewest_passes(costs: Sequence[float], tokens: Sequence[int], world_size: int, max_tokens: int) -> Bins:
    order = _dear_first(costs)
    count = max(1, math.ceil(sum(tokens) / (world_size * max_tokens)))
    while not (ways := _in_passes(order, costs, tokens, world_size, max_tokens, count)):
        count += 1  # with a pass for each sample all fit
    return _improved(ways, costs, tokens, world_size, max_tokens)


def _in_passes(
    order: list[int], costs: Sequence[float], tokens: Sequence[int], world_size: int, max_tokens: int, count: int
) -> list[Bins]:
    """Ways to do it in `count` passes, each the packs of all; none if none was found."""
    ways = []
    bins = _shared(order, costs, tokens, world_size * count, max_tokens)
    if bins is None:
        bins = _fitted(order, tokens, world_size * count, max_tokens)
    if bins is not None:  # all passes alike
        ways.append(bins)
    if count == 1 or count > _MOST_SINGLES or world_size == 1:
        return ways
    places = max(1, len(order) - world_size + 1)
    windows = range(0, places, max(1, places // _MOST_WINDOWS))
    if count > 2:  # only the one whose costs are most alike
        windows_by_spread = sorted(windows, key=lambda i: costs[order[i]] - costs[order[i : i + world_size][-1]])
        windows = range(windows_by_spread[0], windows_by_spread[0] + 1)
    for start in windows:  # one sample a GPU, of like cost, in a pass of their own
        rest = order[:start] + order[start + world_size :]
        single: Bins = [[i] for i in order[start : start + world_size]]
        single += [[] for _ in range(world_size - len(single))]
        ways += [way + single for way in _in_passes(rest, costs, tokens, world_size, max_tokens, count - 1)]
    return ways


def _shared(
    order: Sequence[int], costs: Sequence[float], tokens: Sequence[int], bins: int, max_tokens: int | None
) -> Bins | None:
    """Each to the least loaded bin that has room. None: one has no room anywhere."""
    heap = [(0.0, 0, index) for index in range(bins)]
    found: Bins = [[] for _ in range(bins)]
    for item in order:
        full = []
        while heap:
            load, held, index = heapq.heappop(heap)
            if max_tokens is None or held + tokens[item] <= max_tokens:
                break
            full.append((load, held, index))
        else:
            return None
        found[index].append(item)
        heapq.heappush(heap, (load + costs[item], held + tokens[item], index))
        for entry in full:
            heapq.heappush(heap, entry)
    return found


def _fitted(order: Sequence[int], tokens: Sequence[int], bins: int, max_tokens: int) -> Bins | None:
    """Each to the fullest bin that has room: for when little is left over."""
    found: Bins = [[] for _ in range(bins)]
    held = [0] * bins
    for item in sorted(order, key=lambda i: (-tokens[i], i)):
        room = [b for b in range(bins) if held[b] + tokens[item] <= max_tokens]
        if not room:
            return None
        best = max(room, key=lambda b: (held[b], -b))
        found[best].append(item)
        held[best] += tokens[item]
    return found


def _improved(
    ways: list[Bins], costs: Sequence[float], tokens: Sequence[int], world_size: int, max_tokens: int | None
) -> Bins:
    """The best of `ways`, after moves and swaps."""
    searches = [_Search(bins, costs, tokens, world_size, max_tokens) for bins in ways]
    searches = sorted(searches, key=lambda search: search.least)[:_STARTS]
    if len(searches) > 1:
        for search in searches:
            search.go_on(_FIRST_STEPS)
    best = min(searches, key=lambda search: search.least)
    best.go_on(_MOST_STEPS)
    return best.found


class _Search:
    """Tabu search (Glover 1989) over moves and swaps between any two packs, for the least sum over passes of the
    dearest pack. Which packs share a pass is no choice: the dearest ones together, then the next, is least.

    Each step takes the best move or swap from the dearest pack of any pass, be it for the worse, but none that brings
    a sample back to a pack that it has just left: so it goes on where no single one helps.
    """

    found: Bins
    """The best so far, the dearest pack first."""
    least: float
    """What its passes take."""

    def __init__(
        self, bins: Bins, costs: Sequence[float], tokens: Sequence[int], world_size: int, max_tokens: int | None
    ) -> None:
        self._bins = [list(one) for one in bins]
        self._order: list[int] = []  # of the packs, the dearest first
        self._costs = [*costs, 0]  # at -1: nothing is swapped back
        self._tokens = [*tokens, 0]
        self._world_size = world_size
        most = math.inf if max_tokens is None else max_tokens
        self._loads = [sum(costs[i] for i in one) for one in bins]
        self._room = [most - sum(tokens[i] for i in one) for one in bins]
        self._away_until = [[0] * (len(costs) + 1) for _ in bins]  # for each pack and sample: the step
        self._step = 0
        self._idle = 0
        self._close = _CLOSE * max(sum(self._loads) / world_size, max(self._costs))
        trials = math.ceil(len(costs) / world_size) * (len(costs) + len(bins))
        self._patience = min(_IDLE_STEPS, _IDLE_TRIALS // max(1, trials))
        self.least = math.inf
        self._note()

    def go_on(self, steps: int) -> None:
        """So many steps, or until nothing is left to be tried."""
        for _ in range(steps):
            if self.least <= self._close or self._idle > self._patience:
                return
            best = self._best()
            if best is None:
                return
            self._apply(*best)
            self._note()

    def _note(self) -> None:
        """Where this step has come to."""
        loads = self._loads
        self._order = sorted(range(len(loads)), key=lambda b: (-loads[b], b))
        reached = sum(loads[b] for b in self._order[:: self._world_size])
        self._idle += 1
        if reached < self.least * (1 - 1e-9):
            self.found = [list(self._bins[b]) for b in self._order]
            self.least = reached
            self._idle = 0

    def _best(self) -> tuple[int, int, int, int] | None:
        """The dearest pack of a pass, the sample it gives, to which pack, and which it takes for it; -1: none."""
        loads, costs, tokens, order, world_size = self._loads, self._costs, self._tokens, self._order, self._world_size
        pass_of = [0] * len(loads)
        for place, index in enumerate(order):
            pass_of[index] = place // world_size
        tops = order[::world_size]
        # The most that a pass can win: then its second pack is the dearest.
        gaps = [loads[top] - loads[second] for top, second in zip(tops, order[1::world_size])]
        step, least, highest = self._step, math.inf, math.inf
        best = None
        for k in sorted(range(len(gaps)), key=lambda k: -gaps[k]):
            top, gap = tops[k], gaps[k]
            if least <= -gap:
                break
            for other, held in enumerate(self._bins):
                if other == top:
                    continue
                same_pass = pass_of[other] == k
                slack = loads[tops[pass_of[other]]] - loads[other]
                least_size, most_size = -self._room[top], self._room[other]
                away_here, away_there = self._away_until[top], self._away_until[other]
                backs = (-1, *held)
                for item in self._bins[top]:
                    if away_there[item] > step:
                        continue
                    for back in backs:
                        given = costs[item] - costs[back]
                        size = tokens[item] - tokens[back]
                        if given <= 0 or not least_size <= size <= most_size or away_here[back] > step:
                            continue
                        rise = given - slack
                        change = -given if given < gap else -gap
                        if same_pass:
                            change = max(change, rise)
                        elif rise > 0:
                            change += rise
                        if change > least:
                            continue
                        high = max(-given, rise)  # of those alike, the one that leaves neither pack high
                        if change < least or high < highest:
                            least, highest, best = change, high, (top, item, other, back)
        return best

    def _apply(self, top: int, item: int, other: int, back: int) -> None:
        self._step += 1
        self._move(item, top, other)
        if back >= 0:
            self._move(back, other, top)
        for index in (top, other):  # anew: sums of floats would drift
            self._loads[index] = sum(self._costs[i] for i in self._bins[index])

    def _move(self, item: int, source: int, target: int) -> None:
        self._bins[source].remove(item)
        self._bins[target].append(item)
        self._room[source] += self._tokens[item]
        self._room[target] -= self._tokens[item]
        self._away_until[source][item] = self._step + _KEPT_AWAY


def _to_ranks(bins: Bins, costs: Sequence[float], world_size: int) -> list[list[tuple[int, ...]]]:
    """The dearest packs are a pass, then the next; in each, the dearest pack to the rank that has had the least. A pass
    that came to hold nothing is left out."""
    had = [0.0] * world_size
    ranks: list[list[tuple[int, ...]]] = [[] for _ in range(world_size)]
    dear_first = sorted(bins, key=lambda one: (-sum(costs[i] for i in one), one))
    for start in range(0, len(bins), world_size):
        together = dear_first[start : start + world_size]
        if start and not any(together):
            continue
        free = sorted(range(world_size), key=lambda rank: (had[rank], rank))
        for rank, one in zip(free, together):
            ranks[rank].append(tuple(sorted(one, key=lambda i: (-costs[i], i))))
            had[rank] += sum(costs[i] for i in one)
    return ranks
