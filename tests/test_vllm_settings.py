"""What a request may ask of the vLLM plugin: whatever a client sends, the engine behind it goes on."""

from __future__ import annotations

import json
import unicodedata
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed")

from bide.engines.mock import MockTokenizer
from bide.engines.vllm_settings import MadeRow, RowMaker, check_sampling
from bide.errors import BudgetError, UsageError

OPENED = "<|im_start|>assistant\n<think>\n"


class Composing(MockTokenizer):
    """As Qwen's: a text comes back composed (NFC), so that not every text survives."""

    def encode(self, text: str) -> list[int]:
        return super().encode(unicodedata.normalize("NFC", text))


class Lowering(MockTokenizer):
    """Not even "Wait" and "Final Answer:" survive."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.lower())


def params(**extra: Any) -> Any:
    return SimpleNamespace(
        extra_args={"reasoning_format": "qwen3"} | extra, max_tokens=200, temperature=0.0, repetition_penalty=1.0
    )


def written(made: MadeRow, tokenizer: MockTokenizer, model: str) -> str:
    """The turn, when the model wants to write `model`, and an end that it may not write becomes what replaces it."""
    row, output = made.row, list[int]()
    wanted = MockTokenizer().encode(model)
    while (row.queue or wanted) and len(output) < 500:
        if row.queue:
            output.append(row.queue[0])
        else:
            token = wanted.pop(0)
            if row.ending is not None and token in row.ending.ids:
                token, row.odds = row.ending.text[0], 1.0
            output.append(token)
        row.advance(output)
    return tokenizer.decode(output)


def test_a_wait_that_the_tokenizer_does_not_keep_becomes_the_default_one() -> None:
    tokenizer = Composing()
    maker = RowMaker(tokenizer, 260)
    made = maker.make(params(waits=1, wait_strings=["Attends, e\u0301"]), tokenizer.encode(OPENED), seed=1)
    assert written(made, tokenizer, "ab</think>c</think>d") == "abWaitc</think>d"


@pytest.mark.parametrize("name", ["end_message", "answer_prefix", "soft_limit_message"])
def test_a_text_that_the_tokenizer_does_not_keep_does_not_cost_the_maximum(name: str) -> None:
    tokenizer = Composing()
    maker = RowMaker(tokenizer, 260)
    more = dict(soft_limit=2) if name == "soft_limit_message" else {}
    made = maker.make(params(thinking_token_budget=6, **more, **{name: "e\u0301"}), tokenizer.encode(OPENED), seed=1)
    assert written(made, tokenizer, "x" * 30).startswith("xxxxxx\n</think>")


def test_a_request_of_which_nothing_is_possible_ends_at_once() -> None:
    tokenizer = Lowering(chat_template="</think> enable_thinking")
    maker = RowMaker(tokenizer, 260)
    made = maker.make(params(thinking_token_budget=6, waits=1), tokenizer.encode(OPENED), seed=1)
    assert written(made, tokenizer, "") == "<|im_end|>"


def test_ids_that_the_model_does_not_have_are_never_written() -> None:
    """A tokenizer may know more tokens than its model has logits: a client's text may hold one."""
    tokenizer = MockTokenizer()
    (last,) = tokenizer.encode("<|return|>")
    maker = RowMaker(tokenizer, last)
    made = maker.make(params(waits=1, wait_strings=["<|return|>"]), tokenizer.encode(OPENED), seed=1)
    assert written(made, tokenizer, "ab</think>c</think>d") == "abWaitc</think>d"
    assert "gpt-oss" in maker.markers  # it needs <|end|>, which lies below
    assert "gpt-oss" not in RowMaker(tokenizer, last - 1).markers


def test_a_request_that_nobody_has_checked_ends_at_once() -> None:
    tokenizer = MockTokenizer()
    made = RowMaker(tokenizer, 260).make(params(thinking_token_budget=-1), tokenizer.encode(OPENED), seed=1)
    assert written(made, tokenizer, "") == "<|im_end|>"


def test_a_row_that_cannot_be_begun_is_tried_with_less() -> None:
    tokenizer = MockTokenizer()
    sizes = []

    def begin(made: MadeRow) -> None:
        sizes.append(sum(map(len, made.texts.waits)))
        if sizes[-1] > 10:
            raise BudgetError("too long")

    wait = "Wait a moment, please"
    made = RowMaker(tokenizer, 260).make(
        params(waits=1, wait_strings=[wait]), tokenizer.encode(OPENED), seed=1, begin=begin
    )
    assert written(made, tokenizer, "ab</think>c</think>d") == "abWaitc</think>d"
    assert sizes == [len(wait), len(wait), len("Wait")]


REFUSED: list[tuple[dict[str, Any], str]] = [
    (dict(thinking_token_budget=1 << 40), "counts to"),
    (dict(waits=1 << 40), "counts to"),
    (dict(thinking_token_budget=1 << 40, min_thinking_tokens=1 << 35), "counts to"),
    (dict(waits=1, reserve_answer_tokens=1 << 31), "counts to"),
    (dict(soft_limit=1 << 30), "counts to"),
    (dict(waits=1, wait_strings=["\ud83d"]), "not valid Unicode"),
    (dict(waits=1, wait_strings=["Wait " * 2000]), "8192 bytes"),
    (dict(thinking_token_budget=50000, end_message="\u20ac" * 3000), "8192 bytes"),
    (dict(waits=1, reasoning_format=["qwen3"]), "must be a name"),
    (dict(waits=1, reasoning_format={}), "must be a name"),
    (dict(waits=1, reasoning_format=None), "must be a name"),
    (dict(waits=[1]), "whole number"),
    (dict(waits=float("nan")), "whole number"),
    (dict(soft_limit=float("nan"), thinking_token_budget=5), "between 0 and 1"),
    (dict(wait_strings={"a": 1}, waits=0), "no effect"),
    (dict(thinking_opened=[]), "true or false"),
    (dict(boundary=["line"], grace_tokens=1, thinking_token_budget=5), "boundary must be"),
]


@pytest.mark.parametrize(("extra", "message"), REFUSED)
def test_what_is_out_of_proportion_is_refused(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_sampling(params(**extra))


def test_keys_of_others_are_left_to_them() -> None:
    extra = {"kv_transfer_params": {}, "x": 1, 5: 6}
    assert check_sampling(SimpleNamespace(extra_args=extra)) is None


@pytest.mark.parametrize("field", [dict(temperature=1e9), dict(repetition_penalty=1e9), dict(repetition_penalty=1e-9)])
def test_sampling_that_could_outbid_a_forced_token_is_refused(field: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="could lose"):
        check_sampling(SimpleNamespace(**(vars(params(waits=1)) | field)))
    assert check_sampling(SimpleNamespace(**(vars(params()) | {"extra_args": {}} | field))) is None


def test_settings_survive_json() -> None:
    extra = dict(thinking_token_budget=7, waits=1, wait_strings=["Hm", "Wait"], end_message="x", thinking_opened=True)
    settings = check_sampling(params(**json.loads(json.dumps(extra))))
    assert settings is not None
    assert settings.opened is True
    assert settings.budget.wait_strings == ("Hm", "Wait")


@pytest.mark.parametrize("ends", ["", "<|im_end|>"])
def test_a_block_behind_an_end_that_is_ignored_has_its_maximum_too(ends: str) -> None:
    """ignore_eos: the end of the turn is a token like any other, in a thought and behind it."""
    tokenizer = MockTokenizer()
    asked = SimpleNamespace(**(vars(params(thinking_token_budget=5)) | {"ignore_eos": True}))
    made = RowMaker(tokenizer, 260).make(asked, tokenizer.encode(OPENED), seed=1)
    text = written(made, tokenizer, f"a{ends}</think>c{ends}<think>" + "x" * 20)
    assert text.startswith(f"a{ends}</think>c{ends}<think>" + "x" * (4 - bool(ends)) + "\n</think>")
