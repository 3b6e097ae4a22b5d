"""Who takes part in a curation: teachers, students, graders, classifiers, as the pipeline wants them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .live_line import Tick
from .records import Attempt, Failure, Row, Trace
from .subjects import classify


class Teacher(Protocol):
    """Who writes traces."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that its answers depend on, as JSON: model, prompt, parameters. No keys, no speed limits."""

    @property
    def samples(self) -> int:
        """Answers to each row."""

    def ask(self, rows: Sequence[Row]) -> Iterator[Trace | Failure]:
        """One for each row and sample, in any order. May raise a `BideError` to stop: what came before is kept."""


class Student(Protocol):
    """Who tries the rows, to tell how hard they are."""

    @property
    def model(self) -> str:
        """Its name in reasons and evidence."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """As a teacher's."""

    @property
    def samples(self) -> int:
        """Attempts at each row."""

    def attempt(self, rows: Sequence[Row]) -> Iterator[Attempt]:
        """One for each row and sample, in any order, graded."""


@dataclass(frozen=True, slots=True)
class Grader:
    """Who says whether answers are right."""

    name: str
    version: str
    grade: Callable[[Sequence[tuple[Row, str]]], Sequence[tuple[bool | None, str]]]
    """(row, answer) -> (right, how); None: nobody could tell. The same number, in order."""


class Judge(Protocol):
    """Who says whether an answer is right where the rule of the grader cannot tell."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """As a teacher's."""

    def judged(self, rows: Mapping[str, Row], attempts: Sequence[Attempt]) -> list[Attempt]:
        """The attempts, in order, with the judge's verdict where `correct` is None, or in `how` why there is none; in
        `judge` what it says of some that the rule has graded. May raise a `BideError` to stop: what was answered is
        kept."""


class Classifier(Protocol):
    """Who tells subjects. The default reads the words of a question."""

    @property
    def name(self) -> str:
        """As the card names it."""

    @property
    def version(self) -> str:
        """Changes with all that its answers depend on."""

    def subjects(self, rows: Sequence[Row]) -> Iterable[tuple[str, str | None, str]]:
        """(row id, code, who says so); the code is one of the classifier's own titles, or "" for unclassified. None: no
        valid reply after all tries, and why: "unparsed", "api_error:http_500". May raise a `BideError` to stop: what
        was answered is kept."""


@runtime_checkable
class Telling(Protocol):
    """A classifier that works long before its first answer, and tells how far it is."""

    def subjects_told(self, rows: Sequence[Row], tick: Tick) -> Iterable[tuple[str, str | None, str]]:
        """As `Classifier.subjects`."""


@dataclass(frozen=True, slots=True)
class ByWords:
    """The classifier that needs no model."""

    name: str = "words"
    version: str = "1"

    def subjects(self, rows: Sequence[Row]) -> Iterator[tuple[str, str | None, str]]:
        """As `Classifier`."""
        for row in rows:
            yield row.id, classify(row.question), self.name


@dataclass(frozen=True, slots=True)
class Models:
    """Who does the work that no rule can do."""

    teacher: Teacher
    students: Sequence[Student]
    grader: Grader
    classifier: Classifier
    second_teacher: Teacher | None = None
    judge: Judge | None = None
    """Of traces. Students bring their grades with them."""
