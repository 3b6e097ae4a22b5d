"""OpenAI's /v1/completions: refused, with the way to go.

It continues raw text. Every engine of bide renders messages through the model's chat template and opens
thinking itself, so a raw prompt would get a conversation around it that its sender did not ask for.
"""

from __future__ import annotations

from typing import NoReturn

from ..errors import UsageError
from .budget_fields import Ask
from .dialect import Host, Json
from .openai_chat import Chat


class Completions(Chat):
    """Answers every request with a 400 that names /v1/chat/completions."""

    def parse(self, body: Json, ask: Ask, host: Host) -> NoReturn:
        raise UsageError(
            "raw text cannot be continued here: every request goes through the model's chat template",
            hint='send {"messages": [{"role": "user", "content": prompt}]} to /v1/chat/completions',
        )
