"""The management surface of a running slotd, as the command line uses it."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec

from slotd.errors import ConfigInvalid, SlotdError

__all__ = ["Api", "ServerError", "ServerUnreachable"]

DEFAULT_PORT = 8080
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"

KEY_ADVICE = (
    "the command line takes its key from its environment: SLOTD_API_KEY, or the first of SLOTD_API_KEYS"
)


class ServerUnreachable(SlotdError):
    """No slotd answers at the URL."""

    code = "client.unreachable"


class ServerError(SlotdError):
    """What the server refused, with its own code."""

    def __init__(self, code: str, message: str, details: dict[str, Any]) -> None:
        super().__init__(message, details=details)
        self.code = code  # type: ignore[misc] # the server's code stands in for a class of ours


class Api:
    """Blocking calls to one server. Errors are typed; nothing is retried."""

    def __init__(self, url: str | None = None) -> None:
        given, self._guess = url or os.environ.get("SLOTD_URL"), ""
        if not given:
            given, self._guess = _default_url()
        self.url = given.rstrip("/").removesuffix("/v1")
        key = _own_key()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(10.0), trust_env=False
        )

    def get(self, path: str, /, **params: str | None) -> Any:
        """A JSON document."""
        query = {k: v for k, v in params.items() if v is not None}
        return self._call("GET", path, params=query)

    def text(self, path: str, /, **params: str) -> str:
        response = self._request("GET", path, params=params)
        return response.text

    def post(self, path: str, body: Any = None) -> Any:
        """A command. Loading takes as long as it takes: the server's own limits bound it."""
        content = None if body is None else msgspec.json.encode(body)
        return self._call("POST", path, content=content, timeout=httpx.Timeout(10.0, read=None))

    @contextmanager
    def stream(self, path: str, /, **params: str) -> Iterator[Iterator[str]]:
        """The lines of an endless answer."""
        try:
            with self._client.stream(
                "GET", path, params=params, timeout=httpx.Timeout(10.0, read=None)
            ) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _error(response)
                yield response.iter_lines()
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc

    def _call(self, method: str, path: str, **kwargs: Any) -> Any:
        return msgspec.json.decode(self._request(method, path, **kwargs).content)

    def _request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **kwargs)
        except httpx.HTTPError as exc:
            raise self._unreachable(exc) from exc
        if response.status_code >= 400:
            raise _error(response)
        return response

    def _unreachable(self, exc: httpx.HTTPError) -> ServerUnreachable:
        return ServerUnreachable(
            f"no slotd answers at {self.url} ({exc}); is it running? {self._guess}"
            "Another address: --url, or SLOTD_URL in the environment"
        )


def _default_url() -> tuple[str, str]:
    """Here, at the port of the configuration in this directory if there is one; and how that was found.

    Only its port: a file that merely lies here must not say who is sent the key.
    """
    from slotd.config import read_config

    if not Path("slotd.toml").exists():
        return DEFAULT_URL, ""
    try:
        server = tomllib.loads(read_config("slotd.toml").text).get("server", {})
    except (ConfigInvalid, tomllib.TOMLDecodeError, RecursionError):
        return DEFAULT_URL, "(./slotd.toml cannot be read, so this is the default port.) "
    port = server.get("port", DEFAULT_PORT) if isinstance(server, dict) else None
    if type(port) is int and 0 < port < 65536:
        return f"http://127.0.0.1:{port}", f"(The port is that of ./slotd.toml, {port}.) "
    return DEFAULT_URL, "(./slotd.toml has no usable server.port, so this is the default port.) "


def _own_key() -> str:
    """The key to show: what the server would take of the same environment; "" for none."""
    from slotd.config.secrets import KeyInvalid, read_api_key, split_keys

    keys = split_keys(os.environ.get("SLOTD_API_KEYS", ""))
    given = os.environ.get("SLOTD_API_KEY") or (keys[0] if keys else "")
    try:
        return read_api_key(given).secret.get_secret_value()
    except KeyInvalid:
        return ""  # no server takes it; what it answers says where the key comes from


def _error(response: httpx.Response) -> ServerError:
    try:
        error = msgspec.json.decode(response.content)["error"]
        message = error["message"]
        if response.status_code in (401, 403):
            message += f"; {KEY_ADVICE}"
        return ServerError(error["code"], message, error.get("details") or {})
    except (msgspec.DecodeError, KeyError, TypeError):
        return ServerError("client.bad_answer", f"HTTP {response.status_code}: {response.text[:200]}", {})
