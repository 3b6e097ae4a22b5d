"""Reasoning formats: the markers with which a model family opens and closes its thinking, as text.

One `ReasoningFormat` serves training and inference alike. It knows no tokenizer: an engine turns
its texts into ids. The chat template comes from the model; only s1's is pinned here, because the
results of the paper depend on its exact system line.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import unknown_name

S1_CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """The markers of one model family. Every field is text as the model would see it."""

    name: str
    description: str
    open: str
    """Appended to the prompt to open thinking, unless the template has opened it already."""
    ends: tuple[str, ...]
    """What the model writes to end its thinking: any of these. (So does the end of the turn.)"""
    close: str
    """Forced to end thinking when it is cut."""
    natural_close: str | None = None
    """What stands after an end that the model wrote. None: what it wrote."""
    start: str = ""
    """What the model writes to open a further block. "": it never does."""
    answer_start: str = ""
    """Ends the header between thinking and answer. "": there is none."""
    newline: str = "\n"
    """Forced before `close` unless the line is complete."""
    empty: str = ""
    """Forced in its place when there was no thinking at all."""
    answer_separator: str = ""
    """Between `close` and the answer prefix."""
    answer_prefix: str = "Final Answer:"
    """Forced after `close` when thinking is cut, unless the budget names another."""
    waits_on_new_line: bool = False
    """Whether a wait string starts a line (needed where the end marker does not)."""
    answer_strip: str = ""
    """Characters, besides white space, that only separate the marker from the answer."""
    template_marks: tuple[str, ...] = ()
    """Strings that all stand in the chat templates of this family; () for never by `auto`."""
    chat_template: str | None = None
    """A pinned chat template (Jinja), used in place of the model's own."""

    def answer_text(self, raw: str) -> str:
        """The answer without the white space and separators at its edges."""
        return raw.lstrip(self.answer_strip + " \t\r\n").rstrip()


FORMATS: dict[str, ReasoningFormat] = {
    "s1": ReasoningFormat(
        name="s1",
        description="s1 and s1.1: ChatML with a thinking and an answering turn",
        open="<|im_start|>think",
        ends=("<|im_start|>",),
        close="<|im_start|>answer",
        natural_close="<|im_start|>answer",
        start="<|im_start|>think",
        answer_separator="\n",
        template_marks=("<|im_start|>think",),
        chat_template=S1_CHAT_TEMPLATE,
    ),
    "gpt-oss": ReasoningFormat(
        name="gpt-oss",
        description="gpt-oss (harmony): an analysis channel and a final channel",
        open="<|channel|>analysis<|message|>",
        ends=("<|end|>",),
        close="<|end|><|start|>assistant<|channel|>final<|message|>",
        start="<|channel|>analysis<|message|>",
        answer_start="<|message|>",
        newline="",
        template_marks=("<|channel|>",),
    ),
    "magistral": ReasoningFormat(
        name="magistral",
        description="Magistral: [THINK] and [/THINK]",
        open="[THINK]",
        ends=("[/THINK]",),
        close="[/THINK]",
        start="[THINK]",
        newline="",
        template_marks=("[THINK]",),
    ),
    "qwen3": ReasoningFormat(
        name="qwen3",
        description="Qwen3: <think> and </think>, an empty block when thinking is off",
        open="<think>\n",
        ends=("</think>",),
        close="</think>",
        start="<think>",
        empty="\n",
        answer_separator="\n\n",
        template_marks=("</think>", "enable_thinking"),
    ),
    "deepseek-r1": ReasoningFormat(
        name="deepseek-r1",
        description="DeepSeek-R1 and its distillations, QwQ: <think> and </think>",
        open="<think>\n",
        ends=("</think>",),
        close="</think>",
        start="<think>",
        answer_separator="\n\n",
        template_marks=("</think>",),
    ),
    "cot": ReasoningFormat(
        name="cot",
        description="a model without thinking markers: plain text opens and closes its thinking",
        open="Let me think step by step.\n",
        ends=("Final Answer", " Final Answer", "Final answer", " Final answer"),  # "the final answer" is prose
        close="\nFinal Answer:",
        waits_on_new_line=True,
        answer_prefix="",
        answer_strip=":*",
    ),
}
"""Name -> format. `detect_format` tries them in this order."""


def get_format(name: str) -> ReasoningFormat:
    """The format called `name`. Raises `UnknownNameError`."""
    try:
        return FORMATS[name]
    except KeyError:
        raise unknown_name("reasoning format", name, ["auto", *FORMATS]) from None


def detect_format(chat_template: str | None) -> ReasoningFormat:
    """The format of the model whose chat template this is: the first whose marks all stand in it,
    else "cot". (s1's own models ship plain ChatML, which shows no sign of s1: name it.)"""
    for candidate in FORMATS.values():
        if candidate.template_marks and all(mark in (chat_template or "") for mark in candidate.template_marks):
            return candidate
    return FORMATS["cot"]
