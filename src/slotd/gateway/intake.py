"""What happens to a request before the exchange gets it, in whichever lane it comes."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Mapping, Sequence

import trio

from slotd.actor import Snapshot
from slotd.capability.endpoints import Endpoint
from slotd.errors import RequestTooLarge, ServerBusy
from slotd.exchange.inbound import Inbound
from slotd.exchange.record import RecordBook
from slotd.gateway.auth import check_key
from slotd.gateway.uploads import Uploads
from slotd.settings import Settings
from slotd.wire.fields import Fields

__all__ = ["Intake", "too_large"]


class Intake:
    """Admits inference requests and gives them their ids. One object for all lanes.

    Management is not admitted here: it is never refused because inference is busy.
    """

    def __init__(self, settings: Snapshot[Settings], records: RecordBook, uploads: Uploads) -> None:
        self._settings = settings
        self._records = records
        self._uploads = uploads
        self._run = secrets.token_hex(4)
        self._count = itertools.count(1)

    def admit(self, limit: int) -> None:
        """Raises :class:`ServerBusy` if ``limit`` requests are under way already.

        Bodies that are still coming in count too: they are what takes memory.
        """
        if self._records.live_count + self._uploads.count >= limit:
            raise ServerBusy(f"{limit} requests are under way (server.max_connections)", retry_after_s=1)

    def check_key(self, headers: Sequence[tuple[bytes, bytes]]) -> int | None:
        """The priority that the request's key gives. Raises as :func:`slotd.gateway.auth.check_key`."""
        keys = self._settings.value.api_keys
        if not keys:
            return None
        found: Mapping[str, str] = {k.decode("latin-1"): v.decode("latin-1") for k, v in reversed(headers)}
        return check_key(found, keys)

    def inbound(
        self,
        endpoint: Endpoint,
        query: bytes,
        headers: Fields,
        body: bytes,
        client: str,
        key_priority: int | None,
        scope: trio.CancelScope | None = None,
    ) -> Inbound:
        """The request, with an id of its own.

        ``scope``: of its connection, in which the caller is; None: it gets its own.
        """
        return Inbound(
            id=f"req-{self._run}-{next(self._count)}",
            method="POST",
            path=endpoint.path,
            query=query,
            headers=headers,
            body=body,
            endpoint=endpoint,
            client=client,
            key_priority=key_priority,
            scope=trio.CancelScope() if scope is None else scope,
            scope_entered=scope is not None,
        )


def too_large(limit_mb: int) -> RequestTooLarge:
    """The refusal of a body beyond ``server.max_body_mb``."""
    return RequestTooLarge(f"the request body is larger than server.max_body_mb = {limit_mb}")
