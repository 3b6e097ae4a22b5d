"""Vectors of questions from any server with `/v1/embeddings`, asked and paid for as a teacher is; clusters of them."""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError
from .clusters import LENGTH, cluster, folded, titles, words_of
from .fingerprints import code_hash
from .live_line import Tick, silent
from .records import Row
from .served import complain, forecast_of, reason_of, settings_of
from .stages import encode
from .teacher import ask_questions
from .teacher_cache import Cache
from .teacher_cost import Estimate
from .teacher_replies import WHOLE, MalformedReplyError, Reply, Usage
from .teacher_settings import Messages, Question, Teacher


@dataclass(frozen=True, slots=True)
class Embedder(Teacher):
    """A model that makes vectors. A reply is kept as whole numbers, the vector made about `LENGTH` long and rounded."""

    max_tokens: int | None = 1
    """It writes none, so a cap on the cost needs no more than a price."""

    @property
    def path(self) -> str:
        """Where it is asked."""
        return "/embeddings"

    def body(self, messages: Messages, sample: int) -> dict[str, Any]:
        """The text of the last message."""
        return {"model": self.model, "input": messages[-1]["content"], **self.params}

    def read(self, body: Any) -> Reply:
        """The first vector. Raises `MalformedReplyError`."""
        try:
            numbers = [float(number) for number in body["data"][0]["embedding"]]
            tokens = body.get("usage", {}).get("prompt_tokens")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise MalformedReplyError("the answer holds no embedding") from None
        length = math.sqrt(sum(number * number for number in numbers))
        if not (0 < length < math.inf):
            raise MalformedReplyError("the embedding is no direction")
        whole = [round(LENGTH * number / length) for number in numbers]
        counted = isinstance(tokens, int)
        usage = Usage(prompt_tokens=tokens if counted else None, completion_tokens=0 if counted else None)
        return Reply(self.model, "", json.dumps(whole, separators=(",", ":")), WHOLE, usage)


@dataclass(frozen=True, slots=True)
class EmbeddedClusters:
    """A `roles.Classifier`: as `clusters.Clusters`, over the vectors of a model. `options`: of `ask_questions`."""

    embedder: Embedder
    cache: Cache
    count: int = 51
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.count < 2:
            raise UsageError(f"wanted two clusters or more, got {self.count}")

    @property
    def name(self) -> str:
        """With their number and the model."""
        return f"clusters:{self.count} by {self.embedder.model}"

    @property
    def version(self) -> str:
        """A hash of all that they depend on, but for this module."""
        depends = [code_hash("bide.data.clusters"), self.seed, settings_of(self.embedder)]
        return hashlib.sha256(encode(depends)).hexdigest()[:16]

    def subjects(self, rows: Sequence[Row]) -> Iterator[tuple[str, str | None, str]]:
        """As `Classifier`. Raises as `subjects_told` does."""
        return self.subjects_told(rows, silent)

    def subjects_told(self, rows: Sequence[Row], tick: Tick) -> Iterator[tuple[str, str | None, str]]:
        """As `Telling`. Raises `UnaskedError` if the cap on the cost was reached, and what `ask_questions` raises.
        Vectors of another length than most are none."""
        found: dict[str, array[int]] = {}
        failed: dict[str, str] = {}
        unasked = []
        questions = (Question(row.id, 0, _messages(row)) for row in rows)
        for result in ask_questions(questions, self.embedder, self.cache, **self.options):
            if result.reply is not None:
                found[result.question.row] = array("h", json.loads(result.reply.answer))
            elif result.is_dead:
                failed[result.question.row] = f"api_error:{reason_of(result.reason)}"
            else:
                unasked.append(result.reason)
        complain(len(unasked), next(iter(unasked), ""))
        sizes = [len(vector) for vector in found.values()]
        size = max(sorted(set(sizes)), key=sizes.count, default=0)
        kept = [row for row in rows if len(found.get(row.id, ())) == size and row.id in found]
        tick(0.0)  # the asking was told by itself
        places = cluster(folded([found[row.id] for row in kept]), self.count, self.seed, tick)
        named = titles([words_of(row) for row in kept], places)
        codes = {row.id: named[place] for row, place in zip(kept, places)}
        for row in rows:
            if row.id in codes:
                yield row.id, codes[row.id], self.name
            else:
                yield row.id, None, failed.get(row.id, "api_error:malformed")

    def forecast(self, rows: Sequence[Row]) -> list[tuple[str, Estimate]]:
        """What it would cost."""
        asked = ((row.id, 0, _messages(row)) for row in rows)
        return [forecast_of(self.embedder, self.cache, asked, self.options)]


def _messages(row: Row) -> Messages:
    return ({"role": "user", "content": row.question},)
