"""The card of a set: README.md, as the Hugging Face hub reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .audit import Against
from .contamination import TIERS
from .funnel import Funnel
from .funnel_views import markdown
from .recipes import Recipe
from .records import Row
from .subjects import SUBJECTS


def card(recipe: Recipe, manifest: Mapping[str, Any], funnel: Funnel, facts: Mapping[str, Any]) -> str:
    """The whole card. It states what is known, and names what is not."""
    count = sum(funnel.selected.values())
    licences = sorted({one["licence"] for one in facts["sources"].values()})
    licence = licences[0].lower() if len(licences) == 1 and licences[0] != "unknown" else "other"
    return "\n".join(
        [
            "---",
            f"license: {licence}",
            "task_categories:\n- text-generation",
            "tags:\n- reasoning\n- bide",
            f"size_categories:\n- {_size(count)}",
            "configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.parquet",
            "---",
            "",
            f"# {funnel.name}",
            "",
            f"{recipe.description}. {count:,} of {funnel.records:,} records, made by `bide curate` "
            f"{manifest['bide']}, recipe `{recipe.name}`, seed {manifest['seed']}.",
            "",
            *(f"- **Note**: {note}." for note in funnel.notes),
            "",
            "## What became of every record",
            "",
            "![funnel](funnel.svg)",
            "",
            markdown(funnel),
            "",
            "## Sources",
            "",
            *_sources(facts, manifest["revisions"]),
            "",
            "## Contamination",
            "",
            *_contamination(recipe, manifest, funnel),
            "",
            "## Traces",
            "",
            *_traces(manifest, facts),
            "",
            *_subjects(facts, manifest),
        ]
    )


def facts_of(rows: Sequence[Row], features: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the card says of the rows."""
    sources: dict[str, dict[str, Any]] = {}
    subjects: dict[str, int] = {}
    verdicts = {"correct": 0, "wrong": 0, "ungraded": 0}
    tokens = []
    for row in rows:
        one = sources.setdefault(row.source, {"rows": 0, "licence": row.licence, "split": row.split})
        one["rows"] += 1
        found = features[row.id]
        if "subject" in found:
            subjects[found["subject"]] = subjects.get(found["subject"], 0) + 1
        verdicts[{True: "correct", False: "wrong", None: "ungraded"}[found["correct"]]] += 1
        tokens.append(found["thinking_tokens"])
    return {
        "sources": dict(sorted(sources.items())),
        "subjects": subjects,
        "verdicts": verdicts,
        "tokens": sorted(tokens),
    }


def notes_of(recipe: Recipe, benchmarks: Sequence[Against], rows: Sequence[Row], selected: int) -> list[str]:
    """What must be said of a set: what was not checked, what was lost, what is of test splits."""
    notes = []
    absent = [name for name in recipe.against if name not in {one.name for one in benchmarks}]
    if absent:
        notes.append(f"not checked against {', '.join(absent)}, which the recipe names")
    wanted = recipe.select.size
    if wanted is not None and selected < wanted:
        notes.append(f"{selected} rows were selected, though {wanted} were wanted: the pool had no more that pass")
    if len(rows) < selected:
        notes.append(f"{selected - len(rows)} of {selected} selected rows were lost behind that, and not replaced")
    tested = sorted({row.source for row in rows if row.split == "test"})
    if tested:
        notes.append(f"rows of test splits: {', '.join(tested)}")
    return notes


def _size(count: int) -> str:
    for limit, name in ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K")):
        if count < limit:
            return name
    return "100K<n<1M"


def _sources(facts: Mapping[str, Any], revisions: Mapping[str, str]) -> list[str]:
    lines = ["| source | rows | split it is of | licence | commit |", "|---|--:|---|---|---|"]
    lines += [
        f"| {name} | {one['rows']:,} | {one['split']} | {one['licence']} | {revisions.get(name, '')} |"
        for name, one in facts["sources"].items()
    ]
    unknown = [name for name, one in facts["sources"].items() if one["licence"] == "unknown"]
    if unknown:
        lines += ["", f"The licence of {', '.join(unknown)} is not known here: find it out before you pass the set on."]
    unsplit = [name for name, one in facts["sources"].items() if one["split"] == "unknown"]
    if unsplit:
        lines += ["", f"Of {', '.join(unsplit)} it is not known whether they are a train or a test split."]
    return lines


def _contamination(recipe: Recipe, manifest: Mapping[str, Any], funnel: Funnel) -> list[str]:
    dropped: dict[str, int] = {}
    for step in funnel.steps:
        for reason, sources in step.reasons.items():
            if reason.startswith("contaminated:"):
                name = reason.partition(":")[2]
                dropped[name] = dropped.get(name, 0) + sum(sources.values())
    lines = [
        f"Rule `{recipe.rule}`; dropped: "
        + "; ".join(f"`{tier}` ({TIERS[tier]})" for tier in recipe.drop_tiers)
        + ". Applied to the pool, and again to the questions and whole texts of the set.",
        "",
        "| benchmark | questions | rows dropped |",
        "|---|--:|--:|",
    ]
    lines += [
        f"| {one['name']} | {one['questions']:,} | {dropped.get(one['name'], 0):,} |" for one in manifest["benchmarks"]
    ]
    if not manifest["benchmarks"]:
        lines.append("| none: **this set was not checked** | | |")
    return lines


def _traces(manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    tokens, verdicts = facts["tokens"], facts["verdicts"]
    graded = verdicts["correct"] + verdicts["wrong"]
    teacher = manifest["second_teacher"] or manifest["teacher"]
    settings = ", ".join(f"{name} {value}" for name, value in sorted(teacher.items()) if value is not None)
    text = manifest["text"]
    template = f", chat template `{text['chat_template_sha256'][:12]}`" if text["chat_template_sha256"] else ""
    lines = [f"- The text to train on is in the format `{text['format']}`{template}."]
    lines += [f"- Teacher: {settings}. Its terms of use may limit what models trained on its output may be used for."]
    if tokens:
        middle = tokens[len(tokens) // 2]
        lines.append(
            f"- Thinking tokens, as the {'second' if manifest['second_teacher'] else 'first'} teacher's server counts: "
            f"{sum(tokens):,} in sum, "
            f"median {middle:,}, most {tokens[-1]:,}."
        )
    if graded:
        lines.append(
            f"- {verdicts['correct']:,} of {graded:,} graded traces of the first teacher end in the gold answer "
            f"({verdicts['correct'] / graded:.1%}; grader `{manifest['grader']}`{_judge(manifest)}); "
            f"{verdicts['ungraded']:,} could not be graded."
        )
    if teacher.get("teacher") == "mock":
        lines.append("- **The traces are nonsense of a mock teacher: this set is of no use for training.**")
    return lines


def _judge(manifest: Mapping[str, Any]) -> str:
    judge = manifest["judge"]
    return f", and where its rule cannot tell `{judge['model']}`" if judge else ""


def _subjects(facts: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    if not facts["subjects"]:
        return []
    ordered = sorted(facts["subjects"].items(), key=lambda one: (-one[1], one[0]))
    lines = [
        "## Subjects",
        "",
        f"By the classifier `{manifest['classifier']}`.",
        "",
        "| code | subject | rows |",
        "|---|---|--:|",
    ]
    for code, count in ordered:
        title = SUBJECTS.get(code) or ("" if code else "unclassified")
        lines.append(f"| {code} | {title} | {count:,} |")
    return [*lines, ""]
