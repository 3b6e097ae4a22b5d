"""Tasks of reasoning-gym: the same everywhere, checked by their own verifiers, and no answer is run as code."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bide.data.gold import GYM_MARK as MARK
from bide.data.gym import Generated, Gym, LazyGym, final_answer, graded, parse
from bide.data.pool import pool_files, read_pool
from bide.data.quality import row_filter
from bide.data.records import Row
from bide.errors import UnknownNameError, UsageError

pytest.importorskip("reasoning_gym")
from bide.data.gym_worker import EVALUATES, is_harmless

SPEC = "reasoning-gym:gcd,word_ladder,isomorphic_strings,rush_hour:4@7"


def test_the_same_tasks_whatever_the_hash_seed_of_the_process(tmp_path: Path) -> None:
    """word_ladder and isomorphic_strings of reasoning-gym 0.1.25 differ from process to process by themselves."""
    code = (
        "import sys; from bide.data.pool import *; from bide.data.stages import row_hash\n"
        f"pool = read_pool(pool_files([{SPEC!r}], licences={{}}))\n"
        "print(*[row_hash(row) for row in pool.rows])"
    )
    made = {
        subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True,
                       text=True, check=True).stdout
        for seed in ("1", "77")
    }  # fmt: skip
    assert len(made) == 1 and len(made.pop().split()) == 16


def test_rows_say_what_they_are() -> None:
    files = pool_files([SPEC], licences={})
    assert [file.source for file in files][:2] == ["reasoning-gym/gcd", "reasoning-gym/word_ladder"]
    assert files[0].revision is not None and files[0].revision.endswith(", seed 7")
    rows = read_pool(files).rows
    assert {(row.split, row.licence) for row in rows} == {("train", "Apache-2.0")}
    (first, *_) = [row for row in rows if row.source == "reasoning-gym/gcd"]
    assert first.answer and first.answer.isdigit() and first.metadata["cot_type"] == "puzzle"
    without = [row for row in rows if row.answer is None]  # rush_hour has no gold answer, but a verifier
    assert len(without) == 4 and not row_filter("no_solution").drops(without[0])
    assert read_pool(pool_files(["reasoning-gym:gcd:4@99"], licences={})).rows[0].id not in {row.id for row in rows}


def test_the_gym_verifies_its_own_rows_and_the_rule_the_others() -> None:
    rows = read_pool(pool_files(["reasoning-gym:gcd,countdown,n_queens:3"], licences={})).rows
    other = Row("0", "2+2?", None, "4", "mine", "train", "MIT")
    asked: list[int] = []

    def rule(pairs):  # type: ignore[no-untyped-def]
        asked.append(len(pairs))
        return [(text == row.answer, "rule") for row, text in pairs]

    with LazyGym() as gym:
        grade = graded(rule, gym)
        right = [(row, f"I think.\n<answer>{row.answer}</answer>") for row in rows]
        assert [found for found, _ in grade([(other, "4"), *right])] == [True] * 10
        assert asked == [1]
        assert [found for found, _ in grade([(other, "5"), *((row, "\\boxed{7}") for row in rows)])] == [False] * 10
        (ladder,) = [row for row in rows if row.source.endswith("countdown")][:1]
        assert grade([(ladder, "__import__('os').abort()")]) == [(None, "would be run as code")]


def test_a_verifier_that_hangs_is_ended() -> None:
    with Gym(deadline=1.0) as gym:
        (row,) = read_pool(pool_files(["reasoning-gym:countdown:1"], licences={})).rows
        assert gym.score(row, "(" * 20 + "9" + "**9)" * 20) == (None, "verifier: timeout")
        assert gym.score(row, row.answer or "") == (1.0, "verifier")  # a new process answers


@pytest.mark.parametrize(
    "text", ["x**2 + 3*x + C", "[[0, 1], [2, 3]]", "sin(x)/2", "['A','B']", "_ Q _\nQ _ _", "5*(3+4)/2 - 1.5"]
)
def test_answers_may_be_read(text: str) -> None:
    assert is_harmless(text)


@pytest.mark.parametrize(
    "text", ["exit()", "x.__class__", "open('x')", "(lambda: 1)()", "9**9**9", "9**99", "f'{x}'", "1" * 501, "x.real"]
)
def test_code_may_not(text: str) -> None:
    assert not is_harmless(text)


@example("_9")
@example("a9a")
@example("x9 + a")
@given(st.text(alphabet="axz_.()[]'\"*9 ", max_size=30))
def test_what_may_be_evaluated_reaches_nothing(text: str) -> None:
    if is_harmless(text):
        try:
            tree = compile(text, "answer", "eval")
        except (SyntaxError, ValueError):
            return
        letters = [[one for one in name if one.isalpha()] for name in tree.co_names]
        assert not [name for name in letters if len(name) > 1], "what Python has to reach has longer names"


def test_every_task_that_evaluates_is_known() -> None:
    """Held against the text of the installed package."""
    import reasoning_gym

    found = set()
    for path in Path(reasoning_gym.__file__).parent.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "eval(answer)" in text or "parse_expr(answer" in text:
            found.add(path.stem)
    assert found == EVALUATES


@pytest.mark.parametrize(
    "spec", ["reasoning-gym:gcd", "reasoning-gym:gcd:0", "reasoning-gym::5", "reasoning-gym:gcd:x"]
)
def test_specifications(spec: str) -> None:
    with pytest.raises(UsageError, match="not tasks"):
        parse(spec)
    assert parse("reasoning-gym:a,b:3@5") == [Generated("a", 3, 5), Generated("b", 3, 5)]
    with pytest.raises(UnknownNameError, match="gcdd"):
        read_pool(pool_files(["reasoning-gym:gcdd:3"], licences={}))


def test_final_answers() -> None:
    assert final_answer("so <answer> 12 </answer>.") == "12"
    assert final_answer("\\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
    assert final_answer("Hm.\nThe answer: 5\n") == "5"
    assert final_answer(" 7 ") == "7"


@pytest.mark.parametrize("page", ["README.md", "docs/curate.md"])
def test_the_line_that_is_said_to_need_no_network_needs_none(page: str, tmp_path: Path) -> None:
    """As it stands on the page, in an empty directory, by somebody who has logged in nowhere."""
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("bide curate run") and "--without all" in line)
    nowhere = "http://127.0.0.1:9"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HTTPS_PROXY": nowhere, "HTTP_PROXY": nowhere}
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "BIDE_"))} | offline
    here = tmp_path / "here"
    here.mkdir()
    command = [sys.executable, "-m", *shlex.split(line, comments=True)]
    done = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (next(here.glob("*/s1k")) / "train.parquet").stat().st_size > 10_000
    part = command[: command.index("--without")] + command[command.index("--without") + 2 :]
    done = subprocess.run(part, cwd=here, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2 and "--without math500 leaves it out" in done.stderr


def test_some_of_the_tasks_are_the_first_of_each_kind() -> None:
    """What is made and not wanted must not be taken for tasks of the next kind."""
    files = pool_files(["reasoning-gym:gcd,chain_sum:9"], licences={})
    all_rows = {(row.source, row.metadata[MARK]["index"]): row.question for row in read_pool(files).rows}
    some = {(row.source, row.metadata[MARK]["index"]): row.question for row in read_pool(files, limit=3).rows}
    assert some == {place: question for place, question in all_rows.items() if place[1] < 3} and len(some) == 6
