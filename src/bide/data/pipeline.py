"""The stages of a recipe, in their order, each a pure function of rows, earlier findings and settings.

    deduplicate -> decontaminate -> (cross-source) -> screen -> traces -> quality -> verify -> attempts -> subjects
    -> difficulty -> select -> (retrace -> retrace-quality) -> final-check

`screen` runs the filters that need no trace, so that no teacher is paid for what they drop. `attempts` and `subjects`
look at all rows with a good trace, so every recipe can select from the same findings; `difficulty` drops after them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from . import cross_source, duplicates
from .answers_file import AnswersFile
from .asking import (
    answers_name,
    attempts_stage,
    code_of,
    outcome,
    quality_stage,
    read_trace,
    traces_stage,
    verify_stage,
)
from .audit import Against
from .contamination import RULES, decide, decide_all
from .difficulty import Solved
from .quality import dropped_by
from .recipes import Recipe
from .records import Decision, Row
from .roles import Classifier, Models, Telling
from .selection import Candidate, limo_scores
from .source_rules import without_choices
from .sources import SOURCES, place_of
from .stages import Outcome, Stage, Work, encode


def make_stages(
    recipe: Recipe, models: Models, benchmarks: Sequence[Against], *, seed: int, directory: Path
) -> list[Stage]:
    """The stages of `recipe`. `directory`: where answers of models are kept, for all recipes alike."""
    stages = []
    if recipe.near_duplicates is not None:
        stages.append(_deduplicate(recipe.near_duplicates))
    stages.append(_decontaminate(recipe, benchmarks))
    if recipe.cross_source is not None:
        stages.append(_cross_source(recipe.cross_source, recipe.late_sources))
    stages += [
        Stage(
            "screen",
            lambda work: _screen(work, recipe),
            {"filters": recipe.row_filters},
            code_of("pipeline", "asking", "quality", "gold"),
        ),
        traces_stage("traces", models.teacher, directory),
        quality_stage("quality", recipe, models.teacher, directory),
        verify_stage(recipe, models.teacher, models.grader, models.judge, directory),
    ]
    if recipe.difficulty is not None:
        stages.append(attempts_stage(models.students, models.grader, directory))
    if recipe.select.per_subject:
        code = code_of("pipeline", "asking", "subjects", "subject_terms", "tokens")
        stages.append(
            Stage(
                "subjects",
                lambda work: _subjects(work, models.classifier),
                {"classifier": models.classifier.name, "version": models.classifier.version},
                (type(models.classifier).__module__, *code),
                asks=hasattr(models.classifier, "forecast"),
            )
        )
    if recipe.difficulty is not None:
        stages.append(
            Stage("difficulty", lambda work: _difficulty(work, recipe), recipe.difficulty,
                  code_of("pipeline", "asking", "difficulty"), reads=("attempts",))
        )  # fmt: skip
    stages.append(
        Stage(
            "select",
            lambda work: _select(work, recipe, seed),
            {"rule": recipe.select, "seed": seed},
            code_of("pipeline", "asking", "selection"),
            reads=("subject", "thinking_tokens", "correct", "limo"),
        )
    )
    if recipe.retrace:
        assert models.second_teacher is not None, "the caller asks for one"
        stages.append(traces_stage("retrace", models.second_teacher, directory))
        stages.append(quality_stage("retrace-quality", recipe, models.second_teacher, directory))
    stages.append(_final_check(recipe, models, benchmarks, directory))
    return stages


def _deduplicate(threshold: float) -> Stage:
    def run(work: Work) -> Iterator[Outcome]:
        for decision in duplicates.decide(work.rows, threshold=threshold, sources=list(SOURCES), tick=work.tick):
            yield Outcome(decision)

    code = code_of("pipeline", "duplicates", "tokens", "sources")
    return Stage("deduplicate", run, {"threshold": threshold}, code)


def _cross_source(words: int, late: tuple[str, ...]) -> Stage:
    def run(work: Work) -> Iterator[Outcome]:
        found = cross_source.decide(
            work.rows, lambda name: place_of(name)[0], n=words, late=late, text=without_choices, tick=work.tick
        )  # fmt: skip
        for row in work.rows:
            yield Outcome(found[row.id])

    code = code_of("pipeline", "cross_source", "source_rules", "sources")
    return Stage("cross-source", run, {"words": words, "late": late}, code)


def _decontaminate(recipe: Recipe, benchmarks: Sequence[Against]) -> Stage:
    private = {one.name for one in benchmarks if one.private}

    def run(work: Work) -> Iterator[Outcome]:
        rule = RULES[recipe.rule]([item for one in benchmarks for item in one.items])
        held = [_read_by(row, recipe) for row in work.rows if not _is_late(row, recipe)]
        for decision in decide_all(held, rule, drop=recipe.drop_tiers):
            yield Outcome(_veiled(decision, private))
        for row in work.rows:
            if _is_late(row, recipe):
                yield outcome(row, "decontaminate")

    settings = {
        "rule": recipe.rule,
        "drop": recipe.drop_tiers,
        "late": recipe.late_sources,
        "benchmarks": _digests(benchmarks),
    }
    code = code_of("pipeline", "asking", "contamination", "runs", "tokens", "source_rules")
    return Stage("decontaminate", run, settings, code)


def _is_late(row: Row, recipe: Recipe) -> bool:
    return row.source.partition("/")[0] in recipe.late_sources


def _read_by(row: Row, recipe: Recipe) -> Row:
    """What the recipe's rule reads of a row: s1 holds GPQA's questions against benchmarks before they get choices."""
    return replace(row, question=without_choices(row)) if recipe.rule == "s1" else row


def _digests(benchmarks: Sequence[Against]) -> dict[str, str]:
    return {one.name: hashlib.sha256(encode([[i.id, i.question] for i in one.items])).hexdigest() for one in benchmarks}


def _veiled(decision: Decision, private: set[str]) -> Decision:
    """Without the texts of benchmarks whose authors ask for that."""
    matches = decision.evidence.get("matches", ())
    if not any(match["benchmark"] in private for match in matches):
        return decision
    shown = [
        {name: value for name, value in match.items() if not name.endswith("_span") and name != "numbers"}
        if match["benchmark"] in private
        else match
        for match in matches
    ]
    return Decision(decision.row, decision.stage, decision.reason, {**decision.evidence, "matches": shown})


def _screen(work: Work, recipe: Recipe) -> Iterator[Outcome]:
    for row in work.rows:
        names = dropped_by(row, recipe.row_filters)
        yield outcome(row, "screen", names[0] if names else "", {"filters": names} if names[1:] else None)


def _subjects(work: Work, classifier: Classifier) -> Iterator[Outcome]:
    rows = {row.id: row for row in work.rows}
    told = classifier.subjects_told(work.rows, work.tick) if isinstance(classifier, Telling) else None
    for row, code, how in told or classifier.subjects(work.rows):
        if code is None:
            yield outcome(rows[row], "subjects", how if how.startswith("api_error:") else "no_subject", {"why": how})
        else:
            yield outcome(rows[row], "subjects", subject=code)


def _difficulty(work: Work, recipe: Recipe) -> Iterator[Outcome]:
    rule = recipe.difficulty
    assert rule is not None
    for row in work.rows:
        rates = {model: Solved(*counts) for model, counts in work.features[row.id]["attempts"].items()}
        yield outcome(row, "difficulty", rule.drops(rates), rule.evidence(rates))


def _select(work: Work, recipe: Recipe, seed: int) -> Iterator[Outcome]:
    found = {row.id: work.features[row.id] for row in work.rows}
    scores = limo_scores({key: one["limo"] for key, one in found.items()})
    candidates = [
        Candidate(
            row.id, row.source, found[row.id].get("subject", ""), found[row.id]["thinking_tokens"],
            found[row.id]["correct"], scores[row.id],
        )
        for row in work.rows
    ]  # fmt: skip
    selected = recipe.select.select(candidates, seed)
    picks = {pick.id: pick for pick in selected.picks}
    notes = {"notes": list(selected.notes)} if selected.notes else {}
    for row in work.rows:
        pick = picks.get(row.id)
        if pick is None:
            yield outcome(row, "select", "not_selected")
        else:
            yield outcome(row, "select", "", notes if pick.draw == 0 else None, how=pick.how, draw=pick.draw)


def _final_check(recipe: Recipe, models: Models, benchmarks: Sequence[Against], directory: Path) -> Stage:
    """Each selected row's question once more, and its whole text for copies of benchmark questions."""
    teacher = models.second_teacher if recipe.retrace and models.second_teacher else models.teacher
    private = {one.name for one in benchmarks if one.private}

    def run(work: Work) -> Iterator[Outcome]:
        items = [item for one in benchmarks for item in one.items]
        rule, whole = RULES[recipe.rule](items), RULES["containment"](items)
        answers = AnswersFile(directory / answers_name("traces", teacher.settings))
        try:
            for row in work.rows:
                decision = Decision(row.id, "final-check", "")
                if not _is_late(row, recipe):
                    decision = decide(_read_by(row, recipe), rule, stage="final-check", drop=recipe.drop_tiers)
                if decision.kept:
                    trace = read_trace(answers, row.id, work.features[row.id]["sample"])
                    text = replace(row, question=f"{row.question}\n{trace.thinking}\n{trace.answer}")
                    decision = decide(text, whole, stage="final-check", drop=("copy",))
                yield Outcome(_veiled(decision, private))
        finally:
            answers.close()

    settings = {
        "rule": recipe.rule,
        "drop": recipe.drop_tiers,
        "late": recipe.late_sources,
        "benchmarks": _digests(benchmarks),
        "teacher": teacher.settings,
    }
    code = code_of("pipeline", "asking", "answers_file", "contamination", "runs", "tokens", "source_rules")
    return Stage("final-check", run, settings, code, reads=("sample", "digest"))
