"""A moment as people write it. Pure."""

from __future__ import annotations

import math
import re
from datetime import datetime

__all__ = ["moment"]

_UNIT_S = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_AGO = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(s|min|m|h|d)")


def moment(text: str, now: float) -> float:
    """Seconds since 1970 of ``10m`` (ago; s, m, h, d), an ISO date or time, or seconds since 1970.

    A date or time that names no zone is local. Raises ``ValueError``.
    """
    text = text.strip()
    if ago := _AGO.fullmatch(text):
        return now - float(ago[1]) * _UNIT_S[ago[2]]
    if re.fullmatch(r"\d{9,11}(\.\d{1,9})?", text):
        return float(text)
    try:
        found = datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise ValueError(f"{text!r} is neither a time ago like 10m nor an ISO date or time") from error
    if not math.isfinite(found):
        raise ValueError(f"{text!r} is no time")
    return found
