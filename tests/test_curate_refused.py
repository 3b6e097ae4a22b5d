"""Each record that is no row has an id, a reason and a place, which are those of the record that stands there."""

from __future__ import annotations

import csv
import io
import json
import random
import tracemalloc
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click.testing
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bide.cli.curate import curate as curate_group
from bide.data.funnel import endings, funnel_of, load_manifest
from bide.data.mock_teacher import MockTeacher, exact
from bide.data.pool import pool_files, read_pool
from bide.data.recipes import full
from bide.data.records import row_id
from bide.data.refused import Refusals, read_refused
from bide.data.roles import ByWords, Grader, Models
from bide.data.run import Curated, curate
from bide.data.sources import SOURCES
from bide.errors import BideError, UsageError

RECIPE = replace(full(), against=(), near_duplicates=None, row_filters=(), trace_filters=())


def write(path: Path, records: Sequence[Mapping[str, Any]], blank: int = 0) -> Path:
    """`blank`: before every so manieth line of JSON stands an empty one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, sorted({name for record in records for name in record} | {"x"}))
            writer.writeheader()
            writer.writerows(records)
    elif path.suffix == ".parquet":
        names = {name for record in records for name in record} | {"x"}
        columns = {name: [None if (v := record.get(name)) is None else str(v) for record in records] for name in names}
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    else:
        lines = [("\n" if blank and n % blank == 0 else "") + json.dumps(one) + "\n" for n, one in enumerate(records)]
        path.write_text("".join(lines), encoding="utf-8")
    return path


def standing_at(path: Path, number: int) -> Mapping[str, Any]:
    """The record at a place, found as a user would."""
    if path.suffix == ".jsonl":  # sed -n 12p
        found: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8").split("\n")[number - 1])
        return found
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))[number - 1]  # type: ignore[no-any-return]
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))[number - 1]
    return pyarrow.parquet.read_table(path).to_pylist()[number - 1]  # type: ignore[no-any-return]


def numbers_in(path: Path) -> list[int]:
    """The numbers of all records of a file."""
    if path.suffix == ".jsonl":
        return [n for n, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1) if line.strip()]
    if path.suffix == ".parquet":
        return list(range(1, pyarrow.parquet.read_table(path).num_rows + 1))
    with path.open(newline="", encoding="utf-8") as file:
        found = json.load(file) if path.suffix == ".json" else list(csv.DictReader(file))
    return list(range(1, len(found) + 1))


def make(out: Path, specs: Sequence[str], limit: int | None = None) -> Curated:
    who = Models(MockTeacher(words=5), [], Grader("exact", "1", exact), ByWords())
    return curate(RECIPE, pool_files(specs, licences={}), out, who, [], limit=limit, log=io.StringIO())


def read(out: Path, specs: Sequence[str], **options: Any) -> tuple[Any, dict[str, Any]]:
    """The pool, and what was refused by its id."""
    with Refusals(out) as refusals:
        pool = read_pool(pool_files(specs, licences={}), tell=refusals.add, **options)
        path = refusals.keep()
    found = list(read_refused(path)) if path else []
    assert len({one.id for one in found}) == len(found) == refusals.count, "each one once"
    assert not list(out.glob("*.new"))
    return pool, {one.id: one for one in found}


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file() and path.name not in ("timing.jsonl", "lock")]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@st.composite
def records(draw: st.DrawFn, source: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 12))):
        question = f"What is {draw(st.integers(0, 9))} plus one?"
        kind = draw(st.sampled_from(["row", "row", "row", "none", "half", "ruled"]))
        record: dict[str, Any] = {"question": question, "answer": draw(st.sampled_from(["1", "2"])), "Year": "1999"}
        if kind == "none":
            record = {"nothing": "1", "Year": "1999"}
        elif kind == "half":
            record["answer"] = "a\ud83d"
        elif kind == "ruled":
            record["Year"] = "2024"  # which is a reason in the source aime and in no other
        if draw(st.booleans()):
            record["id"] = str(draw(st.integers(0, 99)))
        found.append(record)
    return found


def expected(record: Mapping[str, Any], source: str) -> str:
    if source == "aime" and record["Year"] == "2024":
        return "source_rule:year_after_2021"
    if not record.get("question"):
        return "no_question"
    assert record["answer"] == "a\ud83d"
    return "bad_text"


NO_HALF = (".csv", ".parquet")
"""Files that cannot hold half of a character."""


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_each_record_is_a_row_or_has_one_entry_that_tells_its_place(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("places")
    names = data.draw(st.lists(st.sampled_from(["aime", "mine", "other/part"]), min_size=1, max_size=3, unique=True))
    specs, paths, count = [], {}, 0
    for name in names:
        suffix = data.draw(st.sampled_from([".jsonl", ".json", ".csv", ".parquet"]))
        made = data.draw(records(name))
        if suffix in NO_HALF:
            made = [{key: value for key, value in one.items() if value != "a\ud83d"} for one in made]
        file = f"{name.replace('/', '-')}{suffix}"
        paths[f"{name}:{file}"] = write(directory / file, made, data.draw(st.integers(0, 3)))
        specs.append(f"{name}={directory / file}")
        count += len(made)
    pool, refused = read(directory / "stages", specs)
    assert pool.records == count == len(pool.rows) + len(refused)
    rows = {row.id: row for row in pool.rows}
    assert Counter((one.source, one.reason) for one in refused.values() if one.reason != "same_question") == (
        pool.refused
    )
    copies = Counter((one.evidence["row"], one.source) for one in refused.values() if one.reason == "same_question")
    assert copies == Counter((row, source) for row, sources in pool.copies.items() for source in sources)
    for one in refused.values():
        name, _, number = one.id.rpartition(":")
        record, evidence = standing_at(paths[name], int(number)), one.evidence
        unit = "line" if paths[name].suffix == ".jsonl" else "record"
        assert (evidence["source"], evidence["file"], evidence[unit]) == (one.source, paths[name].name, int(number))
        if one.reason == "same_question":
            assert row_id(record["question"]) == evidence["row"] and evidence["row"] in rows
            continue
        assert evidence.get("id") == (record.get("id") or None)
        assert one.reason == expected(record, one.source)
    # And the other way round: what no entry names is a row, one for each question.
    stood = [
        (path, number)
        for name, path in paths.items()
        for number in numbers_in(path)
        if f"{name}:{number}" not in refused
    ]
    assert sorted(row_id(standing_at(*place)["question"]) for place in stood) == sorted(rows)


def test_the_record_that_loses_is_the_one_that_is_named(tmp_path: Path) -> None:
    """A better record with the same question comes late: the entry is that of the one that was there."""
    specs = []
    for name, question, solution in (("a", "Q?", None), ("b", "Q? ", "S"), ("c", "Q?", None)):
        path = write(
            tmp_path / f"{name}.jsonl", [{"question": "No?"}] * 2 + [{"question": question, "solution": solution}]
        )
        specs.append(f"{name}={path}")
    pool, refused = read(tmp_path / "out", specs)
    (row,) = (row for row in pool.rows if row.question == "Q?")
    assert row.source == "b"
    assert sorted(one for one in refused if refused[one].evidence["row"] == row.id) == ["a:a.jsonl:3", "c:c.jsonl:3"]
    assert sorted(one for one in refused if one[-1] != "3") == [
        f"{name}:{name}.jsonl:{number}" for name in "abc" for number in (1, 2) if f"{name}{number}" != kept(pool)
    ]


def kept(pool: Any) -> str:
    """Of the six records "No?", all alike, the one of the first source is the row; the last of its two, as ever."""
    (row,) = (row for row in pool.rows if row.question == "No?")
    return f"{row.source}2"


def test_records_that_are_not_drawn_are_named_by_place_and_question(tmp_path: Path) -> None:
    take = SOURCES["xword"].take
    assert take is not None
    rows = [{"input": f"### Clue: {number} (3)", "output": "abc"} for number in range(take + 30)]
    path = write(tmp_path / "x.jsonl", rows)
    pool, refused = read(tmp_path / "out", [f"xword={path}"])
    assert {one.reason for one in refused.values()} == {"source_rule:not_drawn"} and len(refused) == 30
    ids = {row.id for row in pool.rows}
    for one in refused.values():
        clue = standing_at(path, one.evidence["line"])["input"].partition("### Clue: ")[2]
        question = "Solve the crossword puzzle. You are presented with a clue as input and the number of letters in "
        assert one.evidence["row"] == row_id(f"{question}brackets.\n\n{clue}") not in ids


def test_the_order_of_files_makes_no_difference_and_no_two_have_one_name(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [{"x": 1}, {"question": "Q?"}, {"question": "Q?"}]
    paths = [write(tmp_path / name / "train.jsonl", bad[place:]) for place, name in enumerate(("one", "two"))]
    paths.append(write(tmp_path / "three" / "train.jsonl", bad))  # the same bytes as the first
    specs = [f"mine={path}" for path in paths]
    bytes_of = set()
    for number, order in enumerate((specs, specs[::-1], [specs[1], specs[2], specs[0]])):
        pool, refused = read(tmp_path / f"out{number}", order)
        assert pool.records == 8 and len(refused) == 7
        (path,) = (tmp_path / f"out{number}").iterdir()
        bytes_of.add((path.name, path.read_bytes()))
    assert len(bytes_of) == 1
    files = {one.rpartition(":")[0] for one in refused}
    assert len(files) == 3 and sum(name.endswith("#2") for name in files) == 1
    alone, refused = read(tmp_path / "alone", specs[:1])
    assert set(refused) == {"mine:train.jsonl:1", "mine:train.jsonl:2"} and alone.records == 3


def test_what_is_refused_does_not_stay_in_memory(tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 20_000):
        path = write(tmp_path / f"{count}.jsonl", [{"x": number} for number in range(count)])
        with Refusals(tmp_path / "out") as refusals:
            files = pool_files([str(path)], licences={})
            tracemalloc.start()
            read_pool(files, tell=refusals.add)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            assert refusals.count == count
    assert peaks[1] < peaks[0] + 100_000, peaks  # 18,000 entries more have 2.5 MB on the disk


def test_a_run_that_ends_in_the_middle_of_a_file_leaves_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"x": 1}] * 5)
    path.write_text(path.read_text() + '{"quest')
    with pytest.raises(UsageError, match="line 6"):
        make(tmp_path / "out", [str(path)])
    assert not contents(tmp_path / "out")


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full_disk = Path("/dev/full")
    if not full_disk.exists():
        pytest.skip("needs /dev/full, which is Linux's")
    (tmp_path / "refused.jsonl.new").symlink_to(full_disk)
    path = write(tmp_path / "in" / "a.jsonl", [{"x": 1}] * 5)
    with pytest.raises(BideError, match="cannot be written: No space left"), Refusals(tmp_path) as refusals:
        read_pool(pool_files([str(path)], licences={}), tell=refusals.add)
        refusals.keep()
    assert [one.name for one in tmp_path.iterdir()] == ["in"]


# As a user asks for it


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("asked")
    draw = random.Random(2)
    rows = [{"question": f"What is {n} plus {draw.randrange(99)}?", "answer": "1", "id": f"m-{n}"} for n in range(30)]
    rows[3:3] = [{"id": "m-nothing", "text": "y"}, dict(rows[0])]
    rows += [{"question": "Half?", "note": "\ud83d"}] * 2
    mine = write(directory / "train.jsonl", rows, blank=4)
    aime = write(directory / "aime.csv", [{"Question": f"How many are {n}?", "Year": 2015 + n} for n in range(12)])
    make(directory / "out", [f"mine={mine}", f"aime={aime}"])
    return directory / "out"


def ask(*arguments: str | Path) -> click.testing.Result:
    return click.testing.CliRunner().invoke(curate_group, list(map(str, arguments)))


def test_history_answers_for_records_that_are_no_rows(out: Path) -> None:
    manifest = load_manifest(out)
    refused = [one for one in endings(manifest) if one[2] == "pool"]
    assert Counter(reason for *_, reason in refused) == {
        "no_question": 1, "same_question": 1, "bad_text": 2, "source_rule:year_after_2021": 5
    }  # fmt: skip
    for one, source, stage, reason in refused:
        for wanted in (one, one.partition(":")[2]):
            told = json.loads(ask("history", out, wanted, "--json").stdout)
            (said,) = told["stages"]
            assert told["record"] == one and (said["stage"], said["reason"]) == (stage, reason)
            assert said["evidence"]["source"] == source
        text = ask("history", out, one).stdout
        assert text.startswith(f"{one}  {source}: no row") and text.endswith(f"status: {reason} at pool\n")
    told = json.loads(ask("history", out, "m-nothing", "--json").stdout)
    assert told["record"] == "mine:train.jsonl:5"  # blank lines stand before the first and the fifth
    assert told["stages"][0]["evidence"]["columns"] == ["id", "text"]


def test_history_of_a_row_names_the_records_with_its_question(out: Path) -> None:
    (place,) = (one for one, *_, reason in endings(load_manifest(out)) if reason == "same_question")
    row = json.loads(ask("history", out, place, "--json").stdout)["stages"][0]["evidence"]["row"]
    assert f"the same question also came from {place}" in ask("history", out, row).stdout


@pytest.mark.parametrize("wanted", ["train.jsonl:999", "jsonl:5", ":5", "5", "m-99", "zz", ""])
def test_history_of_nothing_is_an_error(out: Path, wanted: str) -> None:
    assert isinstance(ask("history", out, wanted).exception, UsageError)


def test_rows_lists_every_record_once_and_counts_as_the_funnel(out: Path) -> None:
    lines = [json.loads(line) for line in ask("rows", out, "--json").stdout.splitlines()]
    counted = funnel_of(load_manifest(out))
    assert len(lines) == len({line["id"] for line in lines}) == counted.records
    told = Counter((line["stage"], line["reason"], line["source"]) for line in lines)
    wanted = Counter({("selected", "", source): count for source, count in counted.selected.items()})
    for step in counted.steps:
        for reason, sources in step.reasons.items():
            wanted.update({(step.stage, reason, source): count for source, count in sources.items()})
    assert told == wanted
    some = ask("rows", out, "--reason", "bad_text").stdout.splitlines()
    assert len(some) == 2 and all(line.endswith("\tpool\tbad_text") for line in some)
    assert len(ask("rows", out, "--stage", "pool", "--source", "aime").stdout.splitlines()) == 5
    nothing = ask("rows", out, "--reason", "no_such").exception
    assert isinstance(nothing, UsageError) and "pool: bad_text (2)" in str(nothing.hint)


def test_the_file_of_a_run_is_known_again_and_may_be_missed(out: Path, tmp_path: Path) -> None:
    specs = [f"mine={out.parent / 'train.jsonl'}", f"aime={out.parent / 'aime.csv'}"]
    make(tmp_path / "out", specs)
    before = contents(tmp_path / "out")
    (path,) = (tmp_path / "out" / "stages").glob("refused-*.jsonl")
    stamp = path.stat().st_mtime_ns
    make(tmp_path / "out", specs[::-1])
    assert contents(tmp_path / "out") == before == contents(out) and path.stat().st_mtime_ns == stamp
    assert json.loads(before["full/run.json"])["refused"] == f"stages/{path.name}"
    path.unlink()
    gone = ask("rows", tmp_path / "out").exception
    assert isinstance(gone, UsageError) and "is gone" in str(gone)
    run = tmp_path / "out" / "full" / "run.json"
    run.write_text(json.dumps({k: v for k, v in json.loads(run.read_text()).items() if k != "refused"}))
    old = ask("rows", tmp_path / "out").exception
    assert isinstance(old, UsageError) and "only counted" in str(old)
    make(tmp_path / "out", specs)
    assert contents(tmp_path / "out") == before


def test_a_pool_that_refuses_nothing_has_no_such_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"question": f"What is {n}?", "answer": "1"} for n in range(5)])
    make(tmp_path / "out", [str(path)])
    assert "refused" not in json.loads((tmp_path / "out" / "full" / "run.json").read_text())
    assert not [name for name in contents(tmp_path / "out") if "refused" in name]
    assert len(ask("rows", tmp_path / "out").stdout.splitlines()) == 5


def test_limit_counts_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"x": 1}] * 9, blank=2)
    pool, refused = read(tmp_path / "out", [str(path)], limit=3)
    assert pool.records == 3 and list(refused) == ["a:a.jsonl:2", "a:a.jsonl:3", "a:a.jsonl:5"]
