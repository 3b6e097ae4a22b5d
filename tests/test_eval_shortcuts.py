"""What makes grading cheaper changes no grade: values far apart, plain integers, pairs that were met before."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, reject, settings
from hypothesis import strategies as st

from bide.errors import UsageError
from bide.eval import grading
from bide.eval.closed_values import far_apart, value
from bide.eval.grading import Answer, Grade, LayeredGrader, grade_all
from bide.eval.math_structure import Verdict
from bide.eval.records import Item

math_verify = pytest.importorskip("math_verify")
math_equality = pytest.importorskip("bide.eval.math_equality")
SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """math-verify warns that its own timeout is off."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def by_math_verify(gold: str, answer: str) -> str:
    """The verdict of math-verify alone."""
    expected, found = (
        math_verify.parse(f"\\boxed{{{text}}}", (math_verify.LatexExtractionConfig(),), parsing_timeout=None)
        for text in (gold, answer)
    )
    if all(isinstance(one, str) for one in found):
        return "unparsed"
    return "equal" if math_verify.verify(expected, found, float_rounding=12, timeout_seconds=None) else "unequal"


class TooLong(BaseException):
    """No Exception, which sympy and math-verify would take for one of their own."""


@contextlib.contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Rejects an example over which sympy takes longer: over some it takes many minutes."""
    late: list[int] = []

    def stop(number: int, _: object) -> None:
        late.append(number)
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.suppress(TooLong):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if late:
        reject()


small = st.integers(1, 12)
plain = st.one_of(
    small.map(str),
    small.map(lambda n: f"-{n}"),
    st.sampled_from(["0.5", "0.333333333333", "0.3333", "1.41421356237", "9\\%", "900\\%", "0.09", "10^{-7}", "0"]),
    st.tuples(small, small).map(lambda two: rf"\frac{{{two[0]}}}{{{two[1]}}}"),
    small.map(lambda n: rf"\sqrt{{{n}}}"),
    st.tuples(small, small).map(lambda two: rf"{two[0]}\sqrt{{{two[1]}}}"),
    st.sampled_from([r"\pi", r"2\pi", "e", "i", "x", "2x", r"\frac{x}{x}", "x^2-x^2", r"\sin(0)", r"\binom{4}{2}",
                     "3!", r"\log(1)", r"\infty", "(2)(3)", r"\frac{1}{0}", r"\{1,2\}", "(1,2)", "x=3", "x<3",
                     r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "}", r"\text{east}", r"\sqrt{-1}", "2^{0.5}"]),
)  # fmt: skip
expressions = st.one_of(
    plain,
    st.tuples(plain, st.sampled_from(["+", "-", r" \cdot "]), plain).map("".join),
    st.tuples(plain, plain).map(lambda two: rf"\frac{{{two[0]}}}{{{two[1]}}}"),
)


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(expressions, expressions)
@example("9", r"9\%")
@example(r"9\%", "9")
@example("0.09", r"9\%")
@example(r"\frac{1}{3}", "0.333333333333")
@example("0.00000000000001", "0.00000000000002")
@example("x+1", "3")
@example(r"\sqrt{8}", r"2\sqrt{2}")
@example("10^{-13}", "0")
def test_the_verdict_is_that_of_math_verify_alone(gold: str, answer: str) -> None:
    assert math_equality.verdict(gold, answer) == by_math_verify(gold, answer)


def test_real_golds_against_numbers_and_each_other() -> None:
    path = SHARED / "math500" / "test.jsonl"
    if not path.exists():
        pytest.skip("math500 is not in ../shared/data")
    golds = [json.loads(line)["answer"] for line in path.read_text("utf-8").splitlines()]
    draw = random.Random(5)
    slow = [gold for gold in golds if not gold.isdecimal()]
    pairs = [(gold, draw.choice(["10731", "7", "-3", r"\frac{1}{2}", draw.choice(slow)])) for gold in slow]
    found = Counter(math_equality.verdict(*pair) for pair in pairs[:150])
    assert [math_equality.verdict(*pair) for pair in pairs[:150]] == [by_math_verify(*pair) for pair in pairs[:150]]
    assert found["unequal"] > 100


def test_most_pairs_are_told_apart_without_their_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **options: object) -> bool:
        raise AssertionError("this is what costs")

    monkeypatch.setattr(math_equality, "verify", never)
    for gold in (r"2\sqrt{2}", r"\frac{3\pi}{4}", r"\binom{40}{20}", r"1-\sqrt[3]{4}", r"\ln(3+2\sqrt{2})"):
        assert math_equality.verdict(gold, "10731") == "unequal"
    for gold, answer in ((r"2\sqrt{2}", r"\sqrt{8}"), ("9", r"9\%"), ("x", "3"), ("2.0000001", "2")):
        with pytest.raises(AssertionError, match="costs"):
            math_equality.verdict(gold, answer)


@given(st.integers(0, 10**40).map(str))
@example("0")
@example("007")
@example("1" * 5000)
def test_an_integer_is_read_as_math_verify_reads_it(text: str) -> None:
    read = math_verify.parse(f"\\boxed{{{text}}}", (math_verify.LatexExtractionConfig(),), parsing_timeout=None)
    found = math_equality._parsed(text)
    assert found == read and [type(one) for one in found] == [type(one) for one in read]


number = st.one_of(st.integers(0, 99).map(str), st.sampled_from(["0.5", "1.25", "10", "1000000", "0.000001"]))


def written(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Everything that `closed_values` reads, and some that it must not."""
    return st.one_of(
        st.tuples(inner, inner).map(lambda two: rf"\frac{{{two[0]}}}{{{two[1]}}}"),
        inner.map(lambda one: rf"\sqrt{{{one}}}"),
        st.tuples(st.integers(2, 5), inner).map(lambda two: rf"\sqrt[{two[0]}]{{{two[1]}}}"),
        st.tuples(inner, st.sampled_from(["+", "-", r"\cdot ", " ", ""]), inner).map("".join),
        st.tuples(inner, st.sampled_from(["2", "{3}", "{-1}", r"{\frac{1}{2}}", "12"])).map("^".join),
        inner.map(lambda one: f"-{one}"),
        inner.map(lambda one: f"({one})"),
    )


closed = st.recursive(st.one_of(number, st.just(r"\pi "), st.just(r"\sqrt{2}")), written, max_leaves=5)


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(closed)
@example(r"3\frac{1}{2}")
@example("8(2)")
@example("2^12")
@example(r"-2^2")
@example(r"\sqrt{2}\sqrt{3}")
@example(r"10^{10}-9999999999.99")
def test_a_value_is_that_of_what_math_verify_reads(text: str) -> None:
    found = value(text)
    if found is not None:
        read = math_equality._value(math_equality._parsed(text)[0])
        assert read is not None and read == pytest.approx(found, rel=1e-8, abs=1e-300)


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(closed, closed)
@example(r"\sqrt{8}", r"2\sqrt{2}")
@example(r"\frac{1}{3}", "0.333333333333")
@example(r"\pi", "3.1415927")
def test_what_is_far_apart_is_unequal_to_math_verify(gold: str, answer: str) -> None:
    if far_apart(gold, answer):
        with no_longer_than(5):
            assert by_math_verify(gold, answer) == "unequal"


def test_which_values_are_read() -> None:
    for text, expected in {
        r"\frac{3 \sqrt{3}}{4}": 1.299038, r"1 - \sqrt[3]{4} + \sqrt[3]{16}": 1.932441, "72^6": 72**6, r"-5": -5,
        r"100000000 \pi": 314159265.358979, r"\frac{4\sqrt{2}}{\pi}": 1.800633, r"2^{-3}\cdot 4": 0.5,
    }.items():  # fmt: skip
        assert value(text) == pytest.approx(expected, rel=1e-6)
    for text in ("", "x", "2x", "e", "i", r"\pi2", r"2\frac{1}{2}", "(2)(3)", "2(3)", "2 3", "1,000", "9%", "--2",
                 r"\frac{1}{0}", r"\sqrt{-1}", "2^{1000}", "9" * 400, r"\frac{1}{2", "}", r"\sqrt[1]{2}", r"\frac12",
                 r"\pi-\pi", r"\alpha", "2^", "+", r"(-2)^{2}", r"\sqrt{2}3", "0^{0}"):  # fmt: skip
        assert value(text) is None, text
    assert far_apart(r"2\sqrt{2}", "10731") and not far_apart(r"2\sqrt{2}", r"\sqrt{8}")
    assert not far_apart("x", "10731") and not far_apart("10731", "x") and not far_apart("10^{-8}", "0")


def test_computer_algebra_is_not_asked_about_what_is_far_apart() -> None:
    grader = Asked("equal")
    far = grader.grade(made(r"2\sqrt{2}", r"\sqrt{7}"))
    near = grader.grade(made(r"2\sqrt{2}", r"\sqrt{8}"))
    assert (far.outcome, far.how, near.outcome) == ("wrong", "boxed/math-verify", "correct")
    assert grader.asked == [(r"2\sqrt{2}", r"\sqrt{8}")]


class Asked(LayeredGrader):
    """Counts what would be asked of computer algebra, and says what it is told to."""

    def __init__(self, *verdicts: Verdict) -> None:
        super().__init__()
        self.asked: list[tuple[str, str]] = []
        self.verdicts = itertools.cycle(verdicts)

    def _processes(self) -> Asked:  # type: ignore[override]
        return self

    def check(self, gold: str, answer: str, deadline: float) -> Verdict:
        self.asked.append((gold, answer))
        return next(self.verdicts)


def made(gold: str, text: str, number: int = 0) -> Answer:
    return Answer(Item(str(number), "?", gold, "math", {}), rf"So \boxed{{{text}}}.", False, True)


def test_a_pair_is_compared_once_and_its_direction_counts() -> None:
    grader = Asked("equal", "unequal")
    found = [grader.grade(made("a+b", "b+a", number)) for number in range(3)]
    assert [(one.outcome, one.how) for one in found] == [("correct", "boxed/math-verify")] * 3
    assert grader.grade(made("b+a", "a+b")).outcome == "wrong"
    assert grader.asked == [("a+b", "b+a"), ("b+a", "a+b")]


def test_a_timeout_is_asked_again() -> None:
    grader = Asked("timeout", "equal")
    assert [grader.grade(made("a+b", "b+a")).outcome for _ in range(3)] == ["timeout", "correct", "correct"]
    assert len(grader.asked) == 2


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grading, "_MOST_KNOWN", 5)
    grader = Asked("unequal")
    for number in range(23):
        assert grader.grade(made("a+b", f"a+{number}b")).outcome == "wrong"
        assert len(grader._known) <= 5


class Stub:
    """A grader that answers at once, and does `event` at the answer `at`."""

    def __init__(self, at: int, event: str) -> None:
        self.at, self.event = at, event
        self.seen: set[str] = set()
        self.told = threading.Event()

    def grade(self, answer: Answer) -> Grade:
        self.seen.add(answer.item.id)
        if int(answer.item.id) == self.at:
            if self.event == "error":
                raise UsageError("a gold that cannot be")
            os.kill(os.getpid(), signal.SIGINT)
            self.told.wait(10)  # until the caller has heard of it
        elif int(answer.item.id) > self.at + 50 and self.event == "interrupt":
            self.told.wait(10)
        return Grade("correct", answer.item.id, "stub", 0.0)

    def close(self) -> None:
        """Nothing to free."""


def test_grades_come_in_the_order_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(grading._KEPT, "bide", Stub(-1, ""))
    found = grade_all((made("1", "1", number) for number in range(500)), workers=7)
    assert [one.extracted for one in found] == [str(number) for number in range(500)]
    assert grade_all([]) == []


def test_an_error_ends_the_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub(3, "error")
    monkeypatch.setitem(grading._KEPT, "bide", stub)
    with pytest.raises(UsageError, match="cannot be"):
        grade_all([made("1", "1", number) for number in range(4)], workers=1)
    assert stub.seen == {"0", "1", "2", "3"}
    with pytest.raises(UsageError, match="cannot be"):
        grade_all([made("1", "1", number) for number in range(10_000)], workers=1)
    assert "9999" not in stub.seen


def test_ctrl_c_ends_it_after_the_answers_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    stub = Stub(3, "interrupt")
    monkeypatch.setitem(grading._KEPT, "bide", stub)

    def heard(*_: object) -> None:
        stub.told.set()
        raise KeyboardInterrupt

    others = set(threading.enumerate())  # threads of pools that tests before this one have left
    before = signal.signal(signal.SIGINT, heard)
    try:
        with pytest.raises(KeyboardInterrupt):
            grade_all([made("1", "1", number) for number in range(100_000)], workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    for thread in set(threading.enumerate()) - others:  # one that had just begun
        thread.join(10)
        assert not thread.is_alive()
    assert len(stub.seen) < 100_000
