"""Pictures and sounds as a model may name them: base64, a data URL, a result kept here, an address."""

from __future__ import annotations

import binascii
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes, urlsplit

from slotd.artifacts import Artifacts
from slotd.omni.failure import ToolFailed

__all__ = ["ARTIFACTS", "Media", "find", "read_data_url", "sniff"]

ARTIFACTS = "/api/artifacts/"
UNKNOWN = "application/octet-stream"

_ENDINGS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/mpeg": "mp3",
    "audio/ogg": "ogg",
    "audio/flac": "flac",
    "audio/mp4": "m4a",
    "audio/webm": "webm",
}

_line_ends = re.compile(r"[\r\n]+")
_kind = re.compile(r"[\w.+-]+/[\w.+-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Media:
    data: bytes
    content_type: str

    @property
    def ending(self) -> str:
        """That of a file's name: some engines go by it."""
        return _ENDINGS.get(self.content_type.partition(";")[0].strip(), "bin")


def sniff(data: bytes, otherwise: str = UNKNOWN) -> str:
    """The content type that the first bytes tell, else ``otherwise``. Pure."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"RIFF") and data[8:12] in (b"WEBP", b"WAVE"):
        return "image/webp" if data[8:12] == b"WEBP" else "audio/wav"
    if data.startswith(b"OggS"):
        return "audio/ogg"
    if data.startswith(b"fLaC"):
        return "audio/flac"
    if data.startswith(b"\x1aE\xdf\xa3"):
        return "audio/webm"
    if data[4:8] == b"ftyp":
        return "audio/mp4"
    if data.startswith((b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")):
        return "audio/mpeg"
    return otherwise


async def find(given: str, artifacts: Artifacts, fetch: Callable[[str], Awaitable[Media]]) -> Media:
    """What ``given`` means. ``fetch`` gets what is not here, or raises :class:`ToolFailed`.

    The id of a result that is kept here is a secret, so who names it may have
    it, whatever the host before it.
    """
    given = given.strip()
    if given[:5].lower() == "data:":
        return read_data_url(given)
    lowered = given.lower()
    address = lowered.startswith(("http://", "https://"))
    path = _path(given) if address else given
    if path.startswith(ARTIFACTS):
        kept = artifacts.get(path.removeprefix(ARTIFACTS))
        if kept is not None:
            return Media(kept.data, kept.content_type)
        if not address:
            raise ToolFailed("nothing is kept there; results are kept for a while only")
    if address:
        return await fetch(given)
    if "://" in given[:32]:
        raise ToolFailed("only http and https addresses are fetched")
    return _typed(_base64(given), UNKNOWN)


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def read_data_url(url: str) -> Media:
    """What is in a ``data:`` URL. Raises :class:`ToolFailed`."""
    head, comma, data = url[5:].partition(",")
    if not comma:
        raise ToolFailed("a data URL without data")
    kind, *parameters = head.split(";")
    packed = any(p.strip().lower() == "base64" for p in parameters)
    kind = kind.strip().lower()
    # It becomes a line of a form's: more than a name must not go through.
    said = kind if _kind.fullmatch(kind) else UNKNOWN
    return _typed(_base64(data) if packed else unquote_to_bytes(data), said)


def _typed(data: bytes, said: str) -> Media:
    if not data:
        raise ToolFailed("it is empty")
    return Media(data, sniff(data, said))


def _base64(text: str) -> bytes:
    text = _line_ends.sub("", text).replace("-", "+").replace("_", "/")
    text += "=" * (-len(text) % 4)
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError as error:  # a bare one for what is not ASCII
        raise ToolFailed(f"neither base64 nor a URL: {error}") from error
