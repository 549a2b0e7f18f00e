"""``[slots.NAME]``: a named place for one engine, as slotd works with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator
from pydantic.json_schema import SkipJsonSchema

from slotd.config.fields import Args, Auth, Count, EnvName, Seconds, Section, Strings, UrlPath, UrlText
from slotd.config.options import OPTIONS, ComfyOptions, LlamaCppOptions, NoOptions
from slotd.config.shaping import ShapingConfig, VariantConfig

__all__ = ["API_NAMES", "ENGINE_NAMES", "SLOT_TYPES", "ApiName", "EngineName", "SlotConfig", "SlotType"]

SlotType = Literal["llm", "embedding", "reranking", "transcription", "tts", "image"]
EngineName = Literal["llama-cpp", "command", "comfyui", "external"]
ApiName = Literal["openai", "piper", "whisper.cpp", "tei"]

SLOT_TYPES: tuple[str, ...] = get_args(SlotType)
ENGINE_NAMES: tuple[str, ...] = get_args(EngineName)
API_NAMES: tuple[str, ...] = get_args(ApiName)


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
    """What chats begin with, in the way that ``request.system`` says."""

    request: ShapingConfig = Field(default_factory=ShapingConfig)
    """What is changed in requests before the engine gets them."""

    variants: Mapping[str, VariantConfig] = Field(default_factory=dict)
    """Further changes by name: the slot answers to NAME:VARIANT for each of its names."""

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
    """The engine's program and arguments; {port}, {host}, {model_path} and {model} are filled in, and
    a leading ~/ is the home directory."""

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

    api: ApiName = "openai"
    """What the server speaks, if not OpenAI's API; for ``command`` and ``external``."""

    url: UrlText = ""
    """The server of an external slot; also that of a comfyui slot without a ``command``."""

    auth: Auth = "none"
    """How to show the key: none, bearer, x-api-key or header:<Name>."""

    key_env: EnvName = ""
    """Environment variable with the key."""

    # After ``engine``: its validator needs to know which.
    options: LlamaCppOptions | ComfyOptions | NoOptions = Field(default_factory=dict, validate_default=True)
    """The engine's own options."""

    @property
    def attached(self) -> bool:
        """Whether its server is somebody else's: slotd uses it, and neither starts nor stops it."""
        return self.engine == "external" or (self.engine == "comfyui" and bool(self.url))

    @field_validator("options", mode="before")
    @classmethod
    def _options_of_engine(cls, value: Any, info: ValidationInfo) -> Any:
        engine = info.data.get("engine")
        if engine is None:
            return NoOptions()  # the engine's own fault is reported; these could not be judged
        if isinstance(value, Section):
            return value
        return OPTIONS[engine].model_validate(value)
