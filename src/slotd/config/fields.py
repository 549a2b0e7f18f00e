"""What the configuration's fields are made of: the base model and the checked types.

Checks of one value by itself are here and in the models; what needs more than
one value is in :mod:`slotd.config.checks`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from slotd.config.urls import check_url
from slotd.model.source import checked_sha256, parse_source

__all__ = [
    "Args",
    "Auth",
    "Count",
    "EnvName",
    "Host",
    "Origins",
    "Port",
    "RemoteUrl",
    "Seconds",
    "Section",
    "Sha256",
    "SourceText",
    "Strings",
    "UrlPath",
    "UrlText",
]


class Section(BaseModel):
    """A table of the configuration: immutable, closed, and strict about types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),  # "model_name" is a word of ours
    )


def _checked(fault: Callable[[str], str | None], *, empty: bool = False) -> AfterValidator:
    """A validator from a function that says what is wrong. ``empty``: "" means unset."""

    def check(value: str) -> str:
        if empty and not value:
            return value
        wrong = fault(value)
        if wrong:
            raise ValueError(wrong)
        return value

    return AfterValidator(check)


def _env_name_fault(text: str) -> str | None:
    # Somebody may have pasted the key itself: never repeat it.
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        return None
    return "must be the name of an environment variable, not a key itself"


def _auth_fault(text: str) -> str | None:
    if text in ("none", "bearer", "x-api-key"):
        return None
    kind, colon, name = text.partition(":")
    # The characters of a header name, RFC 9110.
    if kind == "header" and colon and re.fullmatch(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", name):
        return None
    return 'must be "none", "bearer", "x-api-key" or "header:<Name>"'


def _host_fault(text: str) -> str | None:
    if not text:
        return 'is empty; write "127.0.0.1", or "0.0.0.0" for every address of this machine'
    if "/" in text or any(c.isspace() for c in text):
        return "must be a host name or an address, nothing more"
    if text.startswith("[") or (text.count(":") == 1):
        return "must be a host name or an address; the port has its own key"
    return None


def _path_fault(text: str) -> str | None:
    if not text.startswith("/") or any(c.isspace() for c in text):
        return "must be a path that begins with '/'"
    return None


def _origin_fault(text: str) -> str | None:
    if text == "*":
        return None
    if check_url(text) or text.count("/") != 2:
        return 'must be an origin such as "http://localhost:3000", or "*"'
    return None


def _source(text: str) -> str:
    parse_source(text)
    return text


Count = Annotated[int, Field(ge=0)]
Port = Annotated[int, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(ge=0)]
# Strict mode asks for a tuple, and TOML has only lists.
Args = Annotated[tuple[str, ...], Field(strict=False)]
Strings = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)]
Origins = Annotated[tuple[Annotated[str, _checked(_origin_fault)], ...], Field(strict=False)]
Auth = Annotated[str, _checked(_auth_fault)]
EnvName = Annotated[str, _checked(_env_name_fault, empty=True)]
Host = Annotated[str, _checked(_host_fault)]
Sha256 = Annotated[str, AfterValidator(checked_sha256)]
SourceText = Annotated[str, AfterValidator(_source)]
RemoteUrl = Annotated[str, _checked(check_url)]
UrlPath = Annotated[str, _checked(_path_fault, empty=True)]
UrlText = Annotated[str, _checked(check_url, empty=True)]
