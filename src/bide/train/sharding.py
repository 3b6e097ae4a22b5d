"""The model over the processes of one run: made empty, sharded layer by layer (FSDP2), filled with weights or noise.

No process ever holds the whole model, neither on the device nor on the host: parameters are made on the meta device,
sharded there, and each process reads its own slices of the safetensors files.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ..errors import ModelError, UsageError
from .processes import ProcessGoneError

INITIAL_DEVIATION = 0.02
"""Of random weights, as Qwen2 and Llama are initialised."""
_LONGEST = 300
"""Characters of torch's errors that are told."""


@dataclass(frozen=True)
class World:
    """The processes of a run: `rank` of `size`, on `device`, and the mesh that parameters are sharded over."""

    rank: int
    size: int
    device: torch.device
    mesh: Any

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, numbers: Iterable[float]) -> list[float]:
        """The sum of each number over all processes (double precision)."""
        values = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        dist.all_reduce(values)
        return list(map(float, values.tolist()))

    def any(self, mine: bool) -> bool:
        """Whether it is true on any process."""
        return self.sum([float(mine)])[0] > 0

    def gather(self, mine: Any) -> list[Any]:
        """What each process has, on every process."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def barrier(self) -> None:
        """Wait for all."""
        dist.barrier()


@contextlib.contextmanager
def while_others_last() -> Iterator[None]:
    """Raises `ProcessGoneError` in place of what torch raises where processes cannot reach each other: most often FSDP
    does, in the middle of a step.

    It belongs around the whole run. What catches a `BideError` further in saves a checkpoint, for which the processes
    would have to meet.
    """
    try:
        yield
    except RuntimeError as error:
        said = " ".join(str(error).split())
        of_others = isinstance(error, dist.DistError) or "gloo/transport" in said  # gloo's have no type of their own
        if not of_others or int(os.environ.get("WORLD_SIZE", 1)) == 1:
            raise
        raise ProcessGoneError(
            f"another process of this run is gone, or cannot be reached: {said[:_LONGEST]}", hint="see what it said"
        ) from error


@contextlib.contextmanager
def start_world(device: str | None = None, *, timeout_minutes: float = 20) -> Iterator[World]:
    """Join the processes that torchrun has started (or be one alone) and leave them at the end.

    `device`: "cuda" or "cpu"; None takes CUDA where there is one. Raises `UsageError` where fewer devices are there
    than processes.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    local = int(os.environ.get("LOCAL_RANK", rank))
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise UsageError(
                f"process {local} of this machine has no GPU of its own: {torch.cuda.device_count()} found",
                hint="give torchrun --nproc-per-node as many processes as there are GPUs",
            )
        torch.cuda.set_device(local)
        place = torch.device("cuda", local)
    else:
        place = torch.device(kind)
    settings: dict[str, Any] = {"timeout": timedelta(minutes=timeout_minutes)}
    if kind == "cuda":
        settings["device_id"] = place
    if "RANK" not in os.environ:
        settings |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", **settings)
    try:
        yield World(rank, size, place, init_device_mesh(kind, (size,)))
    except BaseException:
        if kind == "cpu":  # NCCL would wait for processes that still work; they end when this one has
            dist.destroy_process_group()
        raise
    dist.barrier()  # so that none leaves while another still talks to it
    dist.destroy_process_group()


def decoder_layers(model: Any) -> Any:
    """The list of the model's decoder layers. Raises `ModelError` where it has none that can be sharded."""
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise ModelError(f"{type(model).__name__} has no list of decoder layers, so it cannot be sharded")
    return layers


def shard(root: Any, model: Any, world: World, *, compute: torch.dtype, reduce: torch.dtype = torch.float32) -> None:
    """Shard `model`, whose root module is `root` (itself, or what holds it), in place, layer by layer.

    compute: the type in which weights are gathered and layers run; reduce: that in which gradients are summed (one
    process has nothing to sum, and keeps that of `compute`).
    Gradients are averaged over the processes, as FSDP does it. The embedding is a group of its own unless it is also
    the head; norm and head stay gathered from the forward pass to the end of the backward pass.
    """
    summed = reduce if world.size > 1 else compute
    precision = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=summed, cast_forward_inputs=False)
    settings: dict[str, Any] = {"mesh": world.mesh, "mp_policy": precision}
    layers = list(decoder_layers(model))
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    apart = [embedding] if embedding.weight is not head.weight else []
    for group in (*apart, *layers):
        fully_shard(group, reshard_after_forward=True, **settings)
    fully_shard(root, reshard_after_forward=False, **settings)
    for here, after in itertools.pairwise([*apart, *layers]):
        here.set_modules_to_forward_prefetch([after])
    for before, here in itertools.pairwise(layers):
        here.set_modules_to_backward_prefetch([before])
    for group in apart:
        group.set_unshard_in_backward(False)  # its gradient does not ask for its weights


def fill(model: Any, world: World) -> None:
    """Give the parameters of a model on the meta device memory on `world.device`, and make its buffers anew."""
    buffers = {
        id(module): type(module)(module.config)
        for module in model.modules()
        if module._buffers and not module._parameters and hasattr(module, "config")
    }  # what from_pretrained does not store: the frequencies of the rotary embedding
    model.to_empty(device=world.device)
    for module in model.modules():
        fresh = buffers.get(id(module))
        for name, buffer in module._buffers.items():
            if buffer is None:
                continue
            if fresh is None:
                raise ModelError(f"{type(module).__name__} has a buffer {name!r} that cannot be made anew")
            buffer.copy_(getattr(fresh, name))


def load_weights(parameters: dict[str, Any], directory: Path) -> None:
    """Read every process's slices of the safetensors files of a Hugging Face directory, cast to the types that are
    wanted.

    parameters: by the names in the files. Raises `ModelError` where one is missing or of another shape.
    """
    if not sorted(directory.glob("*.safetensors")):
        raise ModelError(f"{directory} holds no safetensors files", hint="give a model's directory, as downloaded")
    state = {name: parameter.detach() for name, parameter in parameters.items()}
    try:
        dcp.load(state, storage_reader=HuggingFaceStorageReader(str(directory), thread_count=4))
    except dcp.api.CheckpointException as error:
        reasons = {str(reason[0]) for reason in error.failures.values()}
        raise ModelError(f"{directory} does not hold this model's weights: {'; '.join(sorted(reasons))}") from error


@torch.no_grad()
def randomise(parameters: dict[str, Any], seed: int) -> None:
    """Random weights made where they lie: normal for matrices, 1 for norms, 0 for biases. Differs with world size."""
    for number, (name, parameter) in enumerate(parameters.items()):
        local = local_part(parameter)
        if parameter.dim() > 1:
            generator = torch.Generator(local.device).manual_seed(seed * 1_000_003 + number * 1_009 + _rank())
            local.normal_(0, INITIAL_DEVIATION, generator=generator)
        else:
            local.fill_(0.0 if name.endswith("bias") else 1.0)


def local_part(tensor: Any) -> Any:
    """This process's own part of a tensor, which shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Any) -> Any:
    """The whole tensor (every process must ask for it)."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
