"""The stages that ask models, and those that read their answers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from .answers_file import AnswersFile
from .quality import trace_dropped_by
from .recipes import Recipe
from .records import BAD_TEXT, RULE, Attempt, Decision, Failure, Row, Trace, fields_of, is_sound
from .roles import Grader, Judge, Student, Teacher
from .selection import limo_features, limo_scores
from .stages import Outcome, Stage, Work, encode

ASKING = ("traces", "retrace", "attempts", "subjects")
"""The stages that ask models."""


def answers_name(kind: str, settings: Mapping[str, Any]) -> str:
    """The file of all answers that a model gave under `settings`: other rows do not make another file."""
    return f"{kind}-{hashlib.sha256(encode(settings)).hexdigest()[:16]}.jsonl"


def read_trace(answers: AnswersFile, row: str, sample: int) -> Trace:
    """A trace that is there."""
    return Trace(**answers.get(row, sample))


def code_of(*modules: str) -> tuple[str, ...]:
    """The modules of this room whose text a stage depends on."""
    return tuple(f"bide.data.{module}" for module in modules)


def outcome(
    row: Row, stage: str, reason: str = "", evidence: Mapping[str, Any] | None = None, **features: Any
) -> Outcome:
    """What stage `stage` says of `row`."""
    return Outcome(Decision(row.id, stage, reason, evidence or {}), features)


def traces_stage(name: str, teacher: Teacher, directory: Path) -> Stage:
    def run(work: Work) -> Iterator[Outcome]:
        answers = AnswersFile(directory / answers_name("traces", teacher.settings))
        try:
            missing = [row for row in work.rows if any((row.id, n) not in answers for n in range(teacher.samples))]
            failed: dict[tuple[str, int], str] = {}
            for found in teacher.ask(missing) if missing else ():
                if isinstance(found, Failure):
                    failed[found.row, found.sample] = found.reason  # not kept: it may be asked again
                elif not all(map(is_sound, (found.thinking, found.answer, found.teacher, found.finish_reason))):
                    failed[found.row, found.sample] = BAD_TEXT
                elif (found.row, found.sample) not in answers:
                    answers.add(found.row, found.sample, fields_of(found))
            answers.sync()
            for row in work.rows:
                why = {str(n): failed[row.id, n] for n in range(teacher.samples) if (row.id, n) in failed}
                yield _traced(row, name, dict(answers.of(row.id, teacher.samples)), why)
        finally:
            answers.close()

    return Stage(
        name,
        run,
        {"teacher": teacher.settings, "samples": teacher.samples},
        code_of("asking", "answers_file"),
        asks=True,
    )


def _traced(row: Row, stage: str, found: Mapping[int, Mapping[str, Any]], failures: Mapping[str, str]) -> Outcome:
    evidence = {"failures": dict(failures)} if failures else None
    if not found:
        reason = next(iter(failures.values()), "not_asked")
        return outcome(row, stage, f"api_error:{reason}", evidence)
    samples = [
        [sample, one["finish_reason"], one["thinking_tokens"], one["answer_tokens"], _digest(one)]
        for sample, one in sorted(found.items())
    ]
    return outcome(row, stage, "", evidence, samples=samples)


def _digest(trace: Mapping[str, Any]) -> str:
    return hashlib.sha256(encode([trace["thinking"], trace["answer"]])).hexdigest()[:16]


def quality_stage(name: str, recipe: Recipe, teacher: Teacher, directory: Path) -> Stage:
    """Which of a row's traces is taken, if any."""

    def run(work: Work) -> Iterator[Outcome]:
        answers = AnswersFile(directory / answers_name("traces", teacher.settings))
        try:
            for row in work.rows:
                digests = {sample: digest for sample, *_, digest in work.features[row.id]["samples"]}
                traces = [read_trace(answers, row.id, sample) for sample in digests]
                yield _best(row, name, traces, digests, recipe)
        finally:
            answers.close()

    settings = {"filters": recipe.trace_filters, "pick": recipe.pick, "teacher": teacher.settings}
    return Stage(name, run, settings, code_of("asking", "quality", "selection"), reads=("samples",))


def _best(row: Row, stage: str, traces: Sequence[Trace], digests: Mapping[int, str], recipe: Recipe) -> Outcome:
    bad = {trace.sample: names for trace in traces if (names := trace_dropped_by(row, trace, recipe.trace_filters))}
    good = {trace.sample: trace for trace in traces if trace.sample not in bad}
    evidence = {"dropped": {str(sample): names for sample, names in bad.items()}} if bad else None
    if not good:
        return outcome(row, stage, next(iter(bad.values()))[0], evidence)
    limo = {str(sample): limo_features(trace.thinking) for sample, trace in good.items()}
    sample = min(good)
    if recipe.pick == "limo":
        scores = limo_scores(limo)
        sample = min(good, key=lambda one: (-scores[str(one)], one))
    return outcome(
        row, stage, "", evidence, sample=sample, thinking_tokens=good[sample].thinking_tokens,
        digest=digests[sample], limo={n: round(v, 6) for n, v in limo[str(sample)].items()},
    )  # fmt: skip


def verify_stage(recipe: Recipe, teacher: Teacher, grader: Grader, judge: Judge | None, directory: Path) -> Stage:
    """Whether the traces end in the gold answer: by the grader's rule, and by the judge where that cannot tell."""

    def run(work: Work) -> Iterator[Outcome]:
        tries: list[Attempt] = []
        answers = AnswersFile(directory / answers_name("traces", teacher.settings))
        try:
            for batch in _batches(work.rows, 512 if judge is None else 8192):
                found = [_as_attempt(read_trace(answers, row.id, work.features[row.id]["sample"])) for row in batch]
                tries += [replace(one, answer="") for one in _graded(batch, found, grader, judge)]
                work.tick(len(tries) / len(work.rows))
        finally:
            answers.close()
        notes = [note] if (note := agreement(tries, "traces")) else []
        for number, (row, one) in enumerate(zip(work.rows, tries, strict=True)):
            reason = ""
            if one.correct is None and (recipe.require_correct or recipe.require_graded):
                reason = "ungraded"
            elif one.correct is False and recipe.require_correct:
                reason = "wrong_answer"
            evidence = {"how": one.how, **({"notes": notes} if notes and not number else {})}
            yield outcome(row, "verify", reason, evidence, correct=one.correct)

    settings: dict[str, Any] = {
        "grader": grader.name,
        "version": grader.version,
        "required": [recipe.require_correct, recipe.require_graded],
    }
    modules = ["asking", "answers_file", "gold"]
    if judge is not None:
        settings["judge"] = judge.settings
        modules += ["attempts", "judging"]
    return Stage("verify", run, settings, code_of(*modules), reads=("sample", "digest"))


def _as_attempt(trace: Trace) -> Attempt:
    """Without its thinking, which stays on the disk."""
    return Attempt(trace.row, trace.teacher, trace.sample, trace.answer, None, "")


def _graded(rows: Sequence[Row], tries: Sequence[Attempt], grader: Grader, judge: Judge | None) -> list[Attempt]:
    """`how` is the rule's own word where it has spoken."""
    said = grader.grade([(row, one.answer) for row, one in zip(rows, tries)])
    made = [replace(one, correct=correct, how=how) for one, (correct, how) in zip(tries, said, strict=True)]
    if judge is None:
        return made
    asked = [replace(one, how=RULE) for one in made]
    told = judge.judged({row.id: row for row in rows}, asked)
    return [replace(one, how=rule.how) if one.how == RULE else one for rule, one in zip(made, told, strict=True)]


def agreement(tries: Iterable[Attempt], what: str) -> str:
    """How often rule and judge say the same, in words; "" where they were not held against each other."""
    seen = [one for one in tries if one.judge is not None]
    same = sum(one.judge == one.correct for one in seen)
    return f"rule and judge agree on {same:,} of {len(seen):,} {what}" if seen else ""


def attempts_stage(students: Sequence[Student], grader: Grader, directory: Path) -> Stage:
    named = [{"student": one.settings, "grader": [grader.name, grader.version]} for one in students]

    def run(work: Work) -> Iterator[Outcome]:
        counts: dict[str, dict[str, list[int]]] = {row.id: {} for row in work.rows}
        notes: list[str] = []
        for student, settings in zip(students, named):
            answers = AnswersFile(directory / answers_name("attempts", settings))
            try:
                missing = [row for row in work.rows if any((row.id, n) not in answers for n in range(student.samples))]
                failed: Counter[str] = Counter()
                for found in student.attempt(missing) if missing else ():
                    if found.correct is None and (not found.answer or found.how.startswith("judge: ")):
                        failed[found.row] += 1  # not kept: it may be asked again
                    elif (found.row, found.sample) not in answers:
                        answers.add(found.row, found.sample, fields_of(found))
                answers.sync()
                both = same = 0
                for row in work.rows:
                    tries = [one for _, one in answers.of(row.id, student.samples)]
                    graded = [one["correct"] for one in tries if one["correct"] is not None]
                    counts[row.id][student.model] = [sum(graded), len(graded), len(tries) + failed[row.id]]
                    seen = [one for one in tries if one.get("judge") is not None]
                    both += len(seen)
                    same += sum(one["judge"] == one["correct"] for one in seen)
                if both:
                    notes.append(f"rule and judge agree on {same:,} of {both:,} attempts of {student.model}")
            finally:
                answers.close()
        for number, row in enumerate(work.rows):
            evidence = {"notes": notes} if notes and not number else None
            yield outcome(row, "attempts", "", evidence, attempts=counts[row.id])

    settings = [[one, student.samples] for one, student in zip(named, students)]
    return Stage("attempts", run, settings, code_of("asking", "answers_file"), asks=True)


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
