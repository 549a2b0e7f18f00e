"""Writing a GGUF file (version 3, little endian): named values, then tensors copied from elsewhere.

Own code, for the same reasons as the reader's (:mod:`slotd.model.gguf`), and
because a tensor that is stored as it is needs no arithmetic.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["F16", "F32", "TensorCopy", "Uint32", "Value", "write_gguf"]

F32: Final = 0
F16: Final = 1

ALIGNMENT: Final = 32
"""A tensor begins at a multiple of it; the format's usual one."""

_VERSION: Final = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


class Uint32(int):
    """A number that the format's readers want without a sign; other whole numbers are int32."""


Value = bool | int | float | str | Sequence[str] | Sequence[int] | Sequence[float]


@dataclass(frozen=True, slots=True)
class TensorCopy:
    """A tensor that lies in another file: ``size`` bytes from ``offset`` on.

    ``kind``: how its numbers are stored. ``shape`` has the slowest dimension first.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int
    size: int


def write_gguf(
    out: BinaryIO, values: Mapping[str, Value], tensors: Sequence[TensorCopy], source: Path
) -> None:
    """Write the file; the tensors' bytes come from ``source``. Blocks. Raises OSError, and
    :class:`EOFError` if ``source`` is too short."""
    out.write(b"GGUF" + struct.pack("<IQQ", _VERSION, len(tensors), len(values)))
    for key, value in values.items():
        out.write(_text(key) + _value(value))
    at = 0
    for tensor in tensors:
        # The format counts dimensions from the fastest.
        shape = struct.pack(f"<{len(tensor.shape)}Q", *reversed(tensor.shape))
        out.write(_text(tensor.name) + struct.pack("<I", len(tensor.shape)) + shape)
        out.write(struct.pack("<IQ", tensor.kind, at))
        at += tensor.size + _gap(tensor.size)
    out.write(bytes(_gap(out.tell())))
    with open(source, "rb") as file:
        for tensor in tensors:
            file.seek(tensor.offset)
            _copy(file, out, tensor.size)
            out.write(bytes(_gap(tensor.size)))


def _gap(size: int) -> int:
    return -size % ALIGNMENT


def _copy(file: BinaryIO, out: BinaryIO, size: int) -> None:
    while size:
        data = file.read(min(size, 1 << 20))
        if not data:
            raise EOFError(f"{size} bytes of a tensor are missing")
        out.write(data)
        size -= len(data)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Value) -> bytes:
    """A value with its type before it."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        inner = [_value(item) for item in value]
        kind = inner[0][:4] if inner else struct.pack("<I", _INT32)
        return (
            struct.pack("<I", _ARRAY) + kind + struct.pack("<Q", len(inner)) + b"".join(i[4:] for i in inner)
        )
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case Uint32():
            return struct.pack("<II", _UINT32, value)
        case int():
            return struct.pack("<Ii", _INT32, value)
        case float():
            return struct.pack("<If", _FLOAT32, value)
        case _:
            return struct.pack("<I", _STRING) + _text(value)
