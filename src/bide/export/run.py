"""`bide export`: from a model directory to files, checked, resumable, each whole or absent.

OUT/export.json says of each file what it was made from and what the check found. What it holds of the same source is
not made again; a file whose check is missing is checked only.
"""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import ModelError, UsageError
from ..formats import FORMATS, ReasoningFormat, detect_format, get_format
from ..models.files import Report, check_space, explained, locked, sha256_of
from ..models.gguf import read_gguf_metadata
from ..stored_format import format_metadata
from .adapter import Adapter, base_of, gguf_pairs, is_adapter, read_adapter
from .check import Checked, Plan, ask_the_source, check_file, make_plan, missing_for_check
from .convert import Progress, model_bytes, model_types, write_adapter, write_model
from .licences import licence_of
from .record import Record, digest, identity
from .source import Source, read_source

_PROGRESS_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Order:
    """What is wanted."""

    directory: Path
    out: Path
    types: tuple[str, ...]
    name: str
    format: str = "auto"
    licence: str | None = None
    lora: bool = False
    base: Path | None = None
    check: bool = True
    text: str | None = None
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Made:
    """One file, and what is known of it."""

    path: Path
    type: str
    size_bytes: int
    sha256: str
    tensors: dict[str, int]
    """Type -> how many tensors have it."""
    checked: Checked | None


@dataclass(frozen=True, slots=True)
class Exported:
    """All that was made."""

    source: Source
    format: ReasoningFormat
    files: tuple[Made, ...]
    adapter: Made | None
    licence: str | None

    @property
    def broken(self) -> list[str]:
        """The files whose tokenizer does not read as the source's."""
        made = [*self.files, *([self.adapter] if self.adapter else [])]
        return [one.path.name for one in made if one.checked and one.checked.same_ids < one.checked.texts]


def export(order: Order, report: Report) -> Exported:
    """Make what `order` wants. `report` gets lines to show: progress, findings, warnings.

    Raises `ModelError`, `UsageError`, `MissingExtraError`; an error of the disk and Ctrl-C are one `DownloadError`
    each, and the same call then goes on where it stopped."""
    adapter = _adapter(order)
    directory = order.directory if adapter is None else _base_directory(order)
    source = read_source(directory)
    format = choose_format(order.format, source)
    report(
        f"{order.name}: {source.architecture.name}, {source.dtype}, {len(source.names)} tensors, tokenizer"
        f" {source.vocabulary.split}, reasoning format {format.name}"
    )
    if source.vocabulary.normalises:
        report(
            "warning: the tokenizer composes characters (NFC) and llama.cpp does not: text with combining accents gets"
            " other ids there"
        )
    if source.chat_template is None:
        report("warning: the model has no chat template, so its GGUF has none")
    elif order.format == "auto" and format is FORMATS["cot"]:
        report(
            "note: the chat template shows no markers of thinking, so the format cot is stored; if the model was"
            " trained on some, name them: --format s1"
        )
    licence = order.licence or licence_of(order.directory) or licence_of(directory)
    if licence is None:
        report("warning: the model names no licence; name it: --licence apache-2.0")
    check = order.check
    if check and (lacking := missing_for_check()):
        report(f"warning: no check against the source: {lacking} is not installed (pip install 'bide[transformers]')")
        check = False
    with explained(f"the export of {order.name}", order.out):
        order.out.mkdir(parents=True, exist_ok=True)
        with locked(order.out / ".export.lock", report):
            work = _Work(order, source, format, licence, check, report)
            files = tuple(work.model(kind) for kind in order.types)
            made = None if adapter is None else work.adapter(adapter, files)
    return Exported(source, format, files, made, licence)


def choose_format(name: str, source: Source) -> ReasoningFormat:
    """The reasoning format to store: named, or the one that the chat template shows."""
    return detect_format(source.chat_template) if name == "auto" else get_format(name)


def _adapter(order: Order) -> Adapter | None:
    if not order.directory.is_dir():
        raise ModelError(f"there is no directory {order.directory}", hint="give a Hugging Face directory")
    if order.lora:
        if not is_adapter(order.directory):
            raise UsageError(f"--lora, but {order.directory} has no adapter_config.json: it is no LoRA adapter")
        return read_adapter(order.directory)
    if order.base is not None:
        raise UsageError("--base would have no effect without --lora")
    if is_adapter(order.directory) and not (order.directory / "config.json").is_file():
        raise ModelError(
            f"{order.directory} is a LoRA adapter", hint="export it with --lora, or merge it into its model first"
        )
    return None


def _base_directory(order: Order) -> Path:
    if order.base is not None:
        return order.base
    name = base_of(order.directory)
    if name and Path(name).is_dir():
        return Path(name)
    if name.count("/") == 1 and not name.startswith("/"):
        cached: Path | None = importlib.import_module("bide.models.hub").cached_snapshot(name)
        if cached is not None:
            return cached
    raise ModelError(
        f"the adapter's base model {name!r} is neither a directory here nor in the hub's cache",
        hint="name the directory that holds it: --base DIR",
    )


class _Work:
    """One export into one directory."""

    def __init__(
        self,
        order: Order,
        source: Source,
        format: ReasoningFormat,
        licence: str | None,
        check: bool,
        report: Report,
    ) -> None:
        self._order, self._source, self._format = order, source, format
        self._check, self._report = check, report
        self._plan: Plan | None = None
        self._reference: Any = None
        facts = {
            "model": order.name,
            "architecture": source.architecture.name,
            "dtype": source.dtype,
            "format": format.name,
            "licence": licence,
        }
        self._record = Record(order.out, facts)
        self._identity = identity(
            source.directory, source.weights.files, [order.name, licence, format_metadata(format)]
        )
        self._facts = {"quantized_by": f"bide {__version__}", **({"license": licence} if licence else {})}

    def model(self, kind: str) -> Made:
        """One GGUF file of the model."""
        path = self._order.out / f"{self._order.name}-{kind}.gguf"

        def write(progress: Progress) -> dict[str, int]:
            check_space(self._order.out, model_bytes(self._source, kind))
            write_model(
                self._source,
                path,
                kind,
                name=self._order.name,
                facts=self._facts,
                format=self._format,
                threads=self._order.threads,
                progress=progress,
            )
            return dict(Counter(model_types(self._source, kind).values()))

        def check() -> Checked:
            return self._checked(path)

        return self._made(path, kind, self._identity, write, check)

    def adapter(self, adapter: Adapter, bases: Sequence[Made]) -> Made:
        """The GGUF file of an adapter; checked on one of `bases`, else on a base model made for that."""
        path = self._order.out / f"{self._order.name}-lora.gguf"
        pairs = gguf_pairs(adapter, self._source)

        def write(progress: Progress) -> dict[str, int]:
            check_space(self._order.out, sum(side.nbytes for pair in pairs.values() for side in pair))
            write_adapter(
                self._source.architecture,
                pairs,
                path,
                alpha=adapter.alpha,
                name=f"{self._order.name} LoRA",
                facts=self._facts,
            )
            return {"F32": 2 * len(pairs)}

        def check() -> Checked:
            whole = next((one.path for one in bases if one.type == self._source.dtype), None)
            passing = self._order.out / f".{self._order.name}-base.gguf"
            if whole is None:
                check_space(self._order.out, model_bytes(self._source, self._source.dtype))
                write_model(
                    self._source, passing, self._source.dtype, name=self._order.name, facts={}, format=self._format
                )
            changes = ((f"{module}.weight", adapter.change(module)) for module in adapter.factors)
            try:
                return self._checked(whole or passing, lora=path, changes=changes)
            finally:
                passing.unlink(missing_ok=True)

        made_from = identity(adapter.directory, adapter.weights.files, [self._identity, "adapter"])
        return self._made(path, "LoRA", made_from, write, check)

    def _made(
        self,
        path: Path,
        kind: str,
        made_from: str,
        write: Callable[[Progress], dict[str, int]],
        check: Callable[[], Checked],
    ) -> Made:
        """The file, made unless the record has it, checked unless the record has that."""
        known = self._record.known(path, made_from)
        started = time.monotonic()
        if known is None:
            tensors = write(self._progress(path.name))
            known = {
                "type": kind,
                "from": made_from,
                "size_bytes": path.stat().st_size,
                "sha256": sha256_of(path),
                "tensors": tensors,
            }
            self._record.note(path.name, known)
            types = ", ".join(f"{count} {name}" for name, count in sorted(tensors.items()))
            took = time.monotonic() - started
            self._report(f"{path.name}: {known['size_bytes'] / 1e6:,.1f} MB, {types} tensors, {took:.1f} s")
        else:
            self._report(f"{path.name}: is here already, from the same source")
        asked = digest([self._order.text, made_from])
        if self._check and (known.get("check") or {}).get("of") != asked:
            known = {**known, "check": {"of": asked, **check().to_dict()}}
            self._record.note(path.name, known)
        found = known.get("check")
        checked = None
        if found and found.get("of") == asked:
            checked = Checked.from_dict({key: value for key, value in found.items() if key != "of"})
            self._report(f"{path.name}: {checked.sentence()}")
        return Made(path, kind, known["size_bytes"], known["sha256"], known["tensors"], checked)

    def _checked(self, path: Path, lora: Path | None = None, changes: Any = None) -> Checked:
        metadata = read_gguf_metadata(path)
        if metadata.get("tokenizer.chat_template") != self._source.chat_template:
            raise ModelError(f"the chat template of {path} is not its source's")
        if self._plan is None:
            self._plan = make_plan(self._source, **({} if self._order.text is None else {"text": self._order.text}))
        if changes is None and self._reference is None:
            self._report("the source model is asked for its own greedy tokens and perplexity")
            self._reference = ask_the_source(self._source, self._plan)
        reference = self._reference if changes is None else ask_the_source(self._source, self._plan, changes)
        return check_file(path, self._plan, reference, threads=self._order.threads, lora=lora)

    def _progress(self, name: str) -> Progress:
        last = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= _PROGRESS_SECONDS:
                last = time.monotonic()
                self._report(f"{name}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB")

        return show
