"""Benchmark questions in a pool: a brute-force oracle, the reference's own way, real leaks, labelled pairs."""

from __future__ import annotations

import csv
import json
import random
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bide.cli.curate_audit import audit as audit_command
from bide.data.audit import EVAL_SETS, audit, read_eval
from bide.data.contamination import FEWEST_WORDS, SHORT_QUESTION, Containment, EvalItem, Match, S1Rule, decide
from bide.data.records import Row, row_id
from bide.data.runs import Runs
from bide.data.tokens import _pieces as token_reader
from bide.data.tokens import batches, cut, is_substance, skeleton, skeletons, token_places, tokens, unmasked
from bide.errors import BideError, DownloadError, UnknownNameError, UsageError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{'/'.join(parts)} is not in ../shared/data")
    return path


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def items(*questions: str) -> list[EvalItem]:
    return [EvalItem("eval", str(at), question) for at, question in enumerate(questions)]


# Tokens.


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"Find $\dfrac{1}{2}$.", r"find \(\frac12\)"),
        (r"$\left(x+1\right)^2 \leq 5$", "(x + 1)^2 ≤ 5"),
        (r"$\text{Find }\,\mathbf{v}\quad$", "find v"),
        (r"\begin{align*} a &= b \end{align*}", "$a=b$"),
        (r"$\tfrac38$", r"$\frac{3}{8}$"),
        (r"$24,\!000$ and $24{,}000$", "24,000 and 24000"),
        ("λ ≠ π", r"$\lambda \neq \pi$"),
        (r"$z \not= i$", r"$z\ne i$"),
        ("ﬁnd ²x", "find 2x"),
        ("à 5 µm", r"à 5 \mu m"),
        ("As shown. [asy]draw((0,0)--(1,1));[/asy] Why?", "as shown why"),
    ],
)
def test_latex_s_dress_is_no_difference(one: str, other: str) -> None:
    assert tokens(one) == tokens(other)


@pytest.mark.parametrize(("one", "other"), [("x_1 2", "x_12"), ("12", "1 2"), (r"\alpha", r"\beta"), ("5.6", "56")])
def test_what_differs_stays_different(one: str, other: str) -> None:
    assert tokens(one) != tokens(other)


PIECES = [
    *"ab1 2$\\{}.,;!*_^\n\t\x00\x1cλ≤一éİſ½²\ud800",
    "000", "024", "12345", r"\frac", r"\dfrac", "[asy]", "[/asy]", r"\left",
    r"\begin{align*}", r"\not=", r"\leq", r"\text", r"\Big", "\u2003", "\uff0c", "・", "\udcff",
]  # fmt: skip
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=30).map("".join)


DROPPED = (
    "left right big bigl bigm bigr bigg biggl biggm biggr middle displaystyle textstyle limits nolimits qquad quad "
    "hspace vspace text textbf textit textrm textsf texttt textsc textup textnormal emph mathrm mathbf mathit mathsf "
    "mathtt mathcal mathbb mathfrak mathscr mathnormal mbox hbox boldsymbol bm operatorname mathop overline underline "
    "phantom hphantom noindent tag item dots ldots cdots lvert rvert lbrace rbrace"
)
RESPELLED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "leqslant": "le", "leqq": "le", "leq": "le", "geqslant": "ge",
    "geqq": "ge", "geq": "ge", "neq": "ne", "not=": "ne", "varepsilon": "epsilon", "varphi": "phi",
    "vartheta": "theta", "degree": "circ", "to": "rightarrow", "gets": "leftarrow", "land": "wedge", "lor": "vee",
    "lnot": "neg",
}  # fmt: skip
OTHERS = ["sqrt", "frac", "sin", "cdot", "pi", "leftarrow", "texts", "bigstar", "tan", "wedge"]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from([f"\\{name}" for name in [*DROPPED.split(), *RESPELLED, *OTHERS]])
        | st.sampled_from(["1", "12", "345", "1,000", r"2{,}000", r"3,\!000", ",", "{", "}", "x", "\\", " ", "begin"])
        | st.just(r"\begin{align*}"),
        max_size=12,
    ).map("".join)
)
def test_commands_and_numbers_are_read_by_one_rule_after_the_other(text: str) -> None:
    """One pass for all commands and one for all numbers give what a pass for each rule gives, in the rules' order."""
    plain = re.sub(r"(?<=\d)(,\\!|,|\{,\}|\\,)(?=\d{3}(?!\d))", "", text)
    plain = re.sub(r"\\(begin|end)\*?\{[a-z]+\*?\}", " ", plain)
    for name in DROPPED.split():
        plain = re.sub(rf"\\{name}(?![a-z])", " ", plain)
    for name, meaning in RESPELLED.items():
        plain = re.sub(rf"\\{name}(?![a-z])", rf" \\{meaning}", plain)
    wanted = re.findall(r"\d+|[a-z]+", re.sub(r"(\\frac\d)(?=\d)", r"\1 ", plain))
    (masked, (mark,)) = skeletons([text])
    assert [word.decode() for word in masked[:mark]] == ["0" if word.isdigit() else word for word in wanted]
    assert unmasked(text, masked[:mark]) == wanted


@settings(max_examples=300, deadline=None)
@given(texts)
def test_skeleton_and_places_go_with_the_tokens(text: str) -> None:
    words, masked, places = tokens(text), skeleton(text), token_places(text)
    assert len(words) == len(masked) == len(places)
    for word, mask, (start, end) in zip(words, masked, places):
        assert mask == ("0" if word.isdigit() else word)
        assert word in tokens(text[start:end])
    for first in range(len(words)):
        for last in range(first, len(words)):
            assert cut(text, len(words), first, last) == text[places[first][0] : places[last][1]]


@example(
    [
        r"\frac12345 \dfrac12 \Frac123 \frac{12} \frac1,000 frac12 \tfrac 12",
        "1,000 1,0000 12,345,678 1,000,00 a1,000 1,000b",
    ]
)
@example(
    [
        r"1{,}000 1\,000 1,\!000 1{,}0000 \,000 \not=2 \leq5 \leqx",
        "",
        " ",
        "007 0 00 5.60 x_1^2",
        r"\N \n \\left( \left)",
    ]
)
@settings(max_examples=300, deadline=None)
@given(st.lists(texts, max_size=6))
def test_many_are_read_as_one_by_one(some: list[str]) -> None:
    found, marks = skeletons(some)
    starts = [0, *(mark + 1 for mark in marks)]
    rows = [found[start:mark] for start, mark in zip(starts, marks)]
    assert [[word.decode() for word in row] for row in rows] == [skeleton(text) for text in some]
    assert [unmasked(text, row) for text, row in zip(some, rows)] == [tokens(text) for text in some]


def test_real_questions_are_read_as_one_by_one() -> None:
    some = [row["problem"] for row in json.loads(shared("s1k-questions", "s1k.json").read_text(encoding="utf-8"))]
    (batch, *rest) = batches(some)
    assert [*batch, *(text for more in rest for text in more)] == some and len(rest) > 1
    found, marks = skeletons(some)
    assert [word.decode() for word in found[: marks[0]]] == skeleton(some[0])
    assert b" ".join(found).split(b"\xff")[-2].decode().split() == skeleton(some[-1])


@settings(max_examples=300, deadline=None)
@given(
    st.integers(2, 9), st.lists(st.lists(st.integers(0, 2), max_size=25), max_size=3),
    st.lists(st.integers(0, 2), max_size=40),
)  # fmt: skip
def test_no_shared_run_is_missed(n: int, others: list[list[int]], words: list[int]) -> None:
    runs = Runs(n, dict(enumerate(others)))
    wanted = []
    for here, run in enumerate(windows(words, n)):
        places = {at: [there for there, other in enumerate(windows(text, n)) if other == run]
                  for at, text in enumerate(others)}  # fmt: skip
        if any(places.values()):
            wanted.append((here, {at: sum(1 << there for there in found) for at, found in places.items() if found}))
    assert runs.shared(tuple(words)) == wanted
    for starts in (0, 1, 0b1001, 0b101 << 9):
        covered = {at + k for at in range(20) if starts >> at & 1 for k in range(n)}
        assert runs.covered(starts) == sum(1 << at for at in covered)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bide.data.tokens._MOST_PIECES", 5)
    monkeypatch.setattr("bide.data.tokens._pieces", pieces := type(token_reader)(token_reader.read))
    text = " ".join(f"word{at} {at}" for at in range(50)) + " " + "long" * 100
    assert tokens(text)[:5] == ["word", "0", "0", "word", "1"] and tokens(text)[-1] == "long" * 100
    assert len(pieces) <= 5


# Containment against an oracle that compares all runs of all pairs.

WORDS = ["solve", "the", "triangle", "area", "circle", "find", "number", "sum", "xyz", "a", "b", "1", "2", "3", "4"]
N = 3


def windows(words: list[Any], n: int) -> list[tuple[Any, ...]]:
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]


def oracle(theirs: list[str], ours: list[str]) -> tuple[str, float, int] | None:
    """Tier, score and how many numbers differ, by the rule as the docs state it, with no index and no shortcut."""

    def covered(left: list[str], right: list[str]) -> set[int]:
        return {at + k for at, run in enumerate(windows(left, N)) if run in windows(right, N) for k in range(N)}

    def mask(words: list[str]) -> list[str]:
        return ["0" if word.isdigit() else word for word in words]

    if len(theirs) < N:
        return ("short", 1.0, 0) if theirs and theirs == ours else None
    same, alike = covered(theirs, ours), covered(mask(theirs), mask(ours))
    score = len(same) / len(theirs)
    seen_equal = set()
    for at, run in enumerate(windows(mask(theirs), N)):
        for place, other in enumerate(windows(mask(ours), N)):
            if run == other:
                seen_equal |= {at + k for k in range(N) if theirs[at + k] == ours[place + k]}
    missing = [word for at, word in enumerate(theirs) if at not in same]
    if len(theirs) < SHORT_QUESTION:
        another = any(is_substance(word) for word in missing)
    else:
        another = any(word.isdigit() and missing.count(word) > ours.count(word) for word in missing)
    kept = [[word for word in text if len(word) == 1 or is_substance(word)] for text in (theirs, ours)]
    in_order = any(kept[0] == kept[1][at : at + len(kept[0])] for at in range(len(kept[1]) + 1))
    if not alike - seen_equal and ((score >= 0.8 and not another) or (score >= 0.5 and in_order)):
        return "copy", score, 0
    words = [at for at, word in enumerate(theirs) if len(word) > 2 and not word.isdigit()]
    enough = len({theirs[at] for at in words}) >= FEWEST_WORDS
    same_words = enough and len(alike & set(words)) >= 0.8 * len(words) and len(alike) >= 0.8 * len(theirs)
    return ("template", score, len(alike - seen_equal)) if score >= 0.5 or same_words else None


@st.composite
def corpora(draw: st.DrawFn, words: list[str] = WORDS) -> tuple[list[list[str]], list[list[str]]]:
    """Benchmark questions, and pool questions made of pieces of them and of noise."""
    word = st.sampled_from(words)
    evals = draw(st.lists(st.lists(word, min_size=1, max_size=40), min_size=1, max_size=4))
    pool = []
    for _ in range(draw(st.integers(1, 4))):
        words = list(draw(st.sampled_from(evals)))
        for _ in range(draw(st.integers(0, 3))):
            at = draw(st.integers(0, len(words)))
            words[at : at + draw(st.integers(0, 2))] = draw(st.lists(word, max_size=3))
        pool.append(draw(st.lists(word, max_size=5)) + words)
    return evals, pool


@settings(max_examples=250, deadline=None)
@given(corpora())
def test_containment_is_what_comparing_everything_gives(corpus: tuple[list[list[str]], list[list[str]]]) -> None:
    evals, pool = corpus
    rule = Containment(items(*map(" ".join, evals)), n=N)
    for ours in pool:
        matches = rule.find(" ".join(ours))
        found = {match.item: (match.tier, round(match.score, 9), len(match.numbers)) for match in matches}
        wanted = {}
        for at, theirs in enumerate(evals):
            verdict = oracle(theirs, ours)
            if verdict:
                wanted[str(at)] = (verdict[0], round(verdict[1], 9), verdict[2])
        assert found == wanted


DRESSED = [
    *WORDS[::2], "été", "ﬁnd", "三角", "λ", r"\dfrac12", r"\frac{1}{2}", "1,000", "1000", r"\left(", "≤", "Ⅱ", "²",
]  # fmt: skip


@settings(max_examples=250, deadline=None)
@given(corpora(DRESSED), st.lists(st.sampled_from(["", "   ", "1", "été", "[asy] find the sum [/asy]"]), max_size=3))
def test_many_rows_in_any_dress_are_found_as_comparing_everything_does(
    corpus: tuple[list[list[str]], list[list[str]]], others: list[str]
) -> None:
    evals, pool = ([" ".join(words) for words in side] for side in corpus)
    pool = [*others, *pool, *others, *pool]
    rule = Containment(items(*evals), n=N)
    found = dict(rule.find_all(pool))
    for at, ours in enumerate(pool):
        wanted = {}
        for item, theirs in enumerate(evals):
            verdict = oracle(tokens(theirs), tokens(ours))
            if verdict:
                wanted[str(item)] = (verdict[0], round(verdict[1], 9), verdict[2])
        matches = found.get(at, [])
        assert matches == rule.find(ours)
        assert {match.item: (match.tier, round(match.score, 9), len(match.numbers)) for match in matches} == wanted


LONG = (
    "A train leaves the old station at 8 in the morning with 120 people on board and stops 7 times before it reaches "
    "the coast at noon. How many people are on board when it arrives if 5 leave and 3 enter at every stop?"
)


@pytest.mark.parametrize(
    ("question", "tier"),
    [
        (LONG, "copy"),
        (f"Return your answer in a box. {LONG.upper()} Think well.", "copy"),
        (LONG.replace("How many", "Tell us how many"), "copy"),
        (LONG.replace("120", "121"), "template"),  # one number of 43 tokens
        (LONG.replace("8", "9").replace("120", "50").replace("7", "4").replace("5", "6").replace("3", "2"), "template"),
        (LONG.replace("5 leave and 3 enter", "3 leave and 5 enter"), "template"),
        (LONG[:150], "template"),
        (LONG[:60], None),
        ("What is the area of a circle of radius 3?", None),
    ],
)
def test_tiers_of_a_word_problem(question: str, tier: str | None) -> None:
    found = Containment(items(LONG)).find(question)
    assert [match.tier for match in found] == ([tier] if tier else [])


def test_other_numbers_are_told() -> None:
    (match,) = Containment(items(LONG)).find(LONG.replace("120", "90"))
    assert match.numbers == (("120", "90"),)
    (match,) = Containment(items(LONG)).find("Hello. " + LONG)
    assert match.numbers == () and match.score == 1
    assert match.eval_span == LONG and match.pool_span == LONG


def test_a_number_that_is_equal_in_another_place_does_not_differ() -> None:
    (match,) = Containment(items("find 1 the 2 sum"), n=3).find("find 9 the 8 ball 1 the 7 the 2 sum")
    assert match.numbers == ()


def test_another_word_makes_a_short_question_another_one() -> None:
    rule = Containment(items("Determine the number of ways to arrange the letters of the word ELLIPSE."))
    (match,) = rule.find("Determine the number of ways to arrange the letters of the word RADII.")
    assert match.tier == "template" and match.score > 0.9
    (match,) = rule.find("Find the number of ways to arrange the letters of the word ELLIPSE.")
    assert match.tier == "copy"


@pytest.mark.parametrize(
    ("question", "tier"),
    [
        ("How many integers are there in the solution set of |x-2| ≤ 5.6?", "copy"),
        ("How many of the integers are in the solution set of |x-2| ≤ 5.6?", "copy"),
        ("How many primes are in the solution set of |x-2| ≤ 5.6?", "template"),
        ("How many integers x are in the solution set of |x-2| ≤ 5.6?", "template"),  # a letter may be a name
        ("How many integers are not in the solution set of |x-2| ≤ 5.6?", "template"),
    ],
)
def test_plain_words_between_make_no_other_question(question: str, tier: str) -> None:
    (match,) = Containment(items("How many integers are in the solution set of $|x-2|\\leq5.6$ ?")).find(question)
    assert match.tier == tier and 0.5 < match.score < 0.9


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Compute $\\sin 60^\\circ$.", True),
        ("Answer in a box. Compute $\\sin 60^\\circ$.", True),
        ("Compute $\\sin 60^\\circ$. Show your work.", True),
        ("Compute $\\sin 60^\\circ$. Compute $\\sin 60^\\circ$.", True),
        ("Compute $\\sin 60^\\circ + \\cos 30^\\circ$.", False),
        ("Compute $\\sin 61^\\circ$.", False),
        ("Nobody could compute $\\sin 60^\\circ$.", False),
    ],
)
def test_a_question_too_short_for_a_run_is_matched_word_by_word(question: str, found: bool) -> None:
    matches = Containment(items("Compute $\\sin 60^\\circ$")).find(question)
    assert [match.tier for match in matches] == (["short"] if found else [])
    assert not S1Rule(items("Compute $\\sin 60^\\circ$")).find(question)  # the reference cannot


def test_a_decision_drops_copies_and_tells_templates() -> None:
    rule = Containment([EvalItem("math500", "7", LONG)])

    def row(question: str) -> Row:
        return Row(row_id(question), question, None, None, "s", "train", "MIT")

    dropped = decide(row(LONG), rule)
    assert dropped.reason == "contaminated:math500#7" and not dropped.kept
    told = decide(row(LONG.replace("120", "90")), rule)
    assert told.kept and told.evidence["matches"][0]["tier"] == "template"
    assert not decide(row(LONG.replace("120", "90")), rule, drop=("copy", "template")).kept
    assert decide(row("Why?"), rule).evidence == {}
    json.dumps(dropped.evidence)


@pytest.mark.parametrize("bad", [{"n": 1}, {"copy": 0.4, "template": 0.5}, {"copy": 1.1}, {"template": 0}])
def test_nonsense_thresholds_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="0 < template <= copy <= 1"):
        Containment([], **bad)


# The reference's rule, written here from its description: two tables of joined n-grams, one a side.


def reference_contaminated(pool: list[str], evals: list[str], n: int = 8) -> set[int]:
    def lookup(texts: list[str]) -> dict[str, set[int]]:
        table: dict[str, set[int]] = defaultdict(set)
        for at, text in enumerate(texts):
            words = " ".join(text.lower().strip().split()).split()
            for start in range(len(words) - n + 1):
                table[" ".join(words[start : start + n])].add(at)
        return table

    theirs = lookup(evals)
    return {at for gram, places in lookup(pool).items() if gram in theirs for at in places}


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(alphabet="abC \t\n\u00a0\u2003İß", max_size=60), max_size=5),
    st.lists(st.text(alphabet="abC \t\n\u00a0\u2003İß", max_size=60), max_size=5),
)
def test_rule_s1_flags_what_the_reference_flags(pool: list[str], evals: list[str]) -> None:
    rule = S1Rule(items(*evals), n=3)
    assert {at for at, text in enumerate(pool) if rule.find(text)} == reference_contaminated(pool, evals, 3)


def test_rule_s1_on_real_questions() -> None:
    pool = [row["problem"] for row in json.loads(shared("s1k-questions", "s1k.json").read_text(encoding="utf-8"))]
    evals = [row["problem"] for row in records(shared("math500", "test.jsonl"))]
    rule = S1Rule(items(*evals))
    flagged = {at for at, text in enumerate(pool) if rule.find(text)}
    assert flagged == reference_contaminated(pool, evals)
    assert len(flagged) > 50  # most of them share a phrase only


# Real leaks and labelled pairs.


def test_the_four_leaks_of_s1k_are_found_and_nothing_else() -> None:
    math500 = read_eval("math500", data=shared("math500").parent)
    found = audit(shared("s1k-questions", "s1k.json"), [math500], near=None)
    leaks = {
        "Steve says to Jon": "Steve says to Jon",
        "Find the number of integer values of $k$": "Find the number of integer values of $k$",
        "Let $F(z)": "Let $F(z)",
        "Let $\\lambda$ be a constant": "Let $\\lambda$ be a constant",
    }
    copies = [one for one in found.found if one.match.tier == "copy"]
    assert len(copies) == len(leaks) == len({one.row for one in copies})
    questions = {item.id: item.question for item in math500.items}
    for one in copies:
        start = next(start for start in leaks if found.questions[one.row].startswith(start))
        assert questions[one.match.item].startswith(leaks[start])


SAME = {  # read one by one: the same question, for anybody who reads both
    ("s1", "0103"), ("s1", "0285"), ("s1", "0080"), ("s1", "0126"), ("tulu", "0386"), ("tulu", "0378"),
    ("tulu", "0489"), ("tulu", "0300"), ("tulu", "0037"), ("openthoughts", "0386"), ("openthoughts", "0300"),
}  # fmt: skip
LABELLED = ["s1_c_lex", "s1_c_sem", "tulu_c_lex", "tulu_c_sem", "openthoughts_c_lex", "openthoughts_c_sem"]


def labelled() -> Iterator[tuple[str, str, str, str]]:
    """(set, MATH-500 number, its question, the pool's question), each pair of texts once."""
    seen = set()
    for name in LABELLED:
        for row in records(shared("contamination-audit", f"{name}.jsonl")):
            texts = row["math500_problem"], row["train_problem"]
            if texts not in seen:
                seen.add(texts)
                yield name.partition("_")[0], row["math500_id"][-4:], *texts


def test_no_labelled_pair_is_called_a_copy_that_is_none() -> None:
    tiers: dict[tuple[str, str, bool], int] = defaultdict(int)
    copies = set()
    for name, number, theirs, ours in labelled():
        matches = Containment([EvalItem("math500", number, theirs)]).find(ours)
        tier = matches[0].tier if matches else "none"
        tiers[name, tier, (name, number) in SAME] += 1
        if tier in ("copy", "short"):
            copies.add((name, number))
    assert copies == {
        ("s1", "0103"),
        ("s1", "0285"),
        ("s1", "0080"),
        ("s1", "0126"),
        ("tulu", "0386"),
        ("openthoughts", "0386"),
    }
    templates = sum(count for (_, tier, _), count in tiers.items() if tier == "template")
    assert 20 <= templates <= 60


def test_no_clean_question_is_flagged() -> None:
    """MATH-500 questions that are far from all three training sets, against each other and against AIME."""
    clean = [row["problem"] for row in records(shared("contamination-audit", "clean_baseline.jsonl"))]
    rule = Containment(items(*(row["problem"] for row in records(shared("aime24", "aime24.jsonl")))))
    assert [match.tier for question in clean for match in rule.find(question)] == []


# The audit and its command.


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path: Path) -> Path:
    write(
        tmp_path / "pool.jsonl", {"q": 1, "Problem": "Why?"}, {"q": 2, "Problem": LONG}, {"q": 3, "Problem": LONG + "!"}
    )
    write(tmp_path / "bench.jsonl", {"id": "b1", "question": LONG}, {"id": "b2", "question": "Compute $2+2$."})
    return tmp_path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(audit_command, [str(argument) for argument in arguments], standalone_mode=False)


def test_the_command_tells_what_and_where(files: Path) -> None:
    out = files / "evidence.jsonl"
    result = run(files / "pool.jsonl", "--against", files / "bench.jsonl", "--out", out, "--fail-on", "copy")
    assert result.return_value == 1, result.output
    assert "copy           2 rows      1 items" in result.output and "row 1 = bench#b1 100%" in result.output
    found = records(out)
    assert [(r["finding"], r.get("row"), r.get("item"), r.get("kind")) for r in found] == [
        ("contamination", 1, "b1", None),
        ("contamination", 2, "b1", None),
        ("duplicate", None, None, "exact"),
    ]
    assert found[0]["id"] == row_id(LONG) and found[0]["pool_span"] == LONG
    assert list(files.glob(".evidence*")) == []


def test_json_holds_the_same(files: Path) -> None:
    result = run(files / "pool.jsonl", "--against", f"b={files / 'bench.jsonl'}", "--json")
    assert result.return_value == 0
    found = json.loads(result.output)
    assert found["against"][0]["tiers"] == {"copy": {"rows": 2, "items": 1}}
    assert found["duplicates"]["pairs"] == {"exact": 1, "near": 0, "template": 0}
    assert len(found["evidence"]) == 3 and found["rows"] == 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--fail-on", "template"], 0),
        (["--fail-on", "duplicate"], 1),
        (["--fail-on", "duplicate", "--fail-on", "template"], 1),
        (["--rule", "s1", "--fail-on", "copy"], 1),
        ([], 0),
    ],
)
def test_exit_codes(files: Path, arguments: list[str], code: int) -> None:
    assert run(files / "pool.jsonl", "--against", files / "bench.jsonl", *arguments).return_value == code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--column", "text"], "no column 'text'.*q, Problem"),
        (["--against", "maths500"], "unknown benchmark.*did you mean 'math500'"),
        (["--against", "nowhere.jsonl"], "no file nowhere.jsonl"),
        (["--fail-on", "copy"], "needs benchmarks"),
        (["--fail-on", "duplicate", "--no-pairs"], "contradict"),
        (["--near", "1.5"], "similarity above 0 and at most 1"),
        (["--near", "0.6", "--no-pairs"], "--near and --no-pairs contradict"),
        (["--no-pairs"], "nothing to compare"),
        (["--rule", "s1"], "--rule would have no effect without --against"),
        (["--json", "--examples", "5"], "--examples would have no effect with --json"),
        (["--against", "mine", "--rule", "s1", "--fail-on", "template"], "knows copies only"),
        (["--against", "={dir}/bench.jsonl"], "a benchmark without a name"),
        (["--out", "{dir}"], "is a directory"),
        (["--out", "{dir}/none/e.jsonl"], "there is no directory"),
        (["--out", "{dir}/pool.jsonl"], "one of the files to read"),
        (["--against", "{dir}/bench.jsonl", "--out", "{dir}/bench.jsonl"], "one of the files to read"),
        (["--against", "{dir}/bench.jsonl,{dir}/bench.jsonl"], "two benchmarks are called 'bench'"),
    ],
)
def test_mistakes_are_told(files: Path, arguments: list[str], message: str) -> None:
    result = run(files / "pool.jsonl", *(argument.replace("{dir}", str(files)) for argument in arguments))
    assert isinstance(result.exception, BideError)
    with pytest.raises(BideError, match=message):
        raise type(result.exception)(result.exception.one_line())


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no column looks like a question"):
        audit(write(tmp_path / "a.jsonl", {"x": 1}))
    with pytest.raises(UsageError, match="no questions"):
        audit(write(tmp_path / "b.jsonl", {"question": None}))
    with pytest.raises(UsageError, match="no questions"):
        audit(write(tmp_path / "c.jsonl"))
    with pytest.raises(UnknownNameError, match="rule"):
        audit(write(tmp_path / "d.jsonl", {"question": "a"}), rule="s2")


def test_rows_without_a_question_are_counted_not_dropped(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jsonl", {"question": "Why?"}, {"question": None}, {"question": "Why?"}, {"question": " "}
    )
    found = audit(path)
    assert found.empty == 2 and [(pair.first, pair.second) for pair in found.pairs] == [(0, 2)]


def test_rows_before_the_first_with_a_question_are_counted_too(tmp_path: Path) -> None:
    rows = {"other": 1}, {}, {"question": LONG}, {"question": 7}, {"question": [LONG]}, {"other": LONG}
    path = write(tmp_path / "a.jsonl", *rows)
    found = audit(path, [read_eval(str(path))])
    assert (len(found.questions), found.empty, [one.row for one in found.found]) == (6, 5, [2])
    with pytest.raises(UsageError, match="no column 'text'"):
        audit(path, column="text")
    assert [item.id for item in read_eval(str(path)).items] == ["2"]


def test_two_items_of_one_id_stay_two(tmp_path: Path) -> None:
    other = "What is the sum of all the prime numbers that are smaller than one hundred and twenty?"
    write(tmp_path / "e.jsonl", {"id": "x", "question": LONG}, {"id": "x", "question": other})
    pool = write(tmp_path / "p.jsonl", {"question": LONG}, {"question": other})
    found = audit(pool, [read_eval(str(tmp_path / "e.jsonl"))])
    assert [one.match.item for one in found.found] == ["x", "x@1"]
    assert found.counts("e") == {"copy": (2, 2)}


def test_a_whole_document_is_no_item(tmp_path: Path) -> None:
    write(tmp_path / "e.jsonl", {"question": LONG}, {"question": "word " * 30_000})
    with pytest.raises(UsageError, match="record 2: wanted a question of at most 100,000 characters, got 150,000"):
        read_eval(str(tmp_path / "e.jsonl"))


def test_half_a_surrogate_and_control_characters_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = "\ud800 \x1b[31m\u202e\x00 " + LONG + " \ud83d!"
    path.write_text(json.dumps({"question": text}) + "\n" + json.dumps({"question": text + "!"}), encoding="utf-8")
    out = tmp_path / "out.jsonl"
    result = run(path, "--against", f"b={path}", "--out", out)
    assert result.exception is None and "copy           2 rows      2 items" in result.output
    assert not {"\x1b", "\u202e", "\ud800"} & set(result.output)
    result = run(path, "--against", f"b={path}", "--json")
    assert json.loads(result.output)["evidence"][0]["pool_span"] in text
    assert len(records(out)) == 5 and records(out)[0]["pool_span"] in text


def test_lists_too_deep_to_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"question": ' + "[" * 100_000 + "]" * 100_000 + "}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"line 1: .*too deep"):
        audit(path)


def test_conversations_are_read_by_their_first_question(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Hi"}, {"role": "user", "content": LONG}]
    path = write(tmp_path / "a.jsonl", {"messages": turns}, {"messages": [{"from": "human", "value": LONG}]})
    assert list(audit(path).questions) == [LONG, LONG]


def test_every_format_is_read_alike(tmp_path: Path) -> None:
    rows = [
        {"id": at, "question": question, "answer": "1"} for at, question in enumerate([LONG, "Why, λ?", LONG + "!"])
    ]
    write(tmp_path / "a.jsonl", *rows)
    (tmp_path / "b.json").write_text(json.dumps(rows), encoding="utf-8")
    with (tmp_path / "c.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    names = ["a.jsonl", "b.json", "c.csv"]
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        pass
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "d.parquet")
        names.append("d.parquet")
    against = [read_eval(str(tmp_path / "a.jsonl"))]
    found = [audit(tmp_path / name, against) for name in names]
    assert len({json.dumps(list(one.evidence())) for one in found}) == 1 and len(list(found[0].evidence())) == 6


def test_the_hub_is_asked_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "x.jsonl", {"unique_id": "u", "problem": LONG})
    asked = []

    def dataset_file(repo: str, part: str) -> tuple[Path, str]:
        asked.append((repo, part))
        return file, "c0ffee"

    monkeypatch.setattr("bide.models.hub.dataset_file", dataset_file)
    found = read_eval("math500", data=tmp_path)
    assert (found.source, found.items[0].id) == ("HuggingFaceH4/MATH-500@c0ffee", "u")
    write(tmp_path / "math500.jsonl", {"problem": LONG})
    assert read_eval("math500", data=tmp_path).items[0].id == "0" and len(asked) == 1

    def offline(repo: str, part: str) -> tuple[Path, str]:
        raise DownloadError("no network")

    monkeypatch.setattr("bide.models.hub.dataset_file", offline)
    with pytest.raises(DownloadError, match="no network") as error:
        read_eval("aime24", data=tmp_path)
    assert "--against aime24=FILE" in error.value.hint


def test_items_of_a_private_benchmark_are_not_shown(tmp_path: Path) -> None:
    assert EVAL_SETS["gpqa_diamond"].private
    write(tmp_path / "gpqa_diamond.jsonl", {"Question": LONG})
    pool = write(tmp_path / "pool.jsonl", {"question": LONG})
    out = tmp_path / "out.jsonl"
    result = run(pool, "--against", "gpqa_diamond", "--data", tmp_path, "--out", out, "--no-pairs")
    assert "train leaves" not in result.output + out.read_text(encoding="utf-8") and "(not shown)" in result.output
    assert "train leaves" not in run(pool, "--against", "gpqa_diamond", "--data", tmp_path, "--json").output


def test_every_run_finds_the_same(tmp_path: Path) -> None:
    """Whatever PYTHONHASHSEED, to the byte; whatever the order of rows, the same findings."""
    rng = random.Random(0)
    evals = [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(20)]
    pool = [" ".join(rng.choices(WORDS, k=3)) + " " + rng.choice(evals) for _ in range(60)]
    write(tmp_path / "e.jsonl", *({"question": text} for text in evals))
    path = write(tmp_path / "p.jsonl", *({"question": text} for text in pool))
    code = "from bide.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "curate",
        "audit",
        str(path),
        "--against",
        str(tmp_path / "e.jsonl"),
        "--json",
    ]
    outputs = {
        subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}).stdout
        for seed in ("0", "1", "2")
    }
    assert len(outputs) == 1

    def findings(questions: list[str]) -> set[tuple[str, Match]]:
        rule = Containment(items(*evals))
        return {(question, match) for question in questions for match in rule.find(question)}

    assert findings(pool) == findings(rng.sample(pool, len(pool))) != set()
