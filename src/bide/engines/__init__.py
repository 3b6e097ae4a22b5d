"""Engines by name. An engine's heavy libraries are imported only when it is loaded."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from ..errors import MissingExtraError, UsageError, unknown_name
from .base import Engine

ENGINES: dict[str, str] = {
    "llamacpp": "bide.engines.llamacpp:LlamaCppEngine",
    "transformers": "bide.engines.transformers:TransformersEngine",
    "vllm": "bide.engines.vllm:VLLMEngine",
    "openai": "bide.engines.openai:OpenAIEngine",
    "mock": "bide.engines.mock:MockEngine",
}
"""Name -> "module:class"."""

EXTRAS: dict[str, str] = {
    **dict.fromkeys(("torch", "transformers", "accelerate", "gguf"), "transformers"),
    "vllm": "vllm",
}
"""Package that an engine imports -> the extra of bide that brings it."""


def load_engine(name: str, model: str | None = None, **options: Any) -> Engine:
    """The engine called `name` (or "package.module:Class"), with `model` loaded.

    `options` go to the engine's constructor. Raises `UnknownNameError`, `MissingExtraError`,
    `UsageError` for an option that the engine does not have, and what the engine raises about its model.
    """
    target = ENGINES.get(name, name)
    if ":" not in target:
        raise unknown_name("engine", name, ENGINES)
    module, _, attribute = target.partition(":")
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            if package == "bide" or name in ENGINES:
                raise
            raise unknown_name("engine", name, ENGINES) from error
        raise MissingExtraError(package, EXTRAS[package]) from error
    except AttributeError as error:
        raise unknown_name("engine", name, ENGINES) from error
    try:
        inspect.signature(factory).bind(model, **options)
    except TypeError as error:
        settings = [p.name for p in inspect.signature(factory).parameters.values() if p.kind is p.KEYWORD_ONLY]
        raise UsageError(f"engine {name!r}: {error}", hint=f"its settings: {', '.join(settings)}") from None
    engine: Engine = factory(model, **options)
    return engine
