"""Whether an engine writes words: one short completion after a load, judged.

An engine can be up, healthy and fast and yet write nothing but ``!!!!!!!!``: with
damaged weights, or a kernel that computes NaN, every token is the same one. The
judge knows such output and no more. It does not know languages, so word salad
passes; what it condemns no model writes on purpose, twice, to two prompts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import trio

from slotd.slot.backend import Finding
from slotd.wire.http1 import Broken, Http1Pool
from slotd.wire.sse import EventParser, EventTooLarge

__all__ = ["check_output", "judge"]

REPEATS = 8
"""So often the same thing, and nothing else, is no answer to any prompt."""

SHOWN = 24

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PROMPTS = ("Once upon a time, there was a little", "The capital of France is Paris. The capital of Italy is")
"""Beginnings that any text model can go on with, however small, and whatever it was made for."""

MAX_TOKENS = 16
MAX_BODY = 1 << 20
MAX_PIECES = 8 * MAX_TOKENS
"""An engine that does not heed ``max_tokens`` is not read for ever."""

NO_SUCH = frozenset({404, 405, 501})


# --- judging: pure -------------------------------------------------------------------


def judge(text: str, tokens: Sequence[str] | None = None) -> str | None:
    """Why this is not an engine's answer in words; None if it may be.

    ``tokens``: the pieces as they came, if known. Condemns what is empty, blank
    or mostly unprintable, and one character or token :data:`REPEATS` times over
    and nothing else; every script, emoji, code and numbers pass.
    """
    if not text:
        return "no text at all"
    seen = sum(not _blank(c) for c in text)
    broken = sum(map(_broken, text))
    if broken > seen:
        return f"mostly unprintable characters ({_shown(text)})"
    if not seen:
        return f"only blanks ({_shown(text)})"
    if seen >= REPEATS and len({c for c in text if not _blank(c)}) == 1:
        return f"one character over and over ({_shown(text)})"
    for pieces, what in ((tokens or (), "token"), (text.split(), "word")):
        bare = [piece.strip() for piece in pieces if piece.strip()]
        if len(bare) >= REPEATS and len(set(bare)) == 1:
            return f"one {what} over and over ({_shown(text)})"
    return None


def _blank(char: str) -> bool:
    """Not to be seen: spaces, controls, and what stands for bytes that are no text."""
    return _broken(char) or char.isspace() or unicodedata.category(char) in ("Cc", "Cf", "Zs", "Zl", "Zp")


def _broken(char: str) -> bool:
    """Never part of a text. Unassigned code points may be: of a script newer than this Python."""
    if char.isspace():
        return False
    return char == "\ufffd" or unicodedata.category(char) in ("Cc", "Cs", "Co")


def _shown(text: str) -> str:
    return ascii(text[:SHOWN]) + ("..." if len(text) > SHOWN else "")


# --- asking --------------------------------------------------------------------------


class _Inconclusive(Exception):
    """Nothing can be said about the engine's words; the message tells why."""


class _NoSuchEndpoint(_Inconclusive):
    """The engine does not have it."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """``unseen``: why its silence tells nothing; empty, if it may be judged."""

    text: str
    pieces: tuple[str, ...]
    unseen: str = ""


async def check_output(http: Http1Pool, *, model_name: str, timeout_s: float) -> Finding:
    """Have the engine go on with a sentence, greedily, and judge what it writes.

    What looks like garbage is looked at once more, with another prompt. Whatever
    else goes wrong says nothing about the words: ``ok`` is None then, and
    ``why`` tells. ``timeout_s`` bounds all of it. Cancelled: the stream is closed,
    which stops an engine that can be stopped. Raises nothing.
    """
    began = trio.current_time()
    text = ""

    def finding(ok: bool | None, why: str | None = None) -> Finding:
        return Finding(ok, text, why, trio.current_time() - began)

    with trio.move_on_after(timeout_s):
        try:
            why: str | None = None
            for n, prompt in enumerate(PROMPTS):
                # A model made for chats may have nothing to add to a bare sentence.
                paths = (CHAT, COMPLETIONS) if n and not text.strip() else (COMPLETIONS, CHAT)
                answer = await _first(http, paths, model_name, prompt)
                text = answer.text
                why = judge(text, answer.pieces)
                if why is None:
                    return finding(True)
                if answer.unseen:
                    return finding(None, answer.unseen)
        except _Inconclusive as exc:
            return finding(None, str(exc))
        return finding(False, why)
    return finding(None, f"no answer within {timeout_s:g} s")


async def _first(http: Http1Pool, paths: Sequence[str], model_name: str, prompt: str) -> _Answer:
    """The answer of the first endpoint that the engine has."""
    for path in paths:
        try:
            return await _complete(http, path, model_name, prompt)
        except _NoSuchEndpoint as exc:
            missing = exc
    raise missing


async def _complete(http: Http1Pool, path: str, model_name: str, prompt: str) -> _Answer:
    asked: dict[str, object] = {
        "model": model_name,
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    if path == CHAT:
        asked["messages"] = [{"role": "user", "content": prompt}]
    else:
        asked["prompt"] = prompt
    headers = [(b"content-type", b"application/json"), (b"accept", b"text/event-stream")]
    try:
        async with await http.request(
            b"POST", path.encode(), headers, msgspec.json.encode(asked)
        ) as response:
            if response.status != 200:
                kind = _NoSuchEndpoint if response.status in NO_SUCH else _Inconclusive
                raise kind(f"{path} answers with status {response.status}")
            parser = EventParser(max_event_bytes=MAX_BODY)
            pieces: list[str] = []
            ended = ""
            while data := await response.receive_some():
                for event in parser.feed(data):
                    if event.data == b"[DONE]" or len(pieces) == MAX_PIECES:
                        return _answer(path, pieces, ended)
                    choice = _choice(event.data, path)
                    pieces.append(_piece(choice))
                    ended = choice.finish_reason or ended
    except Broken as exc:
        raise _Inconclusive(str(exc)) from exc
    except EventTooLarge as exc:
        raise _Inconclusive(f"{path}: {exc}") from exc
    if not pieces:
        raise _Inconclusive(f"{path} does not stream events")
    return _answer(path, pieces, ended)


def _answer(path: str, pieces: Sequence[str], ended: str) -> _Answer:
    """A chat may hide thoughts or call a tool; then its silence is no sign, unless it ended by itself."""
    text = "".join(pieces)
    unseen = ""
    if path == CHAT and not text.strip() and ended not in ("", "stop"):
        unseen = f"{path} shows nothing of what it wrote (finish_reason {ended[:SHOWN]!a})"
    return _Answer(text, tuple(pieces), unseen)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    error: msgspec.Raw = msgspec.Raw()


_chunks = msgspec.json.Decoder(_Chunk)


def _choice(data: bytes, path: str) -> _Choice:
    """What one event brings; nothing, if it only counts."""
    try:
        chunk = _chunks.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise _Inconclusive(f"{path} streams what is no completion: {exc}") from exc
    if bytes(chunk.error) not in (b"", b"null"):
        raise _Inconclusive(f"{path} tells an error in its stream")
    return chunk.choices[0] if chunk.choices else _Choice()


def _piece(choice: _Choice) -> str:
    """Its text; thinking aloud is text, too, and so is saying no."""
    delta = choice.delta or _Delta()
    return choice.text or delta.reasoning_content or delta.reasoning or delta.content or delta.refusal or ""
