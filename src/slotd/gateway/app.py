"""The Quart application: routes, errors, and nothing that decides."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import trio
from quart import Response, g, has_request_context, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from slotd.capability.endpoints import ENDPOINTS, Endpoint
from slotd.errors import (
    ArtifactNotFound,
    NoRouteFound,
    RequestInvalid,
    RequestNotFound,
    SlotdError,
)
from slotd.events import Event, EventBus, Gap, Subscription
from slotd.exchange.render import envelope, error_response
from slotd.gateway.auth import check_key
from slotd.gateway.connection import RequestConnection, relay_response, request_nursery
from slotd.gateway.cors import add_cors
from slotd.gateway.history import add_history
from slotd.gateway.intake import too_large
from slotd.gateway.memory import add_memory
from slotd.gateway.services import Services
from slotd.gateway.views import model_list, slot_view
from slotd.names import close_names
from slotd.process.logs import LogGap, LogSubscription
from slotd.wire.fields import Fields

__all__ = ["build_app"]

ARTIFACTS = "/api/artifacts/"

KEEP_ALIVE_S = 15.0
"""A comment this often on quiet event streams, so that dead readers are noticed."""


def _json(document: Any, status: int = 200) -> Response:
    return Response(
        msgspec.json.encode(document, enc_hook=str), status=status, content_type="application/json"
    )


async def _body() -> bytes:
    """The request's whole body, within MAX_CONTENT_LENGTH."""
    return await request.get_data(cache=False, as_text=False, parse_form_data=False)


def _error(error: SlotdError, endpoint: Endpoint | None = None) -> Response:
    status, headers, body = error_response(error, endpoint.dialect if endpoint else "openai")
    response = Response(body, status=status)
    response.headers.clear()
    for key, value in headers:
        response.headers.add(key.decode(), value.decode())
    return response


def build_app(services: Services) -> QuartTrio:
    """The web application over ``services``. It holds no state of its own."""
    app = QuartTrio("slotd")
    app.asgi_http_class = RequestConnection
    # Quart's default would cut streams after a minute; slotd's own limits apply
    # instead, in the exchange, and to bodies those of gateway.server.
    app.config["RESPONSE_TIMEOUT"] = None
    add_cors(app, lambda: services.config.server.cors_origins)
    _add_errors(app, services)
    _add_relay(app, services)
    _add_models(app, services)
    _add_management(app, services)
    add_memory(app, services.arbiter, services.slots, _json)
    add_history(app, services, _json)
    _add_streams(app, services)
    return app


def _add_errors(app: QuartTrio, services: Services) -> None:
    @app.before_request
    async def authenticate() -> None:
        # An artifact's id is a secret of its own: a page shows it by its URL alone.
        if request.path != "/health" and not request.path.startswith(ARTIFACTS):
            g.key_priority = check_key(request.headers, services.api_keys)

    @app.errorhandler(SlotdError)
    async def typed(error: SlotdError) -> Response:
        return _error(error, ENDPOINTS.get(request.path))

    @app.errorhandler(HTTPException)
    async def http(error: HTTPException) -> Response | HTTPException:
        if not has_request_context():
            return error  # a websocket, of which slotd has none
        if isinstance(error, RequestEntityTooLarge):
            return _error(too_large(services.config.server.max_body_mb), ENDPOINTS.get(request.path))
        endpoint = ENDPOINTS.get(request.path)
        status = error.code or 500
        if status >= 500:
            return _error(SlotdError("slotd itself failed at this request; its log says why"), endpoint)
        invalid = RequestInvalid(f"{request.method} {request.path}: {error.description or error.name}")
        if error.code == 404:
            paths = sorted({str(r.rule) for r in app.url_map.iter_rules()})
            invalid.details["close"] = close_names(request.path, paths)
        document = envelope(invalid, endpoint.dialect if endpoint else "openai")
        document["error"]["code"] = {404: "request.no_such_path", 405: "request.method_not_allowed"}.get(
            status, "request.invalid"
        )
        return _json(document, status)


def _add_relay(app: QuartTrio, services: Services) -> None:
    async def relay() -> Response:
        services.intake.admit(services.settings.value.config.server.max_connections)
        body = await services.uploads.receive(_body)
        inbound = services.intake.inbound(
            ENDPOINTS[request.path],
            request.query_string,
            Fields((k.lower(), v) for k, v in request.scope["headers"]),
            body,
            request.remote_addr or "",
            g.key_priority,
        )
        patience_s = services.config.server.write_timeout_s
        return await relay_response(request.scope, services.exchange, inbound, patience_s)

    for path in ENDPOINTS:
        app.add_url_rule(path, endpoint=f"relay {path}", view_func=relay, methods=["POST"])


def _add_models(app: QuartTrio, services: Services) -> None:
    def listed() -> list[dict[str, Any]]:
        return model_list(
            dict(services.slots.snapshots()),
            services.dispatcher.listed(),
            int(services.started_unix),
            aliases=services.config.server.list_aliases,
        )

    @app.get("/v1/models")
    async def models() -> Response:
        # For the next list: this one shows what is known now.
        services.dispatcher.refresh()
        return _json({"object": "list", "data": listed()})

    @app.get("/v1/models/<path:id>")
    async def model(id: str) -> Response:
        items = listed()
        by_id = {item["id"]: item for item in items}
        if id in by_id:
            return _json(by_id[id])
        for item in items:
            if id in item.get("aliases", ()) or item.get("slot") == id:
                return _json(item)
        raise NoRouteFound(
            f"no model {id!r} is listed", details={"close": close_names(id, (i["id"] for i in items))}
        )


def _add_management(app: QuartTrio, services: Services) -> None:
    slots, dispatcher, records = services.slots, services.dispatcher, services.records

    @app.get("/")
    async def root() -> Response:
        return _json(
            {
                "name": "slotd",
                "version": services.version,
                "see": ["/v1/models", "/api/slots", "/api/memory", "/api/events", "/metrics", "/health"],
            }
        )

    @app.get("/health")
    async def health() -> Response:
        return _json({"status": "ok", "version": services.version})

    @app.get("/metrics")
    async def metrics() -> Response:
        body, content_type = services.metrics.render()
        return Response(body, content_type=content_type)

    @app.get("/api/slots")
    async def list_slots() -> Response:
        return _json({"slots": [slot_view(s) for s in slots.snapshots().values()]})

    @app.get("/api/slots/<name>")
    async def one_slot(name: str) -> Response:
        return _json(slot_view(slots.snapshot(name)))

    @app.post("/api/slots/<name>/<verb>")
    async def command(name: str, verb: str) -> Response:
        commands = {"load": slots.load, "unload": slots.unload, "restart": slots.restart, "kill": slots.kill}
        if verb == "swap":
            model = _swap_model(await _body())
            if model not in services.config.models:
                close = close_names(model, services.config.models)
                raise RequestInvalid(
                    f"there is no model {model!r} in the config", param="model", details={"close": close}
                )
            await slots.swap(name, model)
        elif verb in commands:
            await commands[verb](name)
        else:
            known = [*commands, "swap"]
            raise RequestInvalid(f"a slot cannot {verb!r}", details={"known": known})
        return _json(slot_view(slots.snapshot(name)))

    @app.post("/api/config/reload")
    async def reload() -> Response:
        return _json((await services.reload()).as_dict())

    @app.get("/api/routes")
    async def routes() -> Response:
        return _json({"routes": [rule.as_dict() for rule in dispatcher.routes().rows()]})

    @app.get("/api/explain")
    async def explain() -> Response:
        model = request.args.get("model") or None
        path = request.args.get("path", "/v1/chat/completions")
        if path not in ENDPOINTS:
            close = close_names(path, ENDPOINTS)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise RequestInvalid(
                f"{path!r} is no path that slotd relays{hint}", param="path", details={"close": close}
            )
        return _json((await dispatcher.explain(model, path)).as_dict())

    @app.get("/api/upstreams")
    async def upstreams() -> Response:
        return _json({"upstreams": [u.as_dict() for u in dispatcher.upstreams()]})

    @app.get(f"{ARTIFACTS}<id>")
    async def artifact(id: str) -> Response:
        kept = services.artifacts.get(id)
        if kept is None:
            raise ArtifactNotFound("nothing is kept under this id; results are kept for a while only")
        response = Response(kept.data, content_type=kept.content_type)
        response.headers["x-content-type-options"] = "nosniff"
        response.headers["content-security-policy"] = "default-src 'none'"
        return response

    @app.get("/api/requests")
    async def list_requests() -> Response:
        return _json(
            {
                "live": [r.as_dict() for r in records.live()],
                "recent": [r.as_dict() for r in records.recent()],
            }
        )

    @app.get("/api/requests/<id>")
    async def one_request(id: str) -> Response:
        record = records.find(id)
        if record is None:
            raise RequestNotFound(f"no request {id!r} is live or among the last kept")
        return _json(record.as_dict())

    @app.delete("/api/requests/<id>")
    async def cancel_request(id: str) -> Response:
        if not records.cancel(id):
            raise RequestNotFound(f"no live request {id!r}")
        return _json({"cancelled": id})


def _swap_model(body: bytes) -> str:
    class Body(msgspec.Struct):
        model: str

    try:
        return msgspec.json.decode(body, type=Body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestInvalid(f'swap needs a body like {{"model": "NAME"}}: {exc}', param="model") from exc


def _add_streams(app: QuartTrio, services: Services) -> None:
    @app.get("/api/events")
    async def events() -> Response:
        after = _resume_after(
            request.headers.get("last-event-id") or request.args.get("after"), services.run_id[:8]
        )

        async def body() -> AsyncIterator[bytes]:
            # The subscription is opened here and not in the handler: a
            # generator that never starts has nothing to close.
            with services.bus.subscribe(after=after) as subscription:
                snapshot = {
                    "slots": [slot_view(s) for s in services.slots.snapshots().values()],
                    "last_seq": services.bus.last_seq,
                }
                # No id: a reader that is cut off before the replay must not skip it.
                yield b"event: snapshot\ndata: " + msgspec.json.encode(snapshot, enc_hook=str) + b"\n\n"
                while (item := await _next_event(subscription, services.run_id[:8])) is not None:
                    yield item

        return _stream(body(), "text/event-stream")

    @app.get("/api/slots/<name>/logs")
    async def logs(name: str) -> Response:
        ring = services.slots.logs(name)
        if request.args.get("follow", "0") in ("", "0"):
            lines = request.args.get("lines", "1000")
            if not (lines.isascii() and lines.isdigit() and len(lines) < 10):
                raise RequestInvalid(f"lines={lines!r} is not a count of lines", param="lines")
            text = "".join(line + "\n" for line in ring.tail(int(lines)))
            return Response(text, content_type="text/plain; charset=utf-8")

        followed = ring.subscribe(max_lines=1000)
        request_nursery(request.scope).start_soon(_close_at_stop, services.bus, followed)

        async def body() -> AsyncIterator[bytes]:
            with followed:
                async for item in followed:
                    if isinstance(item, LogGap):
                        yield f"... {item.missed} lines missed ...\n".encode()
                    else:
                        yield item.encode() + b"\n"

        return _stream(body(), "text/plain; charset=utf-8")


async def _close_at_stop(bus: EventBus, followed: LogSubscription) -> None:
    """A log never ends by itself and would hold up the drain; the bus is closed when slotd stops."""
    with bus.subscribe(match=lambda event: False) as silence:
        async for _ in silence:
            pass
    followed.close()


def _stream(body: AsyncIterator[bytes], content_type: str) -> Response:
    response = Response(body, content_type=content_type)
    response.headers["cache-control"] = "no-store"
    response.timeout = None
    return response


def _resume_after(last: str | None, run: str) -> int | None:
    """The number to go on after, from ``RUN.SEQ`` or a bare number; None for the present.

    An id of another run tells nothing about this one: begin with the oldest event kept.
    """
    if last is None:
        return None
    number = last.removeprefix(f"{run}.")
    return int(number) if number.isascii() and number.isdigit() else 0


def _sse(kind: str, data: bytes, id: str) -> bytes:
    return f"id: {id}\nevent: {kind}\ndata: ".encode() + data + b"\n\n"


async def _next_event(subscription: Subscription, run: str) -> bytes | None:
    """The next event as SSE, a comment if none comes for a while, None at the end."""
    item: Event | Gap | None = None
    with trio.move_on_after(KEEP_ALIVE_S) as scope:
        try:
            item = await anext(subscription)
        except StopAsyncIteration:
            return None
    if scope.cancelled_caught:
        return b": quiet\n\n"
    match item:
        case Gap(missed, next_seq):
            return _sse("gap", msgspec.json.encode({"missed": missed}), f"{run}.{next_seq - 1}")
        case Event():
            data = {"seq": item.seq, "time": item.time, "slot": item.slot, **item.data}
            return _sse(item.kind, msgspec.json.encode(data, enc_hook=str), f"{run}.{item.seq}")
        case _:
            return None
