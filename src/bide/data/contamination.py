"""Questions of a benchmark that stand in a question of the pool, copied, changed a little, or with other numbers.

Two rules. `Containment` asks how much of the benchmark's question stands in the pool's, so a phrase that many
questions share is no finding. `S1Rule` is the reference's: any eight words in a row (s1, data/decontaminate_util.py).
Both index the benchmarks only and read the pool in one pass, some rows at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from .records import Decision, Row
from .runs import Runs, starts_of_runs
from .tokens import batches, cut, is_substance, skeletons, token_places, unmasked

SHORT_QUESTION = 30
"""Tokens. In a shorter question one other word can make another question."""
FEWEST_WORDS = 4
"""Different words of three letters or more that a template has: formulas alone are alike everywhere."""

TIERS: dict[str, str] = {
    "copy": "the benchmark's question, or nearly",
    "short": "a question too short for a run of words, word by word",
    "ngram": "some words in a row (rule s1)",
    "template": "the same words with other numbers, or half of the question",
}
"""What a match may be, the worst first -> what it means."""


@dataclass(frozen=True, slots=True)
class EvalItem:
    """One question of a benchmark."""

    benchmark: str
    id: str
    question: str


@dataclass(frozen=True, slots=True)
class Match:
    """A benchmark's question found in a question of the pool."""

    benchmark: str
    item: str
    tier: str
    """One of `TIERS`."""
    score: float
    """The share of the benchmark's question that was found, 0 to 1: of its tokens those in shared runs of n tokens;
    for rule s1, of its n-grams."""
    numbers: tuple[tuple[str, str], ...]
    """Numbers that differ where the words agree: (the benchmark's, the pool's)."""
    eval_span: str
    """Of the benchmark's question, from the first to the last shared run."""
    pool_span: str
    """Of the pool's question, the same."""

    @property
    def reason(self) -> str:
        """As a `Decision` has it: "contaminated:math500#123"."""
        return f"contaminated:{self.benchmark}#{self.item}"

    def evidence(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "benchmark": self.benchmark,
            "item": self.item,
            "tier": self.tier,
            "score": round(self.score, 4),
            "numbers": [list(pair) for pair in self.numbers],
            "eval_span": self.eval_span,
            "pool_span": self.pool_span,
        }


class Rule(ABC):
    """What tells contaminated questions from others."""

    @abstractmethod
    def find_all(self, questions: Iterable[str]) -> Iterator[tuple[int, list[Match]]]:
        """Place of each question that holds some of a benchmark, and those, the worst first. In order; questions are
        taken some ahead."""

    def find(self, question: str) -> list[Match]:
        """All benchmark questions that this one holds, the worst first. In many, `find_all` finds them faster."""
        return next(self.find_all([question]), (0, []))[1]


class Containment(Rule):
    """How much of a benchmark's question stands in a question of the pool, by tokens without LaTeX's dress.

    A token counts as found if a run of `n` tokens around it stands in both. Tier "copy": at least `copy` of the tokens,
    or at least `template` and only plain words put in or left out; and no number differs where the words agree.
    "template": that much with other numbers, or at least `template`.
    "short": a question of fewer than `n` tokens that is the whole of the pool's, or a sentence at its start or end.
    """

    def __init__(self, items: Iterable[EvalItem], *, n: int = 8, copy: float = 0.8, template: float = 0.5) -> None:
        if n < 2 or not 0 < template <= copy <= 1:
            raise UsageError(
                f"wanted runs of 2 tokens or more and 0 < template <= copy <= 1, got n={n}, "
                f"template={template}, copy={copy}"
            )
        self.items = list(items)
        self.n, self.copy, self.template = n, copy, template
        found, marks = skeletons(item.question for item in self.items)
        masked = [found[start:end] for start, end in zip([0, *(mark + 1 for mark in marks)], marks)]
        self._tokens = [unmasked(item.question, words) for item, words in zip(self.items, masked)]
        self._runs = Runs(n, dict(enumerate(masked)))
        """With numbers masked."""
        self._own_runs: dict[int, Mapping[tuple[Hashable, ...], int]] = {}
        """Item -> its runs with numbers as they are, made when first asked for."""
        self._words = [_words_of(theirs) for theirs in self._tokens]
        self._enough = [template * len(theirs) for theirs in self._tokens]
        self._short: dict[tuple[bytes, ...], list[int]] = {}
        for index, words in enumerate(masked):
            if 0 < len(words) < n:
                self._short.setdefault(words, []).append(index)
        self._shortest = min(map(len, self._short), default=0)
        """Tokens; so many at the start or end of a question tell whether to look there for a short one."""
        self._short_starts = {short[: self._shortest] for short in self._short}
        self._short_ends = {short[-self._shortest :] for short in self._short}
        self._short_first = {short[0] for short in self._short}
        self._short_last = {short[-1] for short in self._short}

    def find_all(self, questions: Iterable[str]) -> Iterator[tuple[int, list[Match]]]:
        place, few, first, last = 0, self._shortest, self._short_first, self._short_last
        for batch in batches(questions):
            masked, marks = skeletons(batch)
            starts = [0, *(mark + 1 for mark in marks[:-1])]
            shared: dict[int, list[tuple[int, Mapping[int, int]]]] = {}
            start = end = 0
            for here, places in self._runs.shared(masked):
                if here >= end:
                    at = bisect(marks, here)
                    start, end = starts[at], marks[at]
                    runs = shared[at] = []
                runs.append((here - start, places))
            short = {
                at
                for at, (start, end) in enumerate(zip(starts, marks))
                if (masked[start] in first and masked[start : start + few] in self._short_starts)
                or (masked[end - 1] in last and masked[end - few : end] in self._short_ends)
            }
            alike = {at: there for at, runs in shared.items() if (there := self._alike(runs))}
            for at in sorted(short.union(alike)):
                question, words = batch[at], masked[starts[at] : marks[at]]
                found: list[Match] = []
                if at in alike:
                    found += self._long_matches(question, words, shared[at], alike[at])
                if at in short:
                    found += self._short_matches(question, words)
                if found:
                    yield place + at, sorted(found, key=_worst_first)
            place += len(batch)

    def _alike(self, runs: Sequence[tuple[int, Mapping[int, int]]]) -> dict[int, int]:
        """Items that have enough of their tokens in shared runs -> those tokens, a bit each."""
        starts: dict[int, int] = {}
        for _, places in runs:
            for index, there in places.items():
                starts[index] = starts.get(index, 0) | there
        alike = {}
        for index, there in starts.items():
            if there.bit_count() * self.n >= self._enough[index]:
                found = self._runs.covered(there)
                if found.bit_count() >= self._enough[index]:
                    alike[index] = found
        return alike

    def _long_matches(
        self,
        question: str,
        masked: tuple[bytes, ...],
        runs: Sequence[tuple[int, Mapping[int, int]]],
        alike: Mapping[int, int],
    ) -> Iterator[Match]:
        words = tuple(unmasked(question, masked))
        own = [words[here : here + self.n] for here, _ in runs]
        for index, found in alike.items():
            if index not in self._own_runs:
                self._own_runs[index] = starts_of_runs(self._tokens[index], self.n)
            theirs, there = self._own_runs[index], 0
            for run in own:
                there |= theirs.get(run, 0)
            same = self._runs.covered(there)
            if same.bit_count() >= self._enough[index] or self._same_words(index, found):
                yield self._match(index, found, same, runs, words, question)

    def _match(
        self,
        index: int,
        alike: int,
        same: int,
        runs: Sequence[tuple[int, Mapping[int, int]]],
        words: Sequence[str],
        question: str,
    ) -> Match:
        """`alike`: the item's tokens in shared runs, a bit each; `same`: in those whose numbers are equal too."""
        item, theirs = self.items[index], self._tokens[index]
        own = [(here, found[index]) for here, found in runs if index in found]
        numbers = self._other_numbers(theirs, own, words) if alike != same else ()
        score = same.bit_count() / len(theirs)
        whole = score >= self.copy and not self._another(theirs, same, words)
        copied = not numbers and (whole or (score >= self.template and _in_order(theirs, words)))
        first, last = (alike & -alike).bit_length() - 1, alike.bit_length() - 1
        eval_span = cut(item.question, len(theirs), first, last)
        pool_span = cut(question, len(words), own[0][0], own[-1][0] + self.n - 1)
        tier = "copy" if copied else "template"
        return Match(item.benchmark, item.id, tier, score, numbers, eval_span, pool_span)

    def _other_numbers(
        self, theirs: list[str], runs: list[tuple[int, int]], words: Sequence[str]
    ) -> tuple[tuple[str, str], ...]:
        """The numbers that differ in all shared runs that they are in; `runs`: where one starts here, and in the item,
        a bit each."""
        equal = set()
        other: dict[int, str] = {}
        for here, starts in runs:
            for there in _bits(starts):
                for at, word in enumerate(words[here : here + self.n], start=there):
                    if theirs[at] == word:
                        equal.add(at)
                    else:
                        other.setdefault(at, word)
        return tuple((theirs[at], other[at]) for at in sorted(other) if at not in equal)

    def _another(self, theirs: list[str], same: int, words: Sequence[str]) -> bool:
        """Whether what was not found makes it another question: in a short one any word of substance ("the letters of
        ELLIPSE", "of RADII"), in a long one a number that is nowhere in the pool's question."""
        missing = [word for at, word in enumerate(theirs) if not same >> at & 1]
        if len(theirs) < SHORT_QUESTION:
            return any(map(is_substance, missing))
        return bool(Counter(filter(str.isdigit, missing)) - Counter(words))

    def _same_words(self, index: int, alike: int) -> bool:
        """Whether it is the same but for numbers: so many of its tokens and of its words, and not formulas only."""
        words = self._words[index]
        return (
            words > 0
            and (alike & words).bit_count() >= self.copy * words.bit_count()
            and alike.bit_count() >= self.copy * len(self._tokens[index])
        )

    def _short_matches(self, question: str, masked: tuple[bytes, ...]) -> Iterator[Match]:
        seen = set()
        size = len(masked)
        lengths = range(self._shortest, min(self.n - 1, size) + 1)
        places = [(0, length) for length in lengths] + [(size - length, size) for length in lengths]
        for start, end in places:
            for index in self._short.get(masked[start:end], ()):
                alike = unmasked(question, masked)[start:end] == self._tokens[index]
                if alike and index not in seen and _a_sentence(question, start, end - 1):
                    seen.add(index)
                    item = self.items[index]
                    span = cut(question, size, start, end - 1)
                    yield Match(item.benchmark, item.id, "short", 1.0, (), item.question.strip(), span)


class S1Rule(Rule):
    """The reference's rule, exactly: the lower-cased text is cut at white space, and any `n` words in a row that stand
    in a benchmark's question too are contamination. A question of fewer than `n` words is never caught."""

    def __init__(self, items: Iterable[EvalItem], *, n: int = 8) -> None:
        if n < 2:
            raise UsageError(f"wanted runs of 2 words or more, got n={n}")
        self.items = list(items)
        self.n = n
        texts = [item.question.lower().split() for item in self.items]
        self._runs = Runs(n, dict(enumerate(texts)))
        self._counts = [len({tuple(words[at : at + n]) for at in range(len(words) - n + 1)}) for words in texts]

    def find_all(self, questions: Iterable[str]) -> Iterator[tuple[int, list[Match]]]:
        for place, question in enumerate(questions):
            words = tuple(question.lower().split())
            shared: dict[int, dict[tuple[str, ...], int]] = {}
            for here, places in self._runs.shared(words):
                run = words[here : here + self.n]
                for index in places:
                    shared.setdefault(index, {}).setdefault(run, here)
            if shared:
                yield place, sorted((self._match(index, runs) for index, runs in shared.items()), key=_worst_first)

    def _match(self, index: int, runs: dict[tuple[str, ...], int]) -> Match:
        item = self.items[index]
        first: tuple[str, ...] = min(runs, key=runs.__getitem__)
        text = " ".join(first)
        return Match(item.benchmark, item.id, "ngram", len(runs) / self._counts[index], (), text, text)


RULES: dict[str, Callable[[Iterable[EvalItem]], Rule]] = {"containment": Containment, "s1": S1Rule}
"""Name -> rule over the questions of the benchmarks."""


def decide(
    row: Row, rule: Rule, *, stage: str = "decontaminate", drop: Sequence[str] = ("copy", "short", "ngram")
) -> Decision:
    """Whether a row may stay: not if a match is of a tier in `drop`. The evidence names every match, kept or not."""
    return next(decide_all([row], rule, stage=stage, drop=drop))


def decide_all(
    rows: Sequence[Row], rule: Rule, *, stage: str = "decontaminate", drop: Sequence[str] = ("copy", "short", "ngram")
) -> Iterator[Decision]:
    """As `decide`, of each row in order; many are read faster than one by one."""
    found = dict(rule.find_all(row.question for row in rows))
    for place, row in enumerate(rows):
        matches = found.get(place, [])
        worst = next((match for match in matches if match.tier in drop), None)
        evidence: Mapping[str, Any] = {"matches": [match.evidence() for match in matches]} if matches else {}
        yield Decision(row.id, stage, worst.reason if worst else "", evidence)


def _in_order(theirs: Sequence[str], words: Sequence[str]) -> bool:
    """Whether all of substance in the item stands in the pool's question in one stretch, with plain words at most
    between ("are in the set", "are there in the set"). A single letter may be a name: it counts as substance."""
    left, right = (
        "\0".join(["", *(word for word in text if len(word) == 1 or is_substance(word)), ""])
        for text in (theirs, words)
    )
    return left in right


def _words_of(theirs: list[str]) -> int:
    """Where a question has words, a bit each; 0 if they are too few for a template."""
    words = [at for at, word in enumerate(theirs) if len(word) > 2 and not word.isdigit()]
    return sum(1 << at for at in words) if len({theirs[at] for at in words}) >= FEWEST_WORDS else 0


def _bits(value: int) -> Iterator[int]:
    """Where the ones are in a number, from the lowest."""
    while value:
        yield (value & -value).bit_length() - 1
        value &= value - 1


def _worst_first(match: Match) -> tuple[int, float, str, str]:
    return list(TIERS).index(match.tier), -match.score, match.benchmark, match.item


def _a_sentence(text: str, first: int, last: int) -> bool:
    """Whether the tokens from `first` to `last` are whole sentences of the text."""
    places = token_places(text)
    begins = first == 0 or _ends_sentence(text[: places[first][0]])
    return begins and (last == len(places) - 1 or _ends_sentence(text[: places[last][1]]))


def _ends_sentence(text: str) -> bool:
    return text.rstrip().rstrip("$\"')]}").endswith((".", "?", "!", ":")) or text.endswith("\n")
