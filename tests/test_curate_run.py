"""The whole path, offline: counts add up, kills and orders leave no trace, a change runs again what it touches."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bide.data import stages
from bide.data.audit import Against
from bide.data.contamination import EvalItem
from bide.data.funnel import funnel_of, group, history, load_manifest, read_pool_file, statuses
from bide.data.funnel_views import html, svg, table
from bide.data.mock_teacher import MockStudent, MockTeacher, exact
from bide.data.pool import pool_files
from bide.data.quality import RowFilter
from bide.data.recipes import PRESETS, Recipe, load_recipe, s1k
from bide.data.records import Failure, Row, Trace
from bide.data.roles import ByWords, Grader, Models, Teacher
from bide.data.run import Curated, curate
from bide.data.selection import ByDomain, Everything, Random
from bide.errors import BideError, UnknownNameError, UsageError

TOPICS = [
    "a triangle with an angle of",
    "the prime number next to",
    "the probability of a coin and",
    "a polynomial with",
]
LEAK = "Let seven red boxes stand in a row beside nine blue boxes and a lone green one: how many orders are there?"
BENCHMARK = [Against("math500", "here", [EvalItem("math500", "12", LEAK)])]
SMALL = replace(s1k(), select=ByDomain(20, uniform_until=15), against=("math500",))


def questions(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows that are unlike each other, with some of each fate among them."""
    draw = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(count):
        words = " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(8))
        rows.append({"question": f"What of {draw.choice(TOPICS)} {words}?", "answer": str(number)})
        fate = draw.random()
        if fate < 0.05:
            rows[-1]["question"] += " [asy]draw(a);[/asy]"
        elif fate < 0.10:
            rows[-1]["answer"] = None
        elif fate < 0.15 and number:
            rows[-1] = dict(draw.choice(rows[:-1]))
        elif fate < 0.18:
            rows[-1] = {"nothing": 1}
        elif fate < 0.20:
            rows[-1]["question"] = LEAK.replace("seven", "Seven")
        elif fate < 0.24 and number:
            rows[-1]["question"] = draw.choice(rows[:-1]).get("question", "What else?").upper()
    return rows


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@dataclass
class Counting:
    """A teacher that counts what it is asked, and may stop."""

    teacher: MockTeacher
    asked: Counter[str]
    stop_after: int | None = None

    @property
    def settings(self) -> Any:
        return self.teacher.settings

    @property
    def samples(self) -> int:
        return self.teacher.samples

    def ask(self, rows: Sequence[Row]) -> Iterator[Trace | Failure]:
        for number, found in enumerate(self.teacher.ask(rows)):
            if number == self.stop_after:
                raise BideError("no more money")
            self.asked[found.row] += 1
            yield found


def models(teacher: Teacher | None = None, second: Teacher | None = None, tries: int = 1) -> Models:
    students = [MockStudent("small", 0.3, samples=tries), MockStudent("large", 0.45, samples=tries)]
    return Models(teacher or MockTeacher(words=30), students, Grader("exact", "1", exact), ByWords(), second)


def make(pool: Path, out: Path, recipe: Recipe = SMALL, who: Models | None = None, **options: Any) -> Curated:
    files = pool_files([f"mine={pool}"], licences={})
    return curate(recipe, files, out, who or models(), BENCHMARK, log=io.StringIO(), **options)


def contents(directory: Path) -> dict[str, str]:
    """Every file that must not differ."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in ("timing.jsonl", "lock")
    }


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("pool") / "train.jsonl", questions(300))


@pytest.fixture(scope="module")
def whole(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    make(pool, out)
    return out


def test_other_machines_choose_the_same(whole: Path) -> None:
    """What one machine has exported, by its hash: every machine that runs this test must export the same bytes."""
    assert hashlib.sha256((whole / "s1k" / "train.jsonl").read_bytes()).hexdigest() == CHOSEN


CHOSEN = "0770bc610e39000c984d84cc4d9af9ff04287a9498acaad3bd3bbe0aa14ad39f"


def recounted(out: Path, name: str, pool: Path) -> Counter[str]:
    """What became of the records, from the files alone and without the funnel's code."""
    manifest = json.loads((out / name / "run.json").read_text())
    lines = [json.loads(line) for line in (out / manifest["pool"]).read_text().splitlines()]
    found: Counter[str] = Counter()
    for _, reason, count in lines[0]["refused"]:
        found[reason] += count
    alive = set()
    for line in lines[1:]:
        alive.add(line["row"]["id"])
        found["same_question"] += len(line.get("copies", []))
    for _, path in manifest["stages"]:
        for text in (out / path).read_text().splitlines()[1:]:
            line = json.loads(text)
            if "reason" in line:
                alive.remove(line["row"])
                found[line["reason"].split("#")[0] if "dupl" not in line["reason"] else "duplicate"] += 1
    exported = {json.loads(line)["id"] for line in (out / name / "train.jsonl").read_text().splitlines()}
    assert exported == alive
    found["selected"] = len(exported)
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 30), st.integers(0, 10_000), st.sampled_from(["s1k", "random", "limo", "full", "s1k-1.1"]))
def test_every_record_ends_once(tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, preset: str) -> None:
    directory = tmp_path_factory.mktemp("conserved")
    pool = write(directory / "train.jsonl", [*questions(count, seed), {"question": "What is the last one of all?"}])
    recipe = replace(load_recipe(preset), against=())
    tries = recipe.difficulty.samples if recipe.difficulty else 1
    who = models(MockTeacher(samples=recipe.samples, words=9), MockTeacher(seed=1, words=20), tries)
    try:
        done = make(pool, directory / "out", recipe, who)
    except UsageError as error:
        assert str(error).startswith("no row is left") and not (directory / "out" / preset).exists()
        return
    records = len(pool.read_text().splitlines())
    found = recounted(directory / "out", preset, pool)
    assert done.funnel.records == records == found.total()
    told: Counter[str] = Counter({"selected": done.rows})
    for step in done.funnel.steps:
        told.update({reason: sum(sources.values()) for reason, sources in step.reasons.items()})
    assert +told == +found


def test_the_small_pool_meets_many_fates(whole: Path, pool: Path) -> None:
    found = recounted(whole, "s1k", pool)
    assert found["selected"] == 20
    fates = {"no_question", "same_question", "duplicate", "contaminated:math500", "asy", "no_solution", "not_selected"}
    assert fates <= set(found), found
    assert {status for _, status, _ in statuses(load_manifest(whole))} >= {"selected", "select", "screen", "difficulty"}


def test_a_kill_at_any_write_leaves_no_trace(
    whole: Path, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies before each file in turn takes its place, and once more after each run it goes on."""

    class Killed(BaseException):
        pass

    out, kills = tmp_path / "out", 0
    move = os.replace
    for _ in range(100):
        left = [2]  # two files a life

        def replace_or_die(source: Any, target: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise Killed
            left[0] -= 1
            move(source, target)

        monkeypatch.setattr(stages.os, "replace", replace_or_die)
        try:
            make(pool, out)
            break
        except Killed:
            kills += 1
    monkeypatch.setattr(stages.os, "replace", move)
    assert kills >= 8
    make(pool, out)
    found = contents(out)
    left_over = {name for name in found if name.endswith(".new")}
    assert not left_over
    assert found == contents(whole)


def test_a_full_disk_is_told_in_one_line_and_the_same_command_goes_on(pool: Path, tmp_path: Path) -> None:
    """No file may grow beyond so many bytes: to Python that is as a disk that fills up at that place."""
    pytest.importorskip("resource")
    code = (
        "import resource, sys; from bide.cli import main\n"
        "limit = int(sys.argv.pop(1))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)) if limit else None\n"
        "main(sys.argv[1:])"
    )
    options = ["curate", "run", "random", "--pool", f"mine={pool}", "--teacher", "mock", "--grader", "exact", "--limit",
               "60", "--without", "gpqa_diamond", "--without", "aime24", "--without", "math500", "--out"]  # fmt: skip

    def run(out: Path, limit: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, str(limit), *options, str(out)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert run(tmp_path / "whole", 0).returncode == 0
    told = []
    for limit in (3_000, 30_000, 70_000):
        done = run(tmp_path / "full", limit)
        assert done.returncode == 2, done.stderr
        told.append(done.stderr.splitlines()[-1])
        assert "cannot be written: File too large" in told[-1] and "Traceback" not in done.stderr
        assert not list((tmp_path / "full").rglob("*.new"))
    assert len(set(told)) == 3  # it came further each time
    assert run(tmp_path / "full", 0).returncode == 0
    assert contents(tmp_path / "full") == contents(tmp_path / "whole")


def test_the_hash_seed_of_the_process_makes_no_difference(pool: Path, tmp_path: Path) -> None:
    against = write(tmp_path / "math500.jsonl", [{"question": LEAK, "id": "12"}])
    sums = []
    for seed in ("1", "77"):
        out = tmp_path / seed
        command = [sys.executable, "-m", "bide", "curate", "run", "s1k", "--pool", f"mine={pool}", "--out", str(out),
                   "--teacher", "mock", "--student", "mock", "--grader", "exact", "--against", f"math500={against}",
                   "--without", "gpqa_diamond", "--without", "aime24"]  # fmt: skip
        done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        sums.append(contents(out))
    assert sums[0] == sums[1]


def test_the_order_of_the_pool_makes_no_difference(whole: Path, pool: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pool.read_text().splitlines()]
    random.Random(3).shuffle(rows)
    make(write(tmp_path / "train.jsonl", rows), tmp_path / "out")
    one, other = contents(tmp_path / "out"), contents(whole)
    told = [json.loads((out / "s1k" / "run.json").read_text()) for out in (tmp_path / "out", whole)]
    files = [run.pop("files") for run in told]
    places = [run.pop("refused") for run in told]
    assert files[0] != files[1] and told[0] == told[1], "that the file is another one is told, and nothing else"
    assert places[0] != places[1], "nor does what is refused stand where it stood"
    for found, place in ((one, places[0]), (other, places[1])):
        del found[place], found["s1k/run.json"]
    assert one == other


def test_the_manifest_tells_its_inputs(whole: Path, pool: Path, tmp_path: Path) -> None:
    """Enough to see whether one has the same, and no paths: it is the same in every directory."""
    told = json.loads((whole / "s1k" / "run.json").read_text())
    bytes_of = hashlib.sha256(pool.read_bytes()).hexdigest()
    assert told["files"] == [{"source": "mine", "file": "train.jsonl", "sha256": bytes_of}]
    items = hashlib.sha256(LEAK.encode() + b"\0").hexdigest()
    assert told["benchmarks"] == [{"name": "math500", "questions": 1, "source": "here", "sha256": items}]
    assert told["text"] == {"format": "s1", "chat_template_sha256": None}
    assert str(whole.parent) not in json.dumps(told) and str(pool.parent) not in json.dumps(told)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    done = make(pool, tmp_path / "out", replace(SMALL, format="qwen3"), chat_template=template)
    digest = hashlib.sha256(template.encode()).hexdigest()
    assert json.loads((done.directory / "run.json").read_text())["text"]["chat_template_sha256"] == digest
    assert f"format `qwen3`, chat template `{digest[:12]}`" in (done.directory / "README.md").read_text()


class Forgetful(MockTeacher):
    """Has no answer to one row in three."""

    def ask(self, rows: Sequence[Row]) -> Iterator[Trace | Failure]:
        for number, found in enumerate(super().ask(rows)):
            yield found if number % 3 else Failure(found.row, found.teacher, 0, "api_error")


def test_the_card_tells_rows_that_were_lost_behind_the_selection(pool: Path, tmp_path: Path) -> None:
    recipe = replace(load_recipe("s1k-1.1"), select=SMALL.select, against=("math500",))
    done = make(pool, tmp_path / "out", recipe, models(second=Forgetful(seed=4, words=9)))
    card = (done.directory / "README.md").read_text()
    assert done.rows < 20 and f"{20 - done.rows} of 20 selected rows were lost behind that" in card
    assert "no more that pass" not in card and "as the second teacher's server counts" in card


def test_nothing_is_asked_twice(pool: Path, tmp_path: Path) -> None:
    teacher = Counting(MockTeacher(words=10), Counter(), stop_after=100)
    with pytest.raises(BideError, match="money"):
        make(pool, tmp_path / "out", who=models(teacher))
    assert teacher.asked.total() == 100
    teacher.stop_after = None
    make(pool, tmp_path / "out", who=models(teacher))
    answered = dict(teacher.asked)
    assert max(teacher.asked.values()) == 1 or set(
        row for row, count in teacher.asked.items() if count > 1
    ) <= failures(tmp_path / "out")
    for name in ("s1k-paper", "random", "diverse", "longest"):
        recipe = replace(load_recipe(name), against=("math500",), samples=1)
        make(pool, tmp_path / "out", recipe, models(teacher))
    assert dict(teacher.asked) == answered  # all recipes share what was answered
    more = [json.loads(line) for line in pool.read_text().splitlines()]
    more.append({"question": "What of a prime number that came late, and of its square?", "answer": "4"})
    make(write(tmp_path / "more.jsonl", more), tmp_path / "out", who=models(teacher))
    fresh = {row for row, count in teacher.asked.items() if count != answered.get(row)}
    assert len(fresh - failures(tmp_path / "out")) == 1


def test_a_torn_line_of_a_journal_is_cut_off_and_asked_again(pool: Path, tmp_path: Path) -> None:
    teacher = Counting(MockTeacher(words=10), Counter(), stop_after=50)
    with pytest.raises(BideError):
        make(pool, tmp_path / "out", who=models(teacher))
    (journal,) = (tmp_path / "out" / "answers").glob("traces-*.jsonl")
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    teacher.stop_after = None
    done = make(pool, tmp_path / "out", who=models(teacher))
    assert journal.read_bytes().startswith(whole)
    last = json.loads(whole.splitlines()[-1])[0][0]
    assert {row for row, count in teacher.asked.items() if count > 1} - failures(tmp_path / "out") == {last}
    assert done.rows == 20


def failures(out: Path) -> set[str]:
    """Rows that the teacher failed to answer: they are asked again where a stage runs again."""
    found = set()
    for path in (out / "stages").glob("traces-*.jsonl"):
        found |= {one["row"] for one in map(json.loads, path.read_text().splitlines()[1:]) if one.get("reason")}
    return found


def test_failures_are_asked_again_on_demand_only(pool: Path, tmp_path: Path) -> None:
    teacher = Counting(MockTeacher(words=10), Counter())
    teacher.teacher = replace(teacher.teacher, seed=2)
    make(pool, tmp_path / "out", who=models(teacher))
    lost = failures(tmp_path / "out")
    assert lost
    before = dict(teacher.asked)
    make(pool, tmp_path / "out", who=models(teacher))
    assert dict(teacher.asked) == before
    make(pool, tmp_path / "out", who=models(teacher), retry_failed=True)
    assert {row for row in before if teacher.asked[row] > before[row]} == lost


def test_a_change_runs_again_what_it_touches(pool: Path, tmp_path: Path) -> None:
    make(pool, tmp_path / "out")
    assert make(pool, tmp_path / "out").seconds.keys() == {"pool"}
    again = make(pool, tmp_path / "out", replace(SMALL, select=ByDomain(10)))
    assert again.seconds.keys() == {"pool", "select", "final-check"}
    assert make(pool, tmp_path / "out", seed=5).seconds.keys() == {"pool", "select", "final-check"}
    never = RowFilter("never", "drops nothing", _never)
    same_rows = make(pool, tmp_path / "out", replace(SMALL, row_filters=(*SMALL.row_filters, never)))
    assert same_rows.seconds.keys() == {"pool", "screen"}  # the rows that go on are the same
    fewer = make(pool, tmp_path / "out", replace(SMALL, row_filters=(*SMALL.row_filters, replace(never, drops=_some))))
    assert {"screen", "traces", "quality", "select"} <= fewer.seconds.keys()
    assert not {"deduplicate", "decontaminate"} & fewer.seconds.keys()


def _never(row: Row) -> bool:
    return False


def _always(row: Row) -> bool:
    return True


def _some(row: Row) -> bool:
    return row.id < "2"


def test_a_contaminated_set_is_not_exported(pool: Path, tmp_path: Path) -> None:
    @dataclass
    class Leaking:
        teacher: MockTeacher

        @property
        def settings(self) -> Any:
            return {"leaks": True}

        @property
        def samples(self) -> int:
            return 1

        def ask(self, rows: Sequence[Row]) -> Iterator[Trace | Failure]:
            for found in self.teacher.ask(rows):
                if isinstance(found, Trace) and found.row < "3":
                    found = replace(found, thinking=f"I know this one. {LEAK} It is well known.")
                yield found

    who = models(Leaking(MockTeacher(words=20)))
    recipe = replace(SMALL, select=Everything(), difficulty=None)
    with pytest.raises(UsageError, match="hold benchmark questions: contaminated:math500#12"):
        make(pool, tmp_path / "out", recipe, who)
    assert not (tmp_path / "out" / "s1k").exists()
    done = make(pool, tmp_path / "out", recipe, who, drop_contaminated=True)
    records = [json.loads(line) for line in (done.directory / "train.jsonl").read_text().splitlines()]
    assert records and all(LEAK not in record["text"] for record in records)
    assert done.funnel.steps[-1].reasons["contaminated:math500"]


def test_a_set_of_no_rows_replaces_nothing(pool: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(pool, out)
    before = contents(out / "s1k")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    nothing = write(tmp_path / "nothing.jsonl", [{"nothing": 1}] * 3)
    for one, wanted in ((empty, "the pool holds no records"), (nothing, "pool: no_question 3")):
        with pytest.raises(UsageError, match=wanted) as told:
            make(one, out)
        assert "is as it was" in told.value.hint
    drops_all = RowFilter("all", "drops everything", _always)
    with pytest.raises(UsageError, match=r"no row is left for the set s1k, so it is not written \(screen: all \d+, "):
        make(pool, out, replace(SMALL, row_filters=(drops_all,)))
    command = [sys.executable, "-m", "bide", "curate", "run", "random", "--pool", f"mine={empty}", "--out", str(out),
               "--teacher", "mock", "--without", "math500", "--without", "gpqa_diamond", "--without",
               "aime24"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "no row is left for the set random" in done.stderr
    assert contents(out / "s1k") == before and not (out / "random").exists()


def test_the_set_has_the_columns_of_s1k_and_the_reference_text(whole: Path) -> None:
    records = [json.loads(line) for line in (whole / "s1k" / "train.jsonl").read_text().splitlines()]
    assert pyarrow.parquet.read_table(whole / "s1k" / "train.parquet").to_pylist() == records
    assert list(pyarrow.parquet.read_table(whole / "s1k" / "train.parquet").column_names)[:8] == [
        "solution", "question", "cot_type", "source_type", "metadata", "cot", "thinking_trajectories", "attempt",
    ]  # fmt: skip
    for one in records:
        (thinking,) = one["thinking_trajectories"]
        # data/tokenization.py of the reference, by hand
        assert one["text"] == (
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{one['question']}<|im_end|>\n"
            f"<|im_start|>assistant\n<|im_start|>think\n{thinking}\n"
            f"<|im_start|>answer\nAnswer: {one['attempt']}<|im_end|>\n"
        )
        assert json.loads(one["metadata"]) == {}


def fates(done: Curated) -> dict[str, tuple[str, str]]:
    """Question -> (stage, reason) where it ended."""
    manifest = load_manifest(done.directory.parent, done.directory.name)
    rows = {row.id: row.question for row, _ in read_pool_file(manifest.pool)[1]}
    return {rows[row]: (stage, group(reason)) for row, stage, reason in statuses(manifest)}


def test_the_faithful_preset_holds_aime_against_nothing_and_sources_against_each_other(tmp_path: Path) -> None:
    shared = "the number of ways to climb nine steps by one or two"
    texts = {
        "math": [f"Find {shared} at a time.", "What is the least prime above one hundred, and why is it prime?"],
        "numina-math": [f"Tell {shared} with a rest.", f"Well: {LEAK[:70]}"],
        "aime": [
            f"Note {LEAK[:70]}",
            f"Give {shared} in a leap year.",
            "An integer is drawn from one to nine; is it odd?",
        ],
    }
    specs = []
    for name, questions_of in texts.items():
        rows = [{"question": text, "solution": "So it is.", "answer": "7", "source": "aops_forum", "Year": 1999}
                for text in questions_of]  # fmt: skip
        specs.append(f"{name}={write(tmp_path / f'{name}.jsonl', rows)}")
    faithful = replace(load_recipe("s1k-faithful"), against=("math500",), difficulty=None, select=Everything())
    who = Models(Sure(), [], Grader("none", "1", lambda pairs: [(True, "x")] * len(pairs)), ByWords())
    done = curate(faithful, pool_files(specs, licences={}), tmp_path / "out", who, BENCHMARK, log=io.StringIO())
    found = fates(done)
    assert {text: fate for text, fate in found.items() if fate[0] != "selected"} == {
        f"Tell {shared} with a rest.": ("cross-source", "earlier_source"),
        f"Well: {LEAK[:70]}": ("decontaminate", "contaminated:math500"),
    }
    other = replace(faithful, name="plain", late_sources=(), cross_source=None)
    done = curate(other, pool_files(specs, licences={}), tmp_path / "out", who, BENCHMARK, log=io.StringIO())
    assert {text for text, fate in fates(done).items() if fate[0] != "selected"} == {
        f"Well: {LEAK[:70]}", f"Note {LEAK[:70]}"
    }  # fmt: skip


@dataclass
class Sure:
    """A teacher that answers everything."""

    settings: Any = None
    samples: int = 1

    def __post_init__(self) -> None:
        self.settings = {"teacher": "sure"}

    def ask(self, rows: Sequence[Row]) -> Iterator[Trace | Failure]:
        for row in rows:
            yield Trace(row.id, "sure", 0, "I see.", "It is 7.", "stop", 2, 3)


@pytest.mark.parametrize(
    ("changes", "lost"),
    [
        ({}, {}),
        ({"require_graded": True}, {"ungraded"}),
        ({"require_correct": True}, {"ungraded", "wrong_answer"}),
    ],
)
def test_what_a_recipe_asks_of_grades(tmp_path: Path, changes: dict[str, bool], lost: set[str]) -> None:
    pool = write(tmp_path / "a.jsonl", [{"question": f"What is {n} plus two?", "answer": str(n)} for n in range(9)])
    verdicts = {0: True, 1: False, 2: None}
    grader = Grader("thirds", "1", lambda pairs: [(verdicts[int(row.answer or 0) % 3], "x") for row, _ in pairs])
    recipe = replace(load_recipe("full"), against=(), **changes)
    done = make(pool, tmp_path / "out", recipe, Models(Sure(), [], grader, ByWords()))
    reasons = Counter(reason for stage, reason in fates(done).values() if stage == "verify")
    assert reasons == Counter({reason: 3 for reason in lost})


def test_a_code_that_is_none_loses_the_row_only_as_s1_reads(tmp_path: Path) -> None:
    @dataclass
    class Judge:
        code: str | None
        how: str
        name: str = "judge"
        version: str = "1"

        def subjects(self, rows: Sequence[Row]) -> Iterator[tuple[str, str | None, str]]:
            for row in rows:
                yield row.id, self.code, self.how

    pool = write(tmp_path / "a.jsonl", [{"question": f"What is {n} plus two?", "answer": str(n)} for n in range(3)])
    recipe = replace(load_recipe("diverse"), against=())
    for number, (judge, reason) in enumerate([
        (Judge(None, "no_such_code:24"), ("subjects", "no_subject")),
        (Judge(None, "api_error:http_500"), ("subjects", "api_error:http_500")),
        (Judge("11", "judge"), ("selected", "")),
    ]):  # fmt: skip
        who = Models(Sure(), [], Grader("exact", "1", exact), judge)
        if reason[0] != "selected":
            with pytest.raises(UsageError, match=r"\(" + ": ".join(reason) + r" 3\)"):
                make(pool, tmp_path / f"out{number}", recipe, who)
            continue
        done = make(pool, tmp_path / f"out{number}", recipe, who)
        assert set(fates(done).values()) == {reason}


def test_two_teachers(pool: Path, tmp_path: Path) -> None:
    recipe = replace(load_recipe("s1k-1.1"), select=ByDomain(20), against=("math500",))
    with pytest.raises(UsageError, match="second teacher"):
        make(pool, tmp_path / "out", recipe)
    first = make(pool, tmp_path / "out")
    done = make(
        pool, tmp_path / "out", replace(recipe, select=SMALL.select), models(second=MockTeacher(seed=4, words=9))
    )
    ids = {
        json.loads(line)["id"]: json.loads(line) for line in (first.directory / "train.jsonl").read_text().splitlines()
    }
    for line in (done.directory / "train.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert record["first_thinking"] == ids[record["id"]]["thinking_trajectories"][0]
        assert record["thinking_trajectories"] != [record["first_thinking"]]
        assert record["thinking_trajectories"][0] in record["text"]


def test_history_tells_every_stage(whole: Path) -> None:
    manifest = load_manifest(whole)
    for row_id, stage, reason in statuses(manifest):
        if stage == "difficulty":
            row, _, said = history(manifest, row_id)
            assert row.id == row_id
            assert said[-1][0].stage == "difficulty" and said[-1][0].reason == reason
            assert [decision.stage for decision, _ in said][:3] == ["deduplicate", "decontaminate", "screen"]
            assert "solved" in said[-1][0].evidence
            break
    with pytest.raises(UsageError, match="no row"):
        history(manifest, "zz")
    with pytest.raises(UsageError, match="rows of the pool"):
        history(manifest, "")


def test_the_card_says_what_must_be_said(whole: Path) -> None:
    card = (whole / "s1k" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    for text in (
        "math500 | 1 |",
        "nonsense of a mock teacher",
        "licence of mine is not known",
        "| mine | 20 | train | unknown |",
    ):
        assert text in card, text


def test_views(whole: Path) -> None:
    found = funnel_of(load_manifest(whole))
    assert json.loads((whole / "s1k" / "funnel.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    assert (whole / "s1k" / "funnel.svg").read_text() == svg(found)
    for step in found.steps:
        assert f"{step.left:>9,}" in table(found) and step.stage in svg(found) and step.stage in html(found)
    assert "<script" not in html(found) and "http" not in html(found).replace("http://www.w3.org/2000/svg", "")


def test_reasons_are_grouped_without_what_names_a_row() -> None:
    assert group("duplicate:0123") == "duplicate"
    assert group("contaminated:math500#12") == "contaminated:math500"
    assert group("too_easy:small") == "too_easy:small"


def test_presets_and_recipes_of_ones_own(tmp_path: Path, pool: Path) -> None:
    assert all(load_recipe(name).name == name for name in PRESETS)
    with pytest.raises(UnknownNameError, match="s1kk"):
        load_recipe("s1kk")
    own = tmp_path / "mine.py"
    own.write_text(
        "from dataclasses import replace\nfrom bide.data.recipes import random\n"
        "from bide.data.selection import Random\nfrom bide.data.quality import RowFilter\n"
        "def odd(row):\n    return len(row.question) % 2 == 1\n"
        "def recipe():\n"
        "    filters = (RowFilter('odd', 'an odd number of characters', odd),)\n"
        "    return replace(random(), name='mine', select=Random(5), row_filters=filters, against=())\n"
    )
    done = make(pool, tmp_path / "out", load_recipe(str(own)))
    assert done.rows == 5 and done.directory.name == "mine"
    lines = (done.directory / "train.jsonl").read_text().splitlines()
    assert all(len(json.loads(line)["question"]) % 2 == 0 for line in lines)
    own.write_text("def recipe():\n    return 1 / 0\n")
    with pytest.raises(UsageError, match="ZeroDivisionError"):
        load_recipe(str(own))
    own.write_text("def recipe():\n    return 'x'\n")
    with pytest.raises(UsageError, match="returned str"):
        load_recipe(str(own))


def test_what_cannot_be_exported_is_refused_before_it_is_paid_for(pool: Path, tmp_path: Path) -> None:
    teacher = Counting(MockTeacher(words=10), Counter())
    with pytest.raises(UsageError, match="no chat template"):
        make(pool, tmp_path / "out", replace(SMALL, format="qwen3"), models(teacher))
    assert not teacher.asked
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    done = make(pool, tmp_path / "out", replace(SMALL, format="qwen3"), models(teacher), chat_template=template)
    for line in (done.directory / "train.jsonl").read_text().splitlines():
        one = json.loads(line)
        (thinking,) = one["thinking_trajectories"]
        assert one["text"] == f"<user>{one['question']}</><think>\n{thinking}\n</think>\n\n{one['attempt']}</>"


def test_two_processes_may_not_write_at_once(pool: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    out = tmp_path / "out"
    out.mkdir()
    with (out / "lock").open("a+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another bide"):
            make(pool, out)


def test_another_seed_is_another_set(pool: Path, tmp_path: Path) -> None:
    recipe = replace(SMALL, select=Random(20), difficulty=None)
    sets = [make(pool, tmp_path / "out", recipe, seed=seed).directory for seed in (0, 1)]
    assert [one.name for one in sets] == ["s1k", "s1k-seed1"]
    assert (sets[0] / "train.jsonl").read_bytes() != (sets[1] / "train.jsonl").read_bytes()
    with pytest.raises(UsageError, match="s1k, s1k-seed1"):
        load_manifest(tmp_path / "out")


def test_a_teachers_text_that_no_file_can_hold_is_a_reason(pool: Path, tmp_path: Path) -> None:
    """Any teacher's, also one that a user has written: half of a character in the first ten traces."""

    @dataclass
    class Halving(Counting):
        def ask(self, rows: Sequence[Row]) -> Iterator[Trace | Failure]:
            for number, found in enumerate(super().ask(rows)):
                if isinstance(found, Trace) and number < 10:
                    found = replace(found, thinking="\ud83d") if number % 2 else replace(found, answer="a\udc00")
                yield found

    recipe = replace(SMALL, select=Everything(), difficulty=None)
    done = make(pool, tmp_path / "out", recipe, models(Halving(MockTeacher(words=10), Counter())))
    (step,) = (step for step in done.funnel.steps if step.stage == "traces")
    assert 8 <= step.reasons["api_error:bad_text"]["mine"] <= 10  # the mock fails some requests by itself
