"""Which tensors a safetensors file holds, and where: enough to copy them elsewhere.

Own code, since the format is a length, a JSON object and the bytes, and the
reference package wants numpy or torch to hand a tensor out.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

__all__ = ["SafetensorsUnreadable", "StoredTensor", "read_safetensors"]

HEADER_MAX: Final = 64 << 20

SIZES: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of one element."""


class SafetensorsUnreadable(Exception):
    """The file cannot be read or makes no sense. The message says what is wrong."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """``shape`` with the slowest dimension first; ``size`` bytes at ``offset`` of the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


class _Entry(msgspec.Struct):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def read_safetensors(path: Path) -> Mapping[str, StoredTensor]:
    """The file's tensors by name. Blocks for one short read. Raises :class:`SafetensorsUnreadable`."""
    try:
        with open(path, "rb") as file:
            whole = os.fstat(file.fileno()).st_size
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else whole
            if length > min(HEADER_MAX, whole - 8):
                raise SafetensorsUnreadable(f"{path}: it is no safetensors file")
            header = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        entries = {
            name: msgspec.json.decode(raw, type=_Entry)
            for name, raw in header.items()
            if name != "__metadata__"
        }
    except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
        raise SafetensorsUnreadable(f"{path}: {error}") from error
    begin = 8 + length
    found = {}
    for name, entry in entries.items():
        first, last = entry.data_offsets
        size = SIZES.get(entry.dtype, 0) * math.prod(entry.shape)
        if not 0 <= first <= last <= whole - begin or (entry.dtype in SIZES and last - first != size):
            raise SafetensorsUnreadable(f"{path}: the tensor {name!r} does not lie in it")
        found[name] = StoredTensor(entry.dtype, entry.shape, begin + first, last - first)
    return found
