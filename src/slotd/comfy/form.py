"""A client's multipart form, taken apart within bounds. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header
from werkzeug.sansio.multipart import Data, Epilogue, Field, File, MultipartDecoder

from slotd.errors import RequestTooLarge, RequestUnprocessable

__all__ = ["Form", "Upload", "is_form", "read_form"]

FIELD_MAX = 256 << 10
"""The longest field that is no file; bytes."""

PARTS_MAX = 64


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a client's. ``content_type``: as it said, "" if it did not."""

    filename: str
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Form:
    """Each in the order in which they came: ``fields`` (name, text) and ``files`` (name, file)."""

    fields: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, Upload], ...]


def is_form(content_type: str) -> bool:
    return parse_options_header(content_type)[0].lower() == "multipart/form-data"


def read_form(content_type: str, body: bytes) -> Form:
    """Take a whole form apart.

    Raises :class:`RequestUnprocessable` for one that is broken, and
    :class:`RequestTooLarge` for too many parts or a field beyond its bound. The
    files' size is bounded by the body's.
    """
    boundary = parse_options_header(content_type)[1].get("boundary", "")
    if not boundary:
        raise RequestUnprocessable("the form's content type names no boundary")
    decoder = MultipartDecoder(boundary.encode("latin-1", "replace"), max_parts=PARTS_MAX)
    fields: list[tuple[str, str]] = []
    files: list[tuple[str, Upload]] = []
    part: Field | File | None = None
    content = bytearray()
    try:
        decoder.receive_data(body)
        decoder.receive_data(None)
        # All of it is there, so the decoder never asks for more: it raises.
        while not isinstance(event := decoder.next_event(), Epilogue):
            if isinstance(event, Field | File):
                part = event
                content = bytearray()
            elif isinstance(event, Data) and part is not None:
                content += event.data
                if isinstance(part, Field) and len(content) > FIELD_MAX:
                    raise RequestTooLarge(f"the field {part.name!r} is longer than {FIELD_MAX} bytes")
                if event.more_data:
                    continue
                name = part.name or ""  # werkzeug lets a part without a name pass
                if isinstance(part, Field):
                    fields.append((name, content.decode("utf-8", "replace")))
                else:
                    kind = part.headers.get("content-type", "")
                    files.append((name, Upload(part.filename, kind, bytes(content))))
                part = None
    except RequestEntityTooLarge as exc:
        raise RequestTooLarge(f"the form has more than {PARTS_MAX} parts") from exc
    except ValueError as exc:
        raise RequestUnprocessable(f"the form cannot be read: {exc}") from exc
    return Form(tuple(fields), tuple(files))
