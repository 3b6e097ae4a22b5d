"""The loop: executes a plan, step by step, and can be stopped and resumed at any of them.

    gradient = sum over the step's packs of d/dw sum_i weights[i] * nll[i];  norm clipped;  AdamW at the schedule's rate

Nothing random happens here but dropout in adapters and stochastic rounding, both seeded by the step, so a resumed run
is the run that was not stopped, at the same number of processes: to the bit on CPUs, and on one GPU in a run that is
deterministic (`determinism`).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..errors import BideError
from .attention import Documents
from .batches import PAD_MULTIPLE, Sample, make_batch
from .checkpoints import load_checkpoint, newest, read_facts, sync
from .compiling import graphs_compiled
from .curve import CURVE, CurveFile, Point, Sink
from .float8 import unscaled
from .optimizer import learning_rate
from .plan import Plan
from .same_run import check_same_run, identity
from .saving import Saver
from .self_test import check_isolation
from .sharding import World
from .stopping import STOP, remove_stop, signals_held
from .trainee import Assembled


class NotFiniteError(BideError):
    """A loss or a gradient is infinite or not a number. The weights are those of the step before."""


@dataclass
class Outcome:
    """What a run did, this time."""

    step: int
    """Optimizer steps done in all."""
    finished: bool
    """Whether that is all of the plan."""
    began: int = 0
    """Steps that were done before this time."""
    peak_gib: float = 0.0
    """Most memory that the device held for tensors, on the fullest process."""
    reserved_gib: float = 0.0
    """And most that the allocator had taken from the device."""
    deterministic_from: int | None = None
    """The step (from 0) from which on all have been, up to this one. None: this one was not."""
    sample_losses: dict[int, float] = field(default_factory=dict)
    """Sample -> mean negative log likelihood of its tokens, in the epoch in which it was last seen."""


@dataclass
class Trainer:
    """One training in one directory. Every process makes one and calls `run`."""

    made: Assembled
    plan: Plan
    samples: Sequence[Sample]
    world: World
    out: Path
    saver: Saver
    """Of its checkpoints. Who made it waits for the last one."""
    export: Callable[[], None] | None
    """What writes the trained weights when the plan is done (all processes call it). None: a checkpoint has them."""
    max_tokens: int | None = None
    """Of a pack. None: one pack for each process and step."""
    save_every: int = 0
    """Steps from one checkpoint to the next. 0: there is one only when the run is stopped, or cannot go on."""
    in_background: bool = False
    """Whether those are written while the training goes on."""
    sinks: Sequence[Sink] = ()
    """On the first process. Who made them closes them."""
    tell: Callable[[Point, Plan], None] | None = None
    """Called on the first process after each step."""
    stop_after: int | None = None
    """Stop, as if told to, when so many steps are done."""
    deterministic: bool = False
    """Whether it runs under `determinism.deterministic`."""
    _first: int = 0
    """The step (from 0) that this process begins with."""
    _deterministic_from: int | None = None
    """As `Outcome.deterministic_from`."""

    def run(self) -> Outcome:
        """From the last checkpoint, or the beginning, to the end of the plan.

        Raises `NotFiniteError`, `CheckpointError`, what `export` raises (a checkpoint is written first), and
        `UsageError` where the directory holds another run.
        """
        self._first = done = self._resume()
        tensors = self._tensors()  # moments too: what fits in the first step then fits in all, as memory is counted
        if self.save_every and self.in_background:
            self.saver.reserve(tensors)
        del tensors
        self._check()  # after resuming: a forward pass leaves the head gathered, with the weights of that moment
        last = min(len(self.plan.steps), self.stop_after or len(self.plan.steps))
        if done < last:
            self._warm_up()
        outcome = Outcome(done, False, done, deterministic_from=self._deterministic_from)
        curve = CurveFile(self.out, done) if self.world.is_first else None
        shows: list[Any] = [curve, *self.sinks] if curve else []
        if self.world.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            with signals_held() as told:
                while outcome.step < last:
                    before = graphs_compiled()
                    point = self._step(outcome)
                    stop = bool(told) or (self.world.is_first and (self.out / STOP).exists())
                    stopped, failed, compiled = self.world.sum(
                        [stop, self.saver.has_failed, graphs_compiled() != before]
                    )
                    if compiled:  # on any process: all have waited for it
                        point = replace(point, warm=False)
                    for show in shows:
                        show.add(point)
                    if self.tell and self.world.is_first:
                        self.tell(point, self.plan)
                    whole = outcome.step == len(self.plan.steps)
                    if stopped or (outcome.step == self.stop_after and not whole):
                        self.save(outcome.step)
                        break
                    if whole:  # what is trained goes first, even where a checkpoint has failed
                        break
                    if failed:
                        self.saver.finish()
                    if self.save_every and outcome.step % self.save_every == 0:
                        self.save(outcome.step, in_background=self.in_background)
                outcome.finished = outcome.step == len(self.plan.steps)
                if outcome.finished:
                    self._end(outcome.step)
        finally:
            if curve:
                curve.close()
                remove_stop(self.out)  # however it ends: the next start is not meant
        self._gather(outcome)
        return outcome

    def _check(self) -> None:
        def hidden(ids: torch.Tensor, documents: Documents) -> Any:
            torch.manual_seed(0)  # the same dropout both times
            return self.made.trainee(input_ids=ids, use_cache=False, **documents.arguments()).last_hidden_state

        with unscaled(self.made.model):  # one scale for a row ties its documents
            check_isolation(
                hidden,
                device=self.world.device,
                vocabulary=self.made.model.config.vocab_size,
                row=self._first_row(),
            )

    def _warm_up(self) -> None:
        """Compute the plan's longest first pack for nothing, with layers of all kinds: so that no step waits for the
        compiler, and a resumed run has the kernels of the uninterrupted one, which split their sums by the length of
        the row that they were compiled for."""
        if not self.made.facts["compiled"] and self.world.device.type != "cuda":
            return
        torch.manual_seed(0)
        batch = make_batch(self._first_pack(), self.samples, self.plan.weights(0), self.world.device)
        self.made.compute(batch, all_kinds=True)
        self.made.optimizer.zero_grad(set_to_none=True)

    def _first_pack(self) -> tuple[int, ...]:
        """This process's longest one in the plan's first step."""
        packs = self.plan.layout(0, self.world.size, self.max_tokens)[self.world.rank]
        return max(packs, key=lambda one: sum(self.plan.tokens[i] for i in one))

    def _first_row(self) -> int:
        """Its tokens, with padding."""
        step = PAD_MULTIPLE[self.world.device.type]
        return -(-max(sum(self.plan.tokens[i] for i in self._first_pack()), 1) // step) * step

    def _end(self, step: int) -> None:
        """Bring to the disk what is trained, in one way or the other."""
        if self.export is None:
            self.save(step)
            return
        try:
            self.export()
        except BideError:
            self.save(step)
            raise

    def save(self, step: int, *, in_background: bool = False) -> None:
        """A checkpoint of this moment."""
        write = self.saver.begin if in_background else self.saver.save
        if self.world.is_first:
            with contextlib.suppress(OSError):  # a disk that fails fails the checkpoint, on all processes
                sync(self.out / CURVE)  # a machine that dies must not leave fewer lines than the checkpoint has steps
        facts = {"plan_hash": self.plan.hash, "recipe": self.plan.recipe.to_json()}
        write(step, self._tensors(), facts | {"deterministic_from": self._deterministic_from})

    def _resume(self) -> int:
        found = self.world.gather(newest(self.out) if self.world.is_first else None)[0]
        if found is None:
            self._deterministic_from = 0 if self.deterministic else None
            return 0
        facts = read_facts(found)
        mine = identity(self.plan.hash, self.plan.recipe.to_json())
        check_same_run(self.out, identity(facts["plan_hash"], facts["recipe"]), mine)
        load_checkpoint(found, self._tensors())
        self.made.weights_changed()
        step, since = int(facts["step"]), facts.get("deterministic_from")
        if self.deterministic:
            self._deterministic_from = step if since is None else since
        return step

    def _tensors(self) -> dict[str, Any]:
        """By the parameters' names, so that any number of processes can read it."""
        trained = self.made.trained()
        return {
            "model": {name: parameter.detach() for name, parameter in trained.items()},
            "optimizer": {name: self.made.optimizer.state_of(parameter) for name, parameter in trained.items()},
        }

    def _step(self, outcome: Outcome) -> Point:
        number, begin = outcome.step, time.perf_counter()
        recipe, world = self.plan.recipe, self.world
        rate = learning_rate(
            number,
            len(self.plan.steps),
            peak=recipe.learning_rate,
            warmup_fraction=recipe.warmup_fraction,
            schedule=recipe.schedule,
            min_ratio=recipe.min_learning_rate_ratio,
        )
        weights = self.plan.weights(number)
        torch.manual_seed(recipe.seed * 1_000_003 + number * 1_009 + world.rank)  # dropout
        packs = self.plan.layout(number, world.size, self.max_tokens)[world.rank]
        found = [self.made.compute(make_batch(pack, self.samples, weights, world.device)) for pack in packs]
        loss = world.sum([sum(torch.stack([total for total, _ in found]).tolist())])[0]
        sums = torch.cat([sums for _, sums in found]).tolist()
        mine = [index for pack in packs for index in pack]
        losses = {index: value / self.plan.loss_tokens[index] for index, value in zip(mine, sums)}
        norm = self._update(rate, loss, losses, number)
        outcome.sample_losses |= losses
        if world.device.type == "cuda":
            torch.cuda.synchronize()
        outcome.step += 1
        return Point(
            step=outcome.step,
            epoch=outcome.step * recipe.epochs / len(self.plan.steps),
            loss=loss,
            gradient_norm=norm,
            learning_rate=rate,
            tokens=self.plan.step_tokens[number],
            seconds=time.perf_counter() - begin,
            warm=number > self._first,
        )

    def _update(self, rate: float, loss: float, losses: dict[int, float], number: int) -> float:
        if math.isfinite(loss):
            norm = self.made.gradient_norm()
            if math.isfinite(float(norm)):
                self.made.update(rate, norm, self.plan.recipe.max_grad_norm)
                return float(norm)
            what = f"the gradient's norm is {float(norm)}"
        else:
            what = f"the loss is {loss}"
        bad = sorted({i for found in self.world.gather(losses) for i, x in found.items() if not math.isfinite(x)})
        bad = bad or sorted(self.plan.steps[number].samples)
        self.made.optimizer.zero_grad(set_to_none=True)
        if number:
            self.save(number)
        names = ", ".join(str(getattr(self.samples[i], "id", i)) for i in bad[:16])
        raise NotFiniteError(
            f"step {number + 1}: {what}; samples: {names}",
            hint="the weights of the step before are saved" if number else "nothing has been trained yet",
        )

    def _gather(self, outcome: Outcome) -> None:
        for found in self.world.gather(outcome.sample_losses):
            outcome.sample_losses |= found
        if self.world.device.type == "cuda":
            mine = (torch.cuda.max_memory_allocated() / 2**30, torch.cuda.max_memory_reserved() / 2**30)
            found = self.world.gather(mine)
            outcome.peak_gib, outcome.reserved_gib = (max(column) for column in zip(*found))
