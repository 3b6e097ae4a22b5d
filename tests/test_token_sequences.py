"""`MarkerMatcher` and `LoopDetector` against brute force over the whole stream."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from bide.token_sequences import LOOP_BLOCK, LoopDetector, MarkerMatcher


def ends_with(stream: Sequence[int], sequence: Sequence[int]) -> bool:
    return len(stream) >= len(sequence) and list(stream[len(stream) - len(sequence) :]) == list(sequence)


def held(stream: Sequence[int], sequences: Sequence[Sequence[int]]) -> int:
    """Length of the longest end of `stream` that begins a sequence and does not complete one."""
    return max((k for s in sequences for k in range(1, len(s)) if ends_with(stream, s[:k])), default=0)


def completing(stream: Sequence[int], sequences: Sequence[Sequence[int]], alphabet: int) -> set[int]:
    return {token for token in range(alphabet) if any(ends_with([*stream, token], s) for s in sequences)}


@pytest.mark.parametrize("alphabet", [2, 3, 5])
def test_matcher_equals_brute_force(alphabet: int) -> None:
    draw = random.Random(alphabet)
    for _ in range(500):
        sequences = [[draw.randrange(alphabet) for _ in range(draw.randint(1, 5))] for _ in range(draw.randint(1, 4))]
        matcher = MarkerMatcher(sequences)
        assert matcher.first_ids == {s[0] for s in sequences}
        stream: list[int] = []
        for _ in range(60):
            assert matcher.completing_ids() == completing(stream, sequences, alphabet)
            token = draw.randrange(alphabet)
            stream.append(token)
            longest = max((len(s) for s in sequences if ends_with(stream, s)), default=0)
            expected = next((i for i, s in enumerate(sequences) if len(s) == longest and ends_with(stream, s)), None)
            assert matcher.step(token) == expected, (sequences, stream)
            if expected is not None:
                stream = []  # it starts afresh
            assert matcher.depth == held(stream, sequences)
            if draw.random() < 0.02:
                matcher.reset()
                stream = []


def test_matcher_falls_back_within_a_sequence() -> None:
    matcher = MarkerMatcher([[1, 1, 2]])
    assert [matcher.step(t) for t in (1, 1, 1, 2)] == [None, None, None, 0]


def test_matcher_sees_a_shorter_sequence_inside_a_longer() -> None:
    matcher = MarkerMatcher([[1, 2, 3, 4], [2, 3], [3]])
    assert matcher.step(1) is None and matcher.depth == 1
    assert matcher.step(2) is None and matcher.depth == 2
    assert matcher.completing_ids() == {3}
    assert matcher.step(3) == 1 and matcher.depth == 0


def test_matcher_gives_the_first_of_equals() -> None:
    assert MarkerMatcher([[1], [1]]).step(1) == 0


def test_matcher_refuses_an_empty_sequence() -> None:
    with pytest.raises(AssertionError):
        MarkerMatcher([[1], []])


# Loops.


def repeated(stream: Sequence[int], repeats: int) -> bool:
    """Whether `stream` ends in `repeats` equal blocks of any period, by the definition."""
    for period in range(1, len(stream) // repeats + 1):
        block = period * -(-LOOP_BLOCK // period)
        length = block * repeats
        if length <= len(stream) and all(stream[-i] == stream[-i - period] for i in range(1, length - period + 1)):
            return True
    return False


def first_true(detector: LoopDetector, stream: Sequence[int]) -> int | None:
    return next((i for i, token in enumerate(stream, 1) if detector.push(token)), None)


@pytest.mark.parametrize("repeats", [2, 3])
def test_loop_detector_never_cries_wolf(repeats: int) -> None:
    draw = random.Random(repeats)
    fired = 0
    for _ in range(120):
        alphabet = draw.choice((1, 2, 3))
        stream: list[int] = []
        while len(stream) < 160:
            piece = [draw.randrange(alphabet) for _ in range(draw.randint(1, 24))]
            stream += piece * draw.choice((1, 1, 2, 3, 5))
        detector = LoopDetector(repeats)
        for end, token in enumerate(stream, 1):
            if detector.push(token):
                fired += 1
                assert repeated(stream[:end], repeats), stream[:end]
                break
    assert fired > 60


@pytest.mark.parametrize("repeats", [2, 3, 4])
@pytest.mark.parametrize("period", [1, 2, 5, 15, 16, 17, 40])
def test_loop_detector_fires_within_one_further_block(period: int, repeats: int) -> None:
    draw = random.Random(period * 10 + repeats)
    for _ in range(20):
        start = [draw.randrange(1000) for _ in range(draw.randint(0, 60))]
        unit = list(range(2000, 2000 + period))
        block = period * -(-LOOP_BLOCK // period)
        earliest = len(start) + repeats * block
        fired = first_true(LoopDetector(repeats), start + unit * 200)
        assert fired is not None and earliest <= fired <= earliest + block


def test_loop_detector_needs_blocks_of_sixteen() -> None:
    assert LOOP_BLOCK == 16
    assert first_true(LoopDetector(2), list(range(50)) + [7] * 31) is None
    assert first_true(LoopDetector(2), list(range(50)) + [7] * 48) is not None


def test_loop_detector_forgets_a_broken_loop() -> None:
    block = list(range(16))
    stream = [*block, *block[:15], 99] * 6
    detector = LoopDetector(3)
    fired = first_true(detector, stream)
    assert fired is not None and repeated(stream[:fired], 3) and fired >= 96
    assert first_true(LoopDetector(3), [*block, *block, *block[:15], 99, *block, *block[:15], 98]) is None


def test_loop_detector_finds_a_loop_that_had_begun_before() -> None:
    """It first follows the old place, and must then come back to the nearest one."""
    block, noise = list(range(16)), list(range(100, 140))
    start = [*block, *block, *noise]
    fired = first_true(LoopDetector(3), start + block * 30)
    assert fired is not None and len(start) + 3 * 16 <= fired <= len(start) + (2 + 3 + 1) * 16


def test_loop_detector_sees_a_repeated_page() -> None:
    page = [random.Random(1).randrange(5000) for _ in range(700)]
    assert first_true(LoopDetector(2), page * 3) is not None


class Touches(list[int]):
    """A history that counts how often it is read."""

    reads = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        self.reads += 1
        return super().__getitem__(index)


def test_loop_detector_reads_the_same_little_at_any_length() -> None:
    detector = LoopDetector(5)
    history = detector._history = Touches()
    draw = random.Random(1)
    counts = []
    for _ in range(4):
        before = history.reads
        for _ in range(25_000):
            detector.push(draw.randrange(50))
        counts.append(history.reads - before)
    assert max(counts) <= 3 * 25_000 and max(counts) <= min(counts) * 1.2
