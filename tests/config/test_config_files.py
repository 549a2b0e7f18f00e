"""The configurations and the schema that ship with slotd."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from slotd.capability.endpoints import TYPES
from slotd.config import (
    ENGINE_NAMES,
    SLOT_TYPES,
    BindingConfig,
    Config,
    DispatcherConfig,
    JournalConfig,
    LlamaCppOptions,
    MemoryConfig,
    ModelConfig,
    OmniConfig,
    ProcessConfig,
    ServerConfig,
    ShapingConfig,
    SlotConfig,
    UpstreamConfig,
    demo_text,
    load_config,
    schema_text,
)
from slotd.config.fields import Section
from slotd.config.options import OPTIONS
from slotd.model.source import WheelSource

SHIPPED = Path(__file__).resolve().parents[2] / "config"
ENV = {"HOME": "/nowhere", "LAB_KEY": "k"}


def test_the_demo_in_the_package_is_the_one_in_the_repository() -> None:
    assert (SHIPPED / "demo.toml").read_text(encoding="utf-8") == demo_text()


@pytest.mark.parametrize("file", sorted(SHIPPED.glob("*.toml")), ids=lambda file: file.name)
def test_shipped_configs_are_valid(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    # The files that scripts/workstation makes.
    for name in re.findall(r'"file:~/([^"]+)"', file.read_text(encoding="utf-8")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert load_config(file, env=ENV).warnings == ()


def test_the_workstation_has_a_slot_for_every_type_but_images() -> None:
    config = load_config(SHIPPED / "workstation.toml", env=ENV).config
    assert [config.default_slot(type) for type in TYPES] == [
        "chat",
        "embed",
        "rerank",
        "listen",
        "speak",
        None,
    ]


def test_the_demo_has_chat_and_embeddings() -> None:
    loaded = load_config(SHIPPED / "demo.toml", env=ENV)
    config = loaded.config
    assert (config.default_slot("llm"), config.default_slot("embedding")) == ("chat", "embed")
    assert config.slots["chat"].aliases == ("gpt-4o-mini",)
    assert config.labels_of("embed") == ("embeddings",)
    assert isinstance(config.models["smollm2"].parsed(), WheelSource)


def test_the_example_shows_every_key() -> None:
    text = (SHIPPED / "slotd.example.toml").read_text(encoding="utf-8")
    written = set(re.findall(r"^(?:# )?([a-z0-9_]+) = ", text, re.MULTILINE))
    sections: tuple[type[Section], ...] = (
        ServerConfig,
        DispatcherConfig,
        MemoryConfig,
        ProcessConfig,
        ModelConfig,
        SlotConfig,
        LlamaCppOptions,
        ShapingConfig,
        OmniConfig,
        JournalConfig,
        UpstreamConfig,
        BindingConfig,
    )
    known = {key for section in sections for key in section.model_fields} - {
        "name",
        "options",
        "request",
        "variants",
    }
    assert known - written == set()


def test_the_examples_values_are_the_defaults() -> None:
    config = load_config(SHIPPED / "slotd.example.toml", env=ENV).config
    plain = Config()
    assert (config.server, config.dispatcher) == (plain.server, plain.dispatcher)
    assert (config.memory, config.journal, config.process) == (plain.memory, plain.journal, plain.process)
    assert config.omni == plain.omni
    slot = config.slots["chat"]
    bare = SlotConfig(name="chat", type="llm", engine="llama-cpp", model="smollm2")
    shown = slot.model_dump(exclude={"default", "aliases", "options", "check_output"})
    assert shown == bare.model_dump(exclude={"default", "aliases", "options", "check_output"})
    options = slot.options.model_dump(exclude={"ctx_size"})
    assert options == LlamaCppOptions().model_dump(exclude={"ctx_size"})


def test_the_schema_is_current() -> None:
    stored = (SHIPPED / "slotd.schema.json").read_text(encoding="utf-8")
    assert json.loads(stored) == json.loads(schema_text()), "run scripts/schema"
    assert '"name"' not in stored


def test_types_and_engines_have_one_spelling() -> None:
    assert SLOT_TYPES == TYPES
    assert set(OPTIONS) == set(ENGINE_NAMES)
