"""What slotd starts for a slot: command lines, readiness and abilities, from the config. Pure."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest

from slotd.config import SlotConfig, parse_config
from slotd.engine import command, llama_cpp
from slotd.engine.backend import external_address, make_backend
from slotd.engine.need import llama_settings
from slotd.errors import SpawnFailed
from slotd.model.store import ModelStore
from slotd.process.local import LocalLauncher
from slotd.process.plan import Address
from slotd.process.ports import PortPool
from slotd.slot.backend import Readiness
from slotd.testing import config_text

MODEL = "[models.m]\nsource = 'file:/models/m.gguf'\n"


def slot(**settings: Any) -> SlotConfig:
    """A slot as the config gives it, called ``s``."""
    loaded = parse_config(config_text({"s": settings}, more=MODEL), "test", Path("/conf"), env={})
    return loaded.config.slots["s"]


def llama(type: str = "llm", **options: Any) -> SlotConfig:
    return slot(type=type, engine="llama-cpp", model="m", options=options)


def argv(config: SlotConfig) -> list[str]:
    """The flags of a llama-cpp slot, without the program."""
    plan = llama_cpp.launch_plan(config, "m", Path("/models/m.gguf"), lambda text: Path("/conf") / text)
    return list(plan.argv[len(llama_cpp.program()) :])


def value(flags: list[str], name: str) -> str:
    return flags[flags.index(name) + 1]


# --- llama-cpp -------------------------------------------------------------------


def test_a_chat_slots_flags() -> None:
    flags = argv(llama(ctx_size=8192))
    assert value(flags, "--model") == "/models/m.gguf"
    assert value(flags, "--alias") == "m"
    assert (value(flags, "--host"), value(flags, "--port")) == ("{host}", "{port}")
    assert (value(flags, "--ctx-size"), value(flags, "--parallel")) == ("8192", "4")
    assert {"--slots", "--metrics", "--jinja"} <= set(flags)
    assert not {"--embeddings", "--reranking", "--pooling", "--n-gpu-layers", "--threads"} & set(flags)


def test_the_flags_are_the_workers_own() -> None:
    """What is written here must be read there."""
    from slotd.engine.llama_worker import parse

    for config in (
        llama(threads=2, gpu_layers=3, lora=["a"]),
        llama("embedding", pooling="mean"),
        llama("reranking"),
    ):
        flags = [text.replace("{port}", "1").replace("{host}", "127.0.0.1") for text in argv(config)]
        assert parse(flags)


def test_options_become_flags() -> None:
    flags = argv(
        llama(
            parallel=2,
            gpu_layers=0,
            threads=3,
            batch_size=256,
            ubatch_size=64,
            jinja=False,
            flash_attn="off",
            mmproj="eye.gguf",
            lora=["one.gguf", "/two.gguf"],
            extra_args=["--seed", "1"],
        )
    )
    expected = {
        "--parallel": "2",
        "--n-gpu-layers": "0",
        "--threads": "3",
        "--batch-size": "256",
        "--ubatch-size": "64",
        "--flash-attn": "off",
        "--mmproj": "/conf/eye.gguf",
        "--lora": "/conf/one.gguf",
    }
    assert {name: value(flags, name) for name in expected} == expected
    assert "/two.gguf" in flags
    assert "--no-jinja" in flags
    assert flags[-2:] == ["--seed", "1"], "the last word is the user's"


def test_an_embedding_slot_shares_one_cache() -> None:
    flags = argv(llama("embedding", pooling="mean"))
    assert {"--embeddings", "--kv-unified"} <= set(flags)
    assert "--reranking" not in flags
    assert value(flags, "--pooling") == "mean"


def test_a_reranking_slot_ranks() -> None:
    flags = argv(llama("reranking"))
    assert {"--embeddings", "--reranking", "--kv-unified"} <= set(flags)
    assert value(flags, "--pooling") == "rank"


@pytest.mark.parametrize(
    ("type", "options", "computed"),
    [
        ("llm", {"batch_size": 64}, "64"),
        ("llm", {"batch_size": 1024}, "512"),
        ("embedding", {"batch_size": 64}, "64"),
        ("reranking", {"batch_size": 64}, "64"),
        ("reranking", {"batch_size": 1024}, "1024"),
        ("reranking", {"batch_size": 1024, "ubatch_size": 64}, "1024"),
    ],
)
def test_what_is_read_whole_is_computed_at_once(type: str, options: dict[str, int], computed: str) -> None:
    flags = argv(llama(type, **options))
    assert value(flags, "--batch-size") == str(options["batch_size"])
    assert value(flags, "--ubatch-size") == computed
    assert llama_settings(llama(type, **options)).ubatch == int(computed), "room for as much is reserved"


def test_embeddings_may_be_asked_for_or_off_whatever_the_type() -> None:
    assert "--embeddings" in argv(llama(embedding=True))
    assert "--embeddings" not in argv(llama("embedding", embedding=False))


def test_a_template_is_a_text_or_a_file() -> None:
    inline = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert value(argv(llama(chat_template=inline)), "--chat-template") == inline
    assert value(argv(llama(chat_template="chat.jinja")), "--chat-template-file") == "/conf/chat.jinja"


def _fake_server(folder: Path) -> Path:
    """A ``llama-server`` that is the worker."""
    program = folder / "llama-server"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m slotd.engine.llama_worker "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


def test_a_llama_server_in_path_comes_before_the_wheel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert llama_cpp.program() == (sys.executable, "-m", "slotd.engine.llama_worker")
    program = _fake_server(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.defpath]))
    assert llama_cpp.program() == (str(program),)


def test_neither_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpawnFailed, match="pip install"):
        llama_cpp.program()


# --- command ---------------------------------------------------------------------


def test_a_commands_placeholders_are_filled_but_for_the_address() -> None:
    config = slot(
        type="tts",
        engine="command",
        model="m",
        command=["serve", "--port={port}", "-m", "{model_path}", '{"as": "is"}'],
        env={"NAME": "{model}"},
    )
    plan = command.launch_plan(config, "m", Path("/models/m.gguf"))
    assert plan.argv == ("serve", "--port={port}", "-m", "/models/m.gguf", '{"as": "is"}')
    assert plan.env == {"NAME": "m"}


def test_an_unknown_placeholder_is_an_error_that_lists_the_known() -> None:
    with pytest.raises(SpawnFailed, match=r"\{modle\}.*\{model\}.*\{port\}"):
        command.fill("-m {modle}", {"model": "m"})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"type": "llm"}, Readiness("/health", "/v1/models")),
        ({"type": "tts"}, Readiness("/health", "")),
        ({"type": "tts", "health_path": "/ok"}, Readiness("/ok", "")),
        ({"type": "llm", "ready_models": False}, Readiness("/health", "")),
        ({"type": "image", "ready_models": True}, Readiness("/health", "/v1/models")),
        ({"type": "llm", "ready_path": "/models"}, Readiness("/health", "/models")),
    ],
)
def test_when_a_command_is_ready(settings: dict[str, Any], expected: Readiness) -> None:
    assert command.readiness(slot(engine="command", command=["x"], **settings)) == expected


# --- external --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://127.0.0.1:9000/v1", Address("127.0.0.1", 9000)),
        ("http://box.internal", Address("box.internal", 80)),
        ("http://[::1]:8000", Address("::1", 8000)),
    ],
)
def test_the_address_of_an_external_server(url: str, address: Address) -> None:
    assert external_address(url) == address


async def test_an_external_slot_starts_nothing_and_owns_no_listener(tmp_path: Path) -> None:
    config = slot(type="image", engine="external", url="http://127.0.0.1:9000/v1")
    launcher = LocalLauncher(PortPool(42000, 42001), run_id="test", guardian=None, ledger=None)
    backend = make_backend(config, {}, ModelStore(tmp_path), launcher, Path)
    assert backend.launcher is not launcher
    assert not backend.readiness.own_listener
    assert backend.present("")


# --- what stops a request whose client has left -------------------------------------


@pytest.mark.parametrize(
    ("settings", "way", "note"),
    [
        ({"type": "llm", "engine": "llama-cpp", "model": "m"}, "assemble", "except where the engine"),
        ({"type": "embedding", "engine": "llama-cpp", "model": "m"}, "none", "works to the end"),
        (
            {"type": "llm", "engine": "llama-cpp", "model": "m", "nonstream_cancel": "close"},
            "close",
            "is up to it",
        ),
        ({"type": "tts", "engine": "command", "command": ["x"]}, "close", "is up to it"),
        ({"type": "llm", "engine": "external", "url": "http://127.0.0.1:1"}, "close", "is up to it"),
        (
            {"type": "llm", "engine": "command", "command": ["x"], "nonstream_cancel": "assemble"},
            "assemble",
            "except where the engine",
        ),
    ],
)
def test_how_requests_are_stopped_and_what_is_told(settings: dict[str, Any], way: str, note: str) -> None:
    config = slot(**settings)
    kind = llama_cpp if config.engine == "llama-cpp" else command
    abilities = kind.abilities(config)
    assert abilities.nonstream_cancel == way
    assert note in (abilities.note() or "")
