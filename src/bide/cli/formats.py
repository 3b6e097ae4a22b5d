"""`bide formats`."""

from __future__ import annotations

import dataclasses
import json

import click

from ..formats import FORMATS


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object: name -> all fields.")
def formats(as_json: bool) -> None:
    """List the reasoning formats and their markers.

    `--format auto` takes the first whose marks stand in the model's chat template, else cot.
    """
    if as_json:
        click.echo(json.dumps({name: dataclasses.asdict(found) for name, found in FORMATS.items()}, indent=2))
        return
    for name, found in FORMATS.items():
        click.echo(f"{name}\n  {found.description}")
        rows = {
            "opens": repr(found.open),
            "ends": " or ".join(map(repr, found.ends)),
            "closed by": repr(found.close),
            "then": repr(found.answer_separator + found.answer_prefix) if found.answer_prefix else "nothing",
            "auto": " and ".join(map(repr, found.template_marks)) or "where no other format is recognised",
        }
        for label, text in rows.items():
            click.echo(f"  {label:<10} {text}")
