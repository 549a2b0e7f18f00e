"""One line of an engine's log without its clothes: colours, dates, levels, source positions. Pure.

Inference servers write in a dozen shapes. What is left here is what they say,
and whether they mean it as more than a remark.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["LogLine", "any_of", "read_line"]

LOOK_MAX = 600
"""How much of one line is looked at, in characters."""


def any_of(*patterns: str) -> re.Pattern[str]:
    """A search for any of the patterns, whatever the case of the letters."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


_REMARK = any_of(
    r"^(warn(ing)?|info|debug|note|hint|trace)\b",
    r"^\S+: (warning|note|hint|\w*warning): ",
    r"\blevel=(warn|info|debug)",
    r"if you're running out of VRAM",  # advice that llama-server adds to every failed load
)

_FRAME = any_of(
    r"^traceback \(most recent call last\)",
    r"^\s",
    r"^File \"",
    r"^During handling of the above exception",
    r"^The above exception was the direct cause",
    r"^(frame )?#\d+",
    r"^goroutine \d+",
    r"^\[New LWP",
    r"^\[Thread debugging using",
    r"^Using host libthread_db",
    r"^\S*gdb\S*:",
    r"^(-+ Backtrace -+|error creating backtrace)",
    r"^(warning: )?(File \"|Section |Can't read data for section)",
    r"^[-=~^ ]*$",
)

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_PREFIXES = re.compile(
    r"""^(?:
        \([^()]*\bpid=\d+[^()]*\)\s?                            # vLLM: (EngineCore pid=17374)
      | \d+(?:\.\d{2,3}){2,3}\s(?P<llama>[EWIDF])\s+           # llama.cpp: 0.00.003.666 E
      | (?P<glog>[EWIF])\d{4}\s\d\d:\d\d:\d\d[^\]]{,60}\]\s        # glog: E0928 15:47:24.1 12 a.cc:7]
      | [\[(]?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[^\s\])]*[\])]?\s+   # a date and a time
      | \d\d-\d\d\s\d\d:\d\d:\d\d\s+                            # vLLM: 09-28 15:47:24
      | \[[\w./-]+:\d+\]\s?                                     # vLLM: [core.py:718]
      | [\w.-]+\.(?:cpp|c|cu|hpp|cc|py|rs|go):\d+\s+(?:-\s+)?   # stable-diffusion.cpp: model.cpp:1938 -
    )""",
    re.VERBOSE,
)
_LEVEL = re.compile(r"^\[?(ERROR|WARN|WARNING|INFO|DEBUG|FATAL|CRITICAL)\b\s?\]?:?\s")
_QUIET = frozenset({"W", "I", "D", "WARN", "WARNING", "INFO", "DEBUG"})
_SHOUTED = re.compile(r"\bWARN(ING)?\b")


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line without colours, dates and levels; ``quiet``: no more than a warning."""

    text: str
    quiet: bool


def read_line(raw: str) -> LogLine | None:
    """None for what is not said by the engine: empty lines, stack frames, a debugger's talk."""
    text = _COLOUR.sub("", raw[:LOOK_MAX]).rstrip()
    quiet = False
    while True:
        prefix = _PREFIXES.match(text)
        level = None if prefix else _LEVEL.match(text)
        if prefix:
            quiet = quiet or (prefix["llama"] or prefix["glog"]) in _QUIET
            text = text[prefix.end() :]
        elif level:
            quiet = quiet or level[1] in _QUIET
            text = text[level.end() :].lstrip()
        else:
            break
    if text.lstrip().startswith("what():"):
        text = text.lstrip()  # indented, but the very words of a C++ exception
    if _FRAME.match(text):
        return None
    quiet = quiet or bool(_REMARK.search(text) or _SHOUTED.search(text))
    return LogLine(" ".join(text.split()), quiet)
