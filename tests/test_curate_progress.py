"""How far a run is, as a terminal and a log are told; and that telling changes nothing."""

from __future__ import annotations

import io
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from bide.data import cross_source, duplicates, live_line
from bide.data.clusters import Clusters
from bide.data.export import COLUMNS, write_set
from bide.data.live_line import LiveLine, StageLine, silent, watched
from bide.data.mock_teacher import MockStudent, MockTeacher, exact
from bide.data.pool import pool_files, read_pool
from bide.data.pool_files import read_numbered
from bide.data.recipes import s1k
from bide.data.records import Decision, Row, row_id
from bide.data.roles import ByWords, Grader, Models
from bide.data.run import curate
from bide.data.selection import ByDomain
from bide.data.stages import Outcome, Stage, StageStore
from bide.errors import UsageError

COUNT = 1200
WORDS = ["".join(random.Random(n).choices("abcdefgh", k=6)) for n in range(400)]
QUESTIONS = [f"What of {' '.join(random.Random(n).choices(WORDS, k=12))}?" for n in range(COUNT)]
ROWS = [Row(row_id(one), one, None, "1", f"source{n % 2}", "train", "MIT") for n, one in enumerate(QUESTIONS)]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rises(shares: list[float], *, least: int, leap: float = 0.6) -> None:
    """Told often enough, always more, never beyond the whole, and in no great `leap`s."""
    leaps = [after - before for before, after in zip([0.0, *shares], [*shares, 1.0])]
    assert len(shares) >= least and min(leaps) >= -1e-9 and max(leaps) < leap, shares


def test_the_time_that_is_left_is_what_the_speed_so_far_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    now = [100.0]
    terminal, file = Terminal(), io.StringIO()
    for log in (terminal, file):
        with StageLine(log, clock=lambda: now[0]) as line:
            line.begin("deduplicate", 4000)
            for done in range(1, 5):
                now[0] += 3.0
                line.at(done / 4)
    shown = terminal.getvalue().split("\r\x1b[2K")
    assert [one.count("\u2588") for one in shown] == [0, 6, 12, 18, 24, 0]
    assert shown[3].endswith("deduplicate: 3,000/4,000 rows, about 3 s left, 333 rows/s")
    assert "\n" not in terminal.getvalue() and shown[-1] == ""
    assert file.getvalue().splitlines() == [
        "deduplicate: 2,000/4,000 rows, about 6 s left, 333 rows/s",
        "deduplicate: 4,000/4,000 rows, 333 rows/s",
    ]


def test_a_log_gets_a_line_in_five_seconds_however_often_it_is_told() -> None:
    now = [0.0]
    file = io.StringIO()
    line = StageLine(file, clock=lambda: now[0])
    line.begin("pool", 10_000_000, "MB")
    for n in range(10_000):
        now[0] = (n + 1) / 1000
        line.at((n + 1) / 10_000)
    assert file.getvalue().splitlines() == ["pool: 5/10 MB, about 5 s left, 1 MB/s", "pool: 10/10 MB, 1 MB/s"]


def test_what_was_asked_before_does_not_count_as_time() -> None:
    now = [0.0]
    line = StageLine(io.StringIO(), clock=lambda: now[0])
    line.begin("subjects", 1000)
    now[0] = 3600.0
    line.at(0.0)
    now[0] += 1.0
    line.at(0.5)
    line.at(0.25)  # not taken back
    assert line.line() == "subjects: 500/1,000 rows, about 1 s left, 500 rows/s"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_reading_tells_how_much_of_the_file_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    records = [{"question": one} for one in QUESTIONS]
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in records))
    elif suffix == ".json":
        path.write_text(json.dumps(records))
    elif suffix == ".csv":
        path.write_text("question\n" + "".join(f"{one}\n" for one in QUESTIONS))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    shares: list[float] = []
    places = []
    for number, _ in read_numbered(path, shares.append):
        places.append((number, len(shares)))
    rises(shares, least=4)
    assert [number for number, _ in places] == list(range(1, COUNT + 1))
    for number, told in places:  # half of the file is told when about half is read; files are read some KB ahead
        if told:
            assert shares[told - 1] == pytest.approx(number / COUNT, abs=0.35)
    whole: list[float] = []
    specs = [f"one={path}", f"two={path}", "three=" + str(path)]
    read_pool(pool_files(specs, licences={}), tick=whole.append)
    rises(whole, least=12)
    assert whole[len(whole) // 3 - 1] == pytest.approx(1 / 3, abs=0.05)


def stage_of_duplicates(tick: Callable[[float], None]) -> Any:
    return duplicates.decide(ROWS, tick=tick)


def stage_across_sources(tick: Callable[[float], None]) -> Any:
    return cross_source.decide(ROWS, lambda name: 0, tick=tick)


def stage_of_clusters(tick: Callable[[float], None]) -> Any:
    return list(Clusters(20).subjects_told(ROWS, tick))


@pytest.mark.parametrize(
    ("work", "leap"), [(stage_of_duplicates, 0.25), (stage_across_sources, 0.3), (stage_of_clusters, 0.6)]
)
def test_work_before_the_first_outcome_tells_how_far_it_is(
    work: Callable[[Callable[[float], None]], Any], leap: float
) -> None:
    shares: list[float] = []
    assert work(shares.append) == work(silent)
    rises(shares, least=6, leap=leap)


def test_outcomes_are_counted_but_of_stages_that_ask(tmp_path: Path) -> None:
    def outcomes(work: Any) -> Iterator[Outcome]:
        for row in work.rows:
            yield Outcome(Decision(row.id, "try", ""))

    shares: list[float] = []
    StageStore(tmp_path / "a").run(Stage("try", outcomes), ROWS, {}, tick=shares.append)
    assert shares == [pytest.approx(256 * n / COUNT) for n in range(1, COUNT // 256 + 1)]
    shares.clear()
    StageStore(tmp_path / "b").run(Stage("try", outcomes, asks=True), ROWS, {}, tick=shares.append)
    assert not shares


def test_the_export_tells_both_files(tmp_path: Path) -> None:
    records: Iterator[dict[str, Any]] = (
        {name: "x" if kind == "string" else None for name, kind in COLUMNS} for _ in range(COUNT)
    )
    shares: list[float] = []
    assert write_set(tmp_path, records, two_teachers=False, rows=COUNT, tick=shares.append) == COUNT
    rises(shares, least=8)


def run(directory: Path, log: io.StringIO) -> Path:
    pool = directory / "train.jsonl"
    directory.mkdir()
    pool.write_text("".join(json.dumps({"question": one, "answer": "1"}) + "\n" for one in QUESTIONS))
    students = [MockStudent("small", 0.3, samples=1)]
    who = Models(MockTeacher(words=9), students, Grader("exact", "1", exact), Clusters(20))
    recipe = replace(s1k(), select=ByDomain(600), against=(), cross_source=8)
    curate(recipe, pool_files([str(pool)], licences={}), directory / "out", who, [], log=log)
    return directory / "out"


def test_a_run_tells_of_every_stage_and_the_files_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, terminal = io.StringIO(), Terminal()
    plain = run(tmp_path / "plain", quiet)
    assert not [line for line in quiet.getvalue().splitlines() if "/s" in line], "too short a run for a log to be told"
    monkeypatch.setattr(live_line, "_EVERY_SECONDS_IN_PLACE", 0.0)
    told = run(tmp_path / "told", terminal)
    shown = re.findall(r"\r\x1b\[2K[\u2588\u2591]{24} ([a-z-]+): [\d,]+/([\d,]+) (rows|MB), ", terminal.getvalue())
    names = {name for name, _, _ in shown}
    assert names == {
        "pool", "deduplicate", "decontaminate", "cross-source", "screen", "quality", "verify", "subjects", "difficulty",
        "select", "final-check", "export",
    }  # fmt: skip
    assert re.findall(r"verify: (\d+)/", terminal.getvalue())[0] == "512", "a batch that is graded, before any outcome"
    lines = [one.rpartition("\r\x1b[2K")[2] for one in terminal.getvalue().split("\n")]
    assert lines == quiet.getvalue().split("\n"), "what stays on the terminal is what a log has"
    for name in ("train.jsonl", "train.parquet", "funnel.json"):
        assert (plain / "s1k" / name).read_bytes() == (told / "s1k" / name).read_bytes()


def test_an_error_stands_on_a_line_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_line, "_EVERY_SECONDS_IN_PLACE", 0.0)
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps({"question": one}) + "\n" for one in QUESTIONS) + "{")
    who = Models(MockTeacher(), [], Grader("exact", "1", exact), ByWords())
    terminal = Terminal()
    with pytest.raises(UsageError, match="not JSON"):
        recipe = replace(s1k(), difficulty=None, against=())
        curate(recipe, pool_files([str(path)], licences={}), tmp_path / "out", who, [], log=terminal)
    assert "pool: " in terminal.getvalue() and terminal.getvalue().endswith("\r\x1b[2K")


def test_nobody_is_told_nothing() -> None:
    assert list(watched(iter(range(600)), 600, silent)) == list(range(600))
    for kind in LiveLine.__subclasses__():
        line = kind()
        line.start_clock()
        line.changed()
        line.end()
