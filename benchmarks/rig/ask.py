"""A client that only wants to know when: blocking sockets, no libraries in between."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["Where", "free_port"]

TOKEN = re.compile(rb'"content":\s*"[^"]')
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Where:
    """A server. Everything here raises ``OSError`` or ``RuntimeError`` for one that does not do as asked."""

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        return cls(parts.hostname, parts.port)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def until_answers(self, path: str = "/health", every_s: float = 0.001) -> float:
        """Wait, looking ``every_s``, until ``path`` is answered 200; the moment at which it was."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            try:
                with socket.create_connection((self.host, self.port), timeout=PATIENCE_S) as sock:
                    sock.sendall(f"GET {path} HTTP/1.1\r\nhost: {self.host}\r\n\r\n".encode())
                    if sock.recv(64)[9:12] == b"200":
                        return time.monotonic()
            except OSError:
                pass
            time.sleep(every_s)
        raise TimeoutError(f"{self.url}{path} was not answered in {PATIENCE_S:g} s")

    def first_token(self, model: str, tokens: int = 8) -> float:
        """Ask for a streamed chat and read it to its end; the moment at which its first words came."""
        body = json.dumps(
            {
                "model": model,
                "messages": [{"role": "user", "content": "Say hello."}],
                "max_tokens": tokens,
                "temperature": 0,
                "stream": True,
            }
        ).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self.host}\r\nconnection: close\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection((self.host, self.port), timeout=PATIENCE_S) as sock:
            sock.sendall(head.encode() + body)
            data, came = b"", 0.0
            while got := sock.recv(1 << 16):
                data += got
                if not came and TOKEN.search(data):
                    came = time.monotonic()
        if not came or data[9:12] != b"200":
            raise RuntimeError(f"no token came: {data[:2000]!r}")
        return came

    def times(self, path: str, count: int) -> list[float]:
        """GET ``path`` so often on one connection; how long each took, in seconds."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        took: list[float] = []
        try:
            for _ in range(count):
                began = time.monotonic()
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                took.append(time.monotonic() - began)
                if response.status != 200:
                    raise RuntimeError(f"GET {path}: {response.status}")
        finally:
            connection.close()
        return took

    def ask(self, method: str, path: str) -> Any:
        """The answer, as JSON."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {data[:2000]!r}")
        return json.loads(data)


def free_port() -> int:
    """One that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
