"""An adapter for engines that need one call for one call: only the shapes differ."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass

from slotd.adapt.contract import Call, Reply
from slotd.errors import AnswerTooLarge, EngineError, RequestUnprocessable
from slotd.wire.fields import Fields
from slotd.wire.transport import EngineTransport, Response

__all__ = ["Ask", "Document", "Translated", "Translation"]

DOCUMENT_MAX = 16 << 20
"""The longest answer that is converted; one that is relayed as it comes has no bound."""

REFUSED = frozenset({400, 413, 415, 422})
"""Statuses by which an engine says that it is the request which is wrong; asking again would not help."""

WORDS_MAX = 2000
"""So much of an engine's refusal is passed on."""


@dataclass(frozen=True, slots=True)
class Document:
    """A whole answer for the client."""

    body: bytes
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request in the engine's own shape, and what its answer becomes.

    ``convert``: makes the client's document of the engine's (and may raise
    :class:`EngineError` for one that makes no sense); None relays the bytes as
    they come, called ``answer_type``, "" for what the engine calls them.
    """

    target: str
    body: bytes
    content_type: str = "application/json"
    method: str = "POST"
    answer_type: str = ""
    convert: Callable[[bytes], Document] | None = None


Translation = Callable[[Call], Ask]
"""Pure. Raises :class:`slotd.errors.RequestUnprocessable` for a request that has no meaning here."""


class Translated:
    """Implements :class:`slotd.adapt.contract.Adapter` by a :data:`Translation`.

    The client's leaving closes the connection to the engine; what that stops
    depends on the engine.
    """

    def __init__(self, translation: Translation) -> None:
        self._translation = translation

    async def serve(self, call: Call, http: EngineTransport, reply: Reply) -> None:
        """See :meth:`slotd.adapt.contract.Adapter.serve`."""
        ask = self._translation(call)
        headers = [(b"content-type", ask.content_type.encode()), (b"accept", b"*/*")]
        async with aclosing(
            await http.request(ask.method.encode(), ask.target.encode(), Fields(headers), ask.body)
        ) as response:
            reply.progressed()
            if response.status >= 300:
                words = await _read(response, reply, WORDS_MAX, cut=True)
                error = RequestUnprocessable if response.status in REFUSED else EngineError
                raise error(
                    f"the engine answered {response.status}: {words.decode('utf-8', 'replace').strip()}",
                    details={"status": response.status},
                )
            own = dict(response.headers).get(b"content-type", b"application/octet-stream").decode("latin-1")
            if ask.convert is not None:
                document = ask.convert(await _read(response, reply, DOCUMENT_MAX))
                await reply.document(document.body, content_type=document.content_type)
                return
            headers = [(b"content-type", (ask.answer_type or own).encode())]
            if response.length is not None:
                headers.append((b"content-length", b"%d" % response.length))
            await reply.begin(200, headers)
            while data := await response.receive_some():
                reply.progressed()
                await reply.send(data)


async def _read(response: Response, reply: Reply, most: int, *, cut: bool = False) -> bytes:
    body = bytearray()
    while data := await response.receive_some():
        reply.progressed()
        body += data
        if len(body) > most:
            if cut:
                break
            raise AnswerTooLarge(f"the engine's answer is larger than {most} bytes")
    return bytes(body[:most])
