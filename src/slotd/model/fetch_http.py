"""``https://`` sources: one download that survives cut connections and restarts of slotd.

What has come stays in ``NAME.part``; ``NAME.json`` beside it remembers the
server's validator (ETag or Last-Modified). A later attempt asks for the rest
under that validator (``Range`` with ``If-Range``), so that bytes of two
versions of a file never mix.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import trio

from slotd.model.errors import ModelFetchFailed
from slotd.model.files import PartFile, Staged, look_like_gguf, need_room
from slotd.model.progress import Progress, Report
from slotd.model.source import HttpSource, is_loopback_url, shown_url

__all__ = ["Patience", "fetch_http"]

CONNECT_S = 15.0
SILENCE_S = 30.0
"""A download that brings no byte for so long is cut and taken up again."""
WRITE_S = 30.0
RETRY_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a failing download is tried again.

    After ``attempts`` failures in a row it is given up; a failure after at
    least ``steady_bytes`` new bytes starts the row anew. The n-th pause is
    ``first_s * 2**(n-1)`` seconds, at most ``max_s``; a server's Retry-After
    may lengthen it up to ``asked_max_s``.
    """

    attempts: int = 6
    first_s: float = 0.5
    max_s: float = 15.0
    asked_max_s: float = 60.0
    steady_bytes: int = 1 << 20

    def pause_s(self, failures: int, asked_s: float) -> float:
        return max(min(self.first_s * 2.0 ** (failures - 1), self.max_s), min(asked_s, self.asked_max_s))


@dataclass(frozen=True, slots=True)
class _Remote:
    """What is known of the server's file: its validator ("" if it gives none) and size."""

    validator: str = ""
    total: int | None = None


class _Cut(Exception):
    """This attempt failed, another one may not. ``asked_s``: the server's Retry-After."""

    def __init__(self, why: str, asked_s: float = 0.0) -> None:
        super().__init__(why)
        self.asked_s = asked_s


async def fetch_http(
    source: HttpSource, staging: Path, report: Report, *, patience: Patience | None = None
) -> Staged:
    """Download into ``staging``, going on from what is there.

    Raises :class:`ModelFetchFailed`, or OSError for trouble with the disk.
    Cancelled or failed, it leaves what has come for the next call.
    """
    download = _Download(source, staging, report, patience or Patience())
    return await download.run()


class _Download:
    """One download in the making; a single task owns it."""

    def __init__(self, source: HttpSource, staging: Path, report: Report, patience: Patience) -> None:
        self._url = source.url
        self._shown = shown_url(source.url)
        self._staging = staging
        self._path = staging / f"{source.filename}.part"
        self._note = staging / f"{source.filename}.json"
        self._report = report
        self._patience = patience
        self._part = PartFile(self._path)
        self._remote = _Remote()

    async def run(self) -> Staged:
        tls = await trio.to_thread.run_sync(httpx.create_ssl_context)  # reads a bundle of certificates: 30 ms
        client = httpx.AsyncClient(
            verify=tls,
            follow_redirects=True,
            timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
            trust_env=not is_loopback_url(self._url),  # proxies are for the world outside
            headers={"Accept-Encoding": "identity", "User-Agent": "slotd"},
            event_hooks={"request": [self._refuse_plain]},
        )
        with self._part:
            async with client:
                await self._take_up()
                await self._until_whole(client)
            await self._part.flush()
            look_like_gguf(self._path, self._shown)
            return Staged(self._path, self._part.hexdigest)

    async def _until_whole(self, client: httpx.AsyncClient) -> None:
        failures = best = 0
        while True:
            try:
                return await self._attempt(client)
            except (_Cut, httpx.TransportError) as trouble:
                why = str(trouble) or type(trouble).__name__
                if _hopeless(trouble):
                    raise ModelFetchFailed(
                        f"cannot download {self._shown}: {why}", reason="insecure"
                    ) from trouble
                # Measured from the furthest point so far: a server whose file
                # cannot be gone on with would else be asked for ever.
                steady = self._part.size - best >= self._patience.steady_bytes
                failures, best = 1 if steady else failures + 1, max(best, self._part.size)
                if failures >= self._patience.attempts:
                    raise ModelFetchFailed(
                        f"cannot download {self._shown}: {why} ({failures} attempts in a row); "
                        f"what has come is kept, so load it again to go on",
                        reason="unreachable",
                        details={"kept_bytes": self._part.size},
                    ) from trouble
                asked_s = trouble.asked_s if isinstance(trouble, _Cut) else 0.0
                await trio.sleep(self._patience.pause_s(failures, asked_s))
            except (httpx.TooManyRedirects, httpx.InvalidURL) as trouble:
                raise ModelFetchFailed(
                    f"cannot download {self._shown}: its redirects lead nowhere ({trouble})",
                    reason="refused",
                ) from trouble

    async def _attempt(self, client: httpx.AsyncClient) -> None:
        """Ask for what is missing. Returns when the file is whole."""
        asked_from = self._part.size if self._remote.validator else 0
        headers = {}
        if asked_from:
            headers = {"Range": f"bytes={asked_from}-", "If-Range": self._remote.validator}
        async with client.stream("GET", self._url, headers=headers) as response:
            if response.status_code == 416 and asked_from:
                # Either all is there already, or the file has shrunk.
                if _total_of(response) == asked_from:
                    return
                self._start_over(_Remote())
                raise _Cut("the server's file has changed")
            self._check_status(response)
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise ModelFetchFailed(
                    f"{self._shown}: the server sends it compressed though it was asked not to; "
                    f"use another address",
                    reason="refused",
                )
            self._settle(response, asked_from)
            await self._receive(response)

    def _settle(self, response: httpx.Response, asked_from: int) -> None:
        """From the answer's head: whether it goes on or begins anew, and how much will come."""
        if response.status_code == 206:
            if not asked_from or _start_of(response) != asked_from:
                self._start_over(_Remote())
                raise _Cut("the server sent another part of the file than asked")
            self._remote = replace(self._remote, total=_total_of(response) or self._remote.total)
        else:
            length = response.headers.get("content-length", "")
            self._start_over(_Remote(_validator(response), int(length) if length.isdecimal() else None))
        if self._remote.total is not None:
            need_room(self._staging, self._remote.total - self._part.size)

    async def _receive(self, response: httpx.Response) -> None:
        self._tell()
        broken: OSError | None = None
        with trio.CancelScope() as reading:
            # httpx iterates through nested generators, which must end from
            # within: leaving the loop would leave them to the garbage
            # collector. So a failed write ends the next read, and a
            # cancellation waits for the write in hand (it is in a thread, and
            # could not be interrupted anyway).
            async for piece in response.aiter_raw():
                if broken is not None:
                    continue
                try:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_S):
                        await self._part.add(piece)
                except OSError as error:
                    broken = error
                    reading.cancel()
                self._tell()
        if broken is not None:
            raise broken
        if self._remote.total is not None and self._part.size != self._remote.total:
            over = self._part.size > self._remote.total
            self._start_over(_Remote()) if over else None
            raise _Cut(f"the server sent {'more' if over else 'less'} than it said")
        if self._part.size == 0:
            raise ModelFetchFailed(f"{self._shown} is empty", reason="not_a_model")

    async def _take_up(self) -> None:
        """Find what an earlier run left, if it belongs to this URL and can be trusted to go on from."""
        try:
            doc = json.loads(self._note.read_bytes())
            if doc["url"] == self._url and doc["validator"]:
                await self._part.adopt(self._report)
                self._remote = _Remote(str(doc["validator"]), doc.get("total"))
                return
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # nothing there that makes sense: begin anew
        self._start_over(_Remote())

    def _start_over(self, remote: _Remote) -> None:
        """Forget what has come. The note is on disk before the first byte that it vouches for."""
        self._remote = remote
        self._note.unlink(missing_ok=True)
        self._part.restart()
        if remote.validator:
            doc = {"url": self._url, "validator": remote.validator, "total": remote.total}
            self._note.write_text(json.dumps(doc), encoding="utf-8")

    def _tell(self) -> None:
        self._report(Progress("downloading", self._part.size, self._remote.total))

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        if status in (200, 206):
            return
        words = f"{self._shown} answered {status} {response.reason_phrase}".rstrip()
        if status in RETRY_STATUS:
            after = response.headers.get("retry-after", "")
            raise _Cut(words, float(after) if after.isdecimal() else 0.0)
        if status in (401, 403):
            raise ModelFetchFailed(f"{words}: it wants a login that slotd does not have", reason="refused")
        if status in (404, 410):
            raise ModelFetchFailed(f"{words}: check the model's source", reason="not_found")
        raise ModelFetchFailed(words, reason="refused")

    async def _refuse_plain(self, request: httpx.Request) -> None:
        """Runs before every request, redirected ones too."""
        url = str(request.url)
        if request.url.scheme == "http" and not is_loopback_url(url):
            raise ModelFetchFailed(
                f"{self._shown} redirects to an unencrypted address, {shown_url(url)}; it is not followed",
                reason="insecure",
            )


def _hopeless(trouble: Exception) -> bool:
    return isinstance(trouble, httpx.UnsupportedProtocol) or "CERTIFICATE_VERIFY_FAILED" in str(trouble)


def _validator(response: httpx.Response) -> str:
    """What may stand in If-Range: a strong ETag, or a date; "" if there is neither."""
    etag: str = response.headers.get("etag", "")
    if etag.startswith('"'):
        return etag
    date: str = response.headers.get("last-modified", "")
    return date if not etag else ""  # a weak ETag says that the bytes may differ


def _start_of(response: httpx.Response) -> int | None:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return int(match[1]) if match and match[1] else None


def _total_of(response: httpx.Response) -> int | None:
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    return int(match[2]) if match and match[2] != "*" else None
