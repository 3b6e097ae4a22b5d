"""Budget forcing in any vLLM server: a logits processor, one request each, nothing evaluated twice.

    vllm serve MODEL --logits-processors bide.engines.vllm_plugin:BudgetForcing

A request then takes the settings of `bide.engines.vllm_settings` in `vllm_xargs` (`extra_args`
offline). Requests without them are not touched and cost nothing.

vLLM has two model runners with two interfaces for processors; this class implements both. On a GPU
the state of all rows lies on the device (`bide.logits_kernel`); on a CPU each row is driven by its
`BudgetForcer` (`bide.logits_processor`). It must be named as above: vLLM gives the sampled ids only
to processors that are, and an entry point would switch every vLLM of the environment to the V1
runner (0.22 to 0.30) or be loaded twice.

A request that comes back after a preemption is known by its parameters object and its output. Where
that does not tell (V2 with an engine in another process, or with n > 1), the waits already taken
are counted from the text.
"""

from __future__ import annotations

import importlib
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import transformers
import vllm.v1.sample.logits_processor as v1

from ..errors import UsageError
from ..logits_processor import HostRows
from .hf_tokenizer import HuggingFaceTokenizer
from .vllm_settings import PROMPT_TAIL, MadeRow, RowMaker, check_sampling, settings_of

try:
    import vllm.v1.worker.gpu.sample.logits_processor as v2
except ImportError:  # before vLLM 0.31 the V2 runner takes no processors
    BASES: tuple[type, ...] = (v1.LogitsProcessor,)
else:
    BASES = (v1.LogitsProcessor, v2.LogitsProcessor)

log = logging.getLogger("bide.vllm")

KERNEL = "bide.logits_kernel"
BUFFERS = 4
"""Pinned buffers in turn: the device may still read the last ones."""


class _Entry:
    """One request: its row, where that lies on the device, its output as vLLM lets it grow."""

    def __init__(self, params: Any, made: MadeRow, slot: int) -> None:
        self.params = params  # held, so that no other object gets its id
        self.row, self.texts = made.row, made.texts
        self.slot = slot
        self.output: Sequence[int] = ()
        self.place = -1  # V2: the slot that vLLM gave it
        self.shared = False  # another request has the same parameters object
        self.busy = True


class BudgetForcing(*BASES):  # type: ignore[misc]  # the bases depend on the version
    """The processor. `where`: the device (V1 runner) or the runner's request states (V2)."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raises `ValueError`, which vLLM answers with HTTP 400, for settings that cannot be."""
        try:
            check_sampling(sampling_params)
        except UsageError as error:
            raise ValueError(error.one_line()) from error

    def __init__(self, vllm_config: Any, where: Any, is_pin_memory: bool | None = None) -> None:
        model = vllm_config.model_config
        if getattr(vllm_config, "speculative_config", None):
            raise ValueError(
                "bide's logits processor cannot run with speculative decoding: a forced id would have to be "
                "drafted. Leave one of both out; bide's engine 'vllm' does both"
            )
        if not model.logits_processors:
            raise ValueError(
                "bide's logits processor was loaded by an entry point, where vLLM hides the sampled ids from it. "
                "Start vLLM with --logits-processors bide.engines.vllm_plugin:BudgetForcing"
            )
        if getattr(vllm_config.parallel_config, "enable_batch_sharded_sampling", None):
            raise ValueError(
                "bide's logits processor cannot run with enable_batch_sharded_sampling: a request would change "
                "from one rank to another. Leave one of both out"
            )
        self._slots: Any = None if is_pin_memory is not None else where  # V2: the runner's states
        self._device = torch.device(where.device if is_pin_memory is None else where)
        self._maker = _maker(model)
        self._capacity = 2 * vllm_config.scheduler_config.max_num_seqs + 8
        self._free = list(range(self._capacity))
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by slot, the oldest first
        self._same: defaultdict[int, list[_Entry]] = defaultdict(list)  # by the identity of their parameters
        self._count = int(model.seed or 0)  # the same on every rank of a tensor-parallel group
        self._batch: dict[int, _Entry] = {}  # V1: by row of the batch
        self._moved = True
        self._rows: list[tuple[int, _Entry]] = []
        self._host = HostRows()
        self._kernel: Any = None
        if self._slots is not None or self._device.type != "cpu":
            kernel = importlib.import_module(KERNEL)
            flags = torch.tensor(self._maker.flags(), dtype=torch.uint8)
            self._kernel = kernel.KernelRows(self._capacity, list(self._maker.markers.values()), flags, self._device)
            self._width = 0 if self._slots is not None else vllm_config.scheduler_config.max_num_seqs
            self._reads_host = self._kernel.warm_up(model.get_vocab_size(), self._width)
            pinned = self._device.type == "cuda"
            shape = 4, max(1, self._width)
            self._buffers = [torch.zeros(shape, dtype=torch.int32, pin_memory=pinned) for _ in range(BUFFERS)]
            self._views = [buffer.numpy() for buffer in self._buffers]
            self._written = [0] * BUFFERS  # which batch's rows each buffer holds
        if self._slots is not None:
            self._owned = [-1] * self._slots.max_num_reqs
            self._owners = torch.full((self._slots.max_num_reqs, 2), -1, dtype=torch.int32, device=self._device)
            self._staged: dict[int, Any] = {}
        self._batches = self._turn = 0

    def is_argmax_invariant(self) -> bool:
        """False: it acts at temperature 0 as well."""
        return False

    # The V1 runner.

    def update_state(self, batch_update: Any) -> None:
        """Requests have come, gone or changed places."""
        if batch_update is None:
            return
        batch = self._batch
        for number in (*batch_update.removed, *(number for number, *_ in batch_update.added)):
            self._leave(batch.pop(number, None))  # all of them first: one may come back at once, elsewhere
        for number, params, prompt, output in batch_update.added:
            entry = self._enter(params, prompt or (), output)
            if entry is not None:
                entry.output = output
                batch[number] = entry
        for source, target, direction in batch_update.moved:
            one, other = batch.pop(source, None), batch.pop(target, None)
            if one is not None:
                batch[target] = one
            if other is not None and direction is v1.MoveDirectionality.SWAP:
                batch[source] = other
            elif other is not None and other is not one:
                self._leave(other)
        self._rows = sorted(batch.items())
        self._moved = True

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Change the logits of the rows that have a budget. `ctx`: given by the V2 runner only."""
        if ctx is not None:
            if any(self._owned[slot] >= 0 for slot in ctx.idx_mapping_np.tolist()):
                self._kernel.apply_slots(logits, ctx.expanded_idx_mapping, ctx.input_ids, ctx.pos, self._owners)
        elif self._rows and self._kernel is not None:
            self._kernel.apply(logits, self._feed(), len(self._rows))
        elif self._rows:
            if self._moved:
                self._followed = [(number, entry.row, entry.output) for number, entry in self._rows]
            self._host.advance(self._followed, self._moved)
            self._moved = False
            self._host.apply(logits.numpy())
        return logits

    def _feed(self) -> torch.Tensor:
        """What the kernel must know of this step, on the device: one small copy."""
        rows = self._rows
        count = len(rows)
        if self._moved:
            self._numbers = [number for number, _ in rows]
            self._places = [entry.slot for _, entry in rows]
            self._outputs = [entry.output for _, entry in rows]
            self._batches += 1
            self._moved = False
        self._turn = (self._turn + 1) % BUFFERS
        view = self._views[self._turn]
        if self._written[self._turn] != self._batches:  # not before its turn: the device may still read it
            view[0, :count] = self._numbers
            view[1, :count] = self._places
            self._written[self._turn] = self._batches
        latest = [output[-1] if output else 0 for output in self._outputs]
        if min(latest) < 0:
            raise RuntimeError("vLLM did not give the sampled ids to bide's logits processor; please report this")
        view[2, :count] = latest
        view[3, :count] = [*map(len, self._outputs)]
        buffer = self._buffers[self._turn]
        return buffer if self._reads_host else buffer.to(self._device, non_blocking=True)

    # The V2 runner.

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """A request takes a slot; its ids are there only at `apply_staged_writes`."""
        asked = settings_of(sampling_params) is not None
        if self._owned[req_idx] >= 0 or asked:
            self._staged[req_idx] = sampling_params if asked else None
        return asked

    def apply_staged_writes(self) -> None:
        """Write the rows of the requests that have come. Reads their prompts: waits for the device."""
        for slot, params in self._staged.items():
            row, prompt_length = -1, 0
            if params is not None:
                prompt_length = int(self._slots.prompt_len.np[slot])
                total = int(self._slots.prefill_len.np[slot])
                ids = self._slots.all_token_ids.gpu[slot, :total].tolist()
                entry = self._enter(params, ids[:prompt_length], ids[prompt_length:])
                if entry is not None:
                    row = entry.slot
                    if entry.place >= 0 and self._owned[entry.place] == row:
                        self._owned[entry.place] = -1  # it has moved: who comes there next does not end it
                    entry.place = slot
            if row != self._owned[slot]:
                self._leave(self._entries.get(self._owned[slot]))
            self._owned[slot] = row
            self._owners[slot] = torch.tensor([row, prompt_length], dtype=torch.int32)
        self._staged.clear()

    # Requests.

    def _enter(self, params: Any, prompt: Sequence[int], output: Sequence[int]) -> _Entry | None:
        """The entry of a request that comes into the batch: an old one, if it was there before."""
        entry = self._known(params, output)
        if entry is not None:
            entry.busy = True
            self._entries.move_to_end(entry.slot)
            return entry
        settings = settings_of(params)
        if settings is None:
            return None
        slot = self._take_slot()

        def begin(made: MadeRow) -> None:
            made.row.replay(output)
            if self._kernel is not None:
                self._kernel.write(slot, made.row, made.texts)

        self._count += 1
        seed = params.seed if params.seed is not None else self._count * 0x9E3779B1
        made = self._maker.make(params, prompt[-PROMPT_TAIL:], seed=seed, begin=begin, settings=settings)
        entry = _Entry(params, made, slot)
        same = self._same[id(params)]
        for other in same:
            other.shared = entry.shared = True
        same.append(entry)
        self._entries[slot] = entry
        return entry

    def _known(self, params: Any, output: Sequence[int]) -> _Entry | None:
        """The entry of a request that was preempted. The samples of one request may share `params`."""
        same = self._same.get(id(params), [])
        if self._slots is not None:
            return same[0] if output and len(same) == 1 and not same[0].shared else None
        same = [entry for entry in same if not entry.busy]
        for entry in same:
            if entry.output is output:
                return entry
        if not output:
            return None
        # Another list: its own, or one that wrote the same under the same settings, which is as likely.
        return next((entry for entry in same if _settled(entry.output) == list(output)), None)

    def _leave(self, entry: _Entry | None) -> None:
        """A request leaves the batch, for good or not: that is not told."""
        if entry is not None:
            self._host.park(entry.row)
            entry.busy = False

    def _take_slot(self) -> int:
        """A free row of the table; else that of the request that left longest ago."""
        if not self._free:
            oldest = next(slot for slot, entry in self._entries.items() if not entry.busy)
            gone = self._entries.pop(oldest)
            same = self._same[id(gone.params)]
            same.remove(gone)
            if not same:
                del self._same[id(gone.params)]
            self._free.append(oldest)
        return self._free.pop()


def _settled(output: Sequence[int]) -> list[int]:
    """`output` less an id that was under way: asynchronous scheduling drops it at a preemption."""
    return list(output[:-1]) if output and output[-1] < 0 else list(output)


def _maker(model: Any) -> RowMaker:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        model.tokenizer, revision=model.tokenizer_revision, trust_remote_code=model.trust_remote_code
    )
    eos = {tokenizer.eos_token_id}
    named = (model.try_get_generation_config() or {}).get("eos_token_id")
    eos |= set(named if isinstance(named, Iterable) else [named])
    size = model.get_vocab_size()
    return RowMaker(HuggingFaceTokenizer(tokenizer, frozenset(i for i in eos if i is not None and i < size)), size)
