"""`bide curate funnel`, `history` and `rows`: what became of all records, of one, and which ended for what reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ..data.funnel import endings, funnel_of, group, history, load_manifest
from ..data.funnel_views import html, svg, table
from ..data.records import Decision
from ..data.refused import RefusedRecord, find_refused, places_of
from ..errors import UsageError

_DIR = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("directory", type=_DIR, metavar="DIR")
@click.option("--set", "name", metavar="NAME", help="Which set. [default: the only one]")
@click.option("--json", "form", flag_value="json", help="As one JSON object, with the sources of each reason.")
@click.option("--svg", "form", flag_value="svg", help="As a figure.")
@click.option("--html", "form", flag_value="html", help="As a page, with the sources of each reason.")
def funnel(directory: Path, name: str | None, form: str | None) -> None:
    """Show what became of every record of a pool: how many went on from each stage, and why the others did not."""
    found = funnel_of(load_manifest(directory, name))
    if form == "json":
        click.echo(json.dumps(found.to_dict(), indent=1))
    else:
        click.echo({"svg": svg, "html": html, None: table}[form](found))


@click.command("history")
@click.argument("directory", type=_DIR, metavar="DIR")
@click.argument("row", metavar="ID")
@click.option("--set", "name", metavar="NAME", help="Which set. [default: the only one]")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def history_(directory: Path, row: str, name: str | None, as_json: bool) -> None:
    """Show what every stage said of one row. ID may be the start of one.

    A record that is no row has its place as its id, SOURCE:FILE:NUMBER, also without the source: the line of JSON
    lines, else the number of the record. An id of its own will do, too.
    """
    manifest = load_manifest(directory, name)
    try:
        found, copies, said = history(manifest, row)
    except UsageError:
        record = find_refused(manifest.refused, row) if row and manifest.refused is not None else None
        if record is None:
            raise
        _tell_refused(record, as_json)
        return
    if as_json:
        click.echo(json.dumps({"row": asdict(found), "copies": copies, "stages": _stages(said)}, ensure_ascii=False))
        return
    click.echo(f"{found.id}  {found.source} ({found.split}, {found.licence})")
    click.echo(found.question)
    if copies:
        places = places_of(manifest.refused, found.id) if manifest.refused is not None else []
        click.echo(f"the same question also came from {', '.join(places or copies)}")
    _tell(said)
    last = said[-1][0] if said else None
    status = "selected" if last is None or last.kept else f"{group(last.reason)} at {last.stage}"
    click.echo(f"\nstatus: {status}")


@click.command()
@click.argument("directory", type=_DIR, metavar="DIR")
@click.option("--set", "name", metavar="NAME", help="Which set. [default: the only one]")
@click.option("--stage", metavar="NAME", help="Only what ended at this stage; selected: what went through.")
@click.option("--reason", metavar="NAME", help="Only what ended for this reason, as the funnel has it, or in full.")
@click.option("--source", metavar="NAME", help="Only what came from this source; of all its parts, if it has some.")
@click.option("--json", "as_json", is_flag=True, help="As JSON lines.")
def rows(
    directory: Path, name: str | None, stage: str | None, reason: str | None, source: str | None, as_json: bool
) -> None:
    """List the records of a pool: id, the stage at which each ended, and why. `bide curate history` tells more of one.

    The id of a record that is no row is its place, SOURCE:FILE:NUMBER.
    """
    manifest = load_manifest(directory, name)
    met: Counter[str] = Counter()
    count = 0
    for one, came_from, ended_at, why in endings(manifest):
        met[f"{ended_at}: {group(why)}" if why else ended_at] += 1
        if (
            (stage is None or stage == ended_at)
            and (reason is None or reason in (why, group(why)))
            and (source is None or source in (came_from, came_from.partition("/")[0]))
        ):
            count += 1
            if as_json:
                line = {"id": one, "source": came_from, "stage": ended_at, "reason": why}
                click.echo(json.dumps(line, ensure_ascii=False))
            else:
                click.echo("\t".join([one, ended_at, why]).rstrip("\t"))
    if not count:
        told = ", ".join(f"{ending} ({often:,})" for ending, often in met.most_common())
        raise UsageError(f"no record of {manifest.name} ended so", hint=f"they ended at {told}")


def _tell_refused(record: RefusedRecord, as_json: bool) -> None:
    said: list[tuple[Decision, dict[str, Any]]] = [(record.decision, {})]
    if as_json:
        click.echo(json.dumps({"record": record.id, "stages": _stages(said)}, ensure_ascii=False))
        return
    click.echo(f"{record.id}  {record.source}: no row")
    _tell(said)
    click.echo(f"\nstatus: {group(record.reason)} at {record.decision.stage}")


def _stages(said: Sequence[tuple[Decision, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    return [{**asdict(decision), "features": dict(features)} for decision, features in said]


def _tell(said: Sequence[tuple[Decision, Mapping[str, Any]]]) -> None:
    for decision, features in said:
        click.echo(f"\n{decision.stage}: {'goes on' if decision.kept else 'out: ' + decision.reason}")
        for key, value in (*decision.evidence.items(), *features.items()):
            click.echo(f"  {key}: {json.dumps(value, ensure_ascii=False)}")
