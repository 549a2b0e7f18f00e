"""Every knob of the fake engine, and the three ways to turn them.

The same names and values work as command line flags (``--token-delay-s 0.1``),
as JSON (``--knobs '{"token_delay_s": 0.1}'`` or the environment variable
``SLOTD_FAKE_KNOBS``) and, while it runs, as ``POST /fake/knobs``. A flag beats
``--knobs``, which beats the environment. Durations are in seconds.

This module is imported by every fake engine that starts: keep it light.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from msgspec import Meta

__all__ = ["ENV", "KnobError", "Knobs", "command", "documented", "parse_args", "turned"]

ENV = "SLOTD_FAKE_KNOBS"
"""The environment variable that may hold knobs as a JSON object."""


class KnobError(ValueError):
    """A knob that does not exist, a value that does not fit, or a knob turned too late."""


def doc(text: str) -> Meta:
    """Says what a knob does."""
    return Meta(description=text)


def start(text: str) -> Meta:
    """The same for a knob that only acts while the engine starts."""
    return Meta(description=text, extra={"start": True})


Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]
Status = Annotated[int, Meta(ge=200, le=599)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Knobs:
    """How a fake engine behaves. With the defaults it is healthy and fast.

    Values are checked where they enter an engine and in :func:`command`, not
    when this record is made.
    """

    # --- where and what --------------------------------------------------------
    host: Annotated[str, start("address to listen on")] = "127.0.0.1"
    port: Annotated[
        Annotated[int, Meta(ge=0, le=65535)],
        start("port to listen on; 0 takes a free one, the address is printed"),
    ] = 0
    models: Annotated[
        tuple[str, ...],
        doc("ids listed by /v1/models, the first one answers; may be empty; as a flag: separated by commas"),
    ] = ("fake",)
    strict_model: Annotated[bool, doc("404 for a model that is not listed, instead of taking any name")] = (
        False
    )
    parallel: Annotated[
        Annotated[int, Meta(ge=1)], doc("requests served at a time; more queue inside the engine")
    ] = 4

    # --- start and load --------------------------------------------------------
    startup_delay_s: Annotated[Seconds, start("time before the port opens")] = 0.0
    load_delay_s: Annotated[Seconds, start("time with the port open and 503 'Loading model'")] = 0.0
    memory_mb: Annotated[Count, start("memory to touch and keep while loading, in MiB")] = 0
    stderr: Annotated[str, start("text written to standard error at the very start")] = ""
    fork_grandchild: Annotated[
        bool, start("fork a child that sleeps, ignores SIGTERM and holds our pipes; its pid is printed")
    ] = False
    grandchild_setsid: Annotated[bool, start("that child leaves the process group, by setsid")] = False
    burn_cpu: Annotated[bool, start("fork a child that uses a whole core, for a minute at most")] = False

    # --- answers ---------------------------------------------------------------
    tokens: Annotated[
        Count, doc("length of an answer; max_tokens shortens it, ignore_eos with max_tokens sets it")
    ] = 16
    echo: Annotated[bool, doc("answer with the prompt or the last user message, whatever `tokens` is")] = (
        False
    )
    script: Annotated[
        str,
        doc(
            "JSON list of assistant messages that chats are answered with, one after the other: "
            '[{"content": "...", "tool_calls": [{"name": "...", "arguments": {}}]}, ...]'
        ),
    ] = ""
    first_token_delay_s: Annotated[Seconds, doc("prompt processing: time before the first token")] = 0.0
    token_delay_s: Annotated[Seconds, doc("time before every later token")] = 0.0
    tokens_per_s: Annotated[
        Seconds, doc("the same as a rate; 0 = as fast as can be; the slower of the two counts")
    ] = 0.0
    close_after_stream: Annotated[
        bool,
        doc("close the connection after a streamed answer though keep-alive is advertised, like llama.cpp"),
    ] = True
    cancel_nonstream: Annotated[
        bool, doc("a non-streaming request stops when its client leaves; llama.cpp works on to the end")
    ] = False

    # --- deaths ----------------------------------------------------------------
    exit_code: Annotated[
        Annotated[int, Meta(ge=-64, le=255)],
        doc("how a crash ends the process: an exit code, or minus a signal's number (-9: SIGKILL)"),
    ] = 1
    last_words: Annotated[str, doc("text written to standard error just before a crash")] = ""
    crash_at_start: Annotated[bool, start("crash instead of opening the port, after startup_delay_s")] = False
    crash_after_s: Annotated[
        Seconds | None, doc("crash so long after the port opened, or after this knob was turned")
    ] = None
    crash_after_tokens: Annotated[
        Count | None, doc("crash when a request has sent so many tokens; 0: before its first byte")
    ] = None
    crash_once: Annotated[
        str, start("a file's path: crash knobs act only while it is missing, and a crash creates it")
    ] = ""
    refuse_sigterm: Annotated[bool, doc("ignore SIGTERM and SIGINT")] = False
    sigterm_drains: Annotated[
        bool, doc("SIGTERM waits until no request is left, like llama-server; a second one does not")
    ] = False
    sigterm_exit_code: Annotated[
        Annotated[int, Meta(ge=-64, le=255)], doc("like exit_code, for a SIGTERM that is obeyed")
    ] = 0

    # --- silence ---------------------------------------------------------------
    hang_after_tokens: Annotated[
        Count | None, doc("send nothing more after so many tokens, keep the connection; clear it to go on")
    ] = None
    hang_requests: Annotated[bool, doc("accept inference requests, never answer; clear it to go on")] = False
    hang_health: Annotated[bool, doc("the same for /health")] = False
    slow_health_s: Annotated[Seconds, doc("time /health takes")] = 0.0

    # --- wrong answers ---------------------------------------------------------
    health_status: Annotated[Status, doc("status of /health once loaded")] = 200
    error_status: Annotated[
        Annotated[int, Meta(ge=0, le=599)], doc("answer inference requests with this status; 0 = off")
    ] = 0
    error_body: Annotated[str, doc("body of that answer; empty = llama.cpp's error object")] = ""
    garbage: Annotated[
        Literal["", "text", "http", "sse", "empty"],
        doc(
            "text: one symbol over and over; empty: no tokens at all; "
            "sse: events and JSON that do not parse; http: not even HTTP"
        ),
    ] = ""
    oversized_response_mb: Annotated[Count, doc("one token of so many MiB; 0 = off")] = 0
    cut_after_tokens: Annotated[
        Count | None, doc("close the connection after so many tokens, without the end, and live on")
    ] = None
    close_without_terminator: Annotated[
        bool, doc("close after a stream's last event, without the chunked body's end")
    ] = False
    log_flood: Annotated[Count, doc("lines a second written to standard output")] = 0


def turned(knobs: Knobs, changes: Mapping[str, Any], *, running: bool = False) -> Knobs:
    """``knobs`` with ``changes`` (plain JSON values) merged in, checked.

    Raises :class:`KnobError` for an unknown name, naming the nearest known
    one, for a value that does not fit, and, if ``running``, for a knob that
    only acts at the start.
    """
    for name in changes:
        if name not in _META:
            raise KnobError(_unknown(name))
        if running and _META[name].extra:
            raise KnobError(f"knob {name!r} acts at the start only; give it on the command line")
    try:
        return msgspec.convert({**asdict(knobs), **changes}, Knobs)
    except msgspec.ValidationError as exc:
        raise KnobError(f"bad knob: {exc}") from exc


def parse_args(argv: Sequence[str], environ: Mapping[str, str]) -> Knobs:
    """The knobs given by the environment, ``--knobs`` and flags, in rising order of precedence.

    A flag is ``--name value`` or ``--name=value``, with dashes or underscores;
    a yes/no knob alone means yes. Raises :class:`KnobError`.
    """
    flags: dict[str, Any] = {}
    document = "{}"
    words = list(argv)
    while words:
        flag, given, value = words.pop(0).partition("=")
        name = flag.removeprefix("--").replace("-", "_")
        if not flag.startswith("--"):
            raise KnobError(f"not a flag: {flag!r}")
        if name != "knobs" and name not in _META:
            raise KnobError(_unknown(name))
        if not given:
            alone = name != "knobs" and _KINDS[name] is bool
            if alone and (not words or words[0].startswith("--")):
                value = "true"
            elif not words:
                raise KnobError(f"--{name.replace('_', '-')} needs a value")
            else:
                value = words.pop(0)
        if name == "knobs":
            document = value
        else:
            flags[name] = _from_text(name, value)
    knobs = turned(Knobs(), _object(environ.get(ENV) or "{}", ENV))
    return turned(turned(knobs, _object(document, "--knobs")), flags)


def command(knobs: Knobs | None = None, *, port: str = "{port}") -> list[str]:
    """The argv of a fake engine, as a slot of engine ``command`` wants it.

    ``port`` is a number or the placeholder that slotd fills in; the one in
    ``knobs`` is not used. Only knobs that differ from the defaults appear.
    Raises :class:`KnobError` for values that do not fit.
    """
    chosen = asdict(turned(knobs or Knobs(), {}))
    plain = asdict(Knobs())
    argv = [sys.executable, "-m", "slotd.testing.fake_engine", "--port", port]
    for name, value in chosen.items():
        if name != "port" and value != plain[name]:
            argv.append(f"--{name.replace('_', '-')}={_to_text(value)}")
    return argv


def documented() -> str:
    """The help text: every knob, what it does and its default."""
    lines = []
    for f in fields(Knobs):
        default = "" if f.default in ("", None, False, ()) else f" [{_to_text(f.default)}]"
        lines.append(f"  --{f.name.replace('_', '-'):<26}{_META[f.name].description}{default}")
    return "\n".join(lines)


def _object(text: str, source: str) -> dict[str, Any]:
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as exc:
        raise KnobError(f"{source} is not a JSON object: {exc}") from exc


def _from_text(name: str, text: str) -> Any:
    kind = _KINDS[name]
    if kind == tuple[str, ...]:
        return [part for part in text.split(",") if part]
    try:
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError as exc:
        raise KnobError(f"bad value for --{name.replace('_', '-')}: {text!r}: {exc}") from exc


def _to_text(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case None:
            return "null"
        case list() | tuple():
            return ",".join(value)
        case _:
            return str(value)


def _unknown(name: str) -> str:
    # Imported here: difflib is slow to load and wanted by nobody who spells well.
    from slotd.names import nearest

    near = nearest(name, _META)
    hint = f"; did you mean {near!r}?" if near else f"; known are {', '.join(sorted(_META))}"
    return f"unknown knob {name!r}{hint}"


def _description(hint: Any) -> Meta:
    metas = [m for m in hint.__metadata__ if isinstance(m, Meta) and m.description]
    assert len(metas) == 1, "every knob is documented once"
    return metas[0]


_META = {name: _description(hint) for name, hint in get_type_hints(Knobs, include_extras=True).items()}
_KINDS = get_type_hints(Knobs)
