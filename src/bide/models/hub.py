"""GGUF files and data sets from the Hugging Face hub, into the hub's own cache, which other programs share.

The only module of bide that imports huggingface_hub; nothing imports it before a model of the
hub is asked for. Offline, a file that is named in full and cached is found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import errors

from ..errors import BideError, DownloadError, ModelError, UsageError
from .files import MB, Report

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_LATEST = "latest"
"""Ollama's tag for "the usual one"."""
_USUAL = re.compile(r"(?<![A-Za-z0-9])Q4_K_M(?![A-Za-z0-9_])", re.IGNORECASE)
_FORM = "write hf:org/repo, hf:org/repo:FILE.gguf or hf:org/repo:Q4_K_M"


def from_hub(spec: str, report: Report) -> Path:
    """The file that "org/repo", "org/repo:file.gguf" or "org/repo:quantisation" means.

    Of a model in several files the first is returned, the others lie next to it. Raises
    `UsageError` (form), `ModelError` (no such file, several, no access), `DownloadError`.
    """
    repo, _, wanted = spec.partition(":")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", repo):
        raise UsageError(f"not a repository of the Hugging Face hub: {repo!r}", hint=_FORM)
    try:
        if wanted.lower().endswith(".gguf") and not _SHARD.search(wanted):
            report(f"{wanted} of {repo} from the Hugging Face hub, unless its cache has it")
            return Path(huggingface_hub.hf_hub_download(repo, wanted))
        return _from_listing(repo, wanted, report)
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repo} asks its users to accept terms first",
            hint=f"at https://huggingface.co/{repo}; then: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"the Hugging Face hub has no repository {repo}, or only a private one") from error
    except errors.RemoteEntryNotFoundError as error:
        raise ModelError(f"{repo} has no file {wanted}", hint=f"leave it out to see the files: hf:{repo}") from error
    except KeyboardInterrupt:
        raise DownloadError(f"the download of {repo} was interrupted", hint="run the same command again") from None
    except errors.HFValidationError as error:
        raise UsageError(str(error), hint=_FORM) from error
    except BideError:
        raise
    except Exception as error:  # whatever HTTP library the hub uses today says it in its own way
        raise DownloadError(
            f"{repo} could not be downloaded from the Hugging Face hub: {' '.join(str(error).split())[:200]}",
            hint=f"offline, a cached file is found by its full name: hf:{repo}:FILE.gguf",
        ) from error


def dataset_file(repo: str, part: str, revision: str | None = None) -> tuple[Path, str]:
    """A file of rows in the data set "org/name" whose path holds `part`, and the commit that it is of:
    `revision`, or the newest. JSON lines are taken before CSV, CSV before parquet. Raises `ModelError` (no such
    set, no access, no such file), `DownloadError`."""
    try:
        info: Any = huggingface_hub.HfApi().dataset_info(repo, revision=revision)
        names = sorted(file.rfilename for file in info.siblings or [])
        found = [
            name for suffix in (".jsonl", ".json", ".csv", ".parquet")
            for name in names
            if name.endswith(suffix) and part in name.removesuffix(suffix) and not name.endswith("dataset_infos.json")
        ]  # fmt: skip
        if not found:
            raise ModelError(f"the data set {repo} has no file of rows called {part!r}: {', '.join(names[:10])}")
        path = huggingface_hub.hf_hub_download(repo, found[0], repo_type="dataset", revision=info.sha)
        return Path(path), str(info.sha)
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repo} asks its users to accept terms first",
            hint=f"at https://huggingface.co/datasets/{repo}; then: hf auth login",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(f"the Hugging Face hub has no data set {repo}, or only a private one") from error
    except BideError:
        raise
    except Exception as error:  # whatever HTTP library the hub uses today says it in its own way
        raise DownloadError(
            f"the data set {repo} could not be had from the Hugging Face hub: {' '.join(str(error).split())[:200]}",
            hint="give a file instead: --task name=FILE",
        ) from error


def dataset_rows(
    repo: str, split: str, revision: str | None, files: tuple[str, ...] = ()
) -> tuple[list[tuple[str, Path]], str]:
    """All files of rows in the data set "org/name", with their names there: those that a pattern of `files` fits, or,
    without patterns, whose path holds `split` (all, if none does). And the commit that they are of: `revision`, or the
    newest. Raises as `dataset_file`."""
    try:
        info: Any = huggingface_hub.HfApi().dataset_info(repo, revision=revision)
        names = sorted(file.rfilename for file in info.siblings or [])
        rows = [
            name
            for name in names
            if name.endswith((".parquet", ".jsonl", ".json", ".csv")) and not name.endswith("dataset_infos.json")
        ]
        if files:
            found = [name for name in rows if any(fnmatchcase(name, pattern) for pattern in files)]
        else:
            found = [name for name in rows if split in name] or rows
        if not found:
            wanted = f" like {' or '.join(files)}" if files else ""
            raise ModelError(f"the data set {repo} has no file of rows{wanted}: {', '.join(names[:10])}")
        kept = {"repo_type": "dataset", "revision": info.sha}
        return [(name, Path(huggingface_hub.hf_hub_download(repo, name, **kept))) for name in found], str(info.sha)
    except BideError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise DownloadError(
            f"the data set {repo} could not be had from the Hugging Face hub: {said}", hint="give a file instead"
        ) from error


def check_name(repo: str) -> None:
    """Raises `UsageError` unless `repo` reads "org/name"."""
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", repo):
        raise UsageError(f"not a repository of the Hugging Face hub: {repo!r}", hint="write org/name")


def upload_dataset(repo: str, directory: Path) -> str:
    """Upload a directory as the private data set "org/name", made if it is not there. Returns its address.
    Raises `UsageError` for a name that is none, `DownloadError` if the hub did not take it."""
    check_name(repo)
    try:
        hub = huggingface_hub.HfApi()
        hub.create_repo(repo, repo_type="dataset", private=True, exist_ok=True)
        hub.upload_folder(repo_id=repo, repo_type="dataset", folder_path=directory, ignore_patterns=["*.new"])
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise DownloadError(f"{repo} could not be uploaded: {said}", hint="hf auth login; the set is kept") from error
    return f"https://huggingface.co/datasets/{repo}"


def cached_snapshot(repo: str) -> Path | None:
    """The directory of a model "org/name" in the hub's cache, without asking the hub. None: not there."""
    try:
        return Path(huggingface_hub.snapshot_download(repo, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None


def model_files(repo: str, patterns: Sequence[str]) -> Path:
    """The directory of a model "org/name" with those of its files that fit `patterns`, from the hub or its cache.
    Raises `UsageError` for a name that is none, `ModelError` (no such model, no access), `DownloadError`."""
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", repo):
        raise UsageError(f"neither a directory nor a model of the Hugging Face hub: {repo!r}", hint="write org/name")
    try:
        return Path(huggingface_hub.snapshot_download(repo, allow_patterns=list(patterns)))
    except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
        raise ModelError(
            f"the Hugging Face hub has no model {repo}, or only for those who may see it",
            hint="hf auth login; or give a directory",
        ) from error
    except Exception as error:  # whatever HTTP library the hub uses today says it in its own way
        said = " ".join(str(error).split())[:200]
        raise DownloadError(
            f"{repo} could not be had from the Hugging Face hub: {said}", hint="give a directory"
        ) from error


def _from_listing(repo: str, wanted: str, report: Report) -> Path:
    info: Any = huggingface_hub.HfApi().model_info(repo, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    first = choose(repo, list(sizes), wanted)
    files = _shards(first, list(sizes))
    licence = next((tag.partition(":")[2] for tag in info.tags or [] if tag.startswith("license:")), "not stated")
    size_bytes = sum(sizes[file] for file in files)
    report(
        f"{first}{f' and {len(files) - 1} more' if files[1:] else ''} of {repo} from the Hugging Face hub, "
        f"{size_bytes / MB:,.0f} MB unless its cache has it; licence {licence}"
    )
    paths = [Path(huggingface_hub.hf_hub_download(repo, file)) for file in files]
    return paths[0]


def choose(repo: str, files: list[str], wanted: str = "") -> str:
    """The GGUF file among `files` that `wanted` means: its name, or a quantisation in its name, in
    either case; "latest" means Q4_K_M where there is one, as for Ollama. Raises `ModelError` unless it is
    exactly one (of a model in several files, the first)."""
    models = sorted(f for f in files if f.lower().endswith(".gguf") and "mmproj" not in f.lower())
    models = [f for f in models if (shard := _SHARD.search(f)) is None or int(shard[1]) == 1]
    if not models:
        raise ModelError(f"{repo} has no GGUF file", hint="look for a repository whose name ends in -GGUF")
    if wanted in models:
        return wanted
    whole = re.compile(rf"(?<![A-Za-z0-9]){re.escape(wanted)}(?![A-Za-z0-9_])", re.IGNORECASE)
    # Q4_0 means Q4_0, not Q4_0_4_4, unless there is nothing nearer
    found = [f for f in models if whole.search(f)] or [f for f in models if wanted.lower() in f.lower()]
    if wanted.lower() in ("", _LATEST):
        usual = [f for f in models if _USUAL.search(f)] if wanted else []
        found, wanted = usual or models, ""
    if len(found) != 1:
        what = f"{len(found)} GGUF files" + (f" for {wanted!r}" if wanted else "")
        raise ModelError(
            f"{repo} has {what}: which one?" if found else f"{repo} has no GGUF file for {wanted!r}",
            hint=f"name one, hf:{repo}:FILE, of {', '.join(found or models)}",
        )
    return found[0]


def _shards(first: str, files: list[str]) -> list[str]:
    """All files of the model whose first is `first`, in order."""
    shard = _SHARD.search(first)
    if shard is None:
        return [first]
    names = [f"{first[: shard.start()]}-{n:05}-of-{shard[2]}.gguf" for n in range(1, int(shard[2]) + 1)]
    missing = [name for name in names if name not in files]
    if missing:
        raise ModelError(f"the model {first} is incomplete: {missing[0]} is missing")
    return names
