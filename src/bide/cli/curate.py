"""`bide curate`: one entry a command, loaded when it is used."""

from __future__ import annotations

import click

from . import LazyGroup

CURATE_COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("bide.cli.curate_run:run", "Make a set from a pool, by a preset or a recipe of your own."),
    "funnel": ("bide.cli.curate_funnel:funnel", "Show what became of every record of the pool."),
    "history": ("bide.cli.curate_funnel:history_", "Show what every stage said of one row."),
    "rows": ("bide.cli.curate_funnel:rows", "List the records of the pool, and where and why each ended."),
    "sources": ("bide.cli.curate_run:sources", "List the sources of s1's pool, and the presets."),
    "teach": ("bide.cli.curate_teach:teach", "Write a teacher's traces for any file of questions."),
    "attempts": ("bide.cli.curate_teach:attempts", "Let reference models try questions, and grade them."),
    "audit": ("bide.cli.curate_audit:audit", "Find benchmark questions and duplicates in a set of questions."),
}
"""Name -> ("module:command", one line of help)."""


@click.group("curate", cls=LazyGroup, table=CURATE_COMMANDS)
def curate() -> None:
    """From a pool of questions to the few that matter: what is in it, what may stay, and why."""
