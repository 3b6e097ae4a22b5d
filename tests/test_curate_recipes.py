"""Recipes: what they may not say, and that a stage's outcome is filed under all the code that made it."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bide.data import pipeline, stages
from bide.data.audit import Against
from bide.data.contamination import EvalItem
from bide.data.difficulty import Band, SolvedBetween, UnsolvedByAny
from bide.data.fingerprints import fingerprint
from bide.data.mock_teacher import MockStudent, MockTeacher, exact
from bide.data.pool import pool_files
from bide.data.quality import RowFilter, row_filter
from bide.data.recipes import PRESETS, Recipe, load_recipe, random, s1k
from bide.data.records import Row
from bide.data.roles import ByWords, Grader, Models
from bide.data.run import Curated, curate
from bide.data.selection import BestScore, ByDomain, Candidate, Longest, Pick, Random, SeedRule, Selected
from bide.data.selection_s1 import S1Notebook
from bide.errors import UsageError

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll", "larch"]
BENCHMARK = [Against("math500", "here", [EvalItem("math500", "1", "How many owls sit on the nine old elms by us?")])]


def write_pool(path: Path, count: int = 40) -> Path:
    rows = []
    for n in range(count):
        words = " ".join(WORDS[(n * k + k * k) % len(WORDS)] + str(n * k) for k in range(1, 9))
        rows.append({"question": f"What is the sum of {words}?", "answer": str(n), "solution": f"It is {n}."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make(pool: Path, out: Path, recipe: Recipe) -> Curated:
    tries = recipe.difficulty.samples if recipe.difficulty else 1
    students = [MockStudent(name, skill, samples=tries) for name, skill in (("small", 0.2), ("large", 0.3))]
    teacher = MockTeacher(words=10, samples=recipe.samples)
    who = Models(teacher, students, Grader("exact", "1", exact), ByWords(), MockTeacher(seed=1, words=12))
    return curate(recipe, pool_files([f"mine={pool}"], licences={}), out, who, BENCHMARK, log=io.StringIO())


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"name": "../x"}, "name is that of a directory"),
        ({"name": "/x"}, "name is that of a directory"),
        ({"name": ""}, "name is that of a directory"),
        ({"name": ".."}, "name is that of a directory"),
        ({"name": "a b"}, "name is that of a directory"),
        ({"name": "x\n"}, "name is that of a directory"),
        ({"name": None}, "name is that of a directory"),
        ({"name": "answers"}, "stands in --out already"),
        ({"name": "Stages"}, "stands in --out already"),
        ({"name": "lock"}, "stands in --out already"),
        ({"name": "receipt.json"}, "stands in --out already"),
        ({"name": "s1k-seed1"}, "of another one with that --seed"),
        ({"description": "a \ud800"}, "description is a text"),
        ({"rule": "nope"}, "unknown contamination rule 'nope'"),
        ({"drop_tiers": ("nope",)}, "unknown tier of contamination 'nope'"),
        ({"drop_tiers": "copy"}, "tuple of names"),
        ({"against": "math500"}, "tuple of names"),
        ({"late_sources": "aime"}, "tuple of names"),
        ({"row_filters": ("asy",)}, r"row_filters holds 'asy'.*row_filter\(\"NAME\"\)"),
        ({"trace_filters": ("truncated",)}, "trace_filters holds 'truncated'"),
        ({"trace_filters": (row_filter("asy"),)}, "no TraceFilter"),
        ({"row_filters": row_filter("asy")}, "tuple of filters"),
        ({"row_filters": (RowFilter("x", "why", "no function"),)}, "no function that drops"),  # type: ignore[arg-type]
        ({"cross_source": 0}, "cross_source"),
        ({"near_duplicates": 0.0}, "near_duplicates"),
        ({"near_duplicates": 1.2}, "near_duplicates"),
        ({"near_duplicates": float("nan")}, "near_duplicates"),
        ({"samples": 0}, "traces of each row"),
        ({"samples": True}, "traces of each row"),
        ({"samples": 1.5}, "traces of each row"),
        ({"pick": "best"}, "'first' good trace"),
        ({"require_correct": "yes"}, "require_correct is True or False"),
        ({"subject_reply": "first"}, "way to read a judge's reply"),
        ({"format": "nope"}, "nope"),
        ({"select": "random"}, "select has select, size, per_subject"),
        ({"select": Random}, "select has select, size, per_subject"),
        ({"difficulty": 0.5}, "difficulty has samples, drops, evidence"),
    ],
)
def test_a_field_that_cannot_be_is_refused_when_the_recipe_is_made(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UsageError) as told:
        replace(s1k(), **changes)
    assert re.search(wanted, told.value.one_line()), told.value.one_line()


@pytest.mark.parametrize(
    "make_rule",
    [
        *(lambda n=n, kind=kind: kind(n) for kind in (Random, Longest, BestScore, ByDomain, S1Notebook)
          for n in (-5, 0, 2.5, True, None)),
        lambda: ByDomain(10, uniform_until=-1),
        lambda: ByDomain(10, like=(("aime", 0.0),)),
        lambda: SeedRule(longer_than=-1),
        lambda: S1Notebook(uniform_until=-1),
        lambda: UnsolvedByAny(0),
        lambda: SolvedBetween(0, 0, 0),
        lambda: SolvedBetween(1, 3, 2),
        lambda: SolvedBetween(0.5, 3, 8),  # type: ignore[arg-type]
        lambda: Band(0.1, 0.9, 0),
        lambda: Band(0.9, 0.1, 8),
        lambda: Band(float("nan"), 0.9, 8),
        lambda: Band(0.0, 1.0, 8),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_be_is_refused_when_it_is_made(make_rule: Callable[[], Any]) -> None:
    with pytest.raises(UsageError):
        make_rule()


def test_a_selection_of_ones_own_is_checked_too() -> None:
    with pytest.raises(UsageError, match="rows that a selection wants"):
        replace(random(), select=Mine(-1))


def test_all_presets_are_allowed() -> None:
    assert {load_recipe(name).name for name in PRESETS} == set(PRESETS)


def test_late_sources_are_of_the_pool_or_known(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "train.jsonl")
    recipe = replace(random(), select=Random(3), against=())
    with pytest.raises(UsageError, match="unknown late source 'nosuch'"):
        make(pool, tmp_path / "out", replace(recipe, late_sources=("nosuch",)))
    assert not (tmp_path / "out").exists()
    assert make(pool, tmp_path / "out", replace(recipe, late_sources=("mine", "aime"))).rows == 3


def test_code_that_no_one_can_name_is_refused_before_anything_runs(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "train.jsonl")

    class Held:
        def __call__(self, row: Row) -> bool:
            return False

    typed: dict[str, Any] = {"__name__": "typed_in"}
    sys.modules["typed_in"] = ModuleType("typed_in")
    exec("def drops(row):\n    return False", typed)
    for drops, wanted in ((Held(), "no fingerprint"), (typed["drops"], "stands in no file")):
        recipe = replace(random(), against=(), row_filters=(RowFilter("mine", "why", drops),))
        with pytest.raises(UsageError, match=wanted):
            make(pool, tmp_path / "out", recipe)
    del sys.modules["typed_in"]
    assert not (tmp_path / "out").exists()


OWN = """
from dataclasses import dataclass, replace
from functools import partial
from bide.data.difficulty import UnsolvedByAny
from bide.data.quality import RowFilter
from bide.data.recipes import random
from bide.data.selection import Pick, Selected


@dataclass(frozen=True)
class First:
    size: int = 3
    per_subject: bool = False

    def select(self, candidates, seed):
        ids = sorted(row.id for row in candidates)[: self.size]
        return Selected(tuple(Pick(one, "first", n) for n, one in enumerate(ids)))


def longer(row, than):
    return int(row.answer) > than


def drops(n):
    def inner(row):
        return int(row.answer) % n == 1

    return inner


def recipe():
    filters = (
        RowFilter("odd", "an odd answer", drops(2)),
        RowFilter("long", "too long", partial(longer, than=900)),
    )
    return replace(random(), name="mine", against=(), select=First(), row_filters=filters)
"""


def test_editing_a_recipes_file_runs_again_what_it_holds(tmp_path: Path) -> None:
    pool, own, out = write_pool(tmp_path / "train.jsonl"), tmp_path / "own_recipe.py", tmp_path / "out"

    def ran(text: str) -> tuple[set[str], list[str]]:
        own.write_text(text)
        done = make(pool, out, load_recipe(str(own)))
        lines = (done.directory / "train.jsonl").read_text().splitlines()
        return set(done.seconds) - {"pool"}, [json.loads(line)["id"] for line in lines]

    first, ids = ran(OWN)
    assert "select" in first and len(ids) == 3
    assert ran(OWN) == (set(), ids)
    stages_of, others = ran(
        OWN.replace("sorted(row.id for row in candidates)", "sorted((row.id for row in candidates), reverse=True)")
    )
    assert "select" in stages_of and others != ids and "traces" not in stages_of
    stages_of, others = ran(OWN.replace("drops(2)", "drops(3)"))
    assert {"screen", "select"} <= stages_of and others != ids
    stages_of, others = ran(OWN.replace("than=900", "than=20"))
    assert "screen" in stages_of


def test_a_mistake_in_a_recipes_file_is_told_with_its_hint(tmp_path: Path) -> None:
    own = tmp_path / "own_recipe.py"
    own.write_text(OWN.replace('name="mine"', 'name="answers"'))
    with pytest.raises(UsageError) as told:
        load_recipe(str(own))
    assert told.value.one_line().startswith(f"{own}: a recipe is called 'answers', but that stands in --out already (")


def test_a_module_beside_a_recipe_belongs_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    helper, own = tmp_path / "own_helper_1.py", tmp_path / "own_recipe_2.py"
    own.write_text("import own_helper_1\n\n\ndef drops(row):\n    return len(row.question) > own_helper_1.LIMIT\n")

    def now() -> Any:
        for name in ("own_helper_1", "own_recipe_2"):
            sys.modules.pop(name, None)
            importlib.invalidate_caches()
        spec = importlib.util.spec_from_file_location("own_recipe_2", own)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["own_recipe_2"] = module
        spec.loader.exec_module(module)
        return fingerprint(module.drops)

    helper.write_text("LIMIT = 5\n")
    before = now()
    assert now() == before
    helper.write_text("LIMIT = 500\n")
    assert now() != before


def drops_above(number: float, *, below: float = 9.0) -> Callable[[Row], bool]:
    def drops(row: Row) -> bool:
        return number < len(row.question) < below

    return drops


def test_functions_are_told_apart_by_what_they_hold() -> None:
    same = [fingerprint(drops_above(3.0)) for _ in range(2)]
    assert same[0] == same[1] == json.loads(json.dumps(same[0]))
    pairs = [
        (drops_above(3.0), drops_above(4.0)),
        (drops_above(3.0), drops_above(3.0, below=8.0)),
        (functools.partial(max, 1), functools.partial(max, 2)),
        (functools.partial(max, default=1), functools.partial(max, default=2)),
        (functools.partial(max, 1), functools.partial(min, 1)),
        (lambda row, n=1: n, lambda row, n=2: n),
        (lambda row, *, n=1: n, lambda row, *, n=2: n),
        (lambda row: row.id > "1", lambda row: row.id > "2"),
        (re.compile("a"), re.compile("a", re.IGNORECASE)),
        (Random(5).select, Random(6).select),
        (frozenset({1}), frozenset({2})),
        (Random(5), Longest(5)),
    ]
    for one, other in pairs:
        assert fingerprint(one) != fingerprint(other), (one, other)
        assert fingerprint(one) == fingerprint(one)


def test_a_function_that_holds_itself_has_a_fingerprint() -> None:
    def outer() -> Callable[[int], int]:
        def count(n: int) -> int:
            return 0 if n == 0 else 1 + count(n - 1)

        return count

    assert fingerprint(outer()) == fingerprint(outer())


NOT_NAMED = {
    "records": "what a row and a decision are; rows are hashed by their fields",
    "stages": "named by the store for every stage",
    "mock_teacher": "answers are kept apart from stages, by the settings of who gave them; so is the grader's version",
    "roles": "hands on to `subjects`",
    "source_rules": "read at import",
    "answers_file": "a file of lines",
    "live_line": "tells how far a stage is; items go through as they are",
}


@dataclass(frozen=True)
class Mine:
    """A selection that is none of bide's."""

    size: int = 5
    per_subject: bool = False

    def select(self, candidates: Sequence[Candidate], seed: int) -> Selected:
        ids = sorted(row.id for row in candidates)[: self.size]
        return Selected(tuple(Pick(one, "mine", n) for n, one in enumerate(ids)))


@pytest.mark.parametrize("name", ["s1k", "s1k-faithful", "s1k-1.1", "limo", "band", "random"])
def test_a_stage_names_every_module_whose_code_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by Python itself: the modules whose functions were called while the stage ran."""
    ran: dict[str, set[str]] = {}
    named: dict[str, set[str]] = {}
    make_stages = pipeline.make_stages

    def watched(*args: Any, **options: Any) -> list[stages.Stage]:
        found = []
        for stage in make_stages(*args, **options):
            ran[stage.name] = set()
            named[stage.name] = {*stage.code, *_modules(stage.settings)}

            def decide(work: stages.Work, stage: stages.Stage = stage) -> Iterator[stages.Outcome]:
                def see(frame: Any, event: str, arg: Any) -> None:
                    by = frame.f_back.f_globals.get("__name__") if frame.f_back else ""
                    if by != "bide.data.mock_teacher":  # a mock's ways are none of the stage's
                        ran[stage.name].add(str(frame.f_globals.get("__name__")))

                sys.setprofile(see)
                try:
                    outcomes = list(stage.decide(work))
                finally:
                    sys.setprofile(None)
                return iter(outcomes)

            found.append(replace(stage, decide=decide))
        return found

    monkeypatch.setattr("bide.data.run.make_stages", watched)
    recipe = replace(load_recipe(name), against=("math500",), require_correct=False, difficulty=UnsolvedByAny())
    if name == "band":
        recipe = replace(recipe, difficulty=Band(0.1, 0.9, 8))
    if name == "random":
        recipe = replace(recipe, select=Mine())
    make(write_pool(tmp_path / "train.jsonl"), tmp_path / "out", recipe)
    allowed = {f"bide.data.{module}" for module in NOT_NAMED}
    for stage, modules in ran.items():
        ours = {module for module in modules if module.startswith("bide.data.")}
        assert ours, stage
        assert ours - allowed <= named[stage], (stage, ours - allowed - named[stage])


def _modules(settings: Any) -> set[str]:
    """The modules of what is in a stage's settings, found without `fingerprint`."""
    if isinstance(settings, dict):
        return {module for one in settings.values() for module in _modules(one)}
    if isinstance(settings, list | tuple):
        return {module for one in settings for module in _modules(one)}
    if hasattr(settings, "__dataclass_fields__"):
        found = {type(settings).__module__}
        return found.union(*(_modules(getattr(settings, field)) for field in settings.__dataclass_fields__))
    return {settings.__module__} if inspect.isfunction(settings) else set()


def test_the_version_of_a_grader_names_all_that_grades() -> None:
    """Told by Python: what a fresh process has of the room of the graders when it has graded."""
    code = (
        "import sys; from bide.cli.curate_models import grader_of, GRADING; from bide.data.records import Row\n"
        "row = Row('1', 'What is 6 times 7?', None, '42', 'mine', 'train', 'MIT')\n"
        "before = set(sys.modules)\n"
        "print(grader_of(sys.argv[1]).grade([(row, 'It is \\\\boxed{42}.'), (row, '\\\\boxed{x^2+1}')])[0][0])\n"
        "new = {name for name in set(sys.modules) - before if name.startswith('bide.eval.')}\n"
        "print(sorted(new - {f'bide.{name}' for name in GRADING} - {'bide.eval.records'}))"
    )
    for name in ("bide", "s1"):
        done = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, timeout=60)
        assert done.stdout.splitlines() == ["True", "[]"], done


def test_the_preset_band_drops_rows_on_both_sides(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "train.jsonl", 120)
    recipe = replace(load_recipe("band"), against=(), select=ByDomain(200))
    done = make(pool, tmp_path / "out", recipe)
    (step,) = (step for step in done.funnel.steps if step.stage == "difficulty")
    assert step.reasons["too_hard"]["mine"] > 10 and step.reasons["too_easy"]["mine"] > 1 and step.left > 10


def test_a_band_of_too_few_tries_is_refused_before_anything_runs(tmp_path: Path) -> None:
    pool = write_pool(tmp_path / "train.jsonl")
    recipe = replace(load_recipe("band"), against=(), difficulty=Band(0.1, 0.9, 8, sure=True))
    with pytest.raises(UsageError, match="16 tries can never tell"):
        make(pool, tmp_path / "out", recipe)
    assert not (tmp_path / "out").exists()


def test_the_recipe_of_the_docs_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "curate.md").read_text(encoding="utf-8")
    (text,) = (block.partition("```")[0] for block in page.split("```python\n") if "def recipe()" in block)
    own = tmp_path / "docs_recipe.py"
    own.write_text(text)
    recipe = load_recipe(str(own))
    assert isinstance(recipe.difficulty, Band)
    recipe.difficulty.check_tries(1)
