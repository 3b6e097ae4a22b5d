"""The live view, checked on a small terminal emulator that understands just what it writes."""

from __future__ import annotations

import io
import re

import pytest

from bide.budget_forcing import Region
from bide.cli.view import LiveView, PlainView, cell_width, meter_text, printable, receipt
from bide.engines.base import TokensEvent


class Screen:
    """Rows of text under the escape sequences of the live view; wraps late, as terminals do."""

    def __init__(self, width: int) -> None:
        self.width, self.rows, self.row, self.column = width, [""], 0, 0

    def feed(self, data: str) -> None:
        for token in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|.|\n", data, re.DOTALL):
            if token.startswith("\x1b"):
                number = int(re.sub(r"\D", "", token.split(";")[0]) or 1)
                if token.endswith("K"):
                    self.rows[self.row] = ""
                elif token.endswith("A"):
                    self.row -= number
                    assert self.row >= 0
                elif token.endswith("G"):
                    self.column = number - 1
            elif token == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.rows):
                    self.rows.append("")
            elif token == "\r":
                self.column = 0
            else:
                assert self.column + cell_width(token) <= self.width, "the view must wrap by itself"
                line = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = line[: self.column] + token + line[self.column + 1 :]
                self.column += cell_width(token)


def event(text: str, region: Region = Region.THINKING, *, forced: bool = False, used: int = 1) -> TokensEvent:
    return TokensEvent(0, (), text, forced, region, used)


@pytest.mark.parametrize("width", [2, 9, 20, 21, 37, 80])
def test_text_survives_the_meter_at_any_width(width: int) -> None:
    out = io.StringIO()
    view = LiveView(out, lambda: width, 100)
    text = "The quick brown fox jumps over the lazy dog, again and again.\nA second line."
    for used, piece in enumerate(re.findall(r".{1,3}|\n", text)):
        view.show(event(piece, used=used))
    view.show(event("Wait", forced=True, used=40))
    view.show(event("It is three.", Region.ANSWER, used=41))
    view.end()
    screen = Screen(width)
    screen.feed(out.getvalue())
    shown = "".join(row.ljust(width) if len(row) == width else row + "\n" for row in screen.rows)
    assert re.sub(r"\s+", "", shown) == re.sub(r"\s+", "", text + "Wait" + "It is three.")
    assert "thinking [" not in shown, "the meter is gone at the end"


def test_meter_stands_below_while_thinking_and_forced_text_is_lit() -> None:
    out = io.StringIO()
    view = LiveView(out, lambda: 60, 10)
    view.show(event("abc", used=3))
    view.show(event("Wait", forced=True, used=4))
    screen = Screen(60)
    screen.feed(out.getvalue())
    assert screen.rows == ["abcWait", "thinking [##########..............] 4/10 tokens"]
    assert (screen.row, screen.column) == (0, 7)
    assert "\x1b[2mabc" in out.getvalue() and "\x1b[1;33mWait" in out.getvalue()


def test_a_model_cannot_drive_the_terminal() -> None:
    assert printable("a\x1b[2Jb\x07c\rd\x9b\u202eK") == "a[2JbcdK"
    out = io.StringIO()
    LiveView(out, lambda: 40, None).show(event("\x1b]0;title\x07", Region.ANSWER))
    assert "\x1b]" not in out.getvalue()


def test_plain_view_separates_answer_from_log() -> None:
    out, log = io.StringIO(), io.StringIO()
    view = PlainView(out, log)
    view.show(event("thought"))
    view.show(event("\n</think>\n", Region.MARKER, forced=True))
    view.show(event("Final Answer:", Region.ANSWER, forced=True))
    view.end("Final Answer: 3")
    assert (out.getvalue(), log.getvalue()) == ("Final Answer: 3\n", "thought\n[</think>]\n")


def test_meter_and_receipt_texts() -> None:
    assert meter_text(5, None) == "thinking 5 tokens"
    assert meter_text(10, 10) == "thinking [########################] 10/10 tokens"
    budget = {"max": None, "used": 7, "waits": 0, "forced_tokens": 0, "ended_by": None}
    assert receipt(budget, 0, 12.34) == "thinking 7/no limit tokens | waits 0 | forced 0 | never opened | 12.3 tok/s"


def test_cell_width() -> None:
    assert [cell_width(c) for c in "a\u65e5\u0301\u200d"] == [1, 2, 0, 0]
