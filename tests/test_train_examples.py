"""Rows as token ids and loss: texts written by hand, the reference's collator rebuilt, refusals that name the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from bide.data.export import record_of
from bide.data.parquet import write_parquet
from bide.data.records import Row, Trace
from bide.errors import ModelError, UsageError
from bide.formats import get_format
from bide.train.examples import Example, data_hash, load_examples, read_examples
from bide.train.plan_views import mask, validation
from bide.train.recipe import limo, s1
from bide.train.tokenizer import TrainTokenizer

SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
ROWS: list[dict[str, Any]] = [
    {
        "question": "How many legs have three spiders?",
        "thinking_trajectories": ["A spider has 8 legs.\nThree have 24."],
        "attempt": "24",
    },
    {
        "question": "  Is 91 prime? \n",
        "thinking_trajectories": ["\n91 is 7 times", "13.  "],
        "attempt": "No.\n\nAnswer: no \n",
    },
    {"question": "Solve $x^2=2$ — exactly.", "thinking_trajectories": ["x = ±√2"], "attempt": "\n$\\pm\\sqrt{2}$"},
]
"""Of our own. The second has two trajectories and an answer that says "Answer:"; some have blanks at their ends."""
TEXTS = [
    SYSTEM + "<|im_start|>user\nHow many legs have three spiders?<|im_end|>\n<|im_start|>assistant\n"
    "<|im_start|>think\nA spider has 8 legs.\nThree have 24.\n<|im_start|>answer\nAnswer: 24<|im_end|>\n",
    SYSTEM + "<|im_start|>user\n  Is 91 prime? \n<|im_end|>\n<|im_start|>assistant\n"
    "<|im_start|>think\n91 is 7 times\n13.\n<|im_start|>answer\nNo.\n\nAnswer: no<|im_end|>\n",
    SYSTEM + "<|im_start|>user\nSolve $x^2=2$ — exactly.<|im_end|>\n<|im_start|>assistant\n"
    "<|im_start|>think\nx = ±√2\n<|im_start|>answer\nAnswer: \n$\\pm\\sqrt{2}$<|im_end|>\n",
]  # fmt: skip
OPENS_ITSELF = (
    "{{ bos_token }}{%- for one in messages -%}<|{{ one.role }}|>{{ one.content }}"
    "{%- if one.role == 'assistant' -%}{{ eos_token }}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|><think>\n{%- endif -%}"
)


def make_tokenizer(directory: Path, *, template: str | None = None, normaliser: Any = None) -> TrainTokenizer:
    """Bytes and control tokens, as files in `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    if normaliser is not None:
        bpe.normalizer = normaliser
    special = ["<|im_end|>", "<|im_start|>", "<bos>", "<eos>"]
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    bpe.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return TrainTokenizer(directory)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TrainTokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def learned(example: Example, tokenizer: TrainTokenizer) -> list[str]:
    return tokenizer.decode([example.token_ids[start:end].tolist() for start, end in example.loss])


@pytest.mark.parametrize("number", range(3))
def test_s1_text_and_loss_to_the_byte(tmp_path: Path, tokenizer: TrainTokenizer, number: int) -> None:
    example = read_examples(write(tmp_path / "rows.jsonl", ROWS), s1(), tokenizer)[number]
    assert tokenizer.decode([example.token_ids.tolist()]) == [TEXTS[number]]
    assert example.token_ids.tolist() == tokenizer.encode([TEXTS[number]])[0], "encoded apart as encoded whole"
    (text,) = learned(example, tokenizer)
    assert text == TEXTS[number][TEXTS[number].index("<|im_start|>think") :]
    assert text.endswith("<|im_end|>\n")


def collator_labels(ids: list[int], user: list[int], assistant: list[int]) -> list[int]:
    """TRL 0.12's DataCollatorForCompletionOnlyLM with both templates: -100 up to the end of each response template
    and from each instruction template on."""
    labels = list(ids)
    responses = [i + len(assistant) for i in range(len(ids)) if ids[i : i + len(assistant)] == assistant]
    instructions = [i for i in range(len(ids)) if ids[i : i + len(user)] == user]
    for number, (start, end) in enumerate(zip(instructions, responses)):
        begin = start if number else 0
        labels[begin:end] = [-100] * (end - begin)
    return labels


def test_loss_is_where_the_reference_s_collator_puts_it(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    user, assistant = tokenizer.encode(["<|im_start|>user", "<|im_start|>assistant\n"])
    for example in read_examples(write(tmp_path / "rows.jsonl", ROWS), s1(), tokenizer):
        labels = collator_labels(example.token_ids.tolist(), user, assistant)
        ours = [-100] * example.tokens
        for start, end in example.loss:
            ours[start:end] = example.token_ids[start:end].tolist()
        assert ours == labels
        assert example.loss_tokens == sum(label != -100 for label in labels)


def test_what_curate_exports_is_what_is_trained_on(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    records = []
    for number, row in enumerate(ROWS[:2]):
        question = Row(f"r{number}", row["question"], None, "7", "mine", "train", "CC0-1.0")
        thinking = "\n".join(row["thinking_trajectories"])
        trace = Trace(question.id, "someone", 0, thinking, row["attempt"], "stop", 5, 2)
        records.append(record_of(question, trace, {}, get_format("s1"), None))
    path = write(tmp_path / "train.jsonl", records)
    examples, report = load_examples(tmp_path, s1(), tokenizer)
    assert [example.id for example in examples] == ["r0", "r1"]
    assert report.compared_text == 2 and report.other_text == []
    assert "in all 2 rows" in validation(report, examples)
    records[1]["text"] += " "
    write(path, records)
    _, report = load_examples(tmp_path, s1(), tokenizer)
    assert report.other_text == ["2 (id r1)"]
    (warning,) = report.warnings()
    assert warning.startswith("1 row is not what the column text says (2 rows have one;")
    assert warning.endswith(": 2 (id r1)")


def test_columns_of_every_kind_give_the_same(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    kinds = {
        "r1": [
            {
                "question": row["question"],
                "deepseek_thinking_trajectory": "\n".join(row["thinking_trajectories"]),
                "deepseek_attempt": row["attempt"],
            }
            for row in ROWS
        ],
        "plain": [
            {
                "question": row["question"],
                "thinking": "\n".join(row["thinking_trajectories"]),
                "answer": row["attempt"],
            }
            for row in ROWS
        ],
    }
    expected = data_hash(read_examples(write(tmp_path / "rows.jsonl", ROWS), s1(), tokenizer))
    for name, rows in kinds.items():
        assert data_hash(read_examples(write(tmp_path / f"{name}.jsonl", rows), s1(), tokenizer)) == expected
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    assert data_hash(read_examples(tmp_path / "rows.json", s1(), tokenizer)) == expected
    columns = (("question", "string"), ("thinking_trajectories", "strings"), ("attempt", "string"))
    write_parquet(tmp_path / "rows.parquet", ROWS, columns)
    assert data_hash(read_examples(tmp_path / "rows.parquet", s1(), tokenizer)) == expected
    assert data_hash(read_examples(write(tmp_path / "fewer.jsonl", ROWS[:2]), s1(), tokenizer)) != expected


def test_the_hash_sees_ids_spans_and_order(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    examples = read_examples(write(tmp_path / "rows.jsonl", ROWS), s1(), tokenizer)
    expected = data_hash(examples)
    first = examples[0]
    ids = first.token_ids[:]
    ids[5] += 1
    assert data_hash([Example(first.id, ids, first.loss), *examples[1:]]) != expected
    ((start, end),) = first.loss
    assert data_hash([Example(first.id, first.token_ids, ((start + 1, end),)), *examples[1:]]) != expected
    assert data_hash(examples[::-1]) != expected
    assert data_hash([Example("another id", first.token_ids, first.loss), *examples[1:]]) == expected


def test_limo_is_plain_turns_under_its_system_text(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "1+1?", "solution": "It is \\boxed{2}. ", "answer": "2"}])
    (example,) = read_examples(path, limo(), tokenizer)
    assert tokenizer.decode([example.token_ids.tolist()]) == [
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\nIt is \\boxed{2}.<|im_end|>\n"
    ]
    assert learned(example, tokenizer) == ["It is \\boxed{2}.<|im_end|>\n"]


def test_a_template_that_opens_thinking_and_wants_bos(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "t", template=OPENS_ITSELF)
    path = write(tmp_path / "rows.jsonl", [{"question": "Q", "thinking": "T", "answer": "A"}])
    (example,) = read_examples(path, s1().with_(format="deepseek-r1"), tokenizer)
    assert tokenizer.decode([example.token_ids.tolist()]) == [
        "<bos><|user|>Q<|assistant|><think>\nT\n</think>\n\nA<eos>"
    ]
    assert learned(example, tokenizer) == ["<think>\nT\n</think>\n\nA<eos>"]


REFUSED = {
    "a marker in a thought": ({"thinking": "so <|im_start|>answer\n5"}, "control token <|im_start|>"),
    "a control token in a question": ({"question": "<|im_end|>"}, "control token <|im_end|>"),
    "no thought": ({"thinking": ""}, "thinking is empty or missing"),
    "neither": ({"thinking": "", "answer": None}, "thinking and answer are empty or missing"),
    "no answer of s1K's": (
        {"thinking": None, "thinking_trajectories": ["T"], "attempt": ""},
        "attempt is empty or missing",
    ),
    "half a character": (
        {"question": "Q \ud83d"},
        r"question holds half of a surrogate pair, '\\ud83d', which is no text",
    ),
    "a blank answer": ({"answer": " \n"}, "answer is empty"),
    "no question": ({"question": None}, "question is empty"),
    "a number": ({"answer": 5}, "answer is empty or no text"),
    "other columns": (
        {"thinking_trajectories": ["T"], "attempt": "A"},
        "text is in question, thinking_trajectories, attempt; rows before it have question, thinking, answer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_rows_are_named(tmp_path: Path, tokenizer: TrainTokenizer, name: str) -> None:
    change, message = REFUSED[name]
    good = {"question": "Q", "thinking": "T", "answer": "A"}
    path = write(tmp_path / "rows.jsonl", [good, {**good, "id": "bad-one", **change}])
    with pytest.raises(UsageError, match=message.replace("|", r"\|")) as error:
        read_examples(path, s1(), tokenizer)
    assert str(error.value).startswith("row 2 (id bad-one): ")


def test_a_row_with_nothing_of_the_kind_is_told_what_is_wanted(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    path = write(tmp_path / "rows.jsonl", [{"question": "Q", "messages": []}])
    with pytest.raises(UsageError, match="row 1: no thought and no answer") as error:
        read_examples(path, s1(), tokenizer)
    assert "thinking_trajectories and attempt or " in error.value.hint


def test_all_faults_are_told_at_once(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    """By numbers from 1, which in JSON lines are the lines', with the row's own id where it has one."""
    good = {"question": "Q", "thinking": "T", "answer": "A"}
    bad = [{**good, "answer": ""}, {**good, "id": "x", "question": " "}, [1]]
    long = {**good, "thinking": "so " * 300}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + "\n".join(map(json.dumps, [good, *bad, long])) + '\n{"quest\n')
    with pytest.raises(UsageError) as error:
        read_examples(path, s1().with_(max_length=300), tokenizer)
    told = [
        "5 rows cannot be trained on: row 3: answer is empty or missing",
        "row 4 (id x): question is empty or no text",
        f"{path}, row 5: wanted an object, got list",
        f"{path}, line 7: not JSON in UTF-8",
        "1 row is longer than max_length (300 tokens), the longest has ",
    ]
    found = str(error.value).split("; ")
    assert len(found) == 5 and all(one.startswith(start) for one, start in zip(found, told)), found
    assert found[4].endswith(": 6")
    assert error.value.hint == "drop the row; a larger max_length, or too_long=drop, or too_long=truncate"
    write(path, [good, *[{**good, "thinking": ""}] * 700])  # more than are read at once
    with pytest.raises(UsageError) as error:
        read_examples(path, s1(), tokenizer)
    found = str(error.value).split("; ")
    assert found[0].startswith("700 rows cannot be trained on: row 2: thinking") and len(found) == 11
    assert found[9].startswith("row 11: ") and found[10] == "and 690 more" and error.value.hint == "drop the row"


def test_rows_without_an_id_are_called_by_their_numbers(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    rows = [ROWS[0], {**ROWS[1], "id": 0}, {**ROWS[2], "id": "\ud83d"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    assert [one.id for one in read_examples(tmp_path / "rows.json", s1(), tokenizer)] == ["1", "0", "\\ud83d"]


def test_ids_of_several_rows_are_told(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    rows = [{**row, "id": id} for row, id in zip(ROWS, ("a", "b", "a"))]
    _, report = load_examples(write(tmp_path / "rows.jsonl", rows), s1(), tokenizer)
    assert report.shared_ids == ["a"]
    assert report.warnings() == ["1 id is of several rows, of which sample_losses.json keeps one: a"]


def test_an_end_of_thinking_that_is_no_control_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path / "t", template=OPENS_ITSELF)
    rows = [{"question": "Q", "thinking": "I write </think> here", "answer": "A"}]
    with pytest.raises(UsageError, match="row 1: its thought holds '</think>'"):
        read_examples(write(tmp_path / "rows.jsonl", rows), s1().with_(format="qwen3"), tokenizer)


def test_too_long_is_refused_dropped_or_cut(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    counts = [example.tokens for example in read_examples(path, s1(), tokenizer)]
    limit = max(counts) - 1
    (longest,) = [i for i, count in enumerate(counts) if count > limit]
    recipe = s1().with_(max_length=limit)
    with pytest.raises(UsageError, match=rf"1 row is longer .* the longest has {limit + 1}: {longest + 1}$"):
        read_examples(path, recipe, tokenizer)
    dropped, report = load_examples(path, recipe.with_(too_long="drop"), tokenizer)
    assert [int(example.id) for example in dropped] == [i + 1 for i in range(3) if i != longest]
    assert report.dropped == [str(longest + 1)]
    with pytest.raises(UsageError, match="no rows to train on: 3 rows are dropped, longer than max_length"):
        read_examples(path, recipe.with_(max_length=20, too_long="drop"), tokenizer)
    cut, report = load_examples(path, recipe.with_(too_long="truncate"), tokenizer)
    assert [example.tokens for example in cut] == [min(count, limit) for count in counts]
    assert report.truncated == [str(longest + 1)] and "nothing is truncated" not in validation(report, cut)
    assert cut[longest].loss[0][1] == limit
    with pytest.raises(UsageError, match="question alone"):
        read_examples(path, recipe.with_(max_length=20, too_long="truncate"), tokenizer)


def test_what_a_tokenizer_changes_is_reported_or_refused(tmp_path: Path) -> None:
    rows = [
        {"question": "Cafe\u0301?", "thinking": "T", "answer": "A"},
        {"question": "Q", "thinking": "T", "answer": "A"},
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    composing = make_tokenizer(tmp_path / "nfc", normaliser=normalizers.NFC())
    examples, report = load_examples(path, s1(), composing)
    assert report.normalised == ["1"] and len(examples) == 2
    losing = make_tokenizer(tmp_path / "lost")
    losing._tokenizer.decoder = decoders.Strip("T", 0, 0)  # no longer a byte-level decoder
    with pytest.raises(UsageError, match="row 1: its tokens are not its text again, from character"):
        read_examples(path, s1(), losing)


def test_copies_are_counted(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    _, report = load_examples(write(tmp_path / "rows.jsonl", [ROWS[0], ROWS[1], ROWS[0]]), s1(), tokenizer)
    assert report.repeated == 1 and report.warnings() == ["1 row is a copy of another"]


def test_the_printed_mask(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    rows = [{"question": "Q", "thinking": "long " * 200, "answer": "A"}]
    (example,) = read_examples(write(tmp_path / "rows.jsonl", rows), s1(), tokenizer)
    lines = mask(example, tokenizer).splitlines()
    plain = [line for line in lines if line.startswith("\x1b[2m")]
    green = [line for line in lines if line.startswith("\x1b[32m")]
    assert plain[-1] == "\x1b[2m   - | <|im_start|>assistant\x1b[0m"
    assert (
        green[0] == "\x1b[32mloss | <|im_start|>think\x1b[0m"
        and green[-1] == "\x1b[32mloss | Answer: A<|im_end|>\x1b[0m"
    )
    assert any("tokens ..." in line for line in green), "a long span is shortened"
    assert f"loss, tokens {example.loss[0][0]} to {example.tokens - 1:,}:" in lines


def test_files_that_are_none(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    (tmp_path / "bad.jsonl").write_text('{"question": "Q", "thinking": "T", "answer": "A"}\n{"quest')
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "rows.txt").write_text("")
    (tmp_path / "bad.parquet").write_text("no")
    for name, message in {
        "bad.jsonl": "line 2: not JSON",
        "list.jsonl": "row 1: wanted an object, got list",
        "empty.jsonl": "holds no rows",
        "rows.txt": "ends in one of",
        "bad.parquet": "cannot be read as parquet",
        "absent.jsonl": "there is no file",
    }.items():
        with pytest.raises(UsageError, match=message):
            read_examples(tmp_path / name, s1(), tokenizer)
    with pytest.raises(ModelError, match=r"has no tokenizer\.json"):
        TrainTokenizer(tmp_path)


def test_settings_that_do_not_go_together(tmp_path: Path, tokenizer: TrainTokenizer) -> None:
    path = write(tmp_path / "rows.jsonl", ROWS)
    for changes, message in (
        ({"system": "Be brief."}, "takes the chat template's own system text"),
        ({"chat_template": "{{ 1 }}"}, "has a chat template of its own"),
        ({"format": "qwen3"}, "neither the format qwen3 nor the model has a chat template"),
    ):
        with pytest.raises(UsageError, match=message):
            read_examples(path, s1().with_(**changes), tokenizer)
