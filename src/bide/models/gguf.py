"""Read single metadata values from the head of a GGUF file.

The `gguf` package builds every tensor and token first: 1.7 s for a vocabulary of 49K tokens, paid
at each start. Here arrays are skipped, so a head takes milliseconds. Standard library.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ModelError

MAGIC = b"GGUF"
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_LONGEST_STRING = 1 << 24
"""Bytes; a longer one means that the file is no GGUF or is damaged."""


def read_gguf_metadata(path: str | Path) -> dict[str, Any]:
    """All scalar and string values of the file's head, by key; arrays are left out.

    Raises `ModelError` when the file cannot be read or is no GGUF of version 2 or 3.
    """
    try:
        with Path(path).open("rb") as file:
            return _read_head(file)
    except OSError as error:
        raise ModelError(f"model file {str(path)!r} cannot be read: {error.strerror}") from error
    except (struct.error, ValueError, KeyError) as error:
        raise ModelError(f"{str(path)!r} is not a complete GGUF file ({error})") from error


def _read_head(file: BinaryIO) -> dict[str, Any]:
    if file.read(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version, _tensors, pairs = struct.unpack("<IQQ", file.read(20))
    if version not in (2, 3):
        raise ValueError(f"GGUF version {version}")
    values: dict[str, Any] = {}
    for _ in range(pairs):
        key = _read_string(file)
        (kind,) = struct.unpack("<I", file.read(4))
        if kind == _ARRAY:
            _skip_array(file)
        elif kind == _STRING:
            values[key] = _read_string(file)
        else:
            values[key] = _read_scalar(file, kind)
    return values


def _read_scalar(file: BinaryIO, kind: int) -> Any:
    layout = "<" + _SCALARS[kind]
    return struct.unpack(layout, file.read(struct.calcsize(layout)))[0]


def _read_string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    if length > _LONGEST_STRING:
        raise ValueError(f"a string of {length} bytes")
    data = file.read(length)
    if len(data) < length:
        raise ValueError("the file ends too early")
    return data.decode(errors="replace")


def _skip_array(file: BinaryIO) -> None:
    kind, count = struct.unpack("<IQ", file.read(12))
    if kind == _ARRAY:
        raise ValueError("an array of arrays")
    if kind != _STRING:
        file.seek(struct.calcsize("<" + _SCALARS[kind]) * count, 1)
        return
    for _ in range(count):
        file.seek(struct.unpack("<Q", file.read(8))[0], 1)
