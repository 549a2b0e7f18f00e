"""What a request to the fake engine asks for, and the answers that are not tokens. Pure.

Whatever a client may send is read without surprise: a document of the wrong
shape is :class:`Refused`, as the engine would refuse it, and never a crash.
"""

from __future__ import annotations

import binascii
import hashlib
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

__all__ = [
    "TASKS",
    "Ask",
    "Body",
    "Form",
    "Part",
    "Refused",
    "Result",
    "count",
    "read_ask",
    "read_form",
    "split_words",
]

JSON = "application/json; charset=utf-8"
DIMENSIONS = 32


class Refused(Exception):
    """The request is answered with an error: status, message, llama.cpp's error type."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind


Body = dict[str, Any]


def read_json(data: bytes) -> Body:
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise Refused(400, f"parse error: {exc}") from exc


# --- requests for text ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """A request for generated text. ``limit`` is the client's token limit, if it set one."""

    prompt: str
    last: str
    stream: bool
    include_usage: bool
    limit: int | None
    ignore_eos: bool

    def words(self, *, tokens: int, echo: bool) -> Iterator[str]:
        """The answer's tokens: of the length wanted, or the client's own words."""
        if echo:
            return islice(split_words(self.last), self.limit)
        if self.ignore_eos and self.limit is not None:
            tokens = self.limit
        return islice((f" word{n}" if n else "word0" for n in range(tokens)), self.limit)

    def cuts_short(self, sent: int) -> bool:
        """Whether an answer of so many tokens ended because of the client's limit."""
        return self.limit is not None and sent >= self.limit


MAX_TOKENS = 1_000_000
_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")


def read_ask(path: str, body: Body) -> Ask:
    """Raises :class:`Refused` where there is no prompt to be found."""
    if "messages" in path or "chat" in path:
        texts = [_text(body.get("system")), *_messages(body.get("messages"), "'messages' is required")]
    elif path.endswith("/responses"):
        given = body.get("input")
        wanted = "'input' is required"
        inputs = [given] if isinstance(given, str) else _messages(given, wanted)
        texts = [_text(body.get("instructions")), *inputs]
    elif path == "/infill":
        texts = [_text(body.get("input_prefix")) + _text(body.get("input_suffix"))]
    else:
        if "prompt" not in body:
            raise Refused(400, '"prompt" is required')
        texts = [_text(body["prompt"])]
    limit = next((body[k] for k in _LIMITS if type(body.get(k)) is int and body[k] >= 0), None)
    options = body.get("stream_options")
    return Ask(
        prompt="\n".join(texts),
        last=texts[-1],
        stream=body.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        limit=None if limit is None else min(limit, MAX_TOKENS),
        ignore_eos=body.get("ignore_eos") is True,
    )


def count(text: str) -> int:
    """Tokens of a prompt: its words, at least one."""
    return max(1, len(text.split()))


def _messages(given: Any, wanted: str) -> list[str]:
    if not isinstance(given, list) or not given or not all(isinstance(m, dict) for m in given):
        raise Refused(400, wanted)
    return [_text(message.get("content")) for message in given]


def _text(content: Any) -> str:
    """A text, or the texts of a list of parts; anything else has none."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) else p for p in content]
        return " ".join(p if isinstance(p, str) else f"<{p}>" for p in parts if p is not None)
    return ""


def split_words(text: str) -> Iterator[str]:
    """Words that keep the blanks before them: joined, they are the text again."""
    start = 0
    inside = False
    for at, char in enumerate(text):
        if char.isspace() and inside:
            yield text[start:at]
            start = at
        inside = not char.isspace()
    if text[start:]:
        yield text[start:]


# --- multipart forms -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    name: str
    filename: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Form:
    parts: tuple[Part, ...] = field(default=())

    def text(self, name: str) -> str:
        return next((p.data.decode("utf-8", "replace") for p in self.parts if p.name == name), "")

    def file(self) -> Part | None:
        return next((p for p in self.parts if p.filename), None)


def read_form(content_type: str, data: bytes) -> Form:
    """A ``multipart/form-data`` body. Raises :class:`Refused`."""
    kind, _, rest = content_type.partition(";")
    boundary = _parameter(rest, "boundary")
    if kind.strip().lower() != "multipart/form-data" or not boundary:
        raise Refused(400, "expected multipart/form-data with a boundary")
    pieces = (b"\r\n" + data).split(b"\r\n--" + boundary.encode("latin-1"))
    if len(pieces) < 2 or not pieces[-1].startswith(b"--"):
        raise Refused(400, "the multipart body has no end")
    parts = []
    for piece in pieces[1:-1]:
        head, _, content = piece.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        for line in head.decode("utf-8", "replace").split("\r\n"):
            name, _, value = line.partition(":")
            if name.lower() == "content-disposition":
                parts.append(Part(_parameter(value, "name"), _parameter(value, "filename"), content))
    return Form(tuple(parts))


def _parameter(text: str, name: str) -> str:
    for piece in text.split(";"):
        key, _, value = piece.strip().partition("=")
        if key.lower() == name:
            return value.strip('"')
    return ""


# --- answers that are not tokens -----------------------------------------------


@dataclass(frozen=True, slots=True)
class Result:
    data: bytes
    content_type: str = JSON


Task = Callable[[Body | Form, str], Result]
"""Answers a request (its JSON document or form) in the name of a model. Raises :class:`Refused`."""


def _json(document: Any) -> Result:
    return Result(msgspec.json.encode(document))


def _document(body: Body | Form) -> Body:
    if isinstance(body, Form):
        raise Refused(400, "expected a JSON object")
    return body


def _texts(body: Body, name: str) -> list[str]:
    given = body.get(name)
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list) or not given:
        raise Refused(400, f'"{name}" must be provided')
    if all(isinstance(item, int) for item in given):
        return [" ".join(map(str, given))]
    return [item if isinstance(item, str) else str(item) for item in given]


def vector(text: str) -> list[float]:
    """A unit vector that depends on the text and on nothing else."""
    raw = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSIONS]]
    length = math.sqrt(sum(x * x for x in raw))
    return [x / length for x in raw]


def _embeddings(body: Body | Form, model: str) -> Result:
    document = _document(body)
    texts = _texts(document, "input")
    packed = document.get("encoding_format") == "base64"
    data: list[dict[str, Any]] = []
    for index, text in enumerate(texts):
        numbers = vector(text)
        value = _packed(numbers) if packed else numbers
        data.append({"embedding": value, "index": index, "object": "embedding"})
    return _json({"model": model, "object": "list", "usage": _usage(texts), "data": data})


def _packed(numbers: list[float]) -> str:
    return binascii.b2a_base64(struct.pack(f"<{len(numbers)}f", *numbers), newline=False).decode()


def _usage(texts: list[str]) -> dict[str, int]:
    tokens = sum(count(text) for text in texts)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _rerank(body: Body | Form, model: str) -> Result:
    document = _document(body)
    query = document.get("query")
    if not isinstance(query, str):
        raise Refused(400, '"query" must be provided')
    texts = _texts(document, "documents")
    wanted = set(query.lower().split())
    scores = [len(wanted & set(text.lower().split())) / max(1, len(wanted)) for text in texts]
    order = sorted(range(len(texts)), key=lambda i: -scores[i])
    top = document.get("top_n")
    if type(top) is int and top >= 0:
        order = order[:top]
    results = [{"index": i, "relevance_score": scores[i]} for i in order]
    return _json({"model": model, "object": "list", "usage": _usage([query, *texts]), "results": results})


def _speech(body: Body | Form, _model: str) -> Result:
    """A WAV header and every byte value, once for each word of the text."""
    samples = bytes(range(256)) * count(_texts(_document(body), "input")[0])
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 16000, 32000, 2, 16)
    data = struct.pack("<4sI", b"data", len(samples)) + samples
    riff = struct.pack("<4sI4s", b"RIFF", 4 + len(fmt) + len(data), b"WAVE")
    return Result(riff + fmt + data, "audio/wav")


def _transcription(body: Body | Form, model: str) -> Result:
    file = body.file() if isinstance(body, Form) else None
    if not isinstance(body, Form) or file is None:
        raise Refused(400, "a file must be provided")
    received = {"filename": file.filename, "bytes": len(file.data)}
    text = f"{len(file.data)} bytes of audio"
    return _json({"text": text, "model": body.text("model") or model, "file": received})


# One pixel, blue.
_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


def _image(body: Body | Form, _model: str) -> Result:
    prompt = body.text("prompt") if isinstance(body, Form) else body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise Refused(400, '"prompt" must be provided')
    asked = None if isinstance(body, Form) else body.get("n")
    number = asked if type(asked) is int and 1 <= asked <= 10 else 1
    return _json({"created": 0, "data": [{"b64_json": _PNG, "revised_prompt": prompt}] * number})


def _tokenize(body: Body | Form, _model: str) -> Result:
    words = split_words(_text(_document(body).get("content")))
    return _json({"tokens": [binascii.crc32(word.encode()) % 32000 for word in words]})


def _detokenize(body: Body | Form, _model: str) -> Result:
    tokens = _document(body).get("tokens")
    return _json({"content": " ".join(f"t{token}" for token in tokens) if isinstance(tokens, list) else ""})


def _apply_template(body: Body | Form, _model: str) -> Result:
    return _json({"prompt": read_ask("/v1/chat/completions", _document(body)).prompt})


def _count_tokens(body: Body | Form, _model: str) -> Result:
    return _json({"input_tokens": count(read_ask("/v1/messages", _document(body)).prompt)})


TASKS: dict[str, Task] = {
    **dict.fromkeys(("/v1/embeddings", "/embeddings", "/embedding"), _embeddings),
    **dict.fromkeys(("/v1/rerank", "/v1/rerankings", "/v1/reranking", "/rerank", "/reranking"), _rerank),
    "/v1/audio/speech": _speech,
    **dict.fromkeys(("/v1/audio/transcriptions", "/v1/audio/translations"), _transcription),
    **dict.fromkeys(("/v1/images/generations", "/v1/images/edits"), _image),
    "/tokenize": _tokenize,
    "/detokenize": _detokenize,
    "/apply-template": _apply_template,
    "/v1/messages/count_tokens": _count_tokens,
}
"""The endpoints that answer with something else than generated text."""
