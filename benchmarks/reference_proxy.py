"""The yardstick: a proxy as one would write it first, Quart and httpx on hypercorn.

    python benchmarks/reference_proxy.py --upstream http://127.0.0.1:9000 --port 8081

It knows one upstream and decides nothing: no models, no queue, no records. One
``httpx.AsyncClient`` for all, without time-outs and with as many connections as are
asked for (by default the hundred and first stream would wait), of which a hundred are
kept. ``--worker`` says what runs it: hypercorn's default, or the same on trio.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import hypercorn.asyncio
import hypercorn.trio
import trio
from hypercorn.config import Config
from quart import Quart, Response, request
from quart_trio import QuartTrio

OF_ONE_CONNECTION = {"host", "connection", "keep-alive", "transfer-encoding", "remote-addr"}


def make_app(kind: type[Quart], upstream: str) -> Quart:
    """The proxy: every POST goes to ``upstream``, its answer comes back as it comes."""
    app = kind(__name__)
    # Quart's own defaults cut a stream after 60 s and refuse bodies over 16 MiB.
    app.config["RESPONSE_TIMEOUT"] = None
    app.config["MAX_CONTENT_LENGTH"] = 64 << 20
    client = httpx.AsyncClient(
        base_url=upstream,
        timeout=None,
        trust_env=False,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=100),
    )

    @app.get("/health")  # type: ignore[untyped-decorator] # unions that mypy cannot see through
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/<path:path>")  # type: ignore[untyped-decorator] # unions that mypy cannot see through
    async def relay(path: str) -> Response:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in OF_ONE_CONNECTION}
        body = await request.get_data()
        sent = client.build_request("POST", "/" + path, headers=headers, content=body)
        answer = await client.send(sent, stream=True)

        async def chunks() -> AsyncIterator[bytes]:
            try:
                async for data in answer.aiter_raw():
                    yield data
            finally:
                await answer.aclose()

        kept = {k: v for k, v in answer.headers.items() if k.lower() not in OF_ONE_CONNECTION}
        return Response(chunks(), answer.status_code, kept)

    @app.after_serving  # type: ignore[untyped-decorator] # unions that mypy cannot see through
    async def close() -> None:
        await client.aclose()

    return app


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--upstream", required=True, metavar="URL")
    parser.add_argument("--port", type=int, default=0, help="0: a free one; it says which")
    parser.add_argument("--worker", choices=("asyncio", "trio"), default="asyncio")
    options = parser.parse_args()
    config = Config()
    config.bind = [f"127.0.0.1:{options.port}"]
    config.backlog = 4096
    if options.worker == "asyncio":
        served: Any = make_app(Quart, options.upstream)
        asyncio.run(hypercorn.asyncio.serve(served, config))
    else:
        served = make_app(QuartTrio, options.upstream)
        trio.run(hypercorn.trio.serve, served, config)


if __name__ == "__main__":
    main()
