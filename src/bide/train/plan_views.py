"""A plan in words for a terminal: what was read, which tokens carry loss, the steps, and what machines make of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import click

from .examples import Example, Report
from .forecast import Forecast
from .lengths import histogram
from .memory import GIB, checkpoint_bytes, limit
from .plan import Plan
from .writing import Tokenizer

_BAR = 40
_EDGE = 160
"""Tokens shown of each end of a long span."""


def validation(report: Report, examples: Sequence[Example]) -> str:
    """What was read, and what is odd about it."""
    lines = [f"{report.rows:,} rows, columns {', '.join(report.columns)}; {len(examples):,} examples"]
    lines.append("every text comes back from its tokens; no text holds a marker or a control token")
    if report.compared_text and not report.other_text:
        lines.append(f"the file's own column text is what the recipe makes, in all {report.compared_text:,} rows")
    if not report.truncated and not report.dropped:
        lines.append("nothing is truncated, nothing dropped")
    return "\n".join([*lines, *(f"warning: {text}" for text in report.warnings())])


def mask(example: Example, tokenizer: Tokenizer) -> str:
    """One example: which tokens carry loss (green, behind "loss"), which do not (behind "-"). Long spans are cut."""
    spans = list(_spans(example))
    lines = [f"example {example.id}: {example.tokens:,} tokens, {example.loss_tokens:,} with loss"]
    for carries, start, end in spans:
        ids = example.token_ids[start:end]
        if len(ids) > 2 * _EDGE:
            pieces = [ids[:_EDGE], ids[-_EDGE:]]
            first, last = tokenizer.decode([piece.tolist() for piece in pieces])
            text = f"{first}\n... {len(ids) - 2 * _EDGE:,} tokens ...\n{last}"
        else:
            (text,) = tokenizer.decode([ids.tolist()])
        lines.append(f"{'loss' if carries else 'no loss'}, tokens {start:,} to {end - 1:,}:")
        for line in text.removesuffix("\n").split("\n"):
            shown = f"{'loss' if carries else '   -'} | {line}"
            lines.append(click.style(shown, fg="green") if carries else click.style(shown, dim=True))
    return "\n".join(lines)


def _spans(example: Example) -> Iterator[tuple[bool, int, int]]:
    at = 0
    for start, end in example.loss:
        if start > at:
            yield False, at, start
        yield True, start, end
        at = end
    if at < example.tokens:
        yield False, at, example.tokens


def lengths_view(lengths: Sequence[int]) -> str:
    """A histogram, and the figures that matter for a limit."""
    rows = histogram(lengths)
    most = max(count for _, _, count in rows)
    ordered = sorted(lengths)
    lines = [
        f"tokens of a sample: {ordered[0]:,} to {ordered[-1]:,}, mean {sum(ordered) / len(ordered):,.0f}, "
        f"median {ordered[len(ordered) // 2]:,}, above 4,096: {sum(n > 4096 for n in ordered) / len(ordered):.0%}"
    ]
    for low, high, count in rows:
        bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
        lines.append(f"{low:>8,} to {high - 1:<8,} {count:>6,}  {bar}".rstrip())
    return "\n".join(lines)


def plan_view(plan: Plan) -> str:
    """The steps."""
    recipe = plan.recipe
    short = len(plan.tokens) % recipe.batch_size
    last = {
        "wrap": f"; the last of an epoch takes {recipe.batch_size - short} samples of its beginning again",
        "drop": f"; {short} samples of each epoch are left out",
        "short": f"; the last of an epoch has {short}",
    }[recipe.last_batch]
    warmup = -(-len(plan.steps) * recipe.warmup_fraction // 1)
    return "\n".join(
        [
            f"recipe {recipe.name}: {recipe.model}, format {recipe.format}, {recipe.loss_weighting}, weights "
            f"{recipe.weights}, moments {recipe.moments}"
            + (f", LoRA of rank {recipe.lora_rank}" if recipe.lora_rank else "")
            + (f", float8 {recipe.float8}" if recipe.float8 else ""),
            f"{len(plan.steps):,} steps of {recipe.batch_size} samples, {recipe.epochs} epochs{last if short else ''}",
            f"rate {recipe.learning_rate:g}, {warmup:.0f} steps of warm-up, {recipe.schedule}",
            f"{plan.total_tokens:,} tokens, {plan.total_flops:.3g} FLOPs",
            f"shape {plan.shape.name}: {plan.shape.parameters / 1e9:.2f}B weights, {plan.shape.layers} layers",
            f"a checkpoint takes {checkpoint_bytes(plan.shape, recipe) / GIB:,.1f} GiB on disk, and as much memory of "
            "all hosts together where it is written in the background",
            f"plan {plan.hash[:16]} (the same samples and weights in every step at any number of GPUs)",
        ]
    )


def machine_view(found: Forecast) -> str:
    """One machine: memory by part, and what it takes."""
    memory, top = found.memory, limit(found.machine) / GIB
    lines = [f"{found.machine.label}, each GPU:"]
    if memory.parts:
        lines[0] = f"{found.machine.label}, each GPU at its peak, {memory.moment}:"
        for name, size in memory.parts.items():
            lines.append(f"{name:>30} {size / GIB:>8.2f} GiB")
        lines.append(f"{'CUDA and libraries':>30} {memory.context / GIB:>8.2f} GiB")
        lines.append(f"{'together':>30} {memory.total / GIB:>8.2f} GiB of {top:.1f} that can be used")
    if found.needed > memory.total:
        lines.append(f"{found.needed / GIB:.1f} GiB must be free: the allocator keeps the memory of a step's gradients")
    if not found.fits:
        return "\n".join([*lines, f"does not fit: {found.reason}", f"would fit: {'; or '.join(found.remedies)}"])
    lines += [
        f"recompute {found.recompute}; packs of at most {found.max_tokens:,} tokens, {found.passes:.2f} a step, "
        f"balance {found.balance:.1%}",
        f"{found.seconds_per_step:.2f} s a step, MFU {found.mfu:.1%}, {found.tokens_per_second:,.0f} tokens/s/GPU: "
        f"{found.hours * 60:.0f} min, {found.gpu_hours:.2f} GPU-hours, ${found.dollars:.2f} at "
        f"${found.dollars_per_hour:.2f} a GPU-hour",
        "not corrected by runs of yours: see --calibration"
        if found.factors is None
        else f"corrected by earlier runs: time times {found.factors[0]:.3f}, memory times {found.factors[1]:.3f}",
    ]
    return "\n".join(lines)


def table_view(rows: Sequence[Forecast]) -> str:
    """All machines."""
    lines = [
        f"{'GPUs':>13} {'GiB each':>9} {'packs':>6} {'balance':>8} {'s/step':>7} {'MFU':>6} {'minutes':>8} "
        f"{'GPU-h':>7} {'USD':>8}  recompute"
    ]
    for row in rows:
        if row.fits:
            lines.append(
                f"{row.machine.label:>13} {row.needed / GIB:>9.1f} {row.passes:>6.2f} {row.balance:>8.1%} "
                f"{row.seconds_per_step:>7.2f} {row.mfu:>6.1%} {row.hours * 60:>8.0f} {row.gpu_hours:>7.2f} "
                f"{row.dollars:>8.2f}  {row.recompute}"
            )
        else:
            lines.append(f"{row.machine.label:>13} does not fit: {row.reason}")
            lines.append(f"{'':>13} would fit: {'; or '.join(row.remedies)}")
    return "\n".join(lines)
