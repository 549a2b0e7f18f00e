"""The knobs of the fake ComfyUI, and how to run it in a slot."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from slotd.testing.fake_knobs import KnobError

__all__ = ["ComfyKnobs", "comfy_command", "fake_comfyui_slot", "parse_comfy_args", "turned_comfy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComfyKnobs:
    """How the fake ComfyUI behaves. With the defaults it is healthy and fast. Durations in seconds.

    ``start_delay_s``: before its port opens. ``refuse_start``: end with code 1
    instead. ``memory_mb``: so much is filled before the port opens. ``step_s``: time of
    each node, and of each step of a sampler. ``hold``: begin with no further
    step until this is cleared; an interrupt is heeded meanwhile. ``lose_interrupts``:
    so many are forgotten, as ComfyUI does while it begins with a prompt.

    ``checkpoints``: the files that there are. ``node_error``: nodes of this class
    raise ``node_exception``. ``crash_at``: the process ends at the
    first node of this class; with ``crash_once``, a file's path, only while that
    file is missing. ``drop_websocket_after``: websockets are cut after so
    many messages. ``refuse_websocket``: none is accepted. ``no_pictures``: nodes that
    save put nothing out.
    """

    host: str = "127.0.0.1"
    port: int = 0
    start_delay_s: float = 0.0
    refuse_start: bool = False
    memory_mb: int = 0
    step_s: float = 0.0
    hold: bool = False
    lose_interrupts: int = 0
    checkpoints: tuple[str, ...] = ("sd_xl_base_1.0.safetensors",)
    node_error: str = ""
    node_exception: str = "RuntimeError: a node that fails, as told"
    crash_at: str = ""
    crash_once: str = ""
    drop_websocket_after: int | None = None
    refuse_websocket: bool = False
    no_pictures: bool = False


def turned_comfy(knobs: ComfyKnobs, changes: Mapping[str, Any]) -> ComfyKnobs:
    """``knobs`` with ``changes`` merged in. Raises :class:`KnobError`."""
    if unknown := sorted(changes.keys() - asdict(knobs).keys()):
        raise KnobError(f"unknown knob {unknown[0]!r}")
    try:
        return msgspec.convert({**asdict(knobs), **changes}, ComfyKnobs)
    except msgspec.ValidationError as exc:
        raise KnobError(f"bad knob: {exc}") from exc


def comfy_command(
    knobs: ComfyKnobs | None = None, *, host: str = "{host}", port: str = "{port}"
) -> list[str]:
    """The argv of a fake ComfyUI, as a slot wants it; host and port may be numbers instead."""
    plain = asdict(ComfyKnobs())
    chosen = {k: v for k, v in asdict(knobs or ComfyKnobs()).items() if v != plain[k]}
    argv = [sys.executable, "-m", "slotd.testing.fake_comfyui", "--listen", host, "--port", port]
    return [*argv, "--knobs", json.dumps(chosen)] if chosen else argv


def parse_comfy_args(argv: Sequence[str]) -> ComfyKnobs:
    """The knobs of a command line, ``--listen`` and ``--port`` as in ComfyUI. Raises :class:`KnobError`."""
    words = dict(zip(argv[::2], argv[1::2], strict=False))
    if unknown := sorted(words.keys() - {"--listen", "--port", "--knobs"}):
        raise KnobError(f"not a flag: {unknown[0]}")
    try:
        given = msgspec.json.decode(words.get("--knobs", "{}"), type=dict[str, Any])
        given |= {"host": words["--listen"]} if "--listen" in words else {}
        given |= {"port": int(words["--port"])} if "--port" in words else {}
    except (msgspec.DecodeError, ValueError) as exc:
        raise KnobError(f"bad command line: {exc}") from exc
    return turned_comfy(ComfyKnobs(), given)


def fake_comfyui_slot(
    knobs: ComfyKnobs | None = None,
    *,
    workflows: Mapping[str, str] | None = None,
    edit_workflows: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The table of a slot that runs the fake ComfyUI; ``settings`` are its config keys.

    With ``url`` among them it uses a running one. Paths of workflows are as in the config;
    ``options`` are the engine's others.
    """
    all_options = {
        "workflows": dict(workflows or {}),
        "edit_workflows": dict(edit_workflows or {}),
        **(options or {}),
    }
    slot: dict[str, Any] = {"type": "image", "engine": "comfyui", "options": all_options, **settings}
    if "url" not in settings:
        slot = {"command": comfy_command(knobs), "stop_timeout_s": 2, **slot}
    return slot
