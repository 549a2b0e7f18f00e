"""What the client is told of the tools: while they run, and at the end. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from slotd.omni.hands import Kept

__all__ = ["Note", "Report", "results_in_words", "summary"]

TEXT_SHOWN = 2000

Status: TypeAlias = Literal["started", "running", "ok", "error"]


@dataclass(frozen=True, slots=True)
class Note:
    """A moment of a tool's run. ``words``: how far it is, or what is wrong."""

    id: str
    name: str
    slot: str
    status: Status
    took_s: float = 0.0
    words: str = ""
    artifacts: tuple[Kept, ...] = ()

    def comment(self) -> bytes:
        """For every stream's reader to skip."""
        parts = ["omni", self.name, self.status]
        if self.status != "started":
            parts.append(f"{self.took_s:.1f} s")
        parts += [self.words, *(kept.url for kept in self.artifacts)]
        # Line ends in what an engine says must not end the comment.
        words = " ".join(" ".join(parts).split())
        return f": {words}\n\n".encode("utf-8", "replace")

    def event(self) -> bytes:
        """For readers that have asked for it."""
        return b"event: slotd.tool\ndata: " + msgspec.json.encode(self.as_dict()) + b"\n\n"

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "slot": self.slot or None,
            "status": self.status,
            "took_s": round(self.took_s, 3),
            **({"words": self.words} if self.words else {}),
            **_artifacts(self.artifacts),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one call. ``text``: its result, if that is a text; ``slot`` empty: it did not run."""

    id: str
    name: str
    slot: str
    took_s: float
    error: str = ""
    code: str = ""
    text: str = ""
    artifacts: tuple[Kept, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.error

    def note(self) -> Note:
        status: Status = "ok" if self.ok else "error"
        return Note(self.id, self.name, self.slot, status, self.took_s, self.error, self.artifacts)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "slot": self.slot or None,
            "status": "ok" if self.ok else "error",
            "took_s": round(self.took_s, 3),
            **({"error": self.error} if self.error else {}),
            **({"code": self.code} if self.code else {}),
            **_artifacts(self.artifacts),
        }


def _artifacts(kept: Sequence[Kept]) -> dict[str, Any]:
    return {"artifacts": [k.as_dict() for k in kept]} if kept else {}


def summary(
    rounds: int, reports: Sequence[Report], ended: str, error: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The ``slotd`` field of the answer."""
    found: dict[str, Any] = {"rounds": rounds, "ended": ended, "tools": [r.as_dict() for r in reports]}
    return {**found, "error": error} if error else found


def results_in_words(reports: Sequence[Report]) -> str:
    """What the tools gave, for a reader whose model could not tell of it. Empty: nothing."""
    lines = []
    for report in reports:
        if not report.ok:
            continue
        lines += [f"- {report.name}: {kept.url} ({kept.content_type})" for kept in report.artifacts]
        if report.text and not report.artifacts:
            lines.append(f"- {report.name}: {report.text[:TEXT_SHOWN]}")
    return "\n".join(lines)
