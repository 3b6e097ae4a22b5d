"""`Detokenizer`: pieces of text that add up to the whole, and never break a character."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from bide.engines.mock import MockTokenizer
from bide.engines.turn import Detokenizer

DECODE = MockTokenizer().decode
CHARACTERS = "a \né€漢😀ß"


def pieces(ids: Sequence[int], sizes: Sequence[int]) -> list[str]:
    detokenizer = Detokenizer(DECODE)
    found, at = [], 0
    for size in sizes:
        found.append(detokenizer.push(ids[at : at + size]))
        at += size
    assert at >= len(ids)
    return [*found, detokenizer.rest()]


def random_sizes(draw: random.Random, total: int, longest: int) -> list[int]:
    sizes: list[int] = []
    while sum(sizes) < total:
        sizes.append(draw.randint(1, longest))
    return sizes


@pytest.mark.parametrize("longest", [1, 3, 7, 50])
def test_pieces_add_up_to_the_text(longest: int) -> None:
    draw = random.Random(longest)
    for _ in range(250):
        text = "".join(draw.choice(CHARACTERS) for _ in range(draw.randint(0, 40)))
        ids = list(text.encode())
        found = pieces(ids, random_sizes(draw, len(ids), longest))
        assert "".join(found) == text
        assert not any("\ufffd" in piece for piece in found)


@pytest.mark.parametrize("longest", [1, 4, 50])
def test_invalid_bytes_become_replacement_characters(longest: int) -> None:
    draw = random.Random(longest)
    for _ in range(250):
        parts = [draw.choice(CHARACTERS).encode() for _ in range(20)]
        for _ in range(3):  # single broken bytes, each between whole characters
            parts.insert(draw.randrange(len(parts)), draw.choice((b"a\xffb", b"a\xe2b", b"a\x80b", b"a\xf0\x9fb")))
        ids = list(b"".join(parts))
        assert "".join(pieces(ids, random_sizes(draw, len(ids), longest))) == DECODE(ids)


def test_a_character_cut_at_the_end_is_shown_as_broken() -> None:
    detokenizer = Detokenizer(DECODE)
    assert detokenizer.push(list("a€".encode())[:-1]) == "a" or detokenizer.rest() == "a\ufffd"
    assert detokenizer.rest() in ("", "\ufffd")
    assert detokenizer.rest() == ""


def test_a_long_run_of_broken_bytes_does_not_wait_for_ever() -> None:
    detokenizer = Detokenizer(DECODE)
    shown = sum(len(detokenizer.push([0xFF])) for _ in range(100))
    assert 80 <= shown <= 100
    assert shown + len(detokenizer.rest()) == 100


def test_nothing_pushed_is_nothing_shown() -> None:
    detokenizer = Detokenizer(DECODE)
    assert detokenizer.push([]) == "" and detokenizer.rest() == ""


def test_special_ids_pass_whole() -> None:
    tokenizer = MockTokenizer()
    ids = tokenizer.encode("<think>é</think>")
    assert "".join(pieces(ids, [1] * len(ids))) == "<think>é</think>"


def test_cost_does_not_grow_with_the_text() -> None:
    seen = []

    def decode(ids: Sequence[int]) -> str:
        seen.append(len(ids))
        return DECODE(ids)

    detokenizer = Detokenizer(decode)
    for _ in range(2000):
        detokenizer.push([0x61])
    assert max(seen) <= 16
