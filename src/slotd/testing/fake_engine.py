"""A model server that obeys: ``python -m slotd.testing.fake_engine [--KNOB VALUE ...]``.

A real process that speaks the OpenAI API as llama.cpp's server does, and
behaves as well or as badly as its knobs say; see
:class:`~slotd.testing.fake_knobs.Knobs`, or ``--help``. Beside the API:

| path | |
|---|---|
| ``GET /fake/stats`` | pid, requests active and ended, tokens sent, the latest requests |
| ``GET /fake/knobs`` | the knobs as they are |
| ``POST /fake/knobs`` | turn some (a JSON object); answers with all |
| ``POST /fake/crash`` | die at once, without an answer; ``{"exit_code": n}`` overrides the knob |

These work while the engine loads. It prints its address when the port is open.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import msgspec
import trio

from slotd.testing import fake_process as process
from slotd.testing.fake_asks import (
    JSON,
    TASKS,
    Ask,
    Body,
    Form,
    Refused,
    count,
    read_ask,
    read_form,
    read_json,
    split_words,
)
from slotd.testing.fake_desk import Desk, Job, Panel
from slotd.testing.fake_http import Cut, Reply, Request, serve_connection
from slotd.testing.fake_knobs import KnobError, Knobs, documented, parse_args
from slotd.testing.fake_script import ScriptedChat, scripted
from slotd.testing.fake_shapes import SHAPES, Answer, Finish, Shape, error_document, models_document

__all__ = ["main"]

CATCH_UP_S = 0.1
"""How far a paced stream may lag behind its rate and still make it up."""

_encode = msgspec.json.encode
_NOT_HTTP = b"\x16\x03\x01 HTP/9.9 2OO banana\r\n\x00\xff\r\n"
_NOT_AN_EVENT = b'data: {"choices":[{"delta":{"content":\n\ndata {]\n\n'


class FakeEngine:
    """Answers requests as the panel's knobs say."""

    def __init__(self, knobs: Knobs) -> None:
        self.panel = Panel(knobs)
        self.desk = Desk(knobs.parallel)
        self.crasher = process.Crasher(self.panel)
        self._loaded = False
        self._hoard: list[bytearray] = []
        self._created = int(time.time())

    # --- life ------------------------------------------------------------------

    async def run(self) -> int:
        """Start, serve, and return the exit code once a signal has asked for the end."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._live)
                async for number in signals:
                    knobs = self.panel.knobs
                    if knobs.refuse_sigterm:
                        process.log(f"ignoring {signal.Signals(number).name}")
                        continue
                    if knobs.sigterm_drains:
                        process.log(f"{signal.Signals(number).name}: waiting for the last request")
                        nursery.start_soon(self._drain, nursery.cancel_scope)
                        await anext(signals)  # whichever it is, it ends the wait
                    break
                nursery.cancel_scope.cancel()
        return self.panel.knobs.sigterm_exit_code

    async def _drain(self, life: trio.CancelScope) -> None:
        await self.desk.idle()
        life.cancel()

    async def _live(self) -> None:
        knobs = self.panel.knobs
        await trio.sleep(knobs.startup_delay_s)
        self.crasher.crash_if(knobs.crash_at_start)
        listeners = await trio.open_tcp_listeners(knobs.port, host=knobs.host)
        host, port = listeners[0].socket.getsockname()[:2]
        process.log(f"fake engine listening on http://{host}:{port}")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._load)
            nursery.start_soon(self.crasher.watch)
            nursery.start_soon(process.flood, self.panel)
            await trio.serve_listeners(partial(serve_connection, handler=self.answer), listeners)

    async def _load(self) -> None:
        self._hoard = await process.hoard(self.panel.knobs.memory_mb)
        await trio.sleep(self.panel.knobs.load_delay_s)
        self._loaded = True
        process.log("model loaded")

    # --- requests --------------------------------------------------------------

    async def answer(self, request: Request, reply: Reply) -> None:
        """Answer one request. Raises :class:`Cut` where the connection is to be closed."""
        try:
            await self._route(request, reply)
        except Refused as refusal:
            document = error_document(refusal.status, refusal.message, refusal.kind)
            await reply.send(refusal.status, JSON, _encode(document))

    async def _route(self, request: Request, reply: Reply) -> None:
        path = request.path
        if handler := self._control().get((request.method, path)):
            await handler(request, reply)
        elif request.method == "GET" and path in ("/health", "/v1/health"):
            await self._health(reply)
        elif not self._loaded:
            raise Refused(503, "Loading model", "unavailable_error")
        elif request.method == "GET" and (report := self._reports().get(path)):
            content_type, data = report()
            await reply.send(200, content_type, data)
        elif request.method == "POST" and (path in SHAPES or path in TASKS):
            await self._infer(request, reply)
        else:
            raise Refused(404, "File Not Found", "not_found_error")

    async def _health(self, reply: Reply) -> None:
        reply.follow_client()
        await self.panel.until(lambda knobs: not knobs.hang_health)
        await trio.sleep(self.panel.knobs.slow_health_s)
        status = self.panel.knobs.health_status
        if not self._loaded:
            raise Refused(503, "Loading model", "unavailable_error")
        if status >= 400:
            raise Refused(status, "unhealthy, as told", "server_error")
        await reply.send(status, JSON, b'{"status":"ok"}')

    # --- inference -------------------------------------------------------------

    async def _infer(self, request: Request, reply: Reply) -> None:
        """One inference request, counted whatever becomes of it."""
        content_type = request.header("content-type")
        body: Body | Form
        if content_type.lower().startswith("multipart/"):
            body = read_form(content_type, request.body)
            model, stream = body.text("model"), False
        else:
            body = read_json(request.body)
            named = body.get("model")
            model, stream = named if isinstance(named, str) else "", body.get("stream") is True
        job = self.desk.begin(request, model=model, stream=stream)
        if stream or self.panel.knobs.cancel_nonstream:
            reply.follow_client()
        try:
            await self.desk.sit(job)
            await self._serve(job, request.path, body, reply)
        except Refused as refusal:
            job.status = refusal.status
            job.outcome = "failed"
            raise
        except Cut:
            # Written into the void: what does not follow its client got to its end.
            if reply.client_gone and job.outcome == "active":
                job.outcome = "cancelled" if reply.stops_with_client else "finished"
            elif job.outcome == "active":
                job.outcome = "failed"
            raise
        except trio.Cancelled:
            job.outcome = "cancelled"
            raise
        else:
            job.outcome = "finished" if job.status < 400 else "failed"
        finally:
            job.client_gone = reply.client_gone
            self.desk.end(job, job.outcome)

    async def _serve(self, job: Job, path: str, body: Body | Form, reply: Reply) -> None:
        await self.panel.until(lambda knobs: not knobs.hang_requests)
        knobs = self.panel.knobs
        if knobs.garbage == "http":
            await reply.raw(_NOT_HTTP)
            raise Cut("garbage")
        if knobs.error_status:
            await self._told_error(job, reply)
            return
        if knobs.strict_model and job.model not in knobs.models:
            raise Refused(404, f"model {job.model!r} not found", "not_found_error")
        if (shape := SHAPES.get(path)) is not None:
            if isinstance(body, Form):
                raise Refused(400, "expected a JSON object")
            message = scripted(knobs.script, path, body)
            await self._generate(job, shape, read_ask(path, body), reply, message)
        else:
            result = TASKS[path](body, self._model)
            await trio.sleep(knobs.first_token_delay_s)
            await self._fault(0)
            job.status = 200
            await reply.send(200, result.content_type, self._spoiled(result.data))

    async def _told_error(self, job: Job, reply: Reply) -> None:
        knobs = self.panel.knobs
        job.status = knobs.error_status
        document = error_document(knobs.error_status, "an error, as told", "server_error")
        await reply.send(knobs.error_status, JSON, knobs.error_body.encode() or _encode(document))

    async def _generate(
        self,
        job: Job,
        shape_class: type[Shape],
        ask: Ask,
        reply: Reply,
        message: dict[str, Any] | None = None,
    ) -> None:
        """Send tokens at the knobs' pace, up to the fault that they ask for."""
        answer = Answer(
            id=f"{shape_class.prefix}-{os.getpid()}-{job.id}",
            model=self._model,
            created=int(time.time()),
            prompt_tokens=count(ask.prompt),
            include_usage=ask.include_usage,
        )
        shape = shape_class(answer)
        words = self._tokens(ask)
        if message is not None:
            shape = ScriptedChat(answer)
            shape.message, words = message, split_words(message.get("content") or "")
        opening = shape.opening()
        text: list[str] = []
        started = due = trio.current_time()
        await trio.sleep(self.panel.knobs.first_token_delay_s)
        first = due = trio.current_time()
        answer.prompt_ms = (first - started) * 1000
        self.desk.prompt_tokens += answer.prompt_tokens
        for token in words:
            await self._fault(answer.sent)
            if answer.sent:
                due = await self._pace(due)
            text.append(token)
            answer.sent += 1
            job.tokens += 1
            self.desk.tokens_out += 1
            if ask.stream:
                await reply.chunk(opening + self._spoiled(shape.token(token)))
                opening = b""
            else:
                await trio.lowlevel.checkpoint()
        await self._fault(answer.sent)
        answer.predicted_ms = (trio.current_time() - first) * 1000
        finish: Finish = "length" if ask.cuts_short(answer.sent) else "stop"
        job.status = 200
        if not ask.stream:
            await reply.send(200, JSON, self._spoiled(_encode(shape.whole("".join(text), finish))))
            return
        await reply.chunk(opening + self._spoiled(shape.closing("".join(text), finish)))
        if self.panel.knobs.close_without_terminator:
            raise Cut("no terminator")
        await reply.finish(close=self.panel.knobs.close_after_stream)

    async def _pace(self, due: float) -> float:
        """Wait for the next token's time, given the last one's, and return it."""
        knobs = self.panel.knobs
        delay = max(knobs.token_delay_s, 1 / knobs.tokens_per_s if knobs.tokens_per_s else 0.0)
        due = max(due + delay, trio.current_time() - CATCH_UP_S)
        await trio.sleep_until(due)
        return due

    async def _fault(self, sent: int) -> None:
        """Whatever is to happen to a request that has sent so many tokens."""
        knobs = self.panel.knobs
        self.crasher.crash_if(knobs.crash_after_tokens is not None and sent >= knobs.crash_after_tokens)
        if knobs.cut_after_tokens is not None and sent >= knobs.cut_after_tokens:
            raise Cut("as told")
        await self.panel.until(lambda now: now.hang_after_tokens is None or sent < now.hang_after_tokens)

    def _tokens(self, ask: Ask) -> Iterable[str]:
        knobs = self.panel.knobs
        if knobs.garbage == "empty":
            return ()
        if knobs.oversized_response_mb:
            return ("x" * (knobs.oversized_response_mb << 20),)
        words = ask.words(tokens=knobs.tokens, echo=knobs.echo)
        return ("@@@@" for _ in words) if knobs.garbage == "text" else words

    def _spoiled(self, data: bytes) -> bytes:
        """Output as it should be, unless the knobs want it broken."""
        if self.panel.knobs.garbage != "sse":
            return data
        return _NOT_AN_EVENT if data.startswith((b"data: ", b"event: ")) else data[: len(data) // 2]

    @property
    def _model(self) -> str:
        return next(iter(self.panel.knobs.models), "")

    # --- what it tells of itself -----------------------------------------------

    def _reports(self) -> dict[str, Callable[[], tuple[str, bytes]]]:
        return {
            "/v1/models": self._models,
            "/models": self._models,
            "/slots": self._slots,
            "/metrics": self._metrics,
            "/props": self._props,
        }

    def _models(self) -> tuple[str, bytes]:
        return JSON, _encode(models_document(self.panel.knobs.models, self._created))

    def _slots(self) -> tuple[str, bytes]:
        busy = self.desk.busy_seats
        seats = range(max(self.panel.knobs.parallel, max(busy, default=-1) + 1))
        return JSON, _encode(
            [{"id": n, "n_ctx": 4096, "speculative": False, "is_processing": n in busy} for n in seats]
        )

    def _props(self) -> tuple[str, bytes]:
        settings = {"params": {"n_predict": -1}, "n_ctx": 4096}
        return JSON, _encode(
            {
                "default_generation_settings": settings,
                "total_slots": self.panel.knobs.parallel,
                "model_alias": self._model,
                "model_path": self._model,
                "chat_template": "",
                "build_info": "fake",
            }
        )

    def _metrics(self) -> tuple[str, bytes]:
        desk = self.desk
        values = [
            ("prompt_tokens_total", "counter", "Number of prompt tokens processed", desk.prompt_tokens),
            ("tokens_predicted_total", "counter", "Number of generation tokens processed", desk.tokens_out),
            ("requests_processing", "gauge", "Number of requests processing", desk.processing),
            ("requests_deferred", "gauge", "Number of requests deferred", desk.queued),
        ]
        text = "".join(
            f"# HELP llamacpp:{name} {help_}\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} {value}\n"
            for name, kind, help_, value in values
        )
        return "text/plain; version=0.0.4", text.encode()

    # --- its own control surface -------------------------------------------------

    def _control(self) -> dict[tuple[str, str], Callable[[Request, Reply], Awaitable[None]]]:
        return {
            ("GET", "/fake/stats"): self._stats,
            ("GET", "/fake/knobs"): self._show_knobs,
            ("POST", "/fake/knobs"): self._turn_knobs,
            ("POST", "/fake/crash"): self._crash,
        }

    async def _stats(self, _request: Request, reply: Reply) -> None:
        await reply.send(200, JSON, _encode(self.desk.stats()))

    async def _show_knobs(self, _request: Request, reply: Reply) -> None:
        await reply.send(200, JSON, _encode(self.panel.knobs))

    async def _turn_knobs(self, request: Request, reply: Reply) -> None:
        try:
            self.panel.turn(read_json(request.body))
        except KnobError as exc:
            raise Refused(400, str(exc)) from exc
        self.desk.resize(self.panel.knobs.parallel)
        await reply.send(200, JSON, _encode(self.panel.knobs))

    async def _crash(self, request: Request, _reply: Reply) -> None:
        code = read_json(request.body or b"{}").get("exit_code", self.panel.knobs.exit_code)
        if type(code) is not int or not -64 <= code <= 255:
            raise Refused(400, f"not an exit code: {code!r}")
        self.crasher.crash(code)


def main(argv: list[str] | None = None) -> int:
    """Run a fake engine in this process until it is told to end. Returns the exit code; 2 = bad knobs."""
    words = sys.argv[1:] if argv is None else argv
    if "--help" in words or "-h" in words:
        process.log(f"{__doc__}\nKnobs, with what is not off by default:\n{documented()}")
        return 0
    try:
        knobs = parse_args(words, os.environ)
    except KnobError as exc:
        process.log(str(exc), process.STDERR)
        return 2
    if knobs.stderr:
        process.log(knobs.stderr, process.STDERR)
    if knobs.fork_grandchild:
        process.fork_grandchild(knobs)
    if knobs.burn_cpu:
        process.burn()
    if knobs.refuse_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until the event loop takes over
    code = trio.run(FakeEngine(knobs).run)
    if code < 0:
        process.die(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
