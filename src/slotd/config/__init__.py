"""slotd's configuration: ``slotd.toml``, read and checked once, at the edge."""

from __future__ import annotations

from slotd.config.load import (
    ConfigFile,
    ConfigText,
    LoadedConfig,
    Overrides,
    load_config,
    parse_config,
    read_config,
)
from slotd.config.model import (
    ENGINE_NAMES,
    SLOT_TYPES,
    BindingConfig,
    Config,
    DispatcherConfig,
    EngineName,
    JournalConfig,
    MemoryConfig,
    ModelConfig,
    OmniConfig,
    ProcessConfig,
    ServerConfig,
    SlotConfig,
    SlotType,
    UpstreamConfig,
)
from slotd.config.options import ComfyOptions, LlamaCppOptions, NoOptions
from slotd.config.paths import default_state_dir
from slotd.config.schema import schema_text
from slotd.config.secrets import Secrets, auth_header
from slotd.config.shaping import ShapingConfig, VariantConfig
from slotd.config.template import demo_text

__all__ = [
    "ENGINE_NAMES",
    "SLOT_TYPES",
    "BindingConfig",
    "ComfyOptions",
    "Config",
    "ConfigFile",
    "ConfigText",
    "DispatcherConfig",
    "EngineName",
    "JournalConfig",
    "LlamaCppOptions",
    "LoadedConfig",
    "MemoryConfig",
    "ModelConfig",
    "NoOptions",
    "OmniConfig",
    "Overrides",
    "ProcessConfig",
    "Secrets",
    "ServerConfig",
    "ShapingConfig",
    "SlotConfig",
    "SlotType",
    "UpstreamConfig",
    "VariantConfig",
    "auth_header",
    "default_state_dir",
    "demo_text",
    "load_config",
    "parse_config",
    "read_config",
    "schema_text",
]
