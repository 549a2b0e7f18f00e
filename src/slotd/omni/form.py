"""A ``multipart/form-data`` body with one file, for the endpoints that take nothing else. Pure."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

__all__ = ["encode_form"]


def encode_form(
    fields: Mapping[str, str], name: str, filename: str, content_type: str, data: bytes
) -> tuple[str, bytes]:
    """The content type and the body; ``data`` is the file ``name``. Field names and the file's are ours."""
    boundary = f"slotd-{secrets.token_hex(16)}"
    head = "".join(
        f'--{boundary}\r\ncontent-disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
        for key, value in fields.items()
    )
    head += (
        f'--{boundary}\r\ncontent-disposition: form-data; name="{name}"; filename="{filename}"\r\n'
        f"content-type: {content_type}\r\n\r\n"
    )
    body = b"".join((head.encode(), data, f"\r\n--{boundary}--\r\n".encode()))
    return f"multipart/form-data; boundary={boundary}", body
