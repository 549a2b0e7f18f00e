"""What a client asks for, in OpenAI's shapes, and which workflow makes it. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from slotd.adapt import Call
from slotd.comfy.form import Upload, is_form, read_form
from slotd.comfy.workflow import IMAGES, Workflow
from slotd.errors import NoRouteFound, RequestUnprocessable

__all__ = ["Asked", "Shelf", "read_asked", "values_for"]

N_MAX = 10
SIDE_MAX = 16384
PROMPT_MAX = 256 << 10
"""Characters."""
SEED_MAX = 2**64 - 1
STEPS_MAX = 10_000

_SIZE = re.compile(r"(\d{1,6})[xX](\d{1,6})")
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*;base64,", re.ASCII)
_PICTURE = re.compile(r"image(?:\[\d*\])?")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for pictures. None: the client did not say. ``stream``: as events, in the end pictures."""

    prompt: str
    model: str = ""
    n: int = 1
    size: tuple[int, int] | None = None
    response_format: Literal["url", "b64_json"] = "url"
    stream: bool = False
    seed: int | None = None
    steps: int | None = None
    negative_prompt: str | None = None
    images: tuple[Upload, ...] = field(default=(), repr=False)
    mask: Upload | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Shelf:
    """A slot's workflows for one endpoint by name, in the configuration's order.

    ``own``: names that mean the slot itself.
    """

    workflows: Mapping[str, Workflow]
    own: frozenset[str] = frozenset()

    def pick(self, asked: Asked, served: str = "") -> Workflow:
        """The workflow for a request; ``served`` is what the slot's engine was loaded with.

        It is the one that the request names. A request that names none, or only
        the slot, gets the first that takes as many pictures as it brings, and a
        mask if it brings one; else the first of all, whose wants it is then told.
        Raises :class:`NoRouteFound` for a name that nobody has, and
        :class:`RequestUnprocessable` if there is no workflow at all.
        """
        model = asked.model
        if not self.workflows:
            raise RequestUnprocessable(
                "this slot has no workflow for this endpoint (workflows and edit_workflows in its options)"
            )
        if model in self.workflows:
            return self.workflows[model]
        if not model or model == served or model.removeprefix("slotd/") in self.own:
            shelved = self.workflows.values()
            given = (len(asked.images), asked.mask is not None)
            return next((w for w in shelved if (w.images, w.masks) == given), next(iter(shelved)))
        known = list(self.workflows)
        raise NoRouteFound(
            f"there is no workflow {model!r} here; there are {', '.join(known)}",
            param="model",
            details={"known": known},
        )


def read_asked(call: Call) -> Asked:
    """Read a request's body, a form or a JSON object.

    What slotd has no meaning for is ignored (``user``, ``quality``, ``style``, ...).
    Raises :class:`RequestUnprocessable` for what is missing or wrong.
    """
    given = _form(call) if is_form(call.content_type) else _document(call.body)
    prompt = given.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise RequestUnprocessable("`prompt` is missing: say what the picture is to show", param="prompt")
    if len(prompt) > PROMPT_MAX:
        raise RequestUnprocessable(f"`prompt` has more than {PROMPT_MAX} characters", param="prompt")
    mask = given.get("mask")
    stream = _flag(given, "stream")
    return Asked(
        prompt=prompt,
        model=_text(given, "model") or "",
        n=_number(given, "n", 1, N_MAX) or 1,
        size=_size(given),
        response_format=_format(given, "b64_json" if stream else "url"),
        stream=stream,
        seed=_number(given, "seed", 0, SEED_MAX),
        steps=_number(given, "steps", 1, STEPS_MAX),
        negative_prompt=_text(given, "negative_prompt"),
        images=_pictures(given.get("image")),
        mask=None if mask is None else _picture(mask, "mask"),
    )


def values_for(
    workflow: Workflow, asked: Asked, *, seed: int, n: int, files: Mapping[str, str]
) -> dict[str, Any]:
    """A value for each placeholder of the workflow: the client's, else its default.

    ``files``: the names of the uploaded pictures by placeholder. What the
    workflow has no placeholder for is left out.
    """
    said: dict[str, Any] = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        "steps": asked.steps,
        "seed": seed,
        "n": n,
        **files,
    }
    if asked.size is not None:
        said["width"], said["height"] = asked.size
    said = {name: value for name, value in said.items() if value is not None}
    return {name: value for name, value in {**workflow.defaults, **said}.items() if name in workflow.uses}


# --- fields ----------------------------------------------------------------------------


def _document(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise RequestUnprocessable(f"the body is no JSON object: {exc}") from exc


def _form(call: Call) -> dict[str, Any]:
    """The form as a document: of a field that comes twice the first, of pictures all."""
    form = read_form(call.content_type, call.body)
    found: dict[str, Any] = {}
    for name, text in form.fields:
        if not _PICTURE.fullmatch(name):
            found.setdefault(name, text)
    pictures = [upload for name, upload in form.files if _PICTURE.fullmatch(name)]
    pictures += [_picture(text, "image") for name, text in form.fields if _PICTURE.fullmatch(name)]
    if pictures:
        found["image"] = pictures
    found |= {name: upload for name, upload in form.files if name == "mask"}
    return found


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is None or isinstance(value, str):
        return value
    raise RequestUnprocessable(f"`{name}` must be a string", param=name)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    match given.get(name):
        case None | "" | False | "false":
            return False
        case True | "true":  # forms have no booleans
            return True
        case _:
            raise RequestUnprocessable(f"`{name}` must be true or false", param=name)


def _number(given: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = given.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, str) and re.fullmatch(r"\d{1,20}", value, re.ASCII):
        value = int(value)  # forms have no numbers
    if type(value) is not int or not least <= value <= most:
        raise RequestUnprocessable(f"`{name}` must be a whole number from {least} to {most}", param=name)
    return value


def _size(given: Mapping[str, Any]) -> tuple[int, int] | None:
    text = _text(given, "size")
    if text is None or text in ("", "auto"):
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise RequestUnprocessable('`size` must be WIDTHxHEIGHT, such as "1024x768", or "auto"', param="size")
    width, height = int(match[1]), int(match[2])
    if not (1 <= width <= SIDE_MAX and 1 <= height <= SIDE_MAX):
        raise RequestUnprocessable(f"`size`: each side must be from 1 to {SIDE_MAX}", param="size")
    return width, height


def _format(given: Mapping[str, Any], usual: Literal["url", "b64_json"]) -> Literal["url", "b64_json"]:
    match given.get("response_format"):
        case None | "":
            return usual
        case "url":
            return "url"
        case "b64_json":
            return "b64_json"
        case _:
            raise RequestUnprocessable(
                '`response_format` must be "url" or "b64_json"', param="response_format"
            )


def _pictures(given: Any) -> tuple[Upload, ...]:
    if given is None:
        return ()
    many = given if isinstance(given, list) else [given]
    if len(many) > len(IMAGES):
        raise RequestUnprocessable(f"`image`: {len(IMAGES)} pictures are the most", param="image")
    return tuple(_picture(one, "image") for one in many)


def _picture(given: Any, param: str) -> Upload:
    """A file of a form, or base64 (also as a data URL) in a JSON object."""
    if isinstance(given, Upload):
        if not given.data:
            raise RequestUnprocessable(f"`{param}` is empty", param=param)
        return given
    if not isinstance(given, str):
        raise RequestUnprocessable(f"`{param}` must be a file, or base64", param=param)
    head = _DATA_URL.match(given)
    kind = (head[1] or "") if head else ""
    try:
        data = base64.b64decode(given[head.end() :] if head else given, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise RequestUnprocessable(
            f"`{param}` must be a file, or base64; addresses are not fetched", param=param
        ) from exc
    if not data:
        raise RequestUnprocessable(f"`{param}` is empty", param=param)
    return Upload("", kind, data)
