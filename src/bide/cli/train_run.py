"""`bide train run`: executes a plan, on one process or on those that torchrun has started."""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..errors import BideError, MissingExtraError, UsageError
from ..train.curve import Point, deviation, draw, read_curve, read_reference
from ..train.examples import Example, Report, load_examples
from ..train.model_files import shape_of
from ..train.plan import Plan
from ..train.processes import PATIENCE, first_speaks, leave_word, own_rank
from ..train.recipe import PRESETS, TrainRecipe, load_recipe
from .train_inputs import pairs, prices, tokenizer

if TYPE_CHECKING:
    from ..train.choosing import Ready
    from ..train.receipt import Receipt

ALARM = 0.25
"""A loss this much above or below the reference curve is told."""


@click.command()
@click.option(
    "--preset", default="s1", show_default=True, metavar="NAME|RECIPE.py", help=f"{' | '.join(PRESETS)}, or a recipe."
)
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the recipe. Repeat.")
@click.option("--model", metavar="DIR|ID", help="What is trained, in place of the recipe's model.")
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="FILE|DIR",
    help="The rows, as for bide train plan.",
)
@click.option(
    "--plan",
    "plan_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A plan that bide train plan --out wrote; brings its recipe. It must fit the data.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="The run's directory. One that holds a run of the same plan goes on.",
)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), help="[default: cuda where there is one]")
@click.option("--attention", metavar="NAME", help="The attention backend. [default: the device's]")
@click.option(
    "--deterministic",
    is_flag=True,
    help="On one GPU too, two runs and a resumed one give the same bytes: sums in one order, by slower kernels.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Of a pack. [default: the memory plan's]")
@click.option(
    "--save-every",
    type=click.IntRange(min=0),
    default=0,
    metavar="STEPS",
    help="Between checkpoints of weights and moments. 0: one only when it is stopped. The end of the plan writes the "
    "model, and with --no-export a checkpoint. [default: 0]",
)
@click.option(
    "--save-async/--no-save-async",
    default=None,
    help="Write them while the training goes on, from a copy in host memory. [default: where there is room for it]",
)
@click.option("--keep", type=click.IntRange(min=1), default=1, show_default=True, metavar="N", help="Checkpoints kept.")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Stop, to be resumed, when so many are done.")
@click.option("--no-export", is_flag=True, help="Write a checkpoint at the end, and no model.")
@click.option(
    "--reference",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="A loss curve to draw beside this one: curve.jsonl, trainer_state.json, or a CSV of a tracker.",
)
@click.option("--sink", "sinks", multiple=True, metavar="NAME", help="tensorboard | wandb: show the curve there too.")
@click.option("--prices", "price_file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE")
@click.option("--price", "price_texts", multiple=True, metavar="NAME=USD", help="For an hour of one kind of GPU.")
@click.option(
    "--calibration",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Corrects the forecast by earlier runs, and adds this one.",
)
def run(**options: Any) -> int:
    """Train, and say what it took.

    Several GPUs: torchrun --nproc-per-node 4 -m bide train run ... Ctrl-C, SIGTERM or a file named "stop" in the run's
    directory end it after the step under way, with a checkpoint. Ends with 1 if it was stopped.
    """
    rank = own_rank()
    try:
        receipt = _run(options, first=rank == 0)
    except BideError as error:
        line = f"process {rank}: {error.one_line()}" if rank else error.one_line()
        leave_word(line)
        if not rank:
            raise
        click.echo(f"bide: error: {line}", err=True)
        sys.exit(2)
    if receipt.finished or receipt.steps >= (options["steps"] or receipt.steps + 1):
        return 0
    leave_word(_stopped(receipt))
    if rank:
        time.sleep(PATIENCE)  # torchrun ends all as soon as one has ended with 1: the first one tells the receipt
    return 1


def _run(options: dict[str, Any], *, first: bool) -> Receipt:
    with first_speaks():
        _check(options)
        plan, examples, report = _inputs(options)
        reference = read_reference(options["reference"]) if options["reference"] else {}
        told_prices = prices(options["price_file"], options["price_texts"])
        module = _running()
    settings = module.RunSettings(
        out=options["out"],
        device=options["device"],
        attention=options["attention"],
        deterministic=options["deterministic"],
        max_tokens=options["max_tokens"],
        save_every=options["save_every"],
        save_async=options["save_async"],
        keep=options["keep"],
        stop_after=options["steps"],
        export=not options["no_export"],
        sinks=tuple(options["sinks"]),
        calibration=options["calibration"],
        prices=told_prices,
    )
    shown = _Shown(reference)

    def ready(ready: Ready) -> None:
        shown.begun = True
        _introduce(plan, report, ready, _without_effect(options, plan, ready))

    receipt: Receipt = module.execute(
        plan,
        examples,
        settings,
        ready=ready,
        tell=shown.step,
    )
    if first:
        shown.end()
        _conclude(options["out"], reference, receipt)
        if word := _last_word(options, receipt, shown):
            click.echo(word, err=True)
    return receipt


def _check(options: dict[str, Any]) -> None:
    if options["save_async"] is not None and not options["save_every"]:
        raise UsageError("--save-async and --no-save-async would have no effect without --save-every")
    if options["plan_file"] and (options["settings"] or _given("preset")):
        raise UsageError("--plan brings its recipe: --preset and --set would have no effect")


def _given(name: str) -> bool:
    """Whether the option stands on the command line, with its default perhaps."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def _inputs(options: dict[str, Any]) -> tuple[Plan, list[Example], Report]:
    known = Plan.load(options["plan_file"]) if options["plan_file"] else None
    if known is None:
        recipe = load_recipe(options["preset"]).with_settings(pairs(options["settings"], "--set"))
        recipe = recipe.with_(model=options["model"]) if options["model"] else recipe
    else:
        recipe = known.recipe.with_(model=options["model"]) if options["model"] else known.recipe
    examples, report = load_examples(options["data"], recipe, tokenizer(None, recipe))
    made = Plan.of_examples(examples, recipe, shape_of(recipe.model))
    if known is not None and known.hash != made.hash:
        raise UsageError(
            f"{options['plan_file']} is not of this data: its hash is {known.hash[:16]}, the data's {made.hash[:16]}",
            hint="make the plan anew, with --data",
        )
    return made, examples, report


def _running() -> Any:
    try:
        return importlib.import_module("bide.train.running")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("bide"):
            raise
        raise MissingExtraError(error.name, "train") from None


def _without_effect(options: dict[str, Any], plan: Plan, ready: Ready) -> list[str]:
    """What was asked for and changes nothing."""
    found, last = [], len(plan.steps)
    every, most = options["save_every"], options["steps"] or last
    if _given("keep") and not every:
        found.append("--keep without --save-every: no checkpoint is written but where the run is stopped")
    if every >= last:
        found.append(f"--save-every {every} without effect: the plan has {last} steps")
    if most > last:
        found.append(f"--steps {most} without effect: the plan has {last}")
    if plan.recipe.lora_rank and plan.recipe.weights != TrainRecipe().weights:
        found.append(f"weights={plan.recipe.weights} of the recipe without effect: adapters are fp32, all else bf16")
    priced = [text.partition("=")[0].lower() for text in options["price_texts"]]
    if ready.machine is None:
        asked = {"--calibration": options["calibration"], "--price": priced, "--prices": options["price_file"]}
        if names := [name for name, value in asked.items() if value]:
            found.append(f"{', '.join(names)} without effect: there is no forecast and no price for this device")
    elif priced and ready.machine.gpu.name not in priced:
        found.append(f"--price {', '.join(priced)} without effect: the GPUs are {ready.machine.gpu.name}")
    return found


def _introduce(plan: Plan, report: Report, ready: Ready, without_effect: list[str]) -> None:
    lines = [f"warning: {text}" for text in (*report.warnings(), *without_effect)] + list(ready.notes)
    lines.append(
        f"{len(plan.tokens):,} examples, {len(plan.steps)} steps of {plan.recipe.batch_size}, plan {plan.hash[:16]}, "
        f"{ready.world.size} x {ready.world.device.type}, recompute {ready.recomputed}"
        + (", checkpoints in the background" if ready.in_background else "")
        + (", deterministic" if ready.deterministic else "")
    )
    if ready.told:
        told = ready.told
        lines.append(
            f"forecast: {told.seconds_per_step:.2f} s a step, {60 * told.hours:.0f} min, {told.gpu_hours:.2f} "
            f"GPU-hours, {told.dollars:.2f} USD, {told.memory.allocated / (1 << 30):.1f} GiB"
        )
    click.echo("\n".join(lines), err=True)


class _Shown:
    """The line that says how far it is: overwritten in a terminal, else one a step."""

    def __init__(self, reference: dict[int, float]) -> None:
        self._reference, self._points = reference, list[Point]()
        self._live = sys.stderr.isatty()
        self._alarmed = False
        self.begun = False
        """Whether there was something to do."""

    def step(self, point: Point, plan: Plan) -> None:
        self._points.append(point)
        recent = [one.seconds for one in self._points[-20:] if one.warm] or [point.seconds]
        left = (len(plan.steps) - point.step) * sum(recent) / len(recent)
        line = (
            f"step {point.step}/{len(plan.steps)}  epoch {point.epoch:.2f}  loss {point.loss:.4f}  "
            f"norm {point.gradient_norm:.3f}  rate {point.learning_rate:.2e}  {point.seconds:.2f} s  "
            f"{point.tokens / point.seconds:,.0f} tokens/s  {_clock(left)} left"
        )
        off = deviation(self._points, self._reference)
        if off is not None:
            line += f"  {100 * off:+.0f} % of the reference"
            if abs(off) > ALARM and not self._alarmed:
                self._alarmed = True
                start = "\n" if self._live else ""
                click.echo(f"{start}warning: the loss is {100 * off:+.0f} % off the reference curve", err=True)
        click.echo(f"\r{line}\x1b[K" if self._live else line, err=True, nl=not self._live)

    def end(self) -> None:
        if self._live and self._points:
            click.echo("", err=True)


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{seconds / 60:.1f} min"


def _conclude(out: Path, reference: dict[int, float], receipt: Receipt) -> None:
    curves: list[tuple[str, dict[int, float]]] = [
        ("this run", {p.step: p.loss for p in read_curve(out / "curve.jsonl")})
    ]
    if reference:
        curves.append(("reference", reference))
    click.echo(draw(curves, last_step=receipt.steps_of_plan) + "\n")
    click.echo(receipt.page())
    words = {"model": "the model", "adapter": "the adapter", "checkpoints": "checkpoints"}
    for name, text in words.items():
        if (out / name).exists():
            click.echo(f"{text}: {out / name}")


def _last_word(options: dict[str, Any], receipt: Receipt, shown: _Shown) -> str:
    """How it ended, where the receipt does not say it."""
    if receipt.finished:
        if shown.begun:
            return ""
        return f"nothing was trained: the run in {options['out']} is finished, and this is its receipt"
    if receipt.steps >= (wanted := options["steps"] or receipt.steps + 1):
        done = f"{receipt.steps} of {receipt.steps_of_plan} steps are done, --steps {wanted} asks for no more"
        return f"{done}: without it the same command goes on"
    return _stopped(receipt)


def _stopped(receipt: Receipt) -> str:
    return f"stopped after step {receipt.steps} of {receipt.steps_of_plan}: the same command goes on"
