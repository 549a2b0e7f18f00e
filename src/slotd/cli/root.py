"""All commands of ``slotd``."""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
import typer

from slotd.cli.api import Api
from slotd.cli.output import err, fail, out, quiet_log, warn
from slotd.cli.sheet import Note
from slotd.cli.tables import (
    explain_lines,
    held_by,
    memory_lines,
    memory_table,
    requests_table,
    routes_table,
    slot_table,
    story_lines,
    upstreams_table,
)
from slotd.errors import SlotdError
from slotd.version import VERSION, is_compiled

__all__ = ["app"]

app = typer.Typer(
    name="slotd",
    help="Runs many AI model servers on one machine behind one OpenAI-compatible endpoint.",
    epilog="serve, init, check and pull work by themselves; the others ask a running slotd: the one at --url "
    "or SLOTD_URL, else here at the port of ./slotd.toml, or 8080. "
    "Exit codes: 0 done, 1 refused or failed, 2 wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Config = Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The configuration file.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The running server (default: SLOTD_URL, or here at the port of ./slotd.toml, or 8080).",
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="A slot's name.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_CONFIG = Path("slotd.toml")


def _print_json(document: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def _version(show: bool) -> None:
    if show:
        print(f"slotd {VERSION}, compiled" if is_compiled() else f"slotd {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# --- without a running server ----------------------------------------------------


@app.command()
def serve(
    config: Config = DEFAULT_CONFIG,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", metavar="N", min=0, max=65535, help="In the place of server.port; 0: a free one."
        ),
    ] = None,
) -> None:
    """Run the server.

    The first SIGINT or SIGTERM drains, the second stops now; SIGHUP reloads the configuration.
    """
    # What imports make is there to stay. Looking it through for garbage costs some
    # 40 ms of the start, and later, each time, 30 ms in which nothing is served.
    gc.disable()
    from slotd.cli.serve import run

    gc.freeze()
    # Many requests that begin at once are many objects and no garbage: to look through
    # them after every 700, as is the default, makes the last wait a sixth longer. A request
    # leaves none that would hold its body (tests/exchange/test_exchange_garbage.py).
    gc.set_threshold(50_000, 3, 3)
    gc.enable()
    try:
        raise typer.Exit(run(config, port))
    except SlotdError as error:
        fail(error)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = DEFAULT_CONFIG,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a working configuration with the demo model."""
    from slotd.config import demo_text

    if path.exists() and not force:
        err.print(f"{path} exists already; --force overwrites it", markup=False)
        raise typer.Exit(1)
    try:
        path.write_text(demo_text(), encoding="utf-8")
    except OSError as exc:
        err.print(f"{path} cannot be written: {exc.strerror}", markup=False)
        raise typer.Exit(1) from exc
    out.print(f"wrote {path}; next: slotd serve -c {path}", markup=False)


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The same as --config.")] = None,
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Check a configuration: list everything that is wrong with it."""
    config = file or config
    from slotd.cli.check import machine_warnings
    from slotd.config import load_config

    with quiet_log():
        try:
            loaded = load_config(config)
        except SlotdError as error:
            fail(error)
        found = machine_warnings(loaded)
    warn((*loaded.warnings, *found))
    has = ", ".join(
        f"{len(there)} {what}{'' if len(there) == 1 else 's'}"
        for what, there in (("slot", loaded.config.slots), ("upstream", loaded.config.upstreams))
    )
    out.print(f"{config}: good ({has})", markup=False)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model of the configuration.")],
    config: Config = DEFAULT_CONFIG,
) -> None:
    """Fetch a model's file, so that the first request need not."""
    from slotd.cli.pull import run

    try:
        run(config, model)
    except SlotdError as error:
        fail(error)


# --- with a running server ---------------------------------------------------------


@app.command()
def status(
    url: Url = None,
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Redraw as things change.")] = False,
) -> None:
    """Show the slots: state, load, memory, faults.

    A star marks the default of its type. Columns that do not fit are left out; --json has all.
    """
    api = Api(url)
    try:
        if watch:
            from slotd.cli.watch import run

            run(api)
            return
        document = api.get("/api/slots")
        held = held_by(api.get("/api/memory"))
    except SlotdError as error:
        fail(error)
    if as_json:
        _print_json(document)
    else:
        out.print(slot_table(document["slots"], held))


def _command(verb: str, name: str, url: str | None) -> None:
    api = Api(url)
    try:
        slot = api.post(f"/api/slots/{quote(name, safe='')}/{verb}")
        held = held_by(api.get("/api/memory"))
    except SlotdError as error:
        fail(error)
    out.print(slot_table([slot], held))


@app.command()
def load(name: Name, url: Url = None) -> None:
    """Load a slot; returns when it is ready."""
    _command("load", name, url)


@app.command()
def unload(name: Name, url: Url = None) -> None:
    """Drain a slot and stop its engine."""
    _command("unload", name, url)


@app.command()
def restart(name: Name, url: Url = None) -> None:
    """Stop a slot's engine and start it again."""
    _command("restart", name, url)


@app.command()
def kill(name: Name, url: Url = None) -> None:
    """Kill a slot's engine now: streams break off, others start anew."""
    _command("kill", name, url)


@app.command()
def logs(
    name: Name,
    url: Url = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as lines come.")] = False,
) -> None:
    """Show what a slot's engine wrote."""
    api = Api(url)
    try:
        if not follow:
            text = api.text(f"/api/slots/{name}/logs")
            sys.stdout.write(text)
            if not text:
                err.print(f"slot {name!r} has written nothing since slotd began", style="dim")
            return
        with api.stream(f"/api/slots/{name}/logs", follow="1") as lines:
            for line in lines:
                print(line, flush=True)
    except SlotdError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command()
def reload(url: Url = None, as_json: Json = False) -> None:
    """Read the configuration again, and show what changed.

    With a fault in it everything that is wrong is listed, and nothing changes.
    """
    try:
        document = Api(url).post("/api/config/reload")
    except SlotdError as error:
        fail(error)
    if as_json:
        _print_json(document)
        return
    for line in document["lines"] or ["nothing changed"]:
        out.print(Note("", line))
    warn(document["warnings"])


@app.command()
def memory(url: Url = None, json: Json = False) -> None:
    """Show who holds memory, and who waits for it."""
    try:
        document = Api(url).get("/api/memory")
    except SlotdError as error:
        fail(error)
    if json:
        return _print_json(document)
    for line in memory_lines(document):
        out.print(line, markup=False)
    out.print()
    out.print(memory_table(document))
    return None


@app.command()
def release(
    device: Annotated[
        str, typer.Argument(metavar="DEVICE", help="The device, as a slot's key exclusive names it.")
    ],
    url: Url = None,
) -> None:
    """End the exclusive use of a device.

    The slot that has it leaves when it serves nobody; those that it drove out come back.
    """
    try:
        document = Api(url).post(f"/api/devices/{quote(device, safe='')}/release")
    except SlotdError as error:
        fail(error)
    print(f"{document['released']}: {document['owner']} leaves when it serves nobody")


@app.command()
def routes(url: Url = None, as_json: Json = False) -> None:
    """Show the table that model names are looked up in."""
    try:
        document = Api(url).get("/api/routes")
    except SlotdError as error:
        fail(error)
    if as_json:
        _print_json(document)
    else:
        out.print(routes_table(document["routes"]))


@app.command()
def explain(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model name, as a client would send it; '' for none.")
    ],
    path: Annotated[
        str, typer.Option("--path", metavar="PATH", help="The endpoint.")
    ] = "/v1/chat/completions",
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Say where a request would go, and why.

    Loads nothing, asks no upstream. Exit code 1 if the request would be refused.
    """
    try:
        document = Api(url).get("/api/explain", model=model or None, path=path)
    except SlotdError as error:
        fail(error)
    if as_json:
        _print_json(document)
    else:
        for line in explain_lines(document):
            out.print(line, markup=False)
    if document.get("error"):
        raise typer.Exit(1)


@app.command()
def upstreams(url: Url = None, as_json: Json = False) -> None:
    """Show the remote endpoints, and how they are."""
    try:
        document = Api(url).get("/api/upstreams")
    except SlotdError as error:
        fail(error)
    if as_json:
        _print_json(document)
    else:
        out.print(upstreams_table(document["upstreams"]))


@app.command()
def requests(
    url: Url = None,
    number: Annotated[
        int, typer.Option("-n", metavar="N", min=1, max=10_000, help="So many of the last.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """Show the last requests, and those under way.

    Those of earlier runs too; "lost" was under way when slotd was killed.
    """
    api = Api(url)
    try:
        live = api.get("/api/requests")["live"]
        past = api.get("/api/events/history", kind="request.finished", limit=str(number))["events"]
    except SlotdError as error:
        fail(error)
    document = {"live": live, "recent": past[::-1]}
    if as_json:
        _print_json(document)
    else:
        out.print(requests_table([*past, *live]))


@app.command()
def why(
    request: Annotated[
        str,
        typer.Argument(
            metavar="REQUEST_ID", help="As the answer's X-Request-Id names it, or 'slotd requests'."
        ),
    ],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Tell what happened to a request, step by step.

    Route, waiting and what for, answer, end; of requests of earlier runs too.
    """
    try:
        document = Api(url).get(f"/api/why/{quote(request, safe='')}")
    except SlotdError as error:
        fail(error)
    if as_json:
        return _print_json(document)
    for found in document["requests"]:
        for line in story_lines(found):
            out.print(line, markup=False)
    return None


@app.command()
def events(
    url: Url = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="WHEN", help="From then on: 10m (s, m, h, d ago), or a date and time."
        ),
    ] = None,
    slot: Annotated[str | None, typer.Option("--slot", metavar="NAME", help="Only of this slot.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="Only of this kind: slot, slot.fault, ...")
    ] = None,
    number: Annotated[
        int, typer.Option("-n", metavar="N", min=1, max=10_000, help="At most so many, the last.")
    ] = 100,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as they come.")] = False,
    as_json: Json = False,
) -> None:
    """Show what happened: transitions, loads, faults, requests.

    In this run and before it, as far as the journal goes back.
    """
    from slotd.cli.history import show_events

    try:
        show_events(Api(url), since, slot, kind, number, follow=follow, as_json=as_json)
    except SlotdError as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
