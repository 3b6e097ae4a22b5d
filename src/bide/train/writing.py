"""Rows of a file as the text of a recipe: what is given, and what is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..chat_template import render_chat
from ..errors import UsageError
from ..formats import ReasoningFormat, get_format
from ..training_text import training_text
from ..types import Message
from .recipe import PLAIN, TrainRecipe

COLUMNS: tuple[tuple[str, str], ...] = (
    ("thinking_trajectories", "attempt"),
    ("deepseek_thinking_trajectory", "deepseek_attempt"),
    ("thinking", "answer"),
)
"""(thought, answer) of s1K and of what `bide curate` exports, of s1K-1.1, and of plain rows: the first pair that a row
has is taken. Beside them: "question", perhaps "id", and perhaps "text", which is compared."""
REPLY_COLUMNS = ("reply", "solution")
"""Of the format "plain", where a row has none of `COLUMNS`."""


class Tokenizer(Protocol):
    """What is needed of one (`tokenizer.TrainTokenizer`)."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]: ...

    def normalised(self, text: str) -> str: ...

    @property
    def chat_template(self) -> str | None: ...

    @property
    def special_texts(self) -> tuple[str, ...]: ...

    @property
    def names(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Written:
    """A row as text."""

    number: int
    """In its file, from 1."""
    id: str
    """Its own, or its number."""
    head: str
    """What is given."""
    reply: str
    """What is learned: from the opening marker of thinking, it included, to the end of the turn."""
    columns: tuple[str, ...]
    """What it was made of."""
    own_text: str | None
    """The row's own column "text"."""

    @property
    def text(self) -> str:
        """All of it."""
        return self.head + self.reply

    @property
    def label(self) -> str:
        """What messages call it."""
        return _label(self.number, self.id)


class Writer:
    """Makes the text of rows. Raises `UsageError` where a recipe's format, template and system text do not go
    together."""

    def __init__(self, recipe: TrainRecipe, tokenizer: Tokenizer) -> None:
        self.style: ReasoningFormat | None = None if recipe.format == PLAIN else get_format(recipe.format)
        own = None if self.style is None else self.style.chat_template
        template = recipe.chat_template or own or tokenizer.chat_template
        if template is None:
            raise UsageError(
                f"neither the format {recipe.format} nor the model has a chat template",
                hint="set chat_template in the recipe",
            )
        if recipe.system and self.style is not None:
            raise UsageError(
                f"the format {recipe.format} takes the chat template's own system text",
                hint=f"system goes with {PLAIN}",
            )
        if recipe.chat_template and own:
            raise UsageError(
                f"the format {recipe.format} has a chat template of its own", hint="leave chat_template out"
            )
        self.template = template
        self.system = recipe.system
        self._names = tokenizer.names
        self._special = tokenizer.special_texts

    def write(self, row: Mapping[str, Any], number: int) -> Written:
        """Row `number` (from 1, its id if it has no other). Raises `UsageError`: a column is missing or empty, or a
        text is none, or holds a marker of the format or a control token, which would not be text any more."""
        id = row.get("id")
        id = str(number) if id in (None, "") else str(id).encode(errors="backslashreplace").decode()
        name = _label(number, id)
        question = _text(row, "question", name)
        pair = next((pair for pair in COLUMNS if all(row.get(column) for column in pair)), None)
        columns: tuple[str, ...]
        if self.style is not None:
            if pair is None:
                raise _lacking(row, name)
            columns = pair
            head, reply = self._with_markers(name, question, _text(row, pair[0], name), _text(row, pair[1], name))
        else:
            columns = pair or tuple(column for column in REPLY_COLUMNS if row.get(column))[:1]
            if not columns:
                raise UsageError(f"row {name}: no reply", hint=f"wanted: question, with {' or '.join(REPLY_COLUMNS)}")
            head, reply = self._plain(name, question, [_text(row, one, name) for one in columns])
        own = row.get("text")
        return Written(number, id, head, reply, ("question", *columns), own if isinstance(own, str) and own else None)

    def _with_markers(self, name: str, question: str, thinking: str, answer: str) -> tuple[str, str]:
        style = self.style
        assert style is not None
        if style.name == "s1" and "Answer:" not in answer:
            answer = f"Answer: {answer}"  # as the reference has it (data/tokenization.py)
        self._check_control(name, question, thinking, answer)
        for marker in {*style.ends, style.open.strip(), style.close.strip()}:
            if marker in thinking:
                raise UsageError(f"row {name}: its thought holds {marker!r}, which opens or ends thinking",
                                 hint="drop the row")  # fmt: skip
        whole = training_text(style, question, thinking, answer, chat_template=self.template, variables=self._names)
        head = self._head(question)
        opened = style.open.rstrip("\n")
        if head.rstrip("\n").endswith(opened):  # the template opens thinking by itself
            head = head.rstrip("\n").removesuffix(opened)
        assert whole.startswith(head + opened)
        return head, whole[len(head) :]

    def _plain(self, name: str, question: str, parts: list[str]) -> tuple[str, str]:
        self._check_control(name, question, *parts)
        head = self._head(question)
        reply = "\n\n".join(part.strip() for part in parts)
        messages = [*self._messages(question), Message("assistant", reply)]
        whole = render_chat(self.template, messages, add_generation_prompt=False, **self._names)
        if not whole.startswith(head + reply):
            raise UsageError(
                f"row {name}: the chat template changes what stands before a reply, or the reply",
                hint="set chat_template",
            )
        return head, whole[len(head) :]

    def _head(self, question: str) -> str:
        return render_chat(self.template, self._messages(question), **self._names)

    def _messages(self, question: str) -> list[Message]:
        return [*([Message("system", self.system)] if self.system else []), Message("user", question)]

    def _check_control(self, name: str, *texts: str) -> None:
        for text in texts:
            for marker in self._special:
                if marker in text:
                    raise UsageError(f"row {name}: a text of it holds the control token {marker}", hint="drop the row")


def _label(number: int, id: str) -> str:
    """ "3", or "3 (id abc)" where the row has an id of its own."""
    return str(number) if id == str(number) else f"{number} (id {id})"


def _lacking(row: Mapping[str, Any], name: str) -> UsageError:
    """Which of a thought and an answer a row has not."""
    pairs = [pair for pair in COLUMNS if any(column in row for column in pair)]
    if not pairs:
        wanted = " or ".join(f"{thought} and {answer}" for thought, answer in COLUMNS)
        return UsageError(f"row {name}: no thought and no answer", hint=f"wanted: question, with {wanted}")
    pair = max(pairs, key=lambda pair: (all(column in row for column in pair), any(map(row.get, pair))))
    missing = " and ".join(column for column in pair if not row.get(column))
    return UsageError(
        f"row {name}: {missing} {'are' if ' and ' in missing else 'is'} empty or missing", hint="drop the row"
    )


def _text(row: Mapping[str, Any], column: str, name: str) -> str:
    value = row.get(column)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = "\n".join(value)  # s1K's thinking_trajectories
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"row {name}: {column} is empty or no text", hint="drop the row")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"row {name}: {column} holds half of a surrogate pair, {value[error.start]!a}, which is no text",
            hint="drop the row",
        ) from None
    return value
