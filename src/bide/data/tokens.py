"""What two texts of one question have in common: words and numbers, without case, layout and LaTeX's dress.

`tokens` says what they are: a text is cut at white space and each piece is read by itself, so one that was seen before
costs a look-up. `skeletons` gives the same for many texts at once, numbers masked, in a few passes over their bytes.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain

NUMBER = "0"
"""What stands for every number in a skeleton."""

_DRAWING = re.compile(r"\[asy\][^\[]*(?:\[(?!/asy\])[^\[]*)*(?:\[/asy\])?")
_ENVIRONMENT = r"(?:begin|end)\*?\{[a-z]+\*?\}"
_DROPPED = (
    "left|right|bigg?[lrm]?|middle|displaystyle|textstyle|limits|nolimits|qquad|quad|hspace|vspace"
    "|text(?:bf|it|rm|sf|tt|sc|up|normal)?|emph|math(?:rm|bf|it|sf|tt|cal|bb|frak|scr|normal)|mbox|hbox|boldsymbol|bm"
    "|operatorname|mathop|overline|underline|phantom|hphantom|noindent|tag|item"
)
_SPELLED = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac",
    "leqslant": "le", "leqq": "le", "leq": "le", "geqslant": "ge", "geqq": "ge", "geq": "ge", "neq": "ne",
    "not=": "ne", "dots": "", "ldots": "", "cdots": "", "lvert": "",
    "rvert": "", "lbrace": "", "rbrace": "", "varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta",
    "degree": "circ", "to": "rightarrow", "gets": "leftarrow", "land": "wedge", "lor": "vee", "lnot": "neg",
}  # fmt: skip
"""Commands that mean what another one means, or nothing."""
_COMMAND = rf"\\(?=[b-eg-il-rt-v])(?:{_ENVIRONMENT}|(?:{_DROPPED}|{'|'.join(_SPELLED)})(?![a-z]))"
"""What is dropped or spelled. The first letters are told so that other commands are passed by at once."""
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma sigma tau upsilon "
    "phi chi psi omega"
)
_SYMBOLS = {
    "\u2264": " le ", "\u2a7d": " le ", "\u2265": " ge ", "\u2a7e": " ge ", "\u2260": " ne ", "\u00d7": " times ",
    "\u00f7": " div ", "\u00b7": " cdot ", "\u22c5": " cdot ", "\u00b1": " pm ", "\u221a": " sqrt ",
    "\u221e": " infty ", "\u2208": " in ", "\u2220": " angle ", "\u25b3": " triangle ", "\u00b0": " circ ",
    "\u2211": " sum ", "\u220f": " prod ", "\u222b": " int ", "\u222a": " cup ", "\u2229": " cap ",
    "\u2192": " rightarrow ", "\u03d5": " phi ", "\u0394": " delta ", "\u03a3": " sigma ", "\u03a9": " omega ",
    **{chr(code): f" {name} " for code, name in zip(range(0x3B1, 0x3CA), _GREEK.split())},
}  # fmt: skip
"""Signs, as LaTeX names them."""
_SYMBOL = re.compile(f"[{''.join(_SYMBOLS)}]")
_COMMA = r"(?:,|\{,\}|,\\!|\\,)"
_CJK = "\u3040-\u30ff\u3400-\u9fff"  # written without blanks: a token a character
_TOKEN = re.compile(rf"\d+|[{_CJK}]|[^\W\d_{_CJK}]+")
_COMMAND_PART = re.compile(_COMMAND)
_THOUSANDS = re.compile(rf"(?<=\d){_COMMA}(?=\d{{3}}(?!\d))")
_TIGHT_FRACTION = re.compile(r"(\\[dtc]?frac\d)(?=\d)")
_NUMBER = re.compile(rf"\d(?:(?<=\\frac\d)|(?<=\\[dtc]frac\d)|\d*(?:{_COMMA}\d{{3}}(?!\d))*)")
"""With its commas; in a tight fraction (\\frac12) the first digit by itself."""
_PIECE = re.compile(r"\S+")
_LONGEST_PIECE = 200
_MOST_PIECES = 1 << 16


class _Pieces(dict[str, tuple[str, ...]]):
    """Piece of text -> its tokens. Forgets everything when full."""

    def __init__(self, read: Callable[[str], list[str]]) -> None:
        super().__init__()
        self.read = read

    def __missing__(self, piece: str) -> tuple[str, ...]:
        found = tuple(self.read(piece))
        if len(self) >= _MOST_PIECES:
            self.clear()
        if len(piece) <= _LONGEST_PIECE:
            self[piece] = found
        return found


def _named(sign: re.Match[str]) -> str:
    return _SYMBOLS[sign[0]]


def _plain_signs(text: str) -> str:
    text = _SYMBOL.sub(_named, text)
    found = unicodedata.normalize("NFKC", text)
    return found if found == text or found.isascii() else _SYMBOL.sub(_named, found)


def _read(piece: str) -> list[str]:
    if piece.isascii() and piece.isalpha():
        return [sys.intern(piece.lower())]
    text = piece
    if not text.isascii():
        text = _plain_signs(text)
    text = text.lower()
    if "," in text:
        text = _THOUSANDS.sub("", text)
    if "\\" in text:
        text = _COMMAND_PART.sub(lambda command: f" {_SPELLED.get(command[0][1:], '')}", text)
        if "frac" in text:
            text = _TIGHT_FRACTION.sub(r"\1 ", text)
    return list(map(sys.intern, _TOKEN.findall(text)))


def _mask(piece: str) -> list[str]:
    return [NUMBER if token.isdigit() else token for token in _read(piece)]


_pieces = _Pieces(_read)
_masked = _Pieces(_mask)


def without_drawings(text: str) -> str:
    """`text` with blanks for its Asymptote drawings: their code is alike in questions that are not."""
    if "[asy]" not in text:
        return text
    return _DRAWING.sub(lambda match: " " * len(match[0]), text)


def tokens(text: str) -> list[str]:
    """Words and numbers in lower case: NFKC, LaTeX's fonts, spacing and brackets gone, its spellings made one
    (\\dfrac and \\frac, \\leq and the sign), letters and digits apart, drawings left out."""
    return list(chain.from_iterable(map(_pieces.__getitem__, without_drawings(text).split())))


def skeleton(text: str) -> list[str]:
    """The tokens with `NUMBER` for each number: what stays of a question when only its numbers are changed."""
    return list(chain.from_iterable(map(_masked.__getitem__, without_drawings(text).split())))


_MASK = bytes(ord(NUMBER) if chr(code) in "0123456789" else code for code in range(256)).lower()
_BLANK = bytes(code if code >= 128 or chr(code).isalnum() else 32 for code in range(256))
_COMMAND_BYTES = re.compile(_COMMAND.encode())
_MEANING = {f"\\{name}".encode(): f" {meaning}".encode() for name, meaning in _SPELLED.items()}
_LONG_NUMBER = re.compile(rf"0(?=[0,{{\\])(?<!\\frac0)(?:0+|{_COMMA}000(?!0))+".encode())
"""With its commas; in a tight fraction what follows the first digit. One pass over the text for all."""
_NO_WORD = re.compile(rf"[^\w\x00-\x7f{_CJK}]")
_MARK = b"\xff"
"""A byte that is in no UTF-8."""
_AT_ONCE = 256
_CHARACTERS_AT_ONCE = 1 << 20


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts, some at once: as many as are read fastest, and not too many characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if len(batch) == _AT_ONCE or size > _CHARACTERS_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def skeletons(texts: Iterable[str]) -> tuple[tuple[bytes, ...], list[int]]:
    """All tokens of some texts as `skeleton` has them, in UTF-8, with a mark after each text that is no token; and
    where the marks are."""
    plain = [text.encode() if text.isascii() and "[asy]" not in text else _in_ascii(text).encode() for text in texts]
    whole = (b" %b " % _MARK).join([*plain, b""]).translate(_MASK)
    whole = _COMMAND_BYTES.sub(lambda command: _MEANING.get(command[0], b" "), whole)
    found = tuple(_LONG_NUMBER.sub(b"0", whole).replace(b"0", b" 0 ").translate(_BLANK).split())
    marks = []
    at = -1
    for _ in plain:
        at = found.index(_MARK, at + 1)
        marks.append(at)
    return found, marks


def _in_ascii(text: str) -> str:
    """`text` in ASCII where its letters allow it; else its skeleton, which reads as itself."""
    found = without_drawings(text)
    if not found.isascii():
        found = _NO_WORD.sub(" ", _plain_signs(found))
    return found if found.isascii() else " ".join(skeleton(text))


def unmasked(text: str, masked: Iterable[bytes]) -> list[str]:
    """`tokens(text)`, from what `skeletons` gives for it: only its numbers are read again."""
    text = without_drawings(text)
    if not text.isascii():
        text = _plain_signs(text)
    found = b" ".join(masked).decode().split()
    at = -1
    for number in _NUMBER.findall(text.lower()):
        at = found.index(NUMBER, at + 1)
        found[at] = number if number.isdigit() else "".join(filter(str.isdigit, number))
    return found


def token_places(text: str) -> list[tuple[int, int]]:
    """For each of `tokens(text)`, start and end of the piece of `text` that it stands in."""
    places = []
    for match in _PIECE.finditer(without_drawings(text)):
        places += [match.span()] * len(_pieces[match[0]])
    return places


def cut(text: str, count: int, first: int, last: int) -> str:
    """The part of `text` from the `first` to the `last` of its `count` tokens, in whole pieces."""
    plain = without_drawings(text)
    pieces = plain.split()
    before = _pieces_within(first, pieces)
    behind = _pieces_within(count - 1 - last, reversed(pieces))
    return text[len(text) - len(plain.split(None, before)[-1]) : len(plain.rsplit(None, behind)[0])]


def _pieces_within(count: int, pieces: Iterable[str]) -> int:
    """How many of the first pieces have no more than `count` tokens together."""
    sums = accumulate(len(_pieces[piece]) for piece in pieces)
    return next(number for number, tokens in enumerate(sums) if tokens > count)


_PLAIN = """
a an the of to in on at by for from with that which who is are was be been it its this these those there if then
when where and or so as we i you your let suppose assume given consider determine find compute calculate evaluate
what how much does do did can could will would such have has had must should may express answer form written
please exactly following below above shown here also denote respectively
"""
_PLAIN_WORDS = frozenset(_PLAIN.split())
"""Words that tell nothing of which question it is."""


def is_substance(token: str) -> bool:
    """Whether a question that has another token here may well be another question."""
    return token not in _PLAIN_WORDS
