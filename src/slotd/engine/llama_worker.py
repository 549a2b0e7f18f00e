"""llama.cpp's server from the ``xllamacpp`` wheel, behind llama-server's command line.

    python -m slotd.engine.llama_worker --model FILE --host 127.0.0.1 --port N ...

The wheel brings the native server without a command-line parser; this module
maps the flags of ``llama-server`` that make sense for one model on one machine
onto it, so that the same arguments start either program. Values are read
before the engine is imported: a wrong flag costs no model load.

Exit status: 2 for a wrong command line or a missing wheel, 1 when the engine
refuses the model or the port (its words are on stderr), and death by SIGTERM
or SIGINT, at once. The port opens before the model is loaded; ``/health`` says
503 until it is. Nothing of slotd is imported, which keeps the start short.
"""

from __future__ import annotations

import difflib
import json
import operator
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

__all__ = ["FLAGS", "Flag", "Setting", "UsageError", "configure", "main", "parse"]

PROGRAM = "slotd.engine.llama_worker"
USAGE_EXIT = 2
INT32 = 2**31


class UsageError(Exception):
    """The command line cannot be used; the message says what to write instead."""


Put = Callable[[Any, Any, Any], None]
"""Writes a value: called with the engine module, its parameters and the value."""


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: its spellings, how its value is read, and where it goes.

    ``read`` raises ValueError with a message that completes "expects ...".
    A flag with ``read`` None takes no value and puts ``constant``.
    """

    names: tuple[str, ...]
    put: Put
    read: Callable[[str], Any] | None = None
    constant: Any = True


@dataclass(frozen=True, slots=True)
class Setting:
    """A flag as given, its value read."""

    flag: Flag
    value: Any


# --- how values are read ---------------------------------------------------------


def _text(raw: str) -> str:
    return raw


def _integer(low: int = -1, high: int = INT32 - 1) -> Callable[[str], int]:
    def read(raw: str) -> int:
        try:
            value = int(raw)
        except ValueError:
            raise ValueError("a whole number") from None
        if not low <= value <= high:
            raise ValueError(f"a whole number of at least {low}" if value < low else f"at most {high}")
        return value

    return read


def _number(raw: str) -> float:
    try:
        return float(raw)
    except ValueError:
        raise ValueError("a number") from None


def _choice(**values: Any) -> Callable[[str], Any]:
    def read(raw: str) -> Any:
        try:
            return values[raw.lower().replace("-", "_")]
        except KeyError:
            raise ValueError("one of " + ", ".join(values).replace("_", "-")) from None

    return read


def _layers(raw: str) -> int:
    words = {"auto": -1, "all": -2}
    try:
        return words[raw] if raw in words else _integer(-2)(raw)
    except ValueError:
        raise ValueError("a number of layers, auto or all") from None


def _names(raw: str) -> set[str]:
    names = {name.strip() for name in raw.split(",")} - {""}
    if not names:
        raise ValueError("a name, or several with commas between")
    return names


def _paths(raw: str) -> list[str]:
    return [path for path in raw.split(",") if path]


def _scaled_path(raw: str) -> list[tuple[str, float]]:
    pairs = []
    for item in raw.split(","):
        path, _, scale = item.rpartition(":")
        if not path:
            raise ValueError("FILE:SCALE")
        pairs.append((path, _number(scale)))
    return pairs


def _ratios(raw: str) -> list[float]:
    return [_number(part) for part in raw.replace("/", ",").split(",")]


def _template_kwargs(raw: str) -> dict[str, str]:
    try:
        doc = json.loads(raw)
    except ValueError:
        doc = None
    if not isinstance(doc, dict):
        raise ValueError('a JSON object, such as {"enable_thinking": false}')
    return {key: json.dumps(value) for key, value in doc.items()}


def _file_text(raw: str) -> str:
    try:
        with open(raw, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"a readable UTF-8 file ({error})") from error


# --- where values go -------------------------------------------------------------


def _to(path: str) -> Put:
    """Put the value at ``path``, dotted from the engine's parameters."""
    owner, _, name = path.rpartition(".")
    descend = operator.attrgetter(owner) if owner else None

    def put(_engine: Any, params: Any, value: Any) -> None:
        setattr(descend(params) if descend else params, name, value)

    return put


def _to_enum(path: str, enum: str) -> Put:
    """Like :func:`_to`, for the name of a member of one of the engine's enums."""
    put = _to(path)
    return lambda engine, params, value: put(engine, params, getattr(engine, enum)[value])


def _put_host(_engine: Any, params: Any, value: str) -> None:
    params.hostnames = [value]


def _put_keys(_engine: Any, params: Any, value: list[str]) -> None:
    params.api_keys = [*params.api_keys, *value]


def _put_origins(_engine: Any, params: Any, value: str) -> None:
    params.cors_origins = value
    params.cors_origins_explicit = True


def _put_alias(_engine: Any, params: Any, value: set[str]) -> None:
    params.model_alias = value


def _put_reranking(engine: Any, params: Any, _value: bool) -> None:
    params.embedding = True
    params.pooling_type = engine.llama_pooling_type.LLAMA_POOLING_TYPE_RANK


def _put_lora(engine: Any, params: Any, value: list[str]) -> None:
    _put_scaled_lora(engine, params, [(path, 1.0) for path in value])


def _put_scaled_lora(engine: Any, params: Any, value: list[tuple[str, float]]) -> None:
    adapters = [engine.CommonAdapterLoraInfo(path, scale) for path, scale in value]
    params.lora_adapters = [*params.lora_adapters, *adapters]


def _put_tensor_split(_engine: Any, params: Any, value: list[float]) -> None:
    params.tensor_split = (value + [0.0] * len(params.tensor_split))[: len(params.tensor_split)]


def _put_timeout(_engine: Any, params: Any, value: int) -> None:
    params.timeout_read = params.timeout_write = value


def _switch(path: str, *names: str) -> Flag:
    return Flag(names, _to(path))


def _switch_off(path: str, *names: str) -> Flag:
    return Flag(names, _to(path), constant=False)


_FLASH = _choice(
    on="LLAMA_FLASH_ATTN_TYPE_ENABLED",
    off="LLAMA_FLASH_ATTN_TYPE_DISABLED",
    auto="LLAMA_FLASH_ATTN_TYPE_AUTO",
)
_POOLING = _choice(**{k: f"LLAMA_POOLING_TYPE_{k.upper()}" for k in ("none", "mean", "cls", "last", "rank")})
_CACHE_TYPE = _choice(
    **{
        k: f"GGML_TYPE_{k.upper()}"
        for k in ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")
    }
)
_SPLIT = _choice(**{k: f"LLAMA_SPLIT_MODE_{k.upper()}" for k in ("none", "layer", "row")})
_ROPE = _choice(**{k: f"LLAMA_ROPE_SCALING_TYPE_{k.upper()}" for k in ("none", "linear", "yarn")})
_REASONING = _choice(
    none="COMMON_REASONING_FORMAT_NONE",
    auto="COMMON_REASONING_FORMAT_AUTO",
    deepseek="COMMON_REASONING_FORMAT_DEEPSEEK",
    deepseek_legacy="COMMON_REASONING_FORMAT_DEEPSEEK_LEGACY",
)
_LOAD_MODE = {"no_mmap": "LLAMA_LOAD_MODE_NONE", "mlock": "LLAMA_LOAD_MODE_MMAP_MLOCK"}

FLAGS: tuple[Flag, ...] = (
    # the model
    Flag(("--model", "-m"), _to("model.path"), _text),
    Flag(("--alias", "-a"), _put_alias, _names),
    Flag(("--mmproj", "-mm"), _to("mmproj.path"), _text),
    _switch_off("mmproj_use_gpu", "--no-mmproj-offload"),
    Flag(("--lora",), _put_lora, _paths),
    Flag(("--lora-scaled",), _put_scaled_lora, _scaled_path),
    Flag(("--chat-template",), _to("chat_template"), _text),
    Flag(("--chat-template-file",), _to("chat_template"), _file_text),
    Flag(("--chat-template-kwargs",), _to("default_template_kwargs"), _template_kwargs),
    _switch("use_jinja", "--jinja"),
    _switch_off("use_jinja", "--no-jinja"),
    Flag(("--reasoning-format",), _to_enum("reasoning_format", "common_reasoning_format"), _REASONING),
    # what it serves, and where
    Flag(("--host",), _put_host, _text),
    Flag(("--port",), _to("port"), _integer(0, 65535)),
    Flag(("--threads-http",), _to("n_threads_http"), _integer()),
    Flag(("--timeout", "-to"), _put_timeout, _integer(1)),
    Flag(("--api-key",), _put_keys, _paths),
    Flag(("--cors-origins",), _put_origins, _text),
    Flag(("--api-prefix",), _to("api_prefix"), _text),
    _switch("embedding", "--embedding", "--embeddings"),
    Flag(("--reranking", "--rerank"), _put_reranking),
    Flag(("--pooling",), _to_enum("pooling_type", "llama_pooling_type"), _POOLING),
    Flag(("--embd-normalize",), _to("embd_normalize"), _integer()),
    _switch("endpoint_slots", "--slots"),
    _switch_off("endpoint_slots", "--no-slots"),
    _switch("endpoint_metrics", "--metrics"),
    _switch("endpoint_props", "--props"),
    _switch("ui", "--webui", "--ui"),
    _switch_off("ui", "--no-webui", "--no-ui"),
    Flag(("--slot-save-path",), _to("slot_save_path"), _text),
    # memory and speed
    Flag(("--ctx-size", "-c"), _to("n_ctx"), _integer(0)),
    Flag(("--parallel", "-np"), _to("n_parallel"), _integer(1)),
    Flag(("--batch-size", "-b"), _to("n_batch"), _integer(1)),
    Flag(("--ubatch-size", "-ub"), _to("n_ubatch"), _integer(1)),
    Flag(("--n-gpu-layers", "--gpu-layers", "-ngl"), _to("n_gpu_layers"), _layers),
    Flag(("--main-gpu", "-mg"), _to("main_gpu"), _integer(0)),
    Flag(("--split-mode", "-sm"), _to_enum("split_mode", "llama_split_mode"), _SPLIT),
    Flag(("--tensor-split", "-ts"), _put_tensor_split, _ratios),
    Flag(("--threads", "-t"), _to("cpuparams.n_threads"), _integer()),
    Flag(("--threads-batch", "-tb"), _to("cpuparams_batch.n_threads"), _integer()),
    Flag(("--flash-attn", "-fa"), _to_enum("flash_attn_type", "llama_flash_attn_type"), _FLASH),
    Flag(("--cache-type-k", "-ctk"), _to_enum("cache_type_k", "ggml_type"), _CACHE_TYPE),
    Flag(("--cache-type-v", "-ctv"), _to_enum("cache_type_v", "ggml_type"), _CACHE_TYPE),
    Flag(("--cache-ram", "-cram"), _to("cache_ram_mib"), _integer()),
    Flag(("--cache-reuse",), _to("n_cache_reuse"), _integer(0)),
    _switch("kv_unified", "--kv-unified", "-kvu"),
    _switch("no_kv_offload", "--no-kv-offload", "-nkvo"),
    _switch("swa_full", "--swa-full"),
    _switch("ctx_shift", "--context-shift"),
    _switch_off("ctx_shift", "--no-context-shift"),
    _switch("cont_batching", "--cont-batching", "-cb"),
    _switch_off("cont_batching", "--no-cont-batching", "-nocb"),
    _switch("warmup", "--warmup"),
    _switch_off("warmup", "--no-warmup"),
    *(
        Flag((f"--{name.replace('_', '-')}",), _to_enum("load_mode", "llama_load_mode"), constant=member)
        for name, member in _LOAD_MODE.items()
    ),
    Flag(("--rope-scaling",), _to_enum("rope_scaling_type", "llama_rope_scaling_type"), _ROPE),
    Flag(("--rope-freq-base",), _to("rope_freq_base"), _number),
    Flag(("--rope-freq-scale",), _to("rope_freq_scale"), _number),
    Flag(("--yarn-orig-ctx",), _to("yarn_orig_ctx"), _integer(0)),
    # what requests get that do not say
    Flag(("--n-predict", "--predict", "-n"), _to("n_predict"), _integer()),
    Flag(("--keep",), _to("n_keep"), _integer()),
    Flag(("--seed", "-s"), _to("sampling.seed"), lambda raw: _integer(-1, 2**32 - 1)(raw) % 2**32),
    Flag(("--temp", "--temperature"), _to("sampling.temp"), _number),
    Flag(("--top-k",), _to("sampling.top_k"), _integer(0)),
    Flag(("--top-p",), _to("sampling.top_p"), _number),
    Flag(("--min-p",), _to("sampling.min_p"), _number),
    Flag(("--repeat-penalty",), _to("sampling.penalty_repeat"), _number),
    # talk
    Flag(("--verbose", "-v"), _to("verbosity"), constant=INT32 - 1),
    Flag(("--verbosity", "--log-verbosity", "-lv"), _to("verbosity"), _integer(0)),
)

_BY_NAME = {name: flag for flag in FLAGS for name in flag.names}


def parse(argv: Sequence[str]) -> tuple[Setting, ...]:
    """Read the command line, in its order. Raises :class:`UsageError`. Reads no file but templates."""
    settings = []
    words = iter(argv)
    for word in words:
        name = word.replace("_", "-") if word.startswith("--") else word
        flag = _BY_NAME.get(name)
        if flag is None:
            raise UsageError(_unknown(name))
        if flag.read is None:
            settings.append(Setting(flag, flag.constant))
            continue
        raw = next(words, None)
        if raw is None:
            raise UsageError(f"{name} needs a value")
        try:
            settings.append(Setting(flag, flag.read(raw)))
        except ValueError as error:
            raise UsageError(f"{name} expects {error}, not {raw!r}") from error
    if not any("--model" in setting.flag.names for setting in settings):
        raise UsageError("--model FILE is needed")
    return tuple(settings)


def _unknown(word: str) -> str:
    head, equals, value = word.partition("=")
    if equals and head in _BY_NAME:
        return f"write {head} {value} with a space; llama-server takes no '='"
    if not word.startswith("-"):
        return f"unexpected word {word!r}; every value follows its flag"
    near = difflib.get_close_matches(head, _BY_NAME, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"unknown flag {head}{hint}"


def configure(engine: Any, settings: Sequence[Setting]) -> Any:
    """The engine's parameters for these settings; a later setting wins.

    ``engine`` is the ``xllamacpp`` module. Where no flag says otherwise the
    port is 8080, as llama-server's, and only pages of this machine may talk to
    the engine from a browser: llama-server lets every web page do so.
    """
    params = engine.CommonParams()
    params.port = 8080
    _put_host(engine, params, "127.0.0.1")
    _put_origins(engine, params, "localhost")
    for setting in settings:
        setting.flag.put(engine, params, setting.value)
    if params.embedding and params.n_batch > params.n_ubatch:
        # An embedding needs its whole input in one physical batch; llama-server
        # cuts the logical one to it, so that an input too long is refused
        # with a message and does not abort the process.
        params.n_batch = params.n_ubatch
    return params


def main(argv: Sequence[str]) -> NoReturn:
    """Serve until killed."""
    try:
        settings = parse(argv)
    except UsageError as error:
        _leave(str(error))
    try:
        import xllamacpp
    except ImportError as error:
        _leave(f"cannot import the engine ({error}); install it with: pip install 'slotd[llama-cpp]'")
    # The constructor holds the GIL for the whole load: a handler in Python
    # could not run, so both signals end the process by themselves.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        server = xllamacpp.Server(configure(xllamacpp, settings))
    except Exception as error:  # the wheel raises plain exceptions; their text is all there is to tell
        _leave(str(error), status=1)
    sys.stderr.write(f"{PROGRAM}: listening on {server.listening_address}\n")
    sys.stderr.flush()
    while True:
        signal.pause()


def _leave(message: str, *, status: int = USAGE_EXIT) -> NoReturn:
    sys.stderr.write(f"{PROGRAM}: {message}\n")
    sys.exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
