"""Why an engine ended, from how it ended and what it said last. Pure.

An engine's exit status says little: a wrong model file, a taken port and a
full memory all end in ``exit code 1``. Its log says it, among much else. This
module knows the words by which inference servers (llama.cpp and its kin,
whisper.cpp, stable-diffusion.cpp, vLLM and others in Python) tell the causes
that matter, and reads a log as a person would: from its end backwards,

- not beyond the point where the engine last said that it runs, or that it goes
  on another way: what it complained of before, it has survived;
- not beyond ``REACH`` lines from the end, the frames of tracebacks and a
  debugger's talk not counted;
- passing over warnings and remarks;
- and taking the last cause named, not the loudest. Where several lines in a
  row name it, the first is quoted: what follows a failure repeats it with less.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from slotd.process.logline import LogLine, any_of, read_line
from slotd.process.plan import ExitStatus

__all__ = ["MESSAGE_MAX", "Verdict", "explain"]

REACH = 40
"""How many telling lines back a cause may lie: what a server says while it cleans up is shorter."""

RUN = 8
"""So many lines apart, two lines are still about one failure."""

LINES_MAX = 1000
"""How much of the log's end is looked at in any case."""

QUOTE_MAX = 240
MESSAGE_MAX = 400
"""The longest message, in characters."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why an engine ended.

    ``reason`` is a stable word:

    - ``port_taken``: it could not listen on its port;
    - ``out_of_memory``: of the machine, of a GPU, or of a limit;
    - ``bad_model``: a model file is missing, broken, or of an unknown kind;
    - ``missing_library``: a library, module or program that it needs is not there;
    - ``bad_arguments``: it does not accept its command line or settings;
    - ``killed``: a signal from outside, and nobody knows better;
    - ``crashed``: a signal by its own fault, and its log names no cause above;
    - ``exited``: anything else.

    ``message`` is one line for people, with the engine's own most telling words
    where it had any. ``terminal``: trying again without a change cannot help.
    Meant for an engine that has not been ready: one that has served did not
    lack its files.
    """

    reason: str
    message: str
    terminal: bool


def explain(status: ExitStatus, log: Sequence[str], *, oom_killed: bool = False) -> Verdict:
    """Judge an end that nobody asked for.

    ``log`` is the engine's output, oldest line first; a few hundred lines are
    better than a few dozen. ``oom_killed``: the kernel's out-of-memory killer
    struck while the engine died (:func:`slotd.process.vitals.oom_kills`).
    """
    signum = _signal_of(status)
    if signum in _FROM_OUTSIDE:
        if oom_killed and signum == signal.SIGKILL:
            return _verdict("out_of_memory", "the kernel killed it because memory ran out")
        return _verdict("killed", f"by {_name(signum)}, which did not come from slotd")
    lines = _last_words(log)
    cause = _cause(lines, status)
    if cause is not None:
        return _verdict(*cause)
    if oom_killed:
        return _verdict("out_of_memory", "the kernel killed one of its processes because memory ran out")
    words = _complaint(lines)
    if signum is not None:
        return _verdict("crashed", f"by {_name(signum)}" + (f": {words}" if words else ""))
    return _verdict("exited", f"by itself, {status}" + (f": {words}" if words else ""))


# --- what the causes are called ---------------------------------------------------

_HEADLINES = {
    "port_taken": "the engine's port is taken: ",
    "out_of_memory": "the engine ran out of memory: ",
    "bad_model": "the engine cannot use its model: ",
    "missing_library": "the engine lacks something that it needs to run: ",
    "bad_arguments": "the engine does not accept its settings: ",
    "killed": "the engine was killed ",
    "crashed": "the engine crashed ",
    "exited": "the engine ended ",
}

_TERMINAL = frozenset({"bad_model", "missing_library", "bad_arguments"})

_FROM_OUTSIDE = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM})
_BY_OWN_FAULT = frozenset(
    {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGSYS}
)
_BY_SHELL = 128
"""A shell that waits for the engine exits with this plus the signal's number."""


# Tried in this order on one line: "failed to open x: Cannot allocate memory" is about memory.
_CAUSES: tuple[tuple[str, re.Pattern[str]], ...] = (
    (
        "port_taken",
        any_of(
            r"address (is )?already in use",
            r"EADDRINUSE",
            r"couldn't bind HTTP server socket",
            r"port \d+ is (already )?(in use|taken|occupied)",
        ),
    ),
    (
        "out_of_memory",
        any_of(
            r"out of (device |host |gpu )?memory",
            r"insufficient memory",
            r"not enough (gpu |device |free |video )?memory",
            r"cannot allocate memory",
            r"(failed|unable|could not|can't|cannot) (to )?alloc(ate)?\b",
            r"memory allocation (of .*)?failed",
            r"OutOf(Device|Host)?Memory",
            r"OUT_OF_(DEVICE_|HOST_)?MEMORY",
            r"bad_alloc",
            r"GGML_ASSERT\(ctx->mem_buffer != NULL\)",
            r"^MemoryError\b",
            r"free memory on device .* is less than desired",
            r"no available memory for the cache blocks",
            r"larger than the maximum number of tokens that can be stored in KV cache",
            r"larger than the available KV cache memory",
        ),
    ),
    (
        "missing_library",
        any_of(
            r"error while loading shared libraries",
            r"cannot open shared object file",
            r"symbol lookup error",
            r"undefined symbol",
            r"version [`'\"].*[`'\"] not found",
            r"library not loaded",
            r"\bModuleNotFoundError\b",
            r"^ImportError\b",
            r"\bno module named\b",
            r"\bcannot import the engine\b",
            r"^\S*sh: .*not found$",
        ),
    ),
    (
        "bad_model",
        any_of(
            r"invalid magic",
            r"bad magic",
            r"failed to read (magic|header|key-value pairs|tensor info|tensor data)",
            r"model is corrupted or incomplete",
            r"(file|data|model|weights|checkpoint) (is|are|appears to be) (corrupt|truncated|incomplete)",
            r"unknown (model architecture|pre-tokenizer)",
            r"unsupported (model architecture|file version|gguf version)",
            r"tensor '[^']*' (not found|not in model file|has wrong shape|data is not)",
            r"missing tensor|wrong number of tensors|invalid ggml type",
            r"failed to open (gguf file )?'[^']*'(:? \(?(no such|permission|is a|not a)|$)",
            r"llama_model_loader: failed to load model from",
            r"failed to load (clip|multimodal|lora)",
            r"(no such file or directory|file not found|does not exist)\b.*"
            r"\.(gguf|ggml|bin|safetensors|pth?|ckpt|onnx|json|model)\b",
            r"\.(gguf|ggml|bin|safetensors|pth?|ckpt|onnx|json|model)\b.*"
            r"(no such file or directory|file not found|does not exist)",
            r"init model loader from file failed",
            r"get sd version from file failed",
            r"invalid (repository id or local|model path)",
            r"is not a local folder and is not a valid model identifier",
            r"does not appear to have (a|any) files? named",
            r"model architectures? .* (is|are) not supported",
            r"does not recognize this architecture",
            r"unrecognized model in",
            r"SafetensorError|deserializing header",
            r"UnpicklingError|failed reading zip archive|failed finding central directory",
        ),
    ),
    (
        "bad_arguments",
        any_of(
            # Not "invalid argument" alone: so speak CUDA and the kernel too.
            r"(unknown|unrecogni[sz]ed|unexpected|invalid) (argument|option|flag|parameter)s?:? ['\"`]?-",
            r"unrecognized arguments: ",
            r"the following arguments are required",
            r"expected (one|at least one|\d+) arguments?$",
            r"argument [^:]*: invalid",
            r"error while handling argument",
            r"option .* requires an argument",
            r"flag (provided but not defined|needs an argument)",
            r"unknown shorthand flag",
            r"no such option",
            r"missing (option|argument)",
            r"unexpected extra argument",
            r"unknown knob",
            r"failed to initialize chat template|chat template parsing error",
            r"max_model_len \(\d+\) is greater than",
        ),
    ),
)

_REFUSED = re.compile(r"^slotd\.engine\.llama_worker: (.*)")
"""With exit code 2 this is what is wrong with the worker's command line."""

_PAST = any_of(
    r"\blistening (on|at)\b",
    r"\bmodel loaded$",
    r"\brunning on https?:",
    r"application startup complete",
    r"\bfall(ing|s) back\b",
    r"\bretrying\b",
    r"\btrying again\b",
)
"""The engine runs, or goes on: earlier trouble is past."""

_COMPLAINT = any_of(
    r"\b(error|fatal|fail(ed|ure|s)?|exception|panic(ked)?|abort(ed|ing)?|invalid|cannot|can't|couldn't)\b",
    r"\b\w+(Error|Exception)\b",
    r"\bassert",
    r"^what\(\):",
)

_LAST_CRY = any_of(
    r"GGML_ASSERT",
    r"\bassertion .*failed",
    r"\bcheck failed",
    r"\bpanicked at\b",
    r"^fatal python error",
    r"\b(CUDA|HIP|ROCm|cuBLAS) error\b",
    r"^what\(\):",
)
"""What a program says as it aborts; whatever comes after is the search for the place."""

_CONSEQUENCE = any_of(
    r"^terminate called",
    r"exiting due to",
    r"failed to init server, please check",
    r"root cause above",
    r"\bcleaning up\b",
)
"""Complaints that only say that something was wrong."""

# --- reading a log ---------------------------------------------------------------


def _last_words(log: Sequence[str]) -> list[LogLine]:
    """What the engine said since it last was well, newest first, ``REACH`` lines at most."""
    words: list[LogLine] = []
    for raw in log[: -LINES_MAX - 1 : -1]:
        line = read_line(raw)
        if line is None:
            continue
        if _PAST.search(line.text):
            break
        if line in words:
            continue  # a thousand times the same is one word
        words.append(line)
        if len(words) == REACH:
            break
    return words


def _cause(lines: Iterable[LogLine], status: ExitStatus) -> tuple[str, str] | None:
    """The last cause named, and the first of the lines in a row that name it."""
    reason: str | None = None
    quote = ""
    since = 0
    for line in lines:
        since += 1
        named = None if line.quiet else _named(line.text, status)
        if named is None:
            continue
        if reason is None:
            reason = named[0]
        elif named[0] != reason or since > RUN:
            break
        quote = named[1]
        since = 0
    return None if reason is None else (reason, quote)


def _named(text: str, status: ExitStatus) -> tuple[str, str] | None:
    for reason, pattern in _CAUSES:
        if pattern.search(text):
            return reason, text
    refused = _REFUSED.match(text) if status.code == 2 else None
    return None if refused is None else ("bad_arguments", refused[1])


def _complaint(lines: Sequence[LogLine]) -> str:
    """The last line that says what went wrong, a cry before a mere complaint; else the last line at all."""
    spoken = [line.text for line in lines if not line.quiet]
    complaints = [text for text in spoken if _COMPLAINT.search(text)]
    telling = [text for text in complaints if not _CONSEQUENCE.search(text)]
    cries = [text for text in telling if _LAST_CRY.search(text)]
    for choice in (cries, telling, complaints, spoken, [line.text for line in lines]):
        if choice:
            return choice[0]
    return ""


def _verdict(reason: str, words: str) -> Verdict:
    message = _HEADLINES[reason] + _cut(words, QUOTE_MAX)
    return Verdict(reason, _cut(message, MESSAGE_MAX), reason in _TERMINAL)


def _cut(text: str, limit: int) -> str:
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"


def _signal_of(status: ExitStatus) -> int | None:
    """The signal that ended it, also where a shell between reports it as an exit code."""
    if status.signal is not None:
        return status.signal
    if status.code is not None and status.code - _BY_SHELL in _FROM_OUTSIDE | _BY_OWN_FAULT:
        return status.code - _BY_SHELL
    return None


def _name(signum: int | None) -> str:
    try:
        return signal.Signals(signum or 0).name
    except ValueError:
        return f"signal {signum}"
