"""A whole curation: a pool in, a set out, everything between them kept and never made twice.

OUT/stages/          pool, what it refused, and outcomes of stages, each named by a hash of what it was made of
OUT/answers/         what models answered, one file a model and settings; grows
OUT/NAME/            a set: train.parquet, train.jsonl, README.md, funnel.json, funnel.svg, run.json
OUT/timing.jsonl     how long stages took: the only file that differs from run to run
OUT/lock             held by the process that writes
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from .. import __version__
from ..errors import UsageError
from ..formats import get_format
from ..training_text import training_text
from . import provenance
from .answers_file import AnswersFile
from .asking import ASKING, answers_name, read_trace
from .audit import Against
from .card import card, facts_of, notes_of
from .difficulty import Band
from .export import record_of, write_set
from .fingerprints import fingerprint
from .forecast import Forecast, forecast
from .funnel import Funnel, funnel_of, group, load_manifest
from .funnel_views import svg
from .live_line import StageLine
from .pipeline import make_stages
from .places import PoolFile, size_of
from .pool import read_pool
from .pool_files import parquet_module
from .pool_store import keep_pool
from .recipe_checks import check_sources
from .recipes import Recipe
from .records import Row
from .refused import Refusals
from .roles import Models
from .stages import Result, StageStore, encode, row_hash, write_whole

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class Curated:
    """A set that was made."""

    directory: Path
    rows: int
    funnel: Funnel
    seconds: Mapping[str, float]
    """Stage -> wall seconds, of those that were not there yet."""


def curate(
    recipe: Recipe,
    files: Sequence[PoolFile],
    out: Path,
    models: Models,
    benchmarks: Sequence[Against],
    *,
    seed: int = 0,
    limit: int | None = None,
    chat_template: str | None = None,
    drop_contaminated: bool = False,
    retry_failed: bool = False,
    before_asking: Callable[[Sequence[Forecast]], None] | None = None,
    log: TextIO,
) -> Curated:
    """Make the set of `recipe` in `out`. What is there already is not made again; after a kill the same call goes on.

    Raises `UsageError` for a recipe that lacks a model, for a set that the final check finds contaminated (unless
    `drop_contaminated`, then without those rows), for one of no rows, and what teachers and students raise; a set of
    that name that was there before stays as it is. `retry_failed`: the stages
    that ask models run again, and ask what was not answered. `before_asking`: told what models are going to be asked
    and what that may cost, when all that is known and nothing is paid; what it raises ends the run.
    """
    check(recipe, models)
    check_sources(recipe.late_sources, [file.source for file in files])
    made_by = fingerprint(recipe)  # its code as it is now, and refused before it is paid for if it has none
    style = get_format(recipe.format)
    training_text(style, "question", "thinking", "answer", chat_template=chat_template)  # refused before it is paid for
    parquet_module()
    seconds: dict[str, float] = {}
    with _locked(out), StageLine(log) as live:
        for stale in (out / "stages").glob("*.new"):  # of a run that was killed
            stale.unlink()
        began = time.perf_counter()
        live.begin("pool", sum(map(size_of, files)), "MB")
        with Refusals(out / "stages") as refusals:
            pool = read_pool(files, limit=limit, tell=refusals.add, tick=live.at)
            hashes = {row.id: row_hash(row) for row in pool.rows}
            pool_path = keep_pool(out / "stages", pool, files, hashes)
            refused_path = refusals.keep()
        assert refusals.count == pool.records - len(pool.rows), "each record is a row, or has its reason"
        seconds["pool"] = time.perf_counter() - began
        live.end()
        _say(log, f"pool: {pool.records:,} records, {len(pool.rows):,} questions")
        store = StageStore(out / "stages", hashes)
        rows: Sequence[Row] = pool.rows
        records = pool.records
        name = recipe.name if seed == 0 else f"{recipe.name}-seed{seed}"
        directory = out / name
        ended = Counter({f"pool: {reason}": count for (_, reason), count in pool.refused.items()})
        _refuse_empty(rows, ended, directory)
        del pool  # only what is left of its rows is kept
        features: dict[str, dict[str, Any]] = {row.id: {} for row in rows}
        first_samples: dict[str, int] = {}
        selected = 0
        made: list[list[str]] = []
        leaks: list[str] = []
        asks = ASKING if models.judge is None else (*ASKING, "verify")
        for stage in make_stages(recipe, models, benchmarks, seed=seed, directory=out / "answers"):
            if stage.name == ASKING[0] and before_asking is not None:
                before_asking(forecast(recipe, models, rows))
            began = time.perf_counter()
            again = retry_failed and stage.name in asks
            live.begin(stage.name, len(rows))
            result = store.run(stage, rows, features, again=again, tick=live.at)
            if result.fresh:
                seconds[stage.name] = time.perf_counter() - began
            made.append([stage.name, str(result.path.relative_to(out))])
            if stage.name == "select":
                selected = sum(one.decision.kept for one in result.outcomes.values())
            if stage.name == "retrace":
                first_samples = {row.id: features[row.id]["sample"] for row in rows}
            rows = _go_on(rows, result, features)
            if not rows:
                reasons = (group(one.decision.reason) for one in result.outcomes.values())
                ended.update(f"{stage.name}: {reason}" for reason in reasons)
            if stage.name == "final-check":
                leaks = [o.decision.reason for o in result.outcomes.values() if not o.decision.kept]
            live.end()
            _say(log, f"{stage.name}: {len(rows):,} left{'' if result.fresh else ' (known)'}")
            if not (leaks and not drop_contaminated):
                _refuse_empty(rows, ended, directory)
        _note_times(out, recipe.name, seed, seconds)
        if leaks and not drop_contaminated:
            raise UsageError(
                f"{len(leaks)} of the selected rows hold benchmark questions: {', '.join(leaks[:3])}",
                hint="--drop-contaminated exports the others",
            )
        manifest = {
            "bide": __version__,
            "set": name,
            "recipe": made_by,
            "seed": seed,
            "limit": limit,
            "pool": str(pool_path.relative_to(out)),
            **({"refused": str(refused_path.relative_to(out))} if refused_path else {}),
            "revisions": {file.source: file.revision for file in files if file.revision},
            "files": provenance.of_files(files),
            "text": provenance.of_text(style.name, chat_template),
            "stages": made,
            "teacher": dict(models.teacher.settings),
            "second_teacher": dict(models.second_teacher.settings)
            if recipe.retrace and models.second_teacher
            else None,
            "students": [dict(student.settings) for student in models.students] if recipe.difficulty else [],
            "grader": models.grader.name,
            "judge": dict(models.judge.settings) if models.judge else None,
            "classifier": models.classifier.name if recipe.select.per_subject else None,
            "benchmarks": provenance.of_benchmarks(benchmarks),
            "notes": notes_of(recipe, benchmarks, rows, selected),
        }
        write_whole(directory / "run.json", [json.dumps(manifest, indent=1, sort_keys=True).encode() + b"\n"])
        live.begin("export", len(rows))
        count = write_set(
            directory,
            _records(recipe, models, rows, features, first_samples, out, style.name, chat_template),
            two_teachers=recipe.retrace,
            rows=len(rows),
            tick=live.at,
        )
        funnel = funnel_of(load_manifest(out, name))
        assert funnel.records == records and count == len(rows) == sum(funnel.selected.values())
        write_whole(directory / "funnel.json", [json.dumps(funnel.to_dict(), indent=1).encode() + b"\n"])
        write_whole(directory / "funnel.svg", [svg(funnel).encode()])
        facts = facts_of(rows, features)
        write_whole(directory / "README.md", [card(recipe, manifest, funnel, facts).encode()])
    return Curated(directory, count, funnel, seconds)


def _refuse_empty(rows: Sequence[Row], ended: Counter[str], directory: Path) -> None:
    """`ended`: "stage: reason" -> rows, of the stage that left none."""
    if rows:
        return
    told = ", ".join(f"{reason} {count:,}" for reason, count in ended.most_common(3)) or "the pool holds no records"
    kept = "the set of that name that was there before is as it was" if directory.exists() else ""
    raise UsageError(f"no row is left for the set {directory.name}, so it is not written ({told})", hint=kept)


def check(recipe: Recipe, models: Models) -> None:
    """Raises `UsageError` for a recipe that lacks a model."""
    if recipe.retrace and models.second_teacher is None:
        raise UsageError(f"the recipe {recipe.name} needs a second teacher", hint="--second-teacher URL/MODEL")
    if models.teacher.samples < recipe.samples:
        raise UsageError(f"the recipe {recipe.name} wants {recipe.samples} traces of each row")
    if recipe.difficulty is not None:
        if not models.students:
            raise UsageError(
                f"the recipe {recipe.name} needs students, to tell what is hard", hint="--student URL/MODEL"
            )
        names = [student.model for student in models.students]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(
                    f"two students are called {name!r}, and what a student solves is kept by its name",
                    hint="for more attempts raise the samples of the recipe's difficulty, or serve one by another name",
                )
        if isinstance(recipe.difficulty, Band):
            recipe.difficulty.check_tries(len(names))
        for student in models.students:
            if student.samples < recipe.difficulty.samples:
                raise UsageError(f"the recipe {recipe.name} wants {recipe.difficulty.samples} attempts at each row")


def _go_on(rows: Sequence[Row], result: Result, features: dict[str, dict[str, Any]]) -> list[Row]:
    kept = []
    for row in rows:
        outcome = result.outcomes[row.id]
        if outcome.decision.kept:
            kept.append(row)
            features[row.id].update(outcome.features)
        else:
            del features[row.id]
    return kept


def _records(
    recipe: Recipe, models: Models, rows: Sequence[Row], features: Mapping[str, Mapping[str, Any]],
    first_samples: Mapping[str, int], out: Path, style: str, template: str | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    first = AnswersFile(out / "answers" / answers_name("traces", models.teacher.settings))
    second = None
    try:
        if recipe.retrace and models.second_teacher is not None:
            second = AnswersFile(out / "answers" / answers_name("traces", models.second_teacher.settings))
        for row in rows:
            found = features[row.id]
            if second is None:
                trace = read_trace(first, row.id, found["sample"])
                yield record_of(row, trace, found, get_format(style), template)
            else:
                trace = read_trace(second, row.id, found["sample"])
                early = read_trace(first, row.id, first_samples[row.id])
                yield record_of(row, trace, found, get_format(style), template, early)
    finally:
        first.close()
        if second is not None:
            second.close()


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    out.mkdir(parents=True, exist_ok=True)
    with (out / "lock").open("a+b") as lock:
        if fcntl is not None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UsageError(
                    f"another bide is writing to {out}", hint="wait for it, or choose another --out"
                ) from None
        yield


def _note_times(out: Path, name: str, seed: int, seconds: Mapping[str, float]) -> None:
    line = {"recipe": name, "seed": seed, "seconds": {stage: round(took, 3) for stage, took in seconds.items()}}
    with (out / "timing.jsonl").open("ab") as file:
        file.write(encode(line) + b"\n")


def _say(log: TextIO, line: str) -> None:
    print(line, file=log, flush=True)
