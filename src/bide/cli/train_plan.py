"""`bide train plan`: what a training will be, from the data itself, in seconds, without a GPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..errors import UsageError
from ..train.calibration import Calibration
from ..train.examples import Example, Report, load_examples
from ..train.forecast import Forecast, forecast, table
from ..train.gpus import parse_machine
from ..train.lengths import LAWS, histogram, limited, read_lengths
from ..train.memory import checkpoint_bytes
from ..train.model_files import shape_of
from ..train.plan import Plan
from ..train.plan_views import lengths_view, machine_view, mask, plan_view, table_view, validation
from ..train.recipe import PRESETS, load_recipe
from ..train.shapes import SHAPES
from ..train.writing import Tokenizer
from .train_inputs import pairs
from .train_inputs import prices as read_prices
from .train_inputs import tokenizer as read_tokenizer

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--preset", default="s1", show_default=True, metavar="NAME|RECIPE.py", help=f"{' | '.join(PRESETS)}, or a recipe."
)
@click.option(
    "--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the recipe, such as epochs=3. Repeat."
)
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE|DIR",
    help="Rows in s1K's columns, or question, thinking, answer: JSON lines, JSON, parquet.",
)
@click.option(
    "--lengths", metavar="FILE|LAW", help=f"Counts of tokens in place of data; {' | '.join(LAWS)}: like those."
)
@click.option(
    "--model",
    metavar="DIR|ID",
    help="Gives shape and tokenizer, in place of the recipe's: a directory, or a model of the hub.",
)
@click.option(
    "--shape", metavar="NAME|DIR", help=f"The shape alone: {' | '.join(SHAPES)}, or a directory with config.json."
)
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where tokenizer.json is. [default: the model's]",
)
@click.option("--gpus", "machines", multiple=True, metavar="NAME:COUNT", help="Tell more of h200:4, say. Repeat.")
@click.option(
    "--prices", "price_file", type=_FILE, metavar="FILE", help='A JSON object: {"h200": 3.5}, USD for an hour of a GPU.'
)
@click.option("--price", "price_texts", multiple=True, metavar="NAME=USD", help="The same for one kind.")
@click.option("--calibration", type=_FILE, metavar="FILE", help="What earlier runs measured; corrects time and memory.")
@click.option(
    "--show",
    type=int,
    metavar="N",
    help="Print which tokens of the Nth example carry loss; 0: of none. [default: 1; with --json 0]",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the plan, as bide train run takes it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(**options: Any) -> int:
    """Check the data, and tell steps, memory, time and price before anything runs.

    Seconds on a CPU; with --lengths neither a tokenizer nor torch is needed. Ends with 1 if a machine of --gpus has no
    room for it.
    """
    recipe = load_recipe(options["preset"]).with_settings(pairs(options["settings"], "--set"))
    if options["model"]:
        recipe = recipe.with_(model=options["model"])
    if (options["data"] is None) == (options["lengths"] is None):
        raise UsageError("give --data FILE, or --lengths FILE to plan from counts alone")
    machines = [parse_machine(text) for text in options["machines"]]
    prices = read_prices(options["price_file"], options["price_texts"])
    calibration = None if options["calibration"] is None else Calibration.read(options["calibration"])
    shape = shape_of(options["shape"] or recipe.model)
    examples: list[Example] = []
    shown = 0
    report, tokenizer = Report(), None
    if options["data"] is None:
        for name in ("tokenizer", "show"):
            if options[name] is not None:
                raise UsageError(f"--{name} would have no effect with --lengths")
        if options["out"] is not None:
            raise UsageError("--out needs --data: a plan is run on the data that it was made from")
        lengths, loss = read_lengths(options["lengths"])
        lengths, loss = limited(lengths, loss, recipe)
        made = Plan.make(lengths, recipe, shape, loss_lengths=loss)
    else:
        tokenizer = read_tokenizer(options["tokenizer"], recipe)
        examples, report = load_examples(options["data"], recipe, tokenizer)
        shown = int(not options["as_json"]) if options["show"] is None else options["show"]
        if not 0 <= shown <= len(examples):
            raise UsageError(f"there is no example {shown}: the first is 1, the last {len(examples)}")
        made = Plan.of_examples(examples, recipe, shape)
    if options["out"]:
        made.save(options["out"])
    asked = [forecast(made, machine, prices=prices, calibration=calibration) for machine in machines]
    rows = table(made, prices=prices, calibration=calibration)
    if options["as_json"]:
        found = _as_json(made, report, asked, rows)
        if tokenizer is not None and shown:
            found["example"] = _learned(shown, examples[shown - 1], tokenizer)
        click.echo(json.dumps(found))
    else:
        if examples:
            click.echo(validation(report, examples) + "\n")
        if tokenizer is not None and shown:
            click.echo(mask(examples[shown - 1], tokenizer) + "\n")
        click.echo(lengths_view(made.tokens) + "\n")
        click.echo(plan_view(made) + "\n")
        for one in asked:
            click.echo(machine_view(one) + "\n")
        click.echo(table_view(rows))
        if options["out"]:
            click.echo(f"\nwritten: {options['out']}")
    return 0 if all(one.fits for one in asked) else 1


def _learned(number: int, example: Example, tokenizer: Tokenizer) -> dict[str, Any]:
    """Which tokens of an example carry loss: what `mask` prints."""
    ids = example.token_ids.tolist()
    texts = tokenizer.decode([ids, *(ids[start:end] for start, end in example.loss)])
    return {
        "number": number,
        "id": example.id,
        "tokens": example.tokens,
        "loss_tokens": example.loss_tokens,
        "text": texts[0],
        "loss": [{"start": start, "end": end, "text": text} for (start, end), text in zip(example.loss, texts[1:])],
    }


def _as_json(plan: Plan, report: Report, asked: Sequence[Forecast], rows: Sequence[Forecast]) -> dict[str, Any]:
    ordered = sorted(plan.tokens)
    return {
        "recipe": plan.recipe.to_json(),
        "shape": plan.shape.to_json(),
        "data": {
            "rows": report.rows or len(plan.tokens),
            "examples": len(plan.tokens),
            "columns": list(report.columns),
            "warnings": report.warnings(),
            "hash": plan.data,
            "tokens": sum(plan.tokens),
            "loss_tokens": sum(plan.loss_tokens),
            "shortest": ordered[0],
            "longest": ordered[-1],
            "mean": sum(ordered) / len(ordered),
            "histogram": [list(row) for row in histogram(plan.tokens)],
        },
        "plan": {
            "hash": plan.hash,
            "steps": len(plan.steps),
            "tokens": plan.total_tokens,
            "flops": plan.total_flops,
            "checkpoint_bytes": round(checkpoint_bytes(plan.shape, plan.recipe)),
        },
        "machines": [one.to_json() for one in asked],
        "table": [row.to_json() for row in rows],
    }
