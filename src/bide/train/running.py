"""A run from a plan to its receipt: the machine looked at, the model assembled, trained, exported."""

from __future__ import annotations

import contextlib
import importlib
import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..errors import BideError, ModelError, UsageError
from .batches import Sample
from .checkpoints import newest, read_facts, write_atomically
from .choosing import Ready, RunSettings, choose, device_name
from .curve import CURVE, Point, Sink, check_sink, make_sink, read_curve
from .determinism import deterministic
from .export import export_adapter, export_model
from .model_files import CONFIG_FILES, WEIGHT_FILES, model_directory
from .plan import Plan
from .processes import first_speaks
from .receipt import RECEIPT, Receipt, add_to_calibration, make_receipt
from .recipe import TrainRecipe
from .same_run import check_same_run, differences, identity
from .saving import Saver
from .sharding import World, start_world, while_others_last
from .stopping import STOP, remove_stop
from .tokenizer import FILES as TOKENIZER_FILES
from .trainee import Assembled, assemble, prepare_attention, read_config
from .trainer import Outcome, Trainer

MODEL = "model"
ADAPTER = "adapter"
PLAN = "plan.json"
SAMPLE_LOSSES = "sample_losses.json"
"""Sample -> the mean loss of its tokens when it was last seen."""


class TrainingMemoryError(BideError):
    """A step does not fit into the GPU's memory."""


def execute(
    plan: Plan,
    samples: Sequence[Sample],
    settings: RunSettings,
    *,
    ready: Callable[[Ready], None] | None = None,
    tell: Callable[[Point, Plan], None] | None = None,
) -> Receipt:
    """Run a plan on the processes that torchrun has started, or on one; go on where an earlier run stopped.

    samples: as the plan numbers them. ready: called on the first process before the first step, and not at all where
    the run is finished; tell: after each step. Every process gets the receipt. Raises what its parts raise,
    `UsageError` where the plan does not fit the machine, or the processes do not run the same.
    """
    with contextlib.ExitStack() as around, first_speaks(), while_others_last():
        if settings.deterministic:
            on_gpu = settings.device == "cuda" or (settings.device is None and torch.cuda.is_available())
            around.enter_context(deterministic(on_gpu=on_gpu))
        world = around.enter_context(start_world(settings.device))
        if len(plan.tokens) != len(samples):
            raise UsageError(f"the plan is of {len(plan.tokens)} samples, the data has {len(samples)}")
        _check_alike(world, _identity(plan) | _course(settings))
        done = world.gather(finished(settings.out, plan, settings.export) if world.is_first else None)[0]
        if done is not None:
            assert isinstance(done, Receipt)
            return done
        recipe = plan.recipe
        directory = model_directory(recipe.model, (*CONFIG_FILES, *WEIGHT_FILES, *TOKENIZER_FILES))
        _check_continuation(settings.out, plan)
        chosen = choose(plan, settings, world)
        _check_alike(
            world,
            {"max_tokens": chosen.max_tokens, "recompute": chosen.recomputed, "attention": chosen.attention},
        )
        sinks = _sinks(around, settings, recipe.to_json()) if world.is_first else []
        if world.is_first:
            chosen = replace(chosen, notes=(*chosen.notes, *_begin(settings.out, plan)))
            if ready:
                ready(chosen)
        world.barrier()
        made = assemble(
            read_config(directory),
            recipe,
            world,
            weights=directory,
            recomputed=chosen.recomputed,
            room=chosen.room,
            backend=chosen.attention,
        )
        prepare_attention(made, max(plan.tokens))
        _check_vocabulary(made.model.config, samples)
        with Saver(settings.out, world, keep=settings.keep) as saver:
            trainer = Trainer(
                made,
                plan,
                samples,
                world,
                settings.out,
                saver,
                (lambda: _export(made, directory, settings.out, recipe)) if settings.export else None,
                max_tokens=chosen.max_tokens,
                save_every=settings.save_every,
                in_background=chosen.in_background,
                sinks=sinks,
                tell=tell,
                stop_after=settings.stop_after,
                deterministic=settings.deterministic,
            )
            try:
                outcome = trainer.run()
            except torch.OutOfMemoryError as error:
                raise TrainingMemoryError(
                    f"the GPU's memory is full: {str(error).splitlines()[0]}",
                    hint="recompute more (--set recompute=full), or shorter packs (--max-tokens)",
                ) from error
            receipt = _keep_receipt(plan, samples, settings, chosen, made, outcome, saver)
            saver.finish()  # of a checkpoint that failed, when all else is kept
        world.barrier()
    return receipt


def _keep_receipt(
    plan: Plan,
    samples: Sequence[Sample],
    settings: RunSettings,
    chosen: Ready,
    made: Assembled,
    outcome: Outcome,
    saver: Saver,
) -> Receipt:
    """Make it, and let the first process write what is kept of a run beside its weights."""
    world = made.world
    points = world.gather(read_curve(settings.out / "curve.jsonl") if world.is_first else None)[0]
    machine = chosen.machine
    receipt = make_receipt(
        plan,
        points,
        device=device_name(world),
        gpus=world.size,
        began=outcome.began,
        max_tokens=chosen.max_tokens,
        peak_gib=outcome.peak_gib,
        reserved_gib=outcome.reserved_gib,
        machine=machine,
        price=None if machine is None or settings.prices is None else settings.prices[machine.gpu.name],
        told=chosen.told,
        settings=made.facts | {"deterministic": _deterministic(outcome)} | _saved(saver, chosen),
        versions=_versions(),
    )
    if world.is_first:
        receipt.save(settings.out)
        seen = {index for step in plan.steps[: outcome.step] for index in step.samples}
        _keep_losses(settings.out / SAMPLE_LOSSES, samples, seen, outcome.sample_losses)
        if settings.calibration and machine and chosen.calibrates and outcome.finished:
            add_to_calibration(settings.calibration, receipt, plan, machine)
    return receipt


def _keep_losses(path: Path, samples: Sequence[Sample], seen: Iterable[int], fresh: Mapping[int, float]) -> None:
    """Add to what earlier starts kept. seen: the samples of all steps done. Where a number is of none of them, an older
    version has numbered rows without ids, from 0, and all numbers are those of other rows."""
    known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    ids = [str(getattr(sample, "id", i)) for i, sample in enumerate(samples)]
    strange = known.keys() - {ids[i] for i in seen}
    kept = {} if any(map(str.isdigit, strange)) else {id: known[id] for id in known.keys() - strange}
    mine = {ids[i]: loss for i, loss in fresh.items()}
    write_atomically(path, json.dumps(dict(sorted({**kept, **mine}.items())), indent=1) + "\n")


def _export(made: Assembled, directory: Path, out: Path, recipe: TrainRecipe) -> None:
    if recipe.lora_rank:
        adapters = importlib.import_module(f"{__package__}.lora")
        export_adapter(made.model, directory, out / ADAPTER, recipe, made.world, adapters)
    else:
        export_model(made.model, directory, out / MODEL, recipe, made.world)


def _deterministic(outcome: Outcome) -> bool | str:
    """For the receipt: whether all steps were, or those from which on."""
    first = outcome.deterministic_from
    return f"from step {first + 1} on" if first else first is not None


def _saved(saver: Saver, chosen: Ready) -> dict[str, Any]:
    if not saver.count:
        return {}
    how = "in the background, " if chosen.in_background else ""
    return {"checkpoints": f"{saver.count} written {how}for which the training waited {saver.seconds:.1f} s"}


def _check_continuation(run: Path, plan: Plan) -> None:
    """Raises `UsageError` where the directory holds what another plan or recipe has trained, or a run that is over."""
    if (before := newest(run)) is not None:
        facts = read_facts(before)
        check_same_run(run, _identity_on_disk(run, facts["plan_hash"], facts["recipe"]), _identity(plan))
    elif (run / RECEIPT).is_file():
        known = Receipt.load(run)
        check_same_run(run, _identity_on_disk(run, known.plan_hash, known.recipe), _identity(plan))
        if known.finished:
            raise UsageError(
                f"the run in {run} is finished, but what it trained is not there any more, nor a checkpoint",
                hint=f"another --out; or remove {RECEIPT} there, to train anew",
            )


def _begin(run: Path, plan: Plan) -> list[str]:
    """Make the directory ready for this start. Returns what is to be told of it."""
    run.mkdir(parents=True, exist_ok=True)
    plan.save(run / PLAN)
    notes = []
    if remove_stop(run):
        notes.append(f"removed the file {STOP!r}, which was there before this start")
    if (before := newest(run)) is not None:
        notes.append(f"going on from step {read_facts(before)['step']} of {len(plan.steps)}")
    elif (run / CURVE).exists() and (lost := len(read_curve(run / CURVE))):
        notes.append(f"there is no checkpoint of the {lost} steps that {CURVE} has: it begins anew")
    return notes


def _identity(plan: Plan) -> dict[str, Any]:
    return identity(plan.hash, plan.recipe.to_json(), plan.data)


def _identity_on_disk(run: Path, plan_hash: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """With the data that `plan.json` tells of, where it is there."""
    try:
        known = Plan.load(run / PLAN)
    except UsageError:
        return identity(plan_hash, recipe)
    return identity(plan_hash, recipe, known.data if known.hash == plan_hash else "")


def _course(settings: RunSettings) -> dict[str, Any]:
    """Where all processes must go on, save and stop together."""
    before = newest(settings.out)
    return {
        "newest checkpoint": before and before.name,
        "max_tokens": settings.max_tokens,
        "save_every": settings.save_every,
        "save_async": settings.save_async,
        "stop_after": settings.stop_after,
        "export": settings.export,
        "deterministic": settings.deterministic,
    }


def _check_alike(world: World, mine: dict[str, Any]) -> None:
    """Raises `UsageError`, on all processes, where one of them has something else than the first."""
    first, *others = world.gather(mine)
    for number, other in enumerate(others, start=1):
        if found := differences(first, other, ("in process 0", f"in process {number}")):
            raise UsageError(
                f"process {number} does not run what process 0 runs: {found}",
                hint="give all machines the same command, data, model and --out",
            )


def finished(run: Path, plan: Plan, export: bool) -> Receipt | None:
    """The receipt of a run of this plan that has nothing left to do."""
    if not (run / RECEIPT).is_file():
        return None
    known = Receipt.load(run)
    there = not export or (run / (ADAPTER if plan.recipe.lora_rank else MODEL)).is_dir()
    same = identity(known.plan_hash, known.recipe) == identity(plan.hash, plan.recipe.to_json())
    return known if known.finished and same and there else None


def _check_vocabulary(config: Any, samples: Sequence[Sample]) -> None:
    largest = max(max(sample.token_ids) for sample in samples)
    if largest >= config.vocab_size:
        raise ModelError(
            f"the data has token {largest:,}, the model knows {config.vocab_size:,}",
            hint="the tokenizer is not this model's",
        )


def _sinks(around: contextlib.ExitStack, settings: RunSettings, told: dict[str, Any]) -> list[Sink]:
    """Each is closed if another cannot be made."""
    for name in settings.sinks:
        check_sink(name)
    return [around.enter_context(contextlib.closing(make_sink(name, settings.out, told))) for name in settings.sinks]


def _versions() -> dict[str, str]:
    transformers = importlib.import_module("transformers")
    found = {"bide": __version__, "python": platform.python_version(), "torch": torch.__version__}
    found["transformers"] = transformers.__version__
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found
