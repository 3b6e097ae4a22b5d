"""Whether two runs are one, on a disk or in several processes; and where they are not, what differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .recipe import TrainRecipe

FREE = ("name", "description", "recompute", "compile")
"""Settings of a recipe that may change while a run goes on, as the number of processes may."""
DATA, STEPS = "the data's tokens", "the steps"
_LONGEST = 60
"""Characters of a value that are shown."""


def identity(plan_hash: str, recipe: Mapping[str, Any], data: str = "") -> dict[str, Any]:
    """What must be the same when a run goes on: settings by name, `DATA` and `STEPS`.

    recipe: as JSON, of an older version perhaps, which had fewer settings. data: `Plan.data`; "": not known.
    """
    settings = TrainRecipe.from_json(recipe).to_json()
    found = {name: value for name, value in settings.items() if name not in FREE}
    return found | {DATA: data[:16], STEPS: plan_hash[:16]}


def differences(one: Mapping[str, Any], other: Mapping[str, Any], where: tuple[str, str]) -> str:
    """What differs, as "learning_rate: 0.01 on disk, 0.02 now"; "": nothing. Other data have other steps, of which
    nothing is said then, and data of which one side knows nothing are not compared."""
    names = [name for name in one if one[name] != other.get(name)]
    if DATA in names and not (one[DATA] and other.get(DATA)):
        names.remove(DATA)
    if DATA in names and STEPS in names:
        names.remove(STEPS)
    return "; ".join(f"{name}: {_shown(one, name)} {where[0]}, {_shown(other, name)} {where[1]}" for name in names)


def check_same_run(run: Path, known: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Whether what a directory holds, whose identity is `known`, is this run. Raises `UsageError`."""
    if found := differences(known, mine, ("on disk", "now")):
        raise UsageError(
            f"the run in {run} cannot be resumed: {found}", hint="give the same data and recipe, or another --out"
        )


def _shown(found: Mapping[str, Any], name: str) -> str:
    value = found.get(name)
    if name in (DATA, STEPS):
        return str(value)
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
