"""What is asked: closed loops of small and large requests, and streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rig.load_gen import Job

__all__ = ["FULL_SPEED", "LARGE", "PACED", "SMALL", "Scenario", "full", "quick"]

MIB = 1 << 20
RATE = 20
SMALL, LARGE, FULL_SPEED, PACED = "small JSON", "1 MiB body", "full speed", f"{RATE} tokens/s"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One line of questions. ``connections``: at a time, and for streams their number.

    ``seconds``: how long a closed loop, or streams at full speed, are measured; the
    longest that paced streams may take. ``tokens``: of each stream.
    """

    what: str
    connections: int
    seconds: float
    tokens: int = 16
    plain: bool = False
    """Asked of targets that can do no more than answer a small document."""

    @property
    def name(self) -> str:
        return f"{self.what}, {self.connections}"

    def job(self, host: str, port: int, model: str, key: str, path: str) -> Job:
        streams = self.what in (FULL_SPEED, PACED)
        return Job(
            kind="streams" if streams else "closed",
            host=host,
            port=port,
            model=model,
            connections=self.connections,
            seconds=self.seconds,
            body_bytes=MIB if self.what == LARGE else 0,
            tokens=self.tokens,
            rate=RATE if self.what == PACED else 0,
            key=key,
            path=path,
        )


ENDLESS = 10_000_000
"""Tokens of a stream that ends when its time is over."""


def _made(
    small: Sequence[int],
    large: Sequence[int],
    fast: Sequence[int],
    paced: Sequence[int],
    s: float,
    tokens: int,
) -> list[Scenario]:
    return [
        *(Scenario(SMALL, n, s, plain=True) for n in small),
        *(Scenario(LARGE, n, s) for n in large),
        *(Scenario(FULL_SPEED, n, s, tokens=ENDLESS) for n in fast),
        # Three times what it should take; who has not ended by then is counted as unfinished.
        *(Scenario(PACED, n, 3 * tokens / RATE + 10, tokens=tokens) for n in paced),
    ]


def full(seconds: float) -> list[Scenario]:
    return _made([1, 8, 16, 64], [1, 16, 64], [1, 16], [1, 100, 500, 1000], seconds, 100)


def quick(seconds: float) -> list[Scenario]:
    return _made([1, 8, 16], [16], [1], [1, 100], seconds, 20)
