"""PNGs as small as can be, to make and to look into."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Png", "read_png", "write_png"]

SIGNATURE = b"\x89PNG\r\n\x1a\n"

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Png:
    """``colour``: of the first pixel. ``texts``: what it says of itself."""

    width: int
    height: int
    colour: Colour
    texts: Mapping[str, str]


def write_png(width: int, height: int, colour: Colour, texts: Mapping[str, str]) -> bytes:
    """One colour all over."""
    row = b"\0" + bytes(colour) * width
    squeeze = zlib.compressobj(1)
    data = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    said = (key.encode("latin-1") + b"\0" + text.encode("ascii") for key, text in texts.items())
    return SIGNATURE + b"".join(
        (
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            *(_chunk(b"tEXt", text) for text in said),
            _chunk(b"IDAT", data),
            _chunk(b"IEND", b""),
        )
    )


def read_png(data: bytes) -> Png:
    """What :func:`write_png` has written, or any RGB picture of 8 bits. Raises :class:`ValueError`."""
    if not data.startswith(SIGNATURE):
        raise ValueError("no PNG")
    at, pixels, texts, size = len(SIGNATURE), b"", {}, (0, 0)
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        content = data[at + 8 : at + 8 + length]
        if struct.unpack(">I", data[at + 8 + length : at + 12 + length])[0] != zlib.crc32(kind + content):
            raise ValueError(f"chunk {kind!r} is damaged")
        if kind == b"IHDR":
            size = struct.unpack(">II", content[:8])
        elif kind == b"tEXt":
            key, _, text = content.partition(b"\0")
            texts[key.decode("latin-1")] = text.decode("latin-1")
        elif kind == b"IDAT":
            pixels += content
        at += 12 + length
    first = zlib.decompressobj().decompress(pixels, 4)
    return Png(size[0], size[1], (first[1], first[2], first[3]), texts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
