"""What one request asks of the vLLM plugin: its settings, and the `ForcedRow` that they make.

vLLM takes settings of its own as a flat dictionary (`extra_args` offline, `vllm_xargs` over HTTP).
The keys are the fields of `ThinkingBudget`, and:

    reasoning_format   a name in `bide.formats`, or "auto" (default): the model's chat template tells
    thinking_opened    true: the prompt ends inside a thought already, whatever its last ids are

vLLM checks a request where there is no model and no tokenizer, so what can only be known with them
is settled when the request begins, and logged: there, nothing can be refused any more.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..budget_forcing import BudgetForcer, ForcedTexts, Ids, Markers
from ..errors import BideError, BudgetError, CapabilityError, ModelError, UsageError
from ..formats import FORMATS, ReasoningFormat, get_format
from ..logits_processor import ForcedRow
from ..thinking_budget import ThinkingBudget
from .base import Tokenizer
from .compile import choose_format, compile_markers, compile_texts

log = logging.getLogger("bide.vllm")

MOST_WAIT_STRINGS = 8
MOST_TOKENS = (1 << 30) - 1
"""Any count: they are 32-bit numbers on the GPU."""
MOST_BYTES = 8192
"""All texts of one request: they are tokenised in vLLM's engine, while its batch waits."""
HOTTEST = 1e4
STRONGEST = 1e4
"""Beyond these, a temperature or a repetition penalty could make a forced id lose."""
BUDGET_FIELDS = tuple(field.name for field in fields(ThinkingBudget))
KEYS = {*BUDGET_FIELDS, "reasoning_format", "thinking_opened"}
PROBE = "bide_settings"
"""Refused, whatever its value, with the names of all settings: so a client sees, for nothing, that the plugin is
loaded, and what it takes (`openai_control.Plugin`)."""
PROMPT_TAIL = 32
"""Ids at the end of a prompt that are looked at to see whether it opens a thought."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a request asked for."""

    budget: ThinkingBudget
    format: str = "auto"
    opened: bool | None = None


def read_settings(extra: Mapping[str, Any] | None) -> Settings | None:
    """The settings in `extra`, None if there are none. Keys that are nobody's are left to others,
    unless they look like one of ours. Raises `UsageError`."""
    extra = extra or {}
    if PROBE in extra:
        raise UsageError(f"bide's vLLM plugin takes: {', '.join(sorted(KEYS))}; {PROBE} is always refused")
    for key in extra.keys() - KEYS:
        if not isinstance(key, str):
            continue
        near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.75)
        if near or "thinking" in key:
            raise UsageError(f"unknown setting {key!r}", hint=f"did you mean {(near or BUDGET_FIELDS)[0]!r}?")
    if not KEYS & extra.keys():
        return None
    given = {key: extra[key] for key in BUDGET_FIELDS if key in extra}
    strings = given.get("wait_strings")
    if isinstance(strings, Sequence) and not isinstance(strings, str):
        given["wait_strings"] = tuple(strings)
    budget = ThinkingBudget(**given)
    opened = extra.get("thinking_opened")
    if opened not in (None, True, False, 0, 1):
        raise UsageError(f"thinking_opened must be true or false, not {opened!r}")
    form = extra.get("reasoning_format", "auto")
    if not isinstance(form, str):
        raise UsageError(f"reasoning_format must be a name, not {form!r}")
    settings = Settings(budget, form, None if opened is None else bool(opened))
    if settings.format != "auto":
        get_format(settings.format)
    _check_possible(budget)
    return settings


def _check_possible(budget: ThinkingBudget) -> None:
    """Refuse what cannot be done by changing logits. Raises `CapabilityError`."""
    hint = "bide's engine 'vllm' can"
    if budget.mode != "exact":
        raise CapabilityError("the vLLM plugin has no mode='s1'", hint=hint)
    if budget.loop_guard is not None:
        raise CapabilityError("the vLLM plugin has no loop_guard: it keeps no history", hint=hint)
    if budget.refuses_ends and "" in budget.effective_wait_strings:
        raise CapabilityError("the vLLM plugin cannot refuse an end without a wait string", hint=hint)
    if len(budget.effective_wait_strings) > MOST_WAIT_STRINGS:
        raise CapabilityError(
            f"the vLLM plugin takes at most {MOST_WAIT_STRINGS} wait_strings, not {len(budget.effective_wait_strings)}"
        )
    for name in BUDGET_FIELDS:
        value = getattr(budget, name)
        if isinstance(value, int) and value > MOST_TOKENS:
            raise CapabilityError(f"the vLLM plugin counts to {MOST_TOKENS}; {name} is {value}")
    texts = (budget.end_message, budget.soft_limit_message, budget.answer_prefix, *(budget.wait_strings or ()))
    try:
        size = sum(len((text or "").encode()) for text in texts)
    except UnicodeEncodeError as error:
        raise UsageError(f"a text is not valid Unicode: {error.reason}") from None
    if size > MOST_BYTES:
        raise CapabilityError(f"all texts of a request may be {MOST_BYTES} bytes together, not {size}")


@dataclass(frozen=True, slots=True)
class MadeRow:
    """A row, and the texts it was made with."""

    row: ForcedRow
    texts: ForcedTexts


class RowMaker:
    """Makes rows for one model. `eos`: all ids that end its turns. `vocabulary`: how many logits it
    has. Raises `ModelError` where even the model's own format does not survive its tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._line_ends: frozenset[int] | None = None
        self._sentence_ends: frozenset[int] | None = None
        self.default = choose_format("auto", tokenizer)
        self.markers: dict[str, Markers] = {self.default.name: self._compile(self.default)}
        for name, form in FORMATS.items():
            try:
                self.markers[name] = self._compile(form)
            except ModelError as error:
                log.info("the format %s is not possible with this model: %s", name, error)

    def _compile(self, form: ReasoningFormat) -> Markers:
        markers = compile_markers(form, self._tokenizer)
        if self._line_ends is None or self._sentence_ends is None:  # asked at every step: so once, and for good
            self._line_ends = frozenset(i for i in range(self._vocabulary) if i in markers.line_ends)
            self._sentence_ends = frozenset(i for i in range(self._vocabulary) if i in markers.sentence_ends)
        markers = replace(markers, line_ends=self._line_ends, sentence_ends=self._sentence_ends)
        self._check_ids(*markers.ends, markers.close, markers.newline, self._tokenizer.encode(form.open))
        return markers

    def _check_ids(self, *texts: Sequence[int]) -> None:
        """Raises `ModelError` for ids that have no logit: a tokenizer may know more than its model."""
        if max((max(ids) for ids in texts if ids), default=0) >= self._vocabulary:
            raise ModelError(f"a text has tokens that the model does not: it has {self._vocabulary}")

    def make(
        self,
        params: Any,
        prompt: Sequence[int],
        *,
        seed: int,
        begin: Callable[[MadeRow], object] = lambda made: None,
        settings: Settings | UsageError | None = None,
    ) -> MadeRow:
        """The row of a request with settings in vLLM's `params`, at its beginning. `prompt`: at least its
        last `PROMPT_TAIL` ids. `begin`: the first thing done with it; may raise a `BideError` for one that
        cannot be taken. Never raises one itself: what does not fit is left out and logged, and what is
        impossible ends the turn at once, and is logged. `settings`: what `settings_of` says, if it was asked."""
        settings = settings or settings_of(params)
        assert settings is not None
        if isinstance(settings, UsageError):
            return self._over(settings.one_line(), begin)
        form = self.default if settings.format == "auto" else get_format(settings.format)
        if form.name not in self.markers:
            return self._over(f"the format {form.name} is not possible with this model", begin)
        markers = self.markers[form.name]
        opened, opening = self._opening(form, prompt, settings.opened)
        if not opened:
            log.warning("the prompt has closed its thought already: no budget applies before the next one opens")
            markers = replace(markers, opened=False)
        if getattr(params, "ignore_eos", False):  # then it is a token like any other
            markers = replace(markers, eos=frozenset())
        last = opening[-1] if opening else prompt[-1] if prompt else None
        limit = None if params.max_tokens is None else max(1, params.max_tokens - len(opening))
        for budget, left_out in _attempts(settings.budget):
            try:
                texts = compile_texts(budget, form, self._tokenizer)
                self._check_ids(*texts.waits, texts.soft_limit_message, texts.end_message, texts.answer_prefix)
                forcer = BudgetForcer(budget, markers, texts, max_tokens=limit, last_prompt_id=last)
                made = MadeRow(ForcedRow(forcer, opening=opening, temperature=params.temperature, seed=seed), texts)
                begin(made)
                return made
            except BideError as error:
                log.warning("%s: %s", error.one_line(), left_out)
        return self._over("nothing of the budget is possible with this model", begin)

    def _over(self, why: str, begin: Callable[[MadeRow], object]) -> MadeRow:
        """A row that ends the turn at once: better than one that ignores its budget."""
        log.error("%s: the request ends at once", why)
        forcer = BudgetForcer(ThinkingBudget(), replace(self.markers[self.default.name], opened=False))
        made = MadeRow(ForcedRow(forcer, opening=(min(self._tokenizer.eos_ids),)), ForcedTexts())
        begin(made)
        return made

    def _opening(self, form: ReasoningFormat, prompt: Sequence[int], told: bool | None) -> tuple[bool, Ids]:
        """Whether a thought is open when the first token is sampled, and what must be forced for that."""
        if told is True:
            return True, ()
        tail = self._tokenizer.decode(list(prompt[-PROMPT_TAIL:])).rstrip()
        if told is None and tail.endswith(form.open.rstrip()):
            return True, ()
        if tail.endswith(form.close.rstrip()):  # as templates write it when thinking is switched off
            return False, ()
        return True, tuple(self._tokenizer.encode(form.open))

    def flags(self) -> list[int]:
        """For each id: 1 if it ends a line, plus 2 if it ends a sentence."""
        markers = self.markers[self.default.name]
        return [(i in markers.line_ends) + 2 * (i in markers.sentence_ends) for i in range(self._vocabulary)]


def _attempts(budget: ThinkingBudget) -> Iterator[tuple[ThinkingBudget, str]]:
    """`budget`, then less and less of it, with what is missing from the next."""
    yield budget, "end_message, soft_limit and reserve_answer_tokens are left out"
    budget = replace(budget, end_message="", soft_limit=None, soft_limit_message=None, reserve_answer_tokens=0)
    yield budget, "wait_strings and answer_prefix are left out"
    yield replace(budget, wait_strings=None, answer_prefix=""), "the request ends at once"


def settings_of(params: Any) -> Settings | UsageError | None:
    """What `check_sampling` says. Not every way into every vLLM has asked it before."""
    try:
        return check_sampling(params)
    except UsageError as error:
        return error


def check_sampling(params: Any) -> Settings | None:
    """The settings of vLLM's `SamplingParams`. Raises `UsageError` for what cannot go together."""
    settings = read_settings(params.extra_args)
    if settings is None:
        return None
    if getattr(params, "thinking_token_budget", None) is not None:
        raise UsageError(
            "thinking_token_budget is given twice: as vLLM's own parameter and in extra_args",
            hint="vLLM's own knows caps only; leave it out",
        )
    for name, most in (("temperature", HOTTEST), ("repetition_penalty", STRONGEST)):
        value = getattr(params, name, 1.0) or 1.0
        if value > most or (name == "repetition_penalty" and value < 1 / most):
            raise CapabilityError(f"{name} is {value}: a forced token could lose", hint=f"it may be at most {most:g}")
    for name in ("structured_outputs", "guided_decoding"):
        if getattr(params, name, None) is not None:
            raise BudgetError(
                f"{name} and a thinking budget in one request: forced ids would break the grammar",
                hint="ask for the structure without a budget, or use bide's engine 'vllm'",
            )
    return settings
