"""The engines' own options: ``[slots.NAME.options]``.

Each engine that takes options has a model here, so that a misspelt one is an
error before anything starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from slotd.config.fields import Args, Count, Section, Strings

__all__ = ["OPTIONS", "ComfyOptions", "LlamaCppOptions", "NoOptions", "Options"]


class NoOptions(Section):
    """For an engine that is told everything by its command line or URL."""


class LlamaCppOptions(Section):
    """llama.cpp's server. Unset means slotd's choice, which the field says."""

    ctx_size: Count = 4096
    """Tokens of context for the whole engine, divided among ``parallel``; 0 = as the model was trained."""

    parallel: Count = 0
    """Sequences decoded at the same time; 0 = the slot's ``max_parallel``."""

    gpu_layers: int = Field(default=-1, ge=-1)
    """Layers to put on the GPU; -1 = as many as fit, 0 = none."""

    threads: Count = 0
    """CPU threads; 0 = one per physical core."""

    http_threads: int = Field(default=64, ge=1)
    """Threads that answer HTTP. Few of them make health checks wait behind streams."""

    batch_size: int = Field(default=2048, ge=1)
    """Tokens of prompt submitted at a time."""

    ubatch_size: int = Field(default=512, ge=1)
    """Tokens of prompt computed at a time, ``batch_size`` at most. A slot that embeds or ranks reads each
    input at once: there it is the whole batch."""

    embedding: bool | None = None
    """Serve embeddings only; unset = as the slot's type asks."""

    pooling: Literal["", "mean", "cls", "last", "rank"] = ""
    """How token vectors become one vector; "" = as the model says, or as the slot's type asks. With
    another than "rank" a reranking slot compares the vectors of a model that was not made to rank."""

    chat_template: str = ""
    """A Jinja template, or a file that holds one; "" = the model's own."""

    jinja: bool = True
    """Render chat templates with Jinja, which tool calling needs."""

    cache_ram_mib: int = Field(default=0, ge=-1)
    """MiB of RAM for the prompts of finished chats; 0 = none, -1 = no limit."""

    flash_attn: Literal["auto", "on", "off"] = "auto"

    mmproj: str = ""
    """The projector file of a vision model."""

    lora: Strings = ()
    """LoRA adapter files to apply."""

    extra_args: Args = ()
    """Further arguments, spelt as for llama-server; they win over the options above."""

    def computed_at_once(self, type: str) -> int:
        """Tokens that a slot of this type computes at a time; never more than a batch has.

        A vector, and a rank, is made from all of its input: one that does not
        fit is refused, so a smaller ``ubatch_size`` would only refuse more.
        """
        return min(self.ubatch_size, self.batch_size) if type == "llm" else self.batch_size

    @property
    def text_only(self) -> bool:
        """Whether the model reads nothing but text: llama.cpp sees and hears by a projector alone.

        One may also come with a model that the arguments let it fetch by itself.
        """
        own = ("--mmproj", "-mm", "-hf", "--hf-repo")
        return not self.mmproj and not any(arg.startswith(own) for arg in self.extra_args)


class ComfyOptions(Section):
    """ComfyUI. A workflow is a file in its API format with placeholders."""

    workflows: Mapping[str, str] = Field(default_factory=dict)
    """Workflow files for pictures from words, by the name that requests give as their model; the first
    serves requests that name none."""

    edit_workflows: Mapping[str, str] = Field(default_factory=dict)
    """The same for /v1/images/edits."""

    queue_timeout_s: float = Field(default=600, gt=0)
    """Longest that a prompt waits behind others in ComfyUI's own queue."""

    run_timeout_s: float = Field(default=3600, ge=0)
    """Longest that ComfyUI works on one prompt; 0 = no limit. ``server.idle_timeout_s`` is the longest
    that it may say nothing meanwhile."""

    max_megapixels: float = Field(default=16, gt=0)
    """Largest picture that a client may ask for. One that is too large can take ComfyUI's machine down."""


Options = LlamaCppOptions | ComfyOptions | NoOptions

OPTIONS: dict[str, type[LlamaCppOptions] | type[ComfyOptions] | type[NoOptions]] = {
    "llama-cpp": LlamaCppOptions,
    "command": NoOptions,
    "comfyui": ComfyOptions,
    "external": NoOptions,
}
"""Engine → the model of its options; also the list of engines."""
