"""OpenAI's image endpoints, served by ComfyUI."""

from __future__ import annotations

import random
import uuid
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import trio

from slotd.adapt import Call, Reply
from slotd.comfy.answers import PICTURES, Answer, answer_for
from slotd.comfy.api import Api, Entry, Picture
from slotd.comfy.asked import SEED_MAX, Asked, Shelf, read_asked, values_for
from slotd.comfy.events import Line, with_line
from slotd.comfy.form import Upload
from slotd.comfy.job import Limits, run_prompt
from slotd.comfy.words import failed
from slotd.comfy.workflow import IMAGES, Workflow, render
from slotd.errors import EngineError, RequestUnprocessable, SlotdError
from slotd.wire.broken import Broken
from slotd.wire.transport import EngineTransport

__all__ = ["ComfyAdapter"]

ANSWER_MAX = 128 << 20
"""All pictures of one answer together; bytes."""

EMPTY_TIMEOUT_S = 2.0
"""For taking a client's pictures away from ComfyUI once they have served."""


@dataclass(frozen=True, slots=True)
class ComfyAdapter:
    """Implements :class:`slotd.adapt.contract.Adapter` for one endpoint of a ComfyUI slot.

    ``limits``: of each prompt. ``max_megapixels``: the largest picture that may
    be asked for.
    """

    shelf: Shelf
    limits: Limits
    max_megapixels: float

    async def serve(self, call: Call, http: EngineTransport, reply: Reply) -> None:
        """See :meth:`slotd.adapt.contract.Adapter.serve`.

        As many prompts as are needed for the pictures asked for, one after
        another; each is one place in ComfyUI's queue, so that others get their
        turns in between.
        """
        asked = read_asked(call)
        workflow = self.shelf.pick(asked, call.model)
        self._check_size(asked)
        _check_pictures(workflow, asked)
        api = Api(http)
        uploads = _uploads(workflow, asked)
        try:
            files = await _upload(api, uploads, reply)
            answer = answer_for(asked, call.path, reply)
            draw = partial(self._draw, api, workflow, asked, files, answer)
            await answer.run(partial(with_line, http.address, draw))
        finally:
            if uploads:
                await _empty(api, uploads)

    def _check_size(self, asked: Asked) -> None:
        width, height = asked.size or (0, 0)
        if width * height > self.max_megapixels * 1_000_000:
            raise RequestUnprocessable(
                f"`size`: {width}x{height} is more than {self.max_megapixels:g} megapixels "
                "(options.max_megapixels)",
                param="size",
            )

    async def _draw(
        self, api: Api, workflow: Workflow, asked: Asked, files: dict[str, str], answer: Answer, line: Line
    ) -> None:
        seed = _seed(workflow, asked)
        drawn = prompts = 0
        room = ANSWER_MAX
        while (left := asked.n - drawn) > 0:
            values = values_for(workflow, asked, seed=(seed + prompts) % (SEED_MAX + 1), n=left, files=files)
            about = "" if asked.n == 1 or workflow.batches else f"picture {drawn + 1} of {asked.n}, "

            def says(words: str, about: str = about) -> None:
                answer.says(about + words)

            entry, left_out = await run_prompt(api, line, render(workflow, values), self.limits, says)
            prompts += 1
            for picture in _pictures(workflow, entry, left_out)[:left]:
                data, kind = await api.view(picture, room)
                room -= len(data)
                await answer.add(data, kind)
                drawn += 1


def _seed(workflow: Workflow, asked: Asked) -> int:
    """Of the first picture: the client's, else the template's, else any that a double holds, too."""
    if asked.seed is not None:
        return asked.seed
    default: int | None = workflow.defaults.get("seed")
    return random.getrandbits(53) if default is None else default


def _pictures(workflow: Workflow, entry: Entry, left_out: str) -> list[Picture]:
    """At least one. Raises what :func:`slotd.comfy.words.failed` makes of a failure, and for none."""
    if not entry.succeeded:
        raise failed(entry.messages)
    found = [picture for node in workflow.outputs for picture in entry.pictures.get(node, ())]
    if not found:
        nodes = ", ".join(workflow.outputs)
        raise EngineError(
            f"ComfyUI: the workflow ended well, but put out no picture (node {nodes})"
            + (f"; it left out what is wrong: {left_out}" if left_out else ""),
            details={"reason": "no_picture"},
        )
    return found


def _check_pictures(workflow: Workflow, asked: Asked) -> None:
    """Raises :class:`RequestUnprocessable` if the request has not the pictures that the workflow works on."""
    wanted, given = workflow.images, len(asked.images)
    if wanted == 0:
        return  # pictures from words alone: others are no part of that request
    if given != wanted:
        what = "`image` is missing" if not given else f"{given} pictures were given"
        many = "one picture" if wanted == 1 else f"{wanted} pictures"
        raise RequestUnprocessable(f"{what}: this workflow works on {many}", param="image")
    if workflow.masks != (asked.mask is not None):
        what = "takes no mask" if asked.mask is not None else "needs a mask"
        raise RequestUnprocessable(f"this workflow {what}", param="mask")


@dataclass(frozen=True, slots=True)
class _File:
    """A picture for ComfyUI to work on, under a name that nothing else has."""

    placeholder: str
    name: str
    upload: Upload


def _uploads(workflow: Workflow, asked: Asked) -> list[_File]:
    if not workflow.images:
        return []
    given: dict[str, Upload] = dict(
        zip((name for name in IMAGES if name in workflow.uses), asked.images, strict=True)
    )
    if asked.mask is not None:
        given["mask"] = asked.mask
    files: list[_File] = []
    for placeholder, upload in given.items():
        # The client's own name for it is of no use here, and might be of harm.
        ending = PICTURES.get(upload.content_type.partition(";")[0].strip().lower(), "png")
        files.append(_File(placeholder, f"{uuid.uuid4().hex}.{ending}", upload))
    return files


async def _upload(api: Api, files: list[_File], reply: Reply) -> dict[str, str]:
    """Give ComfyUI the pictures; what it calls them, by placeholder."""
    named: dict[str, str] = {}
    for file in files:
        named[file.placeholder] = await api.upload(file.upload.data, file.name)
        reply.progressed()
    return named


async def _empty(api: Api, files: list[_File]) -> None:
    """Leave nothing of them on its disk. It deletes none before it starts anew, but takes others for them.

    Bounded, and shielded: a client that has left has its pictures there, too.
    """
    with trio.move_on_after(EMPTY_TIMEOUT_S, shield=True):
        # An engine that cannot be reached is ended, and throws them away when it starts.
        with suppress(Broken, SlotdError):
            for file in files:
                await api.upload(b"", file.name)
