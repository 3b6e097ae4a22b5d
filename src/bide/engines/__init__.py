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
    "transformers-cb": "bide.engines.transformers_batching:TransformersBatchingEngine",
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
    except (AttributeError, ValueError) as error:
        raise unknown_name("engine", name, ENGINES) from error
    if not hasattr(factory, "generate"):
        raise UsageError(f"{target!r} is no engine: it has no generate()")
    settings = [p.name for p in inspect.signature(factory).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if foreign := [option for option in options if option not in settings]:
        raise UsageError(
            f"{', '.join(foreign)} would have no effect with the engine {name!r}",
            hint=f"it takes: model, {', '.join(settings)}",
        )
    required = [p.name for p in inspect.signature(factory).parameters.values() if p.default is p.empty]
    if missing := [option for option in required if option not in ("model", *options)]:
        raise UsageError(f"the engine {name!r} needs {', '.join(missing)}")
    engine: Engine = factory(model, **options)
    return engine
