"""Formats against the chat templates that their model families publish (quoted where they matter)."""

from __future__ import annotations

import pytest

from bide import FORMATS, Message
from bide.chat_template import render_chat
from bide.engines.compile import build_prompt, choose_format, compile_markers, compile_texts
from bide.engines.mock import CHATML, MockTokenizer
from bide.errors import ModelError, UnknownNameError
from bide.formats import S1_CHAT_TEMPLATE, detect_format, get_format
from bide.thinking_budget import ThinkingBudget

# The parts of published templates by which families can be told apart.
TEMPLATES = {
    "qwen3": "{%- if '</think>' in content %}{% endif %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}",
    "deepseek-r1": "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<\uff5cAssistant\uff5c><think>\\n'}}",
    "gpt-oss": '{{- "<|start|>assistant<|channel|>analysis<|message|>" }}',
    "magistral": "{{ '[SYSTEM_PROMPT]' }}{{ '[THINK]' + thinking + '[/THINK]' }}",
    "cot": "{{ '<|im_start|>' + role + '\\n' + content + '<|im_end|>' }}",
    "s1": "{{ '<|im_start|>assistant\\n<|im_start|>think' }}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_auto_reads_the_chat_template(name: str) -> None:
    assert detect_format(TEMPLATES[name]).name == name
    assert choose_format("auto", MockTokenizer(TEMPLATES[name])).name == name


def test_a_model_without_template_is_cot_and_cannot_be_prompted() -> None:
    assert detect_format(None).name == "cot"
    with pytest.raises(ModelError, match="no chat template"):
        build_prompt((Message("user", "q"),), FORMATS["cot"], MockTokenizer(None))
    assert build_prompt((Message("user", "q"),), FORMATS["s1"], MockTokenizer(None)).startswith("<|im_start|>system")


def test_names() -> None:
    assert all(name == found.name for name, found in FORMATS.items())
    assert {"s1", "deepseek-r1", "qwen3", "gpt-oss", "magistral", "cot"} == set(FORMATS)
    with pytest.raises(UnknownNameError, match="unknown reasoning format 'qwen'"):
        get_format("qwen")


def test_s1_prompt_is_the_papers() -> None:
    prompt = build_prompt((Message("user", "How many r?"),), FORMATS["s1"], MockTokenizer())
    assert prompt == (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHow many r?<|im_end|>\n<|im_start|>assistant\n<|im_start|>think"
    )
    own = render_chat(S1_CHAT_TEMPLATE, (Message("system", "Be brief."), Message("user", "q")))
    assert own == "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("ending", ["<think>\n", "<think>"])
def test_thinking_that_the_template_opens_is_not_opened_twice(ending: str) -> None:
    template = CHATML.rstrip() + "{{- '" + ending.replace("\n", "\\n") + "' -}}"
    prompt = build_prompt((Message("user", "q"),), FORMATS["deepseek-r1"], MockTokenizer(template))
    assert prompt.endswith("<|im_start|>assistant\n" + ending) and prompt.count("<think>") == 1


def test_thinking_that_the_template_leaves_shut_is_opened() -> None:
    assert build_prompt((Message("user", "q"),), FORMATS["qwen3"], MockTokenizer()).endswith("assistant\n<think>\n")


@pytest.mark.parametrize("name", FORMATS)
def test_markers_compile_and_survive_a_round_trip(name: str) -> None:
    tokenizer, found = MockTokenizer(), FORMATS[name]
    markers = compile_markers(found, tokenizer)
    assert tokenizer.decode(markers.close) == found.close
    assert [tokenizer.decode(end) for end in markers.ends] == list(dict.fromkeys(found.ends))
    assert not markers.eos & {end[0] for end in markers.ends if len(end) == 1}
    assert ord("\n") in markers.line_ends and ord("a") not in markers.line_ends
    assert ord(".") in markers.sentence_ends and ord(",") not in markers.sentence_ends


def test_the_answer_prefix_depends_on_whether_there_was_a_thought() -> None:
    tokenizer, found = MockTokenizer(), FORMATS["s1"]

    def prefix(**fields: object) -> str:
        texts = compile_texts(ThinkingBudget(**fields), found, tokenizer)  # type: ignore[arg-type]
        return tokenizer.decode(texts.answer_prefix)

    assert prefix(thinking_token_budget=5) == "\nFinal Answer:"
    assert prefix(thinking_token_budget=0) == ""
    assert prefix(thinking_token_budget=0, answer_prefix="So:") == "\nSo:"
    assert prefix(thinking_token_budget=5, answer_prefix="") == ""


def test_broken_and_refusing_templates_are_one_line_errors() -> None:
    for template in ("{% if %}", "{{ raise_exception('roles must alternate') }}", "{{ undefined.field.deeper }}"):
        with pytest.raises(ModelError, match="chat template cannot be rendered"):
            render_chat(template, (Message("user", "q"),))


def test_a_template_cannot_reach_python() -> None:
    with pytest.raises(ModelError):
        render_chat("{{ ''.__class__.__mro__[1].__subclasses__() }}", (Message("user", "q"),))


@pytest.mark.parametrize(("raw", "clean"), [(": 3", "3"), ("**: **3**", "3**"), ("\n\nis 3\n", "is 3")])
def test_cot_answers_lose_their_separator(raw: str, clean: str) -> None:
    assert FORMATS["cot"].answer_text(raw) == clean
